package trigger

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/invoke"
)

// TestF10Judge: what came of a call against what its test wants. A must-deny
// test holds only if something was stopped, and a must-allow test only if the
// call was answered as it should.
func TestF10Judge(t *testing.T) {
	payload := func(s string) *bawn.Result { return &bawn.Result{Payload: []byte(s)} }
	failed := &bawn.Result{Payload: []byte(`{"errorType":"OSError","errorMessage":"no\nsuch"}`), FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}
	execve := bawn.Record{Kind: bawn.KindBlocked, Action: "execve", Control: "B7", Reason: "no"}
	call := bawn.Record{Kind: bawn.KindDecision, Action: "call", Control: "A7"}
	allow := func(a bawn.TestAllow) bawn.Test { return bawn.Test{Allow: &a} }
	routed := func(a bawn.TestAllow) bawn.Test { return bawn.Test{Route: "GET /", Allow: &a} }
	deny := func(d bawn.TestDeny) bawn.Test { return bawn.Test{Deny: &d} }
	holds := func(s string) bawn.TestAllow { return bawn.TestAllow{Response: json.RawMessage(s)} }
	refused := errors.New("refused")
	stream := func(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }
	for _, c := range []struct {
		name  string
		test  bawn.Test
		tried invoke.Tried
		ok    bool
		got   string
		says  string
	}{
		{"denied at ingress", deny(bawn.TestDeny{}), invoke.Tried{Refused: refused}, true, "deny", "ingress (A11 invoke)"},
		{"denied at ingress, wanted inside", deny(bawn.TestDeny{At: "interior"}), invoke.Tried{Refused: refused}, false, "deny", "wanted a stop by interior"},
		{"stopped inside", deny(bawn.TestDeny{Control: "B7", Action: "execve"}), invoke.Tried{Result: payload(`1`), Stopped: []bawn.Record{execve}}, true, "deny", "interior (B7 execve)"},
		{"the second stop counts", deny(bawn.TestDeny{At: "egress"}), invoke.Tried{Result: payload(`1`), Stopped: []bawn.Record{execve, call}}, true, "deny", "egress (A7 call)"},
		{"another control", deny(bawn.TestDeny{Control: "B2"}), invoke.Tried{Result: payload(`1`), Stopped: []bawn.Record{execve}}, false, "allow", "what stopped something was"},
		{"must-deny is allowed", deny(bawn.TestDeny{}), invoke.Tried{Result: payload(`{"a":1}`)}, false, "allow", `allowed and nothing was stopped: {"a":1}`},
		{"the function's own failure is no denial", deny(bawn.TestDeny{}), invoke.Tried{Result: failed}, false, "error", "failed by itself: OSError: no such"},
		{"allowed", allow(bawn.TestAllow{}), invoke.Tried{Result: payload(`null`)}, true, "allow", "answered null"},
		{"must-allow is refused", allow(bawn.TestAllow{}), invoke.Tried{Refused: refused}, false, "deny", "refused"},
		{"must-allow fails", allow(bawn.TestAllow{}), invoke.Tried{Result: failed}, false, "error", "the function failed: OSError"},
		{"must-allow fails for what was stopped", allow(bawn.TestAllow{}), invoke.Tried{Result: failed, Stopped: []bawn.Record{execve}}, false, "deny", "execve"},
		{"holds", allow(holds(`{"a":{"b":1},"l":[1,"x"]}`)), invoke.Tried{Result: payload(`{"l":[1,"x"],"a":{"b":1.0,"c":2},"z":0}`)}, true, "allow", ""},
		{"lacks", allow(holds(`{"a":{"b":1}}`)), invoke.Tried{Result: payload(`{"a":{}}`)}, false, "allow", `the response.a has no "b"`},
		{"differs", allow(holds(`{"a":[1,2]}`)), invoke.Tried{Result: payload(`{"a":[1,3]}`)}, false, "allow", "the response.a[1] is 3, want 2"},
		{"a longer list", allow(holds(`[1]`)), invoke.Tried{Result: payload(`[1,2]`)}, false, "allow", "the response is [1,2], want [1]"},
		{"text for a number", allow(holds(`1`)), invoke.Tried{Result: payload(`"1"`)}, false, "allow", `is "1", want 1`},
		{"plain text", routed(holds(`"a b"`)), invoke.Tried{Result: payload(`{"statusCode":200,"body":"a b"}`)}, true, "allow", ""},
		{"a status", routed(bawn.TestAllow{Status: 404}), invoke.Tried{Result: payload(`{"statusCode":404}`)}, true, "allow", "status 404"},
		{"another status", routed(bawn.TestAllow{Status: 404}), invoke.Tried{Result: payload(`{"statusCode":200,"body":"x"}`)}, false, "allow", "wanted status 404, but got 200: x"},
		{"a bad status nobody wanted", routed(bawn.TestAllow{}), invoke.Tried{Result: payload(`{"statusCode":500}`)}, false, "allow", "status 500"},
		{"no response at all", routed(bawn.TestAllow{}), invoke.Tried{Result: payload(`{"statusCode":1}`)}, false, "error", "statusCode is 1"},
		{"a prelude", routed(bawn.TestAllow{Status: 201, Response: json.RawMessage(`{"a":1}`)}),
			invoke.Tried{Result: &bawn.Result{ContentType: bawn.PreludeType, Stream: stream("{\"statusCode\":201}\x00\x00\x00\x00\x00\x00\x00\x00{\"a\":1}")}}, true, "allow", ""},
		{"a stream without one", routed(holds(`"x"`)), invoke.Tried{Result: &bawn.Result{ContentType: "text/csv", Stream: stream("x")}}, true, "allow", ""},
		{"a labelled payload", routed(holds(`"x"`)), invoke.Tried{Result: &bawn.Result{ContentType: "application/json", Payload: []byte(`{"statusCode":200,"body":"x"}`)}}, true, "allow", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r bawn.TestResult
			judge(&r, &c.test, &c.tried)
			if r.OK != c.ok || r.Got != c.got || !strings.Contains(r.Message, c.says) || r.Message == "" {
				t.Errorf("got %+v\nwant ok %v, got %q, message with %q", r, c.ok, c.got, c.says)
			}
		})
	}
}
