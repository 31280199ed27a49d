package control

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/deploy"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
	"github.com/google/go-cmp/cmp"
)

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// plane is a control plane over real parts, which can be closed and opened
// again over the same data.
type plane struct {
	*Control
	t      testing.TB
	dir    string
	now    time.Time
	halted []string
	four   bool   // a second principal must approve
	tick   func() // when somebody looks at the clock; nil: nothing
	gone   string // a principal whose credential has ended
	ran    string // as whom tests ran last
	gate   *deploy.Gate
	log    *evidence.Log
	close  func()

	secrets *secret.TenantKeys

	compile func(v *bawn.Version, code string) (map[string][]byte, error) // nil: nothing to compile
	test    func(v *bawn.Version) ([]bawn.TestResult, error)              // nil: it cannot be tested
}

func open(t testing.TB) *plane {
	p := &plane{t: t, dir: t.TempDir(), now: today}
	p.open()
	t.Cleanup(func() { p.close() })
	return p
}

func (p *plane) open() {
	t := p.t
	t.Helper()
	ctx := context.Background()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	p.secrets, err = secret.OpenTenantKeys(filepath.Join(p.dir, "tenants"), make([]byte, 32))
	check(err)
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(p.dir, "store"), Sealer: p.secrets})
	check(err)
	log, err := evidence.Open(ctx, evidence.Config{Dir: filepath.Join(p.dir, "audit"), Key: make([]byte, 32)})
	check(err)
	logs, err := evidence.OpenLogs(ctx, s, evidence.LogsConfig{})
	check(err)
	keys, err := identity.OpenKeys(ctx, s)
	check(err)
	blobs, err := store.OpenBlobs(ctx, s, "artifacts")
	check(err)
	gate, err := deploy.New(deploy.Config{Dir: filepath.Join(p.dir, "code"), Blobs: blobs, Record: log.Append})
	check(err)
	now := func() time.Time {
		if p.tick != nil {
			p.tick()
		}
		return p.now
	}
	compile := func(_ context.Context, v *bawn.Version, code string) (map[string][]byte, error) {
		if p.compile == nil {
			return nil, nil
		}
		return p.compile(v, code)
	}
	test := func(_ context.Context, by bawn.Principal, v *bawn.Version) ([]bawn.TestResult, error) {
		if p.test == nil {
			return nil, bawn.Errorf(bawn.CodeUnavailable, "test", "no sandbox")
		}
		p.ran = by.String()
		return p.test(v)
	}
	rules := policy.New(log, now)
	check(rules.OpenGuardrails(ctx, s))
	tenants, err := OpenTenants(ctx, s, p.secrets, now)
	check(err)
	for _, name := range []string{"acme", "rival"} {
		if _, _, ok := tenants.table.Get(name); ok {
			continue
		}
		check(p.secrets.Make(name))
		_, err = tenants.table.Create(ctx, name, tenant{Tenant: bawn.Tenant{Name: name, CreatedAt: today}, Sealed: true})
		check(err)
	}
	people, err := identity.Open(ctx, identity.Config{Store: s, Keys: keys, Dir: filepath.Join(p.dir, "identity"), Secret: make([]byte, 32), Suspended: tenants.Suspended, Now: now})
	check(err)
	p.Control, err = Open(ctx, Config{Tenants: tenants, Identity: people, Halt: func(t string) { p.halted = append(p.halted, t) }, Store: s, Gate: gate, Policy: rules, Keys: keys, Evidence: log, Logs: logs, Compile: compile, Test: test, Solo: !p.four, Now: now, Current: func(who bawn.Principal) (bawn.Principal, bool) { return who, who.String() != p.gone }})
	check(err)
	p.gate, p.log = gate, log
	p.close = sync.OnceFunc(func() {
		check(people.Close())
		check(logs.Close())
		check(log.Close())
		check(s.Close())
	})
}

func (p *plane) reopen() {
	p.t.Helper()
	p.close()
	p.open()
}

func who(tenant string, role bawn.Role) bawn.Principal {
	return bawn.Principal{Kind: "key", ID: "k-" + string(role), Tenant: tenant, Roles: []bawn.Role{role}}
}

var admin = who("main", bawn.RoleAdmin)

// code is a package whose only file is app.py with this text.
func code(t testing.TB, text string) (data []byte, digest string) {
	t.Helper()
	return file(t, "app.py", text)
}

// file is a package of one file.
func file(t testing.TB, name, text string) (data []byte, digest string) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), "sha256:" + hex.EncodeToString(sum[:])
}

func (p *plane) upload(who bawn.Principal, text string) string {
	p.t.Helper()
	data, digest := code(p.t, text)
	if _, err := p.PutArtifact(context.Background(), who, digest, bytes.NewReader(data)); err != nil {
		p.t.Fatal(err)
	}
	return digest
}

// spec is a function, after with has been done to it.
func spec(with ...func(*manifest.Function)) manifest.Function {
	f := manifest.Function{Runtime: bawn.Python311, Handler: "app.handler", Owner: "me"}
	for _, w := range with {
		w(&f)
	}
	return f
}

func route(method, path string) func(*manifest.Function) {
	return func(f *manifest.Function) {
		f.Ingress.HTTP = append(f.Ingress.HTTP, manifest.Route{Method: method, Path: path})
	}
}

func memory(n manifest.Size) func(*manifest.Function) {
	return func(f *manifest.Function) { f.Interior.Memory = n }
}

func (p *plane) deploy(name, digest string, with ...func(*manifest.Function)) Deployment {
	p.t.Helper()
	d, err := p.Deploy(context.Background(), admin, name, spec(with...), digest, false)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *plane) live(name string) int {
	f, _, ok := p.functions.Get(functionKey("main", name))
	if !ok {
		return 0
	}
	return f.Aliases[bawn.LiveAlias]
}

// state is everything that a change may touch: tables, packages, folders.
func (p *plane) state() map[string]string {
	p.t.Helper()
	s := map[string]string{}
	for k, f := range p.functions.All("") {
		s["function "+k] = fmt.Sprint(f.Latest, f.Aliases, f.Before)
	}
	for k, v := range p.versions.All("") {
		s["version "+k] = v.Digest
	}
	for k := range p.artifacts.All("") {
		s["artifact "+k] = ""
	}
	dirs, err := os.ReadDir(filepath.Join(p.dir, "code"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range dirs {
		s["folder "+e.Name()] = ""
	}
	return s
}

func wantCode(t testing.TB, err error, code bawn.Code, text string) {
	t.Helper()
	var e *bawn.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, text) {
		t.Errorf("got %v, want %s: %s", err, code, text)
	}
}

// records returns the changes in the evidence: action, outcome, function@version.
func (p *plane) records(q evidence.Query) []string {
	p.t.Helper()
	var all []string
	err := p.Events(context.Background(), admin, q, func(r bawn.Record) error {
		all = append(all, fmt.Sprintf("%s %s %s@%d", r.Action, r.Outcome, r.Function, r.Version))
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return all
}

func TestDeploy(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	if has, err := p.HasArtifact(ctx, admin, digest); err != nil || !has {
		t.Errorf("uploaded, and not there: %v", err)
	}
	first := p.deploy("hello", digest, route("GET", "/hello"))
	if !first.Created || first.Version.Number != 1 || first.Previous != nil || first.Version.Tenant != "main" || first.Version.CreatedBy != "key:k-admin" || !first.Version.CreatedAt.Equal(today) {
		t.Errorf("%+v", first)
	}
	if bawn.CheckDigest(first.Version.Digest) != nil || first.Version.Artifact.Digest != digest || bawn.CheckDigest(first.Version.Artifact.Tree) != nil {
		t.Errorf("%+v", first.Version)
	}
	second := p.deploy("hello", digest, route("GET", "/hello"), memory(512<<20))
	if !second.Created || second.Version.Number != 2 || second.Previous.Number != 1 || p.live("hello") != 2 {
		t.Errorf("%+v", second)
	}
	if d := cmp.Diff([]Change{{"interior.memory", "256MiB", "512MiB", true}}, second.Changes); d != "" {
		t.Error(d)
	}
	// F9: the same content again makes no version; live moves.
	p.now = p.now.Add(time.Hour)
	again := p.deploy("hello", digest, route("GET", "/hello"))
	if again.Created || again.Version.Number != 1 || p.live("hello") != 1 || !again.Version.CreatedAt.Equal(today) {
		t.Errorf("%+v", again)
	}
	before := p.state()
	if same := p.deploy("hello", digest, route("GET", "/hello")); same.Created || len(same.Changes) != 0 {
		t.Errorf("%+v", same)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error("nothing is new, and this changed:", d)
	}
	f, v, err := p.Function(ctx, admin, bawn.Ref{Tenant: "main", Function: "hello", Qualifier: "2"})
	if err != nil || v.Number != 2 || f.Latest != 2 {
		t.Errorf("%+v %+v %v", f, v, err)
	}
	all, err := p.Versions(ctx, admin, "hello")
	if err != nil || len(all) != 2 || all[0].Number != 2 {
		t.Errorf("%+v %v", all, err)
	}
	list, err := p.Functions(ctx, admin)
	if err != nil || len(list) != 1 || list[0].Live.Number != 1 {
		t.Errorf("%+v %v", list, err)
	}
	// everything is there after a restart
	before = p.state()
	p.reopen()
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	want := []string{"artifact.put allow @0", "artifact.put ok @0", "deploy allow hello@1", "deploy ok hello@1", "deploy allow hello@2", "deploy ok hello@2", "deploy allow hello@1", "deploy ok hello@1"}
	if d := cmp.Diff(want, p.records(evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}})); d != "" {
		t.Error(d)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	p := open(t)
	digest := p.upload(admin, "one")
	before := p.state()
	d, err := p.Deploy(t.Context(), admin, "hello", spec(), digest, true)
	if err != nil || !d.Created || d.Version.Number != 1 || !d.DryRun {
		t.Errorf("%+v %v", d, err)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	p.deploy("hello", digest)
	before = p.state()
	d, err = p.Deploy(t.Context(), admin, "hello", spec(memory(64<<20)), digest, true)
	if err != nil || d.Version.Number != 2 || len(d.Changes) != 2 || d.Changes[0].Widens {
		t.Errorf("%+v %v", d, err)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
}

func TestDeployRefuses(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	p.deploy("other", digest, route("GET", "/taken/{id}"), route("ANY", "/any"))
	before := p.state()
	_, unknown := code(t, "never uploaded")
	ended := func(f *manifest.Function) {
		f.Ingress.HTTP = []manifest.Route{{Method: "GET", Path: "/p", Input: manifest.Input{None: true}, Access: manifest.Access{Public: &manifest.Public{
			Reason: "r", Until: manifest.Date{Time: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)}}}}}
	}
	for name, c := range map[string]struct {
		name, digest string
		spec         manifest.Function
		code         bawn.Code
		text         string
	}{
		"bad name":           {"Hello", digest, spec(), bawn.CodeInvalid, `must begin with a letter`},
		"bad digest":         {"hello", "sha256:../x", spec(), bawn.CodeInvalid, `is not a digest`},
		"unknown package":    {"hello", unknown, spec(), bawn.CodeNotFound, `there is no package`},
		"bad manifest":       {"hello", digest, spec(memory(1)), bawn.CodeUnprocessable, `interior.memory: memory 1B is too little`},
		"no such handler":    {"hello", digest, spec(func(f *manifest.Function) { f.Handler = "main.handler" }), bawn.CodeUnprocessable, `no "main.py"`},
		"closed already":     {"hello", digest, spec(ended), bawn.CodeUnprocessable, `the route GET /p: public access ended on 2026-11-20 already`},
		"route taken":        {"hello", digest, spec(route("GET", "/taken/{name}")), bawn.CodeConflict, `the route GET /taken/{name} is taken: the function "other" has GET /taken/{id}`},
		"route taken by ANY": {"hello", digest, spec(route("POST", "/any")), bawn.CodeConflict, `the function "other" has ANY /any`},
		"ANY takes a route":  {"hello", digest, spec(route("ANY", "/taken/{x}")), bawn.CodeConflict, `the function "other" has GET /taken/{id}`},
	} {
		_, err := p.Deploy(ctx, admin, c.name, c.spec, c.digest, false)
		wantCode(t, err, c.code, c.text)
		if d := cmp.Diff(before, p.state()); d != "" {
			t.Errorf("%s left: %s", name, d)
		}
	}
	p.deploy("hello", digest, route("POST", "/taken/{id}"), route("GET", "/taken/me"))
	// The last day is open.
	p.deploy("today", digest, func(f *manifest.Function) {
		ended(f)
		f.Ingress.HTTP[0].Access.Public.Until.Time = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	})
}

// A hostile package is refused, nothing of it is left, and the evidence has its
// digest.
func TestPutArtifactRefuses(t *testing.T) {
	p := open(t)
	before := p.state()
	data := []byte("PK\x05\x06 not really")
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	_, err := p.PutArtifact(t.Context(), admin, digest, bytes.NewReader(data))
	wantCode(t, err, bawn.CodeUnprocessable, "the package is refused")
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	var found bool
	err = p.Events(t.Context(), admin, evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}}, func(r bawn.Record) error {
		found = found || r.Outcome == "error" && r.Detail["artifact"] == digest && strings.Contains(r.Reason, "refused")
		return nil
	})
	if err != nil || !found {
		t.Errorf("not in the evidence: %v", err)
	}
}

func TestRollback(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	if _, _, err := p.Rollback(ctx, admin, "hello", 0); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
	for i := range 4 {
		p.deploy("hello", digest, memory(manifest.Size(i+1)*64<<20))
	}
	step := func(to, wantFrom, wantTo int) {
		t.Helper()
		from, now, err := p.Rollback(ctx, admin, "hello", to)
		if err != nil || from != wantFrom || now != wantTo || p.live("hello") != wantTo {
			t.Errorf("from %d to %d, live %d, error %v", from, now, p.live("hello"), err)
		}
	}
	step(0, 4, 3)
	step(0, 3, 2)
	p.deploy("hello", digest, memory(64<<20)) // version 1 again
	step(0, 1, 2)
	step(0, 2, 1) // where live was before it went to 2
	_, _, err := p.Rollback(ctx, admin, "hello", 0)
	wantCode(t, err, bawn.CodeConflict, "no earlier version")
	step(4, 1, 4)
	step(4, 4, 4)
	_, _, err = p.Rollback(ctx, admin, "hello", 9)
	wantCode(t, err, bawn.CodeNotFound, `no version or alias "9"`)
}

func TestAliases(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	p.deploy("hello", digest, route("GET", "/a"))
	p.deploy("hello", digest)
	if err := p.SetAlias(ctx, admin, "hello", "stable", 1); err != nil {
		t.Fatal(err)
	}
	_, v, err := p.Function(ctx, admin, bawn.Ref{Tenant: "main", Function: "hello", Qualifier: "stable"})
	if err != nil || v.Number != 1 || p.live("hello") != 2 {
		t.Errorf("%d %v", v.Number, err)
	}
	wantCode(t, p.SetAlias(ctx, admin, "hello", "stable", 3), bawn.CodeNotFound, `no version or alias "3"`)
	wantCode(t, p.SetAlias(ctx, admin, "hello", "0th", 1), bawn.CodeInvalid, `alias name`)
	wantCode(t, p.SetAlias(ctx, admin, "nobody", "stable", 1), bawn.CodeNotFound, `no function "nobody"`)
	// Version 1's route was free; now it is another's, and live cannot go back.
	p.deploy("other", digest, route("GET", "/a"))
	wantCode(t, p.SetAlias(ctx, admin, "hello", "live", 1), bawn.CodeConflict, `the function "other" has GET /a`)
	_, _, err = p.Rollback(ctx, admin, "hello", 0)
	wantCode(t, err, bawn.CodeConflict, `the function "other" has GET /a`)
	if err := p.Remove(ctx, admin, "other"); err != nil {
		t.Fatal(err)
	}
	if err := p.SetAlias(ctx, admin, "hello", "live", 1); err != nil || p.live("hello") != 1 {
		t.Error(err)
	}
	for i := range maxAliases - 2 {
		if err := p.SetAlias(ctx, admin, "hello", fmt.Sprintf("a%d", i), 1); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, p.SetAlias(ctx, admin, "hello", "one-more", 1), bawn.CodeTooLarge, "no more are allowed")
}

func TestRemove(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	shared, own := p.upload(admin, "shared"), p.upload(admin, "own")
	theirs := who("rival", bawn.RoleAdmin)
	p.upload(theirs, "own")
	p.deploy("stays", shared)
	before := p.state()
	p.deploy("goes", shared)
	p.deploy("goes", own)
	if err := p.Remove(ctx, admin, "goes"); err != nil {
		t.Fatal(err)
	}
	delete(before, "artifact "+artifactKey("main", own))
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	// The other tenant's own stays, with the folder that both had.
	if has, err := p.gate.Has(ctx, "main", own); err != nil || has {
		t.Errorf("the package is kept: %v", err)
	}
	if has, err := p.gate.Has(ctx, "rival", own); err != nil || !has {
		t.Errorf("the other tenant's package is gone: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "code", strings.TrimPrefix(own, "sha256:"))); err != nil {
		t.Errorf("the other tenant's folder is gone: %v", err)
	}
	if has, err := p.HasArtifact(ctx, admin, own); err != nil || has {
		t.Errorf("the package is still this tenant's: %v", err)
	}
	wantCode(t, p.Remove(ctx, admin, "goes"), bawn.CodeNotFound, `no function "goes"`)
	// Numbers are not used twice.
	if d := p.deploy("goes", shared); d.Version.Number != 3 || d.Previous != nil {
		t.Errorf("%+v", d)
	}
	if err := p.Remove(ctx, admin, "stays"); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(ctx, admin, "goes"); err != nil {
		t.Fatal(err)
	}
	if has, err := p.gate.Has(ctx, "main", shared); err != nil || has {
		t.Errorf("the package is kept: %v", err)
	}
}

func TestUnusedPackagesGoAfterADay(t *testing.T) {
	p := open(t)
	used, unused := p.upload(admin, "used"), p.upload(admin, "unused")
	p.deploy("hello", used)
	p.now = p.now.Add(unusedFor - time.Minute)
	p.reopen()
	if has, err := p.HasArtifact(t.Context(), admin, unused); err != nil || !has {
		t.Errorf("gone too early: %v", err)
	}
	p.now = p.now.Add(2 * time.Minute)
	p.upload(admin, "another")
	if has, err := p.HasArtifact(t.Context(), admin, unused); err != nil || has {
		t.Errorf("still there: %v", err)
	}
	if has, err := p.HasArtifact(t.Context(), admin, used); err != nil || !has {
		t.Errorf("a package in use is gone: %v", err)
	}
}

// A package that cannot become the tenant's does not stay.
func TestPackageThatIsNotTakenGoes(t *testing.T) {
	p := open(t)
	data, digest := code(t, "one")
	a, err := p.gate.Accept(t.Context(), "main", digest, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.addArtifact(gone, admin, a); err == nil {
		t.Fatal("it was taken")
	}
	if has, err := p.gate.Has(t.Context(), "main", digest); has || err != nil {
		t.Errorf("its zip is still there, %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "code", strings.TrimPrefix(digest, "sha256:"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
	p.deploy("hello", p.upload(admin, "one"))
	// One that others have stays.
	if err := p.addArtifact(gone, who("rival", bawn.RoleAdmin), a); err == nil {
		t.Fatal("it was taken")
	}
	if has, err := p.HasArtifact(t.Context(), admin, digest); !has || err != nil {
		t.Errorf("a package in use is gone, %v", err)
	}
}

// A package that cannot be removed does not stand in the way of others.
func TestPackageThatCannotBeRemoved(t *testing.T) {
	p := open(t)
	bad := artifact{Artifact: bawn.Artifact{Digest: "no digest"}, CreatedAt: today.Add(-2 * unusedFor)}
	if _, err := p.artifacts.Create(t.Context(), "main.bad", bad); err != nil {
		t.Fatal(err)
	}
	p.deploy("hello", p.upload(admin, "one"))
}

// Whatever a crash leaves behind is cleared away at the next start.
func TestRecovery(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	p.deploy("hello", digest)
	before := p.state()
	_, v, err := p.Function(ctx, admin, bawn.Ref{Tenant: "main", Function: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	// a deploy that had written its version, and not its function
	v.Number, v.Digest = 2, "sha256:"+strings.Repeat("ab", 32)
	if _, err := p.versions.Create(ctx, versionKey("main", "hello", 2), v); err != nil {
		t.Fatal(err)
	}
	// a removal that had deleted its function, and not its versions
	v.Function = "gone"
	if _, err := p.versions.Create(ctx, versionKey("main", "gone", 2), v); err != nil {
		t.Fatal(err)
	}
	// a package let in, and not written down
	data, other := code(t, "other")
	if _, err := p.gate.Accept(ctx, "main", other, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	// an upload that was cut
	if err := os.MkdirAll(filepath.Join(p.dir, "code", ".staging", "in-1", "tree"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	if staged, _ := os.ReadDir(filepath.Join(p.dir, "code", ".staging")); len(staged) > 0 {
		t.Errorf("staging: %v", staged)
	}
	if has, err := p.gate.Has(ctx, "main", other); has || err != nil {
		t.Errorf("the package is kept: %v", err)
	}
}

// A version record that no function ever pointed to does not stand in the way.
func TestDeployOverAnOrphan(t *testing.T) {
	p := open(t)
	digest := p.upload(admin, "one")
	p.deploy("hello", digest)
	if _, err := p.versions.Create(t.Context(), versionKey("main", "hello", 2), bawn.Version{Tenant: "main", Function: "hello", Number: 2}); err != nil {
		t.Fatal(err)
	}
	if d := p.deploy("hello", digest, memory(64<<20)); d.Version.Number != 2 {
		t.Errorf("%+v", d)
	}
	v, _, _ := p.versions.Get(versionKey("main", "hello", 2))
	if v.Perimeter.Interior.Memory != 64<<20 {
		t.Errorf("%+v", v)
	}
}

func TestDeploysAtOnce(t *testing.T) {
	p := open(t)
	digest := p.upload(admin, "one")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		wg.Go(func() {
			// eight contents for one function
			if _, err := p.Deploy(t.Context(), admin, "hello", spec(memory(manifest.Size(i+1)*64<<20)), digest, false); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			// eight functions for one route
			_, err := p.Deploy(t.Context(), admin, fmt.Sprintf("route-%d", i), spec(route("GET", "/one")), digest, false)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if bawn.ErrorCode(err) != bawn.CodeConflict {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d functions have the route", won)
	}
	f, _, _ := p.functions.Get("main.hello")
	all, err := p.Versions(t.Context(), admin, "hello")
	if err != nil || f.Latest != 8 || len(all) != 8 {
		t.Errorf("%d versions of %d, %v", len(all), f.Latest, err)
	}
	sizes := map[int64]bool{}
	for _, v := range all {
		sizes[v.Perimeter.Interior.Memory] = true
	}
	if len(sizes) != 8 {
		t.Errorf("versions overwrote each other: %v", sizes)
	}
}

// A10: every method, with every kind of principal that must not use it.
func TestA10Authorisation(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	digest := p.upload(admin, "one")
	p.deploy("hello", digest)
	_, key, err := p.CreateKey(ctx, admin, bawn.Key{Name: "k", Role: bawn.RoleViewer})
	if err != nil {
		t.Fatal(err)
	}
	data, _ := code(t, "two")
	sum := sha256.Sum256(data)
	other := "sha256:" + hex.EncodeToString(sum[:])
	ref := bawn.Ref{Tenant: "main", Function: "hello"}
	methods := map[string]func(bawn.Principal) error{
		"PutArtifact": func(w bawn.Principal) error {
			_, err := p.PutArtifact(ctx, w, other, bytes.NewReader(data))
			return err
		},
		"HasArtifact": func(w bawn.Principal) error { _, err := p.HasArtifact(ctx, w, digest); return err },
		"Deploy":      func(w bawn.Principal) error { _, err := p.Deploy(ctx, w, "hello", spec(), digest, false); return err },
		"Deploy, dry": func(w bawn.Principal) error { _, err := p.Deploy(ctx, w, "hello", spec(), digest, true); return err },
		"Functions":   func(w bawn.Principal) error { _, err := p.Functions(ctx, w); return err },
		"Function":    func(w bawn.Principal) error { _, _, err := p.Function(ctx, w, ref); return err },
		"Versions":    func(w bawn.Principal) error { _, err := p.Versions(ctx, w, "hello"); return err },
		"SetAlias":    func(w bawn.Principal) error { return p.SetAlias(ctx, w, "hello", "x", 1) },
		"Rollback":    func(w bawn.Principal) error { _, _, err := p.Rollback(ctx, w, "hello", 1); return err },
		"Remove":      func(w bawn.Principal) error { return p.Remove(ctx, w, "hello") },
		"Events": func(w bawn.Principal) error {
			return p.Events(ctx, w, evidence.Query{}, func(bawn.Record) error { return nil })
		},
		"LogLines": func(w bawn.Principal) error {
			return p.LogLines(ctx, w, evidence.LogQuery{Function: "hello"}, func(bawn.LogLine) error { return nil })
		},
		"CreateKey": func(w bawn.Principal) error {
			_, _, err := p.CreateKey(ctx, w, bawn.Key{Name: "n", Role: bawn.RoleAdmin})
			return err
		},
		"Keys":      func(w bawn.Principal) error { _, err := p.Keys(ctx, w); return err },
		"RevokeKey": func(w bawn.Principal) error { return p.RevokeKey(ctx, w, key.ID) },
	}
	reads := []string{"HasArtifact", "Functions", "Function", "Versions", "Events", "LogLines"}
	allowed := map[bawn.Role][]string{
		bawn.RoleInvoker:  nil,
		bawn.RoleViewer:   reads,
		bawn.RoleDeployer: append([]string{"PutArtifact", "Deploy", "Deploy, dry", "SetAlias", "Rollback", "Remove"}, reads...),
	}
	before := p.state()
	keys, err := p.Keys(ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range methods {
		if err := do(bawn.Anonymous()); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Errorf("%s without a credential: %v", name, err)
		}
		if err := do(bawn.Principal{}); err == nil {
			t.Errorf("%s by nobody", name)
		}
		for role, may := range allowed {
			if !slices.Contains(may, name) {
				wantCode(t, do(who("main", role)), bawn.CodeDenied, "does not include")
			}
		}
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	// Another tenant's administrator finds nothing, and is told nothing else.
	rival := who("rival", bawn.RoleAdmin)
	for _, name := range []string{"Deploy", "Function", "Versions", "SetAlias", "Rollback", "Remove", "LogLines", "RevokeKey"} {
		wantCode(t, methods[name](rival), bawn.CodeNotFound, "there is no")
	}
	if has, err := p.HasArtifact(ctx, rival, digest); err != nil || has {
		t.Errorf("another tenant's package shows: %v", err)
	}
	if list, err := p.Functions(ctx, rival); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	if list, err := p.Keys(ctx, rival); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	err = p.Events(ctx, rival, evidence.Query{Tenant: "main"}, func(r bawn.Record) error {
		if r.Tenant != "rival" {
			t.Errorf("another tenant's record: %+v", r)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	if now, err := p.Keys(ctx, admin); err != nil || len(now) != len(keys) {
		t.Errorf("%v %v", now, err)
	}
	// and the deployer may what it may
	deployer := who("main", bawn.RoleDeployer)
	for _, name := range []string{"PutArtifact", "HasArtifact", "Deploy", "SetAlias", "Rollback", "LogLines", "Events", "Remove"} {
		if err := methods[name](deployer); err != nil {
			t.Errorf("%s by a deployer: %v", name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	secret, key, err := p.CreateKey(ctx, admin, bawn.Key{Name: "ci", Role: bawn.RoleInvoker, Functions: []string{"hello"}, Tenant: "rival", CreatedBy: "somebody"})
	if err != nil || key.Tenant != "main" || key.CreatedBy != "key:k-admin" {
		t.Fatalf("%+v %v", key, err)
	}
	who, err := p.cfg.Keys.Authenticate(secret)
	if err != nil || who.Tenant != "main" {
		t.Errorf("%+v %v", who, err)
	}
	// The secret is nowhere in the evidence.
	err = p.Events(ctx, admin, evidence.Query{}, func(r bawn.Record) error {
		if strings.Contains(fmt.Sprint(r), secret) || strings.Contains(fmt.Sprint(r), secret[len(secret)-43:]) {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := p.RevokeKey(ctx, admin, key.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := p.cfg.Keys.Authenticate(secret); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("revoked, and still good: %v", err)
	}
	wantCode(t, p.RevokeKey(ctx, admin, key.ID), bawn.CodeNotFound, "there is no key")
}

// A key whose making cannot be recorded to its end has an owner no more.
func TestKeyWithoutARecordIsRevoked(t *testing.T) {
	p := open(t)
	p.tick = func() {
		if len(p.cfg.Keys.List("main")) > 0 { // it is made, and its outcome comes next
			p.log.Close()
		}
	}
	secret, key, err := p.CreateKey(t.Context(), admin, bawn.Key{Name: "ci", Role: bawn.RoleInvoker})
	if secret != "" || key.ID != "" {
		t.Errorf("a key came with the error: %+v", key)
	}
	wantCode(t, err, bawn.CodeUnavailable, "it was revoked")
	if keys := p.cfg.Keys.List("main"); len(keys) != 0 {
		t.Errorf("it lives on: %+v", keys)
	}
}

// What cannot be recorded is not done.
func TestNoRecordNoChange(t *testing.T) {
	p := open(t)
	digest := p.upload(admin, "one")
	p.deploy("hello", digest)
	before := p.state()
	if err := p.log.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	data, other := code(t, "two")
	for name, err := range map[string]error{
		"PutArtifact": func() error { _, err := p.PutArtifact(ctx, admin, other, bytes.NewReader(data)); return err }(),
		"Deploy":      func() error { _, err := p.Deploy(ctx, admin, "hello", spec(memory(64<<20)), digest, false); return err }(),
		"SetAlias":    p.SetAlias(ctx, admin, "hello", "x", 1),
		"Remove":      p.Remove(ctx, admin, "hello"),
		"CreateKey": func() error {
			_, _, err := p.CreateKey(ctx, admin, bawn.Key{Name: "n", Role: bawn.RoleAdmin})
			return err
		}(),
	} {
		if bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d := cmp.Diff(before, p.state()); d != "" {
		t.Error(d)
	}
	if keys := p.cfg.Keys.List("main"); len(keys) != 0 {
		t.Errorf("%v", keys)
	}
}

// One who hangs up in the middle leaves the change whole.
func TestChangeOutlivesItsRequest(t *testing.T) {
	p := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := p.change(ctx, admin, bawn.Record{Function: "f", Action: "test"}, func(inner context.Context) error {
		cancel()
		return inner.Err()
	})
	if err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"test allow f@0", "test ok f@0"}, p.records(evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}})); d != "" {
		t.Error(d)
	}
}

func TestDiff(t *testing.T) {
	day := func(d int) *bawn.PublicAccess {
		return &bawn.PublicAccess{Reason: "r", Until: time.Date(2027, 1, d+1, 0, 0, 0, 0, time.UTC)}
	}
	base := func() *bawn.Version {
		v, err := manifest.Compile("f", spec())
		if err != nil {
			t.Fatal(err)
		}
		return &v
	}
	http := func(routes ...bawn.Route) func(*bawn.Version) {
		return func(v *bawn.Version) { v.Perimeter.Ingress.HTTP = routes }
	}
	get := func(p *bawn.PublicAccess) bawn.Route {
		return bawn.Route{Method: "GET", Path: "/a", Access: bawn.Access{Public: p}}
	}
	nothing := func(*bawn.Version) {}
	for name, c := range map[string]struct {
		a, b func(*bawn.Version)
		want []Change
	}{
		"nothing":           {nothing, nothing, []Change{}},
		"route added":       {nothing, http(get(nil)), []Change{{"ingress.http[GET /a]", "", "key", true}}},
		"route removed":     {http(get(nil)), nothing, []Change{{"ingress.http[GET /a]", "key", "", false}}},
		"opened":            {http(get(nil)), http(get(day(2))), []Change{{"ingress.http[GET /a]", "key", "public until 2027-01-02: r", true}}},
		"open for longer":   {http(get(day(2))), http(get(day(3))), []Change{{"ingress.http[GET /a]", "public until 2027-01-02: r", "public until 2027-01-03: r", true}}},
		"open for shorter":  {http(get(day(3))), http(get(day(2))), []Change{{"ingress.http[GET /a]", "public until 2027-01-03: r", "public until 2027-01-02: r", false}}},
		"closed":            {http(get(day(3))), http(get(nil)), []Change{{"ingress.http[GET /a]", "public until 2027-01-03: r", "key", false}}},
		"narrower than ANY": {http(bawn.Route{Method: "ANY", Path: "/a"}), http(get(nil)), []Change{{"ingress.http[GET /a]", "", "key", false}, {"ingress.http[ANY /a]", "key", "", false}}},
		"exec": {nothing, func(v *bawn.Version) { v.Perimeter.Interior.Exec = true },
			[]Change{{"interior.exec", "false", "true", true}}},
		"reuse": {nothing, func(v *bawn.Version) { v.Perimeter.Interior.Reuse.Invocations = 5 },
			[]Change{{"interior.reuse", "never", "5 invocations", true}}},
		"reuse by age, not by number": {func(v *bawn.Version) { v.Perimeter.Interior.Reuse.Invocations = 5 },
			func(v *bawn.Version) { v.Perimeter.Interior.Reuse.MaxAge = time.Minute }, []Change{{"interior.reuse", "5 invocations", "1m", true}}},
		"reuse, less": {func(v *bawn.Version) { v.Perimeter.Interior.Reuse.MaxAge = time.Hour }, nothing,
			[]Change{{"interior.reuse", "1h", "never", false}}},
		"caller added, another removed": {func(v *bawn.Version) { v.Perimeter.Ingress.Callers = []string{"a", "b"} },
			func(v *bawn.Version) { v.Perimeter.Ingress.Callers = []string{"b", "role:ops"} },
			[]Change{{"ingress.callers[role:ops]", "", "may call", true}, {"ingress.callers[a]", "may call", "", false}}},
		"called function added, another removed": {func(v *bawn.Version) { v.Perimeter.Egress.Functions = []string{"a", "b"} },
			func(v *bawn.Version) { v.Perimeter.Egress.Functions = []string{"b", "c"} },
			[]Change{{"egress.functions[c]", "", "may be called", true}, {"egress.functions[a]", "may be called", "", false}}},
		"less evidence": {nothing, func(v *bawn.Version) { v.Perimeter.Evidence.LogRetention = time.Hour },
			[]Change{{"evidence.logRetention", "7d", "1h", true}}},
		"environment shows no value": {func(v *bawn.Version) { v.Environment = map[string]string{"A": "one", "B": "x"} },
			func(v *bawn.Version) { v.Environment = map[string]string{"A": "two", "C": "y"} },
			[]Change{{"environment.A", "set", "set to another value", false}, {"environment.B", "set", "", false}, {"environment.C", "", "set", false}}},
	} {
		a, b := base(), base()
		c.a(a)
		c.b(b)
		if d := cmp.Diff(c.want, diff(a, b)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	// A first version lists what is set, and what goes beyond the defaults.
	v := base()
	v.Perimeter.Interior.Exec = true
	http(get(nil))(v)
	widens := map[string]bool{}
	for _, c := range diff(nil, v) {
		widens[c.Field] = c.Widens
		if c.Old != "" {
			t.Errorf("%+v", c)
		}
	}
	for field, want := range map[string]bool{"runtime": false, "ingress.http[GET /a]": true, "interior.exec": true, "interior.memory": false, "interior.reuse": false} {
		if got, ok := widens[field]; !ok || got != want {
			t.Errorf("%s: widens %v, listed %v", field, got, ok)
		}
	}
}
