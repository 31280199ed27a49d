package api

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

const (
	maxLines     = 10000
	defaultLines = 1000
	// How often a quiet stream shows that it lives.
	heartbeat = 15 * time.Second
	// How often the credential of a quiet stream is looked at again.
	recheck      = 100 * time.Millisecond
	flushTimeout = 2 * time.Second
)

// StreamInput says which lines, and whether to go on with new ones.
type StreamInput struct {
	Invocation string    `query:"invocation" maxLength:"64" doc:"only of this invocation"`
	Since      time.Time `query:"since" doc:"only what is newer"`
	Limit      int       `query:"limit" minimum:"0" maximum:"10000" doc:"the newest so many; 1000 if there is none"`
	Follow     bool      `query:"follow" doc:"go on with what comes"`
}

func (s *StreamInput) limit() int {
	if s.Limit == 0 {
		return defaultLines
	}
	return min(s.Limit, maxLines)
}

// stream answers with one line of JSON for each value that read delivers. If
// read fails before the first, that is an ordinary error answer.
func stream[T any](a *api, ctx context.Context, read func(ctx context.Context, fn func(T) error) error) (*huma.StreamResponse, error) {
	if a.streams.Add(1) > maxStreams {
		a.streams.Add(-1)
		return nil, bawn.Errorf(bawn.CodeThrottled, "api.stream", "%d streams are open already", maxStreams).WithFix("end one, or ask without follow")
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer a.streams.Add(-1)
		r, w := humago.Unwrap(hctx)
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(a.Stopping, cancel)()
		out := &lineWriter{w: w, rc: http.NewResponseController(w)}
		// The client may go while nothing happens; only writing finds out.
		tick := time.NewTicker(recheck)
		defer tick.Stop()
		// A credential that is revoked or ends takes its streams with it.
		valid := func() error {
			if _, ok := a.Identity.Current(principal(r.Context())); !ok {
				return bawn.Errorf(bawn.CodeUnauthenticated, "api.stream", "the credential is no longer valid").WithFix("ask again with one that is")
			}
			return nil
		}
		var ended error // why the key is no good any more; written by beat
		var beat sync.WaitGroup
		beat.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					if ended = valid(); ended != nil {
						cancel()
						return
					}
					if n%int(heartbeat/recheck) == 0 && out.write(nil) != nil {
						cancel()
					}
				}
			}
		})
		err := read(ctx, func(v T) error {
			if err := valid(); err != nil {
				return err
			}
			data, err := json.Marshal(v)
			if err != nil {
				return err
			}
			return out.write(data)
		})
		cancel()
		beat.Wait()
		switch {
		case err == nil:
			out.begin()
		case r.Context().Err() != nil:
		case ended != nil:
			out.fail(a.problem(r.Context(), ended))
		case a.Stopping.Err() != nil:
			// Nobody's fault, and what came is not all there is.
			out.fail(&Problem{
				Code: bawn.CodeUnavailable, Message: "the node is stopping", Fix: "ask again when it is back",
				ID: requestID(r.Context()), status: http.StatusServiceUnavailable,
			})
		default:
			out.fail(a.problem(r.Context(), err))
		}
	}}, nil
}

// lineWriter writes lines, each at once. It is safe for concurrent use.
type lineWriter struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func (l *lineWriter) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *lineWriter) write(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	if _, err := l.w.Write(append(line, '\n')); err != nil {
		return err
	}
	return l.rc.Flush()
}

// fail ends the answer with p: as an ordinary error answer if nothing was
// written yet, as its last line otherwise. It is called when nobody writes.
func (l *lineWriter) fail(p *Problem) {
	if !l.begun {
		p.write(l.w)
		return
	}
	data, _ := json.Marshal(map[string]*Problem{"error": p})
	l.write(data)
}

type logsInput struct {
	NameInput
	StreamInput
}

func (a *api) logs(ctx context.Context, in *logsInput) (*huma.StreamResponse, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	p := principal(ctx)
	q := control.LogQuery{Tenant: p.Tenant, Function: in.Name, Invocation: in.Invocation, Since: in.Since, Limit: in.limit(), Follow: in.Follow}
	return stream(a, ctx, func(ctx context.Context, fn func(bawn.LogLine) error) error {
		// Lines are written in batches: whoever has just seen an answer wants to
		// see its lines too. If that fails, older lines are better than none.
		flush, cancel := context.WithTimeout(ctx, flushTimeout)
		err := a.Flush(flush)
		cancel()
		if err != nil {
			a.Log.DebugContext(ctx, "flushing logs", "error", err)
		}
		return a.Control.LogLines(ctx, p, q, fn)
	})
}

type eventsInput struct {
	Function string            `query:"function" maxLength:"63" doc:"only of this function"`
	Kind     []bawn.RecordKind `query:"kind,explode" maxItems:"8" enum:"decision,change,outcome,blocked,node" doc:"only these kinds"`
	StreamInput
}

func (a *api) events(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	if in.Function != "" {
		if _, err := ref(ctx, in.Function, ""); err != nil {
			return nil, err
		}
	}
	p := principal(ctx)
	q := control.EventQuery{Tenant: p.Tenant, Function: in.Function, Invocation: in.Invocation, Kinds: in.Kind, Since: in.Since, Limit: in.limit(), Follow: in.Follow}
	return stream(a, ctx, func(ctx context.Context, fn func(bawn.Record) error) error {
		return a.Control.Events(ctx, p, q, fn)
	})
}
