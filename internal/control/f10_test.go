package control

import (
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
	"github.com/google/go-cmp/cmp"
)

// TestF10: a version whose tests fail is not promoted. Nothing of it is left,
// and what is live goes on; going back is not held up.
func TestF10(t *testing.T) {
	p, calls := compiler(t)
	ctx := t.Context()
	ran, fails := 0, false
	p.test = func(v *bawn.Version) ([]bawn.TestResult, error) {
		ran++
		if v.Number == 0 || v.Tenant != "main" {
			t.Errorf("tested %s", v.Ref())
		}
		if _, _, ok := p.versions.Get(versionKey(v.Tenant, v.Function, v.Number)); ok && fails && v.Number == 1 && p.live("a") == 0 {
			t.Error("it can be called while it is tested")
		}
		return []bawn.TestResult{{Name: "one", OK: true}, {Name: "strangers stay out", OK: !fails, Message: "nothing was stopped"}}, nil
	}
	tested := func(f *manifest.Function) {
		f.Tests = []manifest.Test{{Name: "one", Allow: &bawn.TestAllow{}}, {Name: "strangers stay out", Deny: &bawn.TestDeny{}}}
	}
	digest := module(t, p, "one")
	fails = true
	before := p.state()
	for range 2 {
		_, err := p.Deploy(ctx, admin, "a", spec(wasm, tested), digest, false)
		wantCode(t, err, bawn.CodeUnprocessable, "")
		for _, want := range []string{"1 of the 2 tests of a failed", "strangers stay out: nothing was stopped"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nlacks %q", err, want)
			}
		}
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	if *calls != 2 || ran != 2 {
		t.Errorf("compiled %d times, tested %d times", *calls, ran)
	}
	if _, err := p.Deploy(ctx, admin, "a", spec(wasm, tested), digest, true); err != nil || ran != 2 {
		t.Error("a dry run runs the tests", err)
	}
	// To run them alone is no deploy, and a failure then no error.
	results, err := p.Test(ctx, admin, "a", spec(wasm, tested), digest)
	if err != nil || len(results) != 2 || results[1].OK {
		t.Error(results, err)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}

	fails = false
	d := p.deploy("a", digest, wasm, tested)
	if d.Version.Number != 1 || len(d.Version.Tests) != 2 {
		t.Errorf("%+v", d.Version)
	}
	ran = 0
	if d := p.deploy("a", digest, wasm, tested); d.Created || ran != 0 {
		t.Error("what is live is tested again")
	}
	if d := p.deploy("a", digest, wasm); !d.Created || ran != 0 {
		t.Error("the tests are no part of the version")
	}
	fails = true
	_, err = p.Deploy(ctx, admin, "a", spec(wasm, tested), digest, false)
	wantCode(t, err, bawn.CodeUnprocessable, "") // back by deploying: promoted like any other
	if p.live("a") != 2 {
		t.Error("a version whose test failed was promoted")
	}
	if _, _, err := p.Rollback(ctx, admin, "a", 1); err != nil || p.live("a") != 1 {
		t.Error("going back was held up:", err)
	}
	results, err = p.TestVersion(ctx, admin, bawn.Ref{Tenant: "main", Function: "a", Qualifier: "1"})
	if err != nil || len(results) != 2 {
		t.Error(results, err)
	}

	// Each run is recorded, with what failed.
	failed := 0
	err = p.Events(ctx, admin, evidence.Query{Function: "a"}, func(r bawn.Record) error {
		if r.Action == "test" && r.Outcome == "ok" && r.Detail["names"] == "strangers stay out" {
			failed++
		}
		return nil
	})
	if err != nil || failed != 5 {
		t.Errorf("%d failed runs are recorded, %v", failed, err)
	}
}

// TestF10NotRun: tests that cannot be run have not been passed.
func TestF10NotRun(t *testing.T) {
	p := open(t)
	digest := p.upload(admin, "one")
	tested := func(f *manifest.Function) {
		f.Tests = []manifest.Test{{Name: "one", Deny: &bawn.TestDeny{}}}
	}
	_, err := p.Deploy(t.Context(), admin, "a", spec(tested), digest, false)
	wantCode(t, err, bawn.CodeUnavailable, "")
	p.test = func(*bawn.Version) ([]bawn.TestResult, error) {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "sandbox", "this host can make no sandbox")
	}
	_, err = p.Deploy(t.Context(), admin, "a", spec(tested), digest, false)
	wantCode(t, err, bawn.CodeUnavailable, "")
	p.test = func(*bawn.Version) ([]bawn.TestResult, error) { return nil, nil }
	_, err = p.Deploy(t.Context(), admin, "a", spec(tested), digest, false)
	wantCode(t, err, bawn.CodeInternal, "not all tests")
	// Nor by who may not deploy.
	_, err = p.Test(t.Context(), bawn.Principal{Kind: bawn.PrincipalKey, ID: "v", Tenant: "main", Roles: []bawn.Role{bawn.RoleViewer}}, "a", spec(tested), digest)
	wantCode(t, err, bawn.CodeDenied, "")
}

// TestF10Approval: the tests run before anybody is asked to approve, and again
// when somebody does.
func TestF10Approval(t *testing.T) {
	p, ctx := fourEyes(t), t.Context()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	boss, dev := p.key(node, "boss", bawn.RoleAdmin), p.key(node, "dev", bawn.RoleDeployer)
	digest := p.upload(dev, "one")
	ok := false
	p.test = func(*bawn.Version) ([]bawn.TestResult, error) {
		return []bawn.TestResult{{Name: "strangers stay out", OK: ok}}, nil
	}
	tested := func(f *manifest.Function) {
		f.Tests = []manifest.Test{{Name: "strangers stay out", Deny: &bawn.TestDeny{}}}
	}
	widens := memory(2 * bawn.DefaultMemory)
	_, err := p.Deploy(ctx, dev, "f", spec(tested, widens), digest, false)
	wantCode(t, err, bawn.CodeUnprocessable, "failed")
	if list, err := p.Approvals(ctx, boss); err != nil || len(list) > 0 {
		t.Errorf("approval is asked for what failed: %+v %v", list, err)
	}
	ok = true
	d := p.try(dev, "f", digest, tested, widens)
	if d.Pending == nil {
		t.Fatalf("%+v", d)
	}
	ok = false
	_, err = p.Approve(ctx, boss, d.Pending.ID)
	wantCode(t, err, bawn.CodeUnprocessable, "strangers stay out")
	if _, _, there := p.functions.Get(functionKey("main", "f")); there {
		t.Error("a version whose test failed was approved")
	}
	ok = true
	if _, err = p.Approve(ctx, boss, d.Pending.ID); err != nil || p.live("f") != 1 {
		t.Error("it can be approved once its tests hold:", err)
	}
}

// Dropping or changing a must-deny case widens, adding one or changing what must
// be allowed does not; controls A5 and F10.
func TestA5DroppedDenyTest(t *testing.T) {
	deny := bawn.Test{Name: "no shell", Deny: &bawn.TestDeny{At: bawn.AtInterior}}
	allow := bawn.Test{Name: "greets", Allow: &bawn.TestAllow{}}
	less := deny
	less.Deny = &bawn.TestDeny{}
	turned := bawn.Test{Name: "no shell", Allow: &bawn.TestAllow{}}
	for _, c := range []struct {
		name          string
		before, after []bawn.Test
		widens        bool
	}{
		{"dropped", []bawn.Test{deny, allow}, []bawn.Test{allow}, true},
		{"asks for less", []bawn.Test{deny}, []bawn.Test{less}, true},
		{"must be allowed now", []bawn.Test{deny}, []bawn.Test{turned}, true},
		{"kept", []bawn.Test{deny}, []bawn.Test{allow, deny}, false},
		{"an allow dropped", []bawn.Test{deny, allow}, []bawn.Test{deny}, false},
		{"added", nil, []bawn.Test{deny}, false},
	} {
		old, v := bawn.Version{Tests: c.before}, bawn.Version{Tests: c.after}
		if got := len(widening(diff(&old, &v))) > 0; got != c.widens {
			t.Errorf("%s: widens %v, want %v: %+v", c.name, got, c.widens, diff(&old, &v))
		}
	}
}

// TestF10LendsNoRights: who approves does not lend their rights to the tests of
// who asked.
func TestF10LendsNoRights(t *testing.T) {
	p, ctx := fourEyes(t), t.Context()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	boss, dev := p.key(node, "boss", bawn.RoleAdmin), p.key(node, "dev", bawn.RoleDeployer)
	p.test = func(*bawn.Version) ([]bawn.TestResult, error) {
		return []bawn.TestResult{{Name: "one", OK: true}}, nil
	}
	d := p.try(dev, "f", p.upload(dev, "one"), memory(2*bawn.DefaultMemory), func(f *manifest.Function) {
		f.Tests = []manifest.Test{{Name: "one", Deny: &bawn.TestDeny{}}}
	})
	p.ran = ""
	if _, err := p.Approve(ctx, boss, d.Pending.ID); err != nil || p.ran != dev.String() {
		t.Errorf("the tests ran as %q: %v", p.ran, err)
	}
}

// TestA9RevokedMeanwhile: nothing that took a while is done for who has been
// revoked in between, nor is what such a one asked for approved.
func TestA9RevokedMeanwhile(t *testing.T) {
	p, ctx := fourEyes(t), t.Context()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	boss, dev := p.key(node, "boss", bawn.RoleAdmin), p.key(node, "dev", bawn.RoleDeployer)
	digest := p.upload(dev, "one")
	tested := func(f *manifest.Function) {
		f.Tests = []manifest.Test{{Name: "one", Deny: &bawn.TestDeny{}}}
	}
	gone := ""
	p.test = func(*bawn.Version) ([]bawn.TestResult, error) {
		p.gone = gone // while the tests run
		return []bawn.TestResult{{Name: "one", OK: true}}, nil
	}
	gone = dev.String()
	_, err := p.Deploy(ctx, dev, "f", spec(tested), digest, false)
	wantCode(t, err, bawn.CodeUnauthenticated, "revoked")
	p.gone, gone = "", ""
	d := p.try(dev, "f", digest, tested, memory(2*bawn.DefaultMemory))
	for _, who := range []bawn.Principal{boss, dev} {
		p.gone, gone = "", who.String()
		_, err = p.Approve(ctx, boss, d.Pending.ID)
		wantCode(t, err, bawn.CodeUnauthenticated, "revoked")
	}
	p.gone = dev.String()
	_, err = p.Approve(ctx, boss, d.Pending.ID)
	wantCode(t, err, bawn.CodeDenied, "may not ask for anything any more")
	if p.live("f") != 0 {
		t.Error("it is live")
	}
}

// TestA5Untried: no code runs with a host, a secret or a database that nobody has
// approved, whether it is deployed or only tested. The tests run at the approval.
func TestA5Untried(t *testing.T) {
	p, ctx := fourEyes(t), t.Context()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	boss, dev := p.key(node, "boss", bawn.RoleAdmin), p.key(node, "dev", bawn.RoleDeployer)
	digest, other := p.upload(dev, "one"), p.upload(dev, "two")
	var ran []*bawn.Version
	p.test = func(v *bawn.Version) ([]bawn.TestResult, error) {
		ran = append(ran, v)
		return []bawn.TestResult{{Name: "one", OK: true}}, nil
	}
	tested := func(f *manifest.Function) { f.Tests = []manifest.Test{{Name: "one", Allow: &bawn.TestAllow{}}} }
	if d := p.try(dev, "f", digest, tested); d.Pending != nil || len(ran) != 1 {
		t.Fatalf("%+v, ran %d", d, len(ran))
	}
	ran = nil
	for name, reach := range map[string]func(*manifest.Function){
		"host":   func(f *manifest.Function) { f.Egress.Hosts = []manifest.Host{{Host: "evil.example"}} },
		"secret": func(f *manifest.Function) { f.Egress.Secrets = []manifest.SecretUse{{Name: "s"}} },
		"everything": func(f *manifest.Function) {
			f.Egress.Everything = &manifest.Public{Reason: "x", Until: manifest.Date{Time: today.AddDate(0, 1, 0).Truncate(24 * time.Hour)}}
		},
		"database": func(f *manifest.Function) {
			f.Egress.Databases = map[string]manifest.Database{"d": {Postgres: "evil.example:5432/d", User: "u"}}
		},
	} {
		_, err := p.Test(ctx, dev, "f", spec(tested, reach), other)
		wantCode(t, err, bawn.CodeDenied, "egress.")
		d, err := p.Deploy(ctx, dev, "f", spec(tested, reach), other, false)
		if err != nil || d.Pending == nil {
			t.Fatalf("%s: %+v, %v", name, d, err)
		}
		if len(ran) > 0 {
			t.Fatalf("%s: it ran before anybody approved: %+v", name, ran[0].Perimeter.Egress)
		}
		if name == "host" {
			if _, err := p.Approve(ctx, boss, d.Pending.ID); err != nil || len(ran) != 1 || len(ran[0].Perimeter.Egress.Hosts) != 1 {
				t.Fatal("it was not tested when it was approved", err)
			}
			ran = nil
			if _, _, err := p.Rollback(ctx, boss, "f", 1); err != nil {
				t.Fatal(err)
			}
		}
	}
}
