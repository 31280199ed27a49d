package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// A node is a running bawn.
type node struct {
	cmd  *exec.Cmd
	dir  string
	ctx  *client.Context
	api  *client.Client
	took time.Duration // from start to ready
	log  string
	stop func()
	gone chan struct{}
}

// startNode runs bawn up on dir and waits until it is ready.
func (b *bench) startNode(dir string, args ...string) (*node, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	n := &node{dir: dir, gone: make(chan struct{}), log: filepath.Join(dir, "log")}
	file := filepath.Join(dir, "context.json")
	os.Remove(file) // of a run before, whose ports are not these
	log, err := os.Create(n.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n.cmd = exec.Command(b.bawn, append([]string{"up", "--solo", "--data", filepath.Join(dir, "data"),
		"--public", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "warn"}, args...)...)
	n.cmd.Env = append(os.Environ(), client.ContextEnv+"="+file)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	begin := time.Now()
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { n.cmd.Wait(); close(n.gone) }()
	n.stop = sync.OnceFunc(func() {
		n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.gone:
		case <-time.After(30 * time.Second):
			n.cmd.Process.Kill()
			<-n.gone
		}
	})
	b.ends = append(b.ends, n.stop)
	for {
		if n.ctx, err = client.LoadContext(file); err == nil {
			if n.api, err = client.New(n.ctx); err != nil {
				return nil, err
			}
			if s, err := n.api.Status(context.Background()); err == nil && s.Ready {
				n.took = time.Since(begin)
				return n, nil
			}
		}
		select {
		case <-n.gone:
			out, _ := os.ReadFile(n.log)
			return nil, fmt.Errorf("bawn up ended: %s", tail(out))
		case <-time.After(time.Millisecond):
		}
		if time.Since(begin) > time.Minute {
			out, _ := os.ReadFile(n.log)
			return nil, fmt.Errorf("bawn up was not ready within a minute: %s", tail(out))
		}
	}
}

func tail(b []byte) string {
	return strings.TrimSpace(string(b[max(0, len(b)-600):]))
}

// A function is one to deploy: its code is a hello in the language of the
// runtime.
type function struct {
	name    string
	runtime bawn.Runtime
	reuse   any
	files   map[string]string // nil means the hello
	egress  any
	ingress any // nil means GET /NAME with a key
}

// code returns the files of a hello-world handler.
func (f function) code() map[string]string {
	if f.files != nil {
		return f.files
	}
	if f.runtime.Family() == "nodejs" {
		return map[string]string{"index.js": "exports.handler = async () => ({ message: \"Hello, world!\" });\n"}
	}
	return map[string]string{"index.py": "def handler(event, context):\n    return {\"message\": \"Hello, world!\"}\n"}
}

// deploy uploads the package if the node lacks it, and makes the version.
func (n *node) deploy(f function) error {
	var pkg bytes.Buffer
	z := zip.NewWriter(&pkg)
	for name, text := range f.code() {
		w, err := z.Create(name)
		if err != nil {
			return err
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(pkg.Bytes()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	has, err := n.api.HasArtifact(ctx, digest)
	if err != nil {
		return err
	}
	if !has {
		if _, err := n.api.PutArtifact(ctx, digest, int64(pkg.Len()), &pkg); err != nil {
			return err
		}
	}
	spec := map[string]any{
		"runtime": f.runtime, "handler": "index.handler", "owner": "bench",
		"ingress":  map[string]any{"http": []any{map[string]any{"method": "GET", "path": "/" + f.name}}},
		"interior": map[string]any{"reuse": f.reuse, "concurrency": 64},
	}
	if f.ingress != nil {
		spec["ingress"] = f.ingress
	}
	if f.egress != nil { // which takes its time, and all of the machine as its baseline does
		spec["egress"], spec["interior"] = f.egress, map[string]any{"reuse": f.reuse, "timeout": "60s", "cpu": runtime.NumCPU(), "memory": "512MiB"}
	}
	_, err = n.api.Deploy(ctx, f.name, spec, digest, false)
	return err
}

// target calls a function over TLS with a key.
func (n *node) target(name string) (*target, error) {
	return newTarget(n.ctx.Public, "/"+name, n.ctx.CA, n.ctx.Key, http.StatusOK)
}

// An interpreter is a runtime that the node found, and its program on the host.
type interpreter struct {
	runtime bawn.Runtime
	path    string
	bare    []string // its shortest run
}

func (i interpreter) String() string { return filepath.Base(i.path) + " " + strings.Join(i.bare, " ") }

// interpreters asks the node what it runs functions with, one of each family. A
// node is ready before it has found them all.
func (n *node) interpreters() (python, js interpreter, err error) {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		d, err := n.api.Doctor(context.Background())
		if err != nil {
			return python, js, err
		}
		for _, r := range d.Runtimes {
			path, _, _ := strings.Cut(r.Found, " ")
			switch family := r.Runtime.Family(); {
			case path == "":
			case family == "python" && python.path == "":
				python = interpreter{r.Runtime, path, []string{"-c", "pass"}}
			case family == "nodejs" && js.path == "":
				js = interpreter{r.Runtime, path, []string{"-e", "0"}}
			}
		}
		if python.path != "" && js.path != "" {
			return python, js, nil
		}
		if time.Since(begin) > 15*time.Second {
			return python, js, errors.New("the node found no Python or no Node.js; make setup installs them")
		}
	}
}

// start runs the interpreter once, to its end, with an empty environment.
func (i interpreter) start() (time.Duration, error) {
	cmd := exec.Command(i.path, i.bare...)
	cmd.Env = []string{}
	begin := time.Now()
	err := cmd.Run()
	return time.Since(begin), err
}

// processes counts the processes below a process.
func processes(root int) int {
	parent := map[int]int{}
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(b), ") ") // the name may hold anything but this
		fields := strings.Fields(rest)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if ok && len(fields) > 1 {
			parent[pid], _ = strconv.Atoi(fields[1])
		}
	}
	n := 0
	for pid := range parent {
		for p := pid; p > 1; p = parent[p] {
			if p == root && pid != root {
				n++
				break
			}
		}
	}
	return n
}

// resident returns a process's resident memory in bytes.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb * 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}
