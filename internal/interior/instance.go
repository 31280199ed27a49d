package interior

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// An instance is a sandbox that has become one version's own. It serves one
// call at a time and is destroyed in the end, never returned to a shelf.
//
// Its states: loading (not yet in the fleet), busy, idle, freezing (the kernel is
// about to stop it; it counts as busy, so that no call is given it), frozen, and
// ending (no longer in the fleet).
type instance struct {
	id      string
	fleet   *fleet
	box     *boxed
	worker  worker
	out     *output
	outside Outside // nil if it reaches nothing
	started time.Time
	init    time.Duration

	// Guarded by the function's mu; calls and memory change only in the hands of
	// the call that has the instance.
	state  string
	since  time.Time // of the state idle or busy
	calls  int
	memory int64       // the peak, when last read
	holder *tally      // of whom it serves, or will
	errand errand      // what it serves, or served last
	waits  []*function // for which calls wait that it has made, and theirs

	// By whoever has the instance.
	frozen  bool // must be thawed before use
	sampled time.Time
	cpu     time.Duration // of the box, up to the end of the last call

	timer    *time.Timer // kills at a deadline
	timedOut atomic.Bool
	killed   sync.Once
	atKill   atomic.Int64 // what the box had used when it was killed; 0 if it was not, or nobody can say
}

// A loadError is the function's own failure to start: not the platform's.
type loadError struct {
	payload func(requestID string) []byte
	cause   bawn.Code
	usage   bawn.Usage
}

// Error returns a text without the function's detail.
func (e *loadError) Error() string { return "the function could not be loaded" }

// result returns what the caller of c gets.
func (e *loadError) result(v *bawn.Version, c *bawn.Call) *bawn.Result {
	return &bawn.Result{Version: v.Number, Payload: e.payload(c.ID), FunctionError: "Unhandled", Cause: e.cause, Usage: e.usage}
}

// start makes an instance for f: a warm sandbox, or a new one, becomes its own
// and loads the handler. It goes on when the caller has gone, for the next
// call may use it.
func (p *Pool) start(f *fleet) (*instance, error) {
	p.cold.Add(1)
	defer func() {
		p.lastCold.Store(time.Now().UnixNano())
		p.cold.Add(-1)
		kick(p.refillKick)
	}()
	ctx, cancel := context.WithTimeout(p.ctx, bootTimeout+bawn.InitTimeout)
	defer cancel()
	v := f.version
	code, err := p.cfg.Code(ctx, v)
	if err != nil {
		var e *bawn.Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "start", "the code of %s could not be made ready", v.Ref())
	}
	booted := true
	b := f.shelf.take()
	if b == nil {
		booted = false
		p.count.misses.Add(1)
		b, err = f.shelf.start(ctx)
		if errors.Is(err, errFull) {
			// Idle instances stand aside for a call.
			if old := p.oldest(1, ""); len(old) > 0 {
				old[0].kill()
				select {
				case <-old[0].box.gone:
				case <-ctx.Done():
				}
				b, err = f.shelf.start(ctx)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	in, err := p.specialise(ctx, f, b, code, booted)
	if err != nil {
		b.end()
		return nil, err
	}
	return in, nil
}

// specialise gives a sandbox its code, limits and identity, and waits until the
// handler is loaded.
func (p *Pool) specialise(ctx context.Context, f *fleet, b *boxed, code []string, booted bool) (*instance, error) {
	v := f.version
	in := &instance{id: b.ID(), fleet: f, box: b, worker: b.worker, started: time.Now(), state: "loading"}
	platform := func(err error, what string) error {
		return bawn.Wrap(err, bawn.CodeUnavailable, "start", "a sandbox for %s could not %s", v.Ref(), what).WithFix("try again; run bawn doctor on the node if it stays so")
	}
	var err error
	if in.out, err = newOutput(b.Output(), v, in.id, p.cfg.Log, p.redactor(v)); err != nil {
		return nil, platform(err, "be listened to")
	}
	reach, err := in.attach(ctx)
	if err != nil {
		in.out.note("bawn: no instance was started: " + err.Error())
		return nil, platform(err, "be given what it reaches outside")
	}
	in.cpu, _ = b.CPU() // what it was booted with is nobody's
	at := attachment(v, code)
	at.Files = reach.Files
	if err := b.Attach(ctx, at); err != nil {
		return nil, platform(err, "be given its code and limits")
	}
	identity := NewIdentity(v, in.id, in.started)
	var run func() error
	identity.Endpoint, identity.Env = b.door != nil, reach.Env
	if in.worker == nil { // parked: its program is the function's own
		in.worker = newRuntimeAPIWorker(b.api, b.refused)
		args, env := providedCommand(&identity)
		run = func() error { return b.Exec(ctx, args, env) }
	}
	if f.trial != nil {
		f.trial.box = b
	}
	b.owner.Store(in)
	go in.out.run()
	b.door.open(in)
	began, limit := time.Now(), bawn.InitTimeout
	if !booted {
		// The interpreter finds load waiting when it has booted, and leaves out
		// the exercises that a warm one does.
		began, limit = in.started, limit+bootTimeout
	}
	in.timer = time.AfterFunc(limit+time.Second, in.expire) // the deadline of load is sooner
	if run != nil {
		if err := run(); err != nil {
			in.kill()
			return nil, platform(err, "start its program")
		}
	}
	loading, cancel := context.WithTimeout(ctx, limit)
	err = in.worker.load(loading, identity)
	cancel()
	stopped := in.timer.Stop()
	in.init = time.Since(began)
	if err == nil && stopped {
		if w, ok := in.worker.(*frameWorker); ok && w.compiled {
			in.out.note("bawn: the module was compiled at this start, which takes time: its deploy left no machine code for this version of Bawn and this processor; a new version of the function has it")
		}
		return in, nil
	}
	err = in.loadFailed(err)
	if failed, ok := err.(*loadError); ok {
		cpu, _ := in.used(in.init)
		failed.usage = bawn.Usage{Cold: true, Init: in.init, CPU: cpu}
	}
	return nil, err
}

// loadFailed ends the instance and says what the caller gets.
func (in *instance) loadFailed(err error) error {
	p, v := in.fleet.fn.pool, in.fleet.version
	if p.ctx.Err() != nil {
		in.kill()
		return errDraining
	}
	var init *initError
	if errors.As(err, &init) {
		p.count.loads.Add(1)
		in.out.note("bawn: the handler of " + v.Ref().String() + " could not be loaded: " + clip([]byte(in.out.redact(string(init.Payload)))))
		in.kill()
		return &loadError{payload: func(string) []byte { return init.Payload }, cause: bawn.CodeFunctionError}
	}
	f := in.judge(err)
	if f.cause == bawn.CodeFunctionTimeout {
		f.payload = func(id string) []byte {
			return errorPayload("Sandbox.Timedout", "RequestId: "+id+" Error: Init timed out after "+seconds(bawn.InitTimeout)+" seconds")
		}
		f.note = "loading took longer than " + seconds(bawn.InitTimeout) + " seconds"
	}
	in.out.note("bawn: the instance ended while loading: " + f.note)
	return &loadError{payload: f.payload, cause: f.cause}
}

// A failure is how an instance ended that should not have.
type failure struct {
	payload func(requestID string) []byte
	cause   bawn.Code
	note    string // for the log
}

// judge ends the instance and finds out why it failed: by its deadline, by the
// kernel, by itself, or by what it sent.
func (in *instance) judge(err error) failure {
	p, v := in.fleet.fn.pool, in.fleet.version
	limit := v.Perimeter.Interior
	if in.timedOut.Load() || errors.Is(err, context.DeadlineExceeded) {
		in.kill()
		p.count.timeouts.Add(1)
		return failure{
			payload: func(id string) []byte { return timeoutPayload(id, limit.Timeout) },
			cause:   bawn.CodeFunctionTimeout,
			note:    "it was killed after its timeout of " + seconds(limit.Timeout) + " seconds; interior.timeout sets it",
		}
	}
	var e *bawn.Error
	if errors.As(err, &e) { // it broke the protocol, and goes on breaking it
		in.kill()
		return failure{
			payload: func(id string) []byte {
				return errorPayload("Runtime.InvalidResponse", "RequestId: "+id+" Error: "+e.Message)
			},
			cause: bawn.CodeFunctionError,
			note:  e.Error(),
		}
	}
	exit, ok := in.exit()
	if !ok { // it closed its channel and lives on
		exit = sandbox.Exit{}
	}
	if exit.OOM {
		p.count.memory.Add(1)
		in.fleet.fn.mu.Lock()
		in.memory = limit.Memory // the kernel's own figure is gone with the cgroup
		in.fleet.fn.mu.Unlock()
	} else {
		p.count.exits.Add(1)
	}
	note := "it exited by itself with status " + strconv.Itoa(exit.Code)
	switch {
	case exit.OOM:
		note = "the kernel killed it for using more than its memory of " + strconv.FormatInt(limit.Memory>>20, 10) + " MiB; interior.memory sets it"
	case exit.Err != nil:
		note = "its sandbox failed: " + exit.Err.Error()
	case exit.Signal != "":
		note = "signal: " + exit.Signal
	case !ok:
		note = "it closed its channel to Bawn"
	}
	return failure{
		payload: func(id string) []byte { return exitPayload(id, exit) },
		cause:   bawn.CodeFunctionError,
		note:    note,
	}
}

// exit waits for the program's end and returns it. It reports false if the
// program had to be killed.
func (in *instance) exit() (sandbox.Exit, bool) {
	timer := time.NewTimer(exitWait)
	defer timer.Stop()
	select {
	case <-in.box.Done():
		in.kill()
		return in.box.Exit(), true
	case <-timer.C:
		in.kill()
		return sandbox.Exit{}, false
	}
}

// serve runs one call on a busy instance and sees to the instance afterwards.
func (in *instance) serve(c *bawn.Call, cold bool) *bawn.Result {
	v := in.fleet.version
	timeout := v.Perimeter.Interior.Timeout
	began := time.Now()
	in.fleet.fn.mu.Lock()
	in.since = began
	in.calls++
	in.errand = errand{id: c.ID, parent: c.Parent}
	if c.Caller != nil {
		in.errand.from = functionKey{c.Caller.Tenant, c.Caller.Function}
	}
	in.fleet.fn.mu.Unlock()
	in.out.begin(c.ID, began, c.Tail)
	in.timer.Reset(timeout)
	in.enter(c, began.Add(timeout))
	// The caller's context is left out on purpose: an event that was handed over
	// is worked off, whoever still listens.
	res, err := in.worker.invoke(context.Background(), c, began.Add(timeout))
	u := bawn.Usage{Cold: cold}
	if cold {
		u.Init = in.init
	}
	if err == nil && res.Stream != nil {
		s := &stream{ReadCloser: res.Stream, in: in, call: c, res: res, began: began}
		res.Version, res.Stream, res.Usage = v.Number, s, u
		return res
	}
	in.leave(&u)
	stopped := in.timer.Stop()
	if err != nil {
		res = in.failed(err, c)
	} else if !stopped {
		in.kill() // the answer was just in time; the instance was not
	}
	res.Version, res.Usage = v.Number, u
	in.finish(c, res, began)
	return res
}

// failed ends the instance and returns the answer in place of its own.
func (in *instance) failed(err error, c *bawn.Call) *bawn.Result {
	f := in.judge(err)
	in.out.note("bawn: the instance ended: " + f.note)
	return &bawn.Result{Payload: f.payload(c.ID), FunctionError: "Unhandled", Cause: f.cause}
}

// finish settles what a call used, closes its log and gives the instance back.
func (in *instance) finish(c *bawn.Call, res *bawn.Result, began time.Time) {
	now := time.Now()
	res.Usage.Duration = now.Sub(began)
	res.Usage.MaxMemory = in.sample(now)
	var known bool
	res.Usage.CPU, known = in.used(res.Usage.Duration + res.Usage.Init)
	res.Log = in.out.end(c.ID, &res.Usage, in.fleet.version.Perimeter.Interior.Memory)
	saturated := in.fleet.fn.pool.cfg.Saturated()
	in.fleet.fn.mu.Lock()
	in.memory = res.Usage.MaxMemory
	in.fleet.served(res.Usage.Duration, saturated)
	if known && !res.Usage.Cold {
		in.fleet.computed(res.Usage.CPU, res.Usage.Duration, saturated)
	}
	in.fleet.fn.mu.Unlock()
	in.put()
}

// sample returns the memory peak, read from the kernel once a second at most.
func (in *instance) sample(now time.Time) int64 {
	peak := in.memory
	if now.Sub(in.sampled) >= sampleEvery {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if st, err := in.box.Stats(ctx); err == nil { // a dead one keeps its last
			peak = max(peak, st.MaxMemory)
		}
		cancel()
		in.sampled = now
	}
	return peak
}

// used returns the processor time since the end of the last call: what is left
// running in between is part of the next. Where that cannot be known, as of an
// instance that has ended, it is the most that fits into the time that the call
// took, and known is false.
func (in *instance) used(took time.Duration) (u time.Duration, known bool) {
	now, ok := in.box.CPU()
	if !ok {
		now = time.Duration(in.atKill.Load())
	}
	if now < in.cpu || now == 0 {
		return time.Duration(float64(took) * in.fleet.version.Perimeter.Interior.CPU), false
	}
	u = now - in.cpu
	in.cpu = now
	return u, true
}

// A stream is an answer in the making. The instance is busy until it is read to
// its end or closed. Not for concurrent use.
type stream struct {
	io.ReadCloser
	in    *instance
	call  *bawn.Call
	res   *bawn.Result
	began time.Time
	n     int64
	over  error // what Read returns from now on
}

// Read returns a *bawn.StreamError if the function or its instance failed.
func (s *stream) Read(p []byte) (int, error) {
	if s.over != nil {
		return 0, s.over
	}
	n, err := s.ReadCloser.Read(p)
	s.n += int64(n)
	if err == nil && s.n > bawn.MaxStreamBytes {
		n, err = 0, bawn.Errorf(bawn.CodeFunctionError, "stream", "Response payload size exceeded maximum allowed payload size (%d bytes).", int64(bawn.MaxStreamBytes))
	}
	if err == nil {
		return n, nil
	}
	s.in.leave(&s.res.Usage)
	if !s.in.timer.Stop() && !errors.Is(err, io.EOF) {
		s.in.timedOut.Store(true) // it fires just now
	}
	var failed *bawn.StreamError
	switch {
	case errors.Is(err, io.EOF):
		s.over = io.EOF
	case errors.As(err, &failed):
		s.over = failed
		s.res.FunctionError, s.res.Cause = "Unhandled", bawn.CodeFunctionError
		s.in.out.note("bawn: the function failed while streaming: " + clip([]byte(s.in.out.redact(string(failed.Payload)))))
	default:
		r := s.in.failed(err, s.call)
		s.over = &bawn.StreamError{Payload: r.Payload}
		s.res.FunctionError, s.res.Cause = r.FunctionError, r.Cause
	}
	s.in.finish(s.call, s.res, s.began)
	return n, s.over
}

// Close ends the instance if the stream was not read to its end: what it would
// still say is unknown.
func (s *stream) Close() error {
	if s.over != nil {
		return nil
	}
	s.over = errors.New("the stream was closed")
	s.in.timer.Stop()
	s.in.kill()
	s.in.leave(&s.res.Usage)
	s.in.out.note("bawn: the caller went away while the function was streaming")
	s.in.finish(s.call, s.res, s.began)
	return nil
}

// spent reports whether the instance must not serve again.
func (in *instance) spent(now time.Time) bool {
	r := in.fleet.version.Perimeter.Interior.Reuse
	return in.fleet.fn.pool.ctx.Err() != nil ||
		in.calls > 0 && in.fleet.never ||
		r.Invocations > 0 && in.calls >= r.Invocations ||
		in.expired(now) || in.timedOut.Load() || !in.usable()
}

// expired reports whether the instance, or something it has, is too old for a new
// call.
func (in *instance) expired(now time.Time) bool {
	r := in.fleet.version.Perimeter.Interior.Reuse
	return r.MaxAge > 0 && now.Sub(in.started) >= r.MaxAge || in.outside != nil && in.outside.Stale()
}

// usable reports whether the program still runs and its channel is in order.
func (in *instance) usable() bool { return in.worker.alive() && in.box.usable() }

// expire is what happens at a deadline.
func (in *instance) expire() {
	in.timedOut.Store(true)
	in.kill()
}

// kill ends the whole process tree, and whatever waits for it.
func (in *instance) kill() {
	in.killed.Do(func() {
		if used, ok := in.box.CPU(); ok {
			in.atKill.Store(int64(used))
		}
		in.box.Kill()
		in.worker.close()
		in.box.shut()
	})
}

// destroy kills an instance that was taken out of its fleet, not in the time of
// the call that is about to be answered.
func (in *instance) destroy() { go in.kill() }

// freeze stops an idle instance that the sweep has taken out.
func (in *instance) freeze() {
	p, v := in.fleet.fn.pool, in.fleet.version
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	err := in.box.Freeze(ctx)
	cancel()
	if err != nil {
		// It may still be frozen a moment later, under the next call.
		p.cfg.Errors.Warn("an idle instance could not be frozen and is ended", "function", v.Ref().String(), "instance", in.id, "err", err)
		in.retire()
		return
	}
	in.frozen = true
	in.rest(in.since)
}

// thaw wakes a busy instance if it was frozen. It reports false if the instance
// is of no use.
func (in *instance) thaw() bool {
	if !in.frozen {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := in.box.Thaw(ctx); err != nil {
		in.fleet.fn.pool.cfg.Errors.Warn("a frozen instance could not be woken", "instance", in.id, "err", err)
		return false
	}
	in.frozen = false
	return true
}

// identify fills in whose record r is.
func (in *instance) identify(r *bawn.Record, at time.Time) {
	v := in.fleet.version
	r.Tenant, r.Function, r.Version, r.Instance = v.Tenant, v.Function, v.Number, in.id
	r.Invocation = in.out.during(at)
	in.out.redactRecord(r)
}

// describe returns what is shown of the instance.
func (in *instance) describe() bawn.Instance {
	v := in.fleet.version
	in.fleet.fn.mu.Lock()
	defer in.fleet.fn.mu.Unlock()
	return bawn.Instance{
		ID: in.id, Tenant: v.Tenant, Function: v.Function, Version: v.Number,
		State: in.state, Started: in.started, Calls: in.calls, Memory: in.memory,
	}
}

// seconds returns d with two decimals, as Lambda's messages have it.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) }

// clip bounds an error document for the log.
func clip(b []byte) string {
	if len(b) > 4<<10 {
		return strings.ToValidUTF8(string(b[:4<<10]), "") + "…"
	}
	return string(b)
}
