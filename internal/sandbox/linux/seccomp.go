package linux

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"

	"bawn.dev/bawn/internal/sandbox"
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

// filter compiles the allow-list of a kind to the kernel's form.
func filter(kind sandbox.SyscallKind) ([]byte, error) {
	allow := map[uintptr]seccomp.SyscallRule{}
	for _, nr := range slices.Concat(allowed, legacyAllowed) {
		allow[nr] = seccomp.MatchAll{}
	}
	open := seccomp.MaskedEqual(writeFlags, 0)
	allow[unix.SYS_OPENAT] = seccomp.PerArg{seccomp.AnyValue{}, seccomp.AnyValue{}, open}
	allow[unix.SYS_CLONE] = seccomp.PerArg{seccomp.MaskedEqual(newNamespaces, 0)}
	allow[unix.SYS_IOCTL] = seccomp.MatchAll{}
	// The terminal's input queue is the classic way from one process into
	// another. The kernel looks at the low half of the request alone.
	never := map[uintptr]seccomp.SyscallRule{unix.SYS_IOCTL: seccomp.Or{
		seccomp.PerArg{seccomp.AnyValue{}, seccomp.MaskedEqual(0xffffffff, unix.TIOCSTI)},
		seccomp.PerArg{seccomp.AnyValue{}, seccomp.MaskedEqual(0xffffffff, unix.TIOCLINUX)},
	}}
	allow[unix.SYS_PERSONALITY] = seccomp.PerArg{seccomp.EqualTo(0xffffffff)}
	stream, datagram := seccomp.MaskedEqual(socketType, unix.SOCK_STREAM), seccomp.MaskedEqual(socketType, unix.SOCK_DGRAM)
	var sockets seccomp.Or
	for _, family := range []uintptr{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		sockets = append(sockets,
			seccomp.PerArg{seccomp.EqualTo(family), stream},
			seccomp.PerArg{seccomp.EqualTo(family), datagram})
	}
	sockets = append(sockets, seccomp.PerArg{seccomp.EqualTo(unix.AF_UNIX), seccomp.MaskedEqual(socketType, unix.SOCK_SEQPACKET)},
		// What lists network interfaces asks the kernel through this one.
		seccomp.PerArg{seccomp.EqualTo(unix.AF_NETLINK), seccomp.AnyValue{}, seccomp.EqualTo(unix.NETLINK_ROUTE)})
	allow[unix.SYS_SOCKET] = sockets
	allowLegacy(allow)

	if kind == sandbox.SyscallWasm {
		// The module's only ways out are what the worker hands it, so the
		// worker needs no sockets and no news of files.
		for _, nr := range []uintptr{
			unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_CONNECT,
			unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
		} {
			delete(allow, nr)
		}
	}

	missing := map[uintptr]seccomp.SyscallRule{}
	for _, nr := range absent {
		missing[nr] = seccomp.MatchAll{}
	}
	program := seccomp.Program{
		RuleSets: []seccomp.RuleSet{
			{Rules: seccomp.MakeSyscallRules(never), Action: seccomp.ReturnError.Code(uint16(unix.EPERM))},
			{Rules: seccomp.MakeSyscallRules(allow), Action: seccomp.Allow},
			{Rules: seccomp.MakeSyscallRules(missing), Action: seccomp.ReturnError.Code(uint16(unix.ENOSYS))},
		},
		Options: seccomp.ProgramOptions{
			// Everything else, what is watched and what is refused, is the
			// spawner's to answer.
			DefaultAction: seccomp.UserNotify,
			BadArchAction: seccomp.KillProcess,
			HotSyscalls:   []uintptr{unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_MMAP},
		},
	}
	code, _, err := program.Build()
	if err != nil {
		return nil, fmt.Errorf("compile the system call filter for %s: %w", kind, err)
	}
	var b []byte
	for _, i := range code {
		b = binary.NativeEndian.AppendUint16(b, i.OpCode)
		b = append(b, i.JumpIfTrue, i.JumpIfFalse)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b, nil
}
