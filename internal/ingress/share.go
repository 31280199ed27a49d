package ingress

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bawn.dev/bawn"
)

const (
	// maxWaiting is how many calls of a function are let in beyond those that run at
	// one time. It is what the pool has room for.
	maxWaiting = 256
	// maxRunning is how many calls of all functions are let in at one time.
	maxRunning = 4096
)

// ErrCrowded is the cause of an error that says that too much goes on at one time.
var ErrCrowded = errors.New("too many calls at one time")

// errCrowdedQuiet is both.
var errCrowdedQuiet = fmt.Errorf("%w: %w", ErrCrowded, ErrQuiet)

// weight is how much of the room there is a call may fill, in quarters: control
// H8. Who is known fills all of it; half is as far as those without a credential
// get; a chain of calls that one of them has begun gets between, since what was
// done for it would be lost.
func weight(c *bawn.Call) int {
	switch {
	case c.From().Kind != anonymous:
		return 4
	case c.Caller != nil:
		return 3
	}
	return 2
}

// crowded says why there is no room for the call, or returns nil. s is what is
// counted for its function, of which by are the caller's own calls; it needs s.mu.
func (g *Gate) crowded(c *bawn.Call, a *Admission, s *standing, by int) *curbing {
	w := weight(c)
	if int(g.running.Load()) >= maxRunning*w/4 {
		return &curbing{control: "H8", code: bawn.CodeUnavailable, reason: "the node has as many calls as it takes at one time",
			fix: "try again in a moment; the node's operator knows bawn_calls_running"}
	}
	most := a.Version.Perimeter.Interior.Concurrency
	if l := a.Version.Perimeter.Ingress.Limits; l != nil && l.Concurrency > 0 {
		most = l.Concurrency
	}
	most += maxWaiting * w / 4
	switch {
	case s.running >= most:
		return &curbing{control: "H8", reason: "too many calls of the function run and wait", fix: "try again in a moment, or raise interior.concurrency"}
	case by >= most-maxWaiting/8:
		return &curbing{control: "H2", reason: "too many calls of the function by one caller run and wait", fix: "have it make fewer at one time, or raise interior.concurrency"}
	}
	return nil
}

// lookAround is checkShare before anybody has been asked: what there is no room
// for costs no decision of the policy and no record of it.
func (g *Gate) lookAround(ctx context.Context, c *bawn.Call, a *Admission) error {
	s := a.standing
	s.mu.Lock()
	no := g.crowded(c, a, s, s.by[a.caller])
	s.mu.Unlock()
	if no == nil {
		return nil
	}
	a.refuses = shareCheck
	return g.crowd(ctx, c, a, no)
}

// Room returns why there is no room for a call by route of somebody who shows no
// credential, or nil. A trigger asks before it reads a body that would be read for
// nothing; whether the call is let in is still for [Gate.Admit] to say.
func (g *Gate) Room(ctx context.Context, c *bawn.Call) error {
	v := g.Resolve(c.Target)
	if v == nil {
		return nil
	}
	stranger := *c
	stranger.Principal = bawn.Anonymous()
	a := &Admission{gate: g, Version: v, standing: g.limits.of(v.Tenant, v.Function), caller: g.limits.rates.caller(&stranger)}
	err := g.lookAround(ctx, &stranger, a)
	if err != nil {
		g.counts[shareCheck].Add(1)
	}
	return err
}

func (g *Gate) crowd(ctx context.Context, c *bawn.Call, a *Admission, no *curbing) error {
	no.told, no.wait, no.crowded = &a.standing.told, time.Second, true
	return g.curb(ctx, c, a, *no)
}

// checkShare holds a function, and each caller of it, to its share of what is let
// in at one time, those that wait for an instance included: controls H2 and H8.
// Who of them runs next is the pool's to say.
func (g *Gate) checkShare(ctx context.Context, c *bawn.Call, a *Admission) error {
	s := a.standing
	s.mu.Lock()
	no := g.crowded(c, a, s, s.by[a.caller])
	if no == nil {
		if s.by == nil {
			s.by = make(map[uint64]int)
		}
		s.running++
		s.by[a.caller]++
		a.shares = true
	}
	s.mu.Unlock()
	if no != nil {
		return g.crowd(ctx, c, a, no)
	}
	return nil
}

// leave gives back what checkShare took.
func (a *Admission) leave() {
	if !a.shares {
		return
	}
	a.shares = false
	s := a.standing
	s.mu.Lock()
	s.running--
	if s.by[a.caller]--; s.by[a.caller] == 0 {
		delete(s.by, a.caller)
	}
	s.mu.Unlock()
}
