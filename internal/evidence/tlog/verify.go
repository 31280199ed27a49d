package tlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

// VerifyConfig says what [Verify] holds a log against.
type VerifyConfig struct {
	Dir       string          // the log's folder, or a copy of it
	Keys      []note.Verifier // of the log; one must have signed
	Since     []byte          // a checkpoint seen before, which the log must have grown from; may be empty
	Witnesses []note.Verifier // who should have cosigned; may be empty
	Quorum    int             // how many of them; 0 means all
	MaxAge    time.Duration   // how old their signatures may be; 0 means any age
}

// Report is what [Verify] found true.
type Report struct {
	Origin   string        `json:"origin"`
	Size     int64         `json:"size" doc:"entries in the checkpoint"`
	Root     string        `json:"root"`
	First    int64         `json:"first" doc:"the oldest entry that was not pruned"`
	Since    int64         `json:"since,omitempty" doc:"entries in the older checkpoint that the log grew from"`
	Cosigned int64         `json:"cosigned,omitempty" doc:"entries in the newest checkpoint that witnesses have signed"`
	Behind   int64         `json:"behind,omitempty" doc:"entries that came after those which witnesses have signed"`
	Cosigns  []Cosignature `json:"cosignatures,omitempty"`
	Spooled  int64         `json:"spooled,omitempty" doc:"entries that are in no checkpoint yet; nothing vouches for them"`
	Torn     int64         `json:"torn,omitempty" doc:"bytes of the spool that are no entry"`
}

// wrong is the error of a log that does not hold.
func wrong(format string, args ...any) *bawn.Error {
	return bawn.Errorf(bawn.CodeUnprocessable, "tlog.verify", "the log does not hold: "+format, args...)
}

// Verify recomputes every hash of a log, from its entries to the root that its
// key has signed, and returns nil only if all of it holds: no entry changed,
// none missing but for those that a record says were pruned, and, where they
// are given, the log has grown from the older checkpoint and the witnesses have
// seen it. It needs public keys alone and writes nothing.
func Verify(ctx context.Context, cfg VerifyConfig) (r Report, err error) {
	f := files{cfg.Dir}
	msg, err := f.read(CheckpointFile, maxCheckpoint)
	if err != nil {
		return r, wrong("its checkpoint cannot be read: %v", err).WithFix("name the folder that holds the file %s", CheckpointFile)
	}
	c, err := OpenCheckpoint(msg, cfg.Keys)
	if err != nil {
		return r, wrong("its checkpoint: %v", err).WithFix("give the keys that bawn audit keys printed for this node")
	}
	r = Report{Origin: c.Origin, Size: c.Size, Root: c.Root.String()}
	if err := f.verifyTiles(ctx, c); err != nil {
		return r, err
	}
	if r.First, err = f.verifyEntries(ctx, c.Size); err != nil {
		return r, err
	}
	if err := verifyOlder(f, c, CosignedFile, cfg, &r); err != nil {
		return r, err
	}
	if len(cfg.Since) > 0 {
		old, err := OpenCheckpoint(cfg.Since, cfg.Keys)
		if err != nil {
			return r, wrong("the older checkpoint: %v", err).WithFix("give the keys of the log that it is of")
		}
		if err := f.grewFrom(old, c, "the older checkpoint"); err != nil {
			return r, err
		}
		r.Since = old.Size
	}
	if sp, err := readSpool(filepath.Join(cfg.Dir, spoolDir), c.Size); err == nil {
		r.Spooled, r.Torn = int64(len(sp.entries)), sp.torn
	}
	return r, nil
}

// verifyOlder looks at the checkpoint that the witnesses signed, which may be
// some entries behind.
func verifyOlder(f files, c Checkpoint, name string, cfg VerifyConfig, r *Report) error {
	msg, err := f.read(name, maxCheckpoint)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(cfg.Witnesses) == 0:
		return nil
	case err != nil:
		return wrong("no witness has signed it: the file %s cannot be read", name).WithFix("start the node with --witness, or leave the keys of witnesses out")
	}
	old, err := OpenCheckpoint(msg, cfg.Keys)
	if err != nil {
		return wrong("the checkpoint that witnesses signed: %v", err)
	}
	if err := f.grewFrom(old, c, "the checkpoint that witnesses signed"); err != nil {
		return err
	}
	r.Cosigned, r.Behind = old.Size, c.Size-old.Size
	if len(cfg.Witnesses) == 0 {
		return nil
	}
	r.Cosigns = Cosignatures(msg, cfg.Witnesses)
	if cfg.MaxAge > 0 {
		// A whole disk of yesterday has the signatures of yesterday.
		for _, s := range r.Cosigns {
			if age := time.Since(s.Time); age > cfg.MaxAge {
				return wrong("%s signed it %v ago: it may have been rolled back since", s.Witness, age.Round(time.Second)).
					WithFix("look whether node and witness run; for a copy made earlier give a --max-age that reaches back to it, or 0")
			}
		}
	}
	return quorum(r.Cosigns, cfg.Witnesses, cfg.Quorum)
}

// quorum counts witnesses, each once.
func quorum(have []Cosignature, witnesses []note.Verifier, want int) error {
	if want <= 0 {
		want = len(witnesses)
	}
	seen := map[string]bool{}
	for _, c := range have {
		seen[c.Witness] = true
	}
	if len(seen) < want {
		return wrong("%d of the witnesses have signed, %d must", len(seen), want)
	}
	return nil
}

// grewFrom reports whether the tree of c, whose tiles are verified, has that of
// old as its beginning.
func (f files) grewFrom(old, c Checkpoint, name string) error {
	if old.Origin != c.Origin {
		return wrong("%s is of the log %q and not of %q", name, old.Origin, c.Origin)
	}
	if old.Size > c.Size {
		return wrong("it was rolled back: %s has %d entries, and now it has %d", name, old.Size, c.Size)
	}
	root, err := merkle.TreeHash(old.Size, f.reader(c.Size))
	if err != nil {
		return wrong("its first %d entries: %v", old.Size, err)
	}
	if root != old.Root {
		return wrong("it was forked: its first %d entries are not those of %s", old.Size, name)
	}
	return nil
}

// verifyTiles checks each tile against the one above it, and the top against
// the root.
func (f files) verifyTiles(ctx context.Context, c Checkpoint) error {
	root, err := merkle.TreeHash(c.Size, f.reader(c.Size))
	if err != nil {
		return wrong("its tiles: %v", err)
	}
	if root != c.Root {
		return wrong("its tiles do not have the root that was signed")
	}
	for level := 0; c.Size>>(tileHeight*(level+1)) > 0; level++ {
		var above []byte
		for n := int64(0); n < c.Size>>(tileHeight*(level+1)); n++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			i := n % tileWidth
			if i == 0 {
				if above, err = f.hashes(widest(merkle.Tile{H: tileHeight, L: level + 1, N: n / tileWidth}, c.Size)); err != nil {
					return wrong("its tiles: %v", err)
				}
			}
			t := merkle.Tile{H: tileHeight, L: level, N: n, W: tileWidth}
			b, err := f.hashes(t)
			if err != nil {
				return wrong("its tiles: %v", err)
			}
			top, err := merkle.HashFromTile(t, b, merkle.StoredHashIndex(tileHeight*level+tileHeight-1, 2*n))
			if err != nil {
				return wrong("its tiles: %v", err)
			}
			right, err := merkle.HashFromTile(t, b, merkle.StoredHashIndex(tileHeight*level+tileHeight-1, 2*n+1))
			if err != nil {
				return wrong("its tiles: %v", err)
			}
			if h := merkle.NodeHash(top, right); !bytes.Equal(h[:], above[i*merkle.HashSize:(i+1)*merkle.HashSize]) {
				return wrong("the hashes in %s were changed", tilePath(t))
			}
		}
	}
	return nil
}

// verifyEntries checks each entry against its hash in the verified tiles, and
// returns the index of the first that is there.
func (f files) verifyEntries(ctx context.Context, size int64) (first int64, err error) {
	pruned, begun := int64(0), false
	for n := int64(0); n*tileWidth < size; n++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		entries, err := f.bundle(n, size)
		if errors.Is(err, fs.ErrNotExist) && !begun {
			first = min(size, (n+1)*tileWidth)
			continue
		}
		if err != nil {
			return 0, wrong("the entries from %d on are missing or damaged: %v", n*tileWidth, err)
		}
		begun = true
		hashes, err := f.hashes(widest(merkle.Tile{H: tileHeight, N: n}, size))
		if err != nil {
			return 0, wrong("its tiles: %v", err)
		}
		for i, e := range entries {
			if h := merkle.RecordHash(e); !bytes.Equal(h[:], hashes[i*merkle.HashSize:(i+1)*merkle.HashSize]) {
				return 0, wrong("the entry %d was changed", n*tileWidth+int64(i))
			}
			if at := n*tileWidth + int64(i); bytes.Contains(e, []byte(PruneAction)) {
				pruned = max(pruned, prunedBefore(e, at))
			}
		}
	}
	if first > pruned {
		return first, wrong("the first %d entries are missing, and its records say that %d were pruned", first, pruned)
	}
	return first, nil
}

// prunedBefore returns before which index the record at the index at says that
// entries go, and 0 if it says nothing of the kind.
func prunedBefore(entry []byte, at int64) int64 {
	var r bawn.Record
	if json.Unmarshal(entry, &r) != nil || r.Kind != bawn.KindNode || r.Action != PruneAction || r.Outcome != "ok" {
		return 0
	}
	n, err := strconv.ParseInt(r.Detail[PruneBefore], 10, 64)
	if err != nil || n < 0 || n > at {
		return 0
	}
	return n
}

// Range calls fn for each entry of a log's folder from the index from on that
// is in the checkpoint, without verifying anything.
func Range(ctx context.Context, dir string, from int64, fn func(i int64, entry []byte) error) error {
	f := files{dir}
	msg, err := f.read(CheckpointFile, maxCheckpoint)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeNotFound, "tlog.read", "there is no audit log in %s", dir).WithFix("name the folder that holds the file %s", CheckpointFile)
	}
	text, _, ok := splitNote(msg)
	if !ok {
		return wrong("its checkpoint has no signature")
	}
	c, err := parseCheckpoint(string(text))
	if err != nil {
		return wrong("its checkpoint: %v", err)
	}
	for n := max(from/tileWidth, f.firstBundle(c.Size/tileWidth)); n*tileWidth < c.Size; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := f.bundle(n, c.Size)
		if err != nil {
			return wrong("the entries from %d on: %v", n*tileWidth, err)
		}
		for i, e := range entries {
			if at := n*tileWidth + int64(i); at >= from {
				if err := fn(at, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Copy writes what get returns for everything that a checkpoint of the log
// needs into dir, which must be empty or missing: a copy that [Verify] takes.
// get returns CodeNotFound for what is not there.
func Copy(ctx context.Context, dir string, keys []note.Verifier, get func(path string) ([]byte, error)) (Checkpoint, error) {
	const op = "tlog.copy"
	if all, err := os.ReadDir(dir); err == nil && len(all) > 0 {
		return Checkpoint{}, bawn.Errorf(bawn.CodeConflict, op, "the folder %s is not empty", dir).WithFix("name another")
	}
	f := files{dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Checkpoint{}, bawn.Wrap(err, bawn.CodeInvalid, op, "the folder %s cannot be made", dir)
	}
	// The cosigned one first: the log grows meanwhile.
	cosigned, err := get(CosignedFile)
	if err != nil && bawn.ErrorCode(err) != bawn.CodeNotFound {
		return Checkpoint{}, err
	}
	msg, err := get(CheckpointFile)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := OpenCheckpoint(msg, keys)
	if err != nil {
		return c, wrong("its checkpoint: %v", err)
	}
	put := func(t merkle.Tile, size int) error {
		b, err := get(tilePath(t))
		if bawn.ErrorCode(err) == bawn.CodeNotFound && t.W < tileWidth {
			// The log has grown, and the full one replaced it.
			full := t
			full.W = tileWidth
			if b, err = get(tilePath(full)); err == nil && size > 0 && len(b) >= size {
				b = b[:size]
			}
		}
		if err != nil {
			return err
		}
		return f.create(tilePath(t), b)
	}
	for _, t := range merkle.NewTiles(tileHeight, 0, c.Size) {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		if err := put(t, t.W*merkle.HashSize); err != nil {
			return c, err
		}
	}
	for n := int64(0); n*tileWidth < c.Size; n++ {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		if err := put(bundleTile(n, c.Size), 0); err != nil && bawn.ErrorCode(err) != bawn.CodeNotFound {
			return c, err
		}
	}
	if cosigned != nil {
		if err := f.create(CosignedFile, cosigned); err != nil {
			return c, err
		}
	}
	return c, f.create(CheckpointFile, msg)
}

// DirResource reads one file that the format publishes out of a log's folder,
// for [Copy].
func DirResource(dir string) func(path string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if !IsResource(path) {
			return nil, bawn.Errorf(bawn.CodeNotFound, "tlog.resource", "the audit log publishes nothing of that name")
		}
		b, err := files{dir}.read(path, maxBundle)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, bawn.Errorf(bawn.CodeNotFound, "tlog.resource", "there is no %s", path)
		}
		return b, err
	}
}

// DirKeys reads the public key that lies in a log's folder.
func DirKeys(dir string) ([]note.Verifier, error) {
	b, err := files{dir}.read(KeysFile, maxCheckpoint)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "tlog.keys", "the log's public key in %s cannot be read", dir).WithFix("name a file that holds it with --keys")
	}
	logs, _, err := ParseKeys(b)
	return logs, err
}

// String says who signed when.
func (c Cosignature) String() string {
	return fmt.Sprintf("%s at %s", c.Witness, c.Time.UTC().Format(time.RFC3339))
}
