package cli

import (
	"cmp"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newCost(a *app) *cobra.Command {
	var q client.CostQuery
	var by, since string
	c := &cobra.Command{
		Use:     "cost",
		GroupID: groupWatch,
		Short:   "Show what calls used and cost, and whose they were",
		Long: `Adds up what calls used: calls, processor time, memory for as long as they took, bytes to
and from what is outside, and money by the price table. The lines of each view, by
function, by caller and by tenant, add up to the same total. Who began a chain of calls is
the caller of all of it.

It counts whole windows of UTC: since this month began, or with --since from the hour (up
to 3 days back), the day (up to 62 days) or the month that holds that time; --per says
which. Kept are 72 hours, 62 days and 25 months. Money is what prices were at the time of
each call.`,
		Example: `  bawn cost
  bawn cost --by caller --since 24h
  bawn cost --by tenant -o json
  bawn cost prices`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			views := map[string]func(*bawn.Cost) []bawn.Blame{
				"function": func(c *bawn.Cost) []bawn.Blame { return c.Functions },
				"caller":   func(c *bawn.Cost) []bawn.Blame { return c.Callers },
				"tenant":   func(c *bawn.Cost) []bawn.Blame { return c.Tenants },
			}
			view := views[by]
			if view == nil {
				return usagef("--by %q: want function, caller or tenant", by)
			}
			if q.Per != "" && q.Per != bawn.PerHour && q.Per != bawn.PerDay && q.Per != bawn.PerMonth {
				return usagef("--per %q: want hour, day or month", q.Per)
			}
			var err error
			if q.Since, err = a.parseSince(since); err != nil {
				return err
			}
			if q.Per == "" && since != "" {
				q.Per = windowsFor(a.Now().Sub(q.Since))
			}
			q.All = by == "tenant" && q.Tenant == ""
			cost, err := c.Cost(cmd.Context(), q)
			if q.All && bawn.ErrorCode(err) == bawn.CodeDenied { // no operator: there is one tenant to see
				q.All = false
				cost, err = c.Cost(cmd.Context(), q)
			}
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(cost)
			}
			var rows [][]string
			for _, b := range append(view(cost), bawn.Blame{Name: "TOTAL", Use: cost.Total}) {
				row := []string{b.Name}
				for _, m := range []string{bawn.MeterCalls, bawn.MeterCPU, bawn.MeterMemory, bawn.MeterEgress, bawn.MeterMoney} {
					row = append(row, bawn.MeterText(m, b.Use.Of(m)))
				}
				rows = append(rows, row)
			}
			a.notef("by %s, since %s\n", clean(by), cost.From.UTC().Format(time.RFC3339))
			return a.table([]string{"NAME", "CALLS", "CPU", "MEMORY", "EGRESS", cmp.Or(cost.Currency, "MONEY")}, rows)
		}),
	}
	c.Flags().StringVar(&by, "by", "function", "whose: function, caller or tenant")
	c.Flags().StringVar(&since, "since", "", "from the window that holds this: 10m, 2d, or a time (default: this month)")
	c.Flags().StringVar(&q.Per, "per", "", "which windows are counted: hour, day or month")
	c.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"function", "caller", "tenant"}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("per", cobra.FixedCompletions([]string{"hour", "day", "month"}, cobra.ShellCompDirectiveNoFileComp))
	a.budgetTenant(c, &q.Tenant)
	a.addOutput(c)
	c.AddCommand(newCostPrices(a))
	return c
}

// windowsFor returns the shortest windows that are kept for so long.
func windowsFor(back time.Duration) string {
	switch {
	case back <= 71*time.Hour:
		return bawn.PerHour
	case back <= 61*24*time.Hour:
		return bawn.PerDay
	}
	return bawn.PerMonth
}

func newCostPrices(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "prices [FILE]",
		Short: "Show what things cost, or set it from a file",
		Long: `Shows the price table, or puts the one in FILE in its place; - reads standard input. A
table is YAML, as this command prints it. Prices are of one call, of a second of processor
time, of a GiB of memory for a second, and of a GiB to or from what is outside; they have
nine places at most. What is not there costs nothing.

Setting it is for operators, and is recorded. Calls that run keep the prices that they
were admitted with. Without a table calls cost nothing, and no budget of money ends.`,
		Example: `  bawn cost prices
  bawn cost prices > prices.yaml
  bawn cost prices prices.yaml
  echo '{currency: EUR, call: 0.0000002, cpu: 0.00002}' | bawn cost prices -`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var p bawn.Prices
			set := len(args) > 0
			if set {
				text, err := a.readText(args[0], "the price table")
				if err != nil {
					return err
				}
				if p, err = manifest.ParsePrices(args[0], []byte(text)); err != nil {
					return err
				}
				if err := c.SetPrices(cmd.Context(), p); err != nil {
					return err
				}
			} else {
				var err error
				if p, set, err = c.Prices(cmd.Context()); err != nil {
					return err
				}
			}
			if a.format == "json" {
				return a.printJSON(p)
			}
			if !set {
				a.notef("There is no price table: calls cost nothing. An operator sets one: bawn cost prices FILE\n")
			}
			a.printf("%s", manifest.PricesText(&p))
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
