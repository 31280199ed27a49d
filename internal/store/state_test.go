package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

const blocksOfThings = "jetstream/$G/streams/KV_things/msgs"

// history makes a store whose table things has been written to, with a value that
// was changed, one that was deleted and one that was deleted last.
func history(t *testing.T) (dir string, want map[string]thing) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir)
	tb := table(t, s)
	want = map[string]thing{}
	revs := map[string]uint64{}
	for i := range 20 {
		k := fmt.Sprintf("main.f%d", i)
		want[k] = thing{Name: k, N: i}
		rev, err := tb.Create(t.Context(), k, want[k])
		if err != nil {
			t.Fatal(err)
		}
		revs[k] = rev
	}
	want["main.f3"] = thing{Name: "main.f3", N: 333}
	if _, err := tb.Update(t.Context(), "main.f3", want["main.f3"], revs["main.f3"]); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"main.f5", "main.f19"} {
		if err := tb.Delete(t.Context(), k, revs[k]); err != nil {
			t.Fatal(err)
		}
		delete(want, k)
	}
	s.Close()
	return dir, want
}

// trim takes the zeros off the manifest's end, so that its size is what it says.
func trim(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "state/things.manifest")
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, bytes.TrimRight(b, "\x00"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	cp := t.TempDir()
	if err := os.CopyFS(cp, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return cp
}

// judge opens the table of a store that was damaged, and fails the test if any key
// has another meaning than it had: each is as it was, or refused. It returns
// whether the damage was seen.
func judge(t *testing.T, dir, what string, want map[string]thing, gone []string) (seen bool) {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		wantCode(t, err, bawn.CodeUnavailable)
		return true
	}
	defer s.Close()
	return judgeStore(t, s, what, want, gone)
}

func judgeStore(t *testing.T, s *Store, what string, want map[string]thing, gone []string) (seen bool) {
	t.Helper()
	tb, err := OpenTable[thing](t.Context(), s, "things")
	if err != nil {
		t.Errorf("%s: the table does not open: %v", what, err)
		return true
	}
	refused := 0
	for k, w := range want {
		v, _, ok, err := tb.Find(k)
		switch {
		case err != nil:
			refused++
			if bawn.ErrorCode(err) != bawn.CodeUnavailable || !tb.Lost(k) || ok {
				t.Errorf("%s: %s is refused with %v, lost %v", what, k, err, tb.Lost(k))
			}
			if _, err := tb.Create(t.Context(), k, w); bawn.ErrorCode(err) != bawn.CodeUnavailable && bawn.ErrorCode(err) != bawn.CodeConflict {
				t.Errorf("%s: %s is lost, and was written over: %v", what, k, err)
			}
		case !ok || v != w:
			t.Errorf("%s: %s is %v %v, want %v or an error", what, k, v, ok, w)
		}
	}
	for _, k := range gone {
		if v, _, ok, _ := tb.Find(k); ok {
			t.Errorf("%s: %s was deleted and is %v again", what, k, v)
		}
	}
	for k, v := range tb.All("") {
		if w, ok := want[k]; !ok || w != v {
			t.Errorf("%s: All yields %s %v", what, k, v)
		}
	}
	if refused > 0 && (tb.Trusted() == nil || len(s.Damaged()) == 0) {
		t.Errorf("%s: %d keys are refused, and it is not said: %v %v", what, refused, tb.Trusted(), s.Damaged())
	}
	return len(s.Damaged()) > 0
}

var goneThings = []string{"main.f5", "main.f19", "main.never"}

// Each single flipped bit, in any byte of the blocks, of their index, of the
// stream's description and of the manifest, is harmless or found: no value
// vanishes, comes back or changes in silence.
func TestBitFlips(t *testing.T) {
	dir, want := history(t)
	var files []string
	for _, pattern := range []string{blocksOfThings + "/*", "jetstream/$G/streams/KV_things/*", "state/things.manifest"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		files = append(files, found...)
	}
	steps := 9
	if testing.Short() {
		steps = 3
	}
	found, tried := 0, 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || len(data) == 0 {
			continue // a folder
		}
		name, _ := filepath.Rel(dir, file)
		var places []int
		// The head of some records, byte by byte, and a sample of everything.
		if strings.HasSuffix(name, ".blk") {
			for _, k := range []string{"f0", "f7", "f3"} {
				i := bytes.Index(data, []byte("$KV.things.main."+k))
				places = append(places, i-22, i-19, i-18, i-11, i-10, i-1, i+3, i+30)
			}
		}
		for i := range steps {
			places = append(places, i*(len(data)-1)/(steps-1))
		}
		for n, at := range places {
			for _, index := range []bool{true, false} {
				if !index && !strings.HasSuffix(name, ".blk") {
					continue
				}
				cp := copyOf(t, dir)
				bad := bytes.Clone(data)
				bad[at] ^= 1 << (n % 8)
				if err := os.WriteFile(filepath.Join(cp, name), bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if !index { // without it the server reads the blocks themselves
					os.Remove(filepath.Join(cp, blocksOfThings, "index.db"))
				}
				tried++
				if judge(t, cp, fmt.Sprintf("%s, bit %d of byte %d, index %v", name, n%8, at, index), want, goneThings) {
					found++
				}
			}
		}
	}
	if found == 0 {
		t.Fatal("no flipped bit was found: the test flips nothing")
	}
	t.Logf("%d flipped, %d found", tried, found)
}

// Files that are cut short, gone, or from another day.
func TestStateDamage(t *testing.T) {
	dir, right := history(t)
	manifest := "state/things.manifest"
	blocks, err := filepath.Glob(filepath.Join(dir, blocksOfThings, "*.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	block, _ := filepath.Rel(dir, blocks[0])
	older := copyOf(t, dir)
	// What happens after the copy: one row more, one changed, one revoked.
	s := open(t, dir)
	tb := table(t, s)
	_, rev1, _ := tb.Get("main.f1")
	_, rev2, _ := tb.Get("main.f2")
	if _, err := tb.Update(t.Context(), "main.f1", thing{Name: "new", N: -1}, rev1); err != nil {
		t.Fatal(err)
	}
	if err := tb.Delete(t.Context(), "main.f2", rev2); err != nil {
		t.Fatal(err)
	}
	if _, err := tb.Create(t.Context(), "main.later", thing{N: 9}); err != nil {
		t.Fatal(err)
	}
	right["main.f1"], right["main.later"] = thing{Name: "new", N: -1}, thing{N: 9}
	delete(right, "main.f2")
	gone := append(slices.Clone(goneThings), "main.f2")
	head, err := s.Head()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	trim(t, dir)

	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	cut := func(name string, n int64) func(string) error {
		return func(d string) error {
			os.Remove(filepath.Join(d, blocksOfThings, "index.db"))
			return os.Truncate(filepath.Join(d, name), n)
		}
	}
	replace := func(names ...string) func(string) error {
		return func(d string) error {
			for _, name := range names {
				if err := os.RemoveAll(filepath.Join(d, name)); err != nil {
					return err
				}
				from := filepath.Join(older, name)
				if info, err := os.Stat(from); err != nil {
					return err
				} else if info.IsDir() {
					if err := os.CopyFS(filepath.Join(d, name), os.DirFS(from)); err != nil {
						return err
					}
					continue
				}
				b, err := os.ReadFile(from)
				if err == nil {
					err = os.WriteFile(filepath.Join(d, name), b, 0o600)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	remove := func(name string) func(string) error {
		return func(d string) error { return os.RemoveAll(filepath.Join(d, name)) }
	}
	type damage struct {
		name  string
		do    func(string) error
		whole bool // all must be refused
	}
	all := []damage{
		{"nothing", func(string) error { return nil }, false},
		{"no manifest", remove(manifest), true},
		{"no manifests at all", remove("state"), true},
		{"no block", remove(block), true},
		{"no messages", remove(blocksOfThings), true},
		{"no stream", remove("jetstream/$G/streams/KV_things"), true},
		{"no JetStream", remove("jetstream"), true},
		{"the manifest of another table", func(d string) error {
			m := manifestFile{signer: signer{"others", open(t, t.TempDir()).key}, path: filepath.Join(d, manifest)}
			data, _ := m.snapshot(map[string]want{}, 0)
			return os.WriteFile(filepath.Join(d, manifest), data, 0o600)
		}, true},
		{"a manifest signed by another node", func(d string) error {
			_, key, _ := ed25519.GenerateKey(nil)
			data, _ := signer{"things", key}.snapshot(map[string]want{"main.f0": {1, sha256.Sum256(nil)}}, 30)
			return os.WriteFile(filepath.Join(d, manifest), data, 0o600)
		}, true},
		{"an older manifest", replace(manifest), false},
		{"an older stream", replace("jetstream"), false},
		{"an older store and manifest", replace("jetstream", "state"), true},
		{"a description that is garbage", func(d string) error {
			return os.WriteFile(filepath.Join(d, "jetstream/$G/streams/KV_things/meta.inf"), []byte("{garbage"), 0o600)
		}, true},
	}
	for _, part := range []int64{0, 1, 3, 5, 7} {
		all = append(all,
			damage{fmt.Sprintf("the block cut to %d/8", part), cut(block, size(block)*part/8), false},
			damage{fmt.Sprintf("the manifest cut to %d/8", part), cut(manifest, size(manifest)*part/8), false})
	}
	all = append(all, damage{"the manifest cut within its last line", cut(manifest, size(manifest)-20), false})
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			cp := copyOf(t, dir)
			if err := d.do(cp); err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), Config{Dir: cp})
			if err != nil {
				wantCode(t, err, bawn.CodeUnavailable)
				return
			}
			defer s.Close()
			s.Expect(ParseHeads(head.String())) // as the evidence has it
			seen := judgeStore(t, s, d.name, right, gone)
			if d.name == "nothing" && seen {
				t.Errorf("undamaged, and %v", s.Damaged())
			}
			if d.whole && !seen {
				t.Error("nothing was found")
			}
			for k := range right {
				if tb := s.tables()[0].(*Table[thing]); d.whole && !tb.Lost(k) {
					t.Errorf("%s is not refused", k)
				}
			}
		})
	}
}

// Without what the evidence knows, a rollback of everything cannot be told: this
// is why its root goes there.
func TestRollbackOfAllNeedsTheEvidence(t *testing.T) {
	dir, _ := history(t)
	s := open(t, dir)
	table(t, s)
	before, err := s.Head()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	older := copyOf(t, dir)
	s = open(t, dir)
	if _, err := table(t, s).Create(t.Context(), "more", thing{}); err != nil {
		t.Fatal(err)
	}
	after, err := s.Head()
	if err != nil || after.Root == before.Root || after.Tables["things"] != before.Tables["things"]+1 {
		t.Fatalf("%v then %v: %v", before, after, err)
	}
	s.Close()
	s = open(t, older)
	s.Expect(after.Tables)
	tb := table(t, s)
	if tb.Trusted() == nil || tb.Len() != 0 {
		t.Error("a table that was rolled back is trusted")
	}
	if !cmp.Equal(ParseHeads(after.String()), after.Tables) {
		t.Errorf("%q does not say %v", after.String(), after.Tables)
	}
}

// A check of a running store finds what has become of the disk, says that it goes
// on, and goes on.
func TestCheckFindsDamageUnderARunningStore(t *testing.T) {
	dir, want := history(t)
	s := open(t, dir)
	tb := table(t, s)
	r, err := s.Check(t.Context())
	if err != nil || len(r.Damage) != 0 || r.Rows != len(want) || r.Root == "" {
		t.Fatalf("undamaged: %+v %v", r, err)
	}
	if err := os.Truncate(filepath.Join(dir, "state/things.manifest"), 100); err != nil {
		t.Fatal(err)
	}
	if err := tb.js.Purge(t.Context()); err != nil { // as if every block had gone
		t.Fatal(err)
	}
	r, err = s.Check(t.Context())
	if err != nil || len(r.Damage) != len(want)+1 {
		t.Fatalf("after: %+v %v", r, err)
	}
	for _, d := range r.Damage {
		if d.Refused {
			t.Errorf("%v is refused by a node that has it", d)
		}
	}
	if v, _, ok := tb.Get("main.f7"); !ok || v.N != 7 {
		t.Error("the running store forgot a value")
	}
}

// Accept gives up what is damaged, and nothing else; what was deleted stays so.
func TestAccept(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(dir string) error
		left func(n int) bool
	}{
		"nothing":     {func(string) error { return nil }, func(n int) bool { return n == 18 }},
		"no manifest": {func(d string) error { return os.Remove(filepath.Join(d, "state/things.manifest")) }, func(n int) bool { return n == 18 }},
		"no block":    {func(d string) error { return os.RemoveAll(filepath.Join(d, blocksOfThings)) }, func(n int) bool { return n == 0 }},
		"garbage": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "jetstream/$G/streams/KV_things/meta.inf"), []byte("{garbage"), 0o600)
		}, func(n int) bool { return n == 0 || n == 18 }},
	} {
		t.Run(name, func(t *testing.T) {
			dir, want := history(t)
			if err := c.do(dir); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			table(t, s)
			given, err := s.Accept(t.Context())
			if err != nil || (len(given) == 0) != (name == "nothing") {
				t.Fatal(given, err)
			}
			s.Close()
			s = open(t, dir)
			tb := table(t, s)
			if tb.Trusted() != nil || len(s.Damaged()) > 0 || !c.left(tb.Len()) {
				t.Fatalf("after accepting: %v, %v, %d rows", tb.Trusted(), s.Damaged(), tb.Len())
			}
			for k, v := range tb.All("") {
				if want[k] != v {
					t.Errorf("%s is %v", k, v)
				}
			}
			if _, err := tb.Create(t.Context(), "main.again", thing{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Manifests do not grow without end, and hold after they were written anew.
func TestManifestIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tb := table(t, s)
	rev, err := tb.Create(t.Context(), "k", thing{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range manifestSlack + 50 {
		if rev, err = tb.Update(t.Context(), "k", thing{N: i}, rev); err != nil {
			t.Fatal(err)
		}
	}
	if tb.manifest.lines > manifestSlack {
		t.Errorf("%d lines for one row", tb.manifest.lines)
	}
	s.Close()
	s = open(t, dir)
	tb = table(t, s)
	if v, _, ok := tb.Get("k"); !ok || v.N != manifestSlack+49 || len(s.Damaged()) > 0 {
		t.Errorf("%v %v %v", v, ok, s.Damaged())
	}
}

// A table that an older Bawn wrote gets its manifest once, if its seal holds.
func TestUpgradeFromSeal(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tb := table(t, s)
	var sum [sha256.Size]byte
	seal := ""
	for i := range 3 {
		data, _ := json.Marshal(thing{N: i})
		one := rowSum(strconv.Itoa(i), data)
		for j := range sum {
			sum[j] ^= one[j]
		}
		seal = fmt.Sprintf("%d:%s", i+1, hex.EncodeToString(sum[:]))
		m := nats.NewMsg(tb.prefix + strconv.Itoa(i))
		m.Data = data
		m.Header.Set(sealHeader, seal)
		if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	text := "3 " + seal + " "
	text += fmt.Sprintf("%x\n", sha256.Sum256([]byte(text)))
	file := slices.Concat(make([]byte, sealSlot), []byte(text))
	if err := os.WriteFile(s.sealPath("things"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for name, spoil := range map[string]func(d string) error{
		"whole":     func(string) error { return nil },
		"no seal":   func(d string) error { return os.Remove(filepath.Join(d, "seal-things")) },
		"cut seal":  func(d string) error { return os.Truncate(filepath.Join(d, "seal-things"), 600) },
		"no blocks": func(d string) error { return os.RemoveAll(filepath.Join(d, blocksOfThings)) },
	} {
		cp := copyOf(t, dir)
		if err := spoil(cp); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s := open(t, cp)
			tb := table(t, s)
			if whole := name == "whole"; whole != (tb.Trusted() == nil) || whole != (tb.Len() == 3) {
				t.Errorf("%s: %d rows, %v", name, tb.Len(), tb.Trusted())
			}
			if _, err := os.Stat(s.sealPath("things")); name == "whole" && err == nil {
				t.Error("the seal is still there")
			}
			s.Close()
		}
	}
}

// A copy of all tables is taken at one moment, and can be read into another store.
func TestCopyAndImport(t *testing.T) {
	dir, want := history(t)
	s := open(t, dir)
	tb := table(t, s)
	all, err := s.Copy()
	if err != nil || len(all) != 1 || all[0].Len != len(want) {
		t.Fatal(all, err)
	}
	if _, err := tb.Create(t.Context(), "after", thing{}); err != nil {
		t.Fatal(err)
	}
	other := open(t, t.TempDir())
	if err := Import(t.Context(), other, all[0].Name, all[0].Rows); err != nil {
		t.Fatal(err)
	}
	got := map[string]thing{}
	for k, v := range table(t, other).All("") {
		got[k] = v
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	wantCode(t, Import(t.Context(), other, all[0].Name, all[0].Rows), bawn.CodeConflict)
}

// childTable writes, changes and deletes without end, and says what was
// acknowledged.
func childTable(dir string) {
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
	die(tb.Trusted())
	for i := 0; ; i++ {
		key := fmt.Sprint("k", i%7)
		_, rev, ok := tb.Get(key)
		switch {
		case !ok:
			_, err = tb.Create(ctx, key, thing{key, i})
		case i%5 == 0:
			err = tb.Delete(ctx, key, rev)
		default:
			_, err = tb.Update(ctx, key, thing{key, i}, rev)
		}
		die(err)
		fmt.Println("done", i)
	}
}

// A crash at any moment of a write is not taken for damage.
func TestKillIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD=table", "STORE_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if strings.HasPrefix(sc.Text(), "error") {
				t.Error(sc.Text())
			}
			if lines++; lines == 20+round*13 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if t.Failed() {
			return
		}
	}
	s := open(t, dir)
	if tb := table(t, s); tb.Trusted() != nil || len(s.Damaged()) > 0 {
		t.Errorf("%v %v", tb.Trusted(), s.Damaged())
	}
}

// What a crash can leave between a row and its line: the row is there, the line is
// not, or half of it is.
func TestCrashBetweenRowAndManifest(t *testing.T) {
	dir, want := history(t)
	trim(t, dir)
	name := filepath.Join(dir, "state/things.manifest")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for _, n := range []int{last, last + 1, last + 100, len(whole) - 1} {
		cp := copyOf(t, dir)
		file := filepath.Join(cp, "state/things.manifest")
		if err := os.Truncate(file, int64(n)); err != nil {
			t.Fatal(err)
		}
		if judge(t, cp, fmt.Sprintf("cut at %d of %d", n, len(whole)), want, goneThings) {
			t.Errorf("cut at %d of %d: a crash is taken for damage", n, len(whole))
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(bytes.TrimRight(got, "\x00"), whole) {
			t.Errorf("cut at %d: the manifest was not completed: %v", n, err)
		}
	}
}

func BenchmarkTableWrite(b *testing.B) {
	tb := table(b, open(b, b.TempDir()))
	rev, err := tb.Create(b.Context(), "main.a", thing{"a", 1})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if rev, err = tb.Update(b.Context(), "main.a", thing{"a", 2}, rev); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	s := signer{"things", ed25519.NewKeyFromSeed(make([]byte, 32))}
	data, c := s.snapshot(map[string]want{"a": {3, sha256.Sum256(nil)}, "b.c": {5, sha256.Sum256(nil)}}, 7)
	next := line{seq: 9, key: "x", del: true}
	s.sign(c.chain, &next)
	f.Add(data)
	f.Add(append(bytes.Clone(data), (next.String() + "\n")...))
	f.Add([]byte(s.first() + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, ok := s.readManifest(data)
		if !ok {
			return
		}
		if c.size > int64(len(data)) || c.seq == 0 && len(c.rows) > 0 {
			t.Fatalf("%+v", c)
		}
		// What is good is good alone, and says the same.
		again, ok := s.readManifest(data[:c.size])
		if !ok || again.seq != c.seq || again.chain != c.chain || !cmp.Equal(again.rows, c.rows, cmp.AllowUnexported(want{})) {
			t.Fatal("the good part reads differently")
		}
		for k, w := range c.rows {
			if checkKey(k) != nil || w.rev == 0 || w.rev > c.seq {
				t.Fatalf("%q %+v", k, w)
			}
		}
	})
}
