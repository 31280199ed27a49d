package cli

import (
	"github.com/spf13/cobra"
)

func newRollback(a *app) *cobra.Command {
	var to int
	c := &cobra.Command{
		Use:     "rollback FUNCTION",
		GroupID: groupFunction,
		Short:   "Move live back to the version before, or to a given one",
		Example: `  bawn rollback hello
  bawn rollback hello --to 3`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("to") && to < 1 {
				return usagef("--to must be 1 or more: `bawn show %s` lists the versions", name)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			from, now, err := c.Rollback(cmd.Context(), name, to)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(map[string]any{"function": name, "from": from, "to": now})
			}
			a.printf("%s: live moved from version %d to %d\n", name, from, now)
			return nil
		}),
	}
	c.Flags().IntVar(&to, "to", 0, "the version to move to (default: the one live before)")
	a.addOutput(c)
	return c
}
