// Command bawn-wasm runs one WebAssembly function inside a sandbox. It speaks
// frames with the node on descriptor 3, as the other runtimes' programs do; see
// internal/interior/frames.go for what they look like.
//
// A function is a WASI preview 1 command module. Each call gets a fresh
// instance of it: the event is its standard input, its standard output is the
// response, standard error is the log, and an exit status other than zero is
// an error. It has clocks and random numbers, and neither files nor network.
//
// The process holds one function and the node ends it at the deadline, so
// nothing here watches the time: that would make loops twenty times slower.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

const (
	maxResponse = 6291556
	maxModule   = 250 << 20
	maxError    = 128 << 10
	maxHead     = 64 << 10
	pageBytes   = 64 << 10 // of WebAssembly
)

func main() {
	taskRoot := "/var/task"
	if len(os.Args) > 1 {
		taskRoot = os.Args[1]
	}
	c := &channel{f: os.NewFile(3, "node")}
	c.r = bufio.NewReaderSize(c.f, 64<<10)
	if err := serve(context.Background(), c, taskRoot); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "bawn-wasm:", err)
		os.Exit(1)
	}
}

// A channel carries frames.
type channel struct {
	f   *os.File
	r   *bufio.Reader
	buf []byte
}

// head is the head of any frame that the node sends.
type head struct {
	Type     string            `json:"type"`
	ID       string            `json:"id"`
	Deadline int64             `json:"deadline"`
	ARN      string            `json:"arn"`
	Trace    string            `json:"trace"`
	Handler  string            `json:"handler"`
	Memory   string            `json:"memory"`
	Env      map[string]string `json:"env"`
}

func (c *channel) receive() (h head, body []byte, err error) {
	var lengths [8]byte
	if _, err := io.ReadFull(c.r, lengths[:]); err != nil {
		return h, nil, err
	}
	n, m := binary.BigEndian.Uint32(lengths[:]), binary.BigEndian.Uint32(lengths[4:])
	if n > maxHead || m > maxModule {
		return h, nil, fmt.Errorf("a frame of %d and %d bytes is too large", n, m)
	}
	b := make([]byte, int(n)+int(m))
	if _, err := io.ReadFull(c.r, b); err != nil {
		return h, nil, err
	}
	return h, b[n:], json.Unmarshal(b[:n], &h)
}

func (c *channel) send(head string, body []byte) error {
	c.buf = binary.BigEndian.AppendUint32(c.buf[:0], uint32(len(head)))
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(body)))
	c.buf = append(append(c.buf, head...), body...)
	_, err := c.f.Write(c.buf)
	return err
}

// A fault is a failure of the function, as its error document names it.
type fault struct {
	Type    string   `json:"errorType"`
	Message string   `json:"errorMessage"`
	Trace   []string `json:"stackTrace"`
}

func (f *fault) Error() string { return f.Type + ": " + f.Message }

func faultf(kind, format string, args ...any) *fault {
	return &fault{Type: kind, Message: fmt.Sprintf(format, args...), Trace: []string{}}
}

// document logs err and returns it as an error document.
func document(err error) []byte {
	var f *fault
	if !errors.As(err, &f) {
		f = faultf("Runtime.Unknown", "%v", err)
	}
	f.Message = f.Message[:min(len(f.Message), 8<<10)]
	f.Trace = f.Trace[:min(len(f.Trace), 64)]
	for i, line := range f.Trace {
		f.Trace[i] = line[:min(len(line), 512)]
	}
	b, err := json.Marshal(f)
	if err != nil || len(b) > maxError {
		b = []byte(`{"errorType":"Runtime.Unknown","errorMessage":"","stackTrace":[]}`)
	}
	fmt.Fprintf(os.Stderr, "[ERROR] %s\n", f.Error())
	for _, line := range f.Trace {
		fmt.Fprintln(os.Stderr, line)
	}
	return b
}

func serve(ctx context.Context, c *channel, taskRoot string) error {
	if err := exercise(ctx); err != nil {
		return err
	}
	if err := c.send(`{"type":"ready"}`, nil); err != nil {
		return err
	}
	h, body, err := c.receive()
	if err != nil {
		return err
	}
	if h.Type == "compile" {
		return compile(ctx, c, body)
	}
	if h.Type != "load" {
		return fmt.Errorf("the first frame is of type %q", h.Type)
	}
	p, err := load(ctx, h, taskRoot)
	if err != nil {
		c.send(`{"type":"failed"}`, document(err))
		os.Exit(1)
	}
	loaded := `{"type":"loaded"}`
	if !p.cached {
		loaded = `{"type":"loaded","compiled":true}`
	}
	if err := c.send(loaded, nil); err != nil {
		return err
	}
	for {
		h, event, err := c.receive()
		if err != nil {
			return err
		}
		kind := "response"
		out, err := p.invoke(ctx, h, event)
		if err != nil {
			kind, out = "error", document(err)
		}
		if err := c.send(`{"type":"`+kind+`","id":"`+h.ID+`"}`, out); err != nil {
			return err
		}
	}
}

// A program is a module that is ready to run.
type program struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
	config  wazero.ModuleConfig
	cached  bool // the module was not compiled now
}

// newProgram compiles code, or takes the result from the folder cache if one is
// named that holds it. If it does not, and can be written to, it does after.
func newProgram(ctx context.Context, code []byte, name string, memory int64, cache string, env map[string]string) (*program, error) {
	rc := wazero.NewRuntimeConfigCompiler()
	if memory > 0 {
		rc = rc.WithMemoryLimitPages(uint32(min(max(memory/pageBytes, 1), 65536)))
	}
	if cache != "" {
		cc, err := wazero.NewCompilationCacheWithDir(cache)
		if err != nil {
			return nil, err
		}
		rc = rc.WithCompilationCache(cc)
	}
	r := wazero.NewRuntimeWithConfig(ctx, rc)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
		return nil, err
	}
	m, err := r.CompileModule(ctx, code)
	cached := cache != "" && err == nil
	if cache != "" && err != nil {
		// A module that is not in the cache is compiled, and then is an error
		// because the cache is read-only. It is kept in memory nevertheless.
		m, err = r.CompileModule(ctx, code)
	}
	if err != nil {
		return nil, faultf("Runtime.InvalidModule", "%s is not a WebAssembly module that can run here: %v", name, err)
	}
	for _, f := range m.ImportedFunctions() {
		if from, what, _ := f.Import(); from != wasi_snapshot_preview1.ModuleName {
			return nil, faultf("Runtime.ImportModuleError", "%s imports %s from %s: only %s is there", name, what, from, wasi_snapshot_preview1.ModuleName)
		}
	}
	if m.ExportedFunctions()["_start"] == nil {
		return nil, faultf("Runtime.HandlerNotFound", "%s exports no _start: build it as a command, not as a library", name)
	}
	config := wazero.NewModuleConfig().WithName("").WithArgs(name).WithStderr(os.Stderr).
		WithSysWalltime().WithSysNanotime().WithSysNanosleep().WithRandSource(rand.Reader)
	for k, v := range env {
		config = config.WithEnv(k, v)
	}
	return &program{runtime: r, module: m, config: config, cached: cached}, nil
}

// load finds the function's module and makes it ready.
func load(ctx context.Context, h head, taskRoot string) (*program, error) {
	name, err := moduleName(h.Handler, taskRoot)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(taskRoot, name))
	if err != nil {
		return nil, faultf("Runtime.ImportModuleError", "Unable to open %s: %v", name, errors.Unwrap(err))
	}
	code, err := io.ReadAll(io.LimitReader(f, maxModule+1))
	f.Close()
	if err != nil || len(code) > maxModule {
		return nil, faultf("Runtime.ImportModuleError", "Unable to read %s", name)
	}
	memory, err := strconv.ParseInt(h.Memory, 10, 64)
	if err != nil {
		return nil, err
	}
	// What the node compiled before is beside the code, read-only. A module
	// that is not in there, or was compiled by another version, is compiled
	// now and takes its time.
	cache := filepath.Join(taskRoot, ".bawn-cache")
	if _, err := os.Stat(cache); err == nil {
		if p, err := newProgram(ctx, code, name, memory<<20, cache, h.Env); err == nil {
			return p, nil
		}
	}
	return newProgram(ctx, code, name, memory<<20, "", h.Env)
}

// moduleName returns the module's path in the function's folder: the handler,
// with or without its suffix, or else the one module that is there.
func moduleName(handler, taskRoot string) (string, error) {
	if handler != "" {
		if !filepath.IsLocal(handler) {
			return "", faultf("Runtime.MalformedHandlerName", "Bad handler '%s': it must be the path of a module in the package", handler)
		}
		if path.Ext(handler) != ".wasm" {
			handler += ".wasm"
		}
		return handler, nil
	}
	found, err := filepath.Glob(filepath.Join(taskRoot, "*.wasm"))
	if err != nil || len(found) != 1 {
		return "", faultf("Runtime.MalformedHandlerName", "No handler is given and the package has %d modules: name the module as the handler", len(found))
	}
	return filepath.Base(found[0]), nil
}

// response collects what a module writes, up to the limit.
type response struct {
	b    []byte
	over bool
}

func (r *response) Write(p []byte) (int, error) {
	if r.over = r.over || len(r.b)+len(p) > maxResponse; r.over {
		return 0, errors.New("too large")
	}
	r.b = append(r.b, p...)
	return len(p), nil
}

// invoke runs a fresh instance over event.
func (p *program) invoke(ctx context.Context, h head, event []byte) ([]byte, error) {
	var out response
	config := p.config.WithStdin(&input{event}).WithStdout(&out).
		WithEnv("BAWN_INVOCATION", h.ID).
		WithEnv("BAWN_DEADLINE_MS", strconv.FormatInt(h.Deadline, 10)).
		WithEnv("BAWN_FUNCTION_ARN", h.ARN)
	if h.Trace != "" {
		config = config.WithEnv("_X_AMZN_TRACE_ID", h.Trace)
	}
	m, err := p.runtime.InstantiateModule(ctx, p.module, config)
	if m != nil {
		m.Close(ctx)
	}
	var exit *sys.ExitError
	switch {
	case out.over:
		return nil, faultf("Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (%d bytes).", maxResponse)
	case errors.As(err, &exit) && exit.ExitCode() != 0:
		return nil, faultf("Runtime.ExitError", "The module exited with status %d", exit.ExitCode())
	case err != nil && exit == nil:
		message, trace, _ := strings.Cut(err.Error(), "\n")
		f := faultf("Runtime.Trap", "%s", message)
		if trace != "" {
			f.Trace = strings.Split(trace, "\n")
		}
		return nil, f
	case len(out.b) == 0:
		return []byte("null"), nil
	}
	return out.b, nil
}

// input is a reader over the event.
type input struct{ b []byte }

func (r *input) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// emptyModule is a command that does nothing: (func (export "_start")).
func emptyModule() []byte {
	return slices.Concat(
		[]byte("\x00asm\x01\x00\x00\x00"),
		[]byte("\x01\x04\x01\x60\x00\x00"),       // a type: nothing in, nothing out
		[]byte("\x03\x02\x01\x00"),               // a function of it
		[]byte("\x07\x0a\x01\x06_start\x00\x00"), // exported
		[]byte("\x0a\x04\x01\x02\x00\x0b"),       // with an empty body
	)
}

// exercise runs a module that does nothing through everything a call goes
// through.
func exercise(ctx context.Context) error {
	p, err := newProgram(ctx, emptyModule(), "warmup.wasm", 1<<20, "", map[string]string{"A": "B"})
	if err != nil {
		return err
	}
	for range 3 {
		if _, err := p.invoke(ctx, head{ID: "0"}, []byte("{}")); err != nil {
			return err
		}
	}
	return p.runtime.Close(ctx)
}

// compile compiles a module and sends the files of the cache that hold the
// result.
func compile(ctx context.Context, c *channel, code []byte) error {
	dir, err := os.MkdirTemp("", "cache")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := newProgram(ctx, code, "the file", 0, dir, nil); err != nil {
		return c.send(`{"type":"failed"}`, document(err))
	}
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		h, err := json.Marshal(struct {
			Type string `json:"type"`
			Name string `json:"name"`
		}{"file", name})
		if err != nil {
			return err
		}
		return c.send(string(h), b)
	})
	if err != nil {
		return c.send(`{"type":"failed"}`, document(err))
	}
	return c.send(`{"type":"compiled"}`, nil)
}
