package manifest

import (
	"encoding/json"
	"fmt"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// Access is "key", also when nothing is written, or another kind of access. At
// most one field is set.
type Access struct {
	Public *Public `json:"public,omitempty"`
	SigV4  bool    `json:"-"` // written as a word
}

// MarshalJSON writes the word or the form with details.
func (a Access) MarshalJSON() ([]byte, error) {
	switch {
	case a.SigV4:
		return json.Marshal(bawn.AccessSigV4)
	case a == Access{}:
		return json.Marshal(bawn.AccessKey)
	}
	type plain Access
	return json.Marshal(plain(a))
}

// Public opens a route to everybody until the end of a day in UTC.
type Public struct {
	Reason string `json:"reason,omitempty"`
	Until  Date   `json:"until,omitzero"`
}

func (a Access) compile() bawn.Access {
	out := bawn.Access{SigV4: a.SigV4}
	if p := a.Public; p != nil {
		out.Public = &bawn.PublicAccess{Reason: p.Reason, Until: p.Until.End()}
	}
	return out
}

// accessWords are the kinds that need no details.
func accessWords() []string { return []string{bawn.AccessKey, bawn.AccessSigV4} }

func access() value[Access] {
	public := object[Public]{doc: "public access", fields: []field[Public]{
		is("reason", "why everybody may call it", text("reason", 1, maxReason), func(p *Public) *string { return &p.Reason }).must(),
		is("until", "the last day, in UTC, on which everybody may", date("until"), func(p *Public) *Date { return &p.Until }).must(),
	}}
	o := object[Access]{doc: "access", fields: []field[Access]{
		pointer("public", "open to everybody until a day, for a reason", public, func(a *Access) **Public { return &a.Public }),
	}}
	kinds := append(accessWords(), fieldNames(o)...)
	schema := o.schema()
	schema["minProperties"], schema["maxProperties"] = 1, 1
	return value[Access]{map[string]any{"oneOf": []any{map[string]any{"enum": accessWords()}, schema}}, func(d *decoder, n *yaml.Node, at string) (Access, bool) {
		var a Access
		if n.Kind == yaml.MappingNode {
			ok := o.read(d, n, at, &a)
			if ok && len(n.Content) != 2 {
				d.report(n, at, "access is one of "+list(kinds)+", and no more than one", "")
				ok = false
			}
			return a, ok
		}
		said := ""
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
			said = n.Value
		}
		switch said {
		case bawn.AccessKey:
			return a, true
		case bawn.AccessSigV4:
			a.SigV4 = true
			return a, true
		case bawn.AccessPublic:
			d.report(n, at, "public access needs a reason and an end", "{public: {reason: why everybody may call it, until: YEAR-MONTH-DAY}}")
			return a, false
		}
		suggestion := ""
		if n.Kind == yaml.ScalarNode {
			suggestion = nearest(n.Value, kinds)
		}
		d.report(n, at, fmt.Sprintf("access must be one of %s, the last %d with details, not %s", list(kinds), len(kinds)-len(accessWords()), kindName(n)), suggestion)
		return a, false
	}}
}
