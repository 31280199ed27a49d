package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"bawn.dev/bawn"
)

// Problem is the body of every error answer. It says what went wrong and what
// to do about it, and nothing of the node's inside: that is in the node's log,
// under ID.
type Problem struct {
	Code    bawn.Code `json:"code" enum:"invalid,unauthenticated,denied,not_found,conflict,too_large,unprocessable,throttled,internal,function_error,function_timeout,unavailable" doc:"what kind of failure it is; codes are added to and never change their meaning"`
	Message string    `json:"message" doc:"what went wrong, in one or more lines"`
	Fix     string    `json:"fix,omitempty" doc:"the way out"`
	ID      string    `json:"id" doc:"of this request, also in the header X-Request-Id and in the node's log"`

	status int
	after  time.Duration // when it is worth to try again; 0: in a second
}

// Error makes Problem an error, as huma wants it.
func (p *Problem) Error() string { return p.Message }

// GetStatus returns the HTTP status code of the answer.
func (p *Problem) GetStatus() int { return p.status }

// ContentType returns the media type of RFC 9457, whose members are optional.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders returns the headers that go with the answer.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	switch p.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="bawn"`)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.FormatInt(max(1, int64((p.after+time.Second-1)/time.Second)), 10))
	}
	return h
}

// problem turns an error into the answer for it, and logs what the answer
// leaves out.
func (a *api) problem(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	p = &Problem{Code: bawn.CodeInternal, Message: "the node failed to do this", Fix: "its log has the cause under this id", ID: requestID(ctx)}
	var be *bawn.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		p.Code, p.Message, p.Fix = bawn.CodeTooLarge, "the body is too large", "docs/limits.md lists every limit"
	case errors.As(err, &be):
		p.Code, p.Message, p.Fix, p.after = be.Code, be.Message, be.Fix, be.RetryAfter
	case ctx.Err() != nil:
		p.Code, p.Message, p.Fix = bawn.CodeUnavailable, "the request ended before it was answered", ""
	}
	p.status = p.Code.Status()
	level := slog.LevelDebug
	if p.status >= 500 {
		level = slog.LevelError
	}
	a.Log.Log(ctx, level, "request refused", "id", p.ID, "code", p.Code, "error", err)
	return p
}

// rewrite gives huma's own refusals (a body that does not fit the schema, a
// malformed parameter) the shape of a [Problem]. It is a huma.Transformer.
func (a *api) rewrite(ctx huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := &Problem{Code: codeOf(m.Status), Message: m.Detail, ID: requestID(ctx.Context()), status: m.Status}
	if p.Code == bawn.CodeInternal {
		a.Log.ErrorContext(ctx.Context(), "request failed", "id", p.ID, "error", m.Detail, "details", m.Errors)
		p.Message, p.Fix = "the node failed to do this", "its log has the cause under this id"
		return p, nil
	}
	// The value itself is not echoed: it may be large, or a secret.
	var lines []string
	for i, e := range m.Errors {
		if i == 10 {
			lines = append(lines, "…")
			break
		}
		line := e.Message
		if e.Location != "" {
			line = e.Location + ": " + line
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		p.Message += ": " + strings.Join(lines, "; ")
	}
	if len(p.Message) > 4096 {
		p.Message = strings.ToValidUTF8(p.Message[:4096], "") + "…"
	}
	p.Fix = "the API is described at /openapi.json"
	return p, nil
}

func codeOf(status int) bawn.Code {
	switch status {
	case 401:
		return bawn.CodeUnauthenticated
	case 403:
		return bawn.CodeDenied
	case 404, 405:
		return bawn.CodeNotFound
	case 413:
		return bawn.CodeTooLarge
	case 422:
		return bawn.CodeUnprocessable
	}
	if status >= 500 {
		return bawn.CodeInternal
	}
	return bawn.CodeInvalid
}

// write answers with p where huma is not involved.
func (p *Problem) write(w http.ResponseWriter) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.status)
	json.NewEncoder(w).Encode(p)
}
