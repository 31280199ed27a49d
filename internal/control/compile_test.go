package control

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
	"github.com/google/go-cmp/cmp"
)

// compiler is a plane that compiles a module to its own text, and how often it
// was asked.
func compiler(t *testing.T) (p *plane, calls *int) {
	p, calls = open(t), new(int)
	p.compile = func(v *bawn.Version, code string) (map[string][]byte, error) {
		*calls++
		b, err := os.ReadFile(filepath.Join(code, v.Handler))
		if err != nil {
			return nil, err
		}
		if bytes.Contains(b, []byte("broken")) {
			return nil, bawn.Errorf(bawn.CodeUnprocessable, "compile", "the module is broken")
		}
		return map[string][]byte{"cache/b": b, "cache/a": make([]byte, 4<<20)}, nil
	}
	return p, calls
}

func module(t *testing.T, p *plane, text string) (digest string) {
	t.Helper()
	data, digest := file(t, "main.wasm", "\x00asm\x01\x00\x00\x00"+text)
	if _, err := p.PutArtifact(t.Context(), admin, digest, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return digest
}

func wasm(f *manifest.Function) { f.Runtime, f.Handler = bawn.Wasm, "" }

func TestCompile(t *testing.T) {
	p, calls := compiler(t)
	ctx := t.Context()
	digest := module(t, p, "one")
	uploaded := p.state()
	if d, err := p.Deploy(ctx, admin, "a", spec(wasm), digest, true); err != nil || *calls != 0 || d.Version.Compiled != nil {
		t.Errorf("a dry run: %d compilations, %+v, %v", *calls, d, err)
	}
	p.deploy("snake", p.upload(admin, "one"))
	if *calls != 0 {
		t.Error("Python was compiled")
	}
	if err := p.Remove(ctx, admin, "snake"); err != nil {
		t.Fatal(err)
	}

	d := p.deploy("a", digest, wasm)
	made := d.Version.Compiled
	if *calls != 1 || made == nil || made.Files != 2 {
		t.Fatalf("%d compilations, %+v", *calls, d)
	}
	dir, err := p.gate.Path(ctx, "main", *made)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cache/b")); err != nil || !strings.HasSuffix(string(b), "one") {
		t.Errorf("compiled: %q, %v", b, err)
	}
	if stored, _, _ := p.versions.Get(versionKey("main", "a", 1)); stored.Compiled == nil || *stored.Compiled != *made {
		t.Errorf("stored %+v", stored.Compiled)
	}
	bare := d.Version
	bare.Compiled = nil
	if got, err := contentDigest(&bare); err != nil || got != d.Version.Digest {
		t.Errorf("what was compiled is part of the content: %s, %v", got, err)
	}
	err = p.Events(ctx, admin, evidence.Query{Function: "a", Kinds: []bawn.RecordKind{bawn.KindChange}}, func(r bawn.Record) error {
		if r.Detail["compiled"] != made.Digest {
			t.Errorf("recorded %v", r.Detail)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	// The same content is there already, and needs no compiler.
	if d := p.deploy("a", digest, wasm); *calls != 1 || d.Created || d.Version.Compiled == nil {
		t.Errorf("again: %d compilations, %+v", *calls, d)
	}
	// What is compiled twice is one package.
	if d := p.deploy("b", digest, wasm); *calls != 2 || d.Version.Compiled.Digest != made.Digest {
		t.Errorf("another function: %d compilations, %+v", *calls, d)
	}

	// It is in use, however old it is and across restarts.
	p.now = p.now.Add(3 * unusedFor)
	p.reopen()
	if err := p.Remove(ctx, admin, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.gate.Path(ctx, "main", *made); err != nil {
		t.Errorf("gone while it was in use: %v", err)
	}
	if err := p.Remove(ctx, admin, "b"); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{digest, made.Digest} {
		if has, err := p.gate.Has(ctx, "main", digest); has || err != nil {
			t.Errorf("%s is left: %v", digest, err)
		}
	}
	for what := range p.state() {
		if _, before := uploaded[what]; !before {
			t.Errorf("left: %s", what)
		}
	}
}

// A deploy that is refused leaves nothing of what was compiled for it.
func TestCompileRefused(t *testing.T) {
	p, calls := compiler(t)
	ctx := t.Context()
	p.deploy("other", p.upload(admin, "one"), route("GET", "/taken"))
	good, broken := module(t, p, "good"), module(t, p, "broken")
	before := p.state()
	_, err := p.Deploy(ctx, admin, "f", spec(wasm), broken, false)
	wantCode(t, err, bawn.CodeUnprocessable, "the module is broken")
	_, err = p.Deploy(ctx, admin, "f", spec(wasm, route("GET", "/taken")), good, false)
	wantCode(t, err, bawn.CodeConflict, "is taken")
	if *calls != 2 {
		t.Errorf("%d compilations", *calls)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	// The package goes while the compiler runs.
	key := artifactKey("main", good)
	inner := p.compile
	p.compile = func(v *bawn.Version, code string) (map[string][]byte, error) {
		files, err := inner(v, code)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return files, p.dropArtifact(ctx, key, good)
	}
	_, err = p.Deploy(ctx, admin, "f", spec(wasm), good, false)
	wantCode(t, err, bawn.CodeNotFound, "no package")
	delete(before, "artifact "+key)
	delete(before, "folder "+strings.TrimPrefix(good, "sha256:"))
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
}

// A crash between compiling and storing leaves a package that nothing refers
// to, and the next start drops it.
func TestCompileInterrupted(t *testing.T) {
	p, _ := compiler(t)
	digest := module(t, p, "one")
	row, _, _ := p.artifacts.Get(artifactKey("main", digest))
	before := p.state()
	a, err := p.Control.compile(t.Context(), &bawn.Version{Tenant: "main", Runtime: bawn.Wasm, Handler: "main.wasm", Artifact: row.Artifact})
	if err != nil {
		t.Fatal(err)
	}
	if cmp.Diff(before, p.state()) == "" {
		t.Fatal("nothing was taken in")
	}
	p.reopen()
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	if has, err := p.gate.Has(t.Context(), "main", a.Digest); has || err != nil {
		t.Errorf("left: %v", err)
	}
}

func TestPackCompiled(t *testing.T) {
	files := map[string][]byte{"d/one": []byte(strings.Repeat("one", 1000)), "d/two": make([]byte, 3<<20), "empty": nil}
	first, err := packCompiled(files)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 { // maps have no order
		if again, err := packCompiled(maps.Clone(files)); err != nil || !bytes.Equal(first, again) {
			t.Fatalf("another zip, %v", err)
		}
	}
	half := make([]byte, bawn.MaxUnpackedBytes/2+1)
	_, err = packCompiled(map[string][]byte{"a": half, "b": half})
	wantCode(t, err, bawn.CodeTooLarge, "machine code")
	noise := make([]byte, bawn.MaxPackageBytes+1)
	for i, x := 0, uint64(88172645463325252); i < len(noise); i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		noise[i] = byte(x)
	}
	_, err = packCompiled(map[string][]byte{"a": noise})
	wantCode(t, err, bawn.CodeTooLarge, "packed")
}
