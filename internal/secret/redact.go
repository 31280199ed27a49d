package secret

import (
	"bytes"
	"html"
	"io"
	"maps"
	"sort"
	"sync"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// What a [Redactor] looks for, and what it puts in its place.
const (
	// MinRedact is the length in bytes below which a value is not looked for: it
	// would be found in texts that have nothing to do with it.
	MinRedact = 6
	// Redacted stands where a value was, unless that was within base64 or hex digits:
	// there as many letters, or digits (zeros, where no value is zeros), are put, and
	// what was well formed remains so.
	Redacted = "[secret]"

	minLine    = 16 // bytes of a line of a value that is looked for by itself
	minWrap    = 56 // base64 characters before a line break that may belong to them
	maxGap     = 2  // bytes of such a line break
	maxSlashes = 8  // backslashes of an escape within escaped text
	maxEntity  = 9  // bytes between & and ;
	filler     = "REDACTED"
)

// A Redactor finds values in text and takes them out: as they are, in base64 of
// both alphabets and at any place in what was encoded, wrapped or not, in hex
// digits, percent-encoded, escaped by backslashes as in JSON and string literals,
// once or within a string again, and by entities as in HTML. Of a value of several
// lines each longer line is looked for too, and space around a value is no part of
// it. It does not find a value that was encoded twice in other ways, compressed,
// cut or reversed: it is against accidents.
//
// It works by undoing each encoding while it reads, and looking for the values
// with one automaton (Aho-Corasick): the time is linear in the text, whatever is
// in it, and the memory in the length of the values. It is safe for concurrent
// use. A nil *Redactor finds nothing, at no cost.
type Redactor struct {
	nodes   []node
	root    [256]int32
	more    map[uint64]int32 // children of a node beyond its first
	longest int64            // value, in bytes
	space   bool             // whether a value has a space, which forms write as +
	marker  string
	digit   byte      // in place of hex digits
	idle    sync.Pool // of *scan
}

// A node is a state of the automaton: the beginning of a value.
type node struct {
	child int32 // the first one; 0 for none
	fail  int32 // the longest other beginning that this one ends in
	found int32 // length of the longest value that it ends in; 0 for none
	depth int32 // bytes
	least int32 // length of the shortest value that begins so
	label byte
	more  bool // whether there are other children
}

// NewRedactor returns a redactor of values, which it copies. It is nil if none of
// them is long enough to be looked for.
func NewRedactor(values [][]byte) *Redactor {
	r := &Redactor{nodes: make([]node, 1), more: map[uint64]int32{}}
	var all [][]byte
	for _, v := range values {
		if v = bytes.TrimSpace(v); len(v) < MinRedact {
			continue
		}
		all = append(all, v)
		if bytes.IndexByte(v, '\n') < 0 {
			continue
		}
		for line := range bytes.Lines(v) {
			line = bytes.TrimSpace(line)
			if len(line) >= minLine && !bytes.HasPrefix(line, []byte("-----")) { // PEM's first and last line are no secret
				all = append(all, line)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	for _, v := range all {
		r.add(v)
		r.longest = max(r.longest, int64(len(v)))
		r.space = r.space || bytes.IndexByte(v, ' ') >= 0
	}
	r.link()
	r.marker, r.digit = marker(all), digit(all)
	r.idle.New = func() any { return newScan(r) }
	return r
}

// marker returns a text to put in the place of values that makes no value anew
// together with what stands beside it.
func marker(values [][]byte) string {
	all := []string{Redacted, "***", "---", "<...>", "\uFFFD"}
next:
	for _, m := range all {
		for _, v := range values {
			if bytes.Contains(v, []byte(m)) || bytes.Contains([]byte(m), v) {
				continue next
			}
			for i := 1; i < len(m); i++ {
				if bytes.HasPrefix(v, []byte(m[i:])) || bytes.HasSuffix(v, []byte(m[:i])) {
					continue next
				}
			}
		}
		return m
	}
	return all[0]
}

// digit returns the hex digit that is no value where it is repeated, neither as it is
// nor decoded: zeros in the place of a value of zero bytes would be that value.
func digit(values [][]byte) byte {
	const all = "0123456789abcdef"
next:
	for i := range all {
		for _, v := range values {
			first := v[0]
			if (first == all[i] || first == byte(i<<4|i)) && bytes.Count(v, v[:1]) == len(v) {
				continue next
			}
		}
		return all[i]
	}
	return all[0]
}

// add puts v into the tree.
func (r *Redactor) add(v []byte) {
	var s int32
	for _, b := range v {
		c := r.below(s, b)
		if c == 0 {
			c = int32(len(r.nodes))
			r.nodes = append(r.nodes, node{label: b, depth: r.nodes[s].depth + 1, least: int32(len(v))})
			switch {
			case s == 0:
				r.root[b] = c
			case r.nodes[s].child == 0:
				r.nodes[s].child = c
			default:
				r.nodes[s].more = true
				r.more[uint64(s)<<8|uint64(b)] = c
			}
		}
		s = c
		r.nodes[s].least = min(r.nodes[s].least, int32(len(v)))
	}
	r.nodes[s].found = int32(len(v))
}

// below returns the child of s for b, 0 if there is none.
func (r *Redactor) below(s int32, b byte) int32 {
	if s == 0 {
		return r.root[b]
	}
	n := &r.nodes[s]
	if n.child != 0 && r.nodes[n.child].label == b {
		return n.child
	}
	if n.more {
		return r.more[uint64(s)<<8|uint64(b)]
	}
	return 0
}

// link sets where a search goes on when the text is no longer the beginning of a
// value, level by level.
func (r *Redactor) link() {
	parent := make([]int32, len(r.nodes))
	level := make([]int32, 0, len(r.nodes))
	for _, c := range r.root {
		if c != 0 {
			level = append(level, c)
		}
	}
	others := map[int32][]int32{}
	for key, c := range r.more {
		others[int32(key>>8)] = append(others[int32(key>>8)], c)
	}
	for i := 0; i < len(level); i++ {
		s := level[i]
		n := &r.nodes[s]
		if p := parent[s]; p != 0 {
			n.fail = r.step(r.nodes[p].fail, n.label)
		}
		if n.found == 0 {
			n.found = r.nodes[n.fail].found
		}
		if n.child != 0 {
			parent[n.child] = s
			level = append(level, n.child)
		}
		for _, c := range others[s] {
			parent[c] = s
			level = append(level, c)
		}
	}
}

// step returns the state after b.
func (r *Redactor) step(s int32, b byte) int32 {
	for s != 0 {
		if c := r.below(s, b); c != 0 {
			return c
		}
		s = r.nodes[s].fail
	}
	return r.root[b]
}

// Bytes returns b without the values: b itself if it has none.
func (r *Redactor) Bytes(b []byte) []byte {
	if r == nil {
		return b
	}
	s := r.idle.Get().(*scan)
	defer s.release()
	s.read(b)
	s.finish()
	if len(s.spans) == 0 {
		return b
	}
	return s.emit(make([]byte, 0, len(b)), b, s.pos)
}

// String is [Redactor.Bytes] of a string.
func (r *Redactor) String(t string) string {
	if r == nil || len(t) < MinRedact {
		return t
	}
	b := []byte(t)
	if out := r.Bytes(b); len(out) != len(b) || &out[0] != &b[0] {
		return string(out)
	}
	return t
}

// Record takes the values out of a record's reason and detail. It replaces the
// detail, and does not write into it.
func (r *Redactor) Record(rec *bawn.Record) {
	if r == nil {
		return
	}
	rec.Reason = r.String(rec.Reason)
	var changed map[string]string
	for key, value := range rec.Detail {
		if clean := r.String(value); clean != value {
			if changed == nil {
				changed = maps.Clone(rec.Detail)
			}
			changed[key] = clean
		}
	}
	if changed != nil {
		rec.Detail = changed
	}
}

// Stream returns a redactor of a text that comes in parts; nil if r is.
func (r *Redactor) Stream() *Stream {
	if r == nil {
		return nil
	}
	return &Stream{scan: newScan(r)}
}

// A Stream takes values out of a text that comes in parts, wherever it is cut:
// what comes out does not depend on that. Of each part it keeps back what may be
// the beginning of a value, which is never more than a few times the longest one.
// It is not safe for concurrent use. A nil *Stream passes everything.
type Stream struct {
	scan *scan
	held []byte
}

// Append appends to dst what may leave of the text, now that p has come, and
// returns it.
func (s *Stream) Append(dst, p []byte) []byte {
	if s == nil {
		return append(dst, p...)
	}
	s.scan.read(p)
	if len(s.held) == 0 { // often: nothing is copied twice
		dst = s.scan.emit(dst, p, s.scan.hold())
		s.held = append(s.held, p[len(p)-int(s.scan.pos-s.scan.off):]...)
		return dst
	}
	s.held = append(s.held, p...)
	dst = s.scan.emit(dst, s.held, s.scan.hold())
	n := copy(s.held, s.held[len(s.held)-int(s.scan.pos-s.scan.off):])
	if s.held = s.held[:n]; n == 0 && cap(s.held) > 4<<10 {
		s.held = nil
	}
	return dst
}

// Flush appends what was kept back and returns dst; the text is over. The first
// half of a value, or more of it, does not leave. The stream may then be used for
// another text.
func (s *Stream) Flush(dst []byte) []byte {
	if s == nil {
		return dst
	}
	s.scan.finish()
	dst = s.scan.emit(dst, s.held, s.scan.pos)
	s.held = nil
	s.scan.reset()
	return dst
}

// Writer returns a writer that passes to w what is written to it without the
// values, late by what may be the beginning of one. Close passes the rest, and
// does not close w.
func (r *Redactor) Writer(w io.Writer) io.WriteCloser { return &writer{w: w, s: r.Stream()} }

type writer struct {
	w   io.Writer
	s   *Stream
	buf []byte
}

func (w *writer) Write(p []byte) (int, error) {
	if w.s == nil {
		return w.w.Write(p)
	}
	if w.buf = w.s.Append(w.buf[:0], p); len(w.buf) > 0 {
		if _, err := w.w.Write(w.buf); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (w *writer) Close() error {
	if w.buf = w.s.Flush(w.buf[:0]); len(w.buf) > 0 {
		_, err := w.w.Write(w.buf)
		return err
	}
	return nil
}

// Reader returns what src has without the values: src itself if r is nil. An error
// of src comes after everything that was read before it.
func (r *Redactor) Reader(src io.Reader) io.Reader {
	if r == nil {
		return src
	}
	return &reader{src: src, s: r.Stream()}
}

type reader struct {
	src   io.Reader
	s     *Stream
	in    []byte
	out   []byte // room for what is next
	ready []byte // of out, not yet read
	err   error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.in == nil {
		r.in = make([]byte, 16<<10)
	}
	for len(r.ready) == 0 && r.err == nil && len(p) > 0 {
		n, err := r.src.Read(r.in)
		r.ready = r.s.Append(r.out[:0], r.in[:n])
		if err != nil {
			r.err, r.ready = err, r.s.Flush(r.ready)
		}
		r.out = r.ready
	}
	n := copy(p, r.ready)
	if r.ready = r.ready[n:]; len(r.ready) == 0 && r.err != nil {
		return n, r.err
	}
	return n, nil
}

// A span is a part of the text that is taken out.
type span struct {
	from, to int64
	kind     kind
}

// A kind says what is put in a span's place. Where two spans begin at one place
// the lower one counts.
type kind int8

const (
	plainText kind = iota
	base64Text
	hexText
)

// A scan is a reading of one text.
type scan struct {
	r     *Redactor
	pos   int64 // of the next byte of the text
	off   int64 // of the first byte that has not been emitted
	raw   int32 // state on the text as it is
	b64   digits
	hex   digits
	esc   [5]escape
	awake int
	spans []span // in order, apart; not yet begun to be emitted

	// The span that is being left out.
	until  int64
	kind   kind
	filled int
}

func newScan(r *Redactor) *scan {
	s := &scan{r: r}
	s.reset()
	return s
}

func (s *scan) reset() {
	for i := range s.esc {
		s.esc[i].style, s.esc[i].awake, s.esc[i].trail.bends = style(i), false, nil
	}
	s.b64.end()
	s.hex.end()
	s.pos, s.off, s.raw, s.awake, s.until = 0, 0, 0, 0, 0
	s.spans = s.spans[:0]
}

func (s *scan) release() {
	s.reset()
	s.r.idle.Put(s)
}

// read looks at the next part of the text.
func (s *scan) read(p []byte) {
	r := s.r
	for _, b := range p {
		before := s.raw
		if before == 0 {
			s.raw = r.root[b]
		} else {
			s.raw = r.step(before, b)
		}
		if n := r.nodes[s.raw].found; n > 0 {
			s.mark(s.pos+1-int64(n), s.pos+1, plainText)
		}
		c := classes[b]
		if c&(inBase64|inHex) != 0 || s.b64.n > 0 || s.hex.n > 0 {
			s.base64(b, c)
			s.hexes(b, c)
		}
		if c&begins != 0 {
			s.wake(b, before)
		}
		if s.awake > 0 {
			s.escapes(b)
		}
		s.pos++
	}
}

// mark notes a span, and joins it with those that it overlaps.
func (s *scan) mark(from, to int64, k kind) {
	if from < s.until { // of the one that is being left out
		s.until = max(s.until, to)
		for len(s.spans) > 0 && s.spans[0].from < s.until {
			s.until = max(s.until, s.spans[0].to)
			s.spans = s.spans[1:]
		}
		return
	}
	for i := len(s.spans) - 1; i >= 0 && s.spans[i].to > from; i-- {
		last := s.spans[i]
		if last.from < from || last.from == from && last.kind < k {
			k = last.kind
		}
		from, to = min(from, last.from), max(to, last.to)
		s.spans = s.spans[:i]
	}
	s.spans = append(s.spans, span{from, to, k})
}

// hold returns where the text begins that may still turn out to be of a value.
func (s *scan) hold() int64 {
	h := s.pos - int64(s.r.nodes[s.raw].depth)
	h = min(h, s.b64.hold(s.r, base64Bits, s.pos), s.hex.hold(s.r, hexBits, s.pos))
	for i := range s.esc {
		if e := &s.esc[i]; e.awake {
			h = min(h, e.trail.at(e.n-int64(s.r.nodes[e.state].depth)))
		}
	}
	return h
}

// finish ends the text: what is half a value or more is taken for one.
func (s *scan) finish() {
	half := func(state int32) (int64, bool) {
		n := &s.r.nodes[state]
		return int64(n.depth), n.depth >= MinRedact && n.depth >= n.least/2
	}
	for i := range s.esc {
		e := &s.esc[i]
		if !e.awake {
			continue
		}
		for len(e.pending) > 0 { // an escape that never ended is what it looks like
			s.literal(e)
		}
		if d, ok := half(e.state); ok {
			s.mark(e.trail.at(e.n-d), s.pos, plainText)
		}
	}
	if d, ok := half(s.raw); ok {
		s.mark(s.pos-d, s.pos, plainText)
	}
	for _, g := range []struct {
		*digits
		bits int64
		kind kind
	}{{&s.b64, base64Bits, base64Text}, {&s.hex, hexBits, hexText}} {
		for lane, state := range g.states {
			if d, ok := half(state); ok {
				s.mark(g.trail.at(max(0, g.begin(g.bits, int64(lane), d))), s.pos, g.kind)
			}
		}
	}
}

// emit appends what precedes hold, without the spans. text is the text from s.off
// on.
func (s *scan) emit(dst, text []byte, hold int64) []byte {
	first := s.off
	for s.off < hold {
		if s.off < s.until {
			n := min(s.until, hold) - s.off
			for _, b := range text[s.off-first : s.off-first+n] {
				switch {
				case s.kind == plainText:
				case classes[b]&inBase64 == 0: // a line break or a separator
					dst = append(dst, b)
				case s.kind == hexText:
					dst = append(dst, s.r.digit)
				default:
					dst = append(dst, filler[s.filled%len(filler)])
					s.filled++
				}
			}
			s.off += n
			continue
		}
		end := hold
		begin := len(s.spans) > 0 && s.spans[0].from < hold
		if begin {
			end = s.spans[0].from
		}
		dst = append(dst, text[s.off-first:end-first]...)
		s.off = end
		if begin {
			s.until, s.kind, s.filled = s.spans[0].to, s.spans[0].kind, 0
			s.spans = s.spans[1:]
			if s.kind == plainText {
				dst = append(dst, s.r.marker...)
			}
		}
	}
	return dst
}

// A trail tells where in the text each symbol of a decoded text begins: one byte
// after the other, but for the bends.
type trail struct {
	base  int64 // of symbol 0
	bends []bend
}

// From the symbol index on, the text is by shift bytes further than the trail's
// base says.
type bend struct{ index, shift int64 }

func (t *trail) at(index int64) int64 {
	i := sort.Search(len(t.bends), func(i int) bool { return t.bends[i].index > index })
	if i == 0 {
		return t.base + index
	}
	return t.base + index + t.bends[i-1].shift
}

// bend says that from the symbol index on, the text is by n bytes further. Nobody
// asks for a symbol before oldest any more.
func (t *trail) bend(index, n, oldest int64) {
	if len(t.bends) >= 64 && len(t.bends) == cap(t.bends) {
		i := sort.Search(len(t.bends), func(i int) bool { return t.bends[i].index > oldest })
		if i > len(t.bends)/2 { // so that each one is moved only once on average
			t.bends = t.bends[:copy(t.bends, t.bends[i-1:])]
		}
	}
	if k := len(t.bends); k > 0 {
		n += t.bends[k-1].shift
	}
	t.bends = append(t.bends, bend{index, n})
}

// digits is a run of base64 characters or of hex digits, read at each alignment
// that bytes may have in it.
type digits struct {
	n      int64 // of the run
	acc    uint32
	gap    int64    // bytes of the line break or separator that the run stands at
	states [4]int32 // by the place in the run where a group begins
	trail  trail
}

// Bits of one base64 character and of one hex digit.
const (
	base64Bits = 6
	hexBits    = 4
)

func (d *digits) end() {
	d.n, d.acc, d.gap, d.states, d.trail.bends = 0, 0, 0, [4]int32{}, d.trail.bends[:0]
}

// add takes the next symbol into the run, which stands at pos. longest is how many
// symbols a value has at most.
func (d *digits) add(v uint32, bits int, pos, longest int64) {
	if d.n == 0 {
		d.trail.base = pos
	}
	if d.gap > 0 {
		d.trail.bend(d.n, d.gap, d.n-longest)
		d.gap = 0
	}
	d.acc = d.acc<<bits | v
	d.n++
}

// begin returns the symbol in which the last size bytes of a lane begin, or where
// the next byte may have begun if size is 0.
func (d *digits) begin(bits, lane, size int64) int64 {
	last := d.n - 1
	rest := 6 - 2*((last-lane)&3) // bits at the end that are of no whole byte of the lane yet
	if bits == hexBits {
		rest = 4 - 4*((last-lane)&1)
	}
	return min(last, last-(rest+8*size+bits-1)/bits+1)
}

// hold returns where the text begins that may be of a value.
func (d *digits) hold(r *Redactor, bits, pos int64) int64 {
	if d.n == 0 {
		return pos
	}
	oldest := d.n - 1
	for lane, state := range d.states {
		if state != 0 {
			oldest = min(oldest, d.begin(bits, int64(lane), int64(r.nodes[state].depth)))
		}
	}
	return d.trail.at(max(0, oldest))
}

// busy reports whether what was read last may be of a value.
func (d *digits) busy() bool { return d.states != [4]int32{} }

// base64 takes b as a character of base64.
func (s *scan) base64(b, c byte) {
	d := &s.b64
	if c&inBase64 == 0 {
		if (b == '\n' || b == '\r') && d.n >= minWrap && d.gap < maxGap && d.busy() {
			d.gap++
		} else if d.n > 0 {
			d.end()
		}
		return
	}
	d.add(uint32(base64Value[b]), base64Bits, s.pos, 2*s.r.longest)
	last := d.n - 1
	if last == 0 {
		return
	}
	// The last character ends a byte in three of four alignments.
	for k := int64(1); k <= 3; k++ {
		lane, rest := (last-k)&3, 6-2*k
		state, v := d.states[lane], byte(d.acc>>rest)
		if state == 0 {
			state = s.r.root[v]
		} else {
			state = s.r.step(state, v)
		}
		d.states[lane] = state
		if n := s.r.nodes[state].found; n > 0 {
			s.mark(d.trail.at(last-(rest+8*int64(n)+5)/6+1), s.pos+1, base64Text)
		}
	}
}

// hexes takes b as a hex digit.
func (s *scan) hexes(b, c byte) {
	d := &s.hex
	if c&inHex == 0 {
		if (b == ':' || b == ' ' || b == '-' || b == '\n') && d.gap == 0 && d.busy() {
			d.gap++
		} else if d.n > 0 {
			d.end()
		}
		return
	}
	d.add(uint32(hexValue(b)), hexBits, s.pos, 2*s.r.longest)
	last := d.n - 1
	if last == 0 {
		return
	}
	lane := (last - 1) & 1
	state := s.r.step(d.states[lane], byte(d.acc))
	d.states[lane] = state
	if n := s.r.nodes[state].found; n > 0 {
		s.mark(d.trail.at(last-2*int64(n)+1), s.pos+1, hexText)
	}
}

// A style is one way to write bytes by escapes.
type style int8

const (
	percent style = iota // as in URLs
	form                 // the same, and + is a space
	slash                // as in JSON and string literals
	slashes              // the same within a string that was escaped again
	entity               // as in HTML
)

// An escape is a lane that undoes escapes of one style. It sleeps while there is
// none, because it would find then what the text shows without it.
type escape struct {
	style   style
	awake   bool
	state   int32
	n       int64 // bytes of the decoded text
	pending []byte
	trail   trail
}

// wake starts the lanes for which b begins an escape. before is the state of the
// text ahead of b.
func (s *scan) wake(b byte, before int32) {
	for i := range s.esc {
		e := &s.esc[i]
		if e.awake || !e.style.begins(b) || e.style == form && !s.r.space {
			continue
		}
		e.awake, e.state, e.n, e.pending = true, before, int64(s.r.nodes[before].depth), e.pending[:0]
		e.trail.base, e.trail.bends = s.pos-e.n, e.trail.bends[:0]
		s.awake++
	}
}

func (s style) begins(b byte) bool {
	switch s {
	case percent:
		return b == '%'
	case form:
		return b == '%' || b == '+'
	case entity:
		return b == '&'
	}
	return b == '\\'
}

// escapes gives b, which the text's own state has already, to the lanes awake.
func (s *scan) escapes(b byte) {
	for i := range s.esc {
		e := &s.esc[i]
		if !e.awake {
			continue
		}
		e.pending = append(e.pending, b)
		for len(e.pending) > 0 {
			var room [utf8.UTFMax]byte
			out, n := e.style.decode(room[:0], e.pending)
			if n == 0 {
				break // more is needed to tell
			}
			if n < 0 {
				s.literal(e)
				continue
			}
			e.pending = e.pending[:copy(e.pending, e.pending[n:])]
			for _, v := range out {
				s.follow(e, v)
			}
			if more := n - len(out); more != 0 {
				e.trail.bend(e.n, int64(more), e.n-s.r.longest)
			}
		}
		d := int64(s.r.nodes[s.raw].depth)
		if len(e.pending) == 0 && e.state == s.raw && e.trail.at(e.n-d) == s.pos+1-d {
			e.awake = false
			s.awake--
		}
	}
}

// literal takes the first pending byte for itself.
func (s *scan) literal(e *escape) {
	v := e.pending[0]
	e.pending = e.pending[:copy(e.pending, e.pending[1:])]
	s.follow(e, v)
}

// follow takes a decoded byte, whose text ends before what is pending.
func (s *scan) follow(e *escape, v byte) {
	e.state = s.r.step(e.state, v)
	e.n++
	if n := s.r.nodes[e.state].found; n > 0 {
		s.mark(e.trail.at(e.n-int64(n)), s.pos+1-int64(len(e.pending)), plainText)
	}
}

// decode appends to dst what p begins with and returns how many bytes of p that
// is: 0 if p may be the beginning of an escape, -1 if it begins with none.
func (s style) decode(dst, p []byte) ([]byte, int) {
	if !s.begins(p[0]) {
		return dst, -1
	}
	switch s {
	case percent, form:
		if p[0] == '+' {
			return append(dst, ' '), 1
		}
		v, n := number(p[1:], 2, 16)
		if n <= 0 {
			return dst, n
		}
		return append(dst, byte(v)), 1 + n
	case entity:
		return decodeEntity(dst, p)
	}
	return decodeSlash(dst, p, s == slashes)
}

// number reads size digits of a base at the beginning of p. It returns 0 if there
// are fewer until now, and -1 if it is something else.
func number(p []byte, size, base int) (v uint32, n int) {
	for i := range size {
		if i == len(p) {
			return 0, 0
		}
		d := int(hexValue(p[i]))
		if classes[p[i]]&inHex == 0 || d >= base {
			return 0, -1
		}
		v = v*uint32(base) + uint32(d)
	}
	return v, size
}

func decodeEntity(dst, p []byte) ([]byte, int) {
	for i, b := range p[1:] {
		switch {
		case b == ';' && i > 0:
			text := string(p[:i+2])
			if out := html.UnescapeString(text); out != text {
				return append(dst, out...), i + 2
			}
			return dst, -1
		case i >= maxEntity, b != '#' && (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z'):
			return dst, -1
		}
	}
	return dst, 0
}

// decodeSlash decodes an escape that begins with a backslash, or with some of them
// if the text may have been escaped more than once.
func decodeSlash(dst, p []byte, many bool) ([]byte, int) {
	k := leading(p, many)
	switch {
	case k > maxSlashes:
		return dst, -1
	case k == len(p):
		return dst, 0
	}
	c, rest := p[k], p[k+1:]
	at := func(v uint32, n, size int) ([]byte, int) {
		if n <= 0 {
			return dst, n
		}
		return utf8.AppendRune(dst, rune(v)), size
	}
	switch {
	case c == 'x':
		v, n := number(rest, 2, 16)
		if n <= 0 {
			return dst, n
		}
		return append(dst, byte(v)), k + 3
	case c == 'U':
		v, n := number(rest, 8, 16)
		return at(v, n, k+9)
	case c == 'u' && len(rest) > 0 && rest[0] == '{':
		end := bytes.IndexByte(rest, '}')
		switch {
		case end < 0 && len(rest) <= 7:
			return dst, 0
		case end < 2 || end > 7:
			return dst, -1
		}
		v, n := number(rest[1:end], end-1, 16)
		return at(v, n, k+2+end)
	case c == 'u':
		v, n := number(rest, 4, 16)
		if n <= 0 || v&0xfc00 != 0xd800 {
			return at(v, n, k+5)
		}
		// The first half of a pair.
		second := rest[4:]
		j := leading(second, many)
		switch {
		case len(second) == 0, j > 0 && j <= maxSlashes && j == len(second):
			return dst, 0
		case j == 0 || j > maxSlashes || second[j] != 'u':
			return dst, -1
		}
		low, n := number(second[j+1:], 4, 16)
		if n > 0 && low&0xfc00 != 0xdc00 {
			n = -1
		}
		return at(0x10000+(v&0x3ff)<<10+low&0x3ff, n, k+5+j+5)
	case c >= '0' && c <= '7':
		v, n := number(p[k:], 3, 8)
		if n <= 0 {
			return dst, n
		}
		return append(dst, byte(v)), k + 3
	}
	if i := bytes.IndexByte([]byte("n\nt\tr\rb\bf\fv\va\ae\x1b"), c); i >= 0 && i%2 == 0 {
		return append(dst, "n\nt\tr\rb\bf\fv\va\ae\x1b"[i+1]), k + 1
	}
	if c > ' ' && c < 0x7f && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
		return append(dst, c), k + 1
	}
	return dst, -1
}

// leading returns how many backslashes p begins with, at most one unless many.
func leading(p []byte, many bool) int {
	k := 0
	for k < len(p) && p[k] == '\\' && (many || k == 0) {
		k++
	}
	return k
}

// What a byte can be part of.
const (
	inBase64 = 1 << iota // of either alphabet
	inHex
	begins // an escape of some style
)

var (
	classes     = classify()
	base64Value = base64Values()
)

func classify() (c [256]byte) {
	for i := range c {
		b := byte(i)
		if b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || bytes.IndexByte([]byte("+/-_"), b) >= 0 {
			c[i] |= inBase64
		}
		if b >= '0' && b <= '9' || b >= 'a' && b <= 'f' || b >= 'A' && b <= 'F' {
			c[i] |= inHex
		}
		for e := percent; e <= entity; e++ {
			if e.begins(b) {
				c[i] |= begins
			}
		}
	}
	return c
}

func base64Values() (v [256]byte) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for i := range len(alphabet) {
		v[alphabet[i]] = byte(i)
	}
	v['+'], v['-'], v['/'], v['_'] = 62, 62, 63, 63
	return v
}

func hexValue(b byte) byte {
	if b <= '9' {
		return b - '0'
	}
	return b | 0x20 - 'a' + 10
}
