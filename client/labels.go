package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"bawn.dev/bawn"
)

// Label is what the tenant has settled for data with a label.
type Label struct {
	Name         string        `json:"name"`
	LogRetention time.Duration `json:"logRetention"` // log lines of functions with the label are kept for no longer
	Functions    []string      `json:"functions"`    // whose live version has the label
	UpdatedAt    time.Time     `json:"updatedAt"`
	UpdatedBy    string        `json:"updatedBy"`
}

// Retention is for how long log lines of a version are kept.
type Retention struct {
	Logs  time.Duration `json:"logs"`
	Label string        `json:"label,omitempty"` // of the function that says so; empty: its manifest does
}

func labelPath(name string) string { return "/v1/labels/" + url.PathEscape(name) }

// Labels lists the labels for which something is settled.
func (c *Client) Labels(ctx context.Context) ([]Label, error) {
	var out struct {
		Labels []Label `json:"labels"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/labels"}, &out)
	return out.Labels, err
}

// SetLabel settles for how long log lines of functions with a label are kept at most.
func (c *Client) SetLabel(ctx context.Context, name string, logRetention time.Duration) (*Label, error) {
	var l Label
	return &l, c.do(ctx, request{method: http.MethodPut, path: labelPath(name), json: map[string]time.Duration{"logRetention": logRetention}}, &l)
}

// RemoveLabel takes back what is settled for a label.
func (c *Client) RemoveLabel(ctx context.Context, name string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: labelPath(name)}, nil)
}

// SetSecretLabels gives a secret labels in the place of all that it has; none takes
// them away.
func (c *Client) SetSecretLabels(ctx context.Context, name string, labels []string) (*bawn.Secret, error) {
	if labels == nil {
		labels = []string{}
	}
	var s bawn.Secret
	return &s, c.do(ctx, request{method: http.MethodPut, path: secretPath(name) + "/labels", json: map[string][]string{"labels": labels}}, &s)
}
