package tlog

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bawn.dev/bawn"
)

func openWitness(t testing.TB, dir string) *Witness {
	t.Helper()
	w, err := OpenWitness(WitnessConfig{Dir: dir, Name: "witness.test", Logs: logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func serve(t testing.TB, w *Witness) WitnessURL {
	t.Helper()
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	u, err := ParseWitnessURL(s.URL + "=" + w.Key())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestG3Witness: the witness signs what grows, remembers it over a restart, and
// refuses a log that was rolled back or forked, whose own key signs both.
func TestG3Witness(t *testing.T) {
	ctx, dir, wdir := t.Context(), t.TempDir(), t.TempDir()
	l := open(t, dir)
	w := openWitness(t, wdir)
	u := serve(t, w)
	for n := 0; n <= 900; n += 300 {
		if n > 0 {
			add(t, l, n-300, n)
		}
		c, err := l.Publish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the same once more is fine
			line, err := l.Submit(ctx, u, c, 0)
			if err != nil {
				t.Fatal(n, err)
			}
			if err := l.Cosigned(c, line); err != nil {
				t.Fatal(err)
			}
		}
		if n == 300 {
			if err := os.CopyFS(filepath.Join(wdir, "..", "old"), os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
		}
		if n == 600 {
			w.Close()
			w = openWitness(t, wdir)
			u = serve(t, w)
		}
	}
	key := keys(t, w.Key())
	r, err := Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: key})
	if err != nil || r.Cosigned != 900 || len(r.Cosigns) != 1 {
		t.Fatal(r, err)
	}
	seen, err := w.Seen(origin)
	if err != nil || seen.Size != 900 {
		t.Fatal(seen, err)
	}

	// Yesterday's disk, which verifies by itself, with its cosignature.
	old := filepath.Join(wdir, "..", "old")
	// A disk of yesterday has the signatures of yesterday.
	if _, err := Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: key, MaxAge: time.Hour}); err != nil {
		t.Error(err)
	}
	_, err = Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: key, MaxAge: time.Nanosecond})
	mustSay(t, err, "rolled back since")
	if _, err := Verify(ctx, VerifyConfig{Dir: old, Keys: logKey(t), Witnesses: key}); err != nil {
		t.Fatal(err)
	}
	_, err = Verify(ctx, VerifyConfig{Dir: old, Keys: logKey(t), Since: seen.Note})
	mustSay(t, err, "rolled back")
	back := open(t, old)
	c, _ := back.Publish(ctx)
	_, err = back.Submit(ctx, u, c, 300)
	mustSay(t, err, "rolled back")
	for range 600 {
		back.Append([]byte("another"))
	}
	c, _ = back.Publish(ctx)
	_, err = back.Submit(ctx, u, c, 300)
	mustSay(t, err, "forked")
	back.Append([]byte("another"))
	c, _ = back.Publish(ctx)
	_, err = back.Submit(ctx, u, c, 300)
	mustSay(t, err, "forked")

	// A cosigned checkpoint that stayed tells on a checkpoint that was rolled
	// back.
	l.Close()
	cosigned, _ := os.ReadFile(filepath.Join(dir, CosignedFile))
	for _, name := range []string{CheckpointFile, "tile/entries/001.p/44", "tile/0/001.p/44"} {
		b, err := os.ReadFile(filepath.Join(closed(t, 300), name))
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
		os.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
	os.MkdirAll(filepath.Join(dir, "tile/1/000.p"), 0o700)
	b, _ := os.ReadFile(filepath.Join(closed(t, 300), "tile/1/000.p/1"))
	os.WriteFile(filepath.Join(dir, "tile/1/000.p/1"), b, 0o600)
	os.WriteFile(filepath.Join(dir, CosignedFile), cosigned, 0o600)
	_, err = verify(t, dir)
	mustSay(t, err, "rolled back")
}

// A checkpoint without enough cosignatures does not hold where witnesses are
// asked for.
func TestG3Quorum(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	l := open(t, dir)
	add(t, l, 0, 10)
	c, _ := l.Publish(ctx)
	one, two := openWitness(t, t.TempDir()), openWitness(t, t.TempDir())
	line, err := l.Submit(ctx, serve(t, one), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	both := keys(t, one.Key(), two.Key())
	_, err = Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: both})
	mustSay(t, err, "no witness")
	l.Cosigned(c, line)
	_, err = Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: both[1:]})
	mustSay(t, err, "0 of the witnesses")
	if _, err = Verify(ctx, VerifyConfig{Dir: dir, Keys: logKey(t), Witnesses: both, Quorum: 1}); err != nil {
		t.Fatal(err)
	}
	r, err := l.Receipt(ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, signed, err := r.Verify(logKey(t), both[:1], 0); err != nil || len(signed) != 1 {
		t.Fatal(signed, err)
	}
	if _, _, err := r.Verify(logKey(t), both[1:], 0); err == nil {
		t.Fatal("a receipt without the witness's signature holds")
	}
}

// What the witness answers to whom it does not know, and to nonsense.
func TestWitnessRefuses(t *testing.T) {
	w := openWitness(t, t.TempDir())
	l := open(t, t.TempDir())
	add(t, l, 0, 5)
	c, _ := l.Publish(t.Context())
	foreign, err := Open(Config{Dir: t.TempDir(), Origin: "bawn.test/other", Seed: seed('o')})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	forged, err := Open(Config{Dir: t.TempDir(), Origin: origin, Seed: seed('o')})
	if err != nil {
		t.Fatal(err)
	}
	defer forged.Close()
	for _, x := range []struct {
		body string
		want int
	}{
		{"old 0\n\n" + string(foreign.Checkpoint().Note), 404},
		{"old 0\n\n" + string(forged.Checkpoint().Note), 403},
		{"old 9\n\n" + string(c.Note), 400},
		{"old 3\n\n" + string(c.Note), 409},
		{"old 0\n" + c.Root.String() + "\n\n" + string(c.Note), 422},
		{"old 00\n\n" + string(c.Note), 400},
		{"old -1\n\n" + string(c.Note), 400},
		{"", 400},
		{"old 0\nnonsense\n\n" + string(c.Note), 400},
		{strings.Repeat("x", 1<<20), 400},
		{"old 0\n\n" + string(c.Note), 200},
		{"old 0\n\n" + string(c.Note), 409},
		{"old 5\n\n" + string(c.Note), 200},
	} {
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(x.body)))
		if rec.Code != x.want {
			t.Errorf("%.40q: %d, want %d: %s", x.body, rec.Code, x.want, rec.Body)
		}
		if rec.Code == 409 && rec.Header().Get("Content-Type") != sizeType {
			t.Error("the size has another type")
		}
	}
	// What it has seen and cannot read is not nothing.
	os.WriteFile(filepath.Join(w.files.dir, stateFile(origin)), []byte("rubbish"), 0o600)
	if _, err := w.Cosign(0, nil, c.Note); err == nil {
		t.Error("it forgot what it had seen")
	}
	data := t.TempDir()
	os.WriteFile(filepath.Join(data, "root.secret"), nil, 0o600)
	if _, err := OpenWitness(WitnessConfig{Dir: filepath.Join(data, "witness"), Name: "w"}); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Error(err)
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add("bawn.test/log\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")
	f.Add("\n-1\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCheckpoint(text)
		if err == nil && (c.Size < 0 || !strings.HasPrefix(text, formatCheckpoint(c.Origin, c.Size, c.Root))) {
			t.Fatalf("%q became %+v", text, c)
		}
	})
}

func FuzzSegment(f *testing.F) {
	f.Add(appendFrame(segmentHead(7, "boot"), []byte("entry")))
	f.Add([]byte(spoolMagic + " 0 x\n\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSegment(data)
		if err != nil {
			return
		}
		b := segmentHead(s.first, s.boot)
		for _, e := range s.entries {
			b = appendFrame(b, e)
		}
		if !strings.HasPrefix(string(data), string(b)) || int64(len(data)-len(b)) != s.torn {
			t.Fatalf("%q reads as %q and %d bytes", data, b, s.torn)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add(appendEntry(appendEntry(nil, []byte("one")), nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := splitBundle(data)
		if err != nil {
			return
		}
		var b []byte
		for _, e := range entries {
			b = appendEntry(b, e)
		}
		if string(b) != string(data) {
			t.Fatalf("%q became %q", data, b)
		}
	})
}

func FuzzReceipt(f *testing.F) {
	f.Add([]byte(proofMagic + "\nextra ZW50cnk=\nindex 4\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\nx\n5\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseReceipt(text)
		if err != nil {
			return
		}
		again, err := ParseReceipt(r.Format())
		if err != nil || again.Index != r.Index || string(again.Entry) != string(r.Entry) || len(again.Proof) != len(r.Proof) {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func FuzzAddCheckpoint(f *testing.F) {
	f.Add([]byte("old 3\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\nx\n5\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		old, proof, checkpoint, err := parseAddCheckpoint(body)
		if err == nil && (old < 0 || len(proof) > maxProof || len(checkpoint) > len(body)) {
			t.Fatal(old, len(proof))
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add("bawn.test/log+8a5ac31c+AV1zzyJNW4nTpF4pOvGsc/tmQCQO0jHD8uPVQXMVgzXO")
	f.Fuzz(func(t *testing.T, line string) {
		v, _, err := ParseKey(line)
		if err == nil && (v == nil || v.Name() == "") {
			t.Fatal(line)
		}
		if err == nil {
			note.VerifierList(v)
		}
	})
}
