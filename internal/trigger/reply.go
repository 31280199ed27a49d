package trigger

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// Bounds of what a function may say about its answer.
const (
	maxReplyHeaders     = 128
	maxReplyHeaderBytes = 64 << 10
	maxPrelude          = 128 << 10
)

// preludeEnd is between the two parts of a bawn.PreludeType stream.
var preludeEnd = [8]byte{}

// A reply is an answer over HTTP.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// shape is what a function answers, as API Gateway's payload formats 2.0 and
// 1.0 have it.
type shape struct {
	StatusCode        json.RawMessage            `json:"statusCode"`
	Headers           map[string]json.RawMessage `json:"headers"`
	MultiValueHeaders map[string][]string        `json:"multiValueHeaders"`
	Cookies           []string                   `json:"cookies"`
	Body              *string                    `json:"body"`
	IsBase64Encoded   bool                       `json:"isBase64Encoded"`
}

// readReply reads a function's answer: with a status code it says what the
// response is; without, all of it is the body. The error says what is wrong with
// it, to the function's owner.
func readReply(payload []byte) (*reply, error) {
	s, err := readShape(payload)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return &reply{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: payload}, nil
	}
	r, err := s.reply()
	if err != nil {
		return nil, err
	}
	if s.Body != nil {
		r.body = []byte(*s.Body)
		if s.IsBase64Encoded {
			if r.body, err = base64.StdEncoding.DecodeString(*s.Body); err != nil {
				return nil, fmt.Errorf("body is not base64, though isBase64Encoded says so: %w", err)
			}
		}
	}
	if r.header["Content-Type"] == nil && len(r.body) > 0 {
		r.header["Content-Type"] = []string{"text/plain; charset=utf-8"}
	}
	return r, nil
}

// readShape returns nil for a payload that says nothing about a response.
func readShape(payload []byte) (*shape, error) {
	trimmed := bytes.TrimLeft(payload, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' || !bytes.Contains(trimmed, []byte(`"statusCode"`)) {
		// An escape could hide the name, but no encoder writes one there.
		if !json.Valid(payload) {
			return nil, errors.New("the answer is not JSON")
		}
		return nil, nil
	}
	var s shape
	if err := json.Unmarshal(trimmed, &s); err != nil {
		var probe map[string]json.RawMessage
		if json.Unmarshal(trimmed, &probe) == nil && probe["statusCode"] == nil {
			return nil, nil // the word is somewhere deeper
		}
		return nil, fmt.Errorf("the answer is not a response: %w", err)
	}
	if s.StatusCode == nil {
		return nil, nil
	}
	return &s, nil
}

// reply checks status, headers and cookies.
func (s *shape) reply() (*reply, error) {
	status, err := strconv.Atoi(strings.Trim(string(s.StatusCode), `"`))
	if err != nil || status < 200 || status > 599 {
		return nil, fmt.Errorf("statusCode is %.40s, want a number from 200 to 599", s.StatusCode)
	}
	if n := len(s.Headers) + len(s.MultiValueHeaders) + len(s.Cookies); n > maxReplyHeaders {
		return nil, fmt.Errorf("there are %d headers and cookies, at most %d are allowed", n, maxReplyHeaders)
	}
	h := make(http.Header, len(s.Headers)+2)
	size := 0
	add := func(name, value string) error {
		if size += len(name) + len(value); size > maxReplyHeaderBytes {
			return fmt.Errorf("headers and cookies have more than %d bytes", maxReplyHeaderBytes)
		}
		if !isToken(name) {
			return fmt.Errorf("the header name %.80q is not one", name)
		}
		if !isHeaderValue(value) {
			return fmt.Errorf("the header %s has a value with a line break or another character that must not be there", name)
		}
		if name = http.CanonicalHeaderKey(name); !reserved(name) {
			h[name] = append(h[name], value)
		}
		return nil
	}
	for name, raw := range s.Headers {
		value, err := scalar(raw)
		if err != nil {
			return nil, fmt.Errorf("the header %.80q: %w", name, err)
		}
		if err := add(name, value); err != nil {
			return nil, err
		}
	}
	for name, values := range s.MultiValueHeaders {
		if len(values) > maxReplyHeaders {
			return nil, fmt.Errorf("the header %.80q has %d values, at most %d are allowed", name, len(values), maxReplyHeaders)
		}
		if len(values) > 0 && isToken(name) {
			delete(h, http.CanonicalHeaderKey(name)) // as API Gateway: the list has the last word
		}
		for _, v := range values {
			if err := add(name, v); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range s.Cookies {
		if err := add("Set-Cookie", c); err != nil {
			return nil, err
		}
	}
	return &reply{status: status, header: h}, nil
}

// scalar returns a header's value: a string, or a number or truth value as it
// is written.
func scalar(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case '{', '[', 'n':
		return "", errors.New("its value is not a string")
	}
	return string(raw), nil
}

// reserved reports whether a response's header is not the function's to set: it
// belongs to the connection or to the platform. name is in canonical form. Such
// headers are left out, for honest frameworks send them without a thought.
func reserved(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "X-Request-Id":
		return true
	}
	return strings.HasPrefix(name, "X-Bawn-")
}

// isToken reports whether s may be a header's name.
func isToken(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

// isHeaderValue reports whether s may be a header's value.
func isHeaderValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

// readPrelude reads what a stream says about its response, before the stream
// itself, and returns that with what of the stream it has read already.
func readPrelude(r io.Reader) (*reply, []byte, error) {
	var buf []byte
	chunk := make([]byte, 4<<10)
	for {
		n, err := r.Read(chunk)
		from := max(0, len(buf)-len(preludeEnd)+1)
		buf = append(buf, chunk[:n]...)
		if i := bytes.Index(buf[from:], preludeEnd[:]); i >= 0 {
			end := from + i
			var s shape
			if e := json.Unmarshal(buf[:end], &s); e != nil {
				return nil, nil, fmt.Errorf("the beginning of the stream is not the JSON of a response: %w", e)
			}
			if s.StatusCode == nil {
				s.StatusCode = json.RawMessage("200")
			}
			p, e := s.reply()
			if e != nil {
				return nil, nil, e
			}
			if p.header["Content-Type"] == nil {
				p.header["Content-Type"] = []string{"application/octet-stream"}
			}
			rest := buf[end+len(preludeEnd):]
			if errors.Is(err, io.EOF) {
				err = nil // the next read says so again
			}
			return p, rest, err
		}
		if len(buf) > maxPrelude {
			return nil, nil, fmt.Errorf("the stream does not say where its first part ends within %d bytes", maxPrelude)
		}
		if errors.Is(err, io.EOF) {
			return nil, nil, errors.New("the stream ended before its first part did")
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// writeHead sends the reply's head. What the platform and the manifest say in it is
// set already.
func (p *reply) writeHead(w http.ResponseWriter, route *bawn.Route) {
	h := w.Header()
	if h["Ratelimit"] != nil { // a caller must not be told of two
		delete(p.header, "Ratelimit")
		delete(p.header, "Ratelimit-Policy")
	}
	for name, values := range p.header {
		switch {
		case settled(route, name):
		case name == "Vary" && h["Vary"] != nil:
			h["Vary"] = append(slices.Clone(h["Vary"]), values...)
		default:
			h[name] = values
		}
	}
	w.WriteHeader(p.status)
}
