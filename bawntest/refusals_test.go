package bawntest

import (
	"bufio"
	"context"
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
	"bawn.dev/bawn/internal/node"
)

// metric returns the sum of what a node's metrics say under names that begin so.
func (n *Node) metric(begin string) (sum float64) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), "GET", n.URL()+"/metrics", nil)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+n.Context.Key)
	res, err := n.HTTP.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	lines, found := bufio.NewScanner(res.Body), false
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), begin) {
			v, err := strconv.ParseFloat(lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:], 64)
			if err != nil {
				n.t.Fatal(err)
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		n.t.Fatalf("there is no metric %s", begin)
	}
	return sum
}

// openRoute is the ingress of a function with one public route and what more says
// of that.
func openRoute(path string, more map[string]any) map[string]any {
	r := map[string]any{"method": "POST", "path": path, "inspect": "off", "access": map[string]any{
		"public": map[string]any{"reason": "a test", "until": "2099-12-31"}}}
	for k, v := range more {
		r[k] = v
	}
	return map[string]any{"http": []any{r}}
}

// TestH7RefusedStartsNothing has a node refuse calls for every reason there is. No
// sandbox is made for any: there is none that one could run in, and none comes to be.
func TestH7RefusedStartsNothing(t *testing.T) {
	n := NewNode(t, func(c *node.Config) {
		c.Warm = -1
		c.AddressRate, c.AddressRateAtHome = bawn.Rate{Calls: 600, Per: 24 * time.Hour}, true
	})
	rt := n.NeedRuntime(Pythons()...)
	deploy := func(name string, ingress map[string]any, edit ...func(map[string]any)) {
		t.Helper()
		spec := map[string]any{"runtime": string(rt), "handler": "app.handler", "ingress": ingress, "interior": map[string]any{"timeout": "20s", "reuse": "never"}}
		for _, e := range edit {
			e(spec)
		}
		n.MustDeploy(name, spec, map[string]string{"app.py": agent})
	}
	keep := func(spec map[string]any) {
		spec["interior"] = map[string]any{"timeout": "60s", "reuse": map[string]any{"maxAge": "1h"}}
	}
	schema := map[string]any{"schema": map[string]any{"type": "object", "required": []any{"order"}}}
	deploy("locked", map[string]any{"http": []any{map[string]any{"method": "POST", "path": "/locked"}}})
	deploy("strict", openRoute("/strict", map[string]any{"input": schema}))
	deploy("rated", openRoute("/rated", map[string]any{"input": schema, "limits": map[string]any{"rate": "1/d"}}))
	deploy("searched", openRoute("/searched", map[string]any{"inspect": map[string]any{"mode": "block", "level": 1}}))
	spent := openRoute("/spent", nil)
	spent["budget"] = map[string]any{"calls": "2/day"} // strangers have half
	deploy("spent", spent)
	deploy("traced", openRoute("/traced", nil), keep)
	deploy("broken", openRoute("/broken", nil), keep)
	deploy("narrow", openRoute("/narrow", nil), func(spec map[string]any) {
		spec["interior"] = map[string]any{"timeout": "20s", "reuse": "never", "concurrency": 1}
	})

	send := func(req *http.Request) (int, http.Header, string) {
		t.Helper()
		res, err := n.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, res.Header, string(b)
	}
	post := func(path, body string, header ...string) func() (int, string) {
		return func() (int, string) {
			code, _, text := send(n.post(path, body, header...)())
			return code, text
		}
	}
	// What has to happen before they are refused.
	if code, text := post("/spent", `{"say": 1}`)(); code != http.StatusOK {
		t.Fatal(code, text)
	}
	trace := ""
	for range bawn.MaxHops + 1 {
		code, text := post("/traced", `{"trace": true}`, "X-Amzn-Trace-Id", trace)()
		if trace = strings.Trim(text, `"`); code != http.StatusOK {
			t.Fatal(code, text)
		}
	}
	shut := func() (int, string) { // each pause ends with a call that runs
		for range 100 {
			if code, text := post("/broken", `{"calls": 1}`)(); code != http.StatusBadGateway {
				return code, text
			}
		}
		return 0, "it goes on running"
	}
	if code, text := shut(); code != http.StatusServiceUnavailable {
		t.Fatal(code, text)
	}
	post("/rated", `{}`)() // does not fit, and is a call all the same

	viewer := n.MustKey(bawn.RoleViewer)
	before := n.metric("bawn_sandboxes_started_total")
	for _, c := range []struct {
		name string
		code int
		ask  func() (int, string)
	}{
		{"no credential", 401, post("/locked", `{}`)},
		{"a wrong credential", 401, post("/locked", `{}`, bearer("bawn_nobody_x")...)},
		{"a wrong credential where none is needed", 401, post("/strict", `{"order": 1}`, bearer("bawn_nobody_x")...)},
		{"by name, no credential", 403, post("/2015-03-31/functions/locked/invocations", `{}`)},
		{"the policy", 403, post("/locked", `{}`, bearer(viewer)...)},
		{"by name, nobody there", 404, post("/2015-03-31/functions/nobody/invocations", `{}`, bearer(n.Context.Key)...)},
		{"no route", 404, post("/nothing", `{}`)},
		{"a path of two meanings", 400, post("/a/%2e%2e/strict", `{"order": 1}`)},
		{"the input", 400, post("/strict", `{}`)},
		{"no JSON", 400, post("/strict", `{"order": 1, "order": 2}`)},
		{"an attack", 403, post("/searched", `{"name": "x' OR 1=1 --"}`)},
		{"too large", 413, func() (int, string) {
			r := n.post("/strict", "")()
			r.Body, r.ContentLength = io.NopCloser(io.LimitReader(endless{}, bawn.MaxEventBytes+1)), bawn.MaxEventBytes+1
			code, _, text := send(r)
			return code, text
		}},
		{"a rate", 429, post("/rated", `{"order": 1}`)},
		{"a budget", 429, post("/spent", `{"say": 1}`)},
		{"too many hops", 403, post("/traced", `{"trace": true}`, "X-Amzn-Trace-Id", trace)},
		{"a changed trace", 400, post("/traced", `{"trace": true}`, "X-Amzn-Trace-Id", trace+";"+trace[strings.Index(trace, "Bawn="):])},
		{"the breaker", 503, shut},
	} {
		if code, text := c.ask(); code != c.code {
			t.Errorf("%s: %d %s, want %d", c.name, code, text, c.code)
		}
		if after := n.metric("bawn_sandboxes_started_total"); after != before {
			t.Errorf("%s: %v sandboxes were made", c.name, after-before)
			before = after
		}
	}
	for _, name := range []string{"locked", "strict", "rated", "searched"} {
		if ran := n.records(func(r *bawn.Record) bool { return r.Kind == bawn.KindOutcome && r.Function == name }); len(ran) != 0 {
			t.Errorf("%s ran: %+v", name, ran)
		}
	}

	// Of a crowd one has the only slot, and the rest wait in vain or may not.
	var wg sync.WaitGroup
	var refused atomic.Int64
	const crowd = 140
	for range crowd {
		wg.Go(func() {
			res, err := n.HTTP.Do(n.post("/narrow", `{"sleep": 12, "say": 1}`)())
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") != "" {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if made := n.metric("bawn_sandboxes_started_total") - before; refused.Load() != crowd-int64(made) || made > 2 {
		t.Errorf("%d of %d were refused, and %v sandboxes made", refused.Load(), crowd, made)
	}
	if n.metric(`bawn_admission_total{check="share"}`) == 0 {
		t.Log("this host was too slow for a crowd")
	}

	// Last, since from then on nothing else gets through.
	before = n.metric("bawn_sandboxes_started_total")
	for range 600 {
		if code, h, _ := send(n.post("/traced", `{"trace": true}`, "X-Amzn-Trace-Id", trace)()); code == http.StatusTooManyRequests && strings.HasPrefix(h.Get("RateLimit"), `"flood"`) {
			break
		}
	}
	if n.metric(`bawn_admission_total{check="flood"}`) == 0 {
		t.Error("the address is not held to the node's rate")
	}
	if after := n.metric("bawn_sandboxes_started_total"); after != before {
		t.Errorf("a flood: %v sandboxes were made", after-before)
	}
}

// endless is text without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestH8GoodCallsGoOn has ten times as many without a credential come as with one,
// each again at once, to a function with two slots. Every call of those who are
// known is answered; what the others hear is an answer or that they should come
// later.
func TestH8GoodCallsGoOn(t *testing.T) {
	n := newTown(t)
	spec := map[string]any{"runtime": string(n.rt), "handler": "app.handler", "ingress": openRoute("/busy", nil),
		"interior": map[string]any{"concurrency": 2, "timeout": "30s", "reuse": map[string]any{"maxAge": "1h"}}}
	n.MustDeploy("busy", spec, map[string]string{"app.py": agent})
	const known, each = 12, 15
	keys := make([]string, known)
	for i := range keys {
		k, err := n.CreateKey(t.Context(), client.NewKey{Name: "known-" + strconv.Itoa(i), Role: bawn.RoleInvoker})
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k.Secret
	}
	if got := n.MustInvoke("busy", `{"say": "well"}`); got != `"well"` {
		t.Fatal(got)
	}
	ctx, stop := context.WithTimeout(t.Context(), 90*time.Second)
	defer stop()
	ask := func(ctx context.Context, header ...string) (int, string, error) {
		res, err := n.HTTP.Do(n.post("/busy", `{"say": "well"}`, header...)().WithContext(ctx))
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.StatusCode, string(b) + res.Header.Get("Retry-After"), err
	}
	var crowd, callers sync.WaitGroup
	var answered, refused atomic.Int64
	flood, end := context.WithCancel(ctx)
	for range 10 * known {
		crowd.Go(func() {
			for {
				switch code, text, err := ask(flood); {
				case flood.Err() != nil:
					return
				case err != nil:
					t.Error(err)
					return
				case code == http.StatusOK:
					answered.Add(1)
				case (code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable) && !strings.HasSuffix(strings.TrimSpace(text), "}"):
					refused.Add(1)
				default:
					t.Errorf("%d %s", code, text)
					return
				}
			}
		})
	}
	var good atomic.Int64
	for _, key := range keys {
		callers.Go(func() {
			for range each {
				if code, text, err := ask(ctx, bearer(key)...); err != nil || code != http.StatusOK {
					t.Errorf("a known caller hears %d %s %v", code, text, err)
				} else {
					good.Add(1)
				}
			}
		})
	}
	callers.Wait()
	end()
	crowd.Wait()
	t.Logf("%d of %d calls of the known were answered; %d of the others, and %d refused", good.Load(), known*each, answered.Load(), refused.Load())
	if refused.Load() == 0 {
		t.Log("nobody was refused: this host was no slower than its callers")
	}
	if n.metric("bawn_calls_running") != 0 {
		n.until("all calls to be over", func() bool { return n.metric("bawn_calls_running") == 0 })
	}
}
