package secret

import (
	"slices"
	"sync"

	"bawn.dev/bawn"
)

const maxRedactors = 4096 // kept

// redactors keeps the redactor of each version of a function, for as long as the
// secrets that it names stay what they are.
type redactors struct {
	mu    sync.RWMutex
	known map[string]redactorOf
}

type redactorOf struct {
	*Redactor
	revisions []uint64 // of the secrets that the version names, 0 for one that is not there
}

// Redactor returns what takes the values out of text that fn may have: those of
// every secret that its manifest names, whether it is granted or not, at all their
// versions that have not ended. It is nil if there are none. It reads memory alone,
// but after one of them has changed.
func (v *Vault) Redactor(fn *bawn.Version) *Redactor {
	if !fn.Perimeter.Egress.HasSecrets() {
		return nil
	}
	var room [8]uint64
	revisions := room[:0]
	names := asked(fn)
	for _, name := range names {
		_, rev, err := v.find(fn.Tenant, name)
		if err != nil {
			rev = 0
		}
		revisions = append(revisions, rev)
	}
	key := fn.Tenant + "." + fn.Function + "." + itoa(fn.Number)
	v.redactors.mu.RLock()
	r, ok := v.redactors.known[key]
	v.redactors.mu.RUnlock()
	if ok && slices.Equal(r.revisions, revisions) {
		return r.Redactor
	}
	// Before the values are read, so that a change meanwhile is noticed.
	r = redactorOf{v.newRedactor(fn.Tenant, names), slices.Clone(revisions)}
	v.redactors.mu.Lock()
	defer v.redactors.mu.Unlock()
	if v.redactors.known == nil || len(v.redactors.known) >= maxRedactors {
		v.redactors.known = map[string]redactorOf{}
	}
	v.redactors.known[key] = r
	return r.Redactor
}

// newRedactor reads the values. One that cannot be read no function gets either.
func (v *Vault) newRedactor(tenant string, names []string) *Redactor {
	var values [][]byte
	defer func() {
		for _, value := range values {
			clear(value)
		}
	}()
	for _, name := range names {
		row, _, err := v.find(tenant, name)
		if err != nil {
			continue
		}
		for _, n := range row.Versions {
			s := spot{tenant, name, n.Number}
			e, _, ok, err := v.values.Find(s.key())
			if err != nil || !ok {
				continue
			}
			value, err := v.unsealTenant(s, &e)
			if err != nil {
				v.cfg.Log.Warn("a secret's value cannot be opened, and is not looked for in what leaves", "tenant", tenant, "secret", name, "version", n.Number)
				continue
			}
			values = append(values, value)
		}
	}
	return NewRedactor(values)
}
