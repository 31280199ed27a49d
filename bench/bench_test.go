package main

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	if got := median(v); got != 3 {
		t.Errorf("median = %v, want 3", got)
	}
	if v[0] != 5 {
		t.Error("median sorted its argument")
	}
}

func TestGoals(t *testing.T) {
	for _, c := range []struct {
		g    goal
		v    float64
		want bool
	}{{atMost(1.1), 1.1, true}, {atMost(1.1), 1.2, false}, {atLeast(1), 1, true}, {atLeast(1), 0.9, false}} {
		if c.g.met(c.v) != c.want {
			t.Errorf("%v met by %v: %v", c.g, c.v, !c.want)
		}
	}
}

// TestLoopCounts drives a server of the standard library.
func TestLoopCounts(t *testing.T) {
	cert, ca, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	url := serveTLS(t, cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hello" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	good, err := newTarget(url, "/hello", ca, "", http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	each, rate, err := good.loop(2, 50*time.Millisecond)
	if err != nil || len(each) == 0 || rate <= 0 {
		t.Errorf("loop = %d calls, %v a second, %v", len(each), rate, err)
	}
	bad, err := newTarget(url, "/other", ca, "", http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := bad.loop(1, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an answer with another status: %v", err)
	}
}

func serveTLS(t *testing.T, cert tls.Certificate, h http.Handler) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return "https://" + ln.Addr().String()
}
