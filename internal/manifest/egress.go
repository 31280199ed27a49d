package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// Egress says what the function may reach, and what may leave it. What is not in
// it may not be reached.
type Egress struct {
	Functions  []string            `json:"functions,omitempty"`
	Hosts      []Host              `json:"hosts,omitempty"`
	Everything *Public             `json:"everything,omitempty"`
	Proxy      bool                `json:"proxy,omitempty"`
	Secrets    []SecretUse         `json:"secrets,omitempty"`
	Databases  map[string]Database `json:"databases,omitempty"`
	Response   *Response           `json:"response,omitempty"`
}

// Host is one rule of what may be reached.
type Host struct {
	Host        string   `json:"host,omitempty"`
	Ports       []int    `json:"ports,omitempty"`
	Plaintext   bool     `json:"plaintext,omitempty"`
	Methods     []string `json:"methods,omitempty"`
	Paths       []string `json:"paths,omitempty"`
	Inject      *Inject  `json:"inject,omitempty"`
	Labels      []string `json:"labels,omitempty"`
	Bytes       Size     `json:"bytes,omitzero"`
	Connections int      `json:"connections,omitempty"`
	Time        Duration `json:"time,omitzero"`
}

// Inject is a credential that Bawn adds outside of the sandbox.
type Inject struct {
	Secret string `json:"secret,omitempty"`
	Header string `json:"header,omitempty"`
	Format string `json:"format,omitempty"`
}

// SecretUse is the name of a secret, or {name, file: true}.
type SecretUse struct {
	Name string
	File bool
}

// MarshalJSON writes the name alone where there is nothing more to say.
func (s SecretUse) MarshalJSON() ([]byte, error) {
	if !s.File {
		return json.Marshal(s.Name)
	}
	return json.Marshal(struct {
		Name string `json:"name"`
		File bool   `json:"file"`
	}{s.Name, s.File})
}

// Database is a database that the function reaches at a local port. One of the
// first three says of which kind it is, and where.
type Database struct {
	Postgres    string   `json:"postgres,omitempty"`
	MySQL       string   `json:"mysql,omitempty"`
	Redis       string   `json:"redis,omitempty"`
	User        string   `json:"user,omitempty"`
	Secret      string   `json:"secret,omitempty"`
	Plaintext   bool     `json:"plaintext,omitempty"`
	Labels      []string `json:"labels,omitempty"`
	Connections int      `json:"connections,omitempty"`
	Statements  int      `json:"statements,omitempty"`
	Timeout     Duration `json:"timeout,omitzero"`
}

// Response says what an answer must look like.
type Response struct {
	Schema  ResponseSchema `json:"schema,omitzero"`
	Bytes   Size           `json:"bytes,omitzero"`
	Headers []string       `json:"headers,omitempty"`
	Cards   string         `json:"cards,omitempty"`
}

// ResponseSchema is a JSON Schema: written out, or the path of its file relative to the
// manifest. [Function.ReadFiles] puts the file's text in the path's place, which
// a server asks for: it does not have the file.
type ResponseSchema struct {
	File string
	Text string // JSON
}

// MarshalJSON writes the path or the schema.
func (s ResponseSchema) MarshalJSON() ([]byte, error) {
	if s.File != "" {
		return json.Marshal(s.File)
	}
	return []byte(s.Text), nil
}

// ReadFiles puts the schemas and certificates that the manifest names by their files
// in the place of the names. read gets a path as it was written, and the field that names it.
func (f *Function) ReadFiles(read func(path, field string) ([]byte, error)) error {
	one := func(s *ResponseSchema, field string) error {
		if s.File == "" {
			return nil
		}
		raw, err := read(s.File, field)
		if err != nil {
			return err
		}
		d := &decoder{}
		n, err := jsonNode(raw)
		if err == nil {
			if got, ok := writtenSchema(d, n, ""); ok {
				*s = got
				return nil
			}
			err = d.err()
		}
		return bawn.Wrap(err, bawn.CodeUnprocessable, "manifest", "%s, the schema %s: %s", field, quote(s.File), oneLine(messageOf(err))).
			WithFix("mend the file; it is a JSON Schema, as JSON")
	}
	if r := f.Egress.Response; r != nil {
		now := *r
		f.Egress.Response = &now
		if err := one(&now.Schema, "egress.response.schema"); err != nil {
			return err
		}
	}
	if err := f.readInputs(one); err != nil {
		return err
	}
	return f.readAuthorities(read)
}

const (
	maxHostName   = 253
	maxFormat     = 256
	maxUser       = 63
	maxStatements = 1000000
	maxHeaders    = 64
	minBytes      = 1
	minTime       = Duration(100 * 1000 * 1000) // 100 ms

	labelsDoc = "of the data, such as pii; a guardrail can keep labelled data from going where no such label is"
)

// ownPorts are the TCP ports that Bawn listens on in every sandbox, and what for. A
// rule about one of them would never be asked, or take its place.
func ownPorts() map[int]string {
	return map[int]string{9001: "the Lambda Runtime API", 9002: "the endpoint for secrets and calls", 9003: "the proxy for tools that want one"}
}

// egressFields describes the egress.
func egressFields() object[Egress] {
	return object[Egress]{
		doc: "egress",
		fields: []field[Egress]{
			is("functions", "functions of the same tenant that it may call; each must name this one in ingress.callers",
				listOf("functions", maxCalled, functionName()), func(e *Egress) *[]string { return &e.Functions }),
			is("hosts", "what it may reach outside; of several rules that fit, the first counts",
				listOf("hosts", bawn.MaxHosts, hostFields().value()), func(e *Egress) *[]Host { return &e.Hosts }),
			pointer("everything", "opens every public host on ports 80 and 443 until a day, for a reason; shown loudly everywhere", object[Public]{doc: "everything", fields: []field[Public]{
				is("reason", "why it needs to reach everything", text("reason", 1, maxReason), func(p *Public) *string { return &p.Reason }).must(),
				is("until", "the last day, in UTC, on which it may", date("until"), func(p *Public) *Date { return &p.Until }).must(),
			}}, func(e *Egress) **Public { return &e.Everything }),
			is("proxy", "whether HTTPS_PROXY and its like name Bawn's proxy, for tools that want one; false if left out", boolean("proxy"), func(e *Egress) *bool { return &e.Proxy }),
			is("secrets", "secrets that it reads; a secret admin must grant each as well", listOf("secrets", bawn.MaxSecretUses, secretUse()), func(e *Egress) *[]SecretUse { return &e.Secrets }),
			is("databases", "databases that it reaches at a local port, by a name of its own", databases(), func(e *Egress) *map[string]Database { return &e.Databases }),
			pointer("response", "what an answer must look like to leave", responseFields(), func(e *Egress) **Response { return &e.Response }),
		},
		rules: func(e *Egress, has func(string) bool, say func(string, error)) {
			if s := twice(e.Functions); s != "" {
				say("functions", &wrong{Message: fmt.Sprintf("functions names %s a second time", quote(s))})
			}
			for i := range e.Hosts {
				if err := besides(&e.Hosts[i], e.Hosts[:i]); err != nil {
					say("hosts", err)
				}
			}
			var names []string
			for _, s := range e.Secrets {
				names = append(names, s.Name)
			}
			if s := twice(names); s != "" {
				say("secrets", &wrong{Message: fmt.Sprintf("secrets names %s a second time", quote(s))})
			}
			different := map[int]bool{}
			for i := range e.Hosts {
				for _, p := range e.Hosts[i].ports() {
					different[p] = true
				}
			}
			if n := len(different) + len(e.Databases); n > bawn.MaxEgressPorts {
				say("hosts", &wrong{Message: fmt.Sprintf("the hosts and databases have %d different ports, at most %d are allowed", n, bawn.MaxEgressPorts)})
			}
		},
	}
}

// pointer makes the field name of T from an object, and keeps whether it was
// there.
func pointer[T, V any](name, doc string, o object[V], place func(*T) **V) field[T] {
	return field[T]{name: name, doc: doc, schema: o.schema(), read: func(d *decoder, n *yaml.Node, at string, t *T) {
		var v V
		if o.read(d, n, at, &v) {
			*place(t) = &v
		}
	}}
}

func hostFields() object[Host] {
	inject := object[Inject]{doc: "inject", fields: []field[Inject]{
		is("secret", "the secret's name; it needs a grant, and never enters the sandbox", name("secret"), func(i *Inject) *string { return &i.Secret }).must(),
		is("header", "which header gets it, such as Authorization", injectedHeader(), func(i *Inject) *string { return &i.Header }).must(),
		is("format", "the header's value, with the secret in place of {}; {} alone if left out", injectFormat(), func(i *Inject) *string { return &i.Format }),
	}}
	return object[Host]{
		doc: "a host",
		fields: []field[Host]{
			is("host", "a name, *.NAME for one label in front of it, an address, or a CIDR range; the last two need the operator's leave", hostValue(), func(h *Host) *string { return &h.Host }).must(),
			is("ports", "443 if left out, or 80 with plaintext", listOf("ports", bawn.MaxHostPorts, port()), func(h *Host) *[]int { return &h.Ports }),
			is("plaintext", "whether it may go out without TLS; false if left out", boolean("plaintext"), func(h *Host) *bool { return &h.Plaintext }),
			is("methods", "which HTTP methods; all if left out", listOf("methods", len(httpMethods()), oneOf("method", httpMethods())), func(h *Host) *[]string { return &h.Methods }),
			is("paths", "which paths of HTTP requests: exact, or with /* at the end for everything below; all if left out", listOf("paths", bawn.MaxHostPaths, hostPath()), func(h *Host) *[]string { return &h.Paths }),
			pointer("inject", "a credential that Bawn adds to requests outside of the sandbox", inject, func(h *Host) **Inject { return &h.Inject }),
			is("labels", labelsDoc, labels(), func(h *Host) *[]string { return &h.Labels }),
			is("bytes", fmt.Sprintf("of one invocation, sent and received each; %s if left out", Size(bawn.DefaultEgressBytes)), size("bytes", minBytes, bawn.MaxEgressBytes), func(h *Host) *Size { return &h.Bytes }),
			is("connections", fmt.Sprintf("of one invocation at one time; %d if left out", bawn.DefaultEgressConns), whole("connections", 1, bawn.MaxEgressConns), func(h *Host) *int { return &h.Connections }),
			is("time", "that one connection may last; as long as the invocation if left out", duration("time", minTime, Duration(bawn.MaxTimeout)), func(h *Host) *Duration { return &h.Time }),
		},
		rules: func(h *Host, has func(string) bool, say func(string, error)) {
			for field, empty := range map[string]bool{"ports": len(h.Ports) == 0, "methods": len(h.Methods) == 0, "paths": len(h.Paths) == 0} {
				if has(field) && empty {
					say(field, &wrong{Message: field + " is empty; leave it out for the default"})
				}
			}
			for _, w := range []struct {
				field string
				words []string
			}{{"methods", h.Methods}, {"paths", h.Paths}} {
				if s := twice(w.words); s != "" {
					say(w.field, &wrong{Message: fmt.Sprintf("%s names %s a second time", w.field, quote(s))})
				}
			}
			for i, p := range h.Ports {
				if slices.Contains(h.Ports[:i], p) {
					say("ports", &wrong{Message: fmt.Sprintf("ports names %d a second time", p)})
				}
			}
			switch {
			case h.Plaintext && slices.Contains(h.Ports, 443):
				say("ports", &wrong{Message: "port 443 is for TLS, and plaintext means none", Suggestion: "a rule of its own for it, without plaintext"})
			case !h.Plaintext && slices.Contains(h.Ports, 80):
				say("ports", &wrong{Message: "port 80 is for plain HTTP, and TLS is what goes outside", Suggestion: "port 443, or plaintext: true"})
			}
			_, isName := nameOf(h.Host)
			switch {
			case h.Inject == nil:
			case h.Plaintext:
				say("inject", &wrong{Message: "a credential is not sent without TLS: a rule with plaintext cannot inject"})
			case !isName:
				say("inject", &wrong{Message: "a credential is sent to a name that TLS proves, not to an address"})
			}
			if clear := len(h.Methods) > 0 || len(h.Paths) > 0; clear && !isName && !h.Plaintext {
				say("host", &wrong{Message: "a rule about requests over TLS needs a name, not an address"})
			}
		},
	}
}

// ports returns the rule's ports, with the default filled in.
func (h *Host) ports() []int {
	switch {
	case len(h.Ports) > 0:
		return h.Ports
	case h.Plaintext:
		return []int{80}
	}
	return []int{443}
}

func (h *Host) clear() bool { return len(h.Methods) > 0 || len(h.Paths) > 0 || h.Inject != nil }

// besides reports what is wrong with a rule after those before it. Of one host and
// port it must be known, before the first byte, whether there is TLS and whether
// it is read.
func besides(h *Host, before []Host) error {
	for i := range before {
		o := &before[i]
		if o.Host != h.Host {
			continue
		}
		for _, p := range h.ports() {
			switch {
			case !slices.Contains(o.ports(), p):
			case o.Plaintext != h.Plaintext:
				return &wrong{Message: fmt.Sprintf("two rules are about %s port %d, one with plaintext and one without", h.Host, p)}
			case !h.clear() && !o.clear():
				return &wrong{Message: fmt.Sprintf("two rules are about %s port %d; the second would never count", h.Host, p)}
			case h.clear() != o.clear():
				return &wrong{Message: fmt.Sprintf("two rules are about %s port %d, one about requests (methods, paths, inject) and one about connections", h.Host, p)}
			}
		}
	}
	return nil
}

// names to ASCII, as browsers and resolvers do it.
var toASCII = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckHyphens(false), idna.VerifyDNSLength(true))

// CheckHost reads the host of a rule and returns it in its one form: in lower case
// and ASCII, an address as the standard library writes it, a range without bits
// beyond its length.
func CheckHost(s string) (string, error) {
	say := func(format string, args ...any) (string, error) {
		return "", &wrong{Message: "host " + quote(s) + " " + fmt.Sprintf(format, args...)}
	}
	switch {
	case s == "":
		return say("is empty")
	case s == bawn.AnyHost:
		return "", &wrong{"host \"*\" is every host", "everything: {reason: …, until: YEAR-MONTH-DAY}"}
	case len(s) > 1024:
		return say("has %d bytes, at most %d are allowed", len(s), maxHostName)
	}
	if _, rest, ok := strings.Cut(s, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		return "", &wrong{"host " + quote(s) + " is a URL; a rule is about a host, its ports and paths stand in fields of their own", host}
	}
	if strings.Contains(s, "@") {
		return say("has a user in it; only a name, an address or a range is meant")
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		switch {
		case p.Addr().Is4In6():
			return "", &wrong{"host " + quote(s) + " is a mapped IPv4 range", ""}
		case p.Bits() == 0:
			return "", &wrong{"host " + quote(s) + " is every address", "everything: {reason: …, until: YEAR-MONTH-DAY}"}
		case p.Masked() != p:
			return "", &wrong{"host " + quote(s) + " has bits beyond the length of the range", p.Masked().String()}
		}
		return p.String(), nil
	}
	if strings.Contains(s, "/") {
		host, _, _ := strings.Cut(s, "/")
		return "", &wrong{"host " + quote(s) + " is no range; a path belongs into paths", host}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		switch {
		case a.Zone() != "":
			return say("has a zone; it says nothing outside of one host")
		case a.Is4In6():
			return "", &wrong{"host " + quote(s) + " is a mapped IPv4 address", a.Unmap().String()}
		}
		return a.String(), nil
	}
	if host, p, ok := strings.Cut(s, ":"); ok {
		if _, err := strconv.ParseUint(p, 10, 16); err == nil {
			return "", &wrong{"host " + quote(s) + " has a port in it", fmt.Sprintf("host: %s with ports: [%s]", host, p)}
		}
		return say("is no name and no address")
	}
	if rest, ok := strings.CutSuffix(s, "."); ok {
		return "", &wrong{"host " + quote(s) + " ends with a dot", rest}
	}
	base, wild := strings.CutPrefix(s, "*.")
	if strings.Contains(base, "*") {
		better := ""
		if i := strings.LastIndex(s, "*"); strings.HasPrefix(s[i+1:], ".") && len(s) > i+2 {
			better = "*" + s[i+1:]
		}
		return "", &wrong{"host " + quote(s) + " has a * that is not its first label; *.NAME stands for one label in front of NAME", better}
	}
	ascii, err := toASCII.ToASCII(base)
	if err != nil || ascii == "" {
		return say("is no name: labels of letters, digits and - with dots between them, at most %d characters", maxHostName)
	}
	labels := strings.Split(ascii, ".")
	last := labels[len(labels)-1]
	if numeric(last) {
		return say("ends like an address and is none; write an IPv4 address as four decimal numbers")
	}
	if last == "localhost" {
		return say("is the sandbox itself, where nothing outside is")
	}
	if wild {
		if suffix, icann := publicsuffix.PublicSuffix(ascii); suffix == ascii && (icann || len(labels) == 1 && !slices.Contains(privateSuffixes(), ascii)) {
			return say("is every name under a public suffix; name the domains")
		}
		ascii = "*." + ascii
	}
	if len(ascii) > maxHostName {
		return say("has %d characters, at most %d are allowed", len(ascii), maxHostName)
	}
	return ascii, nil
}

// privateSuffixes are last labels that no registry gives out.
func privateSuffixes() []string {
	return []string{"internal", "local", "lan", "corp", "home", "private", "intranet", "test", "example", "invalid"}
}

// numeric reports whether a resolver may read the last label of a name as a number:
// then the whole is an address to it.
func numeric(label string) bool {
	if rest, ok := strings.CutPrefix(label, "0x"); ok {
		_, err := strconv.ParseUint(rest, 16, 64)
		return rest == "" || err == nil
	}
	return strings.Trim(label, "0123456789") == ""
}

// nameOf returns the name that a checked host is, or the one that a wildcard is
// about.
func nameOf(host string) (name string, ok bool) {
	if strings.ContainsAny(host, ":/") {
		return "", false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", false
	}
	return strings.TrimPrefix(host, "*."), true
}

// SharedSuffix reports whether host is a wildcard under which anybody can get a
// name, such as *.s3.amazonaws.com.
func SharedSuffix(host string) bool {
	base, wild := strings.CutPrefix(host, "*.")
	if !wild || strings.Count(base, ".") == 0 {
		return false
	}
	suffix, _ := publicsuffix.PublicSuffix(base)
	return suffix == base
}

func hostValue() value[string] {
	return value[string]{map[string]any{"type": "string", "minLength": 1, "maxLength": maxHostName + 2, "pattern": `^[^\s/@]+(/[0-9]{1,3})?$`},
		func(d *decoder, n *yaml.Node, at string) (string, bool) {
			s, ok := scalar(d, n, at, "a name, an address or a range", "!!str")
			if !ok {
				return "", false
			}
			host, err := CheckHost(s)
			if err != nil {
				d.reject(n, at, err)
			}
			return host, err == nil
		}}
}

func port() value[int] {
	v := whole("port", 1, 65535)
	read := v.read
	v.read = func(d *decoder, n *yaml.Node, at string) (int, bool) {
		p, ok := read(d, n, at)
		if what := ownPorts()[p]; ok && what != "" {
			d.report(n, at, fmt.Sprintf("port %d is Bawn's own in every sandbox: %s", p, what), "")
			ok = false
		}
		return p, ok
	}
	return v
}

func httpMethods() []string {
	return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
}

// name is a name as functions have them.
func name(kind string) value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": namePattern}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a name", "!!str")
		if !ok {
			return "", false
		}
		if err := bawn.CheckName(kind, s); err != nil {
			d.reject(n, at, &wrong{messageOf(err), rename(s)})
			return "", false
		}
		return s, true
	}}
}

func labels() value[[]string] {
	v := listOf("labels", bawn.MaxLabels, name("label"))
	read := v.read
	v.read = func(d *decoder, n *yaml.Node, at string) ([]string, bool) {
		all, ok := read(d, n, at)
		if s := twice(all); ok && s != "" {
			d.report(n, at, fmt.Sprintf("labels names %s a second time", quote(s)), "")
			ok = false
		}
		return all, ok
	}
	return v
}

// hostPath is a path of requests to a host: exact, or with /* at its end. What a
// server may read as another path than Bawn does is refused.
func hostPath() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": "^/", "maxLength": maxRoutePath}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a path", "!!str")
		if !ok {
			return "", false
		}
		refuse := func(suggestion, format string, args ...any) (string, bool) {
			d.report(n, at, fmt.Sprintf("path %s ", quote(s))+fmt.Sprintf(format, args...), suggestion)
			return "", false
		}
		if s == "" || s[0] != '/' {
			return refuse("/"+s, "must begin with /")
		}
		if len(s) > maxRoutePath {
			return refuse("", "has %d bytes, at most %d are allowed", len(s), maxRoutePath)
		}
		exact, _ := strings.CutSuffix(s, "/*")
		for i, part := range strings.Split(exact, "/") {
			switch {
			case part == "." || part == "..":
				return refuse("", "has the segment %q", part)
			case part == "" && i > 0 && i < strings.Count(exact, "/"):
				return refuse("", "has an empty segment (//)")
			}
		}
		for _, c := range exact {
			switch {
			case c == '*':
				return refuse("", "has a * that is not its last segment; /* at the end stands for everything below")
			case c == '?' || c == '#':
				return refuse(strings.SplitN(exact, string(c), 2)[0], "has a query; a rule is about the path alone")
			case c == '%':
				return refuse("", "has an escape (%%): write the character itself, requests are decoded before they are matched")
			case !isPathChar(c) && c != '/':
				return refuse("", "has the character %q; letters, digits and -._~!$&'()*+,;=:@ are allowed", c)
			}
		}
		return s, true
	}}
}

var tokenExpr = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// header reads the name of a header in canonical form.
func header(d *decoder, n *yaml.Node, at string) (string, bool) {
	s, ok := scalar(d, n, at, "a header's name", "!!str")
	if !ok {
		return "", false
	}
	if !tokenExpr.MatchString(s) || len(s) > 128 {
		d.report(n, at, fmt.Sprintf("%s is not a header's name", quote(s)), "")
		return "", false
	}
	return textproto.CanonicalMIMEHeaderKey(s), true
}

// notInjected are headers that say how a message is framed or where it goes. A
// secret in one of them would be something else than a credential.
func notInjected() []string {
	return []string{"Host", "Connection", "Content-Length", "Content-Encoding", "Content-Type", "Date", "Expect", "Forwarded", "Http2-Settings", "Keep-Alive",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Range", "Origin", "Referer", "User-Agent"}
}

const headerPattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"

func injectedHeader() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": headerPattern, "examples": []any{"Authorization"}}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		h, ok := header(d, n, at)
		if ok && (slices.Contains(notInjected(), h) || strings.HasPrefix(h, "Proxy-") || strings.HasPrefix(h, "Sec-")) {
			d.report(n, at, fmt.Sprintf("header %s says how a message travels, not who sends it; nothing is put into it", h), "")
			ok = false
		}
		return h, ok
	}}
}

func injectFormat() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": `^[^{}]*\{\}[^{}]*$`, "maxLength": maxFormat, "examples": []any{"Bearer {}"}}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "text", "!!str")
		if !ok {
			return "", false
		}
		printable := !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
		switch {
		case strings.Count(s, "{}") != 1 || strings.ContainsAny(strings.Replace(s, "{}", "", 1), "{}"):
			d.report(n, at, fmt.Sprintf("format %s must hold {} once, where the secret goes", quote(s)), "Bearer {}")
		case len(s) > maxFormat || !printable || strings.TrimSpace(s) != s:
			d.report(n, at, fmt.Sprintf("format %s is not a header's value of at most %d printable ASCII characters", quote(s), maxFormat), "")
		default:
			return s, true
		}
		return "", false
	}}
}

func secretUse() value[SecretUse] {
	word := name("secret")
	o := object[SecretUse]{doc: "a secret", fields: []field[SecretUse]{
		is("name", "the secret's name", word, func(s *SecretUse) *string { return &s.Name }).must(),
		is("file", "whether it is also a file in memory, /run/secrets/NAME; false if left out", boolean("file"), func(s *SecretUse) *bool { return &s.File }),
	}}
	return value[SecretUse]{map[string]any{"oneOf": []any{word.schema, o.schema()}}, func(d *decoder, n *yaml.Node, at string) (SecretUse, bool) {
		if n.Kind == yaml.MappingNode {
			var s SecretUse
			return s, o.read(d, n, at, &s)
		}
		s, ok := word.read(d, n, at)
		return SecretUse{Name: s}, ok
	}}
}

// databaseKinds are the fields that say of which kind a database is, with the port
// that each has if none is said.
func databaseKinds() []bawn.DatabaseKind {
	return []bawn.DatabaseKind{bawn.Postgres, bawn.MySQL, bawn.Redis}
}

func defaultPort(k bawn.DatabaseKind) int {
	return map[bawn.DatabaseKind]int{bawn.Postgres: 5432, bawn.MySQL: 3306, bawn.Redis: 6379}[k]
}

// of returns which kind d is and where.
func (d *Database) of() (kind bawn.DatabaseKind, where string) {
	for kind, where := range map[bawn.DatabaseKind]string{bawn.Postgres: d.Postgres, bawn.MySQL: d.MySQL, bawn.Redis: d.Redis} {
		if where != "" {
			return kind, where
		}
	}
	return "", ""
}

func databases() value[map[string]Database] {
	o := databaseFields()
	schema := map[string]any{
		"type": "object", "maxProperties": bawn.MaxDatabases,
		"propertyNames": map[string]any{"pattern": namePattern}, "additionalProperties": o.schema(),
	}
	return value[map[string]Database]{schema, func(d *decoder, n *yaml.Node, at string) (map[string]Database, bool) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("databases must be a mapping from names to databases, not %s", kindName(n)), "")
			return nil, false
		}
		if len(n.Content)/2 > bawn.MaxDatabases {
			d.report(n, at, fmt.Sprintf("databases has %d entries, at most %d are allowed", len(n.Content)/2, bawn.MaxDatabases), "")
			return nil, false
		}
		all, good := map[string]Database{}, true
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			called, ok := name("database").read(d, key, here)
			if _, twice := all[called]; ok && twice {
				d.report(key, here, fmt.Sprintf("database %q is given a second time", called), "")
				ok = false
			}
			var db Database
			if !o.read(d, val, here, &db) || !ok {
				good = false
				continue
			}
			all[called] = db
		}
		return all, good
	}}
}

func databaseFields() object[Database] {
	at := func(kind bawn.DatabaseKind, doc string, place func(*Database) *string) field[Database] {
		return is(string(kind), doc, databaseAddress(kind), place)
	}
	return object[Database]{
		doc: "a database",
		fields: []field[Database]{
			at(bawn.Postgres, "HOST:PORT/DATABASE; Bawn completes the authentication", func(d *Database) *string { return &d.Postgres }),
			at(bawn.MySQL, "HOST:PORT; forwarded", func(d *Database) *string { return &d.MySQL }),
			at(bawn.Redis, "HOST:PORT; forwarded", func(d *Database) *string { return &d.Redis }),
			is("user", "of postgres: as whom Bawn logs in", text("user", 1, maxUser), func(d *Database) *string { return &d.User }),
			is("secret", "of postgres: the secret that is the password; it needs a grant, and never enters the sandbox", name("secret"), func(d *Database) *string { return &d.Secret }),
			is("plaintext", "whether the connection may be without TLS; false if left out", boolean("plaintext"), func(d *Database) *bool { return &d.Plaintext }),
			is("labels", labelsDoc, labels(), func(d *Database) *[]string { return &d.Labels }),
			is("connections", fmt.Sprintf("of one instance at one time; %d if left out", bawn.DefaultDatabaseConn), whole("connections", 1, bawn.MaxEgressConns), func(d *Database) *int { return &d.Connections }),
			is("statements", "of postgres: of one invocation; no bound if left out", whole("statements", 1, maxStatements), func(d *Database) *int { return &d.Statements }),
			is("timeout", "of postgres: for one statement; as long as the invocation if left out", duration("timeout", minTimeout, Duration(bawn.MaxTimeout)), func(d *Database) *Duration { return &d.Timeout }),
		},
		rules: func(db *Database, has func(string) bool, say func(string, error)) {
			var kinds []string
			for _, k := range databaseKinds() {
				if has(string(k)) {
					kinds = append(kinds, string(k))
				}
			}
			switch {
			case len(kinds) == 0:
				say("", &wrong{"a database says of which kind it is, and where: postgres, mysql or redis", `postgres: "db.internal:5432/orders"`})
				return
			case len(kinds) > 1:
				say(kinds[1], &wrong{Message: fmt.Sprintf("a database is of one kind, not %s and %s", kinds[0], kinds[1])})
				return
			}
			if has("postgres") {
				if !has("user") {
					say("", &wrong{Message: "a postgres database needs the field \"user\": as whom Bawn logs in"})
				}
				return
			}
			for _, f := range []string{"user", "secret", "statements", "timeout"} {
				if has(f) {
					say(f, &wrong{Message: fmt.Sprintf("%s is for postgres; to %s the function logs in itself, with a secret of egress.secrets", f, kinds[0])})
				}
			}
		},
	}
}

// databaseAddress is HOST:PORT, of postgres with /DATABASE. It is kept with the
// port written out and the host in its one form.
func databaseAddress(kind bawn.DatabaseKind) value[string] {
	want, example := "HOST:PORT", fmt.Sprintf("db.internal:%d", defaultPort(kind))
	if kind == bawn.Postgres {
		want, example = "HOST:PORT/DATABASE", example+"/orders"
	}
	return value[string]{map[string]any{"type": "string", "minLength": 1, "maxLength": 512, "examples": []any{example}}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, want, "!!str")
		if !ok {
			return "", false
		}
		refuse := func(format string, args ...any) (string, bool) {
			d.report(n, at, fmt.Sprintf(format, args...), example)
			return "", false
		}
		if strings.Contains(s, "://") || strings.Contains(s, "@") {
			return refuse("%s is a URL; %s is wanted, user and password stand in fields of their own", kind, want)
		}
		where, database, has := strings.Cut(s, "/")
		switch {
		case kind == bawn.Postgres && (!has || database == ""):
			return refuse("%s %s names no database: want %s", kind, quote(s), want)
		case kind != bawn.Postgres && has:
			return refuse("%s %s has a / in it: want %s", kind, quote(s), want)
		case len(database) > 63 || strings.ContainsFunc(database, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '/' || c == '?' || c == 0xfffd }):
			return refuse("%s %s has no good name for a database: at most 63 bytes without blanks, / and ?", kind, quote(s))
		}
		host, number := where, defaultPort(kind)
		if h, p, ok := cutPort(where); ok {
			v, err := strconv.ParseUint(p, 10, 16)
			if err != nil || v == 0 {
				return refuse("%s %s has no good port", kind, quote(s))
			}
			host, number = h, int(v)
		}
		host, err := CheckHost(strings.Trim(host, "[]"))
		if err != nil || strings.ContainsAny(host, "*/") {
			return refuse("%s %s has no good host: want %s", kind, quote(s), want)
		}
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		full := host + ":" + strconv.Itoa(number)
		if has {
			full += "/" + database
		}
		return full, true
	}}
}

// cutPort cuts HOST:PORT or [ADDRESS]:PORT.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.Contains(s[:i], ":") && !strings.HasSuffix(s[:i], "]") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func responseFields() object[Response] {
	headerName := value[string]{map[string]any{"type": "string", "pattern": headerPattern}, header}
	return object[Response]{
		doc: "response",
		fields: []field[Response]{
			is("schema", "a JSON Schema of the answer's payload, or of an HTTP answer's body: written out, or its file relative to this one", schemaValue(), func(r *Response) *ResponseSchema { return &r.Schema }),
			is("bytes", "of the payload", size("bytes", 1, bawn.MaxResponseBytes), func(r *Response) *Size { return &r.Bytes }),
			is("headers", "that an HTTP answer may carry; others are left out; all if left out", listOf("headers", maxHeaders, headerName), func(r *Response) *[]string { return &r.Headers }),
			is("cards", "what happens to numbers of payment cards in an answer: redact or refuse; nothing if left out", oneOf("cards", []string{"redact", "refuse"}), func(r *Response) *string { return &r.Cards }),
		},
		rules: func(r *Response, has func(string) bool, say func(string, error)) {
			if s := twice(r.Headers); s != "" {
				say("headers", &wrong{Message: fmt.Sprintf("headers names %s a second time", quote(s))})
			}
			if has("headers") && len(r.Headers) == 0 {
				say("headers", &wrong{Message: "headers is empty; leave it out for all of them"})
			}
		},
	}
}

func schemaValue() value[ResponseSchema] {
	schema := map[string]any{"oneOf": []any{map[string]any{"type": "string", "minLength": 1, "maxLength": maxCode}, map[string]any{"type": "object"}}}
	path := text("schema", 1, maxCode)
	return value[ResponseSchema]{schema, func(d *decoder, n *yaml.Node, at string) (ResponseSchema, bool) {
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
			s, ok := path.read(d, n, at)
			return ResponseSchema{File: s}, ok
		}
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("schema must be a JSON Schema or the path of its file, not %s", kindName(n)), "")
			return ResponseSchema{}, false
		}
		return writtenSchema(d, n, at)
	}}
}

// writtenSchema reads a schema that is written out, and checks that it is one.
func writtenSchema(d *decoder, n *yaml.Node, at string) (ResponseSchema, bool) {
	raw, ok := anything("schema").read(d, n, at)
	if !ok {
		return ResponseSchema{}, false
	}
	if err := checkSchema(string(raw)); err != nil {
		d.report(n, at, err.Error(), "")
		return ResponseSchema{}, false
	}
	return ResponseSchema{Text: string(raw)}, true
}

func oneLine(s string) string {
	if s = strings.Join(strings.Fields(s), " "); len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// compile turns the egress into what a version has.
func (e *Egress) compile() (bawn.Egress, error) {
	out := bawn.Egress{
		// Sorted where the order in the file says nothing: the digest must not change with it.
		Functions: slices.Sorted(slices.Values(e.Functions)),
		Proxy:     e.Proxy,
	}
	for i := range e.Hosts {
		h := &e.Hosts[i]
		rule := bawn.Host{
			Host: h.Host, Ports: slices.Sorted(slices.Values(h.ports())), Plaintext: h.Plaintext,
			Methods: slices.Sorted(slices.Values(h.Methods)), Paths: slices.Sorted(slices.Values(h.Paths)), Labels: slices.Sorted(slices.Values(h.Labels)),
			Bytes: int64(h.Bytes), Connections: h.Connections, Time: h.Time.std(),
		}
		if in := h.Inject; in != nil {
			rule.Inject = &bawn.Inject{Secret: in.Secret, Header: in.Header, Format: or(in.Format, "{}")}
		}
		out.Hosts = append(out.Hosts, rule)
	}
	if p := e.Everything; p != nil {
		out.Everything = &bawn.PublicAccess{Reason: p.Reason, Until: p.Until.End()}
	}
	for _, s := range e.Secrets {
		out.Secrets = append(out.Secrets, bawn.SecretUse{Name: s.Name, File: s.File})
	}
	slices.SortFunc(out.Secrets, func(a, b bawn.SecretUse) int { return strings.Compare(a.Name, b.Name) })
	taken := map[int]bool{}
	for p := range ownPorts() {
		taken[p] = true
	}
	for _, name := range slices.Sorted(maps.Keys(e.Databases)) {
		d := e.Databases[name]
		kind, where := d.of()
		address, database, _ := strings.Cut(where, "/")
		// The usual port, or the next one that no other database has.
		local := defaultPort(kind)
		for taken[local] {
			local++
		}
		taken[local] = true
		out.Databases = append(out.Databases, bawn.Database{
			Name: name, Kind: kind, Address: address, Database: database, User: d.User, Secret: d.Secret, Plaintext: d.Plaintext, Port: local,
			Labels: slices.Sorted(slices.Values(d.Labels)), Connections: d.Connections, Statements: d.Statements, Timeout: d.Timeout.std(),
		})
	}
	if r := e.Response; r != nil {
		if r.Schema.File != "" {
			return out, bawn.Errorf(bawn.CodeUnprocessable, "manifest", "egress.response.schema: the schema itself is wanted here, not the name of its file %s", quote(r.Schema.File)).
				WithFix("send it written out, or let bawn deploy read the file")
		}
		answer := bawn.Response{Schema: r.Schema.Text, Bytes: int64(r.Bytes), Headers: slices.Sorted(slices.Values(r.Headers)), Cards: r.Cards}
		if answer.Schema != "" || answer.Bytes != 0 || len(answer.Headers) > 0 || answer.Cards != "" {
			out.Response = &answer
		}
	}
	return out, nil
}

// HostText says what a rule lets through, for a reviewer.
func HostText(h *bawn.Host) string {
	var parts []string
	ports := make([]string, len(h.Ports))
	for i, p := range h.Ports {
		ports[i] = fmt.Sprint(p)
	}
	word := "port "
	if len(ports) > 1 {
		word = "ports "
	}
	parts = append(parts, word+strings.Join(ports, ", "))
	if h.Plaintext {
		parts[0] += " WITHOUT TLS"
	}
	if SharedSuffix(h.Host) {
		parts = append(parts, "ANYBODY can have a name there")
	}
	if len(h.Methods) > 0 {
		parts = append(parts, strings.Join(h.Methods, ", "))
	}
	if len(h.Paths) > 0 {
		parts = append(parts, strings.Join(h.Paths, ", "))
	}
	if h.Inject != nil {
		parts = append(parts, "with the secret "+h.Inject.Secret+" in "+h.Inject.Header)
	}
	if h.Bytes > 0 {
		parts = append(parts, "at most "+Size(h.Bytes).String())
	}
	if h.Connections > 0 {
		parts = append(parts, fmt.Sprintf("at most %d connections", h.Connections))
	}
	if h.Time > 0 {
		parts = append(parts, "at most "+Duration(h.Time).String()+" each")
	}
	if len(h.Labels) > 0 {
		parts = append(parts, "takes "+strings.Join(h.Labels, ", "))
	}
	return strings.Join(parts, "; ")
}

// DatabaseText says which database it is and how it is reached, for a reviewer.
func DatabaseText(d *bawn.Database) string {
	s := string(d.Kind) + " at " + d.Address
	if d.Database != "" {
		s += "/" + d.Database
	}
	if d.Plaintext {
		s += " WITHOUT TLS"
	}
	if d.User != "" {
		s += " as " + d.User
	}
	if d.Secret != "" {
		s += " with the secret " + d.Secret
	}
	if d.Connections > 0 {
		s += fmt.Sprintf("; at most %d connections", d.Connections)
	}
	if d.Statements > 0 {
		s += fmt.Sprintf("; at most %d statements", d.Statements)
	}
	if d.Timeout > 0 {
		s += "; at most " + Duration(d.Timeout).String() + " each"
	}
	if len(d.Labels) > 0 {
		s += "; holds " + strings.Join(d.Labels, ", ")
	}
	return s
}
