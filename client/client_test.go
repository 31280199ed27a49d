package client

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// node starts a TLS server that stands for a node, and returns its context.
func node(t *testing.T, h http.HandlerFunc) *Context {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return &Context{URL: srv.URL, Public: "https://127.0.0.1:1", CA: string(ca), Key: "bawn_test"}
}

func open(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	c, err := New(node(t, h))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestContextFile(t *testing.T) {
	want := node(t, nil)
	path := filepath.Join(t.TempDir(), "deep", "er", "context.json")
	if _, err := LoadContext(path); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("a missing file: %v", err)
	}
	if err := SaveContext(path, want); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	if st, _ := os.Stat(filepath.Dir(path)); st.Mode().Perm() != 0o700 {
		t.Errorf("folder mode %v; want 0700", st.Mode())
	}
	got, err := LoadContext(path)
	if err != nil || *got != *want {
		t.Errorf("got %#v, %v", got, err)
	}
	t.Setenv(ContextEnv, path)
	if got, err := LoadContext(""); err != nil || got.Key != want.Key {
		t.Errorf("by %s: %v, %v", ContextEnv, got, err)
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestContextRefused(t *testing.T) {
	good := node(t, nil)
	for name, change := range map[string]func(*Context){
		"plain http": func(c *Context) { c.URL = "http://127.0.0.1:1" },
		"no host":    func(c *Context) { c.URL = "https://" },
		"no key":     func(c *Context) { c.Key = "" },
		"bad key":    func(c *Context) { c.Key = "a\r\nX: y" },
		"no ca":      func(c *Context) { c.CA = "" },
		"bad ca":     func(c *Context) { c.CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" },
		"bad public": func(c *Context) { c.Public = "ftp://x" },
	} {
		bad := *good
		change(&bad)
		path := filepath.Join(t.TempDir(), "c")
		if err := SaveContext(path, &bad); err != nil {
			t.Fatal(err)
		}
		_, err := LoadContext(path)
		var be *bawn.Error
		if !errors.As(err, &be) || be.Code != bawn.CodeInvalid || be.Fix == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "c")
	os.WriteFile(path, bytes.Repeat([]byte(" "), maxContextBytes+1), 0o600)
	if _, err := LoadContext(path); bawn.ErrorCode(err) != bawn.CodeInvalid {
		t.Errorf("too large: %v", err)
	}
}

func TestContextNeverPrintsTheKey(t *testing.T) {
	c := Context{URL: "https://x", Key: "bawn_secret"}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s", &c, c, c, c), c.LogValue().String()} {
		if strings.Contains(s, "secret") {
			t.Errorf("printed: %s", s)
		}
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	c := open(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer bawn_test" {
			t.Error("the key is missing")
		}
		switch r.URL.Path {
		case "/v1/functions":
			w.WriteHeader(403)
			io.WriteString(w, `{"code":"denied","message":"not yours","fix":"ask","id":"x"}`)
		case "/v1/doctor":
			w.WriteHeader(500)
			io.WriteString(w, `{"code":"internal","message":"it broke","id":"abc"}`)
		case "/v1/keys":
			w.WriteHeader(502)
			io.WriteString(w, `<html>a proxy`)
		case "/v1/status":
			http.Redirect(w, r, "https://127.0.0.1:1/elsewhere", http.StatusFound)
		}
	})
	ctx := t.Context()
	_, err := c.Functions(ctx)
	var be *bawn.Error
	if !errors.As(err, &be) || be.Code != bawn.CodeDenied || be.Message != "not yours" || be.Fix != "ask" {
		t.Errorf("denied: %v", err)
	}
	if _, err := c.Doctor(ctx); !errors.As(err, &be) || be.Code != bawn.CodeInternal || !strings.Contains(be.Message, "abc") {
		t.Errorf("internal must carry its id: %v", err)
	}
	if _, err := c.Keys(ctx); bawn.ErrorCode(err) != bawn.CodeFunctionError {
		t.Errorf("no body of ours: %v", err)
	}
	if _, err := c.Status(ctx); err == nil {
		t.Error("a redirect was followed or taken for an answer")
	}
}

func TestOnlyItsOwnAuthorityIsTrusted(t *testing.T) {
	a, b := node(t, nil), node(t, func(w http.ResponseWriter, _ *http.Request) { t.Error("a request got through") })
	// httptest uses one certificate for all servers, so the wrong authority is
	// one made here: this client trusts a self-signed certificate of its own.
	a.URL, a.CA = b.URL, selfSigned(t)
	c, err := New(a)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Functions(t.Context())
	if bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("got %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	ctx := node(t, nil)
	ctx.URL = "https://127.0.0.1:1"
	c, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Functions(t.Context())
	var be *bawn.Error
	if !errors.As(err, &be) || be.Code != bawn.CodeUnavailable || !strings.Contains(be.Fix, "bawn up") {
		t.Errorf("got %v", err)
	}
}

func TestWaitReady(t *testing.T) {
	asked := 0
	c := open(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		fmt.Fprintf(w, `{"ready":%v,"message":"opening the store"}`, asked > 2)
	})
	if s, err := c.WaitReady(t.Context()); err != nil || !s.Ready || asked != 3 {
		t.Errorf("%v, %v after %d", s, err, asked)
	}
	never := open(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"ready":false,"message":"opening the store"}`)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := never.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "opening the store") {
		t.Errorf("got %v", err)
	}
}

func TestArtifact(t *testing.T) {
	stored := map[string][]byte{}
	c := open(t, func(w http.ResponseWriter, r *http.Request) {
		d := strings.TrimPrefix(r.URL.Path, "/v1/artifacts/")
		switch {
		case r.Method == http.MethodPut:
			if r.ContentLength != 5 || r.Header.Get("Content-Type") != "application/zip" {
				t.Errorf("length %d, type %s", r.ContentLength, r.Header.Get("Content-Type"))
			}
			stored[d], _ = io.ReadAll(r.Body)
			io.WriteString(w, `{"digest":"`+d+`","size":5}`)
		case stored[d] == nil:
			w.WriteHeader(404)
		}
	})
	d := "sha256:" + strings.Repeat("a", 64)
	if has, err := c.HasArtifact(t.Context(), d); has || err != nil {
		t.Errorf("before: %v, %v", has, err)
	}
	if a, err := c.PutArtifact(t.Context(), d, 5, strings.NewReader("hello")); err != nil || a.Size != 5 {
		t.Errorf("put: %v, %v", a, err)
	}
	if has, err := c.HasArtifact(t.Context(), d); !has || err != nil {
		t.Errorf("after: %v, %v", has, err)
	}
}

func TestStream(t *testing.T) {
	c := open(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch r.URL.Path {
		case "/v1/functions/f/logs":
			if q.Get("follow") != "true" || q.Get("limit") != "2" || q.Get("invocation") != "i" || q.Get("since") != "2027-01-02T03:04:05Z" {
				t.Errorf("query %v", q)
			}
			io.WriteString(w, "{\"text\":\"one\"}\n\n{\"text\":\"two\"}\n")
		case "/v1/events":
			io.WriteString(w, "{\"id\":\"1\"}\n{\"error\":{\"code\":\"unavailable\",\"message\":\"the store stopped\"}}\n")
		case "/v1/functions/g/logs":
			io.WriteString(w, "{\"text\":\"one\"}\n{\"te")
			panic(http.ErrAbortHandler)
		}
	})
	var got []string
	q := LogQuery{Invocation: "i", Since: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC), Limit: 2, Follow: true}
	err := c.Logs(t.Context(), "f", q, func(l bawn.LogLine) error { got = append(got, l.Text); return nil })
	if err != nil || strings.Join(got, " ") != "one two" {
		t.Errorf("%q, %v", got, err)
	}
	n := 0
	err = c.Events(t.Context(), EventQuery{}, func(bawn.Record) error { n++; return nil })
	if bawn.ErrorCode(err) != bawn.CodeUnavailable || n != 1 {
		t.Errorf("an error line: %v after %d records", err, n)
	}
	mine := errors.New("enough")
	if err := c.Logs(t.Context(), "f", q, func(bawn.LogLine) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("the callback's error: %v", err)
	}
	if err := c.Logs(t.Context(), "g", LogQuery{}, func(bawn.LogLine) error { return nil }); err == nil {
		t.Error("a broken stream looks complete")
	}
}

func TestInvoke(t *testing.T) {
	c := open(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/v1/functions/f/invocations" || r.URL.Query().Get("qualifier") != "beta" || string(body) != `{"a":1}` {
			t.Errorf("%s %s", r.URL, body)
		}
		w.Header().Set("X-Bawn-Invocation", "id-1")
		w.Header().Set("X-Bawn-Version", "7")
		w.Header().Set("Trailer", "X-Bawn-Function-Error")
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Bawn-Function-Error", "Unhandled")
	})
	inv, err := c.Invoke(t.Context(), "f", "beta", []byte(`{"a":1}`))
	if err != nil || inv.ID != "id-1" || inv.Version != 7 || inv.FunctionError != "" {
		t.Fatalf("%+v, %v", inv, err)
	}
	defer inv.Body.Close()
	out, err := io.ReadAll(inv.Body)
	if string(out) != "half" || bawn.ErrorCode(err) != bawn.CodeFunctionError {
		t.Errorf("a stream that failed midway: %q, %v", out, err)
	}
}

func FuzzParseContext(f *testing.F) {
	f.Add([]byte(`{"url":"https://127.0.0.1:8444","ca":"","key":"k"}`))
	f.Add([]byte(`{"url":"https://[::1]:1","ca":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----","key":"k"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseContext(data)
		if err != nil {
			return
		}
		// What was accepted must make a client.
		if _, err := New(c); err != nil {
			t.Errorf("accepted, and then: %v", err)
		}
	})
}

func FuzzReadLines(f *testing.F) {
	f.Add([]byte("{\"text\":\"a\"}\n\n{\"error\":{\"code\":\"internal\",\"message\":\"m\"}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		err := readLines(bytes.NewReader(data), func(bawn.LogLine) error { n++; return nil })
		if lines := bytes.Count(data, []byte("\n")) + 1; n > lines {
			t.Errorf("%d values from %d lines (%v)", n, lines, err)
		}
	})
}
