package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"bawn.dev/bawn"
)

type invokeInput struct {
	RefInput
	BodyInput
	Trace string `header:"X-Amzn-Trace-Id" maxLength:"1024" doc:"of the invocation that calls, as it was given there; its count of calls goes on"`
}

// invoke calls a function. The answer is what the function answered, byte for
// byte; a function that failed answers 200 with X-Bawn-Function-Error, since
// the call itself was well.
func (a *api) invoke(ctx context.Context, in *invokeInput) (*huma.StreamResponse, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	event, err := io.ReadAll(in.body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, bawn.Errorf(bawn.CodeTooLarge, "api.invoke", "the event has more than %d bytes", tooLarge.Limit).
				WithFix("send less, or put the data where the function can fetch it")
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "api.invoke", "the event came too slowly").WithFix("send it at once")
		}
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "api.invoke", "the event did not arrive whole")
	}
	if len(event) == 0 {
		event = []byte("{}")
	}
	if !json.Valid(event) || !utf8.Valid(event) {
		return nil, bawn.Errorf(bawn.CodeInvalid, "api.invoke", "the event is not JSON in UTF-8").
			WithFix("send a JSON value; an empty body stands for {}")
	}
	who := callerOf(ctx)
	call := &bawn.Call{
		ID: bawn.NewID(), Trigger: "api", Target: r, Source: who.source, Principal: who.Principal,
		Event: event, At: a.Now(),
	}
	invoker, err := a.Invoker(ctx)
	if err != nil {
		return nil, err
	}
	if err := invoker.Trace(call, []string{in.Trace}); err != nil {
		return nil, err
	}
	res, err := invoker.Invoke(ctx, call)
	if bawn.ErrorCode(err) == bawn.CodeNotFound {
		// The caller is known and named the function: the error may as well.
		what := "function " + strconv.Quote(r.Function)
		if r.Qualifier != "" {
			what += " with the version or alias " + strconv.Quote(r.Qualifier)
		}
		return nil, bawn.Wrap(err, bawn.CodeNotFound, "api.invoke", "there is no %s", what).WithFix("`bawn ls` lists the functions, `bawn show` one's versions")
	}
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		a.answer(ctx, w, call.ID, res)
	}}, nil
}

// answer writes a result.
func (a *api) answer(ctx context.Context, w http.ResponseWriter, id string, res *bawn.Result) {
	h := w.Header()
	h.Set("X-Bawn-Invocation", id)
	h.Set("X-Bawn-Version", strconv.Itoa(res.Version))
	if res.ContentType != "" {
		h.Set("Content-Type", res.ContentType)
	} else {
		h.Set("Content-Type", "application/json")
	}
	if res.FunctionError != "" {
		h.Set("X-Bawn-Function-Error", res.FunctionError)
	}
	if res.Stream == nil {
		h.Set("Content-Length", strconv.Itoa(len(res.Payload)))
		w.Write(res.Payload)
		return
	}
	defer res.Stream.Close()
	h.Set("Trailer", "X-Bawn-Function-Error")
	w.WriteHeader(http.StatusOK)
	if err := flushCopy(w, res.Stream); err != nil {
		var failed *bawn.StreamError
		if errors.As(err, &failed) {
			h.Set("X-Bawn-Function-Error", "Unhandled")
			return
		}
		a.Log.DebugContext(ctx, "stream cut", "invocation", id, "error", err)
		panic(http.ErrAbortHandler) // the caller must not take half for the whole
	}
}

// flushCopy copies r to w and passes on each piece as it comes.
func flushCopy(w http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if ferr := rc.Flush(); ferr != nil {
				return ferr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
