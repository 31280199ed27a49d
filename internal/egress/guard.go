package egress

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

// The ranges that no public network routes, or routes to somebody who is not
// named: the special-purpose registries of IANA, multicast, and of IPv6 all that
// is not global unicast. What writes an IPv4 address as IPv6 (mapped, NAT64,
// 6to4, Teredo) is among them, whatever the address inside is.
const (
	special4 = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 " +
		"192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
	global6  = "2000::/3"
	special6 = "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20"
)

const (
	lookupTimeout = 5 * time.Second
	dialTimeout   = 5 * time.Second
	reachTimeout  = 10 * time.Second // both, for all addresses of a name
	maxDialed     = 4                // addresses of one name that are tried
	ownFor        = 10 * time.Second // how long the host's addresses are believed to be the same
	maxCA         = 1 << 20          // bytes of --egress-ca
)

// GuardConfig says what an operator has allowed. The zero value allows every
// address of the public internet and no other.
type GuardConfig struct {
	Allow    []string      // ADDR[:PORT] or CIDR[:PORT], an IPv6 one with a port in brackets: may be reached all the same
	Resolve  []string      // NAME=ADDR: the name is at this address, whatever DNS says
	CA       string        // a file of certificates in PEM that are trusted beside the system's; empty: none
	Resolver *net.Resolver // nil means [net.DefaultResolver]
}

// A Guard makes every connection to the outside. A name is resolved once, its
// addresses are looked at, and the connection goes to one that was: never to the
// host, to the network it is in, or to any special range, unless the operator
// has allowed that very address; controls C2 and C3. It is safe for concurrent
// use.
type Guard struct {
	special4, special6 []netip.Prefix
	global6            netip.Prefix
	allow              []allowed
	resolve            map[string][]netip.Addr
	resolver           *net.Resolver
	roots              *x509.CertPool
	added              []byte // to the system's roots: PEM
	cfg                GuardConfig

	// socket connects to an address that was looked at; tests stand in for what
	// is outside.
	socket func(ctx context.Context, d *net.Dialer, network string, to netip.AddrPort) (net.Conn, error)

	mu    sync.Mutex
	own   []netip.Addr // of the host
	ownAt time.Time
}

// allowed is one thing that the operator has allowed.
type allowed struct {
	prefix netip.Prefix
	port   int // 0: every one
}

// covers reports whether a allows to's address, at every port if port is 0.
func (a allowed) covers(addr netip.Addr, port int) bool {
	return a.prefix.Contains(addr) && (a.port == 0 || a.port == port)
}

// A Blocked is the error of a connection that the guard does not make.
type Blocked struct {
	Host string // the name, or the address
	Addr netip.Addr
	Port int
	What string // what the address is
}

// Error says what was refused, and how an operator allows it.
func (b *Blocked) Error() string {
	at := ""
	if b.Host != b.Addr.String() {
		at = " is at " + b.Addr.String() + ", which"
	}
	return fmt.Sprintf("%.253s%s is %s; an operator can allow it: bawn up --egress-allow %s", b.Host, at, b.What, netip.AddrPortFrom(b.Addr.WithZone(""), uint16(b.Port)))
}

// NewGuard returns a guard. Errors name the flag of bawn up that is wrong.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	g := &Guard{
		special4: prefixes(special4), special6: prefixes(special6), global6: netip.MustParsePrefix(global6),
		resolve: map[string][]netip.Addr{}, resolver: cmp.Or(cfg.Resolver, net.DefaultResolver), cfg: cfg,
		socket: func(ctx context.Context, d *net.Dialer, network string, to netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, to.String())
		},
	}
	const op = "egress.guard"
	for _, text := range cfg.Allow {
		a, err := parseAllow(text)
		if err != nil {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "--egress-allow %.100q: %v", text, err).
				WithFix("write ADDR, ADDR:PORT, CIDR or CIDR:PORT, such as 10.1.2.3:5432, 10.1.0.0/16 or [fd00::/8]:443")
		}
		g.allow = append(g.allow, a)
	}
	for _, text := range cfg.Resolve {
		name, addr, err := parseResolve(text)
		if err != nil {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "--egress-resolve %.300q: %v", text, err).
				WithFix("write NAME=ADDR, such as db.internal=10.1.2.3; a name with several addresses is written several times")
		}
		g.resolve[name] = append(g.resolve[name], addr)
	}
	if cfg.CA != "" {
		pem, err := readBounded(cfg.CA, maxCA)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "--egress-ca: the file %s cannot be read", cfg.CA).WithFix("name a file of certificates in PEM that the node may read")
		}
		if g.roots, err = x509.SystemCertPool(); err != nil {
			g.roots = x509.NewCertPool()
		}
		g.added = pem
		if !g.roots.AppendCertsFromPEM(pem) {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "--egress-ca: the file %s holds no certificate", cfg.CA).WithFix("name a file of certificates in PEM")
		}
	}
	return g, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return nil, fmt.Errorf("it is no file, or larger than %d bytes", most)
	}
	return os.ReadFile(path)
}

func prefixes(list string) []netip.Prefix {
	var all []netip.Prefix
	for field := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(field))
	}
	return all
}

// parseAllow reads ADDR[:PORT] or CIDR[:PORT].
func parseAllow(text string) (allowed, error) {
	host, port := text, ""
	switch {
	case strings.HasPrefix(text, "["):
		end := strings.IndexByte(text, ']')
		if end < 0 {
			return allowed{}, errors.New("the bracket is not closed")
		}
		host, port = text[1:end], text[end+1:]
		if !strings.Contains(host, ":") {
			return allowed{}, errors.New("only an IPv6 address stands in brackets")
		}
		if port != "" && port[0] != ':' {
			return allowed{}, errors.New("only a port may follow the bracket")
		}
		if port == ":" {
			return allowed{}, errors.New("the port is missing")
		}
		port = strings.TrimPrefix(port, ":")
	case strings.Count(text, ":") == 1:
		host, port, _ = strings.Cut(text, ":")
		if port == "" {
			return allowed{}, errors.New("the port is missing")
		}
	}
	var a allowed
	if port != "" {
		var err error
		if a.port, err = parsePort(port); err != nil {
			return allowed{}, err
		}
	}
	var ok bool
	if a.prefix, ok = parseRange(host); !ok {
		return allowed{}, errors.New("it is no address and no range of addresses")
	}
	return a, nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != s {
		return 0, errors.New("a port is a number from 1 to 65535")
	}
	return n, nil
}

// parseResolve reads NAME=ADDR.
func parseResolve(text string) (string, netip.Addr, error) {
	left, right, ok := strings.Cut(text, "=")
	if !ok {
		return "", netip.Addr{}, errors.New("there is no =")
	}
	name, err := parseName(left)
	if err != nil {
		return "", netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(right)
	if err != nil || addr.Zone() != "" {
		return "", netip.Addr{}, errors.New("what follows the = is no address")
	}
	return name, addr.Unmap(), nil
}

// check returns why a connection to addr is not made, or "".
func (g *Guard) check(addr netip.Addr, port int) string {
	if !addr.IsValid() {
		return "no address"
	}
	if addr.Zone() != "" {
		return "an address of one network only"
	}
	// What is written as IPv6 and goes to IPv4 is judged as what it is.
	addr = addr.Unmap()
	for _, a := range g.allow {
		if a.covers(addr, port) {
			return ""
		}
	}
	if !g.public(addr) {
		return "not an address of the public internet"
	}
	if slices.Contains(g.hostAddrs(), addr) {
		return "an address of the node's own host"
	}
	return ""
}

// public reports whether addr is an address of the public internet.
func (g *Guard) public(addr netip.Addr) bool {
	special := g.special4
	if addr.Is6() {
		if !g.global6.Contains(addr) {
			return false
		}
		special = g.special6
	}
	return !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// hostAddrs returns the addresses of the host's own interfaces.
func (g *Guard) hostAddrs() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); g.ownAt.IsZero() || now.Sub(g.ownAt) >= ownFor {
		list, err := net.InterfaceAddrs()
		if err != nil && g.own != nil {
			return g.own
		}
		g.own, g.ownAt = nil, now
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				g.own = append(g.own, p.Addr().Unmap())
			}
		}
	}
	return g.own
}

// lookup returns the addresses of name, as DNS or the operator says.
func (g *Guard) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if addrs := g.resolve[name]; addrs != nil {
		return addrs, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	// The dot keeps the host's search domains out of it.
	addrs, err := g.resolver.LookupNetIP(ctx, "ip", name+".")
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// dial connects to port of host: an address, or a name, of whose addresses the
// first counts that may be reached and answers. It returns which one that is.
// trusted leaves the addresses unchecked: for what the operator has named for the
// platform itself. The error is a *[Blocked] if none may be.
func (g *Guard) dial(ctx context.Context, network, host string, port int, trusted bool) (net.Conn, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	var addrs []netip.Addr
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{addr}
	} else if host, err = parseName(host); err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("%.100q cannot be a host: %w", host, err)
	} else if addrs, err = g.lookup(ctx, host); err != nil {
		return nil, netip.AddrPort{}, err
	}
	var blocked *Blocked
	var errs []error
	for _, addr := range addrs[:min(len(addrs), maxDialed)] {
		if what := g.check(addr, port); what != "" && !trusted {
			if blocked == nil {
				blocked = &Blocked{Host: host, Addr: addr, Port: port, What: what}
			}
			continue
		}
		to := netip.AddrPortFrom(addr, uint16(port))
		conn, err := g.connect(ctx, network, host, to, trusted)
		if err == nil {
			return conn, to, nil
		}
		errs = append(errs, err)
	}
	switch {
	case len(errs) > 0:
		return nil, netip.AddrPort{}, errors.Join(errs...)
	case blocked != nil:
		return nil, netip.AddrPort{}, blocked
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%s has no address", host)
}

// connect connects to an address. It looks at the address, and once more at the
// one that the socket is about to connect to: whatever is changed above, no
// connection goes to another.
func (g *Guard) connect(ctx context.Context, network, host string, to netip.AddrPort, trusted bool) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		real, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if what := g.check(real.Addr(), int(real.Port())); what != "" && !trusted {
			return &Blocked{Host: host, Addr: real.Addr(), Port: int(real.Port()), What: what}
		}
		return nil
	}}
	return g.socket(ctx, d, network, to)
}

// Dial connects to HOST:PORT, which somebody has named who may not reach what is
// inside: it is a net.Dialer.DialContext that keeps to the public internet and
// what the operator has allowed. network is tcp.
func (g *Guard) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return g.dialText(ctx, network, addr, false)
}

// DialTrusted connects to HOST:PORT, which an operator has named: it may be any
// address.
func (g *Guard) DialTrusted(ctx context.Context, network, addr string) (net.Conn, error) {
	return g.dialText(ctx, network, addr, true)
}

func (g *Guard) dialText(ctx context.Context, network, addr string, trusted bool) (net.Conn, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := parsePort(text)
	if err != nil {
		return nil, err
	}
	conn, _, err := g.dial(ctx, network, host, port, trusted)
	return conn, err
}

// Consents reports whether a rule of a manifest needs no leave of the operator,
// or has it: a rule for an address or a range must be within what --egress-allow
// names, at each of its ports. Names are judged by their addresses, when they
// are reached. The error has [bawn.CodeDenied] and says which flag is missing.
func (g *Guard) Consents(h bawn.Host) error {
	p, ok := parseRange(h.Host)
	if !ok {
		return nil
	}
	var missing []string
	for _, port := range h.Ports {
		if !slices.ContainsFunc(g.allow, func(a allowed) bool {
			return a.prefix.Bits() <= p.Bits() && a.covers(p.Addr(), port)
		}) {
			missing = append(missing, "--egress-allow "+allowText(p, port))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return bawn.Errorf(bawn.CodeDenied, "egress.consent", "%s is no name but an address, which needs the leave of the node's operator", h.Host).
		WithFix("name the host instead; or have the node started with %s", strings.Join(missing, " "))
}

// allowText writes a range and a port as --egress-allow takes them.
func allowText(p netip.Prefix, port int) string {
	host := p.String()
	if p.IsSingleIP() {
		host = p.Addr().String()
	}
	if p.Addr().Is6() {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// Roots returns whom servers outside are trusted by; nil means the system's.
func (g *Guard) Roots() *x509.CertPool { return g.roots }

// Added returns the certificates that the operator has added to the system's, in
// PEM.
func (g *Guard) Added() []byte { return g.added }

// Allowed lists what the operator has allowed beyond the public internet, as
// the flags say it.
func (g *Guard) Allowed() []string {
	var all []string
	for _, a := range g.cfg.Allow {
		all = append(all, "--egress-allow "+a)
	}
	for _, r := range g.cfg.Resolve {
		all = append(all, "--egress-resolve "+r)
	}
	if g.cfg.CA != "" {
		all = append(all, "--egress-ca "+g.cfg.CA)
	}
	return all
}
