package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newKey(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "key",
		GroupID: groupNode,
		Short:   "Make, list and revoke API keys",
		Example: `  bawn key create ci --role deployer --ttl 90d
  bawn key ls
  bawn key revoke 3f9c2a7b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newKeyCreate(a), newKeyList(a), newKeyRevoke(a))
	return c
}

func newKeyCreate(a *app) *cobra.Command {
	k := client.NewKey{}
	var role, ttl string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a key and print it, once",
		Long: `Makes a key and prints its secret to standard output. The node keeps only a hash:
the secret cannot be shown again.

Roles: operator may do everything, tenants and backups included; admin everything in its
tenant; deployer may read, deploy, roll back, remove and read logs; policy-admin sets
guardrails and approves what widens a perimeter; secret-admin keeps secrets; auditor
reads everything, the evidence included; invoker calls functions; viewer reads
functions and their logs. Any other name is a role that has no rights but those that
"callers" of a manifest or a guardrail give it.

Nobody makes a key that may do more than they. With --function it has to do with these
functions only, whatever its role.`,
		Example: `  bawn key create ci --role deployer --ttl 90d
  KEY=$(bawn key create partner --role invoker --function hello)
  export $(bawn key create sdk --role invoker --aws)
  curl --cacert ca.pem -H "Authorization: Bearer $KEY" https://127.0.0.1:8443/hello`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			k.Name, k.Role = args[0], bawn.Role(role)
			if err := bawn.CheckName("key", k.Name); err != nil {
				return usagef("%s", err.(*bawn.Error).Message)
			}
			if err := bawn.CheckName("role", role); err != nil {
				return usagef("--role %q: want one of %s, or the name of a role that callers and guardrails speak of", role, rolesText())
			}
			if ttl != "" {
				d, err := manifest.ParseDuration(ttl)
				if err != nil || d <= 0 {
					return usagef("--ttl %q: want a span such as 12h or 90d", ttl)
				}
				k.TTL = time.Duration(d).String()
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			made, err := c.CreateKey(cmd.Context(), k)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(made)
			}
			a.notef("key %s (%s, %s); keep it now, it is not shown again\n", clean(made.Key.ID), clean(made.Key.Name), clean(string(made.Key.Role)))
			if k.AWS {
				a.printf("AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\nAWS_REGION=us-east-1\n", clean(made.Key.ID), clean(made.Signing))
				return nil
			}
			a.printf("%s\n", clean(made.Secret))
			return nil
		}),
	}
	c.Flags().StringVar(&role, "role", string(bawn.RoleInvoker), "what it may be used for: "+rolesText())
	c.Flags().StringSliceVar(&k.Functions, "function", nil, "a function that it has to do with, and no other (more than once; default all)")
	c.Flags().BoolVar(&k.AWS, "aws", false, "print the variables that AWS SDKs sign requests by, instead of the key")
	c.Flags().StringVar(&ttl, "ttl", "", "how long it lives: 12h, 90d (default: until it is revoked)")
	c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(strings.Split(rolesText(), ", "), cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("function", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.functionNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
	})
	a.addOutput(c)
	return c
}

func rolesText() string {
	var names []string
	for _, r := range bawn.Roles() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

func newKeyList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List keys, without their secrets",
		Example: `  bawn key ls
  bawn key ls -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			keys, err := c.Keys(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if keys == nil {
					keys = []bawn.Key{}
				}
				return a.printJSON(keys)
			}
			var rows [][]string
			for _, k := range keys {
				expires := "never"
				switch {
				case k.ExpiresAt.IsZero():
				case k.ExpiresAt.Before(a.Now()):
					expires = "expired"
				default:
					expires = k.ExpiresAt.UTC().Format(time.DateOnly)
				}
				rows = append(rows, []string{k.ID, k.Name, string(k.Role), strings.Join(k.Functions, " "), expires, fmt.Sprintf("%s by %s", a.ago(k.CreatedAt), k.CreatedBy)})
			}
			return a.table([]string{"ID", "NAME", "ROLE", "FUNCTIONS", "EXPIRES", "CREATED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newKeyRevoke(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "revoke ID",
		Short:   "End a key at once",
		Example: `  bawn key revoke 3f9c2a7b`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RevokeKey(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did("revoked", args[0])
		}),
	}
	a.addOutput(c)
	return c
}
