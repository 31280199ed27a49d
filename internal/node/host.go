package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/sandbox/linux"
)

// rootsFolder is the folder of the data directory that stays the helper's own
// when all else is the server's.
const rootsFolder = "runtimes"

// privileged is what was made while the process was root, and outlasts that.
type privileged struct {
	helper *linux.Helper
	failed error          // why there is no helper
	roots  *preparedRoots // nil if the process keeps who it is
}

// codeFolder is the folder of the data directory that functions' code lies in.
const codeFolder = "code"

// becomeUser does what needs root, and then lets go of it: the data directory is
// given to the user, the context file is opened, the helper is launched. The
// addresses are bound and the directory is locked already. It returns the data
// directory as the server can reach it from then on.
func (n *Node) becomeUser(data string) (string, error) {
	u := *n.cfg.User
	dir, err := host.Give(data, u, rootsFolder)
	if err != nil {
		return "", err
	}
	n.onClose("data directory", func(context.Context) error { return dir.Close() })
	roots, err := host.Folder(dir, rootsFolder, host.User{})
	if err != nil {
		return "", err
	}
	defer roots.Close()
	code, err := host.Folder(dir, codeFolder, u)
	if err != nil {
		return "", err
	}
	defer code.Close()
	if n.context, err = openContext(n.cfg.ContextFile); err != nil {
		return "", err
	}
	n.onClose("context file", func(context.Context) error { return n.context.close() })
	name, err := groupName(data)
	if err != nil {
		return "", err
	}
	n.roots = &preparedRoots{done: make(chan struct{})}
	if n.helper, n.failed = linux.Launch(linux.Places{Roots: roots, Code: code, Node: name, Preparer: true}); n.failed == nil {
		n.onClose("sandbox helper", func(context.Context) error { return n.helper.Close() })
	} else { // without sandboxes the node still answers, and says why
		n.roots.err = n.failed
		close(n.roots.done)
	}
	if err := host.Become(u); err != nil {
		return "", err
	}
	if unix.Access(filepath.Join(data, "lock"), unix.R_OK|unix.W_OK) != nil {
		// A folder above is closed to the user; what is open is not.
		return fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), nil
	}
	return data, nil
}

// groupName names the node's control groups by its data directory, which one
// node at a time uses: another run removes what this one may leave.
func groupName(data string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(data, &st); err != nil {
		return "", bawn.Wrap(err, bawn.CodeUnavailable, "node.data", "the data directory cannot be read")
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino), nil
}

// contextFile is the file of the first administrator's credential. It may lie
// where only root reaches, so that it is opened before the server is root no more.
type contextFile struct {
	path string
	f    *os.File // nil: by its path
	err  error    // why f cannot be written to
}

// openContext opens the context file, and makes it if it is missing; an empty
// one counts as missing. An empty path means that there is to be none.
func openContext(path string) (*contextFile, error) {
	c := &contextFile{path: path}
	if path == "" {
		return c, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		c.err = err
	}
	c.f, c.err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if c.err == nil {
		st, err := c.f.Stat()
		switch {
		case err != nil:
			return nil, err
		case !st.Mode().IsRegular():
			c.err = errors.New("it is no plain file")
		case st.Mode().Perm()&0o077 != 0:
			c.err = c.f.Chmod(0o600)
		}
		return c, nil
	}
	var err error
	if c.f, err = os.Open(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "node.context", "the context file %s cannot be read", path).
			WithFix("set %s to another file", client.ContextEnv)
	}
	return c, nil
}

func (c *contextFile) close() error {
	if c.f == nil {
		return nil
	}
	return c.f.Close()
}

// load is [client.LoadContext] of the file.
func (c *contextFile) load() (*client.Context, error) {
	switch {
	case c.f != nil:
		return client.ReadContext(io.NewSectionReader(c.f, 0, 1<<20), c.path)
	case c.err != nil:
		return nil, bawn.Errorf(bawn.CodeNotFound, "node.context", "there is no context file at %s", c.path)
	}
	return client.LoadContext(c.path)
}

// save is [client.SaveContext] to the file. An open one is written in place.
func (c *contextFile) save(want *client.Context) error {
	if c.f == nil && c.err == nil {
		return client.SaveContext(c.path, want)
	}
	err := c.err
	var data []byte
	if err == nil {
		data, err = want.Encode()
	}
	if err == nil {
		if _, err = c.f.WriteAt(data, 0); err == nil {
			err = errors.Join(c.f.Truncate(int64(len(data))), c.f.Sync())
		}
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInvalid, "node.context", "the context file %s cannot be written: %v", c.path, err).
			WithFix("set %s to a path you can write", client.ContextEnv)
	}
	return nil
}

// user says who the server runs as.
func (n *Node) user() string {
	switch {
	case n.cfg.User != nil:
		return n.cfg.User.String()
	case os.Geteuid() == 0:
		return "root"
	}
	return fmt.Sprintf("uid %d", os.Geteuid())
}

// inode returns which file st is of.
func inode(st os.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}

// privileges says what the kernel says of this process, for the doctor.
func (n *Node) privileges() bawn.Capability {
	c := bawn.Capability{Name: "a server without root", Control: "J3"}
	p, err := host.Look()
	switch {
	case err != nil:
		c.Detail = err.Error()
	case n.cfg.User != nil:
		if err = p.Holds(*n.cfg.User); err != nil {
			c.Detail = err.Error()
			break
		}
		c.OK = true
		c.Detail = fmt.Sprintf("%s, no capability in any set of %d threads, no_new_privs; only the sandbox helper is root", *n.cfg.User, p.Threads)
	case os.Geteuid() == 0:
		c.Detail = "the server is ROOT: whoever takes it over has this host"
	default:
		c.OK = true
		c.Detail = fmt.Sprintf("uid %d, started without root", os.Geteuid())
	}
	if !c.OK {
		c.Fix = "start bawn as root without --user root: it becomes a user of its own"
	}
	return c
}

// PrepareCommand is the argument with which the helper has this program run
// [PrepareRoots]. Nobody types it.
const PrepareCommand = linux.PrepareCommand

// maxReport bounds what the preparer has to say; it is some kilobytes.
const maxReport = 4 << 20

// rootsReport is what the preparer says.
type rootsReport struct {
	Runtimes []interior.Definition // without the files of their images
	Roots    map[string]string     // names of folders by that of their image
}

// PrepareRoots finds the runtimes of this host, makes the roots of their
// sandboxes in the folder that is descriptor 3, and reports to descriptor 4. It
// runs as root, takes nothing from the server, and ends.
func PrepareRoots(ctx context.Context) error {
	const fdRoots, fdReport = 3, 4
	report := os.NewFile(fdReport, "report")
	if report == nil || unix.Fchdir(fdRoots) != nil {
		return bawn.Errorf(bawn.CodeInvalid, "node.roots", "this is a part of bawn up and not run by hand")
	}
	defer report.Close()
	unix.Umask(0o022)
	if err := linux.SweepRoots("."); err != nil {
		return err
	}
	r := rootsReport{Runtimes: findRuntimes(ctx, slog.New(slog.DiscardHandler)), Roots: map[string]string{}}
	image, err := linux.SelfTestImage()
	if err != nil {
		return err
	}
	if r.Roots[image.Name], err = linux.MakeRoot(".", image); err != nil {
		return err
	}
	var mu sync.Mutex
	var making sync.WaitGroup
	for i := range r.Runtimes {
		d := &r.Runtimes[i]
		if !d.Ready() {
			continue
		}
		making.Go(func() {
			name, err := linux.MakeRoot(".", d.Image)
			d.Image.Files = nil
			if err != nil {
				d.Missing = "its files could not be brought together: " + err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			r.Roots[d.Image.Name] = name
		})
	}
	making.Wait()
	return json.NewEncoder(report).Encode(r)
}

// preparedRoots waits for the preparer's report.
type preparedRoots struct {
	done   chan struct{} // closed once the rest may be read
	err    error
	report rootsReport
}

// prepare has the preparer run and reads its report.
func (p *preparedRoots) prepare(h *linux.Helper) {
	defer close(p.done)
	r, err := h.Prepare()
	if err == nil {
		defer r.Close()
		err = json.NewDecoder(io.LimitReader(r, maxReport)).Decode(&p.report)
	}
	if err != nil {
		p.err = bawn.Wrap(err, bawn.CodeUnavailable, "node.roots", "the runtimes of this host could not be prepared").
			WithFix("the log has the reason; start bawn again")
	}
}

// root is a linux.Config.Prepared.
func (p *preparedRoots) root(ctx context.Context, image string) (string, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return "", bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "node.roots", "the runtimes were still being prepared").WithFix("try again")
	}
	if p.err != nil {
		return "", p.err
	}
	name, ok := p.report.Roots[image]
	if !ok {
		return "", bawn.Errorf(bawn.CodeUnavailable, "node.roots", "no root was prepared for %s", image).WithFix("start bawn again; its log has the reason")
	}
	return name, nil
}

// runtimes returns what the preparer found, or nothing if ctx ends before that.
func (p *preparedRoots) runtimes(ctx context.Context, log *slog.Logger) []interior.Definition {
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil
	}
	list := p.report.Runtimes
	if p.err != nil {
		list = nil
		for _, r := range bawn.Runtimes() {
			list = append(list, interior.Definition{Runtime: r, Missing: p.err.Error()})
		}
	}
	for _, d := range list {
		if !d.Ready() {
			log.Info("runtime missing", "runtime", d.Runtime, "reason", d.Missing)
		}
	}
	return list
}
