package trigger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

// LambdaPrefix begins the paths of the Lambda-shaped API. No route may.
const LambdaPrefix = "/2015-03-31/"

const (
	defaultRegion    = "us-east-1"
	maxClientContext = 3583 // bytes of the header, as in AWS Lambda
	maxFunctionName  = 170  // of everything that may stand for one, as in AWS Lambda
	maxQualifier     = 128
	maxShownName     = 200
	signatureScheme  = "AWS4-HMAC-SHA256 "
)

// LambdaConfig says how calls in the shape of AWS Lambda's Invoke work. Invoker
// is needed.
type LambdaConfig struct {
	Invoker *invoke.Invoker
	Account string       // in the names of functions: 123456789012
	Region  string       // the same: us-east-1
	Proxies Proxies      // whose word is believed on where requests come from
	Errors  *slog.Logger // hears of defects of Bawn's own
}

// Lambda answers AWS Lambda's Invoke, for clients outside and for functions that
// call functions. Its methods are safe for concurrent use.
type Lambda struct {
	cfg    LambdaConfig
	room   room // of those outside
	inside room // of functions
}

// NewLambda returns a trigger.
func NewLambda(cfg LambdaConfig) *Lambda {
	cfg.Account = cmp.Or(cfg.Account, defaultAccount)
	cfg.Region = cmp.Or(cfg.Region, defaultRegion)
	if cfg.Errors == nil {
		cfg.Errors = slog.New(slog.DiscardHandler)
	}
	return &Lambda{cfg: cfg}
}

// A lambdaError is an error in the shape of Lambda's.
type lambdaError struct {
	status  int
	kind    string
	message string
	capital bool   // clients read Message, not message
	reason  string // of a refusal for want of room
	service bool   // the fault is the platform's
}

// Error returns the text that clients see.
func (e *lambdaError) Error() string { return e.message }

func invalidParameter(message string) *lambdaError {
	return &lambdaError{status: http.StatusBadRequest, kind: "InvalidParameterValueException", message: message}
}

func validation(value, field, constraint string) *lambdaError {
	if len(value) > maxShownName {
		value = strings.ToValidUTF8(value[:maxShownName], "") + "…"
	}
	return &lambdaError{status: http.StatusBadRequest, kind: "ValidationException",
		message: "1 validation error detected: Value '" + value + "' at '" + field + "' failed to satisfy constraint: " + constraint}
}

// An invocation is what one request asks for.
type invocation struct {
	name      string // the function's
	qualifier string // "" for what is live
	account   string // that an ARN names; "" if none does
	shown     string // the function's ARN with the qualifier, for messages
	dry       bool
	tail      bool
	client    string // the client context, decoded
	call      *bawn.Call
	unknown   error // why what the caller shows is not good
}

// Inside answers a function. Who calls, for whom and how deep is in the calls
// that next returns; what the request itself says of that is not looked at, an
// Authorization header included.
func (t *Lambda) Inside(w http.ResponseWriter, r *http.Request, next func(function string) *bawn.Call) {
	s := share{room: &t.inside, most: maxHeld}
	defer s.end()
	in, err := t.parse(r, t.cfg.Region)
	var body []byte
	if err == nil {
		body, err = readBody(r, &s)
	}
	var name string
	if in != nil {
		name = in.name
	}
	c := next(name)
	w.Header()["X-Amzn-Requestid"] = []string{c.ID}
	if err != nil {
		t.refuse(r.Context(), c, err)
		t.fail(w, r, c, in, err)
		return
	}
	c.Target = bawn.Ref{Tenant: c.Principal.Tenant, Function: in.name, Qualifier: in.qualifier}
	if c.Target.Check() != nil || in.account != "" && in.account != t.cfg.Account {
		// A name of Lambda's that Bawn does not have, or an account: there is no such
		// function, and the answer is that for another tenant's.
		t.refuse(r.Context(), c, errors.New("there is no function "+strconv.Quote(in.shown)))
		t.fail(w, r, c, in, bawn.Errorf(bawn.CodeNotFound, "lambda", "there is no such function"))
		return
	}
	in.call = c
	t.serve(w, r, in, body, &s)
}

// refuse records an attempt of a function that came to nothing before anybody
// was asked. That it cannot be recorded changes nothing: it is refused.
func (t *Lambda) refuse(ctx context.Context, c *bawn.Call, why error) {
	c.Target = bawn.Ref{Tenant: c.Principal.Tenant}
	if err := t.cfg.Invoker.Refuse(ctx, c, why.Error()); err != nil {
		t.cfg.Errors.Error("a refused call of a function was not recorded", "invocation", c.ID, "err", err)
	}
}

// ServeHTTP answers a client outside, which shows an API key as a bearer, or
// signs with one.
func (t *Lambda) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &bawn.Call{ID: bawn.NewID(), Trigger: "lambda", At: time.Now()}
	w.Header()["X-Amzn-Requestid"] = []string{c.ID}
	w.Header()["X-Request-Id"] = []string{c.ID}
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		w.Header()["Connection"] = []string{"close"} // as in httpTrigger.ServeHTTP
	}
	from, err := t.cfg.Proxies.client(r)
	c.Source = from.source
	if err := cmp.Or(t.cfg.Invoker.Flood(r.Context(), c), err); err != nil {
		t.fail(w, r, c, nil, err)
		return
	}
	in, err := t.parse(r, signedRegion(r.Header.Get("Authorization"), t.cfg.Region))
	if err != nil {
		t.fail(w, r, c, in, err)
		return
	}
	in.call = c
	s := share{room: &t.room, most: maxHeld}
	defer s.end()
	body, err := t.identify(r, in, &s)
	if err != nil {
		t.fail(w, r, c, in, err)
		return
	}
	t.serve(w, r, in, body, &s)
}

// identify finds out who calls from outside and reads the body, which is not
// worth it for who may not.
func (t *Lambda) identify(r *http.Request, in *invocation, s *share) (body []byte, err error) {
	c := in.call
	if auth := r.Header["Authorization"]; len(auth) > 1 {
		return nil, incompleteSignature("there is more than one Authorization header")
	} else if len(auth) == 1 {
		c.Bearer, _ = t.cfg.Invoker.Ours(nil, auth[0])
		if strings.HasPrefix(auth[0], signatureScheme) {
			rawPath, query, _ := strings.Cut(r.RequestURI, "?")
			c.Signed = &bawn.Signed{Method: r.Method, Host: r.Host, Path: rawPath, Query: query, Header: r.Header}
		}
	}
	c.Target = bawn.Ref{Tenant: bawn.DefaultTenant, Function: in.name, Qualifier: in.qualifier}
	if r.TLS != nil {
		c.Certificates = r.TLS.PeerCertificates
	}
	c.Principal = bawn.Anonymous() // the gate refuses it, so that there is a record of it
	if in.unknown = t.cfg.Invoker.Known(r.Context(), c); in.unknown == nil {
		if c.Signed != nil { // whether it is right shows once the body is there
			s.most = maxHeldOpen
		}
		if body, err = readBody(r, s); err != nil {
			return nil, err
		}
		signedBody(c, body)
		if in.unknown = t.cfg.Invoker.Identify(r.Context(), c); in.unknown == nil {
			s.most = maxHeld
		}
	}
	if c.Principal.Tenant != "" {
		c.Target.Tenant = c.Principal.Tenant
	}
	switch {
	case in.account != "" && in.account != t.cfg.Account:
		return nil, &lambdaError{status: http.StatusForbidden, kind: "AccessDeniedException", capital: true, message: "the function is of another account"}
	case c.Target.Check() != nil:
		if c.Principal.Kind == bawn.PrincipalAnonymous {
			return nil, bawn.Errorf(bawn.CodeUnauthenticated, "lambda", "a credential is needed")
		}
		return nil, bawn.Errorf(bawn.CodeNotFound, "lambda", "there is no such function")
	}
	return body, nil
}

// serve runs the call.
func (t *Lambda) serve(w http.ResponseWriter, r *http.Request, in *invocation, body []byte, s *share) {
	c := in.call
	if err := t.run(w, r, in, body, s); err != nil {
		t.fail(w, r, c, in, err)
	}
}

func (t *Lambda) run(w http.ResponseWriter, r *http.Request, in *invocation, body []byte, s *share) error {
	c := in.call
	if err := t.cfg.Invoker.Trace(c, r.Header["X-Amzn-Trace-Id"]); err != nil {
		return err
	}
	c.Event, c.Tail, c.Client = body, in.tail, in.client
	if len(body) == 0 {
		c.Event = []byte("{}")
	}
	if c.Principal.Kind != bawn.PrincipalAnonymous { // whose body was not read
		if err := checkEvent(c.Event); err != nil {
			return err
		}
	}
	if in.dry {
		if err := t.cfg.Invoker.Try(r.Context(), c); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	result, err := t.cfg.Invoker.Invoke(r.Context(), c)
	setRate(w.Header(), &c.Rate)
	if err != nil {
		return err
	}
	// The event may go now, and the answer needs room until it has left.
	c.Event = nil
	s.end()
	if result.Stream != nil {
		if err := collect(result, s); err != nil {
			return err
		}
	} else if err := s.take(len(result.Payload) - freeBytes); err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(result.Payload))}
	h["X-Amz-Executed-Version"] = []string{strconv.Itoa(result.Version)}
	if result.FunctionError != "" {
		h["X-Amz-Function-Error"] = []string{result.FunctionError}
	}
	if len(result.Log) > 0 {
		h["X-Amz-Log-Result"] = []string{base64.StdEncoding.EncodeToString(result.Log)}
	}
	w.Write(result.Payload) // an error means that the caller has gone
	return nil
}

// collect makes one payload of a stream: Invoke answers at once.
func collect(result *bawn.Result, s *share) error {
	defer result.Stream.Close()
	var b bytes.Buffer
	for {
		if err := s.take(copyBytes); err != nil {
			return err
		}
		n, err := io.CopyN(&b, result.Stream, copyBytes)
		var failed *bawn.StreamError
		switch {
		case errors.As(err, &failed):
			result.Payload, result.FunctionError, result.Cause = failed.Payload, "Unhandled", bawn.CodeFunctionError
			return nil
		case b.Len() > bawn.MaxResponseBytes:
			result.Payload, result.FunctionError, result.Cause = tooLargeResponse(), "Unhandled", bawn.CodeFunctionError
			return nil
		case errors.Is(err, io.EOF) && n < copyBytes:
			result.Payload = b.Bytes()
			return nil
		case err != nil:
			return err
		}
	}
}

func tooLargeResponse() []byte {
	b := append([]byte(nil), `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (`...)
	b = strconv.AppendInt(b, bawn.MaxResponseBytes, 10)
	return append(b, ` bytes)."}`...)
}

// checkEvent refuses what no handler could read.
func checkEvent(event []byte) error {
	why := ""
	switch {
	case !utf8.Valid(event):
		why = "the bytes are not UTF-8"
	case !json.Valid(event):
		var v json.RawMessage
		why = "it is not one JSON value"
		if err := json.Unmarshal(event, &v); err != nil {
			why = err.Error()
		}
	default:
		return nil
	}
	return &lambdaError{status: http.StatusBadRequest, kind: "InvalidRequestContentException", message: "Could not parse request body into json: " + why}
}

// signedRegion returns the region that a signature is for, which clients take
// functions to be in: a node is in all of them. It says nothing of who signed.
func signedRegion(authorization, otherwise string) string {
	_, scope, _ := strings.Cut(authorization, "Credential=")
	scope, _, _ = strings.Cut(scope, ",")
	if parts := strings.Split(scope, "/"); len(parts) == 5 && regionForm.MatchString(parts[2]) && strings.HasPrefix(authorization, signatureScheme) {
		return parts[2]
	}
	return otherwise
}

// parse reads everything of a request but its body and who sent it. region is the
// one that functions are said to be in.
func (t *Lambda) parse(r *http.Request, region string) (*invocation, error) {
	rawPath, query, _ := strings.Cut(r.RequestURI, "?")
	raw, ok := strings.CutPrefix(rawPath, LambdaPrefix+"functions/")
	raw, isInvoke := strings.CutSuffix(strings.TrimSuffix(raw, "/"), "/invocations")
	if !ok || !isInvoke || r.Method != http.MethodPost || strings.Contains(raw, "/") {
		return nil, &lambdaError{status: http.StatusNotFound, kind: "UnknownOperationException",
			message: "the one operation here is Invoke: POST " + LambdaPrefix + "functions/NAME/invocations"}
	}
	name, err := url.PathUnescape(raw)
	if err != nil || !utf8.ValidString(name) {
		return nil, validation(strings.ToValidUTF8(raw, ""), "functionName", "Member must be escaped as a path segment")
	}
	in, err := parseName(name, region)
	if err != nil {
		return nil, err
	}
	q, err := url.ParseQuery(query)
	if err != nil || len(q["Qualifier"]) > 1 {
		return in, invalidParameter("the query is malformed")
	}
	if given := q.Get("Qualifier"); given != "" {
		if !qualifierForm(given) {
			return in, validation(given, "qualifier", `Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)`)
		}
		if in.qualifier != "" && in.qualifier != given {
			return in, invalidParameter("The derived qualifier from the function name does not match the specified qualifier.")
		}
		in.qualifier = given
	}
	in.shown = "arn:aws:lambda:" + region + ":" + t.cfg.Account + ":function:" + in.name + ":" + cmp.Or(in.qualifier, "$LATEST")
	if in.qualifier == "$LATEST" {
		in.qualifier = "" // there is nothing newer than what is live
	}
	return in, in.read(r.Header)
}

// read reads the headers of Invoke.
func (in *invocation) read(h http.Header) error {
	for _, name := range []string{"X-Amz-Invocation-Type", "X-Amz-Log-Type", "X-Amz-Client-Context"} {
		if len(h[name]) > 1 {
			return invalidParameter("the header " + name + " is there more than once")
		}
	}
	switch kind := h.Get("X-Amz-Invocation-Type"); kind {
	case "", "RequestResponse":
	case "DryRun":
		in.dry = true
	case "Event":
		return invalidParameter("the invocation type Event is not there yet: this version of Bawn answers each call; use RequestResponse")
	default:
		return validation(kind, "invocationType", "Member must satisfy enum value set: [Event, RequestResponse, DryRun]")
	}
	switch kind := h.Get("X-Amz-Log-Type"); kind {
	case "", "None":
	case "Tail":
		in.tail = true
	default:
		return validation(kind, "logType", "Member must satisfy enum value set: [None, Tail]")
	}
	text := h.Get("X-Amz-Client-Context")
	if text == "" {
		return nil
	}
	if len(text) > maxClientContext {
		return invalidParameter("the client context has more than " + strconv.Itoa(maxClientContext) + " bytes")
	}
	client, err := base64.StdEncoding.DecodeString(text)
	var object map[string]json.RawMessage
	if err != nil || !utf8.Valid(client) || json.Unmarshal(client, &object) != nil || object == nil {
		return &lambdaError{status: http.StatusBadRequest, kind: "InvalidRequestContentException", message: "Client context must be a valid Base64-encoded JSON object."}
	}
	in.client = string(client)
	return nil
}

// fail renders an error as Lambda would. A function that may not call another
// hears that and nothing more; its owner reads why. Control D6.
func (t *Lambda) fail(w http.ResponseWriter, r *http.Request, c *bawn.Call, in *invocation, err error) {
	var e *bawn.Error
	var own *lambdaError
	if in != nil && in.unknown != nil && bawn.ErrorCode(err) == bawn.CodeUnauthenticated {
		err = in.unknown // the gate has refused nobody; this is why it was nobody
	}
	code := bawn.ErrorCode(err)
	errors.As(err, &e)
	h := w.Header()
	switch {
	case errors.As(err, &own):
	case invoke.Looped(err):
		own = &lambdaError{status: http.StatusBadRequest, kind: "RecursiveInvocationException", capital: true,
			message: "Your function was invoked in a recursive loop, and the invocation was stopped: " + e.Message}
	case code == bawn.CodeNotFound:
		own = &lambdaError{status: http.StatusNotFound, kind: "ResourceNotFoundException", capital: true, message: "Function not found: " + in.shown}
	case code == bawn.CodeDenied && c.Caller != nil:
		own = &lambdaError{status: http.StatusForbidden, kind: "AccessDeniedException", capital: true, message: "denied"}
	case code == bawn.CodeDenied:
		own = &lambdaError{status: http.StatusForbidden, kind: "AccessDeniedException", capital: true, message: e.Message}
	case code == bawn.CodeUnauthenticated:
		own = unauthenticated(c, r.Header.Get("Authorization"), e)
	case code == bawn.CodeTooLarge:
		own = &lambdaError{status: http.StatusRequestEntityTooLarge, kind: "RequestEntityTooLarge",
			message: "Request must be smaller than " + strconv.Itoa(bawn.MaxEventBytes) + " bytes for the InvokeFunction operation"}
	case code == bawn.CodeThrottled:
		h["Retry-After"] = []string{retryAfter(err)}
		own = &lambdaError{status: http.StatusTooManyRequests, kind: "TooManyRequestsException", message: "Rate Exceeded.",
			reason: "ReservedFunctionConcurrentInvocationLimitExceeded"}
		setRate(h, &c.Rate)
		if c.Rate.Name != "" || in != nil && in.unknown != nil {
			own.reason = "CallerRateLimitExceeded"
		}
	case code == bawn.CodeInvalid:
		own = invalidParameter(e.Message)
	case code == bawn.CodeUnavailable:
		h["Retry-After"] = []string{retryAfter(err)}
		own = &lambdaError{status: http.StatusServiceUnavailable, kind: "ServiceException", service: true, message: http.StatusText(http.StatusServiceUnavailable)}
	default:
		own = &lambdaError{status: http.StatusInternalServerError, kind: "ServiceException", service: true, message: "Internal Server Error"}
		t.cfg.Errors.Error("a call failed", "invocation", c.ID, "function", c.Target.String(), "err", err)
	}
	h["X-Amzn-Errortype"] = []string{own.kind}
	own.write(w)
}

// unauthenticated says what is wrong with a credential as AWS does: its clients
// correct their clock, or give up, by that.
func unauthenticated(c *bawn.Call, authorization string, e *bawn.Error) *lambdaError {
	var fault bawn.SignatureFault
	errors.As(e.Err, &fault)
	scheme, _, _ := strings.Cut(authorization, " ")
	switch {
	case authorization == "" && len(c.Certificates) == 0:
		return &lambdaError{status: http.StatusForbidden, kind: "MissingAuthenticationTokenException", message: "Missing Authentication Token"}
	case fault == bawn.SignatureMalformed:
		return incompleteSignature(e.Message)
	case fault == bawn.SignatureWrong:
		return &lambdaError{status: http.StatusForbidden, kind: "InvalidSignatureException", message: e.Message + "; " + e.Fix}
	case authorization != "" && c.Signed == nil && !strings.EqualFold(scheme, "Bearer"):
		return incompleteSignature("the Authorization header is neither a signature of the form AWS4-HMAC-SHA256 nor a bearer")
	}
	return &lambdaError{status: http.StatusForbidden, kind: "UnrecognizedClientException", message: "The security token included in the request is invalid."}
}

func incompleteSignature(message string) *lambdaError {
	return &lambdaError{status: http.StatusForbidden, kind: "IncompleteSignatureException", message: message}
}

// write sends the error document.
func (e *lambdaError) write(w http.ResponseWriter) {
	b := make([]byte, 0, 256)
	switch {
	case e.reason != "": // those of concurrency have no Type
		b = append(b, `{"Reason":`...)
		b = appendString(b, e.reason)
		b = append(b, ',')
	case e.kind == "ValidationException":
		b = append(b, '{')
	case e.service:
		b = append(b, `{"Type":"Service",`...)
	default:
		b = append(b, `{"Type":"User",`...)
	}
	if e.capital {
		b = append(b, `"Message":`...)
	} else {
		b = append(b, `"message":`...)
	}
	b = appendString(b, e.message)
	b = append(b, '}')
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(e.status)
	w.Write(b) // an error means that the caller has gone
}

var regionForm = regexp.MustCompile(`^[a-z]{2}(?:-[a-z]+)+-\d{1,2}$`)

// arnForm is every form in which AWS Lambda takes a function's name.
var arnForm = regexp.MustCompile(`^(?:arn:aws[a-zA-Z-]*:lambda:([a-z]{2}(?:-[a-z]+)+-\d{1,2}):)?(?:(\d{12}):)?(?:function:)?([a-zA-Z0-9_-]+)(?::(\$LATEST|[a-zA-Z0-9_-]+))?$`)

func parseName(name, region string) (*invocation, error) {
	const pattern = `Member must satisfy regular expression pattern: (arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?`
	if name == "" || len(name) > maxFunctionName {
		return nil, validation(name, "functionName", "Member must have length less than or equal to "+strconv.Itoa(maxFunctionName))
	}
	m := arnForm.FindStringSubmatch(name)
	if m == nil || strings.HasPrefix(name, "arn:") && (m[1] == "" || m[2] == "" || !strings.Contains(name, ":function:")) {
		return nil, validation(name, "functionName", pattern)
	}
	if m[2] != "" && !strings.Contains(name, "function:") {
		return nil, validation(name, "functionName", pattern)
	}
	if len(m[4]) > maxQualifier {
		return nil, validation(m[4], "qualifier", "Member must have length less than or equal to "+strconv.Itoa(maxQualifier))
	}
	if m[1] != "" && m[1] != region {
		return nil, &lambdaError{status: http.StatusNotFound, kind: "ResourceNotFoundException", capital: true,
			message: "Functions from '" + m[1] + "' are not reachable in this region ('" + region + "')"}
	}
	return &invocation{name: m[3], qualifier: m[4], account: m[2]}, nil
}

func qualifierForm(s string) bool {
	if len(s) > maxQualifier {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '$' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
