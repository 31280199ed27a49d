package interior

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// program is a runtime's program without a sandbox: its worker and its log.
type program struct {
	*frameWorker
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
	eof chan struct{}
	raw syscall.RawConn // of the pipe that it writes to
}

// startProgram starts args with one end of a socket pair as descriptor 3, no
// input and one pipe for its output, as a sandbox does.
func startProgram(t testing.TB, env []string, args ...string) *program {
	t.Helper()
	return startProgramIn(t, "", env, args...)
}

// startProgramIn is [startProgram] with another root folder, if it is not "".
func startProgramIn(t testing.TB, root string, env []string, args ...string) *program {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{frameWorker: newFrameWorker(conn), cmd: exec.Command(args[0], args[1:]...), eof: make(chan struct{})}
	p.cmd.Env = append([]string{}, env...)
	if root != "" {
		p.cmd.Dir, p.cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
	}
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	w.Close()
	if p.raw, err = r.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.eof)
		p.raw.Read(func(fd uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.drain(int(fd))
		})
		r.Close()
	}()
	t.Cleanup(func() {
		p.close()
		p.cmd.Process.Kill()
		p.cmd.Wait()
		if t.Failed() {
			t.Logf("the program wrote:\n%s", p.log())
		}
	})
	return p
}

// log returns everything that the program had written when it was asked for.
func (p *program) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raw.Control(func(fd uintptr) { p.drain(int(fd)) }) // an error: it was read to its end
	return p.out.String()
}

// drain takes what the pipe holds; it reports its end. The caller holds mu.
func (p *program) drain(fd int) (end bool) {
	b := make([]byte, 4096)
	for {
		switch n, err := syscall.Read(fd, b); {
		case n > 0:
			p.out.Write(b[:n])
		case errors.Is(err, syscall.EINTR):
		default:
			return !errors.Is(err, syscall.EAGAIN)
		}
	}
}

// exit waits for the program to end and returns its status and its whole log.
func (p *program) exit(t testing.TB) (int, string) {
	t.Helper()
	p.cmd.Wait()
	<-p.eof
	return p.cmd.ProcessState.ExitCode(), p.log()
}

// writeFiles makes a folder with the files given as name and content in turn.
func writeFiles(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		name := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func testIdentity(r bawn.Runtime, handler string) Identity {
	return NewIdentity(&bawn.Version{
		Tenant: "acme", Function: "hello", Number: 3, Runtime: r, Handler: handler,
		Environment: map[string]string{"GREETING": "grüß Gott", "_HANDLER": "stolen"},
		Perimeter:   bawn.Perimeter{Interior: bawn.Interior{Memory: 256 << 20, Timeout: 10 * time.Second}},
	}, "i-1", time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))
}

// call invokes w with event and fails the test unless it answered.
func call(t testing.TB, w worker, event string) *bawn.Result {
	t.Helper()
	r, err := w.invoke(t.Context(), &bawn.Call{ID: bawn.NewID(), Event: []byte(event)}, time.Now().Add(20*time.Second))
	if err != nil {
		t.Fatalf("invoke: %v", err)
	}
	return r
}

// mustLoad loads the identity and fails the test if that fails.
func mustLoad(t testing.TB, w worker, id Identity) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.ready(ctx); err != nil {
		t.Fatalf("ready: %v", err)
	}
	if err := w.load(ctx, id); err != nil {
		var e *initError
		if errors.As(err, &e) {
			t.Fatalf("load: %s", e.Payload)
		}
		t.Fatalf("load: %v", err)
	}
}

// document decodes an error document.
func document(t testing.TB, b []byte) (d struct {
	ErrorMessage, ErrorType string
	RequestID               *string `json:"requestId"`
	StackTrace, Trace       []string
}) {
	t.Helper()
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatalf("%q is not an error document: %v", b, err)
	}
	return d
}

func frame(head string, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(append(b, head...), body...)
}

// scripted returns a worker whose other end is driven by script, which gets
// each request's head and returns the bytes to answer with; nil hangs up.
func scripted(t *testing.T, script func(head string, n int) []byte) *frameWorker {
	t.Helper()
	ours, theirs := net.Pipe()
	w := newFrameWorker(ours)
	t.Cleanup(w.close)
	go func() {
		defer theirs.Close()
		theirs.Write(frame(`{"type":"ready"}`, ""))
		r := bufio.NewReader(theirs)
		for n := 0; ; n++ {
			var h [8]byte
			if _, err := io.ReadFull(r, h[:]); err != nil {
				return
			}
			head := make([]byte, binary.BigEndian.Uint32(h[:]))
			io.ReadFull(r, head)
			io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(h[4:])))
			b := script(string(head), n)
			if b == nil {
				return
			}
			theirs.Write(b)
		}
	}()
	return w
}

func TestFrameWorkerRefusesWhatItDidNotAskFor(t *testing.T) {
	loaded := frame(`{"type":"loaded"}`, "")
	tests := []struct {
		name   string
		answer []byte
		want   string // in the error's message; "gone" for errGone
	}{
		{"hang up", nil, "gone"},
		{"half a header", []byte{0, 0, 0}, "gone"},
		{"empty head", frame("", "x"), "head has 0 bytes"},
		{"endless head", []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, "head has 4294967295 bytes"},
		{"endless body", []byte{0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, '{', '}'}, "body has 4294967295 bytes"},
		{"text in the way", []byte("hello, world\n, and so on"), "head has 1751477356 bytes"},
		{"head is not JSON", frame("{", ""), "not a JSON object with a type"},
		{"head without type", frame("{}", ""), "not a JSON object with a type"},
		{"unknown type", frame(`{"type":"gossip","id":"1"}`, ""), `type "gossip"`},
		{"other invocation", frame(`{"type":"response","id":"2"}`, "{}"), "not running"},
		{"no invocation", frame(`{"type":"response"}`, "{}"), "not running"},
		{"error for another", frame(`{"type":"error","id":"2"}`, "{}"), "not running"},
		{"huge error", append(frame(`{"type":"error","id":"1"}`, "")[:4], append([]byte{0, 0x10, 0, 0}, `{"type":"error","id":"1"}`...)...), "error document has"},
		{"stream with a body", frame(`{"type":"stream","id":"1"}`, "x"), "has a body"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := scripted(t, func(head string, n int) []byte {
				if n == 0 {
					return loaded
				}
				return tt.answer
			})
			mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
			if tt.want == "gone" && tt.answer != nil {
				time.AfterFunc(50*time.Millisecond, w.close)
			}
			_, err := w.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
			var e *bawn.Error
			switch {
			case tt.want == "gone":
				if !errors.Is(err, errGone) {
					t.Errorf("err = %v, want errGone", err)
				}
			case !errors.As(err, &e) || e.Code != bawn.CodeFunctionError || !strings.Contains(e.Message, tt.want):
				t.Errorf("err = %v, want a function_error that says %q", err, tt.want)
			}
			if w.alive() {
				t.Error("the worker would be used again")
			}
		})
	}
}

func TestFrameWorkerAnswerAheadOfTheCall(t *testing.T) {
	w := scripted(t, func(head string, n int) []byte {
		if n == 0 {
			return append(frame(`{"type":"loaded"}`, ""), frame(`{"type":"response","id":"1"}`, "{}")...)
		}
		return frame(`{"type":"response","id":"1"}`, `"honest"`)
	})
	mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
	r, err := w.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
	if err == nil {
		t.Fatalf("answered %s with what was sent before the call", r.Payload)
	}
}

func TestFrameWorkerOversizedResponse(t *testing.T) {
	head := `{"type":"response","id":"1"}`
	w := scripted(t, func(_ string, n int) []byte {
		if n == 0 {
			return frame(`{"type":"loaded"}`, "")
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
		return append(binary.BigEndian.AppendUint32(b, bawn.MaxResponseBytes+1), head...)
	})
	mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
	r, err := w.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if d := document(t, r.Payload); d.ErrorType != "Function.ResponseSizeTooLarge" || r.FunctionError != "Unhandled" || w.alive() {
		t.Errorf("got %s, FunctionError %q, alive %v", r.Payload, r.FunctionError, w.alive())
	}
}

func TestFrameWorkerEndings(t *testing.T) {
	hang := func(head string, n int) []byte {
		if n == 0 {
			return frame(`{"type":"loaded"}`, "")
		}
		return []byte{}
	}
	t.Run("deadline", func(t *testing.T) {
		w := scripted(t, hang)
		mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
		_, err := w.invoke(t.Context(), &bawn.Call{ID: "1"}, time.Now().Add(20*time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || w.alive() {
			t.Errorf("err = %v, alive %v", err, w.alive())
		}
	})
	t.Run("context", func(t *testing.T) {
		w := scripted(t, hang)
		mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := w.invoke(ctx, &bawn.Call{ID: "1"}, time.Now().Add(time.Minute))
		if !errors.Is(err, context.Canceled) || w.alive() {
			t.Errorf("err = %v, alive %v", err, w.alive())
		}
	})
	t.Run("close", func(t *testing.T) {
		w := scripted(t, hang)
		mustLoad(t, w, testIdentity(bawn.Python311, "a.b"))
		time.AfterFunc(20*time.Millisecond, w.close)
		if _, err := w.invoke(t.Context(), &bawn.Call{ID: "1"}, time.Now().Add(time.Minute)); !errors.Is(err, errGone) {
			t.Errorf("err = %v, want errGone", err)
		}
	})
}

func TestFrameStream(t *testing.T) {
	begin := frame(`{"type":"stream","id":"1","contentType":"text/plain"}`, "")
	chunk := frame(`{"type":"chunk"}`, "hello")
	tests := []struct {
		name   string
		answer []byte
		text   string
		err    string // "" for a clean end, "stream" for a StreamError, else a part of the message
		alive  bool
	}{
		{"empty", bytes.Join([][]byte{begin, frame(`{"type":"end"}`, "")}, nil), "", "", true},
		{"two chunks", bytes.Join([][]byte{begin, chunk, chunk, frame(`{"type":"end"}`, "")}, nil), "hellohello", "", true},
		{"empty chunk", bytes.Join([][]byte{begin, chunk, frame(`{"type":"chunk"}`, ""), chunk}, nil), "hello", "is empty", false},
		{"long head", bytes.Join([][]byte{begin, chunk, frame(`{"type":"chunk"`+strings.Repeat(" ", 300)+`}`, "x")}, nil), "hello", "not 1 to 256", false},
		{"chunk in other words", bytes.Join([][]byte{begin, chunk, frame(`{"type": "chunk"}`, "x")}, nil), "hello", "inside a stream", false},
		{"late error", bytes.Join([][]byte{begin, chunk, frame(`{"type":"error","id":"1"}`, `{"errorType":"E"}`)}, nil), "hello", "stream", true},
		{"last error", bytes.Join([][]byte{begin, frame(`{"type":"error","id":"1","exit":true}`, `{}`)}, nil), "", "stream", false},
		{"error of another call", bytes.Join([][]byte{begin, frame(`{"type":"error","id":"2"}`, `{}`)}, nil), "", "not running", false},
		{"end with a body", bytes.Join([][]byte{begin, frame(`{"type":"end"}`, `x`)}, nil), "", "has a body", false},
		{"response inside", bytes.Join([][]byte{begin, chunk, frame(`{"type":"response","id":"1"}`, `x`)}, nil), "hello", "inside a stream", false},
		{"endless chunk", bytes.Join([][]byte{begin, frame(`{"type":"chunk"}`, "")[:4], {0x7f, 0, 0, 0}, []byte(`{"type":"chunk"}`)}, nil), "", "stream", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := scripted(t, func(_ string, n int) []byte {
				if n == 0 {
					return frame(`{"type":"loaded"}`, "")
				}
				return tt.answer
			})
			mustLoad(t, w, testIdentity(bawn.NodeJS20, "a.b"))
			r, err := w.invoke(t.Context(), &bawn.Call{ID: "1"}, time.Now().Add(10*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if r.ContentType != "text/plain" || r.Payload != nil {
				t.Errorf("content type %q, payload %q", r.ContentType, r.Payload)
			}
			b, err := io.ReadAll(r.Stream)
			if string(b) != tt.text {
				t.Errorf("read %q, want %q", b, tt.text)
			}
			var se *bawn.StreamError
			switch {
			case tt.err == "" && err != nil, tt.err == "stream" && !errors.As(err, &se),
				tt.err != "" && tt.err != "stream" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("err = %v, want %q", err, tt.err)
			}
			if w.alive() != tt.alive {
				t.Errorf("alive = %v, want %v", w.alive(), tt.alive)
			}
		})
	}
	t.Run("many heads", func(t *testing.T) {
		w := scripted(t, func(_ string, n int) []byte {
			if n == 0 {
				return frame(`{"type":"loaded"}`, "")
			}
			return append(slices.Clone(begin), bytes.Repeat(frame(chunkHead, "x"), 100)...)
		})
		mustLoad(t, w, testIdentity(bawn.NodeJS20, "a.b"))
		r, err := w.invoke(t.Context(), &bawn.Call{ID: "1"}, time.Now().Add(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		s := r.Stream.(*frameStream)
		s.heads = 10 * int64(len(frame(chunkHead, "")))
		reads, got := 0, 0
		for {
			n, err := s.Read(make([]byte, 1000))
			reads, got = reads+1, got+n
			if err != nil {
				if !errors.As(err, new(*bawn.StreamError)) || got != 10 || w.alive() {
					t.Errorf("ended with %v after %d bytes, alive %v", err, got, w.alive())
				}
				break
			}
		}
		if reads > 5 {
			t.Errorf("10 chunks that came together took %d reads", reads)
		}
	})
	t.Run("closed early", func(t *testing.T) {
		w := scripted(t, func(_ string, n int) []byte {
			if n == 0 {
				return frame(`{"type":"loaded"}`, "")
			}
			return begin
		})
		mustLoad(t, w, testIdentity(bawn.NodeJS20, "a.b"))
		r, err := w.invoke(t.Context(), &bawn.Call{ID: "1"}, time.Now().Add(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		r.Stream.Close()
		if w.alive() {
			t.Error("the rest of the stream would meet the next call")
		}
	})
}

func TestInvokeHead(t *testing.T) {
	w := newFrameWorker(nil)
	id := testIdentity(bawn.Python311, "a.b")
	w.arn = id.ARN("")
	c := &bawn.Call{ID: "x", TraceID: `Root=1;"é`, Client: `{"a":"\u0001"}`, Target: bawn.Ref{Qualifier: "live"}}
	var got struct {
		Type, ID, ARN, Trace, Client string
		Deadline                     int64
	}
	if err := json.Unmarshal(w.appendInvokeHead(nil, c, time.UnixMilli(1234)), &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != "x" || got.Trace != c.TraceID || got.Client != c.Client || got.Deadline != 1234 ||
		got.ARN != "arn:aws:lambda:us-east-1:123456789012:function:hello:live" {
		t.Errorf("head says %+v", got)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("hello"))
	f.Add(frame(`{"type":"response","id":"1"}`, "{}"))
	f.Add(frame(`{"type":"stream","id":"1","contentType":"a/b"}`, ""))
	f.Add(append(frame(`{"type":"chunk"}`, "abc"), frame(`{"type":"end"}`, "")...))
	f.Add([]byte{0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		const max = 1 << 20
		want := []byte(`{"type":"response","id":"1"}`)
		r := bufio.NewReaderSize(bytes.NewReader(data), 64)
		used := 0
		for {
			h, n, err := readFrameHead(r, maxFrameHead, want)
			if err != nil {
				return
			}
			if n < 0 || h.Type == "" && !bytes.Contains(data, want) {
				t.Fatalf("head %+v, body %d", h, n)
			}
			if n > max {
				return
			}
			body, err := readBody(r, n)
			if err != nil {
				return
			}
			used += frameHeaderBytes + 1 + len(body)
			if len(body) != n || used > len(data) {
				t.Fatalf("read %d bytes of a body of %d, %d of %d in all", len(body), n, used, len(data))
			}
		}
	})
}

// socketPair returns two connected stream sockets, which buffer as those of a
// sandbox do.
func socketPair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// A program's last words count although it has ended before they are read.
func TestFrameWorkerReadsTheLastWordsOfAProgram(t *testing.T) {
	tests := []struct {
		name string
		last []byte
		use  func(w *frameWorker) error
	}{
		{"load", frame(`{"type":"failed"}`, `{"errorMessage":"no module"}`), func(w *frameWorker) error {
			err := w.load(t.Context(), testIdentity(bawn.Python311, "a.b"))
			var init *initError
			if !errors.As(err, &init) || !strings.Contains(string(init.Payload), "no module") {
				return fmt.Errorf("load: %v, want what the program reported", err)
			}
			return nil
		}},
		{"invoke", frame(`{"type":"response","id":"1"}`, `"bye"`), func(w *frameWorker) error {
			r, err := w.invoke(context.Background(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
			if err != nil || string(r.Payload) != `"bye"` {
				return fmt.Errorf("invoke: %v, %v, want the answer", r, err)
			}
			return nil
		}},
		{"stream", append(append(frame(`{"type":"stream","id":"1"}`, ""), frame(chunkHead, "bye")...), frame(`{"type":"end","id":"1"}`, "")...), func(w *frameWorker) error {
			r, err := w.invoke(context.Background(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
			if err != nil {
				return fmt.Errorf("invoke: %w", err)
			}
			if b, err := io.ReadAll(r.Stream); err != nil || string(b) != "bye" {
				return fmt.Errorf("stream: %q, %v, want all of it", b, err)
			}
			return nil
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 500 {
				ours, theirs := socketPair(t)
				w := newFrameWorker(ours)
				w.awake = true // what is asked of it is the first frame
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					readFrame(bufio.NewReader(theirs), 1<<20)
					theirs.Write(tt.last)
					theirs.Close()
					w.ended()
				}()
				if err := tt.use(w); err != nil {
					t.Fatal(err)
				}
				<-ended
				if w.alive() {
					t.Fatal("the worker would be used again")
				}
				if err := ours.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
					t.Fatalf("the connection is left open: %v", err)
				}
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		ours, theirs := socketPair(t)
		w := newFrameWorker(ours)
		theirs.Close()
		w.ended()
		if err := ours.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("the connection is left open: %v", err)
		}
	})
}
