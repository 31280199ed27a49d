package backup

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"

	"bawn.dev/bawn"
)

var blobName = Blobs + strings.Repeat("ab", 32)

func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) }

func archive(t testing.TB, s Secret) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, s, Head{Node: "n", Tables: map[string]int{"keys": 1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range [][2]string{{NodePrefix + "root.secret", "secret"}, {ChunkName("keys", 0), `{"key":"a","value":1}` + "\n"}, {blobName, strings.Repeat("x", 200_000)}, {Audit + "checkpoint", "c"}} {
		if err := w.AddBytes(f[0], []byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(testKey()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readAll(r io.Reader, ids []age.Identity) (names []string, err error) {
	in, err := NewReader(r, ids)
	if err != nil {
		return nil, err
	}
	for {
		name, err := in.Next()
		if err != nil {
			return names, err
		}
		if IsEnd(name) {
			return names, in.End(testKey().Public().(ed25519.PublicKey))
		}
		names = append(names, name)
	}
}

func TestArchive(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	data := archive(t, Secret{Recipients: []string{id.Recipient().String()}})
	if names, err := readAll(bytes.NewReader(data), []age.Identity{id}); err != nil || len(names) != 4 {
		t.Fatal(names, err)
	}
	if bytes.Contains(data, []byte("xxxxxxxx")) || bytes.Contains(data, []byte("root.secret")) {
		t.Error("the archive is not encrypted")
	}
	if _, err := readAll(bytes.NewReader(data), []age.Identity{other}); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("another key: %v", err)
	}
	for n := 0; n < len(data); n += 997 {
		if _, err := readAll(bytes.NewReader(data[:n]), []age.Identity{id}); err == nil {
			t.Errorf("cut at %d of %d: taken for whole", n, len(data))
		}
		bad := bytes.Clone(data)
		bad[n] ^= 1
		if _, err := readAll(bytes.NewReader(bad), []age.Identity{id}); err == nil {
			t.Errorf("byte %d changed: taken for whole", n)
		}
	}
	if _, err := readAll(bytes.NewReader(append(bytes.Clone(data), 'x')), []age.Identity{id}); err == nil {
		t.Error("bytes after the end are not found")
	}
}

func TestPassphrase(t *testing.T) {
	data := archive(t, Secret{Passphrase: "correct horse battery"})
	ids, err := Passphrase("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(bytes.NewReader(data), ids); err != nil {
		t.Error(err)
	}
	if ids, err = Passphrase("wrong horse battery"); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(bytes.NewReader(data), ids); err == nil {
		t.Error("another passphrase opens it")
	}
}

func TestSecretIsChecked(t *testing.T) {
	for _, s := range []Secret{
		{}, {Passphrase: "short"}, {Recipients: []string{"age1"}}, {Recipients: []string{"AGE-SECRET-KEY-1"}},
		{Recipients: []string{"x"}, Passphrase: "correct horse battery"}, {Recipients: make([]string, maxRecipients+1)},
	} {
		if s.Check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}

// What is inside may be hostile too: whoever has the recipient can encrypt to it.
func TestHostileArchive(t *testing.T) {
	head := `{"format":1}`
	for name, h := range map[string]tar.Header{
		"a path that leads out":  {Name: "audit/../../etc/passwd", Typeflag: tar.TypeReg},
		"an absolute path":       {Name: "/etc/passwd", Typeflag: tar.TypeReg},
		"a hidden file":          {Name: "audit/.ssh/key", Typeflag: tar.TypeReg},
		"another file":           {Name: "node/authorized_keys", Typeflag: tar.TypeReg},
		"a link":                 {Name: "audit/checkpoint", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"a hard link":            {Name: "audit/checkpoint", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
		"a device":               {Name: "audit/checkpoint", Typeflag: tar.TypeChar},
		"a folder":               {Name: "audit/tile", Typeflag: tar.TypeDir},
		"a table out of grammar": {Name: "tables/a.b/00000000.jsonl", Typeflag: tar.TypeReg},
		"a file too large":       {Name: "node/ca.pem", Typeflag: tar.TypeReg, Size: maxNode + 1},
		"a table too large":      {Name: ChunkName("keys", 0), Typeflag: tar.TypeReg, Size: maxRows + 1},
		"the head again":         {Name: HeadFile, Typeflag: tar.TypeReg},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		w.WriteHeader(&tar.Header{Name: HeadFile, Typeflag: tar.TypeReg, Size: int64(len(head))})
		io.WriteString(w, head)
		w.WriteHeader(&h)
		w.Flush()
		in, err := newReader(&out)
		if err != nil {
			t.Fatal(err)
		}
		_, err = in.Next()
		if c := bawn.ErrorCode(err); c != bawn.CodeUnprocessable && c != bawn.CodeTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzArchive(f *testing.F) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range [][2]string{{HeadFile, `{"format":1}`}, {"node/ca.pem", "x"}, {endFile, "{}"}} {
		w.WriteHeader(&tar.Header{Name: e[0], Typeflag: tar.TypeReg, Size: int64(len(e[1]))})
		io.WriteString(w, e[1])
	}
	w.Close()
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := newReader(bytes.NewReader(data))
		for err == nil {
			var name string
			if name, err = in.Next(); err == nil && IsEnd(name) {
				if err = in.End(testKey().Public().(ed25519.PublicKey)); err == nil {
					t.Fatal("an archive that nobody signed is whole")
				}
			}
			if err == nil && (strings.Contains(name, "..") || strings.HasPrefix(name, "/")) {
				t.Fatalf("%q is let through", name)
			}
		}
		var known *bawn.Error
		if !errors.As(err, &known) {
			t.Fatalf("%v is no error for a caller", err)
		}
	})
}
