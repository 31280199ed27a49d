package openapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/schema"
)

const (
	dialect    = "https://json-schema.org/draft/2020-12/schema"
	maxConvert = 20000 // values of one schema, with what it refers to
	maxHops    = 16    // references that lead to one another
)

// converter makes JSON Schemas of draft 2020-12 out of those of a document.
type converter struct {
	doc   map[string]any
	three bool            // whether it is of version 3.0
	good  map[string]bool // patterns, and whether they can be used
	note  func(format string, args ...any)
}

// one is a schema in the making: what it refers to stands in its $defs.
type one struct {
	*converter
	at      string            // what notes call it
	names   map[string]string // of $defs, by the pointers that led to them
	defs    map[string]any
	pending []string // pointers
	work    int
	bare    bool // without what says nothing of values
}

// text converts a schema and compiles it. An empty text means that it cannot be
// used, which has been noted.
func (c *converter) text(v any, at string) string {
	var last error
	for _, bare := range []bool{false, true} {
		o := &one{converter: c, at: at, names: map[string]string{}, defs: map[string]any{}, bare: bare}
		top, err := o.whole(v)
		if err != nil {
			c.note("%s: the schema is left out: %s", at, err)
			return ""
		}
		data, err := json.MarshalIndent(top, "", "  ")
		if err != nil {
			c.note("%s: the schema is left out: %s", at, err)
			return ""
		}
		if len(data) > bawn.MaxSchemaBytes && !bare {
			continue // descriptions may be what makes it large
		}
		if _, last = schema.Compile(string(data)); last == nil {
			return string(data) + "\n"
		}
		break
	}
	c.note("%s: the schema is left out: %s", at, last)
	return ""
}

func (o *one) whole(v any) (map[string]any, error) {
	got, err := o.convert(v, 0)
	if err != nil {
		return nil, err
	}
	for len(o.pending) > 0 {
		p := o.pending[0]
		o.pending = o.pending[1:]
		target, err := lookup(o.doc, p)
		if err != nil {
			return nil, err
		}
		if o.defs[o.names[p]], err = o.convert(target, 0); err != nil {
			return nil, err
		}
	}
	top, ok := got.(map[string]any)
	if !ok {
		top = map[string]any{"allOf": []any{got}}
	}
	top["$schema"] = dialect
	if len(o.defs) > 0 {
		top["$defs"] = o.defs
	}
	return top, nil
}

// convert converts one schema.
func (o *one) convert(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it nests deeper than %d levels", maxDepth)
	}
	if o.work++; o.work > maxConvert {
		return nil, fmt.Errorf("it has more than %d parts, with what it refers to", maxConvert)
	}
	in, ok := v.(map[string]any)
	if !ok {
		if b, ok := v.(bool); ok {
			return b, nil
		}
		return nil, fmt.Errorf("a part of it is neither a mapping nor a boolean")
	}
	out := make(map[string]any, len(in))
	if ref := text(in["$ref"]); ref != "" {
		name, err := o.refer(ref)
		if err != nil {
			return nil, err
		}
		out["$ref"] = "#/$defs/" + name
		if o.three { // beside it nothing counts
			return out, nil
		}
	}
	for _, key := range slices.Sorted(maps.Keys(in)) {
		val, keep, err := o.keyword(key, in, depth)
		if err != nil {
			return nil, err
		}
		if keep {
			out[key] = val
		}
	}
	o.modern(in, out)
	return out, nil
}

// keyword converts the value of a keyword, unless it is to be left out.
func (o *one) keyword(key string, in map[string]any, depth int) (_ any, keep bool, _ error) {
	v := in[key]
	switch key {
	case "$ref", "$schema", "$id", "$defs", "definitions", "$anchor", "$dynamicAnchor", "$comment", // what is referred to is copied
		"discriminator", "xml", "externalDocs", "allowEmptyValue", "nullable", "example":
		return nil, false, nil
	case "description", "title", "examples", "default", "deprecated", "readOnly", "writeOnly":
		if o.bare {
			return nil, false, nil
		}
		return v, true, nil
	case "enum", "const", "type", "required":
		return v, true, nil
	case "pattern":
		if p, ok := v.(string); ok && !o.usable(p) {
			return nil, false, nil
		}
		return v, true, nil
	case "not", "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "if", "then", "else", "unevaluatedItems", "unevaluatedProperties", "contentSchema":
		s, err := o.convert(v, depth+1)
		return s, true, err
	case "allOf", "anyOf", "oneOf", "prefixItems":
		all, ok := v.([]any)
		if !ok {
			return nil, false, fmt.Errorf("%s is no list", key)
		}
		out := make([]any, len(all))
		for i, s := range all {
			var err error
			if out[i], err = o.convert(s, depth+1); err != nil {
				return nil, false, err
			}
		}
		return out, true, nil
	case "properties", "patternProperties", "dependentSchemas":
		all, ok := v.(map[string]any)
		if !ok {
			return nil, false, fmt.Errorf("%s is no mapping", key)
		}
		out := make(map[string]any, len(all))
		for name, s := range all {
			if key == "patternProperties" && !o.usable(name) {
				continue
			}
			var err error
			if out[name], err = o.convert(s, depth+1); err != nil {
				return nil, false, err
			}
		}
		return out, true, nil
	}
	if strings.HasPrefix(key, "x-") {
		return nil, false, nil
	}
	return v, true, nil
}

// modern writes what version 3.0 says in its own way, and what documents mean by
// readOnly, as draft 2020-12 has it.
func (o *one) modern(in, out map[string]any) {
	if e, ok := in["example"]; ok && in["examples"] == nil && !o.bare {
		out["examples"] = []any{e}
	}
	if required, ok := in["required"].([]any); ok {
		properties, _ := in["properties"].(map[string]any)
		// Who sends a request need not send what only answers have.
		kept := slices.DeleteFunc(slices.Clone(required), func(name any) bool {
			p, _ := o.deref(properties[text(name)])
			return p["readOnly"] == true
		})
		if out["required"] = kept; len(kept) == 0 {
			delete(out, "required")
		}
	}
	if !o.three {
		return
	}
	for _, k := range [][2]string{{"exclusiveMinimum", "minimum"}, {"exclusiveMaximum", "maximum"}} {
		if exclusive, ok := out[k[0]].(bool); ok {
			delete(out, k[0])
			if bound, has := out[k[1]]; exclusive && has {
				out[k[0]] = bound
				delete(out, k[1])
			}
		}
	}
	if t := text(in["type"]); in["nullable"] == true && t != "" {
		out["type"] = []any{t, "null"}
	}
}

// usable reports whether Bawn's validator can use a pattern.
func (o *one) usable(p string) bool {
	good, known := o.good[p]
	if !known {
		data, err := json.Marshal(map[string]string{"pattern": p})
		if err == nil {
			_, err = schema.Compile(string(data))
		}
		good = err == nil
		o.good[p] = good
	}
	if !good {
		o.note("%s: the pattern %s is left out: nothing is held to it, since it cannot be searched for in bounded time", o.at, strconv.Quote(cut(p)))
	}
	return good
}

// refer returns the name of what a reference leads to, among the $defs.
func (o *one) refer(ref string) (string, error) {
	if name, ok := o.names[ref]; ok {
		return name, nil
	}
	if _, err := lookup(o.doc, ref); err != nil {
		return "", err
	}
	base := plain(ref[strings.LastIndexByte(ref, '/')+1:], "schema")
	taken := func(name string) bool {
		for _, n := range o.names {
			if n == name {
				return true
			}
		}
		return false
	}
	name := base
	for i := 2; taken(name); i++ {
		name = base + "-" + strconv.Itoa(i)
	}
	o.names[ref] = name
	o.pending = append(o.pending, ref)
	return name, nil
}

// plain makes a name out of text: letters, digits, - and _.
func plain(s, otherwise string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_':
			b.WriteByte(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() >= 60 {
			break
		}
	}
	if s = strings.Trim(b.String(), "-"); s == "" {
		return otherwise
	}
	return s
}

// lookup finds what a reference of the form #/a/b leads to.
func lookup(doc map[string]any, ref string) (any, error) {
	rest, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil, fmt.Errorf("it refers to %s, outside of the document", strconv.Quote(cut(ref)))
	}
	var at any = doc
	for _, token := range strings.Split(rest, "/") {
		token = unescape(token)
		switch v := at.(type) {
		case map[string]any:
			next, ok := v[token]
			if !ok {
				return nil, fmt.Errorf("it refers to %s, where nothing is", strconv.Quote(cut(ref)))
			}
			at = next
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(v) {
				return nil, fmt.Errorf("it refers to %s, where nothing is", strconv.Quote(cut(ref)))
			}
			at = v[i]
		default:
			return nil, fmt.Errorf("it refers to %s, where nothing is", strconv.Quote(cut(ref)))
		}
	}
	return at, nil
}

// deref follows references from v to a mapping; nil if there is none.
func (c *converter) deref(v any) (map[string]any, error) {
	for range maxHops {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, nil
		}
		ref := text(m["$ref"])
		if ref == "" {
			return m, nil
		}
		var err error
		if v, err = lookup(c.doc, ref); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("a reference leads through more than %d others", maxHops)
}

// unescape reads one part of a JSON pointer in a URL.
func unescape(token string) string {
	if plain, err := url.PathUnescape(token); err == nil {
		token = plain
	}
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
}
