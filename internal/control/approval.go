package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

const (
	approvalFor  = 7 * 24 * time.Hour // how long a request waits for somebody
	maxApprovals = 100                // requests of a tenant that wait at one time
)

// Approval is a version that would let more through than what is live, and so
// waits for a second principal; control A5. It is nowhere but here: nothing can
// run it, point an alias at it or roll back to it before it is approved.
type Approval struct {
	ID          string       `json:"id"`
	Tenant      string       `json:"tenant"`
	Function    string       `json:"function"`
	Live        int          `json:"live,omitempty" doc:"the version that was live when it was asked for; absent for a function's first version"`
	Changes     []Change     `json:"changes" nullable:"false" doc:"against that version"`
	Version     bawn.Version `json:"version" doc:"what would become live; its number is given when it does"`
	RequestedBy string       `json:"requestedBy"`
	Makers      []string     `json:"makers,omitempty" nullable:"false" doc:"who made the key that asked, who made that one, and so on: none of them may approve it"`
	RequestedAt time.Time    `json:"requestedAt"`
	ExpiresAt   time.Time    `json:"expiresAt"`
}

// request is how an Approval is stored: with what tells whether who asked still
// may ask, and what for.
type request struct {
	Approval
	Asker asker `json:"asker"`
}

// asker is a principal as it was when it asked. That a token ends by itself
// takes nothing back, so its end is not kept.
type asker struct {
	Principal bawn.Principal `json:"principal"`
	Functions []string       `json:"functions,omitempty"`
	Issued    time.Time      `json:"issued,omitzero"`
	Revision  uint64         `json:"revision,omitempty"`
	Issuer    string         `json:"issuer,omitempty"`
}

func newAsker(p bawn.Principal) asker {
	return asker{Principal: p, Functions: p.Functions, Issued: p.Issued, Revision: p.Revision, Issuer: p.Issuer}
}

func (a asker) principal() bawn.Principal {
	p := a.Principal
	p.Functions, p.Issued, p.Revision, p.Issuer = a.Functions, a.Issued, a.Revision, a.Issuer
	return p
}

func approvalKey(tenant, id string) string { return tenant + "." + id }

func noApproval(id string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control.approval", "there is no request %.80q that waits for approval", id).
		WithFix("bawn approvals lists those that there are; one that nobody approved in %d days is dropped", int(approvalFor.Hours())/24)
}

// approval returns a request that still may be approved.
func (c *Control) approval(tenant, id string) (a request, ok bool) {
	if strings.Contains(id, ".") {
		return a, false
	}
	a, _, ok = c.approvals.Get(approvalKey(tenant, id))
	return a, ok && c.cfg.Now().Before(a.ExpiresAt)
}

// ask stores d for somebody else to approve, and records that. The caller
// holds mu.
func (c *Control) ask(ctx context.Context, p bawn.Principal, d *Deployment) (*Approval, error) {
	v := &d.Version
	c.dropExpired(ctx)
	n := 0
	var before []string // what this one takes the place of
	for key, a := range c.approvals.All(v.Tenant + ".") {
		switch {
		case a.Function == v.Function && a.Version.Digest == v.Digest && slices.Equal(widening(a.Changes), widening(d.Changes)):
			return &a.Approval, nil // asked for already
		case a.Function == v.Function && a.RequestedBy == p.String():
			before = append(before, key)
		default:
			n++
		}
	}
	if n >= maxApprovals {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "control.approval", "%d versions of the tenant wait for approval, no more are allowed", n).
			WithFix("approve or reject some: bawn approvals lists them")
	}
	now := c.cfg.Now().UTC()
	a := Approval{
		ID: bawn.NewID(), Tenant: v.Tenant, Function: v.Function, Changes: d.Changes, Version: *v,
		RequestedBy: p.String(), Makers: c.lineage(p.String())[1:], RequestedAt: now, ExpiresAt: now.Add(approvalFor),
	}
	if d.Created {
		a.Version.Number = 0 // others may become versions before it
	}
	if d.Previous != nil {
		a.Live = d.Previous.Number
	}
	what := bawn.Record{Function: v.Function, Action: "approval.request", Detail: c.effect(d)}
	what.Detail["approval"] = a.ID
	err := c.change(ctx, p, what, func(ctx context.Context) error {
		if err := c.addCompiled(ctx, &a.Version); err != nil {
			return err
		}
		if _, err := c.approvals.Create(ctx, approvalKey(a.Tenant, a.ID), request{a, newAsker(p)}); err != nil {
			return err
		}
		for _, key := range before {
			if err := remove(ctx, c.approvals, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// widening is the part of changes that needs an approval.
func widening(changes []Change) []Change {
	var w []Change
	for _, c := range changes {
		if c.Widens {
			w = append(w, c)
		}
	}
	return w
}

// dropExpired forgets requests that nobody approved in time. One that cannot be
// dropped is of no use to anybody either. The caller holds mu, or is alone.
func (c *Control) dropExpired(ctx context.Context) {
	for key, a := range c.approvals.All("") {
		if c.cfg.Now().Before(a.ExpiresAt) {
			continue
		}
		if err := remove(ctx, c.approvals, key); err != nil {
			c.cfg.Log.Warn("a request for approval that has ended could not be removed", "approval", a.ID, "error", err)
		}
	}
}

// Approvals lists what waits for approval in the principal's tenant, oldest
// first.
func (c *Control) Approvals(ctx context.Context, p bawn.Principal) ([]Approval, error) {
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	all := []Approval{}
	for _, a := range c.approvals.All(p.Tenant + ".") {
		if c.cfg.Now().Before(a.ExpiresAt) && concerns(p, a.Function) {
			all = append(all, a.Approval)
		}
	}
	slices.SortStableFunc(all, func(a, b Approval) int { return a.RequestedAt.Compare(b.RequestedAt) })
	return all, nil
}

// Approve makes the version of a request live. Who asked for it may not do it,
// nor may who made their key or a key that they made, and whoever does must hold
// what the version grants; controls A5 and A8. If what is live has changed so that the version
// would widen something else by now, that is [bawn.CodeConflict].
func (c *Control) Approve(ctx context.Context, p bawn.Principal, id string) (Deployment, error) {
	const op = "control.approve"
	a, ok := c.approval(p.Tenant, id)
	if err := c.authorize(ctx, p, policy.Approve, bawn.Ref{Tenant: p.Tenant, Function: a.Function}); err != nil {
		return Deployment{}, err
	}
	if !ok {
		return Deployment{}, noApproval(id)
	}
	refuse := func(err *bawn.Error) (Deployment, error) {
		return Deployment{}, c.refused(ctx, p, bawn.Record{Function: a.Function, Action: "approve", Control: "A5", Detail: map[string]string{"approval": id}}, err)
	}
	if !c.cfg.Solo && c.same(&a.Approval, p.String()) {
		return refuse(bawn.Errorf(bawn.CodeDenied, op, "whoever asked for this may not approve it, nor may who made their key or a key that they made").
			WithFix("have somebody else approve it: another user, or a key that neither made the other"))
	}
	by, ok := c.cfg.Current(a.Asker.principal())
	if !ok {
		return refuse(bawn.Errorf(bawn.CodeDenied, op, "who asked for this, %s, may not ask for anything any more", a.RequestedBy).
			WithFix("have %s deployed again by somebody who may", a.Function))
	}
	check := func() (d Deployment, f bawn.Function, exists bool, err error) {
		if _, ok := c.approval(p.Tenant, id); !ok {
			return d, f, false, noApproval(id)
		}
		v := a.Version
		for _, who := range []bawn.Principal{p, by} {
			if err := c.checkGrants(who, &v); err != nil {
				_, err := refuse(err)
				return d, f, false, err
			}
		}
		if err := c.checkPublic(&v); err != nil {
			return d, f, false, err
		}
		if err := c.checkInputs(&v); err != nil {
			return d, f, false, err
		}
		if err := c.checkRoutes(&v); err != nil {
			return d, f, false, err
		}
		d = Deployment{Version: v, Created: true}
		if f, exists, err = c.place(&d); err != nil {
			return d, f, exists, err
		}
		if !d.isLive(&f, exists) && !slices.Equal(widening(d.Changes), widening(a.Changes)) {
			return d, f, exists, bawn.Errorf(bawn.CodeConflict, op, "what is live has changed since this was asked for, so that it would let other things through").
				WithFix("deploy %s again, and have that approved", a.Function)
		}
		return d, f, exists, nil
	}
	c.mu.Lock()
	_, _, _, err := check()
	c.mu.Unlock()
	if err != nil {
		return Deployment{}, err
	}
	// What it was tested against may have changed since it was asked for. The tests
	// were written by who asked, and run with the rights they have: approving lends
	// them none.
	v := a.Version
	if err := c.prove(ctx, by, &v); err != nil {
		return Deployment{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d, f, exists, err := check() // testing took a while
	if err != nil {
		return Deployment{}, err
	}
	if _, ok := c.cfg.Current(by); !ok {
		return Deployment{}, ended()
	}
	d.Approval = p.String()
	key := approvalKey(a.Tenant, a.ID)
	if d.isLive(&f, exists) {
		return d, remove(ctx, c.approvals, key) // another way, meanwhile
	}
	detail := map[string]string{"approval": a.ID, "requestedBy": a.RequestedBy, "approved": p.String()}
	if err := c.publish(ctx, p, &d, &f, detail); err != nil {
		return Deployment{}, err
	}
	// It is live: a request that is left behind leads here again, and to nothing.
	if err := remove(context.WithoutCancel(ctx), c.approvals, key); err != nil {
		c.cfg.Log.Warn("an approved request could not be removed", "approval", a.ID, "error", err)
	}
	return d, nil
}

// Reject drops a request. Who asked for it may withdraw it.
func (c *Control) Reject(ctx context.Context, p bawn.Principal, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.approval(p.Tenant, id)
	action := policy.Approve
	if ok && a.RequestedBy == p.String() {
		action = policy.Deploy
	}
	if err := c.authorize(ctx, p, action, bawn.Ref{Tenant: p.Tenant, Function: a.Function}); err != nil {
		return err
	}
	if !ok {
		return noApproval(id)
	}
	what := bawn.Record{Function: a.Function, Action: "approval.reject", Detail: map[string]string{
		"approval": id, "requestedBy": a.RequestedBy, "after": a.Version.Digest, "changes": summary(a.Changes),
	}}
	return c.change(ctx, p, what, func(ctx context.Context) error {
		if err := remove(ctx, c.approvals, approvalKey(a.Tenant, a.ID)); err != nil {
			return err
		}
		c.collect(ctx)
		return nil
	})
}

// same reports whether approver is nobody else than who asked for a: the same
// principal, one that made the other's key, itself or by keys that it made, or a
// key of the same user or certificate. Who made the key that asked is as it was
// then: revoking a key between does not make its maker somebody else.
func (c *Control) same(a *Approval, approver string) bool {
	line := c.lineage(approver)
	asked := append([]string{a.RequestedBy}, a.Makers...)
	if slices.Contains(line, a.RequestedBy) || slices.Contains(asked, approver) {
		return true
	}
	if strings.HasPrefix(approver, bawn.PrincipalKey+":") && len(line) == 1 {
		return true // of a key that is gone nobody knows who made it
	}
	return slices.ContainsFunc(line, func(maker string) bool {
		kind, _, _ := strings.Cut(maker, ":")
		return (kind == bawn.PrincipalUser || kind == bawn.PrincipalCert) && slices.Contains(asked, maker)
	})
}

// lineage is a principal, who made it, who made that, and so on.
func (c *Control) lineage(principal string) []string {
	if id, isKey := strings.CutPrefix(principal, "key:"); isKey {
		return append([]string{principal}, c.cfg.Keys.Makers(id)...)
	}
	return []string{principal}
}

// checkGrants refuses a version that may call functions on which p has no
// right of its own: nobody gives a function more than they hold; control A8.
// One that is not there yet may be named by who has rights on all of the tenant.
func (c *Control) checkGrants(p bawn.Principal, v *bawn.Version) *bawn.Error {
	for _, name := range v.Perimeter.Egress.Functions {
		ref := bawn.Ref{Tenant: v.Tenant, Function: name}
		target := c.liveOf(v.Tenant, name)
		holds := slices.ContainsFunc([]policy.Action{policy.Deploy, policy.Invoke}, func(a policy.Action) bool {
			return c.cfg.Policy.Allows(policy.Request{Principal: p, Action: a, Resource: ref})
		})
		if holds && (target != nil || name == v.Function || len(p.Functions) == 0) {
			continue
		}
		return bawn.Errorf(bawn.CodeDenied, "control.grants", "egress.functions names %q, and you may neither call nor deploy that function yourself: nobody gives a function more than they hold", name).
			WithFix("take %s out of egress.functions, or have it deployed by somebody who may call %s", name, name)
	}
	return nil
}

// liveOf returns the live version of a function, or nil.
func (c *Control) liveOf(tenant, name string) *bawn.Version {
	f, _, ok := c.functions.Get(functionKey(tenant, name))
	if !ok {
		return nil
	}
	v, _, ok := c.versions.Get(versionKey(tenant, name, f.Aliases[bawn.LiveAlias]))
	if !ok {
		return nil
	}
	return &v
}

// effect is what the evidence keeps of a deployment: what was live, what will
// be, and which fields differ; control G13. Secrets are in none of them.
func (c *Control) effect(d *Deployment) map[string]string {
	m := map[string]string{"artifact": d.Version.Artifact.Digest, "content": d.Version.Digest, "after": d.Version.Digest, "changes": summary(d.Changes)}
	if d.Previous != nil {
		m["before"] = d.Previous.Digest
		m["from"] = fmt.Sprint(d.Previous.Number)
	}
	if d.Version.Compiled != nil {
		m["compiled"] = d.Version.Compiled.Digest
	}
	return m
}
