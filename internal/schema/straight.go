package schema

import (
	"regexp/syntax"
	"unicode/utf8"
)

// straight matches a regular expression about the whole of a text that is one run
// of ASCII characters after another, such as ^[A-Z]{2}-[0-9]{6}$, and in which no
// character can belong to two runs. Most patterns of schemas are like that; there
// is one way to read a text then, and no need of a machine.
type straight []characters

// characters is a run: min to max of the set, or more if max is -1.
type characters struct {
	set      asciiSet
	min, max int
}

type asciiSet [2]uint64

func (a *asciiSet) add(c byte)      { a[c>>6] |= 1 << (c & 63) }
func (a *asciiSet) has(c byte) bool { return c < utf8.RuneSelf && a[c>>6]&(1<<(c&63)) != 0 }
func (a asciiSet) meets(b asciiSet) bool {
	return a[0]&b[0] != 0 || a[1]&b[1] != 0
}

// maxRuns bounds the runs of a straight expression.
const maxRuns = 64

// newStraight returns nil for an expression that is not straight.
func newStraight(tree *syntax.Regexp) straight {
	if tree.Op != syntax.OpConcat || len(tree.Sub) < 3 ||
		tree.Sub[0].Op != syntax.OpBeginText || tree.Sub[len(tree.Sub)-1].Op != syntax.OpEndText {
		return nil
	}
	s, ok := straight{}.with(&syntax.Regexp{Op: syntax.OpConcat, Sub: tree.Sub[1 : len(tree.Sub)-1]})
	if !ok {
		return nil
	}
	for i, run := range s {
		if run.min == run.max {
			continue
		}
		for _, later := range s[i+1:] { // what it could take from them
			if run.set.meets(later.set) {
				return nil
			}
		}
	}
	return s
}

// with appends the runs of e, or reports that it is something else.
func (s straight) with(e *syntax.Regexp) (straight, bool) {
	one := func(e *syntax.Regexp, least, most int) (straight, bool) {
		run := characters{min: least, max: most}
		switch {
		case e.Op == syntax.OpLiteral && len(e.Rune) == 1 && e.Flags&syntax.FoldCase == 0 && e.Rune[0] < utf8.RuneSelf:
			run.set.add(byte(e.Rune[0]))
		case e.Op == syntax.OpCharClass && len(e.Rune) > 0 && e.Rune[len(e.Rune)-1] < utf8.RuneSelf:
			for i := 0; i+1 < len(e.Rune); i += 2 {
				for r := e.Rune[i]; r <= e.Rune[i+1]; r++ {
					run.set.add(byte(r))
				}
			}
		default:
			return nil, false
		}
		return append(s, run), len(s) < maxRuns
	}
	switch e.Op {
	case syntax.OpConcat:
		for _, sub := range e.Sub {
			var ok bool
			if s, ok = s.with(sub); !ok {
				return nil, false
			}
		}
		return s, true
	case syntax.OpCapture:
		return s.with(e.Sub[0])
	case syntax.OpLiteral:
		for i := range e.Rune {
			var ok bool
			if s, ok = s.with(&syntax.Regexp{Op: syntax.OpCharClass, Flags: e.Flags, Rune: []rune{e.Rune[i], e.Rune[i]}}); !ok || e.Flags&syntax.FoldCase != 0 {
				return nil, false
			}
		}
		return s, true
	case syntax.OpCharClass:
		return one(e, 1, 1)
	case syntax.OpStar:
		return one(e.Sub[0], 0, -1)
	case syntax.OpPlus:
		return one(e.Sub[0], 1, -1)
	case syntax.OpQuest:
		return one(e.Sub[0], 0, 1)
	case syntax.OpRepeat:
		return one(e.Sub[0], e.Min, e.Max)
	}
	return nil, false
}

// match reports whether the whole of text is what s says.
func (s straight) match(text []byte) bool {
	at := 0
	for i := range s {
		run := &s[i]
		end := len(text)
		if run.max >= 0 {
			end = min(end, at+run.max)
		}
		from := at
		for at < end && run.set.has(text[at]) {
			at++
		}
		if at-from < run.min {
			return false
		}
	}
	return at == len(text)
}
