package client

import (
	"context"
	"net/http"
	"net/url"

	"bawn.dev/bawn"
)

// Domain is a domain of a tenant's with what answers on it.
type Domain struct {
	bawn.Domain
	Functions []string `json:"functions"` // whose live version has a route there
}

func domainPath(name string) string { return "/v1/domains/" + url.PathEscape(name) }

// Domains lists the domains of the tenant, and for an operator those of all.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	var out struct {
		Domains []Domain `json:"domains"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/domains"}, &out)
	return out.Domains, err
}

// Domain returns a domain.
func (c *Client) Domain(ctx context.Context, name string) (*Domain, error) {
	var d Domain
	return &d, c.do(ctx, request{method: http.MethodGet, path: domainPath(name)}, &d)
}

// AddDomain gives a domain to a tenant; an empty one means main. It is for operators.
func (c *Client) AddDomain(ctx context.Context, name, tenant string) (*Domain, error) {
	var d Domain
	return &d, c.do(ctx, request{method: http.MethodPut, path: domainPath(name), json: map[string]string{"tenant": tenant}}, &d)
}

// RemoveDomain takes a domain from its tenant, and returns it as it was.
func (c *Client) RemoveDomain(ctx context.Context, name string) (*Domain, error) {
	var d Domain
	return &d, c.do(ctx, request{method: http.MethodDelete, path: domainPath(name)}, &d)
}
