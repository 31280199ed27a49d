package manifest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// Limits hold calls to rates and, of a function, to a number at one time.
type Limits struct {
	Rate        Rates `json:"rate,omitempty"`
	Concurrency int   `json:"concurrency,omitzero"`
}

// Rates are written as one rate or a list of them.
type Rates []Rate

// Rate is how many calls in a span of time, written "50/s per caller" or
// "1000/h burst 20".
type Rate bawn.Rate

const (
	ratePattern = `^[1-9][0-9]{0,6}/(s|m|h|d|second|minute|hour|day)( burst [1-9][0-9]{0,6})?( per (caller|address))?$`
	rateForm    = "a rate is CALLS/UNIT, such as 50/s, 1000/h burst 20, or 10/m per caller"
)

var rateExpr = regexp.MustCompile(`^([0-9]{1,12})/([a-z]+)(?: burst ([0-9]{1,12}))?(?: per ([a-z]+))?$`)

// span returns how long a unit of a rate is, 0 if there is no such unit.
func span(unit string) time.Duration {
	switch unit {
	case "s", "second", "sec":
		return time.Second
	case "m", "minute", "min":
		return time.Minute
	case "h", "hour":
		return time.Hour
	case "d", "day":
		return 24 * time.Hour
	}
	return 0
}

// ParseRate reads a rate such as 50/s per caller.
func ParseRate(s string) (Rate, error) {
	m := rateExpr.FindStringSubmatch(s)
	if m == nil || len(s) > 64 {
		e := &wrong{Message: fmt.Sprintf("%s is not a rate: %s", quote(s), rateForm)}
		if bare := strings.Join(strings.Fields(s), " "); bare != s && rateExpr.MatchString(bare) {
			e.Suggestion = bare
		} else if numExpr.MatchString(s) {
			e.Suggestion = s + "/s"
		}
		return Rate{}, e
	}
	number := func(digits, what string) (int, error) {
		if digits == "" {
			return 0, nil
		}
		n, err := strconv.Atoi(digits)
		if err != nil || n < 1 || n > bawn.MaxRateCalls {
			return 0, &wrong{Message: fmt.Sprintf("%s %s of a rate must be from 1 to %d", what, digits, bawn.MaxRateCalls)}
		}
		return n, nil
	}
	r := Rate{Per: span(m[2]), By: m[4]}
	var err error
	if r.Calls, err = number(m[1], "the calls"); err != nil {
		return Rate{}, err
	}
	if r.Burst, err = number(m[3], "the burst"); err != nil {
		return Rate{}, err
	}
	switch {
	case r.Per == 0:
		return Rate{}, &wrong{fmt.Sprintf("%s is no unit of a rate: want s, m, h or d", quote(m[2])), nearest(m[2], []string{"second", "minute", "hour", "day"})}
	case r.By != "" && r.By != bawn.ByCaller && r.By != bawn.ByAddress:
		return Rate{}, &wrong{fmt.Sprintf("a rate is per caller, per address, or for all together, not per %s", quoteless(r.By)), nearest(r.By, []string{bawn.ByCaller, bawn.ByAddress})}
	}
	if r.Burst == r.Calls {
		r.Burst = 0 // what it is without being said
	}
	return r, nil
}

// String writes r as [ParseRate] reads it.
func (r Rate) String() string {
	unit := "s"
	for _, u := range []string{"m", "h", "d"} {
		if r.Per == span(u) {
			unit = u
		}
	}
	s := strconv.Itoa(r.Calls) + "/" + unit
	if r.Burst > 0 {
		s += " burst " + strconv.Itoa(r.Burst)
	}
	if r.By != "" {
		s += " per " + r.By
	}
	return s
}

// MarshalText writes r as [Rate.String].
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// MarshalJSON writes a single rate without a list.
func (r Rates) MarshalJSON() ([]byte, error) {
	if len(r) == 1 {
		return json.Marshal(r[0].String())
	}
	return json.Marshal([]Rate(r))
}

func (r Rates) compile() []bawn.Rate {
	var all []bawn.Rate
	for _, rate := range r {
		all = append(all, bawn.Rate(rate))
	}
	return all
}

// compile returns nil where nothing is limited, so that versions without limits
// keep their digest.
func (l Limits) compile() *bawn.Limits {
	if len(l.Rate) == 0 && l.Concurrency == 0 {
		return nil
	}
	return &bawn.Limits{Rates: l.Rate.compile(), Concurrency: l.Concurrency}
}

// RatesText writes rates in one line; "" if there are none.
func RatesText(rates []bawn.Rate) string {
	parts := make([]string, len(rates))
	for i, r := range rates {
		parts[i] = Rate(r).String()
	}
	return strings.Join(parts, ", ")
}

// LimitsText writes the limits of a function in one line; "" if there are none.
func LimitsText(l *bawn.Limits) string {
	if l == nil {
		return ""
	}
	s := RatesText(l.Rates)
	if l.Concurrency > 0 {
		if s != "" {
			s += ", "
		}
		s += strconv.Itoa(l.Concurrency) + " at one time"
	}
	return s
}

func limitsFields() object[Limits] {
	return object[Limits]{doc: "limits", fields: []field[Limits]{
		is("rate", "a rate or a list of them, each holds alone: "+rateForm+"; burst is how many at once, all of them if left out", rates(), func(l *Limits) *Rates { return &l.Rate }),
		is("concurrency", "calls at one time, at most interior.concurrency, which is also what it is if left out", whole("concurrency", 1, bawn.MaxConcurrency), func(l *Limits) *int { return &l.Concurrency }),
	}}
}

func routeLimitsFields() object[Limits] {
	o := limitsFields()
	o.fields = o.fields[:1]
	o.doc = "limits of a route"
	o.strayed = func(name string) error {
		if name == "concurrency" {
			return &wrong{"concurrency is the function's: it belongs under ingress.limits", ""}
		}
		return nil
	}
	return o
}

// rates reads a rate or a list of them.
func rates() value[Rates] {
	one := value[Rate]{map[string]any{"type": "string", "pattern": ratePattern}, func(d *decoder, n *yaml.Node, at string) (Rate, bool) {
		s, ok := scalar(d, n, at, "a rate such as 50/s", "!!str")
		if !ok {
			return Rate{}, false
		}
		r, err := ParseRate(s)
		if err != nil {
			d.reject(n, at, err)
		}
		return r, err == nil
	}}
	all := listOf("rate", bawn.MaxRates, one)
	return value[Rates]{map[string]any{"oneOf": []any{one.schema, all.schema}}, func(d *decoder, n *yaml.Node, at string) (Rates, bool) {
		if n.Kind != yaml.SequenceNode {
			r, ok := one.read(d, n, at)
			return Rates{r}, ok
		}
		list, ok := all.read(d, n, at)
		for i, r := range list {
			if ok && slices.Contains(list[:i], r) {
				d.report(n, at, fmt.Sprintf("the rate %s is there a second time", r), "")
				ok = false
			}
		}
		return list, ok
	}}
}
