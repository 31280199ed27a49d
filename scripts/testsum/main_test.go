package main

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	const ok = `{"Action":"pass","Package":"bawn.dev/bawn/a","Test":"TestA"}
{"Action":"pass","Package":"bawn.dev/bawn/a","Elapsed":0.1}
`
	for _, c := range []struct {
		name, in string
		want     bool
		has      []string
	}{
		{"all well", ok, true, []string{"ok    bawn.dev/bawn/a (0.1s)", "\n1 passed, 0 failed, 0 skipped\n"}},
		{"nothing ran", "", false, []string{"0 passed, 0 failed, 0 skipped"}},
		{"a failed test counts once", ok + `{"Action":"output","Package":"b","Test":"TestB","Output":"    b_test.go:7: wrong\n"}
{"Action":"fail","Package":"b","Test":"TestB"}
{"Action":"fail","Package":"b","Elapsed":2}
`, false, []string{"b_test.go:7: wrong", "1 passed, 1 failed, 0 skipped"}},
		{"a package that does not build", ok + `{"Action":"build-output","ImportPath":"c","Output":"c.go:1: no\n"}
{"Action":"build-fail","ImportPath":"c"}
{"Action":"fail","Package":"c","FailedBuild":"c"}
`, false, []string{"c.go:1: no", "1 passed, 1 failed, 0 skipped"}},
		{"a skip tells its reason", ok + `{"Action":"output","Package":"bawn.dev/d","Test":"TestD","Output":"=== RUN   TestD\n"}
{"Action":"output","Package":"bawn.dev/d","Test":"TestD","Output":"    d_test.go:9: needs root: run as root\n"}
{"Action":"output","Package":"bawn.dev/d","Test":"TestD","Output":"--- SKIP: TestD (0.00s)\n"}
{"Action":"skip","Package":"bawn.dev/d","Test":"TestD"}
`, true, []string{"1 skipped:\n  d TestD: needs root: run as root\n", "1 passed, 0 failed, 1 skipped"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			if got := summarize(strings.NewReader(c.in), &out); got != c.want {
				t.Errorf("summarize = %v, want %v", got, c.want)
			}
			for _, h := range c.has {
				if !strings.Contains(out.String(), h) {
					t.Errorf("output lacks %q:\n%s", h, out.String())
				}
			}
		})
	}
}
