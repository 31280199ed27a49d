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
    egress: {functions: [receipts, a-first]}
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
				Reason: "landing page", Until: time.Date(2027, 7, 1, 0, 0, 0, 0, time.UTC)}}}}},
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
		Perimeter: bawn.Perimeter{
			Ingress: bawn.Ingress{HTTP: []bawn.Route{{Method: "ANY", Path: "/api/{proxy+}"}, {Method: "POST", Path: "/a/{id}/b"}}, Callers: []string{"anyone", "checkout", "role:ops"}},
			Egress:  bawn.Egress{Functions: []string{"a-first", "receipts"}},
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
	{"unknown field", base("    memmory: 1\n"), `m.yaml:6:5: unknown field "memmory"; a function has runtime, handler, code, description, owner, environment, ingress, interior, egress, evidence`, true},
	{"near field", base("    enviroment: {}\n"), `m.yaml:6:5: unknown field "enviroment"; a function has runtime, handler, code, description, owner, environment, ingress, interior, egress, evidence; did you mean environment?`, true},
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
	{"egress has no such field", base("    egress: {function: [a]}\n"), `m.yaml:6:14: unknown field "function"; egress has functions; did you mean functions?`, true},
	{"called function's name", base("    egress: {functions: [a, b_c]}\n"), `m.yaml:6:29: function name "b_c" has the character '_'; only a-z, 0-9 and '-' are allowed; did you mean b-c?`, true},
	{"called function of a tenant", base("    egress: {functions: [acme/a]}\n"), `m.yaml:6:26: function name "acme/a" has the character '/'; only a-z, 0-9 and '-' are allowed`, true},
	{"called twice", base("    egress: {functions: [a, b, a]}\n"), `m.yaml:6:25: functions names "a" a second time`, false},
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
	{"access empty", base("    ingress: {http: [{method: GET, path: /, access: {}}]}\n"), `m.yaml:6:53: access needs the field "public": open to everybody until a day, for a reason`, true},
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
	{"escape in text", base("    owner2: x\n"), `m.yaml:6:5: unknown field "owner2"; a function has runtime, handler, code, description, owner, environment, ingress, interior, egress, evidence; did you mean owner?`, true},
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
