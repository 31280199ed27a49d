package control

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

var operator = who("main", bawn.RoleOperator)

// TestJ1Tenants makes a tenant, bounds it, suspends it and removes it.
func TestJ1Tenants(t *testing.T) {
	p, ctx := open(t), context.Background()
	q := bawn.Quota{Functions: 2, Keys: 2}
	made, secret, key, err := p.CreateTenant(ctx, operator, "globex", q)
	if err != nil || made.Quota != q || key.Tenant != "globex" || key.Role != bawn.RoleAdmin {
		t.Fatalf("%+v %+v %v", made, key, err)
	}
	boss, err := p.cfg.Keys.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = p.CreateTenant(ctx, operator, "globex", q)
	code1(t, "twice", err, bawn.CodeConflict, "already")
	_, _, _, err = p.CreateTenant(ctx, operator, "Globex", q)
	code1(t, "no name", err, bawn.CodeInvalid, "")
	_, _, _, err = p.CreateTenant(ctx, operator, "more", bawn.Quota{Memory: -1})
	code1(t, "no quota", err, bawn.CodeInvalid, "")

	// Nobody else has a say, nor learns whether there is such a tenant.
	for _, who := range []bawn.Principal{admin, boss, who("main", bawn.RoleAuditor), who("globex", bawn.RoleOperator)} {
		_, err := p.Suspend(ctx, who, "globex", "because")
		_, none := p.Suspend(ctx, who, "nobody", "because")
		code1(t, who.String(), err, bawn.CodeDenied, "")
		if err.Error() != none.Error() {
			t.Errorf("%v and %v differ", err, none)
		}
	}

	// Its quota holds, and what it has is its own.
	digest := p.upload(boss, "def handler(e, c): return 1\n")
	for _, name := range []string{"f", "g"} {
		if _, err := p.Deploy(ctx, boss, name, spec(route("GET", "/globex/"+name)), digest, false); err != nil {
			t.Fatal(err)
		}
	}
	_, err = p.Deploy(ctx, boss, "h", spec(), digest, false)
	code1(t, "a third function", err, bawn.CodeTooLarge, "2 functions")
	if _, _, err := p.CreateKey(ctx, boss, bawn.Key{Name: "two", Role: bawn.RoleViewer}); err != nil {
		t.Fatal(err)
	}
	_, _, err = p.CreateKey(ctx, boss, bawn.Key{Name: "three", Role: bawn.RoleViewer})
	code1(t, "a third key", err, bawn.CodeTooLarge, "2 keys")
	if _, err := p.SetQuota(ctx, operator, "globex", bawn.Quota{Packages: 1}); err != nil {
		t.Fatal(err)
	}
	if r := p.last("tenant.quota", "ok"); r.Detail["before"] != "functions 2, keys 2" || r.Detail["after"] != "packages 1" {
		t.Errorf("recorded %v", r.Detail)
	}
	data, other := code(t, "def handler(e, c): return 'more'\n")
	_, err = p.PutArtifact(ctx, boss, other, bytes.NewReader(data))
	code1(t, "another package", err, bawn.CodeTooLarge, "quota is 1")
	_, err = p.Deploy(ctx, admin, "mine", spec(route("GET", "/globex/f")), p.upload(admin, "def handler(e, c): return 1\n"), false)
	code1(t, "a route of another tenant", err, bawn.CodeConflict, "taken on this node")
	if strings.Contains(err.Error(), `"f"`) {
		t.Errorf("names another tenant's function: %v", err)
	}

	// Suspended, it is as if nobody had ever heard of its people.
	_, err = p.Suspend(ctx, operator, "main", "because")
	code1(t, "the operator's own", err, bawn.CodeConflict, "neither suspended nor removed")
	_, err = p.Suspend(ctx, operator, "globex", "")
	code1(t, "without a reason", err, bawn.CodeInvalid, "")
	if got, err := p.Suspend(ctx, operator, "globex", "unpaid"); err != nil || !got.Suspended || got.Reason != "unpaid" {
		t.Fatalf("%+v %v", got, err)
	}
	if _, may := p.cfg.Tenants.Quota("globex"); may || !p.cfg.Tenants.Suspended("globex") || !slices.Equal(p.halted, []string{"globex"}) {
		t.Errorf("not suspended: halted %v", p.halted)
	}
	_, err = p.Functions(ctx, boss)
	code1(t, "one of it", err, bawn.CodeUnauthenticated, "")
	p.reopen()
	if !p.cfg.Tenants.Suspended("globex") {
		t.Error("a restart ended the suspension")
	}
	if _, err := p.Resume(ctx, operator, "globex"); err != nil {
		t.Fatal(err)
	}
	if list, err := p.Functions(ctx, boss); err != nil || len(list) != 2 {
		t.Errorf("after it: %v %v", list, err)
	}
	if r := p.last("tenant.resume", "ok"); r.Detail["before"] != "suspended: unpaid" || r.Detail["after"] != "active" {
		t.Errorf("recorded %v", r.Detail)
	}

	// A plan removes nothing; nor does it without the name.
	plan, err := p.RemoveTenant(ctx, operator, "globex", "", true)
	if err != nil || plan.Removed || !slices.Equal(plan.Functions, []string{"f", "g"}) || plan.Versions != 2 || plan.Packages != 1 || plan.Keys != 2 {
		t.Errorf("plan: %+v %v", plan, err)
	}
	_, err = p.RemoveTenant(ctx, operator, "globex", "globe", false)
	code1(t, "unconfirmed", err, bawn.CodeInvalid, "given twice")
	_, err = p.RemoveTenant(ctx, operator, "main", "main", false)
	code1(t, "the operator's own", err, bawn.CodeConflict, "")
	if gone, err := p.RemoveTenant(ctx, operator, "globex", "globex", false); err != nil || !gone.Removed {
		t.Fatalf("%+v %v", gone, err)
	}
	left := func() {
		t.Helper()
		for key := range p.state() {
			if strings.Contains(key, "globex.") {
				t.Errorf("left: %s", key)
			}
		}
		if keys := p.cfg.Keys.List("globex"); len(keys) > 0 {
			t.Errorf("left: %v", keys)
		}
	}
	left()
	if _, err := p.cfg.Keys.Authenticate(secret); err == nil {
		t.Error("its key still opens")
	}
	// Nobody gets its name; control I5.
	_, _, _, err = p.CreateTenant(ctx, operator, "globex", bawn.Quota{})
	code1(t, "the name again", err, bawn.CodeConflict, "no other gets it")
	_, _, err = p.Tenant(ctx, operator, "globex")
	code1(t, "shown", err, bawn.CodeNotFound, "")
	if list, err := p.Tenants(ctx, operator); err != nil || slices.ContainsFunc(list, func(t bawn.Tenant) bool { return t.Name == "globex" }) {
		t.Errorf("listed: %v %v", list, err)
	}
}

// A crash in the middle of a removal leaves nothing after the next start.
func TestRemovedTenantIsClearedAtStart(t *testing.T) {
	p, ctx := open(t), context.Background()
	rival := who("rival", bawn.RoleAdmin)
	digest := p.upload(rival, "def handler(e, c): return 1\n")
	if _, err := p.Deploy(ctx, rival, "f", spec(), digest, false); err != nil {
		t.Fatal(err)
	}
	row, rev, _ := p.cfg.Tenants.get("rival")
	row.Removed = today
	if _, err := p.cfg.Tenants.table.Update(ctx, "rival", row, rev); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	for key := range maps.Keys(p.state()) {
		if strings.Contains(key, "rival.") || strings.HasPrefix(key, "folder") && !strings.Contains(key, ".") {
			t.Errorf("left: %s", key)
		}
	}
}

// Who is of a tenant that there is not gets nowhere: a row that is missing
// allows nothing.
func TestUnknownTenantIsRefused(t *testing.T) {
	p := open(t)
	err := p.authorize(context.Background(), who("nowhere", bawn.RoleAdmin), policy.Read, bawn.Ref{Tenant: "nowhere"})
	code1(t, "nowhere", err, bawn.CodeUnauthenticated, "")
}
