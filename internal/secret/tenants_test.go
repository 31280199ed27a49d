package secret

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"bawn.dev/bawn"
)

func open(t testing.TB, dir string, wrap byte) *TenantKeys {
	t.Helper()
	k, err := OpenTenantKeys(dir, bytes.Repeat([]byte{wrap}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, code bawn.Code) {
	t.Helper()
	if got := bawn.ErrorCode(err); got != code {
		t.Errorf("%s: got code %q (%v), want %q", what, got, err, code)
	}
}

func TestTenantKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tenants")
	k := open(t, dir, 1)
	must(t, k.Make("acme"))
	must(t, k.Make("rival"))
	sealed, err := k.Seal("acme", "row 1", []byte("marker"))
	must(t, err)
	if bytes.Contains(sealed, []byte("marker")) || sealed[0] != 1 {
		t.Fatalf("%q", sealed)
	}
	again, err := k.Seal("acme", "row 1", []byte("marker"))
	must(t, err)
	if bytes.Equal(sealed, again) {
		t.Error("the same is sealed to the same")
	}
	must(t, k.Make("acme")) // keeps the key
	k = open(t, dir, 1)
	if data, err := k.Open("acme", "row 1", sealed); err != nil || string(data) != "marker" {
		t.Fatal(string(data), err)
	}
	_, err = k.Open("acme", "row 2", sealed)
	wantCode(t, "another place", err, bawn.CodeUnprocessable)
	_, err = k.Open("rival", "row 1", sealed)
	wantCode(t, "another tenant", err, bawn.CodeUnprocessable)
	_, err = k.Open("nobody", "row 1", sealed)
	wantCode(t, "no tenant", err, bawn.CodeUnavailable)
	_, err = k.Seal("../x", "row 1", nil)
	wantCode(t, "no name", err, bawn.CodeUnavailable)
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open("acme", "row 1", bad); err == nil {
			t.Fatalf("byte %d changed: opened", i)
		}
	}

	// The file is of use to this node and this tenant alone.
	_, err = open(t, dir, 2).Open("acme", "row 1", sealed)
	wantCode(t, "another node", err, bawn.CodeUnavailable)
	copyDir := filepath.Join(t.TempDir(), "tenants")
	must(t, os.CopyFS(copyDir, os.DirFS(dir)))
	must(t, os.Rename(filepath.Join(copyDir, "acme.key"), filepath.Join(copyDir, "rival.key")))
	_, err = open(t, copyDir, 1).Open("rival", "row 1", sealed)
	wantCode(t, "a file under another name", err, bawn.CodeUnavailable)
	if info, err := os.Stat(filepath.Join(dir, "acme.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}

	if bad := k.Changed(); len(bad) > 0 {
		t.Error("changed:", bad)
	}
	must(t, os.WriteFile(filepath.Join(dir, "acme.key"), []byte("x"), 0o600))
	if bad := k.Changed(); len(bad) != 1 || bad[0] != "acme" {
		t.Error("changed:", bad)
	}
	must(t, k.Destroy("acme"))
	must(t, k.Destroy("acme"))
	_, err = k.Open("acme", "row 1", sealed)
	wantCode(t, "destroyed", err, bawn.CodeUnavailable)
	if _, err := os.Stat(filepath.Join(dir, "acme.key")); !os.IsNotExist(err) {
		t.Error("the file is there still")
	}
	must(t, k.Make("acme"))
	_, err = k.Open("acme", "row 1", sealed)
	wantCode(t, "made anew", err, bawn.CodeUnprocessable)
}

// A damaged key is told, and never replaced.
func TestDamagedKeyIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tenants")
	must(t, open(t, dir, 1).Make("acme"))
	name := filepath.Join(dir, "acme.key")
	whole, err := os.ReadFile(name)
	must(t, err)
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		must(t, os.WriteFile(name, bad, 0o600))
		k := open(t, dir, 1)
		if k.Make("acme") == nil { // what is beside the key in the file is of no matter
			if _, err := k.Seal("acme", "x", nil); err != nil {
				t.Errorf("byte %d: %v", i, err)
			}
		}
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, bad) {
			t.Fatalf("byte %d: the file was replaced", i)
		}
	}
	must(t, os.WriteFile(name, bytes.Repeat([]byte("x"), maxFile+1), 0o600))
	wantCode(t, "too large", open(t, dir, 1).Make("acme"), bawn.CodeUnavailable)
}

func FuzzKeyFile(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "tenants")
	must(f, open(f, dir, 1).Make("acme"))
	whole, err := os.ReadFile(filepath.Join(dir, "acme.key"))
	must(f, err)
	f.Add(whole)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		open(t, dir, 1).unwrap("acme", data)
		if _, err := open(t, dir, 2).unwrap("acme", data); err == nil {
			t.Error("a key is taken that another node wrapped")
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := open(f, filepath.Join(f.TempDir(), "tenants"), 1)
	must(f, k.Make("acme"))
	sealed, err := k.Seal("acme", "row", []byte("{}"))
	must(f, err)
	f.Add("row", sealed)
	f.Add("row", []byte("{}"))
	f.Fuzz(func(t *testing.T, what string, data []byte) {
		if got, err := k.Open("acme", what, data); err == nil && (what != "row" || !bytes.Equal(data, sealed) || string(got) != "{}") {
			t.Error("what was not sealed is opened")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k := open(b, filepath.Join(b.TempDir(), "tenants"), 1)
	must(b, k.Make("acme"))
	for _, n := range []int{1 << 10, 16 << 10} {
		data := make([]byte, n)
		b.Run(map[int]string{1 << 10: "1KiB", 16 << 10: "16KiB"}[n], func(b *testing.B) {
			for b.Loop() {
				k.Seal("acme", "message\nlogs\nacme.shop", data)
			}
		})
	}
	sealed, err := k.Seal("acme", "row", make([]byte, 1<<10))
	must(b, err)
	b.Run("open 1KiB", func(b *testing.B) {
		for b.Loop() {
			k.Open("acme", "row", sealed)
		}
	})
}
