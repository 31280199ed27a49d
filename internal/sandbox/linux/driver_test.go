package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/sandboxtest"
)

// newDriver returns a driver in a folder of its own, closed at the test's end.
func newDriver(t testing.TB) *Driver {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	d, err := New(Config{Dir: t.TempDir(), Code: os.TempDir(), Node: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSuite(t *testing.T) { sandboxtest.Run(t, newDriver(t)) }

func TestProbe(t *testing.T) {
	d := newDriver(t)
	found := map[string]bool{}
	for _, c := range d.Probe() {
		t.Logf("%-45s %-4s ok=%-5v %s", c.Name, c.Control, c.OK, c.Detail)
		found[c.Name] = true
		if !c.OK && c.Fix == "" {
			t.Errorf("%s is missing and nothing says how to get it", c.Name)
		}
		if c.Required && !c.OK {
			t.Errorf("%s: %s", c.Name, c.Detail)
		}
	}
	for _, name := range []string{"a sandbox that holds", "Landlock", "seccomp user notification", "cgroup memory"} {
		if !found[name] {
			t.Errorf("nothing says whether there is %s", name)
		}
	}
}

func TestCodeComesFromItsFoldersAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	inside := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(inside, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(inside, "good"), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Dir: t.TempDir(), Code: inside, Node: "roots"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	limits := sandbox.Attachment{Memory: 64 << 20, CPU: 1, PIDs: 16, Tmp: 1 << 20}
	for i, dir := range []string{"/etc", inside, inside + "/../../etc", inside + "/link", inside + "-beside", "/", "relative", inside + "/none"} {
		box := startEmpty(t, d, fmt.Sprintf("bad-%d", i))
		limits.Code = []string{dir}
		if err := box.Attach(t.Context(), limits); err == nil {
			t.Errorf("%s was attached", dir)
		}
		box.Kill()
		<-box.Done()
	}
	box := startEmpty(t, d, "good")
	limits.Code = []string{filepath.Join(inside, "good")}
	if err := box.Attach(t.Context(), limits); err != nil {
		t.Errorf("a folder below the root: %v", err)
	}
}

func TestReviveWithoutACall(t *testing.T) {
	d := newDriver(t)
	frozen := startEmpty(t, d, "f")
	if err := frozen.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	processes := processesOf("test")
	d.mu.Lock()
	helper := d.spawner.pid
	d.mu.Unlock()
	syscall.Kill(helper, syscall.SIGKILL)
	eventually(t, "the frozen sandbox is gone though nobody called", func() bool { return len(alive(processes)) == 0 })
}
