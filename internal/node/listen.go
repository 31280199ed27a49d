package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

// Bounds of a connection. The size of a body is bounded by the handlers, which
// know what is sensible for each route.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	bodyGrace         = 20 * time.Second
	minBodyRate       = 16 << 10 // bytes a second
	maxConnections    = 1024     // of a listener; more wait until one ends
	// One address gets one part in so many of them; one that is named as a trusted
	// proxy, all.
	addressShare = 4
	maxStreams   = 64        // requests at one time on a connection of HTTP/2
	maxUnread    = 256 << 10 // of bodies that no handler has read, each connection of HTTP/2
)

// listener is one TLS listener with its server.
type listener struct {
	name string
	tcp  net.Listener
	srv  *http.Server
	stop context.CancelFunc // ends the context of every request in flight
	done chan struct{}
	err  error // valid once done is closed
}

// bind takes the address, and does not serve yet.
func bind(ctx context.Context, name, addr string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err == nil {
		return ln, nil
	}
	flag := "--" + name
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, bawn.Wrap(err, bawn.CodeConflict, "node.listen", "the %s address %s is in use by another program", name, addr).
			WithFix("stop that program, or choose another address with %s ADDR", flag)
	case errors.Is(err, syscall.EACCES):
		return nil, bawn.Wrap(err, bawn.CodeDenied, "node.listen", "listening on the %s address %s is not permitted", name, addr).
			WithFix("choose a port above 1023 with %s ADDR", flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "node.listen", "this host does not have the %s address %s", name, addr).
			WithFix("choose one it has with %s ADDR, such as 127.0.0.1:0", flag)
	}
	return nil, bawn.Wrap(err, bawn.CodeInvalid, "node.listen", "cannot listen on the %s address %.200q", name, addr).
		WithFix("give it as HOST:PORT with %s ADDR, such as 127.0.0.1:0", flag)
}

// certificates choose the certificate of a handshake. They are safe for concurrent
// use.
type certificates interface {
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// asking says whether a handshake for a host, "" if it names none, asks for a client
// certificate, and which authorities it names; nil: none, which is to ask for any.
type asking func(ctx context.Context, host string) (bool, *x509.CertPool)

// maxAskedNames bounds the names of authorities in a handshake, in bytes. One message
// has room for less than 64 KiB.
const maxAskedNames = 16 << 10

// asksOurs is for what only Bawn's own users come to: the authorities of issuers.
func (n *Node) asksOurs(context.Context, string) (bool, *x509.CertPool) {
	roots := n.who.Authorities()
	return roots != nil, named(roots)
}

// asksAll is for functions: it asks for what their routes want, besides.
func (n *Node) asksAll(ctx context.Context, host string) (bool, *x509.CertPool) {
	roots := n.who.Authorities()
	if n.calls.ready(ctx) != nil {
		return roots != nil, named(roots)
	}
	wanted, of := n.calls.gate.Asks(host)
	switch {
	case !wanted:
		return roots != nil, named(roots)
	case len(of) == 0:
		return true, nil
	case roots == nil:
		roots = x509.NewCertPool()
	default:
		roots = roots.Clone()
	}
	for _, c := range of {
		roots.AddCert(c)
	}
	return true, named(roots)
}

// named returns the authorities if a handshake has room for their names.
func named(roots *x509.CertPool) *x509.CertPool {
	if roots == nil {
		return nil
	}
	size := 0
	for _, name := range roots.Subjects() { //nolint:staticcheck // not the system's
		if size += len(name) + 2; size > maxAskedNames {
			return nil
		}
	}
	return roots
}

// wire says how connections are taken; its zero value is the strictest.
type wire struct {
	minTLS uint16 // 0: TLS 1.3
	acme   bool   // whether challenges of an ACME authority are answered
	// spread reports whether an address may have more connections than one caller
	// gets: those of many callers come from it. nil: none may.
	spread func(netip.Addr) bool
}

// serve answers requests on ln until it is shut down.
func serve(name string, ln net.Listener, cert certificates, ask asking, h http.Handler, w wire, logger *slog.Logger) *listener {
	return servePaced(name, ln, cert, ask, h, w, defaultPace(), logger)
}

// servePaced cuts off who is slower than p.
func servePaced(name string, ln net.Listener, cert certificates, ask asking, h http.Handler, w wire, p pace, logger *slog.Logger) *listener {
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{name: name, tcp: ln, stop: stop, done: make(chan struct{})}
	tlsConfig := &tls.Config{
		MinVersion:     max(w.minTLS, tls.VersionTLS12),
		GetCertificate: cert.get,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	if w.acme {
		tlsConfig.NextProtos = append(tlsConfig.NextProtos, acmeProtocol)
	}
	if w.minTLS == 0 {
		tlsConfig.MinVersion = tls.VersionTLS13
	}
	// A certificate that is not good does not end the handshake: the answer says
	// what is wrong with it. Who it is, is for package identity to say.
	withCert := tlsConfig.Clone()
	withCert.ClientAuth = tls.RequestClientCert
	tlsConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		wanted, pool := ask(hello.Context(), hello.ServerName)
		if !wanted {
			return nil, nil
		}
		c := withCert.Clone()
		c.ClientCAs = pool
		return c, nil
	}
	l.srv = &http.Server{
		Handler:           p.keep(unambiguous(h)),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// The deadlines of a stream do not free a connection that takes nothing.
		HTTP2: &http.HTTP2Config{
			WriteByteTimeout: p.grace, SendPingTimeout: idleTimeout, PingTimeout: p.grace,
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: maxUnread,
		},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(&serverLog{logger, name}, "", 0),
		TLSConfig:   tlsConfig,
	}
	go func() {
		defer close(l.done)
		bounded := few(ln, maxConnections)
		bounded.each, bounded.spread = maxConnections/addressShare, w.spread
		if err := l.srv.Serve(shakeHands(bounded, tlsConfig)); !errors.Is(err, http.ErrServerClosed) {
			l.err = err
		}
	}()
	return l
}

// few holds ln to n connections at one time, and each address to a part of them; one
// more of its is closed at once, so that nobody can take them all. The next one is taken when one of
// them has ended; until then it waits in the kernel and costs no memory here.
func few(ln net.Listener, n int) *fewListener {
	return &fewListener{Listener: ln, free: make(chan struct{}, n), closed: make(chan struct{}), each: n, of: map[netip.Addr]int{}}
}

type fewListener struct {
	net.Listener
	free   chan struct{} // holds one for each connection
	once   sync.Once
	closed chan struct{}
	spread func(netip.Addr) bool // see wire
	each   int                   // connections of one address

	mu sync.Mutex
	of map[netip.Addr]int // connections that there are; never more entries than those
}

// Accept waits for a connection, and for leave to have one more.
func (l *fewListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.free
			return nil, err
		}
		from := addressOf(c)
		if l.begin(from) {
			return &fewConn{Conn: c, l: l, from: from}, nil
		}
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0) // nothing of it waits in the kernel
		}
		c.Close()
	}
}

// begin counts a connection of an address, if it may have one more.
func (l *fewListener) begin(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[from] >= l.each && (l.spread == nil || !l.spread(from)) {
		return false
	}
	l.of[from]++
	return true
}

func (l *fewListener) end(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[from]--; l.of[from] <= 0 {
		delete(l.of, from)
	}
}

// Close ends an Accept that waits.
func (l *fewListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type fewConn struct {
	net.Conn
	l    *fewListener
	from netip.Addr
	once sync.Once
}

// Close makes room for another connection.
func (c *fewConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.l.end(c.from)
		<-c.l.free
	})
	return err
}

// shutdown stops accepting and waits for what is running until ctx ends; then
// it cuts what is left.
func (l *listener) shutdown(ctx context.Context) {
	if err := l.srv.Shutdown(ctx); err != nil {
		l.stop()
		l.srv.Close()
	}
	l.stop()
	<-l.done
}

// serverLog writes what net/http says of broken connections at debug level:
// any scanner on the network could fill the log otherwise.
type serverLog struct {
	log      *slog.Logger
	listener string
}

func (w *serverLog) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if strings.Contains(string(p), "panic") {
		level = slog.LevelError
	}
	w.log.Log(context.Background(), level, strings.TrimSpace(string(p)), "listener", w.listener)
	return len(p), nil
}
