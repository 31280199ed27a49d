package interior

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"bawn.dev/bawn"
)

// A trial is a call in an instance that is made for it alone.
type trial struct {
	box *boxed // what the instance lives in; nil until it has one

	mu      sync.Mutex
	stopped []bawn.Record
}

const (
	maxTrialStops = 20
	maxTrialBytes = 1 << 20 // of a streamed answer; the rest is left out
)

// saw takes the record of something that was stopped.
func (t *trial) saw(r bawn.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stopped) < maxTrialStops {
		t.stopped = append(t.stopped, r)
	}
}

// Try gives the call to an instance of v that serves nobody else and is gone
// when Try returns; v need not be known to anybody. It also returns what the
// sandbox stopped, loading included, at most 20 of it: an end by the deadline or
// for want of memory is among that.
//
// It is Run but for this: a streamed answer is in memory, its first MiB, and ctx
// ends a call that runs.
func (p *Pool) Try(ctx context.Context, v *bawn.Version, c *bawn.Call) (*bawn.Result, []bawn.Record, error) {
	p.mu.RLock()
	draining := p.draining
	p.mu.RUnlock()
	s := p.shelves[v.Runtime]
	switch {
	case p.refusal != nil:
		return nil, nil, p.refusal
	case draining:
		return nil, nil, errDraining
	case p.halted(v.Tenant):
		return nil, nil, errHalted
	case s == nil:
		return nil, nil, noRuntime(v)
	}
	// A function that is not in the pool's map: no other call finds it.
	t := &trial{}
	fn := &function{pool: p, key: functionKey{v.Tenant, v.Function}, fleets: make(map[versionKey]*fleet), slots: 1}
	f := &fleet{fn: fn, version: v, shelf: s, never: true, trial: t, instances: make(map[*instance]struct{}), starting: 1}
	if !p.take(f) {
		p.reclaim(v.Tenant)
		if !p.take(f) {
			return nil, nil, p.throttle(v, "none is left to try the function")
		}
	}
	in, err := p.launch(f, nil)
	var res *bawn.Result
	var failed *loadError
	switch {
	case errors.As(err, &failed):
		res, err = failed.result(v, c), nil
	case err == nil:
		// Neither the pool's end nor the caller's waits for the call's.
		for _, ends := range []context.Context{ctx, p.ctx} {
			stop := context.AfterFunc(ends, in.kill)
			defer stop()
		}
		p.count.calls.Add(1)
		p.count.cold.Add(1)
		res = whole(in.serve(c, true))
	}
	if t.box != nil {
		// What is still on its way belongs to the call.
		select {
		case <-t.box.gone:
		case <-time.After(bootTimeout):
			return nil, nil, bawn.Errorf(bawn.CodeUnavailable, "try", "the sandbox does not end").WithFix("run bawn doctor on the node")
		}
		if t.box.Exit().OOM {
			t.saw(bawn.Record{Kind: bawn.KindBlocked, Action: "memory", Control: "B5", Outcome: "blocked", Reason: "it used more than its memory; interior.memory sets it"})
		}
	}
	if res != nil && res.Cause == bawn.CodeFunctionTimeout {
		t.saw(bawn.Record{Kind: bawn.KindBlocked, Action: "timeout", Control: "B11", Outcome: "blocked", Reason: "it did not answer in time"})
	}
	switch {
	case p.ctx.Err() != nil:
		err = errDraining
	case ctx.Err() != nil:
		err = bawn.Wrap(context.Cause(ctx), bawn.CodeUnavailable, "try", "the time for it was over").WithFix("give it more time, or try again")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return res, slices.Clone(t.stopped), err
}

// whole reads a stream to its end, so that it can be read again from memory.
func whole(r *bawn.Result) *bawn.Result {
	if r.Stream == nil {
		return r
	}
	defer r.Stream.Close()
	data, err := io.ReadAll(io.LimitReader(r.Stream, maxTrialBytes))
	var broke *bawn.StreamError
	if errors.As(err, &broke) {
		r.Payload, r.Stream, r.FunctionError = broke.Payload, nil, "Unhandled"
		return r
	}
	r.Stream = io.NopCloser(bytes.NewReader(data))
	return r
}
