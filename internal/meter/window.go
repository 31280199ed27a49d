package meter

import (
	"time"

	"bawn.dev/bawn"
)

// The meters, in the order in which amounts stand everywhere in this package.
const (
	calls = iota
	cpu
	memory
	egress
	money
	meters
)

// names are the meters as a [bawn.Grant] names them.
var names = [meters]string{bawn.MeterCalls, bawn.MeterCPU, bawn.MeterMemory, bawn.MeterEgress, bawn.MeterMoney}

// index returns the place of a meter, or -1.
func index(meter string) int {
	for i, n := range names {
		if n == meter {
			return i
		}
	}
	return -1
}

// amounts is one number for each meter, in the units of [bawn.Grant.Amount].
type amounts [meters]int64

func (a *amounts) add(b *amounts) {
	for i := range a {
		a[i] += b[i]
	}
}

func (a *amounts) sub(b *amounts) {
	for i := range a {
		a[i] -= b[i]
	}
}

// The lengths of windows.
const (
	hour = iota
	day
	month
	spans
)

// spanNames are the lengths as a [bawn.Grant] names them.
var spanNames = [spans]string{bawn.PerHour, bawn.PerDay, bawn.PerMonth}

// layouts make a window's name of its beginning. The names of windows of one
// length sort by time.
var layouts = [spans]string{"h-2006010215", "d-20060102", "m-200601"}

// kept is how many windows of each length there are; the oldest go first. It is a
// number and no age, so that a clock that is wrong for a while removes one window
// and not all.
var kept = [spans]int{72, 62, 25}

func span(per string) int {
	for i, n := range spanNames {
		if n == per {
			return i
		}
	}
	return -1
}

// bounds returns the window of a length that holds t.
func bounds(s int, t time.Time) (start, end time.Time) {
	t = t.UTC()
	switch s {
	case hour:
		start = t.Truncate(time.Hour)
		return start, start.Add(time.Hour)
	case day:
		start = time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
		return start, start.AddDate(0, 0, 1)
	}
	start = time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	return start, start.AddDate(0, 1, 0)
}

// A window is what a tenant's calls of one span of time use. Every sum in it is
// the sum of its pairs, since whatever changes a pair changes them all. The
// book's lock guards it.
type window struct {
	span       int
	key        string // of its row
	start, end time.Time
	pairs      map[pair]*cell
	functions  map[string]*cell
	callers    map[string]*cell
	total      cell
	named      int   // pairs whose caller is not [Others]
	open       int   // reservations that are not settled
	at         int64 // entries of the audit log that its row has
	dirty      bool
}

type pair struct{ function, caller string }

// A cell is what was used, and what calls that run hold. A cell of a pair knows
// the sums that it is part of.
type cell struct {
	used, held       amounts
	function, caller *cell
}

// Others is the caller that stands for all whose calls are not counted apart: a
// window has no more than 4096 pairs of a function and a caller.
const Others = "others"

const maxPairs = 4096

// pairOf returns the cell of a pair, and whether the caller is counted among the
// others.
func (w *window) pairOf(function, caller string, others bool) (*cell, bool) {
	c := w.pairs[pair{function, caller}]
	if c != nil && !others {
		return c, caller == Others
	}
	if others = others || w.named >= maxPairs; others {
		caller = Others
		if c = w.pairs[pair{function, caller}]; c != nil {
			return c, true
		}
	}
	return w.grow(pair{function, caller}), caller == Others
}

func (w *window) grow(p pair) *cell {
	c := &cell{function: sum(w.functions, p.function), caller: sum(w.callers, p.caller)}
	w.pairs[p] = c
	if p.caller != Others {
		w.named++
	}
	return c
}

func sum(m map[string]*cell, name string) *cell {
	c := m[name]
	if c == nil {
		c = new(cell)
		m[name] = c
	}
	return c
}

// hold adds to what is held, or takes away.
func (w *window) hold(c *cell, a *amounts, sign int64) {
	for _, x := range [...]*cell{c, c.function, c.caller, &w.total} {
		for i := range a {
			x.held[i] += sign * a[i]
		}
	}
}

// charge adds to what is used.
func (w *window) charge(c *cell, a *amounts) {
	for _, x := range [...]*cell{c, c.function, c.caller, &w.total} {
		x.used.add(a)
	}
	w.dirty = true
}
