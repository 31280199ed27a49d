package interior

import (
	"bytes"
	"context"
	"debug/elf"
	"embed"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// Definition says how a runtime is started, or why this host cannot.
type Definition struct {
	Runtime bawn.Runtime
	Image   sandbox.Image
	Args    []string // the program of a warm sandbox; empty means parked until Exec, see providedCommand
	Env     []string // of that program
	Found   string   // such as "/usr/bin/python3.11 3.11.2"
	Missing string   // why the host cannot run it and how to get it; empty if it can
}

// Ready reports whether the host can run it.
func (d *Definition) Ready() bool { return d.Missing == "" }

// Where things are inside a sandbox.
const (
	taskRoot   = "/var/task"
	runtimeDir = "/var/runtime"
)

//go:embed shims
var shims embed.FS

// shim returns one of Bawn's own files for /var/runtime.
func shim(name string) sandbox.File {
	b, err := shims.ReadFile("shims/" + name)
	if err != nil {
		panic("interior: " + err.Error()) // the name is a constant of this package
	}
	return sandbox.File{Path: runtimeDir + "/" + name, Data: b, Mode: 0o444}
}

// FindRuntimes asks this host what it can run, and returns one definition for
// each of [bawn.Runtimes], in that order. It starts the interpreters it finds,
// all at one time.
func FindRuntimes(ctx context.Context, log *slog.Logger) []Definition {
	list := make([]Definition, len(bawn.Runtimes()))
	var asking sync.WaitGroup
	for i, r := range bawn.Runtimes() {
		asking.Go(func() {
			list[i] = define(ctx, r)
			list[i].Runtime, list[i].Image.Name = r, string(r)
		})
	}
	asking.Wait()
	for _, d := range list {
		if ctx.Err() != nil {
			break // what was not answered in time is not missing
		}
		if d.Ready() {
			log.Debug("runtime found", "runtime", d.Runtime, "found", d.Found, "files", len(d.Image.Files))
		} else {
			log.Info("runtime missing", "runtime", d.Runtime, "reason", d.Missing)
		}
	}
	return list
}

// define asks the host for one runtime.
func define(ctx context.Context, r bawn.Runtime) Definition {
	switch r.Family() {
	case "python":
		return definePython(ctx, r)
	case "nodejs":
		return defineNode(ctx, r)
	case "provided":
		return defineProvided()
	case "wasm":
		return defineWasm()
	}
	return Definition{Missing: "this version of Bawn cannot run it"}
}

// executables returns the ELF programs of this host with one of the names, in
// the order in which they are to be tried, each once.
func executables(names ...string) []string {
	dirs := append([]string{"/usr/bin", "/usr/local/bin"}, filepath.SplitList(os.Getenv("PATH"))...)
	if home, err := os.UserHomeDir(); err == nil {
		// Version managers put wrapper scripts on the path; their interpreters
		// are below.
		for _, pattern := range []string{".pyenv/versions/*/bin", ".nvm/versions/node/*/bin"} {
			found, _ := filepath.Glob(filepath.Join(home, pattern)) // the pattern is well formed
			slices.Reverse(found)                                   // newer ones first
			dirs = append(dirs, found...)
		}
	}
	var list []string
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // a relative entry of PATH means whatever the folder is
		}
		for _, name := range names {
			p, err := filepath.EvalSymlinks(filepath.Join(dir, name))
			if err != nil || slices.Contains(list, p) {
				continue
			}
			if f, err := elf.Open(p); err == nil {
				f.Close()
				list = append(list, p)
			}
		}
	}
	return list
}

// ask runs a program of the host with an empty environment and returns the
// beginning of what it prints.
func ask(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout = &bounded{w: &out, left: 64 << 10}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// bounded passes on what fits and forgets the rest.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	q := p[:min(len(p), b.left)]
	b.left -= len(q)
	if _, err := b.w.Write(q); err != nil {
		return 0, err
	}
	return len(p), nil
}

// commonFiles returns what programs of every runtime expect to find and what
// tells them nothing about the host.
func commonFiles() []sandbox.File {
	text := func(path, data string) sandbox.File {
		return sandbox.File{Path: path, Data: []byte(data), Mode: 0o444}
	}
	files := []sandbox.File{
		text("/etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nfunction:x:993:993:function:/tmp:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"),
		text("/etc/group", "root:x:0:\nfunction:x:993:\nnogroup:x:65534:\n"),
		// A name is what the sandbox's own hosts file says, or its own resolver.
		text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
		{Path: "/etc/hosts", Link: sandbox.HostsFile},
		{Path: "/etc/resolv.conf", Link: sandbox.ResolverFile},
	}
	for _, p := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if host, err := filepath.EvalSymlinks(p); err == nil {
			const bundle = "/etc/ssl/certs/ca-certificates.crt"
			files = append(files, sandbox.File{Path: bundle, Host: host, Mode: 0o444},
				sandbox.File{Path: "/usr/lib/ssl/cert.pem", Link: bundle}) // where OpenSSL looks by default
			break
		}
	}
	if host, err := filepath.EvalSymlinks("/usr/share/zoneinfo"); err == nil {
		files = append(files, sandbox.File{Path: "/usr/share/zoneinfo", Host: host},
			sandbox.File{Path: "/etc/localtime", Link: "/usr/share/zoneinfo/UTC"})
	}
	return files
}

// commonLibraries are wanted by native code that functions bring along; those
// that the host has are added to every image with a dynamic interpreter.
func commonLibraries() []string {
	return []string{
		"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libutil.so.1",
		"libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "libssl.so.3", "libcrypto.so.3", "libssl.so.1.1", "libcrypto.so.1.1",
		"libnss_files.so.2", "libnss_dns.so.2", "libgomp.so.1",
	}
}

// A linker finds the shared libraries that programs need, as the host's
// dynamic loader would.
type linker struct {
	machine elf.Machine
	class   elf.Class
	loader  string            // the path that programs name as their interpreter
	dirs    []string          // the loader's own folders
	dir     string            // the one that holds libc, where every library goes in the sandbox
	found   map[string]string // library name to host path
}

// newLinker returns a linker for programs like the one at path.
func newLinker(path string) (*linker, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l := &linker{machine: f.Machine, class: f.Class, found: map[string]string{}}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return nil, err
			}
			l.loader = string(bytes.TrimRight(b, "\x00"))
		}
	}
	if !filepath.IsAbs(l.loader) {
		return nil, fmt.Errorf("%s is not dynamically linked", path)
	}
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[f.Machine]
	if triplet != "" {
		l.dirs = append(l.dirs, "/lib/"+triplet, "/usr/lib/"+triplet)
	}
	l.dirs = append(l.dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
	libc := l.find("libc.so.6", nil)
	if libc == "" {
		return nil, fmt.Errorf("the C library of %s was not found in %s", path, strings.Join(l.dirs, ", "))
	}
	l.dir = filepath.Dir(libc)
	return l, nil
}

// find returns the host path of a library, or "".
func (l *linker) find(name string, first []string) string {
	for _, dir := range slices.Concat(first, l.dirs) {
		p := filepath.Join(dir, name)
		f, err := elf.Open(p)
		if err != nil {
			continue
		}
		fits := f.Machine == l.machine && f.Class == l.class
		f.Close()
		if fits {
			return p
		}
	}
	return ""
}

// add finds everything that the ELF file at path needs, its needs included.
// The error names what is not there.
func (l *linker) add(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var first []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, _ := f.DynString(tag) // absent in a static file
		for _, v := range values {
			for _, dir := range filepath.SplitList(v) {
				dir = strings.NewReplacer("$ORIGIN", filepath.Dir(path), "${ORIGIN}", filepath.Dir(path)).Replace(dir)
				if filepath.IsAbs(dir) {
					first = append(first, dir)
				}
			}
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range needed {
		if _, ok := l.found[name]; ok || name == filepath.Base(l.loader) {
			continue
		}
		host := l.find(name, first)
		if host == "" {
			return fmt.Errorf("%s needs %s, which is not there", path, name)
		}
		if host, err = filepath.EvalSymlinks(host); err != nil {
			return err
		}
		l.found[name] = host
		if err := l.add(host); err != nil {
			return err
		}
	}
	return nil
}

// files returns the loader and every library found, for an image. All go into
// the one folder that the loader searches by itself: wherever an interpreter
// and its own libraries are on the host, they work and the place is not shown.
func (l *linker) files() ([]sandbox.File, error) {
	for _, name := range commonLibraries() {
		if host := l.find(name, nil); host != "" && l.found[name] == "" {
			if real, err := filepath.EvalSymlinks(host); err == nil && l.add(real) == nil {
				l.found[name] = real
			}
		}
	}
	loader, err := filepath.EvalSymlinks(l.loader)
	if err != nil {
		return nil, err
	}
	files := []sandbox.File{{Path: l.loader, Host: loader, Mode: 0o555}}
	for name, host := range l.found {
		files = append(files, sandbox.File{Path: l.dir + "/" + filepath.Base(name), Host: host, Mode: 0o555})
	}
	slices.SortFunc(files[1:], func(a, b sandbox.File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}
