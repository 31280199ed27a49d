package interior

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/aws/aws-lambda-go/lambdacontext" // what testdata/bootstrap is built with

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// apiServer is a Runtime API without a sandbox.
type apiServer struct {
	*apiWorker
	addr string
	mu   sync.Mutex
	seen []sandbox.Attempt
}

func startAPI(t testing.TB) *apiServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{addr: ln.Addr().String()}
	s.apiWorker = newRuntimeAPIWorker(ln, func(a sandbox.Attempt) {
		s.mu.Lock()
		s.seen = append(s.seen, a)
		s.mu.Unlock()
	})
	t.Cleanup(s.close)
	return s
}

func (s *apiServer) attempts() []sandbox.Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// client is one connection to the Runtime API.
type apiClient struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func (s *apiServer) dial(t *testing.T) *apiClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &apiClient{t, conn, bufio.NewReader(conn)}
}

func (c *apiClient) send(method, path, headers, body string) {
	fmt.Fprintf(c.conn, "%s %s HTTP/1.1\r\nHost: x\r\n%s", method, path, headers)
	if !strings.Contains(headers, "Transfer-Encoding") && !strings.Contains(headers, "Content-Length") {
		fmt.Fprintf(c.conn, "Content-Length: %d\r\n", len(body))
	}
	io.WriteString(c.conn, "\r\n"+body)
}

func (c *apiClient) receive() (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	b, _ := io.ReadAll(res.Body)
	return res, string(b)
}

// expect sends a request and checks the answer's status and what it says.
func (c *apiClient) expect(status int, text, method, path, headers, body string) {
	c.t.Helper()
	c.send(method, path, headers, body)
	res, b := c.receive()
	if res.StatusCode != status || !strings.Contains(b, text) {
		c.t.Errorf("%s %s: %d %s, want %d %s", method, path, res.StatusCode, b, status, text)
	}
}

const nextPath = apiPrefix + "invocation/next"

// begin polls, loads and starts an invocation with id, and returns its end.
func (s *apiServer) begin(t *testing.T, c *apiClient, id string) <-chan *bawn.Result {
	t.Helper()
	c.send("GET", nextPath, "", "")
	if s.waiting == nil && s.arn == "" {
		mustLoad(t, s, testIdentity(bawn.Provided, "x"))
	}
	out := make(chan *bawn.Result, 1)
	go func() {
		r, err := s.invoke(context.Background(), &bawn.Call{ID: id, Event: []byte(`{"a":1}`)}, time.Now().Add(20*time.Second))
		if err != nil {
			r = &bawn.Result{FunctionError: err.Error()}
		}
		out <- r
	}()
	res, body := c.receive()
	if res.StatusCode != 200 || body != `{"a":1}` || res.Header.Get("Lambda-Runtime-Aws-Request-Id") != id {
		t.Fatalf("next: %d %s %v", res.StatusCode, body, res.Header)
	}
	return out
}

func TestRuntimeAPIHeaders(t *testing.T) {
	s := startAPI(t)
	c := s.dial(t)
	c.send("GET", nextPath, "", "")
	mustLoad(t, s, testIdentity(bawn.Provided, "x"))
	deadline := time.Now().Add(20 * time.Second)
	go s.invoke(context.Background(), &bawn.Call{ID: "1", Event: []byte("{}")}, deadline)
	res, _ := c.receive()
	for name, want := range map[string]string{
		"Lambda-Runtime-Aws-Request-Id": "1", "Content-Type": "application/json",
		"Lambda-Runtime-Deadline-Ms":          fmt.Sprint(deadline.UnixMilli()),
		"Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:hello",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"Lambda-Runtime-Trace-Id", "Lambda-Runtime-Client-Context", "Lambda-Runtime-Cognito-Identity"} {
		if v, ok := res.Header[name]; ok {
			t.Errorf("%s = %q, want it absent", name, v)
		}
	}
	c.expect(202, `{"status":"OK"}`, "POST", apiPrefix+"invocation/1/response", "", "{}")
	c.send("GET", nextPath, "", "")
	go s.invoke(context.Background(), &bawn.Call{ID: "2", Event: []byte("{}"), TraceID: "Root=1", Client: `{"a":1}`, Target: bawn.Ref{Qualifier: "live"}}, deadline)
	res, _ = c.receive()
	if h := res.Header; h.Get("Lambda-Runtime-Trace-Id") != "Root=1" || h.Get("Lambda-Runtime-Client-Context") != `{"a":1}` ||
		h.Get("Lambda-Runtime-Invoked-Function-Arn") != "arn:aws:lambda:us-east-1:123456789012:function:hello:live" {
		t.Errorf("headers %v", h)
	}
}

func TestRuntimeAPIRefusals(t *testing.T) {
	s := startAPI(t)
	c := s.dial(t)
	c.expect(200, "pong", "GET", "/2018-06-01/ping", "", "")
	c.expect(404, "", "GET", apiPrefix+"restore/next", "", "")
	c.expect(404, "", "GET", "/", "", "")
	c.expect(404, "", "PUT", nextPath, "", "")
	c.expect(404, "", "POST", apiPrefix+"invocation/1/gossip", "", "")
	c.expect(202, "Telemetry.NotSupported", "PUT", "/2022-07-01/telemetry", "", "{}")
	c.expect(403, "InvalidStateTransition", "POST", apiPrefix+"invocation/1/response", "", "{}")
	out := s.begin(t, c, "1")
	c.expect(400, "InvalidRequestID", "POST", apiPrefix+"invocation/2/response", "", "{}")
	c.expect(400, "InvalidFunctionResponseMode", "POST", apiPrefix+"invocation/1/response", modeHeader+": backwards\r\n", "{}")
	c.expect(403, "InvalidStateTransition", "POST", apiPrefix+"init/error", "", "{}")
	c.expect(403, "InvalidStateTransition", "GET", nextPath, "", "")
	if n := len(s.attempts()); n != 0 {
		t.Errorf("%d second pollers were reported; it was the first", n)
	}
	c.expect(202, `{"status":"OK"}`, "POST", apiPrefix+"invocation/1/response", "Content-Type: text/x\r\n", `"yes"`)
	if r := <-out; string(r.Payload) != `"yes"` || r.ContentType != "text/x" || r.FunctionError != "" {
		t.Errorf("result %+v", r)
	}
	c.expect(403, "InvalidStateTransition", "POST", apiPrefix+"invocation/1/response", "", "{}")
	c.expect(403, "InvalidStateTransition", "POST", apiPrefix+"invocation/1/error", "", "{}")
	out = s.begin(t, c, "2")
	c.expect(400, "InvalidRequestID", "POST", apiPrefix+"invocation/1/response", "", "{}")
	c.expect(202, "OK", "POST", apiPrefix+"invocation/2/error", "Lambda-Runtime-Function-XRay-Error-Cause: "+strings.Repeat("x", 1<<20)+"\r\n", `{"errorMessage":"m","errorType":"t"}`)
	if r := <-out; string(r.Payload) != `{"errorMessage":"m","errorType":"t"}` || r.FunctionError != "Unhandled" || r.Cause != bawn.CodeFunctionError {
		t.Errorf("result %+v", r)
	}
	out = s.begin(t, c, "3")
	c.expect(202, "OK", "POST", apiPrefix+"invocation/3/error", "Lambda-Runtime-Function-Error-Type: Runtime.Odd\r\n", "")
	if r := <-out; string(r.Payload) != `{"errorType":"Runtime.Odd","errorMessage":""}` {
		t.Errorf("result %s", r.Payload)
	}
}

func TestRuntimeAPISizes(t *testing.T) {
	s := startAPI(t)
	c := s.dial(t)
	out := s.begin(t, c, "1")
	go c.send("POST", apiPrefix+"invocation/1/response", "", strings.Repeat("x", bawn.MaxResponseBytes+1))
	if r := <-out; document(t, r.Payload).ErrorType != "Function.ResponseSizeTooLarge" || !s.alive() {
		t.Errorf("result %.200s", r.Payload)
	}
	res, body := c.receive()
	if res.StatusCode != 413 || !strings.Contains(body, "RequestEntityTooLarge") {
		t.Errorf("got %d %s", res.StatusCode, body)
	}

	c = s.dial(t)
	out = s.begin(t, c, "2")
	big := strings.Repeat("x", bawn.MaxResponseBytes+1)
	go c.send("POST", apiPrefix+"invocation/2/response", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(big), big))
	if r := <-out; document(t, r.Payload).ErrorType != "Function.ResponseSizeTooLarge" {
		t.Errorf("result %.200s", r.Payload)
	}

	c = s.dial(t)
	out = s.begin(t, c, "3")
	c.expect(202, "OK", "POST", apiPrefix+"invocation/3/response", "", big[1:])
	if r := <-out; len(r.Payload) != bawn.MaxResponseBytes {
		t.Errorf("got %d bytes", len(r.Payload))
	}

	out = s.begin(t, c, "4")
	c.send("POST", apiPrefix+"invocation/4/response", "Content-Length: 100\r\n", "half")
	c.conn.(*net.TCPConn).CloseWrite()
	if res, body := c.receive(); res.StatusCode != 400 || !strings.Contains(body, "TruncatedHTTPRequest") {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
	c = s.dial(t)
	c.expect(202, "OK", "POST", apiPrefix+"invocation/4/response", "", "again")
	if r := <-out; string(r.Payload) != "again" {
		t.Errorf("result %s", r.Payload)
	}
}

// Whoever else asks for events ends the instance, and is reported once.
func TestRuntimeAPISecondPoller(t *testing.T) {
	check := func(t *testing.T, s *apiServer, want string) {
		t.Helper()
		if s.alive() {
			t.Error("the next call would meet the second poller")
		}
		seen := s.attempts()
		if len(seen) != 1 {
			t.Fatalf("%d reports, want 1", len(seen))
		}
		if a := seen[0]; a.Control != "B8" || !strings.Contains(strings.Join(a.Args, " "), want) {
			t.Errorf("reported %+v, want %q", a, want)
		}
	}
	t.Run("before a call", func(t *testing.T) {
		s := startAPI(t)
		c := s.dial(t)
		c.send("GET", nextPath, "", "")
		mustLoad(t, s, testIdentity(bawn.Provided, "x"))
		for range 5 {
			s.dial(t).expect(403, "InvalidStateTransition", "GET", nextPath, "", "")
		}
		check(t, s, "already waits")
	})
	t.Run("during a call", func(t *testing.T) {
		s := startAPI(t)
		c := s.dial(t)
		out := s.begin(t, c, "1")
		for range 5 {
			s.dial(t).expect(403, "InvalidStateTransition", "GET", nextPath, "", "")
		}
		if r := <-out; !strings.Contains(r.FunctionError, "second poller") {
			t.Errorf("the call ended with %+v", r)
		}
		check(t, s, "not been answered")
	})
	t.Run("flood", func(t *testing.T) {
		s := startAPI(t)
		c := s.dial(t)
		out := s.begin(t, c, "1")
		for range maxAPIRequests {
			c.expect(200, "pong", "GET", "/2018-06-01/ping", "", "")
		}
		c.expect(403, "ending", "GET", "/2018-06-01/ping", "", "")
		if r := <-out; !strings.Contains(r.FunctionError, "flood") {
			t.Errorf("the call ended with %+v", r)
		}
		check(t, s, "more than 1000 requests")
	})
	t.Run("another connection, one after the other", func(t *testing.T) {
		s := startAPI(t)
		for _, id := range []string{"1", "2"} { // a runtime may do that between calls
			c := s.dial(t)
			out := s.begin(t, c, id)
			c.expect(202, "OK", "POST", apiPrefix+"invocation/"+id+"/response", "", "1")
			if r := <-out; string(r.Payload) != "1" || len(s.attempts()) != 0 || !s.alive() {
				t.Errorf("result %+v, %d reports", r, len(s.attempts()))
			}
		}
	})
}

func TestRuntimeAPIPollGivenUp(t *testing.T) {
	s := startAPI(t)
	c := s.dial(t)
	c.send("GET", nextPath, "", "")
	mustLoad(t, s, testIdentity(bawn.Provided, "x"))
	c.conn.Close()
	for { // until the server has noticed
		s.apiWorker.mu.Lock()
		polling := s.state == apiPolling
		s.apiWorker.mu.Unlock()
		if !polling {
			break
		}
		time.Sleep(time.Millisecond)
	}
	c = s.dial(t)
	out := s.begin(t, c, "1")
	c.expect(202, "OK", "POST", apiPrefix+"invocation/1/response", "", "1")
	if r := <-out; string(r.Payload) != "1" {
		t.Errorf("result %+v", r)
	}
}

func TestRuntimeAPIInitError(t *testing.T) {
	s := startAPI(t)
	c := s.dial(t)
	go c.send("POST", apiPrefix+"init/error", "", `{"errorType":"Runtime.No"}`)
	err := s.load(t.Context(), testIdentity(bawn.Provided, "x"))
	var e *initError
	if !errors.As(err, &e) || string(e.Payload) != `{"errorType":"Runtime.No"}` || s.alive() {
		t.Errorf("err = %v", err)
	}
	if res, body := c.receive(); res.StatusCode != 202 || body != `{"status":"OK"}` {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
	c.expect(403, "InvalidStateTransition", "GET", nextPath, "", "")
}

func TestRuntimeAPIStreams(t *testing.T) {
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
	late := base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Late"}`))
	headers := modeHeader + ": streaming\r\nTransfer-Encoding: chunked\r\nContent-Type: a/b\r\nTrailer: " + errorTypeHeader + ", " + errorBodyTrailer + "\r\n"
	for _, tt := range []struct{ name, body, text, err string }{
		{"clean", chunk("hello ") + chunk("world") + "0\r\n\r\n", "hello world", ""},
		{"late error", chunk("hello") + "0\r\n" + errorTypeHeader + ": Function.Late\r\n" + errorBodyTrailer + ": " + late + "\r\n\r\n", "hello", `{"errorType":"Late"}`},
		{"late error without a body", chunk("hello") + "0\r\n" + errorTypeHeader + ": nonsense\r\n\r\n", "hello", `{"errorType":"Runtime.Unknown","errorMessage":""}`},
		{"late error, long", chunk("hello") + "0\r\n" + errorTypeHeader + ": Function.Late\r\n" + errorBodyTrailer + ": " + strings.Repeat("A", 8000) + "\r\n\r\n", "hello", `{"errorType":"Runtime.Unknown","errorMessage":"The function failed while it answered, with an error document of more than 4 KiB."}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startAPI(t)
			c := s.dial(t)
			out := s.begin(t, c, "1")
			go c.send("POST", apiPrefix+"invocation/1/response", headers, tt.body)
			r := <-out
			if r.Stream == nil || r.ContentType != "a/b" {
				t.Fatalf("result %+v", r)
			}
			b, err := io.ReadAll(r.Stream)
			var se *bawn.StreamError
			switch {
			case string(b) != tt.text:
				t.Errorf("read %q", b)
			case tt.err == "" && err != nil, tt.err != "" && (!errors.As(err, &se) || string(se.Payload) != tt.err):
				t.Errorf("err = %v, %+v", err, se)
			}
			if s.alive() {
				if res, _ := c.receive(); res.StatusCode != 202 {
					t.Errorf("answered %d", res.StatusCode)
				}
			}
		})
	}
	t.Run("closed early", func(t *testing.T) {
		s := startAPI(t)
		c := s.dial(t)
		out := s.begin(t, c, "1")
		c.send("POST", apiPrefix+"invocation/1/response", headers, chunk("hello"))
		(<-out).Stream.Close()
		if s.alive() {
			t.Error("the worker would be used again")
		}
	})
	t.Run("cut off", func(t *testing.T) {
		s := startAPI(t)
		c := s.dial(t)
		out := s.begin(t, c, "1")
		c.send("POST", apiPrefix+"invocation/1/response", headers, chunk("hello"))
		c.conn.Close()
		if b, err := io.ReadAll((<-out).Stream); string(b) != "hello" || !errors.Is(err, errGone) || s.alive() {
			t.Errorf("read %q, %v", b, err)
		}
	})
}

func TestRuntimeAPIEndings(t *testing.T) {
	for name, want := range map[string]error{"deadline": context.DeadlineExceeded, "context": context.Canceled, "close": errGone} {
		t.Run(name, func(t *testing.T) {
			s := startAPI(t)
			c := s.dial(t)
			c.send("GET", nextPath, "", "")
			mustLoad(t, s, testIdentity(bawn.Provided, "x"))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			deadline := time.Now().Add(time.Minute)
			switch name {
			case "deadline":
				deadline = time.Now().Add(20 * time.Millisecond)
			case "context":
				time.AfterFunc(20*time.Millisecond, cancel)
			case "close":
				time.AfterFunc(20*time.Millisecond, s.close)
			}
			if _, err := s.invoke(ctx, &bawn.Call{ID: "1"}, deadline); !errors.Is(err, want) || s.alive() {
				t.Errorf("err = %v, want %v; alive %v", err, want, s.alive())
			}
		})
	}
}

// TestProvided runs a function built with an unmodified aws-lambda-go.
func TestProvided(t *testing.T) {
	bootstrap := filepath.Join(t.TempDir(), "bootstrap")
	build := exec.Command("go", "build", "-o", bootstrap, "./testdata/bootstrap")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	start := func(t *testing.T, handler string) (*apiServer, *exec.Cmd) {
		s := startAPI(t)
		id := testIdentity(bawn.Provided, handler)
		_, env := providedCommand(&id)
		cmd := exec.Command(bootstrap)
		cmd.Env = append(env, "AWS_LAMBDA_RUNTIME_API="+s.addr)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		go func() { // as the pool does when a sandbox is done
			cmd.Process.Wait()
			s.close()
		}()
		return s, cmd
	}
	for _, tt := range []struct{ handler, event, want, contentType, kind string }{
		{"echo", `{"a":"é"}`, `{"a":"é"}`, "application/json", ""},
		{"error", "{}", "", "", "errorString"},
		{"large", "10", `"xxxxxxxxxx"`, "application/json", ""},
	} {
		t.Run(tt.handler, func(t *testing.T) {
			s, _ := start(t, tt.handler)
			mustLoad(t, s, testIdentity(bawn.Provided, tt.handler))
			for range 3 {
				r := call(t, s, tt.event)
				if tt.kind != "" {
					if d := document(t, r.Payload); d.ErrorType != tt.kind || d.ErrorMessage != "handled" || r.FunctionError != "Unhandled" {
						t.Errorf("got %s", r.Payload)
					}
				} else if string(r.Payload) != tt.want {
					t.Errorf("answered %s, want %s", r.Payload, tt.want)
				}
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		s, _ := start(t, "context")
		mustLoad(t, s, testIdentity(bawn.Provided, "context"))
		r, err := s.invoke(t.Context(), &bawn.Call{ID: "some-id", Event: []byte("{}"), TraceID: "Root=1", Client: `{"custom":{"a":"b"}}`}, time.Now().Add(20*time.Second))
		want := `{"arn":"arn:aws:lambda:us-east-1:123456789012:function:hello","custom":{"a":"b"},"deadline":true,"id":"some-id","memory":256,"name":"hello","trace":"Root=1"}`
		if err != nil || string(r.Payload) != want {
			t.Errorf("got  %s, %v\nwant %s", r.Payload, err, want)
		}
	})
	t.Run("panic", func(t *testing.T) {
		s, _ := start(t, "panic")
		mustLoad(t, s, testIdentity(bawn.Provided, "panic"))
		r := call(t, s, "{}") // its trace has objects where others have text: passed on as it is
		if !strings.HasPrefix(string(r.Payload), `{"errorMessage":"sudden","errorType":"string","stackTrace":[{"path":`) || r.FunctionError != "Unhandled" {
			t.Errorf("got %s", r.Payload)
		}
	})
	t.Run("too large", func(t *testing.T) {
		s, _ := start(t, "large")
		mustLoad(t, s, testIdentity(bawn.Provided, "large"))
		if d := document(t, call(t, s, "6291600").Payload); d.ErrorType != "Function.ResponseSizeTooLarge" {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("stream", func(t *testing.T) {
		s, _ := start(t, "stream")
		mustLoad(t, s, testIdentity(bawn.Provided, "stream"))
		for range 3 {
			r := call(t, s, "{}")
			if string(r.Payload) != strings.Repeat("hello ", 100000) || r.ContentType != "application/octet-stream" {
				t.Errorf("got %d bytes of %s", len(r.Payload), r.ContentType)
			}
		}
	})
	t.Run("streamed http", func(t *testing.T) {
		s, _ := start(t, "http")
		mustLoad(t, s, testIdentity(bawn.Provided, "http"))
		r := call(t, s, "{}")
		b, err := io.ReadAll(r.Stream)
		want := `{"statusCode":201,"headers":{"x-a":"b"},"cookies":["c=d"]}` + strings.Repeat("\x00", 8) + "body"
		if string(b) != want || err != nil || r.ContentType != "application/vnd.awslambda.http-integration-response" {
			t.Errorf("read %q, %v, content type %s", b, err, r.ContentType)
		}
	})
	t.Run("streamed http that fails", func(t *testing.T) {
		s, _ := start(t, "httpfail")
		mustLoad(t, s, testIdentity(bawn.Provided, "httpfail"))
		b, err := io.ReadAll(call(t, s, "{}").Stream)
		var se *bawn.StreamError
		if !strings.HasSuffix(string(b), "\x00begun") || !errors.As(err, &se) || document(t, se.Payload).ErrorMessage != "failed late" {
			t.Errorf("read %q, %v", b, err)
		}
	})
	t.Run("stream that fails", func(t *testing.T) {
		s, _ := start(t, "streamfail")
		mustLoad(t, s, testIdentity(bawn.Provided, "streamfail"))
		if r := call(t, s, "{}"); document(t, r.Payload).ErrorMessage != "failed late" || r.FunctionError != "Unhandled" {
			t.Errorf("got %s", r.Payload)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		s, _ := start(t, "sleep")
		mustLoad(t, s, testIdentity(bawn.Provided, "sleep"))
		if _, err := s.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("exit", func(t *testing.T) {
		s, _ := start(t, "exit")
		mustLoad(t, s, testIdentity(bawn.Provided, "exit"))
		if _, err := s.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("3")}, time.Now().Add(20*time.Second)); !errors.Is(err, errGone) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("exit in init", func(t *testing.T) {
		s, _ := start(t, "none")
		if err := s.load(t.Context(), testIdentity(bawn.Provided, "none")); !errors.Is(err, errGone) {
			t.Errorf("err = %v", err)
		}
	})
}
