package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"bawn.dev/bawn"
)

// NewIssuer is the settings of an issuer; see [bawn.Issuer]. Spans are texts such
// as "30s".
type NewIssuer struct {
	Name       string                 `json:"name,omitempty"`
	Kind       string                 `json:"kind"`
	URL        string                 `json:"url,omitempty"`
	Audience   string                 `json:"audience,omitempty"`
	ClientID   string                 `json:"clientId,omitempty"`
	Scopes     []string               `json:"scopes,omitempty"`
	Algorithms []string               `json:"algorithms,omitempty"`
	RoleClaim  string                 `json:"roleClaim,omitempty"`
	Require    map[string]string      `json:"require,omitempty"`
	ClockSkew  string                 `json:"clockSkew,omitempty"`
	MaxLife    string                 `json:"maxLife,omitempty"`
	Private    bool                   `json:"private,omitempty"`
	CA         string                 `json:"ca,omitempty"`
	Roles      map[string][]bawn.Role `json:"roles,omitempty"`
}

// tenantQuery names a tenant for an operator; "" is the credential's own.
func tenantQuery(tenant string) url.Values {
	if tenant == "" {
		return nil
	}
	return url.Values{"tenant": {tenant}}
}

// CreateIssuer lets an issuer vouch for principals of a tenant; "" is the
// credential's own, here and below.
func (c *Client) CreateIssuer(ctx context.Context, tenant string, i NewIssuer) (*bawn.Issuer, error) {
	var out bawn.Issuer
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/issuers", query: tenantQuery(tenant), json: i}, &out)
}

// ReplaceIssuer gives an issuer other settings. Whom it vouched for is looked at
// anew.
func (c *Client) ReplaceIssuer(ctx context.Context, tenant string, i NewIssuer) (*bawn.Issuer, error) {
	var out bawn.Issuer
	path := "/v1/issuers/" + url.PathEscape(i.Name)
	i.Name = ""
	return &out, c.do(ctx, request{method: http.MethodPut, path: path, query: tenantQuery(tenant), json: i}, &out)
}

// Issuers lists a tenant's issuers.
func (c *Client) Issuers(ctx context.Context, tenant string) ([]bawn.Issuer, error) {
	var out struct {
		Issuers []bawn.Issuer `json:"issuers"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/issuers", query: tenantQuery(tenant)}, &out)
	return out.Issuers, err
}

// Issuer returns one issuer.
func (c *Client) Issuer(ctx context.Context, tenant, name string) (*bawn.Issuer, error) {
	var out bawn.Issuer
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/issuers/" + url.PathEscape(name), query: tenantQuery(tenant)}, &out)
}

// RemoveIssuer forgets an issuer: whoever it vouches for is out at once.
func (c *Client) RemoveIssuer(ctx context.Context, tenant, name string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/issuers/" + url.PathEscape(name), query: tenantQuery(tenant)}, nil)
}

// NewRevocation says whose credentials end.
type NewRevocation struct {
	Principal string `json:"principal"`        // user:ISSUER:SUBJECT, cert:ID or issuer:NAME
	Barred    bool   `json:"barred,omitempty"` // nor is what is issued later good
	Reason    string `json:"reason,omitempty"`
}

// Revoke ends what was issued to somebody until now, at once.
func (c *Client) Revoke(ctx context.Context, tenant string, r NewRevocation) (*bawn.Revocation, error) {
	var out bawn.Revocation
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/revocations", query: tenantQuery(tenant), json: r}, &out)
}

// Revocations lists what was revoked in a tenant, the newest first.
func (c *Client) Revocations(ctx context.Context, tenant string) ([]bawn.Revocation, error) {
	var out struct {
		Revocations []bawn.Revocation `json:"revocations"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/revocations", query: tenantQuery(tenant)}, &out)
	return out.Revocations, err
}

// LiftRevocation takes a revocation back.
func (c *Client) LiftRevocation(ctx context.Context, tenant, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/revocations/" + url.PathEscape(id), query: tenantQuery(tenant)}, nil)
}

// Whoami is who the node knows a caller as.
type Whoami struct {
	Principal bawn.Principal `json:"principal"`
	Functions []string       `json:"functions,omitempty"` // the only ones that the credential has to do with
	Expires   time.Time      `json:"expires,omitzero"`
}

// Whoami asks the node who the caller is.
func (c *Client) Whoami(ctx context.Context) (*Whoami, error) {
	var out Whoami
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/whoami"}, &out)
}
