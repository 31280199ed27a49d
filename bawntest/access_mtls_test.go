package bawntest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// presenting returns a client that presents the certificate, whichever authorities
// the node names, and uses one connection of HTTP/2 for all requests.
func (n *Node) presenting(t *testing.T, p Pair) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.Context.CA))
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &p.Certificate, nil
	}}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// under is an authority that this one vouches for.
func (a *Authority) under(t *testing.T, name string) *Authority {
	t.Helper()
	p := a.Issue(t, func(c *x509.Certificate) {
		c.Subject, c.IsCA, c.BasicConstraintsValid = pkix.Name{CommonName: name}, true, true
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign, nil
	})
	cert, err := x509.ParseCertificate(p.Certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{cert: cert, key: p.PrivateKey.(*ecdsa.PrivateKey)}
}

// accessOfCertificates asks routes that want client certificates.
func accessOfCertificates(t *testing.T) {
	n := newTown(t)
	ca, other, ours, nobody := NewAuthority(t, "partners"), NewAuthority(t, "others"), NewAuthority(t, "machines"), NewAuthority(t, "nobody's")
	mtls := func(ca *Authority, subjects ...string) any {
		m := map[string]any{}
		if ca != nil {
			m["ca"] = ca.PEM
		}
		if len(subjects) > 0 {
			m["subjects"] = subjects
		}
		return map[string]any{"mtls": m}
	}
	n.door("any", mtls(ca), "role:partner")
	n.door("some", mtls(ca, "dns:a.example.com", "dns:*.b.example.com", "email:ops@example.com", "uri:spiffe://example.org/ci/*"))
	n.door("others", mtls(other))
	n.door("machines", mtls(nil, "uri:spiffe://example.org/ci/build"))
	n.door("keys", "key")
	n.door("open", map[string]any{"public": map[string]any{"reason": "a test", "until": "2999-12-31"}})
	if _, err := n.CreateIssuer(t.Context(), client.NewIssuer{Name: "machines", Kind: bawn.IssuerCA, CA: ours.PEM, Roles: map[string][]bawn.Role{"*": {bawn.RoleAdmin}}}); err != nil {
		t.Fatal(err)
	}

	with := func(a *Authority, change func(*x509.Certificate)) *http.Client {
		return n.presenting(t, a.Issue(t, change))
	}
	dns := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = names }
	}
	uri := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{u}
		}
	}
	named := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
	}
	good := with(ca, dns("a.example.com"))
	sub := ca.under(t, "partners, below")
	chained := sub.Issue(t, dns("a.example.com"))
	alone := n.presenting(t, chained)
	chained.Certificate.Certificate = append(chained.Certificate.Certificate, sub.cert.Raw)
	root := Pair{tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}}
	build := with(ours, uri("spiffe://example.org/ci/build"))
	key, partner := bearer(n.MustKey(bawn.RoleInvoker)), bearer(n.roleKey("partner"))
	n.knock(t, []knock{
		{"nothing", n.post("/any", "{}"), 401, nil},
		{"an administrator's key", n.post("/any", "{}", bearer(n.Context.Key)...), 403, nil},
		{"another authority", n.post("/any", "{}"), 401, with(nobody, dns("a.example.com"))},
		{"another route's authority", n.post("/any", "{}"), 401, with(other, dns("a.example.com"))},
		{"a certificate with Bawn's role of administrator", n.post("/any", "{}"), 403, build},
		{"good", n.post("/any", "{}"), 200, good},
		{"a chain", n.post("/any", "{}"), 200, n.presenting(t, chained)},
		{"a chain with a piece missing", n.post("/any", "{}"), 401, alone},
		{"the authority's own", n.post("/any", "{}"), 401, n.presenting(t, root)},
		{"one below that is an authority", n.post("/any", "{}"), 401, n.presenting(t, Pair{tls.Certificate{Certificate: [][]byte{sub.cert.Raw}, PrivateKey: sub.key}})},
		{"without any name", n.post("/any", "{}"), 200, with(ca, nil)},
		{"a role of callers", n.post("/any", "{}", partner...), 200, nil},
		{"ended", n.post("/any", "{}"), 401, with(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })},
		{"not begun", n.post("/any", "{}"), 401, with(ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })},
		{"for servers", n.post("/any", "{}"), 401, with(ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},

		{"a DNS name", n.post("/some", "{}"), 200, good},
		{"a DNS name in other letters", n.post("/some", "{}"), 200, with(ca, dns("x.example.com", "A.Example.com"))},
		{"one label below", n.post("/some", "{}"), 200, with(ca, dns("x.b.example.com"))},
		{"an address", n.post("/some", "{}"), 200, with(ca, func(c *x509.Certificate) { c.EmailAddresses = []string{"ops@Example.com"} })},
		{"a URI", n.post("/some", "{}"), 200, with(ca, uri("spiffe://example.org/ci/x"))},
		{"two labels below", n.post("/some", "{}"), 401, with(ca, dns("x.y.b.example.com"))},
		{"the domain itself", n.post("/some", "{}"), 401, with(ca, dns("b.example.com"))},
		{"a wildcard", n.post("/some", "{}"), 401, with(ca, dns("*.b.example.com", "*.example.com"))},
		{"another address", n.post("/some", "{}"), 401, with(ca, func(c *x509.Certificate) { c.EmailAddresses = []string{"Ops@example.com"} })},
		{"a URI that goes on", n.post("/some", "{}"), 401, with(ca, uri("spiffe://example.org/ci/x/y"))},
		{"a URI that ends before", n.post("/some", "{}"), 401, with(ca, uri("spiffe://example.org/ci/"))},
		{"a common name", n.post("/some", "{}"), 401, with(ca, named("a.example.com"))},
		{"a DNS name that looks like an address", n.post("/some", "{}"), 401, with(ca, func(c *x509.Certificate) { c.DNSNames = []string{"ops@example.com"} })},

		{"a tenant's issuer", n.post("/machines", "{}"), 200, build},
		{"a tenant's issuer, another name", n.post("/machines", "{}"), 403, with(ours, uri("spiffe://example.org/ci/other"))},
		{"a route's authority where the tenant's are asked for", n.post("/machines", "{}"), 401, with(ca, uri("spiffe://example.org/ci/build"))},

		// What is shown for the connection concerns no other route of it.
		{"public, with another route's", n.post("/open", "{}"), 200, good},
		{"public, with nobody's", n.post("/open", "{}"), 401, with(nobody, nil)},
		{"a key, with another route's certificate", n.post("/keys", "{}", key...), 200, good},
		{"another route's certificate alone", n.post("/keys", "{}"), 401, good},
		{"other authorities", n.post("/others", "{}"), 401, good},
		{"and the first again", n.post("/any", "{}"), 200, good},
	})

	t.Run("the function is told who it is", func(t *testing.T) {
		res, err := with(ca, func(c *x509.Certificate) {
			c.Subject, c.DNSNames = pkix.Name{CommonName: "Ann", Organization: []string{"Bad \"Inc\"\n"}}, []string{"a.example.com"}
		}).Do(n.post("/any", "{}")())
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
				Authentication struct {
					ClientCert struct {
						ClientCertPem, SubjectDN, IssuerDN, SerialNumber string
						Validity                                         struct{ NotBefore, NotAfter string }
					}
				}
			}
		}
		if err := json.Unmarshal(body, &e); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		got := e.RequestContext.Authentication.ClientCert
		if res.ProtoMajor != 2 || !strings.Contains(got.SubjectDN, "CN=Ann") || got.IssuerDN != "CN=partners" || got.SerialNumber == "" ||
			!strings.HasPrefix(got.ClientCertPem, "-----BEGIN CERTIFICATE-----") || !strings.HasSuffix(got.Validity.NotAfter, " GMT") {
			t.Errorf("HTTP/%d, %+v", res.ProtoMajor, got)
		}
		res, err = good.Do(n.post("/open", "{}")())
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if body, err = io.ReadAll(res.Body); err != nil || bytes.Contains(body, []byte("clientCert")) {
			t.Errorf("another route was told, too: %s %v", body, err)
		}
	})
	t.Run("a domain's handshake names its own authorities", func(t *testing.T) {
		if _, err := n.AddDomain(t.Context(), "shop.example.com", ""); err != nil {
			t.Fatal(err)
		}
		n.MustDeploy("shop", map[string]any{
			"runtime": string(n.rt), "handler": "app.handler",
			"ingress": map[string]any{"http": []any{
				map[string]any{"method": "POST", "path": "/same", "hosts": []string{"shop.example.com"}, "access": mtls(other)},
				map[string]any{"method": "POST", "path": "/same", "access": "key"},
			}},
		}, map[string]string{"app.py": "def handler(e, c): return e\n"})
		asked := func(name string) (all []string) {
			var d net.Dialer
			raw, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(n.Public(), "https://"))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			tc := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				for _, der := range r.AcceptableCAs {
					var rdn pkix.RDNSequence
					if _, err := asn1.Unmarshal(der, &rdn); err != nil {
						t.Error(err)
					}
					all = append(all, rdn.String())
				}
				return &tls.Certificate{}, nil
			}})
			if err := tc.HandshakeContext(context.Background()); err != nil {
				t.Fatal(err)
			}
			return all
		}
		if got := strings.Join(asked("shop.example.com"), " "); !strings.Contains(got, "CN=others") || strings.Contains(got, "CN=partners") {
			t.Errorf("for the domain %q are asked for", got)
		}
		if got := strings.Join(asked("localhost"), " "); !strings.Contains(got, "CN=partners") {
			t.Errorf("for the node %q are asked for", got)
		}
		on := func(header ...string) func() *http.Request {
			return func() *http.Request {
				r := n.post("/same", "{}", header...)()
				r.Host = "shop.example.com"
				return r
			}
		}
		elsewhere := with(other, nil)
		n.knock(t, []knock{
			{"the domain's, its certificate", on(), 200, elsewhere},
			{"the domain's, a key", on(key...), 403, nil},
			{"the node's, the domain's certificate", n.post("/same", "{}"), 401, elsewhere},
			{"the node's, a key", n.post("/same", "{}", key...), 200, elsewhere},
		})
	})
	t.Run("another deploy takes an authority's place", func(t *testing.T) {
		n.door("any", mtls(other))
		n.knock(t, []knock{
			{"the earlier one", n.post("/any", "{}"), 401, good},
			{"the new one", n.post("/any", "{}"), 200, with(other, nil)},
		})
	})
	t.Run("what is revoked is", func(t *testing.T) {
		if _, err := n.Revoke(t.Context(), client.NewRevocation{Principal: "cert:spiffe://example.org/ci/build"}); err != nil {
			t.Fatal(err)
		}
		n.knock(t, []knock{{"revoked", n.post("/machines", "{}"), 401, build}})
	})
}
