// Package ingress decides whether a call may run: who calls, what, and how
// much. A call that it refuses has cost no sandbox.
package ingress

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/ingress/waf"
	"bawn.dev/bawn/internal/meter"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/schema"
	"bawn.dev/bawn/internal/store"
)

// Config says what a [Gate] decides by. All but the functions at the end are
// needed.
type Config struct {
	Functions *store.Table[bawn.Function]
	Versions  *store.Table[bawn.Version]
	Identity  *identity.Authenticator
	Policy    *policy.Engine
	// Hops is the secret that the count of calls in traces is signed with: 32
	// bytes that no other part has.
	Hops []byte
	// Record keeps a refusal that asks no policy.
	Record func(ctx context.Context, r bawn.Record) error

	// AddressRate is what one address may call the node, whatever it calls: it is
	// asked before anything is looked up. With no calls there is no such limit.
	AddressRate bawn.Rate
	// AddressRateAtHome holds the host's own loopback addresses to that rate, too.
	AddressRateAtHome bool
	// TenantRate returns how many calls a second the functions of a tenant may be
	// called, 0 for any number. It reads memory only. nil: any number.
	TenantRate func(tenant string) int
	// Meter counts what calls use and holds them to budgets. nil: nothing is counted,
	// and what has a budget is not called.
	Meter *meter.Ledger

	// Secret has check look at each live version of a secret that webhooks of v are
	// signed with, until it says yes, if v may use it. nil: there are no secrets.
	Secret func(ctx context.Context, v *bawn.Version, name, invocation string, check func(value []byte) bool) (bool, error)
	// Suspended reports whether nothing of a tenant may be called. It reads memory
	// only. nil: no tenant is suspended.
	Suspended func(tenant string) bool
	// Host returns the tenant whose domain a host is, "" if it is one of the node's own
	// names, and whether it is anybody's. It reads memory only. nil: every host is the
	// node's own.
	Host func(name string) (tenant string, ok bool)

	// Timed hears how long each check took that let a call pass, for measurements.
	// It must not block.
	Timed func(check string, took time.Duration)

	Now func() time.Time // the clock; time.Now
	// Runtimes hears how many live functions each runtime has, whenever one
	// comes into use or goes out of it. The pool keeps warm sandboxes by it. It
	// must not block.
	Runtimes func(live map[bawn.Runtime]int)
	// Removed hears that a function is gone. It must not block.
	Removed func(tenant, function string)
}

// Gate admits calls. Safe for concurrent use.
type Gate struct {
	cfg      Config
	index    *index
	damaged  damage
	stop     func()
	loops    told  // of refusals of loops that come from outside
	unfit    paces // records of what does not fit
	schemas  schema.Cache
	reader   schema.Reader
	draining atomic.Bool
	running  atomic.Int64
	counts   [checkCount + 1]atomic.Uint64 // refusals by check; the last is what was admitted
	trials   trials
	waf      *waf.Inspector
	limits   limits
	macs     sync.Pool // of hash.Hash keyed with Config.Hops, since keying costs as much as one trace
}

// Open returns a gate that knows every function in the tables and follows
// them. The caller must Close it.
func Open(ctx context.Context, cfg Config) (*Gate, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Suspended == nil {
		cfg.Suspended = func(string) bool { return false }
	}
	if cfg.TenantRate == nil {
		cfg.TenantRate = func(string) int { return 0 }
	}
	if cfg.Host == nil {
		cfg.Host = func(string) (string, bool) { return "", true }
	}
	if cfg.Runtimes == nil {
		cfg.Runtimes = func(map[bawn.Runtime]int) {}
	}
	if cfg.Removed == nil {
		cfg.Removed = func(string, string) {}
	}
	g := &Gate{cfg: cfg, waf: waf.New()}
	g.limits.open(&cfg)
	g.index = newIndex(cfg.Runtimes, func(tenant, function string) {
		g.limits.forget(tenant, function)
		cfg.Removed(tenant, function)
	})
	g.index.inspects = g.waf.Need
	g.macs.New = func() any { return hmac.New(sha256.New, cfg.Hops) }
	g.damaged = findDamage(cfg.Functions, cfg.Versions)
	g.stop = g.index.follow(cfg.Functions, cfg.Versions)
	return g, ctx.Err()
}

// Close ends what Open began.
func (g *Gate) Close() {
	g.stop()
	g.waf.Close()
}

// Drain refuses every call from now on with CodeUnavailable.
func (g *Gate) Drain() { g.draining.Store(true) }

// Running returns how many admitted calls are not settled yet.
func (g *Gate) Running() int { return int(g.running.Load()) }

// Refusals returns how many calls each check has refused, by its name, and
// under "" how many were admitted.
func (g *Gate) Refusals() map[string]uint64 {
	m := make(map[string]uint64, len(g.counts))
	for i := range checks {
		m[checks[i].name] = g.counts[i].Load()
	}
	m[""] = g.counts[checkCount].Load()
	return m
}

// Resolve returns the version that ref means, or nil. What a suspended tenant
// has is not there.
func (g *Gate) Resolve(ref bawn.Ref) *bawn.Version {
	if g.cfg.Suspended(ref.Tenant) {
		return nil
	}
	return g.index.resolve(ref)
}

// MayReadLogs reports whether who makes the call may read the log of what it
// runs. To call is not to read: a function that calls another never may.
func (g *Gate) MayReadLogs(c *bawn.Call) bool {
	return c.Caller == nil && g.cfg.Policy.Allows(policy.Request{
		Principal: c.Principal, Action: policy.Logs, Resource: bawn.Ref{Tenant: c.Target.Tenant, Function: c.Target.Function},
	})
}

// Own reports whether a request's Host is one of the node's own names.
func (g *Gate) Own(host string) bool {
	tenant, ok := g.cfg.Host(HostName(host))
	return ok && tenant == ""
}

// Match returns the route for a request's Host, method and path, which must still
// be escaped as it came. Its errors are CodeInvalid for a path with more than one
// meaning, and the same CodeNotFound as for an unknown function: also for a host
// that is nobody's.
func (g *Gate) Match(host, method, rawPath string) (Match, error) {
	if err := CheckPath(rawPath); err != nil {
		return Match{}, err
	}
	name := HostName(host)
	tenant, ok := g.cfg.Host(name)
	if !ok {
		return Match{}, notFound()
	}
	var o origin
	if tenant != "" {
		o = origin{tenant, name}
	}
	m, ok := g.index.match(o, method, rawPath)
	if err := g.damaged.route(m, ok); err != nil {
		return Match{}, err
	}
	if !ok || g.cfg.Suspended(m.Version.Tenant) {
		return Match{}, notFound()
	}
	return m, nil
}

// Admission is a call that may run. It must be settled.
type Admission struct {
	Version *bawn.Version

	gate     *Gate
	public   *bawn.PublicAccess // why everybody may; nil if not
	refusal  error              // why the credential was refused
	document *schema.Document   // the body or the event as JSON, if a check has read it; only for other checks
	settled  bool
	refuses  int                // the check that says no, if it is not the one that is run; 0 if it is
	standing *standing          // of the function
	caller   uint64             // who calls, as it is counted there
	shares   bool               // it is counted there
	lane     int                // among the function's breakers; see checkBreaker
	probe    bool               // it was let through to find out whether the function works again
	claim    *identity.Claim    // what is accepted once the call is; nil if nothing is
	budget   *meter.Reservation // what the call holds; nil if nothing is counted
}

// Settle gives back what the call held. It is called once, when the call is
// over.
func (a *Admission) Settle() {
	if !a.settled {
		a.settled = true
		a.gate.running.Add(-1)
		a.release()
	}
}

// release gives back what checks took for the call. It may be called again.
func (a *Admission) release() {
	if a.claim != nil {
		a.claim.Drop()
	}
	if a.budget != nil {
		a.budget.Cancel()
	}
	a.untried()
	a.leave()
}

// forget lets go of what only checks need.
func (a *Admission) forget() {
	a.gate.reader.Release(a.document)
	a.document = nil
}

const checkCount = 14

// Where some stand among the checks.
const (
	floodCheck = 2  // triggers ask before
	shareCheck = 10 // checkRate asks before
)

// A check says no by returning an error, or yes.
type check struct {
	name string
	run  func(*Gate, context.Context, *bawn.Call, *Admission) error
}

// checks is the order in which a call is looked at: what is cheap, and what
// needs no secret, goes first. A golden test holds the order.
var checks = [checkCount]check{
	{"draining", (*Gate).checkDraining},
	{"size", (*Gate).checkSize},
	{"flood", (*Gate).checkFlood},
	{"resolve", (*Gate).checkResolve},
	{"loop", (*Gate).checkLoop},
	{"authenticate", (*Gate).checkAuthenticate},
	{"known", (*Gate).checkKnown},
	{"breaker", (*Gate).checkBreaker},
	{"rate", (*Gate).checkRate},
	{"authorize", (*Gate).checkAuthorize},
	{"share", (*Gate).checkShare},
	{"budget", (*Gate).checkBudget},
	{"input", (*Gate).checkInput},
	{"inspect", (*Gate).checkInspect},
}

// Admit runs the checks in order; the first refusal ends it. It sets
// c.Principal, and for a call by route c.Target and c.Route.
func (g *Gate) Admit(ctx context.Context, c *bawn.Call) (*Admission, error) {
	a := &Admission{gate: g}
	defer a.forget()
	var began time.Time
	for i := range checks {
		if g.cfg.Timed != nil {
			began = time.Now()
		}
		if err := checks[i].run(g, ctx, c, a); err != nil {
			g.counts[cmp.Or(a.refuses, i)].Add(1)
			a.release()
			return nil, err
		}
		if g.cfg.Timed != nil {
			g.cfg.Timed(checks[i].name, time.Since(began))
		}
	}
	// Last: what was refused for another reason may come again.
	if a.claim != nil {
		if err := a.claim.Take(ctx); err != nil {
			a.release()
			return nil, err
		}
	}
	g.counts[checkCount].Add(1)
	g.running.Add(1)
	return a, nil
}

func (g *Gate) checkDraining(context.Context, *bawn.Call, *Admission) error {
	if g.draining.Load() {
		return bawn.Errorf(bawn.CodeUnavailable, "admit", "the node is stopping").WithFix("try again in a moment")
	}
	return nil
}

func (g *Gate) checkSize(_ context.Context, c *bawn.Call, _ *Admission) error {
	if len(c.Event) > bawn.MaxEventBytes {
		return bawn.Errorf(bawn.CodeTooLarge, "admit", "the event has %d bytes, at most %d are allowed", len(c.Event), bawn.MaxEventBytes)
	}
	return nil
}

// checkResolve finds the version. For a call by name that finds none it says
// nothing yet: who has no credential learns nothing about names.
func (g *Gate) checkResolve(_ context.Context, c *bawn.Call, a *Admission) error {
	a.Version = g.Resolve(c.Target)
	if c.Route == nil {
		return nil
	}
	if a.Version == nil {
		return cmp.Or(g.lost(c.Target), notFound())
	}
	// The live version may have changed since the route was matched: what counts
	// is what it says now.
	routes := a.Version.Perimeter.Ingress.HTTP
	for i := range routes {
		if r := &routes[i]; r == c.Route || r.Method == c.Route.Method && r.Path == c.Route.Path && slices.Equal(r.Hosts, c.Route.Hosts) {
			// Public is what was public for the trigger, too: it has read the
			// request by that. Control A11.
			if now := g.cfg.Now(); c.Route.Access.Public.Open(now) && r.Access.Public.Open(now) {
				a.public = r.Access.Public
			}
			c.Route = r
			return nil
		}
	}
	return notFound()
}
