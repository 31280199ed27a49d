package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
)

// TestE1RootSecretIsWrapped takes a root secret from none to one root key, to another and
// back: it stays the same, and opens with the key that it was wrapped with alone.
func TestE1RootSecretIsWrapped(t *testing.T) {
	data, ctx := t.TempDir(), t.Context()
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	key := func(b byte) secret.RootKey {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, bytes.Repeat([]byte{b}, 32), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := OpenRootKey("file:"+name, func(string) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first, second := key(1), key(2)
	root, err := openRootSecret(ctx, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(filepath.Join(data, rootSecretFile))
	if err != nil {
		t.Fatal(err)
	}
	_, err = openRootSecret(ctx, data, first)
	if bawn.ErrorCode(err) != bawn.CodeConflict {
		t.Error("a key for what is not wrapped:", err)
	}
	from := secret.RootKey(nil)
	for _, to := range []secret.RootKey{first, second} {
		if err := ChangeRootKey(ctx, data, from, to); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(data, rootSecretFile))
		if err != nil || strings.Contains(string(text), strings.TrimSpace(string(plain))) || !strings.Contains(string(text), to.Name()) {
			t.Errorf("%s %v", text, err)
		}
		if got, err := openRootSecret(ctx, data, to); err != nil || got != root {
			t.Error("with its key:", err)
		}
		if err := ChangeRootKey(ctx, data, from, to); bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Error("from another key:", err)
		}
		if got, err := openRootSecret(ctx, data, from); bawn.ErrorCode(err) != bawn.CodeUnavailable || got != (rootSecret{}) {
			t.Error("with another key:", err)
		}
		bad := bytes.Replace(text, []byte(`"wrapped":"A`), []byte(`"wrapped":"B`), 1)
		if bytes.Equal(bad, text) {
			bad = bytes.Replace(text, []byte(`"wrapped":"`), []byte(`"wrapped":"A`), 1)
		}
		if err := os.WriteFile(filepath.Join(data, rootSecretFile), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openRootSecret(ctx, data, to); bawn.ErrorCode(err) != bawn.CodeUnavailable {
			t.Error("tampered with:", err)
		}
		if err := os.WriteFile(filepath.Join(data, rootSecretFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		from = to
	}
	if err := ChangeRootKey(ctx, data, second, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := openRootSecret(ctx, data, nil); err != nil || got != root {
		t.Error("unwrapped again:", err)
	}
}
