package bawn

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"io"
	"strconv"
	"time"
)

// Call is one request to run a function, whatever trigger it came from. A
// trigger builds it; from there on every call takes the same way.
type Call struct {
	ID        string    // of the invocation: a random UUID, the Lambda request id
	Trigger   string    // "http", "api", "lambda" or "function"
	Target    Ref       // for a call by name; Function is empty for a call by route
	Route     *Route    // the route that matched, for a call by route
	Source    string    // the caller's address without port, for limits and the log
	Bearer    string    // the credential presented, if any: a key or a token; never logged
	Principal Principal // who it is; set by the authn check
	Event     []byte    // the event as the handler will see it, JSON
	Request   *Request  // for a call by route: what came, as it came
	TraceID   string    // X-Ray style trace header for the runtime
	At        time.Time // arrival
	Client    string    // decoded client context JSON, may be empty

	// What else says who calls. A certificate beside another credential must be good
	// as well, and of the same tenant.
	Certificates []*x509.Certificate // which the caller presented in the TLS handshake, its own first; not verified
	Claims       []byte              // of the token in Bearer, by which a route's own access was met: a JSON object of texts
	Certified    bool                // the first of Certificates meets the route's own access
	Signed       *Signed             // the request as it came, if its Authorization header is an AWS signature

	// Of a call that a function makes, and of one that carries the signed context
	// of such a call. A trigger sets them from what it knows, never from what the
	// caller says.
	Origin Principal // who began the chain; the zero value if that is Principal
	Chain  []Ref     // the versions through which it came, oldest first; the last one is the caller
	Order  int       // how many calls the calling invocation has made before this one
	Called []string  // the functions it has called before, sorted, each once
	Hops   int       // how many calls of functions by functions led here
	Parent string    // the calling invocation's id
	Caller *Version  // the calling version, as its instance runs it

	Tail bool // whether the end of its log is wanted with the answer

	Rate RateStatus // set by the gate: of the limit nearest to its end
}

// Request is what came over HTTP, for the checks that look at its parts. Nothing
// of it is changed once the call is made.
type Request struct {
	Method string
	Host   string              // as it came, with the port if it named one
	Path   string              // escaped, as it stood in the request line
	Query  string              // raw, without the question mark
	Header map[string][]string // in canonical form, as in net/http
	Params map[string]string   // path parameters, decoded
	Body   []byte              // nil if there was none, or it was not worth reading
	Proto  string              // such as HTTP/1.1
}

// From returns who began the chain that led to c.
func (c *Call) From() Principal {
	if c.Origin.Kind != "" {
		return c.Origin
	}
	return c.Principal
}

// Signed is what a request with an AWS Signature Version 4 in its Authorization
// header was signed over, as it came.
type Signed struct {
	Method string
	Host   string              // of the request, with the port if it named one
	Path   string              // escaped, as it stood in the request line
	Query  string              // raw, without the question mark
	Header map[string][]string // in canonical form, as in net/http; not changed
	// Body is the SHA-256 of the body in hex digits. A body that a program has not
	// read yet has none; such a request can be looked at, and never accepted.
	Body string
	// Length is the body's, in bytes.
	Length int64
}

// A SignatureFault is what is wrong with a signed request. An error of
// CodeUnauthenticated wraps it where clients of AWS tell faults apart.
type SignatureFault string

// Faults of signatures.
const (
	SignatureMalformed SignatureFault = "malformed" // its parts cannot be read, or one is missing
	SignatureUnknown   SignatureFault = "unknown"   // its key is not known here, or has ended
	SignatureWrong     SignatureFault = "wrong"     // not made over this request, not now, or used already
)

// Error returns the fault's name.
func (f SignatureFault) Error() string { return string(f) }

// MaxHops is how many calls of functions by functions may follow from one call;
// control H5. AWS Lambda stops such a chain at 16.
const MaxHops = 16

// LogTailBytes is how much of its log a call may come back with, as in AWS
// Lambda.
const LogTailBytes = 4 << 10

// Result is what an instance answered. Exactly one of Payload and Stream is
// set. FunctionError is not empty if the function failed: Payload then is the
// error document that the runtime posted or that Bawn wrote in its place.
type Result struct {
	Version       int
	Payload       []byte
	ContentType   string        // of a stream, or of a payload that a provided runtime labelled
	Stream        io.ReadCloser // a streamed result; its Read returns a *StreamError if the function failed midway
	FunctionError string        // "" or "Unhandled", as in AWS Lambda
	Cause         Code          // with FunctionError: CodeFunctionError or CodeFunctionTimeout
	Log           []byte        // the end of the call's log, at most LogTailBytes, if it was wanted; not of a stream
	Usage         Usage
}

// PreludeType is the content type of an answer that begins with the status and
// headers of an HTTP reply as JSON, eight NUL bytes, and then its body, as in AWS
// Lambda.
const PreludeType = "application/vnd.awslambda.http-integration-response"

// StreamError ends a [Result.Stream] whose function failed after the first byte.
type StreamError struct{ Payload []byte }

// Error returns a text without the function's detail.
func (e *StreamError) Error() string { return "the function failed while streaming" }

// Usage is what one invocation used. It is complete once the result is, which
// for a stream is after its last byte.
type Usage struct {
	Cold      bool          `json:"cold"`
	Init      time.Duration `json:"init,omitempty" doc:"nanoseconds from start or attach to a loaded handler; cold calls only"`
	Duration  time.Duration `json:"duration" doc:"nanoseconds from event sent to result received"`
	MaxMemory int64         `json:"maxMemory,omitempty" doc:"bytes, the instance's peak"`
	CPU       time.Duration `json:"cpu,omitempty" doc:"nanoseconds of processor time of the instance's processes, loading included"`
	Traffic
}

// Traffic is what crossed the egress of an instance.
type Traffic struct {
	Sent        int64 `json:"sent,omitempty" doc:"bytes to hosts and databases outside"`
	Received    int64 `json:"received,omitempty" doc:"bytes from them"`
	Connections int   `json:"connections,omitempty" doc:"made to them"`
}

// NewID returns a random UUID (version 4).
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

func itoa(n int) string { return strconv.Itoa(n) }
