package sandboxtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox"
)

// A watchtower listens on the host, wherever a sandbox might reach it, and counts
// who came.
type watchtower struct {
	came  atomic.Int64
	tries [][]string // what the actor is to do to get there
}

func newWatchtower(t *testing.T) *watchtower {
	w := &watchtower{}
	hosts := []string{"127.0.0.1", "::1"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			hosts = append(hosts, p.Addr().String())
		}
	}
	accept := func(ln net.Listener) {
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				w.came.Add(1)
				c.Close()
			}
		}()
	}
	receive := func(c net.PacketConn) {
		t.Cleanup(func() { c.Close() })
		go func() {
			for b := make([]byte, 64); ; {
				if _, _, err := c.ReadFrom(b); err != nil {
					return
				}
				w.came.Add(1)
			}
		}()
	}
	for _, h := range hosts {
		if ln, err := net.Listen("tcp", net.JoinHostPort(h, "0")); err == nil {
			accept(ln)
			w.tries = append(w.tries, []string{"dial", "tcp", ln.Addr().String()})
		}
		if c, err := net.ListenPacket("udp", net.JoinHostPort(h, "0")); err == nil {
			receive(c)
			w.tries = append(w.tries, []string{"send", "udp", c.LocalAddr().String()})
		}
	}
	name := fmt.Sprintf("bawn-test-%d", os.Getpid())
	for _, network := range []string{"unix", "unixpacket"} {
		ln, err := net.Listen(network, "@"+name+network)
		if err != nil {
			t.Fatal(err)
		}
		accept(ln)
		w.tries = append(w.tries, []string{"abstract", network, name + network})
	}
	c, err := net.ListenPacket("unixgram", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	receive(c)
	w.tries = append(w.tries, []string{"abstract", "unixgram", name})
	for _, addr := range []string{
		"1.1.1.1:53", "8.8.8.8:53", "127.0.0.1:53", "127.0.0.53:53", "[2606:4700:4700::1111]:53", "169.254.169.254:80", "[fd00:ec2::254]:80",
		"10.0.0.1:53", "192.168.0.1:53", "224.0.0.251:5353", "[ff02::fb]:5353", "255.255.255.255:67", "[::ffff:1.1.1.1]:53", "[64:ff9b::101:101]:53", "[::1]:53",
	} {
		w.tries = append(w.tries, []string{"dial", "tcp", addr}, []string{"send", "udp", addr})
	}
	return w
}

// noOtherWay holds that a sandbox has no way to the host, to a name server or to
// another network, of whatever kind of socket.
func (s *suite) noOtherWay(t *testing.T) {
	w := newWatchtower(t)
	a := s.start(t, nil)
	for _, words := range w.tries {
		if got := a.do(words...); got.Error == "" || got.Errno == "GONE" {
			t.Errorf("%v: %+v", words, got)
		}
	}
	time.Sleep(50 * time.Millisecond) // what is on its way to the host arrives
	if n := w.came.Load(); n != 0 {
		t.Errorf("%d connections or datagrams arrived on the host", n)
	}
	const dccp, smc, xdp = 6, 43, 44
	for name, args := range map[string][3]int{
		"packet":                {unix.AF_PACKET, unix.SOCK_RAW, 0x300},
		"packet, cooked":        {unix.AF_PACKET, unix.SOCK_DGRAM, 0x300},
		"raw":                   {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP},
		"raw IPv6":              {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
		"ping":                  {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
		"ping IPv6":             {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
		"SCTP":                  {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
		"SCTP, many":            {unix.AF_INET6, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP},
		"DCCP":                  {unix.AF_INET, dccp, unix.IPPROTO_DCCP},
		"UDP-Lite":              {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
		"L2TP":                  {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP},
		"VSOCK":                 {unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		"VSOCK, datagrams":      {unix.AF_VSOCK, unix.SOCK_DGRAM, 0},
		"SMC":                   {smc, unix.SOCK_STREAM, 0},
		"XDP":                   {xdp, unix.SOCK_RAW, 0},
		"TIPC":                  {unix.AF_TIPC, unix.SOCK_STREAM, 0},
		"RDS":                   {unix.AF_RDS, unix.SOCK_SEQPACKET, 0},
		"Bluetooth":             {unix.AF_BLUETOOTH, unix.SOCK_STREAM, 3},
		"CAN":                   {unix.AF_CAN, unix.SOCK_RAW, 1},
		"kernel crypto":         {unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
		"key management":        {unix.AF_KEY, unix.SOCK_RAW, 2},
		"netlink, sockets":      {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
		"netlink, netfilter":    {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
		"netlink, device news":  {unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT},
		"netlink, audit":        {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
		"netlink, all else":     {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC},
		"raw, by a high family": {unix.AF_INET, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.IPPROTO_RAW},
	} {
		got := a.do("socket", strconv.Itoa(args[0]), strconv.Itoa(args[1]), strconv.Itoa(args[2]))
		if got.Errno != "EPERM" {
			t.Errorf("a socket of %s: %+v, want the filter's refusal", name, got)
		}
	}
	// One that is let through for those who listen with it, and leads nowhere else.
	if got := a.do("mptcp", "1.1.1.1:443"); got.Error == "" {
		t.Errorf("MPTCP: %+v", got)
	}
	for _, what := range []string{"route", "no route", "address", "device"} {
		if got := a.do("netlink", what); got.Errno != "EPERM" {
			t.Errorf("a change of the network, %s: %+v", what, got)
		}
	}
	if got := a.do("sockets"); got.OK != "3" {
		t.Errorf("sockets %q, want the one to Bawn", got.OK)
	}
	if got := a.do("read", "/proc/net/route").OK; strings.Count(got, "\n") > 1 {
		t.Errorf("routes:\n%s", got)
	}
	if got := a.do("read", "/proc/net/unix").OK; strings.Contains(got, "@") {
		t.Errorf("sockets of others:\n%s", got)
	}
}

// rangesComeHome holds that an address in a range that was said to be local comes
// to the listener, which learns what address it was, and that no other does.
func (s *suite) rangesComeHome(t *testing.T) {
	s.n++
	box, err := s.driver.Start(t.Context(), sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Kill(); <-box.Done() })
	ports := []sandbox.Port{{Network: "tcp", Port: 443}, {Network: "tcp", Port: 9002, Home: true}, {Network: "udp", Port: 53, Home: true}}
	files, err := box.Open(t.Context(), ports, []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if ports[i].Network == "udp" {
			c, err := net.FilePacketConn(f)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 64)
				for {
					n, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo(append([]byte("re: "), b[:n]...), from)
				}
			}()
			f.Close()
			continue
		}
		ln, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		f.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				to := c.LocalAddr().(*net.TCPAddr).AddrPort()
				fmt.Fprint(c, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
				c.Close()
			}
		}()
	}
	if _, err := box.Open(t.Context(), []sandbox.Port{{Network: "tcp", Port: 443}}, nil); err == nil {
		t.Error("one port was opened twice")
	}
	in := s.enter(t, box, nil)
	for _, addr := range []string{"127.0.0.1:443", "127.7.7.7:443", "203.0.113.7:443", "[2001:db8::7]:443", "127.0.0.1:9002"} {
		if got := in.do("dial", "tcp", addr); got.OK != addr {
			t.Errorf("%s arrived as %+v", addr, got)
		}
	}
	for addr, want := range map[string]string{
		"203.0.113.7:80": "ECONNREFUSED", "203.0.113.7:9002": "ECONNREFUSED", "203.0.114.1:443": "ENETUNREACH", "8.8.8.8:443": "ENETUNREACH", "[2001:db9::1]:443": "ENETUNREACH",
	} {
		if got := in.do("dial", "tcp", addr); got.Errno != want {
			t.Errorf("%s: %+v, want %s", addr, got, want)
		}
	}
	if got := in.do("send", "udp", "127.0.0.1:53"); got.OK != "re: hello" {
		t.Errorf("the resolver: %+v", got)
	}
	for _, addr := range []string{"127.0.0.2:53", "203.0.113.7:53", "[2001:db8::7]:53", "8.8.8.8:53", "127.0.0.1:443"} {
		if got := in.do("send", "udp", addr); got.Error == "" {
			t.Errorf("a datagram to %s: %+v", addr, got)
		}
	}
	for _, what := range []string{"route", "no route"} {
		if got := in.do("netlink", what); got.Errno != "EPERM" {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// allComesHome holds that with every address made local the listener has what was
// meant for others, and nothing leaves the sandbox all the same.
func (s *suite) allComesHome(t *testing.T) {
	w := newWatchtower(t)
	s.n++
	box, err := s.driver.Start(t.Context(), sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Kill(); <-box.Done() })
	ln := listen(t, box, sandbox.Port{Network: "tcp", Port: 80}, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.LocalAddr())
			c.Close()
		}
	}()
	in := s.enter(t, box, nil)
	home := 0
	for _, words := range append(w.tries, []string{"dial", "tcp", "8.8.8.8:80"}) {
		got := in.do(words...)
		if len(words) == 3 && words[0] == "dial" && strings.HasSuffix(words[2], ":80") && words[2][0] != '[' {
			if home++; got.OK != words[2] {
				t.Errorf("%s arrived as %+v", words[2], got)
			}
		} else if got.Error == "" || got.Errno == "GONE" {
			t.Errorf("%v: %+v", words, got)
		}
	}
	time.Sleep(50 * time.Millisecond) // what is on its way to the host arrives
	if n := w.came.Load(); n != 0 || home != 2 {
		t.Errorf("%d connections or datagrams arrived on the host, %d addresses at home", n, home)
	}
}

// nothingComesIn holds that neither the host nor another sandbox reaches what a
// function listens on.
func (s *suite) nothingComesIn(t *testing.T) {
	a, b := s.start(t, nil), s.start(t, nil)
	name := "bawn-test-inside"
	for _, words := range [][]string{{"listen", "tcp", "0.0.0.0:8087"}, {"listen", "tcp", "[::1]:8088"}, {"listen", "unix", "@" + name}} {
		if got := a.do(words...); got.Error != "" {
			t.Fatalf("%v: %+v", words, got)
		}
	}
	if got := a.do("abstract", "unix", name); got.Error != "" {
		t.Fatalf("its own socket: %+v", got)
	}
	for _, words := range [][]string{{"dial", "tcp", "127.0.0.1:8087"}, {"dial", "tcp", "[::1]:8088"}, {"abstract", "unix", name}} {
		if got := b.do(words...); got.Error == "" {
			t.Errorf("another sandbox, %v: %+v", words, got)
		}
	}
	for _, addr := range [][2]string{{"tcp", "127.0.0.1:8087"}, {"tcp", "[::1]:8088"}, {"unix", "@" + name}} {
		if c, err := net.DialTimeout(addr[0], addr[1], time.Second); err == nil {
			c.Close()
			t.Errorf("the host reached %s", addr[1])
		}
	}
}

// filesInMemory holds that attached files are there for their sandbox alone, that
// it cannot change them, and that no disk sees them.
func (s *suite) filesInMemory(t *testing.T) {
	secret := strings.Repeat("s", 64<<10)
	a := s.start(t, func(at *sandbox.Attachment) {
		at.Files = []sandbox.AttachedFile{
			{Path: sandbox.HostsFile, Data: []byte("127.9.9.9 api.example.com\n")},
			{Path: sandbox.CAFile, Data: []byte(strings.Repeat("c", sandbox.MaxFileBytes))},
			{Path: sandbox.SecretsDir + "/orders-db", Data: []byte(secret)},
			{Path: sandbox.SecretsDir + "/empty"},
		}
	})
	b := s.start(t, nil)
	if got := a.do("read", "/run/secrets/orders-db"); got.OK != secret {
		t.Errorf("the secret is %d bytes, %s", len(got.OK), got.Error)
	}
	if got := a.do("read", sandbox.CAFile); len(got.OK) != 64<<10 { // what the actor shows of a file
		t.Errorf("the authorities are %d bytes, %s", len(got.OK), got.Error)
	}
	if got := a.do("read", sandbox.HostsFile).OK; got != "127.9.9.9 api.example.com\n" {
		t.Errorf("hosts: %q", got)
	}
	if got := a.do("read", sandbox.ResolverFile).OK; !strings.HasPrefix(got, "nameserver 127.0.0.1\n") {
		t.Errorf("resolver: %q", got)
	}
	if got := a.do("stat", "/run/secrets/orders-db").OK; got != "-r-------- 993" {
		t.Errorf("the secret is %s", got)
	}
	for _, name := range []string{"/run/secrets/orders-db", "/run/secrets/new", sandbox.HostsFile, sandbox.CAFile, "/run/x"} {
		if got := a.do("write", name, "x"); got.Error == "" {
			t.Errorf("wrote %s", name)
		}
	}
	if got := a.do("chmod", "/run/secrets/orders-db"); got.Error == "" {
		t.Error("changed the mode of a secret")
	}
	if got := b.do("list", "/run/secrets").OK; got != "" {
		t.Errorf("another sandbox sees %q", got)
	}
	if got := b.do("read", sandbox.HostsFile).OK; got != "127.0.0.1 localhost\n::1 localhost\n" {
		t.Errorf("another sandbox's hosts: %q", got)
	}
	found := false
	for line := range strings.Lines(a.do("read", "/proc/self/mountinfo").OK) {
		if f := strings.Fields(line); f[4] == "/run" {
			found = true
			if !strings.HasPrefix(f[5], "ro,") || !strings.Contains(line, " tmpfs ") || strings.Contains(line, "noswap") == s.weaker["files of functions are never swapped"] {
				t.Errorf("its files are in %s", line)
			}
		}
	}
	if !found {
		t.Error("nothing is mounted at /run")
	}
	if got := a.do("exec", "/run/secrets/orders-db"); got.Error == "" {
		t.Error("ran a file")
	}
	s.n++
	box, err := s.driver.Start(t.Context(), sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { box.Kill(); <-box.Done() }()
	at := limits
	at.Code = []string{s.code}
	for _, name := range []string{"/etc/passwd", "/run/secrets/../x", "/run/secrets/a/b", "run/secrets/a", "/tmp/x", "/run/bawn/other"} {
		at.Files = []sandbox.AttachedFile{{Path: name, Data: []byte("x")}}
		if err := box.Attach(t.Context(), at); err == nil {
			t.Errorf("a file was attached at %s", name)
		}
	}
}
