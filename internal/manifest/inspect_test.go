package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

// D4: the manifest says how text is searched, in a word or in full, and a public
// route is searched unless it says otherwise.
func TestD4Inspection(t *testing.T) {
	const public = "access: {public: {reason: x, until: 2027-02-01}}"
	for text, want := range map[string]*bawn.Inspection{
		"":                       nil,
		", inspect: off":         {Mode: "off"},
		", inspect: {mode: off}": {Mode: "off"},
		", inspect: detect":      {Mode: "detect", Level: 1},
		", inspect: {level: 3}":  {Mode: "block", Level: 3},
		", " + public:            {Mode: "block", Level: 1},
		", inspect: {mode: block, exclude: [942100, 941100]}": {Mode: "block", Level: 1, Exclude: []int{941100, 942100}},
		", inspect: off, " + public:                           {Mode: "off"},
	} {
		f, err := Parse("m.yaml", []byte(base("    ingress: {http: [{method: POST, path: /"+text+"}]}\n")))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		v, err := Compile("hello", f.Functions[f.Order[0]])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, v.Perimeter.Ingress.HTTP[0].Inspect); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
	for text, want := range map[string]string{
		"http: [{method: POST, path: /, inspect: on}]":                          `unknown mode "on"`,
		"http: [{method: POST, path: /, inspect: {level: 5}}]":                  "from 1 to 4",
		"http: [{method: POST, path: /, inspect: {exclude: [949110]}}]":         "to 948999",
		"http: [{method: POST, path: /, inspect: {exclude: [942100, 942100]}}]": "second time",
		"http: [{method: POST, path: /, inspect: {mode: off, level: 2}}]":       "neither level nor exclude",
		"event: {inspect: {modes: block}}":                                      "modes",
	} {
		_, err := Parse("m.yaml", []byte(base("    ingress: {"+text+"}\n")))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	f, err := Parse("m.yaml", []byte(base("    ingress: {event: {inspect: block}}\n")))
	if err != nil {
		t.Fatal(err)
	}
	v, err := Compile("hello", f.Functions[f.Order[0]])
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&bawn.Event{Inspect: &bawn.Inspection{Mode: "block", Level: 1}}, v.Perimeter.Ingress.Event); d != "" {
		t.Error(d)
	}
}
