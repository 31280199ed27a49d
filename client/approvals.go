package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"bawn.dev/bawn"
)

// Approval is a version that widens the perimeter and waits for somebody else
// than who asked for it.
type Approval struct {
	ID          string       `json:"id"`
	Tenant      string       `json:"tenant"`
	Function    string       `json:"function"`
	Live        int          `json:"live,omitempty"` // the version that was live when it was asked for
	Changes     []Change     `json:"changes"`
	Version     bawn.Version `json:"version"` // what would become live
	RequestedBy string       `json:"requestedBy"`
	Makers      []string     `json:"makers,omitempty"` // who made the key that asked, and so on
	RequestedAt time.Time    `json:"requestedAt"`
	ExpiresAt   time.Time    `json:"expiresAt"`
}

// Approvals lists what waits for approval, oldest first.
func (c *Client) Approvals(ctx context.Context) ([]Approval, error) {
	var out struct {
		Approvals []Approval `json:"approvals"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/approvals"}, &out)
	return out.Approvals, err
}

// Approve makes a version that waits live. Its error has the code
// [bawn.CodeDenied] for who asked for it, and [bawn.CodeConflict] if what is
// live has changed since.
func (c *Client) Approve(ctx context.Context, id string) (*Deployment, error) {
	var d Deployment
	return &d, c.do(ctx, request{method: http.MethodPost, path: "/v1/approvals/" + url.PathEscape(id)}, &d)
}

// Reject drops a version that waits.
func (c *Client) Reject(ctx context.Context, id string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/approvals/" + url.PathEscape(id)}, nil)
}
