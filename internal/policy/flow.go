package policy

import (
	"regexp"
	"slices"
	"strings"
)

// Flow is a guardrail about where data goes: what has the label must not be able to
// get to where the label is not. Its text is "flow LABEL;" instead of Cedar: Cedar
// decides on one thing that is done, and this is about what can follow from what
// manifests say together.
type Flow struct {
	Label string
	Scope string // how refusals name the guardrail
}

var flowText = regexp.MustCompile(`^flow[ \t]+([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)[ \t]*;?$`)

// FlowOf returns the label that the text of a guardrail is about, if it is one about
// the flow of data.
func FlowOf(text string) (label string, ok bool) {
	if len(text) > maxRuleText {
		return "", false
	}
	said := ""
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if said != "" {
			return "", false
		}
		said = line
	}
	m := flowText.FindStringSubmatch(said)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// Flows returns the guardrails about the flow of data that hold for a tenant: its
// own and the installation's, by name.
func (e *Engine) Flows(tenant string) []Flow {
	var all []Flow
	for _, of := range []string{"", tenant} {
		for _, g := range e.Guardrails(of) {
			if label, ok := FlowOf(g.Text); ok {
				all = append(all, Flow{Label: label, Scope: g.Scope()})
			}
		}
	}
	slices.SortFunc(all, func(a, b Flow) int { return strings.Compare(a.Scope, b.Scope) })
	return all
}
