package interior_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/egress"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/policy"
)

// TestC2OnlyRulesLeadOut has a function in a real sandbox go through the real
// broker: to what its rules name, and to a name, an address and a port that they
// do not; and before it serves anybody.
func TestC2OnlyRulesLeadOut(t *testing.T) {
	host := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "sealed ", r.URL.Path) }))
	defer host.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "plain ", r.URL.Path) }))
	defer plain.Close()
	sealed, open := host.Listener.Addr().(*net.TCPAddr).Port, plain.Listener.Addr().(*net.TCPAddr).Port
	v := python(t, fmt.Sprintf(`
import ssl, urllib.request
def get(url, context=None):
    try: return urllib.request.urlopen(url, context=context, timeout=3).read().decode()
    except OSError as e: return type(e.reason).__name__
early = get("https://example.com:%[1]d/early")
def handler(event, context):
    c = ssl.create_default_context(cafile="/var/task/ca.pem")
    return [early, get("https://example.com:%[1]d/x", c), get("http://a.plain.test:%[2]d/y"),
        get("https://1.2.3.4:%[1]d/", c), get("http://other.test:%[2]d/"), get("http://8.8.8.8:81/")]
`, sealed, open), func(v *bawn.Version) {
		v.Perimeter.Egress.Hosts = []bawn.Host{{Host: "example.com", Ports: []int{sealed}}, {Host: "*.plain.test", Ports: []int{open}, Plaintext: true}}
	})
	ca := filepath.Join(v.Digest, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	guard, err := egress.NewGuard(egress.GuardConfig{Allow: []string{"127.0.0.1"}, Resolve: []string{"example.com=127.0.0.1", "a.plain.test=127.0.0.1"}, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	rules := []string{"example.com", "*.plain.test"}
	broker := egress.New(egress.Config{Guard: guard, Authorize: func(_ context.Context, r policy.Request) (policy.Decision, error) {
		return policy.Decision{Allow: slices.Contains(rules, r.Object.ID), Reason: "as the test says"}, nil
	}})
	p := newRealWith(t, func(c *interior.Config) {
		c.Attach = func(ctx context.Context, in interior.Inside) (interior.Reach, error) {
			r, err := broker.Attach(ctx, egress.Inside(in))
			if err != nil {
				return interior.Reach{}, err
			}
			return interior.Reach{Outside: r.Outside, Files: r.Files, Env: r.Env}, nil
		}
	})
	c := newCall("{}")
	r, err := p.Run(t.Context(), v, c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	want := []string{"ConnectionResetError", "sealed /x", "plain /y", "ConnectionResetError", "gaierror", "ConnectionRefusedError"}
	if err := json.Unmarshal(r.Payload, &got); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %s, want %q", r.Payload, want)
	}
	if u := r.Usage; u.Connections != 2 || u.Sent == 0 || u.Received == 0 {
		t.Errorf("usage %+v", u)
	}
	for _, line := range []string{"{host: 1.2.3.4, ports: [", "{host: other.test, ports: ["} {
		if text := p.text(c.ID); !strings.Contains(text, line) {
			t.Errorf("the owner is not told of %s:\n%s", line, text)
		}
	}
}
