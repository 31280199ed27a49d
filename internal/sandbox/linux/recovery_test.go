package linux

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bawn.dev/bawn/internal/sandbox"
)

// eventually waits for something that the kernel does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 400 {
		if ok() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Errorf("after 10 s still not: %s", what)
}

// groupsOf lists what cgroups of a node there are.
func groupsOf(node string) []string {
	var found []string
	filepath.WalkDir("/sys/fs/cgroup", func(name string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(name, "bawn-"+node) {
			found = append(found, name)
		}
		return nil
	})
	return found
}

// processesOf lists the processes in the cgroups of a node.
func processesOf(node string) map[int]bool {
	found := map[int]bool{}
	for _, dir := range groupsOf(node) {
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, f := range strings.Fields(string(procs)) {
			if pid, err := strconv.Atoi(f); err == nil {
				found[pid] = true
			}
		}
	}
	return found
}

// alive returns those of the processes that still are.
func alive(pids map[int]bool) (left []int) {
	for pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			left = append(left, pid)
		}
	}
	return left
}

// startEmpty starts a parked sandbox.
func startEmpty(t testing.TB, d *Driver, id string) sandbox.Sandbox {
	t.Helper()
	if err := d.Prepare(context.Background(), sandbox.Image{Name: "empty", Syscall: sandbox.SyscallProvided}); err != nil {
		t.Fatal(err)
	}
	box, err := d.Start(context.Background(), sandbox.Spec{ID: id, Image: "empty"})
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func TestCloseLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	d, err := New(Config{Dir: t.TempDir(), Node: "leave-nothing"})
	if err != nil {
		t.Fatal(err)
	}
	var boxes []sandbox.Sandbox
	for i := range 5 {
		boxes = append(boxes, startEmpty(t, d, fmt.Sprint("n-", i)))
	}
	if err := boxes[0].Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	helper := d.spawner.pid
	processes := processesOf("leave-nothing")
	if len(processes) < 5 {
		t.Fatalf("only %d processes are in cgroups", len(processes))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, b := range boxes {
		select {
		case <-b.Done():
		default:
			t.Errorf("%s is not done after Close", b.ID())
		}
	}
	if left := groupsOf("leave-nothing"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	if left := alive(processes); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if err := syscall.Kill(helper, 0); err == nil {
		t.Error("the helper still runs")
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), d.cfg.Dir) {
		t.Error("mounts are left in the host's table")
	}
	if _, err := d.Start(t.Context(), sandbox.Spec{ID: "late", Image: "empty"}); err == nil {
		t.Error("a closed driver started a sandbox")
	}
}

func TestHelperKilled(t *testing.T) {
	d := newDriver(t)
	running, frozen := startEmpty(t, d, "r"), startEmpty(t, d, "f")
	if err := frozen.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	processes := processesOf("test")
	if len(processes) < 2 {
		t.Fatalf("only %d processes are in cgroups", len(processes))
	}
	syscall.Kill(d.spawner.pid, syscall.SIGKILL)
	for _, b := range []sandbox.Sandbox{running, frozen} {
		select {
		case <-b.Done():
			if b.Exit().Err == nil {
				t.Errorf("%s ended without a reason", b.ID())
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not told of the helper's end", b.ID())
		}
	}
	// The images need no new Prepare.
	again, err := d.Start(t.Context(), sandbox.Spec{ID: "again", Image: "empty"})
	if err != nil {
		t.Fatalf("Start after the helper was killed: %v", err)
	}
	eventually(t, "the old sandboxes are gone, the frozen one too", func() bool { return len(alive(processes)) == 0 })
	again.Kill()
	<-again.Done()
}

// TestServerKilled runs a server that makes sandboxes in a process of its own
// and kills that: helper, sandboxes and cgroups must go with it.
func TestServerKilled(t *testing.T) {
	const asServer = "BAWN_TEST_SERVER"
	if dir := os.Getenv(asServer); dir != "" {
		d, err := New(Config{Dir: dir, Node: "killed"})
		if err != nil {
			t.Fatal(err)
		}
		startEmpty(t, d, "a")
		startEmpty(t, d, "b").Freeze(t.Context())
		fmt.Println("helper", d.spawner.pid)
		select {} // until it is killed
	}
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerKilled$")
	cmd.Env = append(os.Environ(), asServer+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var helper int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n, _ := fmt.Sscanf(lines.Text(), "helper %d", &helper); n == 1 {
			break
		}
	}
	if helper == 0 {
		t.Fatal("the server did not start")
	}
	processes := processesOf("killed")
	if len(processes) < 2 {
		t.Fatalf("only %d processes are in cgroups", len(processes))
	}
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "the helper has ended", func() bool { return syscall.Kill(helper, 0) != nil })
	eventually(t, "the sandboxes have ended", func() bool { return len(alive(processes)) == 0 })
	if left := groupsOf("killed"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}
