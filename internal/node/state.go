package node

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

const (
	// checkEvery is how often the stored state is read again from the disk and
	// compared with its manifest, give or take a tenth.
	checkEvery = time.Minute
	// anchorWithin is how soon a change of the state is in the evidence: what is
	// rolled back within that time, manifest and all, cannot be told.
	anchorWithin = 5 * time.Second
	// anchorAgain is how often the root is recorded although it is the same: it is
	// found soon then, and an idle log has a checkpoint for witnesses to sign.
	anchorAgain   = 20 * time.Minute
	maxDamageTold = 100 // records about damage that one check makes
	actionRoot    = "state.root"
	actionDamaged = "state.damaged"
	tenantsFolder = "tenants" // of the data directory: the tenants' keys
	secretsFolder = "secrets" // of the tenants' folder: a key for each version of a secret
	auditFolder   = "audit"   // of the data directory: the audit log
	auditHead     = "audit.head"
)

// openStore opens the store of the data directory, with the manifests of its tables
// signed by a key of the root secret, and what is tenants' encrypted with their keys.
func openStore(ctx context.Context, data string, root rootSecret, log *slog.Logger) (*store.Store, *secret.TenantKeys, error) {
	keys, err := secret.OpenTenantKeys(filepath.Join(data, tenantsFolder), root.derive("tenants"))
	if err != nil {
		return nil, nil, err
	}
	st, err := store.Open(ctx, store.Config{
		Dir: filepath.Join(data, "store"), State: filepath.Join(data, "state"),
		Key: root.stateKey(), Sealer: keys, Log: log,
	})
	return st, keys, err
}

// stateKey signs the manifests of the tables, and backups.
func (k rootSecret) stateKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(k.derive("state manifest"))
}

// openEvidence opens the audit log of the data directory.
func openEvidence(ctx context.Context, data string, ca *authority, secret rootSecret, cfg evidence.Config) (*evidence.Log, error) {
	cfg.Dir, cfg.Head, cfg.Origin = filepath.Join(data, auditFolder), filepath.Join(data, auditHead), "bawn.dev/"+ca.id()
	cfg.Key, cfg.Keep = secret.derive("audit log"), actionRoot
	return evidence.Open(ctx, cfg)
}

// expectEvidence refuses an empty audit log beside state that is not: a new log
// leaves its trace beside itself before anything is stored. A log of which there
// is a newer checkpoint was refused when it was opened.
func expectEvidence(data string, st *store.Store, record *evidence.Log) error {
	if record.Next() > 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(data, auditHead)); err == nil {
		return nil // begun here, and not yet written to
	}
	tables, err := st.TableNames()
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		return record.KeepHead()
	}
	return bawn.Errorf(bawn.CodeUnavailable, "node.evidence", "the audit log is gone, and there is state that it must speak of; control G3").
		WithFix("put the folder %s of the data directory back from a copy; `bawn state accept --audit` begins a new log, and records that", auditFolder)
}

// expectState tells the store how far its tables had come by the evidence, which is
// kept apart from them.
func expectState(ctx context.Context, st *store.Store, record *evidence.Log) error {
	var heads map[string]uint64
	err := record.Read(ctx, evidence.Query{Kinds: []bawn.RecordKind{bawn.KindNode}, Action: actionRoot, Limit: 1}, func(r bawn.Record) error {
		heads = store.ParseHeads(r.Detail["tables"])
		return nil
	})
	st.Expect(heads)
	return err
}

// keeper watches over the stored state: it records its root, checks it against the
// disk, and tells of damage.
type keeper struct {
	store  *store.Store
	keys   *secret.TenantKeys
	record func(context.Context, bawn.Record) error
	event  func(action, outcome string, detail map[string]string) bawn.Record
	log    *slog.Logger
	stop   context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex // held for a check
	told   map[string]bool
	lastAt time.Time
	last   string       // what the newest anchor says; of run, and before and after it
	hurt   atomic.Int64 // how much the newest check found
}

// keepState begins to keep the state, once all its tables are open: what opening
// found and the root are recorded before it returns.
func (n *Node) keepState(ctx context.Context, keys *secret.TenantKeys) error {
	k := &keeper{store: n.store, keys: keys, record: n.record.Append, event: n.event, log: n.cfg.Log, done: make(chan struct{}), told: map[string]bool{}}
	n.state = k
	if err := k.tell(ctx, n.store.Damaged()); err != nil {
		return err
	}
	if err := k.anchor(ctx, true); err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop = stop
	go k.run(run)
	n.onClose("state", k.close)
	return nil
}

func (k *keeper) close(ctx context.Context) error {
	k.stop()
	<-k.done
	return k.anchor(ctx, false)
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	next := time.Now().Add(jitter(checkEvery))
	tick := time.NewTicker(anchorWithin)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := k.anchor(ctx, false); err != nil && ctx.Err() == nil {
				k.log.Warn("the root of the stored state could not be recorded", "error", err)
			}
			if now.Before(next) {
				continue
			}
			if _, err := k.check(ctx); err != nil && ctx.Err() == nil {
				k.log.Warn("the stored state could not be checked", "error", err)
			}
			next = time.Now().Add(jitter(checkEvery))
		}
	}
}

// jitter keeps nodes that were started together from reading their disks together.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5) }

// check compares the state with what is on the disk now, and records what is new.
func (k *keeper) check(ctx context.Context) (store.Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, err := k.store.Check(ctx)
	if err != nil {
		return r, err
	}
	for _, tenant := range k.keys.Changed() {
		r.Damage = append(r.Damage, store.Damage{Table: tenantsFolder, Key: tenant, Problem: "the file of its key is missing or was changed"})
	}
	return r, k.tellLocked(ctx, r.Damage)
}

func (k *keeper) tell(ctx context.Context, found []store.Damage) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tellLocked(ctx, found)
}

// tellLocked records each damage once. The caller holds mu.
func (k *keeper) tellLocked(ctx context.Context, found []store.Damage) error {
	k.hurt.Store(int64(len(found)))
	told := 0
	for _, d := range found {
		if k.told[d.String()] {
			continue
		}
		if told++; told > maxDamageTold {
			break // the rest follows with the next checks
		}
		k.log.Error("stored state is damaged", "table", d.Table, "key", d.Key, "problem", d.Problem, "refused", d.Refused, "fix", store.RestoreFix)
		if err := k.record(ctx, damageRecord(k.event, d)); err != nil {
			return err
		}
		k.told[d.String()] = true
	}
	return nil
}

func damageRecord(event func(action, outcome string, detail map[string]string) bawn.Record, d store.Damage) bawn.Record {
	detail := map[string]string{"table": d.Table, "problem": d.Problem}
	outcome := "error" // the node goes on with what it has in memory
	if d.Refused {
		outcome = "blocked"
	}
	if d.Key != "" {
		detail["key"] = d.Key
	}
	r := event(actionDamaged, outcome, detail)
	r.Control, r.Reason = "G3", d.String()
	// What is a tenant's is the tenant's to know.
	if tenant, rest, ok := strings.Cut(d.Key, "."); ok && bawn.CheckName("tenant", tenant) == nil {
		r.Tenant = tenant
		if name, _, _ := strings.Cut(rest, "."); (d.Table == "functions" || d.Table == "versions") && bawn.CheckName("function", name) == nil {
			r.Function = name
		}
	}
	return r
}

// anchor puts the root of the state, and how far each table has come, into the
// evidence: at once if always, else if it is another than the last.
func (k *keeper) anchor(ctx context.Context, always bool) error {
	if heads := k.store.Heads(); !always && heads.String() == k.last && time.Since(k.lastAt) < anchorAgain {
		return nil
	}
	h, err := k.store.Head()
	if err != nil {
		return err
	}
	if err := k.record(ctx, k.event(actionRoot, "ok", map[string]string{"root": h.Root, "tables": h.String()})); err != nil {
		return err
	}
	k.last, k.lastAt = h.String(), time.Now()
	return nil
}

// damage returns how much of the state is damaged, by the newest check.
func (k *keeper) damage() int { return int(k.hurt.Load()) }
