package control

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

// A5, D9: what lets more pages, or browsers more, needs approval; what lets less does
// not.
func TestA5MoreForBrowsers(t *testing.T) {
	cors := func(change ...func(*bawn.CORS)) *bawn.Route {
		c := &bawn.CORS{Origins: []string{"https://a.example"}, Headers: []string{"X-A"}, Expose: []string{"X-B"}, MaxAge: time.Minute}
		for _, f := range change {
			f(c)
		}
		return &bawn.Route{Method: "GET", Path: "/a", CORS: c}
	}
	header := func(name, value string) *bawn.Route {
		return &bawn.Route{Method: "GET", Path: "/a", Headers: map[string]string{name: value}}
	}
	none := &bawn.Route{Method: "GET", Path: "/a"}
	anybody := func(c *bawn.CORS) { c.Origins = []string{"*"} }
	credentials := func(c *bawn.CORS) { c.Credentials = true }
	const at, like = "ingress.http[GET /a].", ", headers X-A, expose X-B, maxAge 1m"
	for name, c := range map[string]struct {
		a, b   *bawn.Route
		want   int // changes
		widens bool
	}{
		"the same":           {cors(), cors(), 0, false},
		"a new route":        {nil, none, 0, false},
		"a new one, pages":   {nil, cors(), 1, true},
		"pages":              {none, cors(), 1, true},
		"no pages any more":  {cors(), none, 1, false},
		"one origin more":    {cors(), cors(func(c *bawn.CORS) { c.Origins = append(c.Origins, "https://b.example") }), 1, true},
		"another origin":     {cors(), cors(func(c *bawn.CORS) { c.Origins = []string{"https://b.example"} }), 1, true},
		"every origin":       {cors(), cors(anybody), 1, true},
		"of every, one":      {cors(anybody), cors(), 1, false},
		"one, but logged in": {cors(anybody), cors(credentials), 1, true},
		"credentials":        {cors(), cors(credentials), 1, true},
		"no credentials":     {cors(credentials), cors(), 1, false},
		"one header more":    {cors(), cors(func(c *bawn.CORS) { c.Headers = append(c.Headers, "X-C") }), 1, true},
		"no header":          {cors(), cors(func(c *bawn.CORS) { c.Headers = nil }), 1, false},
		"one shown more":     {cors(), cors(func(c *bawn.CORS) { c.Expose = append(c.Expose, "X-C") }), 1, true},
		"for longer":         {cors(), cors(func(c *bawn.CORS) { c.MaxAge = time.Hour }), 1, true},
		"for shorter":        {cors(), cors(func(c *bawn.CORS) { c.MaxAge = time.Second }), 1, false},

		"a guard left out":     {none, header("X-Frame-Options", ""), 1, true},
		"another guard":        {none, header("Referrer-Policy", "unsafe-url"), 1, true},
		"the guard again":      {header("X-Frame-Options", ""), none, 1, false},
		"a header of no guard": {none, header("Cache-Control", "no-store"), 1, false},
	} {
		var got []Change
		webChanges(c.a, c.b, func(field, before, after string, widens bool) {
			if before != after {
				got = append(got, Change{field, before, after, widens})
			}
		})
		if len(got) != c.want || len(got) == 1 && got[0].Widens != c.widens {
			t.Errorf("%s: %+v, want %d that widens: %v", name, got, c.want, c.widens)
		}
	}
	var got []Change
	webChanges(none, cors(), func(field, before, after string, widens bool) {
		got = append(got, Change{field, before, after, widens})
	})
	webChanges(none, header("X-Frame-Options", ""), func(field, before, after string, widens bool) {
		got = append(got, Change{field, before, after, widens})
	})
	want := []Change{
		{at + "cors", "", "origins https://a.example" + like, true},
		{at + "cors", "", "", false},
		{at + "headers[X-Frame-Options]", "", "left out", true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A5: the limits of a route on a host are compared as those of any other.
func TestA5MoreOnHosts(t *testing.T) {
	on := func(n int) *bawn.Version {
		v := &bawn.Version{}
		v.Perimeter.Ingress.HTTP = []bawn.Route{{Method: "GET", Path: "/a", Hosts: []string{"a.example.com"}, Limits: []bawn.Rate{{Calls: n, Per: time.Second}}}}
		return v
	}
	for _, c := range []struct {
		b, a   int
		widens bool
	}{{5, 5, false}, {5, 50, true}, {50, 5, false}} {
		widens := false
		for _, d := range diff(on(c.b), on(c.a)) {
			widens = widens || d.Widens
		}
		if widens != c.widens {
			t.Errorf("%d to %d: widens %v", c.b, c.a, widens)
		}
	}
}

// A5: a route that answers on one host more lets more in, and on one less, less.
func TestA5MoreHosts(t *testing.T) {
	on := func(hosts ...string) *bawn.Version {
		v := &bawn.Version{}
		v.Perimeter.Ingress.HTTP = []bawn.Route{{Method: "GET", Path: "/a", Hosts: hosts}}
		return v
	}
	for _, c := range []struct {
		a, b   *bawn.Version
		widens bool
	}{
		{on(), on(), false},
		{on("a.example.com"), on("a.example.com"), false},
		{on(), on("a.example.com"), true},
		{on("a.example.com"), on(), true}, // the node's own names are another place
		{on("a.example.com"), on("a.example.com", "b.example.com"), true},
		{on("a.example.com", "b.example.com"), on("b.example.com"), false},
		{on("a.example.com"), on("b.example.com"), true},
	} {
		widens := false
		for _, d := range diff(c.a, c.b) {
			widens = widens || d.Widens
		}
		if widens != c.widens {
			t.Errorf("%v to %v: widens %v, want %v: %+v", c.a.Perimeter.Ingress.HTTP[0].Hosts, c.b.Perimeter.Ingress.HTTP[0].Hosts, widens, c.widens, diff(c.a, c.b))
		}
	}
}
