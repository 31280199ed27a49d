// Package egress is the one way out of a sandbox. A function reaches what its
// manifest names, by connections to addresses of its own loopback, where Bawn
// listens from outside: Bawn knows which instance asks by the socket, judges,
// resolves the name itself, connects to an address that it has looked at, counts
// and records. Nothing here trusts what the function says of itself.
package egress

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/secret"
)

const acceptAgain = 50 * time.Millisecond // after a connection could not be taken

// Config says what a [Broker] works with. Authorize and Guard are needed.
type Config struct {
	// Authorize decides on a request and records the decision; see
	// [policy.Engine.Authorize].
	Authorize func(ctx context.Context, req policy.Request) (policy.Decision, error)
	// Allows reports what Authorize would decide. It is asked where an invocation has
	// had many allowed decisions by one rule, which are counted from then on; nil
	// means that each is recorded.
	Allows  func(req policy.Request) bool
	Guard   *Guard           // where connections to the outside are made
	Secrets *secret.Vault    // nil: nothing has secrets
	Errors  *slog.Logger     // what went wrong and has no caller to tell; nil discards
	Now     func() time.Time // nil means time.Now
}

// Broker lets instances reach what their manifests name; there is one for a node.
// Its methods are safe for concurrent use.
type Broker struct {
	cfg      Config
	verified verified
	trust    trust
	buffers  sync.Pool // of *[spliceBuffer]byte
}

// New returns a broker.
func New(cfg Config) *Broker {
	if cfg.Errors == nil {
		cfg.Errors = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Allows == nil {
		cfg.Allows = func(policy.Request) bool { return false }
	}
	return &Broker{cfg: cfg, buffers: sync.Pool{New: func() any { return new([spliceBuffer]byte) }}}
}

// Inside is one instance as its interior hands it over.
type Inside struct {
	Version  *bawn.Version
	Instance string
	// Resolver takes the sandbox's DNS questions; nil if the sandbox has none. It
	// is closed with what Attach returns, or before Attach returns an error.
	Resolver net.PacketConn
	// Open makes sockets in the sandbox's network, each bound to all its addresses,
	// and makes the ranges in local its own.
	Open func(ctx context.Context, ports []sandbox.Port, local []netip.Prefix) ([]*os.File, error)
	// Record keeps what was decided or stopped, with the instance and the running
	// invocation filled in.
	Record func(ctx context.Context, r bawn.Record) error
	// Note writes a line into the function's log, for its owner.
	Note func(text string)
}

// Reach is what an instance has beyond its sandbox.
type Reach struct {
	Outside *attached
	Files   []sandbox.AttachedFile
	Env     map[string]string
}

// attached is the egress of one instance. All methods are safe for concurrent
// use.
type attached struct {
	b    *Broker
	in   Inside
	v    *bawn.Version
	plan plan

	listeners []net.Listener
	slots     chan struct{} // one for each open connection of the function
	quiet     quiet
	names     names
	databases map[string]*binding // by name; not changed after Attach
	clear     *clearing           // nil if it may reach no host
	held      []heldSecret        // as files; not changed after Attach
	running   sync.WaitGroup      // the goroutines of this instance

	mu     sync.Mutex
	run    *serving // nil while no invocation runs
	closed bool
}

// Attach makes the egress of one instance: its listeners, what its names resolve
// to, and the files that tell it. The caller closes what it returns.
func (b *Broker) Attach(ctx context.Context, in Inside) (_ Reach, err error) {
	a := &attached{b: b, in: in, v: in.Version, slots: make(chan struct{}, maxConns)}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	a.plan = newPlan(&in.Version.Perimeter.Egress)
	if ports := a.plan.sockets(); len(ports) > 0 {
		files, err := in.Open(ctx, ports, a.plan.local())
		if err != nil {
			return Reach{}, bawn.Wrap(err, bawn.CodeUnavailable, "egress.attach", "the ports of %s could not be opened in its sandbox", in.Version.Ref()).
				WithFix("try again; run bawn doctor on the node if it stays so")
		}
		if err := a.listen(files); err != nil {
			return Reach{}, bawn.Wrap(err, bawn.CodeUnavailable, "egress.attach", "the ports of %s could not be listened to", in.Version.Ref())
		}
	}
	r := Reach{Outside: a, Env: map[string]string{}}
	if hosts := a.plan.hosts(); hosts != nil {
		r.Files = append(r.Files, sandbox.AttachedFile{Path: sandbox.HostsFile, Data: hosts})
	}
	for _, part := range []func(context.Context) ([]sandbox.AttachedFile, map[string]string, error){a.attachClear, a.attachSecrets, a.attachDatabases} {
		files, env, err := part(ctx)
		if err != nil {
			return Reach{}, err
		}
		r.Files = append(r.Files, files...)
		maps.Copy(r.Env, env)
	}
	for _, ln := range a.listeners {
		a.running.Go(func() { a.accept(ln) })
	}
	if in.Resolver != nil {
		a.running.Go(a.resolve)
	}
	return r, nil
}

// listen makes listeners of files, which are closed.
func (a *attached) listen(files []*os.File) (err error) {
	for _, f := range files {
		if err == nil {
			var ln net.Listener
			if ln, err = net.FileListener(f); err == nil {
				a.listeners = append(a.listeners, ln)
			}
		}
		f.Close()
	}
	return err
}

// Begin says that the instance works on c until deadline.
func (a *attached) Begin(c *bawn.Call, deadline time.Time) {
	run := &serving{a: a, call: c, deadline: deadline}
	a.mu.Lock()
	old := a.run
	a.run = run
	a.mu.Unlock()
	if old != nil { // a caller that forgot to end it
		old.end()
	}
}

// End says that the instance works no more. Every connection of the invocation
// is cut; it returns what went through them.
func (a *attached) End() bawn.Traffic {
	a.mu.Lock()
	run := a.run
	a.run = nil
	a.mu.Unlock()
	if run == nil {
		return bawn.Traffic{}
	}
	return run.end()
}

// Stale reports whether the instance holds what has been replaced since.
func (a *attached) Stale() bool { return a.staleSecrets() }

// Close ends everything, at once: what still runs is over in a moment.
func (a *attached) Close() {
	a.mu.Lock()
	was, run := a.closed, a.run // End still asks that what went through it
	a.closed = true
	a.mu.Unlock()
	if was {
		return
	}
	if run != nil {
		run.end()
	}
	for _, ln := range a.listeners {
		ln.Close()
	}
	if a.in.Resolver != nil {
		a.in.Resolver.Close()
	}
	if a.clear != nil {
		a.clear.close()
	}
	go func() {
		a.leaveSecrets()
		a.flush()
	}()
}

// ServeHTTP answers what the function's code asks of the endpoint in its sandbox:
// for a secret.
func (a *attached) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.serveSecrets(w, r)
}

// accept takes the connections of one listener until it is closed.
func (a *attached) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the node is out of descriptors, say, which passes
			time.Sleep(acceptAgain)
			continue
		}
		select {
		case a.slots <- struct{}{}:
		default: // nothing good needs so many
			reset(conn)
			a.block("egress", "C5", "more than "+itoa(maxConns)+" connections of one instance at one time", nil)
			continue
		}
		a.running.Go(func() {
			defer func() { <-a.slots }()
			a.serve(conn)
		})
	}
}

// serve sees to one connection of the function, until it ends.
func (a *attached) serve(conn net.Conn) {
	a.mu.Lock()
	run := a.run
	a.mu.Unlock()
	local := addrPort(conn.LocalAddr())
	if run == nil || !run.enter(conn) {
		reset(conn)
		a.block("egress", "C5", "no invocation is running", map[string]string{"port": itoa(int(local.Port()))})
		return
	}
	defer run.leave(conn)
	defer func() {
		if p := recover(); p != nil { // what a function sends must not end the node
			a.b.cfg.Errors.Error("a connection of a function failed", "function", a.v.Ref().String(), "panic", p)
			reset(conn)
		}
	}()
	if a.clear != nil && local == netip.AddrPortFrom(proxyAddr(), ProxyPort) {
		a.serveProxy(run.ctx, run, conn)
		return
	}
	a.dispatch(run.ctx, conn, a.find(run, local))
}

// dispatch sees to a connection for t, until it ends.
func (a *attached) dispatch(ctx context.Context, conn net.Conn, t *target) {
	switch {
	case t.database != nil:
		a.serveDatabase(ctx, conn, t)
	case t.host == nil:
		a.judge(ctx, t, nil)
		reset(conn)
	case t.host.Clear():
		a.serveClear(ctx, conn, t)
	default:
		a.serveTunnel(ctx, conn, t)
	}
}
