package policy

// guards is the guardrails of the whole installation and of each tenant, as
// they are now. It does not change: a change makes another.
type guards struct {
	installation *scope
	tenants      map[string]*scope
}

// scope is the guardrails of one tenant, or of the installation.
type scope struct {
	set    *set
	broken string // the guardrail that cannot be read; then nothing is allowed here
}

func (g *guards) of(tenant string) *scope {
	if g == nil {
		return nil
	}
	return g.tenants[tenant]
}

func (g *guards) whole() *scope {
	if g == nil {
		return nil
	}
	return g.installation
}
