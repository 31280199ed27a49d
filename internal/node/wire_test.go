package node

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serveWire serves h as the public listener does.
func serveWire(t *testing.T, cert certificates, w wire, h http.Handler) (addr string, pool *x509.CertPool) {
	t.Helper()
	a, err := openAuthority(t.TempDir(), hostNames(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	builtin := &serverCert{ca: a, hosts: hostNames(), now: time.Now}
	switch o := cert.(type) {
	case nil:
		cert = builtin
	case *ownCerts:
		o.builtin = builtin
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := servePaced("public", ln, cert, asksNobody, h, w, defaultPace(), slog.New(slog.DiscardHandler))
	t.Cleanup(func() { l.srv.Close(); l.shutdown(t.Context()) })
	pool = x509.NewCertPool()
	pool.AddCert(a.cert)
	return ln.Addr().String(), pool
}

// TestD9AmbiguousRequests sends what two programs on the way could each read in their
// own way, as bytes over a socket. None of it may reach a handler, and nothing that
// follows it on the connection.
func TestD9AmbiguousRequests(t *testing.T) {
	var reached atomic.Int32
	addr, pool := serveWire(t, nil, wire{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		b, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s %s %q", r.Method, r.RequestURI, b)
	}))
	const host, after = "Host: localhost\r\n", "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for _, test := range []struct {
		name, send string
		reach      int32 // requests that reach the handler
		want       string
	}{
		{"a plain request", "GET /a HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 1, "GET /a"},
		{"two of them at once", "GET /a HTTP/1.1\r\n" + host + "\r\nGET /b HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 2, "GET /b"},
		{"a body", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 2, "GET /b"},
		{"a chunked body", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\nGET /b HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 2, "GET /b"},
		{"HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n", 1, "GET /a"},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 0, "200"}, // net/http answers it

		{"CL and TE", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE and CL", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"two equal CL", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + after, 0, "400"},
		{"two CL", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc" + after, 0, "400"},
		{"CL as a list", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\nabc" + after, 0, "400"},
		{"CL with a sign", "POST /a HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc" + after, 0, "400"},
		{"CL in hex", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 0x3\r\n\r\nabc" + after, 0, "400"},
		{"CL beyond 64 bits", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551619\r\n\r\nabc" + after, 0, "400"},
		{"CL with _", "POST /a HTTP/1.1\r\n" + host + "Content_Length: 3\r\n\r\nabc" + after, 0, "400"},
		{"two TE", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE as a list", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE identity", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n" + after, 0, "400"},
		{"TE with a tab in it", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chun\tked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE with VT", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE with a space before the colon", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"TE with _", "POST /a HTTP/1.1\r\n" + host + "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"two hosts", "GET /a HTTP/1.1\r\n" + host + "Host: other\r\n\r\n" + after, 0, "400"},
		{"two equal hosts", "GET /a HTTP/1.1\r\n" + host + host + "\r\n" + after, 0, "400"},
		{"no host", "GET /a HTTP/1.1\r\n\r\n" + after, 0, "400"},
		{"a folded line", "GET /a HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n\r\n" + after, 0, "400"},
		{"a folded host", "GET /a HTTP/1.1\r\nHost: local\r\n\thost\r\n\r\n" + after, 0, "400"},
		{"a space before the first header", "GET /a HTTP/1.1\r\n " + host + "\r\n" + after, 0, "400"},
		{"LF alone", "GET /a HTTP/1.1\nHost: localhost\n\n" + after, 0, "400"},
		{"one LF alone", "GET /a HTTP/1.1\r\n" + host + "X-A: b\nX-B: c\r\n\r\n" + after, 0, "400"},
		{"an empty line of LF alone", "GET /a HTTP/1.1\r\n" + host + "\n" + after, 0, "400"},
		{"CR in a value", "GET /a HTTP/1.1\r\n" + host + "X-A: b\rX-B: c\r\n\r\n" + after, 0, "400"},
		{"NUL in a value", "GET /a HTTP/1.1\r\n" + host + "X-A: b\x00\r\n\r\n" + after, 0, "400"},
		{"a header without a name", "GET /a HTTP/1.1\r\n" + host + ": b\r\n\r\n" + after, 0, "400"},
		{"a header without a colon", "GET /a HTTP/1.1\r\n" + host + "X-A\r\n\r\n" + after, 0, "400"},
		{"an absolute target", "GET https://localhost/a HTTP/1.1\r\n" + host + "\r\n" + after, 0, "400"},
		{"an absolute target of another host", "GET https://other/a HTTP/1.1\r\n" + host + "\r\n" + after, 0, "400"},
		{"an authority", "CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n" + after, 0, "400"},
		{"* with GET", "GET * HTTP/1.1\r\n" + host + "\r\n" + after, 0, "400"},
		{"no target", "GET  HTTP/1.1\r\n" + host + "\r\n" + after, 0, "400"},
		{"a space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n" + after, 0, "400"},
		{"HTTP/0.9", "GET /a\r\n\r\n" + after, 0, "400"},
		{"HTTP/1.2", "GET /a HTTP/1.2\r\n" + host + "\r\n" + after, 0, "400"},
		{"HTTP/2.0 in text", "GET /a HTTP/2.0\r\n" + host + "\r\n" + after, 0, "400"},
		{"HTTP/2 without its handshake", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + after, 0, "400"},
		{"HTTP/1.0 that goes on", "GET /a HTTP/1.0\r\n" + host + "Connection: keep-alive\r\n\r\n" + after, 0, "400"},
		{"HTTP/1.0 with chunks", "POST /a HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + after, 0, "400"},
		{"names that differ by _", "GET /a HTTP/1.1\r\n" + host + "X-User: a\r\nX_User: b\r\n\r\n" + after, 0, "400"},
		{"Host with _", "GET /a HTTP/1.1\r\n" + host + "host_: a\r\nConnection: close\r\n\r\n", 1, "GET /a"},
		{"behind a good one", "GET /a HTTP/1.1\r\n" + host + "\r\nPOST /b HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + after, 1, "400"},
		{"a chunk's size with a sign", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n" + after, 1, "400"},
		{"a chunk with LF alone", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n" + after, 1, "400"},
		{"a chunk that is longer than it says", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n" + after, 1, "400"},
		{"a chunk's extension with LF in it", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n" + after, 1, "400"},
		{"a chunk's size without end", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 300) + "3\r\nabc\r\n0\r\n\r\n" + after, 1, "400"},
		{"a head without end", "GET /a HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 2*maxHeaderBytes) + "\r\n\r\n" + after, 0, "431"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, step := range []int{1 << 20, 7} { // at once, and in pieces
				if step == 7 && len(test.send) > 4<<10 {
					continue
				}
				c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"http/1.1"}})
				if err != nil {
					t.Fatal(err)
				}
				reached.Store(0)
				c.SetDeadline(time.Now().Add(10 * time.Second))
				go func() {
					for b := []byte(test.send); len(b) > 0; {
						n, err := c.Write(b[:min(step, len(b))])
						if err != nil {
							return
						}
						b = b[n:]
					}
				}()
				got, _ := io.ReadAll(c) // the server may reset what it does not read
				c.Close()
				if reached.Load() != test.reach || !bytes.Contains(got, []byte(test.want)) || bytes.Contains(got, []byte("smuggled")) {
					t.Errorf("in steps of %d: %d reached, want %d; got %.300q, want %q in it", step, reached.Load(), test.reach, got, test.want)
				}
			}
		})
	}
}

// What is good comes through unchanged, however it is cut, and what is not never
// makes the follower and net/http disagree.
func FuzzFollow(f *testing.F) {
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint8(5))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		c := &plain{}
		var out []byte
		for rest := in; len(rest) > 0 && !c.bad; {
			n := min(int(step)+1, len(rest))
			c.buf = append(c.buf, rest[:n]...)
			rest = rest[n:]
			c.look()
			out = append(out, c.buf[:c.ready]...)
			c.buf, c.ready = c.buf[c.ready:], 0
		}
		good := bytes.TrimSuffix(out, []byte(malformed))
		if !bytes.HasPrefix(in, good) {
			t.Fatalf("what came out is not what went in: %q of %q", out, in)
		}
		// As many requests as are found here, net/http finds, at the same places.
		r := bufio.NewReader(bytes.NewReader(good))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				break
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				break
			}
			if len(req.TransferEncoding) > 0 && req.Header.Get("Content-Length") != "" {
				t.Fatalf("two lengths: %q", good)
			}
		}
	})
}

func TestConnectionsOfOneAddress(t *testing.T) {
	addr, pool := serveWire(t, nil, wire{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range maxConnections { // as many as there are for all
		c, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		held = append(held, c)
	}
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	client := &http.Client{Transport: &http.Transport{DialContext: d.DialContext, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	resp, err := client.Get("https://" + addr + "/")
	if err != nil {
		t.Fatalf("another address is not answered: %v", err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()

	l := few(nil, 100)
	l.each, l.spread = 2, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.1")
	if !l.begin(a) || !l.begin(a) || l.begin(a) || !l.begin(b) || !l.begin(b) || !l.begin(b) {
		t.Error("an address is held to something else")
	}
	l.end(a)
	if !l.begin(a) {
		t.Error("what ended is counted still")
	}
	for range 3 {
		l.end(a)
		l.end(b)
	}
	if len(l.of) != 0 {
		t.Errorf("addresses without a connection are kept: %v", l.of)
	}
}

// writeCert writes a certificate for names and its key, and returns its number.
func writeCert(t *testing.T, cert, key string, until time.Time, names ...string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial(), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tmpl.SerialNumber.String()
}

// The operator's certificate goes to whom it fits, a new file is taken over while the
// node runs, and one that is not good leaves the last; control E7.
func TestE7OwnCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	first := writeCert(t, cert, key, time.Now().Add(time.Hour), "shop.example.com")
	o, err := openCerts([]string{cert}, []string{key}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serveWire(t, o, wire{minTLS: tls.VersionTLS12}, http.NotFoundHandler())
	shown := func(name string, version uint16) *big.Int {
		t.Helper()
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true, MaxVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber
	}
	if got := shown("shop.example.com", tls.VersionTLS13).String(); got != first {
		t.Errorf("shown %s, want %s", got, first)
	}
	if got := shown("shop.example.com", tls.VersionTLS12).String(); got != first {
		t.Errorf("by TLS 1.2: shown %s, want %s", got, first)
	}
	if got := shown("other.example.com", tls.VersionTLS13).String(); got == first {
		t.Error("shown to whom it does not fit")
	}
	if f := o.facts(); len(f) != 1 || f[0].OK || !strings.Contains(f[0].Fix, "renew") {
		t.Errorf("one that ends soon: %+v", f)
	}
	second := writeCert(t, cert, key, time.Now().Add(90*24*time.Hour), "shop.example.com")
	o.reload(false)
	if got := shown("shop.example.com", tls.VersionTLS13).String(); got != second || !o.facts()[0].OK {
		t.Errorf("after a change: shown %s, want %s: %+v", got, second, o.facts())
	}
	for name, spoil := range map[string]func(){
		"not PEM": func() { check(t, os.WriteFile(cert, []byte("nonsense"), 0o600)) },
		"another key": func() {
			writeCert(t, cert, filepath.Join(dir, "other.pem"), time.Now().Add(time.Hour), "shop.example.com")
		},
		"ended": func() { writeCert(t, cert, key, time.Now().Add(-time.Minute), "shop.example.com") },
		"gone":  func() { check(t, os.Remove(cert)) },
	} {
		spoil()
		o.reload(true)
		if got := shown("shop.example.com", tls.VersionTLS13).String(); got != second || o.facts()[0].OK || !strings.Contains(o.facts()[0].Detail, "not taken") {
			t.Errorf("%s: shown %s, want %s: %+v", name, got, second, o.facts())
		}
	}
	if _, err := openCerts([]string{cert}, []string{key}, time.Now, nil); err == nil {
		t.Error("a node starts without its certificate")
	}
	if _, err := openCerts([]string{cert}, nil, time.Now, nil); err == nil {
		t.Error("a certificate without a key")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOldTLSNeedsAWord(t *testing.T) {
	addr, pool := serveWire(t, nil, wire{}, http.NotFoundHandler())
	if c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost", MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("TLS 1.2 without --tls-min")
	}
	addr, pool = serveWire(t, nil, wire{minTLS: tls.VersionTLS12}, http.NotFoundHandler())
	if c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		c.Close()
		t.Error("TLS 1.1")
	}
	for _, s := range []string{"1.1", "1", "tls1.2"} {
		if _, err := tlsVersion(s); err == nil {
			t.Errorf("--tls-min %s", s)
		}
	}
}

func TestPlainHTTPOnlySendsOn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := serveRedirects(ln, "8443", func(h string) bool { return h == "shop.example.com" || h == "::1" }, nil, nil, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { l.shutdown(t.Context()) })
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for _, test := range []struct {
		method, host, path string
		status             int
		location           string
	}{
		{"GET", "shop.example.com", "/a?b=c", 301, "https://shop.example.com:8443/a?b=c"},
		{"HEAD", "SHOP.example.com:80", "/", 301, "https://shop.example.com:8443/"},
		{"GET", "[::1]:80", "/", 301, "https://[::1]:8443/"},
		{"POST", "shop.example.com", "/a", 403, ""},
		{"GET", "evil.example.com", "/a", 404, ""},
		{"GET", "shop.example.com", "//evil.example.com/", 400, ""},
	} {
		r, err := http.NewRequest(test.method, "http://"+ln.Addr().String(), nil)
		check(t, err)
		r.Host, r.URL.Opaque = test.host, test.path
		if strings.HasPrefix(test.path, "//") {
			r.URL.Opaque, r.URL.Path = "", test.path
		}
		resp, err := client.Do(r)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != test.status || resp.Header.Get("Location") != test.location {
			t.Errorf("%s %s%s: %d %s, want %d %s", test.method, test.host, test.path, resp.StatusCode, resp.Header.Get("Location"), test.status, test.location)
		}
	}
}

// A caller who sends on while he waits has not left: what follows a request, and is
// none, does not end what runs for the first one.
func TestD9WhatFollowsDoesNotEndTheFirst(t *testing.T) {
	addr, pool := serveWire(t, nil, wire{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusTeapot)
		case <-time.After(100 * time.Millisecond):
		}
	}))
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab\r\n\r\n")
	r := bufio.NewReader(c)
	for _, want := range []int{http.StatusOK, http.StatusBadRequest} {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if io.Copy(io.Discard, res.Body); res.StatusCode != want {
			t.Errorf("%s, want %d", res.Status, want)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
}
