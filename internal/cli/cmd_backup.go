package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// maxSecretFile is how large a file of recipients, of identities or of a
// passphrase may be.
const maxSecretFile = 64 << 10

func newBackup(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "backup",
		GroupID: groupNode,
		Short:   "Back the installation up, encrypted, and restore it",
		Example: `  bawn backup create monday.bawn --recipient age1…
  bawn backup restore monday.bawn --data /var/lib/bawn --identity key.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newBackupCreate(a), newBackupRestore(a))
	return c
}

func newBackupCreate(a *app) *cobra.Command {
	var b client.NewBackup
	var recipientFile, passphraseFile string
	c := &cobra.Command{
		Use:   "create FILE",
		Short: "Write a backup of the running node to a file",
		Long: `Writes what the node needs to be itself again to FILE: functions, versions, packages,
keys, rules, the audit log, and the node's own secrets. The node encrypts it, so that
nothing of it leaves it in the clear. Calls go on meanwhile, and so do changes: the
backup holds the state of one moment. Log lines of functions are not in it.

Only an operator may, and it is recorded before it begins. Whoever can open the file
can be the node: keep the secret key of the recipient away from it.`,
		Example: `  age-keygen -o key.txt
  bawn backup create monday.bawn --recipient $(age-keygen -y key.txt)
  bawn backup create monday.bawn --passphrase-file /run/secrets/backup`,
		Args: cobra.ExactArgs(1),
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if recipientFile != "" {
				data, err := readSecretFile(recipientFile)
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(data)) {
					if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
						b.Recipients = append(b.Recipients, line)
					}
				}
			}
			var err error
			if passphraseFile != "" {
				if b.Passphrase, err = readPassphrase(passphraseFile); err != nil {
					return err
				}
			}
			if (len(b.Recipients) > 0) == (b.Passphrase != "") {
				return usagef("name a recipient with --recipient or --recipient-file, or give --passphrase-file")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			defer cl.Close()
			n, err := a.createBackup(cmd, cl, b, args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(map[string]any{"file": args[0], "bytes": n})
			}
			a.printf("wrote %s, %d bytes\n", clean(args[0]), n)
			return nil
		}),
	}
	f := c.Flags()
	f.StringSliceVar(&b.Recipients, "recipient", nil, "an age recipient, age1…, that can open it (more than once)")
	f.StringVar(&recipientFile, "recipient-file", "", "a file with one recipient a line")
	f.StringVar(&passphraseFile, "passphrase-file", "", "a file whose first line is the passphrase; - for standard input")
	c.RegisterFlagCompletionFunc("recipient", cobra.NoFileCompletions)
	a.addOutput(c)
	return c
}

// createBackup writes the file under another name until it is whole.
func (a *app) createBackup(cmd *cobra.Command, cl *client.Client, b client.NewBackup, file string) (n int64, err error) {
	if _, err := os.Lstat(file); err == nil {
		return 0, bawn.Errorf(bawn.CodeConflict, "backup", "%s is there already", file).WithFix("give another name: a backup replaces nothing")
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".bawn-backup-*") // mode 0600
	if err != nil {
		return 0, fileError(err, "the backup %s cannot be written", file)
	}
	defer func() {
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	var w io.Writer = out
	if a.errTTY && a.format == "text" {
		bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(a.Err), progressbar.OptionShowBytes(true),
			progressbar.OptionSetDescription("backing up"), progressbar.OptionClearOnFinish())
		defer bar.Finish()
		w = io.MultiWriter(out, bar)
	}
	n, err = cl.CreateBackup(cmd.Context(), b, w)
	if err == nil {
		err = out.Sync()
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Link(out.Name(), file) // fails if there is one by now
		os.Remove(out.Name())
	}
	if err != nil && bawn.ErrorCode(err) == bawn.CodeInternal {
		err = fileError(err, "the backup %s cannot be written", file)
	}
	return n, err
}

func newBackupRestore(a *app) *cobra.Command {
	var cfg node.RestoreConfig
	var identity, passphraseFile, rootKey string
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a data directory of a backup",
		Long: `Makes the data directory DIR of a backup. It works on files, without a node: no node may
run on DIR. Everything is unpacked and verified beside DIR first, and only then put in
its place; a backup that is damaged, cut off or not for this key changes nothing.

DIR must be empty or missing. With --force what is in it is moved aside, never deleted.
With --state-only only the tables and packages are restored, into the data directory of
the very node that was backed up: its identity and its audit log stay, so that what
happened since is not forgotten. It is the way out of damaged state.`,
		Example: `  bawn backup restore monday.bawn --data /var/lib/bawn --identity key.txt
  bawn backup restore monday.bawn --data ./new --identity key.txt --keys tenants-copy
  bawn backup restore monday.bawn --data /var/lib/bawn --identity key.txt --state-only`,
		Args: cobra.ExactArgs(1),
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			if (identity != "") == (passphraseFile != "") {
				return usagef("give --identity FILE or --passphrase-file FILE")
			}
			if cfg.Force && cfg.StateOnly {
				return usagef("--force replaces everything, --state-only the state alone: give one of them")
			}
			var err error
			if err := a.fillData(&cfg.Data); err != nil {
				return err
			}
			if identity != "" {
				cfg.Identity, err = readSecretFile(identity)
			} else {
				cfg.Passphrase, err = readPassphrase(passphraseFile)
			}
			if err != nil {
				return err
			}
			if cfg.RootKey, err = a.rootKey(rootKey); err != nil {
				return err
			}
			in, err := os.Open(args[0])
			if err != nil {
				return fileError(err, "the backup %s cannot be read", args[0])
			}
			defer in.Close()
			var r io.Reader = bufio.NewReaderSize(in, 1<<20)
			if info, err := in.Stat(); err == nil && a.errTTY && a.format == "text" {
				bar := progressbar.NewOptions64(info.Size(), progressbar.OptionSetWriter(a.Err), progressbar.OptionShowBytes(true),
					progressbar.OptionSetDescription("restoring"), progressbar.OptionClearOnFinish())
				defer bar.Finish()
				r = io.TeeReader(r, bar)
			}
			cfg.Archive = r
			out, err := node.Restore(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(out)
			}
			a.printf("restored node %s as of %s into %s\n", clean(out.Node), out.CreatedAt.UTC().Format("2006-01-02 15:04:05 UTC"), clean(cfg.Data))
			var tables []string
			for name, n := range out.Tables {
				tables = append(tables, fmt.Sprintf("%d %s", n, clean(name)))
			}
			slices.Sort(tables)
			a.printf("  tables    %s\n  packages  %d\n", strings.Join(tables, ", "), out.Packages)
			if out.Locked > 0 {
				a.printf("  left out  %d packages, whose tenants' keys are not here: deploy their functions again, or restore with --keys\n", out.Locked)
			}
			if !cfg.StateOnly {
				a.printf("  audit     %d files\n", out.Audit)
			}
			if out.Aside != "" {
				a.printf("  before    %s\n", clean(out.Aside))
			}
			return nil
		}),
	}
	f := c.Flags()
	addData(c, &cfg.Data)
	addRootKey(c, &rootKey)
	c.Flags().StringVar(&cfg.Keys, "keys", "", "a copy of the folder DATA/tenants, without which the values of secrets stay closed (default: that of --data, if it is the same node's)")
	f.StringVar(&identity, "identity", "", "the age identity file that opens the backup")
	f.StringVar(&passphraseFile, "passphrase-file", "", "a file whose first line is the passphrase; - for standard input")
	f.BoolVar(&cfg.Force, "force", false, "move what is in the data directory aside")
	f.BoolVar(&cfg.StateOnly, "state-only", false, "restore tables and packages only, into the node that was backed up")
	a.addOutput(c)
	return c
}

// readSecretFile reads a file that holds a secret or who may have one.
func readSecretFile(name string) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fileError(err, "%s cannot be read", name)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxSecretFile+1))
	if err != nil {
		return nil, fileError(err, "%s cannot be read", name)
	}
	if len(data) > maxSecretFile {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "backup", "%s has more than %d bytes", name, maxSecretFile)
	}
	return data, nil
}

func readPassphrase(name string) (string, error) {
	data, err := readSecretFile(name)
	if err != nil {
		return "", err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	if line = bytes.TrimRight(line, "\r"); len(line) == 0 {
		return "", bawn.Errorf(bawn.CodeInvalid, "backup", "the first line of %s is empty", name).WithFix("put the passphrase there")
	}
	return string(line), nil
}
