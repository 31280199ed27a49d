// Package identity says who a caller is. It knows API keys: a key's secret is
// random, shown once, and kept as a hash only.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

const (
	prefix       = "bawn_"
	idBytes      = 8  // shown as 16 hex digits
	secretBytes  = 32 // shown as 43 base64url characters
	maxKeys      = 1000
	maxFunctions = 100
	maxCreatedBy = 256
	maxMakers    = 100
)

// Keys are the API keys of all tenants. It is safe for concurrent use.
type Keys struct {
	table *store.Table[storedKey]
	now   func() time.Time

	making sync.Mutex // held while a key is made: two must not take one name

	mu   sync.RWMutex
	byID map[string]*storedKey // fed by the table; a revoked key is gone before Revoke returns
}

type storedKey struct {
	bawn.Key
	Hash []byte `json:"hash"` // SHA-256 of the whole secret, prefix and id included

	// Makers are who made the key's maker, who made that one, and so on: they
	// stay known when the keys between are revoked.
	Makers []string `json:"makers,omitempty"`

	roles []bawn.Role // its role, as principals have them
}

// OpenKeys opens the keys that the store holds.
func OpenKeys(ctx context.Context, s *store.Store) (*Keys, error) {
	t, err := store.OpenTable[storedKey](ctx, s, "keys")
	if err != nil {
		return nil, err
	}
	k := &Keys{table: t, now: time.Now, byID: map[string]*storedKey{}}
	t.Watch(func(key string, v *storedKey) {
		_, id, _ := strings.Cut(key, ".")
		k.mu.Lock()
		defer k.mu.Unlock()
		if v == nil {
			delete(k.byID, id)
		} else {
			known := *v // what the table has is shared
			known.Role = roleOf(v.Key)
			known.roles = []bawn.Role{known.Role}
			k.byID[id] = &known
		}
	})
	return k, nil
}

// roleOf returns the role that a key has by now. What a node made for its first
// administrator, before there were operators, is its operator's.
func roleOf(k bawn.Key) bawn.Role {
	if k.Role == bawn.RoleAdmin && k.Tenant == bawn.DefaultTenant && strings.HasPrefix(k.CreatedBy, bawn.PrincipalNode+":") {
		return bawn.RoleOperator
	}
	return k.Role
}

// Create makes a key from want's name, tenant, role, functions, end and maker;
// other fields are not looked at. The secret cannot be had a second time.
func (k *Keys) Create(ctx context.Context, want bawn.Key) (secret string, key bawn.Key, err error) {
	const op = "identity.create"
	if err := k.check(want); err != nil {
		return "", bawn.Key{}, err
	}
	k.making.Lock()
	defer k.making.Unlock()
	n := 0
	for _, v := range k.table.All(want.Tenant + ".") {
		if v.Name == want.Name && !k.expired(&v) {
			return "", bawn.Key{}, bawn.Errorf(bawn.CodeConflict, op, "a key named %s exists already", want.Name).
				WithFix("take another name, or revoke key %s first", v.ID)
		}
		n++
	}
	if n >= maxKeys {
		return "", bawn.Key{}, bawn.Errorf(bawn.CodeTooLarge, op, "the tenant has %d keys, no more are allowed", n).
			WithFix("revoke keys that are expired or not used")
	}
	var random [idBytes + secretBytes]byte
	rand.Read(random[:]) // never fails: crypto/rand aborts the program instead
	key = bawn.Key{
		ID: hex.EncodeToString(random[:idBytes]), Name: want.Name, Tenant: want.Tenant, Role: want.Role,
		Functions: slices.Clone(want.Functions), CreatedAt: k.now().UTC(), CreatedBy: want.CreatedBy, ExpiresAt: want.ExpiresAt.UTC(),
	}
	secret = prefix + key.ID + "_" + base64.RawURLEncoding.EncodeToString(random[idBytes:])
	hash := sha256.Sum256([]byte(secret))
	var makers []string
	if id, isKey := strings.CutPrefix(want.CreatedBy, "key:"); isKey {
		makers = k.Makers(id)
	}
	if len(makers) > maxMakers {
		return "", bawn.Key{}, bawn.Errorf(bawn.CodeTooLarge, op, "%d keys made one another down to this one, no more are allowed", len(makers)).
			WithFix("make it with an older key")
	}
	if _, err := k.table.Create(ctx, key.Tenant+"."+key.ID, storedKey{Key: key, Hash: hash[:], Makers: makers}); err != nil {
		return "", bawn.Key{}, err
	}
	return secret, key, nil
}

// Makers returns who made the key with this id, who made that one, and so on,
// each as kind:id; nothing for a key that there is not.
func (k *Keys) Makers(id string) []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	v := k.byID[id]
	if v == nil || v.CreatedBy == "" {
		return nil
	}
	return append([]string{v.CreatedBy}, v.Makers...)
}

func (k *Keys) check(want bawn.Key) error {
	const op = "identity.create"
	if err := bawn.CheckName("key", want.Name); err != nil {
		return err
	}
	if err := bawn.CheckName("tenant", want.Tenant); err != nil {
		return err
	}
	if err := bawn.CheckName("role", string(want.Role)); err != nil {
		return err
	}
	if want.Role == bawn.RoleOperator && (want.Tenant != bawn.DefaultTenant || len(want.Functions) > 0) {
		return bawn.Errorf(bawn.CodeInvalid, op, "an operator's key belongs to the tenant %s and is held to no functions", bawn.DefaultTenant).WithFix("give it the role %s", bawn.RoleAdmin)
	}
	if len(want.Functions) > maxFunctions {
		return bawn.Errorf(bawn.CodeTooLarge, op, "the key names %d functions, at most %d are allowed", len(want.Functions), maxFunctions).
			WithFix("name none, which allows all of the tenant, or make several keys")
	}
	for _, f := range want.Functions {
		if err := bawn.CheckName("function", f); err != nil {
			return err
		}
	}
	if len(want.CreatedBy) > maxCreatedBy {
		return bawn.Errorf(bawn.CodeInvalid, op, "the maker's name is longer than %d bytes", maxCreatedBy)
	}
	if !want.ExpiresAt.IsZero() && !want.ExpiresAt.After(k.now()) {
		return bawn.Errorf(bawn.CodeInvalid, op, "the key would have ended on %s already", want.ExpiresAt.Format(time.RFC3339)).
			WithFix("give an end in the future, or none")
	}
	return nil
}

func (k *Keys) expired(v *storedKey) bool {
	return !v.ExpiresAt.IsZero() && !k.now().Before(v.ExpiresAt)
}

// Authenticate returns who presents the secret bearer. It reads memory only.
// An unknown, malformed, expired or revoked one gives the same error, of
// CodeUnauthenticated, after the same work.
func (k *Keys) Authenticate(bearer string) (bawn.Principal, error) {
	id, ok := parseSecret(bearer)
	if !ok {
		return bawn.Principal{}, refused()
	}
	v := k.byKeyID(id)
	known := v != nil
	if !known {
		v = &storedKey{Hash: make([]byte, sha256.Size)}
	}
	hash := sha256.Sum256([]byte(bearer))
	same := subtle.ConstantTimeCompare(hash[:], v.Hash) == 1
	if !same || !known || k.expired(v) {
		return bawn.Principal{}, refused()
	}
	return v.principal(), nil
}

func (v *storedKey) principal() bawn.Principal {
	return bawn.Principal{
		Kind: bawn.PrincipalKey, ID: v.ID, Name: v.Name, Tenant: v.Tenant, Roles: v.roles,
		Functions: v.Functions, Issued: v.CreatedAt, Expires: v.ExpiresAt,
	}
}

// current returns the key's principal as it is now, if there still is one.
func (k *Keys) current(p bawn.Principal) (bawn.Principal, bool) {
	v := k.byKeyID(p.ID)
	if v == nil || v.Tenant != p.Tenant || k.expired(v) {
		return bawn.Principal{}, false
	}
	return v.principal(), true
}

func (k *Keys) byKeyID(id string) *storedKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.byID[id]
}

func refused() error {
	return bawn.Errorf(bawn.CodeUnauthenticated, "identity.authenticate", "the credential is not valid").
		WithFix("send a key that exists and has not ended, as Authorization: Bearer KEY; an administrator makes one with: bawn key create")
}

// parseSecret returns the id in a secret of the form bawn_ID_SECRET. There is
// one spelling of each secret: the last character's unused bits must be zero.
func parseSecret(s string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) != 2*idBytes+1+base64.RawURLEncoding.EncodedLen(secretBytes) || rest[2*idBytes] != '_' {
		return "", false
	}
	id = rest[:2*idBytes]
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	// The decoder would skip line ends.
	if strings.ContainsAny(rest, "\r\n") {
		return "", false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest[2*idBytes+1:])
	return id, err == nil && len(b) == secretBytes
}

// Trusted returns nil if every key that there should be can be read. A key that
// cannot be is refused like one that does not exist.
func (k *Keys) Trusted() error { return k.table.Trusted() }

// List returns the tenant's keys, expired ones too, by name.
func (k *Keys) List(tenant string) []bawn.Key {
	all := []bawn.Key{}
	for _, v := range k.table.All(tenant + ".") {
		v.Role = roleOf(v.Key)
		all = append(all, v.Key)
	}
	slices.SortStableFunc(all, func(a, b bawn.Key) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Revoke removes a key. From its return on, the key is refused. CodeNotFound
// means that the tenant has no such key.
func (k *Keys) Revoke(ctx context.Context, tenant, id string) error {
	none := bawn.Errorf(bawn.CodeNotFound, "identity.revoke", "there is no key %.40q", id).WithFix("look for its id with: bawn key ls")
	if bawn.CheckName("tenant", tenant) != nil || strings.Contains(id, ".") {
		return none
	}
	_, rev, ok := k.table.Get(tenant + "." + id)
	if !ok {
		return none
	}
	return k.table.Delete(ctx, tenant+"."+id, rev)
}
