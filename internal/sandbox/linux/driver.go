// Package linux is the sandbox driver "process": namespaces, a read-only root,
// seccomp, Landlock, cgroups and limits around ordinary processes. A small
// privileged helper beside the server does the work; this package is the
// server's side of it and needs no privilege itself.
package linux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux/cgroup"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// Config says where a driver works.
type Config struct {
	Dir  string       // for roots; made if missing; on a local file system
	Code []string     // the folders below which code may be attached; the helper refuses any other
	Node string       // names this node's cgroups: [a-z0-9-], at most 32 bytes
	Log  *slog.Logger // nil means slog.Default()
}

// Driver makes sandboxes with the helper. It starts the helper anew when it
// has died.
type Driver struct {
	cfg    Config
	binary *os.File

	mu       sync.Mutex
	spawner  *spawner
	images   map[string]*wire.Image // prepared ones, to be told to a new helper
	filters  map[sandbox.SyscallKind][]byte
	nextUID  uint32
	lastUID  uint32 // the end of the block of users that is reserved on disk
	probed   []bawn.Capability
	tested   bawn.Capability
	closed   bool
	restarts int
}

// New starts the helper. An error says why this host can make no sandboxes at
// all; what else it may lack is Probe's to say.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, baseFolder), 0o700); err != nil {
		return nil, err
	}
	leftovers, _ := filepath.Glob(filepath.Join(cfg.Dir, ".staging-*"))
	for _, dir := range leftovers {
		os.RemoveAll(dir)
	}
	binary, err := openHelper()
	if err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, binary: binary, images: map[string]*wire.Image{}, filters: map[sandbox.SyscallKind][]byte{}}
	if _, err := d.helper(context.Background()); err != nil {
		binary.Close()
		return nil, err
	}
	err = d.selfTest()
	d.tested = bawn.Capability{
		Name: "a sandbox that holds", Control: "B12", OK: err == nil, Required: true,
		Detail: "made at start, and nine ways out tried from inside",
	}
	if err != nil {
		d.tested.Detail = err.Error()
		d.tested.Fix = "mend what else is missing here; if nothing is, report it as a security defect"
	}
	return d, nil
}

// selfTestTime bounds the self-test; it takes some ten milliseconds.
const selfTestTime = 10 * time.Second

// selfTest runs the helper itself as the program of a sandbox.
func (d *Driver) selfTest() error {
	for _, c := range d.probed {
		if c.Required && !c.OK {
			return errors.New("not tried, because something required is missing")
		}
	}
	binary, err := helper.ReadFile("helper/bawn-sandbox")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), selfTestTime)
	defer cancel()
	const name = "selftest"
	img := sandbox.Image{Name: name, Syscall: sandbox.SyscallProvided, Files: []sandbox.File{{Path: "/usr/bin/selftest", Data: binary, Mode: 0o755}}}
	if err := d.Prepare(ctx, img); err != nil {
		return err
	}
	box, err := d.Start(ctx, sandbox.Spec{ID: name, Image: name, Args: []string{"/usr/bin/selftest", name}})
	if err != nil {
		return err
	}
	defer func() {
		box.Kill()
		<-box.Done()
		box.Conn().Close()
		box.Output().Close()
	}()
	box.Conn().SetReadDeadline(time.Now().Add(selfTestTime))
	line, err := bufio.NewReader(io.LimitReader(box.Conn(), 4096)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the test program did not report: %w", err)
	}
	wrong, ok := strings.CutPrefix(strings.TrimSpace(line), "tested")
	if wrong = strings.TrimSpace(wrong); !ok || wrong != "" {
		return errors.New("not stopped: " + wrong)
	}
	return nil
}

// baseFolder is what the helper mounts its own file system over.
const baseFolder = ".mounts"

// helper returns the running helper, starting it if need be.
func (d *Driver) helper(ctx context.Context) (*spawner, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	if d.spawner != nil {
		select {
		case <-d.spawner.dead:
			d.restarts++
			d.cfg.Log.Error("the sandbox helper died and is started again", "error", d.spawner.ended, "restarts", d.restarts)
			d.spawner = nil
		default:
			return d.spawner, nil
		}
	}
	s, err := startSpawner(d.binary, d.cfg)
	if err != nil {
		return nil, err
	}
	reply, _, err := s.call(ctx, wire.Request{Op: wire.OpProbe})
	for _, img := range d.images {
		if err == nil {
			_, _, err = s.call(ctx, wire.Request{Op: wire.OpImage, Image: img})
		}
	}
	if err != nil {
		s.stop()
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "sandbox", "the sandbox helper does not work here").
			WithFix("run bawn as root on Linux 6.6 or newer; its log has the detail")
	}
	d.spawner = s
	d.probed = nil
	for _, c := range reply.Probe.Capabilities {
		d.probed = append(d.probed, bawn.Capability(c))
	}
	go d.reserve(s)
	go d.revive(s, time.Now())
	return s, nil
}

// reviveDelay keeps a helper that cannot live from being started in a loop.
const reviveDelay = 2 * time.Second

// revive starts another helper when this one has died, because that one also
// ends what the dead one left frozen.
func (d *Driver) revive(s *spawner, started time.Time) {
	<-s.dead
	if time.Since(started) < reviveDelay {
		time.Sleep(reviveDelay)
	}
	if _, err := d.helper(context.Background()); err != nil && !errors.Is(err, errClosed) {
		d.cfg.Log.Error("the sandbox helper cannot be started again", "error", err)
	}
}

var errClosed = errors.New("the driver is closed")

// reserved is how many sandboxes the helper makes ahead; it bounds the number
// itself. Each later start pays for the one that it took.
const reserved = 4

// reserve gives a new helper users for the sandboxes that it makes ahead.
func (d *Driver) reserve(s *spawner) {
	for range reserved {
		uid, err := d.takeUID()
		if err == nil {
			_, _, err = s.call(context.Background(), wire.Request{Op: wire.OpReserve, UID: uid})
		}
		if err != nil {
			return // the helper has ended, or whoever starts a sandbox will be told
		}
	}
}

// Probe says what the helper found when it started, and whether a sandbox made
// then held.
func (d *Driver) Probe() []bawn.Capability {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(slices.Clone(d.probed), d.tested)
}

// Prepare makes an image's root on disk and mounts it.
func (d *Driver) Prepare(ctx context.Context, img sandbox.Image) error {
	dir, err := materialise(d.cfg.Dir, img)
	if err != nil {
		return err
	}
	d.mu.Lock()
	code := d.filters[img.Syscall]
	d.mu.Unlock()
	if code == nil {
		if code, err = filter(img.Syscall); err != nil {
			return err
		}
	}
	w := &wire.Image{Name: img.Name, Dir: dir, Filter: code}
	s, err := d.helper(ctx)
	if err != nil {
		return err
	}
	if _, _, err := s.call(ctx, wire.Request{Op: wire.OpImage, Image: w}); err != nil {
		return err
	}
	d.mu.Lock()
	d.images[img.Name], d.filters[img.Syscall] = w, code
	d.mu.Unlock()
	return nil
}

// Users of sandboxes. Each sandbox has two that no other had before: the pair
// is counted up, blocks of it are reserved on disk, and the count starts over
// only after 600 million sandboxes.
const (
	firstUID = 0x3000_0000
	endUID   = 0x7fff_0000
	uidBlock = 1 << 16
)

// takeUID returns the first of two fresh users.
func (d *Driver) takeUID() (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nextUID == d.lastUID {
		name := filepath.Join(d.cfg.Dir, "next-uid")
		next := uint64(firstUID)
		b, err := os.ReadFile(name)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return 0, err
		default:
			next, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
			if err != nil || next < firstUID {
				return 0, fmt.Errorf("%s is damaged; remove it if no sandbox of this node runs", name)
			}
		}
		if next+uidBlock > endUID {
			next = firstUID
		}
		if err := writeDurably(name, strconv.FormatUint(next+uidBlock, 10)+"\n"); err != nil {
			return 0, err
		}
		d.nextUID, d.lastUID = uint32(next), uint32(next+uidBlock)
	}
	uid := d.nextUID
	d.nextUID += 2
	return uid, nil
}

func writeDurably(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".staging-uid-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Start makes one sandbox.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	s, err := d.helper(ctx)
	if err != nil {
		return nil, err
	}
	uid, err := d.takeUID()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(pair[0]), "conn")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		unix.Close(pair[1])
		return nil, err
	}
	output, theirs, err := os.Pipe()
	if err != nil {
		unix.Close(pair[1])
		conn.Close()
		return nil, err
	}
	b := newBox(spec.ID, s, conn, output)
	s.mu.Lock()
	if s.boxes != nil {
		s.boxes[spec.ID] = b
	}
	s.mu.Unlock()
	start := &wire.Start{Image: spec.Image}
	if len(spec.Args) > 0 {
		start.Exec = &wire.Exec{Args: spec.Args, Env: spec.Env}
	}
	reply, _, err := s.call(ctx, wire.Request{Op: wire.OpStart, ID: spec.ID, UID: uid, Start: start}, pair[1], int(theirs.Fd()))
	unix.Close(pair[1])
	theirs.Close()
	if err == nil && reply.Group == nil {
		err = errors.New("the sandbox helper named no control group")
	}
	if err != nil {
		// If the start still succeeds after ctx has ended, nobody owns it.
		s.conn.Send(&wire.Request{Op: wire.OpKill, ID: spec.ID})
		s.forget(b)
		conn.Close()
		output.Close()
		return nil, err
	}
	b.group = reply.Group
	return b, nil
}

// Close ends every sandbox, waits for their end and stops the helper.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.spawner != nil {
		d.spawner.stop()
	}
	return d.binary.Close()
}

// box is the server's side of one sandbox.
type box struct {
	id       string
	s        *spawner
	conn     net.Conn
	output   *os.File
	group    *cgroup.Group
	attempts chan sandbox.Attempt
	done     chan struct{}
	exit     sandbox.Exit

	mu      sync.Mutex
	dropped int // attempts nobody took in time
	ended   bool
}

// attemptBacklog is how many attempts wait for a reader; the helper already
// limits their rate.
const attemptBacklog = 128

func newBox(id string, s *spawner, conn net.Conn, output *os.File) *box {
	return &box{id: id, s: s, conn: conn, output: output, attempts: make(chan sandbox.Attempt, attemptBacklog), done: make(chan struct{})}
}

func (b *box) ID() string                       { return b.id }
func (b *box) Conn() net.Conn                   { return b.conn }
func (b *box) Output() *os.File                 { return b.output }
func (b *box) Attempts() <-chan sandbox.Attempt { return b.attempts }
func (b *box) Done() <-chan struct{}            { return b.done }
func (b *box) Exit() sandbox.Exit               { return b.exit }

func (b *box) call(ctx context.Context, req wire.Request) (*wire.Reply, int, error) {
	req.ID = b.id
	return b.s.call(ctx, req)
}

func (b *box) Attach(ctx context.Context, a sandbox.Attachment) error {
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpAttach, Attach: &wire.Attach{
		Code: a.Code, Memory: a.Memory, CPU: a.CPU, PIDs: a.PIDs, Tmp: a.Tmp, Exec: a.Exec,
	}})
	return err
}

func (b *box) Exec(ctx context.Context, args, env []string) error {
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpExec, Exec: &wire.Exec{Args: args, Env: env}})
	return err
}

func (b *box) Listen(ctx context.Context, port int) (net.Listener, error) {
	_, fd, err := b.call(ctx, wire.Request{Op: wire.OpListen, Port: port})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	return net.FileListener(f)
}

func (b *box) Freeze(ctx context.Context) error {
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpFreeze})
	return err
}

func (b *box) Thaw(ctx context.Context) error {
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpThaw})
	return err
}

// Stats reads the control groups itself: what the helper must not be asked to
// write, everybody may read.
func (b *box) Stats(context.Context) (sandbox.Stats, error) {
	select {
	case <-b.done:
		return sandbox.Stats{}, errors.New("the sandbox has ended")
	default:
		return sandbox.Stats(b.group.Stats()), nil
	}
}

func (b *box) Inspect(ctx context.Context) ([]bawn.Fact, error) {
	r, _, err := b.call(ctx, wire.Request{Op: wire.OpInspect})
	if err != nil {
		return nil, err
	}
	facts := make([]bawn.Fact, len(r.Facts))
	for i, f := range r.Facts {
		facts[i] = bawn.Fact(f)
	}
	return facts, nil
}

func (b *box) Kill() {
	// Nobody waits for the answer; Done tells.
	b.s.conn.Send(&wire.Request{Op: wire.OpKill, ID: b.id})
}

// attempted hands an attempt to the reader, or counts it if none keeps up.
func (b *box) attempted(a *wire.Attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	select {
	case b.attempts <- sandbox.Attempt{
		Time: time.Now(), Syscall: a.Syscall, Args: a.Args, Control: a.Control, Errno: a.Errno, Dropped: a.Dropped + b.dropped,
	}:
		b.dropped = 0
	default:
		b.dropped += 1 + a.Dropped
	}
}

func (b *box) end(exit sandbox.Exit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	b.ended = true
	b.exit = exit
	close(b.attempts)
	close(b.done)
}

func exitOf(x *wire.Exit) sandbox.Exit {
	e := sandbox.Exit{Code: -1, OOM: x.OOM}
	if x.Error != "" {
		e.Err = errors.New(x.Error)
	}
	if !x.Ran {
		e.Signal = "killed"
		return e
	}
	status := syscall.WaitStatus(x.Status)
	if status.Signaled() {
		e.Signal = status.Signal().String()
	} else {
		e.Code = status.ExitStatus()
	}
	return e
}

func exitGone(err error) sandbox.Exit {
	return sandbox.Exit{Code: -1, Signal: "killed", Err: err}
}
