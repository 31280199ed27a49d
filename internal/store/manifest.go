package store

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"bawn.dev/bawn"
	"golang.org/x/mod/sumdb/tlog"
)

// A manifest says what a table must hold: a file of lines, one for each write,
// on plain disk outside of JetStream. A line is
//
//	REVISION KEY HASH CHAIN SIGNATURE
//
// where HASH is that of the row, or "-" for a deletion; CHAIN is the hash of the
// chain before it and of the line up to there; and SIGNATURE is the node's over
// the chain, or "-" on lines that a later one vouches for. The first line names
// the format and the table, and begins the chain.
//
// A line travels in the header of the message that holds its row, and is added to
// the file after that. So what the stream has and the manifest has not is either
// the next link of the chain, and belongs to a write that a crash cut short, or it
// is damage; and what the manifest has and the stream has not is always damage.

const (
	manifestFormat   = "bawn state 1 "
	manifestSuffix   = ".manifest"
	manifestHeader   = "Bawn-State" // of a message: the row's line
	maxManifestBytes = 256 << 20
	maxManifestLine  = maxKey + 320
	// A manifest is written anew when it has this many lines more than twice its
	// rows.
	manifestSlack = 1024
	manifestAhead = 64 << 10 // bytes by which the file grows
	noKey         = "."      // stands in a manifest for a key that is deleted long since
)

// want is what a manifest says of one key.
type want struct {
	rev uint64
	sum [sha256.Size]byte
}

// line is one line of a manifest.
type line struct {
	seq   uint64
	key   string
	del   bool
	sum   [sha256.Size]byte
	chain [sha256.Size]byte
	sig   []byte // nil: a later line vouches for this one
}

func (l *line) body() string {
	sum := "-"
	if !l.del {
		sum = hex.EncodeToString(l.sum[:])
	}
	return strconv.FormatUint(l.seq, 10) + " " + l.key + " " + sum
}

// String returns the line without its end.
func (l *line) String() string {
	sig := "-"
	if l.sig != nil {
		sig = base64.RawStdEncoding.EncodeToString(l.sig)
	}
	return l.body() + " " + hex.EncodeToString(l.chain[:]) + " " + sig
}

// parseLine reads what [line.String] wrote, in that one spelling.
func parseLine(s string) (l line, ok bool) {
	if len(s) > maxManifestLine {
		return l, false
	}
	f := strings.Split(s, " ")
	if len(f) != 5 || checkKey(f[1]) != nil && (f[1] != noKey || f[2] != "-") {
		return l, false
	}
	seq, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil || seq == 0 {
		return l, false
	}
	l.seq, l.key, l.del = seq, f[1], f[2] == "-"
	if !l.del && !decodeHash(&l.sum, f[2]) || !decodeHash(&l.chain, f[3]) {
		return l, false
	}
	if f[4] != "-" {
		if l.sig, err = base64.RawStdEncoding.Strict().DecodeString(f[4]); err != nil || len(l.sig) != ed25519.SignatureSize {
			return l, false
		}
	}
	return l, l.String() == s
}

func decodeHash(h *[sha256.Size]byte, s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && copy(h[:], b) == len(h) && len(b) == len(h)
}

// signer makes and checks the lines of one table.
type signer struct {
	table string
	key   ed25519.PrivateKey
}

func (s signer) first() string { return manifestFormat + s.table }

// genesis is the chain before the first line.
func (s signer) genesis() [sha256.Size]byte { return sha256.Sum256([]byte(s.first())) }

func link(chain [sha256.Size]byte, body string) [sha256.Size]byte {
	return sha256.Sum256(append(chain[:], body...))
}

func (s signer) text(chain [sha256.Size]byte) []byte {
	return append([]byte(s.first()+"\n"), chain[:]...)
}

// sign links l to the chain before it and signs it.
func (s signer) sign(before [sha256.Size]byte, l *line) {
	l.chain = link(before, l.body())
	l.sig = ed25519.Sign(s.key, s.text(l.chain))
}

func (s signer) signed(l *line) bool {
	return l.sig != nil && ed25519.Verify(s.key.Public().(ed25519.PublicKey), s.text(l.chain), l.sig)
}

// follows reports whether l is a signed link that comes after seq and chain.
func (s signer) follows(l *line, seq uint64, chain [sha256.Size]byte) bool {
	return l.seq > seq && l.chain == link(chain, l.body()) && s.signed(l)
}

// contents is what a manifest's file says up to its last good line.
type contents struct {
	rows  map[string]want
	seq   uint64
	chain [sha256.Size]byte
	lines int
	size  int64 // of the good part
}

// readManifest reads a manifest as far as it is whole and signed. What comes after
// is a write that was cut short, or damage; the stream says which. ok is false if
// not even the first line is right.
func (s signer) readManifest(data []byte) (c contents, ok bool) {
	c = contents{rows: map[string]want{}, chain: s.genesis()}
	first, rest, more := bytes.Cut(data, []byte{'\n'})
	if !more || string(first) != s.first() {
		return c, false
	}
	start := int64(len(data) - len(rest))
	c.size = start
	var all []line
	var ends []int64
	at, seq, chain := start, uint64(0), c.chain
	for {
		text, after, more := bytes.Cut(rest, []byte{'\n'})
		if !more {
			break
		}
		l, ok := parseLine(string(text))
		if !ok || l.seq <= seq || l.chain != link(chain, l.body()) {
			break
		}
		at += int64(len(rest) - len(after))
		rest, seq, chain = after, l.seq, l.chain
		all, ends = append(all, l), append(ends, at)
	}
	// The newest good signature vouches for all before it.
	n := len(all)
	for n > 0 && !s.signed(&all[n-1]) {
		n--
	}
	for i := range all[:n] {
		l := &all[i]
		if l.del {
			delete(c.rows, l.key)
		} else {
			c.rows[l.key] = want{l.seq, l.sum}
		}
	}
	if n > 0 {
		c.lines, c.seq, c.chain, c.size = n, all[n-1].seq, all[n-1].chain, ends[n-1]
	}
	return c, true
}

// snapshot writes rows as a new manifest whose newest line has the revision seq.
func (s signer) snapshot(rows map[string]want, seq uint64) ([]byte, contents) {
	var lines []line
	c := contents{rows: rows, chain: s.genesis()}
	for key, w := range rows {
		lines = append(lines, line{seq: w.rev, key: key, sum: w.sum})
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.seq, b.seq) })
	if n := len(lines); seq > 0 && (n == 0 || lines[n-1].seq < seq) {
		// What was written last was a deletion. Of which key is of no matter.
		lines = append(lines, line{seq: seq, key: noKey, del: true})
	}
	b := []byte(s.first() + "\n")
	for i := range lines {
		l := &lines[i]
		l.chain = link(c.chain, l.body())
		if i == len(lines)-1 {
			s.sign(c.chain, l)
		}
		c.chain, c.seq = l.chain, l.seq
		b = append(append(b, l.String()...), '\n')
	}
	c.lines, c.size = len(lines), int64(len(b))
	return b, c
}

// manifestFile is the open manifest of a table. Whoever holds the table's wmu may
// use it.
type manifestFile struct {
	signer
	path    string
	f       *os.File
	seq     uint64
	chain   [sha256.Size]byte
	lines   int
	size    int64  // of what is written, and
	room    int64  // of the file, with the zeros after that
	pending []byte // lines of rows that are stored, and that could not be added yet
}

// load reads the file. missing means that there is none, broken that its first
// line is wrong.
func (m *manifestFile) load() (c contents, missing, broken bool, err error) {
	info, err := os.Stat(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return contents{rows: map[string]want{}, chain: m.genesis()}, true, false, nil
	}
	var data []byte
	if err == nil {
		if info.Size() > maxManifestBytes {
			return contents{rows: map[string]want{}}, false, true, nil
		}
		data, err = os.ReadFile(m.path)
	}
	if err != nil {
		return c, false, false, bawn.Wrap(err, bawn.CodeUnavailable, "store.manifest", "the manifest %s cannot be read", filepath.Base(m.path)).
			WithFix("check the disk and the rights of the data directory")
	}
	c, ok := m.readManifest(data)
	return c, false, !ok, nil
}

// open makes the file ready to be added to after what c says of it.
func (m *manifestFile) open(s *Store, c contents) error {
	f, err := os.OpenFile(m.path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err == nil {
		// What a write that was cut short left goes before anything comes after it.
		err = f.Truncate(c.size)
	}
	if err != nil {
		f.Close() // of nil does nothing
		return manifestFailed(err)
	}
	m.take(s, f, c)
	return nil
}

func (m *manifestFile) take(s *Store, f *os.File, c contents) {
	if m.f != nil {
		m.f.Close()
	}
	m.f, m.seq, m.chain, m.lines, m.size, m.room, m.pending = f, c.seq, c.chain, c.lines, c.size, c.size, nil
	s.atClose(f)
}

// replace writes rows as a new manifest in place of the old one, if any.
func (m *manifestFile) replace(s *Store, rows map[string]want, seq uint64) error {
	data, c := m.snapshot(rows, seq)
	f, err := createNew(m.path + ".new")
	if err == nil {
		if _, err = f.Write(data); err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = os.Rename(m.path+".new", m.path)
		}
		if err == nil {
			err = syncDir(filepath.Dir(m.path))
		}
	}
	if err != nil {
		f.Close() // of nil does nothing
		return manifestFailed(err)
	}
	m.take(s, f, c)
	return nil
}

// createNew makes a file to write to. What has the name is removed and never
// written to: it may be a link, or have another name elsewhere.
func createNew(name string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL | syscall.O_NOFOLLOW
	f, err := os.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err = os.Remove(name); err == nil {
			f, err = os.OpenFile(name, flags, 0o600)
		}
	}
	return f, err
}

func manifestFailed(err error) error {
	return bawn.Wrap(err, bawn.CodeUnavailable, "store.manifest", "the manifest of the state cannot be written").
		WithFix("give --data a folder that Bawn may read and write, on a disk with free space")
}

// add takes l into the manifest; flush makes it durable.
func (m *manifestFile) add(l *line) {
	m.pending = append(append(m.pending, l.String()...), '\n')
	m.seq, m.chain = l.seq, l.chain
	m.lines++
}

// flush writes what was added. After an error it is written with the next.
func (m *manifestFile) flush() error {
	if len(m.pending) == 0 {
		return nil
	}
	data, end := m.pending, m.size+int64(len(m.pending))
	if end > m.room {
		// Zeros ahead: a sync costs less where the file does not grow.
		data = append(slices.Clip(data), make([]byte, manifestAhead)...)
	}
	if _, err := m.f.WriteAt(data, m.size); err != nil {
		return manifestFailed(err)
	}
	if err := syscall.Fdatasync(int(m.f.Fd())); err != nil {
		return manifestFailed(err)
	}
	m.room = max(m.room, m.size+int64(len(data)))
	m.size = end
	m.pending = nil
	return nil
}

// merkleRoot returns the root of the Merkle tree of RFC 6962 over leaves.
func merkleRoot(leaves iter.Seq[string]) (string, error) {
	var hashes []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		got := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			got[i] = hashes[x]
		}
		return got, nil
	})
	n := int64(0)
	for leaf := range leaves {
		more, err := tlog.StoredHashes(n, []byte(leaf), read)
		if err != nil {
			return "", fmt.Errorf("merkle tree: %w", err)
		}
		hashes = append(hashes, more...)
		n++
	}
	if n == 0 {
		h := sha256.Sum256(nil)
		return hex.EncodeToString(h[:]), nil
	}
	root, err := tlog.TreeHash(n, read)
	return hex.EncodeToString(root[:]), err
}
