package ingress

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// brittle is a world whose function's calls end as a test has it, and whose clock
// it moves.
type brittle struct {
	*world
	clock atomic.Int64
}

func newBrittle(t testing.TB) *brittle {
	b := &brittle{world: newWorld(t)}
	began := b.now
	b.gate.cfg.Now = func() time.Time { return began.Add(time.Duration(b.clock.Load())) }
	b.deploy(t, "main", "shop", "GET /open public", "GET /shop")
	return b
}

// call has one call end with cause, and returns why it did not run.
func (b *brittle) call(t testing.TB, source, bearer string, cause bawn.Code) error {
	t.Helper()
	c := b.byRoute(t, "GET", "/open", bearer)
	c.Source = source
	a, err := b.gate.Admit(context.Background(), c)
	if err != nil {
		return err
	}
	_, err = a.Ended(context.Background(), c, cause)
	check1(t, err)
	a.Settle()
	return nil
}

// storm calls n times in a span of time, and returns how many calls ran.
func (b *brittle) storm(t testing.TB, n int, over time.Duration, cause bawn.Code) (ran int) {
	t.Helper()
	for range n {
		b.clock.Add(int64(over) / int64(n))
		if err := b.call(t, "192.0.2.1", "", cause); err == nil {
			ran++
		} else if bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Fatal(err)
		}
	}
	return ran
}

// A function that always fails is run for a while, and then at longer and longer
// distances; the first call that goes well ends that.
func TestH8Breaker(t *testing.T) {
	b := newBrittle(t)
	if ran := b.storm(t, 1000, time.Second, bawn.CodeFunctionError); ran != breakerFails {
		t.Errorf("%d calls ran, want %d", ran, breakerFails)
	}
	err := b.call(t, "192.0.2.1", "", "")
	var e *bawn.Error
	if !errors.As(err, &e) || e.Code != bawn.CodeUnavailable || e.RetryAfter <= 0 || e.RetryAfter > breakerMaxPause {
		t.Fatalf("%v", err)
	}
	// One call after each of 1, 2, 4, 8, 16 and then 30 seconds.
	if ran := b.storm(t, 6000, time.Minute, bawn.CodeFunctionError); ran < 5 || ran > 6 {
		t.Errorf("%d calls were let through in a minute", ran)
	}
	if ran := b.storm(t, 6000, 10*time.Minute, bawn.CodeFunctionTimeout); ran < 19 || ran > 21 {
		t.Errorf("%d calls were let through in ten minutes", ran)
	}
	b.clock.Add(int64(breakerMaxPause))
	for range 100 {
		if err := b.call(t, "192.0.2.1", "", ""); err != nil {
			t.Fatalf("after a call that went well: %v", err)
		}
	}
	var turns []string
	for _, r := range b.records(t, func(r *bawn.Record) bool { return r.Action == "breaker" }) {
		turns = append(turns, r.Control+" "+r.Outcome)
	}
	if fmt.Sprint(turns) != "[H8 deny H8 allow]" {
		t.Errorf("changes on record: %v", turns)
	}
	if b.gate.Refusals()["breaker"] == 0 {
		t.Error("nothing was counted")
	}
}

// Functions that fail at times, or seldom, or because there is no room, never meet
// the breaker.
func TestH8BreakerLeavesOthersAlone(t *testing.T) {
	for name, turn := range map[string]func(i int) (cause bawn.Code, after time.Duration){
		"nine of ten": func(i int) (bawn.Code, time.Duration) {
			if i%10 == 0 {
				return "", time.Millisecond
			}
			return bawn.CodeFunctionError, time.Millisecond
		},
		"seldom": func(int) (bawn.Code, time.Duration) { return bawn.CodeFunctionError, time.Second },
		"late":   func(int) (bawn.Code, time.Duration) { return bawn.CodeFunctionTimeout, 4 * time.Second },
		"no room": func(int) (bawn.Code, time.Duration) {
			return []bawn.Code{bawn.CodeThrottled, bawn.CodeUnavailable, bawn.CodeInternal}[time.Now().Nanosecond()%3], time.Millisecond
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBrittle(t)
			for i := range 500 {
				cause, after := turn(i)
				b.clock.Add(int64(after))
				if err := b.call(t, "192.0.2.1", "", cause); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
			}
		})
	}
}

// Who finds what a function fails at shuts out few others of his kind, and nobody
// who is known; and nobody at all while calls of the others go well.
func TestH8BreakerIsNoWeapon(t *testing.T) {
	b := newBrittle(t)
	key := b.key(t, "main", bawn.RoleInvoker)
	b.storm(t, 1000, time.Second, bawn.CodeFunctionError)
	shut := 0
	for i := range 200 {
		if b.call(t, fmt.Sprintf("10.1.0.%d", i), "", "") != nil {
			shut++
		}
		check1(t, b.call(t, "192.0.2.1", key, ""))
	}
	if shut > 200/4 { // a sixteenth, as it falls
		t.Errorf("%d of 200 others are shut out", shut)
	}
	// Who is in the same lane and is answered well keeps it open.
	b.clock.Add(int64(breakerMaxPause))
	check1(t, b.call(t, "192.0.2.1", "", ""))
	for i := range 1000 {
		b.clock.Add(int64(time.Millisecond))
		check1(t, b.call(t, "192.0.2.1", "", bawn.CodeFunctionError))
		if i%10 == 0 {
			check1(t, b.call(t, "192.0.2.1", "", ""))
		}
	}
}

// A stranger hears of a route that asks for a key that it does, whether or not the
// function works. A new version begins anew, and calls that were let through to
// try and came to nothing leave that to the next.
func TestH8BreakerEdges(t *testing.T) {
	b := newBrittle(t)
	ctx := context.Background()
	key, viewer := b.key(t, "main", bawn.RoleInvoker), b.key(t, "main", bawn.RoleViewer)
	b.storm(t, 100, time.Second, bawn.CodeFunctionError)
	_, err := b.gate.Admit(ctx, b.byRoute(t, "GET", "/shop", ""))
	wantCode(t, err, bawn.CodeUnauthenticated)
	for range 100 {
		b.call(t, "192.0.2.1", key, bawn.CodeFunctionError)
		b.call(t, "192.0.2.1", viewer, bawn.CodeFunctionError)
	}
	wantCode(t, b.call(t, "192.0.2.1", key, ""), bawn.CodeUnavailable)

	b.clock.Add(int64(breakerMaxPause))
	for range 3 { // the first ends for another reason, and so does the next
		check1(t, b.call(t, "192.0.2.1", "", bawn.CodeThrottled))
	}
	c := b.byRoute(t, "GET", "/open", "")
	a, err := b.gate.Admit(ctx, c)
	check1(t, err)
	wantCode(t, b.call(t, "192.0.2.1", "", ""), bawn.CodeUnavailable) // one at a time
	a.Settle()                                                        // as of a call that was not run
	check1(t, b.call(t, "192.0.2.1", "", bawn.CodeFunctionError))
	wantCode(t, b.call(t, "192.0.2.1", "", ""), bawn.CodeUnavailable)

	b.deploy(t, "main", "shop", "GET /open public")
	check1(t, b.call(t, "192.0.2.1", "", ""))
	for range 3 * breakerVersions {
		b.deploy(t, "main", "shop", "GET /open public")
		b.storm(t, 50, time.Second, bawn.CodeFunctionError)
	}
	if n := len(b.gate.limits.of("main", "shop").breakers.Load().of); n != breakerVersions {
		t.Errorf("%d versions are told apart, want %d", n, breakerVersions)
	}
}

// admitted has the checks of this package's counts look at a call that gets in,
// again and again, and returns one turn of that.
func admitted(t testing.TB, l *bawn.Limits) func() {
	w := newWorld(t)
	v := w.limited(t, "shop", l, "GET /open public")
	c := w.byRoute(t, "GET", "/open", "")
	c.Principal = bawn.Anonymous()
	a := &Admission{gate: w.gate, Version: v, public: c.Route.Access.Public}
	ctx := context.Background()
	return func() {
		for _, check := range []func(*Gate, context.Context, *bawn.Call, *Admission) error{
			(*Gate).checkBreaker, (*Gate).checkRate, (*Gate).checkShare,
		} {
			check1(t, check(w.gate, ctx, c, a))
		}
		_, err := a.Ended(ctx, c, "")
		check1(t, err)
		a.release()
	}
}

// plenty is rates that nobody meets.
func plenty() *bawn.Limits {
	return &bawn.Limits{Rates: []bawn.Rate{
		{Calls: 1e6, Per: time.Second, Burst: 1e6, By: bawn.ByCaller}, {Calls: 1e6, Per: time.Second, Burst: 1e6},
	}}
}

// What an admitted call is counted by costs it no memory.
func TestH1AdmittedAllocatesNothing(t *testing.T) {
	for name, l := range map[string]*bawn.Limits{"no limits": nil, "rates": plenty()} {
		turn := admitted(t, l)
		turn() // makes the tables
		if n := testing.AllocsPerRun(200, turn); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkAdmittedCounts(b *testing.B) {
	for name, l := range map[string]*bawn.Limits{"no limits": nil, "rates": plenty()} {
		b.Run(name, func(b *testing.B) {
			turn := admitted(b, l)
			b.ReportAllocs()
			for b.Loop() {
				turn()
			}
		})
	}
}
