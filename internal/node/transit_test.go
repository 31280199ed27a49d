package node

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// listening returns the TCP addresses that this process listens at, by the kernel.
func listening(t *testing.T) (all []string) {
	t.Helper()
	own := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			const listens = "0A" // the state, in include/net/tcp_states.h
			if len(f) < 10 || f[3] != listens || !own[f[9]] {
				continue
			}
			host, port, _ := strings.Cut(f[1], ":")
			ip, err := hex.DecodeString(host)
			if err != nil {
				t.Fatal(err)
			}
			for word := range slices.Chunk(ip, 4) { // each as the processor has it
				slices.Reverse(word)
			}
			var n int
			if _, err := fmt.Sscanf(port, "%X", &n); err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s:%d", net.IP(ip), n))
		}
	}
	return all
}

// TestE7Listeners finds every listener of a node by asking the kernel, and tries
// older TLS, another name and no TLS at all on each.
func TestE7Listeners(t *testing.T) {
	before := listening(t)
	n := mustOpen(t, config(t))
	<-n.Ready()
	found := listening(t)
	found = slices.DeleteFunc(found, func(a string) bool { return slices.Contains(before, a) })
	slices.Sort(found)
	want := []string{n.public.tcp.Addr().String(), n.admin.tcp.Addr().String()}
	if slices.Sort(want); !slices.Equal(found, want) {
		t.Fatalf("the node listens at %v, want %v", found, want)
	}
	pem, err := os.ReadFile(n.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	dial := func(addr string, cfg *tls.Config) error {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, cfg)
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	for _, addr := range found {
		if err := dial(addr, &tls.Config{RootCAs: roots}); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		if err := dial(addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}); err == nil {
			t.Errorf("%s speaks TLS 1.2", addr)
		}
		if err := dial(addr, &tls.Config{RootCAs: roots, ServerName: "another.example"}); err == nil {
			t.Errorf("%s proves to be somebody else", addr)
		}
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", addr)
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			if res.Body.Close(); res.StatusCode != http.StatusBadRequest {
				t.Errorf("%s answers without TLS: %s", addr, res.Status)
			}
		}
		conn.Close()
	}
}
