package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newBudget(a *app) *cobra.Command {
	c := newBudgetList(a)
	c.Use, c.Aliases, c.GroupID = "budget", nil, groupWatch
	c.Short = "Show what budgets are used up, and set and lift them"
	c.Long = `A budget bounds what calls may use in an hour, a day or a month of UTC. Those of functions
are in their manifests ("budget: {calls: 100000/day}"), those of a tenant, for all its
functions together, are set here. A call that would pass one is refused.

Without a command it lists them, as "bawn budget ls" does.`
	c.Example = `  bawn budget
  bawn budget show shop
  bawn budget set calls=1000000/month caller.calls=1000/hour
  bawn budget set --tenant acme money=50.00/month
  bawn budget lift shop --budget calls/day --reason "the sale goes on"`
	c.AddCommand(newBudgetList(a), newBudgetShow(a), newBudgetSet(a), newBudgetLift(a))
	return c
}

// budgetTenant adds --tenant.
func (a *app) budgetTenant(c *cobra.Command, tenant *string) {
	c.Flags().StringVar(tenant, "tenant", "", "whose, for operators (default: the key's own)")
	c.RegisterFlagCompletionFunc("tenant", a.completeTenants)
}

func newBudgetList(a *app) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the budgets of the tenant and of its functions",
		Example: `  bawn budget ls
  bawn budget ls --tenant acme -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			b, err := c.Budget(cmd.Context(), tenant, "")
			if err != nil {
				return err
			}
			if len(b.Standings) == 0 {
				a.notef("No budgets. A manifest has those of its functions (budget: {calls: 100000/day}), bawn budget set makes the tenant's\n")
			}
			return a.printBudget(b)
		}),
	}
	a.budgetTenant(c, &tenant)
	a.addOutput(c)
	return c
}

func newBudgetShow(a *app) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:               "show FUNCTION",
		Short:             "Show what is used of a function's budgets",
		Example:           `  bawn budget show shop`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			b, err := c.Budget(cmd.Context(), tenant, name)
			if err != nil {
				return err
			}
			if len(b.Standings) == 0 {
				a.notef("%s has no budget. Its manifest can: ingress: {budget: {calls: 100000/day}}\n", clean(name))
			}
			return a.printBudget(b)
		}),
	}
	a.budgetTenant(c, &tenant)
	a.addOutput(c)
	return c
}

func (a *app) printBudget(b *bawn.TenantBudget) error {
	if a.format == "json" {
		return a.printJSON(b)
	}
	if len(b.Standings) == 0 {
		return nil
	}
	var rows [][]string
	unpriced := false
	for _, s := range b.Standings {
		unpriced = unpriced || s.Grant.Meter == bawn.MeterMoney && !b.Priced
		used := bawn.MeterText(s.Grant.Meter, s.Used) + percent(s.Used, s.Grant.Amount)
		if s.Held > 0 {
			used += " + " + bawn.MeterText(s.Grant.Meter, s.Held) + " held"
		}
		if s.Caller != "" {
			used += " by " + s.Caller
		}
		strangers := ""
		if s.Share > 0 {
			strangers = bawn.MeterText(s.Grant.Meter, s.Shared) + " of " + bawn.MeterText(s.Grant.Meter, s.Share)
		}
		state := "until " + s.Ends.UTC().Format("2006-01-02T15:04Z")
		if s.Lift != nil {
			state += ", lifted by " + s.Lift.By + ": " + s.Lift.Reason
		}
		rows = append(rows, []string{cmp.Or(s.Function, "(all of "+b.Tenant+")"), s.Text, used, strangers, state})
	}
	if err := a.table([]string{"FUNCTION", "BUDGET", "USED", "BY STRANGERS", "WINDOW"}, rows); err != nil {
		return err
	}
	if unpriced {
		a.notef("there is no price table: calls cost nothing until an operator sets one: bawn cost prices FILE\n")
	}
	return nil
}

// percent says which part of all is used, rounded down, so that 100 means that
// nothing is left.
func percent(used, all int64) string {
	if all <= 0 {
		return ""
	}
	return fmt.Sprintf(" (%d%%)", int64(float64(used)/float64(all)*100))
}

// parseTenantGrant reads [caller.|anonymous.]METER=AMOUNT/SPAN.
func parseTenantGrant(arg string) (bawn.Grant, error) {
	name, amount, ok := strings.Cut(arg, "=")
	of, meter, has := strings.Cut(name, ".")
	if !has {
		of, meter = "", name
	}
	if !ok || has && of != bawn.OfCaller && of != bawn.OfAnonymous {
		return bawn.Grant{}, usagef("%q: want METER=AMOUNT/SPAN, such as calls=100000/day, caller.calls=100/hour or anonymous.cpu=60s/day", arg)
	}
	g, err := manifest.ParseGrant(meter, amount)
	if err != nil {
		return g, usagef("%q: %v", arg, err)
	}
	g.Of = of
	return g, nil
}

func newBudgetSet(a *app) *cobra.Command {
	var tenant string
	var none bool
	c := &cobra.Command{
		Use:   "set METER=AMOUNT/SPAN...",
		Short: "Say what all functions of a tenant may use together",
		Long: `Puts the budgets given in the place of those that the tenant has; --none takes them away.
A METER is calls, cpu, memory, egress or money; "caller." before it means each caller for
itself, "anonymous." all callers without a credential together. A SPAN is hour, day or
month. A manifest writes amounts in the same way.

It takes the right to set guardrails. What an operator has set, an operator changes.`,
		Example: `  bawn budget set calls=1000000/month cpu=36000s/day
  bawn budget set caller.calls=1000/hour
  bawn budget set --tenant acme money=50.00/month
  bawn budget set --none`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if none == (len(args) > 0) {
				return usagef("give budgets such as calls=100000/day, or --none")
			}
			var grants []bawn.Grant
			for _, arg := range args {
				g, err := parseTenantGrant(arg)
				if err != nil {
					return err
				}
				grants = append(grants, g)
			}
			b, err := c.SetBudget(cmd.Context(), tenant, grants)
			if err != nil {
				return err
			}
			b.Standings = slices.DeleteFunc(b.Standings, func(s bawn.Standing) bool { return s.Function != "" })
			if none {
				a.notef("%s has no budget of its own\n", clean(b.Tenant))
			}
			return a.printBudget(b)
		}),
	}
	c.Flags().BoolVar(&none, "none", false, "take the budgets away")
	a.budgetTenant(c, &tenant)
	a.addOutput(c)
	return c
}

func newBudgetLift(a *app) *cobra.Command {
	var tenant, budget, reason string
	c := &cobra.Command{
		Use:   "lift [FUNCTION] --reason TEXT",
		Short: "Let a budget not hold until its window ends",
		Long: `Lets a budget of a function, or without one of the tenant itself, not hold until its hour,
day or month ends. What calls use meanwhile is counted. It is recorded, and takes the right
to set guardrails; budgets that an operator has set for a tenant, an operator lifts.

--budget says which: [caller.|anonymous.]METER/SPAN. It can be left out where there is
one only.`,
		Example: `  bawn budget lift shop --reason "the sale goes on"
  bawn budget lift shop --budget caller.calls/hour --reason "they imported their orders"
  bawn budget lift --tenant acme --budget money/month --reason "paid in advance"`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			f := bawn.Lift{Reason: reason}
			if len(args) > 0 {
				var err error
				if f.Function, err = parseName(args[0]); err != nil {
					return err
				}
			}
			b, err := c.Budget(cmd.Context(), tenant, f.Function)
			if err != nil {
				return err
			}
			var names []string
			for _, s := range b.Standings {
				if s.Function != f.Function {
					continue
				}
				name := s.Grant.Meter + "/" + s.Grant.Per
				if s.Grant.Of != "" {
					name = s.Grant.Of + "." + name
				}
				names = append(names, name)
				if budget == "" || budget == name {
					f.Of, f.Meter, f.Per = s.Grant.Of, s.Grant.Meter, s.Grant.Per
				}
			}
			switch {
			case len(names) == 0:
				return bawn.Errorf(bawn.CodeNotFound, "budget", "there is no budget to lift").WithFix("bawn budget ls lists those that there are")
			case budget == "" && len(names) > 1, budget != "" && !slices.Contains(names, budget):
				return usagef("say with --budget which: %s", clean(strings.Join(names, ", ")))
			}
			made, err := c.LiftBudget(cmd.Context(), tenant, f)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(made)
			}
			a.printf("lifted until %s\n", made.Ends.UTC().Format(time.RFC3339))
			return nil
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.MarkFlagRequired("reason")
	c.Flags().StringVar(&budget, "budget", "", "which budget, such as calls/day or caller.cpu/hour")
	c.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions)
	c.RegisterFlagCompletionFunc("budget", cobra.NoFileCompletions)
	a.budgetTenant(c, &tenant)
	a.addOutput(c)
	return c
}
