package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const order = `{"type":"object","properties":{
	"id":{"type":"string","format":"uuid"},
	"mail":{"type":"string","format":"email"},
	"note":{"type":"string","maxLength":200},
	"country":{"type":"string","minLength":2,"maxLength":2},
	"state":{"enum":["new","paid"]},
	"sku":{"type":"string","pattern":"^[A-Z]{2}-[0-9]{1,8}$"},
	"name":{"type":"string","pattern":"^[^<>]*$"},
	"count":{"type":"integer","minimum":1,"maximum":99},
	"price":{"type":"number","multipleOf":0.01},
	"tags":{"type":"array","items":{"type":"string"},"uniqueItems":true}
},"required":["id"],"additionalProperties":false}`

func compiled(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parsed(t testing.TB, text string) *Document {
	t.Helper()
	d, err := Parse([]byte(text), 64)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestD3Parse(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	many := `{`
	for i := range 40 {
		many += fmt.Sprintf(`"n%d":%d,`, i, i)
	}
	for _, tt := range []struct{ name, text, wrong string }{
		{"an object", ` {"a":[1,-2.5e3,true,false,null,"\u00e9\ud83d\ude00\n"]} `, ""},
		{"one name twice", `{"a":1,"b":2,"a":3}`, "twice"},
		{"one name twice, once escaped", `{"a":1,"\u0061":3}`, "twice"},
		{"one name twice among many", many + `"n7":1}`, "twice"},
		{"the name that makes it many", strings.Replace(many, `"n12"`, `"n3"`, 1) + `"z":1}`, "twice"},
		{"many names", many + `"z":1}`, ""},
		{"as deep as may be", deep(64), ""},
		{"too deep", deep(65), "deeper"},
		{"too deep, and endless", strings.Repeat("[", 100_000), "deeper"},
		{"NaN", `[NaN]`, "JSON"},
		{"Infinity", `-Infinity`, "JSON"},
		{"half a pair", `"\ud800"`, "surrogate"},
		{"the other half", `"\udc00"`, "surrogate"},
		{"two first halves", `"\ud800\ud800"`, "surrogate"},
		{"a second value", `{} {}`, "after"},
		{"a byte after the end", `{}x`, "after"},
		{"no UTF-8", "\"\xff\"", "UTF-8"},
		{"a mark of byte order", "\ufeff{}", "JSON"},
		{"an endless exponent", `1e99999999999999999999`, "number"},
		{"a long number", strings.Repeat("1", 129), "number"},
		{"a leading zero", `01`, "after"},
		{"nothing", ``, "JSON"},
		{"too many values", "[" + strings.Repeat("1,", MaxValues) + "1]", "values"},
	} {
		d, err := Parse([]byte(tt.text), 64)
		switch {
		case tt.wrong == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)):
			t.Errorf("%s: %v", tt.name, err)
		case tt.wrong == "" && d.Len() == 0:
			t.Errorf("%s: no values", tt.name)
		}
	}
}

func TestD5Prototype(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":1}`:                                   "",
		`{"a":[{"__proto__":{"admin":true}}]}`:      "/a/0/__proto__",
		`{"\u005f_proto__":1}`:                      "/__proto__",
		`{"constructor":{"prototype":{"x":1}}}`:     "/constructor/prototype",
		`{"constructor":"Gropius","prototype":"x"}`: "",
		`{"a":"__proto__"}`:                         "",
	} {
		if got := parsed(t, text).Prototype(); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
	d := parsed(t, `{"__proto__":1}`)
	if err := compiled(t, `{"patternProperties":{"^[a-z_]+$":{}}}`).Validate(d); err != nil || d.Prototype() == "" {
		t.Error("a pattern lets it in", err)
	}
	if err := compiled(t, `{"properties":{"__proto__":{"type":"number"}}}`).Validate(d); err != nil || d.Prototype() != "" {
		t.Error("what the schema names is refused", err)
	}
}

func TestD1Misfits(t *testing.T) {
	s := compiled(t, order)
	const id = `"id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff"`
	for _, tt := range []struct {
		text string
		want []string
	}{
		{`{` + id + `,"count":3,"price":19.99,"tags":["a","b"]}`, nil},
		{`{` + id + `,"count":"marker"}`, []string{`"/count" (type)`}},
		{`{` + id + `,"count":100,"price":0.001}`, []string{`"/count" (maximum)`, `"/price" (multipleOf)`}},
		{`{` + id + `,"marker":1}`, []string{`"the whole" (additionalProperties)`}},
		{`{}`, []string{`"the whole" (required)`}},
		{`{"id":"marker"}`, []string{`"/id" (format)`}},
		{`{` + id + `,"tags":["marker","marker"]}`, []string{`"/tags" (uniqueItems)`}},
		{`{` + id + `,"state":"marker"}`, []string{`"/state" (enum)`}},
		{`{` + id + `,"sku":"marker"}`, []string{`"/sku" (pattern)`}},
		{`[]`, []string{`"the whole" (type)`}},
	} {
		err := s.Validate(parsed(t, tt.text))
		var misfit *ValidationError
		errors.As(err, &misfit)
		var got []string
		if misfit != nil {
			for _, m := range misfit.Misfits {
				got = append(got, m.String())
			}
		}
		if !slices.Equal(got, tt.want) || (err != nil) != (tt.want != nil) {
			t.Errorf("%s: %v", tt.text, got)
		}
		if err != nil && strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: a value is told: %v", tt.text, err)
		}
	}
}

func TestD4Free(t *testing.T) {
	const text = `{"id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","mail":"ada@example.com","note":"n1","country":"AT","state":"new","sku":"AB-123","name":"n2","count":3,"tags":["n3"]}`
	free := func(d *Document) (got []string) {
		for l := range d.Free() {
			got = append(got, d.Pointer(l.Node)+"="+l.Text)
		}
		return got
	}
	d := parsed(t, text)
	if got := free(d); len(got) != 17 {
		t.Errorf("before: %v", got)
	}
	if err := compiled(t, order).Validate(d); err != nil {
		t.Fatal(err)
	}
	if got := free(d); !slices.Equal(got, []string{"/note=n1", "/name=n2", "/tags/0=n3"}) {
		t.Errorf("after: %v", got)
	}
	// What is allowed without being named stays free: names too, and text of formats
	// and patterns in which an attack has room.
	for schema, tt := range map[string][2]string{
		`{"type":"object"}`:                         {`{"a' or 1=1":"x"}`, "/a' or 1=1=a' or 1=1 /a' or 1=1=x"},
		`{"format":"email"}`:                        {`"\"' or 1=1--\"@example.com"`, `="' or 1=1--"@example.com`},
		`{"format":"uri"}`:                          {`"http://a/?q=alert(1)"`, "=http://a/?q=alert(1)"},
		`{"pattern":"^[a-z]+"}`:                     {`"a<script>"`, "=a<script>"},
		`{"pattern":"^[a-z]+$|x"}`:                  {`"abc"`, "=abc"},
		`{"pattern":"^[^x]+$"}`:                     {`"abc"`, "=abc"},
		`{"pattern":"^[a-z]+$"}`:                    {`"` + strings.Repeat("a", 129) + `"`, "=" + strings.Repeat("a", 129)},
		`{"not":{"const":"b"}}`:                     {`"abc"`, "=abc"},
		`{"anyOf":[{"maxLength":2},{"const":"a"}]}`: {`"abc"`, ""},
		`{"const":{"a":["b"]}}`:                     {`{"a":["b"]}`, ""},
	} {
		d := parsed(t, tt[0])
		err := compiled(t, schema).Validate(d)
		if got := strings.Join(free(d), " "); got != tt[1] && (err == nil || tt[1] != "") {
			t.Errorf("%s: %q, %v", schema, got, err)
		}
	}
}

func TestPointer(t *testing.T) {
	d := parsed(t, `{"a":[{"b/c":[true,"x"]},{"d~":{}}],"e":"y"}`)
	var got []string
	for i := range d.nodes {
		if !d.nodes[i].name {
			got = append(got, d.Pointer(i))
		}
	}
	if want := []string{"", "/a", "/a/0", "/a/0/b~1c", "/a/0/b~1c/0", "/a/0/b~1c/1", "/a/1", "/a/1/d~0", "/e"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestD1SchemasThatAreNone(t *testing.T) {
	for _, text := range []string{
		`{"$ref":"file:///etc/passwd"}`, `{"$ref":"https://example.com/s.json"}`, `{"type":7}`, `{`, `{"type":"object","type":"string"}`,
		`{"multipleOf":1e5000000}`, `{"pattern":"("}`, `{"$ref":"#/nowhere"}`, `{"$schema":"https://example.com/meta"}`,
		`{"pattern":"` + strings.Repeat("[xy]{100}", 100) + `"}`, `{"description":"` + strings.Repeat("x", 64<<10) + `"}`,
	} {
		if _, err := Compile(text); err == nil {
			t.Errorf("%.60s is a schema", text)
		}
	}
}

// TestD1Work: no schema makes the node work for longer than the document is worth.
func TestD1Work(t *testing.T) {
	var chain strings.Builder
	chain.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
	for i := range 60 {
		fmt.Fprintf(&chain, `"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]},`, i, i+1, i+1)
	}
	chain.WriteString(`"a60":true}}`)
	deep := strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)
	meta := `{"allOf":[` + strings.Repeat(`{"$ref":"https://json-schema.org/draft/2020-12/schema"},`, 500) + `true]}`
	for name, tt := range map[string]struct{ schema, in string }{
		"a chain":               {chain.String(), `{}`},
		"a circle":              {`{"$ref":"#"}`, `{}`},
		"at each depth":         {`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`, deep},
		"within not":            {`{"not":{"properties":{"a":{"$ref":"#"}},"patternProperties":{"a":{"$ref":"#"},"a$":{"$ref":"#"}},"type":"object"}}`, deep},
		"by patterns":           {`{"patternProperties":{"a":{"$ref":"#"},"a$":{"$ref":"#"}}}`, deep},
		"a dynamic reference":   {`{"$dynamicAnchor":"x","properties":{"a":{"allOf":[{"$dynamicRef":"#x"},{"$dynamicRef":"#x"}]}}}`, deep},
		"metaschemas":           {meta, `{"properties":{` + strings.TrimSuffix(strings.Repeat(`"a%":{"type":"string"},`, 1), ",") + `}}`},
		"a regular expression":  {`{"pattern":"(x+x+)+` + strings.Repeat("[xy]{100}", 40) + `y"}`, `"` + strings.Repeat("x", 1<<20) + `"`},
		"expressions as values": {`{"format":"regex"}`, `"` + strings.Repeat("(a+)", 1<<18) + `"`},
		"unlike items":          {`{"items":{"uniqueItems":true,"items":{"contains":{"contains":{"contains":{"not":true}}}}}}`, "[" + strings.Repeat("[[[[[1,2]]]],[[[[1,2],[3]]]]],", 3000) + "[]]"},
	} {
		s, err := Compile(tt.schema)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		d, err := Parse([]byte(tt.in), 64)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var e *ValidationError
		if err := s.Validate(d); name != "unlike items" && (!errors.As(err, &e) || !e.Work) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is read is what encoding/json reads, and what it refuses is refused.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,true,null,"\u00e9\ud83d\ude00"]}`, `{"a":1,"a":2}`, `"\ud800"`, `[1e400]`, "\"\xff\"", `{"__proto__":{}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data, 64)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatalf("%q is read", data)
		}
		var v any
		e := json.NewDecoder(bytes.NewReader(data))
		e.UseNumber()
		if err := e.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if got, next := value(d, 0); !reflect.DeepEqual(got, v) || next != len(d.nodes) {
			t.Fatalf("%q is read as %v", data, got)
		}
		for i := range d.nodes {
			_ = d.Pointer(i)
		}
		_ = d.Prototype()
	})
}

// value makes of a document what encoding/json does.
func value(d *Document, at int) (any, int) {
	n := &d.nodes[at]
	switch n.kind {
	case False, True:
		return n.kind == True, at + 1
	case Number:
		return json.Number(d.string(n)), at + 1
	case String:
		return string(d.string(n)), at + 1
	case Array:
		all, i := []any{}, at+1
		for range n.count {
			var v any
			v, i = value(d, i)
			all = append(all, v)
		}
		return all, i
	case Object:
		all, i := map[string]any{}, at+1
		for range n.count {
			name := string(d.string(&d.nodes[i]))
			all[name], i = value(d, i+1)
		}
		return all, i
	}
	return nil, at + 1
}

// What fits is what fits by the library that compiles the schemas.
func FuzzValidate(f *testing.F) {
	f.Add(order, []byte(`{"id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","count":3,"price":19.99,"tags":["a","b"]}`))
	f.Add(`{"anyOf":[{"minimum":3},{"type":"string"}],"unevaluatedProperties":false}`, []byte(`{"a":1}`))
	f.Add(`{"if":{"required":["a"]},"then":{"properties":{"a":{"multipleOf":0.1}}},"else":false,"unevaluatedProperties":{"type":"null"}}`, []byte(`{"a":1.30,"b":null}`))
	f.Add(`{"prefixItems":[true,{"const":1.0}],"contains":{"enum":["x",{"a":[1]}]},"unevaluatedItems":{"type":"integer"}}`, []byte(`[1,1,"x",{"a":[1.0]},2]`))
	f.Add(`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"string"}],"additionalItems":{"uniqueItems":true},"dependencies":{"a":["b"]}}`, []byte(`["a",[1,1.0]]`))
	f.Add(`{"$dynamicAnchor":"x","oneOf":[{"type":"null"},{"additionalProperties":{"$dynamicRef":"#x"}}]}`, []byte(`{"a":{"b":null}}`))
	f.Fuzz(func(t *testing.T, text string, data []byte) {
		d, err := Parse(data, 64)
		if err != nil || len(text) > 2000 {
			return
		}
		s, err := Compile(text)
		if err != nil {
			return
		}
		got := s.Validate(d)
		var e *ValidationError
		if errors.As(got, &e) && e.Work {
			return
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.UseLoader(noLoader{})
		c.AssertFormat()
		if err := c.AddResource("bawn:schema", doc); err != nil {
			t.Fatal(err)
		}
		l, err := c.Compile("bawn:schema")
		if err != nil {
			t.Skip()
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if want := l.Validate(v); (got == nil) != (want == nil) {
			t.Fatalf("%s\n%s\n%v\n%v", text, data, got, want)
		}
	})
}

func BenchmarkOrder(b *testing.B) {
	s := compiled(b, order)
	text := []byte(`{"id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","mail":"ada@example.com","note":"` + strings.Repeat("please ring twice ", 10) +
		`","country":"AT","state":"new","sku":"AB-123","name":"Ada Lovelace","count":3,"price":19.99,"tags":["a","b","` + strings.Repeat("c", 500) + `"]}`)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		d, err := Parse(text, 64)
		if err != nil || s.Validate(d) != nil {
			b.Fatal(err)
		}
	}
}
