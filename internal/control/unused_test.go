package control

import (
	"bytes"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

// What a tenant uploads and does not deploy is bounded, unpacked bytes included:
// over it nothing is read, and what was read and is too much does not stay.
func TestUnusedPackagesAreBounded(t *testing.T) {
	p := open(t)
	ctx := t.Context()
	used := p.upload(admin, "used")
	p.deploy("hello", used)
	other := "sha256:" + strings.Repeat("a", 64)
	fill := func(n int64) {
		t.Helper()
		key := artifactKey("main", other)
		if err := remove(ctx, p.artifacts, key); err != nil {
			t.Fatal(err)
		}
		if _, err := p.artifacts.Create(ctx, key, artifact{bawn.Artifact{Digest: other, Bytes: n}, p.now, "test"}); err != nil {
			t.Fatal(err)
		}
	}
	put := func(who bawn.Principal, text string) (left int, digest string, err error) {
		data, digest := code(t, text)
		r := bytes.NewReader(data)
		_, err = p.PutArtifact(ctx, who, digest, r)
		return r.Len(), digest, err
	}

	fill(maxUnusedBytes - 10)
	left, digest, err := put(admin, "a little too much")
	wantCode(t, err, bawn.CodeTooLarge, "not deployed")
	if left != 0 {
		t.Errorf("refused before its size was known: %d bytes left", left)
	}
	if has, err := p.gate.Has(ctx, "main", digest); err != nil || has {
		t.Errorf("a refused package stays: %v", err)
	}
	fill(maxUnusedBytes)
	left, _, err = put(admin, "not read")
	wantCode(t, err, bawn.CodeTooLarge, "not deployed")
	if left == 0 {
		t.Error("a package was read that there is no room for")
	}
	// Packages in use do not count, and neither do those of other tenants.
	if p.upload(admin, "used") != used {
		t.Error("not the same package")
	}
	if _, _, err := put(who("rival", bawn.RoleAdmin), "theirs"); err != nil {
		t.Error(err)
	}
	// After a day there is room again.
	p.now = p.now.Add(2 * unusedFor)
	if _, _, err := put(admin, "later"); err != nil {
		t.Error(err)
	}
}
