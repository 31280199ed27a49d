package identity

import (
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"bawn.dev/bawn"
)

// Workload returns the SPIFFE id of a version of a function: it is derived from
// where the version is and nothing else, so no version can have that of another,
// and no two can share one; control A1.
func Workload(trustDomain string, v *bawn.Version) (string, error) {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInvalid, "identity.workload", "%.80q is not a SPIFFE trust domain", trustDomain).
			WithFix("use a name such as bawn.example.org")
	}
	id, err := spiffeid.FromSegments(domain, "tenant", v.Tenant, "function", v.Function, "version", strconv.Itoa(v.Number))
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInternal, "identity.workload", "the version has no SPIFFE id")
	}
	return id.String(), nil
}
