package egress

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// ProxyPort is where the proxy listens in a sandbox whose function may reach hosts.
const ProxyPort = 9003

// proxyURL is how the environment names it.
const proxyURL = "http://127.0.0.1:9003"

// proxyEnv names the proxy to tools that want one. Bawn's own addresses, which are
// in the sandbox itself, are not for it.
func proxyEnv(everywhere bool) map[string]string {
	env := map[string]string{"BAWN_PROXY": proxyURL}
	if everywhere {
		for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
			env[name] = proxyURL
		}
		env["NO_PROXY"] = "localhost,127.0.0.0/8,127.0.0.1,::1"
		env["no_proxy"] = env["NO_PROXY"]
	}
	return env
}

// serveProxy is for a client that was told of Bawn as a proxy: by CONNECT it names
// a host and a port, to which the same rules apply as to a connection that it makes
// by itself, and by a whole URL a request, which is judged like any that Bawn reads.
// It returns when the connection is closed.
func (a *attached) serveProxy(ctx context.Context, run *serving, conn net.Conn) {
	a.clear.take(&insideConn{Conn: conn, ctx: ctx, run: run, plain: true, gone: make(chan struct{})})
}

// proxied returns what a request to the proxy is meant for; nil if it has been
// answered.
func (c *clearing) proxied(w http.ResponseWriter, r *http.Request, in *insideConn) *target {
	name, port, no := wanted(r)
	t := c.a.aim(in.run, name, port)
	switch {
	case no == nil && t.host == nil && t.database == nil:
		c.a.judge(r.Context(), t, nil) // which records that nothing allows it
		bare(w, http.StatusForbidden)
		return nil
	case no == nil && r.Method != http.MethodConnect && t.host != nil && !t.host.Clear() && !t.host.Plaintext:
		no = &refusal{"C6", "a request without TLS, which the rule does not allow"}
	case no == nil && r.Method != http.MethodConnect && t.host == nil:
		no = &refusal{"C4", "an HTTP request to a database"}
	}
	if no != nil {
		d := t.detail()
		d["request"] = clip(r.Method + " " + r.RequestURI)
		c.a.block("egress", no.control, no.reason, d)
		bare(w, http.StatusForbidden)
		return nil
	}
	if r.Method != http.MethodConnect {
		return t
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		bare(w, http.StatusForbidden)
		return nil
	}
	defer conn.Close()
	buffered.WriteString("HTTP/1.1 200 OK\r\n\r\n")
	if buffered.Flush() != nil {
		return nil
	}
	raw := in.Conn // so that bytes can be moved without copies
	if n := buffered.Reader.Buffered(); n > 0 {
		head, _ := buffered.Peek(n)
		raw = &insideConn{Conn: in.Conn, head: append([]byte(nil), head...), gone: make(chan struct{})}
	}
	c.a.dispatch(r.Context(), raw, t)
	return nil
}

// aim returns what a host and a port that a client names are.
func (a *attached) aim(run *serving, host string, port int) *target {
	t := &target{run: run, inside: port, port: port}
	if addr, err := netip.ParseAddr(host); err == nil {
		t.addr = addr.Unmap()
	} else if t.name, err = parseName(host); err != nil {
		t.name = clip(host) // which no rule is about
		return t
	}
	a.fill(t)
	return t
}

// wanted returns which host and port a request to a proxy names, and why it is
// refused if its form is wrong.
func wanted(r *http.Request) (name string, port int, no *refusal) {
	authority, standard := r.URL.Host, "80"
	if r.Method == http.MethodConnect {
		authority, standard = r.Host, ""
	}
	host, p, err := net.SplitHostPort(authority)
	if err != nil {
		host, p = strings.TrimSuffix(strings.TrimPrefix(authority, "["), "]"), standard
	}
	name = host
	n, err := strconv.ParseUint(p, 10, 16)
	switch {
	case r.URL.User != nil || strings.Contains(authority, "@"):
		no = &refusal{"C4", "a user in front of the host"}
	case r.Method != http.MethodConnect && r.URL.Scheme != "http":
		no = &refusal{"C4", "a scheme other than http; https goes by CONNECT"}
	case name == "" || err != nil || n == 0:
		no = &refusal{"C4", "no host and port"}
	}
	return name, int(n), no
}

// proxyAddr is where the proxy listens.
func proxyAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }
