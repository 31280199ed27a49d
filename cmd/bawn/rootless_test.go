package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// somebody is a user without any right.
const somebody = 65533

// rootlessCondition reports whether this process can become somebody and the kernel
// lets users have namespaces.
func rootlessCondition() bool {
	for file, closed := range map[string]string{
		"/proc/sys/user/max_user_namespaces": "0", "/proc/sys/kernel/unprivileged_userns_clone": "0",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
	} {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == closed {
			return false
		}
	}
	return os.Getuid() == 0
}

// rootless starts or stops bawn up as somebody, with a home of its own.
func rootless(ts *testscript.TestScript, neg bool, args []string) {
	home := ts.MkAbs("home")
	pidFile := ts.MkAbs("rootless.pid")
	if len(args) == 1 && args[0] == "stop" {
		pid, err := strconv.Atoi(ts.ReadFile(pidFile))
		ts.Check(err)
		ts.Check(syscall.Kill(pid, syscall.SIGINT))
		for range 600 {
			if left := processesOfSomebody(home); left == "" {
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
		ts.Fatalf("left after the end: %s", processesOfSomebody(home))
	}
	for up := filepath.Dir(home); up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		ts.Check(os.Chmod(up, 0o755))
	}
	data := filepath.Join(home, "data")
	contextFile := filepath.Join(home, "context.json")
	// By its descriptor, because the folders above this program may be root's alone.
	self, err := os.Open("/proc/self/exe")
	ts.Check(errors.Join(err, os.Mkdir(home, 0o700), os.Chown(home, somebody, somebody)))
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", append([]string{"up", "--data", data, "--public", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, args...)...)
	cmd.Args[0] = "bawn"
	cmd.Dir = home
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "BAWN_CONTEXT=" + contextFile}
	cmd.ExtraFiles = []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	log, err := os.Create(ts.MkAbs("up.log"))
	ts.Check(err)
	defer log.Close()
	cmd.Stderr = log
	ts.Check(cmd.Start())
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	ts.Defer(func() {
		cmd.Process.Kill()
		<-done
	})
	ts.Check(os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600))
	ts.Setenv("DATA", data)
	ts.Setenv("BAWN_CONTEXT", contextFile)
	for range 2400 { // written before the node answers
		if b, err := os.ReadFile(contextFile); err == nil && len(b) > 0 {
			return
		}
		select {
		case <-done:
			ts.Fatalf("bawn up ended: %s", ts.ReadFile("up.log"))
		case <-time.After(25 * time.Millisecond):
		}
	}
	ts.Fatalf("bawn up is not ready: %s", ts.ReadFile("up.log"))
}

// processesOfSomebody names the processes that were started in a story's home,
// which their environment or their working folder tells.
func processesOfSomebody(home string) string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		if err != nil || st.Sys().(*syscall.Stat_t).Uid != somebody {
			continue
		}
		cwd, _ := os.Readlink(dir + "/cwd")
		env, _ := os.ReadFile(dir + "/environ")
		if strings.HasPrefix(cwd, home) || bytes.Contains(env, []byte("HOME="+home)) {
			comm, _ := os.ReadFile(dir + "/comm")
			found = append(found, fmt.Sprintf("%s %s", filepath.Base(dir), bytes.TrimSpace(comm)))
		}
	}
	return strings.Join(found, ", ")
}
