package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFindUser(t *testing.T) {
	for name, ok := range map[string]bool{
		"": true, "root": true, "0": true, "nobody": true, "70000": true, fmt.Sprint(DefaultUID): true,
		"no such user": false, "-1": false, "4294967295": false, fmt.Sprint(firstSandboxUID): false, fmt.Sprint(endSandboxUID - 1): false,
	} {
		u, err := FindUser(name)
		if (err == nil) != ok {
			t.Errorf("%q: %v, %v", name, u, err)
		}
	}
	if u, err := FindUser(""); err != nil || u.Root() {
		t.Errorf("a server becomes %v by itself, %v", u, err)
	}
}

// TestJ3EveryThreadLetsGo drops in a process of its own and looks at every
// thread, also at those that begin later.
func TestJ3EveryThreadLetsGo(t *testing.T) {
	const asServer = "BAWN_TEST_DROP"
	u := User{UID: DefaultUID, GID: DefaultUID}
	if os.Getenv(asServer) != "" {
		block := func() { // a thread each
			r, _, _ := os.Pipe()
			var b [1]byte
			syscall.Read(int(r.Fd()), b[:])
		}
		for range 8 {
			go block()
		}
		time.Sleep(50 * time.Millisecond)
		if err := Become(u); err != nil {
			fmt.Println("FAILED", err)
			os.Exit(0)
		}
		for range 8 {
			go block()
		}
		time.Sleep(50 * time.Millisecond)
		p, err := Look()
		if err == nil {
			err = p.Holds(u)
		}
		_, shadow := os.Open("/etc/shadow")
		fmt.Println("THREADS", p.Threads, "ERROR", err, "BACK", syscall.Setuid(0), "SHADOW", shadow, "AGAIN", Become(u) != nil)
		os.Exit(0)
	}
	if os.Getuid() != 0 {
		t.Skip("only root can let go of it")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestJ3EveryThreadLetsGo$")
	cmd.Env = append(os.Environ(), asServer+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var threads int
	text := string(out)
	if i := strings.Index(text, "THREADS"); i >= 0 {
		fmt.Sscanf(text[i:], "THREADS %d", &threads)
	}
	if threads < 16 || !strings.Contains(text, "ERROR <nil>") || strings.Contains(text, "BACK <nil>") || strings.Contains(text, "SHADOW <nil>") || !strings.Contains(text, "AGAIN true") {
		t.Errorf("after the drop: %s", out)
	}
}

// TestJ3HoldsMissesNothing gives the check each kind of privilege alone.
func TestJ3HoldsMissesNothing(t *testing.T) {
	u := User{UID: 7, GID: 8}
	good := Privileges{Threads: 2, UIDs: []string{"7 7 7 7"}, GIDs: []string{"8 8 8 8"}, NoNew: true}
	if err := good.Holds(u); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Privileges){
		"a saved user":        func(p *Privileges) { p.UIDs = []string{"7 7 0 7"} },
		"one thread of root":  func(p *Privileges) { p.UIDs = []string{"7 7 7 7", "0 0 0 0"} },
		"root's group":        func(p *Privileges) { p.GIDs = []string{"0 0 0 0"} },
		"a further group":     func(p *Privileges) { p.Groups = []string{"0"} },
		"a capability":        func(p *Privileges) { p.Caps = []string{"CapBnd 0000000000000001"} },
		"new privileges":      func(p *Privileges) { p.NoNew = false },
		"nothing at all seen": func(p *Privileges) { *p = Privileges{} },
	} {
		p := good
		change(&p)
		if p.Holds(u) == nil {
			t.Errorf("%s is not seen", name)
		}
	}
}

func TestJ3GiveFollowsNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	u := User{UID: DefaultUID, GID: DefaultUID}
	owner := func(path string) int {
		t.Helper()
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return int(st.Sys().(*syscall.Stat_t).Uid)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data, away := t.TempDir(), t.TempDir()
	must(os.MkdirAll(filepath.Join(data, "store/deep"), 0o700))
	must(os.MkdirAll(filepath.Join(data, "runtimes/r"), 0o700))
	must(os.WriteFile(filepath.Join(data, "store/deep/file"), nil, 0o600))
	must(os.WriteFile(filepath.Join(away, "host"), nil, 0o600))
	must(os.Symlink(away, filepath.Join(data, "store/link")))
	must(os.Symlink(filepath.Join(away, "host"), filepath.Join(data, "link")))
	// A root holds other names of the host's own programs.
	must(os.Link(filepath.Join(away, "host"), filepath.Join(data, "runtimes/r/host")))
	f, err := Give(data, u, "runtimes")
	must(err)
	defer f.Close()
	for path, want := range map[string]int{
		data: u.UID, data + "/store": u.UID, data + "/store/deep": u.UID, data + "/store/deep/file": u.UID,
		data + "/runtimes": 0, data + "/runtimes/r": 0, away: 0, away + "/host": 0,
	} {
		if got := owner(path); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
	again, err := Give(data, u, "runtimes")
	must(err)
	again.Close()
	if _, err := Give(data, User{UID: 70000, GID: 70000}, "runtimes"); err == nil {
		t.Error("another user's data directory was taken")
	}

	// What the server's user may have put in the place of a folder.
	must(os.Symlink(away, filepath.Join(data, "planted")))
	must(os.Mkdir(filepath.Join(data, "foreign"), 0o700))
	must(os.Chown(filepath.Join(data, "foreign"), u.UID, u.GID))
	must(os.Mkdir(filepath.Join(data, "open"), 0o700))
	must(os.Chmod(filepath.Join(data, "open"), 0o777))
	for _, name := range []string{"planted", "foreign", "open"} {
		if _, err := Folder(f, name, User{}); err == nil {
			t.Errorf("%s was taken for root's own folder", name)
		}
	}
	made, err := Folder(f, "code", u)
	must(err)
	made.Close()
	if owner(data+"/code") != u.UID {
		t.Error("the folder is not the user's")
	}

	// A file with another name outside would give that away too.
	linked := t.TempDir()
	must(os.Link(filepath.Join(away, "host"), filepath.Join(linked, "host")))
	if _, err := Give(linked, u, "runtimes"); err == nil || owner(away+"/host") != 0 {
		t.Errorf("a file of the host was given away (%v)", err)
	}
}
