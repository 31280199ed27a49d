package api_test

import (
	"fmt"
	"strings"
	"testing"

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
