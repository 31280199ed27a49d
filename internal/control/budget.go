package control

import (
	"slices"

	"bawn.dev/bawn"
)

// budgetChanges lists the budgets that are different. Less of a bound is more of a
// perimeter; a function that never had one is not widened by having none.
func budgetChanges(a, b *bawn.Version, add func(field, before, after string, widens bool)) {
	old, now := a.Perimeter.Ingress.Budget, b.Perimeter.Ingress.Budget
	same := func(g bawn.Grant) func(bawn.Grant) bool {
		return func(o bawn.Grant) bool { return o.Of == g.Of && o.Meter == g.Meter && o.Per == g.Per }
	}
	field := func(g bawn.Grant) string {
		of := ""
		if g.Of != "" {
			of = g.Of + "."
		}
		return "ingress.budget." + of + g.Meter + "[" + g.Per + "]"
	}
	for _, g := range now {
		before, widens := "", false
		if i := slices.IndexFunc(old, same(g)); i >= 0 {
			before, widens = bawn.MeterText(g.Meter, old[i].Amount), g.Amount > old[i].Amount
		} else if g.Of == bawn.OfAnonymous {
			// One of their own takes the place of their half of a budget of all.
			for _, o := range old {
				widens = widens || o.Of == "" && o.Meter == g.Meter && (o.Per != g.Per || g.Amount > o.Amount/2)
			}
		}
		add(field(g), before, bawn.MeterText(g.Meter, g.Amount), widens)
	}
	for _, g := range old {
		if !slices.ContainsFunc(now, same(g)) {
			add(field(g), bawn.MeterText(g.Meter, g.Amount), "", true)
		}
	}
}
