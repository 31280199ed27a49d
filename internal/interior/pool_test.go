package interior

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// A fakeDriver makes sandboxes whose program is a goroutine that speaks frames.
// It is for what the pool decides and when; what a sandbox is, the suite in
// sandboxtest tests with the real driver.
type fakeDriver struct {
	boot, load time.Duration
	cpu        time.Duration // of each call; 0: it cannot be known
	handle     func(b *fakeBox, event []byte) fakeAnswer
	loading    func(b *fakeBox) fakeAnswer // nil: it loads
	output     func() (*os.File, *os.File)
	missing    bool // the host lacks something
	broken     atomic.Bool
	freezeless atomic.Bool // Freeze fails

	mu      sync.Mutex
	boxes   []*fakeBox
	at      []time.Time // of each start
	booting int
	most    int // that booted at one time
}

// A fakeAnswer is what the program does: it answers, or ends.
type fakeAnswer struct {
	body   string
	err    bool
	exit   *sandbox.Exit
	stream []string
	raw    []byte
	hang   bool
}

type fakeBox struct {
	d          *fakeDriver
	id         string
	near, far  net.Conn
	out, print *os.File
	attempts   chan sandbox.Attempt
	done       chan struct{}
	frames     chan []byte // to far; a pipe has no buffer, a socket has
	once       sync.Once
	exit       sandbox.Exit

	mu       sync.Mutex
	is       fakeState
	attached *sandbox.Attachment
}

type fakeState struct {
	frozen                 bool
	freezes, thaws, served int
}

// state returns what was done with the sandbox.
func (b *fakeBox) state() fakeState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.is
}

func (d *fakeDriver) Probe() []bawn.Capability {
	return []bawn.Capability{{Name: "cgroups", Control: "B5", OK: !d.missing, Required: true, Fix: "mount them"}}
}
func (d *fakeDriver) Prepare(context.Context, sandbox.Image) error { return nil }
func (d *fakeDriver) Close() error                                 { return nil }

func (d *fakeDriver) Start(_ context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	if d.broken.Load() {
		return nil, errors.New("no user namespaces")
	}
	b := &fakeBox{d: d, id: s.ID, attempts: make(chan sandbox.Attempt, 8), done: make(chan struct{})}
	b.near, b.far = net.Pipe()
	if d.output != nil {
		b.out, b.print = d.output()
	} else {
		var err error
		if b.out, err = os.Open(os.DevNull); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	d.boxes = append(d.boxes, b)
	d.at = append(d.at, time.Now())
	d.booting++
	d.most = max(d.most, d.booting)
	d.mu.Unlock()
	b.frames = make(chan []byte, 64)
	go func() {
		for {
			select {
			case f := <-b.frames:
				b.far.Write(f)
			case <-b.done:
				return
			}
		}
	}()
	go b.program()
	return b, nil
}

// served returns how many instances have had a call.
func (d *fakeDriver) served() (n int) {
	for _, b := range d.all() {
		if b.state().served > 0 {
			n++
		}
	}
	return n
}

func (d *fakeDriver) all() []*fakeBox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*fakeBox(nil), d.boxes...)
}

// alive counts sandboxes that were not killed.
func (d *fakeDriver) alive() (n int) {
	for _, b := range d.all() {
		select {
		case <-b.done:
		default:
			n++
		}
	}
	return n
}

func (b *fakeBox) send(head, body string) {
	var h [8]byte
	binary.BigEndian.PutUint32(h[:], uint32(len(head)))
	binary.BigEndian.PutUint32(h[4:], uint32(len(body)))
	b.write(append(append(h[:], head...), body...))
}

func (b *fakeBox) write(p []byte) {
	select {
	case b.frames <- p:
	case <-b.done:
	}
}

func (b *fakeBox) program() {
	time.Sleep(b.d.boot)
	b.d.mu.Lock()
	b.d.booting--
	b.d.mu.Unlock()
	b.send(`{"type":"ready"}`, "")
	for {
		var h [8]byte
		if _, err := io.ReadFull(b.far, h[:]); err != nil {
			return
		}
		head := make([]byte, binary.BigEndian.Uint32(h[:]))
		io.ReadFull(b.far, head)
		body := make([]byte, binary.BigEndian.Uint32(h[4:]))
		io.ReadFull(b.far, body)
		var f struct{ Type, ID string }
		if err := json.Unmarshal(head, &f); err != nil {
			panic(err)
		}
		if f.Type == "load" {
			time.Sleep(b.d.load)
			a := fakeAnswer{}
			if b.d.loading != nil {
				a = b.d.loading(b)
			}
			switch {
			case a.hang:
				<-b.done
			case a.exit != nil:
				b.end(*a.exit)
			case a.err:
				b.send(`{"type":"failed"}`, a.body)
			default:
				b.send(`{"type":"loaded"}`, "")
			}
			continue
		}
		b.mu.Lock()
		b.is.served++
		b.mu.Unlock()
		a := fakeAnswer{body: `"ok"`}
		if b.d.handle != nil {
			a = b.d.handle(b, body)
		}
		id := `","id":"` + f.ID + `"}`
		switch {
		case a.hang:
			<-b.done
		case a.exit != nil:
			b.end(*a.exit)
		case a.raw != nil:
			b.write(a.raw)
		case a.err:
			b.send(`{"type":"error`+id, a.body)
		case a.stream != nil:
			b.send(`{"type":"stream","contentType":"text/plain","id":"`+f.ID+`"}`, "")
			for _, s := range a.stream {
				b.send(chunkHead, s)
			}
			b.send(`{"type":"end`+id, "")
		default:
			b.send(`{"type":"response`+id, a.body)
		}
	}
}

func (b *fakeBox) end(x sandbox.Exit) {
	b.once.Do(func() {
		b.exit = x
		b.far.Close()
		if b.print != nil {
			b.print.Close()
		}
		close(b.attempts)
		close(b.done)
	})
}

func (b *fakeBox) ID() string       { return b.id }
func (b *fakeBox) Conn() net.Conn   { return b.near }
func (b *fakeBox) Output() *os.File { return b.out }
func (b *fakeBox) Attach(_ context.Context, a sandbox.Attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.attached != nil {
		return errors.New("attached twice")
	}
	b.attached = &a
	return nil
}
func (b *fakeBox) Exec(context.Context, []string, []string) error { return errors.New("not parked") }
func (b *fakeBox) Open(context.Context, []sandbox.Port, []netip.Prefix) ([]*os.File, error) {
	return nil, errors.New("no network")
}
func (b *fakeBox) Freeze(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.d.freezeless.Load() {
		return context.DeadlineExceeded // the kernel has been asked, and may still do it
	}
	b.is.frozen = true
	b.is.freezes++
	return nil
}
func (b *fakeBox) Thaw(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.is.frozen = false
	b.is.thaws++
	return nil
}
func (b *fakeBox) CPU() (time.Duration, bool) {
	return time.Duration(b.state().served+1) * b.d.cpu, b.d.cpu > 0
}
func (b *fakeBox) Stats(context.Context) (sandbox.Stats, error) {
	return sandbox.Stats{Memory: 10 << 20, MaxMemory: 20 << 20}, nil
}
func (b *fakeBox) Inspect(context.Context) ([]bawn.Fact, error) {
	return []bawn.Fact{{Control: "B3", Name: "capabilities", Value: "0", OK: true}}, nil
}
func (b *fakeBox) Attempts() <-chan sandbox.Attempt { return b.attempts }
func (b *fakeBox) Kill()                            { b.end(sandbox.Exit{Code: -1, Signal: "killed"}) }
func (b *fakeBox) Done() <-chan struct{}            { return b.done }
func (b *fakeBox) Exit() sandbox.Exit               { return b.exit }

// A kept is what the pool told the evidence.
type kept struct {
	mu      sync.Mutex
	lines   []bawn.LogLine
	records []bawn.Record
}

func (k *kept) log(l bawn.LogLine, _ time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lines = append(k.lines, l)
}

func (k *kept) record(_ context.Context, r bawn.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records = append(k.records, r)
	return nil
}

// text returns the log as one line each: invocation, text.
func (k *kept) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	for _, l := range k.lines {
		fmt.Fprintf(&b, "%s|%s\n", l.Invocation, l.Text)
	}
	return b.String()
}

// newPool returns a pool over d that is closed with the test.
func newPool(t testing.TB, d *fakeDriver, change func(*Config)) (*Pool, *kept) {
	t.Helper()
	k := &kept{}
	cfg := Config{
		Driver: d,
		Definitions: []Definition{
			{Runtime: bawn.Python311, Image: sandbox.Image{Name: "python3.11"}, Args: []string{"python3"}},
			{Runtime: bawn.NodeJS20, Missing: "apt-get install nodejs"},
		},
		Code:      func(context.Context, *bawn.Version) ([]string, error) { return []string{"/code"}, nil },
		Record:    k.record,
		Log:       k.log,
		MemoryLow: func() bool { return false },
		Saturated: func() bool { return false },
	}
	if change != nil {
		change(&cfg)
	}
	p := NewPool(cfg)
	t.Cleanup(p.Close)
	return p, k
}

// version returns a version whose instances serve for ever.
func version(change func(*bawn.Version)) *bawn.Version {
	v := &bawn.Version{
		Tenant: "main", Function: "hello", Number: 1, Digest: "sha256:1", Runtime: bawn.Python311,
		Perimeter: bawn.Perimeter{Interior: bawn.Interior{
			Memory: 256 << 20, CPU: 1, PIDs: 64, Tmp: 1 << 20, Timeout: 3 * time.Second, Concurrency: 50,
			Reuse: bawn.Reuse{MaxAge: 24 * time.Hour},
		}},
	}
	if change != nil {
		change(v)
	}
	return v
}

func newCall(event string) *bawn.Call { return &bawn.Call{ID: bawn.NewID(), Event: []byte(event)} }

// run makes one call that must have an answer.
func run(t testing.TB, p *Pool, v *bawn.Version, event string) *bawn.Result {
	t.Helper()
	r, err := p.Run(context.Background(), v, newCall(event))
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	return r
}

func wantCode(t testing.TB, err error, code bawn.Code) {
	t.Helper()
	if bawn.ErrorCode(err) != code {
		t.Fatalf("error is %v, want code %q", err, code)
	}
}

func TestWarmPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{boot: 20 * time.Millisecond}
		p, _ := newPool(t, d, nil)
		time.Sleep(time.Minute)
		if n := len(d.all()); n != 0 {
			t.Fatalf("%d sandboxes for a runtime without functions", n)
		}
		p.Expect(map[bawn.Runtime]int{bawn.Python311: 1, bawn.NodeJS20: 1})
		time.Sleep(time.Second)
		if got := p.Stats().Warm[bawn.Python311]; got != defaultWarm {
			t.Fatalf("%d warm sandboxes, want %d", got, defaultWarm)
		}
		d.mu.Lock()
		if d.most != 1 {
			t.Errorf("%d booted at one time, want 1", d.most)
		}
		d.mu.Unlock()

		// A cold call takes one; the refill keeps away from it.
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Reuse = bawn.Reuse{} })
		for range 3 {
			run(t, p, v, "{}")
		}
		ended := time.Now()
		synctest.Wait()
		if n := len(d.all()); n != defaultWarm {
			t.Errorf("%d sandboxes made, want the %d of before", n, defaultWarm)
		}
		time.Sleep(time.Second)
		d.mu.Lock()
		got := d.at[defaultWarm].Sub(ended)
		d.mu.Unlock()
		if got < refillDelay {
			t.Errorf("the refill began %v after the call, want %v at least", got, refillDelay)
		}
		if got := p.Stats(); got.Warm[bawn.Python311] != defaultWarm || got.Misses != 0 || got.Cold != 3 {
			t.Errorf("stats %+v", got)
		}

		// With no function left, they go.
		p.Expect(nil)
		time.Sleep(time.Second)
		if n := d.alive(); n != 0 {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// When the pool is empty, callers start their own at once, and the pool grows
// for a while.
func TestPoolEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{boot: 20 * time.Millisecond}
		p, _ := newPool(t, d, nil)
		p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
		time.Sleep(time.Second)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Reuse = bawn.Reuse{} })
		var wg sync.WaitGroup
		for range defaultWarm + 2 {
			wg.Go(func() { run(t, p, v, "{}") })
		}
		wg.Wait()
		if s := p.Stats(); s.Misses != 2 || s.Cold != defaultWarm+2 {
			t.Fatalf("stats %+v", s)
		}
		time.Sleep(time.Second)
		if got := p.Stats().Warm[bawn.Python311]; got != defaultWarm+2 {
			t.Errorf("%d warm after 2 misses, want %d", got, defaultWarm+2)
		}
		time.Sleep(5 * time.Minute)
		if got := p.Stats().Warm[bawn.Python311]; got != defaultWarm {
			t.Errorf("%d warm long after, want %d", got, defaultWarm)
		}
		for _, b := range d.all() {
			if b.state().served > 1 {
				t.Errorf("sandbox %s served %d calls", b.id, b.state().served)
			}
		}
	})
}

// A warm sandbox that died is not given to a call.
func TestWarmDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
		time.Sleep(time.Second)
		for _, b := range d.all() {
			b.Kill()
		}
		if r := run(t, p, version(nil), "{}"); r.FunctionError != "" {
			t.Fatalf("got %s", r.Payload)
		}
	})
}

func TestRefillFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		d.broken.Store(true)
		p, _ := newPool(t, d, nil)
		p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
		time.Sleep(10 * time.Minute)
		if n := p.Stats().Failed; n < 5 || n > 40 {
			t.Errorf("tried %d times in ten minutes, want a few", n)
		}
		_, err := p.Run(context.Background(), version(nil), newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		d.broken.Store(false)
		run(t, p, version(nil), "{}")
		time.Sleep(time.Minute)
		if got := p.Stats().Warm[bawn.Python311]; got < defaultWarm {
			t.Errorf("%d warm after it works again", got)
		}
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newPool(t, &fakeDriver{missing: true}, nil)
		_, err := p.Run(context.Background(), version(nil), newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		if !strings.Contains(err.Error(), "B5") {
			t.Errorf("%v does not name the control", err)
		}

		d := &fakeDriver{}
		p, _ = newPool(t, d, nil)
		_, err = p.Run(context.Background(), version(func(v *bawn.Version) { v.Runtime = bawn.NodeJS20 }), newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		var e *bawn.Error
		if !errors.As(err, &e) || e.Fix != "apt-get install nodejs" {
			t.Errorf("%v does not say how to get the runtime", err)
		}
		_, err = p.Run(context.Background(), version(func(v *bawn.Version) { v.Runtime = bawn.Wasm }), newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		if len(d.all()) != 0 {
			t.Error("a refused call made a sandbox")
		}
	})
}

func TestReuse(t *testing.T) {
	for _, test := range []struct {
		name  string
		reuse bawn.Reuse
		wait  time.Duration
		want  []int // calls served by each sandbox, in the order they were made
	}{
		{"never", bawn.Reuse{}, 0, []int{1, 1, 1, 1, 1}},
		{"one invocation", bawn.Reuse{Invocations: 1}, 0, []int{1, 1, 1, 1, 1}},
		{"two invocations", bawn.Reuse{Invocations: 2}, 0, []int{2, 2, 1}},
		{"age", bawn.Reuse{MaxAge: 25 * time.Second}, 10 * time.Second, []int{3, 2}},
		{"both", bawn.Reuse{MaxAge: 25 * time.Second, Invocations: 2}, 10 * time.Second, []int{2, 2, 1}},
		{"age alone", bawn.Reuse{MaxAge: time.Hour}, 0, []int{5}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{}
				p, _ := newPool(t, d, nil)
				v := version(func(v *bawn.Version) { v.Perimeter.Interior.Reuse = test.reuse })
				for range 5 {
					run(t, p, v, "{}")
					time.Sleep(test.wait)
				}
				var got []int
				for _, b := range d.all() {
					got = append(got, b.state().served)
				}
				if fmt.Sprint(got) != fmt.Sprint(test.want) {
					t.Errorf("calls by sandbox %v, want %v", got, test.want)
				}
				time.Sleep(time.Second)
				spent := 0
				if test.reuse.Never() {
					spent = len(got)
				}
				if n := len(got) - d.alive(); n < spent {
					t.Errorf("%d of %d single-use sandboxes were destroyed", n, spent)
				}
			})
		})
	}
}

// Attach gets what the perimeter says.
func TestAttachment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		run(t, p, version(func(v *bawn.Version) { v.Perimeter.Interior.Exec = true }), "{}")
		got := fmt.Sprintf("%+v", *d.all()[0].attached)
		if want := "{Code:[/code] Memory:268435456 CPU:1 PIDs:64 Tmp:1048576 Exec:true Files:[]}"; got != want {
			t.Errorf("attached %s, want %s", got, want)
		}
	})
}

// Idle instances are taken last in, first out, so that the others grow old.
func TestLastInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer {
			time.Sleep(200 * time.Millisecond)
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { run(t, p, v, "{}") })
		}
		wg.Wait()
		if n := len(d.all()); n != 3 {
			t.Fatalf("%d instances for 3 slow calls", n)
		}
		for range 10 {
			run(t, p, v, "{}")
			time.Sleep(time.Second)
		}
		most := 0
		for _, b := range d.all() {
			most = max(most, b.state().served)
		}
		if most != 11 {
			t.Errorf("the busiest instance served %d of 10 further calls", most-1)
		}
	})
}

func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(2 * time.Second)
			now.Add(-1)
			return fakeAnswer{body: "1"}
		}}
		for _, reuse := range []bawn.Reuse{{}, {MaxAge: time.Hour}} {
			p, _ := newPool(t, d, func(c *Config) { c.QueueLength = 5 })
			v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency, v.Perimeter.Interior.Reuse = 2, reuse })
			var ok, throttled atomic.Int64
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if _, err := p.Run(context.Background(), v, newCall("{}")); err == nil {
						ok.Add(1)
					} else if bawn.ErrorCode(err) == bawn.CodeThrottled {
						throttled.Add(1)
					}
				})
			}
			wg.Wait()
			// Two run at 0 s, two at 2 s, one at 4 s; three find the queue full and
			// the others wait.
			if most.Load() > 2 {
				t.Errorf("%d ran at one time, want 2 at most", most.Load())
			}
			if ok.Load()+throttled.Load() != 10 || ok.Load() < 6 || throttled.Load() < 3 {
				t.Errorf("%d ok, %d throttled", ok.Load(), throttled.Load())
			}
			if s := p.Stats(); s.Throttled != uint64(throttled.Load()) || s.Waiting != 0 {
				t.Errorf("stats %+v", s)
			}
		}
	})
}

// A new version takes the slots of an old one's idle instances.
func TestConcurrencyAcrossVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		one := func(n int) *bawn.Version {
			return version(func(v *bawn.Version) { v.Number, v.Perimeter.Interior.Concurrency = n, 1 })
		}
		run(t, p, one(1), "{}")
		run(t, p, one(2), "{}")
		time.Sleep(time.Second)
		if n := d.alive(); n != 1 {
			t.Errorf("%d instances, want 1", n)
		}
	})
}

// Many callers of a quick handler share few instances; a slow one gets as many
// as it has callers.
func TestGrowth(t *testing.T) {
	for _, test := range []struct {
		name          string
		each          time.Duration
		rounds        int
		least, atMost int
	}{
		{"hello world", 100 * time.Microsecond, 200, 1, 2},
		{"a millisecond", time.Millisecond, 50, 3, 10},
		{"slow", 200 * time.Millisecond, 3, 32, 32},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{boot: 20 * time.Millisecond, handle: func(*fakeBox, []byte) fakeAnswer {
					time.Sleep(test.each)
					return fakeAnswer{body: "1"}
				}}
				p, _ := newPool(t, d, nil)
				p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
				time.Sleep(time.Second)
				v := version(nil)
				var wg sync.WaitGroup
				for range 32 {
					wg.Go(func() {
						for range test.rounds {
							run(t, p, v, "{}")
						}
					})
				}
				wg.Wait()
				if n := int(p.Stats().Cold) + 0; n > 1 {
					t.Errorf("%d callers started an instance of their own, want 1", n)
				}
				if served := d.served(); served < test.least || served > test.atMost {
					t.Errorf("%d instances for 32 callers, want %d to %d", served, test.least, test.atMost)
				}
			})
		})
	}
}

// A handler that computes gets no more instances than the processors can keep at
// work, before they show as saturated; one that waits gets them.
func TestGrowthComputing(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, test := range []struct {
		name          string
		cpu           time.Duration
		least, atMost int
	}{
		{"all of the time", 10 * time.Millisecond, 1, 5},
		{"half of the time", 5 * time.Millisecond, 1, 9},
		{"a moment", 100 * time.Microsecond, 32, 64},
		{"nobody knows", 0, 32, 64},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{boot: 20 * time.Millisecond, cpu: test.cpu, handle: func(*fakeBox, []byte) fakeAnswer {
					time.Sleep(10 * time.Millisecond)
					return fakeAnswer{body: "1"}
				}}
				p, _ := newPool(t, d, nil)
				p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
				time.Sleep(time.Second)
				v := version(nil)
				for range 10 {
					run(t, p, v, "{}")
				}
				var wg sync.WaitGroup
				for range 64 {
					wg.Go(func() {
						for range 20 {
							run(t, p, v, "{}")
						}
					})
				}
				wg.Wait()
				if served := d.served(); served < test.least || served > test.atMost {
					t.Errorf("%d instances for 64 callers, want %d to %d", served, test.least, test.atMost)
				}
			})
		})
	}
}

// One call that computes for long says little of the others, and one that uses many
// threads is no reason for fewer instances than there are processors.
func TestRunnable(t *testing.T) {
	const cores = 8
	f := &fleet{}
	if f.runnable(cores) < math.MaxInt32 {
		t.Error("a function of which nothing is known is bounded")
	}
	for range 50 {
		f.computed(500*time.Microsecond, 5*time.Millisecond, false)
	}
	if n := f.runnable(cores); n != 81 {
		t.Errorf("%d instances keep 8 processors at work by calls that compute a tenth of the time, want 81", n)
	}
	f.computed(2*time.Second, 2*time.Second, false)
	for i := range 20 {
		f.computed(500*time.Microsecond, 5*time.Millisecond, false)
		if n := f.runnable(cores); n <= cores {
			t.Errorf("%d instances after a call that computed and %d others", n, i+1)
		}
	}
	if n := f.runnable(cores); n < 60 {
		t.Errorf("%d instances, twenty calls after one that computed", n)
	}
	for range 200 {
		f.computed(20*time.Millisecond, 5*time.Millisecond, false)
	}
	if n := f.runnable(cores); n <= cores || n > 2*cores {
		t.Errorf("%d instances of a function with four threads", n)
	}
}

// A quick handler that all at once is slow grows too, also one that computed.
func TestGrowthLate(t *testing.T) {
	for _, cpu := range []time.Duration{0, time.Millisecond} {
		testGrowthLate(t, cpu)
	}
}

func testGrowthLate(t *testing.T, cpu time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		d := &fakeDriver{cpu: cpu, handle: func(*fakeBox, []byte) fakeAnswer {
			if slow.Load() {
				time.Sleep(time.Second)
			}
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		for range 10 {
			run(t, p, v, "{}")
		}
		slow.Store(true)
		began := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { run(t, p, v, "{}") })
		}
		wg.Wait()
		if took := time.Since(began); took > 2*time.Second { // of the bubble's clock
			t.Errorf("16 calls of a second took %v", took)
		}
	})
}

// While the processors are saturated a quick function gets no more instances
// than can run; who waits for something else, or for long, gets them all the same.
func TestGrowthSaturated(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, test := range []struct {
		name            string
		each            time.Duration
		callers, rounds int
		least, atMost   int
	}{
		{"hello world", 100 * time.Microsecond, 32, 200, 1, 2},
		{"a millisecond", time.Millisecond, 32, 200, 2, 2},
		{"ten milliseconds", 10 * time.Millisecond, 64, 100, 2, 2},
		{"a wait", 200 * time.Millisecond, 32, 3, 32, 32},
		{"a wait of which nothing is known", 20 * time.Second, 32, 1, 32, 32},
		{"short waits of many", 19 * time.Millisecond, 200, 5, 3, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{boot: 20 * time.Millisecond, handle: func(*fakeBox, []byte) fakeAnswer {
					time.Sleep(test.each)
					return fakeAnswer{body: "1"}
				}}
				p, _ := newPool(t, d, func(c *Config) { c.Saturated = func() bool { return true } })
				p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
				time.Sleep(time.Second)
				v := version(func(v *bawn.Version) { v.Perimeter.Interior.Timeout = time.Minute })
				var wg sync.WaitGroup
				for range test.callers {
					wg.Go(func() {
						for range test.rounds {
							run(t, p, v, "{}")
						}
					})
				}
				wg.Wait()
				if served := d.served(); served < test.least || served > test.atMost {
					t.Errorf("%d instances for %d callers, want %d to %d", served, test.callers, test.least, test.atMost)
				}
			})
		})
	}
}

// What saturated processors do to a call says nothing of the function.
func TestEstimateSaturated(t *testing.T) {
	f := &fleet{}
	for range 2 {
		f.served(time.Millisecond, false)
	}
	for range 1000 {
		f.served(growSlow-1, true)
	}
	if f.quick != time.Millisecond {
		t.Errorf("calls under saturation raise the estimate to %v", f.quick)
	}
	f.served(time.Microsecond, true)
	if f.quick != time.Microsecond {
		t.Errorf("a quicker call leaves the estimate at %v", f.quick)
	}
	for _, saturated := range []bool{false, true} {
		was := f.quick
		if f.served(growSlow, saturated); f.quick <= was {
			t.Errorf("saturated %v: a call of %v does not raise the estimate", saturated, growSlow)
		}
	}
}

func TestProcessors(t *testing.T) {
	var p processors
	for i, test := range []struct {
		stat string
		full bool
	}{
		{"cpu  1000 0 500 9000 10 0 20 0 0 0\ncpu0 1000 0 500 9000 10 0 20 0 0 0\n", false}, // the first says nothing
		{"cpu  1010 0 508 9001 11 0 20 0 0 0\ncpu0 ", true},                                 // 18 of 20
		{"cpu  1020 0 515 9003 12 0 20 0 0 0\n", false},                                     // 17 of 20
		{"cpu  1020 0 515 9003 12 0 20 20 0 0\n", true},                                     // kept by the hypervisor
		{"cpu  1020 0 515 9003 12 0 20 20 0 0\n", false},                                    // no time has passed
		{"cpu  1040 0 515 9003 11 0 20 20 0 0\n", false},                                    // the kernel counts back
		{"cpu  nonsense 0 0 0\n", false},
		{"", false},
		{"cpu  2000 0 515 9003 11 0 20 20 0 0\n", false}, // nothing to compare with
		{"cpu  2100 0 515 9003 11\n", true},              // an old kernel
	} {
		if full := p.look([]byte(test.stat)); full != test.full {
			t.Errorf("%d: %q: saturated %v", i, test.stat, full)
		}
	}
	new(processors).saturated() // whatever it says of this host
}

func FuzzProcessorTimes(f *testing.F) {
	f.Add([]byte("cpu  1366813 0 323832 1530871 9409 0 12139 45869 0 0\ncpu0 1"))
	f.Add([]byte("cpu  18446744073709551615 1 2 3"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		busy, idle, ok := processorTimes(stat)
		if !ok && (busy > 0 || idle > 0) || busy > 1<<52 || idle > 1<<52 {
			t.Errorf("busy %d, idle %d, %v", busy, idle, ok)
		}
	})
}

// A version whose calls never run out leaves a slot to another whose calls have
// waited, and no more often than the starts are worth.
func TestSlotTurn(t *testing.T) {
	reuse, never := bawn.Reuse{MaxAge: time.Hour}, bawn.Reuse{}
	for _, test := range []struct {
		name      string
		one, two  bawn.Reuse
		limit     int // of the second version; the first has 2
		bothEager bool
	}{
		{"reuse", reuse, reuse, 2, false},
		{"never", reuse, never, 2, false},
		{"a lower limit", reuse, reuse, 1, false},
		{"after never", never, reuse, 2, false},
		{"both eager", reuse, reuse, 2, true},
		{"both eager, one slot", reuse, reuse, 1, true},
		{"both eager, never", reuse, never, 2, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer {
					time.Sleep(50 * time.Millisecond)
					return fakeAnswer{body: "1"}
				}}
				p, _ := newPool(t, d, nil)
				v := func(number, limit int, r bawn.Reuse) *bawn.Version {
					return version(func(v *bawn.Version) {
						v.Number, v.Perimeter.Interior.Concurrency, v.Perimeter.Interior.Reuse = number, limit, r
					})
				}
				first := 2
				if test.bothEager {
					first = test.limit
				}
				one, two := v(1, first, test.one), v(2, test.limit, test.two)
				var stop atomic.Bool
				var served [3]atomic.Int64
				var wg sync.WaitGroup
				eager := func(v *bawn.Version) {
					for range 10 {
						wg.Go(func() {
							for !stop.Load() {
								run(t, p, v, "{}") // fails if throttled
								served[v.Number].Add(1)
							}
						})
					}
				}
				eager(one)
				time.Sleep(time.Second)
				was := served[1].Load()
				made := len(d.all())
				const rest = 20 // seconds
				if test.bothEager {
					eager(two)
					time.Sleep(rest * time.Second)
					if served[2].Load() < rest || served[1].Load()-was < rest {
						t.Errorf("of the first version %d calls were served, of the second %d", served[1].Load()-was, served[2].Load())
					}
					most := int(rest * time.Second / slotTurn)
					if n := len(d.all()) - made; test.two == reuse && n > most+2 {
						t.Errorf("%d instances were made in %d s, want %d at most", n, rest, most)
					}
				} else {
					for range 5 {
						run(t, p, two, "{}")
						time.Sleep(time.Second)
					}
					if served[1].Load()-was < 10 {
						t.Errorf("of the first version %d calls were served", served[1].Load()-was)
					}
				}
				stop.Store(true)
				wg.Wait()
				if s := p.Stats(); s.Throttled != 0 || s.Waiting != 0 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

// A version that is never reused does not queue behind the calls of another
// while slots are free.
func TestNoQueueBehindAnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, e []byte) fakeAnswer {
			if string(e) == "slow" {
				time.Sleep(2 * time.Second)
			}
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		one := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		two := version(func(v *bawn.Version) { v.Number, v.Perimeter.Interior.Reuse = 2, bawn.Reuse{} })
		var done atomic.Int64
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { run(t, p, one, "slow"); done.Add(1) })
		}
		synctest.Wait()
		if n := p.Stats().Waiting; n != 1 {
			t.Fatalf("%d calls wait, want 1", n)
		}
		run(t, p, two, "{}")
		if done.Load() > 0 {
			t.Error("it waited for the other version's call")
		}
		wg.Wait()
	})
}

// An instance whose freezing failed may be frozen under its next call, so it has
// none.
func TestFreezeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		d.freezeless.Store(true)
		p, _ := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		run(t, p, v, "{}")
		time.Sleep(2 * time.Second)
		if n, s := d.alive(), p.Stats(); n != 0 || s.Instances["idle"]+s.Instances["freezing"]+s.Instances["frozen"]+s.Instances["busy"] != 0 {
			t.Fatalf("%d alive, %+v", n, s)
		}
		d.freezeless.Store(false)
		if r := run(t, p, v, "{}"); r.FunctionError != "" || !r.Usage.Cold { // the slot is free again
			t.Errorf("got %+v", r)
		}
	})
}

// A caller that leaves during a cold start has no code run for it; the next
// call has the instance.
func TestCallerGoneColdStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{load: time.Second}
		p, _ := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		ctx, cancel := context.WithCancel(context.Background())
		go func() { time.Sleep(100 * time.Millisecond); cancel() }()
		_, err := p.Run(ctx, v, newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		if n := d.all()[0].state().served; n != 0 {
			t.Fatal("the function was run")
		}
		r := run(t, p, v, "{}")
		if r.Usage.Cold || len(d.all()) != 1 || d.all()[0].state().served != 1 {
			t.Errorf("%d instances; got %+v", len(d.all()), r)
		}
		if s := p.Stats(); s.Calls != 1 || s.Cold != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		run(t, p, v, "{}")
		time.Sleep(2 * time.Second)
		b := d.all()[0]
		if !b.state().frozen || p.Stats().Instances["frozen"] != 1 {
			t.Fatalf("an idle instance is not frozen: %+v", p.Stats())
		}
		run(t, p, v, "{}")
		if got := b.state(); got.frozen || got.thaws != 1 || got.served != 2 {
			t.Errorf("frozen %v, thaws %d, calls %d", got.frozen, got.thaws, got.served)
		}
		// Steady calls leave it awake.
		before := b.state().freezes
		for range 50 {
			time.Sleep(150 * time.Millisecond)
			run(t, p, v, "{}")
		}
		if n := b.state().freezes - before; n > 1 {
			t.Errorf("frozen %d times between steady calls", n)
		}
		time.Sleep(defaultIdleAfter + time.Minute)
		if n := d.alive(); n != 0 {
			t.Errorf("%d instances left after the idle time", n)
		}
		if s := p.Stats(); len(p.all()) != 0 || s.Instances["frozen"] != 0 {
			t.Errorf("the pool still knows of it: %+v", s)
		}
		run(t, p, v, "{}")
	})
}

// An instance that dies while idle is forgotten, and the next call gets another.
func TestIdleDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		run(t, p, v, "{}")
		d.all()[0].end(sandbox.Exit{OOM: true})
		synctest.Wait()
		if got := p.Instances(bawn.Ref{Tenant: "main", Function: "hello"}); len(got) != 0 {
			t.Errorf("still there: %+v", got)
		}
		if r := run(t, p, v, "{}"); r.FunctionError != "" || !r.Usage.Cold {
			t.Errorf("got %+v", r)
		}
	})
}

// What goes wrong gets Lambda's words, and the next call a fresh instance.
func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name    string
		handle  fakeAnswer
		loading *fakeAnswer
		kind    string
		message string
		cause   bawn.Code
		note    string
		keeps   bool // the instance may serve again
	}{
		{"handler error", fakeAnswer{err: true, body: `{"errorType":"ValueError","errorMessage":"no"}`}, nil,
			"ValueError", "no", bawn.CodeFunctionError, "", true},
		{"time-out", fakeAnswer{hang: true}, nil,
			"Sandbox.Timedout", "RequestId: ID Error: Task timed out after 3.00 seconds", bawn.CodeFunctionTimeout, "interior.timeout", false},
		{"exit", fakeAnswer{exit: &sandbox.Exit{Code: 127}}, nil,
			"Runtime.ExitError", "RequestId: ID Error: Runtime exited with error: exit status 127", bawn.CodeFunctionError, "status 127", false},
		{"exit 0", fakeAnswer{exit: &sandbox.Exit{}}, nil,
			"Runtime.ExitError", "RequestId: ID Error: Runtime exited without providing a reason", bawn.CodeFunctionError, "status 0", false},
		{"signal", fakeAnswer{exit: &sandbox.Exit{Code: -1, Signal: "segmentation fault"}}, nil,
			"Runtime.ExitError", "RequestId: ID Error: Runtime exited with error: signal: segmentation fault", bawn.CodeFunctionError, "segmentation", false},
		{"out of memory", fakeAnswer{exit: &sandbox.Exit{Code: -1, Signal: "killed", OOM: true}}, nil,
			"Runtime.OutOfMemory", "RequestId: ID Error: Runtime exited: out of memory", bawn.CodeFunctionError, "256 MiB", false},
		{"bad frame", fakeAnswer{raw: bytes.Repeat([]byte{0xff}, 64)}, nil,
			"Runtime.InvalidResponse", "RequestId: ID Error: ", bawn.CodeFunctionError, "protocol", false},
		{"answer too large", fakeAnswer{body: strings.Repeat("x", bawn.MaxResponseBytes+1)}, nil,
			"Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).", bawn.CodeFunctionError, "", false},
		{"init error", fakeAnswer{}, &fakeAnswer{err: true, body: `{"errorType":"Runtime.ImportModuleError","errorMessage":"no module","requestId":""}`},
			"Runtime.ImportModuleError", "no module", bawn.CodeFunctionError, "no module", false},
		{"init exit", fakeAnswer{}, &fakeAnswer{exit: &sandbox.Exit{Code: 1}},
			"Runtime.ExitError", "RequestId: ID Error: Runtime exited with error: exit status 1", bawn.CodeFunctionError, "loading", false},
		{"init time-out", fakeAnswer{}, &fakeAnswer{hang: true},
			"Sandbox.Timedout", "RequestId: ID Error: Init timed out after 10.00 seconds", bawn.CodeFunctionTimeout, "10.00", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var broken atomic.Bool
				broken.Store(true)
				d := &fakeDriver{
					handle: func(*fakeBox, []byte) fakeAnswer {
						if broken.Load() {
							return test.handle
						}
						return fakeAnswer{body: `"well"`}
					},
					loading: func(*fakeBox) fakeAnswer {
						if broken.Load() && test.loading != nil {
							return *test.loading
						}
						return fakeAnswer{}
					},
				}
				p, k := newPool(t, d, nil)
				v := version(nil)
				c := newCall("{}")
				r, err := p.Run(context.Background(), v, c)
				if err != nil {
					t.Fatal(err)
				}
				if r.FunctionError != "Unhandled" || r.Cause != test.cause || r.Version != 1 {
					t.Errorf("got %+v", r)
				}
				var doc struct{ ErrorType, ErrorMessage string }
				if err := json.Unmarshal(r.Payload, &doc); err != nil {
					t.Fatalf("payload %q: %v", r.Payload, err)
				}
				want := strings.Replace(test.message, "ID", c.ID, 1)
				if test.kind != "" && (doc.ErrorType != test.kind || !strings.HasPrefix(doc.ErrorMessage, want)) {
					t.Errorf("payload %s, want %s: %s", r.Payload, test.kind, want)
				}
				if !strings.Contains(k.text(), test.note) {
					t.Errorf("the log does not say %q:\n%s", test.note, k.text())
				}
				broken.Store(false)
				r = run(t, p, v, "{}")
				if string(r.Payload) != `"well"` || r.Usage.Cold == test.keeps {
					t.Errorf("the next call got %s, cold %v", r.Payload, r.Usage.Cold)
				}
				synctest.Wait()
				if n := d.alive(); n != 1 {
					t.Errorf("%d sandboxes are alive, want 1", n)
				}
			})
		})
	}
}

// An instance that could not be loaded for one caller does not strand the rest.
func TestInitErrorWithQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{boot: 50 * time.Millisecond, loading: func(*fakeBox) fakeAnswer {
			return fakeAnswer{err: true, body: `{"errorType":"Runtime.ImportModuleError"}`}
		}}
		p, _ := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 3 })
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if r := run(t, p, v, "{}"); r.FunctionError == "" {
					t.Errorf("got %+v", r)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := d.alive(); n != 0 {
			t.Errorf("%d sandboxes are alive", n)
		}
	})
}

func TestCallerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer {
			time.Sleep(time.Second)
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		// One that runs goes on to its end.
		ctx, cancel := context.WithCancel(context.Background())
		go func() { time.Sleep(100 * time.Millisecond); cancel() }()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if r, err := p.Run(ctx, v, newCall("{}")); err != nil || string(r.Payload) != "1" {
				t.Errorf("got %v, %v", r, err)
			}
		}()
		// One that waits is let go.
		time.Sleep(10 * time.Millisecond)
		if _, err := p.Run(ctx, v, newCall("{}")); bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Errorf("got %v", err)
		}
		<-done
		run(t, p, v, "{}")
		if d.all()[0].state().served != 2 {
			t.Errorf("the instance was not used again")
		}
	})
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, event []byte) fakeAnswer {
			return fakeAnswer{stream: []string{"one ", "two ", string(event)}}
		}}
		p, k := newPool(t, d, nil)
		v := version(func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 1 })
		r := run(t, p, v, "three")
		if got := p.Stats().Instances["busy"]; got != 1 {
			t.Errorf("%d busy while streaming", got)
		}
		b, err := io.ReadAll(r.Stream)
		if err != nil || string(b) != "one two three" {
			t.Errorf("read %q, %v", b, err)
		}
		r.Stream.Close()
		if got := p.Stats().Instances["idle"]; got != 1 {
			t.Errorf("%d idle after the stream", got)
		}
		if r.Usage.MaxMemory == 0 || !strings.Contains(k.text(), "REPORT") {
			t.Errorf("usage %+v, log:\n%s", r.Usage, k.text())
		}
		// Not read to the end: the instance is of no more use.
		r = run(t, p, v, "three")
		r.Stream.Close()
		synctest.Wait()
		if n := d.alive(); n != 0 {
			t.Errorf("%d alive after an early end", n)
		}
		if r = run(t, p, v, "x"); !r.Usage.Cold {
			t.Error("the instance was used again")
		}
		io.Copy(io.Discard, r.Stream)
	})
}

func TestStreamTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(b *fakeBox, event []byte) fakeAnswer {
			return fakeAnswer{stream: []string{"one", strings.Repeat("x", 1<<20)}}
		}}
		p, _ := newPool(t, d, nil)
		r := run(t, p, version(nil), "{}")
		buf := make([]byte, 3)
		if _, err := io.ReadFull(r.Stream, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // a caller that does not read is over the function's time as well
		_, err := io.ReadAll(r.Stream)
		var failed *bawn.StreamError
		if !errors.As(err, &failed) || !strings.Contains(string(failed.Payload), "Sandbox.Timedout") {
			t.Errorf("got %v", err)
		}
		if r.Cause != bawn.CodeFunctionTimeout {
			t.Errorf("cause %q", r.Cause)
		}
		synctest.Wait()
		if n := d.alive(); n != 0 {
			t.Errorf("%d alive", n)
		}
	})
}

func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(b *fakeBox, _ []byte) fakeAnswer {
			b.attempts <- sandbox.Attempt{Time: time.Now(), Syscall: "execve", Args: []string{"/bin/sh", "-c", "id"}, Control: "B7", Errno: "EPERM", Dropped: 2}
			time.Sleep(time.Millisecond)
			return fakeAnswer{body: "1"}
		}}
		p, k := newPool(t, d, nil)
		c := newCall("{}")
		if _, err := p.Run(context.Background(), version(nil), c); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(k.records) != 1 {
			t.Fatalf("%d records", len(k.records))
		}
		r := k.records[0]
		if r.Kind != bawn.KindBlocked || r.Function != "hello" || r.Version != 1 || r.Invocation != c.ID || r.Control != "B7" ||
			r.Action != "execve" || r.Outcome != "blocked" || r.Detail["args"] != "/bin/sh -c id" || r.Detail["dropped"] != "2" || r.Instance == "" {
			t.Errorf("record %+v", r)
		}
	})
}

func TestMemoryLow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var low atomic.Bool
		d := &fakeDriver{}
		p, _ := newPool(t, d, func(c *Config) { c.MemoryLow = low.Load })
		for i := range 8 {
			run(t, p, version(func(v *bawn.Version) { v.Function = fmt.Sprintf("f%d", i) }), "{}")
		}
		time.Sleep(time.Second)
		if n := d.alive(); n != 8 {
			t.Fatalf("%d alive", n)
		}
		low.Store(true)
		time.Sleep(time.Minute)
		if n := d.alive(); n > 0 {
			t.Errorf("%d idle instances alive though memory is low", n)
		}
	})
}

// At the node's limit an idle instance makes room for a call; when there is none
// the call is refused.
func TestMaxSandboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, e []byte) fakeAnswer {
			if string(e) == "slow" {
				time.Sleep(time.Second)
			}
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, func(c *Config) { c.MaxSandboxes = 2 })
		name := func(n string) *bawn.Version { return version(func(v *bawn.Version) { v.Function = n }) }
		run(t, p, name("a"), "{}")
		run(t, p, name("b"), "{}")
		run(t, p, name("c"), "{}")
		synctest.Wait()
		if n := d.alive(); n != 2 {
			t.Errorf("%d alive, want 2", n)
		}
		var wg sync.WaitGroup
		for _, n := range []string{"b", "c"} {
			wg.Go(func() { run(t, p, name(n), "slow") })
		}
		time.Sleep(time.Millisecond)
		_, err := p.Run(context.Background(), name("d"), newCall("{}"))
		wantCode(t, err, bawn.CodeThrottled)
		wg.Wait()
	})
}

func TestInspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{}
		p, _ := newPool(t, d, nil)
		for _, reuse := range []bawn.Reuse{{}, {MaxAge: time.Hour}} {
			v := version(func(v *bawn.Version) {
				v.Perimeter.Interior.Reuse, v.Function = reuse, fmt.Sprint("f", reuse.Invocations, reuse.MaxAge > 0)
			})
			if list, err := p.Inspect(context.Background(), v, false); len(list) > 0 || err != nil {
				t.Fatalf("without leave to start one: %+v, %v", list, err)
			}
			list, err := p.Inspect(context.Background(), v, true)
			if err != nil || len(list) != 1 || len(list[0].Facts) != 1 || list[0].Memory == 0 {
				t.Fatalf("got %+v, %v", list, err)
			}
			run(t, p, v, "{}")
		}
		for _, b := range d.all() {
			if b.state().served > 1 {
				t.Error("used twice")
			}
		}
	})
}

func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, e []byte) fakeAnswer {
			time.Sleep(time.Second)
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		v := version(nil)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { run(t, p, v, "{}") })
		}
		wg.Wait()
		wg.Go(func() { run(t, p, v, "{}") })
		time.Sleep(100 * time.Millisecond)
		p.Retire("main", "hello")
		synctest.Wait()
		if n := d.alive(); n != 1 {
			t.Errorf("%d alive, want the busy one", n)
		}
		wg.Wait()
		synctest.Wait()
		if n := d.alive(); n != 0 {
			t.Errorf("%d alive after its call", n)
		}
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(_ *fakeBox, e []byte) fakeAnswer {
			time.Sleep(time.Second)
			return fakeAnswer{body: "1"}
		}}
		p, _ := newPool(t, d, nil)
		p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
		v := version(nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			run(t, p, v, "{}")
		}()
		time.Sleep(500 * time.Millisecond)
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if p.Drain(short) == nil {
			t.Error("drained while a call ran")
		}
		_, err := p.Run(context.Background(), v, newCall("{}"))
		wantCode(t, err, bawn.CodeUnavailable)
		if err := p.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
		p.Close()
		if n := d.alive(); n != 0 {
			t.Errorf("%d alive after Close", n)
		}
	})
}

// Close ends what runs.
func TestCloseBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer { return fakeAnswer{hang: true} }}
		p, _ := newPool(t, d, nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if r := run(t, p, version(nil), "{}"); r.FunctionError == "" {
				t.Errorf("got %+v", r)
			}
		}()
		time.Sleep(time.Millisecond)
		p.Close()
		<-done
		if n := d.alive(); n != 0 {
			t.Errorf("%d alive", n)
		}
	})
}

// The instances of a tenant take no more than its quota together, whatever each
// function may have; another function's idle instance makes room, and a call that
// waits gets its turn.
func TestTenantQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer {
			time.Sleep(100 * time.Millisecond)
			return fakeAnswer{body: "1"}
		}}
		quota := bawn.Quota{Instances: 2}
		p, _ := newPool(t, d, func(c *Config) {
			c.Quota = func(string) (bawn.Quota, bool) { return quota, true }
		})
		of := func(name string) *bawn.Version { return version(func(v *bawn.Version) { v.Function = name }) }
		most := func() int { n := p.Stats().Instances; return n["busy"] + n["idle"] + n["frozen"] + n["loading"] }
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			wg.Go(func() { run(t, p, of(name), "{}") })
		}
		time.Sleep(50 * time.Millisecond)
		if n := most(); n != 2 {
			t.Errorf("%d instances, want 2", n)
		}
		wg.Wait()
		if n := most(); n > 2 {
			t.Errorf("%d instances, want at most 2", n)
		}
		// By memory: not even one fits.
		quota = bawn.Quota{Memory: 1}
		if _, err := p.Run(context.Background(), of("z"), &bawn.Call{ID: "1", Event: []byte("{}")}); bawn.ErrorCode(err) != bawn.CodeThrottled || !strings.Contains(err.Error(), "quota") {
			t.Errorf("beyond the quota: %v", err)
		}
		time.Sleep(10 * time.Minute) // all are destroyed
		p.tenants.mu.Lock()
		defer p.tenants.mu.Unlock()
		for name, u := range p.tenants.use {
			if u.instances != 0 || u.memory != 0 {
				t.Errorf("%s still takes %+v", name, *u)
			}
		}
	})
}

// Halt ends a tenant's instances, busy ones too, refuses what waits, and leaves
// other tenants alone.
func TestHalt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var halted atomic.Bool
		d := &fakeDriver{handle: func(_ *fakeBox, event []byte) fakeAnswer {
			time.Sleep(time.Second)
			return fakeAnswer{body: string(event)}
		}}
		p, _ := newPool(t, d, func(c *Config) {
			c.Quota = func(tenant string) (bawn.Quota, bool) { return bawn.Quota{}, tenant != "acme" || !halted.Load() }
		})
		of := func(tenant string) *bawn.Version {
			return version(func(v *bawn.Version) { v.Tenant, v.Perimeter.Interior.Concurrency = tenant, 1 })
		}
		ended := make(chan error, 2)
		for range 2 { // one is busy, one waits
			go func() {
				r, err := p.Run(context.Background(), of("acme"), &bawn.Call{ID: bawn.NewID(), Event: []byte("{}")})
				if err == nil && r.FunctionError == "" {
					err = errors.New("it answered")
				} else {
					err = nil
				}
				ended <- err
			}()
		}
		other := make(chan string, 1)
		go func() { other <- string(run(t, p, of("main"), `"fine"`).Payload) }()
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		halted.Store(true)
		p.Halt("acme")
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("they went on for %v", took)
		}
		if _, err := p.Run(context.Background(), of("acme"), &bawn.Call{ID: "1", Event: []byte("{}")}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Errorf("a later call: %v", err)
		}
		if got := <-other; got != `"fine"` {
			t.Errorf("another tenant's call: %s", got)
		}
		synctest.Wait()
		if n := len(p.find(bawn.Ref{Tenant: "acme", Function: of("acme").Function})); n != 0 {
			t.Errorf("%d instances are left", n)
		}
	})
}
