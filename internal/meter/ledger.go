// Package meter keeps the ledger of what calls use and what they may: calls,
// processor time, memory, bytes and money, by function and caller, in hours, days
// and months. A call reserves what it may use at most before it begins, and is
// charged what it used when it is over.
//
// The audit log is the ledger's journal: the outcome of each call holds what it was
// charged. The store holds snapshots, each with the place in the log up to which it
// goes; what comes after is read again at the start.
package meter

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

const (
	snapshotEvery = 10 * time.Second
	snapshotAfter = 50_000 // charges
	maxWarnings   = 256    // that wait to be recorded
	maxCaller     = 96     // bytes of a caller's name
	tellEvery     = time.Second
)

func of(u bawn.Spending) amounts { return amounts{u.Calls, u.CPU, u.Memory, u.Egress, u.Money} }

func spending(a amounts) bawn.Spending {
	return bawn.Spending{Calls: a[calls], CPU: a[cpu], Memory: a[memory], Egress: a[egress], Money: a[money]}
}

// Journal is the log that charges are kept in.
type Journal struct {
	// Next returns the index of the next entry.
	Next func() int64
	// Read calls fn for the outcomes from an index on, in their order.
	Read func(ctx context.Context, from int64, fn func(bawn.Record) error) error
	// Append adds a record; an outcome survives the end of the process when it
	// returns.
	Append func(ctx context.Context, r bawn.Record) error
}

// Config says what a [Ledger] works with. All but Log is needed.
type Config struct {
	Store   *store.Store
	Journal Journal
	Open    string // the file of the calls that run
	// Gone reports whether a tenant was removed: nothing is kept of it.
	Gone func(tenant string) bool
	Now  func() time.Time // the clock
	Log  *slog.Logger     // hears of what cannot be kept; nil discards
}

// Ledger counts and holds to budgets. Safe for concurrent use.
type Ledger struct {
	cfg      Config
	windows  *store.Table[row]
	settings *store.Table[settings]
	slots    *slots
	charges  atomic.Int64 // since the last snapshot

	// journal is held for reading while an outcome is appended and charged, and for
	// writing while a snapshot notes where in the log it is: so that it has what is
	// before that place, and nothing else.
	journal sync.RWMutex

	mu    sync.Mutex
	books map[string]*book

	saving   sync.Mutex // held for a snapshot
	kick     chan struct{}
	warnings chan bawn.Record
	stop     context.CancelFunc
	done     sync.WaitGroup
}

// book is what a tenant's calls use.
type book struct {
	tenant string
	key    string // of its settings

	mu      sync.Mutex
	now     [spans]*window
	others  map[string]*window // by key: windows that are over and have calls yet, or were read for the journal
	refused map[string]*told   // by function
}

// told is how refusals of one function are told of: at most one a second.
type told struct {
	at   time.Time
	left int // not told of since
}

// row is a window as it is stored, or under ledgerKey the ledger's own state.
type row struct {
	At    int64     `json:"at"` // entries of the log that are in it
	Pairs []rowPair `json:"pairs,omitempty"`

	Next uint64   `json:"next,omitempty"` // number of the next call at the time
	Open []uint64 `json:"open,omitempty"` // numbers of the calls that ran
}

type rowPair struct {
	Function string  `json:"f"`
	Caller   string  `json:"c"`
	Used     amounts `json:"u"`
}

const ledgerKey = "ledger"

// Open opens the ledger that the store holds, and brings it to where the journal
// is. Calls that ran when the node ended are charged what they had reserved.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Ledger{cfg: cfg, books: make(map[string]*book), kick: make(chan struct{}, 1), warnings: make(chan bawn.Record, maxWarnings)}
	var err error
	if l.windows, err = store.OpenTable[row](ctx, cfg.Store, "meter"); err != nil {
		return nil, err
	}
	if l.settings, err = store.OpenTable[settings](ctx, cfg.Store, "budgets"); err != nil {
		return nil, err
	}
	var found []held
	if l.slots, found, err = openSlots(cfg.Open); err != nil {
		return nil, err
	}
	if err := l.recover(ctx, found); err != nil {
		l.slots.close()
		return nil, err
	}
	background, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() { l.keep(background) })
	return l, nil
}

// recover charges what the journal has beyond the snapshot, and then what ran.
func (l *Ledger) recover(ctx context.Context, found []held) error {
	last, _, ok, err := l.windows.Find(ledgerKey)
	if err != nil {
		// What the tables cannot say, the log cannot either: it may be shorter. Budgets
		// are refused where a window is lost, and counted from here where it is not.
		l.cfg.Log.Error("the ledger of budgets is damaged; what was used since its last snapshot is not counted", "error", err)
		return nil
	}
	next := l.cfg.Journal.Next()
	if !ok {
		last.At = next
	}
	if last.At > next { // the log is older than the store, as after a restore
		last.At = next
		for key, r := range l.windows.All("") {
			if r.At = min(r.At, next); key != ledgerKey {
				if err := put(ctx, l.windows, key, r); err != nil {
					return err
				}
			}
		}
	}
	ran := make(map[string]held, len(found))
	for _, h := range found {
		if h.number < last.Next && !slices.Contains(last.Open, h.number) {
			l.slots.give(&h) // over before the snapshot; the disk did not hear of it
			continue
		}
		ran[h.invocation] = h
	}
	err = l.cfg.Journal.Read(ctx, last.At, func(r bawn.Record) error {
		c, ok := parseCharge(r.Detail[ChargeDetail])
		if !ok || r.Kind != bawn.KindOutcome || l.cfg.Gone(r.Tenant) {
			return nil
		}
		if h, ok := ran[r.Invocation]; ok {
			delete(ran, r.Invocation)
			l.slots.give(&h)
		}
		b := l.book(r.Tenant)
		b.mu.Lock()
		defer b.mu.Unlock()
		for s := range spans {
			start, _ := bounds(s, c.at)
			w, err := l.window(b, s, start)
			if err != nil || r.Index < w.at {
				continue
			}
			p, _ := w.pairOf(r.Function, c.caller, c.others&(1<<s) != 0)
			w.charge(p, &c.used)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, h := range ran {
		if l.cfg.Gone(h.tenant) {
			l.slots.give(&h)
			continue
		}
		if err := l.abandoned(ctx, h); err != nil {
			return err
		}
	}
	return l.Snapshot(ctx)
}

// abandoned charges a call that ran when the node ended with what it had reserved,
// and gives it an outcome.
func (l *Ledger) abandoned(ctx context.Context, h held) error {
	r := &Reservation{ledger: l, book: l.book(h.tenant), held: h}
	r.book.mu.Lock()
	for s := range spans {
		start, _ := bounds(s, h.at)
		w, err := l.window(r.book, s, start)
		if err != nil {
			continue
		}
		r.windows[s] = w
		r.cells[s], _ = w.pairOf(h.function, h.caller, h.others&(1<<s) != 0)
		w.hold(r.cells[s], &h.most, 1)
		w.open++
	}
	r.book.mu.Unlock()
	return r.charge(h.most, func(text string) error {
		return l.cfg.Journal.Append(ctx, bawn.Record{
			Kind: bawn.KindOutcome, Time: l.cfg.Now(), Tenant: h.tenant, Function: h.function, Version: h.version,
			Invocation: h.invocation, Principal: h.principal, Source: h.source, Action: "invoke", Outcome: "error",
			Reason: "the node ended while the call ran; it is charged what it had reserved", Detail: map[string]string{ChargeDetail: text},
		})
	})
}

// Close takes a last snapshot. Calls that are charged after it are in the journal.
func (l *Ledger) Close(ctx context.Context) error {
	l.stop()
	l.done.Wait()
	err := l.Snapshot(ctx)
	return cmp.Or(err, l.slots.close())
}

// keep takes snapshots and records warnings.
func (l *Ledger) keep(ctx context.Context) {
	t := time.NewTicker(snapshotEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			for {
				select {
				case r := <-l.warnings:
					l.record(context.WithoutCancel(ctx), r)
				default:
					return
				}
			}
		case r := <-l.warnings:
			l.record(ctx, r)
			continue
		case <-t.C:
			if l.charges.Load() == 0 {
				continue
			}
		case <-l.kick:
		}
		if err := l.Snapshot(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("what calls used could not be stored; the audit log has it", "error", err)
		}
	}
}

func (l *Ledger) record(ctx context.Context, r bawn.Record) {
	if err := l.cfg.Journal.Append(ctx, r); err != nil {
		l.cfg.Log.Warn("a warning of a budget could not be recorded", "error", err)
	}
}

// Snapshot stores what has changed. After it the journal is read from its place on.
func (l *Ledger) Snapshot(ctx context.Context) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	type change struct {
		book *book
		w    *window
		row  row
	}
	var changed []change
	l.journal.Lock()
	state := row{At: l.cfg.Journal.Next()}
	state.Next, state.Open = l.slots.taken()
	l.charges.Store(0)
	for _, b := range l.all() {
		if l.cfg.Gone(b.tenant) {
			continue
		}
		b.mu.Lock()
		for _, w := range b.each() {
			if w.dirty {
				w.dirty = false
				changed = append(changed, change{b, w, w.row(state.At)})
			}
		}
		b.mu.Unlock()
	}
	l.journal.Unlock()
	var failed error
	for _, c := range changed {
		err := ctx.Err()
		if err == nil {
			err = put(ctx, l.windows, c.w.key, c.row)
		}
		c.book.mu.Lock()
		if err != nil {
			c.w.dirty, failed = true, err
		} else {
			c.w.at = state.At
		}
		c.book.mu.Unlock()
	}
	if failed != nil {
		return failed
	}
	if err := put(ctx, l.windows, ledgerKey, state); err != nil {
		return err
	}
	for _, c := range changed {
		c.book.forget()
		if err := l.prune(ctx, c.book.tenant, c.w.span); err != nil {
			return err
		}
	}
	return nil
}

// put makes or replaces a row.
func put[T any](ctx context.Context, t *store.Table[T], key string, v T) error {
	_, rev, ok, err := t.Find(key)
	if err != nil {
		return err
	}
	if ok {
		_, err = t.Update(ctx, key, v, rev)
	} else {
		_, err = t.Create(ctx, key, v)
	}
	return err
}

// prune removes the oldest windows of one length beyond those that are kept.
func (l *Ledger) prune(ctx context.Context, tenant string, s int) error {
	var keys []string
	for key := range l.windows.All(tenant + "." + layouts[s][:2]) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys[:max(0, len(keys)-kept[s])] {
		_, rev, ok := l.windows.Get(key)
		if !ok {
			continue
		}
		if err := l.windows.Delete(ctx, key, rev); err != nil {
			return err
		}
	}
	return nil
}

// Forget removes what a tenant used and all that was set for it.
func (l *Ledger) Forget(ctx context.Context, tenant string) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	delete(l.books, tenant)
	l.mu.Unlock()
	for key := range l.windows.All(tenant + ".") {
		if _, rev, ok := l.windows.Get(key); ok {
			if err := l.windows.Delete(ctx, key, rev); err != nil {
				return err
			}
		}
	}
	if _, rev, ok := l.settings.Get(settingsKey(tenant)); ok {
		return l.settings.Delete(ctx, settingsKey(tenant), rev)
	}
	return nil
}

// Has returns how many windows there are of a tenant.
func (l *Ledger) Has(tenant string) (n int) {
	for range l.windows.All(tenant + ".") {
		n++
	}
	return n
}

func (l *Ledger) all() []*book {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.books))
}

func (l *Ledger) book(tenant string) *book {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.books[tenant]
	if b == nil {
		b = &book{tenant: tenant, key: settingsKey(tenant), others: make(map[string]*window), refused: make(map[string]*told)}
		l.books[tenant] = b
	}
	return b
}

// each returns the windows in memory; the book is locked.
func (b *book) each() []*window {
	list := make([]*window, 0, spans+len(b.others))
	for _, w := range b.now {
		if w != nil {
			list = append(list, w)
		}
	}
	for _, w := range b.others {
		list = append(list, w)
	}
	return list
}

// forget lets windows go that are over and stored.
func (b *book) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, w := range b.others {
		if w.open == 0 && !w.dirty {
			delete(b.others, key)
		}
	}
}

// current returns the window that holds t; the book is locked.
func (l *Ledger) current(b *book, s int, t time.Time) (*window, error) {
	if w := b.now[s]; w != nil && !t.Before(w.start) && t.Before(w.end) {
		return w, nil
	}
	start, _ := bounds(s, t)
	w, err := l.window(b, s, start)
	if err != nil {
		return nil, err
	}
	if old := b.now[s]; old != nil {
		b.others[old.key] = old
	}
	delete(b.others, w.key)
	b.now[s] = w
	return w, nil
}

// window returns a window, as the store has it if it is not in memory; the book is
// locked. A window that was there is counted on, whatever the clock says: no
// budget begins anew because a clock goes back.
func (l *Ledger) window(b *book, s int, start time.Time) (*window, error) {
	key := b.tenant + "." + start.UTC().Format(layouts[s])
	if w := b.now[s]; w != nil && w.key == key {
		return w, nil
	}
	if w := b.others[key]; w != nil {
		return w, nil
	}
	r, _, _, err := l.windows.Find(key)
	if err != nil {
		return nil, err
	}
	w := &window{span: s, key: key, pairs: make(map[pair]*cell), functions: make(map[string]*cell), callers: make(map[string]*cell), at: r.At}
	w.start, w.end = bounds(s, start)
	for _, p := range r.Pairs {
		w.charge(w.grow(pair{p.Function, p.Caller}), &p.Used)
	}
	w.dirty = false
	b.others[key] = w
	return w, nil
}

// row returns the window as it is stored; the book is locked.
func (w *window) row(at int64) row {
	r := row{At: at, Pairs: make([]rowPair, 0, len(w.pairs))}
	for p, c := range w.pairs {
		if c.used != (amounts{}) {
			r.Pairs = append(r.Pairs, rowPair{p.function, p.caller, c.used})
		}
	}
	slices.SortFunc(r.Pairs, func(a, b rowPair) int {
		return cmp.Or(strings.Compare(a.Function, b.Function), strings.Compare(a.Caller, b.Caller))
	})
	return r
}

// Request asks for a reservation.
type Request struct {
	Tenant, Function  string
	Version           int
	Invocation        string
	Principal, Source string        // for the record of a call that the node does not live to see the end of
	Caller            string        // who is charged
	Anonymous         bool          // nobody in particular
	Most              bawn.Spending // what the call may use at most; its money is worked out
	Grants            []bawn.Grant
}

// Refused says which budget a call does not fit into.
type Refused struct {
	Grant  bawn.Grant
	Tenant bool      // the budget is the tenant's
	Share  bool      // it is the part that callers without a credential may have
	Limit  int64     // what there is
	Used   int64     // of that
	Held   int64     // by calls that run
	Ends   time.Time // of the window
	Tell   bool      // whether it should be recorded: others of the function were just now
	Left   int       // refusals that were not told of since the last that was
}

// Spent reports whether waiting for calls that run is of no use.
func (r *Refused) Spent() bool { return r.Held == 0 || r.Used >= r.Limit }

// Error returns a text without numbers.
func (r *Refused) Error() string { return "a budget is used up" }

// Reservation is what a call holds. It must be charged or cancelled.
type Reservation struct {
	ledger  *Ledger
	book    *book
	windows [spans]*window // nil where the window cannot be read
	cells   [spans]*cell   // of the pair
	prices  bawn.Prices
	grants  []applied
	room    [4]applied // for grants
	held    held
	inSlot  bool
	over    bool
}

// applied is a grant with where it is counted.
type applied struct {
	grant  *bawn.Grant // not changed
	tenant bool
	share  bool
	limit  int64
	meter  int
	window *window
	cell   *cell
}

// Reserve holds what a call may use at most. The error is a *[Refused], or a
// *bawn.Error.
func (l *Ledger) Reserve(q Request) (*Reservation, error) {
	b := l.book(q.Tenant)
	set, _, _, err := l.settings.Find(b.key)
	if err != nil {
		return nil, err
	}
	prices, _, err := l.Prices()
	if err != nil {
		return nil, err
	}
	now := l.cfg.Now()
	r := &Reservation{ledger: l, book: b, prices: prices, held: held{
		invocation: q.Invocation, tenant: q.Tenant, function: q.Function, version: q.Version, principal: q.Principal, source: q.Source,
		caller: callerName(q.Caller), at: now, most: of(q.Most),
	}}
	r.held.most[money] = costOf(&prices, &r.held.most)
	r.grants = r.room[:0]

	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range spans {
		w, err := l.current(b, s, now)
		if err != nil {
			if len(q.Grants)+len(set.Grants) > 0 {
				return nil, err // what cannot be counted cannot be held to a budget
			}
			continue
		}
		var others bool
		r.windows[s] = w
		if r.cells[s], others = w.pairOf(q.Function, r.held.caller, false); others {
			r.held.others |= 1 << s
		}
	}
	r.apply(q.Grants, false, q.Anonymous, set.Lifts, now)
	r.apply(set.Grants, true, q.Anonymous, set.Lifts, now)
	for i := range r.grants {
		g := &r.grants[i]
		used, held := g.cell.used[g.meter], g.cell.held[g.meter]
		if most := r.held.most[g.meter]; used+held > g.limit-most && most > 0 {
			return nil, b.refuse(g, q.Function, used, held, now)
		}
	}
	if r.inSlot = l.slots.take(&r.held); !r.inSlot {
		return nil, bawn.Errorf(bawn.CodeThrottled, "meter.reserve", "the node runs as many calls as it can account for").WithFix("try again in a moment")
	}
	for s, w := range r.windows {
		if w != nil {
			w.hold(r.cells[s], &r.held.most, 1)
			w.open++
		}
	}
	return r, nil
}

// apply finds what the grants are counted by; the book is locked.
func (r *Reservation) apply(grants []bawn.Grant, tenant, anonymous bool, lifts []bawn.Lift, now time.Time) {
	for i := range grants {
		g := &grants[i]
		s, m := span(g.Per), index(g.Meter)
		if s < 0 || m < 0 || r.windows[s] == nil {
			continue
		}
		w, c := r.windows[s], r.cells[s]
		function := r.held.function
		if tenant {
			function = ""
		}
		if lifted(lifts, function, *g, now) {
			continue
		}
		a := applied{grant: g, tenant: tenant, limit: g.Amount, meter: m, window: w}
		own, all := c, c.function
		if tenant {
			own, all = c.caller, &w.total
		}
		switch {
		case g.Of == "":
			a.cell = all
			// Control H4: what strangers use must not be what known callers lack.
			if anonymous && !slices.ContainsFunc(grants, func(o bawn.Grant) bool { return o.Of == bawn.OfAnonymous && o.Meter == g.Meter }) {
				share := a
				share.cell, share.limit, share.share = own, g.Amount/2, true
				r.grants = append(r.grants, share)
			}
		case g.Of == bawn.OfCaller && !anonymous, g.Of == bawn.OfAnonymous && anonymous:
			a.cell = own
		default:
			continue
		}
		r.grants = append(r.grants, a)
	}
}

// refuse makes the refusal by a grant; the book is locked.
func (b *book) refuse(g *applied, function string, used, held int64, now time.Time) *Refused {
	t := b.refused[function]
	if t == nil {
		t = new(told)
		b.refused[function] = t // functions have a bound
	}
	f := &Refused{Grant: *g.grant, Tenant: g.tenant, Share: g.share, Limit: g.limit, Used: used, Held: held, Ends: g.window.end}
	if d := now.Sub(t.at); d >= tellEvery || d < 0 {
		f.Tell, f.Left = true, t.left
		t.at, t.left = now, 0
	} else {
		t.left++
	}
	return f
}

// ChargeDetail is the detail of an outcome that says what was charged:
//
//	SECONDS OTHERS CALLS CPU MEMORY EGRESS MONEY CALLER
//
// SECONDS since 1970 is when the call was admitted; OTHERS has a bit for the hour,
// the day and the month if the caller was counted among others there.
const ChargeDetail = "charge"

// Charge settles the reservation: the call used u. keep must append the call's
// outcome with the text as [ChargeDetail]. If that fails the call keeps all that it
// had reserved, and Charge returns the error.
func (r *Reservation) Charge(u bawn.Spending, keep func(charge string) error) error {
	a := of(u)
	for i := range a {
		a[i] = min(max(a[i], 0), r.held.most[i])
	}
	a[money] = 0
	a[money] = min(costOf(&r.prices, &a), r.held.most[money])
	return r.charge(a, keep)
}

func (r *Reservation) charge(a amounts, keep func(string) error) error {
	l, h := r.ledger, &r.held
	text := make([]byte, 0, 96)
	text = append(strconv.AppendInt(text, h.at.Unix(), 10), ' ')
	text = append(strconv.AppendInt(text, int64(h.others), 10), ' ')
	for _, n := range a {
		text = append(strconv.AppendInt(text, n, 10), ' ')
	}
	text = append(text, h.caller...)

	l.journal.RLock()
	defer l.journal.RUnlock()
	if r.over {
		return keep("")
	}
	r.over = true
	if err := keep(string(text)); err != nil {
		return err
	}
	r.book.mu.Lock()
	for s, w := range r.windows {
		if w == nil {
			continue
		}
		w.hold(r.cells[s], &h.most, -1)
		w.charge(r.cells[s], &a)
		w.open--
	}
	for i := range r.grants {
		g := &r.grants[i]
		after := g.cell.used[g.meter]
		l.warn(r, g, after-a[g.meter], after)
	}
	r.book.mu.Unlock()
	l.slots.give(h)
	if l.charges.Add(1) == snapshotAfter {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
	return nil
}

// parsedCharge is what a [ChargeDetail] says.
type parsedCharge struct {
	at     time.Time
	others int
	used   amounts
	caller string
}

func parseCharge(text string) (c parsedCharge, ok bool) {
	f := strings.SplitN(text, " ", 2+meters+1)
	if len(f) != 2+meters+1 || len(f[2+meters]) > maxCaller {
		return c, false
	}
	var n [2 + meters]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil || n[i] < 0 {
			return c, false
		}
	}
	c = parsedCharge{at: time.Unix(n[0], 0), others: int(n[1]), caller: f[2+meters]}
	copy(c.used[:], n[2:])
	return c, c.others < 1<<spans
}

// Cancel gives the reservation back: the call did not run. It does nothing once the
// call was charged.
func (r *Reservation) Cancel() {
	if r.over {
		return
	}
	r.over = true
	r.book.mu.Lock()
	for s, w := range r.windows {
		if w != nil {
			w.hold(r.cells[s], &r.held.most, -1)
			w.open--
		}
	}
	r.book.mu.Unlock()
	r.ledger.slots.give(&r.held)
}

// levels are the parts of a budget, in hundredths, whose use is told.
var levels = [...]int64{75, 90}

// warn tells that the use of a grant has passed a level; the book is locked.
func (l *Ledger) warn(r *Reservation, g *applied, before, after int64) {
	for _, level := range levels {
		// Divided first: a limit may be as large as a number gets.
		mark := g.limit/100*level + g.limit%100*level/100
		if before >= mark || after < mark || g.limit == 0 {
			continue
		}
		budget, of := g.grant.String(), "a budget"
		if g.share {
			of = "the part of a budget that callers without a credential may have"
		}
		rec := bawn.Record{
			Kind: bawn.KindNode, Time: l.cfg.Now(), Tenant: r.held.tenant, Function: r.held.function, Invocation: r.held.invocation,
			Action: "budget.warn", Outcome: "ok", Control: "H3",
			Reason: strconv.FormatInt(level, 10) + " per cent of " + of + " is used",
			Detail: map[string]string{"budget": budget, "used": bawn.MeterText(g.grant.Meter, after), "limit": bawn.MeterText(g.grant.Meter, g.limit), "ends": g.window.end.Format(time.RFC3339)},
		}
		if g.tenant {
			rec.Function, rec.Detail["of"] = "", "tenant"
		}
		if g.grant.Of == bawn.OfCaller {
			rec.Detail["caller"] = r.held.caller
		}
		select {
		case l.warnings <- rec:
		default: // many at once; the next level, and the stop, are told as well
		}
	}
}

// callerName returns a caller's name as it is counted: one that is long, or has
// anything but letters, digits and marks, is told apart by its hash.
func callerName(s string) string {
	plain := len(s) <= maxCaller && s != Others
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] > ' ' && s[i] <= '~'
	}
	if plain {
		return s
	}
	return hashed(s)
}

// costOf returns what an amount of everything costs, rounded up.
func costOf(p *bawn.Prices, a *amounts) int64 {
	sum := mul(a[calls], p.Call, 1)
	for _, x := range [...]int64{mul(a[cpu], p.CPU, int64(time.Second)), mul(a[memory], p.Memory, 1<<30), mul(a[egress], p.Egress, 1<<30)} {
		if sum += x; sum < 0 {
			return math.MaxInt64 / 4
		}
	}
	return min(sum, math.MaxInt64/4)
}

// mul returns a × b ÷ c, rounded up, and at most a quarter of what a number holds.
// None may be negative.
func mul(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	lo, carry := bits.Add64(lo, uint64(c-1), 0)
	hi += carry
	if hi >= uint64(c) {
		return math.MaxInt64 / 4
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(min(q, math.MaxInt64/4))
}
