package ingress

import (
	"context"
	"slices"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// checkKnown ends a call by name that found nothing, now that it is known who
// asks: names are not for those without a credential.
func (g *Gate) checkKnown(ctx context.Context, c *bawn.Call, a *Admission) error {
	switch {
	case a.Version != nil:
		return nil
	case c.Principal.Kind == anonymous:
		return a.unauthenticated()
	case foreign(c):
		// Decided and recorded as if it were there: the time that takes must not tell.
		if _, err := g.authorize(ctx, c, c.Target, nil, nil); err != nil {
			return err
		}
	}
	return notFound()
}

// foreign reports whether a call by name asks for a function that its key is
// not held to. The names of others are not for such a key. A route is known to
// everybody who has been there.
func foreign(c *bawn.Call) bool {
	held := c.Principal.Functions
	return c.Route == nil && len(held) > 0 && !slices.Contains(held, c.Target.Function)
}

// anonymous is the kind of [bawn.Anonymous].
const anonymous = "anonymous"

// checkAuthorize asks the policy, which records what it decides. What cannot
// be recorded is refused.
func (g *Gate) checkAuthorize(ctx context.Context, c *bawn.Call, a *Admission) error {
	d, err := g.authorize(ctx, c, a.Version.Ref(), a.Version, a.public)
	switch {
	case err != nil:
		return err
	case d.Allow:
		return nil
	case c.Principal.Kind == anonymous:
		return a.unauthenticated()
	case c.Principal.Tenant != a.Version.Tenant, foreign(c):
		return notFound() // what others have is not this caller's to know
	}
	return bawn.Errorf(bawn.CodeDenied, "admit", "%s", d.Reason).WithFix("%s", d.Fix)
}

func (g *Gate) authorize(ctx context.Context, c *bawn.Call, ref bawn.Ref, v *bawn.Version, public *bawn.PublicAccess) (policy.Decision, error) {
	return g.cfg.Policy.Authorize(ctx, policy.Request{
		Principal:  c.Principal,
		Action:     policy.Invoke,
		Resource:   ref,
		Invocation: c.ID,
		Source:     c.Source,
		Public:     public,
		Trigger:    c.Trigger,
		Route:      c.Route,
		Target:     v,
	})
}

// notFound is the one answer for what is not there and what is not yours.
func notFound() error {
	return bawn.Errorf(bawn.CodeNotFound, "admit", "there is no such function or route").
		WithFix("bawn ls shows the functions, bawn show FN a function's routes")
}
