package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	helloTimeout  = 10 * time.Second // for a ClientHello to arrive
	maxHello      = 64 << 10         // bytes of it, with what frames it
	verifyTimeout = 10 * time.Second
	verifiedFor   = 10 * time.Minute
	maxVerified   = 4096
	spliceBuffer  = 32 << 10
	extensionECH  = 0xfe0d // encrypted_client_hello, RFC 9849
	minOutsideTLS = tls.VersionTLS12
)

// serveTunnel passes on a connection whose content is the function's and the
// host's own.
func (a *attached) serveTunnel(ctx context.Context, conn net.Conn, t *target) {
	var first []byte
	serverName := t.name
	if !t.host.Plaintext {
		conn.SetReadDeadline(earlier(time.Now().Add(helloTimeout), t.run.deadline))
		hello, err := readHello(conn)
		conn.SetReadDeadline(time.Time{})
		if err != nil {
			if ctx.Err() == nil {
				a.mismatch(t, "no TLS began on a connection that must have it; plaintext: true in its rule is an exception")
			}
			reset(conn)
			return
		}
		switch name, err := parseName(hello.name); {
		case hello.encrypted:
			a.mismatch(t, "the name of the server is encrypted (ECH), so it cannot be held against the rule")
			reset(conn)
			return
		case t.name != "" && (err != nil || name != t.name):
			a.mismatch(t, "the connection asks for the server "+quoted(hello.name))
			reset(conn)
			return
		case t.name == "" && hello.name != "" && err != nil:
			a.mismatch(t, "the connection asks for the server "+quoted(hello.name))
			reset(conn)
			return
		case t.name == "":
			serverName = name
		}
		first = hello.read
	}
	out, err := a.connect(ctx, t)
	if err != nil {
		reset(conn)
		return
	}
	defer t.run.leave(out)
	if !t.host.Plaintext {
		if err := a.verify(ctx, t, out, serverName); err != nil {
			reset(conn)
			return
		}
		if _, err := out.Write(first); err != nil {
			reset(conn)
			return
		}
	}
	a.b.splice(conn, out)
}

// mismatch records that TLS is not as the rule wants it; control C6.
func (a *attached) mismatch(t *target, reason string) {
	a.block("egress", "C6", reason, t.detail())
}

// quoted bounds what the function sent for a record.
func quoted(s string) string {
	if len(s) > maxNameBytes {
		s = s[:maxNameBytes] + "…"
	}
	return "“" + s + "”"
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// hello is what a client says first.
type hello struct {
	name      string // of the server; empty if it names none
	encrypted bool   // whether another hello is inside, which cannot be read
	read      []byte // everything that was read
}

// errRead ends the handshake once the ClientHello is there.
var errRead = errors.New("the hello has been read")

// readHello reads a ClientHello and answers nothing.
func readHello(r io.Reader) (hello, error) {
	var h hello
	var seen bytes.Buffer
	found := false
	err := tls.Server(readOnly{io.TeeReader(io.LimitReader(r, maxHello), &seen)}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			found = true
			h.name = info.ServerName
			h.encrypted = slices.Contains(info.Extensions, extensionECH)
			return nil, errRead
		},
	}).Handshake()
	h.read = seen.Bytes()
	if !found {
		return hello{}, err
	}
	return h, nil
}

// readOnly is a connection that nothing can be sent on.
type readOnly struct{ r io.Reader }

func (c readOnly) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c readOnly) Write([]byte) (int, error)        { return 0, io.ErrClosedPipe }
func (c readOnly) Close() error                     { return nil }
func (c readOnly) LocalAddr() net.Addr              { return nil }
func (c readOnly) RemoteAddr() net.Addr             { return nil }
func (c readOnly) SetDeadline(time.Time) error      { return nil }
func (c readOnly) SetReadDeadline(time.Time) error  { return nil }
func (c readOnly) SetWriteDeadline(time.Time) error { return nil }

// verify makes sure that the server at the other end of out has a certificate
// for name, or for its address if name is empty, by a handshake of Bawn's own: a
// function that does not look must not be led to an impostor; control C6.
func (a *attached) verify(ctx context.Context, t *target, out *counted, name string) error {
	to := out.to
	if name == "" {
		name = to.Addr().Unmap().String()
	}
	err := a.b.verified.check(ctx, verifiedKey{to, name}, func(ctx context.Context) error {
		conn, err := a.b.cfg.Guard.connect(ctx, "tcp", t.where(), to, false)
		if err != nil {
			return err
		}
		defer conn.Close()
		return handshake(ctx, conn, name, a.b.cfg.Guard.Roots())
	})
	if err != nil && ctx.Err() == nil {
		a.mismatch(t, "the server is not "+quoted(name)+": "+err.Error())
	}
	return err
}

// handshake reports whether the server at the other end of conn proves that it
// is name. What it thinks of a client without a certificate is not asked.
func handshake(ctx context.Context, conn net.Conn, name string, roots *x509.CertPool) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	good := false
	err := tls.Client(conn, &tls.Config{
		ServerName: name, RootCAs: roots, MinVersion: minOutsideTLS,
		VerifyConnection: func(tls.ConnectionState) error { good = true; return nil },
	}).HandshakeContext(ctx)
	if good {
		return nil
	}
	return err
}

// verified remembers which addresses have proved to be which names.
type verified struct {
	mu    sync.Mutex
	until map[verifiedKey]time.Time
	going map[verifiedKey]*going
}

type verifiedKey struct {
	to   netip.AddrPort
	name string
}

// going is a check that others wait for.
type going struct {
	done chan struct{}
	err  error
}

// check calls prove unless it has succeeded for key lately. Of many at one time
// one asks; who waits asks himself if it fails.
func (v *verified) check(ctx context.Context, key verifiedKey, prove func(context.Context) error) error {
	for {
		v.mu.Lock()
		if time.Now().Before(v.until[key]) {
			v.mu.Unlock()
			return nil
		}
		g := v.going[key]
		if g == nil {
			g = &going{done: make(chan struct{})}
			if v.going == nil {
				v.going, v.until = map[verifiedKey]*going{}, map[verifiedKey]time.Time{}
			}
			v.going[key] = g
			v.mu.Unlock()
			g.err = prove(ctx)
			v.mu.Lock()
			delete(v.going, key)
			if g.err == nil {
				if len(v.until) >= maxVerified {
					clear(v.until) // they prove it again
				}
				v.until[key] = time.Now().Add(verifiedFor)
			}
			v.mu.Unlock()
			close(g.done)
			return g.err
		}
		v.mu.Unlock()
		select {
		case <-g.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// splice passes bytes both ways until both ends have said that they are done,
// or one fails.
func (b *Broker) splice(inside, outside net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { b.pass(outside, inside) })
	b.pass(inside, outside)
	both.Wait()
}

// pass copies from one to the other. The end of the data is passed on as such,
// and a failure as one.
func (b *Broker) pass(to, from net.Conn) {
	buf := b.buffers.Get().(*[spliceBuffer]byte)
	defer b.buffers.Put(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf[:])
	if err != nil {
		reset(to)
		reset(from)
		return
	}
	closeWrite(to)
}
