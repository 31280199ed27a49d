package node

import (
	"io"
	"net/http"
	"time"
)

// A pace is how slow a peer may be: it has grace to begin with and for pauses of
// its own, and moves rate bytes a second on the whole. It bounds how long a body
// takes to arrive and an answer to leave, and nothing between the two: a call
// may run, and a stream be silent, for as long as its function may. Control D8.
type pace struct {
	grace time.Duration
	rate  int64 // bytes a second
}

func defaultPace() pace { return pace{bodyGrace, minBodyRate} }

// of is how long n bytes may take.
func (p pace) of(n int64) time.Duration {
	return p.grace + time.Duration(float64(n)/float64(p.rate)*float64(time.Second))
}

// keep holds every peer of h to the pace.
func (p pace) keep(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &pacedWriter{ResponseWriter: w, rc: http.NewResponseController(w), pace: p}
		if r.Body != nil && r.Body != http.NoBody {
			// It is set for bodies that no handler wants too, since the server reads on
			// in them before it sends an answer.
			in := &pacedBody{ReadCloser: r.Body, rc: out.rc, pace: p, due: time.Now().Add(p.grace)}
			in.extend(0)
			r.Body = in
		}
		h.ServeHTTP(out, r)
		out.extend(0) // for what is left in buffers
	})
}

// pacedBody moves the read deadline on with what arrives. What came fast earns
// no longer pause than grace: a body that stalls is cut off then, however much of
// it is there.
type pacedBody struct {
	io.ReadCloser
	rc       *http.ResponseController
	pace     pace
	due      time.Time // when more must have come
	deadline time.Time // what is set of it
}

func (b *pacedBody) extend(n int) {
	b.due = b.due.Add(b.pace.of(int64(n)) - b.pace.grace)
	if most := time.Now().Add(b.pace.grace); b.due.After(most) {
		b.due = most
	}
	if b.due.Sub(b.deadline) > b.pace.grace/8 {
		b.deadline = b.due
		b.rc.SetReadDeadline(b.due)
	}
}

// Read reads the body.
func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		// The server goes on reading to notice when the caller hangs up, and would
		// take a deadline that passes for that: a long call would be cut.
		b.rc.SetReadDeadline(time.Time{})
	case err == nil:
		b.extend(n)
	}
	return n, err
}

// pacedWriter moves the write deadline on with what is to leave.
type pacedWriter struct {
	http.ResponseWriter
	rc       *http.ResponseController
	pace     pace
	deadline time.Time
}

func (w *pacedWriter) extend(n int) {
	if d := time.Now().Add(w.pace.of(int64(n))); d.Sub(w.deadline) > w.pace.grace/8 {
		w.deadline = d
		w.rc.SetWriteDeadline(d)
	}
}

// Write writes a piece of the answer.
func (w *pacedWriter) Write(p []byte) (int, error) {
	w.extend(len(p))
	return w.ResponseWriter.Write(p)
}

// FlushError sends what is in buffers.
func (w *pacedWriter) FlushError() error {
	w.extend(0)
	return w.rc.Flush()
}

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
