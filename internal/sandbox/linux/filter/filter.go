// Package filter holds the system call filters of sandboxes and makes the
// kernel's form of them. It is linked into the privileged helper, which takes
// no filter from anybody, so it imports little.
package filter

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// allowed is what a program of any kind may call, on every architecture. It
// began as the default profile of moby (a test holds it against that) and lost
// what functions have no use for: System V and POSIX message queues, kernel
// AIO, file handles, tracing, namespaces, keys, clocks, and the memory policy
// of the machine. Calls not listed here are refused and reported.
var allowed = []uintptr{
	// memory
	unix.SYS_BRK, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MREMAP, unix.SYS_MADVISE, unix.SYS_MSYNC,
	unix.SYS_MINCORE, unix.SYS_MLOCK, unix.SYS_MLOCK2, unix.SYS_MUNLOCK, unix.SYS_MEMBARRIER, unix.SYS_MSEAL,
	// threads and processes
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETTID,
	unix.SYS_SET_TID_ADDRESS, unix.SYS_SET_ROBUST_LIST, unix.SYS_GET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_FUTEX, unix.SYS_FUTEX_WAITV,
	unix.SYS_FUTEX_WAKE, unix.SYS_FUTEX_WAIT, unix.SYS_FUTEX_REQUEUE,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_GETSCHEDULER,
	unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_GET_PRIORITY_MAX, unix.SYS_SCHED_GET_PRIORITY_MIN, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY,
	unix.SYS_GETPGID, unix.SYS_SETPGID, unix.SYS_GETSID, unix.SYS_SETSID, unix.SYS_PRCTL, unix.SYS_PRLIMIT64, unix.SYS_GETRUSAGE, unix.SYS_TIMES,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_GETCPU,
	// identity: reading, and the one change that init makes for the program; without capabilities the setters do nothing
	unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETGROUPS, unix.SYS_GETRESUID, unix.SYS_GETRESGID,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_CAPGET, unix.SYS_CAPSET, unix.SYS_UMASK,
	// signals and time
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGSUSPEND,
	unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_SIGALTSTACK, unix.SYS_KILL, unix.SYS_TKILL,
	unix.SYS_TGKILL, unix.SYS_RESTART_SYSCALL, unix.SYS_SIGNALFD4, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
	unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_GETITIMER, unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME,
	unix.SYS_TIMER_GETTIME, unix.SYS_TIMER_GETOVERRUN, unix.SYS_TIMER_DELETE, unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME, unix.SYS_TIMERFD_GETTIME,
	// descriptors
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
	unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_CLOSE_RANGE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FCNTL, unix.SYS_PIPE2,
	unix.SYS_EVENTFD2, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_PPOLL, unix.SYS_PSELECT6,
	unix.SYS_SENDFILE, unix.SYS_SPLICE, unix.SYS_TEE, unix.SYS_COPY_FILE_RANGE, unix.SYS_READAHEAD, unix.SYS_FADVISE64,
	unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
	// files; calls that change something by path are watched, see below
	unix.SYS_NEWFSTATAT, unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_GETCWD, unix.SYS_CHDIR, unix.SYS_FCHDIR, unix.SYS_FCHMOD, unix.SYS_FCHOWN, unix.SYS_FTRUNCATE,
	unix.SYS_FALLOCATE, unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_UTIMENSAT,
	unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_FLISTXATTR,
	// sockets, which reach loopback alone; making one is restricted below
	unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_CONNECT, unix.SYS_GETSOCKNAME,
	unix.SYS_GETPEERNAME, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG,
	unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_SHUTDOWN,
	// the machine
	unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETRANDOM,
}

// watched change a file by its path. They go to the spawner, which reports
// those that are bound to fail and lets the kernel judge the others.
var watched = []uintptr{
	unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_FCHMODAT,
	unix.SYS_FCHOWNAT, unix.SYS_TRUNCATE,
}

// absent look to the program as on a kernel that does not have them yet: their
// arguments are in memory, where a filter cannot look, and every library falls
// back to the older call.
var absent = []uintptr{
	unix.SYS_CLONE3, unix.SYS_OPENAT2, unix.SYS_FCHMODAT2, unix.SYS_MAP_SHADOW_STACK, unix.SYS_CACHESTAT,
	unix.SYS_PKEY_ALLOC, unix.SYS_PKEY_FREE, unix.SYS_PKEY_MPROTECT, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETSCHEDULER,
	unix.SYS_IOPRIO_GET, unix.SYS_IOPRIO_SET, unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_GET_MEMPOLICY,
}

const (
	newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID |
		unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME
	writeFlags = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	socketType = 0xf // the type without SOCK_NONBLOCK and SOCK_CLOEXEC
)

// test compares one argument of a call: of its bits in mask those of value are
// set and no other.
type test struct {
	arg         int
	mask, value uint64
}

func equal(arg int, value uint64) test { return test{arg, ^uint64(0), value} }

// answer is what the filter says of one call: then, if all tests of one of the
// alternatives hold, else otherwise. With no alternatives it is always then.
type answer struct {
	any             [][]test
	then, otherwise uint32
}

// actions the filters take.
const (
	allow  = unix.SECCOMP_RET_ALLOW
	ask    = unix.SECCOMP_RET_USER_NOTIF // the spawner answers: what is watched and what is refused
	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	hide   = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// answers says what the filter of a kind does with each call; the spawner
// answers all others.
func answers(kind string) map[uintptr]answer {
	a := map[uintptr]answer{}
	for _, nr := range slices.Concat(allowed, legacyAllowed) {
		a[nr] = answer{then: allow}
	}
	a[unix.SYS_OPENAT] = answer{[][]test{{{2, writeFlags, 0}}}, allow, ask}
	a[unix.SYS_CLONE] = answer{[][]test{{{0, newNamespaces, 0}}}, allow, ask}
	// The terminal's input queue is the classic way from one process into
	// another. The kernel looks at the low half of the request alone.
	a[unix.SYS_IOCTL] = answer{[][]test{{{1, 0xffffffff, unix.TIOCSTI}}, {{1, 0xffffffff, unix.TIOCLINUX}}}, refuse, allow}
	a[unix.SYS_PERSONALITY] = answer{[][]test{{equal(0, 0xffffffff)}}, allow, ask}
	stream, datagram := test{1, socketType, unix.SOCK_STREAM}, test{1, socketType, unix.SOCK_DGRAM}
	var sockets [][]test
	// Of the protocols those that functions have a use for: the others, such as
	// SCTP, would only bring the kernel's least tried modules within reach.
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []uint64{0, unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
			sockets = append(sockets, []test{equal(0, family), stream, equal(2, protocol)})
		}
		for _, protocol := range []uint64{0, unix.IPPROTO_UDP} {
			sockets = append(sockets, []test{equal(0, family), datagram, equal(2, protocol)})
		}
	}
	sockets = append(sockets, []test{equal(0, unix.AF_UNIX), stream}, []test{equal(0, unix.AF_UNIX), datagram},
		[]test{equal(0, unix.AF_UNIX), {1, socketType, unix.SOCK_SEQPACKET}},
		// What lists network interfaces asks the kernel through this one.
		[]test{equal(0, unix.AF_NETLINK), equal(2, unix.NETLINK_ROUTE)})
	a[unix.SYS_SOCKET] = answer{sockets, allow, ask}
	legacyAnswers(a)
	if kind == "wasm" {
		// The module's only ways out are what the worker hands it, so the
		// worker needs no sockets and no news of files.
		for _, nr := range []uintptr{
			unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_CONNECT,
			unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
		} {
			delete(a, nr)
		}
	}
	for _, nr := range absent {
		a[nr] = answer{then: hide}
	}
	return a
}

// Compile returns the filter of a kind of program as the kernel takes it: struct
// sock_filter after struct sock_filter.
func Compile(kind string) ([]byte, error) {
	switch kind {
	case "python", "nodejs", "provided", "wasm":
	default:
		return nil, fmt.Errorf("no filter for %.20q", kind)
	}
	var p program
	p.add(load, offArch)
	p.add(jumpEqual, arch, 1, 0)
	p.add(ret, unix.SECCOMP_RET_KILL_PROCESS)
	p.add(load, offNumber)
	all := answers(kind)
	for _, nr := range []uintptr{unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_MMAP} { // the usual ones
		p.add(jumpEqual, uint32(nr), 0, 1)
		p.add(ret, allow)
	}
	p = append(p, tree(spans(all))...)
	if len(p) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("the filter for %s has %d instructions", kind, len(p))
	}
	var b []byte
	for _, i := range p {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b, nil
}

// span is calls, from one number to the next span's, with one answer.
type span struct {
	from uint32
	answer
}

// spans cuts all numbers there are into as few spans as possible.
func spans(all map[uintptr]answer) []span {
	list := []span{{0, answer{then: ask}}}
	add := func(from uint32, a answer) {
		last := &list[len(list)-1]
		switch {
		case len(a.any) == 0 && len(last.any) == 0 && last.then == a.then:
		case last.from == from:
			last.answer = a
		default:
			list = append(list, span{from, a})
		}
	}
	numbers := make([]uintptr, 0, len(all))
	for nr := range all {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	for i, nr := range numbers {
		add(uint32(nr), all[nr])
		if i == len(numbers)-1 || numbers[i+1] != nr+1 {
			add(uint32(nr)+1, answer{then: ask})
		}
	}
	return list
}

// program is instructions in the kernel's classic BPF.
type program []unix.SockFilter

// Operations, and where struct seccomp_data has what they load.
const (
	load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and       = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	jump      = unix.BPF_JMP | unix.BPF_JA
	jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpFrom  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	ret       = unix.BPF_RET | unix.BPF_K

	offNumber = 0
	offArch   = 4
	offArgs   = 16 // eight bytes each; the low half is first on both architectures
)

// add appends an instruction; jumps are how many to leave out, if it is true
// and if it is not.
func (p *program) add(code uint16, k uint32, jumps ...uint8) {
	i := unix.SockFilter{Code: code, K: k}
	if len(jumps) == 2 {
		i.Jt, i.Jf = jumps[0], jumps[1]
	}
	*p = append(*p, i)
}

// tree searches the span of the number that is loaded.
func tree(list []span) program {
	if len(list) == 1 {
		return list[0].compile()
	}
	half := len(list) / 2
	low, high := tree(list[:half]), tree(list[half:])
	var p program
	if len(low) <= 255 {
		p.add(jumpFrom, list[half].from, uint8(len(low)), 0)
	} else { // a conditional jump does not reach that far
		p.add(jumpFrom, list[half].from, 0, 1)
		p.add(jump, uint32(len(low)))
	}
	return append(append(p, low...), high...)
}

func (a answer) compile() program {
	var p program
	for _, tests := range a.any {
		var q program
		var misses []int // instructions that go on to the next alternative when false
		half := func(offset, mask, value uint32) {
			if mask == 0 {
				return
			}
			q.add(load, offset)
			if mask != 0xffffffff {
				q.add(and, mask)
			}
			misses = append(misses, len(q))
			q.add(jumpEqual, value, 0, 0)
		}
		for _, t := range tests {
			offset := uint32(offArgs + 8*t.arg)
			half(offset, uint32(t.mask), uint32(t.value))
			half(offset+4, uint32(t.mask>>32), uint32(t.value>>32))
		}
		q.add(ret, a.then)
		for _, i := range misses {
			q[i].Jf = uint8(len(q) - i - 1) // a few tests are far below 255 instructions
		}
		p = append(p, q...)
	}
	if len(a.any) > 0 {
		p.add(ret, a.otherwise)
	} else {
		p.add(ret, a.then)
	}
	return p
}
