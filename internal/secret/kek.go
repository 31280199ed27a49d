package secret

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// RootKey wraps the root secret of a node: a key that is somewhere else than the data
// directory. What was wrapped with some associated data opens with the same alone.
// Errors are of CodeUnavailable: a node does not start without its root secret.
type RootKey interface {
	// Name says which key it is, and nothing secret. Two that have the same name open
	// what the other has wrapped.
	Name() string
	Wrap(ctx context.Context, plain, associated []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, associated []byte) ([]byte, error)
}

// RootKeyConfig says how root keys are reached.
type RootKeyConfig struct {
	Getenv func(string) string // where credentials of services are; nil means os.Getenv
	Client *http.Client        // nil means one that looks at certificates and gives up after a while
}

const (
	maxKeyAnswer = 64 << 10 // bytes of a key service's answer
	keyTimeout   = 15 * time.Second
)

// OpenRootKey returns the root key that spec names:
//
//	file:PATH             32 bytes, or as many hex digits
//	passphrase:FILE       the first line of a file, by scrypt
//	awskms:KEY-ARN        AWS Key Management Service, or what speaks like it
//	vault:[MOUNT/]KEY     the Transit engine of HashiCorp Vault or OpenBao
//
// "" is no key: nil. Nothing is asked of a service before the key is used.
func OpenRootKey(spec string, cfg RootKeyConfig) (RootKey, error) {
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: keyTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	kind, rest, ok := strings.Cut(spec, ":")
	switch {
	case spec == "":
		return nil, nil
	case ok && rest != "" && kind == "file":
		return openFileKey(rest)
	case ok && rest != "" && kind == "passphrase":
		return openPassphrase(rest)
	case ok && rest != "" && kind == "awskms":
		return openAWSKMS(rest, cfg)
	case ok && rest != "" && kind == "vault":
		return openTransit(rest, cfg)
	}
	return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "%.80q names no root key", spec).
		WithFix("give file:PATH, passphrase:FILE, awskms:KEY-ARN or vault:KEY")
}

// keyFailed is the error of a root key that cannot be used.
func keyFailed(err error, name, problem string) *bawn.Error {
	return bawn.Wrap(err, bawn.CodeUnavailable, "secret.rootkey", "the root key %s cannot be used: %s", name, problem)
}

// checkURL holds the address of a key service to TLS, but on this host.
func checkURL(name, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "%s %.100q is no address of a service", name, text).WithFix("write it as https://HOST:PORT")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || ip == nil || !ip.IsLoopback()) {
		return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "%s %.100q is without TLS", name, text).WithFix("write it as https://HOST:PORT")
	}
	return u, nil
}

// ask sends a request to a key service and reads its answer into out. Its error says
// what the service said, bounded.
func ask(client *http.Client, r *http.Request, out any) error {
	res, err := client.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is in the name already
		}
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxKeyAnswer))
	if err != nil {
		return err
	}
	defer clear(data)
	if res.StatusCode != http.StatusOK {
		text := strings.Join(strings.Fields(strings.ToValidUTF8(string(data[:min(len(data), 300)]), "")), " ")
		return errors.New("it answered " + res.Status + ": " + text)
	}
	return json.NewDecoder(bytes.NewReader(data)).Decode(out)
}
