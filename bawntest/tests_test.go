package bawntest

import (
	"encoding/json"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// TestF10Deputy: what is tested may call others although nobody knows it yet, and
// lends nobody's rights: neither does who runs a test gain those of the one it
// calls as, nor does a test that calls as a stranger succeed by the rights of who
// runs it.
func TestF10Deputy(t *testing.T) {
	n := newTown(t)
	n.deploy("vault", []string{"front"}, nil)
	n.deploy("shed", []string{"front", "anyone"}, nil)
	spec := map[string]any{
		"runtime": string(n.rt), "handler": "app.handler", "owner": "me",
		"ingress": declared(map[string]any{"callers": []string{"door"}, "http": []any{map[string]any{"method": "POST", "path": "/front",
			"access": map[string]any{"public": map[string]any{"reason": "a test", "until": "2030-12-31"}}}}}),
		"egress": map[string]any{"functions": []string{"vault", "shed"}},
	}
	calls := func(names ...string) map[string]any {
		var list []any
		for _, name := range names {
			list = append(list, map[string]any{"function": name})
		}
		return map[string]any{"calls": list}
	}
	body := func(event any) map[string]any { return map[string]any{"body": event} }
	served := map[string]any{"response": []any{map[string]any{"status": 200}}}
	tests := []any{
		map[string]any{"name": "a key reaches the vault", "event": calls("vault"), "allow": served},
		map[string]any{"name": "a stranger does not", "as": "anonymous", "route": "POST /front", "event": body(calls("vault")),
			"deny": map[string]any{"at": "egress", "control": "A7"}},
		map[string]any{"name": "a stranger reaches what is for anyone", "as": "anonymous", "route": "POST /front", "event": body(calls("shed")), "allow": served},
		map[string]any{"name": "it calls nothing else", "event": calls("door"), "deny": map[string]any{"at": "egress"}},
		map[string]any{"name": "the door calls it", "as": "function:door", "event": map[string]any{"say": "come in"}, "allow": map[string]any{}},
		map[string]any{"name": "another function does not", "as": "function:other", "deny": map[string]any{"at": "ingress"}},
	}
	spec["tests"] = tests
	digest := n.MustPut(map[string]string{"app.py": agent})
	want := func(c *client.Client, fails ...string) {
		t.Helper()
		results, err := c.Test(t.Context(), "front", spec, digest)
		if err != nil {
			t.Fatal(err)
		}
		if len(results) != len(tests) {
			t.Fatalf("%d results", len(results))
		}
		for _, r := range results {
			ok := true
			for _, f := range fails {
				ok = ok && f != r.Name
			}
			if r.OK != ok {
				t.Errorf("%s: %+v", r.Name, r)
			}
		}
	}
	want(n.Client)
	if _, err := n.Function(t.Context(), "front", ""); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error("a test has made a version:", err)
	}
	if _, err := n.Deploy(t.Context(), "front", spec, digest, false); err != nil {
		t.Error(err)
	}
	// Must-deny is allowed now: the stranger reaches it. It is not promoted.
	n.deploy("vault", []string{"front", "anyone"}, nil)
	want(n.Client, "a stranger does not")
	spec["description"] = "another version"
	_, err := n.Deploy(t.Context(), "front", spec, digest, false)
	if bawn.ErrorCode(err) != bawn.CodeUnprocessable {
		t.Error("promoted:", err)
	}
	d, err := n.Function(t.Context(), "front", "")
	if err != nil || d.Version.Number != 1 {
		t.Error(d, err)
	}
	// Who may deploy and not call gains nothing by testing as somebody who may.
	n.deploy("vault", []string{"front"}, nil)
	ctx := n.Context
	ctx.Key = n.MustKey(bawn.RoleDeployer)
	dev, err := client.New(&ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	want(dev, "a key reaches the vault")

	tested := n.records(func(r *bawn.Record) bool { return r.Kind == bawn.KindOutcome && r.Action == "test" })
	if len(tested) == 0 {
		t.Error("no test is recorded")
	}
	for _, r := range tested {
		if r.Detail["as"] == "" || r.Principal == "key:test" {
			raw, _ := json.Marshal(r)
			t.Errorf("recorded %s", raw)
		}
	}
}
