package interior

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
)

// newTestOutput returns an output over a pipe, and the pipe's other end.
func newTestOutput(t testing.TB) (*output, *os.File, *kept) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{}
	o, err := newOutput(r, version(nil), "i1", k.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); r.Close() })
	return o, w, k
}

// What was printed before the answer is in the log before END, even where the
// reader in the background had no time to run.
func TestOutputBelongsToItsCall(t *testing.T) {
	o, w, k := newTestOutput(t)
	io.WriteString(w, "loading\n")
	var want strings.Builder
	want.WriteString("|loading\n")
	// The reader in the background does not run at all at first.
	for i := range 50 {
		if i == 25 {
			go o.run()
		}
		id := fmt.Sprint("call-", i)
		o.begin(id, time.Now(), false)
		fmt.Fprintf(w, "hello %d\nno newline", i)
		o.end(id, &bawn.Usage{Duration: 1234567 * time.Nanosecond, MaxMemory: 20<<20 + 1}, 256<<20)
		fmt.Fprintf(&want, "%[1]s|START RequestId: %[1]s Version: 1\n%[1]s|hello %[2]d\n%[1]s|no newline\n%[1]s|END RequestId: %[1]s\n"+
			"%[1]s|REPORT RequestId: %[1]s\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 256 MB\tMax Memory Used: 21 MB\t\n", id, i)
	}
	if got := k.text(); got != want.String() {
		t.Errorf("got\n%s\nwant\n%s", got, want.String())
	}
	w.Close()
	<-o.done
}

func TestOutputLines(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"empty lines", "a\n\nb\n", []string{"a", "", "b"}},
		{"no end", "a", []string{"a"}},
		{"carriage return", "a\r\nb\r\n", []string{"a", "b"}},
		{"not UTF-8", "a\xffb\n", []string{"a\uFFFDb"}},
		{"long", strings.Repeat("x", maxLogLine+5) + "\n", []string{strings.Repeat("x", maxLogLine), "xxxxx"}},
		{"just as long", strings.Repeat("x", maxLogLine) + "\ny\n", []string{strings.Repeat("x", maxLogLine), "y"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, w, k := newTestOutput(t)
			go o.run()
			io.WriteString(w, test.in)
			w.Close()
			<-o.done
			var got []string
			for _, l := range k.lines {
				got = append(got, l.Text)
				if l.Function != "hello" || l.Version != 1 || l.Instance != "i1" || l.Tenant != "main" || l.Platform {
					t.Errorf("line %+v", l)
				}
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.want) {
				t.Errorf("got %.200q\nwant %.200q", got, test.want)
			}
		})
	}
}

// A flood is bounded, said, and does not stop what comes later.
func TestOutputFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, k := newTestOutput(t)
		flood := bytes.Repeat([]byte(strings.Repeat("x", 999)+"\n"), 3*logBurst/1000)
		o.add(flood)
		size := 0
		for _, l := range k.lines {
			size += len(l.Text)
		}
		if size > logBurst || size < logBurst-1000 || !o.over {
			t.Errorf("%d bytes were kept of %d", size, len(flood))
		}
		time.Sleep(time.Second)
		k.lines = nil
		o.add([]byte("later\n"))
		if text := k.text(); !regexp.MustCompile(`^\|bawn: 8384 lines left out: [^|]*\n\|later\n$`).MatchString(text) {
			t.Errorf("the end of the log is %.200q", text)
		}
		// Many short lines cost as well.
		k.lines = nil
		o.add(bytes.Repeat([]byte("\n"), 3*logBurstN))
		if len(k.lines) > logBurstN {
			t.Errorf("%d lines were kept", len(k.lines))
		}
	})
}

// A descriptor that the poller does not know is read without blocking a call.
func TestOutputBlockingPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Fd() // makes it blocking
	k := &kept{}
	o, err := newOutput(r, version(nil), "i1", k.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	go o.run()
	o.begin("a", time.Now(), false)
	io.WriteString(w, "x\n")
	o.end("a", &bawn.Usage{}, 1)
	if !strings.Contains(k.text(), "a|x\n") {
		t.Errorf("got %s", k.text())
	}
	w.Close()
	<-o.done
}

// The log of a call that runs through the pool.
func TestCallLog(t *testing.T) {
	d := &fakeDriver{
		output: func() (*os.File, *os.File) { r, w, _ := os.Pipe(); return r, w },
		handle: func(b *fakeBox, e []byte) fakeAnswer {
			fmt.Fprintf(b.print, "got %s\n", e)
			return fakeAnswer{body: "1"}
		},
		loading: func(b *fakeBox) fakeAnswer { io.WriteString(b.print, "imported\n"); return fakeAnswer{} },
	}
	p, k := newPool(t, d, nil)
	c := newCall("{}")
	if _, err := p.Run(context.Background(), version(nil), c); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(strings.ReplaceAll(`^\|imported
ID\|START RequestId: ID Version: 1
ID\|got {}
ID\|END RequestId: ID
ID\|REPORT RequestId: ID	Duration: [0-9.]+ ms	Billed Duration: [0-9]+ ms	Memory Size: 256 MB	Max Memory Used: 20 MB	Init Duration: [0-9.]+ ms	
$`, "ID", c.ID))
	if got := k.text(); !want.MatchString(got) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// BenchmarkWarm is the pool's own cost of a warm call: everything but the
// program's.
func BenchmarkWarm(b *testing.B) {
	d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer { return fakeAnswer{body: `"ok"`} },
		output: func() (*os.File, *os.File) { r, w, _ := os.Pipe(); return r, w }}
	p, _ := newPool(b, d, func(c *Config) { c.Log = func(bawn.LogLine, time.Duration) {} })
	v := version(nil)
	c := newCall("{}")
	run(b, p, v, "{}")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Run(context.Background(), v, c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWarmWorker is the same without the pool, to be taken off.
func BenchmarkWarmWorker(b *testing.B) {
	d := &fakeDriver{handle: func(*fakeBox, []byte) fakeAnswer { return fakeAnswer{body: `"ok"`} }}
	p, _ := newPool(b, d, nil)
	v := version(nil)
	c := newCall("{}")
	in, _, err := p.acquire(context.Background(), v, c)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.worker.invoke(context.Background(), c, time.Now().Add(time.Second)); err != nil {
			b.Fatal(err)
		}
	}
}

// Controls E5 and D7: no value of a secret is in a line, a tail, a note or a record,
// however it was printed.
func TestE5SecretsInOutput(t *testing.T) {
	const value, second = "the-hidden-value", "rotated-to-another"
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	k := &kept{}
	redactor := secret.NewRedactor([][]byte{[]byte(value)})
	o, err := newOutput(r, version(nil), "i1", k.log, func() *secret.Redactor { return redactor })
	if err != nil {
		t.Fatal(err)
	}
	print := func(text string) {
		for i := range len(text) { // a write and a read for each byte
			io.WriteString(w, text[i:i+1])
			o.mu.Lock()
			o.drain()
			o.mu.Unlock()
		}
	}
	o.begin("call-1", time.Now(), true)
	print("a " + value + " b\nthe-hid")
	o.note("bawn: a note with " + value)
	o.aside("bawn: another with " + value)
	print("den-value\n" + base64.StdEncoding.EncodeToString([]byte("x"+value)) + "\n")
	redactor = secret.NewRedactor([][]byte{[]byte(value), []byte(second)})
	print(second + "\nunharmed\nthe-hidden-va")
	tail := o.end("call-1", &bawn.Usage{}, 1<<20)
	rec := bawn.Record{Reason: "it ran sh -c " + value, Detail: map[string]string{"args": value, "b": "c"}}
	was := rec.Detail
	o.redactRecord(&rec)
	go o.run()
	w.Close()
	<-o.done
	all := k.text() + string(tail) + fmt.Sprint(rec)
	for _, bad := range []string{value, second, "the-hidden-va", base64.StdEncoding.EncodeToString([]byte("x" + value))[4:20]} {
		if strings.Contains(all, bad) {
			t.Errorf("%s is in\n%s", bad, all)
		}
	}
	if n := strings.Count(k.text(), "[secret]"); n != 6 || !strings.Contains(all, "|unharmed\n") || was["args"] != value {
		t.Errorf("%d are redacted in\n%s", n, all)
	}
}
