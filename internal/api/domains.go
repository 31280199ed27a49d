package api

import (
	"cmp"
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

// DomainInput is the domain in the path.
type DomainInput struct {
	Domain string `path:"domain" maxLength:"253" doc:"in lower case, such as shop.example.com"`
}

type domainsOutput struct {
	Body struct {
		Domains []control.Domain `json:"domains" nullable:"false"`
	}
}

func (a *api) listDomains(ctx context.Context, _ *none) (*domainsOutput, error) {
	list, err := a.Control.Domains(ctx, principal(ctx))
	out := &domainsOutput{}
	out.Body.Domains = orEmpty(list)
	return out, err
}

type domainOutput struct{ Body control.Domain }

func (a *api) getDomain(ctx context.Context, in *DomainInput) (*domainOutput, error) {
	d, err := a.Control.Domain(ctx, principal(ctx), in.Domain)
	return &domainOutput{d}, err
}

type addDomainInput struct {
	DomainInput
	Body struct {
		Tenant string `json:"tenant,omitempty" maxLength:"63" doc:"whose it is; main if left out"`
	}
}

func (a *api) addDomain(ctx context.Context, in *addDomainInput) (*domainOutput, error) {
	d, err := a.Control.AddDomain(ctx, principal(ctx), in.Domain, cmp.Or(in.Body.Tenant, bawn.DefaultTenant))
	return &domainOutput{d}, err
}

func (a *api) removeDomain(ctx context.Context, in *DomainInput) (*domainOutput, error) {
	d, err := a.Control.RemoveDomain(ctx, principal(ctx), in.Domain)
	return &domainOutput{d}, err
}
