package manifest

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bawn.dev/bawn"
	"github.com/google/go-cmp/cmp"
)

// folder makes files from names to contents; a name ending in * may be executed.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		name, x := strings.CutSuffix(name, "*")
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if x {
			mode = 0o700
		}
		if err := os.WriteFile(p, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// packed returns what is in the package of dir, names to contents.
func packed(t *testing.T, dir string) (map[string]string, PackInfo) {
	t.Helper()
	var b bytes.Buffer
	info, err := Pack(dir, &b)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	if info.Digest != "sha256:"+hex.EncodeToString(sum[:]) || info.Size != int64(b.Len()) {
		t.Errorf("wrong digest or size: %+v", info)
	}
	z, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var names []string
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := f.Name
		switch f.Mode() {
		case 0o755:
			name += "*"
		case 0o644:
		default:
			t.Errorf("%s has mode %v", name, f.Mode())
		}
		got[name] = string(data)
		names = append(names, f.Name)
	}
	if !slices.IsSorted(names) {
		t.Errorf("not in order: %q", names)
	}
	return got, info
}

func TestPackIsDeterministic(t *testing.T) {
	files := map[string]string{"app.py": "x = 1\n", "lib/b.py": strings.Repeat("b", 100000), "lib/a.py": "", "bin/tool*": "#!"}
	one, two := folder(t, files), folder(t, files)
	past := time.Now().Add(-100 * time.Hour)
	if err := os.Chtimes(filepath.Join(two, "app.py"), past, past); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(two, "app.py"), 0o664); err != nil {
		t.Fatal(err)
	}
	got, a := packed(t, one)
	_, b := packed(t, two)
	if a != b {
		t.Errorf("equal folders give %+v and %+v", a, b)
	}
	if d := cmp.Diff(files, got); d != "" {
		t.Error(d)
	}
	if a.Files != 4 || a.Bytes != 100008 {
		t.Errorf("%+v", a)
	}
	if err := os.Chmod(filepath.Join(two, "app.py"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, c := packed(t, two); c.Digest == a.Digest {
		t.Error("the executable bit does not count")
	}
}

func TestPackLeavesOut(t *testing.T) {
	dir := folder(t, map[string]string{
		"bawn.yaml": "functions:", "sub/bawn.yaml": "kept", "app.py": "", ".git/config": "", "a/.git/x": "",
		"node_modules/.bin/tsc*": "", "node_modules/left/index.js": "", "x/__pycache__/a.pyc": "",
		"notes.md": "", "docs/notes.md": "", "docs/keep.md": "", "build/out.o": "", "src/build/x": "",
		"tmp1": "", "tmp22": "", "deep/a/b/c.log": "", "c.log": "", "only/top": "", "x/only/top": "", "#odd": "",
		IgnoreName: "# comment\n\n*.md\n!keep.md\n/build/\ntmp?\ndeep/**/*.log\nonly/top\nmissing/\n",
	})
	got, _ := packed(t, dir)
	var names []string
	for n := range got {
		names = append(names, n)
	}
	slices.Sort(names)
	want := []string{"#odd", "app.py", "c.log", "docs/keep.md", "node_modules/left/index.js", "src/build/x", "sub/bawn.yaml", "tmp22", "x/only/top"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
}

func TestIgnoreTakesBackIn(t *testing.T) {
	dir := folder(t, map[string]string{"bawn.yaml": "m", "__pycache__/a.pyc": "c", IgnoreName: "!bawn.yaml\n!__pycache__/\n"})
	got, _ := packed(t, dir)
	if d := cmp.Diff(map[string]string{"bawn.yaml": "m", "__pycache__/a.pyc": "c"}, got); d != "" {
		t.Error(d)
	}
}

func TestGlobs(t *testing.T) {
	split := func(s string) []string { return strings.Split(s, "/") }
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"**/a", "a", true}, {"**/a", "x/y/a", true}, {"**/a", "x/ab", false}, {"a/**", "a/b/c", true}, {"a/**/z", "a/z", true},
		{"a/**/z", "a/b/c/z", true}, {"a/**/z", "b/z", false}, {"a/*/z", "a/b/c/z", false}, {"[a-c]x", "bx", true}, {"*", "a/b", false},
		{strings.Repeat("**/*a/", 30) + "b", strings.Repeat("aa/", 60) + "c", false}, // would take for ever if it were tried by backtracking
	} {
		if got := globs(split(c.glob), split(c.name)); got != c.want {
			t.Errorf("%.40s on %.40s: %v", c.glob, c.name, got)
		}
	}
}

func TestPackRefuses(t *testing.T) {
	link := folder(t, map[string]string{"app.py": "", "sub/x": ""})
	if err := os.Symlink("/etc/passwd", filepath.Join(link, "sub/link")); err != nil {
		t.Fatal(err)
	}
	dirLink := folder(t, map[string]string{"app.py": ""})
	if err := os.Symlink("..", filepath.Join(dirLink, "up")); err != nil {
		t.Fatal(err)
	}
	pipe := folder(t, map[string]string{"app.py": ""})
	if err := syscall.Mkfifo(filepath.Join(pipe, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(folder(t, map[string]string{"code.zip": "hello"}), "code.zip")
	deep := folder(t, map[string]string{strings.Repeat("d/", 33) + "x": ""})
	badName := folder(t, map[string]string{"a\\b": ""})
	latin := folder(t, map[string]string{"caf\xe9": ""})
	badGlob := folder(t, map[string]string{"a": "", IgnoreName: "ok\n[a\n"})
	for name, c := range map[string]struct{ src, want string }{
		"symlink":        {link, `"sub/link" is a symbolic link (to "/etc/passwd"); packages hold no links`},
		"folder symlink": {dirLink, `"up" is a symbolic link (to ".."); packages hold no links`},
		"pipe":           {pipe, `"pipe" is a pipe, not a file`},
		"no zip":         {text, `is a file, and not a zip`},
		"missing":        {filepath.Join(link, "nothing"), `does not exist`},
		"empty":          {t.TempDir(), `holds nothing to pack`},
		"deep":           {deep, `deeper than 32 folders`},
		"backslash":      {badName, `the name "a\\b" has a backslash`},
		"not UTF-8":      {latin, `the name "caf\xe9" is not UTF-8`},
		"bad glob":       {badGlob, `.bawnignore:2: "[a" is not a glob`},
	} {
		_, err := Pack(c.src, io.Discard)
		var e *bawn.Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}

func TestPackStopsAtTheLimit(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(bawn.MaxUnpackedBytes + 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := Pack(dir, io.Discard); bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Errorf("unpacked: %v", err)
	}
	z := filepath.Join(t.TempDir(), "x.zip")
	if err := os.WriteFile(z, []byte("PK\x03\x04"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(z, bawn.MaxPackageBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(z, io.Discard); bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Errorf("packed: %v", err)
	}
}

func TestPackPassesAZipOn(t *testing.T) {
	var b bytes.Buffer
	if _, err := Pack(folder(t, map[string]string{"app.py": "x"}), &b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.zip")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	info, err := Pack(file, &out)
	if err != nil || !bytes.Equal(out.Bytes(), b.Bytes()) || info.Size != int64(b.Len()) {
		t.Errorf("%+v %v", info, err)
	}
}
