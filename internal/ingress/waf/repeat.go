package waf

import (
	"strings"

	"github.com/corazawaf/coraza/v3/collection"

	"bawn.dev/bawn"
)

// The engine remembers what its transformations made of a value by the address of the
// value's name and by its place among all values, which changes from rule to rule. So of
// values that share one string as their name it may look at one in place of another,
// and pass over an attack that comes beside something harmless. What is here gives
// each value a name of its own.

// ownNames does so in a collection.
func ownNames(m collection.Map) {
	count := make(map[string]int)
	for _, d := range m.FindAll() {
		count[d.Key()]++
	}
	for name, n := range count {
		if n < 2 {
			continue
		}
		values := m.Get(name)
		m.Remove(name)
		for _, v := range values {
			m.Add(strings.Clone(name), v)
		}
	}
}

// isForm reports whether the engine takes the body of r, which may be nil, for a form.
func isForm(r *bawn.Request) bool {
	if r == nil || len(r.Header["Content-Type"]) == 0 {
		return false
	}
	return strings.HasPrefix(strings.TrimSpace(strings.ToLower(r.Header["Content-Type"][0])), "application/x-www-form-urlencoded")
}

// repeated returns as leaves the values in a form whose names come more than once. The
// engine parses a body and searches it in one go, so they are given to it once more.
func repeated(form string) []Leaf {
	if strings.IndexByte(form, '&') < 0 {
		return nil
	}
	all := make(map[string][]string)
	for pair := range strings.SplitSeq(form, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name = unquote(name)
		all[name] = append(all[name], value)
	}
	var leaves []Leaf
	for _, values := range all {
		if len(values) < 2 {
			continue
		}
		for _, v := range values {
			leaves = append(leaves, Leaf{At: firstRepeated + len(leaves), Text: unquote(v)})
		}
	}
	return leaves
}

// unquote decodes what of text can be decoded.
func unquote(text string) string {
	if !strings.ContainsAny(text, "%+") {
		return text
	}
	b := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(text):
			hi, lo := strings.IndexByte(hexDigits, text[i+1]|0x20), strings.IndexByte(hexDigits, text[i+2]|0x20)
			if hi >= 0 && lo >= 0 {
				c = byte(hi<<4 | lo)
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}

const hexDigits = "0123456789abcdef"
