package ingress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/schema"
)

const (
	maxInputDepth = 64 // of JSON that comes in; control D3

	inputBurst = 20 // refusals of one function that are recorded one by one
	inputRate  = 2  // and so many a second from then on
)

// A Refusal is behind the error of a check that looks at what a call brings. It
// says by which control, for a perimeter's tests.
type Refusal struct {
	Control string
	Note    string        // for the owner's log; "" where there have been many
	Version *bawn.Version // whose log that is; nil without a note
}

// Error names the control.
func (r *Refusal) Error() string { return "control " + r.Control }

// ControlOf returns the control by which a call was refused, if err tells it.
func ControlOf(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Control
	}
	return ""
}

// misfit is what is wrong with what a call brings. It tells no value.
type misfit struct {
	control string
	code    bawn.Code
	message string
	fix     string // for the caller
	allow   string // what in the manifest would let it in, for the owner; may be empty
}

func wrongInput(control, fix, format string, args ...any) *misfit {
	return &misfit{control: control, code: bawn.CodeInvalid, message: fmt.Sprintf(format, args...), fix: fix}
}

func (m *misfit) err() error {
	return m.refusal(&Refusal{Control: m.control})
}

func (m *misfit) refusal(r *Refusal) error {
	return bawn.Wrap(r, m.code, "admit", "%s", m.message).WithFix("%s", m.fix)
}

// checkInput holds the request or the event against what the manifest says of it:
// controls D1, D3 and D5.
func (g *Gate) checkInput(ctx context.Context, c *bawn.Call, a *Admission) error {
	m := g.takes(c, a)
	if m == nil {
		return nil
	}
	why := &Refusal{Control: m.control}
	if left, ok := g.unfit.take(c.Target.Tenant+"."+c.Target.Function, g.cfg.Now(), inputBurst, inputRate); ok {
		r := g.refusal(c, a, c.Principal, m.control, m.message)
		leaveOut(&r, left)
		if m.allow != "" {
			r.Detail["allow"] = m.allow
		}
		why.Version, why.Note = a.Version, "an event was refused: "+m.message
		if c.Route != nil {
			why.Note = "what came by " + c.Route.String() + " was refused: " + m.message
		}
		if left > 0 {
			why.Note += fmt.Sprintf(" (and %d before it that are not told)", left)
		}
		// Who hangs up must not be able to leave no trace.
		if err := g.cfg.Record(context.WithoutCancel(ctx), r); err != nil {
			return err
		}
	}
	return m.refusal(why)
}

// takes decides what checkInput does, and leaves in a what was read.
func (g *Gate) takes(c *bawn.Call, a *Admission) *misfit {
	var in *bawn.Input
	if c.Route != nil {
		in = c.Route.Input
	} else if e := a.Version.Perimeter.Ingress.Event; e != nil {
		in = e.Input
	}
	if in != nil && in.Any != nil && !in.Any.Open(g.cfg.Now()) {
		return &misfit{control: "D1", code: bawn.CodeDenied,
			message: "what the function takes is not declared any more",
			fix:     "ask the function's owner, who finds the reason in its events",
			allow:   "input: a schema, or any: {reason: …, until: a day that is still to come}"}
	}
	if c.Route == nil {
		return g.takesEvent(c, a, in)
	}
	r := c.Request
	if r == nil {
		if in == nil {
			return nil
		}
		return &misfit{control: "D1", code: bawn.CodeInternal, message: "the request is not here to be looked at"}
	}
	if m := g.takesBody(r, a, in); m != nil || in == nil {
		return m
	}
	return g.takesParameters(r, in)
}

func (g *Gate) takesEvent(c *bawn.Call, a *Admission, in *bawn.Input) *misfit {
	if in != nil && in.None {
		switch strings.TrimSpace(string(c.Event[:min(len(c.Event), 16)])) {
		case "", "{}", "null":
			return nil
		}
		m := wrongInput("D1", "send {} or nothing", "the event must be empty")
		m.allow = "ingress.event.input: a schema"
		return m
	}
	if len(c.Event) == 0 && in == nil {
		return nil
	}
	return g.holds(c.Event, in, a, "the event")
}

// holds reads JSON strictly, and holds it against the schema of in, if it has one.
func (g *Gate) holds(data []byte, in *bawn.Input, a *Admission, what string) *misfit {
	d, err := g.reader.Parse(data, maxInputDepth)
	if err != nil {
		if len(data) == 0 {
			return wrongInput("D1", "send JSON that fits the function's schema", "%s is missing", what)
		}
		return wrongInput("D3", "send JSON in which each name stands once and each text is UTF-8", "%s %s", what, err.Error())
	}
	a.document = d
	if in != nil && in.Schema != "" {
		s, m := g.schema(in.Schema)
		if m != nil {
			return m
		}
		if m := fits(s, d, what); m != nil {
			return m
		}
	}
	if at := d.Prototype(); at != "" {
		m := wrongInput("D5", "leave it out", "%s has a member that reaches for the prototype of objects: %q", what, cutPlace(at))
		m.allow = "name it among the properties of the schema"
		return m
	}
	return nil
}

// schema returns the compiled schema of a text.
func (g *Gate) schema(text string) (*schema.Schema, *misfit) {
	s, err := g.schemas.Get(text)
	if err != nil {
		return nil, &misfit{control: "D1", code: bawn.CodeInternal, message: "the schema cannot be used: " + err.Error()}
	}
	return s, nil
}

// fits holds a document against a schema.
func fits(s *schema.Schema, d *schema.Document, what string) *misfit {
	err := s.Validate(d)
	if err == nil {
		return nil
	}
	var bad *schema.ValidationError
	if !errors.As(err, &bad) || bad.Work {
		return wrongInput("D1", "send less", "to hold %s against the function's schema takes too much work", what)
	}
	places := make([]string, len(bad.Misfits))
	for i, m := range bad.Misfits {
		places[i] = m.String()
	}
	message := what + " does not fit the function's schema"
	if len(places) > 0 {
		message += ": " + strings.Join(places, ", ")
	}
	return wrongInput("D1", "mend what the JSON pointers name, by the keywords in brackets", "%s", message)
}

func cutPlace(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// takesBody looks at a request's body.
func (g *Gate) takesBody(r *bawn.Request, a *Admission, in *bawn.Input) *misfit {
	is, m := bodyKind(r)
	if in != nil && in.None {
		if len(r.Body) == 0 {
			return nil
		}
		m := wrongInput("D1", "send none", "the route takes no body")
		m.allow = "input: a schema of the body"
		return m
	}
	if in == nil || in.Schema == "" { // it may be anything, but what says that it is JSON must be that
		if m == nil && !is.encoded && is.kind == jsonBody && len(r.Body) > 0 {
			return g.holds(r.Body, in, a, "the body")
		}
		return nil
	}
	if m != nil {
		return m
	}
	if is.encoded {
		return wrongInput("D1", "send it without a Content-Encoding", "the body is encoded, and a schema says what is in it")
	}
	if is.kind == jsonBody || is.kind == "" {
		return g.holds(r.Body, in, a, "the body")
	}
	s, m := g.schema(in.Schema)
	if m != nil {
		return m
	}
	var d *schema.Document
	var err error
	switch {
	case is.kind == formBody:
		values, bad := url.ParseQuery(string(r.Body))
		if bad != nil {
			return wrongInput("D3", "encode it as HTML forms are", "the body is no form")
		}
		d, err = s.Object(slices.Sorted(maps.Keys(values)), values)
	case s.TakesText():
		d, err = schema.Text(r.Body)
	default:
		m := wrongInput("D1", "send JSON, with the content type application/json", "the body is of another content type than the function's schema is about")
		m.allow = "input: {any: {reason: …, until: …}}, or a schema whose type is string"
		return m
	}
	if err != nil {
		return wrongInput("D3", "send it as UTF-8", "the body %s", err.Error())
	}
	a.document = d
	if m := fits(s, d, "the body"); m != nil {
		return m
	}
	return prototype(d, "the body")
}

func prototype(d *schema.Document, what string) *misfit {
	if d.Prototype() == "" {
		return nil
	}
	return wrongInput("D5", "leave it out", "%s has a member that reaches for the prototype of objects", what)
}

// The kinds of bodies.
const (
	jsonBody  = "json"
	formBody  = "form"
	otherBody = "other"
)

// A bodyType is what a body says of itself.
type bodyType struct {
	kind    string // "" where it says nothing
	encoded bool   // it has a Content-Encoding
	// The first Content-Type, as far as anybody can read it.
	media  string
	params map[string]string
}

// bodyKind reads a request's Content-Type and Content-Encoding. With an error, too,
// it returns what can be read.
func bodyKind(r *bawn.Request) (t bodyType, m *misfit) {
	for _, e := range r.Header["Content-Encoding"] {
		t.encoded = t.encoded || !strings.EqualFold(strings.TrimSpace(e), "identity") && strings.TrimSpace(e) != ""
	}
	types := r.Header["Content-Type"]
	if len(types) == 0 || len(types) == 1 && types[0] == "" {
		return t, nil
	}
	t.kind = otherBody
	var err error
	t.media, t.params, err = mime.ParseMediaType(types[0])
	switch {
	case len(types) > 1:
		return t, wrongInput("D3", "send one", "there is more than one Content-Type header")
	case err != nil:
		return t, wrongInput("D3", "send application/json", "the Content-Type header cannot be read")
	case t.media == "application/json" || strings.HasSuffix(t.media, "+json"):
		t.kind = jsonBody
	case t.media == "application/x-www-form-urlencoded":
		t.kind = formBody
	}
	return t, nil
}

// takesParameters looks at the query, the path's parameters and the headers.
func (g *Gate) takesParameters(r *bawn.Request, in *bawn.Input) *misfit {
	switch {
	case in.Query != "":
		values, err := url.ParseQuery(r.Query)
		if err != nil {
			return wrongInput("D3", "encode it as URLs are", "the query cannot be read")
		}
		if m := g.object(in.Query, values, "the query"); m != nil {
			return m
		}
	case r.Query != "" && in.Any == nil:
		m := wrongInput("D1", "leave it out", "the route takes no query")
		m.allow = "input: {query: a schema of its parameters}"
		return m
	}
	if in.Path != "" {
		values := make(map[string][]string, len(r.Params))
		for name, v := range r.Params {
			values[name] = []string{v}
		}
		if m := g.object(in.Path, values, "the path"); m != nil {
			return m
		}
	}
	if in.Header != "" {
		values := make(map[string][]string, len(r.Header))
		for name, v := range r.Header {
			values[strings.ToLower(name)] = []string{strings.Join(v, ",")}
		}
		return g.object(in.Header, values, "the headers")
	}
	return nil
}

// object holds names with texts against a schema of an object.
func (g *Gate) object(text string, values map[string][]string, what string) *misfit {
	s, m := g.schema(text)
	if m != nil {
		return m
	}
	d, err := s.Object(slices.Sorted(maps.Keys(values)), values)
	if err != nil {
		return wrongInput("D3", "send it as UTF-8", "%s %s", what, err.Error())
	}
	if m := fits(s, d, what); m != nil {
		return m
	}
	return prototype(d, what)
}
