package evidence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence/tlog"
	"bawn.dev/bawn/internal/store"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// TestMain lets the test binary stand in for a process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EVIDENCE_TEST_DIR"); dir != "" {
		childAppends(dir)
	}
	goleak.VerifyTestMain(m)
}

func openStore(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openLog(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Dir: dir, Key: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func wantCode(t testing.TB, err error, code bawn.Code) {
	t.Helper()
	if got := bawn.ErrorCode(err); got != code {
		t.Fatalf("got code %q (%v), want %q", got, err, code)
	}
}

func records(t testing.TB, l *Log, q Query) (ids []string) {
	t.Helper()
	if err := l.Read(t.Context(), q, func(r bawn.Record) error { ids = append(ids, r.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestAppendAndRead(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	ctx := t.Context()
	add := func(r bawn.Record) {
		t.Helper()
		if err := l.Append(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	add(bawn.Record{ID: "1", Kind: bawn.KindDecision, Outcome: "allow", Tenant: "main", Function: "a", Invocation: "i1"})
	add(bawn.Record{ID: "2", Kind: bawn.KindOutcome, Outcome: "ok", Tenant: "main", Function: "a", Invocation: "i1"})
	add(bawn.Record{ID: "3", Kind: bawn.KindDecision, Outcome: "deny", Tenant: "main", Function: "b"})
	if got := records(t, l, Query{}); len(got) != 3 { // 3 waited, and so the ones before it are there
		t.Fatal(got)
	}
	middle := time.Now()
	add(bawn.Record{ID: "4", Kind: bawn.KindChange, Tenant: "other", Function: "a", Detail: map[string]string{"k": "v"}})
	add(bawn.Record{ID: "5", Kind: bawn.KindBlocked, Tenant: "main", Function: "a", Invocation: "i2", Version: 3})
	add(bawn.Record{Kind: bawn.KindNode})
	for _, c := range []struct {
		name string
		q    Query
		want []string
	}{
		{"tenant", Query{Tenant: "main"}, []string{"1", "2", "3", "5"}},
		{"function", Query{Tenant: "main", Function: "a"}, []string{"1", "2", "5"}},
		{"invocation", Query{Invocation: "i1"}, []string{"1", "2"}},
		{"kinds", Query{Kinds: []bawn.RecordKind{bawn.KindChange, bawn.KindBlocked}}, []string{"4", "5"}},
		{"since", Query{Since: middle, Tenant: "main"}, []string{"5"}},
		{"newest", Query{Tenant: "main", Limit: 2}, []string{"3", "5"}},
		{"more than there are", Query{Tenant: "other", Limit: 9}, []string{"4"}},
		{"nobody", Query{Tenant: "mai"}, nil},
	} {
		if d := cmp.Diff(c.want, records(t, l, c.q)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, l.Append(ctx, bawn.Record{Kind: bawn.KindNode}), bawn.CodeUnavailable)
	l = openLog(t, dir)
	err := l.Read(ctx, Query{Kinds: []bawn.RecordKind{bawn.KindNode}}, func(r bawn.Record) error {
		if len(r.ID) != 36 || time.Since(r.Time) > time.Hour || r.Time.Location() != time.UTC {
			t.Errorf("ID %q and time %v were not set", r.ID, r.Time)
		}
		return io.EOF
	})
	if err != io.EOF {
		t.Fatalf("the callback's error: %v", err)
	}
}

// Close writes what was accepted and not yet written.
func TestCloseFlushes(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	const n = 5000
	for range n {
		if err := l.Append(t.Context(), bawn.Record{Kind: bawn.KindOutcome, Reason: strings.Repeat("r", 500)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(records(t, openLog(t, dir), Query{})); got != n {
		t.Fatalf("%d records, want %d", got, n)
	}
}

// Many at once all become durable.
func TestAppendFlood(t *testing.T) {
	l := openLog(t, t.TempDir())
	const n = 2000
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := l.Append(t.Context(), bawn.Record{ID: strconv.Itoa(i), Kind: bawn.KindDecision, Outcome: "deny"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, id := range records(t, l, Query{}) {
		seen[id]++
	}
	if len(seen) != n {
		t.Fatalf("%d records, want %d", len(seen), n)
	}
	if got := records(t, l, Query{Limit: 700}); len(got) != 700 {
		t.Fatalf("%d with a limit of 700", len(got))
	}
}

func TestFollow(t *testing.T) {
	l := openLog(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.Append(ctx, bawn.Record{ID: "before", Kind: bawn.KindChange, Tenant: "main"}); err != nil {
		t.Fatal(err)
	}
	got, done := make(chan string, 10), make(chan error)
	go func() {
		done <- l.Read(ctx, Query{Tenant: "main", Limit: 5, Follow: true}, func(r bawn.Record) error { got <- r.ID; return nil })
	}()
	if id := <-got; id != "before" {
		t.Fatal(id)
	}
	for i := range 10 {
		l.Append(ctx, bawn.Record{ID: "not", Kind: bawn.KindChange, Tenant: "other"})
		l.Append(ctx, bawn.Record{ID: strconv.Itoa(i), Kind: bawn.KindOutcome, Tenant: "main"})
		if id := <-got; id != strconv.Itoa(i) {
			t.Fatalf("got %s, want %d", id, i)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// On a full disk nothing is taken, what was accepted before is kept, and it
// goes on by itself once there is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("needs the right to mount a small file system (root): %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	l := openLog(t, filepath.Join(dir, "audit"))
	if err := l.Append(t.Context(), bawn.Record{ID: "accepted", Kind: bawn.KindOutcome}); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "fill")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(f, io.LimitReader(zeros{}, 52<<20))
	f.Close()
	// The disk is looked at once a second.
	for err = nil; err == nil; {
		err = l.Append(t.Context(), bawn.Record{ID: "more", Kind: bawn.KindChange})
	}
	wantCode(t, err, bawn.CodeUnavailable)
	var e *bawn.Error
	if !errors.As(err, &e) || !strings.Contains(e.Fix, "space") {
		t.Fatalf("no way out is named: %+v", e)
	}
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	for l.Append(t.Context(), bawn.Record{ID: "after", Kind: bawn.KindChange}) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	got := records(t, l, Query{})
	if got[0] != "accepted" || got[len(got)-1] != "after" {
		t.Fatal(got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func childAppends(dir string) {
	ctx := context.Background()
	l, err := Open(ctx, Config{Dir: dir, Key: make([]byte, 32)})
	if err != nil {
		panic(err)
	}
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				r := bawn.Record{ID: fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i), Kind: bawn.KindDecision, Outcome: "deny"}
				switch i % 4 {
				case 0:
					r.Kind = bawn.KindChange
				case 1:
					r.Kind = bawn.KindOutcome
				case 2:
					r.Outcome = "allow"
				}
				if err := l.Append(ctx, r); err != nil {
					panic(err)
				}
				fmt.Println(r.ID)
			}
		}()
	}
	select {}
}

// A record whose Append returned survives kill -9.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "EVIDENCE_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for sc := bufio.NewScanner(out); sc.Scan(); {
			acked = append(acked, sc.Text())
			if n++; n == 500 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
	}
	if len(acked) < 1500 {
		t.Fatalf("only %d were acknowledged", len(acked))
	}
	have := map[string]bool{}
	for _, id := range records(t, openLog(t, dir), Query{}) {
		have[id] = true
	}
	for _, id := range acked {
		if !have[id] {
			t.Errorf("%s is lost", id)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, {\"a\": 1}": "plain text, {\"a\": 1}",
		"Grüße 世界 🙂":             "Grüße 世界 🙂",
		"a\x1b[31mred\x1b[0m":    `a\x1b[31mred\x1b[0m`,
		"a\r\nb\tc\x00":          `a\x0d\x0ab\x09c\x00`,
		"bad \xff\xfe utf":       `bad \xff\xfe utf`,
		"\u202eevil\u2066":       `\u{202e}evil\u{2066}`,
		"c1 \u009b31m":           `c1 \u{9b}31m`,
		"sep\u2028":              `sep\u{2028}`,
		"\x7f":                   `\x7f`,
	} {
		if got := clean(in, 1000, false); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := clean("a\n\tb\r\x1b", 100, true); got != "a\n\tb\\x0d\\x1b" {
		t.Errorf("lines: %q", got)
	}
	long := strings.Repeat("x", 50)
	got := clean(long, 10, false)
	if !strings.HasPrefix(got, "xxxxxxxxxx…[cut from 50 bytes, sha256:") || len(got) > 10+110 {
		t.Errorf("cut: %q", got)
	}
	if clean(long+"a", 10, false) == clean(long+"b", 10, false) {
		t.Error("the mark does not tell texts apart")
	}
	if got := clean("aaaaaaaa世界", 9, false); !strings.HasPrefix(got, "aaaaaaaa…") {
		t.Errorf("cut within a character: %q", got)
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"a\x1b[0m", "\xff", "世界", "\u202e", strings.Repeat("é", 40)} {
		f.Add(s, 16)
	}
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 1 || max > 4096 {
			return
		}
		got := clean(s, max, false)
		if !utf8.ValidString(got) || len(got) > 10*max+120 {
			t.Fatalf("%d bytes from %q", len(got), s)
		}
		for _, r := range got {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 {
				t.Fatalf("%q holds %U", got, r)
			}
		}
		if again := clean(got, 20*max+200, false); again != got {
			t.Fatalf("cleaning twice: %q, then %q", got, again)
		}
	})
}

// Nothing from outside can make a record large, or make two of one.
func TestRecordIsBounded(t *testing.T) {
	l := openLog(t, t.TempDir())
	nasty := strings.Repeat("\x00<\n{\"id\":\"forged\"}\n", 100_000)
	r := bawn.Record{ID: nasty, Kind: bawn.RecordKind(nasty), Tenant: nasty, Function: nasty, Invocation: nasty, Instance: nasty, Principal: nasty,
		Source: nasty, Action: nasty, Outcome: nasty, Reason: nasty, Control: nasty, Detail: map[string]string{}}
	for i := range 100 {
		r.Detail[strconv.Itoa(i)+nasty] = nasty
	}
	if err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if len(r.Detail) != 100 || r.ID != nasty {
		t.Fatal("the caller's record was changed")
	}
	n := 0
	l.Read(t.Context(), Query{}, func(r bawn.Record) error {
		n++
		if b := appendRecord(nil, &r); len(b) > tlog.MaxEntry+len(`,"index":0`) || len(r.Detail) > maxDetail+1 || r.Detail[truncatedDetail] == "" || !strings.Contains(r.Reason, "cut from") {
			t.Errorf("%d bytes, %d details: %.200s", len(b), len(r.Detail), r.Detail[truncatedDetail])
		}
		return nil
	})
	if n != 1 {
		t.Fatalf("one record became %d", n)
	}
}

// fill sets every field of the struct that v points to.
func fill(t *testing.T, v any, text string) {
	t.Helper()
	for _, f := range reflect.ValueOf(v).Elem().Fields() {
		switch f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)))
		case map[string]string:
			f.Set(reflect.ValueOf(map[string]string{"a" + text: text, "b": ""}))
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(text)
			case reflect.Int, reflect.Int64:
				f.SetInt(42)
			case reflect.Bool:
				f.SetBool(true)
			default:
				t.Fatalf("a field of type %v: the encoder must learn it", f.Type())
			}
		}
	}
}

// The encoders write every field, just as encoding/json would.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{"plain", "quo\"te \\ back", "<html>&", "tab\tline\n", "世界 🙂", "\x1b[0m\xff", strings.Repeat("long ", 50)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if text = clean(text, 100, false); text == "" || len(text) > 60 {
			text = "text" // bounds have their own test
		}
		var r, r2 bawn.Record
		fill(t, &r, text)
		line := appendRecord(nil, &r)
		if err := json.Unmarshal(line, &r2); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, r2); d != "" {
			t.Fatal(d)
		}
		var x, x2 bawn.LogLine
		fill(t, &x, text)
		line = appendLine(line[:0], &x)
		if err := json.Unmarshal(line, &x2); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(x, x2); d != "" {
			t.Fatal(d)
		}
		// The empty ones too, in the same form as the standard encoder.
		for _, v := range []struct {
			got  []byte
			want any
		}{{append(appendRecord(nil, &bawn.Record{}), '\n'), bawn.Record{}}, {appendLine(nil, &bawn.LogLine{}), bawn.LogLine{}}} {
			want, err := json.Marshal(v.want)
			if err != nil || string(v.got) != string(want)+"\n" {
				t.Fatalf("got %s want %s", v.got, want)
			}
		}
	})
}

func openLogs(t testing.TB, s *store.Store) *Logs {
	t.Helper()
	l, err := OpenLogs(t.Context(), s, LogsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func lines(t testing.TB, l *Logs, q LogQuery) (texts []string) {
	t.Helper()
	if err := l.Read(t.Context(), q, func(x bawn.LogLine) error { texts = append(texts, x.Text); return nil }); err != nil {
		t.Fatal(err)
	}
	return texts
}

func TestLogs(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	l := openLogs(t, s)
	line := func(tenant, function, invocation, text string) bawn.LogLine {
		return bawn.LogLine{Tenant: tenant, Function: function, Invocation: invocation, Instance: "in-" + invocation, Text: text}
	}
	l.Write(line("main", "a", "i1", "one"), time.Hour)
	l.Write(line("main", "a", "i1", "two"), time.Hour)
	l.Write(line("main", "b", "i2", "three"), time.Hour)
	l.Write(line("other", "a", "i3", "four"), time.Hour)
	l.Write(line("bad name", "a", "i3", "no"), time.Hour)
	l.Write(line("main", "a.>", "i3", "no"), time.Hour)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	middle := time.Now()
	l.Write(line("main", "a", "i4", "five\x1b[2J\nnext"), 0)
	l.Write(line("main", "a", "i4", strings.Repeat("x", maxLine+1)), time.Hour)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		q    LogQuery
		want int
	}{
		{"all", LogQuery{}, 6},
		{"tenant", LogQuery{Tenant: "main"}, 5},
		{"function", LogQuery{Tenant: "main", Function: "a"}, 4},
		{"invocation", LogQuery{Tenant: "main", Function: "a", Invocation: "i1"}, 2},
		{"foreign invocation", LogQuery{Tenant: "main", Function: "b", Invocation: "i1"}, 0},
		{"instance", LogQuery{Tenant: "main", Instance: "in-i2"}, 1},
		{"since", LogQuery{Tenant: "main", Since: middle}, 2},
		{"newest", LogQuery{Tenant: "main", Function: "a", Limit: 3}, 3},
		{"none", LogQuery{Tenant: "none"}, 0},
	} {
		if got := lines(t, l, c.q); len(got) != c.want {
			t.Errorf("%s: %d, want %d", c.name, len(got), c.want)
		}
	}
	got := lines(t, l, LogQuery{Tenant: "main", Function: "a"})
	if d := cmp.Diff([]string{"one", "two", "five\\x1b[2J\nnext"}, got[:3]); d != "" {
		t.Error(d)
	}
	if !strings.Contains(got[3], "cut from") || len(got[3]) > maxLine+200 {
		t.Errorf("a long line has %d bytes", len(got[3]))
	}
	for _, q := range []LogQuery{{Tenant: ">"}, {Tenant: "main", Function: "*"}, {Function: "a"}} {
		wantCode(t, l.Read(t.Context(), q, func(bawn.LogLine) error { return nil }), bawn.CodeInvalid)
	}
	l.Write(line("main", "c", "i5", "last"), time.Hour)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	l = openLogs(t, openStore(t, dir))
	if got := lines(t, l, LogQuery{Tenant: "main", Function: "c"}); len(got) != 1 || got[0] != "last" {
		t.Fatalf("Close did not write what waited: %v", got)
	}
}

func TestLogsRetention(t *testing.T) {
	l := openLogs(t, openStore(t, t.TempDir()))
	l.Write(bawn.LogLine{Tenant: "main", Function: "a", Text: "short"}, time.Second)
	l.Write(bawn.LogLine{Tenant: "main", Function: "a", Text: "long"}, time.Hour)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for {
		got := lines(t, l, LogQuery{Tenant: "main"})
		if len(got) == 1 && got[0] == "long" {
			return
		}
		if len(got) == 0 {
			t.Fatal("all lines are gone")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestLogsExpire: what labels let nobody keep goes, of the versions that have them,
// as soon as it is too old.
func TestLogsExpire(t *testing.T) {
	l := openLogs(t, openStore(t, t.TempDir()))
	write := func(function string, version int, text string) {
		t.Helper()
		l.Write(bawn.LogLine{Tenant: "main", Function: function, Version: version, Text: text}, time.Hour*24*7)
		if err := l.Flush(t.Context()); err != nil { // each in a message of its own
			t.Fatal(err)
		}
	}
	write("a", 1, "a1")
	write("a", 2, "a2")
	write("b", 2, "b2")
	write("a", 3, "a3")
	now := time.Now()
	keep := map[int]time.Duration{2: time.Hour, 3: 3 * time.Hour}
	expire := func(in time.Duration, after uint64) (uint64, int) {
		t.Helper()
		upTo, n, err := l.Expire(t.Context(), "main", "a", keep, now.Add(in), after)
		if err != nil {
			t.Fatal(err)
		}
		return upTo, n
	}
	left := func(want ...string) {
		t.Helper()
		if got := lines(t, l, LogQuery{Tenant: "main"}); !slices.Equal(got, want) {
			t.Fatalf("there are %q, want %q", got, want)
		}
	}
	if upTo, n := expire(time.Minute, 0); n != 0 || upTo != 0 {
		t.Error(upTo, n)
	}
	left("a1", "a2", "b2", "a3")
	upTo, n := expire(2*time.Hour, 0)
	if n != 1 || upTo != 2 {
		t.Error(upTo, n) // a3 has to be looked at again
	}
	left("a1", "b2", "a3")
	if upTo, n = expire(4*time.Hour, upTo); n != 1 || upTo != 4 {
		t.Error(upTo, n)
	}
	left("a1", "b2")
	if _, n := expire(1000*time.Hour, 0); n != 0 {
		t.Error(n)
	}
}

func TestLogsFollow(t *testing.T) {
	l := openLogs(t, openStore(t, t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan string, 10), make(chan error)
	go func() {
		done <- l.Read(ctx, LogQuery{Tenant: "main", Function: "a", Follow: true}, func(x bawn.LogLine) error { got <- x.Text; return nil })
	}()
	for i := range 5 {
		l.Write(bawn.LogLine{Tenant: "main", Function: "b", Text: "other"}, time.Hour)
		l.Write(bawn.LogLine{Tenant: "main", Function: "a", Text: strconv.Itoa(i)}, time.Hour)
		if x := <-got; x != strconv.Itoa(i) { // comes without a flush
			t.Fatalf("got %s, want %d", x, i)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// A flood is dropped beyond the bound, and the loss is said.
func TestLogsLost(t *testing.T) {
	l := openLogs(t, openStore(t, t.TempDir()))
	const n = 400
	for i := range n {
		l.Write(bawn.LogLine{Tenant: "main", Function: "a", Text: fmt.Sprintf("%d %s", i, strings.Repeat("x", 60<<10))}, time.Hour)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, lost := 0, 0
	l.Read(t.Context(), LogQuery{Tenant: "main", Function: "a"}, func(x bawn.LogLine) error {
		if !x.Platform {
			kept++
		} else if k, rest, ok := strings.Cut(x.Text, " "); ok && strings.HasPrefix(rest, "log lines were lost") {
			m, _ := strconv.Atoi(k)
			lost += m
		}
		return nil
	})
	if lost == 0 || kept == 0 || kept+lost != n {
		t.Fatalf("%d kept and %d said to be lost, of %d", kept, lost, n)
	}
}

// A store that does not write holds up nobody.
func TestLogsWithoutStore(t *testing.T) {
	s := openStore(t, t.TempDir())
	l := openLogs(t, s)
	s.Close()
	for range 100 {
		l.Write(bawn.LogLine{Tenant: "main", Function: "a", Text: "x"}, time.Hour)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, l.Flush(gone), bawn.CodeUnavailable)
}

func benchRecord() bawn.Record {
	return bawn.Record{Kind: bawn.KindOutcome, Tenant: "main", Function: "hello", Version: 3, Invocation: "6f1c9d4e-1c1b-4a58-9b83-6d3c0a1d8f10",
		Instance: "i-0123456789ab", Principal: "key:0123456789abcdef", Source: "127.0.0.1", Action: "invoke", Outcome: "ok",
		Detail: map[string]string{"durationMs": "12.3", "cold": "false"}}
}

// reportCPU adds what the whole process used for an operation, the server's
// part included; the time alone is that of the disk.
func reportCPU(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func BenchmarkAppend(b *testing.B) {
	l := openLog(b, b.TempDir())
	r := benchRecord()
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		for l.Append(b.Context(), r) != nil {
			time.Sleep(time.Millisecond) // faster than the disk: wait for the queue
		}
	}
}

func BenchmarkAppendDurable(b *testing.B) {
	l := openLog(b, b.TempDir())
	r := benchRecord()
	r.Kind = bawn.KindChange
	b.SetParallelism(64)
	defer reportCPU(b)()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := l.Append(b.Context(), r); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkWriteLine(b *testing.B) {
	l := openLogs(b, openStore(b, b.TempDir()))
	x := bawn.LogLine{Tenant: "main", Function: "hello", Version: 3, Invocation: "6f1c9d4e-1c1b-4a58-9b83-6d3c0a1d8f10", Instance: "i-0123456789ab",
		Text: "REPORT RequestId: 6f1c9d4e-1c1b-4a58-9b83-6d3c0a1d8f10 Duration: 1.02 ms Billed Duration: 2 ms"}
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		l.Write(x, time.Hour)
	}
}

// The records of a Bawn that kept them in the store are taken over once, in
// their order, and whoever reads can tell.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, t.TempDir())
	st, err := store.OpenStream(t.Context(), s, store.StreamConfig{Name: "evidence", MaxBytes: 64 << 20, AppendOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 30 {
		var data []byte
		for j := range 20 {
			r := bawn.Record{ID: fmt.Sprintf("%d-%d", i, j), Kind: bawn.KindDecision, Outcome: "deny", Tenant: "main"}
			data = append(append(data, appendRecord(nil, &r)...), '\n')
			want = append(want, r.ID)
		}
		if err := st.Publish(t.Context(), "records", data, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		l, err := Open(t.Context(), Config{Dir: dir, Key: make([]byte, 32), Before: s})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, records(t, l, Query{Kinds: []bawn.RecordKind{bawn.KindDecision}})); d != "" {
			t.Fatal(d)
		}
		l.Read(t.Context(), Query{Limit: 5, Kinds: []bawn.RecordKind{bawn.KindDecision}}, func(r bawn.Record) error {
			if r.Detail[importedMark] == "" {
				t.Error("it does not say that it was taken over")
			}
			return nil
		})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Old records go after a record that says so, and what is left verifies.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(t.Context(), Config{Dir: dir, Key: make([]byte, 32), MaxBytes: 100 << 10, Keep: "state.root"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Append(t.Context(), bawn.Record{Kind: bawn.KindNode, Action: "state.root", Detail: map[string]string{"tables": "kept"}}); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if err := l.Append(t.Context(), bawn.Record{Kind: bawn.KindOutcome, Reason: strings.Repeat("r", 200)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A flood does not wash away what is younger than a day.
	if err := l.prune(t.Context()); err != nil || l.First() != 0 {
		t.Fatal(l.First(), err)
	}
	l.cfg.MinAge = -1
	if err := l.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := ""
	if err := l.Read(t.Context(), Query{Action: "state.root", Limit: 1}, func(r bawn.Record) error { kept = r.Detail["tables"]; return nil }); err != nil || kept != "kept" {
		t.Errorf("the newest state.root is %q, %v", kept, err)
	}
	if _, err := l.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(records(t, l, Query{})); n == 0 || n > 500 {
		t.Fatalf("%d records are left", n)
	}
	keys, _, err := tlog.ParseKeys([]byte(l.Key()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := tlog.Verify(t.Context(), tlog.VerifyConfig{Dir: dir, Keys: keys})
	if err != nil || r.First == 0 {
		t.Fatal(r, err)
	}
}

// A spool that somebody emptied is not a clean end: the gap is a record.
func TestG1EmptiedSpoolShows(t *testing.T) {
	dir := t.TempDir()
	recovered := func(l *Log) (found []bawn.Record) {
		if err := l.Read(t.Context(), Query{Action: "audit.recover"}, func(r bawn.Record) error { found = append(found, r); return nil }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	l := openLog(t, dir)
	if err := l.Append(t.Context(), bawn.Record{Kind: bawn.KindChange, Action: "one"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, dir)
	if r := recovered(l); len(r) != 0 {
		t.Errorf("after a clean end: %v", r)
	}
	if _, err := os.Stat(filepath.Join(dir, "spool/clean")); err == nil {
		t.Error("the mark of a clean end outlives the next start")
	}
	l.Close()
	// As after a kill, with the spool removed.
	if err := os.Remove(filepath.Join(dir, "spool/clean")); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, dir)
	if r := recovered(l); len(r) != 1 || r[0].Outcome != "error" || r[0].Detail["from"] != "1" {
		t.Errorf("after an emptied spool: %v", r)
	}
}
