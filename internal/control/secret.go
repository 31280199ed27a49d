package control

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/secret"
)

// How long the value before lives after a rotation.
const (
	DefaultSecretWindow = 10 * time.Minute
	MaxSecretWindow     = 30 * 24 * time.Hour
)

// SecretUsers says who may use a secret, and who has.
type SecretUsers struct {
	Secret  bawn.Secret     `json:"secret"`
	May     []SecretUser    `json:"may" nullable:"false" doc:"sorted by function"`
	Since   time.Time       `json:"since" doc:"of readers: when the node started"`
	Readers []secret.Reader `json:"readers" nullable:"false" doc:"who has used a version since then, newest first"`
}

// SecretUser is one function that a secret is granted to, or whose live version asks
// for it. It takes both to have it.
type SecretUser struct {
	Function string           `json:"function"`
	Granted  bool             `json:"granted"`
	Version  int              `json:"version,omitempty" doc:"the live version, if it asks for the secret"`
	For      []secret.Purpose `json:"for,omitempty" doc:"what that asks for it for: read, file, inject, database"`
	// Old are the versions of the secret but the current one that the function still
	// may hold: it has used them, and they have not ended.
	Old []int `json:"old,omitempty" doc:"versions of the secret before the current one that it has used and that have not ended"`
}

// onSecret authorises a change of a secret; control E2.
func (c *Control) onSecret(ctx context.Context, p bawn.Principal, name string) error {
	if err := bawn.CheckName("secret", name); err != nil {
		return err
	}
	return c.allowed(ctx, policy.Request{Principal: p, Action: policy.Grant, Resource: bawn.Ref{Tenant: p.Tenant}, Object: policy.Object{Kind: policy.Vault, ID: name}})
}

// Secrets lists the secrets of the principal's tenant, without their values. Who is
// held to some functions sees what is granted to these.
func (c *Control) Secrets(ctx context.Context, p bawn.Principal) ([]bawn.Secret, error) {
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	all := []bawn.Secret{}
	for _, s := range c.cfg.Vault.List(p.Tenant) {
		if s, ok := seenBy(p, s); ok {
			all = append(all, s)
		}
	}
	return all, nil
}

// seenBy leaves out of a secret what p has nothing to do with.
func seenBy(p bawn.Principal, s bawn.Secret) (bawn.Secret, bool) {
	if len(p.Functions) == 0 {
		return s, true
	}
	s.Grants = slices.DeleteFunc(slices.Clone(s.Grants), func(g bawn.SecretGrant) bool { return !concerns(p, g.Function) })
	return s, len(s.Grants) > 0
}

// Secret returns a secret with its versions and grants, and without its values.
func (c *Control) Secret(ctx context.Context, p bawn.Principal, name string) (bawn.Secret, error) {
	if err := bawn.CheckName("secret", name); err != nil {
		return bawn.Secret{}, err
	}
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return bawn.Secret{}, err
	}
	s, err := c.cfg.Vault.Get(p.Tenant, name)
	if err != nil {
		return s, err
	}
	s, ok := seenBy(p, s)
	if !ok {
		return bawn.Secret{}, noSecret(name)
	}
	return s, nil
}

func noSecret(name string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "secret", "there is no secret %.80q", name).WithFix("bawn secret ls lists the secrets that there are")
}

// SecretUsers says who may use a secret and who has.
func (c *Control) SecretUsers(ctx context.Context, p bawn.Principal, name string) (SecretUsers, error) {
	s, err := c.Secret(ctx, p, name)
	if err != nil {
		return SecretUsers{}, err
	}
	u := SecretUsers{Secret: s, May: []SecretUser{}, Since: c.started.UTC(), Readers: []secret.Reader{}}
	may := map[string]*SecretUser{}
	at := func(function string) *SecretUser {
		if may[function] == nil {
			may[function] = &SecretUser{Function: function}
		}
		return may[function]
	}
	for _, g := range s.Grants {
		at(g.Function).Granted = true
	}
	for _, f := range c.functions.All(p.Tenant + ".") {
		if !concerns(p, f.Name) {
			continue
		}
		if live := c.liveOf(p.Tenant, f.Name); live != nil {
			if purposes := secret.Purposes(live, name); len(purposes) > 0 {
				at(f.Name).Version, at(f.Name).For = live.Number, purposes
			}
		}
	}
	current := 0
	if n := len(s.Versions); n > 0 {
		current = s.Versions[n-1].Number
	}
	for _, r := range c.cfg.Vault.Readers(p.Tenant, name) {
		if !concerns(p, r.Function) {
			continue
		}
		u.Readers = append(u.Readers, r)
		old := r.Secret != current && slices.ContainsFunc(s.Versions, func(v bawn.SecretVersion) bool { return v.Number == r.Secret })
		if m := may[r.Function]; m != nil && old && !slices.Contains(m.Old, r.Secret) {
			m.Old = append(m.Old, r.Secret)
		}
	}
	for _, m := range may {
		slices.Sort(m.Old)
		u.May = append(u.May, *m)
	}
	slices.SortFunc(u.May, func(a, b SecretUser) int { return strings.Compare(a.Function, b.Function) })
	return u, nil
}

// CreateSecret keeps a value under a name. CodeConflict: there is one of the name.
func (c *Control) CreateSecret(ctx context.Context, p bawn.Principal, name string, value []byte, labels []string) (s bawn.Secret, err error) {
	if err := c.onSecret(ctx, p, name); err != nil {
		return s, err
	}
	what := bawn.Record{Action: "secret.set", Detail: map[string]string{"secret": name}}
	if len(labels) > 0 {
		what.Detail["labels"] = strings.Join(labels, ",")
	}
	c.mu.Lock() // what is deployed meanwhile must know of the labels
	defer c.mu.Unlock()
	if refusal := c.checkSecretFlow(p.Tenant, name, labels); refusal != nil {
		return s, c.refused(ctx, p, bawn.Record{Action: "secret.set", Control: "E9", Detail: what.Detail}, refusal)
	}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		s, err = c.cfg.Vault.Create(ctx, p.Tenant, name, value, labels, p.String())
		if err == nil {
			what.Detail["version"] = strconv.Itoa(s.Versions[0].Number)
		}
		return err
	})
	return s, err
}

// RotateSecret gives a secret a new value; the one before dies after window, or with
// none at once. control E4.
func (c *Control) RotateSecret(ctx context.Context, p bawn.Principal, name string, value []byte, window time.Duration) (s bawn.Secret, err error) {
	if err := c.onSecret(ctx, p, name); err != nil {
		return s, err
	}
	if window < 0 || window > MaxSecretWindow {
		return s, bawn.Errorf(bawn.CodeInvalid, "control.secret", "the window is %s, want 0 to %s", window, MaxSecretWindow).
			WithFix("take a shorter one, such as 10m, or none to end the old value at once")
	}
	what := bawn.Record{Action: "secret.rotate", Detail: map[string]string{"secret": name, "window": window.String()}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		s, err = c.cfg.Vault.Rotate(ctx, p.Tenant, name, value, window, p.String())
		if n := len(s.Versions); err == nil && n > 0 {
			what.Detail["version"] = strconv.Itoa(s.Versions[n-1].Number)
		}
		return err
	})
	return s, err
}

// RemoveSecret wipes a secret with all its versions and grants.
func (c *Control) RemoveSecret(ctx context.Context, p bawn.Principal, name string) error {
	if err := c.onSecret(ctx, p, name); err != nil {
		return err
	}
	s, err := c.cfg.Vault.Get(p.Tenant, name)
	if err != nil {
		return err
	}
	var grants []string
	for _, g := range s.Grants {
		grants = append(grants, g.Function)
	}
	what := bawn.Record{Action: "secret.remove", Detail: map[string]string{"secret": name, "grants": cut(strings.Join(grants, ","))}}
	return c.change(ctx, p, what, func(ctx context.Context) error { return c.cfg.Vault.Remove(ctx, p.Tenant, name) })
}

// GrantSecret lets a function use a secret; control E2. The function must be there: a
// grant for a name that nobody has yet would be for whoever takes it.
func (c *Control) GrantSecret(ctx context.Context, p bawn.Principal, name, function string) (s bawn.Secret, err error) {
	if err := c.onSecret(ctx, p, name); err != nil {
		return s, err
	}
	if err := bawn.CheckName("function", function); err != nil {
		return s, err
	}
	c.mu.Lock() // a function that is removed loses its grants, and gets none after
	defer c.mu.Unlock()
	if _, _, ok := c.functions.Get(functionKey(p.Tenant, function)); !ok {
		return s, c.noFunction(p.Tenant, function)
	}
	if _, err := c.cfg.Vault.Get(p.Tenant, name); err != nil {
		return s, err
	}
	what := bawn.Record{Function: function, Action: "secret.grant", Detail: map[string]string{"secret": name}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		s, err = c.cfg.Vault.Grant(ctx, p.Tenant, name, function, p.String())
		return err
	})
	return s, err
}

// RevokeSecret takes a grant back: the function reads the secret no more when it
// returns.
func (c *Control) RevokeSecret(ctx context.Context, p bawn.Principal, name, function string) (s bawn.Secret, err error) {
	if err := c.onSecret(ctx, p, name); err != nil {
		return s, err
	}
	if err := bawn.CheckName("function", function); err != nil {
		return s, err
	}
	what := bawn.Record{Function: function, Action: "secret.revoke", Detail: map[string]string{"secret": name}}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		s, err = c.cfg.Vault.Revoke(ctx, p.Tenant, name, function)
		return err
	})
	return s, err
}
