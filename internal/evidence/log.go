// Package evidence keeps what happened: records of decisions, changes,
// outcomes and blocked attempts in a [Log], and the functions' lines in
// [Logs]. Both put many entries into one message of the store, because each
// message costs one sync of the disk.
package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

const (
	maxBatch      = 512 << 10 // bytes of records in one message
	maxQueue      = 16 << 20  // bytes of records that wait for the disk
	gatherFor     = 3 * time.Millisecond
	retryFirst    = 50 * time.Millisecond
	retryLast     = 2 * time.Second
	maxLimit      = 100_000
	publishWithin = 20 * time.Second
	subject       = "records"
	defaultBytes  = 4 << 30
	defaultAge    = 400 * 24 * time.Hour
)

// Config sets up a [Log].
type Config struct {
	Log      *slog.Logger  // takes failures to write; nil discards
	MaxBytes int64         // on disk, after which the oldest records go; 0 means 4 GiB or an eighth of the disk, whichever is less
	MaxAge   time.Duration // after which records go; 0 means 400 days
}

// Log is the record of everything that was decided and done. Nothing in it can
// be changed or deleted, except by age and by size. It is safe for concurrent
// use.
type Log struct {
	stream *store.Stream
	log    *slog.Logger
	ended  chan struct{} // closed when the writer has ended

	mu     sync.Mutex
	queue  []entry
	bytes  int   // of the queue
	urgent int   // entries of the queue that somebody waits for
	busy   int   // bytes that the writer has taken and not written yet
	broken error // why the last write failed; nil after one that did not
	closed bool
	wake   chan struct{} // of capacity 1: there is something to write
}

// entry is a record that waits for the disk.
type entry struct {
	line    []byte // JSON and a line end
	durable chan error
}

// Open opens the log that the store holds.
func Open(ctx context.Context, s *store.Store, cfg Config) (*Log, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = diskShare(s, defaultBytes)
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = defaultAge
	}
	st, err := store.OpenStream(ctx, s, store.StreamConfig{Name: "evidence", MaxBytes: cfg.MaxBytes, MaxAge: cfg.MaxAge, AppendOnly: true})
	if err != nil {
		return nil, err
	}
	l := &Log{stream: st, log: cfg.Log, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	go l.writer()
	return l, nil
}

// diskShare keeps the evidence from filling a small disk, which would stop the
// node: old entries go instead.
func diskShare(s *store.Store, most int64) int64 {
	if disk := s.DiskBytes(); disk > 0 {
		return max(min(most, disk/8), 4<<20)
	}
	return most
}

// Append adds r. It is the only write to the evidence. ID and Time are set if
// they are zero; text is bounded, and what could forge or hide an entry is
// escaped.
//
// A decision that allows and an outcome are taken into a bounded queue that is
// written every few milliseconds; Append returns at once. Everything else is
// durable when Append returns nil. Records that wait at the same time share one
// sync of the disk.
//
// CodeUnavailable means that r is not known to be kept: the queue is full, the
// store does not write, or ctx ended first. What was to be recorded must then
// not be done.
func (l *Log) Append(ctx context.Context, r bawn.Record) error {
	const op = "evidence.append"
	if r.ID == "" {
		r.ID = bawn.NewID()
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	e := entry{line: appendRecord(make([]byte, 0, 512), &r)}
	if !(r.Kind == bawn.KindOutcome || r.Kind == bawn.KindDecision && r.Outcome == "allow") {
		e.durable = make(chan error, 1)
	}
	if err := l.enqueue(e); err != nil {
		return err
	}
	if e.durable == nil {
		return nil
	}
	select {
	case err := <-e.durable:
		return err
	case <-ctx.Done():
		return bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, op, "the request ended before its record was kept")
	}
}

func (l *Log) enqueue(e entry) error {
	const op = "evidence.append"
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return bawn.Errorf(bawn.CodeUnavailable, op, "the node is stopping")
	}
	if l.broken != nil {
		return unkept(l.broken)
	}
	if l.bytes+l.busy+len(e.line) > maxQueue {
		return bawn.Errorf(bawn.CodeUnavailable, op, "evidence comes in faster than the disk takes it").
			WithFix("try again in a moment; if it lasts, the data directory needs a faster disk")
	}
	l.queue = append(l.queue, e)
	l.bytes += len(e.line)
	if e.durable != nil {
		l.urgent++
	}
	// The writer finds the rest by itself; waking it for each would cost more
	// than the record.
	if len(l.queue) == 1 || e.durable != nil || l.bytes >= maxBatch {
		l.poke()
	}
	return nil
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// unkept is the error of a record that cannot be kept. It keeps the store's
// reason and way out.
func unkept(err error) error {
	e := bawn.Wrap(err, bawn.CodeUnavailable, "evidence.append", "what happens cannot be recorded, so it must not happen")
	var cause *bawn.Error
	if errors.As(err, &cause) {
		e.Message, e.Fix = e.Message+": "+cause.Message, cause.Fix
	}
	return e
}

// writer writes batches until the log is closed and the queue is empty.
func (l *Log) writer() {
	defer close(l.ended)
	wait := retryFirst
	for {
		l.mu.Lock()
		n, closed, urgent := len(l.queue), l.closed, l.urgent > 0
		l.mu.Unlock()
		if n == 0 {
			if closed {
				return
			}
			<-l.wake
			continue
		}
		if !urgent && !closed {
			l.gather()
		}
		batch, data := l.take()
		err := l.publish(data)
		l.settle(batch, err)
		if err == nil {
			wait = retryFirst
			continue
		}
		l.log.Error("evidence is not written: every call and change is refused until it is", "error", err)
		if closed {
			return // Close reports it
		}
		time.Sleep(wait)
		wait = min(2*wait, retryLast)
		l.probe()
	}
}

// gather lets more records come, unless somebody waits for one.
func (l *Log) gather() {
	t := time.NewTimer(gatherFor)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return
		case <-l.wake:
			l.mu.Lock()
			urgent := l.closed || l.urgent > 0 || l.bytes >= maxBatch
			l.mu.Unlock()
			if urgent {
				return
			}
		}
	}
}

// take removes the oldest records, as many as one message holds.
func (l *Log) take() ([]entry, []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && (n == 0 || size+len(l.queue[n].line) <= maxBatch) {
		size += len(l.queue[n].line)
		n++
	}
	batch := l.queue[:n:n]
	l.queue = l.queue[n:]
	if len(l.queue) == 0 {
		l.queue = nil // lets the array go
	}
	l.bytes -= size
	l.busy = size
	data := make([]byte, 0, size)
	for _, e := range batch {
		data = append(data, e.line...)
		if e.durable != nil {
			l.urgent--
		}
	}
	return batch, data
}

func (l *Log) publish(data []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), publishWithin)
	defer cancel()
	return l.stream.Publish(ctx, subject, data, 0)
}

// settle answers those who wait. After a failure, the records that nobody
// waits for go back to the front of the queue: they were accepted. The others
// were refused; if the store kept them all the same, the evidence holds an
// attempt that was refused, which is no lie.
func (l *Log) settle(batch []entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = 0
	l.broken = err
	if err != nil {
		// Nobody who waits is held up by a store that does not write.
		waiting := l.queue
		l.queue = slices.DeleteFunc(slices.Clone(batch), func(e entry) bool { return e.durable != nil })
		for _, e := range waiting {
			if e.durable == nil {
				l.queue = append(l.queue, e)
			} else {
				batch = append(batch, e)
			}
		}
		l.bytes, l.urgent = 0, 0
		for _, e := range l.queue {
			l.bytes += len(e.line)
		}
		err = unkept(err)
	}
	for _, e := range batch {
		if e.durable != nil {
			e.durable <- err
		}
	}
}

// probe lets the next record try again when none is left to try with.
func (l *Log) probe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.broken = nil
	}
}

// Close writes what is queued and ends. An error says how much was not written.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.poke()
	l.mu.Unlock()
	<-l.ended
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.queue); n > 0 {
		return bawn.Wrap(l.broken, bawn.CodeUnavailable, "evidence.close", "%d records were not written", n)
	}
	return nil
}

// Query selects records. Zero fields select everything.
type Query struct {
	Tenant, Function, Invocation string
	Kinds                        []bawn.RecordKind
	Since                        time.Time
	Limit                        int  // only the newest so many of those that are there
	Follow                       bool // go on with new ones until ctx ends
}

func (q *Query) match(r *bawn.Record) bool {
	return (q.Tenant == "" || r.Tenant == q.Tenant) && (q.Function == "" || r.Function == q.Function) &&
		(q.Invocation == "" || r.Invocation == q.Invocation) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) && !r.Time.Before(q.Since)
}

// Read calls fn for each record that q selects, oldest first. It returns nil
// at the end; with Follow it returns ctx.Err() once ctx ends. An error of fn
// ends it and is returned.
func (l *Log) Read(ctx context.Context, q Query, fn func(bawn.Record) error) error {
	// A record is stored after its time, so no earlier message can hold one.
	cfg := store.ReadConfig{Since: q.Since, Follow: q.Follow}
	return readEntries(ctx, l.stream, cfg, q.Limit, needles(q.Tenant, q.Function, q.Invocation), q.match, fn)
}

// needles are texts that a line must hold to be worth decoding. All of the
// three are names or ids, so JSON does not escape them.
func needles(tenant, function, invocation string) [][]byte {
	var all [][]byte
	for _, f := range [][2]string{{"tenant", tenant}, {"function", function}, {"invocation", invocation}} {
		if b, err := json.Marshal(f[1]); err == nil && f[1] != "" {
			all = append(all, append([]byte(`"`+f[0]+`":`), b...))
		}
	}
	return all
}

// readEntries reads lines of JSON, many to a message.
func readEntries[T any](ctx context.Context, st *store.Stream, cfg store.ReadConfig, limit int, needles [][]byte, match func(*T) bool, fn func(T) error) error {
	decode := func(m store.Message, yield func(T) error) error {
		for line := range bytes.Lines(m.Data) {
			if slices.ContainsFunc(needles, func(n []byte) bool { return !bytes.Contains(line, n) }) {
				continue
			}
			var v T
			// The store verifies what it keeps; a line that cannot be read is
			// from a newer Bawn, and must not hide the rest.
			if json.Unmarshal(line, &v) != nil || !match(&v) {
				continue
			}
			if err := yield(v); err != nil {
				return err
			}
		}
		return nil
	}
	limit = min(limit, maxLimit)
	if limit <= 0 {
		return st.Read(ctx, cfg, func(m store.Message) error { return decode(m, fn) })
	}
	// Newest first, message by message, until there are enough.
	follow, err := st.LastSeq(ctx)
	if err != nil {
		return err
	}
	var newest []T
	for m, err := range st.Backward(ctx, cfg) {
		if err != nil {
			return err
		}
		follow = max(follow, m.Seq)
		var here []T
		decode(m, func(v T) error { here = append(here, v); return nil })
		for _, v := range slices.Backward(here) {
			if len(newest) < limit {
				newest = append(newest, v)
			}
		}
		if len(newest) == limit {
			break
		}
	}
	for _, v := range slices.Backward(newest) {
		if err := fn(v); err != nil {
			return err
		}
	}
	if !cfg.Follow {
		return nil
	}
	cfg.After, cfg.Since = follow, time.Time{}
	return st.Read(ctx, cfg, func(m store.Message) error { return decode(m, fn) })
}
