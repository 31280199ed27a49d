package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/store"
)

func mustCopy(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func records(t *testing.T, n *Node, action string) (all []bawn.Record) {
	t.Helper()
	err := n.record.Read(t.Context(), evidence.Query{Kinds: []bawn.RecordKind{bawn.KindNode}}, func(r bawn.Record) error {
		if r.Action == action {
			all = append(all, r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A revoked key stays revoked when the store and its manifests are put back to the
// day before, since the evidence knows better; and no new administrator is made.
func TestRollbackOfTheStateIsRefused(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	made, err := c.CreateKey(t.Context(), client.NewKey{Name: "leaver", Role: bawn.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	n.Close(t.Context())
	older := filepath.Join(t.TempDir(), "older")
	mustCopy(t, filepath.Join(cfg.Data, "state"), filepath.Join(older, "state"))
	mustCopy(t, keysDir(cfg.Data), filepath.Join(older, "keys"))

	n = mustOpen(t, cfg)
	if err := mustClient(t, cfg.ContextFile).RevokeKey(t.Context(), made.Key.ID); err != nil {
		t.Fatal(err)
	}
	n.Close(t.Context())
	mustCopy(t, filepath.Join(older, "state"), filepath.Join(cfg.Data, "state"))
	mustCopy(t, filepath.Join(older, "keys"), keysDir(cfg.Data))

	n = mustOpen(t, cfg)
	if _, err := n.keys.Authenticate(made.Secret); err == nil {
		t.Error("the revoked key is good again")
	}
	have, err := client.LoadContext(cfg.ContextFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.keys.Authenticate(have.Key); err == nil {
		t.Error("a key of a table that cannot be trusted is good")
	}
	if !strings.Contains(n.Notice(), "no key is made") {
		t.Errorf("the notice is %q", n.Notice())
	}
	if r := records(t, n, actionDamaged); len(r) == 0 || r[0].Control != "G3" || r[0].Detail["table"] != "keys" {
		t.Errorf("recorded: %v", r)
	}
	if n.state.damage() == 0 {
		t.Error("the node does not say that it is damaged")
	}
}

// An audit log that was removed, or put back to an older copy, keeps the node from
// starting, until somebody accepts that in the log that goes on.
func TestG3AuditLogIsGone(t *testing.T) {
	cfg := config(t)
	mustOpen(t, cfg).Close(t.Context())
	audit, head := filepath.Join(cfg.Data, auditFolder), filepath.Join(cfg.Data, auditHead)
	older := filepath.Join(t.TempDir(), "older")
	mustCopy(t, audit, older)
	mustOpen(t, cfg).Close(t.Context())

	remove := func(paths ...string) func() {
		return func() {
			for _, p := range paths {
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for what, do := range map[string]func(){
		"rolled back": func() { mustCopy(t, older, audit) },
		"removed":     remove(audit),
		"all removed": remove(audit, head),
	} {
		t.Run(what, func(t *testing.T) {
			do()
			for range 2 { // the try itself repairs nothing
				var e *bawn.Error
				if _, err := Open(t.Context(), cfg); !errors.As(err, &e) || !strings.Contains(e.Fix, "state accept --audit") {
					t.Fatalf("the node opens: %v", err)
				}
			}
			if _, err := AcceptState(t.Context(), StateConfig{Data: cfg.Data, Audit: true}, true); err != nil {
				t.Fatal(err)
			}
			n := mustOpen(t, cfg)
			defer n.Close(t.Context())
			found := 0
			if err := n.record.Read(t.Context(), evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}, Action: "state.accept"}, func(bawn.Record) error {
				found++
				return nil
			}); err != nil || found == 0 {
				t.Errorf("the acceptance is not recorded: %d %v", found, err)
			}
		})
	}
}

func keysDir(data string) string {
	return filepath.Join(data, "store/jetstream/$G/streams/KV_keys")
}

// One flipped bit in the value of one key costs that key, and nothing else.
func TestDamageTouchesWhatItTouches(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	hurt, err := c.CreateKey(t.Context(), client.NewKey{Name: "hurt", Role: bawn.RoleViewer})
	if err != nil {
		t.Fatal(err)
	}
	n.Close(t.Context())
	blocks, err := filepath.Glob(filepath.Join(keysDir(cfg.Data), "msgs/*.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	b, err := os.ReadFile(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("$KV.keys.main."+hurt.Key.ID))
	if at < 0 {
		t.Fatal("the key is not in the block")
	}
	at += bytes.Index(b[at:], []byte("\r\n\r\n")) // the end of the header
	b[at+20] ^= 1
	if err := os.WriteFile(blocks[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	n = mustOpen(t, cfg)
	if _, err := n.keys.Authenticate(hurt.Secret); err == nil {
		t.Error("the damaged key is good")
	}
	if _, err := mustClient(t, cfg.ContextFile).Functions(t.Context()); err != nil {
		t.Errorf("the other key: %v", err)
	}
	r, err := n.state.check(t.Context())
	if err != nil || len(r.Damage) != 1 || r.Damage[0].Key != "main."+hurt.Key.ID {
		t.Errorf("%+v %v", r, err)
	}
	if got := records(t, n, actionDamaged); len(got) != 1 || got[0].Tenant != bawn.DefaultTenant {
		t.Errorf("recorded: %v", got)
	}
}

// What a running node has in memory stays good while its disk goes bad, is told
// of, and is not trusted after a start.
func TestDiskGoesBadUnderARunningNode(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	if err := os.Remove(filepath.Join(cfg.Data, "state/keys.manifest")); err != nil {
		t.Fatal(err)
	}
	r, err := n.state.check(t.Context())
	if err != nil || len(r.Damage) != 1 || r.Damage[0].Refused {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := mustClient(t, cfg.ContextFile).Functions(t.Context()); err != nil {
		t.Errorf("a running node: %v", err)
	}
	if got := records(t, n, actionDamaged); len(got) != 1 || got[0].Outcome != "error" {
		t.Errorf("recorded: %v", got)
	}
	n.Close(t.Context())
	n = mustOpen(t, cfg)
	if err := n.keys.Trusted(); bawn.ErrorCode(err) != bawn.CodeUnavailable || !strings.Contains(err.(*bawn.Error).Fix, "restore") {
		t.Errorf("after a start: %v", err)
	}
}

// The root is in the evidence at each start, and again after a change.
func TestRootIsRecorded(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	before := records(t, n, actionRoot)
	if len(before) != 1 || len(before[0].Detail["root"]) != 64 {
		t.Fatalf("at the start: %v", before)
	}
	if err := n.state.anchor(t.Context(), false); err != nil { // the first key was made since
		t.Fatal(err)
	}
	after := records(t, n, actionRoot)
	if len(after) != 2 || after[1].Detail["root"] == before[0].Detail["root"] || store.ParseHeads(after[1].Detail["tables"])["keys"] == 0 {
		t.Errorf("after a change: %v", after)
	}
	if err := n.state.anchor(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := records(t, n, actionRoot); len(got) != 2 {
		t.Errorf("nothing changed, and it is recorded: %v", got)
	}
}
