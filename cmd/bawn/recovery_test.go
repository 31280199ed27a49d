package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// A server is this program, run as `bawn up` in a process of its own, so that a
// test may kill it.
type server struct {
	*client.Client
	t           *testing.T
	data        string
	args        []string // beside those that every server has
	contextFile string
	cmd         *exec.Cmd
	log         bytes.Buffer
	node        string
}

// newServer starts a server on data, and skips the test where it cannot be root.
func newServer(t *testing.T, data string, args ...string) *server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: making sandboxes needs root")
	}
	s := &server{t: t, data: data, args: args, contextFile: filepath.Join(t.TempDir(), "context.json")}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.cmd.Process.Signal(syscall.SIGTERM)
			s.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.log.Bytes())
		}
	})
	s.start()
	return s
}

// start runs bawn up and waits until calls can be served.
func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command("bawn", append([]string{"up", "--solo", "--data", s.data, "--public", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, s.args...)...)
	s.cmd.Env, s.cmd.Stderr = append(os.Environ(), client.ContextEnv+"="+s.contextFile), &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	status := exec.Command("bawn", "status", "--wait", "60s")
	status.Env = s.cmd.Env
	if out, err := status.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	var err error
	if s.Client, err = client.New(s.context()); err != nil {
		s.t.Fatal(err)
	}
	st, err := s.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.node = st.Node
}

// context says where the server is now.
func (s *server) context() *client.Context {
	s.t.Helper()
	c, err := client.LoadContext(s.contextFile)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// stop ends the server as an operator does.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("stopping the server: %v", err)
	}
	s.Client.Close()
	s.cmd = nil
}

// kill sends SIGKILL to processes, all at one moment, and waits for the
// server's end if it is among them.
func (s *server) kill(pids ...int) {
	s.t.Helper()
	// Stopped first, none can do anything about the end of another.
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				s.t.Fatalf("kill %d: %v", pid, err)
			}
		}
	}
	if slices.Contains(pids, s.cmd.Process.Pid) {
		s.cmd.Wait()
		s.Client.Close()
		s.cmd = nil
	}
}

// deploy deploys f, which answers how many calls its instance has had, on hosts or on
// the node's own names, and skips the test where the host cannot run it.
func (s *server) deploy(hosts ...string) {
	s.t.Helper()
	d, err := s.Doctor(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	bawntest.NeedSandbox(s.t, d)
	var python bawn.Runtime
	for _, r := range d.Runtimes {
		if r.Runtime.Family() == "python" && r.Missing == "" {
			python = r.Runtime
		}
	}
	if python == "" {
		s.t.Skip("SKIP: this host has no Python")
	}
	data := bawntest.Zip(s.t, map[string]string{"app.py": `import time
calls = 0
def handler(event, context):
    global calls
    calls += 1
    time.sleep(event.get("sleep", 0))
    return calls
`})
	if _, err := s.PutArtifact(s.t.Context(), bawntest.Digest(data), int64(len(data)), bytes.NewReader(data)); err != nil {
		s.t.Fatal(err)
	}
	route := map[string]any{"method": "GET", "path": "/f", "access": map[string]any{
		"public": map[string]any{"reason": "a test", "until": "2099-12-31"},
	}, "input": "none"}
	if len(hosts) > 0 {
		route["hosts"] = hosts
	}
	spec := map[string]any{
		"runtime": python, "handler": "app.handler", "owner": "tests",
		"ingress":  map[string]any{"http": []any{route}},
		"interior": map[string]any{"timeout": "60s", "reuse": map[string]any{"invocations": 1000}},
	}
	if _, err := s.Deploy(s.t.Context(), "f", spec, bawntest.Digest(data), false); err != nil {
		s.t.Fatal(err)
	}
}

// call invokes f and returns its answer, or what went wrong.
func (s *server) call(event string) (string, error) {
	inv, err := s.Invoke(context.Background(), "f", "", []byte(event))
	if err != nil {
		return "", err
	}
	defer inv.Body.Close()
	body, err := io.ReadAll(inv.Body)
	if err == nil && inv.FunctionError != "" {
		return "", fmt.Errorf("%s: %s", inv.FunctionError, body)
	}
	return string(body), err
}

func (s *server) mustCall(event, want string) {
	s.t.Helper()
	if got, err := s.call(event); err != nil || got != want {
		s.t.Fatalf("answered %q, %v, want %s\n%s", got, err, want, s.log.Bytes())
	}
}

// groups are the folders of the node's sandboxes in every cgroup hierarchy.
func (s *server) groups() map[string]fs.FileInfo {
	found := map[string]fs.FileInfo{}
	var st syscall.Stat_t
	if err := syscall.Stat(s.data, &st); err != nil {
		s.t.Fatal(err)
	}
	name := fmt.Sprintf("bawn-%x-%x", st.Dev, st.Ino)
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(filepath.Dir(p), name) {
			if i, err := d.Info(); err == nil {
				found[p] = i
			}
		}
		return nil
	})
	return found
}

// inside returns the processes in groups by their number, each with the name of
// its program.
func inside(groups map[string]fs.FileInfo) map[int]string {
	found := map[int]string{}
	for g := range groups {
		b, _ := os.ReadFile(filepath.Join(g, "cgroup.procs")) // may have gone
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			if comm, err := os.ReadFile(filepath.Join("/proc", f, "comm")); err == nil {
				found[pid] = strings.TrimSpace(string(comm))
			}
		}
	}
	return found
}

// helper returns the sandbox helper's process.
func (s *server) helper() int {
	s.t.Helper()
	pid := child(child(s.cmd.Process.Pid, "bawn-sandbox\x00keeper"), "bawn-sandbox\x00spawner")
	if pid == 0 {
		s.t.Fatal("the server has no sandbox helper")
	}
	return pid
}

// child returns the child of a process whose command line begins with a text,
// or 0.
func child(parent int, text string) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent)) // the pattern is well formed
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(b)) {
			cmdline, _ := os.ReadFile("/proc/" + f + "/cmdline")
			if pid, err := strconv.Atoi(f); err == nil && strings.HasPrefix(string(cmdline), text) {
				return pid
			}
		}
	}
	return 0
}

// frozen waits until an idle instance is frozen.
func (s *server) frozen() {
	s.t.Helper()
	until(s.t, "an instance is frozen", func() string {
		for g := range s.groups() {
			state, _ := os.ReadFile(filepath.Join(g, "freezer.state"))
			events, _ := os.ReadFile(filepath.Join(g, "cgroup.events"))
			if strings.TrimSpace(string(state)) == "FROZEN" || strings.Contains(string(events), "frozen 1") {
				return ""
			}
		}
		return "none is"
	})
}

// gone waits until nothing is left of processes and groups, and the host's table
// has no mount from the data directory.
func (s *server) gone(pids map[int]string, groups map[string]fs.FileInfo) {
	s.t.Helper()
	until(s.t, "nothing is left", func() string {
		for pid, name := range pids {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) == name {
				if st, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(st), ") Z ") {
					return fmt.Sprintf("process %d, %s", pid, name)
				}
			}
		}
		for g, was := range groups {
			if is, err := os.Stat(g); err == nil && os.SameFile(is, was) { // the name may be another's now
				return "cgroup " + g
			}
		}
		own, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(own), s.data+"/") {
			return "a mount in the host's table"
		}
		return ""
	})
}

// quiet waits until no process has a mount from the data directory.
func (s *server) quiet() {
	s.t.Helper()
	until(s.t, "no mounts are left", func() string {
		tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
		for _, name := range tables {
			if b, _ := os.ReadFile(name); strings.Contains(string(b), s.data+"/") {
				return name
			}
		}
		return ""
	})
}

// until waits for what the kernel and the node do in their own time; left says
// what is not there yet.
func until(t *testing.T, what string, left func() string) {
	t.Helper()
	var last string
	for range 600 {
		if last = left(); last == "" {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("after 15 s still not: %s: %s", what, last)
}

// slow begins a call that does not end by itself, and returns once it runs.
// It also returns the instance, as the kernel has it.
func (s *server) slow() (in bawn.Instance, call <-chan error) {
	s.t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := s.call(`{"sleep": 50}`)
		ended <- err
	}()
	until(s.t, "the call runs", func() string {
		d, err := s.Perimeter(s.t.Context(), "f", "")
		if err != nil {
			return err.Error()
		}
		for _, i := range d.Instances {
			if i.State == "busy" {
				in = i
				return ""
			}
		}
		return fmt.Sprint(d.Instances)
	})
	return in, ended
}

// program returns the process of an instance's program. No other instance has
// its host user.
func (s *server) program(in bawn.Instance) int {
	s.t.Helper()
	for _, f := range in.Facts {
		if f.Name != "host user" {
			continue
		}
		for pid, name := range inside(s.groups()) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if strings.HasPrefix(name, "python") && strings.Contains(string(status), "\nUid:\t"+strings.Fields(f.Value)[0]+"\t") {
				return pid
			}
		}
	}
	s.t.Fatalf("no program of %+v in %v", in, inside(s.groups()))
	return 0
}

// ends waits for the error of a slow call.
func ends(t *testing.T, call <-chan error) error {
	t.Helper()
	select {
	case err := <-call:
		if err == nil {
			t.Fatal("the call was answered")
		}
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the caller hears nothing")
	}
	return nil
}

// Whatever is killed, with live instances, frozen ones too: what was
// acknowledged is there, calls work again, and nothing of before is left.
func TestKilledServer(t *testing.T) {
	for _, c := range []struct {
		name string
		both bool
	}{{"server", false}, {"server and helper", true}} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, filepath.Join(t.TempDir(), "data"))
			s.deploy()
			pair := make(chan error, 2)
			for range cap(pair) { // two instances
				go func() { _, err := s.call(`{"sleep": 0.3}`); pair <- err }()
			}
			for range cap(pair) {
				if err := <-pair; err != nil {
					t.Fatal(err)
				}
			}
			_, call := s.slow() // in one of them
			s.frozen()          // the other
			key, err := s.CreateKey(t.Context(), client.NewKey{Name: "last", Role: bawn.RoleViewer})
			if err != nil {
				t.Fatal(err)
			}
			groups := s.groups()
			before := inside(groups)
			helper := s.helper()
			before[helper] = "bawn-sandbox"
			if len(before) < 3 || len(groups) == 0 {
				t.Fatalf("sandboxes were expected: %v %v", before, groups)
			}
			if pids := []int{s.cmd.Process.Pid}; c.both {
				s.kill(append(pids, helper)...)
			} else {
				s.kill(pids...)
				s.gone(before, groups) // the helper sees to it alone
				s.quiet()
			}
			ends(t, call)

			s.start()
			s.gone(before, groups)
			if keys, err := s.Keys(t.Context()); err != nil || !slices.ContainsFunc(keys, func(k bawn.Key) bool { return k.ID == key.Key.ID }) {
				t.Errorf("an acknowledged key is lost: %v %v", keys, err)
			}
			s.mustCall(`{}`, "1")

			groups = s.groups()
			s.cmd.Process.Signal(syscall.SIGTERM)
			s.cmd.Wait()
			s.cmd = nil
			s.gone(nil, groups)
			s.quiet()
		})
	}
}

func TestKilledHelper(t *testing.T) {
	s := newServer(t, filepath.Join(t.TempDir(), "data"))
	s.deploy()
	s.mustCall(`{}`, "1")
	s.frozen()
	_, call := s.slow()
	groups := s.groups()
	before := inside(groups)
	before[s.helper()] = "bawn-sandbox"
	s.kill(s.helper())
	if err := ends(t, call); !strings.Contains(err.Error(), "killed") {
		t.Errorf("the caller hears %v", err)
	}
	s.mustCall(`{}`, "1") // in an instance of its own
	s.gone(before, groups)
}

func TestKilledInstance(t *testing.T) {
	s := newServer(t, filepath.Join(t.TempDir(), "data"))
	s.deploy()
	s.mustCall(`{}`, "1")
	in, call := s.slow()
	pid := s.program(in)
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	groups := s.groups()
	maps.DeleteFunc(groups, func(g string, _ fs.FileInfo) bool { return !strings.Contains(string(own), "/"+filepath.Base(g)+"\n") })
	if len(groups) == 0 {
		t.Fatalf("no cgroup of process %d in %s", pid, own)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, call); !strings.Contains(err.Error(), "Runtime exited with error: signal: killed") {
		t.Errorf("the caller hears %v", err)
	}
	s.mustCall(`{}`, "1")
	s.gone(nil, groups)
}
