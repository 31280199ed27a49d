package bawntest

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// TestA11AccessBehindTheRoute: whom a route lets in by its own access has no right
// of Bawn's. What a function calls on his behalf decides for itself, guardrails can
// speak of how he came in, and another key of his issuer takes an older one's place.
func TestA11AccessBehindTheRoute(t *testing.T) {
	good := newTokens(t)
	n := &town{Node: NewNode(t, allowing(good))}
	n.rt = n.NeedRuntime(Pythons()...)
	jwt := map[string]any{"jwt": map[string]any{"issuer": good.URL, "audience": "shop", "ca": good.ca}}
	n.deploy("vault", []string{"front"}, nil)
	n.deploy("shed", []string{"front", "anyone"}, nil)
	n.deploy("closed", []string{"anyone"}, nil)
	n.deploy("front", nil, []string{"vault", "shed", "closed"}, func(spec map[string]any) {
		spec["ingress"] = map[string]any{"http": []any{map[string]any{"method": "POST", "path": "/front", "access": jwt}}}
	})
	n.door("second", jwt)

	body := `{"calls":[{"function":"vault"},{"function":"shed"},{"function":"front"}]}`
	res, err := n.HTTP.Do(n.post("/front", body, bearer(good.token(nil))...)())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out []got
	if err := json.Unmarshal(raw, &out); err != nil || len(out) != 3 {
		t.Fatalf("%v: %d %s", err, res.StatusCode, raw)
	}
	if out[0].Status == http.StatusOK || out[1].Status != http.StatusOK || out[2].Status == http.StatusOK {
		t.Errorf("vault, shed and front answered %d, %d and %d; only the shed is for anyone", out[0].Status, out[1].Status, out[2].Status)
	}
	behalf := n.records(func(r *bawn.Record) bool {
		return r.Function == "shed" && r.Detail["origin"] == "user:jwt/"+good.URL+"#ann"
	})
	if len(behalf) == 0 {
		t.Error("no record says on whose behalf the shed was called")
	}

	t.Run("a guardrail on how somebody came in", func(t *testing.T) {
		if _, err := n.SetGuardrail(t.Context(), "no-tokens-at-second", `forbid (principal, action == Bawn::Action::"invoke", resource)
when { context.access == "jwt" && context has route && context.route == "POST /second" };`, false); err != nil {
			t.Fatal(err)
		}
		n.knock(t, []knock{
			{"forbidden", n.post("/second", "{}", bearer(good.token(nil))...), 403, nil},
			{"another route", n.post("/front", "{}", bearer(good.token(nil))...), 200, nil},
		})
	})
	t.Run("the issuer's keys are others", func(t *testing.T) {
		old := good.token(nil)
		n.knock(t, []knock{{"the first", n.post("/front", "{}", bearer(old)...), 200, nil}})
		good.rotate("two")
		// An unknown key has the issuer asked again, though not at every request.
		for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			res, err := n.HTTP.Do(n.post("/front", "{}", bearer(good.token(nil))...)())
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				break
			}
			if res.StatusCode != http.StatusUnauthorized || time.Now().After(end) {
				t.Fatalf("the second key: %d", res.StatusCode)
			}
		}
		// The issuer does not serve the first any more.
		n.knock(t, []knock{{"the first, again", n.post("/front", "{}", bearer(old)...), 401, nil}})
	})
}

// TestA11AccessByHost: routes of the same method and path on different hosts are each
// held to their own access.
func TestA11AccessByHost(t *testing.T) {
	n := newTown(t)
	for _, name := range []string{"a.example.com", "b.example.com"} {
		if _, err := n.AddDomain(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	route := func(access any, hosts ...string) any {
		r := map[string]any{"method": "POST", "path": "/same", "access": access}
		if len(hosts) > 0 {
			r["hosts"] = hosts
		}
		return r
	}
	open := map[string]any{"public": map[string]any{"reason": "a test", "until": "2999-12-31"}}
	n.MustDeploy("f", map[string]any{
		"runtime": string(n.rt), "handler": "app.handler",
		"ingress": map[string]any{"http": []any{route("sigv4", "a.example.com"), route(open, "b.example.com"), route("key")}},
	}, map[string]string{"app.py": "def handler(e, c): return e\n"})
	on := func(host string, header ...string) func() *http.Request {
		return func() *http.Request {
			r := n.post("/same", "{}", header...)()
			r.Host = host
			return r
		}
	}
	key := bearer(n.MustKey(bawn.RoleInvoker))
	for range 2 { // what was decided is remembered
		n.knock(t, []knock{
			{"signatures, nothing", on("a.example.com"), 401, nil},
			{"signatures, a key", on("a.example.com", key...), 403, nil},
			{"the node's, nothing", n.post("/same", "{}"), 401, nil},
			{"public, nothing", on("b.example.com"), 200, nil},
			{"the node's, a key", n.post("/same", "{}", key...), 200, nil},
		})
	}
}
