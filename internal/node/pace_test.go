package node

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// dial opens a TLS connection for HTTP/1.1 and writes text.
func dial(t *testing.T, l *listener, cfg *tls.Config, text string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", l.tcp.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// drip sends a byte again and again until the other side has had enough.
func drip(t *testing.T, c *tls.Conn, piece string) {
	t.Helper()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, c)
	}()
	for range 3000 {
		select {
		case <-gone:
			return
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := io.WriteString(c, piece); err != nil {
			return
		}
	}
	t.Error("the node goes on reading a body that drips")
}

func TestDrippedBodyIsCutOff(t *testing.T) {
	quick := pace{grace: 100 * time.Millisecond, rate: 1 << 20}
	for name, head := range map[string]string{
		"with a length": "Content-Length: 200000\r\n\r\n",
		"in chunks":     "Transfer-Encoding: chunked\r\n\r\n",
	} {
		piece := "x"
		if strings.Contains(head, "chunked") {
			piece = "1\r\nx\r\n"
		}
		t.Run(name+", read", func(t *testing.T) {
			failed := make(chan error, 1)
			l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				failed <- err
			}), quick)
			drip(t, dial(t, l, cfg, "POST / HTTP/1.1\r\nHost: h\r\n"+head), piece)
			if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the handler got %v", err)
			}
		})
		t.Run(name+", not wanted", func(t *testing.T) {
			l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusUnauthorized)
			}), quick)
			drip(t, dial(t, l, cfg, "POST / HTTP/1.1\r\nHost: h\r\n"+head), piece)
		})
	}
}

func TestReaderThatTakesNothingIsCutOff(t *testing.T) {
	for name, flush := range map[string]bool{"buffered": false, "streamed": true} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				piece := make([]byte, 32<<10)
				for range 4096 { // more than sockets hold
					_, err := w.Write(piece)
					if err == nil && flush {
						err = http.NewResponseController(w).Flush()
					}
					if err != nil {
						failed <- err
						return
					}
				}
				failed <- nil
			}), pace{grace: 100 * time.Millisecond, rate: 1 << 20})
			dial(t, l, cfg, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("writing ended with %v", err)
			}
		})
	}
}

// Over HTTP/2 a peer can hold back a stream by its window, the connection living.
func TestStreamWithoutWindowIsCutOff(t *testing.T) {
	failed := make(chan error, 1)
	l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write(make([]byte, 64<<20))
		failed <- err
	}), pace{grace: 100 * time.Millisecond, rate: 1 << 30})
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}}
	defer hc.CloseIdleConnections()
	res, err := hc.Get("https://" + l.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Fatalf("speaks HTTP/%d", res.ProtoMajor)
	}
	if err := <-failed; err == nil {
		t.Error("64 MiB were sent to somebody who reads none")
	}
}

// What takes long for a good reason is not cut: a body at the pace, a call, a
// stream with pauses, and the next request on the same connection.
func TestPaceLetsBePatient(t *testing.T) {
	grace := 250 * time.Millisecond
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", proto), func(t *testing.T) {
			t.Parallel()
			l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
				select { // a long call; its caller has not gone
				case <-r.Context().Done():
					t.Errorf("the call was cut: %v", r.Context().Err())
					return
				case <-time.After(grace * 3 / 2):
				}
				w.Write(body)
				http.NewResponseController(w).Flush()
				time.Sleep(grace * 3 / 2)
				io.WriteString(w, "end")
				http.NewResponseController(w).Flush()
				time.Sleep(grace * 3 / 2)
			}), pace{grace: grace, rate: 10})
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: proto == 2}}
			defer hc.CloseIdleConnections()
			for range 2 {
				r, w := io.Pipe()
				go func() {
					for range 20 { // takes twice the grace
						w.Write([]byte("x"))
						time.Sleep(grace / 10)
					}
					w.Close()
				}()
				res, err := hc.Post("https://"+l.tcp.Addr().String(), "text/plain", r)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(bufio.NewReader(res.Body))
				res.Body.Close()
				if want := append(bytes.Repeat([]byte("x"), 20), "end"...); err != nil || res.StatusCode != 200 || !bytes.Equal(body, want) {
					t.Errorf("%d %q, %v", res.StatusCode, body, err)
				}
			}
		})
	}
}

// A body that came fast and then stalls is cut off after the grace, although its
// rate on the whole is far above the least.
func TestStalledBodyIsCutOff(t *testing.T) {
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", proto), func(t *testing.T) {
			failed := make(chan error, 1)
			l, cfg := startPaced(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				failed <- err
			}), pace{grace: 200 * time.Millisecond, rate: 100}) // 100 KiB earn 1024 s
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: proto == 2}}
			defer hc.CloseIdleConnections()
			r, w := io.Pipe()
			defer w.Close()
			go w.Write(make([]byte, 100<<10))
			go func() {
				if res, err := hc.Post("https://"+l.tcp.Addr().String(), "text/plain", r); err == nil {
					res.Body.Close()
				}
			}()
			select {
			case err := <-failed:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the handler got %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("a stalled body is waited for")
			}
		})
	}
}

// Connections over the number wait until one ends, and closing ends the wait.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := few(inner, 2)
	accepted := make(chan net.Conn, 3)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	for range 4 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, second := <-accepted, <-accepted
	defer second.Close()
	select {
	case <-accepted:
		t.Fatal("a third connection was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // makes room once
	third := <-accepted
	defer third.Close()
	select {
	case <-accepted:
		t.Fatal("a connection closed twice made room for two")
	case <-time.After(50 * time.Millisecond):
	}
	ln.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepting ended with %v", err)
	}
}
