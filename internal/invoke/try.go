package invoke

import (
	"context"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/ingress"
)

// Tried is what came of the call of a test.
type Tried struct {
	Refused error         // why it would not be let in; nil if it ran
	Result  *bawn.Result  // complete; nil if it was refused
	Stopped []bawn.Record // what the perimeter stopped while it ran
}

// Test runs the call of a test to v, which need not be known to anybody, if v's
// perimeter lets c.Principal in; c.Caller is the calling version where that is a
// function. What the function does is done for by, who runs the test: to test as
// somebody else gives nobody his rights. The run is recorded, as a test.
func (i *Invoker) Test(ctx context.Context, by bawn.Principal, v *bawn.Version, c *bawn.Call) (Tried, error) {
	trial, err := i.cfg.Gate.Try(ctx, v, c)
	switch {
	case bawn.ErrorCode(err) == bawn.CodeUnavailable:
		return Tried{}, err
	case err != nil:
		return Tried{Refused: err}, nil
	}
	as := c.Principal
	c.Principal, c.Origin, c.Chain, c.Caller, c.Hops = by, bawn.Principal{}, nil, nil, 0
	result, stopped, err := i.cfg.Pool.Try(ctx, v, c)
	stopped = append(stopped, trial.Close()...)
	if err == nil {
		err = i.cfg.Release.Release(v, result)
	}
	r := bawn.Record{
		Kind: bawn.KindOutcome, Time: time.Now(), Tenant: v.Tenant, Function: v.Function, Version: v.Number,
		Invocation: c.ID, Principal: by.String(), Source: c.Source, Action: "test", Outcome: "ok",
		Detail: map[string]string{"as": as.String(), "content": v.Digest, "stopped": strconv.Itoa(len(stopped))},
	}
	switch {
	case err != nil:
		r.Outcome, r.Reason = "error", string(bawn.ErrorCode(err))
	case result.FunctionError != "":
		r.Outcome, r.Reason = "error", string(result.Cause)
	}
	if lost := i.cfg.Evidence.Append(context.WithoutCancel(ctx), r); lost != nil && err == nil {
		err = lost
	}
	return Tried{Result: result, Stopped: stopped}, err
}

// MatchIn is Match among the routes of v alone, and says on which host: "" for the
// node's own names.
func (i *Invoker) MatchIn(v *bawn.Version, method, rawPath string) (m Match, host string, err error) {
	return i.cfg.Gate.MatchIn(v, method, rawPath)
}

// ControlOf returns the control by which a call was refused, if err tells it.
func ControlOf(err error) string { return ingress.ControlOf(err) }
