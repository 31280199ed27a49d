package bawntest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// brittle fails at what its caller asks it to.
const brittle = `
import json
def handler(event, context):
    if "rawPath" in event:
        event = json.loads(event["body"])
    if event.get("fail"):
        raise ValueError("as asked for")
    return "well"
`

// TestH8RetryStorm has a crowd without a credential call a function that fails at
// each of their calls, and again at once. It is run for few of them, whoever is
// known goes on being answered, and once it works it is answered itself.
func TestH8RetryStorm(t *testing.T) {
	n := newTown(t)
	spec := map[string]any{"runtime": string(n.rt), "handler": "app.handler", "interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}}}
	public("/brittle")(spec)
	n.MustDeploy("brittle", spec, map[string]string{"app.py": brittle})
	if got := n.MustInvoke("brittle", `{}`); got != `"well"` {
		t.Fatal(got)
	}
	post := func(body string) (*http.Response, string) {
		res, err := n.HTTP.Do(n.post("/brittle", body)())
		if err != nil {
			t.Error(err)
			return nil, ""
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res, string(b)
	}
	const crowd, each = 8, 200
	var failed, refused atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	for range crowd {
		wg.Go(func() {
			for range each {
				res, body := post(`{"fail": true}`)
				switch {
				case res == nil:
					return
				case res.StatusCode == http.StatusBadGateway:
					failed.Add(1)
				case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "" && !strings.Contains(body, "fail"):
					refused.Add(1)
				default:
					t.Errorf("%d %s", res.StatusCode, body)
					return
				}
			}
		})
	}
	wg.Wait()
	for range 5 {
		if got := n.MustInvoke("brittle", `{}`); got != `"well"` {
			t.Errorf("who is known is answered %s", got)
		}
	}
	// Twenty, those that ran beside the twentieth, and one for each pause.
	most := int64(20+crowd) + int64(time.Since(began)/time.Second) + 1
	ran := n.records(func(r *bawn.Record) bool {
		return r.Kind == bawn.KindOutcome && r.Function == "brittle" && strings.HasPrefix(r.Principal, "anonymous")
	})
	if int64(len(ran)) != failed.Load() || failed.Load() > most || failed.Load()+refused.Load() != crowd*each {
		t.Errorf("the function ran %d times, and %d calls heard so; want %d at most. %d were refused", len(ran), failed.Load(), most, refused.Load())
	}
	n.until("what the owner should read", func() bool {
		found := false
		if err := n.Logs(t.Context(), "brittle", client.LogQuery{Limit: 1000}, func(l bawn.LogLine) error {
			found = found || l.Platform && strings.Contains(l.Text, "answered 503")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return found
	})
	n.until("an answer", func() bool {
		res, body := post(`{}`)
		return res != nil && res.StatusCode == http.StatusOK && strings.Contains(body, "well")
	})
	var turns []string
	for _, r := range n.records(func(r *bawn.Record) bool { return r.Action == "breaker" }) {
		turns = append(turns, r.Function+" "+r.Outcome+" "+r.Control)
	}
	if got := strings.Join(turns, ", "); got != "brittle deny H8, brittle allow H8" {
		t.Errorf("changes on record: %s", got)
	}
}
