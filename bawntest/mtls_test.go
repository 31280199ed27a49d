package bawntest

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// Machines are known by client certificates on both listeners. A certificate that
// is not good is refused, and its holder not taken for nobody.
func TestClientCertificatesOnBothListeners(t *testing.T) {
	n := NewNode(t)
	n.MustDeploy("f", map[string]any{
		"runtime": "python3.11", "handler": "app.handler",
		"ingress": map[string]any{"http": []any{map[string]any{"method": "POST", "path": "/f"}}},
	}, map[string]string{"app.py": "def handler(e, c): return e\n"})
	ca, other := NewAuthority(t, "machines"), NewAuthority(t, "nobody's")
	if _, err := n.CreateIssuer(t.Context(), client.NewIssuer{
		Name: "machines", Kind: bawn.IssuerCA, CA: ca.PEM, Roles: map[string][]bawn.Role{"spiffe://example.org/ci/*": {bawn.RoleViewer}},
	}); err != nil {
		t.Fatal(err)
	}
	build := func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "build"}
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/ci/build"}}
	}
	good := ca.Issue(t, build)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.Context.CA))
	// status asks one listener with the certificate and returns the answer's.
	status := func(p Pair, method, at string) int {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &p.Certificate, nil // whichever authorities the node names
		}}}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequest(method, at, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	// A viewer may list functions, and not call them: who it is was known.
	if got := [2]int{status(good, "GET", n.URL()+"/v1/functions"), status(good, "POST", n.Public()+"/f")}; got != [2]int{200, 403} {
		t.Errorf("a good certificate: %d", got)
	}
	for what, p := range map[string]Pair{
		"expired": ca.Issue(t, func(c *x509.Certificate) {
			build(c)
			c.NotBefore, c.NotAfter = time.Now().Add(-30*time.Minute), time.Now().Add(-time.Minute)
		}),
		"not valid yet": ca.Issue(t, func(c *x509.Certificate) {
			build(c)
			c.NotBefore = time.Now().Add(30 * time.Minute)
		}),
		"for servers": ca.Issue(t, func(c *x509.Certificate) {
			build(c)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
		"of an unknown authority": other.Issue(t, build),
		"of two names": ca.Issue(t, func(c *x509.Certificate) {
			build(c)
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/ci/other"})
		}),
	} {
		if got := [2]int{status(p, "GET", n.URL()+"/v1/functions"), status(p, "POST", n.Public()+"/f")}; got != [2]int{401, 401} {
			t.Errorf("a certificate %s: %d", what, got)
		}
	}
	// Without a role, it is known and may do nothing.
	stranger := ca.Issue(t, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "else"} })
	if got := status(stranger, "GET", n.URL()+"/v1/functions"); got != 403 {
		t.Errorf("a certificate without a role: %d", got)
	}
	if _, err := n.Revoke(t.Context(), client.NewRevocation{Principal: "cert:spiffe://example.org/ci/build"}); err != nil {
		t.Fatal(err)
	}
	if got := [2]int{status(good, "GET", n.URL()+"/v1/functions"), status(good, "POST", n.Public()+"/f")}; got != [2]int{401, 401} {
		t.Errorf("a revoked certificate: %d", got)
	}
}
