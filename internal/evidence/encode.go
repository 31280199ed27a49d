package evidence

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence/tlog"
)

// The encoders here write the same JSON as encoding/json would, with the text
// cleaned on the way, in a quarter of the time: two records and a few lines are
// written for every call. A test holds them to every field of the types.

// encode returns r as an entry of the log. A record that is larger than an
// entry may be, which only text that was made for it can bring about, loses
// details, the longest first, and says how many.
func encode(r *bawn.Record) []byte {
	b := appendRecord(make([]byte, 0, 640), r) // which most have room in
	if len(b) <= tlog.MaxEntry {
		return b
	}
	cut := *r
	cut.Detail = maps.Clone(r.Detail)
	h := sha256.Sum256(b)
	for n := 1; len(b) > tlog.MaxEntry && len(cut.Detail) > 0; n++ {
		longest := ""
		for k, v := range cut.Detail {
			if k != truncatedDetail && (longest == "" || len(k)+len(v) > len(longest)+len(cut.Detail[longest])) {
				longest = k
			}
		}
		if longest == "" {
			break // the rest has bounds of its own
		}
		delete(cut.Detail, longest)
		cut.Detail[truncatedDetail] = fmt.Sprintf("%d entries are left out of a record of sha256:%x", max(0, len(r.Detail)-maxDetail)+n, h)
		b = appendRecord(b[:0], &cut)
	}
	return b
}

// truncatedDetail is the detail that says how many are left out.
const truncatedDetail = "truncated"

// appendRecord appends r as JSON.
func appendRecord(b []byte, r *bawn.Record) []byte {
	b = append(b, `{"id":`...)
	b = appendClean(b, r.ID, maxName, false)
	b = appendTime(append(b, `,"time":`...), r.Time)
	b = append(b, `,"kind":`...)
	b = appendClean(b, string(r.Kind), maxName, false)
	b = appendName(b, `,"tenant":`, r.Tenant)
	b = appendName(b, `,"function":`, r.Function)
	b = appendNumber(b, `,"version":`, r.Version)
	b = appendName(b, `,"invocation":`, r.Invocation)
	b = appendName(b, `,"instance":`, r.Instance)
	b = appendName(b, `,"principal":`, r.Principal)
	b = appendName(b, `,"source":`, r.Source)
	b = append(b, `,"action":`...)
	b = appendClean(b, r.Action, maxName, false)
	b = append(b, `,"outcome":`...)
	b = appendClean(b, r.Outcome, maxName, false)
	if r.Reason != "" {
		b = append(b, `,"reason":`...)
		b = appendClean(b, r.Reason, maxText, false)
	}
	b = appendName(b, `,"control":`, r.Control)
	if len(r.Detail) > 0 {
		b = append(b, `,"detail":{`...)
		n := 0
		for k, v := range r.Detail {
			if n > 0 {
				b = append(b, ',')
			}
			if n == maxDetail {
				b = append(b, `"truncated":`...)
				b = appendText(b, fmt.Sprintf("%d entries are left out", len(r.Detail)-maxDetail))
				break
			}
			b = append(appendClean(b, k, maxDetailKey, false), ':')
			b = appendClean(b, v, maxDetailValue, false)
			n++
		}
		b = append(b, '}')
	}
	b = appendNumber(b, `,"index":`, int(r.Index))
	return append(b, '}')
}

// appendLine appends x as one line.
func appendLine(b []byte, x *bawn.LogLine) []byte {
	b = appendTime(append(b, `{"time":`...), x.Time)
	b = appendName(b, `,"tenant":`, x.Tenant)
	b = append(b, `,"function":`...)
	b = appendClean(b, x.Function, maxName, false)
	b = append(b, `,"version":`...)
	b = strconv.AppendInt(b, int64(x.Version), 10)
	b = appendName(b, `,"invocation":`, x.Invocation)
	b = appendName(b, `,"instance":`, x.Instance)
	if x.Platform {
		b = append(b, `,"platform":true`...)
	}
	b = append(b, `,"text":`...)
	b = appendClean(b, x.Text, maxLine, true)
	return append(b, '}', '\n')
}

func appendName(b []byte, field, s string) []byte {
	if s == "" {
		return b
	}
	return appendClean(append(b, field...), s, maxName, false)
}

func appendNumber(b []byte, field string, n int) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendInt(append(b, field...), int64(n), 10)
}

// appendTime appends t in UTC. A year that RFC 3339 cannot write, which no
// clock shows, becomes the zero time.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		t = time.Time{}
	}
	b = append(b, '"')
	b = t.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// appendClean appends what [clean] makes of s as a JSON string. Most text needs
// neither to be cleaned nor to be escaped, which is seen in one pass.
func appendClean(b []byte, s string, most int, lines bool) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return appendText(b, clean(s, most, lines))
		}
	}
	if len(s) > most {
		return appendText(b, clean(s, most, lines))
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendText appends cleaned text, which is valid UTF-8, as a JSON string.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return append(append(b, s[start:]...), '"')
}
