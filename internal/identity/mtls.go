package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"bawn.dev/bawn"
)

const (
	maxChain     = 8        // certificates that a client may present
	maxChainSize = 64 << 10 // bytes of them
	maxPattern   = 256
)

// badCertificate says that a client's certificate is refused. It is not taken for
// the certificate of nobody: who shows one wants to be known by it.
func badCertificate() error {
	return bawn.Errorf(bawn.CodeUnauthenticated, "identity.certificate", "the client certificate is not valid").
		WithFix("present one of a configured issuer that is for clients and neither expired nor revoked, or none")
}

// authenticateCertificate says who holds a client certificate. The handshake has
// shown that the caller has its key, and nothing else.
func (a *Authenticator) authenticateCertificate(_ context.Context, chain []*x509.Certificate) (bawn.Principal, error) {
	h := sha256.New()
	size := 0
	for _, c := range chain {
		h.Write(c.Raw)
		size += len(c.Raw)
	}
	if len(chain) > maxChain || size > maxChainSize {
		return bawn.Principal{}, badCertificate()
	}
	sum := [sha256.Size]byte(h.Sum([]byte("certificate")))
	if k, ok := a.known.get(sum); ok {
		if p, ok := a.still(k); ok {
			return p, nil
		}
	}
	if a.issuers.lost != nil {
		return bawn.Principal{}, a.issuers.lost
	}
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	now := a.cfg.Now()
	var by *issuer
	var ends time.Time
	for _, i := range a.issuers.authorities() {
		chains, err := leaf.Verify(x509.VerifyOptions{
			Roots: i.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			continue
		}
		if by != nil && by.Tenant != i.Tenant {
			return bawn.Principal{}, badCertificate() // two tenants, and nothing says which
		}
		if by == nil {
			by, ends = i, endOf(chains[0])
		}
	}
	// Whoever holds an authority's own certificate could make any other.
	if by == nil || leaf.IsCA {
		return bawn.Principal{}, badCertificate()
	}
	p, ok := a.principalOf(by, leaf)
	if !ok {
		return bawn.Principal{}, badCertificate()
	}
	if err := a.issuers.trusted(by.Tenant); err != nil {
		return bawn.Principal{}, err
	}
	p.Expires = ends
	k := known{p: p, issuer: by}
	a.known.put(sum, k)
	if p, ok = a.still(k); !ok {
		return bawn.Principal{}, badCertificate()
	}
	return p, nil
}

// endOf returns when the first certificate of a chain ends.
func endOf(chain []*x509.Certificate) time.Time {
	ends := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(ends) {
			ends = c.NotAfter
		}
	}
	return ends
}

// principalOf is who a verified certificate is about: the SPIFFE id in it, or the
// certificate itself.
func (a *Authenticator) principalOf(i *issuer, leaf *x509.Certificate) (bawn.Principal, bool) {
	sum := sha256.Sum256(leaf.Raw)
	p := bawn.Principal{
		Kind: bawn.PrincipalCert, ID: hex.EncodeToString(sum[:]), Name: printable(leaf.Subject.CommonName), Tenant: i.Tenant,
		Issued: leaf.NotBefore, Revision: i.revision, Issuer: i.Name,
	}
	for _, u := range leaf.URIs {
		if u.Scheme != "spiffe" {
			continue
		}
		id, err := spiffeid.FromURI(u)
		// A document of SPIFFE has one id. This node's own names are for its functions.
		if err != nil || len(leaf.URIs) != 1 || len(id.String()) > maxPattern || id.TrustDomain().Name() == a.cfg.TrustDomain {
			return bawn.Principal{}, false
		}
		p.ID = id.String()
	}
	p.Roles = i.rolesFor(func(pattern string) bool { return matches(pattern, leaf) })
	return p, true
}

func printable(s string) string {
	if len(s) > maxNameText || strings.ContainsFunc(s, func(r rune) bool { return r != ' ' && notPrintable(r) }) {
		return ""
	}
	return s
}

// checkPattern reports what is wrong with a pattern of names in a certificate: a
// SPIFFE id, dns:NAME or cn:NAME, in which * stands for what is between two
// slashes, or for the first label of a name.
func checkPattern(pattern string) error {
	bad := bawn.Errorf(bawn.CodeInvalid, "identity.issuer", "%.80q is not a pattern of names in certificates", pattern).
		WithFix("write spiffe://DOMAIN/PATH, in which * stands for one step of the path, or dns:NAME, dns:*.NAME, cn:NAME, or * for everybody")
	if len(pattern) > maxPattern {
		return bad
	}
	kind, rest, _ := strings.Cut(pattern, ":")
	switch kind {
	case "spiffe":
		domain, way, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "/")
		if _, err := spiffeid.TrustDomainFromString(domain); err != nil || !strings.HasPrefix(rest, "//") || strings.ContainsAny(way, `[]?\`) {
			return bad
		}
		for _, step := range strings.Split(way, "/") {
			if step == "" || step != everybody && strings.Contains(step, everybody) {
				return bad
			}
		}
	case "dns":
		if name := strings.TrimPrefix(rest, "*."); name == "" || strings.ContainsAny(name, `*[]?\/`) {
			return bad
		}
	case "cn":
		if rest == "" {
			return bad
		}
	default:
		return bad
	}
	return nil
}

// matches reports whether one of the certificate's names fits the pattern.
func matches(pattern string, leaf *x509.Certificate) bool {
	kind, rest, _ := strings.Cut(pattern, ":")
	switch kind {
	case "spiffe":
		return slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool {
			ok, err := path.Match(pattern, u.String())
			return err == nil && ok
		})
	case "dns":
		return slices.ContainsFunc(leaf.DNSNames, func(name string) bool {
			if below, ok := strings.CutPrefix(rest, "*."); ok {
				label, domain, _ := strings.Cut(name, ".")
				return label != "" && strings.EqualFold(domain, below)
			}
			return strings.EqualFold(name, rest)
		})
	case "cn":
		return leaf.Subject.CommonName == rest
	}
	return false
}
