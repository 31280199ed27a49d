package node

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"bawn.dev/bawn"
)

// rootSecret is the secret that the node's other secrets are derived from, each for
// one purpose. Whoever has it has them all.
type rootSecret [32]byte

// rootSecretFile is where it lies in the data directory, as hex digits.
const rootSecretFile = "root.secret"

// openRootSecret reads the node's root secret, or makes it at the first start.
func openRootSecret(data string) (k rootSecret, err error) {
	const op = "node.rootkey"
	path := filepath.Join(data, rootSecretFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		rand.Read(k[:]) // never fails: crypto/rand aborts the program instead
		return k, writeFile(path, []byte(hex.EncodeToString(k[:])+"\n"), 0o600)
	}
	if err != nil {
		return k, bawn.Wrap(err, bawn.CodeUnavailable, op, "the root secret cannot be read").WithFix("let the user of the node read %s", path)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != len(k) {
		return k, bawn.Errorf(bawn.CodeUnavailable, op, "the root secret is damaged").WithFix("restore %s from a backup", path)
	}
	return rootSecret(raw), nil
}

// derive returns the key for one purpose. Two purposes have nothing in common.
func (k rootSecret) derive(purpose string) []byte {
	key, err := hkdf.Key(sha256.New, k[:], nil, "bawn "+purpose, 32)
	if err != nil {
		panic(err) // only for a length that SHA-256 cannot give
	}
	return key
}
