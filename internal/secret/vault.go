package secret

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/store"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Bounds of a tenant's secrets.
const (
	maxSecrets = 1000  // with a value
	maxNames   = 10000 // those that were removed included, whose numbers stay taken
	maxGrants  = 1000  // of one secret

	buryAgain = time.Second // after what ended could not be wiped
)

// VaultConfig says what a [Vault] works with. Now and Log may be nil.
type VaultConfig struct {
	Store *store.Store
	Keys  *TenantKeys
	// Dir is the folder of the keys of single versions. It belongs to the keys: no
	// backup has it.
	Dir string
	// Wrap is 32 secret bytes that are for nothing else.
	Wrap   []byte
	Policy *policy.Engine
	// Record keeps that a value has died.
	Record func(context.Context, bawn.Record) error
	Now    func() time.Time
	Log    *slog.Logger
}

// Vault keeps the secrets of all tenants, and gives them to the functions that may
// have them. Its methods do not look at who changes something: control does. It is
// safe for concurrent use.
type Vault struct {
	cfg       VaultConfig
	secrets   *store.Table[secretRow]   // tenant.name
	values    *store.Table[envelope]    // tenant.name.number
	functions *store.Table[functionRow] // tenant.function
	ends      *endKeys
	readers   readers

	mu   sync.Mutex // held for a change
	wake chan struct{}
	stop context.CancelFunc
	done chan struct{}

	changes atomic.Uint64 // of secrets, after which what was made of them is old

	keysMu    sync.RWMutex
	keys      map[string]*ownKey      // by tenant.function
	redactors map[string]keptRedactor // by version of a function
	verified  map[string]bool         // uses of a secret for webhooks that were recorded
}

// secretRow is a secret as it is stored. One that was removed stays as a mark, so that
// the numbers of its versions are never those of others.
type secretRow struct {
	bawn.Secret
	Latest  int  `json:"latest"`
	Removed bool `json:"removed,omitempty"`
}

// functionRow is the key of a function, wrapped with that of its tenant.
type functionRow struct {
	ID        string    `json:"id"`
	Wrapped   []byte    `json:"wrapped"`
	CreatedAt time.Time `json:"createdAt"`
}

// ownKey is the key of a function, ready for use.
type ownKey struct {
	id   string
	aead tink.AEAD
}

// tenantAEAD is a tenant's key as Tink wants it.
type tenantAEAD struct {
	keys   *TenantKeys
	tenant string
}

func (t tenantAEAD) Encrypt(plain, ad []byte) ([]byte, error) {
	return t.keys.Seal(t.tenant, string(ad), plain)
}

func (t tenantAEAD) Decrypt(sealed, ad []byte) ([]byte, error) {
	return t.keys.Open(t.tenant, string(ad), sealed)
}

func secretKey(tenant, name string) string { return tenant + "." + name }

// OpenVault opens the secrets that the store holds, wipes what died while nobody
// looked and what a crash left, and begins to wipe what dies from now on.
func OpenVault(ctx context.Context, cfg VaultConfig) (*Vault, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	v := &Vault{cfg: cfg, wake: make(chan struct{}, 1), done: make(chan struct{}), keys: map[string]*ownKey{}}
	var err error
	if v.ends, err = openEndKeys(cfg.Dir, cfg.Wrap); err != nil {
		return nil, err
	}
	if v.secrets, err = store.OpenTable[secretRow](ctx, cfg.Store, "secrets"); err != nil {
		return nil, err
	}
	if v.values, err = store.OpenTable[envelope](ctx, cfg.Store, "secret-values"); err != nil {
		return nil, err
	}
	if v.functions, err = store.OpenTable[functionRow](ctx, cfg.Store, "function-keys"); err != nil {
		return nil, err
	}
	if err := v.sweep(ctx); err != nil {
		cfg.Log.Warn("what is left of secrets that died is wiped at the next start", "error", err)
	}
	v.secrets.Watch(func(string, *secretRow) { v.changes.Add(1) })
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	v.stop = stop
	go v.run(run)
	return v, nil
}

// Close ends the wiping of what dies. The store must still be open.
func (v *Vault) Close() error {
	v.stop()
	<-v.done
	return nil
}

// sweep wipes values and keys that no secret has any more. Nothing is concluded from
// the absence of rows that may be damaged.
func (v *Vault) sweep(ctx context.Context) error {
	if cmp.Or(v.secrets.Trusted(), v.values.Trusted()) != nil {
		return nil
	}
	live := map[string]bool{}
	for _, row := range v.secrets.All("") {
		for _, n := range row.Versions {
			live[spot{row.Tenant, row.Name, n.Number}.key()] = true
		}
	}
	errs := []error{v.ends.endUnless(func(key string) bool { return live[key] })}
	for key := range v.values.All("") {
		if !live[key] {
			errs = append(errs, drop(ctx, v.values, key))
		}
	}
	return errors.Join(errs...)
}

// run wipes each value at its end.
func (v *Vault) run(ctx context.Context) {
	defer close(v.done)
	for {
		wait, err := v.bury(ctx)
		if err != nil && ctx.Err() == nil {
			v.cfg.Log.Warn("a value of a secret that has died could not be wiped yet", "error", err)
			wait = buryAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-v.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// bury wipes the values that are past their end, and returns how long it is until the
// next one is.
func (v *Vault) bury(ctx context.Context) (next time.Duration, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.cfg.Now()
	next = time.Hour
	var errs []error
	for _, row := range v.secrets.All("") {
		var dead []int
		for _, n := range row.Versions {
			switch {
			case n.Ends == nil:
			case n.Ends.After(now):
				next = min(next, n.Ends.Sub(now))
			default:
				dead = append(dead, n.Number)
			}
		}
		if len(dead) == 0 {
			continue
		}
		for _, n := range dead {
			if v.cfg.Record != nil {
				errs = append(errs, v.cfg.Record(ctx, bawn.Record{
					Time: now, Kind: bawn.KindChange, Tenant: row.Tenant, Principal: bawn.PrincipalNode, Action: "secret.end", Outcome: "ok", Control: "E4",
					Reason: "its window is over", Detail: map[string]string{"secret": row.Name, "version": itoa(n)},
				}))
			}
		}
		_, err := v.update(ctx, row.Tenant, row.Name, func(r *secretRow) error {
			r.Versions = slices.DeleteFunc(slices.Clone(r.Versions), func(n bawn.SecretVersion) bool { return slices.Contains(dead, n.Number) })
			return nil
		})
		if err == nil {
			err = v.wipe(ctx, row.Tenant, row.Name, dead)
		}
		errs = append(errs, err)
	}
	return next, errors.Join(errs...)
}

// wipe does away with versions that no row has any more: the key first.
func (v *Vault) wipe(ctx context.Context, tenant, name string, numbers []int) error {
	var errs []error
	for _, n := range numbers {
		s := spot{tenant, name, n}
		errs = append(errs, v.ends.end(s.key()), drop(ctx, v.values, s.key()))
	}
	return errors.Join(errs...)
}

func drop[T any](ctx context.Context, t *store.Table[T], key string) error {
	_, rev, ok := t.Get(key)
	if !ok {
		return nil
	}
	if err := t.Delete(ctx, key, rev); bawn.ErrorCode(err) != bawn.CodeNotFound {
		return err
	}
	return nil
}

// update changes a secret's row. The caller holds mu.
func (v *Vault) update(ctx context.Context, tenant, name string, with func(*secretRow) error) (bawn.Secret, error) {
	row, rev, err := v.find(tenant, name)
	if err != nil {
		return bawn.Secret{}, err
	}
	if err := with(&row); err != nil {
		return bawn.Secret{}, err
	}
	row.UpdatedAt = v.cfg.Now().UTC()
	if _, err := v.secrets.Update(ctx, secretKey(tenant, name), row, rev); err != nil {
		return bawn.Secret{}, err
	}
	return row.Secret, nil
}

// find returns the row of a secret that is there.
func (v *Vault) find(tenant, name string) (secretRow, uint64, error) {
	row, rev, ok, err := v.secrets.Find(secretKey(tenant, name))
	switch {
	case err != nil:
		return secretRow{}, 0, err
	case !ok || row.Removed:
		return secretRow{}, 0, bawn.Errorf(bawn.CodeNotFound, "secret", "there is no secret %.80q", name).WithFix("bawn secret ls lists the secrets that there are")
	}
	return row, rev, nil
}

// Get returns a secret, without its values. CodeNotFound: there is none.
func (v *Vault) Get(tenant, name string) (bawn.Secret, error) {
	row, _, err := v.find(tenant, name)
	return v.alive(row.Secret), err
}

// alive leaves out versions that are past their end, whether or not they are wiped.
func (v *Vault) alive(s bawn.Secret) bawn.Secret {
	now := v.cfg.Now()
	s.Versions = slices.DeleteFunc(slices.Clone(s.Versions), func(n bawn.SecretVersion) bool { return n.Ends != nil && !n.Ends.After(now) })
	if s.Grants == nil {
		s.Grants = []bawn.SecretGrant{}
	}
	return s
}

// List returns a tenant's secrets by name, without their values.
func (v *Vault) List(tenant string) []bawn.Secret {
	all := []bawn.Secret{}
	for _, row := range v.secrets.All(tenant + ".") {
		if !row.Removed {
			all = append(all, v.alive(row.Secret))
		}
	}
	return all
}

// Labels returns the labels of a secret; none if there is no such secret.
func (v *Vault) Labels(tenant, name string) []string {
	row, _, err := v.find(tenant, name)
	if err != nil {
		return nil
	}
	return row.Labels
}

// SetLabels gives a secret other labels in the place of those that it has.
func (v *Vault) SetLabels(ctx context.Context, tenant, name string, labels []string) (bawn.Secret, error) {
	if err := CheckLabels(labels); err != nil {
		return bawn.Secret{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	row, rev, err := v.find(tenant, name)
	if err != nil {
		return bawn.Secret{}, err
	}
	row.Labels = slices.Compact(slices.Sorted(slices.Values(labels)))
	row.UpdatedAt = v.cfg.Now().UTC()
	if _, err := v.secrets.Update(ctx, secretKey(tenant, name), row, rev); err != nil {
		return bawn.Secret{}, err
	}
	return v.alive(row.Secret), nil
}

// Create makes a secret. CodeConflict: there is one of the name.
func (v *Vault) Create(ctx context.Context, tenant, name string, value []byte, labels []string, by string) (bawn.Secret, error) {
	const op = "secret.create"
	if err := cmp.Or(bawn.CheckName("secret", name), checkValue(value), CheckLabels(labels)); err != nil {
		return bawn.Secret{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	row, rev, ok, err := v.secrets.Find(secretKey(tenant, name))
	if err != nil {
		return bawn.Secret{}, err
	}
	if ok && !row.Removed {
		return bawn.Secret{}, bawn.Errorf(bawn.CodeConflict, op, "there is a secret %q already", name).
			WithFix("bawn secret rotate %s gives it a new value", name)
	}
	there, names := 0, 0
	for _, r := range v.secrets.All(tenant + ".") {
		names++
		if !r.Removed {
			there++
		}
	}
	if there >= maxSecrets || !ok && names >= maxNames {
		return bawn.Secret{}, bawn.Errorf(bawn.CodeTooLarge, op, "the tenant has %d secrets, and has had %d; at most %d and %d are allowed", there, names, maxSecrets, maxNames).
			WithFix("remove secrets that nobody uses")
	}
	at := v.cfg.Now().UTC()
	labels = slices.Compact(slices.Sorted(slices.Values(labels)))
	row = secretRow{Latest: row.Latest + 1, Secret: bawn.Secret{Tenant: tenant, Name: name, Labels: labels, Grants: []bawn.SecretGrant{}, CreatedAt: at, UpdatedAt: at}}
	row.Versions = []bawn.SecretVersion{{Number: row.Latest, CreatedAt: at, CreatedBy: by}}
	if err := v.store(ctx, spot{tenant, name, row.Latest}, value, nil); err != nil {
		return bawn.Secret{}, err
	}
	if ok {
		_, err = v.secrets.Update(ctx, secretKey(tenant, name), row, rev)
	} else {
		_, err = v.secrets.Create(ctx, secretKey(tenant, name), row)
	}
	if err != nil {
		return bawn.Secret{}, errors.Join(err, v.wipe(ctx, tenant, name, []int{row.Latest}))
	}
	return row.Secret, nil
}

// store keeps a value for the tenant and for functions. What a crash left there before
// is overwritten. The caller holds mu.
func (v *Vault) store(ctx context.Context, s spot, value []byte, grants []bawn.SecretGrant) error {
	if err := v.ends.end(s.key()); err != nil {
		return err
	}
	if err := v.ends.make(s.key()); err != nil {
		return err
	}
	e, err := v.seal(s, value)
	if err != nil {
		return err
	}
	for _, g := range grants {
		k, err := v.makeFunctionKey(ctx, s.tenant, g.Function)
		if err != nil {
			return err
		}
		if err := v.wrapFor(s, e, g.Function, k); err != nil {
			return err
		}
	}
	if err := drop(ctx, v.values, s.key()); err != nil {
		return err
	}
	_, err = v.values.Create(ctx, s.key(), *e)
	return err
}

func (v *Vault) wrapFor(s spot, e *envelope, function string, k *ownKey) error {
	w, err := v.wrap(s, e, function, k)
	if err != nil {
		return err
	}
	fresh := map[string]functionKey{}
	for f, o := range e.Functions {
		fresh[f] = o
	}
	fresh[function] = w
	e.Functions = fresh // what the table shares is left alone
	return nil
}

// Rotate gives a secret a new value. The one before can be read for window more, and
// is wiped then; with no window it is when Rotate returns. Older ones keep the end
// that they have.
func (v *Vault) Rotate(ctx context.Context, tenant, name string, value []byte, window time.Duration, by string) (bawn.Secret, error) {
	const op = "secret.rotate"
	if err := checkValue(value); err != nil {
		return bawn.Secret{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	row, _, err := v.find(tenant, name)
	if err != nil {
		return bawn.Secret{}, err
	}
	if len(v.alive(row.Secret).Versions) >= bawn.MaxSecretVersions && window > 0 {
		return bawn.Secret{}, bawn.Errorf(bawn.CodeThrottled, op, "%d values of the secret are still in their windows, no more are allowed", len(row.Versions)).
			WithFix("wait until one of them ends, or end them all: bawn secret rotate %s --now", name)
	}
	at := v.cfg.Now().UTC()
	n := row.Latest + 1
	if err := v.store(ctx, spot{tenant, name, n}, value, row.Grants); err != nil {
		return bawn.Secret{}, errors.Join(err, v.wipe(ctx, tenant, name, []int{n}))
	}
	var dead []int
	s, err := v.update(ctx, tenant, name, func(r *secretRow) error {
		keep := []bawn.SecretVersion{}
		for _, old := range r.Versions {
			if window <= 0 {
				dead = append(dead, old.Number)
				continue
			}
			if old.Ends == nil {
				end := at.Add(window)
				old.Ends = &end
			}
			keep = append(keep, old)
		}
		r.Versions = append(keep, bawn.SecretVersion{Number: n, CreatedAt: at, CreatedBy: by})
		r.Latest = n
		return nil
	})
	if err != nil {
		return bawn.Secret{}, errors.Join(err, v.wipe(ctx, tenant, name, []int{n}))
	}
	err = v.wipe(ctx, tenant, name, dead)
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return v.alive(s), err
}

// Remove wipes a secret with all its versions and grants.
func (v *Vault) Remove(ctx context.Context, tenant, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var dead []int
	_, err := v.update(ctx, tenant, name, func(r *secretRow) error {
		for _, n := range r.Versions {
			dead = append(dead, n.Number)
		}
		*r = secretRow{Removed: true, Latest: r.Latest, Secret: bawn.Secret{Tenant: tenant, Name: name, Versions: []bawn.SecretVersion{}, Grants: []bawn.SecretGrant{}, CreatedAt: r.CreatedAt}}
		return nil
	})
	if err != nil {
		return err
	}
	v.readers.forget(secretKey(tenant, name))
	return v.wipe(ctx, tenant, name, dead)
}

// Grant lets a function use a secret; control E2. It must be there. To grant what is
// granted changes nothing.
func (v *Vault) Grant(ctx context.Context, tenant, name, function, by string) (bawn.Secret, error) {
	if err := bawn.CheckName("function", function); err != nil {
		return bawn.Secret{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	row, _, err := v.find(tenant, name)
	if err != nil {
		return bawn.Secret{}, err
	}
	if len(row.Grants) >= maxGrants && !granted(&row.Secret, function) {
		return bawn.Secret{}, bawn.Errorf(bawn.CodeTooLarge, "secret.grant", "the secret is granted to %d functions, no more are allowed", len(row.Grants)).
			WithFix("revoke grants that are not used: bawn secret who %s", name)
	}
	k, err := v.makeFunctionKey(ctx, tenant, function)
	if err != nil {
		return bawn.Secret{}, err
	}
	// The keys first: a grant that is there works.
	for _, n := range v.alive(row.Secret).Versions {
		s := spot{tenant, name, n.Number}
		e, rev, ok, err := v.values.Find(s.key())
		if err == nil && !ok {
			err = s.unsealFailed()
		}
		if err == nil {
			err = v.wrapFor(s, &e, function, k)
		}
		if err == nil {
			_, err = v.values.Update(ctx, s.key(), e, rev)
		}
		if err != nil {
			return bawn.Secret{}, err
		}
	}
	s, err := v.update(ctx, tenant, name, func(r *secretRow) error {
		if !granted(&r.Secret, function) {
			r.Grants = append(slices.Clone(r.Grants), bawn.SecretGrant{Function: function, GrantedAt: v.cfg.Now().UTC(), GrantedBy: by})
			slices.SortFunc(r.Grants, func(a, b bawn.SecretGrant) int { return strings.Compare(a.Function, b.Function) })
		}
		return nil
	})
	return v.alive(s), err
}

// Revoke takes a grant back. CodeNotFound: the function has none.
func (v *Vault) Revoke(ctx context.Context, tenant, name, function string) (bawn.Secret, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, err := v.revoke(ctx, tenant, name, function)
	return v.alive(s), err
}

func (v *Vault) revoke(ctx context.Context, tenant, name, function string) (bawn.Secret, error) {
	s, err := v.update(ctx, tenant, name, func(r *secretRow) error {
		if !granted(&r.Secret, function) {
			return bawn.Errorf(bawn.CodeNotFound, "secret.revoke", "the secret %s is not granted to %.80q", name, function).WithFix("bawn secret who %s lists the grants", name)
		}
		r.Grants = slices.DeleteFunc(slices.Clone(r.Grants), func(g bawn.SecretGrant) bool { return g.Function == function })
		return nil
	})
	if err != nil {
		return s, err
	}
	// From here it cannot be read. The wraps go too.
	for _, n := range s.Versions {
		key := spot{tenant, name, n.Number}.key()
		e, rev, ok := v.values.Get(key)
		if !ok || e.Functions[function].Key == "" {
			continue
		}
		fresh := map[string]functionKey{}
		for f, w := range e.Functions {
			if f != function {
				fresh[f] = w
			}
		}
		e.Functions = fresh
		if _, err := v.values.Update(ctx, key, e, rev); err != nil {
			return s, err
		}
	}
	return s, nil
}

// RemoveFunction takes every grant of a function back and does away with its key: one
// that takes the name later inherits nothing.
func (v *Vault) RemoveFunction(ctx context.Context, tenant, function string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := secretKey(tenant, function)
	// The key first: without it no wrap opens.
	errs := []error{drop(ctx, v.functions, key)}
	v.keysMu.Lock()
	delete(v.keys, key)
	v.keysMu.Unlock()
	for _, row := range v.secrets.All(tenant + ".") {
		if !row.Removed && granted(&row.Secret, function) {
			_, err := v.revoke(ctx, tenant, row.Name, function)
			errs = append(errs, err)
		}
	}
	v.readers.leave(tenant, function)
	return errors.Join(errs...)
}

// RemoveTenant wipes everything of a tenant.
func (v *Vault) RemoveTenant(ctx context.Context, tenant string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	for key, row := range v.secrets.All(tenant + ".") {
		for _, n := range row.Versions {
			errs = append(errs, v.ends.end(spot{tenant, row.Name, n.Number}.key()))
		}
		v.readers.forget(key)
		errs = append(errs, drop(ctx, v.secrets, key))
	}
	for key := range v.values.All(tenant + ".") {
		errs = append(errs, v.ends.end(key), drop(ctx, v.values, key))
	}
	for key := range v.functions.All(tenant + ".") {
		errs = append(errs, drop(ctx, v.functions, key))
		v.keysMu.Lock()
		delete(v.keys, key)
		v.keysMu.Unlock()
	}
	return errors.Join(errs...)
}

// Grantees yields tenant and name of each function that has a grant or a key.
func (v *Vault) Grantees() iter.Seq2[string, string] {
	return func(yield func(tenant, function string) bool) {
		seen := map[string]bool{}
		for key := range v.functions.All("") {
			seen[key] = true
		}
		for _, row := range v.secrets.All("") {
			for _, g := range row.Grants {
				seen[secretKey(row.Tenant, g.Function)] = true
			}
		}
		for key := range seen {
			if tenant, function, _ := strings.Cut(key, "."); !yield(tenant, function) {
				return
			}
		}
	}
}

func granted(s *bawn.Secret, function string) bool {
	return slices.ContainsFunc(s.Grants, func(g bawn.SecretGrant) bool { return g.Function == function })
}

// functionKey returns the key of a function. CodeUnavailable: it has none that can be
// used.
func (v *Vault) functionKey(tenant, function string) (*ownKey, error) {
	key := secretKey(tenant, function)
	row, _, ok, err := v.functions.Find(key)
	if err != nil {
		return nil, err
	}
	fail := bawn.Errorf(bawn.CodeUnavailable, "secret.key", "the key of the function %s is missing or another", function).
		WithFix("put the folder tenants of the data directory back from a copy, or grant the secret again")
	if !ok {
		return nil, fail
	}
	v.keysMu.RLock()
	k := v.keys[key]
	v.keysMu.RUnlock()
	if k != nil && k.id == row.ID {
		return k, nil
	}
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(strings.NewReader(string(row.Wrapped))), tenantAEAD{v.cfg.Keys, tenant}, boundKey(tenant, function, row.ID))
	if err != nil {
		return nil, fail
	}
	k = &ownKey{id: row.ID}
	if k.aead, err = aead.New(h); err != nil {
		return nil, fail
	}
	v.keysMu.Lock()
	defer v.keysMu.Unlock()
	if len(v.keys) >= maxNames {
		v.keys = map[string]*ownKey{}
	}
	v.keys[key] = k
	return k, nil
}

func boundKey(tenant, function, id string) []byte {
	return []byte(strings.Join([]string{"bawn function key", tenant, function, id}, "\n"))
}

// makeFunctionKey returns the key of a function, made if there is none that opens: one
// whose tenant's key is another is of no use to anything. The caller holds mu.
func (v *Vault) makeFunctionKey(ctx context.Context, tenant, function string) (*ownKey, error) {
	k, err := v.functionKey(tenant, function)
	if err == nil {
		return k, nil
	}
	key := secretKey(tenant, function)
	_, rev, had, lost := v.functions.Find(key)
	if lost != nil {
		return nil, lost
	}
	h, err := newKeyset()
	if err != nil {
		return nil, sealFailed(err)
	}
	row := functionRow{ID: newKeyID(), CreatedAt: v.cfg.Now().UTC()}
	var b strings.Builder
	if err := h.WriteWithAssociatedData(keyset.NewBinaryWriter(&b), tenantAEAD{v.cfg.Keys, tenant}, boundKey(tenant, function, row.ID)); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "secret.key", "the key of the function %s cannot be encrypted: its tenant's key cannot be used", function).WithFix(restoreFix)
	}
	row.Wrapped = []byte(b.String())
	if had {
		_, err = v.functions.Update(ctx, key, row, rev)
	} else {
		_, err = v.functions.Create(ctx, key, row)
	}
	if err != nil {
		return nil, err
	}
	return v.functionKey(tenant, function)
}

func checkValue(value []byte) error {
	switch n := len(value); {
	case n == 0:
		return bawn.Errorf(bawn.CodeInvalid, "secret.value", "the value is empty").WithFix("give it on standard input, or with --file")
	case n > bawn.MaxSecretBytes:
		return bawn.Errorf(bawn.CodeTooLarge, "secret.value", "the value has more than %d bytes", bawn.MaxSecretBytes).WithFix("keep a key in the secret, and what it encrypts elsewhere")
	}
	return nil
}

// CheckLabels checks the labels of a secret.
func CheckLabels(labels []string) error {
	if len(labels) > bawn.MaxLabels {
		return bawn.Errorf(bawn.CodeTooLarge, "secret.labels", "there are %d labels, at most %d are allowed", len(labels), bawn.MaxLabels)
	}
	for _, l := range labels {
		if err := bawn.CheckName("label", l); err != nil {
			return err
		}
	}
	return nil
}
