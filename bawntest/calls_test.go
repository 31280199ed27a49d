package bawntest

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// agent is a function that does what its event says: it calls others, and
// answers with what it got.
const agent = `
import http.client, json, os, time, urllib.parse

def call(c):
    u = urllib.parse.urlsplit(os.environ["BAWN_ENDPOINT"])
    conn = http.client.HTTPConnection(u.hostname, u.port, timeout=30)
    path = c.get("path") or "/2015-03-31/functions/" + urllib.parse.quote(c["function"], safe="") + "/invocations"
    if c.get("qualifier"):
        path += "?Qualifier=" + urllib.parse.quote(c["qualifier"])
    body = c.get("raw")
    if body is None:
        body = json.dumps(c.get("payload", {}))
    try:
        conn.request(c.get("method", "POST"), path, body, c.get("headers", {}))
        r = conn.getresponse()
        text = r.read().decode()
        return {"status": r.status, "type": r.headers.get("x-amzn-errortype", ""), "error": r.headers.get("X-Amz-Function-Error", ""),
                "version": r.headers.get("X-Amz-Executed-Version", ""), "log": r.headers.get("X-Amz-Log-Result", ""), "body": text}
    except Exception as e:
        return {"status": 0, "body": repr(e)}
    finally:
        conn.close()

def handler(event, context):
    if "rawPath" in event:
        event = json.loads(event["body"])
    if event.get("trace"):
        return os.environ["_X_AMZN_TRACE_ID"]
    if event.get("sleep"):
        time.sleep(event["sleep"])
    if event.get("ring"):
        ring = event["ring"]
        return call({"function": ring[0], "payload": {"ring": ring[1:] + ring[:1]}, "headers": {"X-Amzn-Trace-Id": "Root=1-00000000-000000000000000000000000;Bawn=1.00"}})
    out = [call(c) for c in event.get("calls", [])]
    if "say" in event:
        return event["say"]
    return out
`

// got is what the agent says of a call it made.
type got struct {
	Status  int    `json:"status"`
	Type    string `json:"type"`
	Error   string `json:"error"`
	Version string `json:"version"`
	Log     string `json:"log"`
	Body    string `json:"body"`
}

// A town is a node with agents.
type town struct {
	*Node
	rt bawn.Runtime
}

func newTown(t *testing.T) *town {
	n := NewNode(t)
	return &town{Node: n, rt: n.NeedRuntime(Pythons()...)}
}

// deploy makes a version of an agent: who may call it, and whom it may call.
func (n *town) deploy(name string, callers, functions []string, more ...func(spec map[string]any)) {
	n.t.Helper()
	spec := map[string]any{"runtime": string(n.rt), "handler": "app.handler", "interior": map[string]any{"timeout": "60s", "reuse": map[string]any{"maxAge": "1h"}}}
	if len(callers) > 0 {
		spec["ingress"] = map[string]any{"callers": callers}
	}
	if len(functions) > 0 {
		spec["egress"] = map[string]any{"functions": functions}
	}
	for _, m := range more {
		m(spec)
	}
	n.MustDeploy(name, spec, map[string]string{"app.py": agent})
}

// ask has an agent make calls, asked by c, and returns what came of each.
func ask(t *testing.T, c *client.Client, name string, calls ...map[string]any) []got {
	t.Helper()
	var out []got
	if err := json.Unmarshal([]byte(invoke(t, c, name, map[string]any{"calls": calls})), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func invoke(t *testing.T, c *client.Client, name string, event any) string {
	t.Helper()
	data, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	inv, err := c.Invoke(t.Context(), name, "", data)
	if err != nil {
		t.Fatalf("invoking %s: %v", name, err)
	}
	defer inv.Body.Close()
	body, err := io.ReadAll(inv.Body)
	if err != nil {
		t.Fatal(err)
	}
	if inv.FunctionError != "" {
		t.Fatalf("%s failed: %s", name, body)
	}
	return string(body)
}

// records returns the records that match, oldest first.
func (n *Node) records(match func(*bawn.Record) bool) []bawn.Record {
	n.t.Helper()
	var list []bawn.Record
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	if err := n.Events(ctx, client.EventQuery{Limit: 10_000}, func(r bawn.Record) error {
		if match(&r) {
			list = append(list, r)
		}
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return list
}

func TestA7FunctionCallsFunction(t *testing.T) {
	n := newTown(t)
	n.deploy("checkout", nil, []string{"receipts"})
	n.deploy("receipts", []string{"checkout"}, nil)
	out := ask(t, n.Client, "checkout", map[string]any{"function": "receipts", "payload": map[string]any{"say": "printed"}})
	if len(out) != 1 || out[0].Status != 200 || out[0].Body != `"printed"` || out[0].Version != "1" {
		t.Fatalf("%+v", out)
	}
	calls := n.records(func(r *bawn.Record) bool { return r.Function == "receipts" && r.Action == "invoke" })
	if len(calls) != 2 {
		t.Fatalf("records of the call: %+v", calls)
	}
	for _, r := range calls {
		if r.Principal != "function:checkout@1" || !strings.HasPrefix(r.Detail["origin"], "key:") || r.Detail["chain"] != "checkout@1" || r.Detail["depth"] != "1" {
			t.Errorf("%+v", r)
		}
	}
}
