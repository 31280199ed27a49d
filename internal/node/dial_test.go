package node

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// An issuer's server that is not on the public internet is reached only if an
// operator has said so, whatever name it goes by; control C3.
func TestC3IssuersOfTheInside(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "[fd00::1]", "0.0.0.0"} {
		c, err := dialIssuer(t.Context(), "tcp", host+":"+port, false)
		if err == nil {
			c.Close()
			t.Errorf("%s was reached", host)
		} else if !strings.Contains(err.Error(), "not an address of the public internet") {
			t.Errorf("%s: %v", host, err)
		}
	}
	c, err := dialIssuer(t.Context(), "tcp", "localhost:"+port, true)
	if err != nil {
		t.Fatalf("an operator allowed it: %v", err)
	}
	c.Close()
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "8.8.8.8": true,
		"100.64.0.1": false, "192.168.1.1": false, "172.31.0.1": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "fe80::1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false, "2001:db8::1": false,
	} {
		if got := public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is public: %t", addr, got)
		}
	}
}
