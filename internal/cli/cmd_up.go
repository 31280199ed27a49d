package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

func newUp(a *app) *cobra.Command {
	var cfg node.Config
	var logFormat, logLevel, user, rootKey, addressRate string
	c := &cobra.Command{
		Use:     "up",
		GroupID: groupNode,
		Short:   "Start a node and stay until it is stopped",
		Long: `Starts a node with everything inside: its store, its certificate authority, a public
listener for calls and an admin listener for the control API, both TLS 1.3 only.

The first start makes the data directory, the authority (DATA/ca.pem) and an
administrator's key, and writes the context file that the other commands use. Later
starts keep all of it; a context file that has gone is written again with a new key.

Making sandboxes needs root, and serving does not. Started as root, the server opens
its addresses, starts the small helper that makes sandboxes, and becomes a user of its
own for good: --user, or the system user bawn, or where there is none the number ` + strconv.Itoa(host.DefaultUID) + `.
The data directory is given to that user at the first start.

Started without root, the helper makes do with what the kernel gives a user, and bawn
doctor says which controls are weaker: no cpu limit, memory limits and freezing that are
not the kernel's, and one user for all sandboxes. That is for development.

A deploy that widens a function's perimeter, its first one included, waits until
somebody else approves it ("bawn approve"). Where there is nobody else, --solo says so:
such deploys count as approved then, which is recorded and shown by status and doctor.

Functions reach hosts of the public internet that their manifests name. An address of
the host itself, of a private network or of any other special range is refused, whatever
name leads there, unless --egress-allow names it. --egress-resolve says at which address
a name is, in the place of DNS, and --egress-ca whom servers are trusted by beside the
system's authorities. bawn doctor shows all three.

--label says where the node is, such as region=eu. It is recorded, and shown by status and
doctor; with one node it places nothing.

The node's root secret, from which its other keys come, lies in the data directory. With
--root-key it lies there wrapped with a key that is somewhere else: without that the node
does not start, and a copy of the directory is noise. "bawn root-key change" wraps that
of a node that there is.

SIGTERM or Ctrl-C lets the calls that run come to their end and stops the node.`,
		Example: `  bawn up --solo
  bawn up --user www-data
  bawn up --egress-allow 10.1.2.3:5432 --egress-resolve db.internal=10.1.2.3 --egress-ca internal-ca.pem
  bawn up --data /srv/bawn --public 0.0.0.0:443 --admin 127.0.0.1:8444 --name fn.example.org
  ` + client.ContextEnv + `=./context.json bawn up --data ./data --public 127.0.0.1:0 --admin 127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return usagef("--log-level %q: want debug, info, warn or error", logLevel)
			}
			if a.outTTY && !cmd.Flags().Changed("log-level") {
				level = slog.LevelWarn // the banner says what matters at a terminal
			}
			opts := &slog.HandlerOptions{Level: level}
			switch logFormat {
			case "text":
				cfg.Log = slog.New(slog.NewTextHandler(a.Err, opts))
			case "json":
				cfg.Log = slog.New(slog.NewJSONHandler(a.Err, opts))
			default:
				return usagef(`--log-format %q: want text or json`, logFormat)
			}
			var err error
			if err := a.fillData(&cfg.Data); err != nil {
				return err
			}
			if cfg.ContextFile, err = client.DefaultContextFile(); err != nil {
				return err
			}
			if cfg.OTLPEndpoint == "" {
				cfg.OTLPEndpoint = a.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
			}
			if cfg.RootKey, err = a.rootKey(rootKey); err != nil {
				return err
			}
			if cfg.AddressRate, cfg.AddressRateAtHome, err = addressLimit(addressRate); err != nil {
				return err
			}
			cfg.Version = Version()
			if cfg.User, err = serverUser(user); err != nil {
				return err
			}
			return a.up(cmd.Context(), cfg)
		}),
	}
	f := c.Flags()
	addData(c, &cfg.Data)
	f.StringVar(&cfg.Public, "public", node.DefaultPublic, "the address for calls")
	f.StringVar(&cfg.Admin, "admin", node.DefaultAdmin, "the address of the control API")
	f.StringVar(&cfg.OTLPEndpoint, "otlp", "", "send traces to this OTLP/HTTP endpoint (default: OTEL_EXPORTER_OTLP_ENDPOINT)")
	f.IntVar(&cfg.Warm, "warm", 0, "warm sandboxes to keep for each runtime in use: more for bursts, fewer for memory (0: 4; -1: none)")
	f.StringSliceVar(&cfg.Names, "name", nil, "a further name or address that callers use for this node (more than once)")
	f.StringVar(&cfg.HTTP, "http", "", "an address for requests without TLS, such as 0.0.0.0:80: those that read are sent on to https, and nothing else is answered")
	f.StringVar(&cfg.MinTLS, "tls-min", "1.3", "the oldest TLS that callers may use: 1.3, or 1.2")
	f.StringArrayVar(&cfg.Certs, "cert", nil, "a certificate for callers, PEM with its chain; a new file is taken over while the node runs, at SIGHUP at once (more than once)")
	f.StringArrayVar(&cfg.CertKeys, "cert-key", nil, "the key of each --cert, PEM, in the same order")
	f.BoolVar(&cfg.ACMEAgree, "acme-agree", false, "agree to the terms of an ACME authority, and have it give certificates for domains and for each --name")
	f.StringVar(&cfg.ACMEDirectory, "acme-directory", node.DefaultACME, "the directory of the ACME authority")
	f.StringVar(&cfg.ACMEEmail, "acme-email", "", "an address that the ACME authority may write to")
	f.StringVar(&cfg.ACMECA, "acme-ca", "", "a file of certificates in PEM that the ACME authority's directory is trusted by, in place of the system's")
	f.StringArrayVar(&cfg.TrustedProxies, "trusted-proxy", nil, "an address or CIDR whose X-Forwarded-For, X-Forwarded-Proto and Forwarded are believed; nobody else's are (more than once)")
	f.BoolVar(&cfg.Solo, "solo", false, "the node has one operator: deploys that widen a perimeter count as approved")
	f.StringVar(&addressRate, "address-rate", "", "how often one address may call, whatever it calls, such as 500/s or 500/s burst 1000; off: as often as it likes (default "+manifest.Rate(node.DefaultAddressRate()).String()+", but for loopback addresses)")
	f.StringArrayVar(&cfg.Witnesses, "witness", nil, "who cosigns the audit log, as URL=KEY of a bawn witness (more than once)")
	f.StringArrayVar(&cfg.EgressAllow, "egress-allow", nil, "an address that functions may reach although it is not of the public internet: ADDR or CIDR, with or without :PORT (more than once)")
	f.StringArrayVar(&cfg.EgressResolve, "egress-resolve", nil, "at which address a name is, for functions and in the place of DNS: NAME=ADDR (more than once)")
	f.StringVar(&cfg.EgressCA, "egress-ca", "", "a file of certificates in PEM that servers outside are trusted by, beside the system's")
	f.StringArrayVar(&cfg.Labels, "label", nil, "where the node is, KEY=VALUE such as region=eu; shown by status and doctor (more than once)")
	f.BoolVar(&cfg.ForceContext, "force-context", false, "replace a context file that belongs to another node")
	f.DurationVar(&cfg.DrainTimeout, "drain", node.DefaultDrain, "how long running calls get to end when the node is stopped")
	f.StringVar(&user, "user", "", "the user, or its number, that the server becomes when it is started as root; root keeps it root")
	addRootKey(c, &rootKey)
	f.StringVar(&logFormat, "log-format", "text", "how to log to standard error: text or json")
	f.StringVar(&logLevel, "log-level", "info", "what to log: debug, info, warn or error (at a terminal: warn)")
	return c
}

// addressLimit reads --address-rate. One that was asked for holds the host's own
// loopback addresses, too.
func addressLimit(text string) (r bawn.Rate, home bool, err error) {
	switch text {
	case "":
		return node.DefaultAddressRate(), false, nil
	case "off":
		return bawn.Rate{}, false, nil
	}
	m, err := manifest.ParseRate(text)
	if err == nil && m.By != "" {
		err = fmt.Errorf("it is per address: leave out per %s", m.By)
	}
	if err != nil {
		return bawn.Rate{}, false, usagef("--address-rate: %v", err)
	}
	return bawn.Rate(m), true, nil
}

// serverUser returns whom the server is to become, or nil if it stays who it is.
func serverUser(name string) (*host.User, error) {
	if os.Geteuid() != 0 {
		if name == "" {
			return nil, nil
		}
		u, err := host.FindUser(name)
		if err == nil && u.UID != os.Geteuid() {
			err = usagef("--user %q: only root can become another user", name)
		}
		return nil, err
	}
	u, err := host.FindUser(name)
	if err != nil || u.Root() {
		return nil, err
	}
	return &u, nil
}

// up runs the node until ctx ends.
func (a *app) up(ctx context.Context, cfg node.Config) error {
	n, err := node.Open(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	if a.outTTY {
		a.banner(n)
	}
	failed := make(chan error, 1)
	go func() { failed <- n.Wait() }()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for waiting := true; waiting; {
		select {
		case <-hup:
			n.Reload()
		case err = <-failed:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	if a.outTTY {
		fmt.Fprintln(a.Err, "\nStopping: running calls may end.")
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.DrainTimeout()+15*time.Second)
	defer cancel()
	if cerr := n.Close(stop); err == nil {
		err = cerr
	}
	return err
}

// banner greets whoever started the node by hand.
func (a *app) banner(n *node.Node) {
	a.printf("\n  %s is up\n\n", a.paint(1, versionText()))
	a.printf("    calls    https://%s\n", clean(n.PublicAddr()))
	a.printf("    control  https://%s\n", clean(n.AdminAddr()))
	a.printf("    data     %s\n", clean(n.Data()))
	a.printf("    context  %s\n\n", clean(n.ContextFile()))
	for _, m := range []string{n.Notice(), n.Weaker()} {
		if m != "" {
			a.printf("  %s %s\n\n", a.paint(33, "!"), clean(m))
		}
	}
	a.printf("  In another terminal:\n    bawn init hello --runtime python3.11 && bawn deploy hello && bawn invoke hello\n  Ctrl-C stops the node.\n\n")
}

// addData gives a command that works on a data directory the flag --data.
func addData(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "data", "", "the data directory (default: /var/lib/bawn as root, else below the user's home)")
	c.MarkFlagDirname("data")
}

// fillData sets the data directory that none was named for.
func (a *app) fillData(dir *string) (err error) {
	if *dir == "" {
		*dir, err = defaultData(a.Getenv)
	}
	return err
}

// defaultData returns where a node keeps its data if nobody says.
func defaultData(getenv func(string) string) (string, error) {
	if d := getenv("BAWN_DATA"); d != "" {
		return d, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/bawn", nil
	}
	if d := getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "bawn"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInvalid, "up", "there is no home folder to keep the data in").WithFix("name a folder with --data DIR")
	}
	return filepath.Join(home, ".local", "share", "bawn"), nil
}
