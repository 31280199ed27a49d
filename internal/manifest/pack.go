package manifest

import (
	"archive/zip"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// PackInfo says what [Pack] wrote.
type PackInfo struct {
	Digest string // of the zip: sha256: and 64 hex digits
	Size   int64  // bytes of the zip
	Files  int    // 0 where src was a zip already
	Bytes  int64  // of all files, before packing; 0 where src was a zip already
}

// Pack writes the package of src, a folder or a zip, to w.
//
// A folder becomes a zip that depends on nothing but the files' paths, their
// content and whether they may be executed: equal folders give equal bytes. The
// manifest, what [IgnoreName] names and what no function needs are left out. A
// link or a device is refused. A zip is passed on as it is.
//
// Errors are [*bawn.Error]. After an error what was written to w is worthless.
func Pack(src string, w io.Writer) (PackInfo, error) {
	st, err := os.Stat(src)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return PackInfo{}, bawn.Wrap(err, bawn.CodeInvalid, "pack", "the code %s does not exist", quote(src)).
			WithFix("set the field code of the manifest to the folder or zip that holds the function")
	case err != nil:
		return PackInfo{}, bawn.Wrap(err, bawn.CodeInvalid, "pack", "the code %s cannot be read", quote(src))
	}
	hash := sha256.New()
	out := &counter{w: io.MultiWriter(w, hash)}
	info := PackInfo{}
	switch {
	case st.IsDir():
		err = packFolder(src, out, &info)
	case st.Mode().IsRegular():
		err = passZip(src, out)
	default:
		err = bawn.Errorf(bawn.CodeInvalid, "pack", "the code %s is neither a folder nor a zip", quote(src))
	}
	if err != nil {
		var e *bawn.Error
		if !errors.As(err, &e) {
			err = bawn.Wrap(err, bawn.CodeInvalid, "pack", "%s cannot be packed", quote(src))
		}
		return PackInfo{}, err
	}
	info.Size = out.n
	info.Digest = "sha256:" + hex.EncodeToString(hash.Sum(nil))
	return info, nil
}

// counter stops a package at the size the server stops it at.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	if c.n += int64(len(p)); c.n > bawn.MaxPackageBytes {
		return 0, bawn.Errorf(bawn.CodeTooLarge, "pack", "the package is larger than %s, the most that is allowed", Size(bawn.MaxPackageBytes)).
			WithFix("leave out what the function does not need with %s", IgnoreName)
	}
	return c.w.Write(p)
}

func passZip(src string, w io.Writer) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil || string(magic[:]) != "PK\x03\x04" && string(magic[:]) != "PK\x05\x06" {
		return bawn.Errorf(bawn.CodeInvalid, "pack", "the code %s is a file, and not a zip", quote(src)).
			WithFix("set the field code of the manifest to a folder or a zip")
	}
	if _, err := w.Write(magic[:]); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

func packFolder(src string, w io.Writer, info *PackInfo) error {
	root, err := os.OpenRoot(src)
	if err != nil {
		return err
	}
	defer root.Close()
	var own []byte
	if f, err := root.Open(IgnoreName); err == nil {
		own, err = io.ReadAll(io.LimitReader(f, maxIgnoreBytes+1))
		f.Close()
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	rules, err := readIgnore(own)
	if err != nil {
		return err
	}
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.DefaultCompression)
	})
	// WalkDir visits names in lexical order, which makes the order of entries
	// depend on nothing else.
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case ignored(rules, name, e.IsDir()):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !utf8.ValidString(name):
			return bawn.Errorf(bawn.CodeInvalid, "pack", "the name %s is not UTF-8", quote(name)).WithFix("rename it, or name its folder in %s", IgnoreName)
		case strings.Contains(name, `\`):
			return bawn.Errorf(bawn.CodeInvalid, "pack", "the name %s has a backslash", quote(name)).WithFix("rename it, or name it in %s", IgnoreName)
		case len(name) > bawn.MaxPathBytes || strings.Count(name, "/") >= bawn.MaxPathDepth:
			return bawn.Errorf(bawn.CodeTooLarge, "pack", "the path %s is longer than %d bytes or deeper than %d folders", quote(name), bawn.MaxPathBytes, bawn.MaxPathDepth)
		case e.IsDir():
			return nil
		case e.Type()&fs.ModeSymlink != 0:
			target, _ := root.Readlink(name)
			return bawn.Errorf(bawn.CodeInvalid, "pack", "%s is a symbolic link (to %s); packages hold no links", quote(name), quote(target)).
				WithFix("put a copy of the file in its place, or name it in %s", IgnoreName)
		case !e.Type().IsRegular():
			return bawn.Errorf(bawn.CodeInvalid, "pack", "%s is %s, not a file", quote(name), typeName(e.Type())).WithFix("name it in %s", IgnoreName)
		}
		if info.Files++; info.Files > bawn.MaxPackageEntries {
			return bawn.Errorf(bawn.CodeTooLarge, "pack", "the folder holds more than %d files", bawn.MaxPackageEntries).WithFix("leave out what the function does not need with %s", IgnoreName)
		}
		n, err := packFile(root, z, name, bawn.MaxUnpackedBytes-info.Bytes)
		info.Bytes += n
		return err
	})
	if err != nil {
		return err
	}
	if info.Files == 0 {
		return bawn.Errorf(bawn.CodeInvalid, "pack", "the folder %s holds nothing to pack", quote(path.Base(src))).
			WithFix("set the field code of the manifest to the folder that holds the function")
	}
	return z.Close()
}

// packFile adds one file of at most so many bytes and returns how long it is. The file is opened without
// following a link and looked at again once open, so that it is the same kind
// of thing that the walk saw.
func packFile(root *os.Root, z *zip.Writer, name string, most int64) (int64, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", quote(name), err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", quote(name), err)
	}
	if !st.Mode().IsRegular() {
		return 0, bawn.Errorf(bawn.CodeInvalid, "pack", "%s is %s, not a file", quote(name), typeName(st.Mode().Type()))
	}
	tooBig := bawn.Errorf(bawn.CodeTooLarge, "pack", "the folder holds more than %s; the last file looked at was %s", Size(bawn.MaxUnpackedBytes), quote(name)).
		WithFix("leave out what the function does not need with %s", IgnoreName)
	if st.Size() > most {
		return 0, tooBig
	}
	h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
	h.SetMode(0o644)
	if st.Mode()&0o111 != 0 {
		h.SetMode(0o755)
	}
	if st.Size() == 0 {
		h.Method = zip.Store
	}
	w, err := z.CreateHeader(h)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, io.LimitReader(f, most+1))
	if err == nil && n > most { // it grew meanwhile
		return n, tooBig
	}
	if err != nil {
		return n, fmt.Errorf("reading %s: %w", quote(name), err)
	}
	return n, nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeDir != 0:
		return "a folder"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "something special"
}
