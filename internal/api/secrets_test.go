package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// TestE2Roles has everybody try to keep, grant and read secrets: only who keeps
// secrets, an administrator and an operator change them, and nobody gets a value.
func TestE2Roles(t *testing.T) {
	n := bawntest.NewNode(t)
	n.MustDeploy("shop", map[string]any{"runtime": "python3.11", "handler": "app.handler"}, map[string]string{"app.py": "def handler(e, c): pass\n"})
	may := map[bawn.Role]bool{bawn.RoleSecretAdmin: true, bawn.RoleAdmin: true, bawn.RoleOperator: true}
	const marker = "sk-live-4eC39HqLyjWDarjtT1"
	for _, role := range bawn.Roles() {
		key := n.Context.Key
		if role != bawn.RoleOperator {
			key = n.MustKey(role)
		}
		name := "of-" + string(role)
		if !may[role] { // there is one that it could change
			if res, body := call(t, n, n.Context.Key, "PUT", "/v1/secrets/"+name, marker); res.StatusCode != 201 {
				t.Fatal(res.StatusCode, body)
			}
		}
		for _, r := range []struct{ method, path, body string }{
			{"PUT", "/v1/secrets/" + name, marker}, {"POST", "/v1/secrets/" + name + "/versions", marker},
			{"PUT", "/v1/secrets/" + name + "/grants/shop", ""}, {"DELETE", "/v1/secrets/" + name + "/grants/shop", ""},
			{"PUT", "/v1/secrets/" + name + "/grants/shop", ""},
			{"GET", "/v1/secrets/" + name, ""}, {"GET", "/v1/secrets/" + name + "/users", ""}, {"GET", "/v1/secrets", ""},
			{"DELETE", "/v1/secrets/" + name, ""},
		} {
			res, body := call(t, n, key, r.method, r.path, r.body)
			reads := r.method == "GET"
			allowed := may[role] || reads && role != bawn.RoleInvoker
			if ok := res.StatusCode < 300; ok != allowed || !ok && res.StatusCode != 403 {
				t.Errorf("%s: %s %s: %d %s", role, r.method, r.path, res.StatusCode, body)
			}
			if strings.Contains(body, marker) {
				t.Errorf("%s: %s %s: the answer has the value: %s", role, r.method, r.path, body)
			}
		}
		if !may[role] {
			if s, err := n.Secret(t.Context(), name); err != nil || len(s.Grants) > 0 || len(s.Versions) != 1 {
				t.Errorf("%s has changed the secret: %+v %v", role, s, err)
			}
		}
	}
	if err := n.Events(t.Context(), client.EventQuery{}, func(r bawn.Record) error {
		if strings.Contains(fmt.Sprint(r), marker) {
			t.Errorf("a record has the value: %+v", r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestE4RotationUnderCalls calls a function that reads a secret in every way there is
// from inside, while the secret is rotated 50 times: no call fails, and each sees what
// was current while it ran.
func TestE4RotationUnderCalls(t *testing.T) {
	n := bawntest.NewNode(t)
	n.NeedSandbox()
	ctx := t.Context()
	if _, err := n.CreateSecret(ctx, "pay", []byte("value-000")); err != nil {
		t.Fatal(err)
	}
	n.MustDeploy("shop", map[string]any{
		"runtime": "python3.11", "handler": "app.handler", "egress": map[string]any{"secrets": []any{map[string]any{"name": "pay", "file": true}}},
	}, map[string]string{"app.py": `
import json, os, urllib.request
E = os.environ["BAWN_ENDPOINT"]
def ask(path, headers, data=None):
    return json.load(urllib.request.urlopen(urllib.request.Request(E + path, data=data, headers=headers)))
def handler(e, c):
    own = ask("/secrets/pay", {"X-Bawn-Secret": "1"})["value"]
    ext = ask("/secretsmanager/get?secretId=pay", {"X-Aws-Parameters-Secrets-Token": os.environ["AWS_SESSION_TOKEN"]})["SecretString"]
    aws = ask("/", {"X-Amz-Target": "secretsmanager.GetSecretValue", "Content-Type": "application/x-amz-json-1.1"}, b'{"SecretId": "pay"}')["SecretString"]
    file = open("/run/secrets/pay").read()
    seen = [own, ext, aws, file]
    bare = ""
    try:
        urllib.request.urlopen(E + "/secrets/pay")
        bare = "fetched without the header"
    except urllib.error.HTTPError as err:
        bare = str(err.code)
    # Digits alone: a value itself would be redacted on its way out.
    return {"seen": [int(s.split("-")[1]) for s in seen], "bare": bare, "environ": any(s in open("/proc/self/environ").read() for s in seen)}
`})
	if _, err := n.GrantSecret(ctx, "pay", "shop"); err != nil {
		t.Fatal(err)
	}
	var newest atomic.Int64
	var stop atomic.Bool
	var calls atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				before := newest.Load()
				res, body := call(t, n, n.Context.Key, "POST", "/v1/functions/shop/invocations", `{}`)
				var out struct {
					Seen    []int64
					Bare    string
					Environ bool
				}
				if err := json.Unmarshal([]byte(body), &out); err != nil || res.StatusCode != 200 || len(out.Seen) != 4 || out.Bare != "401" || out.Environ {
					t.Errorf("%d %.500s", res.StatusCode, body)
					return
				}
				for i, v := range out.Seen {
					if v < before {
						t.Errorf("way %d saw %d after %d", i, v, before)
					}
				}
				calls.Add(1)
			}
		})
	}
	for i := int64(1); i <= 50; i++ {
		if _, err := n.RotateSecret(ctx, "pay", fmt.Appendf(nil, "value-%03d", i), 3*time.Second); err != nil {
			if strings.Contains(err.Error(), "windows") { // 16 at most: wait for one to end
				i--
				time.Sleep(100 * time.Millisecond)
				continue
			}
			t.Fatal(err)
		}
		newest.Store(i)
		time.Sleep(20 * time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d calls", calls.Load())
	if calls.Load() == 0 {
		t.Error("nothing was called")
	}
}

// TestE4NobodyKeepsAnOldValue has an instance that serves again read a secret: when the
// grant is taken back, the instance goes with what it has in its memory.
func TestE4NobodyKeepsAnOldValue(t *testing.T) {
	n := bawntest.NewNode(t)
	n.NeedSandbox()
	ctx := t.Context()
	if _, err := n.CreateSecret(ctx, "pay", []byte("value-000")); err != nil {
		t.Fatal(err)
	}
	n.MustDeploy("shop", map[string]any{
		"runtime": "python3.11", "handler": "app.handler", "interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}},
		"egress": map[string]any{"secrets": []any{"pay"}},
	}, map[string]string{"app.py": `
import os, urllib.request
kept = None
def handler(e, c):
    global kept
    had = kept is not None
    if not had:
        try:
            kept = urllib.request.urlopen(urllib.request.Request(os.environ["BAWN_ENDPOINT"] + "/secrets/pay", headers={"X-Bawn-Secret": "1"})).read()
        except urllib.error.HTTPError:
            pass
    return {"had": had, "has": kept is not None}
`})
	if _, err := n.GrantSecret(ctx, "pay", "shop"); err != nil {
		t.Fatal(err)
	}
	ask := func(want string) {
		t.Helper()
		if _, body := call(t, n, n.Context.Key, "POST", "/v1/functions/shop/invocations", `{}`); strings.ReplaceAll(body, " ", "") != want {
			t.Errorf("%s, want %s", body, want)
		}
	}
	ask(`{"had":false,"has":true}`)
	ask(`{"had":true,"has":true}`)
	if _, err := n.RevokeSecret(ctx, "pay", "shop"); err != nil {
		t.Fatal(err)
	}
	ask(`{"had":false,"has":false}`)
}
