package cli

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newRemove(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:     "rm FUNCTION",
		Aliases: []string{"remove"},
		GroupID: groupFunction,
		Short:   "Remove a function with all its versions",
		Long: `Removes a function with all its versions and routes. On a terminal it asks first;
elsewhere it needs --yes. What the evidence holds about the function stays.`,
		Example: `  bawn rm hello
  bawn rm hello --yes`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			if !yes {
				if err := a.confirm(name, "Remove "+name+" with all its versions?"); err != nil {
					return err
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.Remove(cmd.Context(), name); err != nil {
				return err
			}
			return a.did("removed", name)
		}),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	a.addOutput(c)
	return c
}

// confirm has whoever is at the terminal type the name of what is removed.
func (a *app) confirm(name, question string) error {
	if !a.inTTY {
		return usagef("rm asks before it removes %s, and there is no terminal to ask on: add --yes", name)
	}
	fmt.Fprintf(a.Err, "%s Type its name to confirm: ", question)
	line, _ := bufio.NewReader(a.In).ReadString('\n')
	if strings.TrimSpace(line) != name {
		fmt.Fprintln(a.Err, "Nothing was removed.")
		return &silentError{exitFailure}
	}
	return nil
}
