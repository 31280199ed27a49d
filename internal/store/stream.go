package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MaxMessage is the most bytes that one message of a [Stream] may hold.
const MaxMessage = maxPayload - 64<<10

const (
	scanMessages = 512     // messages asked for at a time …
	scanBytes    = 2 << 20 // … and bytes after which the server stops
	maxBackward  = 16 << 20
)

// StreamConfig describes a [Stream].
type StreamConfig struct {
	Name       string
	MaxBytes   int64         // on disk; the oldest messages go first; required
	MaxAge     time.Duration // messages older than this go; 0 keeps them until MaxBytes
	AppendOnly bool          // nothing may delete a message but age and size; cannot be taken back
}

// Stream is an ordered row of messages, each under a subject. It is safe for
// concurrent use.
type Stream struct {
	s      *Store
	name   string
	js     jetstream.Stream
	prefix string

	mu   sync.Mutex
	last uint64        // newest message known to be stored
	new  chan struct{} // closed and replaced after each publish
}

// Message is one message of a [Stream].
type Message struct {
	Subject string
	Time    time.Time // when it was stored
	Data    []byte
	Seq     uint64 // grows with each message of the stream
}

// ReadConfig says what [Stream.Read] reads.
type ReadConfig struct {
	Subject string    // only this subject, or those below it if it ends in .>; empty means all
	Since   time.Time // only messages stored then or later; zero means all
	After   uint64    // only messages with a higher Seq
	Follow  bool      // go on with new messages until ctx ends
}

// OpenStream opens a stream, made if missing.
func OpenStream(ctx context.Context, s *Store, cfg StreamConfig) (*Stream, error) {
	if err := bawn.CheckName("stream", cfg.Name); err != nil {
		return nil, err
	}
	if cfg.MaxBytes <= 0 {
		return nil, bawn.Errorf(bawn.CodeInternal, "store.stream", "the stream %s has no size limit", cfg.Name)
	}
	js, err := s.openStream(ctx, jetstream.StreamConfig{
		Name:         "S_" + cfg.Name,
		Subjects:     []string{"S." + cfg.Name + ".>"},
		MaxBytes:     cfg.MaxBytes,
		MaxAge:       cfg.MaxAge,
		MaxMsgs:      -1,
		MaxConsumers: -1,
		Discard:      jetstream.DiscardOld,
		Storage:      jetstream.FileStorage,
		Replicas:     1,
		AllowMsgTTL:  true,
		AllowDirect:  true,
		DenyDelete:   cfg.AppendOnly,
		DenyPurge:    cfg.AppendOnly,
	})
	if err != nil {
		return nil, err
	}
	return &Stream{s: s, name: cfg.Name, js: js, prefix: "S." + cfg.Name + ".", new: make(chan struct{})}, nil
}

// HasStream reports whether there is, or should be, a stream of that name.
func (s *Store) HasStream(name string) (bool, error) {
	if err := bawn.CheckName("stream", name); err != nil {
		return false, err
	}
	_, err := os.Stat(filepath.Join(s.dir, "jetstream", "$G", "streams", "S_"+name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, bawn.Wrap(err, bawn.CodeUnavailable, "store.stream", "the store's folder cannot be read")
	}
	return true, nil
}

// Publish adds a message and returns once it is durable. It is dropped after
// ttl, counted in whole seconds and rounded up, if ttl is not zero. An error
// means that it is not known to be stored.
func (st *Stream) Publish(ctx context.Context, subject string, data []byte, ttl time.Duration) error {
	const op = "store.publish"
	if err := checkKey(subject); err != nil {
		return err
	}
	if len(data) > MaxMessage {
		return bawn.Errorf(bawn.CodeTooLarge, op, "the message has %d bytes, at most %d are allowed", len(data), MaxMessage)
	}
	if err := st.s.checkRoom(op); err != nil {
		return err
	}
	data, err := st.s.seal(messagePlace(st.name, subject), data)
	if err != nil {
		return err
	}
	var opts []jetstream.PublishOpt
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL((ttl + time.Second - 1).Truncate(time.Second)))
	}
	ack, err := st.s.js.Publish(ctx, st.prefix+subject, data, opts...)
	if err != nil {
		return st.s.fail(err, op)
	}
	st.mu.Lock()
	st.last = max(st.last, ack.Sequence)
	close(st.new)
	st.new = make(chan struct{})
	st.mu.Unlock()
	return nil
}

// Delete overwrites a message and drops it; one that is gone already is no error. A
// stream that is append-only refuses.
func (st *Stream) Delete(ctx context.Context, seq uint64) error {
	if err := st.js.SecureDeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return st.s.fail(err, "store.delete")
	}
	return nil
}

// changed returns the newest message known to be stored, and a channel that is
// closed when there is a newer one.
func (st *Stream) changed() (uint64, <-chan struct{}) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.last, st.new
}

// Read calls fn for each message that cfg selects, oldest first. It returns
// nil after the newest one that was there when it began; with Follow it
// returns ctx.Err() once ctx ends. An error of fn ends it and is returned.
func (st *Stream) Read(ctx context.Context, cfg ReadConfig, fn func(Message) error) error {
	const op = "store.read"
	r, err := st.rangeOf(cfg)
	if err != nil {
		return err
	}
	last, err := st.LastSeq(ctx)
	if err != nil {
		return err
	}
	if !cfg.Follow {
		r.to = last
	}
	for {
		// Taken before reading, so that what is published meanwhile wakes us.
		top, wake := st.changed()
		err := st.s.scan(ctx, r, func(m rawMessage) error {
			r.from, r.since = m.seq+1, time.Time{}
			msg, ok, err := st.message(m)
			if err != nil || !ok {
				return err
			}
			return fn(msg)
		})
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if e := (callbackError{}); errors.As(err, &e) {
				return e.err
			}
			return st.s.fail(err, op)
		}
		if !cfg.Follow {
			return nil
		}
		// What is not ours need not be looked at again.
		if top >= r.from {
			r.from, r.since = top+1, time.Time{}
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-st.s.ending.Done():
			return bawn.Errorf(bawn.CodeUnavailable, op, "the node is stopping")
		}
	}
}

// Backward yields the messages that cfg selects, newest first; Follow is not
// looked at. An error ends it. It reads in windows that grow while they bring
// little, so that the newest few of a long stream, or of a rare subject, cost
// little.
func (st *Stream) Backward(ctx context.Context, cfg ReadConfig) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		r, err := st.rangeOf(cfg)
		if err != nil {
			yield(Message{}, err)
			return
		}
		info, err := st.js.Info(ctx)
		if err != nil {
			yield(Message{}, st.s.fail(err, "store.read"))
			return
		}
		first := max(r.from, info.State.FirstSeq)
		since := r.since
		r.since = time.Time{}
		r.to = info.State.LastSeq
		for window := uint64(64); r.to >= first && r.to > 0; {
			r.from = first
			if r.to-first >= window {
				r.from = r.to - window + 1
			}
			var got []Message
			bytes := 0
			err := st.s.scan(ctx, r, func(m rawMessage) error {
				if bytes += len(m.data); bytes > maxBackward && window > 4 {
					return errWindow
				}
				msg, ok, err := st.message(m)
				if ok {
					got = append(got, msg)
				}
				return err
			})
			if e := (callbackError{}); errors.As(err, &e) && e.err == errWindow {
				window /= 2
				continue
			}
			if err != nil {
				yield(Message{}, st.s.fail(err, "store.read"))
				return
			}
			for _, m := range slices.Backward(got) {
				if m.Time.Before(since) || !yield(m, nil) {
					return
				}
			}
			if len(got) < 64 {
				window *= 4
			}
			r.to = r.from - 1
		}
	}
}

// LastSeq returns the Seq of the newest message ever stored, 0 before the first.
func (st *Stream) LastSeq(ctx context.Context) (uint64, error) {
	info, err := st.js.Info(ctx)
	if err != nil {
		return 0, st.s.fail(err, "store.read")
	}
	return info.State.LastSeq, nil
}

var errWindow = errors.New("the window holds too much")

func (st *Stream) rangeOf(cfg ReadConfig) (scanRange, error) {
	r := scanRange{stream: "S_" + st.name, subject: st.prefix + ">", from: cfg.After + 1, since: cfg.Since}
	if cfg.Subject == "" || cfg.Subject == ">" {
		return r, nil
	}
	base, below := strings.CutSuffix(cfg.Subject, ".>")
	if err := checkKey(base); err != nil {
		return r, err
	}
	r.subject = st.prefix + base
	if below {
		r.subject += ".>"
	}
	return r, nil
}

// message decrypts m. One that is not what was stored under its subject is left
// out: it must not hide the others.
func (st *Stream) message(m rawMessage) (msg Message, ok bool, err error) {
	subject := strings.TrimPrefix(m.subject, st.prefix)
	data, _, err := st.s.unseal(messagePlace(st.name, subject), m.data)
	if bawn.ErrorCode(err) == bawn.CodeUnprocessable {
		st.s.log.Error("a stored message is damaged and left out", "stream", st.name, "subject", subject, "seq", m.seq, "error", err)
		return Message{}, false, nil
	}
	return Message{Subject: subject, Time: m.time, Data: data, Seq: m.seq}, err == nil, err
}

// rawMessage is a message as the server keeps it.
type rawMessage struct {
	subject string
	seq     uint64
	time    time.Time
	header  nats.Header
	data    []byte
}

// scanRange selects messages of one JetStream stream.
type scanRange struct {
	stream  string
	subject string    // may end in .>
	from    uint64    // lowest sequence, at least 1
	to      uint64    // highest sequence; 0 means no end
	since   time.Time // lowest time, if not zero
}

// callbackError tells an error of the caller's function from one of the server.
type callbackError struct{ err error }

func (e callbackError) Error() string { return e.err.Error() }
func (e callbackError) Unwrap() error { return e.err }

// scan calls fn for each message in r that is there, in order. It uses batched
// direct gets: no consumer is made, so none can be left behind. An error of fn
// comes back as a callbackError.
func (s *Store) scan(ctx context.Context, r scanRange, fn func(rawMessage) error) error {
	for {
		got, more, err := s.batch(ctx, r)
		if err != nil {
			return err
		}
		for _, m := range got {
			if r.to > 0 && m.seq > r.to {
				return nil
			}
			r.from = m.seq + 1
			if m.time.Before(r.since) {
				continue
			}
			if err := fn(m); err != nil {
				return callbackError{err}
			}
		}
		if !more || len(got) == 0 || r.to > 0 && r.from > r.to {
			return nil
		}
	}
}

// batch reads the first messages of r, and whether there are more.
func (s *Store) batch(ctx context.Context, r scanRange) (got []rawMessage, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	req := struct {
		Seq       uint64     `json:"seq,omitempty"`
		NextFor   string     `json:"next_by_subj"`
		Batch     int        `json:"batch"`
		MaxBytes  int        `json:"max_bytes"`
		StartTime *time.Time `json:"start_time,omitempty"`
	}{NextFor: r.subject, Batch: scanMessages, MaxBytes: scanBytes}
	if r.to > 0 && r.to >= r.from {
		req.Batch = int(min(scanMessages, r.to-r.from+1))
	}
	if r.from <= 1 && !r.since.IsZero() {
		req.StartTime = &r.since
	} else {
		req.Seq = max(r.from, 1)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, false, err
	}
	inbox := s.read.NewInbox()
	sub, err := s.read.SubscribeSync(inbox)
	if err != nil {
		return nil, false, err
	}
	defer sub.Unsubscribe()
	if err := s.read.PublishRequest("$JS.API.DIRECT.GET."+r.stream, inbox, body); err != nil {
		return nil, false, err
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, false, err
		}
		if len(m.Data) == 0 {
			switch status := m.Header.Get("Status"); status {
			case "204": // the end of this batch
				return got, m.Header.Get("Nats-Num-Pending") != "0", nil
			case "404": // nothing there
				return got, false, nil
			case "":
			default:
				return nil, false, fmt.Errorf("direct get: %s %s", status, m.Header.Get("Description"))
			}
		}
		seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("direct get: sequence: %w", err)
		}
		at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
		if err != nil {
			return nil, false, fmt.Errorf("direct get: time: %w", err)
		}
		got = append(got, rawMessage{subject: m.Header.Get("Nats-Subject"), seq: seq, time: at, header: m.Header, data: m.Data})
	}
}
