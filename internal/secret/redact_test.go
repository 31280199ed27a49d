package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// A writing is a way to write a value into a text: what stands there, and the part of
// it that tells the value.
type writing struct {
	name string
	text bool   // for values that are text alone
	mark string // what its escapes begin with
	make func(v, before, after []byte) (whole, core string)
}

func inBase64With(e *base64.Encoding) func(v, before, after []byte) (string, string) {
	return func(v, before, after []byte) (string, string) {
		whole := e.EncodeToString(append(append(bytes.Clone(before), v...), after...))
		from, to := len(before)*8, (len(before)+len(v))*8
		return whole, whole[(from+5)/6 : to/6]
	}
}

func alone(f func(string) string) func(v, before, after []byte) (string, string) {
	return func(v, _, _ []byte) (string, string) { s := f(string(v)); return s, s }
}

func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b[1 : len(b)-1])
}

var forms = []writing{
	{"plain", false, "", alone(func(s string) string { return s })},
	{"base64", false, "", inBase64With(base64.StdEncoding)},
	{"base64 for URLs", false, "", inBase64With(base64.URLEncoding)},
	{"base64 without padding", false, "", inBase64With(base64.RawStdEncoding)},
	{"base64 for URLs without padding", false, "", inBase64With(base64.RawURLEncoding)},
	{"hex", false, "", alone(func(s string) string { return hex.EncodeToString([]byte(s)) })},
	{"HEX", false, "", alone(func(s string) string { return fmt.Sprintf("%X", s) })},
	{"he:x", false, "", alone(func(s string) string { return strings.ReplaceAll(fmt.Sprintf("% x", s), " ", ":") })},
	{"query", false, "%", alone(url.QueryEscape)},
	{"path", false, "%", alone(url.PathEscape)},
	{"percent", false, "%", alone(func(s string) string { return "%" + strings.ReplaceAll(fmt.Sprintf("% x", s), " ", "%") })},
	{"JSON", true, `\`, alone(jsonString)},
	{"JSON in JSON", true, `\`, alone(func(s string) string { return jsonString(jsonString(strings.ReplaceAll(s, `\`, "/"))) })},
	{"ASCII", true, `\`, alone(func(s string) string { q := strconv.QuoteToASCII(s); return q[1 : len(q)-1] })},
	{"bytes", false, `\`, alone(func(s string) string { return `\x` + strings.ReplaceAll(fmt.Sprintf("% x", s), " ", `\x`) })},
	{"HTML", true, "&", alone(html.EscapeString)},
}

// split gives text to s in parts.
func split(s *Stream, text []byte, cuts func() int) []byte {
	var out []byte
	for len(text) > 0 {
		n := min(len(text), max(1, cuts()))
		out = s.Append(out, text[:n])
		text = text[n:]
	}
	return s.Flush(out)
}

// Control E5: whatever the values, the texts around them, the encoding and the
// places where the text is cut, no value is left, and what is cut otherwise comes
// out the same.
func TestE5NothingIsLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(forms).Draw(t, "form")
		var values [][]byte
		for range rapid.IntRange(1, 4).Draw(t, "values") {
			v := rapid.SliceOfN(rapid.Byte(), MinRedact, 60).Draw(t, "bytes")
			if f.text || rapid.Bool().Draw(t, "text") {
				v = []byte(rapid.StringN(MinRedact, 60, -1).Draw(t, "string"))
			}
			if f.name == "JSON in JSON" {
				v = bytes.ReplaceAll(v, []byte(`\`), []byte("/"))
			}
			if v = bytes.TrimSpace(v); len(v) >= MinRedact && !bytes.ContainsAny(v, "*-<>.[]\uFFFDsecret0REDACTED") {
				values = append(values, v)
			}
		}
		r := NewRedactor(values)
		if r == nil {
			t.Skip()
		}
		var text []byte
		var cores []string
		// One of these alone before a value is no text of the form: it would have been
		// escaped, and makes another escape of what follows.
		around := rapid.Map(rapid.String(), func(s string) string {
			if f.mark != "" {
				s = strings.ReplaceAll(s, f.mark, "")
			}
			return s
		})
		for _, v := range values {
			text = append(text, around.Draw(t, "between")...)
			whole, core := f.make(v, rapid.SliceOfN(rapid.Byte(), 0, 7).Draw(t, "before"), rapid.SliceOfN(rapid.Byte(), 0, 7).Draw(t, "after"))
			text = append(text, whole...)
			cores = append(cores, core)
		}
		text = append(text, rapid.String().Draw(t, "end")...)
		out := r.Bytes(bytes.Clone(text))
		for _, core := range cores {
			if bytes.Contains(out, []byte(core)) {
				t.Fatalf("%s: %q is left in %q of %q", f.name, core, out, text)
			}
		}
		cut := rapid.IntRange(1, 9)
		if got := split(r.Stream(), text, func() int { return cut.Draw(t, "cut") }); !bytes.Equal(got, out) {
			t.Fatalf("in parts %q, in one %q", got, out)
		}
	})
}

// A text without the values comes out as it went in.
func TestE5OtherTextIsUnchanged(t *testing.T) {
	const unlikely = "k9\x7fQz!w%\\"
	rapid.Check(t, func(t *rapid.T) {
		value := unlikely + rapid.String().Draw(t, "value")
		text := rapid.SliceOf(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte("%\\&+=abcdef0123456789\n:;u{}k9")))).Draw(t, "text")
		r := NewRedactor([][]byte{[]byte(value)})
		if got := r.Bytes(bytes.Clone(text)); !bytes.Equal(got, text) {
			t.Fatalf("%q became %q", text, got)
		}
		cut := rapid.IntRange(1, 9)
		if got := split(r.Stream(), text, func() int { return cut.Draw(t, "cut") }); !bytes.Equal(got, text) {
			t.Fatalf("in parts %q became %q", text, got)
		}
	})
}

func TestE5Forms(t *testing.T) {
	const value = "p4ss w\"rd/+é\n&0"
	r := NewRedactor([][]byte{[]byte(value), []byte("sk_live_51HqLyjWDarjtT1zdp7dc"), []byte("\n padded-value \r\n")})
	wrapped := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", 50) + "sk_live_51HqLyjWDarjtT1zdp7dc" + strings.Repeat("y", 20)))
	var lines strings.Builder
	for i := 0; i < len(wrapped); i += 76 {
		lines.WriteString(wrapped[i:min(len(wrapped), i+76)] + "\r\n")
	}
	for _, tt := range []struct{ in, out string }{
		{"a " + value + " b", "a [secret] b"},
		{value + value, "[secret][secret]"},
		{"sk_live_51HqLyjWDarjtT1zdp7dc", "[secret]"},
		{"sk_live_51HqLyjWDarjtT1zdp7dC", "sk_live_51HqLyjWDarjtT1zdp7dC"},
		{"is padded-value.", "is [secret]."},
		{"Basic " + base64.StdEncoding.EncodeToString([]byte("u:sk_live_51HqLyjWDarjtT1zdp7dc")), "Basic dTREDACTEDREDACTEDREDACTEDREDACTEDREDACTED=="},
		{"x" + hex.EncodeToString([]byte("padded-value")) + "g", "x" + strings.Repeat("0", 24) + "g"},
		{`{"k":"p4ss w\"rd\/+\u00e9\n&0"}`, `{"k":"[secret]"}`},
		{`{"body":"{\"k\":\"p4ss w\\\"rd/+é\\n&0\"}"}`, `{"body":"{\"k\":\"[secret]\"}"}`},
		{"q=p4ss+w%22rd%2F%2b%C3%a9%0A%260&r=1", "q=[secret]&r=1"},
		{"p4ss%20w&quot;rd/+é", "p4ss%20w&quot;rd/+é"}, // two encodings in one
		{"<b>p4ss w&#34;rd/+&eacute;\n&amp;0</b>", "<b>[secret]</b>"},
		{`b'p4ss w"rd/+\xc3\xa9\n&0'`, "b'[secret]'"},
		{"&amp&#x;%zz\\u12 \\ud83d\\u0041 plain", "&amp&#x;%zz\\u12 \\ud83d\\u0041 plain"},
		{"", ""},
	} {
		if got := r.String(tt.in); got != tt.out {
			t.Errorf("%q became %q, want %q", tt.in, got, tt.out)
		}
	}
	if got, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\r\n", "").Replace(r.String(lines.String()))); err != nil || bytes.Contains(got, []byte("sk_live")) {
		t.Errorf("wrapped: %q %v", got, err)
	}
}

func TestE5LinesOfAValue(t *testing.T) {
	pem := "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIB\nqLm1v8vM3kSwz3c2UNzVn8\n-----END KEY-----\n"
	r := NewRedactor([][]byte{[]byte(pem)})
	if got := r.String("l1: qLm1v8vM3kSwz3c2UNzVn8 -----BEGIN KEY-----"); got != "l1: [secret] -----BEGIN KEY-----" {
		t.Errorf("%q", got)
	}
	if got := r.String("a " + pem); got != "a [secret]\n" {
		t.Errorf("%q", got)
	}
}

func TestE5ShortValues(t *testing.T) {
	if NewRedactor(nil) != nil || NewRedactor([][]byte{nil, []byte("12345"), []byte(" a\n")}) != nil {
		t.Error("values that are too short are looked for")
	}
	if got := NewRedactor([][]byte{[]byte("123456")}).String("a123456b"); got != "a[secret]b" {
		t.Errorf("%q", got)
	}
}

func TestE5NilDoesNothing(t *testing.T) {
	var r *Redactor
	b := []byte("text")
	var w bytes.Buffer
	out := r.Writer(&w)
	out.Write(b)
	if err := out.Close(); err != nil || w.String() != "text" || string(r.Bytes(b)) != "text" || r.String("t") != "t" {
		t.Error("nil changes text")
	}
	src := bytes.NewReader(b)
	if r.Reader(src) != io.Reader(src) || r.Stream() != nil || string(r.Stream().Append(nil, b)) != "text" || r.Stream().Flush(nil) != nil {
		t.Error("nil changes text")
	}
}

// What is put in a value's place makes no value together with what is beside it.
func TestE5MarkerMakesNoValue(t *testing.T) {
	r := NewRedactor([][]byte{[]byte("hidden"), []byte("et]tail"), []byte("a***b**")})
	if got := r.String("hiddentail et]tail"); strings.Contains(got, "et]tail") || strings.Contains(got, "hidden") {
		t.Errorf("%q", got)
	}
}

// Nor do the digits put in the place of a value within hex digits make one.
func TestE5DigitsMakeNoValue(t *testing.T) {
	r := NewRedactor([][]byte{make([]byte, 8), []byte("11111111"), []byte("hidden")})
	for in, want := range map[string]string{
		"x" + strings.Repeat("0", 16) + "g": "x" + strings.Repeat("2", 16) + "g",
		"x" + strings.Repeat("31", 8) + "g": "x" + strings.Repeat("2", 16) + "g",
		"x68696464656eg":                    "x222222222222g",
	} {
		if got := r.String(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestE5HalfAValueAtTheEnd(t *testing.T) {
	r := NewRedactor([][]byte{[]byte("0123456789abcdefghij")})
	for in, want := range map[string]string{
		"key 0123456789":     "key [secret]",
		"key 01234567":       "key 01234567",
		"key 0123456789 end": "key 0123456789 end",
		"b MDEyMzQ1Njc4OWFi": "b REDACTEDREDACTED",
	} {
		if got := r.String(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// What is kept back, and what is kept at all, is bounded by the values, whatever
// the text.
func TestE5MemoryIsBounded(t *testing.T) {
	value := strings.Repeat("ab%", 40)
	r := NewRedactor([][]byte{[]byte(value), []byte(strings.Repeat("a", 50))})
	for _, unit := range []string{"a", "ab%", "%61", `\u0061`, "61 ", "YWFh", "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh\r\n", "&#97;", `\`, "%", "&"} {
		s := r.Stream()
		part := []byte(strings.Repeat(unit, 4000/len(unit)))
		var out []byte
		for range 100 {
			out = s.Append(out[:0], part)
			bends := len(s.scan.b64.trail.bends) + len(s.scan.hex.trail.bends)
			for _, e := range s.scan.esc {
				bends += len(e.trail.bends) + len(e.pending)
			}
			if len(s.held) > 8*len(value) || bends > 8*len(value) || len(s.scan.spans) > 8*len(value) {
				t.Fatalf("%q: %d bytes, %d bends and %d spans are kept", unit, len(s.held), bends, len(s.scan.spans))
			}
		}
	}
}

func TestE5ReaderAndWriter(t *testing.T) {
	r := NewRedactor([][]byte{[]byte("the-hidden-value")})
	text := strings.Repeat("some text the-hidden-value, ", 3000)
	want := strings.ReplaceAll(text, "the-hidden-value", Redacted)
	broken := errors.New("broken")
	got, err := io.ReadAll(iotest.OneByteReader(r.Reader(io.MultiReader(iotest.HalfReader(strings.NewReader(text)), iotest.ErrReader(broken)))))
	if string(got) != want || !errors.Is(err, broken) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var out bytes.Buffer
	w := r.Writer(&out)
	for len(text) > 0 {
		n := min(len(text), 1+rand.IntN(40))
		if k, err := w.Write([]byte(text[:n])); k != n || err != nil {
			t.Fatal(k, err)
		}
		text = text[n:]
	}
	if err := w.Close(); err != nil || out.String() != want {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("the-hidden-value"), []byte("text the-hidden-value"), uint64(1))
	f.Add([]byte("aaaaaaa"), []byte(`%61%61\u0061&#97;YWFhYWFhYWE=616161616161`), uint64(2))
	f.Add([]byte("\\\\\\%%%&&&"), []byte(`\\\\\\\\%25%25\x5c&amp;&amp;`), uint64(3))
	f.Fuzz(func(t *testing.T, value, text []byte, seed uint64) {
		r := NewRedactor([][]byte{value})
		if r == nil {
			return
		}
		out := r.Bytes(bytes.Clone(text))
		value = bytes.TrimSpace(value)
		if !strings.Contains(Redacted+filler+"0000", string(value)) && r.marker != "" && bytes.Contains(out, value) && !bytes.ContainsAny(value, "REDACT0*-<>.[]\uFFFDsecret") {
			t.Fatalf("left in %q", out)
		}
		random := rand.New(rand.NewPCG(seed, 0))
		if got := split(r.Stream(), text, func() int { return 1 + random.IntN(9) }); !bytes.Equal(got, out) {
			t.Fatalf("in parts %q, in one %q", got, out)
		}
	})
}

func BenchmarkRedact(b *testing.B) {
	var values [][]byte
	for i := range 8 {
		values = append(values, fmt.Appendf(nil, "sk_live_%d51HqLyjWDarjtT1zdp7dc%d", i, i*7919))
	}
	r := NewRedactor(values)
	doc := []byte(strings.Repeat(`{"id": 1234, "name": "Grace \"Hopper\"", "url": "https://example.com/a?b=c%20d", "text": "some words in a row"},`+"\n", 9000))
	random := []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("\x13\x9fsome binary data\xff\x01"), 50000)))
	for name, text := range map[string][]byte{"json": doc, "base64": random, "attack": bytes.Repeat([]byte("sk_live_151HqLyjWDarjtT1zdp7d"), 30000)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r.Bytes(text)
			}
		})
	}
}
