package ingress

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// A Trial is the call of a test, to a version that need not be known to anybody.
// It lasts until it is closed: meanwhile the version may call others, for whoever
// runs the test, as far as both he and the one whom the test calls as may.
type Trial struct {
	gate    *Gate
	version *bawn.Version
	id      string         // of the invocation
	as      bawn.Principal // whom the test calls as; who began the chain, if that is a function
	chain   []bawn.Ref     // through which it came, if it is a function

	mu      sync.Mutex
	stopped []bawn.Record
}

const maxTrialStops = 20

// trials are those that go on. There are never many.
type trials struct {
	mu  sync.RWMutex
	all map[string]*Trial // by invocation
}

// Try decides on the call c of a test to v, as v's rules and the guardrails have
// it. c.Principal is whom the test calls as, and c.Caller the calling version
// where that is a function. The error is why the call is refused; nobody has
// asked to get in, so nothing is recorded or counted. The Trial must be closed.
func (g *Gate) Try(ctx context.Context, v *bawn.Version, c *bawn.Call) (*Trial, error) {
	if err := g.checkDraining(ctx, c, nil); err != nil {
		return nil, err
	}
	if err := g.checkSize(ctx, c, nil); err != nil {
		return nil, err
	}
	req := policy.Request{
		Principal: c.Principal, Action: policy.Invoke, Resource: v.Ref(), Invocation: c.ID, Source: c.Source,
		Trigger: c.Trigger, Route: c.Route, Target: v,
		Caller: c.Caller, Origin: c.Origin, Chain: c.Chain,
	}
	if c.Route != nil {
		req.Public = c.Route.Access.Public
	}
	if d := g.cfg.Policy.Ask(req); !d.Allow {
		return nil, bawn.Errorf(bawn.CodeDenied, "admit", "%s", d.Reason).WithFix("%s", d.Fix)
	}
	a := &Admission{gate: g, Version: v}
	if m := g.takes(c, a); m != nil {
		return nil, m.err()
	}
	if err := g.tryInspect(ctx, c, a); err != nil {
		return nil, err
	}
	t := &Trial{gate: g, version: v, id: c.ID, as: c.From(), chain: c.Chain}
	g.trials.mu.Lock()
	defer g.trials.mu.Unlock()
	if g.trials.all == nil {
		g.trials.all = make(map[string]*Trial)
	}
	g.trials.all[c.ID] = t
	return t, nil
}

// Close ends the trial, and returns what of the version's own calls was refused,
// at most 20 of them.
func (t *Trial) Close() []bawn.Record {
	t.gate.trials.mu.Lock()
	delete(t.gate.trials.all, t.id)
	t.gate.trials.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopped
}

// of returns the trial that made the call c, or nil.
func (ts *trials) of(c *bawn.Call) *Trial {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	return ts.all[c.Parent]
}

// has reports whether ref means a version that is tried just now.
func (ts *trials) has(ref bawn.Ref) bool {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	for _, t := range ts.all {
		if t.version.Ref() == ref {
			return true
		}
	}
	return false
}

// Stopped tells the trial that made the call c, if one did, that it was refused.
func (g *Gate) Stopped(c *bawn.Call, reason string) {
	t := g.trials.of(c)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stopped) < maxTrialStops {
		t.stopped = append(t.stopped, bawn.Record{Kind: bawn.KindDecision, Function: c.Target.Function, Action: "invoke", Outcome: "deny", Control: "A7", Reason: reason})
	}
}

// lends reports whether the one whom the test calls as may have this done, too:
// a test that calls as a stranger must not succeed by the rights of who runs it.
func (t *Trial) lends(req policy.Request) bool {
	req.Origin = t.as
	if len(t.chain) > 0 {
		req.Chain = append(t.chain[:len(t.chain):len(t.chain)], req.Chain...)
	}
	return t.gate.cfg.Policy.Allows(req)
}

// MatchIn is Match among the routes of v alone, on the node's own names and, where
// no route answers there, on the domains that v names, by the alphabet. It returns
// the host, "" for the node's own.
func (g *Gate) MatchIn(v *bawn.Version, method, rawPath string) (m Match, host string, err error) {
	if err := CheckPath(rawPath); err != nil {
		return m, "", err
	}
	x := newIndex(func(map[bawn.Runtime]int) {}, func(string, string) {})
	f := &bawn.Function{Tenant: v.Tenant, Name: v.Function, Latest: v.Number, Aliases: map[string]int{bawn.LiveAlias: v.Number}}
	x.setVersion(versionKey(f, v.Number), v)
	x.setFunction(v.Tenant+"."+v.Function, f)
	all := slices.SortedFunc(maps.Keys(x.roots), func(a, b origin) int { return cmp.Compare(a.host, b.host) })
	for _, o := range all {
		if m, ok := x.match(o, method, rawPath); ok {
			return m, o.host, nil
		}
	}
	return m, "", notFound()
}
