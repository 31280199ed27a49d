package ingress

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/identity"
)

// meet says who calls: by what the route itself asks for where that was shown, or
// as one of Bawn's own. A signed request must be asked about once.
func (g *Gate) meet(ctx context.Context, c *bawn.Call) (bawn.Principal, error) {
	if !g.customer(c) {
		return g.cfg.Identity.Authenticate(ctx, identity.CredentialOf(c))
	}
	p, claims, err := g.cfg.Identity.AuthenticateCustomer(ctx, c.Target.Tenant, c.Route.Access.JWT, c.Bearer)
	c.Claims = claims
	return p, err
}

// customer reports whether c shows a token for its route: one that says that it is
// of the route's issuer, or that is nothing to Bawn.
func (g *Gate) customer(c *bawn.Call) bool {
	if c.Route == nil || c.Route.Access.JWT == nil || !identity.IsToken(c.Bearer) {
		return false
	}
	return identity.IssuerOf(c.Bearer) == c.Route.Access.JWT.Issuer || !g.cfg.Identity.Ours(c.Bearer)
}
