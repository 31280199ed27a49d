package deploy

import (
	"bufio"
	"compress/flate"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"bawn.dev/bawn"
)

const (
	fileMode   fs.FileMode = 0o644
	execMode   fs.FileMode = 0o755
	folderMode fs.FileMode = 0o755
)

// unpack writes the entries of the zip in r below dir, which must exist and be
// empty, and returns what it wrote. Nothing is written outside dir, whatever
// the entries say: every path goes through an [os.Root], after the names have
// been checked. Content is counted while it streams, so that a size that lies
// is found out by its first byte too many. Everything is on the disk when it
// returns.
func unpack(ctx context.Context, r io.ReaderAt, entries []entry, dir string) ([]node, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := &unpacker{ctx: ctx, src: r, root: root, folders: map[string]bool{".": true}, buf: make([]byte, 128<<10)}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		folder := e.name
		if !e.folder {
			folder = path.Dir(e.name)
		}
		if err := u.makeFolder(folder); err != nil {
			return nil, err
		}
		if !e.folder {
			if err := u.writeFile(e); err != nil {
				return nil, err
			}
		}
	}
	return u.nodes, syncTree(dir, u.nodes)
}

type unpacker struct {
	ctx     context.Context
	src     io.ReaderAt
	root    *os.Root
	folders map[string]bool
	nodes   []node
	total   int64
	buf     []byte
	inflate io.ReadCloser // reused; also a flate.Resetter
}

func (u *unpacker) makeFolder(name string) error {
	if u.folders[name] {
		return nil
	}
	if err := u.makeFolder(path.Dir(name)); err != nil {
		return err
	}
	if err := u.root.Mkdir(name, folderMode); err != nil {
		return err
	}
	if err := u.root.Chmod(name, folderMode); err != nil { // the umask took its share
		return err
	}
	u.folders[name] = true
	u.nodes = append(u.nodes, node{path: name, mode: folderMode, size: -1})
	return nil
}

func (u *unpacker) writeFile(e entry) (err error) {
	who := show(e.raw)
	mode := fileMode
	if e.exec {
		mode = execMode
	}
	f, err := u.root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()

	section := io.NewSectionReader(u.src, e.data, e.packed)
	var content io.Reader = section
	var packed *bufio.Reader
	if e.method == methodDeflate {
		// flate reads a bufio.Reader byte by byte, so that what is left in it
		// after the last block is known to be left over.
		packed = bufio.NewReaderSize(section, 32<<10)
		if u.inflate == nil {
			u.inflate = flate.NewReader(packed)
		} else if err := u.inflate.(flate.Resetter).Reset(packed, nil); err != nil {
			return err
		}
		content = u.inflate
	}
	n := node{path: e.name, mode: mode}
	sum, crc := sha256.New(), crc32.NewIEEE()
	out := io.MultiWriter(f, sum, crc)
	for n.size <= e.size {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		// One byte more than promised is read, to see whether there is one.
		k, err := content.Read(u.buf[:min(int64(len(u.buf)), e.size+1-n.size)])
		n.size += int64(k)
		if n.size > e.size {
			return refuse("", "entry %s unpacks to more than the %d bytes it says", who, e.size)
		}
		if u.total += int64(k); u.total > bawn.MaxUnpackedBytes {
			return tooBig()
		}
		if _, err := out.Write(u.buf[:k]); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			var damaged flate.CorruptInputError
			if errors.As(err, &damaged) || errors.Is(err, io.ErrUnexpectedEOF) {
				return refuse("", "entry %s is damaged", who)
			}
			return fmt.Errorf("unpacking %s: %w", who, err)
		}
	}
	if packed != nil {
		if _, err := packed.ReadByte(); err != io.EOF {
			return refuse("", "entry %s has bytes after the end of its content", who)
		}
	}
	switch {
	case n.size != e.size:
		return refuse("", "entry %s unpacks to %d bytes and says %d", who, n.size, e.size)
	case crc.Sum32() != e.crc:
		return refuse("", "entry %s does not match its checksum", who)
	}
	sum.Sum(n.hash[:0])
	u.nodes = append(u.nodes, n)
	return f.Chmod(mode)
}

// syncTree brings what was written below dir to the disk. Several files are
// synced at a time, as the file system then commits them together.
func syncTree(dir string, nodes []node) error {
	const together = 16
	work := make(chan string)
	errs := make(chan error, together)
	var wg sync.WaitGroup
	for range together {
		wg.Go(func() {
			var failed error
			for p := range work {
				if failed == nil {
					failed = syncPath(p)
				}
			}
			errs <- failed
		})
	}
	for _, n := range nodes {
		work <- filepath.Join(dir, n.path)
	}
	work <- dir
	close(work)
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func syncPath(p string) error {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
