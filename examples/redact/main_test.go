package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"text":"write to ann@example.org, card 4111 1111 1111 1111"}`,
			`{"found":{"card":1,"email":1},"text":"write to [email], card [card]"}`},
		{`{"body":"GB82 WEST 1234 5698 7654 32 is one, GB83 WEST 1234 5698 7654 32 is not"}`,
			`{"found":{"iban":1},"text":"[iban] is one, GB83 WEST 1234 5698 7654 32 is not"}`},
		{`{"body":"NDExMSAxMTExIDExMTEgMTExMg==","isBase64Encoded":true}`,
			`{"found":{},"text":"4111 1111 1111 1112"}`},
	} {
		var out strings.Builder
		if err := run(strings.NewReader(c.in), &out); err != nil {
			t.Errorf("run(%s): %v", c.in, err)
		}
		if got := strings.TrimSpace(out.String()); got != c.want {
			t.Errorf("run(%s)\n got %s\nwant %s", c.in, got, c.want)
		}
	}
	if err := run(strings.NewReader("[1"), new(strings.Builder)); err == nil {
		t.Error("an event that is no JSON was taken")
	}
}
