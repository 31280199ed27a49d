package linux

import (
	"bufio"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// helper holds the static bawn-sandbox binary, put there by make build.
//
//go:embed helper
var helper embed.FS

// openHelper returns the helper as a sealed file in memory, so that what runs
// with privileges is what was built in and not what lies on some disk.
func openHelper() (*os.File, error) {
	binary, err := helper.ReadFile("helper/bawn-sandbox")
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "sandbox", "this bawn was built without its sandbox helper").
			WithFix("build it with make build")
	}
	fd, err := unix.MemfdCreate("bawn-sandbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there was no such flag
		fd, err = unix.MemfdCreate("bawn-sandbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "bawn-sandbox")
	if _, err := f.Write(binary); err != nil {
		f.Close()
		return nil, err
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// spawner is the server's end of one run of the privileged helper.
type spawner struct {
	cmd  *exec.Cmd
	conn *wire.Conn
	log  *slog.Logger
	dead chan struct{} // closed when it is gone and everything was told

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan answer
	boxes   map[string]*box
	ended   error
}

type answer struct {
	reply *wire.Reply
	fds   []int
}

// startSpawner starts the helper in a mount namespace of its own.
func startSpawner(binary *os.File, cfg Config) (*spawner, error) {
	log := cfg.Log
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", binary.Fd()), append([]string{"spawner", cfg.Dir, baseFolder, cfg.Node}, cfg.Code...)...)
	cmd.Args[0] = "bawn-sandbox"
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setpgid: true} // a terminal's ^C is for the server
	stderr, err := cmd.StderrPipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "sandbox", "the sandbox helper cannot be started").
			WithFix("run bawn as root: only then can it make namespaces and cgroups")
	}
	s := &spawner{cmd: cmd, conn: conn, log: log, dead: make(chan struct{}), waiting: map[uint64]chan answer{}, boxes: map[string]*box{}}
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			log.Warn("sandbox helper", "text", lines.Text())
		}
		io.Copy(io.Discard, stderr) // a line over the scanner's limit must not block the helper
	}()
	go s.receive()
	return s, nil
}

// receive hands out answers and events until the helper is gone.
func (s *spawner) receive() {
	var err error
	for {
		var m wire.Reply
		var fds []int
		if fds, err = s.conn.Receive(&m); err != nil {
			break
		}
		s.mu.Lock()
		waiter, box := s.waiting[m.Seq], s.boxes[m.ID]
		delete(s.waiting, m.Seq)
		s.mu.Unlock()
		switch {
		case m.Seq != 0 && waiter != nil:
			waiter <- answer{&m, fds}
			continue
		case m.Attempt != nil && box != nil:
			box.attempted(m.Attempt)
		case m.Exit != nil && box != nil:
			s.forget(box)
			box.end(exitOf(m.Exit))
		}
		wire.CloseAll(fds)
	}
	s.conn.Close()
	s.cmd.Wait()
	if errors.Is(err, io.EOF) {
		err = errors.New("the sandbox helper has ended")
	}
	s.mu.Lock()
	s.ended = err
	waiting, boxes := s.waiting, s.boxes
	s.waiting, s.boxes = nil, nil
	s.mu.Unlock()
	for _, w := range waiting {
		close(w)
	}
	for _, b := range boxes {
		b.end(exitGone(err))
	}
	close(s.dead)
}

func (s *spawner) forget(b *box) {
	s.mu.Lock()
	delete(s.boxes, b.id)
	s.mu.Unlock()
}

// call sends one request and waits for its answer. A descriptor in the answer
// is returned, or -1.
func (s *spawner) call(ctx context.Context, req wire.Request, fds ...int) (*wire.Reply, int, error) {
	w := make(chan answer, 1)
	s.mu.Lock()
	if s.waiting == nil {
		s.mu.Unlock()
		return nil, -1, s.ended
	}
	s.seq++
	req.Seq = s.seq
	s.waiting[req.Seq] = w
	s.mu.Unlock()
	if err := s.conn.Send(&req, fds...); err != nil {
		s.mu.Lock()
		delete(s.waiting, req.Seq)
		s.mu.Unlock()
		return nil, -1, fmt.Errorf("ask the sandbox helper: %w", err)
	}
	select {
	case a, ok := <-w:
		if !ok {
			return nil, -1, s.ended
		}
		fd := -1
		if len(a.fds) > 0 {
			fd = a.fds[0]
			wire.CloseAll(a.fds[1:])
		}
		if a.reply.Error != "" {
			if fd >= 0 {
				unix.Close(fd)
			}
			return nil, -1, fmt.Errorf("sandbox helper: %s: %s", req.Op, a.reply.Error)
		}
		return a.reply, fd, nil
	case <-ctx.Done():
		go func() { // the answer may carry a descriptor
			if a, ok := <-w; ok {
				wire.CloseAll(a.fds)
			}
		}()
		return nil, -1, ctx.Err()
	}
}

// stop ends the conversation, at which the helper ends every sandbox and itself,
// and waits for that.
func (s *spawner) stop() {
	s.conn.CloseWrite()
	<-s.dead
}
