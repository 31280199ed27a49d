package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn/client"
)

func newApprove(a *app) *cobra.Command {
	var reject bool
	c := &cobra.Command{
		Use:     "approve ID",
		GroupID: groupFunction,
		Short:   "Let a version that widens its perimeter become live",
		Long: `Makes a version that waits for approval live, or with --reject drops it. "bawn approvals"
lists what waits, and what each would let through.

Whoever asked for it may not approve it, nor may who made their key or a key that they
made: the context has to be somebody else's, with the role admin or policy-admin, who holds what the version
grants. If what is live has changed since so that the version would widen something
else, it has to be deployed again. Who asked for it may take it back with --reject.`,
		Example: `  bawn approvals
  bawn approve 01jd2v3x8k5m0q7r9s1t2u3v4w
  bawn approve --reject 01jd2v3x8k5m0q7r9s1t2u3v4w`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeApprovals,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if reject {
				if err := c.Reject(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.did("rejected", args[0])
			}
			d, err := c.Approve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(d)
			}
			a.printDeployment(c, d.Version.Function, d)
			return nil
		}),
	}
	c.Flags().BoolVar(&reject, "reject", false, "drop it instead")
	a.addOutput(c)
	return c
}

func newApprovals(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "approvals",
		Aliases: []string{"approval"},
		GroupID: groupFunction,
		Short:   "List the versions that wait for approval, and what they let through",
		Example: `  bawn approvals
  bawn approvals -o json | jq -r '.[].id'`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Approvals(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if list == nil {
					list = []client.Approval{}
				}
				return a.printJSON(list)
			}
			if len(list) == 0 {
				a.notef("Nothing waits for approval.\n")
			}
			for _, p := range list {
				against := "its first version"
				if p.Live > 0 {
					against = "against version " + strconv.Itoa(p.Live)
				}
				a.printf("%s  %s, %s\n", a.paint(1, clean(p.ID)), clean(p.Function), against)
				a.printf("  asked for %s by %s, until %s\n", a.ago(p.RequestedAt), clean(p.RequestedBy), p.ExpiresAt.UTC().Format(time.DateOnly))
				for _, ch := range p.Changes {
					a.printChange(ch)
				}
			}
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

// completeApprovals completes the id of what waits for approval.
func (a *app) completeApprovals(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *client.Client) (ids []string) {
		list, err := c.Approvals(ctx)
		if err != nil {
			return nil
		}
		for _, p := range list {
			if strings.HasPrefix(p.ID, prefix) {
				ids = append(ids, clean(p.ID)+"\t"+clean(p.Function))
			}
		}
		return ids
	})
}
