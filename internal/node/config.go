package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/secret"
)

// Where a node listens, and for how long it drains, unless it is told
// otherwise.
const (
	DefaultPublic = "127.0.0.1:8443"
	DefaultAdmin  = "127.0.0.1:8444"
	DefaultDrain  = 30 * time.Second
)

// DefaultAddressRate is how often one address may call a node that is told nothing
// else: more than a person or an office does, and less than keeps a node busy.
func DefaultAddressRate() bawn.Rate { return bawn.Rate{Calls: defaultAddressCalls, Per: time.Second} }

const defaultAddressCalls = 2000

// Config says what node to open. Data is required; the rest has defaults.
type Config struct {
	Data   string // the data directory; made with mode 0700
	Public string // address for calls: [DefaultPublic]
	Admin  string // address of the control API: [DefaultAdmin]

	// HTTP is the address of a listener without TLS, which sends browsers on to https;
	// empty: there is none.
	HTTP string
	// MinTLS is the oldest TLS that the public listener takes: 1.3, also if empty, or 1.2.
	MinTLS string
	// Certs and CertKeys are files of certificates of the public listener, in pairs.
	// Whom none fits gets one of the node's own authority.
	Certs, CertKeys []string
	// ACMEAgree says that the terms of an ACME authority are agreed to, which then is
	// asked for certificates of domains and of names: of the directory ACMEDirectory,
	// [DefaultACME] if empty, whose own certificate the file ACMECA is for. ACMEEmail
	// is told to it.
	ACMEAgree                        bool
	ACMEDirectory, ACMEEmail, ACMECA string
	// TrustedProxies are the addresses and CIDRs whose word is believed on where
	// requests come from.
	TrustedProxies []string

	Names        []string      // further host names and addresses for the certificate
	ContextFile  string        // where to write the context of the first administrator; empty: nowhere
	ForceContext bool          // replace a context file that belongs to another node
	DrainTimeout time.Duration // for running calls to end at [Node.Close]: [DefaultDrain]
	OTLPEndpoint string        // URL that takes traces as OTLP over HTTP; empty: no traces
	Version      string        // of the program, for the status
	Warm         int           // warm sandboxes for each runtime in use; 0: the pool's default; negative: none
	// Solo says that the node has one operator only: nobody could approve what
	// they deploy, so it counts as approved. It is recorded, and shown.
	Solo bool
	// What functions may reach beyond the public internet, for the flags of the
	// same names: see [egress.GuardConfig].
	EgressAllow   []string
	EgressResolve []string
	EgressCA      string
	Witnesses     []string     // who cosigns the audit log's checkpoints: URL=KEY
	Log           *slog.Logger // nil discards
	// Labels say where the node is, KEY=VALUE each. They are told, and place nothing.
	Labels []string

	// Timed hears how long each check of the gate took that let a call pass, for
	// measurements; nil costs nothing. It must not block.
	Timed func(check string, took time.Duration)

	// AddressRate is how often one address may call, whatever it calls; the zero
	// value: as often as it likes. AddressRateAtHome holds the host's own loopback
	// addresses to it, too.
	AddressRate       bawn.Rate
	AddressRateAtHome bool

	// RootKey has wrapped the root secret; nil: it lies in the data directory as it is.
	RootKey secret.RootKey

	// User is whom the process becomes for good, with no privilege left, as soon
	// as it can; it must be root until then. Nil: it stays who it is.
	User *host.User
}

func (c *Config) fill() {
	if c.Public == "" {
		c.Public = DefaultPublic
	}
	if c.Admin == "" {
		c.Admin = DefaultAdmin
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrain
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// openData makes the data directory or checks the one that is there: it holds
// keys, so nobody but its owner may look inside.
func openData(dir string) (string, error) {
	const op = "node.data"
	if dir == "" {
		return "", bawn.Errorf(bawn.CodeInvalid, op, "no data directory is named").WithFix("name one with --data DIR")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInvalid, op, "the data directory cannot be found")
	}
	fail := func(err error) error {
		code, fix := bawn.CodeUnavailable, "choose another with --data DIR"
		if errors.Is(err, syscall.ENOSPC) {
			fix = "free some space, or choose another with --data DIR"
		}
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			code, fix = bawn.CodeDenied, "run as the user who owns it, or choose another with --data DIR"
		}
		var pe *fs.PathError
		cause := err
		if errors.As(err, &pe) {
			cause = pe.Err
		}
		return bawn.Wrap(err, code, op, "the data directory %s cannot be used: %v", dir, cause).WithFix("%s", fix)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fail(err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", fail(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fail(err)
	}
	switch open := st.Mode().Perm() & 0o077; {
	case open == 0:
	case len(entries) == 0: // made by hand for this purpose
		if err := os.Chmod(dir, 0o700); err != nil {
			return "", fail(err)
		}
	default:
		return "", bawn.Errorf(bawn.CodeConflict, op, "the data directory %s may be read by others (mode %#o)", dir, st.Mode().Perm()).
			WithFix("if it is a node's, close it: chmod 700 %s; else choose another with --data DIR", dir)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return "", fail(err)
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return "", fail(err)
	}
	return dir, nil
}

// contextState is what a context file means to this node.
type contextState int

const (
	contextMissing contextState = iota
	contextOurs                 // written by this node, and its key is still good
	contextStale                // written by this node, and its key is not
	contextForeign              // another node's, or no context file at all
)

// readContext looks at the context file. good reports whether a key is still
// one of this node's.
func readContext(f *contextFile, ca *authority, good func(key string) bool) (contextState, *client.Context) {
	c, err := f.load()
	switch {
	case bawn.ErrorCode(err) == bawn.CodeNotFound:
		return contextMissing, nil
	case err != nil || !ca.same(c.CA):
		return contextForeign, c
	case good(c.Key), c.Key == "" && (c.Login != nil || c.Certificate != ""):
		return contextOurs, c
	}
	return contextStale, c
}
