package bawntest

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
			"http":   []map[string]any{{"method": "GET", "path": "/shop", "access": map[string]any{"public": map[string]any{"reason": "test", "until": "2099-01-01"}}, "input": "none"}},
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
	left := int(time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)).Seconds())
	code, header := stranger()
	// Each is told a time of its own, up to a quarter later than the end of the day.
	if s, _ := strconv.Atoi(header.Get("Retry-After")); today == day() && (code != 429 || s < left-60 || s > left+left/4+60) {
		t.Errorf("a call of a stranger beyond: %d, Retry-After %q, with %d s of the day left", code, header.Get("Retry-After"), left)
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

// TestH4FloodOfStrangers has strangers call all the time, long after their part is
// used up: known callers are let in, and each budget is filled and never passed,
// whatever the shape of the load.
func TestH4FloodOfStrangers(t *testing.T) {
	n := NewNode(t)
	n.NeedSandbox()
	runtime := n.NeedRuntime(Pythons()...)
	const pool, known = 20, 100
	n.MustDeploy("shop", map[string]any{
		"runtime": string(runtime), "handler": "app.handler",
		"ingress": map[string]any{
			"http":   []map[string]any{{"method": "GET", "path": "/shop", "access": map[string]any{"public": map[string]any{"reason": "test", "until": "2099-01-01"}}, "input": "none"}},
			"budget": map[string]any{"calls": strconv.Itoa(pool+known) + "/month", "anonymous": strconv.Itoa(pool) + "/month"},
		},
	}, map[string]string{"app.py": "def handler(event, context):\n    return {'statusCode': 200}\n"})
	month := time.Now().UTC().Month()
	var let, stop atomic.Int64
	var flood sync.WaitGroup
	for range 4 {
		flood.Go(func() {
			for stop.Load() == 0 {
				if resp, err := n.HTTP.Get(n.Context.Public + "/shop"); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode == 200 {
						let.Add(1)
					}
				}
			}
		})
	}
	call := func() bool {
		inv, err := n.Client.Invoke(t.Context(), "shop", "", []byte("{}"))
		if err != nil {
			return false
		}
		io.Copy(io.Discard, inv.Body)
		inv.Body.Close()
		return inv.FunctionError == ""
	}
	good := 0
	for range known / 2 { // one after another
		if call() {
			good++
		}
	}
	var burst sync.WaitGroup
	var at atomic.Int64
	for range 4 { // and at once, until there is no more
		burst.Go(func() {
			for range known {
				if call() {
					at.Add(1)
				}
			}
		})
	}
	burst.Wait()
	stop.Store(1)
	flood.Wait()
	if time.Now().UTC().Month() != month {
		t.Skip("the month ended meanwhile")
	}
	if good < known/2 {
		t.Errorf("of %d calls of a known caller, one after another, %d succeeded", known/2, good)
	}
	if let.Load() != pool || int64(good)+at.Load() != known {
		t.Errorf("%d strangers and %d calls of known callers were let in, want %d and %d", let.Load(), int64(good)+at.Load(), pool, known)
	}
	cost, err := n.Client.Cost(t.Context(), client.CostQuery{})
	if err != nil || cost.Total.Calls != pool+known {
		t.Errorf("the meter has %d calls, want %d; %v", cost.Total.Calls, pool+known, err)
	}
	b, err := n.Client.Budget(t.Context(), "", "shop")
	if err != nil || len(b.Standings) != 2 || b.Standings[0].Used > b.Standings[0].Grant.Amount {
		t.Errorf("the budgets stand at %+v, %v", b, err)
	}
}
