package bawntest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestD8SlowClients has one address attack a real node by the four modes of
// slowhttptest, each with more connections than a listener has. Calls of another
// address must go on to succeed, over new connections and over one that there is.
func TestD8SlowClients(t *testing.T) {
	slow, err := exec.LookPath("slowhttptest")
	if err != nil {
		t.Skip("slowhttptest is not installed: make setup")
	}
	n := NewNode(t)
	n.NeedSandbox()
	n.MustDeploy("good", map[string]any{
		"runtime": n.NeedRuntime(Pythons()...), "handler": "app.handler", "owner": "tests", "interior": map[string]any{"reuse": map[string]any{"maxAge": "10m"}},
		"ingress": map[string]any{"http": []any{map[string]any{"method": "ANY", "path": "/good"}}},
	}, map[string]string{"app.py": "def handler(e, c): return 'x' * 20000\n"})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.Context.CA))
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 10 * time.Second}
	client := func(keep bool) *http.Client {
		tr := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: !keep, ForceAttemptHTTP2: keep}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 20 * time.Second}
	}
	lasting, fresh := client(true), client(false)
	call := func(c *http.Client) time.Duration {
		t.Helper()
		r, err := http.NewRequest("GET", n.Public()+"/good", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+n.Context.Key)
		begin := time.Now()
		resp, err := c.Do(r)
		if err != nil {
			t.Errorf("a good call: %v", err)
			return time.Since(begin)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("a good call: %d %v %.200s", resp.StatusCode, err, b)
		}
		return time.Since(begin)
	}
	measure := func(ctx context.Context, least int) (p50, p99 time.Duration) {
		var all []time.Duration
		for i := 0; i < least || ctx.Err() == nil && i < 5000; i++ {
			all = append(all, call(lasting))
			if i%10 == 0 {
				call(fresh)
			}
			if t.Failed() {
				t.FailNow()
			}
		}
		slices.Sort(all)
		return all[len(all)/2], all[len(all)*99/100]
	}
	call(lasting)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	p50, p99 := measure(done, 200)
	t.Logf("normal: p50 %v, p99 %v", p50, p99)
	for _, mode := range [][]string{
		{"slow headers", "-H", "-i", "2", "-x", "24"},
		{"slow bodies", "-B", "-i", "2", "-s", "8192", "-x", "24"},
		{"ranges", "-R", "-a", "10", "-b", "3000"},
		{"slow reading", "-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "3"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, slow, append(mode[1:], "-c", "1100", "-r", "400", "-l", "6", "-p", "2", "-u", n.Public()+"/good")...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		attack, over := context.WithCancel(ctx)
		go func() { cmd.Wait(); over() }()
		p50, p99 := measure(attack, 50)
		<-attack.Done()
		t.Logf("%s: p50 %v, p99 %v", mode[0], p50, p99)
		if !strings.Contains(out.String(), "connected") {
			t.Errorf("%s: the attack did not take place:\n%s", mode[0], out.String())
		}
		cancel()
	}
}
