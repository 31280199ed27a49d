package linux

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// mountPoints are in every root, for what is mounted there.
var mountPoints = []string{"/dev", "/proc", "/tmp", "/var/task", "/opt", wire.RunDir}

// Bounds of an image; the largest interpreter measured has 6,000 files.
const (
	maxImageFiles = 50_000
	maxImageDepth = 24
)

// MakeRoot makes the folder that an image's files are in, below dir, and
// returns its name. Files of the host are hard links where the file system allows it
// and copies elsewhere, so an upgrade of the host's packages does not change a
// root in use, and programs of host and sandbox share memory. The folder's name
// is a digest of what went in; one that is there already is complete.
func MakeRoot(dir string, img sandbox.Image) (string, error) {
	sum, err := imageDigest(img)
	if err != nil {
		return "", err
	}
	name := img.Name + "-" + sum
	final := filepath.Join(dir, name)
	if _, err := os.Stat(final); err == nil {
		return name, nil
	}
	staging, err := os.MkdirTemp(dir, ".staging-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(staging)
	if err := os.Chmod(staging, 0o755); err != nil {
		return "", err
	}
	b := imageBuilder{root: staging}
	for _, p := range mountPoints {
		if err := os.MkdirAll(filepath.Join(staging, p), 0o755); err != nil {
			return "", err
		}
	}
	for _, f := range img.Files {
		if err := b.add(f); err != nil {
			return "", fmt.Errorf("image %s: %s: %w", img.Name, f.Path, err)
		}
	}
	if err := os.Rename(staging, final); err != nil {
		if _, serr := os.Stat(final); serr == nil {
			return name, nil // another start was faster
		}
		return "", err
	}
	return name, nil
}

// SweepRoots removes what interrupted runs of [MakeRoot] left. Nobody may be
// making a root in dir meanwhile.
func SweepRoots(dir string) error {
	leftovers, err := filepath.Glob(filepath.Join(dir, ".staging-*"))
	if err != nil {
		return err
	}
	for _, name := range leftovers {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// imageDigest names an image by its description and by what the host files it
// takes look like now.
func imageDigest(img sandbox.Image) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, mountPoints) // a root of another Bawn may lack one
	for _, f := range img.Files {
		var look string
		if f.Host != "" {
			st, err := os.Stat(f.Host)
			if err != nil {
				return "", err
			}
			look = fmt.Sprint(st.Size(), st.ModTime().UnixNano(), st.Mode())
		}
		data := sha256.Sum256(f.Data)
		f.Data = nil
		line, err := json.Marshal(struct {
			File sandbox.File
			Data []byte
			Look string
		}{f, data[:], look})
		if err != nil {
			return "", err
		}
		h.Write(append(line, '\n'))
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

type imageBuilder struct {
	root  string
	files int
}

func (b *imageBuilder) add(f sandbox.File) error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
		return errors.New("not a clean absolute path")
	}
	target := filepath.Join(b.root, f.Path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	mode := f.Mode.Perm()
	switch {
	case f.Host != "":
		return b.take(f.Host, target, f.Skip, 0)
	case f.Link != "":
		if err := os.Symlink(f.Link, target); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case f.Mode.IsDir():
		return os.MkdirAll(target, 0o755)
	}
	if mode == 0 {
		mode = 0o644
	}
	os.Remove(target)
	if err := os.WriteFile(target, f.Data, mode); err != nil {
		return err
	}
	return os.Chmod(target, mode) // whatever the umask
}

// take brings a file or a folder of the host. Links are followed, so that
// nothing in the image points out of it.
func (b *imageBuilder) take(host, target string, skip []string, depth int) error {
	if b.files++; b.files > maxImageFiles || depth > maxImageDepth {
		return errors.New("too many files or folders for an image")
	}
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		if depth > 0 {
			return nil // a dangling link inside a folder of the host
		}
		return err
	}
	st, err := os.Stat(real)
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(real)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if slices.Contains(skip, e.Name()) || strings.HasPrefix(e.Name(), ".nfs") {
				continue
			}
			if err := b.take(filepath.Join(real, e.Name()), filepath.Join(target, e.Name()), skip, depth+1); err != nil {
				return err
			}
		}
		return nil
	case !st.Mode().IsRegular() || st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		return nil
	}
	os.Remove(target)
	if st.Mode().Perm()&0o444 == 0o444 && os.Link(real, target) == nil {
		return nil
	}
	return copyFile(real, target, st.Mode().Perm()|0o444)
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return errors.Join(os.Chmod(to, mode), out.Close())
}
