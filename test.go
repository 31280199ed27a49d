package bawn

import (
	"encoding/json"
	"time"
)

// Test is one case that a version must pass before a deploy makes it live:
// something that its perimeter must let through, or must stop; control F10.
// Exactly one of Allow and Deny is set.
type Test struct {
	Name string `json:"name"`
	// As says who calls: "anonymous", "role:NAME" for who has that role alone, or
	// "function:NAME" for a function of the tenant, or the kind of access that a
	// route asks for, "sigv4", "jwt", "mtls" or "webhook", for who shows that. Only the way in asks for it.
	// What the function then calls itself, it calls for whoever runs the tests.
	As      string          `json:"as,omitempty" doc:"who calls: anonymous, role:NAME, function:NAME, sigv4, jwt, mtls or webhook; role:invoker if there is none"`
	Route   string          `json:"route,omitempty" doc:"method and path of a request, with its query, such as GET /hello?name=Ann; a call by name if there is none"`
	Event   json.RawMessage `json:"event,omitempty" doc:"of a call by name the event, {} if there is none; of a request what its event has besides"`
	Timeout time.Duration   `json:"timeout,omitempty" doc:"nanoseconds after which the call is ended, if interior.timeout does not end it before"`
	Allow   *TestAllow      `json:"allow,omitempty" doc:"the call must be answered without an error"`
	Deny    *TestDeny       `json:"deny,omitempty" doc:"the perimeter must stop it"`
}

// TestAllow says how a call that must be let through is answered. The zero
// value asks for no more than an answer: no function error, and to a request no
// status of 400 or above.
type TestAllow struct {
	Status   int             `json:"status,omitempty" doc:"of the response to a request"`
	Response json.RawMessage `json:"response,omitempty" doc:"what the answer must hold: of objects these members, everything else as it is"`
}

// TestDeny says what must stop the call. The zero value asks that anything
// does.
type TestDeny struct {
	At      string `json:"at,omitempty" doc:"ingress: the call itself is refused; interior: the sandbox stops what the function tries; egress: it may not reach what it tries to"`
	Control string `json:"control,omitempty" doc:"of the record, such as B7"`
	Action  string `json:"action,omitempty" doc:"of the record, such as execve"`
}

// The parts of a perimeter that a [TestDeny] can name.
const (
	AtIngress  = "ingress"
	AtInterior = "interior"
	AtEgress   = "egress"
)

// Bounds of a version's tests; docs/limits.md lists them.
const (
	MaxTests       = 50
	MaxTestBytes   = 64 << 10 // of all events and expected answers of a function
	MaxTestTimeout = time.Minute
	MaxTestRun     = 2 * time.Minute // for all tests of a version
)

// TestResult says how one [Test] went.
type TestResult struct {
	Function   string        `json:"function"`
	Name       string        `json:"name"`
	OK         bool          `json:"ok"`
	Want       string        `json:"want" doc:"allow or deny"`
	Got        string        `json:"got" doc:"allow, deny, or error if neither: the function failed, or the test could not be run"`
	Message    string        `json:"message" doc:"what happened, in one line"`
	Invocation string        `json:"invocation,omitempty" doc:"of the records and log lines of the call"`
	Stopped    []TestStop    `json:"stopped,omitempty" doc:"what was stopped; at most 20"`
	Duration   time.Duration `json:"duration" doc:"nanoseconds"`
}

// TestStop is something that the perimeter stopped during a [Test].
type TestStop struct {
	At      string `json:"at"`
	Control string `json:"control,omitempty"`
	Action  string `json:"action"`
	Reason  string `json:"reason,omitempty"`
}
