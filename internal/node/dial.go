package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The ranges that are reachable from no public network, beside those that package
// netip knows: shared address space, protocol assignments, documentation,
// benchmarks, 6to4 relays, NAT64 and other ways to write an IPv4 address as IPv6.
const notPublic = "0.0.0.0/8 100.64.0.0/10 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 " +
	"64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16"

const (
	dialTimeout = 5 * time.Second
	maxDialed   = 4 // addresses of one name that are tried
)

// dialIssuer connects to an issuer's server. The name is resolved once, and the
// connection goes to an address that was looked at: what an administrator of a
// tenant writes into an issuer's settings reaches nothing of the host or of the
// network that it is in, unless an operator has allowed private; control C3.
func dialIssuer(ctx context.Context, network, addr string, private bool) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	errs := []error{fmt.Errorf("%s has no address", host)}
	for _, ip := range addrs[:min(len(addrs), maxDialed)] {
		if ip = ip.Unmap(); !private && !public(ip) {
			errs = append(errs, fmt.Errorf("%s is at %s, which is not an address of the public internet; an operator can allow it", host, ip))
			continue
		}
		c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, net.JoinHostPort(ip.String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs[min(1, len(errs)-1):]...)
}

// public reports whether ip is an address of the public internet.
func public(ip netip.Addr) bool {
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.Zone() != "" {
		return false
	}
	return !slices.ContainsFunc(ranges(notPublic), func(p netip.Prefix) bool { return p.Contains(ip) })
}

func ranges(list string) []netip.Prefix {
	var all []netip.Prefix
	for field := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(field))
	}
	return all
}
