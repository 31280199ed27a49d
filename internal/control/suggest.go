package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
)

// Bounds of what [Control.Suggest] keeps and says.
const (
	maxTried     = 4096 // hosts with a port that were tried and refused
	maxSeen      = 512  // paths, and names, of one rule
	maxProposed  = 32   // new rules, and stops that are told
	maxNarrowed  = 8    // paths of a narrowed rule
	maxSiblings  = 5    // paths that differ in one segment, before that segment is taken for a parameter
	maxNamesTold = 8
	maxSaid      = 160 // bytes of one text of the evidence
	clippedPath  = 256 // a path of so many bytes in the evidence was longer
)

// Suggestion is an egress block that [Control.Suggest] proposes for a function.
type Suggestion struct {
	Function string    `json:"function"`
	Version  int       `json:"version" doc:"whose rules it begins with"`
	Since    time.Time `json:"since" doc:"before it nothing is known; not before the function was made, nor before the oldest record that was read"`
	Records  int       `json:"records" doc:"of the function's egress that were read"`
	Ran      bool      `json:"ran" doc:"whether the function ran in that time; if not, rules that were never used are kept"`
	Partial  bool      `json:"partial,omitempty" doc:"whether there were more records than are read: the newest count"`
	LeftOut  int       `json:"leftOut,omitempty" doc:"hosts that were tried, or stops, that it does not tell of"`

	Manifest string           `json:"manifest" doc:"the egress block in YAML, as it stands below functions.NAME; what the owner must decide on is in comments"`
	Entries  []SuggestedEntry `json:"entries" nullable:"false" doc:"the same, one by one"`
}

// SuggestedEntry is one entry of the block, or something that has none.
type SuggestedEntry struct {
	Advice string `json:"advice" enum:"keep,narrow,unused,add,stopped" doc:"add was tried and refused, and is for the owner to decide; stopped was tried, and no rule of a manifest allows it"`
	Field  string `json:"field" enum:"egress.hosts,egress.secrets,egress.databases,egress.everything"`
	Name   string `json:"name" doc:"of the host, the secret or the database"`
	Entry  string `json:"entry,omitempty" doc:"in YAML"`
	Before string `json:"before,omitempty" doc:"of what is narrowed: the entry as it is now"`
	Note   string `json:"note,omitempty" doc:"what should be known of it"`

	Uses   int        `json:"uses" doc:"that were allowed"`
	Denied int        `json:"denied" doc:"that were refused or stopped"`
	Last   *time.Time `json:"last,omitempty" doc:"of either"`
}

// What is advised.
const (
	adviceKeep    = "keep"
	adviceNarrow  = "narrow"
	adviceUnused  = "unused"
	adviceAdd     = "add"
	adviceStopped = "stopped"

	fieldHosts      = "egress.hosts"
	fieldSecrets    = "egress.secrets"
	fieldDatabases  = "egress.databases"
	fieldEverything = "egress.everything"
)

// Suggest proposes an egress block for the version or alias that ref names: by its
// rules, and by what the audit log has of the function since, 30 days if it is zero.
// What was used is kept, as narrow as it was used; what was never used, and what was
// tried and refused, stands in comments. Who may read the function's records may ask.
func (c *Control) Suggest(ctx context.Context, p bawn.Principal, ref bawn.Ref, since time.Time) (Suggestion, error) {
	if err := c.onFunction(ctx, p, policy.Events, ref.Function); err != nil {
		return Suggestion{}, err
	}
	f, v, err := c.Function(ctx, p, ref)
	if err != nil {
		return Suggestion{}, err
	}
	if since.IsZero() {
		since = c.cfg.Now().Add(-dataSince)
	}
	// What is not known to have been used must not be called unused.
	if since.Before(f.CreatedAt) {
		since = f.CreatedAt
	}
	if first := c.cfg.Evidence.First(); first > 0 {
		if pruned, _ := c.cfg.Evidence.Stored(first); since.Before(pruned) {
			since = pruned
		}
	}
	l := newLearned(&v)
	s := Suggestion{Function: v.Function, Version: v.Number, Since: since.UTC(), Entries: []SuggestedEntry{}}
	ctx, cancel := context.WithTimeout(ctx, dataWithin)
	defer cancel()
	if s.Ran, err = c.learn(ctx, l, p.Tenant, &s); err != nil {
		if ctx.Err() != nil {
			err = bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "control.suggest", "the audit log is too long to be read in the time of a request").
				WithFix("ask for less of it: --since 24h")
		}
		return Suggestion{}, err
	}
	l.propose(c, &s)
	s.Manifest = l.write(&s)
	return s, nil
}

// learn reads what the audit log has of the function's egress, and makes s begin later
// if that is too much. It reports whether the function ran.
func (c *Control) learn(ctx context.Context, l *learned, tenant string, s *Suggestion) (ran bool, err error) {
	name, since := l.v.Function, s.Since
	for _, q := range []evidence.Query{
		{Function: name, Action: string(policy.Egress), Kinds: []bawn.RecordKind{bawn.KindDecision, bawn.KindBlocked}},
		{Function: name, Action: "resolve", Kinds: []bawn.RecordKind{bawn.KindBlocked}},
		{Action: string(policy.Secret), Kinds: []bawn.RecordKind{bawn.KindDecision}}, // is the vault's, which names the function as the principal
	} {
		q.Tenant, q.Since, q.Limit = tenant, since, dataRecords
		n, oldest := 0, time.Time{}
		err := c.cfg.Evidence.Read(ctx, q, func(r bawn.Record) error {
			if n++; n == 1 {
				oldest = r.Time.UTC()
			}
			if who, _, _ := strings.Cut(strings.TrimPrefix(r.Principal, bawn.PrincipalFunction+":"), "@"); r.Function == name || r.Function == "" && who == name {
				s.Records++
				l.add(&r)
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		if n == dataRecords {
			if s.Partial = true; s.Since.Before(oldest) {
				s.Since = oldest
			}
		}
	}
	q := evidence.Query{Tenant: tenant, Function: name, Kinds: []bawn.RecordKind{bawn.KindOutcome}, Since: since, Limit: 1}
	err = c.cfg.Evidence.Read(ctx, q, func(bawn.Record) error { ran = true; return nil })
	return ran, err
}

// tally counts what was seen of one thing.
type tally struct {
	uses, denied int
	last         time.Time
	methods      map[string]bool
	paths        map[string]bool // nil once there were too many
	manyPaths    bool
	names        map[string]bool
	ports        map[int]bool
	reasons      map[string]bool // of refusals of what the manifest allows
}

func newTally() *tally {
	return &tally{methods: map[string]bool{}, paths: map[string]bool{}, names: map[string]bool{}, ports: map[int]bool{}, reasons: map[string]bool{}}
}

// request adds a method and a path, if the record has them.
func (t *tally) request(r *bawn.Record) {
	if m := r.Detail["method"]; m != "" {
		t.methods[m] = true
	}
	if p := r.Detail["path"]; p != "" && !t.manyPaths {
		t.paths[p] = true
		if t.manyPaths = len(t.paths) > maxSeen; t.manyPaths {
			t.paths = nil
		}
	}
}

func (t *tally) at(when time.Time) {
	if when.After(t.last) {
		t.last = when.UTC()
	}
}

// place is a host, by name or address, and a port; 0 if it is not known.
type place struct {
	host string
	port int
}

// guardrail stands in [stop] in the place of a control.
const guardrail = "guardrail"

// stop is something that no rule of a manifest changes.
type stop struct {
	place
	control, reason string
}

// learned is what is known of a function's egress.
type learned struct {
	v         *bawn.Version
	hosts     []*tally // by the rule
	open      map[place]*tally
	opened    *tally // by everything
	secrets   map[string]*tally
	databases map[string]*tally
	tried     map[place]*tally
	stopped   map[stop]*tally
	left      int
}

func newLearned(v *bawn.Version) *learned {
	l := &learned{v: v, open: map[place]*tally{}, opened: newTally(), secrets: map[string]*tally{}, databases: map[string]*tally{}, tried: map[place]*tally{}, stopped: map[stop]*tally{}}
	for range v.Perimeter.Egress.Hosts {
		l.hosts = append(l.hosts, newTally())
	}
	return l
}

// tallyOf returns the tally of key, or one that nobody reads where there are too many.
func tallyOf[K comparable](l *learned, m map[K]*tally, key K) *tally {
	t := m[key]
	if t == nil {
		t = newTally()
		if len(m) >= maxTried {
			l.left++
			return t
		}
		m[key] = t
	}
	return t
}

// add counts a record.
func (l *learned) add(r *bawn.Record) {
	port, _ := strconv.Atoi(r.Detail["port"])
	at := place{r.Detail["host"], port}
	kind, id, _ := strings.Cut(r.Detail["object"], ":")
	allowed := r.Outcome == "allow"
	var t *tally
	switch {
	case r.Kind == bawn.KindBlocked && r.Action == "resolve":
		if l.named(at.host) {
			return // a rule of today is about it
		}
		t = tallyOf(l, l.tried, place{at.host, 0})
	case r.Kind == bawn.KindBlocked:
		t = tallyOf(l, l.stopped, stop{at, r.Control, r.Reason})
	case kind == string(policy.Vault):
		t = tallyOf(l, l.secrets, id)
	case kind == string(policy.Database):
		t = tallyOf(l, l.databases, id)
	case at.host == "":
		return
	case allowed:
		if i := l.rule(at, r.Detail["method"], r.Detail["path"]); i >= 0 {
			t = l.hosts[i]
			t.request(r)
			if len(t.names) < maxSeen {
				t.names[at.host] = true
			}
			t.ports[at.port] = true
		} else {
			// By everything, or by a rule that there was: a rule of its own says it.
			t = tallyOf(l, l.open, at)
			if id == bawn.AnyHost {
				l.opened.uses++
				l.opened.at(r.Time)
			}
		}
	default:
		i := l.rule(at, r.Detail["method"], r.Detail["path"])
		switch {
		case r.Detail["policies"] != "": // somebody forbids it
			t = tallyOf(l, l.stopped, stop{at, guardrail, r.Reason})
		case i >= 0 && r.Detail["manifest"] == "":
			t = tallyOf(l, l.stopped, stop{at, r.Control, r.Reason})
		case i >= 0:
			return // the rules of today allow it
		default:
			t = tallyOf(l, l.tried, at)
			t.request(r)
		}
	}
	if allowed {
		t.uses++
	} else {
		t.denied++
		if kind != string(policy.Host) && len(t.reasons) < maxNamesTold {
			t.reasons[r.Reason] = true
		}
	}
	t.at(r.Time)
}

// named reports whether a rule is about the name.
func (l *learned) named(host string) bool {
	return slices.ContainsFunc(l.v.Perimeter.Egress.Hosts, func(h bawn.Host) bool { return h.Matches(host) })
}

// rule returns which rule lets a connection, or a request, through; -1 if none does.
func (l *learned) rule(at place, method, path string) int {
	return slices.IndexFunc(l.v.Perimeter.Egress.Hosts, func(h bawn.Host) bool {
		if !slices.Contains(h.Ports, at.port) || !h.Matches(at.host) {
			return false
		}
		return (method == "" || len(h.Methods) == 0 || slices.Contains(h.Methods, method)) &&
			(path == "" || len(h.Paths) == 0 || slices.ContainsFunc(h.Paths, func(p string) bool { return pathCovered(p, path) || pathCovered(p, decoded(path)) }))
	})
}

// pathCovered reports whether a pattern takes in a path, or another pattern.
func pathCovered(outer, inner string) bool {
	if begin, ok := strings.CutSuffix(outer, "*"); ok {
		return strings.HasPrefix(strings.TrimSuffix(inner, "*"), begin)
	}
	return outer == inner
}

// decoded returns a path as rules have it.
func decoded(path string) string {
	if p, err := url.PathUnescape(path); err == nil {
		return p
	}
	return path
}

// propose fills in the entries.
func (l *learned) propose(c *Control, s *Suggestion) {
	e := &l.v.Perimeter.Egress
	add := func(x SuggestedEntry, t *tally) {
		x.Uses, x.Denied = t.uses, t.denied
		if !t.last.IsZero() {
			last := t.last
			x.Last = &last
		}
		s.Entries = append(s.Entries, x)
	}
	for i := range e.Hosts {
		h, t := &e.Hosts[i], l.hosts[i]
		x := SuggestedEntry{Advice: adviceKeep, Field: fieldHosts, Name: h.Host, Entry: manifest.HostEntry(h)}
		if t.uses == 0 {
			x.Advice = adviceUnused
		} else {
			narrow := l.narrowed(h, t)
			if now := manifest.HostEntry(&narrow); now != x.Entry {
				x.Advice, x.Before, x.Entry = adviceNarrow, x.Entry, now
			}
			if in := h.Inject; in != nil && l.secrets[in.Secret] != nil {
				x.Note = l.secrets[in.Secret].why()
			}
			if h.Host != only(t.names) {
				names := slices.Sorted(maps.Keys(t.names))
				x.Note = strings.TrimPrefix(x.Note+"; seen: ", "; ") + said(strings.Join(names[:min(len(names), maxNamesTold)], ", "))
				if n := len(names) - maxNamesTold; n > 0 {
					x.Note += fmt.Sprintf(" and %d more", n)
				}
			}
		}
		add(x, t)
	}
	// What the function used by no rule of today.
	open := l.order(l.open)
	if room := max(bawn.MaxHosts-len(e.Hosts), 0); len(open) > room {
		s.LeftOut += len(open) - room
		open = open[:room]
	}
	for _, at := range open {
		x := SuggestedEntry{Advice: adviceAdd, Field: fieldHosts, Name: at.host, Note: "was allowed by a rule that is not there now"}
		if e.Everything != nil {
			x.Advice, x.Note = adviceKeep, "was let through by everything"
		}
		if entry, note := l.entry(c, at, l.open[at]); entry == "" {
			x.Advice, x.Note = adviceStopped, note
		} else if x.Entry = entry; note != "" {
			x.Note += "; " + note
		}
		add(x, l.open[at])
	}
	if p := e.Everything; p != nil {
		x := SuggestedEntry{Advice: adviceUnused, Field: fieldEverything, Name: bawn.AnyHost,
			Entry: fmt.Sprintf("{reason: %s, until: %s}", strconv.QuoteToASCII(p.Reason), lastDay(p)), Note: "EVERY PUBLIC HOST: what went by it has rules of its own here"}
		if len(open) < len(l.open) || l.left > 0 {
			x.Advice, x.Note = adviceKeep, "EVERY PUBLIC HOST: more of them were used than rules can name"
		}
		add(x, l.opened)
	}
	more := 0
	for _, at := range l.order(l.tried) {
		if at.port == 0 && slices.ContainsFunc(slices.Collect(maps.Keys(l.tried)), func(o place) bool { return o.host == at.host && o.port != 0 }) {
			continue // it is told of with its port
		}
		if more++; more > maxProposed {
			s.LeftOut++
			continue
		}
		x := SuggestedEntry{Advice: adviceAdd, Field: fieldHosts, Name: at.host}
		if x.Entry, x.Note = l.entry(c, at, l.tried[at]); x.Entry == "" {
			x.Advice = adviceStopped
		}
		add(x, l.tried[at])
	}
	l.proposeSecrets(add)
	l.proposeDatabases(add)
	stops := slices.SortedFunc(maps.Keys(l.stopped), func(a, b stop) int {
		return cmp.Or(cmp.Compare(l.stopped[b].denied, l.stopped[a].denied), cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port), cmp.Compare(a.control, b.control), cmp.Compare(a.reason, b.reason))
	})
	for i, k := range stops {
		if i >= maxProposed {
			s.LeftOut += len(stops) - i
			break
		}
		note := "stopped (" + k.control + "): "
		switch k.control {
		case "C3":
			note = "the address guard stopped it (C3), and no rule of a manifest changes that: "
		case guardrail:
			note = "a guardrail forbids it, whatever the manifest says: "
		}
		add(SuggestedEntry{Advice: adviceStopped, Field: fieldHosts, Name: k.host, Note: note + said(k.reason)}, l.stopped[k])
	}
	s.LeftOut += l.left
}

// only returns the one element of m.
func only(m map[string]bool) string {
	if len(m) != 1 {
		return ""
	}
	for k := range m {
		return k
	}
	return ""
}

// order returns the places, what happened most first.
func (l *learned) order(m map[place]*tally) []place {
	return slices.SortedFunc(maps.Keys(m), func(a, b place) int {
		return cmp.Or(cmp.Compare(m[b].uses+m[b].denied, m[a].uses+m[a].denied), cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
	})
}

// entry returns the rule that would allow what was tried, with what is to be known
// of it; no entry if there can be no such rule.
func (l *learned) entry(c *Control, at place, t *tally) (entry, note string) {
	host, err := manifest.CheckHost(at.host)
	if err != nil {
		return "", "no rule can be about it: " + said(err.Error())
	}
	h := bawn.Host{Host: host, Ports: []int{at.port}, Plaintext: at.port == 80}
	if at.port == 0 {
		h.Ports, note = []int{443}, "only its name was asked for: the port is a guess"
	}
	// Where requests are read already, a rule is about requests too.
	if slices.ContainsFunc(l.v.Perimeter.Egress.Hosts, func(o bawn.Host) bool { return o.Clear() && slices.Contains(o.Ports, at.port) && o.Matches(host) }) {
		l.requests(&h, t)
		if !h.Clear() {
			h.Methods = []string{"GET"}
			note = "the requests cannot be written as a rule: say which"
		}
	}
	if !manifest.AllowsPort(h.Ports[0]) {
		return "", "no rule can be about port " + strconv.Itoa(at.port) + ", which is Bawn's own in every sandbox"
	}
	if a, err := netip.ParseAddr(host); err == nil {
		note = "an address, not a name: the operator must allow it as well (--egress-allow)"
		if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() {
			note = "NOT A PUBLIC ADDRESS: the address guard (C3) stops it, unless the operator allows it (--egress-allow)"
		}
		if c.cfg.Consents != nil && c.cfg.Consents(h) == nil {
			note = "an address, not a name; the operator allows it"
		}
	} else if slices.ContainsFunc(slices.Collect(maps.Keys(l.stopped)), func(k stop) bool { return k.host == at.host && k.control == "C3" }) {
		note = strings.TrimPrefix(note+"; the address guard (C3) has stopped connections to it", "; ")
	}
	return manifest.HostEntry(&h), note
}

// requests gives h the methods and paths that were seen.
func (l *learned) requests(h *bawn.Host, t *tally) {
	for _, m := range slices.Sorted(maps.Keys(t.methods)) {
		if slices.Contains(manifest.HostMethods(), m) {
			h.Methods = append(h.Methods, m)
		}
	}
	h.Paths = seenPaths(t, nil)
}

// narrowed returns h as it was used: of its ports, methods and paths those that were
// seen. It lets through all that was seen, and nothing that h does not.
func (l *learned) narrowed(h *bawn.Host, t *tally) bawn.Host {
	n := *h
	n.Ports = slices.DeleteFunc(slices.Clone(h.Ports), func(p int) bool { return !t.ports[p] })
	if len(n.Ports) == 0 {
		n.Ports = h.Ports
	}
	if !h.Clear() || len(t.methods) == 0 {
		return n
	}
	used := slices.Sorted(maps.Keys(t.methods))
	if !slices.ContainsFunc(used, func(m string) bool { return !slices.Contains(manifest.HostMethods(), m) }) {
		n.Methods = used
	}
	if paths := seenPaths(t, h.Paths); paths != nil {
		n.Paths = paths
	}
	return n
}

// seenPaths returns patterns for the paths that were seen, within those of allowed if
// there are any; nil if they cannot be said in a few.
func seenPaths(t *tally, allowed []string) []string {
	if t.manyPaths || len(t.paths) == 0 {
		return nil
	}
	children := map[string]map[string]bool{} // of each directory
	for p := range t.paths {
		for at := 0; at >= 0; {
			next := strings.IndexByte(p[at+1:], '/')
			name := p[at+1:]
			if next >= 0 {
				name = name[:next]
			}
			dir := p[:at+1]
			if children[dir] == nil {
				children[dir] = map[string]bool{}
			}
			children[dir][name] = true
			if next < 0 {
				break
			}
			at += 1 + next
		}
	}
	set := map[string]bool{}
	for p := range t.paths {
		set[within(general(p, children), p, allowed)] = true
	}
	all := slices.DeleteFunc(slices.Sorted(maps.Keys(set)), func(p string) bool {
		return slices.ContainsFunc(slices.Collect(maps.Keys(set)), func(o string) bool { return o != p && pathCovered(o, p) })
	})
	if len(all) > maxNarrowed || slices.ContainsFunc(all, func(p string) bool { return !manifest.CanBePath(p) }) {
		return nil
	}
	return all
}

// general returns the path, or everything below its last directory before what looks
// like a parameter.
func general(path string, children map[string]map[string]bool) string {
	if path == "" || path[0] != '/' {
		return "/*"
	}
	for at := 0; ; {
		dir := path[:at+1]
		name, _, more := strings.Cut(path[at+1:], "/")
		if len(children[dir]) > maxSiblings && at > 0 || parameter(name) || !more && len(path) >= clippedPath {
			return dir + "*"
		}
		if !more {
			return path
		}
		at += 1 + len(name)
	}
}

// parameter reports whether a segment of a path looks like one that differs from
// request to request, or is one that no rule can have.
func parameter(s string) bool {
	digits := strings.ContainsAny(s, "0123456789")
	return s != "" && (!manifest.CanBePath("/"+s) || strings.Trim(s, "0123456789") == "" ||
		digits && (len(s) >= 20 || strings.Contains(s, "_") || len(s) >= 8 && strings.Trim(s, "0123456789abcdefABCDEF-") == ""))
}

// within returns the pattern for a path that was let through, or what of allowed let
// it through, if the pattern is wider than that.
func within(pattern, path string, allowed []string) string {
	for _, a := range allowed {
		if !pathCovered(a, path) && !pathCovered(a, decoded(path)) {
			continue
		}
		if pathCovered(a, pattern) {
			return pattern
		}
		return a
	}
	return pattern
}

func (l *learned) proposeSecrets(add func(SuggestedEntry, *tally)) {
	e := &l.v.Perimeter.Egress
	known := map[string]bool{}
	for _, u := range e.Secrets {
		known[u.Name] = true
		t := cmp.Or(l.secrets[u.Name], newTally())
		x := SuggestedEntry{Advice: adviceKeep, Field: fieldSecrets, Name: u.Name, Entry: manifest.SecretEntry(u), Note: t.why()}
		if t.uses == 0 && t.denied == 0 {
			x.Advice = adviceUnused
		}
		add(x, t)
	}
	for i := range e.Hosts {
		if in := e.Hosts[i].Inject; in != nil {
			known[in.Secret] = true
		}
	}
	for i := range e.Databases {
		known[e.Databases[i].Secret] = true
	}
	for i, name := range slices.Sorted(maps.Keys(l.secrets)) {
		t := l.secrets[name]
		if known[name] || t.denied == 0 || i >= maxProposed || bawn.CheckName("secret", name) != nil {
			continue
		}
		add(SuggestedEntry{Advice: adviceAdd, Field: fieldSecrets, Name: name, Entry: manifest.Word(name),
			Note: "it needs a grant as well: bawn secret grant " + name + " " + l.v.Function}, t)
	}
}

func (l *learned) proposeDatabases(add func(SuggestedEntry, *tally)) {
	e := &l.v.Perimeter.Egress
	for i := range e.Databases {
		d := &e.Databases[i]
		t := cmp.Or(l.databases[d.Name], newTally())
		x := SuggestedEntry{Advice: adviceKeep, Field: fieldDatabases, Name: d.Name, Entry: manifest.DatabaseEntry(d), Note: t.why()}
		if s := l.secrets[d.Secret]; x.Note == "" && s != nil {
			x.Note = s.why()
		}
		if t.uses == 0 && t.denied == 0 {
			x.Advice = adviceUnused
		}
		add(x, t)
	}
}

// why says why what the manifest allows was refused.
func (t *tally) why() string {
	if len(t.reasons) == 0 {
		return ""
	}
	return "refused: " + said(strings.Join(slices.Sorted(maps.Keys(t.reasons)), "; "))
}

// said returns a text of the evidence for a comment: on one line, bounded, and
// without anything that a terminal or YAML takes for more than text.
func said(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxSaid {
		s = s[:maxSaid] + "..."
	}
	return s
}

// write writes the block.
func (l *learned) write(s *Suggestion) string {
	var b strings.Builder
	e := &l.v.Perimeter.Egress
	date := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") + " UTC" }
	fmt.Fprintf(&b, "# Proposed for %s by version %d and %d records since %s.\n", s.Function, s.Version, s.Records, date(s.Since))
	if s.Partial {
		b.WriteString("# There are more records than were read: only the newest count here.\n")
	}
	if !s.Ran {
		b.WriteString("# The function did not run in this time: rules that were never used are kept.\n")
	}
	var body strings.Builder
	live := func(x *SuggestedEntry) bool {
		return x.Entry != "" && (x.Advice == adviceKeep || x.Advice == adviceNarrow || x.Advice == adviceUnused && !s.Ran)
	}
	section := func(field, dash string) {
		some, any := false, false
		for i := range s.Entries {
			if x := &s.Entries[i]; x.Field == field && x.Entry != "" {
				any, some = true, some || live(x)
			}
		}
		if !any {
			return
		}
		mark := ""
		if !some {
			mark = "# "
		}
		fmt.Fprintf(&body, "  %s%s:\n", mark, strings.TrimPrefix(field, "egress."))
		for i := range s.Entries {
			x := &s.Entries[i]
			if x.Field != field || x.Entry == "" {
				continue
			}
			for _, text := range l.comments(s, x, live(x)) {
				fmt.Fprintf(&body, "    # %s\n", text)
			}
			mark := ""
			if !live(x) {
				mark = "# "
			}
			fmt.Fprintf(&body, "    %s%s%s\n", mark, dash, x.Entry)
		}
	}
	if len(e.Functions) > 0 {
		fmt.Fprintf(&body, "  functions: [%s]\n", strings.Join(e.Functions, ", "))
	}
	section(fieldHosts, "- ")
	for i := range s.Entries {
		if x := &s.Entries[i]; x.Field == fieldEverything {
			mark := ""
			if !live(x) {
				mark = "# "
			}
			fmt.Fprintf(&body, "  # %s\n  %severything: %s\n", x.Note, mark, x.Entry)
		}
	}
	if e.Proxy {
		body.WriteString("  proxy: true\n")
	}
	section(fieldSecrets, "- ")
	section(fieldDatabases, "")
	if e.Response != nil {
		fmt.Fprintf(&body, "  response: %s\n", manifest.ResponseEntry(e.Response))
	}
	told := false
	for i := range s.Entries {
		x := &s.Entries[i]
		if x.Entry != "" {
			continue
		}
		if !told {
			body.WriteString("  # Tried, and nothing that a rule of this manifest could allow:\n")
			told = true
		}
		at := said(x.Name)
		if at == "" {
			at = "anything"
		}
		fmt.Fprintf(&body, "  #   %s: %s, last %s: %s\n", at, times(x.Denied+x.Uses), date(*x.Last), x.Note)
	}
	if s.LeftOut > 0 {
		fmt.Fprintf(&body, "  # and %d more that are not told here: bawn events --function %s\n", s.LeftOut, s.Function)
	}
	if strings.TrimSpace(uncommented(body.String())) == "" {
		b.WriteString("egress: {}\n")
	} else {
		b.WriteString("egress:\n")
	}
	b.WriteString(body.String())
	return b.String()
}

func uncommented(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// comments says what is above an entry.
func (l *learned) comments(s *Suggestion, x *SuggestedEntry, live bool) []string {
	last := ""
	if x.Last != nil {
		last = ", last " + x.Last.Format("2006-01-02 15:04") + " UTC"
	}
	text, more := "", x.Note
	switch x.Advice {
	case adviceKeep:
		text = "used " + times(x.Uses) + last
		if x.Uses == 0 {
			text = "tried " + times(x.Denied) + last
		}
	case adviceNarrow:
		text = "used " + times(x.Uses) + last + "; NARROWED to that, now it is:"
		if more = x.Before; x.Note != "" {
			more += "; " + x.Note
		}
	case adviceUnused:
		text = "NEVER USED since " + s.Since.Format("2006-01-02 15:04") + " UTC"
		if !live {
			text += "; left out here"
		}
	case adviceAdd:
		text = "TRIED AND REFUSED " + times(x.Denied) + last + "; take the # away if it should be allowed"
		if x.Uses > 0 {
			text = "USED " + times(x.Uses) + last + "; take the # away if it should be allowed"
		}
	}
	all := []string{text}
	if more != "" {
		all = append(all, more)
	}
	return all
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}
