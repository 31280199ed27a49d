package interior

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// Inside is one instance as the egress sees it: whose it is, and how to listen in
// its network. A listener there is the identity of the instance.
type Inside struct {
	Version  *bawn.Version
	Instance string
	// Resolver takes the sandbox's DNS questions, at 127.0.0.1:53; nil if the
	// sandbox has none. Who attaches closes it.
	Resolver net.PacketConn
	// Open makes sockets in the sandbox's network, each bound to all its addresses,
	// and makes the ranges in local its own: a connection to an address there comes
	// to a socket of this side, whose local address then says where it was to go.
	// Only before Attach of the egress has returned; no code of the function runs.
	Open func(ctx context.Context, ports []sandbox.Port, local []netip.Prefix) ([]*os.File, error)
	// Record keeps what was decided or stopped, with the instance and the running
	// invocation filled in.
	Record func(ctx context.Context, r bawn.Record) error
	// Note writes a line of Bawn's own into the function's log, for its owner.
	Note func(text string)
}

// Reach is what an instance has beyond its sandbox.
type Reach struct {
	Outside Outside
	Files   []sandbox.AttachedFile
	Env     map[string]string // for the function's environment, before the manifest's own
}

// Outside is what an instance reaches beyond its sandbox, from attach to the end.
// All methods are safe for concurrent use.
type Outside interface {
	// Begin says that the instance works on c until deadline, and End that it does
	// not any more: every connection of the invocation is over then. End returns
	// what went through them.
	Begin(c *bawn.Call, deadline time.Time)
	End() bawn.Traffic
	// ServeHTTP answers what the function's code asks of the endpoint in its sandbox
	// and what is no call of another function, such as for a secret.
	http.Handler
	// Stale reports whether the instance has something that has been replaced since,
	// so that it must not serve another call.
	Stale() bool
	// Close ends everything.
	Close()
}
