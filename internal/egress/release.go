package egress

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/schema"
	"bawn.dev/bawn/internal/secret"
)

// Bounds of what is looked at on the way out.
const (
	maxAnswerDepth = 128 // of JSON that is held against a schema
	maxHead        = 128 << 10
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

	schemas schema.Cache
}

// NewReleaser returns a releaser. redactor returns what takes the values of a
// version's secrets out of text, nil if it has none; it is asked only for versions
// that use secrets. It may be nil.
func NewReleaser(redactor func(*bawn.Version) *secret.Redactor) *Releaser {
	if redactor == nil {
		redactor = func(*bawn.Version) *secret.Redactor { return nil }
	}
	return &Releaser{redactor: redactor}
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

// validate holds body against a schema.
func (o *Releaser) validate(text string, body []byte) error {
	d, err := schema.Parse(body, maxAnswerDepth)
	if err != nil {
		return refuse("D2", "the answer "+err.Error())
	}
	s, err := o.schemas.Get(text)
	if err != nil {
		return refuse("D2", "egress.response.schema cannot be used: deploy the function again")
	}
	var misfit *schema.ValidationError
	if !errors.As(s.Validate(d), &misfit) {
		return nil
	}
	if misfit.Work {
		return refuse("D2", "to hold the answer against egress.response.schema takes too much work: a simpler schema, without alternatives within alternatives, or a smaller answer")
	}
	var fields []string
	for _, m := range misfit.Misfits {
		fields = append(fields, m.String())
	}
	return refuse("D2", "the answer does not fit egress.response.schema", fields...)
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
