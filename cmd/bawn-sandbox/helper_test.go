package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// fakeGroup makes a folder with the files of a cgroup, because no host has
// both versions. It shows what is written where, not what a kernel makes of it.
func fakeGroup(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCgroupV2Layout(t *testing.T) {
	base := t.TempDir()
	fakeGroup(t, base, map[string]string{
		"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.type": "domain\n", "cgroup.procs": "", "cgroup.subtree_control": "",
	})
	root := filepath.Join(base, "bawn-node")
	fakeGroup(t, root, map[string]string{"cgroup.subtree_control": ""})
	fakeGroup(t, filepath.Join(base, "bawn-server"), map[string]string{"cgroup.procs": ""})
	c := &cgroups{v2: true, roots: map[string]string{}}
	missing, err := c.enterV2(base, "node")
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing %v, %v", missing, err)
	}
	for _, dir := range []string{base, root} {
		if got, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); string(got) != "+memory +cpu +pids" {
			t.Errorf("%s hands down %q", dir, got)
		}
	}
	box := filepath.Join(root, "box")
	fakeGroup(t, box, map[string]string{
		"memory.max": "", "memory.swap.max": "", "memory.oom.group": "", "cpu.max": "", "pids.max": "", "cgroup.freeze": "",
		"cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "memory.current": "4096\n", "memory.peak": "8192\n",
		"memory.events": "low 0\noom 2\noom_kill 1\n", "pids.current": "3\n", "cgroup.events": "populated 1\nfrozen 1\n",
	})
	g := &group{c, "box"}
	if err := g.limit(&wire.Attach{Memory: 1 << 20, CPU: 0.25, PIDs: 10}); err != nil {
		t.Fatal(err)
	}
	if err := g.freeze(true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "25000 100000", "pids.max": "22", "cgroup.freeze": "1",
	} {
		if got, _ := os.ReadFile(filepath.Join(box, name)); string(got) != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	want := wire.Stats{CPU: 1_500_000, Memory: 4096, MaxMemory: 8192, OOMKills: 1, PIDs: 3}
	if got := g.stats(); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	if !g.frozen() {
		t.Error("not frozen")
	}
	c = &cgroups{v2: true, roots: map[string]string{}}
	fakeGroup(t, base, map[string]string{"cgroup.controllers": "cpu\n"})
	if missing, _ := c.enterV2(base, "node"); strings.Join(missing, " ") != "memory pids" {
		t.Errorf("missing %v", missing)
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	passed := 0
	for range 500 {
		if ok, _ := l.allow(now); ok {
			passed++
		}
	}
	if passed != reportBurst {
		t.Errorf("%d passed at once, want %d", passed, reportBurst)
	}
	if ok, dropped := l.allow(now.Add(time.Second)); !ok || dropped != 500-reportBurst {
		t.Errorf("a second later: %v with %d dropped", ok, dropped)
	}
}

func TestWritable(t *testing.T) {
	for name, want := range map[string]bool{
		"/tmp": true, "/tmp/x": true, "/dev/null": true, "/proc/self/comm": true,
		"/": false, "/tmpx": false, "/etc/passwd": false, "/var/task/x": false, "/proc/sys/kernel/core_pattern": false,
	} {
		if writable(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "python3.11": true, "i-0123": true, "": false, "..": false, ".x": false, "a/b": false, "A": false, "a\x00": false,
		strings.Repeat("a", 41): false,
	} {
		if (checkID(id) == nil) != ok {
			t.Errorf("%q: want ok=%v", id, ok)
		}
	}
}

func TestMountTable(t *testing.T) {
	root, code, tmp, rw := mounts(`101 70 0:41 / / ro,nosuid,nodev,relatime - overlay bawn ro
102 101 0:52 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
103 101 0:53 / /tmp rw,nosuid,nodev,noexec,relatime - tmpfs tmp rw,size=8192k
105 101 0:39 /s/x /var/task rw,nosuid,noexec - tmpfs bawn rw
75 105 0:48 / /var/task ro,nosuid,nodev,relatime master:2 - overlay bawn ro
`)
	if !hasOption(root, "ro") || !hasOption(code, "ro") || !hasOption(tmp, "noexec") || strings.Join(rw, " ") != "/proc /tmp" {
		t.Errorf("root %q, code %q, tmp %q, writable %v", root, code, tmp, rw)
	}
}

func TestMessagesOfInitAreStrict(t *testing.T) {
	var m wire.FromInit
	if wire.Decode([]byte(`{"ready":true,"root":true}`), &m) == nil {
		t.Error("an unknown field was taken")
	}
}
