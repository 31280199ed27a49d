package trigger

import (
	"net/http"
	"net/netip"
	"strings"

	"bawn.dev/bawn"
)

const maxForwarded = 64 // addresses of a request's way that are looked at, nearest first

// Proxies are the addresses whose word is believed on where a request came from.
type Proxies []netip.Prefix

// ParseProxies reads addresses and CIDRs. Ranges that hold all of the internet are
// refused: whoever is believed can say that he is anybody.
func ParseProxies(list []string) (Proxies, error) {
	var p Proxies
	for _, s := range list {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, bawn.Errorf(bawn.CodeInvalid, "proxy", "--trusted-proxy %.80q is neither an address nor a CIDR", s).WithFix("give one such as 10.0.0.5 or 10.0.0.0/24")
			}
			prefix = netip.PrefixFrom(a, a.BitLen())
		}
		if prefix.Bits() == 0 {
			return nil, bawn.Errorf(bawn.CodeInvalid, "proxy", "--trusted-proxy %s would believe everybody", s).WithFix("name the proxies alone, such as 10.0.0.5 or 10.0.0.0/24")
		}
		p = append(p, prefix.Masked())
	}
	return p, nil
}

// Trusts reports whether a is one of the proxies.
func (p Proxies) Trusts(a netip.Addr) bool {
	a = a.Unmap()
	for _, prefix := range p {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// from is where a request came from.
type from struct {
	source string // address without port
	scheme string // https, or http if a proxy took it without TLS
}

// client returns where a request came from: the address it was sent from or, if
// that is a proxy's, the last one on its way that is none. What others say of that
// is not looked at; control D9.
func (p Proxies) client(r *http.Request) (from, error) {
	f := from{source: source(r), scheme: "https"}
	if len(p) == 0 {
		return f, nil
	}
	a, err := netip.ParseAddr(f.source)
	if err != nil || !p.Trusts(a) {
		return f, nil
	}
	plain, newer := r.Header["X-Forwarded-For"], r.Header["Forwarded"]
	source, scheme := f.source, ""
	if len(plain) > 0 {
		source = p.last(f.source, plain, address)
	}
	if len(newer) > 0 {
		at := p.last(f.source, newer, forwardedFor)
		// A proxy that writes the one and lets the other through would let callers
		// choose who they are.
		if len(plain) > 0 && at != source {
			return f, bawn.Errorf(bawn.CodeInvalid, "http", "Forwarded and X-Forwarded-For name different callers").WithFix("send the request without them")
		}
		source = at
		scheme = parameter(lastOf(newer), "proto")
	}
	if list := r.Header["X-Forwarded-Proto"]; len(list) > 0 {
		scheme = strings.TrimSpace(lastOf(list))
	}
	if strings.EqualFold(scheme, "http") {
		f.scheme = "http"
	}
	f.source = source
	return f, nil
}

// lastOf returns the last entry of lists that are joined by commas.
func lastOf(lines []string) string {
	last := lines[len(lines)-1]
	return last[strings.LastIndexByte(last, ',')+1:]
}

// last goes back the way that lists of addresses tell, and returns the first that
// is no proxy's; or the last proxy, if one says what is no address.
func (p Proxies) last(nearest string, lines []string, read func(string) (netip.Addr, bool)) string {
	seen := 0
	for i := len(lines) - 1; i >= 0; i-- {
		for rest := lines[i]; rest != "" && seen < maxForwarded; seen++ {
			at := strings.LastIndexByte(rest, ',')
			entry := rest[at+1:]
			rest = rest[:max(at, 0)]
			a, ok := read(entry)
			if !ok {
				return nearest
			}
			if nearest = a.String(); !p.Trusts(a) {
				return nearest
			}
		}
	}
	return nearest
}

// address reads an address, with or without a port.
func address(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return a.Unmap().WithZone(""), err == nil
}

// forwardedFor reads the for= of an element of Forwarded, RFC 7239.
func forwardedFor(s string) (netip.Addr, bool) { return address(parameter(s, "for")) }

func parameter(element, name string) string {
	for pair := range strings.SplitSeq(element, ";") {
		k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(k, name) {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}
