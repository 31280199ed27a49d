package client

import (
	"context"
	"net/http"

	"bawn.dev/bawn"
)

// Test runs the tests of what [Client.Deploy] of the same would make a version
// of, and makes none. That a test fails is in the results and no error.
func (c *Client) Test(ctx context.Context, name string, spec any, artifact string) ([]bawn.TestResult, error) {
	return c.test(ctx, request{json: map[string]any{"spec": spec, "artifact": artifact}}, name)
}

// TestVersion runs the tests of the version that qualifier (a number, an alias,
// or "" for live) means.
func (c *Client) TestVersion(ctx context.Context, name, qualifier string) ([]bawn.TestResult, error) {
	return c.test(ctx, request{query: qualifierQuery(qualifier), json: map[string]any{}}, name)
}

func (c *Client) test(ctx context.Context, r request, name string) ([]bawn.TestResult, error) {
	r.method, r.path = http.MethodPost, functionPath(name, "tests")
	var out struct {
		Results []bawn.TestResult `json:"results"`
	}
	err := c.do(ctx, r, &out)
	return out.Results, err
}
