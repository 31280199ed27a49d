package node

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

// rootSecret is the secret that the node's other secrets are derived from, each for
// one purpose. Whoever has it has them all.
type rootSecret [32]byte

// rootSecretFile is where it lies in the data directory, as hex digits.
const rootSecretFile = "root.secret"

// OpenRootKey returns the root key that spec names, with credentials of services from
// the environment; see [secret.OpenRootKey].
func OpenRootKey(spec string, getenv func(string) string) (secret.RootKey, error) {
	return secret.OpenRootKey(spec, secret.RootKeyConfig{Getenv: getenv})
}

// rootBound is what a wrapped root secret is bound to.
const rootBound = "bawn root secret 1"

// wrappedRoot is the file of a root secret that a root key has wrapped.
type wrappedRoot struct {
	Key     string `json:"key"` // its name
	Wrapped []byte `json:"wrapped"`
}

// openRootSecret reads the node's root secret, or makes it at the first start. key has
// wrapped it; nil means that it lies there as it is.
func openRootSecret(ctx context.Context, data string, key secret.RootKey) (k rootSecret, err error) {
	const op = "node.rootkey"
	path := filepath.Join(data, rootSecretFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		rand.Read(k[:]) // never fails: crypto/rand aborts the program instead
		text, err := k.encode(ctx, key)
		if err != nil {
			return rootSecret{}, err
		}
		return k, writeFile(path, text, 0o600)
	}
	if err != nil {
		return k, bawn.Wrap(err, bawn.CodeUnavailable, op, "the root secret cannot be read").WithFix("let the user of the node read %s", path)
	}
	defer clear(text)
	if !bytes.HasPrefix(text, []byte("{")) {
		raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil || len(raw) != len(k) {
			return k, bawn.Errorf(bawn.CodeUnavailable, op, "the root secret is damaged").WithFix("restore %s from a backup", path)
		}
		if key != nil {
			return k, bawn.Errorf(bawn.CodeConflict, op, "the root secret is not wrapped, and --root-key says that it is").
				WithFix("wrap it once, with the node stopped: bawn root-key change --to %s; or leave --root-key out", kindOf(key))
		}
		return rootSecret(raw), nil
	}
	var w wrappedRoot
	if err := json.Unmarshal(text, &w); err != nil || w.Key == "" {
		return k, bawn.Errorf(bawn.CodeUnavailable, op, "the root secret is damaged").WithFix("restore %s from a backup", path)
	}
	switch {
	case key == nil:
		return k, bawn.Errorf(bawn.CodeUnavailable, op, "the root secret is wrapped with the root key %.200q, and none was given", w.Key).
			WithFix("give it with --root-key, or in BAWN_ROOT_KEY")
	case key.Name() != w.Key:
		return k, bawn.Errorf(bawn.CodeUnavailable, op, "the root secret is wrapped with the root key %.200q, and --root-key is %.200q", w.Key, key.Name()).
			WithFix("give the one that it is wrapped with; bawn root-key change takes another")
	}
	raw, err := key.Unwrap(ctx, w.Wrapped, []byte(rootBound))
	if err != nil {
		return k, err
	}
	defer clear(raw)
	if len(raw) != len(k) {
		return k, bawn.Errorf(bawn.CodeUnavailable, op, "what the root key has opened is no root secret").WithFix("restore %s from a backup", path)
	}
	return rootSecret(raw), nil
}

// kindOf is how a key is named on a command line, as far as its name says.
func kindOf(key secret.RootKey) string {
	kind, rest, _ := strings.Cut(key.Name(), ":")
	if kind == "file" || kind == "passphrase" {
		return kind + ":PATH"
	}
	return kind + ":" + rest
}

// encode returns the root secret as its file has it.
func (k rootSecret) encode(ctx context.Context, key secret.RootKey) ([]byte, error) {
	if key == nil {
		return []byte(hex.EncodeToString(k[:]) + "\n"), nil
	}
	wrapped, err := key.Wrap(ctx, k[:], []byte(rootBound))
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(wrappedRoot{key.Name(), wrapped})
	return append(text, '\n'), err
}

// ChangeRootKey wraps the root secret of a data directory on which no node runs with
// another root key, and touches nothing else. nil stands for none: the secret lies in
// the directory as it is. The file as it was is overwritten where the disk writes in
// place.
func ChangeRootKey(ctx context.Context, data string, from, to secret.RootKey) error {
	data, err := host.Enter(data)
	if err != nil {
		return err
	}
	path := filepath.Join(data, rootSecretFile)
	old, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeNotFound, "node.rootkey", "there is no root secret in %s", data).WithFix("name the data directory with --data DIR; a node makes its root secret when it is first started")
	}
	defer old.Close()
	unlock, err := store.LockDir(data)
	if err != nil {
		return err
	}
	defer unlock()
	root, err := openRootSecret(ctx, data, from)
	if err != nil {
		return err
	}
	defer clear(root[:])
	text, err := root.encode(ctx, to)
	if err != nil {
		return err
	}
	// What does not open must not take the place of what does.
	if to != nil {
		var w wrappedRoot
		if err := json.Unmarshal(text, &w); err != nil {
			return bawn.Wrap(err, bawn.CodeInternal, "node.rootkey", "what was wrapped cannot be read")
		}
		again, err := to.Unwrap(ctx, w.Wrapped, []byte(rootBound))
		if err != nil {
			return err
		}
		if !bytes.Equal(again, root[:]) {
			return bawn.Errorf(bawn.CodeUnavailable, "node.rootkey", "the new root key does not open what it has wrapped").WithFix("nothing has changed; look at the key service")
		}
		clear(again)
	}
	if err := writeFile(path, text, 0o600); err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "node.rootkey", "%s cannot be written", path).WithFix("nothing has changed; check the rights of the folder, and that its disk has room")
	}
	info, err := old.Stat()
	if err == nil {
		if _, err = old.WriteAt(make([]byte, info.Size()), 0); err == nil {
			err = old.Sync()
		}
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "node.rootkey", "the root key was changed, and the old file could not be overwritten")
	}
	return nil
}

// derive returns the key for one purpose. Two purposes have nothing in common.
func (k rootSecret) derive(purpose string) []byte {
	key, err := hkdf.Key(sha256.New, k[:], nil, "bawn "+purpose, 32)
	if err != nil {
		panic(err) // only for a length that SHA-256 cannot give
	}
	return key
}
