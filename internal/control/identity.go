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

// onIdentities authorises a look at or a change of who is known in a tenant: the
// principal's own, or with tenant any that an operator names.
func (c *Control) onIdentities(ctx context.Context, p bawn.Principal, tenant string) (string, error) {
	if tenant == "" {
		tenant = p.Tenant
	}
	if err := bawn.CheckName("tenant", tenant); err != nil {
		return "", err
	}
	if err := c.authorize(ctx, p, policy.Identities, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return "", err
	}
	if tenant != p.Tenant && !isOperator(p) {
		return "", bawn.Errorf(bawn.CodeNotFound, "control", "there is no tenant %q", tenant).WithFix("leave the tenant out: it is the one of your credential")
	}
	if _, _, ok := c.cfg.Tenants.get(tenant); !ok {
		return "", noTenant(tenant) // what is kept for a name must not wait for who gets it
	}
	return tenant, nil
}

// isOperator reports whether p answers for the installation.
func isOperator(p bawn.Principal) bool {
	return p.Tenant == bawn.DefaultTenant && p.Has(bawn.RoleOperator)
}

// Issuers lists the issuers of a tenant; "" is the principal's own.
func (c *Control) Issuers(ctx context.Context, p bawn.Principal, tenant string) ([]bawn.Issuer, error) {
	tenant, err := c.onIdentities(ctx, p, tenant)
	if err != nil {
		return nil, err
	}
	return c.cfg.Identity.Issuers(tenant), nil
}

// Issuer returns one issuer.
func (c *Control) Issuer(ctx context.Context, p bawn.Principal, tenant, name string) (bawn.Issuer, error) {
	tenant, err := c.onIdentities(ctx, p, tenant)
	if err != nil {
		return bawn.Issuer{}, err
	}
	i, ok := c.cfg.Identity.Issuer(tenant, name)
	if !ok {
		return i, noIssuer(name)
	}
	return i, nil
}

func noIssuer(name string) error {
	return bawn.Errorf(bawn.CodeNotFound, "control", "there is no issuer %.63q", name).WithFix("bawn issuer ls lists the issuers that there are")
}

// PutIssuer makes an issuer, or with replace gives one other settings. An
// authority for certificates, and a server that is not on the public internet, are
// for an operator; so is a role that only operators have: nobody lets others be
// what he is not himself.
func (c *Control) PutIssuer(ctx context.Context, p bawn.Principal, want bawn.Issuer, replace bool) (bawn.Issuer, error) {
	tenant, err := c.onIdentities(ctx, p, want.Tenant)
	if err != nil {
		return bawn.Issuer{}, err
	}
	want.Tenant, want.CreatedBy = tenant, p.String()
	if !isOperator(p) {
		only := func(what string) (bawn.Issuer, error) {
			return bawn.Issuer{}, bawn.Errorf(bawn.CodeDenied, "control", "%s is for an operator to configure", what).
				WithFix("ask an operator of the installation")
		}
		switch {
		case want.Kind == bawn.IssuerCA:
			return only("an authority for client certificates")
		case want.Private:
			return only("an issuer whose server is not on the public internet")
		}
	}
	for _, roles := range want.Roles {
		if slices.Contains(roles, bawn.RoleOperator) && (!isOperator(p) || tenant != bawn.DefaultTenant) {
			return bawn.Issuer{}, bawn.Errorf(bawn.CodeDenied, "control", "the role operator can be given only by an operator, and only in the tenant %s", bawn.DefaultTenant).
				WithFix("leave it out of the roles")
		}
	}
	if want, err = c.cfg.Identity.CheckIssuer(want); err != nil {
		return bawn.Issuer{}, err
	}
	old, had := c.cfg.Identity.Issuer(tenant, want.Name)
	if replace && !had {
		return bawn.Issuer{}, noIssuer(want.Name)
	}
	what := bawn.Record{Action: "issuer.create", Detail: map[string]string{"issuer": want.Name, "of": tenant, "after": describe(want)}}
	if replace {
		what.Action, what.Detail["before"] = "issuer.replace", describe(old)
	}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		want, err = c.cfg.Identity.PutIssuer(ctx, want, replace)
		return err
	})
	return want, err
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
func (c *Control) RemoveIssuer(ctx context.Context, p bawn.Principal, tenant, name string) error {
	tenant, err := c.onIdentities(ctx, p, tenant)
	if err != nil {
		return err
	}
	old, ok := c.cfg.Identity.Issuer(tenant, name)
	if !ok {
		return noIssuer(name)
	}
	what := bawn.Record{Action: "issuer.remove", Detail: map[string]string{"issuer": name, "of": tenant, "before": describe(old)}}
	return c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Identity.RemoveIssuer(ctx, tenant, name) })
}

// Revocations lists what was revoked in a tenant.
func (c *Control) Revocations(ctx context.Context, p bawn.Principal, tenant string) ([]bawn.Revocation, error) {
	tenant, err := c.onIdentities(ctx, p, tenant)
	if err != nil {
		return nil, err
	}
	return c.cfg.Identity.Revocations(tenant), nil
}

// Revoke ends what was issued to want.Principal, at once. An issuer must be there;
// a user or a certificate needs not have been seen before.
func (c *Control) Revoke(ctx context.Context, p bawn.Principal, want bawn.Revocation) (bawn.Revocation, error) {
	tenant, err := c.onIdentities(ctx, p, want.Tenant)
	if err != nil {
		return bawn.Revocation{}, err
	}
	want.Tenant, want.CreatedBy = tenant, p.String()
	if name, ok := strings.CutPrefix(want.Principal, "issuer:"); ok {
		if _, ok := c.cfg.Identity.Issuer(tenant, name); !ok {
			return bawn.Revocation{}, noIssuer(name)
		}
	}
	if user, ok := strings.CutPrefix(want.Principal, "user:"); ok {
		name, _, _ := strings.Cut(user, ":")
		if _, ok := c.cfg.Identity.Issuer(tenant, name); !ok {
			return bawn.Revocation{}, noIssuer(name)
		}
	}
	if err := c.cfg.Identity.CheckRevocation(want); err != nil {
		return bawn.Revocation{}, err
	}
	what := bawn.Record{Action: "revoke", Reason: want.Reason, Detail: map[string]string{"who": want.Principal, "of": tenant, "barred": strconv.FormatBool(want.Barred)}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		want, err = c.cfg.Identity.Revoke(ctx, want)
		return err
	})
	return want, err
}

// Lift takes a revocation back.
func (c *Control) Lift(ctx context.Context, p bawn.Principal, tenant, id string) error {
	tenant, err := c.onIdentities(ctx, p, tenant)
	if err != nil {
		return err
	}
	all := c.cfg.Identity.Revocations(tenant)
	at := slices.IndexFunc(all, func(r bawn.Revocation) bool { return r.ID == id })
	if at < 0 {
		return bawn.Errorf(bawn.CodeNotFound, "control", "there is no revocation %.40q", id).WithFix("bawn revoke --list shows what was revoked")
	}
	what := bawn.Record{Action: "revoke.lift", Detail: map[string]string{"who": all[at].Principal, "of": tenant, "id": id}}
	return c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Identity.Lift(ctx, tenant, id) })
}
