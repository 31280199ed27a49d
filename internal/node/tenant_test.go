package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/store"
)

// holding returns the files of a data directory that hold text, but for packages,
// and for the audit log, which outlives what it tells of.
func holding(t *testing.T, data, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(data, path)
		if d != nil && d.IsDir() && slices.Contains([]string{"code", "audit"}, name) {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// plant gives each tenant a version with an environment and a key with a name that
// can be searched for, and a line in the log. It writes where control does.
func plant(t *testing.T, n *Node, tenants ...string) {
	t.Helper()
	ctx := t.Context()
	logs, err := evidence.OpenLogs(ctx, n.store, evidence.LogsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	versions, err := store.OpenTable[bawn.Version](ctx, n.store, "versions")
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range tenants {
		v := bawn.Version{Tenant: tenant, Function: "shop", Number: 1}
		v.Environment = map[string]string{"TOKEN": "marker-env-" + tenant}
		if _, err := versions.Create(ctx, tenant+".shop.1", v); err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.keys.Create(ctx, bawn.Key{Name: "marker-key-" + tenant, Tenant: tenant, Role: bawn.RoleViewer, CreatedBy: "test"}); err != nil {
			t.Fatal(err)
		}
		logs.Write(bawn.LogLine{Tenant: tenant, Function: "shop", Text: "marker-line-" + tenant}, time.Hour)
	}
	if err := logs.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func kinds(tenant string) []string {
	return []string{"marker-env-" + tenant, "marker-key-" + tenant, "marker-line-" + tenant}
}

func damageOf(all []store.Damage, tenant string) (n int) {
	for _, d := range all {
		if strings.HasPrefix(d.Key, tenant+".") {
			n++
		}
	}
	return n
}

// Nothing of a tenant is on the disk in clear; without its key it is lost, and what
// other tenants have is not.
func TestTenantsAreEncryptedEach(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	if _, err := c.CreateTenant(t.Context(), "acme", bawn.Quota{}); err != nil {
		t.Fatal(err)
	}
	plant(t, n, "main", "acme")
	key, err := os.ReadFile(filepath.Join(cfg.Data, "tenants/acme.key"))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, n)
	for _, text := range append(kinds("main"), kinds("acme")...) {
		if files := holding(t, cfg.Data, text); len(files) > 0 {
			t.Errorf("%s is in clear in %v", text, files)
		}
	}
	// The search finds what is the node's own.
	if len(holding(t, cfg.Data, `"name":"acme"`)) == 0 {
		t.Error("the tenants' own rows are not found")
	}

	// A damaged file, and then a missing one.
	file := filepath.Join(cfg.Data, "tenants/acme.key")
	for _, problem := range []string{"damaged", "missing"} {
		bad := bytes.Clone(key)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if problem == "missing" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		st, keys := offlineStore(t, cfg.Data)
		all := st.Damaged()
		if damageOf(all, "acme") < 2 || damageOf(all, "main") > 0 || !strings.Contains(all[0].Problem, problem) {
			t.Errorf("%s: %v", problem, all)
		}
		if _, err := keys.Seal("main", "x", nil); err != nil {
			t.Error(err)
		}
		st.Close()
	}
	n = mustOpen(t, cfg)
	if _, err := mustClient(t, cfg.ContextFile).Functions(t.Context()); err != nil {
		t.Errorf("the other tenant: %v", err)
	}
	if n.state.damage() < 2 {
		t.Error("the node does not tell")
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error("a lost key was made anew")
	}
	stop(t, n)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	st, _ := offlineStore(t, cfg.Data)
	if d := st.Damaged(); len(d) > 0 {
		t.Errorf("with its key back: %v", d)
	}
}

// stop closes a node once it is up, so that none of its parts is cut short.
func stop(t *testing.T, n *Node) {
	t.Helper()
	<-n.calls.up
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// offlineStore opens the tables of a data directory as the node does.
func offlineStore(t *testing.T, data string) (*store.Store, store.Sealer) {
	t.Helper()
	root, err := openRootSecret(t.Context(), data, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, keys, err := openStore(t.Context(), data, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	if err := openAll(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	return st, keys
}

// What a removed tenant had cannot be read from an older copy of the store either.
func TestRemovedTenantIsUnreadable(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	if _, err := c.CreateTenant(t.Context(), "acme", bawn.Quota{}); err != nil {
		t.Fatal(err)
	}
	plant(t, n, "acme")

	// A file that goes under a running node is told of before it is needed.
	file := filepath.Join(cfg.Data, "tenants/acme.key")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if r, err := n.state.check(t.Context()); err != nil || len(r.Damage) != 1 || r.Damage[0].Table != tenantsFolder || r.Damage[0].Key != "acme" || r.Damage[0].Refused {
		t.Errorf("%+v %v", r, err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	stop(t, n)
	older := t.TempDir()
	for _, name := range []string{"store", "state"} {
		mustCopy(t, filepath.Join(cfg.Data, name), filepath.Join(older, name))
	}
	n = mustOpen(t, cfg)
	if _, err := mustClient(t, cfg.ContextFile).RemoveTenant(t.Context(), "acme", "acme", false); err != nil {
		t.Fatal(err)
	}
	stop(t, n)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Fatal("the key is there still")
	}
	for _, name := range []string{"store", "state"} {
		mustCopy(t, filepath.Join(older, name), filepath.Join(cfg.Data, name))
	}
	st, _ := offlineStore(t, cfg.Data)
	tb, err := store.OpenTable[json.RawMessage](t.Context(), st, "versions")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := tb.Get("acme.shop.1"); ok || !tb.Lost("acme.shop.1") {
		t.Error("a removed tenant's version can be read")
	}
	if damageOf(st.Damaged(), "acme") < 2 || damageOf(st.Damaged(), "main") > 0 {
		t.Error(st.Damaged())
	}
	logs, err := evidence.OpenLogs(t.Context(), st, evidence.LogsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	err = logs.Read(t.Context(), evidence.LogQuery{Tenant: "acme"}, func(l bawn.LogLine) error {
		t.Errorf("a removed tenant's line can be read: %s", l.Text)
		return nil
	})
	if bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Error(err)
	}
	// A line that comes late, after its tenant has gone, is dropped.
	logs.Write(bawn.LogLine{Tenant: "acme", Function: "shop", Text: "late"}, time.Hour)
	if err := logs.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What a Bawn that did not encrypt has left is encrypted at the first start, and a
// crash between key and row is no loss.
func TestUpgradeEncrypts(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	stop(t, n)
	// As it was: rows in clear, no keys, and a row of the tenant that knows of none.
	in, _ := offlineStore(t, cfg.Data)
	tables, err := in.Copy()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	root, err := openRootSecret(t.Context(), cfg.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "data")
	out, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(old, "store"), State: filepath.Join(old, "state"), Key: root.stateKey()})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		err := store.Import(t.Context(), out, table.Name, func(yield func(string, json.RawMessage) bool) {
			for key, v := range table.Rows {
				v = bytes.Replace(v, []byte(`,"sealed":true`), nil, 1)
				if !yield(key, v) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	out.Close()
	for _, name := range []string{"store", "state"} {
		mustCopy(t, filepath.Join(old, name), filepath.Join(cfg.Data, name))
	}
	// The key of a first try that was killed before it was noted.
	wasMade, err := os.ReadFile(filepath.Join(cfg.Data, "tenants/main.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{auditFolder, auditHead} { // they know of more
		if err := os.RemoveAll(filepath.Join(cfg.Data, name)); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := openAuthority(cfg.Data, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	record, err := openEvidence(t.Context(), cfg.Data, ca, root, evidence.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(record.Append(t.Context(), bawn.Record{Kind: bawn.KindNode, Action: "start", Outcome: "ok"}), record.Close()); err != nil {
		t.Fatal(err)
	}
	n = mustOpen(t, cfg)
	if _, err := mustClient(t, cfg.ContextFile).Functions(t.Context()); err != nil {
		t.Errorf("the administrator's key from before: %v", err)
	}
	if n.state.damage() > 0 {
		t.Error(n.store.Damaged())
	}
	stop(t, n)
	if now, err := os.ReadFile(filepath.Join(cfg.Data, "tenants/main.key")); err != nil || !bytes.Equal(now, wasMade) {
		t.Error("the key that was there was not taken up")
	}
	row := bytes.Index(mustBlock(t, cfg.Data), []byte("\x01"))
	if row < 0 {
		t.Error("nothing is sealed")
	}
	st, _ := offlineStore(t, cfg.Data)
	if d := st.Damaged(); len(d) > 0 {
		t.Error(d)
	}
}

func mustBlock(t *testing.T, data string) []byte {
	t.Helper()
	blocks, err := filepath.Glob(filepath.Join(keysDir(data), "msgs/*.blk"))
	if err != nil || len(blocks) == 0 {
		t.Fatal(blocks, err)
	}
	b, err := os.ReadFile(blocks[len(blocks)-1])
	if err != nil {
		t.Fatal(err)
	}
	return b
}
