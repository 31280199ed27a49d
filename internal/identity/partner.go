package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// maxPartners bounds the certificates that were found good for a route, or for other
// routes than the one they came to, and are remembered.
const maxPartners = 4096

// routeAuthority is the authorities that a route names, ready for use.
type routeAuthority struct {
	roots *x509.CertPool
	sum   [sha256.Size]byte // tells one document from another
}

// partner is a certificate that a route's authorities vouch for.
type partner struct {
	root       string // tells the authority by its key
	begin, end time.Time
}

// badPartner says that a certificate does not open a route. why is for the owner alone.
func badPartner(why error) error {
	return bawn.Wrap(why, bawn.CodeUnauthenticated, "identity.certificate", "the client certificate is not good for this route").
		WithFix("present one of the route's authorities that is for clients, has not ended, and has one of the names that the route asks for")
}

// AuthenticatePartner says who shows a client certificate on a route of tenant that
// wants one: a principal without a role. Where the route names no authorities, those
// of the tenant's issuers count, and what is revoked of theirs. The errors are those
// of Authenticate; what one of CodeUnauthenticated wraps is for the route's owner.
func (a *Authenticator) AuthenticatePartner(ctx context.Context, tenant string, want *bawn.MTLSAccess, chain []*x509.Certificate) (bawn.Principal, error) {
	if len(chain) == 0 || a.cfg.Suspended(tenant) {
		return bawn.Principal{}, badPartner(errors.New("there is none, or the tenant is suspended"))
	}
	leaf := chain[0]
	if want.CA == "" {
		p, err := a.authenticateCertificate(ctx, chain)
		switch {
		case bawn.ErrorCode(err) == bawn.CodeUnavailable:
			return bawn.Principal{}, err
		case err != nil || p.Tenant != tenant:
			return bawn.Principal{}, badPartner(errors.New("no issuer of the tenant's vouches for it, or it is revoked"))
		}
		name, ok := named(leaf, want.Subjects)
		if !ok {
			return bawn.Principal{}, badPartner(errors.New("it has none of the names that the route asks for"))
		}
		p.Name, p.Roles, p.Access = printable(name), nil, bawn.AccessMTLS
		return p, nil
	}
	known, err := a.vouched(a.routeAuthority(want.CA), chain)
	if err != nil {
		return bawn.Principal{}, badPartner(err)
	}
	name, ok := named(leaf, want.Subjects)
	if !ok {
		return bawn.Principal{}, badPartner(errors.New("it has none of the names that the route asks for"))
	}
	if name == "" {
		sum := sha256.Sum256(leaf.Raw)
		name = "sha256:" + hex.EncodeToString(sum[:])
	}
	// No issuer of Bawn's is asked, so it is nobody of theirs: their ids have no slash,
	// or are of SPIFFE.
	return bawn.Principal{
		Kind: bawn.PrincipalCert, ID: bawn.AccessMTLS + "/" + known.root + "#" + name, Name: printable(name), Tenant: tenant,
		Issued: leaf.NotBefore, Expires: known.end, Access: bawn.AccessMTLS,
	}, nil
}

// vouched finds a chain from a certificate to one of the authorities.
func (a *Authenticator) vouched(by *routeAuthority, chain []*x509.Certificate) (partner, error) {
	h := sha256.New()
	h.Write(by.sum[:])
	size := 0
	for _, c := range chain {
		h.Write(c.Raw)
		size += len(c.Raw)
	}
	if len(chain) > maxChain || size > maxChainSize {
		return partner{}, errors.New("it came with too many others, or is too large")
	}
	sum, now := [sha256.Size]byte(h.Sum(nil)), a.cfg.Now()
	if p, ok := a.routes.partners.get(sum); ok && !now.Before(p.begin) && now.Before(p.end) {
		return p, nil
	}
	chains, err := verifyClient(chain, by.roots, now)
	switch {
	case err != nil:
		return partner{}, errors.New(why(err))
	case chain[0].IsCA:
		return partner{}, errors.New("it is an authority's own")
	}
	root := chains[0][len(chains[0])-1]
	key := sha256.Sum256(root.RawSubjectPublicKeyInfo)
	p := partner{root: hex.EncodeToString(key[:8]), begin: chain[0].NotBefore, end: endOf(chains[0])}
	a.routes.partners.put(sum, p)
	return p, nil
}

// verifyClient builds chains from a client's certificate to roots.
func verifyClient(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	return chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// why says in fixed words what is wrong with a certificate: those of package x509
// have the caller's in them.
func why(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return "it has ended, or not begun"
		case x509.IncompatibleUsage:
			return "it is not for clients"
		}
		return "its chain is not valid"
	}
	return "none of the route's authorities vouches for it"
}

// Elsewhere reports whether a client's certificate is of no issuer of Bawn's, but of
// one of roots, which are the authorities of all routes: a client shows it for the
// connection, whichever route a request is for, and nobody is known by it on others.
func (a *Authenticator) Elsewhere(chain []*x509.Certificate, roots *x509.CertPool) bool {
	size := 0
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw)
		size += len(c.Raw)
	}
	if len(chain) == 0 || roots == nil || len(chain) > maxChain || size > maxChainSize {
		return false
	}
	r, at := &a.routes, elsewhere{roots, a.Authorities()}
	sum, now := [sha256.Size]byte(h.Sum(nil)), a.cfg.Now()
	r.mu.Lock()
	if r.at != at || len(r.others) >= maxPartners {
		r.at, r.others = at, map[[sha256.Size]byte]time.Time{}
	}
	end, known := r.others[sum]
	r.mu.Unlock()
	if known {
		return now.Before(end)
	}
	if chains, err := verifyClient(chain, roots, now); err == nil {
		end = endOf(chains[0])
	}
	if at.ours != nil && !end.IsZero() {
		if _, err := verifyClient(chain, at.ours, now); err == nil {
			end = time.Time{}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == at {
		r.others[sum] = end
	}
	return now.Before(end)
}

// elsewhere is by what it is told whose a certificate is. Neither pool changes.
type elsewhere struct{ roots, ours *x509.CertPool }

// routeAuthority returns the authorities of a PEM document of a route's.
func (a *Authenticator) routeAuthority(doc string) *routeAuthority {
	r := &a.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.authorities[doc]; k != nil {
		return k
	}
	roots, _ := pool(doc)
	k := &routeAuthority{roots: cmp.Or(roots, x509.NewCertPool()), sum: sha256.Sum256([]byte(doc))} // checked when it was deployed
	if r.authorities == nil {
		r.authorities = map[string]*routeAuthority{}
	}
	if len(r.authorities) >= maxRouteIssuers {
		for old := range r.authorities { // any: it is read again when it is asked for
			delete(r.authorities, old)
			break
		}
	}
	r.authorities[doc] = k
	return k
}

// AuthoritiesOf returns the certificates of a PEM document of a route's.
func AuthoritiesOf(doc string) []*x509.Certificate { return certificates(doc) }

// named returns the name by which a certificate meets one of the subjects, in the
// form of those, or if there is none of them its first name, "" if it has none. The
// common name is none.
func named(leaf *x509.Certificate, subjects []string) (string, bool) {
	if len(subjects) == 0 {
		for name := range names(leaf) {
			return name, true
		}
		return "", true
	}
	for name := range names(leaf) {
		if slices.ContainsFunc(subjects, func(s string) bool { return fits(s, name) }) {
			return name, true
		}
	}
	return "", false
}

// names ranges over what a certificate says that its holder is called, as subjects
// are written.
func names(leaf *x509.Certificate) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		tell := func(s string) bool { return len(s) > maxPattern || strings.ContainsFunc(s, notPrintable) || yield(s) }
		for _, u := range leaf.URIs {
			if !tell("uri:" + u.String()) {
				return
			}
		}
		for _, name := range leaf.DNSNames {
			if !tell("dns:" + strings.ToLower(name)) {
				return
			}
		}
		for _, name := range leaf.EmailAddresses {
			user, domain, _ := strings.Cut(name, "@")
			if !tell("email:" + user + "@" + strings.ToLower(domain)) {
				return
			}
		}
	}
}

// fits reports whether a name is what a subject means.
func fits(subject, name string) bool {
	if below, ok := strings.CutPrefix(subject, "dns:*."); ok {
		label, domain, _ := strings.Cut(strings.TrimPrefix(name, "dns:"), ".")
		return strings.HasPrefix(name, "dns:") && label != "" && label != everybody && domain == below
	}
	if above, ok := strings.CutSuffix(subject, "/"+everybody); ok && strings.HasPrefix(subject, "uri:") {
		step, ok := strings.CutPrefix(name, above+"/")
		text, err := url.PathUnescape(step)
		return ok && err == nil && text != "" && text != "." && text != ".." && !strings.ContainsAny(text, "/?#*")
	}
	return subject == name
}
