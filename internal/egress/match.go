package egress

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/idna"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox"
)

const (
	maxNameBytes  = 253
	maxLabelBytes = 63
	maxNames      = 4096 // names below wildcards that one instance gets addresses for
	clearPort     = 80   // where a rule that Bawn reads requests of takes them as plain HTTP, too
)

func itoa(n int) string { return strconv.Itoa(n) }

// parseName returns a host's name as DNS has it: in ASCII, lower case, without
// a dot at the end. What some programs read as an address, such as 2130706433,
// 0x7f.1 or 127.1, is none.
func parseName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 4*maxNameBytes {
		return "", errors.New("the name is too long")
	}
	ascii := true
	for i := range len(s) {
		ascii = ascii && s[i] < 0x80
	}
	if !ascii {
		var err error
		if s, err = idna.Lookup.ToASCII(s); err != nil {
			return "", errors.New("it is not a name in Unicode that DNS can have")
		}
	}
	s = strings.ToLower(s)
	if s == "" || len(s) > maxNameBytes {
		return "", errors.New("the name is empty or too long")
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabelBytes || label[0] == '-' || label[len(label)-1] == '-' {
			return "", errors.New("a part between dots is empty, too long, or has a hyphen at an end")
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", errors.New("a name has letters, digits and hyphens only")
			}
		}
		last = label
	}
	if numeric(last) {
		return "", errors.New("it ends in a number, as an address does")
	}
	return s, nil
}

// numeric reports whether label is a number as the old parsers of addresses
// read them: decimal, octal or hexadecimal.
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// parseRange reads an address or a CIDR range.
func parseRange(s string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, false
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() || p != p.Masked() {
		return netip.Prefix{}, false
	}
	return p, true
}

// A pattern is what the host of one rule means.
type pattern struct {
	rule   *bawn.Host
	name   string       // of an exact name
	suffix string       // of a wildcard: with the dot
	prefix netip.Prefix // of an address or a range
}

// newPattern reads a rule. One that cannot be read fits nothing.
func newPattern(h *bawn.Host) pattern {
	p := pattern{rule: h}
	if rest, ok := strings.CutPrefix(h.Host, "*."); ok {
		if name, err := parseName(rest); err == nil {
			p.suffix = "." + name
		}
	} else if prefix, ok := parseRange(h.Host); ok {
		p.prefix = prefix
	} else if name, err := parseName(h.Host); err == nil {
		p.name = name
	}
	return p
}

// fits reports whether the rule is about name, or about addr if name is empty.
func (p *pattern) fits(name string, addr netip.Addr) bool {
	switch {
	case name == "":
		return p.prefix.IsValid() && p.prefix.Contains(addr)
	case p.suffix != "":
		label, ok := strings.CutSuffix(name, p.suffix)
		return ok && label != "" && !strings.Contains(label, ".")
	}
	return p.name == name
}

// port returns the port outside that a connection to port is for.
func (p *pattern) port(port int) (int, bool) {
	switch {
	case slices.Contains(p.rule.Ports, port):
		return port, true
	case port == clearPort && p.rule.Clear() && len(p.rule.Ports) > 0:
		if slices.Contains(p.rule.Ports, 443) {
			return 443, true
		}
		return p.rule.Ports[0], true
	}
	return 0, false
}

// plan is what the egress of a version comes to inside a sandbox. It does not
// change.
type plan struct {
	egress   *bawn.Egress
	patterns []pattern
	addrs    map[string]netip.Addr // of exact names
	names    map[netip.Addr]string
}

// newPlan gives each exact name a loopback address of its own.
func newPlan(e *bawn.Egress) plan {
	p := plan{egress: e, addrs: map[string]netip.Addr{}, names: map[netip.Addr]string{}}
	for i := range e.Hosts {
		pt := newPattern(&e.Hosts[i])
		p.patterns = append(p.patterns, pt)
		if pt.name == "" || p.addrs[pt.name].IsValid() {
			continue
		}
		addr := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i%256) + 1})
		p.addrs[pt.name], p.names[addr] = addr, pt.name
	}
	return p
}

// sockets returns the ports that must be open in the sandbox.
func (p *plan) sockets() []sandbox.Port {
	var ports []int
	for _, pt := range p.patterns {
		ports = append(ports, pt.rule.Ports...)
		if pt.rule.Clear() {
			ports = append(ports, clearPort)
		}
	}
	if p.egress.Everything != nil {
		ports = append(ports, bawn.EverythingPorts()...)
	}
	if len(ports) > 0 {
		ports = append(ports, ProxyPort)
	}
	for i := range p.egress.Databases {
		ports = append(ports, p.egress.Databases[i].Port)
	}
	slices.Sort(ports)
	var all []sandbox.Port
	for _, n := range slices.Compact(ports) {
		all = append(all, sandbox.Port{Network: "tcp", Port: n})
	}
	return all
}

// local returns the ranges that the sandbox takes for its own, so that what goes
// there comes to Bawn: every address of IPv4, so that what a function tries at an
// address of its own choosing is judged and recorded, where a rule is about the
// port, and the ranges of IPv6 that rules name.
func (p *plan) local() []netip.Prefix {
	all := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	for _, pt := range p.patterns {
		if pt.prefix.IsValid() && pt.prefix.Addr().Is6() && !pt.prefix.Addr().IsLoopback() {
			all = append(all, pt.prefix)
		}
	}
	return all
}

// hosts returns the hosts file; nil if there is nothing to say.
func (p *plan) hosts() []byte {
	var servers []string // of databases, which no rule gives an address
	for i := range p.egress.Databases {
		if name := forwardedName(&p.egress.Databases[i]); name != "" && !p.addrs[name].IsValid() {
			servers = append(servers, name)
		}
	}
	if len(p.addrs)+len(servers) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, pt := range p.patterns {
		if pt.name != "" && p.names[p.addrs[pt.name]] != "" {
			fmt.Fprintf(&b, "%s %s\n", p.addrs[pt.name], pt.name)
		}
	}
	for _, name := range slices.Compact(servers) {
		fmt.Fprintf(&b, "127.0.0.1 %s\n", name)
	}
	return b.Bytes()
}

// named reports whether the function may know of name: a rule is about it.
func (p *plan) named(name string, now time.Time) bool {
	return p.egress.Everything.Open(now) || slices.ContainsFunc(p.patterns, func(pt pattern) bool { return pt.fits(name, netip.Addr{}) })
}

// names are the addresses that the resolver has given to names that no hosts
// file can list. One that was given is never given to another name.
type names struct {
	mu    sync.Mutex
	addrs map[string]netip.Addr
	names map[netip.Addr]string
}

// give returns the address of name; it reports false when all have been given.
func (n *names) give(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.addrs[name]; ok {
		return addr, true
	}
	i := len(n.addrs)
	if i >= maxNames {
		return netip.Addr{}, false
	}
	if n.addrs == nil {
		n.addrs, n.names = map[string]netip.Addr{}, map[netip.Addr]string{}
	}
	addr := netip.AddrFrom4([4]byte{127, 2, byte(i >> 8), byte(i)})
	n.addrs[name], n.names[addr] = addr, name
	return addr, true
}

func (n *names) of(addr netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[addr]
}

// A target is what one connection of the function is for.
type target struct {
	run      *serving
	database *bawn.Database // if it is for a database
	host     *bawn.Host     // the first rule that fits; nil if none does
	hosts    []*bawn.Host   // all that fit, in their order
	name     string         // of the host; empty if the function connected to an address
	addr     netip.Addr     // that address
	inside   int            // the port that the function connected to
	port     int            // the port outside

	method, path string // of a request, where they are read
}

// where returns the name, or the address.
func (t *target) where() string {
	if t.name != "" {
		return t.name
	}
	return t.addr.String()
}

// detail is what records say of t.
func (t *target) detail() map[string]string {
	return map[string]string{"host": t.where(), "port": itoa(t.port)}
}

// object is what the policy is asked for.
func (t *target) object() policy.Object {
	o := policy.Object{Kind: policy.Host, ID: t.where(), Name: t.where(), Port: t.port}
	switch {
	case t.database != nil:
		o.Kind, o.ID = policy.Database, t.database.Name
	case t.host != nil:
		o.ID = t.host.Host
	}
	return o
}

// find returns what a connection to local, an address inside, is for.
func (a *attached) find(run *serving, local netip.AddrPort) *target {
	addr, port := local.Addr().Unmap(), int(local.Port())
	t := &target{run: run, inside: port, port: port}
	own := a.plan.names[addr]
	for i := range a.plan.egress.Databases {
		d := &a.plan.egress.Databases[i]
		if d.Port == port && (addr == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || own != "" && own == forwardedName(d)) {
			t.database = d
			t.name, t.addr, t.port = splitAddress(d.Address)
			return t
		}
	}
	if t.name = a.plan.names[addr]; t.name == "" {
		t.name = a.names.of(addr)
	}
	if t.name == "" {
		t.addr = addr
	}
	a.fill(t)
	return t
}

// fill finds the rules that are about t, whose name or address and inside port
// are set.
func (a *attached) fill(t *target) {
	for i := range a.plan.patterns {
		p := &a.plan.patterns[i]
		out, ok := p.port(t.inside)
		if !ok || !p.fits(t.name, t.addr) {
			continue
		}
		if t.host == nil {
			t.host, t.port = p.rule, out
		}
		if out == t.port {
			t.hosts = append(t.hosts, p.rule)
		}
	}
	if t.host == nil && a.plan.egress.Everything.Open(a.b.cfg.Now()) && slices.Contains(bawn.EverythingPorts(), t.inside) {
		t.host = &bawn.Host{Host: bawn.AnyHost, Ports: []int{t.inside}, Plaintext: t.inside == clearPort}
		t.hosts = []*bawn.Host{t.host}
	}
}

// splitAddress reads HOST:PORT; what it cannot read is nowhere.
func splitAddress(s string) (string, netip.Addr, int) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", netip.Addr{}, 0
	}
	port, err := parsePort(text)
	if err != nil {
		return "", netip.Addr{}, 0
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return "", addr, port
	}
	name, err := parseName(host)
	if err != nil {
		return "", netip.Addr{}, 0
	}
	return name, netip.Addr{}, port
}

// addrPort returns the address of one end of a TCP connection.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort() // in a network with IPv6 ranges the older kind comes mapped
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// manifestLine is the line of a manifest that would allow t.
func (t *target) manifestLine() string {
	line := "egress.hosts: - {host: " + t.where() + ", ports: [" + itoa(t.port) + "]"
	if t.method != "" {
		line += ", methods: [" + t.method + "], paths: [" + strconv.Quote(t.path) + "]"
	}
	return line + "}"
}
