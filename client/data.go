package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Data is a database or a secret, and who can touch it.
type Data struct {
	Kind      string       `json:"kind"` // database or secret
	Name      string       `json:"name"`
	Labels    []string     `json:"labels"`
	Functions []DataAccess `json:"functions"`
}

// DataAccess says of one function what it can do with a database or a secret, and
// what it did.
type DataAccess struct {
	Function string   `json:"function"`
	Versions []int    `json:"versions"` // that an alias points at and that name it
	Fields   []string `json:"fields"`   // where they do
	Allowed  bool     `json:"allowed"`
	Reason   string   `json:"reason,omitempty"`
	Address  []string `json:"address,omitempty"` // of a database, and as whom

	Uses   int        `json:"uses"`
	Denied int        `json:"denied"`
	Last   *time.Time `json:"last,omitempty"`
}

// DataList is what a node says of data.
type DataList struct {
	Data    []Data    `json:"data"`
	Since   time.Time `json:"since"` // before it uses are not counted
	Partial bool      `json:"partial,omitempty"`
}

// Data asks who can touch which databases and secrets, and who did since. With a
// name, only of that one; a zero since means 30 days.
func (c *Client) Data(ctx context.Context, name string, since time.Time) (*DataList, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	var out DataList
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/data", query: q}, &out)
}
