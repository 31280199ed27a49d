package cli

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newTenant(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "tenant",
		GroupID: groupNode,
		Short:   "Make, bound, suspend and remove tenants",
		Long: `Tenants share a node and nothing else: functions, keys, packages, records and quotas
are each one's own, and none learns what another has. This is for operators.`,
		Example: `  bawn tenant create acme --context acme.json
  bawn tenant quota acme --instances 20 --memory 4GiB
  bawn tenant suspend acme --reason "unpaid since March"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newTenantCreate(a), newTenantList(a), newTenantShow(a), newTenantQuota(a), newTenantSuspend(a), newTenantResume(a), newTenantRemove(a))
	return c
}

// quotaFlags adds the flags of a quota.
func quotaFlags(f *pflag.FlagSet, q *bawn.Quota) {
	f.IntVar(&q.Functions, "functions", 0, "functions it may have (0: the node's default)")
	f.IntVar(&q.Keys, "keys", 0, "API keys it may have (0: the node's default)")
	f.IntVar(&q.Instances, "instances", 0, "sandboxes of all its functions at one time (0: no bound of its own)")
	f.Var((*sizeFlag)(&q.Memory), "memory", "the memory limits of its sandboxes together, such as 4GiB (0: no bound of its own)")
	f.Var((*sizeFlag)(&q.Packages), "packages", "packages, packed and unpacked, such as 10GiB (0: no bound of its own)")
	f.IntVar(&q.Rate, "rate", 0, "calls a second of all its functions (0: no bound of its own)")
}

type sizeFlag int64

func (s *sizeFlag) String() string { return manifest.Size(*s).String() }
func (s *sizeFlag) Type() string   { return "SIZE" }
func (s *sizeFlag) Set(text string) error {
	n, err := manifest.ParseSize(text)
	*s = sizeFlag(n)
	return err
}

func newTenantCreate(a *app) *cobra.Command {
	var quota bawn.Quota
	var file string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a tenant and print its administrator's key, once",
		Long: `Makes a tenant and the key of its first administrator. The key is printed to standard
output, or with --context written into a context file for whoever gets the tenant. The
name of a tenant that was removed is not given again.`,
		Example: `  bawn tenant create acme --context acme.json
  ` + client.ContextEnv + `=acme.json bawn deploy`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if err := bawn.CheckName("tenant", args[0]); err != nil {
				return usagef("%s", err.(*bawn.Error).Message)
			}
			mine, err := client.LoadContext("")
			if err != nil {
				return err
			}
			c, err := client.New(mine)
			if err != nil {
				return err
			}
			made, err := c.CreateTenant(cmd.Context(), args[0], quota)
			if err != nil {
				return err
			}
			if file != "" {
				theirs := *mine
				theirs.Key, made.Secret = made.Secret, ""
				if err := client.SaveContext(file, &theirs); err != nil {
					return err
				}
			}
			if a.format == "json" {
				return a.printJSON(made)
			}
			if file != "" {
				a.printf("made tenant %s; %s is the context of its administrator\n", clean(made.Tenant.Name), clean(file))
				return nil
			}
			a.notef("made tenant %s; this is its administrator's key, keep it now, it is not shown again\n", clean(made.Tenant.Name))
			a.printf("%s\n", clean(made.Secret))
			return nil
		}),
	}
	quotaFlags(c.Flags(), &quota)
	c.Flags().StringVar(&file, "context", "", "write a context file of its administrator, instead of printing the key")
	c.MarkFlagFilename("context")
	a.addOutput(c)
	return c
}

func newTenantList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the tenants",
		Example: `  bawn tenant ls
  bawn tenant ls -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Tenants(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if list == nil {
					list = []bawn.Tenant{}
				}
				return a.printJSON(list)
			}
			var rows [][]string
			for _, t := range list {
				rows = append(rows, []string{t.Name, tenantState(&t), quotaText(t.Quota), fmt.Sprintf("%s by %s", a.ago(t.CreatedAt), t.CreatedBy)})
			}
			return a.table([]string{"NAME", "STATE", "QUOTA", "CREATED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func tenantState(t *bawn.Tenant) string {
	if t.Suspended {
		return "suspended: " + t.Reason
	}
	return "active"
}

// quotaText is what of a quota is set.
func quotaText(q bawn.Quota) string {
	var parts []string
	for _, f := range []struct {
		n    int
		name string
	}{{q.Functions, "functions"}, {q.Keys, "keys"}, {q.Instances, "instances"}} {
		if f.n > 0 {
			parts = append(parts, strconv.Itoa(f.n)+" "+f.name)
		}
	}
	if q.Memory > 0 {
		parts = append(parts, manifest.Size(q.Memory).String()+" memory")
	}
	if q.Packages > 0 {
		parts = append(parts, manifest.Size(q.Packages).String()+" packages")
	}
	if q.Rate > 0 {
		parts = append(parts, strconv.Itoa(q.Rate)+" calls/s")
	}
	if len(parts) == 0 {
		return "the node's defaults"
	}
	return strings.Join(parts, ", ")
}

func newTenantShow(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a tenant and what it has",
		Example: `  bawn tenant show acme
  bawn tenant show acme -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTenants,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.Tenant(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(d)
			}
			a.printf("%s  %s\n  quota    %s\n  created  %s by %s\n", a.paint(1, clean(d.Tenant.Name)), clean(tenantState(&d.Tenant)),
				quotaText(d.Tenant.Quota), a.ago(d.Tenant.CreatedAt), clean(d.Tenant.CreatedBy))
			a.printBelongings(&d.Has)
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

// printBelongings prints what a tenant has.
func (a *app) printBelongings(r *client.Removal) {
	a.printf("  %d functions", len(r.Functions))
	if len(r.Functions) > 0 {
		shown := r.Functions[:min(len(r.Functions), 20)]
		a.printf(" (%s", clean(strings.Join(shown, ", ")))
		if len(shown) < len(r.Functions) {
			a.printf(", …")
		}
		a.printf(")")
	}
	a.printf(", %d versions, %d packages of %s, %d keys, %d versions that wait for approval\n", r.Versions, r.Packages, size(r.Bytes), r.Keys, r.Approvals)
	for _, name := range slices.Sorted(maps.Keys(r.Others)) {
		a.printf("  %d %s\n", r.Others[name], clean(name))
	}
}

func newTenantQuota(a *app) *cobra.Command {
	var quota bawn.Quota
	c := &cobra.Command{
		Use:   "quota NAME",
		Short: "Bound what a tenant may have",
		Long: `Sets the whole quota of a tenant: what no flag names takes the node's default. What the
tenant has beyond it stays; it gets no more.`,
		Example: `  bawn tenant quota acme --functions 50 --instances 20 --memory 4GiB --rate 500
  bawn tenant quota acme`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTenants,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.SetQuota(cmd.Context(), args[0], quota)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(t)
			}
			a.printf("%s: %s\n", clean(t.Name), quotaText(t.Quota))
			return nil
		}),
	}
	quotaFlags(c.Flags(), &quota)
	a.addOutput(c)
	return c
}

func newTenantSuspend(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "suspend NAME --reason TEXT",
		Short: "Let nobody of a tenant in, and end what runs of it",
		Long: `Suspends a tenant at once: its keys and users are refused, its functions are not found,
its instances are ended, busy ones too, and the streams it follows are cut. Nothing is
removed: "bawn tenant resume" ends it.`,
		Example:           `  bawn tenant suspend acme --reason "its key was found in a public repository"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTenants,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usagef("say why with --reason TEXT: it is recorded, and shown")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := c.Suspend(cmd.Context(), args[0], reason)
			return a.printTenant(t, err)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for whoever looks later")
	a.addOutput(c)
	return c
}

func newTenantResume(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "resume NAME",
		Short:             "End a suspension",
		Example:           `  bawn tenant resume acme`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTenants,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.Resume(cmd.Context(), args[0])
			return a.printTenant(t, err)
		}),
	}
	a.addOutput(c)
	return c
}

func (a *app) printTenant(t *bawn.Tenant, err error) error {
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(t)
	}
	a.printf("%s: %s\n", clean(t.Name), clean(tenantState(t)))
	return nil
}

func newTenantRemove(a *app) *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use:     "rm NAME",
		Aliases: []string{"remove"},
		Short:   "Remove a tenant with everything that it has, for good",
		Long: `Says what a tenant has, and removes all of it: functions with their versions and
packages, keys, and whatever else is its own. On a terminal it asks first; elsewhere it
needs --yes. What the evidence holds about the tenant stays. Nobody gets its name again.`,
		Example: `  bawn tenant rm acme --dry-run
  bawn tenant rm acme --yes`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTenants,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name := args[0]
			c, err := a.client()
			if err != nil {
				return err
			}
			plan, err := c.RemoveTenant(cmd.Context(), name, "", true)
			if err != nil {
				return err
			}
			switch {
			case dryRun && a.format == "json":
				return a.printJSON(plan)
			case dryRun:
				a.printf("removing %s would remove:\n", clean(name))
				a.printBelongings(plan)
				return nil
			}
			if !yes {
				if !a.inTTY {
					return usagef("rm asks before it removes %s, and there is no terminal to ask on: add --yes", name)
				}
				a.printf("removing %s removes, for good:\n", clean(name))
				a.printBelongings(plan)
				fmt.Fprintf(a.Err, "Type its name to confirm: ")
				line, _ := bufio.NewReader(a.In).ReadString('\n')
				if strings.TrimSpace(line) != name {
					fmt.Fprintln(a.Err, "Nothing was removed.")
					return &silentError{exitFailure}
				}
			}
			gone, err := c.RemoveTenant(cmd.Context(), name, name, false)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(gone)
			}
			a.printf("removed %s:\n", clean(name))
			a.printBelongings(gone)
			return nil
		}),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would go, and remove nothing")
	a.addOutput(c)
	return c
}

// completeTenants completes the name of a tenant.
func (a *app) completeTenants(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *client.Client) (names []string) {
		list, err := c.Tenants(ctx)
		if err != nil {
			return nil
		}
		for _, t := range list {
			if strings.HasPrefix(t.Name, prefix) {
				names = append(names, clean(t.Name))
			}
		}
		return names
	})
}
