package node

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bawn.dev/bawn/internal/host"
)

// TestJ3RepairLeavesRoot has the server's user plant, in its data directory, links
// to a file of root's where the repair commands write, and text for them to write.
// Root runs the commands then: they go on as that user, and the file is as it was.
func TestJ3RepairLeavesRoot(t *testing.T) {
	const asRoot = "BAWN_TEST_REPAIR"
	if data := os.Getenv(asRoot); data != "" {
		cfg := StateConfig{Data: data}
		err := EnterState(&cfg)
		if err == nil {
			_, err = CheckState(t.Context(), cfg)
		}
		if err == nil {
			_, err = AcceptState(t.Context(), cfg, true)
		}
		p, look := host.Look()
		fmt.Println("USERS", p.UIDs, "HOLDS", p.Holds(host.User{UID: host.DefaultUID, GID: host.DefaultUID}), look, "ERROR", err)
		os.Exit(0)
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be led to what others cannot reach")
	}
	cfg := config(t)
	n := mustOpen(t, cfg)
	size := n.record.Next()
	n.Close(t.Context())
	size = max(size, plantSize(t, cfg.Data))

	victim := filepath.Join(t.TempDir(), "authorized_keys")
	const text = "ssh-ed25519 THE-OPERATOR\n"
	if err := os.WriteFile(victim, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	entry := []byte("\nssh-ed25519 EVIL\n")
	segment := fmt.Appendf(nil, "bawn-spool-1 %d boot\n", size)
	segment = binary.BigEndian.AppendUint32(segment, uint32(len(entry)))
	segment = binary.BigEndian.AppendUint32(segment, crc32.Checksum(entry, crc32.MakeTable(crc32.Castagnoli)))
	segment = append(segment, entry...)
	audit := filepath.Join(cfg.Data, "audit")
	if err := os.WriteFile(filepath.Join(audit, "spool", fmt.Sprintf("%020d.seg", 1)), segment, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"checkpoint.tmp", "keys.pub.tmp"} {
		if err := os.Symlink(victim, filepath.Join(audit, path)); err != nil {
			t.Fatal(err)
		}
	}
	for w := size + 1; w < 256; w++ {
		if err := os.Symlink(victim, filepath.Join(audit, "tile/entries/000.p", fmt.Sprint(w))); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(cfg.Data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, host.DefaultUID, host.DefaultUID)
	}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestJ3RepairLeavesRoot$", "-test.timeout=30s")
	cmd.Env = append(os.Environ(), asRoot+"="+cfg.Data)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != text {
		t.Errorf("the file of root's is now %q, %v", b, err)
	}
	if !strings.Contains(string(out), "HOLDS <nil> <nil> ERROR <nil>") {
		t.Errorf("the repair: %s", out)
	}
	if err := filepath.WalkDir(cfg.Data, func(path string, e fs.DirEntry, err error) error {
		if err == nil && owner(t, path) != host.DefaultUID {
			err = fmt.Errorf("%s belongs to user %d", path, owner(t, path))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// plantSize returns the entries of the checkpoint in a data directory.
func plantSize(t *testing.T, data string) (n int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "audit/checkpoint"))
	if err == nil {
		_, err = fmt.Sscan(strings.Split(string(b), "\n")[1], &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func owner(t *testing.T, path string) int {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}
