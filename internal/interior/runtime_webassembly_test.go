package interior

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// buildWasm builds the worker and a module for it.
func buildWasm(t *testing.T) (worker, module string) {
	t.Helper()
	dir := t.TempDir()
	worker, module = filepath.Join(dir, "bawn-wasm"), filepath.Join(dir, "main.wasm")
	for _, args := range [][]string{
		{"CGO_ENABLED=0", "build", "-o", worker, "bawn.dev/bawn/cmd/bawn-wasm"},
		{"GOOS=wasip1", "build", "-ldflags", "-s -w", "-o", module, "./testdata/wasm"},
	} {
		cmd := exec.Command("go", args[1:]...)
		cmd.Env = append(os.Environ(), args[0])
		if args[0] == "GOOS=wasip1" {
			cmd.Env = append(cmd.Env, "GOARCH=wasm")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return worker, module
}

func TestWasm(t *testing.T) {
	worker, module := buildWasm(t)
	code, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}

	p := startProgram(t, nil, worker, t.TempDir())
	cache, err := p.compile(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, "main.wasm", string(code))
	for name, b := range cache {
		name = filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, b, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	start := func(t *testing.T) *program {
		p := startProgram(t, nil, worker, dir)
		mustLoad(t, p, testIdentity(bawn.Wasm, "main.wasm"))
		if p.compiled {
			t.Error("it compiled what had been compiled")
		}
		return p
	}

	t.Run("calls", func(t *testing.T) {
		p := start(t)
		for _, tt := range []struct{ event, want, kind string }{
			{`{"do":"echo","text":"grüß"}`, `{"do":"echo","text":"grüß"}`, ""},
			{`{"do":"nothing"}`, "null", ""},
			{`{"do":"calls"}`, "1", ""},
			{`{"do":"calls"}`, "1", ""}, // a fresh instance
			{`{"do":"escape"}`, "true true true true", ""},
			{`{"do":"exit","n":3}`, "The module exited with status 3", "Runtime.ExitError"},
			{`{"do":"panic"}`, "The module exited with status 2", "Runtime.ExitError"},
			{`{"do":"exit","n":0}`, "null", ""},
			{`{"do":"large","n":6291557}`, "Response payload size exceeded maximum allowed payload size (6291556 bytes).", "Function.ResponseSizeTooLarge"},
			{`{"do":"memory","n":300000000}`, "The module exited with status 2", "Runtime.ExitError"},
			{`nonsense`, "The module exited with status 1", "Runtime.ExitError"},
			{`{"do":"log"}`, "null", ""},
		} {
			r := call(t, p, tt.event)
			if tt.kind == "" {
				if string(r.Payload) != tt.want || r.FunctionError != "" {
					t.Errorf("%s: %s, want %s", tt.event, r.Payload, tt.want)
				}
			} else if d := document(t, r.Payload); d.ErrorType != tt.kind || d.ErrorMessage != tt.want || r.FunctionError != "Unhandled" {
				t.Errorf("%s: %s, want %s", tt.event, r.Payload, tt.want)
			}
		}
		if r := call(t, p, `{"do":"large","n":6291556}`); len(r.Payload) != bawn.MaxResponseBytes {
			t.Errorf("got %d bytes", len(r.Payload))
		}
		p.close()
		if _, log := p.exit(t); !strings.Contains(log, "to the log\n") || !strings.Contains(log, "panic: sudden") {
			t.Errorf("log is %q", log)
		}
	})
	t.Run("env", func(t *testing.T) {
		p := start(t)
		r, err := p.invoke(t.Context(), &bawn.Call{ID: "some-id", Event: []byte(`{"do":"env"}`), TraceID: "Root=1"}, time.UnixMilli(4102444800000))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		json.Unmarshal(r.Payload, &got)
		id := testIdentity(bawn.Wasm, "main.wasm")
		want := append(environment(&id), "BAWN_INVOCATION=some-id", "BAWN_DEADLINE_MS=4102444800000",
			"BAWN_FUNCTION_ARN=arn:aws:lambda:us-east-1:123456789012:function:hello", "_X_AMZN_TRACE_ID=Root=1")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
	t.Run("cache of another version", func(t *testing.T) {
		dir := writeFiles(t, "main.wasm", string(code), wasmCacheFolder+"/file", "x")
		p := startProgram(t, nil, worker, dir)
		mustLoad(t, p, testIdentity(bawn.Wasm, ""))
		if r := call(t, p, `{"do":"calls"}`); string(r.Payload) != "1" {
			t.Errorf("answered %s", r.Payload)
		}
	})

	header := "\x00asm\x01\x00\x00\x00"
	for _, tt := range []struct{ name, handler, module, kind string }{
		{"not a module", "main", "hello", "Runtime.InvalidModule"},
		{"a library", "main", header, "Runtime.HandlerNotFound"},
		{"foreign import", "main", header + "\x01\x04\x01\x60\x00\x00" + "\x02\x09\x01\x03env\x01f\x00\x00", "Runtime.ImportModuleError"},
		{"missing", "other.wasm", header, "Runtime.ImportModuleError"},
		{"outside", "../main.wasm", header, "Runtime.MalformedHandlerName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProgram(t, nil, worker, writeFiles(t, "main.wasm", tt.module))
			err := p.load(t.Context(), testIdentity(bawn.Wasm, tt.handler))
			var e *initError
			if !errors.As(err, &e) || document(t, e.Payload).ErrorType != tt.kind {
				t.Errorf("err = %v, want %s", err, tt.kind)
			}
			if code, _ := p.exit(t); code != 1 {
				t.Errorf("exit status %d", code)
			}
		})
	}
	t.Run("compile nonsense", func(t *testing.T) {
		p := startProgram(t, nil, worker, t.TempDir())
		if _, err := p.compile(t.Context(), []byte("hello")); bawn.ErrorCode(err) != bawn.CodeUnprocessable {
			t.Errorf("err = %v", err)
		}
	})
}
