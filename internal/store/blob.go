package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
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

// Blobs keeps byte strings under the SHA-256 of their content. It is safe for
// concurrent use.
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

// Put stores what r yields under digest and returns its size. It is CodeTooLarge
// beyond max bytes and CodeInvalid if the content has another digest; then
// nothing is kept. If the blob is there already, r is not read. Uploads wait
// for each other: r should be as fast as a local file.
func (b *Blobs) Put(ctx context.Context, digest string, r io.Reader, max int64) (size int64, err error) {
	const op = "store.put"
	if err := bawn.CheckDigest(digest); err != nil {
		return 0, err
	}
	b.put.Lock()
	defer b.put.Unlock()
	if in, err := b.info(ctx, digest); err == nil {
		return int64(in.Size), nil
	} else if c := bawn.ErrorCode(err); c != bawn.CodeNotFound && c != bawn.CodeUnprocessable {
		return 0, err
	}
	_, free, err := diskSpace(b.s.dir)
	if err != nil || free-max < b.s.room {
		if full := b.s.checkRoom(op); full != nil {
			return 0, full
		}
		// The true size may be far below max: read, and look again at each chunk.
	}
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	defer cancel()
	src := &digestReader{r: r, sum: sha256.New(), want: digest, max: max, check: func() error { return b.s.checkRoom(op) }}
	in, err := b.obj.Put(ctx, jetstream.ObjectMeta{Name: digest, Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkBytes}}, src)
	if src.err != nil {
		return 0, src.err
	}
	if err != nil {
		return 0, b.s.fail(err, op)
	}
	return int64(in.Size), nil
}

// info returns what is known of a blob all of whose chunks are there;
// CodeUnprocessable means that some are lost.
func (b *Blobs) info(ctx context.Context, digest string) (*jetstream.ObjectInfo, error) {
	const op = "store.blob"
	if err := bawn.CheckDigest(digest); err != nil {
		return nil, err
	}
	in, err := b.obj.GetInfo(ctx, digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, bawn.Errorf(bawn.CodeNotFound, op, "there is no blob %s", digest)
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
		return nil, damagedBlob(op, digest)
	}
	return in, nil
}

func damagedBlob(op, digest string) *bawn.Error {
	return bawn.Errorf(bawn.CodeUnprocessable, op, "the stored blob %s is damaged", digest).
		WithFix("check the disk and deploy the package again")
}

// Has reports whether the blob is there, with all its parts.
func (b *Blobs) Has(ctx context.Context, digest string) (bool, error) {
	_, err := b.info(ctx, digest)
	if c := bawn.ErrorCode(err); c == bawn.CodeNotFound || c == bawn.CodeUnprocessable {
		return false, nil
	}
	return err == nil, err
}

// Size returns how many bytes the blob has. Its errors are those of [Blobs.Open].
func (b *Blobs) Size(ctx context.Context, digest string) (int64, error) {
	in, err := b.info(ctx, digest)
	if err != nil {
		return 0, err
	}
	return int64(in.Size), nil
}

// Open returns a reader of the blob, to be closed. It verifies the digest
// while reading: only a reader that came to io.EOF has seen the true content.
// CodeNotFound means that there is no such blob, CodeUnprocessable that it is
// damaged; Read returns the latter too.
func (b *Blobs) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	const op = "store.open blob"
	in, err := b.info(ctx, digest)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	res, err := b.obj.Get(ctx, digest)
	if err != nil {
		cancel()
		return nil, b.s.fail(err, op)
	}
	return &blobReader{
		digestReader: digestReader{r: res, sum: sha256.New(), want: digest, max: int64(in.Size), damaged: true},
		close:        func() error { defer cancel(); return res.Close() },
	}, nil
}

// Delete removes the blob; removing what is not there is no error.
func (b *Blobs) Delete(ctx context.Context, digest string) error {
	if err := bawn.CheckDigest(digest); err != nil {
		return err
	}
	b.put.Lock()
	defer b.put.Unlock()
	if err := b.obj.Delete(ctx, digest); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return b.s.fail(err, "store.delete")
	}
	return nil
}

// List returns the digests of all blobs.
func (b *Blobs) List(ctx context.Context) ([]string, error) {
	infos, err := b.obj.List(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, b.s.fail(err, "store.list")
	}
	var all []string
	for _, in := range infos {
		all = append(all, in.Name)
	}
	return all, nil
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
	close func() error
}

// Close ends the reading.
func (b *blobReader) Close() error { return b.close() }
