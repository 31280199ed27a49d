package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn/client"
)

func newCan(a *app) *cobra.Command {
	var q client.Question
	c := &cobra.Command{
		Use:     "can PRINCIPAL ACTION RESOURCE",
		GroupID: groupWatch,
		Short:   "Ask ahead of time whether somebody may do something",
		Long: `Answers what would be decided, by which rules, and what would have to be written
for the other answer. Nothing is done and no decision is recorded. The exit code is 0
if it is allowed and 4 if it is denied.

PRINCIPAL is key:NAME or key:ID, role:NAME, function:NAME[@VERSION] or anonymous.
RESOURCE is a function, a route ("GET /path"), - for the tenant itself, installation,
or host:, secret:, topic: or database: and a name. A function that calls another does
it for itself unless --on-behalf names who began it.`,
		Example: `  bawn can key:ci invoke receipts
  bawn can function:checkout call receipts --on-behalf key:shop
  bawn can anonymous invoke "GET /health"
  bawn can role:deployer keys -`,
		Args: cobra.ExactArgs(3),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return []string{"key:", "role:", "function:", "anonymous"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
			case 2:
				return a.functionNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			q.Principal, q.Action, q.Resource = args[0], args[1], args[2]
			c, err := a.client()
			if err != nil {
				return err
			}
			answer, err := c.Can(cmd.Context(), q)
			if err != nil {
				return err
			}
			if a.format == "json" {
				err = a.printJSON(answer)
			} else {
				word := a.paint(31, "denied")
				if answer.Allow {
					word = a.paint(32, "allowed")
				}
				a.printf("%s: %s\n", word, clean(answer.Reason))
				a.printRules(answer.Policies)
				if answer.Fix != "" {
					a.printf("fix: %s\n", clean(answer.Fix))
				}
			}
			if err == nil && !answer.Allow {
				err = &silentError{exitDenied}
			}
			return err
		}),
	}
	c.Flags().StringVar(&q.OnBehalf, "on-behalf", "", "who began the call that a function makes (default: the function itself)")
	a.addOutput(c)
	return c
}

// printRules shows rules and where they stand.
func (a *app) printRules(rules []client.Rule) {
	for _, r := range rules {
		at := r.From
		if r.Field != "" {
			at += ", " + r.Field
		}
		a.printf("rule %s, of %s\n", clean(r.ID), clean(at))
		text := r.Text
		if text == "" {
			text = "(its text is not there any more, or not yours to read)"
		}
		for line := range strings.Lines(text) {
			a.printf("    %s\n", clean(strings.TrimRight(line, "\n")))
		}
	}
}

// guardrailNames completes the names of guardrails.
func (a *app) guardrailNames(installation *bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd, args, func(ctx context.Context, c *client.Client) []string {
			var names []string
			list, _ := c.Guardrails(ctx, *installation)
			for _, g := range list {
				names = append(names, g.Name)
			}
			return names
		})
	}
}
