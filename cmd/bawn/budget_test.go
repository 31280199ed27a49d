package main

import (
	"context"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// TestH3KilledNodeKeepsTheMeter kills a node that calls come to. Each call that was
// answered is in the meter once; beside those there can only be calls that ran when
// the node was killed. The audit log says the same as the meter, number by number.
func TestH3KilledNodeKeepsTheMeter(t *testing.T) {
	s := newServer(t, filepath.Join(t.TempDir(), "data"))
	s.deploy()
	if err := s.SetPrices(t.Context(), bawn.Prices{Call: 7, CPU: 1_000_000, Memory: 3_000}); err != nil {
		t.Fatal(err)
	}
	const callers = 6
	var answered atomic.Int64
	for range 2 { // the second time there is a journal, and calls that a kill left
		var load sync.WaitGroup
		var over atomic.Bool
		node := s.Client
		before := answered.Load()
		for range callers {
			load.Go(func() {
				for !over.Load() {
					inv, err := node.Invoke(context.Background(), "f", "", []byte(`{"sleep": 0.01}`))
					if err != nil {
						continue
					}
					body, err := io.ReadAll(inv.Body)
					inv.Body.Close()
					if err == nil && len(body) > 0 && inv.FunctionError == "" {
						answered.Add(1)
					}
				}
			})
		}
		until(t, "calls are answered", func() string {
			if n := answered.Load() - before; n < 60 {
				return strconv.FormatInt(n, 10) + " were"
			}
			return ""
		})
		s.kill(s.cmd.Process.Pid)
		over.Store(true)
		load.Wait()
		s.start()
	}
	cost, err := s.Cost(t.Context(), client.CostQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if cost.From.Month() != time.Now().UTC().Month() {
		t.Skip("the month ended meanwhile")
	}
	if n := answered.Load(); cost.Total.Calls < n || cost.Total.Calls > n+2*callers {
		t.Errorf("%d calls were answered, the meter has %d", n, cost.Total.Calls)
	}
	for name, list := range map[string][]bawn.Blame{"function": cost.Functions, "caller": cost.Callers, "tenant": cost.Tenants} {
		var sum bawn.Spending
		for _, b := range list {
			add(&sum, b.Use)
		}
		if sum != cost.Total {
			t.Errorf("by %s the sum is %+v, the total %+v", name, sum, cost.Total)
		}
	}
	var journal bawn.Spending
	seen := map[string]bool{}
	err = s.Events(t.Context(), client.EventQuery{Function: "f", Kinds: []bawn.RecordKind{bawn.KindOutcome}}, func(r bawn.Record) error {
		f := strings.Fields(r.Detail["charge"])
		if r.Action != "invoke" || len(f) != 8 {
			return nil
		}
		if seen[r.Invocation] {
			t.Errorf("%s has two outcomes", r.Invocation)
		}
		seen[r.Invocation] = true
		var n [5]int64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseInt(f[2+i], 10, 64); err != nil {
				return err
			}
		}
		add(&journal, bawn.Spending{Calls: n[0], CPU: n[1], Memory: n[2], Egress: n[3], Money: n[4]})
		return nil
	})
	if err != nil || journal != cost.Total {
		t.Errorf("the audit log has %+v, the meter %+v, %v", journal, cost.Total, err)
	}
	if cost.Total.CPU == 0 || cost.Total.Money == 0 {
		t.Errorf("calls cost nothing: %+v", cost.Total)
	}
}

func add(sum *bawn.Spending, u bawn.Spending) {
	sum.Calls += u.Calls
	sum.CPU += u.CPU
	sum.Memory += u.Memory
	sum.Egress += u.Egress
	sum.Money += u.Money
}
