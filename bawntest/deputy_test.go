package bawntest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

const secret = "the secret"

// keyFor makes a key with a name of its own.
func (n *town) keyFor(name string, role bawn.Role, functions ...string) (*client.Client, *client.CreatedKey) {
	n.t.Helper()
	k, err := n.CreateKey(n.t.Context(), client.NewKey{Name: name, Role: role, Functions: functions})
	if err != nil {
		n.t.Fatal(err)
	}
	return n.As(k.Secret), k
}

// public opens a route for everybody.
func public(path string) func(map[string]any) {
	return func(spec map[string]any) {
		in, _ := spec["ingress"].(map[string]any)
		if in == nil {
			in = map[string]any{}
			spec["ingress"] = in
		}
		in["http"] = []any{map[string]any{"method": "POST", "path": path, "access": map[string]any{
			"public": map[string]any{"reason": "a test", "until": "2099-12-31"}}}}
	}
}

// TestA7ConfusedDeputy has somebody who may call a function, and not what it
// calls, try to get at that through it. vault only ever says its secret.
func TestA7ConfusedDeputy(t *testing.T) {
	n := newTown(t)
	n.deploy("deputy", []string{"role:viewer"}, []string{"vault", "open", "ops-vault"}, public("/deputy"))
	n.deploy("vault", []string{"deputy"}, nil)
	n.deploy("open", []string{"anyone", "deputy"}, nil)
	n.deploy("ops-vault", []string{"deputy", "role:viewer"}, nil)
	n.deploy("stranger", []string{"role:viewer"}, []string{"hidden"}) // vault does not know it, nor it vault
	n.deploy("hidden", nil, nil)
	n.deploy("front", nil, []string{"deputy"})

	low, _ := n.keyFor("low", bawn.RoleInvoker, "deputy", "stranger")
	viewer, _ := n.keyFor("viewer", bawn.RoleViewer)
	anonymous := func(t *testing.T, calls ...map[string]any) []got {
		t.Helper()
		body, err := json.Marshal(map[string]any{"calls": calls})
		if err != nil {
			t.Fatal(err)
		}
		res, err := n.HTTP.Post(n.Public()+"/deputy", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var out []got
		if b, _ := io.ReadAll(res.Body); json.Unmarshal(b, &out) != nil {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		return out
	}
	say := map[string]any{"say": secret}
	with := func(change map[string]any) map[string]any {
		c := map[string]any{"function": "vault", "payload": say}
		for k, v := range change {
			c[k] = v
		}
		return c
	}
	headers := func(kv ...string) map[string]any {
		h := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			h[kv[i]] = kv[i+1]
		}
		return map[string]any{"headers": h}
	}
	arn := "arn:aws:lambda:us-east-1:123456789012:function:vault"
	forgedContext := base64.StdEncoding.EncodeToString([]byte(`{"custom":{"principal":"key:admin","tenant":"main","roles":["admin"]},"client":{"installation_id":"admin"}}`))

	type result struct {
		status int
		kind   string
	}
	denied, unknown, ok := result{403, "AccessDeniedException"}, result{404, "ResourceNotFoundException"}, result{200, ""}
	for _, c := range []struct {
		name string
		out  []got
		want result
	}{
		{"who may call all", ask(t, n.Client, "deputy", with(nil)), ok},
		{"a key held to the deputy", ask(t, low, "deputy", with(nil)), denied},
		{"and an event that says otherwise", ask(t, low, "deputy", with(map[string]any{"payload": map[string]any{
			"say": secret, "isAdmin": true, "principal": "key:admin", "requestContext": map[string]any{"authorizer": map[string]any{"role": "admin"}}}})), denied},
		{"and the administrator's key in a header", ask(t, low, "deputy", with(headers("Authorization", "Bearer "+n.Context.Key))), denied},
		{"and headers like the platform's", ask(t, low, "deputy", with(headers(
			"X-Bawn-Principal", "key:admin", "X-Bawn-Origin", "node:self", "X-Bawn-Tenant", "main", "X-Forwarded-User", "admin",
			"X-Amz-Source-Account", "123456789012", "X-Amzn-Trace-Id", "Root=1-00000000-000000000000000000000000;Origin=node"))), denied},
		{"and a client context that names somebody", ask(t, low, "deputy", with(headers("X-Amz-Client-Context", forgedContext))), denied},
		{"nobody, by a public route", anonymous(t, with(nil)), denied},
		{"nobody, where anyone may", anonymous(t, with(map[string]any{"function": "open"})), ok},
		{"a role that the callers name", ask(t, viewer, "deputy", with(map[string]any{"function": "ops-vault"})), ok},
		{"a role that they do not name", ask(t, viewer, "deputy", with(nil)), denied},
		{"a caller that names it not, nor is named", ask(t, n.Client, "stranger", with(nil)), unknown},
		{"a caller that is not named", ask(t, n.Client, "stranger", with(map[string]any{"function": "hidden"})), denied},
		{"what is not there", ask(t, n.Client, "stranger", with(map[string]any{"function": "nothing"})), unknown},
		{"by an ARN", ask(t, n.Client, "stranger", with(map[string]any{"function": arn})), unknown},
		{"by an ARN with the live alias", ask(t, low, "deputy", with(map[string]any{"function": arn + ":live"})), denied},
		{"by an ARN of another account", ask(t, n.Client, "deputy", with(map[string]any{"function": strings.Replace(arn, "123456789012", "210987654321", 1)})), unknown},
		{"by the tenant's name", ask(t, n.Client, "stranger", with(map[string]any{"function": "main/vault"})), result{400, "ValidationException"}},
		{"by a way around", ask(t, n.Client, "stranger", with(map[string]any{"path": "/2015-03-31/functions/hidden/../vault/invocations"})), result{404, "UnknownOperationException"}},
		{"by a name of another form", ask(t, n.Client, "stranger", with(map[string]any{"function": "Vault_"})), unknown},
		{"itself, which it does not name", ask(t, n.Client, "deputy", with(map[string]any{"function": "deputy"})), unknown},
		{"with a dry run", ask(t, low, "deputy", with(headers("X-Amz-Invocation-Type", "DryRun"))), denied},
	} {
		if len(c.out) != 1 || c.out[0].Status != c.want.status || c.out[0].Type != c.want.kind || strings.Contains(c.out[0].Body, secret) != (c.want == ok) {
			t.Errorf("%s: %+v, want %v", c.name, c.out, c.want)
		}
		if c.want == denied && c.out[0].Body != `{"Type":"User","Message":"denied"}` {
			t.Errorf("%s: the function is told more than that it was denied: %s", c.name, c.out[0].Body)
		}
	}

	t.Run("through one more function", func(t *testing.T) {
		// The administrator may call vault, and deputy may; front may not.
		n.deploy("deputy", []string{"front"}, []string{"vault"})
		inner := map[string]any{"function": "deputy", "payload": map[string]any{"calls": []any{with(nil)}}}
		if out := ask(t, n.Client, "front", inner); strings.Contains(out[0].Body, secret) || !strings.Contains(out[0].Body, "denied") {
			t.Errorf("%+v", out)
		}
		n.deploy("vault", []string{"deputy", "front"}, nil)
		if out := ask(t, n.Client, "front", inner); !strings.Contains(out[0].Body, secret) {
			t.Errorf("when front is named: %+v", out)
		}
	})
	t.Run("by an older version that let more in", func(t *testing.T) {
		n.deploy("vault", nil, nil) // narrower than the version before
		for _, q := range []string{"1", "2"} {
			if out := ask(t, n.Client, "deputy", with(map[string]any{"qualifier": q})); out[0].Status != 403 || strings.Contains(out[0].Body, secret) {
				t.Errorf("version %s: %+v", q, out)
			}
		}
		n.deploy("vault", []string{"deputy"}, nil)
		if out := ask(t, n.Client, "deputy", with(map[string]any{"qualifier": "1"})); out[0].Status != 200 || out[0].Version != "1" {
			t.Errorf("when both let it in: %+v", out)
		}
	})
	t.Run("after the key was revoked", func(t *testing.T) {
		n.deploy("waiter", nil, []string{"open2"})
		n.deploy("open2", []string{"anyone", "waiter"}, nil) // who began need not even be known
		c, key := n.keyFor("soon-gone", bawn.RoleInvoker)
		done := make(chan string, 1)
		go func() {
			inv, err := c.Invoke(t.Context(), "waiter", "", []byte(`{"sleep":1.5,"calls":[{"function":"open2","payload":{"say":"the secret"}}]}`))
			if err != nil {
				done <- err.Error()
				return
			}
			defer inv.Body.Close()
			b, _ := io.ReadAll(inv.Body)
			done <- string(b)
		}()
		n.until("the call to run", func() bool {
			return len(n.records(func(r *bawn.Record) bool { return r.Function == "waiter" && r.Kind == bawn.KindDecision })) > 0
		})
		if err := n.RevokeKey(t.Context(), key.Key.ID); err != nil {
			t.Fatal(err)
		}
		if out := <-done; strings.Contains(out, secret) {
			t.Errorf("%s", out)
		}
		n.wantDenied("open2", "is not known any more")
	})
	t.Run("after the callee was made narrower", func(t *testing.T) {
		n.deploy("waiter", nil, []string{"later"})
		n.deploy("later", []string{"waiter"}, nil)
		done := make(chan []got, 1)
		go func() {
			var out []got
			inv, err := n.Invoke(t.Context(), "waiter", "", []byte(`{"sleep":2.5,"calls":[{"function":"later","payload":{"say":"the secret"}}]}`))
			if err == nil {
				b, _ := io.ReadAll(inv.Body)
				inv.Body.Close()
				json.Unmarshal(b, &out)
			}
			done <- out
		}()
		n.until("the call to run", func() bool {
			return len(n.records(func(r *bawn.Record) bool { return r.Function == "waiter" && r.Kind == bawn.KindDecision })) > 1
		})
		n.deploy("later", nil, nil)
		if out := <-done; len(out) != 1 || out[0].Status != 403 {
			t.Errorf("%+v", out)
		}
	})
	t.Run("the owner reads why", func(t *testing.T) {
		var lines []string
		if err := n.Logs(t.Context(), "stranger", client.LogQuery{}, func(l bawn.LogLine) error {
			if l.Platform && strings.Contains(l.Text, "was refused: ") {
				lines = append(lines, l.Text)
				if l.Invocation == "" {
					t.Errorf("the line is of no invocation: %s", l.Text)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(lines, "\n"); !strings.Contains(all, "main/vault") || !strings.Contains(all, "egress.functions") || !strings.Contains(all, "ingress.callers") {
			t.Errorf("lines: %s", all)
		}
	})
}

func (n *Node) until(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// wantDenied fails unless there is a record of a refused call of function.
func (n *Node) wantDenied(function, reason string) {
	n.t.Helper()
	var seen []string
	n.until(fmt.Sprintf("a refusal of %s for %q; there are %q", function, reason, seen), func() bool {
		seen = nil
		for _, r := range n.records(func(r *bawn.Record) bool { return r.Function == function && r.Outcome == "deny" }) {
			seen = append(seen, r.Reason)
		}
		return strings.Contains(strings.Join(seen, "\n"), reason)
	})
}
