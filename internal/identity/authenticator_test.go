package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/go-jose/go-jose/v4"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// world is an authenticator with a clock of its own.
type world struct {
	*Authenticator
	store *store.Store
	dir   string
	clock atomic.Int64 // nanoseconds that the clock is ahead
	gone  sync.Map     // suspended tenants
}

func (w *world) now() time.Time            { return time.Now().Add(time.Duration(w.clock.Load())) }
func (w *world) pass(d time.Duration)      { w.clock.Add(int64(d)) }
func (w *world) open(t testing.TB)         { t.Helper(); w.reopen(t, w.dir) }
func (w *world) suspended(ten string) bool { _, ok := w.gone.Load(ten); return ok }

func (w *world) reopen(t testing.TB, dir string) {
	keys, err := OpenKeys(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	w.Authenticator, err = Open(t.Context(), Config{
		Store: w.store, Keys: keys, Dir: dir, Secret: []byte(strings.Repeat("s", 32)), TrustDomain: "node", Now: w.now, Suspended: w.suspended,
		Dial: func(ctx context.Context, network, addr string, private bool) (net.Conn, error) {
			if !private {
				return nil, fmt.Errorf("%s is private", addr)
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w := &world{store: s, dir: filepath.Join(t.TempDir(), "identity")}
	w.open(t)
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *world) put(t testing.TB, i bawn.Issuer) bawn.Issuer {
	t.Helper()
	if i.Tenant == "" {
		i.Tenant = "main"
	}
	_, had := w.Issuer(i.Tenant, i.Name)
	made, err := w.PutIssuer(t.Context(), i, had)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// idp serves the keys of an issuer; tests sign tokens with them by hand, also such
// as no honest issuer would.
type idp struct {
	*httptest.Server
	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetches int
	down    bool
	ec      *ecdsa.PrivateKey
	rsa     *rsa.PrivateKey
	ed      ed25519.PrivateKey
}

func newIDP(t testing.TB) *idp {
	p := &idp{}
	var err error
	if p.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if p.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if _, p.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	p.keys = []jose.JSONWebKey{
		{KeyID: "ec", Algorithm: "ES256", Use: "sig", Key: p.ec.Public()},
		{KeyID: "rsa", Use: "sig", Key: p.rsa.Public()},
		{KeyID: "ed", Algorithm: "EdDSA", Use: "sig", Key: p.ed.Public()},
		{KeyID: "secret", Algorithm: "HS256", Use: "sig", Key: []byte("a secret that everybody knows...")},
	}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case p.down:
			w.WriteHeader(503)
		case strings.HasSuffix(r.URL.Path, "openid-configuration"):
			json.NewEncoder(w).Encode(map[string]string{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
		default:
			p.fetches++
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.keys})
		}
	}))
	t.Cleanup(p.Close)
	return p
}

// issuer returns the settings by which p is trusted.
func (p *idp) issuer(name string) bawn.Issuer {
	return bawn.Issuer{
		Name: name, Tenant: "main", Kind: bawn.IssuerOIDC, URL: p.URL, ClientID: "bawn", Private: true,
		CA:    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})),
		Roles: map[string][]bawn.Role{"devs": {bawn.RoleDeployer}, "*": {bawn.RoleViewer}},
	}
}

type claims map[string]any

func (w *world) claims(p *idp, change claims) claims {
	now := w.now().Unix()
	c := claims{"iss": p.URL, "sub": "ann", "aud": "bawn", "iat": now, "exp": now + 600, "groups": []string{"devs"}, "email": "ann@example.org"}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

// raw signs any header and payload by any algorithm.
func raw(t testing.TB, key any, head, payload string) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	in := b64([]byte(head)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(in))
	var sig []byte
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, k, sum[:])
		sig, err = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), e
	case *rsa.PrivateKey:
		sig, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(in))
	case []byte:
		m := hmac.New(sha256.New, k)
		m.Write([]byte(in))
		sig = m.Sum(nil)
	case nil:
	}
	if err != nil {
		t.Fatal(err)
	}
	return in + "." + b64(sig)
}

func (p *idp) sign(t testing.TB, c claims) string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return raw(t, p.ec, `{"alg":"ES256","kid":"ec","typ":"JWT"}`, string(b))
}

func (w *world) bearer(t testing.TB, token string) (bawn.Principal, error) {
	t.Helper()
	return w.Authenticate(t.Context(), Credential{Bearer: token})
}

// TestTokensThatAreTaken holds that each algorithm works, and what is made of the
// claims.
func TestTokensThatAreTaken(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	w.put(t, p.issuer("corp"))
	who, err := w.bearer(t, p.sign(t, w.claims(p, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if who.String() != "user:corp:ann" || who.Tenant != "main" || who.Name != "ann@example.org" || !who.Has(bawn.RoleDeployer) || !who.Has(bawn.RoleViewer) || len(who.Roles) != 2 {
		t.Errorf("%+v", who)
	}
	body, _ := json.Marshal(w.claims(p, nil))
	for head, key := range map[string]any{`{"alg":"RS256","kid":"rsa"}`: p.rsa, `{"alg":"EdDSA","kid":"ed","typ":"at+jwt"}`: p.ed, `{"alg":"ES256"}`: p.ec} {
		if _, err := w.bearer(t, raw(t, key, head, string(body))); err != nil {
			t.Errorf("%s: %v", head, err)
		}
	}
	for name, change := range map[string]claims{
		"several audiences and a party": {"aud": []string{"other", "bawn"}, "azp": "bawn"}, "a clock that is ahead": {"iat": w.now().Unix() + 20},
		"no groups": {"groups": nil}, "groups of another shape": {"groups": 7},
	} {
		if _, err := w.bearer(t, p.sign(t, w.claims(p, change))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p.fetches != 1 {
		t.Errorf("the keys were fetched %d times", p.fetches)
	}
}

// TestHostileTokens is the table of tokens that must not be taken.
func TestHostileTokens(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	i := p.issuer("corp")
	i.Require = map[string]string{"hd": "example.org"}
	w.put(t, i)
	good := w.claims(p, claims{"hd": "example.org"})
	if _, err := w.bearer(t, p.sign(t, good)); err != nil {
		t.Fatal(err)
	}
	body := func(change claims) string {
		c := maps.Clone(good)
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		b, _ := json.Marshal(c)
		return string(b)
	}
	const head = `{"alg":"ES256","kid":"ec"}`
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	jwk, _ := json.Marshal(jose.JSONWebKey{Key: other.Public()})
	spki, _ := x509.MarshalPKIXPublicKey(p.rsa.Public())
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	now := w.now().Unix()
	valid := raw(t, p.ec, head, body(nil))
	parts := strings.Split(valid, ".")
	for name, token := range map[string]string{
		"alg none":                    raw(t, nil, `{"alg":"none"}`, body(nil)) + "",
		"alg none with a signature":   raw(t, p.ec, `{"alg":"none","kid":"ec"}`, body(nil)),
		"alg nOnE":                    raw(t, p.ec, `{"alg":"nOnE","kid":"ec"}`, body(nil)),
		"no alg":                      raw(t, p.ec, `{"kid":"ec"}`, body(nil)),
		"HS256 with the public key":   raw(t, asPEM, `{"alg":"HS256","kid":"rsa"}`, body(nil)),
		"HS256 with the DER key":      raw(t, spki, `{"alg":"HS256","kid":"rsa"}`, body(nil)),
		"HS256 with a served secret":  raw(t, []byte("a secret that everybody knows..."), `{"alg":"HS256","kid":"secret"}`, body(nil)),
		"an algorithm not allowed":    raw(t, p.rsa, `{"alg":"PS256","kid":"rsa"}`, body(nil)),
		"the key of another alg":      raw(t, p.ec, `{"alg":"RS256","kid":"ec"}`, body(nil)),
		"another one's key":           raw(t, other, head, body(nil)),
		"another key with jwk":        raw(t, other, `{"alg":"ES256","kid":"ec","jwk":`+string(jwk)+`}`, body(nil)),
		"another key with jku":        raw(t, other, `{"alg":"ES256","kid":"ec","jku":"https://evil.example/keys"}`, body(nil)),
		"x5u":                         raw(t, p.ec, `{"alg":"ES256","kid":"ec","x5u":"https://evil.example/c"}`, body(nil)),
		"x5c":                         raw(t, p.ec, `{"alg":"ES256","kid":"ec","x5c":["AAAA"]}`, body(nil)),
		"crit":                        raw(t, p.ec, `{"alg":"ES256","kid":"ec","crit":["exp"]}`, body(nil)),
		"b64":                         raw(t, p.ec, `{"alg":"ES256","kid":"ec","b64":false}`, body(nil)),
		"zip":                         raw(t, p.ec, `{"alg":"ES256","kid":"ec","zip":"DEF"}`, body(nil)),
		"a logout token's type":       raw(t, p.ec, `{"alg":"ES256","kid":"ec","typ":"logout+jwt"}`, body(nil)),
		"a nested token":              raw(t, p.ec, `{"alg":"ES256","kid":"ec","cty":"JWT"}`, body(nil)),
		"an unknown kid":              raw(t, p.ec, `{"alg":"ES256","kid":"nobody"}`, body(nil)),
		"a kid that is a path":        raw(t, p.ec, `{"alg":"ES256","kid":"../../dev/null"}`, body(nil)),
		"a duplicate in the header":   raw(t, p.ec, `{"alg":"none","alg":"ES256","kid":"ec"}`, body(nil)),
		"a duplicate claim":           raw(t, p.ec, head, strings.Replace(body(nil), `{`, `{"sub":"root",`, 1)),
		"a duplicate in another case": raw(t, p.ec, head, strings.Replace(body(nil), `{`, `{"SUB":"root",`, 1)),
		"a duplicate further in":      raw(t, p.ec, head, body(claims{"x": json.RawMessage(`{"a":1,"a":2}`)})),
		"deep JSON":                   raw(t, p.ec, head, body(claims{"x": json.RawMessage(strings.Repeat("[", 100) + strings.Repeat("]", 100))})),
		"bytes after the claims":      raw(t, p.ec, head, body(nil)+"{}"),
		"claims that are a list":      raw(t, p.ec, head, "["+body(nil)+"]"),
		"another issuer":              raw(t, p.ec, head, body(claims{"iss": "https://evil.example"})),
		"the issuer with a slash":     raw(t, p.ec, head, body(claims{"iss": p.URL + "/"})),
		"no issuer":                   raw(t, p.ec, head, body(claims{"iss": nil})),
		"another audience":            raw(t, p.ec, head, body(claims{"aud": "other"})),
		"no audience":                 raw(t, p.ec, head, body(claims{"aud": []string{}})),
		"several, and no party":       raw(t, p.ec, head, body(claims{"aud": []string{"bawn", "other"}})),
		"another party":               raw(t, p.ec, head, body(claims{"azp": "other"})),
		"expired":                     raw(t, p.ec, head, body(claims{"iat": now - 1000, "exp": now - 31})),
		"no end":                      raw(t, p.ec, head, body(claims{"exp": nil})),
		"an end that is text":         raw(t, p.ec, head, body(claims{"exp": "never"})),
		"an end that overflows":       raw(t, p.ec, head, body(claims{"exp": json.RawMessage("1e300")})),
		"no beginning":                raw(t, p.ec, head, body(claims{"iat": nil})),
		"issued in the future":        raw(t, p.ec, head, body(claims{"iat": now + 300, "exp": now + 600})),
		"not yet":                     raw(t, p.ec, head, body(claims{"nbf": now + 300})),
		"a life that is too long":     raw(t, p.ec, head, body(claims{"exp": now + 25*3600})),
		"no subject":                  raw(t, p.ec, head, body(claims{"sub": ""})),
		"a subject with a line end":   raw(t, p.ec, head, body(claims{"sub": "ann\nroot"})),
		"a subject that is huge":      raw(t, p.ec, head, body(claims{"sub": strings.Repeat("a", 300)})),
		"bound to another key":        raw(t, p.ec, head, body(claims{"cnf": map[string]string{"jkt": "x"}})),
		"claims that lie elsewhere":   raw(t, p.ec, head, body(claims{"_claim_sources": map[string]any{"a": map[string]string{"endpoint": "https://evil.example"}}})),
		"a required claim missing":    raw(t, p.ec, head, body(claims{"hd": nil})),
		"a required claim wrong":      raw(t, p.ec, head, body(claims{"hd": "evil.example"})),
		"huge":                        raw(t, p.ec, head, body(claims{"x": strings.Repeat("a", 20<<10)})),
		"no signature":                parts[0] + "." + parts[1] + ".",
		"a changed payload":           parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(body(claims{"sub": "root"}))) + "." + parts[2],
		"padding":                     valid + "=",
		"a line end":                  parts[0] + "." + parts[1] + ".\n" + parts[2],
		"an encrypted one":            valid + ".a.b",
		"JSON serialisation":          `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"empty parts":                 "ey..",
	} {
		who, err := w.bearer(t, token)
		if bawn.ErrorCode(err) != bawn.CodeUnauthenticated || who.Kind != "" {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
	if p.fetches > 2 {
		t.Errorf("hostile tokens made the keys be fetched %d times", p.fetches)
	}
}

// TestKeyRotation holds that a new key is found, an old one dies with its tokens,
// and strangers cannot make an issuer be asked without end.
func TestKeyRotation(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	w.put(t, p.issuer("corp"))
	old := p.sign(t, w.claims(p, nil))
	who, err := w.bearer(t, old)
	if err != nil {
		t.Fatal(err)
	}
	next, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.mu.Lock()
	p.keys = []jose.JSONWebKey{{KeyID: "next", Algorithm: "ES256", Use: "sig", Key: next.Public()}}
	p.mu.Unlock()
	body, _ := json.Marshal(w.claims(p, claims{"exp": w.now().Unix() + 3600}))
	fresh := raw(t, next, `{"alg":"ES256","kid":"next"}`, string(body))
	if _, err := w.bearer(t, fresh); err == nil {
		t.Error("the keys were fetched again at once") // held back
	}
	w.pass(keysPause)
	var wg sync.WaitGroup
	for range 20 { // all that come wait for one fetch
		wg.Go(func() {
			if _, err := w.bearer(t, fresh); err != nil {
				t.Errorf("a token of the new key: %v", err)
			}
		})
	}
	wg.Wait()
	if p.fetches != 2 {
		t.Errorf("the keys were fetched %d times", p.fetches)
	}
	if _, err := w.bearer(t, old); err == nil {
		t.Error("a token of a key that has gone is taken")
	}
	for i := range 50 {
		w.bearer(t, raw(t, next, fmt.Sprintf(`{"alg":"ES256","kid":"k%d"}`, i), string(body)))
	}
	if p.fetches > 2 {
		t.Errorf("unknown keys made the keys be fetched %d times", p.fetches)
	}
	// Without the issuer its keys serve for a while, and then no more.
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	w.pass(keysFresh + time.Second)
	if _, err := w.bearer(t, fresh); err != nil {
		t.Errorf("a moment without the issuer: %v", err)
	}
	w.pass(keysStale)
	if _, err := w.bearer(t, fresh); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("with keys that are too old: %v", err)
	}
	_ = who
}

// TestIssuersAreReachedByTheDialerAlone holds that an issuer of a tenant's own
// cannot make the node connect to what is not public.
func TestIssuersAreReachedByTheDialerAlone(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	i := p.issuer("corp")
	i.Private = false
	w.put(t, i)
	if _, err := w.bearer(t, p.sign(t, w.claims(p, nil))); bawn.ErrorCode(err) != bawn.CodeUnavailable || p.fetches != 0 {
		t.Errorf("%v, %d fetches", err, p.fetches)
	}
}

func TestIssuerSettings(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	w.put(t, p.issuer("corp"))
	for name, change := range map[string]func(*bawn.Issuer){
		"none":             func(i *bawn.Issuer) { i.Algorithms = []string{"none"} },
		"a shared secret":  func(i *bawn.Issuer) { i.Algorithms = []string{"HS256"} },
		"plain http":       func(i *bawn.Issuer) { i.URL = "http://example.org" },
		"a user":           func(i *bawn.Issuer) { i.URL = "https://a@example.org" },
		"no audience":      func(i *bawn.Issuer) { i.ClientID = "" },
		"a skew of hours":  func(i *bawn.Issuer) { i.ClockSkew = time.Hour },
		"a life of years":  func(i *bawn.Issuer) { i.MaxLife = 9000 * time.Hour },
		"no kind":          func(i *bawn.Issuer) { i.Kind = "saml" },
		"a bad name":       func(i *bawn.Issuer) { i.Name = "a.b" },
		"a bad role":       func(i *bawn.Issuer) { i.Roles = map[string][]bawn.Role{"a": {"Not A Role"}} },
		"no PEM":           func(i *bawn.Issuer) { i.CA = "x" },
		"an authority too": func(i *bawn.Issuer) { i.Kind = bawn.IssuerCA },
	} {
		i := p.issuer("other")
		i.URL += "/other"
		change(&i)
		if _, err := w.CheckIssuer(i); bawn.ErrorCode(err) != bawn.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	same := p.issuer("same")
	same.Tenant = "rival"
	if _, err := w.PutIssuer(t.Context(), same, false); bawn.ErrorCode(err) != bawn.CodeConflict {
		t.Errorf("another tenant takes the tokens over: %v", err)
	}
}

// TestA9RevocationIsImmediate holds that what was revoked is refused and not
// current from then on, for each kind of credential.
func TestA9RevocationIsImmediate(t *testing.T) {
	w, p := newWorld(t), newIDP(t)
	w.put(t, p.issuer("corp"))
	token := func() (string, bawn.Principal) {
		t.Helper()
		w.pass(2 * time.Minute) // past the skew
		s := p.sign(t, w.claims(p, nil))
		who, err := w.bearer(t, s)
		if err != nil {
			t.Fatal(err)
		}
		return s, who
	}
	out := func(what, s string, who bawn.Principal) {
		t.Helper()
		if _, err := w.bearer(t, s); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("%s: the token: %v", what, err)
		}
		if _, ok := w.Current(who); ok {
			t.Errorf("%s: the principal is current", what)
		}
	}
	s, who := token()
	if _, ok := w.Current(who); !ok {
		t.Error("a good principal is not current")
	}
	r, err := w.Revoke(t.Context(), bawn.Revocation{Tenant: "main", Principal: who.String()})
	if err != nil {
		t.Fatal(err)
	}
	out("the user", s, who)
	s, who = token() // logged in anew
	if err := w.Lift(t.Context(), "main", r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Revoke(t.Context(), bawn.Revocation{Tenant: "main", Principal: "issuer:corp"}); err != nil {
		t.Fatal(err)
	}
	out("the issuer", s, who)
	s, who = token()
	if _, err := w.Revoke(t.Context(), bawn.Revocation{Tenant: "main", Principal: who.String(), Barred: true}); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Hour)
	out("a barred user who logs in anew", p.sign(t, w.claims(p, nil)), who)
	if err := w.Lift(t.Context(), "main", r.ID); err != nil {
		t.Fatal(err)
	}
	s, who = token()
	w.gone.Store("main", true)
	out("a suspended tenant", s, who)
	w.gone.Delete("main")
	other := p.issuer("corp")
	other.Roles = map[string][]bawn.Role{}
	w.put(t, other)
	if _, ok := w.Current(who); ok {
		t.Error("a principal by earlier settings is current")
	}
	if now, err := w.bearer(t, s); err != nil || len(now.Roles) != 0 {
		t.Errorf("by the settings of now: %+v %v", now, err)
	}
	s, who = token()
	if err := w.RemoveIssuer(t.Context(), "main", "corp"); err != nil {
		t.Fatal(err)
	}
	out("an issuer that has gone", s, who)

	secret, key, err := w.Keys().Create(t.Context(), bawn.Key{Name: "k", Tenant: "main", Role: bawn.RoleViewer, CreatedBy: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if who, err = w.bearer(t, secret); err != nil {
		t.Fatal(err)
	}
	if err := w.Keys().Revoke(t.Context(), "main", key.ID); err != nil {
		t.Fatal(err)
	}
	out("a key", secret, who)
}

// authority makes client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "build"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

func TestClientCertificates(t *testing.T) {
	w, a := newWorld(t), newAuthority(t)
	if w.Authorities() != nil {
		t.Error("certificates are asked for, and nobody is trusted")
	}
	w.put(t, bawn.Issuer{Name: "machines", Kind: bawn.IssuerCA, CA: a.pem(), Roles: map[string][]bawn.Role{
		"spiffe://example.org/ci/*": {bawn.RoleDeployer}, "dns:*.ci.example.org": {bawn.RoleInvoker}, "cn:build": {bawn.RoleViewer},
	}})
	if w.Authorities() == nil {
		t.Error("certificates are not asked for")
	}
	show := func(chain []*x509.Certificate) (bawn.Principal, error) {
		return w.Authenticate(t.Context(), Credential{Certificates: chain})
	}
	uri := func(s string) *url.URL { u, _ := url.Parse(s); return u }
	good := a.issue(t, func(c *x509.Certificate) {
		c.URIs, c.DNSNames = []*url.URL{uri("spiffe://example.org/ci/build")}, []string{"a.ci.example.org"}
	})
	for range 2 { // the second time from memory
		who, err := show(good)
		if err != nil || who.String() != "cert:spiffe://example.org/ci/build" || len(who.Roles) != 3 || who.Tenant != "main" {
			t.Fatalf("%+v %v", who, err)
		}
	}
	plain := a.issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "other" })
	sum := sha256.Sum256(plain[0].Raw)
	who, err := show(plain)
	if err != nil || who.ID != hex.EncodeToString(sum[:]) || len(who.Roles) != 0 {
		t.Errorf("%+v %v", who, err)
	}
	for name, chain := range map[string][]*x509.Certificate{
		"another authority":   newAuthority(t).issue(t, func(*x509.Certificate) {}),
		"expired":             a.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }),
		"not yet valid":       a.issue(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
		"a server's":          a.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"the authority's own": {a.cert},
		"an authority below":  a.issue(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
		"two SPIFFE ids": a.issue(t, func(c *x509.Certificate) {
			c.URIs = []*url.URL{uri("spiffe://example.org/a"), uri("spiffe://example.org/b")}
		}),
		"a function of this node": a.issue(t, func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://node/tenant/main/function/f/version/1")} }),
		"a chain without end":     append(a.issue(t, func(*x509.Certificate) {}), make([]*x509.Certificate, 0)...),
	} {
		if name == "a chain without end" {
			for range maxChain {
				chain = append(chain, a.cert)
			}
		}
		if who, err := show(chain); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
	secret, _, err := w.Keys().Create(t.Context(), bawn.Key{Name: "k", Tenant: "rival", Role: bawn.RoleViewer, CreatedBy: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Authenticate(t.Context(), Credential{Certificates: good, Bearer: secret}); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("a certificate and a key of two tenants: %v", err)
	}
	if _, err := w.Revoke(t.Context(), bawn.Revocation{Tenant: "main", Principal: "cert:spiffe://example.org/ci/build"}); err != nil {
		t.Fatal(err)
	}
	if _, err := show(good); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("a revoked certificate: %v", err)
	}
}

// signed makes a request as an AWS SDK signs it.
func (w *world) signed(t testing.TB, key, secret, path, body string, change func(*http.Request)) *bawn.Signed {
	t.Helper()
	req, err := http.NewRequest("POST", "https://node.example:8443"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Amz-Sdk-Invocation-Id", bawn.NewID())
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}, req, hex.EncodeToString(sum[:]), "lambda", "eu-west-1", w.now()); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	data, _ := io.ReadAll(req.Body)
	sum = sha256.Sum256(data)
	rawPath, query, _ := strings.Cut(req.URL.RequestURI(), "?")
	return &bawn.Signed{Method: req.Method, Host: req.Host, Path: rawPath, Query: query, Header: req.Header, Body: hex.EncodeToString(sum[:]), Length: int64(len(data))}
}

func (w *world) signingKey(t testing.TB, name string) (id, secret string) {
	t.Helper()
	_, key, err := w.Keys().Create(t.Context(), bawn.Key{Name: name, Tenant: "main", Role: bawn.RoleInvoker, CreatedBy: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return key.ID, w.SigningSecret(key.ID)
}

const invocation = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A1%3Afunction%3Af/invocations?Qualifier=live&a=b%20c"

func TestSignedRequests(t *testing.T) {
	w := newWorld(t)
	id, secret := w.signingKey(t, "sdk")
	show := func(s *bawn.Signed) error {
		_, err := w.Authenticate(t.Context(), Credential{Signed: s})
		return err
	}
	r := w.signed(t, id, secret, invocation, `{"a":1}`, nil)
	if err := w.Plausible(t.Context(), Credential{Signed: r}); err != nil {
		t.Errorf("a good request is not worth reading: %v", err)
	}
	if who, err := w.Authenticate(t.Context(), Credential{Signed: r}); err != nil || who.ID != id || who.Kind != bawn.PrincipalKey {
		t.Fatalf("%+v %v", who, err)
	}
	for name, change := range map[string]func(*http.Request){
		"another body":        func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"a":2}`)) },
		"another path":        func(r *http.Request) { r.URL.Path = "/2015-03-31/functions/g/invocations"; r.URL.RawPath = "" },
		"another query":       func(r *http.Request) { r.URL.RawQuery += "&b=1" },
		"a query in two ways": func(r *http.Request) { r.URL.RawQuery += ";b=1" },
		"another host":        func(r *http.Request) { r.Host = "other.example" },
		"another method":      func(r *http.Request) { r.Method = "PUT" },
		"another header":      func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		"a header missing":    func(r *http.Request) { r.Header.Del("Content-Type") },
		"a header twice":      func(r *http.Request) { r.Header.Add("Content-Type", "text/plain") },
		"another date":        func(r *http.Request) { r.Header.Set("X-Amz-Date", w.now().Add(time.Minute).UTC().Format(signDate)) },
		"two dates":           func(r *http.Request) { r.Header.Add("X-Amz-Date", r.Header.Get("X-Amz-Date")) },
		"a body hash that lies": func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", strings.Repeat("0", 64))
		},
		"an unsigned payload": func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") },
		"a session token":     func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") },
		"presigned":           func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Signature=x" },
		"a signature in capitals": func(r *http.Request) {
			a := r.Header.Get("Authorization")
			at := strings.LastIndex(a, "=")
			r.Header.Set("Authorization", a[:at]+strings.ToUpper(a[at:]))
		},
		"no host":         func(r *http.Request) { replaceAuth(r, "host;", "") },
		"another service": func(r *http.Request) { replaceAuth(r, "/lambda/", "/s3/") },
		"another region":  func(r *http.Request) { replaceAuth(r, "eu-west-1", "eu-west-2") },
		"another key":     func(r *http.Request) { replaceAuth(r, id, "0000000000000000") },
	} {
		if err := show(w.signed(t, id, secret, invocation, `{"a":1}`, change)); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := show(w.signed(t, id, secret+"x", invocation, `{}`, nil)); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("another secret: %v", err)
	}
	for _, late := range []time.Duration{-signWindow - time.Second, signWindow} {
		r := w.signed(t, id, secret, invocation, `{}`, nil)
		w.pass(late)
		if err := show(r); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("a clock that differs by %v: %v", late, err)
		}
		w.pass(-late)
	}
	r = w.signed(t, id, secret, invocation, `{}`, nil)
	if err := w.Keys().Revoke(t.Context(), "main", id); err != nil {
		t.Fatal(err)
	}
	if err := show(r); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("a revoked key: %v", err)
	}
}

func replaceAuth(r *http.Request, old, with string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, with, 1))
}

// TestReplay is attack 9: of a signed request's copies one is accepted, whatever
// happens in between.
func TestReplay(t *testing.T) {
	w := newWorld(t)
	id, secret := w.signingKey(t, "sdk")
	r := w.signed(t, id, secret, invocation, `{"a":1}`, nil)
	var accepted, refused atomic.Int32
	var wg sync.WaitGroup
	start := time.Now()
	for range 100 {
		wg.Go(func() {
			for range 100 {
				switch _, err := w.Authenticate(t.Context(), Credential{Signed: r}); bawn.ErrorCode(err) {
				case "":
					accepted.Add(1)
				case bawn.CodeUnauthenticated:
					refused.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("10,000 copies took %v", time.Since(start))
	if accepted.Load() != 1 || refused.Load() != 9999 {
		t.Fatalf("%d of 10,000 copies were accepted, %d refused", accepted.Load(), refused.Load())
	}
	again := func(what string) {
		t.Helper()
		if _, err := w.Authenticate(t.Context(), Credential{Signed: r}); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("%s: %v", what, err)
		}
	}
	// What a killed process leaves: nothing is closed, the last record is cut off.
	name := w.replay.name(w.replay.current)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("half a record")
	f.Close()
	w.again(t)
	again("after a restart")
	w.pass(4 * time.Minute)
	w.again(t)
	again("after a restart, later")
	w.pass(2 * time.Minute)
	again("when it is too old")
	w.pass(-20 * time.Minute)
	again("with a clock that went back")
	w.pass(14 * time.Minute)
	// Over the border of many generations, with honest requests in between.
	for range 12 {
		w.pass(3 * time.Minute)
		r = w.signed(t, id, secret, invocation, `{}`, nil)
		if _, err := w.Authenticate(t.Context(), Credential{Signed: r}); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * time.Minute)
		w.again(t)
		again("over a generation")
	}
	if files, _ := os.ReadDir(w.dir); len(files) > 3 {
		t.Errorf("%d files are kept", len(files))
	}
}

// again opens the replay record as a process that was started anew does.
func (w *world) again(t testing.TB) {
	t.Helper()
	r, err := openReplay(w.dir, w.now, func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	w.replay.close()
	w.replay = r
}

// TestReplayOfADamagedRecord holds that what may be forgotten is refused.
func TestReplayOfADamagedRecord(t *testing.T) {
	w := newWorld(t)
	id, secret := w.signingKey(t, "sdk")
	var all []*bawn.Signed
	for range 5 {
		r := w.signed(t, id, secret, invocation, `{}`, nil)
		if _, err := w.Authenticate(t.Context(), Credential{Signed: r}); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	name := w.replay.name(w.replay.current)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[replayRecord+3] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	w.again(t)
	for i, r := range all {
		if _, err := w.Authenticate(t.Context(), Credential{Signed: r}); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("request %d: %v", i, err)
		}
	}
	w.pass(2*signWindow + time.Second)
	if _, err := w.Authenticate(t.Context(), Credential{Signed: w.signed(t, id, secret, invocation, `{}`, nil)}); err != nil {
		t.Errorf("once nothing of before can be good: %v", err)
	}
}

// TestReplayIsRecordedFirst holds that a request is not accepted if that cannot be
// recorded.
func TestReplayIsRecordedFirst(t *testing.T) {
	w := newWorld(t)
	id, secret := w.signingKey(t, "sdk")
	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Authenticate(t.Context(), Credential{Signed: w.signed(t, id, secret, invocation, `{}`, nil)}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("without a record: %v", err)
	}
}

// TestA1WorkloadIdentity holds that a version's identity is derived from where it
// is: two never share one.
func TestA1WorkloadIdentity(t *testing.T) {
	id, err := Workload("0a1b2c3d4e5f", &bawn.Version{Tenant: "main", Function: "checkout", Number: 3})
	if err != nil || id != "spiffe://0a1b2c3d4e5f/tenant/main/function/checkout/version/3" {
		t.Errorf("%s %v", id, err)
	}
	if _, err := Workload("Not A Domain", &bawn.Version{Tenant: "main", Function: "f", Number: 1}); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Errorf("%v", err)
	}
}

func FuzzToken(f *testing.F) {
	b64 := base64.RawURLEncoding.EncodeToString
	f.Add("ey.ey.ey")
	f.Add(b64([]byte(`{"alg":"ES256","kid":"a"}`)) + "." + b64([]byte(`{"iss":"https://a","sub":"b","aud":["c"],"iat":1,"exp":2.5}`)) + ".AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		peek(s)
		tok, err := parseToken(s)
		if err == nil && (tok.issuer == "" || tok.subject == "" || tok.alg == "" || len(tok.audiences) == 0 || tok.expires.IsZero()) {
			t.Errorf("%q was read as %+v", s, tok)
		}
	})
}

func FuzzSignature(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=0123456789abcdef/20261121/us-east-1/lambda/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, s string) {
		sig, ok := parseSignature(s)
		if ok && (sig.key == "" || len(sig.headers) == 0 || len(sig.date) > 64) {
			t.Errorf("%q was read as %+v", s, sig)
		}
	})
}

func FuzzReplayFile(f *testing.F) {
	rec := make([]byte, 24)
	f.Add(append(rec, check(rec)...))
	f.Add([]byte("half"))
	f.Fuzz(func(t *testing.T, data []byte) {
		seen := map[nonce]bool{}
		if n, _ := parseReplay(data, seen); n > len(data) || n%replayRecord != 0 || len(seen) > n/replayRecord {
			t.Errorf("%d of %d bytes, %d nonces", n, len(data), len(seen))
		}
	})
}

func BenchmarkToken(b *testing.B) {
	w, p := newWorld(b), newIDP(b)
	w.put(b, p.issuer("corp"))
	token := p.sign(b, w.claims(p, nil))
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.bearer(b, token); err != nil {
				b.Fatal(err)
			}
		}
	})
	who, _ := w.bearer(b, token)
	b.Run("current", func(b *testing.B) {
		for b.Loop() {
			w.Current(who)
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.authenticateToken(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
