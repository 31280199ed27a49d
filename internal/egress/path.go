package egress

import (
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// maxReadings is how often a path is decoded at most. One that still changes then
// is written to mislead.
const maxReadings = 3

// readings returns every way in which a server may read a path as it goes out:
// as it stands, and percent-decoded once and more. It reports false for a path
// that some servers understand as a different one, so that no rule about it could
// hold: with "." or ".." or empty segments, also with parameters behind a
// semicolon, with backslashes, control characters or broken encoding, in any of
// the readings. The empty segment at the end is none.
func readings(escaped string) ([]string, bool) {
	var all []string
	for p := escaped; ; {
		if !plain(p) {
			return nil, false
		}
		all = append(all, p)
		next, err := url.PathUnescape(p)
		if err != nil {
			// Decoded once it need not be an encoding any more: "100%" is a name.
			return all, len(all) > 1
		}
		if next == p {
			return all, true
		}
		if len(all) > maxReadings {
			return nil, false
		}
		p = next
	}
}

// plain reports whether p means the same to everybody who does not decode it.
func plain(p string) bool {
	if !strings.HasPrefix(p, "/") || !utf8.ValidString(p) ||
		strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }) {
		return false
	}
	for rest, more := p[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." || segment == "" && more {
			return false
		}
	}
	return true
}

// fits reports whether h lets a request with a method and a path, escaped as it
// goes out, through.
func fits(h *bawn.Host, method, escaped string) bool {
	if len(h.Methods) > 0 && !slices.Contains(h.Methods, method) {
		return false
	}
	if len(h.Paths) == 0 {
		return true
	}
	all, ok := readings(escaped)
	if !ok {
		return false
	}
	for _, p := range all {
		if !slices.ContainsFunc(h.Paths, func(pattern string) bool { return below(pattern, p) }) {
			return false
		}
	}
	return true
}

// below reports whether a path is what a pattern names: itself, or with * at the
// end everything that begins like it.
func below(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return path == pattern
}
