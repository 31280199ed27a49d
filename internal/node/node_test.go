package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// config returns a config with everything in a folder of its own.
func config(t *testing.T) Config {
	dir := t.TempDir()
	return Config{Data: filepath.Join(dir, "data"), Public: "127.0.0.1:0", Admin: "127.0.0.1:0", ContextFile: filepath.Join(dir, "context.json"), Version: "test", Warm: -1}
}

func mustOpen(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close(context.Background()) })
	return n
}

func mustClient(t *testing.T, file string) *client.Client {
	t.Helper()
	c, err := client.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestFirstAndLaterStarts(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	select {
	case <-n.Ready():
	default:
		t.Error("open and not ready")
	}
	for file, mode := range map[string]os.FileMode{cfg.Data: 0o700, cfg.ContextFile: 0o600, filepath.Join(cfg.Data, "ca.key"): 0o600} {
		st, err := os.Stat(file)
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", file, st, err, mode)
		}
	}
	c := mustClient(t, cfg.ContextFile)
	s, err := c.Status(t.Context())
	if err != nil || !s.Ready || s.Public != "https://"+n.PublicAddr() || s.Version != "test" {
		t.Errorf("status %+v, %v", s, err)
	}
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].Role != bawn.RoleOperator {
		t.Fatalf("keys %v, %v", keys, err)
	}
	before, _ := client.LoadContext(cfg.ContextFile)
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(); err != nil {
		t.Errorf("Wait after Close: %v", err)
	}
	if _, err := net.Dial("tcp", n.PublicAddr()); err == nil {
		t.Error("still listening")
	}

	n = mustOpen(t, cfg)
	after, err := client.LoadContext(cfg.ContextFile)
	if err != nil || after.Key != before.Key || after.CA != before.CA || after.URL != "https://"+n.AdminAddr() {
		t.Errorf("context %v, %v", after, err)
	}
	if n.Notice() != "" {
		t.Errorf("notice %q", n.Notice())
	}
	if keys, err := mustClient(t, cfg.ContextFile).Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestContextFileGone(t *testing.T) {
	cfg := config(t)
	mustOpen(t, cfg).Close(t.Context())
	os.Remove(cfg.ContextFile)
	n := mustOpen(t, cfg)
	if !strings.Contains(n.Notice(), "new administrator's key") {
		t.Errorf("notice %q", n.Notice())
	}
	if keys, err := mustClient(t, cfg.ContextFile).Keys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestContextFileOfAnotherNode(t *testing.T) {
	first, second := config(t), config(t)
	mustOpen(t, first)
	second.ContextFile = first.ContextFile
	kept, _ := os.ReadFile(first.ContextFile)
	_, err := Open(t.Context(), second)
	var be *bawn.Error
	if !errors.As(err, &be) || be.Code != bawn.CodeConflict || !strings.Contains(be.Fix, "--force-context") {
		t.Fatalf("got %v", err)
	}
	if now, _ := os.ReadFile(first.ContextFile); string(now) != string(kept) {
		t.Error("it was overwritten")
	}
	// Nobody got a key, so the next start is the first again.
	second.ForceContext = true
	n := mustOpen(t, second)
	if _, err := mustClient(t, second.ContextFile).Keys(t.Context()); err != nil {
		t.Errorf("forced: %v", err)
	}
	n.Close(t.Context())
	// A later start with a foreign file leaves it alone and says so.
	second.ForceContext = false
	os.WriteFile(second.ContextFile, kept, 0o600)
	if n := mustOpen(t, second); !strings.Contains(n.Notice(), "another node") {
		t.Errorf("notice %q", n.Notice())
	}
	if now, _ := os.ReadFile(second.ContextFile); string(now) != string(kept) {
		t.Error("it was overwritten by a later start")
	}
}

func TestRevokedContextKey(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	keys, err := c.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.keys.Revoke(t.Context(), bawn.DefaultTenant, keys[0].ID); err != nil {
		t.Fatal(err)
	}
	other, _, err := n.keys.Create(t.Context(), bawn.Key{Name: "other", Tenant: bawn.DefaultTenant, Role: bawn.RoleAdmin})
	if err != nil || other == "" {
		t.Fatal(err)
	}
	n.Close(t.Context())
	// A key that was revoked must not come back by a restart alone.
	n = mustOpen(t, cfg)
	if !strings.Contains(n.Notice(), "no longer good") {
		t.Errorf("notice %q", n.Notice())
	}
	if _, err := mustClient(t, cfg.ContextFile).Keys(t.Context()); err == nil {
		t.Error("the revoked key works again")
	}
}

func TestRefusedStarts(t *testing.T) {
	used := config(t)
	n := mustOpen(t, used)
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	open := filepath.Join(t.TempDir(), "open")
	os.MkdirAll(filepath.Join(open, "stuff"), 0o755)
	os.Chmod(open, 0o755)
	for name, c := range map[string]struct {
		change func(*Config)
		code   bawn.Code
		text   string
	}{
		"port in use":      {func(c *Config) { c.Public = n.PublicAddr() }, bawn.CodeConflict, "in use"},
		"admin port taken": {func(c *Config) { c.Admin = n.PublicAddr() }, bawn.CodeConflict, "--admin"},
		"data in use":      {func(c *Config) { c.Data = used.Data }, bawn.CodeConflict, "in use"},
		"data is a file":   {func(c *Config) { c.Data = file }, bawn.CodeUnavailable, "--data"},
		"data is open":     {func(c *Config) { c.Data = open }, bawn.CodeConflict, "chmod 700"},
		"no data":          {func(c *Config) { c.Data = "" }, bawn.CodeInvalid, "--data"},
		"bad OTLP":         {func(c *Config) { c.OTLPEndpoint = "::" }, bawn.CodeInvalid, "4318"},
	} {
		cfg := config(t)
		c.change(&cfg)
		_, err := Open(t.Context(), cfg)
		var be *bawn.Error
		if !errors.As(err, &be) || be.Code != c.code || !strings.Contains(be.Message+be.Fix, c.text) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// Nothing is left running: the same can be opened once it is mended.
		if cfg.Data != "" && cfg.Data != used.Data && name != "data is a file" && name != "data is open" {
			cfg.Public, cfg.Admin, cfg.OTLPEndpoint = "127.0.0.1:0", "127.0.0.1:0", ""
			m, err := Open(t.Context(), cfg)
			if err != nil {
				t.Errorf("%s: and then %v", name, err)
				continue
			}
			m.Close(t.Context())
		}
	}
}

func TestDataDirectoryUnwritable(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root may write everywhere but on a read-only file system.
		if _, err := openData("/proc/bawn-test"); err == nil {
			t.Error("opened a directory in /proc")
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "closed")
	os.Mkdir(dir, 0o500)
	_, err := openData(dir)
	if bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("got %v", err)
	}
}

func TestEmptyDataDirectoryIsClosed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	os.Mkdir(dir, 0o755)
	if _, err := openData(dir); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", st.Mode())
	}
}

// admin returns a client of the admin listener without a key.
func admin(t *testing.T, n *Node) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(n.ca.cert)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

func TestMetricsNeedTheRightToRead(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	hc := admin(t, n)
	get := func(role bawn.Role) (int, string) {
		t.Helper()
		req, _ := http.NewRequest("GET", "https://"+n.AdminAddr()+"/metrics", nil)
		if role != "" {
			secret, _, err := n.keys.Create(t.Context(), bawn.Key{Name: "k-" + string(role), Tenant: bawn.DefaultTenant, Role: role})
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+secret)
		}
		res, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	if code, _ := get(""); code != 401 {
		t.Errorf("without a key: %d", code)
	}
	if code, _ := get(bawn.RoleInvoker); code != 403 {
		t.Errorf("an invoker: %d", code)
	}
	if err := n.calls.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	code, body := get(bawn.RoleViewer)
	for _, want := range []string{"bawn_build_info{", "bawn_sandboxes ", "bawn_cold_starts_total ", "go_goroutines "} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("a viewer: %d, lacks %q", code, want)
		}
	}
}

func TestStrangersAreRecordedAndBounded(t *testing.T) {
	cfg := config(t)
	n := mustOpen(t, cfg)
	hc := admin(t, n)
	const flood = 40
	for range flood {
		res, err := hc.Get("https://" + n.AdminAddr() + "/v1/functions")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") == "" {
			t.Fatalf("status %d", res.StatusCode)
		}
	}
	recorded := 0
	err := mustClient(t, cfg.ContextFile).Events(t.Context(), client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindDecision}}, func(r bawn.Record) error {
		if r.Action == "authenticate" && r.Outcome == "deny" && r.Source == "127.0.0.1" {
			recorded++
		}
		return nil
	})
	if err != nil || recorded == 0 || recorded >= flood {
		t.Errorf("%d of %d recorded, %v", recorded, flood, err)
	}
}

// lockedBuffer is a log that a test may read while others write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A follower must not keep the node from stopping.
func TestFollowersEndWhenTheNodeStops(t *testing.T) {
	cfg := config(t)
	var log lockedBuffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	n := mustOpen(t, cfg)
	c := mustClient(t, cfg.ContextFile)
	began, done := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		done <- c.Events(context.Background(), client.EventQuery{Follow: true}, func(bawn.Record) error { began <- struct{}{}; return nil })
	}()
	<-began
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	var e *bawn.Error
	if err := <-done; !errors.As(err, &e) || e.Code != bawn.CodeUnavailable || !strings.Contains(e.Message, "the node is stopping") {
		t.Errorf("the follower hears %v", err)
	}
	for line := range strings.Lines(log.String()) { // a host without a sandbox has errors of its own
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, "request refused") {
			t.Errorf("an ordinary stop is an error in the log: %s", line)
		}
	}
}

// A node that can record nothing does nothing, and says so to who asks.
func TestStatusTellsOfTheStore(t *testing.T) {
	n := mustOpen(t, config(t))
	if s := n.status(); !s.Ready || s.Message != "" {
		t.Fatalf("%+v", s)
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := mustClient(t, n.ContextFile()).Status(t.Context()); err != nil || s.Ready || !strings.Contains(s.Message, "the store is not running; ") || s.Node == "" {
		t.Errorf("with a key: %+v, %v", s, err)
	}
	res, err := admin(t, n).Get("https://" + n.AdminAddr() + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || strings.TrimSpace(string(b)) != `{"ready":false}` {
		t.Errorf("a stranger hears %s, %v", b, err)
	}
}

// A call that comes before calls are served gets an answer like any other.
func TestCallBeforeCallsAreServed(t *testing.T) {
	n := &Node{calls: calls{up: make(chan struct{})}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	n.serveCall(w, httptest.NewRequestWithContext(ctx, "GET", "/hello", nil))
	var e struct{ Message, ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != 503 || e.ID == "" || e.ID != w.Header().Get("X-Request-Id") || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d %s %v", w.Code, w.Body, err)
	}
}

func TestStartAndStopAreRecorded(t *testing.T) {
	cfg := config(t)
	mustOpen(t, cfg).Close(t.Context())
	mustOpen(t, cfg)
	var got []string
	err := mustClient(t, cfg.ContextFile).Events(t.Context(), client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindNode}}, func(r bawn.Record) error {
		if r.Action != actionRoot {
			got = append(got, r.Action)
		}
		return nil
	})
	if s := strings.Join(got, " "); err != nil || s != "start stop start" {
		t.Errorf("%s, %v", s, err)
	}
}

func TestSignalsAreNotTheNodes(t *testing.T) {
	// The embedded store must leave SIGTERM to the program: with its handler it
	// would exit at once, without draining.
	n := mustOpen(t, config(t))
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGTERM)
	defer signal.Stop(got)
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	<-got
	if s, err := mustClient(t, n.ContextFile()).Status(t.Context()); err != nil || !s.Ready {
		t.Errorf("after a signal: %+v, %v", s, err)
	}
}
