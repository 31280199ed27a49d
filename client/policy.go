package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"bawn.dev/bawn"
)

// Guardrail is a text of Cedar rules that forbid, for a tenant or for the whole
// installation.
type Guardrail struct {
	Name      string    `json:"name"`
	Tenant    string    `json:"tenant,omitempty"` // empty for the installation's
	Text      string    `json:"text"`
	Hash      string    `json:"hash"` // sha256: of the text
	Rules     int       `json:"rules"`
	UpdatedAt time.Time `json:"updatedAt"`
	UpdatedBy string    `json:"updatedBy"`
	Flow      *Flow     `json:"flow,omitempty"` // of one on flows that was asked for by its name
}

// Flow is what a guardrail on flows looks at in the tenant's live versions.
type Flow struct {
	Label        string   `json:"label"`
	Sources      []string `json:"sources"`        // what has the label
	Destinations []string `json:"destinations"`   // where the label is not
	More         int      `json:"more,omitempty"` // of both, left out
}

// Question asks ahead of time whether somebody may do something.
type Question struct {
	Principal string `json:"principal"`          // key:NAME, role:NAME, function:NAME, anonymous
	Action    string `json:"action"`             // invoke, call, deploy, ...
	Resource  string `json:"resource"`           // a function, "GET /path", "-" for the tenant
	OnBehalf  string `json:"onBehalf,omitempty"` // who began a call between functions
}

// Answer is what would be decided.
type Answer struct {
	Allow    bool   `json:"allow"`
	Reason   string `json:"reason"`
	Fix      string `json:"fix,omitempty"`
	Policies []Rule `json:"policies"`
}

// Rule is a rule that determined a decision.
type Rule struct {
	ID    string `json:"id"`
	Text  string `json:"text,omitempty"` // Cedar; empty if it is not there any more, or not for these eyes
	From  string `json:"from"`
	Field string `json:"field,omitempty"` // of a manifest
}

// Case is one line of a test of guardrails.
type Case struct {
	Question
	Allow bool `json:"allow"` // what is expected
}

// CaseResult is what came of it.
type CaseResult struct {
	Case
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
}

// Explanation says why a decision was as it was.
type Explanation struct {
	Record   bawn.Record `json:"record"`
	Policies []Rule      `json:"policies"`
	Fix      string      `json:"fix,omitempty"`
}

func scope(installation bool) url.Values {
	if !installation {
		return nil
	}
	return url.Values{"installation": {"true"}}
}

// Guardrails lists the tenant's guardrails, or those of the installation.
func (c *Client) Guardrails(ctx context.Context, installation bool) ([]Guardrail, error) {
	var out struct {
		Guardrails []Guardrail `json:"guardrails"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/policies", query: scope(installation)}, &out)
	return out.Guardrails, err
}

// Guardrail returns one by its name.
func (c *Client) Guardrail(ctx context.Context, name string, installation bool) (*Guardrail, error) {
	var out Guardrail
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/policies/" + url.PathEscape(name), query: scope(installation)}, &out)
}

// SetGuardrail makes a guardrail, or puts text in the place of what it says.
func (c *Client) SetGuardrail(ctx context.Context, name, text string, installation bool) (*Guardrail, error) {
	var out Guardrail
	body := map[string]string{"text": text}
	return &out, c.do(ctx, request{method: http.MethodPut, path: "/v1/policies/" + url.PathEscape(name), query: scope(installation), json: body}, &out)
}

// RemoveGuardrail takes a guardrail away.
func (c *Client) RemoveGuardrail(ctx context.Context, name string, installation bool) error {
	return c.do(ctx, request{method: http.MethodDelete, path: "/v1/policies/" + url.PathEscape(name), query: scope(installation)}, nil)
}

// TestPolicies answers cases with the guardrails as they are, or as they would be
// with text in the place of the one called name.
func (c *Client) TestPolicies(ctx context.Context, cases []Case, name, text string, installation bool) ([]CaseResult, error) {
	var out struct {
		Results []CaseResult `json:"results"`
	}
	body := struct {
		Cases []Case `json:"cases"`
		Name  string `json:"name,omitempty"`
		Text  string `json:"text,omitempty"`
	}{cases, name, text}
	err := c.do(ctx, request{method: http.MethodPost, path: "/v1/policies", query: scope(installation), json: body}, &out)
	return out.Results, err
}

// Can asks ahead of time.
func (c *Client) Can(ctx context.Context, q Question) (*Answer, error) {
	var out Answer
	return &out, c.do(ctx, request{method: http.MethodPost, path: "/v1/can", json: q}, &out)
}

// Explain says why decisions were as they were: id is of a record, an index in
// the audit log, or of an invocation.
func (c *Client) Explain(ctx context.Context, id string) ([]Explanation, error) {
	var out struct {
		Decisions []Explanation `json:"decisions"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/explain/" + url.PathEscape(id)}, &out)
	return out.Decisions, err
}
