package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bawn.dev/bawn"
)

func TestAuthorityIsKept(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	a, err := openAuthority(dir, hosts, now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := openAuthority(dir, hosts, now)
	if err != nil || a.id() != b.id() || !b.same(string(a.pem)) {
		t.Errorf("opened again it is another one: %v", err)
	}
	if st, _ := os.Stat(filepath.Join(dir, "ca.key")); st.Mode().Perm() != 0o600 {
		t.Errorf("ca.key has mode %v", st.Mode())
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("files left: %v", entries)
	}
	if _, err := openAuthority(dir, append(hosts, "192.0.2.1"), now); bawn.ErrorCode(err) != bawn.CodeConflict {
		t.Errorf("a host outside the constraints: %v", err)
	}
	if _, err := openAuthority(dir, hosts, now.Add(caLifetime+time.Hour)); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("expired: %v", err)
	}
}

func TestAuthorityDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no key":      func(d string) error { return os.Remove(filepath.Join(d, "ca.key")) },
		"empty key":   func(d string) error { return os.WriteFile(filepath.Join(d, "ca.key"), nil, 0o600) },
		"other's key": func(d string) error { return swapKey(d) },
		"no PEM":      func(d string) error { return os.WriteFile(filepath.Join(d, "ca.pem"), []byte("x"), 0o600) },
	} {
		dir := t.TempDir()
		if _, err := openAuthority(dir, []string{"localhost"}, time.Now()); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		_, err := openAuthority(dir, []string{"localhost"}, time.Now())
		var be *bawn.Error
		if !errors.As(err, &be) || be.Fix == "" {
			t.Errorf("%s: %v; want an error with a fix", name, err)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, "ca.pem")); name != "no PEM" && string(before) != string(after) {
			t.Errorf("%s: the authority was replaced", name)
		}
	}
	// A key alone is a first start that was cut short: it begins anew.
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "ca.key"), []byte("half"), 0o600)
	if _, err := openAuthority(dir, []string{"localhost"}, time.Now()); err != nil {
		t.Errorf("after a start that was cut short: %v", err)
	}
}

func swapKey(dir string) error {
	other := dir + "-other"
	if err := os.Mkdir(other, 0o700); err != nil {
		return err
	}
	if _, err := openAuthority(other, []string{"localhost"}, time.Now()); err != nil {
		return err
	}
	return os.Rename(filepath.Join(other, "ca.key"), filepath.Join(dir, "ca.key"))
}

// A certificate for a name outside the constraints must not verify, even if
// the authority's key signs it.
func TestNameConstraints(t *testing.T) {
	a, err := openAuthority(t.TempDir(), hostNames("127.0.0.1:0", "192.0.2.7:443", "node.example:1"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	for host, ok := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "192.0.2.7": true, "node.example": true,
		"example.com": false, "192.0.2.8": false, "::2": false,
	} {
		c, err := a.issue([]string{host}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: verifyName(host)})
		if (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Nor can it make an authority below itself.
	if !a.cert.MaxPathLenZero || a.cert.MaxPathLen != 0 {
		t.Error("the authority may have authorities below it")
	}
}

func verifyName(host string) string {
	if net.ParseIP(host) != nil {
		return "[" + host + "]"
	}
	return host
}

func TestServerCertificateIsRenewed(t *testing.T) {
	now := time.Now()
	a, err := openAuthority(t.TempDir(), []string{"localhost"}, now)
	if err != nil {
		t.Fatal(err)
	}
	s := &serverCert{ca: a, hosts: []string{"localhost"}, now: func() time.Time { return now }}
	get := func() *tls.Certificate {
		t.Helper()
		c, err := s.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	now = now.Add(serverLifetime - serverRenewal - time.Hour)
	if get() != first {
		t.Error("renewed too early")
	}
	now = now.Add(2 * time.Hour)
	second := get()
	if second == first || !second.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("not renewed before its end")
	}
	now = now.Add(-30 * 24 * time.Hour)
	if get() == second {
		t.Error("a clock that was set back leaves a certificate of the future")
	}
	if life := first.Leaf.NotAfter.Sub(first.Leaf.NotBefore); life > 8*24*time.Hour {
		t.Errorf("lives %v", life)
	}
}

func TestHostNames(t *testing.T) {
	names := hostNames("0.0.0.0:1", "Example.COM:2", "[2001:db8::1]:3", "bad host:4")
	want := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true, "example.com": true, "2001:db8::1": true}
	for _, n := range names {
		delete(want, n)
		if n == "bad host" || n == "0.0.0.0" {
			t.Errorf("lists %q", n)
		}
	}
	if len(want) > 0 {
		t.Errorf("lacks %v of %v", want, names)
	}
}

func TestNamesOfTheOperator(t *testing.T) {
	got, err := withNames([]string{"localhost"}, []string{"Fn.Example.org", "192.0.2.9", "localhost"})
	if want := []string{"localhost", "fn.example.org", "192.0.2.9"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "https://x", "a:1", "*.example.org", "a b"} {
		if _, err := withNames(nil, []string{bad}); bawn.ErrorCode(err) != bawn.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
