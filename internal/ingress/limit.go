package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
)

// Sizes of the tables, in sets of eight. Neither is there before a limit needs it.
const (
	floodSets = 1 << 13 // addresses that have called within the node's rate: 1 MiB
	rateSets  = 1 << 16 // callers and addresses that functions tell apart: 8 MiB
)

const (
	// curbRecords is how many refusals of one kind are recorded of one function in a
	// second, and of what no function is known yet: the rest are counted.
	curbRecords = 3
	// maxTotals is how many buckets of a function may stand before those that are
	// full are cleared away: what deploys have changed leaves some behind.
	maxTotals = 512
)

// ErrQuiet is the cause of an error that is one of too many of its kind to be
// told one by one. Nobody needs to write it down.
var ErrQuiet = errors.New("one of many")

// limits is what the gate counts of calls. Safe for concurrent use.
type limits struct {
	began    time.Time
	flood    *table
	rates    *table
	perHost  interval
	told     told // of floods
	mu       sync.RWMutex
	standing map[functionKey]*standing // of a tenant as of the function ""
}

// A standing is what is counted for one function, or for one tenant.
type standing struct {
	mu     sync.Mutex
	totals map[uint64]int64 // the buckets that all callers share
	told   told

	running int            // calls that were let in and are not over
	by      map[uint64]int // of these each caller's

	breakers atomic.Pointer[breakers] // nil as long as no call has failed
	turned   told                     // of their changes

	found told // of what inspections have refused
}

func (l *limits) open(cfg *Config) {
	l.began = cfg.Now()
	l.flood, l.rates = newTable(floodSets), newTable(rateSets)
	if cfg.AddressRate.Calls > 0 {
		l.perHost = intervalOf(&cfg.AddressRate)
	}
	l.standing = make(map[functionKey]*standing)
}

// now is the time that buckets are counted in. It does not jump when the clock of
// the host is set.
func (g *Gate) now() int64 { return int64(g.cfg.Now().Sub(g.limits.began)) }

// of returns what is counted for a function that there is, or, without one, for a
// tenant.
func (l *limits) of(tenant, function string) *standing {
	k := functionKey{tenant, function}
	l.mu.RLock()
	s := l.standing[k]
	l.mu.RUnlock()
	if s == nil {
		l.mu.Lock()
		if s = l.standing[k]; s == nil {
			s = &standing{}
			l.standing[k] = s
		}
		l.mu.Unlock()
	}
	return s
}

// forget drops what was counted for a function that is gone.
func (l *limits) forget(tenant, function string) {
	l.mu.Lock()
	delete(l.standing, functionKey{tenant, function})
	l.mu.Unlock()
}

func (s *standing) take(key uint64, i interval, now int64) (full int64, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.totals == nil {
		s.totals = make(map[uint64]int64)
	}
	if len(s.totals) >= maxTotals {
		for k, full := range s.totals {
			if full <= now {
				delete(s.totals, k)
			}
		}
	}
	full, wait = i.take(s.totals[key], now)
	s.totals[key] = full
	return full, wait
}

func (s *standing) give(key uint64, i interval) {
	s.mu.Lock()
	s.totals[key] -= i.each
	s.mu.Unlock()
}

// told counts what is recorded of what comes too often to be. Safe for concurrent
// use; the zero value is ready.
type told struct {
	mu     sync.Mutex
	second int64
	count  int
	left   int
}

// take reports whether one more is to be told, of which most are in a second, and
// how many before it were not.
func (t *told) take(now time.Time, most int) (left int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := now.Unix(); t.second != s {
		t.second, t.count = s, 0
	}
	if t.count >= most {
		t.left++
		return 0, false
	}
	t.count++
	left, t.left = t.left, 0
	return left, true
}

// Flood holds the address that a request comes from to the node's rate: control
// H1. A trigger asks before it looks at anything else of a request from outside.
// The error is CodeThrottled; c.Source must be set.
func (g *Gate) Flood(ctx context.Context, c *bawn.Call) error {
	err := g.flood(ctx, c)
	if err != nil {
		g.counts[floodCheck].Add(1)
	}
	return err
}

// checkFlood is Flood for the calls whose trigger has not asked: those that came
// through the control API.
func (g *Gate) checkFlood(ctx context.Context, c *bawn.Call, _ *Admission) error {
	if c.Trigger == "http" || c.Trigger == "lambda" || c.Caller != nil {
		return nil
	}
	return g.flood(ctx, c)
}

// flood is Flood, and leaves it to who asks to count the refusal.
func (g *Gate) flood(ctx context.Context, c *bawn.Call) error {
	l := &g.limits
	if l.perHost.each == 0 || c.Source == "" {
		return nil
	}
	addr, err := netip.ParseAddr(c.Source)
	key := uint64(0)
	if err != nil {
		key = l.flood.hash(c.Source)
	} else if addr = addr.Unmap(); !addr.IsLoopback() || g.cfg.AddressRateAtHome {
		key = l.flood.network(addr)
	} else {
		return nil
	}
	_, wait := l.flood.take(key, l.perHost, g.now())
	if wait == 0 {
		return nil
	}
	c.Rate = bawn.RateStatus{Name: "flood", Limit: g.cfg.AddressRate.Calls, Window: g.cfg.AddressRate.Per, Reset: wait}
	return g.curb(ctx, c, &Admission{}, curbing{
		told: &l.told, control: "H1", wait: wait,
		reason: "one address calls the node more often than " + rateText(&g.cfg.AddressRate), fix: "bawn up --address-rate raises it for all addresses",
	})
}

// A curbing is a refusal of something that there is too much of.
type curbing struct {
	told    *told
	control string
	reason  string
	fix     string // for the owner: what would allow it
	wait    time.Duration
	code    bawn.Code // CodeThrottled if empty
	crowded bool      // it is about how many there are at one time
}

// curb words a refusal and records it, unless there are too many.
func (g *Gate) curb(ctx context.Context, c *bawn.Call, a *Admission, r curbing) error {
	if r.code == "" {
		r.code = bawn.CodeThrottled
	}
	e := bawn.Errorf(r.code, "admit", "%s", r.reason).WithFix("%s", r.fix)
	e.RetryAfter = r.wait
	if r.crowded {
		e.Err = ErrCrowded
	}
	left, ok := r.told.take(g.cfg.Now(), curbRecords)
	if !ok {
		if e.Err = ErrQuiet; r.crowded {
			e.Err = errCrowdedQuiet
		}
		return e
	}
	who := c.Principal
	if who.Kind == "" {
		who = bawn.Anonymous()
	}
	rec := g.refusal(c, a, who, r.control, r.reason)
	rec.Tenant = cmp.Or(rec.Tenant, bawn.DefaultTenant)
	if r.fix != "" {
		rec.Detail["fix"] = r.fix
	}
	leaveOut(&rec, left)
	if err := g.cfg.Record(context.WithoutCancel(ctx), rec); err != nil {
		return err
	}
	return e
}

// checkRate looks whether there is room for the call, and holds callers to the rates
// of the function, the route and the tenant. What one of them has given is given back
// when the next refuses: what is refused costs nothing of any.
func (g *Gate) checkRate(ctx context.Context, c *bawn.Call, a *Admission) error {
	if err := g.lookAround(ctx, c, a); err != nil {
		return err
	}
	var of, route []bawn.Rate
	if l := a.Version.Perimeter.Ingress.Limits; l != nil {
		of = l.Rates
	}
	if c.Route != nil {
		route = c.Route.Limits
	}
	tenant := 0
	if a.hopeful(c) {
		tenant = g.cfg.TenantRate(a.Version.Tenant)
	}
	if len(of) == 0 && len(route) == 0 && tenant == 0 {
		return nil
	}
	t := taking{g: g, c: c, a: a, now: g.now()}
	for _, together := range []bool{false, true} { // who is over his own has nothing of what is all's
		for i := range of {
			if err := t.take(ctx, &of[i], "", i, together); err != nil {
				return err
			}
		}
		for i := range route {
			if err := t.take(ctx, &route[i], "route", i, together); err != nil {
				return err
			}
		}
	}
	if tenant > 0 {
		r := bawn.Rate{Calls: tenant, Per: time.Second}
		return t.of(ctx, &r, "tenant", g.limits.of(a.Version.Tenant, ""), 0,
			"the tenant's functions are called more often than "+strconv.Itoa(tenant)+"/s", "the operator sets it: bawn tenant quota --rate")
	}
	return nil
}

// hopeful reports whether the policy may let the call in. What all callers share
// is not for those whom it will refuse.
func (a *Admission) hopeful(c *bawn.Call) bool {
	return a.public != nil || c.Principal.Kind != anonymous && c.Principal.Tenant == a.Version.Tenant
}

// A taking is what one call takes of its limits.
type taking struct {
	g    *Gate
	c    *bawn.Call
	a    *Admission
	now  int64
	done [2*bawn.MaxRates + 1]taken
	n    int
}

type taken struct {
	key  uint64
	i    interval
	from *standing // nil: the table
}

// take takes a call of the rate i of the function or, with scope, of its route,
// if it is one of those that are for all together or not.
func (t *taking) take(ctx context.Context, r *bawn.Rate, scope string, i int, together bool) error {
	if (r.By == "") != together || together && !t.a.hopeful(t.c) || t.n == len(t.done) {
		return nil
	}
	l, v := &t.g.limits, t.a.Version
	path, method := "", ""
	if scope != "" {
		method, path = t.c.Route.Method, t.c.Route.Path
	}
	key := l.rates.hash(v.Tenant, v.Function, method, path, "0123456789abcdef"[i&15:i&15+1])
	name, from, manifest := r.By, (*standing)(nil), "ingress.limits.rate"
	if scope != "" {
		manifest = "the route's limits.rate"
	}
	switch r.By {
	case bawn.ByCaller:
		key = mix(key, t.a.caller)
	case bawn.ByAddress:
		if t.c.Source == "" { // a function has none
			key = mix(key, l.rates.caller(t.c))
		} else {
			key = mix(key, l.rates.address(t.c.Source))
		}
	default:
		from = t.a.standing
		if name = scope; name == "" {
			name = "function"
		}
	}
	return t.of(ctx, r, name, from, key, "", manifest)
}

// of takes a call from where the bucket is.
func (t *taking) of(ctx context.Context, r *bawn.Rate, name string, from *standing, key uint64, reason, fix string) error {
	l, i := &t.g.limits, intervalOf(r)
	var full int64
	var wait time.Duration
	if from == nil {
		full, wait = l.rates.take(key, i, t.now)
	} else {
		full, wait = from.take(key, i, t.now)
	}
	if wait > 0 {
		for _, d := range t.done[:t.n] {
			if d.from == nil {
				l.rates.give(d.key, d.i)
			} else {
				d.from.give(d.key, d.i)
			}
		}
		t.c.Rate = bawn.RateStatus{Name: name, Limit: r.Calls, Window: r.Per, Reset: wait}
		if reason == "" {
			reason = "there are more calls than " + rateText(r)
			if name == "route" {
				reason += " by this route"
			}
			fix = fmt.Sprintf("%s is %s: what is more is refused", fix, rateText(r))
		}
		return t.g.curb(ctx, t.c, t.a, curbing{told: &t.a.standing.told, control: "H1", wait: wait, reason: reason, fix: fix})
	}
	t.done[t.n] = taken{key, i, from}
	t.n++
	room := i.room(full, t.now)
	if s := &t.c.Rate; s.Name == "" || room*max(s.Limit, 1) < s.Remaining*r.Calls {
		*s = bawn.RateStatus{Name: name, Limit: r.Calls, Window: r.Per, Remaining: room, Reset: time.Duration(max(full-t.now, 0))}
	}
	return nil
}

// rateText is a rate as the manifest has it.
func rateText(r *bawn.Rate) string {
	s := strconv.Itoa(r.Calls) + "/"
	switch r.Per {
	case time.Second:
		s += "s"
	case time.Minute:
		s += "m"
	case time.Hour:
		s += "h"
	case 24 * time.Hour:
		s += "d"
	default:
		s += r.Per.String()
	}
	if r.Burst > 0 {
		s += " burst " + strconv.Itoa(r.Burst)
	}
	if r.By != "" {
		s += " per " + r.By
	}
	return s
}
