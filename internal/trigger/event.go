package trigger

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// A request is what an event is made of.
type request struct {
	http    *http.Request
	id      string
	trace   string
	source  string // the caller's address
	scheme  string // by which the caller sent it
	rawPath string
	query   string // raw
	route   *bawn.Route
	params  map[string]string
	account string
	api     string // the function's name
	at      time.Time
	hideKey bool   // Authorization held a credential that was Bawn's to look at
	claims  []byte // of the token in it: a JSON object; nil if there is none
	body    []byte
	cert    *x509.Certificate // by which the route's own access was met; nil if it was not
}

// appendEvent appends the event that API Gateway makes of an HTTP request,
// payload format 2.0. It is written by hand because it is made for each call:
// encoding/json takes several times as long.
func appendEvent(b []byte, q *request) []byte {
	r := q.http
	b = append(b, `{"version":"2.0","routeKey":`...)
	b = appendRouteKey(b, q.route)
	b = append(b, `,"rawPath":`...)
	b = appendString(b, q.rawPath)
	b = append(b, `,"rawQueryString":`...)
	b = appendString(b, q.query)
	b = appendCookies(b, r.Header["Cookie"])
	b = appendHeaders(b, q)
	b = appendQuery(b, q.query)

	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	prefix, _, _ := strings.Cut(host, ".")
	b = append(b, `,"requestContext":{"accountId":`...)
	b = appendString(b, q.account)
	b = append(b, `,"apiId":`...)
	b = appendString(b, q.api)
	b = append(b, `,"domainName":`...)
	b = appendString(b, host)
	b = append(b, `,"domainPrefix":`...)
	b = appendString(b, prefix)
	if q.cert != nil {
		b = appendCertificate(b, q.cert)
	}
	if len(q.claims) > 0 {
		b = append(b, `,"authorizer":{"jwt":{"claims":`...)
		b = append(b, q.claims...)
		b = append(b, `,"scopes":null}}`...)
	}
	b = append(b, `,"http":{"method":`...)
	b = appendString(b, r.Method)
	b = append(b, `,"path":`...)
	b = appendString(b, q.rawPath)
	b = append(b, `,"protocol":`...)
	b = appendString(b, r.Proto)
	b = append(b, `,"sourceIp":`...)
	b = appendString(b, q.source)
	b = append(b, `,"userAgent":`...)
	b = appendString(b, r.UserAgent())
	b = append(b, `},"requestId":`...)
	b = appendString(b, q.id)
	b = append(b, `,"routeKey":`...)
	b = appendRouteKey(b, q.route)
	b = append(b, `,"stage":"$default","time":"`...)
	b = q.at.UTC().AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `","timeEpoch":`...)
	b = strconv.AppendInt(b, q.at.UnixMilli(), 10)
	b = append(b, '}')

	if len(q.params) > 0 {
		b = append(b, `,"pathParameters":{`...)
		first := true
		for k, v := range q.params {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = appendString(b, k)
			b = append(b, ':')
			b = appendString(b, v)
		}
		b = append(b, '}')
	}
	if len(q.body) > 0 {
		b = append(b, `,"body":`...)
		if isText(r.Header) && utf8.Valid(q.body) {
			b = appendString(b, q.body)
		} else {
			b = append(b, '"')
			b = base64.StdEncoding.AppendEncode(b, q.body)
			return append(b, `","isBase64Encoded":true}`...)
		}
	}
	return append(b, `,"isBase64Encoded":false}`...)
}

// bodySize returns how many bytes appendEvent makes of a body, or that it is
// more than an event may have.
func bodySize(h http.Header, body []byte) int {
	if !isText(h) || !utf8.Valid(body) {
		return base64.StdEncoding.EncodedLen(len(body))
	}
	n := len(body)
	for _, c := range body {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
			n++
		case c < ' ':
			n += 5
		}
	}
	return n
}

// certificate is the one by which the caller of c was let in, or nil.
func certificate(c *bawn.Call) *x509.Certificate {
	if !c.Certified {
		return nil
	}
	return c.Certificates[0]
}

// Bounds of what an event tells of a client certificate; what is longer is left out.
const (
	maxCertificateName = 1 << 10
	maxCertificatePEM  = 8 << 10
)

// appendCertificate writes who presented a client certificate, as API Gateway does.
func appendCertificate(b []byte, c *x509.Certificate) []byte {
	const date = "Jan _2 15:04:05 2006 GMT"
	short := func(s string, most int) string {
		if len(s) > most {
			return ""
		}
		return s
	}
	var serial strings.Builder
	for i, d := range c.SerialNumber.Bytes() { // at most 20, or so many as a certificate has room for
		if i > 0 {
			serial.WriteByte(':')
		}
		const hex = "0123456789abcdef"
		serial.WriteByte(hex[d>>4])
		serial.WriteByte(hex[d&15])
	}
	b = append(b, `,"authentication":{"clientCert":{"clientCertPem":`...)
	b = appendString(b, short(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})), maxCertificatePEM))
	b = append(b, `,"subjectDN":`...)
	b = appendString(b, short(c.Subject.String(), maxCertificateName))
	b = append(b, `,"issuerDN":`...)
	b = appendString(b, short(c.Issuer.String(), maxCertificateName))
	b = append(b, `,"serialNumber":`...)
	b = appendString(b, short(serial.String(), maxCertificateName))
	b = append(b, `,"validity":{"notBefore":`...)
	b = appendString(b, c.NotBefore.UTC().Format(date))
	b = append(b, `,"notAfter":`...)
	b = appendString(b, c.NotAfter.UTC().Format(date))
	return append(b, "}}}"...)
}

func appendRouteKey(b []byte, r *bawn.Route) []byte {
	b = append(b, '"')
	b = appendText(b, r.Method)
	b = append(b, ' ')
	b = appendText(b, r.Path)
	return append(b, '"')
}

// appendCookies takes the cookies out of the headers.
func appendCookies(b []byte, lines []string) []byte {
	first := true
	for _, line := range lines {
		for c := range strings.SplitSeq(line, ";") {
			if c = strings.TrimSpace(c); c == "" {
				continue
			}
			if first {
				b = append(b, `,"cookies":[`...)
			} else {
				b = append(b, ',')
			}
			first = false
			b = appendString(b, c)
		}
	}
	if !first {
		b = append(b, ']')
	}
	return b
}

// appendHeaders writes the headers in lower case, repeated ones joined by a
// comma. What only the platform may say is left out and said by the platform:
// control D9.
func appendHeaders(b []byte, q *request) []byte {
	b = append(b, `,"headers":{"host":`...)
	b = appendString(b, q.http.Host)
	b = append(b, `,"x-forwarded-for":`...)
	b = appendString(b, q.source)
	b = append(b, `,"x-forwarded-proto":"`...)
	b = append(b, cmp.Or(q.scheme, "https")...) // one of two words
	b = append(b, `","x-amzn-trace-id":`...)
	b = appendString(b, q.trace)
	var port string
	if _, p, err := net.SplitHostPort(q.http.Host); err == nil {
		port = p
	} else {
		port = "443"
	}
	b = append(b, `,"x-forwarded-port":`...)
	b = appendString(b, port)
	// net/http takes the length out of the headers of some requests.
	if q.http.ContentLength > 0 && q.http.Header["Content-Length"] == nil {
		b = append(b, `,"content-length":"`...)
		b = strconv.AppendInt(b, q.http.ContentLength, 10)
		b = append(b, '"')
	}
	for name, values := range q.http.Header {
		if len(values) == 0 || hidden(name) || q.hideKey && name == "Authorization" {
			continue
		}
		b = append(b, ',', '"')
		for i := 0; i < len(name); i++ {
			c := name[i] // a token: nothing in it needs an escape
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			b = append(b, c)
		}
		b = append(b, '"', ':', '"')
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(b, v)
		}
		b = append(b, '"')
	}
	return append(b, '}')
}

// hidden reports whether a request's header is not for the function: it speaks
// of the connection, or pretends to come from the platform. name is in canonical
// form.
func hidden(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Cookie", "Host", "Forwarded", "X-Real-Ip", "X-Request-Id":
		return true
	}
	if strings.IndexByte(name, '_') >= 0 {
		// CGI and WSGI take X_Bawn_Principal for X-Bawn-Principal, so it must not
		// pass where the other does not.
		return hidden(http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-")))
	}
	return strings.HasPrefix(name, "X-Bawn-") || strings.HasPrefix(name, "X-Amzn-") || strings.HasPrefix(name, "X-Forwarded-")
}

// appendQuery writes the parameters of a query, decoded, repeated ones joined
// by a comma. What cannot be decoded is taken as it is.
func appendQuery(b []byte, query string) []byte {
	if query == "" {
		return b
	}
	type pair struct {
		key    string
		values []byte // as JSON text, joined by commas
		value  string // the only one, if values is nil
	}
	var pairs []pair
	var seen map[string]int
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		k, v, _ := strings.Cut(part, "=")
		k, v = unescape(k), unescape(v)
		at := -1
		if seen != nil {
			if i, ok := seen[k]; ok {
				at = i
			}
		} else {
			for i := range pairs {
				if pairs[i].key == k {
					at = i
					break
				}
			}
		}
		if at >= 0 {
			// Joining strings would copy all that is there for each that comes.
			p := &pairs[at]
			if p.values == nil {
				p.values = appendText(nil, p.value)
			}
			p.values = appendText(append(p.values, ','), v)
			continue
		}
		pairs = append(pairs, pair{key: k, value: v})
		switch {
		case seen != nil:
			seen[k] = len(pairs) - 1
		case len(pairs) > 16:
			seen = make(map[string]int, 64)
			for i := range pairs {
				seen[pairs[i].key] = i
			}
		}
	}
	if len(pairs) == 0 {
		return b
	}
	b = append(b, `,"queryStringParameters":`...)
	for i := range pairs {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = appendString(b, pairs[i].key)
		b = append(b, ':')
		if pairs[i].values == nil {
			b = appendString(b, pairs[i].value)
			continue
		}
		b = append(b, '"')
		b = append(b, pairs[i].values...)
		b = append(b, '"')
	}
	return append(b, '}')
}

func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	if d, err := url.QueryUnescape(s); err == nil {
		return d
	}
	return s
}

// isText reports whether a request's body goes into the event as it is. All
// else is base64, forms included, as API Gateway has it.
func isText(h http.Header) bool {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return false
	}
	t := h.Get("Content-Type")
	if t == "" || t == "application/json" {
		return true
	}
	t, _, _ = mime.ParseMediaType(t)
	switch t {
	case "application/json", "application/xml", "application/javascript", "application/graphql", "application/x-ndjson":
		return true
	}
	return strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "+json") || strings.HasSuffix(t, "+xml")
}

// appendString appends s as a JSON string.
func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	b = append(b, '"')
	b = appendText(b, s)
	return append(b, '"')
}

const hexDigits = "0123456789abcdef"

// appendText appends s as the inside of a JSON string. Bytes that are not UTF-8
// become U+FFFD, one for one, as encoding/json has it.
func appendText[S ~string | ~[]byte](b []byte, s S) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			// At most four bytes are turned into a string, without an allocation.
			r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
			b = append(b, s[start:i]...)
			b = append(b, "\uFFFD"...)
			i++
			start = i
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}
