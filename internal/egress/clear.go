package egress

import (
	"context"
	"net"
	"net/http"

	"bawn.dev/bawn/internal/sandbox"
)

// attachClear returns what an instance gets so that it trusts the end of its TLS
// where Bawn reads requests.
func (a *attached) attachClear(context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	return nil, nil, nil
}

// serveClear reads the requests of a connection, judges each, and passes it on.
func (a *attached) serveClear(ctx context.Context, conn net.Conn, t *target) {
	a.block("egress", "C2", "requests are not read by this node", t.detail())
	reset(conn)
}

// serveProxy answers a client that was told of Bawn as a proxy.
func (a *attached) serveProxy(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusForbidden)
}
