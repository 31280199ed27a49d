package cli

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

//go:embed templates
var templates embed.FS

// starter is what init writes for one family of runtimes.
type starter struct {
	handler string
	code    string // the folder that is packed
	env     []string
	output  string // of the build; empty where nothing is built
}

func starters() map[string]starter {
	return map[string]starter{
		"python":   {handler: "app.handler", code: "."},
		"nodejs":   {handler: "index.handler", code: "."},
		"provided": {code: "build", env: []string{"CGO_ENABLED=0", "GOOS=linux"}, output: "build/bootstrap"},
		"wasm":     {handler: "main.wasm", code: "build", env: []string{"CGO_ENABLED=0", "GOOS=wasip1", "GOARCH=wasm"}, output: "build/main.wasm"},
	}
}

const manifestTemplate = `# What the function is, and what its perimeter lets through: all that is not
# written here is refused.
functions:
  {{.Name}}:
    runtime: {{.Runtime}}
{{- if .Handler}}
    handler: {{.Handler}}
{{- end}}
    code: {{.Code}}
    owner: {{.Owner}}
    ingress:
      http:
        # Callers need a key: bawn key create NAME --function {{.Name}}
        - {method: GET, path: /{{.Name}}}
    interior: {memory: 256MiB, timeout: 10s, reuse: {invocations: 1000, maxAge: 15m}}
    # What it may reach; nothing, if it is not said. bawn perimeter suggest {{.Name}} proposes it.
    # egress:
    #   hosts:
    #     - {host: api.example.com, ports: [443]}
    #   secrets: [signing-key]
    evidence: {logRetention: 7d}
`

const buildTemplate = `#!/bin/sh
# Builds what bawn deploy packs.
set -eu
cd "$(dirname "$0")"
{{.Env}} go build -trimpath -ldflags=-s -o {{.Output}} .
`

const moduleTemplate = `module {{.Name}}

go 1.24
`

const ignoreTemplate = `# Files that do not belong into the package, one pattern a line.
bawn.yaml
.bawnignore
*.md
`

func newInit(a *app) *cobra.Command {
	var rt, dir string
	c := &cobra.Command{
		Use:     "init NAME --runtime RUNTIME",
		GroupID: groupFunction,
		Short:   "Make a folder with a function that deploys as it is",
		Long: `Makes a folder with a small function, its manifest and, for the compiled runtimes,
a build script, which is run right away if Go is installed.

Runtimes: ` + runtimesText() + `.`,
		Example: `  bawn init hello --runtime python3.11
  bawn init api --runtime provided --dir services/api
  cd hello && bawn deploy`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := bawn.CheckName("function", name); err != nil {
				return usagef("%s", err.(*bawn.Error).Message)
			}
			if rt == "" {
				return usagef("which runtime? Add --runtime with one of %s", runtimesText())
			}
			if !bawn.Runtime(rt).Known() {
				return usagef("--runtime %q: want one of %s", rt, runtimesText())
			}
			if dir == "" {
				dir = name
			}
			return a.init(cmd.Context(), name, bawn.Runtime(rt), dir)
		}),
	}
	c.Flags().StringVarP(&rt, "runtime", "r", "", "what runs the code: "+runtimesText())
	c.Flags().StringVar(&dir, "dir", "", "the folder to make (default: NAME)")
	c.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(strings.Split(runtimesText(), ", "), cobra.ShellCompDirectiveNoFileComp))
	a.addOutput(c)
	return c
}

func runtimesText() string {
	var names []string
	for _, r := range bawn.Runtimes() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// init writes the folder. The files are made in memory first and nothing is
// overwritten.
func (a *app) init(ctx context.Context, name string, rt bawn.Runtime, dir string) error {
	family := rt.Family()
	s, ok := starters()[family]
	if !ok {
		return usagef("there is no template for %s", rt)
	}
	data := map[string]string{
		"Name": name, "Runtime": string(rt), "Handler": s.handler, "Code": s.code,
		"Owner": ownerName(), "Env": strings.Join(s.env, " "), "Output": s.output,
	}
	files := map[string]string{manifest.FileName: manifestTemplate}
	if s.output != "" {
		files["build.sh"], files["go.mod"] = buildTemplate, moduleTemplate
	} else {
		files[".bawnignore"] = ignoreTemplate
	}
	err := fs.WalkDir(templates, path.Join("templates", family), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := templates.ReadFile(p)
		files[strings.TrimSuffix(path.Base(p), ".tmpl")] = string(text)
		return err
	})
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return bawn.Errorf(bawn.CodeConflict, "init", "the folder %s exists and is not empty", dir).
			WithFix("choose another with --dir, or remove it")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(err, "%s cannot be used", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fileError(err, "the folder %s cannot be made", dir)
	}
	var names []string
	for file, text := range files {
		t, err := template.New(file).Parse(text)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, data); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if file == "build.sh" {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(dir, file), out.Bytes(), mode); err != nil {
			return fileError(err, "%s cannot be written", filepath.Join(dir, file))
		}
		names = append(names, file)
	}
	slices.Sort(names)
	built := s.output == ""
	if !built {
		if built, err = a.build(ctx, dir); err != nil {
			return err
		}
	}
	if a.format == "json" {
		return a.printJSON(map[string]any{"function": name, "folder": dir, "files": names, "built": built})
	}
	a.printf("made %s: %s\n", clean(dir), strings.Join(names, " "))
	deploy := "bawn deploy " + shellWord(dir)
	if !built {
		a.printf("Go is not installed here. Once it is, build first.\n")
		deploy = "sh " + shellWord(filepath.Join(dir, "build.sh")) + " && " + deploy
	}
	// Two steps, for who may deploy may not be who may call.
	a.printf("next: %s\n", deploy)
	a.printf("then: bawn invoke %s    # as admin or invoker; a deployer may look: bawn show %s\n", name, name)
	return nil
}

// shellWord returns s as one word for a shell, and as no flag.
func shellWord(s string) string {
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	s = clean(s)
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// build runs the build script. It reports false if there is no Go.
func (a *app) build(ctx context.Context, dir string) (bool, error) {
	if _, err := exec.LookPath("go"); err != nil {
		return false, nil
	}
	cmd := exec.CommandContext(ctx, "sh", "build.sh")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil {
		return false, bawn.Wrap(err, bawn.CodeInternal, "init", "the build failed:\n%s", bytes.TrimSpace(out[:min(len(out), 4000)])).
			WithFix("mend it and run: sh %s", filepath.Join(dir, "build.sh"))
	}
	return true, nil
}

// ownerName is who the manifest names at first: the user, if the name is plain.
func ownerName() string {
	if u, err := user.Current(); err == nil && bawn.CheckName("owner", u.Username) == nil {
		return u.Username
	}
	return fmt.Sprintf("user-%d", os.Getuid())
}
