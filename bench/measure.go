package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// sizes are of the files that are delivered.
func (b *bench) sizes() error {
	st, err := os.Stat(b.bawn)
	if err != nil {
		return err
	}
	b.value("size of bawn", "MB", float64(st.Size())/1e6, atMost(60), "")
	helper := filepath.Join(filepath.Dir(filepath.Dir(b.bawn)), "internal/sandbox/linux/helper/bawn-sandbox")
	if st, err = os.Stat(helper); err != nil {
		return err
	}
	b.value("size of bawn-sandbox", "MB", float64(st.Size())/1e6, atMost(4), "embedded in bawn")
	return nil
}

// ready is from exec to the first answer that says ready, on an empty folder.
func (b *bench) ready() error {
	var bawn, base []float64
	for i := range b.rounds {
		n, err := b.startNode(filepath.Join(b.dir, fmt.Sprint("ready", i)))
		if err != nil {
			return err
		}
		bawn = append(bawn, ms(n.took))
		n.stop()
		begin := time.Now()
		a, err := b.startBaseline("-serve", "bare")
		if err != nil {
			return err
		}
		res, err := http.Get(a.URL)
		if err != nil {
			return err
		}
		res.Body.Close()
		base = append(base, ms(time.Since(begin)))
	}
	b.compare("ready on an empty folder", "ms", "a net/http server, exec to first answer", bawn, base, atMost(30),
		"certificate authority, store and keys are made meanwhile")
	return nil
}

// samples is how many calls of a kind one round makes.
const samples = 20

// coldRound alternates calls of a single-use function with starts of its bare
// interpreter, at rest between, and returns the medians in milliseconds.
func coldRound(t *target, i interpreter, before func() error) (call, start float64, err error) {
	c, err := t.dial()
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	var calls, starts []float64
	for range samples {
		if before != nil {
			if err := before(); err != nil {
				return 0, 0, err
			}
		}
		d, err := c.call()
		if err != nil {
			return 0, 0, err
		}
		calls = append(calls, ms(d))
		time.Sleep(60 * time.Millisecond) // the pool refills; it must not be timed with the interpreter
		if d, err = i.start(); err != nil {
			return 0, 0, err
		}
		starts = append(starts, ms(d))
		time.Sleep(20 * time.Millisecond)
	}
	return median(calls), median(starts), nil
}

// settle waits until a pool that was just started is full.
func settle() { time.Sleep(1500 * time.Millisecond) }

// cold is a call whose sandbox has never run user code, with warm ones present.
func (b *bench) cold() error {
	n, err := b.startNode(filepath.Join(b.dir, "cold"))
	if err != nil {
		return err
	}
	python, js, err := n.interpreters()
	if err != nil {
		return err
	}
	for _, i := range []interpreter{python, js} {
		f := function{name: "cold-" + i.runtime.Family(), runtime: i.runtime, reuse: "never"}
		if err := n.deploy(f); err != nil {
			return err
		}
		t, err := n.target(f.name)
		if err != nil {
			return err
		}
		settle()
		var calls, starts []float64
		for range b.rounds {
			call, start, err := coldRound(t, i, nil)
			if err != nil {
				return err
			}
			calls, starts = append(calls, call), append(starts, start)
		}
		b.compare("cold call, "+i.runtime.Family()+", warm pool", "ms", i.String(), calls, starts, atMost(0.1), "")
	}
	return nil
}

// empty is a cold call that finds no warm sandbox.
func (b *bench) empty() error {
	var args []string
	note := "the pool is off"
	help, _ := exec.Command(b.bawn, "up", "--help").CombinedOutput()
	pool := strings.Contains(string(help), "--warm")
	if pool {
		args = []string{"--warm", "-1"}
	} else {
		note = "the pool is emptied by calls at the same moment, so the call competes with what they cost"
	}
	n, err := b.startNode(filepath.Join(b.dir, "empty"), args...)
	if err != nil {
		return err
	}
	python, js, err := n.interpreters()
	if err != nil {
		return err
	}
	for _, i := range []interpreter{python, js} {
		f := function{name: "empty-" + i.runtime.Family(), runtime: i.runtime, reuse: "never"}
		if err := n.deploy(f); err != nil {
			return err
		}
		t, err := n.target(f.name)
		if err != nil {
			return err
		}
		var drain func() error
		if !pool {
			conns := make([]*conn, 16)
			for k := range conns {
				if conns[k], err = t.dial(); err != nil {
					return err
				}
				defer conns[k].close()
			}
			drain = func() error {
				time.Sleep(300 * time.Millisecond)
				var wg sync.WaitGroup
				errs := make([]error, len(conns))
				for k, c := range conns {
					wg.Go(func() { _, errs[k] = c.call() })
				}
				wg.Wait()
				for _, err := range errs {
					if err != nil {
						return err
					}
				}
				return nil
			}
		}
		settle()
		var calls, starts []float64
		for range b.rounds {
			call, start, err := coldRound(t, i, drain)
			if err != nil {
				return err
			}
			calls, starts = append(calls, call), append(starts, start)
		}
		b.compare("cold call, "+i.runtime.Family()+", pool empty", "ms", i.String(), calls, starts, atMost(1.5), note)
	}
	return nil
}

// never is reuse: never under a steady and under a hard load.
func (b *bench) never() error {
	n, err := b.startNode(filepath.Join(b.dir, "never"))
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	if err := n.deploy(function{name: "never", runtime: python.runtime, reuse: "never"}); err != nil {
		return err
	}
	t, err := n.target("never")
	if err != nil {
		return err
	}
	settle()
	var steady, single, rate, loop []float64
	for range b.rounds {
		cold, _, err := coldRound(t, python, nil)
		if err != nil {
			return err
		}
		single = append(single, cold)
		at20, err := paced(t, 50*time.Millisecond, 60)
		if err != nil {
			return err
		}
		steady = append(steady, median(at20))
		settle()
		_, r, err := t.loop(4, 3*time.Second)
		if err != nil {
			return err
		}
		rate = append(rate, r)
		time.Sleep(time.Second)
		l, err := python.rate(4, 3*time.Second)
		if err != nil {
			return err
		}
		loop = append(loop, l)
		settle()
	}
	b.compare("reuse: never, 20 calls a second", "ms", "the same call at rest", steady, single, atMost(2), "")
	b.compare("reuse: never, 4 connections", "/s", python.String()+" in a loop, 4 at a time", rate, loop, atLeast(0.5), "")
	return nil
}

// paced makes count calls, one each interval, whether or not the one before has
// been answered in time, and returns their milliseconds.
func paced(t *target, interval time.Duration, count int) ([]float64, error) {
	const lanes = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var each []float64
	var failed error
	begin := time.Now()
	for lane := range lanes {
		c, err := t.dial()
		if err != nil {
			return nil, err
		}
		defer c.close()
		wg.Go(func() {
			for k := lane; k < count; k += lanes {
				due := begin.Add(time.Duration(k+1) * interval)
				time.Sleep(time.Until(due))
				_, err := c.call()
				mu.Lock()
				if err != nil {
					failed = err
				}
				each = append(each, ms(time.Since(due))) // lateness counts
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return each, failed
}

// rate runs the interpreter over and over, width at a time.
func (i interpreter) rate(width int, d time.Duration) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	var failed error
	begin := time.Now()
	for range width {
		wg.Go(func() {
			n := 0
			var err error
			for time.Since(begin) < d && err == nil {
				_, err = i.start()
				n++
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return float64(total) / time.Since(begin).Seconds(), failed
}

// warm is a call of an instance that is there, against a reverse proxy.
func (b *bench) warm() error {
	n, err := b.startNode(filepath.Join(b.dir, "warm"))
	if err != nil {
		return err
	}
	python, js, err := n.interpreters()
	if err != nil {
		return err
	}
	proxy, err := b.startProxy()
	if err != nil {
		return err
	}
	for _, i := range []interpreter{python, js} {
		f := function{name: "warm-" + i.runtime.Family(), runtime: i.runtime, reuse: map[string]any{"maxAge": "1h"}}
		if err := n.deploy(f); err != nil {
			return err
		}
		t, err := n.target(f.name)
		if err != nil {
			return err
		}
		settle()
		if _, _, err := t.loop(32, time.Second); err != nil { // instances for all connections
			return err
		}
		var p50, base50, rate, baseRate []float64
		for range b.rounds {
			for _, at := range []struct {
				t         *target
				p50, rate *[]float64
			}{{proxy, &base50, &baseRate}, {t, &p50, &rate}} {
				each, _, err := at.t.loop(1, time.Second)
				if err != nil {
					return err
				}
				*at.p50 = append(*at.p50, median(each))
				_, r, err := at.t.loop(32, 1500*time.Millisecond)
				if err != nil {
					return err
				}
				*at.rate = append(*at.rate, r)
			}
		}
		const against = "httputil.ReverseProxy with TLS before a bare net/http server"
		b.compare("warm call, "+i.runtime.Family()+", 1 connection", "ms", against, p50, base50, atMost(1.1), "")
		b.compare("warm calls, "+i.runtime.Family()+", 32 connections", "/s", against, rate, baseRate, atLeast(1), "")
	}
	return nil
}

// refused is a call without a key to a route that asks for one.
func (b *bench) refused() error {
	n, err := b.startNode(filepath.Join(b.dir, "refused"))
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	if err := n.deploy(function{name: "refused", runtime: python.runtime, reuse: "never"}); err != nil {
		return err
	}
	settle()
	before := processes(n.cmd.Process.Pid)
	t, err := newTarget(n.ctx.Public, "/refused", n.ctx.CA, "", http.StatusUnauthorized)
	if err != nil {
		return err
	}
	each, _, err := t.loop(4, time.Second)
	if err != nil {
		return err
	}
	b.value("sandboxes that refused calls cost", "", float64(processes(n.cmd.Process.Pid)-before), atMost(0),
		fmt.Sprintf("%d calls without a key, %s ms each; each one is recorded", len(each), number(median(each))))
	return nil
}

// atRest is how many functions the measurement of the same name deploys.
const atRest = 1000

// rest is what functions cost that nobody calls.
func (b *bench) rest() error {
	dir := filepath.Join(b.dir, "rest")
	look := func() (memory float64, procs int, took time.Duration, err error) {
		n, err := b.startNode(dir)
		if err != nil {
			return 0, 0, 0, err
		}
		defer n.stop()
		time.Sleep(2 * time.Second)
		memory, err = resident(n.cmd.Process.Pid)
		return memory, processes(n.cmd.Process.Pid), n.took, err
	}
	median3 := func() (memory float64, procs int, took float64, err error) {
		var m, d []float64
		for range 3 {
			mem, p, t, err := look()
			if err != nil {
				return 0, 0, 0, err
			}
			m, d, procs = append(m, mem), append(d, ms(t)), p
		}
		return median(m), procs, median(d), nil
	}
	n, err := b.startNode(dir)
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	if err := n.deploy(function{name: "rest-0", runtime: python.runtime, reuse: "never"}); err != nil {
		return err
	}
	n.stop()
	oneMem, oneProcs, _, err := median3()
	if err != nil {
		return err
	}
	if n, err = b.startNode(dir); err != nil {
		return err
	}
	for i := 1; i < atRest; i++ {
		if err := n.deploy(function{name: fmt.Sprint("rest-", i), runtime: python.runtime, reuse: "never"}); err != nil {
			return err
		}
	}
	n.stop()
	mem, procs, took, err := median3()
	if err != nil {
		return err
	}
	b.value("memory of one function at rest", "KB", (mem-oneMem)/(atRest-1)/1000, atMost(20),
		fmt.Sprintf("the server has %s MB with %d functions, %s MB with one", number(mem/1e6), atRest, number(oneMem/1e6)))
	b.value("processes of 999 functions at rest", "", float64(procs-oneProcs), atMost(0), "")
	b.value("start with 1000 functions", "s", took/1000, atMost(2), "exec to ready")
	return nil
}
