package tlog

import (
	"os"
	"path/filepath"
	"testing"
)

// What lies under the name of a file of the log is replaced and never written
// through, and nothing outside of the folder is read.
func TestJ3NothingIsWrittenOrReadThroughALink(t *testing.T) {
	dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	f := files{dir}
	for _, link := range []func(string, string) error{os.Symlink, os.Link} {
		for _, write := range []func(string, []byte) error{f.create, f.replace} {
			if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"a", "a.tmp"} {
				os.Remove(filepath.Join(dir, name))
				if err := link(victim, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := write("a", []byte("theirs")); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
				t.Errorf("the file elsewhere is now %q, %v", b, err)
			}
			if b, err := f.read("a", 100); err != nil || string(b) != "theirs" {
				t.Errorf("the file is %q, %v", b, err)
			}
		}
	}
	os.Symlink(filepath.Dir(victim), filepath.Join(dir, "out"))
	if b, err := f.read("out/victim", 100); err == nil {
		t.Errorf("read %q outside", b)
	}
	if err := f.create("out/new", nil); err == nil {
		t.Error("a file was made outside")
	}
}
