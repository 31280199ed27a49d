package interior

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// The Runtime API's address inside the sandbox, where the pool asks for a
// listener.
const (
	runtimeAPIPort = 9001
	runtimeAPIAddr = "127.0.0.1:9001"
)

const (
	apiPrefix = "/2018-06-01/runtime/"

	// A runtime reports the cause of an error in a header of up to 1 MiB.
	maxAPIHeader = 2 << 20

	// Runtimes need one connection, or two; more would only cost the node.
	maxAPIConns = 8

	// A call takes two requests. More than these for one event are made to
	// keep the node busy.
	maxAPIRequests = 1000
)

// An apiWorker is the worker of a program that speaks the Lambda Runtime API.
// The listener that it serves is reachable from inside one sandbox only, which
// makes it the identity of the instance.
type apiWorker struct {
	srv     *http.Server
	refused func(sandbox.Attempt)
	arn     string

	polls  chan poll     // a runtime asks for an event; taken by load and invoke
	failed chan []byte   // the runtime reported that it cannot initialise
	breach chan struct{} // closed when broken is set
	gone   chan struct{} // closed by close
	once   sync.Once

	mu      sync.Mutex
	state   apiState
	poller  string      // the remote address of the last connection that polled
	current *invocation // the call that the runtime has, until it asks for the next
	waiting *poll       // kept by load for the first invoke
	asked   int         // requests since the last event
	broken  *bawn.Error // what was done that the instance is ended for
	dead    bool
}

// apiState is where the runtime stands in the protocol.
type apiState int

const (
	apiInit    apiState = iota // has asked for nothing yet
	apiPolling                 // waits for an event
	apiBusy                    // has an event and has not begun to answer
	apiAnswers                 // is sending its answer
	apiDone                    // has answered and not asked for the next
	apiFailed                  // has reported an init error
)

// poll is one request for the next event.
type poll struct {
	give chan<- *invocation // takes one event if the runtime still waits
	gone <-chan struct{}    // closed when it does not
}

// invocation is one call on its way through the runtime.
type invocation struct {
	call     *bawn.Call
	deadline time.Time
	arn      string
	result   chan *bawn.Result // buffered: the answer, at most one
}

// newRuntimeAPIWorker serves the Runtime API on ln, which it owns from then on.
// refused is told, once, of the request that breaks the protocol. It must end
// the program and must not block.
func newRuntimeAPIWorker(ln net.Listener, refused func(sandbox.Attempt)) *apiWorker {
	w := &apiWorker{
		refused: refused,
		polls:   make(chan poll),
		failed:  make(chan []byte, 1),
		breach:  make(chan struct{}),
		gone:    make(chan struct{}),
	}
	// What a runtime does wrong on its connection is its own affair, so
	// nothing is logged. There are no time-outs: a poll may wait for hours,
	// and the connections are few.
	w.srv = &http.Server{Handler: w, MaxHeaderBytes: maxAPIHeader, ErrorLog: log.New(io.Discard, "", 0)}
	go w.srv.Serve(&fewConns{Listener: ln, slots: make(chan struct{}, maxAPIConns)})
	return w
}

func (w *apiWorker) ready(context.Context) error { return nil }

func (w *apiWorker) alive() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.dead
}

func (w *apiWorker) kill() {
	w.mu.Lock()
	w.dead = true
	w.mu.Unlock()
}

// breaks ends the instance for reason, which nothing that follows its rules
// gives. What more it asks for is refused and not reported.
func (w *apiWorker) breaks(what, reason string) {
	w.mu.Lock()
	first := w.broken == nil
	if first {
		w.broken = bawn.Errorf(bawn.CodeFunctionError, "interior.runtimeapi", "the function broke the protocol of its runtime: %s: %s", what, reason).
			WithFix("one program in the sandbox may ask for events, one at a time; see what else the function starts")
		w.dead = true
		close(w.breach)
	}
	w.mu.Unlock()
	if first && w.refused != nil {
		w.refused(sandbox.Attempt{
			Time: time.Now(), Syscall: "runtime-api", Control: "B8", Errno: "403",
			Args: []string{"GET " + apiPrefix + "invocation/next", what + ": " + reason},
		})
	}
}

// over returns why there is nothing more to come from a worker that is ended.
func (w *apiWorker) over() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	return errGone
}

func (w *apiWorker) close() {
	w.kill()
	w.once.Do(func() {
		close(w.gone)
		w.srv.Close()
	})
}

// ended is close: an answer counts once the runtime was told that it was taken.
func (w *apiWorker) ended() { w.close() }

func (w *apiWorker) load(ctx context.Context, id Identity) error {
	w.arn = id.ARN("")
	select {
	case p := <-w.polls:
		w.waiting = &p
		return nil
	case payload := <-w.failed:
		w.kill()
		return &initError{Payload: payload}
	case <-w.gone:
		select {
		case payload := <-w.failed: // and exited, as it should
			return &initError{Payload: payload}
		default:
			return w.over()
		}
	case <-w.breach:
		return w.over()
	case <-ctx.Done():
		w.kill()
		return ctx.Err()
	}
}

func (w *apiWorker) invoke(ctx context.Context, c *bawn.Call, deadline time.Time) (*bawn.Result, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	inv := &invocation{call: c, deadline: deadline, arn: w.arn, result: make(chan *bawn.Result, 1)}
	if q := c.Target.Qualifier; q != "" {
		inv.arn += ":" + q
	}
	// What the runtime does between an answer and its next poll belongs to
	// the former call but takes from this one's time, as in Lambda.
	for given := false; !given; {
		p := w.waiting
		w.waiting = nil
		if p == nil {
			q, err := await(ctx, w, w.polls, timer.C)
			if err != nil {
				return nil, err
			}
			p = &q
		}
		select {
		case p.give <- inv:
			given = true
		case <-p.gone: // hung up while nothing was to be done
		case <-w.breach:
			return nil, w.over()
		case <-w.gone:
			return nil, w.over()
		}
	}
	return await(ctx, w, inv.result, timer.C)
}

// await returns what comes from c, or why nothing will: the worker has ended, or
// it is ended here because ctx is over or late has come.
func await[T any](ctx context.Context, w *apiWorker, c <-chan T, late <-chan time.Time) (v T, err error) {
	select {
	case v = <-c:
		return v, nil
	case <-w.gone:
		select {
		case v = <-c: // and ended at once
			return v, nil
		default:
			return v, w.over()
		}
	case <-w.breach:
		return v, w.over()
	case <-ctx.Done():
		w.kill()
		return v, ctx.Err()
	case <-late:
		w.kill()
		return v, context.DeadlineExceeded
	}
}

// ServeHTTP answers one request of the runtime.
func (w *apiWorker) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.asked++
	asked, broken := w.asked, w.broken != nil
	w.mu.Unlock()
	if !broken && asked > maxAPIRequests {
		broken = true
		w.breaks("flood", "more than "+strconv.Itoa(maxAPIRequests)+" requests for one event")
	}
	if broken {
		rw.Header().Set("Connection", "close")
		refuse(rw, http.StatusForbidden, "InvalidStateTransition", "The instance is ending.")
		return
	}
	path, isRuntime := strings.CutPrefix(r.URL.Path, apiPrefix)
	switch {
	case r.URL.Path == "/2018-06-01/ping" && r.Method == http.MethodGet:
		io.WriteString(rw, "pong")
	case r.URL.Path == "/2022-07-01/telemetry" || r.URL.Path == "/2020-08-15/logs":
		reply(rw, http.StatusAccepted, string(errorPayload("Telemetry.NotSupported", "Telemetry API is not supported")))
	case !isRuntime:
		http.NotFound(rw, r)
	case path == "invocation/next" && r.Method == http.MethodGet:
		w.serveNext(rw, r)
	case path == "init/error" && r.Method == http.MethodPost:
		w.serveInitError(rw, r)
	default:
		id, what, ok := strings.Cut(strings.TrimPrefix(path, "invocation/"), "/")
		if !strings.HasPrefix(path, "invocation/") || !ok || r.Method != http.MethodPost || what != "response" && what != "error" {
			http.NotFound(rw, r) // restore/next too: there are no snapshots
			return
		}
		w.serveAnswer(rw, r, id, what)
	}
}

func reply(rw http.ResponseWriter, status int, body string) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	io.WriteString(rw, body)
}

func refuse(rw http.ResponseWriter, status int, kind, message string) {
	reply(rw, status, string(errorPayload(kind, message)))
}

// serveNext holds a poll until there is an event for it.
func (w *apiWorker) serveNext(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	if w.state != apiInit && w.state != apiDone {
		state, second := w.state, w.poller != r.RemoteAddr
		w.mu.Unlock()
		reason := map[apiState]string{
			apiPolling: "another request already waits for the next event",
			apiBusy:    "the event before has not been answered",
			apiAnswers: "the event before has not been answered",
			apiFailed:  "the runtime reported that it could not initialise",
		}[state]
		if second && state != apiFailed {
			w.breaks("second poller", reason)
		}
		refuse(rw, http.StatusForbidden, "InvalidStateTransition", "Transition from the present state to Ready is not allowed: "+reason)
		return
	}
	first := w.state == apiInit
	w.state, w.poller, w.current = apiPolling, r.RemoteAddr, nil
	w.mu.Unlock()

	give := make(chan *invocation)
	p := poll{give: give, gone: r.Context().Done()}
	var inv *invocation
	offered := w.polls
	for inv == nil {
		select {
		case offered <- p:
			offered = nil
		case inv = <-give:
		case <-p.gone:
			w.mu.Lock()
			w.state = apiDone
			if first {
				w.state = apiInit
			}
			w.mu.Unlock()
			return
		case <-w.gone:
			panic(http.ErrAbortHandler)
		}
	}
	w.mu.Lock()
	w.state, w.current, w.asked = apiBusy, inv, 0
	w.mu.Unlock()

	// Headers without content are left out: clients parse what is there.
	h := rw.Header()
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	set("Content-Type", "application/json")
	set("Content-Length", strconv.Itoa(len(inv.call.Event)))
	set("Lambda-Runtime-Aws-Request-Id", inv.call.ID)
	set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(inv.deadline.UnixMilli(), 10))
	set("Lambda-Runtime-Invoked-Function-Arn", inv.arn)
	set("Lambda-Runtime-Trace-Id", inv.call.TraceID)
	set("Lambda-Runtime-Client-Context", inv.call.Client)
	rw.Write(inv.call.Event)
}

// serveInitError takes the report of a runtime that cannot begin.
func (w *apiWorker) serveInitError(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	ok := w.state == apiInit
	if ok {
		w.state = apiFailed
	}
	w.mu.Unlock()
	if !ok {
		refuse(rw, http.StatusForbidden, "InvalidStateTransition", "An init error can be reported before the first event only.")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxErrorBytes))
	if err != nil {
		refuse(rw, http.StatusBadRequest, "TruncatedHTTPRequest", "The request's body ended early.")
		return
	}
	w.failed <- orDocument(body, r.Header.Get(errorTypeHeader))
	reply(rw, http.StatusAccepted, statusOK)
}

const (
	statusOK         = `{"status":"OK"}`
	errorTypeHeader  = "Lambda-Runtime-Function-Error-Type"
	errorBodyTrailer = "Lambda-Runtime-Function-Error-Body"
	modeHeader       = "Lambda-Runtime-Function-Response-Mode"
)

// orDocument returns the error document that the runtime posted, or one in its
// place if it posted none.
func orDocument(body []byte, kind string) []byte {
	if len(body) > 0 {
		return body
	}
	return errorPayload(errorType(kind), "")
}

// errorType returns kind if it is one that a runtime may use.
func errorType(kind string) string {
	for _, prefix := range []string{"Runtime.", "Function."} {
		if rest, ok := strings.CutPrefix(kind, prefix); ok && rest != "" && rest[0] >= 'A' && rest[0] <= 'Z' && len(rest) < 100 {
			return kind
		}
	}
	return "Runtime.Unknown"
}

// begin claims the answer of invocation id, or refuses the request.
func (w *apiWorker) begin(rw http.ResponseWriter, id string) *invocation {
	w.mu.Lock()
	inv, state := w.current, w.state
	known := inv != nil && inv.call.ID == id
	if known && state == apiBusy {
		w.state = apiAnswers
	}
	w.mu.Unlock()
	switch {
	case state == apiInit || known && state != apiBusy:
		refuse(rw, http.StatusForbidden, "InvalidStateTransition", "The event has been answered, or none was given out.")
	case !known:
		refuse(rw, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	default:
		return inv
	}
	return nil
}

// end is called when an answer is complete, or with apiBusy when it was not one.
func (w *apiWorker) end(s apiState) {
	w.mu.Lock()
	w.state = s
	w.mu.Unlock()
}

// serveAnswer takes a response or an error.
func (w *apiWorker) serveAnswer(rw http.ResponseWriter, r *http.Request, id, what string) {
	mode := strings.ToLower(r.Header.Get(modeHeader))
	if mode != "" && mode != "streaming" && mode != "buffered" {
		refuse(rw, http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode")
		return
	}
	inv := w.begin(rw, id)
	if inv == nil {
		return
	}
	// Go's client never names a mode; the content type that carries a status
	// and headers before the body is only for streams.
	if what == "response" && (mode == "streaming" || mode == "" && r.Header.Get("Content-Type") == bawn.PreludeType) {
		w.serveStream(rw, r, inv)
		return
	}
	tooLarge := func() {
		w.end(apiDone) // first, since whoever has the result may ask for the next event
		inv.result <- &bawn.Result{Payload: tooLargePayload(), FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}
		rw.Header().Set("Connection", "close") // the rest is not read
		refuse(rw, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
			fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", bawn.MaxResponseBytes))
	}
	if r.ContentLength > bawn.MaxResponseBytes {
		tooLarge()
		return
	}
	body, err := readAll(r.Body, r.ContentLength, bawn.MaxResponseBytes)
	if errors.Is(err, errTooLarge) {
		tooLarge()
		return
	}
	if longTrailer(err) {
		w.end(apiDone)
		inv.result <- &bawn.Result{Payload: longTrailerPayload(), FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}
		rw.Header().Set("Connection", "close")
		reply(rw, http.StatusAccepted, statusOK)
		return
	}
	if err != nil {
		w.end(apiBusy) // it may try again, until the deadline
		refuse(rw, http.StatusBadRequest, "TruncatedHTTPRequest", "The request's body ended early.")
		return
	}
	res := &bawn.Result{Payload: body, ContentType: r.Header.Get("Content-Type")}
	if what == "error" {
		res = &bawn.Result{Payload: orDocument(body, r.Header.Get(errorTypeHeader)), FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}
	} else if late := trailerError(r.Trailer); late != nil {
		res = &bawn.Result{Payload: late, FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}
	}
	w.end(apiDone)
	inv.result <- res
	reply(rw, http.StatusAccepted, statusOK)
}

// longTrailer reports whether err says that a response's trailers do not fit
// net/http's buffer of 4 KiB. The response itself was complete, and only a
// failed function sends trailers of that length.
func longTrailer(err error) bool {
	return err != nil && strings.Contains(err.Error(), "suspiciously long trailer")
}

func longTrailerPayload() []byte {
	return errorPayload("Runtime.Unknown", "The function failed while it answered, with an error document of more than 4 KiB.")
}

// trailerError returns the error document in the trailers after a response, or
// nil if there is none.
func trailerError(t http.Header) []byte {
	kind := t.Get(errorTypeHeader)
	if kind == "" {
		return nil
	}
	if body, err := base64.StdEncoding.DecodeString(t.Get(errorBodyTrailer)); err == nil && len(body) > 0 {
		return body
	}
	return errorPayload(errorType(kind), "")
}

var errTooLarge = errors.New("too large")

// readAll reads r, which is said to have size bytes or -1, up to max bytes.
func readAll(r io.Reader, size int64, max int) ([]byte, error) {
	if size >= 0 {
		return readBody(r, int(size))
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(max)+1))
	if err == nil && len(b) > max {
		return nil, errTooLarge
	}
	return b, err
}

// serveStream hands the request's body to the caller as it arrives.
func (w *apiWorker) serveStream(rw http.ResponseWriter, r *http.Request, inv *invocation) {
	control := http.NewResponseController(rw)
	control.SetReadDeadline(inv.deadline)
	s := &apiStream{w: w, r: r, left: bawn.MaxStreamBytes, done: make(chan struct{})}
	inv.result <- &bawn.Result{ContentType: r.Header.Get("Content-Type"), Stream: s}
	select {
	case <-s.done:
	case <-w.gone:
		panic(http.ErrAbortHandler) // ends the connection and with it the body
	}
	control.SetReadDeadline(time.Time{})
	switch {
	case s.err == io.EOF || errors.As(s.err, new(*bawn.StreamError)) && s.left >= 0:
		w.end(apiDone)
		reply(rw, http.StatusAccepted, statusOK)
	case s.left < 0:
		w.end(apiDone)
		rw.Header().Set("Connection", "close")
		refuse(rw, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "Exceeded maximum allowed payload size.")
	default:
		panic(http.ErrAbortHandler)
	}
}

// An apiStream is the body of a streamed response. Its Read runs in the
// caller's goroutine while the handler waits.
type apiStream struct {
	w    *apiWorker
	r    *http.Request
	left int64
	err  error
	done chan struct{} // closed after err is set
}

// Read implements io.Reader. See [bawn.Result] and [worker] for its errors.
func (s *apiStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Body.Read(p)
	s.left -= int64(n)
	switch {
	case s.left < 0:
		n, err = 0, &bawn.StreamError{Payload: errorPayload("Function.ResponseSizeTooLarge",
			fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", bawn.MaxStreamBytes))}
		s.w.kill()
	case err == io.EOF:
		if late := trailerError(s.r.Trailer); late != nil {
			err = &bawn.StreamError{Payload: late}
		}
	case longTrailer(err):
		err = &bawn.StreamError{Payload: longTrailerPayload()}
		s.w.kill()
	case err != nil:
		s.w.kill()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = context.DeadlineExceeded
		} else {
			err = s.w.over()
		}
	}
	if err != nil {
		s.err = err
		close(s.done)
	}
	return n, err
}

// Close ends the stream. Before its end it ends the worker too.
func (s *apiStream) Close() error {
	if s.err == nil {
		s.w.kill()
		s.err = net.ErrClosed
		close(s.done)
	}
	return nil
}

// fewConns is a listener with a bounded number of open connections; others
// wait in the kernel.
type fewConns struct {
	net.Listener
	slots chan struct{}
}

func (l *fewConns) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &fewConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type fewConn struct {
	net.Conn
	free func()
}

func (c *fewConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
