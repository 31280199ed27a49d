package identity

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// The keys of an issuer that does not answer are asked for less and less often,
// and never less than once in a minute.
func TestKeysOfAFailingIssuer(t *testing.T) {
	s := &keySet{err: errors.New("down")}
	var got []time.Duration
	for s.failing = range 6 {
		got = append(got, s.pause())
	}
	want := []time.Duration{10 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, time.Minute}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("after %d failures: %s, want %s", i, got[i], want[i])
		}
	}
}

// FuzzClaims makes texts of whatever claims a token has: a JSON object of texts, so
// that nothing in it can end the event's own text.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"sub":"ann","age":42,"list":["a","b"],"deep":{"a":[1,{"b":null}]},"quote":"\"}"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		claims := map[string]json.RawMessage{}
		if json.Unmarshal(data, &claims) != nil {
			return
		}
		var back map[string]string
		if err := json.Unmarshal((&token{claims: claims}).texts(), &back); err != nil || len(back) != len(claims) {
			t.Fatalf("%s: %v, %d claims of %d", data, err, len(back), len(claims))
		}
	})
}
