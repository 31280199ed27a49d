package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

const maxManifestBytes = 1 << 20

func newDeploy(a *app) *cobra.Command {
	var dryRun bool
	var only []string
	c := &cobra.Command{
		Use:     "deploy [DIR]",
		GroupID: groupFunction,
		Short:   "Put the functions of a folder's bawn.yaml on the node",
		Long: `Reads DIR/bawn.yaml (DIR is the current folder if none is given), packs the code of
each function, uploads the packages the node does not have, and makes a new version
of each function live. Content that a version has already makes no new one: live moves
to that version.

A version that lets more through than what is live, a function's first one included,
needs the approval of somebody else unless the node runs solo: what it widens is
printed, nothing changes, and the exit code is 3. See "bawn approve".

Everything is read and packed, and every function is tried, before the first one
changes. Tests in DIR/` + manifest.TestFileName + ` are run before their function's version becomes live;
one that fails refuses it.`,
		Example: `  bawn deploy
  bawn deploy services/hello --dry-run
  bawn deploy --only hello -o json`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return a.deploy(cmd.Context(), dir, only, dryRun)
		}),
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, and change nothing")
	c.Flags().StringSliceVar(&only, "only", nil, "only these functions of the manifest")
	a.addOutput(c)
	return c
}

// pack is one packed code folder, shared by the functions that name it.
type pack struct {
	file   *os.File
	digest string
	size   int64
}

func (a *app) deploy(ctx context.Context, dir string, only []string, dryRun bool) error {
	file, err := readManifest(dir)
	if err != nil {
		return err
	}
	names, err := chosen(file, only)
	if err != nil {
		return err
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
	var done []*client.Deployment
	// With several functions, one that is refused must not leave the others
	// half changed: all are tried first.
	if len(names) > 1 && !dryRun {
		for _, n := range names {
			f := file.Functions[n]
			if _, err := c.Deploy(ctx, n, f, packs[f.CodePath()].digest, true); err != nil {
				return forFunction(n, err)
			}
		}
	}
	for _, n := range names {
		f := file.Functions[n]
		d, err := c.Deploy(ctx, n, f, packs[f.CodePath()].digest, dryRun)
		if err != nil {
			return forFunction(n, err)
		}
		d.DryRun = dryRun
		done = append(done, d)
		if a.format != "json" {
			a.printDeployment(c, n, d)
		}
	}
	if a.format == "json" {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(done, func(d *client.Deployment) bool { return d.Pending != nil }) {
		return &silentError{exitApproval}
	}
	return nil
}

// forFunction adds the function's name to an error that does not say it.
func forFunction(name string, err error) error {
	var be *bawn.Error
	if errors.As(err, &be) && !strings.Contains(be.Message, name) {
		c := *be
		c.Message = "function " + name + ": " + c.Message
		return &c
	}
	return err
}

// readManifest reads DIR/bawn.yaml, and the tests beside it.
func readManifest(dir string) (*manifest.File, error) {
	path := filepath.Join(dir, manifest.FileName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, bawn.Wrap(err, bawn.CodeNotFound, "deploy", "there is no %s in %s", manifest.FileName, dir).
			WithFix("go to the folder that has one, or make one with `bawn init NAME --runtime RUNTIME`")
	}
	if err != nil {
		return nil, fileError(err, "%s cannot be read", path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return nil, fileError(err, "%s cannot be read", path)
	}
	m, err := manifest.Parse(path, data)
	if err != nil {
		return nil, err
	}
	if err := readTests(dir, m); err != nil {
		return nil, err
	}
	for _, n := range m.Order {
		f := m.Functions[n]
		if err := f.ReadFiles(func(path, field string) ([]byte, error) { return readBeside(dir, path, field) }); err != nil {
			return nil, forFunction(n, err)
		}
		m.Functions[n] = f
		if _, err := manifest.Compile(n, f); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readBeside reads the file of a schema or of certificates, which stands beside the manifest or below.
func readBeside(dir, path, field string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fileError(err, "%s cannot be read", dir)
	}
	defer root.Close()
	f, err := root.Open(filepath.FromSlash(path))
	if err != nil {
		return nil, fileError(err, "%s: %s cannot be read", field, filepath.Join(dir, path))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifestBytes))
	if err != nil {
		return nil, fileError(err, "%s cannot be read", filepath.Join(dir, path))
	}
	return data, nil
}

// pack packs each code folder once, into files that vanish when closed.
func (a *app) pack(dir string, names []string, m *manifest.File) (map[string]*pack, error) {
	packs := map[string]*pack{}
	for _, n := range names {
		code := m.Functions[n].CodePath()
		if packs[code] != nil {
			continue
		}
		src := filepath.Join(dir, filepath.FromSlash(code))
		if _, err := os.Stat(src); errors.Is(err, os.ErrNotExist) {
			e := bawn.Wrap(err, bawn.CodeNotFound, "deploy", "function %s: its code %s does not exist", n, src)
			if _, berr := os.Stat(filepath.Join(dir, "build.sh")); berr == nil {
				return packs, e.WithFix("build it first: sh %s", filepath.Join(dir, "build.sh"))
			}
			return packs, e.WithFix("mend \"code\" in %s", filepath.Join(dir, manifest.FileName))
		}
		f, err := os.CreateTemp("", "bawn-package-*")
		if err != nil {
			return packs, fileError(err, "no temporary file can be made")
		}
		os.Remove(f.Name())
		packs[code] = &pack{file: f}
		info, err := manifest.Pack(src, f)
		if err != nil {
			return packs, forFunction(n, err)
		}
		packs[code].digest, packs[code].size = info.Digest, info.Size
	}
	return packs, nil
}

// upload sends a package unless the node has it.
func (a *app) upload(ctx context.Context, c *client.Client, p *pack, label string) error {
	has, err := c.HasArtifact(ctx, p.digest)
	if err != nil || has {
		return err
	}
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return fileError(err, "the package cannot be read back")
	}
	var r io.Reader = p.file
	if a.errTTY && a.format != "json" {
		bar := progressbar.NewOptions64(p.size,
			progressbar.OptionSetWriter(a.Err), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetDescription(label), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
		defer bar.Close()
		defer bar.Finish()
		r = io.TeeReader(r, bar)
	}
	_, err = c.PutArtifact(ctx, p.digest, p.size, io.NopCloser(r))
	return forFunction(label, err)
}

// moved says where live goes when its content is that of a version before.
func moved(d *client.Deployment) string {
	from, to := d.Previous.Number, d.Version.Number
	way := "back"
	if to > from {
		way = "forward"
	}
	return fmt.Sprintf("%s from version %d to version %d, which has this content", way, from, to)
}

func (a *app) printDeployment(c *client.Client, name string, d *client.Deployment) {
	v := d.Version
	switch {
	case d.Pending != nil:
		a.printf("%s: nothing has changed, a new version lets more through and waits for approval", a.paint(1, name))
	case d.DryRun && d.Created:
		a.printf("%s: would become version %d", a.paint(1, name), v.Number)
	case d.Moved() && d.DryRun:
		a.printf("%s: live would move %s", a.paint(1, name), moved(d))
	case d.Moved():
		a.printf("%s: live moves %s", a.paint(1, name), moved(d))
	case d.DryRun:
		a.printf("%s: would stay version %d, nothing has changed", a.paint(1, name), v.Number)
	case d.Created:
		a.printf("%s: version %d is live", a.paint(1, name), v.Number)
	default:
		a.printf("%s: version %d is live, nothing has changed", a.paint(1, name), v.Number)
	}
	a.printf("  %s\n", a.paint(2, shortDigest(clean(v.Digest))))
	for _, ch := range d.Changes {
		// Of a new function all is new; what deserves a look is what goes beyond
		// the defaults. Its routes follow below.
		if d.Previous == nil && !d.DryRun && (!ch.Widens || d.Pending == nil && strings.HasPrefix(ch.Field, "ingress.http")) {
			continue
		}
		a.printChange(ch)
	}
	for _, n := range d.Notices {
		a.printf("  %s %s\n", a.paint(33, "!"), clean(n))
	}
	switch {
	case d.Pending != nil:
		a.printf("  somebody else approves it, until %s, with: bawn approve %s\n", d.Pending.ExpiresAt.UTC().Format(time.DateOnly), clean(d.Pending.ID))
		return
	case d.DryRun && d.Approval == "needed":
		a.printf("  somebody else would have to approve it\n")
	}
	for _, r := range v.Perimeter.Ingress.HTTP {
		for _, at := range routeURLs(c, &r) {
			a.printf("  %-6s %s  %s\n", clean(r.Method), clean(at), clean(accessText(r.Access, a.Now())))
		}
	}
}

// printChange prints one difference between two versions.
func (a *app) printChange(ch client.Change) {
	mark, word := a.paint(36, "~"), fmt.Sprintf("%s -> %s", clean(ch.Old), clean(ch.New))
	switch {
	case ch.Old == "":
		mark, word = a.paint(32, "+"), clean(ch.New)
	case ch.New == "":
		mark, word = a.paint(31, "-"), clean(ch.Old)
	}
	widens := ""
	if ch.Widens {
		widens = "  " + a.paint(33, "(lets more through)")
	}
	a.printf("  %s %s: %s%s\n", mark, clean(ch.Field), word, widens)
}
