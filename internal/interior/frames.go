package interior

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
)

// A frame is, in this order: the length of its head and of its body, four
// bytes each, big endian; the head, a JSON object; the body, bytes as they
// are. Bodies are never escaped into JSON, because for large ones that would
// cost more than everything else together.
//
// The node sends load once, then invoke for each call. The program sends ready
// when it has booted, loaded or failed in answer to load, and in answer to
// invoke either response, error, or stream with any number of chunk and then
// end or error. An answer carries the id of the call it belongs to: a handler
// that writes to the descriptor cannot answer a call that it was not told of.
const (
	frameHeaderBytes = 8
	maxFrameHead     = 64 << 10
	maxStreamHead    = 256       // of a frame inside a stream, where many may come
	maxErrorBytes    = 256 << 10 // an error document; traces are long, not endless
)

// chunkHead is the whole head of a chunk. Nothing else is taken for one: what
// comes in any number must cost the node less than who sends it.
const chunkHead = `{"type":"chunk"}`

// frameHead is the head of any frame that a program sends.
type frameHead struct {
	Type        string `json:"type"`
	ID          string `json:"id"`
	ContentType string `json:"contentType"`
	Exit        bool   `json:"exit"`     // the program ends itself after this frame
	Name        string `json:"name"`     // of a file that the compiler made
	Compiled    bool   `json:"compiled"` // in loaded: it had to compile the code
}

// A frameWorker is the worker of a program that speaks frames.
type frameWorker struct {
	conn  net.Conn
	r     *bufio.Reader
	out   []byte // the last small frame written, for its capacity
	want  []byte // the head of the answer hoped for, for its capacity
	arn   string // unqualified
	awake bool   // ready was seen
	dead  atomic.Bool
	users atomic.Int32 // of conn: who waits on it, and the program until it has ended

	compiled bool // the program had to compile the code when it was loaded
}

// newFrameWorker returns a worker over conn, which it owns from then on.
func newFrameWorker(conn net.Conn) *frameWorker {
	w := &frameWorker{conn: conn, r: bufio.NewReaderSize(conn, 4096)}
	w.users.Store(1)
	return w
}

func (w *frameWorker) alive() bool { return !w.dead.Load() }

func (w *frameWorker) close() {
	w.dead.Store(true)
	w.conn.Close()
}

func (w *frameWorker) ended() {
	w.dead.Store(true)
	w.leave()
}

// leave closes the connection when nobody needs it any more.
func (w *frameWorker) leave() {
	if w.users.Add(-1) == 0 {
		w.conn.Close()
	}
}

// guard bounds what is done with the connection by ctx and deadline. The
// function it returns must be called at the end; it marks the worker dead if
// ctx ended meanwhile, because then a deadline may be left on the connection.
func (w *frameWorker) guard(ctx context.Context, deadline time.Time) (release func()) {
	w.users.Add(1)
	w.conn.SetDeadline(deadline)
	if ctx.Done() == nil {
		return w.leave
	}
	stop := context.AfterFunc(ctx, func() { w.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() {
			w.dead.Store(true)
		}
		w.leave()
	}
}

// fail marks the worker dead and names what happened: see [worker].
func (w *frameWorker) fail(ctx context.Context, err error) error {
	w.dead.Store(true)
	var e *bawn.Error
	switch {
	case errors.As(err, &e):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	}
	return errGone // closed, reset, broken pipe: the program is not there
}

// protocolError is what a program did wrong on its channel.
func protocolError(format string, args ...any) error {
	return bawn.Errorf(bawn.CodeFunctionError, "interior.frames", "the function broke the protocol of its runtime: "+format, args...).
		WithFix("code in the function wrote to a descriptor that is not its own; see its log and the packages it loads")
}

func (w *frameWorker) ready(ctx context.Context) error {
	if w.awake {
		return nil
	}
	defer w.guard(ctx, time.Time{})()
	h, body, err := readFrame(w.r, 0)
	if err != nil {
		return w.fail(ctx, err)
	}
	if h.Type != "ready" || len(body) > 0 {
		return w.fail(ctx, protocolError("it began with a frame of type %.20q, not ready", h.Type))
	}
	w.awake = true
	return nil
}

// loadHead is the head of the load frame.
type loadHead struct {
	Type      string            `json:"type"`
	Runtime   string            `json:"runtime"`
	Handler   string            `json:"handler"`
	Function  string            `json:"function"`
	Version   string            `json:"version"`
	Memory    string            `json:"memory"` // MiB
	LogGroup  string            `json:"logGroup"`
	LogStream string            `json:"logStream"`
	Env       map[string]string `json:"env"`
}

// load may be called before ready: a program that finds the frame waiting when
// it has started loads at once and leaves its exercises out.
func (w *frameWorker) load(ctx context.Context, id Identity) error {
	defer w.guard(ctx, time.Time{})()
	w.arn = id.ARN("")
	v := id.Version
	head, err := json.Marshal(loadHead{
		Type: "load", Runtime: string(v.Runtime), Handler: v.Handler, Function: v.Function,
		Version: strconv.Itoa(v.Number), Memory: strconv.FormatInt(v.Perimeter.Interior.Memory>>20, 10),
		LogGroup: id.LogGroup, LogStream: id.LogStream, Env: environmentMap(&id),
	})
	if err != nil || len(head) > maxFrameHead {
		return bawn.Wrap(err, bawn.CodeInternal, "interior.load", "the function's identity does not fit a frame (%d bytes)", len(head))
	}
	if err := w.write(head, nil); err != nil {
		return w.fail(ctx, err)
	}
	if err := w.ready(ctx); err != nil {
		return err
	}
	h, body, err := readFrame(w.r, maxErrorBytes)
	if err != nil {
		return w.fail(ctx, err)
	}
	switch h.Type {
	case "loaded":
		w.compiled = h.Compiled
		return nil
	case "failed":
		w.dead.Store(true)
		return &initError{Payload: body}
	}
	return w.fail(ctx, protocolError("it answered load with a frame of type %.20q", h.Type))
}

func (w *frameWorker) invoke(ctx context.Context, c *bawn.Call, deadline time.Time) (*bawn.Result, error) {
	release := w.guard(ctx, deadline)
	streaming := false
	defer func() {
		if !streaming {
			release()
		}
	}()
	if n := w.r.Buffered(); n > 0 {
		return nil, w.fail(ctx, protocolError("it sent %d bytes while no call was running", n))
	}

	w.out = append(w.out[:0], make([]byte, frameHeaderBytes)...)
	w.out = w.appendInvokeHead(w.out, c, deadline)
	if err := w.flush(c.Event); err != nil {
		return nil, w.fail(ctx, err)
	}

	w.want = append(w.want[:0], `{"type":"response","id":"`...)
	w.want = append(w.want, c.ID...)
	w.want = append(w.want, `"}`...)
	h, n, err := readFrameHead(w.r, maxFrameHead, w.want)
	if err != nil {
		return nil, w.fail(ctx, err)
	}
	if h.Type == "" {
		h.Type, h.ID = "response", c.ID
	}
	if h.ID != c.ID {
		return nil, w.fail(ctx, protocolError("it sent a frame of type %.20q for an invocation that is not running", h.Type))
	}
	switch h.Type {
	case "response":
		if n > bawn.MaxResponseBytes {
			// The shims check this themselves, so somebody else wrote the
			// frame. Its body is not worth reading, so the instance ends.
			w.dead.Store(true)
			return &bawn.Result{Payload: tooLargePayload(), FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}, nil
		}
		body, err := readBody(w.r, n)
		if err != nil {
			return nil, w.fail(ctx, err)
		}
		return &bawn.Result{Payload: body}, nil
	case "error":
		body, err := w.readError(h, n)
		if err != nil {
			return nil, w.fail(ctx, err)
		}
		return &bawn.Result{Payload: body, FunctionError: "Unhandled", Cause: bawn.CodeFunctionError}, nil
	case "stream":
		if n > 0 {
			return nil, w.fail(ctx, protocolError("the frame that begins a stream has a body"))
		}
		streaming = true
		return &bawn.Result{
			ContentType: h.ContentType,
			Stream:      &frameStream{w: w, ctx: ctx, id: c.ID, release: release, left: bawn.MaxStreamBytes, heads: bawn.MaxStreamBytes},
		}, nil
	}
	return nil, w.fail(ctx, protocolError("it answered invoke with a frame of type %.20q", h.Type))
}

// readError reads the body of an error frame.
func (w *frameWorker) readError(h frameHead, n int) ([]byte, error) {
	if n > maxErrorBytes {
		return nil, protocolError("an error document has %d bytes, more than %d", n, maxErrorBytes)
	}
	if h.Exit {
		w.dead.Store(true)
	}
	return readBody(w.r, n)
}

// appendInvokeHead appends the head of the invoke frame for c.
func (w *frameWorker) appendInvokeHead(b []byte, c *bawn.Call, deadline time.Time) []byte {
	b = append(b, `{"type":"invoke","id":`...)
	b = appendJSONString(b, c.ID)
	b = append(b, `,"deadline":`...)
	b = strconv.AppendInt(b, deadline.UnixMilli(), 10)
	b = append(b, `,"arn":`...)
	arn := w.arn
	if c.Target.Qualifier != "" {
		arn += ":" + c.Target.Qualifier
	}
	b = appendJSONString(b, arn)
	if c.TraceID != "" {
		b = append(b, `,"trace":`...)
		b = appendJSONString(b, c.TraceID)
	}
	if c.Client != "" {
		b = append(b, `,"client":`...)
		b = appendJSONString(b, c.Client)
	}
	return append(b, '}')
}

// appendJSONString appends s as a JSON string.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			q, _ := json.Marshal(s) // a string always marshals
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// write sends one frame.
func (w *frameWorker) write(head, body []byte) error {
	w.out = append(append(w.out[:0], make([]byte, frameHeaderBytes)...), head...)
	return w.flush(body)
}

// flush sends w.out, which holds room for the header and then the head, and
// body, with one system call.
func (w *frameWorker) flush(body []byte) error {
	head := len(w.out) - frameHeaderBytes
	if head > maxFrameHead {
		return bawn.Errorf(bawn.CodeTooLarge, "interior.frames", "the call's context has %d bytes, more than %d", head, maxFrameHead)
	}
	binary.BigEndian.PutUint32(w.out, uint32(head))
	binary.BigEndian.PutUint32(w.out[4:], uint32(len(body)))
	if len(body) <= 32<<10 {
		w.out = append(w.out, body...)
		_, err := w.conn.Write(w.out)
		return err
	}
	_, err := (&net.Buffers{w.out, body}).WriteTo(w.conn)
	return err
}

// readFrame reads one frame whose body has at most max bytes.
func readFrame(r *bufio.Reader, max int) (frameHead, []byte, error) {
	h, n, err := readFrameHead(r, maxFrameHead, nil)
	if err != nil {
		return h, nil, err
	}
	if n > max {
		return h, nil, protocolError("a frame of type %.20q has a body of %d bytes, more than %d", h.Type, n, max)
	}
	body, err := readBody(r, n)
	return h, body, err
}

// readFrameHead reads a frame up to its body and returns the body's length,
// which the caller must bound. The head may have max bytes. One equal to want is
// not parsed: h is its zero value then, and never otherwise.
func readFrameHead(r *bufio.Reader, max int, want []byte) (h frameHead, body int, err error) {
	var header [frameHeaderBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return h, 0, err
	}
	n, b := binary.BigEndian.Uint32(header[:]), binary.BigEndian.Uint32(header[4:])
	if n == 0 || n > uint32(max) {
		return h, 0, protocolError("a frame's head has %d bytes, not 1 to %d", n, max)
	}
	if b > 1<<31-1 {
		return h, 0, protocolError("a frame's body has %d bytes", b)
	}
	head, err := r.Peek(int(n))
	switch {
	case err == nil:
		defer r.Discard(int(n))
	case errors.Is(err, bufio.ErrBufferFull):
		head = make([]byte, n)
		if _, err := io.ReadFull(r, head); err != nil {
			return h, 0, err
		}
	default:
		return h, 0, err
	}
	if want != nil && bytes.Equal(head, want) {
		return frameHead{}, int(b), nil
	}
	if err := json.Unmarshal(head, &h); err != nil || h.Type == "" {
		return h, 0, protocolError("a frame's head is not a JSON object with a type")
	}
	return h, int(b), nil
}

// readBody reads n bytes. What is claimed costs memory only as it arrives.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	body := make([]byte, min(n, step))
	got := 0
	for {
		m, err := io.ReadFull(r, body[got:])
		got += m
		if err != nil {
			return nil, err
		}
		if got == n {
			return body, nil
		}
		grown := make([]byte, min(n, 4*len(body)))
		copy(grown, body)
		body = grown
	}
}

// A frameStream is the streamed answer of one invocation.
type frameStream struct {
	w       *frameWorker
	ctx     context.Context
	id      string
	release func()
	chunk   int   // bytes of the present chunk not yet read
	left    int64 // bytes the stream may still have
	heads   int64 // bytes its frames' heads may still have
	err     error // the end, once reached
}

// Read implements io.Reader. See [bawn.Result] and [worker] for its errors.
func (s *frameStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for s.chunk == 0 {
		if err := s.next(); err != nil {
			return 0, s.end(err)
		}
	}
	n, err := s.w.r.Read(p[:min(len(p), s.chunk)])
	s.chunk -= n
	// What has come already goes out together: to pass on each of many small
	// chunks by itself would cost more than to send them.
	for err == nil && n < len(p) && (s.chunk > 0 || s.chunkBuffered()) {
		if s.w.r.Buffered() == 0 {
			break
		}
		if s.chunk == 0 {
			if err := s.next(); err != nil {
				return n, s.end(err)
			}
		}
		var m int
		m, err = s.w.r.Read(p[n:min(len(p), n+min(s.chunk, s.w.r.Buffered()))])
		n, s.chunk = n+m, s.chunk-m
	}
	if err != nil {
		return n, s.end(s.w.fail(s.ctx, err))
	}
	return n, nil
}

// chunkBuffered reports whether a chunk's head and something of its body have
// arrived.
func (s *frameStream) chunkBuffered() bool {
	const size = frameHeaderBytes + len(chunkHead)
	if s.w.r.Buffered() <= size {
		return false
	}
	b, err := s.w.r.Peek(size)
	return err == nil && binary.BigEndian.Uint32(b) == uint32(len(chunkHead)) && string(b[frameHeaderBytes:]) == chunkHead
}

// next reads up to the body of the next frame.
func (s *frameStream) next() error {
	h, n, err := readFrameHead(s.w.r, maxStreamHead, []byte(chunkHead))
	if err != nil {
		return s.w.fail(s.ctx, err)
	}
	switch h.Type {
	case "": // chunkHead
		if n == 0 {
			return s.w.fail(s.ctx, protocolError("a chunk of a stream is empty"))
		}
		s.left -= int64(n)
		s.heads -= int64(frameHeaderBytes + len(chunkHead))
		if s.left < 0 || s.heads < 0 {
			s.w.dead.Store(true)
			return &bawn.StreamError{Payload: errorPayload("Function.ResponseSizeTooLarge",
				fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", bawn.MaxStreamBytes))}
		}
		s.chunk = n
		return nil
	case "end":
		if n > 0 {
			return s.w.fail(s.ctx, protocolError("the frame that ends a stream has a body"))
		}
		return io.EOF
	case "error":
		if h.ID != s.id {
			return s.w.fail(s.ctx, protocolError("it sent an error for an invocation that is not running"))
		}
		body, err := s.w.readError(h, n)
		if err != nil {
			return s.w.fail(s.ctx, err)
		}
		return &bawn.StreamError{Payload: body}
	}
	return s.w.fail(s.ctx, protocolError("a frame of type %.20q is inside a stream", h.Type))
}

// end makes err the stream's last word.
func (s *frameStream) end(err error) error {
	s.err = err
	s.release()
	return err
}

// Close ends the stream. Before its end it ends the worker too: the rest would
// be in the way of the next call.
func (s *frameStream) Close() error {
	if s.err == nil {
		s.w.dead.Store(true)
		s.end(net.ErrClosed)
	}
	return nil
}

// errorPayload returns the JSON document that a failed invocation answers.
func errorPayload(kind, message string) []byte {
	b := appendJSONString([]byte(`{"errorType":`), kind)
	b = append(b, `,"errorMessage":`...)
	return append(appendJSONString(b, message), '}')
}

// tooLargePayload is the document for a result over the limit.
func tooLargePayload() []byte {
	return errorPayload("Function.ResponseSizeTooLarge",
		fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", bawn.MaxResponseBytes))
}
