package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// made returns version 1 of a function of the tenant main.
func made(name string, callers, calls []string) *bawn.Version {
	v := &bawn.Version{Tenant: "main", Function: name, Number: 1, Owner: "x"}
	v.Perimeter.Ingress.Callers, v.Perimeter.Egress.Functions = callers, calls
	return v
}

// asFunction is the principal that a version is.
func asFunction(v *bawn.Version) bawn.Principal {
	return bawn.Principal{Kind: bawn.PrincipalFunction, ID: v.Function + "@1", Name: v.Function, Tenant: v.Tenant}
}

// through is the request of the last of chain to call x on behalf of origin.
func through(origin bawn.Principal, x *bawn.Version, chain ...*bawn.Version) Request {
	caller := chain[len(chain)-1]
	req := Request{Principal: asFunction(caller), Action: Invoke, Resource: x.Ref(), Target: x, Caller: caller, Origin: origin, Trigger: "function"}
	for _, v := range chain {
		req.Chain = append(req.Chain, v.Ref())
	}
	return req
}

// A call between functions needs both sides and everybody behind it.
func TestA7(t *testing.T) {
	e, _, _ := open(t, nil)
	f := made("f", nil, []string{"x"})
	fNoEgress := made("f", nil, nil)
	g := made("g", nil, []string{"f"})
	foreign := made("f", nil, []string{"x"})
	foreign.Tenant = "other"
	invoker, viewer, ops := key("main", bawn.RoleInvoker), key("main", bawn.RoleViewer), key("main", "ops")
	held := key("main", bawn.RoleInvoker, "f")
	strange := key("other", bawn.RoleAdmin)
	x := func(callers ...string) *bawn.Version { return made("x", callers, nil) }
	edit := func(r Request, change func(*Request)) Request { change(&r); return r }

	for _, c := range []struct {
		name  string
		req   Request
		allow bool
		fix   string // a part of it
	}{
		{"both sides and the principal", through(invoker, x("f"), f), true, ""},
		{"the caller does not say so", through(invoker, x("f"), fNoEgress), false, "functions.f.egress.functions add: - x"},
		{"the callee does not say so", through(invoker, x(), f), false, "functions.x.ingress.callers add: - f"},
		{"anyone does not let a function in", through(invoker, x("anyone"), f), false, "functions.x.ingress.callers add: - f"},
		{"a role does not let a function in", through(ops, x("role:ops"), f), false, "functions.x.ingress.callers add: - f"},
		{"the principal may not", through(viewer, x("f"), f), false, "functions.x.ingress.callers add: - role:viewer"},
		{"the principal's role may", through(ops, x("f", "role:ops"), f), true, ""},
		{"another role may", through(viewer, x("f", "role:ops"), f), false, "role:viewer"},
		{"anyone may", through(viewer, x("f", "anyone"), f), true, ""},
		{"a stranger may not", through(bawn.Anonymous(), x("f"), f), false, "functions.x.ingress.callers add: - anyone"},
		{"a stranger where anyone may", through(bawn.Anonymous(), x("f", "anyone"), f), true, ""},
		{"held to the first only", through(held, x("f"), f), false, "names this function"},
		{"held to the first, where anyone may", through(held, x("f", "anyone"), f), false, ""},
		{"of another tenant", through(strange, x("f", "anyone"), f), false, ""},
		{"the node began it", through(bawn.Principal{Kind: "node", ID: "n"}, x("f"), f), true, ""},
		{"the function began it", through(asFunction(f), x("f"), f), true, ""},
		{"one before it is not let in", through(invoker, x("f"), g, f), false, "functions.x.ingress.callers add: - g"},
		{"one before it is let in", through(invoker, x("f", "g"), g, f), true, ""},
		{"one before it, where anyone may", through(invoker, x("f", "anyone"), g, f), true, ""},
		{"itself, by the others' leave", through(invoker, made("f", []string{"f"}, nil), made("f", nil, []string{"f"})), true, ""},
		{"itself, unasked", through(invoker, made("f", nil, nil), made("f", nil, []string{"f"})), false, ""},
		{"a function of another tenant", through(invoker, x("f", "anyone"), foreign), false, ""},

		{"nobody began it", edit(through(invoker, x("f"), f), func(r *Request) { r.Origin = bawn.Principal{} }), false, ""},
		{"nobody known began it", edit(through(invoker, x("f"), f), func(r *Request) { r.Origin = bawn.Principal{Kind: "king", ID: "1"} }), false, ""},
		{"no version calls", edit(through(invoker, x("f"), f), func(r *Request) { r.Caller = nil }), false, ""},
		{"another version calls", edit(through(invoker, x("f"), f), func(r *Request) { r.Chain[0].Qualifier = "2" }), false, ""},
		{"another function calls", edit(through(invoker, x("f"), f), func(r *Request) { r.Principal.ID = "x@1" }), false, ""},
		{"a key calls as a function", edit(through(invoker, x("f"), f), func(r *Request) { r.Principal = invoker }), false, ""},
		{"no chain", edit(through(invoker, x("f"), f), func(r *Request) { r.Chain = nil }), false, ""},
		{"a chain without an end", edit(through(invoker, x("f"), f), func(r *Request) { r.Chain = slices.Repeat(r.Chain, bawn.MaxHops+1) }), false, ""},
		{"something else runs", edit(through(invoker, x("f"), f), func(r *Request) { r.Target = made("y", []string{"f"}, nil) }), false, ""},
		{"nothing is known of it", edit(through(invoker, x("f"), f), func(r *Request) { r.Target = nil }), false, ""},
		{"a public route of it is not the way", edit(through(bawn.Anonymous(), func() *bawn.Version {
			v := x("f")
			v.Perimeter.Ingress.HTTP = []bawn.Route{{Method: "GET", Path: "/", Access: bawn.Access{Public: &bawn.PublicAccess{Until: time.Now().Add(time.Hour)}}}}
			return v
		}(), f), func(r *Request) { r.Route, r.Public = &r.Target.Perimeter.Ingress.HTTP[0], nil }), false, "anyone"},

		// Directly, callers let in roles and nobody else.
		{"a role, directly", Request{Principal: ops, Action: Invoke, Resource: x().Ref(), Target: x("role:ops")}, true, ""},
		{"another role, directly", Request{Principal: viewer, Action: Invoke, Resource: x().Ref(), Target: x("role:ops")}, false, "role:viewer"},
		{"anyone, directly", Request{Principal: viewer, Action: Invoke, Resource: x().Ref(), Target: x("anyone")}, false, ""},
		{"a stranger, directly", Request{Principal: bawn.Anonymous(), Action: Invoke, Resource: x().Ref(), Target: x("anyone")}, false, ""},
		{"a role of another tenant", Request{Principal: key("other", "ops"), Action: Invoke, Resource: x().Ref(), Target: x("role:ops")}, false, ""},
		{"a role, held elsewhere", Request{Principal: key("main", "ops", "y"), Action: Invoke, Resource: x().Ref(), Target: x("role:ops")}, false, ""},
	} {
		d, err := e.Authorize(t.Context(), c.req)
		if err != nil {
			t.Fatal(err)
		}
		if d.Allow != c.allow || !strings.Contains(d.Fix, c.fix) || d.Reason == "" || d.Allow && len(d.Policies) == 0 {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}

// A record of a call between functions says who began it and by which way.
func TestA7Record(t *testing.T) {
	e, l, _ := open(t, nil)
	f, g, x := made("f", nil, []string{"x"}), made("g", nil, []string{"f"}), made("x", []string{"f", "g"}, nil)
	if d, err := e.Authorize(t.Context(), through(key("main", bawn.RoleInvoker), x, g, f)); err != nil || !d.Allow {
		t.Fatal(d, err)
	}
	r := last(t, l)
	if r.Principal != "function:f@1" || r.Detail["origin"] != "key:0123" || r.Detail["chain"] != "g@1 f@1" || r.Detail["depth"] != "2" ||
		r.Detail["policies"] != "bawn:invoker,main/f@1:egress.functions[x],main/x@1:ingress.callers[f],main/x@1:ingress.callers[g]" {
		t.Errorf("%+v", r)
	}
	f.Perimeter.Egress.Functions = nil
	if d, err := e.Authorize(t.Context(), through(key("main", bawn.RoleInvoker), x, g, f)); err != nil || d.Allow {
		t.Fatal(d, err)
	}
	if r = last(t, l); r.Control != "A7" || r.Outcome != "deny" || r.Detail["fix"] == "" {
		t.Errorf("%+v", r)
	}
}

// A2: a function whose manifest says nothing may do nothing.
func TestA2NothingAtCreation(t *testing.T) {
	e, l, _ := open(t, nil)
	f, x := made("f", nil, nil), made("x", []string{"f", "anyone"}, nil)
	asked := 0
	for a := range e.grammar.fits {
		for _, tenant := range []string{"main", "other"} {
			req := about(asFunction(f), a, tenant, "x")
			if a == Invoke {
				req = through(asFunction(f), x, f)
			}
			d, err := e.Authorize(t.Context(), req)
			if err != nil || d.Allow || d.Reason == "" {
				t.Errorf("%s in %s: %+v, %v", a, tenant, d, err)
			}
			asked++
		}
	}
	denied := 0
	if err := l.Read(t.Context(), everything, func(r bawn.Record) error {
		if r.Kind == bawn.KindDecision && r.Outcome == "deny" && r.Principal == "function:f@1" {
			denied++
		}
		return nil
	}); err != nil || denied != asked || asked < 40 {
		t.Errorf("%d asked, %d denials recorded, %v", asked, denied, err)
	}
}
