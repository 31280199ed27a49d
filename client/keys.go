package client

import (
	"context"
	"net/http"
	"net/url"

	"bawn.dev/bawn"
)

// NewKey says what key to create. The node sets everything else.
type NewKey struct {
	Name      string    `json:"name"`
	Role      bawn.Role `json:"role"`
	Functions []string  `json:"functions,omitempty"` // the only ones it has to do with; empty means all
	TTL       string    `json:"ttl,omitempty"`       // such as "720h"; empty means that it does not expire
	AWS       bool      `json:"aws,omitempty"`       // also return the secret to sign requests with
}

// CreatedKey is a new key with its secret, which is shown this once.
type CreatedKey struct {
	Key    bawn.Key `json:"key"`
	Secret string   `json:"secret"`
	// Signing is the AWS secret access key that belongs to the access key Key.ID,
	// if NewKey.AWS was set.
	Signing string `json:"signing,omitempty"`
}

// CreateKey makes a key.
func (c *Client) CreateKey(ctx context.Context, k NewKey) (*CreatedKey, error) {
	var out CreatedKey
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/keys", json: k}, &out)
}

// Keys lists the tenant's keys, without their secrets.
func (c *Client) Keys(ctx context.Context) ([]bawn.Key, error) {
	var out struct {
		Keys []bawn.Key `json:"keys"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/keys"}, &out)
	return out.Keys, err
}

// RevokeKey ends a key at once.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/keys/" + url.PathEscape(id)}, nil)
}
