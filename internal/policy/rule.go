package policy

import (
	"strconv"
	"strings"

	"bawn.dev/bawn"
)

// Rule is one rule that determined a decision, for a reader.
type Rule struct {
	ID    string `json:"id"`
	Text  string `json:"text,omitempty" doc:"Cedar; empty if it is not there any more"`
	From  string `json:"from" doc:"where it stands: the rules that every installation begins with, a manifest, a guardrail"`
	Field string `json:"field,omitempty" doc:"of a manifest: ingress.callers[checkout]"`
}

// Rule returns the rule that a decision named by id. version returns a version
// of a function of the tenant, or nil; guardrails are those of the tenant or the
// installation as they are now, whatever they were then.
func (e *Engine) Rule(tenant, id string, version func(ref bawn.Ref) *bawn.Version) Rule {
	r := Rule{ID: id}
	if name, ok := strings.CutPrefix(id, "bawn:"); ok {
		r.From = "the rules that every installation begins with"
		if i := strings.Index(baseText, `@id("`+name+`")`); i >= 0 {
			if j := strings.Index(baseText[i:], ";\n"); j >= 0 {
				r.Text = baseText[i : i+j+1]
			}
		}
		return r
	}
	if scope, n, ok := strings.Cut(id, "#"); ok {
		kind, name, _ := strings.Cut(scope, ":")
		r.From = "the tenant's guardrail " + name
		if kind == "installation" {
			// An operator shows its text; to others it says that it is there.
			r.From = "the installation's guardrail " + name
			return r
		}
		if g, ok := e.Guardrail(tenant, name); ok {
			if list, err := e.readGuardrail(name, g.Text); err == nil {
				for i, p := range list {
					if strconv.Itoa(i+1) == n {
						r.Text = string(p.MarshalCedar())
					}
				}
			}
		}
		return r
	}
	at, field, _ := strings.Cut(id, ":")
	r.From, r.Field = "the manifest of "+at, field
	if ref, err := bawn.ParseRef(at, tenant); err == nil && ref.Tenant == tenant {
		if v := version(ref); v != nil {
			for _, l := range lines(v) {
				if l.field == field {
					r.Text = l.text
				}
			}
		}
	}
	return r
}
