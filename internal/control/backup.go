package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/backup"
	"bawn.dev/bawn/internal/evidence/tlog"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/store"
)

// Archive is what a backup needs besides the tables.
type Archive struct {
	Node    string                            // the node's id
	Version string                            // of the program
	Key     ed25519.PrivateKey                // vouches for the archive
	File    func(name string) ([]byte, error) // one of [backup.NodeFiles]
	Blobs   *store.Blobs
}

// Backup is one that was authorised and recorded, of the state at that moment. It
// must be written once.
type Backup struct {
	c      *Control
	what   bawn.Record
	secret backup.Secret
	head   backup.Head
	tables []store.TableCopy
	blobs  []store.BlobName
}

// NewBackup takes the state as it is now, for a backup that is encrypted to age
// recipients, or with a passphrase.
// Only an operator may. Calls and changes go on meanwhile; packages that are given
// up are kept until the backup is written. CodeThrottled means that there is one
// under way, CodeUnavailable that the state is damaged.
func (c *Control) NewBackup(ctx context.Context, p bawn.Principal, recipients []string, passphrase string) (_ *Backup, err error) {
	s := backup.Secret{Recipients: recipients, Passphrase: passphrase}
	if err := s.Check(); err != nil {
		return nil, err
	}
	d, err := c.cfg.Policy.Authorize(ctx, policy.Request{Principal: p, Action: policy.Backup, Resource: bawn.Ref{Tenant: p.Tenant}, Object: policy.Object{Kind: policy.Installation}})
	switch {
	case err != nil:
		return nil, err
	case !d.Allow:
		return nil, bawn.Errorf(bawn.CodeDenied, "control.backup", "%s", d.Reason).WithFix("%s", d.Fix)
	}
	if c.cfg.Archive.Blobs == nil {
		return nil, bawn.Errorf(bawn.CodeUnavailable, "control.backup", "this node makes no backups")
	}
	b := &Backup{c: c, secret: s}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.backingUp {
		return nil, bawn.Errorf(bawn.CodeThrottled, "control.backup", "another backup is being written").WithFix("try again when it is done")
	}
	if b.tables, err = c.cfg.Store.Copy(); err != nil {
		return nil, err
	}
	if b.blobs, err = c.cfg.Archive.Blobs.List(ctx); err != nil {
		return nil, err
	}
	b.head = backup.Head{Node: c.cfg.Archive.Node, Version: c.cfg.Archive.Version, CreatedAt: c.cfg.Now().UTC(), Tables: map[string]int{}, Blobs: len(b.blobs)}
	rows := 0
	for _, t := range b.tables {
		b.head.Tables[t.Name] = t.Len
		rows += t.Len
	}
	to := "a passphrase"
	if len(s.Recipients) > 0 {
		to = strings.Join(s.Recipients, " ")
	}
	b.what = bawn.Record{Kind: bawn.KindChange, Tenant: p.Tenant, Principal: p.String(), Action: "backup.create", Outcome: "allow", Time: c.cfg.Now(), Detail: map[string]string{
		"to": to, "rows": strconv.Itoa(rows), "packages": strconv.Itoa(len(b.blobs)),
	}}
	if err := c.cfg.Evidence.Append(ctx, b.what); err != nil {
		return nil, err
	}
	c.backingUp = true
	return b, nil
}

// Write writes the archive to w and records how that ended. What was written is of
// use to nobody if it fails.
func (b *Backup) Write(ctx context.Context, w io.Writer) error {
	defer func() {
		b.c.mu.Lock()
		defer b.c.mu.Unlock()
		b.c.backingUp = false
	}()
	err := b.write(ctx, w)
	rec := b.what
	rec.ID, rec.Time, rec.Outcome = "", b.c.cfg.Now(), "ok"
	if err != nil {
		rec.Outcome, rec.Reason = "error", messageOf(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	return errors.Join(err, b.c.cfg.Evidence.Append(ctx, rec))
}

func (b *Backup) write(ctx context.Context, w io.Writer) error {
	a := b.c.cfg.Archive
	out, err := backup.NewWriter(w, b.secret, b.head)
	if err != nil {
		return err
	}
	for _, name := range backup.NodeFiles() {
		data, err := a.File(name)
		if err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, "control.backup", "%s of the node cannot be read", name)
		}
		if err := out.AddBytes(backup.NodePrefix+name, data); err != nil {
			return err
		}
	}
	for _, t := range b.tables {
		if err := writeTable(ctx, out, t); err != nil {
			return err
		}
	}
	for _, name := range b.blobs {
		if err := writeBlob(ctx, out, a.Blobs, name); err != nil {
			return err
		}
	}
	if err := b.writeAudit(ctx, out); err != nil {
		return err
	}
	return out.Close(a.Key)
}

func writeTable(ctx context.Context, out *backup.Writer, t store.TableCopy) error {
	var chunk bytes.Buffer
	n := 0
	flush := func() error {
		err := out.AddBytes(backup.ChunkName(t.Name, n), chunk.Bytes())
		n++
		chunk.Reset()
		return err
	}
	enc := json.NewEncoder(&chunk)
	for key, value := range t.Rows {
		if err := ctx.Err(); err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, "control.backup", "the request ended before the backup was written")
		}
		if err := enc.Encode(backup.Row{Key: key, Value: value}); err != nil {
			return err
		}
		if chunk.Len() >= backup.ChunkBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if chunk.Len() == 0 {
		return nil
	}
	return flush()
}

// writeBlob adds a package as it is stored: encrypted with its tenant's key, which a
// backup does not hold.
func writeBlob(ctx context.Context, out *backup.Writer, blobs *store.Blobs, name store.BlobName) error {
	size, r, err := blobs.Sealed(ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	return out.Add(backup.BlobName(name.Tenant, name.Digest), size, r)
}

// writeAudit adds the audit log as of a checkpoint that is made now: the checkpoint
// first, so that the tiles which are read after it hold all that it speaks of.
func (b *Backup) writeAudit(ctx context.Context, out *backup.Writer) error {
	log := b.c.cfg.Evidence
	c, err := log.Publish(ctx)
	if err != nil {
		return err
	}
	if err := out.AddBytes(backup.Audit+tlog.CheckpointFile, c.Note); err != nil {
		return err
	}
	have := map[string]bool{tlog.CheckpointFile: true, tlog.CosignedFile: true} // what witnesses signed may be newer
	add := func(name string) error {
		if have[name] {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(log.Dir(), filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		have[name] = true
		return out.AddBytes(backup.Audit+name, data)
	}
	err = filepath.WalkDir(log.Dir(), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a folder of unfinished tiles that is finished now
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(log.Dir(), path)
		if err != nil || d.IsDir() {
			return err
		}
		name = filepath.ToSlash(name)
		if !tlog.IsResource(name) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err = add(name)
		if full, _, ok := strings.Cut(name, ".p/"); ok && errors.Is(err, fs.ErrNotExist) {
			return add(full) // it became full meanwhile
		}
		return err
	})
	if err != nil && bawn.ErrorCode(err) == bawn.CodeInternal {
		return bawn.Wrap(err, bawn.CodeUnavailable, "control.backup", "the audit log cannot be read")
	}
	return err
}
