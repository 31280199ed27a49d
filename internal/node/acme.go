package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

const (
	acmeFolder   = "acme"       // of the data directory: accounts, certificates and their keys, for the owner alone
	acmeProtocol = "acme-tls/1" // of the challenge TLS-ALPN-01
	acmeTimeout  = 2 * time.Minute
	maxACMERows  = 50 // names that the doctor tells of each by itself
)

// DefaultACME is the directory of Let's Encrypt.
const DefaultACME = "https://acme-v02.api.letsencrypt.org/directory"

// acmeCerts are certificates that an ACME authority gives, for domains of tenants
// and names of the node. They are asked for and renewed in the background: a name
// whose certificate is not there yet gets what next has.
type acmeCerts struct {
	next    certificates
	log     *slog.Logger
	ctx     context.Context
	cache   *certmagic.Cache
	issuer  *certmagic.ACMEIssuer
	cfg     *certmagic.Config
	mu      sync.Mutex
	managed map[string]*acmeName
}

// acmeName is a name that a certificate is wanted for.
type acmeName struct {
	stop    context.CancelFunc // ends what is under way for it
	problem string             // what went wrong last, "" if nothing did
}

type acmeConfig struct {
	data, directory, email string
	roots                  *x509.CertPool // of the directory; nil: the system's
	host                   string         // that the listeners are on
	http, https            int            // ports of challenges; http 0: there is no listener for HTTP-01
	renewEvery             time.Duration  // 0: certmagic's ten minutes
}

// openACME asks nobody for anything yet. The caller must close it.
func openACME(ctx context.Context, c acmeConfig, next certificates, log *slog.Logger) *acmeCerts {
	a := &acmeCerts{next: next, log: log, ctx: ctx, managed: map[string]*acmeName{}}
	a.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return a.cfg, nil },
		RenewCheckInterval: c.renewEvery, Logger: zap.NewNop(),
	})
	a.cfg = certmagic.New(a.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: filepath.Join(c.data, acmeFolder)}, OnEvent: a.heard, Logger: zap.NewNop(),
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	a.issuer = certmagic.NewACMEIssuer(a.cfg, certmagic.ACMEIssuer{
		CA: c.directory, TestCA: c.directory, Email: c.email, Agreed: true, TrustedRoots: c.roots, CertObtainTimeout: acmeTimeout, Logger: zap.NewNop(),
		ListenHost: c.host, AltTLSALPNPort: c.https, AltHTTPPort: c.http, DisableHTTPChallenge: c.http == 0,
	})
	a.cfg.Issuers = []certmagic.Issuer{a.issuer}
	return a
}

func (a *acmeCerts) close() { a.cache.Stop() }

// manage sees to it that there is a certificate for a name, from now on. It returns at
// once.
func (a *acmeCerts) manage(name string) {
	if bawn.CheckDomain(name) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.managed[name] != nil {
		return
	}
	ctx, stop := context.WithCancel(a.ctx)
	a.managed[name] = &acmeName{stop: stop}
	go func() { // it reads files
		if err := a.cfg.ManageAsync(ctx, []string{name}); err != nil && ctx.Err() == nil {
			a.log.Error("a certificate cannot be asked for", "name", name, "error", err)
		}
	}()
}

// forget ends what manage began: the certificate of a name is neither shown nor
// renewed any more. Its file stays, for when the name comes back.
func (a *acmeCerts) forget(name string) {
	a.mu.Lock()
	m := a.managed[name]
	delete(a.managed, name)
	a.mu.Unlock()
	if m != nil {
		m.stop()
		a.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	}
}

// heard is told what becomes of certificates, and says no to a renewal that was
// under way when its name was forgotten.
func (a *acmeCerts) heard(_ context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.managed[name]
	if m == nil {
		if event == "cert_obtaining" {
			return certmagic.ErrNoRetry{Err: errors.New("nobody wants a certificate for it any more")}
		}
		return nil
	}
	switch event {
	case "cert_obtained":
		m.problem = ""
		a.log.Info("got a certificate", "name", name, "renewal", data["renewal"])
	case "cert_failed":
		m.problem = fmt.Sprintf("%.300v", data["error"])
		a.log.Error("no certificate was given; it is tried again", "name", name, "error", data["error"])
	}
	return nil
}

// get returns the certificate of the name that is asked for, and the answer to an
// authority's challenge.
func (a *acmeCerts) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	a.mu.Lock()
	_, managed := a.managed[name]
	a.mu.Unlock()
	if managed {
		challenge := len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeProtocol
		if cert, err := a.cfg.GetCertificate(hello); err == nil && cert != nil || challenge {
			return cert, err
		}
	}
	return a.next.get(hello)
}

// answer answers an HTTP-01 challenge, if r is one.
func (a *acmeCerts) answer(w http.ResponseWriter, r *http.Request) bool {
	return a != nil && a.issuer.HandleHTTPChallenge(w, r)
}

// facts are what the doctor says of them: a row for each name, those with trouble
// first, and of many names no more than maxACMERows.
func (a *acmeCerts) facts(now time.Time) []bawn.Capability {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var good, bad []bawn.Capability
	for _, name := range slices.Sorted(maps.Keys(a.managed)) {
		if c := a.fact(name, a.managed[name].problem, now); c.OK {
			good = append(good, c)
		} else {
			bad = append(bad, c)
		}
	}
	sum := bawn.Capability{Name: "certificates by ACME", Control: "E7", OK: len(bad) == 0, Detail: fmt.Sprintf("of %s for %d names", a.issuer.CA, len(a.managed))}
	if len(bad) > 0 {
		sum.Detail += fmt.Sprintf(", %d of them with trouble", len(bad))
		sum.Fix = "see that the name leads here and that the authority can be reached; it is tried again by itself"
	}
	all := append(bad, good...)
	return append([]bawn.Capability{sum}, all[:min(len(all), maxACMERows)]...)
}

// fact is what the doctor says of one name. The last sixth of a certificate's time is
// late: it should have been renewed when a third was left.
func (a *acmeCerts) fact(name, problem string, now time.Time) bawn.Capability {
	c := bawn.Capability{Name: "certificate of " + name, Control: "E7", Detail: "not there yet"}
	late := true
	for _, cert := range a.cache.AllMatchingCertificates(name) {
		if cert.Leaf == nil {
			continue
		}
		end := cert.Leaf.NotAfter
		late = end.Sub(now) < end.Sub(cert.Leaf.NotBefore)/6
		if c.Detail = "by ACME, until " + end.UTC().Format(time.RFC3339); end.Before(now) {
			c.Detail = "by ACME; it ended on " + end.UTC().Format(time.RFC3339)
		}
	}
	if c.OK = !late && problem == ""; c.OK {
		return c
	}
	if problem != "" {
		c.Detail += "; asking for one failed: " + problem
	}
	c.Fix = "see that " + name + " leads here and that the authority can be reached; it is tried again by itself"
	return c
}

// openACME begins to ask an authority for certificates, of every domain and of the
// names that the operator gave. That the authority is down stops nothing. data is the
// data directory as the server reaches it, which may be by another path than root's.
func (n *Node) openACME(changes *control.Control, data string, next certificates, public, plain net.Listener) error {
	c := acmeConfig{data: data, directory: cmp.Or(n.cfg.ACMEDirectory, DefaultACME), email: n.cfg.ACMEEmail, https: portOf(public), host: hostOfListener(public)}
	if plain != nil {
		c.http = portOf(plain)
	}
	u, err := url.Parse(c.directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return bawn.Errorf(bawn.CodeInvalid, "node.acme", "--acme-directory %.200q is not an https URL", c.directory).WithFix("give the authority's directory, such as %s", DefaultACME)
	}
	if n.cfg.ACMECA != "" {
		pem, err := readBounded(n.cfg.ACMECA)
		if err != nil {
			return bawn.Wrap(err, bawn.CodeInvalid, "node.acme", "the file %s cannot be read", n.cfg.ACMECA).WithFix("give a file of certificates in PEM with --acme-ca")
		}
		if c.roots = x509.NewCertPool(); !c.roots.AppendCertsFromPEM(pem) {
			return bawn.Errorf(bawn.CodeInvalid, "node.acme", "the file %s has no certificate", n.cfg.ACMECA).WithFix("give a file of certificates in PEM with --acme-ca")
		}
	}
	n.acme = openACME(n.stopping, c, next, n.cfg.Log)
	n.onClose("acme", func(context.Context) error { n.acme.close(); return nil })
	own := map[string]bool{}
	for _, name := range n.cfg.Names {
		name = strings.ToLower(name)
		own[name] = true
		n.acme.manage(name)
	}
	stop := changes.WatchDomains(func(name string, there bool) {
		switch {
		case there:
			n.acme.manage(name)
		case !own[name]:
			n.acme.forget(name)
		}
	})
	n.onClose("domains", func(context.Context) error { stop(); return nil })
	return nil
}

func portOf(ln net.Listener) int {
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

func hostOfListener(ln net.Listener) string {
	if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsUnspecified() {
		return a.IP.String()
	}
	return ""
}
