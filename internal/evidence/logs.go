package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

const (
	maxLine         = 64 << 10 // bytes of one line's text
	maxFunctionWait = 1 << 20  // bytes of one function's lines that wait for the disk
	maxAllWait      = 64 << 20 // of all functions' together
	maxFunctionsNow = 10_000   // functions that have lines waiting
	flushEvery      = 50 * time.Millisecond
	defaultLogBytes = 8 << 30

	keptScratch = 4 << 10   // bytes of a line's buffer that is used again
	keptSpare   = 256 << 10 // of a batch's
)

// LogsConfig sets up [Logs].
type LogsConfig struct {
	Log      *slog.Logger // takes failures to write; nil discards
	MaxBytes int64        // on disk, after which the oldest lines go; 0 means 8 GiB or an eighth of the disk, whichever is less
}

// Logs keeps the lines of the functions, each for as long as its function
// says. It is safe for concurrent use.
type Logs struct {
	stream *store.Stream
	log    *slog.Logger
	ended  chan struct{}

	mu      sync.Mutex
	waiting map[logKey]*logBatch
	bytes   int // of the lines that wait or are being written
	lost    map[logKey]int
	over    int    // lines dropped since too many functions have some
	added   uint64 // flushes asked for
	done    uint64 // flushes finished
	cond    *sync.Cond
	failed  bool   // the last flush could not write
	spare   []byte // of a batch that is written, for its capacity
	closed  bool
	wake    chan struct{} // of capacity 1
	now     chan struct{} // of capacity 1: do not gather

	scratch sync.Pool // of *[]byte, each for a line
}

// logKey names what shares a message.
type logKey struct {
	tenant, function string
	retention        time.Duration
}

func (k logKey) subject() string { return k.tenant + "." + k.function }

type logBatch struct {
	data []byte
	nth  int // in the order of first lines, which is the order of writing
}

// OpenLogs opens the lines that the store holds.
func OpenLogs(ctx context.Context, s *store.Store, cfg LogsConfig) (*Logs, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = diskShare(s.DiskBytes(), defaultLogBytes)
	}
	st, err := store.OpenStream(ctx, s, store.StreamConfig{Name: "logs", MaxBytes: cfg.MaxBytes, MaxAge: bawn.MaxLogRetention})
	if err != nil {
		return nil, err
	}
	l := &Logs{stream: st, log: cfg.Log, ended: make(chan struct{}), waiting: map[logKey]*logBatch{}, lost: map[logKey]int{},
		wake: make(chan struct{}, 1), now: make(chan struct{}, 1)}
	l.cond = sync.NewCond(&l.mu)
	l.scratch.New = func() any { b := make([]byte, 0, 512); return &b }
	go l.writer()
	return l, nil
}

// Write takes a line, to be kept for retention. It never waits for the disk:
// lines go there about every 50 ms. Text over 64 KiB is cut with a mark. Lines
// that come faster than the disk takes them are dropped, and a line of the
// platform says how many.
func (l *Logs) Write(line bawn.LogLine, retention time.Duration) {
	if line.Time.IsZero() {
		line.Time = time.Now()
	}
	// What is not a name cannot be a subject; no function has such a name.
	if bawn.CheckName("tenant", line.Tenant) != nil || bawn.CheckName("function", line.Function) != nil {
		l.log.Error("a log line of a function without a proper name is dropped", "function", clean(line.Function, maxName, false))
		return
	}
	if retention <= 0 || retention > bawn.MaxLogRetention {
		retention = bawn.DefaultLogRetention
	}
	b := l.scratch.Get().(*[]byte)
	*b = appendLine((*b)[:0], &line)
	l.add(logKey{line.Tenant, line.Function, retention}, *b)
	if cap(*b) <= keptScratch {
		l.scratch.Put(b)
	}
}

func (l *Logs) add(k logKey, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.waiting[k]
	if b == nil {
		if len(l.waiting) >= maxFunctionsNow {
			l.over++
			return
		}
		b = &logBatch{nth: len(l.waiting), data: l.spare}
		l.spare = nil
		l.waiting[k] = b
	}
	if l.closed || len(b.data)+len(data) > maxFunctionWait || l.bytes+len(data) > maxAllWait {
		l.lost[k]++
		return
	}
	b.data = append(b.data, data...)
	l.bytes += len(data)
	if len(l.waiting) == 1 {
		poke(l.wake)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *Logs) writer() {
	defer close(l.ended)
	for {
		l.mu.Lock()
		idle, closed, wait := len(l.waiting) == 0 && l.added == l.done, l.closed, flushEvery
		if l.failed {
			wait = time.Second
		}
		l.mu.Unlock()
		if idle && closed {
			return
		}
		if idle {
			<-l.wake
			continue
		}
		if !closed {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-l.now:
			}
			t.Stop()
		}
		l.flush()
	}
}

// flush writes everything that waits.
func (l *Logs) flush() {
	l.mu.Lock()
	batches, lost, turn, size, over := l.waiting, l.lost, l.added, l.bytes, l.over
	l.over = 0
	l.waiting, l.lost = map[logKey]*logBatch{}, map[logKey]int{}
	l.mu.Unlock()
	failed := error(nil)
	for _, k := range slices.SortedFunc(maps.Keys(batches), func(a, b logKey) int { return batches[a].nth - batches[b].nth }) {
		n, err := l.writeBatch(k, batches[k].data)
		if over += n; err != nil {
			failed = err
		}
		if lost[k]+n == 0 {
			continue
		}
		// The note goes with the next lines if it cannot go now. It never can if the
		// tenant, and its key with it, is gone.
		if n == 0 {
			err = l.note(k, lost[k])
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.mu.Lock()
			l.lost[k] += lost[k] + n
			if l.waiting[k] == nil && !l.closed {
				l.waiting[k] = &logBatch{nth: len(l.waiting)}
			}
			l.mu.Unlock()
		}
	}
	if failed != nil || over > 0 {
		l.log.Error("log lines are lost", "lines", over, "error", failed)
	}
	l.mu.Lock()
	for _, b := range batches {
		if cap(b.data) > cap(l.spare) && cap(b.data) <= keptSpare {
			l.spare = b.data[:0]
		}
	}
	l.failed = failed != nil
	l.bytes -= size
	l.done = turn
	l.cond.Broadcast()
	l.mu.Unlock()
}

// writeBatch writes lines and returns how many it could not, and why.
func (l *Logs) writeBatch(k logKey, data []byte) (lost int, failed error) {
	for len(data) > 0 {
		part := data
		if len(part) > maxBatch {
			// At least one line: none is longer than a batch.
			for part = part[:maxBatch]; part[len(part)-1] != '\n'; {
				part = part[:len(part)-1]
			}
		}
		data = data[len(part):]
		ctx, cancel := context.WithTimeout(context.Background(), publishWithin)
		err := l.stream.Publish(ctx, k.subject(), part, k.retention)
		cancel()
		if err == nil {
			continue
		}
		failed = err
		lost += bytes.Count(part, []byte{'\n'})
	}
	return lost, failed
}

// note writes that n lines are lost.
func (l *Logs) note(k logKey, n int) error {
	data := appendLine(nil, &bawn.LogLine{Time: time.Now(), Tenant: k.tenant, Function: k.function, Platform: true,
		Text: fmt.Sprintf("%d log lines were lost: they came faster than the disk took them", n)})
	ctx, cancel := context.WithTimeout(context.Background(), publishWithin)
	defer cancel()
	return l.stream.Publish(ctx, k.subject(), data, k.retention)
}

// Flush returns once every line taken before is written, or ctx has ended.
func (l *Logs) Flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cond.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.added++
	for turn := l.added; l.done < turn; {
		if err := ctx.Err(); err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, "evidence.flush", "the request ended before the log lines were written")
		}
		poke(l.wake)
		poke(l.now)
		l.cond.Wait()
	}
	return nil
}

// Close writes what waits and ends. Lines written later are dropped.
func (l *Logs) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	poke(l.wake)
	poke(l.now)
	<-l.ended
	return nil
}

// errYoung ends a reading at the first message that nobody has to drop yet.
var errYoung = errors.New("too young")

// Expire drops the stored lines of a function that keep, by the version that printed
// them, lets nobody keep any longer at now; of a version that is not in it nothing is
// dropped. Lines share messages with those that were printed within some 50 ms, so
// one may take lines of another version with it. after is what an earlier call with
// the same keep returned, or 0: up to there nothing has to be looked at again.
func (l *Logs) Expire(ctx context.Context, tenant, function string, keep map[int]time.Duration, now time.Time, after uint64) (upTo uint64, dropped int, err error) {
	if len(keep) == 0 {
		return after, 0, nil
	}
	least := slices.Min(slices.Collect(maps.Values(keep)))
	upTo = after
	settled := true // nothing that has to go later has been seen
	err = l.stream.Read(ctx, store.ReadConfig{Subject: logKey{tenant: tenant, function: function}.subject(), After: after}, func(m store.Message) error {
		age := now.Sub(m.Time)
		if age <= least {
			return errYoung
		}
		gone, later := false, false
		for line := range bytes.Lines(m.Data) {
			var x struct {
				Version int `json:"version"`
			}
			if json.Unmarshal(line, &x) != nil {
				continue // from a newer Bawn
			}
			if k, ok := keep[x.Version]; ok {
				gone, later = gone || age > k, true
			}
		}
		if gone {
			if err := l.stream.Delete(ctx, m.Seq); err != nil {
				return err
			}
			dropped++
			later = false
		}
		if settled = settled && !later; settled {
			upTo = m.Seq
		}
		return nil
	})
	if errors.Is(err, errYoung) {
		err = nil
	}
	return upTo, dropped, err
}

// LogQuery selects lines. Zero fields select everything; Function needs Tenant.
type LogQuery struct {
	Tenant, Function, Invocation, Instance string
	Since                                  time.Time
	Limit                                  int  // only the newest so many of those that are there
	Follow                                 bool // go on with new ones until ctx ends
}

func (q *LogQuery) match(x *bawn.LogLine) bool {
	return (q.Invocation == "" || x.Invocation == q.Invocation) && (q.Instance == "" || x.Instance == q.Instance) && !x.Time.Before(q.Since)
}

// Read calls fn for each line that q selects, oldest first by the time of
// storing. It returns nil at the end; with Follow it returns ctx.Err() once ctx
// ends. An error of fn ends it and is returned.
func (l *Logs) Read(ctx context.Context, q LogQuery, fn func(bawn.LogLine) error) error {
	cfg := store.ReadConfig{Since: q.Since, Follow: q.Follow}
	if q.Tenant != "" {
		if err := bawn.CheckName("tenant", q.Tenant); err != nil {
			return err
		}
		cfg.Subject = q.Tenant + ".>"
	}
	if q.Function != "" {
		if err := (bawn.Ref{Tenant: q.Tenant, Function: q.Function}).Check(); err != nil {
			return err
		}
		cfg.Subject = logKey{tenant: q.Tenant, function: q.Function}.subject()
	}
	return readEntries(ctx, l.stream, cfg, q.Limit, needles("", "", q.Invocation), q.match, fn)
}
