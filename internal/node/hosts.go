package node

import (
	"io"
	"net/http"
	"net/netip"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
	"bawn.dev/bawn/internal/ingress"
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

// directed sends away, with 421, requests for another host over a connection that was
// made for a tenant's domain. A browser may use one connection for every host that its
// certificate or its address fits (RFC 9113, 9.1.1); what was agreed when it was made,
// such as whose certificates are asked for, holds for that domain alone. A client
// then asks again over a connection of its own. Connections for the node's own names, or
// for none, are taken for any host: proxies and health checks make them.
func directed(domain func(name string) bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName == "" {
			h.ServeHTTP(w, r)
			return
		}
		if made := strings.ToLower(r.TLS.ServerName); made != ingress.HostName(r.Host) && domain(made) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Connection", "close")
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.WriteHeader(http.StatusMisdirectedRequest)
			io.WriteString(w, `{"message":"Misdirected Request","fix":"ask this host over a connection of its own"}`+"\n")
			return
		}
		h.ServeHTTP(w, r)
	})
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
