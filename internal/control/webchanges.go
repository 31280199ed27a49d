package control

import (
	"maps"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// webChanges lists what is different for browsers in the route b, which was a, or
// nil if there was none. More origins, and a weaker security header, widen.
func webChanges(a, b *bawn.Route, add func(field, before, after string, widens bool)) {
	if a == nil {
		a = &bawn.Route{}
	}
	at := "ingress.http[" + b.String() + "]"
	add(at+".cors", corsText(a.CORS), corsText(b.CORS), !sameCORS(b.CORS, a.CORS))
	names := map[string]bool{}
	for n := range a.Headers {
		names[n] = true
	}
	for n := range b.Headers {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		was, had := a.Headers[n]
		is, has := b.Headers[n]
		// Whether another value protects as well is for a person to say.
		add(at+".headers["+n+"]", headerText(was, had), headerText(is, has), has && bawn.SecurityHeader(n))
	}
}

func headerText(value string, set bool) string {
	switch {
	case !set:
		return ""
	case value == "":
		return "left out"
	}
	return cut(value)
}

func corsText(c *bawn.CORS) string {
	if c == nil {
		return ""
	}
	parts := []string{"origins " + strings.Join(c.Origins, " ")}
	if len(c.Headers) > 0 {
		parts = append(parts, "headers "+strings.Join(c.Headers, " "))
	}
	if len(c.Expose) > 0 {
		parts = append(parts, "expose "+strings.Join(c.Expose, " "))
	}
	if c.Credentials {
		parts = append(parts, "credentials")
	}
	if c.MaxAge > 0 {
		parts = append(parts, "maxAge "+manifest.Duration(c.MaxAge).String())
	}
	return cutAt(strings.Join(parts, ", "), 300)
}

// sameCORS reports whether a lets pages do no more than b did.
func sameCORS(a, b *bawn.CORS) bool {
	within := func(these, those []string) bool {
		return !slices.ContainsFunc(these, func(s string) bool { return !slices.Contains(those, s) })
	}
	return a == nil || b != nil && (within(a.Origins, b.Origins) || slices.Contains(b.Origins, "*") && !a.Credentials) &&
		within(a.Headers, b.Headers) && within(a.Expose, b.Expose) && (!a.Credentials || b.Credentials) && a.MaxAge <= b.MaxAge
}
