package api

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

type tenantsOutput struct {
	Body struct {
		Tenants []bawn.Tenant `json:"tenants" nullable:"false"`
	}
}

func (a *api) listTenants(ctx context.Context, _ *none) (*tenantsOutput, error) {
	list, err := a.Control.Tenants(ctx, principal(ctx))
	out := &tenantsOutput{}
	out.Body.Tenants = orEmpty(list)
	return out, err
}

type createTenantInput struct {
	Body struct {
		Name  string     `json:"name" minLength:"1" maxLength:"63"`
		Quota bawn.Quota `json:"quota,omitempty"`
	}
}

type createTenantOutput struct {
	Body struct {
		Tenant bawn.Tenant `json:"tenant"`
		Key    bawn.Key    `json:"key" doc:"of its first administrator"`
		Secret string      `json:"secret" doc:"the key itself; it is not kept and cannot be shown again"`
	}
}

func (a *api) createTenant(ctx context.Context, in *createTenantInput) (*createTenantOutput, error) {
	made, secret, key, err := a.Control.CreateTenant(ctx, principal(ctx), in.Body.Name, in.Body.Quota)
	out := &createTenantOutput{}
	out.Body.Tenant, out.Body.Key, out.Body.Secret = made, key, secret
	return out, err
}

// TenantInput is the tenant in the path.
type TenantInput struct {
	Tenant string `path:"tenant" maxLength:"63"`
}

// TenantDetail is a tenant and what it has.
type TenantDetail struct {
	Tenant bawn.Tenant     `json:"tenant"`
	Has    control.Removal `json:"has"`
}

type tenantDetailOutput struct{ Body TenantDetail }

func (a *api) getTenant(ctx context.Context, in *TenantInput) (*tenantDetailOutput, error) {
	t, has, err := a.Control.Tenant(ctx, principal(ctx), in.Tenant)
	return &tenantDetailOutput{TenantDetail{t, has}}, err
}

type tenantOutput struct{ Body bawn.Tenant }

type quotaInput struct {
	TenantInput
	Body bawn.Quota
}

func (a *api) setQuota(ctx context.Context, in *quotaInput) (*tenantOutput, error) {
	t, err := a.Control.SetQuota(ctx, principal(ctx), in.Tenant, in.Body)
	return &tenantOutput{t}, err
}

type suspendInput struct {
	TenantInput
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"why, for whoever looks later"`
	}
}

func (a *api) suspend(ctx context.Context, in *suspendInput) (*tenantOutput, error) {
	t, err := a.Control.Suspend(ctx, principal(ctx), in.Tenant, in.Body.Reason)
	return &tenantOutput{t}, err
}

func (a *api) resume(ctx context.Context, in *TenantInput) (*tenantOutput, error) {
	t, err := a.Control.Resume(ctx, principal(ctx), in.Tenant)
	return &tenantOutput{t}, err
}

type removeTenantInput struct {
	TenantInput
	DryRun  bool   `query:"dryRun" doc:"say what would go, and remove nothing"`
	Confirm string `query:"confirm" maxLength:"63" doc:"the tenant's name again: what is removed is gone for good"`
}

type removalOutput struct{ Body control.Removal }

func (a *api) removeTenant(ctx context.Context, in *removeTenantInput) (*removalOutput, error) {
	r, err := a.Control.RemoveTenant(ctx, principal(ctx), in.Tenant, in.Confirm, in.DryRun)
	return &removalOutput{r}, err
}
