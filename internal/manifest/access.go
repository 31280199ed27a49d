package manifest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// Access is "key", also when nothing is written, or another kind of access. At
// most one field is set.
type Access struct {
	Public *Public `json:"public,omitempty"`
	JWT    *JWT    `json:"jwt,omitempty"`
	MTLS   *MTLS   `json:"mtls,omitempty"`

	Webhook *Webhook `json:"webhook,omitempty"`
	SigV4   bool     `json:"-"` // written as a word
}

// MarshalJSON writes the word or the form with details.
func (a Access) MarshalJSON() ([]byte, error) {
	switch {
	case a.SigV4:
		return json.Marshal(bawn.AccessSigV4)
	case a == Access{}:
		return json.Marshal(bawn.AccessKey)
	}
	type plain Access
	return json.Marshal(plain(a))
}

// Public opens a route to everybody until the end of a day in UTC.
type Public struct {
	Reason string `json:"reason,omitempty"`
	Until  Date   `json:"until,omitzero"`
}

// JWT lets in who shows a token of an issuer; see [bawn.JWTAccess].
type JWT struct {
	Issuer   string              `json:"issuer,omitempty"`
	Audience string              `json:"audience,omitempty"`
	Claims   map[string][]string `json:"claims,omitempty"`
	CA       Authorities         `json:"ca,omitzero"`
}

// Webhook lets in who signs the body with a secret; see [bawn.WebhookAccess].
type Webhook struct {
	Kind      string   `json:"kind,omitempty"`
	Secret    string   `json:"secret,omitempty"`
	Header    string   `json:"header,omitempty"`
	Prefix    string   `json:"prefix,omitempty"`
	Encoding  string   `json:"encoding,omitempty"`
	Timestamp string   `json:"timestamp,omitempty"`
	ID        string   `json:"id,omitempty"`
	Window    Duration `json:"window,omitzero"`
}

func (w *Webhook) compile() *bawn.WebhookAccess {
	out := &bawn.WebhookAccess{
		Kind: w.Kind, Secret: w.Secret, Header: http.CanonicalHeaderKey(w.Header), Prefix: w.Prefix, Encoding: w.Encoding,
		Timestamp: http.CanonicalHeaderKey(w.Timestamp), ID: http.CanonicalHeaderKey(w.ID), Window: w.Window.std(),
	}
	switch w.Kind {
	case webhookGitHub:
		out.Header, out.Prefix, out.Encoding, out.ID = "X-Hub-Signature-256", "sha256=", "hex", "X-Github-Delivery"
	case webhookStripe:
		out.Header, out.Encoding = "Stripe-Signature", "hex"
	default:
		out.Encoding = or(w.Encoding, "hex")
	}
	if w.Kind == webhookStripe || w.Timestamp != "" {
		out.Window = or(out.Window, time.Duration(maxWindow))
	}
	return out
}

// The kinds of webhook.
const (
	webhookGitHub = "github"
	webhookStripe = "stripe"
	webhookHMAC   = "hmac"
)

func webhookFields() object[Webhook] {
	headerName := value[string]{map[string]any{"type": "string", "pattern": headerPattern}, header}
	return object[Webhook]{doc: "webhook", fields: []field[Webhook]{
		is("kind", "who sends it: github, stripe, or hmac for another that signs with HMAC-SHA256", oneOf("kind", []string{webhookGitHub, webhookStripe, webhookHMAC}), func(w *Webhook) *string { return &w.Kind }).must(),
		is("secret", "name of the secret that both sides have; it needs a grant, and never enters the sandbox", name("secret"), func(w *Webhook) *string { return &w.Secret }).must(),
		is("header", "of kind hmac: where the signature stands", headerName, func(w *Webhook) *string { return &w.Header }),
		is("prefix", "of kind hmac: text before the signature, such as sha256=", text("prefix", 1, maxPrefix), func(w *Webhook) *string { return &w.Prefix }),
		is("encoding", "of kind hmac: hex or base64; hex if left out", oneOf("encoding", []string{"hex", "base64"}), func(w *Webhook) *string { return &w.Encoding }),
		is("timestamp", "of kind hmac: the header of Unix seconds, signed with the body as TIMESTAMP.BODY", headerName, func(w *Webhook) *string { return &w.Timestamp }),
		is("id", "of kind hmac: the header of a delivery's id, which is accepted once", headerName, func(w *Webhook) *string { return &w.ID }),
		is("window", "by how much a timestamp may be off; 5m if left out", duration("window", minWindow, maxWindow), func(w *Webhook) *Duration { return &w.Window }),
	}, rules: func(w *Webhook, has func(string) bool, say func(string, error)) {
		if w.Kind != webhookHMAC {
			for _, name := range []string{"header", "prefix", "encoding", "timestamp", "id"} {
				if has(name) {
					say(name, &wrong{Message: name + " is for webhooks of kind hmac; " + w.Kind + " has its own"})
				}
			}
		} else if !has("header") {
			say("header", &wrong{Message: "a webhook of kind hmac needs the field \"header\": where the signature stands"})
		}
		if has("window") && w.Kind != webhookStripe && w.Timestamp == "" {
			say("window", &wrong{Message: "window is for webhooks that are signed with a timestamp"})
		}
	}}
}

func (a Access) compile() bawn.Access {
	out := bawn.Access{SigV4: a.SigV4}
	if p := a.Public; p != nil {
		out.Public = &bawn.PublicAccess{Reason: p.Reason, Until: p.Until.End()}
	}
	if j := a.JWT; j != nil {
		out.JWT = &bawn.JWTAccess{Issuer: j.Issuer, Audience: j.Audience, CA: j.CA.PEM}
		for name, values := range j.Claims {
			if out.JWT.Claims == nil {
				out.JWT.Claims = map[string][]string{}
			}
			out.JWT.Claims[name] = slices.Sorted(slices.Values(values))
		}
	}
	if a.MTLS != nil {
		out.MTLS = a.MTLS.compile()
	}
	if a.Webhook != nil {
		out.Webhook = a.Webhook.compile()
	}
	return out
}

// Bounds of what a route asks for.
const (
	maxIssuerURL   = 256
	maxAudience    = 256
	maxClaims      = 16
	maxClaimName   = 128
	maxClaimValues = 16 // of one claim
	maxClaimValue  = 256
	maxAuthorities = 32 << 10 // bytes of certificates
	maxPrefix      = 32
	minWindow      = Duration(time.Second)
	maxWindow      = Duration(5 * time.Minute) // for so long what is dated is remembered
)

func jwtFields() object[JWT] {
	return object[JWT]{doc: "jwt", fields: []field[JWT]{
		is("issuer", "the URL that the tokens have in iss; its keys are found by OpenID discovery", issuerURL(), func(j *JWT) *string { return &j.Issuer }).must(),
		is("audience", "what the tokens must have in aud", text("audience", 1, maxAudience), func(j *JWT) *string { return &j.Audience }).must(),
		is("claims", "names of claims to the value, or the values of which one, that each must have or hold", claims(), func(j *JWT) *map[string][]string { return &j.Claims }),
		is("ca", "the authorities that the issuer's server is trusted by: PEM, or its file relative to this one; the system's if left out", authorities("ca"), func(j *JWT) *Authorities { return &j.CA }),
	}}
}

// issuerURL is the URL of an issuer as tokens have it, character by character.
func issuerURL() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": "^https://", "maxLength": maxIssuerURL}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a URL", "!!str")
		if !ok {
			return "", false
		}
		u, err := url.Parse(s)
		if err != nil || len(s) > maxIssuerURL || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.ContainsAny(s, "?#") ||
			strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			d.report(n, at, fmt.Sprintf("issuer %s is not https://HOST[:PORT][/PATH] of at most %d characters, just as the tokens have it in iss", quote(s), maxIssuerURL), "")
			return "", false
		}
		return s, true
	}}
}

// claims reads names to a value or a list of values.
func claims() value[map[string][]string] {
	one := text("a claim's value", 1, maxClaimValue)
	many := listOf("a claim's values", maxClaimValues, one)
	schema := map[string]any{
		"type": "object", "maxProperties": maxClaims,
		"propertyNames":        map[string]any{"minLength": 1, "maxLength": maxClaimName},
		"additionalProperties": map[string]any{"oneOf": []any{one.schema, many.schema}},
	}
	return value[map[string][]string]{schema, func(d *decoder, n *yaml.Node, at string) (map[string][]string, bool) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("claims must be a mapping from names to values, not %s", kindName(n)), "")
			return nil, false
		}
		if len(n.Content)/2 > maxClaims {
			d.report(n, at, fmt.Sprintf("claims has %d entries, at most %d are allowed", len(n.Content)/2, maxClaims), "")
			return nil, false
		}
		all, good := map[string][]string{}, true
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			_, again := all[key.Value]
			if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Value == "" || len(key.Value) > maxClaimName || again {
				d.report(key, here, fmt.Sprintf("claim %s is not a name of at most %d bytes, given once", quote(key.Value), maxClaimName), "")
				good = false
				continue
			}
			var values []string
			ok := false
			if val.Kind == yaml.SequenceNode {
				values, ok = many.read(d, val, here)
				if ok && len(values) == 0 {
					d.report(val, here, "the claim has no value that it could have", "")
					ok = false
				}
			} else {
				var v string
				v, ok = one.read(d, val, here)
				values = []string{v}
			}
			all[key.Value], good = values, good && ok
		}
		return all, good
	}}
}

// accessWords are the kinds that need no details.
func accessWords() []string { return []string{bawn.AccessKey, bawn.AccessSigV4} }

func access() value[Access] {
	public := object[Public]{doc: "public access", fields: []field[Public]{
		is("reason", "why everybody may call it", text("reason", 1, maxReason), func(p *Public) *string { return &p.Reason }).must(),
		is("until", "the last day, in UTC, on which everybody may", date("until"), func(p *Public) *Date { return &p.Until }).must(),
	}}
	o := object[Access]{doc: "access", fields: []field[Access]{
		pointer("public", "open to everybody until a day, for a reason", public, func(a *Access) **Public { return &a.Public }),
		pointer("jwt", "for who shows a token of an issuer, as Authorization: Bearer TOKEN", jwtFields(), func(a *Access) **JWT { return &a.JWT }),
		pointer("mtls", "for who shows a client certificate in the TLS handshake", mtlsFields(), func(a *Access) **MTLS { return &a.MTLS }),
		pointer("webhook", "for who signs the body with a secret", webhookFields(), func(a *Access) **Webhook { return &a.Webhook }),
	}}
	kinds := append(accessWords(), fieldNames(o)...)
	schema := o.schema()
	schema["minProperties"], schema["maxProperties"] = 1, 1
	return value[Access]{map[string]any{"oneOf": []any{map[string]any{"enum": accessWords()}, schema}}, func(d *decoder, n *yaml.Node, at string) (Access, bool) {
		var a Access
		if n.Kind == yaml.MappingNode {
			ok := o.read(d, n, at, &a)
			if ok && len(n.Content) != 2 {
				d.report(n, at, "access is one of "+list(kinds)+", and no more than one", "")
				ok = false
			}
			return a, ok
		}
		said := ""
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
			said = n.Value
		}
		switch said {
		case bawn.AccessKey:
			return a, true
		case bawn.AccessSigV4:
			a.SigV4 = true
			return a, true
		case bawn.AccessPublic:
			d.report(n, at, "public access needs a reason and an end", "{public: {reason: why everybody may call it, until: YEAR-MONTH-DAY}}")
			return a, false
		}
		suggestion := ""
		if n.Kind == yaml.ScalarNode {
			suggestion = nearest(n.Value, kinds)
		}
		d.report(n, at, fmt.Sprintf("access must be one of %s, the last %d with details, not %s", list(kinds), len(kinds)-len(accessWords()), kindName(n)), suggestion)
		return a, false
	}}
}
