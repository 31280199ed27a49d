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

// Suggestion is an egress block that a node proposes for a function.
type Suggestion struct {
	Function string            `json:"function"`
	Version  int               `json:"version"`           // whose rules it begins with
	Since    time.Time         `json:"since"`             // before it nothing is known
	Records  int               `json:"records"`           // of the function's egress that were read
	Ran      bool              `json:"ran"`               // if not, rules that were never used are kept
	Partial  bool              `json:"partial,omitempty"` // the newest records count
	LeftOut  int               `json:"leftOut,omitempty"` // hosts and stops that it does not tell of
	Manifest string            `json:"manifest"`          // the block in YAML
	Entries  []SuggestionEntry `json:"entries"`
}

// SuggestionEntry is one entry of a [Suggestion], or something that has none.
type SuggestionEntry struct {
	Advice string     `json:"advice"` // keep, narrow, unused, add or stopped
	Field  string     `json:"field"`  // such as egress.hosts
	Name   string     `json:"name"`
	Entry  string     `json:"entry,omitempty"`  // in YAML
	Before string     `json:"before,omitempty"` // what is narrowed
	Note   string     `json:"note,omitempty"`
	Uses   int        `json:"uses"`
	Denied int        `json:"denied"`
	Last   *time.Time `json:"last,omitempty"`
}

// Suggest asks for an egress block by what a function used and tried since; a zero
// since means 30 days. qualifier is a version or an alias whose rules it begins with,
// live if it is empty.
func (c *Client) Suggest(ctx context.Context, name, qualifier string, since time.Time) (*Suggestion, error) {
	q := qualifierQuery(qualifier)
	if !since.IsZero() {
		if q == nil {
			q = url.Values{}
		}
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	var out Suggestion
	return &out, c.do(ctx, request{method: http.MethodGet, path: functionPath(name, "suggestion"), query: q}, &out)
}
