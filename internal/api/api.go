// Package api is the control API: JSON over HTTP on the admin listener. It
// turns requests into calls of package control and package invoke, and their
// answers and errors back; it decides nothing itself. routes.go lists every
// route; docs/reference/openapi.json is generated from that list.
//
// Every route but GET /v1/status and GET /v1/login asks for a credential. The library that
// serves and describes the routes is not seen outside this package.
package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/invoke"
)

// Config says what the API stands on. All fields but Extra are
// required.
type Config struct {
	Control  *control.Control
	Identity *identity.Authenticator
	Log      *slog.Logger
	// TrustDomain is the SPIFFE trust domain of the node's functions.
	TrustDomain string
	Now         func() time.Time

	// Status says how the node is. It is asked without a credential too; then
	// only Ready and Message are told.
	Status func() Status
	// Invoker returns what runs calls. It waits while the node is starting, as do
	// Doctor and Inspect.
	Invoker func(context.Context) (*invoke.Invoker, error)
	// Doctor returns what the host was found able to enforce and to run.
	Doctor func(context.Context) (Doctor, error)
	// Inspect reads from the kernel what it enforces for a version's instances.
	// If there is none, one is started where p may have that done.
	Inspect func(ctx context.Context, p bawn.Principal, v *bawn.Version) ([]bawn.Instance, error)
	// Authorize decides and records whether p may read the node's own state.
	Authorize func(ctx context.Context, p bawn.Principal, action string) error
	// Refused records a request without a good credential.
	Refused func(ctx context.Context, source, reason string)
	// Flush makes readable what functions have written until now.
	Flush func(context.Context) error
	// Stopping ends when the node begins to stop: streams that follow end then,
	// so that they do not keep it from stopping.
	Stopping context.Context
	// Extra are further routes, by mux pattern, for who may read the node's own
	// state: its metrics. They are not part of the described API.
	Extra map[string]http.Handler
}

// Bounds of one request.
const (
	maxJSONBytes = 1 << 20
	bodyTimeout  = 30 * time.Second // for a JSON body to arrive
	maxStreams   = 256              // log and event streams at one time
)

type api struct {
	Config
	streams atomic.Int32
}

// New returns the handler of the control API.
func New(cfg Config) http.Handler {
	a := &api{Config: cfg}
	mux := http.NewServeMux()
	h := a.build(mux)
	doc, err := document(h)
	if err != nil {
		// The document is made of this package's own types: only a defect that
		// every test would meet can get here.
		panic(err)
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(doc)
	})
	for pattern, extra := range cfg.Extra {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := a.Authorize(r.Context(), principal(r.Context()), "metrics"); err != nil {
				a.problem(r.Context(), err).write(w)
				return
			}
			extra.ServeHTTP(w, r)
		})
	}
	return a.recovered(a.identified(a.authenticated(a.routed(mux))))
}

// build registers every route on mux.
func (a *api) build(mux *http.ServeMux) huma.API {
	h := humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Bawn control API", Version: "1",
				Description: "Everything that the command line does. Errors have one shape, Problem, with a code that never changes its meaning.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer", Description: "An API key: bawn key create"}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{a.rewrite},
	})
	for _, r := range a.routes() {
		r.register(h)
	}
	return h
}

type contextKey int

const (
	keyRequest contextKey = iota
	keyPrincipal
)

// requestID returns the id that this request was given.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(keyRequest).(string)
	return id
}

// caller is who makes the request.
type caller struct {
	bawn.Principal
	source string
}

// principal returns who makes the request. Every handler but the one of
// status runs behind authenticated.
func principal(ctx context.Context) bawn.Principal { return callerOf(ctx).Principal }

func callerOf(ctx context.Context) caller {
	c, ok := ctx.Value(keyPrincipal).(caller)
	if !ok {
		return caller{Principal: bawn.Anonymous()}
	}
	return c
}

// recovered answers 500 if a handler panics, instead of cutting the line.
func (a *api) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler {
				panic(v)
			}
			a.Log.ErrorContext(r.Context(), "panic in a request", "id", w.Header().Get("X-Request-Id"), "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			(&Problem{
				Code: bawn.CodeInternal, Message: "the node failed to do this", Fix: "its log has the cause under this id",
				ID: w.Header().Get("X-Request-Id"), status: http.StatusInternalServerError,
			}).write(w)
		}()
		next.ServeHTTP(w, r)
	})
}

// identified gives the request an id and sets what holds for every answer.
func (a *api) identified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := bawn.NewID()
		h := w.Header()
		h.Set("X-Request-Id", id)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyRequest, id)))
	})
}

// authenticated finds out who asks. Nothing behind it, not even whether a
// route exists, is told to a caller without a credential, except the status and
// where to log in.
func (a *api) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		source, _, _ := net.SplitHostPort(r.RemoteAddr)
		shown, err := credential(r)
		var p bawn.Principal
		if err == nil && !shown.Empty() {
			p, err = a.Identity.Authenticate(r.Context(), shown)
		}
		known := err == nil && !shown.Empty()
		switch {
		case known:
		case open(r.URL.Path):
			next.ServeHTTP(w, r)
			return
		case err != nil:
			a.Refused(r.Context(), source, "bad credential")
			a.problem(r.Context(), err).write(w)
			return
		default:
			a.Refused(r.Context(), source, "no credential")
			a.problem(r.Context(), bawn.Errorf(bawn.CodeUnauthenticated, "api", "this needs a credential").
				WithFix("send a key as Authorization: Bearer KEY; `bawn key create` makes one, `bawn login` another")).write(w)
			return
		}
		ctx := context.WithValue(r.Context(), keyPrincipal, caller{p, source})
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// open reports whether strangers may ask for path.
func open(path string) bool { return path == "/v1/status" || path == "/v1/login" }

// credential returns what a request shows of who makes it.
func credential(r *http.Request) (identity.Credential, error) {
	var c identity.Credential
	if r.TLS != nil {
		c.Certificates = r.TLS.PeerCertificates
	}
	switch all := r.Header["Authorization"]; len(all) {
	case 0:
	case 1:
		scheme, bearer, _ := strings.Cut(all[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || bearer == "" {
			return c, bawn.Errorf(bawn.CodeUnauthenticated, "api", "the Authorization header is not a bearer").
				WithFix("send it as Authorization: Bearer KEY")
		}
		c.Bearer = bearer
	default:
		return c, bawn.Errorf(bawn.CodeUnauthenticated, "api", "there is more than one Authorization header").WithFix("send one")
	}
	return c, nil
}

// routed bounds the body and answers for paths and methods that no route has.
func (a *api) routed(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern == "" {
			var probe probeWriter
			h.ServeHTTP(&probe, r)
			p := &Problem{Code: bawn.CodeNotFound, Message: "there is no such route", Fix: "the API is described at /openapi.json", ID: requestID(r.Context()), status: http.StatusNotFound}
			if probe.status == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", probe.Header().Get("Allow"))
				p.Message, p.status = "this route has no method "+method(r.Method), http.StatusMethodNotAllowed
			}
			p.write(w)
			return
		}
		limit := int64(maxJSONBytes)
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/artifacts/"):
			limit = bawn.MaxPackageBytes
		case strings.HasSuffix(r.URL.Path, "/invocations"):
			limit = bawn.MaxEventBytes
		}
		if r.ContentLength > limit {
			a.problem(r.Context(), bawn.Errorf(bawn.CodeTooLarge, "api", "the body has %d bytes, at most %d are allowed here", r.ContentLength, limit).
				WithFix("docs/limits.md lists every limit")).write(w)
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		mux.ServeHTTP(w, r)
	})
}

// method keeps a request's method from carrying anything else into a message.
func method(m string) string {
	if len(m) > 16 || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "of that name"
	}
	return m
}

// probeWriter keeps the status and headers that a handler would answer with.
type probeWriter struct {
	header http.Header
	status int
}

func (p *probeWriter) Header() http.Header {
	if p.header == nil {
		p.header = http.Header{}
	}
	return p.header
}
func (p *probeWriter) WriteHeader(status int)      { p.status = status }
func (p *probeWriter) Write(b []byte) (int, error) { return len(b), nil }
