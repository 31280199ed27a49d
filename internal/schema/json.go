// Package schema reads JSON strictly and holds it against JSON Schemas, within
// bounds of work that neither the schema nor the document can exceed.
//
// A [Document] is read once and never built twice: it is a flat list of places in
// the bytes. [Schema.Validate] marks in it the text that the schema pins down, and
// [Document.Free] lists what is left, for a search that costs more.
package schema

import (
	"bytes"
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Bounds of a document.
const (
	MaxDepth    = 128     // of objects and arrays within each other, whatever Parse is asked for
	MaxValues   = 250_000 // values, names of members not counted
	maxNumber   = 128     // bytes of a number
	maxExponent = 400     // of a number, either way
	maxBytes    = 64 << 20
	fewMembers  = 12       // up to which names are compared one by one
	maxRoom     = 4096     // nodes that there is room for at once, and that a [Reader] keeps
	maxKeptText = 64 << 10 // bytes of the text of strings with escapes that it keeps
)

// Kind is what a value is.
type Kind uint8

// Kinds of values.
const (
	Null Kind = iota
	False
	True
	Number
	String
	Array
	Object
)

// node is one value, or one name of a member, which stands before its value.
type node struct {
	start, end uint32 // in data, or in text for a string with escapes; of a string what is within the quotes
	next       uint32 // index of the node after this one and all below it
	count      uint32 // members or items
	kind       Kind
	own        bool // whether the string stands in text
	name       bool // whether it is a member's name
	pinned     bool // whether a schema pins it down
	named      bool // whether it is a member's name that stands among a schema's properties
}

// Document is JSON that was read. It is for one goroutine at a time, and holds on
// to the bytes that it was read from.
type Document struct {
	data   []byte
	text   []byte // of strings with escapes, without them
	nodes  []node
	values int
	proto  int32 // the first name that reaches for a prototype, or -1
}

// A ParseError is why bytes are no JSON, or none with one meaning. It tells no
// byte of them.
type ParseError struct {
	Offset int    // of the byte at which it shows
	Reason string // such as "has one name twice in an object"
}

// Error says what is wrong, as the end of a sentence about the document.
func (e *ParseError) Error() string { return e.Reason }

// Parse reads one JSON value and nothing after it. It refuses what two readers
// could understand differently, and what costs too much: bytes that are not UTF-8,
// an object with one name twice, half of a surrogate pair, more than depth levels,
// numbers of more than 128 bytes or with exponents beyond 400, more than
// [MaxValues] values. Its error is a *ParseError. data must not change afterwards.
func Parse(data []byte, depth int) (*Document, error) {
	d := &Document{}
	if err := d.parse(data, depth); err != nil {
		return nil, err
	}
	return d, nil
}

// Reader reads documents in the room of those that it was given back. The zero value
// is ready; it is safe for concurrent use.
type Reader struct{ idle sync.Pool }

// Parse is [Parse].
func (r *Reader) Parse(data []byte, depth int) (*Document, error) {
	d, ok := r.idle.Get().(*Document)
	if !ok {
		d = &Document{}
	}
	if err := d.parse(data, depth); err != nil {
		r.Release(d)
		return nil, err
	}
	return d, nil
}

// Release takes back a document, which must not be used again; nil is none.
func (r *Reader) Release(d *Document) {
	if d == nil || cap(d.nodes) > maxRoom || cap(d.text) > maxKeptText {
		return // the next one is seldom as large
	}
	*d = Document{nodes: d.nodes[:0], text: d.text[:0]}
	r.idle.Put(d)
}

// parse reads data into d, which is empty.
func (d *Document) parse(data []byte, depth int) error {
	d.data, d.proto = data, -1
	p := parser{Document: d, depth: min(depth, MaxDepth)}
	if len(data) > maxBytes {
		return &ParseError{0, "is too large"}
	}
	if !utf8.Valid(data) {
		return &ParseError{0, "is not UTF-8"}
	}
	if n := min(room(data), maxRoom); cap(d.nodes) < n {
		d.nodes = make([]node, 0, n)
	}
	p.space()
	if err := p.value(0, false); err != nil {
		return err
	}
	p.space()
	if p.at < len(data) {
		return p.wrong("goes on after the end of its JSON")
	}
	return nil
}

// room returns how many nodes a document has, or a few more if what stands between
// values stands in its strings, too.
func room(data []byte) int {
	n := 1
	for _, c := range []string{",", ":", "{", "["} {
		n += bytes.Count(data, []byte(c))
	}
	return min(n, len(data)/2+1) // a value and what follows it
}

// Len returns how many values the document has.
func (d *Document) Len() int { return d.values }

// Kind returns what the whole is.
func (d *Document) Kind() Kind { return d.nodes[0].kind }

// Prototype returns the JSON pointer of a member that reaches for the prototype of
// objects in JavaScript: "__proto__", or "prototype" within "constructor". It is ""
// if there is none, or only such that a schema names among its properties.
func (d *Document) Prototype() string {
	if d.proto < 0 {
		return ""
	}
	for i := int(d.proto); i < len(d.nodes); i++ {
		if n := &d.nodes[i]; n.name && !n.named {
			switch string(d.string(n)) {
			case "__proto__":
				return d.Pointer(i)
			case "prototype":
				if d.within(i) == "constructor" {
					return d.Pointer(i)
				}
			}
		}
	}
	return ""
}

// within returns the name of the member whose object has the name at i, or "".
func (d *Document) within(i int) string {
	p := d.Pointer(i)
	parts := strings.Split(p, "/")
	if len(parts) < 3 {
		return ""
	}
	return parts[len(parts)-2]
}

// Leaf is a piece of text in a document: a string, or a member's name.
type Leaf struct {
	Text string
	Name bool // whether it is a member's name
	Node int  // where it stands, for [Document.Pointer]
}

// Free yields the text that no schema has pinned down: all of it, before
// [Schema.Validate]. Pinned down is what a schema names (a property, a value of
// enum or const), what has a format or a pattern in which nothing but letters,
// digits and a few harmless marks have room, and what is shorter than three
// characters.
func (d *Document) Free() iter.Seq[Leaf] {
	return func(yield func(Leaf) bool) {
		for i := range d.nodes {
			n := &d.nodes[i]
			if n.kind == String && !n.pinned && n.end > n.start {
				if !yield(Leaf{string(d.string(n)), n.name, i}) {
					return
				}
			}
		}
	}
}

// Pointer returns the JSON pointer (RFC 6901) to the value at a node, or to the
// value of the member whose name is there. It is "" for the whole.
func (d *Document) Pointer(node int) string {
	var b strings.Builder
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for at := 0; at < node; {
		n := &d.nodes[at]
		i := at + 1
		switch n.kind {
		case Object:
			for int(d.nodes[i+1].next) <= node {
				i = int(d.nodes[i+1].next)
			}
			b.WriteByte('/')
			b.WriteString(escape.Replace(string(d.string(&d.nodes[i]))))
			if i == node {
				return b.String()
			}
			at = i + 1
		case Array:
			index := 0
			for ; int(d.nodes[i].next) <= node; index++ {
				i = int(d.nodes[i].next)
			}
			b.WriteString("/" + strconv.Itoa(index))
			at = i
		default:
			return b.String()
		}
	}
	return b.String()
}

// string returns the text of a string, or the digits of a number.
func (d *Document) string(n *node) []byte {
	if n.own {
		return d.text[n.start:n.end]
	}
	return d.data[n.start:n.end]
}

// parser reads a document.
type parser struct {
	*Document
	at    int
	depth int
}

func (p *parser) wrong(format string, args ...any) error {
	return &ParseError{p.at, fmt.Sprintf(format, args...)}
}

func (p *parser) space() {
	for p.at < len(p.data) && p.data[p.at] <= ' ' {
		switch p.data[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// value reads the value that begins here. inConstructor says that it is the value
// of a member "constructor".
func (p *parser) value(level int, inConstructor bool) error {
	if p.at >= len(p.data) {
		return p.wrong("is not JSON: it ends too early")
	}
	if p.values++; p.values > MaxValues {
		return p.wrong("has more than %d values", MaxValues)
	}
	switch c := p.data[p.at]; {
	case c == '"':
		return p.str(false)
	case c == '{':
		return p.object(level+1, inConstructor)
	case c == '[':
		return p.array(level + 1)
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case c == 't':
		return p.word("true", True)
	case c == 'f':
		return p.word("false", False)
	case c == 'n':
		return p.word("null", Null)
	}
	return p.wrong("is not JSON")
}

func (p *parser) add(n node) {
	n.next = uint32(len(p.nodes) + 1)
	p.nodes = append(p.nodes, n)
}

func (p *parser) word(word string, kind Kind) error {
	if len(p.data)-p.at < len(word) || string(p.data[p.at:p.at+len(word)]) != word {
		return p.wrong("is not JSON")
	}
	p.add(node{start: uint32(p.at), end: uint32(p.at + len(word)), kind: kind})
	p.at += len(word)
	return nil
}

func (p *parser) digits() bool {
	at := p.at
	for at < len(p.data) && p.data[at]-'0' <= 9 {
		at++
	}
	some := at > p.at
	p.at = at
	return some
}

func (p *parser) number() error {
	from := p.at
	if p.data[p.at] == '-' {
		p.at++
	}
	switch {
	case p.at < len(p.data) && p.data[p.at] == '0':
		p.at++
	case !p.digits():
		return p.wrong("is not JSON: a number has no digits")
	}
	if p.at < len(p.data) && p.data[p.at] == '.' {
		if p.at++; !p.digits() {
			return p.wrong("is not JSON: a number ends with its point")
		}
	}
	if p.at < len(p.data) && (p.data[p.at] == 'e' || p.data[p.at] == 'E') {
		p.at++
		if p.at < len(p.data) && (p.data[p.at] == '+' || p.data[p.at] == '-') {
			p.at++
		}
		digits := p.at
		if !p.digits() {
			return p.wrong("is not JSON: a number has an exponent without digits")
		}
		size := 0
		for _, c := range p.data[digits:p.at] {
			if size = size*10 + int(c-'0'); size > maxExponent {
				return p.wrong("has a number that is too long or too large")
			}
		}
	}
	if p.at-from > maxNumber {
		return p.wrong("has a number that is too long or too large")
	}
	p.add(node{start: uint32(from), end: uint32(p.at), kind: Number})
	return nil
}

// ordinary says of each byte whether it stands for itself within a string.
var ordinary = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c != '"' && c != '\\'
	}
	return t
}()

// str reads a string, or a member's name.
func (p *parser) str(name bool) error {
	from := p.at + 1
	at := from
	for at < len(p.data) && ordinary[p.data[at]] {
		at++
	}
	p.at = at
	switch {
	case at == len(p.data):
		return p.wrong("is not JSON: a string does not end")
	case p.data[at] == '"':
		p.add(node{start: uint32(from), end: uint32(at), kind: String, name: name})
		p.at++
		return nil
	case p.data[at] == '\\':
		return p.escaped(from, name)
	}
	return p.wrong("is not JSON: a string has a control character")
}

// escaped reads the rest of a string that has an escape here.
func (p *parser) escaped(from int, name bool) error {
	start := len(p.text)
	p.text = append(p.text, p.data[from:p.at]...)
	for p.at < len(p.data) {
		c := p.data[p.at]
		switch {
		case c == '"':
			p.add(node{start: uint32(start), end: uint32(len(p.text)), kind: String, own: true, name: name})
			p.at++
			return nil
		case c < 0x20:
			return p.wrong("is not JSON: a string has a control character")
		case c != '\\':
			p.text = append(p.text, c)
			p.at++
			continue
		}
		if p.at++; p.at >= len(p.data) {
			break
		}
		switch c := p.data[p.at]; c {
		case '"', '\\', '/':
			p.text = append(p.text, c)
		case 'b':
			p.text = append(p.text, '\b')
		case 'f':
			p.text = append(p.text, '\f')
		case 'n':
			p.text = append(p.text, '\n')
		case 'r':
			p.text = append(p.text, '\r')
		case 't':
			p.text = append(p.text, '\t')
		case 'u':
			r, ok := p.hex(p.at + 1)
			if !ok {
				return p.wrong("is not JSON: a string has an escape that is none")
			}
			p.at += 4
			if r >= 0xdc00 && r < 0xe000 {
				return p.wrong("has half of a surrogate pair in a string")
			}
			if r >= 0xd800 && r < 0xdc00 {
				low, ok := rune(0), p.at+2 < len(p.data) && p.data[p.at+1] == '\\' && p.data[p.at+2] == 'u'
				if ok {
					low, ok = p.hex(p.at + 3)
				}
				if !ok || low < 0xdc00 || low > 0xdfff {
					return p.wrong("has half of a surrogate pair in a string")
				}
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
				p.at += 6
			}
			p.text = utf8.AppendRune(p.text, r)
		default:
			return p.wrong("is not JSON: a string has an escape that is none")
		}
		p.at++
	}
	return p.wrong("is not JSON: a string does not end")
}

// hex reads four hexadecimal digits.
func (p *parser) hex(at int) (rune, bool) {
	if at+4 > len(p.data) {
		return 0, false
	}
	var r rune
	for _, c := range p.data[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (p *parser) array(level int) error {
	if level > p.depth {
		return p.wrong("is deeper than %d levels", p.depth)
	}
	me := len(p.nodes)
	p.add(node{start: uint32(p.at), kind: Array})
	p.at++
	p.space()
	count := uint32(0)
	if p.at < len(p.data) && p.data[p.at] == ']' {
		p.at++
	} else {
		for {
			p.space()
			if err := p.value(level, false); err != nil {
				return err
			}
			count++
			if end, err := p.more(']'); err != nil {
				return err
			} else if end {
				break
			}
		}
	}
	p.close(me, count)
	return nil
}

// more reads what stands after an item: a comma, or the end.
func (p *parser) more(end byte) (bool, error) {
	p.space()
	if p.at >= len(p.data) {
		return false, p.wrong("is not JSON: it ends too early")
	}
	switch p.data[p.at] {
	case ',':
		p.at++
		return false, nil
	case end:
		p.at++
		return true, nil
	}
	return false, p.wrong("is not JSON")
}

func (p *parser) close(me int, count uint32) {
	n := &p.nodes[me]
	n.end, n.next, n.count = uint32(p.at), uint32(len(p.nodes)), count
}

func (p *parser) object(level int, inConstructor bool) error {
	if level > p.depth {
		return p.wrong("is deeper than %d levels", p.depth)
	}
	me := len(p.nodes)
	p.add(node{start: uint32(p.at), kind: Object})
	p.at++
	p.space()
	count := uint32(0)
	if p.at < len(p.data) && p.data[p.at] == '}' {
		p.at++
		p.close(me, 0)
		return nil
	}
	var names map[string]struct{} // once there are many
	var marks uint64              // of the names so far, of which two seldom have the same
	for {
		p.space()
		if p.at >= len(p.data) || p.data[p.at] != '"' {
			return p.wrong("is not JSON: an object's member has no name")
		}
		at := len(p.nodes)
		if err := p.str(true); err != nil {
			return err
		}
		name := p.string(&p.nodes[at])
		if count == fewMembers {
			names = make(map[string]struct{}, 2*fewMembers)
			for i, k := me+1, uint32(0); k < count; k++ {
				names[string(p.string(&p.nodes[i]))] = struct{}{}
				i = int(p.nodes[i+1].next)
			}
		}
		if names != nil {
			before := len(names)
			if names[string(name)] = struct{}{}; len(names) == before {
				return p.wrong("has one name twice in an object")
			}
		} else {
			mark := markOf(name)
			for i, k := me+1, uint32(0); marks&mark != 0 && k < count; k++ {
				if string(p.string(&p.nodes[i])) == string(name) {
					return p.wrong("has one name twice in an object")
				}
				i = int(p.nodes[i+1].next)
			}
			marks |= mark
		}
		if p.proto < 0 && (string(name) == "__proto__" || inConstructor && string(name) == "prototype") {
			p.proto = int32(at)
		}
		constructor := string(name) == "constructor"
		p.space()
		if p.at >= len(p.data) || p.data[p.at] != ':' {
			return p.wrong("is not JSON: a member's name has no value")
		}
		p.at++
		p.space()
		if err := p.value(level, constructor); err != nil {
			return err
		}
		count++
		if end, err := p.more('}'); err != nil {
			return err
		} else if end {
			break
		}
	}
	p.close(me, count)
	return nil
}

// markOf returns one bit, the same for equal names.
func markOf(name []byte) uint64 {
	h := uint(len(name))
	if h > 0 {
		h += uint(name[0])*7 + uint(name[h-1])*31
	}
	return 1 << (h & 63)
}

// member returns the node of the value of an object's member, or 0.
func (d *Document) member(object int, name string) int {
	n := &d.nodes[object]
	for i, k := object+1, uint32(0); k < n.count; k++ {
		if string(d.string(&d.nodes[i])) == name {
			return i + 1
		}
		i = int(d.nodes[i+1].next)
	}
	return 0
}

// decimal is m·10^e.
type decimal struct {
	m int64
	e int32
}

// parseDecimal reads a number's text. It reports false for one with too many
// digits.
func parseDecimal(s []byte) (x decimal, ok bool) {
	i, negative, point := 0, false, false
	if len(s) > 0 && s[0] == '-' {
		negative, i = true, 1
	}
	for digits := 0; i < len(s); i++ {
		c := s[i]
		if c == '.' {
			point = true
			continue
		}
		if c == 'e' || c == 'E' {
			break
		}
		if x.m != 0 || c != '0' {
			if digits++; digits > 17 {
				return x, false
			}
		}
		x.m = x.m*10 + int64(c-'0')
		if point {
			x.e--
		}
	}
	if i < len(s) {
		e, err := strconv.Atoi(strings.TrimPrefix(string(s[i+1:]), "+"))
		if err != nil || e > maxExponent || e < -maxExponent {
			return x, false
		}
		x.e += int32(e)
	}
	if x.m == 0 {
		x.e = 0
	}
	for x.e < 0 && x.m%10 == 0 { // 1.0 is whole
		x.m /= 10
		x.e++
	}
	if negative {
		x.m = -x.m
	}
	return x, true
}

// scale returns m·10^by, or false if it does not fit.
func scale(m int64, by int32) (int64, bool) {
	for ; by > 0 && m != 0; by-- {
		if by > 20 {
			return 0, false
		}
		size := uint64(m)
		if m < 0 {
			size = uint64(-m)
		}
		hi, lo := bits.Mul64(size, 10)
		if hi != 0 || lo > 1<<62 {
			return 0, false
		}
		m *= 10
	}
	return m, true
}

// cmp compares two numbers, or reports that it cannot.
func (x decimal) cmp(y decimal) (int, bool) {
	a, b, ok := x.m, y.m, true
	switch {
	case x.e > y.e:
		a, ok = scale(a, x.e-y.e)
	case y.e > x.e:
		b, ok = scale(b, y.e-x.e)
	}
	switch {
	case !ok:
		return 0, false
	case a < b:
		return -1, true
	case a > b:
		return 1, true
	}
	return 0, true
}

// multiple reports whether x is a whole multiple of y, or that it cannot say.
func (x decimal) multiple(y decimal) (yes, ok bool) {
	a, b, ok := x.m, y.m, true
	switch {
	case x.e > y.e:
		a, ok = scale(a, x.e-y.e)
	case y.e > x.e:
		b, ok = scale(b, y.e-x.e)
	}
	if !ok || b == 0 {
		return false, false
	}
	return a%b == 0, true
}
