package cli

import (
	"maps"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
)

// routeURLs are the addresses that a route answers on.
func routeURLs(c *client.Client, r *bawn.Route) []string {
	if len(r.Hosts) == 0 {
		return []string{c.Public() + r.Path}
	}
	var all []string
	for _, h := range r.Hosts {
		all = append(all, "https://"+h+r.Path)
	}
	return all
}

// printWeb prints what a route has for browsers.
func (a *app) printWeb(r *bawn.Route) {
	if c := r.CORS; c != nil {
		parts := []string{"pages of " + strings.Join(c.Origins, ", ")}
		if len(c.Headers) > 0 {
			parts = append(parts, "with headers "+strings.Join(c.Headers, ", "))
		}
		if len(c.Expose) > 0 {
			parts = append(parts, "reading "+strings.Join(c.Expose, ", "))
		}
		if c.Credentials {
			parts = append(parts, "with credentials")
		}
		if c.MaxAge > 0 {
			parts = append(parts, "asking every "+manifest.Duration(c.MaxAge.Truncate(time.Millisecond)).String())
		}
		a.printf("              cors    %s\n", clean(strings.Join(parts, "; ")))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		value := r.Headers[name]
		if value == "" {
			value = "left out"
		}
		a.printf("              header  %s: %s\n", clean(name), clean(value))
	}
}
