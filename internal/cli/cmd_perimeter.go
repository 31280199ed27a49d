package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newPerimeter(a *app) *cobra.Command {
	var old string
	c := &cobra.Command{
		Use:     "perimeter FUNCTION[@VERSION]",
		GroupID: groupWatch,
		Short:   "Show what the kernel enforces for a function's live instances",
		Long: `Shows a function's perimeter as it was compiled and, for each instance that lives
now, what the kernel says it enforces. The second part is read from the kernel at
this moment, not from configuration. If no instance lives, one is started for the
look where the key is an administrator's; that is recorded. The exit code is 1 if a fact differs from
what the perimeter asks for.

With --diff it says instead what the version (live, if none is named) changes against
another one, and which of that lets more through.`,
		Example: `  bawn perimeter hello
  bawn perimeter hello --diff 3
  bawn perimeter hello@5 --diff stable -o json
  bawn perimeter hello -o json | jq '.instances[0].facts'
  bawn perimeter suggest hello`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, qualifier, err := parseFunction(args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("diff") {
				d, err := c.Diff(cmd.Context(), name, old, qualifier)
				if err != nil {
					return err
				}
				if a.format == "json" {
					return a.printJSON(d)
				}
				a.printf("%s: version %d against version %d\n", a.paint(1, clean(d.Function)), d.New, d.Old)
				for _, ch := range d.Changes {
					a.printChange(ch)
				}
				if len(d.Changes) == 0 {
					a.printf("  nothing differs\n")
				}
				return nil
			}
			p, err := c.Perimeter(cmd.Context(), name, qualifier)
			if err != nil {
				return err
			}
			broken := false
			for _, i := range p.Instances {
				for _, f := range i.Facts {
					broken = broken || !f.OK
				}
			}
			if a.format == "json" {
				if p.Instances == nil {
					p.Instances = []bawn.Instance{}
				}
				if err := a.printJSON(p); err != nil {
					return err
				}
			} else {
				a.printf("%s@%d\n", a.paint(1, clean(p.Version.Function)), p.Version.Number)
				a.printPerimeter(c, &p.Version, p.Retention)
				for _, i := range p.Instances {
					a.printf("\nInstance %s  %s, %s, %d calls, %s\n", clean(i.ID), clean(i.State), a.ago(i.Started), i.Calls, size(i.Memory))
					for _, f := range i.Facts {
						mark := a.paint(32, "ok ")
						if !f.OK {
							mark = a.paint(31, "BAD")
						}
						a.printf("  %s %-4s %-22s %s  %s\n", mark, clean(f.Control), clean(f.Name), clean(f.Value), a.paint(2, clean(f.Source)))
					}
				}
				if len(p.Instances) == 0 {
					a.notef("\nNo instance lives now, and this key may not have one started for the look.\nAsk again while a call runs, or after one if the version's reuse is not never, or with an administrator's key.\n")
				}
			}
			if broken {
				return &silentError{exitFailure}
			}
			return nil
		}),
	}
	c.Flags().StringVar(&old, "diff", "", "say what the version changes against this one: a number or an alias")
	a.addOutput(c)
	c.AddCommand(newPerimeterSuggest(a))
	return c
}

func newPerimeterSuggest(a *app) *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "suggest FUNCTION[@VERSION]",
		Short: "Propose an egress block by what the function used and tried",
		Long: `Reads from the audit log what the function reached, what it tried and was refused, and
which secrets and databases it used, and prints the egress block of its manifest anew,
to be pasted below the function's name.

What was used is there, as narrow as it was used: ports, and the methods and paths of
rules that are about requests. What was never used, and what was tried and refused,
stands in comments with how often and when: the owner decides which to take in. What no
rule can allow, such as a private address (C3), is told apart from that.

To learn from nothing, deploy with egress.everything for a few days on a machine where
that does no harm: each host that was used gets a rule of its own, and everything goes.`,
		Example: `  bawn perimeter suggest hello
  bawn perimeter suggest hello --since 7d
  bawn perimeter suggest hello@5 -o json | jq '.entries[] | select(.advice == "unused")'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			name, qualifier, err := parseFunction(args[0])
			if err != nil {
				return err
			}
			at, err := a.parseSince(since)
			if err != nil {
				return err
			}
			s, err := c.Suggest(cmd.Context(), name, qualifier, at)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			for line := range strings.Lines(s.Manifest) {
				a.printf("%s\n", clean(strings.TrimSuffix(line, "\n")))
			}
			return nil
		}),
	}
	c.Flags().StringVar(&since, "since", "", "count from then on: 10m, 2d, or a time (default 30d)")
	a.addOutput(c)
	return c
}
