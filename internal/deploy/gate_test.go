package deploy

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/store"
	"github.com/google/go-cmp/cmp"
)

// gate opens a gate over a real store. records gets what it records.
func newGate(t testing.TB) (g *Gate, records *[]bawn.Record) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	blobs, err := store.OpenBlobs(t.Context(), s, "artifacts")
	if err != nil {
		t.Fatal(err)
	}
	records = &[]bawn.Record{}
	var mu sync.Mutex
	g, err = New(Config{Dir: filepath.Join(t.TempDir(), "code"), Blobs: blobs, Record: func(_ context.Context, r bawn.Record) error {
		mu.Lock()
		defer mu.Unlock()
		*records = append(*records, r)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return g, records
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func accept(t testing.TB, g *Gate, data []byte) bawn.Artifact {
	t.Helper()
	a, err := g.Accept(t.Context(), "main", digestOf(data), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// everything lists what is below dir, files with their mode and content.
func everything(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		st, err := e.Info()
		if err != nil {
			return err
		}
		text := st.Mode().String()
		if st.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += " " + string(data)
		}
		all[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// F1 and F2, attacks 10 and 11: each technique is refused with the entry's
// name, and nothing is left: no file, no folder, no blob.
func TestF1F2HostilePackages(t *testing.T) {
	g, _ := newGate(t)
	around := filepath.Dir(g.cfg.Dir)
	before := everything(t, around)
	for _, h := range hostile() {
		t.Run(h.technique, func(t *testing.T) {
			_, err := g.Accept(t.Context(), "main", digestOf(h.data), bytes.NewReader(h.data))
			var e *bawn.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Code != bawn.CodeUnprocessable && e.Code != bawn.CodeTooLarge {
				t.Errorf("code %s", e.Code)
			}
			if !strings.Contains(e.Message, h.want) || e.Fix == "" || len(e.Message) > 400 || strings.ContainsAny(e.Message, "\x00\x1b\n") {
				t.Errorf("got  %q\nwant %q, and the way out %q", e.Message, h.want, e.Fix)
			}
			if d := cmp.Diff(before, everything(t, around)); d != "" {
				t.Errorf("left behind: %s", d)
			}
			if has, err := g.cfg.Blobs.Has(t.Context(), "main", digestOf(h.data)); has || err != nil {
				t.Errorf("the blob is kept: %v %v", has, err)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	g, _ := newGate(t)
	data := rawZip{entries: []rawEntry{
		file("app.py", "print()"),
		{name: "bin/", mode: 0o040700, host: 3},
		{name: "bin/tool", data: []byte("#!"), mode: 0o100700, host: 3, method: -1},
		{name: "empty/", mode: 0o040777, host: 3},
		{name: "secret", data: []byte("s"), mode: 0o100600, host: 3},
	}}.bytes()
	a := accept(t, g, data)
	if a.Digest != digestOf(data) || a.Size != int64(len(data)) || a.Files != 3 || a.Bytes != 10 {
		t.Errorf("%+v", a)
	}
	dir, err := g.Path(t.Context(), "main", a)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"app.py": "-rw-r--r-- print()", "bin": "drwxr-xr-x", "bin/tool": "-rwxr-xr-x #!", "empty": "drwxr-xr-x", "secret": "-rw-r--r-- s"}
	if d := cmp.Diff(want, everything(t, dir)); d != "" {
		t.Error(d)
	}
	if again := accept(t, g, data); again != a {
		t.Errorf("taken in again it is %+v", again)
	}
	blob, err := g.cfg.Blobs.Open(t.Context(), "main", a.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if kept, err := io.ReadAll(blob); err != nil || !bytes.Equal(kept, data) {
		t.Errorf("the store keeps other bytes: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(g.cfg.Dir, stagingName)); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

// What people make their zips with is taken in.
func TestAcceptsOrdinaryWriters(t *testing.T) {
	g, _ := newGate(t)
	src := t.TempDir()
	for name, text := range map[string]string{"app.py": "x = 1\n", "lib/deep/er.py": strings.Repeat("y\n", 5000), "lib/empty": "", "na\u00efve/\u65e5\u672c.txt": "z"} {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T, data []byte) {
		a := accept(t, g, data)
		dir, err := g.Path(t.Context(), "main", a)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(everything(t, src), everything(t, dir)); d != "" {
			t.Error(d)
		}
	}
	t.Run("bawn", func(t *testing.T) {
		var b bytes.Buffer
		if _, err := manifest.Pack(src, &b); err != nil {
			t.Fatal(err)
		}
		check(t, b.Bytes())
	})
	t.Run("archive/zip", func(t *testing.T) {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		if err := w.AddFS(os.DirFS(src)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		check(t, b.Bytes())
	})
	for name, args := range map[string][]string{
		"Info-ZIP":            {"zip", "-q", "-r", "OUT", "."},
		"Info-ZIP, no names":  {"zip", "-q", "-r", "-D", "-X", "OUT", "."},
		"Python, shutil":      {"python3", "-c", "import shutil,sys; shutil.make_archive(sys.argv[1][:-4], 'zip', '.')", "OUT"},
		"Python, to a stream": {"python3", "-c", "import zipfile,sys,os\nclass W:\n def __init__(s,f): s.f=f\n def write(s,b): return s.f.write(b)\n def flush(s): s.f.flush()\nz=zipfile.ZipFile(W(open(sys.argv[1],'wb')),'w',zipfile.ZIP_DEFLATED)\nfor d,_,fs in os.walk('.'):\n for f in fs: z.write(os.path.join(d,f))\nz.close()", "OUT"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skipf("%s is not on this machine", args[0])
			}
			out := filepath.Join(t.TempDir(), "out.zip")
			args[len(args)-1] = strings.ReplaceAll(args[len(args)-1], "OUT", out)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "OUT", out)
			}
			c := exec.Command(args[0], args[1:]...)
			c.Dir = src
			if msg, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, msg)
			}
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			check(t, data)
		})
	}
}

func TestAcceptRefusesWhatIsNotTheDigest(t *testing.T) {
	g, _ := newGate(t)
	data := one(file("a", "x"))
	_, err := g.Accept(t.Context(), "main", digestOf([]byte("else")), bytes.NewReader(data))
	if bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Error(err)
	}
	if _, err := g.Accept(t.Context(), "main", "sha256:../../x", bytes.NewReader(data)); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Error(err)
	}
	broken := io.MultiReader(bytes.NewReader(data[:10]), errReader{})
	if _, err := g.Accept(t.Context(), "main", digestOf(data), broken); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Error(err)
	}
	endless := io.LimitReader(zeros{}, bawn.MaxPackageBytes+100)
	if _, err := g.Accept(t.Context(), "main", digestOf(data), endless); bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Error(err)
	}
	if left := everything(t, g.cfg.Dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAcceptEndsWithItsContext(t *testing.T) {
	g, _ := newGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data := one(file("a", "x"))
	if _, err := g.Accept(ctx, "main", digestOf(data), bytes.NewReader(data)); err == nil {
		t.Error("accepted")
	}
	if left := everything(t, g.cfg.Dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAcceptTheSameAtOnce(t *testing.T) {
	g, _ := newGate(t)
	data := one(file("a", "x"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			a, err := g.Accept(t.Context(), "main", digestOf(data), bytes.NewReader(data))
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := g.Path(t.Context(), "main", a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, _ := os.ReadDir(filepath.Join(g.cfg.Dir, stagingName)); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
	if len(g.busy) != 0 {
		t.Errorf("locks are kept: %v", g.busy)
	}
}

// F9: whatever is changed in the unpacked code is found at the next start, and
// the start after it runs what was deployed.
func TestF9TamperedCodeDoesNotStart(t *testing.T) {
	for name, tamper := range map[string]func(dir string) error{
		"content": func(dir string) error { return os.WriteFile(filepath.Join(dir, "app.py"), []byte("evil 1"), 0o644) },
		"content, size and times kept": func(dir string) error {
			p := filepath.Join(dir, "app.py")
			st, err := os.Stat(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(p, []byte("x = 2\n"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, st.ModTime(), st.ModTime())
		},
		"another file put in its place": func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, "new"), []byte("x = 2\n"), 0o644); err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "app.py"))
		},
		"a file more":          func(dir string) error { return os.WriteFile(filepath.Join(dir, "lib/json.py"), nil, 0o644) },
		"a folder more":        func(dir string) error { return os.Mkdir(filepath.Join(dir, "json"), 0o755) },
		"a file less":          func(dir string) error { return os.Remove(filepath.Join(dir, "lib/b.py")) },
		"a link for a file":    func(dir string) error { return swapForLink(filepath.Join(dir, "app.py"), "/etc/passwd") },
		"a link for a folder":  func(dir string) error { return swapForLink(filepath.Join(dir, "lib"), "/etc") },
		"a link for the whole": func(dir string) error { return swapForLink(dir, "/etc") },
		"executable":           func(dir string) error { return os.Chmod(filepath.Join(dir, "app.py"), 0o755) },
		"setuid":               func(dir string) error { return os.Chmod(filepath.Join(dir, "app.py"), 0o644|os.ModeSetuid) },
		"two files' names exchanged": func(dir string) error {
			a, b, c := filepath.Join(dir, "app.py"), filepath.Join(dir, "lib/b.py"), filepath.Join(dir, "c")
			return errors.Join(os.Rename(a, c), os.Rename(b, a), os.Rename(c, b))
		},
	} {
		for _, when := range []string{"after it was unpacked", "after it was checked", "after a restart"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel() // most of it is waiting for the clock
				g, records := newGate(t)
				a := accept(t, g, rawZip{entries: []rawEntry{file("app.py", "x = 1\n"), file("lib/b.py", "y = 1\n")}}.bytes())
				dir, err := g.Path(t.Context(), "main", a)
				if err != nil {
					t.Fatal(err)
				}
				switch when {
				case "after it was checked":
					trust(t, g, a)
				case "after a restart":
					if g, err = New(g.cfg); err != nil {
						t.Fatal(err)
					}
				}
				if err := tamper(dir); err != nil {
					t.Fatal(err)
				}
				if _, err := g.Path(t.Context(), "main", a); bawn.ErrorCode(err) != bawn.CodeUnavailable {
					t.Fatalf("got %v", err)
				}
				if len(*records) != 1 || (*records)[0].Control != "F9" || (*records)[0].Detail["artifact"] != a.Digest {
					t.Errorf("recorded %+v", *records)
				}
				dir, err = g.Path(t.Context(), "main", a)
				if err != nil {
					t.Fatal(err)
				}
				want := map[string]string{"app.py": "-rw-r--r-- x = 1\n", "lib": "drwxr-xr-x", "lib/b.py": "-rw-r--r-- y = 1\n"}
				if d := cmp.Diff(want, everything(t, dir)); d != "" {
					t.Error(d)
				}
				if aside, _ := os.ReadDir(filepath.Join(g.cfg.Dir, tamperedName)); len(aside) != 1 {
					t.Errorf("kept aside: %v", aside)
				}
			})
		}
	}
}

func swapForLink(p, target string) error {
	return errors.Join(os.RemoveAll(p), os.Symlink(target, p))
}

// trust brings the gate to where it goes by the stamps of a tree's files, as
// it does once they have been left alone for a while.
func trust(t testing.TB, g *Gate, a bawn.Artifact) {
	t.Helper()
	hexDigest := strings.TrimPrefix(a.Digest, "sha256:")
	for end := time.Now().Add(30 * time.Second); !g.fresh(hexDigest, a.Tree); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the tree is never trusted")
		}
		if _, err := g.Path(t.Context(), "main", a); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPathKeepsFewOfTheTampered(t *testing.T) {
	g, _ := newGate(t)
	a := accept(t, g, one(file("a", "x")))
	for range maxTampered + 3 {
		dir, err := g.Path(t.Context(), "main", a)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "b"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Path(t.Context(), "main", a); err == nil {
			t.Fatal("not found out")
		}
	}
	if aside, _ := os.ReadDir(filepath.Join(g.cfg.Dir, tamperedName)); len(aside) != maxTampered {
		t.Errorf("%d are kept", len(aside))
	}
}

func TestPathUnpacksAgain(t *testing.T) {
	g, records := newGate(t)
	a := accept(t, g, one(file("a", "x")))
	dir, err := g.Path(t.Context(), "main", a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	again, err := g.Path(t.Context(), "main", a)
	if err != nil || again != dir {
		t.Fatalf("%s %v", again, err)
	}
	if got := everything(t, dir); got["a"] != "-rw-r--r-- x" {
		t.Errorf("%v", got)
	}
	if len(*records) != 0 {
		t.Errorf("a missing folder is recorded as tampering: %v", *records)
	}
	other := a
	other.Tree = digestOf(nil)
	if _, err := g.Path(t.Context(), "main", other); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("another tree: %v", err)
	}
}

func TestPathOfWhatNobodyDeployed(t *testing.T) {
	g, _ := newGate(t)
	if _, err := g.Path(t.Context(), "main", bawn.Artifact{Digest: digestOf(nil), Tree: digestOf(nil)}); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
	if _, err := g.Path(t.Context(), "main", bawn.Artifact{Digest: digestOf(nil)}); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	g, _ := newGate(t)
	kept, gone := accept(t, g, one(file("a", "kept"))), accept(t, g, one(file("a", "gone")))
	half := filepath.Join(g.cfg.Dir, stagingName, "in-123", "tree")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	keep := strings.TrimPrefix(kept.Digest, "sha256:")
	if err := g.Sweep(t.Context(), func(h string) []string {
		if h == keep {
			return []string{"main"}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{stagingName: "drwx------", keep: "drwxr-xr-x", keep + "/a": "-rw-r--r-- kept"}
	if d := cmp.Diff(want, everything(t, g.cfg.Dir)); d != "" {
		t.Error(d)
	}
	if _, err := g.Path(t.Context(), "main", gone); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
	if blobs, err := g.cfg.Blobs.List(t.Context()); err != nil || len(blobs) != 1 || blobs[0] != (store.BlobName{Tenant: "main", Digest: kept.Digest}) {
		t.Errorf("%v %v", blobs, err)
	}
}

func TestRemove(t *testing.T) {
	g, _ := newGate(t)
	a := accept(t, g, one(file("a", "x")))
	for range 2 {
		if err := g.Remove(t.Context(), "main", a.Digest, false); err != nil {
			t.Fatal(err)
		}
	}
	if left := everything(t, g.cfg.Dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if _, err := g.Path(t.Context(), "main", a); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	g, _ := newGate(t)
	// A static program of this machine.
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main(){}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(filepath.Dir(src), "out"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, msg)
	}
	program, err := os.ReadFile(filepath.Join(filepath.Dir(src), "out"))
	if err != nil {
		t.Fatal(err)
	}
	static := string(program)
	foreign := static[:18] + "\x16\x00" + static[20:] // the machine, by its number: an IBM S/390
	x := func(name, data string) rawEntry {
		return rawEntry{name: name, data: []byte(data), mode: 0o100755, host: 3}
	}
	dynamic, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		rt      bawn.Runtime
		handler string
		entries []rawEntry
		want    string // "" is right
	}{
		{"python file", bawn.Python311, "app.handler", []rawEntry{file("app.py", "")}, ""},
		{"python package", bawn.Python312, "app.handler", []rawEntry{file("app/__init__.py", "")}, ""},
		{"python with dots", bawn.Python312, "src.app.handler", []rawEntry{file("src/app.py", "")}, ""},
		{"python with slashes", bawn.Python312, "src/app.handler", []rawEntry{file("src/app.py", "")}, ""},
		{"python compiled", bawn.Python312, "app.handler", []rawEntry{file("app.cpython-312-x86_64-linux-gnu.so", "")}, ""},
		{"python missing", bawn.Python312, "app.handler", []rawEntry{file("main.py", "")}, `no "app.py" for the handler "app.handler"`},
		{"python folder", bawn.Python312, "app.handler", []rawEntry{file("app.py/x", "")}, `no "app.py"`},
		{"node js", bawn.NodeJS20, "index.handler", []rawEntry{file("index.js", "")}, ""},
		{"node mjs nested", bawn.NodeJS22, "src/index.api.handler", []rawEntry{file("src/index.mjs", "")}, ""},
		{"node missing", bawn.NodeJS22, "index.handler", []rawEntry{file("index.ts", "")}, `no "index.js"`},
		{"bootstrap", bawn.Provided, "", []rawEntry{x("bootstrap", static)}, ""},
		{"bootstrap missing", bawn.Provided, "", []rawEntry{x("main", static)}, `no file "bootstrap"`},
		{"bootstrap a folder", bawn.Provided, "", []rawEntry{file("bootstrap/x", "")}, `a folder, not a program`},
		{"bootstrap not executable", bawn.Provided, "", []rawEntry{file("bootstrap", static)}, `is not executable`},
		{"bootstrap a script", bawn.Provided, "", []rawEntry{x("bootstrap", "#!/bin/sh\n")}, `is a script`},
		{"bootstrap text", bawn.Provided, "", []rawEntry{x("bootstrap", "hello")}, `not a program for Linux`},
		{"bootstrap empty", bawn.Provided, "", []rawEntry{x("bootstrap", "")}, `not a program for Linux`},
		{"bootstrap foreign", bawn.Provided, "", []rawEntry{x("bootstrap", foreign)}, `is a program for S390, and this node needs`},
		{"bootstrap dynamic", bawn.Provided, "", []rawEntry{x("bootstrap", string(dynamic))}, `is linked dynamically (it asks for "/lib`},
		{"bootstrap damaged", bawn.Provided, "", []rawEntry{x("bootstrap", static[:54]+"\xff\xff\xff\xff"+static[58:])}, `damaged program headers`},
		{"wasm", bawn.Wasm, "", []rawEntry{file("main.wasm", "\x00asm\x01\x00\x00\x00")}, ""},
		{"wasm named", bawn.Wasm, "a/b.wasm", []rawEntry{file("a/b.wasm", "\x00asm\x01\x00\x00\x00")}, ""},
		{"wasm missing", bawn.Wasm, "", []rawEntry{file("other.wasm", "\x00asm\x01\x00\x00\x00")}, `no module "main.wasm"`},
		{"wasm text", bawn.Wasm, "", []rawEntry{file("main.wasm", "(module)")}, `not a WebAssembly module`},
		{"wasm component", bawn.Wasm, "", []rawEntry{file("main.wasm", "\x00asm\x0d\x00\x01\x00")}, `a WebAssembly component`},
		{"wasm climbs", bawn.Wasm, "../../x.wasm", []rawEntry{file("main.wasm", "")}, `cannot be read`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := accept(t, g, rawZip{entries: c.entries}.bytes())
			err := g.Check(t.Context(), "main", a, c.rt, c.handler)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var e *bawn.Error
			if !errors.As(err, &e) || !strings.Contains(e.Message, c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// Whatever comes: nothing is written outside, nothing is left of what is
// refused, and what is accepted is what archive/zip too finds in it.
func FuzzAccept(f *testing.F) {
	for _, h := range hostile() {
		if len(h.data) < 64<<10 {
			f.Add(h.data)
		}
	}
	f.Add(rawZip{entries: []rawEntry{file("a", "x"), {name: "d/"}, {name: "d/b", data: []byte(strings.Repeat("y", 99)), method: -1}}}.bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		around := t.TempDir()
		dir := filepath.Join(around, "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		entries, err := readZip(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		nodes, err := unpack(t.Context(), bytes.NewReader(data), entries, dir)
		if out, _ := os.ReadDir(around); len(out) != 1 {
			t.Fatalf("written outside: %v", out)
		}
		if err != nil {
			if c := bawn.ErrorCode(err); c != bawn.CodeUnprocessable && c != bawn.CodeTooLarge {
				t.Fatalf("refused for no reason: %v", err)
			}
			return
		}
		if _, err := checkTree(t.Context(), dir, treeDigest(nodes)); err != nil {
			t.Fatal(err)
		}
		z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatalf("accepted, and archive/zip says %v", err)
		}
		if len(z.File) != len(entries) {
			t.Fatalf("archive/zip finds %d entries, not %d", len(z.File), len(entries))
		}
		for _, e := range z.File {
			if strings.HasSuffix(e.Name, "/") {
				continue
			}
			r, err := e.Open()
			if err != nil {
				t.Fatalf("%q: %v", e.Name, err)
			}
			want, err := io.ReadAll(r)
			if err != nil {
				t.Fatalf("%q: %v", e.Name, err)
			}
			got, err := os.ReadFile(filepath.Join(dir, e.Name))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q is unpacked to other bytes: %v", e.Name, err)
			}
		}
	})
}

// What a cold start pays for the check of code that nobody touched.
func BenchmarkPath(b *testing.B) {
	for _, files := range []int{2, 1000} {
		b.Run(fmt.Sprintf("%d files", files), func(b *testing.B) {
			g, _ := newGate(b)
			var z rawZip
			for i := range files {
				z.entries = append(z.entries, file(fmt.Sprintf("lib/m%d.py", i), "x = 1\n"))
			}
			a := accept(b, g, z.bytes())
			trust(b, g, a)
			for b.Loop() {
				if _, err := g.Path(b.Context(), "main", a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
