package egress

import (
	"crypto/x509"
	"testing"
	"time"

	"bawn.dev/bawn"
)

func TestC6AuthorityIsForTheNamedHostsOnly(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	if a, err := newAuthority([]bawn.Host{{Host: "tunnel.test"}, {Host: "10.0.0.0/8"}}, clock); a != nil || err != nil {
		t.Fatalf("without a rule about requests: %v, %v", a, err)
	}
	a, err := newAuthority([]bawn.Host{{Host: "tunnel.test"}, {Host: "api.test", Methods: []string{"GET"}}, {Host: "*.wild.test", Paths: []string{"/"}}}, clock)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	verify := func(name string) error {
		c, err := a.leaf(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now})
		return err
	}
	for _, name := range []string{"api.test", "a.wild.test"} {
		if err := verify(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"tunnel.test", "bank.test", "127.0.0.1", "::1"} {
		if verify(name) == nil {
			t.Errorf("%s: the authority vouches for it", name)
		}
	}
	first, _ := a.leaf("api.test")
	if again, _ := a.leaf("api.test"); again != first {
		t.Error("a leaf is not kept")
	}
	now = now.Add(leafLife - leafRenewal + time.Minute)
	if later, _ := a.leaf("api.test"); later == first {
		t.Error("a leaf is not renewed")
	}
	for i := range maxLeaves + 10 {
		a.leaf(string(rune('a'+i%26)) + itoa(i) + ".wild.test")
	}
	if n := len(a.leaves); n > maxLeaves {
		t.Errorf("%d leaves are kept", n)
	}
	b, err := newAuthority([]bawn.Host{{Host: "10.0.0.0/8", Methods: []string{"GET"}, Plaintext: true}}, clock)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(b.cert)
	for name, want := range map[string]bool{"10.1.2.3": true, "11.1.2.3": false, "api.test": false} {
		c, err := b.leaf(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now}); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
