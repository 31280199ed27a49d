package main

import (
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

func TestReportsOfOneKindHideNoOther(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	told := map[string]int{}
	try := func(call string) (dropped int) {
		if l.may(call, now) {
			told[call]++
			return l.told(call, now)
		}
		l.leaveOut(call, "B2")
		return 0
	}
	for range 500 {
		try("openat")
	}
	for _, call := range []string{"mount", "bpf", "ptrace"} {
		for range 20 {
			try(call)
		}
	}
	for call, n := range told {
		if n < 1 || n > kindBurst+1 {
			t.Errorf("%d reports of %s", n, call)
		}
	}
	if len(told) != 4 {
		t.Errorf("told of %v only", told)
	}
	now = now.Add(2 * time.Second)
	if dropped := try("openat"); dropped != 500-(told["openat"]-1) {
		t.Errorf("later %d are counted, with %d told", dropped, told["openat"])
	}
}

func TestPaceSlowsTheGreedyDown(t *testing.T) {
	var l bucket
	now := time.Unix(1000, 0)
	for i := range 10 {
		if wait := l.take(now, 10, 100); wait != 0 {
			t.Fatalf("call %d of the burst waits %v", i, wait)
		}
	}
	if wait := l.take(now, 10, 100); wait != 10*time.Millisecond {
		t.Errorf("the next waits %v", wait)
	}
	if wait := l.take(now.Add(time.Minute), 10, 100); wait != 0 {
		t.Errorf("a minute later it waits %v", wait)
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
		if (wire.CheckID(id) == nil) != ok {
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
