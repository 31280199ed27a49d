package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newLabel(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "label",
		GroupID: groupNode,
		Short:   "Settle for how long logs about labelled data are kept",
		Long: `Manifests label functions by the data that they may hold ("labels: [pii]"). Here a tenant
settles what goes for all functions with a label. Where data with a label may go, a
guardrail says: "flow LABEL;", see bawn policy.`,
		Example: `  bawn label set pii --log-retention 24h
  bawn label ls
  bawn label rm pii`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newLabelList(a), newLabelSet(a), newLabelRemove(a))
	return c
}

// parseLabel checks the name of a label.
func parseLabel(name string) error {
	if err := bawn.CheckName("label", name); err != nil {
		return usagef("%s", err.(*bawn.Error).Message)
	}
	return nil
}

func (a *app) completeLabels(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *client.Client) (names []string) {
		list, err := c.Labels(ctx)
		if err != nil {
			return nil
		}
		for _, l := range list {
			names = append(names, clean(l.Name))
		}
		return names
	})
}

func newLabelList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the labels for which something is settled",
		Example: `  bawn label ls
  bawn label ls -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Labels(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(list)
			}
			var rows [][]string
			for _, l := range list {
				rows = append(rows, []string{l.Name, manifest.Duration(l.LogRetention).String(), strings.Join(l.Functions, " "), fmt.Sprintf("%s by %s", a.ago(l.UpdatedAt), l.UpdatedBy)})
			}
			return a.table([]string{"LABEL", "LOGS KEPT", "FUNCTIONS", "CHANGED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newLabelSet(a *app) *cobra.Command {
	var retention string
	c := &cobra.Command{
		Use:   "set LABEL --log-retention DURATION",
		Short: "Bound for how long log lines of functions with a label are kept",
		Long: `Log lines of functions with the label are kept for what their manifests say, or for
this if it is shorter. It counts for lines written from now on, at once, and for those
that are there, which a sweep drops as soon as they are too old: now, and every ten
minutes. Lines that were dropped do not come back by setting a longer time, or by
"bawn label rm"; what backups there are elsewhere keep is theirs. The audit log is not
touched.

It takes the right to set guardrails.`,
		Example: `  bawn label set pii --log-retention 24h
  bawn label set health --log-retention 30d -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeLabels,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseLabel(args[0]); err != nil {
				return err
			}
			d, err := manifest.ParseDuration(retention)
			if err != nil || time.Duration(d) < bawn.MinLogRetention || time.Duration(d) > bawn.MaxLogRetention {
				return usagef("--log-retention %q: want a span from %s to %s, such as 24h or 30d", retention, manifest.Duration(bawn.MinLogRetention), manifest.Duration(bawn.MaxLogRetention))
			}
			l, err := c.SetLabel(cmd.Context(), args[0], time.Duration(d))
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(l)
			}
			a.printf("%s: logs kept at most %s\n", clean(l.Name), manifest.Duration(l.LogRetention))
			if len(l.Functions) == 0 {
				a.notef("no live version has the label\n")
			} else {
				a.notef("of %s\n", clean(strings.Join(l.Functions, ", ")))
			}
			return nil
		}),
	}
	c.Flags().StringVar(&retention, "log-retention", "", "for how long log lines are kept at most, such as 24h or 30d")
	c.MarkFlagRequired("log-retention")
	a.addOutput(c)
	return c
}

func newLabelRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "rm LABEL",
		Aliases:           []string{"remove"},
		Short:             "Take back what is settled for a label: manifests count again",
		Example:           `  bawn label rm pii`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeLabels,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseLabel(args[0]); err != nil {
				return err
			}
			if err := c.RemoveLabel(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did("removed", args[0])
		}),
	}
	a.addOutput(c)
	return c
}

func newSecretLabel(a *app) *cobra.Command {
	var none bool
	c := &cobra.Command{
		Use:   "label NAME LABEL…",
		Short: "Change the labels of a secret",
		Long: `Gives a secret labels of the data that it opens, in the place of all that it has; --none
takes them away. If with them data could get to where a flow guardrail forbids it, the
change is refused and says which way is open.`,
		Example: `  bawn secret label stripe-key pii payments
  bawn secret label stripe-key --none`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSecrets,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			labels := args[1:]
			if none != (len(labels) == 0) {
				return usagef("name the labels, or --none for none")
			}
			for _, l := range labels {
				if err := parseLabel(l); err != nil {
					return err
				}
			}
			s, err := c.SetSecretLabels(cmd.Context(), args[0], labels)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			text := strings.Join(s.Labels, " ")
			if text == "" {
				text = "none"
			}
			a.printf("labels of %s: %s\n", clean(s.Name), clean(text))
			return nil
		}),
	}
	c.Flags().BoolVar(&none, "none", false, "take all labels away")
	a.addOutput(c)
	return c
}
