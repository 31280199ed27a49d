package bawntest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

const echo = "def handler(e, c): return e\n"

func (n *Node) deployEcho() {
	n.t.Helper()
	n.MustDeploy("f", map[string]any{
		"runtime": string(n.NeedRuntime(Pythons()...)), "handler": "app.handler",
		"ingress": map[string]any{"http": []any{map[string]any{"method": "POST", "path": "/f"}}},
	}, map[string]string{"app.py": echo})
}

// loginOf returns where to log in at the node as it tells strangers.
func (n *Node) loginOf(name string) client.LoginIssuer {
	n.t.Helper()
	list, err := n.LoginIssuers(n.t.Context(), "")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, i := range list {
		if i.Name == name {
			return i
		}
	}
	n.t.Fatalf("nobody can log in with %s: %v", name, list)
	return client.LoginIssuer{}
}

// Somebody logs in with a real OpenID Connect server by a browser and by a code,
// and is known by the token that this gives: with the roles of the groups, until
// the server's keys are others, or it is revoked.
func TestLoginWithARealIssuer(t *testing.T) {
	o, n := NewOIDC(t), NewNode(t)
	ctx := t.Context()
	if _, err := n.CreateIssuer(ctx, o.Issuer("corp")); err != nil {
		t.Fatal(err)
	}
	browse := func(name string) func(string) {
		return func(where string) {
			go func() {
				if _, err := o.Browse(where, name); err != nil {
					t.Error(err)
				}
			}()
		}
	}
	ann, err := client.LoginBrowser(ctx, n.loginOf("corp"), browse("ann"))
	if err != nil {
		t.Fatal(err)
	}
	bob, err := client.LoginDevice(ctx, n.loginOf("corp"), func(where, code string) {
		if code == "" {
			t.Error("no code to enter")
		}
		browse("bob")(where)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		login *client.Login
		id    string
		roles []bawn.Role
	}{{ann, "corp:ann", []bawn.Role{bawn.RoleAdmin, bawn.RoleInvoker}}, {bob, "corp:bob", []bawn.Role{bawn.RoleInvoker}}} {
		who, err := n.As(c.login.Token).Whoami(ctx)
		if err != nil {
			t.Fatal(err)
		}
		p := who.Principal
		if p.Kind != bawn.PrincipalUser || p.ID != c.id || p.Tenant != "main" || len(p.Roles) != len(c.roles) || !p.Has(c.roles[0]) || !strings.HasSuffix(p.Name, "@example.org") {
			t.Errorf("%s is known as %+v", c.id, p)
		}
		if c.login.Refresh == "" || time.Until(c.login.Expires) <= 0 || who.Expires.Before(c.login.Expires) {
			t.Errorf("%s: the login ends %s, the node says %s; refreshed by %q", c.id, c.login.Expires, who.Expires, c.login.Refresh)
		}
	}
	if _, err := n.As(bob.Token).Keys(ctx); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("a guest lists keys: %v", err)
	}

	// A context whose token is about to end renews it, and what it is renewed with
	// is good once.
	file := t.TempDir() + "/context.json"
	at := n.Context
	at.Key = ""
	expiring := *ann
	expiring.Expires = time.Now().Add(time.Second)
	at.Login = &expiring
	if err := client.SaveContext(file, &at); err != nil {
		t.Fatal(err)
	}
	renews := func() *client.Login {
		t.Helper()
		c, err := client.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Whoami(ctx); err != nil {
			t.Fatal(err)
		}
		now, err := client.LoadContext(file)
		if err != nil {
			t.Fatal(err)
		}
		return now.Login
	}
	if renewed := renews(); renewed.Token == ann.Token || !renewed.Expires.After(expiring.Expires) || renewed.Refresh == "" {
		t.Error("the token was not renewed")
	}

	// Of the keys that there were, none is good once the node has looked. It looks
	// when a key comes that it does not know, and not too often.
	o.Rotate()
	again, err := client.LoginBrowser(ctx, n.loginOf("corp"), browse("ann"))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if _, err = n.As(again.Token).Whoami(ctx); err == nil {
			break
		}
		if bawn.ErrorCode(err) != bawn.CodeUnauthenticated || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if _, err := n.As(bob.Token).Whoami(ctx); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("a token of a key that is none any more: %v", err)
	}

	// Revoked, it is of no use, and neither is what is issued later while it is
	// barred.
	if _, err := n.Revoke(ctx, client.NewRevocation{Principal: "user:corp:ann", Barred: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.As(again.Token).Whoami(ctx); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("a revoked token: %v", err)
	}
	if err := n.RemoveIssuer(ctx, "corp"); err != nil {
		t.Fatal(err)
	}
}

// A caller with a token of an issuer invokes a function, by its name and by its
// route, and the token does not reach the function's code.
func TestCallersWithTokens(t *testing.T) {
	o, n := NewOIDC(t), NewNode(t)
	n.deployEcho()
	if _, err := n.CreateIssuer(t.Context(), o.Issuer("corp")); err != nil {
		t.Fatal(err)
	}
	bob, err := client.LoginBrowser(t.Context(), n.loginOf("corp"), func(where string) { go o.Browse(where, "bob") })
	if err != nil {
		t.Fatal(err)
	}
	post := func(token string) int {
		t.Helper()
		req, err := http.NewRequest("POST", n.Public()+"/f", strings.NewReader("1"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := n.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if got := post(bob.Token); got != 200 {
		t.Errorf("a token: %d", got)
	}
	head, rest, _ := strings.Cut(bob.Token, ".")
	claims, _, _ := strings.Cut(rest, ".")
	for what, token := range map[string]string{"no signature": head + "." + claims + ".", "none": "eyJhbGciOiJub25lIn0." + claims + ".", "another": head + "." + claims + ".AAAA"} {
		if got := post(token); got != 401 {
			t.Errorf("%s: %d", what, got)
		}
	}
	if _, err := n.Revoke(t.Context(), client.NewRevocation{Principal: "issuer:corp"}); err != nil {
		t.Fatal(err)
	}
	if got := post(bob.Token); got != 401 {
		t.Errorf("a token of an issuer that was revoked: %d", got)
	}
}
