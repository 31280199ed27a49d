package manifest

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// Budget says what calls may use in a span of time: each grant as it is written for
// one meter, and one of [bawn.OfCaller], [bawn.OfAnonymous] or all calls.
type Budget []bawn.Grant

const (
	maxPeriods   = 3 // amounts of one meter: by hour, day and month
	maxCalls     = 1_000_000_000_000
	maxSeconds   = 1_000_000_000 // of processor time, and GB-seconds, and units of money
	moneyUnit    = 1_000_000_000
	grantPattern = `^[0-9A-Za-z.]+/(hour|day|month)$`
)

// meterForms are the meters, with an example of an amount.
var meterForms = []struct{ meter, example, doc string }{
	{bawn.MeterCalls, "100000/day", "calls"},
	{bawn.MeterCPU, "3600s/day", "seconds of processor time"},
	{bawn.MeterMemory, "5000GBs/month", "GB-seconds: interior.memory for as long as calls take"},
	{bawn.MeterEgress, "10GiB/day", "bytes to and from what is outside"},
	{bawn.MeterMoney, "5.00/month", "money, by the price table that the operator sets; without one calls cost nothing"},
}

// ParseGrant reads an amount of a meter for a span of time, such as 3600s/day.
func ParseGrant(meter, s string) (bawn.Grant, error) {
	g := bawn.Grant{Meter: meter}
	i := slices.IndexFunc(meterForms, func(f struct{ meter, example, doc string }) bool { return f.meter == meter })
	if i < 0 {
		return g, &wrong{Message: fmt.Sprintf("%s is no meter: want calls, cpu, memory, egress or money", quote(meter))}
	}
	amount, per, ok := strings.Cut(s, "/")
	bad := &wrong{Message: fmt.Sprintf("%s is not an amount of %s: want one such as %s", quote(s), meter, meterForms[i].example)}
	if !ok || len(s) > 64 {
		return g, bad
	}
	if g.Per = per; per != bawn.PerHour && per != bawn.PerDay && per != bawn.PerMonth {
		return g, &wrong{Message: fmt.Sprintf("%s is not a span of a budget: want hour, day or month", quote(per))}
	}
	var err error
	switch meter {
	case bawn.MeterCalls:
		g.Amount, err = decimalOf(amount, 1, maxCalls)
	case bawn.MeterCPU:
		var d Duration
		if number, seconds := strings.CutSuffix(amount, "s"); seconds && numExpr.MatchString(number) {
			g.Amount, err = decimalOf(number, int64(time.Second), maxSeconds)
		} else {
			d, err = ParseDuration(amount)
			g.Amount = int64(d)
		}
	case bawn.MeterMemory:
		number, unit := strings.CutSuffix(amount, "GBs")
		if !unit {
			return g, bad
		}
		g.Amount, err = decimalOf(number, 1<<30, maxSeconds)
	case bawn.MeterEgress:
		var n Size
		n, err = ParseSize(amount)
		g.Amount = int64(n)
	case bawn.MeterMoney:
		g.Amount, err = decimalOf(amount, moneyUnit, maxSeconds)
	}
	if err != nil {
		return g, bad
	}
	return g, nil
}

// decimalOf reads a decimal of at most so many units, rounded up to a whole number
// of parts.
func decimalOf(s string, unit, most int64) (int64, error) {
	if !numExpr.MatchString(s) || unit == 1 && strings.Contains(s, ".") {
		return 0, strconv.ErrSyntax
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || r.Cmp(new(big.Rat).SetInt64(most)) > 0 {
		return 0, strconv.ErrRange
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	n := new(big.Int).Add(r.Num(), new(big.Int).Sub(r.Denom(), big.NewInt(1)))
	return n.Div(n, r.Denom()).Int64(), nil
}

// MarshalJSON writes the form that is read.
func (b Budget) MarshalJSON() ([]byte, error) {
	all := map[string]any{}
	for _, g := range b {
		m := all
		if g.Of != "" {
			of, ok := all[g.Of].(map[string]any)
			if !ok {
				of = map[string]any{}
				all[g.Of] = of
			}
			m = of
		}
		list, _ := m[g.Meter].([]string)
		m[g.Meter] = append(list, bawn.MeterText(g.Meter, g.Amount)+"/"+g.Per)
	}
	return json.Marshal(all)
}

// BudgetText writes a budget as a manifest can have it, on one line.
func BudgetText(grants []bawn.Grant) string {
	var top []string
	for _, of := range []string{"", bawn.OfAnonymous, bawn.OfCaller} {
		var parts []string
		for _, f := range meterForms {
			var amounts []string
			for _, g := range grants {
				if g.Of == of && g.Meter == f.meter {
					amounts = append(amounts, bawn.MeterText(g.Meter, g.Amount)+"/"+g.Per)
				}
			}
			switch len(amounts) {
			case 0:
			case 1:
				parts = append(parts, f.meter+": "+amounts[0])
			default:
				parts = append(parts, f.meter+": ["+strings.Join(amounts, ", ")+"]")
			}
		}
		if of != "" && len(parts) > 0 {
			parts = []string{of + ": {" + strings.Join(parts, ", ") + "}"}
		}
		top = append(top, parts...)
	}
	return "{" + strings.Join(top, ", ") + "}"
}

// budgetFields is ingress.budget, and what it has for callers and for strangers.
func budgetFields() object[Budget] {
	o := metersOf("", "a budget")
	for _, of := range []struct{ name, doc string }{
		{bawn.OfAnonymous, "what all callers without a credential may use together; half of the rest if left out. An amount alone is of calls"},
		{bawn.OfCaller, "what each caller may use. An amount alone is of calls"},
	} {
		inner := metersOf(of.name, "the budget of "+of.name)
		short := allowance(of.name, bawn.MeterCalls, meterForms[0].example)
		o.fields = append(o.fields, field[Budget]{name: of.name, doc: of.doc, schema: map[string]any{"anyOf": []any{short.schema, inner.schema()}},
			read: func(d *decoder, n *yaml.Node, at string, b *Budget) {
				if n.Kind == yaml.MappingNode {
					inner.read(d, n, at, b)
				} else {
					short.read(d, n, at, b)
				}
			}})
	}
	return o
}

func metersOf(of, doc string) object[Budget] {
	o := object[Budget]{doc: doc}
	for _, f := range meterForms {
		a := allowance(of, f.meter, f.example)
		a.doc = f.doc
		o.fields = append(o.fields, a)
	}
	return o
}

// allowance is an amount of one meter, or a list of them by different spans.
func allowance(of, meter, example string) field[Budget] {
	one := map[string]any{"type": "string", "pattern": grantPattern, "examples": []any{example}}
	read := func(d *decoder, n *yaml.Node, at string, b *Budget) {
		s, ok := scalar(d, n, at, "an amount such as "+example, "!!str")
		if !ok {
			return
		}
		g, err := ParseGrant(meter, s)
		if err != nil {
			d.reject(n, at, err)
			return
		}
		g.Of = of
		if slices.ContainsFunc(*b, func(o bawn.Grant) bool { return o.Of == g.Of && o.Meter == g.Meter && o.Per == g.Per }) {
			d.report(n, at, fmt.Sprintf("%s has a second amount for one %s", meter, g.Per), "")
			return
		}
		*b = append(*b, g)
	}
	return field[Budget]{name: meter, schema: map[string]any{"anyOf": []any{one, map[string]any{"type": "array", "items": one, "minItems": 1, "maxItems": maxPeriods}}},
		read: func(d *decoder, n *yaml.Node, at string, b *Budget) {
			if n.Kind != yaml.SequenceNode {
				read(d, n, at, b)
				return
			}
			if len(n.Content) == 0 || len(n.Content) > maxPeriods {
				d.report(n, at, fmt.Sprintf("%s has %d amounts, want 1 to %d", meter, len(n.Content), maxPeriods), "")
				return
			}
			for i, c := range n.Content {
				read(d, c, fmt.Sprintf("%s[%d]", at, i), b)
			}
		}}
}

// compile returns the grants, sorted, if each lets at least one call of v in.
func (b Budget) compile(v *bawn.Version) ([]bawn.Grant, error) {
	if len(b) == 0 {
		return nil, nil
	}
	grants := slices.Clone([]bawn.Grant(b))
	slices.SortFunc(grants, func(a, b bawn.Grant) int {
		return strings.Compare(a.Of+"."+a.Meter+"."+a.Per, b.Of+"."+b.Meter+"."+b.Per)
	})
	most := v.Most()
	for _, g := range grants {
		if need := most.Of(g.Meter); g.Amount < need && g.Amount > 0 && g.Meter != bawn.MeterCalls {
			return nil, bawn.Errorf(bawn.CodeInvalid, "manifest", "function %q: ingress.budget %s is less than one call may use, %s, so none would be let in", v.Function, g, bawn.MeterText(g.Meter, need)).
				WithFix("raise it, or lower interior.timeout, interior.cpu, interior.memory or the bytes of egress.hosts")
		}
	}
	return grants, nil
}

// priceNames are what has a price, in the order in which a table has them.
var priceNames = []struct {
	name, of string
	at       func(*bawn.Prices) *int64
}{
	{"call", "of one call", func(p *bawn.Prices) *int64 { return &p.Call }},
	{"cpu", "of a second of processor time", func(p *bawn.Prices) *int64 { return &p.CPU }},
	{"memory", "of a GiB of memory for a second", func(p *bawn.Prices) *int64 { return &p.Memory }},
	{"egress", "of a GiB to or from what is outside", func(p *bawn.Prices) *int64 { return &p.Egress }},
}

// ParsePrices reads a price table, such as [PricesText] writes. What is not there
// costs nothing.
func ParsePrices(file string, data []byte) (bawn.Prices, error) {
	o := object[bawn.Prices]{doc: "a price table", fields: []field[bawn.Prices]{
		{name: "currency", doc: "three letters", read: func(d *decoder, n *yaml.Node, at string, p *bawn.Prices) {
			s, ok := scalar(d, n, at, "three capital letters, such as EUR", "!!str")
			if ok && (len(s) != 3 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
				d.report(n, at, fmt.Sprintf("%s is no currency: want three capital letters, such as EUR", quote(s)), "")
			}
			p.Currency = s
		}},
	}}
	for _, f := range priceNames {
		o.fields = append(o.fields, field[bawn.Prices]{name: f.name, doc: f.of, read: func(d *decoder, n *yaml.Node, at string, p *bawn.Prices) {
			s, ok := scalar(d, n, at, "a number such as 0.0000002", "!!float", "!!int", "!!str")
			if !ok {
				return
			}
			amount, err := decimalOf(s, moneyUnit, bawn.MaxPrice/moneyUnit)
			if err != nil {
				d.report(n, at, fmt.Sprintf("%s is no price: want a number up to %d with at most nine places, such as 0.0000002", quote(s), bawn.MaxPrice/moneyUnit), "")
				return
			}
			*f.at(p) = amount
		}})
	}
	var p bawn.Prices
	return p, parse(&decoder{file: file, what: "price table"}, data, o, &p)
}

// PricesText writes a price table as [ParsePrices] reads it.
func PricesText(p *bawn.Prices) string {
	var b strings.Builder
	if p.Currency != "" {
		fmt.Fprintf(&b, "currency: %s\n", p.Currency)
	}
	for _, f := range priceNames {
		fmt.Fprintf(&b, "%-7s %-14s # %s\n", f.name+":", bawn.MeterText(bawn.MeterMoney, *f.at(p)), f.of)
	}
	return b.String()
}
