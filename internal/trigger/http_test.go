package trigger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/ingress"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/invoke"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A program is what a sandbox of the tests runs: it gets an event and sends
// frames. Everything on this side of the sandbox's socket is real.
type program func(w io.Writer, id string, event []byte)

// answer sends one frame.
func answer(w io.Writer, head, body string) {
	b := make([]byte, 8, 8+len(head)+len(body))
	binary.BigEndian.PutUint32(b, uint32(len(head)))
	binary.BigEndian.PutUint32(b[4:], uint32(len(body)))
	w.Write(append(append(b, head...), body...))
}

func respond(w io.Writer, id, body string) { answer(w, `{"type":"response","id":"`+id+`"}`, body) }

type driver struct {
	run     program
	mu      sync.Mutex
	started int
	killed  int
}

type box struct {
	d         *driver
	id        string
	near, far net.Conn
	out       *os.File
	attempts  chan sandbox.Attempt
	done      chan struct{}
	once      sync.Once
}

func (d *driver) Probe() []bawn.Capability                     { return nil }
func (d *driver) Prepare(context.Context, sandbox.Image) error { return nil }
func (d *driver) Close() error                                 { return nil }
func (d *driver) Start(_ context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	b := &box{d: d, id: s.ID, attempts: make(chan sandbox.Attempt), done: make(chan struct{})}
	for i, c := range []*net.Conn{&b.near, &b.far} {
		f := os.NewFile(uintptr(fds[i]), "socket")
		if *c, err = net.FileConn(f); err != nil {
			return nil, err
		}
		f.Close()
	}
	if b.out, err = os.Open(os.DevNull); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.started++
	d.mu.Unlock()
	go b.program()
	return b, nil
}

func (b *box) program() {
	answer(b.far, `{"type":"ready"}`, "")
	r := bufio.NewReader(b.far)
	for {
		var h [8]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		both := make([]byte, binary.BigEndian.Uint32(h[:])+binary.BigEndian.Uint32(h[4:]))
		io.ReadFull(r, both)
		head, body := both[:binary.BigEndian.Uint32(h[:])], both[binary.BigEndian.Uint32(h[:]):]
		var f struct{ Type, ID string }
		json.Unmarshal(head, &f)
		if f.Type == "load" {
			answer(b.far, `{"type":"loaded"}`, "")
			continue
		}
		b.d.run(b.far, f.ID, body)
	}
}

func (b *box) ID() string                                       { return b.id }
func (b *box) Conn() net.Conn                                   { return b.near }
func (b *box) Output() *os.File                                 { return b.out }
func (b *box) Attach(context.Context, sandbox.Attachment) error { return nil }
func (b *box) Exec(context.Context, []string, []string) error   { return errors.New("not parked") }
func (b *box) Open(context.Context, []sandbox.Port, []netip.Prefix) ([]*os.File, error) {
	return nil, errors.New("no network")
}
func (b *box) Freeze(context.Context) error { return nil }
func (b *box) Thaw(context.Context) error   { return nil }
func (b *box) CPU() (time.Duration, bool)   { return 0, false }
func (b *box) Stats(context.Context) (sandbox.Stats, error) {
	return sandbox.Stats{MaxMemory: 1 << 20}, nil
}
func (b *box) Inspect(context.Context) ([]bawn.Fact, error) { return nil, nil }
func (b *box) Attempts() <-chan sandbox.Attempt             { return b.attempts }
func (b *box) Done() <-chan struct{}                        { return b.done }
func (b *box) Exit() sandbox.Exit                           { return sandbox.Exit{Code: -1, Signal: "killed"} }
func (b *box) Kill() {
	b.once.Do(func() {
		b.far.Close()
		b.d.mu.Lock()
		b.d.killed++
		b.d.mu.Unlock()
		close(b.attempts)
		close(b.done)
	})
}

// A front is a public listener over everything but the sandbox.
type front struct {
	url    string
	client *http.Client
	key    string
	driver *driver
	log    *evidence.Log
	pool   *interior.Pool
	gate   *ingress.Gate
	calls  *invoke.Invoker
	mu     sync.Mutex
	lines  []bawn.LogLine
	seen   []invoke.Observation
}

func newFront(t testing.TB, run program, change func(*bawn.Version)) *front {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	f := &front{driver: &driver{run: run}}
	s, err := store.Open(ctx, store.Config{Dir: t.TempDir()})
	must(err)
	t.Cleanup(func() { s.Close() })
	functions, err := store.OpenTable[bawn.Function](ctx, s, "functions")
	must(err)
	versions, err := store.OpenTable[bawn.Version](ctx, s, "versions")
	must(err)
	keys, err := identity.OpenKeys(ctx, s)
	must(err)
	who, err := identity.Open(ctx, identity.Config{Store: s, Keys: keys, Dir: t.TempDir(), Secret: make([]byte, 32)})
	must(err)
	t.Cleanup(func() { who.Close() })
	f.key, _, err = keys.Create(ctx, bawn.Key{Name: "test", Tenant: "main", Role: bawn.RoleInvoker, CreatedBy: "test"})
	must(err)
	f.log, err = evidence.Open(ctx, evidence.Config{Dir: t.TempDir(), Key: make([]byte, 32)})
	must(err)
	t.Cleanup(func() { f.log.Close() })
	v := bawn.Version{
		Tenant: "main", Function: "hello", Number: 1, Digest: "sha256:1", Runtime: bawn.Python311,
		Perimeter: bawn.Perimeter{
			Ingress: bawn.Ingress{HTTP: []bawn.Route{
				{Method: "ANY", Path: "/hello"}, {Method: "GET", Path: "/users/{id}"},
				{Method: "ANY", Path: "/open", Access: bawn.Access{Public: &bawn.PublicAccess{Reason: "test", Until: time.Now().Add(time.Hour)}}},
			}},
			Interior: bawn.Interior{
				Memory: 256 << 20, CPU: 1, PIDs: 64, Tmp: 1 << 20, Timeout: 30 * time.Second, Concurrency: 50,
				Reuse: bawn.Reuse{MaxAge: time.Hour},
			},
		},
	}
	if change != nil {
		change(&v)
	}
	_, err = versions.Create(ctx, "main.hello.1", v)
	must(err)
	_, err = functions.Create(ctx, "main.hello", bawn.Function{Tenant: "main", Name: "hello", Latest: 1, Aliases: map[string]int{"live": 1}})
	must(err)
	log := func(l bawn.LogLine, _ time.Duration) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.lines) < 1000 {
			f.lines = append(f.lines, l)
		}
	}
	f.pool = interior.NewPool(interior.Config{
		Driver:      f.driver,
		Definitions: []interior.Definition{{Runtime: bawn.Python311, Image: sandbox.Image{Name: "python3.11"}, Args: []string{"python3"}}},
		Code:        func(context.Context, *bawn.Version) ([]string, error) { return []string{"/code"}, nil },
		Record:      f.log.Append, Log: log,
	})
	t.Cleanup(f.pool.Close)
	f.gate, err = ingress.Open(ctx, ingress.Config{
		Functions: functions, Versions: versions, Identity: who, Policy: policy.New(f.log, nil), Record: f.log.Append, Runtimes: f.pool.Expect, Removed: f.pool.Retire,
	})
	must(err)
	t.Cleanup(f.gate.Close)
	invoker := invoke.New(invoke.Config{Gate: f.gate, Pool: f.pool, Evidence: f.log, Log: log, Observe: func(o invoke.Observation) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.seen) < 1000 {
			f.seen = append(f.seen, o)
		}
	}})
	f.calls = invoker
	srv := httptest.NewUnstartedServer(NewHTTP(HTTPConfig{Invoker: invoker}))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	f.url, f.client = srv.URL, srv.Client()
	return f
}

// do makes one request with the front's key, unless a header says otherwise.
func (f *front) do(t testing.TB, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, f.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+f.key)
	for i := 0; i < len(header); i += 2 {
		if r.Header.Del(header[i]); header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

// echo answers with the event as the body.
func echo(w io.Writer, id string, event []byte) { respond(w, id, string(event)) }

func TestCall(t *testing.T) {
	f := newFront(t, echo, nil)
	resp, body := f.do(t, "GET", "/users/a%20b?x=1", "", "X-Bawn-Forged", "1")
	var e struct {
		RawPath        string
		Headers        map[string]string
		PathParameters map[string]string
		RequestContext struct{ RequestID string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	id := resp.Header.Get("X-Request-Id")
	if resp.StatusCode != 200 || e.RawPath != "/users/a%20b" || e.PathParameters["id"] != "a b" || id == "" || e.RequestContext.RequestID != id {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
	if strings.Contains(body, f.key) || strings.Contains(strings.ToLower(body), "forged") {
		t.Errorf("the event holds what it must not: %s", body)
	}

	// Its story is in the evidence: allowed, then how it ended.
	if err := f.log.Close(); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	f.log.Read(context.Background(), evidence.Query{Tenant: "main", Invocation: id}, func(r bawn.Record) error {
		kinds = append(kinds, string(r.Kind)+" "+r.Outcome)
		return nil
	})
	if got := strings.Join(kinds, ", "); got != "decision allow, outcome ok" {
		t.Errorf("the evidence says %s", got)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) != 1 || f.seen[0].Result == nil || f.seen[0].Version == nil || f.gate.Running() != 0 {
		t.Errorf("observed %+v", f.seen)
	}
}

func TestRefusals(t *testing.T) {
	f := newFront(t, echo, nil)
	for _, test := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		message                  string
	}{
		{"no key", "GET", "/hello", "", []string{"Authorization", ""}, 401, "a credential is needed"},
		{"wrong key", "GET", "/hello", "", []string{"Authorization", "Bearer bawn_a_b"}, 401, ""},
		{"another's scheme", "GET", "/hello", "", []string{"Authorization", "Basic x"}, 401, "a credential is needed"},
		{"unknown route", "GET", "/nothing", "", nil, 404, "Not Found"},
		{"unknown method", "DELETE", "/users/7", "", nil, 404, "Not Found"},
		{"two slashes", "GET", "//hello", "", nil, 400, ""},
		{"dots", "GET", "/a/..%2fhello", "", nil, 400, ""},
		{"too large", "POST", "/hello", strings.Repeat("x", bawn.MaxEventBytes+1), nil, 413, ""},
		{"too large as an event", "POST", "/hello", strings.Repeat("\x01", bawn.MaxEventBytes/2), nil, 413, ""},
		{"too many parameters", "GET", "/hello?" + strings.Repeat("a&", maxParameters), "", nil, 400, "parameters"},
		{"HEAD", "HEAD", "/nothing", "", nil, 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := f.do(t, test.method, test.path, test.body, test.header...)
			if resp.StatusCode != test.status {
				t.Fatalf("got %d %s", resp.StatusCode, body)
			}
			if test.method == "HEAD" {
				return
			}
			var e struct{ Message, ID string }
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.ID == "" || e.ID != resp.Header.Get("X-Request-Id") || !strings.Contains(e.Message, test.message) {
				t.Errorf("got %s", body)
			}
			if resp.StatusCode == 401 && resp.Header.Get("Www-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
		})
	}
	if n := f.pool.Stats(); n.Calls != 0 || n.Misses != 0 {
		t.Errorf("a refused request cost a sandbox: %+v", n)
	}
	// The rest of a path that is public needs none.
	if resp, body := f.do(t, "GET", "/open", "", "Authorization", "Bearer of-the-function"); resp.StatusCode != 200 || !strings.Contains(body, "of-the-function") {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
	f.gate.Drain()
	if resp, _ := f.do(t, "GET", "/open", ""); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("draining: %d", resp.StatusCode)
	}
}

// What the function does wrong is 502 to the caller, with an id and nothing
// else; why is in the function's log. Control D6.
func TestD6(t *testing.T) {
	for _, test := range []struct {
		name   string
		run    program
		status int
		note   string
	}{
		{"error", func(w io.Writer, id string, _ []byte) {
			answer(w, `{"type":"error","id":"`+id+`"}`, `{"errorType":"SecretError","errorMessage":"/var/task/app.py: secret"}`)
		}, 502, ""},
		{"not JSON", func(w io.Writer, id string, _ []byte) { respond(w, id, "secret") }, 502, "not JSON"},
		{"bad header", func(w io.Writer, id string, _ []byte) {
			respond(w, id, `{"statusCode":200,"headers":{"x":"secret\r\nset-cookie: a=b"}}`)
		}, 502, "line break"},
		{"protocol", func(w io.Writer, id string, _ []byte) { w.Write([]byte(strings.Repeat("secret", 20))) }, 502, "ended"},
		{"gone", func(w io.Writer, id string, _ []byte) { w.(net.Conn).Close() }, 502, "ended"},
		{"stream fails at once", func(w io.Writer, id string, _ []byte) {
			answer(w, `{"type":"stream","id":"`+id+`"}`, "")
			answer(w, `{"type":"error","id":"`+id+`"}`, `{"errorMessage":"secret"}`)
		}, 502, "streaming"},
		{"bad prelude", func(w io.Writer, id string, _ []byte) {
			answer(w, `{"type":"stream","contentType":"`+bawn.PreludeType+`","id":"`+id+`"}`, "")
			answer(w, `{"type":"chunk"}`, "secret\x00\x00\x00\x00\x00\x00\x00\x00")
			answer(w, `{"type":"end","id":"`+id+`"}`, "")
		}, 502, "beginning of the stream"},
		{"time-out", func(w io.Writer, id string, _ []byte) {}, 504, "timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, test.run, func(v *bawn.Version) { v.Perimeter.Interior.Timeout = 300 * time.Millisecond })
			resp, body := f.do(t, "GET", "/hello", "")
			id := resp.Header.Get("X-Request-Id")
			want := `{"message":"Internal Server Error","id":"` + id + "\"}\n"
			if test.status == 504 {
				want = `{"message":"Gateway Timeout","id":"` + id + "\"}\n"
			}
			if resp.StatusCode != test.status || body != want {
				t.Errorf("got %d %s, want %s", resp.StatusCode, body, want)
			}
			for _, values := range resp.Header {
				if strings.Contains(strings.Join(values, ""), "secret") {
					t.Errorf("headers %v", resp.Header)
				}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			found := test.note == ""
			for _, l := range f.lines {
				found = found || l.Platform && l.Invocation == id && strings.Contains(l.Text, test.note)
			}
			if !found {
				t.Errorf("the log does not say %q: %+v", test.note, f.lines)
			}
		})
	}
}

// What is wrong with the node, or how it is set up, is not for who calls: that
// hears a fixed sentence and the id under which the owner reads the rest.
// Control D6.
func TestD6OfTheNode(t *testing.T) {
	f := newFront(t, echo, nil)
	var log bytes.Buffer
	h := NewHTTP(HTTPConfig{Invoker: f.calls, Errors: slog.New(slog.NewTextHandler(&log, nil))}).(*httpTrigger)
	fail := func(ctx context.Context, id string, err error) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.fail(w, httptest.NewRequestWithContext(ctx, "GET", "/hello", nil),
			&bawn.Call{ID: id, Target: bawn.Ref{Tenant: "main", Function: "hello"}, Principal: bawn.Anonymous()}, err)
		return w
	}
	noted := func(id, text string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.ContainsFunc(f.lines, func(l bawn.LogLine) bool {
			return l.Platform && l.Invocation == id && strings.Contains(l.Text, text)
		})
	}
	own := map[bawn.Code]bool{bawn.CodeInvalid: true, bawn.CodeUnauthenticated: true, bawn.CodeDenied: true, bawn.CodeTooLarge: true}
	for code, want := range map[bawn.Code]string{
		bawn.CodeInvalid: "400", bawn.CodeUnauthenticated: "401", bawn.CodeDenied: "403", bawn.CodeTooLarge: "413",
		bawn.CodeNotFound: "404 Not Found", bawn.CodeConflict: "500 Internal Server Error", bawn.CodeUnprocessable: "500 Internal Server Error",
		bawn.CodeThrottled: "429 Too Many Requests", bawn.CodeInternal: "500 Internal Server Error", bawn.CodeUnavailable: "503 Service Unavailable",
		bawn.CodeFunctionError: "502 Internal Server Error", bawn.CodeFunctionTimeout: "504 Gateway Timeout",
	} {
		id := "id-" + string(code)
		w := fail(t.Context(), id, bawn.Wrap(errors.New("the cause"), code, "op", "the detail").WithFix("the way out"))
		body := w.Body.String()
		exact := `{"message":"` + want[min(4, len(want)):] + `","id":"` + id + "\"}\n"
		if own[code] {
			exact = `{"message":"the detail","id":"` + id + `","fix":"the way out"}` + "\n"
		}
		if strconv.Itoa(w.Code) != want[:3] || body != exact {
			t.Errorf("%s: %d %s, want %s", code, w.Code, body, exact)
		}
		if retry := w.Header().Get("Retry-After") != ""; retry != (w.Code == 429 || w.Code == 503) {
			t.Errorf("%s: Retry-After %v", code, retry)
		}
		if told := noted(id, "the detail; the way out"); told == (own[code] || code == bawn.CodeNotFound) {
			t.Errorf("%s: in the function's log: %v", code, told)
		}
	}
	if w := fail(t.Context(), "id-other", errors.New("the cause")); w.Code != 500 || strings.Contains(w.Body.String(), "cause") || !noted("id-other", "internal") {
		t.Errorf("another error: %d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "id-unavailable") || !strings.Contains(log.String(), "id-other") {
		t.Errorf("the node's log: %s", log.String())
	}

	// Who hangs up while the call waits has not met an error.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log.Reset()
	fail(ctx, "id-gone", bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "run", "the caller went away"))
	if log.Len() > 0 || noted("id-gone", "") {
		t.Errorf("of a caller who went away the log says %s", log.String())
	}
}

// Before calls can be served, the answer has the form of any other.
func TestUnavailable(t *testing.T) {
	w := httptest.NewRecorder()
	Unavailable(w, httptest.NewRequest("GET", "/hello", nil))
	var e struct{ Message, ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != 503 || e.ID == "" || e.ID != w.Header().Get("X-Request-Id") ||
		w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Retry-After") == "" || e.Message != "Service Unavailable" {
		t.Errorf("got %d %s %v", w.Code, w.Body, w.Header())
	}
}

func TestHead(t *testing.T) {
	f := newFront(t, func(w io.Writer, id string, _ []byte) {
		respond(w, id, `{"statusCode":203,"headers":{"x-a":"b"},"body":"1234"}`)
	}, nil)
	resp, body := f.do(t, "HEAD", "/users/7", "")
	if resp.StatusCode != 203 || resp.ContentLength != 4 || body != "" || resp.Header.Get("X-A") != "b" {
		t.Errorf("got %+v %q", resp, body)
	}
}

// Each part of a stream arrives when it is sent.
func TestStreaming(t *testing.T) {
	next := make(chan bool)
	f := newFront(t, func(w io.Writer, id string, _ []byte) {
		answer(w, `{"type":"stream","contentType":"`+bawn.PreludeType+`","id":"`+id+`"}`, "")
		answer(w, `{"type":"chunk"}`, `{"statusCode":201,"headers":{"content-type":"text/event-stream"},"cookies":["a=b"]}`+"\x00\x00\x00\x00")
		answer(w, `{"type":"chunk"}`, "\x00\x00\x00\x00one\n")
		for i := range 3 {
			<-next
			answer(w, `{"type":"chunk"}`, fmt.Sprintf("part %d\n", i))
		}
		<-next
		answer(w, `{"type":"end","id":"`+id+`"}`, "")
	}, nil)
	r, _ := http.NewRequest("GET", f.url+"/hello", nil)
	r.Header.Set("Authorization", "Bearer "+f.key)
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 201 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Set-Cookie") != "a=b" {
		t.Errorf("got %+v", resp)
	}
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"one\n", "part 0\n", "part 1\n", "part 2\n"} {
		if got, err := lines.ReadString('\n'); got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
		next <- true
	}
	if _, err := lines.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
}

// A stream that fails midway does not look complete, and a caller that goes
// away ends the instance.
func TestStreamingEndsBadly(t *testing.T) {
	f := newFront(t, func(w io.Writer, id string, event []byte) {
		answer(w, `{"type":"stream","contentType":"text/plain","id":"`+id+`"}`, "")
		answer(w, `{"type":"chunk"}`, "one")
		if strings.Contains(string(event), "fail=1") {
			answer(w, `{"type":"error","id":"`+id+`"}`, `{"errorMessage":"secret"}`)
			return
		}
		for {
			b := make([]byte, 8, 8+64<<10)
			head := `{"type":"chunk"}`
			binary.BigEndian.PutUint32(b, uint32(len(head)))
			binary.BigEndian.PutUint32(b[4:], 32<<10)
			if _, err := w.Write(append(append(b, head...), make([]byte, 32<<10)...)); err != nil {
				return
			}
		}
	}, nil)
	get := func(path string) *http.Response {
		r, _ := http.NewRequest("GET", f.url+path, nil)
		r.Header.Set("Authorization", "Bearer "+f.key)
		resp, err := f.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := get("/hello?fail=1")
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err == nil || string(b) != "one" || resp.StatusCode != 200 {
		t.Errorf("a failed stream reads %q, %v", b, err)
	}
	resp = get("/hello")
	resp.Body.Read(make([]byte, 3))
	f.client.CloseIdleConnections()
	resp.Body.Close()
	for range 500 { // until the server has noticed
		if f.pool.Stats().Instances["busy"] == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	f.driver.mu.Lock()
	if f.driver.killed == 0 || f.pool.Stats().Instances["busy"] != 0 {
		t.Errorf("%d killed, %+v", f.driver.killed, f.pool.Stats())
	}
	f.driver.mu.Unlock()

	// The head is all that HEAD asks for.
	r, _ := http.NewRequest("HEAD", f.url+"/hello", nil)
	r.Header.Set("Authorization", "Bearer "+f.key)
	if resp, err := f.client.Do(r); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/plain" {
		t.Fatalf("%+v, %v", resp, err)
	}

	// The first failed. That the others were not read to their end is not the
	// function's failure.
	f.seenAtLeast(3)
	if err := f.log.Close(); err != nil {
		t.Fatal(err)
	}
	var outcomes []string
	f.log.Read(t.Context(), evidence.Query{Kinds: []bawn.RecordKind{bawn.KindOutcome}}, func(r bawn.Record) error {
		outcomes = append(outcomes, r.Outcome+" "+r.Reason)
		return nil
	})
	const left = "ok the caller left before the end of the answer"
	if want := []string{"error function_error", left, left}; !slices.Equal(outcomes, want) {
		t.Errorf("the evidence says %q", outcomes)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, o := range f.seen {
		if failed := o.Result.FunctionError != ""; failed != (i == 0) {
			t.Errorf("call %d: %+v", i, o.Result)
		}
	}
}

// seenAtLeast waits until n calls are over. The test's own timeout ends a wait
// in vain.
func (f *front) seenAtLeast(n int) {
	for {
		f.mu.Lock()
		seen := len(f.seen)
		f.mu.Unlock()
		if seen >= n {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// BenchmarkCall is a warm call over TLS, everything real but the sandbox.
func BenchmarkCall(b *testing.B) {
	f := newFront(b, func(w io.Writer, id string, _ []byte) { respond(w, id, `{"statusCode":200,"body":"hello"}`) }, nil)
	f.do(b, "GET", "/hello", "")
	b.ReportAllocs()
	for b.Loop() {
		f.do(b, "GET", "/hello", "")
	}
}
