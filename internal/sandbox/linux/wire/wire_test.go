package wire

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesAndDescriptors(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := strings.Repeat("x", 100<<10)
	if err := a.Send(&Request{Seq: 7, Op: OpImage, Image: &Image{Name: "x", Dir: big}}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var got Request
	fds, err := b.Receive(&got)
	if err != nil || got.Seq != 7 || len(got.Image.Dir) != len(big) || len(fds) != 1 {
		t.Fatalf("received %d, %d descriptors, %v", got.Seq, len(fds), err)
	}
	if _, err := unix.Write(fds[0], []byte("hi")); err != nil {
		t.Fatal(err)
	}
	CloseAll(fds)
	if text, _ := io.ReadAll(r); string(text) != "hi" {
		t.Errorf("through the descriptor came %q", text)
	}
	if err := a.Send(&Request{Image: &Image{Dir: strings.Repeat("x", MaxMessage)}}); err == nil {
		t.Error("sent a message over the limit")
	}
	a.Close()
	if _, err := b.Receive(&got); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestMalformedMessages(t *testing.T) {
	for _, text := range []string{``, `{`, `[]`, `{"seq":-1}`, `{"nope":1}`, `{"seq":1}{"seq":2}`, `{"seq":1} `, "\x00"} {
		var r Request
		if err := Decode([]byte(text), &r); err == nil {
			t.Errorf("%q was taken: %+v", text, r)
		}
	}
}
