package api

import (
	"context"
	"time"

	"bawn.dev/bawn"
)

type budgetInput struct {
	Tenant   string `query:"tenant" maxLength:"63" doc:"whose; your own if left out, others for operators"`
	Function string `query:"function" maxLength:"63" doc:"only of this one"`
}

type budgetOutput struct{ Body bawn.TenantBudget }

func (a *api) getBudget(ctx context.Context, in *budgetInput) (*budgetOutput, error) {
	b, err := a.Control.Budget(ctx, principal(ctx), in.Tenant, in.Function)
	return &budgetOutput{b}, err
}

type setBudgetInput struct {
	Body struct {
		Tenant string       `json:"tenant,omitempty" maxLength:"63" doc:"whose; your own if left out, others for operators"`
		Grants []bawn.Grant `json:"grants" maxItems:"45" nullable:"false" doc:"in the place of all that it has"`
	}
}

func (a *api) setBudget(ctx context.Context, in *setBudgetInput) (*budgetOutput, error) {
	b, err := a.Control.SetBudget(ctx, principal(ctx), in.Body.Tenant, in.Body.Grants)
	return &budgetOutput{b}, err
}

type liftBudgetInput struct {
	Body struct {
		Tenant   string `json:"tenant,omitempty" maxLength:"63" doc:"whose; your own if left out, others for operators"`
		Function string `json:"function,omitempty" maxLength:"63" doc:"whose budget; the tenant's own if left out"`
		Of       string `json:"of,omitempty" maxLength:"16" doc:"caller or anonymous; left out: all calls together"`
		Meter    string `json:"meter" enum:"calls,cpu,memory,egress,money"`
		Per      string `json:"per" enum:"hour,day,month"`
		Reason   string `json:"reason" maxLength:"500" doc:"for the record"`
	}
}

type liftOutput struct{ Body bawn.Lift }

func (a *api) liftBudget(ctx context.Context, in *liftBudgetInput) (*liftOutput, error) {
	f, err := a.Control.LiftBudget(ctx, principal(ctx), in.Body.Tenant, bawn.Lift{
		Function: in.Body.Function, Of: in.Body.Of, Meter: in.Body.Meter, Per: in.Body.Per, Reason: in.Body.Reason,
	})
	return &liftOutput{f}, err
}

type costInput struct {
	Tenant string    `query:"tenant" maxLength:"63" doc:"whose; your own if left out, others for operators"`
	All    bool      `query:"all" doc:"of all tenants; for operators"`
	Per    string    `query:"per" enum:"hour,day,month" doc:"by which windows it is counted; month if left out"`
	Since  time.Time `query:"since" doc:"the first window that counts is the one that holds this; now if left out"`
}

type costOutput struct{ Body bawn.Cost }

func (a *api) cost(ctx context.Context, in *costInput) (*costOutput, error) {
	c, err := a.Control.Cost(ctx, principal(ctx), in.Tenant, in.All, in.Per, in.Since)
	return &costOutput{c}, err
}

type pricesInput struct{ Body bawn.Prices }

// PriceTable is what things cost, if there is a table.
type PriceTable struct {
	bawn.Prices
	Set bool `json:"set" doc:"there is a price table; without one calls cost nothing"`
}

type pricesOutput struct{ Body PriceTable }

func (a *api) getPrices(ctx context.Context, _ *none) (*pricesOutput, error) {
	p, ok, err := a.Control.Prices(ctx, principal(ctx))
	return &pricesOutput{PriceTable{p, ok}}, err
}

func (a *api) setPrices(ctx context.Context, in *pricesInput) (*pricesOutput, error) {
	p, err := a.Control.SetPrices(ctx, principal(ctx), in.Body)
	return &pricesOutput{PriceTable{p, true}}, err
}
