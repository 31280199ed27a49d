package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
)

// outside is a version that reaches a few things.
func outside() *bawn.Version {
	v := made("f", nil, nil)
	v.Digest = "outside"
	v.Perimeter.Egress = bawn.Egress{
		Hosts: []bawn.Host{
			{Host: "api.example.com", Ports: []int{443}, Inject: &bawn.Inject{Secret: "key", Header: "Authorization", Format: "{}"}, Labels: []string{"pii"}},
			{Host: "*.example.com", Ports: []int{443, 8443}},
			{Host: "legacy.example.com", Ports: []int{8080}, Plaintext: true},
			{Host: "192.0.2.0/24", Ports: []int{9000}},
		},
		Secrets: []bawn.SecretUse{{Name: "signing-key"}},
		Databases: []bawn.Database{
			{Name: "orders", Kind: bawn.Postgres, Address: "db.internal:5432", Database: "orders", User: "shop", Secret: "orders-db", Labels: []string{"pii"}},
			{Name: "cache", Kind: bawn.Redis, Address: "[2001:db8::1]:6379", Plaintext: true},
		},
	}
	return v
}

// wants is what a function asks for.
func wants(v *bawn.Version, a Action, o Object) Request {
	p := bawn.Principal{Kind: bawn.PrincipalFunction, ID: fmt.Sprintf("%s@%d", v.Function, v.Number), Name: v.Function, Tenant: v.Tenant}
	return Request{Principal: p, Action: a, Resource: v.Ref(), Object: o, Caller: v, Origin: key(v.Tenant, bawn.RoleInvoker), Chain: []bawn.Ref{v.Ref()}, Invocation: "i"}
}

// What the manifest names is allowed, on its ports, and nothing else; control C2.
func TestC2OnlyWhatTheManifestNames(t *testing.T) {
	e, l, _ := open(t, nil)
	v := outside()
	if err := e.CheckVersion(v); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		host string
		port int
		rule string // "" for none
	}{
		{"api.example.com", 443, "api.example.com"},
		{"api.example.com", 8443, "*.example.com"},
		{"api.example.com", 80, ""},
		{"www.example.com", 443, "*.example.com"},
		{"a.www.example.com", 443, ""},
		{"example.com", 443, ""},
		{".example.com", 443, ""},
		{"evilexample.com", 443, ""},
		{"legacy.example.com", 8080, "legacy.example.com"},
		{"192.0.2.7", 9000, "192.0.2.0/24"},
		{"192.0.3.7", 9000, ""},
		{"203.0.113.1", 443, ""},
	} {
		o := HostObject(v, x.host, x.port)
		if want := x.rule; o.ID != want && (want != "" || o.ID != x.host) {
			t.Errorf("%s:%d means %+v", x.host, x.port, o)
		}
		d, err := e.Authorize(t.Context(), wants(v, Egress, o))
		if err != nil || d.Allow != (x.rule != "") {
			t.Errorf("%s:%d: %+v %v", x.host, x.port, d, err)
		}
		r := last(t, l)
		if r.Action != "egress" || r.Detail["host"] != x.host || r.Detail["port"] != fmt.Sprint(x.port) || r.Function != "f" || r.Invocation != "i" {
			t.Errorf("the record is %+v", r)
		}
		if line := HostLine(x.host, x.port); !d.Allow && (r.Control != "C2" || r.Detail["manifest"] != "egress.hosts: - "+line || !strings.Contains(d.Fix, "- "+line)) {
			t.Errorf("the denial of %s:%d is recorded as %+v, fix %s", x.host, x.port, r, d.Fix)
		}
	}
	// Who names a rule does not get what the rule is not about.
	for _, o := range []Object{
		{Kind: Host, ID: "*.example.com", Name: "evil.test", Port: 443},
		{Kind: Host, ID: "*.example.com", Name: "example.com", Port: 443},
		{Kind: Host, ID: "api.example.com", Name: "evil.test", Port: 443},
		{Kind: Host, ID: "192.0.2.0/24", Name: "192.0.3.1", Port: 9000},
		{Kind: Host, ID: "192.0.2.0/24", Name: "192.0.2.1", Port: 22},
		{Kind: Host, ID: bawn.AnyHost, Name: "evil.test", Port: 443},
		{Kind: Host, ID: "", Name: "", Port: 443},
		{Kind: Database, ID: "payments"},
		{Kind: Vault, ID: "key"},
		{Kind: Topic, ID: "t"},
		{Kind: ""},
	} {
		if d := e.Ask(wants(v, Egress, o)); d.Allow {
			t.Errorf("%+v is allowed: %s", o, d.Reason)
		}
	}
	for _, name := range []string{"orders", "cache"} {
		if d := e.Ask(wants(v, Egress, Object{Kind: Database, ID: name})); !d.Allow {
			t.Errorf("database %s: %+v", name, d)
		}
	}
	// Another function's manifest says nothing, nor does none.
	good := Object{Kind: Host, ID: "api.example.com", Port: 443}
	req := wants(v, Egress, good)
	req.Principal.ID = "g@1"
	if d := e.Ask(req); d.Allow {
		t.Error("another function is allowed by this one's manifest")
	}
	req = wants(v, Egress, good)
	if req.Caller = nil; e.Ask(req).Allow {
		t.Error("a function is allowed without a manifest")
	}
	req = wants(v, Egress, good)
	if req.Resource.Tenant = "other"; e.Ask(req).Allow {
		t.Error("a function reaches as another tenant")
	}
	for _, role := range bawn.Roles() {
		req := wants(v, Egress, good)
		if req.Principal = key("main", role); e.Ask(req).Allow {
			t.Errorf("%s is allowed what only functions do", role)
		}
	}
	// A version with nothing reaches nothing.
	if d := e.Ask(wants(made("f", nil, nil), Egress, good)); d.Allow {
		t.Error("a manifest without hosts reaches one")
	}
}

// Everything is what it says, on the usual ports, until its day.
func TestC2Everything(t *testing.T) {
	now := time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)
	e, _, _ := open(t, func() time.Time { return now })
	v := made("f", nil, nil)
	v.Perimeter.Egress.Everything = &bawn.PublicAccess{Reason: "a crawler", Until: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)}
	if err := e.CheckVersion(v); err != nil {
		t.Fatal(err)
	}
	ask := func(port int) Decision { return e.Ask(wants(v, Egress, HostObject(v, "anything.test", port))) }
	if !ask(443).Allow || !ask(80).Allow || ask(22).Allow {
		t.Errorf("443 %+v, 80 %+v, 22 %+v", ask(443), ask(80), ask(22))
	}
	now = now.Add(12 * time.Hour)
	if d := ask(443); d.Allow || !strings.Contains(d.Reason, "everything ended on 2027-01-31") {
		t.Errorf("after its end: %+v", d)
	}
}

// A function reads the secrets that its manifest names, for whatever use, and no
// other; control E2.
func TestE2OnlySecretsOfTheManifest(t *testing.T) {
	e, l, _ := open(t, nil)
	v := outside()
	for name, want := range map[string]bool{"signing-key": true, "key": true, "orders-db": true, "other": false, "": false} {
		d, err := e.Authorize(t.Context(), wants(v, Secret, Object{Kind: Vault, ID: name}))
		if err != nil || d.Allow != want {
			t.Errorf("%q: %+v %v", name, d, err)
		}
		if r := last(t, l); !want && (r.Control != "E2" || r.Outcome != "deny") {
			t.Errorf("the record is %+v", r)
		}
	}
	if d := e.Ask(wants(v, Secret, Object{Kind: Host, ID: "api.example.com", Port: 443})); d.Allow {
		t.Error("a host is read as a secret")
	}
	g := made("g", nil, nil)
	if e.Ask(wants(g, Secret, Object{Kind: Vault, ID: "key"})).Allow {
		t.Error("another function reads it")
	}
}

// Guardrails speak of names, ports, plaintext, everything, labels, methods and
// paths; the manifest allows nothing that they forbid. Control C2.
func TestC2Guardrails(t *testing.T) {
	v := outside()
	v.Perimeter.Egress.Everything = &bawn.PublicAccess{Reason: "x", Until: time.Now().Add(time.Hour)}
	host := func(name string, port int) Request { return wants(v, Egress, HostObject(v, name, port)) }
	read := host("www.example.com", 443)
	read.Object.Method, read.Object.Path = "DELETE", "/v1/users/7"
	for _, x := range []struct {
		rule     string
		forbid   Request
		unharmed Request
	}{
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource.name like "*.example.com" };`, host("www.example.com", 443), host("other.test", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource.port != 443 };`, host("www.example.com", 8443), host("www.example.com", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource.plaintext };`, host("legacy.example.com", 8080), host("www.example.com", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource.plaintext };`, host("other.test", 80), host("other.test", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource.rule == "*" };`, host("other.test", 443), host("www.example.com", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) unless { resource.labels.contains("pii") };`, host("www.example.com", 443), host("api.example.com", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Host) when { resource has address && resource.address.isInRange(ip("192.0.2.0/28")) };`, host("192.0.2.7", 9000), host("192.0.2.77", 9000)},
		{`forbid (principal, action == Bawn::Action::"egress", resource) when { context has method && context.method == "DELETE" && context has path && context.path like "/v1/*" };`, read, host("www.example.com", 443)},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Database) when { resource.kind == "redis" || resource.plaintext };`, wants(v, Egress, Object{Kind: Database, ID: "cache"}), wants(v, Egress, Object{Kind: Database, ID: "orders"})},
		{`forbid (principal, action == Bawn::Action::"egress", resource is Bawn::Database) when { resource.host == "db.internal" && resource.port == 5432 };`, wants(v, Egress, Object{Kind: Database, ID: "orders"}), wants(v, Egress, Object{Kind: Database, ID: "cache"})},
		{`forbid (principal == Bawn::Function::"main/f", action == Bawn::Action::"secret", resource == Bawn::Secret::"main/key");`, wants(v, Secret, Object{Kind: Vault, ID: "key"}), wants(v, Secret, Object{Kind: Vault, ID: "signing-key"})},
		{`forbid (principal, action == Bawn::Action::"egress", resource) when { context.onBehalfRoles.contains(Bawn::Role::"invoker") };`, host("www.example.com", 443), wants(v, Secret, Object{Kind: Vault, ID: "key"})},
	} {
		e, l, _ := guarded(t)
		if d := e.Ask(x.forbid); !d.Allow {
			t.Fatalf("%s: not allowed before: %+v", x.rule, d)
		}
		if _, err := e.SetGuardrail(t.Context(), "main", "wall", x.rule, "key:1"); err != nil {
			t.Fatal(err)
		}
		d, err := e.Authorize(t.Context(), x.forbid)
		if err != nil || d.Allow || !strings.Contains(d.Reason, "guardrail:wall#1") || d.Line != "" {
			t.Errorf("%s: %+v %v", x.rule, d, err)
		}
		if r := last(t, l); r.Outcome != "deny" || r.Detail["policies"] != "guardrail:wall#1" {
			t.Errorf("%s: the record is %+v", x.rule, r)
		}
		if d := e.Ask(x.unharmed); !d.Allow {
			t.Errorf("%s: it forbids more: %+v", x.rule, d)
		}
	}
}

// The path of a request is recorded in bounds, and none without a method.
func TestC2RecordIsBounded(t *testing.T) {
	e, l, _ := open(t, nil)
	v := outside()
	req := wants(v, Egress, HostObject(v, "www.example.com", 443))
	req.Object.Method, req.Object.Path = "GET", "/"+strings.Repeat("é", 4000)
	if d, err := e.Authorize(t.Context(), req); err != nil || !d.Allow {
		t.Fatal(d, err)
	}
	if r := last(t, l); r.Detail["method"] != "GET" || len(r.Detail["path"]) > maxRecordedPath+8 || r.Detail["object"] != "Host:*.example.com" {
		t.Errorf("%+v", r)
	}
	o := compiledObjects(t, e, v)
	for i := range 3 * maxObjects {
		e.Ask(wants(v, Egress, HostObject(v, fmt.Sprintf("n%d.example.com", i), 443)))
	}
	if n := len(o.objects); n == 0 || n > maxObjects {
		t.Errorf("%d names of a wildcard are kept", n)
	}
	if err := l.Read(t.Context(), evidence.Query{}, func(bawn.Record) error { return nil }); err != nil {
		t.Error(err)
	}
}

func compiledObjects(t *testing.T, e *Engine, v *bawn.Version) *own {
	t.Helper()
	o, err := e.compiled.of(v)
	if err != nil {
		t.Fatal(err)
	}
	return o
}
