package manifest

import (
	"encoding/json"
	"testing"

	"bawn.dev/bawn"
)

func TestParseGrant(t *testing.T) {
	for _, test := range []struct {
		meter, text string
		amount      int64 // less than 0: refused
		back        string
	}{
		{"calls", "100000/day", 100_000, ""},
		{"calls", "0/hour", 0, ""},
		{"calls", "1.5/day", -1, ""},
		{"calls", "1000000000001/day", -1, ""},
		{"calls", "10", -1, ""},
		{"calls", "10/week", -1, ""},
		{"calls", "-1/day", -1, ""},
		{"cpu", "3600s/day", 3600e9, ""},
		{"cpu", "1m30s/hour", 90e9, "90s"},
		{"cpu", "0.5s/hour", 5e8, ""},
		{"cpu", "3600/day", -1, ""},
		{"memory", "5000GBs/month", 5000 << 30, ""},
		{"memory", "0.5GBs/day", 1 << 29, ""},
		{"memory", "5GB/day", -1, ""},
		{"egress", "10GiB/day", 10 << 30, ""},
		{"egress", "10GB/day", -1, ""},
		{"money", "5.00/month", 5e9, ""},
		{"money", "0.000000001/month", 1, ""},
		{"money", "0.0000000001/month", -1, ""},
		{"money", "1000000001/month", -1, ""},
		{"time", "5/month", -1, ""},
	} {
		g, err := ParseGrant(test.meter, test.text)
		if (err != nil) != (test.amount < 0) {
			t.Errorf("%s %s: %v", test.meter, test.text, err)
		}
		if err != nil {
			continue
		}
		if g.Amount != test.amount {
			t.Errorf("%s %s is %d, want %d", test.meter, test.text, g.Amount, test.amount)
		}
		want := test.text
		if test.back != "" {
			want = test.back + "/" + g.Per
		}
		if got := bawn.MeterText(g.Meter, g.Amount) + "/" + g.Per; got != want {
			t.Errorf("%s %s is written %s", test.meter, test.text, got)
		}
	}
}

func TestBudget(t *testing.T) {
	read := func(text string) (bawn.Version, error) {
		f, err := ParseFunctionJSON([]byte(`{"runtime": "python3.13", "handler": "a.b", "owner": "me", "ingress": {"budget": ` + text + `}}`))
		if err != nil {
			return bawn.Version{}, err
		}
		return Compile("shop", f)
	}
	v, err := read(`{"calls": ["1000/hour", "10000/day"], "anonymous": "500/day", "caller": {"calls": "100/hour", "cpu": "600s/day"}}`)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{calls: [10000/day, 1000/hour], anonymous: {calls: 500/day}, caller: {calls: 100/hour, cpu: 600s/day}}`
	if got := BudgetText(v.Perimeter.Ingress.Budget); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	for _, bad := range []string{`{"calls": ["1/day", "2/day"]}`, `{"calls": []}`, `{"calls": 5}`, `{"anonymous": {"anonymous": "5/day"}}`, `{"cpu": "20s/day"}`, `{"time": "5s/day"}`, `{"money": "5 EUR/month"}`, `[]`} {
		if _, err := read(bad); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}

func TestPriceTable(t *testing.T) {
	p, err := ParsePrices("p", []byte("currency: EUR\ncall: 0.0000002\ncpu: 0.00002 # a second\negress: 1\n"))
	if want := (bawn.Prices{Currency: "EUR", Call: 200, CPU: 20_000, Egress: 1_000_000_000}); err != nil || p != want {
		t.Fatalf("got %+v, %v, want %+v", p, err, want)
	}
	if again, err := ParsePrices("p", []byte(PricesText(&p))); err != nil || again != p {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
	for _, bad := range []string{"call: -1", "call: 1e-7", "call: 0.0000000001", "cpu: 1001", "disk: 1", "currency: euro", "call: 1\ncall: 2", "[]", "call: {}"} {
		if _, err := ParsePrices("p", []byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzPriceTable(f *testing.F) {
	f.Add([]byte("currency: EUR\ncall: 0.0000002\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePrices("p", data)
		if err != nil {
			return
		}
		if again, err := ParsePrices("p", []byte(PricesText(&p))); err != nil || again != p {
			t.Errorf("%+v, written and read again %+v, %v", p, again, err)
		}
	})
}

func FuzzGrant(f *testing.F) {
	f.Add("cpu", "1m30s/hour")
	f.Add("memory", "0.3GBs/day")
	f.Fuzz(func(t *testing.T, meter, text string) {
		g, err := ParseGrant(meter, text)
		if err != nil {
			return
		}
		raw, err := json.Marshal(Budget{g})
		if err != nil || g.Amount < 0 {
			t.Fatal(raw, err, g)
		}
		if meter == bawn.MeterMemory {
			return // parts of a GiB are cut when written
		}
		again, err := ParseGrant(meter, bawn.MeterText(meter, g.Amount)+"/"+g.Per)
		if err != nil || again != g {
			t.Errorf("%s %q is %+v, and written and read again %+v, %v", meter, text, g, again, err)
		}
	})
}
