package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/openapi"
)

func newImport(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "import",
		GroupID: groupFunction,
		Short:   "Make a manifest of what is written down elsewhere",
		Example: `  bawn import openapi api.yaml --runtime python3.11 --out api`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newImportOpenAPI(a))
	return c
}

// importFlags are those of import openapi.
type importFlags struct {
	out, rt, name, owner string
	reason, until        string
	issuer, audience     string
	force                bool
}

func newImportOpenAPI(a *app) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "openapi FILE --runtime RUNTIME",
		Short: "Make a function's routes and schemas of an OpenAPI document",
		Long: `Reads an OpenAPI document of version 3.0 or 3.1, as YAML or JSON, and writes a manifest
with its paths as the routes of one function, and JSON Schemas of what they take into
the folder schemas beside it. The document may refer only to itself.

Security schemes become kinds of access: OpenID Connect, and with --issuer OAuth 2.0 and
JWTs as bearer tokens, become jwt for the tokens of --audience; the others ask for a key
of Bawn's. What the document leaves open to everybody asks for a key, too, unless
--public-reason and --public-until open it until a day.

What cannot be said in a manifest is left out and told. Nothing is overwritten without
--force. The node is not asked.`,
		Example: `  bawn import openapi api.yaml --runtime python3.11 --out api
  bawn import openapi api.json --runtime provided --name shop --audience shop-api -o json
  bawn import openapi api.yaml --runtime nodejs20 --public-reason "landing page" --public-until 2027-06-30`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: runE(func(cmd *cobra.Command, args []string) error { return a.importOpenAPI(cmd.Context(), args[0], &f) }),
	}
	c.Flags().StringVar(&f.out, "out", ".", "the folder to write to")
	c.Flags().StringVarP(&f.rt, "runtime", "r", "", "what runs the code: "+runtimesText())
	c.Flags().StringVar(&f.name, "name", "", "the function's name (default: the document's title)")
	c.Flags().StringVar(&f.owner, "owner", ownerName(), "the person or team to ask")
	c.Flags().StringVar(&f.reason, "public-reason", "", "why everybody may use what the document leaves open")
	c.Flags().StringVar(&f.until, "public-until", "", "the last day, in UTC, on which everybody may: YEAR-MONTH-DAY")
	c.Flags().StringVar(&f.issuer, "issuer", "", "the https URL that tokens have in iss, where the document does not say it")
	c.Flags().StringVar(&f.audience, "audience", "", "what tokens have in aud")
	c.Flags().BoolVar(&f.force, "force", false, "overwrite files that are there")
	c.MarkFlagDirname("out")
	c.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(strings.Split(runtimesText(), ", "), cobra.ShellCompDirectiveNoFileComp))
	a.addOutput(c)
	return c
}

func (a *app) importOpenAPI(ctx context.Context, file string, f *importFlags) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	data, err := readDocument(file)
	if err != nil {
		return err
	}
	im, err := openapi.Read(ctx, data, *o)
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(im.Files))
	if err := writeNew(f.out, names, im.Files, f.force); err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(map[string]any{"function": im.Function, "folder": f.out, "files": names, "routes": im.Routes, "notes": append([]string{}, im.Notes...)})
	}
	for _, r := range im.Routes {
		a.printf("  %s\n", clean(r))
	}
	for _, n := range im.Notes {
		a.printf("  %s %s\n", a.paint(33, "!"), clean(n))
	}
	a.printf("made %s with %d routes of the function %s, and %d schemas\n", clean(filepath.Join(f.out, manifest.FileName)), len(im.Routes), im.Function, len(names)-1)
	a.printf("next: put the code into %s, and run bawn deploy %s\n", clean(filepath.Join(f.out, o.Code)), shellWord(f.out))
	return nil
}

// options checks the flags.
func (f *importFlags) options() (*openapi.Options, error) {
	if f.rt == "" {
		return nil, usagef("which runtime? Add --runtime with one of %s", runtimesText())
	}
	if !bawn.Runtime(f.rt).Known() {
		return nil, usagef("--runtime %q: want one of %s", f.rt, runtimesText())
	}
	s := starters()[bawn.Runtime(f.rt).Family()]
	o := &openapi.Options{Name: f.name, Runtime: bawn.Runtime(f.rt), Handler: s.handler, Code: s.code, Owner: f.owner, Issuer: f.issuer, Audience: f.audience}
	if (f.reason == "") != (f.until == "") {
		return nil, usagef("--public-reason and --public-until stand together: public access needs a reason and an end")
	}
	if f.reason != "" {
		until, err := manifest.ParseDate(f.until)
		if err != nil {
			return nil, usagef("--public-until: %s", err)
		}
		o.Public = &manifest.Public{Reason: f.reason, Until: until}
	}
	return o, nil
}

func readDocument(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fileError(err, "%s cannot be read", file)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, openapi.MaxBytes+1))
	if err != nil {
		return nil, fileError(err, "%s cannot be read", file)
	}
	return data, nil
}

// writeNew writes files into a folder, none if one of them is there already and not
// to be overwritten. A name never leads out of the folder.
func writeNew(dir string, names []string, files map[string]string, force bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fileError(err, "the folder %s cannot be made", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fileError(err, "%s cannot be used", dir)
	}
	defer root.Close()
	for _, name := range names {
		if _, err := root.Lstat(name); err == nil && !force {
			return bawn.Errorf(bawn.CodeConflict, "import", "%s is there already", filepath.Join(dir, name)).
				WithFix("write to another folder with --out, or overwrite it with --force")
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileError(err, "%s cannot be written", filepath.Join(dir, name))
		}
	}
	for _, name := range names {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fileError(err, "the folder of %s cannot be made", filepath.Join(dir, name))
		}
		if err := root.WriteFile(name, []byte(files[name]), 0o644); err != nil {
			return fileError(err, "%s cannot be written", filepath.Join(dir, name))
		}
	}
	return nil
}
