package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn/client"
)

func newData(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "data",
		GroupID: groupWatch,
		Short:   "Say which functions can touch which data, and which did",
		Example: `  bawn data ls
  bawn data who orders
  bawn data who db.internal:5432/orders --since 24h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newDataList(a), newDataWho(a))
	return c
}

func newDataList(a *app) *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List databases and secrets with the functions that can reach them",
		Example: `  bawn data ls
  bawn data ls --since 24h -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := a.askData(cmd.Context(), c, "", since)
			if err != nil || a.format == "json" {
				return err
			}
			if len(list.Data) == 0 {
				a.notef("No function names a database or a secret.\n")
				return nil
			}
			var rows [][]string
			for _, d := range list.Data {
				uses, may, last := 0, 0, "-"
				var at time.Time
				for _, f := range d.Functions {
					uses += f.Uses
					if f.Allowed {
						may++
					}
					if f.Last != nil && f.Last.After(at) {
						at, last = *f.Last, a.ago(*f.Last)
					}
				}
				rows = append(rows, []string{d.Kind, d.Name, strings.Join(d.Labels, " "), strconv.Itoa(may), strconv.Itoa(uses), last})
			}
			return a.table([]string{"KIND", "NAME", "LABELS", "FUNCTIONS", "USES", "LAST"}, rows)
		}),
	}
	a.dataFlags(c, &since)
	return c
}

func newDataWho(a *app) *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "who DATABASE|SECRET",
		Short: "Say which functions can reach a database or a secret, and which did",
		Long: `Answers twice: from the rules of the versions that are live or have another alias,
and from the audit log, which knows who did. A function is also told of that did and
cannot any more.

A database is called what manifests call it, or by where it is: HOST:PORT or
HOST:PORT/DATABASE finds it under every name.`,
		Example: `  bawn data who orders
  bawn data who db.internal:5432/orders
  bawn data who orders-db --since 24h -o json`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return a.complete(cmd, args, func(ctx context.Context, c *client.Client) []string {
				since, _ := a.parseSince("1m") // names come from the rules
				list, err := c.Data(ctx, "", since)
				if err != nil {
					return nil
				}
				var names []string
				for _, d := range list.Data {
					names = append(names, d.Name)
				}
				return names
			})
		},
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			list, err := a.askData(cmd.Context(), c, args[0], since)
			if err != nil || a.format == "json" {
				return err
			}
			for i, d := range list.Data {
				if i > 0 {
					a.printf("\n")
				}
				title := d.Kind + " " + d.Name
				if len(d.Labels) > 0 {
					title += " (" + strings.Join(d.Labels, ", ") + ")"
				}
				a.printf("%s\n", clean(title))
				if len(d.Functions) == 0 {
					a.printf("no function names it, and none has used it\n")
					continue
				}
				var rows [][]string
				for _, f := range d.Functions {
					may, last := "yes", "-"
					switch {
					case len(f.Versions) == 0:
						may = "no: no version with an alias names it"
					case !f.Allowed:
						may = "no: " + f.Reason
					}
					if f.Last != nil {
						last = a.ago(*f.Last)
					}
					var versions []string
					for _, v := range f.Versions {
						versions = append(versions, strconv.Itoa(v))
					}
					by := strings.Join(f.Fields, " ")
					if len(f.Address) > 0 {
						by += " (" + strings.Join(f.Address, ", ") + ")"
					}
					rows = append(rows, []string{f.Function, strings.Join(versions, " "), may, strconv.Itoa(f.Uses), strconv.Itoa(f.Denied), last, by})
				}
				if err := a.table([]string{"FUNCTION", "VERSIONS", "ALLOWED", "USES", "DENIED", "LAST", "BY"}, rows); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	a.dataFlags(c, &since)
	return c
}

func (a *app) dataFlags(c *cobra.Command, since *string) {
	c.Flags().StringVar(since, "since", "", "count uses since then: 10m, 2d, or a time (default 30d)")
	a.addOutput(c)
}

// askData asks a node, and prints the answer as JSON if that is wanted.
func (a *app) askData(ctx context.Context, c *client.Client, name, since string) (*client.DataList, error) {
	at, err := a.parseSince(since)
	if err != nil {
		return nil, err
	}
	list, err := c.Data(ctx, name, at)
	if err != nil {
		return nil, err
	}
	if a.format == "json" {
		return list, a.printJSON(list)
	}
	if list.Partial {
		fmt.Fprintln(a.Err, "bawn: the audit log has more uses than are read at one time: the newest are counted; --since asks for less")
	}
	return list, nil
}
