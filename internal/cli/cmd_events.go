package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newEvents(a *app) *cobra.Command {
	var q client.EventQuery
	var since string
	var kinds []string
	c := &cobra.Command{
		Use:     "events [FUNCTION]",
		GroupID: groupWatch,
		Short:   "Print the evidence: decisions, changes, outcomes and blocked attempts",
		Example: `  bawn events
  bawn events hello -f
  bawn events --kind blocked --since 1h
  bawn events --invocation 6b0c1c9e-1a51-4d4e-9f3c-6c0e3f6b8a52 -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			var err error
			if len(args) == 1 {
				if q.Function, err = parseName(args[0]); err != nil {
					return err
				}
			}
			if q.Limit < 0 {
				return usagef("--limit must be 1 or more")
			}
			for _, k := range kinds {
				kind := bawn.RecordKind(k)
				switch kind {
				case bawn.KindDecision, bawn.KindChange, bawn.KindOutcome, bawn.KindBlocked, bawn.KindNode:
				default:
					return usagef("--kind %q: want decision, change, outcome, blocked or node", k)
				}
				q.Kinds = append(q.Kinds, kind)
			}
			if q.Since, err = a.parseSince(since); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.Events(cmd.Context(), q, func(r bawn.Record) error {
				if a.format == "json" {
					return a.printLine(r)
				}
				return a.printRecord(r)
			})
		}),
	}
	c.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with new records until interrupted")
	c.Flags().StringSliceVar(&kinds, "kind", nil, "only these kinds: decision, change, outcome, blocked, node")
	c.Flags().StringVar(&q.Invocation, "invocation", "", "only records of this invocation")
	c.Flags().StringVar(&since, "since", "", "only records since then: 10m, 2d, or a time")
	c.Flags().IntVar(&q.Limit, "limit", 0, "at most the newest so many records")
	c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"decision", "change", "outcome", "blocked", "node"}, cobra.ShellCompDirectiveNoFileComp))
	a.addOutput(c)
	return c
}

func (a *app) printRecord(r bawn.Record) error {
	outcome := fmt.Sprintf("%-7s", clean(r.Outcome))
	switch r.Outcome {
	case "deny", "blocked", "error":
		outcome = a.paint(31, outcome)
	case "allow", "ok":
		outcome = a.paint(32, outcome)
	}
	where := r.Function
	if where != "" && r.Version > 0 {
		where = fmt.Sprintf("%s@%d", where, r.Version)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-8s %s %-10s", r.Time.UTC().Format(time.DateOnly+"T15:04:05.000Z"), clean(string(r.Kind)), outcome, clean(r.Action))
	for _, part := range []struct{ name, value string }{
		{"", where}, {"control ", r.Control}, {"by ", r.Principal}, {"from ", r.Source}, {"invocation ", r.Invocation}, {"", r.Reason},
	} {
		if part.value != "" {
			fmt.Fprintf(&b, " %s%s", part.name, clean(part.value))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Detail)) {
		fmt.Fprintf(&b, " %s=%q", clean(k), clean(r.Detail[k]))
	}
	_, err := fmt.Fprintln(a.Out, b.String())
	return wrapOutput(err)
}
