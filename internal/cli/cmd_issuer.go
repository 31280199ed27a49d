package cli

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

func newIssuer(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "issuer",
		GroupID: groupNode,
		Short:   "Say who vouches for users and for client certificates",
		Example: `  bawn issuer add corp --url https://login.example.org --client-id bawn --role platform=admin --role devs=deployer
  bawn issuer add machines --ca roots.pem --role 'spiffe://example.org/ci/*=deployer'
  bawn issuer ls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newIssuerAdd(a), newIssuerList(a), newIssuerShow(a), newIssuerRemove(a))
	return c
}

func newIssuerAdd(a *app) *cobra.Command {
	i := client.NewIssuer{}
	var ca string
	var roles, require []string
	var replace bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Let an issuer vouch for users, or an authority for client certificates",
		Long: `With --url the issuer is an OpenID Connect one: its tokens are taken from callers and
from bawn login. With --ca alone it is an authority, whose client certificates are.

Nobody has a role unless --role gives it: VALUE=ROLE, where VALUE is one of the role
claim's (groups, unless --role-claim names another), or a pattern of a name in the
certificate (spiffe://DOMAIN/PATH with * for one step, dns:*.example.org, cn:NAME), or
* for everybody whom the issuer vouches for.`,
		Example: `  bawn issuer add corp --url https://login.example.org --client-id bawn --role platform=admin --role devs=deployer
  bawn issuer add partners --url https://id.example.com --audience https://fn.example.org --role '*=invoker' --algorithm ES256
  bawn issuer add machines --ca roots.pem --role 'spiffe://example.org/ci/*=deployer'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			i.Name, i.Kind, i.Roles, i.Require = args[0], bawn.IssuerOIDC, map[string][]bawn.Role{}, map[string]string{}
			if err := bawn.CheckName("issuer", i.Name); err != nil {
				return usagef("%s", err.(*bawn.Error).Message)
			}
			if i.URL == "" {
				if ca == "" {
					return usagef("give --url URL for an issuer of tokens, or --ca FILE for one of certificates")
				}
				i.Kind = bawn.IssuerCA
			}
			for _, r := range roles {
				at := strings.LastIndexByte(r, '=')
				if at <= 0 || at == len(r)-1 {
					return usagef("--role %q: want VALUE=ROLE", r)
				}
				i.Roles[r[:at]] = append(i.Roles[r[:at]], bawn.Role(r[at+1:]))
			}
			for _, r := range require {
				claim, value, ok := strings.Cut(r, "=")
				if !ok || claim == "" || value == "" {
					return usagef("--require %q: want CLAIM=VALUE", r)
				}
				i.Require[claim] = value
			}
			if ca != "" {
				pem, err := readCerts(ca)
				if err != nil {
					return err
				}
				i.CA = string(pem)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			put := c.CreateIssuer
			if replace {
				put = c.ReplaceIssuer
			}
			made, err := put(cmd.Context(), i)
			if err != nil {
				return err
			}
			return a.showIssuer(made)
		}),
	}
	f := c.Flags()
	f.StringVar(&i.URL, "url", "", "the issuer, just as its tokens name it in iss")
	f.StringVar(&i.ClientID, "client-id", "", "the public client that bawn login is")
	f.StringVar(&i.Audience, "audience", "", "what tokens must be for (default: the client)")
	f.StringSliceVar(&i.Scopes, "scope", nil, "what bawn login asks for besides openid (more than once)")
	f.StringSliceVar(&i.Algorithms, "algorithm", nil, "how its tokens may be signed (default: ES256, RS256, EdDSA)")
	f.StringVar(&i.RoleClaim, "role-claim", "", "the claim that --role looks at (default: groups)")
	f.StringArrayVar(&roles, "role", nil, "VALUE=ROLE: who has which role (more than once)")
	f.StringArrayVar(&require, "require", nil, "CLAIM=VALUE: what a token must say (more than once)")
	f.StringVar(&i.ClockSkew, "skew", "", "by how much its clock may differ (default: 30s)")
	f.StringVar(&i.MaxLife, "max-life", "", "how long its tokens may live (default: 24h)")
	f.BoolVar(&i.Private, "private", false, "for an operator: its server may be at an address that is not of the public internet")
	f.StringVar(&ca, "ca", "", "PEM file: the authority, or with --url that of the issuer's server")
	f.BoolVar(&replace, "replace", false, "give an issuer that is there other settings: all that are not named go back to their default")
	c.MarkFlagFilename("ca", "pem", "crt")
	a.addOutput(c)
	return c
}

func (a *app) showIssuer(i *bawn.Issuer) error {
	if a.format == "json" {
		return a.printJSON(i)
	}
	line := func(name, value string) {
		if value != "" {
			a.printf("  %-10s %s\n", name, clean(value))
		}
	}
	a.printf("%s\n", clean(i.Name))
	line("kind", i.Kind)
	line("tenant", i.Tenant)
	line("url", i.URL)
	line("client", i.ClientID)
	line("audience", i.Audience)
	line("scopes", strings.Join(i.Scopes, " "))
	line("algorithms", strings.Join(i.Algorithms, " "))
	line("role claim", i.RoleClaim)
	for _, k := range slices.Sorted(maps.Keys(i.Roles)) {
		for _, r := range i.Roles[k] {
			line("role", k+"="+string(r))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(i.Require)) {
		line("require", k+"="+i.Require[k])
	}
	if i.Kind == bawn.IssuerOIDC {
		line("skew", i.ClockSkew.String())
		line("max life", i.MaxLife.String())
	}
	line("created", a.ago(i.CreatedAt)+" by "+i.CreatedBy)
	return nil
}

func newIssuerList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List issuers",
		Example:           `  bawn issuer ls`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Issuers(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(list)
			}
			var rows [][]string
			for _, i := range list {
				rows = append(rows, []string{i.Name, i.Kind, i.URL, cmp.Or(i.Audience, i.ClientID), a.ago(i.UpdatedAt)})
			}
			return a.table([]string{"NAME", "KIND", "URL", "AUDIENCE", "UPDATED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newIssuerShow(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME", Short: "Show an issuer's settings",
		Example:           `  bawn issuer show corp`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			i, err := c.Issuer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showIssuer(i)
		}),
	}
	a.addOutput(c)
	return c
}

func newIssuerRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "rm NAME", Short: "Forget an issuer: whoever it vouches for is out at once",
		Example:           `  bawn issuer rm corp`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RemoveIssuer(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did("removed", args[0])
		}),
	}
	a.addOutput(c)
	return c
}

func newRevoke(a *app) *cobra.Command {
	var r client.NewRevocation
	var lift string
	var list bool
	c := &cobra.Command{
		Use:     "revoke user:ISSUER:SUBJECT | cert:ID | issuer:NAME | key:ID",
		GroupID: groupNode,
		Short:   "End what was issued to somebody, at once",
		Long: `Ends at once everything that was issued to a user, a certificate's holder or by an
issuer until now: requests are refused, streams end, and calls between functions on
their behalf too. Who logs in anew after that is good again, unless --bar says not;
a certificate that has no SPIFFE id stays refused.`,
		Example: `  bawn revoke user:corp:8f2c1a --reason 'laptop lost'
  bawn revoke user:corp:8f2c1a --bar
  bawn revoke cert:spiffe://example.org/ci/build
  bawn revoke --list
  bawn revoke --lift 3f9c2a7b00112233`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (list || lift != "") {
				return usagef("name one principal, or use --list or --lift ID")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			switch {
			case list:
				all, err := c.Revocations(cmd.Context())
				if err != nil {
					return err
				}
				if a.format == "json" {
					return a.printJSON(all)
				}
				var rows [][]string
				for _, r := range all {
					what := "issued before " + r.Before.UTC().Format(time.RFC3339)
					if r.Barred {
						what = "all"
					}
					rows = append(rows, []string{r.ID, r.Principal, what, r.Reason, r.CreatedBy})
				}
				return a.table([]string{"ID", "PRINCIPAL", "ENDED", "REASON", "BY"}, rows)
			case lift != "":
				if err := c.LiftRevocation(cmd.Context(), lift); err != nil {
					return err
				}
				return a.did("lifted", lift)
			}
			if id, ok := strings.CutPrefix(args[0], "key:"); ok {
				err = c.RevokeKey(cmd.Context(), id)
			} else {
				r.Principal = args[0]
				var made *bawn.Revocation
				if made, err = c.Revoke(cmd.Context(), r); err == nil && a.format == "json" {
					return a.printJSON(made)
				}
			}
			if err != nil {
				return err
			}
			return a.did("revoked", args[0])
		}),
	}
	f := c.Flags()
	f.StringVar(&r.Reason, "reason", "", "why, for the record")
	f.BoolVar(&r.Barred, "bar", false, "what is issued later is not good either")
	f.BoolVar(&list, "list", false, "list what was revoked")
	f.StringVar(&lift, "lift", "", "take the revocation with this id back")
	a.addOutput(c)
	return c
}
