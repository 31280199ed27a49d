package interior

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// nodes returns the interpreters of this host by runtime.
func nodes(t testing.TB) map[bawn.Runtime]string {
	t.Helper()
	found := map[bawn.Runtime]string{}
	for _, r := range []bawn.Runtime{bawn.NodeJS20, bawn.NodeJS22} {
		if path, _ := findNode(t.Context(), r); path != "" {
			found[r] = path
		}
	}
	if len(found) == 0 {
		t.Skip("no Node.js 20 or 22 on this host: the Node.js shim is not tested")
	}
	return found
}

func startNode(t testing.TB, node, task string) *program {
	t.Helper()
	shim, err := filepath.Abs("shims/bootstrap.cjs")
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, nil, node, shim, task)
}

// eachNode runs f with a fresh program for each interpreter of the host.
func eachNode(t *testing.T, f func(t *testing.T, r bawn.Runtime, start func(files ...string) *program)) {
	for r, node := range nodes(t) {
		t.Run(string(r), func(t *testing.T) {
			f(t, r, func(files ...string) *program { return startNode(t, node, writeFiles(t, files...)) })
		})
	}
}

const nodeApp = `
'use strict';
const { spawnSync } = require('child_process');
console.log('loading %d', 1);
exports.echo = async (event) => event;
exports.nothing = async () => {};
exports.fn = async () => () => 1;
exports.callback = (event, context, callback) => { callback(null, 'called'); };
exports.callbackLate = (event, context, callback) => { setTimeout(() => { console.log('late'); }, 30); callback(null, 'called'); };
exports.callbackNow = (event, context, callback) => { context.callbackWaitsForEmptyEventLoop = false; setInterval(() => {}, 1000); callback(null, 'called'); };
exports.succeed = (event, context) => { context.succeed('s'); };
exports.done = (event, context) => { setImmediate(() => context.done(null, 'd')); };
exports.silent = (event, context) => { setTimeout(() => {}, 10); };
exports.never = () => new Promise(() => {});
exports.thenable = () => ({ then(resolve) { resolve('t'); } });
exports.env = async () => process.env;
exports.where = async () => [process.cwd(), process.argv.length];
exports.context = async (event, c) => ({ ...c, getRemainingTimeInMillis: c.getRemainingTimeInMillis() });
exports.client = async (event, c) => c.clientContext;
exports.trace = async () => process.env._X_AMZN_TRACE_ID;
exports.traceEverywhere = async () => {
  process.env.N = 1;
  const all = { ...process.env };
  const { env } = await import('node:process');
  const seen = [all._X_AMZN_TRACE_ID, Object.keys(process.env).includes('_X_AMZN_TRACE_ID'), '_X_AMZN_TRACE_ID' in process.env, env._X_AMZN_TRACE_ID, process.env.N];
  process.env._X_AMZN_TRACE_ID = 2;
  seen.push(process.env._X_AMZN_TRACE_ID, delete process.env._X_AMZN_TRACE_ID, '_X_AMZN_TRACE_ID' in process.env);
  return seen;
};
exports.big = async (n) => 'x'.repeat(n);
exports.bigWide = async (n) => 'é'.repeat(n);
exports.lines = async () => {
  console.info('a\nb'); console.debug({ a: 1 }); console.warn('w'); console.error('e'); console.trace('t');
  process.stdout.write('raw\n');
};
exports.child = async () => spawnSync('readlink', ['/proc/self/fd/3']).stdout.toString();
exports.deep = { nested: { handler: async () => 'deep' } };
class Custom extends Error { constructor(m) { super(m); this.name = 'Custom'; this.code = 7; this.extra = 'x'; } }
exports.fail = async () => { throw new Custom('grüße'); };
exports.failSync = () => { throw new Custom('grüße'); };
exports.failCallback = (e, c, callback) => callback(new Custom('grüße'));
exports.failString = (e, c, callback) => callback('just text');
exports.failNull = async () => { throw null; };
exports.failLong = async () => { throw new Error('é'.repeat(1000000)); };
exports.bigint = async () => 1n;
exports.rejected = async () => { Promise.reject(new Custom('lost')); await new Promise((r) => setTimeout(r, 1000)); };
exports.uncaught = async () => { setTimeout(() => { throw new Custom('late'); }, 1); await new Promise((r) => setTimeout(r, 1000)); };
exports.leave = async (n) => { process.exit(n); };
exports.noise = async () => { require('fs').writeSync(3, 'hello, world\n'); return 1; };
exports.print = async () => { process.stdout.write('\0\0\0\x02\0\0\0\0{}'); return 1; };
`

func TestNodeHandler(t *testing.T) {
	eachNode(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		for _, tt := range []struct{ handler, event, want string }{
			{"echo", `{"a":[1,2.5,null,true,"é😀"]}`, `{"a":[1,2.5,null,true,"é😀"]}`},
			{"nothing", "{}", "null"},
			{"fn", "{}", "null"},
			{"callback", "{}", `"called"`},
			{"callbackLate", "{}", `"called"`},
			{"callbackNow", "{}", `"called"`},
			{"succeed", "{}", `"s"`},
			{"done", "{}", `"d"`},
			{"silent", "{}", "null"},
			{"never", "{}", "null"},
			{"thenable", "{}", `"t"`},
			{"deep.nested.handler", "{}", `"deep"`},
			{"print", "{}", "1"},
		} {
			t.Run(tt.handler, func(t *testing.T) {
				p := start("app.js", nodeApp)
				mustLoad(t, p, testIdentity(r, "app."+tt.handler))
				for range 2 {
					if res := call(t, p, tt.event); string(res.Payload) != tt.want || res.FunctionError != "" {
						t.Errorf("answered %q, want %q", res.Payload, tt.want)
					}
				}
			})
		}
		t.Run("empty event loop", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.callbackLate"))
			call(t, p, "{}")
			if log := p.log(); !strings.Contains(log, "late\n") {
				t.Errorf("answered before the event loop was empty: %q", log)
			}
		})
		t.Run("env", func(t *testing.T) {
			p := start("app.js", nodeApp)
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
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.where"))
			if res := call(t, p, "{}"); string(res.Payload) != fmt.Sprintf("[%q,2]", p.cmd.Args[2]) {
				t.Errorf("answered %s", res.Payload)
			}
		})
		t.Run("context", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.context"))
			res, err := p.invoke(t.Context(), &bawn.Call{ID: "some-id", Event: []byte("{}"), Target: bawn.Ref{Qualifier: "live"}}, time.Now().Add(10*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			json.Unmarshal(res.Payload, &got)
			if ms, ok := got["getRemainingTimeInMillis"].(float64); !ok || ms <= 0 || ms > 10000 {
				t.Errorf("remaining time = %v ms of 10 s", got["getRemainingTimeInMillis"])
			}
			delete(got, "getRemainingTimeInMillis")
			b, _ := json.Marshal(got)
			want := `{"awsRequestId":"some-id","callbackWaitsForEmptyEventLoop":true,"functionName":"hello","functionVersion":"3",` +
				`"invokedFunctionArn":"arn:aws:lambda:us-east-1:123456789012:function:hello:live","logGroupName":"/aws/lambda/hello",` +
				`"logStreamName":"2026/03/04/[3]i-1","memoryLimitInMB":"256"}`
			if string(b) != want {
				t.Errorf("got  %s\nwant %s", b, want)
			}
		})
		t.Run("client context and trace", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.client"))
			res, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}"), Client: `{"custom":{"a":1}}`}, time.Now().Add(10*time.Second))
			if err != nil || string(res.Payload) != `{"custom":{"a":1}}` {
				t.Errorf("answered %q, %v", res.Payload, err)
			}
			p = start("app.js", nodeApp)
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
		t.Run("the trace is in the environment as JavaScript sees it", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.traceEverywhere"))
			res, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}"), TraceID: "Root=1-5"}, time.Now().Add(10*time.Second))
			if want := `["Root=1-5",true,true,"Root=1-5","1","2",true,false]`; err != nil || string(res.Payload) != want {
				t.Errorf("got %s, want %s, %v", res.Payload, want, err)
			}
		})
		t.Run("size", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.big"))
			if res := call(t, p, "6291554"); len(res.Payload) != bawn.MaxResponseBytes {
				t.Fatalf("got %d bytes, %.100s", len(res.Payload), res.Payload)
			}
			d := document(t, call(t, p, "6291555").Payload)
			if d.ErrorType != "Function.ResponseSizeTooLarge" || d.ErrorMessage != "Response payload size exceeded maximum allowed payload size (6291556 bytes)." || !p.alive() {
				t.Errorf("got %+v", d)
			}
			if res := call(t, p, "1"); string(res.Payload) != `"x"` {
				t.Errorf("after that: %s", res.Payload)
			}
			p = start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.bigWide"))
			if d := document(t, call(t, p, "3145778").Payload); d.ErrorType != "Function.ResponseSizeTooLarge" {
				t.Errorf("got %+v", d)
			}
			p = start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.echo"))
			event := `"` + strings.Repeat("y", bawn.MaxEventBytes-2) + `"`
			if res := call(t, p, event); string(res.Payload) != event {
				t.Errorf("an event of %d bytes came back as %d", len(event), len(res.Payload))
			}
		})
		for _, warm := range []bool{true, false} {
			t.Run(fmt.Sprintf("log, warm %v", warm), func(t *testing.T) {
				p := start("app.js", nodeApp)
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
				want := `^` + stamp + `\tundefined\tINFO\tloading 1\n`
				for _, l := range []string{`INFO\ta\rb`, `DEBUG\t\{ a: 1 \}`, `WARN\tw`, `ERROR\te`, `TRACE\tt`} {
					want += stamp + `\tsome-id\t` + l + `\n`
				}
				if !regexp.MustCompile(want + `raw\n$`).MatchString(log) {
					t.Errorf("log is %q, want %q", log, want)
				}
			})
		}
		t.Run("descriptor 3 stays here", func(t *testing.T) {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app.child"))
			if res := call(t, p, "{}"); string(res.Payload) != `""` {
				t.Errorf("a child's descriptor 3 is %s", res.Payload)
			}
		})
	})
}

func TestNodeErrors(t *testing.T) {
	eachNode(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		loaded := func(t *testing.T, handler string) *program {
			p := start("app.js", nodeApp)
			mustLoad(t, p, testIdentity(r, "app."+handler))
			return p
		}
		for _, tt := range []struct{ handler, kind, message, first string }{
			{"fail", "Custom", "grüße", "Custom: grüße"},
			{"failSync", "Custom", "grüße", "Custom: grüße"},
			{"failCallback", "Custom", "grüße", "Custom: grüße"},
			{"failString", "string", "just text", ""},
			{"failNull", "handled", "callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack", ""},
			{"bigint", "Error", "Unable to stringify response body", "Error: Unable to stringify response body"},
		} {
			t.Run(tt.handler, func(t *testing.T) {
				p := loaded(t, tt.handler)
				res := call(t, p, "{}")
				d := document(t, res.Payload)
				if d.ErrorType != tt.kind || d.ErrorMessage != tt.message || res.FunctionError != "Unhandled" || !p.alive() ||
					!strings.HasPrefix(string(res.Payload), `{"errorType":`) || d.Trace == nil {
					t.Errorf("got %s", res.Payload)
				}
				if (tt.first == "") != (len(d.Trace) == 0) || len(d.Trace) > 0 && d.Trace[0] != tt.first {
					t.Errorf("trace is %q", d.Trace)
				}
				call(t, p, "{}")
				p.close()
				if _, log := p.exit(t); !strings.Contains(log, "\tERROR\tInvoke Error \t{\"errorType\":") {
					t.Errorf("log is %q", log)
				}
			})
		}
		t.Run("failLong", func(t *testing.T) {
			res := call(t, loaded(t, "failLong"), "{}")
			if d := document(t, res.Payload); d.ErrorType != "Error" || len(res.Payload) > maxErrorBytes {
				t.Errorf("got %d bytes: %.200s", len(res.Payload), res.Payload)
			}
		})
		for _, tt := range []struct {
			handler, kind, message string
			status                 int
			label                  string
		}{
			{"rejected", "Runtime.UnhandledPromiseRejection", "Custom: lost", 128, "Unhandled Promise Rejection"},
			{"uncaught", "Custom", "late", 129, "Uncaught Exception"},
		} {
			t.Run(tt.handler, func(t *testing.T) {
				p := loaded(t, tt.handler)
				res := call(t, p, "{}")
				if d := document(t, res.Payload); d.ErrorType != tt.kind || d.ErrorMessage != tt.message || len(d.Trace) == 0 {
					t.Errorf("got %s", res.Payload)
				}
				if p.alive() {
					t.Error("an instance that ends itself would be used again")
				}
				if code, log := p.exit(t); code != tt.status || !strings.Contains(log, tt.label) {
					t.Errorf("exit status %d, log %q", code, log)
				}
			})
		}
		t.Run("exit", func(t *testing.T) {
			p := loaded(t, "leave")
			_, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("5")}, time.Now().Add(10*time.Second))
			if code, _ := p.exit(t); err != errGone || code != 5 {
				t.Errorf("err %v, exit status %d", err, code)
			}
		})
		t.Run("noise", func(t *testing.T) {
			p := loaded(t, "noise")
			_, err := p.invoke(t.Context(), &bawn.Call{ID: "1", Event: []byte("{}")}, time.Now().Add(10*time.Second))
			if err == nil || !strings.Contains(err.Error(), "broke the protocol") || p.alive() {
				t.Errorf("err = %v", err)
			}
		})
		t.Run("bad event", func(t *testing.T) {
			if d := document(t, call(t, loaded(t, "echo"), "{").Payload); d.ErrorType != "SyntaxError" {
				t.Errorf("got %+v", d)
			}
		})
	})
}

func TestNodeLoad(t *testing.T) {
	eachNode(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		for _, tt := range []struct {
			name, handler, want string
			files               []string
		}{
			{"commonjs", "app.handler", `"cjs"`, []string{"app.js", "exports.handler = async () => 'cjs'"}},
			{"cjs", "app.handler", `"cjs"`, []string{"app.cjs", "exports.handler = async () => 'cjs'"}},
			{"mjs", "app.handler", `"mjs"`, []string{"app.mjs", "export const handler = async () => 'mjs'"}},
			{"esm", "app.handler", `"esm"`, []string{"app.js", "export const handler = async () => 'esm'", "package.json", `{"type":"module"}`}},
			{"top-level await", "app.handler", `"awaited"`, []string{"app.mjs", "const x = await new Promise((r) => setTimeout(r, 5, 'awaited')); export const handler = async () => x"}},
			{"folder", "src/lib/app.handler", `"deep"`, []string{"src/lib/app.js", "exports.handler = async () => require('../dep')", "src/dep.js", "module.exports = 'deep'"}},
			{"vendored", "app.handler", `"dep"`, []string{"app.js", "exports.handler = async () => require('dep')", "node_modules/dep/index.js", "module.exports = 'dep'"}},
			{"vendored esm", "app.handler", `"dep"`, []string{"app.mjs", "import dep from 'dep'; export const handler = async () => dep", "node_modules/dep/index.js", "module.exports = 'dep'"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := start(tt.files...)
				mustLoad(t, p, testIdentity(r, tt.handler))
				if res := call(t, p, "{}"); string(res.Payload) != tt.want {
					t.Errorf("answered %s, want %s", res.Payload, tt.want)
				}
			})
		}
		for _, tt := range []struct {
			name, handler, app string
			kind, message      string // the message is a regular expression
			status             int
		}{
			{"no dot", "app", "", "Runtime.MalformedHandlerName", "^Bad handler$", 1},
			{"dots", "../app.handler", "", "Runtime.MalformedHandlerName", "is not a valid handler name", 1},
			{"no module", "nope.handler", "", "Runtime.ImportModuleError", "^Error: Cannot find module 'nope'", 1},
			{"missing dependency", "app.handler", "require('nothing-like-it')", "Runtime.ImportModuleError", "^Error: Cannot find module 'nothing-like-it'", 1},
			{"no export", "app.handler", "", "Runtime.HandlerNotFound", "^app.handler is undefined or not exported$", 1},
			{"no function", "app.handler", "exports.handler = 1", "Runtime.HandlerNotFound", "^app.handler is not a function$", 1},
			{"syntax", "app.handler", "exports.handler = (", "Runtime.UserCodeSyntaxError", "^SyntaxError: Unexpected end of input", 1},
			{"throws", "app.handler", "throw new TypeError('x')", "TypeError", "^x$", 1},
			{"throws late", "app.handler", "setTimeout(() => { throw new TypeError('x') }, 0); const until = Date.now() + 30; while (Date.now() < until); exports.handler = async () => {};", "", "", 129},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := start("app.js", tt.app)
				err := p.load(t.Context(), testIdentity(r, tt.handler))
				if tt.kind == "" { // the handler was there: the process ends by itself
					if code, _ := p.exit(t); code != tt.status {
						t.Errorf("exit status %d, want %d", code, tt.status)
					}
					return
				}
				var e *initError
				if !errors.As(err, &e) {
					t.Fatalf("err = %v", err)
				}
				d := document(t, e.Payload)
				if d.ErrorType != tt.kind || !regexp.MustCompile(tt.message).MatchString(d.ErrorMessage) {
					t.Errorf("got %s", e.Payload)
				}
				if code, log := p.exit(t); code != tt.status || !strings.Contains(log, `"errorType":"`+tt.kind+`"`) || p.alive() {
					t.Errorf("exit status %d, log %q", code, log)
				}
			})
		}
	})
}

func TestNodeStreaming(t *testing.T) {
	const app = `
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
exports.plain = awslambda.streamifyResponse(async (event, stream, context) => {
  stream.setContentType('text/plain');
  stream.write('a'); stream.write(''); stream.write(Buffer.from('b')); stream.end('c');
});
exports.http = awslambda.streamifyResponse(async (event, stream) => {
  stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { 'x-a': 'b' }, cookies: ['c=d'] });
  await pipeline(Readable.from(['hello ', 'world']), stream);
});
exports.empty = awslambda.streamifyResponse(async (event, stream) => { stream.end(); });
exports.large = awslambda.streamifyResponse(async (event, stream) => {
  for (let i = 0; i < 200; i++) if (!stream.write(Buffer.alloc(100000, 'x'))) await new Promise((r) => stream.once('drain', r));
  stream.end();
});
exports.failFirst = awslambda.streamifyResponse(async () => { throw new TypeError('first'); });
exports.failLate = awslambda.streamifyResponse(async (event, stream) => { stream.write('a'); await new Promise(setImmediate); setImmediate(() => stream.write('too late')); throw new TypeError('late'); });
exports.unended = awslambda.streamifyResponse(async (event, stream) => { stream.write('a'); });
`
	eachNode(t, func(t *testing.T, r bawn.Runtime, start func(...string) *program) {
		prelude := `{"statusCode":201,"headers":{"x-a":"b"},"cookies":["c=d"]}` + strings.Repeat("\x00", 8)
		for _, tt := range []struct{ handler, contentType, text, kind string }{
			{"plain", "text/plain", "abc", ""},
			{"http", "application/vnd.awslambda.http-integration-response", prelude + "hello world", ""},
			{"empty", "application/octet-stream", "", ""},
			{"large", "application/octet-stream", strings.Repeat("x", 20000000), ""},
			{"failLate", "application/octet-stream", "a", "TypeError"},
			{"unended", "application/octet-stream", "a", "Runtime.NodeJsExit"},
		} {
			t.Run(tt.handler, func(t *testing.T) {
				p := start("app.js", app)
				mustLoad(t, p, testIdentity(r, "app."+tt.handler))
				for range 2 {
					res := call(t, p, "{}")
					if res.Stream == nil {
						t.Fatalf("not streamed: %s", res.Payload)
					}
					b, err := io.ReadAll(res.Stream)
					if res.ContentType != tt.contentType || string(b) != tt.text {
						t.Errorf("content type %q, %d bytes: %.200q", res.ContentType, len(b), b)
					}
					var se *bawn.StreamError
					if tt.kind == "" && err != nil || tt.kind != "" && (!errors.As(err, &se) || document(t, se.Payload).ErrorType != tt.kind) {
						t.Errorf("err = %v, want %q", err, tt.kind)
					}
					if !p.alive() {
						t.Fatal("the worker is dead")
					}
				}
			})
		}
		t.Run("failFirst", func(t *testing.T) {
			p := start("app.js", app)
			mustLoad(t, p, testIdentity(r, "app.failFirst"))
			if res := call(t, p, "{}"); res.Stream != nil || document(t, res.Payload).ErrorType != "TypeError" {
				t.Errorf("got %+v", res)
			}
		})
	})
}

func BenchmarkNode(b *testing.B) {
	const app = "exports.handler = async () => ({statusCode: 200, body: 'hello'})"
	for r, node := range nodes(b) {
		dir := writeFiles(b, "app.js", app)
		b.Run(string(r)+" warm", func(b *testing.B) {
			p := startNode(b, node, dir)
			mustLoad(b, p, testIdentity(r, "app.handler"))
			for b.Loop() {
				call(b, p, `{"version":"2.0","rawPath":"/hello"}`)
			}
		})
		b.Run(string(r)+" cold", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				p := startNode(b, node, dir)
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
		b.Run(string(r)+" boot", func(b *testing.B) {
			for b.Loop() {
				p := startNode(b, node, dir)
				if err := p.ready(b.Context()); err != nil {
					b.Fatal(err)
				}
				p.close()
				p.cmd.Process.Kill()
			}
		})
		b.Run(string(r)+" to first answer, none warm", func(b *testing.B) {
			for b.Loop() {
				p := startNode(b, node, dir)
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
				cmd := exec.Command(node, "-e", "0")
				cmd.Env = []string{}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
