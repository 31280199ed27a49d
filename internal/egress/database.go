package egress

import (
	"context"
	"net"

	"bawn.dev/bawn/internal/sandbox"
)

// attachDatabases returns what names the databases to an instance.
func (a *attached) attachDatabases(context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	return nil, nil, nil
}

// serveDatabase sees to a connection to a database.
func (a *attached) serveDatabase(ctx context.Context, conn net.Conn, t *target) {
	a.block("egress", "C2", "databases are not reached from this node", t.detail())
	reset(conn)
}
