package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"bawn.dev/bawn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	maxValue      = 1 << 20 // bytes of one value's JSON
	maxKey        = 256
	maxTableBytes = 256 << 20
	maxTombstones = 256 // marks of deleted keys that stay when a table is opened
	sealHeader    = "Bawn-Seal"
	opHeader      = "KV-Operation" // as in every KV bucket; absent on a value
)

// Table is a set of values of one type by key, kept in a JetStream KV bucket
// without history and held in memory whole. Reading costs no I/O; a write is
// visible to Get, All and every Watch before it returns. It is safe for
// concurrent use.
//
// JetStream can lose a value of a bucket to one flipped bit and stay healthy.
// A lost value must not look like one that never was (a missing rule that
// denies, a function that is gone), so each write carries a seal: the number
// of live keys after it and a hash over them all. The newest seal is kept in a
// file outside of JetStream too, since a damaged block can lose its end as if
// it had never been written. Opening compares both with what is there and
// fails if they differ.
type Table[T any] struct {
	s      *Store
	name   string
	js     jetstream.Stream
	prefix string

	wmu      sync.Mutex // held by whoever writes, catches up, or adds a watcher
	seq      uint64     // newest message applied
	seal     [sha256.Size]byte
	mark     *os.File
	behind   bool // a write ended without an answer: the stream may be ahead
	watchers []*watcher[T]

	mu   sync.RWMutex // guards rows, for readers
	rows map[string]row[T]
}

type row[T any] struct {
	v   *T
	rev uint64
	sum [sha256.Size]byte
}

type watcher[T any] struct {
	fn   func(string, *T)
	stop bool
}

// OpenTable opens the table name, made if missing, and reads it whole. A value
// that cannot be decoded or is missing by the seal is CodeUnavailable. A table
// may be open once at a time.
func OpenTable[T any](ctx context.Context, s *Store, name string) (*Table[T], error) {
	if err := bawn.CheckName("table", name); err != nil {
		return nil, err
	}
	js, err := s.openStream(ctx, jetstream.StreamConfig{
		// The layout of a KV bucket, so that NATS' own tools can read it.
		Name:              "KV_" + name,
		Subjects:          []string{"$KV." + name + ".>"},
		MaxMsgsPerSubject: 1,
		MaxBytes:          maxTableBytes,
		MaxMsgSize:        maxValue + 4096,
		MaxMsgs:           -1,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          1,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       true,
	})
	if err != nil {
		return nil, err
	}
	t := &Table[T]{s: s, name: name, js: js, prefix: "$KV." + name + ".", rows: map[string]row[T]{}}
	if err := t.load(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Table[T]) load(ctx context.Context) error {
	const op = "store.table"
	info := t.js.CachedInfo() // of just now
	if info.State.LastSeq == 0 {
		return t.checkMark("")
	}
	last, dead := "", []string{}
	err := t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: 1}, func(m rawMessage) error {
		key, err := t.apply(m)
		if err != nil {
			return err
		}
		if _, ok := t.rows[key]; !ok {
			dead = append(dead, key)
		}
		last = m.header.Get(sealHeader)
		return nil
	})
	if err != nil {
		return t.s.fail(err, op)
	}
	if t.seq != info.State.LastSeq || last != t.sealText() {
		return damaged(op, "the stored table %s is damaged: values are missing or were changed", t.name)
	}
	if err := t.checkMark(last); err != nil {
		return err
	}
	if len(dead) <= maxTombstones {
		return nil
	}
	// The newest message carries the seal and stays, whatever it is.
	for _, key := range dead[:len(dead)-1] {
		if err := t.js.Purge(ctx, jetstream.WithPurgeSubject(t.prefix+key)); err != nil {
			return t.s.fail(err, op)
		}
	}
	return nil
}

// checkMark compares what was loaded with the file of the newest seal.
func (t *Table[T]) checkMark(last string) error {
	const op = "store.table"
	err := t.openMark(false)
	if errors.Is(err, fs.ErrNotExist) {
		if t.seq == 0 {
			return nil // made before the first write
		}
		return damaged(op, "the seal of the stored table %s is missing", t.name)
	}
	if err != nil {
		return err
	}
	seq, seal, err := readMark(t.mark)
	if err != nil {
		return err
	}
	// A write that was never acknowledged may be ahead of the file.
	if seq > t.seq || seq == t.seq && seq > 0 && seal != last {
		return damaged(op, "the stored table %s is damaged: its newest values are missing", t.name)
	}
	if seq == t.seq {
		return nil
	}
	if err := writeMark(t.mark, t.seq, t.sealText()); err != nil {
		return t.s.fail(err, op)
	}
	return nil
}

// apply brings one message into memory. Only the holder of wmu, or load, calls it.
func (t *Table[T]) apply(m rawMessage) (string, error) {
	key := strings.TrimPrefix(m.subject, t.prefix)
	if m.seq <= t.seq {
		return key, nil
	}
	var v *T
	r := row[T]{rev: m.seq}
	if op := m.header.Get(opHeader); op == "" {
		v = new(T)
		if err := json.Unmarshal(m.data, v); err != nil {
			e := damaged("store.table", "the stored table %s is damaged: the value of %q cannot be read", t.name, key)
			e.Err = err
			return key, e
		}
		r.v, r.sum = v, rowSum(key, m.data)
	}
	t.mu.Lock()
	old, had := t.rows[key]
	if v == nil {
		delete(t.rows, key)
	} else {
		t.rows[key] = r
	}
	t.mu.Unlock()
	if had {
		xor(&t.seal, old.sum)
	}
	xor(&t.seal, r.sum)
	t.seq = m.seq
	for _, w := range t.watchers {
		if !w.stop && (v != nil || had) {
			w.fn(key, v)
		}
	}
	return key, nil
}

// catchUp applies what the stream has beyond memory.
func (t *Table[T]) catchUp(ctx context.Context) error {
	err := t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: t.seq + 1}, func(m rawMessage) error {
		_, err := t.apply(m)
		return err
	})
	if err == nil {
		t.behind = false
	}
	return err
}

// Get returns the value of key and its revision. The value is shared: what it
// points to must not be changed.
func (t *Table[T]) Get(key string) (v T, rev uint64, ok bool) {
	t.mu.RLock()
	r, ok := t.rows[key]
	t.mu.RUnlock()
	if !ok {
		return v, 0, false
	}
	return *r.v, r.rev, true
}

// Len returns the number of keys.
func (t *Table[T]) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.rows)
}

// All yields the keys that begin with prefix and their values, sorted by key,
// as they were when the loop began. The values are shared, as in [Table.Get].
func (t *Table[T]) All(prefix string) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		type pair struct {
			key string
			v   *T
		}
		var all []pair
		t.mu.RLock()
		for key, r := range t.rows {
			if strings.HasPrefix(key, prefix) {
				all = append(all, pair{key, r.v})
			}
		}
		t.mu.RUnlock()
		slices.SortFunc(all, func(a, b pair) int { return strings.Compare(a.key, b.key) })
		for _, p := range all {
			if !yield(p.key, *p.v) {
				return
			}
		}
	}
}

// Watch calls fn for each value that is there, sorted by key, and then for
// each change in the order in which they were made, with nil for a deleted
// key, until stop is called. fn runs inside the write: it must not block and
// must not write to the table, and may read it.
func (t *Table[T]) Watch(fn func(key string, v *T)) (stop func()) {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	for key, v := range t.All("") {
		fn(key, &v)
	}
	w := &watcher[T]{fn: fn}
	t.watchers = append(t.watchers, w)
	return func() {
		t.wmu.Lock()
		defer t.wmu.Unlock()
		w.stop = true
		t.watchers = slices.DeleteFunc(t.watchers, func(x *watcher[T]) bool { return x == w })
	}
}

// Create stores v under a key that has no value, and returns its revision.
// CodeConflict means that there is one.
func (t *Table[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return t.put(ctx, key, &v, 0)
}

// Update stores v in place of the value with revision rev, and returns the new
// revision. CodeConflict means that the value is another by now, or gone.
func (t *Table[T]) Update(ctx context.Context, key string, v T, rev uint64) (uint64, error) {
	if rev == 0 {
		return 0, bawn.Errorf(bawn.CodeConflict, "store.update", "%q was changed by somebody else", key).WithFix("read it again and repeat the change")
	}
	return t.put(ctx, key, &v, rev)
}

// Delete removes the value with revision rev. CodeConflict means that the
// value is another by now; deleting what is gone is CodeNotFound.
func (t *Table[T]) Delete(ctx context.Context, key string, rev uint64) error {
	_, err := t.put(ctx, key, nil, rev)
	return err
}

func (t *Table[T]) put(ctx context.Context, key string, v *T, rev uint64) (uint64, error) {
	const op = "store.write"
	if err := checkKey(key); err != nil {
		return 0, err
	}
	var data []byte
	if v != nil {
		var err error
		if data, err = json.Marshal(v); err != nil {
			return 0, bawn.Wrap(err, bawn.CodeInternal, op, "the value of %q cannot be encoded", key)
		}
		if len(data) > maxValue {
			return 0, bawn.Errorf(bawn.CodeTooLarge, op, "the value of %q has %d bytes, at most %d are allowed", key, len(data), maxValue)
		}
		// Deleting frees space and stays possible.
		if err := t.s.checkRoom(op); err != nil {
			return 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, t.s.fail(err, op)
	}
	// A caller that goes away must not leave a write of which nobody knows
	// whether it was made.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()

	t.wmu.Lock()
	defer t.wmu.Unlock()
	for try := 0; ; try++ {
		if t.behind {
			if err := t.catchUp(ctx); err != nil {
				return 0, t.s.fail(err, op)
			}
		}
		if err := t.checkRev(key, v == nil, rev); err != nil {
			return 0, err
		}
		if t.mark == nil {
			if err := t.openMark(true); err != nil {
				return 0, err
			}
		}
		m := nats.NewMsg(t.prefix + key)
		m.Data = data
		if v == nil {
			m.Header.Set(opHeader, "DEL")
		}
		m.Header.Set(sealHeader, t.sealAfter(key, v == nil, data))
		// The whole table must be as it is in memory, or the seal would lie.
		ack, err := t.s.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequence(t.seq))
		if err == nil {
			if _, err := t.apply(rawMessage{subject: m.Subject, seq: ack.Sequence, header: m.Header, data: data}); err != nil {
				return 0, err
			}
			if err := writeMark(t.mark, t.seq, t.sealText()); err != nil {
				return 0, t.s.fail(err, op)
			}
			return ack.Sequence, nil
		}
		t.behind = true
		var api *jetstream.APIError
		if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence && try < 3 {
			continue
		}
		return 0, t.s.fail(err, op)
	}
}

func (t *Table[T]) checkRev(key string, del bool, rev uint64) error {
	const op = "store.write"
	r, ok := t.rows[key] // only the holder of wmu writes to rows
	switch {
	case rev == 0 && !del && ok:
		return bawn.Errorf(bawn.CodeConflict, op, "%q exists already", key).WithFix("read it and change it, or take another name")
	case del && !ok:
		return bawn.Errorf(bawn.CodeNotFound, op, "%q does not exist", key)
	case rev != r.rev && (rev != 0 || del):
		return bawn.Errorf(bawn.CodeConflict, op, "%q was changed by somebody else", key).WithFix("read it again and repeat the change")
	}
	return nil
}

func (t *Table[T]) sealText() string {
	return fmt.Sprintf("%d:%s", len(t.rows), hex.EncodeToString(t.seal[:]))
}

// sealAfter returns the seal that holds once key has the value data.
func (t *Table[T]) sealAfter(key string, del bool, data []byte) string {
	sum, n := t.seal, len(t.rows)
	if old, ok := t.rows[key]; ok {
		xor(&sum, old.sum)
		n--
	}
	if !del {
		xor(&sum, rowSum(key, data))
		n++
	}
	return fmt.Sprintf("%d:%s", n, hex.EncodeToString(sum[:]))
}

func rowSum(key string, data []byte) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(key)))
	h.Write(n[:])
	h.Write([]byte(key))
	h.Write(data)
	return [sha256.Size]byte(h.Sum(nil))
}

func xor(a *[sha256.Size]byte, b [sha256.Size]byte) {
	for i := range a {
		a[i] ^= b[i]
	}
}

// markSlot is where the newest seal goes: two slots in turn, each within one
// disk sector, so that a torn write leaves the other one.
const markSlot = 512

// openMark opens the file of the newest seal, or makes it.
func (t *Table[T]) openMark(make bool) error {
	name := filepath.Join(t.s.dir, "seal-"+t.name)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) && make {
		// It gets its name once it is whole.
		if f, err = os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
			err = writeMark(f, 0, "0")
		}
		if err == nil {
			err = os.Rename(name+".new", name)
		}
		if err == nil {
			err = syncDir(filepath.Dir(name))
		}
	}
	if err != nil {
		f.Close() // of nil does nothing
		return bawn.Wrap(err, bawn.CodeUnavailable, "store.table", "the store's folder cannot be used").
			WithFix("give --data a folder that Bawn may read and write, on a disk with free space")
	}
	t.mark = f
	t.s.atClose(f)
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeMark(f *os.File, seq uint64, seal string) error {
	text := fmt.Sprintf("%d %s ", seq, seal)
	text += fmt.Sprintf("%x\n", sha256.Sum256([]byte(text)))
	if _, err := f.WriteAt([]byte(text), int64(seq%2)*markSlot); err != nil {
		return err
	}
	return f.Sync()
}

func readMark(f *os.File) (seq uint64, seal string, err error) {
	found := false
	for slot := range 2 {
		b := make([]byte, markSlot)
		n, _ := f.ReadAt(b, int64(slot)*markSlot)
		line, _, _ := strings.Cut(string(b[:n]), "\n")
		i := strings.LastIndexByte(line, ' ') + 1
		if fmt.Sprintf("%x", sha256.Sum256([]byte(line[:i]))) != line[i:] {
			continue
		}
		num, text, _ := strings.Cut(line[:i], " ")
		if q, err := strconv.ParseUint(num, 10, 64); err == nil && (!found || q > seq) {
			seq, seal, found = q, strings.TrimSpace(text), true
		}
	}
	if !found {
		return 0, "", damaged("store.table", "the file %s in the store's folder is damaged", filepath.Base(f.Name()))
	}
	return seq, seal, nil
}

// checkKey holds keys to names joined by dots, so that none is a pattern or
// reaches outside its table.
func checkKey(key string) error {
	ok := len(key) > 0 && len(key) <= maxKey && !strings.HasPrefix(key, ".") && !strings.HasSuffix(key, ".") && !strings.Contains(key, "..")
	if i := bytes.IndexFunc([]byte(key), func(c rune) bool {
		return c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}); !ok || i >= 0 {
		return bawn.Errorf(bawn.CodeInvalid, "store.key", "%.80q is not a key: want names joined by dots", key)
	}
	return nil
}
