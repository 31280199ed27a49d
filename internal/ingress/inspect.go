package ingress

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/ingress/waf"
	"bawn.dev/bawn/internal/schema"
)

const (
	inspectRecords = 10 // of refusals a second, of one function; the rest are counted
	maxToldRules   = 64 // in a record
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
	gone := ctx.Err()
	lets := in.Mode == bawn.InspectDetect && (gone == nil || !errors.Is(err, gone)) // nothing runs unseen for who has left
	outcome := "deny"
	if lets {
		outcome = "allow"
	}
	note, lost := g.found(ctx, c, a, in, found, outcome, reasonOf(err))
	switch {
	case lost != nil:
		return lost
	case lets:
		return nil
	case note != "" && errors.Is(err, errAttack):
		return &bawn.Error{Code: errAttack.Code, Op: errAttack.Op, Message: errAttack.Message, Err: &Refusal{Control: "D4", Note: note, Version: a.Version}}
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
		input := c.Route.Input
		err = askRequest(&q, r, d, d != nil && input != nil && input.Schema != "")
	} else {
		err = askEvent(&q, c, d)
	}
	if err != nil {
		return nil, err
	}
	for i := range q.Leaves {
		q.Leaves[i].At = i
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

// askRequest fills q with what r has. d is its body, if somebody has read that; held
// says that it was held against a schema as d, so that nothing else is in it.
func askRequest(q *waf.Question, r *bawn.Request, d *schema.Document, held bool) error {
	for _, name := range slices.Sorted(maps.Keys(r.Params)) {
		q.Leaves = append(q.Leaves, waf.Leaf{Text: r.Params[name]})
	}
	if len(r.Body) == 0 {
		return nil
	}
	if held {
		q.Leaves = leavesOf(d, q.Leaves, nestedJSON)
		return nil
	}
	is, odd := bodyKind(r)
	if is.encoded {
		return bawn.Errorf(bawn.CodeInvalid, "inspect", "the body cannot be searched for attacks: it has a Content-Encoding").
			WithFix("send it as it is")
	}
	isJSON := odd == nil && (is.kind == jsonBody || is.media == "text/json")
	if d == nil {
		var err error
		if d, err = schema.Parse(r.Body, schema.MaxDepth); err != nil && isJSON {
			return notStrict("body", err)
		}
	}
	// A function may read JSON whatever the request calls it.
	if d != nil {
		q.Leaves = leavesOf(d, q.Leaves, nestedJSON)
	}
	if isJSON {
		return nil
	}
	read := true
	switch is.media {
	case "application/x-www-form-urlencoded", "application/xml", "application/soap+xml", "text/xml":
		q.Body = r.Body
	case "multipart/form-data":
		q.Body = r.Body
		for _, text := range outside(string(r.Body), is.params["boundary"]) {
			q.Leaves = appendText(q.Leaves, text)
		}
	default:
		// A rule finds that there is one. What is JSON the engine takes for a form with
		// an odd name besides, and at the first level an ordinary client would be
		// refused for it.
		if _, labelled := r.Header["Content-Type"]; !labelled && (d == nil || q.Level > 1) {
			q.Body = r.Body
		}
		read = false
	}
	if d == nil && !read || odd != nil { // the engine leaves it alone, and the function need not
		q.Leaves = appendText(q.Leaves, string(r.Body))
	}
	return nil
}

// askEvent fills q with what an event by name has.
func askEvent(q *waf.Question, c *bawn.Call, d *schema.Document) error {
	if len(c.Event) > 0 {
		var err error
		if d == nil {
			if d, err = schema.Parse(c.Event, schema.MaxDepth); err != nil {
				return notStrict("event", err)
			}
		}
		q.Leaves = leavesOf(d, nil, nestedJSON)
		q.Leaves = appendEncoded(q.Leaves, c.Event, d)
	}
	if c.Client != "" { // what a client of the Lambda API says of itself
		d, err := schema.Parse([]byte(c.Client), schema.MaxDepth)
		if err != nil {
			return notStrict("client context", err)
		}
		q.Leaves = leavesOf(d, q.Leaves, nestedJSON)
	}
	return nil
}

const (
	nestedJSON = 2    // JSON in texts of JSON, as queues have it
	maxPairs   = 1000 // of a text that is read as a form
)

// leavesOf appends the texts in d that its schema leaves free, and those in what is
// JSON again, that deep.
func leavesOf(d *schema.Document, leaves []waf.Leaf, nested int) []waf.Leaf {
	for l := range d.Free() {
		leaves = append(leaves, waf.Leaf{Text: l.Text, Name: l.Name})
		if text := strings.TrimLeft(l.Text, " \t\r\n"); nested == 0 || l.Name || text == "" || text[0] != '{' && text[0] != '[' && text[0] != '"' {
			continue
		}
		if inner, err := schema.Parse([]byte(l.Text), schema.MaxDepth); err == nil {
			leaves = leavesOf(inner, leaves, nested-1)
		} else if plain := unescape(l.Text); plain != l.Text {
			leaves = append(leaves, waf.Leaf{Text: plain})
		}
	}
	return leaves
}

// appendText appends a text of which nobody says what it is: as it is, as JSON that
// is not strict may be read, and as a form is.
func appendText(leaves []waf.Leaf, text string) []waf.Leaf {
	leaves = append(leaves, waf.Leaf{Text: text})
	if plain := unescape(text); plain != text {
		leaves = append(leaves, waf.Leaf{Text: plain})
	}
	if !strings.Contains(text, "=") {
		return leaves
	}
	pairs := strings.SplitN(text, "&", maxPairs)
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		for _, part := range []string{name, value} {
			if plain, err := url.QueryUnescape(part); err == nil {
				part = plain
			}
			if part != "" && part != text {
				leaves = append(leaves, waf.Leaf{Text: part})
			}
		}
	}
	return leaves
}

// appendEncoded appends what the body of an event of API Gateway's is, if it says
// that it is base64.
func appendEncoded(leaves []waf.Leaf, event []byte, d *schema.Document) []waf.Leaf {
	const flag = "isBase64Encoded"
	says := bytes.Contains(event, []byte(flag))
	var bodies []string
	for l := range d.Free() {
		says = says || l.Name && l.Text == flag
		if !l.Name && d.Pointer(l.Node) == "/body" {
			bodies = append(bodies, l.Text)
		}
	}
	if !says {
		return leaves
	}
	for _, text := range bodies {
		body, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			continue
		}
		if inner, err := schema.Parse(body, schema.MaxDepth); err == nil {
			leaves = leavesOf(inner, leaves, nestedJSON)
		} else {
			leaves = appendText(leaves, string(body))
		}
	}
	return leaves
}

// unescape returns text with JSON's escapes resolved, those that are none left.
func unescape(text string) string {
	if strings.IndexByte(text, '\\') < 0 {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		i++
		switch c := text[i]; c {
		case 'n', 'r', 't', 'b', 'f':
			b.WriteByte(' ')
		case 'u':
			if i+4 < len(text) {
				if n, err := strconv.ParseUint(text[i+1:i+5], 16, 16); err == nil {
					b.WriteRune(rune(n))
					i += 4
					continue
				}
			}
			b.WriteString(`\u`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// outside returns the texts before the first and behind the last part of a multipart
// body, which who reads parts passes over.
func outside(body, boundary string) []string {
	mark := "--" + boundary
	var all []string
	before, _, _ := strings.Cut(body, mark)
	if strings.TrimSpace(before) != "" {
		all = append(all, before)
	}
	if i := strings.Index(body, mark+"--"); i >= 0 {
		if after := body[i+len(mark)+2:]; strings.TrimSpace(after) != "" {
			all = append(all, after)
		}
	}
	return all
}

// found records what an inspection has found, with the line of the manifest that
// lets it through. note is the same for the function's log; it is empty if there is
// no record, since there have been so many.
func (g *Gate) found(ctx context.Context, c *bawn.Call, a *Admission, in *bawn.Inspection, rules []int, outcome, reason string) (note string, err error) {
	// What is let through has a record anyway, however many there are.
	left := 0
	if outcome == "deny" {
		var ok bool
		if left, ok = a.standing.found.take(g.cfg.Now(), inspectRecords); !ok {
			return "", nil
		}
	}
	r := g.refusal(c, a, c.Principal, "D4", reason)
	r.Outcome = outcome
	if len(rules) > 0 {
		r.Detail["rules"] = numbers(rules)
		if more := exclusions(in.Exclude, rules); len(more) > 0 {
			r.Detail["manifest"] = "inspect: {mode: " + in.Mode + ", level: " + strconv.Itoa(in.Level) + ", exclude: [" + numbers(more) + "]}"
		}
	}
	leaveOut(&r, left)
	note = "a request was refused: " + reason
	if len(rules) > 0 {
		note += ", by the rules " + r.Detail["rules"]
	}
	if line := r.Detail["manifest"]; line != "" {
		note += "; if it is none: " + line
	}
	if left > 0 {
		note += "; " + r.Detail["leftOut"] + " more were refused before it"
	}
	return note, g.cfg.Record(context.WithoutCancel(ctx), r)
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
