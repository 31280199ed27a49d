package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence/tlog"
)

func newWitness(a *app) *cobra.Command {
	var listen, dir, keys, name string
	c := &cobra.Command{
		Use:     "witness --dir DIR --log-keys FILE",
		GroupID: groupNode,
		Short:   "Cosign the audit logs of nodes, and notice when one is rolled back",
		Long: `Runs a witness until it is stopped: it signs a log's checkpoints as long as the log only
grows, and remembers on disk what it has signed. A log that was rolled back or rewritten,
even with its own key, gets no signature. It speaks C2SP tlog-witness over HTTP; what it
signs needs no secrecy.

Run it on another machine, or at least under another user: whoever can change both the
node's data and the witness's folder can make them agree. The first start makes its key;
every start prints the public key, for "bawn up --witness URL=KEY" and "bawn audit verify
--witness-keys". Its newest checkpoint of a log is at /seen/ORIGIN.`,
		Example: `  bawn audit keys > logs.pub
  bawn witness --listen 127.0.0.1:8455 --dir /var/lib/bawn-witness --log-keys logs.pub
  bawn up --witness http://127.0.0.1:8455=$(cat /var/lib/bawn-witness/keys.pub)`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			if dir == "" || keys == "" {
				return usagef("want --dir DIR and --log-keys FILE")
			}
			logs, _, err := readKeys(keys)
			if err != nil {
				return err
			}
			if len(logs) == 0 {
				return usagef("--log-keys %s: it holds no key of a log", keys)
			}
			if name == "" {
				host, err := os.Hostname()
				if err != nil || host == "" {
					host = "witness"
				}
				name = "bawn-witness/" + host
			}
			log := slog.New(slog.NewTextHandler(a.Err, nil))
			w, err := tlog.OpenWitness(tlog.WitnessConfig{Dir: dir, Name: name, Logs: logs, Log: log})
			if err != nil {
				return err
			}
			defer w.Close()
			l, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return bawn.Wrap(err, bawn.CodeUnavailable, "witness", "the witness cannot listen on %s", listen).WithFix("choose another address with --listen")
			}
			a.printf("%s\n", clean(w.Key()))
			log.Info("ready", "address", l.Addr().String(), "logs", len(logs))
			// A checkpoint is small and the work for one a few signatures.
			s := &http.Server{Handler: w, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
				ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
			defer context.AfterFunc(cmd.Context(), func() {
				stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				s.Shutdown(stop)
			})()
			if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				return bawn.Wrap(err, bawn.CodeUnavailable, "witness", "the witness's listener failed")
			}
			return nil
		}),
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:8455", "the address to answer on")
	c.Flags().StringVar(&dir, "dir", "", "its folder: its key and what it has seen; never within a node's data")
	c.Flags().StringVar(&keys, "log-keys", "", "a file with the public keys of the logs to watch")
	c.Flags().StringVar(&name, "name", "", "its name in signatures, at the first start (default: bawn-witness/HOST)")
	c.MarkFlagDirname("dir")
	c.MarkFlagFilename("log-keys")
	return c
}
