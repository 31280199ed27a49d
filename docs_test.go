package bawn_test

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/printer"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// constants returns the value of every numeric constant declared in the Go
// files of dir, tests aside, whose expression stands for itself.
func constants(t *testing.T, dir string) map[string]constant.Value {
	t.Helper()
	fset := token.NewFileSet()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no Go files in %s", dir)
	}
	units := strings.NewReplacer("time.Millisecond", "1000000", "time.Second", "1000000000",
		"time.Minute", "60000000000", "time.Hour", "3600000000000", "Duration(", "(")
	values := map[string]constant.Value{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, id := range v.Names {
					if i >= len(v.Values) {
						continue
					}
					var text strings.Builder
					printer.Fprint(&text, fset, v.Values[i])
					tv, err := types.Eval(token.NewFileSet(), nil, token.NoPos, units.Replace(text.String()))
					if err == nil && tv.Value != nil && tv.Value.Kind() != constant.String {
						values[id.Name] = tv.Value
					}
				}
			}
		}
	}
	return values
}

// spellings returns the ways in which the documentation may write a value.
func spellings(v constant.Value) []string {
	whole := constant.ToInt(v)
	if whole.Kind() != constant.Int {
		f, _ := constant.Float64Val(v)
		return []string{fmt.Sprint(f)}
	}
	n, _ := constant.Int64Val(whole)
	out := []string{fmt.Sprint(n), grouped(n), fmt.Sprintf("%d bytes", n), grouped(n) + " bytes"}
	for shift, unit := range map[int]string{10: "KiB", 20: "MiB", 30: "GiB"} {
		if n > 0 && n%(1<<shift) == 0 {
			out = append(out, fmt.Sprintf("%d %s", n>>shift, unit))
		}
	}
	for length, unit := range map[time.Duration]string{time.Millisecond: "ms", time.Second: "s", time.Minute: "min", time.Hour: "h", 24 * time.Hour: "days"} {
		if n > 0 && n%int64(length) == 0 {
			out = append(out, fmt.Sprintf("%d %s", n/int64(length), unit))
		}
	}
	return out
}

// grouped writes n with commas between thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// TestLimitsAreTrue compares docs/limits.md with the code. The last cell of each
// row names the constants that the row's other cells tell, in backquotes:
// `MaxMemory` of this package, `internal/manifest maxFile` of another.
func TestLimitsAreTrue(t *testing.T) {
	data, err := os.ReadFile("docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	read := map[string]map[string]constant.Value{}
	told := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 3 || !strings.HasPrefix(strings.TrimSpace(line), "|") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[len(cells)-1], -1) {
			dir, name := ".", m[1]
			if d, n, ok := strings.Cut(m[1], " "); ok {
				dir, name = d, n
			}
			if read[dir] == nil {
				read[dir] = constants(t, dir)
			}
			v, ok := read[dir][name]
			if !ok {
				t.Errorf("limits.md names the constant %s, which is not in %s", name, dir)
				continue
			}
			told[dir+" "+name] = true
			ok = false
			for _, s := range spellings(v) {
				ok = ok || slices.Contains(cells[:len(cells)-1], s)
			}
			if !ok {
				t.Errorf("limits.md: no cell of the row of %s has its value, %v (%s)", name, v, strings.Join(spellings(v), ", "))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(constants(t, "."))) {
		if regexp.MustCompile(`^(Max|Min|Default|InitTimeout)`).MatchString(name) && !told[". "+name] {
			t.Errorf("limits.md does not tell %s", name)
		}
	}
}

// TestDependenciesAreExplained compares docs/dependencies.md with go.mod: each
// direct requirement has a row with its reason, and each row a requirement.
func TestDependenciesAreExplained(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	direct, all := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(?:require |\t)(\S+\.\S+) v\S+( // indirect)?$`).FindAllStringSubmatch(string(mod), -1) {
		all[m[1]] = true
		if m[2] == "" {
			direct[m[1]] = true
		}
	}
	if len(direct) == 0 {
		t.Fatal("found no requirement in go.mod")
	}
	doc, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) \\|$").FindAllStringSubmatch(string(doc), -1) {
		if !all[m[1]] {
			t.Errorf("dependencies.md explains %s, which go.mod does not require", m[1])
		}
		if len(m[2]) < 20 {
			t.Errorf("dependencies.md gives no reason for %s", m[1])
		}
		delete(direct, m[1])
	}
	for _, name := range slices.Sorted(maps.Keys(direct)) {
		t.Errorf("dependencies.md does not explain %s", name)
	}
}

// TestDocumentLinks follows every relative link of every document.
func TestDocumentLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	n := 0
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "node_modules" || d.Name() == ".git" {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), target)); err != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Error("found no link to follow")
	}
}
