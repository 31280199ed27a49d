package bawntest

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// TestH3BudgetEnds has a public function called until what it may use in a day is
// used up: by strangers, whose part ends before that of others, and by a known
// caller. The node is started anew in between, which gives nobody anything back.
func TestH3BudgetEnds(t *testing.T) {
	n := NewNode(t)
	n.NeedSandbox()
	runtime := n.NeedRuntime(Pythons()...)
	day := func() int { return time.Now().UTC().Day() }
	today := day()
	n.MustDeploy("shop", map[string]any{
		"runtime": string(runtime), "handler": "app.handler",
		"ingress": map[string]any{
			"http":   []map[string]any{{"method": "GET", "path": "/shop", "access": map[string]any{"public": map[string]any{"reason": "test", "until": "2099-01-01"}}}},
			"budget": map[string]any{"calls": "5/day", "anonymous": "2/day", "cpu": "3600s/day"},
		},
	}, map[string]string{"app.py": "def handler(event, context):\n    return {'statusCode': 200, 'body': str(sum(range(100000)))}\n"})
	stranger := func() (int, http.Header) {
		resp, err := n.HTTP.Get(n.Context.Public + "/shop")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode, resp.Header
	}
	known := func() error {
		_, err := n.Client.Invoke(t.Context(), "shop", "", []byte("{}"))
		return err
	}
	for range 2 {
		if code, _ := stranger(); code != 200 {
			t.Fatalf("a call within the budget: %d", code)
		}
	}
	code, header := stranger()
	if s, _ := strconv.Atoi(header.Get("Retry-After")); code != 429 || s < 1 || s > 24*3600+60 {
		t.Errorf("a call of a stranger beyond: %d, Retry-After %q", code, header.Get("Retry-After"))
	}
	if err := known(); err != nil {
		t.Errorf("a known caller, once the strangers' part is used up: %v", err)
	}
	n.Restart()
	n.NeedSandbox()
	for range 2 {
		if err := known(); err != nil {
			t.Errorf("a known caller: %v", err)
		}
	}
	if err := known(); bawn.ErrorCode(err) != bawn.CodeThrottled {
		t.Errorf("a call beyond all: %v", err)
	}
	if today != day() {
		t.Skip("the day ended meanwhile")
	}
	var charged, refused int
	err := n.Client.Events(t.Context(), client.EventQuery{Function: "shop"}, func(r bawn.Record) error {
		switch f := strings.Fields(r.Detail["charge"]); {
		case r.Kind == bawn.KindOutcome && len(f) == 8:
			charged++
			if cpu, _ := strconv.Atoi(f[3]); cpu <= 0 || f[2] != "1" {
				t.Errorf("a call was charged %q", r.Detail["charge"])
			}
		case r.Control == "H3" || r.Control == "H4":
			if r.Action == "invoke" {
				refused++
				if r.Detail["budget"] == "" || r.Detail["limit"] == "" || r.Detail["ends"] == "" {
					t.Errorf("the record of a refusal: %+v", r)
				}
			}
		}
		return nil
	})
	if err != nil || charged != 5 || refused != 2 {
		t.Errorf("%d calls were charged and %d refusals recorded, want 5 and 2; %v", charged, refused, err)
	}
}
