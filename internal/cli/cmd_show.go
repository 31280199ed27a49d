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
	"bawn.dev/bawn/internal/manifest"
)

func newShow(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "show FUNCTION[@VERSION]",
		GroupID: groupFunction,
		Short:   "Show a function, its perimeter and its versions",
		Example: `  bawn show hello
  bawn show hello@3
  bawn show hello -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, qualifier, err := parseFunction(args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Function(cmd.Context(), name, qualifier)
			if err != nil {
				return err
			}
			versions, err := c.Versions(cmd.Context(), name)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(struct {
					*client.FunctionDetail
					Versions []bawn.Version `json:"versions"`
				}{d, versions})
			}
			a.printFunction(c, d)
			a.printf("\nVersions\n")
			var rows [][]string
			for _, v := range versions {
				var at []string
				for _, alias := range slices.Sorted(maps.Keys(d.Function.Aliases)) {
					if d.Function.Aliases[alias] == v.Number {
						at = append(at, alias)
					}
				}
				rows = append(rows, []string{
					fmt.Sprintf("  %d", v.Number), strings.Join(at, " "), shortDigest(v.Digest), a.ago(v.CreatedAt), v.CreatedBy,
				})
			}
			return a.table([]string{"  NUMBER", "ALIAS", "DIGEST", "DEPLOYED", "BY"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func (a *app) printFunction(c *client.Client, d *client.FunctionDetail) {
	v := d.Version
	a.printf("%s@%d", a.paint(1, clean(d.Function.Name)), v.Number)
	if v.Description != "" {
		a.printf("  %s", clean(v.Description))
	}
	a.printf("\n  runtime   %s\n", clean(string(v.Runtime)))
	if v.Handler != "" {
		a.printf("  handler   %s\n", clean(v.Handler))
	}
	a.printf("  owner     %s\n  identity  %s\n  digest    %s\n  package   %s, %s, %d file(s)\n", clean(v.Owner), clean(d.SPIFFE), clean(v.Digest), shortDigest(clean(v.Artifact.Digest)), size(v.Artifact.Size), v.Artifact.Files)
	a.printf("  deployed  %s by %s\n", a.ago(v.CreatedAt), clean(v.CreatedBy))
	if len(v.Environment) > 0 {
		// Values may be private; the names are what a reader looks for.
		a.printf("  environment  %s\n", clean(strings.Join(slices.Sorted(maps.Keys(v.Environment)), ", ")))
	}
	a.printPerimeter(c, &v, d.Retention)
}

// printEgress prints what a version may reach, and what its answers must look like.
func (a *app) printEgress(v *bawn.Version) {
	e := &v.Perimeter.Egress
	a.printf("Egress\n")
	line := func(kind, text string) { a.printf("  %-9s %s\n", kind, clean(text)) }
	if p := e.Everything; p != nil {
		if p.Open(a.Now()) {
			a.printf("  %s\n", a.paint(31, "EVERY PUBLIC HOST until "+p.Until.Add(-1).UTC().Format(time.DateOnly)+": "+clean(p.Reason)))
		} else {
			line("all", "no host any more: everything ended on "+p.Until.Add(-1).UTC().Format(time.DateOnly))
		}
	}
	for _, f := range e.Functions {
		line("function", f)
	}
	for i := range e.Hosts {
		line("host", e.Hosts[i].Host+"  "+manifest.HostText(&e.Hosts[i]))
	}
	for i := range e.Databases {
		d := &e.Databases[i]
		line("database", fmt.Sprintf("%s  at 127.0.0.1:%d: %s", d.Name, d.Port, manifest.DatabaseText(d)))
	}
	for _, s := range e.Secrets {
		text := s.Name
		if s.File {
			text += "  also as /run/secrets/" + s.Name
		}
		line("secret", text)
	}
	if len(e.Functions)+len(e.Hosts)+len(e.Databases) == 0 && e.Everything == nil {
		a.printf("  nothing may be reached\n")
	}
	if r := e.Response; r != nil {
		var parts []string
		if r.Schema != "" {
			parts = append(parts, "a schema")
		}
		if r.Bytes > 0 {
			parts = append(parts, "at most "+manifest.Size(r.Bytes).String())
		}
		if len(r.Headers) > 0 {
			parts = append(parts, "headers "+strings.Join(r.Headers, ", "))
		}
		if r.Cards != "" {
			parts = append(parts, r.Cards+" card numbers")
		}
		line("answers", strings.Join(parts, "; "))
	}
	if len(v.Labels) > 0 {
		line("labels", strings.Join(v.Labels, ", "))
	}
}

// printPerimeter prints a compiled perimeter in its four parts.
func (a *app) printPerimeter(c *client.Client, v *bawn.Version, kept client.Retention) {
	p := v.Perimeter
	a.printf("\nIngress\n")
	if len(p.Ingress.HTTP) == 0 {
		a.printf("  http      none: called by name only\n")
	}
	for _, r := range p.Ingress.HTTP {
		for _, at := range routeURLs(c, &r) {
			a.printf("  http      %-6s %s  %s\n", clean(r.Method), clean(at), clean(accessText(r.Access, a.Now())))
		}
		a.printf("              takes %s\n", clean(manifest.InputText(r.Input, a.Now())))
		a.printWeb(&r)
		if r.Inspect != nil {
			a.printf("              text searched for attacks: %s\n", clean(r.Inspect.String()))
		}
		if len(r.Limits) > 0 {
			a.printf("              at most %s\n", clean(manifest.RatesText(r.Limits)))
		}
	}
	var event *bawn.Input
	if p.Ingress.Event != nil {
		event = p.Ingress.Event.Input
	}
	a.printf("  events    takes %s\n", clean(manifest.InputText(event, a.Now())))
	if e := p.Ingress.Event; e != nil && e.Inspect != nil {
		a.printf("            text searched for attacks: %s\n", clean(e.Inspect.String()))
	}
	if len(p.Ingress.Budget) > 0 {
		a.printf("  budget    %s\n", clean(manifest.BudgetText(p.Ingress.Budget)))
	}
	if text := manifest.LimitsText(p.Ingress.Limits); text != "" {
		a.printf("  limits    %s\n", clean(text))
	}
	in := p.Interior
	reuse := "never"
	if !in.Reuse.Never() {
		var parts []string
		if in.Reuse.Invocations > 0 {
			parts = append(parts, fmt.Sprintf("%d invocations", in.Reuse.Invocations))
		}
		if in.Reuse.MaxAge > 0 {
			parts = append(parts, manifest.Duration(in.Reuse.MaxAge).String())
		}
		reuse = strings.Join(parts, " or ")
	}
	exec := "refused"
	if in.Exec {
		exec = "allowed"
	}
	a.printf("Interior\n  memory %s  cpu %g  timeout %s  tmp %s  pids %d  concurrency %d  exec %s  reuse %s\n",
		manifest.Size(in.Memory), in.CPU, manifest.Duration(in.Timeout), manifest.Size(in.Tmp), in.PIDs, in.Concurrency, exec, reuse)
	a.printEgress(v)
	a.printf("Evidence\n  logs kept %s", manifest.Duration(kept.Logs))
	if kept.Label != "" {
		a.printf(", as is settled for the label %s; the manifest says %s", clean(kept.Label), manifest.Duration(p.Evidence.LogRetention))
	}
	a.printf("\n")
}
