package linux

import (
	"os"
	"path/filepath"
	"testing"

	"bawn.dev/bawn/internal/sandbox"
)

func TestMakeRoot(t *testing.T) {
	host := t.TempDir()
	for name, text := range map[string]string{"lib/a.py": "a", "lib/sub/b.py": "b", "lib/test/t.py": "t", "bin": "elf"} {
		if err := os.MkdirAll(filepath.Join(host, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("a.py", filepath.Join(host, "lib/link.py"))
	os.Symlink("/nowhere", filepath.Join(host, "lib/dangling.py"))
	img := sandbox.Image{Name: "x", Files: []sandbox.File{
		{Path: "/usr/bin/x", Host: filepath.Join(host, "bin")},
		{Path: "/usr/lib/x", Host: filepath.Join(host, "lib"), Skip: []string{"test"}},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n")},
		{Path: "/bin", Link: "usr/bin"},
	}}
	dir := t.TempDir()
	name, err := MakeRoot(dir, img)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, name)
	for name, want := range map[string]string{
		"usr/bin/x": "elf", "usr/lib/x/a.py": "a", "usr/lib/x/sub/b.py": "b", "usr/lib/x/link.py": "a", "bin/x": "elf", "etc/hosts": "127.0.0.1 localhost\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"usr/lib/x/test", "usr/lib/x/dangling.py"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if again, err := MakeRoot(dir, img); err != nil || again != name {
		t.Errorf("the same image again: %s, %v", again, err)
	}
	if err := os.WriteFile(filepath.Join(host, "bin"), []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := MakeRoot(dir, img); err != nil || changed == name {
		t.Errorf("the host's file changed and the root did not: %v", err)
	}
	for _, bad := range []sandbox.File{
		{Path: "relative", Data: []byte("x")}, {Path: "/a/../../x", Data: []byte("x")}, {Path: "/x", Host: filepath.Join(host, "missing")},
	} {
		if _, err := MakeRoot(dir, sandbox.Image{Name: "bad", Files: []sandbox.File{bad}}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".staging-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
