package interior

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// Inside is one instance as the egress sees it: whose it is, and how to listen in
// its network. A listener there is the identity of the instance.
type Inside struct {
	Version  *bawn.Version
	Instance string
	// Resolver takes the sandbox's DNS questions, at 127.0.0.1:53; nil if nothing in
	// the sandbox can ask. It is closed with the sandbox, if not before.
	Resolver net.PacketConn
	// Open makes sockets in the sandbox's network, and makes the ranges in local its
	// own: a connection to an address there comes to a socket of this side, whose
	// local address then says where it was to go. It is [sandbox.Sandbox.Open]: of
	// no use any more once Attach has returned, before which no code of the function
	// runs. Ports 53 of UDP, 9001 to 9003 of TCP are taken.
	Open func(ctx context.Context, ports []sandbox.Port, local []netip.Prefix) ([]*os.File, error)
	// Record keeps what was decided or stopped, with the function, the instance and
	// the invocation that it has begun last filled in.
	Record func(ctx context.Context, r bawn.Record) error
	// Note writes a line of Bawn's own into the function's log, for its owner: what
	// the caller gets of the log does not have it.
	Note func(text string)
}

// Reach is what an instance has beyond its sandbox.
type Reach struct {
	Outside Outside
	Files   []sandbox.AttachedFile
	Env     map[string]string // for the function's environment; the manifest's own goes before
}

// Outside is what an instance reaches beyond its sandbox, from attach to the end.
// All methods are safe for concurrent use. Code of the function runs before the
// first Begin, while its handler is loaded, and may run between two invocations:
// it reaches nothing then.
type Outside interface {
	// Begin says that the instance works on c until deadline, and End that it does
	// not any more: every connection of the invocation is over then. End returns
	// what went through them. Each Begin has one End, also after Close.
	Begin(c *bawn.Call, deadline time.Time)
	End() bawn.Traffic
	// ServeHTTP answers what the function's code asks of the endpoint in its sandbox
	// and what is no call of another function, such as for a secret. It is asked
	// during invocations alone; the context of a request ends with that.
	http.Handler
	// Stale reports whether the instance has something that has been replaced since,
	// so that it must not serve another call. It is asked at every call, with locks
	// held: it reads memory and does not wait.
	Stale() bool
	// Close ends everything, at once: the sandbox is gone or about to be.
	Close()
}

// resolverPort is where the sandbox's resolver is, as its resolv.conf says.
const resolverPort = 53

// outer holds what a sandbox reaches, whose end may come before it has any.
type outer struct {
	mu     sync.Mutex
	is     Outside
	closed bool
}

func (o *outer) set(is Outside) {
	o.mu.Lock()
	o.is = is
	closed := o.closed
	o.mu.Unlock()
	if closed {
		is.Close()
	}
}

func (o *outer) close() {
	o.mu.Lock()
	is, closed := o.is, o.closed
	o.closed = true
	o.mu.Unlock()
	if is != nil && !closed {
		is.Close()
	}
}

// attach finds out what the instance reaches beyond its sandbox. Nothing of the
// function is there yet.
func (in *instance) attach(ctx context.Context) (Reach, error) {
	p, b := in.fleet.fn.pool, in.box
	if p.cfg.Attach == nil {
		return Reach{}, nil
	}
	r, err := p.cfg.Attach(ctx, Inside{
		Version: in.fleet.version, Instance: in.id, Resolver: b.names, Open: b.Open, Record: in.record,
		Note: in.out.aside,
	})
	if err != nil {
		return Reach{}, err
	}
	if in.outside = r.Outside; in.outside != nil {
		b.beyond.set(in.outside)
	}
	return r, nil
}

// record keeps what was decided or stopped at the instance's way out.
func (in *instance) record(ctx context.Context, r bawn.Record) error {
	p := in.fleet.fn.pool
	now := time.Now()
	if r.Time.IsZero() {
		r.Time = now
	}
	in.identify(&r, r.Time)
	if r.Outcome == "blocked" || r.Outcome == "deny" {
		p.count.blocked.Add(1)
		if t := in.fleet.trial; t != nil {
			t.saw(r)
		}
	}
	return p.cfg.Record(ctx, r)
}

// enter lets the call reach what its instance may, and leave ends that: what it
// still has open is cut.
func (in *instance) enter(c *bawn.Call, deadline time.Time) {
	in.box.door.begin(c, deadline)
	if in.outside != nil {
		in.outside.Begin(c, deadline)
	}
}

func (in *instance) leave(u *bawn.Usage) {
	in.box.door.end()
	if in.outside != nil {
		u.Traffic = in.outside.End()
	}
}
