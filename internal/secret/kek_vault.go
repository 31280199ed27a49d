package secret

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"bawn.dev/bawn"
)

// transit is a root key in the Transit engine of HashiCorp Vault or OpenBao. The
// address and the token are those of the usual variables, VAULT_ADDR, VAULT_TOKEN and
// VAULT_NAMESPACE. The key must be of a kind that takes associated data, as
// aes256-gcm96, which is Transit's own choice.
type transit struct {
	mount, key string
	url        *url.URL
	cfg        RootKeyConfig
}

func openTransit(name string, cfg RootKeyConfig) (RootKey, error) {
	mount, key, ok := strings.Cut(name, "/")
	if !ok {
		mount, key = "transit", name
	}
	for _, part := range []string{mount, key} {
		if part == "" || part[0] == '.' || len(part) > 128 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "%.100q is no key of Transit", name).WithFix("write it as KEY, or as MOUNT/KEY")
		}
	}
	address := cfg.Getenv("VAULT_ADDR")
	if address == "" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "where Vault is is not known").WithFix("set VAULT_ADDR for the node, and VAULT_TOKEN")
	}
	u, err := checkURL("VAULT_ADDR", address)
	if err != nil {
		return nil, err
	}
	return &transit{mount, key, u, cfg}, nil
}

func (k *transit) Name() string { return "vault:" + k.mount + "/" + k.key }

func (k *transit) call(ctx context.Context, operation string, in map[string]string, ad []byte) (out struct {
	Data struct {
		Ciphertext string `json:"ciphertext"`
		Plaintext  []byte `json:"plaintext"`
	} `json:"data"`
}, err error) {
	in["associated_data"] = base64.StdEncoding.EncodeToString(ad)
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	defer clear(body)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url.JoinPath("v1", k.mount, operation, k.key).String(), bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	token := k.cfg.Getenv("VAULT_TOKEN")
	if token == "" {
		return out, keyFailed(nil, k.Name(), "there is no token").WithFix("set VAULT_TOKEN for the node")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Vault-Token", token)
	r.Header.Set("X-Vault-Request", "true")
	if ns := k.cfg.Getenv("VAULT_NAMESPACE"); ns != "" {
		r.Header.Set("X-Vault-Namespace", ns)
	}
	if err := ask(k.cfg.Client, r, &out); err != nil {
		return out, keyFailed(err, k.Name(), err.Error()).WithFix("see that %s can be reached and is unsealed, and that the token may update %s/%s/%s", k.url.Host, k.mount, operation, k.key)
	}
	return out, nil
}

func (k *transit) Wrap(ctx context.Context, plain, ad []byte) ([]byte, error) {
	out, err := k.call(ctx, "encrypt", map[string]string{"plaintext": base64.StdEncoding.EncodeToString(plain)}, ad)
	if err == nil && !strings.HasPrefix(out.Data.Ciphertext, "vault:v") {
		err = keyFailed(nil, k.Name(), "what it answered is no ciphertext")
	}
	return []byte(out.Data.Ciphertext), err
}

func (k *transit) Unwrap(ctx context.Context, wrapped, ad []byte) ([]byte, error) {
	out, err := k.call(ctx, "decrypt", map[string]string{"ciphertext": string(wrapped)}, ad)
	return out.Data.Plaintext, err
}
