package ingress

import (
	"context"

	"bawn.dev/bawn"
)

// checkAuthenticate finds out who calls, unless the trigger has done so. Who
// has no credential, or a wrong one, is anonymous. It never says no itself: the
// policy does, so that the refusal is recorded like any other.
func (g *Gate) checkAuthenticate(_ context.Context, c *bawn.Call, a *Admission) error {
	if c.Principal.Kind != "" {
		return nil
	}
	c.Principal = bawn.Anonymous()
	if c.Bearer == "" {
		return nil
	}
	p, err := g.cfg.Keys.Authenticate(c.Bearer)
	if err == nil && c.Route != nil && c.Event == nil {
		// The trigger did not read the request, since the key was not known then.
		// What is good only now does not make a function run without its event.
		_, err = g.cfg.Keys.Authenticate("")
	}
	if err != nil {
		a.refusal, a.public = err, nil // a wrong credential opens nothing
		return nil
	}
	c.Principal = p
	return nil
}

// Known reports whether bearer is a key that may be used now.
func (g *Gate) Known(bearer string) bool {
	_, err := g.cfg.Keys.Authenticate(bearer)
	return err == nil
}

// unauthenticated says why an anonymous caller is refused.
func (a *Admission) unauthenticated() error {
	if a.refusal != nil {
		return a.refusal
	}
	return bawn.Errorf(bawn.CodeUnauthenticated, "admit", "a credential is needed").
		WithFix("send an API key: Authorization: Bearer bawn_…")
}
