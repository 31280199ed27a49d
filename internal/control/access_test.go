package control

import (
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// TestA5WideningOfAccess: what lets in anybody whom the old access did not widens,
// and so needs approval. Each pair is told in both directions.
func TestA5WideningOfAccess(t *testing.T) {
	day := func(d int) time.Time { return time.Date(2030, 1, d, 0, 0, 0, 0, time.UTC) }
	block := func(s string) string {
		return "-----BEGIN CERTIFICATE-----\n" + s + "\n-----END CERTIFICATE-----\n"
	}
	key, sig := bawn.Access{}, bawn.Access{SigV4: true}
	public := func(d int) bawn.Access {
		return bawn.Access{Public: &bawn.PublicAccess{Reason: "x", Until: day(d)}}
	}
	jwt := func(issuer, audience, ca string, claims map[string][]string) bawn.Access {
		return bawn.Access{JWT: &bawn.JWTAccess{Issuer: issuer, Audience: audience, CA: ca, Claims: claims}}
	}
	mtls := func(ca string, subjects ...string) bawn.Access {
		return bawn.Access{MTLS: &bawn.MTLSAccess{CA: ca, Subjects: subjects}}
	}
	hook := func(change func(*bawn.WebhookAccess)) bawn.Access {
		w := &bawn.WebhookAccess{Kind: "hmac", Secret: "s", Header: "X-Sign", Encoding: "hex", Timestamp: "X-Time", Window: time.Minute}
		if change != nil {
			change(w)
		}
		return bawn.Access{Webhook: w}
	}
	a, b := block("AAAA"), block("BBBB")
	gold := map[string][]string{"plan": {"gold"}}
	for _, test := range []struct {
		name         string
		old, new     bawn.Access
		widens, back bool // from old to new, and from new to old
	}{
		{"the same key", key, key, false, false},
		{"a key, signed", key, sig, false, true},
		{"public to a key", public(2), key, false, true},
		{"public for longer", public(2), public(3), true, false},
		{"a key to a token", key, jwt("https://a", "x", "", nil), true, true},
		{"a token of another issuer", jwt("https://a", "x", "", nil), jwt("https://b", "x", "", nil), true, true},
		{"another audience", jwt("https://a", "x", "", nil), jwt("https://a", "y", "", nil), true, true},
		{"another authority of the issuer's server", jwt("https://a", "x", "", nil), jwt("https://a", "x", a, nil), true, true},
		{"a claim more", jwt("https://a", "x", "", nil), jwt("https://a", "x", "", gold), false, true},
		{"a claim of more values", jwt("https://a", "x", "", gold), jwt("https://a", "x", "", map[string][]string{"plan": {"gold", "tin"}}), true, false},
		{"a key to a certificate", key, mtls(a), true, true},
		{"a token to a certificate", jwt("https://a", "x", "", nil), mtls(a), true, true},
		{"another authority", mtls(a), mtls(b), true, true},
		{"one authority more", mtls(a), mtls(b + a), true, false},
		{"the tenant's own for the route's", mtls(""), mtls(a), true, true},
		{"a name for any", mtls(a, "dns:x"), mtls(a), true, false},
		{"a name more", mtls(a, "dns:x"), mtls(a, "dns:x", "dns:y"), true, false},
		{"another name", mtls(a, "dns:x"), mtls(a, "dns:y"), true, true},
		{"the same, written otherwise", mtls(a, "dns:x"), mtls(strings.ReplaceAll(a, "\n", "\r\n"), "dns:x"), false, false},
		{"a certificate to a webhook", mtls(a), hook(nil), true, true},
		{"another secret", hook(nil), hook(func(w *bawn.WebhookAccess) { w.Secret = "t" }), true, true},
		{"another header", hook(nil), hook(func(w *bawn.WebhookAccess) { w.Header = "X-Other" }), true, true},
		{"no time", hook(nil), hook(func(w *bawn.WebhookAccess) { w.Timestamp = "" }), true, true},
		{"a longer window", hook(nil), hook(func(w *bawn.WebhookAccess) { w.Window = 2 * time.Minute }), true, false},
	} {
		if got := !admits(&test.old, &test.new); got != test.widens {
			t.Errorf("%s: widens: %v", test.name, got)
		}
		if got := !admits(&test.new, &test.old); got != test.back {
			t.Errorf("%s, and back: widens: %v", test.name, got)
		}
	}
}
