package trigger

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// The values of headers that are the same in every answer. They are shared by all
// of them, and never changed.
type shared struct{ security []header }

type header struct {
	name  string
	value []string
}

func newShared() shared {
	var s shared
	for name, value := range bawn.SecurityHeaders() {
		s.security = append(s.security, header{name, []string{value}})
	}
	return s
}

const hsts = "Strict-Transport-Security"

// dress gives every answer of a route, refusals too, what browsers should know: the
// security headers, the manifest's own, and which other origins may read it.
func (t *httpTrigger) dress(h http.Header, route *bawn.Route, r *http.Request, scheme string) {
	for _, s := range t.shared.security {
		if s.name != hsts || scheme == "https" { // RFC 6797, 7.2
			h[s.name] = s.value
		}
	}
	for name, value := range route.Headers {
		if value == "" {
			delete(h, name)
		} else {
			h[name] = []string{value}
		}
	}
	if route.CORS != nil {
		allowOrigin(h, route.CORS, r)
	}
}

// settled reports whether a header of an answer is the manifest's to say, and not
// the function's. name is in canonical form.
func settled(route *bawn.Route, name string) bool {
	if route == nil {
		return false
	}
	return route.Headers[name] != "" || route.CORS != nil && strings.HasPrefix(name, "Access-Control-")
}

// allowOrigin says whether the origin that asks may read the answer.
func allowOrigin(h http.Header, c *bawn.CORS, r *http.Request) bool {
	if len(c.Origins) == 1 && c.Origins[0] == "*" {
		h["Access-Control-Allow-Origin"] = []string{"*"}
	} else {
		h["Vary"] = append(slices.Clone(h["Vary"]), "Origin") // also of an answer that says nothing of it
		origin := r.Header["Origin"]
		if len(origin) != 1 || !slices.Contains(c.Origins, origin[0]) {
			return false
		}
		h["Access-Control-Allow-Origin"] = []string{origin[0]}
		if c.Credentials {
			h["Access-Control-Allow-Credentials"] = []string{"true"}
		}
	}
	if len(c.Expose) > 0 {
		h["Access-Control-Expose-Headers"] = []string{strings.Join(c.Expose, ", ")}
	}
	return true
}

// preflight answers the question of a browser whether a page of another origin may
// make a request, if that is for Bawn to answer: where the manifest says which
// pages may. No function is asked, and no credential: browsers send none.
func (t *httpTrigger) preflight(w http.ResponseWriter, r *http.Request, scheme string) bool {
	method := r.Header["Access-Control-Request-Method"]
	if r.Method != http.MethodOptions || len(method) != 1 || len(r.Header["Origin"]) != 1 {
		return false
	}
	rawPath, _, _ := strings.Cut(r.RequestURI, "?")
	m, err := t.cfg.Invoker.Match(r.Host, method[0], rawPath)
	if err != nil || m.Route.CORS == nil {
		return false
	}
	h, c := w.Header(), m.Route.CORS
	t.dress(h, m.Route, r, scheme)
	h["Vary"] = []string{"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}
	if h["Access-Control-Allow-Origin"] != nil && allowsHeaders(c, r.Header["Access-Control-Request-Headers"]) {
		h["Access-Control-Allow-Methods"] = method // a route takes it, so it is a method
		if len(c.Headers) > 0 {
			h["Access-Control-Allow-Headers"] = []string{strings.Join(c.Headers, ", ")}
		}
		if c.MaxAge > 0 {
			h["Access-Control-Max-Age"] = []string{strconv.FormatInt(int64(c.MaxAge/time.Second), 10)}
		}
	} else {
		for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
			delete(h, name)
		}
	}
	delete(h, "Access-Control-Expose-Headers") // of answers alone
	w.WriteHeader(http.StatusNoContent)
	return true
}

func allowsHeaders(c *bawn.CORS, lines []string) bool {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			if name != "" && !slices.ContainsFunc(c.Headers, func(h string) bool { return strings.EqualFold(h, name) }) {
				return false
			}
		}
	}
	return true
}
