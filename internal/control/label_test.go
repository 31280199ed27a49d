package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
)

func labelledAs(labels ...string) func(*manifest.Function) {
	return func(f *manifest.Function) { f.Labels = labels }
}

// TestRetentionOfLabels: the shorter of what the manifest says and what is settled for
// a label holds, in a tenant alone, and over a restart.
func TestRetentionOfLabels(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	p.deploy("shop", p.upload(admin, "one"), labelledAs("pii", "health"))
	p.deploy("plain", p.upload(admin, "two"))
	shop, plain := p.liveOf("main", "shop"), p.liveOf("main", "plain")
	kept := func(v *bawn.Version, want time.Duration, label string) {
		t.Helper()
		if r := p.Retention(v); r != (Retention{want, label}) {
			t.Errorf("%+v, want %s by %q", r, want, label)
		}
	}
	set := func(label string, d time.Duration) {
		t.Helper()
		if _, err := p.SetLabel(ctx, admin, label, d); err != nil {
			t.Fatal(err)
		}
	}
	kept(shop, bawn.DefaultLogRetention, "")
	set("pii", 300*24*time.Hour)
	kept(shop, bawn.DefaultLogRetention, "")
	set("pii", 24*time.Hour)
	kept(shop, 24*time.Hour, "pii")
	set("health", time.Hour)
	kept(shop, time.Hour, "health")
	kept(plain, bawn.DefaultLogRetention, "")
	other := *shop
	other.Tenant = "acme"
	kept(&other, bawn.DefaultLogRetention, "")

	list, err := p.Labels(ctx, admin)
	if err != nil || len(list) != 2 || list[1].Name != "pii" || !slices.Equal(list[1].Functions, []string{"shop"}) {
		t.Errorf("%+v, %v", list, err)
	}
	held := admin
	held.Functions = []string{"plain"}
	if list, err := p.Labels(ctx, held); err != nil || len(list[1].Functions) != 0 {
		t.Errorf("who is held to another function sees %+v, %v", list, err)
	}

	p.close()
	p.open()
	kept(shop, time.Hour, "health")
	if err := p.RemoveLabel(ctx, admin, "health"); err != nil {
		t.Fatal(err)
	}
	kept(shop, 24*time.Hour, "pii")
	wantCode(t, p.RemoveLabel(ctx, admin, "health"), bawn.CodeNotFound, "nothing is settled")
	for _, d := range []time.Duration{-1, 0, time.Second, bawn.MaxLogRetention + 1} {
		_, err := p.SetLabel(ctx, admin, "pii", d)
		wantCode(t, err, bawn.CodeInvalid, "")
	}
	_, err = p.SetLabel(ctx, admin, "P I I", time.Hour)
	wantCode(t, err, bawn.CodeInvalid, "")

	var changes []string
	err = p.Events(ctx, admin, evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}}, func(r bawn.Record) error {
		if strings.HasPrefix(r.Action, "label.") && r.Outcome == "ok" {
			changes = append(changes, r.Action+" "+r.Detail["label"]+" "+r.Detail["before"]+" "+r.Detail["after"])
		}
		return nil
	})
	want := []string{"label.set pii  7200h0m0s", "label.set pii 7200h0m0s 24h0m0s", "label.set health  1h0m0s", "label.rm health 1h0m0s "}
	if err != nil || !slices.Equal(changes, want) {
		t.Errorf("%q, %v", changes, err)
	}
}

// TestA10Labels: what is settled for labels is for who may set guardrails.
func TestA10Labels(t *testing.T) {
	p := open(t)
	for _, r := range bawn.Roles() {
		who := bawn.Principal{Kind: bawn.PrincipalKey, ID: "k", Tenant: "main", Roles: []bawn.Role{r}}
		may := r == bawn.RoleOperator || r == bawn.RoleAdmin || r == bawn.RolePolicyAdmin
		_, err := p.SetLabel(t.Context(), who, "pii", time.Hour)
		if may != (err == nil) || err != nil && bawn.ErrorCode(err) != bawn.CodeDenied {
			t.Errorf("%s sets: %v", r, err)
		}
		if !may {
			wantCode(t, p.RemoveLabel(t.Context(), who, "pii"), bawn.CodeDenied, "")
		}
	}
	if _, err := p.Labels(t.Context(), bawn.Anonymous()); err == nil {
		t.Error("a stranger lists labels")
	}
}

// TestLabelsBounded: a tenant settles something for so many labels and no more.
func TestLabelsBounded(t *testing.T) {
	p := open(t)
	for i := range maxLabelSettings {
		name := "l" + strings.Repeat("x", i%50) + strings.Repeat("y", i/50)
		if _, err := p.SetLabel(t.Context(), admin, name, time.Hour); err != nil {
			t.Fatal(i, err)
		}
	}
	_, err := p.SetLabel(t.Context(), admin, "more", time.Hour)
	wantCode(t, err, bawn.CodeTooLarge, "")
	if _, err := p.SetLabel(t.Context(), admin, "l", 2*time.Hour); err != nil {
		t.Error("one that is there cannot be changed:", err)
	}
}

// TestLabelledLinesGo: lines that were there before something was settled go when
// they are too old for it, and others stay.
func TestLabelledLinesGo(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	p.deploy("shop", p.upload(admin, "one"), labelledAs("pii"))
	p.deploy("plain", p.upload(admin, "two"))
	for _, f := range []string{"shop", "plain"} {
		p.cfg.Logs.Write(bawn.LogLine{Tenant: "main", Function: f, Version: 1, Text: "of " + f}, bawn.DefaultLogRetention)
	}
	if err := p.cfg.Logs.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	left := func() (all []string) {
		t.Helper()
		if err := p.cfg.Logs.Read(ctx, evidence.LogQuery{Tenant: "main"}, func(l bawn.LogLine) error { all = append(all, l.Text); return nil }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		return all
	}
	seen := map[string]uint64{}
	clearAt := func(in time.Duration) []string {
		t.Helper()
		p.now = time.Now().Add(in)
		if err := p.clearLogs(ctx, seen); err != nil {
			t.Fatal(err)
		}
		return left()
	}
	if got := clearAt(25 * time.Hour); len(got) != 2 {
		t.Fatal(got)
	}
	if _, err := p.SetLabel(ctx, admin, "pii", 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := clearAt(23 * time.Hour); len(got) != 2 {
		t.Fatal(got)
	}
	if got := clearAt(25 * time.Hour); !slices.Equal(got, []string{"of plain"}) {
		t.Fatal(got)
	}
}

// TestTenantTakesItsLabels: with a tenant goes what it has settled.
func TestTenantTakesItsLabels(t *testing.T) {
	p := open(t)
	acme := bawn.Principal{Kind: bawn.PrincipalKey, ID: "a", Tenant: "acme", Roles: []bawn.Role{bawn.RoleAdmin}}
	if _, err := p.SetLabel(t.Context(), acme, "pii", time.Hour); err != nil {
		t.Fatal(err)
	}
	if n := p.settings("acme"); n != 1 {
		t.Fatal(n)
	}
	if err := p.clearTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if n := p.settings("acme"); n != 0 {
		t.Error(n)
	}
}
