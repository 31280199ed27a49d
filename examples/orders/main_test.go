package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		order order
		good  bool
	}{
		{order{Item: "tea", Quantity: 1}, true},
		{order{Item: "tea", Quantity: 1000}, true},
		{order{Quantity: 1}, false},
		{order{Item: strings.Repeat("x", 101), Quantity: 1}, false},
		{order{Item: "tea"}, false},
		{order{Item: "tea", Quantity: 1001}, false},
	} {
		if got := c.order.check(); (got == "") != c.good {
			t.Errorf("%+v: %q", c.order, got)
		}
	}
}
