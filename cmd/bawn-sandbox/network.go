package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// backlog is how many connections wait at a listener for being taken.
const backlog = 128

// open makes sockets inside the sandbox's network namespace.
func (b *box) open(o *wire.Open) (fds []int, err error) {
	b.mu.Lock() // attach waits until all of it is there
	defer b.mu.Unlock()
	if b.attached.Load() {
		return nil, errors.New("sockets are made before a function is attached: its code might have the ports")
	}
	err = b.inNetwork(func() error {
		six := false
		for _, r := range o.Local {
			six = six || r.Addr().Is6()
		}
		if len(o.Local) > 0 {
			if err := routeHome(o.Local); err != nil {
				return fmt.Errorf("route to loopback: %w", err)
			}
		}
		for _, p := range o.Ports {
			fd, err := openSocket(p, six)
			if err != nil {
				return fmt.Errorf("open %s port %d of the sandbox: %w", p.Network, p.Port, err)
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		wire.CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

// inNetwork calls f on a thread that is in the sandbox's network namespace. The
// thread is thrown away if it cannot come back.
func (b *box) inNetwork(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(home)
		b.life.Lock()
		err = errEnded
		if !b.cleared {
			err = unix.Setns(b.pidfd, unix.CLONE_NEWNET)
		}
		b.life.Unlock()
		if err != nil {
			done <- err
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// openSocket makes a listener or a datagram socket in this thread's network, for
// both kinds of addresses with six.
func openSocket(p wire.Port, six bool) (int, error) {
	kind, family := unix.SOCK_STREAM, unix.AF_INET
	if p.Network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: p.Port}
	switch {
	case p.Home:
		addr = &unix.SockaddrInet4{Port: p.Port, Addr: [4]byte{127, 0, 0, 1}}
	case six:
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: p.Port}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// loopback is the index of lo, the first interface of every network namespace.
const loopback = 1

// routeHome makes ranges of addresses this thread's network's own. This process
// may do so in the sandboxes it made, and nowhere else; a program in one may not.
func routeHome(ranges []netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, r := range ranges {
		if err := unix.Sendto(fd, localRoute(r), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		if err := acknowledged(fd); err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", r, err)
		}
	}
	return nil
}

// localRoute returns the message that makes a range local.
func localRoute(r netip.Prefix) []byte {
	family := byte(unix.AF_INET)
	if r.Addr().Is6() {
		family = unix.AF_INET6
	}
	addr := r.Addr().AsSlice()
	m := binary.NativeEndian.AppendUint32(nil, 0) // its length, below
	m = binary.NativeEndian.AppendUint16(m, unix.RTM_NEWROUTE)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m = append(m, make([]byte, 8)...) // sequence and port
	m = append(m, family, byte(r.Bits()), 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0)
	attribute := func(kind uint16, value []byte) {
		m = binary.NativeEndian.AppendUint16(m, uint16(4+len(value)))
		m = binary.NativeEndian.AppendUint16(m, kind)
		m = append(m, value...) // all are a multiple of four long
	}
	attribute(unix.RTA_DST, addr)
	attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopback))
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	return m
}

// acknowledged reads the kernel's answer to one message.
func acknowledged(fd int) error {
	var buf [1024]byte
	n, _, err := unix.Recvfrom(fd, buf[:], 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("an answer of another kind")
	}
	if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
