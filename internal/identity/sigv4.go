package identity

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"bawn.dev/bawn"
)

const (
	signScheme       = "AWS4-HMAC-SHA256"
	signService      = "lambda"
	signWindow       = 5 * time.Minute // by which the clock of who signs may differ
	signDate         = "20060102T150405Z"
	maxSignedText    = 4096 // bytes of the Authorization header
	maxSignedHeaders = 64
	maxSignedQuery   = 16 << 10
	signSecretBytes  = 30 // shown as 40 characters, as AWS does
)

// SigningSecret returns the secret that a key's owner signs requests with. It is
// derived from the key's id and a secret of the node, so nothing more is stored,
// and it ends with the key.
func (a *Authenticator) SigningSecret(key string) string {
	m := hmac.New(sha256.New, a.cfg.Secret)
	m.Write([]byte("key " + key))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil)[:signSecretBytes])
}

// signature is an Authorization header of AWS Signature Version 4.
type signature struct {
	key     string // the access key's id
	date    string // YYYYMMDD
	region  string
	service string
	headers []string // signed ones, in lower case, sorted
	sum     [sha256.Size]byte
}

// IsSigned reports whether an Authorization header is a signature by a key of
// Bawn's: what others sign is for the function.
func IsSigned(authorization string) bool {
	s, ok := parseSignature(authorization)
	return ok && isKeyID(s.key)
}

func isKeyID(id string) bool {
	return len(id) == 2*idBytes && strings.Trim(id, "0123456789abcdef") == ""
}

// parseSignature reads an Authorization header. There is one spelling of each: a
// second one would be a second request.
func parseSignature(header string) (s signature, ok bool) {
	rest, ok := strings.CutPrefix(header, signScheme+" ")
	if !ok || len(header) > maxSignedText {
		return s, false
	}
	seen := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " "), "=")
		if _, twice := seen[name]; !ok || twice || value == "" {
			return s, false
		}
		seen[name] = value
	}
	if len(seen) != 3 {
		return s, false
	}
	scope := strings.Split(seen["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return s, false
	}
	s.key, s.date, s.region, s.service = scope[0], scope[1], scope[2], scope[3]
	for _, v := range scope {
		if v == "" || len(v) > 64 || strings.ContainsFunc(v, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return s, false
		}
	}
	s.headers = strings.Split(seen["SignedHeaders"], ";")
	if len(s.headers) > maxSignedHeaders || !slices.IsSorted(s.headers) {
		return s, false
	}
	for i, h := range s.headers {
		if h == "" || strings.ToLower(h) != h || i > 0 && h == s.headers[i-1] || strings.ContainsFunc(h, notPrintable) {
			return s, false
		}
	}
	hexSum := seen["Signature"]
	if len(hexSum) != 2*sha256.Size || strings.Trim(hexSum, "0123456789abcdef") != "" {
		return s, false
	}
	_, err := hex.Decode(s.sum[:], []byte(hexSum))
	return s, err == nil
}

// badSignature says that a signed request is refused.
func badSignature(format string, args ...any) error {
	return faulty(bawn.SignatureWrong, format, args...)
}

func faulty(fault bawn.SignatureFault, format string, args ...any) error {
	return bawn.Wrap(fault, bawn.CodeUnauthenticated, "identity.signature", "the request's signature is not valid"+format, args...).
		WithFix("sign each request anew with the secret that `bawn key create --aws` printed, for the service lambda, and with a clock that is right")
}

// readSigned returns the signature of r and its key, as far as that can be said
// without the body.
func (a *Authenticator) readSigned(r *bawn.Signed) (s signature, at time.Time, key *storedKey, err error) {
	fail := func(format string, args ...any) (signature, time.Time, *storedKey, error) {
		return s, at, nil, badSignature(format, args...)
	}
	malformed := func(what string) (signature, time.Time, *storedKey, error) {
		return s, at, nil, faulty(bawn.SignatureMalformed, ": %s", what)
	}
	auth := r.Header["Authorization"]
	if len(auth) != 1 {
		return malformed("it needs one Authorization header")
	}
	s, ok := parseSignature(auth[0])
	if !ok {
		return malformed("its Authorization header is malformed")
	}
	dates := r.Header["X-Amz-Date"]
	if len(dates) != 1 {
		return malformed("it needs one header X-Amz-Date")
	}
	if at, err = time.Parse(signDate, dates[0]); err != nil || !strings.HasPrefix(dates[0], s.date) {
		return fail(": its date is malformed or not the one it is signed for")
	}
	switch now := a.cfg.Now(); {
	case s.service != signService:
		return fail(": it is for the service %.64s, not for %s", s.service, signService)
	case now.Sub(at) >= signWindow, at.Sub(now) >= signWindow:
		return fail(": its date differs by 5 minutes or more from the node's clock")
	case !slices.Contains(s.headers, "host") || !slices.Contains(s.headers, "x-amz-date"):
		return fail(": the headers host and x-amz-date must be signed")
	case r.Header["X-Amz-Security-Token"] != nil:
		return s, at, nil, faulty(bawn.SignatureUnknown, ": session tokens are not used here")
	case strings.Contains(r.Query, "X-Amz-") || len(r.Query) > maxSignedQuery:
		return fail(": a signature in the URL is not accepted")
	}
	if key = a.cfg.Keys.byKeyID(s.key); key == nil || a.cfg.Keys.expired(key) {
		return s, at, nil, faulty(bawn.SignatureUnknown, "")
	}
	return s, at, key, nil
}

// authenticateSigned says who signed a request. It is accepted once, which is
// durable before this returns.
func (a *Authenticator) authenticateSigned(ctx context.Context, r *bawn.Signed) (bawn.Principal, error) {
	s, at, key, err := a.readSigned(r)
	if err != nil {
		return bawn.Principal{}, err
	}
	want, err := a.sign(ctx, r, s, at)
	if err != nil {
		return bawn.Principal{}, err
	}
	if subtle.ConstantTimeCompare(want.sum[:], s.sum[:]) != 1 || !slices.Equal(want.headers, s.headers) {
		return bawn.Principal{}, badSignature("")
	}
	if err := a.replay.accept(ctx, s.key, s.sum, at); err != nil {
		return bawn.Principal{}, err
	}
	p := key.principal()
	p.Access = bawn.AccessSigV4
	return p, nil
}

// sign returns the signature that r should have, as AWS's own code makes it.
func (a *Authenticator) sign(ctx context.Context, r *bawn.Signed, s signature, at time.Time) (signature, error) {
	// A header that says what the body is must be true.
	if said := r.Header["X-Amz-Content-Sha256"]; len(r.Body) != 2*sha256.Size || len(said) > 1 || len(said) == 1 && said[0] != r.Body {
		return s, badSignature(": the body is not the one that was signed")
	}
	// A query that can be read in two ways is signed in one of them only.
	if _, err := url.ParseQuery(r.Query); err != nil {
		return s, badSignature(": its query is malformed")
	}
	if !strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "?#") {
		return s, badSignature("")
	}
	req := &http.Request{
		Method: r.Method, Host: r.Host, Header: http.Header{},
		URL: &url.URL{Scheme: "https", Host: r.Host, Opaque: "//" + r.Host + r.Path, RawQuery: r.Query},
	}
	for _, name := range s.headers {
		switch name {
		case "host", "x-amz-date":
			continue
		case "content-length":
			if said := r.Header["Content-Length"]; len(said) == 1 && said[0] != strconv.FormatInt(r.Length, 10) || r.Length <= 0 {
				return s, badSignature(": its length is not the one that was signed")
			}
			req.ContentLength = r.Length
			continue
		}
		values := r.Header[textproto.CanonicalMIMEHeaderKey(name)]
		if len(values) == 0 {
			return s, badSignature(": the signed header %.80q is missing", name)
		}
		req.Header[textproto.CanonicalMIMEHeaderKey(name)] = slices.Clone(values)
	}
	// A signer keeps what it derived for each region that it was ever asked for, so
	// each request gets one of its own.
	credentials := aws.Credentials{AccessKeyID: s.key, SecretAccessKey: a.SigningSecret(s.key)}
	if err := v4.NewSigner().SignHTTP(ctx, credentials, req, r.Body, s.service, s.region, at); err != nil {
		return s, badSignature("")
	}
	want, ok := parseSignature(req.Header.Get("Authorization"))
	if !ok {
		return s, badSignature("")
	}
	return want, nil
}
