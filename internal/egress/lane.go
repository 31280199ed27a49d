package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

const (
	laneBuffer   = 8 << 10                // of a connection inside; a longer head is net/http's to read
	laneIdle     = 90 * time.Second       // that a connection to the outside is kept
	laneWatch    = 100 * time.Millisecond // after which it is looked whether the function still waits
	maxLaneExtra = 8                      // informational answers before the one
)

// A lane serves the plain requests of one connection of the function, HTTP/1.1 and
// all there when they are looked at, in one goroutine: it reads a request, has it
// judged, and sends it on over a connection of its own keeping. net/http needs four
// goroutines for that, which is most of what a small request costs. Whatever is not
// plain is left to net/http, with the rest of the connection, so that a lane needs
// to know little of HTTP and can be stricter. What is judged, written and told is the
// same code for both.
type lane struct {
	c      *clearing
	in     *insideConn
	conn   net.Conn // in, or the TLS over it
	ctx    context.Context
	cancel context.CancelFunc
	br     *bufio.Reader
	bw     *bufio.Writer
	timer  *time.Timer

	// Of the answer.
	header  http.Header
	head    bool  // to a HEAD
	last    bool  // the connection ends with it
	status  int   // zero until it has begun
	left    int64 // bytes that it lacks; -1 if it is sent in chunks
	trailer []string

	mu      sync.Mutex
	waiting bool          // a request is being served
	watched chan struct{} // closed when who looks whether the function waits is done; nil if nobody does
	out     *counted      // of that request
}

// ride serves plain requests until there is one that is not, or the connection ends.
// It reports what net/http goes on with; nil at the end.
func (c *clearing) ride(in *insideConn, conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		conn.SetDeadline(time.Now().Add(clearHeaderTime))
		if err := t.HandshakeContext(in.ctx); err != nil {
			in.Close()
			return nil
		}
		conn.SetDeadline(time.Time{})
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			return conn
		}
	}
	l := &lane{c: c, in: in, conn: conn, br: bufio.NewReaderSize(conn, laneBuffer), bw: bufio.NewWriter(conn)}
	l.ctx, l.cancel = context.WithCancel(in.ctx)
	defer l.cancel()
	for {
		r, read, err := l.next()
		if r == nil {
			if err != nil {
				conn.Close()
				return nil
			}
			rest, _ := l.br.Peek(l.br.Buffered())
			conn.SetReadDeadline(time.Time{})
			return &ahead{Conn: conn, head: append(read, rest...)}
		}
		if !l.serve(r) {
			conn.Close()
			return nil
		}
	}
}

// ahead is a connection from which head was read already.
type ahead struct {
	net.Conn
	head []byte
}

// Read reads.
func (a *ahead) Read(p []byte) (int, error) {
	if len(a.head) > 0 {
		n := copy(p, a.head)
		a.head = a.head[n:]
		return n, nil
	}
	return a.Conn.Read(p)
}

// next returns the next request. If that is not plain it returns nil and what was
// read of it; an error means that there is none.
func (l *lane) next() (r *http.Request, read []byte, err error) {
	l.conn.SetReadDeadline(time.Now().Add(clearIdle))
	if _, err := l.br.Peek(1); err != nil {
		return nil, nil, err
	}
	for end, partial := -1, false; end < 0; {
		b, _ := l.br.Peek(l.br.Buffered())
		if end = bytes.Index(b, []byte("\r\n\r\n")); end >= 0 {
			read = bytes.Clone(b[:end+4])
			break
		}
		if len(b) == laneBuffer {
			return nil, nil, nil
		}
		if !partial {
			partial = true
			l.conn.SetReadDeadline(time.Now().Add(clearHeaderTime))
		}
		if _, err := l.br.Peek(len(b) + 1); err != nil {
			return nil, nil, err
		}
	}
	if !tidy(read) {
		return nil, nil, nil
	}
	if r, err = http.ReadRequest(l.br); err != nil || !l.plain(r) {
		return nil, read, nil
	}
	if r.ContentLength > 0 { // from here on somebody else may read from the connection
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(l.br, body); err != nil {
			return nil, nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r, nil, nil
}

// tidy reports whether a head has nothing that one could read in two ways: lines
// end with CR LF, each but the first begins with a name and a colon, and no other
// control character is there.
func tidy(head []byte) bool {
	for first := true; ; first = false {
		line, rest, ok := bytes.Cut(head, []byte("\r\n"))
		if !ok {
			return false
		}
		for _, b := range line {
			if b < ' ' && b != '\t' || b == 0x7f {
				return false
			}
		}
		if head = rest; first {
			continue
		}
		if len(line) == 0 {
			return len(rest) == 0
		}
		name, _, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsFunc(name, notToken) {
			return false
		}
	}
}

// notToken reports whether r is no character of a header's name, RFC 9110 5.6.2.
func notToken(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// plain reports whether a lane serves r: its body is there, and nothing is to be
// agreed on about the connection.
func (l *lane) plain(r *http.Request) bool {
	h := r.Header
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Method == http.MethodConnect || len(r.TransferEncoding) > 0 || r.ContentLength < 0 || r.ContentLength > int64(l.br.Buffered()) {
		return false
	}
	for _, name := range []string{"Upgrade", "Expect", "Te", "Trailer", "Http2-Settings", "Proxy-Connection"} {
		if len(h[name]) > 0 {
			return false
		}
	}
	switch c := h["Connection"]; {
	case len(c) == 0:
	case len(c) > 1 || !strings.EqualFold(c[0], "keep-alive") && !strings.EqualFold(c[0], "close"):
		return false
	}
	return true
}

// serve answers r; it reports whether there can be another request.
func (l *lane) serve(r *http.Request) (more bool) {
	l.header, l.head, l.last, l.status, l.left, l.trailer = make(http.Header, 8), r.Method == http.MethodHead, r.Close, 0, 0, nil
	l.watch()
	defer func() {
		l.unwatch()
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			more = false
		}
	}()
	l.c.handle(l, r.WithContext(l.ctx), l.in)
	return l.finish() == nil && !l.last
}

// watch looks after a while whether the function has gone, so that what it does not
// wait for any more ends outside as well.
func (l *lane) watch() {
	l.mu.Lock()
	l.waiting = true
	l.mu.Unlock()
	if l.timer == nil {
		l.timer = time.AfterFunc(laneWatch, l.look)
	} else {
		l.timer.Reset(laneWatch)
	}
}

func (l *lane) look() {
	done := make(chan struct{})
	defer close(done)
	l.mu.Lock()
	ok := l.waiting && l.watched == nil
	if ok {
		l.watched = done
	}
	l.mu.Unlock()
	if !ok {
		return
	}
	if _, err := l.br.Peek(l.br.Buffered() + 1); err == nil || isTimeout(err) || errors.Is(err, bufio.ErrBufferFull) {
		return
	}
	l.cancel()
	l.mu.Lock()
	out := l.out
	l.mu.Unlock()
	if out != nil {
		reset(out)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// unwatch ends that, and returns when nobody reads from the connection.
func (l *lane) unwatch() {
	l.timer.Stop()
	l.mu.Lock()
	l.waiting, l.out = false, nil
	watched := l.watched
	l.watched = nil
	l.mu.Unlock()
	if watched != nil {
		l.conn.SetReadDeadline(time.Unix(1, 0))
		<-watched
	}
}

// Header returns the headers of the answer.
func (l *lane) Header() http.Header { return l.header }

// WriteHeader begins the answer.
func (l *lane) WriteHeader(status int) {
	if l.status != 0 {
		return
	}
	l.status = status
	h := l.header
	l.trailer = h["Trailer"]
	switch {
	case l.head:
	case status == http.StatusNoContent || status == http.StatusNotModified:
		delete(h, "Content-Length")
	case len(h["Content-Length"]) > 0:
		n, err := strconv.ParseInt(h["Content-Length"][0], 10, 64)
		if err != nil || n < 0 {
			panic(http.ErrAbortHandler)
		}
		l.left = n
	default:
		l.left = -1
		h["Transfer-Encoding"] = []string{"chunked"}
	}
	if l.last {
		h["Connection"] = []string{"close"}
	}
	l.bw.WriteString("HTTP/1.1 ")
	l.bw.Write(strconv.AppendInt(l.bw.AvailableBuffer(), int64(status), 10))
	l.bw.WriteByte(' ')
	l.bw.WriteString(http.StatusText(status))
	l.bw.WriteString("\r\n")
	h.Write(l.bw) // an error stays in it
	l.bw.WriteString("\r\n")
}

// Write adds to the body.
func (l *lane) Write(p []byte) (int, error) {
	if l.status == 0 {
		l.WriteHeader(http.StatusOK)
	}
	switch {
	case len(p) == 0:
		return 0, nil
	case l.left < 0:
		l.bw.Write(strconv.AppendInt(l.bw.AvailableBuffer(), int64(len(p)), 16))
		l.bw.WriteString("\r\n")
		l.bw.Write(p)
		_, err := l.bw.WriteString("\r\n")
		return len(p), err
	case int64(len(p)) > l.left:
		return 0, http.ErrContentLength
	}
	l.left -= int64(len(p))
	return l.bw.Write(p)
}

// FlushError sends what is there; the end of an answer is sent by finish.
func (l *lane) FlushError() error {
	if l.left == 0 && l.status != 0 {
		return nil
	}
	return l.bw.Flush()
}

// finish ends the answer.
func (l *lane) finish() error {
	if l.status == 0 {
		l.WriteHeader(http.StatusOK)
	}
	if l.left > 0 {
		return io.ErrUnexpectedEOF
	}
	if l.left < 0 {
		l.bw.WriteString("0\r\n")
		trailer := http.Header{}
		for name, values := range l.header {
			rest, free := strings.CutPrefix(name, http.TrailerPrefix)
			if !free && !slices.Contains(l.trailer, name) || rest == "Content-Length" || rest == "Transfer-Encoding" || rest == "Trailer" {
				continue
			}
			trailer[rest] = values
		}
		trailer.Write(l.bw)
		l.bw.WriteString("\r\n")
	}
	return l.bw.Flush()
}

// A kept is a connection to a host.
type kept struct {
	raw   *counted
	conn  net.Conn // raw, or the TLS over it
	br    *bufio.Reader
	bw    *bufio.Writer
	heads headLimit
	since time.Time // that nobody uses it
	used  bool      // it has brought an answer before
}

// A headLimit bounds what is read while an answer's head is.
type headLimit struct {
	net.Conn
	on   bool
	left int
}

// Read reads.
func (h *headLimit) Read(p []byte) (int, error) {
	if h.on {
		if h.left <= 0 {
			return 0, errors.New("the head of the answer is too long")
		}
		p = p[:min(len(p), h.left)]
	}
	n, err := h.Conn.Read(p)
	h.left -= n
	return n, err
}

// silent reports whether the host has said nothing since its last answer: neither
// that it has closed the connection, nor anything that nobody asked for.
func (k *kept) silent() bool {
	if k.br.Buffered() > 0 || time.Since(k.since) > laneIdle {
		return false
	}
	sc, ok := k.raw.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var b [1]byte
	var got error
	err = rc.Read(func(fd uintptr) bool {
		_, _, got = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err == nil && errors.Is(got, syscall.EAGAIN)
}

// roundTrip sends out and returns the answer's head; its body is read by who closes
// it. A connection is kept if the body was read to its end.
func (l *lane) roundTrip(t *target, to route, out *http.Request) (*http.Response, error) {
	for {
		k, err := l.c.borrow(l.ctx, t, to)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.out = k.raw
		l.mu.Unlock()
		if err := l.ctx.Err(); err != nil { // who saw that may have come before
			k.conn.Close()
			return nil, err
		}
		res, begun, err := k.exchange(out)
		if err == nil {
			b := &keptBody{ReadCloser: res.Body, k: k, c: l.c, run: t.run, to: to}
			b.whole = res.Body == http.NoBody
			b.close = res.Close || out.Close
			res.Body = b
			return res, nil
		}
		k.conn.Close()
		// A host that closes what it has long not used: who asks to read asks again.
		if k.used && !begun && l.ctx.Err() == nil && (out.Method == http.MethodGet || out.Method == http.MethodHead) && out.Body == nil && !errors.Is(err, errDenied) {
			continue
		}
		return nil, err
	}
}

// exchange sends out and reads the head of the answer; begun says whether any of it
// came.
func (k *kept) exchange(out *http.Request) (res *http.Response, begun bool, err error) {
	if err := out.Write(k.bw); err != nil {
		return nil, false, err
	}
	if err := k.bw.Flush(); err != nil {
		return nil, false, err
	}
	k.heads.on, k.heads.left = true, clearAnswer
	defer func() { k.heads.on = false }()
	if _, err := k.br.Peek(1); err != nil {
		return nil, false, err
	}
	for range maxLaneExtra {
		res, err := http.ReadResponse(k.br, out)
		if err != nil {
			return nil, true, err
		}
		if res.StatusCode == http.StatusSwitchingProtocols {
			return nil, true, errors.New("the host changes to a protocol that nobody asked for")
		}
		if res.StatusCode >= 200 {
			return res, true, nil
		}
	}
	return nil, true, errors.New("too many informational answers")
}

// keptBody is the body of an answer. When it was read to its end the connection is
// kept, and else closed.
type keptBody struct {
	io.ReadCloser
	k     *kept
	c     *clearing
	run   *serving
	to    route
	whole bool
	close bool
	done  bool
}

// Read reads.
func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.whole = true
	}
	return n, err
}

// Close gives the connection back, or closes it; the rest of the body is not read.
func (b *keptBody) Close() error {
	if b.done {
		return nil
	}
	b.done = true
	if !b.whole || b.close || b.k.br.Buffered() > 0 {
		return b.k.conn.Close()
	}
	b.k.used, b.k.since = true, time.Now()
	b.c.keep(b.run, b.to, b.k)
	return nil
}

// borrow returns a connection to a host, for the invocation of t: one that was kept,
// or a new one.
func (c *clearing) borrow(ctx context.Context, t *target, to route) (*kept, error) {
	c.turn(t.run)
	c.mu.Lock()
	for free := c.free[to]; len(free) > 0; free = c.free[to] {
		k := free[len(free)-1]
		c.free[to] = free[:len(free)-1]
		if k.silent() {
			c.mu.Unlock()
			return k, nil
		}
		k.raw.Close()
	}
	c.mu.Unlock()
	raw, err := c.a.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	k := &kept{raw: raw, conn: raw}
	if !to.plain {
		ctx, cancel := context.WithTimeout(ctx, clearHeaderTime)
		defer cancel()
		over := tls.Client(raw, c.outsideTLS(to, "http/1.1"))
		if err := over.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		k.conn = over
	}
	k.heads.Conn = k.conn
	k.br, k.bw = bufio.NewReader(&k.heads), bufio.NewWriter(k.conn)
	return k, nil
}

// keep takes back a connection that was borrowed for run.
func (c *clearing) keep(run *serving, to route, k *kept) {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.free[to]
	if c.run != run || len(free) >= bawn.DefaultEgressConns || free == nil && len(c.free) >= maxClearRoutes {
		k.raw.Close()
		return
	}
	if len(free) > 0 && time.Since(free[0].since) > laneIdle { // the last is used first
		free[0].raw.Close()
		free = append(free[:0], free[1:]...)
	}
	if c.free == nil {
		c.free = map[route][]*kept{}
	}
	c.free[to] = append(free, k)
}
