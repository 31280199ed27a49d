package api_test

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// A form is one way to name things in a request. What stands in angle brackets
// is the id of another tenant's thing, or one that nobody has: <function>,
// <alias>, <artifact>, <approval>, <key>, <invocation>, <record>, <index>,
// <guardrail>, <label>, <domain>, <secret>, <issuer>, <revocation>, <tenant>, and <name> of a key. The function
// own is the caller's.
type form struct {
	path, body string
	operator   string // why an operator is told more; empty if not
}

const (
	ofTenants   = "tenants are for operators"
	newSpec     = `"spec": {"runtime": "python3.11", "handler": "app.handler", "owner": "me"`
	oidcIssuer  = `"kind": "oidc", "url": "https://login.example.org", "clientId": "bawn"`
	inPolicies  = `"text": "forbid (principal is Bawn::Cert, action, resource);"`
	allFunction = "/v1/functions/<function>"
)

// named says in which ways the requests of a route can name things of a tenant.
// A route that is not here fails the test; one that can name none has no forms.
var named = map[string][]form{
	"GET /openapi.json": {}, "GET /metrics": {}, "GET /v1/status": {}, "GET /v1/doctor": {}, "GET /v1/whoami": {},
	// A tenant whose people log in tells strangers where: what it names there is public.
	"GET /v1/login":                 {{path: "?tenant=<tenant>"}},
	"HEAD /v1/artifacts/{digest}":   {{path: "/v1/artifacts/<artifact>"}},
	"PUT /v1/artifacts/{digest}":    {{path: "/v1/artifacts/<artifact>"}},
	"GET /v1/functions":             {},
	"GET /v1/functions/{name}":      {{path: allFunction}, {path: allFunction + "?qualifier=<alias>"}, {path: allFunction + "?qualifier=1"}, {path: "/v1/functions/own?qualifier=<alias>"}},
	"DELETE /v1/functions/{name}":   {{path: allFunction}},
	"GET /v1/functions/{name}/diff": {{path: allFunction + "/diff"}, {path: allFunction + "/diff?old=1&new=<alias>"}, {path: "/v1/functions/own/diff?old=<alias>"}},

	"GET /v1/functions/{name}/versions": {{path: allFunction + "/versions"}},
	"POST /v1/functions/{name}/versions": {
		{path: allFunction + "/versions?dryRun=true", body: `{` + newSpec + `}, "artifact": "<artifact>"}`},
		{path: allFunction + "/versions?dryRun=true", body: `{` + newSpec + `}, "artifact": "OWN"}`},
		{path: "/v1/functions/own/versions", body: `{` + newSpec + `}, "artifact": "<artifact>"}`},
		{path: "/v1/functions/own/versions?dryRun=true", body: `{` + newSpec + `, "egress": {"functions": ["<function>"]}}, "artifact": "OWN"}`},
		{path: "/v1/functions/own/versions?dryRun=true", body: `{` + newSpec + `, "ingress": {"http": [{"method": "GET", "path": "/", "hosts": ["<domain>"]}]}}, "artifact": "OWN"}`},
		{path: "/v1/functions/own/versions?dryRun=true", body: `{` + newSpec + `, "ingress": {"callers": ["<function>"], "event": {"input": "none"}}}, "artifact": "OWN"}`},
	},
	"POST /v1/functions/{name}/tests": {
		{path: allFunction + "/tests", body: `{}`}, {path: allFunction + "/tests?qualifier=<alias>", body: `{}`},
		{path: "/v1/functions/own/tests?qualifier=<alias>", body: `{}`},
		{path: "/v1/functions/own/tests", body: `{` + newSpec + `}, "artifact": "<artifact>"}`},
	},
	"PUT /v1/functions/{name}/aliases/{alias}": {{path: allFunction + "/aliases/<alias>", body: `{"version": 1}`}},
	"POST /v1/functions/{name}/rollback":       {{path: allFunction + "/rollback", body: `{}`}, {path: allFunction + "/rollback", body: `{"to": 1}`}},
	"POST /v1/functions/{name}/invocations": {
		{path: allFunction + "/invocations", body: `{}`}, {path: allFunction + "/invocations?qualifier=<alias>", body: `{}`},
		{path: "/v1/functions/own/invocations?qualifier=<alias>", body: `{}`},
	},
	"GET /v1/functions/{name}/logs": {
		{path: allFunction + "/logs"}, {path: allFunction + "/logs?invocation=<invocation>"}, {path: "/v1/functions/own/logs?invocation=<invocation>"},
	},
	"GET /v1/functions/{name}/suggestion": {{path: allFunction + "/suggestion"}, {path: "/v1/functions/own/suggestion?qualifier=<alias>"}},
	"GET /v1/functions/{name}/perimeter":  {{path: allFunction + "/perimeter"}, {path: "/v1/functions/own/perimeter?qualifier=<alias>"}},
	"GET /v1/events":                      {{path: "/v1/events?limit=20&function=<function>"}, {path: "/v1/events?limit=20&invocation=<invocation>"}},

	"GET /v1/approvals":         {},
	"POST /v1/approvals/{id}":   {{path: "/v1/approvals/<approval>"}},
	"DELETE /v1/approvals/{id}": {{path: "/v1/approvals/<approval>"}},

	"POST /v1/backups": {},

	"GET /v1/policies":           {},
	"GET /v1/policies/{name}":    {{path: "/v1/policies/<guardrail>"}},
	"DELETE /v1/policies/{name}": {{path: "/v1/policies/<guardrail>"}},
	"PUT /v1/policies/{name}":    {{path: "/v1/policies/<guardrail>", body: `{` + inPolicies + `}`}},
	"POST /v1/policies": {
		{path: "/v1/policies", body: `{"name": "<guardrail>", ` + inPolicies + `, "cases": [{"principal": "role:viewer", "action": "read", "resource": "-", "allow": true}]}`},
		{path: "/v1/policies", body: `{"cases": [{"principal": "key:<key>", "action": "invoke", "resource": "<function>", "allow": true}]}`},
	},
	"GET /v1/labels":           {},
	"PUT /v1/labels/{name}":    {{path: "/v1/labels/<label>", body: `{"logRetention": 86400000000000}`}},
	"DELETE /v1/labels/{name}": {{path: "/v1/labels/<label>"}},

	"GET /v1/budget":        {{path: "/v1/budget?function=<function>"}, {path: "/v1/budget?tenant=<tenant>", operator: ofTenants}},
	"PUT /v1/budget":        {{path: "/v1/budget", body: `{"tenant": "<tenant>", "grants": []}`, operator: ofTenants}},
	"POST /v1/budget/lifts": {{path: "/v1/budget/lifts", body: `{"function": "<function>", "meter": "calls", "per": "day", "reason": "a test"}`}, {path: "/v1/budget/lifts", body: `{"tenant": "<tenant>", "meter": "calls", "per": "day", "reason": "a test"}`, operator: ofTenants}},
	"GET /v1/cost":          {{path: "/v1/cost?tenant=<tenant>", operator: ofTenants}},
	"GET /v1/prices":        {},
	"PUT /v1/prices":        {},

	"GET /v1/domains":             {},
	"GET /v1/domains/{domain}":    {{path: "/v1/domains/<domain>", operator: ofTenants}},
	"PUT /v1/domains/{domain}":    {{path: "/v1/domains/<domain>", body: `{"tenant": "globex"}`, operator: ofTenants}, {path: "/v1/domains/a.example.net", body: `{"tenant": "<tenant>"}`, operator: ofTenants}},
	"DELETE /v1/domains/{domain}": {{path: "/v1/domains/<domain>", operator: ofTenants}},

	"POST /v1/can": {
		{path: "/v1/can", body: `{"principal": "key:<key>", "action": "read", "resource": "-"}`},
		{path: "/v1/can", body: `{"principal": "key:<name>", "action": "read", "resource": "<function>"}`},
		{path: "/v1/can", body: `{"principal": "role:admin", "action": "invoke", "resource": "<function>"}`},
		{path: "/v1/can", body: `{"principal": "function:<function>", "action": "call", "resource": "own"}`},
	},
	"GET /v1/data":         {{path: "/v1/data?name=<function>"}, {path: "/v1/data?name=<name>"}},
	"GET /v1/explain/{id}": {{path: "/v1/explain/<record>"}, {path: "/v1/explain/<index>"}, {path: "/v1/explain/<invocation>"}},

	"GET /v1/audit":              {},
	"GET /v1/audit/entries/{id}": {{path: "/v1/audit/entries/<record>"}, {path: "/v1/audit/entries/<index>"}, {path: "/v1/audit/entries/<invocation>"}},
	"GET /v1/audit/file":         {}, // of the whole installation, or of nothing

	"GET /v1/tenants":                   {},
	"POST /v1/tenants":                  {{path: "/v1/tenants", body: `{"name": "<tenant>"}`, operator: ofTenants}},
	"GET /v1/tenants/{tenant}":          {{path: "/v1/tenants/<tenant>", operator: ofTenants}},
	"PUT /v1/tenants/{tenant}/quota":    {{path: "/v1/tenants/<tenant>/quota", body: `{"keys": 1}`, operator: ofTenants}},
	"POST /v1/tenants/{tenant}/suspend": {{path: "/v1/tenants/<tenant>/suspend", body: `{"reason": "a test"}`, operator: ofTenants}},
	"POST /v1/tenants/{tenant}/resume":  {{path: "/v1/tenants/<tenant>/resume", operator: ofTenants}},
	"DELETE /v1/tenants/{tenant}":       {{path: "/v1/tenants/<tenant>?dryRun=true", operator: ofTenants}, {path: "/v1/tenants/<tenant>?confirm=<tenant>", operator: ofTenants}},

	"GET /v1/issuers":           {},
	"POST /v1/issuers":          {},
	"GET /v1/issuers/{name}":    {{path: "/v1/issuers/<issuer>"}},
	"PUT /v1/issuers/{name}":    {{path: "/v1/issuers/<issuer>", body: `{` + oidcIssuer + `}`}},
	"DELETE /v1/issuers/{name}": {{path: "/v1/issuers/<issuer>"}},

	"GET /v1/revocations": {},
	"POST /v1/revocations": {
		{path: "/v1/revocations", body: `{"principal": "user:<issuer>:somebody"}`}, {path: "/v1/revocations", body: `{"principal": "issuer:<issuer>"}`},
	},
	"DELETE /v1/revocations/{id}": {{path: "/v1/revocations/<revocation>"}},

	"GET /v1/secrets":                  {},
	"GET /v1/secrets/{name}":           {{path: "/v1/secrets/<secret>"}},
	"PUT /v1/secrets/{name}":           {{path: "/v1/secrets/<secret>", body: `value`}},
	"POST /v1/secrets/{name}/versions": {{path: "/v1/secrets/<secret>/versions?window=0s", body: `value`}},
	"PUT /v1/secrets/{name}/labels":    {{path: "/v1/secrets/<secret>/labels", body: `{"labels": ["pii"]}`}},
	"GET /v1/secrets/{name}/users":     {{path: "/v1/secrets/<secret>/users"}},
	"PUT /v1/secrets/{name}/grants/{function}": {
		{path: "/v1/secrets/<secret>/grants/own"}, {path: "/v1/secrets/<secret>/grants/<function>"},
	},
	"DELETE /v1/secrets/{name}/grants/{function}": {
		{path: "/v1/secrets/<secret>/grants/own"}, {path: "/v1/secrets/<secret>/grants/<function>"},
	},
	"DELETE /v1/secrets/{name}": {{path: "/v1/secrets/<secret>"}},

	"GET /v1/keys":         {},
	"POST /v1/keys":        {{path: "/v1/keys", body: `{"name": "made", "role": "viewer", "functions": ["<function>"]}`}},
	"DELETE /v1/keys/{id}": {{path: "/v1/keys/<key>"}},
}

var holes = regexp.MustCompile(`<([a-z]+)>`)

// matrix is a node with things of the tenant acme, and those who may not know
// of them.
type matrix struct {
	t               *testing.T
	n               *bawntest.Node
	acme            *client.Client
	foreign, absent map[string]string // by kind, of equal length each
	own             string            // digest of a package that every tenant has
	who             map[string]string // keys
	marks           []string          // what only acme may see
}

func newMatrix(t *testing.T) *matrix {
	n := bawntest.NewNode(t, bawntest.Approvals)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := &matrix{t: t, n: n, who: map[string]string{"nobody": ""}}
	put := func(c *client.Client, text string) string {
		t.Helper()
		data := bawntest.Zip(t, map[string]string{"app.py": "def handler(e, c): return '" + text + "'\n"})
		_, err := c.PutArtifact(ctx, bawntest.Digest(data), int64(len(data)), strings.NewReader(string(data)))
		must(err)
		return bawntest.Digest(data)
	}
	tenant := func(name string) *client.Client {
		t.Helper()
		made, err := n.CreateTenant(ctx, name, bawn.Quota{})
		must(err)
		return n.As(made.Secret)
	}
	spec := func() map[string]any {
		return map[string]any{"runtime": "python3.11", "handler": "app.handler", "owner": "tests"}
	}
	m.acme = tenant("acme")

	// What acme has.
	digest := put(m.acme, "of acme alone")
	theirs := spec()
	theirs["description"] = "acme keeps it"
	_, err := m.acme.Deploy(ctx, "vault", theirs, digest, false)
	must(err)
	must(m.acme.SetAlias(ctx, "vault", "steady", 1))
	theirs["interior"] = map[string]any{"memory": "513MiB"}
	wide, err := m.acme.Deploy(ctx, "vault", theirs, digest, false)
	must(err)
	if wide.Pending == nil {
		t.Fatalf("it does not wait: %+v", wide)
	}
	key, err := m.acme.CreateKey(ctx, client.NewKey{Name: "theirs-only", Role: bawn.RoleViewer})
	must(err)
	_, err = m.acme.SetGuardrail(ctx, "hedge", "forbid (principal is Bawn::Cert, action, resource);", false)
	must(err)
	_, err = m.acme.CreateIssuer(ctx, client.NewIssuer{Name: "staff", Kind: bawn.IssuerOIDC, URL: "https://staff.example.org", Audience: "theirs"})
	must(err)
	revoked, err := m.acme.Revoke(ctx, client.NewRevocation{Principal: "user:staff:eve-of-acme"})
	must(err)
	_, err = m.acme.CreateSecret(ctx, "ledger", []byte("only-acme-knows"))
	must(err)
	_, err = m.acme.GrantSecret(ctx, "ledger", "vault")
	must(err)
	_, err = m.acme.SetLabel(ctx, "payroll", time.Hour)
	must(err)
	_, err = n.AddDomain(ctx, "books.example.org", "acme")
	must(err)
	// An attempt to call is an invocation, on a host without sandboxes too.
	if inv, err := m.acme.Invoke(ctx, "vault", "", []byte(`{}`)); err == nil {
		inv.Body.Close()
	}
	var last bawn.Record
	must(m.acme.Events(ctx, client.EventQuery{Function: "vault"}, func(r bawn.Record) error {
		if r.Invocation != "" {
			last = r
		}
		return nil
	}))
	if last.Invocation == "" {
		t.Fatal("acme has no invocation")
	}
	m.foreign = map[string]string{
		"function": "vault", "alias": "steady", "artifact": digest, "approval": wide.Pending.ID, "key": key.Key.ID, "invocation": last.Invocation,
		"record": last.ID, "index": strconv.FormatInt(last.Index, 10), "guardrail": "hedge", "label": "payroll", "domain": "books.example.org", "secret": "ledger", "issuer": "staff", "revocation": revoked.ID, "tenant": "acme", "name": "theirs-only",
	}
	m.absent = map[string]string{
		"function": "vaulx", "alias": "steadx", "artifact": "sha256:" + strings.Repeat("7", 64), "approval": bawn.NewID(), "key": strings.Repeat("5", 16), "invocation": bawn.NewID(),
		"record": bawn.NewID(), "index": strings.Repeat("9", 9), "guardrail": "hedgx", "label": "payrolx", "domain": "bookx.example.org", "secret": "ledgex", "issuer": "stafx", "revocation": strings.Repeat("6", 16), "tenant": "acmx", "name": "theirs-onlx",
	}
	m.marks = []string{"of acme alone", "books.example.org", "acme keeps it", "513MiB", "theirs-only", "staff.example.org", "eve-of-acme", "only-acme-knows", digest, wide.Pending.ID, key.Key.ID, last.ID, last.Invocation, revoked.ID}

	// Who tries, each with a function of its own.
	globex := tenant("globex")
	for _, c := range []*client.Client{globex, n.Client} {
		m.own = put(c, "own")
		_, err := c.Deploy(ctx, "own", spec(), m.own, false)
		must(err)
	}
	for _, r := range append(bawn.Roles(), "custom") {
		if r == bawn.RoleOperator {
			continue // there is none but in main
		}
		k, err := globex.CreateKey(ctx, client.NewKey{Name: "a-" + string(r), Role: r})
		must(err)
		m.who["globex "+string(r)] = k.Secret
	}
	held, err := globex.CreateKey(ctx, client.NewKey{Name: "held", Role: bawn.RoleAdmin, Functions: []string{"own"}})
	must(err)
	m.who["globex admin held to own"] = held.Secret
	gone, err := globex.CreateKey(ctx, client.NewKey{Name: "gone", Role: bawn.RoleAdmin})
	must(err)
	must(globex.RevokeKey(ctx, gone.Key.ID))
	m.who["revoked"] = gone.Secret
	initech, err := n.CreateTenant(ctx, "initech", bawn.Quota{})
	must(err)
	_, err = n.Suspend(ctx, "initech", "a test")
	must(err)
	m.who["suspended"] = initech.Secret
	m.who["main admin"], m.who["main operator"] = n.MustKey(bawn.RoleAdmin), n.Context.Key
	return m
}

var (
	chance = regexp.MustCompile(`bawn_[0-9a-f]{16}_[A-Za-z0-9_-]{43}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|"[0-9a-f]{16}"|"number":\d+,"digest":"sha256:[0-9a-f]{64}"|\d{4}-\d\d-\d\dT[0-9:.]+Z`)
	lines  = regexp.MustCompile(`(?m)^.+$`)
)

// try sends a request and returns what can be seen of the answer, with every id
// as its kind, and with what chance and the time make of it left out.
func (m *matrix) try(secret, method, url, body string, ids map[string]string) (seen, raw string) {
	m.t.Helper()
	fill := func(s string) string {
		s = holes.ReplaceAllStringFunc(s, func(hole string) string {
			id, ok := ids[hole[1:len(hole)-1]]
			if !ok {
				m.t.Fatalf("there is no kind %s", hole)
			}
			return id
		})
		return strings.ReplaceAll(s, "OWN", m.own)
	}
	req, err := http.NewRequest(method, fill(url), strings.NewReader(fill(body)))
	if err != nil {
		m.t.Fatal(err)
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := m.n.HTTP.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	raw = string(data)
	var heads []string
	for k, v := range res.Header {
		if k != "Date" && k != "Content-Length" { // of ids whose text differs in length, the body says as much
			heads = append(heads, fmt.Sprint(k, v))
		}
	}
	slices.Sort(heads)
	text := raw
	if res.Header.Get("Content-Type") == "application/x-ndjson" {
		text = lines.ReplaceAllString(text, "LINE") // records of the caller's own, which differ by time
	}
	text += " " + strings.Join(heads, " ")
	kinds := slices.SortedFunc(func(yield func(string) bool) {
		for k := range ids {
			if !yield(k) {
				return
			}
		}
	}, func(a, b string) int { return cmp.Compare(len(ids[b]), len(ids[a])) })
	for _, k := range kinds {
		if k != "index" {
			text = strings.ReplaceAll(text, ids[k], "<"+k+">")
		}
	}
	text = chance.ReplaceAllString(text, "CHANCE")
	if strings.Contains(url, "<index>") { // last: its few digits stand in many a random id
		text = strings.ReplaceAll(text, ids["index"], "<index>")
	}
	return fmt.Sprint(res.StatusCode, " ", text), raw
}

// work returns how many records there are and how often the store was asked.
func (m *matrix) work() (records, requests int) {
	m.t.Helper()
	_, text := call(m.t, m.n, m.n.Context.Key, "GET", "/metrics", "")
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "bawn_audit_records_total":
			records = int(v)
		case "bawn_store_requests_total":
			requests = int(v)
		}
	}
	if records == 0 || requests == 0 {
		m.t.Fatalf("the metrics lack what is to be compared:\n%.500s", text)
	}
	return records, requests
}

// same tries a request with acme's ids and with nobody's.
func (m *matrix) same(who, method, url, body string) {
	m.t.Helper()
	var told string
	// The node does things of its own at times: what is different is so again.
	for range 3 {
		var got [2]string
		for i, ids := range []map[string]string{m.foreign, m.absent} {
			records, requests := m.work()
			answer, raw := m.try(m.who[who], method, url, body, ids)
			r, q := m.work()
			got[i] = fmt.Sprintf("%s\n%d records, %d requests to the store", answer, r-records, q-requests)
			for _, mark := range m.marks {
				if strings.Contains(raw, mark) && !strings.Contains(fmt.Sprint(ids), mark) {
					m.t.Errorf("%s, %s %s: the answer has %q, which is acme's: %.500s", who, method, url, mark, raw)
				}
			}
		}
		if got[0] == got[1] {
			return
		}
		told = fmt.Sprintf("%s, %s %s %s: theirs and nobody's differ:\n%s\n%s", who, method, url, body, got[0], got[1])
	}
	m.t.Error(told)
}

// TestA10Matrix tries every route with every kind of another tenant's ids, as
// everybody who could, and with ids of the same shape that nobody has. Status,
// headers, body, the records that are made and the work of the store must be the
// same: nothing tells that there is such a thing. For tenants that is control J1.
func TestA10Matrix(t *testing.T) {
	m := newMatrix(t)
	seen := map[string]bool{}
	tried := 0
	for _, r := range everyRoute(t) {
		route := r.method + " " + r.path
		forms, ok := named[route]
		seen[route] = true
		if !ok {
			t.Errorf("%s has no entry: say in which ways its requests can name what a tenant has", route)
		}
		if strings.Contains(r.path, "{") && len(forms) == 0 {
			t.Errorf("%s has an id in its path and no form that says what of", route)
		}
		if len(forms) == 0 {
			for who, secret := range m.who {
				if who == "main operator" && route == "GET /metrics" || (r.path == "/v1/tenants" || r.path == "/v1/domains") && who == "main operator" || r.path == "/v1/backups" {
					continue
				}
				_, raw := m.try(secret, r.method, m.n.URL()+r.path, r.body(), nil)
				for _, mark := range m.marks {
					if strings.Contains(raw, mark) {
						t.Errorf("%s, %s: the answer has %q, which is acme's: %.500s", who, route, mark, raw)
					}
				}
			}
		}
		for _, f := range forms {
			if !strings.HasPrefix(f.path, "/") {
				f.path = r.path + f.path
			}
			if path, _, _ := strings.Cut(f.path, "?"); !fits(r.path, path) {
				t.Errorf("%s: the form %s is of another route", route, f.path)
			}
			for who := range m.who {
				if who == "main operator" && f.operator != "" {
					continue
				}
				m.same(who, r.method, m.n.URL()+f.path, f.body)
				tried++
			}
		}
	}
	for route := range named {
		if !seen[route] {
			t.Errorf("%s is no route any more", route)
		}
	}
	t.Logf("%d pairs of requests", tried)

	// Nothing of it touched what acme has.
	ctx := t.Context()
	if d, err := m.acme.Function(ctx, "vault", ""); err != nil || d.Version.Number != 1 || d.Function.Aliases["steady"] != 1 || d.Function.Latest != 1 {
		t.Errorf("acme's function: %+v %v", d, err)
	}
	if list, err := m.acme.Approvals(ctx); err != nil || len(list) != 1 {
		t.Errorf("acme's approvals: %v %v", list, err)
	}
	if list, err := m.acme.Keys(ctx); err != nil || len(list) != 2 {
		t.Errorf("acme's keys: %v %v", list, err)
	}
	if list, err := m.acme.Guardrails(ctx, false); err != nil || len(list) != 1 {
		t.Errorf("acme's guardrails: %v %v", list, err)
	}
	if list, err := m.acme.Issuers(ctx); err != nil || len(list) != 1 {
		t.Errorf("acme's issuers: %v %v", list, err)
	}
	if list, err := m.acme.Revocations(ctx); err != nil || len(list) != 1 {
		t.Errorf("acme's revocations: %v %v", list, err)
	}
}

// fits reports whether path, with its holes, is one of pattern.
func fits(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if want[i] != got[i] && !strings.HasPrefix(want[i], "{") {
			return false
		}
	}
	return true
}

// On the public listener a function is found by a route, which nobody's tenant
// is asked for, or by its name, in the tenant of the credential.
func TestA10PublicListener(t *testing.T) {
	m := newMatrix(t)
	const invoke = "/2015-03-31/functions/<function>/invocations"
	for who := range m.who {
		for _, path := range []string{
			invoke, invoke + "?Qualifier=<alias>", invoke + "?Qualifier=1", "/2015-03-31/functions/own/invocations?Qualifier=<alias>",
			"/2015-03-31/functions/<function>:<alias>/invocations",
			"/2015-03-31/functions/arn:aws:lambda:us-east-1:123456789012:function:<function>/invocations",
			"/2015-03-31/functions/<tenant>%2F<function>/invocations",
		} {
			m.same(who, "POST", m.n.Public()+path, `{}`)
		}
	}
}

// A route of another tenant that asks for a credential is as one that there is
// not, for whoever has a credential of another. That it is served at all shows to
// who has none, for they are asked for one; so it does no harm that acme has a
// record of each attempt, and nobody has one of a path that is not served.
func TestA10PublicRoutes(t *testing.T) {
	m := newMatrix(t)
	ctx := t.Context()
	ci, err := m.acme.CreateKey(ctx, client.NewKey{Name: "ci", Role: bawn.RoleDeployer})
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.acme.CreateKey(ctx, client.NewKey{Name: "second", Role: bawn.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	d, err := m.n.As(ci.Secret).Deploy(ctx, "routed", map[string]any{"runtime": "python3.11", "handler": "app.handler", "owner": "tests",
		"ingress": map[string]any{"http": []any{map[string]any{"method": "GET", "path": "/theirs"}, map[string]any{"method": "GET", "path": "/theirs/{id}"}}}}, m.foreign["artifact"], false)
	if err != nil || d.Pending == nil {
		t.Fatal(d, err)
	}
	if d, err = m.n.As(second.Secret).Approve(ctx, d.Pending.ID); err != nil || d.Version.Number != 1 {
		t.Fatal(d, err)
	}
	m.foreign["path"], m.absent["path"] = "theirs", "nobody"
	if seen, _ := m.try("", "GET", m.n.Public()+"/<path>", "", m.foreign); !strings.HasPrefix(seen, "401 ") {
		t.Fatalf("the route is not served: %s", seen)
	}
	for who := range m.who {
		switch who {
		case "nobody", "revoked", "suspended":
			continue
		}
		for _, path := range []string{"/<path>", "/<path>/1", "/<path>?a=b"} {
			theirs, _ := m.try(m.who[who], "GET", m.n.Public()+path, "", m.foreign)
			nobodys, _ := m.try(m.who[who], "GET", m.n.Public()+path, "", m.absent)
			if theirs != nobodys || !strings.HasPrefix(theirs, "404 ") {
				t.Errorf("%s, GET %s: theirs and nobody's differ:\n%s\n%s", who, path, theirs, nobodys)
			}
		}
	}
}

// With a tenant go the issuers and revocations that it had, and nobody gives it
// others afterwards.
func TestJ1RemovedTenantLeavesNothing(t *testing.T) {
	m := newMatrix(t)
	ctx := t.Context()
	plan, err := m.n.RemoveTenant(ctx, "acme", "", true)
	if err != nil || plan.Others["issuers"] != 1 || plan.Others["revocations"] != 1 || plan.Others["guardrails"] != 1 || plan.Approvals != 1 || plan.Keys != 2 || plan.Removed {
		t.Fatalf("the plan: %+v %v", plan, err)
	}
	if gone, err := m.n.RemoveTenant(ctx, "acme", "acme", false); err != nil || !gone.Removed {
		t.Fatalf("%+v %v", gone, err)
	}
	corp := client.NewIssuer{Name: "corp", Kind: bawn.IssuerOIDC, URL: "https://corp.example.org", Audience: "theirs"}
	if _, err := m.acme.CreateIssuer(ctx, corp); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("an issuer for a tenant that was removed: %v", err)
	}
	if _, err := m.acme.Functions(ctx); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("its administrator: %v", err)
	}
	// What acme's issuer stood for is free for others.
	corp.URL = "https://staff.example.org"
	if _, err := m.n.CreateIssuer(ctx, corp); err != nil {
		t.Errorf("its issuer is still in the way: %v", err)
	}
}
