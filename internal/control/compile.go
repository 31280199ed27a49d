package control

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"bawn.dev/bawn"
)

// compile has the version's code compiled and takes the result in as a package,
// so that it is kept, verified at every start and dropped as code is. It
// returns nil if there is nothing to compile. The package belongs to no tenant
// until addCompiled is called; should that never happen, the next start finds
// that nothing refers to it.
func (c *Control) compile(ctx context.Context, v *bawn.Version) (*bawn.Artifact, error) {
	if c.cfg.Compile == nil || v.Runtime != bawn.Wasm {
		return nil, nil
	}
	code, err := c.cfg.Gate.Path(ctx, v.Tenant, v.Artifact)
	if err != nil {
		return nil, err
	}
	files, err := c.cfg.Compile(ctx, v, code)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	data, err := packCompiled(files)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	a, err := c.cfg.Gate.Accept(ctx, v.Tenant, "sha256:"+hex.EncodeToString(sum[:]), bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// addCompiled gives the version's tenant what was compiled. The caller holds mu.
func (c *Control) addCompiled(ctx context.Context, v *bawn.Version) error {
	if v.Compiled == nil {
		return nil
	}
	// Somebody who made the same and had no use for it may have removed it.
	if has, err := c.cfg.Gate.Has(ctx, v.Tenant, v.Compiled.Digest); err != nil {
		return err
	} else if !has {
		return bawn.Errorf(bawn.CodeConflict, "control.deploy", "what was compiled was removed before it was used").WithFix("deploy again")
	}
	_, err := c.artifacts.Create(ctx, artifactKey(v.Tenant, v.Compiled.Digest), artifact{*v.Compiled, v.CreatedAt, v.CreatedBy})
	if bawn.ErrorCode(err) == bawn.CodeConflict {
		return nil // another version has the same
	}
	return err
}

// sameContent returns the newest version of v's function that has v's content.
func (c *Control) sameContent(v *bawn.Version) (same bawn.Version, ok bool) {
	f, _, exists := c.functions.Get(functionKey(v.Tenant, v.Function))
	if !exists {
		return same, false
	}
	for _, old := range c.versions.All(functionKey(v.Tenant, v.Function) + ".") {
		if old.Digest == v.Digest && old.Number <= f.Latest && old.Number > same.Number {
			same, ok = old, true
		}
	}
	return same, ok
}

// packCompiled makes a zip of files that depends on nothing else: equal files
// give equal bytes.
func packCompiled(files map[string][]byte) ([]byte, error) {
	tooLarge := func(what string, n, most int) error {
		return bawn.Errorf(bawn.CodeTooLarge, "control.compile", "the machine code of the module has %d MiB%s, at most %d are allowed", n>>20, what, most>>20).
			WithFix("build a smaller module, for example with -ldflags '-s -w'")
	}
	all := 0
	for _, data := range files {
		if all += len(data); all > bawn.MaxUnpackedBytes {
			return nil, tooLarge("", all, bawn.MaxUnpackedBytes)
		}
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name]
		var packed bytes.Buffer
		// Errors cannot be: the level exists and a buffer takes everything.
		w, err := flate.NewWriter(&packed, flate.BestSpeed)
		if err == nil {
			_, err = w.Write(data)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInternal, "control.compile", "the machine code cannot be packed")
		}
		h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
		content := packed.Bytes()
		// The gate takes what shrinks by more than this for an attack.
		if len(data)/bawn.MaxPackageRatio >= len(content) {
			h.Method, content = zip.Store, data
		}
		h.SetMode(0o644)
		h.CRC32, h.CompressedSize64, h.UncompressedSize64 = crc32.ChecksumIEEE(data), uint64(len(content)), uint64(len(data))
		raw, err := z.CreateRaw(h)
		if err == nil {
			_, err = raw.Write(content)
		}
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInternal, "control.compile", "the machine code cannot be packed")
		}
	}
	if err := z.Close(); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "control.compile", "the machine code cannot be packed")
	}
	if out.Len() > bawn.MaxPackageBytes {
		return nil, tooLarge(", packed", out.Len(), bawn.MaxPackageBytes)
	}
	return out.Bytes(), nil
}
