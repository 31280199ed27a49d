package node

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

func observation(function string, cold bool) invoke.Observation {
	return invoke.Observation{
		Call: &bawn.Call{ID: bawn.NewID()}, Version: &bawn.Version{Tenant: "main", Function: function, Number: 1},
		Result: &bawn.Result{Usage: bawn.Usage{Cold: cold}}, Duration: 3 * time.Millisecond,
	}
}

func TestCallsAreCounted(t *testing.T) {
	mm := newMetrics("v")
	mm.observe(observation("f", true))
	mm.observe(observation("f", false))
	failed := observation("f", false)
	failed.Result.FunctionError = "Unhandled"
	mm.observe(failed)
	mm.observe(invoke.Observation{Call: &bawn.Call{}, Version: failed.Version, Err: bawn.Errorf(bawn.CodeThrottled, "x", "full")})
	mm.observe(invoke.Observation{Call: &bawn.Call{Target: bawn.Ref{Function: "\x00guessed"}}, Err: bawn.Errorf(bawn.CodeNotFound, "x", "no")})
	want := map[string]float64{
		"main/f/error": 1, "main/f/ok": 2, "main/f/refused": 1,
		"/unknown/error": 0, "/unknown/ok": 0, "/unknown/refused": 1,
	}
	if got := counted(t, mm); !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	mm.forget("main", "f")
	if got := counted(t, mm); len(got) != 3 {
		t.Errorf("after the function was removed: %v", got)
	}
}

// counted returns the counters of calls, by tenant/function/outcome.
func counted(t *testing.T, m *metrics) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "bawn_invocations_total" {
			continue
		}
		for _, s := range f.GetMetric() {
			l := map[string]string{}
			for _, p := range s.GetLabel() {
				l[p.GetName()] = p.GetValue()
			}
			got[l["tenant"]+"/"+l["function"]+"/"+l["outcome"]] = s.GetCounter().GetValue()
		}
	}
	return got
}

func TestSeriesAreBounded(t *testing.T) {
	mm := newMetrics("v")
	for i := range maxMetricFunctions + 500 {
		mm.observe(observation(fmt.Sprintf("f%d", i), false))
	}
	if n := len(mm.known); n > maxMetricFunctions+1 {
		t.Errorf("%d functions have series", n)
	}
	if v := counted(t, mm)["/other/ok"]; v != 500 {
		t.Errorf("counted together: %v", v)
	}
}
