package identity

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// hurt flips a bit behind text in the stored table and opens everything again.
func (w *world) hurt(t *testing.T, storeDir, table, text string) {
	t.Helper()
	w.Close()
	w.store.Close()
	blocks, _ := filepath.Glob(filepath.Join(storeDir, "jetstream/$G/streams/KV_"+table, "msgs/*.blk"))
	found := false
	for _, name := range blocks {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(b, []byte(text)); at >= 0 {
			found = true
			b[at+len(text)-1] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatalf("%q is in none of %d blocks of %s", text, len(blocks), table)
	}
	w.reopenStore(t, storeDir)
}

func (w *world) reopenStore(t *testing.T, dir string) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.store = s
	w.open(t)
}

// TestLostRevocationLetsNobodyIn holds that a revocation or an issuer that the
// disk has lost gives nobody back what it took: tokens and certificates are
// refused with a way out, and API keys go on.
func TestLostRevocationLetsNobodyIn(t *testing.T) {
	for _, c := range []struct {
		name, table, text string
		others            bool // whether another tenant's are good still
	}{
		{"a revocation", "revocations", `"principal":"user:corp:b`, true},
		{"a revocation's manifest", "revocations", "", false},
		{"an issuer", "issuers", `"name":"spare`, false},
		{"the issuers' manifest", "issuers", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w := &world{dir: filepath.Join(t.TempDir(), "identity")}
			w.reopenStore(t, dir)
			t.Cleanup(func() { w.Close() })
			p, a, b := newIDP(t), newAuthority(t), newAuthority(t)
			w.put(t, p.issuer("corp"))
			w.put(t, bawn.Issuer{Name: "machines", Kind: bawn.IssuerCA, CA: a.pem(), Roles: map[string][]bawn.Role{"*": {bawn.RoleInvoker}}})
			w.put(t, bawn.Issuer{Name: "machines", Tenant: "rival", Kind: bawn.IssuerCA, CA: b.pem(), Roles: map[string][]bawn.Role{"*": {bawn.RoleInvoker}}})
			w.put(t, bawn.Issuer{Name: "spare", Kind: bawn.IssuerCA, CA: newAuthority(t).pem(), Roles: map[string][]bawn.Role{"*": {bawn.RoleInvoker}}})
			token := p.sign(t, w.claims(p, map[string]any{"sub": "b"}))
			mine, theirs := a.issue(t, func(*x509.Certificate) {}), b.issue(t, func(*x509.Certificate) {})
			secret, _, err := w.Keys().Create(t.Context(), bawn.Key{Name: "k", Tenant: "main", Role: bawn.RoleAdmin, CreatedBy: "test"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.bearer(t, token); err != nil {
				t.Fatalf("before: %v", err)
			}
			before, err := w.Authenticate(t.Context(), Credential{Certificates: mine})
			if err != nil {
				t.Fatalf("before: %v", err)
			}
			if _, err := w.Revoke(t.Context(), bawn.Revocation{Tenant: "main", Principal: "user:corp:b", Barred: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.bearer(t, token); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
				t.Fatalf("revoked: %v", err)
			}

			if c.text != "" {
				w.hurt(t, dir, c.table, c.text)
			} else {
				w.Close()
				w.store.Close()
				if err := os.Remove(filepath.Join(dir, "state", c.table+".manifest")); err != nil {
					t.Fatal(err)
				}
				w.reopenStore(t, dir)
			}
			if _, err := w.bearer(t, token); bawn.ErrorCode(err) != bawn.CodeUnavailable {
				t.Errorf("the revoked user: %v", err)
			}
			if _, err := w.Authenticate(t.Context(), Credential{Certificates: mine}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
				t.Errorf("a certificate of the tenant: %v", err)
			}
			if _, ok := w.Current(before); ok {
				t.Error("who was known before is current")
			}
			if _, err := w.Authenticate(t.Context(), Credential{Certificates: theirs}); (err == nil) != c.others {
				t.Errorf("a certificate of another tenant: %v", err)
			}
			if _, err := w.bearer(t, secret); err != nil {
				t.Errorf("an API key: %v", err)
			}
			// What may be a token of a lost issuer is not handed to a function.
			if !w.Ours(token) {
				t.Error("the token is taken for the function's")
			}
			if c.table == "issuers" {
				if _, err := w.PutIssuer(t.Context(), bawn.Issuer{Name: "new", Tenant: "rival", Kind: bawn.IssuerCA, CA: newAuthority(t).pem()}, false); bawn.ErrorCode(err) != bawn.CodeUnavailable {
					t.Errorf("a new issuer, which may be the lost one's: %v", err)
				}
			}
		})
	}
}
