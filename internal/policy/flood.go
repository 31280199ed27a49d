package policy

import (
	"sync"
	"time"
)

// The denials of those who are known are recorded one by one up to a burst, and
// then so many a second: each is kept for long, and whoever is denied must not
// decide how fast the log fills.
const (
	principalBurst, principalRate = 100, 1
	tenantBurst, tenantRate       = 400, 5

	maxFloods = 4096 // principals and tenants that are told apart
)

type bucket struct {
	room float64
	at   time.Time
	left int // not recorded since the last one that was
}

func (b *bucket) fill(now time.Time, most, rate float64) {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.room, b.at = min(most, b.room+d*rate), now
	}
}

// floods counts denials by principal and by tenant. The zero value is ready.
type floods struct {
	mu sync.Mutex
	of map[string]*bucket
}

// take reports whether a denial is to be recorded, and how many of the same
// principal before it were not.
func (f *floods) take(principal, tenant string, now time.Time) (left int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.bucket("p "+tenant+" "+principal, now, principalBurst)
	t := f.bucket("t "+tenant, now, tenantBurst)
	p.fill(now, principalBurst, principalRate)
	t.fill(now, tenantBurst, tenantRate)
	if p.room < 1 || t.room < 1 {
		p.left++
		return 0, false
	}
	p.room--
	t.room--
	left, p.left = p.left, 0
	return left, true
}

// lost takes back what was to be recorded and could not be.
func (f *floods) lost(principal, tenant string, now time.Time, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bucket("p "+tenant+" "+principal, now, principalBurst).left += n
}

// bucket returns that of a name; those for whom there is no room share one.
func (f *floods) bucket(name string, now time.Time, most float64) *bucket {
	if b := f.of[name]; b != nil {
		return b
	}
	if f.of == nil {
		f.of = map[string]*bucket{}
	}
	if len(f.of) >= maxFloods {
		for n, b := range f.of {
			if b.left == 0 && now.Sub(b.at) > principalBurst*time.Second {
				delete(f.of, n)
			}
		}
		if len(f.of) >= maxFloods {
			if name = name[:1]; f.of[name] != nil {
				return f.of[name]
			}
		}
	}
	b := &bucket{room: most, at: now}
	f.of[name] = b
	return b
}
