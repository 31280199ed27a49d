package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUsersAreNotUsedTwice(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	u := &users{dir: int(dir.Fd())}
	seen := map[uint32]bool{}
	for range uidBlock {
		uid, err := u.take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[uid] || seen[uid+1] || uid < firstUID || uid > endUID {
			t.Fatalf("user %d again, or out of range", uid)
		}
		seen[uid] = true
	}
	again := &users{dir: u.dir} // a restart
	uid, err := again.take()
	if err != nil || seen[uid] {
		t.Errorf("after a restart user %d again (%v)", uid, err)
	}
	name := filepath.Join(dir.Name(), nextUID)
	if err := os.WriteFile(name, []byte("12"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&users{dir: u.dir}).take(); err == nil {
		t.Error("a damaged counter was believed")
	}
	// A link is not followed, neither to read nor to write.
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(away, name); err != nil {
		t.Fatal(err)
	}
	if _, err := (&users{dir: u.dir}).take(); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Lstat(away); err == nil {
		t.Error("the file behind the link was made")
	}
}
