package bawn

import (
	"encoding/hex"
	"strings"
)

// Artifact is a stored package. It is addressed by the SHA-256 of its bytes,
// so equal packages are one artifact.
type Artifact struct {
	Digest string `json:"digest" doc:"sha256: and 64 hex digits, over the zip's bytes"`
	Size   int64  `json:"size" doc:"bytes of the zip"`
	Tree   string `json:"tree,omitempty" doc:"sha256: over the list of unpacked files (path, mode, size, content hash); checked at every cold start"`
	Files  int    `json:"files,omitempty" doc:"number of unpacked files"`
	Bytes  int64  `json:"bytes,omitempty" doc:"unpacked size in bytes"`
}

// Limits of a package. They follow AWS Lambda's, see docs/limits.md.
const (
	MaxPackageBytes   = 50 << 20  // the zip
	MaxUnpackedBytes  = 250 << 20 // all files together
	MaxPackageEntries = 20000
	MaxPackageRatio   = 100 // unpacked to packed, of one entry and of the whole
	MaxPathBytes      = 1024
	MaxPathDepth      = 32
)

// CheckDigest reports whether s is "sha256:" and 64 lower-case hex digits.
func CheckDigest(s string) error {
	h, ok := strings.CutPrefix(s, "sha256:")
	if ok && len(h) == 64 && strings.ToLower(h) == h {
		if _, err := hex.DecodeString(h); err == nil {
			return nil
		}
	}
	return Errorf(CodeInvalid, "digest", "%.80q is not a digest: want sha256: and 64 lower-case hex digits", s)
}
