package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

// node is one file or folder of an unpacked package.
type node struct {
	path string
	mode fs.FileMode // permission bits
	size int64       // -1 for a folder
	hash [sha256.Size]byte
}

// treeDigest names a tree: the SHA-256 over its sorted list of nodes. Paths
// hold no control characters, so that the zero byte ends them.
func treeDigest(nodes []node) string {
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.path, b.path) })
	h := sha256.New()
	for _, n := range nodes {
		if n.size < 0 {
			fmt.Fprintf(h, "d %04o %s\x00", n.mode, n.path)
		} else {
			fmt.Fprintf(h, "f %04o %d %x %s\x00", n.mode, n.size, n.hash, n.path)
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// stamp is what the kernel says of a file without reading it. Whoever changes
// a file's content, mode or name, or what is in a folder, changes its ctime,
// which no system call sets.
type stamp struct {
	dev, ino     uint64
	mode         uint32
	size         int64
	mtime, ctime int64 // nanoseconds
}

func stampOf(st *syscall.Stat_t) stamp {
	return stamp{uint64(st.Dev), st.Ino, st.Mode, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// checkedTree is a tree that had the right digest, and the stamps it had then.
type checkedTree struct {
	tree  string
	paths []string // absolute
	marks []stamp
}

// unchanged reports whether every file and folder still has its stamp. It costs
// one stat each and reads nothing: a new name in a folder changes the folder.
func (c *checkedTree) unchanged() bool {
	var st syscall.Stat_t
	for i, p := range c.paths {
		if syscall.Lstat(p, &st) != nil || stampOf(&st) != c.marks[i] {
			return false
		}
	}
	return true
}

// settle is how long ago a file must have changed for its stamp to be trusted:
// two changes within one tick of the kernel's coarse clock have one ctime.
const settle = time.Second

// errTree says that what is on the disk is not what was unpacked.
var errTree = errors.New("the files are not the ones that were deployed")

// tampered reports whether err, of checkTree, is about the tree and not about a
// node that is short of memory or descriptors, or a disk that fails.
func tampered(err error) bool {
	return errors.Is(err, errTree) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// checkTree reads the whole tree in dir and returns errTree if its digest is not
// the wanted one. The result is nil where the tree is right but changed so
// short ago that its stamps prove nothing.
func checkTree(ctx context.Context, dir, want string) (*checkedTree, error) {
	begun := time.Now()
	newest := int64(0)
	c := &checkedTree{tree: want}
	mark := func(path string, st *syscall.Stat_t) {
		m := stampOf(st)
		newest = max(newest, m.ctime, m.mtime)
		c.paths, c.marks = append(c.paths, path), append(c.marks, m)
	}
	// The folder itself must not be a link, which OpenRoot would follow.
	var top syscall.Stat_t
	if err := syscall.Lstat(dir, &top); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if top.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return nil, fmt.Errorf("%w: their folder is none", errTree)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var nodes []node
	var total int64
	buf := make([]byte, 128<<10)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		abs := filepath.Join(dir, name)
		n := node{path: name, size: -1}
		switch {
		case len(nodes) > 3*bawn.MaxPackageEntries:
			return fmt.Errorf("%w: there are too many", errTree)
		case e.IsDir():
			// Stamped before its names are read: a name added meanwhile shows.
			var st syscall.Stat_t
			if err := syscall.Lstat(abs, &st); err != nil {
				return err
			}
			mark(abs, &st)
			n.mode = fs.FileMode(st.Mode & 0o7777)
			if name == "." {
				return nil
			}
		case e.Type().IsRegular():
			f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			if !info.Mode().IsRegular() {
				return fmt.Errorf("%w: %s is no file", errTree, show([]byte(name)))
			}
			mark(abs, info.Sys().(*syscall.Stat_t))
			if total += info.Size(); total > bawn.MaxUnpackedBytes {
				return fmt.Errorf("%w: they are too large", errTree)
			}
			h := sha256.New()
			if n.size, err = io.CopyBuffer(h, io.LimitReader(f, info.Size()+1), buf); err != nil {
				return err
			}
			h.Sum(n.hash[:0])
			n.mode = fs.FileMode(info.Sys().(*syscall.Stat_t).Mode & 0o7777)
		default:
			return fmt.Errorf("%w: %s is neither a file nor a folder", errTree, show([]byte(name)))
		}
		nodes = append(nodes, n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if treeDigest(nodes) != want {
		return nil, errTree
	}
	if newest > begun.Add(-settle).UnixNano() || !c.unchanged() {
		return nil, nil
	}
	return c, nil
}
