package bawn

import (
	"net/netip"
	"strings"
	"time"
)

// Domain is a host name that one tenant's routes may answer on. An operator gives
// it: whoever runs the installation decides what its addresses are called.
type Domain struct {
	Name      string    `json:"name" doc:"in lower case, without a port; never a wildcard"`
	Tenant    string    `json:"tenant"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
}

// Bounds of a [Domain]'s name, as DNS has them.
const (
	MaxDomainBytes = 253
	maxDNSLabel    = 63
)

// CheckDomain reports whether name may be a [Domain]'s: at least two names of
// letters in lower case, digits and hyphens, joined by dots. An address is none,
// and a name beyond ASCII stands in its xn-- form.
func CheckDomain(name string) error {
	bad := func(why string) error {
		fix := "write it as shop.example.com"
		if lower := strings.ToLower(strings.TrimSuffix(name, ".")); lower != name && CheckDomain(lower) == nil {
			fix = "write it as " + lower
		}
		return Errorf(CodeInvalid, "domain", "%.80q is not a domain: %s", name, why).WithFix("%s", fix)
	}
	if len(name) > MaxDomainBytes {
		return Errorf(CodeInvalid, "domain", "a domain has at most %d bytes, this has %d", MaxDomainBytes, len(name)).WithFix("write it as shop.example.com")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return bad("it is an address")
	}
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return bad("it has no dot")
	}
	for _, l := range labels {
		switch {
		case l == "":
			return bad("a part of it is empty")
		case len(l) > maxDNSLabel:
			return bad("a part of it is longer than 63 bytes")
		case l[0] == '-' || l[len(l)-1] == '-':
			return bad("a part of it begins or ends with a hyphen")
		case strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			return bad("it has a character other than a-z, 0-9 and -")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return bad("its last part is a number")
	}
	return nil
}
