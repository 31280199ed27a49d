package interior

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
)

// Bounds of what a function may print.
const (
	maxLogLine = 16 << 10 // longer lines are split
	logRate    = 1 << 20  // bytes a second, of one instance
	logBurst   = 4 << 20  // bytes at once
	pipeBytes  = 64 << 10 // a pipe's capacity: what may be unread when the answer comes
	readBytes  = 8 << 10  // of one read
	logBurstN  = 20_000   // lines at once
	floodPause = 10 * 1e6 // nanoseconds between reads while over the rate
	lineCost   = logBurst / logBurstN
)

// An output turns what a program prints into log lines and adds the platform's
// own. Reading is done in two places: in the background, and by the call itself
// when its answer has come, so that everything printed before the answer is
// logged before END and under the right invocation. mu keeps the two apart.
type output struct {
	emit      func(bawn.LogLine, time.Duration)
	retention time.Duration
	redactor  func() *secret.Redactor // of the version's secrets as they are now; nil if it has none
	file      *os.File
	raw       syscall.RawConn
	done      chan struct{} // closed when run has ended

	mu      sync.Mutex
	line    bawn.LogLine // template: everything but time and text
	partial []byte       // the beginning of a line
	buf     []byte
	secrets *secret.Redactor // what clean looks for; controls E5 and D7
	clean   *secret.Stream   // takes them out of what is printed, however it is cut into writes
	cleaned []byte
	eof     bool
	tokens  float64 // bytes that may still be logged; see charge
	filled  time.Time
	dropped int // lines left out since the last notice
	over    bool

	// Of the running or last invocation, and the one before it.
	began    time.Time
	previous string
	tail     []byte // the end of its log, if that was wanted; nil if not
}

// newOutput returns the output of instance id of v. run must be started.
func newOutput(f *os.File, v *bawn.Version, id string, emit func(bawn.LogLine, time.Duration), redactor func() *secret.Redactor) (*output, error) {
	o := &output{
		redactor:  redactor,
		emit:      emit,
		retention: v.Perimeter.Evidence.LogRetention,
		file:      f,
		done:      make(chan struct{}),
		line:      bawn.LogLine{Tenant: v.Tenant, Function: v.Function, Version: v.Number, Instance: id},
		tokens:    logBurst,
		filled:    time.Now(),
	}
	// A descriptor outside the poller cannot be waited for: take a twin that is
	// in it.
	if f.SetReadDeadline(time.Time{}) != nil {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			return nil, err
		}
		syscall.CloseOnExec(fd)
		if err := syscall.SetNonblock(fd, true); err != nil {
			syscall.Close(fd)
			return nil, err
		}
		o.file = os.NewFile(uintptr(fd), "output")
	}
	raw, err := o.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	o.raw = raw
	// Whoever asked for its number has made it block, and then so would the
	// read at the end of a call.
	var mode error
	if err := raw.Control(func(fd uintptr) { mode = syscall.SetNonblock(int(fd), true) }); err != nil {
		return nil, err
	}
	return o, mode
}

// run reads until the pipe's last writer is gone or the file is closed.
func (o *output) run() {
	defer close(o.done)
	for {
		var eof, over bool
		err := o.raw.Read(func(fd uintptr) bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			more := o.read(int(fd))
			eof, over = o.eof, o.over
			return more || eof
		})
		if err != nil || eof {
			break
		}
		if over {
			time.Sleep(floodPause) // the pipe fills, and the function waits
		}
	}
	o.mu.Lock()
	o.settle()
	o.mu.Unlock()
	o.file.Close()
}

// read takes what is there, at most one buffer. It reports false when nothing
// was. Needs mu.
func (o *output) read(fd int) bool {
	if o.eof {
		return false
	}
	if o.buf == nil {
		o.buf = make([]byte, readBytes)
	}
	for {
		n, err := syscall.Read(fd, o.buf)
		switch {
		case n > 0:
			o.take(o.buf[:n])
			return true
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return false
		}
		o.eof = true
		return false
	}
}

// drain takes everything printed until now, at most one pipe full. Needs mu.
func (o *output) drain() {
	if o.eof {
		return
	}
	// Control, unlike Read, does not wait for the reader in the background.
	o.raw.Control(func(fd uintptr) { // fails only when closed: then there is nothing to read
		for range pipeBytes / readBytes {
			if !o.read(int(fd)) {
				return
			}
		}
	})
}

// take takes what was printed, before anything of it is kept or shown: the values
// of secrets go out of it. Needs mu.
func (o *output) take(b []byte) {
	if o.redactor == nil {
		o.add(b)
		return
	}
	if now := o.redactor(); now != o.secrets { // one was rotated
		o.add(o.clean.Flush(nil))
		o.secrets, o.clean = now, now.Stream()
	}
	if o.clean == nil {
		o.add(b)
		return
	}
	o.cleaned = o.clean.Append(o.cleaned[:0], b)
	o.add(o.cleaned)
}

// settle writes what was kept back and the line begun. Needs mu.
func (o *output) settle() {
	if o.clean != nil {
		o.add(o.clean.Flush(nil))
	}
	o.flush()
}

// add splits b into lines. Needs mu.
func (o *output) add(b []byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		switch {
		case i >= 0 && len(o.partial)+i <= maxLogLine:
			if len(o.partial) == 0 {
				o.write(b[:i])
			} else {
				o.partial = append(o.partial, b[:i]...)
				o.flush()
			}
			b = b[i+1:]
		case i < 0 && len(o.partial)+len(b) <= maxLogLine:
			o.partial = append(o.partial, b...)
			return
		default:
			n := maxLogLine - len(o.partial)
			o.partial = append(o.partial, b[:n]...)
			o.flush()
			b = b[n:]
		}
	}
}

// flush writes the line begun. Needs mu.
func (o *output) flush() {
	if len(o.partial) > 0 {
		o.write(o.partial)
		o.partial = o.partial[:0]
		if cap(o.partial) > 1<<10 {
			o.partial = nil // an idle instance should not keep it
		}
	}
}

// write logs one line of the function's. Needs mu.
func (o *output) write(text []byte) {
	now := time.Now()
	if !o.charge(now, len(text)) {
		o.dropped++
		return
	}
	o.notice(now)
	text = bytes.TrimSuffix(text, []byte("\r"))
	l := o.line
	l.Time, l.Text = now, strings.ToValidUTF8(string(text), "\uFFFD")
	o.keep(l.Text)
	o.emit(l, o.retention)
}

// charge takes a line of n bytes from the allowance. Needs mu.
func (o *output) charge(now time.Time, n int) bool {
	o.tokens = min(logBurst, o.tokens+now.Sub(o.filled).Seconds()*logRate)
	o.filled = now
	cost := float64(max(n, lineCost))
	o.over = cost > o.tokens
	if !o.over {
		o.tokens -= cost
	}
	return !o.over
}

// notice says how many lines were left out. Needs mu.
func (o *output) notice(now time.Time) {
	if o.dropped > 0 {
		n := o.dropped
		o.dropped = 0
		o.platform(now, "bawn: "+strconv.Itoa(n)+" lines left out: the function printed more than "+
			strconv.Itoa(logRate>>20)+" MiB a second")
	}
}

// platform logs one line of Bawn's own. Needs mu.
func (o *output) platform(now time.Time, text string) {
	l := o.line
	l.Time, l.Platform, l.Text = now, true, text
	o.keep(text)
	o.emit(l, o.retention)
}

// keep adds a line to the tail. Needs mu.
func (o *output) keep(text string) {
	if o.tail == nil {
		return
	}
	if len(o.tail)+len(text) >= cap(o.tail) { // keep what fits beside the line
		text = text[max(0, len(text)+1-bawn.LogTailBytes):]
		rest := o.tail[max(0, len(o.tail)+len(text)+1-bawn.LogTailBytes):]
		o.tail = o.tail[:copy(o.tail, rest)]
	}
	o.tail = append(append(o.tail, text...), '\n')
}

// note logs one line of Bawn's own, after what was printed before it; but what may
// be the beginning of a secret's value stays back, or code could cut one by having
// a note written.
func (o *output) note(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drain()
	o.flush()
	o.platform(time.Now(), o.redact(text))
}

// redact takes the values of secrets out of a text of Bawn's own.
func (o *output) redact(text string) string {
	if o.redactor == nil {
		return text
	}
	return o.redactor().String(text)
}

// aside is note for what the function's owner should know and its caller should
// not: it is in no tail.
func (o *output) aside(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drain()
	o.flush()
	l := o.line
	l.Time, l.Platform, l.Text = time.Now(), true, o.redact(text)
	o.emit(l, o.retention)
}

// redactRecord does the same to what a record tells of the function's doing. The
// detail is not changed in place: it may be somebody else's.
func (o *output) redactRecord(r *bawn.Record) {
	if o.redactor == nil {
		return
	}
	o.redactor().Record(r)
}

// begin attributes what follows to an invocation, and keeps the end of it if
// tail is wanted.
func (o *output) begin(id string, now time.Time, tail bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drain()
	o.settle()
	o.previous, o.line.Invocation, o.began = o.line.Invocation, id, now
	if tail {
		o.tail = make([]byte, 0, 2*bawn.LogTailBytes)
	}
	o.platform(now, "START RequestId: "+id+" Version: "+strconv.Itoa(o.line.Version))
}

// during returns the invocation that what happened at t belongs to, "" before
// the first.
func (o *output) during(t time.Time) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t.Before(o.began) {
		return o.previous
	}
	return o.line.Invocation
}

// end closes an invocation. What is printed after it, by work left running in
// the background, still belongs to it. The tail is nil if it was not wanted.
func (o *output) end(id string, u *bawn.Usage, memory int64) (tail []byte) {
	var b [256]byte
	r := append(b[:0], "REPORT RequestId: "...)
	r = append(r, id...)
	r = append(r, "\tDuration: "...)
	r = appendMillis(r, u.Duration)
	r = append(r, " ms\tBilled Duration: "...)
	r = strconv.AppendInt(r, int64((u.Duration+u.Init+time.Millisecond-1)/time.Millisecond), 10)
	r = append(r, " ms\tMemory Size: "...)
	r = strconv.AppendInt(r, memory>>20, 10)
	r = append(r, " MB\tMax Memory Used: "...)
	r = strconv.AppendInt(r, (u.MaxMemory+1<<20-1)>>20, 10)
	r = append(r, " MB\t"...)
	if u.Cold {
		r = append(r, "Init Duration: "...)
		r = appendMillis(r, u.Init)
		r = append(r, " ms\t"...)
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	o.drain()
	o.settle()
	now := time.Now()
	o.notice(now)
	o.platform(now, "END RequestId: "+id)
	o.platform(now, string(r))
	if tail = o.tail; len(tail) > bawn.LogTailBytes {
		tail = tail[len(tail)-bawn.LogTailBytes:]
	}
	o.tail = nil
	return tail
}

// appendMillis appends d in milliseconds with two decimals.
func appendMillis(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d)/float64(time.Millisecond), 'f', 2, 64)
}
