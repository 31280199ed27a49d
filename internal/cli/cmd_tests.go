package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

func newTest(a *app) *cobra.Command {
	var dir string
	var version int
	c := &cobra.Command{
		Use:     "test [FUNCTION...]",
		GroupID: groupFunction,
		Short:   "Run the tests of functions' perimeters on the node",
		Long: `Reads ` + manifest.TestFileName + ` beside the manifest: for each function, what its perimeter must let
through and what it must stop. Packs and uploads the functions as deploy does, and runs
each test on the node in a sandbox with the function's real perimeter, which nobody else
can call and which is gone afterwards. No version is made and nothing becomes live.

A deploy runs the same tests, and a test that fails refuses it. With --version the tests
of a version on the node are run, as they were when it was deployed.

The exit code is 9 if a test failed.`,
		Example: `  bawn test
  bawn test hello --dir services/hello
  bawn test hello --version 3 -o json`,
		ValidArgsFunction: a.completeTests,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if _, err := parseName(arg); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("version") {
				if len(args) != 1 || version < 1 {
					return usagef("--version N needs the name of one function, and a number from 1")
				}
				return a.testVersion(cmd.Context(), args[0], version)
			}
			return a.test(cmd.Context(), dir, args)
		}),
	}
	c.Flags().StringVar(&dir, "dir", ".", "the folder that holds the manifest")
	c.Flags().IntVar(&version, "version", 0, "test this version on the node instead of what is in the folder")
	c.MarkFlagsMutuallyExclusive("dir", "version")
	c.MarkFlagDirname("dir")
	a.addOutput(c)
	return c
}

// completeTests completes any number of functions.
func (a *app) completeTests(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names := slices.DeleteFunc(a.functionNames(cmd, prefix), func(n string) bool { return slices.Contains(args, n) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) testVersion(ctx context.Context, name string, version int) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	results, err := c.TestVersion(ctx, name, strconv.Itoa(version))
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return bawn.Errorf(bawn.CodeNotFound, "test", "version %d of %s has no tests", version, name).
			WithFix("write %s beside its manifest and deploy it; docs/guide/testing.md tells how", manifest.TestFileName)
	}
	return a.printTests([][]bawn.TestResult{results})
}

func (a *app) test(ctx context.Context, dir string, only []string) error {
	file, err := readManifest(dir)
	if err != nil {
		return err
	}
	names, err := chosen(file, only)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return len(file.Functions[n].Tests) == 0 })
	if len(names) == 0 {
		return bawn.Errorf(bawn.CodeNotFound, "test", "%s has no tests", filepath.Join(dir, manifest.TestFileName)).
			WithFix("write some; docs/guide/testing.md tells how")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	packs, err := a.packAndUpload(ctx, c, dir, names, file)
	defer closePacks(packs)
	if err != nil {
		return err
	}
	var all [][]bawn.TestResult
	for _, n := range names {
		f := file.Functions[n]
		results, err := c.Test(ctx, n, f, packs[f.CodePath()].digest)
		if err != nil {
			return forFunction(n, err)
		}
		all = append(all, results)
	}
	return a.printTests(all)
}

// chosen returns the functions of the manifest, or those of them that were
// named.
func chosen(file *manifest.File, only []string) ([]string, error) {
	for _, n := range only {
		if _, ok := file.Functions[n]; !ok {
			return nil, bawn.Errorf(bawn.CodeNotFound, "manifest", "the manifest has no function %q", n).
				WithFix("it has %s", strings.Join(file.Order, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(file.Order), func(n string) bool { return len(only) > 0 && !slices.Contains(only, n) }), nil
}

// packAndUpload packs each code folder of the functions once and sends the node
// what it lacks. The caller closes what is returned, also beside an error.
func (a *app) packAndUpload(ctx context.Context, c *client.Client, dir string, names []string, file *manifest.File) (map[string]*pack, error) {
	packs, err := a.pack(dir, names, file)
	if err != nil {
		return packs, err
	}
	sent := map[string]bool{}
	for _, n := range names {
		p := packs[file.Functions[n].CodePath()]
		if sent[p.digest] {
			continue
		}
		sent[p.digest] = true
		if err := a.upload(ctx, c, p, n); err != nil {
			return packs, err
		}
	}
	return packs, nil
}

func closePacks(packs map[string]*pack) {
	for _, p := range packs {
		p.file.Close()
	}
}

// readTests reads the test file beside the manifest, if there is one, into it.
func readTests(dir string, m *manifest.File) error {
	path := filepath.Join(dir, manifest.TestFileName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fileError(err, "%s cannot be read", path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return fileError(err, "%s cannot be read", path)
	}
	return manifest.ParseTests(path, data, m)
}

func (a *app) printTests(all [][]bawn.TestResult) error {
	failed, count := 0, 0
	for _, results := range all {
		for _, r := range results {
			count++
			mark := a.paint(32, "ok  ")
			if !r.OK {
				failed++
				mark = a.paint(31, "FAIL")
			}
			if a.format == "json" {
				continue
			}
			a.printf("%s  %s  %s  %s\n", mark, clean(r.Function), clean(r.Name), a.paint(2, r.Duration.Round(time.Millisecond).String()))
			if !r.OK {
				a.printf("      %s\n", clean(r.Message))
				if r.Got != "deny" || len(r.Stopped) > 0 && r.Stopped[0].At != bawn.AtIngress {
					a.printf("      %s\n", a.paint(2, "bawn events "+clean(r.Function)+" --invocation "+clean(r.Invocation)))
				}
			}
		}
	}
	if a.format == "json" {
		if err := a.printJSON(slices.Concat(all...)); err != nil {
			return err
		}
	} else {
		a.printf("%d of %d tests passed\n", count-failed, count)
	}
	if failed > 0 {
		return &silentError{exitRefused}
	}
	return nil
}
