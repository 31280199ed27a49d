package egress

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"syscall"
	"testing"

	"bawn.dev/bawn"
)

// flaky is a listener that fails once before it is closed.
type flaky struct {
	net.Listener
	calls int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.calls++; f.calls == 1 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
}

// TestC5AcceptGoesOn: that the node was out of descriptors for a moment does not end
// an instance's way out.
func TestC5AcceptGoesOn(t *testing.T) {
	ln := &flaky{}
	(&attached{}).accept(ln)
	if ln.calls != 2 {
		t.Errorf("asked %d times", ln.calls)
	}
}

// TestC5RequestsAtOneTime: the requests of one instance that wait are bounded,
// however many each of its connections has.
func TestC5RequestsAtOneTime(t *testing.T) {
	w := newClearWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("it goes out") }, bawn.Host{Methods: []string{"GET"}})
	for range cap(w.clear.slots) {
		w.clear.slots <- struct{}{}
	}
	rec := httptest.NewRecorder()
	w.clear.handle(rec, httptest.NewRequest("GET", "/", nil), nil)
	if rec.Code != http.StatusServiceUnavailable || len(w.records) != 1 || w.records[0].Control != "C5" {
		t.Error(rec.Code, w.records)
	}
}

// TestC4SpaceInQuery: what HTTP/2 can carry and a request line cannot goes nowhere.
func TestC4SpaceInQuery(t *testing.T) {
	r := &http.Request{Method: "GET", Host: name, URL: &url.URL{Path: "/", RawQuery: "x HTTP/1.1"}}
	in := &target{name: name, inside: 443, port: 443}
	if no := malformed(r, &insideConn{to: in}, in); no == nil || no.control != "C4" {
		t.Error(no)
	}
	if r.URL.RawQuery = "x+y%20z"; malformed(r, &insideConn{to: in}, in) != nil {
		t.Error("a plain query is refused")
	}
}

// TestPostgresPaddedRounds: a server cannot hide the cost of SCRAM behind a long
// message.
func TestPostgresPaddedRounds(t *testing.T) {
	body := append(bytes.Repeat([]byte("r"), pgBuffer), ",i=9999999"...)
	m := append(binary.BigEndian.AppendUint32([]byte{'R'}, uint32(4+len(body))), body...)
	if _, err := io.ReadAll(&pgGreeting{r: bufio.NewReaderSize(bytes.NewReader(m), pgBuffer)}); err == nil {
		t.Error("it is read")
	}
}
