package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/ingress/waf"
	"bawn.dev/bawn/internal/schema"
)

// inspect is what the search for attacks costs an ordinary order of 1 KB: with a
// schema, where the engine reads the request's head and of the body only what the
// schema leaves free and could match a rule; without one; and where the engine is
// handed the whole body, as it is where it stands by itself.
func (b *bench) inspect() error {
	rules, err := schema.Compile(orderSchema)
	if err != nil {
		return err
	}
	i := waf.New()
	defer i.Close()
	i.Need(true)
	n := 0
	next := func(known bool) *bawn.Request { // no two bodies are alike, nor heads unless the client is known
		n++
		body := strings.Replace(string(order()), "2b0f1f7e", fmt.Sprintf("%08x", n), 1)
		body = strings.Replace(body, "number 12", "number "+strconv.Itoa(n), 1)
		r := &bawn.Request{
			Method: "POST", Host: "shop.example", Path: "/orders", Proto: "HTTP/1.1", Body: []byte(body),
			Header: map[string][]string{
				"User-Agent": {"curl/8.5.0"}, "Accept": {"*/*"}, "Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))},
			},
		}
		if !known {
			r.Header["X-Request-Id"] = []string{strconv.Itoa(n)}
		}
		return r
	}
	ask := func(known, held, whole bool) (float64, error) {
		r := next(known)
		began := time.Now()
		q := waf.Question{Request: r, Level: 1}
		if whole {
			q.Body = r.Body
		} else {
			d, err := schema.Parse(r.Body, schema.MaxDepth)
			if err == nil && held {
				err = rules.Validate(d)
			}
			if err != nil {
				return 0, err
			}
			for l := range d.Free() {
				q.Leaves = append(q.Leaves, waf.Leaf{At: l.Node, Text: l.Text, Name: l.Name})
			}
		}
		v, err := i.Ask(context.Background(), q)
		if err == nil && v.Attack {
			err = fmt.Errorf("an ordinary order is taken for an attack by %v", v.Rules)
		}
		return float64(time.Since(began)) / 1e3, err
	}
	ways := []struct {
		name               string
		known, held, whole bool
		p50, p99           []float64
	}{
		{name: "with a schema", held: true}, {name: "without a schema"}, {name: "the whole body to the engine", whole: true},
		{name: "with a schema, and a head that was seen before", held: true, known: true},
	}
	if _, err := ask(false, false, true); err != nil { // the rules are loaded
		return err
	}
	for range b.rounds {
		for w := range ways {
			var each []float64
			for began := time.Now(); time.Since(began) < time.Second || len(each) < 50; {
				us, err := ask(ways[w].known, ways[w].held, ways[w].whole)
				if err != nil {
					return err
				}
				each = append(each, us)
			}
			ways[w].p50, ways[w].p99 = append(ways[w].p50, median(each)), append(ways[w].p99, quantile(each, 0.99))
		}
	}
	for _, w := range ways {
		b.price("inspect, "+w.name, median(w.p50), median(w.p99), "1 KB of JSON, level 1")
	}
	b.compare("inspection of an order with a schema, p50", "µs", "the whole body to the engine", ways[0].p50, ways[2].p50, atMost(0.25), "level 1")
	return nil
}
