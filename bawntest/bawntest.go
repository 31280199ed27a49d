// Package bawntest starts a real node for a test: its own data directory, its
// own ports on 127.0.0.1, and nothing faked. It ends with the test.
package bawntest

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// Node is a node that belongs to a test.
type Node struct {
	*client.Client                // as the first administrator
	Context        client.Context // of the first administrator
	ContextFile    string
	Data           string
	HTTP           *http.Client // trusts the node's authority and no other

	t    testing.TB
	node *node.Node
	cfg  node.Config
}

// Option changes what node is started.
type Option func(*node.Config)

// Approvals has a deploy that widens a perimeter wait for a second principal.
// Without it the node runs solo.
func Approvals(c *node.Config) { c.Solo = false }

// NewNode starts a node with an empty data directory. Deploys count as approved
// unless [Approvals] is given.
func NewNode(t testing.TB, opts ...Option) *Node {
	t.Helper()
	dir := t.TempDir()
	n := &Node{
		t: t, Data: filepath.Join(dir, "data"), ContextFile: filepath.Join(dir, "context.json"),
	}
	log := &tail{}
	n.cfg = node.Config{
		Data: n.Data, ContextFile: n.ContextFile, Public: "127.0.0.1:0", Admin: "127.0.0.1:0",
		Version: "test", DrainTimeout: 10 * time.Second, Solo: true,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, o := range opts {
		o(&n.cfg)
	}
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			t.Logf("the node's log:\n%s", log)
		}
	})
	n.start()
	return n
}

// start opens the node and a client for it.
func (n *Node) start() {
	n.t.Helper()
	nd, err := node.Open(context.Background(), n.cfg)
	if err != nil {
		n.t.Fatalf("starting a node: %v", err)
	}
	n.node = nd
	c, err := client.LoadContext(n.ContextFile)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Context = *c
	if n.Client, err = client.New(c); err != nil {
		n.t.Fatal(err)
	}
	n.HTTP = HTTPClient(c)
}

// HTTPClient returns a client that trusts the authority of c and no other, and
// speaks HTTP/1.1.
func HTTPClient(c *client.Context) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.CA))
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 64}}
}

// Stop stops the node as SIGTERM does. Stopping it twice is nothing.
func (n *Node) Stop() {
	n.t.Helper()
	if n.node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := n.node.Close(ctx); err != nil {
		n.t.Errorf("stopping the node: %v", err)
	}
	n.node = nil
	n.Client.Close()
	n.HTTP.CloseIdleConnections()
}

// Restart stops the node and starts it again on the same data. Its addresses
// are others then.
func (n *Node) Restart() {
	n.t.Helper()
	n.Stop()
	n.start()
}

// NeedSandbox skips the test, saying why, if this host cannot make sandboxes.
func (n *Node) NeedSandbox() {
	n.t.Helper()
	d, err := n.Doctor(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	NeedSandbox(n.t, d)
}

// NeedSandbox skips the test, saying why, if the host that d tells of cannot
// make sandboxes.
func NeedSandbox(t testing.TB, d *client.Doctor) {
	t.Helper()
	lack, err := Lack(d)
	if err != nil {
		t.Fatal(err)
	}
	if lack != nil {
		t.Skipf("SKIP: this host cannot enforce %s (%s): %s", lack.Name, lack.Control, lack.Detail)
	}
}

// Lack returns what the host that d tells of needs for sandboxes and has not;
// nil if it has all. A host that has all, and whose sandbox does not hold, is an
// error: tests that were skipped for that would hide it.
func Lack(d *client.Doctor) (*bawn.Capability, error) {
	const selfTest = "a sandbox that holds"
	var err error
	for _, c := range d.Capabilities {
		switch {
		case !c.Required || c.OK:
		case c.Name == selfTest:
			err = fmt.Errorf("not %s: %s", selfTest, c.Detail)
		default:
			return &c, nil
		}
	}
	return nil, err
}

// NeedRuntime skips the test, saying why, if the host cannot run any of want,
// and returns the first that it can.
func (n *Node) NeedRuntime(want ...bawn.Runtime) bawn.Runtime {
	n.t.Helper()
	n.NeedSandbox()
	d, err := n.Doctor(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	var missing []string
	for _, w := range want {
		for _, r := range d.Runtimes {
			if r.Runtime == w && r.Missing == "" {
				return w
			} else if r.Runtime == w {
				missing = append(missing, string(w)+": "+r.Missing)
			}
		}
	}
	n.t.Skipf("SKIP: this host has no such runtime: %s", strings.Join(missing, "; "))
	return ""
}

// Pythons are the Python runtimes, for [Node.NeedRuntime].
func Pythons() []bawn.Runtime { return []bawn.Runtime{bawn.Python311, bawn.Python312, bawn.Python313} }

// Nodes are the Node.js runtimes, for [Node.NeedRuntime].
func Nodes() []bawn.Runtime { return []bawn.Runtime{bawn.NodeJS20, bawn.NodeJS22} }

// Zip packs files, by path, into a zip.
func Zip(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Digest returns the digest of a package.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// MustPut uploads a package of files and returns its digest.
func (n *Node) MustPut(files map[string]string) string {
	n.t.Helper()
	data := Zip(n.t, files)
	if _, err := n.PutArtifact(n.t.Context(), Digest(data), int64(len(data)), bytes.NewReader(data)); err != nil {
		n.t.Fatalf("uploading: %v", err)
	}
	return Digest(data)
}

// MustDeploy uploads files and makes them the live version of a function. spec
// is the manifest's JSON form, without code; "owner" is filled in, and so is a waiver
// for each way in of which it does not say what it takes: most tests are not about
// that.
func (n *Node) MustDeploy(name string, spec map[string]any, files map[string]string) *client.Deployment {
	n.t.Helper()
	spec = maps.Clone(spec)
	if spec["owner"] == nil {
		spec["owner"] = "tests"
	}
	if in, ok := spec["ingress"].(map[string]any); ok {
		spec["ingress"] = declared(in)
	}
	d, err := n.Deploy(n.t.Context(), name, spec, n.MustPut(files), false)
	if err != nil {
		n.t.Fatalf("deploying %s: %v", name, err)
	}
	return d
}

// declared is an ingress with waivers for what it does not declare.
func declared(in map[string]any) map[string]any {
	waived := map[string]any{"any": map[string]any{"reason": "a test of something else", "until": "2999-12-31"}}
	in = maps.Clone(in)
	if routes, ok := in["http"].([]any); ok {
		routes = slices.Clone(routes)
		for i := range routes {
			if r, ok := routes[i].(map[string]any); ok && r["input"] == nil {
				r = maps.Clone(r)
				r["input"], routes[i] = waived, r
			}
		}
		in["http"] = routes
	}
	event, _ := in["event"].(map[string]any)
	if in["callers"] != nil && event["input"] == nil {
		event = maps.Clone(event)
		if event == nil {
			event = map[string]any{}
		}
		event["input"] = waived
		in["event"] = event
	}
	return in
}

// MustInvoke calls a function with event, which is turned into JSON unless it
// is a string of it, and returns what it answered. A function error fails the
// test.
func (n *Node) MustInvoke(name string, event any) string {
	n.t.Helper()
	data, ok := event.(string)
	if !ok {
		b, err := json.Marshal(event)
		if err != nil {
			n.t.Fatal(err)
		}
		data = string(b)
	}
	inv, err := n.Invoke(n.t.Context(), name, "", []byte(data))
	if err != nil {
		n.t.Fatalf("invoking %s: %v", name, err)
	}
	defer inv.Body.Close()
	body, err := io.ReadAll(inv.Body)
	if err != nil {
		n.t.Fatalf("reading the answer of %s: %v", name, err)
	}
	if inv.FunctionError != "" {
		n.t.Fatalf("%s failed: %s", name, body)
	}
	return string(body)
}

// As returns a client for the node with another key.
func (n *Node) As(key string) *client.Client {
	n.t.Helper()
	ctx := n.Context
	ctx.Key = key
	c, err := client.New(&ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(c.Close)
	return c
}

// MustKey makes a key of a role and returns its secret.
func (n *Node) MustKey(role bawn.Role, functions ...string) string {
	n.t.Helper()
	k, err := n.CreateKey(n.t.Context(), client.NewKey{Name: "test-" + string(role), Role: role, Functions: functions})
	if err != nil {
		n.t.Fatalf("making a key: %v", err)
	}
	return k.Secret
}

// MustRead reads a file or fails the test.
func MustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
