package interior

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bawn.dev/bawn"
)

// by makes a call by who: "key:x", or an address.
func by(who, event string) *bawn.Call {
	c := newCall(event)
	if name, ok := strings.CutPrefix(who, "key:"); ok {
		c.Principal = bawn.Principal{Kind: bawn.PrincipalKey, ID: name, Tenant: "main"}
	} else {
		c.Principal, c.Source = bawn.Anonymous(), who
	}
	return c
}

// sleeper answers after as many milliseconds as the event says.
func sleeper(_ *fakeBox, event []byte) fakeAnswer {
	var ms int
	fmt.Sscan(string(event), &ms)
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return fakeAnswer{body: `"ok"`}
}

// One caller, or many without a credential, take every slot that they get, again
// and again, with calls that take longer than any call waits. Whoever else calls
// waits once at most, while what they hold from before runs out.
func TestH2OneCannotStarveOthers(t *testing.T) {
	for _, test := range []struct {
		name  string
		never bool
		flood func(n int) string
	}{
		{"one caller", false, func(int) string { return "key:a" }},
		{"one caller, never reused", true, func(int) string { return "key:a" }},
		{"one address", false, func(int) string { return "192.0.2.1" }},
		{"one host of version 6", false, func(n int) string { return fmt.Sprintf("2001:db8:0:1::%x", n) }},
		{"many addresses", false, func(n int) string { return fmt.Sprintf("10.0.%d.%d", n/256%256, n%256) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{handle: sleeper}
				p, _ := newPool(t, d, nil)
				v := version(func(v *bawn.Version) {
					v.Perimeter.Interior.Timeout = time.Minute
					v.Perimeter.Ingress.Limits = &bawn.Limits{Concurrency: 8}
					if test.never {
						v.Perimeter.Interior.Reuse = bawn.Reuse{}
					}
				})
				var stop atomic.Bool
				var n, served atomic.Int64
				var wg sync.WaitGroup
				defer wg.Wait()
				defer stop.Store(true)
				for range 40 {
					wg.Go(func() {
						for !stop.Load() {
							if _, err := p.Run(context.Background(), v, by(test.flood(int(n.Add(1))), "20000")); err == nil {
								served.Add(1)
							} else if bawn.ErrorCode(err) != bawn.CodeThrottled {
								t.Errorf("%v", err)
								stop.Store(true)
							} else {
								time.Sleep(10 * time.Millisecond)
							}
						}
					})
				}
				time.Sleep(time.Second)
				if got := p.Stats().Instances["busy"]; got != 8 {
					t.Fatalf("%d calls run, want 8: nobody else has called", got)
				}
				first := time.Now()
				for {
					if _, err := p.Run(context.Background(), v, by("key:good", "1")); err == nil {
						break
					} else if bawn.ErrorCode(err) != bawn.CodeThrottled {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				if took := time.Since(first); took > 21*time.Second {
					t.Fatalf("the first call got in after %s", took)
				}
				for range 50 {
					began := time.Now()
					if _, err := p.Run(context.Background(), v, by("key:good", "1")); err != nil {
						t.Fatalf("refused: %v", err)
					}
					if took := time.Since(began); took > time.Second {
						t.Fatalf("a call waited for %s", took)
					}
					time.Sleep(700 * time.Millisecond)
				}
				if got := p.Stats().Instances["busy"]; got != 7 {
					t.Errorf("%d calls run, want all but the one that is kept free", got)
				}
				stop.Store(true)
				wg.Wait()
				if served.Load() < 14 {
					t.Errorf("of the flood %d calls were served", served.Load())
				}
				for _, fn := range p.all() {
					fn.mu.Lock()
					if len(fn.tallies) > 0 || fn.strangers != 0 || fn.bytes != 0 {
						t.Errorf("left behind: %v, %d, %d", fn.tallies, fn.strangers, fn.bytes)
					}
					fn.mu.Unlock()
				}
			})
		})
	}
}

// Calls wait in turns, caller by caller, and a full queue has room for who has
// fewer in it.
func TestH2QueueIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: sleeper}
		p, _ := newPool(t, d, func(c *Config) { c.QueueLength = 20; c.QueueWait = time.Minute })
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		var wg sync.WaitGroup
		var refused atomic.Int64
		begin := func(who string, n int) (last *atomic.Int64) {
			last = &atomic.Int64{}
			for range n {
				wg.Go(func() {
					if _, err := p.Run(context.Background(), v, by(who, "100")); err != nil {
						refused.Add(1)
						return
					}
					last.Store(time.Now().UnixNano())
				})
			}
			synctest.Wait()
			return last
		}
		began := time.Now()
		begin("key:a", 21) // one runs, and the queue is full
		b := begin("key:b", 3)
		begin("192.0.2.1", 1)
		c := begin("key:c", 1)
		wg.Wait()
		for _, l := range []*atomic.Int64{b, c} {
			if l.Load() == 0 {
				t.Fatal("who came later was refused")
			}
			if took := time.Unix(0, l.Load()).Sub(began); took > 1200*time.Millisecond {
				t.Errorf("who came later was served after %s, behind those who were there", took)
			}
		}
		if n := refused.Load(); n != 5 {
			t.Errorf("%d calls were refused, want those that there is no room for", n)
		}
	})
}

// chain is the call of v's function that runs as invocation parent.
func chain(v *bawn.Version, parent *bawn.Call, event string) *bawn.Call {
	c := newCall(event)
	c.Caller, c.Parent, c.Origin = v, parent.ID, parent.From()
	c.Principal = bawn.Principal{Kind: bawn.PrincipalFunction, ID: v.Function + "@1", Tenant: v.Tenant}
	return c
}

// Functions that call each other in a circle, with no slot left in it, are told so
// at once.
func TestH2CirclesDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newPool(t, &fakeDriver{handle: sleeper}, nil)
		fn := func(name string, slots int) *bawn.Version {
			return version(func(v *bawn.Version) {
				v.Function, v.Perimeter.Interior.Concurrency, v.Perimeter.Interior.Timeout = name, slots, time.Minute
			})
		}
		a, b, c, wide := fn("a", 1), fn("b", 1), fn("c", 1), fn("wide", 3)
		hold := func(v *bawn.Version, call *bawn.Call) *bawn.Call {
			go p.Run(context.Background(), v, call)
			synctest.Wait()
			time.Sleep(10 * time.Millisecond) // it has its instance
			return call
		}
		refusedAtOnce := func(what string, v *bawn.Version, call *bawn.Call) {
			t.Helper()
			began := time.Now()
			_, err := p.Run(context.Background(), v, call)
			wantCode(t, err, bawn.CodeThrottled)
			if took := time.Since(began); took > 100*time.Millisecond || !strings.Contains(err.Error(), "held by a call that waits for this one") {
				t.Errorf("%s: after %s: %v", what, took, err)
			}
		}
		// a calls a.
		first := hold(a, by("key:x", "20000"))
		refusedAtOnce("itself", a, chain(a, first, "1"))
		// a calls b, which calls a.
		second := hold(b, chain(a, first, "20000"))
		refusedAtOnce("by way of another", a, chain(b, second, "1"))
		// c calls a, and waits; that is no circle, until a's own chain wants c.
		other := hold(c, by("key:y", "20000"))
		waits := make(chan error)
		go func() {
			_, err := p.Run(context.Background(), a, chain(c, other, "1"))
			waits <- err
		}()
		synctest.Wait()
		refusedAtOnce("two chains", c, chain(b, second, "1"))
		if err := <-waits; bawn.ErrorCode(err) != bawn.CodeThrottled || strings.Contains(err.Error(), "waits for this one") {
			t.Errorf("who waits for no circle: %v", err)
		}
		// While a slot is left nobody is refused.
		time.Sleep(30 * time.Second)
		top := hold(wide, by("key:x", "3000"))
		next := hold(wide, chain(wide, top, "2000"))
		if _, err := p.Run(context.Background(), wide, chain(wide, next, "1")); err != nil {
			t.Error(err)
		}
		time.Sleep(30 * time.Second)
		for _, f := range p.all() {
			for _, fl := range f.fleets {
				for in := range fl.instances {
					if len(in.waits) > 0 {
						t.Errorf("%s still waits", fl.version.Function)
					}
				}
			}
		}
	})
}

// One function's flood leaves the others room on the node.
func TestH8NodeHasRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newPool(t, &fakeDriver{handle: sleeper}, func(c *Config) { c.MaxSandboxes, c.Warm = 32, -1 })
		big := version(func(v *bawn.Version) {
			v.Perimeter.Interior.Concurrency, v.Perimeter.Interior.Timeout, v.Perimeter.Interior.Reuse = 1000, time.Minute, bawn.Reuse{}
		})
		var wg sync.WaitGroup
		for n := range 100 {
			wg.Go(func() { p.Run(context.Background(), big, by(fmt.Sprint("10.0.0.", n), "20000")) })
		}
		time.Sleep(time.Second)
		if n := p.Stats().Sandboxes; n < 12 || n > 16 {
			t.Errorf("it has %d of 32 sandboxes", n)
		}
		for n := range 5 {
			small := version(func(v *bawn.Version) { v.Function = fmt.Sprint("small-", n) })
			if _, err := p.Run(context.Background(), small, by("key:x", "1")); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
	})
}

// However many call a function at once that has no instance, few are made.
func TestH8HerdOfColdCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{boot: 30 * time.Millisecond, load: 20 * time.Millisecond, handle: sleeper}
		p, _ := newPool(t, d, func(c *Config) { c.Warm = -1 })
		v := version(nil)
		var wg sync.WaitGroup
		for n := range 200 {
			wg.Go(func() {
				if _, err := p.Run(context.Background(), v, by(fmt.Sprint("key:", n), "0")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(d.all()); n > 8 {
			t.Errorf("200 calls at once made %d sandboxes", n)
		}
	})
}

// What waits for one function leaves room for what waits for others.
func TestH8QueueBomb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newPool(t, &fakeDriver{handle: sleeper}, nil)
		fn := func(name string) *bawn.Version {
			return version(func(v *bawn.Version) { v.Function, v.Perimeter.Interior.Concurrency = name, 1 })
		}
		bomb, other := fn("bomb"), fn("other")
		large := strings.Repeat(" ", 6<<20)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { p.Run(context.Background(), bomb, by("key:a", "2900"+large)) })
		}
		synctest.Wait()
		if n := p.queuedBytes.Load(); n > maxQueueBytes/2 || n < maxQueueBytes/4 {
			t.Errorf("%d bytes wait for one function", n)
		}
		for range 5 {
			wg.Go(func() {
				if _, err := p.Run(context.Background(), other, by("key:b", "10"+large)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}
