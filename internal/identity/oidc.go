package identity

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"bawn.dev/bawn"
)

// How the keys of an issuer are kept.
const (
	keysFresh    = 5 * time.Minute  // until they are fetched again, while they go on serving
	keysStale    = 15 * time.Minute // until they serve no more
	keysPause    = 10 * time.Second // between two fetches of one issuer's
	maxKeysPause = time.Minute      // that it grows to while they fail
	fetchTimeout = 10 * time.Second
	maxKeysBytes = 256 << 10 // of an answer
	maxKeysInSet = 100
	minRSABits   = 2048
	maxRSABits   = 8192
	maxKnown     = 10000 // credentials that were found good and are remembered
)

// unavailable says that an issuer's keys cannot be had.
func unavailable(name string, err error) error {
	return bawn.Wrap(err, bawn.CodeUnavailable, "identity.keys", "the keys of the issuer %s cannot be had now", name).
		WithFix("try again; an administrator sees in the node's log what is wrong with the issuer")
}

// authenticateToken says who shows a token.
func (a *Authenticator) authenticateToken(ctx context.Context, raw string) (bawn.Principal, error) {
	t, err := parseToken(raw)
	if err != nil {
		return bawn.Principal{}, refused()
	}
	if a.issuers.lost != nil {
		return bawn.Principal{}, a.issuers.lost
	}
	i := a.issuers.ofToken(t.issuer, t.audiences)
	if i == nil || t.holds(i, a.cfg.Now()) != nil {
		return bawn.Principal{}, refused()
	}
	key, err := i.verify(ctx, raw, t)
	if bawn.ErrorCode(err) == bawn.CodeUnavailable {
		return bawn.Principal{}, err
	}
	if err != nil {
		return bawn.Principal{}, refused()
	}
	if err := a.issuers.trusted(i.Tenant); err != nil {
		return bawn.Principal{}, err
	}
	p := t.principal(i)
	a.known.put(sha256.Sum256([]byte(raw)), known{p: p, issuer: i, key: key})
	return p, nil
}

// verify returns the key of i that signed raw, which was read as t. An error of
// CodeUnavailable means that the keys cannot be had; any other, that none has.
func (i *issuer) verify(ctx context.Context, raw string, t *token) (*publicKey, error) {
	// The library verifies once more what was read already, on its own way.
	set := &oneKey{set: i.keys, t: t}
	v := oidc.NewVerifier(i.URL, set, &oidc.Config{ClientID: i.token().audience, SupportedSigningAlgs: i.Algorithms, SkipExpiryCheck: true})
	checked, err := v.Verify(ctx, raw)
	switch {
	case bawn.ErrorCode(set.err) == bawn.CodeUnavailable:
		return nil, set.err
	case set.err != nil:
		return nil, untaken("no key of its issuer has its kid")
	case err != nil:
		return nil, untaken("its signature is not one of its issuer's")
	case checked.Subject != t.subject:
		return nil, errToken
	}
	return set.used, nil
}

// oneKey verifies one token with the key that it names.
type oneKey struct {
	set  *keySet
	t    *token
	used *publicKey
	err  error // why there is no key
}

// VerifySignature is an oidc.KeySet.
func (o *oneKey) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	key, err := o.set.find(ctx, o.t)
	if err != nil {
		o.err = err
		return nil, err
	}
	sig, err := jose.ParseSigned(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(o.t.alg)})
	if err != nil {
		return nil, err
	}
	o.used = key
	return sig.Verify(key.key)
}

// known is a credential that was found good.
type known struct {
	p      bawn.Principal
	issuer *issuer
	key    *publicKey // of a token; nil for a certificate
}

// memory remembers credentials that were found good, by their hash, so that
// verifying is not the price of every call.
type memory[V any] struct {
	most int // 0: maxKnown

	mu   sync.RWMutex
	have map[[sha256.Size]byte]V
}

func (m *memory[V]) get(sum [sha256.Size]byte) (V, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k, ok := m.have[sum]
	return k, ok
}

func (m *memory[V]) put(sum [sha256.Size]byte, k V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.have == nil {
		m.have = map[[sha256.Size]byte]V{}
	}
	if most := cmp.Or(m.most, maxKnown); len(m.have) >= most {
		// In no order: which half goes, nobody can foresee.
		for old := range m.have {
			if delete(m.have, old); len(m.have) <= most/2 {
				break
			}
		}
	}
	m.have[sum] = k
}

// publicKey is one key of an issuer that tokens may be signed with.
type publicKey struct {
	id, alg string
	key     any
}

// suits reports whether the key can have signed by alg.
func (k *publicKey) suits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		return alg == map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[key.Curve.Params().BitSize]
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// keySet is the keys of one issuer as they were fetched last.
type keySet struct {
	issuer string // its name, for messages
	fetch  func(ctx context.Context) ([]*publicKey, error)
	now    func() time.Time
	failed func(error)

	mu      sync.Mutex
	keys    []*publicKey
	fetched time.Time     // when the keys were, at last
	tried   time.Time     // when a fetch began, at last
	flight  chan struct{} // closed when the fetch that runs has ended; nil: none runs
	err     error         // how the last one ended
	failing int           // how many ended so, one after the other
}

// pause is how long after one fetch began the next may: longer the more have
// failed. The caller holds mu.
func (s *keySet) pause() time.Duration {
	return min(keysPause<<min(max(s.failing-1, 0), 10), maxKeysPause)
}

// find returns the key that t names. A key that is not known has the keys
// fetched, if that was not done just before.
func (s *keySet) find(ctx context.Context, t *token) (*publicKey, error) {
	for {
		s.mu.Lock()
		now := s.now()
		if !s.fetched.IsZero() && now.Sub(s.fetched) < keysStale {
			if k := s.has(t); k != nil {
				if now.Sub(s.fetched) >= keysFresh {
					s.start(now)
				}
				s.mu.Unlock()
				return k, nil
			}
			if s.flight == nil && now.Sub(s.tried) < s.pause() {
				s.mu.Unlock()
				return nil, errToken
			}
		}
		if s.flight == nil && !s.start(now) {
			err := s.err
			s.mu.Unlock()
			return nil, unavailable(s.issuer, err)
		}
		flight := s.flight
		s.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return nil, unavailable(s.issuer, ctx.Err())
		}
	}
}

// has returns the key that t names: one of several has to be named. The caller
// holds mu.
func (s *keySet) has(t *token) *publicKey {
	var found *publicKey
	for _, k := range s.keys {
		if !k.suits(t.alg) || t.kid != "" && k.id != t.kid {
			continue
		}
		if found != nil {
			return nil
		}
		found = k
	}
	return found
}

// start begins a fetch unless one runs or ended just now. The caller holds mu.
func (s *keySet) start(now time.Time) bool {
	if s.flight != nil {
		return true
	}
	if !s.tried.IsZero() && now.Sub(s.tried) < s.pause() {
		return false
	}
	s.tried, s.flight = now, make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		keys, err := s.fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err = err; err == nil {
			s.keys, s.fetched, s.failing = keep(s.keys, keys), s.now(), 0
		} else {
			s.failing++
			s.failed(err)
		}
		close(s.flight)
		s.flight = nil
	}()
	return true
}

// keep returns the new keys, as the old values where they are the same, so that
// what was verified by a key is known by it still.
func keep(old, fresh []*publicKey) []*publicKey {
	for i, k := range fresh {
		for _, o := range old {
			if o.id == k.id && o.alg == k.alg && sameKey(o.key, k.key) {
				fresh[i] = o
			}
		}
	}
	return fresh
}

func sameKey(a, b any) bool {
	switch a := a.(type) {
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && a.Equal(b)
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a.Equal(b)
	case ed25519.PublicKey:
		b, ok := b.(ed25519.PublicKey)
		return ok && a.Equal(b)
	}
	return false
}

// serves reports whether k is one of the issuer's keys by what is known of them.
// It has them fetched again, and does not wait for that.
func (s *keySet) serves(k *publicKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := s.now().Sub(s.fetched)
	if age >= keysFresh {
		s.start(s.now())
	}
	if age >= keysStale {
		return false
	}
	for _, have := range s.keys {
		if have == k {
			return true
		}
	}
	return false
}

// newKeySet returns the keys of i, which are fetched when a token comes.
func (a *Authenticator) newKeySet(i *issuer) *keySet {
	return &keySet{
		issuer: i.Name, now: a.cfg.Now,
		fetch: func(ctx context.Context) ([]*publicKey, error) { return a.fetchKeys(ctx, i) },
		failed: func(err error) {
			a.cfg.Log.Warn("the keys of an issuer could not be fetched", "issuer", i.Name, "tenant", i.Tenant, "url", i.URL, "error", err)
		},
	}
}

// fetchKeys asks the issuer where its keys are, and for them.
func (a *Authenticator) fetchKeys(ctx context.Context, i *issuer) ([]*publicKey, error) {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if a.cfg.Dial == nil {
				return nil, errors.New("the node connects to no issuer")
			}
			return a.cfg.Dial(ctx, network, addr, i.Private)
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: i.roots},
		TLSHandshakeTimeout:    fetchTimeout,
		ResponseHeaderTimeout:  fetchTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		DisableKeepAlives:      true,
	}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr, CheckRedirect: sameHost}
	var about struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := getJSON(ctx, hc, strings.TrimSuffix(i.URL, "/")+"/.well-known/openid-configuration", &about); err != nil {
		return nil, err
	}
	if about.Issuer != i.URL {
		return nil, fmt.Errorf("its server is the issuer %.200q", about.Issuer)
	}
	if u, err := url.Parse(about.Keys); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%.200q is not where keys may be", about.Keys)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := getJSON(ctx, hc, about.Keys, &set); err != nil {
		return nil, err
	}
	return readKeys(set.Keys)
}

// sameHost lets an answer send the request to another path, and nowhere else.
func sameHost(r *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) > 3 || r.URL.Scheme != "https" || r.URL.Host != first.Host {
		return errors.New("it redirects to another host, or too often")
	}
	return nil
}

func getJSON(ctx context.Context, hc *http.Client, from string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "bawn")
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %d", from, res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxKeysBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxKeysBytes {
		return fmt.Errorf("%s answered more than %d bytes", from, maxKeysBytes)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s answered something else than JSON of the right shape", from)
	}
	return nil
}

// readKeys takes the keys that tokens may be signed with. Others are left out: a
// set may hold keys for other purposes.
func readKeys(raw []json.RawMessage) ([]*publicKey, error) {
	if len(raw) > maxKeysInSet {
		return nil, fmt.Errorf("it has %d keys, at most %d are allowed", len(raw), maxKeysInSet)
	}
	var keys []*publicKey
	for _, r := range raw {
		// A secret that verifies would be one that everybody knows.
		var about struct {
			Type    string  `json:"kty"`
			Use     string  `json:"use"`
			Private *string `json:"d"`
		}
		if json.Unmarshal(r, &about) != nil || about.Use != "" && about.Use != "sig" || about.Private != nil || about.Type == "oct" {
			continue
		}
		var k jose.JSONWebKey
		if json.Unmarshal(r, &k) != nil || !k.Valid() || !k.IsPublic() {
			continue
		}
		switch key := k.Key.(type) {
		case *rsa.PublicKey:
			if n := key.N.BitLen(); n < minRSABits || n > maxRSABits {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			continue
		}
		keys = append(keys, &publicKey{k.KeyID, k.Algorithm, k.Key})
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no key that tokens may be signed with")
	}
	return keys, nil
}
