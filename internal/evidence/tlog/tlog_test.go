package tlog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

const origin = "bawn.test/log"

func seed(b byte) []byte { return []byte(strings.Repeat(string(rune(b)), 32)) }

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(Config{Dir: dir, Origin: origin, Seed: seed('k'), Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func add(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if n, err := l.Append(fmt.Appendf(nil, "entry %d", i)); err != nil || n != int64(i) {
			t.Fatal(n, err)
		}
	}
}

func keys(t testing.TB, lines ...string) []note.Verifier {
	t.Helper()
	logs, witnesses, err := ParseKeys([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return append(logs, witnesses...)
}

func logKey(t testing.TB) []note.Verifier {
	t.Helper()
	_, key, err := keyPair(origin, seed('k'))
	if err != nil {
		t.Fatal(err)
	}
	return keys(t, key)
}

// closed makes a log of n entries and closes it.
func closed(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 0, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func verify(t testing.TB, dir string) (Report, error) {
	t.Helper()
	return Verify(t.Context(), VerifyConfig{Dir: dir, Keys: logKey(t)})
}

func mustSay(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want something with %q", err, text)
	}
}

func TestVerify(t *testing.T) {
	for _, n := range []int{0, 1, 2, 255, 256, 257, 700, 66000} {
		if n > 1000 && testing.Short() {
			continue
		}
		dir := closed(t, n)
		r, err := verify(t, dir)
		if err != nil || r.Size != int64(n) || r.First != 0 || r.Spooled != 0 {
			t.Fatalf("%d: %+v %v", n, r, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, spoolDir, "*"+spoolSuffix)); len(left) != 0 {
			t.Fatalf("%d: %v stays", n, left)
		}
	}
}

// Entries come back as they were, before they are in a checkpoint, after it,
// and after a restart.
func TestEntries(t *testing.T) {
	dir := t.TempDir()
	n := 0
	for round := range 5 {
		l := open(t, dir)
		add(t, l, n, n+150)
		n += 150
		if round%2 == 0 {
			if c, err := l.Publish(t.Context()); err != nil || c.Size != int64(n) {
				t.Fatal(c, err)
			}
			add(t, l, n, n+7)
			n += 7
		}
		for i := 0; i < n; i++ {
			entries, first, err := l.Entries(int64(i))
			if err != nil || string(entries[int64(i)-first]) != fmt.Sprintf("entry %d", i) {
				t.Fatalf("%d: %v", i, err)
			}
		}
		if _, _, err := l.Entries(int64(n)); bawn.ErrorCode(err) != bawn.CodeNotFound {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(nil); bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Fatal(err)
		}
	}
}

// kill leaves a log as the end of its process would: nothing is closed in
// order.
func kill(t testing.TB, l *Log) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(l.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestG1Replay: what was acknowledged is there once, after a kill at any time.
func TestG1Replay(t *testing.T) {
	dir := t.TempDir()
	n := 0
	for round := range 8 {
		l := open(t, dir)
		if r := l.Recovery(); (round == 0) != r.Clean || r.Missing != 0 || r.Rebooted {
			t.Fatalf("round %d: %+v", round, r)
		}
		if l.Next() != int64(n) {
			t.Fatalf("round %d: %d entries, want %d", round, l.Next(), n)
		}
		add(t, l, n, n+100)
		n += 100
		if round%3 == 1 {
			l.Publish(t.Context())
			add(t, l, n, n+30)
			n += 30
		}
		dir = kill(t, l)
	}
	l := open(t, dir)
	if _, err := l.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := verify(t, dir); err != nil || r.Size != int64(n) {
		t.Fatal(r, err)
	}
	i := 0
	Range(t.Context(), dir, 0, func(_ int64, e []byte) error {
		if string(e) != fmt.Sprintf("entry %d", i) {
			t.Fatalf("%d is %s", i, e)
		}
		i++
		return nil
	})
}

// segments returns the spool's files.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, spoolDir, "*"+spoolSuffix))
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	return all
}

// TestG1Torn: a last entry that was not wholly written is cut, and said.
func TestG1Torn(t *testing.T) {
	l := open(t, t.TempDir())
	add(t, l, 0, 20)
	for cut := 1; cut < 16; cut++ {
		dir := kill(t, l)
		seg := segments(t, dir)[0]
		st, _ := os.Stat(seg)
		if err := os.Truncate(seg, st.Size()-int64(cut)); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		if r := l.Recovery(); r.Replayed != 19 || r.Torn == 0 || l.Next() != 19 {
			t.Fatalf("%+v", r)
		}
		if i, err := l.Append([]byte("next")); i != 19 || err != nil {
			t.Fatal(i, err)
		}
	}
}

// TestG1PowerCut: what a machine that stopped has lost shows as a gap.
func TestG1PowerCut(t *testing.T) {
	l := open(t, t.TempDir())
	add(t, l, 0, 20)
	dir := kill(t, l)
	seg := segments(t, dir)[0]
	b, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seg, []byte(strings.Replace(string(b), bootID(), "another", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := open(t, dir).Recovery(); !r.Rebooted || r.Clean {
		t.Fatalf("%+v", r)
	}
}

// A segment that is gone from the middle is told, and what follows is kept.
func TestG1DamagedSpool(t *testing.T) {
	l := open(t, t.TempDir())
	add(t, l, 0, 10)
	l.sequencing.Lock()
	if err := l.rotate(); err != nil {
		t.Fatal(err)
	}
	l.sequencing.Unlock()
	add(t, l, 10, 20)
	dir := kill(t, l)
	seg := segments(t, dir)[0]
	b, _ := os.ReadFile(seg)
	b[len(b)-60] ^= 1
	os.WriteFile(seg, b, 0o600)
	l = open(t, dir)
	r := l.Recovery()
	if r.Missing == 0 || r.Replayed+r.Missing != 20 {
		t.Fatalf("%+v", r)
	}
}

// Many at once get each their index, and share writes and syncs.
func TestAppendTogether(t *testing.T) {
	l := open(t, t.TempDir())
	var wg sync.WaitGroup
	var mu sync.Mutex
	at := map[int64]string{}
	for w := range 16 {
		wg.Go(func() {
			for i := range 100 {
				text := fmt.Sprintf("%d-%d", w, i)
				n, err := l.Append([]byte(text))
				if i%10 == 0 && err == nil {
					err = l.Sync(context.Background(), n+1)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				at[n] = text
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(at) != 1600 {
		t.Fatal(len(at))
	}
	for n, text := range at {
		entries, first, err := l.Entries(n)
		if err != nil || string(entries[n-first]) != text {
			t.Fatal(n, err)
		}
	}
}

// A disk that fails stops what is new; what was acknowledged stays, and it goes
// on once the disk does.
func TestG1Repair(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 0, 10)
	l.writing.Lock()
	l.seg.Close() // every write fails, and so does undoing it
	l.writing.Unlock()
	if _, err := l.Append([]byte("not")); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Fatal(err)
	}
	for {
		if n, err := l.Append([]byte("entry 10")); err == nil {
			if n != 10 {
				t.Fatal(n)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := l.Sync(t.Context(), 11); err != nil {
		t.Fatal(err)
	}
	dir = kill(t, l)
	l = open(t, dir)
	if r := l.Recovery(); r.Replayed != 11 || r.Missing != 0 {
		t.Fatalf("%+v", r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t, dir); err != nil {
		t.Fatal(err)
	}
}

// What waits is bounded.
func TestBacklog(t *testing.T) {
	l := open(t, t.TempDir())
	l.mu.Lock()
	l.waiting = maxWaiting
	l.mu.Unlock()
	if _, err := l.Append([]byte("x")); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Fatal(err)
	}
	if _, err := l.Append(make([]byte, MaxEntry+1)); bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.waiting = 0
	l.mu.Unlock()
}

func edit(t testing.TB, path string, fn func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fn(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestG2Edited: an entry that was changed is found, in a full bundle and in one
// that is not, with its hashes left alone or made to fit.
func TestG2Edited(t *testing.T) {
	for _, name := range []string{"tile/entries/000", "tile/entries/002.p/188"} {
		dir := closed(t, 700)
		edit(t, filepath.Join(dir, name), func(b []byte) []byte { b[5] ^= 1; return b })
		_, err := verify(t, dir)
		mustSay(t, err, "was changed")
	}
	for _, name := range []string{"tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2"} {
		dir := closed(t, 700)
		edit(t, filepath.Join(dir, name), func(b []byte) []byte { b[40] ^= 1; return b })
		if _, err := verify(t, dir); err == nil {
			t.Fatalf("a changed %s goes unnoticed", name)
		}
	}
	// The entry and its hash together: the root does not fit.
	dir := closed(t, 700)
	var changed merkle.Hash
	edit(t, filepath.Join(dir, "tile/entries/000"), func(b []byte) []byte {
		b[2] ^= 1
		changed = merkle.RecordHash(b[2 : 2+len("entry 0")])
		return b
	})
	edit(t, filepath.Join(dir, "tile/0/000"), func(b []byte) []byte { copy(b, changed[:]); return b })
	_, err := verify(t, dir)
	mustSay(t, err, "were changed")
	// A checkpoint that another key has signed.
	dir = closed(t, 10)
	_, other, _ := keyPair(origin, seed('x'))
	_, err = Verify(t.Context(), VerifyConfig{Dir: dir, Keys: keys(t, other)})
	mustSay(t, err, "none of the keys")
}

// TestG2Deleted: the end, the middle or the beginning cannot go.
func TestG2Deleted(t *testing.T) {
	for _, name := range []string{"tile/entries/002.p/188", "tile/entries/001", "tile/entries/000", "tile/0/000", CheckpointFile} {
		dir := closed(t, 700)
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(t, dir); err == nil {
			t.Errorf("%s is gone and nobody notices", name)
		}
	}
	// The tail, entries and checkpoint rewritten without the key.
	dir := closed(t, 700)
	edit(t, filepath.Join(dir, CheckpointFile), func(b []byte) []byte { return []byte(strings.Replace(string(b), "\n700\n", "\n690\n", 1)) })
	_, err := verify(t, dir)
	mustSay(t, err, "invalid signature")
}

// TestG3Rollback: an older state of the whole folder verifies by itself, and
// not against a checkpoint seen later.
func TestG3Rollback(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 0, 300)
	if _, err := l.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := kill(t, l)
	older, _ := l.Publish(t.Context())
	add(t, l, 300, 700)
	newer, err := l.Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(t.Context(), VerifyConfig{Dir: dir, Keys: logKey(t), Since: older.Note}); err != nil || r.Since != 300 {
		t.Fatal(r, err)
	}
	if _, err := verify(t, old); err != nil {
		t.Fatal(err)
	}
	_, err = Verify(t.Context(), VerifyConfig{Dir: old, Keys: logKey(t), Since: newer.Note})
	mustSay(t, err, "rolled back")
	// The log itself goes on from there: it is a fork from then on.
	l = open(t, old)
	for i := range 500 {
		if _, err := l.Append(fmt.Appendf(nil, "another %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	_, err = Verify(t.Context(), VerifyConfig{Dir: old, Keys: logKey(t), Since: newer.Note})
	mustSay(t, err, "forked")
}

// TestG3Fork: a log rewritten with its own key does not have the checkpoints
// that were seen.
func TestG3Fork(t *testing.T) {
	one, other := closed(t, 700), t.TempDir()
	l := open(t, other)
	add(t, l, 0, 350)
	if _, err := l.Append([]byte("entry 350 rewritten")); err != nil {
		t.Fatal(err)
	}
	add(t, l, 351, 900)
	l.Close()
	seen, err := os.ReadFile(filepath.Join(one, CheckpointFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t, other); err != nil {
		t.Fatal(err)
	}
	_, err = Verify(t.Context(), VerifyConfig{Dir: other, Keys: logKey(t), Since: seen})
	mustSay(t, err, "forked")
}

// The node itself does not go on with a log that was tampered with.
func TestOpenRefuses(t *testing.T) {
	for name, fn := range map[string]func(string) error{
		"no checkpoint": func(dir string) error { return os.Remove(filepath.Join(dir, CheckpointFile)) },
		"no last tile":  func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tile/0/002.p")) },
		"changed end": func(dir string) error {
			edit(t, filepath.Join(dir, "tile/entries/002.p/188"), func(b []byte) []byte { b[9] ^= 1; return b })
			return nil
		},
		"changed tile": func(dir string) error {
			edit(t, filepath.Join(dir, "tile/1/000.p/2"), func(b []byte) []byte { b[9] ^= 1; return b })
			return nil
		},
	} {
		dir := closed(t, 700)
		if err := fn(dir); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Config{Dir: dir, Origin: origin, Seed: seed('k')})
		if bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		if l != nil {
			l.Close()
		}
	}
	dir := closed(t, 10)
	if _, err := Open(Config{Dir: dir, Origin: origin, Seed: seed('x')}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Error(err)
	}
}

// What was pruned can be told from what was deleted.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 0, 1000)
	l.Publish(t.Context())
	if err := l.Prune(t.Context(), 512); err != nil {
		t.Fatal(err)
	}
	if l.First() != 512 {
		t.Fatal(l.First())
	}
	_, err := verify(t, dir)
	mustSay(t, err, "the first 512 entries are missing")
	l.Append([]byte(`{"kind":"node","action":"audit.prune","outcome":"ok","detail":{"before":"512"}}`))
	l.Publish(t.Context())
	if r, err := verify(t, dir); err != nil || r.First != 512 {
		t.Fatal(r, err)
	}
	if _, _, err := l.Entries(5); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "tile/entries/002"))
	_, err = verify(t, dir)
	mustSay(t, err, "the first 768 entries are missing")
}

func TestReceipt(t *testing.T) {
	l := open(t, t.TempDir())
	add(t, l, 0, 300)
	for _, i := range []int64{0, 7, 255, 256, 299} {
		r, err := l.Receipt(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		r, err = ParseReceipt(r.Format())
		if err != nil {
			t.Fatal(err)
		}
		if c, _, err := r.Verify(logKey(t), nil, 0); err != nil || c.Size != 300 || string(r.Entry) != fmt.Sprintf("entry %d", i) {
			t.Fatal(c, err)
		}
		forged := *r
		forged.Entry = []byte("forged")
		_, _, err = forged.Verify(logKey(t), nil, 0)
		mustSay(t, err, "is not at the index")
		forged = *r
		forged.Index++
		_, _, err = forged.Verify(logKey(t), nil, 0)
		mustSay(t, err, "is not at the index")
		_, other, _ := keyPair(origin, seed('x'))
		_, _, err = r.Verify(keys(t, other), nil, 0)
		mustSay(t, err, "none of the keys")
	}
	if _, err := l.Receipt(t.Context(), 300); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Fatal(err)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 0, 600)
	l.Publish(t.Context())
	to := filepath.Join(t.TempDir(), "copy")
	if c, err := Copy(t.Context(), to, logKey(t), l.Resource); err != nil || c.Size != 600 {
		t.Fatal(c, err)
	}
	if r, err := verify(t, to); err != nil || r.Size != 600 {
		t.Fatal(r, err)
	}
	if _, err := Copy(t.Context(), to, logKey(t), DirResource(dir)); bawn.ErrorCode(err) != bawn.CodeConflict {
		t.Fatal(err)
	}
	for _, path := range []string{"keys.pub", "spool/x", "../checkpoint", "tile/../checkpoint", "tile/0/0", "tile/data/000", "tile/entries/000/..", "/etc/passwd", "tile/0/000.p/300"} {
		if _, err := l.Resource(path); bawn.ErrorCode(err) != bawn.CodeNotFound {
			t.Errorf("%s: %v", path, err)
		}
	}
}
