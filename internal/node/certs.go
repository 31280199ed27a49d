package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"bawn.dev/bawn"
)

const (
	maxCertPairs     = 20
	maxCertFile      = 1 << 20
	certReloadEvery  = 10 * time.Second
	certExpiryNotice = 14 * 24 * time.Hour // before which the doctor speaks up
)

// ownCerts are the operator's certificates, from files. A change of a file is taken
// over while the node runs; one that is not good leaves the last that was. Whom they
// do not fit gets the node's own.
type ownCerts struct {
	builtin *serverCert
	now     func() time.Time
	log     *slog.Logger

	mu    sync.RWMutex
	pairs []*certPair
}

type certPair struct {
	cert, key string // files
	seen      [2]stamp
	good      *tls.Certificate
	problem   string // why the files as they are now are not taken; empty if they are
}

// stamp tells whether a file is another one, or has another content.
type stamp struct {
	inode uint64
	size  int64
	at    time.Time
}

// openCerts reads pairs of files. Each has to be good when the node starts.
func openCerts(certs, keys []string, now func() time.Time, log *slog.Logger) (*ownCerts, error) {
	if len(certs) != len(keys) || len(certs) > maxCertPairs {
		return nil, bawn.Errorf(bawn.CodeInvalid, "node.certs", "there are %d --cert and %d --cert-key, want one key for each certificate, and at most %d", len(certs), len(keys), maxCertPairs).
			WithFix("give --cert FILE --cert-key FILE, in pairs")
	}
	o := &ownCerts{now: now, log: log}
	for i := range certs {
		p := &certPair{cert: certs[i], key: keys[i]}
		p.seen = p.stamps()
		good, err := p.load(now())
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "node.certs", "the certificate %s with the key %s cannot be used: %v", p.cert, p.key, err).
				WithFix("give a PEM chain, its own certificate first, and its key")
		}
		p.good = good
		o.pairs = append(o.pairs, p)
	}
	return o, nil
}

func (p *certPair) stamps() (s [2]stamp) {
	for i, name := range []string{p.cert, p.key} {
		if st, err := os.Stat(name); err == nil {
			s[i] = stamp{inode(st), st.Size(), st.ModTime()}
		}
	}
	return s
}

func (p *certPair) load(now time.Time) (*tls.Certificate, error) {
	cert, err := readBounded(p.cert)
	if err != nil {
		return nil, err
	}
	key, err := readBounded(p.key)
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	switch {
	case now.After(c.Leaf.NotAfter):
		return nil, fmt.Errorf("it ended on %s", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Add(clockSkew).Before(c.Leaf.NotBefore):
		return nil, fmt.Errorf("it begins on %s", c.Leaf.NotBefore.UTC().Format(time.RFC3339))
	case len(c.Leaf.DNSNames)+len(c.Leaf.IPAddresses) == 0:
		return nil, fmt.Errorf("it names no host")
	}
	return &c, nil
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCertFile+1))
	if err == nil && len(b) > maxCertFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxCertFile)
	}
	return b, err
}

// reload takes over what has changed; with all, whether or not it looks changed.
func (o *ownCerts) reload(all bool) {
	for _, p := range o.pairs {
		seen := p.stamps()
		o.mu.RLock()
		same := seen == p.seen
		o.mu.RUnlock()
		if same && !all {
			continue
		}
		good, err := p.load(o.now())
		o.mu.Lock()
		p.seen = seen
		if err != nil {
			p.problem = err.Error()
			o.log.Error("a certificate cannot be taken over; the last good one stays", "cert", p.cert, "error", err)
		} else {
			p.good, p.problem = good, ""
			o.log.Info("took over a certificate", "cert", p.cert, "until", good.Leaf.NotAfter.UTC())
		}
		o.mu.Unlock()
	}
}

// follow looks for changes until ctx ends.
func (o *ownCerts) follow(ctx context.Context) {
	every := time.NewTicker(certReloadEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			o.reload(false)
		}
	}
}

// get returns the first certificate that is for the name that the client asks for,
// or the address that it came to.
func (o *ownCerts) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" && hello.Conn != nil {
		name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, p := range o.pairs {
		if p.good.Leaf.VerifyHostname(name) == nil && hello.SupportsCertificate(p.good) == nil {
			return p.good, nil
		}
	}
	return o.builtin.get(hello)
}

// facts are what the doctor says of them.
func (o *ownCerts) facts() []bawn.Capability {
	if o == nil {
		return nil
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	var all []bawn.Capability
	for _, p := range o.pairs {
		leaf, left := p.good.Leaf, p.good.Leaf.NotAfter.Sub(o.now())
		c := bawn.Capability{
			Name: "certificate " + p.cert, Control: "E7", OK: p.problem == "" && left > certExpiryNotice,
			Detail: fmt.Sprintf("for %v until %s", slices.Concat(leaf.DNSNames, addresses(leaf.IPAddresses)), leaf.NotAfter.UTC().Format(time.DateOnly)),
		}
		switch {
		case p.problem != "":
			c.Detail += "; the files as they are now are not taken: " + p.problem
			c.Fix = "put a good certificate with its key there; it is taken over within " + certReloadEvery.String()
		case !c.OK:
			c.Fix = "renew it: a new file is taken over within " + certReloadEvery.String() + ", or at once by SIGHUP"
		}
		all = append(all, c)
	}
	return all
}

func addresses(ips []net.IP) (all []string) {
	for _, ip := range ips {
		all = append(all, ip.String())
	}
	return all
}

// tlsVersion reads the flag --tls-min.
func tlsVersion(s string) (uint16, error) {
	switch s {
	case "", "1.3":
		return 0, nil
	case "1.2":
		return tls.VersionTLS12, nil
	}
	return 0, bawn.Errorf(bawn.CodeInvalid, "node.listen", "--tls-min %.20q is not a version that can be chosen", s).WithFix("leave it out for 1.3, or give 1.2 for callers that have nothing newer")
}

// transport says how the public listener is reached, for the doctor.
func (n *Node) transport() []bawn.Capability {
	version := bawn.Capability{Name: "TLS 1.3 only", Control: "E7", OK: n.cfg.MinTLS != "1.2", Detail: "on both listeners"}
	if !version.OK {
		version.Detail = "the public listener takes TLS 1.2 too, by --tls-min 1.2"
		version.Fix = "once every caller has TLS 1.3, start it without --tls-min"
	}
	all := append([]bawn.Capability{version}, slices.Concat(n.certs.facts(), n.acme.facts(time.Now()))...)
	if n.plain != nil {
		all = append(all, bawn.Capability{Name: "plain http", Control: "E7", OK: true, Detail: n.plain.tcp.Addr().String() + " sends browsers on to https, and answers nothing else"})
	}
	return all
}
