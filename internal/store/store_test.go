package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bawn.dev/bawn"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"
)

// TestMain lets the test binary stand in for a process that is killed.
func TestMain(m *testing.M) {
	switch os.Getenv("STORE_TEST_CHILD") {
	case "write":
		childWrites(os.Getenv("STORE_TEST_DIR"))
	case "table":
		childTable(os.Getenv("STORE_TEST_DIR"))
	case "seal":
		childSeals(os.Getenv("STORE_TEST_DIR"))
	case "lock":
		_, err := LockDir(os.Getenv("STORE_TEST_DIR"))
		fmt.Println(bawn.ErrorCode(err), err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

func wantCode(t testing.TB, err error, code bawn.Code) {
	t.Helper()
	if got := bawn.ErrorCode(err); got != code {
		t.Fatalf("got code %q (%v), want %q", got, err, code)
	}
}

type thing struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

func table(t testing.TB, s *Store) *Table[thing] {
	t.Helper()
	tb, err := OpenTable[thing](t.Context(), s, "things")
	if err != nil {
		t.Fatal(err)
	}
	return tb
}

func TestTable(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tb := table(t, s)
	ctx := t.Context()

	r1, err := tb.Create(ctx, "main.a", thing{"a", 1})
	if err != nil {
		t.Fatal(err)
	}
	if v, rev, ok := tb.Get("main.a"); !ok || rev != r1 || v.N != 1 {
		t.Fatalf("after Create: %v %d %v", v, rev, ok)
	}
	_, err = tb.Create(ctx, "main.a", thing{})
	wantCode(t, err, bawn.CodeConflict)
	_, err = tb.Update(ctx, "main.a", thing{}, r1+7)
	wantCode(t, err, bawn.CodeConflict)
	_, err = tb.Update(ctx, "main.b", thing{}, 3)
	wantCode(t, err, bawn.CodeConflict)
	_, err = tb.Update(ctx, "main.a", thing{}, 0)
	wantCode(t, err, bawn.CodeConflict)
	r2, err := tb.Update(ctx, "main.a", thing{"a", 2}, r1)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, tb.Delete(ctx, "main.a", r1), bawn.CodeConflict)
	wantCode(t, tb.Delete(ctx, "main.a", 0), bawn.CodeConflict)
	wantCode(t, tb.Delete(ctx, "main.none", 0), bawn.CodeNotFound)
	if err := tb.Delete(ctx, "main.a", r2); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := tb.Get("main.a"); ok {
		t.Fatal("deleted key is still there")
	}
	if _, err := tb.Create(ctx, "main.a", thing{"again", 3}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"main.c", "main.b.2", "main.b.1", "other.x"} {
		if _, err := tb.Create(ctx, k, thing{Name: k}); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []string{"", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "ä", strings.Repeat("k", 257)} {
		_, err := tb.Create(ctx, k, thing{})
		wantCode(t, err, bawn.CodeInvalid)
	}
	_, err = tb.Create(ctx, "big", thing{Name: strings.Repeat("x", maxValue)})
	wantCode(t, err, bawn.CodeTooLarge)
	if _, err = tb.Create(ctx, "bigok", thing{Name: strings.Repeat("x", maxValue-100)}); err != nil {
		t.Fatal(err)
	}
	_, rev, _ := tb.Get("bigok")
	if err := tb.Delete(ctx, "bigok", rev); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = tb.Create(gone, "late", thing{})
	wantCode(t, err, bawn.CodeUnavailable)

	want := map[string]thing{"main.a": {"again", 3}, "main.b.1": {Name: "main.b.1"}, "main.b.2": {Name: "main.b.2"}, "main.c": {Name: "main.c"}}
	check := func(tb *Table[thing]) {
		t.Helper()
		got, keys := map[string]thing{}, []string{}
		for k, v := range tb.All("main.") {
			got[k] = v
			keys = append(keys, k)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
		if d := cmp.Diff([]string{"main.a", "main.b.1", "main.b.2", "main.c"}, keys); d != "" {
			t.Fatal(d)
		}
		if tb.Len() != 5 {
			t.Fatalf("Len %d", tb.Len())
		}
	}
	check(tb)
	s.Close()
	tb2 := table(t, open(t, dir))
	check(tb2)
	_, rev, _ = tb2.Get("main.a")
	if _, err := tb2.Update(ctx, "main.a", thing{"after", 9}, rev); err != nil {
		t.Fatal(err)
	}
}

func TestTableWatch(t *testing.T) {
	tb := table(t, open(t, t.TempDir()))
	ctx := t.Context()
	tb.Create(ctx, "b", thing{N: 1})
	tb.Create(ctx, "a", thing{N: 2})
	var got []string
	stop := tb.Watch(func(k string, v *thing) {
		if v == nil {
			got = append(got, k+" gone")
			return
		}
		if now, _, ok := tb.Get(k); !ok || now != *v {
			t.Errorf("Get in a watch: %v %v, want %v", now, ok, *v)
		}
		got = append(got, fmt.Sprint(k, v.N))
	})
	r, err := tb.Create(ctx, "c", thing{N: 3})
	if err != nil {
		t.Fatal(err)
	}
	r, _ = tb.Update(ctx, "c", thing{N: 4}, r)
	tb.Delete(ctx, "c", r)
	stop()
	tb.Create(ctx, "d", thing{})
	if d := cmp.Diff([]string{"a2", "b1", "c3", "c4", "c gone"}, got); d != "" {
		t.Fatal(d)
	}
}

// Compare-and-swap holds when many write the same key.
func TestTableConcurrent(t *testing.T) {
	tb := table(t, open(t, t.TempDir()))
	ctx := t.Context()
	if _, err := tb.Create(ctx, "n", thing{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := 0; done < 25; {
				v, rev, _ := tb.Get("n")
				v.N++
				if _, err := tb.Update(ctx, "n", v, rev); err == nil {
					done++
				} else if bawn.ErrorCode(err) != bawn.CodeConflict {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if v, _, _ := tb.Get("n"); v.N != 100 {
		t.Fatalf("%d updates, want 100", v.N)
	}
}

// A write whose answer never came is found by the next one.
func TestTableCatchesUp(t *testing.T) {
	s := open(t, t.TempDir())
	tb := table(t, s)
	ctx := t.Context()
	if _, err := tb.Create(ctx, "a", thing{N: 1}); err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg(tb.prefix + "b")
	m.Data = []byte(`{"name":"b","n":5}`)
	l := line{seq: tb.seq + 1, key: "b", sum: rowSum("b", m.Data)}
	tb.manifest.sign(tb.manifest.chain, &l)
	m.Header.Set(manifestHeader, l.String())
	if _, err := s.js.PublishMsg(ctx, m); err != nil {
		t.Fatal(err)
	}
	_, err := tb.Create(ctx, "b", thing{N: 6})
	wantCode(t, err, bawn.CodeConflict)
	if v, _, ok := tb.Get("b"); !ok || v.N != 5 {
		t.Fatalf("got %v %v", v, ok)
	}
}

// Marks of deleted keys do not pile up, and the seal holds without them.
func TestTableTombstones(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tb := table(t, s)
	ctx := t.Context()
	tb.Create(ctx, "kept", thing{N: 1})
	for i := range maxTombstones + 20 {
		r, err := tb.Create(ctx, "k."+strconv.Itoa(i), thing{N: i})
		if err != nil {
			t.Fatal(err)
		}
		if err := tb.Delete(ctx, "k."+strconv.Itoa(i), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		s.Close()
		s = open(t, dir)
		tb = table(t, s)
	}
	info, err := tb.js.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if tb.Len() != 1 || info.State.Msgs != 2 {
		t.Fatalf("%d keys in %d messages, want 1 in 2", tb.Len(), info.State.Msgs)
	}
}

// function is about as large as a version with its perimeter.
type function struct {
	Tenant, Name, Digest, Tree, Owner, Handler string
	Environment                                map[string]string
	Routes                                     []struct{ Method, Path string }
}

func TestTableOfThousand(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tb, err := OpenTable[function](t.Context(), s, "versions")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		f := function{Tenant: "main", Name: fmt.Sprint("f", i), Digest: strings.Repeat("a", 71), Tree: strings.Repeat("b", 71), Owner: "team", Handler: "app.handler",
			Environment: map[string]string{"A": strings.Repeat("x", 100), "B": "y"}, Routes: []struct{ Method, Path string }{{"GET", "/" + fmt.Sprint(i)}}}
		if _, err := tb.Create(t.Context(), fmt.Sprintf("main.f%d.1", i), f); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	mem := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := mem()
	start := time.Now()
	s = open(t, dir)
	tb, err = OpenTable[function](t.Context(), s, "versions")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("opened in %v", time.Since(start))
	each := (mem() - before) / 1000
	if tb.Len() != 1000 {
		t.Fatalf("%d keys", tb.Len())
	}
	t.Logf("%d bytes each, the server's own included", each)
	if each > 20<<10 {
		t.Fatalf("a function costs %d bytes of memory, more than 20 KiB", each)
	}
	runtime.KeepAlive(tb)
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func TestBlobs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	b, err := OpenBlobs(ctx, s, "code")
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	content := map[string][]byte{}
	for _, n := range []int{0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 17} {
		data := make([]byte, n)
		rand.Read(data)
		d := digestOf(data)
		content[d] = data
		digests = append(digests, d)
		if err := b.Put(ctx, "main", d, &dribble{data}, int64(n)); err != nil {
			t.Fatalf("Put of %d: %v", n, err)
		}
		// Again, without a look at the reader.
		if err := b.Put(ctx, "main", d, failingReader{}, int64(n)); err != nil {
			t.Fatalf("second Put of %d: %v", n, err)
		}
	}
	s.Close()
	s = open(t, dir)
	if b, err = OpenBlobs(ctx, s, "code"); err != nil {
		t.Fatal(err)
	}
	for d, data := range content {
		if ok, err := b.Has(ctx, "main", d); !ok || err != nil {
			t.Fatalf("Has: %v %v", ok, err)
		}
		r, err := b.Open(ctx, "main", d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read %d of %d bytes: %v", len(got), len(data), err)
		}
		r.Close()
	}
	all, err := b.List(ctx)
	if err != nil || len(all) != len(digests) {
		t.Fatalf("List: %v %v", all, err)
	}
	other := digestOf([]byte("other"))
	err = b.Put(ctx, "main", other, strings.NewReader("wrong"), 100)
	wantCode(t, err, bawn.CodeInvalid)
	err = b.Put(ctx, "main", other, strings.NewReader("other"), 4)
	wantCode(t, err, bawn.CodeTooLarge)
	err = b.Put(ctx, "main", other, io.MultiReader(strings.NewReader("oth"), failingReader{}), 100)
	wantCode(t, err, bawn.CodeUnavailable)
	err = b.Put(ctx, "main", "sha256:../../x", strings.NewReader("x"), 100)
	wantCode(t, err, bawn.CodeInvalid)
	_, err = b.Open(ctx, "main", other)
	wantCode(t, err, bawn.CodeNotFound)
	if ok, err := b.Has(ctx, "main", other); ok || err != nil {
		t.Fatalf("a refused blob is there: %v %v", ok, err)
	}
	info, err := b.js.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, "main", digests[5]); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, "main", digests[5]); err != nil {
		t.Fatal("deleting twice:", err)
	}
	after, err := b.js.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if freed := info.State.Bytes - after.State.Bytes; freed < uint64(len(content[digests[5]])) {
		t.Fatalf("deleting freed %d bytes", freed)
	}
	_, err = b.Open(ctx, "main", digests[5])
	wantCode(t, err, bawn.CodeNotFound)
}

// dribble yields a few bytes at a time.
type dribble struct{ b []byte }

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.b[:min(len(d.b), 70001)])
	d.b = d.b[n:]
	return n, nil
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// Chunks of an upload that never ended go when the store is opened, and a blob
// that lost a chunk is not there, cannot be read, and can be stored again.
func TestBlobsDamage(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	b, err := OpenBlobs(ctx, s, "code")
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 2*chunkBytes)
	d := digestOf(data)
	if err := b.Put(ctx, "main", d, bytes.NewReader(data), 1<<30); err != nil {
		t.Fatal(err)
	}
	before, _ := b.js.Info(ctx)
	if _, err := s.js.Publish(ctx, "$O.code.C.orphan", data[:1000]); err != nil {
		t.Fatal(err)
	}
	if b, err = OpenBlobs(ctx, s, "code"); err != nil {
		t.Fatal(err)
	}
	after, _ := b.js.Info(ctx)
	if before.State.Msgs != after.State.Msgs {
		t.Fatalf("%d messages, want %d", after.State.Msgs, before.State.Msgs)
	}
	r, err := b.Open(ctx, "main", d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := b.js.DeleteMsg(ctx, after.State.FirstSeq+1); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Has(ctx, "main", d); ok || err != nil {
		t.Fatalf("Has of a damaged blob: %v %v", ok, err)
	}
	_, err = b.Open(ctx, "main", d)
	wantCode(t, err, bawn.CodeUnprocessable)
	if err := b.Put(ctx, "main", d, bytes.NewReader(data), 1<<30); err != nil {
		t.Fatal(err)
	}
	r2, err := b.Open(ctx, "main", d)
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	if n, err := io.Copy(io.Discard, r2); err != nil || n != int64(len(data)) {
		t.Fatalf("after storing again: %d %v", n, err)
	}
}

func TestDigestReaderOfDamage(t *testing.T) {
	want := digestOf([]byte("content"))
	for _, got := range []string{"Content", "conten", "contents", ""} {
		d := &digestReader{r: strings.NewReader(got), sum: sha256.New(), want: want, max: 7, damaged: true}
		_, err := io.ReadAll(d)
		wantCode(t, err, bawn.CodeUnprocessable)
	}
}

func stream(t testing.TB, s *Store, cfg StreamConfig) *Stream {
	t.Helper()
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 64 << 20
	}
	cfg.Name = "lines"
	st, err := OpenStream(t.Context(), s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func texts(t testing.TB, st *Stream, cfg ReadConfig) []string {
	t.Helper()
	var got []string
	err := st.Read(t.Context(), cfg, func(m Message) error {
		got = append(got, m.Subject+"="+string(m.Data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// newest is texts of the newest n alone.
func newest(t testing.TB, st *Stream, n int, cfg ReadConfig) []string {
	t.Helper()
	var got []string
	for m, err := range st.Backward(t.Context(), cfg) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, m.Subject+"="+string(m.Data)); len(got) == n {
			break
		}
	}
	slices.Reverse(got)
	return got
}

func TestStream(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	st := stream(t, s, StreamConfig{})
	ctx := t.Context()
	if got := texts(t, st, ReadConfig{}); got != nil {
		t.Fatal(got)
	}
	if got := newest(t, st, 3, ReadConfig{}); got != nil {
		t.Fatal(got)
	}
	publish := func(subject, data string) {
		t.Helper()
		if err := st.Publish(ctx, subject, []byte(data), 0); err != nil {
			t.Fatal(err)
		}
	}
	publish("main.a", "1")
	publish("main.b", "2")
	publish("other.a", "3")
	middle := time.Now()
	publish("main.a", "")
	publish("main.a", "5")
	for _, c := range []struct {
		name string
		cfg  ReadConfig
		want []string
	}{
		{"all", ReadConfig{}, []string{"main.a=1", "main.b=2", "other.a=3", "main.a=", "main.a=5"}},
		{"one", ReadConfig{Subject: "main.a"}, []string{"main.a=1", "main.a=", "main.a=5"}},
		{"below", ReadConfig{Subject: "main.>"}, []string{"main.a=1", "main.b=2", "main.a=", "main.a=5"}},
		{"none", ReadConfig{Subject: "nobody.>"}, nil},
		{"since", ReadConfig{Since: middle}, []string{"main.a=", "main.a=5"}},
		{"since later", ReadConfig{Since: time.Now().Add(time.Hour)}, nil},
		{"since and subject", ReadConfig{Since: middle, Subject: "main.b"}, nil},
		{"after", ReadConfig{After: 3}, []string{"main.a=", "main.a=5"}},
		{"after the last", ReadConfig{After: 5}, nil},
		{"after and since", ReadConfig{After: 1, Since: middle}, []string{"main.a=", "main.a=5"}},
	} {
		if d := cmp.Diff(c.want, texts(t, st, c.cfg)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	for _, c := range []struct {
		name string
		n    int
		cfg  ReadConfig
		want []string
	}{
		{"newest", 2, ReadConfig{}, []string{"main.a=", "main.a=5"}},
		{"newest of some", 2, ReadConfig{Subject: "main.>"}, []string{"main.a=", "main.a=5"}},
		{"newest since", 9, ReadConfig{Since: middle}, []string{"main.a=", "main.a=5"}},
		{"newest of few", 9, ReadConfig{Subject: "other.a"}, []string{"other.a=3"}},
		{"newest after", 9, ReadConfig{After: 3}, []string{"main.a=", "main.a=5"}},
	} {
		if d := cmp.Diff(c.want, newest(t, st, c.n, c.cfg)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	for _, bad := range []string{"a.*", "*", "a..b", "..>", "a b"} {
		wantCode(t, st.Read(ctx, ReadConfig{Subject: bad}, nil), bawn.CodeInvalid)
	}
	wantCode(t, st.Publish(ctx, "a.>", nil, 0), bawn.CodeInvalid)
	wantCode(t, st.Publish(ctx, "a", make([]byte, MaxMessage+1), 0), bawn.CodeTooLarge)
	if err := st.Publish(ctx, "large", make([]byte, MaxMessage), 0); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	if err := st.Read(ctx, ReadConfig{}, func(Message) error { return stop }); err != stop {
		t.Fatalf("error of the callback: %v", err)
	}
	s.Close()
	st = stream(t, open(t, dir), StreamConfig{})
	if got := newest(t, st, 1, ReadConfig{Subject: "main.b"}); len(got) != 1 {
		t.Fatal(got)
	}
}

// Many messages come in order and once, forward and backward, over the borders
// of batches and windows.
func TestStreamMany(t *testing.T) {
	st := stream(t, open(t, t.TempDir()), StreamConfig{})
	const n = 1300
	var wg sync.WaitGroup
	for i := range n {
		subject := "many"
		if i%433 == 0 {
			subject = "rare"
		}
		wg.Go(func() {
			if err := st.Publish(t.Context(), subject, []byte(strings.Repeat("x", 3000)), 0); err != nil {
				t.Error(err)
			}
		})
		if i%50 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	next := uint64(1)
	if err := st.Read(t.Context(), ReadConfig{}, func(m Message) error {
		if m.Seq != next {
			return fmt.Errorf("got %d, want %d", m.Seq, next)
		}
		next++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if next != n+1 {
		t.Fatalf("read %d, want %d", next-1, n)
	}
	for m, err := range st.Backward(t.Context(), ReadConfig{}) {
		if err != nil {
			t.Fatal(err)
		}
		if next--; m.Seq != next {
			t.Fatalf("backward: got %d, want %d", m.Seq, next)
		}
	}
	if next != 1 {
		t.Fatalf("backward ended at %d", next)
	}
	for _, limit := range []int{1, 3, 4, 100} {
		if got := newest(t, st, limit, ReadConfig{Subject: "rare"}); len(got) != min(limit, 4) {
			t.Fatalf("limit %d: %d", limit, len(got))
		}
	}
	if got := newest(t, st, 700, ReadConfig{}); len(got) != 700 {
		t.Fatal(len(got))
	}
	// A start by number does not open the way for what is older than Since,
	// however many batches there are.
	var since time.Time
	for m, err := range st.Backward(t.Context(), ReadConfig{}) {
		if since = m.Time; err != nil {
			t.Fatal(err)
		}
		break
	}
	if got := texts(t, st, ReadConfig{After: 1, Since: since}); len(got) != 1 {
		t.Errorf("%d messages since the newest", len(got))
	}
}

func TestStreamFollow(t *testing.T) {
	st := stream(t, open(t, t.TempDir()), StreamConfig{})
	for _, past := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		last, err := st.LastSeq(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Publish(ctx, "a.b", []byte("before"), 0); err != nil {
			t.Fatal(err)
		}
		cfg := ReadConfig{Subject: "a.>", Follow: true}
		if past {
			cfg.After = last
		} else {
			cfg.Since = time.Now()
		}
		got := make(chan string, 100)
		done := make(chan error)
		go func() {
			done <- st.Read(ctx, cfg, func(m Message) error {
				got <- string(m.Data)
				return nil
			})
		}()
		if past {
			if g := <-got; g != "before" {
				t.Fatal(g)
			}
		}
		for i := range 20 {
			if err := st.Publish(ctx, "a.b", []byte(strconv.Itoa(i)), 0); err != nil {
				t.Fatal(err)
			}
			if err := st.Publish(ctx, "other", []byte("no"), 0); err != nil {
				t.Fatal(err)
			}
			if g := <-got; g != strconv.Itoa(i) { // each comes before the next is published
				t.Fatalf("got %s, want %d", g, i)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}

// Who follows does not outlive the store.
func TestFollowEndsWithStore(t *testing.T) {
	s := open(t, t.TempDir())
	st := stream(t, s, StreamConfig{})
	if err := st.Publish(t.Context(), "a", nil, 0); err != nil {
		t.Fatal(err)
	}
	began, done := make(chan struct{}), make(chan error)
	go func() {
		done <- st.Read(t.Context(), ReadConfig{Follow: true}, func(Message) error { close(began); return nil })
	}()
	<-began
	s.Close()
	wantCode(t, <-done, bawn.CodeUnavailable)
}

func BenchmarkOpenEmpty(b *testing.B) {
	for i := 0; b.Loop(); i++ {
		s, err := Open(b.Context(), Config{Dir: filepath.Join(b.TempDir(), strconv.Itoa(i))})
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range []string{"functions", "versions", "keys"} {
			if _, err := OpenTable[thing](b.Context(), s, name); err != nil {
				b.Fatal(err)
			}
		}
		for _, name := range []string{"evidence", "logs"} {
			if _, err := OpenStream(b.Context(), s, StreamConfig{Name: name, MaxBytes: 1 << 30}); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := OpenBlobs(b.Context(), s, "code"); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

func BenchmarkPublish(b *testing.B) {
	st := stream(b, open(b, b.TempDir()), StreamConfig{})
	data := make([]byte, 1024)
	for b.Loop() {
		if err := st.Publish(b.Context(), "a", data, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTableGet(b *testing.B) {
	tb := table(b, open(b, b.TempDir()))
	tb.Create(b.Context(), "main.a", thing{"a", 1})
	for b.Loop() {
		if _, _, ok := tb.Get("main.a"); !ok {
			b.Fatal("gone")
		}
	}
}

func TestStreamTTL(t *testing.T) {
	st := stream(t, open(t, t.TempDir()), StreamConfig{AppendOnly: true})
	if err := st.Publish(t.Context(), "short", []byte("1"), 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := st.Publish(t.Context(), "long", []byte("2"), time.Hour); err != nil {
		t.Fatal(err)
	}
	for len(texts(t, st, ReadConfig{Subject: "short"})) > 0 {
		time.Sleep(50 * time.Millisecond) // the test's own timeout ends a wait in vain
	}
	if got := texts(t, st, ReadConfig{}); len(got) != 1 {
		t.Fatal(got)
	}
	if err := st.js.DeleteMsg(t.Context(), 2); err == nil {
		t.Fatal("a message of an append-only stream was deleted")
	}
}

func TestStreamSizeLimit(t *testing.T) {
	st := stream(t, open(t, t.TempDir()), StreamConfig{MaxBytes: 1 << 20})
	for i := range 40 {
		if err := st.Publish(t.Context(), "a", append(make([]byte, 100<<10), byte(i)), 0); err != nil {
			t.Fatal(err)
		}
	}
	var bytes, newest int
	st.Read(t.Context(), ReadConfig{}, func(m Message) error {
		bytes += len(m.Data)
		newest = int(m.Data[len(m.Data)-1])
		return nil
	})
	if bytes > 1<<20 || newest != 39 {
		t.Fatalf("%d bytes kept, newest %d", bytes, newest)
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	// What a loss of power may leave of the very first write.
	for _, name := range []string{"format", "format.new"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir).Close()
	if b, err := os.ReadFile(filepath.Join(dir, "format")); err != nil || string(b) != formatNumber+"\n" {
		t.Errorf("the layout is %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "format.new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a layout is left: %v", err)
	}
	open(t, dir).Close()
	// With data it must not be guessed.
	for _, spoil := range []func() error{
		func() error { return os.Truncate(filepath.Join(dir, "format"), 0) },
		func() error { return os.Remove(filepath.Join(dir, "format")) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), Config{Dir: dir})
		var e *bawn.Error
		if !errors.As(err, &e) || e.Code != bawn.CodeUnavailable || !strings.Contains(e.Message, "empty or missing") || !strings.Contains(e.Fix, "backup") {
			t.Errorf("data without a layout: %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "format"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Dir: dir})
	wantCode(t, err, bawn.CodeUnavailable)
	_, err = Open(t.Context(), Config{Dir: filepath.Join(dir, "format", "x")})
	wantCode(t, err, bawn.CodeUnavailable)
}

func TestHealthy(t *testing.T) {
	s := open(t, t.TempDir())
	st := stream(t, s, StreamConfig{})
	if err := s.Healthy(); err != nil {
		t.Fatal(err)
	}
	s.room = 1 << 62
	wantCode(t, s.Healthy(), bawn.CodeUnavailable)
	wantCode(t, st.Publish(t.Context(), "a", nil, 0), bawn.CodeUnavailable)
	s.room = 0
	s.Close()
	wantCode(t, s.Healthy(), bawn.CodeUnavailable)
	wantCode(t, st.Publish(t.Context(), "a", nil, 0), bawn.CodeUnavailable)
	wantCode(t, st.Read(t.Context(), ReadConfig{}, func(Message) error { return nil }), bawn.CodeUnavailable)
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	release, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=lock", "STORE_TEST_DIR="+dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(out), string(bawn.CodeConflict)) || !strings.Contains(string(out), fmt.Sprintf("process %d", os.Getpid())) {
		t.Fatalf("the other process says %q", out)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if release, err = LockDir(dir); err != nil {
		t.Fatal(err)
	}
	release()
	_, err = LockDir(filepath.Join(dir, "none"))
	wantCode(t, err, bawn.CodeUnavailable)
}

// childWrites writes to everything, says what was acknowledged, and never ends.
func childWrites(dir string) {
	ctx := context.Background()
	die := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	s, err := Open(ctx, Config{Dir: dir})
	die(err)
	tb, err := OpenTable[thing](ctx, s, "things")
	die(err)
	st, err := OpenStream(ctx, s, StreamConfig{Name: "lines", MaxBytes: 64 << 20})
	die(err)
	bl, err := OpenBlobs(ctx, s, "code")
	die(err)
	start := tb.Len()
	var mu sync.Mutex
	say := func(f string, v ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(f+"\n", v...)
	}
	go func() {
		for i := start; ; i++ {
			key := fmt.Sprint("k", i)
			_, err := tb.Create(ctx, key, thing{key, i})
			die(err)
			say("table %s", key)
		}
	}()
	go func() {
		for i := 0; ; i++ {
			data := []byte(fmt.Sprintf("blob %d of %d %s", i, start, strings.Repeat("z", i%5*chunkBytes/2)))
			err := bl.Put(ctx, "main", digestOf(data), bytes.NewReader(data), 1<<30)
			die(err)
			say("blob %s", digestOf(data))
		}
	}()
	for i := 0; ; i++ {
		text := fmt.Sprint(start, "-", i)
		die(st.Publish(ctx, "s", []byte(text), 0))
		say("stream %s", text)
	}
}

// What was acknowledged is there after kill -9, several times over.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked := map[string][]string{}
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=write", "STORE_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for sc := bufio.NewScanner(out); sc.Scan(); {
			kind, what, ok := strings.Cut(sc.Text(), " ")
			if !ok || kind == "error" {
				t.Error(sc.Text())
			}
			acked[kind] = append(acked[kind], what)
			if lines++; lines == 200+round*67 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
	}
	s := open(t, dir)
	tb := table(t, s)
	for _, k := range acked["table"] {
		if v, _, ok := tb.Get(k); !ok || v.Name != k {
			t.Errorf("%s is lost", k)
		}
	}
	have := map[string]bool{}
	for _, x := range texts(t, stream(t, s, StreamConfig{}), ReadConfig{}) {
		have[strings.TrimPrefix(x, "s=")] = true
	}
	for _, x := range acked["stream"] {
		if !have[x] {
			t.Errorf("%s is lost", x)
		}
	}
	bl, err := OpenBlobs(t.Context(), s, "code")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range acked["blob"] {
		r, err := bl.Open(t.Context(), "main", d)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		r.Close()
	}
	t.Logf("acknowledged: %d in the table, %d in the stream, %d blobs", len(acked["table"]), len(acked["stream"]), len(acked["blob"]))
}

// A full disk refuses writes, keeps what is there, and works again once there
// is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
		t.Skipf("needs the right to mount a small file system (root): %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := open(t, filepath.Join(dir, "store"))
	tb, st := table(t, s), stream(t, s, StreamConfig{})
	bl, err := OpenBlobs(t.Context(), s, "code")
	if err != nil {
		t.Fatal(err)
	}
	rev, err := tb.Create(t.Context(), "kept", thing{N: 1})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for err = nil; err == nil; n++ {
		err = st.Publish(t.Context(), "fill", make([]byte, 1<<20), 0)
	}
	wantCode(t, err, bawn.CodeUnavailable)
	if n < 10 {
		t.Fatalf("refused after %d MiB", n)
	}
	var e *bawn.Error
	if !errors.As(err, &e) || !strings.Contains(e.Message, "full") || e.Fix == "" {
		t.Fatalf("the error does not say that the disk is full: %v", err)
	}
	_, err = tb.Create(t.Context(), "more", thing{})
	wantCode(t, err, bawn.CodeUnavailable)
	wantCode(t, s.Healthy(), bawn.CodeUnavailable)
	data := make([]byte, 5<<20)
	err = bl.Put(t.Context(), "main", digestOf(data), bytes.NewReader(data), 1<<30)
	wantCode(t, err, bawn.CodeUnavailable)
	_, err = Open(t.Context(), Config{Dir: filepath.Join(dir, "second")})
	wantCode(t, err, bawn.CodeUnavailable)
	if err := tb.Delete(t.Context(), "kept", rev); err != nil {
		t.Fatal("deleting on a full disk:", err)
	}
	if err := st.js.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	for s.Healthy() != nil {
		time.Sleep(10 * time.Millisecond) // the server removes files in the background
	}
	if err := st.Publish(t.Context(), "again", []byte("x"), 0); err != nil {
		t.Fatal("with free space again:", err)
	}
}

func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"a.b", "a..b", "*", "a.>", "", "main.hello.12"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkKey(s) != nil {
			return
		}
		if strings.ContainsAny(s, "*> \t\r\n/\\") || strings.Contains(s, "..") || s == "" || s[0] == '.' || s[len(s)-1] == '.' {
			t.Fatalf("%q is taken as a key", s)
		}
	})
}
