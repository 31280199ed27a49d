package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// Every change of the egress that lets more through, or checks less, widens; what
// lets less through is free. Control A5.
func TestA5Egress(t *testing.T) {
	rule := func(change ...func(*bawn.Host)) bawn.Host {
		h := bawn.Host{Host: "api.example.com", Ports: []int{443}, Methods: []string{"GET"}, Paths: []string{"/v1/*"}, Bytes: 10 << 20, Connections: 4, Time: time.Second}
		for _, c := range change {
			c(&h)
		}
		return h
	}
	tunnel := bawn.Host{Host: "api.example.com", Ports: []int{443}}
	wild := bawn.Host{Host: "*.example.com", Ports: []int{443}}
	hosts := func(h ...bawn.Host) bawn.Egress { return bawn.Egress{Hosts: h} }
	with := func(c func(*bawn.Host)) bawn.Egress { return hosts(rule(c)) }
	base := hosts(rule())
	db := bawn.Database{Name: "orders", Kind: bawn.Postgres, Address: "db:5432", Database: "o", User: "u", Secret: "s", Port: 5432, Statements: 10, Labels: []string{"pii"}}
	databases := func(c func(*bawn.Database)) bawn.Egress {
		d := db
		c(&d)
		return bawn.Egress{Databases: []bawn.Database{d}}
	}
	everything := func(day int) bawn.Egress {
		return bawn.Egress{Everything: &bawn.PublicAccess{Reason: "x", Until: time.Date(2027, 1, day, 0, 0, 0, 0, time.UTC)}}
	}
	response := func(c func(*bawn.Response)) bawn.Egress {
		r := bawn.Response{Schema: `{"type":"object"}`, Bytes: 1000, Headers: []string{"A", "B"}, Cards: "refuse"}
		c(&r)
		return bawn.Egress{Response: &r}
	}
	full := response(func(*bawn.Response) {})
	for name, x := range map[string]struct {
		before, after bawn.Egress
		widens        bool
		field, text   string
	}{
		"a host":                   {bawn.Egress{}, base, true, "egress.hosts[api.example.com]", "port 443; GET; /v1/*"},
		"no host any more":         {base, bawn.Egress{}, false, "egress.hosts[api.example.com]", ""},
		"a port":                   {base, with(func(h *bawn.Host) { h.Ports = []int{443, 8443} }), true, "egress.hosts[api.example.com]", "ports 443, 8443"},
		"a method":                 {base, with(func(h *bawn.Host) { h.Methods = []string{"GET", "POST"} }), true, "egress.hosts[api.example.com]", "GET, POST"},
		"all methods":              {base, with(func(h *bawn.Host) { h.Methods = nil }), true, "", ""},
		"another path":             {base, with(func(h *bawn.Host) { h.Paths = []string{"/v2/*"} }), true, "", ""},
		"a path above":             {base, with(func(h *bawn.Host) { h.Paths = []string{"/*"} }), true, "", ""},
		"a path below":             {base, with(func(h *bawn.Host) { h.Paths = []string{"/v1/a"} }), false, "egress.hosts[api.example.com]", "/v1/a"},
		"all paths":                {base, with(func(h *bawn.Host) { h.Paths = nil }), true, "", ""},
		"no TLS":                   {base, with(func(h *bawn.Host) { h.Plaintext = true }), true, "", "WITHOUT TLS"},
		"a credential":             {base, with(func(h *bawn.Host) { h.Inject = &bawn.Inject{Secret: "k", Header: "X-Key", Format: "{}"} }), true, "", "with the secret k in X-Key"},
		"more bytes":               {base, with(func(h *bawn.Host) { h.Bytes *= 2 }), true, "", ""},
		"bytes without a bound":    {base, with(func(h *bawn.Host) { h.Bytes = 0 }), true, "", ""},
		"fewer bytes":              {base, with(func(h *bawn.Host) { h.Bytes /= 2 }), false, "egress.hosts[api.example.com]", "5MiB"},
		"more connections":         {base, with(func(h *bawn.Host) { h.Connections++ }), true, "", ""},
		"more time":                {base, with(func(h *bawn.Host) { h.Time = 0 }), true, "", ""},
		"a label":                  {base, with(func(h *bawn.Host) { h.Labels = []string{"pii"} }), true, "", "takes pii"},
		"requests are not read":    {base, hosts(tunnel), true, "", ""},
		"a wildcard":               {hosts(tunnel), hosts(wild), true, "egress.hosts[*.example.com]", "port 443"},
		"a name of a wildcard":     {hosts(wild), hosts(tunnel), false, "egress.hosts[api.example.com]", "port 443"},
		"a shared suffix":          {bawn.Egress{}, hosts(bawn.Host{Host: "*.s3.amazonaws.com", Ports: []int{443}}), true, "", "ANYBODY can have a name there"},
		"a part of a range":        {hosts(bawn.Host{Host: "192.0.2.0/24", Ports: []int{443}}), hosts(bawn.Host{Host: "192.0.2.7", Ports: []int{443}}, bawn.Host{Host: "192.0.2.128/25", Ports: []int{443}}), false, "", ""},
		"a wider range":            {hosts(bawn.Host{Host: "192.0.2.0/25", Ports: []int{443}}), hosts(bawn.Host{Host: "192.0.2.0/24", Ports: []int{443}}), true, "", ""},
		"a narrow rule goes":       {hosts(rule(), wild), hosts(wild), true, "egress.hosts[*.example.com]", "now also for what another rule was about before"},
		"a narrow rule goes last":  {hosts(rule(), wild), hosts(wild, rule()), true, "egress.hosts[*.example.com]", "now also"},
		"a narrow rule comes":      {hosts(wild), hosts(rule(), wild), false, "egress.hosts[api.example.com]", ""},
		"everything":               {bawn.Egress{}, everything(2), true, "egress.everything", "EVERY PUBLIC HOST until 2027-01-01: x"},
		"everything for longer":    {everything(2), everything(3), true, "", ""},
		"everything for less":      {everything(3), everything(2), false, "egress.everything", ""},
		"a secret":                 {bawn.Egress{}, bawn.Egress{Secrets: []bawn.SecretUse{{Name: "k"}}}, true, "egress.secrets[k]", "may be read"},
		"a file":                   {bawn.Egress{Secrets: []bawn.SecretUse{{Name: "k"}}}, bawn.Egress{Secrets: []bawn.SecretUse{{Name: "k", File: true}}}, true, "", "a file in memory"},
		"no file":                  {bawn.Egress{Secrets: []bawn.SecretUse{{Name: "k", File: true}}}, bawn.Egress{Secrets: []bawn.SecretUse{{Name: "k"}}}, false, "egress.secrets[k]", ""},
		"a database":               {bawn.Egress{}, databases(func(*bawn.Database) {}), true, "egress.databases[orders]", "postgres at db:5432/o as u with the secret s"},
		"another database":         {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.Address = "evil:5432" }), true, "", ""},
		"another user":             {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.User = "root" }), true, "", ""},
		"a database's label goes":  {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.Labels = nil }), true, "", ""},
		"a database without TLS":   {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.Plaintext = true }), true, "", "WITHOUT TLS"},
		"statements without bound": {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.Statements = 0 }), true, "", ""},
		"fewer statements":         {databases(func(*bawn.Database) {}), databases(func(d *bawn.Database) { d.Statements = 5 }), false, "egress.databases[orders]", ""},
		"a response":               {bawn.Egress{}, full, false, "egress.response.schema", ""},
		"no response":              {full, bawn.Egress{}, true, "", ""},
		"another schema":           {full, response(func(r *bawn.Response) { r.Schema = `{}` }), true, "egress.response.schema", ""},
		"more of a response":       {full, response(func(r *bawn.Response) { r.Bytes++ }), true, "egress.response.bytes", ""},
		"a header":                 {full, response(func(r *bawn.Response) { r.Headers = append(r.Headers, "C") }), true, "egress.response.headers", ""},
		"all headers":              {full, response(func(r *bawn.Response) { r.Headers = nil }), true, "", ""},
		"a header less":            {full, response(func(r *bawn.Response) { r.Headers = r.Headers[:1] }), false, "egress.response.headers", ""},
		"cards are redacted":       {full, response(func(r *bawn.Response) { r.Cards = "redact" }), true, "egress.response.cards", "redact"},
		"a proxy":                  {bawn.Egress{}, bawn.Egress{Proxy: true}, false, "egress.proxy", "set"},
	} {
		a, b := &bawn.Version{}, &bawn.Version{}
		a.Perimeter.Egress, b.Perimeter.Egress = x.before, x.after
		changes := diff(a, b)
		if len(changes) == 0 {
			t.Errorf("%s: no change is shown", name)
		}
		if wide := widening(changes); (len(wide) > 0) != x.widens {
			t.Errorf("%s: widening %+v of %+v", name, wide, changes)
		}
		found := x.field == "" && x.text == ""
		for _, c := range changes {
			found = found || (x.field == "" || c.Field == x.field) && strings.Contains(c.New, x.text)
		}
		if !found {
			t.Errorf("%s: %+v", name, changes)
		}
		if same := diff(b, b); len(same) > 0 {
			t.Errorf("%s: a version differs from itself: %+v", name, same)
		}
	}
	a, b := &bawn.Version{Labels: []string{"eu", "pii"}}, &bawn.Version{Labels: []string{"eu", "new"}}
	if c := widening(diff(a, b)); len(c) != 1 || c[0].Field != "labels[pii]" {
		t.Errorf("labels: %+v", c)
	}
}

// Stored versions keep their digest: what came later says nothing in them.
func TestDigestOfOldVersions(t *testing.T) {
	v := &bawn.Version{Runtime: bawn.Python311, Handler: "a.b", Owner: "x", Artifact: bawn.Artifact{Digest: "sha256:1"}}
	old, err := contentDigest(v)
	// As the version before labels and hosts computed it.
	if want := "sha256:31b69917f5632c7d4ce9d18b15ec73b047a9d77a506bd6dccbbf49e8e1903df5"; err != nil || old != want {
		t.Errorf("%s %v, want %s", old, err, want)
	}
	v.Labels = []string{"pii"}
	if labelled, _ := contentDigest(v); labelled == old {
		t.Error("the digest does not cover labels")
	}
}

// alone is a plane with one operator, whose deploys count as approved.
func alone(t testing.TB) *plane {
	p := &plane{t: t, dir: t.TempDir(), now: today}
	p.open()
	t.Cleanup(func() { p.close() })
	return p
}

func flowing(name string, change func(*bawn.Version), calls ...string) *bawn.Version {
	v := &bawn.Version{Tenant: "main", Function: name}
	v.Perimeter.Egress.Functions = calls
	if change != nil {
		change(v)
	}
	return v
}

// Labelled data does not get to where the label is not: within a function, down a
// chain of calls, up in an answer, and round cycles; control E9.
func TestE9Flow(t *testing.T) {
	reads := func(v *bawn.Version) { v.Perimeter.Egress.Secrets = []bawn.SecretUse{{Name: "card-key"}} }
	injects := func(v *bawn.Version) {
		v.Perimeter.Egress.Hosts = []bawn.Host{{Host: "x.test", Ports: []int{443}, Labels: []string{"pii"}, Inject: &bawn.Inject{Secret: "card-key"}}}
	}
	labelled := func(v *bawn.Version) { v.Labels = []string{"pii"} }
	sends := func(v *bawn.Version) { v.Perimeter.Egress.Hosts = []bawn.Host{{Host: "x.test", Ports: []int{443}}} }
	sendsLabelled := func(v *bawn.Version) {
		v.Perimeter.Egress.Hosts = []bawn.Host{{Host: "x.test", Ports: []int{443}, Labels: []string{"pii"}}}
	}
	all := func(v *bawn.Version) { v.Perimeter.Egress.Everything = &bawn.PublicAccess{} }
	holds := func(v *bawn.Version) {
		v.Perimeter.Egress.Databases = []bawn.Database{{Name: "orders", Labels: []string{"pii"}}}
	}
	stores := func(v *bawn.Version) { v.Perimeter.Egress.Databases = []bawn.Database{{Name: "stats"}} }
	both := func(a, b func(*bawn.Version)) func(*bawn.Version) {
		return func(v *bawn.Version) { a(v); b(v) }
	}
	for name, x := range map[string]struct {
		versions []*bawn.Version
		want     string
	}{
		"one function":    {[]*bawn.Version{flowing("a", both(reads, sends))}, "secret card-key → function a → host x.test"},
		"a labelled host": {[]*bawn.Version{flowing("a", both(reads, sendsLabelled))}, ""},
		"its own label":   {[]*bawn.Version{flowing("a", both(labelled, sends))}, "label of a → function a → host x.test"},
		"everything":      {[]*bawn.Version{flowing("a", both(labelled, all))}, "label of a → function a → every public host"},
		"another database": {[]*bawn.Version{flowing("a", func(v *bawn.Version) {
			holds(v)
			v.Perimeter.Egress.Databases = append(v.Perimeter.Egress.Databases, bawn.Database{Name: "stats"})
		})}, "database orders → function a → database stats"},
		"injected":           {[]*bawn.Version{flowing("a", injects), flowing("b", sends, "a")}, ""},
		"down":               {[]*bawn.Version{flowing("a", reads, "b"), flowing("b", nil, "c"), flowing("c", sends)}, "secret card-key → function a → function b → function c → host x.test"},
		"up":                 {[]*bawn.Version{flowing("a", stores, "b"), flowing("b", nil, "c"), flowing("c", holds)}, "database orders → function c → function b → function a → database stats"},
		"up and down":        {[]*bawn.Version{flowing("root", nil, "l", "r"), flowing("l", labelled), flowing("r", sends)}, "label of l → function l → function root → function r → host x.test"},
		"two callers of one": {[]*bawn.Version{flowing("a", labelled, "hub"), flowing("b", sends, "hub"), flowing("hub", nil)}, ""},
		"apart":              {[]*bawn.Version{flowing("a", labelled), flowing("b", sends)}, ""},
		"not deployed":       {[]*bawn.Version{flowing("a", labelled, "gone"), flowing("b", sends)}, ""},
		"a cycle":            {[]*bawn.Version{flowing("a", labelled, "b"), flowing("b", nil, "c"), flowing("c", sends, "a")}, "label of a → function a → function c → host x.test"},
		"of itself":          {[]*bawn.Version{flowing("a", both(labelled, sendsLabelled), "a")}, ""},
	} {
		f := newFlow(x.versions, func(name string) []string {
			if name == "card-key" {
				return []string{"pii"}
			}
			return nil
		})
		got := ""
		if leaks := f.leaks("pii", "guardrail:pii"); len(leaks) > 0 {
			got = leaks[0].String()
		}
		if got != x.want {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
		if leaks := f.leaks("eu", "guardrail:eu"); len(leaks) > 0 {
			t.Errorf("%s: another label leaks: %v", name, leaks)
		}
	}

	// A thousand functions, each of which calls ten others, some in cycles.
	var versions []*bawn.Version
	for i := range 1000 {
		v := flowing(fmt.Sprintf("f%d", i), nil)
		for j := range 10 {
			v.Perimeter.Egress.Functions = append(v.Perimeter.Egress.Functions, fmt.Sprintf("f%d", (i*7+j*131)%1000))
		}
		if i%2 == 0 {
			v.Labels = []string{"pii"}
		}
		versions = append(versions, v)
	}
	start := time.Now()
	if leaks := newFlow(versions, func(string) []string { return nil }).leaks("pii", "g"); len(leaks) != 0 {
		t.Errorf("%d leaks without a destination", len(leaks))
	}
	t.Logf("1,000 functions, 10,000 edges, 500 sources: %s", time.Since(start))
	versions[999].Perimeter.Egress.Everything = &bawn.PublicAccess{}
	if leaks := newFlow(versions, func(string) []string { return nil }).leaks("pii", "g"); len(leaks) != 500 {
		t.Errorf("%d leaks", len(leaks))
	}
}

// A flow guardrail refuses the deploy that opens a way, names the way, and cannot be
// set while one is open; control E9.
func TestE9FlowAtDeploy(t *testing.T) {
	p, ctx := alone(t), context.Background()
	digest := p.upload(admin, "def handler(e, c): return 1\n")
	label := func(f *manifest.Function) { f.Labels = []string{"pii"} }
	calls := func(f *manifest.Function) { f.Egress.Functions = []string{"b"} }
	sends := func(f *manifest.Function) { f.Egress.Hosts = []manifest.Host{{Host: "x.test"}} }
	p.try(admin, "b", digest, sends)
	p.try(admin, "a", digest, label)
	if _, err := p.SetGuardrail(ctx, admin, "pii", "// pii stays here\nflow pii;\n", false); err != nil {
		t.Fatal(err)
	}
	_, err := p.Deploy(ctx, admin, "a", spec(label, calls), digest, false)
	code1(t, "a way opens", err, bawn.CodeDenied, "label of a → function a → function b → host x.test")
	if r := p.last("deploy", "deny"); r.Control != "E9" {
		t.Errorf("recorded %+v", r)
	}
	if _, err = p.Deploy(ctx, admin, "a", spec(label, calls), digest, true); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("dry run: %v", err)
	}
	if _, err := p.Deploy(ctx, admin, "a", spec(calls), digest, false); err != nil {
		t.Errorf("without the label: %v", err)
	}
	if err := p.RemoveGuardrail(ctx, admin, "pii", false); err != nil {
		t.Fatal(err)
	}
	p.try(admin, "a", digest, label, calls)
	_, err = p.SetGuardrail(ctx, admin, "pii", "flow pii", false)
	code1(t, "a way is open", err, bawn.CodeDenied, "host x.test")
	if _, err := p.SetGuardrail(ctx, admin, "eu", "flow eu", false); err != nil {
		t.Error(err)
	}
}

// Rules for addresses need the operator's consent, and everything an end to come;
// a deploy that names secrets nobody granted says so. Controls C3 and E2.
func TestC3ConsentAtDeploy(t *testing.T) {
	p, ctx := alone(t), context.Background()
	digest := p.upload(admin, "def handler(e, c): return 1\n")
	p.cfg.Consents = func(h bawn.Host) error {
		if h.Host == "10.0.0.0/8" {
			return bawn.Errorf(bawn.CodeDenied, "x", "no consent to %s", h.Host).WithFix("bawn up --egress-allow 10.0.0.0/8")
		}
		return nil
	}
	p.Control.cfg.Consents = p.cfg.Consents
	_, err := p.Deploy(ctx, admin, "f", spec(func(f *manifest.Function) { f.Egress.Hosts = []manifest.Host{{Host: "10.0.0.0/8"}} }), digest, false)
	code1(t, "a range", err, bawn.CodeDenied, "no consent to 10.0.0.0/8")
	until := func(year int) func(*manifest.Function) {
		return func(f *manifest.Function) {
			f.Egress.Everything = &manifest.Public{Reason: "a crawler", Until: manifest.Date{Time: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}}
		}
	}
	_, err = p.Deploy(ctx, admin, "f", spec(until(2001)), digest, false)
	code1(t, "everything has ended", err, bawn.CodeUnprocessable, "ended on 2001-01-01 already")
	d := p.try(admin, "f", digest, until(2900))
	if !slices.Contains(d.Notices, "it may reach EVERY PUBLIC HOST until 2900-01-01: a crawler") {
		t.Errorf("notices %q", d.Notices)
	}
	if r := p.last("deploy", "ok"); !strings.Contains(r.Detail["changes"], "egress.everything+") {
		t.Errorf("recorded %+v", r)
	}
}
