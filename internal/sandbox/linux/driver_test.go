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
