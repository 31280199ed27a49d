package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// fdControl is the descriptor that the spawner hands to an init.
const fdControl = 3

// programUID is the user and group of the program inside its user namespace.
// It maps to a host user that no other sandbox has.
const programUID = 993

// runInit is the first process of a sandbox. It ends when the program ends,
// when the spawner is gone, or when it is killed; the kernel then ends every
// process of the PID namespace.
func runInit() error {
	runtime.LockOSThread() // seccomp's and the bounding set's effect is per thread; the program inherits this one's
	ctl, err := wire.New(fdControl)
	if err != nil {
		return err
	}
	unix.CloseOnExec(fdControl)
	var setup wire.Setup
	fds, err := ctl.Receive(&setup)
	if err != nil {
		return err // the spawner is gone, or had no use for this one
	}
	if len(fds) != 2 {
		return errors.New("want the program's socket and its output")
	}
	listener, err := lockDown(&setup)
	if err != nil {
		ctl.Send(wire.FromInit{Error: err.Error()})
		return err
	}
	err = ctl.Send(wire.FromInit{Ready: true}, listener)
	unix.Close(listener)
	if err != nil {
		return err
	}
	var exec wire.Exec
	if _, err := ctl.Receive(&exec); err != nil {
		return err // the spawner is gone, or gave this sandbox up
	}
	pid, err := startProgram(&exec, fds[0], fds[1])
	if err != nil {
		ctl.Send(wire.FromInit{Error: "start " + exec.Args[0] + ": " + err.Error()})
		return err
	}
	if err := dropOwnCapabilities(); err != nil {
		ctl.Send(wire.FromInit{Error: err.Error()})
		return err
	}
	ctl.Send(wire.FromInit{Started: pid})
	go func() { // the spawner never speaks again; its end is ours
		var none struct{}
		ctl.Receive(&none)
		os.Exit(1)
	}()
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case got == pid:
			return ctl.Send(wire.FromInit{Exited: true, Status: uint32(status)})
		}
	}
}

// lockDown builds the sandbox around this process and closes it. The order
// matters: every step needs a right that a later one takes away.
func lockDown(s *wire.Setup) (listener int, err error) {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"cgroup namespace", func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }},
		{"hostname", func() error { return unix.Sethostname([]byte("bawn")) }},
		{"loopback", loopbackUp},
		{"root", func() error { return enterRoot(s) }},
		{"limits", setLimits},
		{"bounding set", dropBoundingSet},
		{"rights to inherit", func() error { return keepApart(s.Rootless) }},
		{"no_new_privs", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"landlock", func() error { return restrictPaths(s.Landlock) }},
		{"seccomp", func() error { listener, err = loadFilter(s.Filter); return err }},
	} {
		if err := step.do(); err != nil {
			return -1, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return listener, nil
}

// enterRoot makes the image this namespace's root. Paths in s are relative to
// the working folder, which the spawner left in its own mount: the host path
// above it cannot be walked by this user.
func enterRoot(s *wire.Setup) error {
	const root = "n"
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{s.Root, root, "", unix.MS_BIND, ""},
		{"proc", root + "/proc", "proc", quiet, ""},
		{"tmp", root + "/tmp", "tmpfs", quiet, "mode=1777,size=64m,nr_inodes=64k"},
		{s.Dev, root + "/dev", "", unix.MS_BIND | unix.MS_REC, ""}, // the devices may be mounts
		{s.Share, root + "/var/task", "", unix.MS_BIND, ""},
		{s.Run, root + wire.RunDir, "", unix.MS_BIND, ""}, // what comes there later is in the folder, not mounted on it
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, p := range s.Mask {
		if err := mask(root+p, s); err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// Old and new root are stacked on one another; this takes the old one away.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// mask hides a file behind the null device or a folder behind an empty one.
// What this kernel does not have, or lets the host's root alone read, needs no
// mask.
func mask(path string, s *wire.Setup) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o006 == 0 {
		return nil
	}
	from := s.Null
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		from = s.Empty
	}
	return unix.Mount(from, path, "", unix.MS_BIND, "")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// setLimits sets the limits that are the same for every function; memory, cpu
// and process counts are the cgroup's.
func setLimits() error {
	limits := []struct {
		what  int
		value uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 1024},
		{unix.RLIMIT_MEMLOCK, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_SIGPENDING, 1024},
		{unix.RLIMIT_NICE, 0},
		{unix.RLIMIT_RTPRIO, 0},
		{unix.RLIMIT_STACK, 8 << 20},
	}
	for _, l := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.what, &now); err == nil {
			l.value = min(l.value, now.Max) // nobody here may raise one
		}
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("rlimit %d: %w", l.what, err)
		}
	}
	return nil
}

func dropBoundingSet() error {
	for c := uintptr(0); c < 64; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if err == unix.EINVAL {
				break // past the kernel's last capability
			}
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	// User 0 of this namespace is nobody special from here on.
	const noroot = 1<<0 | 1<<1 // SECBIT_NOROOT and its lock
	return unix.Prctl(unix.PR_SET_SECUREBITS, noroot, 0, 0, 0)
}

// keepApart sees to it that a program which has init's user has nothing else of
// it: no right to inherit, and no way to look into its memory or its files.
func keepApart(rootless bool) error {
	if !rootless {
		return nil // the program has another user
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for i := range data {
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// dropOwnCapabilities takes from this process what it kept to start the
// program as another user.
func dropOwnCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// restrictPaths is the second wall behind the mounts: even if one of those were
// writable, writing is allowed in /tmp alone, and nothing in /tmp runs.
func restrictPaths(abi int) error {
	if abi < 1 {
		return errors.New("the kernel has no Landlock")
	}
	// Each version handles more rights; what none handles is not restricted.
	handled := landlock.AccessFSSet(1<<13 - 1)
	for version, right := range map[int]landlock.AccessFSSet{
		2: landlocksys.AccessFSRefer, 3: landlocksys.AccessFSTruncate, 5: landlocksys.AccessFSIoctlDev,
	} {
		if abi >= version {
			handled |= right
		}
	}
	args := []any{handled}
	if abi >= 6 {
		args = append(args, landlock.ScopedSet(landlocksys.ScopeAbstractUnixSocket|landlocksys.ScopeSignal))
	}
	cfg, err := landlock.NewConfig(args...)
	if err != nil {
		return err
	}
	// The rule for /var/task is on /var: the code arrives as a mount below it
	// later, and a rule on a covered folder would not count.
	rules := []landlock.Rule{
		landlock.RODirs("/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/var", "/proc", wire.RunDir).IgnoreIfMissing(),
		landlock.RWFiles("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom").IgnoreIfMissing(),
		landlock.RODirs("/dev"),
		landlock.PathAccess(tmpAccess&handled, "/tmp"),
		landlock.PathAccess(landlocksys.AccessFSReadDir, "/"),
	}
	// One layer for all: a layer for the scopes alone would deny renaming
	// between folders, which counts as denied wherever it is not handled.
	return cfg.Restrict(rules...)
}

// tmpAccess is everything but execute and the making of devices.
const tmpAccess = landlock.AccessFSSet(landlocksys.AccessFSReadFile | landlocksys.AccessFSReadDir |
	landlocksys.AccessFSWriteFile | landlocksys.AccessFSRemoveDir | landlocksys.AccessFSRemoveFile |
	landlocksys.AccessFSMakeDir | landlocksys.AccessFSMakeReg | landlocksys.AccessFSMakeSock |
	landlocksys.AccessFSMakeFifo | landlocksys.AccessFSMakeSym | landlocksys.AccessFSRefer | landlocksys.AccessFSTruncate)

// loadFilter puts the seccomp program on every thread and returns the listener
// on which the spawner answers refused calls.
func loadFilter(prog []byte) (int, error) {
	if len(prog) == 0 || len(prog)%8 != 0 || len(prog) > 4096*8 {
		return -1, errors.New("malformed filter")
	}
	filter := make([]unix.SockFilter, len(prog)/8)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(prog)), prog)
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | 1<<5 // WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// startProgram runs the program as its own user with the socket as descriptor
// 3 and the pipe as output. The kernel carries this thread's locks over.
func startProgram(e *wire.Exec, conn, output int) (int, error) {
	if len(e.Args) == 0 {
		return 0, errors.New("no program")
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(e.Args[0], e.Args, &syscall.ProcAttr{
		Dir:   "/var/task",
		Env:   e.Env,
		Files: []uintptr{uintptr(null), uintptr(output), uintptr(output), uintptr(conn)},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: programUID, Gid: programUID, NoSetGroups: true},
			Setsid:     true,
		},
	})
	for _, fd := range []int{null, conn, output} {
		unix.Close(fd)
	}
	if err != nil {
		return 0, errors.New(describe(err, e.Args[0]))
	}
	return pid, nil
}

func describe(err error, path string) string {
	switch err {
	case syscall.ENOEXEC:
		return strconv.Quote(path) + " is not an executable for this machine"
	case syscall.ENOENT:
		return strconv.Quote(path) + " is missing, or is not static and its loader is missing"
	case syscall.EACCES:
		return strconv.Quote(path) + " is not marked executable"
	}
	return err.Error()
}
