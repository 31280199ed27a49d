package interior

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// python is an interpreter of the host, by its own account.
type python struct {
	path    string // of the program
	Version string `json:"version"`
	Prefix  string `json:"prefix"`
	Stdlib  string `json:"stdlib"`
}

// pythonFlags are for a start without environment, site or user folders, in
// half the time of a usual one.
func pythonFlags() []string { return []string{"-I", "-S", "-B", "-X", "utf8"} }

// findPython returns the interpreter for r; its path is empty if there is none.
func findPython(ctx context.Context, r bawn.Runtime) python {
	const question = `import sys, os, json; print(json.dumps({"version": "%d.%d.%d" % sys.version_info[:3], "prefix": sys.base_prefix, "stdlib": os.path.dirname(os.__file__)}))`
	want := strings.TrimPrefix(string(r), "python")
	for _, path := range executables(string(r), "python3") {
		p := python{path: path}
		answer, err := ask(ctx, append(append([]string{path}, pythonFlags()...), "-c", question)...)
		if err != nil || json.Unmarshal([]byte(answer), &p) != nil {
			continue
		}
		if strings.HasPrefix(p.Version, want+".") && filepath.IsAbs(p.Stdlib) && filepath.IsAbs(p.Prefix) {
			return p
		}
	}
	return python{}
}

// definePython makes the definition of a Python runtime.
func definePython(ctx context.Context, r bawn.Runtime) Definition {
	p := findPython(ctx, r)
	if p.path == "" {
		return Definition{Missing: "no " + string(r) + " interpreter in /usr/bin, /usr/local/bin, PATH or ~/.pyenv/versions: install it (on Debian: apt install " + string(r) + ") and start the node again"}
	}
	d := Definition{Found: p.path + " " + p.Version}
	// An interpreter finds its library relative to itself, so one that is not
	// in a system folder moves to /usr/local, and nothing says whose home
	// folder it came from.
	prefix := "/usr/local"
	if p.Prefix == "/usr" {
		prefix = p.Prefix
	}
	program := prefix + "/bin/" + string(r)
	files, err := p.files(prefix, string(r), program)
	if err != nil {
		d.Missing = p.path + " cannot be used: " + err.Error()
		return d
	}
	compiled, err := p.compile(ctx, shim("bootstrap.py"))
	if err != nil {
		d.Missing = p.path + " cannot compile the runtime's program: " + err.Error()
		return d
	}
	d.Image = sandbox.Image{
		Syscall: sandbox.SyscallPython,
		Files:   slices.Concat(files, commonFiles(), []sandbox.File{shim("bootstrap.py"), compiled, shim("warmup.py")}),
	}
	d.Args = append(append([]string{program}, pythonFlags()...), compiled.Path)
	d.Env = []string{"LANG=C.UTF-8"}
	return d
}

// compile returns f compiled by the interpreter, beside it: to compile it at
// each start would take a third of the start.
func (p *python) compile(ctx context.Context, f sandbox.File) (sandbox.File, error) {
	const program = `import sys, base64, importlib._bootstrap_external as b; print(base64.b64encode(b._code_to_hash_pyc(compile(sys.argv[1], sys.argv[2], "exec"), bytes(8), False)).decode())`
	text, err := ask(ctx, append(append([]string{p.path}, pythonFlags()...), "-c", program, string(f.Data), f.Path)...)
	if err != nil {
		return f, err
	}
	f.Path += "c"
	f.Data, err = base64.StdEncoding.DecodeString(text)
	return f, err
}

// files returns the interpreter, its standard library and their libraries.
func (p *python) files(prefix, name, program string) ([]sandbox.File, error) {
	l, err := newLinker(p.path)
	if err != nil {
		return nil, err
	}
	if err := l.add(p.path); err != nil {
		return nil, err
	}
	files := []sandbox.File{{Path: program, Host: p.path, Mode: 0o555}}
	lib := prefix + "/lib/" + name
	// Not for functions: tests, tools for a desktop, installers, the files to
	// build extensions with, and whatever the host has installed.
	skip := []string{"test", "idlelib", "ensurepip", "tkinter", "turtledemo", "turtle.py", "lib2to3", "pydoc_data",
		"site-packages", "dist-packages", "sitecustomize.py", "usercustomize.py", "lib-dynload", "EXTERNALLY-MANAGED"}
	entries, err := os.ReadDir(p.Stdlib)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if slices.Contains(skip, e.Name()) || strings.HasPrefix(e.Name(), "config-") {
			continue
		}
		host, err := filepath.EvalSymlinks(filepath.Join(p.Stdlib, e.Name()))
		if err != nil {
			continue // a dangling link
		}
		files = append(files, sandbox.File{Path: lib + "/" + e.Name(), Host: host})
	}
	// Extension modules whose libraries the host lacks could not be imported.
	modules, err := filepath.Glob(filepath.Join(p.Stdlib, "lib-dynload", "*.so"))
	if err != nil {
		return nil, err
	}
	for _, m := range modules {
		base := filepath.Base(m)
		if strings.HasPrefix(base, "_tkinter.") || strings.HasPrefix(base, "_test") || l.add(m) != nil {
			continue
		}
		files = append(files, sandbox.File{Path: lib + "/lib-dynload/" + base, Host: m, Mode: 0o555})
	}
	libraries, err := l.files()
	return append(files, libraries...), err
}
