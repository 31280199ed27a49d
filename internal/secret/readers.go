package secret

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Reader is who has used which version of a secret.
type Reader struct {
	Function string    `json:"function"`
	Version  int       `json:"version" doc:"of the function"`
	Instance string    `json:"instance,omitempty" doc:"a warm instance that may still hold the value; empty for those that have ended"`
	Secret   int       `json:"secret" doc:"the version of the secret"`
	For      Purpose   `json:"for" doc:"read, file, inject or database"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Count    int64     `json:"count"`
}

// maxReaders bounds the readers that are kept of one secret: beyond it who has not
// read for the longest time is forgotten.
const maxReaders = 1000

// readers are kept in memory, since the start of the node. The zero value is ready. It
// is safe for concurrent use.
type readers struct {
	mu        sync.Mutex
	secrets   map[string]map[readerKey]*Reader // by tenant.name
	instances map[string][]string              // the secrets that an instance has read
}

type readerKey struct {
	function, instance string
	version, secret    int
	purpose            Purpose
}

func (r *Reader) key() readerKey {
	return readerKey{r.Function, r.Instance, r.Version, r.Secret, r.For}
}

// add counts one use.
func (x *readers) add(secret string, r Reader) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.Last, r.Count = r.First, 1
	x.merge(secret, r)
}

func (x *readers) merge(secret string, r Reader) {
	if x.secrets == nil {
		x.secrets, x.instances = map[string]map[readerKey]*Reader{}, map[string][]string{}
	}
	all := x.secrets[secret]
	if all == nil {
		all = map[readerKey]*Reader{}
		x.secrets[secret] = all
	}
	if old := all[r.key()]; old != nil {
		old.Count += r.Count
		if r.Last.After(old.Last) {
			old.Last = r.Last
		}
		if r.First.Before(old.First) {
			old.First = r.First
		}
		return
	}
	if len(all) >= maxReaders {
		oldest := readerKey{}
		var at time.Time
		for k, o := range all {
			if at.IsZero() || o.Last.Before(at) {
				oldest, at = k, o.Last
			}
		}
		delete(all, oldest)
	}
	all[r.key()] = &r
	if r.Instance != "" && !slices.Contains(x.instances[r.Instance], secret) {
		x.instances[r.Instance] = append(x.instances[r.Instance], secret)
	}
}

// gone says that an instance has ended: what it read counts for its function.
func (x *readers) gone(instance string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, secret := range x.instances[instance] {
		for k, r := range x.secrets[secret] {
			if k.instance == instance {
				delete(x.secrets[secret], k)
				r.Instance = ""
				x.merge(secret, *r)
			}
		}
	}
	delete(x.instances, instance)
}

// forget drops what is known of a secret.
func (x *readers) forget(secret string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.secrets, secret)
}

// leave drops what is known of a function that was removed.
func (x *readers) leave(tenant, function string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for secret, all := range x.secrets {
		if !strings.HasPrefix(secret, tenant+".") {
			continue
		}
		for k := range all {
			if k.function == function {
				delete(all, k)
			}
		}
	}
}

// Gone says that an instance has ended, and with it what it held.
func (v *Vault) Gone(instance string) { v.readers.gone(instance) }

// Readers returns who has used a secret since the node started, newest first.
func (v *Vault) Readers(tenant, name string) []Reader {
	x := &v.readers
	x.mu.Lock()
	defer x.mu.Unlock()
	all := []Reader{}
	for _, r := range x.secrets[secretKey(tenant, name)] {
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b Reader) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Function, b.Function), b.Version-a.Version, strings.Compare(a.Instance, b.Instance), b.Secret-a.Secret, strings.Compare(string(a.For), string(b.For)))
	})
	return all
}
