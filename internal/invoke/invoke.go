// Package invoke tells the story of a call, whatever trigger it came from:
// Admit, Run, Release, Settle, Append. There is one way in and one way out.
package invoke

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/egress"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/ingress"
	"bawn.dev/bawn/internal/interior"
)

// Config says what an [Invoker] works with. Gate, Pool and Evidence are needed.
type Config struct {
	Gate     *ingress.Gate
	Pool     *interior.Pool
	Evidence *evidence.Log
	// Release is asked what of an answer may leave. Nil holds answers against the
	// platform's bounds alone.
	Release *egress.Releaser
	// Log keeps one line of a function's log for so long. It must not block.
	Log func(line bawn.LogLine, retention time.Duration)
	// Observe hears of every call when it is over, refused ones included; for a
	// stream that is after its last byte. It must not block.
	Observe func(Observation)
}

// Observation is what metrics and traces may know of a call that is over.
type Observation struct {
	Call     *bawn.Call
	Version  *bawn.Version // nil if the call was refused before one was known
	Result   *bawn.Result  // nil with Err
	Err      error
	Duration time.Duration // from the trigger's hand to the end of the answer
}

// Invoker runs calls. Safe for concurrent use.
type Invoker struct {
	cfg Config
}

// New returns an invoker.
func New(cfg Config) *Invoker {
	if cfg.Log == nil {
		cfg.Log = func(bawn.LogLine, time.Duration) {}
	}
	if cfg.Release == nil {
		cfg.Release = egress.NewReleaser(nil)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Observation) {}
	}
	return &Invoker{cfg: cfg}
}

// Match is the route that a request led to.
type Match = ingress.Match

// Match returns the route for a Host, a method and a path as it came, still
// escaped. Its errors are CodeInvalid for a path with more than one meaning, and
// CodeNotFound.
func (i *Invoker) Match(host, method, rawPath string) (Match, error) {
	return i.cfg.Gate.Match(host, method, rawPath)
}

// Own reports whether a request's Host is one of the node's own names.
func (i *Invoker) Own(host string) bool { return i.cfg.Gate.Own(host) }

// Flood holds the address that a request comes from to the node's rate; see
// [ingress.Gate.Flood].
func (i *Invoker) Flood(ctx context.Context, c *bawn.Call) error {
	err := i.cfg.Gate.Flood(ctx, c)
	if err != nil {
		i.cfg.Observe(Observation{Call: c, Err: err})
	}
	return err
}

// Room returns why a body need not be read; see [ingress.Gate.Room].
func (i *Invoker) Room(ctx context.Context, c *bawn.Call) error {
	err := i.cfg.Gate.Room(ctx, c)
	if err != nil {
		i.cfg.Observe(Observation{Call: c, Err: err})
	}
	return err
}

// Ours reads an Authorization header; see [ingress.Gate.Ours].
func (i *Invoker) Ours(route *bawn.Route, authorization string) (bearer string, signed bool) {
	return i.cfg.Gate.Ours(route, authorization)
}

// Shows reports whether the caller of c shows anything by which it could be known.
func (i *Invoker) Shows(c *bawn.Call) bool { return i.cfg.Gate.Shows(c) }

// Trace gives the call its trace before an event is made of it. header is what
// the request has of X-Amzn-Trace-Id; see [ingress.Gate.Trace].
func (i *Invoker) Trace(c *bawn.Call, header []string) error { return i.cfg.Gate.Trace(c, header) }

// Known returns nil if the caller of c shows a credential that could be good, and
// otherwise why it is not. It decides nothing but whether a request is worth
// reading: Invoke looks again.
func (i *Invoker) Known(ctx context.Context, c *bawn.Call) error { return i.cfg.Gate.Known(ctx, c) }

// Identify finds out who the caller of c is, for a trigger that must know before
// it can name the target. It sets c.Principal, or returns why the credential is
// not good; a signed request must be asked about once, with its body's digest.
func (i *Invoker) Identify(ctx context.Context, c *bawn.Call) error {
	return i.cfg.Gate.Identify(ctx, c)
}

// Refuse records that a function's call came to nothing before the gate was asked.
func (i *Invoker) Refuse(ctx context.Context, c *bawn.Call, reason string) error {
	i.explain(c, bawn.Errorf(bawn.CodeDenied, "invoke", "%s", reason))
	return i.cfg.Gate.Refuse(ctx, c, reason)
}

// Invoke runs a call. What the function did wrong is a Result with
// FunctionError; an error is a *bawn.Error and says why there is no answer. The
// caller must read Result.Stream to its end or close it.
//
// ctx bounds the wait for an instance. A call that an instance has begun goes on
// when ctx ends, and Invoke returns when it is over: what a function has done is
// recorded, whether or not anybody still listens.
func (i *Invoker) Invoke(ctx context.Context, c *bawn.Call) (*bawn.Result, error) {
	began := time.Now()

	admission, err := i.admit(ctx, c, began)
	if err != nil {
		return nil, err
	}
	s := story{Invoker: i, call: c, admission: admission, began: began}

	result, err := i.cfg.Pool.Run(ctx, admission.Version, c)
	if err == nil {
		s.ran = &result.Usage
		err = i.cfg.Release.Release(admission.Version, result)
	}
	if err != nil {
		return nil, s.end(ctx, nil, err)
	}
	if result.Stream != nil {
		result.Stream = &stream{ReadCloser: result.Stream, story: s, ctx: context.WithoutCancel(ctx), result: result}
		return result, nil
	}
	if err := s.end(ctx, result, nil); err != nil {
		return nil, err
	}
	return result, nil
}

// Try decides whether the call may run, records that, and runs nothing. The
// errors are those of Invoke.
func (i *Invoker) Try(ctx context.Context, c *bawn.Call) error {
	began := time.Now()
	admission, err := i.admit(ctx, c, began)
	if err != nil {
		return err
	}
	s := story{Invoker: i, call: c, admission: admission, began: began, tried: true}
	return s.end(ctx, &bawn.Result{Version: admission.Version.Number}, nil)
}

func (i *Invoker) admit(ctx context.Context, c *bawn.Call, began time.Time) (*ingress.Admission, error) {
	admission, err := i.cfg.Gate.Admit(ctx, c)
	if err == nil {
		c.Request = nil // only checks look at it, and its body may be large
		c.Tail = c.Tail && i.cfg.Gate.MayReadLogs(c)
		return admission, nil
	}
	i.explain(c, err)
	i.tell(c, err)
	i.cfg.Observe(Observation{Call: c, Err: err, Duration: time.Since(began)})
	return nil, err
}

// tell notes in a function's log why what came was refused.
func (i *Invoker) tell(c *bawn.Call, err error) {
	var r *ingress.Refusal
	if !errors.As(err, &r) || r.Note == "" {
		return
	}
	i.note(r.Version, c.ID, r.Note)
}

// note writes a line of Bawn's own into the log of v's function: text about an
// invocation.
func (i *Invoker) note(v *bawn.Version, invocation, text string) {
	i.cfg.Log(bawn.LogLine{
		Time: time.Now(), Tenant: v.Tenant, Function: v.Function, Version: v.Number, Invocation: invocation, Platform: true,
		Text: "bawn: " + text,
	}, v.Perimeter.Evidence.LogRetention)
}

// explain tells the owner of a function whose call of another was refused what
// the function itself is not told.
func (i *Invoker) explain(c *bawn.Call, err error) {
	v := c.Caller
	if v == nil {
		return
	}
	text, what := "an internal error", "a call of "+c.Target.String()
	if c.Target.Function == "" {
		what = "a request to the endpoint"
	}
	var e *bawn.Error
	if errors.As(err, &e) {
		var why *bawn.Error // what a general answer stands for
		if errors.As(e.Err, &why) {
			e = why
		}
		if text = e.Message; e.Fix != "" {
			text += "; " + e.Fix
		}
	}
	i.cfg.Gate.Stopped(c, text)
	i.note(v, c.Parent, what+" was refused: "+text)
}

// Looped reports whether err says that functions have called each other too
// often.
func Looped(err error) bool { return errors.Is(err, ingress.ErrLoop) }

// Quiet reports whether err is one of so many of its kind that nobody needs to
// write it down.
func Quiet(err error) bool { return errors.Is(err, ingress.ErrQuiet) }

// Crowded reports whether err says that too much goes on at one time.
func Crowded(err error) bool { return errors.Is(err, ingress.ErrCrowded) }

// A story is one admitted call.
type story struct {
	*Invoker
	call      *bawn.Call
	admission *ingress.Admission
	began     time.Time
	left      bool        // the caller did not want the rest of the answer
	tried     bool        // nothing was run, as asked for
	ran       *bawn.Usage // what the function used; nil if it did not run
}

// end settles the call and appends its outcome. The error it returns is err, or
// why the outcome could not be recorded: then the caller gets no answer.
func (s *story) end(ctx context.Context, r *bawn.Result, err error) error {
	var u bawn.Usage
	if s.ran != nil {
		u = *s.ran
	}
	v := s.admission.Version
	note, e := s.admission.Ended(ctx, s.call, s.cause(r, err))
	if e != nil && err == nil {
		r, err = nil, e
	}
	if note != "" {
		s.note(v, s.call.ID, note)
	}
	if refusal := refused(err); refusal != nil {
		s.note(v, s.call.ID, "the answer was stopped on its way out: "+refusal.Error())
	}
	rec := s.outcome(r, u, err)
	e = s.admission.Charge(s.ran, func(charge string) error {
		if charge != "" {
			rec.Detail[ingress.ChargeDetail] = charge
		}
		return s.cfg.Evidence.Append(context.WithoutCancel(ctx), rec)
	})
	s.admission.Settle()
	if e != nil && err == nil {
		r, err = nil, e
	}
	s.cfg.Observe(Observation{Call: s.call, Version: s.admission.Version, Result: r, Err: err, Duration: time.Since(s.began)})
	return err
}

// cause says how the call ended, as [ingress.Admission.Ended] has it.
func (s *story) cause(r *bawn.Result, err error) bawn.Code {
	switch {
	case err != nil:
		return bawn.ErrorCode(err)
	case s.tried, s.left:
		return bawn.CodeUnavailable
	case r.FunctionError != "":
		return cmp.Or(r.Cause, bawn.CodeFunctionError)
	}
	return ""
}

// refused returns why an answer did not leave, if that is what err says.
func refused(err error) *egress.Refusal {
	var r *egress.Refusal
	errors.As(err, &r)
	return r
}

// outcome is the record of how the call ended.
func (s *story) outcome(r *bawn.Result, u bawn.Usage, err error) bawn.Record {
	v := s.admission.Version
	rec := bawn.Record{
		Kind: bawn.KindOutcome, Time: time.Now(),
		Tenant: v.Tenant, Function: v.Function, Version: v.Number,
		Invocation: s.call.ID, Principal: s.call.Principal.String(), Source: s.call.Source,
		Action: "invoke", Outcome: "ok", Detail: ingress.Lineage(s.call),
	}
	if rec.Detail == nil {
		rec.Detail = make(map[string]string, 4)
	}
	switch {
	case err != nil:
		rec.Outcome, rec.Reason = "error", string(bawn.ErrorCode(err))
		var e *bawn.Error
		if errors.As(err, &e) {
			rec.Reason += ": " + e.Message
		}
		if refusal := refused(err); refusal != nil {
			rec.Control = refusal.Control
			rec.Detail["refused"] = refusal.Reason
			if len(refusal.Fields) > 0 {
				rec.Detail["fields"] = strings.Join(refusal.Fields, ", ")
			}
		}
		return rec
	case s.tried:
		rec.Detail["dryRun"] = "true"
		return rec
	case r.FunctionError != "":
		rec.Outcome, rec.Reason = "error", string(r.Cause)
	case s.left:
		rec.Reason = "the caller left before the end of the answer"
	}
	rec.Detail["duration"] = u.Duration.String()
	rec.Detail["maxMemory"] = strconv.FormatInt(u.MaxMemory, 10)
	if u.Cold {
		rec.Detail["cold"] = "true"
		rec.Detail["init"] = u.Init.String()
	}
	if u.Connections > 0 {
		rec.Detail["connections"] = strconv.Itoa(u.Connections)
		rec.Detail["sent"], rec.Detail["received"] = strconv.FormatInt(u.Sent, 10), strconv.FormatInt(u.Received, 10)
	}
	return rec
}

// Note writes a line of Bawn's own into the log of the function that a call
// went to: what the owner should know and the caller should not.
func (i *Invoker) Note(c *bawn.Call, text string) {
	v := i.cfg.Gate.Resolve(c.Target)
	if v == nil {
		return // removed in between
	}
	i.note(v, c.ID, text)
}

// A stream ends the story when the answer does.
type stream struct {
	io.ReadCloser
	story  story
	ctx    context.Context
	result *bawn.Result
	ended  bool
}

// Read reads on. The outcome is recorded before the end of the stream is told.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !s.ended {
		s.ended = true
		var stopped error
		if refused(err) != nil {
			s.ReadCloser.Close() // the rest of it leaves no more than this
			stopped = err
		}
		if e := s.story.end(s.ctx, s.result, stopped); e != nil {
			return n, e
		}
	}
	return n, err
}

// Close ends the instance if the stream was not read to its end. That the
// caller left is no failure of the function.
func (s *stream) Close() error {
	err := s.ReadCloser.Close()
	if !s.ended {
		s.ended, s.story.left = true, true
		if e := s.story.end(s.ctx, s.result, nil); e != nil {
			return e
		}
	}
	return err
}
