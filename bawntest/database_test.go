package bawntest

import (
	"crypto/rand"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest/pgtest"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/node"
)

// shopInPython uses a database by pg8000 as it is. What fails it answers with.
const shopInPython = `
import io, os
import pg8000

def connect(database=None):
    e = os.environ
    return pg8000.connect(host=e["BAWN_DB_ORDERS_HOST"], port=int(e["BAWN_DB_ORDERS_PORT"]),
                          user=e["BAWN_DB_ORDERS_USER"], database=database or e["BAWN_DB_ORDERS_NAME"])

def use(e):
    c = connect()
    cur = c.cursor()
    cur.execute("insert into t values (%s, %s)", (1, "rolled back"))
    c.rollback()
    cur.execute("insert into t values (%s, %s)", (2, "kept"))
    c.commit()
    cur.execute("copy t from stdin", stream=io.BytesIO(b"3\tcopied\n4\tcopied\n"))
    c.commit()
    out = io.BytesIO()
    cur.execute("copy (select * from t order by n) to stdout", stream=out)
    cur.execute("select repeat('x', 5000000)")
    big = cur.fetchone()[0]
    return [out.getvalue().decode(), len(big)]

kept = []

def keep(e):
    kept.append(connect())
    cur = kept[-1].cursor()
    cur.execute("select 1")
    return "kept"

def again(e):
    kept[-1].cursor().execute("select 1")
    return "it is still there"

def many(e):
    all = []
    for i in range(e["n"]):
        all.append(connect())
    return len(all)

def statements(e):
    cur = connect().cursor()
    for i in range(e["n"]):
        cur.execute("select 1")
    return e["n"]

def sleep(e):
    cur = connect().cursor()
    cur.execute("select pg_sleep(%s)" % e["s"])
    return "slept"

def wrong(e):
    connect("postgres")

def rest(e):
    connect().cursor().execute("select 1")
    return "in"

# search looks for a + b in everything that the sandbox shows: environments,
# arguments, files, and the memory of this process.
def search(e):
    connect().cursor().execute("select 1")
    a, b = e["a"].encode(), e["b"].encode()
    found = []
    def look(where, data):
        at = data.find(a)
        while at >= 0:
            if data[at+len(a):at+len(a)+len(b)] == b:
                found.append(where)
            at = data.find(a, at + 1)
    for p in os.listdir("/proc"):
        if p.isdigit():
            for f in ("environ", "cmdline"):
                try:
                    with open("/proc/%s/%s" % (p, f), "rb") as h: look("/proc/%s/%s" % (p, f), h.read())
                except OSError: pass
    seen = 0
    try:
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as mem:
            for line in maps:
                r = line.split()
                if r[1][:2] == "rw":
                    lo, hi = (int(x, 16) for x in r[0].split("-"))
                    try:
                        mem.seek(lo)
                        data = mem.read(hi - lo)
                        seen += len(data)
                        look("memory " + line, data)
                    except (OSError, ValueError, OverflowError): pass
    except OSError: pass
    for root in ("/etc", "/run", "/tmp", "/var"):
        for d, _, files in os.walk(root):
            for f in files:
                try:
                    with open(os.path.join(d, f), "rb") as h: look(os.path.join(d, f), h.read(1 << 20))
                except OSError: pass
    return [found, seen]

def handler(e, c):
    try:
        return {"ok": globals()[e["do"]](e)}
    except Exception as x:
        return {"error": repr(x)}
`

// shopInNode does the same by pg.
const shopInNode = `
const { Client, Pool } = require("pg");
exports.handler = async (e) => {
  const c = new Client(e.url ? { connectionString: process.env.BAWN_DB_ORDERS_URL } : {});
  try {
    await c.connect();
    if (e.do === "cancel") {
      const late = c.query("select pg_sleep(60)").then(() => "slept", (x) => x.code);
      await new Promise((ok) => setTimeout(ok, 300));
      new Client().cancel(c, c._getActiveQuery());
      return { ok: await late };
    }
    await c.query("begin");
    await c.query({ name: "put", text: "insert into t values ($1, $2)", values: [10, "node"] });
    await c.query({ name: "put", text: "insert into t values ($1, $2)", values: [11, "node"] });
    await c.query("commit");
    const heard = new Promise((ok) => c.on("notification", (n) => ok(n.payload)));
    await c.query("listen news");
    const pool = new Pool({ max: 2 });
    await Promise.all([pool.query("notify news, 'from node'"), pool.query("select 1"), pool.query("select 2")]);
    const r = await c.query("select count(*)::int as n, repeat('y', 3000000) as y from t where s = 'node'");
    const ok = [r.rows[0].n, r.rows[0].y.length, await heard];
    await pool.end();
    return { ok };
  } catch (x) {
    return { error: String(x), code: x.code };
  } finally {
    await c.end().catch(() => {});
  }
};
`

// tree reads a folder as the files of a package, below a prefix.
func tree(t *testing.T, files map[string]string, dir, prefix string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if strings.HasPrefix(filepath.Base(path), ".") || strings.Contains(rel, "__pycache__") || strings.HasSuffix(rel, ".md") || strings.HasSuffix(rel, ".d.ts") {
			return nil
		}
		data, err := os.ReadFile(path)
		files[filepath.Join(prefix, rel)] = string(data)
		return err
	})
	if err != nil {
		t.Skipf("SKIP: a client of PostgreSQL is not installed (make setup): %v", err)
	}
}

// TestE9Postgres lets unmodified clients in real sandboxes use a real server, and
// holds them to what their manifests say.
func TestE9Postgres(t *testing.T) {
	real := pgtest.Start(t)
	password := "pw-" + rand.Text()
	real.Exec(t, "postgres", "create role shop login password '"+password+"'")
	real.Exec(t, "postgres", "create database orders owner shop")
	real.Exec(t, "orders", "set role shop; create table t (n int, s text)")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, real.CA, 0o644); err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(real.Port)
	n := NewNode(t, func(c *node.Config) {
		c.EgressAllow, c.EgressResolve, c.EgressCA = []string{"127.0.0.1:" + port}, []string{pgtest.Name + "=127.0.0.1"}, ca
	})
	n.NeedSandbox()
	python := n.NeedRuntime(bawn.Python311)
	ctx := t.Context()
	if _, err := n.CreateSecret(ctx, "orders-db", []byte(password)); err != nil {
		t.Fatal(err)
	}
	spec := func(runtime bawn.Runtime, handler string, db map[string]any) map[string]any {
		db["postgres"], db["user"], db["secret"] = pgtest.Name+":"+port+"/orders", "shop", "orders-db"
		return map[string]any{
			"runtime": string(runtime), "handler": handler, "egress": map[string]any{"databases": map[string]any{"orders": db}},
			"interior": map[string]any{"timeout": "30s", "memory": "512MiB", "reuse": map[string]any{"maxAge": "10m"}},
		}
	}
	files := map[string]string{"app.py": shopInPython}
	tree(t, files, "/usr/lib/python3/dist-packages/pg8000", "pg8000")
	six, err := os.ReadFile("/usr/lib/python3/dist-packages/six.py")
	if err != nil {
		t.Skipf("SKIP: python3-six is not installed: %v", err)
	}
	files["six.py"] = string(six)
	deploy := func(name string, db map[string]any) {
		n.MustDeploy(name, spec(python, "app.handler", db), files)
	}
	deploy("shop", map[string]any{"labels": []string{"pii"}})
	type answer struct {
		OK    json.RawMessage `json:"ok"`
		Error string          `json:"error"`
		Code  string          `json:"code"`
	}
	ask := func(t *testing.T, name string, event map[string]any) (a answer) {
		t.Helper()
		text := n.MustInvoke(name, event)
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return a
	}

	t.Run("a deploy grants nothing", func(t *testing.T) {
		if a := ask(t, "shop", map[string]any{"do": "rest"}); a.Error == "" || strings.Contains(a.Error, "grant") {
			t.Errorf("without a grant: %+v", a)
		}
	})
	for _, f := range []string{"shop", "few"} {
		if f == "few" {
			deploy("few", map[string]any{"connections": 2, "statements": 12, "timeout": "500ms"})
		}
		if _, err := n.GrantSecret(ctx, "orders-db", f); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("python", func(t *testing.T) {
		if a := ask(t, "shop", map[string]any{"do": "use"}); string(a.OK) != `["2\tkept\n3\tcopied\n4\tcopied\n", 5000000]` {
			t.Errorf("%s %s", a.OK, a.Error)
		}
	})
	t.Run("the password is not inside", func(t *testing.T) {
		half := len(password) / 2
		a := ask(t, "shop", map[string]any{"do": "search", "a": password[:half], "b": password[half:]})
		var found []json.RawMessage
		if err := json.Unmarshal(a.OK, &found); err != nil || len(found) != 2 || string(found[0]) != "[]" {
			t.Errorf("%s %s", a.OK, a.Error)
		}
		t.Logf("searched %s bytes of memory", found[1])
	})
	t.Run("bounds", func(t *testing.T) {
		for event, want := range map[*map[string]any]string{
			{"do": "wrong"}:               "3D000",
			{"do": "many", "n": 3}:        "53300",
			{"do": "statements", "n": 50}: "error", // pg8000 goes on reading after what is fatal
			{"do": "sleep", "s": 30}:      "57014",
		} {
			if a := ask(t, "few", *event); !strings.Contains(a.Error, want) {
				t.Errorf("%v: %+v, want %s", *event, a, want)
			}
		}
		noted := ""
		err := n.Logs(ctx, "few", client.LogQuery{}, func(l bawn.LogLine) error { noted += l.Text + "\n"; return nil })
		for _, key := range []string{"connections", "statements", "timeout"} {
			if want := "egress.databases.orders." + key; err != nil || !strings.Contains(noted, want) {
				t.Errorf("the owner is not told of %s: %v\n%s", want, err, noted)
			}
		}
		for range 2 { // each invocation has its own
			if a := ask(t, "few", map[string]any{"do": "statements", "n": 5}); string(a.OK) != "5" {
				t.Errorf("few statements: %+v", a)
			}
		}
	})
	t.Run("nothing outlives an invocation", func(t *testing.T) {
		if a := ask(t, "shop", map[string]any{"do": "keep"}); string(a.OK) != `"kept"` {
			t.Fatalf("%+v", a)
		}
		waitFor(t, func() bool {
			return real.Exec(t, "postgres", "select count(*) from pg_stat_activity where usename = 'shop'") == "0"
		})
		if a := ask(t, "shop", map[string]any{"do": "again"}); a.Error == "" {
			t.Error("a connection of the invocation before is still there")
		}
	})
	t.Run("rotation", func(t *testing.T) {
		next := "pw-" + rand.Text()
		real.Exec(t, "postgres", "alter role shop password '"+next+"'")
		if _, err := n.RotateSecret(ctx, "orders-db", []byte(next), time.Minute); err != nil {
			t.Fatal(err)
		}
		if a := ask(t, "shop", map[string]any{"do": "rest"}); string(a.OK) != `"in"` {
			t.Errorf("after a rotation: %+v", a)
		}
	})
	t.Run("node", func(t *testing.T) {
		js := n.NeedRuntime(Nodes()...)
		files := map[string]string{"index.js": shopInNode}
		tree(t, files, filepath.Join("..", "tools", "postgres", "node_modules"), "node_modules")
		n.MustDeploy("shop-js", spec(js, "index.handler", map[string]any{}), files)
		if _, err := n.GrantSecret(ctx, "orders-db", "shop-js"); err != nil {
			t.Fatal(err)
		}
		for _, url := range []bool{true, false} {
			real.Exec(t, "orders", "delete from t where s = 'node'")
			if a := ask(t, "shop-js", map[string]any{"url": url}); string(a.OK) != `[2,3000000,"from node"]` {
				t.Errorf("%s %s", a.OK, a.Error)
			}
		}
		if a := ask(t, "shop-js", map[string]any{"do": "cancel"}); string(a.OK) != `"57014"` {
			t.Errorf("cancel: %s %s", a.OK, a.Error)
		}
	})
	t.Run("who", func(t *testing.T) {
		list, err := n.Client.Data(ctx, "orders", time.Time{})
		if err != nil || len(list.Data) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		d := list.Data[0]
		if d.Kind != "database" || strings.Join(d.Labels, ",") != "pii" || len(d.Functions) < 2 {
			t.Errorf("%+v", d)
		}
		for _, f := range d.Functions {
			if !f.Allowed || f.Uses == 0 || f.Last == nil || len(f.Versions) != 1 {
				t.Errorf("%+v", f)
			}
		}
		list, err = n.Client.Data(ctx, "orders-db", time.Time{})
		if err != nil || len(list.Data) != 1 || list.Data[0].Kind != "secret" {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, f := range list.Data[0].Functions {
			if !f.Allowed || f.Uses == 0 || f.Function == "shop" && f.Denied == 0 {
				t.Errorf("%+v", f)
			}
		}
	})
	t.Run("usage", func(t *testing.T) {
		var last bawn.Record
		err := n.Events(ctx, client.EventQuery{Function: "shop", Kinds: []bawn.RecordKind{bawn.KindDecision}}, func(r bawn.Record) error {
			if r.Action == "egress" {
				last = r
			}
			return nil
		})
		if err != nil || last.Detail["object"] != "Database:orders" || last.Detail["host"] != pgtest.Name || last.Detail["port"] != port || last.Invocation == "" {
			t.Errorf("%+v, %v", last, err)
		}
	})
	t.Run("server killed midway", func(t *testing.T) {
		done := make(chan answer, 1)
		go func() { done <- ask(t, "shop", map[string]any{"do": "sleep", "s": 25}) }()
		waitFor(t, func() bool {
			return real.Exec(t, "postgres", "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "1"
		})
		real.Kill()
		if a := <-done; a.Error == "" {
			t.Errorf("%+v", a)
		}
		if a := ask(t, "shop", map[string]any{"do": "rest"}); !strings.Contains(a.Error, "08001") {
			t.Errorf("a dead server: %+v", a)
		}
	})
}

// cacheInPython speaks with Redis and MariaDB, over TLS of its own.
const cacheInPython = `
import os, socket, ssl

def at(name):
    p = "BAWN_DB_" + name + "_"
    return os.environ[p + "HOST"], int(os.environ[p + "PORT"])

def redis(e):
    s = socket.create_connection(at(e.get("db", "CACHE")), 5)
    if not e.get("clear"):
        host = e.get("name") or at("CACHE")[0]
        s = ssl.create_default_context(cadata=e["ca"]).wrap_socket(s, server_hostname=host)
    s.sendall(b"SET greeting hello\r\nGET greeting\r\n")
    data = b""
    while data.count(b"\n") < 3:
        part = s.recv(100)
        if not part: raise EOFError("cut off")
        data += part
    return data.decode()

def mysql(e):
    import pymysql
    host, port = at("LEGACY")
    tls = None if e.get("clear") else ssl.create_default_context(cadata=e["ca"])
    c = pymysql.connect(host=host, port=port, user="x", ssl=tls, connect_timeout=5)
    cur = c.cursor()
    cur.execute("show status like 'Ssl_version'")
    return cur.fetchall()[0][1]

def handler(e, c):
    try:
        return {"ok": globals()[e["do"]](e)}
    except Exception as x:
        return {"error": repr(x)}
`

// serve runs a server on a free port until the test ends.
func serve(t *testing.T, dir, path string, args func(port string) []string) (port string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Skipf("SKIP: %s is not installed (make setup)", path)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	ln.Close()
	cmd := pgtest.Command(dir, path, args(port)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	waitFor(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return port
}

// TestC6ForwardedDatabases lets clients in a real sandbox speak TLS of their own
// with real servers, and nothing else.
func TestC6ForwardedDatabases(t *testing.T) {
	dir, err := os.MkdirTemp("", "dbtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	authority := pgtest.Certify(t, dir)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	redis := serve(t, dir, "/usr/bin/redis-server", func(port string) []string {
		return []string{"--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert,
			"--tls-auth-clients", "no", "--save", "", "--dir", dir}
	})
	mysql := serve(t, dir, "/usr/sbin/mariadbd", func(port string) []string {
		return []string{"--no-defaults", "--skip-grant-tables", "--datadir=" + dir, "--port=" + port, "--bind-address=127.0.0.1", "--socket=" + dir + "/s",
			"--pid-file=" + dir + "/pid", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--ssl-cert=" + cert, "--ssl-key=" + key}
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, authority, 0o644); err != nil {
		t.Fatal(err)
	}
	n := NewNode(t, func(c *node.Config) {
		c.EgressAllow = []string{"127.0.0.1:" + redis, "127.0.0.1:" + mysql}
		c.EgressResolve, c.EgressCA = []string{pgtest.Name + "=127.0.0.1", "other.test=127.0.0.1"}, ca
	})
	n.NeedSandbox()
	python := n.NeedRuntime(Pythons()...)
	files := map[string]string{"app.py": cacheInPython}
	tree(t, files, "/usr/lib/python3/dist-packages/pymysql", "pymysql")
	n.MustDeploy("cache", map[string]any{
		"runtime": string(python), "handler": "app.handler", "interior": map[string]any{"timeout": "30s"},
		"egress": map[string]any{"databases": map[string]any{
			"cache": map[string]any{"redis": pgtest.Name + ":" + redis}, "legacy": map[string]any{"mysql": pgtest.Name + ":" + mysql},
			"other": map[string]any{"redis": "other.test:" + redis},
		}},
	}, files)
	for _, c := range []struct {
		event map[string]any
		want  string // in the answer
	}{
		{map[string]any{"do": "redis"}, `"+OK\r\n$5\r\nhello\r\n"`},
		{map[string]any{"do": "redis", "clear": true}, "error"},
		{map[string]any{"do": "redis", "name": "other.test"}, "error"},
		// Its certificate is for another name: Bawn looks, whatever the client does.
		{map[string]any{"do": "redis", "db": "OTHER", "name": "other.test"}, "error"},
		{map[string]any{"do": "mysql"}, `"TLSv1.`},
		{map[string]any{"do": "mysql", "clear": true}, "error"},
	} {
		c.event["ca"] = string(authority)
		if got := n.MustInvoke("cache", c.event); !strings.Contains(got, c.want) {
			delete(c.event, "ca")
			t.Errorf("%v: %s, want %s", c.event, got, c.want)
		}
	}
	blocked := 0
	err = n.Events(t.Context(), client.EventQuery{Function: "cache", Kinds: []bawn.RecordKind{bawn.KindBlocked}}, func(r bawn.Record) error {
		if r.Control == "C6" {
			blocked++
		}
		return nil
	})
	if err != nil || blocked < 4 {
		t.Errorf("%d of 4 tries are recorded, %v", blocked, err)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("it never happened")
}
