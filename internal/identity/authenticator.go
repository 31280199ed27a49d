package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// Config says what an [Authenticator] stands on. Store, Keys, Dir and Secret are
// needed.
type Config struct {
	Store *store.Store
	Keys  *Keys
	// Dir is the folder of the record of signed requests; it is made if missing.
	Dir string
	// Secret is what the secrets for signing requests are derived from: 32 bytes,
	// of which nobody else has anything.
	Secret []byte
	// Dial connects to an issuer's server. An address that is not of the public
	// internet may be reached only if private is set. nil refuses all.
	Dial func(ctx context.Context, network, addr string, private bool) (net.Conn, error)
	// Suspended reports whether nobody of the tenant gets in; nil: no tenant is. It
	// reads memory only.
	Suspended func(tenant string) bool
	// TrustDomain is the one that the node's functions have SPIFFE ids in: no
	// certificate of an issuer may speak of it.
	TrustDomain string
	Now         func() time.Time // the clock; nil means time.Now
	Log         *slog.Logger     // what an operator should see to; nil discards
}

// Authenticator says who a caller is: the one front of API keys, tokens and
// certificates of configured issuers, and signed requests. It is safe for
// concurrent use.
type Authenticator struct {
	cfg     Config
	issuers *issuers
	known   memory[known]
	routes  customers
	replay  *replay
	hooks   *replay // of webhooks that are not signed with a time
}

// Credential is what a caller shows of itself. The zero value is nobody's.
type Credential struct {
	Bearer       string              // an API key, or a JSON Web Token of a configured issuer
	Certificates []*x509.Certificate // from the TLS handshake, the caller's own first; not verified yet
	Signed       *bawn.Signed        // a request with an AWS signature
}

// CredentialOf returns what the caller of c has shown.
func CredentialOf(c *bawn.Call) Credential {
	return Credential{Bearer: c.Bearer, Certificates: c.Certificates, Signed: c.Signed}
}

// Empty reports whether nothing was shown.
func (c Credential) Empty() bool {
	return c.Bearer == "" && len(c.Certificates) == 0 && c.Signed == nil
}

// Open opens what the authenticator knows of. The caller must Close it.
func Open(ctx context.Context, cfg Config) (*Authenticator, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Suspended == nil {
		cfg.Suspended = func(string) bool { return false }
	}
	a := &Authenticator{cfg: cfg}
	a.routes.tokens.most, a.routes.partners.most = maxCustomers, maxPartners
	var err error
	a.issuers, err = openIssuers(ctx, cfg.Store, cfg.Now, func(i *issuer) {
		if i.Kind == bawn.IssuerOIDC {
			i.keys = a.newKeySet(i)
		}
	})
	if err != nil {
		return nil, err
	}
	a.replay, err = openReplay(cfg.Dir, cfg.Now, func(err error) { cfg.Log.Error("the record of signed requests", "error", err) })
	if err != nil {
		return nil, err
	}
	a.hooks, err = openMemory(cfg.Dir, webhookPrefix, deliveries, 0, cfg.Now, func(err error) { cfg.Log.Error("the record of webhooks", "error", err) })
	if err != nil {
		a.replay.close()
		return nil, err
	}
	return a, nil
}

// Close ends what Open began.
func (a *Authenticator) Close() error { return errors.Join(a.replay.close(), a.hooks.close()) }

// Keys returns the API keys.
func (a *Authenticator) Keys() *Keys { return a.cfg.Keys }

// Authenticate returns who shows c. It reads memory only, but for a token whose
// issuer's keys have to be fetched and for a signed request, whose acceptance is
// made durable first: such a request is accepted once, so it must be asked about
// once. An unknown, malformed, expired or revoked credential gives an error of
// CodeUnauthenticated, and so does a [Credential.Empty] one. CodeUnavailable means
// that it cannot be known now, and CodeThrottled that it may not be asked so often.
func (a *Authenticator) Authenticate(ctx context.Context, c Credential) (bawn.Principal, error) {
	return a.authenticate(ctx, c, a.authenticateSigned)
}

func (a *Authenticator) authenticate(ctx context.Context, c Credential, signed func(context.Context, *bawn.Signed) (bawn.Principal, error)) (p bawn.Principal, err error) {
	var holder bawn.Principal
	if len(c.Certificates) > 0 {
		if holder, err = a.authenticateCertificate(ctx, c.Certificates); err != nil {
			return bawn.Principal{}, err
		}
	}
	switch {
	case c.Bearer != "" && c.Signed != nil:
		err = refused()
	case c.Signed != nil:
		p, err = signed(ctx, c.Signed)
	case c.Bearer != "":
		p, err = a.authenticateBearer(ctx, c.Bearer)
	case holder.Kind != "":
		p = holder
	default:
		err = refused()
	}
	// A certificate beside another credential is of the same tenant, or one of
	// them is not the caller's.
	if err == nil && (holder.Kind != "" && holder.Tenant != p.Tenant || a.cfg.Suspended(p.Tenant)) {
		err = refused()
	}
	if err != nil {
		return bawn.Principal{}, err
	}
	return p, nil
}

func (a *Authenticator) authenticateBearer(ctx context.Context, bearer string) (bawn.Principal, error) {
	if strings.HasPrefix(bearer, prefix) {
		return a.cfg.Keys.Authenticate(bearer)
	}
	if !looksLikeToken(bearer) {
		return bawn.Principal{}, refused()
	}
	if k, ok := a.known.get(sha256.Sum256([]byte(bearer))); ok {
		if p, ok := a.still(k); ok {
			return p, nil
		}
	}
	p, err := a.authenticateToken(ctx, bearer)
	if err != nil {
		return bawn.Principal{}, err
	}
	if p, ok := a.Current(p); ok {
		return p, nil
	}
	return bawn.Principal{}, refused()
}

// still reports whether a credential that was found good is good now.
func (a *Authenticator) still(k known) (bawn.Principal, bool) {
	if k.key != nil && !k.issuer.keys.serves(k.key) {
		return bawn.Principal{}, false
	}
	return a.Current(k.p)
}

// Ours reports whether a bearer is Bawn's to look at: an API key, or a token for
// a configured issuer and audience, good or not. What else there is in an
// Authorization header is for the function that is called.
func (a *Authenticator) Ours(bearer string) bool {
	if strings.HasPrefix(bearer, prefix) {
		return true
	}
	if a.issuers.lost != nil {
		return looksLikeToken(bearer) // whose it is cannot be said
	}
	if a.issuers.none() {
		return false
	}
	issuer, audiences := peek(bearer)
	return a.issuers.ofToken(issuer, audiences) != nil
}

// Authorities returns the roots of all issuers of client certificates, or nil if
// there is none: then a listener need not ask for certificates.
func (a *Authenticator) Authorities() *x509.CertPool { return a.issuers.allRoots() }

// Plausible returns nil if c could be good, so that it is worth reading the
// request's body, and otherwise why it is not. Of a bearer and of certificates it
// says what Authenticate does; a signed request is looked at without its body, and
// stays acceptable.
func (a *Authenticator) Plausible(ctx context.Context, c Credential) error {
	_, err := a.authenticate(ctx, c, func(_ context.Context, r *bawn.Signed) (bawn.Principal, error) {
		_, _, key, err := a.readSigned(r)
		if err != nil {
			return bawn.Principal{}, err
		}
		return key.principal(), nil
	})
	return err
}

// Current looks at a principal again that was seen before: whether its credential
// has neither ended nor been revoked, its issuer is still configured as it was,
// and its tenant is not suspended. It returns the principal as it is now, with
// the rights it has by now. It reads memory only and takes well under a
// microsecond, so that whatever takes long can ask often.
//
// A function, the node and anonymous callers have no credential that could end.
func (a *Authenticator) Current(p bawn.Principal) (bawn.Principal, bool) {
	if a.cfg.Suspended(p.Tenant) {
		return bawn.Principal{}, false
	}
	switch p.Kind {
	case bawn.PrincipalKey:
		now, ok := a.cfg.Keys.current(p)
		now.Access = p.Access
		return now, ok
	case bawn.PrincipalFunction, bawn.PrincipalNode, bawn.PrincipalAnonymous, bawn.PrincipalWebhook:
		return p, true
	case bawn.PrincipalUser, bawn.PrincipalCert:
		if p.Issuer == "" && p.Access != "" { // known by a route, and by no issuer of Bawn's
			return p, p.Expires.IsZero() || a.cfg.Now().Before(p.Expires)
		}
		i := a.issuers.named(p.Tenant, p.Issuer)
		if i == nil || a.issuers.trusted(p.Tenant) != nil || i.revision != p.Revision || !p.Expires.IsZero() && !a.cfg.Now().Before(p.Expires) || a.issuers.ended(&p, i.Name, i.ClockSkew) {
			return bawn.Principal{}, false
		}
		return p, true
	}
	return bawn.Principal{}, false
}
