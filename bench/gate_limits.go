package main

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// refusals is what a call costs that is refused, against the answer of a bare
// handler over TLS. No refusal starts a sandbox.
func (b *bench) refusals() error {
	n, err := b.startNode(filepath.Join(b.dir, "refusals"))
	if err != nil {
		return err
	}
	flooded, err := b.startNode(filepath.Join(b.dir, "flooded"), "--address-rate", "1/d")
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	for _, on := range []*node{n, flooded} {
		if err := on.deploy(function{name: "refused", runtime: python.runtime, reuse: "never"}); err != nil {
			return err
		}
	}
	bare, err := b.startBaseline("-serve", "outside")
	if err != nil {
		return err
	}
	base, err := newTarget(bare.URL, "/", bare.CA, "", http.StatusOK)
	if err != nil {
		return err
	}
	settle()
	before := processes(n.cmd.Process.Pid) + processes(flooded.cmd.Process.Pid)
	kinds := []struct {
		what   string
		on     *node
		path   string
		status int
		most   float64 // of the bare answer
	}{
		{"429, one address too often", flooded, "/refused", http.StatusTooManyRequests, 2},
		{"401, no credential", n, "/refused", http.StatusUnauthorized, 3}, // asks the policy
		{"404, no such route", n, "/nothing/here", http.StatusNotFound, 2},
		{"400, a path of two meanings", n, "/a/../refused", http.StatusBadRequest, 2},
	}
	targets := make([]*target, len(kinds))
	for i, k := range kinds {
		if targets[i], err = newTarget(k.on.ctx.Public, k.path, k.on.ctx.CA, "", k.status); err != nil {
			return err
		}
	}
	// The first call of an address is within any rate.
	http1, err := newTarget(flooded.ctx.Public, "/refused", flooded.ctx.CA, "", http.StatusUnauthorized)
	if err != nil {
		return err
	}
	if c, err := http1.dial(); err == nil {
		c.call()
		c.close()
	}
	took := make([][]float64, len(kinds))
	var floor []float64
	for range b.rounds {
		each, _, err := base.loop(1, 400*time.Millisecond)
		if err != nil {
			return err
		}
		floor = append(floor, median(each))
		for i, t := range targets {
			if each, _, err = t.loop(1, 400*time.Millisecond); err != nil {
				return err
			}
			took[i] = append(took[i], median(each))
		}
	}
	for i, k := range kinds {
		b.compare("refused: "+k.what, "ms", "a bare handler over TLS", took[i], floor, atMost(k.most), "")
	}
	b.value("sandboxes that these refusals cost", "", float64(processes(n.cmd.Process.Pid)+processes(flooded.cmd.Process.Pid)-before), atMost(0), "")
	return nil
}

// overload is what of the calls is answered well when ten times as many callers
// come as are served at the peak.
func (b *bench) overload() error {
	n, err := b.startNode(filepath.Join(b.dir, "overload"))
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	if err := n.deploy(function{name: "overload", runtime: python.runtime, reuse: map[string]any{"maxAge": "1h"}}); err != nil {
		return err
	}
	t, err := n.target("overload")
	if err != nil {
		return err
	}
	settle()
	if _, _, err := t.loop(32, time.Second); err != nil {
		return err
	}
	var peak, over []float64
	var refused int64
	for range b.rounds {
		p, _, err := t.goodput(32, 2*time.Second)
		if err != nil {
			return err
		}
		o, r, err := t.goodput(320, 2*time.Second)
		if err != nil {
			return err
		}
		peak, over, refused = append(peak, p), append(over, o), refused+r
	}
	b.compare("goodput, 320 connections", "/s", "the same with 32", over, peak, atLeast(0.9), fmt.Sprintf("%d calls were refused", refused))
	return nil
}

// goodput calls over n connections for d, and returns how many a second were
// answered well and how many in all were refused.
func (t *target) goodput(n int, d time.Duration) (rate float64, refused int64, err error) {
	conns := make([]*conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.close()
		}
	}()
	for i := range n {
		of := *t // one address has a quarter of the node's connections
		of.from = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i/64))}
		c, err := of.dial()
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, c)
	}
	var good, bad atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			for time.Since(begin) < d {
				_, err := c.call()
				switch {
				case err == nil:
					good.Add(1)
				case strings.Contains(err.Error(), " answered "):
					bad.Add(1)
				default:
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(good.Load()) / time.Since(begin).Seconds(), bad.Load(), nil
}
