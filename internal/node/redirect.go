package node

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"bawn.dev/bawn/internal/ingress"
)

const (
	plainTimeout     = 10 * time.Second // for a request without TLS, and for its answer
	plainHeaderBytes = 8 << 10
	maxPlain         = 256 // connections without TLS at one time
)

// serveRedirects answers requests without TLS, by sending on to https whoever only
// wants to read, on hosts that are somebody's, and challenges of acme, which may be nil.
// Nothing else is served: what a caller
// has sent in clear is not acted on, and no credential of theirs is looked at. port is
// that of https.
func serveRedirects(ln net.Listener, port string, known func(host string) bool, spread func(netip.Addr) bool, acme *acmeCerts, logger *slog.Logger) *listener {
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{name: "http", tcp: ln, stop: stop, done: make(chan struct{})}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Connection"] = []string{"close"}
		host := ingress.HostName(r.Host)
		switch {
		case acme.answer(w, r): // RFC 8555, 8.3: it is asked for without TLS
		case host == "" || !known(host):
			http.Error(w, "Not Found", http.StatusNotFound)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			http.Error(w, "use https", http.StatusForbidden)
		case len(r.RequestURI) == 0 || r.RequestURI[0] != '/' || ingress.CheckPath(r.URL.EscapedPath()) != nil:
			http.Error(w, "Bad Request", http.StatusBadRequest)
		default:
			if host = net.JoinHostPort(host, port); port == "443" {
				host = strings.TrimSuffix(host, ":443")
			}
			w.Header()["Location"] = []string{"https://" + host + r.RequestURI}
			w.WriteHeader(http.StatusMovedPermanently)
		}
	})
	l.srv = &http.Server{
		Handler: h, ReadTimeout: plainTimeout, WriteTimeout: plainTimeout, IdleTimeout: plainTimeout, MaxHeaderBytes: plainHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(&serverLog{logger, "http"}, "", 0),
	}
	l.srv.SetKeepAlivesEnabled(false)
	go func() {
		defer close(l.done)
		bounded := few(ln, maxPlain)
		bounded.each, bounded.spread = maxPlain/addressShare, spread
		if err := l.srv.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			l.err = err
		}
	}()
	return l
}
