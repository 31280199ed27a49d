package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
)

const (
	maxAliases      = 50
	maxBefore       = 20
	maxFunctions    = 10000 // of a tenant
	maxKeys         = 1000  // of a tenant
	conflictRetries = 5
)

// Deployment says what a deploy did, or with dryRun would do.
type Deployment struct {
	Version  bawn.Version  `json:"version"`
	Previous *bawn.Version `json:"previous,omitempty" doc:"live before; absent for a function's first version"`
	Created  bool          `json:"created" doc:"false if a version with this very content was there already"`
	DryRun   bool          `json:"dryRun,omitempty" doc:"nothing was changed"`
	Changes  []Change      `json:"changes" nullable:"false"`
	Approval string        `json:"approval" doc:"who approved that it widens the perimeter: a principal; solo where the node has one operator only; none if it widens nothing; needed if somebody has to"`
	Notices  []string      `json:"notices,omitempty" doc:"what is missing for the version to work, and what everybody should know of it"`
	Pending  *Approval     `json:"pending,omitempty" doc:"set if nothing has changed yet: the version waits for approval"`
}

// What Deployment.Approval says besides who approved.
const (
	approvalNone   = "none"
	approvalNeeded = "needed"
	approvalSolo   = "solo"
)

// isLive reports whether what is deployed is live already.
func (d *Deployment) isLive(f *bawn.Function, exists bool) bool {
	return exists && !d.Created && f.Aliases[bawn.LiveAlias] == d.Version.Number
}

// Summary is a function and the version that calls go to.
type Summary struct {
	Function bawn.Function `json:"function"`
	Live     bawn.Version  `json:"live"`
}

// PutArtifact takes a package in; see [deploy.Gate.Accept]. One that is there
// already is not read. A package that no version runs within a day is dropped.
func (c *Control) PutArtifact(ctx context.Context, p bawn.Principal, digest string, r io.Reader) (bawn.Artifact, error) {
	if err := bawn.CheckDigest(digest); err != nil {
		return bawn.Artifact{}, err
	}
	if err := c.authorize(ctx, p, policy.Deploy, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return bawn.Artifact{}, err
	}
	if a, ok, err := c.artifact(ctx, p.Tenant, digest); err != nil || ok {
		return a, err
	}
	var a bawn.Artifact
	what := bawn.Record{Action: "artifact.put", Detail: map[string]string{"artifact": digest}}
	// Uploading takes as long as the line is slow: it is bounded by the request.
	request := ctx
	err := c.change(ctx, p, what, func(ctx context.Context) error {
		// Before the package is read, by what is there; with its own size after.
		c.mu.Lock()
		c.collect(ctx)
		err := c.checkUnused(p.Tenant, 1)
		if err == nil {
			err = c.checkPackages(p.Tenant, 1)
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if a, err = c.cfg.Gate.Accept(request, p.Tenant, digest, r); err != nil {
			return err
		}
		return c.addArtifact(context.WithoutCancel(request), p, a)
	})
	if err != nil {
		return bawn.Artifact{}, err
	}
	return a, nil
}

// addArtifact makes a package that the gate has accepted the principal's
// tenant's. If it cannot, the package goes again.
func (c *Control) addArtifact(ctx context.Context, p bawn.Principal, a bawn.Artifact) (err error) {
	undo := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(undo, changeTimeout)
		defer cancel()
		if left := c.dropUnowned(ctx, p.Tenant, a.Digest); left != nil {
			c.cfg.Log.Warn("a package that nothing uses could not be removed", "artifact", a.Digest, "error", left)
		}
	}()
	c.collect(ctx)
	// The last function that ran it may have been removed, and the package with
	// it, since the gate let it in.
	if has, err := c.cfg.Gate.Has(ctx, p.Tenant, a.Digest); err != nil {
		return err
	} else if !has {
		return bawn.Errorf(bawn.CodeConflict, "control.put", "the package was removed while it was uploaded").WithFix("deploy again")
	}
	key := artifactKey(p.Tenant, a.Digest)
	if _, _, ok := c.artifacts.Get(key); !ok {
		if err := c.checkPackages(p.Tenant, a.Size+a.Bytes); err != nil {
			return err
		}
	}
	if _, _, ok := c.artifacts.Get(key); !ok && !c.inUse()[key] {
		if err := c.checkUnused(p.Tenant, a.Size+a.Bytes); err != nil {
			return err
		}
	}
	row := artifact{a, c.cfg.Now().UTC(), p.String()}
	_, err = c.artifacts.Create(ctx, key, row)
	if bawn.ErrorCode(err) == bawn.CodeConflict {
		return nil // uploaded twice at the same time
	}
	return err
}

// artifact returns the tenant's package, if it is there whole.
func (c *Control) artifact(ctx context.Context, tenant, digest string) (bawn.Artifact, bool, error) {
	row, _, ok := c.artifacts.Get(artifactKey(tenant, digest))
	if !ok {
		return bawn.Artifact{}, false, nil
	}
	has, err := c.cfg.Gate.Has(ctx, tenant, digest)
	return row.Artifact, has, err
}

// HasArtifact reports whether the principal's tenant has uploaded the package,
// so that it need not be sent again.
func (c *Control) HasArtifact(ctx context.Context, p bawn.Principal, digest string) (bool, error) {
	if err := bawn.CheckDigest(digest); err != nil {
		return false, err
	}
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return false, err
	}
	_, ok, err := c.artifact(ctx, p.Tenant, digest)
	return ok, err
}

// Deploy makes a version of the function name from what the manifest says and a
// package that was uploaded, and lets live point to it. Content that a version
// of the function has already makes no new one: live moves there. With dryRun
// everything is checked and nothing changed.
//
// What the runtime would have to compile at each start is compiled here, once,
// and becomes a second package of the version. Then the version's tests are run,
// unless it is live already: one that fails refuses the deploy.
//
// A version that widens the perimeter, against what is live or, for a first one,
// against nothing, does not become live: it waits for the approval of somebody
// else, and the answer's Pending says which. On a node with one operator only,
// it counts as approved; control A5.
//
// Codes besides the usual ones: [bawn.CodeUnprocessable] for a manifest, for a
// package that holds no such handler, a module that cannot be compiled, or a
// test that fails;
// [bawn.CodeConflict] for a route that another function has, which the message
// names; [bawn.CodeNotFound] for a package that was not uploaded.
func (c *Control) Deploy(ctx context.Context, p bawn.Principal, name string, spec manifest.Function, digest string, dryRun bool) (_ Deployment, err error) {
	const op = "control.deploy"
	v, err := c.candidate(ctx, p, name, spec, digest)
	if err != nil {
		return Deployment{}, err
	}
	old, known := c.sameContent(&v)
	if !known && !dryRun {
		if v.Compiled, err = c.compile(ctx, &v); err != nil {
			return Deployment{}, err
		}
		defer c.dropCompiled(ctx, &v, &err)
	}
	later := false // its tests run when it is approved
	if f, _, _ := c.functions.Get(functionKey(p.Tenant, name)); !dryRun && (!known || f.Aliases[bawn.LiveAlias] != old.Number) {
		proven := &v
		if known {
			proven = &old
		}
		if later = !known && c.checkTried(&v) != nil; !later {
			if err := c.prove(ctx, p, proven); err != nil {
				return Deployment{}, err
			}
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, ok := c.artifacts.Get(artifactKey(p.Tenant, digest)); !ok {
		return Deployment{}, noArtifact(digest) // went while it was looked at
	}
	if err := c.checkRoutes(&v); err != nil {
		return Deployment{}, err
	}
	d := Deployment{Version: v, Created: true, DryRun: dryRun}
	f, exists, err := c.place(&d)
	if err != nil {
		return Deployment{}, err
	}
	if d.Created && known {
		return Deployment{}, bawn.Errorf(bawn.CodeConflict, op, "the function was removed while it was deployed").WithFix("deploy again")
	}
	switch {
	case len(widening(d.Changes)) == 0:
		d.Approval = approvalNone
	case c.cfg.Solo:
		d.Approval = approvalSolo
	default:
		d.Approval = approvalNeeded
	}
	d.Notices = c.notices(&d.Version)
	if d.isLive(&f, exists) {
		return d, nil
	}
	if refusal := c.checkFlow(&d.Version); refusal != nil {
		return Deployment{}, c.refused(ctx, p, bawn.Record{Function: name, Action: "deploy", Control: "E9"}, refusal)
	}
	if dryRun {
		return d, nil
	}
	if d.Approval == approvalNeeded {
		d.Pending, err = c.ask(ctx, p, &d)
		return d, err
	}
	if later {
		return Deployment{}, bawn.Errorf(bawn.CodeConflict, op, "what is live has changed while this was deployed").WithFix("deploy again")
	}
	approved := d.Approval
	if c.cfg.Solo {
		approved = approvalSolo
	}
	if err := c.publish(ctx, p, &d, &f, map[string]string{"approved": approved}); err != nil {
		return Deployment{}, err
	}
	return d, nil
}

// checkReach refuses what ends before it begins, and rules for addresses without
// the operator's consent; control C3. Who deploys needs no right on the secrets
// that a manifest names: naming one gives nothing, a grant does (E2).
func (c *Control) checkReach(v *bawn.Version) *bawn.Error {
	e := &v.Perimeter.Egress
	if p := e.Everything; p != nil && !p.Open(c.cfg.Now()) {
		return bawn.Errorf(bawn.CodeUnprocessable, "control.deploy", "egress.everything ended on %s already", lastDay(p)).
			WithFix("give egress.everything.until a day that is still to come, or take everything away")
	}
	if c.cfg.Consents == nil {
		return nil
	}
	for _, h := range e.Hosts {
		if err := c.cfg.Consents(h); err != nil {
			var refusal *bawn.Error
			if errors.As(err, &refusal) {
				return refusal
			}
			return bawn.Wrap(err, bawn.CodeDenied, "control.deploy", "egress.hosts: the operator has not consented to %s", h.Host)
		}
	}
	return nil
}

// notices says what is missing for v to work, with the command that adds it, and
// what everybody should know of it.
func (c *Control) notices(v *bawn.Version) []string {
	all := undeclared(v)
	e := &v.Perimeter.Egress
	if p := e.Everything; p != nil {
		all = append(all, "it may reach EVERY PUBLIC HOST until "+lastDay(p)+": "+p.Reason)
	}
	all = append(all, c.unpriced(v)...)
	if c.cfg.Vault == nil {
		return all
	}
	names := map[string]bool{}
	for _, s := range e.Secrets {
		names[s.Name] = true
	}
	for i := range v.Perimeter.Ingress.HTTP {
		if w := v.Perimeter.Ingress.HTTP[i].Access.Webhook; w != nil {
			names[w.Secret] = true
		}
	}
	for i := range e.Hosts {
		if in := e.Hosts[i].Inject; in != nil {
			names[in.Secret] = true
		}
	}
	for i := range e.Databases {
		if s := e.Databases[i].Secret; s != "" {
			names[s] = true
		}
	}
	for _, n := range sorted(names) {
		s, err := c.cfg.Vault.Get(v.Tenant, n)
		granted := slices.ContainsFunc(s.Grants, func(g bawn.SecretGrant) bool { return g.Function == v.Function })
		switch {
		case bawn.ErrorCode(err) == bawn.CodeNotFound:
			all = append(all, fmt.Sprintf("there is no secret %s yet; a secret admin makes and grants it: bawn secret set %s && bawn secret grant %s %s", n, n, n, v.Function))
		case err == nil && !granted:
			all = append(all, fmt.Sprintf("the secret %s is not granted to %s; a secret admin does it: bawn secret grant %s %s", n, v.Function, n, v.Function))
		}
	}
	return all
}

// checkPublic refuses a route whose public access has ended.
func (c *Control) checkPublic(v *bawn.Version) error {
	for _, r := range v.Perimeter.Ingress.HTTP {
		if pub := r.Access.Public; pub != nil && !pub.Open(c.cfg.Now()) {
			return bawn.Errorf(bawn.CodeUnprocessable, "control.deploy", "the route %s %s: public access ended on %s already", r.Method, r.Path, lastDay(pub)).
				WithFix("give access.public.until a day that is still to come, or take public away")
		}
	}
	return nil
}

// place finds out where d.Version belongs: which version is live, whether one
// has this content already, which number it gets, and what it changes. It
// returns the function, as it would begin where there is none yet. The caller
// holds mu.
func (c *Control) place(d *Deployment) (f bawn.Function, exists bool, err error) {
	tenant, name := d.Version.Tenant, d.Version.Function
	f, _, exists = c.functions.Get(functionKey(tenant, name))
	if exists {
		d.Previous = c.liveOf(tenant, name)
		if old, ok := c.sameContent(&d.Version); ok {
			d.Version, d.Created = old, false
		}
	} else {
		gone, _, _ := c.removed.Get(functionKey(tenant, name))
		f = bawn.Function{Tenant: tenant, Name: name, Latest: gone.Latest, Aliases: map[string]int{}, CreatedAt: c.cfg.Now().UTC()}
		n := 0
		for range c.functions.All(tenant + ".") {
			n++
		}
		q, _ := c.cfg.Tenants.Quota(tenant)
		if n >= bound(q.Functions, maxFunctions) {
			return f, false, bawn.Errorf(bawn.CodeTooLarge, "control.deploy", "the tenant has %d functions, no more are allowed", n).WithFix("remove functions that are not used")
		}
	}
	if d.Created {
		d.Version.Number = f.Latest + 1
	}
	d.Changes = diff(d.Previous, &d.Version)
	return f, exists, nil
}

// checkMove refuses to let live point to v if that lets more through than what is
// live; control A5. To go back to what was live is for emergencies and is not held
// up; everything else has a way that asks a second principal, a deploy.
func (c *Control) checkMove(ctx context.Context, p bawn.Principal, f *bawn.Function, v *bawn.Version) error {
	if refusal := c.checkFlow(v); refusal != nil {
		return c.refused(ctx, p, bawn.Record{Function: f.Name, Version: v.Number, Action: "alias", Control: "E9"}, refusal)
	}
	wider := widening(diff(c.liveOf(f.Tenant, f.Name), v))
	if c.cfg.Solo || len(wider) == 0 {
		return nil
	}
	return c.refused(ctx, p, bawn.Record{Function: f.Name, Version: v.Number, Action: "alias", Control: "A5", Detail: map[string]string{"changes": summary(wider)}},
		bawn.Errorf(bawn.CodeDenied, "control.alias", "version %d lets more through than what is live: %s", v.Number, summary(wider)).
			WithFix("deploy that content again: somebody else can approve it then; bawn rollback goes back to what was live before"))
}

// ended is the error of what took so long that the credential it was asked with
// is no good any more.
func ended() *bawn.Error {
	return bawn.Errorf(bawn.CodeUnauthenticated, "control", "the credential has ended or was revoked meanwhile").WithFix("log in again, or use another key")
}

// publish makes d.Version live, where it was put by place, and records that
// with detail added. The caller holds mu.
func (c *Control) publish(ctx context.Context, p bawn.Principal, d *Deployment, f *bawn.Function, detail map[string]string) error {
	if _, ok := c.cfg.Current(p); !ok {
		return ended()
	}
	if refusal := c.checkFlow(&d.Version); refusal != nil { // others may have been deployed since it was asked for
		return c.refused(ctx, p, bawn.Record{Function: d.Version.Function, Action: "deploy", Control: "E9"}, refusal)
	}
	tenant, name := d.Version.Tenant, d.Version.Function
	what := bawn.Record{Function: name, Version: d.Version.Number, Action: "deploy", Detail: c.effect(d)}
	maps.Copy(what.Detail, detail)
	return c.change(ctx, p, what, func(ctx context.Context) error {
		key := versionKey(tenant, name, d.Version.Number)
		if d.Created {
			if err := c.addCompiled(ctx, &d.Version); err != nil {
				return err
			}
			// A record with this number is one that no function ever pointed to.
			if err := remove(ctx, c.versions, key); err != nil {
				return err
			}
			if _, err := c.versions.Create(ctx, key, d.Version); err != nil {
				return err
			}
		}
		err := c.update(ctx, tenant, name, f, func(f *bawn.Function) error {
			f.Latest = max(f.Latest, d.Version.Number)
			point(f, d.Version.Number)
			return nil
		})
		if err != nil && d.Created {
			// Nobody has seen it. If it cannot be taken back, the next start does.
			if left := remove(ctx, c.versions, key); left != nil {
				return bawn.Wrap(left, bawn.ErrorCode(err), "control.deploy", "%s", messageOf(err))
			}
		}
		return err
	})
}

// candidate checks what is to be deployed and returns it as a version without a
// number.
func (c *Control) candidate(ctx context.Context, p bawn.Principal, name string, spec manifest.Function, digest string) (bawn.Version, error) {
	if err := bawn.CheckDigest(digest); err != nil {
		return bawn.Version{}, err
	}
	if err := c.onFunction(ctx, p, policy.Deploy, name); err != nil {
		return bawn.Version{}, err
	}
	v, err := manifest.Compile(name, spec)
	if err != nil {
		return bawn.Version{}, err
	}
	if err := c.checkPublic(&v); err != nil {
		return bawn.Version{}, err
	}
	if err := c.checkInputs(&v); err != nil {
		return bawn.Version{}, err
	}
	v.Tenant = p.Tenant
	if err := c.checkReach(&v); err != nil {
		return bawn.Version{}, c.refused(ctx, p, bawn.Record{Function: name, Action: "deploy", Control: "C3"}, err)
	}
	if err := c.cfg.Policy.CheckVersion(&v); err != nil {
		return bawn.Version{}, err
	}
	if err := c.checkGrants(p, &v); err != nil {
		return bawn.Version{}, c.refused(ctx, p, bawn.Record{Function: name, Action: "deploy", Control: "A8"}, err)
	}
	a, ok, err := c.artifact(ctx, p.Tenant, digest)
	if err != nil {
		return bawn.Version{}, err
	}
	if !ok {
		return bawn.Version{}, noArtifact(digest)
	}
	if err := c.cfg.Gate.Check(ctx, p.Tenant, a, v.Runtime, v.Handler); err != nil {
		return bawn.Version{}, err
	}
	v.Artifact = a
	v.CreatedAt, v.CreatedBy = c.cfg.Now().UTC(), p.String()
	v.Digest, err = contentDigest(&v)
	return v, err
}

func noArtifact(digest string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control.deploy", "there is no package %s", digest).WithFix("upload it first: PUT /v1/artifacts/%s", digest)
}

// contentDigest names what a version is, apart from where and when it was made.
func contentDigest(v *bawn.Version) (string, error) {
	// Structs are written in the order of their fields and maps sorted, so that
	// equal content gives equal bytes.
	raw, err := json.Marshal(struct {
		Artifact    string            `json:"artifact"`
		Runtime     bawn.Runtime      `json:"runtime"`
		Handler     string            `json:"handler"`
		Description string            `json:"description"`
		Owner       string            `json:"owner"`
		Environment map[string]string `json:"environment"`
		Labels      []string          `json:"labels,omitempty"` // what came later is left out where it says nothing: old digests stay
		Perimeter   bawn.Perimeter    `json:"perimeter"`
		Tests       []bawn.Test       `json:"tests,omitempty"`
	}{v.Artifact.Digest, v.Runtime, v.Handler, v.Description, v.Owner, v.Environment, v.Labels, v.Perimeter, v.Tests})
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInternal, "control.deploy", "the version cannot be written as JSON")
	}
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// checkRoutes refuses a version that claims a route which the live version of
// another function has. The caller holds mu.
func (c *Control) checkRoutes(v *bawn.Version) error {
	if len(v.Perimeter.Ingress.HTTP) == 0 {
		return nil
	}
	if err := c.checkHosts(v); err != nil {
		return err
	}
	// What is damaged may have the route.
	if c.functions.LostUnder(v.Tenant+".") || c.versions.LostUnder(v.Tenant+".") {
		return cmp.Or(c.functions.Trusted(), c.versions.Trusted())
	}
	claimed := map[string]*bawn.Route{}
	for i := range v.Perimeter.Ingress.HTTP {
		r := &v.Perimeter.Ingress.HTTP[i]
		for _, h := range hostsOf(r) {
			for _, m := range manifest.Overlapping(r.Method) {
				claimed[m+" "+h+manifest.PathShape(r.Path)] = r
			}
		}
	}
	// Of all tenants: they share the addresses of the node.
	for _, f := range c.functions.All("") {
		if f.Tenant == v.Tenant && f.Name == v.Function {
			continue
		}
		live, _, ok := c.versions.Get(versionKey(f.Tenant, f.Name, f.Aliases[bawn.LiveAlias]))
		if !ok {
			continue
		}
		for _, theirs := range live.Perimeter.Ingress.HTTP {
			for _, h := range hostsOf(&theirs) {
				mine := claimed[theirs.Method+" "+h+manifest.PathShape(theirs.Path)]
				if mine == nil || h != "" && f.Tenant != v.Tenant { // the domain was another tenant's before
					continue
				}
				if f.Tenant != v.Tenant { // that it is served anybody can find out by calling it
					return bawn.Errorf(bawn.CodeConflict, "control.routes", "the route %s is taken on this node", mine).
						WithFix("give it another path or method, or a domain of the tenant's own: hosts")
				}
				return bawn.Errorf(bawn.CodeConflict, "control.routes", "the route %s is taken: the function %q has %s", mine, f.Name, &theirs).
					WithFix("give one of the two another path or method, or take the route from %q first", f.Name)
			}
		}
	}
	return nil
}

// update writes a function by compare-and-swap: with is done to a copy of what
// is there, or to *fresh where nothing is. The caller holds mu.
func (c *Control) update(ctx context.Context, tenant, name string, fresh *bawn.Function, with func(*bawn.Function) error) error {
	key := functionKey(tenant, name)
	for try := 1; ; try++ {
		f, rev, ok := c.functions.Get(key)
		if !ok {
			if fresh == nil {
				return c.noFunction(tenant, name)
			}
			f = *fresh
		}
		// The table's values are shared with everybody who reads.
		f.Aliases, f.Before = maps.Clone(f.Aliases), slices.Clone(f.Before)
		if err := with(&f); err != nil {
			return err
		}
		f.UpdatedAt = c.cfg.Now().UTC()
		var err error
		if ok {
			_, err = c.functions.Update(ctx, key, f, rev)
		} else {
			_, err = c.functions.Create(ctx, key, f)
		}
		if bawn.ErrorCode(err) != bawn.CodeConflict || try == conflictRetries {
			return err
		}
	}
}

// point lets live point to version n, and remembers where it pointed.
func point(f *bawn.Function, n int) {
	was, ok := f.Aliases[bawn.LiveAlias]
	if ok && was != n {
		f.Before = slices.Insert(f.Before, 0, was)
		f.Before = f.Before[:min(len(f.Before), maxBefore)]
	}
	f.Aliases[bawn.LiveAlias] = n
}

// Functions lists the functions of the principal's tenant, or those that it is
// held to, by name.
func (c *Control) Functions(ctx context.Context, p bawn.Principal) ([]Summary, error) {
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	var all []Summary
	for _, f := range c.functions.All(p.Tenant + ".") {
		live, _, ok := c.versions.Get(versionKey(f.Tenant, f.Name, f.Aliases[bawn.LiveAlias]))
		if ok && concerns(p, f.Name) { // no version only for one that is being removed
			all = append(all, Summary{f, live})
		}
	}
	return all, nil
}

// Function returns a function and the version that ref names.
func (c *Control) Function(ctx context.Context, p bawn.Principal, ref bawn.Ref) (bawn.Function, bawn.Version, error) {
	if err := ref.Check(); err != nil {
		return bawn.Function{}, bawn.Version{}, err
	}
	if err := c.authorize(ctx, p, policy.Read, ref); err != nil {
		return bawn.Function{}, bawn.Version{}, err
	}
	f, _, ok := c.functions.Get(functionKey(ref.Tenant, ref.Function))
	if !ok {
		return bawn.Function{}, bawn.Version{}, c.noFunction(ref.Tenant, ref.Function)
	}
	n, ok := f.Resolve(ref.Qualifier)
	if !ok {
		return bawn.Function{}, bawn.Version{}, noVersion(&f, ref.Qualifier)
	}
	v, _, ok := c.versions.Get(versionKey(ref.Tenant, ref.Function, n))
	if !ok {
		return bawn.Function{}, bawn.Version{}, c.noSuchVersion(&f, n)
	}
	return f, v, nil
}

// noSuchVersion is the error for a version that was not found: one that is damaged is
// not taken for one that never was.
func (c *Control) noSuchVersion(f *bawn.Function, n int) error {
	if _, _, _, err := c.versions.Find(versionKey(f.Tenant, f.Name, n)); err != nil {
		return err
	}
	return noVersion(f, strconv.Itoa(n))
}

func noVersion(f *bawn.Function, qualifier string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control", "the function %q has no version or alias %q", f.Name, qualifier).
		WithFix("it has the aliases %s, and versions up to %d", strings.Join(slices.Sorted(maps.Keys(f.Aliases)), ", "), f.Latest)
}

// Diff is what one version changes against another.
type Diff struct {
	Function string   `json:"function"`
	Old      int      `json:"old"`
	New      int      `json:"new"`
	Changes  []Change `json:"changes" nullable:"false"`
}

// Diff says what the version or alias new changes against old; "" is what is
// live.
func (c *Control) Diff(ctx context.Context, p bawn.Principal, name, old, new string) (Diff, error) {
	_, a, err := c.Function(ctx, p, bawn.Ref{Tenant: p.Tenant, Function: name, Qualifier: old})
	if err != nil {
		return Diff{}, err
	}
	_, b, err := c.Function(ctx, p, bawn.Ref{Tenant: p.Tenant, Function: name, Qualifier: new})
	if err != nil {
		return Diff{}, err
	}
	return Diff{name, a.Number, b.Number, diff(&a, &b)}, nil
}

// Versions lists the versions of a function, newest first.
func (c *Control) Versions(ctx context.Context, p bawn.Principal, name string) ([]bawn.Version, error) {
	if err := c.onFunction(ctx, p, policy.Read, name); err != nil {
		return nil, err
	}
	f, _, ok := c.functions.Get(functionKey(p.Tenant, name))
	if !ok {
		return nil, c.noFunction(p.Tenant, name)
	}
	var all []bawn.Version
	for _, v := range c.versions.All(functionKey(p.Tenant, name) + ".") {
		if v.Number <= f.Latest {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b bawn.Version) int { return cmp.Compare(b.Number, a.Number) })
	return all, nil
}

// SetAlias lets an alias, new or not, point to a version. Moving live moves the
// routes with it.
func (c *Control) SetAlias(ctx context.Context, p bawn.Principal, name, alias string, version int) error {
	if err := bawn.CheckName("alias", alias); err != nil {
		return err
	}
	if err := c.onFunction(ctx, p, policy.Deploy, name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, _, ok := c.functions.Get(functionKey(p.Tenant, name))
	if !ok {
		return c.noFunction(p.Tenant, name)
	}
	v, _, ok := c.versions.Get(versionKey(p.Tenant, name, version))
	if !ok || version > f.Latest {
		return c.noSuchVersion(&f, version)
	}
	if alias == bawn.LiveAlias {
		if err := c.checkRoutes(&v); err != nil {
			return err
		}
	}
	if was, has := f.Aliases[alias]; has && was == version {
		return nil
	} else if !has && len(f.Aliases) >= maxAliases {
		return bawn.Errorf(bawn.CodeTooLarge, "control.alias", "the function has %d aliases, no more are allowed", len(f.Aliases)).
			WithFix("move one of them instead")
	}
	if alias == bawn.LiveAlias {
		if err := c.checkMove(ctx, p, &f, &v); err != nil {
			return err
		}
	}
	what := bawn.Record{Function: name, Version: version, Action: "alias", Detail: c.moves(&f, alias, &v)}
	return c.change(ctx, p, what, func(ctx context.Context) error {
		return c.update(ctx, p.Tenant, name, nil, func(f *bawn.Function) error {
			if alias == bawn.LiveAlias {
				point(f, version)
			} else {
				f.Aliases[alias] = version
			}
			return nil
		})
	})
}

// moves is what the evidence keeps of an alias that will point to v: where it
// pointed, and which fields differ; control G13.
func (c *Control) moves(f *bawn.Function, alias string, v *bawn.Version) map[string]string {
	m := map[string]string{"alias": alias, "from": fmt.Sprint(f.Aliases[alias]), "to": fmt.Sprint(v.Number), "after": v.Digest}
	if was, _, ok := c.versions.Get(versionKey(f.Tenant, f.Name, f.Aliases[alias])); ok {
		m["before"], m["changes"] = was.Digest, summary(diff(&was, v))
	}
	return m
}

// Rollback lets live point to version to, or, with 0, to where it pointed
// before: done again, it goes back further. It returns where live pointed and
// where it points now.
func (c *Control) Rollback(ctx context.Context, p bawn.Principal, name string, to int) (from, now int, err error) {
	if err := c.onFunction(ctx, p, policy.Deploy, name); err != nil {
		return 0, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, _, ok := c.functions.Get(functionKey(p.Tenant, name))
	if !ok {
		return 0, 0, c.noFunction(p.Tenant, name)
	}
	from = f.Aliases[bawn.LiveAlias]
	if to == 0 {
		if len(f.Before) == 0 {
			return 0, 0, bawn.Errorf(bawn.CodeConflict, "control.rollback", "the function %q has no earlier version that was live", name).
				WithFix("name the version to go to; there are versions up to %d", f.Latest)
		}
		to = f.Before[0]
	}
	v, _, ok := c.versions.Get(versionKey(p.Tenant, name, to))
	if !ok || to > f.Latest {
		return 0, 0, c.noSuchVersion(&f, to)
	}
	if to == from {
		return from, to, nil
	}
	if err := c.checkRoutes(&v); err != nil {
		return 0, 0, err
	}
	if !slices.Contains(f.Before, to) {
		if err := c.checkMove(ctx, p, &f, &v); err != nil {
			return 0, 0, err
		}
	}
	what := bawn.Record{Function: name, Version: to, Action: "rollback", Detail: c.moves(&f, bawn.LiveAlias, &v)}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		return c.update(ctx, p.Tenant, name, nil, func(f *bawn.Function) error {
			f.Aliases[bawn.LiveAlias] = to
			// Going back forgets what lay between, so that going back again
			// does not go forward.
			if i := slices.Index(f.Before, to); i >= 0 {
				f.Before = f.Before[i+1:]
			}
			return nil
		})
	})
	if err != nil {
		return 0, 0, err
	}
	return from, to, nil
}

// Remove takes a function away with all its versions, and the packages that
// nothing else runs. Calls are refused from the moment it returns. A function
// that takes the name later goes on with the numbers of its versions.
func (c *Control) Remove(ctx context.Context, p bawn.Principal, name string) error {
	if err := c.onFunction(ctx, p, policy.Remove, name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := functionKey(p.Tenant, name)
	f, rev, ok := c.functions.Get(key)
	if !ok {
		return c.noFunction(p.Tenant, name)
	}
	what := bawn.Record{Function: name, Action: "remove", Detail: map[string]string{"versions": fmt.Sprint(f.Latest)}}
	if live := c.liveOf(p.Tenant, name); live != nil {
		what.Detail["before"] = live.Digest
	}
	return c.change(ctx, p, what, func(ctx context.Context) error {
		gone := removal{f.Latest, c.cfg.Now().UTC()}
		_, tombRev, had := c.removed.Get(key)
		var err error
		if had {
			_, err = c.removed.Update(ctx, key, gone, tombRev)
		} else {
			_, err = c.removed.Create(ctx, key, gone)
		}
		if err != nil {
			return err
		}
		// Grants first: whoever takes the name later must find none.
		if c.cfg.Vault != nil {
			if err := c.cfg.Vault.RemoveFunction(ctx, p.Tenant, name); err != nil {
				return err
			}
		}
		if err := c.functions.Delete(ctx, key, rev); err != nil {
			return err
		}
		// From here the function is gone. What cannot be cleared away now is at
		// the next start.
		if err := c.clear(ctx, p.Tenant, name); err != nil {
			what.Detail["left"] = messageOf(err)
		}
		return nil
	})
}

// clear removes the versions of a function that is gone, and its packages. The
// caller holds mu.
func (c *Control) clear(ctx context.Context, tenant, name string) error {
	digests := map[string]string{}
	for key, v := range c.versions.All(functionKey(tenant, name) + ".") {
		for _, digest := range packages(&v) {
			digests[artifactKey(tenant, digest)] = digest
		}
		if err := remove(ctx, c.versions, key); err != nil {
			return err
		}
	}
	for key, a := range c.approvals.All(tenant + ".") {
		if a.Function != name {
			continue
		}
		for _, digest := range packages(&a.Version) {
			digests[artifactKey(tenant, digest)] = digest
		}
		if err := remove(ctx, c.approvals, key); err != nil {
			return err
		}
	}
	used := c.inUse()
	for key, digest := range digests {
		if !used[key] {
			if err := c.dropArtifact(ctx, key, digest); err != nil {
				return err
			}
		}
	}
	return nil
}
