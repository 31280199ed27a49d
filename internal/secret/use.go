package secret

import (
	"context"
	"slices"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// Purpose says what a function uses a secret for. What a manifest gives for one
// purpose is not given for another: what is injected outside cannot be read inside.
type Purpose string

// The purposes.
const (
	Read   Purpose = "read"     // by the code of the function; egress.secrets
	File   Purpose = "file"     // as a file in memory; egress.secrets with file
	Inject Purpose = "inject"   // outside, into requests; egress.hosts
	Login  Purpose = "database" // outside, to a database; egress.databases
	Verify Purpose = "webhook"  // outside, to see who signed a request; ingress.http access.webhook
)

// UseRequest is one use of a secret by a function.
type UseRequest struct {
	Version    *bawn.Version // of the function
	Instance   string
	Invocation string // empty before the first
	Name       string // of the secret
	Number     int    // of its version; 0 is the current one
	For        Purpose
	// Counted says that the caller has recorded many such decisions of this
	// invocation and counts what more is allowed; a denial is recorded all the same.
	Counted bool

	// On whose behalf, as in [policy.Request].
	Origin bawn.Principal
	Chain  []bawn.Ref
	Hops   int
	Order  int
	Called []string
}

// Use returns the value of a secret for a function: if its manifest asks for it for
// this purpose, and a secret admin granted it, and no rule forbids it; control E2.
// Either way the decision is recorded, and if it cannot be, the answer is no. Whoever
// gets the value clears it. CodeDenied means that the function may not have it, with
// the detail in the record alone; CodeNotFound that the version is not there, or not
// any more; CodeUnavailable that it cannot be opened.
func (v *Vault) Use(ctx context.Context, r UseRequest) (Value, error) {
	fn := r.Version
	req := policy.Request{
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: fn.Function + "@" + itoa(fn.Number), Name: fn.Function, Tenant: fn.Tenant}, Action: policy.Secret, Resource: bawn.Ref{Tenant: fn.Tenant}, Object: policy.Object{Kind: policy.Vault, ID: r.Name},
		Caller: fn, Invocation: r.Invocation, Origin: r.Origin, Chain: r.Chain, Hops: r.Hops, Order: r.Order, Called: r.Called,
	}
	row, err := v.may(fn, r.Name, r.For, &req)
	if err != nil {
		return Value{}, err
	}
	d := policy.Decision{Allow: r.Counted && v.cfg.Policy.Allows(req)}
	if !d.Allow {
		d, err = v.cfg.Policy.Authorize(ctx, req)
	}
	switch {
	case err != nil:
		return Value{}, err
	case !d.Allow:
		return Value{}, bawn.Errorf(bawn.CodeDenied, "secret.use", "%s", d.Reason).WithFix("%s", d.Fix)
	}
	value, err := v.value(fn, &row, r.Number)
	if err != nil {
		return Value{}, err
	}
	v.readers.add(secretKey(fn.Tenant, r.Name), Reader{
		Function: fn.Function, Version: fn.Number, Instance: r.Instance, Secret: value.Number(), For: r.For, First: v.cfg.Now().UTC(),
	})
	return value, nil
}

// may looks at manifest and grant, and writes into req why it is denied if it is.
func (v *Vault) may(fn *bawn.Version, name string, p Purpose, req *policy.Request) (secretRow, error) {
	row, _, err := v.find(fn.Tenant, name)
	switch code := bawn.ErrorCode(err); {
	case code != "" && code != bawn.CodeNotFound:
		return row, err
	case !asks(fn, name, p):
		req.Without, req.Fix = "the manifest does not ask for it", manifestLine(name, p)
	case code == bawn.CodeNotFound:
		req.Without, req.Fix = "there is no such secret", "bawn secret set "+name
	case !granted(&row.Secret, fn.Function):
		req.Without, req.Fix = "the secret is not granted to the function", "have a secret admin grant it: bawn secret grant "+name+" "+fn.Function
	}
	return row, nil
}

// manifestLine is what of a manifest would ask for a secret.
func manifestLine(name string, p Purpose) string {
	switch p {
	case Inject:
		return "name it in the rule of the host: inject: {secret: " + name + ", header: Authorization}"
	case Login:
		return "name it in the database: secret: " + name
	case Verify:
		return "name it in the route's access: webhook: {kind: github, secret: " + name + "}"
	case File:
		return "egress.secrets: [{name: " + name + ", file: true}]"
	}
	return "egress.secrets: [" + name + "]"
}

// asks reports whether the manifest of fn asks for a secret for a purpose.
func asks(fn *bawn.Version, name string, p Purpose) bool {
	e := &fn.Perimeter.Egress
	switch p {
	case Read:
		return slices.ContainsFunc(e.Secrets, func(s bawn.SecretUse) bool { return s.Name == name })
	case File:
		return slices.ContainsFunc(e.Secrets, func(s bawn.SecretUse) bool { return s.Name == name && s.File })
	case Inject:
		return slices.ContainsFunc(e.Hosts, func(h bawn.Host) bool { return h.Inject != nil && h.Inject.Secret == name })
	case Verify:
		return slices.ContainsFunc(fn.Perimeter.Ingress.HTTP, func(r bawn.Route) bool {
			return r.Access.Webhook != nil && r.Access.Webhook.Secret == name
		})
	case Login:
		return slices.ContainsFunc(e.Databases, func(d bawn.Database) bool { return d.Secret == name })
	}
	return false
}

// asked lists the secrets that the manifest of fn asks for, for whatever purpose.
func asked(fn *bawn.Version) []string {
	var all []string
	e := &fn.Perimeter.Egress
	for _, s := range e.Secrets {
		all = append(all, s.Name)
	}
	for _, h := range e.Hosts {
		if h.Inject != nil {
			all = append(all, h.Inject.Secret)
		}
	}
	for _, d := range e.Databases {
		if d.Secret != "" {
			all = append(all, d.Secret)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Purposes says for what the manifest of fn asks for a secret.
func Purposes(fn *bawn.Version, name string) []Purpose {
	var all []Purpose
	for _, p := range []Purpose{Read, File, Inject, Login, Verify} {
		if asks(fn, name, p) {
			all = append(all, p)
		}
	}
	return all
}

// live returns the version with that number, or the current one for 0, if it has not
// ended.
func live(s *bawn.Secret, number int, now time.Time) (bawn.SecretVersion, bool) {
	for i := len(s.Versions) - 1; i >= 0; i-- {
		n := s.Versions[i]
		if (number == 0 && n.Ends == nil || n.Number == number) && (n.Ends == nil || n.Ends.After(now)) {
			return n, true
		}
	}
	return bawn.SecretVersion{}, false
}

// value opens a version of a secret with the key of the function. Between row and
// value a rotation may wipe what was current: then it is looked up again.
func (v *Vault) value(fn *bawn.Version, row *secretRow, number int) (Value, error) {
	for try := 0; ; try++ {
		n, ok := live(&row.Secret, number, v.cfg.Now())
		if !ok {
			return Value{}, bawn.Errorf(bawn.CodeNotFound, "secret.use", "the secret %s has no version %d, or not any more", row.Name, number).
				WithFix("read the current version")
		}
		value, err := v.openFor(fn, spot{row.Tenant, row.Name, n.Number})
		if err == nil || try == 3 {
			return value, err
		}
		again, _, lost := v.find(row.Tenant, row.Name)
		if lost != nil {
			return Value{}, lost
		}
		row = &again
	}
}

func (v *Vault) openFor(fn *bawn.Version, s spot) (Value, error) {
	e, _, ok, err := v.values.Find(s.key())
	if err == nil && !ok {
		err = s.unsealFailed()
	}
	if err != nil {
		return Value{}, err
	}
	k, err := v.functionKey(fn.Tenant, fn.Function)
	if err != nil {
		return Value{}, err
	}
	data, err := v.unseal(s, &e, fn.Function, k)
	if err != nil {
		return Value{}, err
	}
	return newValue(data, s.number), nil
}

// Holds reports whether a function may still hold a version of a secret: it is granted,
// and the version has not ended. Whoever has kept a value asks before using it again.
func (v *Vault) Holds(fn *bawn.Version, name string, number int) bool {
	row, _, err := v.find(fn.Tenant, name)
	if err != nil || !granted(&row.Secret, fn.Function) {
		return false
	}
	_, ok := live(&row.Secret, number, v.cfg.Now())
	return ok
}

// Current returns the number of the current version, or 0 if there is none.
func (v *Vault) Current(tenant, name string) int {
	row, _, err := v.find(tenant, name)
	if err != nil {
		return 0
	}
	n, _ := live(&row.Secret, 0, v.cfg.Now())
	return n.Number
}

// Previous returns the number of the newest version before the current one that a
// function may read, or 0.
func (v *Vault) Previous(fn *bawn.Version, name string) int {
	row, _, err := v.find(fn.Tenant, name)
	if err != nil || !granted(&row.Secret, fn.Function) || !asks(fn, name, Read) {
		return 0
	}
	newest := 0
	for _, n := range row.Versions {
		if n.Ends != nil && n.Ends.After(v.cfg.Now()) {
			newest = max(newest, n.Number)
		}
	}
	return newest
}

// Redactor finds the values that a function may use, in every version that has not
// ended; nil if there are none. It is as of now: who keeps one asks again after a
// while. To ask costs next to nothing while no secret changes.
func (v *Vault) Redactor(fn *bawn.Version) *Redactor {
	if len(asked(fn)) == 0 {
		return nil
	}
	key, now := fn.Ref().String(), v.changes.Load()
	v.keysMu.RLock()
	made, ok := v.redactors[key]
	v.keysMu.RUnlock()
	if ok && made.changes == now && fn.Digest == made.digest {
		return made.redactor
	}
	made = keptRedactor{now, fn.Digest, v.redactor(fn)}
	v.keysMu.Lock()
	defer v.keysMu.Unlock()
	if v.redactors == nil || len(v.redactors) >= maxNames {
		v.redactors = map[string]keptRedactor{}
	}
	v.redactors[key] = made
	return made.redactor
}

// keptRedactor is a redactor, and how many changes it knows of.
type keptRedactor struct {
	changes  uint64
	digest   string
	redactor *Redactor
}

func (v *Vault) redactor(fn *bawn.Version) *Redactor {
	var values [][]byte
	defer func() {
		for _, b := range values {
			clear(b)
		}
	}()
	for _, name := range asked(fn) {
		row, _, err := v.find(fn.Tenant, name)
		if err != nil || !granted(&row.Secret, fn.Function) {
			continue
		}
		for _, n := range v.alive(row.Secret).Versions {
			if value, err := v.openFor(fn, spot{row.Tenant, row.Name, n.Number}); err == nil {
				values = append(values, value.Bytes())
			}
		}
	}
	return NewRedactor(values)
}

func itoa(n int) string { return strconv.Itoa(n) }
