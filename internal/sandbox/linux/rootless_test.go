package linux

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox/sandboxtest"
)

// somebody is a user without any right.
const somebody = 65533

// asSomebody runs test as a user that is not root, in a process of its own and
// with a folder of its own. It skips where the kernel gives users no namespaces.
func asSomebody(t *testing.T, test func(d *Driver)) {
	t.Helper()
	if fix := noNamespaces(); fix != "" {
		t.Skip("SKIP: " + fix)
	}
	const folder = "BAWN_TEST_ROOTLESS"
	if own := os.Getenv(folder); own != "" && os.Getuid() == somebody {
		roots := filepath.Join(own, "runtimes")
		d, err := New(Config{Dir: roots, Code: own, Node: "rootless"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(d)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: to become somebody else needs root")
	}
	dir := t.TempDir()
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		os.Chmod(up, 0o755)
	}
	actor := filepath.Join(dir, "actor")
	sandboxtest.Build(t, actor)
	own := filepath.Join(dir, "own")
	// By its descriptor, because the folders above this program may be root's alone.
	self, err := os.Open("/proc/self/exe")
	if err := errors.Join(err, os.Mkdir(own, 0o700), os.Chown(own, somebody, somebody)); err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Dir = own
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + own, "TMPDIR=" + own, folder + "=" + own, sandboxtest.Actor + "=" + actor}
	cmd.ExtraFiles = []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("as user %d: %v\n%s", somebody, err, out)
	}
	t.Logf("as user %d:\n%s", somebody, out)
}

// TestRootlessSuite holds that a sandbox without root passes the same suite as one
// with root, but for what the probe calls weaker.
func TestRootlessSuite(t *testing.T) {
	asSomebody(t, func(d *Driver) { sandboxtest.Run(t, d) })
}

// TestRootlessProbe holds that what is weaker is told, each with its way out, and
// that nothing which is required is among it.
func TestRootlessProbe(t *testing.T) {
	asSomebody(t, func(d *Driver) {
		weaker := map[string]string{"a user for each sandbox": "B3", "memory limit": "B5", "cpu limit": "B5", "freezing of idle sandboxes": "B5"}
		required := map[string]bool{}
		for _, c := range d.Probe() {
			t.Logf("%-45s %-4s ok=%-5v %s", c.Name, c.Control, c.OK, c.Detail)
			if weaker[c.Name] != "" {
				if c.OK || c.Required || c.Control != weaker[c.Name] || !strings.Contains(c.Detail, "WEAKER") || !strings.Contains(c.Fix, "run bawn as root") {
					t.Errorf("%+v", c)
				}
				delete(weaker, c.Name)
			} else if c.Required && !c.OK {
				t.Errorf("%s: %s", c.Name, c.Detail)
			}
			required[c.Name] = c.Required
		}
		for name := range weaker {
			t.Errorf("nothing tells that there is no full %s", name)
		}
		for _, name := range []string{"user namespaces", "network namespaces", "PID namespaces", "overlay with the new mount calls", "Landlock", "seccomp filters", "seccomp user notification", "a sandbox that holds"} {
			if !required[name] {
				t.Errorf("functions would run without %s", name)
			}
		}
		if Weaker() == "" {
			t.Error("there is no notice")
		}
	})
}

// TestRootlessLeavesNothing holds that sandboxes end with the spawner and the
// helper with the driver, without any control group to go by.
func TestRootlessLeavesNothing(t *testing.T) {
	asSomebody(t, func(d *Driver) {
		startEmpty(t, d, "left")
		d.mu.Lock()
		spawner := d.spawner.pid
		d.mu.Unlock()
		left := below(os.Getpid())
		if len(left) < 3 { // keeper, spawner and an init at least
			t.Fatalf("processes %v", left)
		}
		// A spawner that is killed takes its sandboxes along, and another comes.
		if err := syscall.Kill(spawner, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		inits := map[int]bool{}
		for pid := range left {
			if pid != d.helper.keeper.Process.Pid {
				inits[pid] = true
			}
		}
		eventually(t, "nothing of the spawner is left", func() bool { return len(alive(inits)) == 0 })
		startEmpty(t, d, "again")
		left = below(os.Getpid())
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nothing of the helper is left", func() bool { return len(alive(left)) == 0 })
	})
}

// TestRootlessIsRefusedWithoutNamespaces runs a user where the kernel gives users
// no namespaces: then there is no sandbox, and the setting is named.
func TestRootlessIsRefusedWithoutNamespaces(t *testing.T) {
	const folder, setting = "BAWN_TEST_NO_NAMESPACES", "/proc/sys/user/max_user_namespaces"
	if own := os.Getenv(folder); own != "" {
		err := errors.Join(os.WriteFile(setting, []byte("0"), 0), syscall.Setgid(somebody), syscall.Setuid(somebody))
		if err != nil {
			t.Fatal(err)
		}
		d, err := New(Config{Dir: filepath.Join(own, "runtimes"), Code: own, Node: "none"})
		if err == nil {
			d.Close()
			t.Fatal("there are sandboxes")
		}
		var e *bawn.Error
		if !errors.As(err, &e) || !strings.Contains(e.Fix, setting) || !strings.Contains(e.Fix, "sysctl -w") {
			t.Errorf("error %v, fix %q", err, e.Fix)
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: to become somebody else needs root")
	}
	own := t.TempDir()
	for up := filepath.Dir(own); up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		os.Chmod(up, 0o755)
	}
	if err := os.Chown(own, somebody, somebody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), folder+"="+own)
	// The setting is each user namespace's own, so this one is that of a small host.
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

// below returns the processes below one.
func below(pid int) map[int]bool {
	found := map[int]bool{}
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for f := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				found[child] = true
				for p := range below(child) {
					found[p] = true
				}
			}
		}
	}
	return found
}
