package egress

import (
	"net/url"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

func TestC4PathsHaveOneMeaning(t *testing.T) {
	h := &bawn.Host{Methods: []string{"GET"}, Paths: []string{"/v1/*", "/health"}}
	for path, want := range map[string]bool{
		"/v1/":               true,
		"/v1/a":              true,
		"/v1/a/b.c":          true,
		"/v1/a/":             true,
		"/v1/group%2Fname":   true, // below /v1/ however it is read
		"/v1/100%25":         true,
		"/v1/a%20b;c=d":      true,
		"/v1/...":            true,
		"/health":            true,
		"/v1/%C3%A9":         true,
		"/v1":                false,
		"/health/":           false,
		"/healthy":           false,
		"/V1/a":              false,
		"/":                  false,
		"":                   false,
		"*":                  false,
		"v1/a":               false,
		"/v1/..":             false,
		"/v1/../admin":       false,
		"/v1/a/../../admin":  false,
		"/v1/./a":            false,
		"/v1//a":             false,
		"//v1/a":             false,
		"/v1/%2e%2e/admin":   false,
		"/v1/%2E./admin":     false,
		"/v1/..%2fadmin":     false,
		"/v1/%252e%252e/a":   false,
		"/v1/%25252e%25252e": false,
		"/v1/%2525252e%2e":   false,
		"/v1/..;/admin":      false,
		"/v1/..;a=b/admin":   false,
		"/v1/%2e%2e%3b/adm":  false,
		`/v1/..\admin`:       false,
		"/v1/..%5cadmin":     false,
		"/v1/a%00":           false,
		"/v1/a%0d%0ab":       false,
		"/v1/%c0%ae%c0%ae/a": false, // an overlong "."
		"/v1/%ff":            false,
		"/%76%31/a":          false, // /v1/a to one reader, and not to another
		"/v1%2fa":            false,
		"/admin%2f..%2fv1/a": false,
		"/v1/%zz":            false,
		"/v1/%":              false,
	} {
		if got := fits(h, "GET", path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
	if fits(h, "POST", "/v1/a") || fits(h, "get", "/v1/a") || fits(h, "", "/v1/a") {
		t.Error("another method fits")
	}
	if !fits(&bawn.Host{}, "PATCH", "/a/../b") {
		t.Error("a rule without methods and paths refuses")
	}
}

// FuzzReadings holds what the rules for paths stand on: no path that is let
// through has a reading that is above where it seems to be.
func FuzzReadings(f *testing.F) {
	for _, s := range []string{"/v1/a", "/v1/%2e%2e/a", "/v1/%252e%252e", "/v1/..;x/", "/%2f", "/v1/a%", "/v1/%25%32%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if !fits(&bawn.Host{Paths: []string{"/v1/*"}}, "GET", path) {
			return
		}
		for p := path; ; {
			u := &url.URL{Path: p}
			if joined := u.JoinPath().Path; !strings.HasPrefix(joined, "/v1/") {
				t.Fatalf("%q is let through and means %q", path, joined)
			}
			next, err := url.PathUnescape(p)
			if err != nil || next == p {
				return
			}
			p = next
		}
	})
}
