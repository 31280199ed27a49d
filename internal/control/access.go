package control

import (
	"encoding/pem"
	"fmt"
	"slices"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// accessText says who may use a route, as a change shows it.
func accessText(r *bawn.Route) string {
	if p := r.Access.Public; p != nil {
		return fmt.Sprintf("public until %s: %s", lastDay(p), p.Reason)
	}
	return r.Access.String()
}

// covered reports whether one of the old routes let through whatever r lets
// through.
func covered(r *bawn.Route, old []bawn.Route) bool {
	for _, h := range hostsOf(r) {
		if !coveredOn(h, r, old) {
			return false
		}
	}
	return true
}

// coveredOn is covered on one of the hosts of r.
func coveredOn(host string, r *bawn.Route, old []bawn.Route) bool {
	return slices.ContainsFunc(old, func(o bawn.Route) bool {
		if !slices.Contains(hostsOf(&o), host) {
			return false
		}
		if o.Method != r.Method && o.Method != "ANY" || manifest.PathShape(o.Path) != manifest.PathShape(r.Path) {
			return false
		}
		return admits(&o.Access, &r.Access)
	})
}

// admits reports whether a lets in everybody whom b lets in. What cannot be
// compared is another door: whoever gets in by it did not before.
func admits(a, b *bawn.Access) bool {
	was, is := a.Kind(), b.Kind()
	switch is {
	case bawn.AccessKey: // what a public route becomes by itself
		return was == bawn.AccessKey || was == bawn.AccessPublic
	case bawn.AccessPublic:
		return was == bawn.AccessPublic && !b.Public.Until.After(a.Public.Until)
	case bawn.AccessSigV4: // it is signed with a key
		return was == bawn.AccessKey || was == bawn.AccessPublic || was == bawn.AccessSigV4
	case bawn.AccessWebhook:
		if was != bawn.AccessWebhook || b.Webhook.Window > a.Webhook.Window {
			return false
		}
		same := *b.Webhook
		same.Window = a.Webhook.Window
		return same == *a.Webhook
	case bawn.AccessMTLS:
		return was == bawn.AccessMTLS && fewer(a.MTLS, b.MTLS)
	case bawn.AccessJWT:
		return was == bawn.AccessJWT && a.JWT.Issuer == b.JWT.Issuer && a.JWT.Audience == b.JWT.Audience && a.JWT.CA == b.JWT.CA && asksMore(b.JWT.Claims, a.JWT.Claims)
	}
	return false
}

// fewer reports whether b lets in nobody whom a does not: it has no authority and no
// subject that a has not.
func fewer(a, b *bawn.MTLSAccess) bool {
	if (a.CA == "") != (b.CA == "") {
		return false
	}
	had := authoritiesIn(a.CA)
	for ca := range authoritiesIn(b.CA) {
		if !had[ca] {
			return false
		}
	}
	return len(a.Subjects) == 0 || len(b.Subjects) > 0 &&
		!slices.ContainsFunc(b.Subjects, func(s string) bool { return !slices.Contains(a.Subjects, s) })
}

// authoritiesIn returns the certificates of a PEM document, as their bytes.
func authoritiesIn(doc string) map[string]bool {
	all := map[string]bool{}
	for rest := []byte(doc); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return all
		}
		all[string(b.Bytes)] = true
	}
}

// asksMore reports whether whoever has the claims of b has those of a.
func asksMore(b, a map[string][]string) bool {
	for name, values := range a {
		if len(b[name]) == 0 || slices.ContainsFunc(b[name], func(v string) bool { return !slices.Contains(values, v) }) {
			return false
		}
	}
	return true
}
