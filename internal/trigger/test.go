package trigger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

const maxTestMessage = 400 // bytes of what came from outside, in a message

// RunTests runs the tests of v, one after the other, for by. v need not be
// stored: nobody else can call it. A test that fails is a result; an error says
// why they could not be run. When ctx ends by its deadline, the tests that are
// left have failed.
func RunTests(ctx context.Context, inv *invoke.Invoker, by bawn.Principal, v *bawn.Version) ([]bawn.TestResult, error) {
	results := make([]bawn.TestResult, 0, len(v.Tests))
	for i := range v.Tests {
		r, err := runTest(ctx, inv, by, v, &v.Tests[i])
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			r.OK, r.Got, r.Message = false, "error", fmt.Sprintf("the time for all tests, %s, was over", bawn.MaxTestRun)
		case err != nil:
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

func runTest(ctx context.Context, inv *invoke.Invoker, by bawn.Principal, v *bawn.Version, t *bawn.Test) (bawn.TestResult, error) {
	r := bawn.TestResult{Function: v.Function, Name: t.Name, Want: "deny"}
	if t.Allow != nil {
		r.Want = "allow"
	}
	c := &bawn.Call{
		ID: bawn.NewID(), Trigger: "api", At: time.Now(), Event: []byte("{}"),
		Target: bawn.Ref{Tenant: v.Tenant, Function: v.Function, Qualifier: strconv.Itoa(v.Number)},
	}
	r.Invocation = c.ID
	var tried invoke.Tried
	err := testEvent(inv, c, t, v)
	if err == nil {
		pretend(c, t.As, v)
		tried, err = inv.Test(ctx, by, shortened(v, t.Timeout), c)
	} else if bawn.ErrorCode(err) == bawn.CodeNotFound || bawn.ErrorCode(err) == bawn.CodeInvalid {
		tried, err = invoke.Tried{Refused: err}, nil
	}
	if err != nil {
		return r, err
	}
	r.Duration = time.Since(c.At)
	judge(&r, t, &tried)
	return r, nil
}

// pretend makes the call come from whom the test says. A function
// is one whose own manifest names the function that is tested, since only that
// one's side is in question.
func pretend(c *bawn.Call, as string, v *bawn.Version) {
	key := func(role bawn.Role) bawn.Principal {
		return bawn.Principal{Kind: bawn.PrincipalKey, ID: "test", Name: "role:" + string(role), Tenant: v.Tenant, Roles: []bawn.Role{role}}
	}
	kind, name, _ := strings.Cut(as, ":")
	switch kind {
	case bawn.PrincipalAnonymous:
		c.Principal = bawn.Anonymous()
	case "role":
		c.Principal = key(bawn.Role(name))
	case "function":
		caller := &bawn.Version{Tenant: v.Tenant, Function: name, Number: 1, Perimeter: bawn.Perimeter{Egress: bawn.Egress{Functions: []string{v.Function}}}}
		c.Trigger = "function"
		c.Principal = bawn.Principal{Kind: bawn.PrincipalFunction, ID: name + "@1", Name: "function:" + name, Tenant: v.Tenant}
		c.Origin, c.Chain, c.Hops, c.Caller = key(bawn.RoleInvoker), []bawn.Ref{caller.Ref()}, 1, caller
	case bawn.AccessJWT, bawn.AccessMTLS, bawn.AccessWebhook:
		c.Principal = bawn.Met(as, v.Tenant)
	default:
		c.Principal = key(bawn.RoleInvoker)
		if as == bawn.AccessSigV4 {
			c.Principal.Access = as
		}
	}
}

// shortened returns v with the test's own timeout, if that is sooner.
func shortened(v *bawn.Version, timeout time.Duration) *bawn.Version {
	if timeout == 0 || timeout >= v.Perimeter.Interior.Timeout {
		return v
	}
	short := *v
	short.Perimeter.Interior.Timeout = timeout
	return &short
}

// testEvent gives the call its event: what the test says or, of a request, what
// the public listener would make of it, and what the test says besides.
func testEvent(inv *invoke.Invoker, c *bawn.Call, t *bawn.Test, v *bawn.Version) error {
	if err := inv.Trace(c, nil); err != nil {
		return err
	}
	if t.Route == "" {
		if len(t.Event) > 0 {
			c.Event = t.Event
		}
		return nil
	}
	method, target, _ := strings.Cut(t.Route, " ")
	rawPath, query, _ := strings.Cut(target, "?")
	m, host, err := inv.MatchIn(v, method, rawPath)
	if err != nil {
		return err
	}
	c.Trigger, c.Route, c.Source = "http", m.Route, "127.0.0.1"
	r := &http.Request{
		Method: method, URL: &url.URL{Path: rawPath, RawQuery: query}, RequestURI: target, Host: cmp.Or(host, "localhost"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
	}
	c.Event = appendEvent(nil, &request{
		http: r, id: c.ID, trace: c.TraceID, source: c.Source, scheme: "https", rawPath: rawPath, query: query, route: m.Route, params: m.Params,
		account: defaultAccount, api: v.Function, at: c.At,
	})
	c.Request = &bawn.Request{Method: method, Host: r.Host, Path: rawPath, Query: query, Header: r.Header, Params: m.Params, Proto: r.Proto}
	if len(t.Event) == 0 {
		return nil
	}
	made, given := map[string]any{}, map[string]any{}
	if err := errors.Join(unmarshal(c.Event, &made), unmarshal(t.Event, &given)); err != nil {
		return bawn.Wrap(err, bawn.CodeInvalid, "test", "the event is not a mapping")
	}
	if body, ok := given["body"]; ok {
		if _, text := body.(string); !text { // a body is text: JSON, where it is something else
			raw, err := json.Marshal(body)
			if err != nil {
				return bawn.Wrap(err, bawn.CodeInvalid, "test", "the body is not JSON")
			}
			given["body"] = string(raw)
		}
	}
	if headers, ok := given["headers"].(map[string]any); ok { // their names are in lower case
		lower := map[string]any{}
		for name, value := range headers {
			lower[strings.ToLower(name)] = value
		}
		given["headers"] = lower
	}
	merge(made, given)
	if err := readRequest(c.Request, made); err != nil {
		return err
	}
	c.Event, err = json.Marshal(made)
	return err
}

// readRequest makes the request what the event of a test says that it was.
func readRequest(r *bawn.Request, event map[string]any) error {
	if body, ok := event["body"].(string); ok {
		r.Body = []byte(body)
		if encoded, _ := event["isBase64Encoded"].(bool); encoded {
			raw, err := base64.StdEncoding.DecodeString(body)
			if err != nil {
				return bawn.Wrap(err, bawn.CodeInvalid, "test", "the body is not base64, though isBase64Encoded says so")
			}
			r.Body = raw
		}
	}
	if query, ok := event["rawQueryString"].(string); ok {
		r.Query = query
	}
	if headers, ok := event["headers"].(map[string]any); ok {
		r.Header = map[string][]string{}
		for name, value := range headers {
			if text, ok := value.(string); ok {
				r.Header[http.CanonicalHeaderKey(name)] = []string{text}
			}
		}
	}
	if params, ok := event["pathParameters"].(map[string]any); ok {
		r.Params = map[string]string{}
		for name, value := range params {
			if text, ok := value.(string); ok {
				r.Params[name] = text
			}
		}
	}
	return nil
}

func unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return d.Decode(v)
}

// merge puts what is in from into into: of objects, member by member.
func merge(into, from map[string]any) {
	for name, value := range from {
		a, ok := into[name].(map[string]any)
		b, too := value.(map[string]any)
		if ok && too {
			merge(a, b)
			continue
		}
		into[name] = value
	}
}

// judge compares what came of the call with what the test wants.
func judge(r *bawn.TestResult, t *bawn.Test, tried *invoke.Tried) {
	r.Stopped = stops(tried)
	answer, err := answered(t, tried)
	r.Got = "allow"
	switch {
	case tried.Refused != nil:
		r.Got = "deny"
	case err != nil && len(r.Stopped) > 0:
		r.Got = "deny"
	case err != nil:
		r.Got = "error"
	}
	if t.Deny != nil {
		for _, s := range r.Stopped {
			if d := t.Deny; (d.At == "" || d.At == s.At) && (d.Control == "" || d.Control == s.Control) && (d.Action == "" || d.Action == s.Action) {
				r.OK, r.Got, r.Message = true, "deny", stopText(s)
				return
			}
		}
		switch {
		case len(r.Stopped) > 0:
			r.Message = fmt.Sprintf("wanted %s, but what stopped something was %s", denyText(t.Deny), stopText(r.Stopped[0]))
		case err != nil:
			r.Message = "nothing stopped it; the function failed by itself: " + err.Error()
		default:
			r.Message = "wanted it denied, but the call was allowed and nothing was stopped" + answer.text()
		}
		return
	}
	switch {
	case tried.Refused != nil:
		r.Message = "wanted it allowed, but it was refused: " + messageOf(tried.Refused)
	case err != nil:
		r.Message = "wanted it allowed, but the function failed: " + err.Error()
		if len(r.Stopped) > 0 {
			r.Message += "; " + stopText(r.Stopped[0])
		}
	default:
		r.Message = answer.compare(t)
		r.OK = r.Message == ""
		if r.OK {
			r.Message = "answered" + strings.TrimPrefix(answer.text(), ":")
		}
	}
}

// stops lists what stopped the call or something in it.
func stops(tried *invoke.Tried) []bawn.TestStop {
	if tried.Refused != nil {
		return []bawn.TestStop{{At: bawn.AtIngress, Control: cmp.Or(invoke.ControlOf(tried.Refused), "A11"), Action: "invoke", Reason: messageOf(tried.Refused)}}
	}
	var all []bawn.TestStop
	for _, s := range tried.Stopped {
		at := bawn.AtInterior
		if s.Kind == bawn.KindDecision {
			at = bawn.AtEgress
		}
		all = append(all, bawn.TestStop{At: at, Control: s.Control, Action: s.Action, Reason: s.Reason})
	}
	return all
}

func stopText(s bawn.TestStop) string {
	text := "stopped at " + s.At + " (" + strings.TrimSpace(s.Control+" "+s.Action) + ")"
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

func denyText(d *bawn.TestDeny) string {
	parts := slices.DeleteFunc([]string{d.At, d.Control, d.Action}, func(s string) bool { return s == "" })
	return "a stop by " + strings.Join(parts, " ")
}

func messageOf(err error) string {
	var e *bawn.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "it could not be made"
}

// A testAnswer is what a call that ran was answered.
type testAnswer struct {
	status int // of a response; 0 for a call by name
	body   []byte
}

// answered returns the answer, or how the function failed.
func answered(t *bawn.Test, tried *invoke.Tried) (testAnswer, error) {
	res := tried.Result
	if res == nil {
		return testAnswer{}, nil
	}
	if res.FunctionError != "" {
		return testAnswer{}, errors.New(clip(failure(res.Payload)))
	}
	body := res.Payload
	if res.Stream != nil {
		defer res.Stream.Close()
		head := &reply{status: http.StatusOK}
		if res.ContentType == bawn.PreludeType && t.Route != "" {
			var err error
			if head, body, err = readPrelude(res.Stream); err != nil {
				return testAnswer{}, err
			}
		}
		rest, err := io.ReadAll(res.Stream)
		if body = append(body, rest...); err != nil || t.Route != "" {
			return testAnswer{head.status, body}, err
		}
	}
	if t.Route == "" {
		return testAnswer{body: body}, nil
	}
	reply, err := readReply(res.Payload)
	if err != nil {
		return testAnswer{}, err
	}
	return testAnswer{reply.status, reply.body}, nil
}

// failure takes what matters out of an error document.
func failure(payload []byte) string {
	var doc struct{ ErrorType, ErrorMessage string }
	if json.Unmarshal(payload, &doc) != nil || doc.ErrorMessage == "" {
		return string(payload)
	}
	return strings.TrimPrefix(doc.ErrorType+": ", ": ") + doc.ErrorMessage
}

// text shows the answer behind a message.
func (a testAnswer) text() string {
	s := ""
	if a.status != 0 {
		s = fmt.Sprintf(": status %d", a.status)
	}
	if len(a.body) > 0 {
		s += ": " + clip(string(a.body))
	}
	return s
}

// compare says what is wrong with an answer that should be good, or "".
func (a testAnswer) compare(t *bawn.Test) string {
	switch want := t.Allow.Status; {
	case want != 0 && a.status != want:
		return fmt.Sprintf("wanted status %d, but got %s", want, strings.TrimPrefix(a.text(), ": status "))
	case want == 0 && a.status >= http.StatusBadRequest:
		return "wanted it answered well, but got" + strings.TrimPrefix(a.text(), ":")
	}
	if len(t.Allow.Response) == 0 {
		return ""
	}
	var want, got any
	if err := unmarshal(t.Allow.Response, &want); err != nil {
		return "the expected response is not JSON"
	}
	if unmarshal(a.body, &got) != nil || !json.Valid(a.body) {
		got = string(a.body)
	}
	return differs("the response", want, got)
}

// differs says where got does not hold what want does, or "".
func differs(at string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			inner, has := g[name]
			if !has {
				return fmt.Sprintf("%s has no %q, but is %s", clip(at), name, show(got))
			}
			if d := differs(at+"."+name, w[name], inner); d != "" {
				return d
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		for i := range w {
			if d := differs(fmt.Sprintf("%s[%d]", at, i), w[i], g[i]); d != "" {
				return d
			}
		}
		return ""
	case json.Number:
		g, ok := got.(json.Number)
		if !ok {
			break
		}
		a, err := w.Float64()
		b, err2 := g.Float64()
		if w == g || err == nil && err2 == nil && a == b {
			return ""
		}
	default: // text, a truth value, or nothing
		if want == got {
			return ""
		}
	}
	return fmt.Sprintf("%s is %s, want %s", clip(at), show(got), show(want))
}

func show(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "something else"
	}
	return clip(string(raw))
}

// clip bounds text from outside for a message.
func clip(s string) string {
	if len(s) > maxTestMessage {
		s = s[:maxTestMessage] + "…"
	}
	return strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "\uFFFD")
}
