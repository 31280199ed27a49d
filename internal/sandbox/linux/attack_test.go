package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// attackerUID is the user of a server that was taken over.
const attackerUID = 0x7fff_8443

// TestJ3ServerUserCannotBecomeRoot runs an attacker who has all that the server
// has, its user, its data directory and the socket to the spawner, against a
// real helper, and then looks whether anything of the host was reached.
func TestJ3ServerUserCannotBecomeRoot(t *testing.T) {
	if data := os.Getenv("BAWN_TEST_ATTACKER"); data != "" {
		attack(data)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	data := filepath.Join(t.TempDir(), "data")
	for _, dir := range []string{data, filepath.Join(data, "runtimes"), filepath.Join(data, "code"), filepath.Join(data, "code/good")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(dir) != "runtimes" {
			if err := os.Chown(dir, attackerUID, attackerUID); err != nil {
				t.Fatal(err)
			}
		}
	}
	for dir := filepath.Dir(data); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	if err := os.WriteFile(filepath.Join(data, "code/good/mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := MakeRoot(filepath.Join(data, "runtimes"), sandbox.Image{Name: "empty", Syscall: sandbox.SyscallProvided})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.Open(filepath.Join(data, "runtimes"))
	if err != nil {
		t.Fatal(err)
	}
	defer roots.Close()
	code, err := os.Open(filepath.Join(data, "code"))
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	h, err := Launch(Places{Roots: roots, Code: code, Node: "attacked"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	go io.Copy(io.Discard, h.stderr)
	var hello wire.Hello
	fds, err := h.conn.Receive(&hello)
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d sockets, %v", len(fds), err)
	}
	socket := os.NewFile(uintptr(fds[0]), "socket")
	before, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command("/proc/self/exe", "-test.run=^TestJ3ServerUserCannotBecomeRoot$")
	cmd.Env = append(os.Environ(), "BAWN_TEST_ATTACKER="+data, "ROOT="+root, fmt.Sprint("SPAWNER=", hello.PID), fmt.Sprint("KEEPER=", h.keeper.Process.Pid))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: attackerUID, Gid: attackerUID}}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	socket.Close()
	said := make([]byte, 64<<10)
	n := 0
	for !strings.Contains(string(said[:n]), "ATTACKED") {
		m, err := out.Read(said[n:])
		if n += m; err != nil {
			t.Fatalf("the attacker ended: %s", said[:n])
		}
	}
	for line := range strings.Lines(string(said[:n])) {
		if what, ok := strings.CutPrefix(line, "BROKEN "); ok {
			t.Error(strings.TrimSpace(what))
		}
	}
	// While its sandboxes run: what did they get for code, and how?
	looked := 0
	for pid := range processesOf("attacked") {
		task := fmt.Sprintf("/proc/%d/root/var/task", pid)
		if _, err := os.Stat(task + "/passwd"); err == nil {
			t.Errorf("process %d has the host's /etc for code", pid)
		}
		if _, err := os.Stat(task + "/mine"); err == nil {
			looked++
		}
		table, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 5 && f[4] == "/var/task" && !strings.Contains(f[5], "nosuid") {
				t.Errorf("process %d may take rights from its code: %s", pid, f[5])
			}
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if strings.Contains(string(status), "\nUid:\t0\t") {
			t.Errorf("process %d of a sandbox is the host's root", pid)
		}
	}
	if looked == 0 {
		t.Error("no sandbox got the folder that it was to get: nothing was tested")
	}
	if after, _ := os.ReadFile("/etc/passwd"); string(after) != string(before) {
		t.Error("a file of the host was written")
	}
	in.Close()
	rest, _ := io.ReadAll(out) // until its end
	if strings.Contains(string(rest), "BROKEN") {
		t.Errorf("%s", rest)
	}
	cmd.Wait()
	eventually(t, "nothing of the sandboxes is left", func() bool { return len(processesOf("attacked")) == 0 })
}

// attack is the attacker. It prints what went wrong for the host, then that it
// is done, and stays until its input ends.
func attack(data string) {
	broken := func(format string, args ...any) { fmt.Printf("BROKEN "+format+"\n", args...) }
	conn, err := wire.New(3)
	if err != nil {
		broken("no socket: %v", err)
	}
	var seq uint64
	ask := func(r wire.Request, files ...int) error {
		seq++
		r.Seq = seq
		if err := conn.Send(&r, files...); err != nil {
			return err
		}
		for {
			var a wire.Reply
			fds, err := conn.Receive(&a)
			wire.CloseAll(fds)
			switch {
			case err != nil:
				return err
			case a.Seq == seq && a.Error != "":
				return errors.New(a.Error)
			case a.Seq == seq:
				return nil
			}
		}
	}
	ends := func() (socket, pipe int) {
		s, _ := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		var p [2]int
		unix.Pipe2(p[:], unix.O_CLOEXEC)
		return s[0], p[1]
	}
	start := func(id string) error {
		socket, pipe := ends()
		return ask(wire.Request{Op: wire.OpStart, ID: id, Start: &wire.Start{Image: "empty"}}, socket, pipe)
	}
	attach := func(id, dir string) error {
		return ask(wire.Request{Op: wire.OpAttach, ID: id, Attach: &wire.Attach{Code: []string{dir}, Memory: 64 << 20, CPU: 1, PIDs: 16}})
	}
	must := func(what string, err error) {
		if err != nil {
			broken("%s, which is allowed: %v", what, err)
		}
	}
	mustNot := func(what string, err error) {
		if err == nil {
			broken("%s", what)
		}
	}

	// The templates.
	root := filepath.Join(data, "runtimes", os.Getenv("ROOT"))
	mustNot("wrote to a root", os.WriteFile(filepath.Join(root, "planted"), []byte("x"), 0o644))
	mustNot("replaced a root", os.Rename(root, root+"-old"))
	image := func(name, dir, kind string) error {
		return ask(wire.Request{Op: wire.OpImage, Image: &wire.Image{Name: name, Dir: dir, Kind: kind}})
	}
	must("took an image", image("empty", os.Getenv("ROOT"), "provided"))
	os.Rename(filepath.Join(data, "runtimes"), filepath.Join(data, "moved")) // the folder is its own to move
	os.MkdirAll(filepath.Join(data, "runtimes", "evil", "etc"), 0o755)
	os.Symlink("/", filepath.Join(data, "runtimes", "host"))
	mustNot("a root from a planted folder of roots", image("evil", "evil", "provided"))
	mustNot("the host as a root", image("host", "host", "provided"))
	mustNot("code as a root", image("code", "../code/good", "provided"))
	mustNot("a host's file as a root", image("shadow", "/etc/shadow", "provided"))
	mustNot("another filter for an image", image("empty", os.Getenv("ROOT"), "python"))
	mustNot("no filter", image("free", os.Getenv("ROOT"), ""))

	// Descriptors.
	socket, pipe := ends()
	etc, _ := unix.Open("/etc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	st := wire.Request{Op: wire.OpStart, ID: "fds", Start: &wire.Start{Image: "empty"}}
	mustNot("a start without descriptors", ask(st))
	mustNot("a start with one", ask(st, socket))
	mustNot("a start with a folder of the host", ask(st, socket, etc))
	mustNot("a start with three", ask(st, socket, pipe, etc))
	mustNot("a probe with a descriptor", ask(wire.Request{Op: wire.OpProbe}, etc))

	// Code.
	os.Symlink("/etc", filepath.Join(data, "code/link"))
	os.WriteFile(filepath.Join(data, "code/good/suid"), []byte("#!/bin/sh\n"), 0o4755)
	os.Chmod(filepath.Join(data, "code/good/suid"), 0o4755)
	must("started", start("one"))
	mustNot("a start of what was started: a replay", start("one"))
	for _, dir := range []string{"/etc", "../../etc", "link", "link/ssl", ".", "..", "good/../link", "../runtimes", "none", strings.Repeat("x/", 600) + "x"} {
		mustNot("attached "+dir, attach("one", dir))
	}
	must("attached", attach("one", "good"))
	mustNot("attached twice", attach("one", "good"))
	// The folder changes into a link to /etc and back while it is attached.
	os.Rename(filepath.Join(data, "code/good"), filepath.Join(data, "code/real"))
	stop := make(chan struct{})
	go func() {
		swapped, code := filepath.Join(data, "code/swapped"), filepath.Join(data, "code")
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Rename(filepath.Join(code, "real"), swapped)
			os.Rename(swapped, filepath.Join(code, "real"))
			os.Symlink("/etc", swapped)
			os.Remove(swapped)
		}
	}()
	for i := range 40 {
		id := fmt.Sprint("swap-", i)
		must("started", start(id))
		for range 20 {
			if attach(id, "swapped") == nil {
				break
			}
		}
	}
	close(stop)

	// What is not its own.
	for _, id := range []string{"another", "init", "1", "selftest"} {
		for _, op := range []wire.Op{wire.OpFreeze, wire.OpThaw, wire.OpKill, wire.OpInspect} {
			mustNot(string(op)+" of "+id, ask(wire.Request{Op: op, ID: id}))
		}
	}
	var spawner, keeper int
	fmt.Sscan(os.Getenv("SPAWNER"), &spawner)
	fmt.Sscan(os.Getenv("KEEPER"), &keeper)
	for _, pid := range []int{spawner, keeper} {
		mustNot("killed the helper", unix.Kill(pid, unix.SIGKILL))
		mustNot("traced the helper", unix.PtraceSeize(pid))
		_, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
		mustNot("opened the helper's memory", err)
		_, err = os.Open(fmt.Sprintf("/proc/%d/fd/4", pid))
		mustNot("took a folder of the helper's", err)
	}
	for group := range groupsOfAttacked() {
		mustNot("wrote to a control group", os.WriteFile(group, []byte("1"), 0))
	}
	// The helper's own program, run by hand.
	if f, err := openHelper(); err == nil {
		for _, role := range []string{"spawner", "keeper"} {
			cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), role, "x")
			cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(socket), "s"), os.NewFile(uintptr(etc), "e"), os.NewFile(uintptr(etc), "e")}
			done := make(chan error, 1)
			go func() { done <- cmd.Run() }()
			select {
			case err := <-done:
				mustNot("ran the helper as a "+role, err)
			case <-time.After(5 * time.Second):
				broken("the helper runs as a %s", role)
				cmd.Process.Kill()
			}
		}
	}
	fmt.Println("ATTACKED")
	io.Copy(io.Discard, os.Stdin)
	// At last a user of its choice: there is no such field, and who sends what
	// there is not is not listened to any more.
	conn.Send(json.RawMessage(`{"seq":9999,"op":"start","id":"root","uid":0,"start":{"image":"empty"}}`))
	for {
		var a wire.Reply
		fds, err := conn.Receive(&a)
		wire.CloseAll(fds)
		if err != nil {
			break
		}
		if a.Seq == 9999 {
			broken("a request with a user was answered: %s", a.Error)
		}
	}
	os.Exit(0)
}

// groupsOfAttacked yields control files of the sandboxes.
func groupsOfAttacked() map[string]bool {
	files := map[string]bool{}
	for _, dir := range groupsOf("attacked") {
		for _, name := range []string{"cgroup.procs", "memory.limit_in_bytes", "memory.max", "pids.max"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				files[filepath.Join(dir, name)] = true
			}
		}
	}
	return files
}
