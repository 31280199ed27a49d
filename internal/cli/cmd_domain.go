package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newDomain(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "domain",
		GroupID: groupNode,
		Short:   "Say which domains lead to whose functions",
		Long: `A domain belongs to one tenant, whose manifests may then have routes there
("hosts: [shop.example.com]"). Routes without hosts answer on the node's own names. Once
there is a domain, a host that is neither a domain nor a name of the node's own is
answered with 404; names of its own are what it listens on, and those of --name.

Where the domain's DNS leads, and its certificate, are other matters: docs/guide/domains.md.`,
		Example: `  bawn domain add shop.example.com --tenant acme
  bawn domain ls
  bawn domain rm shop.example.com`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newDomainAdd(a), newDomainList(a), newDomainShow(a), newDomainRemove(a))
	return c
}

// parseDomain checks the name of a domain.
func parseDomain(name string) error {
	if err := bawn.CheckDomain(name); err != nil {
		e := err.(*bawn.Error)
		return usagef("%s: %s", e.Message, e.Fix)
	}
	return nil
}

func (a *app) completeDomains(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *client.Client) (names []string) {
		list, err := c.Domains(ctx)
		if err != nil {
			return nil
		}
		for _, d := range list {
			names = append(names, clean(d.Name))
		}
		return names
	})
}

func newDomainAdd(a *app) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:   "add DOMAIN",
		Short: "Give a domain to a tenant",
		Long: `Gives a domain to a tenant: main, or the one of --tenant. It is for operators, who know
who may use the name. A domain that another tenant has has to be taken from it first.`,
		Example: `  bawn domain add shop.example.com
  bawn domain add shop.example.com --tenant acme -o json`,
		Args: cobra.ExactArgs(1),
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseDomain(args[0]); err != nil {
				return err
			}
			d, err := c.AddDomain(cmd.Context(), args[0], tenant)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(d)
			}
			a.printf("%s belongs to %s\n", clean(d.Name), clean(d.Tenant))
			if len(d.Functions) == 0 {
				a.notef("a route answers there once its manifest says: hosts: [%s]\n", clean(d.Name))
			}
			return nil
		}),
	}
	c.Flags().StringVar(&tenant, "tenant", bawn.DefaultTenant, "whose it is")
	c.RegisterFlagCompletionFunc("tenant", a.completeTenants)
	a.addOutput(c)
	return c
}

func newDomainList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the tenant's domains; for an operator, those of all",
		Example: `  bawn domain ls
  bawn domain ls -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Domains(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if list == nil {
					list = []client.Domain{}
				}
				return a.printJSON(list)
			}
			if len(list) == 0 {
				a.notef("No domains. An operator adds one: bawn domain add shop.example.com\n")
				return nil
			}
			var rows [][]string
			for _, d := range list {
				rows = append(rows, []string{d.Name, d.Tenant, strings.Join(d.Functions, " "), fmt.Sprintf("%s by %s", a.ago(d.CreatedAt), d.CreatedBy)})
			}
			return a.table([]string{"DOMAIN", "TENANT", "FUNCTIONS", "ADDED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newDomainShow(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "show DOMAIN",
		Short:             "Show a domain and which functions answer on it",
		Example:           `  bawn domain show shop.example.com`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseDomain(args[0]); err != nil {
				return err
			}
			d, err := c.Domain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(d)
			}
			a.printf("%s\n  tenant     %s\n  functions  %s\n  added      %s by %s\n", clean(d.Name), clean(d.Tenant),
				clean(strings.Join(d.Functions, " ")), a.ago(d.CreatedAt), clean(d.CreatedBy))
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

func newDomainRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "rm DOMAIN",
		Aliases: []string{"remove"},
		Short:   "Take a domain from its tenant: its routes there answer no more",
		Long: `Takes a domain from its tenant, for operators. Routes that name it answer there no more,
at once; they do again when it is given back.`,
		Example:           `  bawn domain rm shop.example.com`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDomains,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseDomain(args[0]); err != nil {
				return err
			}
			d, err := c.RemoveDomain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(d.Functions) > 0 && a.format != "json" {
				a.notef("no longer answered there: %s\n", clean(strings.Join(d.Functions, " ")))
			}
			return a.did("removed", args[0])
		}),
	}
	a.addOutput(c)
	return c
}
