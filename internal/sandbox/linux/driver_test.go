package linux

import (
	"os"
	"testing"

	"bawn.dev/bawn/internal/sandbox/sandboxtest"
)

// newDriver returns a driver in a folder of its own, closed at the test's end.
func newDriver(t testing.TB) *Driver {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	d, err := New(Config{Dir: t.TempDir(), Node: "test"})
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
