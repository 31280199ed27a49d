// Package cli is the command line of Bawn. Each command is one file,
// cmd_NAME.go, and one line of the list in [commands]. Commands speak to a node
// through package client and nothing else, so that whatever they do can be
// scripted against the API as well; only up, which is a node, does not.
//
// Standard output carries the answer and nothing else; progress, warnings and
// errors go to standard error. Text from outside is escaped before a terminal
// sees it.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

// The exit codes, listed in docs/reference/exit-codes.md. They are part of the
// interface: they are added to and never change their meaning.
const (
	exitOK            = 0
	exitFailure       = 1  // anything without a code of its own
	exitUsage         = 2  // the command line is wrong
	exitApproval      = 3  // nothing has changed: somebody else must approve it first
	exitDenied        = 4  // no credential, a bad one, or not enough rights
	exitNotFound      = 5  // no such thing, or not yours
	exitConflict      = 6  // somebody else has it, or changed it first
	exitFunctionError = 7  // the function failed or ran out of time
	exitUnavailable   = 8  // no node answers, or it cannot do it now
	exitRefused       = 9  // what was given is malformed, too large or unsafe
	exitThrottled     = 10 // over a limit; later it may work
	exitInterrupted   = 130
)

// command is one entry of the list: its name, to build only the one that is
// run, and what builds it.
type command struct {
	name  string
	build func(*app) *cobra.Command
}

// commands lists every command in the order that help shows them.
func commands() []command {
	return []command{
		{"up", newUp},
		{"status", newStatus},
		{"doctor", newDoctor},
		{"init", newInit},
		{"import", newImport},
		{"deploy", newDeploy},
		{"test", newTest},
		{"invoke", newInvoke},
		{"ls", newList},
		{"show", newShow},
		{"approvals", newApprovals},
		{"approve", newApprove},
		{"rollback", newRollback},
		{"alias", newAlias},
		{"rm", newRemove},
		{"logs", newLogs},
		{"events", newEvents},
		{"audit", newAudit},
		{"witness", newWitness},
		{"perimeter", newPerimeter},
		{"can", newCan},
		{"explain", newExplain},
		{"data", newData},
		{"policy", newPolicy},
		{"label", newLabel},
		{"domain", newDomain},
		{"budget", newBudget},
		{"cost", newCost},
		{"key", newKey},
		{"secret", newSecret},
		{"root-key", newRootKey},
		{"tenant", newTenant},
		{"backup", newBackup},
		{"state", newState},
		{"login", newLogin},
		{"logout", newLogout},
		{"whoami", newWhoami},
		{"issuer", newIssuer},
		{"revoke", newRevoke},
		{"version", newVersion},
	}
}

// The groups of the help text.
const (
	groupNode     = "node"
	groupFunction = "function"
	groupWatch    = "watch"
)

// IO is what the process gives a command.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
}

// app is what the commands share.
type app struct {
	IO
	outTTY, errTTY, inTTY bool
	color                 bool
	format                string // "text" or "json"
}

// Main runs the command line args (without the program's name) and returns the
// process's exit code. It ends early when ctx does.
func Main(ctx context.Context, args []string, std IO) int {
	if len(args) == 1 && args[0] == node.PrepareCommand { // from the sandbox helper
		if err := node.PrepareRoots(ctx); err != nil {
			fmt.Fprintln(std.Err, "bawn:", err)
			return exitFailure
		}
		return exitOK
	}
	a := &app{IO: std, format: "text"}
	a.outTTY, a.errTTY, a.inTTY = isTerminal(std.Out), isTerminal(std.Err), isTerminal(std.In)
	a.color = a.outTTY && std.Getenv("NO_COLOR") == "" && std.Getenv("TERM") != "dumb"
	root := a.root(args)
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	return a.report(ctx, ran.CommandPath(), err)
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// root builds the tree of commands. When args name a command only that one is
// built: the others would cost every start a little and do nothing.
func (a *app) root(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "bawn",
		Short: "Runs functions, each behind its own wall",
		Long: `Bawn runs functions on your own machines, each in a hardened sandbox of its own.

Start a node with "bawn up", make a function with "bawn init", and put it on the
node with "bawn deploy". Every other command finds the node through the context
file that "bawn up" wrote (` + client.ContextEnv + `=FILE chooses another).`,
		Example: `  bawn up --solo
  bawn init hello --runtime python3.11 && bawn deploy hello
  bawn invoke hello -d '{"name": "world"}'`,
		SilenceUsage: true, SilenceErrors: true,
		Version:           versionText(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: groupNode, Title: "The node:"},
		&cobra.Group{ID: groupFunction, Title: "Functions:"},
		&cobra.Group{ID: groupWatch, Title: "Watching:"},
	)
	root.SetHelpCommandGroupID(groupNode)
	root.SetCompletionCommandGroupID(groupNode)
	only := ""
	for _, c := range commands() {
		if len(args) > 0 && args[0] == c.name {
			only = c.name
		}
	}
	for _, c := range commands() {
		if only == "" || only == c.name {
			root.AddCommand(c.build(a))
		}
	}
	return root
}

// addOutput gives a command that prints the flag -o.
func (a *app) addOutput(c *cobra.Command) {
	c.Flags().VarP((*outputFlag)(&a.format), "output", "o", `how to print: "text" or "json"`)
	c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

type outputFlag string

func (f *outputFlag) String() string { return string(*f) }
func (f *outputFlag) Type() string   { return "FORMAT" }
func (f *outputFlag) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New(`want "text" or "json"`)
	}
	*f = outputFlag(s)
	return nil
}

// client opens the node of the context file.
func (a *app) client() (*client.Client, error) { return client.Open("") }

// runE marks the errors that a command itself returns, which leaves everything
// else to be a mistake on the command line.
func runE(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := fn(cmd, args); err != nil {
			return &runError{err}
		}
		return nil
	}
}

// onNode is runE for a command that asks the node of the context file.
func (a *app) onNode(fn func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return runE(func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return fn(cmd, c, args)
	})
}

type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// usageError is a mistake on the command line that a command found itself.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// silentError ends with a code after everything has been said.
type silentError struct{ code int }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// report prints err, which command ended with, and returns the exit code it
// stands for.
func (a *app) report(ctx context.Context, command string, err error) int {
	if err == nil {
		return exitOK
	}
	var silent *silentError
	if errors.As(err, &silent) {
		return silent.code
	}
	var be *bawn.Error
	var run *runError
	var use *usageError
	code, out := exitFailure, errorOutput{Code: bawn.CodeInternal, Message: err.Error()}
	switch {
	case errors.As(err, &use):
		code, out = exitUsage, errorOutput{Code: bawn.CodeInvalid, Message: use.message, Fix: "see `" + command + " --help`"}
	case !errors.As(err, &run): // cobra's own: an unknown command or flag
		code, out = exitUsage, errorOutput{Code: bawn.CodeInvalid, Message: strings.TrimSpace(err.Error()), Fix: "see `" + command + " --help`"}
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || bawn.ErrorCode(err) == bawn.CodeUnavailable):
		return exitInterrupted
	case errors.As(err, &be):
		code, out = exitCode(be.Code), errorOutput{Code: be.Code, Message: be.Message, Fix: be.Fix}
	}
	if a.format == "json" {
		enc := json.NewEncoder(a.Err)
		enc.SetEscapeHTML(false)
		enc.Encode(out)
		return code
	}
	red, reset := "", ""
	if a.errTTY && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb" {
		red, reset = "\x1b[31m", "\x1b[0m"
	}
	fmt.Fprintf(a.Err, "%sbawn:%s %s\n", red, reset, cleanLines(out.Message))
	if out.Fix != "" {
		fmt.Fprintf(a.Err, "  fix: %s\n", cleanLines(out.Fix))
	}
	return code
}

// errorOutput is an error as -o json prints it.
type errorOutput struct {
	Code    bawn.Code `json:"code"`
	Message string    `json:"message"`
	Fix     string    `json:"fix,omitempty"`
}

// exitCode returns the exit code that stands for c.
func exitCode(c bawn.Code) int {
	switch c {
	case "":
		return exitOK
	case bawn.CodeUnauthenticated, bawn.CodeDenied:
		return exitDenied
	case bawn.CodeNotFound:
		return exitNotFound
	case bawn.CodeConflict:
		return exitConflict
	case bawn.CodeFunctionError, bawn.CodeFunctionTimeout:
		return exitFunctionError
	case bawn.CodeUnavailable:
		return exitUnavailable
	case bawn.CodeInvalid, bawn.CodeTooLarge, bawn.CodeUnprocessable:
		return exitRefused
	case bawn.CodeThrottled:
		return exitThrottled
	}
	return exitFailure
}

// parseFunction reads FN or FN@QUALIFIER. The tenant is the key's own.
func parseFunction(arg string) (name, qualifier string, err error) {
	if strings.Contains(arg, "/") {
		return "", "", usagef("%q names a tenant: the tenant is the one of your key, write the function's name alone", arg)
	}
	r, err := bawn.ParseRef(arg, bawn.DefaultTenant)
	if err != nil {
		var be *bawn.Error
		if errors.As(err, &be) {
			return "", "", usagef("%s", be.Message)
		}
		return "", "", err
	}
	return r.Function, r.Qualifier, nil
}

// parseName reads FN where no qualifier makes sense.
func parseName(arg string) (string, error) {
	name, q, err := parseFunction(arg)
	if err == nil && q != "" {
		err = usagef("%q: this command is about the whole function, leave @%s out", arg, q)
	}
	return name, err
}

// parseSince reads a moment: a span back from now ("10m", "2d") or RFC 3339.
func (a *app) parseSince(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := manifest.ParseDuration(s); err == nil {
		return a.Now().Add(-time.Duration(d)), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usagef("--since %q: want a span such as 10m or 2d, or a time such as 2027-01-31T12:00:00Z", s)
	}
	return t, nil
}

// completeFunctions completes the name of a function through the API.
func (a *app) completeFunctions(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.functionNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
}

// complete completes the only argument of a command with what names returns.
func (a *app) complete(cmd *cobra.Command, args []string, names func(context.Context, *client.Client) []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.suggest(cmd, names), cobra.ShellCompDirectiveNoFileComp
}

// suggest returns what ask finds out, or nothing if no node answers soon: a shell
// must not hang.
func (a *app) suggest(cmd *cobra.Command, ask func(context.Context, *client.Client) []string) []string {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil
	}
	defer c.Close()
	return ask(ctx, c)
}

func (a *app) functionNames(cmd *cobra.Command, prefix string) []string {
	return a.suggest(cmd, func(ctx context.Context, c *client.Client) (names []string) {
		list, err := c.Functions(ctx)
		if err != nil {
			return nil
		}
		for _, f := range list {
			if strings.HasPrefix(f.Function.Name, prefix) && bawn.CheckName("function", f.Function.Name) == nil {
				names = append(names, f.Function.Name)
			}
		}
		return names
	})
}

// Version returns what this binary is: the module's version, or the commit it
// was built from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, rev, dirty := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if version == "" || version == "(devel)" {
		version = "devel"
		if rev != "" {
			version += "-" + rev + dirty
		}
	}
	return version
}

func versionText() string { return "bawn " + Version() }
