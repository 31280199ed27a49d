package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/backup"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

// RestoreConfig says what [Restore] restores, and where.
type RestoreConfig struct {
	Data       string    // the data directory; no node may run on it
	Archive    io.Reader // the encrypted backup
	Identity   []byte    // an age identity file that opens it, or
	Passphrase string    // what it was encrypted with
	// Force lets Data hold something: it is moved aside, never deleted.
	Force bool
	// StateOnly restores the tables and the packages into a data directory of the
	// node that the backup is of, and leaves its identity and its audit log alone.
	StateOnly bool
	// Keys is a copy of the folder of the tenants' keys; empty: those that are in Data,
	// if it is of the node that the backup is of.
	Keys string
	// RootKey has wrapped the root secret in the backup; nil: nothing has.
	RootKey secret.RootKey
	Log     *slog.Logger // nil discards
}

// Restored says what was restored.
type Restored struct {
	Node      string         `json:"node"`
	Version   string         `json:"version"` // of the Bawn that wrote the backup
	CreatedAt time.Time      `json:"createdAt"`
	Tables    map[string]int `json:"tables"` // rows of each
	Packages  int            `json:"packages"`
	Locked    int            `json:"locked,omitempty"` // packages left out: the keys here do not open them
	Audit     int            `json:"audit"`            // files of the audit log
	Aside     string         `json:"aside,omitempty"`  // where what was there before is now
}

// Restore makes a data directory of a backup. Everything is read, written and
// verified in a folder beside it first; if anything is wrong, that folder is
// removed and the data directory is as it was.
func Restore(ctx context.Context, cfg RestoreConfig) (_ *Restored, err error) {
	const op = "node.restore"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Data == "" {
		return nil, bawn.Errorf(bawn.CodeInvalid, op, "no data directory is named").WithFix("name one with --data DIR")
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "the data directory cannot be found")
	}
	if cfg.StateOnly {
		if data, err = host.Enter(data); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(data)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, restoreFailed(err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "lock" })
	if exists {
		unlock, err := store.LockDir(data)
		if err != nil {
			return nil, err
		}
		defer func() { unlock() }()
	}
	switch {
	case cfg.StateOnly && len(entries) == 0:
		return nil, bawn.Errorf(bawn.CodeConflict, op, "there is no node in %s whose state could be restored", data).
			WithFix("leave --state-only out: then all of the backup is restored")
	case !cfg.StateOnly && len(entries) > 0 && !cfg.Force:
		return nil, bawn.Errorf(bawn.CodeConflict, op, "%s is not empty", data).
			WithFix("give --data another folder; or --force, which moves what is there aside; or --state-only, which keeps the node's identity and audit log")
	}
	// What replaces parts of a node is made in its own folder, as its owner; what
	// replaces all of it, beside that.
	parent := data
	if !cfg.StateOnly {
		parent = filepath.Dir(data)
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return nil, restoreFailed(err)
		}
		if err := host.Beside(parent); err != nil {
			return nil, err
		}
	}
	stage, err := os.MkdirTemp(parent, ".bawn-restore-")
	if err != nil {
		return nil, restoreFailed(err)
	}
	defer func() {
		if gone := os.RemoveAll(stage); err == nil && gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			cfg.Log.Warn("a folder of the restore is left", "folder", stage, "error", gone)
		}
	}()
	r := restoring{cfg: cfg, stage: stage, data: data, out: &Restored{Tables: map[string]int{}}}
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	if err := r.verify(ctx); err != nil {
		return nil, err
	}
	if err := r.swap(exists && len(entries) > 0); err != nil {
		return nil, err
	}
	return r.out, nil
}

func restoreFailed(err error) error {
	var known *bawn.Error
	if errors.As(err, &known) {
		return err
	}
	return bawn.Wrap(err, bawn.CodeUnavailable, "node.restore", "the backup cannot be restored there").
		WithFix("check that there is room and that you may write to the folder and to the one it is in")
}

type restoring struct {
	cfg         RestoreConfig
	stage, data string
	secret      rootSecret
	keys        *secret.TenantKeys // made anew: a backup holds none
	out         *Restored
}

func (r *restoring) open() (*backup.Reader, error) {
	if len(r.cfg.Identity) > 0 {
		ids, err := backup.Identities(r.cfg.Identity)
		if err != nil {
			return nil, err
		}
		return backup.NewReader(r.cfg.Archive, ids)
	}
	ids, err := backup.Passphrase(r.cfg.Passphrase)
	if err != nil {
		return nil, err
	}
	return backup.NewReader(r.cfg.Archive, ids)
}

// read writes the archive into the stage.
func (r *restoring) read(ctx context.Context) error {
	in, err := r.open()
	if err != nil {
		return err
	}
	r.out.Node, r.out.Version, r.out.CreatedAt = in.Head.Node, in.Head.Version, in.Head.CreatedAt
	var st *store.Store
	var blobs *store.Blobs
	defer func() {
		if st != nil {
			st.Close()
		}
	}()
	tables := map[string]*store.Table[json.RawMessage]{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := in.Next()
		if err != nil {
			return err
		}
		// The node's files come first: without its secret nothing can be signed.
		if st == nil && !strings.HasPrefix(name, backup.NodePrefix) {
			if r.secret, err = r.readSecret(ctx); err != nil {
				return err
			}
			if st, r.keys, err = openStore(ctx, r.stage, r.secret, r.cfg.Log); err != nil {
				return err
			}
			if err := os.Mkdir(filepath.Join(r.stage, tenantsFolder), 0o700); err != nil {
				return restoreFailed(err)
			}
			if err := r.takeKeys(ctx); err != nil {
				return err
			}
			if blobs, err = store.OpenBlobs(ctx, st, "artifacts"); err != nil {
				return err
			}
		}
		switch {
		case backup.IsEnd(name):
			if err := in.End(r.secret.stateKey().Public().(ed25519.PublicKey)); err != nil {
				return err
			}
			return r.complete(in.Head)
		case strings.HasPrefix(name, backup.NodePrefix):
			data, err := in.ReadAll()
			if err != nil {
				return err
			}
			if err := writeFile(filepath.Join(r.stage, strings.TrimPrefix(name, backup.NodePrefix)), data, 0o600); err != nil {
				return restoreFailed(err)
			}
		case strings.HasPrefix(name, backup.Tables):
			data, err := in.ReadAll()
			if err != nil {
				return err
			}
			if err := r.rows(ctx, st, tables, name, data); err != nil {
				return err
			}
		case strings.HasPrefix(name, backup.Blobs):
			if err := r.blob(ctx, blobs, name, in); err != nil {
				return err
			}
		case strings.HasPrefix(name, backup.Audit):
			data, err := in.ReadAll()
			if err != nil {
				return err
			}
			// The name was held to a grammar without any way out of the folder.
			path := filepath.Join(r.stage, filepath.FromSlash(name))
			err = os.MkdirAll(filepath.Dir(path), 0o700)
			if err == nil {
				err = writeFile(path, data, 0o600)
			}
			if err != nil {
				return restoreFailed(err)
			}
			r.out.Audit++
		}
	}
}

// takeKeys copies the keys of the tenants and of the values of secrets that are there
// still, or that were named: a backup has none, so that a tenant that was removed and a
// value that has died stay what they are. Without them everything is restored but what
// secrets were.
func (r *restoring) takeKeys(ctx context.Context) error {
	from := r.cfg.Keys
	if from == "" {
		// Keys of another node are of no use to this one.
		if _, err := os.Stat(filepath.Join(r.data, rootSecretFile)); err != nil {
			return nil
		}
		here, err := openRootSecret(ctx, r.data, r.cfg.RootKey)
		if err != nil || here != r.secret {
			return nil
		}
		from = filepath.Join(r.data, tenantsFolder)
	}
	for _, sub := range []string{".", secretsFolder} {
		files, err := os.ReadDir(filepath.Join(from, sub))
		if errors.Is(err, fs.ErrNotExist) && (sub != "." || r.cfg.Keys == "") {
			continue
		}
		if err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, "node.restore", "the keys in %s cannot be read", from).WithFix("give --keys a copy of the folder tenants of the data directory")
		}
		if err := os.MkdirAll(filepath.Join(r.stage, tenantsFolder, sub), 0o700); err != nil {
			return restoreFailed(err)
		}
		for _, f := range files {
			if !f.Type().IsRegular() || !strings.HasSuffix(f.Name(), ".key") {
				continue
			}
			data, err := os.ReadFile(filepath.Join(from, sub, f.Name()))
			if err == nil {
				err = writeFile(filepath.Join(r.stage, tenantsFolder, sub, f.Name()), data, 0o600)
			}
			if err != nil {
				return restoreFailed(err)
			}
		}
	}
	return nil
}

func (r *restoring) readSecret(ctx context.Context) (rootSecret, error) {
	for _, name := range backup.NodeFiles() {
		if _, err := os.Stat(filepath.Join(r.stage, name)); err != nil {
			return rootSecret{}, bawn.Errorf(bawn.CodeUnprocessable, "node.restore", "the backup lacks the node's %s", name).
				WithFix("use another backup; nothing was restored")
		}
	}
	return openRootSecret(ctx, r.stage, r.cfg.RootKey)
}

// blob takes in a package. One that the keys here do not open is of a tenant that was
// removed, or has to be deployed again.
func (r *restoring) blob(ctx context.Context, blobs *store.Blobs, name string, in io.Reader) error {
	tenant, digest, _ := backup.ParseBlob(name)
	if tenant == "" { // of an older Bawn; the first start encrypts it
		r.out.Packages++
		return blobs.Put(ctx, "", digest, in, bawn.MaxPackageBytes)
	}
	ok, err := blobs.Take(ctx, tenant, digest, in, bawn.MaxPackageBytes)
	if ok {
		r.out.Packages++
	} else {
		r.out.Locked++
	}
	return err
}

func (r *restoring) rows(ctx context.Context, st *store.Store, tables map[string]*store.Table[json.RawMessage], file string, data []byte) error {
	name, _, _ := strings.Cut(strings.TrimPrefix(file, backup.Tables), "/")
	t := tables[name]
	if t == nil {
		var err error
		if t, err = store.OpenTable[json.RawMessage](ctx, st, name); err != nil {
			return err
		}
		tables[name] = t
	}
	for text := range bytes.Lines(data) {
		var row backup.Row
		if err := json.Unmarshal(text, &row); err != nil || len(row.Value) == 0 {
			return bawn.Wrap(err, bawn.CodeUnprocessable, "node.restore", "the backup's table %s cannot be read", name).
				WithFix("use another backup; nothing was restored")
		}
		if owner, _, several := strings.Cut(row.Key, "."); (several || name == "tenants") && bawn.CheckName("tenant", owner) == nil {
			if err := r.keys.Make(owner); err != nil {
				return err
			}
		}
		if _, err := t.Create(ctx, row.Key, row.Value); err != nil {
			return err
		}
		r.out.Tables[name]++
	}
	return nil
}

// complete compares what was read with what the archive's head says.
func (r *restoring) complete(h backup.Head) error {
	same := r.out.Packages+r.out.Locked == h.Blobs
	for name, n := range h.Tables {
		same = same && r.out.Tables[name] == n
		r.out.Tables[name] += 0 // an empty one is told as well
	}
	if same && len(r.out.Tables) == len(h.Tables) {
		return nil
	}
	return bawn.Errorf(bawn.CodeUnprocessable, "node.restore", "the backup does not hold what it says it does").
		WithFix("use another backup; nothing was restored")
}

// verify opens what was written as a node would, and records the restore in the
// audit log, with the root of the state that is restored.
func (r *restoring) verify(ctx context.Context) error {
	ca, err := openAuthority(r.stage, nil, time.Now())
	if err != nil {
		return err
	}
	home := r.stage
	if r.cfg.StateOnly {
		// The identity and the audit log are those that are there.
		home = r.data
		here, err := openRootSecret(ctx, r.data, r.cfg.RootKey)
		if err != nil {
			return err
		}
		if here != r.secret {
			return bawn.Errorf(bawn.CodeConflict, "node.restore", "the backup is of the node %s, and this is another one", r.out.Node).
				WithFix("give the data directory of that node, or restore all of the backup elsewhere, without --state-only")
		}
	}
	st, _, err := openStore(ctx, r.stage, r.secret, r.cfg.Log)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := openAll(ctx, st); err != nil {
		return err
	}
	report, err := st.Check(ctx)
	if err != nil {
		return err
	}
	if len(report.Damage) > 0 {
		return bawn.Errorf(bawn.CodeUnavailable, "node.restore", "what was restored cannot be read back: %s", report.Damage[0]).WithFix("check the disk")
	}
	record, err := openEvidence(ctx, home, ca, r.secret, evidence.Config{Log: r.cfg.Log})
	if err != nil {
		return err
	}
	e := bawn.Record{Tenant: bawn.DefaultTenant, Principal: bawn.PrincipalNode + ":" + ca.id(), Outcome: "ok"}
	e.Kind, e.Action = bawn.KindChange, "backup.restore"
	e.Detail = map[string]string{"of": r.out.CreatedAt.UTC().Format(time.RFC3339), "stateOnly": strconv.FormatBool(r.cfg.StateOnly), "user": strconv.Itoa(os.Getuid())}
	err = record.Append(ctx, e)
	if err == nil {
		var h store.Head
		if h, err = st.Head(); err == nil {
			e.Kind, e.Action, e.Detail = bawn.KindNode, actionRoot, map[string]string{"root": h.Root, "tables": h.String()}
			err = record.Append(ctx, e)
		}
	}
	return errors.Join(err, record.Close(), st.Close())
}

// swap puts the stage in the place of the data directory, or of its state.
func (r *restoring) swap(full bool) error {
	stamp := ".before-restore-" + time.Now().UTC().Format("20060102T150405")
	if !r.cfg.StateOnly {
		if full {
			r.out.Aside = r.data + stamp
			if err := os.Rename(r.data, r.out.Aside); err != nil {
				return restoreFailed(err)
			}
		} else if err := os.RemoveAll(r.data); err != nil { // empty but for its lock
			return restoreFailed(err)
		}
		if err := os.Rename(r.stage, r.data); err != nil {
			if full {
				err = errors.Join(err, os.Rename(r.out.Aside, r.data))
			}
			return restoreFailed(err)
		}
		return syncDir(filepath.Dir(r.data))
	}
	r.out.Aside = filepath.Join(r.data, "store") + stamp
	for _, name := range []string{tenantsFolder, "state", "store"} {
		path := filepath.Join(r.data, name)
		if err := os.Rename(path, path+stamp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return restoreFailed(err)
		}
		if err := os.Rename(filepath.Join(r.stage, name), path); err != nil {
			return restoreFailed(err)
		}
	}
	return syncDir(r.data)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return restoreFailed(err)
	}
	defer d.Close()
	return d.Sync()
}

// openAll opens every table that the store or its manifests know of, whatever is in
// them.
func openAll(ctx context.Context, st *store.Store) error {
	names, err := st.TableNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := store.OpenTable[json.RawMessage](ctx, st, name); err != nil {
			return err
		}
	}
	return nil
}

// EnterState makes a process of root the owner of the data directory that cfg
// names, as [CheckState], [AcceptState] and a [Restore] of the state alone do by
// themselves; who calls more than one of them does it first.
func EnterState(cfg *StateConfig) (err error) {
	cfg.Data, err = host.Enter(cfg.Data)
	return err
}

// StateConfig says what [CheckState] and [AcceptState] look at.
type StateConfig struct {
	Data    string         // the data directory; no node may run on it
	RootKey secret.RootKey // has wrapped the root secret; nil: nothing has
	Log     *slog.Logger
	// Audit goes on with the audit log that is there, or a new one, although the
	// node knows of a newer. For [AcceptState], which records it.
	Audit bool
}

// CheckState compares the stored state of a data directory with its manifests and
// with the audit log.
func CheckState(ctx context.Context, cfg StateConfig) (store.Report, error) {
	var report store.Report
	err := withState(ctx, cfg, true, func(o *offline) (err error) {
		report, err = o.store.Check(ctx)
		return err
	})
	return report, err
}

// AcceptState returns what is damaged, and with yes gives it up: see
// [store.Store.Accept]. It is recorded before it is done, with what is given up.
func AcceptState(ctx context.Context, cfg StateConfig, yes bool) ([]store.Damage, error) {
	if !yes {
		r, err := CheckState(ctx, cfg)
		return r.Damage, err
	}
	var given []store.Damage
	err := withState(ctx, cfg, true, func(o *offline) (err error) {
		if cfg.Audit {
			gone := map[string]string{"user": strconv.Itoa(os.Getuid()), "given up 1": "what the audit log had after its entry before this one"}
			if err := o.append(ctx, bawn.KindChange, "state.accept", gone); err != nil {
				return err
			}
		}
		damage := o.store.Damaged()
		if len(damage) == 0 {
			return nil
		}
		for part := range chunks(damage) {
			if err := o.append(ctx, bawn.KindChange, "state.accept", part); err != nil {
				return err
			}
		}
		given, err = o.store.Accept(ctx)
		return err
	})
	cfg.Audit = false
	if err != nil || len(given) == 0 {
		return given, err
	}
	// From here on the evidence must not speak of more than there is.
	return given, withState(ctx, cfg, false, func(o *offline) error {
		h, err := o.store.Head()
		if err != nil {
			return err
		}
		return o.append(ctx, bawn.KindNode, actionRoot, map[string]string{"root": h.Root, "tables": h.String()})
	})
}

// chunks yields what is damaged, in details of records.
func chunks(all []store.Damage) iter.Seq[map[string]string] {
	return func(yield func(map[string]string) bool) {
		for part := range slices.Chunk(all, 16) {
			detail := map[string]string{"user": strconv.Itoa(os.Getuid())}
			for i, d := range part {
				detail["given up "+strconv.Itoa(i+1)] = d.String()
			}
			if !yield(detail) {
				return
			}
		}
	}
}

// offline is the state of a data directory on which no node runs.
type offline struct {
	store  *store.Store
	append func(ctx context.Context, kind bawn.RecordKind, action string, detail map[string]string) error
}

// withState opens the state, does something with it, and closes it. expect says
// whether it is held against what the evidence knows.
func withState(ctx context.Context, cfg StateConfig, expect bool, do func(*offline) error) (err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeInvalid, "node.state", "the data directory cannot be found")
	}
	if data, err = host.Enter(data); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(data, "ca.pem")); err != nil {
		return bawn.Wrap(err, bawn.CodeNotFound, "node.state", "there is no node in %s", cfg.Data).WithFix("name its data directory with --data DIR")
	}
	unlock, err := store.LockDir(data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ca, err := openAuthority(data, nil, time.Now())
	if err != nil {
		return err
	}
	secret, err := openRootSecret(ctx, data, cfg.RootKey)
	if err != nil {
		return err
	}
	st, _, err := openStore(ctx, data, secret, cfg.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if cfg.Audit {
		if err := os.Remove(filepath.Join(data, auditHead)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return bawn.Wrap(err, bawn.CodeUnavailable, "node.state", "the newest checkpoint of the audit log cannot be given up")
		}
	}
	record, err := openEvidence(ctx, data, ca, secret, evidence.Config{Log: cfg.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, record.Close()) }()
	if !cfg.Audit {
		if err := expectEvidence(data, st, record); err != nil {
			return err
		}
	}
	if expect {
		if err := expectState(ctx, st, record); err != nil {
			return err
		}
	}
	if err := openAll(ctx, st); err != nil {
		return err
	}
	return do(&offline{store: st, append: func(ctx context.Context, kind bawn.RecordKind, action string, detail map[string]string) error {
		return record.Append(ctx, bawn.Record{Kind: kind, Tenant: bawn.DefaultTenant, Principal: bawn.PrincipalNode + ":" + ca.id(), Action: action, Outcome: "ok", Detail: detail})
	}})
}
