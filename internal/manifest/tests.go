package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// TestFileName is the name of the file beside the manifest that holds the tests
// of its functions' perimeters.
const TestFileName = "bawn.test.yaml"

const (
	testFile       = "test file" // what messages call it
	maxTestName    = 128
	maxRequestLine = 2048
	minTestTimeout = minTimeout
)

// Test is what users write about one test; see [bawn.Test].
type Test struct {
	Name    string          `json:"name,omitempty"`
	As      string          `json:"as,omitempty"`
	Route   string          `json:"route,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"`
	Timeout Duration        `json:"timeout,omitzero"`
	Allow   *bawn.TestAllow `json:"allow,omitempty"`
	Deny    *bawn.TestDeny  `json:"deny,omitempty"`
}

func (t Test) compile() bawn.Test {
	return bawn.Test{Name: t.Name, As: t.As, Route: t.Route, Event: t.Event, Timeout: t.Timeout.std(), Allow: t.Allow, Deny: t.Deny}
}

// ParseTests reads the test file that lies beside the manifest m and gives each
// function its tests. Its errors are those of [Parse].
func ParseTests(name string, data []byte, m *File) error {
	all := map[string][]Test{}
	if err := parse(&decoder{file: name, what: testFile}, data, testFields(m.Order), &all); err != nil {
		return err
	}
	for fn, tests := range all {
		f := m.Functions[fn]
		f.Tests = tests
		m.Functions[fn] = f
	}
	return nil
}

// testFields describes a whole test file, for functions of these names.
func testFields(functions []string) object[map[string][]Test] {
	tests := testList()
	read := func(d *decoder, n *yaml.Node, at string, all *map[string][]Test) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("tests must be a mapping from functions to lists of tests, not %s", kindName(n)), "")
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			_, twice := (*all)[key.Value]
			switch {
			case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || !slices.Contains(functions, key.Value):
				d.report(key, here, fmt.Sprintf("the manifest has no function %s; it has %s", quote(key.Value), list(functions)), nearest(key.Value, functions))
			case twice:
				d.report(key, here, fmt.Sprintf("the tests of %q are given a second time", key.Value), "")
			default:
				(*all)[key.Value], _ = tests.read(d, val, here)
			}
		}
	}
	return object[map[string][]Test]{doc: "the test file", fields: []field[map[string][]Test]{
		{name: "tests", doc: "functions of the manifest to their tests", required: true, read: read},
	}}
}

// testsField is how tests travel with the function that they are of.
func testsField() field[Function] {
	return is("tests", "what a version must pass before it becomes live", testList(), func(f *Function) *[]Test { return &f.Tests })
}

// testList reads the tests of one function.
func testList() value[[]Test] {
	v := listOf("tests", bawn.MaxTests, testCase().value())
	read := v.read
	v.read = func(d *decoder, n *yaml.Node, at string) ([]Test, bool) {
		all, ok := read(d, n, at)
		bytes := 0
		for i, t := range all {
			if slices.ContainsFunc(all[:i], func(o Test) bool { return o.Name == t.Name && t.Name != "" }) {
				d.report(n.Content[i], at, fmt.Sprintf("two tests have the name %s", quote(t.Name)), "")
				ok = false
			}
			bytes += len(t.Event)
			if t.Allow != nil {
				bytes += len(t.Allow.Response)
			}
		}
		if bytes > bawn.MaxTestBytes {
			d.report(n, at, fmt.Sprintf("the events and answers have %d bytes as JSON, at most %d are allowed", bytes, bawn.MaxTestBytes), "")
			ok = false
		}
		return all, ok
	}
	return v
}

func testCase() object[Test] {
	allow := object[bawn.TestAllow]{doc: "allow", fields: []field[bawn.TestAllow]{
		is("status", "of the response", whole("status", 200, 599), func(a *bawn.TestAllow) *int { return &a.Status }),
		is("response", "what the answer must hold", anything("response"), func(a *bawn.TestAllow) *json.RawMessage { return &a.Response }),
	}}
	deny := object[bawn.TestDeny]{doc: "deny", fields: []field[bawn.TestDeny]{
		is("at", "which part of the perimeter stops it", oneOf("at", []string{bawn.AtIngress, bawn.AtInterior, bawn.AtEgress}), func(d *bawn.TestDeny) *string { return &d.At }),
		is("control", "of the record, such as B7", text("control", 1, 8), func(d *bawn.TestDeny) *string { return &d.Control }),
		is("action", "of the record, such as execve", text("action", 1, 64), func(d *bawn.TestDeny) *string { return &d.Action }),
	}}
	return object[Test]{
		doc: "a test",
		fields: []field[Test]{
			is("name", "what it shows, in a few words", text("name", 1, maxTestName), func(t *Test) *string { return &t.Name }).must(),
			is("as", "who calls: anonymous, role:NAME, function:NAME, sigv4 for a signed request of an invoker, or jwt, mtls or webhook for who shows what such a route asks for; role:invoker if left out", testCaller(), func(t *Test) *string { return &t.As }),
			is("route", "method and path of a request; a call by name if left out", requestLine(), func(t *Test) *string { return &t.Route }),
			is("event", "of a call by name the event, {} if left out; of a request what its event has besides", anything("event"), func(t *Test) *json.RawMessage { return &t.Event }),
			is("timeout", "after which the call is ended", duration("timeout", minTestTimeout, Duration(bawn.MaxTestTimeout)), func(t *Test) *Duration { return &t.Timeout }),
			maybe("allow", "the call must be answered", allow, func(t *Test) **bawn.TestAllow { return &t.Allow }),
			maybe("deny", "the perimeter must stop it", deny, func(t *Test) **bawn.TestDeny { return &t.Deny }),
		},
		rules: func(t *Test, has func(string) bool, say func(string, error)) {
			switch {
			case !has("allow") && !has("deny"):
				say("", &wrong{"a test says allow or deny", "deny: {}"})
			case has("allow") && has("deny"):
				say("deny", &wrong{Message: "a test says allow or deny, not both"})
			case t.Route == "" && t.Allow != nil && t.Allow.Status != 0:
				say("allow", &wrong{Message: "a call by name has no status; name a route"})
			}
			if t.Route != "" && len(t.Event) > 0 && t.Event[0] != '{' {
				say("event", &wrong{Message: "the event of a request is a mapping: what it has besides what the route says, such as body and headers"})
			}
		},
		strayed: func(name string) error {
			for block, names := range map[string][]string{"allow": fieldNames(allow), "deny": fieldNames(deny)} {
				if slices.Contains(names, name) {
					return &wrong{fmt.Sprintf("field %q belongs under %s", name, block), ""}
				}
			}
			return nil
		},
	}
}

// maybe makes the field name of T from an object that may be left empty:
// "deny:" and "deny: {}" are the same.
func maybe[T, V any](name, doc string, o object[V], place func(*T) **V) field[T] {
	return field[T]{name: name, doc: doc, schema: o.schema(), read: func(d *decoder, n *yaml.Node, at string, t *T) {
		var v V
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" || o.read(d, n, at, &v) {
			*place(t) = &v
		}
	}}
}

// testWords are those whom a test can call as without a name.
func testWords() []string {
	return []string{bawn.PrincipalAnonymous, bawn.AccessSigV4, bawn.AccessJWT, bawn.AccessMTLS, bawn.AccessWebhook}
}

// testCaller reads who a test calls as.
func testCaller() value[string] {
	const want = "anonymous, role:NAME, function:NAME or a kind of access that routes ask for"
	return value[string]{map[string]any{"type": "string", "pattern": `^(anonymous|sigv4|jwt|mtls|webhook|(role|function):[a-z]([a-z0-9-]{0,61}[a-z0-9])?)$`},
		func(d *decoder, n *yaml.Node, at string) (string, bool) {
			s, ok := scalar(d, n, at, want, "!!str")
			if !ok || slices.Contains(testWords(), s) {
				return s, ok
			}
			kind, name, ok := strings.Cut(s, ":")
			if !ok || kind != "role" && kind != "function" {
				suggestion := nearest(s, testWords())
				if bawn.CheckName("role", s) == nil && suggestion == "" {
					suggestion = "role:" + s
				}
				d.report(n, at, fmt.Sprintf("as %s must be %s", quote(s), want), suggestion)
				return "", false
			}
			if err := bawn.CheckName(kind, name); err != nil {
				d.reject(n, at, err)
				return "", false
			}
			return s, true
		}}
}

// requestLine reads a method and a path with its query. Whether any route
// matches is for the test to show.
func requestLine() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": "^[A-Z]+ /", "maxLength": maxRequestLine},
		func(d *decoder, n *yaml.Node, at string) (string, bool) {
			s, ok := scalar(d, n, at, "text", "!!str")
			if !ok {
				return "", false
			}
			method, path, ok := strings.Cut(s, " ")
			methods := slices.DeleteFunc(Methods(), func(m string) bool { return m == "ANY" })
			switch {
			case len(s) > maxRequestLine:
				d.report(n, at, fmt.Sprintf("route has %d bytes, at most %d are allowed", len(s), maxRequestLine), "")
			case !ok || !strings.HasPrefix(path, "/"):
				d.report(n, at, fmt.Sprintf("route %s must be a method and a path", quote(s)), "GET /"+strings.TrimLeft(s, "/"))
			case !slices.Contains(methods, method):
				d.report(n, at, fmt.Sprintf("unknown method %s; there are %s", quote(method), list(methods)), nearest(method, methods))
			case strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }):
				d.report(n, at, fmt.Sprintf("route %s has a character that a request must escape", quote(s)), "")
			default:
				return s, true
			}
			return "", false
		}}
}

// anything is any value that JSON has, as JSON with its keys sorted.
func anything(name string) value[json.RawMessage] {
	return value[json.RawMessage]{map[string]any{}, func(d *decoder, n *yaml.Node, at string) (json.RawMessage, bool) {
		before := len(d.problems) + d.dropped
		v := plain(d, n, at)
		if before != len(d.problems)+d.dropped {
			return nil, false
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false) // as whoever reads the version back would see it
		if err := e.Encode(v); err != nil {
			d.report(n, at, name+" cannot be written as JSON", "")
			return nil, false
		}
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), true
	}}
}

// plain turns a tree into what encoding/json writes.
func plain(d *decoder, n *yaml.Node, at string) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			here := join(at, quoteless(key.Value))
			if _, twice := m[key.Value]; twice {
				d.report(key, here, fmt.Sprintf("field %s is given a second time", quote(key.Value)), "")
				continue
			}
			if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
				d.report(key, at, fmt.Sprintf("a field's name must be text, not %s", kindName(key)), strconv.Quote(key.Value))
				continue
			}
			m[key.Value] = plain(d, n.Content[i+1], here)
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			list[i] = plain(d, c, at+"["+strconv.Itoa(i)+"]")
		}
		return list
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		if !json.Valid([]byte(n.Value)) {
			d.report(n, at, fmt.Sprintf("%s is not a number that JSON has", quote(n.Value)), strconv.Quote(n.Value))
			return nil
		}
		return json.Number(n.Value)
	}
	if !utf8.ValidString(n.Value) {
		d.report(n, at, "the text is not UTF-8", "")
	}
	return n.Value
}
