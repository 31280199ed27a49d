package interior

import (
	"context"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// findNode returns the program for r and its version, or "".
func findNode(ctx context.Context, r bawn.Runtime) (path, version string) {
	want := "v" + strings.TrimPrefix(string(r), "nodejs") + "."
	for _, path := range executables("node", "nodejs") {
		if v, err := ask(ctx, path, "--version"); err == nil && strings.HasPrefix(v, want) {
			return path, strings.TrimPrefix(v, "v")
		}
	}
	return "", ""
}

// defineNode makes the definition of a Node.js runtime.
func defineNode(ctx context.Context, r bawn.Runtime) Definition {
	path, version := findNode(ctx, r)
	if path == "" {
		major := strings.TrimPrefix(string(r), "nodejs")
		return Definition{Missing: "no Node.js " + major + " in /usr/bin, /usr/local/bin, PATH or ~/.nvm/versions: install it (from nodejs.org or NodeSource) and start the node again"}
	}
	d := Definition{Found: path + " " + version}
	l, err := newLinker(path)
	if err == nil {
		err = l.add(path)
	}
	var libraries []sandbox.File
	if err == nil {
		libraries, err = l.files()
	}
	if err != nil {
		d.Missing = path + " cannot be used: " + err.Error()
		return d
	}
	const program = "/usr/local/bin/node"
	d.Image = sandbox.Image{
		Syscall: sandbox.SyscallNode,
		Files: slices.Concat([]sandbox.File{{Path: program, Host: path, Mode: 0o555}}, libraries, commonFiles(),
			[]sandbox.File{shim("bootstrap.cjs"), shim("warmup.cjs"), shim("warmup_module.mjs")}),
	}
	d.Args = []string{program, runtimeDir + "/bootstrap.cjs"}
	d.Env = []string{"LANG=C.UTF-8"}
	return d
}
