package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// envelope is one value of a secret as it is stored: encrypted with a data key of its
// own. The data key is sealed with the key of this one version, which is a file that
// is overwritten when the value dies, and what comes of that is wrapped once for the
// tenant and once for each function that was granted the secret. All of it is bound
// to the place where it stands.
type envelope struct {
	Key       string                 `json:"key"` // the id of the data key
	Sealed    []byte                 `json:"sealed"`
	Tenant    []byte                 `json:"tenant"`              // the data key, for the tenant
	Functions map[string]functionKey `json:"functions,omitempty"` // and for each function
}

// functionKey is a key wrapped with that of a function.
type functionKey struct {
	Key     string `json:"key"` // the id of the function's key
	Wrapped []byte `json:"wrapped"`
}

// spot is where an envelope stands.
type spot struct {
	tenant, name string
	number       int
}

func (s spot) key() string { return s.tenant + "." + s.name + "." + strconv.Itoa(s.number) }

// bound returns the associated data for one use at the spot. No part of it holds a
// line end.
func (s spot) bound(use string, more ...string) string {
	return strings.Join(append([]string{"bawn secret", use, s.tenant, s.name, strconv.Itoa(s.number)}, more...), "\n")
}

// newKeyset makes a key for XAES-256-GCM.
func newKeyset() (*keyset.Handle, error) {
	return keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
}

// clearKeyset returns a key as bytes, to be encrypted at once.
func clearKeyset(h *keyset.Handle) ([]byte, error) {
	var b bytes.Buffer
	err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(&b))
	return b.Bytes(), err
}

// readKeyset is the way back, and overwrites data.
func readKeyset(data []byte) (tink.AEAD, error) {
	defer clear(data)
	h, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(data)))
	if err != nil {
		return nil, err
	}
	return aead.New(h)
}

// newKeyID returns 16 hex digits.
func newKeyID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return hex.EncodeToString(b[:])
}

// seal makes the envelope of value at s, for the tenant alone. The key of the
// version must be there.
func (v *Vault) seal(s spot, value []byte) (*envelope, error) {
	h, err := newKeyset()
	if err != nil {
		return nil, sealFailed(err)
	}
	data, err := aead.New(h)
	if err != nil {
		return nil, sealFailed(err)
	}
	raw, err := clearKeyset(h)
	if err != nil {
		return nil, sealFailed(err)
	}
	defer clear(raw)
	e := envelope{Key: newKeyID()}
	if e.Sealed, err = data.Encrypt(value, []byte(s.bound("value", e.Key))); err != nil {
		return nil, sealFailed(err)
	}
	own, err := v.ends.key(s.key())
	if err != nil {
		return nil, err
	}
	mortal, err := own.Encrypt(raw, []byte(s.bound("end", e.Key)))
	if err != nil {
		return nil, sealFailed(err)
	}
	e.Tenant, err = v.cfg.Keys.Seal(s.tenant, s.bound("tenant", e.Key), mortal)
	return &e, err
}

func sealFailed(err error) error {
	return bawn.Wrap(err, bawn.CodeInternal, "secret.seal", "the secret cannot be encrypted")
}

// unsealFailed says nothing of why: whoever moved or changed a row learns nothing.
func (s spot) unsealFailed() error {
	return bawn.Errorf(bawn.CodeUnavailable, "secret.open", "version %d of the secret %s cannot be opened: it is not what was stored there, or its keys are others", s.number, s.name).
		WithFix("put the folder tenants of the data directory back from a copy, or give the secret a new value: bawn secret rotate %s --now", s.name)
}

// wrap wraps the data key of e for a function.
func (v *Vault) wrap(s spot, e *envelope, function string, k *ownKey) (functionKey, error) {
	mortal, err := v.cfg.Keys.Open(s.tenant, s.bound("tenant", e.Key), e.Tenant)
	if err != nil {
		return functionKey{}, s.unsealFailed()
	}
	wrapped, err := k.aead.Encrypt(mortal, []byte(s.bound("function", e.Key, function, k.id)))
	if err != nil {
		return functionKey{}, sealFailed(err)
	}
	return functionKey{k.id, wrapped}, nil
}

// unseal opens e for a function, with the function's key alone.
func (v *Vault) unseal(s spot, e *envelope, function string, k *ownKey) ([]byte, error) {
	w, ok := e.Functions[function]
	if !ok || w.Key != k.id {
		return nil, s.unsealFailed()
	}
	mortal, err := k.aead.Decrypt(w.Wrapped, []byte(s.bound("function", e.Key, function, k.id)))
	if err != nil {
		return nil, s.unsealFailed()
	}
	return v.open(s, e, mortal)
}

// unsealTenant opens e for the tenant.
func (v *Vault) unsealTenant(s spot, e *envelope) ([]byte, error) {
	mortal, err := v.cfg.Keys.Open(s.tenant, s.bound("tenant", e.Key), e.Tenant)
	if err != nil {
		return nil, s.unsealFailed()
	}
	return v.open(s, e, mortal)
}

func (v *Vault) open(s spot, e *envelope, mortal []byte) ([]byte, error) {
	own, err := v.ends.key(s.key())
	if err != nil {
		return nil, err
	}
	raw, err := own.Decrypt(mortal, []byte(s.bound("end", e.Key)))
	if err != nil {
		return nil, s.unsealFailed()
	}
	data, err := readKeyset(raw)
	if err != nil {
		return nil, s.unsealFailed()
	}
	value, err := data.Decrypt(e.Sealed, []byte(s.bound("value", e.Key)))
	if err != nil {
		return nil, s.unsealFailed()
	}
	return value, nil
}
