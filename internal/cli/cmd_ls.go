package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		GroupID: groupFunction,
		Short:   "List functions",
		Example: `  bawn ls
  bawn ls -o json | jq -r '.[].function.name'`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Functions(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if list == nil {
					list = []client.Summary{}
				}
				return a.printJSON(list)
			}
			if len(list) == 0 {
				a.notef("No functions yet. Make one with `bawn init hello --runtime python3.11`.\n")
				return nil
			}
			var rows [][]string
			for _, f := range list {
				var routes []string
				for _, r := range f.Live.Perimeter.Ingress.HTTP {
					who := r.Access.Kind()
					if r.Access.Public != nil && !r.Access.Public.Open(a.Now()) {
						who = bawn.AccessKey
					}
					routes = append(routes, fmt.Sprintf("%s (%s)", &r, who))
				}
				rows = append(rows, []string{
					f.Function.Name, string(f.Live.Runtime), strconv.Itoa(f.Live.Number), a.ago(f.Live.CreatedAt), f.Live.Owner, strings.Join(routes, ", "),
				})
			}
			return a.table([]string{"FUNCTION", "RUNTIME", "LIVE", "DEPLOYED", "OWNER", "ROUTES"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}
