package ingress

import (
	"context"
	"crypto/x509"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/identity"
)

// Shows reports whether the caller of c shows anything by which it could be known.
func (g *Gate) Shows(c *bawn.Call) bool {
	return certifies(c) || delivers(c) || !g.credential(c).Empty()
}

// meet says who calls: by what the route itself asks for where that was shown, or
// as one of Bawn's own. A signed request must be asked about once. What is to be
// accepted once stays in a, until the call is admitted.
func (g *Gate) meet(ctx context.Context, c *bawn.Call, a *Admission) (bawn.Principal, error) {
	switch {
	case g.customer(c):
		p, claims, err := g.cfg.Identity.AuthenticateCustomer(ctx, c.Target.Tenant, c.Route.Access.JWT, c.Bearer)
		c.Claims = claims
		return p, err
	case delivers(c):
		return g.deliver(ctx, c, a)
	}
	p, why := g.certify(ctx, c)
	if c.Certified {
		return p, nil
	}
	cred := g.credential(c)
	p, err := g.cfg.Identity.Authenticate(ctx, cred)
	if err != nil && why != nil && cred.Bearer == "" && cred.Signed == nil {
		err = why
	}
	return p, err
}

// certifies reports whether c has a client certificate, and its route asks for one.
func certifies(c *bawn.Call) bool {
	return c.Route != nil && c.Route.Access.MTLS != nil && len(c.Certificates) > 0
}

// certify sets c.Certified, and returns who holds the certificate, or why it does not
// meet what the route asks for. Both are empty if that is no certificate.
func (g *Gate) certify(ctx context.Context, c *bawn.Call) (p bawn.Principal, err error) {
	if c.Certified = false; certifies(c) {
		p, err = g.cfg.Identity.AuthenticatePartner(ctx, c.Target.Tenant, c.Route.Access.MTLS, c.Certificates)
		c.Certified = err == nil
	}
	return p, err
}

// credential is what c shows of Bawn's own. A certificate that another route asks for
// is shown for the whole connection, and says nothing here.
func (g *Gate) credential(c *bawn.Call) identity.Credential {
	cred := identity.CredentialOf(c)
	if len(cred.Certificates) > 0 && g.cfg.Identity.Elsewhere(cred.Certificates, g.index.partners()) {
		cred.Certificates = nil
	}
	return cred
}

// Asks reports whether a handshake for a host should ask for a client certificate
// because a route there wants one of its own authorities, and returns those.
func (g *Gate) Asks(host string) (bool, []*x509.Certificate) {
	name := HostName(host)
	tenant, ok := g.cfg.Host(name)
	if !ok || tenant == "" {
		name, tenant = "", "" // who names nobody's host is told as little as who names none
	}
	return g.index.asks(origin{tenant, name})
}

// customer reports whether c shows a token for its route: one that says that it is
// of the route's issuer, or that is nothing to Bawn.
func (g *Gate) customer(c *bawn.Call) bool {
	if c.Route == nil || c.Route.Access.JWT == nil || !identity.IsToken(c.Bearer) {
		return false
	}
	return identity.IssuerOf(c.Bearer) == c.Route.Access.JWT.Issuer || !g.cfg.Identity.Ours(c.Bearer)
}

// delivers reports whether c has a signature of the kind that its route asks for.
func delivers(c *bawn.Call) bool {
	return c.Route != nil && c.Route.Access.Webhook != nil && c.Request != nil && c.Request.Header[c.Route.Access.Webhook.Header] != nil
}

// deliver says who signed a webhook.
func (g *Gate) deliver(ctx context.Context, c *bawn.Call, a *Admission) (bawn.Principal, error) {
	want := c.Route.Access.Webhook
	if g.cfg.Secret == nil {
		return bawn.Principal{}, bawn.Errorf(bawn.CodeUnavailable, "admit", "there are no secrets here")
	}
	p, claim, err := g.cfg.Identity.AuthenticateWebhook(c.Target.Tenant, want, c.Request.Header, c.Request.Body, func(check func([]byte) bool) (bool, error) {
		return g.cfg.Secret(ctx, a.Version, want.Secret, c.ID, check)
	})
	if err != nil {
		return bawn.Principal{}, err
	}
	a.claim = claim
	return p, nil
}
