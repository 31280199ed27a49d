package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// Bounds of a token.
const (
	maxTokenBytes = 16 << 10
	maxTokenDepth = 16
	maxAudiences  = 32
	maxSubject    = 200
	maxNameText   = 200
	maxClaimRoles = 500 // values of the role claim that are looked at
)

// Algorithms lists how tokens may be signed: with a key of which the half that
// verifies is no secret. A token says itself how it is signed, so whatever else
// there is must not be known here at all: not none, and none with a shared secret.
func Algorithms() []string {
	return []string{"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"}
}

// token is a JSON Web Token as it was read, before anything of it is believed.
type token struct {
	alg, kid  string
	issuer    string
	audiences []string
	party     string // azp
	subject   string
	issued    time.Time
	expires   time.Time
	notBefore time.Time // zero: there is none
	claims    map[string]json.RawMessage
}

var errToken = errors.New("not a token that is taken here")

// untaken is errToken with the reason, which is for whoever owns the door.
func untaken(why string) error { return fmt.Errorf("%w: %s", errToken, why) }

// looksLikeToken reports whether s has the form of a signed token. A token that
// is encrypted has five parts.
func looksLikeToken(s string) bool {
	return len(s) <= maxTokenBytes && strings.Count(s, ".") == 2 && strings.HasPrefix(s, "ey")
}

// peek returns for whom a token says it is, and by whom it says it was issued; it
// need be neither well formed nor good.
func peek(s string) (issuer string, audiences []string) {
	if !looksLikeToken(s) {
		return "", nil
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(s, ".")[1])
	var claims struct {
		Issuer   string          `json:"iss"`
		Audience json.RawMessage `json:"aud"`
	}
	if err != nil || json.Unmarshal(data, &claims) != nil {
		return "", nil
	}
	audiences, _ = texts(claims.Audience, maxAudiences)
	return claims.Issuer, audiences
}

// parseToken reads a token strictly: nothing in it may have a second meaning, and
// it must not say where the key that it is signed with is to be had.
func parseToken(s string) (*token, error) {
	if !looksLikeToken(s) {
		return nil, errToken
	}
	parts := strings.Split(s, ".")
	head, err := object(parts[0])
	if err != nil {
		return nil, err
	}
	t := &token{}
	for name, raw := range head {
		switch name {
		case "alg":
			err = text(raw, &t.alg)
		case "kid":
			err = text(raw, &t.kid)
		case "typ":
			var typ string
			err = text(raw, &typ)
			// Other types are signed by the same keys for another purpose.
			if typ = strings.ToLower(typ); !slices.Contains([]string{"jwt", "at+jwt", "application/at+jwt"}, typ) {
				err = errToken
			}
		case "x5t", "x5t#S256", "iss", "sub", "aud":
			// Say nothing that is used here.
		default:
			// jwk, jku, x5u, x5c, crit, zip, b64, cty, enc …
			err = errToken
		}
		if err != nil {
			return nil, err
		}
	}
	if !slices.Contains(Algorithms(), t.alg) || len(t.kid) > maxIssuerText {
		return nil, errToken
	}
	if t.claims, err = object(parts[1]); err != nil {
		return nil, err
	}
	sig, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(sig) == 0 || strings.ContainsAny(parts[2], "\r\n") {
		return nil, errToken
	}
	return t, t.read()
}

// read takes the claims that every token has to have out of it.
func (t *token) read() error {
	for name, raw := range t.claims {
		var err error
		switch name {
		case "iss":
			err = text(raw, &t.issuer)
		case "sub":
			err = text(raw, &t.subject)
		case "azp":
			err = text(raw, &t.party)
		case "aud":
			t.audiences, err = texts(raw, maxAudiences)
		case "iat":
			t.issued, err = moment(raw)
		case "exp":
			t.expires, err = moment(raw)
		case "nbf":
			t.notBefore, err = moment(raw)
		case "cnf", "events", "_claim_names", "_claim_sources":
			// It is bound to a key that is not shown here, or it is no token of a
			// person who logged in, or half of it lies elsewhere.
			err = errToken
		}
		if err != nil {
			return err
		}
	}
	if t.issuer == "" || t.subject == "" || len(t.audiences) == 0 || t.issued.IsZero() || t.expires.IsZero() {
		return errToken
	}
	if len(t.subject) > maxSubject || strings.ContainsFunc(t.subject, notPrintable) {
		return errToken
	}
	return nil
}

// object decodes one part of a token: a JSON object in which no name is there
// twice, nor once in another case, which some decoders take for the same.
func object(part string) (map[string]json.RawMessage, error) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, errToken // the decoder would skip line ends
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, errToken
	}
	if err := strict(data); err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil || m == nil {
		return nil, errToken
	}
	return m, nil
}

// strict reports whether data is one JSON value without duplicate names, of a
// bounded depth.
func strict(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	// A frame is what is open: the names seen of an object, nil for an array.
	type frame struct {
		names map[string]bool
		value bool // an object's next token is a value
	}
	var open []frame
	for {
		tok, err := d.Token()
		if err != nil {
			return errToken
		}
		top := len(open) - 1
		if delim, ok := tok.(json.Delim); ok && (delim == '}' || delim == ']') {
			open = open[:top]
		} else {
			if name, ok := tok.(string); ok && top >= 0 && open[top].names != nil && !open[top].value {
				name = strings.ToLower(name)
				if open[top].names[name] {
					return errToken
				}
				open[top].names[name] = true
				open[top].value = true
				continue
			}
			if top >= 0 {
				open[top].value = false
			}
			if ok {
				if len(open) == maxTokenDepth {
					return errToken
				}
				f := frame{}
				if delim == '{' {
					f.names = map[string]bool{}
				}
				open = append(open, f)
			}
		}
		if len(open) == 0 {
			if _, err := d.Token(); err != io.EOF {
				return errToken
			}
			return nil
		}
	}
}

func text(raw json.RawMessage, s *string) error {
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, s) != nil {
		return errToken
	}
	return nil
}

// texts reads a string or a list of strings.
func texts(raw json.RawMessage, most int) ([]string, error) {
	var one string
	if text(raw, &one) == nil {
		return []string{one}, nil
	}
	var all []*string
	if json.Unmarshal(raw, &all) != nil || len(all) > most {
		return nil, errToken
	}
	list := make([]string, len(all))
	for i, s := range all {
		if s == nil {
			return nil, errToken
		}
		list[i] = *s
	}
	return list, nil
}

// moment reads a number of seconds since 1970, which may have a fraction.
func moment(raw json.RawMessage) (time.Time, error) {
	var n float64
	if len(raw) == 0 || raw[0] == '"' || raw[0] == 'n' || json.Unmarshal(raw, &n) != nil || !(n >= 0 && n < 1<<40) {
		return time.Time{}, errToken
	}
	whole, part := math.Modf(n)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), nil
}

// holds reports whether the token is good for i now, its signature aside.
func (t *token) holds(i *issuer, now time.Time) error {
	skew := i.ClockSkew
	want := i.token()
	switch {
	case t.issuer != want.url:
		return untaken("it is of another issuer")
	case !slices.Contains(t.audiences, want.audience):
		return untaken("it is for another audience")
	case !slices.Contains(i.Algorithms, t.alg):
		return untaken("it is signed in a way that is not taken")
	case !now.Before(t.expires.Add(skew)):
		return untaken("it has ended")
	case now.Add(skew).Before(t.issued), now.Add(skew).Before(t.notBefore):
		return untaken("it is not good yet")
	case t.expires.Sub(t.issued) > i.MaxLife || !t.expires.After(t.issued):
		return untaken("it is good for too long")
	}
	// A token for the client itself was made for whom azp names, and one for
	// several has to say for whom.
	if want.audience == i.ClientID && t.party != i.ClientID && (t.party != "" || len(t.audiences) > 1) {
		return errToken
	}
	for name, value := range i.Require {
		if !t.says(name, value) {
			return errToken
		}
	}
	return nil
}

// says reports whether the claim name has the value, or is a list that has it.
func (t *token) says(name, value string) bool {
	raw := t.claims[name]
	if string(raw) == value && (value == "true" || value == "false") {
		return true
	}
	values, err := texts(raw, maxClaimRoles)
	return err == nil && slices.Contains(values, value)
}

// principal is who the token is about.
func (t *token) principal(i *issuer) bawn.Principal {
	groups, _ := texts(t.claims[i.RoleClaim], maxClaimRoles)
	p := bawn.Principal{
		Kind: bawn.PrincipalUser, ID: i.Name + ":" + t.subject, Tenant: i.Tenant,
		Roles:  i.rolesFor(func(value string) bool { return slices.Contains(groups, value) }),
		Issued: t.issued, Expires: t.expires.Add(i.ClockSkew), Revision: i.revision, Issuer: i.Name,
	}
	for _, claim := range []string{"email", "preferred_username", "name"} {
		if text(t.claims[claim], &p.Name) == nil && p.Name != "" {
			p.Name = strings.Map(func(r rune) rune {
				if r < ' ' || r == 0x7f || r > 0x7f && r < 0xa0 {
					return -1
				}
				return r
			}, p.Name)
			if len(p.Name) > maxNameText {
				p.Name = strings.ToValidUTF8(p.Name[:maxNameText], "")
			}
			break
		}
	}
	return p
}
