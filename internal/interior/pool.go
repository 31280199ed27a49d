package interior

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/secret"
)

// Config says how a [Pool] works. Driver, Definitions and Code are needed;
// the zero value of the rest is the documented default.
type Config struct {
	Driver      sandbox.Driver
	Definitions []Definition
	// Code returns the folders that hold a version's files, after it has
	// verified them; they are merged at /var/task, and of two files with one
	// name the first counts. It is called at every start of an instance.
	Code func(ctx context.Context, v *bawn.Version) ([]string, error)
	// Record keeps what the sandbox stopped. It is called in the background.
	Record func(ctx context.Context, r bawn.Record) error
	// Redactor takes the values of a version's secrets out of what is logged and
	// recorded of it; nil if it has none. It must be quick: it is asked for each
	// read of what a function printed. Without it nothing is looked for.
	Redactor func(v *bawn.Version) *secret.Redactor
	// Log keeps one line for so long. It must not block.
	Log func(line bawn.LogLine, retention time.Duration)
	// Serve answers what a function's code asks of the endpoint in its sandbox.
	// Without it sandboxes have none.
	Serve Serve
	// Attach says what an instance reaches beyond its sandbox. It is called at every
	// start of one, before it has its code, and in the time of the call that waits
	// for it. Without it instances reach nothing.
	Attach func(ctx context.Context, in Inside) (Reach, error)
	// Errors hears of what went wrong and has no caller to tell.
	Errors *slog.Logger

	// Quota returns what the instances of a tenant may take together, and whether
	// any may run. It is asked at each start, and reads memory only. nil: all may,
	// without a bound of their own.
	Quota func(tenant string) (bawn.Quota, bool)

	Warm         int           // warm sandboxes for each runtime that has functions: 4; negative: none
	MaxSandboxes int           // of every kind: 1024
	QueueLength  int           // calls of one function that may wait: 256
	QueueWait    time.Duration // how long they may: 5 s
	FreezeAfter  time.Duration // idle time until an instance is frozen: 100 ms; negative: never
	IdleAfter    time.Duration // idle time until it is destroyed: 5 min
	MemoryLow    func() bool   // whether idle instances should go early: less than a tenth of the host's memory left
	// Saturated says whether the processors have nothing left to give, so that
	// more instances of a quick function would only make it slower: they were busy
	// for more than nine tenths of the last 100 ms or so. It is asked at each call
	// and must be quick.
	Saturated func() bool
}

// Pool runs calls in sandboxes. It keeps warm sandboxes without user code for
// each runtime, instances that may serve again for each version, and a bounded
// queue for each function. All methods are safe for concurrent use.
type Pool struct {
	cfg     Config
	shelves map[bawn.Runtime]*shelf // never changes
	refusal *bawn.Error             // why this host runs no function; nil if it does
	inside  *http.Server            // of every endpoint; nil without Config.Serve and Config.Attach

	mu        sync.RWMutex
	functions map[functionKey]*function // those with an instance or a waiting call
	draining  bool                      // no new calls
	closed    bool                      // no new sandboxes

	ctx         context.Context // ends with Close
	stop        context.CancelFunc
	wg          sync.WaitGroup // refill, sweep
	sandboxes   sync.WaitGroup // one for each sandbox that is not gone
	live        atomic.Int64   // the same, as a number
	queuedBytes atomic.Int64
	cold        atomic.Int64 // starts going on for a call
	lastCold    atomic.Int64 // UnixNano of the end of the last
	refillKick  chan struct{}
	sweepKick   chan struct{}
	compiling   chan struct{} // holds one for each compilation
	tenants     tenants

	count counters
}

// counters only grow.
type counters struct {
	calls, cold, misses, throttled, timeouts, memory, exits, loads, blocked, started, failed atomic.Uint64
}

// Stats is a snapshot of a pool, for metrics.
type Stats struct {
	Warm      map[bawn.Runtime]int // sandboxes that wait for code
	Instances map[string]int       // by state: loading, idle, busy, freezing, frozen
	Sandboxes int                  // of every kind, ending ones included
	Waiting   int                  // calls in queues

	Calls     uint64 // given to an instance
	Cold      uint64 // of those, by one that was made for it
	Misses    uint64 // cold starts that found no warm sandbox
	Throttled uint64 // refused for want of a slot
	Timeouts  uint64 // ended at their deadline, loading included
	Memory    uint64 // instances that the kernel ended for want of memory
	Exits     uint64 // instances that ended by themselves during a call
	Loads     uint64 // handlers that could not be loaded
	Blocked   uint64 // attempts that sandboxes stopped
	Started   uint64 // sandboxes made
	Failed    uint64 // sandboxes that could not be made
}

// NewPool returns a pool that refills its warm sandboxes in the background as
// soon as [Pool.Expect] names runtimes. The caller must Close it.
func NewPool(cfg Config) *Pool {
	if cfg.Warm == 0 {
		cfg.Warm = defaultWarm
	}
	cfg.Warm = max(cfg.Warm, 0)
	cfg.MaxSandboxes = cmp.Or(cfg.MaxSandboxes, defaultMaxSandboxes)
	cfg.QueueLength = cmp.Or(cfg.QueueLength, defaultQueueLength)
	cfg.QueueWait = cmp.Or(cfg.QueueWait, defaultQueueWait)
	cfg.FreezeAfter = cmp.Or(cfg.FreezeAfter, defaultFreezeAfter)
	cfg.IdleAfter = cmp.Or(cfg.IdleAfter, defaultIdleAfter)
	if cfg.MemoryLow == nil {
		cfg.MemoryLow = memoryLow
	}
	if cfg.Saturated == nil {
		cfg.Saturated = new(processors).saturated
	}
	if cfg.Errors == nil {
		cfg.Errors = slog.New(slog.DiscardHandler)
	}
	if cfg.Log == nil {
		cfg.Log = func(bawn.LogLine, time.Duration) {}
	}
	if cfg.Record == nil {
		cfg.Record = func(context.Context, bawn.Record) error { return nil }
	}
	if cfg.Quota == nil {
		cfg.Quota = func(string) (bawn.Quota, bool) { return bawn.Quota{}, true }
	}
	p := &Pool{
		cfg:        cfg,
		tenants:    tenants{use: make(map[string]*tenantUse)},
		shelves:    make(map[bawn.Runtime]*shelf),
		functions:  make(map[functionKey]*function),
		refillKick: make(chan struct{}, 1),
		sweepKick:  make(chan struct{}, 1),
		compiling:  make(chan struct{}, maxCompilations),
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	if cfg.Serve != nil || cfg.Attach != nil {
		p.inside = newInside(p)
	}
	for i := range cfg.Definitions {
		d := &cfg.Definitions[i]
		p.shelves[d.Runtime] = &shelf{pool: p, def: d}
	}
	for _, c := range cfg.Driver.Probe() {
		if c.Required && !c.OK {
			p.refusal = bawn.Errorf(bawn.CodeUnavailable, "sandbox", "this host cannot enforce %s (control %s), so no function runs on it", c.Name, c.Control).
				WithFix("%s", cmp.Or(c.Fix, "run bawn doctor on the node"))
			break
		}
	}
	p.wg.Go(p.refill)
	p.wg.Go(p.sweep)
	return p
}

// Run gives the call to an instance of v and returns its answer. What the
// function did wrong is a Result with FunctionError; errors are for what the
// platform could not do: CodeThrottled when no instance was free in time,
// CodeUnavailable when none can be made.
//
// ctx ends the wait for an instance. Once an instance has the event the call
// runs to its end, as in AWS Lambda, and Run returns then. A Result with a
// Stream keeps the instance until the stream is read to its end or closed.
func (p *Pool) Run(ctx context.Context, v *bawn.Version, c *bawn.Call) (*bawn.Result, error) {
	in, cold, err := p.acquire(ctx, v, c)
	if err != nil {
		var failed *loadError
		if errors.As(err, &failed) {
			r := failed.result(v, c)
			document := r.Payload
			if redactor := p.redactor(v); redactor != nil {
				document = redactor().Bytes(document)
			}
			// The line of the load itself belongs to no call; who looks for this
			// call's lines should find out why there are none.
			p.cfg.Log(bawn.LogLine{
				Time: time.Now(), Tenant: v.Tenant, Function: v.Function, Version: v.Number, Invocation: c.ID, Platform: true,
				Text: "bawn: the function could not be loaded for this call: " + clip(document),
			}, v.Perimeter.Evidence.LogRetention)
			return r, nil
		}
		return nil, err
	}
	if cold && ctx.Err() != nil { // nobody waits for the answer; the next call may have it
		in.put()
		return nil, bawn.Wrap(context.Cause(ctx), bawn.CodeUnavailable, "run", "the caller went away")
	}
	p.count.calls.Add(1)
	if cold {
		p.count.cold.Add(1)
	}
	return in.serve(c, cold), nil
}

// redactor returns what takes v's secrets out of text, nil if it has none.
func (p *Pool) redactor(v *bawn.Version) func() *secret.Redactor {
	if p.cfg.Redactor == nil || !v.Perimeter.Egress.HasSecrets() {
		return nil
	}
	return func() *secret.Redactor { return p.cfg.Redactor(v) }
}

// Expect says how many functions each runtime has, so that warm sandboxes are
// kept where calls may come.
func (p *Pool) Expect(functions map[bawn.Runtime]int) {
	for r, s := range p.shelves {
		base := 0
		if functions[r] > 0 {
			base = p.cfg.Warm
		}
		s.mu.Lock()
		s.base = base
		s.extra = min(s.extra, base)
		s.mu.Unlock()
	}
	kick(p.refillKick)
}

// Retire ends what a function has idle; busy instances end after their call.
func (p *Pool) Retire(tenant, name string) {
	p.mu.RLock()
	fn := p.functions[functionKey{tenant, name}]
	p.mu.RUnlock()
	if fn == nil {
		return
	}
	fn.mu.Lock()
	var ending []*instance
	for _, f := range fn.fleets {
		f.retired = true
		for len(f.idle) > 0 {
			ending = append(ending, f.remove(f.idle[0]))
		}
	}
	fn.mu.Unlock()
	for _, in := range ending {
		in.destroy()
	}
}

// Stats returns a snapshot.
func (p *Pool) Stats() Stats {
	s := Stats{
		Warm:      make(map[bawn.Runtime]int, len(p.shelves)),
		Instances: make(map[string]int, 4),
		Sandboxes: int(p.live.Load()),
		Calls:     p.count.calls.Load(),
		Cold:      p.count.cold.Load(),
		Misses:    p.count.misses.Load(),
		Throttled: p.count.throttled.Load(),
		Timeouts:  p.count.timeouts.Load(),
		Memory:    p.count.memory.Load(),
		Exits:     p.count.exits.Load(),
		Loads:     p.count.loads.Load(),
		Blocked:   p.count.blocked.Load(),
		Started:   p.count.started.Load(),
		Failed:    p.count.failed.Load(),
	}
	for r, sh := range p.shelves {
		sh.mu.Lock()
		if n := len(sh.warm); n > 0 {
			s.Warm[r] = n
		}
		sh.mu.Unlock()
	}
	for _, fn := range p.all() {
		fn.mu.Lock()
		s.Waiting += len(fn.waiters)
		for _, f := range fn.fleets {
			s.Instances["loading"] += f.starting
			for in := range f.instances {
				s.Instances[in.state]++
			}
		}
		fn.mu.Unlock()
	}
	return s
}

// Instances returns the instances of ref: of every version, or of the one it
// names by number.
func (p *Pool) Instances(ref bawn.Ref) []bawn.Instance {
	list := []bawn.Instance{}
	for _, in := range p.find(ref) {
		list = append(list, in.describe())
	}
	return list
}

// Inspect returns the instances of v with what the kernel enforces for each. If
// none is alive there is none to return, unless start: then one is started for
// the look, which runs the function's code as far as loading goes. Whether that
// is allowed is the caller's to ask and to record.
func (p *Pool) Inspect(ctx context.Context, v *bawn.Version, start bool) ([]bawn.Instance, error) {
	found := p.find(v.Ref())
	if len(found) == 0 && !start {
		return nil, nil
	}
	if len(found) == 0 {
		in, _, err := p.acquire(ctx, v, &bawn.Call{ID: bawn.NewID()})
		if err != nil {
			var failed *loadError
			if errors.As(err, &failed) {
				return nil, bawn.Wrap(err, bawn.CodeFunctionError, "inspect", "no instance of %s could be started: the handler does not load", v.Ref()).
					WithFix("read the function's log")
			}
			return nil, err
		}
		defer in.put()
		found = []*instance{in}
	}
	var list []bawn.Instance
	var last error
	for _, in := range found {
		d := in.describe()
		if st, err := in.box.Stats(ctx); err == nil {
			d.Memory = st.Memory
		}
		facts, err := in.box.Inspect(ctx)
		if err != nil {
			last = err // it may have ended in between
			continue
		}
		d.Facts = facts
		list = append(list, d)
	}
	if len(list) == 0 {
		return nil, bawn.Wrap(last, bawn.CodeUnavailable, "inspect", "the kernel's view of %s could not be read", v.Ref()).WithFix("try again")
	}
	return list, nil
}

// find returns the instances that ref means, oldest first.
func (p *Pool) find(ref bawn.Ref) []*instance {
	number, one := ref.Version()
	p.mu.RLock()
	fn := p.functions[functionKey{ref.Tenant, ref.Function}]
	p.mu.RUnlock()
	if fn == nil {
		return nil
	}
	fn.mu.Lock()
	defer fn.mu.Unlock()
	var list []*instance
	for _, f := range fn.fleets {
		if one && f.version.Number != number {
			continue
		}
		for in := range f.instances {
			list = append(list, in)
		}
	}
	slices.SortFunc(list, func(a, b *instance) int { return a.started.Compare(b.started) })
	return list
}

// all returns the functions that have something going on.
func (p *Pool) all() []*function {
	p.mu.RLock()
	defer p.mu.RUnlock()
	list := make([]*function, 0, len(p.functions))
	for _, fn := range p.functions {
		list = append(list, fn)
	}
	return list
}

// Drain refuses new calls with CodeUnavailable and waits until those that have
// an instance are done, or ctx is.
func (p *Pool) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	for {
		busy := 0
		for _, fn := range p.all() {
			fn.mu.Lock()
			busy += len(fn.waiters)
			for _, f := range fn.fleets {
				busy += f.busy + f.starting
			}
			fn.mu.Unlock()
		}
		if busy == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return bawn.Errorf(bawn.CodeUnavailable, "drain", "%d calls were still running", busy)
		case <-time.After(10 * time.Millisecond): // only ever at the end of a node's life
		}
	}
}

// Close ends every sandbox at once and returns when they are gone. Calls that
// were running get an error.
func (p *Pool) Close() {
	p.mu.Lock()
	p.draining, p.closed = true, true
	p.mu.Unlock()
	p.stop()
	p.wg.Wait()
	for _, s := range p.shelves {
		s.mu.Lock()
		warm := s.warm
		s.warm = nil
		s.mu.Unlock()
		for _, b := range warm {
			b.end()
		}
	}
	for _, fn := range p.all() {
		fn.mu.Lock()
		var ending []*instance
		for _, f := range fn.fleets {
			for in := range f.instances {
				ending = append(ending, in)
			}
		}
		fn.mu.Unlock()
		for _, in := range ending {
			in.kill()
			if in.withdraw("idle", "frozen") {
				in.destroy()
			}
		}
	}
	p.sandboxes.Wait()
	if p.inside != nil {
		p.inside.Close()
	}
}

// A shelf keeps the warm sandboxes of one runtime.
type shelf struct {
	pool *Pool
	def  *Definition

	mu       sync.Mutex
	prepared bool
	warm     []*boxed
	base     int // how many should be there
	extra    int // how many more, since calls found none; at most base
	missed   time.Time
	boot     time.Duration // how long the last boot took
	retry    time.Duration // pause after a failed refill
	notUntil time.Time
}

// A boxed is a sandbox before it has a function.
type boxed struct {
	sandbox.Sandbox
	worker worker         // nil for a parked one
	api    net.Listener   // of a parked one: where its Runtime API will be
	door   *endpoint      // nil if it has none
	names  net.PacketConn // takes its DNS questions; nil if it has none
	beyond outer
	owner  atomic.Pointer[instance] // set when it gets one
	more   chan sandbox.Attempt     // what the worker turned away
	gone   chan struct{}            // closed when it no longer counts
}

// refused takes what a worker turned away, as the kernel's refusals are taken,
// and ends the instance: whoever broke the protocol would go on, and the next
// call may not meet it. It does not block.
func (b *boxed) refused(a sandbox.Attempt) {
	select {
	case b.more <- a:
	default:
	}
	if in := b.owner.Load(); in != nil {
		go in.kill()
		return
	}
	go b.Kill()
}

// take returns the newest warm sandbox, or nil.
func (s *shelf) take() *boxed {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.warm); n > 0; n = len(s.warm) {
		b := s.warm[n-1]
		s.warm[n-1] = nil
		s.warm = s.warm[:n-1]
		if b.usable() {
			return b
		}
		b.end()
	}
	if s.base > 0 {
		s.extra = min(s.extra+1, s.base)
		s.missed = time.Now()
	}
	return nil
}

// usable reports whether the sandbox still runs.
func (b *boxed) usable() bool {
	select {
	case <-b.Done():
		return false
	default:
		return b.worker == nil || b.worker.alive()
	}
}

// end destroys it.
func (b *boxed) end() {
	if b.worker != nil {
		b.worker.close()
	}
	b.shut()
	b.Kill()
}

// shut closes what listens in the sandbox's network.
func (b *boxed) shut() {
	b.door.close()
	b.beyond.close()
	if b.names != nil {
		b.names.Close()
	}
	if b.api != nil {
		b.api.Close()
	}
}

// listen makes what listens in the sandbox's network. It does so before any code
// of a function is there, so that nothing can stand in its place, and for warm
// sandboxes before any call waits.
func (b *boxed) listen(ctx context.Context, p *Pool, d *Definition) error {
	var ports []sandbox.Port
	if len(d.Args) == 0 {
		ports = append(ports, sandbox.Port{Network: "tcp", Port: runtimeAPIPort, Home: true})
	}
	// A module has no sockets: nothing in its sandbox could ask.
	if d.Image.Syscall != sandbox.SyscallWasm {
		if p.inside != nil {
			ports = append(ports, sandbox.Port{Network: "tcp", Port: endpointPort, Home: true})
		}
		if p.cfg.Attach != nil {
			ports = append(ports, sandbox.Port{Network: "udp", Port: resolverPort, Home: true})
		}
	}
	if len(ports) == 0 {
		return nil
	}
	files, err := b.Open(ctx, ports, nil)
	if err != nil {
		return err
	}
	for i, f := range files {
		if err == nil {
			err = b.place(p, ports[i], f)
		}
		f.Close()
	}
	return err
}

// place gives a socket its place.
func (b *boxed) place(p *Pool, port sandbox.Port, f *os.File) (err error) {
	if port.Network == "udp" {
		b.names, err = net.FilePacketConn(f)
		return err
	}
	ln, err := net.FileListener(f)
	switch {
	case err != nil:
	case port.Port == runtimeAPIPort:
		b.api = ln
	default:
		b.door = newEndpoint(p, ln)
	}
	return err
}

// start makes a sandbox for the shelf's runtime. Its program may still be
// booting.
func (s *shelf) start(ctx context.Context) (*boxed, error) {
	p := s.pool
	if !s.def.Ready() {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "start", "this host has no runtime %s", s.def.Runtime).WithFix("%s", s.def.Missing)
	}
	if err := p.reserve(); err != nil {
		return nil, err
	}
	b, err := s.make(ctx)
	if err != nil {
		p.unreserve()
		p.count.failed.Add(1)
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "start", "no sandbox for %s could be made", s.def.Runtime).WithFix("run bawn doctor on the node")
	}
	p.count.started.Add(1)
	go p.watch(b)
	return b, nil
}

// reserve counts a sandbox that is about to be made, unless there are too many
// or the pool is closed.
func (p *Pool) reserve() error {
	p.mu.RLock() // Close sets closed and only then waits
	defer p.mu.RUnlock()
	if p.closed {
		return errDraining
	}
	if p.live.Add(1) > int64(p.cfg.MaxSandboxes) {
		p.live.Add(-1)
		return errFull
	}
	p.sandboxes.Add(1)
	return nil
}

// unreserve counts it off once it is gone.
func (p *Pool) unreserve() {
	p.live.Add(-1)
	p.sandboxes.Done()
}

// make prepares the image, once, and asks the driver.
func (s *shelf) make(ctx context.Context) (*boxed, error) {
	p := s.pool
	s.mu.Lock()
	prepared := s.prepared
	s.mu.Unlock()
	if !prepared { // twice at once does no harm
		if err := p.cfg.Driver.Prepare(ctx, s.def.Image); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.prepared = true
		s.mu.Unlock()
	}
	box, err := p.cfg.Driver.Start(ctx, sandbox.Spec{ID: bawn.NewID(), Image: s.def.Image.Name, Args: s.def.Args, Env: s.def.Env})
	if err != nil {
		return nil, err
	}
	b := &boxed{Sandbox: box, more: make(chan sandbox.Attempt, 1), gone: make(chan struct{})}
	if len(s.def.Args) > 0 {
		b.worker = newFrameWorker(box.Conn())
	}
	if err := b.listen(ctx, p, s.def); err != nil {
		go discard(b)
		return nil, err
	}
	return b, nil
}

// discard ends a sandbox that nobody watches.
func discard(b *boxed) {
	b.end()
	for range b.Attempts() {
	}
	<-b.Done()
	b.Conn().Close()
	b.Output().Close()
}

// watch records what the sandbox stops and cleans up when it is gone.
func (p *Pool) watch(b *boxed) {
	for open := true; open; {
		var a sandbox.Attempt
		select {
		case a, open = <-b.Attempts():
		case a = <-b.more:
		}
		if open {
			p.blocked(b, &a)
		}
	}
	<-b.Done()
	for left := true; left; { // what it was ended for may still be there
		select {
		case a := <-b.more:
			p.blocked(b, &a)
		default:
			left = false
		}
	}
	defer close(b.gone)
	defer p.unreserve()
	b.shut()
	if b.worker != nil {
		b.worker.ended() // and closes its socket
	} else {
		b.Conn().Close()
	}
	if in := b.owner.Load(); in != nil {
		if b.worker == nil {
			in.worker.ended()
		}
		<-in.out.done
		in.withdraw("idle", "frozen") // it may have died with nobody using it
	}
	// Again for most; who died without an owner had nobody to read its output.
	b.Output().Close()
}

// blocked records an attempt.
func (p *Pool) blocked(b *boxed, a *sandbox.Attempt) {
	p.count.blocked.Add(1)
	r := bawn.Record{
		Kind: bawn.KindBlocked, Time: a.Time, Instance: b.ID(), Action: a.Syscall, Outcome: "blocked", Control: a.Control,
		Reason: "the sandbox does not allow " + a.Syscall,
		Detail: map[string]string{"args": strings.Join(a.Args, " "), "errno": a.Errno},
	}
	if a.Dropped > 0 {
		r.Detail["dropped"] = strconv.Itoa(a.Dropped)
	}
	if in := b.owner.Load(); in != nil {
		in.identify(&r, a.Time)
		if t := in.fleet.trial; t != nil {
			t.saw(r)
		}
	}
	// Not with the pool's context: what was stopped is known even if the node is
	// about to stop.
	if err := p.cfg.Record(context.Background(), r); err != nil {
		p.cfg.Errors.Error("an attempt that the sandbox stopped was not recorded", "function", r.Function, "action", r.Action, "err", err)
	}
}

// refill keeps the shelves as full as they should be, one sandbox at a time,
// away from cold calls.
func (p *Pool) refill() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, wait := p.neediest()
		if s == nil || p.cold.Load() > 0 {
			wait = cmp.Or(wait, time.Second) // a kick comes sooner
		} else {
			wait = refillDelay - time.Duration(time.Now().UnixNano()-p.lastCold.Load())
		}
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-p.ctx.Done():
				return
			case <-p.refillKick:
			case <-timer.C:
			}
			continue
		}
		if p.ctx.Err() != nil {
			return
		}
		s.fill()
	}
}

// neediest returns the shelf that lacks most, or how long until one may be
// tried again.
func (p *Pool) neediest() (best *shelf, wait time.Duration) {
	if p.refusal != nil {
		return nil, time.Hour
	}
	now, lacks := time.Now(), 0
	for _, s := range p.shelves {
		s.mu.Lock()
		if s.extra > 0 && now.Sub(s.missed) > missDecay {
			s.extra, s.missed = s.extra-1, now
		}
		n := s.base + s.extra - len(s.warm)
		var surplus *boxed
		if n < 0 {
			surplus = s.warm[0]
			s.warm = slices.Delete(s.warm, 0, 1)
		}
		pause := s.notUntil.Sub(now)
		s.mu.Unlock()
		if surplus != nil {
			surplus.end()
			wait = time.Millisecond // there may be more
		}
		if !s.def.Ready() || n <= 0 {
			continue
		}
		if pause > 0 {
			if wait == 0 || pause < wait {
				wait = pause
			}
			continue
		}
		if n > lacks {
			best, lacks = s, n
		}
	}
	return best, wait
}

// fill adds one warm sandbox.
func (s *shelf) fill() {
	ctx, cancel := context.WithTimeout(s.pool.ctx, bootTimeout)
	defer cancel()
	began := time.Now()
	b, err := s.start(ctx)
	if err == nil && b.worker != nil {
		if err = b.worker.ready(ctx); err != nil {
			b.end()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.retry = min(max(2*s.retry, retryFirst), retryMax)
		s.notUntil = time.Now().Add(s.retry)
		if s.pool.ctx.Err() == nil {
			s.pool.cfg.Errors.Error("no warm sandbox could be made", "runtime", string(s.def.Runtime), "retry", s.retry, "err", err)
		}
		return
	}
	s.boot, s.retry = time.Since(began), 0
	s.warm = append(s.warm, b)
}

// errFull says that the node has as many sandboxes as it may.
var errFull = bawn.Errorf(bawn.CodeThrottled, "start", "the node has as many sandboxes as it may have").WithFix("try again, or raise the node's limit")

// errDraining says that the node is about to stop.
var errDraining = bawn.Errorf(bawn.CodeUnavailable, "run", "the node is stopping").WithFix("try again in a moment")

// kick wakes whoever waits on c.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
