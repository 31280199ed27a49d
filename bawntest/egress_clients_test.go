package bawntest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/node"
)

// credential is what is injected; functions never have it.
const credential = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"

// An outsideHost is a server outside of every sandbox, with TLS under names below
// up.test, for which an authority of the test vouches.
type outsideHost struct {
	*httptest.Server
	port int
	ca   string // a file

	mu   sync.Mutex
	seen []string // credentials that came, by request
}

// newOutsideHost starts one. It echoes requests, speaks WebSocket at /ws, answers in
// the manner of gRPC at /grpc, and of S3 below /bucket.
func newOutsideHost(t *testing.T) *outsideHost {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{"*.up.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	o := &outsideHost{ca: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(o.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Server = httptest.NewUnstartedServer(o)
	o.EnableHTTP2 = true
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	o.StartTLS()
	t.Cleanup(o.Close)
	o.port = o.Listener.Addr().(*net.TCPAddr).Port
	return o
}

// near lets the node reach the host under its names.
func (o *outsideHost) near(names ...string) Option {
	return func(c *node.Config) {
		c.EgressAllow, c.EgressCA = []string{o.Listener.Addr().String()}, o.ca
		for _, name := range names {
			c.EgressResolve = append(c.EgressResolve, name+".up.test=127.0.0.1")
		}
	}
}

func (o *outsideHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.seen = append(o.seen, r.Header.Get("Authorization"))
	o.mu.Unlock()
	switch {
	case r.URL.Path == "/ws":
		o.webSocket(w, r)
	case r.URL.Path == "/grpc":
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			fmt.Fprintf(w, "%s!", lines.Text())
			http.NewResponseController(w).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	case strings.HasPrefix(r.URL.Path, "/bucket/"):
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("ETag", `"x"`)
		if r.Method == "GET" {
			io.WriteString(w, "object")
		} else if !bytes.Contains(body, []byte("object")) {
			w.WriteHeader(400)
		}
	default:
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"proto": r.Proto, "method": r.Method, "path": r.URL.Path, "host": r.Host, "body": string(body), "auth": r.Header.Get("Authorization")})
	}
}

// webSocket answers one short text frame with its text, by hand.
func (o *outsideHost) webSocket(w http.ResponseWriter, r *http.Request) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	buf.Flush()
	head := make([]byte, 6) // FIN and text, mask and a length below 126, four bytes of mask
	if _, err := io.ReadFull(buf, head); err != nil {
		return
	}
	text := make([]byte, head[1]&0x7f)
	if _, err := io.ReadFull(buf, text); err != nil {
		return
	}
	for i := range text {
		text[i] ^= head[2+i%4]
	}
	buf.Write([]byte{0x81, byte(len(text))})
	buf.Write(text)
	buf.Flush()
}

const pythonClients = `
import base64, http.client, json, os, socket, ssl, struct, urllib.request
try:
    import requests
except ImportError:
    requests = None

def ws(host, port):
    raw = socket.create_connection((host, port), 10)
    s = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    s.sendall(("GET /ws HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % (host, port, base64.b64encode(os.urandom(16)).decode())).encode())
    f = s.makefile("rb")
    status = f.readline().split()[1]
    while f.readline() != b"\r\n":
        pass
    mask = os.urandom(4)
    text = b"hello"
    s.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))
    head = f.read(2)
    return status.decode() + " " + f.read(head[1]).decode()

def handler(event, context):
    host, port = event["host"], event["port"]
    url = "https://%s:%d" % (host, port)
    out = {}
    def attempt(name, f):
        try:
            out[name] = f()
        except Exception as e:
            out[name] = "%s: %s" % (type(e).__name__, e)
    def one():
        c = http.client.HTTPSConnection(host, port, timeout=10)
        answers = []
        for i in range(3):
            c.request("POST", "/a", "hello%d" % i)
            answers.append(json.loads(c.getresponse().read())["body"])
        c.close()
        return answers
    attempt("urllib", lambda: json.load(urllib.request.urlopen(url + "/a", timeout=10)))
    attempt("http.client", one)
    attempt("websocket", lambda: ws(host, port))
    if requests:
        def session():
            with requests.Session() as s:
                return [s.put(url + "/a", data="x" * 100000, timeout=10).json()["method"] for i in range(2)]
        attempt("requests", session)
    return out
`

// modules adds Python packages of this host to files; it reports false if one is
// not there.
func modules(t *testing.T, files map[string]string, names ...string) bool {
	t.Helper()
	out, err := exec.Command("python3", "-c", "import os, importlib\nfor m in '"+strings.Join(names, " ")+"'.split(): print(importlib.import_module(m).__file__)").Output()
	if err != nil {
		return false
	}
	for _, file := range strings.Fields(string(out)) {
		root := filepath.Dir(file)
		if filepath.Base(file) != "__init__.py" {
			files[filepath.Base(file)] = string(MustRead(t, file))
			continue
		}
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(filepath.Dir(root), path)
			if err != nil || d.IsDir() {
				if err == nil && (d.Name() == "__pycache__" || filepath.Dir(rel) == "botocore/data" && d.Name() != "s3") {
					return fs.SkipDir
				}
				return err
			}
			b, err := os.ReadFile(path)
			files[rel] = string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

// hostRules are rules about one host with a tunnel, one whose requests are read,
// and one that gets a credential.
func (o *outsideHost) rules() []any {
	return []any{
		map[string]any{"host": "tunnel.up.test", "ports": []int{o.port}},
		map[string]any{"host": "clear.up.test", "ports": []int{o.port}, "paths": []string{"/*"}},
		map[string]any{"host": "key.up.test", "ports": []int{o.port}, "methods": []string{"GET"}, "inject": map[string]any{"secret": "api-key", "header": "Authorization", "format": "Bearer {}"}},
	}
}

// TestPythonClientsReachHosts has Python's clients, which nobody has told of Bawn,
// speak to a host by a tunnel and where Bawn reads the requests.
func TestPythonClientsReachHosts(t *testing.T) {
	o := newOutsideHost(t)
	n := NewNode(t, o.near("tunnel", "clear", "key"))
	rt := n.NeedRuntime(Pythons()...)
	files := map[string]string{"app.py": pythonClients}
	requests := modules(t, files, "requests", "urllib3", "certifi", "idna", "charset_normalizer")
	n.MustDeploy("py", map[string]any{"runtime": string(rt), "handler": "app.handler", "egress": map[string]any{"hosts": o.rules()},
		"interior": map[string]any{"timeout": "60s"}}, files)
	for _, host := range []string{"tunnel.up.test", "clear.up.test"} {
		var got struct {
			Urllib    map[string]string `json:"urllib"`
			Client    []string          `json:"http.client"`
			WebSocket string            `json:"websocket"`
			Requests  []string          `json:"requests"`
		}
		text := n.MustInvoke("py", map[string]any{"host": host, "port": o.port})
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %s", host, text)
			continue
		}
		if got.Urllib["path"] != "/a" || got.Urllib["host"] != fmt.Sprintf("%s:%d", host, o.port) || fmt.Sprint(got.Client) != "[hello0 hello1 hello2]" ||
			got.WebSocket != "101 hello" || requests && fmt.Sprint(got.Requests) != "[PUT PUT]" {
			t.Errorf("%s: %s", host, text)
		}
	}
}

const nodeClients = `
const https = require('https'), http2 = require('http2'), tls = require('tls'), crypto = require('crypto');
const body = (stream) => new Promise((res, rej) => { let s = ''; stream.on('data', (d) => s += d); stream.on('end', () => res(s)); stream.on('error', rej); });
const clients = {
  fetch: async (host, port) => (await (await fetch('https://' + host + ':' + port + '/a', { method: 'POST', body: 'hello' })).json()).body,
  https: (host, port) => new Promise((res, rej) => https.get({ host, port, path: '/a' }, (r) => body(r).then((s) => res(JSON.parse(s).path))).on('error', rej)),
  http2: async (host, port) => {
    const session = http2.connect('https://' + host + ':' + port);
    const failed = new Promise((_, rej) => session.on('error', rej));
    const q = session.request({ ':path': '/grpc', ':method': 'POST', te: 'trailers', 'content-type': 'application/grpc' });
    let status;
    q.on('trailers', (h) => { status = h['grpc-status']; });
    q.write('one\n');
    const first = await Promise.race([failed, new Promise((res) => q.once('data', (d) => res(String(d))))]);
    const rest = body(q);
    q.end('two\n');
    const all = first + await rest + status;
    session.close();
    return all;
  },
  websocket: (host, port) => new Promise((res, rej) => {
    const q = https.request({ host, port, path: '/ws', headers: { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': 13, 'Sec-WebSocket-Key': crypto.randomBytes(16).toString('base64') } });
    q.on('error', rej);
    q.on('upgrade', (r, socket) => {
      socket.write(Buffer.concat([Buffer.from([0x81, 0x85, 0, 0, 0, 0]), Buffer.from('hello')]));
      socket.on('data', (d) => { res(r.statusCode + ' ' + d.subarray(2)); socket.destroy(); });
    });
    q.end();
  }),
};
exports.handler = async ({ host, port }) => {
  const out = {};
  for (const [name, f] of Object.entries(clients)) {
    try { out[name] = await f(host, port); } catch (e) { out[name] = String(e) + ' ' + String(e.cause); }
  }
  return out;
};
`

// TestNodeClientsReachHosts is the same for Node.js, which trusts the authority of
// the sandbox although it had started before that was there.
func TestNodeClientsReachHosts(t *testing.T) {
	o := newOutsideHost(t)
	n := NewNode(t, o.near("tunnel", "clear", "key"))
	rt := n.NeedRuntime(Nodes()...)
	n.MustDeploy("js", map[string]any{"runtime": string(rt), "handler": "app.handler", "egress": map[string]any{"hosts": o.rules()},
		"interior": map[string]any{"timeout": "60s"}}, map[string]string{"app.js": nodeClients})
	for _, host := range []string{"tunnel.up.test", "clear.up.test"} {
		got := n.MustInvoke("js", map[string]any{"host": host, "port": o.port})
		if want := `{"fetch":"hello","https":"/a","http2":"one!two!0","websocket":"101 hello"}`; got != want {
			t.Errorf("%s: %s", host, got)
		}
	}
}

// TestGoClientReachesHosts is the same for net/http in a function that brings its
// own runtime, by itself and by the proxy that the environment names.
func TestGoClientReachesHosts(t *testing.T) {
	o := newOutsideHost(t)
	n := NewNode(t, o.near("tunnel", "clear", "key"))
	n.NeedRuntime(bawn.Provided)
	bootstrap := filepath.Join(t.TempDir(), "bootstrap")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "lambda.norpc", "-o", bootstrap, "./testdata/reach")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, proxy := range []bool{false, true} {
		n.MustDeploy("go", map[string]any{"runtime": "provided", "egress": map[string]any{"hosts": o.rules(), "proxy": proxy}, "interior": map[string]any{"timeout": "60s"}},
			map[string]string{"bootstrap": string(MustRead(t, bootstrap))})
		for _, host := range []string{"tunnel.up.test", "clear.up.test"} {
			got := n.MustInvoke("go", map[string]any{"url": fmt.Sprintf("https://%s:%d/a", host, o.port)})
			if want := fmt.Sprintf(`"200 HTTP/2.0 proxy=%v"`, proxy); got != want {
				t.Errorf("%s: %s, want %s", host, got, want)
			}
		}
		if got := n.MustInvoke("go", map[string]any{"url": fmt.Sprintf("https://else.up.test:%d/a", o.port)}); strings.Contains(got, "200") {
			t.Errorf("a host without a rule: %s", got)
		}
	}
}

const botoS3 = `
import boto3
from botocore.config import Config

def handler(event, context):
    s3 = boto3.client("s3", endpoint_url="https://%s:%d" % (event["host"], event["port"]), config=Config(s3={"addressing_style": "path"}))
    s3.put_object(Bucket="bucket", Key="key", Body=b"object" * 1000)
    return s3.get_object(Bucket="bucket", Key="key")["Body"].read().decode()
`

// TestBotoReachesHosts has AWS's client for Python put and get an object.
func TestBotoReachesHosts(t *testing.T) {
	files := map[string]string{"app.py": botoS3}
	if !modules(t, files, "boto3", "botocore", "jmespath", "dateutil", "s3transfer", "urllib3", "six") {
		t.Skip("SKIP: this host has no boto3")
	}
	o := newOutsideHost(t)
	n := NewNode(t, o.near("tunnel", "clear", "key"))
	rt := n.NeedRuntime(Pythons()...)
	n.MustDeploy("s3", map[string]any{"runtime": string(rt), "handler": "app.handler", "egress": map[string]any{"hosts": o.rules()},
		"interior": map[string]any{"timeout": "60s", "memory": "512MiB"}}, files)
	for _, host := range []string{"tunnel.up.test", "clear.up.test"} {
		if got := n.MustInvoke("s3", map[string]any{"host": host, "port": o.port}); got != `"object"` {
			t.Errorf("%s: %s", host, got)
		}
	}
}

const keyless = `
import json, os, glob, urllib.request

def handler(event, context):
    r = urllib.request.Request("https://key.up.test:%d/a" % event["port"], headers={"Authorization": "Bearer mine"})
    with urllib.request.urlopen(r, timeout=10) as f:
        answer = f.read().decode()
    found = []
    for path in ["/proc/self/environ", "/proc/self/cmdline"] + glob.glob("/run/**", recursive=True) + glob.glob("/tmp/**", recursive=True):
        try:
            with open(path, "rb") as f:
                if b"4eC39HqLyjWDarjtT1zdp7dc" in f.read():
                    found.append(path)
        except OSError:
            pass
    try:
        urllib.request.urlopen(urllib.request.Request("https://key.up.test:%d/a" % event["port"], method="DELETE"), timeout=10)
        other = "200"
    except urllib.error.HTTPError as e:
        other = "%d %r" % (e.code, e.read())
    return {"answer": json.loads(answer), "found": found, "env": "4eC39HqLyjWDarjtT1zdp7dc" in str(os.environ), "other": other}
`

// TestE2InjectedCredentialIsNeverInside: the host gets the credential, the function
// does not, not even from a host that says it; a new one counts at once, without a
// deploy.
func TestE2InjectedCredentialIsNeverInside(t *testing.T) {
	o := newOutsideHost(t)
	n := NewNode(t, o.near("tunnel", "clear", "key"))
	rt := n.NeedRuntime(Pythons()...)
	if _, err := n.CreateSecret(t.Context(), "api-key", []byte(credential)); err != nil {
		t.Fatal(err)
	}
	n.MustDeploy("pay", map[string]any{"runtime": string(rt), "handler": "app.handler", "egress": map[string]any{"hosts": o.rules()},
		"interior": map[string]any{"timeout": "60s"}}, map[string]string{"app.py": keyless})
	call := func() string {
		inv, err := n.Invoke(t.Context(), "pay", "", fmt.Appendf(nil, `{"port":%d}`, o.port))
		if err != nil {
			t.Fatal(err)
		}
		defer inv.Body.Close()
		body, err := io.ReadAll(inv.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	last := func() string {
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.seen) == 0 {
			return ""
		}
		return o.seen[len(o.seen)-1]
	}
	// Deploying grants nothing.
	if out := call(); !strings.Contains(out, "HTTP Error 403") || last() != "" {
		t.Errorf("without a grant: %s, the host got %q", out, last())
	}
	if _, err := n.GrantSecret(t.Context(), "api-key", "pay"); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{credential, "sk_live_another_" + credential} {
		if value != credential {
			if _, err := n.RotateSecret(t.Context(), "api-key", []byte(value), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		var got struct {
			Answer map[string]string
			Found  []string
			Env    bool
			Other  string
		}
		out := call()
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%s", out)
		}
		if got.Answer["auth"] != "Bearer [secret]" || len(got.Found) > 0 || got.Env || got.Other != "403 b''" || strings.Contains(out, value) {
			t.Errorf("the function: %s", out)
		}
		if last() != "Bearer "+value {
			t.Errorf("the host got %q", last())
		}
	}
}
