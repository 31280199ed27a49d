package node

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// port returns a port of loopback that was free a moment ago.
func port(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// pebble starts a real ACME authority that asks for challenges at the two ports.
func pebble(t *testing.T, directory, https, http1 int) *x509.CertPool {
	t.Helper()
	dir := t.TempDir()
	a, err := openAuthority(dir, hostNames(), time.Now())
	check(t, err)
	cert, err := a.issue(hostNames(), time.Now())
	check(t, err)
	kd, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	check(t, err)
	certFile, keyFile, conf := filepath.Join(dir, "p.pem"), filepath.Join(dir, "p.key"), filepath.Join(dir, "p.json")
	check(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600))
	check(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}), 0o600))
	raw, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", directory), "certificate": certFile, "privateKey": keyFile,
		"httpPort": http1, "tlsPort": https, "ocspResponderURL": "", "externalAccountBindingRequired": false,
	}})
	check(t, err)
	check(t, os.WriteFile(conf, raw, 0o600))
	dns := port(t)
	run := func(env string, args ...string) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env)
		out, err := os.Create(filepath.Join(dir, filepath.Base(args[0])+".log"))
		check(t, err)
		cmd.Stdout, cmd.Stderr = out, out
		check(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			out.Close()
			if t.Failed() {
				b, _ := os.ReadFile(out.Name())
				t.Logf("%s:\n%s", args[0], b)
			}
		})
	}
	run("A=b", "pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", fmt.Sprintf("127.0.0.1:%d", dns), "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "")
	run("PEBBLE_VA_NOSLEEP=1", "pebble", "-config", conf, "-dnsserver", fmt.Sprintf("127.0.0.1:%d", dns))
	for range 200 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", directory)); err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// TestE7ACME gets certificates of a real authority by both challenges, renews one, and
// serves while there is no authority.
func TestE7ACME(t *testing.T) {
	if _, err := exec.LookPath("pebble"); err != nil {
		t.Skip("pebble is not installed: make setup")
	}
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			directory, data := port(t), t.TempDir()
			a, err := openAuthority(t.TempDir(), hostNames(), time.Now())
			check(t, err)
			own := &serverCert{ca: a, hosts: hostNames(), now: time.Now}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(t, err)
			plain, err := net.Listen("tcp", "127.0.0.1:0")
			check(t, err)
			conf := acmeConfig{
				data: data, directory: fmt.Sprintf("https://127.0.0.1:%d/dir", directory), host: "127.0.0.1",
				https: ln.Addr().(*net.TCPAddr).Port, http: plain.Addr().(*net.TCPAddr).Port,
			}
			conf.roots = pebble(t, directory, conf.https, conf.http)
			if challenge == "tls-alpn-01" {
				conf.http = 0
			}
			acme := openACME(t.Context(), conf, own, slog.New(slog.DiscardHandler))
			acme.issuer.DisableTLSALPNChallenge = challenge == "http-01"
			t.Cleanup(acme.close)
			l := servePaced("public", ln, acme, asksNobody, http.NotFoundHandler(), wire{acme: true}, defaultPace(), slog.New(slog.DiscardHandler))
			t.Cleanup(func() { l.srv.Close(); l.shutdown(t.Context()) })
			r := serveRedirects(plain, "443", func(string) bool { return false }, nil, acme, slog.New(slog.DiscardHandler))
			t.Cleanup(func() { r.shutdown(t.Context()) })
			shown := func() *x509.Certificate {
				c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "shop.example.com", InsecureSkipVerify: true})
				check(t, err)
				defer c.Close()
				return c.ConnectionState().PeerCertificates[0]
			}
			if shown().VerifyHostname("shop.example.com") == nil {
				t.Error("there is a certificate before one was asked for")
			}
			acme.manage("shop.example.com")
			var got *x509.Certificate
			for range 300 {
				if got = shown(); got.VerifyHostname("shop.example.com") == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if got.VerifyHostname("shop.example.com") != nil || !strings.Contains(got.Issuer.CommonName, "Pebble") {
				t.Fatalf("no certificate: %v %+v", got.Issuer, acme.facts(time.Now()))
			}
			if f := acme.facts(time.Now()); !f[0].OK || len(f) != 2 || !f[1].OK || !strings.Contains(f[1].Detail, "until 20") {
				t.Errorf("the doctor: %+v", f)
			}
			for left, want := range map[time.Duration]bool{time.Hour: true, -time.Second: false, -2 * got.NotAfter.Sub(got.NotBefore): false} {
				late := got.NotAfter.Add(-got.NotAfter.Sub(got.NotBefore)/6 - left) // what is left is a sixth, and so much
				if f := acme.facts(late); f[1].OK != want || !want && f[1].Fix == "" {
					t.Errorf("the doctor, %v before a sixth is left: %+v", left, f)
				}
			}
			check(t, acme.cfg.RenewCertSync(t.Context(), "shop.example.com", true))
			// A failed renewal shows while the certificate is good, and what is forgotten is
			// neither shown nor renewed.
			check(t, acme.heard(t.Context(), "cert_failed", map[string]any{"identifier": "shop.example.com", "error": "no way"}))
			if f := acme.facts(time.Now()); f[0].OK || f[1].OK || !strings.Contains(f[1].Detail, "no way") {
				t.Errorf("the doctor, of a renewal that failed: %+v", f)
			}
			acme.forget("shop.example.com")
			if shown().VerifyHostname("shop.example.com") == nil || len(acme.cache.AllMatchingCertificates("shop.example.com")) != 0 {
				t.Error("a certificate of a name that was forgotten is shown")
			}
			if err := acme.cfg.RenewCertSync(t.Context(), "shop.example.com", true); err == nil || !strings.Contains(err.Error(), "nobody wants") {
				t.Errorf("a name that was forgotten is renewed: %v", err)
			}
			// What was given lies in the data directory, for the next start.
			again := openACME(t.Context(), conf, own, slog.New(slog.DiscardHandler))
			t.Cleanup(again.close)
			again.manage("shop.example.com")
			addr, _ := serveWire(t, again, wire{acme: true}, http.NotFoundHandler())
			var next *x509.Certificate
			for range 100 {
				c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "shop.example.com", InsecureSkipVerify: true})
				check(t, err)
				next = c.ConnectionState().PeerCertificates[0]
				if c.Close(); next.VerifyHostname("shop.example.com") == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if next.VerifyHostname("shop.example.com") != nil || next.SerialNumber.Cmp(got.SerialNumber) == 0 {
				t.Error("it was not renewed")
			}
			check(t, filepath.WalkDir(filepath.Join(data, acmeFolder), func(path string, d fs.DirEntry, err error) error {
				check(t, err)
				if st, err := d.Info(); err == nil && st.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s may be read by others: %v", path, st.Mode())
				}
				return nil
			}))
		})
	}
	t.Run("no authority", func(t *testing.T) {
		a, err := openAuthority(t.TempDir(), hostNames(), time.Now())
		check(t, err)
		acme := openACME(t.Context(), acmeConfig{data: t.TempDir(), directory: fmt.Sprintf("https://127.0.0.1:%d/dir", port(t)), host: "127.0.0.1", https: port(t)},
			&serverCert{ca: a, hosts: hostNames(), now: time.Now}, slog.New(slog.DiscardHandler))
		defer acme.close()
		acme.manage("shop.example.com")
		addr, _ := serveWire(t, acme, wire{acme: true}, http.NotFoundHandler())
		for range 300 {
			if f := acme.facts(time.Now()); strings.Contains(f[1].Detail, "refused") {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
		check(t, err)
		c.Close()
		if f := acme.facts(time.Now()); f[0].OK || f[0].Fix == "" || !strings.Contains(f[1].Detail, "refused") {
			t.Errorf("the doctor: %+v", f)
		}
	})
}
