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
	"strings"
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

// PrepareCommand is the only argument with which a helper runs the preparer of
// roots: this very program, in which descriptor 3 is the folder of roots and 4
// takes the report.
const PrepareCommand = wire.PrepareCommand

// Places says where a helper works. The folders are given open, so that nobody
// can put others in their place between the check and the use.
type Places struct {
	Roots *os.File // of runtimes: nobody but the user that the helper runs as may write to it; on a local file system
	Code  *os.File // below which code may be attached, and nothing else
	Node  string   // names this node's cgroups: [a-z0-9-], at most 32 bytes

	// Preparer has the helper run this program's own command to prepare roots
	// when it is told to, with the helper's rights; see [Helper.Prepare].
	Preparer bool
}

// Weaker says in one line what sandboxes of this process lack that those of root
// have; "" if nothing. [Driver.Probe] tells more.
func Weaker() string {
	if os.Geteuid() == 0 {
		return ""
	}
	return "without root some controls are weaker: no cpu limit, memory limits and freezing are not the kernel's (B5), all sandboxes have the node's own user (B3); bawn doctor tells more"
}

// howToMend says what to do about a helper that does not work.
func howToMend() string {
	if os.Geteuid() != 0 {
		if fix := noNamespaces(); fix != "" {
			return fix
		}
	}
	return "run bawn as root on Linux 6.6 or newer; its log has the detail"
}

// noNamespaces says by which setting this host gives users no namespaces, and how
// to get past that; "" if it does not say that it gives none.
func noNamespaces() string {
	for _, s := range []struct{ file, closed, open string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bawn that allows userns"},
	} {
		if b, err := os.ReadFile(s.file); err == nil && strings.TrimSpace(string(b)) == s.closed {
			return "this host gives users no namespaces (" + s.file + " is " + s.closed + "): run bawn as root, or as root: " + s.open
		}
	}
	return ""
}

// Helper is the privileged part of a node: a keeper, which starts the spawner
// and starts another when one has ended. It ends when the server does.
type Helper struct {
	keeper *exec.Cmd
	conn   *wire.Conn
	stderr io.ReadCloser
	report *os.File // of the preparer; nil without one
	end    sync.Once
}

// Launch starts the helper with the rights of this process, which needs none of
// them for its own part any more afterwards. Without root the helper is root of a
// user namespace instead, in which this process's user is the only one; see
// [Weaker]. The folders may be closed after.
func Launch(p Places) (*Helper, error) {
	if err := unix.Mkdirat(int(p.Roots.Fd()), baseFolder, 0o700); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("make the helper's folder: %w", err)
	}
	binary, err := openHelper()
	if err != nil {
		return nil, err
	}
	defer binary.Close()
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	h := &Helper{conn: conn}
	mode := wire.Rootful
	if os.Geteuid() != 0 {
		mode = wire.Rootless
	}
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", binary.Fd()), "keeper", p.Node, mode)
	cmd.Args[0] = "bawn-sandbox"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{theirs, p.Roots, p.Code}
	var report *os.File
	if p.Preparer {
		self, err := os.Open("/proc/self/exe")
		if err == nil {
			defer self.Close()
			h.report, report, err = os.Pipe()
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		defer report.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, self, report)
		for _, name := range []string{"PATH", "HOME"} { // where interpreters are looked for
			cmd.Env = append(cmd.Env, name+"="+os.Getenv(name))
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is for the server
	if mode == wire.Rootless {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if h.stderr, err = cmd.StderrPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		conn.Close()
		if h.report != nil {
			h.report.Close()
		}
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "sandbox", "the sandbox helper cannot be started: %v", err).WithFix("%s", howToMend())
	}
	h.keeper = cmd
	return h, nil
}

// Prepare has the preparer run, and returns its report, to be read to its end
// and closed by the caller. Once only, and only with [Places.Preparer].
func (h *Helper) Prepare() (io.ReadCloser, error) {
	report := h.report
	h.report = nil
	if err := h.conn.Send(wire.Order{Roots: true}); err != nil {
		report.Close()
		return nil, fmt.Errorf("ask the sandbox helper: %w", err)
	}
	return report, nil
}

// Close ends the helper, which ends every sandbox first, and waits for that.
func (h *Helper) Close() error {
	h.end.Do(func() {
		h.conn.Close()
		if h.report != nil {
			h.report.Close()
		}
		h.keeper.Wait()
	})
	return nil
}

// forward logs what the helper has to say.
func (h *Helper) forward(log *slog.Logger) {
	lines := bufio.NewScanner(h.stderr)
	for lines.Scan() {
		log.Warn("sandbox helper", "text", lines.Text())
	}
	io.Copy(io.Discard, h.stderr) // a line over the scanner's limit must not block the helper
}

// spawner is the server's end of one run of the spawner.
type spawner struct {
	pid  int
	conn *wire.Conn
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

// next waits for the next spawner that the keeper starts; io.EOF means that
// there will be none.
func (h *Helper) next() (*spawner, error) {
	var hello wire.Hello
	fds, err := h.conn.Receive(&hello)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		wire.CloseAll(fds)
		return nil, errors.New("the sandbox helper sent no socket")
	}
	conn, err := wire.New(fds[0])
	if err != nil {
		return nil, err
	}
	s := &spawner{pid: hello.PID, conn: conn, dead: make(chan struct{}), waiting: map[uint64]chan answer{}, boxes: map[string]*box{}}
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

// call sends one request and waits for its answer, and returns that with its
// descriptors.
func (s *spawner) call(ctx context.Context, req wire.Request, fds ...int) (*wire.Reply, []int, error) {
	w := make(chan answer, 1)
	s.mu.Lock()
	if s.waiting == nil {
		s.mu.Unlock()
		return nil, nil, s.ended
	}
	s.seq++
	req.Seq = s.seq
	s.waiting[req.Seq] = w
	s.mu.Unlock()
	if err := s.conn.Send(&req, fds...); err != nil {
		s.mu.Lock()
		delete(s.waiting, req.Seq)
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("ask the sandbox helper: %w", err)
	}
	select {
	case a, ok := <-w:
		if !ok {
			return nil, nil, s.ended
		}
		if a.reply.Error != "" {
			wire.CloseAll(a.fds)
			return nil, nil, fmt.Errorf("sandbox helper: %s: %s", req.Op, a.reply.Error)
		}
		return a.reply, a.fds, nil
	case <-ctx.Done():
		go func() { // the answer may carry descriptors
			if a, ok := <-w; ok {
				wire.CloseAll(a.fds)
			}
		}()
		return nil, nil, ctx.Err()
	}
}

// stop ends the conversation, at which the helper ends every sandbox and itself,
// and waits for that.
func (s *spawner) stop() {
	s.conn.CloseWrite()
	<-s.dead
}
