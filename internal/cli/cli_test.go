package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

// run runs one command line without a terminal.
func run(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Main(t.Context(), args, IO{In: strings.NewReader(""), Out: &o, Err: &e, Getenv: os.Getenv, Now: time.Now})
	return code, o.String(), e.String()
}

func everyCommand(a *app) []*cobra.Command {
	var all []*cobra.Command
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, s := range c.Commands() {
			if s.Name() != "help" && s.Name() != "completion" && (s.Parent() == nil || s.Parent().Name() != "completion") {
				all = append(all, s)
				walk(s)
			}
		}
	}
	walk(a.root(nil))
	return all
}

func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{IO: IO{Getenv: os.Getenv}, format: "text"}
	all := everyCommand(a)
	if len(all) < len(commands()) {
		t.Fatalf("found %d commands", len(all))
	}
	for _, c := range all {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s lacks a summary or examples", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  ") || !strings.Contains(c.Example, c.CommandPath()) {
				t.Errorf("%s: example %q", c.CommandPath(), line)
			}
		}
		if c.Name() != "up" && c.Name() != "witness" && !c.HasSubCommands() && c.Flags().Lookup("output") == nil {
			t.Errorf("%s prints without -o", c.CommandPath())
		}
		if c.Parent() == c.Root() && c.GroupID == "" {
			t.Errorf("%s has no group", c.CommandPath())
		}
	}
}

func TestOnlyTheNamedCommandIsBuilt(t *testing.T) {
	a := &app{IO: IO{Getenv: os.Getenv}}
	if n := len(a.root([]string{"ls"}).Commands()); n != 1 {
		t.Errorf("%d commands built for ls", n)
	}
	for _, args := range [][]string{nil, {"help"}, {"__complete", "ls", ""}, {"nonsense"}} {
		if n := len(a.root(args).Commands()); n != len(commands()) {
			t.Errorf("%d commands built for %v", n, args)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	t.Setenv("BAWN_CONTEXT", filepath.Join(t.TempDir(), "none"))
	for _, args := range []string{
		"nonsense", "ls --nonsense", "ls extra", "invoke", "invoke Bad_Name", "invoke other/f", "invoke f@1 --alias x", "show f@",
		"logs f --since yesterday", "logs f --limit -1", "events --kind nonsense", "rm f", "rollback f --to 0", "alias f x nonsense",
		"init", "init x", "init x --runtime cobol", "init X --runtime wasm", "key create k --role King", "key create k --ttl soon",
		"ls -o xml", "up --log-level loud", "invoke f -d 1 -f x",
	} {
		code, out, errs := run(t, strings.Fields(args)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, "bawn: ") || !strings.Contains(errs, "fix: ") {
			t.Errorf("%s: exit %d\nout %q\nerr %q", args, code, out, errs)
		}
	}
}

func TestNoContext(t *testing.T) {
	t.Setenv("BAWN_CONTEXT", filepath.Join(t.TempDir(), "none"))
	code, _, errs := run(t, "ls")
	if code != exitNotFound || !strings.Contains(errs, "bawn up") {
		t.Errorf("exit %d, %q", code, errs)
	}
	code, _, errs = run(t, "ls", "-o", "json")
	if code != exitNotFound || !strings.HasPrefix(errs, `{"code":"not_found",`) {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// Every code of the API has an exit code, and the page lists every exit code.
func TestExitCodes(t *testing.T) {
	for c, want := range map[bawn.Code]int{
		bawn.CodeUnauthenticated: 4, bawn.CodeDenied: 4, bawn.CodeNotFound: 5, bawn.CodeConflict: 6, bawn.CodeFunctionError: 7,
		bawn.CodeFunctionTimeout: 7, bawn.CodeUnavailable: 8, bawn.CodeInvalid: 9, bawn.CodeTooLarge: 9, bawn.CodeUnprocessable: 9,
		bawn.CodeThrottled: 10, bawn.CodeInternal: 1,
	} {
		a := &app{IO: IO{Out: new(bytes.Buffer), Err: new(bytes.Buffer), Getenv: os.Getenv}}
		err := &runError{fmt.Errorf("outer: %w", bawn.Errorf(c, "x", "m"))}
		if got := a.report(t.Context(), "bawn", err); got != want {
			t.Errorf("%s: exit %d, want %d", c, got, want)
		}
	}
	page, err := os.ReadFile("../../docs/reference/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []int{exitOK, exitFailure, exitUsage, exitApproval, exitDenied, exitNotFound, exitConflict, exitFunctionError, exitUnavailable, exitRefused, exitThrottled, exitInterrupted} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^\| %d \|`, c)).Match(page) {
			t.Errorf("docs/reference/exit-codes.md lacks %d", c)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{IO: IO{Err: new(bytes.Buffer), Getenv: os.Getenv}}
	if got := a.report(ctx, "bawn", &runError{context.Canceled}); got != exitInterrupted {
		t.Errorf("interrupted: exit %d", got)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä 日本": "plain ä 日本",
		"\x1b[2J":    `\x1b[2J`,
		"a\nb\tc\r":  `a\nb\tc\r`,
		"\u202egnp":  `\u202egnp`,
		"\u009b31m":  `\u009b31m`,
		"bad\xffend": `bad\xffend`,
		"\u2028":     `\u2028`,
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := cleanLines("a\n\tb\r\x1b"); got != "a\n\tb"+`\r\x1b` {
		t.Errorf("lines: %q", got)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b]0;title\x07", 1)
	f.Add("日本\u202e", 2)
	f.Add("\xe6\x97", 1)
	f.Fuzz(func(t *testing.T, s string, cut int) {
		for _, r := range clean(s) {
			if unicode.IsControl(r) || r == '\u202e' {
				t.Errorf("%q lets %q through", s, r)
			}
		}
		// In pieces it is the same as in one.
		var b bytes.Buffer
		w := &terminalWriter{w: &b}
		cut = max(0, min(cut, len(s)))
		w.Write([]byte(s[:cut]))
		w.Write([]byte(s[cut:]))
		w.flush()
		if b.String() != cleanLines(s) {
			t.Errorf("%q cut at %d: %q, want %q", s, cut, b.String(), cleanLines(s))
		}
	})
}

// What init writes must be a manifest that compiles and code that packs.
func TestInit(t *testing.T) {
	for _, rt := range bawn.Runtimes() {
		t.Run(string(rt), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "fn")
			code, out, errs := run(t, "init", "my-fn", "--runtime", string(rt), "--dir", dir)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, errs)
			}
			if !strings.Contains(out, "bawn deploy") {
				t.Errorf("output %q", out)
			}
			m, err := readManifest(dir)
			if err != nil {
				t.Fatal(err)
			}
			f := m.Functions["my-fn"]
			v, err := manifest.Compile("my-fn", f)
			if err != nil || v.Runtime != rt {
				t.Fatalf("%v, %v", v, err)
			}
			if _, err := exec.LookPath("go"); err != nil && (rt == bawn.Provided || rt == bawn.Wasm) {
				t.Skip("SKIP: Go is not installed, so nothing was built")
			}
			var zip bytes.Buffer
			info, err := manifest.Pack(filepath.Join(dir, f.CodePath()), &zip)
			if err != nil || info.Files != 1 {
				t.Errorf("packed %d files, %v", info.Files, err)
			}
			// A second time it must not touch what is there.
			if code, _, errs := run(t, "init", "my-fn", "--runtime", string(rt), "--dir", dir); code != exitConflict {
				t.Errorf("again: exit %d, %s", code, errs)
			}
		})
	}
}

func TestReadEvent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.json")
	os.WriteFile(file, []byte("{\n  \"a\": x}"), 0o600)
	t.Setenv("BAWN_CONTEXT", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		args string
		code int
		text string
	}{
		{"invoke f -d {", exitRefused, "not JSON: line 1"},
		{"invoke f -f " + file, exitRefused, "line 2, column 8"},
		{"invoke f -f " + file + ".none", exitNotFound, "no such file"},
		{"invoke f -d {}", exitNotFound, "context file"}, // well formed: it gets as far as the context
	} {
		code, _, errs := run(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: exit %d, %q", c.args, code, errs)
		}
	}
}

func TestDeployRefusesBeforeItConnects(t *testing.T) {
	t.Setenv("BAWN_CONTEXT", filepath.Join(t.TempDir(), "none"))
	dir := t.TempDir()
	code, _, errs := run(t, "deploy", dir)
	if code != exitNotFound || !strings.Contains(errs, "bawn init") {
		t.Errorf("no manifest: exit %d, %q", code, errs)
	}
	os.WriteFile(filepath.Join(dir, "bawn.yaml"), []byte("functions:\n  f:\n    runtme: wasm\n"), 0o600)
	code, _, errs = run(t, "deploy", dir)
	if code != exitRefused || !strings.Contains(errs, "bawn.yaml:3:") || !strings.Contains(errs, "runtime") {
		t.Errorf("bad manifest: exit %d, %q", code, errs)
	}
}

// Whether anything changed is said of live, not of whether a version was made.
func TestDeploymentsAreWorded(t *testing.T) {
	at := func(n int) *bawn.Version { return &bawn.Version{Number: n, Digest: "sha256:0"} }
	for want, d := range map[string]client.Deployment{
		"f: version 1 is live":                                                           {Version: *at(1), Created: true},
		"f: version 3 is live":                                                           {Version: *at(3), Created: true, Previous: at(2)},
		"f: would become version 3":                                                      {Version: *at(3), Created: true, Previous: at(2), DryRun: true},
		"f: version 2 is live, nothing has changed":                                      {Version: *at(2), Previous: at(2)},
		"f: would stay version 2, nothing has changed":                                   {Version: *at(2), Previous: at(2), DryRun: true},
		"f: live moves back from version 2 to version 1, which has this content":         {Version: *at(1), Previous: at(2)},
		"f: live would move back from version 2 to version 1, which has this content":    {Version: *at(1), Previous: at(2), DryRun: true},
		"f: live moves forward from version 1 to version 2, which has this content":      {Version: *at(2), Previous: at(1)},
		"f: live would move forward from version 1 to version 2, which has this content": {Version: *at(2), Previous: at(1), DryRun: true},
	} {
		var out bytes.Buffer
		a := &app{IO: IO{Out: &out, Err: &out, Now: time.Now}, format: "text"}
		a.printDeployment(&client.Client{}, "f", &d)
		if got, _, _ := strings.Cut(out.String(), "  "); strings.TrimSpace(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2027, 5, 1, 12, 0, 0, 0, time.UTC)
	a := &app{IO: IO{Now: func() time.Time { return now }}}
	for in, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2d": now.Add(-48 * time.Hour), "2027-01-31T12:00:00Z": time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC),
	} {
		if got, err := a.parseSince(in); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	var use *usageError
	if _, err := a.parseSince("soon"); !errors.As(err, &use) {
		t.Errorf("soon: %v", err)
	}
}

func TestErrorsAreEscaped(t *testing.T) {
	var e bytes.Buffer
	a := &app{IO: IO{Err: &e, Getenv: os.Getenv}, format: "text"}
	a.report(t.Context(), "bawn", &runError{bawn.Errorf(bawn.CodeInvalid, "x", "bad \x1b[2J name").WithFix("do \x07 this")})
	if strings.ContainsAny(e.String(), "\x1b\x07") {
		t.Errorf("printed %q", e.String())
	}
}
