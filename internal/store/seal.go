package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Tables had a seal before they had a manifest: the number of live rows and a
// hash over them all, in each message and in a file beside the stream. A table
// that still has one is checked against it once more, and then gets a manifest.

const (
	sealHeader = "Bawn-Seal"
	sealSlot   = 512 // two slots in turn, each within one disk sector
)

func (s *Store) sealPath(table string) string { return filepath.Join(s.dir, "seal-"+table) }

// sealHolds reports whether the seal file of table, and last, the seal of the
// stream's newest message, fit rows whose newest revision is seq. present is false
// if there is no such file.
func (s *Store) sealHolds(table string, rows map[string]want, seq uint64, last string) (holds, present bool, err error) {
	b, err := os.ReadFile(s.sealPath(table))
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, true, err
	}
	var sum [sha256.Size]byte
	for _, w := range rows {
		for i := range sum {
			sum[i] ^= w.sum[i]
		}
	}
	if seq > 0 && last != fmt.Sprintf("%d:%s", len(rows), hex.EncodeToString(sum[:])) {
		return false, true, nil
	}
	newest, seal, ok := readSeal(b)
	// A write that was never acknowledged may be ahead of the file.
	return ok && newest <= seq && (newest < seq || seq == 0 || seal == last), true, nil
}

func readSeal(b []byte) (seq uint64, seal string, ok bool) {
	for slot := range 2 {
		if len(b) <= slot*sealSlot {
			break
		}
		text := string(b[slot*sealSlot : min(len(b), (slot+1)*sealSlot)])
		text, _, _ = strings.Cut(text, "\n")
		i := strings.LastIndexByte(text, ' ') + 1
		if fmt.Sprintf("%x", sha256.Sum256([]byte(text[:i]))) != text[i:] {
			continue
		}
		num, found, _ := strings.Cut(text[:i], " ")
		if q, err := strconv.ParseUint(num, 10, 64); err == nil && (!ok || q > seq) {
			seq, seal, ok = q, strings.TrimSpace(found), true
		}
	}
	return seq, seal, ok
}
