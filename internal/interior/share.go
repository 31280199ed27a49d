package interior

import (
	"net/netip"
	"slices"
	"time"

	"bawn.dev/bawn"
)

// Fairness between callers, control H2. Slots go to the waiting caller that has
// fewest; and once a function has had more callers than one, no caller gets the
// last of its slots, so that the next one finds a slot whatever the calls of the
// first may take. The same holds between those with a credential and all those
// without one.

// shareFor is how long slots are kept free for other callers after one was there.
const shareFor = 10 * time.Minute

// caller is who calls a function: a function whatever its version, and who has no
// credential by the address. The zero value is nobody: the platform itself.
type caller struct{ kind, tenant, id string }

func callerOf(c *bawn.Call) caller {
	p := &c.Principal
	switch {
	case c.Caller != nil:
		return caller{bawn.PrincipalFunction, c.Caller.Tenant, c.Caller.Function}
	case p.Kind == "":
		return caller{}
	case p.Kind == bawn.PrincipalAnonymous:
		return caller{kind: p.Kind, id: network(c.Source)}
	}
	return caller{p.Kind, p.Tenant, p.ID}
}

// network returns the part of an address that one host has for itself: of version
// 6 it is 64 bits.
func network(source string) string {
	a, err := netip.ParseAddr(source)
	if err != nil || a.Unmap().Is4() {
		return source
	}
	n, err := a.WithZone("").Prefix(64)
	if err != nil {
		return source
	}
	return n.String()
}

// A tally is what one caller has of a function. It is there for as long as it has
// anything. Needs the function's mu.
type tally struct {
	of       caller
	stranger bool // without a credential
	held     int  // slots
	waiting  int  // calls in the queue
	turn     int  // when it last got one; 0 if it has not since it came
}

// tally returns the tally of k, and notes that it was here.
func (fn *function) tally(k caller, now time.Time) *tally {
	if k == (caller{}) {
		return nil
	}
	if k != fn.last {
		if fn.last != (caller{}) {
			fn.mixed = now
		}
		fn.last = k
	}
	t := fn.tallies[k]
	if t == nil {
		if fn.tallies == nil {
			fn.tallies = make(map[caller]*tally)
		}
		t = &tally{of: k, stranger: k.kind == bawn.PrincipalAnonymous}
		fn.tallies[k] = t
	}
	if !t.stranger {
		fn.known = now
	}
	return t
}

// may reports whether the caller may have one more slot of f now. Needs mu.
func (f *fleet) may(t *tally, now time.Time) bool {
	limit := f.limit()
	if t == nil || limit < 2 {
		return true
	}
	fn := f.fn
	most := limit - max(1, limit/8)
	if t.held >= most && !fn.mixed.IsZero() && now.Sub(fn.mixed) < shareFor {
		return false
	}
	return !t.stranger || fn.strangers < most || fn.known.IsZero() || now.Sub(fn.known) >= shareFor
}

// hold notes that the caller has one slot more. Needs mu.
func (fn *function) hold(t *tally) {
	if t == nil {
		return
	}
	t.held++
	fn.turns++
	t.turn = fn.turns
	if t.stranger {
		fn.strangers++
	}
}

// release notes that it has one less. Needs mu.
func (fn *function) release(t *tally) {
	if t == nil {
		return
	}
	t.held--
	if t.stranger {
		fn.strangers--
	}
	fn.drop(t)
}

// drop forgets a caller that has nothing. Needs mu.
func (fn *function) drop(t *tally) {
	if t != nil && t.held == 0 && t.waiting == 0 {
		delete(fn.tallies, t.of)
	}
}

// queue puts w at the end of the queue. Needs mu.
func (fn *function) queue(w *waiter) {
	fn.waiters = append(fn.waiters, w)
	fn.bytes += w.bytes
	if w.tally != nil {
		w.tally.waiting++
	}
}

// unqueue takes the waiter at i out of the queue. Needs mu.
func (fn *function) unqueue(i int) *waiter {
	w := fn.waiters[i]
	fn.waiters = slices.Delete(fn.waiters, i, i+1)
	fn.bytes -= w.bytes
	if w.tally != nil {
		w.tally.waiting--
		fn.drop(w.tally)
	}
	return w
}

// serves takes out the waiter at i and gives it g. Needs mu.
func (fn *function) serves(i int, g grant) {
	w := fn.waiters[i]
	if g.err == nil {
		fn.hold(w.tally) // before it has left the queue, so that its tally stays
		if g.in != nil {
			g.in.holder = w.tally
		}
	}
	fn.unqueue(i)
	w.grant <- g
}

// pick returns where in the queue the call is that gets the next slot: of those
// that want takes and that may have one, of the caller that has fewest, of one
// with a credential, of one that was not served for longest, the oldest. It returns -1 if there is none. Needs mu.
func (fn *function) pick(now time.Time, want func(*waiter) bool) int {
	best := -1
	before := func(a, b *tally) bool {
		switch {
		case a == nil || b == nil:
			return a == nil && b != nil
		case a.held != b.held:
			return a.held < b.held
		case a.stranger != b.stranger:
			return b.stranger
		}
		return a.turn < b.turn
	}
	for i, w := range fn.waiters {
		if want(w) && w.fleet.may(w.tally, now) && (best < 0 || before(w.tally, fn.waiters[best].tally)) {
			best = i
		}
	}
	return best
}

// first reports whether a call waits for f that comes before a new one. Needs mu.
func (fn *function) first(f *fleet, now time.Time) bool {
	return len(fn.waiters) > 0 && fn.pick(now, func(w *waiter) bool { return w.fleet == f }) >= 0
}

// displace makes room for a call of t in a full queue. It takes the newest call of
// whoever has most in it: of those without a credential for one with, and of
// one that has two more than t for everybody else. Needs mu.
func (fn *function) displace(t *tally, why func() error) bool {
	if t == nil {
		return false
	}
	victim := -1
	for i, w := range fn.waiters {
		o := w.tally
		if o == nil || o == t {
			continue
		}
		if (!t.stranger && o.stranger || o.waiting > t.waiting+1 && (t.stranger == o.stranger)) &&
			(victim < 0 || o.waiting >= fn.waiters[victim].tally.waiting) {
			victim = i
		}
	}
	if victim < 0 {
		return false
	}
	fn.serves(victim, grant{err: why()})
	return true
}

// limit is how many calls of the fleet's version run at one time.
func (f *fleet) limit() int {
	n := f.version.Perimeter.Interior.Concurrency
	if l := f.version.Perimeter.Ingress.Limits; l != nil && l.Concurrency > 0 {
		n = min(n, l.Concurrency)
	}
	return n
}

// crowded reports whether the node has too little left for fn to grow: who has an
// eighth of it gets no more than is left for everybody else. Needs mu.
func (fn *function) crowded() bool {
	most := fn.pool.cfg.MaxSandboxes
	return fn.slots > 0 && fn.slots >= max(most/8, 1) && fn.slots >= most-int(fn.pool.live.Load())
}

// A chain of calls holds a slot in each function that it came through. Where calls
// wait for slots that only wait for them, none would ever be free: the last one to
// come is refused at once.

// An errand is the call that an instance serves, and where that came from.
type errand struct {
	id, parent string
	from       functionKey // where the parent runs
}

// chainWaits notes that the calls which led to c wait for fn, and returns what takes
// the note away.
func (p *Pool) chainWaits(c *bawn.Call, fn *function) (end func()) {
	type place struct {
		in *instance
		fn *function
	}
	var marked []place
	id, key := c.Parent, functionKey{c.Caller.Tenant, c.Caller.Function}
	for range bawn.MaxHops + 1 {
		p.mu.RLock()
		of := p.functions[key]
		p.mu.RUnlock()
		if of == nil || id == "" {
			break
		}
		of.mu.Lock()
		in := of.busyWith(id)
		if in == nil {
			of.mu.Unlock()
			break
		}
		in.waits = append(in.waits, fn)
		id, key = in.errand.parent, in.errand.from
		of.mu.Unlock()
		marked = append(marked, place{in, of})
	}
	return func() {
		for _, m := range marked {
			m.fn.mu.Lock()
			if i := slices.Index(m.in.waits, fn); i >= 0 {
				m.in.waits = slices.Delete(m.in.waits, i, i+1)
			}
			m.fn.mu.Unlock()
		}
	}
}

// busyWith returns the instance that serves the invocation, or nil. Needs mu.
func (fn *function) busyWith(id string) *instance {
	for _, f := range fn.fleets {
		for in := range f.instances {
			if in.state == "busy" && in.errand.id == id {
				return in
			}
		}
	}
	return nil
}

// stuck reports whether no slot of fn can become free: each is held by a call that
// waits for a function that is stuck itself. seen holds the functions that are
// being asked about; whoever waits for one of them waits in a circle.
func (fn *function) stuck(seen map[*function]bool) bool {
	if seen[fn] {
		return true
	}
	seen[fn] = true
	defer delete(seen, fn)
	var waits [][]*function
	fn.mu.Lock()
	limit, free := 0, false
	for _, f := range fn.fleets {
		limit = max(limit, f.limit())
		free = free || len(f.idle) > 0 || f.starting > 0
		for in := range f.instances {
			free = free || len(in.waits) == 0
			waits = append(waits, slices.Clone(in.waits))
		}
	}
	free = free || fn.slots < limit
	fn.mu.Unlock()
	if free || len(seen) > maxCircle {
		return false
	}
	for _, w := range waits {
		if !slices.ContainsFunc(w, func(on *function) bool { return on.stuck(seen) }) {
			return false
		}
	}
	return true
}

// maxCircle bounds the functions that are looked at for a circle; longer ones end
// with the wait.
const maxCircle = 16

// errCircle says that a call would wait for a slot that is held by who waits for
// it; control H2.
func errCircle(v *bawn.Version) error {
	return bawn.Errorf(bawn.CodeThrottled, "run", "each slot of %s is held by a call that waits for this one or for another like it", v.Function).
		WithFix("raise interior.concurrency, or have the functions not call each other in a circle")
}
