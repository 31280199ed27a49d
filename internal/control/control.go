// Package control is the way of a change: somebody asks, it is authorised and
// recorded, what is asked for is checked, and then it is stored, in such an
// order that a crash at any point leaves either the state before or the state
// after. Nodes see a change by watching the tables. The way of a call is
// another one and shares no code with this.
//
// Every method that takes a principal authorises it first. Its errors are
// [*bawn.Error]: [bawn.CodeUnauthenticated] without a credential,
// [bawn.CodeDenied] with one that is not enough, [bawn.CodeNotFound] for what is
// not there or is another tenant's, and [bawn.CodeUnavailable] when the store or
// the evidence cannot be written; then nothing has changed.
package control

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/deploy"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/meter"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

const (
	// unusedFor is how long a package is kept that no version runs.
	unusedFor = 24 * time.Hour
	// maxUnusedBytes is what such packages of one tenant may take of the disk,
	// packed and unpacked.
	maxUnusedBytes = 2 << 30
	// changeTimeout bounds a change that was begun: it is brought to its end
	// even when the one who asked has gone.
	changeTimeout = 30 * time.Second
)

// Config says what a [Control] works with. All fields are needed but Compile, Test,
// OwnHost, Now and Log.
type Config struct {
	Store    *store.Store
	Gate     *deploy.Gate
	Policy   *policy.Engine
	Keys     *identity.Keys
	Identity *identity.Authenticator
	// Current looks at a principal again: see [identity.Authenticator.Current],
	// which nil means. What takes long asks before it changes anything.
	Current  func(bawn.Principal) (bawn.Principal, bool)
	Evidence *evidence.Log
	Logs     *evidence.Logs
	Tenants  *Tenants
	Vault    *secret.Vault // nil: nothing asks for secrets
	Meter    *meter.Ledger // nil: nothing is counted
	// Halt ends whatever of a tenant runs, at once. nil: nothing runs.
	Halt func(tenant string)
	// Belongings are what goes with a tenant beside what control and Keys keep.
	Belongings []Belonging
	// Compile makes machine code of what v, a version for the runtime wasm, has
	// in the folder code: files by path, which lie beside the code when it runs.
	// No files means that there is nothing to make. An error refuses the deploy.
	// It may take a minute. nil: nothing is compiled before it runs.
	Compile func(ctx context.Context, v *bawn.Version, code string) (map[string][]byte, error)
	// Test runs the tests of v, which need not be stored, each in a sandbox with
	// v's perimeter that nobody else can call and that is gone when it returns. p
	// is who they are run for. The results are in the order of v.Tests. nil: what
	// has tests cannot be deployed.
	Test func(ctx context.Context, p bawn.Principal, v *bawn.Version) ([]bawn.TestResult, error)
	// Consents reports whether the operator consents to a rule for a host: those for
	// addresses need that. nil: there is nothing to ask.
	Consents func(h bawn.Host) error
	// OwnHost reports whether a host is one of the node's own names, which no tenant
	// gets as a domain. nil: none is.
	OwnHost func(name string) bool
	// Solo says that there is one operator only: nobody could approve what they
	// deploy, so it counts as approved, and is recorded so.
	Solo bool
	// Archive is what backups are made of besides the tables. Without its Blobs
	// there are no backups.
	Archive Archive
	Now     func() time.Time // nil means time.Now
	Log     *slog.Logger     // what an operator should see to; nil discards
}

// Control makes changes, and reads what was changed. It is safe for concurrent
// use. There may be one for a store.
type Control struct {
	cfg       Config
	functions *store.Table[bawn.Function] // tenant.name
	versions  *store.Table[bawn.Version]  // tenant.name.number
	artifacts *store.Table[artifact]      // tenant.hex digest
	removed   *store.Table[removal]       // tenant.name
	approvals *store.Table[request]       // tenant.id
	labels    *store.Table[labelRow]      // tenant.label
	domains   *domains

	started time.Time
	testing chan struct{} // holds one for each version that is being tested

	// mu is held while a change is decided on and written. Without it two
	// deploys could each find a route free, or a package go while a deploy
	// takes it up. Each table's own compare-and-swap stays a second guard.
	mu sync.Mutex
	// backingUp keeps packages that are given up until a backup is written.
	backingUp bool
}

// artifact is a package that a tenant has uploaded. Another tenant with the
// same bytes has a row of its own: what one has says nothing to the other.
type artifact struct {
	Artifact  bawn.Artifact `json:"artifact"`
	CreatedAt time.Time     `json:"createdAt"`
	CreatedBy string        `json:"createdBy"`
}

// removal remembers the last version number of a function that was removed, so
// that a function which takes the name later does not reuse numbers that stand
// in the evidence.
type removal struct {
	Latest int       `json:"latest"`
	At     time.Time `json:"at"`
}

// Open opens the tables, and clears away what a crash left half done and what
// nothing refers to.
func Open(ctx context.Context, cfg Config) (*Control, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Current == nil {
		cfg.Current = cfg.Identity.Current
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Halt == nil {
		cfg.Halt = func(string) {}
	}
	c := &Control{cfg: cfg, started: cfg.Now(), testing: make(chan struct{}, maxTesting)}
	var err error
	if c.functions, err = store.OpenTable[bawn.Function](ctx, cfg.Store, "functions"); err != nil {
		return nil, err
	}
	if c.versions, err = store.OpenTable[bawn.Version](ctx, cfg.Store, "versions"); err != nil {
		return nil, err
	}
	if c.artifacts, err = store.OpenTable[artifact](ctx, cfg.Store, "artifacts"); err != nil {
		return nil, err
	}
	if c.removed, err = store.OpenTable[removal](ctx, cfg.Store, "removed"); err != nil {
		return nil, err
	}
	if c.approvals, err = store.OpenTable[request](ctx, cfg.Store, "approvals"); err != nil {
		return nil, err
	}
	if c.labels, err = store.OpenTable[labelRow](ctx, cfg.Store, "labels"); err != nil {
		return nil, err
	}
	if c.domains, err = openDomains(ctx, cfg.Store); err != nil {
		return nil, err
	}
	return c, c.recover(ctx)
}

// FunctionTable returns the table of functions, keyed tenant.name. Only control
// writes to it.
func (c *Control) FunctionTable() *store.Table[bawn.Function] { return c.functions }

// VersionTable returns the table of versions, keyed tenant.name.number. Only
// control writes to it.
func (c *Control) VersionTable() *store.Table[bawn.Version] { return c.versions }

// recover brings the tables to where the last acknowledged change left them.
func (c *Control) recover(ctx context.Context) error {
	if err := c.trusted(); err != nil {
		c.cfg.Log.Error("nothing is cleared away: what looks unused may belong to what is damaged", "error", err)
		return nil
	}
	c.clearTenants(ctx)
	// A version is written before the function that points to it, and removed
	// after: one that no function can point to belongs to a change that was
	// never acknowledged, or to a removal that was not brought to its end.
	for key, v := range c.versions.All("") {
		if f, _, ok := c.functions.Get(functionKey(v.Tenant, v.Function)); !ok || v.Number > f.Latest {
			if err := remove(ctx, c.versions, key); err != nil {
				return err
			}
		}
	}
	if c.cfg.Vault != nil {
		for tenant, function := range c.cfg.Vault.Grantees() {
			if _, _, ok := c.functions.Get(functionKey(tenant, function)); !ok {
				if err := c.cfg.Vault.RemoveFunction(ctx, tenant, function); err != nil {
					c.cfg.Log.Warn("the grants of a function that is gone could not be taken back", "tenant", tenant, "function", function, "error", err)
				}
			}
		}
	}
	c.dropExpired(ctx)
	c.collect(ctx)
	owners := map[string][]string{}
	for key := range c.artifacts.All("") {
		tenant, hexDigest, _ := strings.Cut(key, ".")
		owners[hexDigest] = append(owners[hexDigest], tenant)
	}
	return c.cfg.Gate.Sweep(ctx, func(hexDigest string) []string { return owners[hexDigest] })
}

// trusted returns nil if the tables hold all that they should, so that what nothing
// refers to is of no use to anything.
func (c *Control) trusted() error {
	return cmp.Or(c.functions.Trusted(), c.versions.Trusted(), c.artifacts.Trusted(), c.approvals.Trusted(), c.cfg.Tenants.table.Trusted())
}

// collect drops packages that no version of their tenant has run for a day. One
// that cannot be dropped is left for the next start: it must not stand in the way
// of others. The caller holds mu, or is alone.
func (c *Control) collect(ctx context.Context) {
	if c.trusted() != nil {
		return
	}
	old := c.cfg.Now().Add(-unusedFor)
	used := c.inUse()
	for key, a := range c.artifacts.All("") {
		if used[key] || !a.CreatedAt.Before(old) {
			continue
		}
		if err := c.dropArtifact(ctx, key, a.Artifact.Digest); err != nil {
			c.cfg.Log.Warn("a package that nothing uses could not be removed", "artifact", a.Artifact.Digest, "error", err)
		}
	}
}

// inUse returns the keys of the packages that versions run, or would once they
// are approved.
func (c *Control) inUse() map[string]bool {
	used := map[string]bool{}
	for _, v := range c.versions.All("") {
		for _, digest := range packages(&v) {
			used[artifactKey(v.Tenant, digest)] = true
		}
	}
	for _, a := range c.approvals.All("") {
		for _, digest := range packages(&a.Version) {
			used[artifactKey(a.Tenant, digest)] = true
		}
	}
	return used
}

// checkUnused reports whether the tenant may have another package of n bytes
// that no version runs yet. The caller holds mu.
func (c *Control) checkUnused(tenant string, n int64) error {
	used := c.inUse()
	for key, a := range c.artifacts.All(tenant + ".") {
		if !used[key] {
			n += a.Artifact.Size + a.Artifact.Bytes
		}
	}
	if n <= maxUnusedBytes {
		return nil
	}
	return bawn.Errorf(bawn.CodeTooLarge, "control.put", "the packages that were uploaded and not deployed take more than %d bytes", int64(maxUnusedBytes)).
		WithFix("deploy what was uploaded, or wait: what no version runs is dropped a day after its upload, by the next upload")
}

// packages returns the digests of what a version is made of.
func packages(v *bawn.Version) []string {
	if v.Compiled == nil {
		return []string{v.Artifact.Digest}
	}
	return []string{v.Artifact.Digest, v.Compiled.Digest}
}

// dropArtifact forgets a tenant's package, and the package itself if no other
// tenant has it. The caller holds mu, or is alone.
func (c *Control) dropArtifact(ctx context.Context, key, digest string) error {
	if c.trusted() != nil {
		return nil // what is damaged may need it
	}
	if err := remove(ctx, c.artifacts, key); err != nil {
		return err
	}
	tenant, _, _ := strings.Cut(key, ".")
	return c.dropUnowned(ctx, tenant, digest)
}

// dropUnowned removes a package that the tenant does not have. The caller holds mu,
// or is alone.
func (c *Control) dropUnowned(ctx context.Context, tenant, digest string) error {
	if c.trusted() != nil {
		return nil // what is damaged may need it
	}
	shared, suffix := false, "."+strings.TrimPrefix(digest, "sha256:")
	for other := range c.artifacts.All("") {
		if other == artifactKey(tenant, digest) {
			return nil
		}
		shared = shared || strings.HasSuffix(other, suffix)
	}
	switch {
	case !c.backingUp:
		return c.cfg.Gate.Remove(ctx, tenant, digest, shared)
	case !shared:
		return c.cfg.Gate.Lock(digest) // the next start drops the rest
	}
	return nil
}

// remove deletes key, whatever its revision; what is gone already is no error.
func remove[T any](ctx context.Context, t *store.Table[T], key string) error {
	_, rev, ok := t.Get(key)
	if !ok {
		return nil
	}
	err := t.Delete(ctx, key, rev)
	if bawn.ErrorCode(err) == bawn.CodeNotFound {
		return nil
	}
	return err
}

func functionKey(tenant, name string) string { return tenant + "." + name }

func versionKey(tenant, name string, n int) string {
	return tenant + "." + name + "." + strconv.Itoa(n)
}

func artifactKey(tenant, digest string) string {
	return tenant + "." + strings.TrimPrefix(digest, "sha256:")
}

// authorize decides and records, and makes an error of a denial.
func (c *Control) authorize(ctx context.Context, p bawn.Principal, action policy.Action, ref bawn.Ref) error {
	return c.allowed(ctx, policy.Request{Principal: p, Action: action, Resource: ref})
}

// allowed is authorize for what is neither a function nor a tenant, too.
func (c *Control) allowed(ctx context.Context, req policy.Request) error {
	p, ref := req.Principal, req.Resource
	if c.cfg.Tenants.Suspended(p.Tenant) { // it may have been known before that
		return bawn.Errorf(bawn.CodeUnauthenticated, "control", "the credential is not valid").WithFix("ask the operator of the node")
	}
	d, err := c.cfg.Policy.Authorize(ctx, req)
	switch {
	case err != nil:
		return err
	case d.Allow:
		return nil
	case p.Kind == bawn.Anonymous().Kind:
		return bawn.Errorf(bawn.CodeUnauthenticated, "control", "%s", d.Reason).WithFix("%s", d.Fix)
	case ref.Tenant != p.Tenant:
		return notFound(ref.Function) // what others have is not this caller's to know
	}
	return bawn.Errorf(bawn.CodeDenied, "control", "%s", d.Reason).WithFix("%s", d.Fix)
}

// onFunction checks the name and authorises action on the principal's function.
func (c *Control) onFunction(ctx context.Context, p bawn.Principal, action policy.Action, name string) error {
	if err := bawn.CheckName("function", name); err != nil {
		return err
	}
	return c.authorize(ctx, p, action, bawn.Ref{Tenant: p.Tenant, Function: name})
}

// concerns reports whether p has to do with the function.
func concerns(p bawn.Principal, function string) bool {
	return len(p.Functions) == 0 || slices.Contains(p.Functions, function)
}

// noFunction is the error for a function that was not found: one whose row is damaged
// is not taken for one that never was.
func (c *Control) noFunction(tenant, name string) error {
	if _, _, _, err := c.functions.Find(functionKey(tenant, name)); err != nil {
		return err
	}
	return notFound(name)
}

func notFound(name string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control", "there is no function %q", name).WithFix("bawn ls lists the functions that there are")
}

// change records what is about to be done, does it, and records how it ended,
// each with the time of the control's clock.
// If it cannot be recorded it is not done. what must name neither secrets nor
// values of the environment. do gets a context that does not end with the
// request, so that what was begun is brought to its end.
func (c *Control) change(ctx context.Context, p bawn.Principal, what bawn.Record, do func(ctx context.Context) error) error {
	what.Kind, what.Tenant, what.Principal, what.Outcome = bawn.KindChange, p.Tenant, p.String(), "allow"
	what.Time = c.cfg.Now()
	if err := c.cfg.Evidence.Append(ctx, what); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	doing, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	err := do(doing)
	// The outcome has time of its own: the change may have used up its share.
	ctx, cancel = context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	what.Time, what.Outcome, what.Reason = c.cfg.Now(), "ok", ""
	if err != nil {
		what.Outcome, what.Reason = "error", messageOf(err)
	}
	// The change itself was recorded before it was made. If its end cannot be,
	// the caller has to know.
	if lost := c.cfg.Evidence.Append(ctx, what); lost != nil && err == nil {
		return bawn.Wrap(lost, bawn.CodeUnavailable, "control", "the change was made, but its outcome could not be recorded").
			WithFix("look at bawn show before you try again")
	}
	return err
}

// refused records that err refused what p wanted to do, and returns err; if it
// cannot be recorded, why.
func (c *Control) refused(ctx context.Context, p bawn.Principal, what bawn.Record, err *bawn.Error) error {
	what.Kind, what.Tenant, what.Principal, what.Outcome, what.Reason = bawn.KindDecision, p.Tenant, p.String(), "deny", err.Message
	what.Time = c.cfg.Now()
	if lost := c.cfg.Evidence.Append(ctx, what); lost != nil {
		return lost
	}
	return err
}

func messageOf(err error) string {
	var e *bawn.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "internal error"
}

// Events calls fn for each record of the principal's tenant that q selects; see
// [evidence.Log.Read].
func (c *Control) Events(ctx context.Context, p bawn.Principal, q evidence.Query, fn func(bawn.Record) error) error {
	if err := c.authorize(ctx, p, policy.Events, bawn.Ref{Tenant: p.Tenant, Function: q.Function}); err != nil {
		return err
	}
	q.Tenant = p.Tenant
	return c.cfg.Evidence.Read(ctx, q, fn)
}

// LogLines calls fn for each log line of the principal's tenant that q selects;
// see [evidence.Logs.Read]. The function must exist.
func (c *Control) LogLines(ctx context.Context, p bawn.Principal, q evidence.LogQuery, fn func(bawn.LogLine) error) error {
	if err := c.onFunction(ctx, p, policy.Logs, q.Function); err != nil {
		return err
	}
	if _, _, ok := c.functions.Get(functionKey(p.Tenant, q.Function)); !ok {
		return c.noFunction(p.Tenant, q.Function)
	}
	q.Tenant = p.Tenant
	return c.cfg.Logs.Read(ctx, q, fn)
}

// CreateKey makes a key of the principal's tenant. The secret cannot be had a
// second time. See [identity.Keys.Create].
func (c *Control) CreateKey(ctx context.Context, p bawn.Principal, want bawn.Key) (secret string, key bawn.Key, err error) {
	if err := c.authorize(ctx, p, policy.Keys, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return "", bawn.Key{}, err
	}
	want.Tenant, want.CreatedBy = p.Tenant, p.String()
	if err := mayGrant(p, want); err != nil {
		return "", bawn.Key{}, c.refused(ctx, p, bawn.Record{Action: "key.create", Control: "A8", Detail: map[string]string{"name": want.Name, "role": string(want.Role)}}, err)
	}
	what := bawn.Record{Action: "key.create", Detail: map[string]string{"name": want.Name, "role": string(want.Role), "after": rights(want)}}
	c.mu.Lock() // the number of keys is looked at before one is added
	defer c.mu.Unlock()
	if q, _ := c.cfg.Tenants.Quota(p.Tenant); len(c.cfg.Keys.List(p.Tenant)) >= bound(q.Keys, maxKeys) {
		return "", bawn.Key{}, bawn.Errorf(bawn.CodeTooLarge, "control.keys", "the tenant has %d keys, no more are allowed", bound(q.Keys, maxKeys)).
			WithFix("revoke keys that are expired or not used")
	}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		secret, key, err = c.cfg.Keys.Create(ctx, want)
		if err == nil {
			what.Detail["id"] = key.ID // what shares the map: the outcome names the key
		}
		return err
	})
	if err != nil && key.ID != "" {
		// Nobody will have the secret, so nobody may have the key.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
		defer cancel()
		if left := c.cfg.Keys.Revoke(ctx, p.Tenant, key.ID); left != nil {
			return "", bawn.Key{}, bawn.Wrap(errors.Join(err, left), bawn.CodeUnavailable, "control", "the key %s was made, but that could not be recorded", key.ID).
				WithFix("revoke it with bawn key revoke %s, then try again", key.ID)
		}
		return "", bawn.Key{}, bawn.Wrap(err, bawn.CodeUnavailable, "control", "that the key was made could not be recorded, so it was revoked").
			WithFix("try again when the node is healthy")
	}
	return secret, key, err
}

// mayGrant refuses a key that could do more, or for longer, than who makes it;
// control A8.
func mayGrant(p bawn.Principal, want bawn.Key) *bawn.Error {
	const op = "control.keys"
	if !holds(p, want.Role) {
		return bawn.Errorf(bawn.CodeDenied, op, "you do not hold the role %.40q yourself: nobody makes a key that may do more than they", string(want.Role)).
			WithFix("have the key made by somebody who holds the role")
	}
	if p.Kind == bawn.PrincipalKey && !p.Expires.IsZero() && (want.ExpiresAt.IsZero() || want.ExpiresAt.After(p.Expires)) {
		return bawn.Errorf(bawn.CodeDenied, op, "your own key ends on %s, and this one would outlive it", p.Expires.UTC().Format(time.RFC3339)).
			WithFix("give it an end before that, or have it made with a key that lives longer")
	}
	if len(p.Functions) == 0 {
		return nil
	}
	for _, f := range want.Functions {
		if !slices.Contains(p.Functions, f) {
			return bawn.Errorf(bawn.CodeDenied, op, "you have nothing to do with the function %q yourself: nobody makes a key that may do more than they", f).
				WithFix("leave it out, or have the key made by somebody who has")
		}
	}
	if len(want.Functions) == 0 {
		return bawn.Errorf(bawn.CodeDenied, op, "you are held to %d functions, and the key would not be: nobody makes a key that may do more than they", len(p.Functions)).
			WithFix("hold it to functions of yours")
	}
	return nil
}

// holds reports whether p may do what the role r may: an operator holds every
// role, an administrator every one but that.
func holds(p bawn.Principal, r bawn.Role) bool {
	return p.Has(r) || p.Has(bawn.RoleAdmin) && r != bawn.RoleOperator || p.Has(bawn.RoleOperator) || p.Kind == bawn.PrincipalNode
}

// rights is what a key may do, for the evidence.
func rights(k bawn.Key) string {
	s := "role " + string(k.Role)
	if len(k.Functions) > 0 {
		s += " functions " + strings.Join(k.Functions, ",")
	}
	if !k.ExpiresAt.IsZero() {
		s += " until " + k.ExpiresAt.UTC().Format(time.RFC3339)
	}
	return s
}

// Keys lists the keys of the principal's tenant.
func (c *Control) Keys(ctx context.Context, p bawn.Principal) ([]bawn.Key, error) {
	if err := c.authorize(ctx, p, policy.Keys, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	return c.cfg.Keys.List(p.Tenant), nil
}

// RevokeKey ends a key of the principal's tenant at once.
func (c *Control) RevokeKey(ctx context.Context, p bawn.Principal, id string) error {
	if err := c.authorize(ctx, p, policy.Keys, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return err
	}
	list := c.cfg.Keys.List(p.Tenant)
	i := slices.IndexFunc(list, func(k bawn.Key) bool { return k.ID == id })
	if i < 0 {
		return bawn.Errorf(bawn.CodeNotFound, "control", "there is no key %.80q", id).WithFix("bawn key ls lists the keys that there are")
	}
	if !holds(p, list[i].Role) {
		return c.refused(ctx, p, bawn.Record{Action: "key.revoke", Control: "A9", Detail: map[string]string{"id": id, "role": string(list[i].Role)}},
			bawn.Errorf(bawn.CodeDenied, "control.keys", "the key has the role %.40q, which you do not hold yourself", string(list[i].Role)).
				WithFix("have it revoked by somebody who holds the role"))
	}
	return c.change(ctx, p, bawn.Record{Action: "key.revoke", Detail: map[string]string{"id": id, "name": list[i].Name, "before": rights(list[i])}}, func(ctx context.Context) error {
		return c.cfg.Keys.Revoke(ctx, p.Tenant, id)
	})
}
