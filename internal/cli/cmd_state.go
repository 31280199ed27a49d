package cli

import (
	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/node"
)

func newState(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "state",
		GroupID: groupNode,
		Short:   "Check the stored state of a stopped node, and accept its damage",
		Example: `  bawn state check --data /var/lib/bawn
  bawn state accept --data /var/lib/bawn --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newStateCheck(a), newStateAccept(a))
	return c
}

func newStateCheck(a *app) *cobra.Command {
	var cfg node.StateConfig
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare the stored state with its signed manifests",
		Long: `Compares what is stored with the signed manifests of what must be there, and both with
what the audit log says of them. The node must not run; "bawn doctor" does the same for
one that does. The exit code is 1 if something is damaged.`,
		Example: `  bawn state check --data /var/lib/bawn`,
		Args:    cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			if err := a.stateData(&cfg); err != nil {
				return err
			}
			r, err := node.CheckState(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.format == "json" {
				if err := a.printJSON(r); err != nil {
					return err
				}
			} else {
				a.printf("%d tables, %d rows, root %s\n", r.Tables, r.Rows, clean(r.Root))
				for _, d := range r.Damage {
					a.printf("%s  %s\n", a.paint(31, "DAMAGED"), clean(d.String()))
				}
			}
			if len(r.Damage) > 0 {
				a.notef("\nPut it back with `bawn backup restore FILE --state-only`, or give it up with `bawn state accept`.\n")
				return &silentError{exitFailure}
			}
			return nil
		}),
	}
	addData(c, &cfg.Data)
	a.addOutput(c)
	return c
}

func newStateAccept(a *app) *cobra.Command {
	var cfg node.StateConfig
	var yes bool
	c := &cobra.Command{
		Use:   "accept",
		Short: "Give up what is damaged, and trust the rest again",
		Long: `Gives up what is damaged in the stored state of a stopped node, for good, and takes the
rest for the truth. A single value that is damaged is deleted; of a table that cannot
be trusted as a whole, what can be read is trusted from then on, as old as it may be:
look at keys, revocations and rules afterwards. "bawn backup restore --state-only"
loses less.

An audit log that was removed or rolled back is no state, and a node does not start on
it: with --audit --yes the node goes on with the log that is there, or a new one.

Without --yes it only tells what would be given up. The decision is recorded in the
audit log, with what was given up, before it takes effect.`,
		Example: `  bawn state accept --data /var/lib/bawn
  bawn state accept --data /var/lib/bawn --yes
  bawn state accept --data /var/lib/bawn --audit --yes`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			if err := a.stateData(&cfg); err != nil {
				return err
			}
			if cfg.Audit && !yes {
				return bawn.Errorf(bawn.CodeInvalid, "state.accept", "--audit gives up what is missing of the audit log").WithFix("add --yes, or put the log back from a copy")
			}
			given, err := node.AcceptState(cmd.Context(), cfg, yes)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(map[string]any{"accepted": yes, "damage": given})
			}
			for _, d := range given {
				a.printf("%s\n", clean(d.String()))
			}
			if cfg.Audit {
				a.printf("the audit log goes on from what is there\n")
			}
			switch {
			case len(given) == 0:
				a.printf("nothing is damaged\n")
			case yes:
				a.printf("given up; the rest is trusted from now on\n")
			default:
				a.notef("\nNothing was changed. With --yes this is given up for good.\n")
				return &silentError{exitFailure}
			}
			return nil
		}),
	}
	addData(c, &cfg.Data)
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&cfg.Audit, "audit", false, "go on with an audit log that was removed or rolled back")
	a.addOutput(c)
	return c
}

func (a *app) stateData(cfg *node.StateConfig) (err error) {
	if err := a.fillData(&cfg.Data); err != nil {
		return err
	}
	if cfg.RootKey, err = a.rootKey(""); err != nil {
		return err
	}
	return node.EnterState(cfg)
}
