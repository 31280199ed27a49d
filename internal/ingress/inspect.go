package ingress

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"mime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/ingress/waf"
	"bawn.dev/bawn/internal/schema"
)

const (
	inspectRecords = 10   // of refusals a second, of one function; the rest are counted
	maxFindings    = 4096 // functions that are told apart for that
	maxToldRules   = 64   // in a record
)

// inspection returns how the call's text is searched; nil if it is not.
func inspection(c *bawn.Call, v *bawn.Version) *bawn.Inspection {
	var in *bawn.Inspection
	if c.Route != nil {
		in = c.Route.Inspect
	} else if e := v.Perimeter.Ingress.Event; e != nil {
		in = e.Inspect
	}
	if !in.On() {
		return nil
	}
	return in
}

// inspects reports whether anything that v takes is searched.
func inspects(v *bawn.Version) bool {
	in := &v.Perimeter.Ingress
	return in.Event != nil && in.Event.Inspect.On() || slices.ContainsFunc(in.HTTP, func(r bawn.Route) bool { return r.Inspect.On() })
}

// checkInspect searches the text that the schema leaves free for attacks: control
// D4. What cannot be searched is refused, too, where attacks are.
func (g *Gate) checkInspect(ctx context.Context, c *bawn.Call, a *Admission) error {
	in := inspection(c, a.Version)
	if in == nil {
		return nil
	}
	found, err := g.inspect(ctx, c, in, a.document)
	if err == nil {
		return nil
	}
	outcome := "deny"
	if in.Mode == bawn.InspectDetect {
		outcome = "allow"
	}
	if lost := g.found(ctx, c, a.Version, in, found, outcome, reasonOf(err)); lost != nil {
		return lost
	}
	if in.Mode == bawn.InspectDetect {
		return nil
	}
	return err
}

// tryInspect is checkInspect for a test, of which nothing is recorded.
func (g *Gate) tryInspect(ctx context.Context, c *bawn.Call, a *Admission) error {
	in := inspection(c, a.Version)
	if in == nil || in.Mode == bawn.InspectDetect {
		return nil
	}
	_, err := g.inspect(ctx, c, in, a.document)
	return err
}

// errAttack says no more than this to who sent it.
var errAttack = bawn.Errorf(bawn.CodeDenied, "inspect", "the request was refused, since it looks like an attack")

// inspect searches. Its error is why the call is refused; found are the rules that
// matched, also where they are not enough for that.
func (g *Gate) inspect(ctx context.Context, c *bawn.Call, in *bawn.Inspection, d *schema.Document) (found []int, err error) {
	q := waf.Question{Request: c.Request, Source: c.Source, Level: in.Level, Exclude: in.Exclude}
	if r := c.Request; r != nil {
		if err = askRequest(&q, r, d); err != nil {
			return nil, err
		}
	} else if len(c.Event) > 0 {
		if d == nil {
			if d, err = schema.Parse(c.Event, schema.MaxDepth); err != nil {
				return nil, notStrict("event", err)
			}
		}
		q.Leaves = leavesOf(d, nil)
	}
	verdict, err := g.waf.Ask(ctx, q)
	switch {
	case err != nil:
		return nil, err
	case verdict.Attack:
		return verdict.Rules, errAttack
	case len(verdict.Rules) > 0 && in.Mode == bawn.InspectDetect:
		return verdict.Rules, errHint
	}
	return nil, nil
}

// errHint is found by who only wants to know.
var errHint = errors.New("rules matched, and not enough of them to refuse the request")

func notStrict(what string, err error) error {
	return bawn.Wrap(err, bawn.CodeInvalid, "inspect", "the %s cannot be searched for attacks: it %s", what, err.Error()).
		WithFix("send JSON that all readers understand alike")
}

// askRequest fills q with what r has. d is its body, if somebody has read that.
func askRequest(q *waf.Question, r *bawn.Request, d *schema.Document) error {
	for i, name := range slices.Sorted(maps.Keys(r.Params)) {
		q.Leaves = append(q.Leaves, waf.Leaf{At: 2*schema.MaxValues + i, Text: r.Params[name]})
	}
	if len(r.Body) == 0 {
		return nil
	}
	var media string
	if h := r.Header["Content-Type"]; len(h) > 0 {
		media, _, _ = mime.ParseMediaType(h[0]) // "" for one that nobody can read
	}
	isJSON := media == "application/json" || media == "text/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
	if d == nil {
		var err error
		if d, err = schema.Parse(r.Body, schema.MaxDepth); err != nil && isJSON {
			return notStrict("body", err)
		}
	}
	// A function may read JSON whatever the request calls it.
	if d != nil {
		q.Leaves = leavesOf(d, q.Leaves)
	}
	_, labelled := r.Header["Content-Type"]
	switch {
	case isJSON:
	case !labelled:
		q.Body = r.Body
	case media == "application/x-www-form-urlencoded", strings.HasPrefix(media, "multipart/"), strings.HasSuffix(media, "/xml"), strings.HasSuffix(media, "+xml"):
		q.Body = r.Body
	case d == nil:
		q.Leaves = append(q.Leaves, waf.Leaf{Text: string(r.Body)})
	}
	return nil
}

// leavesOf appends the texts in d that its schema leaves free.
func leavesOf(d *schema.Document, leaves []waf.Leaf) []waf.Leaf {
	for l := range d.Free() {
		leaves = append(leaves, waf.Leaf{At: l.Node, Text: l.Text, Name: l.Name})
	}
	return leaves
}

// found records what an inspection has found, with the line of the manifest that
// lets it through.
func (g *Gate) found(ctx context.Context, c *bawn.Call, v *bawn.Version, in *bawn.Inspection, rules []int, outcome, reason string) error {
	// What is let through has a record anyway, however many there are.
	left := 0
	if outcome == "deny" {
		var ok bool
		if left, ok = g.findings.take(v.Tenant+"/"+v.Function, g.cfg.Now()); !ok {
			return nil
		}
	}
	r := bawn.Record{
		Kind: bawn.KindDecision, Time: g.cfg.Now(), Tenant: v.Tenant, Function: v.Function, Version: v.Number,
		Invocation: c.ID, Principal: c.Principal.String(), Source: c.Source,
		Action: "invoke", Outcome: outcome, Reason: reason, Control: "D4", Detail: Lineage(c),
	}
	if r.Detail == nil {
		r.Detail = make(map[string]string, 3)
	}
	if len(rules) > 0 {
		r.Detail["rules"] = numbers(rules)
		if more := exclusions(in.Exclude, rules); len(more) > 0 {
			r.Detail["manifest"] = "inspect: {mode: " + in.Mode + ", level: " + strconv.Itoa(in.Level) + ", exclude: [" + numbers(more) + "]}"
		}
	}
	if left > 0 {
		r.Detail["leftOut"] = strconv.Itoa(left)
	}
	return g.cfg.Record(context.WithoutCancel(ctx), r)
}

// exclusions returns what would have to be excluded so that rules do not match.
func exclusions(now, rules []int) []int {
	var all []int
	for _, id := range rules {
		if id >= waf.FirstRule && id <= waf.LastRule {
			all = append(all, id)
		}
	}
	if len(all) == 0 {
		return nil
	}
	all = append(all, now...)
	slices.Sort(all)
	return slices.Compact(all)
}

func numbers(all []int) string {
	var b strings.Builder
	for i, n := range all[:min(len(all), maxToldRules)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// reasonOf is what the owner reads of err.
func reasonOf(err error) string {
	if errors.Is(err, errAttack) {
		return "what came looks like an attack"
	}
	var e *bawn.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// findings bounds by function what is recorded of inspections. The zero value is
// ready.
type findings struct {
	mu sync.Mutex
	of map[string]*findingsOf
}

type findingsOf struct {
	second      int64
	count, left int
}

// take reports whether this one is to be recorded, and how many were not since the
// last one that was.
func (f *findings) take(function string, now time.Time) (left int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := now.Unix()
	o := f.of[function]
	if o == nil {
		if f.of == nil {
			f.of = make(map[string]*findingsOf)
		}
		if len(f.of) >= maxFindings {
			maps.DeleteFunc(f.of, func(_ string, o *findingsOf) bool { return o.left == 0 && o.second != s })
		}
		if len(f.of) >= maxFindings {
			function = "" // those for whom there is no room share one
		}
		o = cmp.Or(f.of[function], &findingsOf{})
		f.of[function] = o
	}
	if o.second != s {
		o.second, o.count = s, 0
	}
	if o.count++; o.count > inspectRecords {
		o.left++
		return 0, false
	}
	left, o.left = o.left, 0
	return left, true
}
