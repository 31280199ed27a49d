package waf

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/corazawaf/libinjection-go"

	"bawn.dev/bawn"
)

// A shortcut tells, much faster than the engine, that no rule of a level can match
// a text. It says so of plain texts only: those of a few harmless characters, on
// which each transformation that the rules use does nothing, or one of three
// things that are done here as well. Of each rule that looks at arguments it keeps
// what a plain text must have in it so that the rule can match: one of some
// words, found in the rule's expression after all that a plain text cannot match
// has been taken away. A rule that it does not understand is an error, never a
// guess. It is not changed once made.
type shortcut struct {
	plain [256]bool // the characters of a plain text

	words    *matcher // of rules for the text as it is, and for a command line of it
	spaced   *matcher // of rules for the text without its spaces
	encoded  *matcher // of rules for what the text decodes to from base64
	searches []search // rules in which no such words are
	sqli     bool
	xss      bool
}

// A search is a rule's own expression.
type search struct {
	re      *regexp.Regexp
	variant int
}

// What transformations make of a plain text.
const (
	asItIs  = iota
	command // t:cmdLine
	unspaced
	decoded // t:base64Decode
)

// plainPunctuation is beside letters and digits of ASCII what a plain text has.
// The transformations are why it is so little: they give meaning to % + \ & " ' ^
// ( ) / * # ; < and to each space but the one.
const plainPunctuation = " ._-,@:?!"

// newShortcut returns the shortcut for rules up to a level.
func newShortcut(all []rule, level int) (*shortcut, error) {
	s := &shortcut{}
	for c := range s.plain {
		b := byte(c)
		s.plain[c] = b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte(plainPunctuation, b) >= 0
	}
	keep := func(r rune) bool { return r < 0x80 && s.plain[r] }
	for i := range all { // first, since it makes keep narrower
		if r := &all[i]; r.operator == "validateByteRange" && r.level <= level && r.ofArguments() {
			if err := s.narrow(r.argument); err != nil {
				return nil, err
			}
		}
	}
	var words [4][]string
	for i := range all {
		r := &all[i]
		if r.level > level || !r.ofArguments() {
			continue
		}
		if err := s.add(r, keep, &words); err != nil {
			return nil, err
		}
	}
	s.words = newMatcher(append(words[asItIs], words[command]...))
	s.spaced = newMatcher(words[unspaced])
	s.encoded = newMatcher(words[decoded])
	return s, nil
}

// narrow takes out of the plain characters those that are not in ranges, such as
// 9,10,32-126.
func (s *shortcut) narrow(ranges string) error {
	var in [256]bool
	for part := range strings.SplitSeq(ranges, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			to = from
		}
		a, err := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err != nil || err2 != nil || a < 0 || b > 255 {
			return bawn.Errorf(bawn.CodeInternal, "inspect", "the range %q of bytes cannot be read", ranges)
		}
		for c := a; c <= b; c++ {
			in[c] = true
		}
	}
	for c := range s.plain {
		s.plain[c] = s.plain[c] && in[c]
	}
	return nil
}

// add takes over one rule.
func (s *shortcut) add(r *rule, keep func(rune) bool, words *[4][]string) error {
	unknown := func(what string) error {
		return bawn.Errorf(bawn.CodeInternal, "inspect", "rule %d of the rule set has %s, which is not known here", r.id, what)
	}
	if r.negated {
		return unknown("a negated operator")
	}
	variants, removed := []int{asItIs}, false
	for _, t := range r.transform {
		switch t {
		case "lowercase": // all is looked for without regard to case
		case "urlDecodeUni", "utf8toUnicode", "jsDecode", "cssDecode", "htmlEntityDecode", "escapeSeqDecode", "removeNulls",
			"replaceComments", "compressWhitespace", "normalizePath", "normalizePathWin", "length":
			// A plain text stays as it is; isPlain sees to "  " and ".".
		case "removeCommentsChar": // isPlain sees to "--"
			if removed {
				return unknown("comments taken out after spaces")
			}
		case "cmdLine":
			variants = append(variants, command)
		case "removeWhitespace":
			variants = append(variants, unspaced)
			removed = true
		case "base64Decode":
			variants = append(variants, decoded)
		default:
			return unknown("the transformation " + t)
		}
	}
	if slices.Contains(variants, command) && len(variants) > 2 {
		return unknown("transformations that are not known together")
	}
	switch r.operator {
	case "rx":
		return s.addExpression(r, variants, keep, words, unknown)
	case "pm", "pmFromFile", "contains":
		var all []string
		switch r.operator {
		case "pm":
			if strings.Contains(r.argument, "|") {
				return unknown("an operator @pm with bytes")
			}
			all = strings.Fields(strings.ToLower(r.argument))
		case "contains":
			all = []string{strings.ToLower(r.argument)}
		default:
			for _, file := range strings.Fields(r.argument) {
				lines, err := keywords(file)
				if err != nil {
					return err
				}
				all = append(all, lines...)
			}
		}
		if slices.Contains(variants, decoded) {
			return unknown("keywords in what is encoded")
		}
		for _, w := range all {
			if strings.IndexFunc(w, func(c rune) bool { return !keep(c) && !keep(unicode.ToUpper(c)) }) < 0 {
				for _, v := range variants {
					words[v] = append(words[v], w)
				}
			}
		}
	case "detectSQLi", "detectXSS":
		if len(variants) > 1 {
			return unknown("transformations that are not known with it")
		}
		s.sqli = s.sqli || r.operator == "detectSQLi"
		s.xss = s.xss || r.operator == "detectXSS"
	case "validateByteRange", "validateUtf8Encoding":
	case "gt":
		// Lengths of arguments, which setup sets no limits for.
		if !strings.HasPrefix(r.argument, "%{tx.") {
			return unknown("the operator @gt")
		}
	default:
		return unknown("the operator @" + r.operator)
	}
	return nil
}

// countsNames is the rule that notes each name, so that a later one sees a name
// that comes twice. Each leaf has its own; see [Leaf].
const countsNames = 921170

func (s *shortcut) addExpression(r *rule, variants []int, keep func(rune) bool, words *[4][]string, unknown func(string) error) error {
	if r.id == countsNames {
		return nil
	}
	text := "(?sm)" + r.argument // as the engine has it
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return unknown("an expression that cannot be read: " + err.Error())
	}
	re = re.Simplify()
	for _, v := range variants {
		if v == decoded {
			// What it decodes to is any bytes.
			w := required(re)
			if w == nil {
				return unknown("an expression without words for what is encoded")
			}
			words[decoded] = append(words[decoded], w...)
			continue
		}
		left := restrict(re, keep)
		if left == nil {
			continue
		}
		if w := required(left); w != nil {
			words[v] = append(words[v], w...)
			continue
		}
		whole, err := regexp.Compile(text)
		if err != nil {
			return unknown("an expression that cannot be compiled: " + err.Error())
		}
		s.searches = append(s.searches, search{whole, v})
	}
	return nil
}

// clears reports whether no rule can match text as the value or the name of an
// argument.
func (s *shortcut) clears(text string) bool {
	if !s.isPlain(text) {
		return false
	}
	lower := strings.ToLower(text)
	if s.words.in(lower) {
		return false
	}
	cmd := lower
	if strings.IndexByte(lower, ',') >= 0 {
		if cmd = commandLine(lower); s.words.in(cmd) {
			return false
		}
	}
	tight := text
	if strings.IndexByte(text, ' ') >= 0 {
		tight = strings.ReplaceAll(text, " ", "")
	}
	if s.spaced.in(strings.ToLower(tight)) {
		return false
	}
	if !s.clearsDecoded(text) || len(tight) != len(text) && !s.clearsDecoded(tight) {
		return false
	}
	for _, x := range s.searches {
		variants := [2]string{text, lower}
		switch x.variant {
		case command:
			variants = [2]string{cmd, commandLine(text)}
		case unspaced:
			variants = [2]string{tight, strings.ToLower(tight)}
		}
		if x.re.MatchString(variants[0]) || x.re.MatchString(variants[1]) {
			return false
		}
	}
	if s.sqli {
		if found, _ := libinjection.IsSQLi(text); found {
			return false
		}
	}
	return !s.xss || !libinjection.IsXSS(text)
}

// isPlain reports whether text is of plain characters, and of no two of them that
// a transformation gives a meaning.
func (s *shortcut) isPlain(text string) bool {
	last := byte(0)
	for i := range len(text) {
		c := text[i]
		if !s.plain[c] || c == last && (c == ' ' || c == '-') {
			return false
		}
		last = c
	}
	return text != "."
}

// commandLine does with a plain text what t:cmdLine does, but for the case.
func commandLine(text string) string {
	b := make([]byte, 0, len(text))
	space := false
	for i := range len(text) {
		if c := text[i]; c != ' ' && c != ',' {
			b, space = append(b, c), false
		} else if !space {
			b, space = append(b, ' '), true
		}
	}
	return string(b)
}

// clearsDecoded reports whether no rule can match what a plain text decodes to
// from base64, as far as that goes.
func (s *shortcut) clearsDecoded(text string) bool {
	const shortest = 4 // digits; fewer make no word
	end := 0
	for end < len(text) && isBase64(text[end]) {
		end++
	}
	if end < shortest {
		return true
	}
	b := decode(text[:end])
	// What would be decoded once more, or be taken out, is for the engine. So is
	// the one letter outside of ASCII that an expression takes for another one.
	if strings.ContainsAny(b, "%+\\") || strings.Contains(b, "/*") || strings.Contains(b, "ſ") {
		return false
	}
	if s.encoded.in(strings.ToLower(b)) {
		return false
	}
	return !s.encoded.in(strings.ToLower(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, b)))
}

func isBase64(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// decode decodes digits of base64 as far as there are whole bytes.
func decode(digits string) string {
	out := make([]byte, 0, len(digits)*3/4)
	x, n := 0, 0
	for i := range len(digits) {
		c, v := digits[i], 0
		switch {
		case c >= 'a':
			v = int(c-'a') + 26
		case c >= 'A':
			v = int(c - 'A')
		default:
			v = int(c-'0') + 52
		}
		if x, n = x<<6|v, n+6; n >= 8 {
			n -= 8
			out = append(out, byte(x>>n))
			x &= 1<<n - 1
		}
	}
	return string(out)
}

// A matcher finds out whether one of many words is in a text: the automaton of
// Aho and Corasick over lower case letters, digits and what else words are of.
type matcher struct {
	class [256]uint8 // of a byte; 0 is any that is in no word
	width int        // how many classes there are
	next  []int32    // state*width+class
	end   []bool     // a word ends in the state
}

func newMatcher(words []string) *matcher {
	m := &matcher{width: 1}
	for _, w := range words {
		for i := range len(w) {
			if m.class[w[i]] == 0 {
				m.class[w[i]] = uint8(m.width)
				m.width++
			}
		}
	}
	grow := func() int32 {
		m.next = append(m.next, slices.Repeat([]int32{-1}, m.width)...)
		m.end = append(m.end, false)
		return int32(len(m.end) - 1)
	}
	grow()
	for _, w := range words {
		at := int32(0)
		for i := range len(w) {
			step := int(at)*m.width + int(m.class[w[i]])
			if m.next[step] < 0 {
				to := grow()
				m.next[step] = to
			}
			at = m.next[step]
		}
		m.end[at] = true
	}
	// Breadth first, so that where a state falls back to is done already.
	back := make([]int32, len(m.end))
	queue := []int32{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		m.end[at] = m.end[at] || m.end[back[at]]
		for c := range m.width {
			step := int(at)*m.width + c
			fall := int32(0)
			if at != 0 {
				fall = m.next[int(back[at])*m.width+c]
			}
			if to := m.next[step]; to >= 0 {
				back[to] = fall
				queue = append(queue, to)
			} else {
				m.next[step] = fall
			}
		}
	}
	return m
}

// in reports whether a word is in text.
func (m *matcher) in(text string) bool {
	at := int32(0)
	if m.end[0] {
		return true // the empty word
	}
	for i := range len(text) {
		at = m.next[int(at)*m.width+int(m.class[text[i]])]
		if m.end[at] {
			return true
		}
	}
	return false
}

// shortcuts has those of all levels, each made when first needed.
type shortcuts struct {
	rules []rule
	mu    sync.Mutex
	of    [MaxLevel + 1]*shortcut
}

func (s *shortcuts) at(level int) (*shortcut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[level] == nil {
		c, err := newShortcut(s.rules, level)
		if err != nil {
			return nil, err
		}
		s.of[level] = c
	}
	return s.of[level], nil
}
