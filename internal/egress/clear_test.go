package egress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// name is the host in these tests: httptest has a certificate for it.
const name = "example.com"

// A clearWorld is an instance whose egress is under test, and the host that it reaches.
type clearWorld struct {
	*attached
	t    *testing.T
	host *httptest.Server
	port int
	own  *x509.CertPool // that the sandbox trusts

	mu      sync.Mutex
	seen    []*http.Request // by the host
	records []bawn.Record
	asked   []policy.Request
	notes   []string
	value   string // of the secret
	number  int
}

// newWorld starts a host, and an instance with rules about it: their host and ports
// are filled in.
func newClearWorld(t *testing.T, h http.HandlerFunc, rules ...bawn.Host) *clearWorld {
	t.Helper()
	w := &clearWorld{t: t, value: "sk_live_51Hq8JxYz", number: 1}
	w.host = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r.Clone(context.Background()))
		w.mu.Unlock()
		h(rw, r)
	}))
	w.host.EnableHTTP2 = true
	w.host.StartTLS()
	t.Cleanup(w.host.Close)
	w.port = w.host.Listener.Addr().(*net.TCPAddr).Port
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.host.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	guard, err := NewGuard(GuardConfig{Allow: []string{"127.0.0.1"}, Resolve: []string{name + "=127.0.0.1", "other.test=127.0.0.1", "wrong.test=127.0.0.1"}, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	for i := range rules {
		if rules[i].Host == "" {
			rules[i].Host = name
		}
		if rules[i].Ports == nil {
			rules[i].Ports = []int{w.port}
		}
	}
	v := &bawn.Version{Tenant: "main", Function: "f", Number: 1}
	v.Perimeter.Egress.Hosts = rules
	b := New(Config{Guard: guard, Authorize: w.authorize})
	w.attached = &attached{b: b, v: v, plan: newPlan(&v.Perimeter.Egress), in: Inside{
		Version: v, Instance: "i",
		Record: func(_ context.Context, r bawn.Record) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.records = append(w.records, r)
			return nil
		},
		Note: func(text string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.notes = append(w.notes, text)
		},
	}}
	files, _, err := w.attachClear(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.own = x509.NewCertPool()
	for _, f := range files {
		w.own.AppendCertsFromPEM(f.Data)
	}
	w.clear.value = func(context.Context, *target, string) ([]byte, int, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return []byte(w.value), w.number, nil
	}
	w.Begin(&bawn.Call{ID: bawn.NewID(), Principal: bawn.Anonymous()}, time.Now().Add(time.Minute))
	t.Cleanup(w.Close)
	return w
}

// authorize allows what a rule of the manifest is about.
func (w *clearWorld) authorize(_ context.Context, req policy.Request) (policy.Decision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, req)
	ok := slices.ContainsFunc(w.v.Perimeter.Egress.Hosts, func(h bawn.Host) bool { return h.Host == req.Object.ID })
	return policy.Decision{Allow: ok && req.Without == "", Reason: "as the test says"}, nil
}

// dial connects as the function would, to a port of the host, or to the proxy if
// that is zero.
func (w *clearWorld) dialInside(host string, port int) net.Conn {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.attached.mu.Lock()
	run := w.run
	w.attached.mu.Unlock()
	run.enter(conn)
	w.running.Go(func() {
		defer run.leave(conn)
		if port == 0 {
			w.serveProxy(run.ctx, run, conn)
		} else {
			w.dispatch(run.ctx, conn, w.aim(run, host, port))
		}
	})
	w.t.Cleanup(func() { c.Close() })
	return c
}

// client is a client in the function, over TLS if the URL says so.
func (w *clearWorld) client(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			host, port, _ := net.SplitHostPort(addr)
			n, _ := parsePort(port)
			return w.dialInside(host, n), nil
		},
		TLSClientConfig: &tls.Config{RootCAs: w.own}, ForceAttemptHTTP2: h2,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// url is a URL of the host as it is outside.
func (w *clearWorld) url(path string) string { return "https://" + name + ":" + itoa(w.port) + path }

// do makes a request and returns the answer with its body.
func (w *clearWorld) do(c *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, url, err)
	}
	return res, string(text)
}

// took returns what the host has seen since the last time.
func (w *clearWorld) took() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// blocked returns the records of a control.
func (w *clearWorld) blocked(control string) []bawn.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []bawn.Record
	for _, r := range w.records {
		if r.Control == control {
			all = append(all, r)
		}
	}
	return all
}

func clearEcho(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL.RequestURI(), body)
}

func TestC4RequestsAreJudgedOneByOne(t *testing.T) {
	w := newClearWorld(t, clearEcho,
		bawn.Host{Methods: []string{"GET", "POST"}, Paths: []string{"/v1/*"}},
		bawn.Host{Methods: []string{"DELETE"}, Paths: []string{"/v1/mine"}})
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		for _, r := range []struct {
			method, path, body string
			status             int
			want               string
		}{
			{"GET", "/v1/a?b=c&d=%2e%2e", "", 200, "GET " + w.host.Listener.Addr().String()},
			{"POST", "/v1/a", "hello", 200, "hello"},
			{"DELETE", "/v1/mine", "", 200, "DELETE"},
			{"DELETE", "/v1/other", "", 403, ""},
			{"PUT", "/v1/a", "hello", 403, ""},
			{"GET", "/v2/a", "", 403, ""},
			{"GET", "/v1/../v2", "", 403, ""},
			{"GET", "/v1/%2e%2e/v2", "", 403, ""},
			{"OPTIONS", "/v1/a", "", 403, ""},
			{"GET", "/v1/b", "", 200, "GET"}, // the connection goes on
		} {
			var body io.Reader
			if r.body != "" {
				body = strings.NewReader(r.body)
			}
			res, text := w.do(c, r.method, w.url(r.path), body)
			if res.StatusCode != r.status || r.status == 200 && !strings.Contains(text, strings.Replace(r.want, "127.0.0.1", name, 1)) {
				t.Errorf("%s %s: %d %q", r.method, r.path, res.StatusCode, text)
			}
			if r.status == 403 && (text != "" || len(res.Header) > 1) {
				t.Errorf("%s %s tells more than it must: %q %v", r.method, r.path, text, res.Header)
			}
			if want := 2 - h2int(h2); res.ProtoMajor != 3-want {
				t.Errorf("HTTP/%d", res.ProtoMajor)
			}
			if seen := w.took(); (len(seen) == 1) != (r.status == 200) {
				t.Errorf("%s %s: the host saw %d requests", r.method, r.path, len(seen))
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.asked[0]; len(w.asked) != 20 || a.Object.Name != name || a.Object.Port != w.port || a.Detail["method"] != "GET" || a.Detail["path"] != "/v1/a" || a.Detail["manifest"] != "" {
		t.Errorf("%d decisions, the first %+v", len(w.asked), a)
	}
	if a := w.asked[4]; a.Detail["method"] != "PUT" || !strings.Contains(a.Detail["manifest"], "methods: [PUT]") {
		t.Errorf("a denial: %+v", a)
	}
}

func h2int(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestC4RequestsThatMislead sends requests by hand that parsers disagree about. What
// comes out, if anything does, must be what was judged.
func TestC4RequestsThatMislead(t *testing.T) {
	w := newClearWorld(t, clearEcho, bawn.Host{Methods: []string{"GET", "POST"}, Paths: []string{"/v1/*"}})
	host := "Host: " + name + ":" + itoa(w.port) + "\r\n"
	smuggled := "GET /admin HTTP/1.1\r\n" + host + "\r\n"
	for what, text := range map[string]string{
		"two lengths":          "POST /v1/a HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + smuggled,
		"length and chunks":    "POST /v1/a HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"chunks and length":    "POST /v1/a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"odd encoding":         "POST /v1/a HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
		"encoding twice":       "POST /v1/a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled,
		"folded encoding":      "POST /v1/a HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"space before a colon": "POST /v1/a HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"negative length":      "POST /v1/a HTTP/1.1\r\n" + host + "Content-Length: -5\r\n\r\n" + smuggled,
		"length with a sign":   "POST /v1/a HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\n" + smuggled,
		"body of a GET":        "GET /v1/a HTTP/1.1\r\n" + host + "Content-Length: " + itoa(len(smuggled)) + "\r\n\r\n" + smuggled,
		"two hosts":            "GET /v1/a HTTP/1.1\r\n" + host + "Host: other.test\r\n\r\n",
		"another host":         "GET /v1/a HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"another port":         "GET /v1/a HTTP/1.1\r\nHost: " + name + ":1\r\n\r\n",
		"no host":              "GET /v1/a HTTP/1.1\r\n\r\n",
		"host of a user":       "GET /v1/a HTTP/1.1\r\nHost: u@" + name + "\r\n\r\n",
		"whole URL":            "GET https://" + name + "/v1/a HTTP/1.1\r\n" + host + "\r\n",
		"URL of another":       "GET https://other.test/v1/a HTTP/1.1\r\n" + host + "\r\n",
		"tunnel":               "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n",
		"tunnel here":          "CONNECT " + name + ":" + itoa(w.port) + " HTTP/1.1\r\n" + host + "\r\n",
		"trace":                "TRACE /v1/a HTTP/1.1\r\n" + host + "\r\n",
		"all of the server":    "OPTIONS * HTTP/1.1\r\n" + host + "\r\n",
		"odd scheme":           "GET ftp://" + name + "/v1/a HTTP/1.1\r\n" + host + "\r\n",
		"line in the path":     "GET /v1/a\rGET /admin HTTP/1.1\r\n" + host + "\r\n",
		"HTTP/2 at once":       "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"another method":       "POST /v1/a HTTP/1.1\r\n" + host + "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
		"another path":         "GET /v1/a HTTP/1.1\r\n" + host + "X-Original-URL: /admin\r\n\r\n",
		"another rewritten":    "GET /v1/a HTTP/1.1\r\n" + host + "X-Rewrite-URL: /admin\r\n\r\n",
		"HTTP/0.9":             "GET /v1/a\r\n\r\n",
		"TLS":                  "\x16\x03\x01\x00\x05hello",
	} {
		c := w.dialInside(name, w.port)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, text)
		io.WriteString(c, "GET /v1/end HTTP/1.1\r\n"+host+"Connection: close\r\n\r\n")
		answer, _ := io.ReadAll(c)
		for _, r := range w.took() {
			if !strings.HasPrefix(r.URL.Path, "/v1/") || r.Method == "DELETE" || r.Host != name+":"+itoa(w.port) {
				t.Errorf("%s: the host saw %s %s of %s", what, r.Method, r.URL, r.Host)
			}
			switch what {
			default:
				if r.URL.Path != "/v1/end" {
					t.Errorf("%s: the host saw %s %s", what, r.Method, r.URL)
				}
			case "length and chunks", "chunks and length", "folded encoding", "body of a GET": // which have one meaning once they are read
			}
		}
		if bytes.Contains(answer, []byte("/admin")) && what != "body of a GET" {
			t.Errorf("%s: %s", what, answer)
		}
	}
	if n := len(w.blocked("C4")); n < 6 {
		t.Errorf("%d records of C4", n)
	}
	if n := len(w.blocked("C6")); n < 2 {
		t.Errorf("%d records of C6", n)
	}
}

func TestC6ClearHoldsTheNameOfTLS(t *testing.T) {
	w := newClearWorld(t, clearEcho, bawn.Host{Methods: []string{"GET"}}, bawn.Host{Host: "wrong.test", Methods: []string{"GET"}})
	for _, sni := range []string{"other.test", "", "www." + name} {
		c := tls.Client(w.dialInside(name, w.port), &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		if err := c.Handshake(); err == nil {
			t.Errorf("%q: TLS is ended", sni)
		}
	}
	if r := w.blocked("C6"); len(r) != 3 || r[0].Detail["sni"] != "other.test" || r[0].Detail["host"] != name {
		t.Errorf("%+v", r)
	}
	// The host is there, and has no certificate for that name.
	res, _ := w.do(w.client(false), "GET", "https://wrong.test:"+itoa(w.port)+"/", nil)
	if r := w.blocked("C6"); res.StatusCode != 502 || len(r) != 4 || r[3].Detail["host"] != "wrong.test" {
		t.Errorf("an impostor: %d, %+v", res.StatusCode, r)
	}
	if seen := w.took(); len(seen) > 0 {
		t.Errorf("the host saw %d requests", len(seen))
	}
}

// TestC6PlainInsideIsTLSOutside has the function speak plain HTTP to the port of the
// rule and to port 80.
func TestC6PlainInsideIsTLSOutside(t *testing.T) {
	w := newClearWorld(t, clearEcho, bawn.Host{Methods: []string{"GET"}})
	for _, url := range []string{"http://" + name + ":" + itoa(w.port) + "/a", "http://" + name + "/a"} {
		res, text := w.do(w.client(false), "GET", url, nil)
		if res.StatusCode != 200 || text != "GET "+name+":"+itoa(w.port)+" /a " {
			t.Errorf("%s: %d %q", url, res.StatusCode, text)
		}
		if seen := w.took(); len(seen) != 1 || seen[0].TLS == nil {
			t.Errorf("%s: %+v", url, seen)
		}
	}
}

func TestC4RedirectsGoBackToTheFunction(t *testing.T) {
	w := newClearWorld(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest", 302)
	}, bawn.Host{Paths: []string{"/*"}})
	res, _ := w.do(w.client(true), "GET", w.url("/"), nil)
	if res.StatusCode != 302 || res.Header.Get("Location") != "http://169.254.169.254/latest" || len(w.took()) != 1 {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

func TestHopByHopHeadersEndHere(t *testing.T) {
	w := newClearWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["Connection"] = []string{"X-Down"}
		rw.Header().Set("X-Down", "1")
		rw.Header().Set("Keep-Alive", "timeout=1")
		rw.Header().Set("Proxy-Authenticate", "Basic")
		rw.Header().Set("X-End", "1")
	}, bawn.Host{Methods: []string{"POST"}})
	res, _ := w.do(w.client(false), "POST", w.url("/"), strings.NewReader("a"), "Connection", "x-up, keep-alive", "X-Up", "1", "Proxy-Authorization", "Basic eA==", "Keep-Alive", "1", "X-End", "1", "X-Forwarded-For", "192.0.2.1", "Upgrade", "h2c", "Http2-Settings", "AA", "Expect", "100-continue")
	seen := w.took()[0]
	for _, h := range []string{"Connection", "X-Up", "Proxy-Authorization", "Keep-Alive", "Upgrade", "Http2-Settings", "Expect"} {
		if v := seen.Header[h]; len(v) > 0 {
			t.Errorf("%s went out: %v", h, v)
		}
	}
	for _, h := range []string{"X-Down", "Keep-Alive", "Proxy-Authenticate"} {
		if v := res.Header[h]; len(v) > 0 {
			t.Errorf("%s came in: %v", h, v)
		}
	}
	if seen.Header.Get("X-End") != "1" || res.Header.Get("X-End") != "1" || seen.Header.Get("X-Forwarded-For") != "192.0.2.1" {
		t.Errorf("other headers: %v, %v", seen.Header, res.Header)
	}
}

// TestStreamsBothWays has the host answer each part of a request before the next is
// sent.
func TestStreamsBothWays(t *testing.T) {
	w := newClearWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		rw.Header().Set("Trailer", "X-Sum")
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		lines, n := bufio.NewScanner(r.Body), 0
		for lines.Scan() {
			n++
			fmt.Fprintln(rw, "got", lines.Text())
			rw.(http.Flusher).Flush()
		}
		rw.Header().Set("X-Sum", itoa(n))
		rw.Header().Set(http.TrailerPrefix+"X-Late", "1")
	}, bawn.Host{Methods: []string{"POST"}})
	for _, h2 := range []bool{false, true} {
		pr, pw := io.Pipe()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", w.url("/"), pr)
		res, err := w.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(res.Body)
		for i := range 5 {
			fmt.Fprintln(pw, i)
			if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintln("got", i) {
				t.Fatalf("%q, %v", line, err)
			}
		}
		pw.Close()
		io.Copy(io.Discard, lines)
		res.Body.Close()
		if res.Trailer.Get("X-Sum") != "5" || h2 && res.Trailer.Get("X-Late") != "1" {
			t.Errorf("trailers: %v", res.Trailer)
		}
	}
}

// TestWebSocketIsPassedOn speaks WebSocket by hand on both sides.
func TestWebSocketIsPassedOn(t *testing.T) {
	w := newClearWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			rw.WriteHeader(400)
			return
		}
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: x\r\n\r\nfirst\n")
		buf.Flush()
		for {
			line, err := buf.ReadString('\n')
			if err != nil {
				return
			}
			buf.WriteString("echo " + line)
			buf.Flush()
		}
	}, bawn.Host{Paths: []string{"/ws"}})
	for _, secured := range []bool{false, true} {
		c := w.dialInside(name, w.port)
		if secured {
			c = tls.Client(c, &tls.Config{ServerName: name, RootCAs: w.own, NextProtos: []string{"http/1.1"}})
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nearly\n", name, w.port)
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != "x" {
			t.Fatalf("%v %v", res, err)
		}
		fmt.Fprintf(c, "late\n")
		for _, want := range []string{"first\n", "echo early\n", "echo late\n"} {
			if line, err := r.ReadString('\n'); line != want {
				t.Fatalf("%q, %v", line, err)
			}
		}
		c.Close()
	}
}

// TestNothingIsReadAfterTheInvocation holds that requests end with the invocation,
// and that the next one works.
func TestNothingIsReadAfterTheInvocation(t *testing.T) {
	release := make(chan struct{})
	w := newClearWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			select {
			case <-r.Context().Done():
			case <-release:
			}
		}
	}, bawn.Host{Methods: []string{"GET"}})
	defer close(release)
	c := w.client(false)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Get(w.url("/wait"))
		failed <- err
	}()
	for len(w.took()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if tr := w.End(); tr.Connections != 1 || tr.Sent == 0 {
		t.Errorf("%+v", tr)
	}
	if err := <-failed; err == nil {
		t.Error("a request outlived its invocation")
	}
	w.Begin(&bawn.Call{ID: bawn.NewID(), Principal: bawn.Anonymous()}, time.Now().Add(time.Minute))
	if res, _ := w.do(c, "GET", w.url("/"), nil); res.StatusCode != 200 {
		t.Errorf("the next invocation: %d", res.StatusCode)
	}
}

func TestC4ProxyJudgesAsConnectionsAre(t *testing.T) {
	w := newClearWorld(t, clearEcho, bawn.Host{Methods: []string{"GET"}, Paths: []string{"/v1/*"}}, bawn.Host{Host: "other.test"})
	via := &url.URL{Scheme: "http", Host: "127.0.0.1:9003"}
	tr := &http.Transport{
		Proxy:           http.ProxyURL(via),
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return w.dialInside("", 0), nil },
		TLSClientConfig: &tls.Config{RootCAs: w.own},
	}
	t.Cleanup(tr.CloseIdleConnections)
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	for path, status := range map[string]int{"/v1/a": 200, "/v2": 403} {
		for _, url := range []string{w.url(path), "http://" + name + ":" + itoa(w.port) + path, "http://" + name + path} {
			if res, text := w.do(c, "GET", url, nil); res.StatusCode != status {
				t.Errorf("%s: %d %q", url, res.StatusCode, text)
			}
		}
	}
	for _, url := range []string{"https://nobody.test/", "https://" + name + ":1/", "https://127.0.0.1:" + itoa(w.port), "https://2130706433:" + itoa(w.port), "https://169.254.169.254"} {
		if _, err := c.Get(url); err == nil {
			t.Errorf("%s is reached", url)
		}
	}
	if n := len(w.took()); n != 3 {
		t.Errorf("the host saw %d requests", n)
	}
	for _, text := range []string{
		"GET http://u:p@" + name + "/v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"GET http://other.test:" + itoa(w.port) + "/v1/a HTTP/1.1\r\nHost: other.test:" + itoa(w.port) + "\r\n\r\n", // a rule that wants TLS
		"GET https://" + name + "/v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"GET ftp://" + name + "/v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"GET gopher://" + name + "/v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"GET /v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"CONNECT u@" + name + ":443 HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"CONNECT " + name + " HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
		"CONNECT /v1/a HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
	} {
		conn := w.dialInside("", 0)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, text)
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && res.StatusCode < 400 {
			t.Errorf("%q: %s", text, res.Status)
		}
		conn.Close()
	}
	if n := len(w.took()); n != 0 {
		t.Errorf("the host saw %d requests", n)
	}
}

// reflect answers with every header of the request, in the body and in headers, in
// the way that the query says.
func reflect(w http.ResponseWriter, r *http.Request) {
	text := r.Header.Get("Authorization")
	w.Header().Set("X-Echo", "it was "+text)
	switch r.URL.RawQuery {
	case "split":
		for i := range len(text) {
			io.WriteString(w, text[i:i+1])
			w.(http.Flusher).Flush()
		}
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, "<"+text+">")
		z.Close()
	case "deflate":
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, text)
	case "trailer":
		w.Header().Set("Trailer", "X-End")
		io.WriteString(w, "well")
		w.Header().Set("X-End", text)
	case "hint":
		w.Header().Set("Link", text)
		w.WriteHeader(103)
		w.Header().Del("Link")
	default:
		fmt.Fprintf(w, "<%s> %q", text, r.Header)
	}
}

func TestE2InjectedOutsideOnly(t *testing.T) {
	w := newClearWorld(t, reflect, bawn.Host{Inject: &bawn.Inject{Secret: "key", Header: "Authorization", Format: "Bearer {}"}})
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		for _, how := range []string{"", "split", "gzip", "trailer", "hint", "deflate"} {
			res, text := w.do(c, "GET", w.url("/?"+how), nil, "Authorization", "mine", "authorization", "mine too", "X-Api_Key", "x", "Range", "bytes=0-3", "Accept-Encoding", "br, gzip")
			seen := w.took()[0]
			if got := seen.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+w.value {
				t.Errorf("%s: the host got %v", how, got)
			}
			if seen.Header.Get("Accept-Encoding") != "identity" || seen.Header.Get("Range") != "" {
				t.Errorf("%s: %v", how, seen.Header)
			}
			all := text + fmt.Sprint(res.Header, res.Trailer)
			if strings.Contains(all, w.value) || strings.Contains(all, w.value[:10]) {
				t.Errorf("%s over HTTP/%d: the credential came in: %s", how, res.ProtoMajor, all)
			}
			switch {
			case how == "deflate" && res.StatusCode != 502, how != "deflate" && res.StatusCode != 200,
				how == "gzip" && !strings.HasPrefix(text, "<Bearer "), how != "deflate" && !strings.HasPrefix(res.Header.Get("X-Echo"), "it was Bearer "):
				t.Errorf("%s: %d %v %q", how, res.StatusCode, res.Header, text)
			}
		}
		// Without a deploy the next request has the new value.
		w.mu.Lock()
		w.value, w.number = "sk_live_another_"+itoa(len(w.asked)), w.number+1
		w.mu.Unlock()
		res, text := w.do(c, "GET", w.url("/"), nil)
		if seen := w.took()[0]; seen.Header.Get("Authorization") != "Bearer "+w.value || strings.Contains(text+fmt.Sprint(res.Header), w.value) {
			t.Errorf("after a rotation: %v %s", seen.Header, text)
		}
	}
	for _, n := range w.notes {
		if strings.Contains(n, "sk_live") {
			t.Errorf("a note has the credential: %s", n)
		}
	}
	for _, r := range w.asked {
		if strings.Contains(fmt.Sprint(r), "sk_live") {
			t.Errorf("a decision has the credential: %v", r)
		}
	}
}

func TestE2NoHeaderCanCarryIt(t *testing.T) {
	w := newClearWorld(t, reflect, bawn.Host{Inject: &bawn.Inject{Secret: "key", Header: "X-Key", Format: "{}"}})
	for value, status := range map[string]int{"a\r\nX-Other: b": 403, "": 403, "\n": 403, "abcdefgh\r\n": 200} {
		w.value, w.number = value, w.number+1
		if res, _ := w.do(w.client(false), "GET", w.url("/"), nil); res.StatusCode != status {
			t.Errorf("%q: %d", value, res.StatusCode)
		}
		if seen := w.took(); (len(seen) == 1) != (status == 200) || len(seen) == 1 && seen[0].Header.Get("X-Key") != "abcdefgh" {
			t.Errorf("%q: %+v", value, seen)
		}
	}
}
