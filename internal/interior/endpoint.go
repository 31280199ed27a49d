package interior

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
)

// The endpoint inside a sandbox, where a function's code asks the node for
// something: to call another function, or for a secret. Nothing else than one sandbox reaches its
// listener, which makes it the identity of the instance: there is no token that
// could leak. Controls A6, C7.
const (
	endpointPort = 9002
	endpointURL  = "http://127.0.0.1:9002"

	lambdaPath = "/2015-03-31/" // what calls of functions begin with
)

// Bounds of one endpoint; docs/limits.md lists those that a function can meet.
const (
	maxEndpointConns    = 16 // and so calls of others at one time; more wait in the kernel
	maxEndpointHeader   = 32 << 10
	maxEndpointRequests = 1000     // of one invocation
	maxOutsideBody      = 64 << 10 // of a request that is no call
	endpointHeaderTime  = 10 * time.Second
	endpointBodyTime    = 30 * time.Second // for a request's body to arrive
	endpointIdle        = 5 * time.Minute  // of a connection between requests
	strayBurst          = 40               // refusals that are recorded, of one instance in one second
	maxStrayText        = 200              // of a request line in a record
)

// Serve answers a request that a function's code makes to the endpoint in its
// sandbox while it serves an invocation. next returns the call of a function that
// it makes, with everything that the caller must not say of itself: who it is,
// on whose behalf it calls, through whom, and how deep. It is asked once for each
// call. The request's context ends with the invocation.
type Serve func(w http.ResponseWriter, r *http.Request, next func(function string) *bawn.Call)

// An endpoint is the door of one sandbox. Its listener is made before any code of
// a function is there, and answers from then on that an instance owns it.
type endpoint struct {
	pool   *Pool
	ln     net.Listener
	slots  chan struct{} // one for each open connection
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	in      *instance
	serving *serving // nil while no invocation runs
	conns   map[*insideConn]struct{}
	second  int64 // of strays
	strays  int   // recorded in that second
	left    int   // not recorded
}

// serving is the invocation that an instance works on.
type serving struct {
	call     *bawn.Call
	deadline time.Time

	// Guarded by the endpoint's mu.
	ctx      context.Context // made for the first request
	cancel   context.CancelFunc
	requests int
	order    int
	called   []string // never changed in place: calls hold it
}

type endpointKey struct{}

// newInside returns the server of all endpoints of a pool.
func newInside(p *Pool) *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(p.serveInside),
		ReadHeaderTimeout: endpointHeaderTime,
		IdleTimeout:       endpointIdle,
		MaxHeaderBytes:    maxEndpointHeader,
		BaseContext: func(ln net.Listener) context.Context {
			return context.WithValue(context.Background(), endpointKey{}, ln)
		},
		// What a function does wrong on its connection is its own affair.
		ErrorLog: slog.NewLogLogger(p.cfg.Errors.Handler(), slog.LevelDebug),
	}
}

func newEndpoint(p *Pool, ln net.Listener) *endpoint {
	return &endpoint{pool: p, ln: ln, slots: make(chan struct{}, maxEndpointConns), closed: make(chan struct{})}
}

// open answers from now on, in the name of in. A nil endpoint is one that the
// sandbox does not have.
func (e *endpoint) open(in *instance) {
	if e == nil {
		return
	}
	e.mu.Lock()
	e.in = in
	e.conns = make(map[*insideConn]struct{})
	e.mu.Unlock()
	go e.pool.inside.Serve(e) // ends when Accept fails
}

// close ends the listener and every connection.
func (e *endpoint) close() {
	if e == nil {
		return
	}
	e.once.Do(func() {
		close(e.closed)
		e.ln.Close()
		e.end()
		e.mu.Lock()
		conns, left, in := e.conns, e.left, e.in
		e.conns, e.left = nil, 0
		e.mu.Unlock()
		for c := range conns {
			c.Conn.Close()
		}
		if left > 0 && in != nil {
			go e.record(in, "more requests outside of an invocation", "", left-1)
		}
	})
}

// begin says that the instance works on c until deadline, and end that it does
// not any more: what it still asks for is refused, and what it waits for over.
func (e *endpoint) begin(c *bawn.Call, deadline time.Time) {
	if e == nil {
		return
	}
	e.mu.Lock()
	e.serving = &serving{call: c, deadline: deadline}
	e.mu.Unlock()
}

func (e *endpoint) end() {
	if e == nil {
		return
	}
	e.mu.Lock()
	s := e.serving
	e.serving = nil
	e.mu.Unlock()
	if s != nil && s.cancel != nil { // nobody sets it once serving is nil
		s.cancel()
	}
}

// enter counts a request and returns what it is part of, or why it is refused.
func (e *endpoint) enter() (*serving, string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.serving
	switch {
	case s == nil:
		return nil, "no invocation is running"
	case s.requests >= maxEndpointRequests:
		return nil, "more than " + strconv.Itoa(maxEndpointRequests) + " requests of one invocation"
	}
	s.requests++
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithDeadline(context.Background(), s.deadline)
	}
	return s, ""
}

// next is the second argument of a [Serve].
func (e *endpoint) next(s *serving, function string) *bawn.Call {
	v := e.in.fleet.version
	ref := v.Ref()
	c := &bawn.Call{
		ID: bawn.NewID(), Trigger: "function", At: time.Now(), TraceID: s.call.TraceID,
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: ref.Function + "@" + ref.Qualifier, Name: ref.Function, Tenant: ref.Tenant},
		Origin:    s.call.From(),
		Chain:     append(slices.Clip(s.call.Chain), ref),
		Hops:      s.call.Hops + 1,
		Parent:    s.call.ID, Caller: v,
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.Order, c.Called = s.order, s.called
	s.order++
	if i, ok := slices.BinarySearch(s.called, function); !ok {
		s.called = slices.Insert(slices.Clone(s.called), i, function)
	}
	return c
}

// serveInside answers one request of a function's code.
func (p *Pool) serveInside(w http.ResponseWriter, r *http.Request) {
	e := r.Context().Value(endpointKey{}).(*endpoint)
	s, why := e.enter()
	if s == nil {
		line := r.Method + " " + r.URL.EscapedPath()
		if len(line) > maxStrayText {
			line = line[:maxStrayText] + "…"
		}
		e.stray(why, line)
		w.Header().Set("Connection", "close")
		w.Header().Set("X-Amzn-Errortype", "AccessDeniedException")
		reply(w, http.StatusForbidden, `{"Type":"User","message":"denied: a function calls others while it serves an invocation, within bounds"}`)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	control := http.NewResponseController(w)
	control.SetReadDeadline(earlier(time.Now().Add(endpointBodyTime), s.deadline))
	control.SetWriteDeadline(s.deadline.Add(time.Second))
	if !strings.HasPrefix(r.URL.Path, lambdaPath) && e.in.outside != nil {
		r.Body = http.MaxBytesReader(w, r.Body, maxOutsideBody)
		e.in.outside.ServeHTTP(w, r.WithContext(ctx))
		return
	}
	if p.cfg.Serve == nil {
		http.NotFound(w, r)
		return
	}
	p.cfg.Serve(w, r.WithContext(ctx), func(function string) *bawn.Call {
		// The body is there: from now on the wait is for the answer.
		control.SetReadDeadline(s.deadline.Add(time.Second))
		return e.next(s, function)
	})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// stray records a request that belongs to no invocation, in bounds; what is
// beyond them is counted.
func (e *endpoint) stray(why, line string) {
	now := time.Now().Unix()
	e.mu.Lock()
	if e.second != now {
		e.second, e.strays = now, 0
	}
	if e.strays >= strayBurst {
		e.left++
		e.mu.Unlock()
		return
	}
	e.strays++
	left, in := e.left, e.in
	e.left = 0
	e.mu.Unlock()
	e.record(in, why, line, left)
}

func (e *endpoint) record(in *instance, why, line string, dropped int) {
	p, now := e.pool, time.Now()
	p.count.blocked.Add(1)
	r := bawn.Record{
		Kind: bawn.KindBlocked, Time: now, Action: "call", Outcome: "blocked", Control: "A6", Reason: why,
		Detail: map[string]string{"request": line},
	}
	if dropped > 0 {
		r.Detail["dropped"] = strconv.Itoa(dropped)
	}
	in.identify(&r, now)
	if t := in.fleet.trial; t != nil {
		t.saw(r)
	}
	if err := p.cfg.Record(context.Background(), r); err != nil {
		p.cfg.Errors.Error("a request that was refused in a sandbox was not recorded", "function", r.Function, "err", err)
	}
}

// Accept waits for a connection of the sandbox, and for leave to have one more.
func (e *endpoint) Accept() (net.Conn, error) {
	select {
	case e.slots <- struct{}{}:
	case <-e.closed:
		return nil, net.ErrClosed
	}
	conn, err := e.ln.Accept()
	if err != nil {
		<-e.slots
		return nil, err
	}
	c := &insideConn{Conn: conn, e: e}
	e.mu.Lock()
	open := e.conns != nil
	if open {
		e.conns[c] = struct{}{}
	}
	e.mu.Unlock()
	if !open { // closed in between
		c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close is for the server, when its Serve ends.
func (e *endpoint) Close() error { return e.ln.Close() }

// Addr returns the address inside the sandbox.
func (e *endpoint) Addr() net.Addr { return e.ln.Addr() }

// An insideConn is a connection that makes room for another when it is closed.
type insideConn struct {
	net.Conn
	e    *endpoint
	once sync.Once
}

// Close ends the connection.
func (c *insideConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.e.mu.Lock()
		delete(c.e.conns, c)
		c.e.mu.Unlock()
		<-c.e.slots
	})
	return err
}
