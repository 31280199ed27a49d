// Package evidence keeps what happened: records of decisions, changes,
// outcomes and blocked attempts in a [Log], and the functions' lines in
// [Logs]. The records are entries of a Merkle log on plain files, see package
// tlog; the lines are messages of the store, many to one, because each message
// costs one sync of the disk.
package evidence

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence/tlog"
	"bawn.dev/bawn/internal/store"
)

const (
	maxBatch      = 512 << 10 // bytes of lines in one message
	maxLimit      = 100_000
	publishWithin = 20 * time.Second
	defaultBytes  = 4 << 30
	defaultAge    = 400 * 24 * time.Hour
	defaultMinAge = 24 * time.Hour
	pruneEvery    = 10 * time.Minute
)

// Config sets up a [Log].
type Config struct {
	Dir      string        // the log's folder, made if missing
	Origin   string        // the log's name in its checkpoints; "bawn" if empty
	Head     string        // a file outside of Dir for the newest checkpoint: see [tlog.Config]; empty for none
	Key      []byte        // seed of the Ed25519 key that signs them: 32 bytes
	Log      *slog.Logger  // takes failures to write; nil discards
	MaxBytes int64         // on disk, after which the oldest records go; 0 means 4 GiB or an eighth of the disk, whichever is less
	MaxAge   time.Duration // after which records go; 0 means 400 days
	MinAge   time.Duration // before which none goes, whatever the size; 0 means a day, less than 0 none

	// Keep is the action of those records of the node of which the newest one is
	// appended anew before anything is pruned; it may be empty.
	Keep string

	Witnesses []tlog.WitnessURL // who is shown every checkpoint
	// Dial connects to them; nil means a plain [net.Dialer].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Redact takes out of a record what no record may hold, such as the values of
	// secrets; control E5. It must be quick, and must not write into the detail that
	// it is given. Nil takes nothing out.
	Redact func(r *bawn.Record)

	// Before holds the records of a Bawn that kept them in the store; they are
	// taken over once. Nil means that there are none.
	Before *store.Store
}

// Log is the record of everything that was decided and done. Nothing in it can
// be changed or deleted, except by age and by size, and anybody with its public
// key can verify that. It is safe for concurrent use.
type Log struct {
	*tlog.Log
	cfg  Config
	stop context.CancelFunc
	done sync.WaitGroup
	cut  atomic.Int64 // records that lost text

	watched witnesses
}

// Truncated returns how many records lost text because it was too long, since
// the log was opened. Each holds the length and the hash of what it lost.
func (l *Log) Truncated() int64 { return l.cut.Load() }

// Open opens the log. If the run before did not end, the first record says so,
// and what of it may be lost.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Origin = cmp.Or(cfg.Origin, "bawn")
	cfg.MaxAge = cmp.Or(cfg.MaxAge, defaultAge)
	cfg.MinAge = cmp.Or(cfg.MinAge, defaultMinAge)
	t, err := tlog.Open(tlog.Config{Dir: cfg.Dir, Origin: cfg.Origin, Seed: cfg.Key, Head: cfg.Head, Log: cfg.Log, Dial: cfg.Dial})
	if err != nil {
		return nil, err
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = diskShare(diskBytes(cfg.Dir), defaultBytes)
	}
	l := &Log{Log: t, cfg: cfg}
	if cfg.Before != nil {
		if err := l.takeOver(ctx); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	if err := l.recovered(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	background, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() { l.pruner(background) })
	if len(cfg.Witnesses) > 0 {
		for _, w := range cfg.Witnesses {
			l.watched.states = append(l.watched.states, WitnessState{Name: w.Key.Name(), URL: w.URL, Since: time.Now(), OK: true})
		}
		l.done.Go(func() { l.watch(background) })
	}
	return l, nil
}

func diskBytes(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Blocks) * int64(st.Bsize)
}

// diskShare keeps the evidence from filling a small disk, which would stop the
// node: old entries go instead.
func diskShare(disk, most int64) int64 {
	if disk > 0 {
		return max(min(most, disk/8), 4<<20)
	}
	return most
}

// recovered records that the run before did not end, and what came of it.
func (l *Log) recovered(ctx context.Context) error {
	r := l.Recovery()
	if r.Clean {
		return nil
	}
	rec := bawn.Record{Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Action: "audit.recover", Outcome: "ok",
		Reason: "the run before did not end in order; every record that was acknowledged is here",
		Detail: map[string]string{"checkpoint": strconv.FormatInt(r.Durable, 10), "replayed": strconv.FormatInt(r.Replayed, 10), "torn": strconv.FormatInt(r.Torn, 10)}}
	switch {
	case r.Unmarked:
		rec.Outcome, rec.Reason = "error", "the run before left neither its spool nor the mark of an orderly end: every record from this place on that it made after its last checkpoint is lost, however many those were"
		rec.Detail["from"] = strconv.FormatInt(r.Durable, 10)
	case r.Missing > 0:
		rec.Outcome, rec.Reason = "error", "the run before did not end in order, and its spool is damaged: records are lost here"
		rec.Detail["lost"] = strconv.FormatInt(r.Missing, 10)
	case r.Rebooted:
		rec.Outcome = "error"
		rec.Reason = "the machine stopped while the node ran: here is a gap of at most a few milliseconds of allowed calls and outcomes; refusals and changes were on the disk"
	}
	return l.Append(ctx, rec)
}

// Append adds r. It is the only write to the evidence. ID and Time are set if
// they are zero; text is bounded, and what could forge or hide an entry is
// escaped.
//
// A decision that allows and an outcome are handed to the kernel: they survive
// the end of the process at once, and that of the machine a few milliseconds
// later. Everything else is on the disk when Append returns nil. Records that
// wait at the same time share one sync.
//
// CodeUnavailable means that r is not known to be kept: the disk is full or
// fails, or ctx ended first. What was to be recorded must then not be done.
func (l *Log) Append(ctx context.Context, r bawn.Record) error {
	if r.ID == "" {
		r.ID = bawn.NewID()
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	r.Index = 0 // the log gives it
	if l.cfg.Redact != nil {
		l.cfg.Redact(&r)
	}
	line := encode(&r)
	if bytes.Contains(line, []byte(cutMark)) {
		l.cut.Add(1)
	}
	var err error
	if r.Kind == bawn.KindOutcome || r.Kind == bawn.KindDecision && r.Outcome == "allow" {
		_, err = l.Log.Append(line)
	} else {
		_, err = l.Log.AppendDurable(ctx, line)
	}
	if err != nil {
		return unkept(err)
	}
	return nil
}

// unkept is the error of a record that cannot be kept. It keeps the reason and
// the way out.
func unkept(err error) error {
	e := bawn.Wrap(err, bawn.CodeUnavailable, "evidence.append", "what happens cannot be recorded, so it must not happen")
	var cause *bawn.Error
	if errors.As(err, &cause) {
		e.Message, e.Fix = e.Message+": "+cause.Message, cause.Fix
	}
	return e
}

// Close puts everything under a last checkpoint and ends.
func (l *Log) Close() error {
	l.stop()
	l.done.Wait()
	return l.Log.Close()
}

// pruner lets the oldest records go, by age and by size.
func (l *Log) pruner(ctx context.Context) {
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := l.prune(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("old records cannot be removed", "error", err)
		}
	}
}

// prune removes what is over the limits, after a record that says so: who
// verifies can tell it from a deletion.
func (l *Log) prune(ctx context.Context) error {
	first := l.First()
	end := l.Checkpoint().Size / tlog.Bundle * tlog.Bundle
	var sizes []int64
	var total int64
	oldest := time.Now().Add(-l.cfg.MaxAge)
	floor := time.Now().Add(-l.cfg.MinAge)
	young := end  // the first that is too young to go by size
	keep := first // the first that is young enough
	for i := first; i < end; i += tlog.Bundle {
		stored, size := l.Stored(i)
		sizes = append(sizes, size)
		if young == end && l.cfg.MinAge > 0 && stored.After(floor) {
			young = i
		}
		if total += size; stored.Before(oldest) {
			keep = i + tlog.Bundle
		}
	}
	for n, i := 0, first; i < end && (total > l.cfg.MaxBytes && i < young || i < keep); n, i = n+1, i+tlog.Bundle {
		total -= sizes[n]
		keep = max(keep, i+tlog.Bundle)
	}
	if keep == first {
		return nil
	}
	// Nobody can wash away what the state is held against.
	if l.cfg.Keep != "" {
		err := l.Read(ctx, Query{Kinds: []bawn.RecordKind{bawn.KindNode}, Action: l.cfg.Keep, Limit: 1}, func(r bawn.Record) error {
			r.ID, r.Time = "", time.Time{}
			return l.Append(ctx, r)
		})
		if err != nil {
			return err
		}
	}
	before := strconv.FormatInt(keep, 10)
	err := l.Append(ctx, bawn.Record{Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Action: tlog.PruneAction, Outcome: "ok",
		Reason: "records over the limits of age or size go; their hashes stay", Detail: map[string]string{tlog.PruneBefore: before}})
	if err == nil {
		_, err = l.Publish(ctx)
	}
	if err == nil {
		err = l.Prune(ctx, keep)
	}
	return err
}

// importedMark is the detail of a record that was taken over.
const importedMark = "imported"

// takeOver appends the records that an older Bawn kept in the store, in their
// order and each once, with a mark. It leaves those in the store, where they go
// by age.
func (l *Log) takeOver(ctx context.Context) error {
	done := filepath.Join(l.cfg.Dir, "imported")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	there, err := l.cfg.Before.HasStream("evidence")
	if err != nil {
		return err
	}
	n := int64(0)
	if there {
		st, err := store.OpenStream(ctx, l.cfg.Before, store.StreamConfig{Name: "evidence", MaxBytes: diskShare(l.cfg.Before.DiskBytes(), defaultBytes), MaxAge: defaultAge, AppendOnly: true})
		if err != nil {
			return err
		}
		// What an import that did not end has taken over is all there is yet.
		have := l.Next()
		err = st.Read(ctx, store.ReadConfig{}, func(m store.Message) error {
			for line := range bytes.Lines(m.Data) {
				if n++; n <= have {
					continue
				}
				var r bawn.Record
				if json.Unmarshal(line, &r) != nil {
					r = bawn.Record{ID: bawn.NewID(), Time: m.Time, Kind: bawn.KindNode, Action: "audit.import", Outcome: "error",
						Reason: "a record of the store cannot be read", Detail: map[string]string{"line": string(line)}}
				}
				if r.Detail == nil {
					r.Detail = map[string]string{}
				}
				r.Detail[importedMark] = "true"
				if _, err := l.Log.Append(encode(&r)); err != nil {
					return unkept(err)
				}
				if n%10_000 == 0 {
					if _, err := l.Publish(ctx); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if n > 0 {
		err := l.Append(ctx, bawn.Record{Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Action: "audit.import", Outcome: "ok",
			Reason: "the records of an older Bawn were taken over; from here on they are appended as they are made", Detail: map[string]string{"records": strconv.FormatInt(n, 10)}})
		if err != nil {
			return err
		}
		if _, err := l.Publish(ctx); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(done, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err == nil {
		_, err = f.WriteString(strconv.FormatInt(n, 10) + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "evidence.open", "the audit log's folder cannot be written to")
	}
	return nil
}

// Query selects records. Zero fields select everything.
type Query struct {
	Tenant, Function, Invocation string
	Action                       string
	Kinds                        []bawn.RecordKind
	Since                        time.Time
	Limit                        int  // only the newest so many of those that are there
	Follow                       bool // go on with new ones until ctx ends
}

func (q *Query) match(r *bawn.Record) bool {
	return (q.Tenant == "" || r.Tenant == q.Tenant) && (q.Function == "" || r.Function == q.Function) &&
		(q.Invocation == "" || r.Invocation == q.Invocation) && (q.Action == "" || r.Action == q.Action) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) && !r.Time.Before(q.Since)
}

// Read calls fn for each record that q selects, oldest first, with its index in
// the log. It returns nil at the end; with Follow it returns ctx.Err() once ctx
// ends. An error of fn ends it and is returned.
func (l *Log) Read(ctx context.Context, q Query, fn func(bawn.Record) error) error {
	limit := min(q.Limit, maxLimit)
	wanted := needles(q.Tenant, q.Function, q.Invocation)
	if q.Action != "" {
		wanted = append(wanted, []byte(`"`+q.Action+`"`))
	}
	end := l.Next()
	from := l.since(q.Since, end)
	if limit > 0 {
		// Newest first, bundle by bundle, until there are enough.
		var newest []bawn.Record
		for i := end - 1; i >= from && len(newest) < limit; i = i/tlog.Bundle*tlog.Bundle - 1 {
			if err := ctx.Err(); err != nil {
				return err
			}
			var here []bawn.Record
			err := l.bundle(i, from, end, wanted, &q, func(r bawn.Record) error { here = append(here, r); return nil })
			if bawn.ErrorCode(err) == bawn.CodeNotFound {
				break // pruned meanwhile
			}
			if err != nil {
				return err
			}
			for _, r := range slices.Backward(here) {
				if len(newest) < limit {
					newest = append(newest, r)
				}
			}
		}
		for _, r := range slices.Backward(newest) {
			if err := fn(r); err != nil {
				return err
			}
		}
		from = end
	}
	for {
		for from < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := l.bundle(from, from, end, wanted, &q, fn)
			if err != nil && (bawn.ErrorCode(err) != bawn.CodeNotFound || l.First() <= from) {
				return err
			}
			from = min(end, (from/tlog.Bundle+1)*tlog.Bundle)
		}
		if !q.Follow {
			return nil
		}
		if err := l.Wait(ctx, from); err != nil {
			return err
		}
		end = l.Next()
	}
}

// After calls fn for the records from an index on that hold a detail of a name,
// oldest first, as they are there when it is called.
func (l *Log) After(ctx context.Context, index int64, detail string, fn func(bawn.Record) error) error {
	wanted := [][]byte{[]byte(`"` + detail + `":`)}
	end := l.Next()
	for from := max(index, l.First()); from < end; from = (from/tlog.Bundle + 1) * tlog.Bundle {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.bundle(from, from, end, wanted, &Query{}, fn); err != nil {
			return err
		}
	}
	return nil
}

// Find returns the records of one id, which is a record's own or that of an
// invocation, oldest first. It looks no further back than to the decision that
// an invocation begins with.
func (l *Log) Find(ctx context.Context, tenant, id string) ([]bawn.Record, error) {
	var found []bawn.Record
	first := l.First()
	wanted := append(needles(tenant, "", ""), []byte(`"`+id+`"`))
	for i := l.Next() - 1; i >= first; i = i/tlog.Bundle*tlog.Bundle - 1 {
		if err := ctx.Err(); err != nil {
			return nil, bawn.Wrap(err, bawn.CodeUnavailable, "evidence.find", "the request ended before the record was found").
				WithFix("name the record by its index, as bawn audit ls shows it")
		}
		var here []bawn.Record
		done := false
		err := l.bundle(i, first, l.Next(), wanted, &Query{Tenant: tenant}, func(r bawn.Record) error {
			if r.ID == id || r.Invocation == id {
				here = append(here, r)
				done = done || r.ID == id || r.Kind == bawn.KindDecision
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if found = append(here, found...); done {
			break
		}
	}
	return found, nil
}

// At returns the record at an index, and its inclusion receipt.
func (l *Log) At(ctx context.Context, index int64) (r bawn.Record, receipt []byte, err error) {
	p, err := l.Receipt(ctx, index)
	if err != nil {
		return r, nil, err
	}
	if err := json.Unmarshal(p.Entry, &r); err != nil {
		return r, nil, bawn.Wrap(err, bawn.CodeInternal, "evidence.read", "the entry %d is no record of this Bawn", index)
	}
	r.Index = index
	return r, p.Format(), nil
}

// since returns the index of an entry before which none was stored at t or
// later: a record is stored after its time.
func (l *Log) since(t time.Time, end int64) int64 {
	first := l.First()
	if t.IsZero() {
		return first
	}
	bundles := int((end - first + tlog.Bundle - 1) / tlog.Bundle)
	return first + tlog.Bundle*int64(sort.Search(bundles, func(n int) bool {
		stored, _ := l.Stored(first + int64(n)*tlog.Bundle)
		return !stored.Before(t)
	}))
}

// bundle calls fn for those records of the bundle that holds the index i which
// are from the index from up to before end and which q selects.
func (l *Log) bundle(i, from, end int64, needles [][]byte, q *Query, fn func(bawn.Record) error) error {
	entries, first, err := l.Entries(i)
	if err != nil {
		return err
	}
	for n, e := range entries {
		at := first + int64(n)
		if at < from || at >= end || slices.ContainsFunc(needles, func(n []byte) bool { return !bytes.Contains(e, n) }) {
			continue
		}
		var r bawn.Record
		// An entry that cannot be read is from a newer Bawn, and must not hide the
		// rest.
		if json.Unmarshal(e, &r) != nil || !q.match(&r) {
			continue
		}
		r.Index = at
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
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

// readEntries reads lines of JSON, many to a message of the store.
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
