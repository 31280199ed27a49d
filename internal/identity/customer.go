package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
)

// Bounds of what is kept of the issuers of routes, and of those whom they vouch
// for.
const (
	maxRouteIssuers  = 1024
	maxCustomers     = 4096    // tokens that were found good and are remembered
	maxCustomerToken = 4 << 10 // bytes; a longer token is verified each time
)

// customers is what is known of the issuers that routes name, and of the tokens
// that they issued. None of that has to do with Bawn's own users.
type customers struct {
	mu     sync.Mutex
	keys   map[routeIssuer]*keySet
	tokens memory[customer]

	authorities map[string]*routeAuthority // by their document
	partners    memory[partner]
	at          elsewhere
	others      map[[sha256.Size]byte]time.Time // certificates, and until when they are for other routes
}

// routeIssuer tells one issuer of routes from another: a URL, and by whom its
// server is trusted.
type routeIssuer struct{ url, ca string }

// customer is a token whose signature was found good.
type customer struct {
	token  *token
	key    *publicKey
	claims []byte
}

// IsToken reports whether a bearer has the form of a signed JSON Web Token.
func IsToken(bearer string) bool { return looksLikeToken(bearer) }

// IssuerOf returns what a token says of who issued it; nothing of it need be true.
func IssuerOf(bearer string) string {
	issuer, _ := peek(bearer)
	return issuer
}

// badToken says that a token does not open a route. why is for the owner alone.
func badToken(why error) error {
	return bawn.Wrap(why, bawn.CodeUnauthenticated, "identity.token", "the token is not good for this route").
		WithFix("log in at the route's issuer again, and send the token as Authorization: Bearer TOKEN")
}

// AuthenticateCustomer says who shows a token on a route of tenant that wants one:
// a principal without a role, and the token's claims as a JSON object of texts. It
// may have to fetch the issuer's keys. The errors are those of Authenticate; what
// one of CodeUnauthenticated wraps is for the route's owner, not for the caller.
func (a *Authenticator) AuthenticateCustomer(ctx context.Context, tenant string, want *bawn.JWTAccess, bearer string) (bawn.Principal, []byte, error) {
	set := a.routeKeys(want)
	i := &issuer{keys: set, Issuer: bawn.Issuer{
		Kind: bawn.IssuerOIDC, Tenant: tenant, URL: want.Issuer, Audience: want.Audience,
		Algorithms: Algorithms(), ClockSkew: defaultSkew, MaxLife: maxTokenLife,
	}}
	h := sha256.New()
	for _, s := range []string{want.Issuer, "\x00", want.CA, "\x00", bearer} {
		h.Write([]byte(s))
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	c, known := a.routes.tokens.get(sum)
	if known = known && set.serves(c.key); !known {
		t, err := parseToken(bearer)
		if err != nil {
			return bawn.Principal{}, nil, badToken(untaken("it is not well formed, or says something that is not understood"))
		}
		c = customer{token: t}
	}
	err := c.token.holds(i, a.cfg.Now())
	if err == nil && !c.token.meets(want.Claims) {
		err = untaken("it lacks a claim that the route asks for")
	}
	if err == nil && !known {
		if c.key, err = i.verify(ctx, bearer, c.token); bawn.ErrorCode(err) == bawn.CodeUnavailable {
			return bawn.Principal{}, nil, err
		}
	}
	if err != nil {
		return bawn.Principal{}, nil, badToken(err)
	}
	if !known {
		c.claims = c.token.texts()
		if len(bearer) <= maxCustomerToken {
			a.routes.tokens.put(sum, c)
		}
	}
	p := c.token.principal(i)
	// No issuer of Bawn's has a slash in its name, so this is nobody of its.
	p.ID, p.Access = bawn.AccessJWT+"/"+want.Issuer+"#"+c.token.subject, bawn.AccessJWT
	return p, c.claims, nil
}

// routeKeys returns the keys of the issuer that a route wants tokens of.
func (a *Authenticator) routeKeys(want *bawn.JWTAccess) *keySet {
	r := &a.routes
	at := routeIssuer{want.Issuer, want.CA}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.keys[at]; s != nil {
		return s
	}
	i := &issuer{Issuer: bawn.Issuer{Name: want.Issuer, URL: want.Issuer}}
	if want.CA != "" {
		if i.roots, _ = pool(want.CA); i.roots == nil { // checked when it was deployed
			i.roots = x509.NewCertPool() // nobody's: nil would be the system's
		}
	}
	if r.keys == nil {
		r.keys = map[routeIssuer]*keySet{}
	}
	if len(r.keys) >= maxRouteIssuers {
		for old := range r.keys { // any: its keys are fetched again when they are asked for
			delete(r.keys, old)
			break
		}
	}
	s := a.newKeySet(i)
	r.keys[at] = s
	return s
}

// meets reports whether each claim has one of its values.
func (t *token) meets(claims map[string][]string) bool {
	for name, values := range claims {
		if !slices.ContainsFunc(values, func(v string) bool { return t.says(name, v) || t.scoped(name, v) || t.counts(name, v) }) {
			return false
		}
	}
	return true
}

// scoped reports whether the claim is a list of scopes, as OAuth writes one, that
// has the value.
func (t *token) scoped(name, value string) bool {
	var all string
	return (name == "scope" || name == "scp") && text(t.claims[name], &all) == nil && slices.Contains(strings.Fields(all), value)
}

// counts reports whether the claim is a number that is written so.
func (t *token) counts(name, value string) bool {
	raw := t.claims[name]
	return len(raw) > 0 && (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9') && string(raw) == value
}

// texts is the claims as API Gateway tells them: each a text, a list as its
// entries in brackets.
func (t *token) texts() []byte {
	all := make(map[string]string, len(t.claims))
	for name, raw := range t.claims {
		var one string
		if text(raw, &one) == nil {
			all[name] = one
			continue
		}
		if len(raw) > 0 && raw[0] == '[' {
			if list, err := texts(raw, maxClaimRoles); err == nil {
				all[name] = "[" + strings.Join(list, " ") + "]"
				continue
			}
		}
		var b bytes.Buffer
		if json.Compact(&b, raw) == nil {
			all[name] = b.String()
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		return []byte("{}") // texts always can be written
	}
	return data
}
