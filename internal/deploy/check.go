package deploy

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"bawn.dev/bawn"
)

// Check reports whether the package holds what the runtime starts: the module
// that the handler names, a static bootstrap for this machine, or one Wasm
// module. What is missing is found here and not by the first caller. The error
// is [bawn.CodeUnprocessable] with a way out, or that of [Gate.Path].
func (g *Gate) Check(ctx context.Context, tenant string, a bawn.Artifact, rt bawn.Runtime, handler string) error {
	dir, err := g.Path(ctx, tenant, a)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail(err, "the code cannot be read")
	}
	defer root.Close()
	c := checker{root}
	switch rt.Family() {
	case "python":
		err = c.python(handler)
	case "nodejs":
		err = c.node(handler)
	case "provided":
		err = c.bootstrap()
	case "wasm":
		err = c.wasm(handler)
	default:
		err = bawn.Errorf(bawn.CodeUnprocessable, "deploy.check", "unknown runtime %.40q", rt)
	}
	return fail(err, "the code cannot be read")
}

type checker struct{ root *os.Root }

func lacks(fix, format string, args ...any) *bawn.Error {
	e := bawn.Errorf(bawn.CodeUnprocessable, "deploy.check", format, args...)
	e.Fix = fix
	return e
}

func (c checker) isFile(name string) bool {
	st, err := c.root.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

// names returns what is in the folder name, at most as many as a package may have.
func (c checker) names(name string) []string {
	d, err := c.root.Open(name)
	if err != nil {
		return nil
	}
	defer d.Close()
	all, err := d.Readdirnames(bawn.MaxPackageEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.Sort(all)
	return all
}

// instead lists files in the top folder that end in one of suffixes, for a fix.
func (c checker) instead(suffixes ...string) string {
	var found []string
	for _, n := range c.names(".") {
		if slices.Contains(suffixes, path.Ext(n)) && c.isFile(n) {
			found = append(found, show([]byte(n)))
		}
		if len(found) == 5 {
			break
		}
	}
	if len(found) == 0 {
		return "; its top folder has no such file: does the field code name the right folder?"
	}
	return "; its top folder has " + strings.Join(found, ", ")
}

func (c checker) python(handler string) error {
	module, _, ok := cutLast(handler, ".")
	if !ok {
		return lacks("write it as module.function, such as app.handler", "handler %s is not module.function", show([]byte(handler)))
	}
	p := strings.ReplaceAll(module, ".", "/")
	for _, name := range []string{p + ".py", p + "/__init__.py", p + ".pyc", p + "/__init__.pyc"} {
		if c.isFile(name) {
			return nil
		}
	}
	// Compiled modules: name.so or name.cpython-311-x86_64-linux-gnu.so.
	for _, n := range c.names(path.Dir(p)) {
		if strings.HasPrefix(n, path.Base(p)+".") && strings.HasSuffix(n, ".so") {
			return nil
		}
	}
	return lacks("set the field handler to a module of the package and a function in it"+c.instead(".py"),
		"the package has no %s for the handler %s", show([]byte(p+".py")), show([]byte(handler)))
}

func (c checker) node(handler string) error {
	folder, base := path.Split(handler)
	file, _, ok := strings.Cut(base, ".")
	if !ok {
		return lacks("write it as file.function, such as index.handler", "handler %s is not file.function", show([]byte(handler)))
	}
	p := folder + file
	for _, suffix := range []string{"", ".js", ".mjs", ".cjs"} {
		if c.isFile(p + suffix) {
			return nil
		}
	}
	return lacks("set the field handler to a file of the package and a function in it"+c.instead(".js", ".mjs", ".cjs"),
		"the package has no %s (.mjs, .cjs) for the handler %s", show([]byte(p+".js")), show([]byte(handler)))
}

func (c checker) bootstrap() error {
	const name = "bootstrap"
	const build = "build it static for linux/" + runtime.GOARCH + ", such as with CGO_ENABLED=0 go build -o bootstrap"
	st, err := c.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return lacks(build+"; it lies in the top folder of the package", "the package has no file \"bootstrap\", which the runtime provided starts")
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return lacks(build, "\"bootstrap\" in the package is a folder, not a program")
	case st.Mode()&0o111 == 0:
		return lacks("chmod +x bootstrap, then deploy again", "\"bootstrap\" in the package is not executable")
	}
	f, err := c.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [64]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if bytes.HasPrefix(head[:n], []byte("#!")) {
		return lacks(build+"; or use a runtime that brings its interpreter", "\"bootstrap\" is a script, and the sandbox of the runtime provided holds no interpreter")
	}
	return checkProgram(f, head[:n], build)
}

// checkProgram reports whether f, which begins with head, is a static program
// for this machine. It reads the few fields that this takes by itself:
// debug/elf is not made for files from outside.
func checkProgram(f io.ReaderAt, head []byte, build string) error {
	le := binary.LittleEndian
	if len(head) < 64 || string(head[:4]) != elf.ELFMAG {
		return lacks(build, "\"bootstrap\" is not a program for Linux (ELF)")
	}
	machine := elf.Machine(le.Uint16(head[18:]))
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	if machine != want || elf.Class(head[4]) != elf.ELFCLASS64 || elf.Data(head[5]) != elf.ELFDATA2LSB {
		return lacks(build, "\"bootstrap\" is a program for %s, and this node needs 64-bit %s", strings.TrimPrefix(machine.String(), "EM_"), strings.TrimPrefix(want.String(), "EM_"))
	}
	if t := elf.Type(le.Uint16(head[16:])); t != elf.ET_EXEC && t != elf.ET_DYN {
		return lacks(build, "\"bootstrap\" is an object file, not a program")
	}
	const headerBytes, mostHeaders = 56, 128
	offset, each, count := le.Uint64(head[32:]), le.Uint16(head[54:]), le.Uint16(head[56:])
	table := make([]byte, int(min(count, mostHeaders))*headerBytes)
	if offset > bawn.MaxUnpackedBytes || each != headerBytes || count == 0 || count > mostHeaders {
		return lacks(build, "\"bootstrap\" has damaged program headers")
	}
	if _, err := f.ReadAt(table, int64(offset)); err != nil {
		return lacks(build, "\"bootstrap\" has damaged program headers")
	}
	for ; len(table) > 0; table = table[headerBytes:] {
		if elf.ProgType(le.Uint32(table)) != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, min(le.Uint64(table[32:]), 80))
		n, err := f.ReadAt(loader, int64(min(le.Uint64(table[8:]), bawn.MaxUnpackedBytes)))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return lacks(build, "\"bootstrap\" is linked dynamically (it asks for %s), and the sandbox holds no libraries", show(bytes.TrimRight(loader[:n], "\x00")))
	}
	return nil
}

func (c checker) wasm(handler string) error {
	if handler == "" {
		handler = "main.wasm"
	}
	who := show([]byte(handler))
	f, err := c.root.Open(handler)
	if errors.Is(err, fs.ErrNotExist) {
		return lacks("set the field handler to the module"+c.instead(".wasm"), "the package has no module %s", who)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return lacks("set the field handler to the module"+c.instead(".wasm"), "%s in the package is no file", who)
	}
	var head [8]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case string(head[:4]) != "\x00asm":
		return lacks("build it for WASI preview 1, such as with GOOS=wasip1 GOARCH=wasm go build -o "+path.Base(handler), "%s is not a WebAssembly module", who)
	case string(head[4:]) == "\x0d\x00\x01\x00":
		return lacks("build a WASI preview 1 command module", "%s is a WebAssembly component, and Bawn runs core modules", who)
	case string(head[4:]) != "\x01\x00\x00\x00":
		return lacks("build a WASI preview 1 command module", "%s has the unknown WebAssembly version %s", who, fmt.Sprintf("%x", head[4:]))
	}
	return nil
}

// cutLast is [strings.Cut] around the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
