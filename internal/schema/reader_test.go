package schema

import (
	"slices"
	"strings"
	"testing"
)

// A document that is read in the room of another has nothing of that one, whatever
// was in it and however its reading ended.
func TestReaderForgets(t *testing.T) {
	var r Reader
	s := compiled(t, `{"properties": {"known": {"type": "string", "pattern": "^[a-z]{3,9}$"}}}`)
	texts := []string{
		`{"known": "secret", "other": "a\nb", "constructor": {"prototype": 1}}`,
		`[1, 2, 3, {"a": "b"}]`, `{"known": "se`, `"x\ty"`, `{"a": 1, "a": 2}`, `{"__proto__": 1}`, strings.Repeat(`[`, 90), `{"other": "free text", "known": "xyz"}`, `1`,
	}
	for range 3 {
		for _, text := range texts {
			want, wantErr := Parse([]byte(text), 64)
			got, err := r.Parse([]byte(text), 64)
			if (err == nil) != (wantErr == nil) {
				t.Fatal(text, err, wantErr)
			}
			if err != nil {
				continue
			}
			if s.Validate(got) != nil || s.Validate(want) != nil || got.Prototype() != want.Prototype() || got.Len() != want.Len() || got.Kind() != want.Kind() ||
				!slices.Equal(slices.Collect(got.Free()), slices.Collect(want.Free())) {
				t.Errorf("%s is read otherwise the second time", text)
			}
			r.Release(got)
		}
	}
	r.Release(nil)
}
