package control

import (
	"slices"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// inspectChanges says what b searches for attacks in another way than a. Less of
// it lets more through.
func inspectChanges(a, b *bawn.Version, add func(field, before, after string, widens bool)) {
	for i := range b.Perimeter.Ingress.HTTP {
		r := &b.Perimeter.Ingress.HTTP[i]
		was := inheritedRoute(r, a.Perimeter.Ingress.HTTP)
		switch {
		case was == nil:
			if r.Inspect.On() { // that there is the route is the change
				add("ingress.http["+r.Method+" "+r.Path+"].inspect", "", r.Inspect.String(), false)
			}
			continue
		case !was.Inspect.On() && !r.Inspect.On():
			continue
		}
		add("ingress.http["+r.Method+" "+r.Path+"].inspect", was.Inspect.String(), r.Inspect.String(), lessInspected(was.Inspect, r.Inspect))
	}
	was, is := eventInspection(a), eventInspection(b)
	if was.On() || is.On() {
		add("ingress.event.inspect", was.String(), is.String(), lessInspected(was, is))
	}
}

func eventInspection(v *bawn.Version) *bawn.Inspection {
	if e := v.Perimeter.Ingress.Event; e != nil {
		return e.Inspect
	}
	return nil
}

// inheritedRoute returns the one of the old routes that requests to r went to.
func inheritedRoute(r *bawn.Route, old []bawn.Route) *bawn.Route {
	var found *bawn.Route
	for i := range old {
		o := &old[i]
		if manifest.PathShape(o.Path) != manifest.PathShape(r.Path) {
			continue
		}
		if o.Method == r.Method {
			return o
		}
		if o.Method == "ANY" {
			found = o
		}
	}
	return found
}

// lessInspected reports whether b finds less than a, or lets more of it through.
func lessInspected(a, b *bawn.Inspection) bool {
	if !a.On() {
		return false
	}
	if !b.On() || a.Mode == bawn.InspectBlock && b.Mode != bawn.InspectBlock || b.Level < a.Level {
		return true
	}
	return slices.ContainsFunc(b.Exclude, func(id int) bool { return !slices.Contains(a.Exclude, id) })
}
