package bawn

import (
	"strconv"
	"strings"
	"time"
)

// Ingress says who and what may call the function, how often, and for how much.
type Ingress struct {
	HTTP []Route `json:"http,omitempty"`
	// Callers may call beside the routes' own access: names of functions of the
	// same tenant, "role:NAME", or [AnyCaller]. Sorted, each once.
	Callers []string `json:"callers,omitempty" doc:"functions of the tenant, role:NAME, or anyone"`
	// Event is for calls by name, whatever trigger makes them: other functions, the
	// Lambda API, queues, schedules.
	Event  *Event  `json:"event,omitempty" doc:"what an event must look like that comes by name and not by a route"`
	Limits *Limits `json:"limits,omitempty"`
	Budget []Grant `json:"budget,omitempty" doc:"what calls may use in a span of time; each limit holds alone"`
}

// AnyCaller in [Ingress.Callers] means everybody on whose behalf a listed
// function calls, strangers included. It lets nobody call directly.
const AnyCaller = "anyone"

// RoleCaller begins an entry of [Ingress.Callers] that means who has a role.
const RoleCaller = "role:"

// Route is one way in over HTTP.
type Route struct {
	Method  string            `json:"method" doc:"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, or ANY"`
	Path    string            `json:"path" doc:"begins with /; a segment {name} matches one segment, {name+} at the end matches the rest"`
	Hosts   []string          `json:"hosts,omitempty" doc:"domains of the tenant that the route answers on; empty means the node's own names; sorted, each once"`
	Access  Access            `json:"access"`
	Input   *Input            `json:"input,omitempty"`
	Inspect *Inspection       `json:"inspect,omitempty"`
	Limits  []Rate            `json:"limits,omitempty" doc:"of this route alone, beside those of the function"`
	CORS    *CORS             `json:"cors,omitempty"`
	Headers map[string]string `json:"headers,omitempty" doc:"of every answer, in place of Bawn's own security headers; an empty value leaves one out"`
}

// At says where the route is: its path, after its hosts if it names any.
func (r *Route) At() string {
	switch len(r.Hosts) {
	case 0:
		return r.Path
	case 1:
		return r.Hosts[0] + r.Path
	}
	return strings.Join(r.Hosts, ",") + r.Path
}

// String names the route among those of its function: GET /orders, or GET
// shop.example.com/orders.
func (r *Route) String() string { return r.Method + " " + r.At() }

// Access says who may use a route. At most one field is set. The zero value asks
// for a credential of Bawn's, of whatever kind.
type Access struct {
	Public  *PublicAccess  `json:"public,omitempty"`
	JWT     *JWTAccess     `json:"jwt,omitempty"`
	MTLS    *MTLSAccess    `json:"mtls,omitempty"`
	SigV4   bool           `json:"sigv4,omitempty" doc:"a request signed with a key of the tenant's"`
	Webhook *WebhookAccess `json:"webhook,omitempty"`
}

// The kinds of access that a route can ask for.
const (
	AccessKey     = "key"
	AccessPublic  = "public"
	AccessJWT     = "jwt"
	AccessMTLS    = "mtls"
	AccessSigV4   = "sigv4"
	AccessWebhook = "webhook"
)

// Kind says which kind of access it is.
func (a *Access) Kind() string {
	switch {
	case a.Public != nil:
		return AccessPublic
	case a.JWT != nil:
		return AccessJWT
	case a.MTLS != nil:
		return AccessMTLS
	case a.SigV4:
		return AccessSigV4
	case a.Webhook != nil:
		return AccessWebhook
	}
	return AccessKey
}

// String says in a few words who gets in.
func (a *Access) String() string {
	switch p := a.Public; {
	case p != nil:
		return "public until " + p.Until.Add(-time.Nanosecond).UTC().Format(time.DateOnly)
	case a.JWT != nil:
		return "jwt of " + a.JWT.Issuer + " for " + a.JWT.Audience
	case a.MTLS != nil:
		return a.MTLS.String()
	case a.Webhook != nil:
		return "webhook of kind " + a.Webhook.Kind + " signed with the secret " + a.Webhook.Secret
	}
	return a.Kind()
}

// Own reports whether the route says itself who gets in, in place of the roles
// of Bawn's own users.
func (a *Access) Own() bool { return a.JWT != nil || a.MTLS != nil || a.Webhook != nil }

// Asks says what a caller has to show, and how. It tells a stranger nothing that
// the route does not tell anyway.
func (a *Access) Asks() (what, how string) {
	switch a.Kind() {
	case AccessJWT:
		return "a token of the route's issuer is needed", "log in there, and send the token as Authorization: Bearer TOKEN"
	case AccessMTLS:
		return "a client certificate is needed", "present one of the route's authorities in the TLS handshake"
	case AccessSigV4:
		return "a signed request is needed", "sign it for the service lambda (AWS Signature Version 4) with a key that bawn key create --aws made"
	case AccessWebhook:
		return "a signed webhook is needed", "sign the body with the secret that both sides have"
	}
	return "a credential is needed", "send an API key: Authorization: Bearer bawn_…"
}

// PublicAccess opens a route to everybody until a day; control A11. After Until
// the route asks for a credential again.
type PublicAccess struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until" doc:"the end of this day in UTC closes the route"`
}

// Open reports whether the route still is public at now.
func (p *PublicAccess) Open(now time.Time) bool { return p != nil && now.Before(p.Until) }

// JWTAccess lets in who shows a token of an issuer that is no issuer of Bawn's own
// users: the function's customers.
type JWTAccess struct {
	Issuer   string              `json:"issuer" doc:"the https URL in iss; its keys are found by OpenID discovery"`
	Audience string              `json:"audience" doc:"must be in aud"`
	Claims   map[string][]string `json:"claims,omitempty" doc:"each claim must have, or hold, one of the values"`
	CA       string              `json:"ca,omitempty" doc:"PEM of the authorities of the issuer's server; empty means the system's"`
}

// MTLSAccess lets in who shows a client certificate of an authority.
type MTLSAccess struct {
	CA       string   `json:"ca,omitempty" doc:"PEM of the authorities; empty means the tenant's own configured issuers of certificates"`
	Subjects []string `json:"subjects,omitempty" doc:"alternative names of which one must be in it: dns:NAME, dns:*.NAME, email:ADDRESS, uri:URI or uri:URI/*; empty means any; sorted, each once"`
}

// String says in a few words who gets in.
func (m *MTLSAccess) String() string {
	who, of := "any certificate", "its own authorities"
	if m.CA == "" {
		of = "the tenant's issuers"
	}
	if len(m.Subjects) > 0 {
		who = "a certificate for " + m.Subjects[0]
		if more := len(m.Subjects) - 1; more > 0 {
			who += " or " + itoa(more) + " more"
		}
	}
	return "mtls: " + who + " of " + of
}

// WebhookAccess lets in who signs the request's body with a shared secret.
type WebhookAccess struct {
	Kind      string        `json:"kind" doc:"github, stripe or hmac"`
	Secret    string        `json:"secret" doc:"name of the secret; each of its live versions is good"`
	Header    string        `json:"header,omitempty" doc:"of kind hmac: where the signature stands"`
	Prefix    string        `json:"prefix,omitempty" doc:"of kind hmac: text before the signature, such as sha256="`
	Encoding  string        `json:"encoding,omitempty" doc:"of kind hmac: hex or base64"`
	Timestamp string        `json:"timestamp,omitempty" doc:"of kind hmac: the header of Unix seconds that are signed with the body as TIMESTAMP.BODY"`
	ID        string        `json:"id,omitempty" doc:"the header of a delivery's id, which is accepted once"`
	Window    time.Duration `json:"window,omitempty" doc:"nanoseconds that a timestamp may be off; within it each signature is accepted once"`
}

// Event says what an event by name must look like.
type Event struct {
	Input   *Input      `json:"input,omitempty"`
	Inspect *Inspection `json:"inspect,omitempty"`
}

// Input says what the function takes: control D1. Exactly one of None, Schema and
// Any says it of the body or the event; the other fields are of requests over HTTP.
type Input struct {
	None   bool    `json:"none,omitempty" doc:"nothing but the method and the path"`
	Schema string  `json:"schema,omitempty" doc:"JSON Schema of the body, or of an event by name, as text; $schema tells draft 7 from 2020-12"`
	Any    *Waiver `json:"any,omitempty" doc:"everything is taken until a day, with a reason"`

	Query  string `json:"query,omitempty" doc:"JSON Schema of an object of the query's parameters"`
	Path   string `json:"path,omitempty" doc:"JSON Schema of an object of the path's parameters"`
	Header string `json:"header,omitempty" doc:"JSON Schema of an object of the headers, in lower case"`
}

// Waiver says why a rule does not hold until a day.
type Waiver struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until" doc:"the end of this day in UTC ends the waiver"`
}

// Open reports whether the waiver still holds at now.
func (w *Waiver) Open(now time.Time) bool { return w != nil && now.Before(w.Until) }

// Inspection says how a request's or an event's text is searched for attacks:
// control D4.
type Inspection struct {
	Mode    string `json:"mode" doc:"off, detect or block"`
	Level   int    `json:"level,omitempty" doc:"paranoia level of the OWASP Core Rule Set, 1 to 4"`
	Exclude []int  `json:"exclude,omitempty" doc:"ids of rules that are left out; sorted, each once"`
}

// Modes of an [Inspection].
const (
	InspectOff    = "off"
	InspectDetect = "detect" // records and lets through
	InspectBlock  = "block"
)

// On reports whether anything is searched.
func (i *Inspection) On() bool { return i != nil && i.Mode != InspectOff }

// String says it in a few words, such as "block at level 1".
func (i *Inspection) String() string {
	if !i.On() {
		return InspectOff
	}
	s := i.Mode + " at level " + itoa(i.Level)
	for n, id := range i.Exclude {
		if n == 0 {
			s += " without "
		} else {
			s += ", "
		}
		s += itoa(id)
	}
	return s
}

// Limits hold calls of the function to a rate and a number: controls H1 and H2.
type Limits struct {
	Rates       []Rate `json:"rates,omitempty"`
	Concurrency int    `json:"concurrency,omitempty" doc:"calls at one time; 0 means as many as interior.concurrency"`
}

// Rate is how many calls in a span of time.
type Rate struct {
	Calls int           `json:"calls"`
	Per   time.Duration `json:"per" doc:"nanoseconds: a second, a minute, an hour or a day"`
	Burst int           `json:"burst,omitempty" doc:"calls at once, after a pause; 0 means all of calls"`
	By    string        `json:"by,omitempty" doc:"caller or address: each has the rate for itself; empty means all together"`
}

// What a [Rate] tells apart with By.
const (
	ByCaller  = "caller"  // who calls; of those without a credential, their address
	ByAddress = "address" // of version 6, its network of 64 bits
)

// Bounds of a [Rate].
const (
	MaxRateCalls = 1_000_000 // and of its burst
	MaxRates     = 8         // of a function, and of each of its routes
)

// RateStatus is what a caller may know of the limit that is nearest to its end.
// The zero value says that there is none.
type RateStatus struct {
	Name      string        // function, route, caller, address, tenant or flood
	Limit     int           // calls
	Window    time.Duration // in this span
	Remaining int           // calls that would be let in now
	Reset     time.Duration // until all of Limit would be, or a refused call would be let in
}

// Grant is how much of one thing calls may use in a span of time: controls H3 and
// H4.
type Grant struct {
	Of     string `json:"of,omitempty" doc:"caller: each caller has it for itself; anonymous: all callers without a credential together; empty: all calls together"`
	Meter  string `json:"meter" doc:"calls, cpu, memory, egress or money"`
	Amount int64  `json:"amount" doc:"calls; CPU nanoseconds; byte-seconds of memory; bytes; billionths of the currency's unit"`
	Per    string `json:"per" doc:"hour, day or month, in UTC"`
}

// Spending is what one call uses, or many, of everything that a [Grant] measures.
type Spending struct {
	Calls  int64 `json:"calls"`
	CPU    int64 `json:"cpu" doc:"nanoseconds of processor time"`
	Memory int64 `json:"memory" doc:"byte-seconds: the memory limit for as long as the call took"`
	Egress int64 `json:"egress" doc:"bytes to and from what is outside"`
	Money  int64 `json:"money" doc:"billionths of the currency's unit"`
}

// Of returns what was used of a meter, 0 if there is no such.
func (s *Spending) Of(meter string) int64 {
	switch meter {
	case MeterCalls:
		return s.Calls
	case MeterCPU:
		return s.CPU
	case MeterMemory:
		return s.Memory
	case MeterEgress:
		return s.Egress
	case MeterMoney:
		return s.Money
	}
	return 0
}

// Most returns what one call of v may use at most: what the kernel and the way out
// let it, loading included. It has no money: prices are the operator's.
func (v *Version) Most() Spending {
	in := &v.Perimeter.Interior
	// Between two calls what is left running may go on for a moment.
	span := in.Timeout + InitTimeout + time.Second
	return Spending{Calls: 1, CPU: int64(float64(span) * in.CPU), Memory: ByteSeconds(in.Memory, span), Egress: v.Perimeter.Egress.Most()}
}

// ByteSeconds returns memory × time; the time is rounded up to a millisecond.
func ByteSeconds(memory int64, t time.Duration) int64 {
	ms := int64((t + time.Millisecond - 1) / time.Millisecond)
	return (memory*ms + 999) / 1000
}

// The things that a [Grant] measures.
const (
	MeterCalls  = "calls"
	MeterCPU    = "cpu"
	MeterMemory = "memory"
	MeterEgress = "egress"
	MeterMoney  = "money"
)

// Whom a [Grant] is of, and for how long.
const (
	OfCaller    = "caller"
	OfAnonymous = "anonymous"

	PerHour  = "hour"
	PerDay   = "day"
	PerMonth = "month"
)

// String returns the grant as it stands in a manifest's budget, such as
// "caller.cpu: 3600s/day".
func (g Grant) String() string {
	of := ""
	if g.Of != "" {
		of = g.Of + "."
	}
	return of + g.Meter + ": " + MeterText(g.Meter, g.Amount) + "/" + g.Per
}

// MeterText returns an amount of a meter as a manifest writes it: 5000, 3600s,
// 12.5GBs, 10GiB or 5.00.
func MeterText(meter string, n int64) string {
	switch meter {
	case MeterCPU:
		return decimal(n, 1_000_000_000, 9, 0) + "s"
	case MeterMemory:
		// Parts of a GiB that decimals cannot write are cut.
		return decimal(n>>30*1_000_000_000+(n&(1<<30-1))*1_000_000_000>>30, 1_000_000_000, 9, 0) + "GBs"
	case MeterEgress:
		for _, u := range []struct {
			n    int64
			name string
		}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
			if n != 0 && n%u.n == 0 {
				return strconv.FormatInt(n/u.n, 10) + u.name
			}
		}
		return strconv.FormatInt(n, 10) + "B"
	case MeterMoney:
		return decimal(n, 1_000_000_000, 9, 2)
	}
	return strconv.FormatInt(n, 10)
}

// decimal writes n ÷ unit, which is ten to the power of digits, with at least so
// many places behind the point.
func decimal(n, unit int64, digits, least int) string {
	s := strconv.FormatInt(n/unit, 10)
	rest := strconv.FormatInt(unit+n%unit, 10)[1:]
	for digits > least && rest[digits-1] == '0' {
		digits--
	}
	if digits == 0 {
		return s
	}
	return s + "." + rest[:digits]
}

// CORS says which pages of other origins may call a route from a browser.
type CORS struct {
	Origins     []string      `json:"origins" doc:"such as https://shop.example.com, or * alone; sorted, each once"`
	Headers     []string      `json:"headers,omitempty" doc:"of requests; sorted, each once"`
	Expose      []string      `json:"expose,omitempty" doc:"headers of answers that the page may read; sorted, each once"`
	Credentials bool          `json:"credentials,omitempty" doc:"whether cookies and authorization may come along; not with *"`
	MaxAge      time.Duration `json:"maxAge,omitempty" doc:"nanoseconds that a browser may keep the answer to its question"`
}

// SecurityHeaders are those of answers by which Bawn tells browsers what they may
// not do, each with the value that it has if neither the function nor
// [Route.Headers] says another.
func SecurityHeaders() map[string]string {
	return map[string]string{
		"Content-Security-Policy":   "frame-ancestors 'none'",
		"Referrer-Policy":           "strict-origin-when-cross-origin",
		"Strict-Transport-Security": "max-age=31536000",
		"X-Content-Type-Options":    "nosniff",
		"X-Frame-Options":           "DENY",
	}
}

// SecurityHeader reports whether a header, in canonical form, is one of
// [SecurityHeaders].
func SecurityHeader(name string) bool { return SecurityHeaders()[name] != "" }
