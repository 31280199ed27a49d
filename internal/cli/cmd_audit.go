package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/evidence/tlog"
)

func newAudit(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "audit",
		GroupID: groupWatch,
		Short:   "Read the audit log, copy it, and verify that nothing in it was changed",
		Long: `The audit log is a Merkle log: its entries are hashed into a tree whose root the node
signs once a second, so whoever has an older signed checkpoint, or a witness that has
one, can tell that nothing since was changed, deleted or rolled back. "verify" needs
public keys alone, and no node.`,
		Example: `  bawn audit ls --kind change
  bawn audit keys > keys.pub && bawn audit export --out copy
  bawn audit verify --dir copy --keys keys.pub --since yesterday.checkpoint`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newAuditList(a), newAuditShow(a), newAuditExport(a), newAuditVerify(a), newAuditReceipt(a), newAuditKeys(a))
	return c
}

func newAuditList(a *app) *cobra.Command {
	var q client.EventQuery
	var since string
	var kinds []string
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the newest records with their indexes",
		Example: `  bawn audit ls
  bawn audit ls --kind change --since 1d
  bawn audit ls --function hello -o json`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			var err error
			if q.Since, err = a.parseSince(since); err != nil {
				return err
			}
			if q.Limit < 1 {
				return usagef("--limit must be 1 or more")
			}
			for _, k := range kinds {
				q.Kinds = append(q.Kinds, bawn.RecordKind(k))
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			var rows [][]string
			err = c.Events(cmd.Context(), q, func(r bawn.Record) error {
				if a.format == "json" {
					return a.printLine(r)
				}
				what := r.Action
				if r.Function != "" {
					what += " " + r.Function
					if r.Version > 0 {
						what += "@" + strconv.Itoa(r.Version)
					}
				}
				rows = append(rows, []string{strconv.FormatInt(r.Index, 10), r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), clean(string(r.Kind)), clean(r.Principal), clean(what), clean(r.Outcome)})
				return nil
			})
			if err != nil || a.format == "json" {
				return err
			}
			return a.table([]string{"INDEX", "TIME", "KIND", "WHO", "WHAT", "OUTCOME"}, rows)
		}),
	}
	c.Flags().StringSliceVar(&kinds, "kind", nil, "only these kinds: decision, change, outcome, blocked, node")
	c.Flags().StringVar(&q.Function, "function", "", "only records of this function")
	c.Flags().StringVar(&q.Invocation, "invocation", "", "only records of this invocation")
	c.Flags().StringVar(&since, "since", "", "only records since then: 10m, 2d, or a time")
	c.Flags().IntVar(&q.Limit, "limit", 50, "at most the newest so many records")
	c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"decision", "change", "outcome", "blocked", "node"}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("function", a.completeFunctions)
	a.addOutput(c)
	return c
}

// auditKeys reads a file of keys, or asks the node for its own.
func (a *app) auditKeys(ctx context.Context, c *client.Client, file string) ([]tlog.Key, error) {
	if file != "" {
		logs, _, err := readKeys(file)
		return logs, err
	}
	s, err := c.Audit(ctx)
	if err != nil {
		return nil, err
	}
	logs, _, err := tlog.ParseKeys([]byte(s.Key))
	return logs, err
}

func readKeys(file string) (logs, witnesses []tlog.Key, err error) {
	b, err := readSmall(file)
	if err != nil {
		return nil, nil, err
	}
	return tlog.ParseKeys(b)
}

// readSmall reads a file that somebody names: a key, a checkpoint, a receipt.
func readSmall(file string) ([]byte, error) {
	st, err := os.Stat(file)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > 1<<20) {
		return nil, usagef("%s: want a file of at most 1 MiB", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, usagef("%v", err)
	}
	return b, nil
}

func newAuditShow(a *app) *cobra.Command {
	var keys string
	c := &cobra.Command{
		Use:   "show INDEX|ID",
		Short: "Show one record, after checking the proof that it is in the log",
		Long: `Shows a record, named by its index, its id or that of its invocation, after checking
that it is in the log that the node's key has signed. The key is the one that the node
says it has, or better the one in --keys.`,
		Example: `  bawn audit show 1042
  bawn audit show 6b0c1c9e-1a51-4d4e-9f3c-6c0e3f6b8a52 --keys keys.pub`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			verifiers, err := a.auditKeys(cmd.Context(), c, keys)
			if err != nil {
				return err
			}
			e, err := c.AuditEntry(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			receipt, err := tlog.ParseReceipt([]byte(e.Receipt))
			if err != nil {
				return err
			}
			cp, _, err := receipt.Verify(verifiers, nil, 0)
			if err != nil {
				return err
			}
			// What is shown is what was proven.
			var r bawn.Record
			if err := json.Unmarshal(receipt.Entry, &r); err != nil {
				return bawn.Wrap(err, bawn.CodeInternal, "audit", "the entry is no record that this bawn understands")
			}
			r.Index = receipt.Index
			if a.format == "json" {
				return a.printJSON(r)
			}
			if err := a.printRecord(r); err != nil {
				return err
			}
			a.notef("entry %d is in the log %s of %d entries\n", r.Index, clean(cp.Origin), cp.Size)
			return nil
		}),
	}
	c.Flags().StringVar(&keys, "keys", "", "a file with the log's public key; without it the node is asked")
	c.MarkFlagFilename("keys")
	a.addOutput(c)
	return c
}

func newAuditExport(a *app) *cobra.Command {
	var out, dir, keys string
	c := &cobra.Command{
		Use:   "export --out DIR",
		Short: "Copy the whole log into a folder that can be verified",
		Long: `Copies the log, the records of every tenant included, and verifies the copy. It comes
from the node, or from a folder that --dir names, such as DATA/audit of a node.`,
		Example: `  bawn audit export --out audit-2027-01-31
  bawn audit export --dir /var/lib/bawn/audit --keys keys.pub --out copy`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if out == "" {
				return usagef("--out: want a folder for the copy")
			}
			get := tlog.DirResource(dir)
			var verifiers []tlog.Key
			var err error
			if dir == "" {
				c, err := a.client()
				if err != nil {
					return err
				}
				if verifiers, err = a.auditKeys(ctx, c, keys); err != nil {
					return err
				}
				get = func(path string) ([]byte, error) { return c.AuditFile(ctx, path) }
			} else if keys != "" {
				if verifiers, _, err = readKeys(keys); err != nil {
					return err
				}
			} else if verifiers, err = tlog.DirKeys(dir); err != nil {
				return err
			}
			if _, err := tlog.Copy(ctx, out, verifiers, get); err != nil {
				return err
			}
			r, err := tlog.Verify(ctx, tlog.VerifyConfig{Dir: out, Keys: verifiers})
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(r)
			}
			a.printf("%s: %d entries of %s\n", clean(out), r.Size-r.First, clean(r.Origin))
			return nil
		}),
	}
	c.Flags().StringVar(&out, "out", "", "the folder for the copy, empty or not there yet")
	c.Flags().StringVar(&dir, "dir", "", "copy this folder and ask no node")
	c.Flags().StringVar(&keys, "keys", "", "a file with the log's public key")
	c.MarkFlagDirname("out")
	c.MarkFlagDirname("dir")
	c.MarkFlagFilename("keys")
	a.addOutput(c)
	return c
}

func newAuditVerify(a *app) *cobra.Command {
	var dir, keys, since, witnessKeys, receipt string
	var quorum int
	var maxAge time.Duration
	c := &cobra.Command{
		Use:   "verify --keys FILE {--dir DIR | --receipt FILE}",
		Short: "Check a log, or a receipt, with public keys alone",
		Long: `Recomputes every hash of a log, from its entries to the root that its key has signed.
The exit code is 0 only if all of it holds. It asks no node and writes nothing.

A log that was rolled back to an older signed state, or rewritten with its own key,
verifies by itself: name a checkpoint that you have seen before with --since (a
witness shows its newest at /seen/ORIGIN), and the keys of witnesses with
--witness-keys. Their signatures must be young, or a whole disk of yesterday would pass:
for a copy that was made earlier give --max-age.`,
		Example: `  bawn audit verify --dir copy --keys keys.pub
  bawn audit verify --dir /var/lib/bawn/audit --keys keys.pub --since yesterday.checkpoint --witness-keys witness.pub
  bawn audit verify --receipt receipt.txt --keys keys.pub`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			if keys == "" || (dir == "") == (receipt == "") {
				return usagef("want --keys FILE, and either --dir DIR or --receipt FILE")
			}
			logs, _, err := readKeys(keys)
			if err != nil {
				return err
			}
			if len(logs) == 0 {
				return usagef("--keys %s: it holds no key of a log", keys)
			}
			var witnesses []tlog.Key
			if witnessKeys != "" {
				if _, witnesses, err = readKeys(witnessKeys); err != nil {
					return err
				}
				if len(witnesses) == 0 || quorum < 0 || quorum > len(witnesses) {
					return usagef("--witness-keys %s holds %d keys of witnesses, --quorum is %d", witnessKeys, len(witnesses), quorum)
				}
			}
			if receipt != "" {
				return a.verifyReceipt(receipt, logs, witnesses, quorum)
			}
			cfg := tlog.VerifyConfig{Dir: dir, Keys: logs, Witnesses: witnesses, Quorum: quorum, MaxAge: maxAge}
			if since != "" {
				if cfg.Since, err = readSmall(since); err != nil {
					return err
				}
			}
			r, err := tlog.Verify(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(r)
			}
			a.printf("%s: %d entries of %s hold\n", a.paint(32, "ok"), r.Size, clean(r.Origin))
			if r.First > 0 {
				a.printf("  %d of them were pruned, as the log says; their hashes hold\n", r.First)
			}
			if since != "" {
				a.printf("  it has grown from the checkpoint of %d entries\n", r.Since)
			}
			for _, s := range r.Cosigns {
				a.printf("  %d entries were seen by %s\n", r.Cosigned, clean(s.String()))
			}
			if len(r.Cosigns) > 0 && r.Behind > 0 {
				a.notef("%d entries came after that: no witness has seen them yet\n", r.Behind)
			}
			if r.Spooled > 0 {
				a.notef("%d entries wait for a checkpoint: nothing vouches for them yet\n", r.Spooled)
			}
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "the log's folder: DATA/audit, or a copy")
	f.StringVar(&keys, "keys", "", "a file with the log's public key, as bawn audit keys prints it")
	f.StringVar(&since, "since", "", "a checkpoint seen before, which the log must have grown from")
	f.StringVar(&witnessKeys, "witness-keys", "", "a file with the public keys of witnesses that must have signed")
	f.IntVar(&quorum, "quorum", 0, "how many of the witnesses must have signed (0: all)")
	f.DurationVar(&maxAge, "max-age", time.Hour, "how old the signatures of witnesses on a log may be (0: any age)")
	f.StringVar(&receipt, "receipt", "", "check this receipt and no log")
	c.MarkFlagDirname("dir")
	for _, name := range []string{"keys", "since", "witness-keys", "receipt"} {
		c.MarkFlagFilename(name)
	}
	a.addOutput(c)
	return c
}

func (a *app) verifyReceipt(file string, logs, witnesses []tlog.Key, quorum int) error {
	text, err := readSmall(file)
	if err != nil {
		return err
	}
	r, err := tlog.ParseReceipt(text)
	if err != nil {
		return err
	}
	cp, seen, err := r.Verify(logs, witnesses, quorum)
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(map[string]any{"origin": cp.Origin, "size": cp.Size, "index": r.Index, "entry": json.RawMessage(jsonOr(r.Entry)), "cosignatures": seen})
	}
	a.printf("%s: entry %d is in the log %s of %d entries\n", a.paint(32, "ok"), r.Index, clean(cp.Origin), cp.Size)
	for _, s := range seen {
		a.printf("  seen by %s\n", clean(s.String()))
	}
	a.printf("  %s\n", clean(string(bytes.TrimSpace(r.Entry))))
	return nil
}

// jsonOr returns b if it is JSON, and a JSON string of it else.
func jsonOr(b []byte) []byte {
	if json.Valid(b) {
		return b
	}
	s, _ := json.Marshal(string(b))
	return s
}

func newAuditReceipt(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "receipt INVOCATION",
		Short: "Get the proof that an invocation is in the audit log",
		Long: `Writes a receipt: the record of the invocation, the hashes that prove its place in the
log, and the signed checkpoint, with the signatures of witnesses where there are any. It
holds without the node: "bawn audit verify --receipt FILE --keys FILE". Whoever made the
call may have it; so may an auditor, for any record by its index.`,
		Example: `  bawn audit receipt 6b0c1c9e-1a51-4d4e-9f3c-6c0e3f6b8a52 --out receipt.txt
  bawn audit verify --receipt receipt.txt --keys keys.pub`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, args []string) error {
			e, err := c.AuditEntry(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(e)
			}
			if out == "" {
				_, err := fmt.Fprint(a.Out, e.Receipt)
				return wrapOutput(err)
			}
			if err := os.WriteFile(out, []byte(e.Receipt), 0o644); err != nil {
				return usagef("--out: %v", err)
			}
			return nil
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write it to this file")
	c.MarkFlagFilename("out")
	a.addOutput(c)
	return c
}

func newAuditKeys(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Print the public key of the node's audit log",
		Long: `Prints the key that "verify" needs. Keep it, and now and then a checkpoint, where the
node's administrator cannot change them: that is what makes the log prove anything.`,
		Example: `  bawn audit keys > keys.pub`,
		Args:    cobra.NoArgs,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			s, err := c.Audit(cmd.Context())
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(s)
			}
			a.printf("%s\n", clean(strings.TrimSpace(s.Key)))
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
