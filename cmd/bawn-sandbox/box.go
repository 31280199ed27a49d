package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/cgroup"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// box is one sandbox as the spawner sees it.
type box struct {
	s     *spawner
	name  string // of its folder and its control groups
	id    string // the server's name for it
	pid   int    // of its init, on the host
	pidfd int    // 0 before clone
	share string // the folder through which code arrives
	ctl   *wire.Conn
	group *cgroup.Group
	gone  chan struct{} // closed when nothing is left

	notify int // seccomp listener
	tmp    int // descriptor of its /tmp
	uid    int // of its program, on the host

	attached    atomic.Bool   // from here on refused calls are the function's, and reported
	execAllowed atomic.Bool   // the manifest declares exec
	firstExec   atomic.Int32  // 1 while init may still start the program
	program     atomic.Int64  // pid of the program on the host, 0 before
	answered    chan struct{} // closed when the last refused call is answered
	memory      atomic.Int64  // the limit, in bytes, for watchMemory
	over        atomic.Bool   // killed by watchMemory
	frozen      atomic.Bool
	reports     limiter // the rest of this group is answerCalls' alone
	writes      bucket
	refusals    bucket

	mu      sync.Mutex
	started bool
	exit    wire.Exit

	life    sync.Mutex // held by whoever uses pidfd or tmp, freezes or kills
	dying   bool       // killed: must not be frozen any more
	cleared bool       // the descriptors are closed, and may be another's
}

var errEnded = errors.New("the sandbox has ended")

// makeShare makes a folder whose later mounts propagate into the sandbox, and
// from there nowhere: the sandbox's user namespace makes it the receiving end.
func (b *box) makeShare() error {
	if err := unix.Mkdir(b.share, 0o711); err != nil {
		return err
	}
	if err := unix.Mount(b.share, b.share, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", b.share, "", unix.MS_SHARED, "")
}

// clone makes the init in new namespaces. It runs on the thread that makes
// all processes.
func (b *box) clone(uid uint32, control *os.File) error {
	attr, env := initProcess, []string{"GOMAXPROCS=1"}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(uid), Size: 1}, {ContainerID: programUID, HostID: int(uid) + 1, Size: 1}}
	attr.GidMappings = attr.UidMappings
	if b.s.rootless {
		attr = rootlessInit()
		env = append(env, "GOTRACEBACK=none") // the program may send it signals
	}
	attr.PidFD = &b.pidfd
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"init"}, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2, control.Fd()},
		Sys:   &attr,
	})
	b.pid = pid
	return err
}

// abandon undoes a start that failed.
func (b *box) abandon() {
	if b.pid > 0 {
		b.kill()
		b.reap()
	}
	b.clear()
	if b.notify >= 0 { // nobody else was told of it
		unix.Close(b.notify)
	}
}

func (b *box) kill() {
	b.life.Lock()
	defer b.life.Unlock()
	if b.cleared {
		return
	}
	b.dying = true
	unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0)
	if b.group != nil && b.group.Frozen() {
		b.group.Freeze(false) // a frozen process does not even die
	}
}

func (b *box) freeze(on bool) error {
	b.life.Lock()
	defer b.life.Unlock()
	if b.dying || b.cleared {
		return errEnded
	}
	b.frozen.Store(on)
	return b.group.Freeze(on)
}

func (b *box) reap() {
	for {
		if _, err := unix.Wait4(b.pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// clear removes what the kernel does not remove by itself.
func (b *box) clear() {
	b.life.Lock()
	defer b.life.Unlock()
	b.cleared = true
	if b.group != nil {
		b.exit.OOM = b.group.OOMKills() > 0 || b.over.Load()
		if err := b.group.Remove(); err != nil {
			os.Stderr.WriteString("bawn-sandbox: " + err.Error() + "\n")
		}
	}
	unix.Unmount(b.share, unix.MNT_DETACH)
	unix.Unmount(b.share, unix.MNT_DETACH) // code may be mounted on the share
	unix.Rmdir(b.share)
	b.removeFiles()
	if b.ctl != nil {
		b.ctl.Close()
	}
	for _, fd := range []int{b.pidfd, b.tmp} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// watch follows the init to its end.
func (b *box) watch() {
	for {
		var m wire.FromInit
		fds, err := b.ctl.Receive(&m)
		if err != nil {
			break
		}
		wire.CloseAll(fds)
		b.mu.Lock()
		switch {
		case m.Error != "":
			b.exit.Error = m.Error
		case m.Started != 0:
			b.program.Store(int64(childOf(b.pid)))
		case m.Exited:
			b.exit.Status, b.exit.Ran = m.Status, true
		}
		b.mu.Unlock()
	}
	b.kill() // an init that closed its socket has no business left
	b.reap()
	<-b.answered
	b.reportRest()
	b.clear()
	b.s.mu.Lock()
	delete(b.s.boxes, b.id)
	b.s.mu.Unlock()
	close(b.gone)
	b.mu.Lock()
	exit := b.exit
	b.mu.Unlock()
	b.s.server.Send(&wire.Reply{ID: b.id, Exit: &exit})
}

// exec lets the init start the program.
func (b *box) exec(e *wire.Exec) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.started {
		return errors.New("the sandbox already runs a program")
	}
	b.started = true
	b.firstExec.Store(1)
	return b.ctl.Send(e)
}

// childOf returns the first child of a process, or 0.
func childOf(pid int) int {
	tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	for _, t := range tasks {
		list := readAll("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/children")
		var child int
		if _, err := fmt.Sscan(list, &child); err == nil {
			return child
		}
	}
	return 0
}

// defaultTmp is the size that init gives /tmp.
const defaultTmp = 64 << 20

// openTmp keeps a handle on the sandbox's /tmp, to size it at attach. It follows
// no link: from here one would lead into the host.
func (b *box) openTmp() error {
	root, err := unix.Open("/proc/"+strconv.Itoa(b.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	b.tmp, err = unix.Openat2(root, "tmp", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	return err
}

func (b *box) resizeTmp(size int64) error {
	if size == defaultTmp {
		return nil
	}
	b.life.Lock()
	defer b.life.Unlock()
	if b.cleared {
		return errEnded
	}
	fd, err := unix.Fspick(b.tmp, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Size 0 means "no limit" to the kernel; one page is the least that limits.
	if err := unix.FsconfigSetString(fd, "size", strconv.FormatInt(max(size, 4096), 10)); err != nil {
		return err
	}
	return unix.FsconfigReconfigure(fd)
}
