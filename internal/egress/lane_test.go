package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"bawn.dev/bawn"
)

// secure is a TLS connection of the function to the host, which speaks HTTP/1.1.
func (w *clearWorld) secure() (*tls.Conn, *bufio.Reader) {
	w.t.Helper()
	c := tls.Client(w.dialInside(name, w.port), &tls.Config{RootCAs: w.own, ServerName: name, NextProtos: []string{"http/1.1"}})
	if err := c.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// says sends a request in parts and returns the answer's status and body.
func (w *clearWorld) says(c io.Writer, r *bufio.Reader, method string, parts ...string) (*http.Response, string) {
	w.t.Helper()
	for _, p := range parts {
		if _, err := io.WriteString(c, strings.ReplaceAll(p, "HOST", fmt.Sprintf("%s:%d", name, w.port))); err != nil {
			w.t.Fatal(err)
		}
	}
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, string(body)
}

func TestLaneKeepsAndHandsOver(t *testing.T) {
	var mu sync.Mutex
	from := map[string]int{} // requests of a connection to the host
	w := newClearWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.RemoteAddr]++
		mu.Unlock()
		if r.URL.Path == "/parts" {
			rw.Header().Set("Trailer", "X-Sum")
			io.WriteString(rw, "one ")
			rw.(http.Flusher).Flush()
			io.WriteString(rw, "two")
			rw.Header().Set("X-Sum", "7")
			return
		}
		clearEcho(rw, r)
	}, bawn.Host{Methods: []string{"GET", "HEAD", "POST"}})
	c, r := w.secure()
	const get = "GET /a HTTP/1.1\r\nHost: HOST\r\n\r\n"
	for range 3 {
		if res, body := w.says(c, r, "GET", get); res.StatusCode != 200 || !strings.HasPrefix(body, "GET") {
			t.Fatal(res.Status, body)
		}
	}
	if _, body := w.says(c, r, "POST", "POST /b HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello"); !strings.HasSuffix(body, "hello") {
		t.Error(body)
	}
	if res, body := w.says(c, r, "HEAD", "HEAD /a HTTP/1.1\r\nHost: HOST\r\n\r\n"); res.StatusCode != 200 || body != "" {
		t.Error(res.Status, body)
	}
	if res, body := w.says(c, r, "GET", "GET /parts HTTP/1.1\r\nHost: HOST\r\n\r\n"); body != "one two" || res.Trailer.Get("X-Sum") != "7" {
		t.Error(body, res.Trailer)
	}
	if res, _ := w.says(c, r, "DELETE", "DELETE /a HTTP/1.1\r\nHost: HOST\r\n\r\n"); res.StatusCode != http.StatusForbidden {
		t.Error(res.Status)
	}
	if len(from) != 1 {
		t.Errorf("%d connections to the host", len(from))
	}
	// The host ends what it keeps: nobody notices.
	w.host.CloseClientConnections()
	if res, body := w.says(c, r, "POST", "POST /b HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nagain"); res.StatusCode != 200 || !strings.HasSuffix(body, "again") {
		t.Error(res.Status, body)
	}
	// A body that is not all there is net/http's, and the rest of the connection.
	if _, body := w.says(c, r, "POST", "POST /b HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"); !strings.HasSuffix(body, "abc") {
		t.Error(body)
	}
	if res, _ := w.says(c, r, "GET", get); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	if res, _ := w.says(c, r, "DELETE", "DELETE /a HTTP/1.1\r\nHost: HOST\r\n\r\n"); res.StatusCode != http.StatusForbidden {
		t.Error(res.Status)
	}
}

// TestLaneLetsGo: what the function does not wait for ends outside.
func TestLaneLetsGo(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	w := newClearWorld(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(ended)
	}, bawn.Host{Methods: []string{"GET"}})
	c, _ := w.secure()
	fmt.Fprintf(c, "GET /slow HTTP/1.1\r\nHost: %s:%d\r\n\r\n", name, w.port)
	<-begun
	c.Close()
	<-ended
}

// FuzzLaneHead holds that nothing a lane takes could be read in another way: what
// is parsed and written anew has the same lines.
func FuzzLaneHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nA: \x00\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
		"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i := bytes.Index(b, []byte("\r\n\r\n"))
		if i < 0 || !tidy(b[:i+4]) {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		lines := bytes.Count(b[:i+4], []byte("\r\n")) - 2
		n := 0
		for name, values := range r.Header {
			if strings.ContainsFunc(name, notToken) {
				t.Errorf("a header %q", name)
			}
			n += len(values)
		}
		if n > lines {
			t.Errorf("%d headers in %d lines", n, lines)
		}
	})
}
