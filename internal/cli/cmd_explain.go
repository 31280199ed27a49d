package cli

import (
	"bawn.dev/bawn/client"
	"fmt"

	"github.com/spf13/cobra"
)

func newExplain(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "explain ID",
		GroupID: groupWatch,
		Short:   "Say why a decision was as it was, and what would change it",
		Long: `Shows for a decision who asked, for what, which rules determined it with their text
and where they stand, and for a denial the exact line to add. ID is the id of a record
(bawn events -o json), its index in the audit log, or the id of an invocation.

Rules of manifests are those of the version that was asked. Guardrails are shown as
they are now. Reads that were allowed are not recorded.`,
		Example: `  bawn explain 6b0c1c9e-1a51-4d4e-9f3c-6c0e3f6b8a52
  bawn explain 4711 -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			list, err := c.Explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(list)
			}
			for i, x := range list {
				if i > 0 {
					a.printf("\n")
				}
				r := x.Record
				what := r.Action
				if r.Function != "" {
					what += " " + r.Function
					if r.Version > 0 {
						what += fmt.Sprintf("@%d", r.Version)
					}
				}
				word := a.paint(31, "denied")
				if r.Outcome == "allow" {
					word = a.paint(32, "allowed")
				}
				a.printf("%s: %s wanted to %s\n", word, clean(r.Principal), clean(what))
				for _, p := range []struct{ name, value string }{
					{"because", r.Reason}, {"began with", r.Detail["origin"]}, {"by way of", r.Detail["chain"]}, {"from", r.Source}, {"control", r.Control},
				} {
					if p.value != "" {
						a.printf("%s: %s\n", p.name, clean(p.value))
					}
				}
				a.printRules(x.Policies)
				if x.Fix != "" {
					a.printf("fix: %s\n", clean(x.Fix))
				}
			}
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
