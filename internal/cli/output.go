package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"bawn.dev/bawn"
)

// clean makes text from outside safe to print in one line: what could move the
// cursor, change colours or turn the direction of writing is shown escaped.
func clean(s string) string { return escape(s, "") }

// cleanLines is clean, but keeps line ends and tabs.
func cleanLines(s string) string { return escape(s, "\n\t") }

func escape(s, keep string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return unsafeRune(r) && !strings.ContainsRune(keep, r) }) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unsafeRune(r) && !strings.ContainsRune(keep, r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unsafeRune reports control characters (C0, DEL, C1) and format characters:
// the bidirectional overrides, zero-width ones, line and paragraph separators.
func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// terminalWriter escapes what passes through it, for bytes that go to a
// terminal. A rune split between two writes is kept until it is whole.
type terminalWriter struct {
	w    io.Writer
	rest []byte
}

func (t *terminalWriter) Write(p []byte) (int, error) {
	data := append(t.rest, p...)
	cut := len(data)
	for i := 1; i < utf8.UTFMax && i <= len(data); i++ {
		if b := data[len(data)-i]; utf8.RuneStart(b) {
			if !utf8.FullRune(data[len(data)-i:]) {
				cut = len(data) - i
			}
			break
		}
	}
	t.rest = append([]byte(nil), data[cut:]...)
	if _, err := io.WriteString(t.w, cleanLines(string(data[:cut]))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes what is left of a rune that never became whole.
func (t *terminalWriter) flush() {
	io.WriteString(t.w, cleanLines(string(t.rest)))
	t.rest = nil
}

// payload returns where the bytes of a function go: straight through to a file
// or a pipe, escaped to a terminal.
func (a *app) payload() (w io.Writer, flush func()) {
	if !a.outTTY {
		return a.Out, func() {}
	}
	t := &terminalWriter{w: a.Out}
	return t, t.flush
}

// printJSON prints one value as -o json does.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	if a.outTTY {
		enc.SetIndent("", "  ")
	}
	return wrapOutput(enc.Encode(v))
}

// did says what was done to the thing called name: the only answer of a command
// that takes something away.
func (a *app) did(what, name string) error {
	if a.format == "json" {
		return a.printJSON(map[string]string{what: name})
	}
	a.printf("%s %s\n", what, clean(name))
	return nil
}

// printf prints to standard output. Arguments that come from outside must have
// been through clean.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.Out, format, args...) }

// notef prints a remark to standard error, unless the output is JSON.
func (a *app) notef(format string, args ...any) {
	if a.format != "json" {
		fmt.Fprintf(a.Err, format, args...)
	}
}

// paint colours s on a terminal. The codes: 1 bold, 2 faint, 31 red, 32 green,
// 33 yellow, 36 cyan.
func (a *app) paint(code int, s string) string {
	if !a.color {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, s)
}

// table prints rows in columns. Cells are cleaned here.
func (a *app) table(head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(a.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range rows {
		for i, c := range r {
			if c == "" {
				c = "-"
			}
			r[i] = clean(c)
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return wrapOutput(tw.Flush())
}

func wrapOutput(err error) error {
	if err == nil {
		return nil
	}
	return bawn.Wrap(err, bawn.CodeInternal, "cli", "the output cannot be written")
}

// ago writes how long before now t was, in one unit.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(a.Now().Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// size writes a number of bytes in the unit that keeps it short.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// shortDigest keeps the first 12 digits of a digest, enough to tell versions
// of one function apart.
func shortDigest(d string) string {
	h, ok := strings.CutPrefix(d, "sha256:")
	if ok && len(h) > 12 {
		return "sha256:" + h[:12]
	}
	return d
}

// accessText says who may use a route.
func accessText(acc bawn.Access, now time.Time) string {
	switch p := acc.Public; {
	case p == nil:
		return acc.String()
	case p.Open(now):
		return fmt.Sprintf("public until %s: %s", p.Until.UTC().Add(-time.Second).Format(time.DateOnly), p.Reason)
	default:
		return fmt.Sprintf("key (public until %s, which has passed)", p.Until.UTC().Add(-time.Second).Format(time.DateOnly))
	}
}
