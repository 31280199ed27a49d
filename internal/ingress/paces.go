package ingress

import (
	"sync"
	"time"
)

const maxPaces = 4096 // functions that are told apart

// paces lets through so many at once and so many a second, for each name. The zero
// value is ready; it is safe for concurrent use.
type paces struct {
	mu sync.Mutex
	of map[string]*paceOf
}

type paceOf struct {
	room float64
	at   time.Time
	left int // since the last one that was let through
}

// take reports whether one is let through, and how many of the name before it were
// not. Names for which there is no room share what they have.
func (p *paces) take(name string, now time.Time, burst, rate float64) (left int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.of[name]
	if b == nil {
		if p.of == nil {
			p.of = map[string]*paceOf{}
		}
		if len(p.of) >= maxPaces {
			for n, o := range p.of {
				if o.left == 0 && now.Sub(o.at).Seconds()*rate > burst {
					delete(p.of, n)
				}
			}
		}
		if len(p.of) >= maxPaces {
			name, b = "", p.of[""]
		}
		if b == nil {
			b = &paceOf{room: burst, at: now}
			p.of[name] = b
		}
	}
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.room, b.at = min(burst, b.room+d*rate), now
	}
	if b.room < 1 {
		b.left++
		return 0, false
	}
	b.room--
	left, b.left = b.left, 0
	return left, true
}
