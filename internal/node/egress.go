package node

import (
	"context"
	"net"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/egress"
	"bawn.dev/bawn/internal/interior"
)

// attach is an interior.Config.Attach.
func (c *calls) attach(ctx context.Context, in interior.Inside) (interior.Reach, error) {
	r, err := c.broker.Attach(ctx, egress.Inside(in))
	if err != nil {
		return interior.Reach{}, err
	}
	return interior.Reach{Outside: r.Outside, Files: r.Files, Env: r.Env}, nil
}

// dialIssuer is an identity.Config.Dial. What an administrator of a tenant writes
// into an issuer's settings reaches nothing of the host or of the network that
// it is in, unless an operator has allowed private; control C3.
func (n *Node) dialIssuer(ctx context.Context, network, addr string, private bool) (net.Conn, error) {
	if private {
		return n.guard.DialTrusted(ctx, network, addr)
	}
	return n.guard.Dial(ctx, network, addr)
}

// reaches says what functions may reach beyond the public internet.
func (n *Node) reaches() bawn.Capability {
	c := bawn.Capability{Name: "egress", Control: "C3", OK: true, Detail: "functions reach hosts of the public internet that their manifests name, and no other"}
	if all := n.guard.Allowed(); len(all) > 0 {
		c.Detail = "functions reach hosts of the public internet that their manifests name, and by the operator's leave " + strings.Join(all, " ")
	}
	return c
}
