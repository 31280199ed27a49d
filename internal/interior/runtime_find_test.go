package interior

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain makes this very program an interpreter where it is called like one.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); strings.HasPrefix(name, "python3.") {
		meet(name)
		return
	}
	os.Exit(m.Run())
}

// meet answers as an interpreter does once two of them run.
func meet(name string) {
	exe, err := os.Executable()
	if err != nil {
		os.Exit(1)
	}
	pattern := filepath.Join(filepath.Dir(exe), "runs-*")
	os.WriteFile(strings.Replace(pattern, "*", name, 1), nil, 0o600)
	for {
		if runs, _ := filepath.Glob(pattern); len(runs) == 2 {
			break
		}
		time.Sleep(5 * time.Millisecond) // until whoever asks ends this
	}
	fmt.Printf(`{"version": "%s.0", "prefix": "/usr", "stdlib": "/nonexistent"}`, strings.TrimPrefix(name, "python"))
}

// Two interpreters that answer only together are both found.
func TestRuntimesAreAskedTogether(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	names := []string{"python3.12", "python3.13"}
	t.Setenv("PATH", dir)
	t.Setenv("HOME", dir)
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if found := executables(name); len(found) > 0 {
			t.Skipf("SKIP: this host has %s, which would be asked first", found[0])
		}
		if err := os.WriteFile(filepath.Join(dir, name), program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range FindRuntimes(t.Context(), slog.New(slog.DiscardHandler)) {
		for _, name := range names {
			if string(d.Runtime) == name && !strings.Contains(d.Missing, "cannot be used") {
				t.Errorf("%s was not found: %s", name, d.Missing)
			}
		}
	}
}
