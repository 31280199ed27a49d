package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// call sends one raw request to the control API.
func call(t *testing.T, n *bawntest.Node, key, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, n.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := n.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// refused checks that an answer is a refusal in the one shape that errors have.
func refused(t *testing.T, what string, res *http.Response, body string, status int, code bawn.Code, text string) {
	t.Helper()
	var p struct {
		Code             bawn.Code
		Message, Fix, ID string
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil && res.Request.Method != http.MethodHead {
		t.Errorf("%s: %d, not a problem: %q", what, res.StatusCode, body)
		return
	}
	if res.Request.Method == http.MethodHead {
		if res.StatusCode != status {
			t.Errorf("%s: %d, want %d", what, res.StatusCode, status)
		}
		return
	}
	if res.StatusCode != status || p.Code != code || !strings.Contains(p.Message, text) || p.ID == "" ||
		p.ID != res.Header.Get("X-Request-Id") || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: %d %s %q", what, res.StatusCode, res.Header.Get("Content-Type"), body)
	}
}

// route is one line of the OpenAPI document: the matrix below covers a route
// as soon as there is one.
type route struct{ method, path string }

func everyRoute(t *testing.T) []route {
	var doc struct {
		Paths map[string]map[string]struct{}
	}
	data, err := os.ReadFile("../../docs/reference/openapi.json")
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	routes := []route{{"GET", "/openapi.json"}, {"GET", "/metrics"}}
	for path, ops := range doc.Paths {
		for method := range ops {
			routes = append(routes, route{strings.ToUpper(method), path})
		}
	}
	if len(routes) < 19 {
		t.Fatalf("only %d routes", len(routes))
	}
	return routes
}

// fill puts something that is not there into a path; a call goes to a function
// that is, because the right to call is one to a function.
func (r route) fill() string {
	if strings.HasSuffix(r.path, "/invocations") {
		return strings.ReplaceAll(r.path, "{name}", "known")
	}
	return strings.NewReplacer("{name}", "nobody", "{digest}", "sha256:"+strings.Repeat("0", 64), "{alias}", "old", "{id}", "0000000000000000", "{tenant}", "nobody", "{domain}", "nobody.example.org").Replace(r.path)
}

// body is something well formed for the route.
func (r route) body() string {
	switch r.method + " " + r.path {
	case "POST /v1/functions/{name}/versions":
		return `{"spec": {"runtime": "provided", "owner": "me"}, "artifact": "sha256:` + strings.Repeat("0", 64) + `"}`
	case "PUT /v1/functions/{name}/aliases/{alias}":
		return `{"version": 1}`
	case "POST /v1/functions/{name}/rollback", "POST /v1/functions/{name}/invocations", "POST /v1/functions/{name}/tests":
		return `{}`
	case "POST /v1/issuers":
		return `{"name": "corp", "kind": "oidc", "url": "https://login.example.org", "clientId": "bawn"}`
	case "PUT /v1/issuers/{name}":
		return `{"kind": "oidc", "url": "https://login.example.org", "clientId": "bawn"}`
	case "POST /v1/revocations":
		return `{"principal": "cert:spiffe://example.org/nobody"}`
	case "PUT /v1/domains/{domain}":
		return `{"tenant": "main"}`
	case "PUT /v1/budget":
		return `{"grants": []}`
	case "POST /v1/budget/lifts":
		return `{"meter": "calls", "per": "day", "reason": "a test"}`
	case "PUT /v1/prices":
		return `{"call": 0, "cpu": 0, "memory": 0, "egress": 0}`
	case "POST /v1/policies":
		return `{"cases": []}`
	case "PUT /v1/policies/{name}":
		return `{"text": "forbid (principal, action, resource) when { false };"}`
	case "POST /v1/can":
		return `{"principal": "role:viewer", "action": "invoke", "resource": "known"}`
	case "POST /v1/backups":
		return `{"passphrase": "of a dozen characters"}`
	case "POST /v1/keys":
		return `{"name": "made", "role": "viewer"}`
	case "POST /v1/tenants":
		return `{"name": "main"}`
	case "PUT /v1/tenants/{tenant}/quota":
		return `{"keys": 1}`
	case "POST /v1/tenants/{tenant}/suspend":
		return `{"reason": "a test"}`
	case "PUT /v1/labels/{name}":
		return `{"logRetention": 86400000000000}`
	case "PUT /v1/secrets/{name}/labels":
		return `{"labels": ["pii"]}`
	}
	return ""
}

// Which role may use which route. What is not allowed is 403, and nothing but
// the status is told to a stranger.
func TestAuthorisationMatrix(t *testing.T) {
	n := bawntest.NewNode(t)
	keys := map[string]string{
		"": "", "wrong": "bawn_0000000000000000_" + strings.Repeat("A", 43),
		"viewer": n.MustKey(bawn.RoleViewer), "deployer": n.MustKey(bawn.RoleDeployer), "invoker": n.MustKey(bawn.RoleInvoker), "admin": n.MustKey(bawn.RoleAdmin),
		"operator": n.Context.Key,
	}
	may := func(who string, r route) bool {
		if r.path == "/v1/audit/file" { // of the whole installation
			return who == "operator"
		}
		if strings.HasPrefix(r.path, "/v1/audit") {
			return who == "admin" || who == "operator"
		}
		if strings.HasPrefix(r.path, "/v1/tenants") || r.path == "/v1/backups" {
			return who == "operator"
		}
		if strings.HasPrefix(r.path, "/v1/domains") && r.method != "GET" {
			return who == "operator"
		}
		if r.path == "/v1/prices" && r.method != "GET" {
			return who == "operator"
		}
		if strings.HasPrefix(r.path, "/v1/budget") && r.method != "GET" {
			return who == "admin" || who == "operator"
		}
		if strings.HasPrefix(r.path, "/v1/issuers") || strings.HasPrefix(r.path, "/v1/revocations") {
			return who == "admin" || who == "operator"
		}
		if r.path == "/v1/whoami" {
			return true
		}
		if r.path == "/v1/can" || r.path == "/v1/policies" { // asking changes nothing
			return who != "invoker"
		}
		switch who {
		case "admin", "operator":
			return true
		case "deployer":
			if strings.HasPrefix(r.path, "/v1/policies/") {
				return r.method == "GET"
			}
			if strings.HasPrefix(r.path, "/v1/secrets") || strings.HasPrefix(r.path, "/v1/labels") {
				return r.method == "GET"
			}
			return !strings.HasPrefix(r.path, "/v1/keys") && !strings.HasSuffix(r.path, "/invocations") && !strings.HasPrefix(r.path, "/v1/approvals/")
		case "viewer":
			return (r.method == "GET" || r.method == "HEAD") && !strings.HasPrefix(r.path, "/v1/keys")
		case "invoker":
			return strings.HasSuffix(r.path, "/invocations") || r.path == "/openapi.json"
		}
		return false
	}
	n.MustDeploy("known", map[string]any{"runtime": "python3.11", "handler": "app.handler"}, map[string]string{"app.py": "def handler(e, c): pass\n"})
	for _, r := range everyRoute(t) {
		if r.path == "/v1/status" {
			for who, key := range keys {
				res, body := call(t, n, key, r.method, r.path, "")
				known := who != "" && who != "wrong"
				if res.StatusCode != 200 || !strings.Contains(body, `"ready":true`) || strings.Contains(body, "version") != known {
					t.Errorf("%s: the status says %d %s", who, res.StatusCode, body)
				}
			}
			continue
		}
		if r.path == "/v1/login" {
			for who, key := range keys {
				if res, body := call(t, n, key, r.method, r.path, ""); res.StatusCode != 200 || !strings.Contains(body, `"issuers":[`) {
					t.Errorf("%s: where to log in: %d %s", who, res.StatusCode, body)
				}
			}
			continue
		}
		for who, key := range keys {
			res, body := call(t, n, key, r.method, r.fill(), r.body())
			what := fmt.Sprintf("%s: %s %s", who, r.method, r.path)
			switch {
			case key == "" || who == "wrong":
				refused(t, what, res, body, 401, bawn.CodeUnauthenticated, "")
			case may(who, r):
				// Calling needs a sandbox, which not every host has.
				if res.StatusCode == 401 || res.StatusCode == 403 || res.StatusCode >= 500 && res.StatusCode != 503 {
					t.Errorf("%s: %d %s", what, res.StatusCode, body)
				}
			default:
				refused(t, what, res, body, 403, bawn.CodeDenied, "")
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	n := bawntest.NewNode(t)
	digest := "sha256:" + strings.Repeat("0", 64)
	deploy := `{"spec": %s, "artifact": "` + digest + `"}`
	for _, c := range []struct {
		method, path, body string
		status             int
		code               bawn.Code
		text               string
	}{
		{"GET", "/v1/nonsense", "", 404, bawn.CodeNotFound, "no such route"},
		{"POST", "/v1/functions", "", 405, bawn.CodeNotFound, "no method POST"},
		{"GET", "/v1/functions?nonsense=1", "", 422, bawn.CodeUnprocessable, "nonsense"},
		{"GET", "/v1/functions/Nonsense", "", 400, bawn.CodeInvalid, "must begin with a letter"},
		{"GET", "/v1/functions/nobody", "", 404, bawn.CodeNotFound, "nobody"},
		{"GET", "/v1/functions/nobody?qualifier=0", "", 400, bawn.CodeInvalid, "version"},
		{"GET", "/v1/functions/nobody/logs?limit=x", "", 422, bawn.CodeUnprocessable, "limit"},
		{"GET", "/v1/audit/entries/999999999", "", 404, bawn.CodeNotFound, "no such record"},
		{"GET", "/v1/audit/file?path=../root.secret", "", 404, bawn.CodeNotFound, "publishes nothing"},
		{"GET", "/v1/audit/file?path=keys.pub", "", 404, bawn.CodeNotFound, "publishes nothing"},
		{"GET", "/v1/functions/nobody/logs", "", 404, bawn.CodeNotFound, "nobody"},
		{"GET", "/v1/events?kind=nonsense", "", 422, bawn.CodeUnprocessable, "kind"},
		{"GET", "/v1/events?since=yesterday", "", 422, bawn.CodeUnprocessable, "since"},
		{"PUT", "/v1/artifacts/nonsense", "x", 400, bawn.CodeInvalid, "digest"},
		{"POST", "/v1/functions/f/versions", `{`, 400, bawn.CodeInvalid, "body"},
		{"POST", "/v1/functions/f/versions", `{"spec": {}, "artifact": "x", "more": 1}`, 422, bawn.CodeUnprocessable, "more"},
		{"POST", "/v1/functions/f/versions", fmt.Sprintf(deploy, `{"runtme": "wasm"}`), 422, bawn.CodeUnprocessable, "did you mean runtime"},
		{"POST", "/v1/functions/f/versions", fmt.Sprintf(deploy, `{"runtime": "provided", "owner": "me"}`), 404, bawn.CodeNotFound, ""},
		{"POST", "/v1/functions/f/invocations", `{"a":`, 400, bawn.CodeInvalid, "not JSON"},
		{"POST", "/v1/functions/f/invocations", "\"\xff\"", 400, bawn.CodeInvalid, "UTF-8"},
		{"POST", "/v1/functions/nobody/invocations", "", 404, bawn.CodeNotFound, `no function "nobody"`},
		{"POST", "/v1/functions/nobody/invocations", `"` + strings.Repeat("a", bawn.MaxEventBytes) + `"`, 413, bawn.CodeTooLarge, "bytes"},
		{"POST", "/v1/keys", `{"name": "` + strings.Repeat("a", 2<<20) + `"}`, 413, bawn.CodeTooLarge, "bytes"},
		{"POST", "/v1/keys", `{"name": "x", "role": "the king"}`, 400, bawn.CodeInvalid, "role name"},
		{"POST", "/v1/keys", `{"name": "X", "role": "admin"}`, 400, bawn.CodeInvalid, "key name"},
		{"POST", "/v1/keys", `{"name": "x", "role": "admin", "ttl": "soon"}`, 400, bawn.CodeInvalid, "ttl"},
		{"DELETE", "/v1/keys/nobody", "", 404, bawn.CodeNotFound, "nobody"},
	} {
		res, body := call(t, n, n.Context.Key, c.method, c.path, c.body)
		refused(t, c.method+" "+c.path[:min(len(c.path), 60)], res, body, c.status, c.code, c.text)
		if strings.Contains(body, "/internal/") || strings.Contains(body, ".go:") {
			t.Errorf("%s: tells of the inside: %s", c.path, body)
		}
	}
}

// A chunked body has no length to be refused by: it is cut while it is read.
func TestBodiesAreBoundedWithoutALength(t *testing.T) {
	n := bawntest.NewNode(t)
	for path, status := range map[string]int{"/v1/functions/f/invocations": 413, "/v1/keys": 413} {
		body := io.MultiReader(strings.NewReader(`"`), io.LimitReader(zeros{}, bawn.MaxEventBytes+10))
		req, _ := http.NewRequest("POST", n.URL()+path, struct{ io.Reader }{body})
		req.Header.Set("Authorization", "Bearer "+n.Context.Key)
		req.Header.Set("Content-Type", "application/json")
		res, err := n.HTTP.Do(req)
		if err != nil {
			continue // it hung up before everything was sent, which is as good
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestArtifacts(t *testing.T) {
	n := bawntest.NewNode(t)
	// Larger than any JSON body may be, and hard to compress.
	var b bytes.Buffer
	for i := range 400_000 {
		fmt.Fprintf(&b, "%x", uint32(i)*2654435761)
	}
	data := bawntest.Zip(t, map[string]string{"app.py": "def handler(e, c): pass\n", "data": b.String()})
	if len(data) < 1<<20 {
		t.Fatalf("the package has only %d bytes", len(data))
	}
	digest := bawntest.Digest(data)
	if has, err := n.HasArtifact(t.Context(), digest); has || err != nil {
		t.Fatalf("before: %v, %v", has, err)
	}
	if a, err := n.PutArtifact(t.Context(), digest, int64(len(data)), bytes.NewReader(data)); err != nil || a.Files != 2 || a.Digest != digest {
		t.Fatalf("%+v, %v", a, err)
	}
	if has, err := n.HasArtifact(t.Context(), digest); !has || err != nil {
		t.Errorf("after: %v, %v", has, err)
	}
	// Other bytes than the digest says.
	if _, err := n.PutArtifact(t.Context(), "sha256:"+strings.Repeat("1", 64), int64(len(data)), bytes.NewReader(data)); bawn.ErrorCode(err) != bawn.CodeInvalid && bawn.ErrorCode(err) != bawn.CodeUnprocessable {
		t.Errorf("a wrong digest: %v", err)
	}
}

func TestDeployAndRead(t *testing.T) {
	n := bawntest.NewNode(t)
	spec := map[string]any{"runtime": "python3.11", "handler": "app.handler"}
	d := n.MustDeploy("f", spec, map[string]string{"app.py": "def handler(e, c): pass\n"})
	if !d.Created || d.Version.Number != 1 || d.Version.CreatedBy == "" || d.Previous != nil {
		t.Errorf("first: %+v", d)
	}
	if d := n.MustDeploy("f", spec, map[string]string{"app.py": "def handler(e, c): pass\n"}); d.Created || d.Version.Number != 1 {
		t.Errorf("the same: %+v", d)
	}
	d = n.MustDeploy("f", spec, map[string]string{"app.py": "def handler(e, c): return 2\n"})
	if !d.Created || d.Version.Number != 2 || d.Previous == nil || d.Previous.Number != 1 || len(d.Changes) != 1 || d.Changes[0].Field != "code" {
		t.Errorf("second: %+v", d)
	}
	list, err := n.Functions(t.Context())
	if err != nil || len(list) != 1 || list[0].Live.Number != 2 || list[0].Function.Name != "f" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if got, err := n.Function(t.Context(), "f", "1"); err != nil || got.Version.Number != 1 {
		t.Errorf("f@1: %+v, %v", got, err)
	}
	if vs, err := n.Versions(t.Context(), "f"); err != nil || len(vs) != 2 || vs[0].Number != 2 {
		t.Errorf("versions: %+v, %v", vs, err)
	}
	if err := n.SetAlias(t.Context(), "f", "old", 1); err != nil {
		t.Error(err)
	}
	if from, to, err := n.Rollback(t.Context(), "f", 0); err != nil || from != 2 || to != 1 {
		t.Errorf("rollback: %d to %d, %v", from, to, err)
	}
	// All of it lives through a restart.
	n.Restart()
	if got, err := n.Function(t.Context(), "f", ""); err != nil || got.Version.Number != 1 || got.Function.Aliases["old"] != 1 {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	if err := n.Remove(t.Context(), "f"); err != nil {
		t.Error(err)
	}
	if list, err := n.Functions(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("after the removal: %+v, %v", list, err)
	}
}

func TestEventsStream(t *testing.T) {
	n := bawntest.NewNode(t)
	n.MustDeploy("f", map[string]any{"runtime": "python3.11", "handler": "app.handler"}, map[string]string{"app.py": "def handler(e, c): pass\n"})
	var got []string
	err := n.Events(t.Context(), client.EventQuery{Function: "f", Kinds: []bawn.RecordKind{bawn.KindChange}}, func(r bawn.Record) error {
		got = append(got, r.Action+" "+r.Outcome)
		return nil
	})
	if err != nil || strings.Join(got, ", ") != "deploy allow, deploy ok" {
		t.Errorf("%q, %v", got, err)
	}
	// Following shows what comes later.
	enough := fmt.Errorf("enough")
	began := false
	err = n.Events(t.Context(), client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindChange, bawn.KindNode}, Follow: true}, func(r bawn.Record) error {
		if !began {
			began = true
			go n.Remove(t.Context(), "f")
		}
		if r.Action == "remove" {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("following: %v", err)
	}
	// One tenant's limit is of the newest.
	count := 0
	if err := n.Events(t.Context(), client.EventQuery{Limit: 2}, func(bawn.Record) error { count++; return nil }); err != nil || count != 2 {
		t.Errorf("limit 2 gave %d, %v", count, err)
	}
}

func TestInvoke(t *testing.T) {
	n := bawntest.NewNode(t)
	rt := n.NeedRuntime(bawntest.Pythons()...)
	n.MustDeploy("echo", map[string]any{"runtime": string(rt), "handler": "app.handler"}, map[string]string{"app.py": `
def handler(event, context):
    if event == "fail":
        raise ValueError("on purpose")
    return event
`})
	for in, want := range map[string]string{`{"a": [1, 2]}`: `{"a": [1, 2]}`, `"text"`: `"text"`, `null`: `null`} {
		if got := n.MustInvoke("echo", in); got != want {
			t.Errorf("%s gave %s", in, got)
		}
	}
	res, body := call(t, n, n.Context.Key, "POST", "/v1/functions/echo/invocations", "")
	if body != "{}" || res.Header.Get("X-Bawn-Invocation") == "" || res.Header.Get("X-Bawn-Version") != "1" || res.Header.Get("X-Bawn-Function-Error") != "" {
		t.Errorf("an empty body: %q %v", body, res.Header)
	}
	res, body = call(t, n, n.Context.Key, "POST", "/v1/functions/echo/invocations", `"fail"`)
	if res.StatusCode != 200 || res.Header.Get("X-Bawn-Function-Error") != "Unhandled" || !strings.Contains(body, "on purpose") {
		t.Errorf("a failing function: %d %q", res.StatusCode, body)
	}
	// A key held to another function must not call this one.
	if _, err := n.As(n.MustKey(bawn.RoleInvoker, "other")).Invoke(t.Context(), "echo", "", nil); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("a key for another function: %v", err)
	}
	// To look is not to run code: no instance lives now, and none is started for
	// who may only read. For who may, it is, and that is recorded.
	inspections := func() (count int) {
		t.Helper()
		err := n.Events(t.Context(), client.EventQuery{Function: "echo"}, func(r bawn.Record) error {
			if r.Action == "inspect" {
				count++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return count
	}
	for _, role := range []bawn.Role{bawn.RoleViewer, bawn.RoleDeployer} {
		if p, err := n.As(n.MustKey(role)).Perimeter(t.Context(), "echo", ""); err != nil || p.Version.Number != 1 || len(p.Instances) != 0 {
			t.Errorf("a %s's look: %+v, %v", role, p, err)
		}
	}
	if got := inspections(); got != 0 {
		t.Errorf("%d starts recorded, and none was allowed", got)
	}
	p, err := n.Perimeter(t.Context(), "echo", "")
	if got := inspections(); got != 1 {
		t.Errorf("%d starts recorded, want 1", got)
	}
	if err != nil || len(p.Instances) == 0 || len(p.Instances[0].Facts) == 0 {
		t.Fatalf("perimeter: %+v, %v", p, err)
	}
	for _, f := range p.Instances[0].Facts {
		if !f.OK {
			t.Errorf("%s is not as it should be: %s", f.Name, f.Value)
		}
	}
}
