package store

import (
	"context"
	"errors"
	"strings"

	"bawn.dev/bawn"
)

// Sealer encrypts what belongs to tenants. It is safe for concurrent use.
type Sealer interface {
	// Seal encrypts data of tenant so that it opens under what alone. The result
	// begins with the byte 1.
	Seal(tenant, what string, data []byte) ([]byte, error)
	// Open decrypts what Seal made. CodeUnprocessable means that it did not make
	// that, CodeUnavailable that the tenant's key cannot be used.
	Open(tenant, what string, sealed []byte) ([]byte, error)
}

// sealedMark is the first byte of what is sealed: Tink's, and never one of JSON.
const sealedMark = 1

// place is where something is kept, for the one whose it is: a row under its key,
// or a message under its subject. A key or subject of several names belongs to the
// tenant that is the first of them; one of a single name belongs to the node.
type place struct{ kind, set, name string }

func rowPlace(table, key string) place          { return place{"row", table, key} }
func messagePlace(stream, subject string) place { return place{"message", stream, subject} }

// what binds a sealed value to the place: names hold no line ends.
func (p place) what() string { return p.kind + "\n" + p.set + "\n" + p.name }

// owner returns the tenant, or "" for what is stored in clear.
func (s *Store) owner(p place) string {
	tenant, _, several := strings.Cut(p.name, ".")
	if s.sealer == nil || !several || bawn.CheckName("tenant", tenant) != nil {
		return ""
	}
	return tenant
}

// seal returns data as it is stored at p.
func (s *Store) seal(p place, data []byte) ([]byte, error) {
	if tenant := s.owner(p); tenant != "" {
		return s.sealer.Seal(tenant, p.what(), data)
	}
	return data, nil
}

// unseal returns what is stored at p. clear means that an older Bawn stored it,
// without encryption, though it is a tenant's.
func (s *Store) unseal(p place, stored []byte) (data []byte, clear bool, err error) {
	tenant := s.owner(p)
	switch {
	case tenant == "":
		return stored, false, nil
	case len(stored) == 0 || stored[0] != sealedMark:
		return stored, true, nil
	}
	data, err = s.sealer.Open(tenant, p.what(), stored)
	return data, false, err
}

// sealRows writes the rows again that an older Bawn stored in clear, one after the
// other as any other change: a crash leaves each as it was or sealed. What cannot
// be written now is at the next start.
func (t *Table[T]) sealRows(ctx context.Context, clear []string) error {
	for i, key := range clear {
		v, rev, ok := t.Get(key)
		if !ok {
			continue // damaged
		}
		if _, err := t.put(ctx, key, &v, rev); err != nil {
			t.s.log.Warn("rows that an older Bawn stored are not encrypted yet", "table", t.name, "rows", len(clear)-i, "error", err)
			return ctx.Err()
		}
	}
	if len(clear) == 0 || t.whole {
		return nil
	}
	// The old lines hold hashes of what was in clear.
	t.wmu.Lock()
	defer t.wmu.Unlock()
	if err := t.manifest.flush(); err != nil {
		return err
	}
	return t.manifest.replace(t.s, t.wants(), t.manifest.seq)
}

// reason words an error of a [Sealer] for whoever looks at damage.
func reason(err error) string {
	var e *bawn.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "internal error"
}
