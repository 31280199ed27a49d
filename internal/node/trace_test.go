package node

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

func TestSpansOfACall(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tr := newTracer(rec, "test", "node")
	call := &bawn.Call{ID: bawn.NewID(), Trigger: "http"}
	h := tr.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", call.ID)
		tr.observe(invoke.Observation{
			Call: call, Version: &bawn.Version{Function: "f", Number: 3}, Duration: 10 * time.Millisecond,
			Result: &bawn.Result{FunctionError: "Unhandled", Cause: bawn.CodeFunctionError, Usage: bawn.Usage{Cold: true, Duration: 4 * time.Millisecond}},
		})
	}))
	req := httptest.NewRequest("GET", "/", nil)
	const theirs = "0af7651916cd43dd8448eb211c80319c"
	req.Header.Set("traceparent", "00-"+theirs+"-b7ad6b7169203331-01")
	h.ServeHTTP(httptest.NewRecorder(), req)

	want := strings.ReplaceAll(call.ID, "-", "")
	spans := map[string]sdk.ReadOnlySpan{}
	for _, s := range rec.Ended() {
		spans[s.Name()] = s
		if got := s.SpanContext().TraceID().String(); got != want {
			t.Errorf("%s is in the trace %s, want the invocation's %s", s.Name(), got, want)
		}
	}
	root, admit, run := spans["http"], spans["admit"], spans["run"]
	if root == nil || admit == nil || run == nil || len(spans) != 3 {
		t.Fatalf("spans %v", spans)
	}
	if root.Parent().IsValid() || len(root.Links()) != 1 || root.Links()[0].SpanContext.TraceID().String() != theirs {
		t.Errorf("the caller's trace must be a link and nothing more: parent %v, links %v", root.Parent(), root.Links())
	}
	for _, s := range []sdk.ReadOnlySpan{admit, run} {
		if s.Parent().SpanID() != root.SpanContext().SpanID() {
			t.Errorf("%s is not below the request", s.Name())
		}
	}
	if got := run.EndTime().Sub(run.StartTime()); got != 4*time.Millisecond || !run.StartTime().Equal(admit.EndTime()) {
		t.Errorf("run took %v, admit ended %v, run began %v", got, admit.EndTime(), run.StartTime())
	}
	if run.Status().Description != "function_error" {
		t.Errorf("status %v", run.Status())
	}
}

func TestSpansOfACallThroughTheAPI(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tr := newTracer(rec, "test", "node")
	tr.observe(invoke.Observation{Call: &bawn.Call{ID: bawn.NewID(), Trigger: "api"}, Err: bawn.Errorf(bawn.CodeThrottled, "x", "full")})
	names := map[string]bool{}
	for _, s := range rec.Ended() {
		names[s.Name()] = true
	}
	if !names["api"] || !names["admit"] || names["run"] {
		t.Errorf("spans %v", names)
	}
}

func TestTracesAreOffUnlessAsked(t *testing.T) {
	tr, err := openTracer(t.Context(), "", nil, "v", "n", nil)
	if tr != nil || err != nil {
		t.Fatalf("%v, %v", tr, err)
	}
	tr.observe(invoke.Observation{}) // a nil tracer does nothing
	if err := tr.close(t.Context()); err != nil {
		t.Error(err)
	}
	h := http.NotFoundHandler()
	if _, ok := tr.wrap(h).(http.HandlerFunc); !ok {
		t.Error("wrapped without traces")
	}
}

func TestTracesAreSent(t *testing.T) {
	got := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Method + " " + r.URL.Path }))
	defer srv.Close()
	cfg := config(t)
	tr, err := openTracer(t.Context(), srv.URL, new(net.Dialer).DialContext, "v", "n", cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	tr.observe(invoke.Observation{Call: &bawn.Call{ID: bawn.NewID(), Trigger: "api"}})
	if err := tr.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "POST /v1/traces" {
		t.Errorf("sent %s", s)
	}
}
