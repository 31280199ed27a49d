package bawntest

import (
	"net/http"
	"testing"
)

// A domain leads to its tenant's routes, through the real node.
func TestDomain(t *testing.T) {
	n := NewNode(t)
	if _, err := n.AddDomain(t.Context(), "shop.example.com", ""); err != nil {
		t.Fatal(err)
	}
	n.MustDeploy("shop", map[string]any{
		"runtime": "python3.11", "handler": "app.handler", "owner": "me",
		"ingress": map[string]any{"http": []any{map[string]any{"method": "GET", "path": "/items", "hosts": []string{"shop.example.com"}}, map[string]any{"method": "GET", "path": "/own"}}},
	}, map[string]string{"app.py": "def handler(e, c): return 1\n"})
	for _, test := range []struct {
		host, path string
		want       int
	}{
		{"", "/own", 401}, {"shop.example.com", "/items", 401}, {"shop.example.com:443", "/items", 401}, {"shop.example.com", "/own", 404},
		{"other.example.com", "/own", 404}, {"localhost", "/own", 401},
	} {
		r, err := http.NewRequest("GET", n.Public()+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = test.host
		resp, err := n.HTTP.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("%s%s: %d, want %d", test.host, test.path, resp.StatusCode, test.want)
		}
	}
}
