package ingress

import (
	"strings"
	"testing"

	"bawn.dev/bawn"
)

// A domain leads to its tenant's routes there and to nothing else, and a host that
// is nobody's to nothing at all.
func TestHostsLeadToTheirOwners(t *testing.T) {
	w := newWorld(t)
	owners := map[string]string{"shop.acme.example": "acme", "www.acme.example": "acme", "globex.example": "globex", "node.example": "", "10.0.0.1": "", "::1": ""}
	w.gate.cfg.Host = func(name string) (string, bool) { tenant, ok := owners[name]; return tenant, ok }
	w.deploy(t, "acme", "shop", "GET shop.acme.example,www.acme.example/", "GET /own", "GET globex.example/stolen", "GET shop.acme.example/items/{id}")
	w.deploy(t, "globex", "site", "GET globex.example/", "GET globex.example/items/{id}")
	w.deploy(t, "main", "plain", "GET /")
	for _, test := range []struct{ host, path, want string }{
		{"shop.acme.example", "/", "shop"},
		{"www.acme.example", "/", "shop"},
		{"SHOP.acme.EXAMPLE:8443", "/", "shop"},
		{"shop.acme.example", "/items/7", "shop"},
		{"www.acme.example", "/items/7", ""},
		{"globex.example", "/items/7", "site"},
		{"globex.example", "/", "site"},
		{"globex.example", "/stolen", ""}, // another's domain
		{"shop.acme.example", "/own", ""}, // a route without hosts is not on domains
		{"node.example", "/own", "shop"},
		{"node.example", "/", "plain"},
		{"10.0.0.1:443", "/", "plain"},
		{"[::1]:443", "/", "plain"},
		{"nobody.example", "/", ""},
		{"nobody.example", "/own", ""},
		{"shop.acme.example.", "/", ""},
		{"", "/", ""},
		{"shop.acme.example:x", "/", ""},
		{"shop.acme.example@node.example", "/", ""},
		{"[::1", "/", ""},
		{strings.Repeat("a", 300), "/", ""},
	} {
		m, err := w.gate.Match(test.host, "GET", test.path)
		switch {
		case test.want == "":
			if bawn.ErrorCode(err) != bawn.CodeNotFound || err.Error() != notFound().Error() {
				t.Errorf("%s %s: %+v %v, want what is not there", test.host, test.path, m, err)
			}
		case err != nil || m.Version.Function != test.want:
			t.Errorf("%s %s: %v, want %s", test.host, test.path, err, test.want)
		}
	}

	// The domain goes to another tenant: what the first has there answers no more.
	owners["shop.acme.example"] = "globex"
	if m, err := w.gate.Match("shop.acme.example", "GET", "/"); err == nil {
		t.Errorf("the old owner's route answers: %+v", m.Route)
	}
	// And a call that was matched before finds its route by its hosts too.
	owners["shop.acme.example"] = "acme"
	if len(w.gate.index.roots) != 5 {
		t.Errorf("%d origins, want 5: %v", len(w.gate.index.roots), w.gate.index.roots)
	}
	w.deploy(t, "acme", "shop", "GET /own")
	w.deploy(t, "globex", "site", "GET /site")
	if len(w.gate.index.roots) != 1 {
		t.Errorf("origins without a route are kept: %v", w.gate.index.roots)
	}
}

// Two routes of one function with the same method and path have each its own
// access: a call that came to one is not judged by the other.
func TestRouteIsFoundAgainByItsHosts(t *testing.T) {
	w := newWorld(t)
	w.gate.cfg.Host = func(name string) (string, bool) {
		if strings.HasSuffix(name, ".example") {
			return "main", true
		}
		return "", true
	}
	w.deploy(t, "main", "two", "GET open.example/x public", "GET closed.example/x")
	for host, want := range map[string]bawn.Code{"open.example": "", "closed.example": bawn.CodeUnauthenticated} {
		m, err := w.gate.Match(host, "GET", "/x")
		check1(t, err)
		// What the trigger holds may be of a version that is live no more.
		route := *m.Route
		c := &bawn.Call{ID: bawn.NewID(), Trigger: "http", Route: &route, Event: []byte("{}"), Source: "192.0.2.1", Target: bawn.Ref{Tenant: "main", Function: "two"}}
		a, err := w.gate.Admit(t.Context(), c)
		if bawn.ErrorCode(err) != want {
			t.Errorf("%s: %v, want %q", host, err, want)
		}
		if a != nil {
			a.Settle()
		}
	}
}

func FuzzHostName(f *testing.F) {
	for _, s := range []string{"a.example", "A.example:80", "[::1]:443", "1.2.3.4", "a b", "a.example.", ":80", "[::1", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := HostName(s)
		if name != strings.ToLower(name) || len(name) > bawn.MaxDomainBytes || strings.ContainsAny(name, "/@ \x00[]") {
			t.Errorf("%q gives %q", s, name)
		}
		if name != "" && !strings.Contains(name, ":") && HostName(name) != name {
			t.Errorf("%q gives %q, which gives %q", s, name, HostName(name))
		}
	})
}
