package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	maxTombstones = 256            // marks of deleted keys that stay when a table is opened
	opHeader      = "KV-Operation" // as in every KV bucket; absent on a value
)

// Table is a set of values of one type by key, kept in a JetStream KV bucket
// without history and held in memory whole. Reading costs no I/O; a write is
// visible to Get, All and every Watch before it returns. It is safe for
// concurrent use.
//
// JetStream can lose a value of a bucket to one flipped bit and stay healthy.
// A lost value must not look like one that never was (a missing rule that
// denies, a function that is gone), so each write has a signed line in the
// table's manifest, a plain file outside of JetStream. Opening compares the two.
// What is missing or was changed is not served: [Table.Lost] tells it from what
// never was. See [Damage].
type Table[T any] struct {
	s      *Store
	name   string
	js     jetstream.Stream
	prefix string

	wmu      sync.Mutex // held by whoever writes, catches up, or adds a watcher
	seq      uint64     // newest message applied
	manifest manifestFile
	behind   bool     // a write ended without an answer: the stream may be ahead
	clear    []string // keys of tenants' rows that an older Bawn stored in clear; of use to OpenTable alone
	watchers []*watcher[T]

	// What opening found damaged. None of it changes while the table is open.
	damage []Damage
	lost   map[string]want // keys that must be there, and are not as they must be
	whole  bool            // nothing of the table can be trusted; it is empty
	short  bool            // its end is missing: it takes no write

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

// OpenTable opens the table name, made if missing, reads it whole, and compares it
// with its manifest. Damage does not keep it from opening: see [Table.Trusted]. A
// table may be open once at a time.
func OpenTable[T any](ctx context.Context, s *Store, name string) (*Table[T], error) {
	if err := bawn.CheckName("table", name); err != nil {
		return nil, err
	}
	t := &Table[T]{s: s, name: name, prefix: "$KV." + name + ".", rows: map[string]row[T]{}, lost: map[string]want{}}
	t.manifest = manifestFile{signer: signer{name, s.key}, path: filepath.Join(s.state, name+manifestSuffix)}
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
	var broken *damagedStream
	switch {
	case errors.As(err, &broken):
		t.distrust("its stream cannot be read")
	case err != nil:
		return nil, err
	default:
		t.js = js
		if err := t.load(ctx); err != nil {
			return nil, err
		}
	}
	s.register(t)
	if err := t.sealRows(ctx, t.clear); err != nil {
		return nil, s.fail(err, "store.table")
	}
	t.clear = nil
	return t, nil
}

// loaded is what the stream holds, as it was read.
type loaded[T any] struct {
	rows map[string]row[T]
	bad  map[string]string // keys whose value cannot be read, with why
	dead []string          // keys with a mark of deletion
	last rawMessage        // the newest
	next []rawMessage      // after what the manifest has
}

func (t *Table[T]) load(ctx context.Context) error {
	const op = "store.table"
	c, missing, broken, err := t.manifest.load()
	if err != nil {
		return err
	}
	in := loaded[T]{rows: map[string]row[T]{}, bad: map[string]string{}}
	err = t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: 1}, func(m rawMessage) error {
		key := strings.TrimPrefix(m.subject, t.prefix)
		in.last = m
		if m.seq > c.seq {
			in.next = append(in.next, m)
		}
		if m.header.Get(opHeader) != "" {
			in.dead = append(in.dead, key)
			return nil
		}
		v := new(T)
		data, clear, err := t.s.unseal(rowPlace(t.name, key), m.data)
		switch {
		case err != nil:
			in.bad[key] = "its value cannot be decrypted: " + reason(err)
		case json.Unmarshal(data, v) != nil:
			in.bad[key] = "its value cannot be read"
		case clear:
			t.clear = append(t.clear, key)
		}
		in.rows[key] = row[T]{v, m.seq, rowSum(key, m.data)}
		return nil
	})
	if err != nil {
		return t.s.fail(err, op)
	}
	state, err := t.js.Info(ctx)
	if err != nil {
		return t.s.fail(err, op)
	}
	t.seq = state.State.LastSeq

	switch {
	case missing:
		return t.adopt(in)
	case broken:
		t.distrust("its manifest is damaged")
		return nil
	}
	for _, m := range in.next {
		l, ok := parseLine(m.header.Get(manifestHeader))
		if !ok || l.seq != m.seq || l.key != strings.TrimPrefix(m.subject, t.prefix) || !t.manifest.follows(&l, c.seq, c.chain) {
			t.distrust("its manifest does not reach to what is stored")
			return nil
		}
		t.manifest.pending = append(append(t.manifest.pending, l.String()...), '\n')
		c.seq, c.chain = l.seq, l.chain
		c.lines++
		if l.del {
			delete(c.rows, l.key)
		} else {
			c.rows[l.key] = want{l.seq, l.sum}
		}
	}
	if t.s.rolledBack(t.name, c.seq) {
		t.distrust("it is older than what the evidence says of it")
		return nil
	}
	t.compare(in, c.rows)
	if t.short = t.seq < c.seq; t.short && len(t.damage) == 0 {
		t.hurt("", "its newest messages are missing")
	}
	return t.settle(ctx, in, c)
}

// adopt sees to a table without a manifest: of one with rows, only what an older
// Bawn wrote, and whose seal holds, may get one.
func (t *Table[T]) adopt(in loaded[T]) error {
	rows := map[string]want{}
	for key, r := range in.rows {
		rows[key] = want{r.rev, r.sum}
	}
	holds, present, err := t.s.sealHolds(t.name, rows, in.last.seq, in.last.header.Get(sealHeader))
	switch {
	case err != nil:
		return t.s.fail(err, "store.table")
	case !present && t.seq == 0 && !t.s.rolledBack(t.name, 0):
		return nil // made, and never written to
	case !present:
		t.distrust("its manifest is missing")
	case !holds || in.last.seq != t.seq || len(in.bad) > 0 || t.s.rolledBack(t.name, t.seq):
		t.distrust("values are missing or were changed")
	default:
		t.rows = in.rows
		if err := t.manifest.replace(t.s, rows, t.seq); err != nil {
			return err
		}
		return os.Remove(t.s.sealPath(t.name))
	}
	return nil
}

// compare takes over the rows that are as the manifest wants them.
func (t *Table[T]) compare(in loaded[T], rows map[string]want) {
	for key, w := range rows {
		r, ok := in.rows[key]
		switch {
		case !ok:
			t.hurt(key, "it is missing")
		case r.rev != w.rev || r.sum != w.sum:
			t.hurt(key, "it was changed")
		case in.bad[key] != "":
			t.hurt(key, in.bad[key])
		default:
			t.rows[key] = r
			continue
		}
		t.lost[key] = w
	}
	for key := range in.rows {
		if _, ok := rows[key]; !ok {
			// It was deleted, and stays so: nothing is lost by that.
			t.hurt(key, "it was deleted, and is there again")
		}
	}
	slices.SortFunc(t.damage, func(a, b Damage) int { return strings.Compare(a.Key, b.Key) })
}

// settle makes the manifest ready for writes, and drops what is of no use.
func (t *Table[T]) settle(ctx context.Context, in loaded[T], c contents) error {
	pending := t.manifest.pending
	var err error
	if c.lines > 2*len(c.rows)+manifestSlack {
		err = t.manifest.replace(t.s, c.rows, c.seq)
	} else if err = t.manifest.open(t.s, c); err == nil {
		t.manifest.pending = pending
		err = t.manifest.flush()
	}
	if err != nil || len(t.damage) > 0 || len(in.dead) <= maxTombstones {
		return err
	}
	for _, key := range in.dead {
		if key == strings.TrimPrefix(in.last.subject, t.prefix) {
			continue // the newest message stays, whatever it is
		}
		if err := t.js.Purge(ctx, jetstream.WithPurgeSubject(t.prefix+key)); err != nil {
			return t.s.fail(err, "store.table")
		}
	}
	return nil
}

// distrust gives the whole table up.
func (t *Table[T]) distrust(problem string) {
	t.whole, t.rows, t.lost = true, map[string]row[T]{}, map[string]want{}
	t.damage = nil
	t.hurt("", problem)
}

func (t *Table[T]) hurt(key, problem string) {
	t.damage = append(t.damage, Damage{Table: t.name, Key: key, Problem: problem, Refused: true})
}

// apply brings one message into memory, and its line into the manifest. Only the
// holder of wmu calls it.
func (t *Table[T]) apply(m rawMessage, l line) error {
	var v *T
	r := row[T]{rev: m.seq}
	if !l.del {
		v = new(T)
		data, _, err := t.s.unseal(rowPlace(t.name, l.key), m.data)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, v); err != nil {
			return bawn.Wrap(err, bawn.CodeInternal, "store.table", "the value of %q cannot be read back", l.key)
		}
		r.v, r.sum = v, rowSum(l.key, m.data)
	}
	t.manifest.add(&l)
	t.mu.Lock()
	_, had := t.rows[l.key]
	if v == nil {
		delete(t.rows, l.key)
	} else {
		t.rows[l.key] = r
	}
	t.mu.Unlock()
	t.seq = m.seq
	for _, w := range t.watchers {
		if !w.stop && (v != nil || had) {
			w.fn(l.key, v)
		}
	}
	return nil
}

// catchUp applies what the stream has beyond memory: at most one write, which ended
// without an answer.
func (t *Table[T]) catchUp(ctx context.Context) error {
	err := t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: t.seq + 1}, func(m rawMessage) error {
		l, ok := parseLine(m.header.Get(manifestHeader))
		if !ok || l.seq != m.seq || l.key != strings.TrimPrefix(m.subject, t.prefix) || !t.manifest.follows(&l, t.manifest.seq, t.manifest.chain) {
			return t.refused("", "something that this node did not write is in it")
		}
		return t.apply(m, l)
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

// Peek is Get for what is asked at every call: it copies nothing. It returns nil if
// there is no such key. What it returns is shared and must not be changed.
func (t *Table[T]) Peek(key []byte) *T {
	t.mu.RLock()
	v := t.rows[string(key)].v
	t.mu.RUnlock()
	return v
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
		if data, err = t.s.seal(rowPlace(t.name, key), data); err != nil {
			return 0, err
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
	if err := t.writable(key); err != nil {
		return 0, err
	}
	for try := 0; ; try++ {
		if t.behind {
			if err := t.catchUp(ctx); err != nil {
				return 0, t.s.fail(err, op)
			}
		}
		if err := t.checkRev(key, v == nil, rev); err != nil {
			return 0, err
		}
		// One line may be missing in the manifest after a crash, and no more: the
		// one before this is brought to the disk if it is not there yet.
		if err := t.ready(); err != nil {
			return 0, err
		}
		l := line{seq: t.seq + 1, key: key, del: v == nil}
		m := nats.NewMsg(t.prefix + key)
		m.Data = data
		if l.del {
			m.Header.Set(opHeader, "DEL")
		} else {
			l.sum = rowSum(key, data)
		}
		t.manifest.sign(t.manifest.chain, &l)
		m.Header.Set(manifestHeader, l.String())
		// The whole table must be as it is in memory, or the manifest would lie.
		ack, err := t.s.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequence(t.seq))
		if err == nil && ack.Sequence != l.seq {
			err = fmt.Errorf("the message got the sequence %d, not %d", ack.Sequence, l.seq)
		}
		if err == nil {
			if err := t.apply(rawMessage{subject: m.Subject, seq: l.seq, header: m.Header, data: data}, l); err != nil {
				return 0, err
			}
			if err := t.manifest.flush(); err != nil {
				return 0, t.s.fail(err, op)
			}
			return l.seq, nil
		}
		t.behind = true
		var api *jetstream.APIError
		if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence && try < 3 {
			continue
		}
		return 0, t.s.fail(err, op)
	}
}

// ready brings the manifest to where the next line can be added.
func (t *Table[T]) ready() error {
	if t.manifest.f == nil {
		// Before the first message: a message without a manifest is damage.
		return t.manifest.replace(t.s, nil, 0)
	}
	if err := t.manifest.flush(); err != nil {
		return err
	}
	if t.manifest.lines <= 2*(len(t.rows)+len(t.lost))+manifestSlack {
		return nil
	}
	return t.manifest.replace(t.s, t.wants(), t.manifest.seq)
}

// wants returns what the manifest says of each key. The caller holds wmu.
func (t *Table[T]) wants() map[string]want {
	all := maps.Clone(t.lost)
	for key, r := range t.rows {
		all[key] = want{r.rev, r.sum}
	}
	return all
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

func rowSum(key string, data []byte) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(key)))
	h.Write(n[:])
	h.Write([]byte(key))
	h.Write(data)
	return [sha256.Size]byte(h.Sum(nil))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
