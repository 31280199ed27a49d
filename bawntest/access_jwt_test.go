package bawntest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// tokens is an issuer of tokens on loopback, which tests sign as they like.
type tokens struct {
	*httptest.Server
	t   testing.TB
	ca  string // PEM
	mu  sync.Mutex
	id  string // of the key
	key *ecdsa.PrivateKey
}

func newTokens(t testing.TB) *tokens {
	t.Helper()
	ca := NewAuthority(t, "an issuer of tokens")
	pair := ca.Issue(t, func(c *x509.Certificate) {
		c.IPAddresses, c.ExtKeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	i := &tokens{t: t, ca: ca.PEM}
	i.rotate("one")
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "openid-configuration") {
			json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
			return
		}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: i.id, Algorithm: "ES256", Use: "sig", Key: i.key.Public()}}})
	}))
	i.TLS = &tls.Config{Certificates: []tls.Certificate{pair.Certificate}}
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *tokens) rotate(id string) {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.key = id, key
}

// token signs the claims that every token has, and more of them.
func (i *tokens) token(more map[string]any) string {
	i.t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{"iss": i.URL, "aud": "shop", "sub": "ann", "iat": now, "exp": now + 600, "plan": "gold", "groups": []string{"a", "b"}}
	maps.Copy(claims, more)
	for name, v := range more {
		if v == nil {
			delete(claims, name)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.id}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		i.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	s, err := signer.Sign(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := s.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// reheaded is a token with another header, signed with the bytes of the issuer's
// public key as a shared secret, or not at all.
func (i *tokens) reheaded(alg string) string {
	i.t.Helper()
	part := strings.Split(i.token(nil), ".")
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"` + i.id + `","typ":"JWT"}`))
	text := head + "." + part[1]
	if alg == "none" {
		return text + "."
	}
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		i.t.Fatal(err)
	}
	m := hmac.New(sha256.New, der)
	m.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// allowing lets the node connect to servers of the test.
func allowing(servers ...*tokens) Option {
	return func(c *node.Config) {
		for _, s := range servers {
			c.EgressAllow = append(c.EgressAllow, strings.TrimPrefix(s.URL, "https://"))
		}
	}
}

// accessOfTokens asks a route that wants a token of an issuer.
func accessOfTokens(t *testing.T) {
	good, other, down := newTokens(t), newTokens(t), newTokens(t)
	n := &town{Node: NewNode(t, allowing(good, other, down))}
	n.rt = n.NeedRuntime(Pythons()...)
	jwt := func(i *tokens, claims map[string]any) any {
		a := map[string]any{"issuer": i.URL, "audience": "shop", "ca": i.ca}
		if claims != nil {
			a["claims"] = claims
		}
		return map[string]any{"jwt": a}
	}
	n.door("shop", jwt(good, nil), "role:partner")
	n.door("gold", jwt(good, map[string]any{"plan": []string{"gold", "silver"}, "groups": "b", "scope": "orders:write"}))
	n.door("others", jwt(other, nil))
	n.door("down", jwt(down, nil))
	down.Close()
	n.door("keys", "key")
	swapped := strings.Split(good.token(nil), ".")
	swapped[1] = strings.Split(good.token(map[string]any{"sub": "eve"}), ".")[1]
	now := time.Now().Unix()
	all := []knock{
		{"nothing", n.post("/shop", "{}"), 401, nil},
		{"an administrator's key", n.post("/shop", "{}", bearer(n.Context.Key)...), 403, nil},
		{"an invoker's key", n.post("/shop", "{}", bearer(n.MustKey(bawn.RoleInvoker))...), 403, nil},
		{"a wrong key", n.post("/shop", "{}", bearer("bawn_0123456789abcdef_x")...), 401, nil},
		{"another issuer", n.post("/shop", "{}", bearer(other.token(nil))...), 401, nil},
		{"another issuer that says it is this one", n.post("/shop", "{}", bearer(other.token(map[string]any{"iss": good.URL}))...), 401, nil},
		{"this issuer's at another's route", n.post("/others", "{}", bearer(good.token(nil))...), 401, nil},
		{"a token where a key is wanted", n.post("/keys", "{}", bearer(good.token(nil))...), 401, nil},
		{"another audience", n.post("/shop", "{}", bearer(good.token(map[string]any{"aud": "other"}))...), 401, nil},
		{"no audience", n.post("/shop", "{}", bearer(good.token(map[string]any{"aud": nil}))...), 401, nil},
		{"no subject", n.post("/shop", "{}", bearer(good.token(map[string]any{"sub": nil}))...), 401, nil},
		{"no end", n.post("/shop", "{}", bearer(good.token(map[string]any{"exp": nil}))...), 401, nil},
		{"ended", n.post("/shop", "{}", bearer(good.token(map[string]any{"iat": now - 900, "exp": now - 300}))...), 401, nil},
		{"not begun", n.post("/shop", "{}", bearer(good.token(map[string]any{"nbf": now + 300}))...), 401, nil},
		{"of the future", n.post("/shop", "{}", bearer(good.token(map[string]any{"iat": now + 300}))...), 401, nil},
		{"another text signed", n.post("/shop", "{}", bearer(strings.Join(swapped, "."))...), 401, nil},
		{"alg none", n.post("/shop", "{}", bearer(good.reheaded("none"))...), 401, nil},
		{"the public key as a secret", n.post("/shop", "{}", bearer(good.reheaded("HS256"))...), 401, nil},
		{"two credentials", n.post("/shop", "{}", append(bearer(good.token(nil)), bearer(n.Context.Key)...)...), 400, nil},
		{"an issuer that is down", n.post("/down", "{}", bearer(down.token(nil))...), 503, nil},
		{"good", n.post("/shop", "{}", bearer(good.token(nil))...), 200, nil},
		{"several audiences", n.post("/shop", "{}", bearer(good.token(map[string]any{"aud": []string{"x", "shop"}}))...), 200, nil},
		{"a clock a little behind", n.post("/shop", "{}", bearer(good.token(map[string]any{"iat": now + 20, "nbf": now + 20}))...), 200, nil},
		{"a role of callers", n.post("/shop", "{}", bearer(n.roleKey("partner"))...), 200, nil},
		{"claims", n.post("/gold", "{}", bearer(good.token(map[string]any{"scope": "orders:read orders:write"}))...), 200, nil},
		{"a claim of another value", n.post("/gold", "{}", bearer(good.token(map[string]any{"plan": "tin", "scope": "orders:write"}))...), 401, nil},
		{"a claim that is not there", n.post("/gold", "{}", bearer(good.token(nil))...), 401, nil},
		{"a claim that only looks like it", n.post("/gold", "{}", bearer(good.token(map[string]any{"scope": "xorders:write"}))...), 401, nil},
	}
	n.knock(t, all)

	t.Run("the claims are in the event, and the token is not", func(t *testing.T) {
		token := good.token(map[string]any{"age": 42})
		res, err := n.HTTP.Do(n.post("/shop", "{}", append(bearer(token), "X-Amzn-Authorizer", "{}")...)())
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			RequestContext struct {
				Authorizer struct {
					JWT struct {
						Claims map[string]string `json:"claims"`
					} `json:"jwt"`
				} `json:"authorizer"`
			} `json:"requestContext"`
		}
		if err := json.Unmarshal(body, &e); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		got := e.RequestContext.Authorizer.JWT.Claims
		if got["sub"] != "ann" || got["age"] != "42" || got["groups"] != "[a b]" || got["iss"] != good.URL {
			t.Errorf("the claims are %v", got)
		}
		if strings.Contains(string(body), token) {
			t.Errorf("the event has the token in it")
		}
	})
	t.Run("why is for the owner", func(t *testing.T) {
		// Of strangers not every refusal is recorded in a busy second.
		token := good.token(map[string]any{"aud": "other"})
		for try := 0; ; try++ {
			n.knock(t, []knock{{"another audience", n.post("/shop", "{}", bearer(token)...), 401, nil}})
			found := ""
			if err := n.Events(t.Context(), client.EventQuery{Function: "shop", Kinds: []bawn.RecordKind{bawn.KindDecision}}, func(r bawn.Record) error {
				found = r.Detail["credential"]
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(found, ": it is for another audience") {
				return
			}
			if try == 40 {
				t.Fatalf("the last record says %q", found)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}
