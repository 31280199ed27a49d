package control

import (
	"slices"
	"strconv"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// limitChanges adds how the limits on calls differ. Fewer or weaker limits let
// more through.
func limitChanges(old, b *bawn.Version, add func(field, before, after string, widens bool)) {
	var x, y bawn.Limits
	if l := old.Perimeter.Ingress.Limits; l != nil {
		x = *l
	}
	if l := b.Perimeter.Ingress.Limits; l != nil {
		y = *l
	}
	add("ingress.limits.rate", manifest.RatesText(x.Rates), manifest.RatesText(y.Rates), !held(x.Rates, y.Rates))
	text := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	add("ingress.limits.concurrency", text(x.Concurrency), text(y.Concurrency), x.Concurrency > 0 && (y.Concurrency == 0 || y.Concurrency > x.Concurrency))
	before, after := routes(old), routes(b)
	for _, r := range b.Perimeter.Ingress.HTTP {
		key := r.String()
		if o := before[key]; o != nil { // of a new route its own line tells
			add("ingress.http["+key+"].limits", manifest.RatesText(o.Limits), manifest.RatesText(after[key].Limits), !held(o.Limits, after[key].Limits))
		}
	}
}

// held reports whether each of the rates in old is held by one of those in now.
func held(old, now []bawn.Rate) bool {
	burst := func(r bawn.Rate) int {
		if r.Burst > 0 {
			return r.Burst
		}
		return r.Calls
	}
	return !slices.ContainsFunc(old, func(o bawn.Rate) bool {
		return !slices.ContainsFunc(now, func(n bawn.Rate) bool {
			return n.By == o.By && int64(n.Calls)*int64(o.Per) <= int64(o.Calls)*int64(n.Per) && burst(n) <= burst(o)
		})
	})
}
