package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
)

// fourEyes is a plane on which a second principal must approve.
func fourEyes(t testing.TB) *plane {
	p := &plane{t: t, dir: t.TempDir(), now: today, four: true}
	p.open()
	t.Cleanup(func() { p.close() })
	return p
}

// key makes a real key, so that who made it is known.
func (p *plane) key(maker bawn.Principal, name string, role bawn.Role, functions ...string) bawn.Principal {
	p.t.Helper()
	_, k, err := p.cfg.Keys.Create(context.Background(), bawn.Key{Name: name, Tenant: "main", Role: role, Functions: functions, CreatedBy: maker.String()})
	if err != nil {
		p.t.Fatal(err)
	}
	return bawn.Principal{Kind: bawn.PrincipalKey, ID: k.ID, Name: name, Tenant: "main", Roles: []bawn.Role{role}, Functions: functions}
}

func (p *plane) try(who bawn.Principal, name, digest string, with ...func(*manifest.Function)) Deployment {
	p.t.Helper()
	d, err := p.Deploy(context.Background(), who, name, spec(with...), digest, false)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// last is the newest record of an action and outcome in the tenant main.
func (p *plane) last(action, outcome string) bawn.Record {
	p.t.Helper()
	return p.lastOf(bawn.DefaultTenant, action, outcome)
}

func (p *plane) lastOf(tenant, action, outcome string) (last bawn.Record) {
	p.t.Helper()
	err := p.log.Read(context.Background(), evidence.Query{Tenant: tenant}, func(r bawn.Record) error {
		if r.Action == action && r.Outcome == outcome {
			last = r
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return last
}

func code1(t testing.TB, what string, err error, code bawn.Code, text string) {
	t.Helper()
	if bawn.ErrorCode(err) != code || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %q with %q", what, err, code, text)
	}
}

// TestA5 widens a perimeter: nothing changes before somebody else has approved,
// neither by deploying nor by any other way, and narrowing is free.
func TestA5(t *testing.T) {
	p, ctx := fourEyes(t), context.Background()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	boss, dev := p.key(node, "boss", bawn.RoleAdmin), p.key(node, "dev", bawn.RoleDeployer)
	digest := p.upload(dev, "def handler(e, c): return 1\n")

	// Nothing beyond the defaults: free.
	if d := p.try(dev, "f", digest); d.Pending != nil || d.Approval != "none" || p.live("f") != 1 {
		t.Fatalf("a first version that widens nothing: %+v", d)
	}
	if r := p.last("deploy", "ok"); r.Detail["approved"] != "none" {
		t.Errorf("recorded %v", r.Detail)
	}
	before := p.state()

	// A dry run says so and stores nothing.
	wide := []func(*manifest.Function){memory(512 << 20), route("GET", "/f")}
	if d, err := p.Deploy(ctx, dev, "f", spec(wide...), digest, true); err != nil || d.Approval != "needed" || d.Pending != nil {
		t.Errorf("dry: %+v %v", d, err)
	}
	d := p.try(dev, "f", digest, wide...)
	if d.Pending == nil || d.Approval != "needed" || p.live("f") != 1 || len(widening(d.Pending.Changes)) != 2 {
		t.Fatalf("a widening became live: %+v", d)
	}
	if fmt.Sprint(p.state()) != fmt.Sprint(before) {
		t.Errorf("something changed: %v", p.state())
	}
	r := p.last("approval.request", "ok")
	if r.Detail["before"] == "" || r.Detail["after"] != d.Version.Digest || !strings.Contains(r.Detail["changes"], "interior.memory+") {
		t.Errorf("recorded %v", r.Detail)
	}
	// The same again is the same request; another takes its place.
	if again := p.try(dev, "f", digest, wide...); again.Pending.ID != d.Pending.ID {
		t.Error("asked twice")
	}
	wide = append(wide, route("POST", "/f"))
	d = p.try(dev, "f", digest, wide...)
	if list, err := p.Approvals(ctx, dev); err != nil || len(list) != 1 || list[0].ID != d.Pending.ID {
		t.Errorf("waiting: %+v %v", list, err)
	}

	// No other way leads there.
	for n := 2; n < 4; n++ {
		code1(t, "alias", p.SetAlias(ctx, dev, "f", bawn.LiveAlias, n), bawn.CodeNotFound, "")
		_, _, err := p.Rollback(ctx, dev, "f", n)
		code1(t, "rollback", err, bawn.CodeNotFound, "")
	}

	// Not by who asked, nor by who lacks the right, nor by a key that who asked
	// has made, were it by way of a third that is gone.
	asks := p.key(node, "asks", bawn.RoleAdmin)
	mine := p.try(asks, "f", digest, memory(1<<30))
	middle := p.key(asks, "middle", bawn.RoleAdmin)
	child := p.key(middle, "child", bawn.RoleAdmin)
	if err := p.cfg.Keys.Revoke(ctx, "main", middle.ID); err != nil {
		t.Fatal(err)
	}
	for _, who := range []bawn.Principal{asks, middle, child} {
		_, err := p.Approve(ctx, who, mine.Pending.ID)
		code1(t, who.Name, err, bawn.CodeDenied, "asked for this")
	}
	if r := p.last("approve", "deny"); r.Control != "A5" || r.Detail["approval"] != mine.Pending.ID {
		t.Errorf("the refusal: %+v", r)
	}
	_, err := p.Approve(ctx, dev, mine.Pending.ID)
	code1(t, "a deployer", err, bawn.CodeDenied, "")
	_, err = p.Approve(ctx, boss, "nobody")
	code1(t, "unknown", err, bawn.CodeNotFound, "")
	_, err = p.Approve(ctx, who("acme", bawn.RoleAdmin), mine.Pending.ID)
	code1(t, "another tenant", err, bawn.CodeNotFound, "")
	if p.live("f") != 1 {
		t.Fatal("it is live")
	}

	// By somebody else, it is.
	got, err := p.Approve(ctx, boss, d.Pending.ID)
	if err != nil || p.live("f") != 2 || got.Approval != boss.String() || got.Version.Number != 2 {
		t.Fatalf("approved: %+v %v", got, err)
	}
	r = p.last("deploy", "ok")
	if r.Principal != boss.String() || r.Detail["requestedBy"] != dev.String() || r.Detail["approval"] != d.Pending.ID || r.Detail["before"] == "" || r.Detail["after"] == "" {
		t.Errorf("recorded %+v", r)
	}
	_, err = p.Approve(ctx, boss, d.Pending.ID)
	code1(t, "twice", err, bawn.CodeNotFound, "")

	// What is live now is another: the older request would widen something else.
	_, err = p.Approve(ctx, boss, mine.Pending.ID)
	code1(t, "stale", err, bawn.CodeConflict, "has changed")
	code1(t, "reject", p.Reject(ctx, boss, mine.Pending.ID), "", "")
	code1(t, "rejected", p.Reject(ctx, boss, mine.Pending.ID), bawn.CodeNotFound, "")

	// Narrowing is free; so is going back, which is recorded with its changes;
	// deploying what widens again is not.
	if d := p.try(dev, "f", digest); d.Pending != nil || p.live("f") != 1 {
		t.Errorf("narrowing: %+v", d)
	}
	if d := p.try(dev, "f", digest, wide...); d.Pending == nil || d.Created || p.live("f") != 1 {
		t.Errorf("widening by old content: %+v", d)
	}
	if _, _, err := p.Rollback(ctx, dev, "f", 2); err != nil || p.live("f") != 2 {
		t.Errorf("rollback: %v", err)
	}
	if r := p.last("rollback", "ok"); !strings.Contains(r.Detail["changes"], "interior.memory+") || r.Detail["before"] == "" {
		t.Errorf("recorded %v", r.Detail)
	}

	// It lives through a restart, keeps its package, and ends.
	other := p.upload(dev, "def handler(e, c): return 2\n")
	d = p.try(dev, "g", other, route("GET", "/g"))
	p.now = p.now.Add(3 * unusedFor)
	p.reopen()
	if _, err := p.Approve(ctx, boss, d.Pending.ID); err != nil || p.live("g") != 1 {
		t.Errorf("after a restart: %v", err)
	}
	d = p.try(dev, "g", other, route("GET", "/g"), route("GET", "/g2"))
	p.now = p.now.Add(approvalFor)
	_, err = p.Approve(ctx, boss, d.Pending.ID)
	code1(t, "too late", err, bawn.CodeNotFound, "")
	p.reopen()
	if n := p.approvals.Len(); n != 0 {
		t.Errorf("%d requests are left", n)
	}

	// Removing the function removes what waits for it.
	d = p.try(dev, "g", other, route("GET", "/g3"))
	if err := p.Remove(ctx, dev, "g"); err != nil {
		t.Fatal(err)
	}
	_, err = p.Approve(ctx, boss, d.Pending.ID)
	code1(t, "of a function that is gone", err, bawn.CodeNotFound, "")
}

// Who made a key is not a second principal for what it asks, whatever they are, nor
// is what they made for what they ask, nor two keys of the same user or certificate.
func TestA5Lineage(t *testing.T) {
	p, ctx := fourEyes(t), context.Background()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	digest := p.upload(admin, "def handler(e, c): return 1\n")
	for i, kind := range []string{bawn.PrincipalUser, bawn.PrincipalCert, bawn.PrincipalKey} {
		ann := bawn.Principal{Kind: kind, ID: "ann", Tenant: "main", Roles: []bawn.Role{bawn.RoleAdmin}}
		if kind == bawn.PrincipalKey {
			ann = p.key(node, "ann", bawn.RoleAdmin)
		}
		ci, other := p.key(ann, "ci"+kind, bawn.RoleDeployer), p.key(ann, "other"+kind, bawn.RoleAdmin)
		build := p.key(ci, "build"+kind, bawn.RoleDeployer)
		for j, test := range []struct {
			asks, approves bawn.Principal
			allow          bool
		}{
			{ann, ann, false}, {ann, other, false}, {ann, build, false},
			{ci, ann, false}, {build, ann, false}, {build, ci, false},
			{ci, other, kind == bawn.PrincipalKey}, {build, other, kind == bawn.PrincipalKey},
			{ci, p.key(node, fmt.Sprint("bob", i), bawn.RoleAdmin), true},
			{build, bawn.Principal{Kind: bawn.PrincipalCert, ID: "eve", Tenant: "main"}, true},
		} {
			name := fmt.Sprintf("f%d-%d", i, j)
			test.approves.Roles = []bawn.Role{bawn.RoleAdmin}
			d := p.try(test.asks, name, digest, route("GET", "/"+name))
			if _, err := p.Approve(ctx, test.approves, d.Pending.ID); (err == nil) != test.allow || err != nil && bawn.ErrorCode(err) != bawn.CodeDenied {
				t.Errorf("%s asks, %s approves: %v", test.asks, test.approves, err)
			}
		}
		// Nor when what leads back to them is revoked.
		d := p.try(build, "gone"+kind, digest, route("GET", "/gone"+kind))
		for _, k := range []bawn.Principal{build, ci} {
			if err := p.cfg.Keys.Revoke(ctx, "main", k.ID); err != nil {
				t.Fatal(err)
			}
		}
		_, err := p.Approve(ctx, ann, d.Pending.ID)
		code1(t, kind+" after revoking", err, bawn.CodeDenied, "asked for this")
	}
}

// The number of requests that wait is bounded.
func TestApprovalsAreBounded(t *testing.T) {
	p, ctx := fourEyes(t), context.Background()
	digest := p.upload(admin, "def handler(e, c): return 1\n")
	for i := range maxApprovals {
		p.try(admin, fmt.Sprintf("f%d", i), digest, route("GET", fmt.Sprintf("/%d", i)))
	}
	_, err := p.Deploy(ctx, admin, "more", spec(route("GET", "/more")), digest, false)
	code1(t, "one more", err, bawn.CodeTooLarge, "wait for approval")
}

// TestA8 lets nobody give a function more than they hold, nor approve it.
func TestA8(t *testing.T) {
	p, ctx := fourEyes(t), context.Background()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	dev := p.key(node, "dev", bawn.RoleDeployer)
	digest := p.upload(dev, "def handler(e, c): return 1\n")
	calls := func(names ...string) func(*manifest.Function) {
		return func(f *manifest.Function) { f.Egress.Functions = names }
	}
	p.try(dev, "ledger", digest)
	// Who may neither call nor deploy the other function.
	auditor := p.key(node, "auditor", bawn.RoleAuditor)
	v := bawn.Version{Tenant: "main", Function: "f", Perimeter: bawn.Perimeter{Egress: bawn.Egress{Functions: []string{"ledger"}}}}
	if err := p.checkGrants(auditor, &v); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("an auditor grants ledger: %v", err)
	}
	held := p.key(node, "held", bawn.RoleInvoker, "other", "later")
	if err := p.checkGrants(held, &v); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("a key held to another function grants ledger: %v", err)
	}
	v.Perimeter.Egress.Functions = []string{"later"}
	if err := p.checkGrants(held, &v); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("a held key grants what is not there: %v", err)
	}
	// Who holds it asks; who approves must hold it too.
	d := p.try(dev, "f", digest, calls("later", "ledger"))
	if d.Pending == nil {
		t.Fatal("granting a function does not widen")
	}
	_, err := p.Approve(ctx, p.key(node, "reviewer", bawn.RolePolicyAdmin), d.Pending.ID)
	code1(t, "a reviewer without the right", err, bawn.CodeDenied, "nobody gives a function more than they hold")
	if _, err := p.Approve(ctx, p.key(node, "boss", bawn.RoleAdmin), d.Pending.ID); err != nil {
		t.Error(err)
	}
	if v := p.liveOf("main", "f"); v == nil || !slices.Equal(v.Perimeter.Egress.Functions, []string{"later", "ledger"}) {
		t.Errorf("live: %+v", v)
	}
}

// TestA8Keys lets nobody make a key that may do more than they.
func TestA8Keys(t *testing.T) {
	p, ctx := open(t), context.Background()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	held := p.key(node, "held", "ops")
	held.Functions, held.Roles = []string{"f", "g"}, []bawn.Role{bawn.RoleDeployer, "ops"}
	for _, test := range []struct {
		who   bawn.Principal
		want  bawn.Key
		allow bool
	}{
		{who("main", bawn.RoleOperator), bawn.Key{Role: bawn.RoleOperator}, true},
		{who("main", bawn.RoleOperator), bawn.Key{Role: "anything"}, true},
		{admin, bawn.Key{Role: bawn.RoleAdmin}, true},
		{admin, bawn.Key{Role: "anything"}, true},
		{admin, bawn.Key{Role: bawn.RoleOperator}, false},
		{held, bawn.Key{Role: bawn.RoleDeployer}, false},
		{held, bawn.Key{Role: bawn.RoleDeployer, Functions: []string{"f", "h"}}, false},
		{held, bawn.Key{Role: bawn.RoleDeployer, Functions: []string{"g"}}, true},
		{held, bawn.Key{Role: "ops", Functions: []string{"g"}}, true},
		{held, bawn.Key{Role: bawn.RoleAdmin, Functions: []string{"g"}}, false},
		{held, bawn.Key{Role: bawn.RoleSecretAdmin, Functions: []string{"g"}}, false},
	} {
		if err := mayGrant(test.who, test.want); (err == nil) != test.allow || err != nil && err.Code != bawn.CodeDenied {
			t.Errorf("%v makes %+v: %v", test.who.Roles, test.want, err)
		}
	}
	_, _, err := p.CreateKey(ctx, admin, bawn.Key{Name: "more", Role: bawn.RoleOperator})
	code1(t, "an admin makes an operator", err, bawn.CodeDenied, "yourself")
	if r := p.last("key.create", "deny"); r.Control != "A8" || r.Detail["role"] != "operator" {
		t.Errorf("recorded %+v", r)
	}
	if _, _, err := p.CreateKey(ctx, admin, bawn.Key{Name: "ops", Role: "ops", Functions: []string{"f"}}); err != nil {
		t.Error(err)
	}
	if r := p.last("key.create", "ok"); r.Detail["after"] != "role ops functions f" {
		t.Errorf("recorded %+v", r)
	}
}

// Who is held to functions deploys and sees those, and no other.
func TestHeldToFunctions(t *testing.T) {
	p, ctx := open(t), context.Background()
	digest := p.upload(admin, "def handler(e, c): return 1\n")
	p.deploy("other", digest)
	held := p.key(admin, "held", bawn.RoleDeployer, "f")
	if d := p.try(held, "f", p.upload(held, "def handler(e, c): return 2\n")); !d.Created {
		t.Errorf("%+v", d)
	}
	_, err := p.Deploy(ctx, held, "other", spec(), digest, true)
	code1(t, "another function", err, bawn.CodeDenied, "")
	list, err := p.Functions(ctx, held)
	if err != nil || len(list) != 1 || list[0].Function.Name != "f" {
		t.Errorf("sees %+v %v", list, err)
	}
}

// TestA8KeysEnd: no key outlives the one that made it, and nobody takes away a
// right that they do not hold themselves.
func TestA8KeysEnd(t *testing.T) {
	p, ctx := open(t), context.Background()
	soon := today.Add(time.Hour)
	boss := bawn.Principal{Kind: bawn.PrincipalKey, ID: "boss", Tenant: "main", Roles: []bawn.Role{bawn.RoleAdmin}, Expires: soon}
	for end, allow := range map[time.Time]bool{{}: false, soon.Add(time.Second): false, soon: true} {
		if err := mayGrant(boss, bawn.Key{Role: bawn.RoleInvoker, ExpiresAt: end}); (err == nil) != allow {
			t.Errorf("until %v: %v", end, err)
		}
	}
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	op := p.key(node, "op", bawn.RoleOperator)
	code1(t, "an administrator revokes an operator", p.RevokeKey(ctx, boss, op.ID), bawn.CodeDenied, "do not hold")
	if err := p.RevokeKey(ctx, op, op.ID); err != nil {
		t.Error(err)
	}
}

// TestA5LiveIsNoWayRound: to let live point to an older, wider version is a
// widening as a deploy of it would be; to go back to what was live is not.
func TestA5LiveIsNoWayRound(t *testing.T) {
	p, ctx := fourEyes(t), context.Background()
	node := bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"}
	dev, boss := p.key(node, "dev", bawn.RoleDeployer), p.key(node, "boss", bawn.RoleAdmin)
	digest := p.upload(dev, "def handler(e, c): return 1\n")
	d := p.try(dev, "f", digest, route("GET", "/f"))
	if _, err := p.Approve(ctx, boss, d.Pending.ID); err != nil {
		t.Fatal(err)
	}
	p.try(dev, "f", digest) // narrower, so at once
	if p.live("f") != 2 {
		t.Fatalf("live is %d", p.live("f"))
	}
	code1(t, "live to the wider one", p.SetAlias(ctx, dev, "f", bawn.LiveAlias, 1), bawn.CodeDenied, "lets more through")
	if err := p.SetAlias(ctx, dev, "f", "old", 1); err != nil {
		t.Error("another alias:", err)
	}
	if _, now, err := p.Rollback(ctx, dev, "f", 0); err != nil || now != 1 {
		t.Error("going back:", now, err)
	}
	if err := p.SetAlias(ctx, dev, "f", bawn.LiveAlias, 2); err != nil {
		t.Error("to the narrower one:", err)
	}
}
