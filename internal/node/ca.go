package node

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
)

const (
	caLifetime     = 10 * 365 * 24 * time.Hour
	serverLifetime = 7 * 24 * time.Hour
	// A certificate is replaced while a third of its life is left, so that a
	// clock that is a day off at either end breaks nothing.
	serverRenewal = serverLifetime / 3
	clockSkew     = 5 * time.Minute
)

// authority is the node's own certificate authority. Its key signs the
// certificates of this node's listeners and nothing else: the name constraints
// in its certificate keep a stolen key from passing for any other host.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// openAuthority reads DATA/ca.pem and DATA/ca.key, or makes them for hosts when
// neither is there.
func openAuthority(dir string, hosts []string, now time.Time) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	switch {
	// The certificate is written last: a key alone is a first start that was
	// cut short, and nobody can know that key yet.
	case errors.Is(certErr, fs.ErrNotExist):
		return makeAuthority(certFile, keyFile, hosts, now)
	case certErr != nil:
		return nil, bawn.Wrap(certErr, bawn.CodeUnavailable, "node.ca", "%s cannot be read", certFile).WithFix("run as the user who owns the data directory")
	case keyErr != nil:
		return nil, bawn.Wrap(keyErr, bawn.CodeUnavailable, "node.ca", "%s cannot be read", keyFile).
			WithFix("put the key back from a backup, or remove %s as well to get a new authority; every context file then needs it", certFile)
	}
	a, err := parseAuthority(certPEM, keyPEM)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "node.ca", "%s and %s are not a certificate authority", certFile, keyFile).
			WithFix("put both back from a backup, or remove both to get a new authority; every context file then needs it")
	}
	if now.After(a.cert.NotAfter) {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "node.ca", "the authority in %s expired on %s", certFile, a.cert.NotAfter.Format(time.DateOnly)).
			WithFix("remove %s and %s to get a new authority; every context file then needs it", certFile, keyFile)
	}
	for _, h := range hosts {
		if !a.covers(h) {
			return nil, bawn.Errorf(bawn.CodeConflict, "node.ca", "the authority in %s may not vouch for %q: it is limited to %s", certFile, h, strings.Join(a.names(), ", ")).
				WithFix("listen on one of those, or remove %s and %s to get a new authority; every context file then needs it", certFile, keyFile)
		}
	}
	return a, nil
}

func parseAuthority(certPEM, keyPEM []byte) (*authority, error) {
	cb, _ := pem.Decode(certPEM)
	kb, _ := pem.Decode(keyPEM)
	if cb == nil || kb == nil {
		return nil, errors.New("not PEM")
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, errors.New("key and certificate do not belong together")
	}
	return &authority{cert: cert, key: signer, pem: pem.EncodeToMemory(cb)}, nil
}

func makeAuthority(certFile, keyFile string, hosts []string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Bawn node authority"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.PermittedIPRanges = append(t.PermittedIPRanges, hostNet(ip))
		} else {
			t.PermittedDNSDomains = append(t.PermittedDNSDomains, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(certFile, certPEM, 0o644); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: certPEM}, err
}

// writeFile replaces a file in one step and makes it durable.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// covers reports whether the name constraints allow a certificate for host.
func (a *authority) covers(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return slices.ContainsFunc(a.cert.PermittedIPRanges, func(n *net.IPNet) bool { return n.Contains(ip) })
	}
	return slices.ContainsFunc(a.cert.PermittedDNSDomains, func(d string) bool { return strings.EqualFold(d, host) })
}

// names lists what the authority may vouch for.
func (a *authority) names() []string {
	names := slices.Clone(a.cert.PermittedDNSDomains)
	for _, n := range a.cert.PermittedIPRanges {
		names = append(names, n.String())
	}
	return names
}

// id names the node: it is derived from the authority, so it lives as long as
// the data directory does. 12 hex digits.
func (a *authority) id() string {
	sum := sha256.Sum256(a.cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:6])
}

// issue makes a server certificate for hosts.
func (a *authority) issue(hosts []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Bawn node " + a.id()},
		NotBefore: now.Add(-clockSkew), NotAfter: minTime(now.Add(serverLifetime), a.cert.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// serverCert is the certificate of the listeners. It lives in memory only and
// is replaced as it ages, without a restart.
type serverCert struct {
	ca    *authority
	hosts []string
	now   func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

// get is a tls.Config.GetCertificate.
func (s *serverCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.cert == nil || now.After(s.cert.Leaf.NotAfter.Add(-serverRenewal)) || now.Before(s.cert.Leaf.NotBefore) {
		cert, err := s.ca.issue(s.hosts, now)
		if err != nil {
			if s.cert != nil {
				return s.cert, nil // an ageing certificate beats none
			}
			return nil, err
		}
		s.cert = cert
	}
	return s.cert, nil
}

// hostNames lists the names and addresses this node may be called by: always
// the loopback ones and the host's name, and those it listens on. Listening on
// every address means every address the host has now.
func hostNames(listen ...string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	add := func(h string) {
		if h != "" && !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	if h, err := os.Hostname(); err == nil && validDNS(h) {
		add(strings.ToLower(h))
	}
	for _, addr := range listen {
		h, _, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		ip := net.ParseIP(h)
		switch {
		case h == "" || ip != nil && ip.IsUnspecified():
			addrs, _ := net.InterfaceAddrs()
			for _, a := range addrs {
				if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
					add(n.IP.String())
				}
			}
		case ip != nil:
			add(ip.String())
		case validDNS(h):
			add(strings.ToLower(h))
		}
	}
	return names
}

// withNames adds the names that the operator gives.
func withNames(hosts, names []string) ([]string, error) {
	for _, h := range names {
		if ip := net.ParseIP(h); ip != nil {
			h = ip.String()
		} else if h = strings.ToLower(h); !validDNS(h) {
			return nil, bawn.Errorf(bawn.CodeInvalid, "node.ca", "%.80q is not a host name or an address", h).WithFix("give one with --name, such as fn.example.org, without port or scheme")
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts, nil
}

func validDNS(h string) bool {
	return h != "" && len(h) <= 253 && !strings.HasPrefix(h, ".") &&
		strings.Trim(strings.ToLower(h), "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

func hostNet(ip net.IP) *net.IPNet {
	if v4 := ip.To4(); v4 != nil {
		if v4.IsLoopback() {
			return &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}
		}
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// same reports whether a PEM document holds this authority's certificate.
func (a *authority) same(doc string) bool {
	b, _ := pem.Decode([]byte(doc))
	return b != nil && bytes.Equal(b.Bytes, a.cert.Raw)
}
