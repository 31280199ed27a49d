// Package client speaks to a Bawn node through its control API. Everything the
// command line does goes through it.
//
// A [Client] trusts the certificate authority of its [Context] and no other.
// Every failure is a *[bawn.Error] whose code says what kind it is; when no
// node answers the code is [bawn.CodeUnavailable].
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bawn.dev/bawn"
)

const (
	maxAnswerBytes = 16 << 20 // of a JSON answer that is read whole
	maxLineBytes   = 1 << 20  // of one line of a stream
)

// Client calls the control API of one node. It is safe for concurrent use.
type Client struct {
	base *url.URL
	pub  string
	http *http.Client

	// bearer returns the credential that a request carries; "" for none, since a
	// certificate may be enough.
	bearer func(context.Context) (string, error)
}

// New returns a client for the node that c names. It does not connect yet.
func New(c *Context) (*Client, error) {
	base, err := url.Parse(c.URL)
	if err != nil || base.Scheme != "https" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "client", "%.200q is not an https URL", c.URL)
	}
	pool, err := c.pool()
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "client", "the context has no usable certificate authority")
	}
	certs, err := c.certificates()
	if err != nil {
		return nil, err
	}
	key := c.Key
	return &Client{
		base: base, pub: strings.TrimSuffix(c.Public, "/"),
		bearer: func(context.Context) (string, error) { return key, nil },
		http: &http.Client{
			Transport: &http.Transport{
				// No proxy: the key must reach the node and nobody on the way.
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: certs},
				DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
				TLSHandshakeTimeout:    10 * time.Second,
				IdleConnTimeout:        90 * time.Second,
				MaxIdleConnsPerHost:    64,
				MaxResponseHeaderBytes: 64 << 10,
			},
			// A redirect could carry the key elsewhere, and the API has none.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Open loads the context file at path (empty: [DefaultContextFile]) and
// returns a client for its node.
func Open(path string) (*Client, error) {
	c, err := LoadContext(path)
	if err != nil {
		return nil, err
	}
	if path == "" {
		if path, err = DefaultContextFile(); err != nil {
			return nil, err
		}
	}
	cl, err := New(c)
	if err == nil && c.Login != nil {
		cl.bearer = (&session{path: path, context: c}).token
	}
	return cl, err
}

// WithBearer returns a client that asks bearer for the credential of each
// request: a token that is refreshed, for one. bearer is called by many at a time.
func (c *Client) WithBearer(bearer func(context.Context) (string, error)) *Client {
	other := *c
	other.bearer = bearer
	return &other
}

// URL returns the address of the node's control API.
func (c *Client) URL() string { return c.base.String() }

// Public returns the address of the node's public listener, or "".
func (c *Client) Public() string { return c.pub }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call of the API.
type request struct {
	method, path string
	query        url.Values
	json         any       // a JSON body, or
	body         io.Reader // a raw one of type, with size if known (else -1)
	mime         string
	size         int64
}

// send makes the request and returns a response whose status is below 400.
// The caller closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	u := c.base.JoinPath(r.path)
	u.RawQuery = r.query.Encode()
	body := r.body
	if r.json != nil {
		data, err := json.Marshal(r.json)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "client", "the request cannot be written as JSON")
		}
		body, r.mime, r.size = bytes.NewReader(data), "application/json", int64(len(data))
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "client", "the request is malformed")
	}
	if body != nil {
		req.Header.Set("Content-Type", r.mime)
		req.ContentLength = r.size
	}
	bearer, err := c.bearer(ctx)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	req.Header.Set("User-Agent", "bawn-client")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		return nil, readError(res)
	}
	return res, nil
}

// do makes the request and reads a JSON answer into out, which may be nil.
func (c *Client) do(ctx context.Context, r request, out any) error {
	res, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes+1))
	if err != nil {
		return c.unreachable(ctx, err)
	}
	if len(data) > maxAnswerBytes {
		return bawn.Errorf(bawn.CodeTooLarge, "client", "the node's answer has more than %d bytes", maxAnswerBytes)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return bawn.Wrap(err, bawn.CodeInternal, "client", "the node's answer is not what this client understands").
			WithFix("use a `bawn` of the same version as the node")
	}
	return nil
}

// unreachable explains why no answer came.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "client", "gave up waiting for the node at %s", c.base.Host)
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var expired x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &expired), errors.As(err, &verify):
		return bawn.Wrap(err, bawn.CodeUnauthenticated, "client", "what answers at %s is not the node of this context: its certificate is from another authority", c.base.Host).
			WithFix("use the context file that this node wrote (%s=FILE)", ContextEnv)
	}
	cause := err
	var oe *net.OpError
	if errors.As(err, &oe) {
		cause = oe.Err
	} else if ue := new(url.Error); errors.As(err, &ue) {
		cause = ue.Err
	}
	return bawn.Wrap(err, bawn.CodeUnavailable, "client", "no node answers at %s: %v", c.base.Host, cause).
		WithFix("start it with `bawn up`, or choose another context with %s=FILE", ContextEnv)
}

// problem is the body of every error answer.
type problem struct {
	Code    bawn.Code `json:"code"`
	Message string    `json:"message"`
	Fix     string    `json:"fix"`
	ID      string    `json:"id"`
}

func (p *problem) err() error {
	e := &bawn.Error{Code: p.Code, Message: p.Message, Fix: p.Fix}
	if p.Code == bawn.CodeInternal && p.ID != "" {
		e.Message += fmt.Sprintf(" (id %s)", p.ID)
	}
	return e
}

// readError turns an error answer into a *bawn.Error.
func readError(res *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var p problem
	if json.Unmarshal(data, &p) == nil && p.Code != "" && p.Message != "" {
		return p.err()
	}
	// A HEAD answer has no body, and a proxy's is not ours.
	code := codeOf(res.StatusCode)
	return bawn.Errorf(code, "client", "the node answered %d %s", res.StatusCode, http.StatusText(res.StatusCode))
}

func codeOf(status int) bawn.Code {
	for _, c := range []bawn.Code{
		bawn.CodeInvalid, bawn.CodeUnauthenticated, bawn.CodeDenied, bawn.CodeNotFound, bawn.CodeConflict, bawn.CodeTooLarge,
		bawn.CodeUnprocessable, bawn.CodeThrottled, bawn.CodeFunctionError, bawn.CodeFunctionTimeout, bawn.CodeUnavailable,
	} {
		if c.Status() == status {
			return c
		}
	}
	if status < 500 {
		return bawn.CodeInvalid
	}
	return bawn.CodeInternal
}
