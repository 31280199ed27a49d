package openapi

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// access writes who may use a route; empty asks for a key.
func (im *importer) access(op map[string]any, at string) string {
	wanted, ok := op["security"].([]any)
	if !ok {
		wanted, _ = im.doc["security"].([]any)
	}
	open := len(wanted) == 0
	for _, w := range wanted {
		if m, _ := w.(map[string]any); len(m) == 0 {
			open = true
		}
	}
	if open {
		if im.Public == nil {
			im.note("%s asks for a key, and is open to everybody in the document: --public-reason and --public-until open it until a day", at)
			return ""
		}
		return "{public: {reason: " + strconv.Quote(im.Public.Reason) + ", until: " + im.Public.Until.String() + "}}"
	}
	best := ""
	var asked []string
	for _, w := range wanted {
		m, _ := w.(map[string]any)
		names := slices.Sorted(maps.Keys(m))
		if len(names) != 1 {
			im.note("%s: that %s are asked for at once is left out", at, cut(strings.Join(names, " and ")))
			asked = append(asked, cut(strings.Join(names, " and ")))
			continue
		}
		text, what := im.scheme(names[0])
		asked = append(asked, what)
		if text != "" {
			best = cmp.Or(best, text)
			if scopes, _ := m[names[0]].([]any); len(scopes) > 0 {
				im.note("%s: the scopes of %s are not asked for; access.jwt.claims can say what a token must have", at, cut(names[0]))
			}
		}
	}
	if best == "" {
		im.note("%s asks for a key of Bawn's (Authorization: Bearer bawn_…), in the document for %s", at, strings.Join(asked, " or "))
	} else if len(asked) > 1 {
		im.note("%s: of %s only the first that can be asked for is", at, strings.Join(asked, " or "))
	}
	return best
}

// scheme writes the access that a security scheme comes to; empty if it is a key.
// what names it for a note.
func (im *importer) scheme(name string) (access, what string) {
	components, _ := im.doc["components"].(map[string]any)
	schemes, _ := components["securitySchemes"].(map[string]any)
	s, err := im.deref(schemes[name])
	if err != nil || s == nil {
		return "", cut(name)
	}
	issuer := ""
	switch what = text(s["type"]); what {
	case "openIdConnect":
		issuer, _ = strings.CutSuffix(text(s["openIdConnectUrl"]), "/.well-known/openid-configuration")
	case "oauth2":
		issuer = im.Issuer
	case "http":
		scheme := strings.ToLower(text(s["scheme"]))
		what = "http " + cut(scheme)
		if scheme == "bearer" && strings.EqualFold(text(s["bearerFormat"]), "jwt") {
			issuer = im.Issuer
		}
	case "apiKey":
		return "", "an API key in the " + cut(text(s["in"])) + " " + strconv.Quote(cut(text(s["name"])))
	case "mutualTLS":
		// No document says whose certificates, and without that mtls lets in all that the
		// tenant's issuers vouch for, whatever their roles.
		return "", what + " (access.mtls says whose certificates are taken)"
	}
	switch {
	case issuer == "" && (what == "oauth2" || what == "http bearer"):
		what += " (--issuer and --audience say whose tokens they are)"
	case issuer != "" && !strings.HasPrefix(issuer, "https://"):
		what += " (whose issuer is not at https)"
	case issuer != "" && im.Audience == "":
		what += " (--audience says for whom its tokens are)"
	case issuer != "":
		return "{jwt: {issuer: " + strconv.Quote(issuer) + ", audience: " + strconv.Quote(im.Audience) + "}}", what
	}
	return "", what
}
