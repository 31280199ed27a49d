package ingress

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// Those without a credential fill half of the room, and no caller all of it: there
// always is some for the next. What is refused has cost no decision of the policy.
func TestH8RoomByPriority(t *testing.T) {
	w := newWorld(t)
	w.limited(t, "shop", &bawn.Limits{Concurrency: 10}, "GET /open public")
	ctx := context.Background()
	var in []*Admission
	fill := func(bearer string, source func(int) string) (n int, err error) {
		for ; ; n++ {
			c := w.byRoute(t, "GET", "/open", bearer)
			c.Source = source(n)
			a, err := w.gate.Admit(ctx, c)
			if err != nil {
				var e *bawn.Error
				if !errors.As(err, &e) || e.Code != bawn.CodeThrottled || e.RetryAfter != time.Second || !errors.Is(err, ErrCrowded) {
					t.Fatalf("%v", err)
				}
				return n, err
			}
			in = append(in, a)
		}
	}
	one := func(string) func(int) string { return func(int) string { return "192.0.2.1" } }("")
	many := func(n int) string { return fmt.Sprintf("10.0.%d.%d", n/256, n%256) }
	anonymousRoom, knownRoom, spare := 10+maxWaiting/2, 10+maxWaiting, maxWaiting/8
	n, _ := fill("", one)
	if n != anonymousRoom-spare {
		t.Errorf("one address has %d calls, want %d", n, anonymousRoom-spare)
	}
	n, _ = fill("", many)
	if n != spare {
		t.Errorf("many addresses have %d more, want %d", n, spare)
	}
	n, _ = fill(w.key(t, "main", bawn.RoleInvoker), one)
	if want := knownRoom - anonymousRoom; n != want && n != knownRoom-spare {
		t.Errorf("a known caller has %d calls, want %d", n, want)
	}
	before := len(w.records(t, func(*bawn.Record) bool { return true }))
	for range 100 {
		if _, err := w.gate.Admit(ctx, w.byRoute(t, "GET", "/open", "")); bawn.ErrorCode(err) != bawn.CodeThrottled {
			t.Fatal(err)
		}
	}
	if after := len(w.records(t, func(*bawn.Record) bool { return true })); after > before+curbRecords {
		t.Errorf("100 refusals became %d records", after-before)
	}
	if got := w.gate.Refusals(); got["share"] != 103 || got["rate"] != 0 {
		t.Errorf("%v", got)
	}
	for _, a := range in {
		a.Settle()
	}
	s := w.gate.limits.of("main", "shop")
	if s.running != 0 || len(s.by) != 0 || w.gate.Running() != 0 {
		t.Errorf("left behind: %d, %v", s.running, s.by)
	}
	// The node as a whole has bounds, too, and they are for the known last.
	check1(t, w.gate.Room(ctx, w.byRoute(t, "GET", "/open", "")))
	w.gate.running.Store(maxRunning / 2)
	shed := w.gate.Refusals()["share"]
	wantCode(t, w.gate.Room(ctx, w.byRoute(t, "GET", "/open", "")), bawn.CodeUnavailable)
	if n := w.gate.Refusals()["share"] - shed; n != 1 {
		t.Errorf("the refusal ahead of the body is counted %d times", n)
	}
	_, err := w.gate.Admit(ctx, w.byRoute(t, "GET", "/open", ""))
	wantCode(t, err, bawn.CodeUnavailable)
	a, err := w.gate.Admit(ctx, w.byRoute(t, "GET", "/open", w.key(t, "main", bawn.RoleInvoker)))
	check1(t, err)
	a.Settle()
	w.gate.running.Store(0)
	w.gate.Close()
}

// A call that a later check refuses gives its place back.
func TestH2RefusedLeaves(t *testing.T) {
	w := newWorld(t)
	v := w.deploy(t, "main", "shop", "GET /open public")
	c := w.byRoute(t, "GET", "/open", "")
	c.Principal = bawn.Anonymous()
	a := &Admission{gate: w.gate, Version: v, public: c.Route.Access.Public}
	check1(t, w.gate.checkBreaker(context.Background(), c, a))
	check1(t, w.gate.checkRate(context.Background(), c, a))
	check1(t, w.gate.checkShare(context.Background(), c, a))
	s := w.gate.limits.of("main", "shop")
	if s.running != 1 {
		t.Errorf("%d calls are counted", s.running)
	}
	a.release()
	a.release()
	if s.running != 0 || len(s.by) != 0 {
		t.Errorf("left behind: %d, %v", s.running, s.by)
	}
}
