package bawn

import (
	"fmt"
	"strconv"
	"strings"
)

// Names have one grammar everywhere: 1 to 63 characters of a-z, 0-9 and '-',
// beginning with a letter and not ending with '-'. No user string that is not
// a name ever becomes part of a path, a subject or a key.
const maxName = 63

// LiveAlias is the alias that calls go to when they name none.
const LiveAlias = "live"

// DefaultTenant is the tenant of a node that was never told of another.
const DefaultTenant = "main"

// CheckName reports whether s is a name. kind ("function", "tenant") is used in
// the error, which has code [CodeInvalid].
func CheckName(kind, s string) error {
	bad := ""
	switch {
	case s == "":
		bad = "is empty"
	case len(s) > maxName:
		bad = fmt.Sprintf("has %d characters, at most %d are allowed", len(s), maxName)
	case s[0] < 'a' || s[0] > 'z':
		bad = "must begin with a letter a-z"
	case s[len(s)-1] == '-':
		bad = "must not end with '-'"
	default:
		for _, c := range []byte(s) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				bad = fmt.Sprintf("has the character %q; only a-z, 0-9 and '-' are allowed", rune(c))
				break
			}
		}
	}
	if bad == "" {
		return nil
	}
	shown := s
	if len(shown) > 80 {
		shown = shown[:80] + "…"
	}
	return Errorf(CodeInvalid, "name", "%s name %q %s", kind, shown, bad)
}

// Ref names a function and, if Qualifier is set, one of its versions (a
// decimal number) or aliases (a name). Its text is tenant/function@qualifier;
// the tenant may be left out where a default is known.
type Ref struct {
	Tenant    string
	Function  string
	Qualifier string
}

// ParseRef reads a reference. tenant is used where s names none.
func ParseRef(s, tenant string) (Ref, error) {
	r := Ref{Tenant: tenant, Function: s}
	if t, rest, ok := strings.Cut(s, "/"); ok {
		r.Tenant, r.Function = t, rest
	}
	if f, q, ok := strings.Cut(r.Function, "@"); ok {
		r.Function, r.Qualifier = f, q
		if q == "" {
			return Ref{}, Errorf(CodeInvalid, "name", "reference %.80q has nothing after '@'", s)
		}
	}
	return r, r.Check()
}

// Check reports whether every part of r is well formed.
func (r Ref) Check() error {
	if err := CheckName("tenant", r.Tenant); err != nil {
		return err
	}
	if err := CheckName("function", r.Function); err != nil {
		return err
	}
	if r.Qualifier == "" {
		return nil
	}
	if n, ok := r.Version(); ok {
		if n < 1 {
			return Errorf(CodeInvalid, "name", "version %.20q must be 1 or more", r.Qualifier)
		}
		return nil
	}
	return CheckName("alias", r.Qualifier)
}

// Version returns the version number that r names, if it names one.
func (r Ref) Version() (int, bool) {
	if r.Qualifier == "" || r.Qualifier[0] < '0' || r.Qualifier[0] > '9' {
		return 0, false
	}
	n, err := strconv.Atoi(r.Qualifier)
	return n, err == nil
}

// String returns tenant/function or tenant/function@qualifier.
func (r Ref) String() string {
	s := r.Tenant + "/" + r.Function
	if r.Qualifier != "" {
		s += "@" + r.Qualifier
	}
	return s
}
