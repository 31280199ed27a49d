package bawn_test

import (
	"strings"
	"testing"

	"bawn.dev/bawn"
)

func TestCheckDomain(t *testing.T) {
	for _, good := range []string{"shop.example.com", "a.b", "xn--bcher-kva.example", "1.example.com", strings.Repeat("a", 63) + ".example.com"} {
		if err := bawn.CheckDomain(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "localhost", "Shop.example.com", "shop.example.com.", ".example.com", "a..b", "*.example.com", "-a.example.com", "a-.example.com",
		"1.2.3.4", "::1", "1.2.3", "shop.example.com:443", "https://shop.example.com", "shop_a.example.com", "bücher.example", "a.b/c", "a b.example",
		strings.Repeat("a", 64) + ".example.com", strings.Repeat("a.", 126) + "example",
	} {
		if err := bawn.CheckDomain(bad); bawn.ErrorCode(err) != bawn.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
