package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// asksNobody is an asking.
func asksNobody(context.Context, string) (bool, *x509.CertPool) { return false, nil }

func TestBindErrorsSayWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for addr, code := range map[string]bawn.Code{
		taken.Addr().String(): bawn.CodeConflict,
		"192.0.2.1:0":         bawn.CodeInvalid, // kept for documentation: no host has it
		"127.0.0.1":           bawn.CodeInvalid,
		"127.0.0.1:99999":     bawn.CodeInvalid,
	} {
		_, err := bind(t.Context(), "admin", addr)
		var be *bawn.Error
		if !errors.As(err, &be) || be.Code != code || !strings.Contains(be.Fix, "--admin ADDR") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// start serves h and returns a client that trusts only its authority.
func start(t *testing.T, h http.Handler) (*listener, *tls.Config) {
	t.Helper()
	return startPaced(t, h, defaultPace())
}

func startPaced(t *testing.T, h http.Handler, p pace) (*listener, *tls.Config) {
	t.Helper()
	a, err := openAuthority(t.TempDir(), hostNames(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := bind(t.Context(), "public", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := servePaced("public", ln, &serverCert{ca: a, hosts: hostNames(), now: time.Now}, asksNobody, h, wire{}, p, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.shutdown(ctx)
	})
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return l, &tls.Config{RootCAs: roots}
}

func TestOnlyTLS13(t *testing.T) {
	l, cfg := start(t, http.NotFoundHandler())
	addr := l.tcp.Addr().String()
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if v := c.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("version %x", v)
	}
	c.Close()
	old := cfg.Clone()
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", addr, old); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestHeadersAreBounded(t *testing.T) {
	l, cfg := start(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	defer hc.CloseIdleConnections()
	req, _ := http.NewRequest("GET", "https://"+l.tcp.Addr().String(), nil)
	req.Header.Set("X-Big", strings.Repeat("a", 2*maxHeaderBytes))
	res, err := hc.Do(req)
	if err == nil {
		defer res.Body.Close()
		if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d", res.StatusCode)
		}
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	l, cfg := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		io.WriteString(w, "whole")
	}))
	got := make(chan string, 1)
	go func() {
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer hc.CloseIdleConnections()
		res, err := hc.Get("https://" + l.tcp.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		got <- string(b)
	}()
	<-entered
	down := make(chan struct{})
	go func() { l.shutdown(context.Background()); close(down) }()
	for {
		c, err := net.Dial("tcp", l.tcp.Addr().String())
		if err != nil {
			break // no longer accepting
		}
		c.Close()
	}
	select {
	case <-down:
		t.Error("shut down with a request running")
	default:
	}
	close(release)
	if s := <-got; s != "whole" {
		t.Errorf("the running request got %q", s)
	}
	<-down
}

func TestShutdownIsBounded(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan struct{})
	l, cfg := start(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(ended)
	}))
	go func() {
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer hc.CloseIdleConnections()
		if res, err := hc.Get("https://" + l.tcp.Addr().String()); err == nil {
			res.Body.Close()
		}
	}()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.shutdown(ctx)
	<-ended
}
