package schema

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"bawn.dev/bawn"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Bounds of a schema.
const (
	maxPattern = 5000 // instructions that a regular expression comes to
	maxPinned  = 128  // bytes of a text that a pattern pins down
	maxShort   = 2    // characters of a text that is too short for an attack
)

// Schema is a compiled JSON Schema. It is safe for concurrent use.
type Schema struct {
	root    *rule
	dynamic bool // whether a $dynamicRef is in it
	anchors []map[string]*rule
}

// Compile reads a JSON Schema that refers to nothing outside of itself but the
// metaschemas: of draft 2020-12 where it names no dialect. Formats are asserted.
// The error says what is wrong with it, as a sentence.
func Compile(text string) (*Schema, error) {
	if len(text) > bawn.MaxSchemaBytes {
		return nil, fmt.Errorf("the schema has %d bytes, at most %d are allowed", len(text), bawn.MaxSchemaBytes)
	}
	return Compiler{}.Compile(text)
}

// Compiler compiles with other settings than [Compile].
type Compiler struct {
	Others   map[string]string // documents that a schema may refer to, by their URL
	Annotate bool              // whether formats are annotations only
}

// Compile compiles text, of whatever size.
func (o Compiler) Compile(text string) (_ *Schema, err error) {
	defer func() {
		if p := recover(); p != nil { // in a library, on what somebody wrote
			err = errors.New("this is no JSON Schema: it cannot be compiled")
		}
	}()
	doc, err := document(text)
	if err != nil {
		return nil, fmt.Errorf("the schema %w", err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	c.DefaultDraft(jsonschema.Draft2020)
	if !o.Annotate {
		c.AssertFormat()
	}
	c.UseRegexpEngine(func(expr string) (jsonschema.Regexp, error) { return compilePattern(expr) })
	const name = "bawn:schema"
	docs := map[string]any{name: doc}
	for _, at := range slices.Sorted(maps.Keys(o.Others)) {
		if docs[at], err = document(o.Others[at]); err != nil {
			return nil, fmt.Errorf("the schema %s %w", at, err)
		}
	}
	for at, d := range docs {
		if err := c.AddResource(at, d); err != nil {
			return nil, saying(err)
		}
	}
	s, err := c.Compile(name)
	if err != nil {
		return nil, saying(err)
	}
	b := &builder{compiler: c, docs: docs, annotate: o.Annotate, rules: map[*jsonschema.Schema]*rule{}, resources: map[string]int{}}
	root, err := b.rule(s)
	if err != nil {
		return nil, fmt.Errorf("this is no JSON Schema: %w", err)
	}
	out := &Schema{root: root, dynamic: b.dynamic}
	if b.dynamic {
		if out.anchors, err = b.anchors(); err != nil {
			return nil, saying(err)
		}
	}
	return out, nil
}

// document reads the text of a schema. It is as strict with it as with what is held
// against it.
func document(text string) (any, error) {
	if _, err := Parse([]byte(text), MaxDepth); err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(strings.NewReader(text))
}

// noLoader refuses whatever a schema refers to outside of itself.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("it refers to %q, and may refer only to itself", short(url))
}

// saying makes a sentence of what the library says.
func saying(err error) error {
	text := err.Error()
	var refers *jsonschema.LoadURLError
	if errors.As(err, &refers) {
		text = refers.Err.Error()
	} else if i := strings.LastIndex(text, "- at "); i >= 0 { // the innermost place says it
		text = text[i+2:]
	}
	return fmt.Errorf("this is no JSON Schema: %s", oneLine(text))
}

func oneLine(s string) string {
	if s = strings.Join(strings.Fields(s), " "); len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

func short(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

// types is a set of kinds; whole numbers have a bit of their own.
type types uint8

const whole types = 1 << 7

func (t types) has(k Kind) bool { return t&(1<<k) != 0 }

// rule is one schema within a schema, made ready for [run.eval].
type rule struct {
	resource int  // which the schema belongs to
	always   int8 // 1 for true, -1 for false, 0 for what stands below

	types      types // 0 means all
	literals   []literal
	format     *jsonschema.Format
	pins       bool                // whether format leaves no room for an attack
	surely     func(s []byte) bool // of format, or nil; see surely
	only, ref  *rule               // only: beside it nothing counts
	dynamic    *rule
	anchor     string // of dynamic; empty if it is an ordinary reference
	allOf      []*rule
	anyOf      []*rule
	oneOf      []*rule
	not        *rule
	when       *rule
	then, elze *rule

	minProperties, maxProperties int // -1 if there is none
	members                      map[string]member
	few                          []named // the same, if there are few
	required                     int     // of members
	patterns                     []patternRule
	additional                   *rule
	names                        *rule
	dependents                   []dependent
	unevaluatedProperties        *rule
	object                       bool // whether any of these is there

	minItems, maxItems       int
	unique                   bool
	prefix                   []*rule
	items                    *rule
	itemsKeyword             string
	contains                 *rule
	minContains, maxContains int
	containsCounts           bool // whether what contains finds is evaluated
	unevaluatedItems         *rule
	array                    bool

	minLength, maxLength int
	pattern              *pattern

	bounds []bound

	besides bool // whether there are schemas about the same value
	leaf    bool // whether it speaks of nothing but types, text and numbers
}

type member struct {
	rule     *rule // nil if it is only required
	required bool
}

// named is a member with its name.
type named struct {
	name string
	member
}

// maxFew is up to how many members are compared one by one, which is sooner done.
const maxFew = 8

// member returns what is said of a member, and whether anything is.
func (u *rule) member(name []byte) (m member, ok bool) {
	if u.few == nil {
		m, ok = u.members[string(name)]
		return m, ok
	}
	for i := range u.few {
		if n := &u.few[i]; n.name == string(name) {
			return n.member, true
		}
	}
	return m, false
}

type patternRule struct {
	pattern *pattern
	rule    *rule
}

type dependent struct {
	name    string
	names   []string
	rule    *rule
	keyword string
}

// bound is a keyword about numbers.
type bound struct {
	keyword string
	rat     *big.Rat
	dec     decimal
	exact   bool // whether dec is it
	ok      func(cmp int) bool
}

// literal is enum or const.
type literal struct {
	keyword string
	values  []any
	words   map[string]struct{} // those of values that are text
}

func newLiteral(keyword string, values []any) literal {
	l := literal{keyword: keyword, words: map[string]struct{}{}}
	for _, v := range values {
		if word, ok := v.(string); ok {
			l.words[word] = struct{}{}
		} else {
			l.values = append(l.values, v)
		}
	}
	return l
}

// builder makes rules of what the library compiled.
type builder struct {
	compiler  *jsonschema.Compiler
	docs      map[string]any
	annotate  bool
	rules     map[*jsonschema.Schema]*rule
	order     []*jsonschema.Schema
	resources map[string]int // URL#pointer to number
	dynamic   bool
}

func (b *builder) rule(s *jsonschema.Schema) (*rule, error) {
	if s == nil {
		return nil, nil
	}
	if r := b.rules[s]; r != nil {
		return r, nil
	}
	r := &rule{minProperties: -1, maxProperties: -1, minItems: -1, maxItems: -1, minContains: 1, maxContains: -1, minLength: -1, maxLength: -1}
	b.rules[s] = r
	b.order = append(b.order, s)
	if s.Bool != nil {
		if r.always = -1; *s.Bool {
			r.always = 1
		}
		return r, nil
	}
	if s.RecursiveRef != nil {
		return nil, errors.New("$recursiveRef is of draft 2019-09; name 2020-12 and use $dynamicRef")
	}
	var err error
	get := func(s *jsonschema.Schema) *rule {
		var got *rule
		if err == nil {
			got, err = b.rule(s)
		}
		return got
	}
	all := func(list []*jsonschema.Schema) []*rule {
		var got []*rule
		for _, s := range list {
			got = append(got, get(s))
		}
		return got
	}
	if s.DraftVersion < 2019 && s.Ref != nil {
		r.only = get(s.Ref)
		return r, err
	}
	b.values(s, r)
	r.ref = get(s.Ref)
	if d := s.DynamicRef; d != nil {
		b.dynamic = true
		r.dynamic = get(d.Ref)
		if d.Anchor != "" && d.Ref.DynamicAnchor == d.Anchor {
			r.anchor = d.Anchor
		}
	}
	r.allOf, r.anyOf, r.oneOf = all(s.AllOf), all(s.AnyOf), all(s.OneOf)
	r.not, r.when, r.then, r.elze = get(s.Not), get(s.If), get(s.Then), get(s.Else)
	r.besides = r.ref != nil || r.dynamic != nil || r.allOf != nil || r.anyOf != nil || r.oneOf != nil || r.not != nil || r.when != nil
	b.objects(s, r, get)
	b.arrays(s, r, get, all)
	r.leaf = !r.besides && !r.object && !r.array && len(r.literals) == 0
	return r, err
}

func (b *builder) values(s *jsonschema.Schema, r *rule) {
	if s.Types != nil {
		for _, name := range s.Types.ToStrings() {
			switch name {
			case "null":
				r.types |= 1 << Null
			case "boolean":
				r.types |= 1<<False | 1<<True
			case "number":
				r.types |= 1<<Number | whole
			case "integer":
				r.types |= whole
			case "string":
				r.types |= 1 << String
			case "array":
				r.types |= 1 << Array
			case "object":
				r.types |= 1 << Object
			}
		}
	}
	if s.Enum != nil {
		r.literals = append(r.literals, newLiteral("enum", s.Enum.Values))
	}
	if s.Const != nil {
		r.literals = append(r.literals, newLiteral("const", []any{*s.Const}))
	}
	if r.format = s.Format; b.annotate {
		r.format = nil
	}
	if r.format != nil {
		r.surely = surely[r.format.Name]
		switch r.format.Name {
		case "date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "hostname", "email", "semver":
			r.pins = true
		}
	}
	number := func(p *int, to *int) {
		if p != nil {
			*to = max(*p, 0)
		}
	}
	number(s.MinLength, &r.minLength)
	number(s.MaxLength, &r.maxLength)
	if s.Pattern != nil {
		r.pattern = s.Pattern.(*pattern)
	}
	for _, n := range []struct {
		keyword string
		rat     *big.Rat
		ok      func(int) bool
	}{
		{"minimum", s.Minimum, func(c int) bool { return c >= 0 }},
		{"maximum", s.Maximum, func(c int) bool { return c <= 0 }},
		{"exclusiveMinimum", s.ExclusiveMinimum, func(c int) bool { return c > 0 }},
		{"exclusiveMaximum", s.ExclusiveMaximum, func(c int) bool { return c < 0 }},
		{"multipleOf", s.MultipleOf, nil},
	} {
		if n.rat != nil {
			x := bound{keyword: n.keyword, rat: n.rat, ok: n.ok}
			if places, exact := n.rat.FloatPrec(); exact && places <= maxExponent {
				x.dec, x.exact = parseDecimal([]byte(n.rat.FloatString(places)))
			}
			r.bounds = append(r.bounds, x)
		}
	}
}

func (b *builder) objects(s *jsonschema.Schema, r *rule, get func(*jsonschema.Schema) *rule) {
	number := func(p *int, to *int) {
		if p != nil {
			*to = max(*p, 0)
		}
	}
	number(s.MinProperties, &r.minProperties)
	number(s.MaxProperties, &r.maxProperties)
	r.members = make(map[string]member, len(s.Properties)+len(s.Required))
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		r.members[name] = member{rule: get(s.Properties[name])}
	}
	for _, name := range s.Required {
		m := r.members[name]
		if !m.required {
			r.required++
		}
		m.required = true
		r.members[name] = m
	}
	if len(r.members) <= maxFew {
		for _, name := range slices.Sorted(maps.Keys(r.members)) {
			r.few = append(r.few, named{name, r.members[name]})
		}
	}
	for re, below := range s.PatternProperties {
		r.patterns = append(r.patterns, patternRule{re.(*pattern), get(below)})
	}
	slices.SortFunc(r.patterns, func(a, b patternRule) int { return strings.Compare(a.pattern.text, b.pattern.text) })
	switch a := s.AdditionalProperties.(type) {
	case bool:
		r.additional = always(a)
	case *jsonschema.Schema:
		r.additional = get(a)
	}
	if s.DraftVersion != 4 {
		r.names = get(s.PropertyNames)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Dependencies)) {
		switch d := s.Dependencies[name].(type) {
		case []string:
			r.dependents = append(r.dependents, dependent{name: name, names: d, keyword: "dependencies"})
		case *jsonschema.Schema:
			r.dependents = append(r.dependents, dependent{name: name, rule: get(d)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.DependentRequired)) {
		r.dependents = append(r.dependents, dependent{name: name, names: s.DependentRequired[name], keyword: "dependentRequired"})
	}
	for _, name := range slices.Sorted(maps.Keys(s.DependentSchemas)) {
		r.dependents = append(r.dependents, dependent{name: name, rule: get(s.DependentSchemas[name])})
	}
	r.unevaluatedProperties = get(s.UnevaluatedProperties)
	r.object = r.minProperties >= 0 || r.maxProperties >= 0 || len(r.members) > 0 || r.patterns != nil || r.additional != nil ||
		r.names != nil || len(r.dependents) > 0 || r.unevaluatedProperties != nil
}

func (b *builder) arrays(s *jsonschema.Schema, r *rule, get func(*jsonschema.Schema) *rule, all func([]*jsonschema.Schema) []*rule) {
	number := func(p *int, to *int) {
		if p != nil {
			*to = max(*p, 0)
		}
	}
	number(s.MinItems, &r.minItems)
	number(s.MaxItems, &r.maxItems)
	r.unique, r.itemsKeyword = s.UniqueItems, "items"
	if s.DraftVersion >= 2020 {
		r.prefix, r.items = all(s.PrefixItems), get(s.Items2020)
	} else {
		switch items := s.Items.(type) {
		case *jsonschema.Schema:
			r.items = get(items)
		case []*jsonschema.Schema:
			r.prefix, r.itemsKeyword = all(items), "additionalItems"
			switch a := s.AdditionalItems.(type) {
			case bool:
				r.items = always(a)
			case *jsonschema.Schema:
				r.items = get(a)
			}
		}
	}
	if r.contains = get(s.Contains); r.contains != nil {
		number(s.MinContains, &r.minContains)
		number(s.MaxContains, &r.maxContains)
		r.containsCounts = s.DraftVersion >= 2020
	}
	r.unevaluatedItems = get(s.UnevaluatedItems)
	r.array = r.minItems >= 0 || r.maxItems >= 0 || r.unique || r.prefix != nil || r.items != nil || r.contains != nil || r.unevaluatedItems != nil
}

func always(yes bool) *rule {
	if yes {
		return &rule{always: 1}
	}
	return &rule{always: -1}
}

// anchors finds what a $dynamicRef may lead to, for each resource by its number, and
// gives every rule the number of the resource that it is in.
func (b *builder) anchors() ([]map[string]*rule, error) {
	type anchor struct{ doc, pointer, name string }
	var found []anchor
	roots := map[string][]string{} // pointers at which a resource begins, by document
	for _, doc := range slices.Sorted(maps.Keys(b.docs)) {
		roots[doc] = []string{""}
		walk(b.docs[doc], "", func(pointer string, obj map[string]any) {
			if id, ok := obj["$id"].(string); ok && !strings.HasPrefix(id, "#") {
				roots[doc] = append(roots[doc], pointer)
			}
			if name, ok := obj["$dynamicAnchor"].(string); ok {
				found = append(found, anchor{doc, pointer, name})
			}
		})
	}
	const meta = "https://json-schema.org/draft/2020-12/"
	for i := 0; i < len(b.order); i++ { // the metaschemas that are referred to
		doc, _, _ := strings.Cut(b.order[i].Location, "#")
		if strings.HasPrefix(doc, meta) && roots[doc] == nil {
			roots[doc] = []string{""}
			found = append(found, anchor{doc, "", "meta"})
		}
	}
	resource := func(doc, pointer string) string {
		best := ""
		for _, r := range roots[doc] {
			if len(r) > len(best) && (pointer == r || strings.HasPrefix(pointer, r+"/")) {
				best = r
			}
		}
		return doc + "#" + best
	}
	number := func(key string) int {
		n, ok := b.resources[key]
		if !ok {
			n = len(b.resources)
			b.resources[key] = n
		}
		return n
	}
	anchors := map[int]map[string]*rule{}
	for _, a := range found {
		s, err := b.compiler.Compile(a.doc + "#" + fragment(a.pointer))
		if err != nil {
			continue // in a part that no schema is
		}
		if s.DynamicAnchor != a.name {
			continue
		}
		r, err := b.rule(s)
		if err != nil {
			return nil, err
		}
		n := number(resource(a.doc, a.pointer))
		if anchors[n] == nil {
			anchors[n] = map[string]*rule{}
		}
		anchors[n][a.name] = r
	}
	for s, r := range b.rules {
		doc, pointer, _ := strings.Cut(s.Location, "#")
		if strings.HasPrefix(doc, meta) && roots[doc] == nil { // first met behind an anchor
			roots[doc] = []string{""}
			root, err := b.compiler.Compile(doc)
			if err != nil {
				return nil, err
			}
			if known := b.rules[root]; known != nil && root.DynamicAnchor == "meta" {
				anchors[number(doc+"#")] = map[string]*rule{"meta": known}
			}
		}
		if text, err := url.PathUnescape(pointer); err == nil {
			pointer = text
		}
		r.resource = number(resource(doc, pointer))
	}
	out := make([]map[string]*rule, len(b.resources))
	for n, m := range anchors {
		out[n] = m
	}
	return out, nil
}

// walk visits the schemas within a schema, as far as keywords lead to them.
func walk(v any, pointer string, visit func(pointer string, obj map[string]any)) {
	obj, ok := v.(map[string]any)
	if !ok {
		return
	}
	visit(pointer, obj)
	for _, key := range slices.Sorted(maps.Keys(obj)) {
		below, at := obj[key], pointer+"/"+escapeToken(key)
		switch key {
		case "$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies":
			if m, ok := below.(map[string]any); ok {
				for name, s := range m {
					walk(s, at+"/"+escapeToken(name), visit)
				}
			}
		case "allOf", "anyOf", "oneOf", "prefixItems", "items":
			if list, ok := below.([]any); ok {
				for i, s := range list {
					walk(s, at+"/"+strconv.Itoa(i), visit)
				}
				break
			}
			walk(below, at, visit)
		case "additionalProperties", "additionalItems", "propertyNames", "contains", "not", "if", "then", "else",
			"unevaluatedItems", "unevaluatedProperties", "contentSchema":
			walk(below, at, visit)
		}
	}
}

// fragment writes a pointer as a URL has it.
func fragment(pointer string) string {
	tokens := strings.Split(pointer, "/")
	for i := range tokens {
		tokens[i] = url.PathEscape(tokens[i])
	}
	return strings.Join(tokens, "/")
}

func escapeToken(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

// A pattern is a regular expression of a schema, with what it costs.
type pattern struct {
	text     string
	re       *regexp.Regexp
	straight straight // nil if re is not
	cost     int64
	safe     bool // whether an attack has no room in what it matches
}

func compilePattern(expr string) (jsonschema.Regexp, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, err
	}
	safe := pins(tree)
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(prog.Inst) > maxPattern {
		return nil, errors.New("the regular expression is too large")
	}
	return &pattern{expr, re, newStraight(tree), int64(len(prog.Inst)), safe}, nil
}

// String returns the expression.
func (p *pattern) String() string { return p.text }

// MatchString is for the library, which uses it only on schemas.
func (p *pattern) MatchString(s string) bool { return p.re.MatchString(s) }

// match reports whether b, which is UTF-8, matches.
func (p *pattern) match(b []byte) bool {
	if p.straight != nil {
		return p.straight.match(b)
	}
	return p.re.Match(b)
}

// pins reports whether an expression is about the whole of a text, and lets only
// harmless characters in.
func pins(tree *syntax.Regexp) bool {
	if tree.Op != syntax.OpConcat || len(tree.Sub) < 2 ||
		tree.Sub[0].Op != syntax.OpBeginText || tree.Sub[len(tree.Sub)-1].Op != syntax.OpEndText {
		return false
	}
	for _, sub := range tree.Sub[1 : len(tree.Sub)-1] {
		if !harmless(sub) {
			return false
		}
	}
	return true
}

func harmless(e *syntax.Regexp) bool {
	switch e.Op {
	case syntax.OpEmptyMatch, syntax.OpNoMatch:
	case syntax.OpLiteral:
		for _, r := range e.Rune {
			if !harmlessRune(r) {
				return false
			}
		}
	case syntax.OpCharClass:
		total := 0
		for i := 0; i+1 < len(e.Rune); i += 2 {
			if total += int(e.Rune[i+1]-e.Rune[i]) + 1; total > 1<<17 {
				return false
			}
			for r := e.Rune[i]; r <= e.Rune[i+1]; r++ {
				if !harmlessRune(r) {
					return false
				}
			}
		}
	case syntax.OpCapture, syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat, syntax.OpConcat, syntax.OpAlternate:
		for _, sub := range e.Sub {
			if !harmless(sub) {
				return false
			}
		}
	default:
		return false
	}
	return true
}

// harmlessRune reports whether no attack is made of c and its like: there are no
// quotes, brackets, slashes, blanks or signs of any language's among them.
func harmlessRune(c rune) bool {
	if c < utf8.RuneSelf {
		return harmlessASCII.has(byte(c))
	}
	return unicode.IsLetter(c) || unicode.IsDigit(c)
}

var harmlessASCII = func() (a asciiSet) {
	for _, c := range []byte("_-.:@+,0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		a.add(c)
	}
	return a
}()

// shape is what a schema wants of a value that comes as text.
type shape struct {
	types types
	items *rule
}

// shapeOf looks at a rule and at what it refers to.
func shapeOf(r *rule) (s shape) {
	for range 8 {
		if r == nil {
			break
		}
		if r.types != 0 {
			s.types = r.types
		}
		if r.items != nil {
			s.items = r.items
		}
		switch {
		case r.only != nil:
			r = r.only
		case r.ref != nil && s.types == 0:
			r = r.ref
		default:
			return s
		}
	}
	return s
}

// TakesText reports whether the schema says that a value may be a text.
func (s *Schema) TakesText() bool { return shapeOf(s.root).types.has(String) }

// Object makes a document of what comes as names with texts: parameters, headers, a
// form. Where the schema wants a number, a boolean or an array, a text that can be
// one is; a name with several texts is an array, and where the schema wants none that
// does not fit.
func (s *Schema) Object(names []string, texts map[string][]string) (*Document, error) {
	b := []byte{'{'}
	var err error
	for _, name := range names {
		if len(b) > 1 {
			b = append(b, ',')
		}
		if b, err = appendText(b, name); err != nil {
			return nil, err
		}
		b = append(b, ':')
		want := shapeOf(s.property(name))
		all := texts[name]
		if want.types&(1<<Array) == 0 && len(all) == 1 {
			b, err = want.append(b, all[0])
		} else {
			item := shapeOf(want.items)
			b = append(b, '[')
			for i, text := range all {
				if i > 0 {
					b = append(b, ',')
				}
				if b, err = item.append(b, text); err != nil {
					break
				}
			}
			b = append(b, ']')
		}
		if err != nil {
			return nil, err
		}
	}
	return Parse(append(b, '}'), MaxDepth)
}

// property returns what the schema says of a member of an object, or nil.
func (s *Schema) property(name string) *rule {
	r := s.root
	for range 8 {
		if r == nil {
			return nil
		}
		if m := r.members[name]; m.rule != nil {
			return m.rule
		}
		if r.additional != nil && r.additional.always == 0 {
			return r.additional
		}
		if r.only != nil {
			r = r.only
		} else {
			r = r.ref
		}
	}
	return nil
}

// append writes a text as what the schema wants, if it can be that.
func (w shape) append(b []byte, text string) ([]byte, error) {
	if w.types != 0 && !w.types.has(String) {
		switch {
		case w.types.has(True) && (text == "true" || text == "false"),
			w.types.has(Null) && text == "null",
			w.types&(whole|1<<Number) != 0 && isNumber(text):
			return append(b, text...), nil
		}
	}
	return appendText(b, text)
}

// isNumber reports whether a text is a number as JSON has it.
func isNumber(text string) bool {
	p := parser{Document: &Document{data: []byte(text)}}
	return text != "" && (text[0] == '-' || text[0] >= '0' && text[0] <= '9') && p.number() == nil && p.at == len(text)
}

// Text makes a document of one text.
func Text(text []byte) (*Document, error) {
	b, err := appendText(make([]byte, 0, len(text)+2), string(text))
	if err != nil {
		return nil, err
	}
	return Parse(b, 1)
}

func appendText(b []byte, text string) ([]byte, error) {
	if !utf8.ValidString(text) {
		return nil, &ParseError{0, "is not UTF-8"}
	}
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"'), nil
}
