package ingress

import (
	"context"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/identity"
)

// checkAuthenticate finds out who calls, unless the trigger has done so. Who
// has no credential, or a wrong one, is anonymous. It never says no itself: the
// policy does, so that the refusal is recorded like any other.
func (g *Gate) checkAuthenticate(ctx context.Context, c *bawn.Call, a *Admission) error {
	if c.Principal.Kind != "" {
		// Reading the request may have taken a while since its credential was good.
		if _, ok := g.cfg.Identity.Current(c.Principal); !ok && c.Caller == nil {
			c.Principal = bawn.Anonymous()
			a.refusal, a.public = bawn.Errorf(bawn.CodeUnauthenticated, "admit", "the credential has ended since the request began").
				WithFix("use one that is good: bawn login, or a key by bawn key create"), nil
		}
		return nil
	}
	c.Principal = bawn.Anonymous()
	if !g.Shows(c) {
		return nil
	}
	if c.Route != nil && c.Event == nil {
		// The trigger did not read the request, since the credential was not known
		// then. What is good only now does not make a function run without its event.
		if a.refusal, a.public = g.Known(ctx, c), nil; a.refusal == nil {
			a.refusal = bawn.Errorf(bawn.CodeUnauthenticated, "admit", "the credential was not good when the request began").WithFix("try again")
		}
		return nil
	}
	certified := c.Certified
	p, err := g.meet(ctx, c, a)
	if err == nil && certified && !c.Certified { // the event tells of a certificate that has ended since
		err = bawn.Errorf(bawn.CodeUnauthenticated, "admit", "the client certificate has ended since the request began").WithFix("present one that is good")
	}
	if err != nil {
		a.refusal, a.public = err, nil // a wrong credential opens nothing
		return nil
	}
	c.Principal = p
	return nil
}

// Known returns nil if what the caller of c shows could be good, so that the rest
// of its request is worth reading, and otherwise why it is not.
func (g *Gate) Known(ctx context.Context, c *bawn.Call) error {
	switch {
	case g.customer(c):
		_, err := g.meet(ctx, c, nil)
		return err
	case delivers(c):
		return g.cfg.Identity.PlausibleWebhook(c.Route.Access.Webhook, c.Request.Header)
	}
	_, why := g.certify(ctx, c)
	if c.Certified {
		return nil
	}
	cred := g.credential(c)
	err := g.cfg.Identity.Plausible(ctx, cred)
	if err != nil && why != nil && cred.Bearer == "" && cred.Signed == nil {
		err = why
	}
	return err
}

// Identify sets c.Principal to who the caller of c shows to be, or returns why
// it cannot. A signed request is accepted once, so it must be asked about once.
func (g *Gate) Identify(ctx context.Context, c *bawn.Call) error {
	p, err := g.cfg.Identity.Authenticate(ctx, g.credential(c))
	if err == nil {
		c.Principal = p
	}
	return err
}

// Ours reads an Authorization header: the bearer in it, or that the request is
// signed, if that is Bawn's to look at on the route, which is nil for a call by
// name. Any other is for the function.
func (g *Gate) Ours(route *bawn.Route, authorization string) (bearer string, signed bool) {
	const scheme = "Bearer "
	if len(authorization) > len(scheme) && strings.EqualFold(authorization[:len(scheme)], scheme) {
		b := strings.TrimSpace(authorization[len(scheme):])
		if g.cfg.Identity.Ours(b) || route != nil && route.Access.JWT != nil && identity.IsToken(b) {
			return b, false
		}
		return "", false
	}
	return "", identity.IsSigned(authorization)
}

// unauthenticated says why an anonymous caller is refused.
func (a *Admission) unauthenticated(r *bawn.Route) error {
	if a.refusal != nil {
		return a.refusal
	}
	access := bawn.Access{}
	if r != nil {
		access = r.Access
	}
	what, how := access.Asks()
	return bawn.Errorf(bawn.CodeUnauthenticated, "admit", "%s", what).WithFix("%s", how)
}
