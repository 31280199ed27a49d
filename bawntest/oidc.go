package bawntest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

const (
	maxPage  = 1 << 20
	maxPages = 20 // that a browser goes through to log in
)

// OIDC is an OpenID Connect server of its own kind, not of this project's: the one
// of tools/oidc, at a port of 127.0.0.1, with certificates from an authority of its
// own. Of its users ann is in the group platform, everybody else in guests. It ends
// with the test.
type OIDC struct {
	URL    string // the issuer
	CA     string // PEM: its authority
	CAFile string

	t     testing.TB
	in    io.WriteCloser
	out   *bufio.Scanner
	roots *x509.CertPool
}

// LackOIDC says what is missing for [NewOIDC]; nil if nothing is.
func LackOIDC() error {
	_, _, err := findOIDC()
	return err
}

// findOIDC finds Node.js, and tools/oidc from the folder of whichever test runs.
func findOIDC() (node, dir string, err error) {
	if node, err = exec.LookPath("node"); err != nil {
		return "", "", err
	}
	if dir, err = os.Getwd(); err != nil {
		return "", "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		at := filepath.Join(dir, "tools", "oidc")
		if _, err = os.Stat(filepath.Join(at, "server.mjs")); err == nil {
			_, err = os.Stat(filepath.Join(at, "node_modules", "oidc-provider"))
			return node, at, err
		}
		if dir == "/" {
			return "", "", err
		}
	}
}

// NewOIDC starts the server, or skips the test, saying why, if it is not installed.
func NewOIDC(t testing.TB) *OIDC {
	t.Helper()
	node, dir, err := findOIDC()
	if err != nil {
		t.Skipf("SKIP: no OpenID Connect server to test with, make setup installs it: %v", err)
	}
	tmp := t.TempDir()
	ca := NewAuthority(t, "an issuer's authority")
	pair := ca.Issue(t, func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	o := &OIDC{t: t, CA: ca.PEM, CAFile: filepath.Join(tmp, "ca.pem"), roots: x509.NewCertPool()}
	o.roots.AppendCertsFromPEM([]byte(ca.PEM))
	cert, key := pair.Write(t, tmp, "server")
	if err := os.WriteFile(o.CAFile, []byte(o.CA), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "server.mjs", cert, key)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stderr = &said
	if o.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		o.in.Close()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the issuer said:\n%s", said.String())
		}
	})
	o.out = bufio.NewScanner(out)
	var ready struct {
		Issuer string `json:"issuer"`
	}
	o.read(&ready)
	o.URL = ready.Issuer
	return o
}

// read takes the next line that is for us: the library writes notices between.
func (o *OIDC) read(into any) {
	o.t.Helper()
	for {
		if !o.out.Scan() {
			o.t.Fatalf("the issuer says nothing: %v", o.out.Err())
		}
		if bytes.HasPrefix(o.out.Bytes(), []byte("{")) {
			break
		}
	}
	if err := json.Unmarshal(o.out.Bytes(), into); err != nil {
		o.t.Fatalf("the issuer says %q", o.out.Text())
	}
}

// Rotate has the server sign with a new key and forget the one before.
func (o *OIDC) Rotate() {
	o.t.Helper()
	fmt.Fprintln(o.in, "rotate")
	var done struct{ Rotated int }
	o.read(&done)
}

// Issuer returns settings under which a node trusts the server: the group platform
// has the role admin, everybody is an invoker.
func (o *OIDC) Issuer(name string) client.NewIssuer {
	return client.NewIssuer{
		Name: name, Kind: bawn.IssuerOIDC, URL: o.URL, ClientID: "bawn", Scopes: []string{"groups", "offline_access"}, Private: true, CA: o.CA,
		Roles: map[string][]bawn.Role{"platform": {bawn.RoleAdmin}, "*": {bawn.RoleInvoker}},
	}
}

var (
	pageForm  = regexp.MustCompile(`(?s)<form([^>]*)>(.*?)</form>`)
	pageInput = regexp.MustCompile(`<input([^>]*)>`)
	pageAttr  = regexp.MustCompile(`([a-z]+)="([^"]*)"`)
)

// Browse goes where a login begins as a person would: it opens the page, enters
// the name, agrees to everything, and follows until no page asks for more. It
// returns the last one.
func (o *OIDC) Browse(where, name string) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots}}
	defer tr.CloseIdleConnections()
	browser := &http.Client{Jar: jar, Transport: tr, Timeout: 30 * time.Second}
	res, err := browser.Get(where)
	for range maxPages {
		if err != nil {
			return "", err
		}
		data, rerr := io.ReadAll(io.LimitReader(res.Body, maxPage))
		res.Body.Close()
		page := string(data)
		if rerr != nil || res.StatusCode != http.StatusOK {
			return page, fmt.Errorf("%s answered %d: %.500s %v", res.Request.URL, res.StatusCode, page, rerr)
		}
		form := pageForm.FindStringSubmatch(page)
		if form == nil {
			return page, nil
		}
		action, values := attributes(form[1])["action"], url.Values{}
		for _, in := range pageInput.FindAllStringSubmatch(form[2], -1) {
			a := attributes(in[1])
			switch a["name"] {
			case "":
			case "login", "password":
				values.Set(a["name"], name)
			default:
				values.Set(a["name"], a["value"])
			}
		}
		to, perr := res.Request.URL.Parse(action)
		if perr != nil {
			return page, perr
		}
		res, err = browser.PostForm(to.String(), values)
	}
	return "", fmt.Errorf("more than %d pages", maxPages)
}

func attributes(tag string) map[string]string {
	all := map[string]string{}
	for _, m := range pageAttr.FindAllStringSubmatch(tag, -1) {
		all[m[1]] = html.UnescapeString(m[2])
	}
	return all
}

// Authority issues certificates for tests.
type Authority struct {
	PEM  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	key := newECDSA(t)
	from := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, from, from, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert: cert, key: key}
}

// Pair is a certificate and its key.
type Pair struct{ tls.Certificate }

// Issue makes a certificate for clients, valid from a minute ago for an hour,
// unless change says otherwise.
func (a *Authority) Issue(t testing.TB, change func(*x509.Certificate)) Pair {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	if change != nil {
		change(c)
	}
	key := newECDSA(t)
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

// Write writes the pair as PEM into dir, as name.pem and name.key.
func (p Pair) Write(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(p.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: p.Certificate.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
