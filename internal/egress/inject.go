package egress

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
)

// hiding is a redactor of a value that was injected.
type hiding struct {
	number int // of the secret's version
	by     *secret.Redactor
}

// inject puts the credential of a rule into the headers of a request that goes
// out, in place of all that the function wrote there, and returns what takes it out
// of the answer. The value is asked for anew at each request, so that a rotation
// needs nothing else, and it is nowhere in the sandbox. Without a credential to
// inject it does nothing. An error has been recorded or noted; the request must not
// go.
func (c *clearing) inject(ctx context.Context, t *target, h http.Header) (*secret.Redactor, error) {
	rule := t.host.Inject
	if rule == nil {
		return nil, nil
	}
	for name := range h {
		// Some servers take _ for -, and any case.
		if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), rule.Header) {
			delete(h, name)
		}
	}
	value, number, err := c.value(ctx, t, rule.Secret)
	if err != nil {
		c.a.note("a request to " + t.where() + " was refused: the secret " + rule.Secret + ", which its rule injects, cannot be used: " + err.Error())
		return nil, err
	}
	defer clear(value)
	data := bytes.TrimRight(value, "\r\n") // of a file
	text := strings.Replace(rule.Format, "{}", string(data), 1)
	if len(data) == 0 || strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
		c.a.note("a request to " + t.where() + " was refused: the secret " + rule.Secret + " is empty or has a character that no header can carry, such as a line break within it; set it anew: bawn secret set " + rule.Secret)
		return nil, bawn.Errorf(bawn.CodeInvalid, "egress.inject", "the secret cannot be put into a header")
	}
	h[rule.Header] = []string{text}
	// An answer must be readable, and whole: a part of it could be a part of the value.
	h["Accept-Encoding"] = []string{"identity"}
	for _, name := range []string{"Range", "If-Range", "Sec-Websocket-Extensions"} {
		delete(h, name)
	}
	return c.hide(rule.Secret, number, data), nil
}

// use asks the vault for a secret, in the name of the running invocation.
func (c *clearing) use(ctx context.Context, t *target, name string) ([]byte, int, error) {
	if c.a.b.cfg.Secrets == nil {
		return nil, 0, bawn.Errorf(bawn.CodeUnavailable, "egress.inject", "this node keeps no secrets")
	}
	call := t.run.call
	v, err := c.a.b.cfg.Secrets.Use(ctx, secret.UseRequest{
		Version: c.a.v, Instance: c.a.in.Instance, Invocation: call.ID, Name: name, For: secret.Inject, Counted: t.run.use(t).counted(),
		Origin: call.From(), Chain: append(call.Chain[:len(call.Chain):len(call.Chain)], c.a.v.Ref()), Hops: call.Hops,
	})
	if err != nil {
		return nil, 0, err
	}
	defer v.Clear()
	return bytes.Clone(v.Bytes()), v.Number(), nil
}

// hide returns the redactor of a value. It is made once for each version.
func (c *clearing) hide(name string, number int, value []byte) *secret.Redactor {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hiding[name]; h.by != nil && h.number == number {
		return h.by
	}
	h := hiding{number: number, by: secret.NewRedactor([][]byte{value})}
	c.hiding[name] = h
	return h.by
}

// decoded returns the body of an answer as it can be searched. It reports false for
// an encoding that cannot be read here.
func decoded(res *http.Response) (io.Reader, bool) {
	switch encoding := strings.ToLower(strings.TrimSpace(strings.Join(res.Header["Content-Encoding"], ","))); encoding {
	case "", "identity":
		return res.Body, true
	case "gzip", "x-gzip":
		res.Header.Del("Content-Encoding")
		res.Header.Del("Content-Length")
		if res.ContentLength > 0 {
			res.ContentLength = -1
		}
		return &gunzip{src: res.Body}, true
	default:
		return nil, false
	}
}

// A gunzip decodes what it reads from src, beginning when it is read. What comes
// out is bounded, for a small answer can decode to a very large one.
type gunzip struct {
	src  io.Reader
	r    *gzip.Reader
	left int64
}

// Read reads.
func (g *gunzip) Read(p []byte) (int, error) {
	if g.r == nil {
		r, err := gzip.NewReader(g.src)
		if err != nil {
			return 0, err
		}
		g.r, g.left = r, bawn.DefaultEgressBytes
	}
	n, err := g.r.Read(p)
	if g.left -= int64(n); g.left < 0 {
		return 0, bawn.Errorf(bawn.CodeInvalid, "egress.inject", "an answer decodes to more than %d bytes", int64(bawn.DefaultEgressBytes))
	}
	return n, err
}
