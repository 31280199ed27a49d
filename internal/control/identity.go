package control

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

// onIdentities authorises a look at or a change of who is known in the principal's
// tenant. Nobody has a say in another: an operator makes a tenant with a key of its
// administrator, and acts in it as that, so that its own log shows what was done.
func (c *Control) onIdentities(ctx context.Context, p bawn.Principal) error {
	return c.authorize(ctx, p, policy.Identities, bawn.Ref{Tenant: p.Tenant})
}

// Issuers lists the issuers of the principal's tenant.
func (c *Control) Issuers(ctx context.Context, p bawn.Principal) ([]bawn.Issuer, error) {
	if err := c.onIdentities(ctx, p); err != nil {
		return nil, err
	}
	return c.cfg.Identity.Issuers(p.Tenant), nil
}

// Issuer returns one issuer.
func (c *Control) Issuer(ctx context.Context, p bawn.Principal, name string) (bawn.Issuer, error) {
	if err := c.onIdentities(ctx, p); err != nil {
		return bawn.Issuer{}, err
	}
	i, ok := c.cfg.Identity.Issuer(p.Tenant, name)
	if !ok {
		return i, noIssuer(name)
	}
	return i, nil
}

func noIssuer(name string) error {
	return bawn.Errorf(bawn.CodeNotFound, "control", "there is no issuer %.63q", name).WithFix("bawn issuer ls lists the issuers that there are")
}

// PutIssuer makes an issuer of the principal's tenant, or with replace gives one
// other settings. An authority for certificates, and a server that is not on the
// public internet, are for an operator; so is a role that only operators have:
// nobody lets others be what they are not; control A8.
func (c *Control) PutIssuer(ctx context.Context, p bawn.Principal, want bawn.Issuer, replace bool) (bawn.Issuer, error) {
	if err := c.onIdentities(ctx, p); err != nil {
		return bawn.Issuer{}, err
	}
	want.Tenant, want.CreatedBy = p.Tenant, p.String()
	what := bawn.Record{Action: "issuer.create", Detail: map[string]string{"issuer": want.Name, "after": describe(want)}}
	if replace {
		what.Action = "issuer.replace"
	}
	if err := mayVouch(p, want); err != nil {
		what.Control = "A8"
		return bawn.Issuer{}, c.refused(ctx, p, what, err)
	}
	want, err := c.cfg.Identity.CheckIssuer(want)
	if err != nil {
		return bawn.Issuer{}, err
	}
	what.Detail["after"] = describe(want)
	c.mu.Lock() // what the record says was there is still there when it is replaced
	defer c.mu.Unlock()
	old, had := c.cfg.Identity.Issuer(p.Tenant, want.Name)
	if replace && !had {
		return bawn.Issuer{}, noIssuer(want.Name)
	}
	if replace {
		what.Detail["before"] = describe(old)
	}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		want, err = c.cfg.Identity.PutIssuer(ctx, want, replace)
		return err
	})
	return want, err
}

// mayVouch refuses an issuer that only an operator may configure.
func mayVouch(p bawn.Principal, want bawn.Issuer) *bawn.Error {
	only := func(what string) *bawn.Error {
		return bawn.Errorf(bawn.CodeDenied, "control.issuer", "%s is for an operator to configure", what).
			WithFix("ask an operator of the installation")
	}
	if p.Tenant == bawn.DefaultTenant && p.Has(bawn.RoleOperator) {
		return nil
	}
	for _, roles := range want.Roles {
		if slices.Contains(roles, bawn.RoleOperator) {
			return only("an issuer that gives the role operator")
		}
	}
	switch {
	case want.Kind == bawn.IssuerCA:
		return only("an authority for client certificates")
	case want.Private:
		return only("an issuer whose server is not on the public internet")
	}
	return nil
}

// describe writes an issuer's settings in one line, as the evidence has them
// before and after a change.
func describe(i bawn.Issuer) string {
	var b strings.Builder
	add := func(name, value string) {
		if value != "" {
			b.WriteString(name + "=" + strconv.Quote(value) + " ")
		}
	}
	add("kind", i.Kind)
	add("url", i.URL)
	add("audience", i.Audience)
	add("client", i.ClientID)
	add("algorithms", strings.Join(i.Algorithms, ","))
	add("claim", i.RoleClaim)
	for _, k := range slices.Sorted(maps.Keys(i.Require)) {
		add("require."+k, i.Require[k])
	}
	for _, k := range slices.Sorted(maps.Keys(i.Roles)) {
		for _, r := range i.Roles[k] {
			add("role."+string(r), k)
		}
	}
	if i.Private {
		add("private", "true")
	}
	if i.Kind == bawn.IssuerOIDC {
		add("skew", i.ClockSkew.String())
		add("life", i.MaxLife.String())
	}
	if i.CA != "" {
		add("roots", strconv.Itoa(strings.Count(i.CA, "BEGIN CERTIFICATE")))
	}
	return strings.TrimSpace(b.String())
}

// RemoveIssuer forgets an issuer; whoever it vouches for is out at once.
func (c *Control) RemoveIssuer(ctx context.Context, p bawn.Principal, name string) error {
	if err := c.onIdentities(ctx, p); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.cfg.Identity.Issuer(p.Tenant, name)
	if !ok {
		return noIssuer(name)
	}
	what := bawn.Record{Action: "issuer.remove", Detail: map[string]string{"issuer": name, "before": describe(old)}}
	return c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Identity.RemoveIssuer(ctx, p.Tenant, name) })
}

// Revocations lists what was revoked in the principal's tenant.
func (c *Control) Revocations(ctx context.Context, p bawn.Principal) ([]bawn.Revocation, error) {
	if err := c.onIdentities(ctx, p); err != nil {
		return nil, err
	}
	return c.cfg.Identity.Revocations(p.Tenant), nil
}

// Revoke ends what was issued to want.Principal in the principal's tenant, at once.
// An issuer must be there; a user or a certificate needs not have been seen before.
func (c *Control) Revoke(ctx context.Context, p bawn.Principal, want bawn.Revocation) (bawn.Revocation, error) {
	if err := c.onIdentities(ctx, p); err != nil {
		return bawn.Revocation{}, err
	}
	want.Tenant, want.CreatedBy = p.Tenant, p.String()
	if name, ok := strings.CutPrefix(want.Principal, "issuer:"); ok {
		if _, ok := c.cfg.Identity.Issuer(p.Tenant, name); !ok {
			return bawn.Revocation{}, noIssuer(name)
		}
	}
	if user, ok := strings.CutPrefix(want.Principal, "user:"); ok {
		name, _, _ := strings.Cut(user, ":")
		if _, ok := c.cfg.Identity.Issuer(p.Tenant, name); !ok {
			return bawn.Revocation{}, noIssuer(name)
		}
	}
	if err := c.cfg.Identity.CheckRevocation(want); err != nil {
		return bawn.Revocation{}, err
	}
	what := bawn.Record{Action: "revoke", Reason: want.Reason, Detail: map[string]string{"who": want.Principal, "barred": strconv.FormatBool(want.Barred)}}
	err := c.change(ctx, p, what, func(ctx context.Context) (err error) {
		want, err = c.cfg.Identity.Revoke(ctx, want)
		return err
	})
	return want, err
}

// Lift takes a revocation back.
func (c *Control) Lift(ctx context.Context, p bawn.Principal, id string) error {
	if err := c.onIdentities(ctx, p); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.cfg.Identity.Revocations(p.Tenant)
	at := slices.IndexFunc(all, func(r bawn.Revocation) bool { return r.ID == id })
	if at < 0 {
		return bawn.Errorf(bawn.CodeNotFound, "control", "there is no revocation %.40q", id).WithFix("bawn revoke --list shows what was revoked")
	}
	what := bawn.Record{Action: "revoke.lift", Detail: map[string]string{"who": all[at].Principal, "before": strconv.FormatBool(all[at].Barred), "id": id}}
	return c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Identity.Lift(ctx, p.Tenant, id) })
}
