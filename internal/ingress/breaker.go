package ingress

import (
	"context"
	"math"
	"sync"
	"time"

	"bawn.dev/bawn"
)

// A function that fails at each call is not run at each retry: control H8. What is
// counted is a lane: callers that share one by chance, those without a credential
// apart from the others. So who finds an event that the function fails at shuts
// out the few others of the lane, and these only while nothing of theirs goes well.
const (
	breakerLanes = 16 // of the known, and as many of the others
	// breakerFails is how many calls of a lane have to fail within the window, with
	// none between them that goes well. One that takes too long counts for four.
	breakerFails  = 20
	breakerLate   = 4
	breakerWindow = 10 * time.Second // two of the function's timeouts, if that is longer
	// breakerPause is how long a lane is shut at first. It doubles with each call
	// that is let through to try, and fails.
	breakerPause    = time.Second
	breakerMaxPause = 30 * time.Second
	// breakerVersions is how many versions of a function are told apart at one time.
	breakerVersions = 4
)

// breakers are the lanes of the versions of one function of which calls have
// failed. Safe for concurrent use; the zero value is ready.
type breakers struct {
	mu sync.Mutex
	of []*breaker // used last is last
}

// A breaker is the lanes of a version. Guarded by breakers.mu.
type breaker struct {
	version int
	half    int64 // of the window, in nanoseconds
	lanes   [2 * breakerLanes]lane
}

// A lane is shut if until is set.
type lane struct {
	half   int64  // which half of a window failed[1] counts
	failed [2]int // in the half before, and in this one
	until  int64  // when the next call is let through to try; 0 if all are
	pause  time.Duration
}

// find returns the breaker of the version, or nil. Needs mu.
func (b *breakers) find(version int) *breaker {
	for _, x := range b.of {
		if x.version == version {
			return x
		}
	}
	return nil
}

// make is find for a version of which a call has failed. It takes the place of the
// one that has been there longest, if need be. Needs mu.
func (b *breakers) make(v *bawn.Version) *breaker {
	x := b.find(v.Number)
	if x == nil {
		if len(b.of) == breakerVersions {
			b.of = append(b.of[:0], b.of[1:]...)
		}
		x = &breaker{version: v.Number, half: int64(max(breakerWindow, 2*v.Perimeter.Interior.Timeout)) / 2}
		b.of = append(b.of, x)
	}
	return x
}

// laneOf is the number of the caller's lane.
func laneOf(c *bawn.Call, key uint64) int {
	n := int((key ^ key>>32) % breakerLanes)
	if c.From().Kind == anonymous {
		return n
	}
	return breakerLanes + n
}

// fails counts a failure, and reports whether that shuts the lane.
func (l *lane) fails(weight int, half, now int64) bool {
	switch h := now / half; h {
	case l.half:
	case l.half + 1:
		l.half, l.failed = h, [2]int{l.failed[1], 0}
	default:
		l.half, l.failed = h, [2]int{}
	}
	l.failed[1] = min(l.failed[1]+weight, math.MaxInt32)
	if l.failed[0]+l.failed[1] < breakerFails {
		return false
	}
	l.pause = breakerPause
	l.until = now + int64(l.pause)
	return true
}

// checkBreaker refuses the call if all that its lane has done lately has failed.
// Who the policy will not let in anyway is left to it: whether a function works
// is not for strangers.
func (g *Gate) checkBreaker(ctx context.Context, c *bawn.Call, a *Admission) error {
	a.standing, a.caller = g.limits.of(a.Version.Tenant, a.Version.Function), g.limits.rates.caller(c)
	a.lane = laneOf(c, a.caller)
	b := a.standing.breakers.Load()
	if b == nil || !a.hopeful(c) {
		return nil
	}
	now := g.now()
	var wait time.Duration
	b.mu.Lock()
	if x := b.find(a.Version.Number); x != nil {
		if l := &x.lanes[a.lane]; l.until > now {
			wait = time.Duration(l.until - now)
		} else if l.until > 0 {
			a.probe = true
			l.until = now + int64(l.pause) // and then the next, should this one never end
		}
	}
	b.mu.Unlock()
	if wait == 0 {
		return nil
	}
	return g.curb(ctx, c, a, curbing{
		told: &a.standing.told, control: "H8", code: bawn.CodeUnavailable, wait: wait,
		reason: "the function has failed at every call lately, and is not run at each of these",
		fix:    "find out why it fails: bawn logs " + a.Version.Function + "; a call is let through from time to time, and a new version begins anew",
	})
}

// Ended says how the call ended, before it is settled. cause is empty if it went
// well, CodeFunctionError or CodeFunctionTimeout if the function failed, and any
// other if that says nothing of the function. If the node begins or ends to answer
// callers in the function's place, that is recorded, and note is what its owner
// should read.
func (a *Admission) Ended(ctx context.Context, c *bawn.Call, cause bawn.Code) (note string, err error) {
	weight := 0
	switch cause {
	case "":
	case bawn.CodeFunctionError:
		weight = 1
	case bawn.CodeFunctionTimeout:
		weight = breakerLate
	default:
		a.untried()
		return "", nil
	}
	if a.standing == nil {
		return "", nil
	}
	b := a.standing.breakers.Load()
	if b == nil {
		if weight == 0 {
			return "", nil
		}
		a.standing.breakers.CompareAndSwap(nil, new(breakers))
		b = a.standing.breakers.Load()
	}
	g, probe := a.gate, a.probe
	a.probe = false
	now := g.now()
	shut, open := false, false
	b.mu.Lock()
	if weight > 0 {
		x := b.make(a.Version)
		switch l := &x.lanes[a.lane]; {
		case l.until == 0:
			shut = l.fails(weight, x.half, now)
		case probe:
			l.pause = min(2*l.pause, breakerMaxPause)
			l.until = now + int64(l.pause)
		}
	} else if x := b.find(a.Version.Number); x != nil {
		l := &x.lanes[a.lane]
		open = l.until > 0
		*l = lane{}
	}
	b.mu.Unlock()
	switch {
	case shut:
		return g.breaks(ctx, c, a, "deny", "calls have failed one after another, and none went well: for a while most are answered 503 without running the function")
	case open:
		return g.breaks(ctx, c, a, "allow", "a call went well again: calls run the function")
	}
	return "", nil
}

// breaks records that a lane is shut or open again, unless that happens too often.
func (g *Gate) breaks(ctx context.Context, c *bawn.Call, a *Admission, outcome, reason string) (note string, err error) {
	now := g.cfg.Now()
	left, ok := a.standing.turned.take(now, curbRecords)
	if !ok {
		return "", nil
	}
	r := g.refusal(c, a, c.Principal, "H8", reason)
	r.Action, r.Outcome, r.Invocation = "breaker", outcome, ""
	r.Detail = map[string]string{"invocation": c.ID}
	leaveOut(&r, left)
	return reason, g.cfg.Record(context.WithoutCancel(ctx), r)
}

// untried has the next call try in the place of one that was let through to, and
// said nothing of the function.
func (a *Admission) untried() {
	if !a.probe {
		return
	}
	a.probe = false
	b := a.standing.breakers.Load()
	b.mu.Lock()
	if x := b.find(a.Version.Number); x != nil {
		if l := &x.lanes[a.lane]; l.until > 0 {
			l.until = a.gate.now()
		}
	}
	b.mu.Unlock()
}
