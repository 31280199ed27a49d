package waf

import (
	"regexp/syntax"
	"strings"
)

// restrict returns an expression that matches a text of the runes in keep exactly
// where re does, or nil if re matches no such text. re must be simplified.
func restrict(re *syntax.Regexp, keep func(rune) bool) *syntax.Regexp {
	switch re.Op {
	case syntax.OpNoMatch:
		return nil
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if !keep(r) && (re.Flags&syntax.FoldCase == 0 || !folds(r, keep)) {
				return nil
			}
		}
		return re
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return class(re, keep)
	case syntax.OpCapture:
		return restrict(re.Sub[0], keep)
	case syntax.OpStar, syntax.OpQuest:
		sub := restrict(re.Sub[0], keep)
		if sub == nil {
			return &syntax.Regexp{Op: syntax.OpEmptyMatch}
		}
		return &syntax.Regexp{Op: re.Op, Flags: re.Flags, Sub: []*syntax.Regexp{sub}}
	case syntax.OpPlus:
		sub := restrict(re.Sub[0], keep)
		if sub == nil {
			return nil
		}
		return &syntax.Regexp{Op: re.Op, Flags: re.Flags, Sub: []*syntax.Regexp{sub}}
	case syntax.OpConcat:
		out := &syntax.Regexp{Op: re.Op, Flags: re.Flags}
		for _, s := range re.Sub {
			sub := restrict(s, keep)
			if sub == nil {
				return nil
			}
			out.Sub = append(out.Sub, sub)
		}
		return out
	case syntax.OpAlternate:
		out := &syntax.Regexp{Op: re.Op, Flags: re.Flags}
		for _, s := range re.Sub {
			if sub := restrict(s, keep); sub != nil {
				out.Sub = append(out.Sub, sub)
			}
		}
		switch len(out.Sub) {
		case 0:
			return nil
		case 1:
			return out.Sub[0]
		}
		return out
	}
	return re // assertions and the empty match; repeats are gone once simplified
}

// class returns the runes of a class that are kept, as a class.
func class(re *syntax.Regexp, keep func(rune) bool) *syntax.Regexp {
	out := &syntax.Regexp{Op: syntax.OpCharClass}
	for r := rune(0); r < 0x80; r++ {
		if keep(r) && inClass(re, r) {
			out.Rune = append(out.Rune, r, r)
		}
	}
	if len(out.Rune) == 0 {
		return nil
	}
	return out
}

func inClass(re *syntax.Regexp, r rune) bool {
	if re.Op != syntax.OpCharClass {
		return re.Op == syntax.OpAnyChar || r != '\n'
	}
	for i := 0; i < len(re.Rune); i += 2 {
		if re.Rune[i] <= r && r <= re.Rune[i+1] {
			return true
		}
	}
	return false
}

// folds reports whether r stands for a rune that is kept, in another case.
func folds(r rune, keep func(rune) bool) bool {
	for _, x := range []string{strings.ToLower(string(r)), strings.ToUpper(string(r))} {
		for _, c := range x {
			if keep(c) {
				return true
			}
		}
	}
	return false
}

const (
	maxLiterals = 400 // of one expression
	minLiteral  = 2   // bytes; a shorter one is found everywhere
)

// required returns texts of lower case of which one is in every text, put in
// lower case, that re matches; nil if there are none that are worth looking for.
func required(re *syntax.Regexp) []string {
	_, _, best := literals(re)
	return best
}

// literals returns all texts that re can match, if it knows them and they are
// few, and the best texts of which one must be in what it matches.
func literals(re *syntax.Regexp) (exact []string, known bool, best []string) {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return []string{""}, true, nil
	case syntax.OpLiteral:
		s := strings.ToLower(string(re.Rune))
		return []string{s}, true, worth([]string{s})
	case syntax.OpCharClass:
		var all []string
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				if len(all) > 12 {
					return nil, false, nil
				}
				all = append(all, strings.ToLower(string(r)))
			}
		}
		all = unique(all)
		return all, true, worth(all)
	case syntax.OpCapture:
		return literals(re.Sub[0])
	case syntax.OpPlus:
		_, _, best := literals(re.Sub[0])
		return nil, false, best
	case syntax.OpQuest:
		if e, known, _ := literals(re.Sub[0]); known && len(e) < maxLiterals {
			return unique(append([]string{""}, e...)), true, nil
		}
		return nil, false, nil
	case syntax.OpConcat:
		run, exactSoFar := []string{""}, true
		for _, s := range re.Sub {
			e, known, b := literals(s)
			best = better(best, b)
			if known && len(run)*len(e) <= maxLiterals {
				run = product(run, e)
				continue
			}
			best = better(best, worth(run))
			exactSoFar = false
			if run = []string{""}; known && len(e) <= maxLiterals {
				run = e
			}
		}
		best = better(best, worth(run))
		if !exactSoFar {
			run = nil
		}
		return run, exactSoFar, best
	case syntax.OpAlternate:
		exactSoFar, all := true, true
		for _, s := range re.Sub {
			e, known, b := literals(s)
			if known && len(exact)+len(e) <= maxLiterals {
				exact = append(exact, e...)
			} else {
				exactSoFar = false
			}
			if b == nil || len(best)+len(b) > 8*maxLiterals {
				all = false
			}
			best = append(best, b...)
		}
		if !all {
			best = nil
		}
		if !exactSoFar {
			exact = nil
		}
		return unique(exact), exactSoFar, unique(best)
	}
	return nil, false, nil
}

// worth returns all if each is long enough to look for, and otherwise nil.
func worth(all []string) []string {
	for _, s := range all {
		if len(s) < minLiteral {
			return nil
		}
	}
	return all
}

// better returns the one of two sets that is in fewer texts: its shortest member
// is longer.
func better(a, b []string) []string {
	if a == nil || b != nil && shortest(b) > shortest(a) {
		return b
	}
	return a
}

func shortest(all []string) int {
	n := 1 << 30
	for _, s := range all {
		n = min(n, len(s))
	}
	return n
}

func product(a, b []string) []string {
	out := make([]string, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			out = append(out, x+y)
		}
	}
	return unique(out)
}

func unique(all []string) []string {
	if len(all) < 2 {
		return all
	}
	seen := make(map[string]bool, len(all))
	out := all[:0:0]
	for _, s := range all {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
