package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
)

// TestFullDisk gives a server a small disk and fills it to the last byte:
// changes and calls are refused with the reason, since neither can be recorded,
// nothing is half done, and all goes on once there is room.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: mounting a small disk needs root")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=400m,mode=700"); err != nil {
		t.Skipf("SKIP: a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting the small disk: %v", err)
			syscall.Unmount(disk, syscall.MNT_DETACH)
		}
	})
	s := newServer(t, filepath.Join(disk, "data"))
	s.deploy()
	s.mustCall(`{}`, "1")
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)

	full := func(what string, err error) {
		t.Helper()
		var e *bawn.Error
		if !errors.As(err, &e) || e.Code != bawn.CodeUnavailable || !strings.Contains(e.Message, "full") || !strings.Contains(e.Fix, "free some space") {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	more := bawntest.Zip(t, map[string]string{"app.py": "def handler(event, context): return 'new'\n"})
	put := func() error {
		_, err := s.PutArtifact(t.Context(), bawntest.Digest(more), int64(len(more)), bytes.NewReader(more))
		return err
	}
	d, err := s.Function(t.Context(), "f", "")
	if err != nil {
		t.Fatal(err)
	}
	spec := map[string]any{"runtime": d.Version.Runtime, "handler": "app.handler", "owner": "tests", "description": "another"}
	deploy := func(digest string) error {
		_, err := s.Deploy(t.Context(), "f", spec, digest, false)
		return err
	}
	full("an upload", put())
	full("a deployment", deploy(d.Version.Artifact.Digest))
	until(t, "calls are refused", func() string { // what is left of a file's last page holds a record or two
		if _, err = s.call(`{}`); err == nil {
			return "a call was answered"
		}
		return ""
	})
	for range 3 {
		_, err := s.call(`{}`)
		full("a call", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.data, "code", ".staging", "*")); len(left) > 0 {
		t.Errorf("a refused package is left: %v", left)
	}
	if has, err := s.HasArtifact(t.Context(), bawntest.Digest(more)); has || err != nil {
		t.Errorf("half a package is there: %v %v", has, err)
	}
	res, err := bawntest.HTTPClient(s.context()).Get(s.Public() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusServiceUnavailable || strings.Contains(string(b), "disk") {
		t.Errorf("a stranger hears %d %s", res.StatusCode, b)
	}
	versions, err := s.Versions(t.Context(), "f")
	if err != nil || len(versions) != 1 {
		t.Errorf("half a version is there: %v %v", versions, err)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	until(t, "calls are served again", func() string { // the node looks now and then
		if _, err := s.call(`{}`); err != nil {
			return err.Error()
		}
		return ""
	})
	if err := put(); err != nil {
		t.Errorf("an upload once there is room: %v", err)
	}
	if err := deploy(bawntest.Digest(more)); err != nil {
		t.Errorf("a deployment once there is room: %v", err)
	}
	s.mustCall(`{}`, `"new"`)

	// A kill on the full disk loses nothing either.
	fill(t, ballast)
	until(t, "calls are refused", func() string { // records of calls are written in groups, a moment later
		if _, err = s.call(`{}`); err == nil {
			return "a call was answered"
		}
		return ""
	})
	full("a call", err)
	s.kill(s.cmd.Process.Pid)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.mustCall(`{}`, `"new"`)
}

// fill takes all the room that is left on the disk that path is on.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := int64(1 << 30); size >= 4096; size /= 2 {
		for {
			i, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if syscall.Fallocate(int(f.Fd()), 0, i.Size(), size) != nil {
				break
			}
		}
	}
}
