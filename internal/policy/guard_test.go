package policy

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/store"
)

var everything = evidence.Query{}

// last returns the newest record.
func last(t testing.TB, l *evidence.Log) (r bawn.Record) {
	t.Helper()
	if err := l.Read(t.Context(), everything, func(x bawn.Record) error { r = x; return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

func guarded(t testing.TB) (*Engine, *evidence.Log, *store.Store) {
	t.Helper()
	e, l, s := open(t, nil)
	if err := e.OpenGuardrails(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return e, l, s
}

// What a guardrail forbids no role and no manifest allows, from the next decision
// on, and only in its own tenant; control A3.
func TestA3GuardrailWins(t *testing.T) {
	e, l, _ := guarded(t)
	admin, other := key("main", bawn.RoleAdmin), key("other", bawn.RoleAdmin)
	ask := func(p bawn.Principal) Decision {
		t.Helper()
		d, err := e.Authorize(t.Context(), Request{Principal: p, Action: Invoke, Resource: bawn.Ref{Tenant: p.Tenant, Function: "f"}, Source: "192.0.2.7"})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	set := func(tenant, name, text string) {
		t.Helper()
		if _, err := e.SetGuardrail(t.Context(), tenant, name, text, "key:1"); err != nil {
			t.Fatal(err)
		}
	}
	office := `// only from the office
forbid (principal, action == Bawn::Action::"invoke", resource)
unless { context has source && context.source.isInRange(ip("10.0.0.0/8")) };`
	if !ask(admin).Allow {
		t.Fatal("not allowed before")
	}
	set("main", "office", office)
	if d := ask(admin); d.Allow || !strings.Contains(d.Reason, "guardrail:office#1") || !strings.Contains(d.Fix, "bawn policy show office") {
		t.Fatalf("%+v", d)
	}
	if r := last(t, l); r.Detail["policies"] != "guardrail:office#1" {
		t.Errorf("%+v", r)
	}
	if !ask(other).Allow {
		t.Error("a guardrail of a tenant counts in another")
	}
	set("main", "office", strings.ReplaceAll(office, "10.0.0.0/8", "192.0.2.0/24"))
	if d := ask(admin); !d.Allow {
		t.Fatalf("after a change: %+v", d)
	}
	set("", "no-f", `forbid (principal, action, resource == Bawn::Function::"other/f");`)
	if d := ask(other); d.Allow || !strings.Contains(d.Reason, "installation:no-f#1") {
		t.Fatalf("%+v", d)
	}
	if err := e.RemoveGuardrail(t.Context(), "", "no-f"); err != nil || !ask(other).Allow {
		t.Fatal("it counts after it was taken away", err)
	}
	if err := e.RemoveGuardrail(t.Context(), "", "no-f"); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}

	// Of a chain of calls, every part is asked.
	f, x := made("f", nil, []string{"x"}), made("x", []string{"f", "anyone"}, nil)
	chain := through(bawn.Anonymous(), x, f)
	chain.Source = "192.0.2.7"
	if d := e.Ask(chain); !d.Allow {
		t.Fatalf("%+v", d)
	}
	for i, text := range []string{
		`forbid (principal is Bawn::Anonymous, action, resource == Bawn::Function::"main/x");`,
		`forbid (principal, action == Bawn::Action::"call", resource) when { context.depth > 0 };`,
		`forbid (principal, action, resource) when { context.onBehalf == "anonymous:anonymous" && context has caller };`,
		`forbid (principal, action, resource in Bawn::Tenant::"main") when { context.chain.contains(Bawn::Function::"main/f") };`,
	} {
		set("main", "chain", text)
		if d := e.Ask(chain); d.Allow {
			t.Errorf("rule %d: %+v", i, d)
		}
	}
	// Whatever is forbidden, who may change guardrails still may.
	set("main", "chain", `forbid (principal, action, resource);`)
	if d := e.Ask(Request{Principal: admin, Action: Policies, Resource: bawn.Ref{Tenant: "main"}}); !d.Allow {
		t.Errorf("locked out: %+v", d)
	}
	if e.Ask(Request{Principal: bawn.Principal{Kind: "node", ID: "n"}, Action: Read, Resource: bawn.Ref{Tenant: "main"}}).Allow {
		t.Error("not even the node may, and it does")
	}
}

// How deep a call is counts every way that led there, not only the part of the
// chain that is known: a function that goes out and comes in again by HTTP has
// no chain any more.
func TestH5DepthCountsEveryWay(t *testing.T) {
	e, _, _ := guarded(t)
	if _, err := e.SetGuardrail(t.Context(), "main", "shallow", `forbid (principal, action == Bawn::Action::"invoke", resource) when { context.depth > 1 };`, "key:1"); err != nil {
		t.Fatal(err)
	}
	for hops, want := range []bool{true, true, false, false} {
		if d := e.Ask(Request{Principal: key("main", bawn.RoleAdmin), Action: Invoke, Resource: bawn.Ref{Tenant: "main", Function: "f"}, Hops: hops}); d.Allow != want {
			t.Errorf("%d calls before: %+v", hops, d)
		}
	}
}

func TestGuardrailRefused(t *testing.T) {
	e, _, _ := guarded(t)
	for _, c := range []struct{ name, file, text, want string }{
		{"permit", "g", "\npermit (principal, action, resource);", "g:2:1: rule 1 permits; a guardrail can only forbid"},
		{"syntax", "g", "forbid (principal, action, resource) wen { true };", "g:1:42: "},
		{"unknown attribute", "g", "forbid (principal, action, resource);\nforbid (principal, action, resource) when { context.sauce };", "g:2:1: rule 2 does not fit the schema: attribute `sauce`"},
		{"unknown action", "g", `forbid (principal, action == Bawn::Action::"invoce", resource);`, "g:1:1: rule 1 does not fit the schema"},
		{"unknown type", "g", `forbid (principal is Bawn::Kay, action, resource);`, "g:1:1: rule 1 does not fit the schema"},
		{"optional without has", "g", `forbid (principal, action, resource) when { context.source.isLoopback() };`, "unable to guarantee safety of access to optional attribute `source`"},
		{"empty", "g", "// nothing\n", "there is no rule here"},
		{"name", "G", "forbid (principal, action, resource);", "must begin with a letter"},
		{"policy", "g", `forbid (principal, action == Bawn::Action::"policy", resource);`, "could never be taken away"},
		{"policy among others", "g", `forbid (principal, action in [Bawn::Action::"read", Bawn::Action::"policy"], resource);`, "could never be taken away"},
		{"long", "g", strings.Repeat("/", maxRuleText+1), "at most 65536 are allowed"},
		{"many", "g", strings.Repeat("forbid (principal, action, resource);\n", maxRules+1), "at most 100 are allowed"},
		{"deep", "g", "forbid (principal, action, resource) when { " + strings.Repeat("(", 10000) + "true" + strings.Repeat(")", 10000) + " };", "nested more than 64 deep"},
		{"nul", "g", "forbid (principal, action, resource)\x00;", "g:"},
	} {
		_, err := e.SetGuardrail(t.Context(), "main", c.file, c.text, "key:1")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if len(e.Guardrails("main")) != 0 {
		t.Error("something was kept")
	}
	for i := range maxGuardrails + 1 {
		_, err := e.SetGuardrail(t.Context(), "main", fmt.Sprintf("g%d", i), "forbid (principal is Bawn::Anonymous, action, resource);", "key:1")
		if (err != nil) != (i == maxGuardrails) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// Guardrails are there after a restart, and one that cannot be read any more
// forbids everything but to correct it; control A3.
func TestA3UnreadableGuardrailDenies(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	table, err := store.OpenTable[Guardrail](t.Context(), s, "guardrails")
	if err != nil {
		t.Fatal(err)
	}
	good := "forbid (principal is Bawn::Anonymous, action, resource);"
	for key, g := range map[string]Guardrail{
		"a.good":     {Name: "good", Tenant: "a", Text: good, Hash: Hash(good)},
		"b.old":      {Name: "old", Tenant: "b", Text: "forbid (principal, action, resource) when { context.gone };", Hash: Hash("forbid (principal, action, resource) when { context.gone };")},
		"c.changed":  {Name: "changed", Tenant: "c", Text: good, Hash: Hash("another")},
		"d.elsewise": {Name: "good", Tenant: "a", Text: good, Hash: Hash(good)},
	} {
		if _, err := table.Create(context.Background(), key, g); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if s, err = store.Open(t.Context(), store.Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	e, l, _ := open(t, nil)
	if err := e.OpenGuardrails(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[string]bool{"a": true, "b": false, "c": false, "d": false, "e": true} {
		admin := key(tenant, bawn.RoleAdmin)
		d, err := e.Authorize(t.Context(), Request{Principal: admin, Action: Invoke, Resource: bawn.Ref{Tenant: tenant, Function: "f"}})
		if err != nil || d.Allow != want {
			t.Errorf("%s: %+v, %v", tenant, d, err)
		}
		if r := last(t, l); !want && (r.Control != "A3" || r.Tenant != tenant) {
			t.Errorf("%s: %+v", tenant, r)
		}
		if !e.Ask(Request{Principal: admin, Action: Policies, Resource: bawn.Ref{Tenant: tenant}}).Allow {
			t.Errorf("%s: nobody can correct it", tenant)
		}
	}
	if _, err := e.SetGuardrail(t.Context(), "b", "old", good, "key:1"); err != nil {
		t.Fatal(err)
	}
	if !e.Ask(Request{Principal: key("b", bawn.RoleAdmin), Action: Invoke, Resource: bawn.Ref{Tenant: "b", Function: "f"}}).Allow {
		t.Error("still broken after it was corrected")
	}
}

// A rule that fails in a decision may have been a forbid that should have held.
func TestA3FailingRuleDenies(t *testing.T) {
	e, _, _ := guarded(t)
	// The checks let no such rule in: it is put where they do not look.
	list, err := e.grammar.read("x", nil)
	if err != nil || len(list) != 0 {
		t.Fatal(err)
	}
	s := e.withGuardrail(nil, "g", nil)
	s.set = newSet([]rule{parsed(t, "guardrail:g#1", `forbid (principal, action, resource) when { principal.nothing };`)}, e.actions, nil)
	e.guards.Store(e.guards.Load().with("main", &scope{byName: map[string]*Guardrail{"g": {}}, set: s.set}))
	for range 2 { // what failed is not taken for known
		if d := e.Ask(Request{Principal: key("main", bawn.RoleAdmin), Action: Invoke, Resource: bawn.Ref{Tenant: "main", Function: "f"}}); d.Allow || !d.failed {
			t.Errorf("%+v", d)
		}
	}
}

// A trial changes nothing.
func TestTrial(t *testing.T) {
	e, _, _ := guarded(t)
	req := Request{Principal: key("main", bawn.RoleAdmin), Action: Invoke, Resource: bawn.Ref{Tenant: "main", Function: "f"}}
	ask, err := e.Trial("main", "g", "forbid (principal, action, resource);")
	if err != nil || ask(req).Allow || !e.Ask(req).Allow {
		t.Error(err)
	}
	if _, err := e.Trial("main", "g", "permit (principal, action, resource);"); err == nil {
		t.Error("a trial of what could not be set")
	}
}

func FuzzGuardrail(f *testing.F) {
	for _, s := range []string{
		"forbid (principal, action, resource);", baseText, "@id(\"x\") forbid (principal in Bawn::Role::\"a\", action in [Bawn::Action::\"read\"], resource is Bawn::Function in Bawn::Tenant::\"t\") when { context.depth > 1 } unless { principal has name };",
		"forbid (principal, action, resource) when { ip(\"1.2.3.4\").isInRange(ip(\"::/0\")) || decimal(\"1.0\").lessThan(decimal(\"2.0\")) };", "\x00", "//", "((((",
	} {
		f.Add(s)
	}
	e := New(nil, nil)
	f.Fuzz(func(t *testing.T, text string) {
		list, err := e.readGuardrail("g", text)
		if err != nil {
			if bawn.ErrorCode(err) == bawn.CodeInternal || len(err.Error()) > 8<<10 {
				t.Fatalf("%d bytes of error: %v", len(err.Error()), err)
			}
			return
		}
		// What passes can be asked.
		all := make([]rule, len(list))
		for i, p := range list {
			all[i] = rule{"g", p}
		}
		s := &scope{byName: map[string]*Guardrail{"g": {}}, set: newSet(all, e.actions, nil)}
		g := (*guards)(nil).with("main", s)
		for a := range e.grammar.fits {
			req := about(bawn.Principal{Kind: "key", ID: "1", Tenant: "main", Roles: []bawn.Role{"admin"}}, a, "main", "f")
			if d := e.decide(&req, e.now(), g); d.failed {
				t.Fatalf("%s fails on %q", a, text)
			}
		}
	})
}
