// Testsum reads the output of go test -json and prints what a person wants of
// it: a line for each package, the full output of what failed, each skipped
// test with its reason, and a closing line with the counts. It exits with 1 if
// anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of test2json's output, see go doc test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func main() {
	if !summarize(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// summarize reports whether every test passed and at least one ran.
func summarize(r io.Reader, w io.Writer) bool {
	var passed, failed, skipped, broken int
	var skips []string
	failing := map[string]bool{}               // packages with a failed test
	output := map[[2]string]*strings.Builder{} // by package and test
	collect := func(key [2]string, s string) {
		b := output[key]
		if b == nil {
			b = new(strings.Builder)
			output[key] = b
		}
		if b.Len() < 1<<20 {
			b.WriteString(s)
		}
	}
	take := func(key [2]string) string {
		b := output[key]
		delete(output, key)
		if b == nil {
			return ""
		}
		return b.String()
	}
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Fprintln(w, in.Text())
			continue
		}
		key := [2]string{e.Package, e.Test}
		name := strings.TrimPrefix(e.Package, "bawn.dev/") + " " + e.Test
		switch e.Action {
		case "output":
			collect(key, e.Output)
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "pass", "fail", "skip":
			out := take(key)
			switch {
			case e.Test == "" && e.Action == "fail":
				// Without a failed test it did not build, or died, or ran too long.
				if !failing[e.Package] {
					broken++
				}
				fmt.Fprintf(w, "FAIL  %s (%.1fs)\n%s", e.Package, e.Elapsed, out)
			case e.Test == "" && e.Action == "pass":
				fmt.Fprintf(w, "ok    %s (%.1fs)\n", e.Package, e.Elapsed)
			case e.Test == "":
			case e.Action == "pass":
				passed++
			case e.Action == "skip":
				skipped++
				skips = append(skips, name+": "+reason(out))
			default:
				failed++
				failing[e.Package] = true
				fmt.Fprintf(w, "FAIL  %s\n%s", name, out)
			}
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(w, "testsum:", err)
		return false
	}
	if len(skips) > 0 {
		fmt.Fprintf(w, "\n%d skipped:\n", len(skips))
		for _, s := range skips {
			fmt.Fprintln(w, "  "+s)
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", passed, failed+broken, skipped)
	return failed == 0 && broken == 0 && passed > 0
}

// reason returns what a skipped test said, without go test's own lines.
func reason(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		if _, after, ok := strings.Cut(line, ".go:"); ok { // file_test.go:12: text
			if _, text, ok := strings.Cut(after, ": "); ok {
				line = text
			}
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}
