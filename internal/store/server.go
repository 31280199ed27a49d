// Package store keeps everything that Bawn remembers. It embeds a NATS
// JetStream server in the process, without any listener, and offers three
// shapes over it: a [Table] of typed values with compare-and-swap, a [Stream]
// of messages, and [Blobs] addressed by their content.
//
// Durability: a write that returned nil is on the disk. The server syncs
// after each message (its default would be once in two minutes), so a write
// survives both kill -9 and a loss of power. One stream therefore takes a few
// thousand messages a second at most; whoever has more puts many records into
// one message, as package evidence does.
//
// No other package knows that this is NATS.
package store

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	maxPayload   = 4 << 20  // bytes of one message, headers included
	maxStore     = 64 << 30 // bytes that the size limits of all streams may add up to
	maxMemory    = 16 << 20 // bytes of streams kept in memory; Bawn makes none
	formatFile   = "format" // holds formatNumber
	formatNumber = "1"      // layout of what is stored; see [checkFormat]
	writeTimeout = 15 * time.Second
	readTimeout  = 15 * time.Second
	closeTimeout = 10 * time.Second
	minRoom      = 16 << 20  // bytes of disk that must stay free, at least …
	maxRoom      = 256 << 20 // … and at most; between them 1/20 of the disk
)

// Config says where a [Store] lives.
type Config struct {
	// Dir is the folder of the store alone, made with mode 0700 if missing.
	// One process may use it at a time: see [LockDir].
	Dir string

	// State is the folder of the tables' manifests, made if missing; empty means
	// the folder state within Dir. It should be where nothing but Bawn writes.
	State string
	// Key signs the manifests. Without one they tell damage, and not who made it.
	Key ed25519.PrivateKey

	// Sealer encrypts what is a tenant's: rows and messages whose key or subject has
	// several names, of which the first is the tenant's. Nil stores it in clear.
	Sealer Sealer

	// Log takes what the embedded server says. Nil discards it.
	Log *slog.Logger
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dir    string
	state  string
	key    ed25519.PrivateKey
	log    *slog.Logger
	sealer Sealer // nil: nothing is sealed
	srv    *server.Server
	write  *nats.Conn // for what changes something
	read   *nats.Conn // apart, because the server answers reads in the connection's own loop
	js     jetstream.JetStream
	room   int64 // bytes of disk below which nothing is written

	ending context.Context // ends with Close, and with it who follows a stream
	end    context.CancelFunc

	expected map[string]uint64 // see Expect

	mu    sync.Mutex
	files []*os.File // closed at the end
	parts []part     // the open tables, by name
}

func (s *Store) atClose(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, f)
}

// Open starts the embedded server on cfg.Dir and recovers what is there. It
// fails with CodeUnavailable if the folder cannot be used, was written in
// another layout, or its server does not come up.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	const op = "store.open"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the store's folder cannot be made").
			WithFix("give --data a folder that Bawn may write to")
	}
	if err := checkFormat(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.State == "" {
		cfg.State = filepath.Join(cfg.Dir, "state")
	}
	if cfg.Key == nil {
		cfg.Key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the folder for the manifests of the state cannot be made").
			WithFix("give --data a folder that Bawn may write to")
	}
	s := &Store{dir: cfg.Dir, state: cfg.State, key: cfg.Key, log: cfg.Log, sealer: cfg.Sealer}
	s.ending, s.end = context.WithCancel(context.Background())
	if total, _, err := diskSpace(cfg.Dir); err == nil {
		s.room = min(max(total/20, minRoom), maxRoom)
	}
	if err := s.checkBlocks(); err != nil {
		return nil, err
	}
	// Recovery on a full disk would let the server fail half-way and then take
	// writes that it cannot keep.
	if err := s.checkRoom(op); err != nil {
		return nil, err
	}
	srv, err := server.NewServer(&server.Options{
		ServerName:             "bawn",
		DontListen:             true, // reached by in-process connections alone
		NoSigs:                 true, // Bawn owns the signals
		NoSystemAccount:        true,
		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             true,
		JetStreamMaxMemory:     maxMemory,
		JetStreamMaxStore:      maxStore,
		MaxPayload:             maxPayload,
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, op, "the embedded store has a bad configuration")
	}
	srv.SetLoggerV2(serverLog{cfg.Log}, false, false, false)
	s.srv = srv
	// Start reads what is stored before it returns, and a damaged file can keep
	// it from returning at all.
	go srv.Start()
	if err := s.connect(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context) error {
	const op = "store.open"
	wait := time.Minute // recovery reads what was not indexed when the last process was killed
	if d, ok := ctx.Deadline(); ok {
		wait = time.Until(d)
	}
	// Readiness includes JetStream here; a server that could not start it
	// stops itself.
	if !s.srv.ReadyForConnections(wait) || !s.srv.JetStreamEnabled() {
		return bawn.Errorf(bawn.CodeUnavailable, op, "the embedded store did not start").
			WithFix("read the lines of the log above; check that the data directory is readable, writable and not full")
	}
	var err error
	for _, c := range []**nats.Conn{&s.write, &s.read} {
		*c, err = nats.Connect("", nats.InProcessServer(s.srv), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				s.log.Error("store connection", "error", err)
			}))
		if err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, op, "the embedded store did not take a connection")
		}
	}
	s.js, err = jetstream.New(s.write, jetstream.WithDefaultTimeout(writeTimeout))
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInternal, op, "the embedded store cannot be used")
	}
	return nil
}

// Close stops the server, and ends whoever follows a stream with
// CodeUnavailable. Everything opened on the store must be closed before.
// What was acknowledged is on the disk in any case: a server that does not stop
// in time, which only a damaged file can make happen, is left to the end of the
// process, with an error.
func (s *Store) Close() error {
	for _, c := range []*nats.Conn{s.write, s.read} {
		if c != nil {
			c.Close()
		}
	}
	s.end()
	s.mu.Lock()
	for _, f := range s.files {
		f.Close() // each write to it was synced
	}
	s.files = nil
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}()
	select {
	case <-done:
		return nil
	case <-time.After(closeTimeout):
		return bawn.Errorf(bawn.CodeUnavailable, "store.close", "the store did not stop in %v", closeTimeout)
	}
}

// Healthy returns nil while the store can be written to, and otherwise an
// error that says why not.
func (s *Store) Healthy() error {
	const op = "store.health"
	if !s.srv.Running() || !s.srv.JetStreamEnabled() || !s.write.IsConnected() {
		return bawn.Errorf(bawn.CodeUnavailable, op, "the store is not running").
			WithFix("look in the server's log for its last error, mend the cause and start Bawn again")
	}
	return s.checkRoom(op)
}

// checkRoom refuses to write to a disk that is nearly full. The server must
// never meet the end of the disk itself: it then stops for good.
func (s *Store) checkRoom(op string) error {
	_, free, err := diskSpace(s.dir)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the store's disk cannot be asked for its space").
			WithFix("check that the data directory still exists and is mounted")
	}
	if free < s.room {
		return bawn.Errorf(bawn.CodeUnavailable, op, "the disk of the data directory is full: %d MiB are free, %d MiB are needed", free>>20, s.room>>20).
			WithFix("free some space on the file system that holds the data directory; Bawn goes on by itself")
	}
	return nil
}

// Requests is how many messages were sent to the embedded server since the store
// was opened, as requests are. What is answered from memory sends none.
func (s *Store) Requests() uint64 { return s.write.Stats().OutMsgs + s.read.Stats().OutMsgs }

// DiskBytes returns the size of the disk that the store is on, for limits that
// are a part of it; 0 if it is not known.
func (s *Store) DiskBytes() int64 {
	total, _, _ := diskSpace(s.dir)
	return total
}

func diskSpace(dir string) (total, free int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize), nil
}

// fail turns a failure of the server into the error that crosses the border.
func (s *Store) fail(err error, op string) error {
	var known *bawn.Error
	if errors.As(err, &known) {
		return known
	}
	if full := s.checkRoom(op); full != nil {
		return full
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the request ended before the store answered")
	}
	return bawn.Wrap(err, bawn.CodeUnavailable, op, "the store failed").
		WithFix("look in the server's log for the cause; what was acknowledged before is kept")
}

func damaged(op, what string, args ...any) *bawn.Error {
	return bawn.Errorf(bawn.CodeUnavailable, op, what, args...).
		WithFix("stop Bawn, check the disk, and put the data directory back from a backup: bawn backup restore; Bawn does not start on data that it cannot trust")
}

// damagedStream is the error of a stream whose files are there and cannot be read.
type damagedStream struct{ name string }

func (e *damagedStream) Error() string { return "the stored stream " + e.name + " is damaged" }

// streamDir is where the server keeps a stream.
func (s *Store) streamDir(name string) string {
	return filepath.Join(s.dir, "jetstream", "$G", "streams", name)
}

// setAside moves the files of a stream that cannot be used out of the server's way,
// for whoever looks into what happened.
func (s *Store) setAside(name string) error {
	to := filepath.Join(s.dir, "damaged")
	err := os.MkdirAll(to, 0o700)
	if err == nil {
		err = os.Rename(s.streamDir(name), filepath.Join(to, name+"-"+time.Now().UTC().Format("20060102T150405.000000000")))
	}
	if err == nil {
		err = syncDir(to)
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "store.damaged", "the damaged stream %s cannot be set aside", name).
			WithFix("check the rights of the data directory")
	}
	return nil
}

// openStream makes the JetStream stream or changes it to cfg. A stream whose
// files are there but which the server did not recover is damaged: making it
// anew would turn lost data into an empty, healthy looking stream.
func (s *Store) openStream(ctx context.Context, cfg jetstream.StreamConfig) (js jetstream.Stream, err error) {
	const op = "store.open"
	if _, err = s.js.Stream(ctx, cfg.Name); errors.Is(err, jetstream.ErrStreamNotFound) {
		if _, err = os.Stat(filepath.Join(s.streamDir(cfg.Name), "meta.inf")); err == nil {
			e := damaged(op, "the stored stream %s is damaged: its files are there and cannot be read", cfg.Name)
			e.Err = &damagedStream{cfg.Name}
			return nil, e
		}
	} else if err != nil {
		return nil, s.fail(err, op)
	}
	if js, err = s.js.CreateOrUpdateStream(ctx, cfg); err != nil {
		return nil, s.fail(err, op)
	}
	return js, nil
}

// checkFormat keeps a Bawn from reading a layout that it does not know, which
// could silently drop what a newer one wrote. A folder without a layout that
// holds no data gets this Bawn's.
func checkFormat(dir string) error {
	const op = "store.open"
	name := filepath.Join(dir, formatFile)
	b, err := os.ReadFile(name)
	found := strings.TrimSpace(string(b))
	switch {
	case err == nil && found == formatNumber:
		return nil
	case err == nil && found != "":
		return bawn.Errorf(bawn.CodeUnavailable, op, "the data directory has the layout %.20q, this Bawn knows %q", found, formatNumber).
			WithFix("use the Bawn that wrote the data directory, or a newer one")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the store's folder cannot be read").
			WithFix("give --data a folder that Bawn may read and write")
	}
	// The layout is written before anything else.
	if _, err := os.Lstat(filepath.Join(dir, "jetstream")); err == nil {
		return damaged(op, "the data directory does not say which layout it has: the file %s is empty or missing", name)
	}
	if err := writeFormat(name); err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the store's folder cannot be written to").
			WithFix("give --data a folder that Bawn may write to, on a disk with free space")
	}
	return nil
}

// writeFormat writes the layout so that a crash leaves it whole or not at all.
func writeFormat(name string) error {
	f, err := createNew(name + ".new")
	if err != nil {
		return err
	}
	_, err = f.WriteString(formatNumber + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// checkBlocks looks for one kind of damage before the server does: a sequence
// number that no stream ever reaches. The server would count up to it, and run
// out of memory long before. It looks at all blocks of tables and at the newest
// of each other stream, which are those that are read at the start; what it
// does not understand it leaves to the server's own checks.
func (s *Store) checkBlocks() error {
	const (
		recordHead  = 22      // length 4, sequence 8, time 8, size of subject 2
		headerBit   = 1 << 31 // of the length
		flagBits    = 3 << 62 // of the sequence
		maxSequence = 1 << 48
	)
	streams, err := filepath.Glob(s.streamDir("*"))
	if err != nil {
		return err
	}
next:
	for _, stream := range streams {
		name := filepath.Base(stream)
		blocks, err := filepath.Glob(filepath.Join(stream, "msgs", "*.blk"))
		if err != nil {
			return err
		}
		number := func(name string) int {
			n, _ := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".blk"))
			return n
		}
		slices.SortFunc(blocks, func(a, b string) int { return number(a) - number(b) })
		if len(blocks) > 1 && !strings.HasPrefix(name, "KV_") {
			blocks = blocks[len(blocks)-1:]
		}
		for _, block := range blocks {
			b, err := os.ReadFile(block)
			if err != nil {
				return bawn.Wrap(err, bawn.CodeUnavailable, "store.open", "the store's files cannot be read").
					WithFix("check the disk and the rights of the data directory")
			}
			for len(b) >= recordHead {
				size := int64(binary.LittleEndian.Uint32(b) &^ headerBit)
				if size < recordHead || size > int64(len(b)) {
					break
				}
				if binary.LittleEndian.Uint64(b[4:])&^flagBits > maxSequence {
					if !strings.HasPrefix(name, "KV_") {
						return damaged("store.open", "the stored stream %s is damaged: it has an impossible sequence number", name)
					}
					// The table's manifest knows what it held.
					if err := s.setAside(name); err != nil {
						return err
					}
					s.log.Error("a table's stream has an impossible sequence number; it was set aside", "stream", name)
					continue next
				}
				b = b[size:]
			}
		}
	}
	return nil
}

// LockDir takes the data directory dir for this process, by a lock on the file
// dir/lock that the kernel drops when the process ends, however it ends. It
// fails with CodeConflict, naming the process, if another one has it.
func LockDir(dir string) (release func() error, err error) {
	const op = "store.lock"
	// It is taken before the server lets go of root: what lies there instead of
	// the file must not lead elsewhere.
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err == nil {
		var st syscall.Stat_t
		if err = syscall.Fstat(int(f.Fd()), &st); err == nil && (st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Nlink != 1) {
			err = errors.New("the lock is no plain file of its own")
		}
		if err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be locked").
			WithFix("give --data a folder that exists and that Bawn may write to")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be locked").
				WithFix("put the data directory on a local file system")
		}
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
		who := fmt.Sprintf("process %d", pid)
		if err != nil {
			who = "another process"
		}
		return nil, bawn.Errorf(bawn.CodeConflict, op, "the data directory is in use by %s", who).
			WithFix("stop that process, or give --data another folder")
	}
	// The number is for people only; the lock is what counts.
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be written to").
			WithFix("free some space on its file system")
	}
	return func() error {
		// Closing alone would leave the lock to a process that was forked a moment
		// ago and still has a copy of the descriptor.
		return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
	}, nil
}

// serverLog brings the embedded server's lines into Bawn's log. Its notices
// are about itself and only of use when something is wrong.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(f string, v ...any) { l.log.Debug("store: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Warnf(f string, v ...any)   { l.log.Warn("store: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Errorf(f string, v ...any)  { l.log.Error("store: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Fatalf(f string, v ...any)  { l.log.Error("store: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Debugf(string, ...any)      {}
func (l serverLog) Tracef(string, ...any)      {}
