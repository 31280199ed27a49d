// Package trigger holds the ways in: each turns a protocol into calls and the
// answers back into the protocol.
package trigger

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

// HTTPConfig says how calls over HTTP work. Invoker is needed.
type HTTPConfig struct {
	Invoker *invoke.Invoker
	Account string       // shown to functions in events: 123456789012
	Proxies Proxies      // whose word is believed on where requests come from
	Errors  *slog.Logger // hears of defects of Bawn's own
}

const (
	defaultAccount = "123456789012"
	copyBytes      = 32 << 10 // of a stream, at once
	maxParameters  = 1000     // of a query
)

// httpTrigger serves functions under their routes.
type httpTrigger struct {
	cfg     HTTPConfig
	buffers sync.Pool // of *[]byte for streams
	room    room
	shared  shared
	idlers  atomic.Int64 // requests that wait to be refused
}

// NewHTTP returns the handler of the public listener. It gives functions the
// event of API Gateway's payload format 2.0 and understands its answers, those
// that stream included. Who calls hears of an error its kind and an id; what
// went wrong is in the function's log.
func NewHTTP(cfg HTTPConfig) http.Handler {
	cfg.Account = cmp.Or(cfg.Account, defaultAccount)
	if cfg.Errors == nil {
		cfg.Errors = slog.New(slog.DiscardHandler)
	}
	return &httpTrigger{cfg: cfg, shared: newShared(), buffers: sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}}
}

// ServeHTTP runs one request.
func (t *httpTrigger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &bawn.Call{ID: bawn.NewID(), Trigger: "http", At: time.Now()}
	w.Header()["X-Request-Id"] = []string{c.ID}
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		// The request may have had a Content-Length too, which net/http takes away.
		// A proxy that went by that one must not send a second request here.
		w.Header()["Connection"] = []string{"close"}
	}
	from, err := t.cfg.Proxies.client(r)
	c.Source = from.source
	if err := cmp.Or(t.cfg.Invoker.Flood(r.Context(), c), err); err != nil {
		t.fail(w, r, c, err)
		return
	}
	if t.preflight(w, r, from.scheme) {
		return
	}
	s := share{room: &t.room, most: maxHeldOpen}
	defer s.end()
	if err := t.call(w, r, c, &s, from.scheme); err != nil {
		t.fail(w, r, c, err)
		return
	}
	result, err := t.cfg.Invoker.Invoke(r.Context(), c)
	setRate(w.Header(), &c.Rate)
	if err != nil {
		t.fail(w, r, c, err)
		return
	}
	if result.Stream != nil {
		defer result.Stream.Close()
		t.stream(w, r, c, result.ContentType, result.Stream)
		return
	}
	// The event may go now, and the answer needs room until it has left.
	c.Event = nil
	s.end()
	if err := s.take(len(result.Payload) - freeBytes); err != nil {
		t.fail(w, r, c, err)
		return
	}
	t.answer(w, r, c, result)
}

// call fills in c from the request, and dresses the answer as the route has it. What
// that takes of memory is in s.
func (t *httpTrigger) call(w http.ResponseWriter, r *http.Request, c *bawn.Call, s *share, scheme string) error {
	rawPath, query, _ := strings.Cut(r.RequestURI, "?")
	m, err := t.cfg.Invoker.Match(r.Host, r.Method, rawPath)
	if err != nil {
		return err
	}
	t.dress(w.Header(), m.Route, r, scheme)
	if n := strings.Count(query, "&"); n >= maxParameters {
		return bawn.Errorf(bawn.CodeInvalid, "http", "the query has more than %d parameters", maxParameters).WithFix("send less, or send them in the body")
	}
	c.Route = m.Route
	c.Request = &bawn.Request{Method: r.Method, Host: r.Host, Path: rawPath, Query: query, Header: r.Header, Params: m.Params, Proto: r.Proto}
	c.Target = bawn.Ref{Tenant: m.Version.Tenant, Function: m.Version.Function}
	if err := shows(t.cfg.Invoker, r, c, rawPath, query); err != nil {
		return err
	}
	if err := t.cfg.Invoker.Trace(c, r.Header["X-Amzn-Trace-Id"]); err != nil {
		return err
	}
	shown := t.cfg.Invoker.Shows(c)
	// The body of who may not call is not worth reading. The gate decides; here it
	// only gets the call without its event, and refuses that.
	switch {
	case shown:
		if t.cfg.Invoker.Known(r.Context(), c) != nil {
			return nil
		}
		if c.Signed == nil && m.Route.Access.Webhook == nil { // whether a signature is right shows once the body is there
			s.most = maxHeld
		}
	case !m.Route.Access.Public.Open(c.At):
		return nil
	case r.ContentLength != 0: // of strangers there may be any number
		if err := t.cfg.Invoker.Room(r.Context(), c); err != nil {
			return err
		}
	}
	body, err := readBody(r, s)
	if err != nil {
		return err
	}
	signedBody(c, body)
	c.Request.Body = body
	q := request{
		http: r, id: c.ID, trace: c.TraceID, source: c.Source, scheme: scheme,
		rawPath: rawPath, query: query, route: m.Route, params: m.Params,
		account: t.cfg.Account, api: m.Version.Function, at: c.At,
		hideKey: c.Bearer != "" || c.Signed != nil, claims: c.Claims, body: body, cert: certificate(c),
	}
	grown := len(body) * 4 / 3
	if grown > freeBytes {
		if grown = bodySize(r.Header, body); grown > bawn.MaxEventBytes {
			return tooLarge()
		}
	}
	reading := int(s.held)
	if err := s.take(grown - freeBytes); err != nil {
		return err
	}
	c.Event = appendEvent(make([]byte, 0, 1024+len(query)+grown), &q)
	s.give(reading)
	if len(c.Event) > bawn.MaxEventBytes {
		return tooLarge()
	}
	return nil
}

// shows gives c what its caller shows of itself, as far as that is for Bawn.
func shows(i *invoke.Invoker, r *http.Request, c *bawn.Call, rawPath, query string) error {
	if r.TLS != nil {
		c.Certificates = r.TLS.PeerCertificates
	}
	switch auth := r.Header["Authorization"]; len(auth) {
	case 0:
		return nil
	case 1:
		var signed bool
		if c.Bearer, signed = i.Ours(c.Route, auth[0]); signed {
			c.Signed = &bawn.Signed{Method: r.Method, Host: r.Host, Path: rawPath, Query: query, Header: r.Header}
		}
		return nil
	}
	return bawn.Errorf(bawn.CodeInvalid, "http", "there is more than one Authorization header").WithFix("send one")
}

// signedBody completes a signed request when its body has been read.
func signedBody(c *bawn.Call, body []byte) {
	if c.Signed != nil {
		sum := sha256.Sum256(body)
		c.Signed.Body, c.Signed.Length = hex.EncodeToString(sum[:]), int64(len(body))
	}
}

// readBody reads the body within the bounds of an event. What a caller says of
// its length is not believed: memory is taken as bytes arrive, and counted in s.
func readBody(r *http.Request, s *share) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > bawn.MaxEventBytes {
		return nil, tooLarge()
	}
	b := make([]byte, 0, freeBytes)
	if r.ContentLength > 0 && r.ContentLength < freeBytes {
		b = make([]byte, 0, r.ContentLength+1) // one more to see the end
	}
	for {
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > bawn.MaxEventBytes:
			return nil, tooLarge()
		case err == io.EOF:
			return b, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "http", "the request's body came too slowly").WithFix("send it at once")
		case err != nil:
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "http", "the request's body could not be read")
		case len(b) == cap(b):
			old := cap(b)
			size := min(2*old, bawn.MaxEventBytes+1)
			if r.ContentLength > int64(old) {
				size = min(size, int(r.ContentLength)+1)
			}
			if err := s.take(size); err != nil {
				return nil, err
			}
			b = append(make([]byte, 0, size), b...)
			s.give(min(old, int(s.held)-size))
		}
	}
}

func tooLarge() error {
	return bawn.Errorf(bawn.CodeTooLarge, "http", "the request is larger than %d bytes", bawn.MaxEventBytes)
}

// answer sends a result that is complete.
func (t *httpTrigger) answer(w http.ResponseWriter, r *http.Request, c *bawn.Call, result *bawn.Result) {
	if result.FunctionError != "" {
		t.functionFailed(w, r, c, result.Cause)
		return
	}
	p, err := t.read(result)
	if err != nil {
		t.malformed(w, r, c, err)
		return
	}
	if p.status == http.StatusNoContent || p.status == http.StatusNotModified {
		p.body = nil
	} else {
		p.header["Content-Length"] = []string{strconv.Itoa(len(p.body))}
	}
	result.Payload = nil // what is sent may be another copy: one is enough to wait for the caller
	p.writeHead(w, c.Route)
	if r.Method != http.MethodHead && len(p.body) > 0 {
		w.Write(p.body) // an error means that the caller has gone
	}
}

// read makes a reply of a result that is complete.
func (t *httpTrigger) read(result *bawn.Result) (*reply, error) {
	if result.ContentType != bawn.PreludeType {
		return readReply(result.Payload)
	}
	r := bytes.NewReader(result.Payload)
	p, rest, err := readPrelude(r)
	if err != nil {
		return nil, err
	}
	p.body = result.Payload[len(result.Payload)-r.Len()-len(rest):]
	return p, nil
}

// stream sends an answer as it comes.
func (t *httpTrigger) stream(w http.ResponseWriter, r *http.Request, c *bawn.Call, contentType string, body io.Reader) {
	var (
		p     *reply
		first []byte
		err   error
	)
	buf := t.buffers.Get().(*[]byte)
	defer t.buffers.Put(buf)
	if contentType == bawn.PreludeType {
		p, first, err = readPrelude(body)
	} else {
		p = &reply{status: http.StatusOK, header: http.Header{"Content-Type": {cmp.Or(contentType, "application/octet-stream")}}}
		if !isHeaderValue(contentType) {
			p, err = nil, errors.New("the content type of the stream has a character that must not be there")
		}
	}
	if err == nil && len(first) == 0 {
		// As long as nothing was sent, a failure still can be told as one.
		var n int
		n, err = body.Read(*buf)
		first = (*buf)[:n]
	}
	if err != nil && !errors.Is(err, io.EOF) {
		var failed *bawn.StreamError
		var e *bawn.Error
		switch {
		case errors.As(err, &failed):
			t.functionFailed(w, r, c, bawn.CodeFunctionError)
		case errors.As(err, &e):
			t.fail(w, r, c, e)
		default:
			t.malformed(w, r, c, err)
		}
		return
	}
	p.writeHead(w, c.Route)
	if r.Method == http.MethodHead {
		return // all that was asked for; Close ends what would go on
	}
	flush := http.NewResponseController(w)
	for {
		if len(first) > 0 {
			if _, e := w.Write(first); e != nil {
				return // the caller has gone
			}
			if e := flush.Flush(); e != nil {
				return
			}
		}
		if err != nil {
			break
		}
		var n int
		n, err = body.Read(*buf)
		first = (*buf)[:n]
	}
	if !errors.Is(err, io.EOF) {
		// The status is out, so all that is left is not to end properly.
		panic(http.ErrAbortHandler)
	}
}

// functionFailed says that the function failed, not how.
func (t *httpTrigger) functionFailed(w http.ResponseWriter, r *http.Request, c *bawn.Call, cause bawn.Code) {
	status, message := http.StatusBadGateway, "Internal Server Error"
	if cause == bawn.CodeFunctionTimeout {
		status, message = http.StatusGatewayTimeout, "Gateway Timeout"
	}
	writeError(w, r, status, message, c.ID, "")
}

// malformed says the same of an answer that is none. The owner reads why.
func (t *httpTrigger) malformed(w http.ResponseWriter, r *http.Request, c *bawn.Call, why error) {
	t.cfg.Invoker.Note(c, "the answer cannot be sent over HTTP: "+why.Error())
	t.functionFailed(w, r, c, bawn.CodeFunctionError)
}

// fail renders an error. What the caller did wrong is told with the way out;
// of everything else the caller hears its kind in a fixed sentence, and the
// function's owner reads under the id what it was. Control D6.
func (t *httpTrigger) fail(w http.ResponseWriter, r *http.Request, c *bawn.Call, err error) {
	var e *bawn.Error
	code := bawn.ErrorCode(err)
	switch errors.As(err, &e); code {
	case bawn.CodeUnauthenticated:
		w.Header()["Www-Authenticate"] = []string{`Bearer realm="bawn"`}
		writeError(w, r, code.Status(), e.Message, c.ID, e.Fix)
		return
	case bawn.CodeInvalid, bawn.CodeDenied, bawn.CodeTooLarge:
		writeError(w, r, code.Status(), e.Message, c.ID, e.Fix)
		return
	case bawn.CodeNotFound:
		// A function's name and how to list them is for who has a key, and that there
		// is a route must not show by how the answer is dressed.
		maps.DeleteFunc(w.Header(), func(name string, _ []string) bool { return name != "X-Request-Id" && name != "Connection" })
		writeError(w, r, code.Status(), "Not Found", c.ID, "")
		return
	}
	if r.Context().Err() == nil && !invoke.Quiet(err) { // otherwise all that went wrong is that the caller left
		t.explain(c, e, err)
	}
	switch code {
	case bawn.CodeThrottled, bawn.CodeUnavailable:
		if invoke.Crowded(err) {
			t.linger(r)
		}
		w.Header()["Retry-After"] = []string{retryAfter(err)}
		setRate(w.Header(), &c.Rate)
		writeError(w, r, code.Status(), http.StatusText(code.Status()), c.ID, "")
	case bawn.CodeFunctionError, bawn.CodeFunctionTimeout:
		t.functionFailed(w, r, c, code)
	default:
		writeError(w, r, http.StatusInternalServerError, "Internal Server Error", c.ID, "")
	}
}

// explain tells the function's owner why a call was not answered, and the
// operator what is wrong with the node. e is the *bawn.Error in err, or nil.
func (t *httpTrigger) explain(c *bawn.Call, e *bawn.Error, err error) {
	if e == nil || e.Code.Status() == http.StatusInternalServerError || e.Err != nil && e.Code != bawn.CodeThrottled && !invoke.Crowded(err) {
		t.cfg.Errors.Error("a call failed", "invocation", c.ID, "function", c.Target.String(), "err", err)
	}
	if c.Principal.Kind == "" {
		return // refused before it was known who calls: nothing of the function's
	}
	text := "the call was not answered: an internal error"
	if e != nil {
		text = "the call was not answered: " + e.Message
		if e.Fix != "" {
			text += "; " + e.Fix
		}
	}
	t.cfg.Invoker.Note(c, text)
}

// Unavailable answers a request that came before calls can be served, as every
// other that the node cannot serve now.
func Unavailable(w http.ResponseWriter, r *http.Request) {
	id := bawn.NewID()
	w.Header()["X-Request-Id"] = []string{id}
	w.Header()["Retry-After"] = []string{"1"}
	writeError(w, r, http.StatusServiceUnavailable, http.StatusText(http.StatusServiceUnavailable), id, "")
}

// writeError sends an error document.
func writeError(w http.ResponseWriter, r *http.Request, status int, message, id, fix string) {
	b := append(make([]byte, 0, 256), `{"message":`...)
	b = appendString(b, message)
	b = append(b, `,"id":`...)
	b = appendString(b, id)
	if fix != "" {
		b = append(b, `,"fix":`...)
		b = appendString(b, fix)
	}
	b = append(b, '}', '\n')
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(b) // an error means that the caller has gone
	}
}
