package secret

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

const keyARN = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// service stands at the edge of the process for a key service: it answers as one, and
// can be told to fail.
type service struct {
	*httptest.Server
	status int    // not 0: every answer
	keyID  string // of KMS' answers
}

func newService(t *testing.T, key []byte) *service {
	s := &service{keyID: keyARN}
	box := &fileKey{name: "edge", aead: nil}
	k, err := openFileKey(keyFile(t, key))
	must(t, err)
	box = k.(*fileKey)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if s.status != 0 {
			w.WriteHeader(s.status)
			io.WriteString(w, `{"__type":"KMSInternalException","errors":["sealed"]}`)
			return
		}
		fail := func() { w.WriteHeader(400); io.WriteString(w, `{"__type":"InvalidCiphertextException"}`) }
		switch {
		case r.Header.Get("X-Amz-Target") != "":
			var in struct {
				KeyID                     string `json:"KeyId"`
				Plaintext, CiphertextBlob []byte
				EncryptionContext         map[string]string
			}
			auth := r.Header.Get("Authorization")
			if json.Unmarshal(body, &in) != nil || in.KeyID != keyARN || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" ||
				!strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKID/") || !strings.Contains(auth, "/eu-west-1/kms/aws4_request") {
				t.Errorf("no request of KMS: %s %s", auth, body)
			}
			ad, _ := json.Marshal(in.EncryptionContext)
			out := map[string]any{"KeyId": s.keyID}
			var err error
			if r.Header.Get("X-Amz-Target") == "TrentService.Encrypt" {
				out["CiphertextBlob"], err = box.aead.Encrypt(in.Plaintext, ad)
			} else if out["Plaintext"], err = box.aead.Decrypt(in.CiphertextBlob, ad); err != nil {
				fail()
				return
			}
			json.NewEncoder(w).Encode(out)
		case r.Header.Get("X-Vault-Token") == "s.token" && strings.HasPrefix(r.URL.Path, "/v1/transit/"):
			var in map[string]string
			if json.Unmarshal(body, &in) != nil || !strings.HasSuffix(r.URL.Path, "/bawn") || r.Method != http.MethodPost {
				t.Errorf("no request of Transit: %s %s", r.URL, body)
			}
			data := map[string]string{}
			if plain, err := base64.StdEncoding.DecodeString(in["plaintext"]); strings.Contains(r.URL.Path, "/encrypt/") && err == nil {
				sealed, _ := box.aead.Encrypt(plain, []byte(in["associated_data"]))
				data["ciphertext"] = "vault:v1:" + base64.StdEncoding.EncodeToString(sealed)
			} else {
				sealed, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(in["ciphertext"], "vault:v1:"))
				plain, err := box.aead.Decrypt(sealed, []byte(in["associated_data"]))
				if err != nil {
					fail()
					return
				}
				data["plaintext"] = base64.StdEncoding.EncodeToString(plain)
			}
			json.NewEncoder(w).Encode(map[string]any{"data": data})
		default:
			w.WriteHeader(403)
			io.WriteString(w, `{"errors":["permission denied"]}`)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func keyFile(t *testing.T, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(name, data, 0o600))
	return name
}

// TestE1RootKeys holds every kind of root key to the same: it opens what it has wrapped,
// for the same purpose alone, and nothing that was changed.
func TestE1RootKeys(t *testing.T) {
	ctx := context.Background()
	kms, vault := newService(t, bytes.Repeat([]byte{7}, 32)), newService(t, bytes.Repeat([]byte{8}, 32))
	env := map[string]string{
		"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL_KMS": kms.URL, "VAULT_ADDR": vault.URL, "VAULT_TOKEN": "s.token",
	}
	cfg := RootKeyConfig{Getenv: func(k string) string { return env[k] }}
	words := keyFile(t, []byte("correct horse battery staple\r\nsecond line\n"))
	for _, spec := range []string{
		"file:" + keyFile(t, bytes.Repeat([]byte{9}, 32)), "file:" + keyFile(t, []byte(hex.EncodeToString(bytes.Repeat([]byte{9}, 32))+"\n")),
		"passphrase:" + words, "awskms:" + keyARN, "vault:bawn", "vault:transit/bawn",
	} {
		kind, _, _ := strings.Cut(spec, ":")
		t.Run(kind, func(t *testing.T) {
			k, err := OpenRootKey(spec, cfg)
			must(t, err)
			wrapped, err := k.Wrap(ctx, []byte(planted), []byte("for this"))
			must(t, err)
			if bytes.Contains(wrapped, []byte(planted)) {
				t.Fatal("it is in clear")
			}
			again, err := OpenRootKey(spec, cfg)
			must(t, err)
			if again.Name() != k.Name() || strings.Contains(k.Name(), "horse") {
				t.Error(again.Name(), k.Name())
			}
			if got, err := again.Unwrap(ctx, wrapped, []byte("for this")); err != nil || string(got) != planted {
				t.Fatal(string(got), err)
			}
			if got, err := k.Unwrap(ctx, wrapped, []byte("for that")); bawn.ErrorCode(err) != bawn.CodeUnavailable || len(got) > 0 {
				t.Errorf("for another purpose: %q %v", got, err)
			}
			for _, i := range []int{0, 1, len(wrapped) / 2, len(wrapped) - 3} {
				bad := bytes.Clone(wrapped)
				if bad[i] ^= 2; kind == "passphrase" && i == 0 {
					continue // the cost: of more it would take long
				}
				if got, err := k.Unwrap(ctx, bad, []byte("for this")); err == nil {
					t.Errorf("byte %d changed: %q", i, got)
				}
			}
		})
	}
	unwrap := func(spec string, wrapped []byte) *bawn.Error {
		t.Helper()
		k, err := OpenRootKey(spec, cfg)
		must(t, err)
		_, err = k.Unwrap(ctx, wrapped, []byte("for this"))
		e, ok := err.(*bawn.Error)
		if !ok || e.Code != bawn.CodeUnavailable || e.Fix == "" && !strings.Contains(e.Message, "another key") {
			t.Fatalf("%s: %v", spec, err)
		}
		return e
	}
	k, err := OpenRootKey("passphrase:"+words, cfg)
	must(t, err)
	wrapped, err := k.Wrap(ctx, []byte("x"), []byte("for this"))
	must(t, err)
	if e := unwrap("passphrase:"+keyFile(t, []byte("another horse entirely")), wrapped); !strings.Contains(e.Message, "wrong") {
		t.Error(e)
	}

	// Another key than the one that was named, whatever KMS is ready to open.
	k, err = OpenRootKey("awskms:"+keyARN, cfg)
	must(t, err)
	wrapped, err = k.Wrap(ctx, []byte("x"), []byte("for this"))
	must(t, err)
	kms.keyID = strings.ReplaceAll(keyARN, "1234abcd", "ffffffff")
	if e := unwrap("awskms:"+keyARN, wrapped); !strings.Contains(e.Message, "another key") {
		t.Error(e)
	}
	kms.keyID = keyARN

	// Down, sealed, gone, without credentials.
	kms.status, vault.status = 500, 503
	unwrap("awskms:"+keyARN, wrapped)
	if e := unwrap("vault:bawn", []byte("vault:v1:AAAA")); !strings.Contains(e.Message, "503") || !strings.Contains(e.Fix, "unsealed") {
		t.Error(e)
	}
	kms.Close()
	unwrap("awskms:"+keyARN, wrapped)
	delete(env, "AWS_SECRET_ACCESS_KEY")
	delete(env, "VAULT_TOKEN")
	unwrap("awskms:"+keyARN, wrapped)
	unwrap("vault:bawn", wrapped)

	env["AWS_ENDPOINT_URL_KMS"], env["VAULT_ADDR"] = "http://kms.example.org", "http://10.0.0.1:8200"
	for _, spec := range []string{
		"x", "file", "file:", "file:" + keyFile(t, []byte("short")), "file:/does/not/exist", "passphrase:" + keyFile(t, []byte("short\n")), "awskms:alias/x",
		"awskms:arn:aws:kms:evil.example.org/:1:key/x", "awskms:" + keyARN, "vault:bawn", "vault:../sys", "vault:a/b/c", "magic:x",
	} {
		if k, err := OpenRootKey(spec, cfg); err == nil {
			t.Errorf("%s is taken: %v", spec, k.Name())
		}
	}
}
