// Package examples holds no code, only the tests that every example deploys as
// it stands and answers as its try.sh says.
package examples

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

// all reads the manifests, by the folder they are in.
func all(t *testing.T) map[string]*manifest.File {
	t.Helper()
	names, err := filepath.Glob("*/bawn.yaml")
	if err != nil || len(names) < 6 {
		t.Fatalf("found %d manifests, %v; want at least 6", len(names), err)
	}
	files := map[string]*manifest.File{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := manifest.Parse(name, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tests := filepath.Join(filepath.Dir(name), manifest.TestFileName)
		if data, err = os.ReadFile(tests); err != nil {
			t.Fatal(err)
		}
		if err := manifest.ParseTests(tests, data, f); err != nil {
			t.Error(err)
		}
		for n, spec := range f.Functions {
			err := spec.ReadFiles(func(path, _ string) ([]byte, error) { return os.ReadFile(filepath.Join(filepath.Dir(name), path)) })
			if err != nil {
				t.Error(err)
			}
			f.Functions[n] = spec
		}
		files[filepath.Dir(name)] = f
	}
	return files
}

func TestManifestsCompile(t *testing.T) {
	for dir, f := range all(t) {
		for name, spec := range f.Functions {
			if _, err := manifest.Compile(name, spec); err != nil {
				t.Errorf("%s: %s: %v", dir, name, err)
			}
			if len(spec.Tests) == 0 {
				t.Errorf("%s: %s has no tests of its perimeter", dir, name)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
			t.Errorf("%s has no README.md", dir)
		}
	}
}

// TestExamplesAnswer deploys every example to a node and runs its try.sh.
func TestExamplesAnswer(t *testing.T) {
	orders, port := database(t)
	n := bawntest.NewNode(t, func(c *node.Config) {
		if orders != "" {
			c.EgressAllow, c.EgressResolve, c.EgressCA = []string{"127.0.0.1:" + port}, []string{"db.example.test=127.0.0.1"}, filepath.Join(orders, "ca.pem")
		}
	})
	n.NeedSandbox()
	python, js := n.NeedRuntime(bawntest.Pythons()...), n.NeedRuntime(bawntest.Nodes()...)
	env := append(os.Environ(),
		"BAWN_PUBLIC="+n.Context.Public,
		"BAWN_CA="+filepath.Join(n.Data, "ca.pem"),
		"BAWN_KEY="+n.MustKey(bawn.RoleInvoker), "BAWN_ORDERS="+orders)
	for dir, f := range all(t) {
		if dir == "payments" { // has a node of its own
			continue
		}
		t.Run(dir, func(t *testing.T) {
			if dir == "orders" && orders == "" {
				t.Skip("SKIP: PostgreSQL is not installed (make setup)")
			}
			for name, spec := range f.Functions {
				// The manifests name the interpreters of Debian 12.
				switch spec.Runtime.Family() {
				case "python":
					spec.Runtime = python
				case "nodejs":
					spec.Runtime = js
				case "wasm":
					n.NeedRuntime(bawn.Wasm)
				}
				if db, ok := spec.Egress.Databases["orders"]; ok {
					db.Postgres = strings.Replace(db.Postgres, ":54329", ":"+port, 1)
					spec.Egress.Databases["orders"] = db
				}
				deploy(t, n, name, spec, code(t, dir, spec))
			}
			if dir == "orders" {
				grant(t, n, orders)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", filepath.Join(dir, "try.sh"))
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("try.sh: %v\n%s", err, out)
			}
			if dir == "intruder" {
				recorded(t, n)
			}
		})
	}
}

// database makes the PostgreSQL of the example orders, on a free port, which its
// try.sh starts. It returns nothing where PostgreSQL is not installed.
func database(t *testing.T) (dir, port string) {
	t.Helper()
	if bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres"); len(bins) == 0 {
		return "", ""
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	ln.Close()
	if dir, err = os.MkdirTemp("", "orders"); err != nil { // a test's own is not to be passed through by others
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out, err := exec.Command("sh", "orders/postgres.sh", "make", dir, port).CombinedOutput(); err != nil {
		t.Fatalf("postgres.sh: %v\n%s", err, out)
	}
	return dir, port
}

// grant gives the example orders its password.
func grant(t *testing.T, n *bawntest.Node, dir string) {
	t.Helper()
	password, err := os.ReadFile(filepath.Join(dir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateSecret(t.Context(), "orders-db", password); err != nil {
		t.Fatal(err)
	}
	if _, err := n.GrantSecret(t.Context(), "orders-db", "orders"); err != nil {
		t.Fatal(err)
	}
}

// code returns the folder to pack, after building what is in Go.
func code(t *testing.T, dir string, spec manifest.Function) string {
	t.Helper()
	if spec.CodePath() != "build" {
		return filepath.Join(dir, spec.CodePath())
	}
	build := t.TempDir()
	name, env := "bootstrap", []string{"CGO_ENABLED=0"}
	if spec.Runtime == bawn.Wasm {
		name, env = spec.Handler, []string{"GOOS=wasip1", "GOARCH=wasm"}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "lambda.norpc", "-o", filepath.Join(build, name), "./"+dir)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return build
}

func deploy(t *testing.T, n *bawntest.Node, name string, spec manifest.Function, src string) {
	t.Helper()
	var pkg bytes.Buffer
	info, err := manifest.Pack(src, &pkg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.PutArtifact(t.Context(), info.Digest, info.Size, &pkg); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Deploy(t.Context(), name, spec, info.Digest, false); err != nil {
		t.Fatal(err)
	}
}

// recorded checks that the evidence names what the intruder tried, one of each
// kind, with its arguments.
func recorded(t *testing.T, n *bawntest.Node) {
	t.Helper()
	var seen []bawn.Record
	err := n.Events(t.Context(), client.EventQuery{Function: "intruder", Kinds: []bawn.RecordKind{bawn.KindBlocked}}, func(r bawn.Record) error {
		seen = append(seen, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ action, control, args string }{
		{"execve", "B7", "/bin/sh -c echo ran"},
		{"mount", "B2", "/var/task"},
		{"bpf", "B2", ""},
		{"ptrace", "B2", ""},
	} {
		if !slices.ContainsFunc(seen, func(r bawn.Record) bool {
			return r.Action == want.action && r.Control == want.control && r.Version == 1 && r.Invocation != "" &&
				strings.Contains(r.Detail["args"], want.args)
		}) {
			t.Errorf("no record of %s (%s) with %q among %d", want.action, want.control, want.args, len(seen))
		}
	}
}
