package manifest

import (
	"fmt"
	"strings"
)

// SystemPrefix is the part of the path space that Bawn keeps for itself.
const SystemPrefix = "/.well-known/bawn"

// LambdaPrefix is where the node answers in the shape of AWS Lambda's API.
const LambdaPrefix = "/2015-03-31"

const (
	maxRoutePath     = 512
	maxRouteSegments = 32
)

// CheckPath reports whether p may be the path of a route. It begins with "/";
// its segments are literal, or {name} for any one segment, or, last, {name+}
// for the rest. What a proxy or a file system might read as another path is
// refused: "..", ".", an empty segment, an escape, a control character.
func CheckPath(p string) error {
	say := func(format string, args ...any) error {
		return &wrong{Message: fmt.Sprintf("path %s ", quote(p)) + fmt.Sprintf(format, args...)}
	}
	switch {
	case p == "":
		return &wrong{Message: "path is empty", Suggestion: "/"}
	case len(p) > maxRoutePath:
		return say("has %d bytes, at most %d are allowed", len(p), maxRoutePath)
	case p[0] != '/':
		return &wrong{Message: fmt.Sprintf("path %s must begin with /", quote(p)), Suggestion: "/" + p}
	case p == "/":
		return nil
	case p == SystemPrefix || strings.HasPrefix(p, SystemPrefix+"/"):
		return say("is under %s, which Bawn keeps for itself", SystemPrefix)
	case p == LambdaPrefix || strings.HasPrefix(p, LambdaPrefix+"/"):
		return say("is under %s, where Bawn answers as AWS Lambda's API does", LambdaPrefix)
	case p[len(p)-1] == '/':
		return &wrong{Message: fmt.Sprintf("path %s must not end with /", quote(p)), Suggestion: strings.TrimRight(p, "/")}
	}
	segments := strings.Split(p[1:], "/")
	if len(segments) > maxRouteSegments {
		return say("has %d segments, at most %d are allowed", len(segments), maxRouteSegments)
	}
	seen := map[string]bool{}
	for i, s := range segments {
		switch {
		case s == "":
			return say("has an empty segment (//)")
		case s == "." || s == "..":
			return say("has the segment %q", s)
		case strings.ContainsAny(s, "{}"):
			name, ok := strings.CutPrefix(s, "{")
			name, closed := strings.CutSuffix(name, "}")
			name, rest := strings.CutSuffix(name, "+")
			if !ok || !closed || !isParam(name) {
				return say("has the segment %s: a parameter is a whole segment, {name} or {name+}, of letters, digits, _ and -", quote(s))
			}
			if rest && i != len(segments)-1 {
				return say("has %s before its end: only the last segment may match the rest", quote(s))
			}
			if seen[name] {
				return say("has the parameter %q twice", name)
			}
			seen[name] = true
		default:
			for _, c := range s {
				if !isPathChar(c) {
					if c == '%' {
						return say("has an escape (%%): write the character itself, requests are decoded before they are matched")
					}
					return say("has the character %q; letters, digits and -._~!$&'()*+,;=:@ are allowed", c)
				}
			}
		}
	}
	return nil
}

func isParam(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-') {
			return false
		}
	}
	return true
}

func isPathChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c < 0x80 && strings.ContainsRune("-._~!$&'()*+,;=:@", c)
}

// PathShape returns p with the names of its parameters taken out. Two routes
// with one method and one shape match the same requests.
func PathShape(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		switch {
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "+}"):
			segments[i] = "{+}"
		case strings.HasPrefix(s, "{"):
			segments[i] = "{}"
		}
	}
	return strings.Join(segments, "/")
}

// Methods lists what a route's method may be.
func Methods() []string {
	return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "ANY"}
}
