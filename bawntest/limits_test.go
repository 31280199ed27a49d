package bawntest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/node"
)

// TestH1Flood floods a node from one address. What gets in is what the rate gives
// in the time that it took, to two per cent, and the control API answers meanwhile.
// Nothing of it starts a sandbox.
func TestH1Flood(t *testing.T) {
	rate := bawn.Rate{Calls: 200, Per: time.Second, Burst: 100}
	n := NewNode(t, func(c *node.Config) { c.AddressRate, c.AddressRateAtHome = rate, true })
	if _, err := n.Doctor(t.Context()); err != nil { // calls are served now
		t.Fatal(err)
	}
	var in, out atomic.Int64
	var wg sync.WaitGroup
	var stop atomic.Bool
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for !stop.Load() {
				res, err := n.HTTP.Get(n.Public() + "/nothing")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				h := res.Header
				switch {
				case res.StatusCode == http.StatusNotFound:
					in.Add(1)
				case res.StatusCode == http.StatusTooManyRequests && h.Get("Retry-After") != "" &&
					strings.HasPrefix(h.Get("RateLimit"), `"flood";r=0;t=`) && h.Get("RateLimit-Policy") == `"flood";q=200;w=1`:
					out.Add(1)
				default:
					t.Errorf("%d, %v", res.StatusCode, h)
					return
				}
			}
		})
	}
	for range 3 {
		time.Sleep(time.Second)
		if _, err := n.Status(t.Context()); err != nil {
			t.Errorf("the control API does not answer: %v", err)
		}
	}
	stop.Store(true)
	wg.Wait()
	took := time.Since(began)
	want := float64(rate.Burst) + float64(rate.Calls)*took.Seconds()
	if out.Load() == 0 {
		t.Skip("this host did not make more calls than the rate lets in")
	}
	if got := float64(in.Load()); got > want*1.02 || out.Load() > in.Load() && got < want*0.98 {
		t.Errorf("%v calls got in within %s, want %v ± 2 %%; %d were refused", got, took, want, out.Load())
	}
	recs := n.records(func(r *bawn.Record) bool { return r.Control == "H1" })
	if len(recs) == 0 || len(recs) > 3*(int(took.Seconds())+2) {
		t.Errorf("%d refusals became %d records", out.Load(), len(recs))
	}
}
