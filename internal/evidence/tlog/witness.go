package tlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"bawn.dev/bawn"
)

const (
	maxWitnessRequest = 64 << 10 // bytes
	witnessTimeout    = 10 * time.Second
	witnessKeyFile    = "witness.key"
	sizeType          = "text/x.tlog.size"
)

// WitnessConfig sets up a [Witness].
type WitnessConfig struct {
	Dir  string          // its folder, made if missing: its key, and what it saw of each log
	Name string          // in its signatures; no spaces and no plus; used when the key is made
	Logs []note.Verifier // the keys of the logs that it watches
	Log  *slog.Logger    // takes refusals; nil discards
}

// Witness signs the checkpoints of logs as long as each only grows: once it has
// seen a checkpoint, it never signs another that does not hold the same
// entries. It serves the C2SP tlog-witness protocol, and is safe for concurrent
// use.
type Witness struct {
	files  files
	logs   []note.Verifier
	log    *slog.Logger
	signer *fnote.Signer
	key    string
	lock   *os.File

	mu sync.Mutex // one checkpoint after the other
}

// Refusal is why a witness does not sign.
type Refusal struct {
	Status int   // of HTTP, as the protocol has it
	Size   int64 // with 409: entries in the checkpoint that it has seen
	Reason string
}

// Error returns the reason.
func (r *Refusal) Error() string { return r.Reason }

// OpenWitness opens a witness. Its key is made at the first opening.
func OpenWitness(cfg WitnessConfig) (*Witness, error) {
	const op = "witness.open"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "%s is no folder", cfg.Dir)
	}
	// Who can change the node's data must not reach the witness's memory by it.
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "root.secret")); err == nil {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "%s is in the data directory of a node", cfg.Dir).
				WithFix("give the witness a folder of its own, best under another user or on another machine")
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInvalid, op, "the folder %s cannot be made", cfg.Dir)
	}
	w := &Witness{files: files{dir}, logs: cfg.Logs, log: cfg.Log}
	if w.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the folder %s cannot be written to", cfg.Dir)
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		w.lock.Close()
		return nil, bawn.Wrap(err, bawn.CodeConflict, op, "another witness uses %s", cfg.Dir).WithFix("stop it, or give --dir another folder")
	}
	if err := w.openKey(cfg.Name); err != nil {
		w.lock.Close()
		return nil, err
	}
	return w, nil
}

func (w *Witness) openKey(name string) error {
	const op = "witness.open"
	text, err := w.files.read(witnessKeyFile, 1024)
	if errors.Is(err, fs.ErrNotExist) {
		if seen, _ := filepath.Glob(filepath.Join(w.files.dir, "*.checkpoint")); len(seen) > 0 {
			return bawn.Errorf(bawn.CodeUnavailable, op, "the witness's key is gone: it has seen logs before").
				WithFix("put %s back from a backup", filepath.Join(w.files.dir, witnessKeyFile))
		}
		seed := make([]byte, 32)
		rand.Read(seed) // never fails: crypto/rand aborts the program instead
		text = []byte(privateKey(name, seed) + "\n")
		if err = w.files.replace(witnessKeyFile, text); err != nil {
			return bawn.Wrap(err, bawn.CodeUnavailable, op, "the witness's key cannot be kept")
		}
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the witness's key cannot be read")
	}
	skey := strings.TrimSpace(string(text))
	if w.signer, err = fnote.NewSignerForCosignatureV1(skey); err != nil {
		return bawn.Wrap(err, bawn.CodeInvalid, op, "the witness has no proper name or key").WithFix("a name has no spaces and no plus")
	}
	f := strings.Split(skey, "+")
	seed, err := base64.StdEncoding.DecodeString(strings.Join(f[4:], "+"))
	if err != nil || len(seed) != 33 {
		return bawn.Errorf(bawn.CodeUnavailable, op, "the witness's key is damaged")
	}
	_, vkey, err := keyPair(f[2], seed[1:])
	if err == nil {
		w.key, err = fnote.VKeyToCosignatureV1(vkey)
	}
	if err == nil {
		err = w.files.replace(KeysFile, []byte(w.key+"\n"))
	}
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the witness's public key cannot be written")
	}
	return nil
}

// Key returns the witness's public key, as NAME+HASH+KEY.
func (w *Witness) Key() string { return w.key }

// Close lets the folder go.
func (w *Witness) Close() error { return w.lock.Close() }

// stateFile is where the newest checkpoint of a log lies.
func stateFile(origin string) string {
	h := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(h[:]) + ".checkpoint"
}

// Cosign signs a checkpoint that has grown from one of old entries, which must
// be the newest that the witness has seen; proof says that it has. It returns
// the signature as a line of a note. What it has seen is on the disk before
// that. An error is a [*Refusal], or one of the witness's own disk.
func (w *Witness) Cosign(old int64, proof merkle.TreeProof, checkpoint []byte) ([]byte, error) {
	c, err := OpenCheckpoint(checkpoint, w.logs)
	if err != nil {
		origin, _, _ := bytes.Cut(checkpoint, []byte("\n"))
		for _, v := range w.logs {
			if v.Name() == string(origin) {
				return nil, &Refusal{Status: http.StatusForbidden, Reason: "the checkpoint is not signed by the log's key"}
			}
		}
		return nil, &Refusal{Status: http.StatusNotFound, Reason: "this witness does not watch that log"}
	}
	if old < 0 || old > c.Size {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: "the old size is not one of a tree before the checkpoint's"}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	seen, err := w.Seen(c.Origin)
	if err != nil {
		return nil, err
	}
	switch {
	case old != seen.Size:
		return nil, w.refuse(c, &Refusal{Status: http.StatusConflict, Size: seen.Size, Reason: fmt.Sprintf("the newest checkpoint seen has %d entries and not %d", seen.Size, old)})
	case c.Size == seen.Size && seen.Note != nil && c.Root != seen.Root:
		return nil, w.refuse(c, &Refusal{Status: http.StatusConflict, Size: seen.Size, Reason: "the log was forked: another checkpoint of that size was seen"})
	case old == 0 || c.Size == old:
		if len(proof) > 0 {
			return nil, &Refusal{Status: http.StatusUnprocessableEntity, Reason: "there is nothing to prove"}
		}
	default:
		if merkle.CheckTree(proof, c.Size, c.Root, old, seen.Root) != nil {
			return nil, w.refuse(c, &Refusal{Status: http.StatusUnprocessableEntity, Size: seen.Size, Reason: "the log was forked: the checkpoint has not grown from the newest seen"})
		}
	}
	n, err := note.Open(checkpoint, note.VerifierList(w.logs...))
	if err != nil {
		return nil, &Refusal{Status: http.StatusForbidden, Reason: "the checkpoint is not signed by the log's key"}
	}
	n.UnverifiedSigs = nil // those of others are theirs to show
	signed, err := note.Sign(n, w.signer)
	if err != nil {
		return nil, err
	}
	if err := w.files.replace(stateFile(c.Origin), signed); err != nil {
		return nil, err
	}
	for line := range bytes.Lines(signed) {
		if bytes.HasPrefix(line, []byte("— "+w.signer.Name()+" ")) {
			return line, nil
		}
	}
	return nil, errors.New("the note was not signed")
}

func (w *Witness) refuse(c Checkpoint, r *Refusal) error {
	w.log.Warn("a checkpoint is not signed", "log", c.Origin, "size", c.Size, "seen", r.Size, "reason", r.Reason)
	return r
}

// Seen returns the newest checkpoint that the witness has signed of a log; its
// size is 0 if there is none. What cannot be read is never taken for nothing.
func (w *Witness) Seen(origin string) (Checkpoint, error) {
	msg, err := w.files.read(stateFile(origin), maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{Origin: origin}, nil
	}
	if err != nil {
		return Checkpoint{}, err
	}
	if _, err := note.Open(msg, note.VerifierList(w.signer.Verifier())); err != nil {
		return Checkpoint{}, fmt.Errorf("what was seen of %q: %w", origin, err)
	}
	text, _, ok := splitNote(msg)
	if !ok {
		return Checkpoint{}, errCheckpoint
	}
	c, err := parseCheckpoint(string(text))
	if err == nil && c.Origin != origin {
		err = errCheckpoint
	}
	c.Note = msg
	return c, err
}

// parseAddCheckpoint reads the body of a request to sign.
func parseAddCheckpoint(body []byte) (old int64, proof merkle.TreeProof, checkpoint []byte, err error) {
	bad := errors.New("the request does not have the form of one")
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return 0, nil, nil, bad
	}
	lines := strings.Split(string(head), "\n")
	size, ok := strings.CutPrefix(lines[0], "old ")
	if old, err = strconv.ParseInt(size, 10, 64); !ok || err != nil || old < 0 || size != strconv.FormatInt(old, 10) || len(lines) > 1+maxProof {
		return 0, nil, nil, bad
	}
	for _, line := range lines[1:] {
		h, err := merkle.ParseHash(line)
		if err != nil {
			return 0, nil, nil, bad
		}
		proof = append(proof, h)
	}
	return old, proof, checkpoint, nil
}

// ServeHTTP answers POST /add-checkpoint as C2SP tlog-witness has it, GET /key
// with the witness's key, and GET /seen/ORIGIN with the newest checkpoint that
// it has signed of a log, for bawn audit verify --since.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch origin, seen := strings.CutPrefix(r.URL.Path, "/seen/"); {
	case r.Method == http.MethodGet && r.URL.Path == "/key":
		io.WriteString(rw, w.key+"\n")
	case r.Method == http.MethodGet && seen:
		c, err := w.Seen(origin)
		if err != nil || c.Note == nil {
			http.Error(rw, "nothing was seen of that log", http.StatusNotFound)
			return
		}
		rw.Write(c.Note)
	case r.URL.Path != "/add-checkpoint":
		http.Error(rw, "not found", http.StatusNotFound)
	case r.Method != http.MethodPost:
		http.Error(rw, "only POST", http.StatusMethodNotAllowed)
	default:
		w.serveAdd(rw, r)
	}
}

func (w *Witness) serveAdd(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxWitnessRequest))
	if err != nil {
		http.Error(rw, "the request is too large or broke off", http.StatusBadRequest)
		return
	}
	old, proof, checkpoint, err := parseAddCheckpoint(body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	line, err := w.Cosign(old, proof, checkpoint)
	var no *Refusal
	switch {
	case err == nil:
		rw.Write(line)
	case errors.As(err, &no) && no.Status == http.StatusConflict:
		rw.Header().Set("Content-Type", sizeType)
		rw.WriteHeader(no.Status)
		fmt.Fprintf(rw, "%d\n", no.Size)
	case errors.As(err, &no):
		http.Error(rw, no.Reason, no.Status)
	default:
		w.log.Error("a checkpoint cannot be kept", "error", err)
		http.Error(rw, "the witness cannot keep what it sees", http.StatusInternalServerError)
	}
}

// WitnessURL is where a witness is, and its key.
type WitnessURL struct {
	URL string
	Key note.Verifier
}

// ParseWitnessURL reads URL=NAME+HASH+KEY.
func ParseWitnessURL(text string) (WitnessURL, error) {
	const op, fix = "witness.url", "write https://HOST:PORT=NAME+HASH+KEY, with the key that bawn witness prints"
	where, key, ok := strings.Cut(text, "=")
	u, err := url.Parse(where)
	if !ok || err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return WitnessURL{}, bawn.Errorf(bawn.CodeInvalid, op, "%q does not name a witness", short(text)).WithFix(fix)
	}
	v, witness, err := ParseKey(key)
	if err != nil {
		return WitnessURL{}, err
	}
	if !witness {
		return WitnessURL{}, bawn.Errorf(bawn.CodeInvalid, op, "%q is the key of a log and not of a witness", short(key)).WithFix(fix)
	}
	return WitnessURL{URL: strings.TrimSuffix(where, "/"), Key: v}, nil
}

// Submit shows a checkpoint to a witness, first as grown from seen entries, and
// returns its signature, verified, as a line of a note. A [*Refusal] with status
// 409 or 422 means that the witness has seen another history of this log, or
// more of it: it was rolled back or forked.
func (l *Log) Submit(ctx context.Context, w WitnessURL, c Checkpoint, seen int64) ([]byte, error) {
	for try := 0; ; try++ {
		line, err := l.submit(ctx, w, c, seen)
		var no *Refusal
		if !errors.As(err, &no) || no.Status != http.StatusConflict {
			return line, err
		}
		switch {
		case no.Size > c.Size:
			no.Reason = fmt.Sprintf("this log was rolled back: the witness has seen %d entries, and there are %d", no.Size, c.Size)
		case no.Size == seen:
			no.Reason = "this log was forked: the witness has seen another checkpoint of this size"
		case try == 0:
			seen = no.Size // it knows better which it has seen
			continue
		}
		return nil, no
	}
}

func (l *Log) submit(ctx context.Context, w WitnessURL, c Checkpoint, seen int64) ([]byte, error) {
	body := fmt.Appendf(nil, "old %d\n", seen)
	if seen > 0 && seen < c.Size {
		proof, err := merkle.ProveTree(c.Size, seen, l.files.reader(c.Size))
		if err != nil {
			return nil, err
		}
		for _, h := range proof {
			body = append(append(body, h.String()...), '\n')
		}
	}
	body = append(append(body, '\n'), c.Note...)
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{DialContext: l.cfg.Dial, Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true}
	hc := http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusConflict:
		size, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
		if err != nil || size < 0 {
			return nil, errors.New("the witness refuses and does not say which size it has seen")
		}
		return nil, &Refusal{Status: res.StatusCode, Size: size, Reason: "the witness has seen another size"}
	case http.StatusUnprocessableEntity:
		return nil, &Refusal{Status: res.StatusCode, Reason: "this log was forked: the witness has seen other entries of it"}
	case http.StatusNotFound, http.StatusForbidden:
		return nil, &Refusal{Status: res.StatusCode, Reason: "the witness does not know this log's key: start it with --log-keys"}
	default:
		return nil, fmt.Errorf("the witness answers %d", res.StatusCode)
	}
	signed, err := withSignatures(c.Note, answer)
	if err != nil {
		return nil, errors.New("the witness does not answer with a signature")
	}
	if n := len(Cosignatures(signed, []note.Verifier{w.Key})); n != 1 {
		return nil, errors.New("the witness's signature is not by its key")
	}
	return answer, nil
}

// Cosigned keeps a checkpoint with the signatures of witnesses, the newest
// there is.
func (l *Log) Cosigned(c Checkpoint, lines []byte) error {
	signed, err := withSignatures(c.Note, lines)
	if err != nil {
		return err
	}
	if have, ok := l.cosigned(); ok && have.Size > c.Size {
		return nil
	}
	return l.files.replace(CosignedFile, signed)
}
