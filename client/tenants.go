package client

import (
	"context"
	"net/http"
	"net/url"

	"bawn.dev/bawn"
)

// CreatedTenant is a new tenant with the key of its first administrator, whose
// secret is shown this once.
type CreatedTenant struct {
	Tenant bawn.Tenant `json:"tenant"`
	Key    bawn.Key    `json:"key"`
	Secret string      `json:"secret"`
}

// TenantDetail is a tenant and what it has.
type TenantDetail struct {
	Tenant bawn.Tenant `json:"tenant"`
	Has    Removal     `json:"has"`
}

// Removal is what goes with a tenant, or went.
type Removal struct {
	Tenant    string         `json:"tenant"`
	Functions []string       `json:"functions"`
	Versions  int            `json:"versions"`
	Packages  int            `json:"packages"`
	Bytes     int64          `json:"bytes"` // of packages, packed and unpacked
	Keys      int            `json:"keys"`
	Approvals int            `json:"approvals"`        // versions that wait for approval
	Others    map[string]int `json:"others,omitempty"` // what else, by kind
	Removed   bool           `json:"removed"`          // false for a plan
}

func tenantPath(name string, more ...string) string {
	p := "/v1/tenants/" + url.PathEscape(name)
	for _, m := range more {
		p += "/" + m
	}
	return p
}

// CreateTenant makes a tenant. Zero fields of quota take the node's defaults.
func (c *Client) CreateTenant(ctx context.Context, name string, quota bawn.Quota) (*CreatedTenant, error) {
	var out CreatedTenant
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/tenants", json: map[string]any{"name": name, "quota": quota}}, &out)
}

// Tenants lists the tenants by name.
func (c *Client) Tenants(ctx context.Context) ([]bawn.Tenant, error) {
	var out struct {
		Tenants []bawn.Tenant `json:"tenants"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/tenants"}, &out)
	return out.Tenants, err
}

// Tenant returns a tenant and what it has.
func (c *Client) Tenant(ctx context.Context, name string) (*TenantDetail, error) {
	var out TenantDetail
	return &out, c.do(ctx, request{method: http.MethodGet, path: tenantPath(name)}, &out)
}

// SetQuota bounds what a tenant may have; the whole quota is replaced.
func (c *Client) SetQuota(ctx context.Context, name string, quota bawn.Quota) (*bawn.Tenant, error) {
	var out bawn.Tenant
	return &out, c.do(ctx, request{method: http.MethodPut, path: tenantPath(name, "quota"), json: quota}, &out)
}

// Suspend lets nobody of a tenant in and ends what runs of it.
func (c *Client) Suspend(ctx context.Context, name, reason string) (*bawn.Tenant, error) {
	var out bawn.Tenant
	return &out, c.do(ctx, request{method: http.MethodPost, path: tenantPath(name, "suspend"), json: map[string]string{"reason": reason}}, &out)
}

// Resume ends a suspension.
func (c *Client) Resume(ctx context.Context, name string) (*bawn.Tenant, error) {
	var out bawn.Tenant
	return &out, c.do(ctx, request{method: http.MethodPost, path: tenantPath(name, "resume")}, &out)
}

// RemoveTenant removes a tenant with everything that it has, for good; with
// dryRun it says what that is. confirm has to be the name again.
func (c *Client) RemoveTenant(ctx context.Context, name, confirm string, dryRun bool) (*Removal, error) {
	q := url.Values{}
	if confirm != "" {
		q.Set("confirm", confirm)
	}
	if dryRun {
		q.Set("dryRun", "true")
	}
	var out Removal
	return &out, c.do(ctx, request{method: http.MethodDelete, path: tenantPath(name), query: q}, &out)
}
