package store

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"bawn.dev/bawn"
)

// TableCopy is what a table held at one moment.
type TableCopy struct {
	Name string
	Head uint64 // revision of the newest write
	Len  int
	Rows iter.Seq2[string, json.RawMessage] // by key
}

// Copy returns what all open tables hold, as of one moment: no write falls between
// two of them. It costs the time to copy pointers; the values are made into JSON
// when they are asked for. CodeUnavailable means that something is damaged: a copy
// would hide that.
func (s *Store) Copy() ([]TableCopy, error) {
	parts := s.tables() // by name: always locked in the same order
	for _, p := range parts {
		p.lock()
		defer p.unlock()
	}
	var all []TableCopy
	for _, p := range parts {
		for _, d := range p.found() {
			return nil, bawn.Errorf(bawn.CodeUnavailable, "store.copy", "the stored state is damaged: %s", d).WithFix("%s", RestoreFix)
		}
		all = append(all, p.dump())
	}
	return all, nil
}

// dump returns what the table holds. The caller holds the lock.
func (t *Table[T]) dump() TableCopy {
	rows := make(map[string]*T, len(t.rows))
	for key, r := range t.rows {
		rows[key] = r.v
	}
	return TableCopy{Name: t.name, Head: t.head(), Len: len(rows), Rows: func(yield func(string, json.RawMessage) bool) {
		for _, key := range slices.Sorted(maps.Keys(rows)) {
			data, err := json.Marshal(rows[key])
			if err != nil {
				data = nil // was encoded before, so it can be again
			}
			if !yield(key, data) {
				return
			}
		}
	}}
}

// Import fills the table name, which must be empty, with rows as a copy has them.
func Import(ctx context.Context, s *Store, name string, rows iter.Seq2[string, json.RawMessage]) error {
	t, err := OpenTable[json.RawMessage](ctx, s, name)
	if err != nil {
		return err
	}
	if n := t.Len(); n > 0 || t.head() > 0 {
		return bawn.Errorf(bawn.CodeConflict, "store.import", "the table %s holds %d values already", name, n)
	}
	for key, data := range rows {
		if _, err := t.Create(ctx, key, data); err != nil {
			return err
		}
	}
	return nil
}

// TableNames lists the tables that there are, by their streams and by their
// manifests.
func (s *Store) TableNames() ([]string, error) {
	found := map[string]bool{}
	for _, f := range []struct{ pattern, prefix, suffix string }{
		{s.streamDir("KV_*"), "KV_", ""}, {filepath.Join(s.state, "*"+manifestSuffix), "", manifestSuffix},
	} {
		paths, err := filepath.Glob(f.pattern)
		if err != nil {
			return nil, s.fail(err, "store.tables")
		}
		for _, p := range paths {
			name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), f.prefix), f.suffix)
			if bawn.CheckName("table", name) == nil {
				found[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}
