package bawntest

import (
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// early calls another function while it loads, and a moment after it has
// answered.
const early = `
import http.client, os, threading, time

def call():
    conn = http.client.HTTPConnection("127.0.0.1", 9002, timeout=20)
    conn.request("POST", "/2015-03-31/functions/callee/invocations", "{}")
    r = conn.getresponse()
    r.read()
    conn.close()
    return r.status

def late():
    time.sleep(0.03)
    call()

loading = call()

def handler(event, context):
    threading.Thread(target=late).start()
    return [loading, call(), os.environ["AWS_ENDPOINT_URL_LAMBDA"], os.environ["AWS_ACCESS_KEY_ID"]]
`

// TestA6EndpointAnswersDuringInvocations: the endpoint belongs to an invocation,
// not to the code that happens to be in the sandbox.
func TestA6EndpointAnswersDuringInvocations(t *testing.T) {
	n := newTown(t)
	n.deploy("callee", []string{"early"}, nil)
	n.MustDeploy("early", map[string]any{
		"runtime": string(n.rt), "handler": "app.handler", "egress": map[string]any{"functions": []string{"callee"}},
		"interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}},
	}, map[string]string{"app.py": early})
	if out := invoke(t, n.Client, "early", map[string]any{}); strings.ReplaceAll(out, " ", "") != `[403,200,"http://127.0.0.1:9002","BAWNNOTASECRET"]` {
		t.Error(out)
	}
	var strays []bawn.Record
	for end := time.Now().Add(10 * time.Second); len(strays) < 2 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		// On a busy host the instance may be stopped before the thread comes to it.
		invoke(t, n.Client, "early", map[string]any{})
		strays = n.records(func(r *bawn.Record) bool { return r.Control == "A6" && r.Function == "early" })
	}
	if len(strays) < 2 {
		t.Fatalf("%+v", strays)
	}
	for _, r := range strays {
		if r.Kind != bawn.KindBlocked || r.Reason != "no invocation is running" || !strings.Contains(r.Detail["request"], "callee") {
			t.Errorf("%+v", r)
		}
	}
}
