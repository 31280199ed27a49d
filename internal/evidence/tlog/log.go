package tlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

const (
	syncEvery    = 5 * time.Millisecond // how long an entry that nobody waits for may stay off the disk, but for the sync itself
	defaultEvery = time.Second
	maxWaiting   = 32 << 20 // bytes of entries that are in no checkpoint yet
	publishAt    = 8 << 20  // … after which one is made at once
	rotateAt     = 4 << 20  // bytes of a segment
	maxBatch     = 1 << 14  // entries that one checkpoint adds
	headEvery    = 10 * time.Second
	needFree     = 16 << 20 // bytes that must be free on the disk
	roomEvery    = 50 * time.Millisecond
	retryFirst   = 50 * time.Millisecond
	retryLast    = 2 * time.Second
)

// Config sets up a [Log].
type Config struct {
	Dir    string        // its folder, made if missing; one process at a time
	Origin string        // the log's name: no spaces and no plus
	Seed   []byte        // of its Ed25519 key: 32 bytes
	Every  time.Duration // how often a checkpoint is made; 0 means a second
	Log    *slog.Logger  // takes failures to write; nil discards

	// Dial connects to witnesses; nil means a plain [net.Dialer].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Head is a file outside of Dir that holds a checkpoint of the last seconds: a
	// log that is behind it, or another, has been rolled back or replaced and is
	// refused. Empty: there is none.
	Head string
}

// Recovery says what [Open] found that a run before had left.
type Recovery struct {
	Clean    bool  // nothing: it had been closed
	Durable  int64 // entries in the last checkpoint
	Replayed int64 // entries that the spool held beyond it
	Torn     int64 // bytes behind the last whole entry, which were cut
	Missing  int64 // entries known to be lost: the spool is damaged
	Unmarked bool  // no spool, and no signed mark of a clean end: what followed the checkpoint may be gone
	Rebooted bool  // the machine was restarted since: what was not yet synced is lost
}

// Log is an append-only log. It is safe for concurrent use.
type Log struct {
	cfg    Config
	files  files
	spool  string // folder
	signer note.Signer
	key    string // public
	found  Recovery
	fresh  bool          // there was no checkpoint before
	stop   chan struct{} // closed by Close
	done   sync.WaitGroup
	dirty  chan struct{} // of capacity 1: there is something to bring to the disk
	urgent chan struct{} // of capacity 1: somebody waits for it
	push   chan struct{} // of capacity 1: make a checkpoint now

	writing sync.Mutex // held by who writes to the segment; taken before mu
	buf     []byte

	sequencing sync.Mutex       // held by who makes tiles; taken before writing
	edge       map[int]edgeTile // the unfinished tile of each level
	headAt     time.Time        // when Config.Head was written; zero if there is none

	mu       sync.Mutex
	batch    *batch   // takes entries until somebody may write it
	seg      *os.File // the segment that takes entries
	segName  string
	segSize  int64
	segFirst int64
	old      []oldSegment  // that hold entries of no checkpoint yet
	next     int64         // index of the next entry
	synced   int64         // entries before it are on the disk
	syncs    chan struct{} // closed and replaced after each try to sync
	recent   [][]byte      // entries from recentAt on
	recentAt int64         // first entry of the bundle that is not full in tiles
	waiting  int           // bytes of entries that are in no checkpoint yet
	signed   Checkpoint    // the newest
	fault    error         // why nothing is taken; nil while all is well
	full     error         // why there is no room
	roomAt   time.Time     // when the room was last looked at
	changed  chan struct{} // closed at the next append, if anybody asked
	closed   bool
}

type edgeTile struct {
	n    int64
	data []byte
}

type oldSegment struct {
	name string
	end  int64
}

// batch is a row of entries that one write takes.
type batch struct {
	entries [][]byte
	first   int64
	err     error
	done    chan struct{}
}

// Open opens a log, or begins one. What a run that did not end left in the
// spool is taken over, each entry once. A log whose files are not what its key
// has signed is refused.
func Open(cfg Config) (*Log, error) {
	const op = "tlog.open"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Every == 0 {
		cfg.Every = defaultEvery
	}
	signer, key, err := keyPair(cfg.Origin, cfg.Seed)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, op, "the audit log has no proper key")
	}
	l := &Log{
		cfg: cfg, files: files{cfg.Dir}, spool: filepath.Join(cfg.Dir, spoolDir), signer: signer, key: key,
		stop: make(chan struct{}), dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1), push: make(chan struct{}, 1), syncs: make(chan struct{}), edge: map[int]edgeTile{},
	}
	if err := mkdirs(l.spool); err != nil {
		return nil, failed(err, op, "the audit log's folder %s cannot be made", cfg.Dir)
	}
	if err := l.openTree(); err != nil {
		return nil, err
	}
	if err := l.openHead(); err != nil {
		return nil, err
	}
	if err := l.openSpool(); err != nil {
		return nil, err
	}
	l.room(true)
	l.done.Go(l.syncer)
	l.done.Go(l.sequencer)
	return l, nil
}

// openTree reads the checkpoint and the edge of the tree, which must agree.
func (l *Log) openTree() error {
	const op = "tlog.open"
	v, err := note.NewVerifier(l.key)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInternal, op, "the audit log has no proper key")
	}
	msg, err := l.files.read(CheckpointFile, maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(l.cfg.Dir, tileDir)); err == nil {
			return damaged(nil, op, "the audit log in %s has entries and no checkpoint", l.cfg.Dir)
		}
		l.fresh = true
		root, err := merkle.TreeHash(0, nil)
		if err != nil {
			return bawn.Wrap(err, bawn.CodeInternal, op, "the hash of an empty log")
		}
		if l.signed, err = l.sign(0, root); err != nil {
			return err
		}
		if err := errors.Join(l.files.replace(KeysFile, []byte(l.key+"\n")), l.files.replace(CheckpointFile, l.signed.Note)); err != nil {
			return failed(err, op, "the audit log cannot be begun in %s", l.cfg.Dir)
		}
		return nil
	}
	if err != nil {
		return failed(err, op, "the audit log's checkpoint cannot be read")
	}
	if l.signed, err = OpenCheckpoint(msg, []note.Verifier{v}); err != nil {
		return damaged(err, op, "the audit log's checkpoint is not this node's")
	}
	size := l.signed.Size
	root, err := merkle.TreeHash(size, l.files.reader(size))
	if err != nil || root != l.signed.Root {
		return damaged(err, op, "the audit log's tiles are not those that its checkpoint of %d entries speaks of", size)
	}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		n := size >> (tileHeight * level)
		t := merkle.Tile{H: tileHeight, L: level, N: n >> tileHeight, W: int(n % tileWidth)}
		e := edgeTile{n: t.N}
		if t.W > 0 {
			if e.data, err = l.files.hashes(t); err != nil {
				return damaged(err, op, "the audit log lacks tiles")
			}
		}
		l.edge[level] = e
	}
	l.recentAt = size / tileWidth * tileWidth
	if size > l.recentAt {
		if l.recent, err = l.files.bundle(size/tileWidth, size); err != nil {
			return damaged(err, op, "the audit log lacks its last entries")
		}
		for i, e := range l.recent {
			if h := merkle.RecordHash(e); string(h[:]) != string(l.edge[0].data[i*merkle.HashSize:(i+1)*merkle.HashSize]) {
				return damaged(nil, op, "the entry %d of the audit log was changed", l.recentAt+int64(i))
			}
		}
	}
	// The file is for people and programs that verify; the key is the node's.
	if b, err := l.files.read(KeysFile, maxCheckpoint); err != nil || string(b) != l.key+"\n" {
		if err := l.files.replace(KeysFile, []byte(l.key+"\n")); err != nil {
			return failed(err, op, "the audit log's public key cannot be written")
		}
	}
	return nil
}

// openHead holds the tree against the checkpoint that is kept apart from it.
func (l *Log) openHead() error {
	const op = "tlog.open"
	if l.cfg.Head == "" {
		return nil
	}
	dir, name := filepath.Split(l.cfg.Head)
	msg, err := files{dir}.read(name, maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failed(err, op, "the file %s cannot be read", l.cfg.Head)
	}
	v, err := note.NewVerifier(l.key)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInternal, op, "the audit log has no proper key")
	}
	head, err := OpenCheckpoint(msg, []note.Verifier{v})
	if err != nil {
		return behind(err, op, "%s is no checkpoint of this node's audit log", l.cfg.Head)
	}
	if head.Size > l.signed.Size {
		return behind(nil, op, "the audit log ends at %d entries, and it had %d", l.signed.Size, head.Size)
	}
	root, err := merkle.TreeHash(head.Size, l.files.reader(l.signed.Size))
	if err != nil || root != head.Root {
		return behind(err, op, "the audit log is not the one that had %d entries before", head.Size)
	}
	l.headAt = time.Now()
	return nil
}

// behind is the error of a log that was rolled back, removed or replaced.
func behind(err error, op, format string, args ...any) *bawn.Error {
	return bawn.Wrap(err, bawn.CodeUnavailable, op, format, args...).
		WithFix("put the folder of the audit log back from a copy; `bawn state accept --audit` goes on without what is gone, and records that")
}

// KeepHead writes [Config.Head] now.
func (l *Log) KeepHead() error {
	l.sequencing.Lock()
	defer l.sequencing.Unlock()
	return l.writeHead(true)
}

// writeHead keeps the newest checkpoint apart from the log: at most every ten
// seconds unless always. Sequencing is held.
func (l *Log) writeHead(always bool) error {
	if l.cfg.Head == "" || !always && time.Since(l.headAt) < headEvery {
		return nil
	}
	dir, name := filepath.Split(l.cfg.Head)
	if err := (files{dir}).replace(name, l.Checkpoint().Note); err != nil {
		return failed(err, "tlog.head", "the checkpoint cannot be kept in %s", l.cfg.Head)
	}
	l.headAt = time.Now()
	return nil
}

// openSpool takes over what the spool holds and begins a new segment.
func (l *Log) openSpool() error {
	const op = "tlog.open"
	size := l.signed.Size
	sp, err := readSpool(l.spool, size)
	if err != nil {
		return failed(err, op, "the audit log's spool cannot be read")
	}
	none := len(sp.segments) == 0
	clean := none && (l.fresh || l.marked())
	l.found = Recovery{Clean: clean, Unmarked: none && !clean, Durable: size, Replayed: int64(len(sp.entries)), Torn: sp.torn, Missing: sp.missing,
		Rebooted: len(sp.segments) > 0 && sp.boot != bootID()}
	for _, s := range sp.segments {
		path := filepath.Join(l.spool, s.name)
		// What the kernel has of a killed process is not on the disk yet.
		if err := syncFile(path); err != nil {
			return failed(err, op, "the audit log's spool cannot be synced")
		}
		l.old = append(l.old, oldSegment{s.name, size + int64(len(sp.entries))})
		l.segName = s.name
	}
	for _, name := range sp.bad {
		b, err := files{l.spool}.read(name, maxSegment)
		if err == nil {
			err = files{l.spool}.create(name+".bad", b)
		}
		if err != nil {
			return failed(err, op, "a damaged part of the spool cannot be kept aside")
		}
	}
	l.recent = append(l.recent, sp.entries...)
	for _, e := range sp.entries {
		l.waiting += len(e)
	}
	l.next = size + int64(len(sp.entries))
	l.synced, l.segFirst = l.next, l.next
	if l.seg, l.segName, err = newSegment(l.spool, l.next, l.segName); err != nil {
		return failed(err, op, "the audit log's spool cannot be written")
	}
	if err := os.Remove(filepath.Join(l.spool, cleanFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed(err, op, "the audit log's spool cannot be written")
	}
	return nil
}

// cleanFile is in the spool of a log that was closed: signed, with the size and
// the root that it was closed with. An empty spool alone says nothing, since
// anybody can empty it.
const cleanFile = "clean"

func (l *Log) cleanText() string {
	return fmt.Sprintf("%s\nclean end\n%d %s\n", l.cfg.Origin, l.signed.Size, l.signed.Root)
}

// marked reports whether the log was closed with the checkpoint that it has.
func (l *Log) marked() bool {
	msg, err := files{l.spool}.read(cleanFile, maxCheckpoint)
	if err != nil {
		return false
	}
	v, err := note.NewVerifier(l.key)
	if err != nil {
		return false
	}
	n, err := openNote(msg, []note.Verifier{v})
	return err == nil && n.Text == l.cleanText()
}

func (l *Log) mark() error {
	msg, err := note.Sign(&note.Note{Text: l.cleanText()}, l.signer)
	if err != nil {
		return err
	}
	return files{l.spool}.replace(cleanFile, msg)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Recovery returns what Open found.
func (l *Log) Recovery() Recovery { return l.found }

// Key returns the log's public key, as NAME+HASH+KEY.
func (l *Log) Key() string { return l.key }

// Dir returns the log's folder.
func (l *Log) Dir() string { return l.cfg.Dir }

// Append adds an entry and returns its index. The kernel has the entry when
// Append returns: it survives the end of the process, and the disk has it a few
// milliseconds later. Entries that come at one time share one write. The log
// keeps data, which must not be changed any more.
//
// CodeUnavailable means that the entry is not in the log and will not be.
func (l *Log) Append(data []byte) (int64, error) {
	const op = "tlog.append"
	if len(data) > MaxEntry {
		return 0, bawn.Errorf(bawn.CodeTooLarge, op, "an entry has at most %d bytes, not %d", MaxEntry, len(data))
	}
	l.mu.Lock()
	if err := l.refusal(len(data)); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	l.waiting += len(data)
	b := l.batch
	if b != nil { // somebody waits to write: go with it
		i := int64(len(b.entries))
		b.entries = append(b.entries, data)
		l.mu.Unlock()
		<-b.done
		return b.first + i, b.err
	}
	if l.writing.TryLock() { // nobody writes, so nobody needs to gather
		l.mu.Unlock()
		defer l.writing.Unlock()
		return l.write([][]byte{data})
	}
	b = &batch{entries: [][]byte{data}, done: make(chan struct{})}
	l.batch = b
	l.mu.Unlock()

	l.writing.Lock()
	l.mu.Lock()
	l.batch = nil
	l.mu.Unlock()
	b.first, b.err = l.write(b.entries)
	l.writing.Unlock()
	close(b.done)
	return b.first, b.err
}

// refusal returns why an entry of n bytes is not taken, or nil; mu is held.
func (l *Log) refusal(n int) error {
	const op = "tlog.append"
	switch {
	case l.closed:
		return bawn.Errorf(bawn.CodeUnavailable, op, "the audit log is closed")
	case l.fault != nil:
		return failed(l.fault, op, "the audit log cannot be written")
	case l.full != nil:
		if l.room(false); l.full != nil {
			return l.full
		}
	}
	if l.waiting+n > maxWaiting {
		return bawn.Errorf(bawn.CodeUnavailable, op, "evidence comes in faster than the disk takes it").
			WithFix("try again in a moment; if it lasts, the data directory needs a faster disk")
	}
	return nil
}

// room looks at the room on the disk, unless it did so just now; mu is held, or
// nobody else has the log yet.
func (l *Log) room(now bool) {
	if !now && time.Since(l.roomAt) < roomEvery {
		return
	}
	l.roomAt, l.full = time.Now(), nil
	free, err := freeBytes(l.cfg.Dir)
	switch {
	case err != nil:
		l.full = bawn.Wrap(err, bawn.CodeUnavailable, "tlog.append", "the audit log's disk cannot be asked for its space").
			WithFix("check that the data directory still exists and is mounted")
	case free < needFree:
		l.full = bawn.Errorf(bawn.CodeUnavailable, "tlog.append", "the disk of the data directory is full: %d MiB are free, %d MiB are needed", free>>20, needFree>>20).
			WithFix("free some space on the file system that holds the data directory; Bawn goes on by itself")
	}
}

// write hands entries to the kernel and returns the index of the first; writing
// is held.
func (l *Log) write(entries [][]byte) (first int64, err error) {
	l.buf = l.buf[:0]
	size := 0
	for _, e := range entries {
		l.buf = appendFrame(l.buf, e)
		size += len(e)
	}
	_, err = l.seg.Write(l.buf)
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	var lost error
	if err != nil {
		// What was written in part must not be taken for an entry later.
		lost = l.seg.Truncate(l.segSizeNow())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.waiting -= size
		if lost != nil {
			l.fault = lost
			poke(l.dirty)
		}
		if isFull(err) {
			l.room(true)
		}
		return 0, failed(err, "tlog.append", "the audit log cannot be written")
	}
	first = l.next
	l.next += int64(len(entries))
	for _, e := range entries {
		l.segSize += int64(frameHead + len(e))
	}
	l.recent = append(l.recent, entries...)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	if l.synced == first {
		poke(l.dirty)
	}
	if l.waiting > publishAt {
		poke(l.push)
	}
	return first, nil
}

// segSizeNow returns the bytes of the segment that are whole entries; writing
// is held, so nobody changes it.
func (l *Log) segSizeNow() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	head := int64(len(segmentHead(l.segFirst, bootID())))
	return head + l.segSize
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// AppendDurable is Append that returns once the entry is on the disk. Those who
// wait at one time share one sync. With an error the entry may be in the log
// all the same; what it speaks of must not be done.
func (l *Log) AppendDurable(ctx context.Context, data []byte) (int64, error) {
	i, err := l.Append(data)
	if err != nil {
		return 0, err
	}
	return i, l.Sync(ctx, i+1)
}

// Sync returns once the entries before the index n are on the disk.
func (l *Log) Sync(ctx context.Context, n int64) error {
	const op = "tlog.sync"
	for {
		l.mu.Lock()
		done, fault, syncs := l.synced >= n, l.fault, l.syncs
		l.mu.Unlock()
		switch {
		case done:
			return nil
		case fault != nil:
			return failed(fault, op, "the audit log cannot be written")
		}
		poke(l.urgent)
		select {
		case <-syncs:
		case <-ctx.Done():
			return bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, op, "the request ended before its record was kept")
		}
	}
}

// syncer brings the segment to the disk: at once when somebody waits, and else
// a few milliseconds after the first entry that it lacks.
func (l *Log) syncer() {
	wait := retryFirst
	for {
		select {
		case <-l.urgent:
		case <-l.dirty:
			// What nobody waits for is given a little time to gather.
			t := time.NewTimer(syncEvery)
			select {
			case <-l.urgent:
			case <-t.C:
			case <-l.stop:
			}
			t.Stop()
		case <-l.stop:
			return
		}
		if l.syncNow() == nil {
			wait = retryFirst
			continue
		}
		select {
		case <-time.After(wait):
		case <-l.stop:
			return
		}
		if wait = min(2*wait, retryLast); l.repair() == nil {
			wait = retryFirst
		} else {
			poke(l.dirty)
		}
	}
}

// syncNow brings what is written to the disk.
func (l *Log) syncNow() error {
	l.mu.Lock()
	seg, to, err := l.seg, l.next, l.fault
	idle := l.synced == to && err == nil
	l.mu.Unlock()
	if idle {
		return nil
	}
	if err == nil {
		if err = seg.Sync(); errors.Is(err, os.ErrClosed) {
			err = nil // the segment was synced and another begun
			to = 0
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.fault == nil {
			l.cfg.Log.Error("the audit log is not written: every call and change is refused until it is", "error", err)
		}
		l.fault = err
	} else {
		l.synced = max(l.synced, to)
	}
	close(l.syncs)
	l.syncs = make(chan struct{})
	if err == nil && l.synced < l.next {
		poke(l.dirty)
	}
	return err
}

// repair leaves a segment that cannot be trusted any more and writes what is in
// no checkpoint into a new one: after a failed sync nobody knows what of it the
// disk has.
func (l *Log) repair() error {
	l.sequencing.Lock()
	defer l.sequencing.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	first, entries, after := l.signed.Size, l.recent[l.signed.Size-l.recentAt:], l.segName
	l.mu.Unlock()
	var buf []byte
	for _, e := range entries {
		buf = appendFrame(buf, e)
	}
	seg, name, err := newSegment(l.spool, first, after)
	if err != nil {
		return err
	}
	if _, err = seg.Write(buf); err == nil {
		err = seg.Sync()
	}
	if err != nil {
		seg.Close()
		os.Remove(filepath.Join(l.spool, name))
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seg.Close()
	l.old = append(l.old, oldSegment{l.segName, l.next})
	l.seg, l.segName, l.segFirst, l.segSize = seg, name, first, int64(len(buf))
	l.synced, l.fault = l.next, nil
	l.cfg.Log.Info("the audit log is written again")
	return nil
}

// sequencer makes checkpoints.
func (l *Log) sequencer() {
	t := time.NewTicker(l.cfg.Every)
	defer t.Stop()
	var failing error
	for {
		select {
		case <-t.C:
		case <-l.push:
		case <-l.stop:
			return
		}
		l.mu.Lock()
		l.room(false)
		l.mu.Unlock()
		err := l.sequence()
		if err != nil && failing == nil {
			l.cfg.Log.Error("no checkpoint of the audit log is made; entries wait in the spool", "error", err)
		}
		failing = err
	}
}

// Publish puts everything appended so far under a signed checkpoint and returns
// it.
func (l *Log) Publish(ctx context.Context) (Checkpoint, error) {
	l.mu.Lock()
	to := l.next
	l.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return Checkpoint{}, bawn.Wrap(err, bawn.CodeUnavailable, "tlog.publish", "the request ended before a checkpoint was made")
		}
		if c := l.Checkpoint(); c.Size >= to {
			return c, nil
		}
		if err := l.sequence(); err != nil {
			return Checkpoint{}, failed(err, "tlog.publish", "no checkpoint of the audit log can be made")
		}
	}
}

// Checkpoint returns the newest.
func (l *Log) Checkpoint() Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signed
}

func (l *Log) sign(size int64, root merkle.Hash) (Checkpoint, error) {
	msg, err := note.Sign(&note.Note{Text: formatCheckpoint(l.cfg.Origin, size, root)}, l.signer)
	if err != nil {
		return Checkpoint{}, bawn.Wrap(err, bawn.CodeInternal, "tlog.sign", "a checkpoint cannot be signed")
	}
	return Checkpoint{Origin: l.cfg.Origin, Size: size, Root: root, Note: msg}, nil
}

// sequence puts what waits, at most maxBatch entries, into tiles, and signs
// that. The order is what makes it safe: tiles, then the checkpoint, then the
// spool is let go.
func (l *Log) sequence() error {
	l.sequencing.Lock()
	defer l.sequencing.Unlock()
	l.mu.Lock()
	size, at := l.signed.Size, l.recentAt
	to := min(l.next, size+maxBatch)
	entries := l.recent[: to-at : to-at]
	l.mu.Unlock()
	if to == size {
		return nil
	}

	// The hashes that the tree stores for each new entry.
	base := merkle.StoredHashCount(size)
	fresh := make([]merkle.Hash, 0, merkle.StoredHashCount(to)-base)
	reader := merkle.HashReaderFunc(func(indexes []int64) ([]merkle.Hash, error) {
		out := make([]merkle.Hash, len(indexes))
		for i, x := range indexes {
			if x >= base {
				out[i] = fresh[x-base]
				continue
			}
			t := merkle.TileForIndex(tileHeight, x)
			e, ok := l.edge[t.L]
			if !ok || e.n != t.N || len(e.data) < t.W*merkle.HashSize {
				return nil, fmt.Errorf("the hash %d is not at the edge of a tree of %d entries", x, size)
			}
			t.W = len(e.data) / merkle.HashSize
			var err error
			if out[i], err = merkle.HashFromTile(t, e.data, x); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
	for n := size; n < to; n++ {
		h, err := merkle.StoredHashes(n, entries[n-at], reader)
		if err != nil {
			return err
		}
		fresh = append(fresh, h...)
	}
	root, err := merkle.TreeHash(to, reader)
	if err != nil {
		return err
	}
	signed, err := l.sign(to, root)
	if err != nil {
		return err
	}

	write := map[string][]byte{}
	edge := map[int]edgeTile{}
	for _, t := range merkle.NewTiles(tileHeight, size, to) {
		data, err := merkle.ReadTileData(t, reader)
		if err != nil {
			return err
		}
		write[tilePath(t)] = data
		if edge[t.L] = (edgeTile{t.N, data}); t.W == tileWidth {
			edge[t.L] = edgeTile{n: t.N + 1}
		}
	}
	for n := size / tileWidth; n*tileWidth < to; n++ {
		all := entries[n*tileWidth-at : min((n+1)*tileWidth, to)-at]
		room := 0
		for _, e := range all {
			room += 2 + len(e)
		}
		bundle := make([]byte, 0, room)
		for _, e := range all {
			bundle = appendEntry(bundle, e)
		}
		write[tilePath(bundleTile(n, to))] = bundle
	}
	if err := l.files.writeAll(write); err != nil {
		return err
	}
	if err := l.files.replace(CheckpointFile, signed.Note); err != nil {
		return err
	}
	for level, e := range edge {
		l.edge[level] = e
	}
	l.dropPartial(size, to)

	l.mu.Lock()
	l.signed = signed
	for _, e := range entries[size-at:] {
		l.waiting -= len(e)
	}
	l.synced = max(l.synced, to)
	if aligned := to / tileWidth * tileWidth; aligned > at {
		l.recent = append(make([][]byte, 0, len(l.recent)-int(aligned-at)+tileWidth), l.recent[aligned-at:]...)
		l.recentAt = aligned
	}
	rotate := l.segSize > rotateAt
	l.mu.Unlock()
	if rotate {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return errors.Join(l.dropSpool(), l.writeHead(false))
}

// dropPartial removes the partial tiles that full ones have replaced.
func (l *Log) dropPartial(from, to int64) {
	remove := func(t merkle.Tile) {
		t.W = tileWidth
		os.RemoveAll(filepath.Join(l.cfg.Dir, filepath.FromSlash(tilePath(t)+".p")))
	}
	for level := 0; to>>(tileHeight*level) > 0; level++ {
		a, b := from>>(tileHeight*level), to>>(tileHeight*level)
		for n := a >> tileHeight; n < b>>tileHeight; n++ {
			remove(merkle.Tile{H: tileHeight, L: level, N: n})
			if level == 0 {
				remove(merkle.Tile{H: tileHeight, L: -1, N: n})
			}
		}
	}
}

// rotate begins a new segment; sequencing is held.
func (l *Log) rotate() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	next, after, fault := l.next, l.segName, l.fault
	l.mu.Unlock()
	if fault != nil {
		return nil // repair does it
	}
	if err := l.seg.Sync(); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fault = err
		poke(l.dirty)
		return err
	}
	seg, name, err := newSegment(l.spool, next, after)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seg.Close()
	l.old = append(l.old, oldSegment{l.segName, next})
	l.seg, l.segName, l.segFirst, l.segSize = seg, name, next, 0
	l.synced = max(l.synced, next)
	return nil
}

// dropSpool removes the segments whose entries are all in the checkpoint, the
// oldest first: an older one must not outlive a newer.
func (l *Log) dropSpool() error {
	for {
		l.mu.Lock()
		if len(l.old) == 0 || l.old[0].end > l.signed.Size {
			l.mu.Unlock()
			return nil
		}
		name := l.old[0].name
		l.mu.Unlock()
		if err := os.Remove(filepath.Join(l.spool, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l.mu.Lock()
		l.old = l.old[1:]
		l.mu.Unlock()
	}
}

// Close makes a last checkpoint over everything and ends. An error says how
// many entries are in none; they stay in the spool, and the next Open takes
// them over.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
	var err error
	for err == nil && l.Checkpoint().Size < l.Next() {
		err = l.sequence()
	}
	if l.Checkpoint().Size > 0 { // an empty log says nothing yet
		err = errors.Join(err, l.KeepHead())
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		if l.fault = l.seg.Sync(); l.fault == nil {
			l.synced = l.next
		}
	}
	close(l.syncs)
	l.syncs = make(chan struct{})
	l.seg.Close()
	if left := l.next - l.signed.Size; left > 0 {
		return bawn.Wrap(errors.Join(err, l.fault), bawn.CodeUnavailable, "tlog.close", "%d entries wait in the spool for a checkpoint", left)
	}
	// The mark and an empty spool are what tells the next run that this one ended.
	if err := l.mark(); err != nil {
		return failed(err, "tlog.close", "the end of the audit log cannot be marked")
	}
	for _, s := range append(l.old, oldSegment{name: l.segName}) {
		err = errors.Join(err, os.Remove(filepath.Join(l.spool, s.name)))
	}
	if err = errors.Join(err, syncDir(l.spool)); err != nil {
		return failed(err, "tlog.close", "the audit log's spool cannot be emptied")
	}
	return nil
}

// Next returns the index that the next entry gets: how many there are.
func (l *Log) Next() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// Wait returns once there are more than n entries, or ctx has ended.
func (l *Log) Wait(ctx context.Context, n int64) error {
	for {
		l.mu.Lock()
		if l.next > n {
			l.mu.Unlock()
			return nil
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// First returns the index of the oldest entry that was not pruned.
func (l *Log) First() int64 {
	l.mu.Lock()
	full := l.recentAt / tileWidth
	l.mu.Unlock()
	return l.files.firstBundle(full) * tileWidth
}

// Entries returns the entries of the bundle that holds the index i, and the
// index of the first of them. It includes what is in no checkpoint yet. The
// entries must not be changed.
func (l *Log) Entries(i int64) (entries [][]byte, first int64, err error) {
	const op = "tlog.read"
	first = i / tileWidth * tileWidth
	l.mu.Lock()
	at, recent := l.recentAt, l.recent
	l.mu.Unlock()
	if from := first - at; from >= 0 {
		if i-at >= int64(len(recent)) {
			return nil, first, bawn.Errorf(bawn.CodeNotFound, op, "the audit log has no entry %d", i)
		}
		return recent[from:min(from+tileWidth, int64(len(recent)))], first, nil
	}
	if entries, err = l.files.bundle(first/tileWidth, first+tileWidth); errors.Is(err, fs.ErrNotExist) {
		return nil, first, bawn.Errorf(bawn.CodeNotFound, op, "the entry %d was pruned", i).WithFix("older entries go by age and by size; bawn audit export keeps a copy")
	}
	if err != nil {
		return nil, first, damaged(err, op, "the entries from %d on cannot be read", first)
	}
	return entries, first, nil
}

// Stored returns when the bundle that holds the index i got its last entry, and
// its size in bytes; the present and 0 if it is not full yet.
func (l *Log) Stored(i int64) (time.Time, int64) {
	l.mu.Lock()
	at := l.recentAt
	l.mu.Unlock()
	if i >= at {
		return time.Now(), 0
	}
	st, err := os.Stat(filepath.Join(l.cfg.Dir, filepath.FromSlash(tilePath(bundleTile(i/tileWidth, at)))))
	if err != nil {
		return time.Time{}, 0
	}
	return st.ModTime(), st.Size()
}

// Prune removes the bundles before the index n, which must be the first of one.
// Their hashes stay, so everything else can still be verified. Whoever prunes
// has appended before that it does; see [PruneAction].
func (l *Log) Prune(ctx context.Context, n int64) error {
	if n%tileWidth != 0 || n > l.Checkpoint().Size {
		return bawn.Errorf(bawn.CodeInternal, "tlog.prune", "%d is not where a bundle begins", n)
	}
	for i := l.First(); i < n; i += tileWidth {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := os.Remove(filepath.Join(l.cfg.Dir, filepath.FromSlash(tilePath(bundleTile(i/tileWidth, n)))))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed(err, "tlog.prune", "the entries before %s cannot be removed", strconv.FormatInt(n, 10))
		}
	}
	return nil
}

// Resource returns the bytes of something that the format publishes: see
// [IsResource].
func (l *Log) Resource(path string) ([]byte, error) {
	const op = "tlog.resource"
	if !IsResource(path) {
		return nil, bawn.Errorf(bawn.CodeNotFound, op, "the audit log publishes nothing of that name")
	}
	b, err := l.files.read(path, maxBundle)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bawn.Errorf(bawn.CodeNotFound, op, "the audit log has no %s", path)
	}
	if err != nil {
		return nil, failed(err, op, "the audit log cannot be read")
	}
	return b, nil
}

// PruneAction is the action of the record, of the kind node, that is appended
// before entries are pruned. Its detail PruneBefore is the index of the first
// entry that stays. Verify takes what is missing for pruned only if there is
// such a record.
const (
	PruneAction = "audit.prune"
	PruneBefore = "before"
)
