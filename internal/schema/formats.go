package schema

import (
	"bytes"
	"strings"
)

// surely are tests for formats whose yes is certain and whose no says nothing: the
// library is asked then. Texts are seldom written otherwise than these know.
var surely = map[string]func(s []byte) bool{
	"uuid":      surelyUUID,
	"email":     surelyEmail,
	"date":      surelyDate,
	"time":      surelyTime,
	"date-time": func(s []byte) bool { return len(s) > 11 && s[10] == 'T' && surelyDate(s[:10]) && surelyTime(s[11:]) },
}

func surelyUUID(s []byte) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		switch hyphen := i == 8 || i == 13 || i == 18 || i == 23; {
		case hyphen && c == '-', !hyphen && (c-'0' <= 9 || c|0x20-'a' <= 5):
		default:
			return false
		}
	}
	return true
}

// two is the number that s has at i in two digits, or 100 or more.
func two(s []byte, i int) int {
	tens, ones := s[i]-'0', s[i+1]-'0'
	if tens > 9 || ones > 9 {
		return 100
	}
	return int(tens)*10 + int(ones)
}

func surelyDate(s []byte) bool {
	if len(s) != 10 || s[4] != '-' || s[7] != '-' || two(s, 0) > 99 || two(s, 2) > 99 {
		return false
	}
	month, day := two(s, 5), two(s, 8)
	return month >= 1 && month <= 12 && day >= 1 && day <= 28 // as every month has
}

func surelyTime(s []byte) bool {
	if len(s) < 9 || s[2] != ':' || s[5] != ':' || two(s, 0) > 23 || two(s, 3) > 59 || two(s, 6) > 59 {
		return false
	}
	if s = s[8:]; s[0] == '.' {
		rest := bytes.TrimLeft(s[1:], "0123456789")
		if len(rest) == len(s)-1 {
			return false
		}
		s = rest
	}
	return len(s) == 1 && s[0] == 'Z' ||
		len(s) == 6 && (s[0] == '+' || s[0] == '-') && two(s, 1) <= 23 && s[3] == ':' && two(s, 4) <= 59
}

func surelyEmail(s []byte) bool {
	at := bytes.IndexByte(s, '@')
	return at > 0 && at <= 64 && len(s) <= 254 && labels(s[:at], "_+-") && labels(s[at+1:], "") && len(s)-at <= 64
}

// labels reports whether s is letters, digits and the marks, in parts between dots of
// which none is empty.
func labels(s []byte, marks string) bool {
	before := byte('.')
	for _, c := range s {
		switch {
		case c|0x20-'a' < 26 || c-'0' <= 9 || strings.IndexByte(marks, c) >= 0:
		case c == '.' && before != '.':
		default:
			return false
		}
		before = c
	}
	return before != '.'
}
