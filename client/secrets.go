package client

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// SecretUsers says who may use a secret, and who has.
type SecretUsers struct {
	Secret  bawn.Secret    `json:"secret"`
	May     []SecretUser   `json:"may"`
	Since   time.Time      `json:"since"`   // of Readers: when the node started
	Readers []SecretReader `json:"readers"` // newest first
}

// SecretUser is a function that a secret is granted to, or whose live version asks for
// it. It takes both to have it.
type SecretUser struct {
	Function string   `json:"function"`
	Granted  bool     `json:"granted"`
	Version  int      `json:"version,omitempty"` // the live version, if it asks for the secret
	For      []string `json:"for,omitempty"`     // read, file, inject, database
	Old      []int    `json:"old,omitempty"`     // versions of the secret before the current one that it may still hold
}

// SecretReader is who has used which version of a secret.
type SecretReader struct {
	Function string    `json:"function"`
	Version  int       `json:"version"`            // of the function
	Instance string    `json:"instance,omitempty"` // a warm one; empty for those that have ended
	Secret   int       `json:"secret"`             // the version of the secret
	For      string    `json:"for"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Count    int64     `json:"count"`
}

func secretPath(name string) string { return "/v1/secrets/" + url.PathEscape(name) }

func grantPath(name, function string) string {
	return secretPath(name) + "/grants/" + url.PathEscape(function)
}

// Secrets lists the tenant's secrets, without their values: those never come out.
func (c *Client) Secrets(ctx context.Context) ([]bawn.Secret, error) {
	var out struct {
		Secrets []bawn.Secret `json:"secrets"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/secrets"}, &out)
	return out.Secrets, err
}

// Secret returns a secret with its versions and grants.
func (c *Client) Secret(ctx context.Context, name string) (*bawn.Secret, error) {
	var s bawn.Secret
	return &s, c.do(ctx, request{method: http.MethodGet, path: secretPath(name)}, &s)
}

// CreateSecret keeps a value under a name that is free.
func (c *Client) CreateSecret(ctx context.Context, name string, value []byte, labels ...string) (*bawn.Secret, error) {
	var s bawn.Secret
	q := url.Values{}
	if len(labels) > 0 {
		q.Set("label", strings.Join(labels, ","))
	}
	return &s, c.do(ctx, request{method: http.MethodPut, path: secretPath(name), query: q, body: bytes.NewReader(value), size: int64(len(value)), mime: "application/octet-stream"}, &s)
}

// RotateSecret gives a secret a new value. The one before can be read for window more;
// 0 ends it at once.
func (c *Client) RotateSecret(ctx context.Context, name string, value []byte, window time.Duration) (*bawn.Secret, error) {
	var s bawn.Secret
	return &s, c.do(ctx, request{
		method: http.MethodPost, path: secretPath(name) + "/versions", query: url.Values{"window": {window.String()}},
		body: bytes.NewReader(value), size: int64(len(value)), mime: "application/octet-stream",
	}, &s)
}

// RemoveSecret wipes a secret with its versions and grants.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: secretPath(name)}, nil)
}

// SecretUsers says who may use a secret, and who has.
func (c *Client) SecretUsers(ctx context.Context, name string) (*SecretUsers, error) {
	var u SecretUsers
	return &u, c.do(ctx, request{method: http.MethodGet, path: secretPath(name) + "/users"}, &u)
}

// GrantSecret lets a function use a secret that its manifest asks for.
func (c *Client) GrantSecret(ctx context.Context, name, function string) (*bawn.Secret, error) {
	var s bawn.Secret
	return &s, c.do(ctx, request{method: http.MethodPut, path: grantPath(name, function)}, &s)
}

// RevokeSecret takes a grant back, at once.
func (c *Client) RevokeSecret(ctx context.Context, name, function string) (*bawn.Secret, error) {
	var s bawn.Secret
	return &s, c.do(ctx, request{method: http.MethodDelete, path: grantPath(name, function)}, &s)
}
