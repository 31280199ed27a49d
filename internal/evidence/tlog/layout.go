// Package tlog is an append-only Merkle log on plain files. What it publishes
// is the C2SP tlog-tiles format, so that anybody can check it without Bawn:
//
//	checkpoint        the signed size and root hash
//	tile/entries/...  the entries, 256 to a bundle
//	tile/L/...        the hashes, 256 to a tile
//
// An entry goes into a spool first, which takes a few microseconds, and from
// there into tiles once a second. The hashing, the proofs, the tiles and the
// signed notes are those of golang.org/x/mod; this package places the files.
package tlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

const (
	// MaxEntry is the most bytes that one entry may have: a bundle gives its
	// length two bytes.
	MaxEntry = 1<<16 - 1

	// Bundle is how many entries one file of entries holds.
	Bundle = tileWidth

	tileHeight = 8
	tileWidth  = 1 << tileHeight // hashes in a tile, entries in a bundle

	maxCheckpoint = 64 << 10 // bytes of a checkpoint with all its signatures
	maxBundle     = tileWidth * (2 + MaxEntry)
)

// CheckpointFile, TileDir and SpoolDir are what lies in the log's directory.
const (
	CheckpointFile = "checkpoint"          // the newest, signed by the log
	CosignedFile   = "checkpoint.cosigned" // the newest that witnesses have signed too
	KeysFile       = "keys.pub"            // the log's public key
	tileDir        = "tile"                //
	spoolDir       = "spool"               // entries that are in no checkpoint yet
)

// tilePath returns where a tile lies, as a path with slashes.
func tilePath(t merkle.Tile) string {
	p := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if rest, ok := strings.CutPrefix(p, "data/"); ok {
		p = "entries/" + rest
	}
	return tileDir + "/" + p
}

// bundleTile returns the coordinates of the bundle n of a log with size entries.
func bundleTile(n, size int64) merkle.Tile {
	return merkle.Tile{H: tileHeight, L: -1, N: n, W: int(min(tileWidth, size-n*tileWidth))}
}

// IsResource reports whether path names something that the format publishes,
// and that anybody who may read the log may fetch.
func IsResource(path string) bool {
	if path == CheckpointFile || path == CosignedFile {
		return true
	}
	rest, ok := strings.CutPrefix(path, tileDir+"/")
	if !ok {
		return false
	}
	if entries, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + entries
	} else if strings.HasPrefix(rest, "data/") {
		return false
	}
	_, err := merkle.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, rest))
	return err == nil
}

// appendEntry appends one entry as a bundle holds it.
func appendEntry(bundle, entry []byte) []byte {
	return append(binary.BigEndian.AppendUint16(bundle, uint16(len(entry))), entry...)
}

var errBundle = errors.New("the bundle does not have the form of one")

// splitBundle returns the entries of a bundle, which share its memory.
func splitBundle(data []byte) ([][]byte, error) {
	entries := make([][]byte, 0, tileWidth)
	for len(data) > 0 {
		if len(entries) == tileWidth || len(data) < 2 {
			return nil, errBundle
		}
		n := 2 + int(binary.BigEndian.Uint16(data))
		if len(data) < n {
			return nil, errBundle
		}
		entries = append(entries, data[2:n:n])
		data = data[n:]
	}
	return entries, nil
}

// files reads a log's published files.
type files struct{ dir string }

// read returns a file of at most max bytes.
func (f files) read(path string, max int64) ([]byte, error) {
	// A link may not lead out of the folder, and nothing but a file is waited for:
	// who reads may be more than who wrote.
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.OpenFile(filepath.FromSlash(path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > max {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, max)
	}
	b := make([]byte, st.Size())
	n, err := file.ReadAt(b, 0)
	if int64(n) != st.Size() {
		return nil, err
	}
	return b, nil
}

// hashes returns the hashes of a tile: its first t.W. A partial tile goes once
// the full one is there.
func (f files) hashes(t merkle.Tile) ([]byte, error) {
	want := t.W * merkle.HashSize
	b, err := f.read(tilePath(t), tileWidth*merkle.HashSize)
	if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
		full := t
		full.W = tileWidth
		b, err = f.read(tilePath(full), tileWidth*merkle.HashSize)
		if err == nil && len(b) == tileWidth*merkle.HashSize {
			b = b[:want]
		}
	}
	if err == nil && len(b) != want {
		err = fmt.Errorf("%s has %d bytes and not %d", tilePath(t), len(b), want)
	}
	return b, err
}

// bundle returns the entries of the bundle n of a log with size entries.
func (f files) bundle(n, size int64) ([][]byte, error) {
	t := bundleTile(n, size)
	b, err := f.read(tilePath(t), maxBundle)
	if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
		full := t
		full.W = tileWidth
		if b, err = f.read(tilePath(full), maxBundle); errors.Is(err, fs.ErrNotExist) {
			b, err = f.read(tilePath(t), maxBundle)
		}
	}
	if err != nil {
		return nil, err
	}
	entries, err := splitBundle(b)
	if err == nil && len(entries) < t.W {
		err = fmt.Errorf("%s holds %d entries and not %d", tilePath(t), len(entries), t.W)
	}
	if err != nil {
		return nil, err
	}
	return entries[:t.W], nil
}

// reader returns the hashes of the tree of the given size, which are not
// checked against its root.
func (f files) reader(size int64) merkle.HashReader {
	// Neighbours lie in the same few tiles.
	cache := map[merkle.Tile][]byte{}
	return merkle.HashReaderFunc(func(indexes []int64) ([]merkle.Hash, error) {
		out := make([]merkle.Hash, len(indexes))
		for i, x := range indexes {
			t := widest(merkle.TileForIndex(tileHeight, x), size)
			b, ok := cache[t]
			if !ok {
				var err error
				if b, err = f.hashes(t); err != nil {
					return nil, err
				}
				if len(cache) >= 1024 {
					clear(cache)
				}
				cache[t] = b
			}
			var err error
			if out[i], err = merkle.HashFromTile(t, b, x); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
}

// widest returns t as wide as a tree of the given size has it.
func widest(t merkle.Tile, size int64) merkle.Tile {
	t.W = int(min(tileWidth, size>>(tileHeight*t.L)-t.N<<tileHeight))
	return t
}

// firstBundle returns the first of n bundles that has not been pruned. What was
// pruned is a row from the beginning.
func (f files) firstBundle(n int64) int64 {
	lo, hi := int64(0), n
	for lo < hi {
		mid := lo + (hi-lo)/2
		if _, err := os.Lstat(filepath.Join(f.dir, filepath.FromSlash(tilePath(bundleTile(mid, (mid+1)*tileWidth))))); err == nil {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// create writes a new file and brings it, though not its folder's entry, to the
// disk. The folders above are made. What has the name is removed and never
// written to: it may be a link, or have another name elsewhere.
func (f files) create(path string, data []byte) error {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.FromSlash(path)
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | syscall.O_NOFOLLOW
	file, err := root.OpenFile(name, flags, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = f.mkdirs(root, filepath.Dir(name)); err == nil {
			file, err = root.OpenFile(name, flags, 0o600)
		}
	case errors.Is(err, fs.ErrExist):
		if err = root.Remove(name); err == nil {
			file, err = root.OpenFile(name, flags, 0o600)
		}
	}
	if err != nil {
		return err
	}
	if _, err = file.Write(data); err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// replace writes a file so that there is never half of it, durably.
func (f files) replace(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := f.create(tmp, data); err != nil {
		return err
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Rename(filepath.FromSlash(tmp), filepath.FromSlash(path)); err != nil {
		return err
	}
	return syncIn(root, filepath.Dir(filepath.FromSlash(path)))
}

// mkdirs makes a folder below root and those above it, durably.
func (f files) mkdirs(root *os.Root, dir string) error {
	if _, err := root.Stat(dir); err == nil || dir == "." {
		return err
	}
	if err := f.mkdirs(root, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncIn(root, filepath.Dir(dir))
}

func syncIn(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// mkdirs makes a folder and those above it, durably.
func mkdirs(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := mkdirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeAll writes files and returns when all of them are on the disk. There may
// be half of one before that, so it is for tiles, which nothing speaks of until
// a checkpoint does.
func (f files) writeAll(all map[string][]byte) error {
	var dirs []string
	for path, data := range all {
		if err := f.create(path, data); err != nil {
			return err
		}
		if dir := filepath.Dir(filepath.Join(f.dir, filepath.FromSlash(path))); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// failed is the error of a log that cannot be written to.
func failed(err error, op, format string, args ...any) *bawn.Error {
	e := bawn.Wrap(err, bawn.CodeUnavailable, op, format, args...)
	e.Fix = "look in the server's log for the cause; what was acknowledged before is kept"
	if isFull(err) {
		e.Message += ": the disk of the data directory is full"
		e.Fix = "free some space on the file system that holds the data directory; Bawn goes on by itself"
	}
	return e
}

// damaged is the error of a log whose files are not what it has signed.
func damaged(err error, op, format string, args ...any) *bawn.Error {
	e := bawn.Wrap(err, bawn.CodeUnavailable, op, format, args...)
	e.Fix = "keep the folder for an investigation, look at it with bawn audit verify, and put it back from a backup; " +
		"Bawn does not go on with a log that it cannot trust"
	return e
}
