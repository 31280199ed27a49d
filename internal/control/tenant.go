package control

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

const (
	maxTenants = 1000 // removed ones included, whose names stay taken
	maxReason  = 500
	maxQuota   = 1 << 50
)

// Tenants are the tenants of an installation. Whoever asks whether one may do
// anything reads memory only. It is safe for concurrent use.
type Tenants struct {
	table *store.Table[tenant] // by name
	keys  *secret.TenantKeys   // nil: nothing is encrypted
	now   func() time.Time
}

// tenant is a row. One that was removed stays as a mark: nobody gets its name
// again, so that nothing that still points to it leads to somebody else.
type tenant struct {
	bawn.Tenant
	Removed time.Time `json:"removed,omitzero"`
	// Sealed says that the tenant has had a key: one that is missing was lost, and
	// no other is made.
	Sealed bool `json:"sealed,omitempty"`
}

// OpenTenants opens the tenants that the store holds; there is always
// [bawn.DefaultTenant]. It sees to their keys, so it comes before anything that
// opens what is theirs: tenants of a Bawn that did not encrypt get one, and those
// of removed ones are destroyed once nothing is left that needs them. keys may be
// nil if the store does not encrypt. now is the clock; nil means [time.Now].
func OpenTenants(ctx context.Context, s *store.Store, keys *secret.TenantKeys, now func() time.Time) (*Tenants, error) {
	if now == nil {
		now = time.Now
	}
	table, err := store.OpenTable[tenant](ctx, s, "tenants")
	if err != nil {
		return nil, err
	}
	t := &Tenants{table, keys, now}
	// One that was lost is not made anew: until it is restored nobody gets in.
	if _, _, ok, lost := table.Find(bawn.DefaultTenant); !ok && lost == nil {
		at := now().UTC()
		if _, err = table.Create(ctx, bawn.DefaultTenant, tenant{Tenant: bawn.Tenant{
			Name: bawn.DefaultTenant, CreatedAt: at, CreatedBy: bawn.PrincipalNode, UpdatedAt: at,
		}}); err != nil {
			return nil, err
		}
	}
	return t, t.makeKeys(ctx)
}

// makeKeys makes the keys of tenants that never had one.
func (t *Tenants) makeKeys(ctx context.Context) error {
	if t.keys == nil {
		return nil
	}
	for name, row := range t.table.All("") {
		if row.Sealed || !row.Removed.IsZero() {
			continue
		}
		// The key first: a crash in between leaves one that is taken up here.
		if err := t.keys.Make(name); err != nil {
			return err
		}
		_, rev, _ := t.table.Get(name)
		row.Sealed = true
		if _, err := t.table.Update(ctx, name, row, rev); err != nil {
			return err
		}
	}
	return nil
}

// newKey makes the key of a tenant that there is not yet.
func (t *Tenants) newKey(name string) error {
	if t.keys == nil {
		return nil
	}
	// One can be left of a creation that a crash cut short.
	if err := t.keys.Destroy(name); err != nil {
		return err
	}
	return t.keys.Make(name)
}

// destroyKey makes unreadable what is left of a tenant that was removed, wherever
// a copy of it may be.
func (t *Tenants) destroyKey(name string) error {
	if t.keys == nil {
		return nil
	}
	return t.keys.Destroy(name)
}

// Suspended reports whether nobody of the tenant gets in and nothing of it runs:
// it is suspended, was removed, or never was. It is not of "", which no tenant is
// called: what belongs to none.
func (t *Tenants) Suspended(name string) bool {
	if name == "" {
		return false
	}
	row, _, ok := t.table.Get(name)
	return !ok || row.Suspended || !row.Removed.IsZero()
}

// Quota returns the quota of a tenant, and whether anything of it may run.
func (t *Tenants) Quota(name string) (bawn.Quota, bool) {
	row, _, ok := t.table.Get(name)
	return row.Quota, ok && !row.Suspended && row.Removed.IsZero()
}

// Has reports whether there is a tenant; one that was removed is none.
func (t *Tenants) Has(name string) bool {
	_, _, ok := t.get(name)
	return ok
}

// get returns a tenant that was not removed.
func (t *Tenants) get(name string) (row tenant, rev uint64, ok bool) {
	row, rev, ok = t.table.Get(name)
	return row, rev, ok && row.Removed.IsZero()
}

// Belonging is a kind of thing that tenants have and that control does not keep.
type Belonging struct {
	Name   string // in the plural, for people
	Count  func(tenant string) int
	Remove func(ctx context.Context, tenant string) error // all of them; what is gone already is no error
}

// Removal is what goes with a tenant.
type Removal struct {
	Tenant    string         `json:"tenant"`
	Functions []string       `json:"functions" nullable:"false"`
	Versions  int            `json:"versions"`
	Packages  int            `json:"packages"`
	Bytes     int64          `json:"bytes" doc:"of packages, packed and unpacked"`
	Keys      int            `json:"keys"`
	Approvals int            `json:"approvals" doc:"versions that wait for approval"`
	Others    map[string]int `json:"others,omitempty" doc:"what else goes, by kind"`
	Removed   bool           `json:"removed" doc:"false for a plan: nothing has gone yet"`
}

// operator authorises what only an operator may do. Nobody else learns whether
// there is such a tenant.
func (c *Control) operator(ctx context.Context, p bawn.Principal) error {
	d, err := c.cfg.Policy.Authorize(ctx, policy.Request{
		Principal: p, Action: policy.Tenants, Resource: bawn.Ref{Tenant: p.Tenant}, Object: policy.Object{Kind: policy.Installation},
	})
	if err == nil && !d.Allow {
		err = bawn.Errorf(bawn.CodeDenied, "control.tenant", "%s", d.Reason).WithFix("%s", d.Fix)
	}
	return err
}

func noTenant(name string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control.tenant", "there is no tenant %q", name).WithFix("bawn tenant ls lists the tenants")
}

// CreateTenant makes a tenant, and the key of its first administrator, whose
// secret cannot be had a second time. The name of a tenant that was removed is
// not given again: [bawn.CodeConflict].
func (c *Control) CreateTenant(ctx context.Context, p bawn.Principal, name string, quota bawn.Quota) (made bawn.Tenant, secret string, key bawn.Key, err error) {
	const op = "control.tenant"
	fail := func(err error) (bawn.Tenant, string, bawn.Key, error) { return bawn.Tenant{}, "", bawn.Key{}, err }
	if err := bawn.CheckName("tenant", name); err != nil {
		return fail(err)
	}
	if err := checkQuota(quota); err != nil {
		return fail(err)
	}
	if err := c.operator(ctx, p); err != nil {
		return fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.cfg.Tenants
	// A tenant that cannot be read is one, and its key stays.
	if err := t.table.Trusted(); err != nil {
		return fail(err)
	}
	if old, _, ok := t.table.Get(name); ok && !old.Removed.IsZero() {
		return fail(bawn.Errorf(bawn.CodeConflict, op, "%q was the name of a tenant until %s, and no other gets it", name, old.Removed.Format(time.DateOnly)).
			WithFix("take another name"))
	} else if ok {
		return fail(bawn.Errorf(bawn.CodeConflict, op, "there is a tenant %q already", name).WithFix("take another name"))
	}
	if n := t.table.Len(); n >= maxTenants {
		return fail(bawn.Errorf(bawn.CodeTooLarge, op, "the installation has had %d tenants, no more are allowed", n).WithFix("start another node for them"))
	}
	at := c.cfg.Now().UTC()
	made = bawn.Tenant{Name: name, Quota: quota, CreatedAt: at, CreatedBy: p.String(), UpdatedAt: at}
	what := bawn.Record{Action: "tenant.create", Detail: map[string]string{"tenant": name, "after": quotaText(quota)}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		if err := t.newKey(name); err != nil {
			return err
		}
		if _, err := t.table.Create(ctx, name, tenant{Tenant: made, Sealed: t.keys != nil}); err != nil {
			return err
		}
		secret, key, err = c.cfg.Keys.Create(ctx, bawn.Key{Name: "admin", Tenant: name, Role: bawn.RoleAdmin, CreatedBy: p.String()})
		if err != nil {
			return errors.Join(err, remove(ctx, t.table, name))
		}
		what.Detail["key"] = key.ID
		return nil
	})
	if err != nil && key.ID != "" {
		// Nobody will have the secret, so there must be nothing that it opens.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
		defer cancel()
		err = errors.Join(err, c.cfg.Keys.Revoke(ctx, name, key.ID), remove(ctx, t.table, name))
	}
	if err != nil {
		return fail(err)
	}
	return made, secret, key, nil
}

// Tenants lists the tenants by name.
func (c *Control) Tenants(ctx context.Context, p bawn.Principal) ([]bawn.Tenant, error) {
	if err := c.operator(ctx, p); err != nil {
		return nil, err
	}
	all := []bawn.Tenant{}
	for _, row := range c.cfg.Tenants.table.All("") {
		if row.Removed.IsZero() {
			all = append(all, row.Tenant)
		}
	}
	return all, nil
}

// Tenant returns a tenant, and what it has.
func (c *Control) Tenant(ctx context.Context, p bawn.Principal, name string) (bawn.Tenant, Removal, error) {
	row, _, err := c.tenantFor(ctx, p, name)
	if err != nil {
		return bawn.Tenant{}, Removal{}, err
	}
	return row.Tenant, c.belongings(name), nil
}

// tenantFor authorises an operator's request and returns the tenant it is about.
func (c *Control) tenantFor(ctx context.Context, p bawn.Principal, name string) (tenant, uint64, error) {
	if err := bawn.CheckName("tenant", name); err != nil {
		return tenant{}, 0, err
	}
	if err := c.operator(ctx, p); err != nil {
		return tenant{}, 0, err
	}
	row, rev, ok := c.cfg.Tenants.get(name)
	if !ok {
		return tenant{}, 0, noTenant(name)
	}
	return row, rev, nil
}

// SetQuota bounds what a tenant may have. What it has beyond that stays; it gets
// no more.
func (c *Control) SetQuota(ctx context.Context, p bawn.Principal, name string, quota bawn.Quota) (bawn.Tenant, error) {
	if err := checkQuota(quota); err != nil {
		return bawn.Tenant{}, err
	}
	return c.setTenant(ctx, p, name, "tenant.quota", func(t *bawn.Tenant) (before, after string, err error) {
		before, t.Quota = quotaText(t.Quota), quota
		return before, quotaText(quota), nil
	})
}

// Suspend lets nobody of a tenant in and ends everything of it that runs: when it
// returns, both have happened.
func (c *Control) Suspend(ctx context.Context, p bawn.Principal, name, reason string) (bawn.Tenant, error) {
	if reason == "" || len(reason) > maxReason {
		return bawn.Tenant{}, bawn.Errorf(bawn.CodeInvalid, "control.tenant", "the reason has %d bytes, want 1 to %d", len(reason), maxReason).WithFix("say why, in a sentence")
	}
	return c.setTenant(ctx, p, name, "tenant.suspend", func(t *bawn.Tenant) (before, after string, err error) {
		if name == bawn.DefaultTenant {
			return "", "", notMain()
		}
		before = state(t)
		t.Suspended, t.Reason = true, reason
		return before, state(t), nil
	})
}

// Resume ends a suspension.
func (c *Control) Resume(ctx context.Context, p bawn.Principal, name string) (bawn.Tenant, error) {
	return c.setTenant(ctx, p, name, "tenant.resume", func(t *bawn.Tenant) (before, after string, err error) {
		before = state(t)
		t.Suspended, t.Reason = false, ""
		return before, state(t), nil
	})
}

func notMain() *bawn.Error {
	return bawn.Errorf(bawn.CodeConflict, "control.tenant", "the tenant %s is the one whose operators run the installation: it can be neither suspended nor removed", bawn.DefaultTenant).
		WithFix("stop the node, or revoke the keys that are meant")
}

func state(t *bawn.Tenant) string {
	if t.Suspended {
		return "suspended: " + t.Reason
	}
	return "active"
}

// setTenant changes a tenant's row and records it with what with returns.
func (c *Control) setTenant(ctx context.Context, p bawn.Principal, name, action string, with func(*bawn.Tenant) (before, after string, err error)) (bawn.Tenant, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row, rev, err := c.tenantFor(ctx, p, name)
	if err != nil {
		return bawn.Tenant{}, err
	}
	before, after, err := with(&row.Tenant)
	if err != nil {
		return bawn.Tenant{}, err
	}
	row.UpdatedAt = c.cfg.Now().UTC()
	what := bawn.Record{Action: action, Detail: map[string]string{"tenant": name, "before": before, "after": after}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		if _, err := c.cfg.Tenants.table.Update(ctx, name, row, rev); err != nil {
			return err
		}
		if row.Suspended { // now, whether or not the outcome can be recorded
			c.cfg.Halt(name)
		}
		return nil
	})
	return row.Tenant, err
}

// RemoveTenant takes a tenant away with everything that it has, for good, or with
// dryRun says what that is. confirm has to be its name. Its evidence stays; its
// name is never given again.
func (c *Control) RemoveTenant(ctx context.Context, p bawn.Principal, name, confirm string, dryRun bool) (Removal, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row, rev, err := c.tenantFor(ctx, p, name)
	if err != nil {
		return Removal{}, err
	}
	plan := c.belongings(name)
	switch {
	case name == bawn.DefaultTenant:
		return Removal{}, notMain()
	case dryRun:
		return plan, nil
	case confirm != name:
		return Removal{}, bawn.Errorf(bawn.CodeInvalid, "control.tenant", "removing a tenant is for good: its name has to be given twice").WithFix("look at the plan with dryRun, then send confirm=%s", name)
	}
	what := bawn.Record{Action: "tenant.remove", Detail: map[string]string{
		"tenant": name, "functions": strconv.Itoa(len(plan.Functions)), "versions": strconv.Itoa(plan.Versions), "keys": strconv.Itoa(plan.Keys), "before": state(&row.Tenant),
	}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		// From here nobody gets in and nothing starts. What cannot be cleared away
		// now is at the next start.
		row.Suspended, row.Reason, row.Removed = true, "removed", c.cfg.Now().UTC()
		if _, err := c.cfg.Tenants.table.Update(ctx, name, row, rev); err != nil {
			return err
		}
		c.cfg.Halt(name)
		if err := c.clearTenant(ctx, name); err != nil {
			what.Detail["left"] = messageOf(err)
			c.cfg.Log.Warn("something of a removed tenant is left until the next start", "tenant", name, "error", err)
		}
		return nil
	})
	plan.Removed = err == nil
	return plan, err
}

// belongings counts what a tenant has.
func (c *Control) belongings(name string) Removal {
	r := Removal{Tenant: name, Functions: []string{}, Keys: len(c.cfg.Keys.List(name)), Others: map[string]int{}}
	for _, f := range c.functions.All(name + ".") {
		r.Functions = append(r.Functions, f.Name)
	}
	for range c.versions.All(name + ".") {
		r.Versions++
	}
	for _, a := range c.artifacts.All(name + ".") {
		r.Packages++
		r.Bytes += a.Artifact.Size + a.Artifact.Bytes
	}
	for range c.approvals.All(name + ".") {
		r.Approvals++
	}
	if n := len(c.cfg.Policy.Guardrails(name)); n > 0 {
		r.Others["guardrails"] = n
	}
	if n := c.settings(name); n > 0 {
		r.Others["labels"] = n
	}
	n := 0
	for range c.domains.table.All(name + ".") {
		n++
	}
	if n > 0 {
		r.Others["domains"] = n
	}
	for _, b := range c.cfg.Belongings {
		if n := b.Count(name); n > 0 {
			r.Others[b.Name] = n
		}
	}
	return r
}

// clearTenant removes everything that a removed tenant had. The caller holds mu,
// or is alone.
func (c *Control) clearTenant(ctx context.Context, name string) error {
	var errs []error
	// Keys first: they are what opens the rest.
	for _, k := range c.cfg.Keys.List(name) {
		errs = append(errs, c.cfg.Keys.Revoke(ctx, name, k.ID))
	}
	for _, b := range c.cfg.Belongings {
		errs = append(errs, b.Remove(ctx, name))
	}
	for _, g := range c.cfg.Policy.Guardrails(name) {
		errs = append(errs, c.cfg.Policy.RemoveGuardrail(ctx, name, g.Name))
	}
	for key := range c.functions.All(name + ".") {
		errs = append(errs, remove(ctx, c.functions, key))
	}
	for key := range c.versions.All(name + ".") {
		errs = append(errs, remove(ctx, c.versions, key))
	}
	for key := range c.approvals.All(name + ".") {
		errs = append(errs, remove(ctx, c.approvals, key))
	}
	for key := range c.labels.All(name + ".") {
		errs = append(errs, remove(ctx, c.labels, key))
	}
	for key := range c.domains.table.All(name + ".") {
		errs = append(errs, remove(ctx, c.domains.table, key))
	}
	for key := range c.removed.All(name + ".") {
		errs = append(errs, remove(ctx, c.removed, key))
	}
	for key, a := range c.artifacts.All(name + ".") {
		errs = append(errs, c.dropArtifact(ctx, key, a.Artifact.Digest))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Last, so that what could not be cleared away now can be at the next start.
	return c.cfg.Tenants.destroyKey(name)
}

// clearTenants brings removals to their end that a crash left half done.
func (c *Control) clearTenants(ctx context.Context) {
	for name, row := range c.cfg.Tenants.table.All("") {
		if row.Removed.IsZero() {
			continue
		}
		if err := c.clearTenant(ctx, name); err != nil {
			c.cfg.Log.Warn("something of a removed tenant is left until the next start", "tenant", name, "error", err)
		}
	}
}

func checkQuota(q bawn.Quota) error {
	for _, f := range []struct {
		name string
		n    int64
		most int64
	}{
		{"functions", int64(q.Functions), maxFunctions}, {"keys", int64(q.Keys), maxKeys}, {"instances", int64(q.Instances), 1 << 20},
		{"memory", q.Memory, maxQuota}, {"packages", q.Packages, maxQuota},
		{"rate", int64(q.Rate), bawn.MaxRateCalls},
	} {
		if f.n < 0 || f.n > f.most {
			return bawn.Errorf(bawn.CodeInvalid, "control.quota", "the quota of %s is %d, want 0 to %d", f.name, f.n, f.most).WithFix("0 takes the node's default")
		}
	}
	return nil
}

// quotaText is a quota as the evidence keeps it.
func quotaText(q bawn.Quota) string {
	var parts []string
	for _, f := range []struct {
		name string
		n    int64
	}{{"functions", int64(q.Functions)}, {"keys", int64(q.Keys)}, {"instances", int64(q.Instances)}, {"memory", q.Memory}, {"packages", q.Packages}, {"rate", int64(q.Rate)}} {
		if f.n > 0 {
			parts = append(parts, f.name+" "+strconv.FormatInt(f.n, 10))
		}
	}
	if len(parts) == 0 {
		return "the node's defaults"
	}
	return strings.Join(parts, ", ")
}

// bound returns the tenant's bound, or the node's where that is 0 or less.
func bound(tenants, nodes int) int {
	if tenants > 0 {
		return min(tenants, nodes)
	}
	return nodes
}

// checkPackages reports whether the tenant may have another package of n bytes.
// The caller holds mu.
func (c *Control) checkPackages(tenant string, n int64) error {
	q, _ := c.cfg.Tenants.Quota(tenant)
	if q.Packages == 0 {
		return nil
	}
	for _, a := range c.artifacts.All(tenant + ".") {
		n += a.Artifact.Size + a.Artifact.Bytes
	}
	if n <= q.Packages {
		return nil
	}
	return bawn.Errorf(bawn.CodeTooLarge, "control.put", "the tenant's packages would take %d bytes, its quota is %d", n, q.Packages).
		WithFix("remove functions that are not used, or have the operator raise the quota")
}
