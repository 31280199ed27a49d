package interior_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/sandbox/linux"
)

// A real is a pool over real sandboxes.
type real struct {
	*interior.Pool
	mu      sync.Mutex
	lines   []bawn.LogLine
	records []bawn.Record
}

func (r *real) log(l bawn.LogLine, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) < 10_000 {
		r.lines = append(r.lines, l)
	}
}

func (r *real) record(_ context.Context, rec bawn.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, rec)
	return nil
}

// text returns the log of one invocation.
func (r *real) text(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, l := range r.lines {
		if l.Invocation == id {
			fmt.Fprintln(&b, l.Text)
		}
	}
	return b.String()
}

// of returns what a version logged.
func (r *real) of(version int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, l := range r.lines {
		if l.Version == version {
			fmt.Fprintln(&b, l.Text)
		}
	}
	return b.String()
}

// newReal returns a pool whose functions are folders: an artifact's digest is
// the folder's path.
func newReal(t testing.TB) *real { return newRealWith(t, nil) }

func newRealWith(t testing.TB, change func(*interior.Config)) *real {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	d, err := linux.New(linux.Config{Dir: t.TempDir(), Code: os.TempDir(), Node: "interior", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &real{}
	cfg := interior.Config{
		Driver: d, Definitions: interior.FindRuntimes(t.Context(), slog.New(slog.DiscardHandler)),
		Code: func(_ context.Context, v *bawn.Version) ([]string, error) {
			if v.Compiled != nil {
				return []string{v.Compiled.Digest, v.Artifact.Digest}, nil
			}
			return []string{v.Artifact.Digest}, nil
		},
		Record: r.record, Log: r.log, Errors: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	r.Pool = interior.NewPool(cfg)
	t.Cleanup(r.Close)
	return r
}

type testLog struct{ testing.TB }

func (l testLog) Write(p []byte) (int, error) { l.Logf("%s", p); return len(p), nil }

// python returns a version of a function with this source.
func python(t testing.TB, source string, change func(*bawn.Version)) *bawn.Version {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	v := &bawn.Version{
		Tenant: "main", Function: "hello", Number: 1, Digest: dir, Runtime: bawn.Python311, Handler: "app.handler",
		Artifact: bawn.Artifact{Digest: dir},
		Perimeter: bawn.Perimeter{Interior: bawn.Interior{
			Memory: 128 << 20, CPU: 1, PIDs: 64, Tmp: 16 << 20, Timeout: 5 * time.Second, Concurrency: 50, Reuse: bawn.Reuse{MaxAge: time.Hour},
		}},
	}
	if change != nil {
		change(v)
	}
	return v
}

func newCall(event string) *bawn.Call { return &bawn.Call{ID: bawn.NewID(), Event: []byte(event)} }

// The pool, a real sandbox and a real interpreter together.
func TestReal(t *testing.T) {
	p := newReal(t)
	p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
	v := python(t, `
import os, sys, time
n = 0
def handler(event, context):
    global n
    n += 1
    print("call", n)
    do = event.get("do")
    if do == "exit": os._exit(3)
    if do == "memory": x = bytearray(400 << 20); x[::4096] = b"x" * len(x[::4096])
    if do == "sleep": time.sleep(60)
    if do == "raise": raise ValueError("no")
    if do == "exec":
        try: os.execv("/bin/sh", ["sh"])
        except OSError as e: return e.errno
    if do == "who":
        import grp, pwd
        return [pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name, os.path.expanduser("~")]
    if do == "frame": os.write(3, b"x" * 100); time.sleep(1)
    return n
`, nil) // the kernel takes its time to end an instance on a busy host: no shorter timeout
	for _, test := range []struct {
		event, payload, note string
		cause                bawn.Code
		cold                 bool
	}{
		{`{}`, `1`, "call 1", "", true},
		{`{}`, `2`, "call 2", "", false},
		{`{"do":"raise"}`, `"errorType": "ValueError"`, "ValueError", bawn.CodeFunctionError, false},
		{`{}`, `4`, "", "", false},
		{`{"do":"who"}`, `["function","function","/tmp"]`, "", "", false}, // the image knows its users
		{`{"do":"exec"}`, ``, "", "", false},
		{`{"do":"exit"}`, `exit status 3`, "status 3", bawn.CodeFunctionError, false},
		{`{}`, `1`, "", "", true},
		{`{"do":"memory"}`, `Runtime.OutOfMemory`, "Max Memory Used: 128 MB", bawn.CodeFunctionError, false},
		{`{}`, `1`, "", "", true},
		{`{"do":"sleep"}`, `Task timed out after 5.00 seconds`, "interior.timeout", bawn.CodeFunctionTimeout, false},
		{`{}`, `1`, "", "", true},
		{`{"do":"frame"}`, `Runtime.InvalidResponse`, "protocol", bawn.CodeFunctionError, false},
		{`{}`, `1`, "", "", true},
	} {
		c := newCall(test.event)
		r, err := p.Run(t.Context(), v, c)
		if err != nil {
			t.Fatalf("%s: %v", test.event, err)
		}
		squeeze := strings.NewReplacer(" ", "")
		if !strings.Contains(squeeze.Replace(string(r.Payload)), squeeze.Replace(test.payload)) || r.Cause != test.cause || r.Usage.Cold != test.cold || r.Usage.MaxMemory == 0 && !test.cold && test.cause == "" {
			t.Errorf("%s: got %s, %+v", test.event, r.Payload, r)
		}
		text := p.text(c.ID)
		if !strings.HasPrefix(text, "START RequestId: "+c.ID) || !strings.Contains(text, test.note) || !strings.Contains(text, "END RequestId: "+c.ID+"\nREPORT") {
			t.Errorf("%s: the log is\n%s", test.event, text)
		}
	}
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) == 0 || p.records[0].Control != "B7" || p.records[0].Function != "hello" || p.records[0].Invocation == "" {
		t.Errorf("records %+v", p.records)
	}
}

// A module is compiled once, in a sandbox, and no start does it again; unless
// what was compiled does not fit, and then the function runs all the same.
func TestRealWasm(t *testing.T) {
	p := newReal(t)
	v := python(t, "", func(v *bawn.Version) {
		v.Runtime, v.Handler, v.Perimeter.Interior.Memory = bawn.Wasm, "main.wasm", 512<<20
	})
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(v.Digest, "main.wasm"), "./testdata/wasm")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files, err := p.Compile(t.Context(), v, v.Digest)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	if n := p.Stats().Sandboxes; n != 0 {
		t.Errorf("the compiler left %d sandboxes", n)
	}
	for i, test := range []struct {
		name     string
		change   func(name string, data []byte) (string, []byte)
		compiles bool
	}{
		{"as it was compiled", func(name string, data []byte) (string, []byte) { return name, data }, false},
		{"nothing", func(string, []byte) (string, []byte) { return "", nil }, true},
		{"another version", func(name string, data []byte) (string, []byte) {
			return strings.Replace(name, "wazero-v", "wazero-v0", 1), data
		}, true},
		{"another version under this one's name", func(name string, data []byte) (string, []byte) {
			return name, bytes.Replace(data, []byte("WAZEVO\x07v1"), []byte("WAZEVO\x07v0"), 1)
		}, true},
		{"another processor", func(name string, data []byte) (string, []byte) {
			return filepath.Join(filepath.Dir(name), strings.Repeat("0", 64)), data
		}, true},
		{"half of it", func(name string, data []byte) (string, []byte) { return name, data[:len(data)/2] }, true},
		{"nonsense", func(name string, data []byte) (string, []byte) { return name, []byte("nonsense") }, true},
		{"changed machine code", func(name string, data []byte) (string, []byte) {
			data = bytes.Clone(data)
			data[len(data)/2] ^= 1
			return name, data
		}, true},
	} {
		v := *v
		v.Number = i + 1
		for name, data := range files {
			changed, content := test.change(name, data)
			if changed == name && bytes.Equal(content, data) == test.compiles {
				t.Fatalf("%s: not what the name says", test.name)
			}
			if changed == "" {
				continue
			}
			dir := t.TempDir()
			v.Compiled = &bawn.Artifact{Digest: dir}
			for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
				os.Chmod(d, 0o755)
			}
			changed = filepath.Join(dir, changed)
			if err := os.MkdirAll(filepath.Dir(changed), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(changed, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.Run(t.Context(), &v, newCall(`{"do":"calls"}`))
		if err != nil || string(r.Payload) != "1" || !r.Usage.Cold {
			t.Errorf("%s: %+v, %v", test.name, r, err)
			continue
		}
		t.Logf("%s: loading took %v", test.name, r.Usage.Init)
		if compiled := strings.Contains(p.of(v.Number), "compiled at this start"); compiled != test.compiles {
			t.Errorf("%s: compiled at the start: %v", test.name, compiled)
		}
	}

	for name, test := range map[string]struct {
		files map[string]string
		text  string
	}{
		"nonsense":  {map[string]string{"main.wasm": "\x00asm\x01\x00\x00\x00nonsense"}, "not a WebAssembly module"},
		"a library": {map[string]string{"main.wasm": "\x00asm\x01\x00\x00\x00"}, "exports no _start"},
		"missing":   {map[string]string{"other.wasm": ""}, "no module"},
		// It would be run as machine code.
		"brought along": {map[string]string{"main.wasm": "", ".bawn-cache": ""}, "Bawn's own"},
	} {
		dir := t.TempDir()
		for name, text := range test.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		files, err := p.Compile(t.Context(), v, dir)
		var e *bawn.Error
		if files != nil || !errors.As(err, &e) || e.Code != bawn.CodeUnprocessable || e.Fix == "" || !strings.Contains(e.Message, test.text) {
			t.Errorf("%s: %d files, %v", name, len(files), err)
		}
	}
}

// A parked sandbox starts the function's own program, which speaks the Runtime
// API; a second poller is turned away and recorded, and its instance ended:
// control B8.
func TestRealProvided(t *testing.T) {
	p := newReal(t)
	p.Expect(map[bawn.Runtime]int{bawn.Provided: 1})
	v := python(t, "", func(v *bawn.Version) { v.Runtime, v.Handler = bawn.Provided, "" })
	build := exec.Command("go", "build", "-o", filepath.Join(v.Digest, "bootstrap"), "./testdata/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, event := range []string{`{"n":1}`, `{"n":2}`, `{"do":"poll"}`, `{"n":3}`} {
		c := newCall(event)
		r, err := p.Run(t.Context(), v, c)
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			if r.FunctionError == "" || !strings.Contains(string(r.Payload), "second poller") {
				t.Errorf("%s: got %s, %+v", event, r.Payload, r)
			}
		} else if string(r.Payload) != event || r.FunctionError != "" || r.Usage.Cold != (i == 0 || i == 3) {
			t.Errorf("%s: got %s, %+v", event, r.Payload, r)
		}
		if text := p.text(c.ID); !strings.Contains(text, "got "+event) {
			t.Errorf("%s: the log is\n%s", event, text)
		}
	}
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) != 1 || p.records[0].Control != "B8" {
		t.Errorf("records %+v", p.records)
	}
}

func benchReal(b *testing.B, v *bawn.Version, parallel int, pause time.Duration) {
	benchRealWith(b, v, parallel, pause, nil)
}

func benchRealWith(b *testing.B, v *bawn.Version, parallel int, pause time.Duration, change func(*interior.Config)) {
	p := newRealWith(b, change)
	p.Expect(map[bawn.Runtime]int{bawn.Python311: 1})
	for p.Stats().Warm[bawn.Python311] < 4 {
		time.Sleep(10 * time.Millisecond)
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.N))
	var sum atomic.Int64
	for range parallel {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				began := time.Now()
				if r, err := p.Run(context.Background(), v, newCall("{}")); err != nil || r.FunctionError != "" {
					b.Error(err)
					return
				}
				sum.Add(int64(time.Since(began)))
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(sum.Load())/float64(b.N)/1e6, "ms/call")
	s := p.Stats()
	b.ReportMetric(float64(s.Misses), "misses")
	b.ReportMetric(float64(s.Started), "started")
}

const hello = "def handler(event, context):\n    return {'hello': 'world'}\n"

func never(v *bawn.Version) { v.Perimeter.Interior.Reuse = bawn.Reuse{} }

func BenchmarkRealCold(b *testing.B) { benchReal(b, python(b, hello, never), 1, 50*time.Millisecond) }

// What a cold call costs that finds out that it reaches nothing, and one that has
// a name, a listener and a secret.
func BenchmarkRealColdReachesNothing(b *testing.B) {
	benchRealWith(b, python(b, hello, never), 1, 50*time.Millisecond, func(c *interior.Config) {
		c.Attach = func(context.Context, interior.Inside) (interior.Reach, error) { return interior.Reach{}, nil }
	})
}

func BenchmarkRealColdReachesSome(b *testing.B) {
	a := &outsides{hosts: "127.1.2.3 api.example.com\n"}
	benchRealWith(b, python(b, hello, never), 1, 50*time.Millisecond, func(c *interior.Config) { c.Attach = a.attach })
}

func BenchmarkRealBackToBack(b *testing.B) { benchReal(b, python(b, hello, never), 4, 0) }
func BenchmarkRealWarm(b *testing.B)       { benchReal(b, python(b, hello, nil), 1, 0) }
func BenchmarkRealWarm32(b *testing.B)     { benchReal(b, python(b, hello, nil), 32, 0) }
