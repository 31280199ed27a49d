package meter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// journal stands in for the audit log: it outlives ledgers, as the log does.
type journal struct {
	mu      sync.Mutex
	records []bawn.Record
	fail    atomic.Bool
}

func (j *journal) Next() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return int64(len(j.records))
}

func (j *journal) Append(_ context.Context, r bawn.Record) error {
	if j.fail.Load() {
		return bawn.Errorf(bawn.CodeUnavailable, "test", "the disk is full")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Index = int64(len(j.records))
	j.records = append(j.records, r)
	return nil
}

func (j *journal) Read(_ context.Context, from int64, fn func(bawn.Record) error) error {
	j.mu.Lock()
	all := j.records[from:]
	j.mu.Unlock()
	for _, r := range all {
		if r.Kind == bawn.KindOutcome {
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *journal) find(action string) (list []bawn.Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		if r.Action == action {
			list = append(list, r)
		}
	}
	return list
}

// clock is a clock that stands still until it is set.
type clock struct{ at atomic.Int64 }

func (c *clock) Now() time.Time   { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) set(t time.Time)  { c.at.Store(t.UnixNano()) }
func noon() time.Time             { return time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC) }
func anonymous() string           { return bawn.Anonymous().String() }
func newClock(t time.Time) *clock { c := new(clock); c.set(t); return c }

type bench struct {
	t     testing.TB
	dir   string
	log   *journal
	clock *clock
	store *store.Store
	*Ledger
}

// open opens a ledger over what the last one left in dir.
func open(t testing.TB, dir string, log *journal, now *clock) *bench {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), Config{
		Store: s, Journal: Journal{log.Next, log.Read, log.Append}, Open: filepath.Join(dir, "calls"), Now: now.Now,
		Gone: func(tenant string) bool { return tenant == "gone" },
	})
	if err != nil {
		s.Close()
		t.Fatal(err)
	}
	b := &bench{t, dir, log, now, s, l}
	t.Cleanup(b.shut)
	return b
}

// shut ends the ledger in order.
func (b *bench) shut() {
	if b.store == nil {
		return
	}
	if err := b.Ledger.Close(context.WithoutCancel(b.t.Context())); err != nil {
		b.t.Error(err)
	}
	b.store.Close()
	b.store = nil
}

// die ends it without a word: nothing is stored any more.
func (b *bench) die() {
	b.stop()
	b.done.Wait()
	b.slots.close()
	b.store.Close()
	b.store = nil
}

func setUp(t testing.TB) *bench {
	return open(t, t.TempDir(), new(journal), newClock(noon()))
}

func request(caller string, most bawn.Spending, grants ...bawn.Grant) Request {
	most.Calls = 1
	return Request{Tenant: "main", Function: "shop", Version: 1, Invocation: bawn.NewID(), Principal: caller, Caller: caller, Anonymous: caller == anonymous(), Most: most, Grants: grants}
}

// done charges a call and appends its outcome.
func (b *bench) finish(r *Reservation, u bawn.Spending) error {
	u.Calls = 1
	h := &r.held
	return r.Charge(u, func(text string) error {
		return b.log.Append(context.Background(), bawn.Record{Kind: bawn.KindOutcome, Tenant: h.tenant, Function: h.function, Invocation: h.invocation, Action: "invoke", Detail: map[string]string{ChargeDetail: text}})
	})
}

func (b *bench) call(caller string, grants ...bawn.Grant) error {
	r, err := b.Reserve(request(caller, bawn.Spending{}, grants...))
	if err != nil {
		return err
	}
	return b.finish(r, bawn.Spending{})
}

func (b *bench) total(per string) bawn.Cost {
	b.t.Helper()
	c, err := b.Cost([]string{"main"}, per, b.clock.Now(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// agree fails unless all the sums of a report are the same.
func agree(t testing.TB, c bawn.Cost) {
	t.Helper()
	for name, list := range map[string][]bawn.Blame{"functions": c.Functions, "callers": c.Callers, "tenants": c.Tenants} {
		var sum amounts
		for _, x := range list {
			a := of(x.Use)
			sum.add(&a)
		}
		if spending(sum) != c.Total {
			t.Errorf("the sum by %s is %+v, that of all %+v", name, spending(sum), c.Total)
		}
	}
}

func grant(of, meter string, amount int64, per string) bawn.Grant {
	return bawn.Grant{Of: of, Meter: meter, Amount: amount, Per: per}
}

func wantRefused(t testing.TB, err error) *Refused {
	t.Helper()
	var f *Refused
	if !errors.As(err, &f) {
		t.Fatalf("got %v, want a refusal by a budget", err)
	}
	return f
}

func TestH3CallsStopAtTheLimit(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCalls, 3, bawn.PerHour)
	for range 3 {
		if err := b.call("key:a", g); err != nil {
			t.Fatal(err)
		}
	}
	f := wantRefused(t, b.call("key:a", g))
	if f.Used != 3 || f.Limit != 3 || !f.Spent() || !f.Tell || !f.Ends.Equal(noon().Add(time.Hour)) {
		t.Errorf("the refusal says %+v", f)
	}
	if f = wantRefused(t, b.call("key:a", g)); f.Tell {
		t.Error("a second refusal within a second is told, too")
	}
	b.clock.set(noon().Add(time.Hour))
	if err := b.call("key:a", g); err != nil {
		t.Errorf("in the next hour: %v", err)
	}
}

// TestH3LoadShapes drives calls of every shape against a budget of each meter: the
// sum never passes the cap, and where whole calls fill it exactly it is reached.
func TestH3LoadShapes(t *testing.T) {
	most := bawn.Spending{CPU: 1000, Memory: 5000, Egress: 700}
	limits := map[string]int64{bawn.MeterCalls: 200, bawn.MeterCPU: 200_000, bawn.MeterMemory: 1_000_000, bawn.MeterEgress: 140_000, bawn.MeterMoney: 90_000}
	shapes := []struct {
		name    string
		workers int
		callers int
		used    func(r *rand.Rand) int64 // thousandths of the most
		cancel  int                      // one of so many is cancelled; 0: none
		park    int                      // one of so many runs until the end of all; 0: none
	}{
		{"one after another", 1, 1, func(*rand.Rand) int64 { return 1000 }, 0, 0},
		{"at once", 64, 1, func(*rand.Rand) int64 { return 1000 }, 0, 0},
		{"many callers", 64, 40, func(*rand.Rand) int64 { return 1000 }, 0, 0},
		{"quick ones", 32, 3, func(*rand.Rand) int64 { return 10 }, 0, 0},
		{"uneven ones", 32, 3, func(r *rand.Rand) int64 { return r.Int64N(1001) }, 0, 0},
		{"more than they may", 32, 3, func(*rand.Rand) int64 { return 5000 }, 0, 0},
		{"with some that never run", 32, 3, func(r *rand.Rand) int64 { return r.Int64N(1001) }, 3, 0},
		{"with some that go on", 32, 3, func(r *rand.Rand) int64 { return r.Int64N(1001) }, 0, 10},
	}
	for _, shape := range shapes {
		for _, meter := range []string{bawn.MeterCalls, bawn.MeterCPU, bawn.MeterMemory, bawn.MeterEgress, bawn.MeterMoney} {
			t.Run(shape.name+"/"+meter, func(t *testing.T) {
				b := setUp(t)
				if err := b.SetPrices(t.Context(), bawn.Prices{Call: 20, CPU: 100_000_000_000, Memory: bawn.MaxPrice, Egress: bawn.MaxPrice}); err != nil {
					t.Fatal(err)
				}
				g := grant("", meter, limits[meter], bawn.PerDay)
				m := index(meter)
				var wg sync.WaitGroup
				var over atomic.Int64
				var parked sync.WaitGroup
				end := make(chan struct{})
				check := func() {
					book := b.book("main")
					book.mu.Lock()
					defer book.mu.Unlock()
					c := &book.now[day].total
					over.Store(max(over.Load(), c.used[m]-g.Amount, c.used[m]+c.held[m]-g.Amount))
				}
				for w := range shape.workers {
					wg.Go(func() {
						r := rand.New(rand.NewPCG(uint64(w), 7))
						for tries := range 20_000 {
							res, err := b.Reserve(request(fmt.Sprint("key:", r.IntN(shape.callers)), most, g))
							var f *Refused
							if errors.As(err, &f) && f.Spent() || tries == 19_999 {
								return
							} else if err != nil {
								time.Sleep(time.Microsecond)
								continue
							}
							u := shape.used(r)
							use := bawn.Spending{CPU: most.CPU * u / 1000, Memory: most.Memory * u / 1000, Egress: most.Egress * u / 1000}
							check()
							switch {
							case shape.cancel > 0 && r.IntN(shape.cancel) == 0:
								res.Cancel()
							case shape.park > 0 && r.IntN(shape.park) == 0:
								parked.Go(func() { <-end; b.finish(res, use) })
								return
							default:
								if err := b.finish(res, use); err != nil {
									t.Error(err)
								}
							}
							check()
						}
					})
				}
				wg.Wait()
				close(end)
				parked.Wait()
				check()
				if over.Load() > 0 {
					t.Errorf("passed the cap by %d", over.Load())
				}
				c := b.total(bawn.PerDay)
				agree(t, c)
				used := of(c.Total)[m]
				if used > g.Amount {
					t.Errorf("%d of %d are used", used, g.Amount)
				}
				if meter == bawn.MeterCalls && shape.park == 0 && used != g.Amount {
					t.Errorf("%d calls of %d were let in", used, g.Amount)
				}
				book := b.book("main")
				if book.now[day].total.held != (amounts{}) {
					t.Errorf("%v is held by nobody", book.now[day].total.held)
				}
			})
		}
	}
}

// TestH4KnownCallersKeepTheirPart floods with strangers, with and without a budget
// of their own.
func TestH4KnownCallersKeepTheirPart(t *testing.T) {
	for name, test := range map[string]struct {
		grants []bawn.Grant
		pool   int64
	}{
		"a pool of their own": {[]bawn.Grant{grant("", bawn.MeterCalls, 1000, bawn.PerDay), grant(bawn.OfAnonymous, bawn.MeterCalls, 300, bawn.PerDay)}, 300},
		"half of all":         {[]bawn.Grant{grant("", bawn.MeterCalls, 1000, bawn.PerDay)}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			b := setUp(t)
			var let, known atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 500 {
						if b.call(anonymous(), test.grants...) == nil {
							let.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if let.Load() != test.pool {
				t.Errorf("%d strangers were let in, of a pool of %d", let.Load(), test.pool)
			}
			f := wantRefused(t, b.call(anonymous(), test.grants...))
			if f.Share == (len(test.grants) > 1) || f.Used != test.pool {
				t.Errorf("the refusal says %+v", f)
			}
			for range 1000 - test.pool {
				if b.call("key:known", test.grants...) == nil {
					known.Add(1)
				}
				b.call(anonymous(), test.grants...) // they go on
			}
			if known.Load() != 1000-test.pool {
				t.Errorf("of %d calls of known callers %d were let in", 1000-test.pool, known.Load())
			}
			agree(t, b.total(bawn.PerDay))
		})
	}
}

func TestH4EachCallerHasItsOwn(t *testing.T) {
	b := setUp(t)
	g := grant(bawn.OfCaller, bawn.MeterCalls, 2, bawn.PerHour)
	for _, caller := range []string{"key:a", "key:b"} {
		for range 2 {
			if err := b.call(caller, g); err != nil {
				t.Fatal(err)
			}
		}
		wantRefused(t, b.call(caller, g))
	}
	if err := b.call(anonymous(), g); err != nil {
		t.Errorf("a budget of each caller holds strangers, who are none: %v", err)
	}
}

func TestH3TenantBudget(t *testing.T) {
	b := setUp(t)
	if err := b.SetBudget(t.Context(), "main", []bawn.Grant{grant("", bawn.MeterCalls, 4, bawn.PerMonth), grant(bawn.OfCaller, bawn.MeterCalls, 3, bawn.PerMonth)}, false); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.call("key:a"); err != nil {
			t.Fatal(err)
		}
	}
	if f := wantRefused(t, b.call("key:a")); !f.Tenant || f.Grant.Of != bawn.OfCaller {
		t.Errorf("the refusal says %+v", f)
	}
	if err := b.call("key:b"); err != nil {
		t.Fatal(err)
	}
	if f := wantRefused(t, b.call("key:b")); !f.Tenant || f.Grant.Of != "" {
		t.Errorf("the refusal says %+v", f)
	}
}

// TestH3Callers are more than are counted apart: nothing of them is lost, and they
// share one allowance rather than have none.
func TestH3CallersAreBounded(t *testing.T) {
	b := setUp(t)
	g := grant(bawn.OfCaller, bawn.MeterCalls, 10, bawn.PerHour)
	for i := range maxPairs {
		if err := b.call(fmt.Sprint("user:", i), g); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		if err := b.call(fmt.Sprint("user:more", i), g); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, b.call("user:last", g))
	if err := b.call("user:0", g); err != nil {
		t.Errorf("one that is counted apart: %v", err)
	}
	c := b.total(bawn.PerHour)
	agree(t, c)
	if c.Total.Calls != maxPairs+11 || len(c.Callers) != maxPairs+1 {
		t.Errorf("%d calls of %d callers", c.Total.Calls, len(c.Callers))
	}
	if n := len(b.book("main").now[hour].pairs); n > maxPairs+1 {
		t.Errorf("the window has %d pairs", n)
	}
}

func TestH3RestartKeepsTheLedger(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCalls, 100, bawn.PerMonth)
	for i := range 60 {
		r, err := b.Reserve(request(fmt.Sprint("key:", i%7), bawn.Spending{CPU: 100}, g))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.finish(r, bawn.Spending{CPU: int64(i)}); err != nil {
			t.Fatal(err)
		}
		if i == 20 {
			if err := b.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := b.total(bawn.PerMonth)
	for _, killed := range []bool{true, false, true} {
		if killed {
			b.die()
		} else {
			b.shut()
		}
		b = open(t, b.dir, b.log, b.clock)
		if after := b.total(bawn.PerMonth); after.Total != before.Total || len(after.Callers) != len(before.Callers) {
			t.Fatalf("killed %v: %+v was used before, %+v after", killed, before.Total, after.Total)
		}
		agree(t, b.total(bawn.PerMonth))
	}
	for range 40 {
		if err := b.call("key:1", g); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, b.call("key:1", g))
}

// TestH3KilledCallsAreCharged ends the ledger while calls run, at every place
// between their parts.
func TestH3KilledCallsAreCharged(t *testing.T) {
	b := setUp(t)
	most := bawn.Spending{CPU: 100, Egress: 9}
	hold := func() *Reservation {
		r, err := b.Reserve(request("key:a", most))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	hold() // before a snapshot
	over := hold()
	if err := b.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.finish(over, bawn.Spending{CPU: 30}); err != nil {
		t.Fatal(err)
	}
	hold() // after it
	hold().Cancel()
	// The outcome is in the log, and nothing came after it.
	cut := hold()
	cut.Charge(bawn.Spending{Calls: 1, CPU: 7}, func(text string) error {
		b.log.Append(t.Context(), bawn.Record{Kind: bawn.KindOutcome, Tenant: "main", Function: "shop", Invocation: cut.held.invocation, Action: "invoke", Detail: map[string]string{ChargeDetail: text}})
		return errors.New("killed")
	})
	want := bawn.Spending{Calls: 4, CPU: 100 + 30 + 100 + 7, Egress: 9 + 9}
	for range 3 {
		b.die()
		b = open(t, b.dir, b.log, b.clock)
		c := b.total(bawn.PerDay)
		if c.Total != want {
			t.Fatalf("%+v is charged, want %+v", c.Total, want)
		}
		agree(t, c)
	}
	// The log alone says the same: each call has one outcome.
	var sum amounts
	seen := map[string]bool{}
	for _, r := range b.log.find("invoke") {
		c, ok := parseCharge(r.Detail[ChargeDetail])
		if !ok || seen[r.Invocation] {
			t.Errorf("a second outcome, or one without a charge: %+v", r)
		}
		seen[r.Invocation] = true
		sum.add(&c.used)
	}
	if spending(sum) != want {
		t.Errorf("the log's charges add up to %+v, want %+v", spending(sum), want)
	}
}

func TestH3UnrecordedCallsKeepWhatTheyHold(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCPU, 150, bawn.PerDay)
	r, err := b.Reserve(request("key:a", bawn.Spending{CPU: 100}, g))
	if err != nil {
		t.Fatal(err)
	}
	b.log.fail.Store(true)
	if err := b.finish(r, bawn.Spending{CPU: 1}); err == nil {
		t.Fatal("an outcome that cannot be recorded is no error")
	}
	b.log.fail.Store(false)
	if _, err := b.Reserve(request("key:a", bawn.Spending{CPU: 100}, g)); err == nil {
		t.Error("what cannot be recorded is not counted")
	}
}

func TestH3MonthEnds(t *testing.T) {
	b := setUp(t)
	last := time.Date(2027, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	b.clock.set(last)
	g := grant("", bawn.MeterCalls, 2, bawn.PerMonth)
	late, err := b.Reserve(request("key:a", bawn.Spending{}, g))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.call("key:a", g); err != nil {
		t.Fatal(err)
	}
	if f := wantRefused(t, b.call("key:a", g)); !f.Ends.Equal(time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the window ends %v", f.Ends)
	}
	b.clock.set(last.Add(time.Nanosecond))
	for range 2 {
		if err := b.call("key:a", g); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, b.call("key:a", g))
	// What began in the old month is charged to it.
	if err := b.finish(late, bawn.Spending{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := b.Cost([]string{"main"}, bawn.PerMonth, last, nil)
	if err != nil || c.Total.Calls != 4 || c.Windows != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if n := b.total(bawn.PerMonth).Total.Calls; n != 2 {
		t.Errorf("the new month has %d calls", n)
	}
}

func TestH3ClockGoesBack(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCalls, 2, bawn.PerDay)
	for range 2 {
		if err := b.call("key:a", g); err != nil {
			t.Fatal(err)
		}
	}
	for _, t2 := range []time.Time{noon().Add(40 * 365 * 24 * time.Hour), noon().AddDate(0, 0, 1)} {
		b.clock.set(t2)
		for range 2 {
			if err := b.call("key:a", g); err != nil {
				t.Fatal(err)
			}
		}
		wantRefused(t, b.call("key:a", g))
		if err := b.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.die()
	b = open(t, b.dir, b.log, b.clock)
	b.clock.set(noon().Add(-time.Hour))
	if f := wantRefused(t, b.call("key:a", g)); f.Used != 2 {
		t.Errorf("a day that was over begins anew: %+v", f)
	}
}

func TestH3Warnings(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCalls, 100, bawn.PerDay)
	for range 100 {
		if err := b.call("key:a", g); err != nil {
			t.Fatal(err)
		}
	}
	b.shut()
	var got []string
	for _, r := range b.log.find("budget.warn") {
		got = append(got, r.Reason+" "+r.Detail["used"]+" "+r.Tenant+" "+r.Function)
	}
	if fmt.Sprint(got) != "[75 per cent of a budget is used 75 main shop 90 per cent of a budget is used 90 main shop]" {
		t.Errorf("warned %q", got)
	}
}

func TestH3Lift(t *testing.T) {
	b := setUp(t)
	g := grant("", bawn.MeterCalls, 1, bawn.PerDay)
	if err := b.call("key:a", g); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, b.call("key:a", g))
	f, err := b.Lift(t.Context(), "main", bawn.Lift{Function: "shop", Meter: g.Meter, Per: g.Per, Reason: "sale", By: "key:boss"})
	if err != nil || !f.Ends.Equal(noon().Add(12*time.Hour)) {
		t.Fatal(f, err)
	}
	for range 3 {
		if err := b.call("key:a", g); err != nil {
			t.Fatal(err)
		}
	}
	b.clock.set(noon().Add(12 * time.Hour))
	if err := b.call("key:a", g); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, b.call("key:a", g))
	if lifts, err := b.Lifts("main"); err != nil || len(lifts) != 0 {
		t.Errorf("lifts that are over are still there: %v %v", lifts, err)
	}
}

func TestPrices(t *testing.T) {
	p := bawn.Prices{Call: 200, CPU: 20_000, Memory: 16_667, Egress: 90_000_000}
	for _, test := range []struct {
		a    amounts
		want int64
	}{
		{amounts{1, 0, 0, 0, 0}, 200},
		{amounts{0, 1, 0, 0, 0}, 1},
		{amounts{0, int64(time.Second), 0, 0, 0}, 20_000},
		{amounts{0, 0, 1 << 30, 0, 0}, 16_667},
		{amounts{0, 0, 1<<30 + 1, 0, 0}, 16_668},
		{amounts{0, 0, 0, 10 << 30, 0}, 900_000_000},
	} {
		if got := costOf(&p, &test.a); got != test.want {
			t.Errorf("%v costs %d, want %d", test.a, got, test.want)
		}
	}
	huge := amounts{1, 1 << 62, 1 << 62, 1 << 62, 0}
	if n := costOf(&bawn.Prices{Call: bawn.MaxPrice, CPU: bawn.MaxPrice, Memory: bawn.MaxPrice, Egress: bawn.MaxPrice}, &huge); n < 1<<60 {
		t.Errorf("what is too much to count costs %d", n)
	}
}

func FuzzCharge(f *testing.F) {
	f.Add("1804934400 5 1 2 3 4 5 key:a")
	f.Add("1 8 1 1 1 1 1 x")
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := parseCharge(text)
		if ok && (c.others < 0 || c.others >= 1<<spans || len(c.caller) > maxCaller) {
			t.Errorf("%q is read as %+v", text, c)
		}
	})
}

func FuzzSlot(f *testing.F) {
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		slot := make([]byte, slotBytes)
		copy(slot, b)
		parseSlot(slot)
	})
}

func BenchmarkReserveAndCharge(b *testing.B) {
	s := setUp(b)
	g := grant("", bawn.MeterCalls, 1<<60, bawn.PerDay)
	q := request("key:a", bawn.Spending{CPU: 1000}, g)
	for b.Loop() {
		r, err := s.Reserve(q)
		if err != nil {
			b.Fatal(err)
		}
		r.Charge(bawn.Spending{Calls: 1, CPU: 10}, func(string) error { return nil })
	}
}
