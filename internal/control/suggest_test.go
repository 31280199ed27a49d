package control

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// block reads a proposed block as a manifest, and returns the rules of it.
func block(t testing.TB, text string) bawn.Egress {
	t.Helper()
	var b strings.Builder
	b.WriteString("functions:\n  hello:\n    runtime: python3.11\n    handler: app.handler\n    owner: me\n")
	for line := range strings.Lines(text) {
		b.WriteString("    " + line)
	}
	f, err := manifest.Parse("bawn.yaml", []byte(b.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	v, err := manifest.Compile("hello", f.Functions["hello"])
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	return v.Perimeter.Egress
}

// seen keeps a record of the function hello, n times.
func (p *plane) seen(n int, r bawn.Record) {
	p.t.Helper()
	r.Tenant = "main"
	if r.Principal == "" {
		r.Function, r.Version, r.Principal = "hello", 1, "function:hello@1"
	}
	for range n {
		r.Time = p.now
		if err := p.log.Append(context.Background(), r); err != nil {
			p.t.Fatal(err)
		}
	}
}

func reached(outcome, object, host string, port int, detail ...string) bawn.Record {
	d := map[string]string{"object": object, "host": host, "port": strconv.Itoa(port)}
	if outcome == "deny" {
		d["manifest"] = "egress.hosts: - {}"
	}
	for i := 0; i+1 < len(detail); i += 2 {
		d[detail[i]] = detail[i+1]
	}
	return bawn.Record{Kind: bawn.KindDecision, Action: "egress", Outcome: outcome, Control: "C2", Detail: d}
}

// A function that is to have no more than it needs has to be known for what it
// uses: what is proposed lets through all of that, and nothing that nobody decided
// on.
func TestA4SuggestKeepsWhatIsUsedAndNoMore(t *testing.T) {
	p := open(t)
	p.now = time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	const now = `
egress:
  functions: [other]
  hosts:
    - {host: api.example.com, ports: [443, 8443], methods: [GET, POST, DELETE], paths: [/v1/*, /v2/all], bytes: 10MiB, inject: {secret: api-key, header: Authorization, format: "Bearer {}"}}
    - {host: "*.cdn.example.com", connections: 3, time: 30s, labels: [pii]}
    - {host: old.example.com}
  proxy: true
  secrets: [signing, {name: cert, file: true}, spare]
  databases:
    orders: {postgres: "db.example.com:5432/orders", user: shop, secret: orders-db}
    cache: {redis: "cache.example.com:6379"}
  response: {schema: {type: object}, bytes: 1MiB, headers: [x-total], cards: redact}
`
	other := p.upload(admin, "other")
	p.deploy("other", other)
	was := block(t, now)
	f, err := manifest.Parse("bawn.yaml", []byte("functions:\n  hello:\n    runtime: python3.11\n    handler: app.handler\n    owner: me\n"+strings.ReplaceAll(now, "\n", "\n    ")))
	if err != nil {
		t.Fatal(err)
	}
	p.deploy("hello", p.upload(admin, "hello"), func(m *manifest.Function) { m.Egress = f.Functions["hello"].Egress })
	p.now = p.now.Add(time.Minute)
	ask := func() Suggestion {
		t.Helper()
		s, err := p.Suggest(t.Context(), admin, bawn.Ref{Tenant: "main", Function: "hello"}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	// Of what has not run nothing is unused.
	s := ask()
	if got := block(t, s.Manifest); !reflect.DeepEqual(got.Hosts, was.Hosts) || len(got.Secrets) != 3 || len(got.Databases) != 2 || got.Response == nil || got.Response.Schema != was.Response.Schema {
		t.Errorf("of a function that did not run:\n%s", s.Manifest)
	}
	if s.Ran || !strings.Contains(s.Manifest, "did not run") || !strings.Contains(s.Manifest, "NEVER USED since") {
		t.Errorf("%+v", s)
	}

	p.seen(1, bawn.Record{Kind: bawn.KindOutcome, Action: "invoke", Outcome: "ok"})
	api := func(n int, method, path string) {
		p.seen(n, reached("allow", "Host:api.example.com", "api.example.com", 443, "method", method, "path", path))
	}
	api(3, "GET", "/v1/items")
	api(1, "POST", "/v2/all")
	for i := range 6 {
		api(1, "GET", fmt.Sprintf("/v1/customers/%d", i))
		api(1, "GET", fmt.Sprintf("/v1/words/word%c", 'a'+i))
	}
	api(1, "GET", "/v1/odd/a%20b")
	p.seen(2, reached("allow", "Host:*.cdn.example.com", "eu.cdn.example.com", 443))
	p.seen(4, reached("deny", "Host:new.example.com", "new.example.com", 8443))
	p.seen(1, reached("deny", "Host:api.example.com", "api.example.com", 443, "method", "GET", "path", "/admin"))
	p.seen(1, reached("deny", "Host:169.254.169.254", "169.254.169.254", 80))
	p.seen(1, reached("deny", "Host:deep.example.com", "deep.example.com", 9002))
	p.seen(1, reached("deny", "Host:x_y.example.com", "x_y.example.com", 443))
	p.seen(2, reached("deny", "Host:*.cdn.example.com", "us.cdn.example.com", 443, "policies", "guard/no-us"))
	p.seen(1, bawn.Record{Kind: bawn.KindBlocked, Action: "resolve", Outcome: "blocked", Control: "C5", Detail: map[string]string{"host": "guess.example.com"}})
	p.seen(1, bawn.Record{Kind: bawn.KindBlocked, Action: "resolve", Outcome: "blocked", Control: "C5", Detail: map[string]string{"host": "new.example.com"}})
	evil := "evil.example.com\n  everything: {reason: x, until: 2099-01-01}\x1b[2J"
	p.seen(1, bawn.Record{Kind: bawn.KindBlocked, Action: "resolve", Outcome: "blocked", Control: "C5", Detail: map[string]string{"host": evil}})
	p.seen(1, bawn.Record{Kind: bawn.KindBlocked, Action: "egress", Outcome: "blocked", Control: "C3", Reason: "new.example.com is at 10.0.0.1, which is a private address\n  everything: {}", Detail: map[string]string{"host": "new.example.com", "port": "8443"}})
	vault := func(n int, outcome, name, reason string) {
		p.seen(n, bawn.Record{Kind: bawn.KindDecision, Principal: "function:hello@1", Action: "secret", Outcome: outcome, Reason: reason, Detail: map[string]string{"object": "Secret:" + name}})
	}
	vault(2, "allow", "signing", "")
	vault(1, "deny", "cert", "the secret is not granted to the function")
	vault(1, "deny", "wanted", "the manifest does not ask for it")
	p.seen(1, bawn.Record{Kind: bawn.KindDecision, Principal: "function:other@1", Action: "secret", Outcome: "deny", Detail: map[string]string{"object": "Secret:of-another"}})
	p.seen(7, reached("allow", "Database:orders", "db.example.com", 5432))

	s = ask()
	got := block(t, s.Manifest)
	if !reflect.DeepEqual(got.Hosts[1], was.Hosts[1]) {
		t.Errorf("a rule that was used is another: %+v", got.Hosts[1])
	}
	h := got.Hosts[0]
	if len(got.Hosts) != 2 || !slices.Equal(h.Ports, []int{443}) || !slices.Equal(h.Methods, []string{"GET", "POST"}) || h.Inject == nil || h.Bytes != was.Hosts[0].Bytes ||
		!slices.Equal(h.Paths, []string{"/v1/customers/*", "/v1/items", "/v1/odd/*", "/v1/words/*", "/v2/all"}) {
		t.Errorf("the rule that is narrowed: %+v", h)
	}
	if got.Everything != nil || len(got.Functions) != 1 || !got.Proxy || got.Response == nil || len(got.Secrets) != 2 || len(got.Databases) != 1 || got.Databases[0].Name != "orders" {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{
		"# - {host: old.example.com, ports: [443]}\n",
		"# - {host: new.example.com, ports: [8443]}\n",
		"TRIED AND REFUSED 4 times, last " + p.now.Format("2006-01-02 15:04"),
		"the address guard (C3) has stopped connections to it",
		"# - {host: api.example.com, ports: [443], methods: [GET], paths: [/admin]}\n",
		"NOT A PUBLIC ADDRESS: the address guard (C3) stops it",
		"deep.example.com: once", "port 9002, which is Bawn's own",
		"x_y.example.com: once", "no rule can be about it",
		"us.cdn.example.com: 2 times", "a guardrail forbids it",
		"only its name was asked for: the port is a guess",
		"# - {host: guess.example.com, ports: [443]}\n",
		"seen: eu.cdn.example.com",
		"# - spare\n", "# - wanted\n", "bawn secret grant wanted hello",
		"refused: the secret is not granted to the function",
		`# cache: {redis: "cache.example.com:6379"}`,
		"no rule of a manifest changes that: new.example.com is at 10.0.0.1",
	} {
		if !strings.Contains(s.Manifest, want) {
			t.Errorf("%q is not in it", want)
		}
	}
	for _, never := range []string{"\n  everything", "\x1b", "of-another", "# - {host: deep", "# - {host: x_y"} {
		if strings.Contains(s.Manifest, never) {
			t.Errorf("%q is in it", never)
		}
	}
	// Each line that is offered can be taken in.
	var whole strings.Builder
	for line := range strings.Lines(s.Manifest) {
		if bare := strings.TrimSpace(line); strings.HasPrefix(bare, "# - {") || strings.HasPrefix(bare, "# - wanted") {
			line = strings.Replace(line, "# ", "", 1)
		}
		whole.WriteString(line)
	}
	if all := block(t, whole.String()); len(all.Hosts) != 7 || len(all.Secrets) != 3 {
		t.Errorf("with all that is offered: %d hosts, %d secrets\n%s", len(all.Hosts), len(all.Secrets), whole.String())
	}

	// The evidence of a function is not everybody's.
	_, err = p.Suggest(t.Context(), who("main", bawn.RoleInvoker), bawn.Ref{Tenant: "main", Function: "hello"}, time.Time{})
	wantCode(t, err, bawn.CodeDenied, "events")
	_, err = p.Suggest(t.Context(), who("rival", bawn.RoleAdmin), bawn.Ref{Tenant: "rival", Function: "hello"}, time.Time{})
	wantCode(t, err, bawn.CodeNotFound, "no function")
	_, err = p.Suggest(t.Context(), who("rival", bawn.RoleAdmin), bawn.Ref{Tenant: "main", Function: "hello"}, time.Time{})
	if err == nil {
		t.Error("another tenant's function is told of")
	}
}

// What went by everything gets rules of its own, and everything goes.
func TestA4SuggestTakesThePlaceOfEverything(t *testing.T) {
	p := open(t)
	p.now = time.Now().Add(-time.Hour).UTC()
	year, month, day := p.now.AddDate(0, 0, 30).Date()
	until, err := manifest.ParseDate(fmt.Sprintf("%04d-%02d-%02d", year, month, day))
	if err != nil {
		t.Fatal(err)
	}
	p.deploy("hello", p.upload(admin, "hello"), func(m *manifest.Function) {
		m.Egress.Everything = &manifest.Public{Reason: "to learn: \"all\"", Until: until}
	})
	if d := p.Everything(admin); d.OK || d.Control != "C2" || !strings.Contains(d.Detail, "EVERY PUBLIC HOST is open to main/hello@1 until ") {
		t.Errorf("posture: %+v", d)
	}
	if d := p.Everything(who("rival", bawn.RoleAdmin)); !d.OK || strings.Contains(d.Detail, "hello") {
		t.Errorf("posture of another tenant: %+v", d)
	}
	p.now = p.now.Add(time.Minute)
	p.seen(1, bawn.Record{Kind: bawn.KindOutcome, Action: "invoke", Outcome: "ok"})
	p.seen(3, reached("allow", "Host:*", "a.example.com", 443))
	p.seen(2, reached("allow", "Host:*", "b.example.com", 80))
	s, err := p.Suggest(t.Context(), admin, bawn.Ref{Tenant: "main", Function: "hello"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	got := block(t, s.Manifest)
	if got.Everything != nil || len(got.Hosts) != 2 || got.Hosts[0].Host != "a.example.com" || !got.Hosts[1].Plaintext || got.Hosts[1].Clear() {
		t.Errorf("%s", s.Manifest)
	}
	if !strings.Contains(s.Manifest, `# everything: {reason: "to learn: \"all\"", until: `) {
		t.Errorf("it does not tell of everything:\n%s", s.Manifest)
	}
	// More than rules can name: everything stays, and that is said.
	for i := range bawn.MaxHosts + 1 {
		p.seen(1, reached("allow", "Host:*", fmt.Sprintf("h%d.example.com", i), 443))
	}
	if s, err = p.Suggest(t.Context(), admin, bawn.Ref{Tenant: "main", Function: "hello"}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if got := block(t, s.Manifest); got.Everything == nil || len(got.Hosts) != bawn.MaxHosts || s.LeftOut == 0 {
		t.Errorf("%d rules, %d left out, everything: %v", len(got.Hosts), s.LeftOut, got.Everything)
	}
}

// Whatever paths were seen, the narrowed rule takes all of them in, and nothing that
// the rule does not.
func FuzzSuggestedPaths(f *testing.F) {
	f.Add("/v1/a /v1/b /v1/c/1", "/v1/*")
	f.Add("/ /a /a/ /a/b%20c /x/1f2e3d4c", "")
	f.Add("/v2/all /v1/x", "/v2/all /v1/*")
	f.Fuzz(func(t *testing.T, seen, allowed string) {
		var patterns []string
		for _, p := range strings.Fields(allowed) {
			if !manifest.CanBePath(p) {
				return
			}
			patterns = append(patterns, p)
		}
		y := newTally()
		for _, p := range strings.Fields(seen) {
			if p[0] != '/' || patterns != nil && !slices.ContainsFunc(patterns, func(o string) bool { return pathCovered(o, p) }) {
				continue
			}
			y.request(&bawn.Record{Detail: map[string]string{"path": p}})
		}
		all := seenPaths(y, patterns)
		if all == nil {
			return
		}
		for p := range y.paths {
			if !slices.ContainsFunc(all, func(o string) bool { return pathCovered(o, p) }) {
				t.Errorf("%q is not let through by %q", p, all)
			}
		}
		for _, p := range all {
			if !manifest.CanBePath(p) || patterns != nil && !slices.ContainsFunc(patterns, func(o string) bool { return pathCovered(o, p) }) {
				t.Errorf("%q is not within %q", p, patterns)
			}
		}
	})
}
