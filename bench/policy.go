package main

import (
	"fmt"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// policies is a decision on a call while the rules of 5,000 functions are
// compiled, against one with 5. The same five functions are called in both: what
// is measured is what the rules of others cost. It is the decision alone, without
// its record.
func (b *bench) policies() error {
	few, many := decisions(5), decisions(5000)
	// Short turns, so that what else the machine does meets both sides alike.
	const turns, each = 200, 200
	var with, without []float64
	for range b.rounds {
		var a, b [turns]float64
		for i := range turns {
			d, err := few(each)
			if err != nil {
				return err
			}
			a[i] = float64(d.Nanoseconds()) / each / 1e3
			if d, err = many(each); err != nil {
				return err
			}
			b[i] = float64(d.Nanoseconds()) / each / 1e3
		}
		without, with = append(without, median(a[:])), append(with, median(b[:]))
	}
	b.compare("decision, 5,000 functions' rules in memory", "us", "the same with 5", with, without, atMost(1.5), "a call by key, without the record")
	return nil
}

// decisions returns what makes n decisions on the first five of so many functions.
func decisions(functions int) func(n int) (time.Duration, error) {
	e := policy.New(nil, nil)
	caller := bawn.Principal{Kind: bawn.PrincipalKey, ID: "bench", Tenant: bawn.DefaultTenant, Roles: []bawn.Role{bawn.RoleInvoker}}
	var first []policy.Request
	for i := range functions {
		v := &bawn.Version{Tenant: bawn.DefaultTenant, Function: fmt.Sprint("f", i), Number: 1, Digest: fmt.Sprint(i)}
		v.Perimeter.Ingress = bawn.Ingress{
			HTTP:    []bawn.Route{{Method: "POST", Path: fmt.Sprint("/f/", i)}},
			Callers: []string{"front", "role:ops"},
		}
		v.Perimeter.Egress.Functions = []string{"receipts"}
		req := policy.Request{Principal: caller, Action: policy.Invoke, Resource: v.Ref(), Target: v, Source: "127.0.0.1", Trigger: "http", Route: &v.Perimeter.Ingress.HTTP[0]}
		e.Ask(req) // compiles
		if i < 5 {
			first = append(first, req)
		}
	}
	return func(n int) (time.Duration, error) {
		begin := time.Now()
		for i := range n {
			if d := e.Ask(first[i%len(first)]); !d.Allow {
				return 0, fmt.Errorf("the decision is a denial: %s", d.Reason)
			}
		}
		return time.Since(begin), nil
	}
}
