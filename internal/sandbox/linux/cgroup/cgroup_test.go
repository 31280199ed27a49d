package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	c := &Tree{V2: true, roots: map[string]string{}}
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
	g := &Group{V2: true, Dirs: map[string]string{"": box}}
	if err := g.Limit(Limits{Memory: 1 << 20, CPU: 0.25, PIDs: 10}); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "25000 100000", "pids.max": "22", "cgroup.freeze": "1",
	} {
		if got, _ := os.ReadFile(filepath.Join(box, name)); string(got) != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	want := Stats{CPU: 1500 * time.Microsecond, Memory: 4096, MaxMemory: 8192, OOMKills: 1, PIDs: 3}
	if got := g.Stats(); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	if !g.Frozen() {
		t.Error("not frozen")
	}
	c = &Tree{V2: true, roots: map[string]string{}}
	fakeGroup(t, base, map[string]string{"cgroup.controllers": "cpu\n"})
	if missing, _ := c.enterV2(base, "node"); strings.Join(missing, " ") != "memory pids" {
		t.Errorf("missing %v", missing)
	}
}

func TestHome(t *testing.T) {
	for group, want := range map[string]string{
		"/": "/", "/system.slice/bawn.service": "/system.slice/bawn.service",
		"/a/bawn-server": "/a", "/bawn-server/bawn-server": "/",
	} {
		if got := home(group); got != want {
			t.Errorf("home of %s is %s, want %s", group, got, want)
		}
	}
}
