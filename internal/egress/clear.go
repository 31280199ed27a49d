package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/secret"
)

// Bounds of the requests that Bawn reads; docs/limits.md lists those that a
// function can meet.
const (
	clearHeaderTime = 10 * time.Second // for the first byte, for a handshake, for a request's headers
	clearIdle       = 5 * time.Minute  // of a connection of the function between requests
	clearHeader     = 128 << 10        // bytes, of a request
	clearAnswer     = 256 << 10        // of an answer
	clearStreams    = 100              // requests at one time on one HTTP/2 connection
	maxRequests     = 2048             // of one instance at one time; one within CONNECT counts twice
	clearBuffer     = 32 << 10         // that a body is moved by
	maxClearRoutes  = 64               // hosts that connections are kept to
	maxClearPath    = 256              // bytes of a path in a record

	typeHandshake = 22 // of the first record of TLS
)

// clearing reads the requests of one instance that rules with methods, paths or a
// credential are about. What the function sends is parsed, judged and written
// anew: what goes out means to everybody what it meant to the judge.
type clearing struct {
	a       *attached
	own     *authority // nil if the instance has no rule about requests
	http    *http.Server
	conns   *handover
	slots   chan struct{} // one for each request at one time
	serving sync.Once
	buffers sync.Pool // of *[]byte
	// value returns a secret, which the caller clears, and the number of its version.
	value func(ctx context.Context, t *target, name string) ([]byte, int, error)

	mu     sync.Mutex
	inside map[string]*tls.Config // by the name that is vouched for
	run    *serving               // that the routes belong to
	routes map[route]*http.Transport
	free   map[route][]*kept // of lanes, the last used last
	hiding map[string]hiding // by the name of the secret
}

// route is a way to one host, which one rule counts.
type route struct {
	rule  *bawn.Host
	name  string
	port  int
	plain bool // without TLS
	h2    bool // HTTP/2, if the host speaks it
}

func newClearing(a *attached, own *authority) *clearing {
	c := &clearing{a: a, own: own, conns: newHandover(), slots: make(chan struct{}, maxRequests), inside: map[string]*tls.Config{}, hiding: map[string]hiding{}}
	c.value = c.use
	c.buffers.New = func() any { b := make([]byte, clearBuffer); return &b }
	c.http = &http.Server{
		Handler:           http.HandlerFunc(c.serve),
		ReadHeaderTimeout: clearHeaderTime,
		IdleTimeout:       clearIdle,
		MaxHeaderBytes:    clearHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: clearStreams},
		ConnContext: func(_ context.Context, conn net.Conn) context.Context {
			in := insideOf(conn)
			return context.WithValue(in.ctx, insideKey{}, in)
		},
		// What a function does wrong on its connection is its own affair.
		ErrorLog: quietLog(a.b.cfg.Errors),
	}
	return c
}

func quietLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

// close ends the server and every connection to the outside.
func (c *clearing) close() {
	c.conns.Close()
	c.http.Close()
	c.forget()
}

// A handover is a listener for connections that were accepted elsewhere.
type handover struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give passes conn to whoever accepts; false if nobody does any more.
func (h *handover) give(conn net.Conn) bool {
	select {
	case h.conns <- conn:
		return true
	case <-h.closed:
		return false
	}
}

// Accept waits for a connection.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr returns an address that nothing is at.
func (h *handover) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }

type insideKey struct{}

// An insideConn is a connection of the function whose requests are read.
type insideConn struct {
	net.Conn
	ctx   context.Context // ends with the invocation
	run   *serving
	to    *target // nil on a connection to the proxy
	head  []byte  // was read already, and comes first
	plain bool    // the function speaks no TLS
	gone  chan struct{}
	once  sync.Once
}

// Read reads.
func (c *insideConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close ends the connection and lets go who waits for that.
func (c *insideConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.gone) })
	return err
}

// insideOf returns the connection below TLS.
func insideOf(conn net.Conn) *insideConn {
	if a, ok := conn.(*ahead); ok {
		conn = a.Conn
	}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return conn.(*insideConn) // nothing else is handed over
}

// serveClear reads the requests of a connection to a host, judges each, and passes
// it on. It returns when the connection is closed.
func (a *attached) serveClear(ctx context.Context, conn net.Conn, t *target) {
	in := &insideConn{Conn: conn, ctx: ctx, run: t.run, to: t, gone: make(chan struct{})}
	first := make([]byte, 1)
	conn.SetReadDeadline(time.Now().Add(clearHeaderTime))
	if _, err := io.ReadFull(conn, first); err != nil {
		reset(conn)
		return
	}
	conn.SetReadDeadline(time.Time{})
	in.head, in.plain = first, first[0] != typeHandshake
	a.clear.take(in)
}

// take serves a connection until it is closed.
func (c *clearing) take(in *insideConn) {
	var conn net.Conn = in
	if !in.plain {
		cfg, err := c.vouch(in.to)
		if err != nil {
			c.a.b.cfg.Errors.Error("no certificate could be made for a sandbox", "function", c.a.v.Ref().String(), "host", in.to.where(), "err", err)
			reset(in)
			return
		}
		conn = tls.Server(in, cfg)
	}
	if in.to != nil {
		if conn = c.ride(in, conn); conn == nil {
			return
		}
	}
	c.serving.Do(func() { c.a.running.Go(func() { c.http.Serve(c.conns) }) })
	if !c.conns.give(conn) {
		reset(in)
		return
	}
	<-in.gone
}

// vouch returns how TLS is ended for a host. A client that names another one, or
// none, gets nothing; control C6.
func (c *clearing) vouch(t *target) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := t.where()
	if cfg := c.inside[name]; cfg != nil {
		return cfg, nil
	}
	if _, err := c.own.leaf(name); err != nil {
		return nil, err
	}
	if len(c.inside) >= maxLeaves {
		clear(c.inside)
	}
	_, numeric := addresses(name)
	detail := t.detail()
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if got := strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")); got != name && (got != "" || !numeric) {
				c.a.block("egress", "C6", "the TLS client hello names another host", with(detail, "sni", clip(hello.ServerName)))
				return nil, errors.New("another name")
			}
			return c.own.leaf(name)
		},
	}
	c.inside[name] = cfg
	return cfg, nil
}

// A refusal is why a request is not passed on. The function is told nothing of it.
type refusal struct {
	control string
	reason  string
}

// serve answers one request of the function.
func (c *clearing) serve(w http.ResponseWriter, r *http.Request) {
	c.handle(w, r, r.Context().Value(insideKey{}).(*insideConn))
}

// handle answers a request that came over in.
func (c *clearing) handle(w http.ResponseWriter, r *http.Request, in *insideConn) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	default:
		c.a.block("egress", "C5", "more than "+itoa(maxRequests)+" requests of one instance at one time", nil)
		bare(w, http.StatusServiceUnavailable)
		return
	}
	t := in.to
	if t == nil {
		if t = c.proxied(w, r, in); t == nil {
			return
		}
	}
	defer r.Body.Close()
	if no := malformed(r, in, t); no != nil {
		d := c.describe(t, r)
		c.a.block("egress", no.control, no.reason, d)
		bare(w, http.StatusForbidden)
		return
	}
	one := *t
	one.host, one.method, one.path = nil, clip(r.Method), clip(r.URL.EscapedPath())
	for _, h := range t.hosts {
		if lets(h, r) {
			one.host = h
			break
		}
	}
	if err := c.a.judge(r.Context(), &one, c.describe(t, r)); err != nil || one.host == nil {
		bare(w, http.StatusForbidden)
		return
	}
	c.forward(w, r, in, &one)
}

// describe is what a record says of a request.
func (c *clearing) describe(t *target, r *http.Request) map[string]string {
	d := t.detail()
	d["method"], d["path"] = clip(r.Method), clip(r.URL.EscapedPath())
	return d
}

// clip bounds what a function sent, for a record.
func clip(s string) string {
	if len(s) > maxClearPath {
		return strings.ToValidUTF8(s[:maxClearPath], "") + "…"
	}
	return s
}

// bare answers with a status and nothing else.
func bare(w http.ResponseWriter, status int) {
	h := w.Header()
	clear(h)
	h["Date"] = nil
	h["Content-Length"] = []string{"0"}
	w.WriteHeader(status)
}

// malformed returns why a request is refused for its form, whatever the rules.
func malformed(r *http.Request, in *insideConn, t *target) *refusal {
	switch {
	case r.Method == http.MethodConnect || r.Method == "PRI":
		return &refusal{"C4", "a tunnel within a connection whose requests are read"}
	case r.Method == http.MethodTrace || r.Method == "TRACK":
		return &refusal{"C4", "a method that answers with the request"}
	case in.to != nil && (r.URL.Scheme != "" || r.URL.Host != "" || r.URL.User != nil):
		return &refusal{"C4", "a whole URL in place of a path"}
	case strings.Contains(r.URL.RawQuery, " "): // HTTP/2 has it, and in HTTP/1.1 the path would end there
		return &refusal{"C4", "a query with a space"}
	case r.URL.Opaque != "" || !strings.HasPrefix(r.URL.Path, "/"):
		return &refusal{"C4", "no path"}
	case !t.meant(r.Host) || len(r.Header["Host"]) > 0:
		return &refusal{"C6", "the request names another host"}
	}
	return nil
}

// overrides are headers that some servers take a method or a path from.
var overrides = struct{ methods, paths []string }{
	methods: []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"},
	paths:   []string{"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri"},
}

// lets reports whether h lets a request through.
func lets(h *bawn.Host, r *http.Request) bool {
	has := func(name string) bool { return len(r.Header[name]) > 0 }
	return fits(h, r.Method, r.URL.EscapedPath()) &&
		(len(h.Methods) == 0 || !slices.ContainsFunc(overrides.methods, has)) &&
		(len(h.Paths) == 0 || !slices.ContainsFunc(overrides.paths, has))
}

// hopByHop are headers of one connection, which end here.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Http2-Settings",
}

// endHere takes out of h what belongs to one connection.
func endHere(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// lists reports whether a header names a token.
func lists(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h[name], func(v string) bool {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(textproto.TrimString(part), token) {
				return true
			}
		}
		return false
	})
}

// forward sends a request that was judged, and its answer back.
func (c *clearing) forward(w http.ResponseWriter, r *http.Request, in *insideConn, t *target) {
	h := r.Header
	webSocket := r.ProtoMajor == 1 && r.Method == http.MethodGet && lists(h, "Connection", "upgrade") && len(h["Upgrade"]) == 1 && strings.EqualFold(h["Upgrade"][0], "websocket")
	trailers := lists(h, "Te", "trailers")
	endHere(h)
	delete(h, "Expect") // answered when the body is read, which is when the host wants it
	if webSocket {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if trailers {
		h["Te"] = []string{"trailers"}
	}
	if len(h["User-Agent"]) == 0 {
		h["User-Agent"] = []string{""} // or one would be made up
	}
	hide, err := c.inject(r.Context(), t, h)
	if err != nil {
		bare(w, http.StatusForbidden)
		return
	}
	where := route{rule: t.host, name: t.where(), port: t.port, plain: t.host.Plaintext && in.plain, h2: r.ProtoMajor == 2 && !t.host.Plaintext}
	out := (&http.Request{
		Method: r.Method, Header: h, ContentLength: r.ContentLength, Body: r.Body, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL:  &url.URL{Scheme: where.scheme(), Host: where.authority(), Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery},
		Host: r.Host,
	}).WithContext(r.Context())
	if !where.named(r.Host) {
		out.Host = where.authority()
	}
	if r.ContentLength == 0 {
		out.Body = nil // or it would be sent in chunks
	} else if r.ProtoMajor == 1 {
		http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is so by itself
	}
	var res *http.Response
	if l, ok := w.(*lane); ok {
		res, err = l.roundTrip(t, where, out)
	} else {
		res, err = c.way(t, where).RoundTrip(out)
	}
	if err != nil {
		c.unreached(w, r, t, err)
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		c.upgrade(w, res, webSocket, hide)
		return
	}
	c.answer(w, r, res, hide)
}

func (r route) scheme() string {
	if r.plain {
		return "http"
	}
	return "https"
}

func (r route) standard() int {
	if r.plain {
		return 80
	}
	return 443
}

// authority is what stands in the Host header.
func (r route) authority() string {
	if r.port != r.standard() {
		return net.JoinHostPort(r.name, itoa(r.port))
	}
	if strings.Contains(r.name, ":") {
		return "[" + r.name + "]"
	}
	return r.name
}

// named reports whether a Host header names the host and the port as they are
// outside; if so it is left as it is, for a signature may be over it.
func (r route) named(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return strings.EqualFold(host, r.name) && r.port == r.standard()
	}
	return strings.EqualFold(name, r.name) && port == itoa(r.port)
}

// meant reports whether a Host header names what the connection is for.
func (t *target) meant(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ""
	}
	if port != "" && port != itoa(t.inside) && port != itoa(t.port) {
		return false
	}
	if t.name != "" {
		return strings.EqualFold(strings.TrimSuffix(name, "."), t.name)
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap() == t.addr
}

// unreached answers for a host that did not, and tells the owner.
func (c *clearing) unreached(w http.ResponseWriter, r *http.Request, t *target, err error) {
	var blocked *Blocked
	var certificate *tls.CertificateVerificationError
	status := http.StatusBadGateway
	switch {
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody waits
	case errors.As(err, &certificate):
		c.a.block("egress", "C6", "the host has no certificate for its name", with(t.detail(), "why", clip(certificate.Err.Error())))
	case errors.Is(err, errDenied) || errors.As(err, &blocked):
		status = http.StatusForbidden // recorded where it was refused
	default:
		c.a.note("a request to " + t.where() + " failed: " + clip(err.Error()))
	}
	bare(w, status)
}

// answer passes an answer on to the function, as it comes.
func (c *clearing) answer(w http.ResponseWriter, r *http.Request, res *http.Response, hide *secret.Redactor) {
	announced := slices.Collect(maps.Keys(res.Trailer))
	body := io.Reader(res.Body)
	h := w.Header()
	endHere(res.Header)
	if hide != nil {
		var ok bool
		if body, ok = decoded(res); !ok {
			c.a.note("an answer of " + res.Request.URL.Host + " was refused: it is encoded although that was not asked for, and may hold the credential that was injected")
			bare(w, http.StatusBadGateway)
			return
		}
		body = hide.Reader(body)
		if r.Method != http.MethodHead && res.ContentLength != 0 {
			res.Header.Del("Content-Length") // it may be shorter
		}
	}
	copyHeaders(h, res.Header, hide)
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // or one would be made up
		}
	}
	for _, name := range announced {
		if hide.String(name) == name {
			h.Add("Trailer", name)
		}
	}
	w.WriteHeader(res.StatusCode)
	if res.ContentLength < 0 { // the first part of the body may be long in coming
		http.NewResponseController(w).Flush()
	}
	if res.ContentLength != 0 && r.Method != http.MethodHead {
		if err := c.stream(w, body); err != nil {
			panic(http.ErrAbortHandler) // so that the function sees that it is not whole
		}
	}
	res.Body.Close() // the trailers are there then
	for name, values := range res.Trailer {
		if !slices.Contains(announced, name) {
			name = http.TrailerPrefix + name
		}
		copyHeaders(h, http.Header{name: values}, hide)
	}
}

// copyHeaders puts headers of an answer into h.
func copyHeaders(h, from http.Header, hide *secret.Redactor) {
	for name, values := range from {
		if hide == nil {
			h[name] = values
			continue
		}
		if hide.String(name) != name {
			continue
		}
		for _, v := range values {
			h[name] = append(h[name], hide.String(v))
		}
	}
}

// stream copies a body, each part as soon as it is there.
func (c *clearing) stream(w http.ResponseWriter, body io.Reader) error {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	control := http.NewResponseController(w)
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
	}
}

// upgrade joins two connections that speak WebSocket from now on.
func (c *clearing) upgrade(w http.ResponseWriter, res *http.Response, asked bool, hide *secret.Redactor) {
	outside, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !asked || !lists(res.Header, "Upgrade", "websocket") {
		bare(w, http.StatusBadGateway)
		return
	}
	head := http.Header{}
	endHere(res.Header)
	copyHeaders(head, res.Header, hide)
	head["Connection"], head["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		bare(w, http.StatusBadGateway)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	head.Write(buffered)
	buffered.WriteString("\r\n")
	if buffered.Flush() != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.pump(outside, buffered) // what was read ahead comes first
		outside.Close()
	}()
	c.pump(conn, hide.Reader(outside))
	conn.Close()
	outside.Close()
	<-done
}

func (c *clearing) pump(w io.Writer, r io.Reader) {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf) // an end is an end
}

// forget ends the connections to the outside that nothing uses, when the invocation
// that they were made for is over.
func (c *clearing) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turnLocked(nil)
}

// turn makes run the invocation that connections to the outside are kept for.
func (c *clearing) turn(run *serving) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != run || len(c.routes) >= maxClearRoutes {
		c.turnLocked(run)
	}
}

// turnLocked ends what is kept and begins anew. The caller holds mu.
func (c *clearing) turnLocked(run *serving) {
	for _, t := range c.routes {
		t.CloseIdleConnections()
	}
	for _, free := range c.free {
		for _, k := range free {
			k.raw.Close()
		}
	}
	c.run, c.routes, c.free = run, nil, nil
}

// way returns the transport to a host, for the invocation of t.
func (c *clearing) way(t *target, to route) *http.Transport {
	c.turn(t.run)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routes == nil {
		c.routes = map[route]*http.Transport{}
	}
	tr := c.routes[to]
	if tr == nil {
		tr = c.transport(t, to)
		c.routes[to] = tr
	}
	return tr
}

// transport makes the transport of a route.
func (c *clearing) transport(t *target, to route) *http.Transport {
	next := []string{"http/1.1"}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	if to.h2 {
		next = []string{"h2", "http/1.1"}
		protocols.SetHTTP2(true)
	}
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return c.a.dial(ctx, t) },
		TLSClientConfig:        c.outsideTLS(to, next...),
		Protocols:              protocols,
		TLSHandshakeTimeout:    clearHeaderTime,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    bawn.DefaultEgressConns,
		IdleConnTimeout:        clearIdle,
		MaxResponseHeaderBytes: clearAnswer,
	}
}

// outsideTLS is how TLS is spoken with the host of a route.
func (c *clearing) outsideTLS(to route, protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: c.a.b.cfg.Guard.Roots(), ServerName: to.name, MinVersion: minOutsideTLS, NextProtos: protocols}
}

// attachClear returns what an instance gets so that it trusts the end of its TLS
// where Bawn reads requests.
func (a *attached) attachClear(context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	hosts := a.v.Perimeter.Egress.Hosts
	if len(hosts) == 0 && a.v.Perimeter.Egress.Everything == nil {
		return nil, nil, nil
	}
	own, err := newAuthority(hosts, a.b.cfg.Now)
	if err != nil {
		return nil, nil, bawn.Wrap(err, bawn.CodeUnavailable, "egress.attach", "no authority could be made for %s", a.v.Ref())
	}
	a.clear = newClearing(a, own)
	env := proxyEnv(a.v.Perimeter.Egress.Proxy)
	added := a.b.cfg.Guard.Added()
	if own == nil && len(added) == 0 {
		return nil, env, nil // what the image has is enough
	}
	maps.Copy(env, trustEnv(sandbox.CAFile))
	return []sandbox.AttachedFile{{Path: sandbox.CAFile, Data: bundle(a.b.trust.get(added), own)}}, env, nil
}
