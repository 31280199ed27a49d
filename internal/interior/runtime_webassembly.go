// The file is not called runtime_wasm.go: Go would build that for the
// wasm architecture alone.

package interior

import (
	"embed"
	"runtime"
	"slices"

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
