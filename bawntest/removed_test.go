package bawntest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// TestE8RemovedTenantsCode: the code of a tenant that was removed is not on the disk,
// and a backup from before does not bring it back. Another's is in both.
func TestE8RemovedTenantsCode(t *testing.T) {
	n := NewNode(t)
	ctx := t.Context()
	made, err := n.CreateTenant(ctx, "acme", bawn.Quota{})
	if err != nil {
		t.Fatal(err)
	}
	put := func(c *client.Client, text string) (folder string) {
		t.Helper()
		data := Zip(t, map[string]string{"app.py": "# " + text + "\ndef handler(e, c): pass\n"})
		if _, err := c.PutArtifact(ctx, Digest(data), int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(n.Data, "code", strings.TrimPrefix(Digest(data), "sha256:"))
	}
	acme := n.As(made.Secret)
	own, shared := put(acme, "acme's own"), put(acme, "what both have")
	put(n.Client, "what both have")
	var b bytes.Buffer
	const passphrase = "a passphrase for this test alone"
	if _, err := n.CreateBackup(ctx, client.NewBackup{Passphrase: passphrase}, &b); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Fatal(err)
	}
	if _, err := n.RemoveTenant(ctx, "acme", "acme", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own); !os.IsNotExist(err) {
		t.Errorf("the code of a removed tenant is unpacked: %v", err)
	}
	if _, err := os.Stat(shared); err != nil {
		t.Errorf("what another tenant has went: %v", err)
	}
	n.Stop()
	out, err := node.Restore(ctx, node.RestoreConfig{Data: n.Data, Archive: &b, Passphrase: passphrase, StateOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if out.Packages != 1 || out.Locked != 2 {
		t.Errorf("%d packages were restored and %d left out, want 1 and 2", out.Packages, out.Locked)
	}
}
