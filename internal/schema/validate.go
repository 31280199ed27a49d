package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the work of one document. A schema can ask for exponentially much, and
// nothing else ends it.
const (
	freeSteps     = 20_000  // visits of a schema or of a value for any document, and
	stepsPerValue = 16      // as many more for each value in it
	freeText      = 4 << 20 // bytes of text times what a pattern comes to, and
	textPerByte   = 64      // as much more for each byte of the document
	regexCost     = 1000    // what a byte of a text of the format regex comes to
	maxNested     = 4096    // schemas within schemas at one time
	maxTold       = 2000    // values in a document of which is said what does not fit
	maxMisfits    = 8
	maxPlace      = 200 // bytes of a pointer that is told
	fewItems      = 16  // up to which items are compared one by one
)

// Misfit is one place where a document does not fit. It tells no value.
type Misfit struct {
	Pointer string // JSON pointer into the document, cut at 200 bytes
	Keyword string // of the schema
}

// String writes the place and the keyword.
func (m Misfit) String() string {
	place := m.Pointer
	if place == "" {
		return fmt.Sprintf("%q (%s)", "the whole", m.Keyword)
	}
	return fmt.Sprintf("%q (%s)", place, m.Keyword)
}

// A ValidationError is why a document does not fit a schema.
type ValidationError struct {
	Misfits []Misfit // innermost first, at most eight; none for a large document
	Work    bool     // whether to find out takes more work than the document is worth
}

// Error tells the places.
func (e *ValidationError) Error() string {
	if e.Work {
		return "to hold it against the schema takes too much work"
	}
	var all []string
	for _, m := range e.Misfits {
		all = append(all, m.String())
	}
	if len(all) == 0 {
		return "it does not fit the schema"
	}
	return "it does not fit the schema: " + strings.Join(all, ", ")
}

var errTooMuch = errors.New("too much work")

// Validate holds d against the schema, and marks in d what the schema pins down.
// Its error is a *ValidationError.
func (s *Schema) Validate(d *Document) error {
	r := run{d: d, s: s}
	ok, err := r.whole()
	switch {
	case err != nil:
		return err
	case ok:
		return nil
	}
	e := &ValidationError{}
	if d.values <= maxTold {
		r = run{d: d, s: s, why: &e.Misfits}
		_, _ = r.whole() // too much work to say why is no reason to say less
	}
	return e
}

// run is one document on its way through a schema.
type run struct {
	d           *Document
	s           *Schema
	steps, text int64 // that are left
	depth       int
	scope       *scope
	why         *[]Misfit // nil if nobody wants to know
}

// scope is a resource on the way to the rule that is looked at; only with
// $dynamicRef.
type scope struct {
	resource int
	outer    *scope
}

// seen says which members or items of a value were evaluated.
type seen []uint64

func newSeen(n uint32) seen      { return make(seen, (n+63)/64) }
func (s seen) add(i uint32)      { s[i/64] |= 1 << (i % 64) }
func (s seen) has(i uint32) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s seen) merge(o seen) {
	for i := range o {
		s[i] |= o[i]
	}
}

func (r *run) whole() (ok bool, err error) {
	r.steps = freeSteps + stepsPerValue*int64(len(r.d.nodes))
	r.text = freeText + textPerByte*int64(len(r.d.data))
	defer func() {
		switch p := recover(); p {
		case nil:
		case errTooMuch:
			err = &ValidationError{Work: true}
		default:
			panic(p)
		}
	}()
	return r.eval(r.s.root, 0, nil), nil
}

func (r *run) work(steps, text int64) {
	r.steps -= steps
	if r.text -= text; r.steps < 0 || r.text < 0 {
		panic(errTooMuch)
	}
}

// miss notes that a keyword does not hold. It reports whether to look for more.
func (r *run) miss(at int, keyword string) bool {
	if r.why == nil {
		return false
	}
	if len(*r.why) < maxMisfits {
		place := r.d.Pointer(at)
		if len(place) > maxPlace {
			place = strings.ToValidUTF8(place[:maxPlace], "") + "..."
		}
		*r.why = append(*r.why, Misfit{place, keyword})
	}
	return true
}

// quietly is eval of what may fail without the whole failing: what it says is
// forgotten.
func (r *run) quietly(u *rule, at int, ev seen) bool {
	why := r.why
	r.why = nil
	ok := r.eval(u, at, ev)
	r.why = why
	return ok
}

// eval reports whether the value at a node fits u, and adds what was evaluated of it
// to ev, unless that is nil.
func (r *run) eval(u *rule, at int, ev seen) bool {
	r.work(1, 0)
	if u.leaf {
		return r.leaf(u, at)
	}
	if u.always != 0 {
		return u.always > 0 || r.miss(at, "false") && false
	}
	if r.depth++; r.depth > maxNested {
		panic(errTooMuch)
	}
	if r.s.dynamic && (r.scope == nil || r.scope.resource != u.resource) {
		before := r.scope
		r.scope = &scope{u.resource, before}
		ok := r.keywords(u, at, ev)
		r.scope, r.depth = before, r.depth-1
		return ok
	}
	ok := r.keywords(u, at, ev)
	r.depth--
	return ok
}

// leaf is eval of what says something of one value alone.
func (r *run) leaf(u *rule, at int) bool {
	n := &r.d.nodes[at]
	if u.types != 0 && !u.types.has(n.kind) && !(n.kind == Number && u.types&whole != 0 && r.isWhole(n)) {
		return r.miss(at, "type") && false
	}
	switch n.kind {
	case String:
		return r.str(u, at, n)
	case Number:
		return r.number(u, at, n)
	}
	return true
}

func (r *run) keywords(u *rule, at int, ev seen) bool {
	if u.only != nil {
		return r.eval(u.only, at, ev)
	}
	n := &r.d.nodes[at]
	outer, own := ev, false
	if u.unevaluatedProperties != nil && n.kind == Object || u.unevaluatedItems != nil && n.kind == Array {
		ev, own = newSeen(n.count), true // cousins are not seen
		r.work(int64(len(ev)), 0)
	}
	ok := true
	if u.types != 0 && !u.types.has(n.kind) && !(n.kind == Number && u.types&whole != 0 && r.isWhole(n)) {
		return r.miss(at, "type") && false // all else would only be noise
	}
	for i := range u.literals {
		if !r.literal(&u.literals[i], at) {
			if ok = false; !r.miss(at, u.literals[i].keyword) {
				return false
			}
		}
	}
	good := true
	switch n.kind {
	case String:
		good = r.str(u, at, n)
	case Number:
		good = r.number(u, at, n)
	case Object:
		good = !u.object || r.object(u, at, n, ev)
	case Array:
		good = !u.array || r.array(u, at, n, ev)
	}
	if ok = ok && good; !ok && r.why == nil {
		return false
	}
	if u.besides {
		if ok = r.inPlace(u, at, ev) && ok; !ok && r.why == nil {
			return false
		}
	}
	if ok && u.unevaluatedProperties != nil && n.kind == Object {
		ok = r.unevaluatedProperties(u, at, n, ev)
	}
	if ok && u.unevaluatedItems != nil && n.kind == Array {
		ok = r.unevaluatedItems(u, at, n, ev)
	}
	if ok && own && outer != nil {
		outer.merge(ev)
	}
	return ok
}

// inPlace looks at the schemas that are about the same value.
func (r *run) inPlace(u *rule, at int, ev seen) bool {
	ok := true
	branch := func() seen { // for a schema that may fail
		if ev == nil {
			return nil
		}
		r.work(int64(len(ev)), 0)
		return make(seen, len(ev))
	}
	if u.ref != nil && !r.eval(u.ref, at, ev) {
		if ok = false; r.why == nil {
			return false
		}
	}
	if u.dynamic != nil && !r.eval(r.target(u), at, ev) {
		if ok = false; r.why == nil {
			return false
		}
	}
	for _, s := range u.allOf {
		if !r.eval(s, at, ev) {
			if ok = false; r.why == nil {
				return false
			}
		}
	}
	if u.anyOf != nil {
		matched := false
		for _, s := range u.anyOf {
			b := branch()
			if r.quietly(s, at, b) {
				matched = true
				if ev == nil {
					break // for what is evaluated all must be looked at
				}
				ev.merge(b)
			}
		}
		if !matched {
			ok = false
			if !r.because(u.anyOf, at, "anyOf") {
				return false
			}
		}
	}
	if u.oneOf != nil {
		matched := 0
		for _, s := range u.oneOf {
			b := branch()
			if r.quietly(s, at, b) {
				if matched++; matched > 1 {
					break
				}
				ev.merge(b)
			}
		}
		switch {
		case matched > 1:
			if ok = false; !r.miss(at, "oneOf") {
				return false
			}
		case matched == 0:
			ok = false
			if !r.because(u.oneOf, at, "oneOf") {
				return false
			}
		}
	}
	if u.not != nil && r.quietly(u.not, at, nil) {
		if ok = false; !r.miss(at, "not") {
			return false
		}
	}
	if u.when != nil {
		b := branch()
		next := u.elze
		if r.quietly(u.when, at, b) {
			next = u.then
			ev.merge(b)
		}
		if next != nil && !r.eval(next, at, ev) {
			ok = false
		}
	}
	return ok
}

// because says why a value fits none of some schemas.
func (r *run) because(all []*rule, at int, keyword string) bool {
	if r.why == nil {
		return false
	}
	before := len(*r.why)
	for _, s := range all {
		r.eval(s, at, nil)
	}
	if len(*r.why) == before {
		r.miss(at, keyword)
	}
	return true
}

// target returns what a $dynamicRef leads to from here.
func (r *run) target(u *rule) *rule {
	t := u.dynamic
	if u.anchor == "" {
		return t
	}
	for s := r.scope; s != nil; s = s.outer {
		r.work(1, 0)
		if a := r.s.anchors[s.resource][u.anchor]; a != nil {
			t = a // the outermost counts
		}
	}
	return t
}

// literal reports whether the value is one of those, and pins it down if so.
func (r *run) literal(l *literal, at int) bool {
	n := &r.d.nodes[at]
	if n.kind == String {
		if _, ok := l.words[string(r.d.string(n))]; ok {
			n.pinned = true
			return true
		}
		return false
	}
	for _, v := range l.values {
		if r.equal(at, v) {
			for i := at; i < int(n.next); i++ {
				r.d.nodes[i].pinned = true
			}
			r.work(int64(int(n.next)-at), 0)
			return true
		}
	}
	return false
}

// equal reports whether the value at a node is v, which the library has read.
func (r *run) equal(at int, v any) bool {
	r.work(1, 0)
	n := &r.d.nodes[at]
	switch v := v.(type) {
	case nil:
		return n.kind == Null
	case bool:
		return n.kind == True && v || n.kind == False && !v
	case string:
		return n.kind == String && string(r.d.string(n)) == v
	case json.Number:
		return n.kind == Number && r.compare(r.d.string(n), []byte(v)) == 0
	case []any:
		if n.kind != Array || int(n.count) != len(v) {
			return false
		}
		i := at + 1
		for _, item := range v {
			if !r.equal(i, item) {
				return false
			}
			i = int(r.d.nodes[i].next)
		}
		return true
	case map[string]any:
		if n.kind != Object || int(n.count) != len(v) {
			return false
		}
		i := at + 1
		for range n.count {
			value, ok := v[string(r.d.string(&r.d.nodes[i]))]
			if !ok || !r.equal(i+1, value) {
				return false
			}
			i = int(r.d.nodes[i+1].next)
		}
		return true
	}
	return false
}

// same reports whether two values of the document are equal.
func (r *run) same(a, b int) bool {
	r.work(1, 0)
	x, y := &r.d.nodes[a], &r.d.nodes[b]
	if x.kind != y.kind || x.count != y.count {
		return false
	}
	switch x.kind {
	case String:
		return string(r.d.string(x)) == string(r.d.string(y))
	case Number:
		return r.compare(r.d.string(x), r.d.string(y)) == 0
	case Array:
		i, k := a+1, b+1
		for range x.count {
			if !r.same(i, k) {
				return false
			}
			i, k = int(r.d.nodes[i].next), int(r.d.nodes[k].next)
		}
	case Object:
		other := make(map[string]int, y.count)
		k := b + 1
		for range y.count {
			other[string(r.d.string(&r.d.nodes[k]))] = k + 1
			k = int(r.d.nodes[k+1].next)
		}
		i := a + 1
		for range x.count {
			k, ok := other[string(r.d.string(&r.d.nodes[i]))]
			if !ok || !r.same(i+1, k) {
				return false
			}
			i = int(r.d.nodes[i+1].next)
		}
	}
	return true
}

// compare compares two numbers.
func (r *run) compare(a, b []byte) int {
	x, exactX := parseDecimal(a)
	y, exactY := parseDecimal(b)
	if exactX && exactY {
		if c, ok := x.cmp(y); ok {
			return c
		}
	}
	r.work(20, 0)
	return ratOf(a).Cmp(ratOf(b))
}

func ratOf(s []byte) *big.Rat {
	x, ok := new(big.Rat).SetString(string(s))
	if !ok {
		return new(big.Rat)
	}
	return x
}

// isWhole reports whether a number has no fraction.
func (r *run) isWhole(n *node) bool {
	s := r.d.string(n)
	if !bytes.ContainsAny(s, ".eE") {
		return true
	}
	if x, ok := parseDecimal(s); ok {
		return x.e >= 0 || x.m == 0
	}
	r.work(20, 0)
	return ratOf(s).IsInt()
}

func (r *run) number(u *rule, at int, n *node) bool {
	if len(u.bounds) == 0 {
		return true
	}
	s := r.d.string(n)
	x, exact := parseDecimal(s)
	ok := true
	for i := range u.bounds {
		if b := &u.bounds[i]; !r.within(b, x, exact, s) {
			if ok = false; !r.miss(at, b.keyword) {
				return false
			}
		}
	}
	return ok
}

func (r *run) within(b *bound, x decimal, exact bool, s []byte) bool {
	if exact && b.exact {
		if b.ok == nil {
			if yes, ok := x.multiple(b.dec); ok {
				return yes
			}
		} else if c, ok := x.cmp(b.dec); ok {
			return b.ok(c)
		}
	}
	r.work(20, 0)
	v := ratOf(s)
	if b.ok != nil {
		return b.ok(v.Cmp(b.rat))
	}
	return b.rat.Sign() != 0 && v.Quo(v, b.rat).IsInt()
}

func (r *run) str(u *rule, at int, n *node) bool {
	s := r.d.string(n)
	ok := true
	if u.minLength >= 0 || u.maxLength >= 0 {
		length := utf8.RuneCount(s)
		if u.minLength >= 0 && length < u.minLength {
			if ok = false; !r.miss(at, "minLength") {
				return false
			}
		}
		if u.maxLength >= 0 {
			if length > u.maxLength {
				if ok = false; !r.miss(at, "maxLength") {
					return false
				}
			} else if u.maxLength <= maxShort {
				n.pinned = true
			}
		}
	}
	if u.pattern != nil {
		if !r.match(u.pattern, s) {
			if ok = false; !r.miss(at, "pattern") {
				return false
			}
		} else if u.pattern.safe && len(s) <= maxPinned {
			n.pinned = true
		}
	}
	if u.format != nil {
		if u.format.Name == "regex" {
			r.work(0, regexCost*int64(len(s)))
		}
		if (u.surely == nil || !u.surely(s)) && u.format.Validate(string(s)) != nil {
			if ok = false; !r.miss(at, "format") {
				return false
			}
		} else if u.pins && len(s) <= maxPinned && harmlessText(s) {
			n.pinned = true
		}
	}
	return ok
}

func harmlessText(s []byte) bool {
	for _, c := range s {
		if !harmlessASCII.has(c) {
			return false
		}
	}
	return true
}

func (r *run) match(p *pattern, s []byte) bool {
	r.work(1, p.cost*int64(len(s)))
	return p.match(s)
}

func (r *run) object(u *rule, at int, n *node, ev seen) bool {
	ok := true
	if u.minProperties >= 0 && int(n.count) < u.minProperties {
		if ok = false; !r.miss(at, "minProperties") {
			return false
		}
	}
	if u.maxProperties >= 0 && int(n.count) > u.maxProperties {
		if ok = false; !r.miss(at, "maxProperties") {
			return false
		}
	}
	required, surplus := 0, false
	i := at + 1
	for k := range n.count {
		key := &r.d.nodes[i]
		name := r.d.string(key)
		value := i + 1
		evaluated := false
		r.work(1, 0)
		if m, has := u.member(name); has {
			if m.required {
				required++
			}
			if m.rule != nil {
				key.pinned, key.named, evaluated = true, true, true
				if !r.eval(m.rule, value, nil) {
					if ok = false; r.why == nil {
						return false
					}
				}
			}
		}
		for p := range u.patterns {
			if pr := &u.patterns[p]; r.match(pr.pattern, name) {
				evaluated = true
				if pr.pattern.safe && len(name) <= maxPinned {
					key.pinned = true
				}
				if !r.eval(pr.rule, value, nil) {
					if ok = false; r.why == nil {
						return false
					}
				}
			}
		}
		if !evaluated && u.additional != nil {
			evaluated = true
			switch {
			case u.additional.always < 0:
				if surplus = true; r.why == nil {
					return false
				}
			case !r.eval(u.additional, value, nil):
				if ok = false; r.why == nil {
					return false
				}
			}
		}
		if evaluated && ev != nil {
			ev.add(k)
		}
		if u.names != nil && !r.eval(u.names, i, nil) {
			if ok = false; !r.miss(at, "propertyNames") {
				return false
			}
		}
		i = int(r.d.nodes[value].next)
	}
	if surplus {
		ok = false
		r.miss(at, "additionalProperties")
	}
	if required < u.required {
		if ok = false; !r.miss(at, "required") {
			return false
		}
	}
	for _, d := range u.dependents {
		r.work(1, 0)
		if !r.has(at, d.name) {
			continue
		}
		for _, other := range d.names {
			if !r.has(at, other) {
				if ok = false; !r.miss(at, d.keyword) {
					return false
				}
				break
			}
		}
		if d.rule != nil && !r.eval(d.rule, at, ev) {
			if ok = false; r.why == nil {
				return false
			}
		}
	}
	return ok
}

func (r *run) has(object int, name string) bool {
	r.work(int64(r.d.nodes[object].count), 0)
	return r.d.member(object, name) > 0
}

func (r *run) unevaluatedProperties(u *rule, at int, n *node, ev seen) bool {
	ok := true
	i := at + 1
	for k := range n.count {
		r.work(1, 0)
		if !ev.has(k) {
			switch {
			case u.unevaluatedProperties.always < 0:
				return r.miss(at, "unevaluatedProperties") && false
			case !r.eval(u.unevaluatedProperties, i+1, nil):
				if ok = false; r.why == nil {
					return false
				}
			}
			ev.add(k)
		}
		i = int(r.d.nodes[i+1].next)
	}
	return ok
}

func (r *run) array(u *rule, at int, n *node, ev seen) bool {
	ok := true
	if u.minItems >= 0 && int(n.count) < u.minItems {
		if ok = false; !r.miss(at, "minItems") {
			return false
		}
	}
	if u.maxItems >= 0 && int(n.count) > u.maxItems {
		if ok = false; !r.miss(at, "maxItems") {
			return false
		}
	}
	if u.unique && n.count > 1 && !r.distinct(at, n) {
		if ok = false; !r.miss(at, "uniqueItems") {
			return false
		}
	}
	found := 0
	i := at + 1
	for k := range n.count {
		r.work(1, 0)
		var s *rule
		switch {
		case int(k) < len(u.prefix):
			s = u.prefix[k]
		default:
			s = u.items
		}
		if s != nil {
			if ev != nil {
				ev.add(k)
			}
			if s.always < 0 && int(k) >= len(u.prefix) {
				ok = false
				if !r.miss(at, u.itemsKeyword) {
					return false
				}
			} else if !r.eval(s, i, nil) {
				if ok = false; r.why == nil {
					return false
				}
			}
		}
		if u.contains != nil && r.quietly(u.contains, i, nil) {
			if found++; u.containsCounts && ev != nil {
				ev.add(k)
			}
		}
		i = int(r.d.nodes[i].next)
	}
	if u.contains != nil {
		if found < u.minContains {
			if ok = false; !r.miss(at, "contains") {
				return false
			}
		}
		if u.maxContains >= 0 && found > u.maxContains {
			if ok = false; !r.miss(at, "maxContains") {
				return false
			}
		}
	}
	return ok
}

func (r *run) unevaluatedItems(u *rule, at int, n *node, ev seen) bool {
	ok := true
	i := at + 1
	for k := range n.count {
		r.work(1, 0)
		if !ev.has(k) {
			switch {
			case u.unevaluatedItems.always < 0:
				return r.miss(at, "unevaluatedItems") && false
			case !r.eval(u.unevaluatedItems, i, nil):
				if ok = false; r.why == nil {
					return false
				}
			}
			ev.add(k)
		}
		i = int(r.d.nodes[i].next)
	}
	return ok
}

// distinct reports whether no two items of an array are equal.
func (r *run) distinct(at int, n *node) bool {
	if n.count <= fewItems {
		for i := at + 1; i < int(n.next); i = int(r.d.nodes[i].next) {
			for k := int(r.d.nodes[i].next); k < int(n.next); k = int(r.d.nodes[k].next) {
				if r.same(i, k) {
					return false
				}
			}
		}
		return true
	}
	r.work(int64(int(n.next)-at), 0)
	seed := maphash.MakeSeed()
	items := make(map[uint64][]int, n.count)
	for i := at + 1; i < int(n.next); i = int(r.d.nodes[i].next) {
		h := r.hash(seed, i)
		for _, k := range items[h] {
			if r.same(i, k) {
				return false
			}
		}
		items[h] = append(items[h], i)
	}
	return true
}

// hash returns the same number for equal values.
func (r *run) hash(seed maphash.Seed, at int) uint64 {
	n := &r.d.nodes[at]
	mix := func(h, v uint64) uint64 { return (h ^ v) * 0x9e3779b97f4a7c15 }
	h := uint64(n.kind)<<32 | uint64(n.count)
	switch n.kind {
	case String:
		h = mix(h, maphash.Bytes(seed, r.d.string(n)))
	case Number:
		x, _ := strconv.ParseFloat(string(r.d.string(n)), 64) // what is equal rounds to the same
		h = mix(h, math.Float64bits(x+0))
	case Array:
		i := at + 1
		for range n.count {
			h = mix(h, r.hash(seed, i))
			i = int(r.d.nodes[i].next)
		}
	case Object:
		i, sum := at+1, uint64(0)
		for range n.count {
			name := maphash.Bytes(seed, r.d.string(&r.d.nodes[i]))
			sum += mix(mix(1, name), r.hash(seed, i+1)) // in whatever order
			i = int(r.d.nodes[i+1].next)
		}
		h = mix(h, sum)
	}
	return h
}
