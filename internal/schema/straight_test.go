package schema

import (
	"testing"
	"unicode/utf8"
)

func patternOf(t testing.TB, expr string) *pattern {
	t.Helper()
	p, err := compilePattern(expr)
	if err != nil {
		t.Fatal(expr, err)
	}
	return p.(*pattern)
}

// Which expressions are straight is held to a list: one that is taken for it by
// mistake would match otherwise than it says, and one that is not costs more.
func TestStraight(t *testing.T) {
	for expr, want := range map[string]bool{
		`^[A-Z]{2}-[0-9]{6}$`:    true,
		`^a$`:                    true,
		`^abc[0-9]*$`:            true,
		`^(ab)(c)$`:              true,
		`^\d{4}-\d{2}-\d{2}$`:    true,
		`^[a-z]+@[0-9]+\.[A-Z]$`: true,
		`^a?b$`:                  true,
		`^[a-z]+[a-z0-9]$`:       false, // the first would take what the second needs
		`^[a-z]*x$`:              false,
		`^a?ba$`:                 false,
		`[A-Z]{2}`:               false, // anywhere in a text
		`^[A-Z]{2}`:              false,
		`[A-Z]{2}$`:              false,
		`(?m)^a$`:                false,
		`(?i)^abc$`:              false,
		`(?i)^[k-l]$`:            false, // of which one is beyond ASCII
		`^[^a]$`:                 false,
		`^.$`:                    false,
		`^é$`:                    false,
		`^(a|bc)$`:               false,
		`^(ab){2}$`:              false,
		`^(?:[0-9]+a)*$`:         false,
	} {
		if got := patternOf(t, expr).straight != nil; got != want {
			t.Errorf("%s: %v", expr, got)
		}
	}
}

// A straight expression matches what the expression matches.
func FuzzStraight(f *testing.F) {
	for _, expr := range []string{`^[A-Z]{2}-[0-9]{6}$`, `^abc[0-9]*$`, `^\d{1,3}(\.)[a-f]?$`, `^[a-z]+@[0-9]+$`, `^-?[0-9]{2,}$`, `^a{3}b{0,2}c$`, `^[ -~]$`} {
		for _, text := range []string{"", "AB-123456", "AB-1234567", "AB-123456\n", "abc", "abc12", "12.f", "1234.", "a@1", "-12", "-1", "aaac", "aaabbbc", "é", "~", "\x7f"} {
			f.Add(expr, text)
		}
	}
	f.Fuzz(func(t *testing.T, expr, text string) {
		got, err := compilePattern(expr)
		if err != nil || !utf8.ValidString(text) {
			t.Skip()
		}
		p := got.(*pattern)
		if p.straight != nil && p.straight.match([]byte(text)) != p.re.MatchString(text) {
			t.Errorf("%q of %q: %v", expr, text, p.straight.match([]byte(text)))
		}
	})
}

// What is surely of a format is of it for the library, too; and what people write is
// surely of it, or the test would be of no use.
func FuzzFormats(f *testing.F) {
	for _, text := range []string{
		"2b0f1f7e-3d0c-4f4f-9a53-6c1d0f6a7c11", "2B0F1F7E-3D0C-4F4F-9A53-6C1D0F6A7C11", "mary.oconnor@example.com", "o'brien@example.com", "a@b", "a..b@c", ".a@b", "a@b.", "a@-b", "a@[::1]",
		"2026-11-21", "2026-02-30", "2026-13-01", "0000-00-00", "10:15:00Z", "10:15:60Z", "23:59:59.123+01:00", "23:59:59.-01:00", "24:00:00Z", "10:15:00+24:00",
		"2026-11-21T10:15:00Z", "2026-11-21t10:15:00z", "2026-11-21 10:15:00Z", "2026-11-21T10:15:00.5-05:30", "2026-11-21T", "é@b", "",
	} {
		f.Add(text)
	}
	schemas := map[string]*Schema{}
	for name := range surely {
		schemas[name] = compiled(f, `{"format": "`+name+`"}`)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name, is := range surely {
			if is([]byte(text)) && schemas[name].root.format.Validate(text) != nil {
				t.Errorf("%q is taken for a %s", text, name)
			}
		}
	})
}

func TestSurely(t *testing.T) {
	for text, want := range map[string]string{
		"2b0f1f7e-3d0c-4f4f-9a53-6c1d0f6a7c11": "uuid", "mary.o-connor+x@mail.example.com": "email", "2026-11-21": "date",
		"10:15:00Z": "time", "10:15:00.25+01:00": "time", "2026-11-21T10:15:00Z": "date-time",
	} {
		for name, is := range surely {
			if is([]byte(text)) != (name == want) {
				t.Errorf("%q is surely a %s: %v", text, name, name != want)
			}
		}
	}
}
