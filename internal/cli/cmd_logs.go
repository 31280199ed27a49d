package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newLogs(a *app) *cobra.Command {
	var q client.LogQuery
	var since string
	c := &cobra.Command{
		Use:     "logs FUNCTION",
		GroupID: groupWatch,
		Short:   "Print what a function wrote",
		Long: `Prints the lines that a function wrote to its standard output and error, and those
that Bawn wrote about its invocations, oldest first.`,
		Example: `  bawn logs hello
  bawn logs hello -f
  bawn logs hello --invocation 6b0c1c9e-1a51-4d4e-9f3c-6c0e3f6b8a52
  bawn logs hello --since 10m --limit 1000 -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			if q.Limit < 0 {
				return usagef("--limit must be 1 or more")
			}
			if q.Since, err = a.parseSince(since); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.Logs(cmd.Context(), name, q, func(l bawn.LogLine) error {
				if a.format == "json" {
					return a.printLine(l)
				}
				text := cleanLines(strings.TrimRight(l.Text, "\n"))
				if l.Platform {
					text = a.paint(2, text)
				}
				_, err := fmt.Fprintf(a.Out, "%s %s %s\n", l.Time.UTC().Format("2006-01-02T15:04:05.000Z"), a.paint(36, shortID(l.Invocation)), text)
				return wrapOutput(err)
			})
		}),
	}
	c.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with new lines until interrupted")
	c.Flags().StringVar(&q.Invocation, "invocation", "", "only lines of this invocation")
	c.Flags().StringVar(&since, "since", "", "only lines since then: 10m, 2d, or a time")
	c.Flags().IntVar(&q.Limit, "limit", 0, "at most the newest so many lines")
	a.addOutput(c)
	return c
}

// shortID keeps the first part of an invocation's id, in a column that is as
// wide when there is none.
func shortID(id string) string {
	if id == "" {
		return "--------"
	}
	return fmt.Sprintf("%-8.8s", clean(id))
}

// printLine prints one line of newline-delimited JSON.
func (a *app) printLine(v any) error {
	tty := a.outTTY
	a.outTTY = false // one value, one line
	defer func() { a.outTTY = tty }()
	return a.printJSON(v)
}
