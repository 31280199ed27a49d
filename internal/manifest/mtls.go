package manifest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// MTLS lets in who shows a client certificate; see [bawn.MTLSAccess].
type MTLS struct {
	CA       Authorities `json:"ca,omitzero"`
	Subjects []string    `json:"subjects,omitempty"`
}

// Bounds of what a route asks of client certificates.
const (
	maxSubjects = 32
	maxSubject  = 256 // bytes
)

// Authorities is certificates of authorities: as PEM, or the path of their file
// relative to the manifest. [Function.ReadFiles] puts the file's text in the path's
// place.
type Authorities struct {
	File string
	PEM  string
}

// MarshalJSON writes the path or the certificates.
func (a Authorities) MarshalJSON() ([]byte, error) {
	if a.File != "" {
		return json.Marshal(a.File)
	}
	return json.Marshal(a.PEM)
}

// authorities reads certificates, or the path of their file.
func authorities(name string) value[Authorities] {
	schema := map[string]any{"type": "string", "minLength": 1, "maxLength": maxAuthorities}
	path := text(name, 1, maxCode)
	return value[Authorities]{schema, func(d *decoder, n *yaml.Node, at string) (Authorities, bool) {
		s, ok := scalar(d, n, at, "certificates as PEM, or the path of their file", "!!str")
		if !ok {
			return Authorities{}, false
		}
		if !strings.Contains(s, "-----BEGIN ") && !strings.Contains(s, "\n") {
			s, ok := path.read(d, n, at)
			return Authorities{File: s}, ok
		}
		if why := checkAuthorities(s); why != "" {
			d.report(n, at, name+" "+why, "")
			return Authorities{}, false
		}
		return Authorities{PEM: s}, true
	}}
}

// checkAuthorities says what is wrong with a document of authorities, or "". What it
// says holds nothing of the document: that may be a key.
func checkAuthorities(doc string) string {
	if len(doc) > maxAuthorities {
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(doc), maxAuthorities)
	}
	const bad = "is not certificates of authorities as PEM, each as BEGIN CERTIFICATE, and nothing else"
	n := 0
	rest := []byte(doc)
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			if n == 0 || len(bytes.TrimSpace(rest)) > 0 {
				return bad
			}
			return ""
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil || b.Type != "CERTIFICATE" || !c.IsCA || !c.BasicConstraintsValid {
			return bad
		}
		n++
	}
}

// authorities lists the places where routes name authorities, each with its field.
func (a *Access) authorities() map[string]*Authorities {
	all := map[string]*Authorities{}
	if a.JWT != nil {
		all["jwt.ca"] = &a.JWT.CA
	}
	if a.MTLS != nil {
		all["mtls.ca"] = &a.MTLS.CA
	}
	return all
}

// readAuthorities puts the certificates that are named by their files in the place
// of the names, in copies of what f shares with others. f.Ingress.HTTP is a copy.
func (f *Function) readAuthorities(read func(path, field string) ([]byte, error)) error {
	for i := range f.Ingress.HTTP {
		access := &f.Ingress.HTTP[i].Access
		if access.JWT != nil {
			mine := *access.JWT
			access.JWT = &mine
		}
		if access.MTLS != nil {
			mine := *access.MTLS
			access.MTLS = &mine
		}
		for name, ca := range access.authorities() {
			if ca.File == "" {
				continue
			}
			field := fmt.Sprintf("ingress.http[%d].access.%s", i, name)
			raw, err := read(ca.File, field)
			if err != nil {
				return err
			}
			if why := checkAuthorities(string(raw)); why != "" {
				return bawn.Errorf(bawn.CodeUnprocessable, "manifest", "%s: the file %s %s", field, quote(ca.File), why).
					WithFix("give the certificates of the authorities alone, without any key")
			}
			*ca = Authorities{PEM: string(raw)}
		}
	}
	return nil
}

// written reports what stands in the way of compiling the access at a place: a file
// that only the caller has.
func (a *Access) written(at string) error {
	for name, ca := range a.authorities() {
		if ca.File != "" {
			return bawn.Errorf(bawn.CodeUnprocessable, "manifest", "%s.%s: the certificates themselves are wanted here, not the name of their file %s", at, name, quote(ca.File)).
				WithFix("send them as PEM, or let bawn deploy read the file")
		}
	}
	return nil
}

func (m *MTLS) compile() *bawn.MTLSAccess {
	return &bawn.MTLSAccess{CA: m.CA.PEM, Subjects: slices.Compact(slices.Sorted(slices.Values(m.Subjects)))}
}

func mtlsFields() object[MTLS] {
	subjects := listOf("subjects", maxSubjects, subject())
	return object[MTLS]{doc: "mtls", fields: []field[MTLS]{
		is("ca", "the authorities of the certificates: PEM, or its file relative to this one; the tenant's issuers of certificates if left out", authorities("ca"), func(m *MTLS) *Authorities { return &m.CA }),
		is("subjects", "names of which one must be in the certificate, as dns:NAME, dns:*.NAME, email:ADDRESS, uri:URI or uri:URI/*; any if left out", subjects, func(m *MTLS) *[]string { return &m.Subjects }),
	}, rules: func(m *MTLS, has func(string) bool, say func(string, error)) {
		if has("subjects") && len(m.Subjects) == 0 {
			say("subjects", &wrong{Message: "subjects is empty; leave it out for all of them"})
		}
	}}
}

// subject is a name that a certificate must have.
func subject() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": "^(dns|email|uri):", "maxLength": maxSubject}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a name in certificates", "!!str")
		if !ok {
			return "", false
		}
		out, ok := readSubject(s)
		if !ok {
			suggestion := ""
			if _, ok := readSubject("dns:" + s); ok {
				suggestion = "dns:" + s
			}
			d.report(n, at, fmt.Sprintf("subject %s must be dns:NAME, dns:*.NAME, email:ADDRESS, uri:URI, or uri:URI/* for one more step, of at most %d bytes; a common name is not looked at", quote(s), maxSubject), suggestion)
			return "", false
		}
		return out, true
	}}
}

// readSubject returns a subject as it is compared: domains in lower case.
func readSubject(s string) (string, bool) {
	kind, rest, _ := strings.Cut(s, ":")
	if len(s) > maxSubject || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return "", false
	}
	switch kind {
	case "dns":
		rest = strings.ToLower(rest)
		return "dns:" + rest, isDomain(strings.TrimPrefix(rest, "*."))
	case "email":
		user, domain, _ := strings.Cut(rest, "@")
		domain = strings.ToLower(domain)
		return "email:" + user + "@" + domain, user != "" && !strings.Contains(user, "*") && isDomain(domain)
	case "uri":
		whole := strings.TrimSuffix(rest, "/*")
		u, err := url.Parse(whole)
		return s, err == nil && u.Scheme != "" && (u.Host != "" || u.Opaque != "") && !strings.Contains(whole, "*") && u.String() == whole
	}
	return "", false
}

// isDomain reports whether s is labels of letters, digits, - and _.
func isDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
