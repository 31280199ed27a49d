package egress

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"bawn.dev/bawn"
)

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// echConfig is a list of one configuration for encrypted hellos whose outer name
// is public.
func echConfig(t testing.TB, public string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub := key.PublicKey().Bytes()
	body := []byte{1, 0, 0x20} // config id, DHKEM(X25519, HKDF-SHA256)
	body = binary.BigEndian.AppendUint16(body, uint16(len(pub)))
	body = append(body, pub...)
	body = append(body, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	body = append(body, 0, byte(len(public)))
	body = append(body, public...)
	body = append(body, 0, 0)
	one := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(body)))
	one = append(one, body...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...)
}

// clientHello returns what a client says first.
func clientHello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(a, c).Handshake()
	}()
	buf := make([]byte, 64<<10)
	n, err := io.ReadAtLeast(b, buf, 5)
	if err == nil {
		want := 5 + int(binary.BigEndian.Uint16(buf[3:]))
		_, err = io.ReadFull(b, buf[n:max(n, want)])
		n = max(n, want)
	}
	a.Close()
	b.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func FuzzHello(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "example.com"}))
	f.Add(clientHello(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}))
	f.Add(clientHello(f, &tls.Config{ServerName: "a.test", EncryptedClientHelloConfigList: echConfig(f, "b.test"), MinVersion: tls.VersionTLS13}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHello(bytes.NewReader(data))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(data, h.read) {
			t.Fatal("what is passed on is not what was sent")
		}
	})
}

func FuzzQuestion(f *testing.F) {
	msg := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("up.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := msg.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:12])
	f.Add(append(b, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0))
	e := wanting(bawn.Host{Host: "up.test", Ports: []int{443}}, bawn.Host{Host: "*.wild.test", Ports: []int{443}})
	a := &attached{b: New(Config{}), v: &bawn.Version{}, plan: newPlan(&e)}
	a.quiet.count[0], a.quiet.second = recordBurst, 1<<62
	a.in.Record = nil
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := parseQuestion(data)
		if err == nil && q.name != "" && len(q.name) > maxNameBytes {
			t.Fatal("too long a name")
		}
		if !q.answerable {
			return
		}
		var got dnsmessage.Message
		if out := q.reply(nil, dnsmessage.RCodeSuccess, netip.MustParseAddr("127.1.0.1")); out != nil && q.asked {
			if err := got.Unpack(out); err != nil || len(out) > 1024 || got.ID != q.header.ID {
				t.Fatalf("%v, %d bytes", err, len(out))
			}
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"example.com", "Bücher.example.", "127.1", "0x7f.1", "::1", "::ffff:127.0.0.1", "10.0.0.0/8", "a..b", "xn--bcher-kva.example", "127。0。0。1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if name, err := parseName(s); err == nil {
			if again, err := parseName(name); err != nil || again != name {
				t.Fatalf("%q is read as %q, and that as %q: %v", s, name, again, err)
			}
			if _, err := netip.ParseAddr(name); err == nil {
				t.Fatalf("the name %q is an address", name)
			}
		}
		if p, ok := parseRange(s); ok && (p.Addr().Is4In6() || p.Addr().Zone() != "" || p != p.Masked()) {
			t.Fatalf("%q is read as %s", s, p)
		}
	})
}

func FuzzAllow(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.0/8:443", "[fd00::/8]:443", "[::1]", "::1", "10.0.0.1:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAllow(s)
		if err != nil || a.port == 0 {
			return
		}
		if b, err := parseAllow(allowText(a.prefix, a.port)); err != nil || a != b {
			t.Fatalf("%q is %v, and written again %v: %v", s, a, b, err)
		}
	})
}
