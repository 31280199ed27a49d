package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/ingress/waf"
)

// wall makes a function whose route and events are inspected, and returns a call by
// its route with a body.
func wall(t *testing.T, w *world, name string, in *bawn.Inspection) (byRoute func(body string) *bawn.Call, byName func(event string) *bawn.Call) {
	t.Helper()
	ctx := context.Background()
	v := bawn.Version{Tenant: "main", Function: name, Number: 1, Digest: "sha256:" + name, Runtime: bawn.Python311}
	v.Perimeter.Ingress = bawn.Ingress{
		HTTP: []bawn.Route{{
			Method: "POST", Path: "/" + name, Inspect: in,
			Access: bawn.Access{Public: &bawn.PublicAccess{Reason: "test", Until: w.now.Add(24 * time.Hour)}},
		}},
		Event: &bawn.Event{Inspect: in},
	}
	_, err := w.versions.Create(ctx, "main."+name+".1", v)
	check1(t, err)
	_, err = w.functions.Create(ctx, "main."+name, bawn.Function{Tenant: "main", Name: name, Latest: 1, Aliases: map[string]int{bawn.LiveAlias: 1}, CreatedAt: time.Now()})
	check1(t, err)
	key := w.key(t, "main", bawn.RoleInvoker)
	byRoute = func(body string) *bawn.Call {
		c := w.byRoute(t, "POST", "/"+name, "")
		c.Request = jsonRequest("/"+name, body)
		return c
	}
	return byRoute, func(event string) *bawn.Call {
		return &bawn.Call{ID: bawn.NewID(), Trigger: "api", Target: bawn.Ref{Tenant: "main", Function: name}, Bearer: key, Event: []byte(event)}
	}
}

func jsonRequest(path, body string) *bawn.Request {
	return &bawn.Request{
		Method: "POST", Host: "shop.example", Path: path, Proto: "HTTP/1.1", Body: []byte(body),
		Header: map[string][]string{
			"User-Agent": {"curl/8.5.0"}, "Accept": {"*/*"}, "Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))},
		},
	}
}

func (w *world) findings(t *testing.T, function string) []bawn.Record {
	t.Helper()
	var all []bawn.Record
	check1(t, w.log.Read(t.Context(), evidence.Query{Tenant: "main"}, func(r bawn.Record) error {
		if r.Control == "D4" && r.Function == function {
			all = append(all, r)
		}
		return nil
	}))
	return all
}

const sqlInjection = `{"name": "x' OR 1=1 --"}`

// D4, attack 5: what looks like an attack is refused whatever trigger it comes by,
// the caller learns nothing of why, and the owner learns the rules and the line that
// would let it in.
func TestD4EveryTrigger(t *testing.T) {
	w := newWorld(t)
	byRoute, byName := wall(t, w, "shop", &bawn.Inspection{Mode: "block", Level: 1})
	for name, c := range map[string]*bawn.Call{
		"body": byRoute(sqlInjection), "event": byName(sqlInjection),
		"name of a member": byName(`{"x' OR 1=1 --": 1}`), "deep": byName(`{"a": [[{"b": "<script>alert(1)</script>"}]]}`),
		"not one JSON": byName(`{"a": 1, "a": "<script>"}`), "file's name": byName(`{"Records": [{"key": "x;touch /tmp/y;"}]}`),
		"escaped": byName(`{"a": "\u003cscript\u003ealert(1)"}`),
		"node":    byName(`{"a": "_$$ND_FUNC$$_function(){}"}`),
	} {
		_, err := w.gate.Admit(t.Context(), c)
		want := bawn.CodeDenied
		if name == "not one JSON" {
			want = bawn.CodeInvalid
		}
		if bawn.ErrorCode(err) != want {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var e *bawn.Error
		if want == bawn.CodeDenied && errors.As(err, &e) && strings.ContainsAny(e.Message+e.Fix, "0123456789<'") {
			t.Errorf("%s: the caller reads %q, %q", name, e.Message, e.Fix)
		}
	}
	for _, c := range []*bawn.Call{byRoute(`{"name": "Ada"}`), byRoute(""), byName(`{"name": "Ada", "n": 1e3}`), byName(`"Ada"`), byName(``)} {
		a, err := w.gate.Admit(t.Context(), c)
		if err != nil {
			t.Errorf("%q %v: %v", c.Event, c.Request, err)
			continue
		}
		a.Settle()
	}
	found := w.findings(t, "shop")
	if len(found) == 0 || found[0].Outcome != "deny" {
		t.Fatalf("%+v", found)
	}
	for _, r := range found {
		if strings.Contains(fmt.Sprint(r), "OR 1=1") || strings.Contains(fmt.Sprint(r), "script>") {
			t.Errorf("the record has what came: %+v", r)
		}
		if r.Detail["rules"] != "" && !strings.Contains(r.Detail["manifest"], "inspect: {mode: block, level: 1, exclude: [") {
			t.Errorf("no way out: %+v", r.Detail)
		}
	}
}

// D4: detect records and lets through, off does not look, and what is excluded is
// not found.
func TestD4Modes(t *testing.T) {
	w := newWorld(t)
	admit := func(c *bawn.Call) {
		t.Helper()
		a, err := w.gate.Admit(t.Context(), c)
		check1(t, err)
		a.Settle()
	}
	if w.gate.waf.Loaded() {
		t.Error("the rules are loaded though nobody needs them")
	}
	offRoute, offName := wall(t, w, "off", &bawn.Inspection{Mode: "off"})
	admit(offRoute(sqlInjection))
	admit(offName(sqlInjection))
	if w.gate.waf.Loaded() {
		t.Error("the rules are loaded for what is not inspected")
	}
	byRoute, byName := wall(t, w, "detect", &bawn.Inspection{Mode: "detect", Level: 1})
	admit(byRoute(sqlInjection))
	admit(byName(sqlInjection))
	found := w.findings(t, "detect")
	if len(found) != 2 || found[0].Outcome != "allow" || !strings.Contains(found[0].Detail["rules"], "942100") {
		t.Errorf("%+v", found)
	}
	without, _ := wall(t, w, "without", &bawn.Inspection{Mode: "block", Level: 1, Exclude: []int{942100}})
	admit(without(sqlInjection))
	if !w.gate.waf.Loaded() {
		t.Error("the rules are not loaded")
	}
	for _, name := range []string{"off", "detect", "without"} {
		_, revision, _ := w.functions.Get("main." + name)
		check1(t, w.functions.Delete(t.Context(), "main."+name, revision))
	}
	for began := time.Now(); w.gate.waf.Loaded(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the rules stay though nobody needs them")
		}
	}
}

// D4: a perimeter test and a dry run see what a real call does.
func TestD4Trials(t *testing.T) {
	w := newWorld(t)
	byRoute, byName := wall(t, w, "shop", &bawn.Inspection{Mode: "block", Level: 1})
	v := w.gate.Resolve(bawn.Ref{Tenant: "main", Function: "shop"})
	for _, c := range []*bawn.Call{byRoute(sqlInjection), byName(sqlInjection)} {
		c.Principal = bawn.Principal{Kind: bawn.PrincipalKey, ID: "test", Tenant: "main", Roles: []bawn.Role{bawn.RoleInvoker}}
		if _, err := w.gate.Try(t.Context(), v, c); bawn.ErrorCode(err) != bawn.CodeDenied {
			t.Errorf("%s: %v", c.Trigger, err)
		}
	}
	if found := w.findings(t, "shop"); len(found) > 0 {
		t.Errorf("a test is recorded: %+v", found)
	}
	c := byName(`{"name": "Ada"}`)
	c.Principal = bawn.Principal{Kind: bawn.PrincipalKey, ID: "test", Tenant: "main", Roles: []bawn.Role{bawn.RoleInvoker}}
	trial, err := w.gate.Try(t.Context(), v, c)
	check1(t, err)
	trial.Close()
}

// D4: refusals of a flood are counted, and few of them recorded.
func TestD4RecordsAreBounded(t *testing.T) {
	w := newWorld(t)
	byRoute, _ := wall(t, w, "shop", &bawn.Inspection{Mode: "block", Level: 1})
	var notes []string
	flood := func(n int) {
		for range n {
			_, err := w.gate.Admit(t.Context(), byRoute(sqlInjection))
			if bawn.ErrorCode(err) != bawn.CodeDenied {
				t.Fatal(err)
			}
			var attack *Refusal
			if errors.As(err, &attack) {
				notes = append(notes, attack.Note)
			}
		}
	}
	flood(inspectRecords + 7)
	w.now = w.now.Add(time.Second)
	flood(1)
	found := w.findings(t, "shop")
	if len(found) != inspectRecords+1 {
		t.Fatalf("%d records", len(found))
	}
	left := ""
	for _, r := range found {
		left += r.Detail["leftOut"]
	}
	if left != "7" {
		t.Errorf("%q are said to be left out", left)
	}
	if len(notes) != inspectRecords+1 || !strings.Contains(notes[0], "942100") || !strings.Contains(notes[0], "inspect: {mode: block, level: 1, exclude: [") ||
		!strings.Contains(notes[inspectRecords], "7 more") || strings.Contains(fmt.Sprint(notes), "OR 1=1") {
		t.Errorf("the owner reads %q", notes)
	}
}

// D4: of a thousand requests to a host that has a name, with more to them than those
// of the examples, none is refused. The examples have ten thousand by real clients:
// examples, TestD4BenignRequests.
func TestD4BenignTraffic(t *testing.T) {
	i := waf.New()
	i.Need(true)
	defer i.Close()
	r := rand.New(rand.NewPCG(7, 11))
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	name := func() string {
		return pick("Ada", "Grace", "Jürgen", "Siobhán", "Liam", "Zoë", "José", "Anne-Marie", "D'Arcy", "李小龙", "Олег") + " " +
			pick("Lovelace", "O'Brien", "Müller", "Nuñez", "van der Berg", "MacCarthy", "Smith & Sons", "Łukasz")
	}
	note := func() string {
		return pick("Leave it with the neighbour at number 7.", "Please call before 5 pm (or after 8).", "Gift: wrap it!", "50% off, as agreed",
			"It's for my sister; she turns 30.", "Order #1234 + 2 extra", "See https://shop.example/help", "Ring the bell & wait", "C'est parfait, merci.", "none")
	}
	clients := []map[string][]string{
		{"User-Agent": {"curl/8.5.0"}, "Accept": {"*/*"}},
		{"User-Agent": {"Go-http-client/1.1"}, "Accept-Encoding": {"gzip"}},
		{"User-Agent": {"python-requests/2.32.3"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip, deflate"}, "Connection": {"keep-alive"}},
		{"User-Agent": {"GitHub-Hookshot/1a2b3c4"}, "Accept": {"*/*"}, "X-Github-Event": {"push"}, "X-Hub-Signature-256": {"sha256=" + strings.Repeat("ab", 32)}},
	}
	ask := func(n int) (string, *bawn.Request) {
		var body any
		path, query := "/", ""
		switch n % 6 {
		case 0: // orders, checkout
			path, body = "/orders", map[string]any{"item": pick("green tea", "black tea", "cups (2)"), "quantity": 1 + r.IntN(9), "customer": name(), "email": pick("ada@example.com", "o.brien+shop@example.org"),
				"address": fmt.Sprintf("%d %s, %s", 1+r.IntN(200), pick("Main St.", "Rue de l'Église", "Königsallee", "Bóthar na Trá"), pick("Cork", "Lyon", "Düsseldorf")), "note": note()}
		case 1: // redact, text
			path, body = "/redact", map[string]any{"text": "My name is " + name() + " and my number is +353 21 555 01" + strconv.Itoa(10+r.IntN(90)) + ". " + note()}
		case 2: // webhook
			path, body = "/hooks/github", map[string]any{"action": "opened", "number": r.IntN(999), "repository": map[string]any{"full_name": "acme/shop", "html_url": "https://github.com/acme/shop"},
				"sender": map[string]any{"login": "octo-cat"}, "pull_request": map[string]any{"title": pick("Fix the price of tea", "ci: cache modules", "Add a test for H5"), "body": "Closes #12.\n\n- one\n- two\n"}}
		case 3: // hello
			path, query = "/hello", "name="+pick("Ada", "Grace+Hopper", "J%C3%BCrgen")
		case 4: // export
			path, query = "/export/"+pick("orders", "customers"), "from=2026-01-01&to=2026-02-01&limit="+strconv.Itoa(r.IntN(500))
		case 5: // payments
			path, body = "/payments", map[string]any{"order": fmt.Sprintf("%08x-0000-4000-8000-%012x", r.Uint32(), r.Uint32()), "amount": "12.50", "currency": "EUR", "holder": name()}
		}
		req := &bawn.Request{Method: "GET", Host: "shop.example.com", Path: path, Query: query, Proto: pick("HTTP/1.1", "HTTP/2.0"), Header: http.Header{}}
		for k, v := range clients[r.IntN(len(clients))] {
			req.Header[k] = v
		}
		if body != nil {
			raw, err := json.Marshal(body)
			check1(t, err)
			req.Method, req.Body = "POST", raw
			req.Header["Content-Type"], req.Header["Content-Length"] = []string{"application/json"}, []string{strconv.Itoa(len(raw))}
		}
		return path, req
	}
	const all = 1000
	refused, why := 0, map[string]int{}
	for n := range all {
		path, req := ask(n)
		q := waf.Question{Request: req, Level: 1}
		check1(t, askRequest(&q, req, nil, false))
		v, err := i.Ask(t.Context(), q)
		check1(t, err)
		if v.Attack {
			refused++
			why[fmt.Sprint(path, v.Rules, string(req.Body))]++
		}
	}
	if refused > 0 {
		for k, n := range why {
			t.Log(n, k)
		}
		t.Errorf("%d of %d ordinary requests are refused", refused, all)
	}
}

// D4: there is no way to write an attack that is let in because nobody looked: of
// whatever content type, in whatever coding, wherever in a request or an event.
func TestD4NothingIsPassedOver(t *testing.T) {
	w := newWorld(t)
	byRoute, byName := wall(t, w, "shop", &bawn.Inspection{Mode: "block", Level: 1, Exclude: []int{920420}}) // which knows few content types
	const sql, script = "x' OR 1=1 --", "<script>alert(1)</script>"
	typed := func(body string, types ...string) *bawn.Call {
		c := byRoute(body)
		c.Request.Header["Content-Type"] = types
		if types == nil {
			delete(c.Request.Header, "Content-Type")
		}
		return c
	}
	with := func(change func(*bawn.Request)) *bawn.Call {
		c := byRoute(`{"a": 1}`)
		change(c.Request)
		return c
	}
	part := func(before, head, text, after string) *bawn.Call {
		return typed(before+"--b\r\nContent-Disposition: form-data; "+head+"\r\n\r\n"+text+"\r\n--b--\r\n"+after, "multipart/form-data; boundary=b")
	}
	const form = "application/x-www-form-urlencoded"
	client := byName(`{}`)
	client.Client = `{"custom": {"a": "` + script + `"}}`
	for name, c := range map[string]*bawn.Call{
		"no content type, text":             typed(sql),
		"no content type, JSON":             typed(sqlInjection),
		"no content type, form":             typed("a=1&b=x%27+OR+1%3D1+--"),
		"empty content type":                typed(script, ""),
		"unknown content type":              typed(sql, "application/x-thing"),
		"broken content type":               typed(sqlInjection, "a/b/c;;"),
		"text, form":                        typed("a=1&b=%3Cscript%3Ealert(1)%3C/script%3E", "text/plain"),
		"text, JSON":                        typed(sqlInjection, "text/plain"),
		"text, JSON with a name twice":      typed(`{"a": "\u003cscript\u003ealert(1)\u003c/script\u003e", "a": 1}`, "text/plain"),
		"form, JSON":                        typed(sqlInjection, form),
		"form, upper case":                  typed("a=x%27+OR+1%3D1+--", "APPLICATION/X-WWW-FORM-URLENCODED"),
		"other multipart":                   typed("--b\r\n\r\n"+script+"\r\n--b--", "multipart/mixed; boundary=b"),
		"other XML":                         typed("<a>"+sql+"</a>", "application/rss+xml"),
		"JSON of another kind":              typed(sqlInjection, "application/problem+json"),
		"two content types":                 typed(sqlInjection, form, "application/json"),
		"two content types, text":           typed(script, "application/json", "text/plain"),
		"two in one":                        typed(sqlInjection, "text/plain, application/json"),
		"UTF-16":                            typed("<\x00s\x00c\x00r\x00i\x00p\x00t\x00>\x00", "text/plain; charset=utf-16"),
		"UTF-16 that does not say so":       typed("<\x00s\x00c\x00r\x00i\x00p\x00t\x00>\x00", "text/plain"),
		"UTF-7":                             typed(`{"a": "+ADw-script+AD4-"}`, "application/json; charset=utf-7"),
		"UTF-16 as JSON":                    typed("{\x00}\x00", "application/json; charset=utf-16"),
		"field of parts":                    part("", `name="a"`, sql, ""),
		"field called filename":             part("", `name="filename"`, sql, ""),
		"field with an empty file name":     part("", `name="a"; filename=""`, sql, ""),
		"file's name":                       part("", `name="a"; filename="x.php"`, "x", ""),
		"before the parts":                  part(sql+"\r\n", `name="a"`, "x", ""),
		"behind the parts":                  part("", `name="a"`, "x", script),
		"another boundary":                  typed("--c\r\n\r\n"+sql+"\r\n--c--", "multipart/form-data; boundary=b"),
		"body of GET":                       with(func(r *bawn.Request) { r.Method, r.Body = "GET", []byte(sqlInjection) }),
		"query":                             with(func(r *bawn.Request) { r.Query = "a=x%27+OR+1%3D1+--" }),
		"query, encoded twice":              with(func(r *bawn.Request) { r.Query = "a=%253Cscript%253Ealert(1)" }),
		"query, a name twice":               with(func(r *bawn.Request) { r.Query = "a=1&a=x%27+OR+1%3D1+--&a=2" }),
		"parameter of the path":             with(func(r *bawn.Request) { r.Params = map[string]string{"id": sql} }),
		"parameter of the path, encoded on": with(func(r *bawn.Request) { r.Params = map[string]string{"id": "%3Cscript%3Ealert(1)"} }),
		"header, the second time":           with(func(r *bawn.Request) { r.Header["X-A"] = []string{"a", "${jndi:ldap://x/a}"} }),
		"cookie, the second time":           with(func(r *bawn.Request) { r.Header["Cookie"] = []string{"a=b", "a=" + script} }),
		"event, JSON in a text":             byName(`{"Records": [{"body": "{\"a\": \"\\u003cscript\\u003ealert(1)\"}"}]}`),
		"event, JSON in JSON in a text":     byName(`{"body": "{\"Message\": \"{\\\"a\\\": \\\"\\\\u003cscript\\\\u003ealert(1)\\\"}\"}"}`),
		"event, body in base64":             byName(`{"isBase64Encoded": true, "body": "eCcgT1IgMT0xIC0t"}`),
		"event, form in base64":             byName(`{"isBase64Encoded": true, "body": "YT0xJmI9JTNDc2NyaXB0JTNFYWxlcnQoMSk="}`),
		"client context":                    client,
		"number as a text":                  byName(`{"n": "1 OR 1=1 --"}`),
	} {
		if c.Request != nil {
			c.Request.Header["Content-Length"] = []string{strconv.Itoa(len(c.Request.Body))}
		}
		switch _, err := w.gate.Admit(t.Context(), c); bawn.ErrorCode(err) {
		case bawn.CodeDenied, bawn.CodeInvalid:
		default:
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is compressed says nothing to who searches it.
	c := typed("a=1", form)
	c.Request.Header["Content-Encoding"] = []string{"gzip"}
	if _, err := w.gate.Admit(t.Context(), c); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Errorf("gzip: %v", err)
	}
	// And the like of it that is none is let in.
	for name, c := range map[string]*bawn.Call{
		"text": typed("Leave it with the neighbour, please.", "text/plain"), "form": typed("name=Ada+Lovelace&n=3", form),
		"part": part("", `name="a"`, "Ada", ""), "field called filename": part("", `name="filename"`, "me.png", ""),
		"file": part("", `name="a"; filename="me.png"`, "\x89PNG "+sql, ""), "text with a sign": typed("a = b", "text/plain"),
		"body in base64": byName(`{"isBase64Encoded": true, "body": "QWRh"}`), "JSON in a text": byName(`{"body": "{\"a\": \"Ada\"}"}`),
	} {
		if c.Request != nil {
			c.Request.Header["Content-Length"] = []string{strconv.Itoa(len(c.Request.Body))}
		}
		a, err := w.gate.Admit(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a.Settle()
	}
}

// D4: of a body that a schema holds only the text that it leaves free is searched,
// and a request that brings none is not looked at twice.
func TestD4OnlyWhatIsFree(t *testing.T) {
	w := newWorld(t)
	byRoute, _ := wall(t, w, "shop", &bawn.Inspection{Mode: "block", Level: 1})
	v := w.gate.Resolve(bawn.Ref{Tenant: "main", Function: "shop"})
	v.Perimeter.Ingress.HTTP[0].Input = &bawn.Input{Schema: `{"type": "object", "additionalProperties": false, "properties": {
		"kind": {"enum": ["tea' OR 1=1 --", "cup"]}, "sku": {"type": "string", "pattern": "^[A-Z0-9-]{3,9}$"}, "note": {"type": "string"}}}`}
	for body, want := range map[string]bawn.Code{
		`{"note": "x' OR 1=1 --"}`:      bawn.CodeDenied,
		`{"sku": "x' OR 1=1 --"}`:       bawn.CodeInvalid,
		`{"kind": "x' OR 1=1 --"}`:      bawn.CodeInvalid,
		`{"kind": "tea' OR 1=1 --"}`:    "", // the schema names it
		`{"sku": "TEA-1", "note": "a"}`: "",
	} {
		a, err := w.gate.Admit(t.Context(), byRoute(body))
		if err == nil {
			a.Settle()
		}
		if err != nil && bawn.ErrorCode(err) != want || err == nil && want != "" {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	form := byRoute("kind=tea%27+OR+1%3D1+--&sku=TEA-1")
	form.Request.Header["Content-Type"] = []string{"application/x-www-form-urlencoded"}
	a, err := w.gate.Admit(t.Context(), form)
	check1(t, err)
	a.Settle()
}
