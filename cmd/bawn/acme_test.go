package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn/bawntest"
)

// freePort returns a port of loopback that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// startPebble starts a real ACME authority whose challenges go to two ports, for every
// name at loopback. It returns its directory, the file of whom that is trusted by, and
// a function that returns whom its certificates are trusted by.
func startPebble(t *testing.T, https, plain int) (directory, ca string, roots func() *x509.CertPool) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bawn-pebble-") // the server that reads of it is no root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := bawntest.NewAuthority(t, "whom the directory is trusted by")
	cert, key := a.Issue(t, func(c *x509.Certificate) {
		c.ExtKeyUsage, c.IPAddresses = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}).Write(t, dir, "pebble")
	conf := filepath.Join(dir, "pebble.json")
	ca = filepath.Join(dir, "ca.pem")
	api, management, dns := freePort(t), freePort(t), freePort(t)
	raw, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", api), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", management),
		"certificate": cert, "privateKey": key, "httpPort": plain, "tlsPort": https, "ocspResponderURL": "", "externalAccountBindingRequired": false,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(dir, 0o755), os.WriteFile(conf, raw, 0o600), os.WriteFile(ca, []byte(a.PEM), 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(env, name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), env)
		out, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			out.Close()
			if t.Failed() {
				b, _ := os.ReadFile(out.Name())
				t.Logf("%s:\n%s", name, b)
			}
		})
	}
	run("PEBBLE_VA_NOSLEEP=1", "pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", fmt.Sprintf("127.0.0.1:%d", dns), "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "")
	run("PEBBLE_VA_NOSLEEP=1", "pebble", "-config", conf, "-dnsserver", fmt.Sprintf("127.0.0.1:%d", dns))
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM([]byte(a.PEM))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	return fmt.Sprintf("https://127.0.0.1:%d/dir", api), ca, func() *x509.CertPool {
		for range 100 {
			resp, err := c.Get(fmt.Sprintf("https://127.0.0.1:%d/roots/0", management))
			if err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(b)
			return pool
		}
		t.Fatal("pebble does not answer")
		return nil
	}
}

// TestE7ACMEServer adds a domain to a server in a process of its own, calls a function
// on it over the certificate that an authority gave, and takes the domain away.
func TestE7ACMEServer(t *testing.T) {
	if _, err := exec.LookPath("pebble"); err != nil {
		t.Skip("pebble is not installed: make setup")
	}
	const name = "shop.example.com"
	https, plain := freePort(t), freePort(t)
	directory, ca, rootsOf := startPebble(t, https, plain)
	roots := rootsOf()
	s := newServer(t, filepath.Join(t.TempDir(), "data"), "--public", fmt.Sprintf("127.0.0.1:%d", https), "--http", fmt.Sprintf("127.0.0.1:%d", plain),
		"--acme-agree", "--acme-email", "ops@example.com", "--acme-directory", directory, "--acme-ca", ca)
	if _, err := s.AddDomain(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
	s.deploy(name)
	caller := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots},
	}}
	address := fmt.Sprintf("127.0.0.1:%d", https)
	shown := func() error {
		c, err := tls.Dial("tcp", address, &tls.Config{ServerName: name, RootCAs: roots})
		if err == nil {
			c.Close()
		}
		return err
	}
	wait := func(want bool) (err error) {
		for range 300 {
			if err = shown(); (err == nil) == want {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("a good certificate is there: %v, want %v: %v", err == nil, want, err)
		return err
	}
	wait(true)
	call := func(host string) string {
		r, err := http.NewRequest("GET", "https://"+address+"/f", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		caller.Transport.(*http.Transport).TLSClientConfig.ServerName = name
		resp, err := caller.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Sprintf("%d %s", resp.StatusCode, b)
	}
	if got := call(name); got != "200 1" {
		t.Errorf("the call: %s", got)
	}
	if got := call("localhost"); !strings.HasPrefix(got, "421 ") {
		t.Errorf("another host over the domain's connection: %s", got)
	}
	row := func() string {
		d, err := s.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range d.Capabilities {
			if c.Name == "certificate of "+name {
				return fmt.Sprint(c.OK, " ", c.Detail)
			}
		}
		return ""
	}
	if got := row(); !strings.HasPrefix(got, "true by ACME, until 20") {
		t.Errorf("the doctor: %q", got)
	}
	if _, err := s.RemoveDomain(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	wait(false)
	if got := row(); got != "" {
		t.Errorf("the doctor, of a domain that is gone: %q", got)
	}
}
