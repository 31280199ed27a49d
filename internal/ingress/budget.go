package ingress

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/meter"
)

// ChargeDetail is the detail of an outcome that says what was charged for it.
const ChargeDetail = meter.ChargeDetail

// checkBudget reserves what the call may use at most. Controls H3 and H4.
func (g *Gate) checkBudget(ctx context.Context, c *bawn.Call, a *Admission) error {
	v := a.Version
	grants := v.Perimeter.Ingress.Budget
	if g.cfg.Meter == nil {
		if len(grants) > 0 {
			return bawn.Errorf(bawn.CodeUnavailable, "admit", "budgets cannot be kept")
		}
		return nil
	}
	// An older version must not be the way around the live one's budget.
	if c.Route == nil && c.Target.Qualifier != "" {
		live := g.index.resolve(bawn.Ref{Tenant: v.Tenant, Function: v.Function})
		if live != nil && live.Number != v.Number {
			grants = slices.Concat(grants, live.Perimeter.Ingress.Budget)
		}
	}
	// Who began a chain of calls is who pays for all of it: one that strangers began
	// is theirs, whichever function it has come through.
	from := c.From()
	r, err := g.cfg.Meter.Reserve(meter.Request{
		Tenant: v.Tenant, Function: v.Function, Version: v.Number, Invocation: c.ID,
		Principal: c.Principal.String(), Source: c.Source,
		Caller: payer(from), Anonymous: from.Kind == anonymous,
		Most: v.Most(), Grants: grants,
	})
	if err == nil {
		a.budget = r
		return nil
	}
	var over *meter.Refused
	if errors.As(err, &over) {
		return g.overBudget(ctx, c, a, over)
	}
	return err
}

// payer is the name that what a caller uses is counted under. Of a function it is
// the same for all its versions.
func payer(p bawn.Principal) string {
	if p.Kind == bawn.PrincipalFunction {
		name, _, _ := strings.Cut(p.ID, "@")
		return p.Kind + ":" + name
	}
	return p.String()
}

// overBudget refuses a call that does not fit into a budget. The caller learns when
// to come again; the owner, in the record and in the function's log, what is used up
// and which line of the manifest says so.
func (g *Gate) overBudget(ctx context.Context, c *bawn.Call, a *Admission, f *meter.Refused) error {
	now := g.cfg.Now()
	public := bawn.Errorf(bawn.CodeThrottled, "admit", "a budget of the function is used up").WithFix("try again when it begins anew")
	public.RetryAfter = max(f.Ends.Sub(now), time.Second)
	if !f.Spent() {
		public.Message, public.Fix = "what is left of a budget is held by calls that run", "try again in a moment"
		public.RetryAfter = time.Second
	}
	if !f.Tell {
		return public
	}
	key, whose := "ingress.budget", "the function"
	if f.Tenant {
		key, whose = "the tenant's budget", "the tenant"
	}
	control, limit := "H3", bawn.MeterText(f.Grant.Meter, f.Limit)
	used := bawn.MeterText(f.Grant.Meter, f.Used)
	reason := "of " + whose + "'s budget " + f.Grant.String() + ", " + used + " are used"
	if f.Grant.Of == bawn.OfAnonymous || f.Share {
		control = "H4"
	}
	if f.Share {
		reason = "of the half of " + whose + "'s budget " + f.Grant.String() + " that callers without a credential may have, " + used + " of " + limit + " are used"
	}
	if f.Held > 0 {
		reason += " and " + bawn.MeterText(f.Grant.Meter, f.Held) + " held by calls that run"
	}
	detail := map[string]string{"budget": f.Grant.String(), "limit": limit, "used": used, "held": bawn.MeterText(f.Grant.Meter, f.Held), "ends": f.Ends.Format(time.RFC3339)}
	fix := "raise it in " + key
	if f.Share {
		fix = "give them a budget of their own, such as anonymous: {" + bawn.Grant{Meter: f.Grant.Meter, Amount: f.Limit, Per: f.Grant.Per}.String() + "}, in " + key
	}
	detail["manifest"] = fix
	if f.Left > 0 {
		detail["unrecorded"] = strconv.Itoa(f.Left)
	}
	r := g.refusal(c, a, c.Principal, control, reason)
	maps.Copy(r.Detail, detail)
	if err := g.cfg.Record(context.WithoutCancel(ctx), r); err != nil {
		return err
	}
	public.Err = bawn.Errorf(bawn.CodeThrottled, "admit", "%s", reason).WithFix("%s", fix)
	return public
}

// Charge charges the call what it used, which is nil if it did not run and costs
// nothing. keep must record the outcome, with the text as [ChargeDetail] unless it
// is empty; what it returns is returned. It comes before Settle.
func (a *Admission) Charge(u *bawn.Usage, keep func(charge string) error) error {
	if a.budget == nil {
		return keep("")
	}
	if u == nil {
		a.budget.Cancel()
		return keep("")
	}
	return a.budget.Charge(bawn.Spending{
		Calls:  1,
		CPU:    int64(u.CPU),
		Memory: bawn.ByteSeconds(a.Version.Perimeter.Interior.Memory, u.Duration+u.Init),
		Egress: u.Sent + u.Received,
	}, keep)
}
