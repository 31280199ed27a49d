package node

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// asker is a client of HTTP/2 that sends what it is told, good or not.
type asker struct {
	t    *testing.T
	conn *tls.Conn
	f    *http2.Framer
	next uint32
}

func newAsker(t *testing.T, addr, sni string) *asker {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	check(t, err)
	t.Cleanup(func() { c.Close() })
	check(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, http2.ClientPreface)
	check(t, err)
	a := &asker{t: t, conn: c, f: http2.NewFramer(c, c), next: 1}
	a.f.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	check(t, a.f.WriteSettings())
	return a
}

// ask sends headers as they are, and returns the status, or how the stream or the
// connection was ended.
func (a *asker) ask(headers ...string) string {
	a.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(headers); i += 2 {
		check(a.t, enc.WriteField(hpack.HeaderField{Name: headers[i], Value: headers[i+1]}))
	}
	id := a.next
	a.next += 2
	check(a.t, a.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
	for {
		f, err := a.f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset"
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return "closed"
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				check(a.t, a.f.WriteSettingsAck())
			}
		}
	}
}

// TestD9PseudoHeaders sends heads in HTTP/2 frames that two programs could read in
// their own way. None may reach a handler.
func TestD9PseudoHeaders(t *testing.T) {
	var reached atomic.Int32
	addr, _ := serveWire(t, nil, wire{}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	const long = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	get := []string{":method", "GET", ":scheme", "https", ":path", "/a", ":authority", "localhost"}
	with := func(more ...string) []string { return append(append([]string{}, get...), more...) }
	for _, test := range []struct {
		name    string
		headers []string
		reach   int32
		want    string
	}{
		{"a plain request", get, 1, "200"},
		{"host as authority", with("host", "localhost"), 1, "200"},
		{"host alone", []string{":method", "GET", ":scheme", "https", ":path", "/a", "host", "localhost"}, 1, "200"},
		{"trailers", with("te", "trailers"), 1, "200"},

		{"another host than authority", with("host", "other"), 0, "400"},
		{"two hosts", with("host", "localhost", "host", "other"), 0, "400"},
		{"two authorities", with(":authority", "other"), 0, "reset"},
		{"two paths", with(":path", "/b"), 0, "reset"},
		{"two methods", with(":method", "POST"), 0, "reset"},
		{"two schemes", with(":scheme", "http"), 0, "reset"},
		{"a status", with(":status", "200"), 0, "reset"},
		{"one that nobody knows", with(":x", "y"), 0, "reset"},
		{"behind a header", []string{":method", "GET", ":scheme", "https", "x-a", "b", ":path", "/a", ":authority", "localhost"}, 0, "reset"},
		{"no path", []string{":method", "GET", ":scheme", "https", ":authority", "localhost"}, 0, "reset"},
		{"an empty path", []string{":method", "GET", ":scheme", "https", ":path", "", ":authority", "localhost"}, 0, "reset"},
		{"no method", []string{":scheme", "https", ":path", "/a", ":authority", "localhost"}, 0, "reset"},
		{"no scheme", []string{":method", "GET", ":path", "/a", ":authority", "localhost"}, 0, "reset"},
		{"another scheme", []string{":method", "GET", ":scheme", "ftp", ":path", "/a", ":authority", "localhost"}, 0, "reset"},
		{"a path that is a URL", []string{":method", "GET", ":scheme", "https", ":path", "https://other/a", ":authority", "localhost"}, 0, "400"},
		{"a path without /", []string{":method", "GET", ":scheme", "https", ":path", "a", ":authority", "localhost"}, 0, "reset"},
		{"* with GET", []string{":method", "GET", ":scheme", "https", ":path", "*", ":authority", "localhost"}, 0, "400"},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "other:443"}, 0, "400"},
		{"CONNECT with a path", []string{":method", "CONNECT", ":scheme", "https", ":path", "/a", ":authority", "other:443"}, 0, "reset"},
		{"an authority with a user", []string{":method", "GET", ":scheme", "https", ":path", "/a", ":authority", "u@localhost"}, 0, "reset"},
		{"an authority with a path", []string{":method", "GET", ":scheme", "https", ":path", "/a", ":authority", "localhost/b"}, 0, "400"},
		{"no authority", []string{":method", "GET", ":scheme", "https", ":path", "/a"}, 0, "400"},
		{"connection", with("connection", "close"), 0, "400"},
		{"keep-alive", with("keep-alive", "1"), 0, "400"},
		{"transfer-encoding", with("transfer-encoding", "chunked"), 0, "400"},
		{"upgrade", with("upgrade", "h2c"), 0, "400"},
		{"te that is not trailers", with("te", "chunked"), 0, "400"},
		{"upper case", with("X-A", "b"), 0, "reset"},
		{"a line feed in a value", with("x-a", "b\r\nx-c: d"), 0, "reset"},
		{"NUL in a value", with("x-a", "b\x00"), 0, "reset"},
		{"a space in a name", with("x a", "b"), 0, "reset"},
		{"names that differ by _", with("x-user", "a", "x_user", "b"), 0, "400"},
		{"content_length", with("content_length", "3"), 0, "400"},
		{"a length without a body", with("content-length", "3"), 0, "400"},
		{"two lengths", with("content-length", "0", "content-length", "3"), 0, "400"},
		{"a head that is too large", with("x-a", strings.Repeat(long, 2*maxHeaderBytes/len(long))), 0, "closed"},
	} {
		reached.Store(0)
		got := newAsker(t, addr, "localhost").ask(test.headers...)
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
		if n := reached.Load(); n != test.reach {
			t.Errorf("%s: %d requests reached the handler, want %d", test.name, n, test.reach)
		}
	}
}

// TestE7MisdirectedRequests uses a connection that was made for one domain for
// another host, as browsers do when the certificate fits both.
func TestE7MisdirectedRequests(t *testing.T) {
	var reached atomic.Int32
	h := directed(func(name string) bool { return strings.HasSuffix(name, ".example.com") }, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	addr, _ := serveWire(t, nil, wire{}, h)
	for _, test := range []struct {
		made, host string
		good       bool
	}{
		{"a.example.com", "a.example.com", true},
		{"a.example.com", "A.Example.com:443", true},
		{"A.example.com", "a.example.com", true},
		{"a.example.com", "b.example.com", false},
		{"a.example.com", "localhost", false},
		{"a.example.com", "127.0.0.1", false},
		{"a.example.com", "a.example.com.", false},
		{"localhost", "a.example.com", true},
		{"", "a.example.com", true},
		{"other.example.org", "a.example.com", true},
	} {
		reached.Store(0)
		head := []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", test.host}
		// Over HTTP/2 in the middle of a connection too, between requests that are good.
		a := newAsker(t, addr, test.made)
		if test.made != "" {
			if got := a.ask(":method", "GET", ":scheme", "https", ":path", "/", ":authority", strings.ToLower(test.made)); got != "200" {
				t.Errorf("%+v: the first one %s", test, got)
			}
		}
		reached.Store(0)
		got := []string{a.ask(head...)}
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: test.made, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		check(t, err)
		check(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", test.host)
		b, _ := io.ReadAll(c)
		c.Close()
		if len(b) > 12 {
			got = append(got, string(b[9:12]))
		}
		want, reach := "[421 421]", int32(0)
		if test.good {
			want, reach = "[200 200]", 2
		}
		if s := fmt.Sprint(got); s != want || reached.Load() != reach {
			t.Errorf("%+v: %s, want %s; %d reached the handler", test, s, want, reached.Load())
		}
	}
}
