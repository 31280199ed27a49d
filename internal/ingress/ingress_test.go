package ingress

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/store"
)

// A world is a gate over a real store.
type world struct {
	gate      *Gate
	functions *store.Table[bawn.Function]
	versions  *store.Table[bawn.Version]
	keys      *identity.Keys
	log       *evidence.Log
	now       time.Time
	live      map[bawn.Runtime]int
	removed   []string
	edit      func(*bawn.Version) // changes what deploy stores; nil: nothing
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{now: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	s, err := store.Open(ctx, store.Config{Dir: t.TempDir()})
	check1(t, err)
	t.Cleanup(func() { s.Close() })
	w.functions, err = store.OpenTable[bawn.Function](ctx, s, "functions")
	check1(t, err)
	w.versions, err = store.OpenTable[bawn.Version](ctx, s, "versions")
	check1(t, err)
	w.keys, err = identity.OpenKeys(ctx, s)
	check1(t, err)
	who, err := identity.Open(ctx, identity.Config{Store: s, Keys: w.keys, Dir: t.TempDir(), Secret: make([]byte, 32)})
	check1(t, err)
	t.Cleanup(func() { who.Close() })
	w.log, err = evidence.Open(ctx, evidence.Config{Dir: t.TempDir(), Key: make([]byte, 32)})
	check1(t, err)
	t.Cleanup(func() { w.log.Close() })
	w.gate, err = Open(ctx, Config{
		Functions: w.functions, Versions: w.versions, Identity: who,
		Policy: policy.New(w.log, func() time.Time { return w.now }),
		Hops:   []byte("a secret of 32 bytes for a test.."), Record: w.log.Append,
		Now:      func() time.Time { return w.now },
		Runtimes: func(m map[bawn.Runtime]int) { w.live = m },
		Removed:  func(tenant, function string) { w.removed = append(w.removed, tenant+"/"+function) },
	})
	check1(t, err)
	t.Cleanup(w.gate.Close)
	return w
}

func check1(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deploy stores a version of name with these routes ("GET /path", "GET /path
// public", "GET a.example,b.example/path") and makes it live.
func (w *world) deploy(t testing.TB, tenant, name string, routes ...string) *bawn.Version {
	t.Helper()
	ctx := context.Background()
	key := tenant + "." + name
	f, rev, ok := w.functions.Get(key)
	f.Tenant, f.Name, f.Latest = tenant, name, f.Latest+1
	f.Aliases = maps.Clone(f.Aliases)
	if f.Aliases == nil {
		f.Aliases = map[string]int{}
	}
	f.Aliases[bawn.LiveAlias] = f.Latest
	if !ok {
		f.CreatedAt = time.Now()
	}
	v := bawn.Version{Tenant: tenant, Function: name, Number: f.Latest, Digest: fmt.Sprint("sha256:", f.Latest), Runtime: bawn.Python311}
	for _, r := range routes {
		part := strings.Fields(r)
		hosts, path, _ := strings.Cut(part[1], "/")
		route := bawn.Route{Method: part[0], Path: "/" + path}
		if hosts != "" {
			route.Hosts = strings.Split(hosts, ",")
		}
		if len(part) > 2 {
			route.Access.Public = &bawn.PublicAccess{Reason: "test", Until: w.now.Add(24 * time.Hour)}
		}
		v.Perimeter.Ingress.HTTP = append(v.Perimeter.Ingress.HTTP, route)
	}
	if w.edit != nil {
		w.edit(&v)
	}
	_, err := w.versions.Create(ctx, fmt.Sprintf("%s.%d", key, v.Number), v)
	check1(t, err)
	if ok {
		_, err = w.functions.Update(ctx, key, f, rev)
	} else {
		_, err = w.functions.Create(ctx, key, f)
	}
	check1(t, err)
	return &v
}

func (w *world) key(t testing.TB, tenant string, role bawn.Role, functions ...string) string {
	t.Helper()
	secret, _, err := w.keys.Create(context.Background(), bawn.Key{Name: fmt.Sprintf("k%d", len(w.keys.List(tenant))), Tenant: tenant, Role: role, Functions: functions, CreatedBy: "test"})
	check1(t, err)
	return secret
}

// byRoute returns the call that the HTTP trigger would make.
func (w *world) byRoute(t testing.TB, method, path, bearer string) *bawn.Call {
	t.Helper()
	m, err := w.gate.Match("localhost", method, path)
	check1(t, err)
	return &bawn.Call{
		ID: bawn.NewID(), Trigger: "http", Route: m.Route, Bearer: bearer, Event: []byte("{}"), Source: "192.0.2.1",
		Target: bawn.Ref{Tenant: m.Version.Tenant, Function: m.Version.Function},
	}
}

func byName(name, bearer string) *bawn.Call {
	return &bawn.Call{ID: bawn.NewID(), Trigger: "api", Target: bawn.Ref{Tenant: "main", Function: name}, Bearer: bearer, Event: []byte("{}")}
}

func wantCode(t testing.TB, err error, code bawn.Code) {
	t.Helper()
	if bawn.ErrorCode(err) != code {
		t.Fatalf("error is %v, want code %q", err, code)
	}
}

// TestOrder holds the order of the checks against a file, so that nobody moves
// one without seeing it.
func TestOrder(t *testing.T) {
	var b strings.Builder
	for _, c := range checks {
		fmt.Fprintln(&b, c.name)
	}
	name := filepath.Join("testdata", "order.golden")
	want, err := os.ReadFile(name)
	check1(t, err)
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the order of the checks has changed (%s):\n%s", name, diff)
	}
}

// Each check says no to its own case, and the checks before it let it pass.
func TestChecks(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello", "GET /hello", "GET /open public")
	w.deploy(t, "main", "other")
	w.deploy(t, "acme", "secret", "GET /acme")
	admin, invoker := w.key(t, "main", bawn.RoleAdmin), w.key(t, "main", bawn.RoleInvoker, "hello")
	viewer := w.key(t, "main", bawn.RoleViewer)
	for _, test := range []struct {
		name  string
		call  *bawn.Call
		check string // that refuses; "" if none does
		code  bawn.Code
	}{
		{"by name", byName("hello", admin), "", ""},
		{"restricted key", byName("hello", invoker), "", ""},
		{"public", w.byRoute(t, "GET", "/open", ""), "", ""},
		{"public with a key", w.byRoute(t, "GET", "/open", admin), "", ""},
		{"route", w.byRoute(t, "GET", "/hello", admin), "", ""},
		{"too large", &bawn.Call{Event: make([]byte, bawn.MaxEventBytes+1), Bearer: admin}, "size", bawn.CodeTooLarge},
		{"unknown", byName("nobody", admin), "known", bawn.CodeNotFound},
		{"unknown, no key", byName("nobody", ""), "known", bawn.CodeUnauthenticated},
		{"unknown alias", &bawn.Call{Target: bawn.Ref{Tenant: "main", Function: "hello", Qualifier: "beta"}, Bearer: admin}, "known", bawn.CodeNotFound},
		{"no key", byName("hello", ""), "authorize", bawn.CodeUnauthenticated},
		{"route without a key", w.byRoute(t, "GET", "/hello", ""), "authorize", bawn.CodeUnauthenticated},
		{"wrong key", byName("hello", "bawn_nobody_x"), "authorize", bawn.CodeUnauthenticated},
		{"wrong key on a public route", w.byRoute(t, "GET", "/open", "bawn_nobody_x"), "authorize", bawn.CodeUnauthenticated},
		{"wrong role", byName("hello", viewer), "authorize", bawn.CodeDenied},
		{"wrong function", byName("other", invoker), "authorize", bawn.CodeNotFound},
		{"another tenant's", &bawn.Call{ID: bawn.NewID(), Target: bawn.Ref{Tenant: "acme", Function: "secret"}, Bearer: admin}, "authorize", bawn.CodeNotFound},
		{"another tenant's route", w.byRoute(t, "GET", "/acme", admin), "authorize", bawn.CodeNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := w.gate.Refusals()
			a, err := w.gate.Admit(context.Background(), test.call)
			wantCode(t, err, test.code)
			after := w.gate.Refusals()
			for name, n := range after {
				want := uint64(0)
				if name == test.check {
					want = 1
				}
				if n-before[name] != want {
					t.Errorf("check %q counted %d, want %d", name, n-before[name], want)
				}
			}
			if err == nil {
				if a.Version == nil || test.call.Principal.Kind == "" || w.gate.Running() != 1 {
					t.Errorf("admission %+v, principal %v, running %d", a, test.call.Principal, w.gate.Running())
				}
				a.Settle()
				a.Settle()
				if w.gate.Running() != 0 {
					t.Errorf("%d running after Settle", w.gate.Running())
				}
			}
		})
	}
}

// Unknown functions, unknown aliases, unknown routes and other tenants'
// functions cannot be told apart.
func TestNotFoundIsOneAnswer(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello")
	w.deploy(t, "acme", "secret")
	admin := w.key(t, "main", bawn.RoleAdmin)
	_, route := w.gate.Match("localhost", "GET", "/nothing")
	errs := []error{route}
	for _, ref := range []bawn.Ref{{Tenant: "main", Function: "nobody"}, {Tenant: "main", Function: "hello", Qualifier: "beta"}, {Tenant: "acme", Function: "secret"}} {
		_, err := w.gate.Admit(context.Background(), &bawn.Call{ID: bawn.NewID(), Target: ref, Bearer: admin})
		errs = append(errs, err)
	}
	for _, err := range errs {
		if fmt.Sprintf("%+v", *err.(*bawn.Error)) != fmt.Sprintf("%+v", *errs[0].(*bawn.Error)) {
			t.Errorf("%+v differs from %+v", err, errs[0])
		}
	}
}

// Every decision about a known function is in the evidence, with who and why;
// denials are durable when the caller hears of them.
func TestDecisionsAreRecorded(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello", "GET /hello")
	admin := w.key(t, "main", bawn.RoleAdmin)
	calls := []*bawn.Call{
		w.byRoute(t, "GET", "/hello", ""), w.byRoute(t, "GET", "/hello", "bawn_x_y"), w.byRoute(t, "GET", "/hello", admin),
	}
	for _, c := range calls {
		w.gate.Admit(context.Background(), c)
	}
	check1(t, w.log.Close())
	// Closed: what was not recorded is refused.
	_, err := w.gate.Admit(context.Background(), byName("hello", admin))
	wantCode(t, err, bawn.CodeUnavailable)
	got := map[string]string{}
	check1(t, w.log.Read(context.Background(), evidence.Query{Tenant: "main"}, func(r bawn.Record) error {
		if r.Kind == bawn.KindDecision {
			got[r.Invocation] = r.Outcome + " " + r.Function + " " + r.Source
		}
		return nil
	}))
	want := map[string]string{calls[0].ID: "deny hello 192.0.2.1", calls[1].ID: "deny hello 192.0.2.1", calls[2].ID: "allow hello 192.0.2.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestA11 holds public access to its end date, and to what the trigger saw.
func TestA11(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello", "GET /open public")
	admit := func(c *bawn.Call) error { _, err := w.gate.Admit(context.Background(), c); return err }
	wantCode(t, admit(w.byRoute(t, "GET", "/open", "")), "")
	// A call by name does not become public by a route that is.
	wantCode(t, admit(byName("hello", "")), bawn.CodeUnauthenticated)
	stale := w.byRoute(t, "GET", "/open", "")
	w.now = w.now.Add(24 * time.Hour)
	wantCode(t, admit(w.byRoute(t, "GET", "/open", "")), bawn.CodeUnauthenticated)
	wantCode(t, admit(stale), bawn.CodeUnauthenticated)
	wantCode(t, admit(w.byRoute(t, "GET", "/open", w.key(t, "main", bawn.RoleInvoker))), "")

	// A deploy between match and admission counts.
	w.deploy(t, "main", "hello", "GET /open public")
	matched := w.byRoute(t, "GET", "/open", "")
	w.deploy(t, "main", "hello", "GET /open")
	wantCode(t, admit(matched), bawn.CodeUnauthenticated)
	matched = w.byRoute(t, "GET", "/open", "")
	w.deploy(t, "main", "hello", "GET /open public")
	wantCode(t, admit(matched), bawn.CodeUnauthenticated)
	matched = w.byRoute(t, "GET", "/open", "")
	w.deploy(t, "main", "hello", "GET /elsewhere public")
	wantCode(t, admit(matched), bawn.CodeNotFound)
}

func TestDraining(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello")
	w.gate.Drain()
	_, err := w.gate.Admit(context.Background(), byName("hello", w.key(t, "main", bawn.RoleAdmin)))
	wantCode(t, err, bawn.CodeUnavailable)
	if w.gate.Refusals()["draining"] != 1 {
		t.Error("not counted")
	}
}

// The index follows the tables.
func TestFollows(t *testing.T) {
	w := newWorld(t)
	if w.gate.Resolve(bawn.Ref{Tenant: "main", Function: "hello"}) != nil {
		t.Fatal("resolved nothing")
	}
	w.deploy(t, "main", "hello", "GET /v1")
	w.deploy(t, "main", "hello", "GET /v2")
	for qualifier, want := range map[string]int{"": 2, "live": 2, "1": 1, "2": 2, "3": 0, "0": 0, "beta": 0} {
		v := w.gate.Resolve(bawn.Ref{Tenant: "main", Function: "hello", Qualifier: qualifier})
		if got := 0; v != nil {
			got = v.Number
			if got != want {
				t.Errorf("@%s is version %d, want %d", qualifier, got, want)
			}
		} else if want != 0 {
			t.Errorf("@%s is nothing, want %d", qualifier, want)
		}
	}
	if _, err := w.gate.Match("localhost", "GET", "/v1"); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("the old version's route: %v", err)
	}
	if m, err := w.gate.Match("localhost", "GET", "/v2"); err != nil || m.Version.Number != 2 {
		t.Errorf("got %+v, %v", m, err)
	}
	if w.live[bawn.Python311] != 1 {
		t.Errorf("live runtimes %v", w.live)
	}
	_, rev, _ := w.functions.Get("main.hello")
	check1(t, w.functions.Delete(context.Background(), "main.hello", rev))
	if _, err := w.gate.Match("localhost", "GET", "/v2"); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("the removed function's route: %v", err)
	}
	if len(w.live) != 0 || !slices.Equal(w.removed, []string{"main/hello"}) {
		t.Errorf("live %v, removed %v", w.live, w.removed)
	}
	if n := w.gate.index.roots; len(n) != 0 {
		t.Errorf("left in the tree: %+v", n)
	}
	// A second gate over the same tables knows the same.
	w.deploy(t, "main", "again", "GET /again")
	g, err := Open(context.Background(), w.gate.cfg)
	check1(t, err)
	defer g.Close()
	if _, err := g.Match("localhost", "GET", "/again"); err != nil {
		t.Error(err)
	}
}

func TestMatch(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "root", "GET /")
	w.deploy(t, "main", "users", "GET /users", "GET /users/{id}", "GET /users/me", "POST /users/{id}", "ANY /users/{id}/files/{path+}", "GET /users/me/files/list")
	w.deploy(t, "main", "any", "ANY /any", "GET /any", "HEAD /head", "GET /head", "DELETE /any/{x}", "ANY /any/{x+}")
	w.deploy(t, "main", "rest", "GET /rest/{p+}", "POST /caf\u00e9x")
	w.deploy(t, "main", "deep", "GET /d/{a}/x/{b}", "GET /d/lit/{c}/y")
	w.deploy(t, "main", "catch", "POST /{all+}")
	for _, test := range []struct{ method, path, want, params string }{
		{"GET", "/", "GET /", ""},
		{"POST", "/", "", ""},
		{"GET", "/users", "GET /users", ""},
		{"HEAD", "/users", "GET /users", ""},
		{"GET", "/users/", "", ""},
		{"GET", "/users/7", "GET /users/{id}", "id=7"},
		{"GET", "/users/a%20b", "GET /users/{id}", "id=a b"},
		{"GET", "/users/me", "GET /users/me", ""},
		{"POST", "/users/me", "POST /users/{id}", "id=me"},
		{"GET", "/%75sers/m%65", "GET /users/me", ""},
		{"GET", "/Users", "", ""},
		{"GET", "/users/7/files", "", ""},
		{"GET", "/users/7/files/a/b.txt", "ANY /users/{id}/files/{path+}", "id=7 path=a/b.txt"},
		{"GET", "/users/me/files/list", "GET /users/me/files/list", ""},
		{"GET", "/users/me/files/other", "ANY /users/{id}/files/{path+}", "id=me path=other"},
		{"PUT", "/users/me/files/list", "ANY /users/{id}/files/{path+}", "id=me path=list"},
		{"GET", "/any", "GET /any", ""},
		{"PUT", "/any", "ANY /any", ""},
		{"PATCH", "/any/1", "ANY /any/{x+}", "x=1"},
		{"DELETE", "/any/1", "DELETE /any/{x}", "x=1"},
		{"HEAD", "/head", "HEAD /head", ""},
		{"GET", "/rest", "", ""},
		{"GET", "/rest/", "", ""},
		{"GET", "/rest/a/", "GET /rest/{p+}", "p=a/"},
		{"GET", "/d/lit/x/z", "GET /d/{a}/x/{b}", "a=lit b=z"},
		{"GET", "/d/lit/x/y", "GET /d/lit/{c}/y", "c=x"},
		{"POST", "/users", "POST /{all+}", "all=users"},
		{"POST", "/what/ever", "POST /{all+}", "all=what/ever"},
		{"BREW", "/users", "", ""},
	} {
		m, err := w.gate.Match("localhost", test.method, test.path)
		got, params := "", []string{}
		if err == nil {
			got = m.Route.Method + " " + m.Route.Path
			for k, v := range m.Params {
				params = append(params, k+"="+v)
			}
			slices.Sort(params)
		} else {
			wantCode(t, err, bawn.CodeNotFound)
		}
		if got != test.want || strings.Join(params, " ") != test.params {
			t.Errorf("%s %s leads to %q (%s), want %q (%s)", test.method, test.path, got, strings.Join(params, " "), test.want, test.params)
		}
	}
}

// The older function keeps a route that two claim.
func TestMatchTwice(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "zzz", "first", "GET /here")
	w.deploy(t, "main", "second", "GET /here")
	m, err := w.gate.Match("localhost", "GET", "/here")
	check1(t, err)
	if m.Version.Function != "first" {
		t.Errorf("it went to %s", m.Version.Function)
	}
}

func TestCheckPath(t *testing.T) {
	for _, path := range []string{
		"", "hello", "*", "http://x/", "/..", "/.", "/a/..", "/a/../b", "/a/./b", "/%2e%2e/b", "/%2E/b", "/.%2e/", "//", "/a//b", "//a", "/a//",
		"/a\\b", "/a%5cb", "/a%5C..", "/a%2fb", "/a%2F", "/%00", "/a%0a", "/a%7f", "/a%1fb", "/%", "/%2", "/%zz", "/a b", "/a\tb", "/\x00", "/caf\xc3\xa9",
		"/%ff", "/%c0%af", "/a#b", "/a?b", "/a\"b", "/" + strings.Repeat("a", maxPathBytes), strings.Repeat("/a", maxPathSegments+1),
	} {
		if err := CheckPath(path); bawn.ErrorCode(err) != bawn.CodeInvalid {
			t.Errorf("%.40q: %v", path, err)
		}
	}
	for _, path := range []string{"/", "/a", "/a/", "/a.b", "/...", "/..a", "/a..", "/caf%C3%A9", "/a%20b", "/a+b", "/~u/-_.!$&'()*,;=:@", "/%41"} {
		if err := CheckPath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// FuzzMatch looks for a path that is accepted and still has two meanings.
func FuzzMatch(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/%2e%2e/b", "/%41/..", "/a//b", "/a/%C3%A9/"} {
		f.Add(s)
	}
	x := newIndex(func(map[bawn.Runtime]int) {}, func(string, string) {})
	x.setVersion("main.f.1", &bawn.Version{Tenant: "main", Function: "f", Number: 1, Perimeter: bawn.Perimeter{Ingress: bawn.Ingress{HTTP: []bawn.Route{
		{Method: "ANY", Path: "/{all+}"}, {Method: "ANY", Path: "/a/{b}/{c}"}, {Method: "GET", Path: "/a/{b}/lit"},
	}}}})
	x.setFunction("main.f", &bawn.Function{Tenant: "main", Name: "f", Latest: 1, Aliases: map[string]int{"live": 1}})
	f.Fuzz(func(t *testing.T, path string) {
		if CheckPath(path) != nil {
			return
		}
		decoded := decode(path)
		if strings.Contains(decoded, "//") || strings.ContainsAny(decoded, "\\\x00\r\n") || filepath.Clean(decoded) != decoded && filepath.Clean(decoded)+"/" != decoded {
			t.Fatalf("%q means %q", path, decoded)
		}
		m, ok := x.match(origin{}, "GET", path)
		if ok != (path != "/") {
			t.Fatalf("%q: %v", path, ok)
		}
		for k, v := range m.Params {
			if strings.Contains(v, "/") && k != "all" {
				t.Fatalf("%q: parameter %s is %q", path, k, v)
			}
		}
	})
}

func BenchmarkAdmit(b *testing.B) {
	w := newWorld(b)
	for i := range 100 {
		w.deploy(b, "main", fmt.Sprintf("f%d", i), fmt.Sprintf("GET /f%d/{id}", i))
	}
	key := w.key(b, "main", bawn.RoleInvoker)
	b.ReportAllocs()
	for b.Loop() {
		m, err := w.gate.Match("localhost", "GET", "/f50/abc")
		if err != nil {
			b.Fatal(err)
		}
		a, err := w.gate.Admit(context.Background(), &bawn.Call{
			ID: "x", Route: m.Route, Bearer: key, Event: []byte("{}"), Target: bawn.Ref{Tenant: "main", Function: m.Version.Function},
		})
		if err != nil {
			b.Fatal(err)
		}
		a.Settle()
	}
}

// A request that was not read, because its key was not known then, is refused
// even if the key is known by now.
func TestUnreadRequestIsRefused(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello", "GET /hello")
	c := w.byRoute(t, "GET", "/hello", w.key(t, "main", bawn.RoleInvoker))
	c.Event = nil
	_, err := w.gate.Admit(t.Context(), c)
	wantCode(t, err, bawn.CodeUnauthenticated)
	known := func(bearer string) bool { return w.gate.Known(t.Context(), &bawn.Call{Bearer: bearer}) == nil }
	if !known(c.Bearer) || known("bawn_x") || known("") {
		t.Error("Known does not tell keys apart")
	}
}

// A key that is held to some functions learns no names of others: one that is
// there and one that is not have the same answer and the same record.
func TestHeldKeyLearnsNoNames(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "mine")
	w.deploy(t, "main", "other")
	key := w.key(t, "main", bawn.RoleInvoker, "mine")
	var answers []string
	for _, name := range []string{"other", "missing"} {
		_, err := w.gate.Admit(t.Context(), byName(name, key))
		wantCode(t, err, bawn.CodeNotFound)
		answers = append(answers, fmt.Sprintf("%#v", *err.(*bawn.Error)))
		n := 0
		q := evidence.Query{Tenant: "main", Function: name, Kinds: []bawn.RecordKind{bawn.KindDecision}}
		check1(t, w.log.Read(t.Context(), q, func(r bawn.Record) error {
			if r.Outcome == "deny" {
				n++
			}
			return nil
		}))
		if n != 1 {
			t.Errorf("%s: %d refusals are recorded", name, n)
		}
	}
	if answers[0] != answers[1] {
		t.Errorf("the answers differ: %q", answers)
	}
	if a, err := w.gate.Admit(t.Context(), byName("mine", key)); err != nil {
		t.Error(err)
	} else {
		a.Settle()
	}
}

// What is not for Bawn in an Authorization header is left to the function.
func TestOurs(t *testing.T) {
	w := newWorld(t)
	for in, want := range map[string]string{
		"Bearer bawn_a_b": "bawn_a_b", "bearer  bawn_a_b ": "bawn_a_b", "Basic bawn_a_b": "", "Bearer eyJ": "", "Bearer": "", "": "", "bawn_a_b": "",
	} {
		if got, signed := w.gate.Ours(nil, in); got != want || signed {
			t.Errorf("%q is the credential %q, %v, want %q", in, got, signed, want)
		}
	}
	const sig = "AWS4-HMAC-SHA256 Credential=%s/20261121/us-east-1/lambda/aws4_request, SignedHeaders=host;x-amz-date, Signature=" +
		"0000000000000000000000000000000000000000000000000000000000000000"
	for id, want := range map[string]bool{"0123456789abcdef": true, "AKIDEXAMPLE": false} {
		if _, signed := w.gate.Ours(nil, fmt.Sprintf(sig, id)); signed != want {
			t.Errorf("a request signed by %s is ours: %v", id, signed)
		}
	}
}

// Reading a request takes as long as its sender likes. A credential that ended
// meanwhile lets nobody in, though it was good when the trigger asked.
func TestA9RevokedWhileItWasRead(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "hello", "GET /hello", "GET /open public")
	for _, c := range []*bawn.Call{byName("hello", w.key(t, "main", bawn.RoleInvoker)), w.byRoute(t, "GET", "/open", w.key(t, "main", bawn.RoleInvoker))} {
		check1(t, w.gate.Identify(t.Context(), c))
		check1(t, w.keys.Revoke(t.Context(), "main", c.Principal.ID))
		_, err := w.gate.Admit(t.Context(), c)
		wantCode(t, err, bawn.CodeUnauthenticated)
	}
}

// Whom the live version does not let in, no other one lets in: neither one from
// before, nor one that was rolled back.
func TestA7OtherVersionsAreNoWayIn(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "caller")
	bare := w.deploy(t, "main", "callee")
	open := w.deploy(t, "main", "callee")
	row, rev, _ := w.versions.Get("main.callee.2")
	row.Perimeter.Ingress.Callers = []string{bawn.RoleCaller + "ops"}
	_, err := w.versions.Update(t.Context(), "main.callee.2", row, rev)
	check1(t, err)
	ops := w.key(t, "main", "ops")
	point := func(n int) {
		f, rev, _ := w.functions.Get("main.callee")
		f.Aliases = map[string]int{bawn.LiveAlias: n}
		_, err := w.functions.Update(t.Context(), "main.callee", f, rev)
		check1(t, err)
	}
	ask := func(n int) error {
		c := byName("callee", ops)
		c.Target.Qualifier = fmt.Sprint(n)
		a, err := w.gate.Admit(t.Context(), c)
		if err == nil {
			a.Settle()
		}
		return err
	}
	check1(t, ask(open.Number))
	wantCode(t, ask(bare.Number), bawn.CodeDenied)
	point(bare.Number)
	wantCode(t, ask(open.Number), bawn.CodeDenied)
}
