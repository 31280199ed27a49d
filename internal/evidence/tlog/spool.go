package tlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A segment of the spool is a line that says which entry is its first and under
// which boot of the machine it was written, and then entries, each behind its
// length and checksum. A process that is killed leaves at most one entry torn,
// which nobody was told was kept.

const (
	spoolMagic  = "bawn-spool-1"
	spoolSuffix = ".seg"
	frameHead   = 8
	maxSegment  = 256 << 20 // bytes that are read of one
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(b, entry []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(entry)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(entry, castagnoli))
	return append(b, entry...)
}

// segment is what could be read of one.
type segment struct {
	name    string
	first   int64 // index of its first entry
	boot    string
	entries [][]byte
	torn    int64 // bytes behind the last whole entry
}

func segmentHead(first int64, boot string) []byte {
	return fmt.Appendf(nil, "%s %d %s\n", spoolMagic, first, boot)
}

// parseSegment reads a segment as far as it is whole. The entries share data's
// memory.
func parseSegment(data []byte) (s segment, err error) {
	head, _, ok := strings.Cut(string(data[:min(len(data), 128)]), "\n")
	f := strings.Split(head, " ")
	if !ok || len(f) != 3 || f[0] != spoolMagic {
		return s, errors.New("it does not begin as a segment of the spool does")
	}
	if s.first, err = strconv.ParseInt(f[1], 10, 64); err != nil || s.first < 0 || f[1] != strconv.FormatInt(s.first, 10) {
		return s, errors.New("the number of its first entry cannot be read")
	}
	s.boot = f[2]
	data = data[len(head)+1:]
	for len(data) >= frameHead {
		n := int64(binary.BigEndian.Uint32(data))
		if n > MaxEntry || int64(len(data)) < frameHead+n {
			break
		}
		entry := data[frameHead : frameHead+n : frameHead+n]
		if crc32.Checksum(entry, castagnoli) != binary.BigEndian.Uint32(data[4:]) {
			break
		}
		s.entries = append(s.entries, entry)
		data = data[frameHead+n:]
	}
	s.torn = int64(len(data))
	return s, nil
}

// spooled is what the spool holds.
type spooled struct {
	segments []segment
	first    int64    // index of entries[0]
	entries  [][]byte // that follow the size asked for
	torn     int64    // bytes that are no whole entry
	missing  int64    // entries that should lie between two segments and do not
	boot     string   // of the newest segment
	bad      []string // files that are no segments
}

// readSpool returns the entries of the spool from index size on.
func readSpool(dir string, size int64) (*spooled, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &spooled{first: size}, nil
	}
	if err != nil {
		return nil, err
	}
	sp := &spooled{first: size}
	f := files{dir}
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), spoolSuffix) {
			continue
		}
		data, err := f.read(n.Name(), maxSegment)
		if err != nil {
			return nil, err
		}
		s, err := parseSegment(data)
		s.name = n.Name()
		if err != nil {
			// A segment that was just made, and whose first line did not get to the
			// disk, holds nothing.
			if s.torn = int64(len(data)); s.torn > 0 {
				sp.bad = append(sp.bad, s.name)
				sp.torn += s.torn
			}
			sp.segments = append(sp.segments, s)
			continue
		}
		sp.segments = append(sp.segments, s)
		sp.boot = s.boot
		if sp.torn += s.torn; s.torn > frameHead+MaxEntry {
			sp.bad = append(sp.bad, s.name) // more than one write that did not end
		}
		next := sp.first + int64(len(sp.entries))
		switch {
		case s.first > next:
			sp.missing += s.first - next
		case s.first < next:
			// The newer one is right: it was begun because the older could not be
			// written to any more.
			sp.entries = sp.entries[:max(0, s.first-sp.first)]
			if skip := sp.first - s.first; skip > 0 {
				s.entries = s.entries[min(skip, int64(len(s.entries))):]
			}
		}
		sp.entries = append(sp.entries, s.entries...)
	}
	return sp, nil
}

// newSegment makes a segment, durably. Names sort in the order of making.
func newSegment(dir string, first int64, after string) (f *os.File, name string, err error) {
	for n := time.Now().UnixNano(); ; n++ {
		name = fmt.Sprintf("%020d%s", n, spoolSuffix)
		if name <= after {
			n, _ = strconv.ParseInt(strings.TrimSuffix(after, spoolSuffix), 10, 64)
			continue
		}
		f, err = os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return nil, "", err
	}
	if _, err = f.Write(segmentHead(first, bootID())); err == nil {
		if err = f.Sync(); err == nil {
			err = syncDir(dir)
		}
	}
	if err != nil {
		f.Close()
		os.Remove(filepath.Join(dir, name))
		return nil, "", err
	}
	return f, name, nil
}

// bootID names the present run of the machine: a process that was killed leaves
// what it wrote to the kernel, a machine that lost its power does not.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	id := strings.TrimSpace(string(b))
	if err != nil || id == "" || len(id) > 64 || slices.Contains([]byte(id), ' ') {
		return "unknown"
	}
	return id
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// freeBytes returns what is left on the disk of dir.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
