// Package linux is the sandbox driver "process": namespaces, a read-only root,
// seccomp, Landlock, cgroups and limits around ordinary processes. A small
// privileged helper beside the server does the work; this package is the
// server's side of it and needs no privilege itself: see [Launch].
package linux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
	Code string       // the folder below which code may be attached; the helper refuses any other
	Node string       // names this node's cgroups: [a-z0-9-], at most 32 bytes
	Log  *slog.Logger // nil means slog.Default()

	// Helper is one that runs already; the driver closes it. Nil has the driver
	// launch one over Dir and Code.
	Helper *Helper
	// Prepared returns the name of the root that was made for an image, below the
	// helper's folder of roots. Nil has the driver make roots itself, in Dir.
	Prepared func(ctx context.Context, image string) (string, error)
}

// Driver makes sandboxes with the helper.
type Driver struct {
	cfg    Config
	helper *Helper

	mu      sync.Mutex
	spawner *spawner
	changed chan struct{}          // closed when spawner or failed changes
	failed  error                  // there will be no spawner any more
	images  map[string]*wire.Image // prepared ones, to be told to a new spawner
	probed  []bawn.Capability
	tested  bawn.Capability
	closed  bool
}

// New starts the helper. An error says why this host can make no sandboxes at
// all; what else it may lack is Probe's to say.
func New(cfg Config) (d *Driver, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Helper == nil {
		if cfg.Helper, err = launchOver(cfg); err != nil {
			return nil, err
		}
	}
	d = &Driver{cfg: cfg, helper: cfg.Helper, changed: make(chan struct{}), images: map[string]*wire.Image{}}
	go d.helper.forward(cfg.Log)
	go d.follow()
	ctx, cancel := context.WithTimeout(context.Background(), selfTestTime)
	defer cancel()
	if _, err := d.current(ctx); err != nil {
		d.Close()
		return nil, err
	}
	err = d.selfTest(ctx)
	tested := bawn.Capability{
		Name: "a sandbox that holds", Control: "B12", OK: err == nil, Required: true,
		Detail: "made at start, and nine ways out tried from inside",
	}
	if err != nil {
		tested.Detail = err.Error()
		tested.Fix = "mend what else is missing here; if nothing is, report it as a security defect"
	}
	d.mu.Lock()
	d.tested = tested
	d.mu.Unlock()
	return d, nil
}

// launchOver launches a helper over the folders of a configuration.
func launchOver(cfg Config) (*Helper, error) {
	if err := os.MkdirAll(filepath.Join(cfg.Dir, baseFolder), 0o700); err != nil {
		return nil, err
	}
	if err := SweepRoots(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Code == "" {
		cfg.Code = filepath.Join(cfg.Dir, baseFolder) // empty
	}
	roots, err := os.Open(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer roots.Close()
	code, err := os.Open(cfg.Code)
	if err != nil {
		return nil, err
	}
	defer code.Close()
	return Launch(Places{Roots: roots, Code: code, Node: cfg.Node})
}

// selfTestTime bounds the self-test; it takes some ten milliseconds.
const selfTestTime = 10 * time.Second

// selfTestName is the name of the image of the self-test, of its sandbox and of
// what is tested there.
const selfTestName = "selftest"

// SelfTestImage returns the image that every helper is tried with before it is
// used; its program is the helper itself.
func SelfTestImage() (sandbox.Image, error) {
	binary, err := helper.ReadFile("helper/bawn-sandbox")
	return sandbox.Image{Name: selfTestName, Syscall: sandbox.SyscallProvided, Files: []sandbox.File{
		{Path: "/usr/bin/selftest", Data: binary, Mode: 0o755},
	}}, err
}

// selfTest runs the helper itself as the program of a sandbox.
func (d *Driver) selfTest(ctx context.Context) error {
	for _, c := range d.Probe() {
		if c.Required && !c.OK {
			return errors.New("not tried, because something required is missing")
		}
	}
	const name = selfTestName
	img, err := SelfTestImage()
	if err != nil {
		return err
	}
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

var errClosed = errors.New("the driver is closed")

// follow takes every spawner that the keeper starts into use, until there is
// none to come.
func (d *Driver) follow() {
	for restarts := 0; ; restarts++ {
		s, err := d.helper.next()
		if err == nil {
			err = d.greet(s, restarts)
		}
		if err != nil {
			d.fail(err)
			return
		}
		<-s.dead
		d.mu.Lock()
		closed := d.closed
		if d.spawner == s {
			d.spawner = nil
		}
		d.mu.Unlock()
		if !closed {
			d.cfg.Log.Error("the sandbox helper died and is started again", "error", s.ended, "restarts", restarts+1)
		}
	}
}

// greet asks a new spawner what it can do and tells it of the images. One that
// does not even answer has died, which is seen elsewhere, unless it is the first.
func (d *Driver) greet(s *spawner, restarts int) error {
	ctx := context.Background() // the spawner answers or dies
	reply, _, err := s.call(ctx, wire.Request{Op: wire.OpProbe})
	d.mu.Lock()
	images := slices.Collect(maps.Values(d.images))
	d.mu.Unlock()
	for _, img := range images {
		if err == nil {
			_, _, err = s.call(ctx, wire.Request{Op: wire.OpImage, Image: img})
		}
	}
	if err != nil {
		s.conn.CloseWrite()
		if restarts > 0 {
			return nil
		}
		return bawn.Wrap(err, bawn.CodeUnavailable, "sandbox", "the sandbox helper does not work here").
			WithFix("%s", howToMend())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed { // the keeper was not told in time, and nobody else will stop this one
		s.conn.CloseWrite()
		return nil
	}
	d.spawner = s
	d.probed = nil
	for _, c := range reply.Probe.Capabilities {
		d.probed = append(d.probed, bawn.Capability(c))
	}
	d.tell()
	return nil
}

// fail says that there will be no spawner any more.
func (d *Driver) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, io.EOF) {
		err = bawn.Errorf(bawn.CodeUnavailable, "sandbox", "the sandbox helper has ended for good").WithFix("start bawn again; its log has the detail")
	}
	if !d.closed {
		d.cfg.Log.Error("no sandbox can be made any more", "error", err)
	}
	d.spawner, d.failed = nil, err
	d.tell()
}

// tell wakes whoever waits for a change. The caller holds mu.
func (d *Driver) tell() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// current returns the running spawner, waiting for another if one has died.
func (d *Driver) current(ctx context.Context) (*spawner, error) {
	for {
		d.mu.Lock()
		s, changed, failed, closed := d.spawner, d.changed, d.failed, d.closed
		d.mu.Unlock()
		switch {
		case closed:
			return nil, errClosed
		case failed != nil:
			return nil, failed
		}
		if s != nil {
			select {
			case <-s.dead:
			default:
				return s, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "sandbox", "the sandbox helper was still being started").WithFix("try again")
		}
	}
}

// baseFolder is what the helper mounts its own file system over.
const baseFolder = ".mounts"

// Probe says what the helper found when it started, and whether a sandbox made
// then held.
func (d *Driver) Probe() []bawn.Capability {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(slices.Clone(d.probed), d.tested)
}

// Prepare makes an image's root on disk, if nobody did before, and mounts it.
func (d *Driver) Prepare(ctx context.Context, img sandbox.Image) error {
	var name string
	var err error
	if d.cfg.Prepared != nil {
		name, err = d.cfg.Prepared(ctx, img.Name)
	} else {
		name, err = MakeRoot(d.cfg.Dir, img)
	}
	if err != nil {
		return err
	}
	w := &wire.Image{Name: img.Name, Dir: name, Kind: string(img.Syscall)}
	s, err := d.current(ctx)
	if err != nil {
		return err
	}
	if _, _, err := s.call(ctx, wire.Request{Op: wire.OpImage, Image: w}); err != nil {
		return err
	}
	d.mu.Lock()
	d.images[img.Name] = w
	d.mu.Unlock()
	return nil
}

// Start makes one sandbox.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	s, err := d.current(ctx)
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
	b := newBox(spec.ID, s, d.cfg.Code, conn, output)
	s.mu.Lock()
	if s.boxes != nil {
		s.boxes[spec.ID] = b
	}
	s.mu.Unlock()
	start := &wire.Start{Image: spec.Image}
	if len(spec.Args) > 0 {
		start.Exec = &wire.Exec{Args: spec.Args, Env: spec.Env}
	}
	reply, _, err := s.call(ctx, wire.Request{Op: wire.OpStart, ID: spec.ID, Start: start}, pair[1], int(theirs.Fd()))
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
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	s := d.spawner
	d.tell()
	d.mu.Unlock()
	// The keeper first, or it would start another spawner.
	d.helper.conn.CloseWrite()
	if s != nil {
		s.stop()
	}
	return d.helper.Close()
}

// box is the server's side of one sandbox.
type box struct {
	id       string
	s        *spawner
	code     string // the folder of code
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

func newBox(id string, s *spawner, code string, conn net.Conn, output *os.File) *box {
	return &box{id: id, s: s, code: code, conn: conn, output: output, attempts: make(chan sandbox.Attempt, attemptBacklog), done: make(chan struct{})}
}

func (b *box) ID() string                       { return b.id }
func (b *box) Conn() net.Conn                   { return b.conn }
func (b *box) Output() *os.File                 { return b.output }
func (b *box) Attempts() <-chan sandbox.Attempt { return b.attempts }
func (b *box) Done() <-chan struct{}            { return b.done }
func (b *box) Exit() sandbox.Exit               { return b.exit }

func (b *box) call(ctx context.Context, req wire.Request, fds ...int) (*wire.Reply, []int, error) {
	req.ID = b.id
	return b.s.call(ctx, req, fds...)
}

func (b *box) Attach(ctx context.Context, a sandbox.Attachment) error {
	code := make([]string, len(a.Code))
	for i, dir := range a.Code {
		rel, err := filepath.Rel(b.code, dir)
		if err != nil || !filepath.IsLocal(rel) || rel == "." {
			return fmt.Errorf("folder %.200q is not where this node keeps code", dir)
		}
		code[i] = rel
	}
	at := &wire.Attach{Code: code, Memory: a.Memory, CPU: a.CPU, PIDs: a.PIDs, Tmp: a.Tmp, Exec: a.Exec}
	var fds []int
	if len(a.Files) > 0 {
		fd, err := gather(a.Files)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds = []int{fd}
		for _, f := range a.Files {
			at.Files = append(at.Files, wire.File{Path: f.Path, Size: len(f.Data)})
		}
	}
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpAttach, Attach: at}, fds...)
	return err
}

// gather puts files into one in memory, one after the other, sealed: they may be
// more than a message holds.
func gather(files []sandbox.AttachedFile) (int, error) {
	size := 0
	for _, f := range files {
		if size += len(f.Data); len(f.Data) > sandbox.MaxFileBytes || size > sandbox.MaxFilesSize || len(files) > sandbox.MaxFiles {
			return -1, fmt.Errorf("the files of a sandbox are more than %d, or than %d bytes", sandbox.MaxFiles, sandbox.MaxFilesSize)
		}
	}
	fd, err := unix.MemfdCreate("files", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3 there was no such flag
		fd, err = unix.MemfdCreate("files", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	for _, f := range files {
		for left := f.Data; len(left) > 0 && err == nil; {
			var n int
			n, err = unix.Write(fd, left)
			left = left[max(n, 0):]
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (b *box) Exec(ctx context.Context, args, env []string) error {
	_, _, err := b.call(ctx, wire.Request{Op: wire.OpExec, Exec: &wire.Exec{Args: args, Env: env}})
	return err
}

func (b *box) Open(ctx context.Context, ports []sandbox.Port, local []netip.Prefix) ([]*os.File, error) {
	o := &wire.Open{Local: local}
	for _, p := range ports {
		o.Ports = append(o.Ports, wire.Port(p))
	}
	_, fds, err := b.call(ctx, wire.Request{Op: wire.OpOpen, Open: o})
	if err != nil {
		return nil, err
	}
	if len(fds) != len(ports) {
		wire.CloseAll(fds)
		return nil, errors.New("the sandbox helper made another number of sockets")
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), ports[i].Network)
	}
	return files, nil
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

// CPU reads the control group itself.
func (b *box) CPU() (time.Duration, bool) {
	select {
	case <-b.done:
		return 0, false
	default:
		return b.group.CPU()
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
