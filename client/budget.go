package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bawn.dev/bawn"
)

// Budget says how it is with the budgets of a tenant and of its functions, or of
// one function alone if it is not empty. An empty tenant is the key's own.
func (c *Client) Budget(ctx context.Context, tenant, function string) (*bawn.TenantBudget, error) {
	q := url.Values{}
	for name, v := range map[string]string{"tenant": tenant, "function": function} {
		if v != "" {
			q.Set(name, v)
		}
	}
	var b bawn.TenantBudget
	return &b, c.do(ctx, request{method: http.MethodGet, path: "/v1/budget", query: q}, &b)
}

// SetBudget replaces the budgets of a tenant; none takes them away. An empty tenant
// is the key's own.
func (c *Client) SetBudget(ctx context.Context, tenant string, grants []bawn.Grant) (*bawn.TenantBudget, error) {
	if grants == nil {
		grants = []bawn.Grant{}
	}
	var b bawn.TenantBudget
	return &b, c.do(ctx, request{method: http.MethodPut, path: "/v1/budget", json: map[string]any{"tenant": tenant, "grants": grants}}, &b)
}

// LiftBudget lets a budget not hold until its window ends: the one that f's
// Function, Of, Meter and Per say. An empty tenant is the key's own.
func (c *Client) LiftBudget(ctx context.Context, tenant string, f bawn.Lift) (*bawn.Lift, error) {
	var made bawn.Lift
	return &made, c.do(ctx, request{method: http.MethodPost, path: "/v1/budget/lifts", json: map[string]string{
		"tenant": tenant, "function": f.Function, "of": f.Of, "meter": f.Meter, "per": f.Per, "reason": f.Reason,
	}}, &made)
}

// CostQuery selects what a [bawn.Cost] is of.
type CostQuery struct {
	Tenant string // empty: the key's own
	All    bool   // of all tenants; for operators
	Per    string // hour, day or month; empty: month
	Since  time.Time
}

// Cost says what calls used and cost.
func (c *Client) Cost(ctx context.Context, q CostQuery) (*bawn.Cost, error) {
	v := url.Values{}
	if q.Tenant != "" {
		v.Set("tenant", q.Tenant)
	}
	if q.All {
		v.Set("all", strconv.FormatBool(q.All))
	}
	if q.Per != "" {
		v.Set("per", q.Per)
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339))
	}
	var cost bawn.Cost
	return &cost, c.do(ctx, request{method: http.MethodGet, path: "/v1/cost", query: v}, &cost)
}

// Prices returns the price table, and whether there is one.
func (c *Client) Prices(ctx context.Context) (bawn.Prices, bool, error) {
	var p struct {
		bawn.Prices
		Set bool `json:"set"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/prices"}, &p)
	return p.Prices, p.Set, err
}

// SetPrices replaces the price table. It is for operators.
func (c *Client) SetPrices(ctx context.Context, p bawn.Prices) error {
	return c.do(ctx, request{method: http.MethodPut, path: "/v1/prices", json: p}, nil)
}
