package manifest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"bawn.dev/bawn"
)

// plainWord is text that YAML takes for a string without quotes, in a list between
// brackets too.
var plainWord = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/._*-]*$`)

// Word writes a string as a manifest can have it on one line, quoted where YAML would
// read something else. What a manifest cannot hold, such as the end of a line, is
// escaped.
func Word(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return `"` + s + `"`
	}
	if plainWord.MatchString(s) {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// words writes a list of strings.
func words(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = Word(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// HostEntry writes a rule as an entry of egress.hosts, on one line.
func HostEntry(h *bawn.Host) string {
	ports := make([]string, len(h.Ports))
	for i, p := range h.Ports {
		ports[i] = strconv.Itoa(p)
	}
	parts := []string{"host: " + Word(h.Host), "ports: [" + strings.Join(ports, ", ") + "]"}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if h.Plaintext {
		add("plaintext: true")
	}
	if len(h.Methods) > 0 {
		add("methods: %s", words(h.Methods))
	}
	if len(h.Paths) > 0 {
		add("paths: %s", words(h.Paths))
	}
	if in := h.Inject; in != nil {
		add("inject: {secret: %s, header: %s, format: %s}", Word(in.Secret), Word(in.Header), strconv.QuoteToASCII(in.Format))
	}
	if len(h.Labels) > 0 {
		add("labels: %s", words(h.Labels))
	}
	if h.Bytes > 0 {
		add("bytes: %s", Size(h.Bytes))
	}
	if h.Connections > 0 {
		add("connections: %d", h.Connections)
	}
	if h.Time > 0 {
		add("time: %s", Duration(h.Time))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// SecretEntry writes an entry of egress.secrets.
func SecretEntry(s bawn.SecretUse) string {
	if s.File {
		return "{name: " + Word(s.Name) + ", file: true}"
	}
	return Word(s.Name)
}

// DatabaseEntry writes an entry of egress.databases with its name, on one line.
func DatabaseEntry(d *bawn.Database) string {
	where := d.Address
	if d.Database != "" {
		where += "/" + d.Database
	}
	parts := []string{string(d.Kind) + ": " + strconv.QuoteToASCII(where)}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if d.User != "" {
		add("user: %s", Word(d.User))
	}
	if d.Secret != "" {
		add("secret: %s", Word(d.Secret))
	}
	if d.Plaintext {
		add("plaintext: true")
	}
	if len(d.Labels) > 0 {
		add("labels: %s", words(d.Labels))
	}
	if d.Connections > 0 {
		add("connections: %d", d.Connections)
	}
	if d.Statements > 0 {
		add("statements: %d", d.Statements)
	}
	if d.Timeout > 0 {
		add("timeout: %s", Duration(d.Timeout))
	}
	return Word(d.Name) + ": {" + strings.Join(parts, ", ") + "}"
}

// ResponseEntry writes the value of egress.response, on one line.
func ResponseEntry(r *bawn.Response) string {
	var parts []string
	if r.Schema != "" {
		parts = append(parts, "schema: "+oneLineJSON(r.Schema))
	}
	if r.Bytes > 0 {
		parts = append(parts, "bytes: "+Size(r.Bytes).String())
	}
	if len(r.Headers) > 0 {
		parts = append(parts, "headers: "+words(r.Headers))
	}
	if r.Cards != "" {
		parts = append(parts, "cards: "+Word(r.Cards))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// oneLineJSON takes the lines out of JSON, in whose texts there are none.
func oneLineJSON(s string) string {
	return strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(s)
}

// CanBePath reports whether a rule can have s among its paths.
func CanBePath(s string) bool {
	if s == "" || s[0] != '/' || len(s) > maxRoutePath {
		return false
	}
	exact, _ := strings.CutSuffix(s, "/*")
	parts := strings.Split(exact, "/")
	for i, part := range parts {
		if part == "." || part == ".." || part == "" && i > 0 && i < len(parts)-1 {
			return false
		}
	}
	return !strings.ContainsFunc(exact, func(c rune) bool { return c == '*' || c == '?' || c == '#' || c == '%' || !isPathChar(c) && c != '/' })
}

// AllowsPort reports whether a rule can be about the port.
func AllowsPort(p int) bool { return p >= 1 && p <= 65535 && ownPorts()[p] == "" }

// HostMethods lists what the methods of a rule may be.
func HostMethods() []string { return httpMethods() }
