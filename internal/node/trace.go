package node

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

// tracer sends spans. The trace of a call has the invocation's id for its own,
// so that log, evidence and trace are found by one word. What a caller says of
// its trace is only ever a link: a stranger must not decide what this node's
// traces are called or whether they are kept.
//
// A nil tracer does nothing.
type tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// otlpTimeout bounds one delivery of traces.
const otlpTimeout = 10 * time.Second

// A dialer is a net.Dialer.DialContext.
type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

// openTracer makes a tracer for an OTLP/HTTP endpoint; "" gives nil.
func openTracer(ctx context.Context, endpoint string, dial dialer, version, node string, log *slog.Logger) (*tracer, error) {
	if endpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "node.trace", "the OTLP endpoint %.200q is not a URL", endpoint).
			WithFix("give it as http://HOST:4318 or https://HOST:4318")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithHTTPClient(&http.Client{
		Timeout:   otlpTimeout,
		Transport: &http.Transport{DialContext: dial, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute},
	}))
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "node.trace", "traces cannot be sent to %s", u.Host)
	}
	return newTracer(sdk.NewBatchSpanProcessor(&loggedExporter{exporter, log}), version, node), nil
}

func newTracer(p sdk.SpanProcessor, version, node string) *tracer {
	provider := sdk.NewTracerProvider(
		sdk.WithSpanProcessor(p), sdk.WithIDGenerator(idGenerator{}),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "bawn"), attribute.String("service.version", version), attribute.String("service.instance.id", node),
		)),
	)
	return &tracer{provider, provider.Tracer("bawn.dev/bawn")}
}

// loggedExporter tells the node's log of spans that could not be sent, which
// otherwise would go to a global handler.
type loggedExporter struct {
	sdk.SpanExporter
	log *slog.Logger
}

// ExportSpans sends spans.
func (e *loggedExporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil && !errors.Is(err, context.Canceled) {
		e.log.Warn("traces could not be sent", "spans", len(spans), "error", err)
	}
	return nil
}

// idGenerator takes the ids of a root span from the context, where they were
// derived from the invocation.
type idGenerator struct{}

type rootKey struct{}

// NewIDs returns the ids of a root span.
func (idGenerator) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if sc, ok := ctx.Value(rootKey{}).(trace.SpanContext); ok {
		return sc.TraceID(), sc.SpanID()
	}
	t, _ := derive(bawn.NewID())
	return t, idGenerator{}.NewSpanID(ctx, t)
}

// NewSpanID returns a random id.
func (idGenerator) NewSpanID(context.Context, trace.TraceID) trace.SpanID {
	t, _ := derive(bawn.NewID())
	return trace.SpanID(t[:8])
}

// derive returns the ids of an invocation's trace and of the span at its root.
func derive(invocation string) (t trace.TraceID, s trace.SpanID) {
	b, err := hex.DecodeString(strings.ReplaceAll(invocation, "-", ""))
	if err != nil || len(b) != len(t) {
		return t, s
	}
	copy(t[:], b)
	copy(s[:], b[8:])
	return t, s
}

// wrap makes a root span of each request on the public listener.
func (t *tracer) wrap(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		next.ServeHTTP(w, r)
		tid, sid := derive(w.Header().Get("X-Request-Id"))
		if !tid.IsValid() {
			return
		}
		sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: tid, SpanID: sid, TraceFlags: trace.FlagsSampled})
		opts := []trace.SpanStartOption{
			trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindServer), trace.WithNewRoot(),
			trace.WithAttributes(attribute.String("http.request.method", knownMethod(r.Method))),
		}
		theirs := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(r.Header)))
		if theirs.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: theirs}))
		}
		_, span := t.tracer.Start(context.WithValue(context.Background(), rootKey{}, sc), "http", opts...)
		span.End()
	})
}

func knownMethod(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return m
	}
	return "_OTHER"
}

// observe makes the spans of a call that is over: admit, from the trigger's
// hand until an instance had it, and run.
func (t *tracer) observe(o invoke.Observation) {
	if t == nil {
		return
	}
	end := time.Now()
	began := end.Add(-o.Duration)
	tid, sid := derive(o.Call.ID)
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: tid, SpanID: sid, TraceFlags: trace.FlagsSampled, Remote: true})
	ctx := trace.ContextWithSpanContext(context.Background(), parent)
	if o.Call.Trigger != "http" { // there is no request of ours above it
		root, span := t.tracer.Start(context.WithValue(context.Background(), rootKey{}, parent), o.Call.Trigger, trace.WithTimestamp(began), trace.WithNewRoot())
		ctx = root
		defer span.End(trace.WithTimestamp(end))
	}
	attrs := []attribute.KeyValue{attribute.String("faas.invocation_id", o.Call.ID), attribute.String("faas.trigger", o.Call.Trigger)}
	if v := o.Version; v != nil {
		attrs = append(attrs, attribute.String("faas.name", v.Function), attribute.Int("faas.version", v.Number), attribute.String("bawn.tenant", v.Tenant))
	}
	ran := time.Duration(0)
	if o.Result != nil {
		ran = min(o.Result.Usage.Duration+o.Result.Usage.Init, o.Duration)
	}
	handed := end.Add(-ran)
	_, admit := t.tracer.Start(ctx, "admit", trace.WithTimestamp(began), trace.WithAttributes(attrs...))
	if o.Err != nil {
		admit.SetStatus(codes.Error, string(bawn.ErrorCode(o.Err)))
	}
	admit.End(trace.WithTimestamp(handed))
	if o.Result == nil {
		return
	}
	_, run := t.tracer.Start(ctx, "run", trace.WithTimestamp(handed), trace.WithAttributes(append(attrs, attribute.Bool("faas.coldstart", o.Result.Usage.Cold))...))
	if o.Result.FunctionError != "" {
		run.SetStatus(codes.Error, string(o.Result.Cause))
	}
	run.End(trace.WithTimestamp(end))
}

// close sends what is left.
func (t *tracer) close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}
