package manifest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

const limited = `functions:
  shop:
    runtime: python3.11
    handler: app.handler
    owner: me
    ingress:
      http:
        - {method: GET, path: /a, limits: {rate: 5/s}}
      limits: {rate: RATE, concurrency: N}
`

func TestLimits(t *testing.T) {
	parse := func(rate, n string) (*bawn.Ingress, error) {
		f, err := Parse(FileName, []byte(strings.NewReplacer("RATE", rate, "N", n).Replace(limited)))
		if err != nil {
			return nil, err
		}
		v, err := Compile("shop", f.Functions["shop"])
		return &v.Perimeter.Ingress, err
	}
	for rate, want := range map[string][]bawn.Rate{
		"50/s per caller":                        {{Calls: 50, Per: time.Second, By: "caller"}},
		"1000/hour burst 20":                     {{Calls: 1000, Per: time.Hour, Burst: 20}},
		"10/m burst 10":                          {{Calls: 10, Per: time.Minute}},
		"[10/d per address, 1/s]":                {{Calls: 10, Per: 24 * time.Hour, By: "address"}, {Calls: 1, Per: time.Second}},
		"[50/second burst 7 per caller, 50/min]": {{Calls: 50, Per: time.Second, Burst: 7, By: "caller"}, {Calls: 50, Per: time.Minute}},
	} {
		got, err := parse(rate, "20")
		if err != nil {
			t.Errorf("%s: %v", rate, err)
			continue
		}
		if diff := cmp.Diff(&bawn.Limits{Rates: want, Concurrency: 20}, got.Limits); diff != "" {
			t.Errorf("%s: %s", rate, diff)
		}
		if diff := cmp.Diff([]bawn.Rate{{Calls: 5, Per: time.Second}}, got.HTTP[0].Limits); diff != "" {
			t.Error(diff)
		}
	}
	for rate, want := range map[string]string{
		"0/s":                                   "from 1 to 1000000",
		"1000001/s":                             "from 1 to 1000000",
		"50":                                    "must be a rate",
		`"50"`:                                  "did you mean 50/s?",
		"50/w":                                  "no unit of a rate",
		"50/minutes":                            "did you mean minute?",
		"50/s per callers":                      "did you mean caller?",
		"5/s burst 0":                           "from 1 to 1000000",
		"[5/s, 5/s]":                            "a second time",
		"[1/s,2/s,3/s,4/s,5/s,6/s,7/s,8/s,9/s]": "at most 8",
		"\"5/s  per  caller\"":                  "did you mean 5/s per caller?",
	} {
		if _, err := parse(rate, "20"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", rate, err, want)
		}
	}
	if _, err := parse("1/s", "51"); err == nil || !strings.Contains(err.Error(), "more than interior.concurrency 50") {
		t.Errorf("%v", err)
	}
	if _, err := Parse(FileName, []byte(strings.Replace(limited, "rate: 5/s}", "concurrency: 3}", 1))); err == nil || !strings.Contains(err.Error(), "it belongs under ingress.limits") {
		t.Errorf("%v", err)
	}
}

// What is written is read as what it was.
func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"50/s per caller", "1000/hour burst 20", "1/d", "5/min per address", "9/s burst 9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRate(s)
		if err != nil {
			return
		}
		again, err := ParseRate(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, and written %q is %+v (%v)", s, r, r.String(), again, err)
		}
		if r.Calls < 1 || r.Calls > bawn.MaxRateCalls || r.Per < time.Second {
			t.Errorf("%q is %+v", s, r)
		}
	})
}
