package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"github.com/nats-io/nats.go/jetstream"
)

// Damage is something stored that is not as the manifest of its table says.
type Damage struct {
	Table   string `json:"table"`
	Key     string `json:"key,omitempty" doc:"empty if it concerns the table as a whole"`
	Problem string `json:"problem"`
	Refused bool   `json:"refused" doc:"whether what it touches is refused; if not, the node goes on with what it had read before, until it is started again"`
}

// String names what is damaged, and how.
func (d Damage) String() string {
	if d.Key == "" {
		return d.Table + ": " + d.Problem
	}
	return d.Table + " " + d.Key + ": " + d.Problem
}

// RestoreFix is the way out of damage.
const RestoreFix = "look at bawn doctor, and put the state back with bawn backup restore; bawn state accept takes what is there for the truth instead"

// refused is the error of what damage touches.
func (t *Table[T]) refused(key, problem string) *bawn.Error {
	what := "the stored table " + t.name
	if key != "" {
		what = fmt.Sprintf("%q in the stored table %s", key, t.name)
	}
	return bawn.Errorf(bawn.CodeUnavailable, "store.state", "%s is damaged: %s", what, problem).WithFix(RestoreFix)
}

// Damaged yields what opening the table found damaged.
func (t *Table[T]) Damaged() iter.Seq[Damage] { return slices.Values(t.damage) }

// Lost reports whether key has, or may have, a value that cannot be read: whoever
// finds nothing under it must not take that for an answer. It costs next to
// nothing where nothing is damaged.
func (t *Table[T]) Lost(key string) bool {
	_, lost := t.lost[key]
	return lost || t.whole
}

// LostUnder reports whether a key that begins with prefix is lost.
func (t *Table[T]) LostUnder(prefix string) bool {
	if t.whole {
		return true
	}
	for key := range t.lost {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// Trusted returns nil if every value that the table should have is there, and
// otherwise a CodeUnavailable that says what is not. Whoever draws a conclusion
// from the absence of a value, such as that nobody forbids something, asks first.
func (t *Table[T]) Trusted() error {
	if !t.whole && !t.short && len(t.lost) == 0 {
		return nil
	}
	for _, d := range t.damage {
		if _, lost := t.lost[d.Key]; lost || d.Key == "" {
			return t.refused(d.Key, d.Problem)
		}
	}
	return t.refused("", "values are missing")
}

// Find is [Table.Get] with an error for a lost key, of CodeUnavailable.
func (t *Table[T]) Find(key string) (v T, rev uint64, ok bool, err error) {
	if t.Lost(key) {
		for _, d := range t.damage {
			if d.Key == key || d.Key == "" {
				return v, 0, false, t.refused(d.Key, d.Problem)
			}
		}
	}
	v, rev, ok = t.Get(key)
	return v, rev, ok, nil
}

// writable refuses a write that would build on damage.
func (t *Table[T]) writable(key string) error {
	switch {
	case t.whole:
		return t.refused("", t.damage[0].Problem)
	case t.short:
		return t.refused("", "its newest messages are missing")
	case t.Lost(key):
		_, _, _, err := t.Find(key)
		return err
	}
	return nil
}

// part is a table as the store as a whole sees it.
type part interface {
	title() string
	found() []Damage
	head() uint64
	leaves() iter.Seq[string]
	verify(context.Context) ([]Damage, int, error)
	lock()
	unlock()
	dump() TableCopy
	accept(context.Context) error
}

func (t *Table[T]) title() string { return t.name }

func (t *Table[T]) found() []Damage { return t.damage }

func (t *Table[T]) lock()   { t.wmu.Lock() }
func (t *Table[T]) unlock() { t.wmu.Unlock() }

// head returns the revision of the newest write. The caller holds the lock.
func (t *Table[T]) head() uint64 { return max(t.manifest.seq, t.seq) }

// leaves yields the leaves that the table has in the Merkle tree, by key. The
// caller holds the lock.
func (t *Table[T]) leaves() iter.Seq[string] {
	return func(yield func(string) bool) {
		all := t.wants()
		for _, key := range slices.Sorted(maps.Keys(all)) {
			w := all[key]
			if !yield(fmt.Sprintf("%s %s %d %x", t.name, key, w.rev, w.sum)) {
				return
			}
		}
	}
}

// How fast a check reads: with this pause after so many messages, a few thousand
// a second, which is lost in what calls cost.
const (
	verifyBatch = 128
	verifyPause = 10 * time.Millisecond
)

// verify compares what is on the disk now with what was read when the table was
// opened and written since. It returns how many rows it compared.
func (t *Table[T]) verify(ctx context.Context) ([]Damage, int, error) {
	if t.whole {
		return nil, 0, nil
	}
	t.wmu.Lock()
	wants := map[string]want{}
	for key, r := range t.rows {
		wants[key] = want{r.rev, r.sum}
	}
	seq, file := t.seq, t.manifest
	old, err := os.Open(file.path) // as it is now, even if it is replaced meanwhile
	t.wmu.Unlock()
	var bad []Damage
	hurt := func(key, problem string) {
		bad = append(bad, Damage{Table: t.name, Key: key, Problem: problem})
	}
	if file.f != nil {
		if err != nil {
			hurt("", "its manifest is missing")
		} else {
			defer old.Close()
			data := make([]byte, file.size)
			n, _ := old.ReadAt(data, 0)
			// What could not be added yet is not in the file.
			if c, ok := file.readManifest(data[:n]); !ok || c.size != file.size || len(file.pending) == 0 && c.seq != file.seq {
				hurt("", "its manifest is damaged")
			}
		}
	} else if old != nil {
		old.Close()
	}
	seen, n := map[string]want{}, 0
	err = t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: 1, to: seq}, func(m rawMessage) error {
		if n++; n%verifyBatch == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(verifyPause):
			}
		}
		if m.header.Get(opHeader) == "" {
			key := strings.TrimPrefix(m.subject, t.prefix)
			seen[key] = want{m.seq, rowSum(key, m.data)}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil, 0, t.s.fail(ctx.Err(), "store.check")
	}
	if err != nil {
		hurt("", "it cannot be read")
		return bad, 0, nil
	}
	for _, key := range slices.Sorted(maps.Keys(wants)) {
		w := wants[key]
		got, ok := seen[key]
		if ok && got == w {
			continue
		}
		if _, rev, still := t.Get(key); !still || rev != w.rev {
			continue // written again while this was reading
		}
		if ok {
			hurt(key, "it was changed on the disk")
		} else {
			hurt(key, "it is missing on the disk")
		}
	}
	return bad, len(wants), nil
}

// accept gives up what is damaged. Where single values are, they go for good;
// where nothing could be trusted, what can be read is the truth from now on. The
// caller holds the lock. The table must not be used any more.
func (t *Table[T]) accept(ctx context.Context) error {
	if len(t.damage) == 0 {
		return nil
	}
	if t.js == nil {
		if err := t.s.setAside("KV_" + t.name); err != nil {
			return err
		}
		return t.manifest.replace(t.s, nil, 0)
	}
	rows, drop := map[string]want{}, []string{}
	err := t.s.scan(ctx, scanRange{stream: "KV_" + t.name, subject: t.prefix + ">", from: 1}, func(m rawMessage) error {
		key := strings.TrimPrefix(m.subject, t.prefix)
		_, good := t.rows[key]
		if t.whole {
			data, _, err := t.s.unseal(rowPlace(t.name, key), m.data)
			good = err == nil && json.Unmarshal(data, new(T)) == nil
		}
		if good && m.header.Get(opHeader) == "" {
			rows[key] = want{m.seq, rowSum(key, m.data)}
		} else {
			drop = append(drop, key)
		}
		return nil
	})
	for _, key := range drop {
		if err == nil {
			err = t.js.Purge(ctx, jetstream.WithPurgeSubject(t.prefix+key))
		}
	}
	if err != nil {
		return t.s.fail(err, "store.accept")
	}
	state, err := t.js.Info(ctx)
	if err != nil {
		return t.s.fail(err, "store.accept")
	}
	return t.manifest.replace(t.s, rows, state.State.LastSeq)
}

// Report is what a check of the stored state found.
type Report struct {
	At     time.Time `json:"at"`
	Tables int       `json:"tables"`
	Rows   int       `json:"rows"`
	Root   string    `json:"root" doc:"the root of the Merkle tree over name, revision and hash of every row"`
	Damage []Damage  `json:"damage" nullable:"false"`
}

// Head is where the tables of a store are: for each the revision of its newest
// write, and the Merkle root over all.
type Head struct {
	Root   string
	Tables map[string]uint64
}

// String writes the tables as [ParseHeads] reads them.
func (h Head) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(h.Tables)) {
		parts = append(parts, name+"="+strconv.FormatUint(h.Tables[name], 10))
	}
	return strings.Join(parts, " ")
}

// ParseHeads reads the tables of a [Head]. What it cannot read it leaves out.
func ParseHeads(s string) map[string]uint64 {
	all := map[string]uint64{}
	for _, f := range strings.Fields(s) {
		name, num, _ := strings.Cut(f, "=")
		if n, err := strconv.ParseUint(num, 10, 64); err == nil && bawn.CheckName("table", name) == nil {
			all[name] = n
		}
	}
	return all
}

func (s *Store) register(p part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = append(slices.DeleteFunc(s.parts, func(o part) bool { return o.title() == p.title() }), p)
	slices.SortFunc(s.parts, func(a, b part) int { return strings.Compare(a.title(), b.title()) })
}

func (s *Store) tables() []part {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.parts)
}

// Expect tells the store, before its tables are opened, the newest revision that
// the evidence has of each. A table that is older was rolled back, manifest and
// all, and is not trusted.
func (s *Store) Expect(heads map[string]uint64) { s.expected = maps.Clone(heads) }

func (s *Store) rolledBack(table string, seq uint64) bool { return seq < s.expected[table] }

// Heads returns how far the open tables have come, without the root: that costs
// next to nothing. A table that was rolled back counts as far as the evidence has
// it, and so does one that nobody has opened.
func (s *Store) Heads() Head {
	h := Head{Tables: maps.Clone(s.expected)}
	if h.Tables == nil {
		h.Tables = map[string]uint64{}
	}
	for _, p := range s.tables() {
		p.lock()
		if n := max(p.head(), s.expected[p.title()]); n > 0 {
			h.Tables[p.title()] = n
		}
		p.unlock()
	}
	return h
}

// Head is [Store.Heads] with the root.
func (s *Store) Head() (Head, error) {
	h := s.Heads()
	var leaves []string
	for _, p := range s.tables() {
		p.lock()
		leaves = slices.AppendSeq(leaves, p.leaves())
		p.unlock()
	}
	var err error
	h.Root, err = merkleRoot(slices.Values(leaves))
	return h, err
}

// Damaged returns what opening the tables found damaged.
func (s *Store) Damaged() []Damage {
	all := []Damage{}
	for _, p := range s.tables() {
		all = append(all, p.found()...)
	}
	return all
}

// Check reads the tables and their manifests again from the disk, slowly, and
// reports what is not as it must be: what opening found, and what has become so
// since. It fails only if ctx ends.
func (s *Store) Check(ctx context.Context) (Report, error) {
	r := Report{Damage: []Damage{}}
	for _, p := range s.tables() {
		r.Tables++
		r.Damage = append(r.Damage, p.found()...)
		bad, n, err := p.verify(ctx)
		if err != nil {
			return r, err
		}
		r.Rows += n
		r.Damage = append(r.Damage, bad...)
	}
	h, err := s.Head()
	r.Root, r.At = h.Root, time.Now().UTC()
	return r, err
}

// Accept takes what the open tables hold for the truth, whatever their manifests
// say, and returns what was damaged and is given up by that. The store must be
// closed and opened again after it.
func (s *Store) Accept(ctx context.Context) ([]Damage, error) {
	all := s.Damaged()
	var errs []error
	for _, p := range s.tables() {
		p.lock()
		errs = append(errs, p.accept(ctx))
		p.unlock()
	}
	return all, errors.Join(errs...)
}
