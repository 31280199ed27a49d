package control

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

// A5, D4: to search less for attacks than the version before lets more through.
func TestA5LessInspected(t *testing.T) {
	with := func(route, event *bawn.Inspection) *bawn.Version {
		v := &bawn.Version{}
		v.Perimeter.Ingress.HTTP = []bawn.Route{{Method: "POST", Path: "/a", Inspect: route}}
		if event != nil {
			v.Perimeter.Ingress.Event = &bawn.Event{Inspect: event}
		}
		return v
	}
	block := func(level int, exclude ...int) *bawn.Inspection {
		return &bawn.Inspection{Mode: "block", Level: level, Exclude: exclude}
	}
	off, detect := &bawn.Inspection{Mode: "off"}, &bawn.Inspection{Mode: "detect", Level: 1}
	const route, event = "ingress.http[POST /a].inspect", "ingress.event.inspect"
	for name, c := range map[string]struct {
		a, b *bawn.Version
		want []Change
	}{
		"the same":         {with(block(1), nil), with(block(1), nil), nil},
		"off and unsaid":   {with(off, off), with(nil, nil), nil},
		"on":               {with(nil, nil), with(block(1), nil), []Change{{route, "off", "block at level 1", false}}},
		"off":              {with(block(1), nil), with(off, nil), []Change{{route, "block at level 1", "off", true}}},
		"only detect":      {with(block(1), nil), with(detect, nil), []Change{{route, "block at level 1", "detect at level 1", true}}},
		"detect to block":  {with(detect, nil), with(block(1), nil), []Change{{route, "detect at level 1", "block at level 1", false}}},
		"lower":            {with(block(2), nil), with(block(1), nil), []Change{{route, "block at level 2", "block at level 1", true}}},
		"one rule less":    {with(block(1, 942100), nil), with(block(1, 941100, 942100), nil), []Change{{route, "block at level 1 without 942100", "block at level 1 without 941100, 942100", true}}},
		"one rule more":    {with(block(1, 942100), nil), with(block(1), nil), []Change{{route, "block at level 1 without 942100", "block at level 1", false}}},
		"events unwatched": {with(nil, block(1)), with(nil, nil), []Change{{event, "block at level 1", "off", true}}},
	} {
		var got []Change
		inspectChanges(c.a, c.b, func(field, before, after string, widens bool) {
			if before != after {
				got = append(got, Change{field, before, after, widens})
			}
		})
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
