// Package deploy is the gate that code passes on its way in. A package comes
// from outside and is taken for hostile until it has been unpacked: see
// readZip for what is refused, unpack for how it is written. What has passed
// is kept twice, as the zip in the store, which is the truth, and as a folder
// that sandboxes mount, which is compared with the digest of its files every
// time before it is used.
package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

const (
	stagingName   = ".staging"
	tamperedName  = ".tampered"
	maxUploads    = 16 // packages received at one time
	maxUnpackings = 2  // packages unpacked at one time
	maxTampered   = 8  // folders kept for whoever looks into what happened
)

// Config says what a [Gate] works with.
type Config struct {
	Dir    string                                   // where packages are unpacked; made if missing
	Blobs  *store.Blobs                             // where their zips are kept
	Record func(context.Context, bawn.Record) error // called when a folder was tampered with; may be nil
	Log    *slog.Logger                             // may be nil
}

// Gate takes packages in and gives out folders to mount. It is safe for
// concurrent use. Two gates must not share a folder.
type Gate struct {
	cfg      Config
	uploads  chan struct{}
	unpacks  chan struct{}
	checked  sync.Map // hex digest to *checkedTree
	mu       sync.Mutex
	busy     map[string]*lockedDigest
	digested *regexp.Regexp
}

// lockedDigest serialises the changes of one package's folder.
type lockedDigest struct {
	sync.Mutex
	users int
}

// New opens the gate over cfg.Dir.
func New(cfg Config) (*Gate, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.Dir, stagingName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fail(err, "the folder for code cannot be made")
		}
	}
	return &Gate{
		cfg:      cfg,
		uploads:  make(chan struct{}, maxUploads),
		unpacks:  make(chan struct{}, maxUnpackings),
		busy:     map[string]*lockedDigest{},
		digested: regexp.MustCompile(`^[0-9a-f]{64}$`),
	}, nil
}

// fail turns an error of the file system into one for the caller.
func fail(err error, format string, args ...any) error {
	var e *bawn.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return bawn.Wrap(err, bawn.CodeUnavailable, "deploy", "the disk of the data directory is full").WithFix("free some space on it, then deploy again")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return bawn.Wrap(err, bawn.CodeUnavailable, "deploy", "the request ended before the package was taken in")
	}
	return bawn.Wrap(err, bawn.CodeInternal, "deploy", format, args...)
}

// also adds what failed while cleaning up, without hiding err's own type where
// nothing did.
func also(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

// lock takes the lock of one package and returns how to give it back.
func (g *Gate) lock(hexDigest string) (unlock func()) {
	g.mu.Lock()
	l := g.busy[hexDigest]
	if l == nil {
		l = &lockedDigest{}
		g.busy[hexDigest] = l
	}
	l.users++
	g.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		g.mu.Lock()
		if l.users--; l.users == 0 {
			delete(g.busy, hexDigest)
		}
		g.mu.Unlock()
	}
}

func take(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Accept reads a package of a tenant from r, checks that it has the digest, unpacks it, and
// keeps it. It may be called again with the same package. After an error
// nothing of the package is left. Codes: [bawn.CodeInvalid] for another digest,
// [bawn.CodeTooLarge] and [bawn.CodeUnprocessable] for a package that is refused
// (the message names the entry), [bawn.CodeThrottled] when too many packages
// come at once, [bawn.CodeUnavailable] when the disk is full.
func (g *Gate) Accept(ctx context.Context, tenant, digest string, r io.Reader) (bawn.Artifact, error) {
	a, err := g.accept(ctx, tenant, digest, r)
	return a, fail(err, "the package could not be taken in")
}

func (g *Gate) accept(ctx context.Context, tenant, digest string, r io.Reader) (a bawn.Artifact, err error) {
	if err := bawn.CheckDigest(digest); err != nil {
		return a, err
	}
	select {
	case g.uploads <- struct{}{}:
		defer func() { <-g.uploads }()
	default:
		return a, bawn.Errorf(bawn.CodeThrottled, "deploy.accept", "%d packages are being uploaded already", maxUploads).WithFix("try again in a moment")
	}
	stage, err := os.MkdirTemp(filepath.Join(g.cfg.Dir, stagingName), "in-")
	if err != nil {
		return a, err
	}
	defer func() { err = also(err, os.RemoveAll(stage)) }()
	file, err := os.OpenFile(filepath.Join(stage, "package.zip"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return a, err
	}
	defer file.Close()
	size, err := receive(ctx, file, r, digest)
	if err != nil {
		return a, err
	}
	hexDigest := strings.TrimPrefix(digest, "sha256:")
	if a, err = g.stage(ctx, file, size, stage); err != nil {
		return bawn.Artifact{}, err
	}
	a.Digest = digest

	unlock := g.lock(hexDigest)
	defer unlock()
	// The zip first: from it the folder can be made again, not the other way.
	had, err := g.cfg.Blobs.Has(ctx, tenant, digest)
	if err != nil {
		return bawn.Artifact{}, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return bawn.Artifact{}, err
	}
	if err := g.cfg.Blobs.Put(ctx, tenant, digest, file, bawn.MaxPackageBytes); err != nil {
		return bawn.Artifact{}, err
	}
	if err := g.install(ctx, stage, hexDigest, a.Tree); err != nil {
		if !had {
			err = also(err, g.cfg.Blobs.Delete(context.WithoutCancel(ctx), tenant, digest))
		}
		return bawn.Artifact{}, err
	}
	return a, nil
}

// receive copies r to file and checks its digest.
func receive(ctx context.Context, file *os.File, r io.Reader, digest string) (int64, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, h), io.LimitReader(&contextReader{ctx, r}, bawn.MaxPackageBytes+1))
	switch {
	case n > bawn.MaxPackageBytes:
		return n, bawn.Errorf(bawn.CodeTooLarge, "deploy.accept", "the package is larger than %d MiB", bawn.MaxPackageBytes>>20).
			WithFix("leave out what the function does not need; .bawnignore names it")
	case err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT):
		return n, bawn.Wrap(err, bawn.CodeInvalid, "deploy.accept", "the upload broke off").WithFix("deploy again")
	case err != nil:
		return n, err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return n, bawn.Errorf(bawn.CodeInvalid, "deploy.accept", "the package has the digest %s, not %s", got, digest).WithFix("deploy again; it was damaged on the way")
	}
	return n, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// stage checks the zip and unpacks it to stage/tree.
func (g *Gate) stage(ctx context.Context, zip io.ReaderAt, size int64, stage string) (bawn.Artifact, error) {
	if err := take(ctx, g.unpacks); err != nil {
		return bawn.Artifact{}, err
	}
	defer func() { <-g.unpacks }()
	entries, err := readZip(zip, size)
	if err != nil {
		return bawn.Artifact{}, err
	}
	tree := filepath.Join(stage, "tree")
	if err := os.Mkdir(tree, folderMode); err != nil {
		return bawn.Artifact{}, err
	}
	if err := os.Chmod(tree, folderMode); err != nil {
		return bawn.Artifact{}, err
	}
	nodes, err := unpack(ctx, zip, entries, tree)
	if err != nil {
		return bawn.Artifact{}, err
	}
	a := bawn.Artifact{Size: size, Tree: treeDigest(nodes)}
	for _, n := range nodes {
		if n.size >= 0 {
			a.Files++
			a.Bytes += n.size
		}
	}
	return a, nil
}

// install makes stage/tree the package's folder, unless a right one is there.
// The caller holds the package's lock.
func (g *Gate) install(ctx context.Context, stage, hexDigest, tree string) error {
	dir := filepath.Join(g.cfg.Dir, hexDigest)
	_, err := checkTree(ctx, dir, tree)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
	case !tampered(err):
		return err
	default:
		if err := g.setAside(ctx, hexDigest, err); err != nil {
			return err
		}
	}
	g.checked.Delete(hexDigest)
	if err := os.Rename(filepath.Join(stage, "tree"), dir); err != nil {
		return err
	}
	return syncPath(g.cfg.Dir)
}

// Path returns the folder of a tenant's package, to be mounted, after making sure that
// each of its files is the one that was deployed. It is called before every
// cold start: a folder that nobody touched costs one stat a file. A folder
// that is missing is made again from the store. One that was tampered with is
// moved aside and recorded, and the error is [bawn.CodeUnavailable]; the next
// call finds it missing.
func (g *Gate) Path(ctx context.Context, tenant string, a bawn.Artifact) (string, error) {
	if err := bawn.CheckDigest(a.Digest); err != nil {
		return "", err
	}
	if err := bawn.CheckDigest(a.Tree); err != nil {
		return "", err
	}
	hexDigest := strings.TrimPrefix(a.Digest, "sha256:")
	dir := filepath.Join(g.cfg.Dir, hexDigest)
	if g.fresh(hexDigest, a.Tree) {
		return dir, nil
	}
	unlock := g.lock(hexDigest)
	defer unlock()
	if g.fresh(hexDigest, a.Tree) { // somebody else looked while this call waited
		return dir, nil
	}
	g.checked.Delete(hexDigest)
	c, err := checkTree(ctx, dir, a.Tree)
	if errors.Is(err, fs.ErrNotExist) {
		if _, missing := os.Lstat(dir); errors.Is(missing, fs.ErrNotExist) {
			if err := g.restore(ctx, tenant, a, hexDigest); err != nil {
				return "", fail(err, "the code could not be unpacked")
			}
			c, err = checkTree(ctx, dir, a.Tree)
		}
	}
	switch {
	case err == nil:
		if c != nil {
			g.checked.Store(hexDigest, c)
		}
		return dir, nil
	case !tampered(err):
		return "", fail(err, "the code could not be checked")
	}
	if aside := g.setAside(ctx, hexDigest, err); aside != nil {
		return "", fail(aside, "tampered code could not be moved aside")
	}
	return "", bawn.Wrap(err, bawn.CodeUnavailable, "deploy.path", "the function's code on this node is not what was deployed, and was not run").
		WithFix("call again: it is unpacked anew from the store; find out who wrote to the data directory")
}

func (g *Gate) fresh(hexDigest, tree string) bool {
	c, ok := g.checked.Load(hexDigest)
	return ok && c.(*checkedTree).tree == tree && c.(*checkedTree).unchanged()
}

// restore makes the package's folder from the zip in the store. The caller
// holds the package's lock.
func (g *Gate) restore(ctx context.Context, tenant string, a bawn.Artifact, hexDigest string) (err error) {
	stage, err := os.MkdirTemp(filepath.Join(g.cfg.Dir, stagingName), "again-")
	if err != nil {
		return err
	}
	defer func() { err = also(err, os.RemoveAll(stage)) }()
	blob, err := g.cfg.Blobs.Open(ctx, tenant, a.Digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	file, err := os.OpenFile(filepath.Join(stage, "package.zip"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := receive(ctx, file, blob, a.Digest)
	if err != nil {
		return err
	}
	got, err := g.stage(ctx, file, size, stage)
	if err != nil {
		return err
	}
	if got.Tree != a.Tree {
		return bawn.Errorf(bawn.CodeUnavailable, "deploy.path", "the stored package does not hold what was deployed").WithFix("deploy the function again")
	}
	if err := os.Rename(filepath.Join(stage, "tree"), filepath.Join(g.cfg.Dir, hexDigest)); err != nil {
		return err
	}
	return syncPath(g.cfg.Dir)
}

// setAside moves a folder that is not what it should be out of the way, and
// records that. The caller holds the package's lock.
func (g *Gate) setAside(ctx context.Context, hexDigest string, cause error) error {
	aside := filepath.Join(g.cfg.Dir, tamperedName)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	to := filepath.Join(aside, time.Now().UTC().Format("20060102T150405.000000000")+"-"+hexDigest)
	if err := os.Rename(filepath.Join(g.cfg.Dir, hexDigest), to); err != nil {
		return err
	}
	g.checked.Delete(hexDigest)
	g.cfg.Log.Error("code on the disk was tampered with and moved aside", "digest", hexDigest, "to", to, "cause", cause)
	var err error
	if g.cfg.Record != nil {
		err = g.cfg.Record(context.WithoutCancel(ctx), bawn.Record{
			Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Action: "verify", Outcome: "blocked", Control: "F9", Principal: "node",
			Reason: "code on the disk is not what was deployed",
			Detail: map[string]string{"artifact": "sha256:" + hexDigest, "cause": cause.Error(), "aside": to},
		})
	}
	// The names begin with the time, so that the first are the oldest.
	old, readErr := os.ReadDir(aside)
	for i := 0; i < len(old)-maxTampered; i++ {
		readErr = errors.Join(readErr, os.RemoveAll(filepath.Join(aside, old[i].Name())))
	}
	return errors.Join(err, readErr)
}

// Has reports whether the tenant's package is kept.
func (g *Gate) Has(ctx context.Context, tenant, digest string) (bool, error) {
	return g.cfg.Blobs.Has(ctx, tenant, digest)
}

// Remove forgets a tenant's package: its zip, and its folder unless shared says that
// another tenant has it too. Removing what is not there is no error.
func (g *Gate) Remove(ctx context.Context, tenant, digest string, shared bool) error {
	if err := bawn.CheckDigest(digest); err != nil {
		return err
	}
	if !shared {
		if err := g.Lock(digest); err != nil {
			return err
		}
	}
	return g.cfg.Blobs.Delete(ctx, tenant, digest)
}

// Lock removes the folder of a package, where its code lies in clear. The next call
// of Path makes it again.
func (g *Gate) Lock(digest string) error {
	hexDigest := strings.TrimPrefix(digest, "sha256:")
	unlock := g.lock(hexDigest)
	defer unlock()
	return fail(g.drop(hexDigest), "the folder of the code could not be removed")
}

// drop removes a folder in one step, so that no half of it is ever seen. The
// caller holds the package's lock, or is alone.
func (g *Gate) drop(hexDigest string) error {
	g.checked.Delete(hexDigest)
	stage, err := os.MkdirTemp(filepath.Join(g.cfg.Dir, stagingName), "out-")
	if err != nil {
		return err
	}
	err = os.Rename(filepath.Join(g.cfg.Dir, hexDigest), filepath.Join(stage, "tree"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return also(err, os.RemoveAll(stage))
}

// Sweep removes what an interrupted run left: everything in staging, and every
// package that no tenant has. What an older Bawn kept in clear, one for all tenants,
// it keeps for each, encrypted. owners are the tenants that have the package. It is
// called at start, before anything else.
func (g *Gate) Sweep(ctx context.Context, owners func(hexDigest string) []string) error {
	staged, err := os.ReadDir(filepath.Join(g.cfg.Dir, stagingName))
	if err != nil {
		return fail(err, "the staging folder cannot be read")
	}
	for _, e := range staged {
		if err := os.RemoveAll(filepath.Join(g.cfg.Dir, stagingName, e.Name())); err != nil {
			return fail(err, "the staging folder cannot be emptied")
		}
	}
	folders, err := os.ReadDir(g.cfg.Dir)
	if err != nil {
		return fail(err, "the folder for code cannot be read")
	}
	for _, e := range folders {
		if g.digested.MatchString(e.Name()) && len(owners(e.Name())) == 0 {
			if err := g.drop(e.Name()); err != nil {
				return fail(err, "unused code cannot be removed")
			}
		}
	}
	blobs, err := g.cfg.Blobs.List(ctx)
	if err != nil {
		return err
	}
	for _, b := range blobs {
		of := owners(strings.TrimPrefix(b.Digest, "sha256:"))
		if b.Tenant == "" && len(of) > 0 {
			if err := g.share(ctx, b.Digest, of); err != nil {
				g.cfg.Log.Warn("a package that an older Bawn stored is not encrypted yet", "digest", b.Digest, "error", err)
				continue
			}
		}
		if !slices.Contains(of, b.Tenant) {
			if err := g.cfg.Blobs.Delete(ctx, b.Tenant, b.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

// share gives each of the tenants a package that is nobody's own.
func (g *Gate) share(ctx context.Context, digest string, tenants []string) error {
	for _, tenant := range tenants {
		blob, err := g.cfg.Blobs.Open(ctx, "", digest)
		if err != nil {
			return err
		}
		err = g.cfg.Blobs.Put(ctx, tenant, digest, blob, bawn.MaxPackageBytes)
		if err = also(err, blob.Close()); err != nil {
			return err
		}
	}
	return nil
}
