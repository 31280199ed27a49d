package interior

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// TestTry: what is tried runs in an instance of its own, which is gone
// afterwards, and says what was stopped.
func TestTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(b *fakeBox, event []byte) fakeAnswer {
			if string(event) == `"attack"` {
				b.attempts <- sandbox.Attempt{Time: time.Now(), Syscall: "execve", Control: "B7", Errno: "EPERM"}
			}
			return fakeAnswer{body: `"` + b.id + `"`}
		}}
		p, _ := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		busy, err := p.Run(t.Context(), v, newCall(`1`))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // beside the one that is idle, whatever the concurrency
			res, stopped, err := p.Try(t.Context(), v, newCall(`"attack"`))
			if err != nil || res.FunctionError != "" {
				t.Fatal(res, err)
			}
			if string(res.Payload) == string(busy.Payload) {
				t.Error("it ran in an instance that serves others")
			}
			if len(stopped) != 1 || stopped[0].Action != "execve" || stopped[0].Control != "B7" {
				t.Errorf("stopped: %+v", stopped)
			}
		}
		if res, stopped, err := p.Try(t.Context(), v, newCall(`1`)); err != nil || len(stopped) > 0 || res.FunctionError != "" {
			t.Error(res, stopped, err)
		}
		if list := p.Instances(v.Ref()); len(list) != 1 || list[0].Calls != 1 {
			t.Errorf("what was tried is left, or counted: %+v", list)
		}
		again, err := p.Run(t.Context(), v, newCall(`1`))
		if err != nil || string(again.Payload) != string(busy.Payload) {
			t.Error("the instance that serves was touched", err)
		}
	})
}

// TestTryLimits: an end by the deadline or for want of memory is something that
// was stopped, and whoever waits no longer ends the call.
func TestTryLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(b *fakeBox, event []byte) fakeAnswer {
			switch string(event) {
			case `"memory"`:
				return fakeAnswer{exit: &sandbox.Exit{Signal: "killed", OOM: true}}
			case `"exit"`:
				return fakeAnswer{exit: &sandbox.Exit{Code: 3}}
			case `"stream"`:
				return fakeAnswer{stream: []string{"a", "b"}}
			}
			return fakeAnswer{hang: true}
		}}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		for event, action := range map[string]string{`"memory"`: "memory", `"exit"`: "", `"hang"`: "timeout"} {
			res, stopped, err := p.Try(t.Context(), v, newCall(event))
			if err != nil || res.FunctionError == "" {
				t.Fatal(event, res, err)
			}
			if got := len(stopped); (action != "") != (got == 1) || got == 1 && stopped[0].Action != action {
				t.Errorf("%s: stopped %+v, want %q", event, stopped, action)
			}
		}
		res, _, err := p.Try(t.Context(), v, newCall(`"stream"`))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Stream); err != nil || string(b) != "ab" {
			t.Errorf("a stream was not read: %q %v", b, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, _, err := p.Try(ctx, v, newCall(`"hang"`)); err == nil || !strings.Contains(err.Error(), "over") || time.Since(began) > 5*time.Second {
			t.Error("the call outlived its caller:", err, time.Since(began))
		}
		if n := d.alive(); n > p.cfg.Warm {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// An instance that a function is tried in counts against its tenant's quota.
func TestTryQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, e []byte) fakeAnswer {
			if string(e) == "slow" {
				time.Sleep(time.Second)
			}
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, func(c *Config) {
			c.Quota = func(string) (bawn.Quota, bool) { return bawn.Quota{Instances: 1}, true }
		})
		run(t, p, version(nil), "{}") // what is idle makes room
		other := version(func(v *bawn.Version) { v.Function = "other" })
		if r, _, err := p.Try(t.Context(), other, newCall("{}")); err != nil || r.FunctionError != "" {
			t.Fatalf("got %+v, %v", r, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { run(t, p, version(nil), "slow") })
		time.Sleep(time.Millisecond)
		_, _, err := p.Try(t.Context(), other, newCall("{}"))
		wantCode(t, err, bawn.CodeThrottled)
		wg.Wait()
		time.Sleep(2 * defaultIdleAfter)
		p.tenants.mu.Lock()
		defer p.tenants.mu.Unlock()
		for name, u := range p.tenants.use {
			if u.instances != 0 || u.memory != 0 {
				t.Errorf("%s still takes %+v", name, *u)
			}
		}
	})
}
