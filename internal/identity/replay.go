package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

// How long signed requests are remembered. A request may be accepted from
// signWindow before its date to signWindow after it, so one that was accepted in
// a generation cannot be accepted again once the next one is over.
const (
	generation     = 2 * signWindow
	maxRemembered  = 2 << 20 // signed requests of one generation
	maxOfOneKey    = maxRemembered / 4
	deliveries     = 24 * time.Hour // a generation of webhooks that are not signed with a time
	replayRecord   = 32             // bytes: 16 of the nonce, 8 of the date, 8 to check them
	replayPrefix   = "signed-"
	webhookPrefix  = "webhook-"
	commitDeadline = 10 * time.Second // for a request to wait for its record
)

type nonce [16]byte

// replay remembers the signed requests that were accepted, in memory and in one
// file for each generation: DATA/identity/signed-N. A request is written and
// synced before it is accepted, many at a time.
type replay struct {
	dir    string
	prefix string        // of its files
	span   time.Duration // of a generation
	window time.Duration // by which a date may differ from the clock
	now    func() time.Time
	failed func(error) // hears why the file cannot be written

	mu      sync.Mutex
	current int64 // the number of the newest generation; never goes back
	seen    map[nonce]bool
	before  map[nonce]bool // of the generation before
	ofKey   map[string]int // in the newest
	floor   time.Time      // what is dated until then may have been forgotten
	pending []*group       // what is not written yet, one for each generation; never empty
	closed  bool
	wake    chan struct{}
	gone    chan struct{}

	file *os.File // of the newest generation; only the writer uses it
	of   int64    // which that is
}

// group is what is written together.
type group struct {
	generation int64
	records    []byte
	done       chan struct{}
	err        error // valid once done is closed
}

func newGroup(g int64) *group { return &group{generation: g, done: make(chan struct{})} }

// openReplay reads what was remembered. A record at the end of a file that is not
// whole belongs to a request that was never accepted. Any other damage means that
// accepted requests may be forgotten: then what was signed until now is refused.
func openReplay(dir string, now func() time.Time, failed func(error)) (*replay, error) {
	return openMemory(dir, replayPrefix, generation, signWindow, now, failed)
}

// openMemory opens one of requests that may be dated by window before or after the
// clock, each for at least span.
func openMemory(dir, prefix string, span, window time.Duration, now func() time.Time, failed func(error)) (*replay, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "identity.replay", "the record of signed requests cannot be kept").
			WithFix("let the user of the node write to %s", dir)
	}
	r := &replay{
		dir: dir, prefix: prefix, span: span, window: window, now: now, failed: failed, seen: map[nonce]bool{}, before: map[nonce]bool{}, ofKey: map[string]int{},
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	files, err := r.files()
	if err != nil {
		return nil, err
	}
	r.current = now().Unix() / int64(span/time.Second)
	for g := range files {
		r.current = max(r.current, g) // a clock that went back brings no request back
	}
	for g, name := range files {
		if g < r.current-1 {
			if err := os.Remove(name); err != nil {
				return nil, err
			}
			continue
		}
		into := r.seen
		if g < r.current {
			into = r.before
		}
		whole, err := readReplay(name, into)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeUnavailable, "identity.replay", "the record of signed requests cannot be read").
				WithFix("let the user of the node read %s", name)
		}
		if !whole {
			// What has no date could have been accepted in all that is remembered.
			r.floor = now().Add(cmp.Or(window, span))
			failed(fmt.Errorf("%s is damaged: signed requests are refused until %s", name, r.floor.Add(window).UTC().Format(time.RFC3339)))
		}
	}
	if ahead := time.Unix(r.current*int64(span/time.Second), 0); ahead.After(now()) {
		failed(fmt.Errorf("signed requests were accepted at %s, which is still to come: none is before; set the clock right, or remove %s once nothing signed then can be sent again", ahead.UTC().Format(time.RFC3339), r.name(r.current)))
	}
	r.pending = []*group{newGroup(r.current)}
	go r.write()
	return r, nil
}

// files returns the files of the generations by their number.
func (r *replay) files() (map[int64]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	files := map[int64]string{}
	for _, e := range entries {
		if text, ok := strings.CutPrefix(e.Name(), r.prefix); ok {
			if g, err := strconv.ParseInt(text, 10, 64); err == nil && g >= 0 {
				files[g] = filepath.Join(r.dir, e.Name())
			}
		}
	}
	return files, nil
}

func (r *replay) name(g int64) string {
	return filepath.Join(r.dir, r.prefix+strconv.FormatInt(g, 10))
}

// readReplay reads one file into seen, and cuts off a record at its end that is
// not whole. It reports whether all before that was as it was written.
func readReplay(name string, seen map[nonce]bool) (whole bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*maxRemembered*replayRecord+1))
	if err != nil {
		return false, err
	}
	n, whole := parseReplay(data, seen)
	if n == len(data) {
		return whole, nil
	}
	if err := f.Truncate(int64(n)); err != nil {
		return false, err
	}
	return whole, f.Sync()
}

// parseReplay adds the nonces of data to seen. It returns how many bytes whole
// records take, and whether nothing but the end of the last one is missing.
func parseReplay(data []byte, seen map[nonce]bool) (n int, whole bool) {
	whole = true
	for ; len(data)-n >= replayRecord; n += replayRecord {
		rec := data[n : n+replayRecord]
		if !bytes.Equal(check(rec[:24]), rec[24:]) {
			// What the disk had room for and never got is zeros, to the end.
			if len(bytes.Trim(data[n:], "\x00")) == 0 {
				return n, whole
			}
			whole = false
			continue
		}
		seen[nonce(rec[:16])] = true
	}
	if len(data) > 2*maxRemembered*replayRecord {
		whole = false
	}
	return n, whole
}

func check(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:8]
}

// accept remembers a signed request, and fails if that was done before. It returns
// once the request is on disk: what then crashes knows it still.
func (r *replay) accept(ctx context.Context, key string, signature [sha256.Size]byte, at time.Time) error {
	claim, err := r.reserve(key, at, nonceOf(key+" "+string(signature[:])))
	if err != nil {
		return err
	}
	return claim.Take(ctx)
}

func nonceOf(s string) (id nonce) {
	sum := sha256.Sum256([]byte(s))
	copy(id[:], sum[:])
	return id
}

// A Claim is something that is accepted once, and that nobody else gets while it
// is held. It is not safe for concurrent use.
type Claim struct {
	r    *replay
	key  string
	at   time.Time
	ids  []nonce
	over bool
}

// reserve holds ids, or fails if one of them was accepted before or is held.
func (r *replay) reserve(key string, at time.Time, ids ...nonce) (*Claim, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, unrecorded(errors.New("it is closed"))
	}
	r.turn()
	// What was accepted earlier than the generation before is forgotten, and was
	// dated at most so much later.
	forgotten := time.Unix((r.current-1)*int64(r.span/time.Second), 0).Add(r.window)
	switch {
	case at.Before(forgotten), !at.After(r.floor):
		return nil, badSignature(": its date is before what the node remembers")
	case slices.ContainsFunc(ids, func(id nonce) bool { return r.seen[id] || r.before[id] }):
		return nil, bawn.Wrap(bawn.SignatureWrong, bawn.CodeUnauthenticated, "identity.replay", "the signed request was used already").
			WithFix("sign each request anew; two that are alike in the same second need a header that tells them apart, and that is signed")
	case len(r.seen) >= maxRemembered || r.ofKey[key] >= maxOfOneKey:
		return nil, bawn.Errorf(bawn.CodeThrottled, "identity.replay", "too many signed requests came in a short time").WithFix("send an API key as a bearer instead: it need not be remembered")
	}
	for _, id := range ids {
		r.seen[id] = true
		r.ofKey[key]++
	}
	return &Claim{r: r, key: key, at: at, ids: ids}, nil
}

// Drop lets go of what was not taken.
func (c *Claim) Drop() {
	if c.over {
		return
	}
	c.over = true
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range c.ids {
		if r.seen[id] {
			r.ofKey[c.key]--
		}
		delete(r.seen, id)
		delete(r.before, id)
	}
}

// Take accepts what is held, for good. It returns once that is on disk: what then
// crashes knows it still. After an error it is not free again: whether it is on
// disk is not known.
func (c *Claim) Take(ctx context.Context) error {
	c.over = true
	r := c.r
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return unrecorded(errors.New("it is closed"))
	}
	r.turn()
	g := r.pending[len(r.pending)-1]
	for _, id := range c.ids {
		r.seen[id] = true // a generation may have begun since
		g.records = append(g.records, id[:]...)
		g.records = binary.BigEndian.AppendUint64(g.records, uint64(c.at.Unix()))
		g.records = append(g.records, check(g.records[len(g.records)-24:])...)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	late := time.NewTimer(commitDeadline)
	defer late.Stop()
	select {
	case <-g.done:
		if g.err != nil {
			return unrecorded(g.err)
		}
		return nil
	case <-ctx.Done():
		return unrecorded(ctx.Err())
	case <-late.C:
		return unrecorded(errors.New("the disk is too slow"))
	}
}

func unrecorded(err error) error {
	return bawn.Wrap(err, bawn.CodeUnavailable, "identity.replay", "that the signed request is used now could not be recorded").
		WithFix("sign it anew and try again")
}

// turn begins a new generation if it is time. The caller holds mu.
func (r *replay) turn() {
	g := r.now().Unix() / int64(r.span/time.Second)
	if g <= r.current {
		return
	}
	if r.before = r.seen; g > r.current+1 {
		r.before = map[nonce]bool{}
	}
	r.current, r.seen, r.ofKey = g, map[nonce]bool{}, map[string]int{}
	r.pending = append(r.pending, newGroup(g))
}

// write writes groups one after the other, until the replay is closed.
func (r *replay) write() {
	defer close(r.gone)
	for range r.wake {
		r.mu.Lock()
		groups, closed := r.pending, r.closed
		r.pending = []*group{newGroup(r.current)}
		r.mu.Unlock()
		for _, g := range groups {
			if len(g.records) == 0 {
				continue
			}
			if g.err = r.commit(g); g.err != nil {
				r.failed(g.err)
			}
			close(g.done)
		}
		if closed {
			break
		}
	}
	if r.file != nil {
		r.file.Close()
	}
}

// commit puts a group on disk.
func (r *replay) commit(g *group) error {
	if r.file == nil || r.of != g.generation {
		if err := r.begin(g.generation); err != nil {
			return err
		}
	}
	if _, err := r.file.Write(g.records); err != nil {
		// Part of it may be there. What follows must not be read as its rest.
		r.file.Close()
		r.file = nil
		return err
	}
	return r.file.Sync()
}

// begin opens the file of a generation, and removes those that are over.
func (r *replay) begin(g int64) error {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	f, err := os.OpenFile(r.name(g), os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil && end%replayRecord != 0 {
		end -= end % replayRecord
		if err = f.Truncate(end); err == nil {
			_, err = f.Seek(end, io.SeekStart)
		}
	}
	if err == nil {
		err = syncDir(r.dir)
	}
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.of = f, g
	files, err := r.files()
	if err != nil {
		return err
	}
	for old, name := range files {
		if old < g-1 {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// close writes what waits, and ends.
func (r *replay) close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	<-r.gone
	return nil
}
