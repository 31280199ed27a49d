package manifest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

const (
	maxHosts         = 20 // of a route
	maxOrigins       = 50
	maxCORSHeaders   = 50
	maxCORSAge       = Duration(24 * 60 * 60 * 1e9) // what browsers keep at most
	maxAnswerHeaders = 32                           // that a route sets
	maxHeaderValue   = 2048
	hostPattern      = `^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	originPattern    = `^(\*|https?://[a-z0-9.:\[\]-]+)$`
	tokenPattern     = "^[0-9A-Za-z!#$%&'*+.^_`|~-]{1,128}$"
)

// Web is what a route has for browsers, and the domains that it answers on.
type Web struct {
	Hosts   []string          `json:"hosts,omitempty"`
	CORS    *CORS             `json:"cors,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
}

// CORS says which pages of other origins may call a route.
type CORS struct {
	Origins     []string `json:"origins,omitempty"`
	Headers     []string `json:"headers,omitempty"`
	Expose      []string `json:"expose,omitempty"`
	Credentials bool     `json:"credentials,omitzero"`
	MaxAge      Duration `json:"maxAge,omitzero"`
}

// places are where the route is, as a key: its path's shape on each of its hosts.
func (r *Route) places() []string {
	if len(r.Hosts) == 0 {
		return []string{PathShape(r.Path)}
	}
	var all []string
	for _, h := range r.Hosts {
		all = append(all, h+PathShape(r.Path))
	}
	return all
}

func webFields() []field[Route] {
	cors := object[CORS]{
		doc: "cors",
		fields: []field[CORS]{
			is("origins", "whose pages may call it, such as https://shop.example.com; * alone for all", listOf("origins", maxOrigins, corsOrigin()), func(c *CORS) *[]string { return &c.Origins }).must(),
			is("headers", "of requests that pages may set", listOf("headers", maxCORSHeaders, token("header")), func(c *CORS) *[]string { return &c.Headers }),
			is("expose", "headers of answers that pages may read", listOf("expose", maxCORSHeaders, token("header")), func(c *CORS) *[]string { return &c.Expose }),
			is("credentials", "whether cookies and Authorization may come along; false if left out", boolean("credentials"), func(c *CORS) *bool { return &c.Credentials }),
			is("maxAge", "for how long a browser may keep the answer to its question; it asks each time if left out", duration("maxAge", 1e9, maxCORSAge), func(c *CORS) *Duration { return &c.MaxAge }),
		},
		rules: func(c *CORS, has func(string) bool, say func(string, error)) {
			all := slices.Contains(c.Origins, "*")
			switch {
			case len(c.Origins) == 0:
				say("origins", &wrong{Message: "origins names none"})
			case all && len(c.Origins) > 1:
				say("origins", &wrong{"* is all origins, so no other stands beside it", `["*"]`})
			case all && c.Credentials:
				say("credentials", &wrong{Message: "credentials do not go with the origin *: name the origins"})
			}
			for name, list := range map[string][]string{"origins": c.Origins, "headers": lower(c.Headers), "expose": lower(c.Expose)} {
				if s := twice(list); s != "" {
					say(name, &wrong{Message: fmt.Sprintf("%s names %s a second time", name, quote(s))})
				}
			}
		},
	}
	hosts := listOf("hosts", maxHosts, routeHost())
	readHosts := hosts.read
	hosts.read = func(d *decoder, n *yaml.Node, at string) ([]string, bool) {
		list, ok := readHosts(d, n, at)
		if s := twice(list); ok && s != "" {
			d.report(n, at, fmt.Sprintf("hosts names %s a second time", quote(s)), "")
			return nil, false
		}
		return list, ok
	}
	return []field[Route]{
		is("hosts", "domains of the tenant that it answers on, which an operator gives (bawn domain add); the node's own names if left out", hosts, func(r *Route) *[]string { return &r.Hosts }),
		{name: "cors", doc: "which pages of other origins may call it from a browser; if left out none may, unless the function itself says so", schema: cors.schema(), read: func(d *decoder, n *yaml.Node, at string, r *Route) {
			var c CORS
			if cors.read(d, n, at, &c) {
				r.CORS = &c
			}
		}},
		is("headers", "of every answer, in place of Bawn's security headers and of the function's own; an empty value leaves Bawn's out", answerHeaders(), func(r *Route) *map[string]string { return &r.Headers }),
	}
}

func lower(list []string) []string {
	all := make([]string, len(list))
	for i, s := range list {
		all[i] = strings.ToLower(s)
	}
	return all
}

// routeHost is a domain.
func routeHost() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": hostPattern, "maxLength": bawn.MaxDomainBytes}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a domain such as shop.example.com", "!!str")
		if !ok {
			return "", false
		}
		if err := bawn.CheckDomain(s); err != nil {
			better := strings.ToLower(strings.TrimSuffix(s, "."))
			if u, perr := url.Parse(better); perr == nil && u.Host != "" {
				better = u.Hostname()
			}
			if better == s || bawn.CheckDomain(better) != nil {
				better = ""
			}
			d.reject(n, at, &wrong{messageOf(err), better})
			return "", false
		}
		return s, true
	}}
}

// corsOrigin is an origin as browsers write it, or *.
func corsOrigin() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": originPattern, "maxLength": 300}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "an origin such as https://shop.example.com", "!!str")
		if !ok {
			return "", false
		}
		if s == "*" {
			return s, true
		}
		u, err := url.Parse(s)
		if err != nil || len(s) > 300 || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || strings.ContainsAny(u.Host, "*_%") {
			d.reject(n, at, &wrong{fmt.Sprintf("%s is not an origin: want scheme and host, such as https://shop.example.com", quote(s)), ""})
			return "", false
		}
		plain := strings.ToLower(u.Scheme + "://" + u.Host)
		if (u.Scheme == "https" && u.Port() == "443") || (u.Scheme == "http" && u.Port() == "80") {
			plain = strings.TrimSuffix(plain, ":"+u.Port())
		}
		if s != plain { // a browser never writes it so
			d.reject(n, at, &wrong{fmt.Sprintf("%s is not an origin as browsers write it", quote(s)), plain})
			return "", false
		}
		return s, true
	}}
}

func isToken(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

// token is a header's name, kept in its usual form.
func token(what string) value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": tokenPattern}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "the name of a "+what, "!!str")
		if !ok {
			return "", false
		}
		if !isToken(s) || s == "*" {
			d.report(n, at, fmt.Sprintf("%s is not the name of a %s", quote(s), what), "")
			return "", false
		}
		return http.CanonicalHeaderKey(s), true
	}}
}

// notSettled are headers of answers that a manifest does not set: they tell of the
// answer itself, or there is another field for them.
func notSettled(name string) string {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Content-Length", "Content-Type", "Content-Encoding", "Date", "Location", "Set-Cookie", "Vary", "Www-Authenticate", "Retry-After", "X-Request-Id":
		return "it tells of the answer itself"
	}
	switch {
	case strings.HasPrefix(name, "X-Bawn-"), strings.HasPrefix(name, "Ratelimit"):
		return "it is Bawn's own"
	case strings.HasPrefix(name, "Access-Control-"):
		return "cors says it"
	}
	return ""
}

// answerHeaders reads names of headers to values.
func answerHeaders() value[map[string]string] {
	schema := map[string]any{
		"type": "object", "maxProperties": maxAnswerHeaders, "propertyNames": map[string]any{"pattern": tokenPattern},
		"additionalProperties": map[string]any{"type": "string", "maxLength": maxHeaderValue},
	}
	return value[map[string]string]{schema, func(d *decoder, n *yaml.Node, at string) (map[string]string, bool) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("headers must be a mapping from names to values, not %s", kindName(n)), "")
			return nil, false
		}
		if len(n.Content)/2 > maxAnswerHeaders {
			d.report(n, at, fmt.Sprintf("headers has %d entries, at most %d are allowed", len(n.Content)/2, maxAnswerHeaders), "")
			return nil, false
		}
		all, good := map[string]string{}, true
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			name := http.CanonicalHeaderKey(key.Value)
			bad := ""
			_, again := all[name]
			switch {
			case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || !isToken(key.Value):
				bad = quote(key.Value) + " is not the name of a header"
			case again:
				bad = "the header " + name + " is given a second time"
			case notSettled(name) != "":
				bad = "the header " + name + " cannot be set here: " + notSettled(name)
			}
			if bad != "" {
				d.report(key, here, bad, "")
				good = false
				continue
			}
			v, ok := scalar(d, val, here, "text", "!!str")
			if ok && (len(v) > maxHeaderValue || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) || strings.TrimSpace(v) != v) {
				d.report(val, here, fmt.Sprintf("the value of %s is not one of a header: printable ASCII, at most %d bytes, no blanks around it", name, maxHeaderValue), "")
				ok = false
			}
			all[name], good = v, good && ok
		}
		return all, good
	}}
}

// compile fills in r.
func (w *Web) compile(r *bawn.Route) {
	if len(w.Hosts) > 0 {
		r.Hosts = slices.Sorted(slices.Values(w.Hosts))
	}
	if len(w.Headers) > 0 {
		r.Headers = w.Headers
	}
	if c := w.CORS; c != nil {
		r.CORS = &bawn.CORS{
			Origins: slices.Sorted(slices.Values(c.Origins)), Headers: slices.Sorted(slices.Values(c.Headers)), Expose: slices.Sorted(slices.Values(c.Expose)),
			Credentials: c.Credentials, MaxAge: c.MaxAge.std(),
		}
	}
}
