package client

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"bawn.dev/bawn"
)

// ContextEnv names the environment variable that moves the context file.
const ContextEnv = "BAWN_CONTEXT"

const maxContextBytes = 256 << 10

// Context says where a node is, how to know that it is the right one, and who
// is asking. It holds a credential: it is kept in a file only its owner can
// read, and printing it leaves the key out.
type Context struct {
	URL    string `json:"url"`              // of the admin listener: https://127.0.0.1:8444
	Public string `json:"public,omitempty"` // of the public listener, to build the URLs of functions
	CA     string `json:"ca"`               // PEM; the only authority the node's certificate may come from
	Key    string `json:"key,omitempty"`    // the bearer key

	// Login is who somebody has logged in as; it goes before Key.
	Login *Login `json:"login,omitempty"`
	// Certificate and CertificateKey are the paths of PEM files: of a client
	// certificate with what belongs to its chain, and of its key.
	Certificate    string `json:"certificate,omitempty"`
	CertificateKey string `json:"certificateKey,omitempty"`
}

// String returns the URL, never the key.
func (c Context) String() string { return c.URL }

// GoString returns what String does, so that %#v does not print the key.
func (c Context) GoString() string { return c.URL }

// LogValue keeps the key out of logs.
func (c Context) LogValue() slog.Value { return slog.StringValue(c.URL) }

// DefaultContextFile returns the path named by BAWN_CONTEXT, or
// bawn/context.json in the user's configuration folder.
func DefaultContextFile() (string, error) {
	if p := os.Getenv(ContextEnv); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInvalid, "context", "there is no home folder to keep the context file in").
			WithFix("set %s to the path of a context file", ContextEnv)
	}
	return filepath.Join(dir, "bawn", "context.json"), nil
}

// LoadContext reads a context file. An empty path means [DefaultContextFile].
// The error has code [bawn.CodeNotFound] if there is no such file.
func LoadContext(path string) (*Context, error) {
	if path == "" {
		var err error
		if path, err = DefaultContextFile(); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bawn.Wrap(err, bawn.CodeNotFound, "context", "there is no context file at %s", path).
			WithFix("start a node with `bawn up`, which writes one, or set %s to the file you were given", ContextEnv)
	}
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "context", "the context file %s cannot be read: %v", path, reason(err)).
			WithFix("run as the user who owns it, or set %s to another file", ContextEnv)
	}
	defer f.Close()
	return ReadContext(f, path)
}

// ReadContext reads what [LoadContext] reads from a file that is open; path is
// for the errors. One that is empty counts as none: [bawn.CodeNotFound].
func ReadContext(r io.Reader, path string) (*Context, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxContextBytes+1))
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "context", "the context file %s cannot be read: %v", path, reason(err))
	}
	if len(data) == 0 {
		return nil, bawn.Errorf(bawn.CodeNotFound, "context", "the context file %s is empty", path).
			WithFix("start a node with `bawn up`, which writes one, or set %s to the file you were given", ContextEnv)
	}
	c, err := parseContext(data)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "context", "%s is not a context file: %v", path, err).
			WithFix("remove it and start the node again with `bawn up`, which writes a new one")
	}
	return c, nil
}

func parseContext(data []byte) (*Context, error) {
	if len(data) > maxContextBytes {
		return nil, errors.New("it is too large")
	}
	var c Context
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, errors.New("it is not JSON of the right shape")
	}
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, errors.New(`"url" must be an https URL`)
	}
	if c.Public != "" {
		if u, err := url.Parse(c.Public); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, errors.New(`"public" must be an https URL`)
		}
	}
	if c.Key == "" && c.Login == nil && c.Certificate == "" {
		return nil, errors.New(`"key" is missing`)
	}
	for _, b := range []byte(c.Key) {
		if b <= ' ' || b >= 0x7f {
			return nil, errors.New(`"key" holds a character that no key has`)
		}
	}
	if _, err := c.pool(); err != nil {
		return nil, err
	}
	return &c, nil
}

// pool returns the certificates of c.CA.
func (c *Context) pool() (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for rest := []byte(c.CA); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, errors.New(`"ca" is not a PEM certificate`)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New(`"ca" is not a PEM certificate`)
	}
	return pool, nil
}

// Encode returns what is in a context file, the key included.
func (c *Context) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(c, "", "  ")
	return append(data, '\n'), err
}

// SaveContext writes a context file that only the owner can read, replacing an
// older one in one step. Folders that are missing are made, mode 0700.
func SaveContext(path string, c *Context) error {
	fail := func(err error) error {
		return bawn.Wrap(err, bawn.CodeInvalid, "context", "the context file %s cannot be written: %v", path, reason(err)).
			WithFix("set %s to a path you can write", ContextEnv)
	}
	data, err := c.Encode()
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(dir, ".context-*") // made with mode 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// reason strips the operation and path from a file error: the sentence around
// it names them already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
