package bawntest

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

// TestH5LoopsEnd has functions call each other without end. The forged count that
// each sends along changes nothing.
func TestH5LoopsEnd(t *testing.T) {
	n := newTown(t)
	n.deploy("self", []string{"self"}, []string{"self"})
	n.deploy("ping", []string{"pong", "ping"}, []string{"pong"})
	n.deploy("pong", []string{"ping", "pong"}, []string{"ping"})
	for _, ring := range [][]string{{"self"}, {"pong", "ping"}} {
		first := ring[len(ring)-1]
		text := invoke(t, n.Client, first, map[string]any{"ring": ring})
		depth := 0
		var last got
		for ; ; depth++ {
			var g got
			if json.Unmarshal([]byte(text), &g) != nil || g.Status == 0 {
				t.Fatalf("%v: %s", ring, text)
			}
			if text, last = g.Body, g; g.Status != 200 {
				break
			}
		}
		if depth != bawn.MaxHops || last.Status != 400 || last.Type != "RecursiveInvocationException" {
			t.Errorf("%v: ended after %d calls with %+v", ring, depth, last)
		}
		ended := n.records(func(r *bawn.Record) bool { return r.Control == "H5" && r.Function == ring[0] })
		if len(ended) != 1 || ended[0].Outcome != "deny" || ended[0].Detail["depth"] != "17" || ended[0].Detail["chain"] == "" {
			t.Errorf("%v: records of the end: %+v", ring, ended)
		}
		// Nothing is left behind: every call has its outcome, and another runs.
		ran := n.records(func(r *bawn.Record) bool {
			return r.Kind == bawn.KindOutcome && (r.Function == first || r.Function == ring[0])
		})
		if len(ran) != bawn.MaxHops+1 {
			t.Errorf("%v: %d calls ran, want %d", ring, len(ran), bawn.MaxHops+1)
		}
		if out := invoke(t, n.Client, first, map[string]any{"say": "well"}); out != `"well"` {
			t.Errorf("%v: afterwards: %s", ring, out)
		}
	}
}

// A call of itself by a function that may run once at a time waits for nothing that
// could come: it is refused at once; control H2.
func TestH2CircleEndsAtOnce(t *testing.T) {
	n := newTown(t)
	n.deploy("alone", []string{"alone"}, []string{"alone"}, func(spec map[string]any) {
		spec["interior"] = map[string]any{"timeout": "4s", "concurrency": 1} // shorter than a call waits
	})
	inv, err := n.Invoke(t.Context(), "alone", "", []byte(`{"ring":["alone"]}`))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(inv.Body)
	inv.Body.Close()
	var g got
	if json.Unmarshal(b, &g) != nil || inv.FunctionError != "" || g.Status != 429 || g.Type != "TooManyRequestsException" {
		t.Errorf("%s", b)
	}
	ended := n.records(func(r *bawn.Record) bool { return r.Kind == bawn.KindOutcome && r.Detail["parent"] == inv.ID })
	if len(ended) != 1 || ended[0].Outcome != "error" || !strings.Contains(ended[0].Reason, "waits for this one") {
		t.Errorf("%+v", ended)
	}
	if out := invoke(t, n.Client, "alone", map[string]any{"say": "well"}); out != `"well"` {
		t.Errorf("afterwards: %s", out)
	}
}

// traced posts a JSON body with a bearer and a trace, unless they are empty, and
// returns the status and the body of the answer.
func (n *town) traced(url, bearer, body, trace string) (int, string) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	if trace != "" {
		req.Header.Set("X-Amzn-Trace-Id", trace)
	}
	a := n.send(n.HTTP, req)
	return a.status, a.body
}

// TestH5CountGoesOnThroughEveryTrigger passes the trace of one invocation to the
// next by each way in, in turn.
func TestH5CountGoesOnThroughEveryTrigger(t *testing.T) {
	n := newTown(t)
	n.deploy("echo", nil, nil, public("/echo"))
	ways := []func(trace string) (int, string){
		func(trace string) (int, string) {
			return n.traced(n.Public()+"/echo", "", `{"trace":true}`, trace)
		},
		func(trace string) (int, string) {
			return n.traced(n.URL()+"/v1/functions/echo/invocations", n.Context.Key, `{"trace":true}`, trace)
		},
		func(trace string) (int, string) {
			return n.traced(n.Public()+"/2015-03-31/functions/echo/invocations", n.Context.Key, `{"trace":true}`, trace)
		},
	}
	unquote := func(s string) string { return strings.Trim(s, `"`) }
	for i, way := range ways {
		code, text := way("")
		if code != 200 || !strings.Contains(text, ";Bawn=1.00.") {
			t.Fatalf("way %d: %d %s", i, code, text)
		}
		trace := unquote(text)
		root, _, _ := strings.Cut(trace, ";")
		for hop := 1; hop <= bawn.MaxHops; hop++ {
			if code, text = ways[(i+hop)%len(ways)](trace); code != 200 {
				t.Fatalf("way %d, hop %d: %d %s", i, hop, code, text)
			}
			trace = unquote(text)
			if !strings.HasPrefix(trace, root+";") {
				t.Fatalf("way %d, hop %d: another root: %s", i, hop, trace)
			}
		}
		for j, last := range ways {
			if code, text := last(trace); code/100 != 4 || strings.Contains(text, "Root=") {
				t.Errorf("way %d: after %d hops way %d answers %d %s", i, bawn.MaxHops, j, code, text)
			}
		}
		// What was signed cannot be changed, and what was not means nothing.
		for _, change := range []func(string) string{
			func(s string) string { return strings.Replace(s, "Bawn=1.10.", "Bawn=1.00.", 1) },
			func(s string) string { return strings.Replace(s, "Root=1-", "Root=1-f", 1) },
			func(s string) string { return strings.Replace(s, "Bawn=", "bawn=", 1) },
			func(s string) string { return s[:len(s)-1] },
			func(s string) string { return s + s[strings.Index(s, ";Bawn="):] },
		} {
			if code, text := way(change(trace)); code != 400 {
				t.Errorf("way %d: with %s: %d %s", i, change(trace), code, text)
			}
		}
		for _, plain := range []string{trace[:strings.Index(trace, ";Bawn=")], "whatever", "Root=1-2-3"} {
			if code, text := way(plain); code != 200 || !strings.Contains(text, ";Bawn=1.00.") {
				t.Errorf("way %d: with %s: %d %s", i, plain, code, text)
			}
		}
	}
}

// TestH5OneCountOverAllPaths has functions call each other after a call that came in
// by each way, with or without a count: the chain ends where the count does, which
// goes on when a function's trace leaves the node and comes back.
func TestH5OneCountOverAllPaths(t *testing.T) {
	n := newTown(t)
	n.deploy("ping", []string{"pong", "anyone"}, []string{"pong"}, public("/ping"))
	n.deploy("pong", []string{"ping", "anyone"}, []string{"ping"})
	ways := map[string]func(body, trace string) (int, string){
		"route": func(body, trace string) (int, string) { return n.traced(n.Public()+"/ping", "", body, trace) },
		"control API": func(body, trace string) (int, string) {
			return n.traced(n.URL()+"/v1/functions/ping/invocations", n.Context.Key, body, trace)
		},
		"Lambda API": func(body, trace string) (int, string) {
			return n.traced(n.Public()+"/2015-03-31/functions/ping/invocations", n.Context.Key, body, trace)
		},
	}
	// The trace of the last of three functions, as one of them would send it out.
	out := func(way func(body, trace string) (int, string), trace string) string {
		t.Helper()
		code, text := way(`{"calls":[{"function":"pong","payload":{"calls":[{"function":"ping","payload":{"trace":true}}]}}]}`, trace)
		var far, near []got
		if code != 200 || json.Unmarshal([]byte(text), &far) != nil || len(far) != 1 || json.Unmarshal([]byte(far[0].Body), &near) != nil || len(near) != 1 || near[0].Status != 200 {
			t.Fatalf("%d %s", code, text)
		}
		return strings.Trim(near[0].Body, `"`)
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			trace, before := "", 0
			for _, gone := range []int{0, 3, 6} { // calls before this one, wherever they came in
				if gone > 0 {
					if trace = out(way, trace); !strings.Contains(trace, ";Bawn=1.0"+strconv.Itoa(gone-1)+".") {
						t.Fatalf("after %d calls: %s", gone, trace)
					}
				}
				code, text := way(`{"ring":["pong","ping"]}`, trace)
				depth := 0
				for ; code == 200; depth++ {
					var g got
					if json.Unmarshal([]byte(text), &g) != nil || g.Status == 0 {
						t.Fatalf("%s", text)
					}
					code, text = g.Status, g.Body
				}
				if want := bawn.MaxHops - gone; depth != want+1 || code != 400 {
					t.Errorf("with %d calls before, %d functions ran, and then %d %s; want %d", gone, depth, code, text, want+1)
				}
				ended := len(n.records(func(r *bawn.Record) bool { return r.Control == "H5" && r.Detail["depth"] == "17" }))
				if ended <= before {
					t.Error("the end is not on record")
				}
				before = ended
			}
		})
	}
}
