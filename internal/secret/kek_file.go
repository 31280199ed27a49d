package secret

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"bawn.dev/bawn"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// fileKey is a root key in a file.
type fileKey struct {
	name string
	aead tink.AEAD
}

func openFileKey(path string) (RootKey, error) {
	const fix = "make one with: openssl rand -hex 32 > PATH, for the user of the node alone"
	data, err := readKey(path)
	if err != nil {
		return nil, keyFailed(err, "file:"+path, "its file cannot be read").WithFix("%s", fix)
	}
	defer clear(data)
	key := data
	if len(data) != 32 {
		if key, err = hex.DecodeString(strings.TrimSpace(string(data))); err != nil || len(key) != 32 {
			return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "the file %s is not 32 bytes, and not 64 hex digits", path).WithFix("%s", fix)
		}
		defer clear(key)
	}
	a, err := subtle.NewAESGCM(key)
	if err != nil {
		return nil, keyFailed(err, "file:"+path, "it is no key")
	}
	id := sha256.Sum256(append([]byte("bawn root key\n"), key...))
	return &fileKey{"file:" + hex.EncodeToString(id[:8]), a}, nil
}

func (k *fileKey) Name() string { return k.name }

func (k *fileKey) Wrap(_ context.Context, plain, ad []byte) ([]byte, error) {
	return k.aead.Encrypt(plain, ad)
}

func (k *fileKey) Unwrap(_ context.Context, wrapped, ad []byte) ([]byte, error) {
	plain, err := k.aead.Decrypt(wrapped, ad)
	if err != nil {
		return nil, keyFailed(err, k.name, "what it should open is damaged, or was wrapped with another").WithFix("give the key that the root secret was wrapped with")
	}
	return plain, nil
}
