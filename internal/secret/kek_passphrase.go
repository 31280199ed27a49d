package secret

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"

	"bawn.dev/bawn"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"golang.org/x/crypto/scrypt"
)

const (
	minPassphrase = 12
	maxPassphrase = 1 << 10

	saltBytes   = 16
	scryptLogN  = 17 // 128 MiB and about half a second, as OWASP has it
	maxScryptN  = 20
	scryptR     = 8
	scryptP     = 1
	nameOfWords = "passphrase"
)

// passphrase is a root key that is made of words, with a salt of its own for each
// wrapping.
type passphrase struct{ words []byte }

func openPassphrase(path string) (RootKey, error) {
	data, err := readKey(path)
	if err != nil {
		return nil, keyFailed(err, nameOfWords, "the file "+path+" cannot be read").WithFix("put the passphrase on its first line")
	}
	words, _, _ := bytes.Cut(data, []byte("\n"))
	words = bytes.TrimSuffix(words, []byte("\r"))
	if len(words) < minPassphrase || len(words) > maxPassphrase {
		return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "the first line of %s is no passphrase: wanted are %d to %d bytes", path, minPassphrase, maxPassphrase).
			WithFix("take five random words or more")
	}
	return &passphrase{bytes.Clone(words)}, nil
}

func (k *passphrase) Name() string { return nameOfWords }

func (k *passphrase) aead(salt []byte, logN byte) (*subtle.AESGCM, error) {
	key, err := scrypt.Key(k.words, salt, 1<<logN, scryptR, scryptP, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return subtle.NewAESGCM(key)
}

// Wrap returns the cost, the salt and what is encrypted.
func (k *passphrase) Wrap(_ context.Context, plain, ad []byte) ([]byte, error) {
	head := make([]byte, 1+saltBytes)
	head[0] = scryptLogN
	rand.Read(head[1:]) // never fails: crypto/rand aborts the program instead
	a, err := k.aead(head[1:], head[0])
	if err != nil {
		return nil, keyFailed(err, nameOfWords, "it cannot be stretched")
	}
	sealed, err := a.Encrypt(plain, append(bytes.Clone(ad), head...))
	return append(head, sealed...), err
}

func (k *passphrase) Unwrap(_ context.Context, wrapped, ad []byte) ([]byte, error) {
	if len(wrapped) < 1+saltBytes || wrapped[0] < 10 || wrapped[0] > maxScryptN {
		return nil, keyFailed(errors.New("malformed"), nameOfWords, "what it should open is damaged").WithFix("put root.secret back from a copy")
	}
	head := wrapped[:1+saltBytes]
	a, err := k.aead(head[1:], head[0])
	if err != nil {
		return nil, keyFailed(err, nameOfWords, "it cannot be stretched")
	}
	plain, err := a.Decrypt(wrapped[len(head):], append(bytes.Clone(ad), head...))
	if err != nil {
		return nil, keyFailed(err, nameOfWords, "it is wrong, or what it should open is damaged").WithFix("give the passphrase that the root secret was wrapped with")
	}
	return plain, nil
}
