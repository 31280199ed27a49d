package manifest

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bawn.dev/bawn"
)

// Bounds of an inspection. Ids are those of rules that detect something.
const (
	maxInspectLevel   = 4
	maxInspectExclude = 64
	firstInspectRule  = 911000
	lastInspectRule   = 948999
)

// Inspection says how text is searched for attacks: a word, which is the mode, or
// an object.
type Inspection struct {
	Mode    string `json:"mode,omitempty"`
	Level   int    `json:"level,omitempty"`
	Exclude []int  `json:"exclude,omitempty"` // ids of rules
}

// inspection is a word or an object.
func inspection() value[*Inspection] {
	modes := []string{bawn.InspectOff, bawn.InspectDetect, bawn.InspectBlock}
	mode := oneOf("mode", modes)
	o := object[Inspection]{
		doc: "inspect",
		fields: []field[Inspection]{
			is("mode", "off; detect, which records and lets through; or block, also when left out", mode, func(i *Inspection) *string { return &i.Mode }),
			is("level", "paranoia level of the OWASP Core Rule Set; 1 when left out", whole("level", 1, maxInspectLevel), func(i *Inspection) *int { return &i.Level }),
			is("exclude", "ids of rules that are left out", listOf("exclude", maxInspectExclude, whole("a rule's id", firstInspectRule, lastInspectRule)), func(i *Inspection) *[]int { return &i.Exclude }),
		},
		rules: func(i *Inspection, has func(string) bool, say func(string, error)) {
			if i.Mode == bawn.InspectOff && (has("level") || has("exclude")) {
				say("mode", &wrong{"an inspection that is off has neither level nor exclude", bawn.InspectOff})
			}
			sorted := slices.Sorted(slices.Values(i.Exclude))
			for n := 1; n < len(sorted); n++ {
				if sorted[n] == sorted[n-1] {
					say("exclude", &wrong{Message: fmt.Sprintf("exclude names %d a second time", sorted[n])})
				}
			}
		},
	}
	return value[*Inspection]{map[string]any{"oneOf": []any{map[string]any{"enum": modes}, o.schema()}},
		func(d *decoder, n *yaml.Node, at string) (*Inspection, bool) {
			var i Inspection
			ok := false
			if n.Kind == yaml.MappingNode {
				ok = o.read(d, n, at, &i)
			} else {
				i.Mode, ok = mode.read(d, n, at)
			}
			return &i, ok
		}}
}

// eventFields are the fields of ingress.event.
func eventFields() object[Event] {
	return object[Event]{doc: "event", fields: []field[Event]{
		is("input", "what the event must look like: none, a schema's file, {schema: …} or {any: {reason: …, until: YEAR-MONTH-DAY}}", input(true), func(e *Event) *Input { return &e.Input }),
		is("inspect", "how the text of events is searched for attacks: off, also when left out, detect, block, or {mode, level, exclude}", inspection(), func(e *Event) **Inspection { return &e.Inspect }),
	}}
}

// compile returns what i says with its defaults, or nil for nothing.
func (i *Inspection) compile() *bawn.Inspection {
	switch {
	case i == nil:
		return nil
	case i.Mode == bawn.InspectOff:
		return &bawn.Inspection{Mode: bawn.InspectOff}
	}
	return &bawn.Inspection{Mode: or(i.Mode, bawn.InspectBlock), Level: or(i.Level, 1), Exclude: slices.Sorted(slices.Values(i.Exclude))}
}

// inspection returns how the text of requests to r is searched. Everybody may send
// what he wants where a route is public, so there it is unless the manifest says
// otherwise, or that no text comes in at all.
func (r *Route) inspection() *bawn.Inspection {
	if r.Inspect == nil && r.Access.Public != nil && (r.Input != Input{None: true} || strings.Contains(r.Path, "{")) {
		return &bawn.Inspection{Mode: bawn.InspectBlock, Level: 1}
	}
	return r.Inspect.compile()
}
