package waf

import (
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	coreruleset "github.com/corazawaf/coraza-coreruleset/v4"

	"bawn.dev/bawn"
)

// rulesFolder is where the rule set has its files.
const rulesFolder = "@owasp_crs"

// A rule is what the shortcut has to know of one SecRule of the rule set, or of
// one link of a chain.
type rule struct {
	id        int    // of the chain that it belongs to
	level     int    // from which paranoia level on it is applied
	targets   string // as written: ARGS|ARGS_NAMES|…
	negated   bool   // it matches what the operator does not
	operator  string // without the @
	argument  string
	transform []string // in order, after the last t:none
	multi     bool     // the operator is asked after each transformation, too
}

var (
	ruleExpr      = regexp.MustCompile(`^SecRule\s+(\S+)\s+"((?:\\.|[^"\\])*)"(?:\s+"(.*)")?$`)
	idExpr        = regexp.MustCompile(`\bid:(\d+)`)
	transformExpr = regexp.MustCompile(`\bt:(\w+)`)
	levelExpr     = regexp.MustCompile(`DETECTION_PARANOIA_LEVEL`)
)

// readRules reads the rules for requests. What it cannot read is an error: the
// shortcut is not for rules that nobody has looked at.
func readRules() ([]rule, error) {
	names, err := fs.Glob(coreruleset.FS, rulesFolder+"/REQUEST-*.conf")
	if err != nil || len(names) == 0 {
		return nil, bawn.Errorf(bawn.CodeInternal, "inspect", "the rule set has no rules: %v", err)
	}
	slices.Sort(names)
	var all []rule
	for _, name := range names {
		raw, err := fs.ReadFile(coreruleset.FS, name)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInternal, "inspect", "the rule set cannot be read")
		}
		level, id := 1, 0
		for _, line := range logicalLines(raw) {
			if !strings.HasPrefix(line, "SecRule ") {
				continue
			}
			m := ruleExpr.FindStringSubmatch(line)
			if m == nil {
				return nil, bawn.Errorf(bawn.CodeInternal, "inspect", "a rule of %s cannot be read: %.80s", name, line)
			}
			if found := idExpr.FindStringSubmatch(m[3]); found != nil {
				id, _ = strconv.Atoi(found[1])
			}
			if levelExpr.MatchString(m[1]) { // skips what follows below this level
				if n, ok := strings.CutPrefix(m[2], "@lt "); ok {
					level, _ = strconv.Atoi(n)
				}
				continue
			}
			r := rule{id: id, level: level, targets: m[1], multi: strings.Contains(m[3], "multiMatch")}
			r.readOperator(strings.ReplaceAll(m[2], `\"`, `"`))
			for _, t := range transformExpr.FindAllStringSubmatch(m[3], -1) {
				if t[1] == "none" {
					r.transform = nil
				} else {
					r.transform = append(r.transform, t[1])
				}
			}
			all = append(all, r)
		}
	}
	return all, nil
}

func (r *rule) readOperator(text string) {
	text, r.negated = strings.CutPrefix(text, "!")
	if op, ok := strings.CutPrefix(text, "@"); ok {
		r.operator, r.argument, _ = strings.Cut(op, " ")
		return
	}
	r.operator, r.argument = "rx", text
}

// ofArguments reports whether the rule looks at the values or the names of
// arguments, which is where leaves of events stand.
func (r *rule) ofArguments() bool {
	for t := range strings.SplitSeq(r.targets, "|") {
		name, key, _ := strings.Cut(t, ":")
		switch name {
		case "ARGS", "ARGS_POST", "ARGS_NAMES", "ARGS_POST_NAMES":
			// A rule for one name is not for leaves: their names begin with leafPrefix.
			if key == "" || strings.HasPrefix(key, "/") {
				return true
			}
		}
	}
	return false
}

// logicalLines returns the lines without comments, those that end in a backslash
// joined with the next.
func logicalLines(raw []byte) []string {
	var all []string
	var b strings.Builder
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" && b.Len() == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if cut, ok := strings.CutSuffix(line, `\`); ok {
			b.WriteString(cut)
			continue
		}
		b.WriteString(line)
		all = append(all, b.String())
		b.Reset()
	}
	return all
}

// keywords returns the lines of a file of the rule set, in lower case.
func keywords(file string) ([]string, error) {
	raw, err := fs.ReadFile(coreruleset.FS, rulesFolder+"/"+file)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "inspect", "the rule set cannot be read")
	}
	var all []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			all = append(all, strings.ToLower(line))
		}
	}
	return all, nil
}
