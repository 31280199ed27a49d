package linux

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// TestBoundsAreThoseOfTheWire holds that what a caller may ask for the helper
// lets itself be asked for.
func TestBoundsAreThoseOfTheWire(t *testing.T) {
	for name, pair := range map[string][2]any{
		"ports":          {sandbox.MaxPorts, wire.MaxPorts},
		"ranges":         {sandbox.MaxLocal, wire.MaxLocal},
		"files":          {sandbox.MaxFiles, wire.MaxAttached},
		"bytes of one":   {sandbox.MaxFileBytes, wire.MaxFileSize},
		"bytes of all":   {sandbox.MaxFilesSize, wire.MaxFilesSize},
		"secrets folder": {sandbox.SecretsDir, wire.RunDir + "/" + wire.SecretsDir},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v and %v", name, pair[0], pair[1])
		}
	}
	for _, name := range []string{sandbox.HostsFile, sandbox.ResolverFile, sandbox.CAFile, sandbox.SecretsDir + "/Key_1.pem"} {
		r := wire.Request{Op: wire.OpAttach, ID: "x", Attach: &wire.Attach{Code: []string{"a"}, Memory: 1 << 20, CPU: 1, PIDs: 1, Files: []wire.File{{Path: name}}}}
		if err := r.Check(1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// holding returns the files of a spawner's that hold a text.
func holding(t *testing.T, pid int, text string) (list []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/cwd/f", pid)
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if b, _ := os.ReadFile(name); bytes.Contains(b, []byte(text)) {
				list = append(list, name)
			}
		}
		return nil
	})
	return list
}

// TestE1AttachedFilesLeaveNothing holds that what a sandbox had in memory is gone
// with it, and with the helper.
func TestE1AttachedFilesLeaveNothing(t *testing.T) {
	d := newDriver(t)
	const marker = "marker-of-a-secret-7f3a"
	code := t.TempDir()
	at := sandbox.Attachment{
		Code: []string{code}, Memory: 64 << 20, CPU: 1, PIDs: 8, Tmp: 64 << 20,
		Files: []sandbox.AttachedFile{{Path: sandbox.SecretsDir + "/key", Data: []byte(marker)}, {Path: sandbox.CAFile, Data: []byte(marker)}},
	}
	first, second := startEmpty(t, d, "first"), startEmpty(t, d, "second")
	for _, box := range []sandbox.Sandbox{first, second} {
		if err := box.Attach(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	helper := d.spawner.pid
	if got := holding(t, helper, marker); len(got) != 4 {
		t.Fatalf("files %q hold the marker, want two of each sandbox", got)
	}
	first.Kill()
	<-first.Done()
	if got := holding(t, helper, marker); len(got) != 2 {
		t.Errorf("files %q hold the marker, want those of the other sandbox", got)
	}
	syscall.Kill(helper, syscall.SIGKILL)
	<-second.Done()
	again := startEmpty(t, d, "again")
	if got := holding(t, d.spawner.pid, marker); len(got) != 0 {
		t.Errorf("after the helper's end files %q hold the marker", got)
	}
	again.Kill()
	<-again.Done()
}
