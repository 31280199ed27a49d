package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// Bounds of what an issuer's settings may be.
const (
	maxIssuers      = 64 // of a tenant
	maxIssuerText   = 512
	maxIssuerRoles  = 200
	maxIssuerClaims = 16
	maxIssuerCA     = 64 << 10
	maxIssuerScopes = 16
	maxClockSkew    = 5 * time.Minute
	defaultSkew     = 30 * time.Second
	maxTokenLife    = 30 * 24 * time.Hour
	defaultLife     = 24 * time.Hour
	defaultClaim    = "groups"
	everybody       = "*"
)

// issuer is one configured issuer, ready for use. It does not change: another
// setting makes another one.
type issuer struct {
	bawn.Issuer
	revision uint64
	roots    *x509.CertPool // nil: the system's
	keys     *keySet        // of an oidc issuer
}

// issuers are the configured issuers of all tenants, and what was revoked.
type issuers struct {
	table   *store.Table[bawn.Issuer]     // tenant.name
	revoked *store.Table[bawn.Revocation] // tenant.id
	now     func() time.Time
	making  sync.Mutex // held while one is made or replaced

	mu      sync.RWMutex
	byName  map[string]*issuer         // tenant.name
	byToken map[tokenOf]*issuer        // oidc, by what its tokens say
	ends    map[string]bawn.Revocation // tenant and principal, see revocationOf
	roots   *x509.CertPool             // of all authorities; nil: there is none

	// What opening found damaged does not change while the tables are open.
	lost  error            // issuers are lost: whose somebody is cannot be said
	blind map[string]error // tenants with lost revocations; "" stands for all
}

// tokenOf is what tells one issuer's tokens from another's.
type tokenOf struct{ url, audience string }

func openIssuers(ctx context.Context, s *store.Store, now func() time.Time, prepare func(*issuer)) (*issuers, error) {
	i := &issuers{now: now, byName: map[string]*issuer{}, byToken: map[tokenOf]*issuer{}, ends: map[string]bawn.Revocation{}}
	var err error
	if i.table, err = store.OpenTable[bawn.Issuer](ctx, s, "issuers"); err != nil {
		return nil, err
	}
	if i.revoked, err = store.OpenTable[bawn.Revocation](ctx, s, "revocations"); err != nil {
		return nil, err
	}
	i.lost = i.table.Trusted()
	i.blind = map[string]error{}
	for d := range i.revoked.Damaged() {
		// What is there and should not be does no harm.
		if d.Key == "" || i.revoked.Lost(d.Key) {
			tenant, _, _ := strings.Cut(d.Key, ".")
			i.blind[tenant] = i.revoked.Trusted()
		}
	}
	i.table.Watch(func(key string, v *bawn.Issuer) {
		i.mu.Lock()
		defer i.mu.Unlock()
		defer i.gather()
		if old := i.byName[key]; old != nil {
			delete(i.byName, key)
			delete(i.byToken, old.token())
		}
		if v == nil {
			return
		}
		known := &issuer{Issuer: *v, revision: uint64(v.UpdatedAt.UnixNano())}
		if v.CA != "" {
			known.roots, _ = pool(v.CA) // checked when it was stored
		}
		prepare(known)
		i.byName[key] = known
		if v.Kind == bawn.IssuerOIDC {
			i.byToken[known.token()] = known
		}
	})
	i.revoked.Watch(func(key string, v *bawn.Revocation) {
		i.mu.Lock()
		defer i.mu.Unlock()
		tenant, _, _ := strings.Cut(key, ".")
		if v == nil {
			for at, r := range i.ends {
				if r.Tenant == tenant && tenant+"."+r.ID == key {
					delete(i.ends, at)
				}
			}
			return
		}
		i.ends[revocationOf(v.Tenant, v.Principal)] = *v
	})
	return i, nil
}

// trusted returns nil if an issuer of the tenant can vouch for anybody: a lost
// issuer or revocation must not let in whom it keeps out. Otherwise it is a
// CodeUnavailable that says what is damaged.
func (i *issuers) trusted(tenant string) error {
	return cmp.Or(i.lost, i.blind[""], i.blind[tenant])
}

func (i *issuer) token() tokenOf {
	return tokenOf{i.URL, cmp.Or(i.Audience, i.ClientID)}
}

// named returns the issuer, or nil.
func (i *issuers) named(tenant, name string) *issuer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.byName[tenant+"."+name]
}

// ofToken returns the one whose tokens say so, or nil.
func (i *issuers) ofToken(url string, audiences []string) *issuer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	for _, a := range audiences {
		if known := i.byToken[tokenOf{url, a}]; known != nil {
			return known
		}
	}
	return nil
}

// gather collects the roots of all authorities. The caller holds mu.
func (i *issuers) gather() {
	i.roots = nil
	for _, known := range i.byName {
		if known.Kind != bawn.IssuerCA {
			continue
		}
		if i.roots == nil {
			i.roots = x509.NewCertPool()
		}
		for _, c := range certificates(known.CA) {
			i.roots.AddCert(c)
		}
	}
}

func (i *issuers) allRoots() *x509.CertPool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.roots
}

// none reports whether no issuer of tokens is configured.
func (i *issuers) none() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return len(i.byToken) == 0
}

// authorities returns the issuers of certificates, in a fixed order.
func (i *issuers) authorities() []*issuer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var all []*issuer
	for _, key := range slices.Sorted(maps.Keys(i.byName)) {
		if known := i.byName[key]; known.Kind == bawn.IssuerCA {
			all = append(all, known)
		}
	}
	return all
}

// rolesFor returns the roles that values are mapped to, each once.
func (i *issuer) rolesFor(matches func(pattern string) bool) []bawn.Role {
	var roles []bawn.Role
	for pattern, given := range i.Roles {
		if pattern == everybody || matches(pattern) {
			roles = append(roles, given...)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

// Issuers lists the issuers of a tenant by name.
func (a *Authenticator) Issuers(tenant string) []bawn.Issuer {
	all := []bawn.Issuer{}
	for _, v := range a.issuers.table.All(tenant + ".") {
		all = append(all, v)
	}
	return all
}

// Issuer returns one issuer of a tenant.
func (a *Authenticator) Issuer(tenant, name string) (bawn.Issuer, bool) {
	if bawn.CheckName("tenant", tenant) != nil || bawn.CheckName("issuer", name) != nil {
		return bawn.Issuer{}, false
	}
	v, _, ok := a.issuers.table.Get(tenant + "." + name)
	return v, ok
}

// CheckIssuer reports what is wrong with want's settings, and whether they collide
// with those of another issuer. It returns them as they would be stored.
func (a *Authenticator) CheckIssuer(want bawn.Issuer) (bawn.Issuer, error) {
	if err := checkIssuer(&want); err != nil {
		return want, err
	}
	return want, a.issuers.collides(want)
}

// PutIssuer stores an issuer: a new one, or with replace one that is there. What
// was known by its earlier settings is not current any more. It must have passed
// CheckIssuer, and who may do that is for the caller to know.
func (a *Authenticator) PutIssuer(ctx context.Context, want bawn.Issuer, replace bool) (bawn.Issuer, error) {
	const op = "identity.issuer"
	i := a.issuers
	if err := checkIssuer(&want); err != nil {
		return want, err
	}
	i.making.Lock()
	defer i.making.Unlock()
	if i.lost != nil {
		return want, i.lost // it might be another's
	}
	if err := i.collides(want); err != nil {
		return want, err
	}
	key := want.Tenant + "." + want.Name
	old, rev, ok := i.table.Get(key)
	want.UpdatedAt = i.now().UTC()
	switch {
	case ok && !replace:
		return want, bawn.Errorf(bawn.CodeConflict, op, "an issuer named %s exists already", want.Name).WithFix("take another name, or replace it")
	case !ok && replace:
		return want, noIssuer(want.Name)
	case ok:
		want.CreatedAt, want.CreatedBy = old.CreatedAt, old.CreatedBy
		if !want.UpdatedAt.After(old.UpdatedAt) {
			want.UpdatedAt = old.UpdatedAt.Add(1) // it tells settings apart
		}
		_, err := i.table.Update(ctx, key, want, rev)
		return want, err
	}
	n := 0
	for range i.table.All(want.Tenant + ".") {
		n++
	}
	if n >= maxIssuers {
		return want, bawn.Errorf(bawn.CodeTooLarge, op, "the tenant has %d issuers, no more are allowed", n).WithFix("remove one first")
	}
	want.CreatedAt = want.UpdatedAt
	_, err := i.table.Create(ctx, key, want)
	return want, err
}

// RemoveIssuer forgets an issuer. From its return on whoever it vouches for is
// refused, and not current any more.
func (a *Authenticator) RemoveIssuer(ctx context.Context, tenant, name string) error {
	if _, ok := a.Issuer(tenant, name); !ok {
		return noIssuer(name)
	}
	_, rev, _ := a.issuers.table.Get(tenant + "." + name)
	return a.issuers.table.Delete(ctx, tenant+"."+name, rev)
}

func noIssuer(name string) error {
	return bawn.Errorf(bawn.CodeNotFound, "identity.issuer", "there is no issuer %.63q", name).WithFix("bawn issuer ls lists the issuers that there are")
}

// collides reports that another issuer has the tokens or the roots of want: who
// somebody is must not depend on which one is asked first.
func (i *issuers) collides(want bawn.Issuer) error {
	for key, other := range i.table.All("") {
		if key == want.Tenant+"."+want.Name || other.Kind != want.Kind {
			continue
		}
		known := issuer{Issuer: other}
		mine := issuer{Issuer: want}
		if want.Kind == bawn.IssuerOIDC && known.token() == mine.token() || want.Kind == bawn.IssuerCA && shareKey(want.CA, other.CA) {
			return bawn.Errorf(bawn.CodeConflict, "identity.issuer", "an issuer with the same %s is configured already", map[string]string{bawn.IssuerOIDC: "URL and audience", bawn.IssuerCA: "root certificate"}[want.Kind]).
				WithFix("give each its own; one and the same cannot vouch twice")
		}
	}
	return nil
}

func shareKey(a, b string) bool {
	have := map[[sha256.Size]byte]bool{}
	for _, c := range certificates(a) {
		have[sha256.Sum256(c.RawSubjectPublicKeyInfo)] = true
	}
	return slices.ContainsFunc(certificates(b), func(c *x509.Certificate) bool { return have[sha256.Sum256(c.RawSubjectPublicKeyInfo)] })
}

// checkIssuer checks the settings and fills in what has a default.
func checkIssuer(want *bawn.Issuer) error {
	const op = "identity.issuer"
	invalid := func(fix, format string, args ...any) error {
		return bawn.Errorf(bawn.CodeInvalid, op, format, args...).WithFix("%s", fix)
	}
	if err := bawn.CheckName("issuer", want.Name); err != nil {
		return err
	}
	if err := bawn.CheckName("tenant", want.Tenant); err != nil {
		return err
	}
	for _, s := range append([]string{want.URL, want.Audience, want.ClientID, want.RoleClaim}, want.Scopes...) {
		if len(s) > maxIssuerText || strings.ContainsFunc(s, notPrintable) {
			return invalid("use printable ASCII without spaces", "the setting %.80q is too long or has a character that must not be there", s)
		}
	}
	if len(want.CA) > maxIssuerCA {
		return bawn.Errorf(bawn.CodeTooLarge, op, "the certificates have %d bytes, at most %d are allowed", len(want.CA), maxIssuerCA).WithFix("leave out all but the roots")
	}
	if want.CA != "" {
		if _, err := pool(want.CA); err != nil {
			return err
		}
	}
	if err := checkRoles(want); err != nil {
		return err
	}
	switch want.Kind {
	case bawn.IssuerCA:
		if want.CA == "" {
			return invalid("give its root certificates as PEM", "an issuer of certificates needs its roots")
		}
		if want.URL+want.Audience+want.ClientID+want.RoleClaim != "" || len(want.Scopes)+len(want.Algorithms)+len(want.Require) > 0 || want.Private || want.ClockSkew != 0 || want.MaxLife != 0 {
			return invalid("leave out all but the roots and the roles", "an issuer of certificates has settings that are for tokens")
		}
		return nil
	case bawn.IssuerOIDC:
	default:
		return invalid("use oidc or ca", "%.20q is not a kind of issuer", want.Kind)
	}
	u, err := url.Parse(want.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return invalid("give it as https://HOST[:PORT][/PATH], just as the tokens have it in iss", "%.200q is not the URL of an issuer", want.URL)
	}
	if want.Audience == "" && want.ClientID == "" {
		return invalid("name the client's id, or what its tokens have in aud", "an issuer of tokens needs an audience")
	}
	if len(want.Scopes) > maxIssuerScopes {
		return invalid("leave some out", "more than %d scopes are named", maxIssuerScopes)
	}
	if len(want.Algorithms) == 0 {
		want.Algorithms = []string{"ES256", "RS256", "EdDSA"}
	}
	for _, alg := range want.Algorithms {
		if !slices.Contains(Algorithms(), alg) {
			return invalid("use some of "+strings.Join(Algorithms(), ", "), "%.20q is not an algorithm that tokens may be signed with", alg)
		}
	}
	if want.RoleClaim == "" {
		want.RoleClaim = defaultClaim
	}
	if len(want.Require) > maxIssuerClaims {
		return invalid("leave some out", "more than %d claims are required", maxIssuerClaims)
	}
	for k, v := range want.Require {
		if k == "" || v == "" || len(k) > maxIssuerText || len(v) > maxIssuerText || strings.ContainsFunc(k+v, notPrintable) {
			return invalid("use printable ASCII without spaces", "the required claim %.80q=%.80q is empty, too long or has a character that must not be there", k, v)
		}
	}
	if want.ClockSkew == 0 {
		want.ClockSkew = defaultSkew
	}
	if want.ClockSkew < 0 || want.ClockSkew > maxClockSkew {
		return invalid("take at most "+maxClockSkew.String(), "the clock skew %s is not possible", want.ClockSkew)
	}
	if want.MaxLife == 0 {
		want.MaxLife = defaultLife
	}
	if want.MaxLife < time.Minute || want.MaxLife > maxTokenLife {
		return invalid("take from 1m to 720h", "the life %s of a token is not possible", want.MaxLife)
	}
	return nil
}

func checkRoles(want *bawn.Issuer) error {
	const op = "identity.issuer"
	n := 0
	for value, roles := range want.Roles {
		if value == "" || len(value) > maxIssuerText || strings.ContainsFunc(value, func(r rune) bool { return r != ' ' && notPrintable(r) }) {
			return bawn.Errorf(bawn.CodeInvalid, op, "roles are mapped from %.80q, which is empty, too long or has a character that must not be there", value).WithFix("use printable ASCII")
		}
		if want.Kind == bawn.IssuerCA && value != everybody {
			if err := checkPattern(value); err != nil {
				return err
			}
		}
		for _, r := range roles {
			if err := bawn.CheckName("role", string(r)); err != nil {
				return err
			}
			n++
		}
	}
	if n > maxIssuerRoles {
		return bawn.Errorf(bawn.CodeTooLarge, op, "%d roles are mapped, at most %d are allowed", n, maxIssuerRoles).WithFix("map groups instead of persons")
	}
	return nil
}

func notPrintable(r rune) bool { return r <= ' ' || r >= 0x7f }

// certificates returns those of a PEM document; checked before, so that nothing
// else is in it.
func certificates(doc string) []*x509.Certificate {
	var all []*x509.Certificate
	for rest := []byte(doc); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return all
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			all = append(all, c)
		}
	}
}

// pool returns the certificates of a PEM document as roots.
func pool(doc string) (*x509.CertPool, error) {
	bad := bawn.Errorf(bawn.CodeInvalid, "identity.issuer", "the roots are not certificates of authorities as PEM").
		WithFix("give the file with the root certificates, and nothing else, each as BEGIN CERTIFICATE")
	p, n := x509.NewCertPool(), 0
	rest := []byte(doc)
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil || b.Type != "CERTIFICATE" || !c.IsCA || !c.BasicConstraintsValid {
			return nil, bad
		}
		p.AddCert(c)
		n++
	}
	if n == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, bad
	}
	return p, nil
}
