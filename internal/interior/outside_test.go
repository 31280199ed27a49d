package interior_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/sandbox"
)

// outsides is an egress that writes down what it is told, and answers on port 80
// of whatever address it was meant for.
type outsides struct {
	hosts string // of the sandbox's hosts file
	env   map[string]string
	local []netip.Prefix
	fail  error
	note  string // written at each begin

	mu     sync.Mutex
	events []string
	names  []string // asked of the resolver
	last   *outside
}

type outside struct {
	all   *outsides
	in    interior.Inside
	ln    net.Listener
	stale atomic.Bool
}

func (a *outsides) tell(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, fmt.Sprintf(format, args...))
}

// told returns what was written down since it was asked last.
func (a *outsides) told() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	text := strings.Join(a.events, " ")
	a.events = nil
	return text
}

func (a *outsides) attach(ctx context.Context, in interior.Inside) (interior.Reach, error) {
	a.tell("attach")
	if a.fail != nil {
		return interior.Reach{}, a.fail
	}
	o := &outside{all: a, in: in}
	if a.hosts != "" {
		files, err := in.Open(ctx, []sandbox.Port{{Network: "tcp", Port: 80}}, a.local)
		if err != nil {
			return interior.Reach{}, err
		}
		defer files[0].Close()
		if o.ln, err = net.FileListener(files[0]); err != nil {
			return interior.Reach{}, err
		}
		go http.Serve(o.ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s at %s", r.Host, r.Context().Value(http.LocalAddrContextKey))
		}))
	}
	go o.resolve()
	a.mu.Lock()
	a.last = o
	a.mu.Unlock()
	return interior.Reach{Outside: o, Env: a.env, Files: []sandbox.AttachedFile{
		{Path: sandbox.HostsFile, Data: []byte("127.0.0.1 localhost\n" + a.hosts)},
		{Path: sandbox.SecretsDir + "/key", Data: []byte("sesame")},
	}}, nil
}

// resolve knows no name.
func (o *outside) resolve() {
	b := make([]byte, 512)
	for {
		n, from, err := o.in.Resolver.ReadFrom(b)
		if err != nil {
			return
		}
		if n < 17 {
			continue
		}
		var name []string
		for at := 12; at < n && b[at] != 0 && at+1+int(b[at]) < n; at += 1 + int(b[at]) {
			name = append(name, string(b[at+1:at+1+int(b[at])]))
		}
		o.all.mu.Lock()
		o.all.names = append(o.all.names, strings.Join(name, "."))
		o.all.mu.Unlock()
		b[2], b[3] = b[2]|0x80, 0x83 // an answer: no such name
		b[10], b[11] = 0, 0
		o.in.Resolver.WriteTo(b[:n], from)
	}
}

func (o *outside) Begin(c *bawn.Call, deadline time.Time) {
	o.all.tell("begin %s %v", c.Event, time.Until(deadline).Round(time.Second))
	if o.all.note != "" {
		o.in.Note(o.all.note)
		o.in.Record(context.Background(), bawn.Record{Kind: bawn.KindBlocked, Action: "egress", Outcome: "blocked", Control: "C3"})
	}
}

func (o *outside) End() bawn.Traffic {
	o.all.tell("end")
	return bawn.Traffic{Sent: 1, Received: 2, Connections: 3}
}

func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	o.all.tell("%s %s %d %v", r.Method, r.URL.Path, len(b), err)
	fmt.Fprint(w, "served")
}

func (o *outside) Stale() bool { return o.stale.Load() }

func (o *outside) Close() {
	o.all.tell("close")
	if o.ln != nil {
		o.ln.Close()
	}
}

// node returns a version of a Node.js function with this source.
func node(t testing.TB, p *real, source string, change func(*bawn.Version)) *bawn.Version {
	t.Helper()
	runtimes := slices.DeleteFunc(interior.FindRuntimes(t.Context(), slog.New(slog.DiscardHandler)), func(d interior.Definition) bool {
		return d.Runtime.Family() != "nodejs" || !d.Ready()
	})
	if len(runtimes) == 0 {
		t.Skip("this host has no Node.js")
	}
	v := python(t, "", change)
	v.Runtime, v.Handler = runtimes[len(runtimes)-1].Runtime, "app.handler"
	if err := os.WriteFile(filepath.Join(v.Digest, "app.js"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	return v
}

// An egress hears of each invocation when it begins and when it is over, however
// that was, and of the end of the instance; nothing begins for loading.
func TestOutsideHearsOfEachInvocation(t *testing.T) {
	a := &outsides{}
	p := newRealWith(t, func(c *interior.Config) { c.Attach = a.attach })
	v := python(t, `
import os, time
def handler(event, context):
    if event == "exit": os._exit(1)
    if event == "sleep": time.sleep(60)
    if event == "raise": raise ValueError("no")
    return 1
`, nil)
	after := func(event, want string, failed bool) {
		t.Helper()
		r, err := p.Run(t.Context(), v, newCall(event))
		if err != nil || (r.FunctionError != "") != failed {
			t.Fatalf("%s: %+v, %v", event, r, err)
		}
		// That the process has ended is heard on two ways, and either may be first.
		if got := a.told(); got != want && got != strings.Replace(want, "end close", "close end", 1) {
			t.Errorf("%s: told %q, want %q", event, got, want)
		}
		if strings.Contains(want, "end") && r.Usage.Traffic != (bawn.Traffic{Sent: 1, Received: 2, Connections: 3}) {
			t.Errorf("%s: traffic %+v", event, r.Usage.Traffic)
		}
	}
	after(`1`, `attach begin 1 5s end`, false)
	after(`2`, `begin 2 5s end`, false)
	after(`"raise"`, `begin "raise" 5s end`, true)
	a.last.stale.Store(true)
	r, err := p.Run(t.Context(), v, newCall(`3`))
	if err != nil || !r.Usage.Cold {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := a.told(); !strings.Contains(got, "close") || strings.ReplaceAll(got, " close", "") != "attach begin 3 5s end" && got != "close attach begin 3 5s end" {
		t.Errorf("a stale one: told %q", got)
	}
	after(`"exit"`, `begin "exit" 5s end close`, true)
	after(`4`, `attach begin 4 5s end`, false)
	after(`"sleep"`, `begin "sleep" 5s end close`, true)
	v = python(t, "raise ValueError('no')", func(v *bawn.Version) { v.Number = 2 })
	after(`5`, `attach close`, true)
	a.fail = errors.New("the secret key was not granted")
	_, err = p.Run(t.Context(), v, newCall(`6`))
	if bawn.ErrorCode(err) != bawn.CodeUnavailable || !strings.Contains(p.of(2), "not granted") {
		t.Errorf("an egress that fails: %v", err)
	}
	var e *bawn.Error
	if errors.As(err, &e) && strings.Contains(e.Message, "secret") {
		t.Errorf("the caller is told %q", e.Message)
	}
}

// A stream is an invocation until its last byte, or until nobody wants that.
func TestOutsideIsOpenWhileStreaming(t *testing.T) {
	a := &outsides{}
	p := newRealWith(t, func(c *interior.Config) { c.Attach = a.attach })
	v := node(t, p, `exports.handler = awslambda.streamifyResponse(async (event, out) => {
  for (let i = 0; i < 100; i++) { out.write('x'.repeat(10000)); await new Promise(r => setTimeout(r, 1)); }
  out.end();
});`, nil)
	for _, whole := range []bool{true, false} {
		r, err := p.Run(t.Context(), v, newCall(`1`))
		if err != nil || r.Stream == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		if got := a.told(); strings.Contains(got, "end") || !strings.Contains(got, "begin") {
			t.Errorf("told %q while streaming", got)
		}
		want := "end"
		if whole {
			_, err = io.Copy(io.Discard, r.Stream)
		} else {
			want = "close end"
		}
		r.Stream.Close()
		if got := a.told(); err != nil || got != want || r.Usage.Connections != 3 {
			t.Errorf("told %q at the end, want %q; %v, %+v", got, want, err, r.Usage)
		}
	}
}

// What an instance was given is there: names in its hosts file, files, variables,
// and an endpoint that answers for the egress during invocations.
func TestOutsideIsReachedByItsNames(t *testing.T) {
	a := &outsides{
		hosts: "127.1.2.3 api.example.com\n", local: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, note: "bawn: for its owner alone",
		env: map[string]string{"FROM_EGRESS": "yes", "MINE": "not mine", "AWS_REGION": "not that"},
	}
	p := newRealWith(t, func(c *interior.Config) { c.Attach = a.attach })
	env := func(v *bawn.Version) { v.Environment = map[string]string{"MINE": "mine"} }
	want := []string{
		"api.example.com at 127.1.2.3:80", "203.0.113.9 at 203.0.113.9:80", "no name", "sesame", "yes", "mine", interior.DefaultRegion, "served", "403",
	}
	for name, v := range map[string]*bawn.Version{
		"python": python(t, `
import os, socket, urllib.request, urllib.error
def get(url, data=None):
    try: return urllib.request.urlopen(url, data).read().decode()
    except urllib.error.HTTPError as e: return str(e.code)
early = get(os.environ["BAWN_ENDPOINT"] + "/secrets/key")
def handler(event, context):
    try: name = socket.gethostbyname("other.example.com")
    except socket.gaierror: name = "no name"
    return [get("http://api.example.com/"), get("http://203.0.113.9/"), name, open("/run/secrets/key").read(),
        os.environ["FROM_EGRESS"], os.environ["MINE"], os.environ["AWS_REGION"], get(os.environ["BAWN_ENDPOINT"] + "/secrets/key", b"x" * 100), early]
`, env),
		"node": node(t, p, `
const { lookup } = require('dns').promises;
const get = async (url, body) => { const r = await fetch(url, body && { method: 'POST', body }); return r.ok ? r.text() : String(r.status); };
const early = get(process.env.BAWN_ENDPOINT + '/secrets/key');
early.catch(() => {});
exports.handler = async () => [await get('http://api.example.com/'), await get('http://203.0.113.9/'),
  await lookup('other.example.com').then(a => a.address, () => 'no name'), require('fs').readFileSync('/run/secrets/key', 'utf8'),
  process.env.FROM_EGRESS, process.env.MINE, process.env.AWS_REGION, await get(process.env.BAWN_ENDPOINT + '/secrets/key', 'x'.repeat(100)), '403'];
`, env),
	} {
		c := newCall(`1`)
		c.Tail = true
		r, err := p.Run(t.Context(), v, c)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := json.Unmarshal(r.Payload, &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %s, want %q", name, r.Payload, want)
		}
		if bytes.Contains(r.Log, []byte("owner alone")) || !strings.Contains(p.text(c.ID), "owner alone") {
			t.Errorf("%s: the tail is %s, the log %s", name, r.Log, p.text(c.ID))
		}
		if told := a.told(); !strings.Contains(told, "POST /secrets/key 100 <nil>") {
			t.Errorf("%s: told %s", name, told)
		}
		p.mu.Lock()
		if i := slices.IndexFunc(p.records, func(r bawn.Record) bool { return r.Control == "C3" }); i < 0 || p.records[i].Function != "hello" || p.records[i].Invocation != c.ID || p.records[i].Instance == "" {
			t.Errorf("%s: records %+v", name, p.records)
		}
		p.records = nil
		p.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.names, "other.example.com") || slices.Contains(a.names, "api.example.com") {
		t.Errorf("the resolver was asked for %q", a.names)
	}
}

// A beacon listens on the host wherever code in a sandbox might look, and counts
// who comes.
type beacon struct {
	came    atomic.Int64
	targets []any // kind, host, port
}

func newBeacon(t *testing.T) *beacon {
	b := &beacon{}
	hosts := []string{"127.0.0.1", "::1"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			hosts = append(hosts, p.Addr().String())
		}
	}
	for _, h := range hosts {
		ln, err := net.Listen("tcp", net.JoinHostPort(h, "0"))
		if err != nil {
			continue // no IPv6 here
		}
		port := ln.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp", net.JoinHostPort(h, fmt.Sprint(port)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close(); u.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				b.came.Add(1)
				c.Close()
			}
		}()
		go func() {
			for {
				if _, _, err := u.ReadFrom(make([]byte, 64)); err != nil {
					return
				}
				b.came.Add(1)
			}
		}()
		b.targets = append(b.targets, []any{h, port})
	}
	for _, h := range []string{"1.1.1.1", "169.254.169.254", "2606:4700:4700::1111", "example.com", "3232235777", "0x01010101", "1.1"} {
		b.targets = append(b.targets, []any{h, 53})
	}
	return b
}

// every runs a function that tries all it can on each target, and names what led
// anywhere. So many ways must lead to what the instance may reach.
func (b *beacon) every(t *testing.T, p *real, a *outsides, v *bawn.Version, ways int) {
	t.Helper()
	type outcome struct {
		Tried   int
		Reached []string
	}
	run := func(targets ...any) (got outcome) {
		event, err := json.Marshal(targets)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(t.Context(), v, newCall(string(event)))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(r.Payload, &got); err != nil || r.FunctionError != "" {
			t.Fatalf("%s", r.Payload)
		}
		return got
	}
	if got := run([]any{"127.1.2.3", 80}); len(got.Reached) < ways {
		t.Errorf("only %d of %d ways work where they may: %s", len(got.Reached), got.Tried, strings.Join(got.Reached, "\n"))
	}
	said := run(b.targets...)
	if len(said.Reached) > 0 {
		t.Errorf("ways out: %s", strings.Join(said.Reached, "\n"))
	}
	if said.Tried < 10*len(b.targets) {
		t.Errorf("only %d ways were tried", said.Tried)
	}
	time.Sleep(100 * time.Millisecond) // what is on its way to the host arrives
	if n := b.came.Load(); n != 0 {
		t.Errorf("%d connections or datagrams arrived on the host", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.names, "example.com") {
		t.Errorf("the resolver was asked for %q", a.names)
	}
	t.Logf("%d ways were tried", said.Tried)
}

// TestC1EveryClientOfPython tries the network by everything that Python has for
// it, down to the C library and the system calls.
func TestC1EveryClientOfPython(t *testing.T) {
	a := &outsides{hosts: "127.1.2.3 api.example.com\n"}
	p := newRealWith(t, func(c *interior.Config) { c.Attach = a.attach })
	v := python(t, `
import asyncio, ctypes, ftplib, http.client, imaplib, multiprocessing.connection, os, poplib, platform, smtplib, socket, ssl, struct
import telnetlib, time, threading, urllib.request, xmlrpc.client, logging.handlers, nntplib
T = 0.5
libc = ctypes.CDLL(None, use_errno=True)

def sockaddr(host, port):
    try: return socket.AF_INET, struct.pack("=H", 2) + struct.pack(">H", port) + socket.inet_pton(socket.AF_INET, host) + bytes(8)
    except OSError: return socket.AF_INET6, struct.pack("=H", 10) + struct.pack(">HI", port, 0) + socket.inet_pton(socket.AF_INET6, host) + bytes(4)

numbers = {"x86_64": (41, 42), "aarch64": (198, 203)}[platform.machine()]

def by_libc(host, port, kind, direct=False):
    family, addr = sockaddr(host, port)
    fd = libc.syscall(ctypes.c_long(numbers[0]), family, kind, 0) if direct else libc.socket(family, kind, 0)
    if fd < 0: raise OSError(ctypes.get_errno(), "socket")
    try:
        r = libc.syscall(ctypes.c_long(numbers[1]), fd, addr, len(addr)) if direct else libc.connect(fd, addr, len(addr))
        if r < 0: raise OSError(ctypes.get_errno(), "connect")
        for _ in range(2 if kind & 15 == socket.SOCK_DGRAM else 0): # the second hears what came of the first
            if libc.send(fd, b"x", 1, 0) < 0: raise OSError(ctypes.get_errno(), "send")
            time.sleep(0.01)
    finally: os.close(fd)

def datagram(host, port, how):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(T)
        if how == "sendto": s.sendto(b"x", (host, port))
        elif how == "sendmsg": s.sendmsg([b"x"], [], 0, (host, port))
        else: s.connect((host, port)); s.send(b"x")
        s.recv(1)

def fastopen(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(T)
        s.sendto(b"x", 0x20000000, (host, port))

def bound(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(T)
        s.bind(("", 0))
        s.connect((host, port))

def device(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(T)
        s.setsockopt(socket.SOL_SOCKET, 25, b"eth0")
        s.connect((host, port))

async def stream(host, port, tls): await asyncio.wait_for(asyncio.open_connection(host, port, ssl=tls), T)
async def packet(host, port):
    loop, got = asyncio.get_running_loop(), asyncio.Event()
    class P(asyncio.DatagramProtocol):
        def datagram_received(self, *a): got.set()
    tr, _ = await loop.create_datagram_endpoint(P, remote_addr=(host, port))
    tr.sendto(b"x")
    try: await asyncio.wait_for(got.wait(), 0.1)
    finally: tr.close()

def forked(host, port):
    pid = os.fork()
    if pid == 0:
        try: socket.create_connection((host, port), T); os._exit(0)
        except BaseException: os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0: raise OSError("no")

def threaded(host, port):
    failed = []
    def f():
        try: socket.create_connection((host, port), T)
        except OSError as e: failed.append(e)
    t = threading.Thread(target=f); t.start(); t.join()
    if failed: raise failed[0]

def syslog(host, port):
    h = logging.handlers.SysLogHandler((host, port), socktype=socket.SOCK_STREAM)
    h.emit(logging.LogRecord("x", 10, "x", 1, "x", (), None))

def url(host): return "[" + host + "]" if ":" in host else host
ways = {
    "create_connection": lambda h, p: socket.create_connection((h, p), T),
    "connect_ex": lambda h, p: (lambda s: (_ for _ in ()).throw(OSError()) if s.connect_ex((h, p)) else 0)(socket.socket()),
    "sendto": lambda h, p: datagram(h, p, "sendto"),
    "sendmsg": lambda h, p: datagram(h, p, "sendmsg"),
    "connected datagram": lambda h, p: datagram(h, p, "connect"),
    "fast open": fastopen, "bound first": bound, "device": device,
    "mptcp": lambda h, p: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect((h, p)),
    "sctp": lambda h, p: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect((h, p)),
    "raw": lambda h, p: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b"x", (h, p)),
    "packet": lambda h, p: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3),
    "vsock": lambda h, p: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, p)),
    "abstract": lambda h, p: socket.socket(socket.AF_UNIX).connect("\0/tmp/.X11-unix/X0"),
    "C library": lambda h, p: by_libc(h, p, socket.SOCK_STREAM),
    "C library, datagram": lambda h, p: by_libc(h, p, socket.SOCK_DGRAM),
    "system call": lambda h, p: by_libc(h, p, socket.SOCK_STREAM, True),
    "ssl": lambda h, p: ssl.create_default_context().wrap_socket(socket.create_connection((h, p), T), server_hostname=h),
    "asyncio": lambda h, p: asyncio.run(stream(h, p, None)), "asyncio, TLS": lambda h, p: asyncio.run(stream(h, p, True)),
    "asyncio, datagram": lambda h, p: asyncio.run(packet(h, p)),
    "urllib": lambda h, p: urllib.request.urlopen(f"http://{url(h)}:{p}/", timeout=T),
    "urllib, TLS": lambda h, p: urllib.request.urlopen(f"https://{url(h)}:{p}/", timeout=T),
    "urllib, ftp": lambda h, p: urllib.request.urlopen(f"ftp://{url(h)}:{p}/", timeout=T),
    "urllib, proxy": lambda h, p: urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{url(h)}:{p}"})).open("http://x/", timeout=T),
    "http.client": lambda h, p: http.client.HTTPConnection(h, p, timeout=T).request("GET", "/"),
    "https.client": lambda h, p: http.client.HTTPSConnection(h, p, timeout=T).request("GET", "/"),
    "ftplib": lambda h, p: ftplib.FTP().connect(h, p, T), "smtplib": lambda h, p: smtplib.SMTP(h, p, timeout=T),
    "imaplib": lambda h, p: imaplib.IMAP4(h, p, T), "poplib": lambda h, p: poplib.POP3(h, p, T), "telnetlib": lambda h, p: telnetlib.Telnet(h, p, T),
    "nntplib": lambda h, p: nntplib.NNTP(h, p, timeout=T), "xmlrpc": lambda h, p: xmlrpc.client.ServerProxy(f"http://{url(h)}:{p}/").x(),
    "multiprocessing": lambda h, p: multiprocessing.connection.Client((h, p)), "fork": forked, "thread": threaded, "syslog": syslog,
    "getaddrinfo": lambda h, p: None if h[0].isdigit() or ":" in h else socket.getaddrinfo(h, p) and None,
    "gethostbyaddr": lambda h, p: None if h.startswith(("127.", "::1")) else socket.gethostbyaddr(h),
}
def handler(event, context):
    tried, reached = 0, []
    socket.setdefaulttimeout(T)
    for host, port in event:
        for name, way in ways.items():
            tried += 1
            try:
                if way(host, port) is None and name in ("getaddrinfo", "gethostbyaddr"): continue
            except Exception: continue
            reached.append(f"{name} {host} {port}")
    return {"tried": tried, "reached": reached}
`, func(v *bawn.Version) { v.Perimeter.Interior.Timeout = 2 * time.Minute })
	newBeacon(t).every(t, p, a, v, 12)
}

// TestC1EveryClientOfNode is the same for Node.js.
func TestC1EveryClientOfNode(t *testing.T) {
	a := &outsides{hosts: "127.1.2.3 api.example.com\n"}
	p := newRealWith(t, func(c *interior.Config) { c.Attach = a.attach })
	v := node(t, p, `
const net = require('net'), tls = require('tls'), dgram = require('dgram'), http = require('http'), https = require('https');
const http2 = require('http2'), dns = require('dns'), { Worker } = require('worker_threads');
const T = 500;
const limit = p => { let timer; return Promise.race([p, new Promise((_, no) => { timer = setTimeout(() => no(new Error('timeout')), T); })]).finally(() => clearTimeout(timer)); };
const emitter = (e, ...ok) => limit(new Promise((yes, no) => { e.on('error', no); e.on('close', () => no(new Error('closed'))); for (const n of ok) e.on(n, yes); }));
const url = h => h.includes(':') ? '[' + h + ']' : h;
const send = (type, h, p, connect) => limit(new Promise((yes, no) => {
  const s = dgram.createSocket(type);
  s.on('error', no); s.on('message', yes);
  if (connect) s.connect(p, h, e => e ? no(e) : s.send('x', e => e && no(e))); else s.send('x', p, h, e => e && no(e));
}).finally(() => {}));
const resolver = (h, p, f) => { const r = new dns.promises.Resolver({ timeout: 200, tries: 1 }); r.setServers([url(h) + ':' + p]); return limit(f(r)); };
const literal = h => /^[0-9a-fx.:]+$/.test(h) && !/^example/.test(h);
const ways = {
  'net': (h, p) => emitter(net.connect(p, h), 'connect'),
  'net, no happy eyeballs': (h, p) => emitter(net.connect({ port: p, host: h, autoSelectFamily: false }), 'connect'),
  'net, IPv6': (h, p) => emitter(net.connect({ port: p, host: h, family: 6 }), 'connect'),
  'net, from an address': (h, p) => emitter(net.connect({ port: p, host: h, localAddress: '0.0.0.0' }), 'connect'),
  'abstract': (h, p) => emitter(net.connect('\0/tmp/.X11-unix/X0'), 'connect'),
  'tls': (h, p) => emitter(tls.connect({ port: p, host: h, rejectUnauthorized: false }), 'secureConnect', 'connect'),
  'dgram': (h, p) => send(h.includes(':') ? 'udp6' : 'udp4', h, p), 'dgram, connected': (h, p) => send(h.includes(':') ? 'udp6' : 'udp4', h, p, true),
  'http': (h, p) => emitter(http.get({ host: h, port: p }), 'response', 'socket-connected'),
  'http, agent': (h, p) => emitter(http.get({ host: h, port: p, agent: new http.Agent({ keepAlive: true }) }), 'response'),
  'https': (h, p) => emitter(https.get({ host: h, port: p, rejectUnauthorized: false }), 'response'),
  'CONNECT': (h, p) => emitter(http.request({ host: h, port: p, method: 'CONNECT', path: 'x:443' }).end(), 'connect'),
  'fetch': (h, p) => limit(fetch('http://' + url(h) + ':' + p + '/')), 'fetch, TLS': (h, p) => limit(fetch('https://' + url(h) + ':' + p + '/')),
  'http2': (h, p) => emitter(http2.connect('http://' + url(h) + ':' + p), 'connect'),
  'http2, TLS': (h, p) => emitter(http2.connect('https://' + url(h) + ':' + p), 'connect'),
  'WebSocket': (h, p) => { if (typeof WebSocket === 'undefined') throw new Error('none'); return limit(new Promise((yes, no) => { const w = new WebSocket('ws://' + url(h) + ':' + p); w.onopen = yes; w.onerror = no; })); },
  'dns.lookup': (h, p) => { if (literal(h)) throw new Error('no name'); return limit(dns.promises.lookup(h)); },
  'dns.resolve': (h, p) => limit(dns.promises.resolve(literal(h) ? 'x.example.com' : h)), 'dns.resolveTxt': (h, p) => limit(dns.promises.resolveTxt('leak.' + h)),
  'dns.resolveAny': (h, p) => limit(dns.promises.resolveAny('leak.example.com')),
  'dns.reverse': (h, p) => { if (!net.isIP(h) || h === '127.0.0.1' || h === '::1') throw new Error('no address'); return limit(dns.promises.reverse(h)); },
  'a server of its own': (h, p) => { if (!net.isIP(h)) throw new Error('no address'); return resolver(h, p, r => r.resolve4('leak.example.com')); },
  'a server of its own, TXT': (h, p) => { if (!net.isIP(h)) throw new Error('no address'); return resolver(h, p, r => r.resolveTxt('leak.example.com')); },
  'a server for all': (h, p) => { if (!net.isIP(h)) throw new Error('no address'); const was = dns.getServers(); dns.setServers([url(h) + ':' + p]);
    return limit(dns.promises.resolve4('leak.example.com')).finally(() => dns.setServers(was)); },
  'worker': (h, p) => limit(new Promise((yes, no) => {
    const w = new Worker("const { workerData: d, parentPort: o } = require('worker_threads'); const s = require('net').connect(d[1], d[0]); s.on('connect', () => o.postMessage(1)); s.on('error', () => o.postMessage(0));",
      { eval: true, workerData: [h, p] });
    w.on('message', m => m ? yes() : no(new Error('refused'))); w.on('error', no); })),
  'bindings': (h, p) => { const { TCP, TCPConnectWrap, constants } = process.binding('tcp_wrap'); const s = new TCP(constants.SOCKET), r = new TCPConnectWrap();
    return limit(new Promise((yes, no) => { r.oncomplete = e => e ? no(new Error(e)) : yes(); const e = h.includes(':') ? s.connect6(r, h, p) : s.connect(r, h, p); if (e) no(new Error(e)); })); },
  'a program': (h, p) => emitter(require('child_process').spawn('/usr/local/bin/node', ['-e', '1']), 'spawn'),
};
process.on('uncaughtException', () => {});
exports.handler = async event => {
  let tried = 0; const reached = [];
  await Promise.all(event.map(async ([h, p]) => {
    for (const [name, way] of Object.entries(ways)) {
      tried++;
      try { await way(h, p); reached.push(name + ' ' + h + ' ' + p); } catch {}
    }
  }));
  return { tried, reached };
};
`, func(v *bawn.Version) {
		v.Perimeter.Interior.Timeout, v.Perimeter.Interior.Memory = 2*time.Minute, 512<<20
	})
	newBeacon(t).every(t, p, a, v, 9)
}
