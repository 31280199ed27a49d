package egress

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
)

const (
	authorityLife = 90 * 24 * time.Hour // an instance is no older than a week
	leafLife      = 24 * time.Hour
	leafRenewal   = leafLife / 2
	caSkew        = 5 * time.Minute // that clocks may differ by
	maxLeaves     = 256             // certificates of one sandbox; names of wildcards can be many
)

// ownMark stands in [sandbox.CAFile] before the authorities that are not of the
// system. Bawn's Node.js runtime looks for it.
const ownMark = "# Bawn: beyond the system's own\n"

// An authority vouches for the hosts whose requests Bawn reads, towards one
// sandbox: nobody else trusts it, its key stays in this process, and its name
// constraints keep it to those hosts. It is safe for concurrent use.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	now  func() time.Time

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// newAuthority makes one for the rules that are about requests; nil if there are
// none.
func newAuthority(hosts []bawn.Host, now func() time.Time) (*authority, error) {
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Bawn, for one sandbox"},
		NotBefore: now().Add(-caSkew), NotAfter: now().Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},

		PermittedDNSDomainsCritical: true,
	}
	found := false
	for i := range hosts {
		if !hosts[i].Clear() {
			continue
		}
		found = true
		if p, ok := addresses(hosts[i].Host); ok {
			t.PermittedIPRanges = append(t.PermittedIPRanges, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		} else {
			t.PermittedDNSDomains = append(t.PermittedDNSDomains, strings.TrimPrefix(hosts[i].Host, "*."))
		}
	}
	if !found {
		return nil, nil
	}
	// A kind of name without any constraint would be free.
	if len(t.PermittedIPRanges) == 0 {
		t.ExcludedIPRanges = []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	}
	if len(t.PermittedDNSDomains) == 0 {
		t.PermittedDNSDomains = []string{"invalid"}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{
		key: key, cert: cert, now: now, leaves: map[string]*tls.Certificate{},
		pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

// addresses returns the range that a rule's host is, if it is no name.
func addresses(host string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(host)
	return p.Masked(), err == nil
}

// leaf returns a certificate for a name or an address. It is made at the first
// wish, kept, and replaced as it ages.
func (a *authority) leaf(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if c := a.leaves[name]; c != nil && now.Before(c.Leaf.NotAfter.Add(-leafRenewal)) && now.After(c.Leaf.NotBefore) {
		return c, nil
	}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Bawn, for one sandbox"}},
		NotBefore: now.Add(-caSkew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{name}
	}
	// One key serves all of them: it never leaves this process, and making one for
	// each would guard nothing more.
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key, Leaf: leaf}
	a.leaves[name] = c
	return c, nil
}

// bundle returns the content of [sandbox.CAFile]: what everybody on this node trusts,
// and the authority of this sandbox, if there is one.
func bundle(trusted []byte, own *authority) []byte {
	if own == nil {
		return trusted
	}
	return append(trusted[:len(trusted):len(trusted)], own.pem...)
}

// trusted returns what the system trusts and what the operator has added, in PEM.
func trusted(system, added []byte) []byte {
	b := bytes.NewBuffer(make([]byte, 0, len(system)+len(added)+len(ownMark)+2))
	line := func(p []byte) {
		b.Write(p)
		if len(p) > 0 && p[len(p)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	line(system)
	b.WriteString(ownMark)
	line(added)
	return b.Bytes()
}

// trustEnv names [sandbox.CAFile] to whatever looks for authorities: OpenSSL and
// with it Python's ssl, Go and Rust; requests; curl; the AWS SDKs; gRPC; and the
// Node.js programs that a function starts. Bawn's own Node.js runtime has started
// before, and reads the file by itself.
func trustEnv(file string) map[string]string {
	env := map[string]string{}
	for _, name := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "NODE_EXTRA_CA_CERTS"} {
		env[name] = file
	}
	return env
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// A trust is what every sandbox of a node trusts. The system's authorities are read
// anew when their file has changed: each attach would else read 200 KiB. It is safe
// for concurrent use.
type trust struct {
	mu   sync.Mutex
	file os.FileInfo // nil if none was found
	pem  []byte
}

// get returns it with what the operator has added, in PEM, which does not change. The
// caller does not change the result.
func (t *trust) get(added []byte) []byte {
	path, file := "", os.FileInfo(nil)
	for _, p := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if st, err := os.Stat(p); err == nil {
			path, file = p, st
			break
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pem != nil && file != nil && t.file != nil && os.SameFile(file, t.file) && file.Size() == t.file.Size() && file.ModTime().Equal(t.file.ModTime()) {
		return t.pem
	}
	var system []byte
	if file != nil {
		var err error
		if system, err = os.ReadFile(path); err != nil {
			file = nil
		}
	}
	t.file, t.pem = file, trusted(system, added)
	return t.pem
}
