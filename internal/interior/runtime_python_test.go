package interior

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// pythons returns the interpreters of this host by runtime.
func pythons(t testing.TB) map[bawn.Runtime]string {
	t.Helper()
	found := map[bawn.Runtime]string{}
	for _, r := range []bawn.Runtime{bawn.Python311, bawn.Python312, bawn.Python313} {
		if p := findPython(t.Context(), r); p.path != "" {
			found[r] = p.path
		}
	}
	if len(found) == 0 {
		t.Skip("no Python 3.11, 3.12 or 3.13 on this host: the Python shim is not tested")
	}
	return found
}

func startPython(t testing.TB, python, task string) *program {
	t.Helper()
	shim, err := filepath.Abs("shims/bootstrap.py")
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, nil, append(append([]string{python}, pythonFlags()...), shim, task)...)
}

// eachPython runs f with a fresh program for each interpreter of the host.
func eachPython(t *testing.T, f func(t *testing.T, r bawn.Runtime, start func(files ...string) *program)) {
	for r, python := range pythons(t) {
		t.Run(string(r), func(t *testing.T) {
			f(t, r, func(files ...string) *program { return startPython(t, python, writeFiles(t, files...)) })
		})
	}
}

func TestPythonHandler(t *testing.T) {
	const app = `
import os, sys, json, decimal, logging, subprocess
print("loading")
NAN = float("nan")
class Odd(bytes): pass
def echo(event, context): return event
def none(event, context): pass
def uni(event, context): return {"text": "grüß"}
def dec(event, context): return {"a": decimal.Decimal("1.10"), "b": [decimal.Decimal("12345678901234567890.123456789")]}
def nan(event, context): return [NAN]
def raw(event, context): return b"\x00\xffraw"
def rawsub(event, context): return Odd(b"odd")
def env(event, context): return dict(os.environ)
def where(event, context): return {"cwd": os.getcwd(), "path": sys.path[:3], "argv": sys.argv, "exit": callable(exit)}
def names(event, context):
    return {k: getattr(context, k) for k in ("aws_request_id", "function_name", "function_version", "memory_limit_in_mb",
        "invoked_function_arn", "log_group_name", "log_stream_name", "client_context", "tenant_id")} | {
        "remaining": context.get_remaining_time_in_millis(), "identity": context.identity.cognito_identity_id}
def client(event, context):
    c = context.client_context
    return [c.custom, c.env, c.client.app_title, c.client.installation_id]
def trace(event, context): return os.environ.get("_X_AMZN_TRACE_ID")
def big(event, context): return "x" * event
def lines(event, context):
    logging.getLogger().setLevel(logging.INFO)
    logging.info("informed\nof")
    logging.getLogger("other").warning("warned")
    context.log("by context")
    print("printed", file=sys.stderr)
    sys.stdout.write("no newline")
def child(event, context):
    return subprocess.run(["readlink", "/proc/self/fd/3"], capture_output=True, text=True, close_fds=False).stdout
def fork(event, context):
    import os
    pid = os.fork()
    if pid == 0:
        return "from the child"
    os.waitpid(pid, 0)
    return "from the parent"
`
	eachPython(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		// get answers one event with a handler of the file above.
		get := func(t *testing.T, handler, event string) (*program, *bawn.Result) {
			p := start("app.py", app)
			mustLoad(t, p, testIdentity(r, "app."+handler))
			return p, call(t, p, event)
		}
		uni := `{"text": "grüß"}`
		if r == bawn.Python311 {
			uni = `{"text": "gr\u00fc\u00df"}`
		}
		for _, tt := range []struct{ handler, event, want string }{
			{"echo", `{"a": [1, 2.5, null, true, "é"]}`, map[bool]string{true: `{"a": [1, 2.5, null, true, "\u00e9"]}`, false: `{"a": [1, 2.5, null, true, "é"]}`}[r == bawn.Python311]},
			{"none", `{}`, "null"},
			{"uni", `{}`, uni},
			{"dec", `{}`, `{"a": 1.10, "b": [12345678901234567890.123456789]}`},
			{"nan", `{}`, "[NaN]"},
			{"raw", `{}`, "\x00\xffraw"},
			{"rawsub", `{}`, "odd"},
			{"fork", `{}`, `"from the parent"`},
		} {
			t.Run(tt.handler, func(t *testing.T) {
				p, res := get(t, tt.handler, tt.event)
				if string(res.Payload) != tt.want || res.FunctionError != "" {
					t.Errorf("answered %q, want %q", res.Payload, tt.want)
				}
				if res := call(t, p, tt.event); string(res.Payload) != tt.want {
					t.Errorf("answered %q the second time, want %q", res.Payload, tt.want)
				}
			})
		}
		t.Run("env", func(t *testing.T) {
			p := start("app.py", app)
			id := testIdentity(r, "app.env")
			mustLoad(t, p, id)
			var got map[string]string
			if err := json.Unmarshal(call(t, p, "{}").Payload, &got); err != nil {
				t.Fatal(err)
			}
			want := environmentMap(&id)
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%s = %q, want %q", k, got[k], v)
				}
			}
			for k := range got {
				if _, ok := want[k]; !ok {
					t.Errorf("%s=%s leaked into the environment", k, got[k])
				}
			}
		})
		t.Run("where", func(t *testing.T) {
			p, res := get(t, "where", "{}")
			task := p.cmd.Args[len(p.cmd.Args)-1]
			shim := p.cmd.Args[len(p.cmd.Args)-2]
			want := fmt.Sprintf(`{"cwd": %q, "path": [%q, "/opt/python/lib/%s/site-packages", "/opt/python"], "argv": [%q], "exit": true}`, task, task, r, shim)
			if string(res.Payload) != want {
				t.Errorf("got  %s\nwant %s", res.Payload, want)
			}
		})
		t.Run("context", func(t *testing.T) {
			p := start("app.py", app)
			mustLoad(t, p, testIdentity(r, "app.names"))
			res, err := p.invoke(t.Context(), &bawn.Call{ID: "some-id", Event: []byte("{}"), Target: bawn.Ref{Qualifier: "live"}}, time.Now().Add(10*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			json.Unmarshal(res.Payload, &got)
			if ms, ok := got["remaining"].(float64); !ok || ms <= 0 || ms > 10000 {
				t.Errorf("remaining time = %v ms of 10 s", got["remaining"])
			}
			delete(got, "remaining")
			b, _ := json.Marshal(got)
			want := `{"aws_request_id":"some-id","client_context":null,"function_name":"hello","function_version":"3","identity":null,` +
				`"invoked_function_arn":"arn:aws:lambda:us-east-1:123456789012:function:hello:live","log_group_name":"/aws/lambda/hello",` +
				`"log_stream_name":"2026/03/04/[3]i-1","memory_limit_in_mb":"256","tenant_id":null}`
			if string(b) != want {
				t.Errorf("got  %s\nwant %s", b, want)
			}
		})
		t.Run("client context and trace", func(t *testing.T) {
			p := start("app.py", app)
			mustLoad(t, p, testIdentity(r, "app.client"))
			res, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}"), Client: `{"custom":{"a":1},"env":{"b":"c"},"client":{"app_title":"T"}}`}, time.Now().Add(10*time.Second))
			if err != nil || string(res.Payload) != `[{"a": 1}, {"b": "c"}, "T", null]` {
				t.Errorf("answered %q, %v", res.Payload, err)
			}
			p = start("app.py", app)
			mustLoad(t, p, testIdentity(r, "app.trace"))
			for _, id := range []string{"", "Root=1-5", ""} {
				res, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}"), TraceID: id}, time.Now().Add(10*time.Second))
				want := "null"
				if id != "" {
					want = `"` + id + `"`
				}
				if err != nil || string(res.Payload) != want {
					t.Errorf("_X_AMZN_TRACE_ID is %s, want %s, %v", res.Payload, want, err)
				}
			}
		})
		t.Run("size", func(t *testing.T) {
			p, res := get(t, "big", "6291554") // and two quotes
			if len(res.Payload) != bawn.MaxResponseBytes {
				t.Fatalf("got %d bytes, %.100s", len(res.Payload), res.Payload)
			}
			res = call(t, p, "6291555")
			d := document(t, res.Payload)
			if d.ErrorType != "Function.ResponseSizeTooLarge" || d.ErrorMessage != "Response payload size exceeded maximum allowed payload size (6291556 bytes)." || !p.alive() {
				t.Errorf("got %+v", d)
			}
			if res := call(t, p, "1"); string(res.Payload) != `"x"` {
				t.Errorf("after that: %s", res.Payload)
			}
			event := `"` + strings.Repeat("y", bawn.MaxEventBytes-2) + `"`
			_, res = get(t, "echo", event)
			if string(res.Payload) != event {
				t.Errorf("an event of %d bytes came back as %d", len(event), len(res.Payload))
			}
		})
		for _, warm := range []bool{true, false} {
			t.Run(fmt.Sprintf("log, warm %v", warm), func(t *testing.T) {
				p := start("app.py", app)
				if warm {
					mustLoad(t, p, testIdentity(r, "app.lines"))
				} else if err := p.load(t.Context(), testIdentity(r, "app.lines")); err != nil {
					t.Fatal(err)
				}
				if _, err := p.invoke(t.Context(), &bawn.Call{ID: "some-id", Event: []byte("{}")}, time.Now().Add(10*time.Second)); err != nil {
					t.Fatal(err)
				}
				p.close()
				_, log := p.exit(t)
				stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`
				want := `^loading\n\[INFO\]\t` + stamp + `\tsome-id\tinformed\nof\n\[WARNING\]\t` + stamp + `\tsome-id\twarned\nby context\nprinted\nno newline$`
				if !regexp.MustCompile(want).MatchString(log) {
					t.Errorf("log is %q, want %q", log, want)
				}
			})
		}
		t.Run("descriptor 3 stays here", func(t *testing.T) {
			_, res := get(t, "child", "{}")
			if string(res.Payload) != `""` {
				t.Errorf("a child's descriptor 3 is %s", res.Payload)
			}
		})
	})
}

func TestPythonErrors(t *testing.T) {
	const app = `
import sys
class Custom(Exception): pass
class Rude(Exception):
    def __str__(self): raise ValueError
def fail(event, context):
    helper()
def helper():
    raise Custom("grüße")
def rude(event, context): raise Rude()
def unserialisable(event, context): return {1, 2}
def surrogate(event, context): return b"ok" if event.get("ok") else object()
def recurse(event, context): return recurse(event, context)
def long(event, context): raise ValueError("é" * 1000000)
def leave(event, context): sys.exit(event)
def crash(event, context):
    import os
    print("half a", end="", flush=True)
    os._exit(9)
def noise(event, context):
    import os
    os.write(3, b"hello, world\n")
    return 1
def spoof(event, context):
    import os
    h = b'{"type":"response","id":"00000000-0000-0000-0000-000000000000"}'
    os.write(3, len(h).to_bytes(4, "big") + b"\0\0\0\0" + h)
    return 1
`
	eachPython(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		loaded := func(t *testing.T, handler string) *program {
			p := start("app.py", app)
			mustLoad(t, p, testIdentity(r, "app."+handler))
			return p
		}
		t.Run("exception", func(t *testing.T) {
			p := loaded(t, "fail")
			res := call(t, p, "{}")
			if res.FunctionError != "Unhandled" || res.Cause != bawn.CodeFunctionError {
				t.Errorf("FunctionError %q, Cause %q", res.FunctionError, res.Cause)
			}
			d := document(t, res.Payload)
			task := p.cmd.Args[len(p.cmd.Args)-1]
			want := []string{
				fmt.Sprintf("  File \"%s/app.py\", line 7, in fail\n    helper()\n", task),
				fmt.Sprintf("  File \"%s/app.py\", line 9, in helper\n    raise Custom(\"grüße\")\n", task),
			}
			if d.ErrorMessage != "grüße" || d.ErrorType != "Custom" || d.RequestID == nil || *d.RequestID == "" || !slices.Equal(d.StackTrace, want) {
				t.Errorf("got %s", res.Payload)
			}
			if !strings.HasPrefix(string(res.Payload), `{"errorMessage": `) {
				t.Errorf("the document's order differs: %s", res.Payload)
			}
			if res := call(t, p, "{}"); res.FunctionError == "" || !p.alive() {
				t.Error("the instance does not go on")
			}
			p.close()
			if _, log := p.exit(t); !strings.Contains(log, "[ERROR] Custom: grüße\nTraceback (most recent call last):\n  File") {
				t.Errorf("log is %q", log)
			}
		})
		for _, tt := range []struct{ handler, event, kind, message string }{
			{"rude", "{}", "Rude", ""},
			{"unserialisable", "{}", "Runtime.MarshalError", "Unable to marshal response: Object of type set is not JSON serializable"},
			{"surrogate", "{}", "Runtime.MarshalError", "Unable to marshal response: Object of type object is not JSON serializable"},
			{"surrogate", "{", "Runtime.UnmarshalError", "Unable to unmarshal input: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"},
			{"surrogate", "\xff", "Runtime.UnmarshalError", "Unable to unmarshal input: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"},
		} {
			t.Run(tt.kind+" "+tt.handler, func(t *testing.T) {
				res := call(t, loaded(t, tt.handler), tt.event)
				if d := document(t, res.Payload); d.ErrorType != tt.kind || d.ErrorMessage != tt.message || res.FunctionError == "" {
					t.Errorf("got %s", res.Payload)
				}
			})
		}
		for handler, kind := range map[string]string{"recurse": "RecursionError", "long": "ValueError"} {
			t.Run(handler, func(t *testing.T) {
				res := call(t, loaded(t, handler), "{}")
				if d := document(t, res.Payload); d.ErrorType != kind || len(res.Payload) > maxErrorBytes {
					t.Errorf("got %d bytes: %.200s", len(res.Payload), res.Payload)
				}
			})
		}
		for _, tt := range []struct {
			handler, event string
			code           int
			log            string
		}{{"leave", "3", 3, ""}, {"leave", "null", 0, ""}, {"leave", `"sorry"`, 1, "sorry\n"}, {"crash", "{}", 9, "half a"}} {
			t.Run("exit of "+tt.handler+tt.event, func(t *testing.T) {
				p := loaded(t, tt.handler)
				_, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte(tt.event)}, time.Now().Add(10*time.Second))
				code, log := p.exit(t)
				if err != errGone || code != tt.code || log != tt.log {
					t.Errorf("err %v, exit status %d, log %q; want status %d, log %q", err, code, log, tt.code, tt.log)
				}
			})
		}
		for handler, want := range map[string]string{"noise": "broke the protocol", "spoof": "not running"} {
			t.Run(handler, func(t *testing.T) {
				p := loaded(t, handler)
				_, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
				if err == nil || !strings.Contains(err.Error(), want) || p.alive() {
					t.Errorf("err = %v", err)
				}
			})
		}
	})
}

func TestPythonInitErrors(t *testing.T) {
	tests := []struct {
		name, handler, app string
		kind, message      string // the message is a regular expression
		trace              string // a regular expression for the last entry
	}{
		{"no dot", "handler", "", `Runtime.MalformedHandlerName`, `^Bad handler 'handler': not enough values to unpack \(expected 2, got 1\)$`, ""},
		{"no module", "nope.handler", "", `Runtime.ImportModuleError`, `^Unable to import module 'nope': No module named 'nope'$`, ""},
		{"missing dependency", "app.handler", "import nothing_like_it", `Runtime.ImportModuleError`, `^Unable to import module 'app': No module named 'nothing_like_it'$`, ""},
		{"no attribute", "app.handler", "", `Runtime.HandlerNotFound`, `^Handler 'handler' missing on module 'app'$`, ""},
		{"syntax", "app.handler", "def handler(:", `Runtime.UserCodeSyntaxError`, `^Syntax error in module 'app': invalid syntax \(app.py, line 1\)$`, `^  File ".*app.py" Line 1\n    def handler\(:`},
		{"built in", "sys.exit", "", `Runtime.BuiltInModuleConflict`, `^Cannot use built-in module sys as a handler module$`, ""},
		{"raises", "app.handler", "x = 1\n1/0", `ZeroDivisionError`, `^division by zero$`, `^  File ".*app.py", line 2, in <module>\n    1/0\n$`},
	}
	eachPython(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				p := start("app.py", tt.app)
				err := p.load(t.Context(), testIdentity(r, tt.handler))
				e, ok := err.(*initError)
				if !ok {
					t.Fatalf("err = %v", err)
				}
				d := document(t, e.Payload)
				if d.ErrorType != tt.kind || !regexp.MustCompile(tt.message).MatchString(d.ErrorMessage) || d.RequestID == nil || *d.RequestID != "" {
					t.Errorf("got %s", e.Payload)
				}
				if tt.trace == "" && len(d.StackTrace) > 0 ||
					tt.trace != "" && (len(d.StackTrace) == 0 || !regexp.MustCompile(tt.trace).MatchString(d.StackTrace[len(d.StackTrace)-1])) {
					t.Errorf("trace is %q", d.StackTrace)
				}
				if code, log := p.exit(t); code != 1 || !strings.Contains(log, "[ERROR] "+tt.kind) || p.alive() {
					t.Errorf("exit status %d, log %q", code, log)
				}
			})
		}
		t.Run("exit", func(t *testing.T) {
			p := start("app.py", "import sys; sys.exit(4)")
			if err := p.load(t.Context(), testIdentity(r, "app.handler")); err != errGone {
				t.Errorf("err = %v, want errGone", err)
			}
			if code, _ := p.exit(t); code != 4 {
				t.Errorf("exit status %d, want 4", code)
			}
		})
		t.Run("nested, vendored and shadowing", func(t *testing.T) {
			p := start("a/b/app.py", "import dep, base64\ndef handler(event, context): return [dep.X, base64.X]",
				"dep/__init__.py", "X = 'vendored'", "base64.py", "X = 'mine'")
			mustLoad(t, p, testIdentity(r, "a/b/app.handler"))
			if res := call(t, p, "{}"); string(res.Payload) != `["vendored", "mine"]` {
				t.Errorf("answered %s", res.Payload)
			}
		})
	})
}

func BenchmarkPythonWarm(b *testing.B) {
	for r, python := range pythons(b) {
		b.Run(string(r), func(b *testing.B) {
			p := startPython(b, python, writeFiles(b, "app.py", "def handler(event, context): return {'statusCode': 200, 'body': 'hello'}"))
			mustLoad(b, p, testIdentity(r, "app.handler"))
			for b.Loop() {
				call(b, p, `{"version":"2.0","rawPath":"/hello"}`)
			}
		})
	}
}

func BenchmarkPythonCold(b *testing.B) {
	for r, python := range pythons(b) {
		b.Run(string(r), func(b *testing.B) {
			dir := writeFiles(b, "app.py", "def handler(event, context): return {'statusCode': 200, 'body': 'hello'}")
			for b.Loop() {
				b.StopTimer()
				p := startPython(b, python, dir)
				if err := p.ready(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				mustLoad(b, p, testIdentity(r, "app.handler"))
				call(b, p, `{"version":"2.0","rawPath":"/hello"}`)
				b.StopTimer()
				p.close()
				p.cmd.Process.Kill()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkPythonBoot(b *testing.B) {
	for r, python := range pythons(b) {
		b.Run(string(r), func(b *testing.B) {
			for b.Loop() {
				p := startPython(b, python, b.TempDir())
				if err := p.ready(b.Context()); err != nil {
					b.Fatal(err)
				}
				p.close()
				p.cmd.Process.Kill()
			}
		})
		b.Run(string(r)+" to first answer, none warm", func(b *testing.B) {
			dir := writeFiles(b, "app.py", "def handler(event, context): return {'statusCode': 200, 'body': 'hello'}")
			for b.Loop() {
				p := startPython(b, python, dir)
				if err := p.load(b.Context(), testIdentity(r, "app.handler")); err != nil {
					b.Fatal(err)
				}
				call(b, p, `{"version":"2.0","rawPath":"/hello"}`)
				p.close()
				p.cmd.Process.Kill()
			}
		})
		b.Run(string(r)+" bare", func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command(python, "-c", "pass")
				cmd.Env = []string{}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
