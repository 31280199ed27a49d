package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn/client"
	live "bawn.dev/bawn/internal/node"
)

// orderSchema is what an order must look like. Its text is all held to a pattern, a
// format or a list, but for one note.
const orderSchema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object", "additionalProperties": false, "required": ["id", "customer", "currency", "items"],
  "properties": {
    "id": {"type": "string", "format": "uuid"},
    "customer": {"type": "object", "additionalProperties": false, "required": ["id", "email"], "properties": {
      "id": {"type": "integer", "minimum": 1}, "email": {"type": "string", "format": "email", "maxLength": 200}}},
    "currency": {"enum": ["EUR", "GBP", "USD"]},
    "ordered": {"type": "string", "format": "date-time"},
    "items": {"type": "array", "minItems": 1, "maxItems": 100, "items": {
      "type": "object", "additionalProperties": false, "required": ["sku", "quantity", "price"], "properties": {
        "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
        "quantity": {"type": "integer", "minimum": 1, "maximum": 1000},
        "price": {"type": "number", "minimum": 0}}}},
    "note": {"type": "string", "maxLength": 500}
  }
}`

// order is an ordinary document of about 1 KB.
func order() []byte {
	items := make([]map[string]any, 14)
	for i := range items {
		items[i] = map[string]any{"sku": fmt.Sprintf("AB-%06d", 104729*(i+1)%1000000), "quantity": i%5 + 1, "price": 9.99 + float64(i)}
	}
	b, err := json.Marshal(map[string]any{
		"id": "2b0f1f7e-3d0c-4f4f-9a53-6c1d0f6a7c11", "customer": map[string]any{"id": 48211, "email": "mary.oconnor@example.com"},
		"currency": "EUR", "ordered": "2026-11-21T10:15:00Z", "items": items,
		"note": "Please ring twice, the gate sticks. Leave it with number 12 if nobody is at home; thanks for the quick delivery last time.",
	})
	if err != nil {
		panic(err) // a map of strings and numbers always can be written
	}
	return b
}

// wallTimes gathers what each check of the gate costs. It does as little as it can
// between two checks, so that it does not make the second one slower.
type wallTimes struct {
	mu   sync.Mutex
	on   bool
	took []checkTime
}

type checkTime struct {
	check string
	took  time.Duration
}

func (w *wallTimes) heard(check string, took time.Duration) {
	w.mu.Lock()
	if w.on {
		w.took = append(w.took, checkTime{check, took})
	}
	w.mu.Unlock()
}

func (w *wallTimes) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.took = true, make([]checkTime, 0, 1<<18)
}

// end returns what came since begin, in microseconds.
func (w *wallTimes) end() map[string][]float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = false
	all := map[string][]float64{}
	for _, t := range w.took {
		all[t.check] = append(all[t.check], float64(t.took)/1e3)
	}
	return all
}

// wallChecks are the gate's, in its order, and what each has to do for the call that
// is measured.
var wallChecks = []struct{ name, does string }{
	{"draining", "is the node stopping"},
	{"size", "of the event"},
	{"flood", "the address against the node's rate"},
	{"resolve", "route and version, from memory"},
	{"loop", "the signed count of hops"},
	{"authenticate", "an API key"},
	{"known", "may the caller know the name"},
	{"breaker", "does the function fail at every call"},
	{"rate", "the function's rate, for each caller"},
	{"authorize", "Cedar, and the decision in the audit log"},
	{"share", "calls at one time"},
	{"budget", "reserve calls, CPU and memory"},
	{"input", "strict JSON of 1 KB against a schema"},
}

// wall is the price of each check of the gate, on warm calls that pass all of them,
// beside a bare call over TLS.
func (b *bench) wall() error {
	var times wallTimes
	dir := filepath.Join(b.dir, "wall")
	file := filepath.Join(dir, "context.json")
	n, err := live.Open(context.Background(), live.Config{
		Data: filepath.Join(dir, "data"), ContextFile: file, Public: "127.0.0.1:0", Admin: "127.0.0.1:0", Solo: true, Timed: times.heard,
	})
	if err != nil {
		return err
	}
	b.ends = append(b.ends, sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		n.Close(ctx)
	}))
	at := &node{dir: dir}
	if at.ctx, err = client.LoadContext(file); err != nil {
		return err
	}
	if at.api, err = client.New(at.ctx); err != nil {
		return err
	}
	python, _, err := at.interpreters()
	if err != nil {
		return err
	}
	if err := at.deploy(function{name: "wall", runtime: python.runtime, reuse: map[string]any{"maxAge": "1h"}, ingress: map[string]any{
		"http": []any{map[string]any{
			"method": "POST", "path": "/wall", "input": map[string]any{"schema": json.RawMessage(orderSchema)}, "inspect": map[string]any{"mode": "off"},
		}},
		"limits": map[string]any{"rate": "1000000/s per caller"},
		"budget": map[string]any{"calls": "1000000000/day", "cpu": "1000000s/day", "memory": "1000000GBs/day"},
	}}); err != nil {
		return err
	}
	t, err := at.target("wall")
	if err != nil {
		return err
	}
	t.post(order())
	bare, err := b.startBaseline("-serve", "outside")
	if err != nil {
		return err
	}
	base, err := newTarget(bare.URL, "/hello", bare.CA, "", http.StatusOK)
	if err != nil {
		return err
	}
	if _, _, err := t.loop(1, time.Second); err != nil {
		return err
	}
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	var together, together99, baseP50, baseP99 []float64
	for range b.rounds {
		calls, _, err := base.loop(1, time.Second)
		if err != nil {
			return err
		}
		baseP50, baseP99 = append(baseP50, 1e3*median(calls)), append(baseP99, 1e3*quantile(calls, 0.99))
		times.begin()
		if _, _, err := t.loop(1, 2*time.Second); err != nil {
			return err
		}
		heard := times.end()
		var sums []float64 // one connection: the nth of each check belong to one call
		for _, c := range wallChecks {
			each := heard[c.name]
			if len(each) == 0 {
				return fmt.Errorf("the check %s was not heard of", c.name)
			}
			p50[c.name], p99[c.name] = append(p50[c.name], median(each)), append(p99[c.name], quantile(each, 0.99))
			for i, us := range each {
				if i == len(sums) {
					sums = append(sums, 0)
				}
				sums[i] += us
			}
		}
		together, together99 = append(together, median(sums)), append(together99, quantile(sums, 0.99))
	}
	for _, c := range wallChecks {
		b.price(c.name, median(p50[c.name]), median(p99[c.name]), c.does)
	}
	b.price("all together", median(together), median(together99), "of one call, without inspection")
	b.compare("all checks of a warm call, p50", "µs", "a bare net/http call over TLS", together, baseP50, atMost(1), "without inspection of the text")
	b.compare("all checks of a warm call, p99", "µs", "a bare net/http call over TLS", together99, baseP99, atMost(1), "")
	return nil
}

// price prints what one check costs: a figure to know, and no goal.
func (b *bench) price(name string, p50, p99 float64, does string) {
	b.results = append(b.results, Result{Name: "check " + name, Unit: "µs", Bawn: p50, Goal: "none", Met: true, Note: "p99 " + number(p99) + " µs: " + does})
	if !b.quiet {
		fmt.Printf("%-44s %12s %s\n", "check "+name, number(p50)+" µs", strings.TrimSpace("p99 "+number(p99)+" µs   "+does))
	}
}
