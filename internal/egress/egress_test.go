package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback is an instance whose loopback is this process's own: what the sandbox
// would connect to is 127.1.0.1 and up, and what is outside is 127.0.0.1.
type loopback struct {
	t       *testing.T
	a       *attached
	guard   *Guard
	reach   Reach
	dns     string // where the resolver is
	deny    atomic.Bool
	mu      sync.Mutex
	asked   []policy.Request
	records []bawn.Record
	notes   []string
}

// wanting returns the manifest's part of hosts.
func wanting(hosts ...bawn.Host) bawn.Egress { return bawn.Egress{Hosts: hosts} }

func newLoopback(t *testing.T, e bawn.Egress, cfg GuardConfig) *loopback {
	t.Helper()
	w := &loopback{t: t}
	var err error
	if w.guard, err = NewGuard(cfg); err != nil {
		t.Fatal(err)
	}
	b := New(Config{Guard: w.guard, Authorize: w.authorize})
	resolver, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.dns = resolver.LocalAddr().String()
	v := &bawn.Version{Tenant: "default", Function: "f", Number: 1, Perimeter: bawn.Perimeter{Egress: e}}
	w.reach, err = b.Attach(t.Context(), Inside{
		Version: v, Instance: "i", Resolver: resolver, Open: w.open,
		Record: func(_ context.Context, r bawn.Record) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.records = append(w.records, r)
			return nil
		},
		Note: func(text string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.notes = append(w.notes, text)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.a = w.reach.Outside
	t.Cleanup(func() { w.a.Close(); w.a.running.Wait() })
	w.begin()
	return w
}

// begin begins an invocation.
func (w *loopback) begin() {
	w.a.Begin(&bawn.Call{ID: bawn.NewID(), Principal: bawn.Principal{Kind: bawn.PrincipalKey, ID: "k", Tenant: "default"}}, time.Now().Add(time.Minute))
}

// open listens where a sandbox would, at the addresses that are used here.
func (w *loopback) open(_ context.Context, ports []sandbox.Port, _ []netip.Prefix) ([]*os.File, error) {
	var files []*os.File
	for _, p := range ports {
		for _, host := range []string{"127.1.0.1", "127.1.0.2", "127.1.0.3", "127.2.0.0", "127.2.0.1"} {
			ln, err := net.Listen("tcp", net.JoinHostPort(host, itoa(p.Port)))
			if err != nil {
				return nil, err
			}
			f, err := ln.(*net.TCPListener).File()
			ln.Close()
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

// authorize is the policy: what a rule is about is allowed.
func (w *loopback) authorize(_ context.Context, r policy.Request) (policy.Decision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, r)
	allow := !w.deny.Load() && (r.Object.ID == bawn.AnyHost || slices.ContainsFunc(r.Caller.Perimeter.Egress.Hosts, func(h bawn.Host) bool {
		return h.Host == r.Object.ID && slices.Contains(h.Ports, r.Object.Port)
	}))
	return policy.Decision{Allow: allow, Reason: "no rule permits it"}, nil
}

// blocked waits for a record of control and returns it.
func (w *loopback) blocked(control string) bawn.Record {
	w.t.Helper()
	for range 500 {
		w.mu.Lock()
		i := slices.IndexFunc(w.records, func(r bawn.Record) bool { return r.Control == control })
		if i >= 0 {
			defer w.mu.Unlock()
			return w.records[i]
		}
		w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("nothing was blocked by %s: %+v", control, w.records)
	return bawn.Record{}
}

// refused connects to an address inside and sends; nothing may come back.
func (w *loopback) refused(addr string, send []byte) {
	w.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(send)
	if n, err := c.Read(make([]byte, 1)); n > 0 {
		w.t.Errorf("%s answered", addr)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Errorf("%s was left hanging", addr)
	}
}

// server is a host outside, which counts who connects.
type server struct {
	ln       net.Listener
	port     int
	accepted atomic.Int64
}

func serve(t *testing.T, handle func(net.Conn)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ln: ln, port: ln.Addr().(*net.TCPAddr).Port}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			all.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return s
}

func echoes(c net.Conn) { io.Copy(c, c) }

// allowing returns the flags with which name is at 127.0.0.1 and reached there.
func allowing(port int, names ...string) GuardConfig {
	cfg := GuardConfig{Allow: []string{"127.0.0.1:" + itoa(port)}}
	for _, n := range names {
		cfg.Resolve = append(cfg.Resolve, n+"=127.0.0.1")
	}
	return cfg
}

// A host that a rule names is reached, and what goes there is counted; any other
// name and port is not, and its owner reads what would allow it. Control C2.
func TestC2OnlyWhatARuleNames(t *testing.T) {
	up := serve(t, echoes)
	other := serve(t, echoes)
	cfg := allowing(up.port, "up.test", "other.test")
	cfg.Allow = append(cfg.Allow, "127.0.0.1:"+itoa(other.port))
	w := newLoopback(t, wanting(
		bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true},
		bawn.Host{Host: "other.test", Ports: []int{other.port}, Plaintext: true},
	), cfg)
	if hosts := string(w.reach.Files[0].Data); !strings.Contains(hosts, "127.1.0.1 up.test\n127.1.0.2 other.test\n") {
		t.Errorf("hosts file: %s", hosts)
	}
	c, err := net.Dial("tcp", "127.1.0.1:"+itoa(up.port))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite() // half of it stays open for the answer
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("answer %q, %v", b, err)
	}
	c.Close()
	// up.test at the port of the other rule: somebody listens there, and no rule fits.
	w.refused("127.1.0.1:"+itoa(other.port), nil)
	if n := other.accepted.Load(); n != 0 {
		t.Errorf("%d connections where no rule allows one", n)
	}
	w.mu.Lock()
	last := w.asked[len(w.asked)-1]
	notes := strings.Join(w.notes, "\n")
	w.mu.Unlock()
	want := policy.Object{Kind: policy.Host, ID: "up.test", Name: "up.test", Port: other.port}
	if line := "{host: up.test, ports: [" + itoa(other.port) + "]}"; !strings.Contains(notes, line) || last.Object.Name != want.Name || last.Object.Port != want.Port {
		t.Errorf("asked %+v, told %s", last.Object, notes)
	}
	if got := w.a.End(); got != (bawn.Traffic{Sent: 5, Received: 5, Connections: 1}) {
		t.Errorf("traffic %+v", got)
	}
}

// What the policy refuses is not resolved and not connected to.
func TestC2ThePolicyDecides(t *testing.T) {
	up := serve(t, echoes)
	w := newLoopback(t, wanting(bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true}), allowing(up.port, "up.test"))
	w.deny.Store(true)
	w.refused("127.1.0.1:"+itoa(up.port), []byte("x"))
	if n := up.accepted.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// The ranges that are nobody's to reach, in every way to write them; control C3.
func TestC3SpecialRanges(t *testing.T) {
	g, err := NewGuard(GuardConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range strings.Fields(`0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192
		192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
		:: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
		2001:db8::1 2002:7f00:1:: 2002:808:808:: 2620:4f:8000::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2606:4700::1111%eth0`) {
		if g.check(netip.MustParseAddr(s), 443) == "" {
			t.Errorf("%s may be reached", s)
		}
	}
	for _, s := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"} {
		if what := g.check(netip.MustParseAddr(s), 443); what != "" {
			t.Errorf("%s is %s", s, what)
		}
	}
	g.own, g.ownAt = []netip.Addr{netip.MustParseAddr("8.8.4.4")}, time.Now()
	if g.check(netip.MustParseAddr("8.8.4.4"), 443) == "" || g.check(netip.MustParseAddr("::ffff:8.8.4.4"), 443) == "" {
		t.Error("the host's own address may be reached")
	}
}

// The socket's real address is looked at once more: a connection to what is
// refused is not made even if nobody looked before; control C3.
func TestC3TheSocketIsLookedAtAgain(t *testing.T) {
	up := serve(t, echoes)
	g, err := NewGuard(GuardConfig{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.connect(t.Context(), "tcp", "x.test", netip.MustParseAddrPort("127.0.0.1:"+itoa(up.port)), false)
	var b *Blocked
	if !errors.As(err, &b) || up.accepted.Load() != 0 {
		t.Errorf("%v, %d connections", err, up.accepted.Load())
	}
}

// Tries to reach the host by other names for it. None makes a connection;
// controls C3 and C4.
func TestC3Tries(t *testing.T) {
	up := serve(t, echoes)
	port := itoa(up.port)
	g, err := NewGuard(GuardConfig{Resolve: []string{"inside.test=127.0.0.1", "mapped.test=::ffff:127.0.0.1", "meta.test=169.254.169.254", "nat64.test=64:ff9b::7f00:1", "v6.test=::1", "local.test=fe80::1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{
		"127.0.0.1", "localhost", "LOCALHOST.", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "0", "0.0.0.0",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::1%lo]", "[fe80::1%lo]",
		"127.0.0.1%00", "127。0。0。1", "①②⑦.0.0.1", "user@127.0.0.1", "api.test@127.0.0.1", "127.0.0.1#api.test", "127.0.0.1\\api.test", "127.0.0.1\x00.api.test",
		"inside.test", "mapped.test", "meta.test", "nat64.test", "v6.test", "local.test", "INSIDE.TEST.", "169.254.169.254", "0xa9fea9fe", "2852039166", "instance-data",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		c, err := g.Dial(ctx, "tcp", host+":"+port)
		cancel()
		if err == nil {
			c.Close()
			t.Errorf("%q was reached at %s", host, c.RemoteAddr())
		}
	}
	if n := up.accepted.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
	trusted, err := g.DialTrusted(t.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatalf("what an operator has named: %v", err)
	}
	trusted.Close()
}

// A name server whose answer flips between a public address and the host's own.
// Each connection goes to the address that was looked at, and to none that is
// not public; control C3.
func TestC3Rebinding(t *testing.T) {
	up := serve(t, echoes)
	var asked atomic.Int64
	resolver := nameServer(t, func(q dnsmessage.Question) []netip.Addr {
		if q.Type != dnsmessage.TypeA {
			return nil
		}
		if asked.Add(1)%2 == 0 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		return []netip.Addr{netip.MustParseAddr("93.184.215.14")}
	})
	g, err := NewGuard(GuardConfig{Resolver: resolver})
	if err != nil {
		t.Fatal(err)
	}
	var public, other atomic.Int64
	real := g.socket
	g.socket = func(ctx context.Context, d *net.Dialer, network string, to netip.AddrPort) (net.Conn, error) {
		if to.Addr() == netip.MustParseAddr("93.184.215.14") {
			public.Add(1)
			c, _ := net.Pipe()
			return c, nil
		}
		other.Add(1)
		return real(ctx, d, network, to)
	}
	for range 1000 {
		if c, err := g.Dial(t.Context(), "tcp", "flip.test:"+itoa(up.port)); err == nil {
			c.Close()
		}
	}
	if n := up.accepted.Load(); n != 0 || other.Load() != 0 || public.Load() != 500 {
		t.Errorf("%d connections to the host, %d tried beside %d public ones; asked %d times", n, other.Load(), public.Load(), asked.Load())
	}
}

// nameServer answers on loopback and returns who asks there.
func nameServer(t *testing.T, answer func(dnsmessage.Question) []netip.Addr) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q, err := parseQuestion(buf[:n])
			if err != nil {
				continue
			}
			addr := netip.Addr{}
			if all := answer(q.question); len(all) > 0 {
				addr = all[0]
			}
			pc.WriteTo(q.reply(nil, dnsmessage.RCodeSuccess, addr), from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// What the guard refuses is told to the owner, with the flag that would allow it,
// and the function sees a reset; control C3.
func TestC3TheOwnerIsTold(t *testing.T) {
	up := serve(t, echoes)
	w := newLoopback(t, wanting(bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true}), GuardConfig{Resolve: []string{"up.test=127.0.0.1"}})
	w.refused("127.1.0.1:"+itoa(up.port), []byte("x"))
	r := w.blocked("C3")
	if r.Kind != bawn.KindBlocked || r.Detail["host"] != "up.test" || r.Detail["address"] != "127.0.0.1" || !strings.Contains(r.Reason, "--egress-allow 127.0.0.1:"+itoa(up.port)) {
		t.Errorf("record %+v", r)
	}
	if n := up.accepted.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// A rule for an address needs the operator's leave, for its whole range and each
// port; control C3.
func TestC3OperatorConsents(t *testing.T) {
	g, err := NewGuard(GuardConfig{Allow: []string{"10.0.0.0/8:5432", "192.168.1.0/24", "[fd00::/16]:443"}})
	if err != nil {
		t.Fatal(err)
	}
	for host, port := range map[string]int{"10.1.2.3": 5432, "10.1.0.0/16": 5432, "192.168.1.7": 80, "fd00:1::/32": 443, "api.example.com": 443, "*.example.com": 443} {
		if err := g.Consents(bawn.Host{Host: host, Ports: []int{port}}); err != nil {
			t.Errorf("%s:%d: %v", host, port, err)
		}
	}
	for host, want := range map[string]string{"10.1.2.3": "--egress-allow 10.1.2.3:443", "8.8.8.8": "--egress-allow 8.8.8.8:443", "192.168.0.0/16": "--egress-allow 192.168.0.0/16:443", "fd00::/8": "--egress-allow [fd00::/8]:443"} {
		var e *bawn.Error
		if err := g.Consents(bawn.Host{Host: host, Ports: []int{443}}); !errors.As(err, &e) || e.Code != bawn.CodeDenied || !strings.Contains(e.Fix, want) {
			t.Errorf("%s: %v", host, err)
		} else if _, err := parseAllow(strings.TrimPrefix(want, "--egress-allow ")); err != nil {
			t.Errorf("the fix %q is refused: %v", want, err)
		}
	}
	for _, bad := range []string{"", "x", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:080", "10.0.0.5/8", "127.1", "0x7f.1", "::1:443x", "[::1", "[::1]x", "[10.0.0.1]:1", "fe80::1%lo"} {
		if _, err := NewGuard(GuardConfig{Allow: []string{bad}}); err == nil {
			t.Errorf("--egress-allow %q is taken", bad)
		}
	}
	for _, bad := range []string{"", "a", "=1.1.1.1", "a=", "a=b", "1.2.3.4=1.1.1.1", "a=fe80::1%lo", "a b=1.1.1.1"} {
		if _, err := NewGuard(GuardConfig{Resolve: []string{bad}}); err == nil {
			t.Errorf("--egress-resolve %q is taken", bad)
		}
	}
}

// A redirect, or an address in a body, leads nowhere by itself: the function must
// connect anew, and that is judged as the first was; control C4.
func TestC4EachHopIsJudged(t *testing.T) {
	var where string
	inner := serve(t, echoes)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, where, http.StatusFound)
	}))
	t.Cleanup(up.Close)
	port := up.Listener.Addr().(*net.TCPAddr).Port
	newLoopback(t, wanting(bawn.Host{Host: "up.test", Ports: []int{port, inner.port}, Plaintext: true}), allowing(port, "up.test"))
	for _, host := range []string{"up.test", "127.1.0.1", "127.1.0.2", "up.test@127.1.0.2"} {
		where = "http://" + host + ":" + itoa(inner.port) + "/"
		hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			addr = strings.Replace(addr, "up.test", "127.1.0.1", 1) // as the hosts file says
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}}
		if res, err := hc.Get("http://up.test:" + itoa(port) + "/"); err == nil {
			res.Body.Close()
			t.Errorf("%s: %d", where, res.StatusCode)
		}
	}
	if n := inner.accepted.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// 11 MiB through a cap of 10 MiB stop within 64 KiB, each way; control C5.
func TestC5CapOfBytes(t *testing.T) {
	const limit, sent = 10 << 20, 11 << 20
	var got atomic.Int64
	sink := func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		got.Add(n)
	}
	source := func(c net.Conn) { c.Write(make([]byte, sent)) }
	for name, handle := range map[string]func(net.Conn){"out": sink, "in": source} {
		up := serve(t, handle)
		w := newLoopback(t, wanting(bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true, Bytes: limit}), allowing(up.port, "up.test"))
		c, err := net.Dial("tcp", "127.1.0.1:"+itoa(up.port))
		if err != nil {
			t.Fatal(err)
		}
		if name == "out" {
			c.Write(make([]byte, sent))
			io.Copy(io.Discard, c)
		} else if n, _ := io.Copy(io.Discard, c); n > limit { // what was on its way is lost with the connection
			t.Errorf("received %d", n)
		}
		c.Close()
		if r := w.blocked("C5"); r.Detail["bytes"] != itoa(limit) || r.Detail["host"] != "up.test" {
			t.Errorf("record %+v", r)
		}
		// Another connection of the invocation gets nothing more.
		before := up.accepted.Load()
		w.refused("127.1.0.1:"+itoa(up.port), []byte("x"))
		if up.accepted.Load() != before {
			t.Error("another connection was made")
		}
		use := w.a.End()
		if n := use.Sent + use.Received; n > limit || n < limit-64<<10 {
			t.Errorf("%s: counted %d", name, n)
		}
		w.a.Close()
		up.ln.Close()
	}
	for i := 0; got.Load() == 0 && i < 500; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if n := got.Load(); n > limit {
		t.Errorf("%d bytes went outside", n)
	}
}

// Connections are bounded, in number and time, and cut at the end; between
// invocations there are none. Control C5.
func TestC5Connections(t *testing.T) {
	up := serve(t, echoes)
	w := newLoopback(t, wanting(bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true, Connections: 2, Time: 400 * time.Millisecond}), allowing(up.port, "up.test"))
	at := "127.1.0.1:" + itoa(up.port)
	open := func() net.Conn {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two := open(), open()
	w.refused(at, []byte("x"))
	if r := w.blocked("C5"); !strings.Contains(r.Reason, "more than 2 connections") {
		t.Errorf("record %+v", r)
	}
	for _, c := range []net.Conn{one, two} { // each ends by itself when its time is over
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after its time: %v", err)
		}
		c.Close()
	}
	three := open()
	w.a.End()
	three.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := three.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the end: %v", err)
	}
	three.Close()
	n := up.accepted.Load()
	w.refused(at, []byte("x"))
	if up.accepted.Load() != n {
		t.Error("a connection between invocations")
	}
	w.begin()
	open().Close()
}

// ask sends a DNS question to the sandbox's resolver.
func (w *loopback) ask(name string, typ dnsmessage.Type) (dnsmessage.RCode, []dnsmessage.Resource) {
	w.t.Helper()
	c, err := net.Dial("udp", w.dns)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		w.t.Fatal(err)
	}
	msg := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}}}
	b, err := msg.Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(b)
	buf := make([]byte, 4096)
	k, err := c.Read(buf)
	if err != nil {
		w.t.Fatal(err)
	}
	var got dnsmessage.Message
	if err := got.Unpack(buf[:k]); err != nil || got.ID != 7 || !got.Response {
		w.t.Fatalf("%v, %+v", err, got.Header)
	}
	return got.RCode, got.Answers
}

// The resolver knows the names of rules, and nothing else: a tunnel of 1,000 long
// names moves nothing. Control C5.
func TestC5NoTunnelInNames(t *testing.T) {
	var outside atomic.Int64
	resolver := nameServer(t, func(dnsmessage.Question) []netip.Addr { outside.Add(1); return nil })
	up := serve(t, echoes)
	w := newLoopback(t, wanting(
		bawn.Host{Host: "up.test", Ports: []int{up.port}, Plaintext: true},
		bawn.Host{Host: "*.wild.test", Ports: []int{up.port}, Plaintext: true},
	), GuardConfig{Resolver: resolver, Allow: []string{"127.0.0.1:" + itoa(up.port)}, Resolve: []string{"one.wild.test=127.0.0.1"}})
	secret := strings.Repeat("5ecret", 10)
	for i := range 1000 {
		if rcode, answers := w.ask(secret+"."+itoa(i)+".evil.test.", dnsmessage.Type(1+i%20)); rcode != dnsmessage.RCodeNameError || len(answers) > 0 {
			t.Fatalf("%v %v", rcode, answers)
		}
	}
	if n := outside.Load(); n != 0 {
		t.Errorf("%d questions went outside", n)
	}
	r := w.blocked("C5")
	if r.Action != "resolve" || !strings.HasPrefix(r.Detail["host"], secret) || !strings.Contains(r.Detail["manifest"], "egress.hosts: - {host: "+secret) {
		t.Errorf("record %+v", r)
	}
	w.mu.Lock()
	n := len(w.records)
	w.mu.Unlock()
	if n > 500 {
		t.Errorf("%d records of one second or a few", n)
	}
	for _, q := range []struct {
		name string
		typ  dnsmessage.Type
		want string
	}{
		{"up.test.", dnsmessage.TypeA, "127.1.0.1"}, {"UP.Test.", dnsmessage.TypeA, "127.1.0.1"}, {"up.test.", dnsmessage.TypeAAAA, ""}, {"up.test.", dnsmessage.TypeTXT, ""},
		{"one.wild.test.", dnsmessage.TypeA, "127.2.0.0"}, {"One.wild.test.", dnsmessage.TypeA, "127.2.0.0"}, {"two.wild.test.", dnsmessage.TypeA, "127.2.0.1"}, {"localhost.", dnsmessage.TypeA, "127.0.0.1"},
	} {
		rcode, answers := w.ask(q.name, q.typ)
		got := ""
		for _, a := range answers {
			got = netip.AddrFrom4(a.Body.(*dnsmessage.AResource).A).String()
		}
		if rcode != dnsmessage.RCodeSuccess || got != q.want {
			t.Errorf("%s %v: %v %s, want %s", q.name, q.typ, rcode, got, q.want)
		}
	}
	for _, name := range []string{"wild.test.", "a.b.wild.test.", "xwild.test.", "up.test.evil.test.", "2130706433.", "127.0.0.1."} {
		if rcode, _ := w.ask(name, dnsmessage.TypeA); rcode != dnsmessage.RCodeNameError {
			t.Errorf("%s: %v", name, rcode)
		}
	}
	if n := outside.Load(); n != 0 {
		t.Errorf("%d questions went outside", n)
	}
	// A name of a wildcard is reached by the address it was given.
	c, err := net.Dial("tcp", "127.2.0.0:"+itoa(up.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.asked[len(w.asked)-1].Object; o.ID != "*.wild.test" || o.Name != "one.wild.test" {
		t.Errorf("asked for %+v", o)
	}
}

// tlsEcho is a host outside with a certificate for example.com, and the file
// of its authority.
func tlsEcho(t *testing.T) (s *server, ca string, roots *x509.CertPool) {
	t.Helper()
	h := httptest.NewTLSServer(http.NotFoundHandler())
	cert := h.TLS.Certificates[0]
	roots = x509.NewCertPool()
	roots.AddCert(h.Certificate())
	ca = t.TempDir() + "/ca.pem"
	if err := os.WriteFile(ca, pemOf(h.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Close()
	s = serve(t, func(c net.Conn) { echoes(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})) })
	return s, ca, roots
}

// The function's TLS goes through end to end, if it asks for the name of the rule
// and the server proves to be that; control C6.
func TestC6TheNameIsTheRules(t *testing.T) {
	up, ca, roots := tlsEcho(t)
	cfg := allowing(up.port, "example.com", "other.test")
	cfg.CA = ca
	w := newLoopback(t, wanting(
		bawn.Host{Host: "example.com", Ports: []int{up.port}},
		bawn.Host{Host: "other.test", Ports: []int{up.port}},
	), cfg)
	try := func(addr string, c *tls.Config) error {
		conn, err := net.Dial("tcp", addr+":"+itoa(up.port))
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		x := tls.Client(conn, c)
		if err := x.Handshake(); err != nil {
			return err
		}
		io.WriteString(x, "hello")
		_, err = io.ReadFull(x, make([]byte, 5))
		return err
	}
	if err := try("127.1.0.1", &tls.Config{ServerName: "Example.com", RootCAs: roots}); err != nil {
		t.Fatal(err)
	}
	n := up.accepted.Load()
	if n != 2 {
		t.Errorf("%d connections: one for the function, one to look at the certificate", n)
	}
	if err := try("127.1.0.1", &tls.Config{ServerName: "example.com", RootCAs: roots}); err != nil {
		t.Fatal(err)
	}
	if n := up.accepted.Load(); n != 3 {
		t.Errorf("%d connections: the certificate was looked at again", n)
	}
	for name, c := range map[string]*tls.Config{
		"another name":   {ServerName: "other.test", InsecureSkipVerify: true},
		"no name":        {InsecureSkipVerify: true},
		"a name below":   {ServerName: "a.example.com", InsecureSkipVerify: true},
		"encrypted name": {ServerName: "hidden.test", EncryptedClientHelloConfigList: echConfig(t, "example.com"), MinVersion: tls.VersionTLS13},
	} {
		if try("127.1.0.1", c) == nil {
			t.Errorf("%s went through", name)
		}
	}
	w.refused("127.1.0.1:"+itoa(up.port), []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"))
	if got := up.accepted.Load(); got != 3 {
		t.Errorf("%d more connections", got-3)
	}
	if r := w.blocked("C6"); r.Detail["host"] != "example.com" {
		t.Errorf("record %+v", r)
	}
	// The server is not other.test, and the function does not look.
	if try("127.1.0.2", &tls.Config{ServerName: "other.test", InsecureSkipVerify: true}) == nil {
		t.Error("an impostor was reached")
	}
	var reasons []string
	w.mu.Lock()
	for _, r := range w.records {
		reasons = append(reasons, r.Reason)
	}
	w.mu.Unlock()
	all := strings.Join(reasons, "\n")
	for _, want := range []string{"(ECH)", "“other.test”", "no TLS began", "the server is not “other.test”"} {
		if !strings.Contains(all, want) {
			t.Errorf("no record has %q:\n%s", want, all)
		}
	}
}

// Everything opens the web to any name, and nothing that is closed to all; after
// its day it opens nothing.
func TestC2Everything(t *testing.T) {
	e := bawn.Egress{Everything: &bawn.PublicAccess{Reason: "a crawler", Until: time.Now().Add(time.Hour)}}
	p := newPlan(&e)
	if got := p.local(); len(got) != 1 || got[0].Bits() != 0 {
		t.Errorf("local %v", got)
	}
	a := &attached{b: New(Config{}), plan: p}
	if tg := a.find(nil, netip.MustParseAddrPort("8.8.8.8:443")); tg.host == nil || tg.host.Plaintext || tg.addr.String() != "8.8.8.8" {
		t.Errorf("%+v", tg)
	}
	if tg := a.find(nil, netip.MustParseAddrPort("8.8.8.8:25")); tg.host != nil {
		t.Errorf("%+v", tg)
	}
	e.Everything.Until = time.Now().Add(-time.Hour)
	if tg := a.find(nil, netip.MustParseAddrPort("8.8.8.8:443")); tg.host != nil || p.named("x.test", time.Now()) {
		t.Errorf("%+v", tg)
	}
}

// The first rule that fits counts, and what is read may come as plain HTTP.
func TestC2TheFirstRuleThatFits(t *testing.T) {
	e := wanting(
		bawn.Host{Host: "a.test", Ports: []int{443}, Methods: []string{"GET"}},
		bawn.Host{Host: "*.test", Ports: []int{443, 8443}},
		bawn.Host{Host: "a.test", Ports: []int{443}, Methods: []string{"POST"}},
		bawn.Host{Host: "10.0.0.0/8", Ports: []int{5432}, Plaintext: true},
	)
	a := &attached{b: New(Config{}), plan: newPlan(&e)}
	hosts := maps.Clone(a.plan.addrs)
	if len(hosts) != 1 {
		t.Errorf("addresses %v", hosts)
	}
	at := hosts["a.test"].String()
	for local, want := range map[string]int{at + ":443": 0, at + ":80": 0, at + ":8443": 1, "10.1.2.3:5432": 3, "10.1.2.3:443": -1, "11.1.2.3:5432": -1} {
		got := -1
		tg := a.find(nil, netip.MustParseAddrPort(local))
		for i := range e.Hosts {
			if tg.host == &e.Hosts[i] {
				got = i
			}
		}
		if got != want {
			t.Errorf("%s: rule %d, want %d", local, got, want)
		}
		if local == at+":80" && (tg.port != 443 || len(tg.hosts) != 2) {
			t.Errorf("%s: %+v", local, tg)
		}
	}
}

// What a function may do without end is not a record without end: others' evidence
// would be pushed out of the log by it. G4.
func TestG4AllowedDecisionsAreCounted(t *testing.T) {
	w := newLoopback(t, wanting(bawn.Host{Host: "a.test", Ports: []int{18080}, Plaintext: true}), GuardConfig{})
	w.a.b.cfg.Allows = func(policy.Request) bool { return !w.deny.Load() }
	w.a.mu.Lock()
	run := w.a.run
	w.a.mu.Unlock()
	to := func() *target {
		return &target{run: run, host: &w.a.v.Perimeter.Egress.Hosts[0], name: "a.test", inside: 18080, port: 18080}
	}
	const more = 250
	for range maxJudged + more {
		if err := w.a.judge(t.Context(), to(), nil); err != nil {
			t.Fatal(err)
		}
	}
	w.deny.Store(true) // a guardrail that came in between holds at once, and is recorded
	if err := w.a.judge(t.Context(), to(), nil); err == nil {
		t.Error("allowed although the rules say no")
	}
	w.mu.Lock()
	asked := len(w.asked)
	w.mu.Unlock()
	if asked != maxJudged+1 {
		t.Errorf("%d decisions are records, want %d", asked, maxJudged+1)
	}
	w.a.End()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.records {
		if r.Kind == bawn.KindDecision && r.Detail["count"] == itoa(more) && r.Detail["host"] == "a.test" {
			return
		}
	}
	t.Errorf("what more was allowed is not recorded: %+v", w.records)
}
