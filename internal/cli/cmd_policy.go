package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// maxPolicyFile bounds a file of rules or cases.
const maxPolicyFile = 64 << 10

func newPolicy(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "policy",
		GroupID: groupNode,
		Short:   "Set, list, show, remove and test guardrails: what nobody may",
		Long: `A guardrail is a text of Cedar rules that forbid, for a tenant or with --installation
for all of them. What a guardrail forbids no role and no manifest allows. It cannot
permit anything: that is for roles (bawn key) and manifests (bawn.yaml).`,
		Example: `  bawn policy set office --file office.cedar
  bawn policy test cases.txt --name office --file office.cedar
  bawn policy ls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newPolicySet(a), newPolicyList(a), newPolicyShow(a), newPolicyRemove(a), newPolicyTest(a))
	return c
}

func addInstallation(c *cobra.Command, installation *bool) {
	c.Flags().BoolVar(installation, "installation", false, "of the whole installation, for operators, in place of the tenant's")
}

func newPolicySet(a *app) *cobra.Command {
	var file string
	var installation bool
	c := &cobra.Command{
		Use:   "set NAME --file FILE",
		Short: "Make a guardrail, or change what it says",
		Long: `Checks the rules against the schema and stores them under NAME. They count for every
decision that begins after that.`,
		Example: `  bawn policy set office --file office.cedar
  echo 'forbid (principal is Bawn::Anonymous, action, resource);' | bawn policy set no-strangers --file - --installation`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.guardrailNames(&installation),
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			text, err := a.readText(file, "--file")
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			g, err := c.SetGuardrail(cmd.Context(), args[0], text, installation)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(g)
			}
			a.printf("guardrail %s: rules %d, %s\n", clean(g.Name), g.Rules, clean(g.Hash))
			return nil
		}),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the rules, as Cedar; - reads standard input")
	c.MarkFlagRequired("file")
	addInstallation(c, &installation)
	a.addOutput(c)
	return c
}

// readText reads a file of rules or cases, or standard input for -.
func (a *app) readText(file, flag string) (string, error) {
	in := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", usagef("%s %s cannot be read: %v", flag, file, err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxPolicyFile+1))
	if err != nil {
		return "", usagef("%s %s cannot be read: %v", flag, file, err)
	}
	if len(data) > maxPolicyFile {
		return "", bawn.Errorf(bawn.CodeTooLarge, "policy", "%s has more than %d bytes", file, maxPolicyFile)
	}
	return string(data), nil
}

func newPolicyList(a *app) *cobra.Command {
	var installation bool
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List guardrails",
		Example: `  bawn policy ls
  bawn policy ls --installation -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Guardrails(cmd.Context(), installation)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(list)
			}
			var rows [][]string
			for _, g := range list {
				rows = append(rows, []string{g.Name, fmt.Sprint(g.Rules), fmt.Sprintf("%s by %s", a.ago(g.UpdatedAt), g.UpdatedBy), g.Hash[:min(len(g.Hash), 19)]})
			}
			return a.table([]string{"NAME", "RULES", "CHANGED", "HASH"}, rows)
		}),
	}
	addInstallation(c, &installation)
	a.addOutput(c)
	return c
}

func newPolicyShow(a *app) *cobra.Command {
	var installation bool
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Print what a guardrail says",
		Long: `Prints the text of a guardrail, as "bawn policy set" takes it. For one on flows, "flow LABEL;",
it says on standard error what that looks at: what has the label in the functions that
are live, and what they reach that has not. It is broken where calls lead from one to the
other, and cannot be as long as it is there.`,
		Example:           `  bawn policy show office > office.cedar`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.guardrailNames(&installation),
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			g, err := c.Guardrail(cmd.Context(), args[0], installation)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(g)
			}
			a.printf("%s\n", cleanLines(strings.TrimSuffix(g.Text, "\n")))
			if g.Flow != nil {
				a.explainFlow(g.Flow)
			}
			return nil
		}),
	}
	addInstallation(c, &installation)
	a.addOutput(c)
	return c
}

// explainFlow says what a guardrail on flows looks at.
func (a *app) explainFlow(f *client.Flow) {
	list := func(head, none string, all []string) {
		if len(all) == 0 {
			a.notef("%s\n", none)
			return
		}
		a.notef("%s\n", head)
		for _, s := range all {
			a.notef("  %s\n", clean(s))
		}
	}
	label := clean(f.Label)
	list("sources of "+label+":", "no live version has a source of "+label, f.Sources)
	list("where "+label+" may not get to:", "no live version reaches anything where "+label+" is not", f.Destinations)
	if f.More > 0 {
		a.notef("and %d more\n", f.More)
	}
}

func newPolicyRemove(a *app) *cobra.Command {
	var installation bool
	c := &cobra.Command{
		Use:               "rm NAME",
		Short:             "Take a guardrail away, at once",
		Example:           `  bawn policy rm office`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.guardrailNames(&installation),
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RemoveGuardrail(cmd.Context(), args[0], installation); err != nil {
				return err
			}
			return a.did("removed", args[0])
		}),
	}
	addInstallation(c, &installation)
	a.addOutput(c)
	return c
}

func newPolicyTest(a *app) *cobra.Command {
	var file, name string
	var installation bool
	c := &cobra.Command{
		Use:   "test CASES",
		Short: "Hold the guardrails, or a change of one, to cases",
		Long: `Reads a file of cases, one a line: "allow" or "deny", then PRINCIPAL ACTION RESOURCE as
"bawn can" takes them, with quotes around what has spaces; # begins a comment. Each is
answered with the guardrails as they are, or with --name and --file as they would be.
Nothing is changed. The exit code is 1 if a case is not as expected.`,
		Example: `  bawn policy test cases.txt
  bawn policy test cases.txt --name office --file office.cedar
  echo 'deny anonymous invoke "GET /admin"' | bawn policy test -`,
		Args: cobra.ExactArgs(1),
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if (file == "") != (name == "") {
				return usagef("--name and --file go together: the guardrail and what it would say")
			}
			text, err := a.readText(args[0], "CASES")
			if err != nil {
				return err
			}
			cases, err := parseCases(text)
			if err != nil {
				return err
			}
			rules := ""
			if file != "" {
				if rules, err = a.readText(file, "--file"); err != nil {
					return err
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			results, err := c.TestPolicies(cmd.Context(), cases, name, rules, installation)
			if err != nil {
				return err
			}
			failed := 0
			for _, r := range results {
				word := a.paint(32, "ok  ")
				if !r.OK {
					failed++
					word = a.paint(31, "FAIL")
				}
				if a.format != "json" {
					a.printf("%s %s %s %s %s: %s\n", word, expected(r.Allow), clean(r.Principal), clean(r.Action), clean(r.Resource), clean(r.Reason))
				}
			}
			if a.format == "json" {
				if err := a.printJSON(results); err != nil {
					return err
				}
			} else {
				a.printf("%d cases, %d not as expected\n", len(results), failed)
			}
			if failed > 0 {
				return &silentError{exitFailure}
			}
			return nil
		}),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "what the guardrail NAME would say; - reads standard input")
	c.Flags().StringVar(&name, "name", "", "the guardrail to try")
	addInstallation(c, &installation)
	a.addOutput(c)
	return c
}

func expected(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

// parseCases reads a file of cases.
func parseCases(text string) ([]client.Case, error) {
	cases := []client.Case{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		words, err := splitWords(line)
		if err != nil {
			return nil, usagef("line %d: %v", n, err)
		}
		if len(words) == 0 {
			continue
		}
		if len(words) != 4 || words[0] != "allow" && words[0] != "deny" {
			return nil, usagef("line %d: want allow or deny, then PRINCIPAL ACTION RESOURCE", n)
		}
		cases = append(cases, client.Case{Question: client.Question{Principal: words[1], Action: words[2], Resource: words[3]}, Allow: words[0] == "allow"})
	}
	if len(cases) == 0 {
		return nil, usagef("there is no case in it")
	}
	return cases, nil
}

// splitWords splits a line at spaces that are not within quotes; # begins a
// comment.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quoted := false, false
	for _, r := range strings.TrimRight(line, "\r\n") {
		switch {
		case r == '"':
			quoted, in = !quoted, true
		case quoted:
			word.WriteRune(r)
		case r == '#' && !in:
			return words, nil
		case r == ' ' || r == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote has no end")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
