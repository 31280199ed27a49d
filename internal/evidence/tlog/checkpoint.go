package tlog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

// Checkpoint is what a log says of itself at one moment, signed.
type Checkpoint struct {
	Origin string      // the log's name, which is that of its key
	Size   int64       // entries
	Root   merkle.Hash // of the Merkle tree over them
	Note   []byte      // the signed text, as it is stored and served
}

// treeLine is the first line that x/mod gives its checkpoints. Ours, which C2SP
// defines, differ from them in that line alone.
const treeLine = "go.sum database tree\n"

func formatCheckpoint(origin string, size int64, root merkle.Hash) string {
	return origin + "\n" + strings.TrimPrefix(string(merkle.FormatTree(merkle.Tree{N: size, Hash: root})), treeLine)
}

var errCheckpoint = errors.New("it does not have the form of a checkpoint")

// parseCheckpoint reads the text of a checkpoint without its signatures.
func parseCheckpoint(text string) (c Checkpoint, err error) {
	origin, rest, ok := strings.Cut(text, "\n")
	if !ok || origin == "" || len(text) > maxCheckpoint {
		return c, errCheckpoint
	}
	tree, err := merkle.ParseTree([]byte(treeLine + rest))
	if err != nil {
		return c, errCheckpoint
	}
	return Checkpoint{Origin: origin, Size: tree.N, Root: tree.Hash}, nil
}

// OpenCheckpoint reads a signed checkpoint. One of keys must have signed it,
// and bear the name of the log.
func OpenCheckpoint(msg []byte, keys []note.Verifier) (Checkpoint, error) {
	if len(msg) > maxCheckpoint {
		return Checkpoint{}, errCheckpoint
	}
	n, err := openNote(msg, keys)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return c, err
	}
	c.Note = msg
	for _, s := range n.Sigs {
		if s.Name == c.Origin {
			return c, nil
		}
	}
	return Checkpoint{}, fmt.Errorf("the key that signed it belongs to another log than %q", c.Origin)
}

func openNote(msg []byte, keys []note.Verifier) (*note.Note, error) {
	n, err := note.Open(msg, note.VerifierList(keys...))
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		return nil, errors.New("none of the keys that are given has signed it")
	}
	return n, err
}

// Cosignature is what a witness says of a checkpoint: that it has seen the log
// grow to it and never shrink or fork.
type Cosignature struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"` // when it says so; whole seconds
}

// Cosignatures returns the signatures of the witnesses on a checkpoint.
func Cosignatures(msg []byte, witnesses []note.Verifier) []Cosignature {
	if len(witnesses) == 0 || len(msg) > maxCheckpoint {
		return nil
	}
	n, err := note.Open(msg, note.VerifierList(witnesses...))
	if err != nil {
		return nil
	}
	var all []Cosignature
	for _, s := range n.Sigs {
		t, err := fnote.CoSigV1Timestamp(s)
		if err != nil {
			continue
		}
		all = append(all, Cosignature{s.Name, t})
	}
	return all
}

// Key is the public key of a log or of a witness.
type Key = note.Verifier

// ParseKeys reads public keys, one a line; lines that begin with # are
// comments. Those of logs and those of witnesses differ in their kind.
func ParseKeys(text []byte) (logs, witnesses []note.Verifier, err error) {
	const op = "tlog.keys"
	if len(text) > maxCheckpoint {
		return nil, nil, bawn.Errorf(bawn.CodeInvalid, op, "a file of keys has at most %d bytes", maxCheckpoint)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		v, witness, err := ParseKey(line)
		if err != nil {
			return nil, nil, err
		}
		if witness {
			witnesses = append(witnesses, v)
		} else {
			logs = append(logs, v)
		}
	}
	return logs, witnesses, nil
}

// ParseKey reads one public key: NAME+HASH+KEY.
func ParseKey(line string) (v note.Verifier, witness bool, err error) {
	const op, fix = "tlog.keys", "take the line as bawn audit keys or bawn witness prints it: NAME+HASH+KEY"
	_, rest, _ := strings.Cut(line, "+")
	hash, key, _ := strings.Cut(rest, "+") // which may hold more of them
	raw, err := base64.StdEncoding.DecodeString(key)
	// The kind is the key's first byte; 4 is a witness's.
	if err == nil && len(raw) == 1+ed25519.PublicKeySize && raw[0] == 4 {
		if v, err = fnote.NewVerifierForCosignatureV1(line); err == nil {
			if fmt.Sprintf("%08x", v.KeyHash()) != hash {
				err = errors.New("the hash is not that of the key")
			}
			witness = true
		}
	} else {
		v, err = note.NewVerifier(line)
	}
	if err != nil {
		return nil, false, bawn.Wrap(err, bawn.CodeInvalid, op, "%q is not a public key", short(line)).WithFix(fix)
	}
	return v, witness, nil
}

func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// keyPair makes a log's signer and public key of a seed.
func keyPair(name string, seed []byte) (note.Signer, string, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, "", fmt.Errorf("the key has %d bytes and not %d", len(seed), ed25519.SeedSize)
	}
	vkey, err := note.NewEd25519VerifierKey(name, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	if err != nil {
		return nil, "", err
	}
	s, err := note.NewSigner(privateKey(name, seed))
	return s, vkey, err
}

// privateKey returns a seed in the form that package note reads.
func privateKey(name string, seed []byte) string {
	pub := append([]byte{1}, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)...)
	h := sha256.Sum256(append([]byte(name+"\n"), pub...))
	return fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, binary.BigEndian.Uint32(h[:]), base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)))
}

// withSignatures adds the signature lines of one note to another of the same
// text, each once.
func withSignatures(msg, more []byte) ([]byte, error) {
	text, sigs, ok := splitNote(msg)
	if !ok {
		return nil, errCheckpoint
	}
	out := bytes.Clone(msg)
	for line := range bytes.Lines(more) {
		if !bytes.HasPrefix(line, []byte("— ")) || !bytes.HasSuffix(line, []byte("\n")) {
			return nil, errCheckpoint
		}
		if !bytes.Contains(sigs, line) {
			out = append(out, line...)
		}
	}
	if len(out) > maxCheckpoint {
		return nil, fmt.Errorf("%d bytes of signatures are too many", len(out)-len(text))
	}
	return out, nil
}

// splitNote returns a note's text, with its last line end, and its signatures.
func splitNote(msg []byte) (text, sigs []byte, ok bool) {
	i := bytes.LastIndex(msg, []byte("\n\n"))
	if i < 0 {
		return nil, nil, false
	}
	return msg[:i+1], msg[i+2:], true
}
