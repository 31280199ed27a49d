package bawntest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/go-jose/go-jose/v4"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

const invocations = "/2015-03-31/functions/%s/invocations"

// signingKey makes a key to sign requests with.
func (n *Node) signingKey(name string, functions ...string) (aws.Credentials, *client.CreatedKey) {
	n.t.Helper()
	k, err := n.CreateKey(n.t.Context(), client.NewKey{Name: name, Role: bawn.RoleInvoker, Functions: functions, AWS: true})
	if err != nil {
		n.t.Fatal(err)
	}
	return aws.Credentials{AccessKeyID: k.Key.ID, SecretAccessKey: k.Signing}, k
}

// signed makes a request as an AWS SDK signs it at a time.
func (n *Node) signed(c aws.Credentials, path, body, service string, at time.Time) *http.Request {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), "POST", n.Public()+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(n.t.Context(), c, r, hex.EncodeToString(sum[:]), service, "eu-west-1", at); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// an answer is what a client of AWS Lambda gets.
type answer struct {
	status          int
	kind, body, ran string
}

func (n *Node) send(c *http.Client, r *http.Request) answer {
	n.t.Helper()
	res, err := c.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	if res.Header.Get("X-Amzn-Requestid") == "" && strings.HasPrefix(r.URL.Path, "/2015") {
		n.t.Errorf("an answer without a request id: %s", b)
	}
	return answer{res.StatusCode, res.Header.Get("X-Amzn-Errortype"), string(b), res.Header.Get("X-Amz-Executed-Version")}
}

// again is r once more, byte for byte.
func again(r *http.Request, body string) *http.Request {
	c := r.Clone(r.Context())
	c.Body = io.NopCloser(strings.NewReader(body))
	return c
}

// TestSignedInvoke goes through what AWS answers to good and bad signatures, with
// credentials as `bawn key create --aws` makes them, over a real node.
func TestSignedInvoke(t *testing.T) {
	n := newTown(t)
	n.deploy("hello", nil, nil, public("/hello"))
	n.deploy("other", nil, nil)
	key, made := n.signingKey("sdk")
	held, _ := n.signingKey("held", "hello")
	path := fmt.Sprintf(invocations, "hello")
	const body = `{"say":"well"}`
	now := time.Now()
	auth := func(change func(string) string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", change(r.Header.Get("Authorization"))) }
	}
	for i, c := range []struct {
		name   string
		key    aws.Credentials
		path   string
		skew   time.Duration
		change func(*http.Request)
		status int
		kind   string
	}{
		{"good", key, path, 0, nil, 200, ""},
		{"good, by an ARN of the client's region", key, fmt.Sprintf(invocations, "arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Ahello%3A1"), 0, nil, 200, ""},
		{"an ARN of another region", key, fmt.Sprintf(invocations, "arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Ahello"), 0, nil, 404, "ResourceNotFoundException"},
		{"good, with a slash at the end", key, path + "/", 0, nil, 200, ""},
		{"a clock 4 minutes behind", key, path, -4 * time.Minute, nil, 200, ""},
		{"a clock 4 minutes ahead", key, path, 4 * time.Minute, nil, 200, ""},
		{"a clock 6 minutes behind", key, path, -6 * time.Minute, nil, 403, "InvalidSignatureException"},
		{"a clock 6 minutes ahead", key, path, 6 * time.Minute, nil, 403, "InvalidSignatureException"},
		{"no signature", key, path, 0, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "MissingAuthenticationTokenException"},
		{"a malformed signature", key, path, 0, auth(func(a string) string { return strings.Replace(a, "Signature=", "Signed=", 1) }), 403, "IncompleteSignatureException"},
		{"no date", key, path, 0, func(r *http.Request) { r.Header.Del("X-Amz-Date") }, 403, "IncompleteSignatureException"},
		{"two signatures", key, path, 0, func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, 403, "IncompleteSignatureException"},
		{"a password", key, path, 0, auth(func(string) string { return "Basic YTpi" }), 403, "IncompleteSignatureException"},
		{"a strange bearer", key, path, 0, auth(func(string) string { return "Bearer bawn_nothing" }), 403, "UnrecognizedClientException"},
		{"an unknown key", aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: key.SecretAccessKey}, path, 0, nil, 403, "UnrecognizedClientException"},
		{"a session token", aws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: key.SecretAccessKey, SessionToken: "x"}, path, 0, nil, 403, "UnrecognizedClientException"},
		{"another key's secret", aws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: held.SecretAccessKey}, path, 0, nil, 403, "InvalidSignatureException"},
		{"another signature", key, path, 0, auth(func(a string) string {
			return a[:len(a)-1] + map[bool]string{true: "1", false: "0"}[a[len(a)-1] == '0']
		}), 403, "InvalidSignatureException"},
		{"another body", key, path, 0, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"say":"hell"}`)) }, 403, "InvalidSignatureException"},
		{"another route", key, path, 0, func(r *http.Request) { r.URL.Path = fmt.Sprintf(invocations, "other") }, 403, "InvalidSignatureException"},
		{"another qualifier", key, path, 0, func(r *http.Request) { r.URL.RawQuery = "Qualifier=1" }, 403, "InvalidSignatureException"},
		{"another date", key, path, 0, func(r *http.Request) {
			r.Header.Set("X-Amz-Date", now.Add(time.Minute).UTC().Format("20060102T150405Z"))
		}, 403, "InvalidSignatureException"},
		{"a scope of another day", key, path, 0, auth(func(a string) string {
			return strings.Replace(a, now.UTC().Format("/20060102/"), "/20200101/", 1)
		}), 403, "InvalidSignatureException"},
		{"host not signed", key, path, 0, auth(func(a string) string { return strings.Replace(a, "host;", "", 1) }), 403, "InvalidSignatureException"},
		{"a key held to it", held, path, 0, nil, 200, ""},
		{"a key held to another", held, fmt.Sprintf(invocations, "other"), 0, nil, 404, "ResourceNotFoundException"},
		{"what is not there", key, fmt.Sprintf(invocations, "nothing"), 0, nil, 404, "ResourceNotFoundException"},
	} {
		// Each is signed for a second of its own: two alike would be one.
		r := n.signed(c.key, c.path, body, "lambda", now.Add(c.skew+time.Duration(i)*time.Second/2))
		if c.change != nil {
			c.change(r)
		}
		got := n.send(n.HTTP, r)
		if got.status != c.status || got.kind != c.kind || (got.body == `"well"`) != (c.status == 200) {
			t.Errorf("%s: %+v, want %d %s", c.name, got, c.status, c.kind)
		}
		var doc struct{ Type, Message string }
		if err := json.Unmarshal([]byte(got.body), &doc); c.status != 200 && (err != nil || doc.Type != "User" || doc.Message == "") {
			t.Errorf("%s: the error document is %s", c.name, got.body)
		}
	}
	if got := n.send(n.HTTP, n.signed(key, path, body, "s3", now)); got.kind != "InvalidSignatureException" || !strings.Contains(got.body, "s3") {
		t.Errorf("a signature for another service: %+v", got)
	}
	onRoute := n.signed(key, "/hello", `{"say":"on a route"}`, "lambda", now.Add(-time.Minute))
	onRoute.Header.Set("Content-Type", "application/json") // the route is public, and so what comes is searched
	if got := n.send(n.HTTP, onRoute); got.status != 200 || !strings.Contains(got.body, "on a route") {
		t.Errorf("on a route: %+v", got)
	}

	t.Run("is taken once", func(t *testing.T) {
		n.t = t
		defer func() { n.t = t }()
		r := n.signed(key, path, body, "lambda", time.Now().Add(20*time.Second))
		if got := n.send(n.HTTP, again(r, body)); got.status != 200 {
			t.Fatalf("%+v", got)
		}
		replayed := func(when string) {
			t.Helper()
			if got := n.send(n.HTTP, again(r, body)); got.status != 403 || got.kind != "InvalidSignatureException" || !strings.Contains(got.body, "used already") {
				t.Errorf("%s: %+v", when, got)
			}
		}
		replayed("sent again")
		host := r.URL.Host
		n.Restart()
		n.NeedRuntime(Pythons()...)
		r.Host, r.URL.Host = host, strings.TrimPrefix(n.Public(), "https://") // the port is another one now
		replayed("after a restart")
		if err := n.RevokeKey(t.Context(), made.Key.ID); err != nil {
			t.Fatal(err)
		}
		if got := n.send(n.HTTP, n.signed(key, path, body, "lambda", time.Now().Add(30*time.Second))); got.kind != "UnrecognizedClientException" {
			t.Errorf("after the key was revoked: %+v", got)
		}
	})
	n.t = t
	// Who called is in the evidence.
	var ids []string
	for _, r := range n.records(func(r *bawn.Record) bool { return r.Kind == bawn.KindOutcome && r.Function == "hello" }) {
		ids = append(ids, r.Principal)
	}
	if all := strings.Join(ids, " "); !strings.Contains(all, "key:"+key.AccessKeyID) || !strings.Contains(all, "key:"+held.AccessKeyID) {
		t.Errorf("recorded callers: %s", all)
	}
}

// An issuer of tokens, of which one is signed.
func newIssuer(t *testing.T) (*httptest.Server, func(sub string, groups ...string) string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var srv *httptest.Server
	srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "openid-configuration") {
			json.NewEncoder(w).Encode(map[string]string{"issuer": srv.URL, "jwks_uri": srv.URL + "/keys"})
			return
		}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k", Algorithm: "ES256", Use: "sig", Key: key.Public()}}})
	}))
	t.Cleanup(srv.Close)
	return srv, func(sub string, groups ...string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{KeyID: "k", Key: key}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		claims, _ := json.Marshal(map[string]any{"iss": srv.URL, "sub": sub, "aud": "bawn", "iat": now, "exp": now + 600, "groups": groups})
		sig, err := signer.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		token, err := sig.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

// newMachine returns an authority and a client certificate of it.
func newMachine(t *testing.T, name string) (roots string, cert tls.Certificate) {
	t.Helper()
	rootKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})), tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}
}

// TestPeopleAndMachinesInvoke has a user with a token and a machine with a
// certificate call by a route and by name, and ended at once when revoked.
func TestPeopleAndMachinesInvoke(t *testing.T) {
	n := newTown(t)
	n.deploy("hello", []string{"role:shop"}, nil, func(spec map[string]any) {
		in := spec["ingress"].(map[string]any)
		in["http"] = []any{map[string]any{"method": "POST", "path": "/hello", "access": "key"}}
	})
	srv, token := newIssuer(t)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	if _, err := n.CreateIssuer(t.Context(), client.NewIssuer{Name: "corp", Kind: bawn.IssuerOIDC, URL: srv.URL, ClientID: "bawn", CA: ca, Private: true,
		Roles: map[string][]bawn.Role{"staff": {bawn.RoleInvoker}, "shop": {"shop"}, "*": {bawn.RoleViewer}}}); err != nil {
		t.Fatal(err)
	}
	roots, cert := newMachine(t, "build")
	if _, err := n.CreateIssuer(t.Context(), client.NewIssuer{Name: "machines", Kind: bawn.IssuerCA, CA: roots, Roles: map[string][]bawn.Role{"cn:build": {bawn.RoleInvoker}}}); err != nil {
		t.Fatal(err)
	}
	with := func(certs ...tls.Certificate) *http.Client {
		tr := n.HTTP.Transport.(*http.Transport).Clone()
		tr.TLSClientConfig.Certificates = certs
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	_, stranger := newMachine(t, "build")
	machine, fraud := with(cert), with(stranger)
	byName := fmt.Sprintf(invocations, "hello")
	ask := func(c *http.Client, path, bearer string) answer {
		r, err := http.NewRequest("POST", n.Public()+path, strings.NewReader(`{"say":"well"}`))
		if err != nil {
			t.Fatal(err)
		}
		if bearer != "" {
			r.Header.Set("Authorization", "Bearer "+bearer)
		}
		return n.send(c, r)
	}
	staff, viewer, shop := token("ann", "staff"), token("bob"), token("eve", "shop")
	for _, c := range []struct {
		name          string
		client        *http.Client
		bearer        string
		route, byName int
	}{
		{"a user whose group may invoke", n.HTTP, staff, 200, 200},
		{"a user whose role the callers name", n.HTTP, shop, 200, 200},
		{"a user who may not", n.HTTP, viewer, 403, 403},
		{"a machine", machine, "", 200, 200},
		{"a machine and a user of one tenant", machine, staff, 200, 200},
		{"a machine of another authority", fraud, "", 401, 403},
		{"a token with another signature", n.HTTP, staff[:len(staff)-2] + "AA", 401, 403},
		{"nobody", n.HTTP, "", 401, 403},
	} {
		if got := ask(c.client, "/hello", c.bearer); got.status != c.route || (got.status == 200) != strings.Contains(got.body, "well") {
			t.Errorf("%s, by a route: %+v", c.name, got)
		}
		if got := ask(c.client, byName, c.bearer); got.status != c.byName || (got.status == 200) != (got.body == `"well"`) {
			t.Errorf("%s, by name: %+v", c.name, got)
		}
	}
	for _, who := range []string{"user:corp:ann", "issuer:machines"} {
		if _, err := n.Revoke(t.Context(), client.NewRevocation{Principal: who}); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(n.HTTP, byName, staff); got.kind != "UnrecognizedClientException" {
		t.Errorf("a revoked user: %+v", got)
	}
	if got := ask(machine, byName, ""); got.kind != "UnrecognizedClientException" {
		t.Errorf("a machine of a revoked issuer: %+v", got)
	}
	if got := ask(machine, "/hello", ""); got.status != 401 {
		t.Errorf("a machine of a revoked issuer, by a route: %+v", got)
	}
}
