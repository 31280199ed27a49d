package tlog

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

const (
	proofMagic = "c2sp.org/tlog-proof@v1"
	maxProof   = 63        // hashes: no tree is higher
	maxReceipt = 256 << 10 // bytes
)

// Receipt proves that an entry is in a log. Its text is a C2SP tlog-proof with
// the entry as extra data.
type Receipt struct {
	Index      int64
	Entry      []byte
	Proof      merkle.RecordProof
	Checkpoint []byte // signed
}

// Format returns the text.
func (r *Receipt) Format() []byte {
	b := fmt.Appendf(nil, "%s\nextra %s\nindex %d\n", proofMagic, base64.StdEncoding.EncodeToString(r.Entry), r.Index)
	for _, h := range r.Proof {
		b = append(append(b, h.String()...), '\n')
	}
	return append(append(b, '\n'), r.Checkpoint...)
}

// ParseReceipt reads the text of a receipt and verifies nothing.
func ParseReceipt(text []byte) (*Receipt, error) {
	bad := func(what string) error {
		return bawn.Errorf(bawn.CodeInvalid, "tlog.receipt", "this is no receipt: %s", what).WithFix("take the file as bawn audit receipt wrote it")
	}
	if len(text) > maxReceipt {
		return nil, bad("it is too large")
	}
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	if !ok {
		return nil, bad("it has no checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if len(lines) < 2 || lines[0] != proofMagic {
		return nil, bad("it does not begin with " + proofMagic)
	}
	r := &Receipt{Checkpoint: checkpoint}
	lines = lines[1:]
	if extra, ok := strings.CutPrefix(lines[0], "extra "); ok {
		var err error
		if r.Entry, err = base64.StdEncoding.DecodeString(extra); err != nil || len(r.Entry) > MaxEntry {
			return nil, bad("its entry cannot be read")
		}
		lines = lines[1:]
	}
	if len(lines) == 0 || len(lines) > 1+maxProof {
		return nil, bad("it has too few or too many lines")
	}
	index, ok := strings.CutPrefix(lines[0], "index ")
	n, err := strconv.ParseInt(index, 10, 64)
	if !ok || err != nil || n < 0 || index != strconv.FormatInt(n, 10) {
		return nil, bad("its index cannot be read")
	}
	r.Index = n
	for _, line := range lines[1:] {
		h, err := merkle.ParseHash(line)
		if err != nil {
			return nil, bad("one of its hashes cannot be read")
		}
		r.Proof = append(r.Proof, h)
	}
	return r, nil
}

// Verify checks that the entry is in the log that one of keys has signed, and
// that enough witnesses have, if any are given; 0 means all of them.
func (r *Receipt) Verify(keys, witnesses []note.Verifier, want int) (Checkpoint, []Cosignature, error) {
	c, err := OpenCheckpoint(r.Checkpoint, keys)
	if err != nil {
		return c, nil, wrong("the receipt's checkpoint: %v", err)
	}
	if r.Index >= c.Size || merkle.CheckRecord(r.Proof, c.Size, c.Root, r.Index, merkle.RecordHash(r.Entry)) != nil {
		return c, nil, wrong("the entry of the receipt is not at the index %d of the log", r.Index)
	}
	signed := Cosignatures(r.Checkpoint, witnesses)
	if len(witnesses) > 0 {
		if err := quorum(signed, witnesses, want); err != nil {
			return c, signed, err
		}
	}
	return c, signed, nil
}

// Receipt proves the entry at an index: against the newest checkpoint that
// witnesses have signed if it is in there, and against a new one else.
func (l *Log) Receipt(ctx context.Context, index int64) (*Receipt, error) {
	const op = "tlog.receipt"
	if index < 0 || index >= l.Next() {
		return nil, bawn.Errorf(bawn.CodeNotFound, op, "the audit log has no entry %d", index)
	}
	entries, first, err := l.Entries(index)
	if err != nil {
		return nil, err
	}
	c, ok := l.cosigned()
	if !ok || c.Size <= index {
		if c, err = l.Publish(ctx); err != nil {
			return nil, err
		}
	}
	r := &Receipt{Index: index, Entry: entries[index-first], Checkpoint: c.Note}
	if r.Proof, err = merkle.ProveRecord(c.Size, index, l.files.reader(c.Size)); err != nil {
		return nil, damaged(err, op, "the entry %d cannot be proven", index)
	}
	if err := merkle.CheckRecord(r.Proof, c.Size, c.Root, index, merkle.RecordHash(r.Entry)); err != nil {
		return nil, damaged(err, op, "the entry %d is not what was appended", index)
	}
	return r, nil
}

// cosigned returns the newest checkpoint that witnesses have signed, and
// whether there is one of this log.
func (l *Log) cosigned() (Checkpoint, bool) {
	v, err := note.NewVerifier(l.key)
	if err != nil {
		return Checkpoint{}, false
	}
	msg, err := l.files.read(CosignedFile, maxCheckpoint)
	if err != nil {
		return Checkpoint{}, false
	}
	c, err := OpenCheckpoint(msg, []note.Verifier{v})
	return c, err == nil && c.Size <= l.Checkpoint().Size
}
