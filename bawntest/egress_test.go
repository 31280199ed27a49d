package bawntest

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/node"
)

// tries gets each URL of its event with what its language has for that, and
// tells the answer or that there was none.
var tries = map[bool]map[string]string{
	false: {"app.py": `
import urllib.request

def get(url):
    try:
        with urllib.request.urlopen(url, timeout=3) as r:
            return r.read().decode()
    except Exception as e:
        return "no: " + type(e).__name__

def handler(event, context):
    return [get(u) for u in event]
`},
	true: {"app.mjs": `
const get = async (url) => {
  try {
    const r = await fetch(url, { signal: AbortSignal.timeout(3000) });
    return await r.text();
  } catch (e) {
    return "no: " + e.name;
  }
};
export const handler = async (event) => Promise.all(event.map(get));
`},
}

// outside is a host that functions may reach or not; it counts who connects.
type outside struct {
	*httptest.Server
	port     int
	accepted atomic.Int64
}

func newOutside(t *testing.T, h http.HandlerFunc) *outside {
	t.Helper()
	o := &outside{Server: httptest.NewUnstartedServer(h)}
	o.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			o.accepted.Add(1)
		}
	}
	o.Start()
	t.Cleanup(o.Close)
	o.port = o.Listener.Addr().(*net.TCPAddr).Port
	return o
}

// TestC3TriesOfFunctions: a function reaches the host of its rule by name, and by
// no way of writing an address, no redirect and no name that leads there does it
// come to the node's own host. Controls C2 to C5, from within a real sandbox.
func TestC3TriesOfFunctions(t *testing.T) {
	host := newOutside(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the host's own") })
	own := strconv.Itoa(host.port)
	up := newOutside(t, func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		io.WriteString(w, "hello "+r.Host)
	})
	port := strconv.Itoa(up.port)
	n := NewNode(t, func(c *node.Config) {
		c.EgressAllow = []string{"127.0.0.1:" + port}
		c.EgressResolve = []string{"up.test=127.0.0.1", "one.wild.test=127.0.0.1", "inside.test=127.0.0.1", "mapped.test=::ffff:127.0.0.1", "nat64.test=64:ff9b::7f00:1", "meta.test=169.254.169.254"}
	})
	n.NeedSandbox()
	good := []string{"http://up.test:" + port + "/", "http://UP.test.:" + port + "/", "http://one.wild.test:" + port + "/"}
	var bad []string
	for _, h := range []string{
		"127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0.0.0.0", "10.0.0.1",
		"up.test@127.0.0.1", "inside.test", "mapped.test", "nat64.test", "meta.test", "other.test", "a.one.wild.test", "wild.test", "up.test.other.test",
	} {
		bad = append(bad, "http://"+h+":"+own+"/", "http://up.test:"+port+"/?to=http%3A%2F%2F"+h+"%3A"+own+"%2F")
	}
	bad = append(bad, "http://169.254.169.254/latest/meta-data/", "http://up.test:"+own+"/", "http://"+strings.Repeat("5ecret", 10)+".evil.test/")
	for _, rt := range []struct {
		want []bawn.Runtime
		node bool
		file string
	}{{Pythons(), false, "app.handler"}, {Nodes(), true, "app.handler"}} {
		t.Run(string(rt.want[0]), func(t *testing.T) {
			m := *n
			m.t = t
			run := m.NeedRuntime(rt.want...)
			name := map[bool]string{false: "py", true: "js"}[rt.node]
			m.MustDeploy(name, map[string]any{
				"runtime": string(run), "handler": rt.file, "interior": map[string]any{"timeout": "4m", "memory": "512MiB"},
				"egress": map[string]any{"hosts": []map[string]any{
					{"host": "up.test", "ports": []int{up.port}, "plaintext": true},
					{"host": "*.wild.test", "ports": []int{up.port}, "plaintext": true},
					{"host": "inside.test", "ports": []int{host.port}, "plaintext": true},
					{"host": "mapped.test", "ports": []int{host.port}, "plaintext": true},
					{"host": "nat64.test", "ports": []int{host.port}, "plaintext": true},
					{"host": "meta.test", "ports": []int{host.port, 80}, "plaintext": true},
				}},
			}, tries[rt.node])
			var got []string
			if err := json.Unmarshal([]byte(m.MustInvoke(name, append(append([]string{}, good...), bad...))), &got); err != nil {
				t.Fatal(err)
			}
			if len(got) != len(good)+len(bad) {
				t.Fatalf("%d answers", len(got))
			}
			for i, url := range good {
				if !strings.HasPrefix(strings.ToLower(got[i]), "hello ") {
					t.Errorf("%s: %s", url, got[i])
				}
			}
			for i, url := range bad {
				if a := got[len(good)+i]; !strings.HasPrefix(a, "no: ") {
					t.Errorf("%s: %s", url, a)
				}
			}
			if k := host.accepted.Load(); k != 0 {
				t.Errorf("%d connections to what is refused", k)
			}
		})
	}
}
