package control

import (
	"fmt"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// checkInputs refuses a version with a way in for strangers or for other programs
// that does not say what may come in by it, and one whose waiver for that has ended;
// control D1. What is stored already goes on.
func (c *Control) checkInputs(v *bawn.Version) error {
	refuse := func(way, field string, in *bawn.Input, needed bool) error {
		switch {
		case in == nil && needed:
			return bawn.Errorf(bawn.CodeUnprocessable, "control.deploy", "%s, and %s does not say what may come in", way, field).
				WithFix("add %s: none, or a JSON Schema or its file, or for a while {any: {reason: why no schema says it, until: YEAR-MONTH-DAY}}", field)
		case in != nil && in.Any != nil && !in.Any.Open(c.cfg.Now()):
			return bawn.Errorf(bawn.CodeUnprocessable, "control.deploy", "%s: the waiver any ended on %s already", field, lastWaived(in.Any)).
				WithFix("say what may come in by a schema, or give any.until a day that is still to come")
		}
		return nil
	}
	i := &v.Perimeter.Ingress
	for k := range i.HTTP {
		r := &i.HTTP[k]
		if err := refuse(fmt.Sprintf("the route %s %s is public", r.Method, r.Path), "its input", r.Input, r.Access.Public != nil); err != nil {
			return err
		}
	}
	var event *bawn.Input
	if i.Event != nil {
		event = i.Event.Input
	}
	return refuse("ingress.callers lets others call the function", "ingress.event.input", event, len(i.Callers) > 0)
}

// undeclared lists the ways in of which v does not say what may come in; control D1.
func undeclared(v *bawn.Version) []string {
	var all []string
	i := &v.Perimeter.Ingress
	for _, r := range i.HTTP {
		if r.Input == nil {
			all = append(all, fmt.Sprintf("finding D1: the route %s %s does not say what may come in; add input: none, or a JSON Schema or its file", r.Method, r.Path))
		}
	}
	if (i.Event == nil || i.Event.Input == nil) && len(i.HTTP) == 0 {
		all = append(all, "finding D1: nothing says what an event may be; add ingress.event.input: none, or a JSON Schema or its file")
	}
	return all
}

// inputChanges tells what is different in what may come in. A schema that is not the
// old one may let anything through that the old one did not.
func inputChanges(old, b *bawn.Version, add func(field, before, after string, widens bool)) {
	one := func(field string, was, is *bawn.Input, existed bool) {
		if !existed && is == nil {
			return // the way in itself is what is new
		}
		before, after := inputText(was), inputText(is)
		if was == nil && !existed {
			before = ""
		}
		if before == after && sameInput(was, is) {
			return
		}
		if before == after {
			after += ", another one"
		}
		add(field, before, after, !takesNoMore(was, is, existed))
	}
	before := routes(old)
	for _, r := range b.Perimeter.Ingress.HTTP {
		o := before[r.Method+" "+r.Path]
		var was *bawn.Input
		if o != nil {
			was = o.Input
		}
		one("ingress.http["+r.Method+" "+r.Path+"].input", was, r.Input, o != nil)
	}
	event := func(v *bawn.Version) *bawn.Input {
		if e := v.Perimeter.Ingress.Event; e != nil {
			return e.Input
		}
		return nil
	}
	one("ingress.event.input", event(old), event(b), old.Number > 0)
}

// takesNoMore reports whether an input lets in no more than the one before it.
func takesNoMore(was, is *bawn.Input, existed bool) bool {
	switch {
	case is == nil:
		return was == nil && existed
	case was == nil && existed: // whatever came was let in
		return true
	case sameInput(was, is):
		return true
	case is.Any != nil:
		return was != nil && was.Any != nil && !is.Any.Until.After(was.Any.Until) && narrower(was, is)
	case was == nil: // of a new way in, which is looked at as a whole
		return true
	case was.Any != nil:
		return narrower(was, is)
	}
	return (is.None && is.Schema == "" || is.Schema == was.Schema) && narrower(was, is)
}

// narrower reports whether of each kind of parameters there is the same schema as
// before, or one where there was none and anything was let in.
func narrower(was, is *bawn.Input) bool {
	part := func(a, b string, open bool) bool { return a == b || a == "" && open || b == "" && !open }
	return part(was.Query, is.Query, was.Any != nil) && part(was.Path, is.Path, true) && part(was.Header, is.Header, true)
}

func sameInput(a, b *bawn.Input) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Any, y.Any = nil, nil
	if x != y || (a.Any == nil) != (b.Any == nil) {
		return false
	}
	return a.Any == nil || a.Any.Reason == b.Any.Reason && a.Any.Until.Equal(b.Any.Until)
}

func inputText(in *bawn.Input) string {
	return cut(manifest.InputText(in, time.Time{}))
}

func lastWaived(w *bawn.Waiver) string {
	return w.Until.Add(-time.Nanosecond).UTC().Format(time.DateOnly)
}
