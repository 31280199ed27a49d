package bawntest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// door deploys a function that answers with its event, whose one route asks for
// access.
func (n *Node) door(name string, access any, callers ...string) {
	n.t.Helper()
	ingress := map[string]any{"http": []any{map[string]any{"method": "POST", "path": "/" + name, "access": access}}}
	if len(callers) > 0 {
		ingress["callers"] = callers
	}
	n.MustDeploy(name, map[string]any{
		"runtime": "python3.11", "handler": "app.handler", "ingress": ingress,
		"interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}},
	}, map[string]string{"app.py": "def handler(e, c): return e\n"})
}

// roleKey makes a key with a role of that name.
func (n *Node) roleKey(role bawn.Role) string {
	n.t.Helper()
	k, err := n.CreateKey(n.t.Context(), client.NewKey{Name: fmt.Sprintf("k-%s-%d", role, time.Now().UnixNano()), Role: role})
	if err != nil {
		n.t.Fatal(err)
	}
	return k.Secret
}

// knock is one request to a door, and what its answer's status must be.
type knock struct {
	name   string
	make   func() *http.Request
	status int
	hc     *http.Client // nil: the node's own
}

// knock sends requests and holds each against its status. A refusal must not have
// begun an instance, and must not tell what the request held.
func (n *Node) knock(t *testing.T, all []knock) {
	t.Helper()
	made := n.coldStarts()
	for _, k := range all {
		hc := k.hc
		if hc == nil {
			hc = n.HTTP
		}
		r := k.make()
		res, err := hc.Do(r)
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		if res.StatusCode != k.status {
			t.Errorf("%s: %d %s, want %d", k.name, res.StatusCode, body, k.status)
		}
		if now := n.coldStarts(); k.status >= 400 && now != made {
			t.Errorf("%s: an instance was made for it", k.name)
		} else {
			made = now
		}
		if auth := r.Header.Get("Authorization"); auth != "" && strings.Contains(string(body), auth[strings.LastIndexByte(auth, ' ')+1:]) {
			t.Errorf("%s: the answer has the credential in it: %s", k.name, body)
		}
	}
}

// coldStarts is how many instances were made for calls.
func (n *Node) coldStarts() string {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), "GET", n.URL()+"/metrics", nil)
	if err != nil {
		n.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+n.Context.Key)
	res, err := n.HTTP.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(body), "\nbawn_cold_starts_total ")
	if res.StatusCode != http.StatusOK {
		n.t.Fatalf("the metrics: %d", res.StatusCode)
	}
	if !ok {
		return "0" // right after a start there is nothing that could count
	}
	count, _, _ := strings.Cut(after, "\n")
	return count
}

// post makes a request with these headers, as NAME, VALUE and so on.
func (n *Node) post(path, body string, header ...string) func() *http.Request {
	return func() *http.Request {
		r, err := http.NewRequestWithContext(n.t.Context(), "POST", n.Public()+path, strings.NewReader(body))
		if err != nil {
			n.t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		return r
	}
}

func bearer(s string) []string { return []string{"Authorization", "Bearer " + s} }

// TestA11Access asks routes of each kind, by what is good and what is not.
func TestA11Access(t *testing.T) {
	for _, kind := range []struct {
		name string
		ask  func(*testing.T)
	}{
		{"key, sigv4 and public", accessOfKeys},
		{"jwt", accessOfTokens},
		{"mtls", accessOfCertificates},
		{"webhook", accessOfWebhooks},
	} {
		t.Run(kind.name, kind.ask)
	}
}

// accessOfKeys asks routes that want a key, a signature, or nothing.
func accessOfKeys(t *testing.T) {
	n := newTown(t)
	n.door("keys", "key", "role:partner")
	n.door("signed", "sigv4", "role:partner")
	n.door("open", map[string]any{"public": map[string]any{"reason": "a test", "until": "2999-12-31"}})
	invoker, viewer, partner := n.MustKey(bawn.RoleInvoker), n.MustKey(bawn.RoleViewer), n.roleKey("partner")
	creds, _ := n.signingKey("signer")
	second := 0
	sign := func(path, body string) func() *http.Request {
		return func() *http.Request {
			second++ // two that are alike in the same second would be one
			return n.signed(creds, path, body, "lambda", time.Now().Add(-time.Duration(second)*time.Second))
		}
	}
	swapped := func() *http.Request {
		r := sign("/signed", "{}")()
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`[]`)), 2
		return r
	}
	elsewhere := func() *http.Request {
		r := sign("/keys", "{}")()
		r.URL.Path = "/signed"
		return r
	}
	once := sign("/signed", `{"once":1}`)()
	n.knock(t, []knock{ // before there is any instance
		{"key: nothing", n.post("/keys", "{}"), 401, nil},
		{"key: a wrong key", n.post("/keys", "{}", bearer("bawn_0123456789abcdef_x")...), 401, nil},
		{"key: a role that may not", n.post("/keys", "{}", bearer(viewer)...), 403, nil},
		{"sigv4: nothing", n.post("/signed", "{}"), 401, nil},
		{"sigv4: an administrator's key as a bearer", n.post("/signed", "{}", bearer(n.Context.Key)...), 403, nil},
		{"public: a wrong key", n.post("/open", "{}", bearer("bawn_0123456789abcdef_x")...), 401, nil},

		{"key: a key", n.post("/keys", "{}", bearer(invoker)...), 200, nil},
		{"key: a role of callers", n.post("/keys", "{}", bearer(partner)...), 200, nil},
		{"key: a signature", sign("/keys", "{}"), 200, nil},
		{"sigv4: a signature", sign("/signed", "{}"), 200, nil},
		{"sigv4: a key as a bearer", n.post("/signed", "{}", bearer(invoker)...), 403, nil},
		{"sigv4: a role of callers as a bearer", n.post("/signed", "{}", bearer(partner)...), 403, nil},
		{"sigv4: another body", swapped, 401, nil},
		{"sigv4: another route", elsewhere, 401, nil},
		{"sigv4: once", func() *http.Request { return again(once, `{"once":1}`) }, 200, nil},
		{"sigv4: once more", func() *http.Request { return again(once, `{"once":1}`) }, 401, nil},
		{"public: nothing", n.post("/open", "{}"), 200, nil},
		{"public: a key", n.post("/open", "{}", bearer(invoker)...), 200, nil},
	})
}
