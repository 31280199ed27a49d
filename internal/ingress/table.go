package ingress

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
)

// An interval is a rate as the buckets count it. A bucket is one number: the time at
// which it will be full again. It lets a call in if, that call added, this is no
// more than window ahead; one that lies in the past is of a full bucket, and the
// same as none.
type interval struct {
	each   int64 // nanoseconds that a call costs
	window int64 // nanoseconds that all calls at once cost
}

func intervalOf(r *bawn.Rate) interval {
	each := max(int64(r.Per)/int64(r.Calls), 1)
	burst := r.Burst
	if burst == 0 {
		burst = r.Calls
	}
	return interval{each, each * int64(burst)}
}

// take takes a call out of the bucket full. It returns the bucket as it is then
// and, if there was no call in it, how long until there is one.
func (i interval) take(full, now int64) (after int64, wait time.Duration) {
	after = max(full, now) + i.each
	if over := after - now - i.window; over > 0 {
		return full, time.Duration(over)
	}
	return after, 0
}

// room is how many calls are in the bucket.
func (i interval) room(full, now int64) int {
	return int((i.window - max(full-now, 0)) / i.each)
}

// A table holds the buckets of those who are told apart: addresses, callers. Its
// size never changes, whoever calls. A bucket that is full again needs no place.
// Where a place is wanted and all that it could be are taken, the newcomer takes
// that of the bucket nearest to full, and goes on with what that one lacked: by
// being many nobody gets more than the places give. Safe for concurrent use.
type table struct {
	seed  maphash.Seed
	sets  int // a power of two
	made  atomic.Pointer[[]set]
	first sync.Mutex
}

// ways is how many places there are for a key.
const ways = 8

type set struct {
	mu   sync.Mutex
	keys [ways]uint64
	full [ways]int64
}

func newTable(sets int) *table { return &table{seed: maphash.MakeSeed(), sets: sets} }

// set returns where key belongs. The first one to ask makes the table: without a
// limit there is none.
func (t *table) set(key uint64) *set {
	all := t.made.Load()
	if all == nil {
		t.first.Lock()
		if all = t.made.Load(); all == nil {
			made := make([]set, t.sets)
			all = &made
			t.made.Store(all)
		}
		t.first.Unlock()
	}
	return &(*all)[key&uint64(t.sets-1)]
}

// take takes a call out of the bucket of key. full is the bucket as it is then.
func (t *table) take(key uint64, i interval, now int64) (full int64, wait time.Duration) {
	s := t.set(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	at, least := -1, 0
	for w, k := range s.keys {
		if k == key {
			at = w
			break
		}
		if s.full[w] < s.full[least] {
			least = w
		}
	}
	var had int64
	if at >= 0 {
		had = s.full[at]
	} else {
		// What another rate lacked empties this bucket, and no more than that.
		at, had = least, min(s.full[least], now+i.window)
	}
	full, wait = i.take(had, now)
	if wait == 0 {
		s.keys[at], s.full[at] = key, full
	}
	return full, wait
}

// give puts a call back.
func (t *table) give(key uint64, i interval) {
	s := t.set(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, k := range s.keys {
		if k == key {
			s.full[w] -= i.each
		}
	}
}

// address returns what an address is told apart by.
func (t *table) address(source string) uint64 {
	a, err := netip.ParseAddr(source)
	if err != nil {
		return t.hash(source)
	}
	return t.network(a.Unmap())
}

// network returns what an address, unmapped, is told apart by: of version 6 its
// network of 64 bits, which one host has for itself.
func (t *table) network(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return maphash.Bytes(t.seed, b[:])
	}
	b := a.As16()
	return maphash.Bytes(t.seed, b[:8])
}

// caller returns what a caller is told apart by: a function whatever its version,
// and who has no credential by the address.
func (t *table) caller(c *bawn.Call) uint64 {
	p := &c.Principal
	switch {
	case c.Caller != nil:
		return t.hash("function", c.Caller.Tenant, c.Caller.Function)
	case p.Kind == anonymous || p.Kind == "":
		return t.address(c.Source)
	}
	return t.hash(p.Kind, p.Tenant, p.Issuer, p.ID)
}

func (t *table) hash(parts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	for _, p := range parts {
		h.WriteString(p)
		h.WriteByte(0)
	}
	return h.Sum64()
}

// mix makes one key of two.
func mix(a, b uint64) uint64 { return (a^b>>29)*0x9e3779b97f4a7c15 ^ b }
