package manifest

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"strings"

	"bawn.dev/bawn"
)

// IgnoreName is the file in a folder's top that says what is not packed. Its
// lines are as in .gitignore: globs with *, ?, [a-z] and **, a leading / or one
// within ties a glob to the top, a trailing / is for folders only, ! takes a
// file back in, # begins a comment.
const IgnoreName = ".bawnignore"

const (
	maxIgnoreBytes = 64 << 10
	maxIgnoreRules = 1000
)

// alwaysIgnored is what no function needs when it runs. A line in .bawnignore
// such as !.venv takes one back in.
const alwaysIgnored = `.git
.hg
.svn
.DS_Store
__pycache__
.venv
node_modules/.cache
node_modules/.bin
/bawn.yaml
/bawn.test.yaml
/.bawnignore
`

// ignoreRule is one line of an ignore file.
type ignoreRule struct {
	segments []string // of the glob; "**" stands for any number of segments
	keep     bool     // the line began with !
	folders  bool     // the line ended with /
}

// readIgnore reads an ignore file after the rules that always hold.
func readIgnore(data []byte) ([]ignoreRule, error) {
	if len(data) > maxIgnoreBytes {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "pack", "%s has %d bytes, at most %d are allowed", IgnoreName, len(data), maxIgnoreBytes)
	}
	var rules []ignoreRule
	own := strings.Count(alwaysIgnored, "\n")
	lines := bufio.NewScanner(bytes.NewReader(append([]byte(alwaysIgnored), data...)))
	lines.Buffer(nil, maxIgnoreBytes+len(alwaysIgnored)+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		var r ignoreRule
		line, r.keep = strings.CutPrefix(line, "!")
		line, r.folders = strings.CutSuffix(line, "/")
		line, top := strings.CutPrefix(line, "/")
		if !top && !strings.Contains(line, "/") {
			line = "**/" + line
		}
		for _, s := range strings.Split(line, "/") {
			if s == "**" && len(r.segments) > 0 && r.segments[len(r.segments)-1] == "**" {
				continue
			}
			if _, err := path.Match(s, ""); err != nil || s == "" {
				return nil, bawn.Errorf(bawn.CodeInvalid, "pack", "%s:%d: %s is not a glob", IgnoreName, n-own, quote(lines.Text()))
			}
			r.segments = append(r.segments, s)
		}
		if rules = append(rules, r); len(rules) > maxIgnoreRules {
			return nil, bawn.Errorf(bawn.CodeTooLarge, "pack", "%s has more than %d lines", IgnoreName, maxIgnoreRules)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", IgnoreName, err)
	}
	return rules, nil
}

// ignored reports whether the last rule that matches name leaves it out. name
// is relative to the top, with slashes. What is in a folder that is left out is
// never asked for.
func ignored(rules []ignoreRule, name string, folder bool) bool {
	segments := strings.Split(name, "/")
	out := false
	for _, r := range rules {
		if (folder || !r.folders) && r.keep == out && globs(r.segments, segments) {
			out = !r.keep
		}
	}
	return out
}

// globs reports whether the segments of a name match those of a glob. The work
// is bounded by the product of their lengths.
func globs(glob, name []string) bool {
	// reach[j]: the glob so far matches the first j segments of the name.
	reach := make([]bool, len(name)+1)
	reach[0] = true
	for _, g := range glob {
		next := make([]bool, len(name)+1)
		if g == "**" {
			on := false
			for j := range reach {
				on = on || reach[j]
				next[j] = on
			}
		} else {
			for j, s := range name {
				if reach[j] {
					next[j+1], _ = path.Match(g, s) // the glob was checked when it was read
				}
			}
		}
		reach = next
	}
	return reach[len(name)]
}
