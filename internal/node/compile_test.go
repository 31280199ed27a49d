package node_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// echoes is a module that answers with its event.
func echoes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const source = `package main

import (
	"io"
	"os"
)

func main() { io.Copy(os.Stdout, os.Stdin) }
`
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", "main.wasm", "main.go")
	build.Dir, build.Env = dir, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(bawntest.MustRead(t, filepath.Join(dir, "main.wasm")))
}

// A WebAssembly function is compiled at its deploy and by no cold start, also
// after a restart; what was compiled is guarded as code is, and goes with the
// function.
func TestWebAssemblyIsCompiledAtDeploy(t *testing.T) {
	n := bawntest.NewNode(t)
	n.NeedRuntime(bawn.Wasm)
	ctx := t.Context()
	packages := func() (all []string) {
		entries, err := os.ReadDir(filepath.Join(n.Data, "code"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				all = append(all, "sha256:"+e.Name())
			}
		}
		return all
	}
	spec := map[string]any{"runtime": "wasm", "owner": "tests"}
	// Each call is a cold start: a function is used once unless it says otherwise.
	calls := 0
	cold := func() error {
		t.Helper()
		calls++
		inv, err := n.Invoke(ctx, "echo", "", []byte(`{"n":1}`))
		if err != nil {
			return err
		}
		defer inv.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(inv.Body); err != nil || inv.FunctionError != "" || b.String() != `{"n":1}` {
			t.Errorf("call %d: %s %q, %v", calls, inv.FunctionError, &b, err)
		}
		return nil
	}
	mustCold := func() {
		t.Helper()
		if err := cold(); err != nil {
			t.Fatal(err)
		}
	}

	// A module that cannot be compiled is refused, and nothing of it is there.
	broken := n.MustPut(map[string]string{"main.wasm": "\x00asm\x01\x00\x00\x00nonsense"})
	before := packages()
	_, err := n.Deploy(ctx, "echo", spec, broken, false)
	if bawn.ErrorCode(err) != bawn.CodeUnprocessable || !strings.Contains(err.Error(), "not a WebAssembly module") {
		t.Errorf("a broken module: %v", err)
	}
	if all, err := n.Functions(ctx); err != nil || len(all) != 0 || !slices.Equal(packages(), before) {
		t.Errorf("left: %v, %v, %v", all, packages(), err)
	}

	v := n.MustDeploy("echo", spec, map[string]string{"main.wasm": echoes(t)}).Version
	if v.Compiled == nil || v.Compiled.Files != 1 || !slices.Contains(packages(), v.Compiled.Digest) {
		t.Fatalf("compiled: %+v", v.Compiled)
	}
	mustCold()
	mustCold()
	n.Restart()
	mustCold()

	// Somebody writes to what was compiled: that is not run, and made again.
	folder := filepath.Join(n.Data, "code", strings.TrimPrefix(v.Compiled.Digest, "sha256:"))
	err = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b := bawntest.MustRead(t, path)
		b[len(b)/2] ^= 1
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cold(); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("tampered machine code: %v", err)
	}
	blocked := 0
	err = n.Events(ctx, client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindNode}}, func(r bawn.Record) error {
		if r.Outcome == "blocked" && r.Detail["artifact"] == v.Compiled.Digest {
			blocked++
		}
		return nil
	})
	if err != nil || blocked != 1 {
		t.Errorf("%d records of it, %v", blocked, err)
	}
	mustCold()

	starts, compilations := 0, 0
	err = n.Logs(ctx, "echo", client.LogQuery{}, func(l bawn.LogLine) error {
		if strings.HasPrefix(l.Text, "REPORT") {
			starts++
			if !strings.Contains(l.Text, "Init Duration") {
				t.Errorf("not a cold start: %s", l.Text)
			}
			t.Log(l.Text)
		}
		if strings.Contains(l.Text, "compiled at this start") {
			compilations++
		}
		return nil
	})
	if err != nil || starts != calls-1 || compilations != 0 {
		t.Errorf("%d calls, %d starts, %d compilations, %v", calls, starts, compilations, err)
	}

	if err := n.Remove(ctx, "echo"); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(packages(), before) {
		t.Errorf("left: %v", packages())
	}
	for _, digest := range []string{v.Artifact.Digest, v.Compiled.Digest} {
		if has, err := n.HasArtifact(ctx, digest); has || err != nil {
			t.Errorf("%s is left: %v", digest, err)
		}
	}
}
