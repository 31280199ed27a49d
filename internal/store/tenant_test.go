package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// testSealer has a key for every tenant but those that are gone.
type testSealer struct{ gone map[string]bool }

func (s testSealer) aead(tenant string) (cipher.AEAD, error) {
	if s.gone[tenant] {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "test", "the key of the tenant %s is missing", tenant)
	}
	key := sha256.Sum256([]byte(tenant))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s testSealer) Seal(tenant, what string, data []byte) ([]byte, error) {
	a, err := s.aead(tenant)
	if err != nil {
		return nil, err
	}
	return a.Seal([]byte{sealedMark}, nil, data, []byte(what)), nil
}

func (s testSealer) Open(tenant, what string, sealed []byte) ([]byte, error) {
	a, err := s.aead(tenant)
	if err != nil {
		return nil, err
	}
	data, err := a.Open(nil, nil, sealed[1:], []byte(what))
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "test", "it was sealed for something else")
	}
	return data, nil
}

func openSealed(t testing.TB, dir string, gone ...string) *Store {
	t.Helper()
	missing := map[string]bool{}
	for _, tenant := range gone {
		missing[tenant] = true
	}
	s, err := Open(t.Context(), Config{Dir: dir, Sealer: testSealer{missing}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// holding returns the files below dir that hold text.
func holding(t testing.TB, dir, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What is a tenant's is on the disk encrypted alone; what is the node's is as it was.
func TestTenantsAreSealed(t *testing.T) {
	dir := t.TempDir()
	s := openSealed(t, dir)
	tb := table(t, s)
	for _, key := range []string{"acme.a", "rival.a", "acme"} {
		if _, err := tb.Create(t.Context(), key, thing{"marker-" + key, 1}); err != nil {
			t.Fatal(err)
		}
	}
	st := stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20})
	if err := st.Publish(t.Context(), "acme.shop", []byte(`{"text":"marker-line"}`), time.Hour); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, text := range []string{"marker-acme.a", "marker-rival.a", "marker-line"} {
		if files := holding(t, dir, text); len(files) > 0 {
			t.Errorf("%s is in clear in %v", text, files)
		}
	}
	if len(holding(t, dir, `"marker-acme"`)) == 0 {
		t.Error("what is the node's own is not found: the search does not work")
	}

	// One tenant without its key loses what it has, and no other does.
	s = openSealed(t, dir, "acme")
	tb = table(t, s)
	if v, _, ok := tb.Get("rival.a"); !ok || v.Name != "marker-rival.a" {
		t.Error("the other tenant:", v, ok)
	}
	if _, _, _, err := tb.Find("acme.a"); bawn.ErrorCode(err) != bawn.CodeUnavailable || !strings.Contains(err.Error(), "missing") {
		t.Error("without its key:", err)
	}
	if d := s.Damaged(); len(d) != 1 || d[0].Key != "acme.a" || !d[0].Refused {
		t.Error(d)
	}
	if _, err := tb.Create(t.Context(), "rival.b", thing{}); err != nil {
		t.Error("the other tenant's write:", err)
	}
	if _, err := tb.Create(t.Context(), "acme.b", thing{}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Error("a write without a key:", err)
	}
	st = stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20})
	wantCode(t, st.Read(t.Context(), ReadConfig{}, func(Message) error { return nil }), bawn.CodeUnavailable)
	s.Close()

	// With the key back everything is there.
	s = openSealed(t, dir)
	if v, _, ok := table(t, s).Get("acme.a"); !ok || v.Name != "marker-acme.a" || len(s.Damaged()) > 0 {
		t.Error(v, ok, s.Damaged())
	}
	if got := texts(t, stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20}), ReadConfig{}); len(got) != 1 || !strings.Contains(got[0], "marker-line") {
		t.Error(got)
	}
}

// A row or a message that was moved, within a tenant too, is refused, whatever the
// manifest says.
func TestSealedIsBoundToItsPlace(t *testing.T) {
	s := openSealed(t, t.TempDir())
	for _, c := range []struct{ from, to place }{
		{rowPlace("things", "acme.a"), rowPlace("things", "acme.b")},
		{rowPlace("things", "acme.a"), rowPlace("others", "acme.a")},
		{rowPlace("things", "acme.a"), rowPlace("things", "rival.a")},
		{messagePlace("logs", "acme.a"), messagePlace("logs", "acme.b")},
		{messagePlace("logs", "acme.a"), rowPlace("logs", "acme.a")},
	} {
		stored, err := s.seal(c.from, []byte(`{"name":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		if data, _, err := s.unseal(c.from, stored); err != nil || string(data) != `{"name":"x"}` {
			t.Error(string(data), err)
		}
		if _, _, err := s.unseal(c.to, stored); bawn.ErrorCode(err) != bawn.CodeUnprocessable {
			t.Errorf("%v at %v: %v", c.from, c.to, err)
		}
	}

	// A message that somebody moved does not hide those beside it.
	st := stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20})
	moved, err := s.seal(messagePlace(st.name, "acme.a"), []byte(`{"text":"moved"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.js.Publish(t.Context(), st.prefix+"acme.b", moved); err != nil {
		t.Fatal(err)
	}
	if err := st.Publish(t.Context(), "acme.b", []byte(`{"text":"good"}`), 0); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, st, ReadConfig{}); len(got) != 1 || !strings.Contains(got[0], "good") {
		t.Error(got)
	}
	if got := newest(t, st, 9, ReadConfig{}); len(got) != 1 {
		t.Error(got)
	}
}

const clearRows = 60

// plain is a store as a Bawn that did not encrypt left it.
func plain(t testing.TB, dir string) {
	t.Helper()
	s := open(t, dir)
	tb := table(t, s)
	for i := range clearRows {
		if _, err := tb.Create(t.Context(), fmt.Sprintf("acme.k%d", i), thing{"marker", i}); err != nil {
			t.Fatal(err)
		}
	}
	st := stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20})
	if err := st.Publish(t.Context(), "acme.shop", []byte(`{"text":"old"}`), 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func wantSealed(t *testing.T, s *Store) {
	t.Helper()
	tb := table(t, s)
	if err := tb.Trusted(); err != nil || len(s.Damaged()) > 0 || tb.Len() != clearRows {
		t.Fatal(err, s.Damaged(), tb.Len())
	}
	err := s.scan(t.Context(), scanRange{stream: "KV_things", subject: tb.prefix + ">", from: 1}, func(m rawMessage) error {
		if m.data[0] != sealedMark {
			t.Errorf("%s is in clear", m.subject)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range clearRows {
		if v, _, ok := tb.Get(fmt.Sprintf("acme.k%d", i)); !ok || v != (thing{"marker", i}) {
			t.Error(i, v, ok)
		}
	}
	if r, err := s.Check(t.Context()); err != nil || len(r.Damage) > 0 {
		t.Error(r, err)
	}
}

func TestUpgradeSealsRows(t *testing.T) {
	dir := t.TempDir()
	plain(t, dir)
	// While there is no key the rows stay as they are, and are good.
	s := openSealed(t, dir, "acme")
	if tb := table(t, s); tb.Trusted() != nil || tb.Len() != clearRows {
		t.Fatal(tb.Trusted(), tb.Len())
	}
	s.Close()
	s = openSealed(t, dir)
	wantSealed(t, s)
	st := stream(t, s, StreamConfig{Name: "logs", MaxBytes: 1 << 20})
	if got := texts(t, st, ReadConfig{}); len(got) != 1 || !strings.Contains(got[0], "old") {
		t.Error("lines from before:", got)
	}
	s.Close()
	s = openSealed(t, dir)
	wantSealed(t, s)
}

func childSeals(dir string) {
	ctx := context.Background()
	s, err := Open(ctx, Config{Dir: dir, Sealer: testSealer{}})
	if err == nil {
		fmt.Println("open")
		_, err = OpenTable[thing](ctx, s, "things")
	}
	fmt.Println("done", err)
	os.Exit(0)
}

// An upgrade that is killed on its way loses nothing, and the next start brings it
// to its end.
func TestKillWhileRowsAreSealed(t *testing.T) {
	dir := t.TempDir()
	plain(t, dir)
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=seal", "STORE_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		if !sc.Scan() || sc.Text() != "open" {
			t.Fatalf("the child said %q", sc.Text())
		}
		time.Sleep(time.Duration(round) * 4 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	wantSealed(t, openSealed(t, dir))
}

// BenchmarkOpenThousand opens a table of 1,000 rows, in clear and sealed.
func BenchmarkOpenThousand(b *testing.B) {
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%v", sealed), func(b *testing.B) {
			dir := b.TempDir()
			begin := func() *Store {
				if sealed {
					return openSealed(b, dir)
				}
				return open(b, dir)
			}
			s := begin()
			tb := table(b, s)
			for i := range 1000 {
				if _, err := tb.Create(b.Context(), fmt.Sprintf("acme.f%d.1", i), thing{strings.Repeat("x", 800), i}); err != nil {
					b.Fatal(err)
				}
			}
			s.Close()
			for b.Loop() {
				b.StopTimer()
				s := begin()
				b.StartTimer()
				table(b, s)
				b.StopTimer()
				s.Close()
				b.StartTimer()
			}
		})
	}
}

func FuzzUnseal(f *testing.F) {
	s := &Store{sealer: testSealer{}}
	good, err := s.seal(rowPlace("things", "acme.a"), []byte(`{"name":"x"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("acme.a", good)
	f.Add("acme.a", []byte(`{"name":"x"}`))
	f.Add("acme", []byte{sealedMark})
	f.Add("acme.a", []byte{sealedMark})
	f.Add("_installation.x", make([]byte, 40))
	random := make([]byte, 60)
	rand.Read(random)
	random[0] = sealedMark
	f.Add("acme.a", random)
	f.Fuzz(func(t *testing.T, key string, stored []byte) {
		p := rowPlace("things", key)
		data, clear, err := s.unseal(p, stored)
		if err == nil && s.owner(p) != "" && !clear && (key != "acme.a" || string(data) != `{"name":"x"}`) {
			t.Errorf("%q of %q was opened", stored, key)
		}
		if clear && len(stored) > 0 && stored[0] == sealedMark {
			t.Error("what is sealed is taken for clear")
		}
	})
}

// TestE8Blobs holds packages to what rows are held to: one for each tenant, encrypted
// with its key, for its place. What an older Bawn left in clear can still be read.
func TestE8Blobs(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := openSealed(t, dir)
	blobs := func() *Blobs {
		t.Helper()
		b, err := OpenBlobs(ctx, s, "code")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := blobs()
	read := func(tenant, digest string) ([]byte, error) {
		r, err := b.Open(ctx, tenant, digest)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	content := map[string][]byte{}
	for _, n := range []int{0, 1, frameBytes - 1, frameBytes, frameBytes + 1, 3*frameBytes + 17} {
		data := bytes.Repeat([]byte("a line that can be found\n"), n/25+1)[:n]
		d := digestOf(data)
		content[d] = data
		for _, tenant := range []string{"acme", "rival"} {
			if err := b.Put(ctx, tenant, d, bytes.NewReader(data), int64(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if all, err := b.List(ctx); err != nil || len(all) != 2*len(content) {
		t.Errorf("%v %v", all, err)
	}
	old := []byte("what an older Bawn kept for all")
	if err := b.Put(ctx, "", digestOf(old), bytes.NewReader(old), 100); err != nil {
		t.Fatal(err)
	}
	if got, err := read("acme", digestOf(old)); err != nil || !bytes.Equal(got, old) {
		t.Errorf("%q %v", got, err)
	}
	for d, data := range content {
		if got, err := read("acme", d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes: %v", len(got), len(data), err)
		}
		// As it is stored, it goes into another store that has the key, and for no
		// other tenant and digest.
		size, r, err := b.Sealed(ctx, BlobName{"acme", d})
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := io.ReadAll(r)
		r.Close()
		if err != nil || int64(len(sealed)) != size || bytes.Contains(sealed, []byte("can be found")) {
			t.Fatalf("%d of %d bytes: %v", len(sealed), size, err)
		}
		if err := b.Delete(ctx, "acme", d); err != nil {
			t.Fatal(err)
		}
		if ok, err := b.Take(ctx, "other", d, bytes.NewReader(sealed), 1<<30); len(data) > 0 && (ok || err != nil) {
			t.Errorf("another tenant took it: %v %v", ok, err)
		}
		if ok, err := b.Take(ctx, "acme", digestOf([]byte("x")), bytes.NewReader(sealed), 1<<30); len(data) > 0 && (ok || err != nil) {
			t.Errorf("it was taken for something else: %v %v", ok, err)
		}
		if len(data) > frameBytes { // frames in another order
			k := 4 + int(binary.BigEndian.Uint32(sealed))
			if ok, err := b.Take(ctx, "acme", d, io.MultiReader(bytes.NewReader(sealed[k:]), bytes.NewReader(sealed[:k])), 1<<30); ok || err != nil {
				t.Errorf("its parts were moved: %v %v", ok, err)
			}
			if ok, _ := b.Take(ctx, "acme", d, bytes.NewReader(sealed[:k]), 1<<30); ok {
				t.Error("it was cut")
			}
		}
		if ok, err := b.Take(ctx, "acme", d, bytes.NewReader(sealed), 1<<30); !ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
		if got, err := read("acme", d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes: %v", len(got), len(data), err)
		}
	}
	s.Close()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("can be found")) {
			t.Errorf("%s has it in clear", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// The key of one is gone.
	s = openSealed(t, dir, "acme")
	b = blobs()
	for d, data := range content {
		if got, err := read("acme", d); len(data) > 0 && (bawn.ErrorCode(err) != bawn.CodeUnavailable || len(got) > 0) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if got, err := read("rival", d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes: %v", len(got), len(data), err)
		}
	}
}
