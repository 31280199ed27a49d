// The file is not called runtime_wasm.go: Go would build that for the
// wasm architecture alone.

package interior

import (
	"context"
	"embed"
	"io"
	"regexp"
	"runtime"
	"slices"
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

// Limits of what a compilation gives.
const (
	maxCompiledFiles = 16
	maxCompiledBytes = 256 << 20
)

// WasmCacheFolder is the folder, beside the code in /var/task, in which a wasm
// function's worker looks for what [CompileWasm] returned.
const WasmCacheFolder = ".bawn-cache"

// CompileWasm compiles a module in a sandbox of its own and returns the files of
// the cache that holds the machine code, by path below [WasmCacheFolder]. A Go
// module takes about a second, so it is to be done at deploy. A module that
// cannot run is a [bawn.CodeUnprocessable] error.
func CompileWasm(ctx context.Context, driver sandbox.Driver, d Definition, module []byte) (map[string][]byte, error) {
	if !d.Ready() {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "interior.compile", "the wasm runtime is missing: %s", d.Missing)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	box, err := driver.Start(ctx, sandbox.Spec{ID: "compile-" + bawn.NewID()[:18], Image: d.Image.Name, Args: d.Args, Env: d.Env})
	if err != nil {
		return nil, err
	}
	defer func() {
		box.Kill()
		<-box.Done()
	}()
	go io.Copy(io.Discard, box.Output()) // ends with the sandbox
	if err := box.Attach(ctx, sandbox.Attachment{Memory: 2 << 30, CPU: 1, PIDs: bawn.DefaultPIDs, Tmp: maxCompiledBytes}); err != nil {
		return nil, err
	}
	w := newFrameWorker(box.Conn())
	defer w.close()
	return w.compile(ctx, module)
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
			return nil, bawn.Errorf(bawn.CodeUnprocessable, "interior.compile", "the module cannot run: %.1000s", body).
				WithFix("build it as a WASI preview 1 command, for example with GOOS=wasip1 GOARCH=wasm go build")
		case h.Type == "file" && len(files) < maxCompiledFiles && name.MatchString(h.Name) && files[h.Name] == nil:
			files[h.Name] = body
			left -= len(body)
		default:
			return nil, w.fail(ctx, protocolError("it answered compile with a frame of type %.20q, name %.100q", h.Type, h.Name))
		}
	}
}
