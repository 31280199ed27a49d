package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/schema"
	"go.yaml.in/yaml/v3"
)

// Input says what a route or an event takes: "none", a schema's file, or a mapping.
// In a mapping without Schema and Any there is no body. A zero Input was not
// written.
type Input struct {
	None   bool           `json:"-"` // written as a word
	Schema ResponseSchema `json:"schema,omitzero"`
	Any    *Public        `json:"any,omitempty"`
	Query  ResponseSchema `json:"query,omitzero"`
	Path   ResponseSchema `json:"path,omitzero"`
	Header ResponseSchema `json:"header,omitzero"`
}

// MarshalJSON writes the word, the file's path, or the mapping.
func (i Input) MarshalJSON() ([]byte, error) {
	switch {
	case i == Input{None: true}:
		return []byte(`"none"`), nil
	case i.Schema.File != "" && i == Input{Schema: i.Schema}:
		return json.Marshal(i.Schema.File)
	}
	type plain Input
	return json.Marshal(plain(i))
}

// Event says what an event must look like that comes by name and not by a route.
type Event struct {
	Input   Input       `json:"input,omitzero"`
	Inspect *Inspection `json:"inspect,omitempty"`
}

// parts are the schemas of an input, with the names of their fields.
func (i *Input) parts() map[string]*ResponseSchema {
	return map[string]*ResponseSchema{"schema": &i.Schema, "query": &i.Query, "path": &i.Path, "header": &i.Header}
}

// compile turns what was written at a place into what a version has; nil if nothing
// was.
func (i Input) compile(at string) (*bawn.Input, error) {
	if i == (Input{}) {
		return nil, nil
	}
	for name, s := range i.parts() {
		if s.File != "" {
			return nil, bawn.Errorf(bawn.CodeUnprocessable, "manifest", "%s.%s: the schema itself is wanted here, not the name of its file %s", at, name, quote(s.File)).
				WithFix("send it written out, or let bawn deploy read the file")
		}
	}
	out := &bawn.Input{Schema: i.Schema.Text, Query: i.Query.Text, Path: i.Path.Text, Header: i.Header.Text}
	if i.Any != nil {
		out.Any = &bawn.Waiver{Reason: i.Any.Reason, Until: i.Any.Until.End()}
	}
	out.None = out.Schema == "" && out.Any == nil
	return out, nil
}

// readInputs puts the schemas that are named by their files in the place of the
// names, in copies of what f shares with others.
func (f *Function) readInputs(read func(s *ResponseSchema, field string) error) error {
	each := func(in *Input, at string) error {
		for _, name := range []string{"schema", "query", "path", "header"} {
			if err := read(in.parts()[name], at+"."+name); err != nil {
				return err
			}
		}
		return nil
	}
	f.Ingress.HTTP = append([]Route(nil), f.Ingress.HTTP...)
	for i := range f.Ingress.HTTP {
		if err := each(&f.Ingress.HTTP[i].Input, fmt.Sprintf("ingress.http[%d].input", i)); err != nil {
			return err
		}
	}
	return each(&f.Ingress.Event.Input, "ingress.event.input")
}

// input is the value of ingress.http[].input, or with event of ingress.event.input.
func input(event bool) value[Input] {
	o := object[Input]{doc: "input", fields: []field[Input]{
		is("schema", "a JSON Schema of the body, or of the event: written out, or its file relative to this one; without it and any there is none", schemaValue(), func(i *Input) *ResponseSchema { return &i.Schema }),
		pointer("any", "takes everything until a day, for a reason", object[Public]{doc: "any", fields: []field[Public]{
			is("reason", "why no schema says what it takes", text("reason", 1, maxReason), func(p *Public) *string { return &p.Reason }).must(),
			is("until", "the last day, in UTC, on which it takes everything", date("until"), func(p *Public) *Date { return &p.Until }).must(),
		}}, func(i *Input) **Public { return &i.Any }),
	}}
	if !event {
		o.fields = append(o.fields,
			is("query", "a JSON Schema of the query's parameters, as an object; without it there is none, but with any", schemaValue(), func(i *Input) *ResponseSchema { return &i.Query }),
			is("path", "a JSON Schema of the path's parameters, as an object; texts of any kind if left out", schemaValue(), func(i *Input) *ResponseSchema { return &i.Path }),
			is("header", "a JSON Schema of the headers, as an object with names in lower case; headers of any kind if left out", schemaValue(), func(i *Input) *ResponseSchema { return &i.Header }),
		)
	}
	o.rules = func(i *Input, has func(string) bool, say func(string, error)) {
		if *i == (Input{}) {
			say("", &wrong{"input says nothing", "none"})
		}
		if i.Any != nil && has("schema") {
			say("any", &wrong{Message: "input has a schema, and takes everything: it is one or the other"})
		}
	}
	path := text("input", 1, maxCode)
	mapping := o.schema()
	mapping["minProperties"] = 1
	return value[Input]{map[string]any{"oneOf": []any{map[string]any{"type": "string", "minLength": 1, "maxLength": maxCode}, mapping}},
		func(d *decoder, n *yaml.Node, at string) (Input, bool) {
			switch {
			case n.Kind == yaml.MappingNode:
				var in Input
				return in, o.read(d, n, at, &in)
			case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && n.Value == "none":
				return Input{None: true}, true
			case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && n.Value == "any":
				d.report(n, at, "to take everything needs a reason and an end", "{any: {reason: why no schema says it, until: YEAR-MONTH-DAY}}")
				return Input{}, false
			case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str":
				s, ok := path.read(d, n, at)
				return Input{Schema: ResponseSchema{File: s}}, ok
			}
			d.report(n, at, fmt.Sprintf("input must be none, the path of a schema's file, or a mapping with %s, not %s", list(fieldNames(o)), kindName(n)), "none")
			return Input{}, false
		}}
}

// InputText says what is taken, for a reviewer.
func InputText(in *bawn.Input, now time.Time) string {
	if in == nil {
		return "whatever comes: no input is declared"
	}
	var parts []string
	switch {
	case in.Any != nil && in.Any.Open(now):
		parts = append(parts, "EVERYTHING until "+in.Any.Until.Add(-time.Nanosecond).UTC().Format(time.DateOnly)+": "+in.Any.Reason)
	case in.Any != nil:
		parts = append(parts, "nothing any more: the waiver ended on "+in.Any.Until.Add(-time.Nanosecond).UTC().Format(time.DateOnly))
	case in.Schema != "":
		parts = append(parts, "what fits a schema"+title(in.Schema))
	}
	for _, p := range []struct{ name, schema string }{{"query", in.Query}, {"path", in.Path}, {"headers", in.Header}} {
		if p.schema != "" {
			parts = append(parts, "a schema of the "+p.name+title(p.schema))
		}
	}
	return cmp.Or(strings.Join(parts, "; "), "nothing")
}

// title returns a schema's own, in brackets.
func title(text string) string {
	var s struct {
		Title string `json:"title"`
	}
	if json.Unmarshal([]byte(text), &s) != nil || s.Title == "" {
		return ""
	}
	return " (" + strings.Trim(quote(s.Title), `"`) + ")"
}

// checkSchema reports whether text is a JSON Schema that refers to nothing outside
// of itself. What no dialect is named in is 2020-12.
func checkSchema(text string) error {
	_, err := schema.Compile(text)
	return err
}
