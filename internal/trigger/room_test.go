package trigger

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"bawn.dev/bawn"
)

// watched is a body that tells whether anybody read it.
type watched struct {
	io.Reader
	read atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	w.read.Store(true)
	return w.Reader.Read(p)
}
func (w *watched) Close() error { return nil }

func post(h http.Handler, path, key string, body io.ReadCloser) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, body)
	r.ContentLength = -1
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Who may not call is refused before a byte of the body is read: a made-up key
// is no better than none, on a public route too.
func TestBodyOfStrangersIsNotRead(t *testing.T) {
	f := newFront(t, echo, nil)
	h := NewHTTP(HTTPConfig{Invoker: f.calls})
	for _, test := range []struct {
		path, key string
		status    int
		read      bool
	}{
		{"/hello", "", 401, false},
		{"/hello", "bawn_x", 401, false},
		{"/hello", strings.Repeat("x", 10) + f.key[10:], 401, false},
		{"/hello", "bawn_0000000000000000" + f.key[21:], 401, false},
		{"/open", "bawn_x", 401, false},
		{"/open", "", 200, true},
		{"/hello", f.key, 200, true},
	} {
		b := &watched{Reader: strings.NewReader("{}")}
		if w := post(h, test.path, test.key, b); w.Code != test.status || b.read.Load() != test.read {
			t.Errorf("%s with %.12q: %d, body read: %v", test.path, test.key, w.Code, b.read.Load())
		}
	}
}

// Control H8: nor is the body of a stranger for whom there is no room.
func TestH8BodyWithoutRoomIsNotRead(t *testing.T) {
	free := make(chan struct{})
	f := newFront(t, func(w io.Writer, id string, event []byte) {
		<-free
		echo(w, id, event)
	}, func(v *bawn.Version) { v.Perimeter.Interior.Concurrency = 2 })
	h := NewHTTP(HTTPConfig{Invoker: f.calls})
	var stay sync.WaitGroup
	defer stay.Wait()
	defer close(free)
	full := func() bool { return f.gate.Refusals()["share"] > 0 }
	for !full() { // they stay until there is no more room
		let := f.gate.Running()
		stay.Go(func() { post(h, "/open", "", &watched{Reader: strings.NewReader("{}")}) })
		for !full() && f.gate.Running() == let {
			runtime.Gosched()
		}
	}
	b := &watched{Reader: strings.NewReader("{}")}
	if w := post(h, "/open", "", b); w.Code != 429 || b.read.Load() || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d, body read: %v, %v", w.Code, b.read.Load(), w.Header())
	}
	if f.gate.Running() == 0 {
		t.Error("nobody was let in")
	}
}

// What requests and answers take of memory together is bounded, strangers at a
// part of it; what is small comes through, and all of it is given back.
func TestRoom(t *testing.T) {
	var h *httpTrigger
	var rest atomic.Int64 // what others take while the function runs
	f := newFront(t, func(w io.Writer, id string, _ []byte) {
		h.room.used.Add(rest.Load())
		respond(w, id, `{"statusCode":200,"body":"`+strings.Repeat("x", 2*freeBytes)+`"}`)
	}, nil)
	h = NewHTTP(HTTPConfig{Invoker: f.calls}).(*httpTrigger)
	large := strings.Repeat("x", 64<<10)
	for _, test := range []struct {
		name       string
		used, rest int64
		key, body  string
		status     int
	}{
		{"room", 0, 0, f.key, large, 200},
		{"room for a stranger", 0, 0, "", large, 200},
		{"the strangers' part is full", maxHeldOpen - 1<<10, 0, "", large, 503},
		{"the strangers' part is full, with a key", maxHeldOpen - 1<<10, 0, f.key, large, 200},
		{"full", maxHeld - 1<<10, 0, f.key, large, 503},
		{"full when the answer comes", 0, maxHeld - 1<<10, f.key, "x", 503},
		{"the strangers' part is full when the answer comes", 0, maxHeldOpen - 1<<10, "", "x", 503},
		{"not full when the answer comes", 0, maxHeldOpen - 1<<10, f.key, "x", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			h.room.used.Store(test.used)
			rest.Store(test.rest)
			path := "/hello"
			if test.key == "" {
				path = "/open"
			}
			w := post(h, path, test.key, io.NopCloser(strings.NewReader(test.body)))
			if w.Code != test.status || test.status == 503 && w.Header().Get("Retry-After") == "" {
				t.Errorf("got %d %.100s", w.Code, w.Body)
			}
			if n := h.room.used.Load() - test.used; n != 0 && n != test.rest {
				t.Errorf("%d bytes were not given back", n)
			}
		})
	}
	f2 := newFront(t, func(w io.Writer, id string, _ []byte) { respond(w, id, `{"statusCode":200,"body":"ok"}`) }, nil)
	h = NewHTTP(HTTPConfig{Invoker: f2.calls}).(*httpTrigger)
	h.room.used.Store(maxHeld)
	if w := post(h, "/hello", f2.key, io.NopCloser(strings.NewReader(`{"small":true}`))); w.Code != 200 {
		t.Errorf("a small call got %d", w.Code)
	}
}

// A body takes room as it arrives, whatever it said of its length.
func TestBodyTakesRoomAsItArrives(t *testing.T) {
	for _, length := range []int64{-1, bawn.MaxEventBytes} {
		for _, n := range []int{0, 1, freeBytes - 1, freeBytes, freeBytes + 1, 100 << 10} {
			data := bytes.Repeat([]byte("x"), n)
			r := httptest.NewRequest("POST", "/", bytes.NewReader(data))
			r.ContentLength = length
			s := share{room: new(room), most: maxHeld}
			b, err := readBody(r, &s)
			if err != nil || !bytes.Equal(b, data) {
				t.Fatalf("%d bytes: got %d, %v", n, len(b), err)
			}
			if held := int(s.room.used.Load()); held < n-freeBytes || held > 2*n+2*freeBytes {
				t.Errorf("%d bytes of %d take %d", n, length, held)
			}
			if s.end(); s.room.used.Load() != 0 {
				t.Errorf("%d bytes are left", s.room.used.Load())
			}
		}
	}
}

// bodySize is what appendEvent does.
func TestBodySize(t *testing.T) {
	for _, kind := range []string{"", "image/png"} {
		for _, body := range []string{"plain", "\x00\x01\"\\\n\r\t\u00e9\x7f", "\xff\xfe"} {
			h := http.Header{"Content-Type": {kind}}
			r := &http.Request{Header: h}
			with := len(appendEvent(nil, &request{http: r, route: &bawn.Route{}, body: []byte(body)}))
			without := len(appendEvent(nil, &request{http: r, route: &bawn.Route{}}))
			got := bodySize(h, []byte(body)) + len(`,"body":""`)
			if !isText(h) || body == "\xff\xfe" {
				got-- // true is shorter than false
			}
			if got != with-without {
				t.Errorf("%q of %q: %d, and appendEvent makes %d", body, kind, got, with-without)
			}
		}
	}
}

// After a body in chunks the connection ends: with a Content-Length too, a proxy
// may think that the rest is another request.
func TestChunkedRequestIsTheLast(t *testing.T) {
	f := newFront(t, echo, nil)
	for name, test := range map[string]struct {
		head, body string
		last       bool
	}{
		"both":   {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n", true},
		"chunks": {"Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n", true},
		"length": {"Content-Length: 2\r\n", "{}", false},
	} {
		c, err := tls.Dial("tcp", strings.TrimPrefix(f.url, "https://"), f.client.Transport.(*http.Transport).TLSClientConfig)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST /open HTTP/1.1\r\nHost: h\r\n"+test.head+"\r\n"+test.body)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		if r.StatusCode != 200 || r.Close != test.last {
			t.Errorf("%s: %d, the connection ends: %v", name, r.StatusCode, r.Close)
		}
	}
}
