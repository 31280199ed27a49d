package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/store"
)

func open(t testing.TB, now func() time.Time) (*Engine, *evidence.Log, *store.Store) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, err := evidence.Open(t.Context(), evidence.Config{Dir: t.TempDir(), Key: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return New(l, now), l, s
}

func key(tenant string, role bawn.Role, functions ...string) bawn.Principal {
	return bawn.Principal{Kind: "key", ID: "0123", Tenant: tenant, Roles: []bawn.Role{role}, Functions: functions}
}

// The whole table, every role by every action; control A9.
func TestA9Roles(t *testing.T) {
	e, _, _ := open(t, nil)
	actions := []Action{
		Invoke, Deploy, Approve, Read, Remove, Logs, Events, Audit, Keys, Identities, Policies, Node, Test, Inspect, Grant,
		Tenants, Backup, Call, Secret, Egress, Publish,
	}
	if len(actions) != len(e.grammar.fits) {
		t.Errorf("%d actions are tested, the schema has %d", len(actions), len(e.grammar.fits))
	}
	want := map[bawn.Role]string{
		//                       people                installation, functions
		//                       idarrleakipntig       tb            csep
		bawn.RoleOperator:    "yyyyyyyyyyyyyyy" + "yy" + "nnnn",
		bawn.RoleAdmin:       "yyyyyyyyyyyyyyy" + "nn" + "nnnn",
		bawn.RoleDeployer:    "nynyyyynnnnyynn" + "nn" + "nnnn",
		bawn.RolePolicyAdmin: "nnyynnnnnnynnnn" + "nn" + "nnnn",
		bawn.RoleSecretAdmin: "nnnynnnnnnnnnny" + "nn" + "nnnn",
		bawn.RoleAuditor:     "nnnynyyynnnynnn" + "nn" + "nnnn",
		bawn.RoleInvoker:     "ynnnnnnnnnnnnnn" + "nn" + "nnnn",
		bawn.RoleViewer:      "nnnynyynnnnynnn" + "nn" + "nnnn",
		"":                   "nnnnnnnnnnnnnnn" + "nn" + "nnnn",
		"root":               "nnnnnnnnnnnnnnn" + "nn" + "nnnn",
		"ops":                "nnnnnnnnnnnnnnn" + "nn" + "nnnn",
	}
	for _, r := range bawn.Roles() {
		if want[r] == "" {
			t.Errorf("the role %s is not tested", r)
		}
	}
	for role, row := range want {
		got := ""
		for _, a := range actions {
			req := about(key("main", role), a, "main", "f")
			d, err := e.Authorize(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if e.Allows(req) != d.Allow {
				t.Errorf("%s %s: offered %v, decided %v", role, a, !d.Allow, d.Allow)
			}
			if d.Allow {
				got += "y"
			} else if got += "n"; d.Reason == "" || d.Fix == "" {
				t.Errorf("%s %s: a denial without a reason and a way out: %+v", role, a, d)
			}
			// Nobody reaches into another tenant, but for the operator, to whom
			// tenants are things.
			want := role == bawn.RoleOperator && (a == Tenants || a == Backup)
			d, err = e.Authorize(t.Context(), about(key("main", role), a, "other", "f"))
			if d.Allow != want || err != nil {
				t.Errorf("%s may %s in another tenant: %v %v", role, a, d, err)
			}
			// An operator of another tenant is nobody.
			if d, err := e.Authorize(t.Context(), about(key("other", role), a, "other", "f")); err != nil || d.Allow && (role == bawn.RoleOperator || a == Node || a == Tenants || a == Backup) {
				t.Errorf("in another tenant %s may %s there: %+v %v", role, a, d, err)
			}
		}
		if got != row {
			t.Errorf("%s: %s, want %s", role, got, row)
		}
	}
}

// An auditor of the installation's tenant reads the log of the whole node, as
// files; one of another tenant does not, nor does any other role.
func TestA9AuditorOfTheInstallation(t *testing.T) {
	e, _, _ := open(t, nil)
	whole := func(tenant string, role bawn.Role) bool {
		return e.Allows(Request{Principal: key(tenant, role), Action: Audit, Resource: bawn.Ref{Tenant: tenant}, Object: Object{Kind: Installation}})
	}
	for _, r := range bawn.Roles() {
		if want := r == bawn.RoleAuditor || r == bawn.RoleOperator; whole("main", r) != want {
			t.Errorf("%s of main: %v, want %v", r, !want, want)
		}
		if whole("other", r) {
			t.Errorf("%s of another tenant may", r)
		}
	}
}

// about asks for what an action is for.
func about(p bawn.Principal, a Action, tenant, function string) Request {
	req := Request{Principal: p, Action: a, Resource: bawn.Ref{Tenant: tenant, Function: function}}
	switch a {
	case Audit, Keys, Identities, Policies, Node, Tenants:
		req.Resource.Function = ""
	case Backup:
		req.Object = Object{Kind: Installation}
	case Grant, Secret:
		req.Object = Object{Kind: Vault, ID: "stripe"}
	case Egress:
		req.Object = Object{Kind: Host, ID: "api.example", Port: 443}
	case Publish:
		req.Object = Object{Kind: Topic, ID: "orders"}
	}
	return req
}

// Whoever is held to some functions reaches no other, whatever his role.
func TestHeldToFunctions(t *testing.T) {
	e, _, _ := open(t, nil)
	for _, role := range bawn.Roles() {
		for a := range e.grammar.fits {
			held := key("main", role, "f")
			mine, others := e.Allows(about(held, a, "main", "f")), e.Allows(about(held, a, "main", "g"))
			if free := e.Allows(about(key("main", role), a, "main", "f")); mine && !free {
				t.Errorf("%s may %s only because it is held", role, a)
			} else if fit := about(held, a, "main", "f"); free && !mine && fit.Object.Kind == "" && fit.Resource.Function != "" {
				t.Errorf("%s may not %s its own function", role, a)
			}
			if others {
				t.Errorf("%s held to f may %s g", role, a)
			}
			tenant := e.Allows(Request{Principal: held, Action: a, Resource: bawn.Ref{Tenant: "main"}})
			if tenant && a != Deploy && a != Read {
				t.Errorf("%s held to f may %s the tenant", role, a)
			}
		}
	}
}

func TestInvoke(t *testing.T) {
	end := time.Date(2027, 7, 1, 0, 0, 0, 0, time.UTC)
	now := end.Add(-time.Second)
	e, _, _ := open(t, func() time.Time { return now })
	public := &bawn.PublicAccess{Reason: "landing page", Until: end}
	f := bawn.Ref{Tenant: "main", Function: "f"}
	route := &bawn.Route{Method: "GET", Path: "/f", Access: bawn.Access{Public: public}}
	version := &bawn.Version{Tenant: "main", Function: "f", Number: 1, Perimeter: bawn.Perimeter{Ingress: bawn.Ingress{HTTP: []bawn.Route{*route}}}}
	ask := func(p bawn.Principal, action Action, r bawn.Ref, public *bawn.PublicAccess) Decision {
		t.Helper()
		req := Request{Principal: p, Action: action, Resource: r, Public: public}
		if public != nil {
			req.Route, req.Target = route, version
		}
		d, err := e.Authorize(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, c := range []struct {
		name   string
		p      bawn.Principal
		action Action
		r      bawn.Ref
		public *bawn.PublicAccess
		allow  bool
	}{
		{"anonymous, public", bawn.Anonymous(), Invoke, f, public, true},
		{"anonymous, not public", bawn.Anonymous(), Invoke, f, nil, false},
		{"anonymous, public route but another action", bawn.Anonymous(), Deploy, f, public, false},
		{"anonymous, public route, reading", bawn.Anonymous(), Logs, f, public, false},
		{"viewer, public", key("main", bawn.RoleViewer), Invoke, f, public, true},
		{"other tenant's key, public", key("other", bawn.RoleViewer), Invoke, f, public, true},
		{"invoker of it", key("main", bawn.RoleInvoker, "g", "f"), Invoke, f, nil, true},
		{"invoker of another", key("main", bawn.RoleInvoker, "g"), Invoke, f, nil, false},
		{"invoker of another, no function named", key("main", bawn.RoleInvoker, "g"), Invoke, bawn.Ref{Tenant: "main"}, nil, false},
		{"the node", bawn.Principal{Kind: "node", ID: "n1"}, Deploy, f, nil, true},
		{"nobody", bawn.Principal{}, Invoke, f, nil, false},
		{"role without a kind", bawn.Principal{ID: "x", Tenant: "main", Roles: []bawn.Role{bawn.RoleAdmin}}, Invoke, f, nil, false},
		{"a key without an id", bawn.Principal{Kind: "key", Tenant: "main", Roles: []bawn.Role{bawn.RoleAdmin}}, Invoke, f, nil, false},
		{"no tenant at all", key("", bawn.RoleAdmin), Invoke, bawn.Ref{Function: "f"}, nil, false},
		{"unknown action", key("main", bawn.RoleAdmin), "own", f, nil, false},
	} {
		if d := ask(c.p, c.action, c.r, c.public); d.Allow != c.allow {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
	now = end
	if d := ask(bawn.Anonymous(), Invoke, f, public); d.Allow || !strings.Contains(d.Reason, "until") {
		t.Errorf("after its end the route is open: %+v", d)
	}
	if d := ask(key("main", bawn.RoleInvoker), Invoke, f, public); !d.Allow {
		t.Errorf("after the route's end a key is refused: %+v", d)
	}
}

// Decisions are in the evidence before they are known; allowed reads are not.
func TestRecords(t *testing.T) {
	e, l, _ := open(t, nil)
	f := bawn.Ref{Tenant: "main", Function: "f", Qualifier: "7"}
	for _, x := range []struct {
		p bawn.Principal
		a Action
	}{
		{key("main", bawn.RoleAdmin), Invoke}, {key("main", bawn.RoleAdmin), Read}, {key("main", bawn.RoleAdmin), Keys}, {bawn.Anonymous(), Logs},
	} {
		req := Request{Principal: x.p, Action: x.a, Resource: f, Invocation: "i1", Source: "192.0.2.1"}
		if x.a == Keys {
			req.Resource = bawn.Ref{Tenant: "main"}
		}
		if _, err := e.Authorize(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	if err := l.Read(t.Context(), evidence.Query{}, func(r bawn.Record) error {
		got += fmt.Sprintln(r.Kind, r.Action, r.Outcome, r.Principal, r.Tenant, r.Function, r.Version, r.Invocation, r.Source)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := "decision invoke allow key:0123 main f 7 i1 192.0.2.1\ndecision keys allow key:0123 main  0 i1 192.0.2.1\ndecision logs deny anonymous:anonymous main f 7 i1 192.0.2.1\n"
	if got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
	// Without a record there is no permission.
	l.Close()
	refused := 0
	for range 100 {
		e.Authorize(t.Context(), Request{Principal: bawn.Anonymous(), Action: Deploy, Resource: f})
		d, err := e.Authorize(t.Context(), Request{Principal: key("main", bawn.RoleAdmin), Action: Deploy, Resource: f})
		if d.Allow == (err != nil) {
			t.Fatalf("%+v with %v", d, err)
		}
		if bawn.ErrorCode(err) == bawn.CodeUnavailable {
			refused++
			break
		}
	}
	if refused == 0 {
		t.Fatal("permission was given without a log to record it in")
	}
}

// A flood of strangers leaves a few records a second, and in the next one how
// many there were; it hides neither who has a key nor the other door.
func TestStrangersAreBounded(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	e, l, _ := open(t, func() time.Time { return now })
	f := bawn.Ref{Tenant: "main", Function: "f"}
	deny := func(p bawn.Principal, a Action) {
		t.Helper()
		if d, err := e.Authorize(t.Context(), Request{Principal: p, Action: a, Resource: f}); d.Allow || err != nil {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	const flood = 1000
	for range flood {
		deny(bawn.Anonymous(), Invoke)
	}
	for range 3 * strangerBurst {
		deny(key("main", bawn.RoleViewer), Invoke)
	}
	for range flood {
		if err := e.Refused(t.Context(), "192.0.2.1", "no key"); err != nil {
			t.Fatal(err)
		}
	}
	deny(bawn.Anonymous(), Logs)
	now = now.Add(time.Second)
	deny(bawn.Anonymous(), Invoke)
	deny(bawn.Anonymous(), Invoke)
	deny(bawn.Anonymous(), Logs)
	got := map[string]int{}
	var left []string
	if err := l.Read(t.Context(), evidence.Query{Tenant: "main"}, func(r bawn.Record) error {
		got[r.Principal+" "+r.Action]++
		if n := r.Detail["leftOut"]; n != "" {
			left = append(left, r.Action+" "+n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"anonymous:anonymous invoke": strangerBurst + 2, "key:0123 invoke": 3 * strangerBurst,
		"anonymous:anonymous authenticate": strangerBurst, "anonymous:anonymous logs": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("recorded %v, want %v", got, want)
	}
	if s := fmt.Sprint(left); s != fmt.Sprintf("[invoke %d logs %d]", flood-strangerBurst, flood-strangerBurst+1) {
		t.Errorf("left out: %s", s)
	}

	// What cannot be written is counted, not forgotten.
	l.Close()
	now = now.Add(time.Second)
	if err := e.Refused(t.Context(), "192.0.2.1", "no key"); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("with the log closed: %v", err)
	}
	if e.rest.left != 1 {
		t.Errorf("%d counted", e.rest.left)
	}
}

// What the rules said once is not asked for again, and holds only as long as
// everything that it came from; control A3.
func TestA3KeptAnswersHoldNoLonger(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	e, _, s := open(t, func() time.Time { return at })
	if err := e.OpenGuardrails(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v := made("f", []string{"role:ops"}, nil)
	v.Digest = "sha256:1"
	v.Perimeter.Ingress.HTTP = []bawn.Route{{Method: "GET", Path: "/keyed"}, {Method: "GET", Path: "/open",
		Access: bawn.Access{Public: &bawn.PublicAccess{Reason: "a shop", Until: at.Add(time.Hour)}}}}
	req := Request{Principal: key("main", "ops"), Action: Invoke, Resource: v.Ref(), Target: v, Trigger: "lambda"}
	with := func(change func(r *Request)) Request {
		r := req
		change(&r)
		return r
	}
	ask := func(what string, want bool, r Request) {
		t.Helper()
		for range 3 { // the first may be asked, the others are known
			d := e.Ask(r)
			if d.Allow != want {
				t.Errorf("%s: %v, want %v: %s", what, d.Allow, want, d.Reason)
			}
			if known := e.recall(&r, at); !reflect.DeepEqual(known, d) {
				t.Errorf("%s: %+v is remembered, and it is %+v", what, known, d)
			}
		}
	}
	set := func(text string) {
		t.Helper()
		if _, err := e.SetGuardrail(t.Context(), "main", "g", text, "key:1"); err != nil {
			t.Fatal(err)
		}
	}
	ask("a role of the callers", true, req)
	if n := len(e.asked.kept); n != 1 {
		t.Fatalf("%d answers are kept", n)
	}
	ask("another role", false, with(func(r *Request) { r.Principal.Roles = []bawn.Role{"dev"} }))
	ask("the role again", true, req)
	ask("another function held to", false, with(func(r *Request) { r.Principal.Functions = []string{"g"} }))
	ask("another action", false, with(func(r *Request) { r.Action, r.Target = Deploy, nil }))
	narrow := *v
	narrow.Number, narrow.Digest, narrow.Perimeter.Ingress.Callers = 2, "sha256:2", nil
	ask("another version", false, with(func(r *Request) { r.Target, r.Resource = &narrow, narrow.Ref() }))

	keyed, public := &v.Perimeter.Ingress.HTTP[0], &v.Perimeter.Ingress.HTTP[1]
	stranger := with(func(r *Request) {
		r.Principal, r.Trigger, r.Route, r.Public = bawn.Anonymous(), "http", public, public.Access.Public
	})
	ask("a public route", true, stranger)
	ask("a keyed route", false, with(func(r *Request) { r.Principal, r.Trigger, r.Route = bawn.Anonymous(), "http", keyed }))
	at = at.Add(2 * time.Hour)
	ask("a route that was public", false, stranger)

	set(`forbid (principal, action == Bawn::Action::"invoke", resource) when { context.trigger == "lambda" };`)
	ask("a guardrail against the trigger", false, req)
	ask("another trigger", true, with(func(r *Request) { r.Trigger = "schedule" }))
	set(`forbid (principal, action == Bawn::Action::"invoke", resource) when { context has route && context.route == "GET /a" };`)
	ask("the guardrail changed", true, req)
	ask("a guardrail against the route", false, with(func(r *Request) { r.Route = &bawn.Route{Method: "GET", Path: "/a"} }))
	ask("another method", true, with(func(r *Request) { r.Route = &bawn.Route{Method: "POST", Path: "/a"} }))
	ask("another route", true, with(func(r *Request) { r.Route = &bawn.Route{Method: "GET", Path: "/b"} }))
	set(`forbid (principal, action == Bawn::Action::"invoke", resource);`)
	ask("a guardrail against all", false, req)
	set(`forbid (principal, action == Bawn::Action::"deploy", resource);`)
	ask("a guardrail against something else", true, req)
	set(`forbid (principal, action == Bawn::Action::"invoke", resource) when { context has source && context.source.isLoopback() };`)
	ask("a guardrail against the source", false, with(func(r *Request) { r.Source = "127.0.0.1" }))
	ask("another source", true, with(func(r *Request) { r.Source = "192.0.2.1" }))
}

func BenchmarkAuthorize(b *testing.B) {
	e, _, _ := open(b, nil)
	req := Request{Principal: key("main", bawn.RoleInvoker), Action: Invoke, Resource: bawn.Ref{Tenant: "main", Function: "f"}, Invocation: bawn.NewID(), Source: "127.0.0.1"}
	for b.Loop() {
		for {
			if _, err := e.Authorize(b.Context(), req); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// Whoever has the least key cannot fill the log with denials: they are counted,
// and what is allowed is recorded all the same.
func TestH2DenialsAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	e, l, _ := open(t, func() time.Time { return now })
	p := key("main", bawn.RoleViewer)
	ask := func() {
		if d, err := e.Authorize(t.Context(), Request{Principal: p, Action: Keys, Resource: bawn.Ref{Tenant: "main"}}); err != nil || d.Allow {
			t.Fatal(d, err)
		}
	}
	const flood = 10 * principalBurst
	for range flood {
		ask()
	}
	for range 2 * principalBurst {
		if d, err := e.Authorize(t.Context(), Request{Principal: key("main", bawn.RoleInvoker), Action: Invoke, Resource: bawn.Ref{Tenant: "main", Function: "f"}}); err != nil || !d.Allow {
			t.Fatal(d, err)
		}
	}
	now = now.Add(2 * time.Second)
	ask()
	denied, allowed, left := 0, 0, ""
	err := l.Read(t.Context(), evidence.Query{}, func(r bawn.Record) error {
		if r.Outcome == "deny" {
			denied++
		} else {
			allowed++
		}
		left += r.Detail["leftOut"]
		return nil
	})
	if err != nil || denied != principalBurst+1 || allowed != 2*principalBurst || left != fmt.Sprint(flood-principalBurst) {
		t.Errorf("%d denied and %d allowed are recorded, %q left out, %v", denied, allowed, left, err)
	}
	// Nor with many keys of one tenant.
	var f floods
	n := 0
	for i := range 100 * principalBurst {
		if _, ok := f.take(fmt.Sprint(i%100), "main", now); ok {
			n++
		}
	}
	if n != tenantBurst {
		t.Errorf("%d of a tenant are recorded in one second", n)
	}
	for i := range 3 * maxFloods {
		f.take(fmt.Sprint(i), fmt.Sprint("t", i), now)
	}
	if len(f.of) > maxFloods+2 {
		t.Errorf("%d are told apart", len(f.of))
	}
}

// What is remembered of a decision never says more than the rules do, whatever has
// changed since; control A3.
func TestA3RememberedDecisions(t *testing.T) {
	end := time.Unix(1_800_000_000, 500)
	e := New(nil, nil)
	r := rand.New(rand.NewPCG(3, 9))
	var targets []*bawn.Version
	for i, callers := range [][]string{nil, {"role:ops"}, {"front", "role:ops"}, {"*"}} {
		v := made("f", callers, nil)
		v.Number, v.Digest = i+1, fmt.Sprint("sha256:", i)
		v.Perimeter.Ingress.HTTP = []bawn.Route{
			{Method: "GET", Path: "/open", Access: bawn.Access{Public: &bawn.PublicAccess{Reason: "a shop", Until: end}}},
			{Method: "GET", Path: "/keyed"}, {Method: "GET", Path: "/signed", Access: bawn.Access{SigV4: true}},
		}
		targets = append(targets, v)
	}
	guardrails := []string{"",
		`forbid (principal, action == Bawn::Action::"invoke", resource) when { context.trigger == "lambda" };`,
		`forbid (principal is Bawn::Anonymous, action == Bawn::Action::"invoke", resource);`,
		`forbid (principal, action == Bawn::Action::"invoke", resource) when { context.now > datetime("2027-01-15T08:00:00.000Z") };`,
		`forbid (principal, action == Bawn::Action::"invoke", resource) when { context has source && context.source.isLoopback() };`,
		`forbid (principal, action == Bawn::Action::"invoke", resource) when { context has route && context.route == "GET /open" };`,
	}
	known := 0
	for n := range 20_000 {
		if n%500 == 0 {
			g := &guards{tenants: map[string]*scope{}}
			if text := guardrails[r.IntN(len(guardrails))]; text != "" {
				g = g.with("main", e.withGuardrail(nil, "g", &Guardrail{Name: "g", Tenant: "main", Text: text, Hash: Hash(text)}))
			}
			e.guards.Store(g)
		}
		v := targets[r.IntN(len(targets))]
		req := Request{Principal: key([]string{"main", "other"}[r.IntN(2)], []bawn.Role{bawn.RoleInvoker, "ops", bawn.RoleViewer}[r.IntN(3)]),
			Action: []Action{Invoke, Invoke, Invoke, Read}[r.IntN(4)], Resource: v.Ref(), Target: v, Trigger: []string{"http", "lambda"}[r.IntN(2)],
			Source: []string{"127.0.0.1", "192.0.2.1", ""}[r.IntN(3)]}
		req.Principal.Access = []string{"", bawn.AccessSigV4}[r.IntN(2)]
		switch r.IntN(4) {
		case 0:
			req.Principal.Functions = []string{"g"}
		case 1:
			req.Principal = bawn.Anonymous()
		}
		if i := r.IntN(4); i < 3 {
			req.Route = &v.Perimeter.Ingress.HTTP[i]
			if r.IntN(3) > 0 {
				req.Public = req.Route.Access.Public
			}
		}
		switch r.IntN(40) {
		case 0:
			req.Without = "a grant is missing"
		case 1:
			req.Resource.Function = "another"
		case 2:
			req.Object = Object{Kind: Vault, ID: "key"}
		case 3:
			req.Hops = 3
		}
		at := end.Add([]time.Duration{-time.Hour, -1, 0, 1, time.Millisecond, time.Hour}[r.IntN(6)])
		before := len(e.decided.kept)
		got := e.recall(&req, at)
		if got.Allow && len(e.decided.kept) == before {
			known++
		}
		asked, decided := e.asked.kept, e.decided.kept
		e.asked.kept, e.decided.kept = nil, nil
		if want := e.decide(&req, at, e.guards.Load()); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v at %v:\n%+v is remembered, and it is\n%+v", req, at, got, want)
		}
		e.asked.kept, e.decided.kept = asked, decided
	}
	if known < 100 {
		t.Errorf("%d decisions were remembered: this shows nothing", known)
	}
}

// Who tries guardrails, or asks what would be, takes no room of what is asked in
// earnest, and what he tried does not stay.
func TestA3TrialsAreNotKept(t *testing.T) {
	e := New(nil, nil)
	e.guards.Store(&guards{tenants: map[string]*scope{}})
	v := made("f", nil, nil)
	v.Digest = "sha256:1"
	req := Request{Principal: key("main", bawn.RoleInvoker), Action: Invoke, Resource: v.Ref(), Target: v, Trigger: "lambda"}
	ask, err := e.Trial("main", "g", `forbid (principal, action == Bawn::Action::"invoke", resource) when { context.trigger == "http" };`)
	if err != nil {
		t.Fatal(err)
	}
	if !ask(req).Allow || len(e.asked.kept)+len(e.decided.kept) != 0 {
		t.Errorf("%d and %d answers of a trial are kept", len(e.asked.kept), len(e.decided.kept))
	}
	if !e.Ask(req).Allow || len(e.decided.kept) != 0 {
		t.Error("what might be is kept")
	}
	if !e.recall(&req, time.Now()).Allow || len(e.decided.kept) != 1 {
		t.Error("what is asked in earnest is not kept")
	}
}
