package egress

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/schema"
	"bawn.dev/bawn/internal/secret"
	"pgregory.net/rapid"
)

const person = `{"type":"object","properties":{"name":{"type":"string"},"mail":{"type":"string","format":"email"},"age":{"type":"integer","minimum":0}},"required":["name"],"additionalProperties":false}`

func answering(p *bawn.Response) *bawn.Version {
	v := &bawn.Version{Tenant: "main", Function: "f", Number: 1}
	v.Perimeter.Egress.Response = p
	return v
}

// release returns what leaves of a payload, or why nothing does.
func release(t *testing.T, p *bawn.Response, r *bawn.Result) (string, *Refusal) {
	t.Helper()
	err := NewReleaser(nil).Release(answering(p), r)
	if err == nil {
		return string(r.Payload), nil
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) || bawn.ErrorCode(err) != bawn.CodeFunctionError {
		t.Fatal(err)
	}
	return "", refusal
}

func TestD2Schema(t *testing.T) {
	for _, tt := range []struct{ name, in, out, refused string }{
		{"fits", `{"name":"Ada","age":36}`, `{"name":"Ada","age":36}`, ""},
		{"an undeclared field", `{"name":"Ada","marker":1}`, "", "the whole"},
		{"a wrong type", `{"name":"Ada","age":"marker"}`, "", "/age"},
		{"a wrong format", `{"name":"Ada","mail":"marker"}`, "", "/mail"},
		{"two readings", `{"name":"Ada","age":1,"age":"marker"}`, "", "twice"},
		{"not JSON", `marker`, "", "JSON"},
		{"nothing", ``, "", "JSON"},
		{"more than one value", `{"name":"Ada"} {"marker":1}`, "", "JSON"},
		{"a number without end", `{"name":"Ada","age":1e99999999}`, "", "number"},
		{"too deep", strings.Repeat("[", 500) + strings.Repeat("]", 500), "", "deeper"},
		{"the body of a response", `{"statusCode":200,"headers":{"X-A":"1"},"body":"{\"name\":\"Ada\"}"}`, `{"body":"{\"name\":\"Ada\"}","headers":{"X-A":"1"},"statusCode":200}`, ""},
		{"its base64", `{"statusCode":200,"isBase64Encoded":true,"body":"` + base64.StdEncoding.EncodeToString([]byte(`{"name":"Ada"}`)) + `"}`, `{"body":"eyJuYW1lIjoiQWRhIn0=","isBase64Encoded":true,"statusCode":200}`, ""},
		{"a body that does not fit", `{"statusCode":200,"body":"{\"name\":7}"}`, "", "/name"},
		{"a body of an error", `{"statusCode":500,"body":"marker"}`, "", "JSON"},
		{"no body", `{"statusCode":204}`, `{"statusCode":204}`, ""},
		{"beside the body", `{"statusCode":204,"marker":"x"}`, `{"statusCode":204}`, ""},
		{"another spelling", `{"StatusCode":200,"Body":"marker"}`, "", "spelled"},
		{"two spellings", `{"statusCode":200,"body":"{\"name\":\"Ada\"}","bOdy":"marker"}`, "", "spelled"},
	} {
		out, refusal := release(t, &bawn.Response{Schema: person}, &bawn.Result{Payload: []byte(tt.in)})
		switch {
		case tt.refused == "" && refusal != nil:
			t.Errorf("%s: refused: %v", tt.name, refusal)
		case out != tt.out:
			t.Errorf("%s: %s leaves", tt.name, out)
		case tt.refused != "" && (refusal.Control != "D2" || !strings.Contains(refusal.Error(), tt.refused)):
			t.Errorf("%s: %v", tt.name, refusal)
		case tt.refused != "" && strings.Contains(refusal.Error(), "marker"):
			t.Errorf("%s: the refusal tells a value: %v", tt.name, refusal)
		}
	}
}

func TestD2SchemaOfDraft7(t *testing.T) {
	const tuple = `{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"n":{"type":"number"}},"items":[{"$ref":"#/definitions/n"}]}`
	if _, refusal := release(t, &bawn.Response{Schema: tuple}, &bawn.Result{Payload: []byte(`[1]`)}); refusal != nil {
		t.Error(refusal)
	}
	if _, refusal := release(t, &bawn.Response{Schema: tuple}, &bawn.Result{Payload: []byte(`["x"]`)}); refusal == nil {
		t.Error("a string is a number")
	}
	for _, text := range []string{`{"$ref":"file:///etc/passwd"}`, `{"$ref":"https://example.com/s.json"}`, `{"type":7}`, `{`} {
		if _, err := schema.Compile(text); err == nil {
			t.Errorf("%s is a schema", text)
		}
	}
}

// An error document is no way around the schema.
func TestD2SchemaAndErrors(t *testing.T) {
	out, refusal := release(t, &bawn.Response{Schema: person}, &bawn.Result{FunctionError: "Unhandled", Payload: []byte(`{"errorMessage":"marker"}`)})
	if refusal != nil || strings.Contains(out, "marker") {
		t.Error(out, refusal)
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestD2SchemaAndStreams(t *testing.T) {
	src := &closing{Reader: strings.NewReader("x")}
	r := &bawn.Result{Stream: src}
	if _, refusal := release(t, &bawn.Response{Schema: person}, r); refusal == nil || !src.closed || r.Stream != nil {
		t.Error("a stream leaves that nothing can be held against", refusal)
	}
}

func TestD2Bytes(t *testing.T) {
	if _, refusal := release(t, &bawn.Response{Bytes: 4}, &bawn.Result{Payload: []byte(`12345`)}); refusal == nil {
		t.Error("too much leaves")
	}
	if _, refusal := release(t, &bawn.Response{Bytes: 5}, &bawn.Result{Payload: []byte(`12345`)}); refusal != nil {
		t.Error(refusal)
	}
	if _, refusal := release(t, nil, &bawn.Result{Payload: make([]byte, bawn.MaxResponseBytes+1)}); refusal == nil {
		t.Error("more than the platform's bound leaves")
	}
	r := &bawn.Result{Stream: &closing{Reader: iotest.OneByteReader(strings.NewReader("12345"))}}
	if _, refusal := release(t, &bawn.Response{Bytes: 4}, r); refusal != nil {
		t.Fatal(refusal)
	}
	got, err := io.ReadAll(r.Stream)
	var refusal *Refusal
	if string(got) != "1234" || !errors.As(err, &refusal) {
		t.Errorf("%q %v", got, err)
	}
}

func TestD2Headers(t *testing.T) {
	p := &bawn.Response{Headers: []string{"Content-Type", "X-Good"}}
	out, refusal := release(t, p, &bawn.Result{Payload: []byte(
		`{"statusCode":200,"headers":{"content-type":"text/plain","x-leak":"1"},"multiValueHeaders":{"X-Leak":["2"],"X-GOOD":["3"]},"cookies":["a=4"],"body":"<b>\u00e9"}`)})
	if want := `{"body":"<b>é","headers":{"content-type":"text/plain"},"multiValueHeaders":{"X-GOOD":["3"]},"statusCode":200}`; refusal != nil || out != want {
		t.Errorf("%s %v", out, refusal)
	}
	if out, _ := release(t, p, &bawn.Result{Payload: []byte(`{"headers":"of nothing"}`)}); out != `{"headers":"of nothing"}` {
		t.Error(out)
	}
	head := `{"statusCode":201,"headers":{"X-Leak":"1","X-Good":"2"},"cookies":["a=4"]}`
	for _, tt := range []struct{ name, in, want string }{
		{"a head", head + string(preludeEnd) + "body\x00\x00", `{"headers":{"X-Good":"2"},"statusCode":201}` + string(preludeEnd) + "body\x00\x00"},
		{"no end", `{"statusCode":201}`, ""},
		{"no head", "[]" + string(preludeEnd) + "body", ""},
	} {
		for name, whole := range map[string]bool{"whole": true, "stream": false} {
			r := &bawn.Result{ContentType: bawn.PreludeType}
			if whole {
				r.Payload = []byte(tt.in)
			} else {
				r.Stream = &closing{Reader: iotest.OneByteReader(strings.NewReader(tt.in))}
			}
			out, refusal := release(t, p, r)
			if !whole {
				got, err := io.ReadAll(r.Stream)
				out = string(got)
				errors.As(err, &refusal)
			}
			if out != tt.want || (refusal != nil) != (tt.want == "") {
				t.Errorf("%s, %s: %q %v", tt.name, name, out, refusal)
			}
		}
	}
}

func TestD7Cards(t *testing.T) {
	for _, tt := range []struct{ in, out string }{
		{`{"card":"4111 1111 1111 1111"}`, `{"card":"**** **** **** 1111"}`},
		{`{"card":"4111-1111-1111-1111."}`, `{"card":"****-****-****-1111."}`},
		{`"378282246310005 and 5555555555554444"`, `"***********0005 and ************4444"`},
		{`"line\n4111111111111111"`, `"line\n************1111"`},
		{`{"statusCode":200,"body":"{\"c\":\"4111111111111111\"}"}`, `{"body":"{\"c\":\"************1111\"}","statusCode":200}`},
		{`{"statusCode":200,"isBase64Encoded":true,"body":"NDExMTExMTExMTExMTExMQ=="}`, `{"body":"KioqKioqKioqKioqMTExMQ==","isBase64Encoded":true,"statusCode":200}`},
		{`{"statusCode":200,"headers":{"X-C":"4111111111111111"}}`, `{"headers":{"X-C":"************1111"},"statusCode":200}`},
		// Not cards: wrong check digit, another network, parts of words and of numbers.
		{`"4111111111111112"`, `"4111111111111112"`},
		{`{"ms":1732200000000,"id":9999999999999995}`, `{"ms":1732200000000,"id":9999999999999995}`},
		{`"a4111111111111111 4111111111111111b 0.4111111111111111 41111111111111110000"`, `"a4111111111111111 4111111111111111b 0.4111111111111111 41111111111111110000"`},
	} {
		if out, refusal := release(t, &bawn.Response{Cards: "redact"}, &bawn.Result{Payload: []byte(tt.in)}); out != tt.out {
			t.Errorf("%s became %s, want %s (%v)", tt.in, out, tt.out, refusal)
		}
		_, refusal := release(t, &bawn.Response{Cards: "refuse"}, &bawn.Result{Payload: []byte(tt.in)})
		if refused := refusal != nil; refused != (strings.Contains(tt.out, "**") || strings.Contains(tt.out, "Kio")) {
			t.Errorf("%s: %v", tt.in, refusal)
		}
	}
	if _, refusal := release(t, &bawn.Response{Cards: "redact"}, &bawn.Result{Payload: []byte(`{"card":4111111111111111}`)}); refusal == nil || refusal.Control != "D7" {
		t.Error("what leaves is no JSON")
	}
}

// However a stream is cut, no card number leaves it, and nothing else changes.
func TestD7CardsInStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const card = "5555 5555 5555 4444"
		before := rapid.StringMatching(`([0-9 .-]{0,80}|[a-z ]{0,9}): `).Draw(t, "before")
		after := rapid.StringMatching(`[;,"][0-9 a-z.-]{0,80}`).Draw(t, "after")
		text := []byte(before + card + after)
		whole := bytes.Clone(text)
		hideCards(whole, 0, [2]byte{}, true)
		if bytes.Contains(whole, []byte(card)) || !bytes.Contains(whole, []byte("**** **** **** 4444"+after[:1])) {
			t.Fatalf("%q", whole)
		}
		var parts []io.Reader
		for rest := text; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 20).Draw(t, "cut"))
			parts, rest = append(parts, bytes.NewReader(rest[:n])), rest[n:]
		}
		got, err := io.ReadAll(&cardReader{r: io.MultiReader(parts...)})
		if err != nil || bytes.Contains(got, []byte(card)) || len(got) != len(text) {
			t.Fatalf("%q %v", got, err)
		}
		r := &cardReader{r: bytes.NewReader(text), refuse: true}
		if got, err := io.ReadAll(r); err == nil || bytes.Contains(got, []byte("4444")) && !strings.Contains(before, "4444") {
			t.Fatalf("%q %v", got, err)
		}
	})
}

func TestD7SecretsOfAnswers(t *testing.T) {
	const value = "the-hidden-value"
	v := answering(&bawn.Response{Headers: []string{"X-A"}})
	v.Perimeter.Egress.Secrets = []bawn.SecretUse{{Name: "s"}}
	o := NewReleaser(func(*bawn.Version) *secret.Redactor { return secret.NewRedactor([][]byte{[]byte(value)}) })
	broken := &bawn.StreamError{Payload: []byte(`{"errorMessage":"` + value + `"}`)}
	head := `{"headers":{"X-A":"` + value + `"}}` + string(preludeEnd)
	for name, r := range map[string]*bawn.Result{
		"a payload": {Payload: []byte(`{"a":"` + value + `"}`)},
		"a header":  {Payload: []byte(`{"statusCode":200,"headers":{"X-A":"` + value + `"}}`)},
		"base64":    {Payload: []byte(`{"statusCode":200,"isBase64Encoded":true,"body":"` + base64.StdEncoding.EncodeToString([]byte("x"+value)) + `"}`)},
		"an error":  {FunctionError: "Unhandled", Payload: []byte(`{"errorMessage":"` + value + `"}`)},
		"a stream":  {Stream: &closing{Reader: iotest.OneByteReader(strings.NewReader("a " + value + " b"))}},
		"a failed":  {Stream: &closing{Reader: io.MultiReader(strings.NewReader("a"), iotest.ErrReader(broken))}},
		"a prelude": {ContentType: bawn.PreludeType, Stream: &closing{Reader: strings.NewReader(head + value)}},
		"a type":    {ContentType: "text/" + value, Payload: []byte(`{}`)},
	} {
		if err := o.Release(v, r); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out := append([]byte(r.ContentType), r.Payload...)
		if r.Stream != nil {
			b, err := io.ReadAll(r.Stream)
			out = append(out, b...)
			var failed *bawn.StreamError
			if errors.As(err, &failed) {
				out = append(out, failed.Payload...)
			}
		}
		for _, bad := range []string{value, base64.StdEncoding.EncodeToString([]byte("x" + value))[4:20]} {
			if bytes.Contains(out, []byte(bad)) {
				t.Errorf("%s: %s leaves", name, out)
			}
		}
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte(`{"statusCode":200,"headers":{"a":"b"},"body":"{}"}`), false)
	f.Add([]byte("{\"statusCode\":200}\x00\x00\x00\x00\x00\x00\x00\x00{}"), true)
	f.Add([]byte(`{"name":"4111111111111111"}`), false)
	o := NewReleaser(nil)
	v := answering(&bawn.Response{Schema: person, Headers: []string{"X-A"}, Cards: "redact", Bytes: 1000})
	f.Fuzz(func(t *testing.T, payload []byte, prelude bool) {
		r := &bawn.Result{Payload: bytes.Clone(payload)}
		if prelude {
			r.ContentType = bawn.PreludeType
		}
		if o.Release(v, r) != nil {
			return
		}
		out := r.Payload
		if prelude {
			_, out, _ = bytes.Cut(out, preludeEnd)
		}
		var doc map[string]json.RawMessage
		if len(out) > 0 && json.Unmarshal(out, &doc) != nil {
			t.Fatalf("%q leaves", out)
		}
		for name := range doc {
			if !strings.Contains("name mail age statusCode headers multiValueHeaders cookies isBase64Encoded body", name) {
				t.Fatalf("%s leaves: %s", strconv.Quote(name), out)
			}
		}
	})
}

// TestD2SchemaWork: no schema makes the node work for longer than the answer is worth.
func TestD2SchemaWork(t *testing.T) {
	var chain strings.Builder
	chain.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
	for i := range 60 {
		fmt.Fprintf(&chain, `"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]},`, i, i+1, i+1)
	}
	chain.WriteString(`"a60":true}}`)
	deep := strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)
	for name, tt := range map[string]struct{ schema, in string }{
		"a chain":              {chain.String(), `{}`},
		"at each depth":        {`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`, deep},
		"within not":           {`{"not":{"properties":{"a":{"$ref":"#"}},"patternProperties":{"a":{"$ref":"#"},"a$":{"$ref":"#"}},"type":"object"}}`, deep},
		"by patterns":          {`{"patternProperties":{"a":{"$ref":"#"},"a$":{"$ref":"#"}}}`, deep},
		"a dynamic reference":  {`{"$dynamicAnchor":"x","properties":{"a":{"allOf":[{"$dynamicRef":"#x"},{"$dynamicRef":"#x"}]}}}`, deep},
		"a regular expression": {`{"pattern":"(x+x+)+` + strings.Repeat("[xy]{100}", 40) + `y"}`, `"` + strings.Repeat("x", 1<<20) + `"`},
		"many values":          {`{"items":{"type":"string"}}`, "[" + strings.Repeat("1,", schema.MaxValues) + "1]"},
		"many errors":          {`{"items":{"type":"string"}}`, "[" + strings.Repeat("1,", 2000) + "1]"},
	} {
		if _, refusal := release(t, &bawn.Response{Schema: tt.schema}, &bawn.Result{Payload: []byte(tt.in)}); refusal == nil || len(refusal.Fields) > 0 {
			t.Errorf("%s: %v", name, refusal)
		}
	}
	// What is plain goes out, however large.
	in := "[" + strings.Repeat(`{"id":12345,"name":"Ada"},`, 40000) + "{}]"
	const rows = `{"type":"array","items":{"$ref":"#/$defs/row"},"$defs":{"row":{"type":"object","properties":{"id":{"type":"integer"},"name":{"type":"string","pattern":"^[A-Za-z ]+$"}},"additionalProperties":false}}}`
	if out, refusal := release(t, &bawn.Response{Schema: rows}, &bawn.Result{Payload: []byte(in)}); refusal != nil || out != in {
		t.Error(refusal)
	}
}
