package secret

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// Verify has check look at each version of a secret that has not ended, the newest
// first, until it says yes, and returns whether it did: for the webhooks of a
// function that names the secret in a route and has a grant for it; control E2. The
// first such use of a version is recorded, and every one that is refused. check must
// not keep the value. The errors are those of [Vault.Use].
func (v *Vault) Verify(ctx context.Context, fn *bawn.Version, name, invocation string, check func(value []byte) bool) (bool, error) {
	req := policy.Request{
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: fn.Function + "@" + itoa(fn.Number), Name: fn.Function, Tenant: fn.Tenant},
		Action:    policy.Secret, Resource: bawn.Ref{Tenant: fn.Tenant}, Object: policy.Object{Kind: policy.Vault, ID: name},
		Caller: fn, Invocation: invocation,
	}
	row, err := v.may(fn, name, Verify, &req)
	if err != nil {
		return false, err
	}
	// Whoever sends something decides how often this is asked: that must not be how
	// fast the log fills.
	key := fn.Ref().String() + " " + fn.Digest + " " + name + " " + itoa(row.Latest)
	v.keysMu.RLock()
	known := v.verified[key]
	v.keysMu.RUnlock()
	if !known || !v.cfg.Policy.Allows(req) {
		d, err := v.cfg.Policy.Authorize(ctx, req)
		if err != nil {
			return false, err
		}
		if !d.Allow {
			return false, bawn.Errorf(bawn.CodeDenied, "secret.use", "%s", d.Reason).WithFix("%s", d.Fix)
		}
		v.keysMu.Lock()
		if v.verified == nil || len(v.verified) >= maxNames {
			v.verified = map[string]bool{}
		}
		v.verified[key] = true
		v.keysMu.Unlock()
	}
	opened := false
	versions := v.alive(row.Secret).Versions
	for i := len(versions) - 1; i >= 0; i-- {
		value, e := v.openFor(fn, spot{row.Tenant, row.Name, versions[i].Number})
		if e != nil {
			err = e // it may have ended just now
			continue
		}
		opened = true
		ok := check(value.Bytes())
		value.Clear()
		if ok {
			v.readers.add(secretKey(fn.Tenant, name), Reader{
				Function: fn.Function, Version: fn.Number, Secret: versions[i].Number, For: Verify, First: v.cfg.Now().UTC(),
			})
			return true, nil
		}
	}
	if opened {
		err = nil
	}
	return false, err
}
