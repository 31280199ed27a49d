package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
)

func newAlias(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "alias FUNCTION ALIAS VERSION",
		GroupID: groupFunction,
		Short:   "Point an alias at a version",
		Long: `Points an alias at a version; it is made if it is new. A caller chooses it with
"bawn invoke FUNCTION --alias ALIAS". Routes always lead to live.`,
		Example: `  bawn alias hello canary 4
  bawn invoke hello --alias canary`,
		Args:              cobra.ExactArgs(3),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			if bawn.CheckName("alias", args[1]) != nil {
				return usagef("%q is not an alias: want a-z, 0-9 and '-', beginning with a letter", args[1])
			}
			version, err := strconv.Atoi(args[2])
			if err != nil || version < 1 {
				return usagef("%q is not a version: `bawn show %s` lists them", args[2], name)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.SetAlias(cmd.Context(), name, args[1], version); err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(map[string]any{"function": name, "alias": args[1], "version": version})
			}
			a.printf("%s: %s is version %d\n", name, args[1], version)
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
