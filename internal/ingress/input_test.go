package ingress

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

const orderSchema = `{"type":"object","properties":{"item":{"type":"string","maxLength":20},"count":{"type":"integer","maximum":9}},"required":["item"],"additionalProperties":false}`

// taker is a gate that only looks at inputs.
func taker(now time.Time) *Gate { return &Gate{cfg: Config{Now: func() time.Time { return now }}} }

func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// TestD1Input: what is declared comes in, and nothing else does; no refusal tells a
// value.
func TestD1Input(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	g := taker(now)
	open := &bawn.Waiver{Reason: "r", Until: now.Add(time.Hour)}
	ended := &bawn.Waiver{Reason: "r", Until: now}
	json, form := header("Content-Type", "application/json; charset=utf-8"), header("Content-Type", "application/x-www-form-urlencoded")
	for _, tt := range []struct {
		name string
		in   *bawn.Input
		r    bawn.Request
		want string // control and a part of the message; "" if it comes in
	}{
		{"an order", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`{"item":"tea","count":2}`)}, ""},
		{"one that does not say what it is", &bawn.Input{Schema: orderSchema}, bawn.Request{Body: []byte(`{"item":"tea"}`)}, ""},
		{"of another dialect of JSON", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: header("Content-Type", "application/vnd.shop+json"), Body: []byte(`{"item":"tea"}`)}, ""},
		{"too many", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`{"item":"marker","count":77}`)}, `D1 "/count" (maximum)`},
		{"what is not declared", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`{"item":"tea","marker":1}`)}, `D1 "the whole" (additionalProperties)`},
		{"nothing", &bawn.Input{Schema: orderSchema}, bawn.Request{}, "D1 missing"},
		{"two readings", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`{"item":"tea","item":"marker"}`)}, "D3 twice"},
		{"no JSON", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`marker`)}, "D3 JSON"},
		{"more than JSON", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: json, Body: []byte(`{"item":"tea"}marker`)}, "D3 after"},
		{"packed", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: header("Content-Type", "application/json", "Content-Encoding", "gzip"), Body: []byte(`{"item":"tea"}`)}, "D1 encoded"},
		{"two types", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: header("Content-Type", "application/json", "Content-Type", "text/plain"), Body: []byte(`{"item":"tea"}`)}, "D3 more than one"},
		{"another type", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: header("Content-Type", "text/xml"), Body: []byte(`<marker/>`)}, "D1 content type"},
		{"a form", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: form, Body: []byte(`item=tea&count=3`)}, ""},
		{"a form with a name twice", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: form, Body: []byte(`item=tea&item=marker`)}, `D1 "/item" (type)`},
		{"a broken form", &bawn.Input{Schema: orderSchema}, bawn.Request{Header: form, Body: []byte(`item=%zz`)}, "D3 form"},
		{"a text", &bawn.Input{Schema: `{"type":"string","maxLength":5}`}, bawn.Request{Header: header("Content-Type", "text/plain"), Body: []byte("a\"b\n")}, ""},
		{"a text that is too long", &bawn.Input{Schema: `{"type":"string","maxLength":5}`}, bawn.Request{Header: header("Content-Type", "text/plain"), Body: []byte("marker")}, "D1 maxLength"},
		{"a query nobody declared", &bawn.Input{Schema: orderSchema}, bawn.Request{Query: "marker=1", Body: []byte(`{"item":"tea"}`)}, "D1 no query"},

		{"none", &bawn.Input{None: true}, bawn.Request{}, ""},
		{"none, and a body", &bawn.Input{None: true}, bawn.Request{Body: []byte("marker")}, "D1 no body"},
		{"none, and a query", &bawn.Input{None: true}, bawn.Request{Query: "marker"}, "D1 no query"},

		{"a waiver", &bawn.Input{Any: open}, bawn.Request{Query: "a=b", Header: header("Content-Type", "text/xml"), Body: []byte("<x/>")}, ""},
		{"a waiver, and JSON of two readings", &bawn.Input{Any: open}, bawn.Request{Header: json, Body: []byte(`{"a":1,"a":2}`)}, "D3 twice"},
		{"a waiver that has ended", &bawn.Input{Any: ended}, bawn.Request{}, "D1 not declared"},
		{"a waiver, with a query", &bawn.Input{Any: open, Query: `{"additionalProperties":false}`}, bawn.Request{Query: "marker=b"}, "D1 the query"},

		{"nothing declared", nil, bawn.Request{Query: "a=b", Body: []byte("x")}, ""},
		{"nothing declared, and JSON of two readings", nil, bawn.Request{Header: json, Body: []byte(`{"a":1,"a":2}`)}, "D3 twice"},

		{"a query", &bawn.Input{None: true, Query: `{"type":"object","properties":{"page":{"type":"integer","minimum":1},"tag":{"type":"array","items":{"type":"string"}},"new":{"type":"boolean"}},"additionalProperties":false}`},
			bawn.Request{Query: "page=2&tag=a&tag=b&new=true"}, ""},
		{"a query of the wrong type", &bawn.Input{None: true, Query: `{"properties":{"page":{"type":"integer"}}}`}, bawn.Request{Query: "page=marker"}, `D1 "/page" (type)`},
		{"a query with a name twice", &bawn.Input{None: true, Query: `{"properties":{"page":{"type":"integer"}}}`}, bawn.Request{Query: "page=1&page=2"}, `D1 "/page" (type)`},
		{"a broken query", &bawn.Input{None: true, Query: `{}`}, bawn.Request{Query: "page=%zz"}, "D3 query"},
		{"a path", &bawn.Input{None: true, Path: `{"properties":{"id":{"type":"integer"}}}`}, bawn.Request{Params: map[string]string{"id": "17"}}, ""},
		{"another path", &bawn.Input{None: true, Path: `{"properties":{"id":{"type":"integer"}}}`}, bawn.Request{Params: map[string]string{"id": "marker"}}, `D1 "/id" (type)`},
		{"a header", &bawn.Input{None: true, Header: `{"required":["x-shop"],"properties":{"x-shop":{"enum":["at","de"]}}}`}, bawn.Request{Header: header("X-Shop", "at")}, ""},
		{"another header", &bawn.Input{None: true, Header: `{"properties":{"x-shop":{"enum":["at","de"]}}}`}, bawn.Request{Header: header("X-Shop", "marker")}, `D1 "/x-shop" (enum)`},
		{"a missing header", &bawn.Input{None: true, Header: `{"required":["x-shop"]}`}, bawn.Request{}, "D1 (required)"},
		{"a prototype", &bawn.Input{Schema: `{}`}, bawn.Request{Body: []byte(`{"a":{"__proto__":{"marker":1}}}`)}, "D5 /a/__proto__"},
		{"a prototype in a query", &bawn.Input{None: true, Query: `{}`}, bawn.Request{Query: "__proto__=marker"}, "D5 the query"},
	} {
		if tt.r.Header == nil {
			tt.r.Header = http.Header{}
		}
		c := &bawn.Call{Route: &bawn.Route{Input: tt.in}, Request: &tt.r}
		wants(t, tt.name, g.takes(c, &Admission{Version: &bawn.Version{}}), tt.want)
	}
	for _, tt := range []struct {
		name  string
		in    *bawn.Input
		event string
		want  string
	}{
		{"an event", &bawn.Input{Schema: orderSchema}, `{"item":"tea"}`, ""},
		{"one that does not fit", &bawn.Input{Schema: orderSchema}, `{"item":7}`, `D1 "/item" (type)`},
		{"an event of two readings", nil, `{"a":1,"a":2}`, "D3 twice"},
		{"one that is too deep", nil, strings.Repeat("[", 65) + strings.Repeat("]", 65), "D3 deeper"},
		{"half of a pair", nil, `"\ud800"`, "D3 surrogate"},
		{"none", &bawn.Input{None: true}, ` {} `, ""},
		{"none, and something", &bawn.Input{None: true}, `{"marker":1}`, "D1 empty"},
		{"no event", nil, ``, ""},
		{"a waiver that has ended", &bawn.Input{Any: ended}, `{}`, "D1 not declared"},
	} {
		v := &bawn.Version{}
		v.Perimeter.Ingress.Event = &bawn.Event{Input: tt.in}
		wants(t, "by name: "+tt.name, g.takes(&bawn.Call{Event: []byte(tt.event)}, &Admission{Version: v}), tt.want)
	}
}

func wants(t *testing.T, name string, m *misfit, want string) {
	t.Helper()
	control, part, _ := strings.Cut(want, " ")
	switch {
	case m == nil && want != "":
		t.Errorf("%s comes in", name)
	case m != nil && (want == "" || m.control != control || !strings.Contains(m.message, part)):
		t.Errorf("%s: %s %s", name, m.control, m.message)
	case m != nil && strings.Contains(m.message+m.fix, "marker"):
		t.Errorf("%s: a value is told: %s", name, m.message)
	case m != nil && ControlOf(m.err()) != control:
		t.Errorf("%s: %v", name, m.err())
	}
}

// What a schema pins down is not searched any more; what was read is left for that.
func TestD4InputIsReadOnce(t *testing.T) {
	g := taker(time.Now())
	a := &Admission{Version: &bawn.Version{}}
	c := &bawn.Call{
		Route:   &bawn.Route{Input: &bawn.Input{Schema: `{"properties":{"state":{"enum":["new"]},"note":{"type":"string"}}}`, Query: `{"properties":{"q":{"type":"string"}}}`}},
		Request: &bawn.Request{Query: "q=find+me", Body: []byte(`{"state":"new","note":"free"}`)},
	}
	if m := g.takes(c, a); m != nil {
		t.Fatal(m.message)
	}
	var got []string
	for l := range a.document.Free() {
		got = append(got, l.Text)
	}
	if !slices.Equal(got, []string{"free"}) {
		t.Error(got)
	}
}

// TestG4InputFlood: a flood of what does not fit is counted, and not recorded one by
// one; nobody else's records are lost by it.
func TestG4InputFlood(t *testing.T) {
	var p paces
	now := time.Unix(1_700_000_000, 0)
	recorded, left := 0, 0
	for range 10_000 {
		if n, ok := p.take("f", now, inputBurst, inputRate); ok {
			recorded, left = recorded+1, left+n
		}
		now = now.Add(time.Millisecond)
	}
	n, ok := p.take("f", now.Add(time.Second), inputBurst, inputRate)
	if recorded > inputBurst+10*inputRate+1 || recorded < inputBurst || !ok || recorded+left+n != 10_000 {
		t.Errorf("%d recorded, %d told, %d at last", recorded, left, n)
	}
	if _, ok := p.take("g", now, inputBurst, inputRate); !ok {
		t.Error("another function's is not recorded")
	}
	for i := range 2 * maxPaces {
		p.take(fmt.Sprint("x", i), now, inputBurst, inputRate)
	}
	if len(p.of) > maxPaces+1 {
		t.Errorf("%d are kept", len(p.of))
	}
}

func FuzzInput(f *testing.F) {
	f.Add("application/json", "a=1", []byte(`{"item":"tea","count":2}`))
	f.Add("application/x-www-form-urlencoded", "page=1&page=2", []byte("item=a&count=3"))
	f.Add("text/plain; charset=utf-8", "", []byte("x"))
	g := taker(time.Now())
	f.Fuzz(func(t *testing.T, kind, query string, body []byte) {
		for _, in := range []*bawn.Input{nil, {None: true}, {Schema: orderSchema, Query: `{"properties":{"page":{"type":"integer"}}}`}} {
			a := &Admission{Version: &bawn.Version{}}
			r := &bawn.Request{Header: header("Content-Type", kind), Query: query, Body: body}
			m := g.takes(&bawn.Call{Route: &bawn.Route{Input: in}, Request: r}, a)
			if in != nil && in.None && m == nil && (len(body) > 0 || query != "") {
				t.Fatal("something comes in where nothing may")
			}
			if in != nil && in.Schema != "" && m == nil && a.document == nil {
				t.Fatal("what was not read comes in")
			}
		}
	})
}
