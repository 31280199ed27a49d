package cli

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newStatus(a *app) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:     "status",
		GroupID: groupNode,
		Short:   "Say whether the node is ready",
		Example: `  bawn status
  bawn status --wait 30s && bawn deploy`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			s, c, err := a.waitReady(cmd.Context(), wait)
			if err != nil {
				return err
			}
			if a.format == "json" {
				if err := a.printJSON(s); err != nil {
					return err
				}
			} else {
				state := a.paint(32, "ready")
				if !s.Ready {
					state = a.paint(33, "not ready")
				}
				if s.Message != "" {
					state += ": " + clean(s.Message)
				}
				a.printf("%s\n  admin    %s\n", state, clean(c.URL()))
				if s.Node == "" {
					a.notef("The node does not know the key of this context, so it says no more.\n")
				} else {
					a.printf("  public   %s\n  node     %s\n  version  %s\n  started  %s\n",
						clean(s.Public), clean(s.Node), clean(s.Version), a.ago(s.Started))
					for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
						a.printf("  label    %s=%s\n", clean(k), clean(s.Labels[k]))
					}
					if s.Solo {
						a.printf("  solo     %s\n", a.paint(33, "deploys that widen a perimeter count as approved"))
					}
				}
			}
			if s.Damaged > 0 {
				a.notef("%d objects of the stored state are damaged, and what they touch is refused; `bawn doctor` lists them.\n", s.Damaged)
			}
			if !s.Ready {
				return &silentError{exitUnavailable}
			}
			return nil
		}),
	}
	c.Flags().DurationVar(&wait, "wait", 0, "wait at most this long for the node to be ready")
	a.addOutput(c)
	return c
}

// waitReady asks for the status until it says ready or wait has passed. While
// it waits the context file may appear, or be replaced by a starting node.
func (a *app) waitReady(ctx context.Context, wait time.Duration) (*client.Status, *client.Client, error) {
	deadline := time.Now().Add(wait)
	for {
		c, err := a.client()
		if err == nil {
			var s *client.Status
			try, cancel := context.WithTimeout(ctx, max(time.Until(deadline), 5*time.Second))
			s, err = c.Status(try)
			cancel()
			if err == nil && (s.Ready || time.Now().After(deadline)) {
				return s, c, nil
			}
			c.Close()
		}
		switch bawn.ErrorCode(err) {
		// The certificate is another one while a restarted node has not
		// rewritten the file yet.
		case "", bawn.CodeUnavailable, bawn.CodeNotFound, bawn.CodeUnauthenticated:
		default:
			return nil, nil, err
		}
		if time.Now().After(deadline) {
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
}
