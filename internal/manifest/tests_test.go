package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"github.com/google/go-cmp/cmp"
)

// two is a manifest of two functions.
func two(t testing.TB) *File {
	t.Helper()
	m, err := Parse("bawn.yaml", []byte("functions:\n  hello: {runtime: wasm, owner: me}\n  other: {runtime: wasm, owner: me}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const testsExample = `tests:
  hello:
    - name: strangers are greeted
      as: anonymous
      route: GET /hello?name=Ann
      event: {headers: {accept: "*/*"}}
      timeout: 2s
      allow: {status: 200, response: {b: [1, 2.50], a: "<x>", n: null, t: true}}
    - {name: nothing is started, event: [1], deny: {at: interior, control: B7, action: execve}}
    - name: nobody else
      as: role:ops
      deny:
    - {name: a call, as: "function:other", allow: {}}
`

func TestTestFile(t *testing.T) {
	m := two(t)
	if err := ParseTests("bawn.test.yaml", []byte(testsExample), m); err != nil {
		t.Fatal(err)
	}
	v, err := Compile("hello", m.Functions["hello"])
	if err != nil {
		t.Fatal(err)
	}
	want := []bawn.Test{
		{
			Name: "strangers are greeted", As: "anonymous", Route: "GET /hello?name=Ann", Timeout: 2 * time.Second,
			Event: json.RawMessage(`{"headers":{"accept":"*/*"}}`),
			Allow: &bawn.TestAllow{Status: 200, Response: json.RawMessage(`{"a":"<x>","b":[1,2.50],"n":null,"t":true}`)},
		},
		{Name: "nothing is started", Event: json.RawMessage(`[1]`), Deny: &bawn.TestDeny{At: "interior", Control: "B7", Action: "execve"}},
		{Name: "nobody else", As: "role:ops", Deny: &bawn.TestDeny{}},
		{Name: "a call", As: "function:other", Allow: &bawn.TestAllow{}},
	}
	if d := cmp.Diff(want, v.Tests); d != "" {
		t.Error(d)
	}
	if len(m.Functions["other"].Tests) > 0 {
		t.Error("another function has tests, too")
	}
}

var refusedTests = []struct{ text, want string }{
	{"", "t.yaml:1:1: the test file is empty; did you mean tests:?"},
	{"tests: []", "t.yaml:1:8: tests must be a mapping from functions to lists of tests, not a list"},
	{"tests: {helo: []}", `t.yaml:1:9: the manifest has no function "helo"; it has hello, other; did you mean hello?`},
	{"tests: {hello: {}}", "t.yaml:1:16: tests must be a list, not a mapping"},
	{"tests:\n  hello: []\n  hello: []\n", `t.yaml:3:3: the tests of "hello" are given a second time`},
	{"tests: {hello: [{name: a}]}", "t.yaml:1:17: a test says allow or deny; did you mean deny: {}?"},
	{"tests: {hello: [{name: a, deny: , allow: }]}", "t.yaml:1:33: a test says allow or deny, not both"},
	{"tests: {hello: [{deny: }]}", `t.yaml:1:17: a test needs the field "name": what it shows, in a few words`},
	{"tests: {hello: [{name: a, deny: }, {name: a, deny: }]}", `t.yaml:1:36: two tests have the name "a"`},
	{"tests: {hello: [{name: a, deny: yes}]}", `t.yaml:1:33: deny must be a mapping, not the text "yes"`},
	{"tests: {hello: [{name: a, deny: {at: inside}}]}", `t.yaml:1:38: unknown at "inside"; there are ingress, interior, egress`},
	{"tests: {hello: [{name: a, control: B7}]}", `t.yaml:1:27: field "control" belongs under deny`},
	{"tests: {hello: [{name: a, allow: {status: 99}}]}", "t.yaml:1:43: status 99 must be a whole number from 200 to 599"},
	{"tests: {hello: [{name: a, allow: {status: 200}}]}", "t.yaml:1:34: a call by name has no status; name a route"},
	{"tests: {hello: [{name: a, as: ops, deny: }]}", `t.yaml:1:31: as "ops" must be anonymous, role:NAME, function:NAME or a kind of access that routes ask for; did you mean role:ops?`},
	{"tests: {hello: [{name: a, as: 'role:Ops', deny: }]}", `t.yaml:1:31: role name "Ops" must begin with a letter a-z`},
	{"tests: {hello: [{name: a, as: 'key:x', deny: }]}", `t.yaml:1:31: as "key:x" must be anonymous, role:NAME, function:NAME or a kind of access that routes ask for`},
	{"tests: {hello: [{name: a, route: /x, deny: }]}", `t.yaml:1:34: route "/x" must be a method and a path; did you mean GET /x?`},
	{"tests: {hello: [{name: a, route: ANY /x, deny: }]}", `t.yaml:1:34: unknown method "ANY"; there are GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS`},
	{"tests: {hello: [{name: a, route: GET /x y, deny: }]}", `t.yaml:1:34: route "GET /x y" has a character that a request must escape`},
	{"tests: {hello: [{name: a, route: GET /x, event: 1, deny: }]}", "t.yaml:1:49: the event of a request is a mapping: what it has besides what the route says, such as body and headers"},
	{"tests: {hello: [{name: a, event: {a: .inf}, deny: }]}", `t.yaml:1:38: ".inf" is not a number that JSON has; did you mean ".inf"?`},
	{"tests: {hello: [{name: a, event: {a: 1, a: 2}, deny: }]}", `t.yaml:1:41: field "a" is given a second time`},
	{"tests: {hello: [{name: a, timeout: 2m, deny: }]}", "t.yaml:1:36: timeout 2m is too much, at most 1m is allowed"},
	{"tests: {hello: [{name: a, event: &x 1, deny: }]}", "t.yaml:1:34: anchors (&x) are not allowed; write the value out where it is needed"},
}

func TestTestFileRefused(t *testing.T) {
	for _, c := range refusedTests {
		err := ParseTests("t.yaml", []byte(c.text), two(t))
		var e *bawn.Error
		if !errors.As(err, &e) {
			t.Errorf("%s\ngot  %v\nwant %s", c.text, err, c.want)
			continue
		}
		if e.Message != c.want || !strings.Contains(e.Fix, "testing.md") {
			t.Errorf("%s\ngot  %s (fix: %s)\nwant %s", c.text, e.Message, e.Fix, c.want)
		}
	}
}

func TestTestFileBounds(t *testing.T) {
	long := "tests: {hello: [{name: a, deny: , event: \"" + strings.Repeat("x", bawn.MaxTestBytes) + "\"}]}"
	if err := ParseTests("t", []byte(long), two(t)); err == nil || !strings.Contains(err.Error(), "at most 65536 are allowed") {
		t.Error(err)
	}
	many := "tests:\n  hello:\n" + strings.Repeat("    - {name: a, deny: }\n", bawn.MaxTests+1)
	if err := ParseTests("t", []byte(many), two(t)); err == nil || !strings.Contains(err.Error(), "51 entries, at most 50") {
		t.Error(err)
	}
	if err := ParseTests("t", bytes.Repeat([]byte("#"), maxManifestBytes+1), two(t)); bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Error(err)
	}
}

// Tests do not stand in the manifest itself, where they would be read past.
func TestTestsStandApart(t *testing.T) {
	_, err := Parse("m", []byte("functions: {f: {runtime: wasm, owner: me, tests: []}}"))
	if err == nil || !strings.Contains(err.Error(), "bawn.test.yaml") {
		t.Error(err)
	}
}

// What is accepted means the same after it has travelled as JSON.
func FuzzParseTests(f *testing.F) {
	f.Add([]byte(testsExample))
	for _, r := range refusedTests {
		f.Add([]byte(r.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := two(t)
		if err := ParseTests("f", data, m); err != nil {
			var s *SyntaxError
			if bawn.ErrorCode(err) != bawn.CodeTooLarge && (!errors.As(err, &s) || len(s.Problems) == 0 || s.Problems[0].Line < 1) {
				t.Fatalf("refused without a place: %v", err)
			}
			return
		}
		for name, fn := range m.Functions {
			v, err := Compile(name, fn)
			if err != nil {
				t.Fatalf("accepted, and does not compile: %v", err)
			}
			raw, err := json.Marshal(fn)
			if err != nil {
				t.Fatal(err)
			}
			back, err := ParseFunctionJSON(raw)
			if err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
			again, err := Compile(name, back)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(v, again); d != "" {
				t.Fatal(d)
			}
		}
	})
}
