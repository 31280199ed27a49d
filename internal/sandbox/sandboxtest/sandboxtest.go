// Package sandboxtest is the suite that every sandbox driver passes. It puts
// a program of its own into real sandboxes and has it try what a function must
// not be able to do, and what an honest one must.
package sandboxtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// wait bounds every wait of the suite; nothing here takes a tenth of it.
const wait = 20 * time.Second

// Actor is the variable that holds the path of a program that [Build] made. Without
// it the suite builds its own.
const Actor = "BAWN_TEST_ACTOR"

// Run runs the suite against one driver. It needs the go command, to build the
// program that it puts into the sandboxes. What the driver says is weaker, it may
// be weaker in.
func Run(t *testing.T, d sandbox.Driver) {
	s := &suite{driver: d, code: t.TempDir(), weaker: map[string]bool{}}
	for _, c := range d.Probe() {
		s.weaker[c.Name] = !c.OK
		if c.Required && !c.OK {
			t.Skipf("this host cannot enforce %s (%s): %s", c.Name, c.Control, c.Fix)
		}
	}
	s.build(t)
	img := sandbox.Image{Name: "actor", Syscall: sandbox.SyscallProvided, Files: []sandbox.File{
		{Path: "/etc/passwd", Data: []byte("sbx:x:993:993::/tmp:/sbin/nologin\n")},
	}}
	if err := d.Prepare(context.Background(), img); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	t.Run("B1 own namespaces", s.namespaces)
	t.Run("B2 forbidden calls", s.forbiddenCalls)
	t.Run("B3 no privileges", s.privileges)
	t.Run("B4 read-only root, nothing of the host", s.files)
	t.Run("B5 memory", s.memory)
	t.Run("B5 processes", s.processes)
	t.Run("B5 descriptors and disk", s.descriptorsAndDisk)
	t.Run("B5 cpu", s.cpu)
	t.Run("B7 exec", s.exec)
	t.Run("B9 proc and devices", s.procAndDevices)
	t.Run("B11 the whole tree dies", s.wholeTree)
	t.Run("C1 loopback alone", s.network)
	t.Run("C1 no other way out", s.noOtherWay)
	t.Run("C1 ranges that come home", s.rangesComeHome)
	t.Run("C1 all addresses come home", s.allComesHome)
	t.Run("C7 nothing comes in", s.nothingComesIn)
	t.Run("E3 files in memory", s.filesInMemory)
	t.Run("attempts are limited", s.attemptFlood)
	t.Run("frozen uses no cpu", s.frozen)
	t.Run("exit is told", s.exits)
	t.Run("a program that cannot start", s.badProgram)
	t.Run("inspect", s.inspect)
	t.Run("attach once", s.attachOnce)
	t.Run("listen before attach", s.listenFirst)
	t.Run("many at once", s.many)
}

type suite struct {
	driver sandbox.Driver
	weaker map[string]bool // capabilities by name
	code   string
	n      int
}

func (s *suite) build(t *testing.T) {
	t.Helper()
	if err := os.Chmod(s.code, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(s.code, "bootstrap")
	made := os.Getenv(Actor)
	if made == "" {
		Build(t, program)
		return
	}
	b, err := os.ReadFile(made)
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Build makes the program of the suite.
func Build(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", path, "bawn.dev/bawn/internal/sandbox/sandboxtest/actor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the actor: %v\n%s", err, out)
	}
}

// limits are what the suite's sandboxes get unless a test says otherwise.
var limits = sandbox.Attachment{Memory: 128 << 20, CPU: 1, PIDs: 32, Tmp: 8 << 20}

// actor is a sandbox with the suite's program in it.
type actor struct {
	sandbox.Sandbox
	t  *testing.T
	in *bufio.Reader
}

type reply struct {
	OK, Error, Errno string
}

func (s *suite) start(t *testing.T, change func(*sandbox.Attachment)) *actor {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	s.n++
	box, err := s.driver.Start(ctx, sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor"})
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		box.Kill()
		select {
		case <-box.Done():
		case <-time.After(wait):
			t.Error("the sandbox does not end")
		}
		box.Conn().Close()
		box.Output().Close()
	})
	return s.enter(t, box, change)
}

// enter makes a started sandbox the actor's own and waits until that answers.
func (s *suite) enter(t *testing.T, box sandbox.Sandbox, change func(*sandbox.Attachment)) *actor {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	a := limits
	a.Code = []string{s.code}
	if change != nil {
		change(&a)
	}
	if err := box.Attach(ctx, a); err != nil {
		t.Fatalf("Attach: %v", err)
	}
	if err := box.Exec(ctx, []string{"/var/task/bootstrap"}, []string{"GOMAXPROCS=2", "SUITE=yes"}); err != nil {
		t.Fatalf("Exec: %v", err)
	}
	act := &actor{box, t, bufio.NewReader(box.Conn())}
	if got := act.read(); got.OK != "ready" {
		t.Fatalf("the actor did not start: %+v", got)
	}
	return act
}

func (a *actor) read() reply {
	a.t.Helper()
	a.Conn().SetReadDeadline(time.Now().Add(wait))
	line, err := a.in.ReadBytes('\n')
	if err != nil {
		return reply{Error: err.Error(), Errno: "GONE"}
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		a.t.Fatalf("the actor says %q", line)
	}
	return r
}

func (a *actor) do(words ...string) reply {
	a.t.Helper()
	b, _ := json.Marshal(words)
	a.Conn().SetWriteDeadline(time.Now().Add(wait))
	if _, err := a.Conn().Write(append(b, '\n')); err != nil {
		return reply{Error: err.Error(), Errno: "GONE"}
	}
	return a.read()
}

// ended waits for the sandbox to be gone.
func (a *actor) ended() sandbox.Exit {
	a.t.Helper()
	select {
	case <-a.Done():
		return a.Exit()
	case <-time.After(wait):
		a.t.Fatal("the sandbox does not end")
		return sandbox.Exit{}
	}
}

// attempt waits for a report of a call.
func (a *actor) attempt(call string) sandbox.Attempt {
	a.t.Helper()
	timeout := time.After(wait)
	for {
		select {
		case got, ok := <-a.Attempts():
			if !ok {
				a.t.Fatalf("no report of %s", call)
			}
			if got.Syscall == call {
				return got
			}
		case <-timeout:
			a.t.Fatalf("no report of %s", call)
		}
	}
}

func (s *suite) namespaces(t *testing.T) {
	a, b := s.start(t, nil), s.start(t, nil)
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		seen := map[string]string{}
		host, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		seen[host] = "the host"
		for name, x := range map[string]*actor{"one sandbox": a, "another": b} {
			facts, err := x.Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if f := fact(t, facts, "namespaces"); !f.OK || !strings.Contains(f.Value, ns) {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
	if got := a.do("whoami"); !strings.HasPrefix(got.OK, "993 993 ") {
		t.Errorf("whoami: %+v", got)
	}
	if got := a.do("read", "/proc/self/cgroup"); strings.Contains(got.OK, "bawn") || strings.Contains(got.OK, "..") {
		t.Errorf("the cgroup shows the host's: %q", got.OK)
	}
}

// calls that must be refused, with what the program may see.
var forbidden = []string{
	"unshare", "mount", "umount", "ptrace", "bpf", "io_uring", "userfaultfd", "keyctl", "add_key", "perf_event_open", "setns",
	"open_by_handle_at", "pivot_root", "chroot", "init_module", "kexec_load", "reboot", "process_vm_readv", "mknod",
	"clone_newuser", "clone_newnet", "socket_packet", "socket_raw", "socket_vsock", "socket_alg", "memfd_exec", "seccomp",
	"sethostname", "clock_settime", "x32_getpid",
}

func (s *suite) forbiddenCalls(t *testing.T) {
	a := s.start(t, nil)
	for _, call := range forbidden {
		got := a.do("syscall", call)
		if got.Error == "" || got.Errno == "GONE" {
			t.Errorf("%s was not refused: %+v", call, got)
		} else if got.Errno != "EPERM" && got.Errno != "ENOSYS" {
			t.Errorf("%s: the kernel's own refusal %s and not the filter's", call, got.Errno)
		}
	}
	got := a.attempt("mount")
	if got.Control != "B2" || got.Errno != "EPERM" || len(got.Args) < 3 || got.Args[1] != "/tmp" {
		t.Errorf("report of mount: %+v", got)
	}
	a.attempt("bpf")
}

func (s *suite) privileges(t *testing.T) {
	a, b := s.start(t, nil), s.start(t, nil)
	status := a.do("read", "/proc/self/status").OK
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q", want)
		}
	}
	if init := a.do("read", "/proc/1/status").OK; !strings.Contains(init, "CapEff:\t0000000000000000") {
		t.Errorf("init has capabilities:\n%s", init)
	}
	users := map[string]bool{}
	for _, x := range []*actor{a, b} {
		facts, err := x.Inspect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := fact(t, facts, "host user")
		if s.weaker["a user for each sandbox"] {
			if f.OK || !strings.Contains(f.Value, "own") {
				t.Errorf("nothing tells that the user is the node's: %+v", f)
			}
			continue
		}
		if !f.OK || users[f.Value] {
			t.Errorf("host user %+v is privileged or shared", f)
		}
		users[f.Value] = true
	}
}

func (s *suite) files(t *testing.T) {
	a := s.start(t, nil)
	for _, name := range []string{"/x", "/usr/x", "/etc/passwd", "/var/task/x", "/var/task/bootstrap", "/dev/x", "/opt/x"} {
		if got := a.do("write", name, "x"); got.Error == "" {
			t.Errorf("wrote %s", name)
		}
	}
	if got := a.attempt("openat"); got.Control != "B4" || len(got.Args) != 1 || got.Args[0] != "/x" {
		t.Errorf("report of a write: %+v", got)
	}
	for _, words := range [][]string{{"mkdir", "/var/task/d"}, {"rename", "/var/task/bootstrap", "/tmp/b"}, {"symlink", "/", "/etc/s"}} {
		if got := a.do(words...); got.Error == "" {
			t.Errorf("%v worked", words)
		}
	}
	for _, words := range [][]string{{"write", "/tmp/x", "x"}, {"mkdir", "/tmp/d"}, {"rename", "/tmp/x", "/tmp/d/y"}, {"symlink", "y", "/tmp/d/z"}} {
		if got := a.do(words...); got.Error != "" {
			t.Errorf("%v: %s", words, got.Error)
		}
	}
	if got := a.do("read", "/tmp/d/z").OK; got != "x" {
		t.Errorf("/tmp/d/z holds %q", got)
	}
	if got := a.do("list", "/").OK; got != "dev etc opt proc run tmp var" {
		t.Errorf("root holds %q", got)
	}
	if got := a.do("list", "/proc/1/fd"); got.Error == "" {
		t.Errorf("init's files are open to see: %q", got.OK)
	}
	table := a.do("read", "/proc/self/mountinfo").OK
	for _, word := range []string{s.code, filepath.Dir(s.code), "bawn-", os.TempDir() + "/", "/root/", "/home/", "/dev/vd", "/dev/sd", "ext4"} {
		if strings.Contains(table, word) {
			t.Errorf("the mount table shows %q:\n%s", word, table)
		}
	}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if f[4] == "/var/task" && strings.Contains(line, "overlay") && !strings.HasPrefix(f[5], "ro,") {
			t.Errorf("code is writable: %s", line)
		}
	}
	for _, name := range []string{"/etc/shadow", "/root", "/home", "/proc/1/environ", "/proc/1/root/etc/passwd", "/sys/kernel"} {
		if got := a.do("read", name); got.Error == "" {
			t.Errorf("read %s: %q", name, got.OK)
		}
	}
}

func (s *suite) memory(t *testing.T) {
	a := s.start(t, func(at *sandbox.Attachment) { at.Memory = 64 << 20 })
	if got := a.do("eat"); got.Errno != "GONE" {
		t.Fatalf("ate 4 GiB of 64 MiB: %+v", got)
	}
	if exit := a.ended(); !exit.OOM {
		t.Errorf("exit %+v does not tell of memory", exit)
	}
}

func (s *suite) processes(t *testing.T) {
	a := s.start(t, func(at *sandbox.Attachment) { at.PIDs = 24 })
	a.do("threads") // children of a fork share the socket, so the answer may be anyone's
	st, err := a.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.PIDs < 20 || st.PIDs > 24+16 {
		t.Errorf("%d processes with a limit of 24", st.PIDs)
	}
}

func (s *suite) descriptorsAndDisk(t *testing.T) {
	a := s.start(t, nil)
	if got := a.do("fill", "/tmp/big"); got.Errno != "ENOSPC" || got.OK != "7" && got.OK != "8" {
		t.Errorf("filled 8 MiB of /tmp: %+v", got)
	}
	if got := a.do("fds"); got.Errno != "EMFILE" {
		t.Errorf("opened %+v", got)
	}
}

func (s *suite) cpu(t *testing.T) {
	if s.weaker["cpu limit"] {
		t.Skip("the driver says that there is none")
	}
	a := s.start(t, func(at *sandbox.Attachment) { at.CPU = 0.1 })
	before := time.Now()
	a.do("spin", "600ms")
	elapsed := time.Since(before)
	st, err := a.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Not a question of speed: the quota's share of whatever time went by.
	if share := float64(st.CPU) / float64(elapsed); share > 0.35 {
		t.Errorf("used %.2f cores with a limit of 0.1", share)
	}
}

func (s *suite) exec(t *testing.T) {
	a := s.start(t, nil)
	if got := a.do("exec", "/var/task/bootstrap", "child"); got.Error == "" {
		t.Errorf("exec worked: %+v", got)
	}
	if got := a.attempt("execve"); got.Control != "B7" || len(got.Args) < 3 || got.Args[0] != "/var/task/bootstrap" || got.Args[2] != "child" {
		t.Errorf("report of exec: %+v", got)
	}
	if got := a.do("memfdexec"); got.OK != "memfd_create" {
		t.Errorf("a memory file, from which code could be mapped: %+v", got)
	}
	declared := s.start(t, func(at *sandbox.Attachment) { at.Exec = true })
	if got := declared.do("exec", "/var/task/bootstrap", "child"); got.OK != "child ran\n" {
		t.Errorf("declared exec: %+v", got)
	}
	self, err := os.ReadFile(filepath.Join(s.code, "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	_ = self
	if got := declared.do("write", "/tmp/s", "#!/var/task/bootstrap child\n"); got.Error != "" {
		t.Fatalf("write: %+v", got)
	}
	if got := declared.do("exec", "/tmp/s"); got.Error == "" {
		t.Errorf("ran a script from /tmp: %+v", got)
	}
	if got := declared.do("memfdexec"); got.Error == "" {
		t.Errorf("declared exec reaches memory files: %+v", got)
	}
}

func (s *suite) procAndDevices(t *testing.T) {
	a := s.start(t, nil)
	for _, name := range []string{"/proc/kcore", "/proc/keys", "/proc/cmdline", "/proc/modules", "/proc/kallsyms", "/proc/partitions"} {
		if got := a.do("read", name); got.OK != "" {
			t.Errorf("%s shows %q", name, got.OK)
		}
	}
	for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches"} {
		if got := a.do("write", name, "x"); got.Error == "" {
			t.Errorf("wrote %s", name)
		}
	}
	pids := 0
	for _, name := range strings.Fields(a.do("list", "/proc").OK) {
		if strings.Trim(name, "0123456789") == "" {
			pids++
		}
	}
	if pids != 2 {
		t.Errorf("%d processes are visible, want init and the program", pids)
	}
	if got := a.do("list", "/dev").OK; got != "fd full null random stderr stdin stdout urandom zero" {
		t.Errorf("/dev holds %q", got)
	}
	if got := a.do("write", "/dev/null", "x"); got.Error != "" {
		t.Errorf("/dev/null: %s", got.Error)
	}
	env := a.do("env").OK
	if env != "GOMAXPROCS=2\nSUITE=yes" {
		t.Errorf("environment %q", env)
	}
}

func (s *suite) wholeTree(t *testing.T) {
	a := s.start(t, nil)
	for range 5 {
		if got := a.do("fork"); got.Error != "" {
			t.Fatalf("fork: %+v", got)
		}
	}
	a.Kill()
	exit := a.ended()
	if exit.Signal != "killed" {
		t.Errorf("exit %+v", exit)
	}
}

func (s *suite) network(t *testing.T) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	a := s.start(t, nil)
	for _, addr := range []string{host.Addr().String(), "169.254.169.254:80", "1.1.1.1:53", "[::1]:80", "[2606:4700:4700::1111]:53", "10.0.0.1:80"} {
		if got := a.do("dial", "tcp", addr); got.Error == "" {
			t.Errorf("reached %s", addr)
		}
	}
	if got := a.do("read", "/proc/net/dev").OK; strings.Count(got, ":") != 1 || !strings.Contains(got, "lo:") {
		t.Errorf("network devices:\n%s", got)
	}

	s.n++
	box, err := s.driver.Start(t.Context(), sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { box.Kill(); <-box.Done() }()
	ln := listen(t, box, sandbox.Port{Network: "tcp", Port: 9001, Home: true})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("from outside"))
			c.Close()
		}
	}()
	in := s.enter(t, box, nil)
	if got := in.do("dial", "tcp", "127.0.0.1:9001"); got.OK != "from outside" {
		t.Errorf("the listener made from outside: %+v", got)
	}
}

func (s *suite) attemptFlood(t *testing.T) {
	a := s.start(t, nil)
	for range 500 {
		if got := a.do("syscall", "bpf"); got.Errno != "EPERM" {
			t.Fatalf("bpf: %+v", got)
		}
	}
	a.Kill()
	a.ended()
	reports, told := 0, 0
	for got := range a.Attempts() {
		reports++
		told += 1 + got.Dropped
	}
	if reports > 60 || told != 500 {
		t.Errorf("%d reports tell of %d calls; want at most 60 and 500", reports, told)
	}
}

func (s *suite) frozen(t *testing.T) {
	a := s.start(t, nil)
	b, _ := json.Marshal([]string{"spin", "30s"})
	a.Conn().Write(append(b, '\n'))
	if err := a.Freeze(t.Context()); err != nil {
		t.Fatalf("Freeze: %v", err)
	}
	used := func() time.Duration {
		st, err := a.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.CPU
	}
	// Freezing takes a moment to reach every thread.
	var before time.Duration
	for range 100 {
		last := before
		time.Sleep(20 * time.Millisecond)
		if before = used(); before == last {
			break
		}
	}
	time.Sleep(300 * time.Millisecond)
	if after := used(); after != before {
		t.Errorf("used %v while frozen", after-before)
	}
	if err := a.Thaw(t.Context()); err != nil {
		t.Fatalf("Thaw: %v", err)
	}
	for range 200 {
		time.Sleep(20 * time.Millisecond)
		if used() > before {
			return
		}
	}
	t.Error("does not go on after thawing")
}

func (s *suite) exits(t *testing.T) {
	a := s.start(t, nil)
	a.do("print", "last words")
	a.do("exit")
	if exit := a.ended(); exit.Code != 7 || exit.Signal != "" {
		t.Errorf("exit %+v, want status 7", exit)
	}
	out, err := io.ReadAll(a.Output())
	if err != nil || string(out) != "last words\n" {
		t.Errorf("output %q, %v", out, err)
	}
	b := s.start(t, nil)
	b.do("crash")
	if exit := b.ended(); exit.Signal != "killed" {
		t.Errorf("exit %+v, want a signal", exit)
	}
	c := s.start(t, nil)
	if err := c.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	c.ended() // a frozen one dies as well
}

func (s *suite) badProgram(t *testing.T) {
	s.n++
	box, err := s.driver.Start(t.Context(), sandbox.Spec{ID: fmt.Sprintf("suite-%d", s.n), Image: "actor", Args: []string{"/no/such/program"}})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-box.Done():
	case <-time.After(wait):
		t.Fatal("does not end")
	}
	if exit := box.Exit(); exit.Err == nil || !strings.Contains(exit.Err.Error(), "/no/such/program") {
		t.Errorf("exit %+v does not name the program", exit)
	}
	if _, err := s.driver.Start(t.Context(), sandbox.Spec{ID: "suite-none", Image: "none"}); err == nil {
		t.Error("started an image that nobody prepared")
	}
}

func (s *suite) inspect(t *testing.T) {
	a := s.start(t, nil)
	facts, err := a.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(facts) < 12 {
		t.Errorf("only %d facts", len(facts))
	}
	for _, f := range facts {
		weaker := f.Name == "host user" && s.weaker["a user for each sandbox"] ||
			strings.HasPrefix(f.Name, "memory limit") && s.weaker["memory limit"] || f.Name == "cpu limit" && s.weaker["cpu limit"]
		if f.OK == weaker {
			t.Errorf("not as asked: %+v", f)
		}
	}
}

func (s *suite) attachOnce(t *testing.T) {
	a := s.start(t, nil)
	at := limits
	at.Code = []string{s.code}
	if err := a.Attach(t.Context(), at); err == nil {
		t.Error("a second function was attached")
	}
	if err := a.Sandbox.Exec(t.Context(), []string{"/var/task/bootstrap"}, nil); err == nil {
		t.Error("a second program was started")
	}
}

// listen makes one listener in a sandbox.
func listen(t *testing.T, box sandbox.Sandbox, p sandbox.Port, local ...netip.Prefix) net.Listener {
	t.Helper()
	files, err := box.Open(t.Context(), []sandbox.Port{p}, local)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer files[0].Close()
	ln, err := net.FileListener(files[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// listenFirst holds that nobody listens where a function could have been before:
// it would take the platform's place.
func (s *suite) listenFirst(t *testing.T) {
	a := s.start(t, nil)
	if _, err := a.Open(t.Context(), []sandbox.Port{{Network: "tcp", Port: 9001}}, nil); err == nil {
		t.Error("a listener was made after a function was attached")
	}
	if got := a.do("dial", "tcp", "127.0.0.1:9001"); got.Error == "" {
		t.Error("there is a listener all the same")
	}
}

func (s *suite) many(t *testing.T) {
	const n = 12
	boxes := make(chan sandbox.Sandbox, n)
	for i := range n {
		go func() {
			box, err := s.driver.Start(context.Background(), sandbox.Spec{ID: fmt.Sprintf("many-%d", i), Image: "actor"})
			if err != nil {
				t.Errorf("Start: %v", err)
			}
			boxes <- box
		}()
	}
	for range n {
		box := <-boxes
		if box == nil {
			continue
		}
		box.Kill()
		select {
		case <-box.Done():
		case <-time.After(wait):
			t.Error("does not end")
		}
	}
}

func fact(t *testing.T, facts []bawn.Fact, name string) bawn.Fact {
	t.Helper()
	for _, f := range facts {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no fact named %q", name)
	return bawn.Fact{}
}
