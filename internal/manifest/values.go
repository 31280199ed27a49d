package manifest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written "256MiB".
type Size int64

// Duration is a span of time, written "1m30s" or "7d". It is a whole number of
// milliseconds.
type Duration time.Duration

// Date is a day in UTC, written "2027-06-30". Its zero value is no day.
type Date struct{ time.Time }

// The patterns stand in the published schema as well.
const (
	sizePattern     = `^(0|[1-9][0-9]*)(\.[0-9]+)?(B|KiB|MiB|GiB)$`
	durationPattern = `^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$`
	datePattern     = `^[0-9]{4}-[0-9]{2}-[0-9]{2}$`
)

var (
	sizeExpr  = regexp.MustCompile(sizePattern)
	looseSize = regexp.MustCompile(`(?i)^([0-9]+(?:\.[0-9]+)?) *([kmg]?)i?b?$`)
	spanExpr  = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)`)
	dateExpr  = regexp.MustCompile(datePattern)
	numExpr   = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,9})?$`)
)

// ParseSize reads a size such as 256MiB.
func ParseSize(s string) (Size, error) {
	m := sizeExpr.FindStringSubmatch(s)
	if m == nil || len(s) > 32 {
		e := &wrong{Message: fmt.Sprintf("%s is not a size: want a number and B, KiB, MiB or GiB", quote(s))}
		if l := looseSize.FindStringSubmatch(s); l != nil && len(s) < 32 {
			unit := strings.ToUpper(l[2])
			switch unit {
			case "":
				unit = "MiB"
			default:
				unit += "iB"
			}
			e.Suggestion = l[1] + unit
		}
		return 0, e
	}
	n, err := strconv.ParseFloat(m[1]+m[2], 64)
	if err != nil {
		return 0, &wrong{Message: fmt.Sprintf("%s is not a size", quote(s))}
	}
	switch m[3] {
	case "KiB":
		n *= 1 << 10
	case "MiB":
		n *= 1 << 20
	case "GiB":
		n *= 1 << 30
	}
	if n != math.Trunc(n) || n > 1<<50 {
		return 0, &wrong{Message: fmt.Sprintf("%s is not a whole number of bytes below 1 PiB", quote(s))}
	}
	return Size(n), nil
}

// String writes s in the largest unit that holds it exactly.
func (s Size) String() string {
	for _, u := range []struct {
		n    Size
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if s != 0 && s%u.n == 0 {
			return strconv.FormatInt(int64(s/u.n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText writes s as [Size.String].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseDuration reads a span such as 10s, 1m30s or 7d.
func ParseDuration(s string) (Duration, error) {
	bad := &wrong{Message: fmt.Sprintf("%s is not a duration: want numbers with ms, s, m, h or d", quote(s))}
	if numExpr.MatchString(s) {
		bad.Suggestion = s + "s"
	}
	if s == "" || len(s) > 64 {
		return 0, bad
	}
	total := 0.0
	for rest := s; rest != ""; {
		m := spanExpr.FindStringSubmatch(rest)
		if m == nil {
			return 0, bad
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, bad
		}
		unit := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
		total += n * float64(unit/time.Millisecond)
		rest = rest[len(m[0]):]
	}
	if total != math.Trunc(total) || total > 1e12 {
		return 0, &wrong{Message: fmt.Sprintf("%s is not a whole number of milliseconds below 30 years", quote(s))}
	}
	return Duration(time.Duration(total) * time.Millisecond), nil
}

// String writes d with the units that [ParseDuration] reads.
func (d Duration) String() string {
	if d <= 0 || time.Duration(d)%time.Millisecond != 0 {
		return time.Duration(d).String()
	}
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range []struct {
		n    time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if k := rest / u.n; k > 0 {
			b.WriteString(strconv.FormatInt(int64(k), 10) + u.name)
			rest -= k * u.n
		}
	}
	return b.String()
}

// MarshalText writes d as [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// ParseDate reads a day such as 2027-06-30.
func ParseDate(s string) (Date, error) {
	if dateExpr.MatchString(s) {
		t, err := time.Parse(time.DateOnly, s)
		switch {
		case err == nil && (t.Year() < 2000 || t.Year() > 2999):
			return Date{}, &wrong{Message: fmt.Sprintf("%s is not in the years 2000 to 2999", quote(s))}
		case err == nil:
			return Date{t}, nil
		}
		return Date{}, &wrong{Message: fmt.Sprintf("%s is not a day of the calendar", quote(s))}
	}
	return Date{}, &wrong{Message: fmt.Sprintf("%s is not a date: want YEAR-MONTH-DAY, such as 2027-06-30", quote(s))}
}

// String writes d as YEAR-MONTH-DAY.
func (d Date) String() string { return d.Format(time.DateOnly) }

// MarshalText writes d as [Date.String].
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// MarshalJSON writes d as a JSON string; without it the one of time.Time,
// which d embeds, would be used.
func (d Date) MarshalJSON() ([]byte, error) { return []byte(`"` + d.String() + `"`), nil }

// End returns the first moment after the day.
func (d Date) End() time.Time { return d.AddDate(0, 0, 1) }

// wrong says what is wrong with a value, and what may have been meant.
type wrong struct{ Message, Suggestion string }

func (w *wrong) Error() string {
	if w.Suggestion != "" {
		return w.Message + "; did you mean " + w.Suggestion + "?"
	}
	return w.Message
}

// quote shows outside text in a message: escaped, and of bounded length.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		cut := most
		for cut > 0 && s[cut]&0xc0 == 0x80 {
			cut--
		}
		return strconv.QuoteToGraphic(s[:cut]) + "…"
	}
	return strconv.QuoteToGraphic(s)
}

func (d Duration) std() time.Duration { return time.Duration(d) }
