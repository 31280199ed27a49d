package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// Further descriptors that a keeper is born with, beside those of the spawners
// that it starts: the program that prepares roots, and where its report goes.
const (
	fdPreparer = 6
	fdReport   = 7
)

// quickEnd is how long a spawner lives at least that is worth another at once;
// keeperDelay keeps one that cannot live from being started in a loop.
const (
	quickEnd    = 2 * time.Second
	keeperDelay = 2 * time.Second
)

// runKeeper starts the spawner and gives the server the socket to it, and does
// so again when one has ended, until the server is gone. It takes one order, to
// prepare the roots of the node's runtimes, which has no arguments: what those
// are the preparer finds out by itself.
func runKeeper(node string, rootless bool) error {
	for fd := fdServer; fd <= fdReport; fd++ {
		unix.CloseOnExec(fd)
	}
	server, err := wire.New(fdServer)
	if err != nil {
		return err
	}
	// What is left out here no process that is started from here can have.
	runtime.LockOSThread()
	if err := limitCapabilities(rootless); err != nil {
		return fmt.Errorf("limit capabilities: %w", err)
	}
	order, gone := make(chan struct{}, 1), make(chan struct{})
	go takeOrders(server, order, gone)
	var preparer int
	var prepared chan struct{}
	defer func() {
		if preparer > 0 {
			select {
			case <-prepared:
			default:
				unix.Kill(preparer, unix.SIGKILL) // not waited for yet: the number is its own
				<-prepared
			}
		}
	}()
	for quick := 0; ; {
		started := time.Now()
		ended, err := startSpawner(server, node, rootless)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for running := true; running; {
			select {
			case <-order:
				if preparer, prepared, err = startPreparer(); err != nil {
					os.Stderr.WriteString("bawn-sandbox: prepare roots: " + err.Error() + "\n")
				}
				unix.Close(fdReport) // its end is the preparer's
			case <-ended:
				running = false
			}
		}
		if quick++; time.Since(started) > quickEnd {
			quick = 0
		}
		wait := time.Duration(0)
		if quick > 1 {
			wait = keeperDelay
		}
		select {
		case <-gone:
			return nil
		case <-time.After(wait):
			select { // both may have come
			case <-gone:
				return nil
			default:
			}
		}
	}
}

// takeOrders passes on the first order, and closes gone when the server is.
func takeOrders(server *wire.Conn, order chan<- struct{}, gone chan<- struct{}) {
	defer close(gone)
	for ordered := false; ; {
		var o wire.Order
		fds, err := server.Receive(&o)
		wire.CloseAll(fds)
		if err != nil {
			return
		}
		if o.Roots && !ordered {
			ordered = true
			order <- struct{}{}
		}
	}
}

// wait closes what it returns when a child has ended.
func wait(pid int) chan struct{} {
	ended := make(chan struct{})
	go func() {
		for {
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
				close(ended)
				return
			}
		}
	}()
	return ended
}

// startSpawner starts a spawner in a mount namespace of its own.
func startSpawner(server *wire.Conn, node string, rootless bool) (chan struct{}, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mode := wire.Rootful
	if rootless {
		mode = wire.Rootless
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"bawn-sandbox", "spawner", node, mode}, &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=2"},
		Files: []uintptr{0, 1, 2, uintptr(fds[1]), fdRoots, fdCode},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS},
	})
	unix.Close(fds[1])
	if err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("start the spawner: %w", err)
	}
	ended := wait(pid)
	err = server.Send(&wire.Hello{PID: pid}, fds[0])
	unix.Close(fds[0])
	if err != nil { // nobody has the socket: the spawner ends by itself
		<-ended
		return nil, err
	}
	return ended, nil
}

// startPreparer runs the program that prepares roots, in the folder of roots.
func startPreparer() (int, chan struct{}, error) {
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", fdPreparer), []string{"bawn", wire.PrepareCommand}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, fdRoots, fdReport},
	})
	if err != nil {
		return 0, nil, err
	}
	return pid, wait(pid), nil
}

// limitCapabilities takes from this thread's bounding set what making sandboxes
// and roots does not need.
func limitCapabilities(rootless bool) error {
	needed := uint64(1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_KILL |
		1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_PTRACE |
		1<<unix.CAP_SYS_RESOURCE | 1<<unix.CAP_MKNOD)
	if rootless {
		needed |= 1 << unix.CAP_SETFCAP // else the kernel lets no sandbox have a user that is root's here
	}
	for c := uintptr(0); c < 64; c++ {
		if needed>>c&1 != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if err == unix.EINVAL {
				return nil // past the kernel's last capability
			}
			return err
		}
	}
	return nil
}
