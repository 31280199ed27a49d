package ingress

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// checkKnown ends a call by name that found nothing, now that it is known who
// asks: names are not for those without a credential.
func (g *Gate) checkKnown(_ context.Context, c *bawn.Call, a *Admission) error {
	switch {
	case a.Version != nil:
		return nil
	case c.Principal.Kind == anonymous:
		return a.unauthenticated()
	}
	return notFound()
}

// anonymous is the kind of [bawn.Anonymous].
const anonymous = "anonymous"

// checkAuthorize asks the policy, which records what it decides. What cannot
// be recorded is refused.
func (g *Gate) checkAuthorize(ctx context.Context, c *bawn.Call, a *Admission) error {
	d, err := g.cfg.Policy.Authorize(ctx, policy.Request{
		Principal:  c.Principal,
		Action:     policy.Invoke,
		Resource:   a.Version.Ref(),
		Invocation: c.ID,
		Source:     c.Source,
		Public:     a.public,
	})
	switch {
	case err != nil:
		return err
	case d.Allow:
		return nil
	case c.Principal.Kind == anonymous:
		return a.unauthenticated()
	case c.Principal.Tenant != a.Version.Tenant:
		return notFound() // what others have is not this caller's to know
	}
	return bawn.Errorf(bawn.CodeDenied, "admit", "%s", d.Reason).WithFix("%s", d.Fix)
}

// notFound is the one answer for what is not there and what is not yours.
func notFound() error {
	return bawn.Errorf(bawn.CodeNotFound, "admit", "there is no such function or route").
		WithFix("bawn ls shows the functions, bawn show FN a function's routes")
}
