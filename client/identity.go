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

// CreateIssuer lets an issuer vouch for principals of the credential's tenant; what
// is below is about that tenant, too.
func (c *Client) CreateIssuer(ctx context.Context, i NewIssuer) (*bawn.Issuer, error) {
	var out bawn.Issuer
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/issuers", json: i}, &out)
}

// ReplaceIssuer gives an issuer other settings. Whom it vouched for is looked at
// anew.
func (c *Client) ReplaceIssuer(ctx context.Context, i NewIssuer) (*bawn.Issuer, error) {
	var out bawn.Issuer
	path := "/v1/issuers/" + url.PathEscape(i.Name)
	i.Name = ""
	return &out, c.do(ctx, request{method: http.MethodPut, path: path, json: i}, &out)
}

// Issuers lists the tenant's issuers.
func (c *Client) Issuers(ctx context.Context) ([]bawn.Issuer, error) {
	var out struct {
		Issuers []bawn.Issuer `json:"issuers"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/issuers"}, &out)
	return out.Issuers, err
}

// Issuer returns one issuer.
func (c *Client) Issuer(ctx context.Context, name string) (*bawn.Issuer, error) {
	var out bawn.Issuer
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/issuers/" + url.PathEscape(name)}, &out)
}

// RemoveIssuer forgets an issuer: whoever it vouches for is out at once.
func (c *Client) RemoveIssuer(ctx context.Context, name string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/issuers/" + url.PathEscape(name)}, nil)
}

// NewRevocation says whose credentials end.
type NewRevocation struct {
	Principal string `json:"principal"`        // user:ISSUER:SUBJECT, cert:ID or issuer:NAME
	Barred    bool   `json:"barred,omitempty"` // nor is what is issued later good
	Reason    string `json:"reason,omitempty"`
}

// Revoke ends what was issued to somebody until now, at once.
func (c *Client) Revoke(ctx context.Context, r NewRevocation) (*bawn.Revocation, error) {
	var out bawn.Revocation
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/revocations", json: r}, &out)
}

// Revocations lists what was revoked in the tenant, the newest first.
func (c *Client) Revocations(ctx context.Context) ([]bawn.Revocation, error) {
	var out struct {
		Revocations []bawn.Revocation `json:"revocations"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/revocations"}, &out)
	return out.Revocations, err
}

// LiftRevocation takes a revocation back.
func (c *Client) LiftRevocation(ctx context.Context, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/revocations/" + url.PathEscape(id)}, nil)
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
