package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

// defaultWindow is how long the value before a rotation can still be read.
const defaultWindow = "10m"

func newSecret(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "secret",
		GroupID: groupFunction,
		Short:   "Keep secrets, and say which functions use them",
		Long: `Keeps secrets, encrypted, and gives each to just the functions that it is granted to and
whose manifests ask for it. A value goes in from standard input or a file, and never
comes out again but to those functions.`,
		Example: `  bawn secret set stripe-key < key.txt
  bawn secret grant stripe-key checkout
  bawn secret rotate stripe-key --file new.txt --window 1h
  bawn secret who stripe-key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newSecretSet(a), newSecretList(a), newSecretVersions(a), newSecretRotate(a), newSecretWho(a), newSecretGrant(a), newSecretRevoke(a), newSecretLabel(a), newSecretRemove(a))
	return c
}

// parseSecret checks the name of a secret.
func parseSecret(name string) error {
	if err := bawn.CheckName("secret", name); err != nil {
		return usagef("%s", err.(*bawn.Error).Message)
	}
	return nil
}

// readValue reads the value of a secret: from a file, from standard input, or at a
// terminal without showing it. A line end after it is left out, and said so, unless
// exact is set.
func (a *app) readValue(name, file string, exact bool) ([]byte, error) {
	if f, ok := a.In.(*os.File); ok && file == "" && a.inTTY {
		fmt.Fprintf(a.Err, "Value of %s (it is not shown): ", name)
		value, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.Err)
		if err != nil {
			return nil, fileError(err, "the value cannot be read")
		}
		return value, nil
	}
	r := a.In
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fileError(err, "the file %s cannot be read", file)
		}
		defer f.Close()
		r = f
	}
	value, err := io.ReadAll(io.LimitReader(r, bawn.MaxSecretBytes+3)) // a line end more
	if err != nil {
		return nil, fileError(err, "the value cannot be read")
	}
	if n := len(value); !exact && n > 0 && value[n-1] == '\n' {
		value = value[:n-1]
		if n > 1 && value[n-2] == '\r' {
			value = value[:n-2]
		}
		a.notef("the line end after the value was left out; --exact keeps it\n")
	}
	switch {
	case len(value) == 0:
		return nil, usagef("the value is empty: give it on standard input, or name a file with --file")
	case len(value) > bawn.MaxSecretBytes:
		clear(value)
		return nil, bawn.Errorf(bawn.CodeTooLarge, "secret", "the value has more than %d bytes", bawn.MaxSecretBytes).WithFix("keep a key in the secret, and what it encrypts elsewhere")
	}
	return value, nil
}

// addValue gives a command the flags by which it reads a value.
func addValue(c *cobra.Command, file *string, exact *bool) {
	c.Flags().StringVarP(file, "file", "f", "", "read the value from this file; - is standard input, as without the flag")
	c.Flags().BoolVar(exact, "exact", false, "keep a line end after the value")
	c.MarkFlagFilename("file")
}

func (a *app) completeSecrets(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *client.Client) (names []string) {
		list, err := c.Secrets(ctx)
		if err != nil {
			return nil
		}
		for _, s := range list {
			if bawn.CheckName("secret", s.Name) == nil {
				names = append(names, s.Name)
			}
		}
		return names
	})
}

// completeGrant completes a secret, and then a function.
func (a *app) completeGrant(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return a.functionNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeSecrets(cmd, args, prefix)
}

func newSecretSet(a *app) *cobra.Command {
	var file string
	var labels []string
	var exact bool
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Keep a new secret",
		Long: `Keeps a value under a name that is free: from standard input, from a file with --file,
or typed at a terminal, where it is not shown. There is no way to give it as an argument,
which other processes and the shell's history would see. A line end after the value is
left out, unless --exact is given.

No function has it yet: "bawn secret grant" names those that may, and their manifests
ask for it. To change the value of a secret that there is: "bawn secret rotate".`,
		Example: `  bawn secret set stripe-key < key.txt
  openssl rand -hex 32 | bawn secret set signing-key
  bawn secret set tls-key --file key.pem --exact --label pii`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			value, err := a.readValue(args[0], file, exact)
			if err != nil {
				return err
			}
			defer clear(value)
			s, err := c.CreateSecret(cmd.Context(), args[0], value, labels...)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			a.printf("%s version %d\n", clean(s.Name), s.Versions[len(s.Versions)-1].Number)
			a.notef("no function has it yet: bawn secret grant %s FUNCTION\n", clean(s.Name))
			return nil
		}),
	}
	addValue(c, &file, &exact)
	c.Flags().StringSliceVar(&labels, "label", nil, "a label of the data that it opens, such as pii (more than once)")
	a.addOutput(c)
	return c
}

func newSecretRotate(a *app) *cobra.Command {
	var file, window string
	var exact, now bool
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a secret a new value; the old one dies after a window",
		Long: `Gives a secret a new value, read as "bawn secret set" does. Whatever reads it from now on
gets the new one, without a deploy or a restart. The old value can still be read by
its number for --window, for what works with it at the moment; then it is wiped: the key
that opens it is overwritten. --now does that at once, for a value that has leaked.

"bawn secret who" tells who has read the old value, and which warm instances may still
hold it. Give the window no less than the longest call that uses it takes.`,
		Example: `  bawn secret rotate stripe-key < new.txt
  bawn secret rotate stripe-key --file new.txt --window 1h
  bawn secret rotate stripe-key --now < new.txt`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSecrets,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			d, err := manifest.ParseDuration(window)
			if err != nil || d <= 0 {
				return usagef("--window %q: want a span such as 10m or 24h; --now for none", window)
			}
			if now {
				if cmd.Flags().Changed("window") {
					return usagef("give --window or --now")
				}
				d = 0
			}
			value, err := a.readValue(args[0], file, exact)
			if err != nil {
				return err
			}
			defer clear(value)
			s, err := c.RotateSecret(cmd.Context(), args[0], value, time.Duration(d))
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			n := len(s.Versions)
			a.printf("%s version %d\n", clean(s.Name), s.Versions[n-1].Number)
			if n > 1 {
				a.notef("version %d can be read until %s\n", s.Versions[n-2].Number, endText(s.Versions[n-2]))
			}
			return nil
		}),
	}
	addValue(c, &file, &exact)
	c.Flags().StringVar(&window, "window", defaultWindow, "how long the value before can still be read")
	c.Flags().BoolVar(&now, "now", false, "end the value before, and all older ones, at once")
	a.addOutput(c)
	return c
}

func endText(v bawn.SecretVersion) string {
	if v.Ends == nil {
		return "current"
	}
	return v.Ends.UTC().Format(time.RFC3339)
}

func newSecretList(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List secrets, without their values",
		Example: `  bawn secret ls
  bawn secret ls -o json`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Secrets(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				if list == nil {
					list = []bawn.Secret{}
				}
				return a.printJSON(list)
			}
			var rows [][]string
			for _, s := range list {
				current, old := "", 0
				if n := len(s.Versions); n > 0 {
					current, old = strconv.Itoa(s.Versions[n-1].Number), n-1
				}
				if old > 0 {
					current += fmt.Sprintf(" (and %d in a window)", old)
				}
				var grants []string
				for _, g := range s.Grants {
					grants = append(grants, g.Function)
				}
				rows = append(rows, []string{s.Name, current, strings.Join(grants, " "), strings.Join(s.Labels, " "), a.ago(s.UpdatedAt)})
			}
			return a.table([]string{"NAME", "VERSION", "GRANTED TO", "LABELS", "CHANGED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newSecretVersions(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "versions NAME",
		Short:             "List the versions of a secret that still have a value",
		Example:           `  bawn secret versions stripe-key`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSecrets,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			s, err := c.Secret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			var rows [][]string
			for _, v := range slices.Backward(s.Versions) {
				rows = append(rows, []string{strconv.Itoa(v.Number), endText(v), fmt.Sprintf("%s by %s", a.ago(v.CreatedAt), v.CreatedBy)})
			}
			return a.table([]string{"VERSION", "ENDS", "CREATED"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newSecretWho(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "who NAME",
		Short: "Say who may use a secret, who has, and who may still hold an old value",
		Long: `Says which functions may use a secret: those that it is granted to and whose live
versions ask for it. A function that has only one of the two does not get it.

Below that it says who has used it since the node started, for which purpose, and which
version of it. A reader with an instance is a warm one, which may still hold what it
read. What was used before that is in the evidence: bawn events --action secret.`,
		Example: `  bawn secret who stripe-key
  bawn secret who stripe-key -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSecrets,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			u, err := c.SecretUsers(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(u)
			}
			yes := map[bool]string{true: "yes", false: "no"}
			var rows [][]string
			for _, m := range u.May {
				asks := "no"
				if m.Version > 0 {
					asks = fmt.Sprintf("version %d, for %s", m.Version, strings.Join(m.For, ", "))
				}
				old := ""
				for i, n := range m.Old {
					if i > 0 {
						old += " "
					}
					old += strconv.Itoa(n)
				}
				rows = append(rows, []string{m.Function, yes[m.Granted], asks, old})
			}
			if err := a.table([]string{"FUNCTION", "GRANTED", "ASKS", "HAS READ OLD VERSION"}, rows); err != nil {
				return err
			}
			if len(u.Readers) == 0 {
				a.printf("\nnobody has used it since the node started, %s\n", a.ago(u.Since))
				return nil
			}
			a.printf("\nused since the node started, %s:\n", a.ago(u.Since))
			rows = nil
			for _, r := range u.Readers {
				instance := r.Instance
				if instance == "" {
					instance = "ended"
				}
				rows = append(rows, []string{fmt.Sprintf("%s@%d", r.Function, r.Version), strconv.Itoa(r.Secret), r.For, instance, strconv.FormatInt(r.Count, 10), a.ago(r.Last)})
			}
			return a.table([]string{"FUNCTION", "SECRET VERSION", "FOR", "INSTANCE", "TIMES", "LAST"}, rows)
		}),
	}
	a.addOutput(c)
	return c
}

func newSecretGrant(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "grant NAME FUNCTION",
		Short: "Let a function use a secret that its manifest asks for",
		Long: `Lets a function use a secret. It takes both: the grant, which a secret admin gives, and
the function's manifest, which asks for the secret. A deploy never grants anything.

Removing the function takes the grant back: one that gets its name later has none.`,
		Example:           `  bawn secret grant stripe-key checkout`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeGrant,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			s, err := a.changeGrant(cmd, args, c.GrantSecret)
			if err != nil || a.format == "json" {
				return err
			}
			a.printf("%s is granted %s\n", clean(args[1]), clean(s.Name))
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

func newSecretRevoke(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "revoke NAME FUNCTION",
		Short: "Take a grant back, at once",
		Long: `Takes a grant back: the function, its warm instances included, gets the secret no more. What
it has read and kept it still has; rotate the secret if that matters.`,
		Example:           `  bawn secret revoke stripe-key checkout`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeGrant,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			s, err := a.changeGrant(cmd, args, c.RevokeSecret)
			if err != nil || a.format == "json" {
				return err
			}
			a.printf("%s is not granted %s any more\n", clean(args[1]), clean(s.Name))
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

func (a *app) changeGrant(cmd *cobra.Command, args []string, change func(context.Context, string, string) (*bawn.Secret, error)) (*bawn.Secret, error) {
	function, err := parseName(args[1])
	if err := errors.Join(parseSecret(args[0]), err); err != nil {
		return nil, err
	}
	s, err := change(cmd.Context(), args[0], function)
	if err == nil && a.format == "json" {
		err = a.printJSON(s)
	}
	return s, err
}

func newSecretRemove(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:     "rm NAME",
		Aliases: []string{"remove"},
		Short:   "Wipe a secret with all its versions and grants",
		Long: `Wipes a secret, for good, with all its versions and grants. On a terminal it asks first;
elsewhere it needs --yes. A backup does not bring its values back.`,
		Example: `  bawn secret rm stripe-key
  bawn secret rm stripe-key --yes`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSecrets,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if err := parseSecret(args[0]); err != nil {
				return err
			}
			if !yes {
				if err := a.confirm(args[0], "Wipe the secret "+args[0]+" with all its versions and grants?"); err != nil {
					return err
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.RemoveSecret(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did("removed", args[0])
		}),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	a.addOutput(c)
	return c
}
