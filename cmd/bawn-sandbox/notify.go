package main

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// The kernel's structures of seccomp user notification, from linux/seccomp.h.
type (
	notification struct {
		id    uint64
		pid   uint32
		flags uint32
		nr    int32
		arch  uint32
		ip    uint64
		args  [6]uint64
	}
	response struct {
		id    uint64
		val   int64
		error int32
		flags uint32
	}
)

const (
	ioctlNotifRecv     = 0xc0502100
	ioctlNotifSend     = 0xc0182101
	ioctlNotifIDValid  = 0x40082102
	ioctlNotifSetFlags = 0x40082104

	notifSyncWakeUp = 1
	flagContinue    = 1
)

// answerCalls answers the system calls that the filter hands over, until the
// last process of the sandbox is gone. Almost all are refused; what is
// continued is only what the kernel would stop by other means if it had to.
func (b *box) answerCalls() {
	fd := b.notify
	unix.IoctlSetInt(fd, ioctlNotifSetFlags, notifSyncWakeUp) // an older kernel is only slower
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "seccomp")
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	rc.Read(func(uintptr) bool {
		for {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 && p[0].Revents&unix.POLLIN == 0 {
				return true
			}
			if n == 0 {
				return false
			}
			var req notification
			if errno := ioctl(fd, ioctlNotifRecv, unsafe.Pointer(&req)); errno != 0 {
				continue // the caller was killed meanwhile
			}
			resp := b.judge(&req)
			resp.id = req.id
			ioctl(fd, ioctlNotifSend, unsafe.Pointer(&resp))
		}
	})
}

func ioctl(fd int, op uintptr, arg unsafe.Pointer) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// judge decides one call. Arguments that are pointers may change after they
// were read, so nothing is allowed because of what one of them says: a call is
// continued either because init makes it, or because the answer does not depend
// on memory, or because mounts and Landlock stop it anyway and reading the path
// only serves the report.
func (b *box) judge(n *notification) response {
	call := wire.SyscallName(int(n.nr))
	switch call {
	case "execve", "execveat":
		if b.firstExec.CompareAndSwap(1, 0) {
			return response{flags: flagContinue}
		}
		if b.attached.Load() && b.execAllowed.Load() && call == "execve" {
			return response{flags: flagContinue}
		}
		return b.refuse(n, call, "B7", unix.EPERM, b.execArgs(n, call))
	}
	if makesDevice(call, n) {
		return b.refuse(n, call, "B2", unix.EPERM, b.plainArgs(n, call))
	}
	if paths := writePaths(call, n); paths != nil {
		var shown []string
		harmless := true
		for _, p := range paths {
			name := b.absolute(n, p)
			shown = append(shown, name)
			harmless = harmless && writable(name)
		}
		if harmless || !b.valid(n) {
			return response{flags: flagContinue}
		}
		return b.refuse(n, call, "B4", unix.EROFS, shown)
	}
	if call == "memfd_create" { // one that could be executed
		return b.refuse(n, call, "B7", unix.EPERM, []string{b.text(n, n.args[0]), "0x" + strconv.FormatUint(n.args[1], 16)})
	}
	return b.refuse(n, call, "B2", unix.EPERM, b.plainArgs(n, call))
}

func (b *box) valid(n *notification) bool {
	return ioctl(b.notify, ioctlNotifIDValid, unsafe.Pointer(&n.id)) == 0
}

// refuse answers with an error and reports it, within the limit.
func (b *box) refuse(n *notification, call, control string, errno unix.Errno, args []string) response {
	if b.attached.Load() && b.valid(n) {
		if ok, dropped := b.reports.allow(time.Now()); ok {
			b.s.server.Send(&wire.Reply{ID: b.id, Attempt: &wire.Attempt{
				Syscall: call, Args: args, Control: control, Errno: unix.ErrnoName(errno), Dropped: dropped,
			}})
		}
	}
	return response{error: -int32(errno)}
}

// pathArg is where a call has a path: the argument that is its folder
// descriptor, or -1, and the one that points to it.
type pathArg struct{ dir, path int }

// writePaths returns the paths that a call would change, nil for other calls.
func writePaths(call string, n *notification) []pathArg {
	switch call {
	case "open", "creat", "mkdir", "rmdir", "unlink", "truncate", "chmod", "chown", "lchown", "mknod":
		return []pathArg{{-1, 0}}
	case "openat", "mkdirat", "unlinkat", "fchmodat", "fchownat", "mknodat":
		return []pathArg{{0, 1}}
	case "rename", "link":
		return []pathArg{{-1, 0}, {-1, 1}}
	case "renameat", "renameat2", "linkat":
		return []pathArg{{0, 1}, {2, 3}}
	case "symlink":
		return []pathArg{{-1, 1}}
	case "symlinkat":
		return []pathArg{{1, 2}}
	}
	return nil
}

// makesDevice reports whether a call is to make a device file.
func makesDevice(call string, n *notification) bool {
	mode := n.args[1]
	switch call {
	case "mknod":
	case "mknodat":
		mode = n.args[2]
	default:
		return false
	}
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFBLK || kind == unix.S_IFCHR
}

// writable reports whether mounts and Landlock may let a write to name pass.
// Everything else is known to fail, and worth a report.
func writable(name string) bool {
	for _, dir := range []string{"/tmp/", "/proc/", "/dev/"} {
		if strings.HasPrefix(name, dir) {
			return dir != "/proc/" || !strings.HasPrefix(name, "/proc/sys")
		}
	}
	return name == "/tmp"
}

// absolute resolves the path of a call by its text; symbolic links stay as
// they are, because the answer never depends on it.
func (b *box) absolute(n *notification, p pathArg) string {
	name := b.text(n, n.args[p.path])
	if strings.HasPrefix(name, "/") {
		return path.Clean(name)
	}
	link := "cwd"
	if p.dir >= 0 && int32(n.args[p.dir]) != unix.AT_FDCWD {
		link = "fd/" + strconv.Itoa(int(int32(n.args[p.dir])))
	}
	dir, err := os.Readlink("/proc/" + strconv.Itoa(int(n.pid)) + "/" + link)
	if err != nil {
		return name
	}
	return path.Join(dir, name)
}

// Bounds of what a report shows.
const (
	maxArg  = 256
	maxArgs = 8
)

// text reads a string of the caller's memory.
func (b *box) text(n *notification, addr uint64) string {
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(n.pid))+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "?"
	}
	defer unix.Close(fd)
	var buf [maxArg + 1]byte
	// The string may end just before an unmapped page.
	for size := len(buf); size > 0; size /= 2 {
		got, err := unix.Pread(fd, buf[:size], int64(addr))
		if err == nil && got > 0 {
			s, _, whole := bytes.Cut(buf[:got], []byte{0})
			if !whole && len(s) > maxArg {
				return string(s[:maxArg]) + "…"
			}
			return string(s)
		}
	}
	return "?"
}

// word reads one pointer of the caller's memory.
func (b *box) word(n *notification, addr uint64) (v uint64, ok bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(n.pid))+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var buf [8]byte
	got, err := unix.Pread(fd, buf[:], int64(addr))
	return *(*uint64)(unsafe.Pointer(&buf)), err == nil && got == 8
}

func (b *box) execArgs(n *notification, call string) []string {
	file, argv := n.args[0], n.args[1]
	if call == "execveat" {
		file, argv = n.args[1], n.args[2]
	}
	args := []string{b.text(n, file)}
	for i := range uint64(maxArgs) {
		at, ok := b.word(n, argv+8*i)
		if !ok || at == 0 {
			break
		}
		args = append(args, b.text(n, at))
	}
	return args
}

// plainArgs shows numbers, and text where the call is known to have it.
func (b *box) plainArgs(n *notification, call string) []string {
	texts, numbers := 0, 3
	switch call {
	case "mount":
		texts, numbers = 3, 0
	case "umount2", "chroot", "swapon", "pivot_root":
		texts, numbers = 1, 0
	case "clone", "unshare", "setns", "bpf", "io_uring_setup", "keyctl":
		numbers = 2
	}
	var args []string
	for i := range texts {
		args = append(args, b.text(n, n.args[i]))
	}
	for i := range numbers {
		args = append(args, "0x"+strconv.FormatUint(n.args[i], 16))
	}
	return args
}

// limiter lets a burst of reports through and then a few a second, so that a
// loop of refused calls is a number in the log and not a flood.
type limiter struct {
	mu      sync.Mutex
	tokens  float64
	last    time.Time
	dropped int
}

const (
	reportBurst = 50
	reportRate  = 5 // a second
)

// allow reports whether to report, and how many were left out before.
func (l *limiter) allow(now time.Time) (ok bool, dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens = reportBurst
	} else {
		l.tokens = min(reportBurst, l.tokens+now.Sub(l.last).Seconds()*reportRate)
	}
	l.last = now
	if l.tokens < 1 {
		l.dropped++
		return false, 0
	}
	l.tokens--
	dropped, l.dropped = l.dropped, 0
	return true, dropped
}
