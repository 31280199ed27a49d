package waf

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"bawn.dev/bawn"
)

// maxHeads is how many heads of requests are remembered, at 32 bytes each.
const maxHeads = 4096

// heads remembers requests in whose head no rule found anything, all else being
// nothing that the engine is asked about: it would say so again. Verdicts of anything
// else are not remembered, since scores of what is found in several places add up.
// The zero value is ready; it is safe for concurrent use.
type heads struct {
	mu    sync.Mutex
	clear map[[sha256.Size]byte]struct{}
}

// has reports whether the head with a key is clear.
func (h *heads) has(key [sha256.Size]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.clear[key]
	return ok
}

// add remembers that it is. When there is no room any one goes, so that nobody can
// choose whose.
func (h *heads) add(key [sha256.Size]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clear == nil {
		h.clear = make(map[[sha256.Size]byte]struct{})
	}
	for old := range h.clear {
		if len(h.clear) < maxHeads {
			break
		}
		delete(h.clear, old)
	}
	h.clear[key] = struct{}{}
}

// headKey is the digest of all that the engine reads of a question without a body and
// without leaves. Of a length only that it is one counts: no rule looks at its
// digits, which a test holds.
func headKey(q *Question) [sha256.Size]byte {
	b := make([]byte, 0, 1024)
	add := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.AppendUvarint(b, uint64(q.Level))
	b = binary.AppendUvarint(b, uint64(len(q.Exclude)))
	for _, id := range q.Exclude {
		b = binary.AppendUvarint(b, uint64(id))
	}
	// Who calls from this host is told apart by a rule.
	if from, err := netip.ParseAddr(q.Source); err != nil || from.Unmap().IsLoopback() {
		add(q.Source)
	} else {
		add("elsewhere")
	}
	r := q.Request
	for _, s := range []string{r.Method, r.Proto, r.Host, r.Path, r.Query} {
		add(s)
	}
	if isChunked(r) {
		add("chunked")
	} else {
		add("")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		values := r.Header[name]
		add(name)
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, v := range values {
			if name == "Content-Length" && isLength(v) {
				v = "1"
			}
			add(v)
		}
	}
	return sha256.Sum256(b)
}

// isLength reports whether s is the length of a body, as everybody writes one.
func isLength(s string) bool {
	return len(s) > 0 && len(s) < 8 && s[0] != '0' && strings.Trim(s, "0123456789") == ""
}

// isChunked reports whether the request came in chunks, which net/http keeps to
// itself.
func isChunked(r *bawn.Request) bool {
	return len(r.Body) > 0 && r.Header["Content-Length"] == nil && strings.HasPrefix(r.Proto, "HTTP/1.")
}
