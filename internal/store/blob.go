package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Large chunks, since each one is a sync of the disk. The rest of a message
	// is its headers.
	chunkBytes   = maxPayload/2 - 64<<10
	maxBlobBytes = 16 << 30 // of all blobs together
	blobTimeout  = 5 * time.Minute
)

// Blobs keeps byte strings of tenants under the SHA-256 of their content, encrypted
// with the tenant's key if the store has a [Sealer]: what two tenants have is there
// twice. The tenant "" is for what an older Bawn left, in clear and shared by all
// tenants. It is safe for concurrent use.
type Blobs struct {
	s    *Store
	name string
	obj  jetstream.ObjectStore
	js   jetstream.Stream
	put  sync.Mutex // one upload at a time bounds what the server holds in memory
}

// OpenBlobs opens the set name, made if missing, and drops what uploads that
// never ended left behind.
func OpenBlobs(ctx context.Context, s *Store, name string) (*Blobs, error) {
	const op = "store.blobs"
	if err := bawn.CheckName("blobs", name); err != nil {
		return nil, err
	}
	// As the object store itself would make it, so that its tools can read it;
	// made here for the check against damage.
	js, err := s.openStream(ctx, jetstream.StreamConfig{
		Name:         "OBJ_" + name,
		Subjects:     []string{"$O." + name + ".C.>", "$O." + name + ".M.>"},
		MaxBytes:     maxBlobBytes,
		MaxMsgs:      -1,
		MaxConsumers: -1,
		Discard:      jetstream.DiscardNew,
		Storage:      jetstream.FileStorage,
		Replicas:     1,
		AllowRollup:  true,
		AllowDirect:  true,
	})
	if err != nil {
		return nil, err
	}
	obj, err := s.js.ObjectStore(ctx, name)
	if err != nil {
		return nil, s.fail(err, op)
	}
	b := &Blobs{s: s, name: name, obj: obj, js: js}
	if err := b.sweep(ctx); err != nil {
		return nil, s.fail(err, op)
	}
	return b, nil
}

// sweep purges chunks that no blob refers to.
func (b *Blobs) sweep(ctx context.Context) error {
	used := map[string]bool{}
	infos, err := b.obj.List(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return err
	}
	for _, in := range infos {
		used[in.NUID] = true
	}
	chunks := "$O." + b.name + ".C."
	state, err := b.js.Info(ctx, jetstream.WithSubjectFilter(chunks+">"))
	if err != nil {
		return err
	}
	for subject := range state.State.Subjects {
		if !used[strings.TrimPrefix(subject, chunks)] {
			if err := b.js.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
				return err
			}
		}
	}
	return nil
}

// A BlobName says which blob.
type BlobName struct{ Tenant, Digest string }

// key is the name of the object.
func (n BlobName) key() string {
	if n.Tenant == "" {
		return n.Digest
	}
	return n.Tenant + "." + n.Digest
}

func (n BlobName) check() error {
	if n.Tenant != "" {
		if err := bawn.CheckName("tenant", n.Tenant); err != nil {
			return err
		}
	}
	return bawn.CheckDigest(n.Digest)
}

func (b *Blobs) place(n BlobName) place { return place{"blob", b.name, n.key()} }

// Put stores what r yields. It is CodeTooLarge beyond max bytes and CodeInvalid if
// the content has another digest; then nothing is kept. If the blob is there already,
// r is not read. Uploads wait for each other: r should be as fast as a local file.
func (b *Blobs) Put(ctx context.Context, tenant, digest string, r io.Reader, max int64) error {
	const op = "store.put"
	name := BlobName{tenant, digest}
	if err := name.check(); err != nil {
		return err
	}
	b.put.Lock()
	defer b.put.Unlock()
	if _, err := b.info(ctx, name); err == nil {
		return nil
	} else if c := bawn.ErrorCode(err); c != bawn.CodeNotFound && c != bawn.CodeUnprocessable {
		return err
	}
	_, free, err := diskSpace(b.s.dir)
	if err != nil || free-max < b.s.room {
		if full := b.s.checkRoom(op); full != nil {
			return full
		}
		// The true size may be far below max: read, and look again at each chunk.
	}
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	defer cancel()
	src := &digestReader{r: r, sum: sha256.New(), want: digest, max: max, check: func() error { return b.s.checkRoom(op) }}
	stored := io.Reader(src)
	var sealing *sealReader
	if p := b.place(name); b.s.owner(p) != "" {
		sealing = &sealReader{s: b.s, place: p, src: src, buf: make([]byte, frameBytes)}
		stored = sealing
	}
	_, err = b.obj.Put(ctx, jetstream.ObjectMeta{Name: name.key(), Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkBytes}}, stored)
	switch {
	case src.err != nil:
		return src.err
	case sealing != nil && sealing.err != nil && sealing.err != io.EOF:
		return sealing.err
	case err != nil:
		return b.s.fail(err, op)
	}
	return nil
}

// Take stores what [Blobs.Sealed] gave, encrypted anew, if the keys here open it. ok
// is false if they do not: then it is left out.
func (b *Blobs) Take(ctx context.Context, tenant, digest string, r io.Reader, max int64) (ok bool, err error) {
	name := BlobName{tenant, digest}
	if err := name.check(); err != nil {
		return false, err
	}
	in := &openReader{s: b.s, place: b.place(name), src: r}
	switch err = b.Put(ctx, tenant, digest, in, max); {
	case bawn.ErrorCode(in.err) == bawn.CodeUnprocessable, bawn.ErrorCode(in.err) == bawn.CodeUnavailable:
		return false, nil
	}
	return err == nil, err
}

// info returns what is known of a blob all of whose chunks are there;
// CodeUnprocessable means that some are lost.
func (b *Blobs) info(ctx context.Context, name BlobName) (*jetstream.ObjectInfo, error) {
	const op = "store.blob"
	if err := name.check(); err != nil {
		return nil, err
	}
	in, err := b.obj.GetInfo(ctx, name.key())
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, bawn.Errorf(bawn.CodeNotFound, op, "there is no blob %s", name.Digest)
	}
	if err != nil {
		return nil, b.s.fail(err, op)
	}
	subject := "$O." + b.name + ".C." + in.NUID
	state, err := b.js.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return nil, b.s.fail(err, op)
	}
	if in.Chunks > 0 && state.State.Subjects[subject] != uint64(in.Chunks) {
		return nil, damagedBlob(op, name.Digest)
	}
	return in, nil
}

// find returns the blob as info does, or the one that an older Bawn left.
func (b *Blobs) find(ctx context.Context, name BlobName) (BlobName, *jetstream.ObjectInfo, error) {
	in, err := b.info(ctx, name)
	if bawn.ErrorCode(err) == bawn.CodeNotFound && name.Tenant != "" {
		old := BlobName{Digest: name.Digest}
		if in, err := b.info(ctx, old); bawn.ErrorCode(err) != bawn.CodeNotFound {
			return old, in, err
		}
	}
	return name, in, err
}

func damagedBlob(op, digest string) *bawn.Error {
	return bawn.Errorf(bawn.CodeUnprocessable, op, "the stored blob %s is damaged", digest).
		WithFix("check the disk and deploy the package again")
}

// Has reports whether the blob is there, with all its parts.
func (b *Blobs) Has(ctx context.Context, tenant, digest string) (bool, error) {
	_, _, err := b.find(ctx, BlobName{tenant, digest})
	if c := bawn.ErrorCode(err); c == bawn.CodeNotFound || c == bawn.CodeUnprocessable {
		return false, nil
	}
	return err == nil, err
}

// Open returns a reader of the blob, to be closed. It verifies the digest
// while reading: only a reader that came to io.EOF has seen the true content.
// CodeNotFound means that there is no such blob, CodeUnprocessable that it is
// damaged, CodeUnavailable that the tenant's key cannot be used; Read returns the
// latter two.
func (b *Blobs) Open(ctx context.Context, tenant, digest string) (io.ReadCloser, error) {
	name, in, err := b.find(ctx, BlobName{tenant, digest})
	if err != nil {
		return nil, err
	}
	res, err := b.open(ctx, name)
	if err != nil {
		return nil, err
	}
	src := io.Reader(res)
	if p := b.place(name); b.s.owner(p) != "" {
		src = &openReader{s: b.s, place: p, src: res}
	}
	return &blobReader{digestReader{r: src, sum: sha256.New(), want: digest, max: int64(in.Size), damaged: true}, res}, nil
}

// Sealed returns the blob as it is stored, and its size there: what [Blobs.Take]
// takes, unless its tenant is "".
func (b *Blobs) Sealed(ctx context.Context, name BlobName) (int64, io.ReadCloser, error) {
	in, err := b.info(ctx, name)
	if err != nil {
		return 0, nil, err
	}
	r, err := b.open(ctx, name)
	return int64(in.Size), r, err
}

func (b *Blobs) open(ctx context.Context, name BlobName) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	res, err := b.obj.Get(ctx, name.key())
	if err != nil {
		cancel()
		return nil, b.s.fail(err, "store.open blob")
	}
	return &cancelReader{res, cancel}, nil
}

// cancelReader ends a context when it is closed.
type cancelReader struct {
	io.ReadCloser
	cancel func()
}

// Close ends the reading.
func (c *cancelReader) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// Delete removes the blob; removing what is not there is no error.
func (b *Blobs) Delete(ctx context.Context, tenant, digest string) error {
	name := BlobName{tenant, digest}
	if err := name.check(); err != nil {
		return err
	}
	b.put.Lock()
	defer b.put.Unlock()
	if err := b.obj.Delete(ctx, name.key()); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return b.s.fail(err, "store.delete")
	}
	return nil
}

// List returns the names of all blobs.
func (b *Blobs) List(ctx context.Context) ([]BlobName, error) {
	infos, err := b.obj.List(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, b.s.fail(err, "store.list")
	}
	var all []BlobName
	for _, in := range infos {
		tenant, digest, ok := strings.Cut(in.Name, ".")
		if !ok {
			tenant, digest = "", in.Name
		}
		all = append(all, BlobName{tenant, digest})
	}
	return all, nil
}

// A sealed blob is a row of frames, each encrypted for its place in the row: four
// bytes that say how long it is, and what the sealer made. That none is missing at
// the end the digest shows.
const (
	frameBytes    = chunkBytes - 1<<10 // of content
	maxFrameBytes = chunkBytes         // as sealed
)

func frameWhat(p place, i int) string { return p.what() + "\n" + strconv.Itoa(i) }

// sealReader yields the frames of what src yields, and fills each buffer.
type sealReader struct {
	s     *Store
	place place
	src   *digestReader
	buf   []byte // a frame's content
	out   []byte // of a frame, what was not read yet
	n     int    // frames
	err   error
}

func (r *sealReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(r.out) == 0 {
			if r.err != nil {
				break
			}
			k, err := r.src.Read(r.buf)
			if err != nil {
				r.err = err
				break
			}
			sealed, err := r.s.sealer.Seal(r.s.owner(r.place), frameWhat(r.place, r.n), r.buf[:k])
			if err != nil {
				r.err = err
				break
			}
			r.n++
			r.out = append(binary.BigEndian.AppendUint32(nil, uint32(len(sealed))), sealed...)
		}
		k := copy(p[n:], r.out)
		n, r.out = n+k, r.out[k:]
	}
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// openReader yields what is in the frames that src yields.
type openReader struct {
	s     *Store
	place place
	src   io.Reader
	out   []byte
	n     int
	err   error // why it ended, if not by io.EOF of src
}

func (r *openReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var head [4]byte
		if _, err := io.ReadFull(r.src, head[:]); err != nil {
			return 0, err
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > maxFrameBytes {
			r.err = bawn.Errorf(bawn.CodeUnprocessable, "store.read blob", "a part of a blob has %d bytes", size)
			return 0, r.err
		}
		sealed := make([]byte, size)
		if _, err := io.ReadFull(r.src, sealed); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		owner := r.s.owner(r.place)
		if owner == "" {
			r.err = bawn.Errorf(bawn.CodeUnavailable, "store.read blob", "there are no keys of tenants")
			return 0, r.err
		}
		if r.out, r.err = r.s.sealer.Open(owner, frameWhat(r.place, r.n), sealed); r.err != nil {
			return 0, r.err
		}
		r.n++
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// digestReader yields what r yields, fills each buffer, and ends in an error
// in place of io.EOF if the content is not what the digest says.
type digestReader struct {
	r       io.Reader
	sum     hash.Hash
	want    string
	max     int64
	n       int64
	err     error
	damaged bool         // the content comes from the store, so a mismatch is damage
	check   func() error // before each chunk, if set
}

func (d *digestReader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if d.check != nil {
		if d.err = d.check(); d.err != nil {
			return 0, d.err
		}
	}
	// Short reads would become short chunks.
	n, err := io.ReadFull(d.r, p)
	d.n += int64(n)
	d.sum.Write(p[:n])
	eof := err == io.EOF || err == io.ErrUnexpectedEOF
	switch {
	case d.n > d.max && !d.damaged:
		d.err = bawn.Errorf(bawn.CodeTooLarge, "store.put", "the content is larger than %d bytes", d.max)
	case d.damaged && (d.n > d.max || err != nil && (!eof || !d.matches())):
		d.err = damagedBlob("store.read blob", d.want)
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
			d.err = bawn.Wrap(err, bawn.CodeUnavailable, "store.read blob", "the request ended before the store answered")
		}
		if bawn.ErrorCode(err) == bawn.CodeUnavailable { // the key
			d.err = err
		}
	case eof && !d.matches():
		d.err = bawn.Errorf(bawn.CodeInvalid, "store.put", "the content does not have the digest %s", d.want).
			WithFix("upload it again; the digest is the SHA-256 of the bytes sent")
	case err != nil && !eof:
		d.err = bawn.Wrap(err, bawn.CodeUnavailable, "store.put", "the content could not be read to its end").WithFix("upload it again")
	case eof && n == 0:
		return 0, io.EOF
	}
	if d.err != nil {
		return 0, d.err
	}
	return n, nil
}

func (d *digestReader) matches() bool {
	return "sha256:"+hex.EncodeToString(d.sum.Sum(nil)) == d.want
}

type blobReader struct {
	digestReader
	io.Closer
}
