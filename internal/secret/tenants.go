// Package secret holds the keys that what is a tenant's is encrypted with. Each
// tenant has one of its own, in a file of its own: without the file, what was
// encrypted with it is noise, wherever a copy of it may lie.
package secret

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"bawn.dev/bawn"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const (
	fileSuffix = ".key"
	maxFile    = 4 << 10 // bytes of a key file
	restoreFix = "put the file tenants/NAME.key of the data directory back from a copy, or the state with bawn backup restore --state-only; bawn state accept gives up what was encrypted with the key"
)

// TenantKeys are the data keys of the tenants: Tink keysets of XAES-256-GCM, each
// wrapped with a key of the node and bound to the tenant's name, in a file that is
// read when it is first needed and then kept in memory. It is safe for concurrent
// use.
type TenantKeys struct {
	dir  string
	wrap tink.AEAD

	changing sync.Mutex // held by Make and Destroy
	mu       sync.RWMutex
	known    map[string]tenantKey
}

type tenantKey struct {
	aead tink.AEAD
	file []byte
}

// OpenTenantKeys opens the keys in the folder dir, which is made with the first
// key. wrap is 32 secret bytes that are for nothing else.
func OpenTenantKeys(dir string, wrap []byte) (*TenantKeys, error) {
	a, err := subtle.NewAESGCM(wrap)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "secret.open", "the key that wraps tenants' keys cannot be used")
	}
	return &TenantKeys{dir: dir, wrap: a, known: map[string]tenantKey{}}, nil
}

func (k *TenantKeys) path(tenant string) string { return filepath.Join(k.dir, tenant+fileSuffix) }

// Make makes the key of a tenant that has none. One that is there stays; it is
// CodeUnavailable if that cannot be used. When it returns nil the key is on the
// disk.
func (k *TenantKeys) Make(tenant string) error {
	if err := bawn.CheckName("tenant", tenant); err != nil {
		return err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	if _, err := os.Lstat(k.path(tenant)); !errors.Is(err, fs.ErrNotExist) {
		_, err := k.get(tenant)
		return err
	}
	h, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	var wrapped bytes.Buffer
	if err == nil {
		err = h.WriteWithAssociatedData(keyset.NewBinaryWriter(&wrapped), k.wrap, []byte(tenant))
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInternal, "secret.make", "no key can be made for the tenant %s", tenant)
	}
	key, err := k.unwrap(tenant, wrapped.Bytes())
	if err == nil {
		err = writeKey(k.path(tenant), wrapped.Bytes())
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "secret.make", "the key of the tenant %s cannot be written", tenant).
			WithFix("check the rights of the data directory, and that its disk has room")
	}
	k.mu.Lock()
	k.known[tenant] = key
	k.mu.Unlock()
	return nil
}

// Destroy does away with a tenant's key, for good: what was encrypted with it
// cannot be read any more. A key that is not there is no error.
func (k *TenantKeys) Destroy(tenant string) error {
	if err := bawn.CheckName("tenant", tenant); err != nil {
		return err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	err := eraseKey(k.path(tenant))
	k.mu.Lock() // after the file: nobody reads it again
	delete(k.known, tenant)
	k.mu.Unlock()
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "secret.destroy", "the key of the tenant %s cannot be destroyed", tenant).
			WithFix("check the rights of the data directory")
	}
	return nil
}

// Seal encrypts data of a tenant. What is sealed under what opens under that, and
// under no other.
func (k *TenantKeys) Seal(tenant, what string, data []byte) ([]byte, error) {
	key, err := k.get(tenant)
	if err != nil {
		return nil, err
	}
	sealed, err := key.aead.Encrypt(data, []byte(what))
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "secret.seal", "what is the tenant's cannot be encrypted")
	}
	return sealed, nil
}

// Open decrypts what Seal made. CodeUnavailable means that the tenant's key is
// missing or damaged, CodeUnprocessable that sealed is not what was sealed with it
// under what.
func (k *TenantKeys) Open(tenant, what string, sealed []byte) ([]byte, error) {
	key, err := k.get(tenant)
	if err != nil {
		return nil, err
	}
	data, err := key.aead.Decrypt(sealed, []byte(what))
	if err != nil {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, "secret.open", "it was not encrypted with the key of the tenant %s for this place", tenant)
	}
	return data, nil
}

func (k *TenantKeys) get(tenant string) (tenantKey, error) {
	k.mu.RLock()
	key, ok := k.known[tenant]
	k.mu.RUnlock()
	if ok {
		return key, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok = k.known[tenant]; ok {
		return key, nil
	}
	data, err := k.read(tenant)
	if err == nil {
		key, err = k.unwrap(tenant, data)
	}
	if err != nil {
		problem := "damaged"
		if errors.Is(err, fs.ErrNotExist) {
			problem = "missing"
		}
		return tenantKey{}, bawn.Wrap(err, bawn.CodeUnavailable, "secret.key", "the key of the tenant %s is %s", tenant, problem).WithFix(restoreFix)
	}
	k.known[tenant] = key
	return key, nil
}

func (k *TenantKeys) read(tenant string) ([]byte, error) {
	if err := bawn.CheckName("tenant", tenant); err != nil {
		return nil, err
	}
	return readKey(k.path(tenant))
}

func (k *TenantKeys) unwrap(tenant string, data []byte) (tenantKey, error) {
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(data)), k.wrap, []byte(tenant))
	if err != nil {
		return tenantKey{}, err
	}
	a, err := aead.New(h)
	return tenantKey{a, data}, err
}

// Changed returns the tenants whose key is in use and whose file is not, or not any
// more, what it was read from: at the next start they have lost what is theirs.
func (k *TenantKeys) Changed() []string {
	k.mu.RLock()
	known := maps.Clone(k.known)
	k.mu.RUnlock()
	var bad []string
	for tenant, key := range known {
		if data, err := k.read(tenant); err != nil || !bytes.Equal(data, key.file) {
			k.mu.RLock()
			_, still := k.known[tenant]
			k.mu.RUnlock()
			if still {
				bad = append(bad, tenant)
			}
		}
	}
	slices.Sort(bad)
	return bad
}
