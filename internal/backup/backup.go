// Package backup is the form of a backup: a tar archive inside an age file. What is
// in it is encrypted before it leaves the process that writes it, and its last
// entry vouches for all the others, so that half an archive is never taken for a
// whole one. Any program that knows age and tar can open it.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"time"

	"filippo.io/age"

	"bawn.dev/bawn"
)

// What an archive holds, in this order.
const (
	HeadFile   = "backup.json" // a [Head]
	NodePrefix = "node/"       // the node's own files
	Tables     = "tables/"     // tables/NAME/NUMBER.jsonl: lines of [Row]
	Blobs      = "blobs/"      // blobs/TENANT/HEX, encrypted; blobs/HEX of older ones
	Audit      = "audit/"      // the audit log's files
	endFile    = "end.json"
)

// NodeFiles are the files of a node that are its identity.
func NodeFiles() []string { return []string{"root.secret", "ca.key", "ca.pem"} }

// Bounds of an archive, so that a hostile one costs little.
const (
	MaxBytes   = 64 << 30 // all entries together
	maxEntries = 2_000_000
	maxJSON    = 1 << 20  // the first and the last entry
	maxNode    = 64 << 10 // a file of the node
	// ChunkBytes is how much a file of rows holds at least before the next begins,
	// and with one more row at most about twice that.
	ChunkBytes    = 1 << 20
	maxRows       = 4 << 20
	maxSealed     = bawn.MaxPackageBytes + 1<<20 // a package, encrypted
	maxAudit      = 32 << 20                     // a file of the audit log
	maxRecipients = 20
	maxIdentities = 64 << 10
	minPassphrase = 12
	maxPassphrase = 1 << 10
	workFactor    = 16 // of scrypt: 64 MiB and a fraction of a second
	maxWorkFactor = 18
	format        = 1
)

// Head says what an archive is of.
type Head struct {
	Format    int            `json:"format"`
	Node      string         `json:"node"`    // its id
	Version   string         `json:"version"` // of the program
	CreatedAt time.Time      `json:"createdAt"`
	Tables    map[string]int `json:"tables"` // rows of each
	Blobs     int            `json:"blobs"`
}

// Row is one row of a table.
type Row struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

type end struct {
	Entries   int    `json:"entries"` // before this one
	Digest    string `json:"digest"`  // over their names, sizes and contents
	Signature []byte `json:"signature"`
}

// signed is what the signature of an archive is over.
func signed(entries int, digest string) []byte {
	return fmt.Appendf(nil, "bawn backup %d\n%d\n%s\n", format, entries, digest)
}

// Secret is how an archive is encrypted: to recipients, or with a passphrase.
type Secret struct {
	Recipients []string `json:"recipients,omitempty"` // age1…
	Passphrase string   `json:"passphrase,omitempty"`
}

func (s Secret) recipients() ([]age.Recipient, error) {
	const op = "backup.secret"
	switch {
	case len(s.Recipients) > 0 && s.Passphrase != "" || len(s.Recipients) == 0 && s.Passphrase == "":
		return nil, bawn.Errorf(bawn.CodeInvalid, op, "a backup is encrypted to recipients or with a passphrase").
			WithFix("give one of the two; age-keygen makes a recipient")
	case len(s.Recipients) > maxRecipients:
		return nil, bawn.Errorf(bawn.CodeTooLarge, op, "there are %d recipients, at most %d are allowed", len(s.Recipients), maxRecipients)
	case s.Passphrase != "":
		if len(s.Passphrase) < minPassphrase || len(s.Passphrase) > maxPassphrase {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "the passphrase has %d bytes, wanted are %d to %d", len(s.Passphrase), minPassphrase, maxPassphrase).
				WithFix("take a longer one, or encrypt to a recipient: age-keygen makes one")
		}
		r, err := age.NewScryptRecipient(s.Passphrase)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "the passphrase cannot be used")
		}
		r.SetWorkFactor(workFactor)
		return []age.Recipient{r}, nil
	}
	var all []age.Recipient
	for _, text := range s.Recipients {
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "%.100q is not a recipient", text).
				WithFix("give one that begins with age1, as age-keygen prints it; never the line that begins with AGE-SECRET-KEY")
		}
		all = append(all, r)
	}
	return all, nil
}

// Check reports whether an archive can be encrypted in this way.
func (s Secret) Check() error {
	_, err := s.recipients()
	return err
}

// Writer writes an archive. It is not safe for concurrent use.
type Writer struct {
	age     io.WriteCloser
	tar     *tar.Writer
	at      time.Time
	digest  hash.Hash
	entries int
	bytes   int64
}

// NewWriter begins an archive in w with its head.
func NewWriter(w io.Writer, s Secret, h Head) (*Writer, error) {
	to, err := s.recipients()
	if err != nil {
		return nil, err
	}
	enc, err := age.Encrypt(w, to...)
	if err != nil {
		return nil, writeFailed(err)
	}
	out := &Writer{age: enc, tar: tar.NewWriter(enc), at: h.CreatedAt, digest: sha256.New()}
	h.Format = format
	data, err := json.Marshal(h)
	if err != nil {
		return nil, writeFailed(err)
	}
	return out, out.AddBytes(HeadFile, data)
}

func writeFailed(err error) error {
	var known *bawn.Error
	if errors.As(err, &known) {
		return err
	}
	return bawn.Wrap(err, bawn.CodeUnavailable, "backup.write", "the backup cannot be written").WithFix("try again where there is room for it")
}

// AddBytes adds a file whose content is at hand.
func (w *Writer) AddBytes(name string, data []byte) error {
	return w.Add(name, int64(len(data)), bytes.NewReader(data))
}

// Add adds a file that has size bytes.
func (w *Writer) Add(name string, size int64, r io.Reader) error {
	most, err := limit(name)
	if err != nil {
		return err
	}
	if w.bytes += size; size > most || w.bytes > MaxBytes || w.entries >= maxEntries {
		return bawn.Errorf(bawn.CodeTooLarge, "backup.write", "%s has %d bytes: the backup is larger than it can be", name, size)
	}
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.at.UTC().Truncate(time.Second)}); err != nil {
		return writeFailed(err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w.tar, sum), r)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes and not %d", name, n, size)
	}
	if err != nil {
		return writeFailed(err)
	}
	note(w.digest, name, size, sum)
	w.entries++
	return nil
}

// note takes an entry into the digest of an archive.
func note(digest hash.Hash, name string, size int64, sum hash.Hash) {
	fmt.Fprintf(digest, "%s %d %x\n", name, size, sum.Sum(nil))
}

// Close ends the archive with what vouches for it. One that was not closed cannot
// be read to its end.
func (w *Writer) Close(key ed25519.PrivateKey) error {
	e := end{Entries: w.entries, Digest: hex.EncodeToString(w.digest.Sum(nil))}
	e.Signature = ed25519.Sign(key, signed(e.Entries, e.Digest))
	data, err := json.Marshal(e)
	if err == nil {
		err = w.AddBytes(endFile, data)
	}
	if err == nil {
		err = w.tar.Close()
	}
	if err == nil {
		err = w.age.Close()
	}
	if err != nil {
		return writeFailed(err)
	}
	return nil
}

// limit returns how large an entry of that name may be; the error means that an
// archive holds nothing of that name.
func limit(name string) (int64, error) {
	bad := func() (int64, error) {
		return 0, bawn.Errorf(bawn.CodeUnprocessable, "backup.entry", "%.200q is not what a backup holds", name).
			WithFix("use a file that bawn backup create wrote")
	}
	if len(name) > 512 || path.Clean(name) != name || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/", r)
	}) {
		return bad()
	}
	switch {
	case name == HeadFile, name == endFile:
		return maxJSON, nil
	case strings.HasPrefix(name, NodePrefix):
		for _, f := range NodeFiles() {
			if name == NodePrefix+f {
				return maxNode, nil
			}
		}
	case strings.HasPrefix(name, Tables):
		table, chunk, ok := strings.Cut(name[len(Tables):], "/")
		number, ext, _ := strings.Cut(chunk, ".")
		if ok && bawn.CheckName("table", table) == nil && ext == "jsonl" && len(number) == 8 && strings.Trim(number, "0123456789") == "" {
			return maxRows, nil
		}
	case strings.HasPrefix(name, Blobs):
		if _, _, ok := ParseBlob(name); ok {
			return maxSealed, nil
		}
	case strings.HasPrefix(name, Audit):
		for part := range strings.SplitSeq(name, "/") {
			if strings.HasPrefix(part, ".") {
				return bad()
			}
		}
		if strings.Count(name, "/") <= 16 {
			return maxAudit, nil
		}
	}
	return bad()
}

// BlobName returns the name of a tenant's package; the tenant "" is for one that is
// in clear.
func BlobName(tenant, digest string) string {
	if tenant != "" {
		tenant += "/"
	}
	return Blobs + tenant + strings.TrimPrefix(digest, "sha256:")
}

// ParseBlob is the way back.
func ParseBlob(name string) (tenant, digest string, ok bool) {
	rest, ok := strings.CutPrefix(name, Blobs)
	if !ok {
		return "", "", false
	}
	tenant, hexDigest, sealed := strings.Cut(rest, "/")
	if !sealed {
		tenant, hexDigest = "", rest
	} else if bawn.CheckName("tenant", tenant) != nil {
		return "", "", false
	}
	return tenant, "sha256:" + hexDigest, bawn.CheckDigest("sha256:"+hexDigest) == nil
}

// ChunkName returns the name of the nth file of a table's rows.
func ChunkName(table string, n int) string { return fmt.Sprintf("%s%s/%08d.jsonl", Tables, table, n) }

// Reader reads an archive. It is not safe for concurrent use.
type Reader struct {
	Head Head

	age     io.Reader // to its end, which holds age's own proof that nothing is cut off
	tar     *tar.Reader
	digest  hash.Hash
	entries int
	bytes   int64
	seen    map[string]bool
	now     struct {
		name string
		size int64
		sum  hash.Hash
	}
}

// Identities reads the secret keys of an age identity file.
func Identities(text []byte) ([]age.Identity, error) {
	const op = "backup.identity"
	if len(text) > maxIdentities {
		return nil, bawn.Errorf(bawn.CodeTooLarge, op, "the identity file has more than %d bytes", maxIdentities)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, bawn.Errorf(bawn.CodeInvalid, op, "the identity file holds no secret key of age").WithFix("give the file that age-keygen wrote")
	}
	return ids, nil
}

// Passphrase returns what opens an archive that was encrypted with the passphrase.
func Passphrase(text string) ([]age.Identity, error) {
	id, err := age.NewScryptIdentity(text)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "backup.passphrase", "the passphrase cannot be used")
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	return []age.Identity{id}, nil
}

// NewReader opens an archive and reads its head. CodeDenied means that the
// identities do not open it.
func NewReader(r io.Reader, ids []age.Identity) (*Reader, error) {
	plain, err := age.Decrypt(r, ids...)
	var wrong *age.NoIdentityMatchError
	switch {
	case errors.As(err, &wrong):
		return nil, bawn.Wrap(err, bawn.CodeDenied, "backup.open", "the backup cannot be opened with this key").
			WithFix("give the identity of one of its recipients, or its passphrase")
	case err != nil:
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "backup.open", "the file is not a backup, or it is damaged").
			WithFix("use a file that bawn backup create wrote")
	}
	return newReader(plain)
}

// newReader reads what has been decrypted.
func newReader(plain io.Reader) (*Reader, error) {
	in := &Reader{age: plain, tar: tar.NewReader(plain), digest: sha256.New(), seen: map[string]bool{}}
	name, err := in.Next()
	if err != nil {
		return nil, err
	}
	data, err := in.ReadAll()
	if err != nil {
		return nil, err
	}
	if name != HeadFile || json.Unmarshal(data, &in.Head) != nil {
		return nil, in.damaged(nil, "it does not begin as one")
	}
	if in.Head.Format != format {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, "backup.read", "the backup has the format %d, this Bawn knows %d", in.Head.Format, format).
			WithFix("use the Bawn that wrote it, or a newer one")
	}
	return in, nil
}

func (in *Reader) damaged(err error, why string) error {
	return bawn.Wrap(err, bawn.CodeUnprocessable, "backup.read", "the backup is damaged or was cut off: %s", why).
		WithFix("use another backup; nothing was restored")
}

// Next goes to the next file and returns its name. At the last one, see [IsEnd],
// [Reader.End] says whether all is well: nothing that was read may take effect
// before.
func (in *Reader) Next() (string, error) {
	if err := in.finish(); err != nil {
		return "", err
	}
	h, err := in.tar.Next()
	if err != nil {
		return "", in.damaged(err, "it has no end")
	}
	most, err := limit(h.Name)
	if err != nil {
		return "", err
	}
	if h.Typeflag != tar.TypeReg || h.Linkname != "" {
		return "", in.damaged(nil, "it holds something that is not a file")
	}
	if in.bytes += h.Size; h.Size < 0 || h.Size > most || in.bytes > MaxBytes || in.entries >= maxEntries {
		return "", bawn.Errorf(bawn.CodeTooLarge, "backup.read", "the backup is larger than one can be")
	}
	if in.seen[h.Name] {
		return "", in.damaged(nil, "it holds a file twice")
	}
	in.seen[h.Name] = true
	in.now.name, in.now.size, in.now.sum = h.Name, h.Size, sha256.New()
	return h.Name, nil
}

// Read reads the file that Next went to.
func (in *Reader) Read(p []byte) (int, error) {
	n, err := in.tar.Read(p)
	in.now.sum.Write(p[:n])
	if err != nil && err != io.EOF {
		err = in.damaged(err, "it cannot be read to its end")
	}
	return n, err
}

// ReadAll reads the whole of a small file.
func (in *Reader) ReadAll() ([]byte, error) { return io.ReadAll(in) }

// finish takes the file before into the digest.
func (in *Reader) finish() error {
	if in.now.sum == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	note(in.digest, in.now.name, in.now.size, in.now.sum)
	in.now.sum = nil
	in.entries++
	return nil
}

// End reads the last file, which Next went to and which must be the last, and
// checks that the holder of key vouches for everything that was read.
func (in *Reader) End(key ed25519.PublicKey) error {
	digest := hex.EncodeToString(in.digest.Sum(nil))
	data, err := in.ReadAll()
	if err != nil {
		return err
	}
	var e end
	if json.Unmarshal(data, &e) != nil || e.Entries != in.entries || e.Digest != digest || !ed25519.Verify(key, signed(e.Entries, e.Digest), e.Signature) {
		return in.damaged(nil, "its content is not what was put in")
	}
	if _, err := in.tar.Next(); err != io.EOF {
		return in.damaged(err, "it does not end where it says")
	}
	// The proof that nothing is cut off comes at the very end.
	if n, err := io.Copy(io.Discard, io.LimitReader(in.age, 1<<20)); err != nil || n == 1<<20 {
		return in.damaged(err, "it does not end where it says")
	}
	return nil
}

// IsEnd reports whether name is the last file of an archive.
func IsEnd(name string) bool { return name == endFile }
