// The file is not called runtime_wasm.go: Go would build that for the
// wasm architecture alone.

package interior

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// The worker is built before this package; see the folder's README.
//
//go:embed workers
var workers embed.FS

const wasmWorker = runtimeDir + "/bawn-wasm"

// defineWasm makes the definition of the WebAssembly runtime.
func defineWasm() Definition {
	b, err := workers.ReadFile("workers/bawn-wasm")
	if err != nil {
		return Definition{Missing: "this bawn was built without its WebAssembly worker: build it with make build"}
	}
	return Definition{
		Image: sandbox.Image{
			Syscall: sandbox.SyscallWasm,
			Files:   slices.Concat([]sandbox.File{{Path: wasmWorker, Data: b, Mode: 0o555}}, commonFiles()),
		},
		Args:  []string{wasmWorker},
		Env:   []string{},
		Found: "built in, " + runtime.GOARCH,
	}
}

// Limits of a compilation.
const (
	maxCompiledFiles = 16
	maxCompiledBytes = 256 << 20
	maxModuleBytes   = bawn.MaxUnpackedBytes
	maxCompilations  = 2       // at one time
	compileMemory    = 2 << 30 // bytes; a module's machine code is several times its size
	compileTimeout   = time.Minute
)

// wasmCacheFolder is the folder, beside the code in /var/task, in which a wasm
// function's worker looks for what [Pool.Compile] returned.
const wasmCacheFolder = ".bawn-cache"

// Compile turns what v runs, which lies in the folder code, into machine code,
// so that no start has to: a Go module takes about a second. It returns files
// by their path below /var/task, where they are to lie at the start, besides
// the code itself. There are none for a runtime that compiles nothing.
//
// The module is untrusted, so this takes place in a sandbox of its own. One that
// cannot run is a [bawn.CodeUnprocessable] error.
func (p *Pool) Compile(ctx context.Context, v *bawn.Version, code string) (map[string][]byte, error) {
	if v.Runtime != bawn.Wasm {
		return nil, nil
	}
	if p.refusal != nil {
		return nil, p.refusal
	}
	s := p.shelves[v.Runtime]
	if s == nil {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "compile", "this host has no runtime %s", v.Runtime)
	}
	module, err := readModule(code, v.Handler)
	if err != nil {
		return nil, err
	}
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, compileTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	unavailable := func(err error) error {
		return bawn.Wrap(err, bawn.CodeUnavailable, "compile", "the module could not be compiled on this node").WithFix("deploy again; run bawn doctor on the node if it stays so")
	}
	select {
	case p.compiling <- struct{}{}:
		defer func() { <-p.compiling }()
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	}
	b, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		b.end()
		<-b.gone
	}()
	go io.Copy(io.Discard, b.Output()) // ends with the sandbox
	if err := b.Attach(ctx, sandbox.Attachment{Code: []string{code}, Memory: compileMemory, CPU: 1, PIDs: bawn.DefaultPIDs, Tmp: maxCompiledBytes}); err != nil {
		return nil, unavailable(err)
	}
	w := b.worker.(*frameWorker)
	files, err := w.compile(ctx, module)
	if err == nil || bawn.ErrorCode(err) == bawn.CodeUnprocessable {
		return files, err
	}
	b.end()
	<-b.gone
	const smaller = "build a smaller module, for example with -ldflags '-s -w'"
	switch {
	case asked.Err() != nil || p.ctx.Err() != nil:
	case ctx.Err() != nil:
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "compile", "compiling the module takes longer than %s", compileTimeout).WithFix(smaller)
	case b.Exit().OOM:
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "compile", "compiling the module takes more than %d MiB of memory", compileMemory>>20).WithFix(smaller)
	}
	return nil, unavailable(err)
}

// readModule reads the module name of the folder code, which the gate of
// packages has checked, for all but what is Bawn's own.
func readModule(code, name string) ([]byte, error) {
	root, err := os.OpenRoot(code)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "compile", "the code cannot be read")
	}
	defer root.Close()
	// The worker would run what lies there as machine code.
	if _, err := root.Lstat(wasmCacheFolder); !errors.Is(err, fs.ErrNotExist) {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, "compile", "the package holds %s, a name that is Bawn's own", wasmCacheFolder).
			WithFix("take it out of the package")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "compile", "the package has no module %.80q", name).WithFix("set the field handler to the module")
	}
	defer f.Close()
	module, err := io.ReadAll(io.LimitReader(f, maxModuleBytes+1))
	switch {
	case err != nil:
		return nil, bawn.Wrap(err, bawn.CodeInternal, "compile", "the module %.80q cannot be read", name)
	case len(module) > maxModuleBytes:
		return nil, bawn.Errorf(bawn.CodeTooLarge, "compile", "the module %.80q is larger than %d MiB", name, maxModuleBytes>>20)
	}
	return module, nil
}

// compile has the program at the other end compile a module. It is the one
// thing that the program does.
func (w *frameWorker) compile(ctx context.Context, module []byte) (map[string][]byte, error) {
	if err := w.ready(ctx); err != nil {
		return nil, err
	}
	defer w.dead.Store(true)
	defer w.guard(ctx, time.Time{})()
	if err := w.write([]byte(`{"type":"compile"}`), module); err != nil {
		return nil, w.fail(ctx, err)
	}
	name := regexp.MustCompile(`^wazero-[0-9A-Za-z._-]{1,64}/[0-9a-f]{64}$`)
	files := map[string][]byte{}
	for left := maxCompiledBytes; ; {
		h, body, err := readFrame(w.r, left)
		if err != nil {
			return nil, w.fail(ctx, err)
		}
		switch {
		case h.Type == "compiled" && len(files) > 0:
			return files, nil
		case h.Type == "failed":
			return nil, bawn.Errorf(bawn.CodeUnprocessable, "compile", "the module cannot run: %s", complaint(body)).
				WithFix("build it as a WASI preview 1 command, for example with GOOS=wasip1 GOARCH=wasm go build")
		case h.Type == "file" && len(files) < maxCompiledFiles && name.MatchString(h.Name) && files[wasmCacheFolder+"/"+h.Name] == nil:
			files[wasmCacheFolder+"/"+h.Name] = body
			left -= len(body)
		default:
			return nil, w.fail(ctx, protocolError("it answered compile with a frame of type %.20q, name %.100q", h.Type, h.Name))
		}
	}
}

// complaint returns the message of an error document, bounded and quoted: the
// module has a say in it.
func complaint(body []byte) string {
	var d struct {
		Message string `json:"errorMessage"`
	}
	if json.Unmarshal(body, &d) != nil || d.Message == "" {
		return "its compiler does not say why"
	}
	text := strconv.QuoteToASCII(d.Message[:min(len(d.Message), 1000)])
	return text[1 : len(text)-1]
}
