package egress

import (
	"bytes"
	"encoding/json"
	"io"

	"bawn.dev/bawn"
)

// Digits of a payment card's number.
const (
	minCard  = 13
	maxCard  = 19
	cardSpan = 2*maxCard + 1 // bytes of one, with separators, and what follows
	cardTail = 4             // digits that are left
)

// checkCards takes numbers of payment cards out of b, in place: all digits but the
// last four become stars. Or it refuses the answer, if the manifest says so, or if b
// was JSON and would not be any more, because the number is no string. Control D7.
func checkCards(p *bawn.Response, b []byte) error {
	if p.Cards == "" || len(b) < minCard {
		return nil
	}
	was := bytes.Clone(b)
	if hideCards(b, 0, [2]byte{}, true) == 0 {
		return nil
	}
	switch {
	case p.Cards == "refuse":
		copy(b, was)
		return refuse("D7", "the answer has a number like a payment card's")
	case bytes.ContainsAny(was[:1], "{[ \t\r\n") && !json.Valid(b) && json.Valid(was):
		return refuse("D7", "the answer has a number like a payment card's that is not in a string")
	}
	return nil
}

// hideCards hides the card numbers in b that begin at from or later, and returns how
// many there were. before are the two bytes ahead of b. What reaches the end of b
// counts only if final: otherwise more digits may follow.
//
// A card number has 13 to 19 digits, in groups with one space or hyphen between them
// or in one, the first digits of a known network, and the right check digit. It is
// no part of a longer word or number.
func hideCards(b []byte, from int, before [2]byte, final bool) (found int) {
	at := func(i int) byte {
		if i < 0 {
			if i < -2 {
				return 0
			}
			return before[2+i]
		}
		return b[i]
	}
	for i := from; i < len(b); i++ {
		if !isDigit(b[i]) || isDigit(at(i-1)) || !opens(at(i-1), at(i-2)) {
			continue
		}
		if end := cardAt(b[i:], final); end > 0 {
			hideDigits(b[i : i+end])
			found++
			i += end - 1
		}
	}
	return found
}

// opens reports whether a card number may follow the byte last, ahead of which is
// prior: not within a word, but after an escaped line break, and not as a fraction.
func opens(last, prior byte) bool {
	switch {
	case isLetter(last):
		return prior == '\\'
	case last == '.':
		return !isDigit(prior)
	}
	return true
}

// cardAt returns the length of the longest card number at the beginning of b, 0 if
// there is none.
func cardAt(b []byte, final bool) (length int) {
	var digits [maxCard]byte
	n := 0
	for i := 0; i < len(b) && n < maxCard; i++ {
		c := b[i]
		if !isDigit(c) {
			if (c == ' ' || c == '-') && i+1 < len(b) && isDigit(b[i+1]) {
				continue
			}
			break
		}
		digits[n] = c - '0'
		n++
		end := i + 1
		switch {
		case end == len(b) && !final:
			continue
		case end < len(b) && (isDigit(b[end]) || isLetter(b[end])):
			continue
		case end+1 < len(b) && b[end] == '.' && isDigit(b[end+1]):
			continue
		}
		if n >= minCard && network(digits[:n]) && luhn(digits[:n]) {
			length = end
		}
	}
	return length
}

// network reports whether a card network has numbers of this length that begin so.
func network(d []byte) bool {
	two := 10*int(d[0]) + int(d[1])
	four := 100*two + 10*int(d[2]) + int(d[3])
	switch n := len(d); {
	case d[0] == 4:
		return n == 13 || n == 16 || n == 18 || n == 19 // Visa
	case two >= 51 && two <= 55, four >= 2200 && four <= 2204, four >= 2221 && four <= 2720:
		return n == 16 || four < 2205 && n > 16 // Mastercard, Mir
	case two == 34 || two == 37:
		return n == 15 // American Express
	case two == 36 || two == 38 || two == 39 || four >= 3000 && four <= 3059:
		return n >= 14 // Diners Club
	case four >= 3528 && four <= 3589:
		return n >= 16 // JCB
	case d[0] == 6, two == 50, two >= 56 && two <= 58:
		return n >= 13 // Discover, UnionPay, Maestro, RuPay
	}
	return false
}

func luhn(d []byte) bool {
	sum := 0
	for i := range d {
		v := int(d[len(d)-1-i])
		if i%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

func hideDigits(b []byte) {
	left := 0
	for i := len(b) - 1; i >= 0; i-- {
		if isDigit(b[i]) {
			if left++; left > cardTail {
				b[i] = '*'
			}
		}
	}
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' }

// cardReader hides card numbers in a stream, or ends it at the first one. It is late
// by what may be one.
type cardReader struct {
	r      io.Reader
	refuse bool
	buf    []byte  // what is not read yet
	ready  int     // bytes of buf that may leave
	before [2]byte // which have left ahead of buf
	err    error
}

func (c *cardReader) Read(p []byte) (int, error) {
	for c.ready == 0 {
		if c.err != nil && len(c.buf) == 0 {
			return 0, c.err
		}
		if c.err == nil {
			chunk := make([]byte, 16<<10)
			n, err := c.r.Read(chunk)
			c.buf, c.err = append(c.buf, chunk[:n]...), err
		}
		if hideCards(c.buf, 0, c.before, c.err != nil) > 0 && c.refuse {
			c.buf, c.err = nil, refuse("D7", "the answer has a number like a payment card's")
			return 0, c.err
		}
		c.ready = len(c.buf)
		if c.err == nil {
			c.ready = c.decided()
		}
	}
	n := copy(p, c.buf[:c.ready])
	for _, b := range c.buf[max(0, n-2):n] {
		c.before = [2]byte{c.before[1], b}
	}
	c.buf, c.ready = c.buf[n:], c.ready-n
	return n, nil
}

// decided returns how much of buf no card number reaches beyond: all but the digits
// at its end, of which the first are decided too if there are many.
func (c *cardReader) decided() int {
	i := len(c.buf)
	for i > 0 && i > len(c.buf)-cardSpan {
		b := c.buf[i-1]
		if !isDigit(b) && b != ' ' && b != '-' && b != '.' {
			break
		}
		i--
	}
	if i == len(c.buf) || !bytes.ContainsFunc(c.buf[i:], func(r rune) bool { return r >= '0' && r <= '9' }) {
		return len(c.buf)
	}
	return i
}
