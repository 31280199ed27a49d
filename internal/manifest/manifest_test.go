package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the golden files")

const example = `functions:
  hello:
    runtime: python3.11
    handler: app.handler
    code: .
    owner: web-team
    ingress:
      http: [{method: GET, path: /hello, access: {public: {reason: landing page, until: 2027-06-30}}}]
    interior: {memory: 256MiB, timeout: 10s, reuse: never}
`

// full uses every field there is.
const full = `# a comment
functions:
  b-second:
    runtime: nodejs22
    handler: src/index.api.handler
    code: build/app.zip
    description: |
      Two lines
      of text.
    owner: "Team <a@b.example>"
    environment: {PORT: "8080", greeting: "", Ünused_: x}
    ingress:
      http:
        - {method: ANY, path: "/api/{proxy+}", access: key}
        - {method: POST, path: "/a/{id}/b"}
      callers: [checkout, "role:ops", anyone]
    interior:
      memory: 1.5GiB
      cpu: 0.5
      timeout: 1m30s
      tmp: 512MiB
      pids: 32
      concurrency: 3
      exec: true
      reuse: {invocations: 100, maxAge: 10m}
    labels: [pii, eu]
    egress:
      functions: [receipts, a-first]
      hosts:
        - {host: API.stripe.com, ports: [443], inject: {secret: stripe-key, header: authorization, format: "Bearer {}"}, labels: [pii]}
        - {host: "*.Bücher.example", methods: [POST, GET], paths: ["/v1/*", /a], bytes: 10MiB, connections: 4, time: 30s}
        - {host: legacy.example.com, ports: [8081, 8080], plaintext: true}
        - {host: 10.1.0.0/16, ports: [9000]}
        - {host: "2001:DB8::1"}
      everything: {reason: a crawler, until: 2027-01-31}
      proxy: true
      secrets: [signing-key, {name: cert, file: true}]
      databases:
        orders: {postgres: "DB.internal/orders", user: shop, secret: orders-db, labels: [pii], connections: 2, statements: 100, timeout: 2s}
        cache: {redis: "cache.internal:6380", plaintext: true}
        ledger: {mysql: "[2001:db8::2]:3307"}
        archive: {postgres: "10.0.0.9:5433/old", user: reader}
      response:
        schema: {type: object, properties: {a: {type: number, maximum: 1.50}}, required: [a]}
        bytes: 1MiB
        headers: [x-total, content-type]
        cards: redact
    evidence: {logRetention: 30d}
  a-first:
    runtime: wasm
    owner: x
`

func TestExampleCompiles(t *testing.T) {
	f, err := Parse("bawn.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Compile("hello", f.Functions["hello"])
	if err != nil {
		t.Fatal(err)
	}
	want := bawn.Version{
		Function: "hello", Runtime: bawn.Python311, Handler: "app.handler", Owner: "web-team",
		Perimeter: bawn.Perimeter{
			Ingress: bawn.Ingress{HTTP: []bawn.Route{{Method: "GET", Path: "/hello", Access: bawn.Access{Public: &bawn.PublicAccess{
				Reason: "landing page", Until: time.Date(2027, 7, 1, 0, 0, 0, 0, time.UTC)}}, Inspect: &bawn.Inspection{Mode: "block", Level: 1}}}},
			Interior: bawn.Interior{Memory: 256 << 20, CPU: 1, Timeout: 10 * time.Second, Tmp: 64 << 20, PIDs: 64, Concurrency: 50},
			Evidence: bawn.Evidence{LogRetention: 7 * 24 * time.Hour},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !got.Perimeter.Interior.Reuse.Never() {
		t.Error("an instance would be reused")
	}
}

func TestEveryField(t *testing.T) {
	text := strings.ReplaceAll(full, ", Ünused_: x", "")
	f, err := Parse("bawn.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"b-second", "a-first"}, f.Order); d != "" {
		t.Error("order:", d)
	}
	got, err := Compile("b-second", f.Functions["b-second"])
	if err != nil {
		t.Fatal(err)
	}
	want := bawn.Version{
		Function: "b-second", Runtime: bawn.NodeJS22, Handler: "src/index.api.handler",
		Description: "Two lines\nof text.\n", Owner: "Team <a@b.example>",
		Environment: map[string]string{"PORT": "8080", "greeting": ""},
		Labels:      []string{"eu", "pii"},
		Perimeter: bawn.Perimeter{
			Ingress: bawn.Ingress{HTTP: []bawn.Route{{Method: "ANY", Path: "/api/{proxy+}"}, {Method: "POST", Path: "/a/{id}/b"}}, Callers: []string{"anyone", "checkout", "role:ops"}},
			Egress: bawn.Egress{
				Functions: []string{"a-first", "receipts"},
				Hosts: []bawn.Host{
					{Host: "api.stripe.com", Ports: []int{443}, Inject: &bawn.Inject{Secret: "stripe-key", Header: "Authorization", Format: "Bearer {}"}, Labels: []string{"pii"}},
					{Host: "*.xn--bcher-kva.example", Ports: []int{443}, Methods: []string{"GET", "POST"}, Paths: []string{"/a", "/v1/*"}, Bytes: 10 << 20, Connections: 4, Time: 30 * time.Second},
					{Host: "legacy.example.com", Ports: []int{8080, 8081}, Plaintext: true},
					{Host: "10.1.0.0/16", Ports: []int{9000}},
					{Host: "2001:db8::1", Ports: []int{443}},
				},
				Everything: &bawn.PublicAccess{Reason: "a crawler", Until: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)},
				Proxy:      true,
				Secrets:    []bawn.SecretUse{{Name: "cert", File: true}, {Name: "signing-key"}},
				Databases: []bawn.Database{
					{Name: "archive", Kind: bawn.Postgres, Address: "10.0.0.9:5433", Database: "old", User: "reader", Port: 5432},
					{Name: "cache", Kind: bawn.Redis, Address: "cache.internal:6380", Plaintext: true, Port: 6379},
					{Name: "ledger", Kind: bawn.MySQL, Address: "[2001:db8::2]:3307", Port: 3306},
					{Name: "orders", Kind: bawn.Postgres, Address: "db.internal:5432", Database: "orders", User: "shop", Secret: "orders-db", Port: 5433, Labels: []string{"pii"},
						Connections: 2, Statements: 100, Timeout: 2 * time.Second},
				},
				Response: &bawn.Response{Schema: `{"properties":{"a":{"maximum":1.50,"type":"number"}},"required":["a"],"type":"object"}`, Bytes: 1 << 20,
					Headers: []string{"Content-Type", "X-Total"}, Cards: "redact"},
			},
			Interior: bawn.Interior{Memory: 1536 << 20, CPU: 0.5, Timeout: 90 * time.Second, Tmp: 512 << 20, PIDs: 32, Concurrency: 3,
				Exec: true, Reuse: bawn.Reuse{Invocations: 100, MaxAge: 10 * time.Minute}},
			Evidence: bawn.Evidence{LogRetention: 30 * 24 * time.Hour},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	w, err := Compile("a-first", f.Functions["a-first"])
	if err != nil || w.Handler != "main.wasm" {
		t.Errorf("wasm handler %q, error %v", w.Handler, err)
	}
}

// A function survives being written as JSON and read back, and the JSON form
// holds the same human values.
func TestJSONForm(t *testing.T) {
	f, err := Parse("bawn.yaml", []byte(strings.ReplaceAll(full, ", Ünused_: x", "")))
	if err != nil {
		t.Fatal(err)
	}
	f2, err := Parse("bawn.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	for _, fn := range []Function{f.Functions["b-second"], f.Functions["a-first"], f2.Functions["hello"]} {
		raw, err := json.Marshal(fn)
		if err != nil {
			t.Fatal(err)
		}
		var back Function
		if err := json.Unmarshal(raw, &back); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if d := cmp.Diff(fn, back); d != "" {
			t.Errorf("%s: %s", raw, d)
		}
	}
	raw, _ := json.Marshal(f.Functions["b-second"].Interior)
	if want := `{"memory":"1536MiB","cpu":0.5,"timeout":"1m30s","tmp":"512MiB","pids":32,"concurrency":3,"exec":true,"reuse":{"invocations":100,"maxAge":"10m"}}`; string(raw) != want {
		t.Errorf("got %s\nwant %s", raw, want)
	}
}

// base is a right function with a hole for one more line of YAML.
func base(more string) string {
	return "functions:\n  f:\n    runtime: python3.11\n    handler: app.handler\n    owner: me\n" + more
}

// host is a right function with one rule.
func host(rule string) string { return base("    egress: {hosts: [{" + rule + "}]}\n") }

// refused are manifests with the one problem each must give. schema says
// whether the published schema, too, refuses it: it cannot say everything.
var refused = []struct {
	name, text, want string
	schema           bool
}{
	{"empty", "", `m.yaml:1:1: the manifest is empty; did you mean functions:?`, false},
	{"only comment", "# nothing\n", `m.yaml:1:1: the manifest is empty; did you mean functions:?`, false},
	{"top is a list", "- a\n", `m.yaml:1:1: the manifest must be a mapping, not a list`, true},
	{"unknown top", "function:\n  f: {}\n", "m.yaml:1:1: unknown field \"function\"; the manifest has functions; did you mean functions?\nm.yaml:1:1: the manifest needs the field \"functions\": names to functions", true},
	{"no function", "functions: {}\n", `m.yaml:1:12: there is no function here`, true},
	{"functions null", "functions:\n", `m.yaml:1:11: functions must be a mapping from names to functions, not nothing`, true},
	{"bad name", "functions:\n  My_Func:\n    runtime: wasm\n    owner: me\n", `m.yaml:2:3: function name "My_Func" must begin with a letter a-z; did you mean my-func?`, true},
	{"unknown field", base("    memmory: 1\n"), `m.yaml:6:5: unknown field "memmory"; a function has runtime, handler, code, description, owner, labels, environment, ingress, interior, egress, evidence`, true},
	{"near field", base("    enviroment: {}\n"), `m.yaml:6:5: unknown field "enviroment"; a function has runtime, handler, code, description, owner, labels, environment, ingress, interior, egress, evidence; did you mean environment?`, true},
	{"field in the wrong block", base("    memory: 256MiB\n"), `m.yaml:6:5: field "memory" belongs under interior`, true},
	{"near field, nested", base("    interior: {memry: 1GiB}\n"), `m.yaml:6:16: unknown field "memry"; interior has memory, cpu, timeout, tmp, pids, concurrency, exec, reuse; did you mean memory?`, true},
	{"duplicate field", base("    owner: you\n"), `m.yaml:6:5: field "owner" is given a second time; the first is on line 5`, false},
	{"duplicate function", base("  f:\n    runtime: wasm\n    owner: me\n"), `m.yaml:6:3: function "f" is given a second time`, false},
	{"no owner", "functions:\n  f: {runtime: wasm}\n", `m.yaml:2:6: a function needs the field "owner": the person or team to ask`, true},
	{"blank owner", "functions:\n  f: {runtime: wasm, owner: ' '}\n", `m.yaml:2:29: owner is empty`, true},
	{"owner is a number", "functions:\n  f: {runtime: wasm, owner: 12}\n", `m.yaml:2:29: owner must be text, not the number "12"; did you mean "12"?`, true},
	{"near runtime", "functions:\n  f: {runtime: python3.1, handler: a.b, owner: me}\n", `m.yaml:2:16: unknown runtime "python3.1"; there are python3.11, python3.12, python3.13, nodejs20, nodejs22, provided, wasm; did you mean python3.11?`, true},
	{"handler missing", "functions:\n  f: {runtime: python3.11, owner: me}\n", `m.yaml:2:6: a python function needs the field "handler": module.function; did you mean app.handler?`, false},
	{"handler is a file", "functions:\n  f: {runtime: nodejs20, handler: ./index.js, owner: me}\n", `m.yaml:2:35: handler "./index.js" is not file.function; did you mean index.handler?`, false},
	{"handler climbs", "functions:\n  f: {runtime: python3.11, handler: ../x.handler, owner: me}\n", `m.yaml:2:37: handler "../x.handler" is not module.function`, false},
	{"wasm handler", "functions:\n  f: {runtime: wasm, handler: /a.wasm, owner: me}\n", `m.yaml:2:31: handler "/a.wasm" is not the name of a .wasm file in the package; did you mean main.wasm?`, false},
	{"size without unit", base("    interior: {memory: 256}\n"), `m.yaml:6:24: "256" is not a size: want a number and B, KiB, MiB or GiB; did you mean 256MiB?`, true},
	{"size in wrong unit", base("    interior: {memory: 256MB}\n"), `m.yaml:6:24: "256MB" is not a size: want a number and B, KiB, MiB or GiB; did you mean 256MiB?`, true},
	{"size too small", base("    interior: {memory: 1MiB}\n"), `m.yaml:6:24: memory 1MiB is too little, at least 32MiB is needed`, false},
	{"size too big", base("    interior: {memory: 1000GiB}\n"), `m.yaml:6:24: memory 1000GiB is too much, at most 10GiB is allowed`, false},
	{"size is a list", base("    interior: {memory: [1]}\n"), `m.yaml:6:24: memory must be a size such as 256MiB, not a list`, true},
	{"tmp over memory", base("    interior: {memory: 64MiB, tmp: 65MiB}\n"), `m.yaml:6:36: tmp 65MiB is more than memory 64MiB, which /tmp counts towards`, false},
	{"duration without unit", base("    interior: {timeout: 10}\n"), `m.yaml:6:25: "10" is not a duration: want numbers with ms, s, m, h or d; did you mean 10s?`, true},
	{"duration too long", base("    interior: {timeout: 16m}\n"), `m.yaml:6:25: timeout 16m is too much, at most 15m is allowed`, false},
	{"duration zero", base("    interior: {timeout: 0s}\n"), `m.yaml:6:25: timeout 0s is too little, at least 10ms is needed`, false},
	{"cpu text", base("    interior: {cpu: 500m}\n"), `m.yaml:6:21: cpu must be a number, not the text "500m"`, true},
	{"cpu nan", base("    interior: {cpu: .nan}\n"), `m.yaml:6:21: cpu .nan must be a number from 0.05 to 64`, false},
	{"cpu zero", base("    interior: {cpu: 0}\n"), `m.yaml:6:21: cpu 0 must be a number from 0.05 to 64`, true},
	{"pids fraction", base("    interior: {pids: 20.5}\n"), `m.yaml:6:22: pids must be a whole number, not the number "20.5"`, true},
	{"pids few", base("    interior: {pids: 3}\n"), `m.yaml:6:22: pids 3 must be a whole number from 16 to 4096`, true},
	{"concurrency none", base("    interior: {concurrency: 0}\n"), `m.yaml:6:29: concurrency 0 must be a whole number from 1 to 1000`, true},
	{"exec text", base("    interior: {exec: yes}\n"), `m.yaml:6:22: exec must be true or false, not the text "yes"`, true},
	{"reuse word", base("    interior: {reuse: nevr}\n"), `m.yaml:6:23: reuse must be never, {invocations: N} or {maxAge: 10m}, not the text "nevr"; did you mean never?`, true},
	{"reuse empty", base("    interior: {reuse: {}}\n"), `m.yaml:6:23: reuse says neither invocations nor maxAge; did you mean never?`, false},
	{"reuse zero", base("    interior: {reuse: {invocations: 0}}\n"), `m.yaml:6:37: invocations 0 must be a whole number from 1 to 1000000`, true},
	{"retention", base("    evidence: {logRetention: 401d}\n"), `m.yaml:6:30: logRetention 401d is too much, at most 400d is allowed`, false},
	{"egress has no such field", base("    egress: {function: [a]}\n"), `m.yaml:6:14: unknown field "function"; egress has functions, hosts, everything, proxy, secrets, databases, response; did you mean functions?`, true},
	{"called function's name", base("    egress: {functions: [a, b_c]}\n"), `m.yaml:6:29: function name "b_c" has the character '_'; only a-z, 0-9 and '-' are allowed; did you mean b-c?`, true},
	{"called function of a tenant", base("    egress: {functions: [acme/a]}\n"), `m.yaml:6:26: function name "acme/a" has the character '/'; only a-z, 0-9 and '-' are allowed`, true},
	{"called twice", base("    egress: {functions: [a, b, a]}\n"), `m.yaml:6:25: functions names "a" a second time`, false},
	{"host is a URL", host("host: https://api.example.com/v1"), `m.yaml:6:29: host "https://api.example.com/v1" is a URL; a rule is about a host, its ports and paths stand in fields of their own; did you mean api.example.com?`, true},
	{"host with a port", host("host: 'api.example.com:8443'"), `m.yaml:6:29: host "api.example.com:8443" has a port in it; did you mean host: api.example.com with ports: [8443]?`, false},
	{"host with a path", host("host: api.example.com/v1"), `m.yaml:6:29: host "api.example.com/v1" is no range; a path belongs into paths; did you mean api.example.com?`, true},
	{"host with a user", host("host: me@api.example.com"), `m.yaml:6:29: host "me@api.example.com" has a user in it; only a name, an address or a range is meant`, true},
	{"host with a dot at the end", host("host: api.example.com."), `m.yaml:6:29: host "api.example.com." ends with a dot; did you mean api.example.com?`, false},
	{"every host", host("host: '*'"), `m.yaml:6:29: host "*" is every host; did you mean everything: {reason: …, until: YEAR-MONTH-DAY}?`, false},
	{"every address", host("host: 0.0.0.0/0"), `m.yaml:6:29: host "0.0.0.0/0" is every address; did you mean everything: {reason: …, until: YEAR-MONTH-DAY}?`, false},
	{"range with bits", host("host: 10.1.2.3/16"), `m.yaml:6:29: host "10.1.2.3/16" has bits beyond the length of the range; did you mean 10.1.0.0/16?`, false},
	{"mapped address", host("host: '::ffff:1.2.3.4'"), `m.yaml:6:29: host "::ffff:1.2.3.4" is a mapped IPv4 address; did you mean 1.2.3.4?`, false},
	{"address with a zone", host("host: 'fe80::1%eth0'"), `m.yaml:6:29: host "fe80::1%eth0" has a zone; it says nothing outside of one host`, false},
	{"odd address", host("host: 0x7f.1"), `m.yaml:6:29: host "0x7f.1" ends like an address and is none; write an IPv4 address as four decimal numbers`, false},
	{"decimal address", host("host: '2130706433'"), `m.yaml:6:29: host "2130706433" ends like an address and is none; write an IPv4 address as four decimal numbers`, false},
	{"hexadecimal address", host("host: '0x7f000001'"), `m.yaml:6:29: host "0x7f000001" ends like an address and is none; write an IPv4 address as four decimal numbers`, false},
	{"localhost", host("host: localhost"), `m.yaml:6:29: host "localhost" is the sandbox itself, where nothing outside is`, false},
	{"public suffix", host("host: '*.co.uk'"), `m.yaml:6:29: host "*.co.uk" is every name under a public suffix; name the domains`, false},
	{"top level", host("host: '*.newtld'"), `m.yaml:6:29: host "*.newtld" is every name under a public suffix; name the domains`, false},
	{"star in the middle", host("host: 'api.*.example.com'"), `m.yaml:6:29: host "api.*.example.com" has a * that is not its first label; *.NAME stands for one label in front of NAME; did you mean *.example.com?`, false},
	{"star in a label", host("host: 'api-*.example.com'"), `m.yaml:6:29: host "api-*.example.com" has a * that is not its first label; *.NAME stands for one label in front of NAME; did you mean *.example.com?`, false},
	{"host with an underscore", host("host: a_b.example.com"), `m.yaml:6:29: host "a_b.example.com" is no name: labels of letters, digits and - with dots between them, at most 253 characters`, false},
	{"no host", host("ports: [443]"), `m.yaml:6:22: a host needs the field "host": a name, *.NAME for one label in front of it, an address, or a CIDR range; the last two need the operator's leave`, true},
	{"near field of a host", host("host: a.example, port: [443]"), `m.yaml:6:40: unknown field "port"; a host has host, ports, plaintext, methods, paths, inject, labels, bytes, connections, time; did you mean ports?`, true},
	{"port as one number", host("host: a.example, ports: 443"), `m.yaml:6:47: ports must be a list, not the number "443"`, true},
	{"port too high", host("host: a.example, ports: [65536]"), `m.yaml:6:48: port 65536 must be a whole number from 1 to 65535`, true},
	{"port of the Runtime API", host("host: a.example, ports: [9001]"), `m.yaml:6:48: port 9001 is Bawn's own in every sandbox: the Lambda Runtime API`, false},
	{"port of the endpoint", host("host: a.example, ports: [443, 9002]"), `m.yaml:6:53: port 9002 is Bawn's own in every sandbox: the endpoint for secrets and calls`, false},
	{"port of the proxy", host("host: a.example, ports: [9003], plaintext: true"), `m.yaml:6:48: port 9003 is Bawn's own in every sandbox: the proxy for tools that want one`, false},
	{"no port", host("host: a.example, ports: []"), `m.yaml:6:47: ports is empty; leave it out for the default`, false},
	{"port twice", host("host: a.example, ports: [443, 443]"), `m.yaml:6:47: ports names 443 a second time`, false},
	{"plaintext on the port of TLS", host("host: a.example, ports: [443], plaintext: true"), `m.yaml:6:47: port 443 is for TLS, and plaintext means none; did you mean a rule of its own for it, without plaintext?`, false},
	{"TLS on the port of HTTP", host("host: a.example, ports: [80]"), `m.yaml:6:47: port 80 is for plain HTTP, and TLS is what goes outside; did you mean port 443, or plaintext: true?`, false},
	{"method", host("host: a.example, methods: [get]"), `m.yaml:6:50: unknown method "get"; there are GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS; did you mean GET?`, true},
	{"path without a slash", host("host: a.example, paths: [v1]"), `m.yaml:6:48: path "v1" must begin with /; did you mean /v1?`, true},
	{"path that climbs", host("host: a.example, paths: [/v1/../x]"), `m.yaml:6:48: path "/v1/../x" has the segment ".."`, false},
	{"path with a star inside", host("host: a.example, paths: ['/v1*']"), `m.yaml:6:48: path "/v1*" has a * that is not its last segment; /* at the end stands for everything below`, false},
	{"path with a query", host("host: a.example, paths: ['/v1?x=1']"), `m.yaml:6:48: path "/v1?x=1" has a query; a rule is about the path alone; did you mean /v1?`, false},
	{"path with an escape", host("host: a.example, paths: [/a%2fb]"), `m.yaml:6:48: path "/a%2fb" has an escape (%): write the character itself, requests are decoded before they are matched`, false},
	{"requests to an address", host("host: 10.0.0.1, methods: [GET]"), `m.yaml:6:29: a rule about requests over TLS needs a name, not an address`, false},
	{"inject without TLS", host("host: a.example, plaintext: true, inject: {secret: k, header: Authorization}"), `m.yaml:6:65: a credential is not sent without TLS: a rule with plaintext cannot inject`, false},
	{"inject to an address", host("host: 10.0.0.1, inject: {secret: k, header: Authorization}"), `m.yaml:6:47: a credential is sent to a name that TLS proves, not to an address`, false},
	{"inject into Host", host("host: a.example, inject: {secret: k, header: host}"), `m.yaml:6:68: header Host says how a message travels, not who sends it; nothing is put into it`, false},
	{"inject into a proxy's header", host("host: a.example, inject: {secret: k, header: proxy-authorization}"), `m.yaml:6:68: header Proxy-Authorization says how a message travels, not who sends it; nothing is put into it`, false},
	{"inject into no header", host("host: a.example, inject: {secret: k, header: 'a b'}"), `m.yaml:6:68: "a b" is not a header's name`, true},
	{"format without a place", host("host: a.example, inject: {secret: k, header: X-Key, format: Bearer}"), `m.yaml:6:83: format "Bearer" must hold {} once, where the secret goes; did you mean Bearer {}?`, true},
	{"format with a line break", host(`host: a.example, inject: {secret: k, header: X-Key, format: "{}\r\nX: y"}`), `m.yaml:6:83: format "{}\r\nX: y" is not a header's value of at most 256 printable ASCII characters`, false},
	{"bytes too many", host("host: a.example, bytes: 2000GiB"), `m.yaml:6:47: bytes 2000GiB is too much, at most 1024GiB is allowed`, false},
	{"connections too many", host("host: a.example, connections: 1001"), `m.yaml:6:53: connections 1001 must be a whole number from 1 to 1000`, true},
	{"label", host("host: a.example, labels: [PII]"), `m.yaml:6:49: label name "PII" must begin with a letter a-z; did you mean pii?`, true},
	{"label twice", host("host: a.example, labels: [pii, pii]"), `m.yaml:6:48: labels names "pii" a second time`, false},
	{"rule twice", base("    egress: {hosts: [{host: a.example}, {host: A.example, ports: [8443, 443]}]}\n"), `m.yaml:6:21: two rules are about a.example port 443; the second would never count`, false},
	{"rule with and without TLS", base("    egress: {hosts: [{host: a.example, ports: [8080]}, {host: a.example, ports: [8080], plaintext: true}]}\n"), `m.yaml:6:21: two rules are about a.example port 8080, one with plaintext and one without`, false},
	{"rule that reads and one that does not", base("    egress: {hosts: [{host: a.example}, {host: a.example, methods: [GET]}]}\n"), `m.yaml:6:21: two rules are about a.example port 443, one about requests (methods, paths, inject) and one about connections`, false},
	{"hosts in the wrong place", base("    hosts: []\n"), `m.yaml:6:5: field "hosts" belongs under egress`, true},
	{"everything without more", base("    egress: {everything: true}\n"), `m.yaml:6:26: everything must be a mapping, not the boolean "true"`, true},
	{"everything without an end", base("    egress: {everything: {reason: x}}\n"), `m.yaml:6:26: everything needs the field "until": the last day, in UTC, on which it may`, true},
	{"secret twice", base("    egress: {secrets: [a, {name: a, file: true}]}\n"), `m.yaml:6:23: secrets names "a" a second time`, false},
	{"secret's name", base("    egress: {secrets: [STRIPE_KEY]}\n"), `m.yaml:6:24: secret name "STRIPE_KEY" must begin with a letter a-z; did you mean stripe-key?`, true},
	{"secret is a path", base("    egress: {secrets: [{name: a, file: /x}]}\n"), `m.yaml:6:40: file must be true or false, not the text "/x"`, true},
	{"database of no kind", base("    egress: {databases: {a: {user: x}}}\n"), `m.yaml:6:29: a database says of which kind it is, and where: postgres, mysql or redis; did you mean postgres: "db.internal:5432/orders"?`, false},
	{"database of two kinds", base("    egress: {databases: {a: {redis: r, mysql: m}}}\n"), `m.yaml:6:37: a database is of one kind, not mysql and redis`, false},
	{"database as a URL", base("    egress: {databases: {a: {postgres: 'postgres://u:p@db/x', user: u}}}\n"), `m.yaml:6:40: postgres is a URL; HOST:PORT/DATABASE is wanted, user and password stand in fields of their own; did you mean db.internal:5432/orders?`, false},
	{"postgres without a database", base("    egress: {databases: {a: {postgres: 'db:5432', user: u}}}\n"), `m.yaml:6:40: postgres "db:5432" names no database: want HOST:PORT/DATABASE; did you mean db.internal:5432/orders?`, false},
	{"postgres without a user", base("    egress: {databases: {a: {postgres: 'db:5432/x'}}}\n"), `m.yaml:6:29: a postgres database needs the field "user": as whom Bawn logs in`, false},
	{"redis with a secret", base("    egress: {databases: {a: {redis: 'db:6379', secret: s}}}\n"), `m.yaml:6:56: secret is for postgres; to redis the function logs in itself, with a secret of egress.secrets`, false},
	{"database's host", base("    egress: {databases: {a: {redis: '*.db.internal'}}}\n"), `m.yaml:6:37: redis "*.db.internal" has no good host: want HOST:PORT; did you mean db.internal:6379?`, false},
	{"database's port", base("    egress: {databases: {a: {redis: 'db:0'}}}\n"), `m.yaml:6:37: redis "db:0" has no good port; did you mean db.internal:6379?`, false},
	{"database twice", base("    egress: {databases: {a: {redis: d}, a: {redis: e}}}\n"), `m.yaml:6:41: database "a" is given a second time`, false},
	{"kind of database", base("    egress: {databases: {a: {postgresql: 'db/x', user: u}}}\n"), `m.yaml:6:30: unknown field "postgresql"; a database has postgres, mysql, redis, user, secret, plaintext, labels, connections, statements, timeout; did you mean postgres?`, true},
	{"response schema is none", base("    egress: {response: {schema: {type: objekt}}}\n"), `m.yaml:6:33: this is no JSON Schema: at '/type': got string, want array`, false},
	{"response schema refers outside", base("    egress: {response: {schema: {$ref: 'file:///etc/passwd'}}}\n"), `m.yaml:6:33: this is no JSON Schema: it refers to "file:///etc/passwd", and may refer only to itself`, false},
	{"response headers", base("    egress: {response: {headers: [a, A]}}\n"), `m.yaml:6:34: headers names "A" a second time`, false},
	{"response cards", base("    egress: {response: {cards: refuze}}\n"), `m.yaml:6:32: unknown cards "refuze"; there are redact, refuse; did you mean refuse?`, true},
	{"called by one", base("    ingress: {callers: checkout}\n"), `m.yaml:6:24: callers must be a list, not the text "checkout"`, true},
	{"caller's name", base("    ingress: {callers: [\"*\"]}\n"), `m.yaml:6:25: function name "*" must begin with a letter a-z`, true},
	{"caller's role", base("    ingress: {callers: [\"role:Ops_1\"]}\n"), `m.yaml:6:25: role name "Ops_1" must begin with a letter a-z; did you mean role:ops-1?`, true},
	{"caller's role is empty", base("    ingress: {callers: [\"role:\"]}\n"), `m.yaml:6:25: role name "" is empty`, true},
	{"callers in the wrong place", base("    callers: [a]\n"), `m.yaml:6:5: field "callers" belongs under ingress`, true},
	{"route without path", base("    ingress: {http: [{method: GET}]}\n"), `m.yaml:6:22: a route needs the field "path": begins with /; {name} matches one segment, a last {name+} the rest`, true},
	{"method", base("    ingress: {http: [{method: get, path: /}]}\n"), `m.yaml:6:31: unknown method "get"; there are GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, ANY; did you mean GET?`, true},
	{"http not a list", base("    ingress: {http: {method: GET, path: /}}\n"), `m.yaml:6:21: http must be a list, not a mapping`, true},
	{"two routes alike", base("    ingress: {http: [{method: GET, path: '/{a}'}, {method: GET, path: '/{b}'}]}\n"), `m.yaml:6:21: two routes are GET /{b}`, false},
	{"public without more", base("    ingress: {http: [{method: GET, path: /, access: public}]}\n"), `m.yaml:6:53: public access needs a reason and an end; did you mean {public: {reason: why everybody may call it, until: YEAR-MONTH-DAY}}?`, true},
	{"public without reason", base("    ingress: {http: [{method: GET, path: /, access: {public: {until: 2027-01-01}}}]}\n"), `m.yaml:6:62: public access needs the field "reason": why everybody may call it`, true},
	{"public without until", base("    ingress: {http: [{method: GET, path: /, access: {public: {reason: x}}}]}\n"), `m.yaml:6:62: public access needs the field "until": the last day, in UTC, on which everybody may`, true},
	{"no such day", base("    ingress: {http: [{method: GET, path: /, access: {public: {reason: x, until: '2027-02-30'}}}]}\n"), `m.yaml:6:81: "2027-02-30" is not a day of the calendar`, false},
	{"until has a time", base("    ingress: {http: [{method: GET, path: /, access: {public: {reason: x, until: 2027-02-20T10:00:00Z}}}]}\n"), `m.yaml:6:81: "2027-02-20T10:00:00Z" is not a date: want YEAR-MONTH-DAY, such as 2027-06-30`, true},
	{"access empty", base("    ingress: {http: [{method: GET, path: /, access: {}}]}\n"), `m.yaml:6:53: access is one of key, sigv4, public, jwt, mtls, webhook, and no more than one`, true},
	{"access unknown", base("    ingress: {http: [{method: GET, path: /, access: sigv}]}\n"), `m.yaml:6:53: access must be one of key, sigv4, public, jwt, mtls, webhook, the last 4 with details, not the text "sigv"; did you mean sigv4?`, true},
	{"variable is a number", base("    environment: {PORT: 8080}\n"), `m.yaml:6:25: PORT must be text, not the number "8080"; did you mean "8080"?`, true},
	{"variable reserved", base("    environment: {AWS_LAMBDA_EXEC_WRAPPER: /x}\n"), `m.yaml:6:19: variable "AWS_LAMBDA_EXEC_WRAPPER" is reserved: Bawn sets it, or keeps it unset`, true},
	{"variable name", base("    environment: {a-b: x}\n"), `m.yaml:6:19: variable "a-b" is not a name: letters, digits and _, not beginning with a digit, at most 128`, true},
	{"variable twice", base("    environment: {A: x, A: y}\n"), `m.yaml:6:25: variable "A" is given a second time`, false},
	{"variables too long", base("    environment: {A: " + strings.Repeat("x", 4090) + "}\n"), `m.yaml:6:18: environment has 4098 bytes as JSON, at most 4096 are allowed`, false},
	{"anchor", base("    description: &a x\n"), `m.yaml:6:18: anchors (&a) are not allowed; write the value out where it is needed`, false},
	{"alias", "functions:\n  f: *a\n", `m.yaml:1:1: this is not YAML: unknown anchor 'a' referenced`, false},
	{"merge key", base("    <<: {code: x}\n"), `m.yaml:6:5: merge keys (<<) are not allowed; write the fields out`, false},
	{"tag", base("    description: !!str 12\n"), `m.yaml:6:18: tags (!!str) are not allowed`, false},
	{"two documents", base("---\na: b\n"), `m.yaml:6:1: a second document begins here; a manifest is one document`, false},
	{"deep", base("    description: " + strings.Repeat("[", 30) + strings.Repeat("]", 30) + "\n"), `m.yaml:6:40: values are nested more than 24 deep`, false},
	{"tab", "functions:\n\tf:\n", `m.yaml:2:1: this is not YAML: found character that cannot start any token; did you mean spaces instead of the tab?`, false},
	{"key is a number", "functions:\n  12: {}\n", `m.yaml:2:3: a function's name must be text, not the number "12"`, false},
	{"escape in text", base("    owner2: x\n"), `m.yaml:6:5: unknown field "owner2"; a function has runtime, handler, code, description, owner, labels, environment, ingress, interior, egress, evidence; did you mean owner?`, true},
	{"control character", base("    description: \"a\\u001b[31mb\"\n"), `m.yaml:6:18: description "a\x1b[31mb" has a character that cannot be printed`, false},
	{"two functions, one route", base("    ingress: {http: [{method: ANY, path: /a}]}\n  g:\n    runtime: wasm\n    owner: me\n    ingress: {http: [{method: GET, path: /a}]}\n"), `m.yaml:7:3: functions "f" and "g" both claim GET /a`, false},
}

func TestRefused(t *testing.T) {
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("m.yaml", []byte(c.text))
			var e *bawn.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Message != c.want {
				t.Errorf("got  %s\nwant %s", e.Message, c.want)
			}
			if s := (*SyntaxError)(nil); !errors.As(err, &s) || len(s.Problems) == 0 || s.Problems[0].Line == 0 {
				t.Errorf("no problem with a place in %v", err)
			}
		})
	}
}

func TestAllProblemsTogether(t *testing.T) {
	_, err := Parse("m.yaml", []byte("functions:\n  f:\n    runtime: pyton3.11\n    interior: {memory: 1, cpu: x}\n  g: 3\n"))
	var s *SyntaxError
	if !errors.As(err, &s) {
		t.Fatal(err)
	}
	var lines []int
	for _, p := range s.Problems {
		lines = append(lines, p.Line)
	}
	if d := cmp.Diff([]int{3, 3, 4, 4, 5}, lines); d != "" {
		t.Error(d, err)
	}
	many := "functions:\n"
	for range 80 {
		many += "  F: 1\n"
	}
	_, err = Parse("m.yaml", []byte(many))
	if !errors.As(err, &s) || len(s.Problems) != maxProblems || !strings.HasSuffix(err.(*bawn.Error).Message, "and 30 more") {
		t.Errorf("got %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	_, err := Parse("m.yaml", bytes.Repeat([]byte("#"), maxManifestBytes+1))
	if bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Error(err)
	}
	_, err = ParseFunctionJSON(bytes.Repeat([]byte(" "), maxManifestBytes+1))
	if bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Error(err)
	}
}

func TestJSONRefused(t *testing.T) {
	for text, want := range map[string]string{
		``:                                  "the function is not valid JSON: it ends too early",
		`{"runtime":"wasm"`:                 "the function is not valid JSON: it ends too early",
		`{"runtime":"wasm","owner":"x"} {}`: "the function is not valid JSON: something follows its end",
		`[]`:                                "a function must be a mapping, not a list",
		`{"runtime":"wasm","owner":null}`:   "owner: owner must be text, not nothing",
		`{"runtime":"wasm","owner":"x","owner":"y"}`:               `owner: field "owner" is given a second time`,
		`{"runtime":"wasm","owner":"x","interior":{"memory":256}}`: `interior.memory: "256" is not a size: want a number and B, KiB, MiB or GiB; did you mean 256MiB?`,
		strings.Repeat("[", 100000):                                "the function is not valid JSON: values are nested more than 24 deep",
	} {
		_, err := ParseFunctionJSON([]byte(text))
		var e *bawn.Error
		if !errors.As(err, &e) || e.Message != want {
			t.Errorf("%.60s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

func TestCompileChecksWhatNoFileWasReadFor(t *testing.T) {
	good := Function{Runtime: bawn.Wasm, Owner: "me"}
	if _, err := Compile("f", good); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Function){
		"memory":      func(f *Function) { f.Interior.Memory = -1 },
		"cpu":         func(f *Function) { f.Interior.CPU = 1000 },
		"timeout":     func(f *Function) { f.Interior.Timeout = 1 },
		"reuse":       func(f *Function) { f.Interior.Reuse.Invocations = -4 },
		"environment": func(f *Function) { f.Environment = map[string]string{"AWS_REGION": "x"} },
		"route":       func(f *Function) { f.Ingress.HTTP = []Route{{Method: "GET", Path: "/../x"}} },
		"public": func(f *Function) {
			f.Ingress.HTTP = []Route{{Method: "GET", Path: "/", Access: Access{Public: &Public{}}}}
		},
		"owner":   func(f *Function) { f.Owner = "" },
		"runtime": func(f *Function) { f.Runtime = "cobol" },
	} {
		f := good
		spoil(&f)
		if v, err := Compile("f", f); err == nil {
			t.Errorf("%s: compiled to %+v", what, v)
		}
	}
	if _, err := Compile("a.b", good); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Errorf("name: %v", err)
	}
	f := good
	f.Interior.Memory = 32 << 20
	if v, err := Compile("f", f); err != nil || v.Perimeter.Interior.Tmp != 16<<20 {
		t.Errorf("tmp %d, error %v", v.Perimeter.Interior.Tmp, err)
	}
}

func TestPaths(t *testing.T) {
	for _, p := range []string{"/", "/a", "/a/b-c_d.e~f", "/{id}", "/a/{id}/b", "/a/{rest+}", "/.well-known/acme", "/.well-known/bawnx", "/a:b@c", "/..."} {
		if err := CheckPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"", "a", "/a/", "//", "//a", "/a//b", "/.", "/..", "/a/../b", "/a/./b", "/a%2e", "/a b", "/a\x00", "/a\nb", "/ä", "/a?b", "/a#b", "/a\\b",
		"/{", "/{}", "/{+}", "/x{a}", "/{a}x", "/{a+}/b", "/{a}/{a}", "/{a b}", "/{1}", "/{{a}}", SystemPrefix, SystemPrefix + "/x", "/" + strings.Repeat("a", 512), strings.Repeat("/a", 33)} {
		if CheckPath(p) == nil {
			t.Errorf("%q is accepted", p)
		}
	}
	if a, b := PathShape("/a/{x}/{y+}"), PathShape("/a/{z}/{q+}"); a != b || a == PathShape("/a/{x}/{y}") {
		t.Errorf("shapes %s %s", a, b)
	}
}

func TestValues(t *testing.T) {
	for s, want := range map[string]Size{"0B": 0, "1KiB": 1024, "1.5GiB": 1536 << 20, "256MiB": 256 << 20} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "MiB", "-1MiB", "1 MiB", "01MiB", "0.3B", "1e3MiB", "99999999999GiB", "1MiBx", "١MiB"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q is read as %d", s, got)
		}
	}
	for s, want := range map[string]time.Duration{"10ms": 10 * time.Millisecond, "1.5s": 1500 * time.Millisecond, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour} {
		got, err := ParseDuration(s)
		if err != nil || got.std() != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
		if back, err := ParseDuration(got.String()); err != nil || back != got {
			t.Errorf("%s is written %s", s, got)
		}
	}
	for _, s := range []string{"", "s", "-1s", "1us", "0.5ms", "1s ", "1d1", "99999999999d", "1e3s"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q is read as %s", s, got)
		}
	}
	if s := Size(1536 << 20).String(); s != "1536MiB" {
		t.Error(s)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"memory", "cpu", "timeout"}
	for s, want := range map[string]string{"memroy": "memory", "Memory": "memory", "time-out": "timeout", "cpus": "cpu", "disk": "", "x": "", strings.Repeat("memory", 20): ""} {
		if got := nearest(s, words); got != want {
			t.Errorf("%.20s: got %q, want %q", s, got, want)
		}
	}
}

func TestSchemaIsCurrent(t *testing.T) {
	want, err := generateSchema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(want), string(Schema())); d != "" {
		t.Errorf("schema.json is not what the fields say; run go generate:\n%s", d)
	}
}

// The schema accepts what Parse accepts, and refuses what it is able to.
func TestSchemaAgrees(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nil)
	c.AssertFormat()
	if err := c.AddResource("https://bawn.dev/schema/bawn.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("https://bawn.dev/schema/bawn.json")
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string) error {
		var n yaml.Node
		if err := yaml.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		dates(&n)
		var v any
		if err := n.Decode(&v); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		inst, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		return s.Validate(inst)
	}
	for _, text := range []string{example, strings.ReplaceAll(full, ", Ünused_: x", "")} {
		if err := check(text); err != nil {
			t.Error(err)
		}
	}
	for _, r := range refused {
		if r.schema && check(r.text) == nil {
			t.Errorf("%s: the schema accepts it", r.name)
		}
	}
}

// dates makes every date a text, as the JSON data model has no dates.
func dates(n *yaml.Node) {
	if n.Tag == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, c := range n.Content {
		dates(c)
	}
}

// Whatever is read: no panic; what is accepted compiles, and means the same
// after being written as JSON; what is refused has a problem with a place.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(full))
	for _, r := range refused {
		f.Add([]byte(r.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = ParseFunctionJSON(data)
		file, err := Parse("f", data)
		if err != nil {
			var s *SyntaxError
			if bawn.ErrorCode(err) != bawn.CodeTooLarge && (!errors.As(err, &s) || len(s.Problems) == 0 || s.Problems[0].Line < 1) {
				t.Fatalf("refused without a place: %v", err)
			}
			return
		}
		for name, fn := range file.Functions {
			if err := fn.ReadFiles(func(string, string) ([]byte, error) { return []byte(`{"type":"string"}`), nil }); err != nil {
				t.Fatal(err)
			}
			v, err := Compile(name, fn)
			if err != nil {
				t.Fatalf("accepted, and does not compile: %v", err)
			}
			if _, err := json.Marshal(v); err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(fn)
			if err != nil {
				t.Fatal(err)
			}
			var back Function
			if err := json.Unmarshal(raw, &back); err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
			again, err := json.Marshal(back)
			if err != nil || !bytes.Equal(raw, again) {
				t.Fatalf("%s\n%s", raw, again)
			}
		}
	})
}
