package control

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

const (
	maxGrants     = 45 // each meter by each span, of all, of strangers, and of each caller
	maxTenantPart = 1_000_000_000_000_000_000
)

// onBudget authorises what p wants with budgets of a tenant, which is p's own if
// it is "". Those of other tenants are for operators.
func (c *Control) onBudget(ctx context.Context, p bawn.Principal, tenant string, change bool) (string, error) {
	if c.cfg.Meter == nil {
		return "", bawn.Errorf(bawn.CodeUnavailable, "control.budget", "this node keeps no budgets")
	}
	if tenant == "" || tenant == p.Tenant {
		return p.Tenant, c.onGuardrails(ctx, p, false, change)
	}
	_, _, err := c.tenantFor(ctx, p, tenant)
	return tenant, err
}

// Budget says how it is with the budgets of a tenant and of its functions' live
// versions, or of one function alone. An empty tenant is the principal's own.
func (c *Control) Budget(ctx context.Context, p bawn.Principal, tenant, function string) (b bawn.TenantBudget, err error) {
	if tenant, err = c.onBudget(ctx, p, tenant, false); err != nil {
		return b, err
	}
	b = bawn.TenantBudget{Tenant: tenant, Standings: []bawn.Standing{}}
	if _, b.Priced, err = c.cfg.Meter.Prices(); err != nil {
		return b, err
	}
	var own []bawn.Grant
	if own, b.Operator, err = c.cfg.Meter.Budget(tenant); err != nil {
		return b, err
	}
	mine := func(f string) bool { return tenant != p.Tenant || concerns(p, f) }
	if function == "" && (tenant != p.Tenant || len(p.Functions) == 0) {
		if b.Standings, err = c.cfg.Meter.Standings(tenant, "", own); err != nil {
			return b, err
		}
	}
	if function != "" {
		if err := bawn.CheckName("function", function); err != nil {
			return b, err
		}
		if _, _, ok, err := c.functions.Find(functionKey(tenant, function)); err != nil || !ok || !mine(function) {
			return b, cmp.Or(err, error(notFound(function)))
		}
	}
	live := c.liveVersions(tenant, nil)
	slices.SortFunc(live, func(a, b *bawn.Version) int { return strings.Compare(a.Function, b.Function) })
	for _, v := range live {
		if !mine(v.Function) || function != "" && v.Function != function {
			continue
		}
		list, err := c.cfg.Meter.Standings(tenant, v.Function, v.Perimeter.Ingress.Budget)
		if err != nil {
			return b, err
		}
		b.Standings = append(b.Standings, list...)
	}
	return b, nil
}

// SetBudget replaces the budgets of a tenant, which hold all its functions
// together; none takes them away. Those that an operator has set, operators change.
func (c *Control) SetBudget(ctx context.Context, p bawn.Principal, tenant string, grants []bawn.Grant) (bawn.TenantBudget, error) {
	if err := checkGrants(grants); err != nil {
		return bawn.TenantBudget{}, err
	}
	c.mu.Lock()
	err := func() error {
		defer c.mu.Unlock()
		var err error
		if tenant, err = c.onBudget(ctx, p, tenant, true); err != nil {
			return err
		}
		old, err := c.ownBudget(p, tenant)
		if err != nil {
			return err
		}
		what := bawn.Record{Action: "budget.set", Control: "H3", Detail: map[string]string{"tenant": tenant, "before": grantsText(old), "after": grantsText(grants)}}
		return c.change(ctx, p, what, func(ctx context.Context) error {
			return c.cfg.Meter.SetBudget(ctx, tenant, grants, c.seesAll(p))
		})
	}()
	if err != nil {
		return bawn.TenantBudget{}, err
	}
	return c.Budget(ctx, p, tenant, "")
}

// ownBudget returns the budgets of a tenant, if p may change those.
func (c *Control) ownBudget(p bawn.Principal, tenant string) ([]bawn.Grant, error) {
	grants, operator, err := c.cfg.Meter.Budget(tenant)
	if err == nil && operator && !c.seesAll(p) {
		err = bawn.Errorf(bawn.CodeDenied, "control.budget", "an operator has set the budgets of this tenant").WithFix("ask the operator of the node to change or lift them")
	}
	return grants, err
}

// LiftBudget lets a budget of a function's, or of the tenant's own if f.Function is
// empty, not hold until its window ends. Both sides of control A5 are kept: it is
// for who may approve what widens a perimeter, and it is recorded.
func (c *Control) LiftBudget(ctx context.Context, p bawn.Principal, tenant string, f bawn.Lift) (bawn.Lift, error) {
	if n := len(strings.TrimSpace(f.Reason)); n == 0 || len(f.Reason) > maxReason {
		return f, bawn.Errorf(bawn.CodeInvalid, "control.budget", "the reason has %d bytes, want 1 to %d", len(f.Reason), maxReason).WithFix("say why, in a sentence")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	tenant, err := c.onBudget(ctx, p, tenant, true)
	if err != nil {
		return f, err
	}
	var grants []bawn.Grant
	if f.Function == "" {
		if grants, err = c.ownBudget(p, tenant); err != nil {
			return f, err
		}
	} else {
		if err := bawn.CheckName("function", f.Function); err != nil {
			return f, err
		}
		v := c.liveOf(tenant, f.Function)
		if v == nil || tenant == p.Tenant && !concerns(p, f.Function) {
			return f, notFound(f.Function)
		}
		grants = v.Perimeter.Ingress.Budget
	}
	i := slices.IndexFunc(grants, func(g bawn.Grant) bool { return g.Of == f.Of && g.Meter == f.Meter && g.Per == f.Per })
	if i < 0 {
		return f, bawn.Errorf(bawn.CodeNotFound, "control.budget", "there is no such budget").WithFix("bawn budget ls lists those that there are")
	}
	f.By = p.String()
	what := bawn.Record{Action: "budget.lift", Control: "H3", Function: f.Function, Detail: map[string]string{"tenant": tenant, "budget": grants[i].String(), "why": f.Reason}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		made, err := c.cfg.Meter.Lift(ctx, tenant, f)
		if err == nil {
			f, what.Detail["ends"] = made, made.Ends.Format(time.RFC3339)
		}
		return err
	})
	return f, err
}

// checkGrants refuses what no manifest could say.
func checkGrants(grants []bawn.Grant) error {
	const op = "control.budget"
	if len(grants) > maxGrants {
		return bawn.Errorf(bawn.CodeInvalid, op, "%d budgets, at most %d are allowed", len(grants), maxGrants)
	}
	seen := map[bawn.Grant]bool{}
	for _, g := range grants {
		switch {
		case !slices.Contains([]string{"", bawn.OfCaller, bawn.OfAnonymous}, g.Of):
			return bawn.Errorf(bawn.CodeInvalid, op, "a budget is of %.20q", g.Of).WithFix("take caller, anonymous, or nothing for all calls together")
		case !slices.Contains([]string{bawn.MeterCalls, bawn.MeterCPU, bawn.MeterMemory, bawn.MeterEgress, bawn.MeterMoney}, g.Meter):
			return bawn.Errorf(bawn.CodeInvalid, op, "%.20q is no meter", g.Meter).WithFix("take calls, cpu, memory, egress or money")
		case !slices.Contains([]string{bawn.PerHour, bawn.PerDay, bawn.PerMonth}, g.Per):
			return bawn.Errorf(bawn.CodeInvalid, op, "%.20q is not a span of a budget", g.Per).WithFix("take hour, day or month")
		case g.Amount < 0 || g.Amount > maxTenantPart:
			return bawn.Errorf(bawn.CodeInvalid, op, "the amount of %s is not between 0 and %d", g.Meter, int64(maxTenantPart))
		}
		g.Amount = 0
		if seen[g] {
			return bawn.Errorf(bawn.CodeInvalid, op, "%s has a second amount for one %s", g.Meter, g.Per).WithFix("give one for each span")
		}
		seen[g] = true
	}
	return nil
}

func grantsText(grants []bawn.Grant) string {
	all := make([]string, len(grants))
	for i, g := range grants {
		all[i] = g.String()
	}
	return strings.Join(all, ", ")
}

// Cost adds up what calls used since a time, in windows of a length. An empty
// tenant is the principal's own; all tenants together are for operators. Who may
// read the tenant's evidence may read it: it names callers.
func (c *Control) Cost(ctx context.Context, p bawn.Principal, tenant string, all bool, per string, since time.Time) (bawn.Cost, error) {
	tenants := []string{cmp.Or(tenant, p.Tenant)}
	switch {
	case c.cfg.Meter == nil:
		return bawn.Cost{}, bawn.Errorf(bawn.CodeUnavailable, "control.cost", "this node keeps no budgets")
	case all:
		if tenant != "" {
			return bawn.Cost{}, bawn.Errorf(bawn.CodeInvalid, "control.cost", "of one tenant or of all").WithFix("leave one of the two away")
		}
		list, err := c.Tenants(ctx, p)
		if err != nil {
			return bawn.Cost{}, err
		}
		tenants = tenants[:0]
		for _, t := range list {
			tenants = append(tenants, t.Name)
		}
	case tenant != "" && tenant != p.Tenant:
		if _, _, err := c.tenantFor(ctx, p, tenant); err != nil {
			return bawn.Cost{}, err
		}
	default:
		if err := c.authorize(ctx, p, policy.Events, bawn.Ref{Tenant: p.Tenant}); err != nil {
			return bawn.Cost{}, err
		}
	}
	if since.IsZero() {
		since = c.cfg.Now()
	}
	var see func(string) bool
	if len(p.Functions) > 0 {
		see = func(function string) bool { return concerns(p, function) }
	}
	return c.cfg.Meter.Cost(tenants, cmp.Or(per, bawn.PerMonth), since, see)
}

// Prices returns the price table, and whether there is one.
func (c *Control) Prices(ctx context.Context, p bawn.Principal) (bawn.Prices, bool, error) {
	if _, err := c.onBudget(ctx, p, "", false); err != nil {
		return bawn.Prices{}, false, err
	}
	return c.cfg.Meter.Prices()
}

// SetPrices replaces the price table. It is for operators. Calls that are admitted
// from then on cost what it says.
func (c *Control) SetPrices(ctx context.Context, p bawn.Principal, prices bawn.Prices) (bawn.Prices, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.operator(ctx, p); err != nil {
		return prices, err
	}
	if _, err := c.onBudget(ctx, p, "", false); err != nil {
		return prices, err
	}
	for _, n := range []int64{prices.Call, prices.CPU, prices.Memory, prices.Egress} {
		if n < 0 || n > bawn.MaxPrice {
			return prices, bawn.Errorf(bawn.CodeInvalid, "control.prices", "a price is not between 0 and %d billionths", int64(bawn.MaxPrice))
		}
	}
	old, _, err := c.cfg.Meter.Prices()
	if err != nil {
		return prices, err
	}
	what := bawn.Record{Action: "prices.set", Control: "H3", Detail: map[string]string{"before": pricesText(&old), "after": pricesText(&prices)}}
	return prices, c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Meter.SetPrices(ctx, prices) })
}

func pricesText(p *bawn.Prices) string {
	all := []string{p.Currency}
	for _, n := range []int64{p.Call, p.CPU, p.Memory, p.Egress} {
		all = append(all, strconv.FormatInt(n, 10))
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// unpriced says that a budget of money of v does not end, if there is no price
// table.
func (c *Control) unpriced(v *bawn.Version) []string {
	if c.cfg.Meter == nil || !slices.ContainsFunc(v.Perimeter.Ingress.Budget, func(g bawn.Grant) bool { return g.Meter == bawn.MeterMoney }) {
		return nil
	}
	if _, ok, err := c.cfg.Meter.Prices(); ok || err != nil {
		return nil
	}
	return []string{"ingress.budget has money, but there is no price table: calls cost nothing until the operator sets one: bawn cost prices FILE"}
}
