package secret

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bawn.dev/bawn"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// endKeys has one key for each version of a secret, in a file of its own. When the
// file goes, the version is dead: neither what the store has not yet overwritten nor
// any backup has what opens it. It is safe for concurrent use.
type endKeys struct {
	dir  string
	wrap tink.AEAD

	mu    sync.RWMutex
	known map[string]tink.AEAD // by the version's key in the store
}

func openEndKeys(dir string, wrap []byte) (*endKeys, error) {
	a, err := subtle.NewAESGCM(wrap)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "secret.open", "the key that wraps the keys of secrets cannot be used")
	}
	return &endKeys{dir: dir, wrap: a, known: map[string]tink.AEAD{}}, nil
}

func (k *endKeys) path(key string) string { return filepath.Join(k.dir, key+fileSuffix) }

// make makes the key of a version that was never there. When it returns nil the key
// is on the disk.
func (k *endKeys) make(key string) error {
	h, err := newKeyset()
	var wrapped bytes.Buffer
	if err == nil {
		err = h.WriteWithAssociatedData(keyset.NewBinaryWriter(&wrapped), k.wrap, []byte(key))
	}
	if err == nil {
		err = writeKey(k.path(key), wrapped.Bytes())
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "secret.make", "the key of the secret cannot be written").
			WithFix("check the rights of the data directory, and that its disk has room")
	}
	return nil
}

// key returns the key of a version. CodeUnavailable means that it is not there, or
// damaged.
func (k *endKeys) key(key string) (tink.AEAD, error) {
	k.mu.RLock()
	a := k.known[key]
	k.mu.RUnlock()
	if a != nil {
		return a, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if a = k.known[key]; a != nil {
		return a, nil
	}
	data, err := readKey(k.path(key))
	if err == nil {
		var h *keyset.Handle
		if h, err = keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(data)), k.wrap, []byte(key)); err == nil {
			a, err = aead.New(h)
		}
	}
	if err != nil {
		problem := "damaged"
		if errors.Is(err, fs.ErrNotExist) {
			problem = "missing"
		}
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "secret.key", "the key of a version of a secret is %s", problem).
			WithFix("put the folder tenants of the data directory back from a copy, or give the secret a new value")
	}
	k.known[key] = a
	return a, nil
}

// end overwrites the key of a version. One that is not there is no error.
func (k *endKeys) end(key string) error {
	err := eraseKey(k.path(key))
	k.mu.Lock() // after the file: nobody reads it again
	delete(k.known, key)
	k.mu.Unlock()
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "secret.end", "the key of a version of a secret cannot be destroyed").
			WithFix("check the rights of the data directory")
	}
	return nil
}

// endUnless ends the keys that keep does not want.
func (k *endKeys) endUnless(keep func(key string) bool) error {
	files, err := os.ReadDir(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, f := range files {
		if key, ok := strings.CutSuffix(strings.TrimSuffix(f.Name(), ".new"), fileSuffix); ok && !(keep(key) && strings.HasSuffix(f.Name(), fileSuffix)) {
			if strings.HasSuffix(f.Name(), ".new") {
				errs = append(errs, eraseKey(filepath.Join(k.dir, f.Name())))
				continue
			}
			errs = append(errs, k.end(key))
		}
	}
	return errors.Join(errs...)
}
