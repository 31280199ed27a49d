package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bawn": main})
}

// The stories of testdata/script run this very program. Commands of their own:
//
//	oidc                    start an OpenID Connect server: $ISSUER, with $ISSUERCA
//	person NAME COMMAND …   run a command, and log in as NAME where it says that
//	                        somebody should
//	node [-approvals]       start a node; bawn finds it, $PUBLIC is where calls go
//	https [-key KEY] [-data BODY] [-file FILE] [-to admin] METHOD PATH STATUS
//	                        call the public listener; the body becomes stdout. The
//	                        admin listener is called with the context's key
//	linkzip FILE            make a package that holds a symbolic link
//	bombzip FILE            make a package that unpacks to far more than it is
//	bigfile FILE BYTES      make a JSON string of so many bytes
//	as KEY FILE             write the context with another key
//	occupy                  take a port; $TAKEN is its address
//	rootless [ARGS]         start a node as a user without rights; bawn finds it, $DATA is its
//	rootless stop           end it and see that it leaves no process
//	setenvfrom NAME         set a variable to the last command's output
//
// Conditions: sandbox (this host can make sandboxes), rootless (and users can), python, nodejs, provided
// and webassembly (it can run those), missing (it lacks an interpreter). $PYTHON and
// $NODEJS name a runtime that it has, $MISSING one that it has not.
func TestScripts(t *testing.T) {
	host := sync.OnceValue(func() *client.Doctor {
		d, err := bawntest.NewNode(t).Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
	runtimeOf := func(family string) string {
		for _, r := range host().Runtimes {
			if r.Runtime.Family() == family && r.Missing == "" {
				return string(r.Runtime)
			}
		}
		return ""
	}
	// missing is an interpreter that the host has not.
	missing := func() string {
		for _, r := range host().Runtimes {
			if f := r.Runtime.Family(); r.Missing != "" && (f == "python" || f == "nodejs") {
				return string(r.Runtime)
			}
		}
		return ""
	}
	sandbox := func() (bool, error) {
		lack, err := bawntest.Lack(host())
		return lack == nil, err
	}
	var oidc atomic.Pointer[bawntest.OIDC] // one story has it
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BAWN_CONTEXT", filepath.Join(e.WorkDir, "context.json"))
			e.Setenv("NO_COLOR", "1")
			e.Setenv("PYTHON", runtimeOf("python"))
			e.Setenv("NODEJS", runtimeOf("nodejs"))
			e.Setenv("MISSING", missing())
			e.Setenv("HANDLER", "app.handler")
			for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
				e.Setenv(name, os.Getenv(name))
			}
			if os.Getenv("GOCACHE") == "" { // HOME is another in a story
				cache, err := os.UserCacheDir()
				if err != nil {
					return err
				}
				e.Setenv("GOCACHE", filepath.Join(cache, "go-build"))
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "sandbox":
				return sandbox()
			case "rootless":
				return rootlessCondition(), nil
			case "missing":
				return missing() != "", nil
			case "webassembly": // "wasm" is a condition of testscript's own, for another thing
				ok, err := sandbox()
				return ok && runtimeOf("wasm") != "", err
			case "oidc":
				return bawntest.LackOIDC() == nil, nil
			case "python", "nodejs", "provided":
				ok, err := sandbox()
				return ok && runtimeOf(cond) != "", err
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"node": func(ts *testscript.TestScript, neg bool, args []string) {
				var opts []bawntest.Option
				if slices.Contains(args, "-approvals") {
					opts = append(opts, bawntest.Approvals)
				}
				n := bawntest.NewNode(t, opts...)
				ts.Defer(n.Stop)
				ts.Setenv("BAWN_CONTEXT", n.ContextFile)
				ts.Setenv("PUBLIC", n.Public())
				ts.Setenv("DATA", n.Data)
			},
			"https": https,
			"person": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) < 2 || neg {
					ts.Fatalf("usage: person NAME COMMAND …")
				}
				person(ts, oidc.Load(), args[0], args[1:])
			},
			"oidc": func(ts *testscript.TestScript, _ bool, _ []string) {
				o := bawntest.NewOIDC(t)
				oidc.Store(o)
				ts.Setenv("ISSUER", o.URL)
				ts.Setenv("ISSUERCA", o.CAFile)
			},
			"linkzip":  linkZip,
			"bombzip":  bombZip,
			"bigfile":  bigFile,
			"occupy":   occupy,
			"as":       as,
			"rootless": rootless,
			"setenvfrom": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
			},
		},
	})
}

// person runs a command, and goes where it tells somebody to go.
func person(ts *testscript.TestScript, o *bawntest.OIDC, name string, args []string) {
	path := ""
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if at := filepath.Join(dir, args[0]); path == "" {
			if _, err := os.Stat(at); err == nil {
				path = at
			}
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", "HOME", "BAWN_CONTEXT", "NO_COLOR"} {
		cmd.Env = append(cmd.Env, v+"="+ts.Getenv(v))
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	said, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	var been sync.WaitGroup
	var all strings.Builder
	lines, gone := bufio.NewScanner(said), false
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if where := strings.TrimSpace(lines.Text()); strings.HasPrefix(where, o.URL) && !gone {
			gone = true
			been.Go(func() {
				if _, err := o.Browse(where, name); err != nil {
					fmt.Fprintf(os.Stderr, "%s did not log in: %v\n", name, err)
					cmd.Process.Kill()
				}
			})
		}
	}
	err = cmd.Wait()
	been.Wait()
	fmt.Fprint(ts.Stdout(), out.String())
	fmt.Fprint(ts.Stderr(), all.String())
	if err != nil {
		ts.Fatalf("%v: %s", err, all.String())
	}
}

// as writes a context file like the one in use, with another key.
func as(ts *testscript.TestScript, _ bool, args []string) {
	c, err := client.LoadContext(ts.Getenv("BAWN_CONTEXT"))
	ts.Check(err)
	c.Key = args[0]
	ts.Check(client.SaveContext(ts.MkAbs(args[1]), c))
}

func https(ts *testscript.TestScript, neg bool, args []string) {
	var key, data, to string
	for len(args) > 2 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-key":
			key = args[1]
		case "-data":
			data = args[1]
		case "-file":
			data = ts.ReadFile(args[1])
		case "-to":
			to = args[1]
		default:
			ts.Fatalf("https: unknown flag %s", args[0])
		}
		args = args[2:]
	}
	if len(args) != 3 || neg {
		ts.Fatalf("usage: https [-key KEY] [-data BODY] [-file FILE] [-to admin] METHOD PATH STATUS")
	}
	c, err := client.LoadContext(ts.Getenv("BAWN_CONTEXT"))
	ts.Check(err)
	url := c.Public
	if to == "admin" {
		url, key = c.URL, c.Key
	}
	req, err := http.NewRequest(args[0], url+args[1], strings.NewReader(data))
	ts.Check(err)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	hc := bawntest.HTTPClient(c)
	defer hc.CloseIdleConnections()
	res, err := hc.Do(req)
	ts.Check(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s", body)
	if got := fmt.Sprint(res.StatusCode); got != args[2] {
		ts.Fatalf("status %s, want %s: %s", got, args[2], body)
	}
}

func writeZip(ts *testscript.TestScript, path string, fill func(w *zip.Writer) error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	ts.Check(fill(w))
	ts.Check(w.Close())
	ts.Check(os.WriteFile(ts.MkAbs(path), b.Bytes(), 0o644))
}

func linkZip(ts *testscript.TestScript, _ bool, args []string) {
	writeZip(ts, args[0], func(w *zip.Writer) error {
		h := &zip.FileHeader{Name: "escape"}
		h.SetMode(os.ModeSymlink | 0o777)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, "/etc/passwd")
		}
		return err
	})
}

func bombZip(ts *testscript.TestScript, _ bool, args []string) {
	writeZip(ts, args[0], func(w *zip.Writer) error {
		f, err := w.Create("zeros")
		if err == nil {
			_, err = f.Write(make([]byte, 64<<20))
		}
		return err
	})
}

func bigFile(ts *testscript.TestScript, _ bool, args []string) {
	var n int
	_, err := fmt.Sscan(args[1], &n)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(`"`+strings.Repeat("a", n-2)+`"`), 0o644))
}

func occupy(ts *testscript.TestScript, _ bool, _ []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { ln.Close() })
	ts.Setenv("TAKEN", ln.Addr().String())
}

// Each command has a story in which it is run.
func TestEveryCommandHasAStory(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no stories", err)
	}
	var all strings.Builder
	for _, s := range scripts {
		all.Write(bawntest.MustRead(t, s))
	}
	for _, c := range []string{
		"up", "status", "doctor", "init", "deploy", "invoke", "ls", "show", "rollback", "alias", "rm", "logs", "events", "perimeter",
		"approve", "approvals", "tenant create", "tenant ls", "tenant show", "tenant quota", "tenant suspend", "tenant resume", "tenant rm", "key create", "key ls", "key revoke",
		"login", "logout", "whoami", "issuer add", "issuer ls", "issuer show", "issuer rm", "revoke", "version", "completion", "help",
	} {
		if !strings.Contains(all.String(), "bawn "+c) {
			t.Errorf("no story runs bawn %s", c)
		}
	}
	for _, r := range bawn.Runtimes() {
		condition := r.Family()
		if r == bawn.Wasm {
			condition = "webassembly" // see the conditions of TestScripts
		}
		if !strings.Contains(all.String(), "["+condition+"]") && !strings.Contains(all.String(), "[!"+condition+"]") {
			t.Errorf("no story is about %s", r)
		}
	}
}
