package cli

import (
	"bawn.dev/bawn/client"
	"github.com/spf13/cobra"
)

func newDoctor(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "doctor",
		GroupID: groupNode,
		Short:   "Show what the node's host can enforce, and how to get what is missing",
		Long: `Shows each thing the host was found able to enforce, the control it carries, and
how to get what is missing; and each runtime with the program it was found in.
The stored state is compared with its signed manifests. The exit code is 1 if some of it
is damaged, or if something is missing without which no function runs.`,
		Example: `  bawn doctor
  bawn doctor -o json | jq '.capabilities[] | select(.ok | not)'`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			d, err := c.Doctor(cmd.Context())
			if err != nil {
				return err
			}
			broken := false
			for _, cp := range d.Capabilities {
				broken = broken || cp.Required && !cp.OK
			}
			if a.format == "json" {
				if err := a.printJSON(d); err != nil {
					return err
				}
			} else {
				for _, cp := range d.Capabilities {
					mark := a.paint(32, "ok     ")
					switch {
					case !cp.OK && cp.Required:
						mark = a.paint(31, "MISSING")
					case !cp.OK:
						mark = a.paint(33, "missing")
					}
					a.printf("%s  %-4s %s", mark, clean(cp.Control), clean(cp.Name))
					if cp.Detail != "" {
						a.printf(": %s", clean(cp.Detail))
					}
					a.printf("\n")
					if !cp.OK && cp.Fix != "" {
						a.printf("              fix: %s\n", clean(cp.Fix))
					}
				}
				a.printf("\n")
				for _, r := range d.Runtimes {
					if r.Missing == "" {
						a.printf("%s  %-11s %s\n", a.paint(32, "ok     "), clean(string(r.Runtime)), clean(r.Found))
					} else {
						a.printf("%s  %-11s %s\n", a.paint(33, "missing"), clean(string(r.Runtime)), clean(r.Missing))
					}
				}
			}
			if len(d.State.Damage) > 0 {
				if a.format != "json" {
					a.printf("\n")
					for _, x := range d.State.Damage {
						what := x.Table
						if x.Key != "" {
							what += " " + x.Key
						}
						note := ""
						if !x.Refused {
							note = "; it serves from memory until it is started again"
						}
						a.printf("%s  G3   stored state: %s: %s%s\n", a.paint(31, "DAMAGED"), clean(what), clean(x.Problem), note)
					}
					a.printf("              fix: %s\n", clean(d.State.Fix))
				}
				a.notef("\nPart of the stored state is damaged, and what it touches is refused.\n")
				return &silentError{exitFailure}
			} else if a.format != "json" {
				a.printf("\n%s  %-11s %d rows in %d tables are as their signed manifests say\n", a.paint(32, "ok     "), "state", d.State.Rows, d.State.Tables)
			}
			if broken {
				a.notef("\nThis host misses something without which no function runs.\n")
				return &silentError{exitFailure}
			}
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
