package meter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// settings are a row: a tenant's budgets, or under pricesKey what things cost.
type settings struct {
	Grants   []bawn.Grant `json:"grants,omitempty"`
	Operator bool         `json:"operator,omitempty"` // who set Grants, and alone may change them
	Lifts    []bawn.Lift  `json:"lifts,omitempty"`
	Prices   *bawn.Prices `json:"prices,omitempty"`
}

const pricesKey = "prices"

func settingsKey(tenant string) string { return tenant + ".budget" }

// maxLifts is how many budgets of a tenant may be lifted at one time.
const maxLifts = 100

// lifted reports whether a budget does not hold now. The clock going back does not
// make a lift longer: it is for the window that it was made in.
func lifted(lifts []bawn.Lift, function string, g bawn.Grant, now time.Time) bool {
	for _, f := range lifts {
		if f.Function == function && f.Of == g.Of && f.Meter == g.Meter && f.Per == g.Per {
			if _, end := bounds(span(f.Per), now); end.Equal(f.Ends) {
				return true
			}
		}
	}
	return false
}

// Prices returns the price table, and whether there is one: without it nothing
// costs anything.
func (l *Ledger) Prices() (p bawn.Prices, ok bool, err error) {
	s, _, _, err := l.settings.Find(pricesKey)
	if err != nil || s.Prices == nil {
		return p, false, err
	}
	return *s.Prices, true, nil
}

// SetPrices replaces the price table. Calls that run keep the prices that they were
// admitted with.
func (l *Ledger) SetPrices(ctx context.Context, p bawn.Prices) error {
	return put(ctx, l.settings, pricesKey, settings{Prices: &p})
}

// Budget returns the budgets of a tenant, and whether an operator has set them.
func (l *Ledger) Budget(tenant string) (grants []bawn.Grant, operator bool, err error) {
	s, _, _, err := l.settings.Find(settingsKey(tenant))
	return s.Grants, s.Operator, err
}

// Lifts returns the lifts that hold now, of the tenant's budgets and of its
// functions'.
func (l *Ledger) Lifts(tenant string) ([]bawn.Lift, error) {
	s, _, _, err := l.settings.Find(settingsKey(tenant))
	return current(s.Lifts, l.cfg.Now()), err
}

// SetBudget replaces the budgets of a tenant.
func (l *Ledger) SetBudget(ctx context.Context, tenant string, grants []bawn.Grant, operator bool) error {
	s, _, _, err := l.settings.Find(settingsKey(tenant))
	if err != nil {
		return err
	}
	s.Grants, s.Operator = grants, operator && len(grants) > 0
	return put(ctx, l.settings, settingsKey(tenant), s)
}

// Lift lets a budget not hold until its window ends, and returns when that is. f
// says which, why and by whom.
func (l *Ledger) Lift(ctx context.Context, tenant string, f bawn.Lift) (bawn.Lift, error) {
	now := l.cfg.Now()
	s, _, _, err := l.settings.Find(settingsKey(tenant))
	if err != nil {
		return bawn.Lift{}, err
	}
	_, f.Ends = bounds(span(f.Per), now)
	s.Lifts = slices.DeleteFunc(current(s.Lifts, now), func(o bawn.Lift) bool {
		return o.Function == f.Function && o.Of == f.Of && o.Meter == f.Meter && o.Per == f.Per
	})
	if len(s.Lifts) >= maxLifts {
		return bawn.Lift{}, bawn.Errorf(bawn.CodeTooLarge, "meter.lift", "%d budgets of the tenant are lifted, no more are allowed", maxLifts).
			WithFix("deploy with larger budgets")
	}
	s.Lifts = append(s.Lifts, f)
	return f, put(ctx, l.settings, settingsKey(tenant), s)
}

func current(lifts []bawn.Lift, now time.Time) []bawn.Lift {
	return slices.DeleteFunc(slices.Clone(lifts), func(f bawn.Lift) bool { return !now.Before(f.Ends) })
}

// hashed returns a name for what is too long or too odd to be one: its kind and a
// hash.
func hashed(s string) string {
	kind, _, _ := strings.Cut(s, ":")
	if len(kind) > 16 || strings.ContainsFunc(kind, func(c rune) bool { return c < 'a' || c > 'z' }) {
		kind = "caller"
	}
	h := sha256.Sum256([]byte(s))
	return kind + ":sha256-" + hex.EncodeToString(h[:12])
}

// Standings says how it is with the budgets of a function, or of the tenant itself
// if function is empty.
func (l *Ledger) Standings(tenant, function string, grants []bawn.Grant) ([]bawn.Standing, error) {
	set, _, _, err := l.settings.Find(settingsKey(tenant))
	if err != nil {
		return nil, err
	}
	now := l.cfg.Now()
	b := l.book(tenant)
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []bawn.Standing{}
	for _, g := range grants {
		s, m := span(g.Per), index(g.Meter)
		if s < 0 || m < 0 {
			continue
		}
		w, err := l.current(b, s, now)
		if err != nil {
			return nil, err
		}
		st := bawn.Standing{Function: function, Grant: g, Text: g.String(), Ends: w.end}
		see := func(caller string) (used, held int64) {
			c := w.pairs[pair{function, caller}]
			if function == "" {
				c = w.callers[caller]
			}
			if c == nil {
				return 0, 0
			}
			return c.used[m], c.held[m]
		}
		switch g.Of {
		case bawn.OfAnonymous:
			st.Used, st.Held = see(bawn.Anonymous().String())
		case bawn.OfCaller:
			for name := range w.callers {
				if name == bawn.Anonymous().String() {
					continue
				}
				if used, held := see(name); used+held > st.Used+st.Held || used+held == st.Used+st.Held && used > 0 && name < st.Caller {
					st.Used, st.Held, st.Caller = used, held, name
				}
			}
		default:
			c := &w.total
			if function != "" {
				if c = w.functions[function]; c == nil {
					c = new(cell)
				}
			}
			st.Used, st.Held = c.used[m], c.held[m]
			if !slices.ContainsFunc(grants, func(o bawn.Grant) bool { return o.Of == bawn.OfAnonymous && o.Meter == g.Meter }) {
				st.Share = g.Amount / 2
				st.Shared, _ = see(bawn.Anonymous().String())
			}
		}
		for _, f := range set.Lifts {
			if lifted([]bawn.Lift{f}, function, g, now) {
				st.Lift = &f
			}
		}
		list = append(list, st)
	}
	return list, nil
}

// Cost adds up the windows since a time, of one length, for some tenants: what the
// functions used that see says, or all if it is nil. What calls that run have used
// is not in it yet.
func (l *Ledger) Cost(tenants []string, per string, since time.Time, see func(function string) bool) (bawn.Cost, error) {
	s := span(per)
	if s < 0 {
		return bawn.Cost{}, bawn.Errorf(bawn.CodeInvalid, "meter.cost", "per is %.20q", per).WithFix("take hour, day or month")
	}
	prices, _, err := l.Prices()
	if err != nil {
		return bawn.Cost{}, err
	}
	first, _ := bounds(s, since)
	c := bawn.Cost{From: first, Per: per, Currency: prices.Currency}
	functions, callers, byTenant := map[string]*amounts{}, map[string]*amounts{}, map[string]*amounts{}
	var total amounts
	add := func(m map[string]*amounts, name string, a *amounts) {
		if m[name] == nil {
			m[name] = new(amounts)
		}
		m[name].add(a)
	}
	for _, tenant := range tenants {
		b := l.book(tenant)
		// What is stored and what is in memory are two views of one window: memory is
		// the newer one.
		b.mu.Lock()
		keys := map[string]*window{}
		for _, w := range b.each() {
			keys[w.key] = w
		}
		for key := range l.windows.All(tenant + ".") {
			if _, ok := keys[key]; !ok {
				keys[key] = nil
			}
		}
		for key, w := range keys {
			name := strings.TrimPrefix(key, tenant+".")
			if !strings.HasPrefix(name, layouts[s][:2]) || name < first.Format(layouts[s]) {
				continue
			}
			var r row
			if w != nil {
				r = w.row(0)
			} else if r, _, _, err = l.windows.Find(key); err != nil {
				break
			}
			if len(r.Pairs) > 0 {
				c.Windows++
			}
			for i := range r.Pairs {
				p := &r.Pairs[i]
				if see != nil && !see(p.Function) {
					continue
				}
				total.add(&p.Used)
				function, caller := p.Function, p.Caller
				if len(tenants) > 1 {
					function, caller = tenant+"."+function, tenant+"."+caller
				}
				add(functions, function, &p.Used)
				add(callers, caller, &p.Used)
				add(byTenant, tenant, &p.Used)
			}
		}
		if err == nil && l.windows.LostUnder(tenant+"."+layouts[s][:2]) {
			err = l.windows.Trusted()
		}
		b.mu.Unlock()
		if err != nil {
			return bawn.Cost{}, err
		}
	}
	c.Total = spending(total)
	c.Functions, c.Callers, c.Tenants = blame(functions), blame(callers), blame(byTenant)
	return c, nil
}

// blame lists what each used, the dearest first.
func blame(m map[string]*amounts) []bawn.Blame {
	list := make([]bawn.Blame, 0, len(m))
	for name, a := range m {
		list = append(list, bawn.Blame{Name: name, Use: spending(*a)})
	}
	slices.SortFunc(list, func(a, b bawn.Blame) int {
		return cmp.Or(cmp.Compare(b.Use.Money, a.Use.Money), cmp.Compare(b.Use.CPU, a.Use.CPU), cmp.Compare(b.Use.Calls, a.Use.Calls), strings.Compare(a.Name, b.Name))
	})
	return list
}
