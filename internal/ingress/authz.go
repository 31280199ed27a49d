package ingress

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

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
		return a.unauthenticated(c.Route)
	case c.Caller != nil:
		d, err := g.authorize(ctx, c, a, c.Target, nil, nil)
		if err != nil {
			return err
		}
		if d.Allow { // by the words of its own manifest: there is nothing to run
			d.Reason, d.Fix = "there is no function "+c.Target.String(), "deploy it, or take it out of egress.functions"
		}
		return unknown(d)
	case foreign(c):
		// Decided and recorded as if it were there: the time that takes must not tell.
		if _, err := g.authorize(ctx, c, a, c.Target, nil, nil); err != nil {
			return err
		}
	}
	if c.Principal.Tenant == c.Target.Tenant {
		return cmp.Or(g.lost(c.Target), notFound())
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
	d, err := policy.Decision{Allow: true}, error(nil)
	if live := g.narrower(c, a.Version); live != nil {
		d, err = g.authorize(ctx, c, a, live.Ref(), live, nil)
	}
	if err == nil && d.Allow {
		d, err = g.authorize(ctx, c, a, a.Version.Ref(), a.Version, a.public)
	}
	switch {
	case err != nil:
		return err
	case d.Allow:
		return nil
	case c.Caller != nil && (c.Caller.Tenant != a.Version.Tenant || !slices.Contains(c.Caller.Perimeter.Egress.Functions, a.Version.Function)):
		return unknown(d)
	case c.Principal.Kind == anonymous:
		return a.unauthenticated(c.Route)
	case c.Principal.Tenant != a.Version.Tenant, foreign(c):
		return notFound() // what others have is not this caller's to know
	}
	return bawn.Errorf(bawn.CodeDenied, "admit", "%s", d.Reason).WithFix("%s", d.Fix)
}

// narrower returns the live version if another one is asked for by name and the
// two differ in who may call: whom the live one does not let in, no other one
// shall either, be it older or one that was rolled back. It returns nil if that
// cannot be.
func (g *Gate) narrower(c *bawn.Call, v *bawn.Version) *bawn.Version {
	if c.Route != nil || c.Target.Qualifier == "" {
		return nil
	}
	live := g.index.resolve(bawn.Ref{Tenant: v.Tenant, Function: v.Function})
	if live == nil || live.Number == v.Number || slices.Equal(live.Perimeter.Ingress.Callers, v.Perimeter.Ingress.Callers) {
		return nil
	}
	return live
}

// authorize asks the policy whether c may run target, which is nil if there is
// none. Who began a chain of calls, and who it came through, is looked at anew:
// whoever has been revoked or removed since then lends nobody a right. Control
// A7.
func (g *Gate) authorize(ctx context.Context, c *bawn.Call, a *Admission, ref bawn.Ref, target *bawn.Version, public *bawn.PublicAccess) (policy.Decision, error) {
	req := policy.Request{
		Principal:  c.Principal,
		Action:     policy.Invoke,
		Resource:   ref,
		Invocation: c.ID,
		Source:     c.Source,
		Public:     public,
		Trigger:    c.Trigger, Route: c.Route, Target: target, Hops: c.Hops,
		Detail: a.shown(),
	}
	if c.Caller == nil {
		return g.cfg.Policy.Authorize(ctx, req)
	}
	var gone string
	if req.Origin, gone = g.stillThere(c); gone != "" {
		if err := g.refused(ctx, c, &Admission{Version: target}, c.Principal, "A7", gone); err != nil {
			return policy.Decision{}, err
		}
		return policy.Decision{Reason: gone}, nil
	}
	req.Caller, req.Chain, req.Order, req.Called = c.Caller, c.Chain, c.Order, c.Called
	if t := g.trials.of(c); t != nil && !t.lends(req) {
		reason := "the one whom the test calls as, " + t.as.String() + ", may not have this called"
		if err := g.refused(ctx, c, &Admission{Version: target}, c.Principal, "A7", reason); err != nil {
			return policy.Decision{}, err
		}
		return policy.Decision{Reason: reason}, nil
	}
	return g.cfg.Policy.Authorize(ctx, req)
}

// shown is what the record says of a credential that was refused, which the caller
// does not hear. It is nil if there is nothing to say.
func (a *Admission) shown() map[string]string {
	var e *bawn.Error
	if !errors.As(a.refusal, &e) || e.Err == nil {
		return nil
	}
	why := e.Err.Error()
	if len(why) > maxShown {
		why = strings.ToValidUTF8(why[:maxShown], "")
	}
	return map[string]string{"credential": why}
}

// maxShown bounds the reason in a record why a credential was refused.
const maxShown = 200

// stillThere returns who began the chain of c, as he is now, or who of the chain
// is not there any more.
func (g *Gate) stillThere(c *bawn.Call) (origin bawn.Principal, gone string) {
	origin, ok := g.cfg.Identity.Current(c.From())
	if !ok {
		return origin, "who began the chain of calls, " + c.From().String() + ", is not known any more"
	}
	if _, ok := g.cfg.Identity.Current(c.Principal); !ok {
		return origin, "the calling function may not do anything now"
	}
	for i, r := range c.Chain {
		v := g.index.resolve(r)
		if v == nil && g.trials.has(r) {
			continue // nobody has it yet
		}
		if v == nil || i == len(c.Chain)-1 && v.Digest != c.Caller.Digest {
			return origin, "the function " + r.String() + ", through which the call came, has been removed"
		}
	}
	return origin, ""
}

// unknown is [notFound] for a function that calls what it does not name in its
// manifest, or what is not there; its owner reads the reason.
func unknown(d policy.Decision) error {
	e := bawn.Errorf(bawn.CodeDenied, "admit", "%s", d.Reason).WithFix("%s", d.Fix)
	return bawn.Wrap(e, bawn.CodeNotFound, "admit", "there is no such function or route")
}

// notFound is the one answer for what is not there and what is not yours.
func notFound() error {
	return bawn.Errorf(bawn.CodeNotFound, "admit", "there is no such function or route").
		WithFix("bawn ls shows the functions, bawn show FN a function's routes")
}
