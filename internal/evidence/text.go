package evidence

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a record's text, in bytes before escaping.
const (
	maxName        = 128
	maxText        = 1024
	maxDetail      = 24 // entries
	maxDetailKey   = 64
	maxDetailValue = 1024
)

// cutMark begins the mark of text that was cut.
const cutMark = "…[cut from "

// clean returns s cut to max bytes, with a mark that holds the length and the
// hash of the whole, and with everything escaped that a terminal or an editor
// would act on: control characters, line ends (unless lines is set), changes
// of direction, and bytes that are not UTF-8. Text of what people and programs
// usually write comes back as it is.
func clean(s string, max int, lines bool) string {
	if len(s) <= max && plain(s, lines) {
		return s
	}
	mark := ""
	if len(s) > max {
		mark = fmt.Sprintf(cutMark+"%d bytes, sha256:%x]", len(s), sha256.Sum256([]byte(s)))
		s = s[:max]
		// Not within a character.
		for i := 0; i < utf8.UTFMax && len(s) > 0 && !utf8.ValidString(s[len(s)-min(len(s), utf8.UTFMax):]); i++ {
			if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n != 1 {
				break
			}
			s = s[:len(s)-1]
		}
	}
	var b strings.Builder
	b.Grow(len(s) + len(mark))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case lines && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x80:
			b.WriteByte(s[i])
		case unicode.In(r, unicode.Cc, unicode.Bidi_Control, unicode.Zl, unicode.Zp) || r == '\ufeff' || r == '\u200b' || r >= 0xe0000 && r <= 0xe007f:
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String() + mark
}

// plain reports whether s is printable ASCII, with line ends and tabs if lines
// is set, which needs no work.
func plain(s string, lines bool) bool {
	for i := range len(s) {
		if (s[i] < 0x20 || s[i] > 0x7e) && (!lines || s[i] != '\n' && s[i] != '\t') {
			return false
		}
	}
	return true
}
