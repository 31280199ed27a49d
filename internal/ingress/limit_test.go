package ingress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
)

// A flood gets what the rate says and no more: all of the burst, and then as much
// as the time gives, to the call.
func TestH1BucketIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := bawn.Rate{
			Calls: rapid.IntRange(1, 5000).Draw(t, "calls"),
			Per:   rapid.SampledFrom([]time.Duration{time.Second, time.Minute, time.Hour}).Draw(t, "per"),
			Burst: rapid.IntRange(0, 100).Draw(t, "burst"),
		}
		i := intervalOf(&r)
		burst := r.Burst
		if burst == 0 {
			burst = r.Calls
		}
		var full, now int64
		in := 0
		for range 20000 {
			now += rapid.Int64Range(0, i.each/2).Draw(t, "step")
			after, wait := i.take(full, now)
			if wait == 0 {
				full = after
				in++
			} else if _, early := i.take(full, now+int64(wait)-1); early == 0 {
				t.Fatalf("a call gets in before the %s it was told", wait)
			} else if _, late := i.take(full, now+int64(wait)); late > 0 {
				t.Fatalf("a call is refused after the %s it was told", wait)
			}
			if room := i.room(full, now); room < 0 || room > burst {
				t.Fatalf("%d of %d are left", room, burst)
			}
			if in > 3*burst+10 {
				break
			}
		}
		if want := burst + int(now/i.each); in > want+1 {
			t.Errorf("%d calls got in, want at most %d", in, want)
		}
	})
}

// limited deploys a function with limits.
func (w *world) limited(t testing.TB, name string, l *bawn.Limits, routes ...string) *bawn.Version {
	t.Helper()
	w.edit = func(v *bawn.Version) { v.Perimeter.Ingress.Limits = l }
	defer func() { w.edit = nil }()
	return w.deploy(t, "main", name, routes...)
}

// TestH1Rates floods a gate by many at one time while its clock goes on, and
// counts what gets in.
func TestH1Rates(t *testing.T) {
	w := newWorld(t)
	var clock atomic.Int64
	began := w.now
	w.gate.cfg.Now = func() time.Time { return began.Add(time.Duration(clock.Load())) }
	w.limited(t, "shop", &bawn.Limits{Rates: []bawn.Rate{
		{Calls: 100, Per: time.Second, Burst: 5, By: bawn.ByCaller}, {Calls: 150, Per: time.Second, Burst: 5},
	}}, "GET /shop public")
	const took = 20 * time.Second
	var mu sync.Mutex
	in := map[string]int{}
	var wg sync.WaitGroup
	sources := []string{"192.0.2.1", "192.0.2.2", "2001:db8:0:1::1"}
	for range 8 {
		wg.Go(func() {
			for n := 0; clock.Add(int64(time.Millisecond/8)) < int64(took); n++ {
				c := w.byRoute(t, "GET", "/shop", "")
				c.Source = sources[n%len(sources)]
				a, err := w.gate.Admit(context.Background(), c)
				if err == nil {
					a.Settle()
					mu.Lock()
					in[c.Source]++
					in[""]++
					mu.Unlock()
				} else if bawn.ErrorCode(err) != bawn.CodeThrottled || c.Rate.Name == "" || c.Rate.Remaining != 0 {
					t.Errorf("%v, %+v", err, c.Rate)
				}
			}
		})
	}
	wg.Wait()
	if want := 150 * 20; in[""] < want*98/100 || in[""] > want*102/100 {
		t.Errorf("%d calls got in, want %d ± 2 %%", in[""], want)
	}
	for source, n := range in {
		if most := 100 * 20; source != "" && n > most*102/100 {
			t.Errorf("%s got %d calls in, want at most %d", source, n, most)
		}
	}
}

// One host of version 6 has a whole network of addresses, and they are one.
func TestH1AddressesOfAHost(t *testing.T) {
	w := newWorld(t)
	w.gate.limits.perHost = intervalOf(&bawn.Rate{Calls: 3, Per: time.Minute})
	w.gate.cfg.AddressRate = bawn.Rate{Calls: 3, Per: time.Minute}
	flood := func(source string) error {
		return w.gate.Flood(context.Background(), &bawn.Call{ID: "x", Trigger: "http", Source: source})
	}
	for i, source := range []string{"2001:db8::1", "2001:db8::2:3:4:5", "2001:db8:0:0:ffff::", "2001:db8::9", "::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7", "::ffff:c000:207", "2001:db8:0:1::1", "192.0.2.8"} {
		err := flood(source)
		if wait := i == 3 || i == 7; (err != nil) != wait {
			t.Errorf("%d: %s: %v", i, source, err)
		}
		var e *bawn.Error
		if errors.As(err, &e) && (e.Code != bawn.CodeThrottled || e.RetryAfter <= 0 || e.RetryAfter > time.Minute) {
			t.Errorf("%+v", e)
		}
	}
	for range 10 { // the host itself, unless it was asked for
		if flood("127.0.0.1") != nil || flood("::1") != nil {
			t.Error("the host itself is held to the rate")
		}
	}
	w.gate.cfg.AddressRateAtHome = true
	for i := range 5 {
		if err := flood("127.0.0.1"); (err != nil) != (i >= 3) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// A million addresses take no more memory than the table has, and being many they
// get no more out of it than its places give.
func TestH1AMillionAddresses(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	table := newTable(floodSets)
	i := intervalOf(&bawn.Rate{Calls: 2, Per: time.Hour})
	in := 0
	const addresses = 1_000_000
	for round := range 3 {
		for n := range addresses {
			a := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
			if _, wait := table.take(table.address(a.String()), i, int64(round)); wait == 0 {
				in++
			}
		}
	}
	if grown := heap() - before; grown > 2<<20 {
		t.Errorf("a million addresses take %d bytes", grown)
	}
	// Each place gives two calls, and each may be taken over by another one each
	// time a call was given: no more.
	if most := 2 * ways * floodSets; in > most {
		t.Errorf("%d calls got in, want at most %d", in, most)
	}
	if in < addresses/50 {
		t.Errorf("only %d calls got in", in)
	}
	// Whoever is there keeps what he has used up while others come and go.
	table = newTable(1 << 4)
	mine := table.address("192.0.2.1")
	slow, quick := intervalOf(&bawn.Rate{Calls: 1, Per: time.Hour}), intervalOf(&bawn.Rate{Calls: 1, Per: time.Second})
	if _, wait := table.take(mine, slow, 0); wait != 0 {
		t.Fatal("the first call is refused")
	}
	for n := range 10_000 {
		table.take(table.address(fmt.Sprint("10.0.", n/256, ".", n%256)), quick, int64(n))
	}
	if _, wait := table.take(mine, slow, int64(time.Minute)); wait == 0 {
		t.Error("others have pushed a bucket out, and it is full again")
	}
	runtime.KeepAlive(table)
}

// A flood is counted once, whether a trigger asks about it or the gate does.
func TestH1FloodIsCountedOnce(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "shop")
	w.gate.cfg.AddressRate = bawn.Rate{Calls: 1, Per: time.Minute}
	w.gate.limits.perHost = intervalOf(&w.gate.cfg.AddressRate)
	c := func() *bawn.Call {
		c := byName("shop", "")
		c.Source = "192.0.2.1"
		return c
	}
	check1(t, w.gate.Flood(context.Background(), c()))
	for i, ask := range []func() error{
		func() error { return w.gate.Flood(context.Background(), c()) },
		func() error { _, err := w.gate.Admit(context.Background(), c()); return err },
	} {
		wantCode(t, ask(), bawn.CodeThrottled)
		if n := w.gate.Refusals()["flood"]; n != uint64(i+1) {
			t.Errorf("%d: %d are counted", i, n)
		}
	}
}

// Who is refused by one limit has used nothing of another one, and who may not call
// at all uses nothing of what all share.
func TestH1RefusedCostsNothing(t *testing.T) {
	w := newWorld(t)
	v := w.limited(t, "shop", &bawn.Limits{Rates: []bawn.Rate{{Calls: 10, Per: time.Hour}, {Calls: 3, Per: time.Hour, By: bawn.ByCaller}}}, "GET /shop", "GET /open public")
	ctx := context.Background()
	call := func(bearer, path, source string) error {
		c := w.byRoute(t, "GET", path, bearer)
		c.Source = source
		a, err := w.gate.Admit(ctx, c)
		if err == nil {
			a.Settle()
		}
		return err
	}
	// Strangers are refused by the policy, and take nothing of the ten.
	for n := range 50 {
		err := call("", "/shop", fmt.Sprint("192.0.2.", n))
		wantCode(t, err, bawn.CodeUnauthenticated)
	}
	one, two := w.key(t, "main", bawn.RoleInvoker), w.key(t, "main", bawn.RoleInvoker)
	for n := range 20 {
		err := call(one, "/shop", "192.0.2.1")
		if n < 3 {
			check1(t, err)
			continue
		}
		wantCode(t, err, bawn.CodeThrottled)
	}
	for range 3 {
		check1(t, call(two, "/shop", "192.0.2.1"))
	}
	for n := range 4 { // each address is a caller of its own, and the ten are all
		check1(t, call("", "/open", fmt.Sprint("198.51.100.", n)))
	}
	wantCode(t, call("", "/open", "198.51.100.99"), bawn.CodeThrottled)
	// Whether it was refused or not, that is told.
	c := w.byRoute(t, "GET", "/shop", one)
	_, err := w.gate.Admit(ctx, c)
	wantCode(t, err, bawn.CodeThrottled)
	if want := (bawn.RateStatus{Name: "caller", Limit: 3, Window: time.Hour}); c.Rate.Name != want.Name || c.Rate.Limit != want.Limit || c.Rate.Window != want.Window || c.Rate.Reset <= 0 {
		t.Errorf("%+v", c.Rate)
	}
	// The flood left a few records, with how many there were.
	recs, left := w.records(t, func(r *bawn.Record) bool { return r.Control == "H1" }), 0
	for _, r := range recs {
		n := 0
		fmt.Sscan(r.Detail["leftOut"], &n)
		left += n
		if r.Outcome != "deny" || r.Function != "shop" || r.Version != v.Number || !strings.Contains(r.Detail["fix"], "ingress.limits.rate is ") {
			t.Errorf("%+v", r)
		}
	}
	if len(recs) == 0 || len(recs) > curbRecords {
		t.Errorf("%d records", len(recs))
	}
	w.now = w.now.Add(time.Second)
	_, err = w.gate.Admit(ctx, w.byRoute(t, "GET", "/shop", one))
	wantCode(t, err, bawn.CodeThrottled)
	recs = w.records(t, func(r *bawn.Record) bool { return r.Control == "H1" && r.Detail["leftOut"] != "" })
	if len(recs) != 1 || recs[0].Detail["leftOut"] != "16" {
		t.Errorf("%+v", recs)
	}
}

// A tenant's rate holds for all of its functions together, and for nobody else's.
func TestH1TenantRate(t *testing.T) {
	w := newWorld(t)
	w.gate.cfg.TenantRate = func(tenant string) int { return map[string]int{"main": 4}[tenant] }
	w.deploy(t, "main", "a", "GET /a public")
	w.deploy(t, "main", "b", "GET /b public")
	w.deploy(t, "acme", "c", "GET /c public")
	in := map[string]int{}
	for range 10 {
		for _, path := range []string{"/a", "/b", "/c"} {
			a, err := w.gate.Admit(context.Background(), w.byRoute(t, "GET", path, ""))
			if err == nil {
				a.Settle()
				in[path]++
			}
		}
	}
	if in["/a"]+in["/b"] != 4 || in["/c"] != 10 {
		t.Errorf("%v", in)
	}
}

// A route has a rate of its own beside the function's.
func TestH1RouteRate(t *testing.T) {
	w := newWorld(t)
	w.edit = func(v *bawn.Version) { v.Perimeter.Ingress.HTTP[0].Limits = []bawn.Rate{{Calls: 2, Per: time.Minute}} }
	w.deploy(t, "main", "shop", "GET /a public", "GET /b public")
	in := map[string]int{}
	for range 5 {
		for _, path := range []string{"/a", "/b"} {
			c := w.byRoute(t, "GET", path, "")
			if a, err := w.gate.Admit(context.Background(), c); err == nil {
				a.Settle()
				in[path]++
			} else if c.Rate.Name != "route" {
				t.Errorf("%+v", c.Rate)
			}
		}
	}
	if in["/a"] != 2 || in["/b"] != 5 {
		t.Errorf("%v", in)
	}
}

// records returns what was recorded.
func (w *world) records(t testing.TB, keep func(*bawn.Record) bool) (all []bawn.Record) {
	t.Helper()
	check1(t, w.log.Read(context.Background(), evidence.Query{Tenant: "main"}, func(r bawn.Record) error {
		if keep(&r) {
			all = append(all, r)
		}
		return nil
	}))
	return all
}

// What a limit costs a call that it lets in.
func BenchmarkLimits(b *testing.B) {
	w := newWorld(b)
	w.gate.cfg.Now = time.Now
	w.gate.limits.began = time.Now()
	v := w.limited(b, "shop", &bawn.Limits{Rates: []bawn.Rate{{Calls: 1e6, Per: time.Second / 100, By: bawn.ByCaller}, {Calls: 1e6, Per: time.Second / 100}}}, "GET /shop public")
	c := w.byRoute(b, "GET", "/shop", "")
	a := &Admission{gate: w.gate, Version: v, public: v.Perimeter.Ingress.HTTP[0].Access.Public}
	w.gate.limits.perHost = intervalOf(&bawn.Rate{Calls: 1e6, Per: time.Second / 100})
	ctx := context.Background()
	b.Run("flood", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.gate.Flood(ctx, c)
		}
	})
	check1(b, w.gate.checkBreaker(ctx, c, a)) // finds what is counted for the function
	b.Run("rates", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.gate.checkRate(ctx, c, a)
		}
	})
}
