package main

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
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
	defer close(b.answered)
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
//
// The function does not pay for this process's time, so it is kept small: what
// will not be reported is not looked at, and answers come slower to those who
// ask too much.
func (b *box) judge(n *notification) response {
	call := wire.SyscallName(int(n.nr))
	if call == "execve" || call == "execveat" {
		if b.firstExec.CompareAndSwap(1, 0) {
			return response{flags: flagContinue}
		}
		if b.attached.Load() && b.execAllowed.Load() && call == "execve" {
			return response{flags: flagContinue}
		}
		return b.refuse(n, call, "B7", func() []string { return b.execArgs(n, call) })
	}
	if paths := writePaths(call, n); paths != nil && !makesDevice(call, n) {
		b.pace(&b.writes, writeBurst, writeRate)
		return b.write(n, call, paths)
	}
	if call == "memfd_create" {
		return b.refuse(n, call, "B7", func() []string { return []string{b.text(n, n.args[0]), hex(n.args[1])} })
	}
	return b.refuse(n, call, "B2", func() []string { return b.plainArgs(n, call) })
}

// write judges a call that changes files by their paths.
func (b *box) write(n *notification, call string, paths []pathArg) response {
	if !b.attached.Load() || !b.reports.may(call, time.Now()) {
		return response{flags: flagContinue} // the kernel refuses as well, only unseen
	}
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
	b.report(call, "B4", unix.EROFS, shown)
	return response{error: -int32(unix.EROFS)}
}

func (b *box) valid(n *notification) bool {
	return ioctl(b.notify, ioctlNotifIDValid, unsafe.Pointer(&n.id)) == 0
}

// refuse answers with EPERM and reports the call, within the limit.
func (b *box) refuse(n *notification, call, control string, args func() []string) response {
	b.pace(&b.refusals, refusalBurst, refusalRate)
	if b.attached.Load() {
		if b.reports.may(call, time.Now()) {
			if shown := args(); b.valid(n) {
				b.report(call, control, unix.EPERM, shown)
			}
		} else {
			b.reports.leaveOut(call, control)
		}
	}
	return response{error: -int32(unix.EPERM)}
}

func (b *box) report(call, control string, errno unix.Errno, args []string) {
	dropped := b.reports.told(call, time.Now())
	b.s.server.Send(&wire.Reply{ID: b.id, Attempt: &wire.Attempt{
		Syscall: call, Args: args, Control: control, Errno: unix.ErrnoName(errno), Dropped: dropped,
	}})
}

// reportRest tells of what was left out, when the sandbox has ended: one report
// a kind, which stands for itself and the others.
func (b *box) reportRest() {
	for call, k := range b.reports.kinds {
		if k.dropped > 0 {
			b.s.server.Send(&wire.Reply{ID: b.id, Attempt: &wire.Attempt{
				Syscall: call, Control: k.control, Errno: unix.ErrnoName(unix.EPERM), Dropped: k.dropped - 1,
			}})
		}
	}
}

// Calls that a sandbox may have judged without waiting, at once and then each
// second. Making files in /tmp is honest work; what is refused is not.
const (
	writeBurst, writeRate     = 20_000, 5_000
	refusalBurst, refusalRate = 500, 100
)

// maxPause is the longest that one answer is held back.
const maxPause = 20 * time.Millisecond

// pace holds an answer back that comes over the rate. Only this sandbox waits.
func (b *box) pace(l *bucket, burst, rate float64) {
	if wait := l.take(time.Now(), burst, rate); wait > 0 {
		time.Sleep(min(wait, maxPause))
	}
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

func hex(v uint64) string { return "0x" + strconv.FormatUint(v, 16) }

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
		args = append(args, hex(n.args[i]))
	}
	return args
}

// bucket is a token bucket that may go into debt. Not for concurrent use.
type bucket struct {
	tokens float64
	last   time.Time
}

// take takes a token and returns how long it takes until it is earned.
func (l *bucket) take(now time.Time, burst, rate float64) time.Duration {
	l.fill(now, burst, rate)
	l.tokens--
	if l.tokens >= 0 {
		return 0
	}
	return time.Duration(-l.tokens / rate * float64(time.Second))
}

func (l *bucket) fill(now time.Time, burst, rate float64) {
	if l.last.IsZero() {
		l.tokens = burst
	} else {
		l.tokens = min(burst, l.tokens+now.Sub(l.last).Seconds()*rate)
	}
	l.last = now
}

// limiter lets a few reports of each kind of call through and then one a
// second, so that a loop of refused calls is a number in the log and not a
// flood, and no kind hides behind another. It is used by answerCalls alone, and
// after its end by watch.
type limiter struct {
	all   bucket
	kinds map[string]*kind
}

type kind struct {
	bucket
	control string
	dropped int
}

const (
	kindBurst, kindRate = 5, 1
	allBurst, allRate   = 50, 5
)

// may reports whether a call of this kind is to be told. The first of each kind
// always is: there are no more kinds than system calls with names.
func (l *limiter) may(call string, now time.Time) bool {
	k := l.kinds[call]
	if k == nil {
		return true
	}
	k.fill(now, kindBurst, kindRate)
	l.all.fill(now, allBurst, allRate)
	return k.tokens >= 1 && l.all.tokens >= 1
}

// told notes a report and returns how many were left out before it.
func (l *limiter) told(call string, now time.Time) int {
	k := l.kind(call)
	k.take(now, kindBurst, kindRate)
	if l.all.take(now, allBurst, allRate); l.all.tokens < 0 {
		l.all.tokens = 0
	}
	dropped := k.dropped
	k.dropped = 0
	return dropped
}

func (l *limiter) leaveOut(call, control string) {
	k := l.kind(call)
	k.control = control
	k.dropped++
}

func (l *limiter) kind(call string) *kind {
	if l.kinds == nil {
		l.kinds = map[string]*kind{}
	}
	k := l.kinds[call]
	if k == nil {
		k = &kind{}
		l.kinds[call] = k
	}
	return k
}
