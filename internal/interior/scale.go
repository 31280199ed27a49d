package interior

import (
	"context"
	"math"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"time"

	"bawn.dev/bawn"
)

// functionKey names a function without making a string of it at each call.
type functionKey struct{ tenant, name string }

// versionKey tells apart versions that were given the same number before and
// after a function was removed.
type versionKey struct {
	number int
	digest string
}

// A function is what the pool knows of one function that has an instance or a
// waiting call. Everything in it and in its fleets and instances that changes
// is guarded by mu, unless a comment says otherwise.
type function struct {
	pool *Pool
	key  functionKey

	mu      sync.Mutex
	gone    bool // no longer in the pool's map
	fleets  map[versionKey]*fleet
	slots   int       // instances that exist or are being made, of all versions
	waiters []*waiter // oldest first
	turned  time.Time // when a slot last changed hands; see turn

	// Who has what; see share.go.
	tallies   map[caller]*tally
	turns     int       // slots given so far
	strangers int       // slots of callers without a credential
	bytes     int64     // of the events of waiters
	last      caller    // who called last
	mixed     time.Time // when somebody else did before
	known     time.Time // when somebody with a credential last called
}

// A fleet is the instances of one version.
type fleet struct {
	fn      *function
	version *bawn.Version
	shelf   *shelf
	never   bool   // each call gets an instance of its own
	retired bool   // nothing is kept for later
	trial   *trial // set if its one instance is made for a call of Try

	instances map[*instance]struct{}
	idle      []*instance // frozen ones first, then by the time they became idle
	busy      int
	starting  int
	began     time.Time     // of the oldest start going on
	quick     time.Duration // how long a call takes that nothing holds up; see served
	samples   int
	cpu, wall time.Duration // of a call, on average over those that nothing held up; see computed
	last      time.Time     // of the last call
	gap       time.Duration // mean time between recent calls
	growing   *time.Timer
	growSet   bool
}

// A waiter is a call that waits for an instance or for leave to start one.
type waiter struct {
	fleet *fleet
	tally *tally // of who calls; nil for the platform itself
	bytes int64  // of its event
	since time.Time
	grant chan grant // one is sent, after the waiter has left the queue
	// giveUp says that no slot can become free before the call has ended.
	giveUp bool
}

// A grant is one of: an instance, leave to start one (a slot is taken), or why
// there is none.
type grant struct {
	in  *instance
	err error
}

// acquire returns an instance for the call and whether it was made for it. The
// instance is busy and thawed. The error is a *loadError or a *bawn.Error.
func (p *Pool) acquire(ctx context.Context, v *bawn.Version, c *bawn.Call) (*instance, bool, error) {
	if p.refusal != nil {
		return nil, false, p.refusal
	}
	if p.halted(v.Tenant) {
		return nil, false, errHalted
	}
	for {
		in, cold, err := p.acquireOnce(ctx, v, c)
		if err != nil || cold {
			return in, cold, err
		}
		if in.thaw() {
			return in, false, nil
		}
		in.retire() // it could not be woken: take another
	}
}

func (p *Pool) acquireOnce(ctx context.Context, v *bawn.Version, c *bawn.Call) (*instance, bool, error) {
	f, err := p.enter(v)
	if err != nil {
		return nil, false, err
	}
	fn := f.fn // locked by enter
	now := time.Now()
	f.called(now)
	t := fn.tally(callerOf(c), now)
	may := f.may(t, now)
	var in, evicted *instance
	var ended []*instance
	if may {
		in, ended = f.pop(now)
	}
	start := false
	switch {
	case in != nil || !may:
	case !fn.first(f, now) && (f.never || f.busy+f.starting == 0):
		start, evicted = fn.slot(f)
	}
	var w *waiter
	if in == nil && !start {
		// A function's events may take as much as they leave for those of others.
		size, left := int64(len(c.Event)), maxQueueBytes-p.queuedBytes.Load()
		full := len(fn.waiters) >= p.cfg.QueueLength+f.withheld() && !fn.displace(t, func() error { return p.throttle(v, "other callers wait, too") })
		if full || size > left || fn.bytes+size > left {
			fn.drop(t)
			fn.mu.Unlock()
			destroyAll(ended)
			return nil, false, p.throttle(v, "too many calls wait already")
		}
		w = &waiter{fleet: f, tally: t, bytes: size, since: now, grant: make(chan grant, 1)}
		fn.queue(w)
		f.watchQueue()
	} else {
		fn.hold(t)
		if in != nil {
			in.holder = t
		}
	}
	if start {
		f.starts(now)
	}
	fn.mu.Unlock()
	destroyAll(ended)
	if evicted != nil {
		evicted.destroy()
	}
	if w != nil {
		p.queuedBytes.Add(int64(len(c.Event)))
		defer p.queuedBytes.Add(-int64(len(c.Event)))
		if c.Caller != nil {
			defer p.chainWaits(c, fn)()
			if fn.stuck(map[*function]bool{}) {
				w.giveUp = true
			}
		}
		g, err := p.wait(ctx, v, w)
		switch {
		case err != nil:
			return nil, false, err
		case g.err != nil:
			return nil, false, g.err
		case g.in != nil:
			return g.in, false, nil
		}
	} else if in != nil {
		return in, false, nil
	}
	in, err = p.launch(f, t)
	return in, err == nil, err
}

// wait waits for a grant. When it gives up and a grant has come meanwhile, the
// grant is used or passed on.
func (p *Pool) wait(ctx context.Context, v *bawn.Version, w *waiter) (grant, error) {
	patience := p.cfg.QueueWait
	if w.giveUp {
		patience = 0
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case g := <-w.grant:
		return g, nil
	case <-timer.C:
		if w.giveUp {
			p.count.throttled.Add(1)
			err = errCircle(v)
		} else {
			err = p.throttle(v, "no instance was free in time")
		}
	case <-ctx.Done():
		err = bawn.Wrap(context.Cause(ctx), bawn.CodeUnavailable, "run", "the caller went away")
	case <-p.ctx.Done():
		err = errDraining
	}
	fn := w.fleet.fn
	fn.mu.Lock()
	if i := slices.Index(fn.waiters, w); i >= 0 {
		fn.unqueue(i)
		fn.mu.Unlock()
		return grant{}, err
	}
	fn.mu.Unlock()
	g := <-w.grant // sent with mu held, so it is there
	if ctx.Err() == nil && p.ctx.Err() == nil {
		return g, nil
	}
	switch {
	case g.in != nil:
		g.in.put()
	case g.err == nil:
		w.fleet.launched(nil, w.tally)
	}
	return grant{}, err
}

// throttle counts and words a refusal.
func (p *Pool) throttle(v *bawn.Version, why string) error {
	p.count.throttled.Add(1)
	if p.full(v.Tenant) {
		return bawn.Errorf(bawn.CodeThrottled, "run", "the instances of the tenant take all of its quota: %s", why).
			WithFix("try again, or have the operator raise the quota: bawn tenant quota")
	}
	if l := v.Perimeter.Ingress.Limits; l != nil && l.Concurrency > 0 {
		return bawn.Errorf(bawn.CodeThrottled, "run", "all %d slots of %s are taken: %s", l.Concurrency, v.Function, why).
			WithFix("try again, or raise ingress.limits.concurrency")
	}
	return bawn.Errorf(bawn.CodeThrottled, "run", "all %d instances of %s are busy: %s", v.Perimeter.Interior.Concurrency, v.Function, why).
		WithFix("try again, or raise interior.concurrency")
}

// enter returns v's fleet with its function locked.
func (p *Pool) enter(v *bawn.Version) (*fleet, error) {
	key := functionKey{v.Tenant, v.Function}
	for {
		p.mu.RLock()
		fn, draining := p.functions[key], p.draining
		p.mu.RUnlock()
		if draining {
			return nil, errDraining
		}
		if fn == nil {
			p.mu.Lock()
			if fn = p.functions[key]; fn == nil {
				fn = &function{pool: p, key: key, fleets: make(map[versionKey]*fleet)}
				p.functions[key] = fn
			}
			p.mu.Unlock()
		}
		fn.mu.Lock()
		if fn.gone { // swept in between
			fn.mu.Unlock()
			continue
		}
		vk := versionKey{v.Number, v.Digest}
		f := fn.fleets[vk]
		if f == nil {
			s := p.shelves[v.Runtime]
			if s == nil {
				fn.mu.Unlock()
				return nil, noRuntime(v)
			}
			f = &fleet{fn: fn, version: v, shelf: s, never: v.Perimeter.Interior.Reuse.Never(), instances: make(map[*instance]struct{})}
			fn.fleets[vk] = f
		}
		f.retired = false
		return f, nil
	}
}

func noRuntime(v *bawn.Version) error {
	return bawn.Errorf(bawn.CodeUnavailable, "run", "this node has no runtime %s", v.Runtime).WithFix("run bawn doctor on the node")
}

// called notes the arrival of a call. Needs mu.
func (f *fleet) called(now time.Time) {
	if !f.last.IsZero() {
		f.gap += (now.Sub(f.last) - f.gap) / 4
	}
	f.last = now
}

// pop takes the idle instance used last, and returns those that turned out to
// be of no more use. Needs mu.
func (f *fleet) pop(now time.Time) (in *instance, ended []*instance) {
	for n := len(f.idle); n > 0; n = len(f.idle) {
		in := f.idle[n-1]
		if in.expired(now) || !in.usable() {
			ended = append(ended, f.remove(in))
			continue
		}
		f.idle[n-1] = nil
		f.idle = f.idle[:n-1]
		in.frozen, in.state = in.state == "frozen", "busy"
		f.busy++
		return in, ended
	}
	return nil, ended
}

// slot takes a slot for a new instance of f, if need be from an idle instance
// of another version, which the caller must destroy. Needs mu.
func (fn *function) slot(f *fleet) (ok bool, evicted *instance) {
	if fn.crowded() {
		return false, nil
	}
	if fn.slots >= f.limit() {
		for _, other := range fn.fleets {
			if other != f && len(other.idle) > 0 && (evicted == nil || other.idle[0].since.Before(evicted.since)) {
				evicted = other.idle[0]
			}
		}
		if evicted == nil {
			return false, nil
		}
		evicted.fleet.remove(evicted)
	}
	if !fn.pool.take(f) {
		if evicted != nil {
			evicted.destroy()
		}
		return false, nil
	}
	fn.slots++
	return true, evicted
}

// starts notes that the start of an instance begins. The slot is taken. Needs mu.
func (f *fleet) starts(now time.Time) {
	if f.starting == 0 {
		f.began = now
	}
	f.starting++
}

// launched notes that it is over. in is nil if it failed; otherwise it is busy,
// for whom t is, which has held it from the beginning.
func (f *fleet) launched(in *instance, t *tally) {
	fn := f.fn
	fn.mu.Lock()
	defer fn.mu.Unlock()
	f.starting--
	f.began = time.Now() // a later one: close enough, and it only delays growth
	if in == nil {
		fn.release(t)
		fn.slots--
		fn.pool.give(f)
		fn.next()
		return
	}
	f.instances[in] = struct{}{}
	in.state, in.holder = "busy", t
	f.busy++
}

// launch makes an instance, busy, in the caller's time. The fleet has been told
// of it, and of who holds it.
func (p *Pool) launch(f *fleet, t *tally) (*instance, error) {
	in, err := p.start(f)
	f.launched(in, t)
	// Halt ends what it sees, and it may have looked just before.
	if err == nil && p.halted(f.fn.key.tenant) {
		in.retire()
		return nil, errHalted
	}
	return in, err
}

// grow makes an instance for whoever waits longest.
func (p *Pool) grow(f *fleet) {
	in, err := p.launch(f, nil)
	if err == nil {
		in.put()
		return
	}
	fn := f.fn
	fn.mu.Lock()
	defer fn.mu.Unlock()
	for i, w := range fn.waiters {
		if w.fleet == f {
			fn.serves(i, grant{err: err})
			return
		}
	}
}

// put gives a busy instance to the call that waits longest, makes it idle, or
// destroys it if it has served its time.
func (in *instance) put() { in.rest(time.Now()) }

// rest is put for an instance that has been idle since then.
func (in *instance) rest(since time.Time) {
	f, fn, now := in.fleet, in.fleet.fn, time.Now()
	spent := in.spent(now) // looks at the sandbox: not under the lock
	fn.mu.Lock()
	fn.release(in.holder)
	in.holder = nil
	if spent || f.retired {
		f.drop(in)
		fn.mu.Unlock()
		in.destroy()
		return
	}
	if fn.turn(in, now) {
		fn.mu.Unlock()
		in.destroy()
		return
	}
	if len(fn.waiters) > 0 {
		if i := fn.pick(now, func(w *waiter) bool { return w.fleet == f }); i >= 0 {
			in.state = "busy"
			fn.serves(i, grant{in: in})
			fn.next() // another version may wait for a slot only
			fn.mu.Unlock()
			return
		}
	}
	f.busy--
	in.state, in.since = "idle", since
	frozen := in.frozen // from the unlock on it is somebody else's
	if frozen {
		in.state = "frozen"
	}
	i := len(f.idle)
	for i > 0 && f.idle[i-1].since.After(since) {
		i--
	}
	f.idle = slices.Insert(f.idle, i, in)
	fn.next()
	fn.mu.Unlock()
	if !frozen {
		kick(fn.pool.sweepKick)
	}
}

// turn takes a busy instance out if another version has waited long enough for
// its slot, and gives that to the call which has waited longest: calls of one
// version that never run out would keep every slot otherwise. A slot changes
// hands once in slotTurn at most, for each time costs a cold start. The caller
// must destroy the instance. Needs mu.
func (fn *function) turn(in *instance, now time.Time) bool {
	if now.Sub(fn.turned) < slotTurn {
		return false
	}
	for i, w := range fn.waiters {
		if now.Sub(w.since) < slotTurn {
			return false // so have those behind it
		}
		g := w.fleet
		if g == in.fleet || !g.never && g.busy+g.starting > 0 || !g.may(w.tally, now) {
			continue // an instance comes back
		}
		fn.turned = now
		in.fleet.busy--
		in.fleet.detach(in)
		if !fn.pool.take(g) { // it needs more of the tenant's quota
			fn.next()
			return true
		}
		fn.slots++ // the same slot
		g.starts(now)
		fn.serves(i, grant{})
		return true
	}
	return false
}

// retire takes a busy instance out and destroys it.
func (in *instance) retire() {
	fn := in.fleet.fn
	fn.mu.Lock()
	in.fleet.drop(in)
	fn.mu.Unlock()
	in.destroy()
}

// drop takes a busy instance out and gives its slot to the next. Needs mu.
func (f *fleet) drop(in *instance) {
	f.busy--
	f.detach(in)
	f.fn.next()
}

// detach takes an instance out that is neither busy nor idle any more. Needs mu.
func (f *fleet) detach(in *instance) {
	delete(f.instances, in)
	in.state = "ending"
	f.fn.release(in.holder)
	in.holder = nil
	f.fn.slots--
	f.fn.pool.give(f)
}

// remove takes an idle instance out; the caller must destroy it. It does not
// wake a waiter: idle instances and waiters of one version never meet, and the
// slot is wanted by the caller. Needs mu.
func (f *fleet) remove(in *instance) *instance {
	if i := slices.Index(f.idle, in); i >= 0 {
		f.idle = slices.Delete(f.idle, i, i+1)
	}
	f.detach(in)
	return in
}

// withdraw takes the instance out if it is in one of the states, and reports
// whether it was; then the caller must destroy it.
func (in *instance) withdraw(states ...string) bool {
	fn := in.fleet.fn
	fn.mu.Lock()
	defer fn.mu.Unlock()
	if !slices.Contains(states, in.state) {
		return false
	}
	in.fleet.remove(in)
	fn.next()
	return true
}

// next lets waiting calls start instances of their own where a slot is free and
// nothing else will serve them. Needs mu.
func (fn *function) next() {
	if len(fn.waiters) == 0 {
		return
	}
	for _, w := range fn.waiters {
		if f := w.fleet; !f.never && f.busy+f.starting > 0 {
			f.watchQueue() // an instance comes back, or watchQueue makes one
		}
	}
	now := time.Now()
	var full []*fleet // for which there is no slot
	for {
		i := fn.pick(now, func(w *waiter) bool {
			return (w.fleet.never || w.fleet.busy+w.fleet.starting == 0) && !slices.Contains(full, w.fleet)
		})
		if i < 0 {
			return
		}
		f := fn.waiters[i].fleet
		ok, evicted := fn.slot(f)
		if !ok {
			f.watchQueue()
			full = append(full, f)
			continue
		}
		if evicted != nil {
			go evicted.destroy()
		}
		f.starts(now)
		fn.serves(i, grant{})
	}
}

// watchQueue has the queue looked at a little later. Needs mu.
func (f *fleet) watchQueue() {
	if f.growSet || f.never { // who never shares has nothing to wait for but a slot
		return
	}
	f.growSet = true
	if f.growing == nil {
		f.growing = time.AfterFunc(growTick, f.lookAtQueue)
		return
	}
	f.growing.Reset(growTick)
}

// lookAtQueue starts as many instances as the waiting calls are worth.
func (f *fleet) lookAtQueue() {
	fn := f.fn
	saturated := fn.pool.cfg.Saturated() // reads a file: not under the lock
	fn.mu.Lock()
	defer fn.mu.Unlock()
	f.growSet = false
	if fn.pool.ctx.Err() != nil {
		return
	}
	waiting, now := 0, time.Now()
	var oldest time.Time
	for _, w := range fn.waiters {
		if w.fleet == f {
			if waiting == 0 {
				oldest = w.since
			}
			waiting++
		}
	}
	if waiting == 0 {
		return
	}
	for range min(f.want(waiting, now, now.Sub(oldest), saturated), waiting-f.starting) {
		ok, evicted := fn.slot(f)
		if !ok {
			break
		}
		if evicted != nil {
			go evicted.destroy()
		}
		f.starts(now)
		go fn.pool.grow(f)
	}
	f.watchQueue()
}

// want returns how many instances to add. Enough is when the calls present are
// served within growDelay: for a handler of 0.1 ms one instance does for
// fifty callers, for one of 100 ms each caller gets its own. Needs mu.
func (f *fleet) want(waiting int, now time.Time, late time.Duration, saturated bool) int {
	have := f.busy + f.starting
	if have == 0 {
		return 1
	}
	cores := runtime.GOMAXPROCS(0)
	each, known := f.quick, f.samples >= 2
	if !known { // for an instance's first call is never typical
		// While the first start goes on, give it the time that a start takes; then
		// let the age of the running call speak.
		if f.busy == 0 {
			if now.Sub(f.began) < f.shelf.patience() {
				return 0
			}
			return have
		}
		for in := range f.instances {
			if in.state == "busy" {
				each = max(each, now.Sub(in.since))
			}
		}
	}
	// Of a quick function one instance for each processor is all that can run,
	// once nothing of the processors is left: more would only take turns. A call
	// that others hold up all the same gets one instance more before it is
	// throttled, for the processors may be somebody else's and the function one
	// that only waits.
	if saturated && have >= cores && each < growSlow && (each < growQuick || !known) {
		if late >= growStuck*time.Duration(have/cores) && f.starting == 0 {
			return 1
		}
		return 0
	}
	room := waiting
	if saturated && each < growQuick {
		room = cores - have
	} else if most := f.runnable(cores); known && each < growSlow && late < growSlow && have+room > most {
		// Whether the processors are saturated shows late when many come at once. Once
		// it would have shown, and a call waits still, it is no matter of processors.
		for in := range f.instances {
			if len(in.waits) > 0 { // for what it has called: it computes nothing
				most++
			}
		}
		room = min(room, most-have)
	}
	if !known {
		// Once the running call is beyond what a quick handler takes on a busy host.
		// Doubling stops at the first answer.
		if each < growLate || late < growLate+2*growDelay*time.Duration(bits.Len(uint(have))-1) {
			return 0
		}
		return min(have, room)
	}
	add := int((time.Duration(waiting+f.busy)*each+growDelay-1)/growDelay) - have
	if f.starting == 0 && late >= growLate {
		// The estimate is wrong: calls have become slower, or the host is busy. More
		// instances help against the one and make the other worse, so a function
		// that was quick gets them one by one, and the more it has the later.
		switch {
		case each >= growDelay || have < 2*cores:
			add = max(add, have)
		case late >= growLate*time.Duration(have/cores):
			add = max(add, 1)
		}
	}
	return max(0, min(add, room))
}

// patience is how long a start may take before it counts as slow.
func (s *shelf) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return 2 * max(s.boot, 25*time.Millisecond)
}

// served notes how long a call took. What counts is what a call takes when
// nothing holds it up: on a busy host every call is slow, and more instances
// would make it busier. So the estimate falls at once and rises slowly, and not
// at all by a call that saturated processors may have held up. Needs mu.
func (f *fleet) served(d time.Duration, saturated bool) {
	switch {
	case f.samples < 2 || d < f.quick:
		f.quick = d
		f.samples++
	case saturated && d < growSlow:
	default:
		f.quick += (d - f.quick) / 32
	}
}

// computed takes note of what a call took of the processors, and how long it took
// with that. A call that others may have held up says nothing of that. Needs mu.
func (f *fleet) computed(cpu, wall time.Duration, saturated bool) {
	weight := time.Duration(64)
	switch {
	case f.wall == 0:
		weight = 1
	case saturated || f.busy > 2*runtime.GOMAXPROCS(0):
		return
	case wall < f.wall: // fewer are too fast by chance than too slow
		weight = 4
	}
	f.wall += (wall - f.wall) / weight
	f.cpu += (min(cpu, wall) - f.cpu) / weight // several threads are no reason for fewer
}

// withheld is how many instances the function could have, and has not because they
// would be of no use. They are room to wait, for the gate has let the calls in that
// they would serve. Needs mu.
func (f *fleet) withheld() int {
	have := max(f.fn.slots, f.runnable(runtime.GOMAXPROCS(0)))
	return min(max(0, f.limit()-have), f.fn.pool.cfg.QueueLength)
}

// runnable is how many instances keep the processors at work. Calls of a function
// that computes for half of its time are not served sooner by more than two for each
// processor, and each start takes from those that run; it is far more for one that
// mostly waits. Needs mu.
func (f *fleet) runnable(cores int) int {
	if f.cpu <= 0 {
		return math.MaxInt
	}
	return int(min(float64(cores)*float64(max(f.wall, f.cpu))/float64(f.cpu)+1, math.MaxInt32))
}

// sweep freezes and reaps idle instances, for as long as the pool lives.
func (p *Pool) sweep() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.sweepKick:
		case <-timer.C:
		}
		// However many calls end, the idle are looked at twenty times a second.
		timer.Reset(sweepTick)
		select {
		case <-p.ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(p.sweepOnce(time.Now()))
	}
}

// sweepOnce returns when to look again if nothing happens before.
func (p *Pool) sweepOnce(now time.Time) time.Duration {
	again := time.Hour
	var freeze, ending []*instance
	total := 0
	for _, fn := range p.all() {
		fn.mu.Lock()
		for key, f := range fn.fleets {
			for i := 0; i < len(f.idle); {
				in := f.idle[i]
				if idle := now.Sub(in.since); idle >= p.cfg.IdleAfter || in.expired(now) {
					ending = append(ending, f.remove(in))
					continue
				} else if in.state == "idle" && p.cfg.FreezeAfter > 0 {
					if wait := p.freezeDelay(f) - idle; wait > 0 {
						again = min(again, wait)
					} else {
						// Nobody may have it while the kernel stops it.
						f.idle = slices.Delete(f.idle, i, i+1)
						in.state = "freezing"
						f.busy++
						freeze = append(freeze, in)
						continue
					}
				}
				again = min(again, p.cfg.IdleAfter-now.Sub(in.since))
				if max := in.fleet.version.Perimeter.Interior.Reuse.MaxAge; max > 0 {
					again = min(again, in.started.Add(max).Sub(now))
				}
				i++
			}
			total += len(f.idle)
			if len(f.instances) == 0 && f.starting == 0 && !fn.waitsFor(f) {
				if f.growing != nil {
					f.growing.Stop()
				}
				delete(fn.fleets, key)
			}
		}
		fn.next()
		empty := len(fn.fleets) == 0
		fn.mu.Unlock()
		if empty {
			p.forget(fn)
		}
	}
	for _, in := range freeze {
		in.freeze()
		again = min(again, p.cfg.IdleAfter)
	}
	if total+len(freeze) > 0 {
		if low := p.cfg.MemoryLow(); low || int(p.live.Load()) >= p.cfg.MaxSandboxes*9/10 {
			ending = append(ending, p.oldest((total+len(freeze)+3)/4, "")...)
			again = min(again, time.Second)
		}
		// Memory runs low without a call of ours, too.
		again = min(again, 10*time.Second)
	}
	destroyAll(ending)
	return max(again, sweepTick)
}

// freezeDelay is how long an instance is left awake: longer where calls come
// often enough that it would be woken at each. Needs mu.
func (p *Pool) freezeDelay(f *fleet) time.Duration {
	return min(max(p.cfg.FreezeAfter, 4*f.gap), 10*p.cfg.FreezeAfter)
}

// waitsFor reports whether a call waits for f. Needs mu.
func (fn *function) waitsFor(f *fleet) bool {
	return slices.ContainsFunc(fn.waiters, func(w *waiter) bool { return w.fleet == f })
}

// forget drops a function that has nothing left.
func (p *Pool) forget(fn *function) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn.mu.Lock()
	defer fn.mu.Unlock()
	if len(fn.fleets) == 0 && len(fn.waiters) == 0 {
		fn.gone = true
		delete(p.functions, fn.key)
	}
}

// oldest takes out the n instances that have been idle longest, of the tenant
// or, if that is "", on the whole node.
func (p *Pool) oldest(n int, tenant string) []*instance {
	type resting struct {
		in    *instance
		since time.Time
	}
	var idle []resting
	for _, fn := range p.all() {
		if tenant != "" && fn.key.tenant != tenant {
			continue
		}
		fn.mu.Lock()
		for _, f := range fn.fleets {
			for _, in := range f.idle {
				idle = append(idle, resting{in, in.since})
			}
		}
		fn.mu.Unlock()
	}
	slices.SortFunc(idle, func(a, b resting) int { return a.since.Compare(b.since) })
	var list []*instance
	for _, r := range idle[:min(n, len(idle))] {
		if r.in.withdraw("idle", "frozen") {
			list = append(list, r.in)
		}
	}
	return list
}

// destroyAll destroys instances that were taken out.
func destroyAll(list []*instance) {
	for _, in := range list {
		in.destroy()
	}
}
