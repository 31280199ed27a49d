package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn/internal/ingress"
)

// plain is what HTTP/1 comes in on: a connection after its handshake whose
// requests are looked at before net/http parses them. net/http mends what a proxy in
// front may have read in another way: it drops a Content-Length beside a
// Transfer-Encoding, joins folded lines, takes line feeds alone for line ends. Each is
// refused here with 400, and the connection ends; control D9. Only what begins a
// request is judged; a body is followed to know where the next one begins.
type plain struct {
	*tls.Conn
	mu    sync.Mutex // net/http reads ahead while a handler runs
	buf   []byte     // read, and not handed on
	ready int        // of buf: what may be handed on
	state reading
	left  int64 // bytes of the body, or of the chunk, that are still to come
	line  int   // bytes of the line that is being followed in a body
	last  byte  // before the one that is looked at, there
	size  int64 // of the chunk, as far as it was read
	ext   bool  // the rest of a chunk's line is an extension
	bad   bool  // there is no next request
	told  bool  // and what there is instead says so to the server
	err   error
}

type reading int

const (
	inHead reading = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
)

const maxChunkLine = 256

// malformed is a request that net/http answers with 400, and the connection ends.
const malformed = "REFUSED\r\n\r\n"

// newPlain returns the connection for a server of HTTP/1.
func newPlain(c *tls.Conn) *plain { return &plain{Conn: c} }

// Read hands on what was found good.
func (c *plain) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ready == 0 {
		if c.bad && len(c.buf) == 0 && !c.told {
			return 0, io.EOF
		}
		if c.err != nil {
			// What is left is a head that never ended: the server says what it thinks of it.
			if c.ready = len(c.buf); c.ready > 0 {
				break
			}
			err := c.err
			if errTimeout(err) {
				c.err = nil // a deadline that passes now may be another one later
			}
			return 0, err
		}
		var chunk [4 << 10]byte
		n, err := c.Conn.Read(chunk[:])
		if c.bad && c.told {
			// The server reads ahead while it answers what was good: an end now would
			// tell it that the caller has left.
			if err != nil {
				return 0, err
			}
			continue
		}
		c.buf = append(c.buf, chunk[:n]...)
		if c.err = err; errTimeout(err) && n == 0 {
			c.err = nil
			return 0, err
		}
		c.look()
	}
	n := copy(p, c.buf[:c.ready])
	c.buf = c.buf[n:]
	if c.ready -= n; len(c.buf) == 0 {
		c.buf = nil // what was large is given back
	}
	return n, nil
}

func errTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// look goes on with what was read and not looked at yet.
func (c *plain) look() {
	for c.ready < len(c.buf) && !c.bad {
		rest := c.buf[c.ready:]
		switch c.state {
		case inHead:
			end, ok := headEnd(rest)
			switch {
			case !ok && len(rest) <= maxHeaderBytes+8<<10: // net/http reads some more before it says so
				return // more has to come
			case !ok:
				c.ready = len(c.buf) // too large: net/http says so
				c.bad = true
				return
			}
			body, length, err := checkHead(rest[:end])
			if err != nil {
				c.buf = append(c.buf[:c.ready:c.ready], malformed...)
				c.ready, c.bad, c.told = len(c.buf), true, true
				return
			}
			c.ready += end
			c.state, c.left, c.line, c.size, c.ext, c.last = body, length, 0, 0, false, 0
		case inBody, inChunk:
			n := min(int64(len(rest)), c.left)
			c.ready += int(n)
			if c.left -= n; c.left == 0 {
				if c.state == inBody {
					c.state = inHead
				} else {
					c.state, c.line = inChunkEnd, 0
				}
			}
		default:
			if !c.follow(rest[0]) {
				c.buf = c.buf[:c.ready:c.ready] // the body ends too soon, and so does the connection
				c.bad = true
				return
			}
			c.ready++
		}
	}
}

// follow goes one byte further in the framing of a chunked body, and reports
// whether it is as it must be.
func (c *plain) follow(b byte) bool {
	last := c.last
	c.last = b
	if c.line++; c.line > maxChunkLine && c.state != inTrailer || c.line > maxHeaderBytes {
		return false
	}
	switch {
	case last == '\r' && b != '\n', b == '\n' && last != '\r':
		return false
	case b == '\r':
		return true
	}
	switch c.state {
	case inChunkEnd:
		if b != '\n' || c.line != 2 {
			return false
		}
		c.state, c.line, c.size, c.ext = inChunkSize, 0, 0, false
	case inChunkSize:
		switch {
		case b == '\n':
			if c.line < 3 {
				return false
			}
			if c.left = c.size; c.size == 0 {
				c.state, c.line = inTrailer, 0
			} else {
				c.state = inChunk
			}
			c.last = 0
		case c.ext:
		case b == ';' && c.line > 1:
			c.ext = true
		default:
			d := bytes.IndexByte([]byte("0123456789abcdef"), b|0x20)
			if d < 0 || b < '0' || c.size > 1<<40 {
				return false
			}
			c.size = c.size<<4 | int64(d)
		}
	case inTrailer:
		if b == '\n' {
			if c.line == 2 { // an empty line
				c.state, c.last = inHead, 0
			}
			c.line = 0
		}
	}
	return true
}

// headEnd returns where a request's head ends: after the first empty line, as
// every reader of it would have it, those included that end lines by LF alone.
func headEnd(b []byte) (int, bool) {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0, false
		}
		line := b[at : at+i]
		at += i + 1
		if (len(line) == 0 || len(line) == 1 && line[0] == '\r') && at > 2 {
			return at, true
		}
	}
}

var errAmbiguous = errors.New("the request has more than one meaning")

// checkHead returns how the body goes on after a head, or that the head has more
// than one meaning.
func checkHead(head []byte) (reading, int64, error) {
	lines := bytes.Split(head, []byte("\n"))
	lines = lines[:len(lines)-1] // nothing is behind the last LF
	var (
		hosts, lengths, codings int
		length                  int64
		old, kept               bool // HTTP/1.0, and that it wants to go on
	)
	for i, l := range lines {
		if len(l) == 0 || l[len(l)-1] != '\r' { // LF alone
			return 0, 0, errAmbiguous
		}
		l = l[:len(l)-1]
		if bytes.IndexByte(l, '\r') >= 0 || bytes.IndexByte(l, 0) >= 0 {
			return 0, 0, errAmbiguous
		}
		if i == 0 {
			parts := bytes.Split(l, []byte(" "))
			if len(parts) != 3 || len(parts[0]) == 0 || len(parts[1]) == 0 {
				return 0, 0, errAmbiguous
			}
			old = string(parts[2]) == "HTTP/1.0"
			// Of targets there is the plain form alone: another names a host besides Host.
			if !old && string(parts[2]) != "HTTP/1.1" || parts[1][0] != '/' && !(string(parts[1]) == "*" && string(parts[0]) == "OPTIONS") {
				return 0, 0, errAmbiguous
			}
			continue
		}
		if len(l) == 0 {
			break // the end
		}
		if l[0] == ' ' || l[0] == '\t' { // a folded line
			return 0, 0, errAmbiguous
		}
		name, value, ok := bytes.Cut(l, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			return 0, 0, errAmbiguous
		}
		key := string(bytes.ToLower(name))
		// What reads _ as - takes both for one.
		twin := string(bytes.ReplaceAll([]byte(key), []byte("_"), []byte("-")))
		switch value = bytes.Trim(value, " \t"); twin {
		case "host":
			hosts++
		case "content-length":
			lengths++
			if len(value) == 0 || len(value) > 18 || len(bytes.Trim(value, "0123456789")) > 0 {
				return 0, 0, errAmbiguous
			}
			length = 0
			for _, d := range value {
				length = length*10 + int64(d-'0')
			}
		case "connection", "keep-alive", "proxy-connection":
			kept = kept || twin != "connection" || bytes.Contains(bytes.ToLower(value), []byte("keep-alive"))
		case "transfer-encoding":
			codings++
			if !bytes.EqualFold(value, []byte("chunked")) {
				return 0, 0, errAmbiguous
			}
		}
		if twin != key && (twin == "host" || twin == "content-length" || twin == "transfer-encoding") {
			return 0, 0, errAmbiguous
		}
	}
	switch {
	case old && (codings > 0 || kept || hosts > 1): // it has no chunks, and ends with its answer
		return 0, 0, errAmbiguous
	case !old && hosts != 1 || lengths > 1 || codings > 1 || lengths > 0 && codings > 0:
		return 0, 0, errAmbiguous
	case codings > 0:
		return inChunkSize, 0, nil
	case length > 0:
		return inBody, length, nil
	}
	return inHead, 0, nil
}

// unambiguous refuses what is said twice in a request of any version: a Host beside
// the :authority of HTTP/2, and a name that becomes another one's when _ is read as -.
func unambiguous(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host := r.Header["Host"]; len(host) > 0 && (len(host) > 1 || host[0] != r.Host) {
			ambiguous(w)
			return
		}
		if r.ProtoMajor != 1 && !oneMeaning(r) {
			ambiguous(w)
			return
		}
		for name := range r.Header {
			if strings.IndexByte(name, '_') < 0 {
				continue
			}
			twin := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
			if r.Header[twin] != nil || twin == "Host" || twin == "Content-Length" || twin == "Transfer-Encoding" {
				ambiguous(w)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// oneMeaning reports whether a request of HTTP/2 would say the same if somebody wrote
// it down as HTTP/1. What the pseudo-headers are, net/http has seen to; what
// is in them, and whether a length that is stated is that of the body, it has not.
func oneMeaning(r *http.Request) bool {
	if r.Method == http.MethodConnect || !strings.HasPrefix(r.RequestURI, "/") || ingress.HostName(r.Host) == "" {
		return false
	}
	length := r.Header["Content-Length"]
	return len(length) == 0 || len(length) == 1 && length[0] == strconv.FormatInt(r.ContentLength, 10)
}

func ambiguous(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	io.WriteString(w, `{"message":"the request has more than one meaning","fix":"send each header once, with - and not _ in its name"}`+"\n")
}

// handshakes is a listener whose connections have had their TLS handshake: those
// that speak HTTP/2 as they are, which net/http has to see, and the others as plain.
// A handshake that takes longer than a header may ends.
type handshakes struct {
	net.Listener
	cfg    *tls.Config
	out    chan net.Conn
	closed chan struct{}
	once   sync.Once
	err    error
	wg     sync.WaitGroup
}

func shakeHands(ln net.Listener, cfg *tls.Config) *handshakes {
	h := &handshakes{Listener: ln, cfg: cfg, out: make(chan net.Conn), closed: make(chan struct{})}
	go h.accept()
	return h
}

func (h *handshakes) accept() {
	for {
		c, err := h.Listener.Accept()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Temporary() { //nolint:staticcheck // as net/http itself: out of files for a moment
				time.Sleep(5 * time.Millisecond)
				continue
			}
			h.once.Do(func() { h.err = err; close(h.closed) })
			return
		}
		h.wg.Go(func() { h.shake(c) })
	}
}

// shake makes the handshake of one connection and hands it on. The listener bounds
// how many there are.
func (h *handshakes) shake(c net.Conn) {
	t := tls.Server(c, h.cfg)
	ctx, cancel := context.WithTimeout(context.Background(), readHeaderTimeout)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-h.closed:
			cancel()
		case <-stop:
		}
	}()
	if err := t.HandshakeContext(ctx); err != nil {
		t.Close()
		return
	}
	var out net.Conn
	switch t.ConnectionState().NegotiatedProtocol {
	case "h2":
		out = t
	case acmeProtocol: // the handshake was the answer
		t.Close()
		return
	default:
		out = newPlain(t)
	}
	select {
	case h.out <- out:
	case <-h.closed:
		t.Close()
	}
}

// Accept returns the next connection that is ready.
func (h *handshakes) Accept() (net.Conn, error) {
	select {
	case c := <-h.out:
		return c, nil
	case <-h.closed:
		return nil, h.err
	}
}

// Close ends Accept, and handshakes that go on.
func (h *handshakes) Close() error {
	err := h.Listener.Close()
	h.once.Do(func() { h.err = net.ErrClosed; close(h.closed) })
	h.wg.Wait()
	return err
}

// addressOf is whom a connection is counted for: the address, of IPv6 the /64 that
// one customer has.
func addressOf(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
