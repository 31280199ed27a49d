package node

import (
	"net/netip"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

// ownHost reports whether a host, in lower case and without port, is one of the
// node's own names. Every address is: what leads here may have been translated on
// its way.
func (n *Node) ownHost(name string) bool {
	if n.names[name] {
		return true
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

// hostOf is an ingress.Config.Host. As long as there is no domain there is nothing
// that hosts would tell apart, and every one leads to the routes without hosts.
func (n *Node) hostOf(changes *control.Control, name string) (tenant string, ok bool) {
	if tenant, ok := changes.Owner(name); ok {
		return tenant, true
	}
	return "", n.ownHost(name) || changes.NoDomains()
}

// proxied says whose word is believed on where requests come from, for the doctor.
func (n *Node) proxied() []bawn.Capability {
	if len(n.cfg.TrustedProxies) == 0 {
		return nil
	}
	return []bawn.Capability{{
		Name: "trusted proxies", Control: "D9", OK: true,
		Detail: "believed on where requests come from: " + strings.Join(n.cfg.TrustedProxies, " ") + "; everybody else's X-Forwarded-* and Forwarded are dropped",
	}}
}
