package egress

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync"
	"unicode/utf8"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Bounds of what is looked at on the way out.
const (
	maxSchemas     = 512 // compiled ones kept
	maxAnswerDepth = 128 // of JSON that is held against a schema
	maxNumber      = 64  // bytes of a number in it
	maxExponent    = 400 // of such a number, either way
	maxFields      = 8   // of an answer that a refusal names
	maxField       = 200 // bytes of such a name
	maxHead        = 128 << 10

	maxValues      = 250_000 // in an answer that is held against a schema
	maxTold        = 2000    // values of one of which is said what does not fit
	schemaSteps    = 20_000  // visits of a schema for any answer, and
	stepsPerValue  = 8       // as many more for each value in it
	schemaText     = 4 << 20 // bytes of text times what a pattern of the schema has, and
	textPerByte    = 64      // as much more for each byte of the answer
	maxPattern     = 5000    // instructions that a regular expression comes to
	regexInstances = 1000    // what a byte of a value of the format regex costs
	maxIdleSchemas = 4       // of one text
)

// preludeEnd stands between the head and the body of a [bawn.PreludeType] answer.
var preludeEnd = make([]byte, 8)

// A Refusal says why an answer does not leave. It is for the owner of the function
// and the record: it tells places in the answer, and never what stands there.
type Refusal struct {
	Control string   // D2 or D7
	Reason  string   // what of egress.response it does not fit
	Fields  []string // JSON pointers into the answer, with the schema's keyword
}

// Error returns the reason and the fields.
func (r *Refusal) Error() string {
	if len(r.Fields) == 0 {
		return r.Reason
	}
	return r.Reason + ": " + strings.Join(r.Fields, ", ")
}

func refuse(control, reason string, fields ...string) error {
	return &bawn.Error{Code: bawn.CodeFunctionError, Op: "release", Message: "the function's answer was stopped on its way out",
		Err: &Refusal{Control: control, Reason: reason, Fields: fields}}
}

// Releaser is the last place that an answer passes before it leaves, for whatever
// trigger: the values of secrets go out of it (control D7), and what the manifest's
// egress.response says is enforced (control D2). It is safe for concurrent use.
type Releaser struct {
	redactor func(*bawn.Version) *secret.Redactor

	mu      sync.RWMutex
	schemas map[string][]*checker // that are idle, by their text
}

// NewReleaser returns a releaser. redactor returns what takes the values of a
// version's secrets out of text, nil if it has none; it is asked only for versions
// that use secrets. It may be nil.
func NewReleaser(redactor func(*bawn.Version) *secret.Redactor) *Releaser {
	if redactor == nil {
		redactor = func(*bawn.Version) *secret.Redactor { return nil }
	}
	return &Releaser{redactor: redactor, schemas: map[string][]*checker{}}
}

// Release looks at an answer of v, and changes it to what may leave. An error is a
// *bawn.Error of CodeFunctionError that wraps a [*Refusal]: nothing of the answer may
// leave then, and a stream is closed. Of a stream the rest is looked at as it is
// read, and its Read may return such an error too.
func (o *Releaser) Release(v *bawn.Version, r *bawn.Result) error {
	if len(r.Payload) > bawn.MaxResponseBytes {
		return refuse("D2", fmt.Sprintf("the function's answer is larger than %d bytes", bawn.MaxResponseBytes))
	}
	var hide *secret.Redactor
	if v.Perimeter.Egress.HasSecrets() {
		hide = o.redactor(v)
	}
	p := v.Perimeter.Egress.Response
	if hide == nil && p == nil {
		return nil
	}
	r.ContentType = hide.String(r.ContentType)
	if r.Stream != nil {
		if p != nil && p.Schema != "" {
			r.Stream.Close()
			r.Stream = nil
			return refuse("D2", "egress.response.schema is declared, and a streamed answer cannot be held against it: answer at once, or declare no schema")
		}
		r.Stream = newReleasing(r, hide, p)
		return nil
	}
	r.Payload = hide.Bytes(r.Payload)
	if p == nil {
		return nil
	}
	return o.enforce(p, r)
}

// enforce holds a complete answer against what is declared.
func (o *Releaser) enforce(p *bawn.Response, r *bawn.Result) error {
	if r.FunctionError != "" {
		// An error document is no answer, and has room for one.
		if p.Schema != "" {
			r.Payload = []byte(`{"errorType":"Unhandled","errorMessage":"the function failed; its log says how"}`)
		}
		return checkCards(p, r.Payload)
	}
	if p.Bytes > 0 && int64(len(r.Payload)) > p.Bytes {
		return refuse("D2", fmt.Sprintf("the function's answer is larger than egress.response.bytes, %d", p.Bytes))
	}
	if p.Schema == "" && len(p.Headers) == 0 && p.Cards == "" {
		return nil
	}
	a, err := readAnswer(r)
	if err != nil {
		return err
	}
	if len(p.Headers) > 0 {
		if err := a.keepHeaders(p.Headers); err != nil {
			return err
		}
	}
	if p.Schema != "" && (len(a.body) > 0 || a.head == nil) {
		if err := o.validate(p.Schema, a.body); err != nil {
			return err
		}
	}
	if err := checkCards(p, a.body); err != nil {
		return err
	}
	if p.Cards != "" {
		for name, raw := range a.head {
			if name != "body" {
				a.head[name] = bytes.Clone(raw)
				if err := checkCards(p, a.head[name]); err != nil {
					return err
				}
			}
		}
	}
	if r.Payload, err = a.payload(); err != nil {
		return err
	}
	return nil
}

// A response is an answer in parts: of one that describes an HTTP response its head
// and its body, otherwise everything is the body.
type response struct {
	head    map[string]json.RawMessage // nil if it describes none
	body    []byte                     // not the payload's own bytes
	prelude bool                       // whether the two stand one after the other
	base64  bool                       // how the body stands in the head
}

// The members of a response's head, and with them of an HTTP answer.
var headMembers = []string{"statusCode", "headers", "multiValueHeaders", "cookies", "isBase64Encoded", "body"}

// readAnswer takes a payload apart as the triggers do. What they do not read of a
// head is left out.
func readAnswer(r *bawn.Result) (*response, error) {
	if r.ContentType == bawn.PreludeType {
		head, body, ok := bytes.Cut(r.Payload, preludeEnd)
		a := &response{body: bytes.Clone(body), prelude: true}
		if !ok {
			return nil, refuse("D2", "the answer does not say where its head ends")
		}
		var err error
		a.head, err = readHead(head)
		return a, err
	}
	a := &response{body: bytes.Clone(r.Payload)}
	var members map[string]json.RawMessage
	if json.Unmarshal(r.Payload, &members) != nil || !hasStatus(members) {
		return a, nil
	}
	head, err := readHead(r.Payload)
	if err != nil {
		return nil, err
	}
	a.head, a.body = head, nil
	raw, ok := head["body"]
	if !ok || string(raw) == "null" {
		return a, nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil || head["isBase64Encoded"] != nil && json.Unmarshal(head["isBase64Encoded"], &a.base64) != nil {
		return nil, refuse("D2", "the answer is no HTTP response: its body is not a string, or isBase64Encoded not a truth value")
	}
	if a.body = []byte(text); a.base64 {
		if a.body, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, refuse("D2", "the answer's body is not base64, though isBase64Encoded says so", "/body")
		}
	}
	return a, nil
}

// hasStatus reports whether members are of an HTTP response. Spelled otherwise the
// name counts too: a reader may take it for the same.
func hasStatus(members map[string]json.RawMessage) bool {
	for name := range members {
		if strings.EqualFold(name, "statusCode") {
			return true
		}
	}
	return false
}

// readHead reads the members that a response may have, in their one spelling.
func readHead(data []byte) (map[string]json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil || members == nil {
		return nil, refuse("D2", "the head of the answer is not a JSON object")
	}
	head := map[string]json.RawMessage{}
	for name, raw := range members {
		for _, known := range headMembers {
			switch {
			case name == known:
				head[name] = raw
			case strings.EqualFold(name, known):
				return nil, refuse("D2", "a member of the answer is spelled like "+known+" and is not the same")
			}
		}
	}
	return head, nil
}

// keepHeaders leaves out every header that is not in allowed, which is in canonical
// form.
func (a *response) keepHeaders(allowed []string) error {
	keep := make(map[string]bool, len(allowed))
	for _, name := range allowed {
		keep[name] = true
	}
	for _, member := range []string{"headers", "multiValueHeaders"} {
		raw := a.head[member]
		if raw == nil {
			continue
		}
		var headers map[string]json.RawMessage
		if err := json.Unmarshal(raw, &headers); err != nil {
			return refuse("D2", "the answer's "+member+" are not an object", "/"+member)
		}
		for name := range headers {
			if !keep[http.CanonicalHeaderKey(name)] {
				delete(headers, name)
			}
		}
		var err error
		if a.head[member], err = encode(headers); err != nil {
			return refuse("D2", "the answer's "+member+" cannot be written", "/"+member)
		}
	}
	if !keep["Set-Cookie"] {
		delete(a.head, "cookies")
	}
	return nil
}

// payload puts the answer together again.
func (a *response) payload() ([]byte, error) {
	if a.head == nil {
		return a.body, nil
	}
	if !a.prelude && a.head["body"] != nil && string(a.head["body"]) != "null" {
		text := string(a.body)
		if a.base64 {
			text = base64.StdEncoding.EncodeToString(a.body)
		}
		var err error
		if a.head["body"], err = encode(text); err != nil {
			return nil, refuse("D2", "the answer cannot be written")
		}
	}
	head, err := encode(a.head)
	if err != nil {
		return nil, refuse("D2", "the answer's head is no JSON any more without what is left out of it")
	}
	if a.prelude {
		return append(append(head, preludeEnd...), a.body...), nil
	}
	return head, nil
}

// encode returns v as JSON, with every character that may stand as it is.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// validate holds body against a schema. How much work that is, is bounded: a schema
// can ask for exponentially much, and nothing else ends it.
func (o *Releaser) validate(text string, body []byte) (err error) {
	values, reason := checkJSON(body)
	if reason != "" {
		return refuse("D2", reason)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return refuse("D2", "the answer is not JSON, and egress.response.schema says what JSON it is")
	}
	c, err := o.schema(text)
	if err != nil {
		return err
	}
	defer func() {
		switch p := recover(); p {
		case nil:
		case errTooMuch:
			err = refuse("D2", "to hold the answer against egress.response.schema takes too much work: a simpler schema, without alternatives within alternatives, or a smaller answer")
		default: // in a library, on what a function made: not the node's end
			err = refuse("D2", "the answer cannot be held against egress.response.schema")
		}
		o.idle(text, c)
	}()
	c.steps, c.text = schemaSteps+stepsPerValue*int64(values), schemaText+textPerByte*int64(len(body))
	if c.misfits.Validate(doc) != nil {
		return nil
	}
	var invalid *jsonschema.ValidationError
	var fields []string
	if values <= maxTold && errors.As(c.schema.Validate(doc), &invalid) {
		fields = places(nil, invalid)
	}
	return refuse("D2", "the answer does not fit egress.response.schema", fields...)
}

// places lists where an answer does not fit, innermost first.
func places(dst []string, e *jsonschema.ValidationError) []string {
	for _, cause := range e.Causes {
		dst = places(dst, cause)
	}
	if len(e.Causes) > 0 || len(dst) >= maxFields {
		return dst
	}
	var b strings.Builder
	for _, name := range e.InstanceLocation {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}
	place := b.String()
	if len(place) > maxField {
		place = strings.ToValidUTF8(place[:maxField], "") + "..."
	}
	if place == "" {
		place = "the whole"
	}
	return append(dst, fmt.Sprintf("%q (%s)", place, strings.Join(e.ErrorKind.KeywordPath(), "/")))
}

// schema returns the compiled schema of a text, which was checked at deploy, for the
// caller alone.
func (o *Releaser) schema(text string) (*checker, error) {
	o.mu.Lock()
	if idle := o.schemas[text]; len(idle) > 0 {
		c := idle[len(idle)-1]
		o.schemas[text] = idle[:len(idle)-1]
		o.mu.Unlock()
		return c, nil
	}
	o.mu.Unlock()
	c, err := compileSchema(text)
	if err != nil {
		return nil, refuse("D2", "egress.response.schema cannot be used: deploy the function again")
	}
	return c, nil
}

// idle keeps c for the next answer.
func (o *Releaser) idle(text string, c *checker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.schemas[text] == nil && len(o.schemas) >= maxSchemas {
		clear(o.schemas)
	}
	if len(o.schemas[text]) < maxIdleSchemas {
		o.schemas[text] = append(o.schemas[text], c)
	}
}

// A checker is a compiled schema that panics with errTooMuch when its work is used
// up. It is for one answer at a time.
type checker struct {
	schema, misfits *jsonschema.Schema // misfits fits what does not fit, and remembers no reasons
	steps, text     int64              // that are left
}

var errTooMuch = errors.New("too much work")

func (c *checker) work(steps, text int64) {
	c.steps -= steps
	if c.text -= text; c.steps < 0 || c.text < 0 {
		panic(errTooMuch)
	}
}

func compileSchema(text string) (_ *checker, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be compiled: %v", p)
		}
	}()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	k := &checker{}
	c := jsonschema.NewCompiler()
	c.UseLoader(nil) // a schema reads no file and no host
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseRegexpEngine(func(expr string) (jsonschema.Regexp, error) { return newCountedPattern(k, expr) })
	const name, not = "bawn:response", "bawn:misfits"
	if err := c.AddResource(name, doc); err != nil {
		return nil, err
	}
	if err := c.AddResource(not, map[string]any{"not": map[string]any{"$ref": name}}); err != nil {
		return nil, err
	}
	if k.schema, err = c.Compile(name); err != nil {
		return nil, err
	}
	if k.misfits, err = c.Compile(not); err != nil {
		return nil, err
	}
	return k, k.watch(k.schema, map[*jsonschema.Schema]bool{})
}

// A countedPattern is a regular expression that counts its work.
type countedPattern struct {
	*regexp.Regexp
	c    *checker
	cost int64
}

func newCountedPattern(c *checker, expr string) (jsonschema.Regexp, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, err
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(prog.Inst) > maxPattern {
		return nil, errors.New("the regular expression is too large")
	}
	return &countedPattern{re, c, int64(len(prog.Inst))}, nil
}

// MatchString matches.
func (p *countedPattern) MatchString(s string) bool {
	p.c.work(0, p.cost*int64(len(s)))
	return p.Regexp.MatchString(s)
}

// watch has every visit of s and of what it leads to counted: formats are what is
// looked at first, and can be had from outside of the library.
func (c *checker) watch(s *jsonschema.Schema, seen map[*jsonschema.Schema]bool) error {
	if s == nil || seen[s] || strings.HasPrefix(s.Location, "http://json-schema.org/") || strings.HasPrefix(s.Location, "https://json-schema.org/") {
		return nil
	}
	seen[s] = true
	if s.DynamicRef != nil || s.RecursiveRef != nil {
		return errors.New("$dynamicRef and $recursiveRef cannot be followed beforehand")
	}
	var below []*jsonschema.Schema
	add := func(v any) {
		switch v := v.(type) {
		case *jsonschema.Schema:
			if v != nil {
				below = append(below, v)
			}
		case []*jsonschema.Schema:
			below = append(below, v...)
		}
	}
	// What is visited at the same value, whether or not it fails at once.
	for _, v := range []any{s.Ref, s.Not, s.AllOf, s.AnyOf, s.OneOf, s.If, s.Then, s.Else, s.ContentSchema} {
		add(v)
	}
	for _, v := range s.Dependencies {
		add(v)
	}
	for _, v := range s.DependentSchemas {
		add(v)
	}
	here := int64(1 + len(below))
	for _, v := range []any{s.PropertyNames, s.AdditionalProperties, s.UnevaluatedProperties, s.Contains, s.Items, s.AdditionalItems, s.PrefixItems, s.Items2020, s.UnevaluatedItems} {
		add(v)
	}
	for _, v := range s.Properties {
		add(v)
	}
	for _, v := range s.PatternProperties {
		add(v)
	}
	each := int64(1 + len(s.PatternProperties)) // of what is in the value
	was := s.Format
	name := ""
	if was != nil {
		name = was.Name
	}
	s.Format = &jsonschema.Format{Name: name, Validate: func(v any) error {
		steps, text := here, int64(0)
		switch v := v.(type) {
		case map[string]any:
			steps += each * int64(len(v))
		case []any:
			steps += int64(len(v))
		case string:
			if name == "regex" {
				text = regexInstances * int64(len(v))
			}
		}
		c.work(steps, text)
		if was == nil {
			return nil
		}
		return was.Validate(v)
	}}
	for _, b := range below {
		if err := c.watch(b, seen); err != nil {
			return err
		}
	}
	return nil
}

// checkJSON says what is wrong with JSON that two readers might understand in two
// ways, or that would cost too much to read; "" if nothing is. It returns how many
// values there are.
func checkJSON(data []byte) (values int, wrong string) {
	if !utf8.Valid(data) {
		return 0, "the answer is not UTF-8"
	}
	type level struct {
		names map[string]struct{} // nil in an array
		key   bool                // whether a name comes next
	}
	var levels []level
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return values, ""
		}
		if err != nil {
			return 0, "the answer is not JSON"
		}
		var top *level
		if len(levels) > 0 {
			top = &levels[len(levels)-1]
		}
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			levels = levels[:len(levels)-1]
			continue
		}
		if top != nil && top.key {
			name := token.(string)
			if _, twice := top.names[name]; twice {
				return 0, "an object of the answer has one name twice"
			}
			top.names[name], top.key = struct{}{}, false
			continue
		}
		if top != nil && top.names != nil {
			top.key = true // after this value
		}
		if values++; values > maxValues {
			return 0, fmt.Sprintf("the answer has more than %d values, too many to be held against egress.response.schema", maxValues)
		}
		switch t := token.(type) {
		case json.Delim:
			if len(levels) == maxAnswerDepth {
				return 0, fmt.Sprintf("the answer is deeper than %d levels", maxAnswerDepth)
			}
			if t == '{' {
				levels = append(levels, level{names: map[string]struct{}{}, key: true})
			} else {
				levels = append(levels, level{})
			}
		case json.Number:
			if len(t) > maxNumber || exponent(string(t)) > maxExponent {
				return 0, "a number of the answer is too long or too large"
			}
		}
	}
}

// exponent returns the size of a number's exponent.
func exponent(n string) int {
	i := strings.IndexAny(n, "eE")
	if i < 0 {
		return 0
	}
	digits := strings.TrimLeft(strings.TrimLeft(n[i+1:], "+-"), "0")
	if len(digits) > 4 {
		return maxExponent + 1
	}
	v := 0
	for _, c := range digits {
		v = 10*v + int(c-'0')
	}
	return v
}

// releasing is a streamed answer on its way out.
type releasing struct {
	src   io.ReadCloser
	r     io.Reader // of src, looked at
	left  int64     // bytes that may still leave
	limit bool
}

func newReleasing(r *bawn.Result, hide *secret.Redactor, p *bawn.Response) *releasing {
	s := &releasing{src: r.Stream}
	s.r = &failing{r: r.Stream, hide: hide}
	s.r = hide.Reader(s.r)
	if p == nil {
		return s
	}
	if len(p.Headers) > 0 && r.ContentType == bawn.PreludeType {
		s.r = &heading{r: s.r, allowed: p.Headers}
	}
	if p.Cards != "" {
		s.r = &cardReader{r: s.r, refuse: p.Cards == "refuse"}
	}
	s.left, s.limit = p.Bytes, p.Bytes > 0
	return s
}

func (s *releasing) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.limit {
		if int64(n) > s.left {
			return int(s.left), refuse("D2", "the function's answer is larger than egress.response.bytes")
		}
		s.left -= int64(n)
	}
	return n, err
}

func (s *releasing) Close() error { return s.src.Close() }

// failing takes secrets out of the document with which a stream may fail.
type failing struct {
	r    io.Reader
	hide *secret.Redactor
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	var failed *bawn.StreamError
	if f.hide != nil && errors.As(err, &failed) {
		err = &bawn.StreamError{Payload: f.hide.Bytes(failed.Payload)}
	}
	return n, err
}

// heading leaves undeclared headers out of the head with which a stream begins.
type heading struct {
	r       io.Reader
	allowed []string
	buf     []byte // what was read of the head, then what is left of it to be read
	done    bool
	err     error // of r, for after buf
}

func (h *heading) Read(p []byte) (int, error) {
	for !h.done {
		if err := h.more(); err != nil {
			h.done, h.buf, h.err = true, nil, err
		}
	}
	if len(h.buf) > 0 {
		n := copy(p, h.buf)
		h.buf = h.buf[n:]
		return n, nil
	}
	if h.err != nil {
		return 0, h.err
	}
	return h.r.Read(p)
}

// more reads on to the end of the head.
func (h *heading) more() error {
	chunk := make([]byte, 4<<10)
	n, err := h.r.Read(chunk)
	h.buf = append(h.buf, chunk[:n]...)
	head, rest, ok := bytes.Cut(h.buf, preludeEnd)
	if !ok {
		if errors.Is(err, io.EOF) || err == nil && len(h.buf) > maxHead {
			return refuse("D2", "the answer does not say where its head ends")
		}
		return err
	}
	a := &response{prelude: true, body: rest}
	members, bad := readHead(head)
	if bad != nil {
		return bad
	}
	a.head = members
	delete(a.head, "body")
	if bad := a.keepHeaders(h.allowed); bad != nil {
		return bad
	}
	if h.buf, bad = a.payload(); bad != nil {
		return bad
	}
	h.done, h.err = true, err
	return nil
}
