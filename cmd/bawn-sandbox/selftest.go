package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runSelfTest is a program for a sandbox: it tries what must not work and says
// on descriptor 3 what did. The node runs it once at start, because a host that
// has every part may still not enforce the whole.
func runSelfTest() error {
	var wrong []string
	expect := func(what string, got error, want ...error) {
		for _, w := range want {
			if got == w {
				return
			}
		}
		wrong = append(wrong, fmt.Sprintf("%s: %v", what, got))
	}
	_, err := unix.Open("/x", unix.O_CREAT|unix.O_WRONLY, 0o644)
	expect("writing to the root", err, unix.EROFS)
	expect("writing to the code", unix.Mkdir("/var/task/x", 0o755), unix.EROFS, unix.EACCES)
	expect("mounting", unix.Mount("none", "/tmp", "tmpfs", 0, ""), unix.EPERM)
	expect("a new namespace", unix.Unshare(unix.CLONE_NEWUSER), unix.EPERM)
	expect("tracing", unix.PtraceAttach(1), unix.EPERM)
	_, _, errno := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
	expect("bpf", errno, unix.EPERM)
	_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	expect("a packet socket", err, unix.EPERM)
	expect("exec", syscall.Exec("/usr/bin/selftest", []string{"selftest"}, nil), unix.EPERM)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		away := netip.MustParseAddr("192.0.2.1") // TEST-NET-1 of RFC 5737
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: away.As4()})
	}
	expect("a route to the outside", err, unix.ENETUNREACH)
	if os.Getuid() != programUID {
		wrong = append(wrong, fmt.Sprintf("runs as user %d", os.Getuid()))
	}
	status := fields(readAll("/proc/self/status"))
	for key, want := range map[string]string{
		"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[key] != want {
			wrong = append(wrong, key+" is "+status[key])
		}
	}
	_, err = unix.Write(3, []byte("tested "+strings.Join(wrong, "; ")+"\n"))
	return err
}
