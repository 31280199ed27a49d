package ingress

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// Try says why a call to v would be refused, or nil: as v's rules and the
// guardrails have it, though v need not be known to anybody. c.Principal is who
// calls, and caller the calling version where that is a function. The answer is
// for a test; nobody has asked to get in, so nothing is recorded or counted.
func (g *Gate) Try(ctx context.Context, v *bawn.Version, c *bawn.Call, caller *bawn.Version) error {
	if err := g.checkDraining(ctx, c, nil); err != nil {
		return err
	}
	if err := g.checkSize(ctx, c, nil); err != nil {
		return err
	}
	req := policy.Request{
		Principal: c.Principal, Action: policy.Invoke, Resource: v.Ref(), Invocation: c.ID, Source: c.Source,
		Trigger: c.Trigger, Route: c.Route, Target: v,
		Caller: caller, Origin: c.Origin, Chain: c.Chain,
	}
	if c.Route != nil {
		req.Public = c.Route.Access.Public
	}
	if g.cfg.Policy.Allows(req) {
		return nil
	}
	if c.Principal.Kind == bawn.PrincipalAnonymous {
		return (&Admission{}).unauthenticated()
	}
	return bawn.Errorf(bawn.CodeDenied, "admit", "%s may not call it", c.Principal.Name)
}

// MatchIn is Match among the routes of v alone.
func (g *Gate) MatchIn(v *bawn.Version, method, rawPath string) (Match, error) {
	if err := CheckPath(rawPath); err != nil {
		return Match{}, err
	}
	x := newIndex(func(map[bawn.Runtime]int) {}, func(string, string) {})
	f := &bawn.Function{Tenant: v.Tenant, Name: v.Function, Latest: v.Number, Aliases: map[string]int{bawn.LiveAlias: v.Number}}
	x.setVersion(versionKey(f, v.Number), v)
	x.setFunction(v.Tenant+"."+v.Function, f)
	m, ok := x.match(method, rawPath)
	if !ok {
		return Match{}, notFound()
	}
	return m, nil
}
