package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bawn.dev/bawn/internal/schema"
)

// moduleDir returns where the files of a module that go.mod names lie.
func moduleDir(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", path)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download %s: %v", path, err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil || m.Dir == "" {
		t.Fatalf("%s: %v", out, err)
	}
	return m.Dir
}

// skips reads SKIPS.md: lines of "- `id`: why".
func skips(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("SKIPS.md")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "- `"); ok {
			id, _, _ := strings.Cut(rest, "`")
			m[id] = false
		}
	}
	return m
}

// TestD3StrictJSON: what must be refused is, and what must be read is read.
func TestD3StrictJSON(t *testing.T) {
	dir := filepath.Join(moduleDir(t, "github.com/nst/JSONTestSuite"), "test_parsing")
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	skip, n := skips(t), 0
	for _, file := range files {
		name := filepath.Base(file)
		if _, ok := skip[name]; ok {
			skip[name] = true
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = schema.Parse(data, 64)
		var wrong *schema.ParseError
		switch {
		case err != nil && !errors.As(err, &wrong):
			t.Errorf("%s: %v", name, err)
		case name[0] == 'n' && err == nil:
			t.Errorf("%s is accepted", name)
		case name[0] == 'y' && err != nil:
			t.Errorf("%s is refused: %v", name, err)
		}
		if name[0] != 'i' {
			n++
		}
	}
	if n < 280 {
		t.Errorf("only %d files of the suite were there", n)
	}
	for name, used := range skip {
		if !used && strings.HasSuffix(name, ".json") && !strings.Contains(name, "/") {
			t.Errorf("SKIPS.md lists %s, which is no file", name)
		}
	}
}

type group struct {
	Description string
	Schema      json.RawMessage
	Tests       []struct {
		Description string
		Data        json.RawMessage
		Valid       bool
	}
}

// TestD1JSONSchema: all required cases of both dialects, and the optional formats.
func TestD1JSONSchema(t *testing.T) {
	// The newer copy of the suite lacks what its own project does not do; the other has
	// all of it.
	newer := filepath.Join(moduleDir(t, "github.com/google/jsonschema-go"), "jsonschema/testdata")
	tests := filepath.Join(moduleDir(t, "cuelang.org/go"), "encoding/jsonschema/testdata/external/tests")
	skip := skips(t)
	for dialect, least := range map[string]int{"draft2020-12": 1245, "draft7": 860} {
		t.Run(dialect, func(t *testing.T) {
			others := documents(t, filepath.Join(newer, "remotes"), dialect)
			files, err := filepath.Glob(filepath.Join(tests, dialect, "*.json"))
			if err != nil {
				t.Fatal(err)
			}
			for i, file := range files {
				if other := filepath.Join(newer, dialect, filepath.Base(file)); exists(other) {
					files[i] = other
				}
			}
			formats, err := filepath.Glob(filepath.Join(tests, dialect, "optional/format/*.json"))
			if err != nil {
				t.Fatal(err)
			}
			formats = slices.DeleteFunc(formats, func(file string) bool { return strings.HasPrefix(filepath.Base(file), "idn-") }) // not asserted
			required := 0
			for _, file := range append(files, formats...) {
				optional := strings.Contains(filepath.ToSlash(file), "/optional/")
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				var groups []group
				if err := json.Unmarshal(raw, &groups); err != nil {
					t.Fatal(err)
				}
				name := dialect + "/" + filepath.Base(file)
				for _, g := range groups {
					// In format.json formats are annotations. That they are asserted, as they
					// are in Bawn, is what the optional files are about.
					c := schema.Compiler{Others: others, Annotate: filepath.Base(file) == "format.json"}
					s, err := c.Compile(dialected(g.Schema, dialect))
					for _, tt := range g.Tests {
						id := fmt.Sprintf("%s: %s: %s", name, g.Description, tt.Description)
						if !optional {
							required++
						}
						if _, ok := skip[id]; ok {
							skip[id] = true
							continue
						}
						if err != nil {
							t.Errorf("%s: %v", id, err)
							continue
						}
						d, bad := schema.Parse(tt.Data, schema.MaxDepth)
						if bad != nil {
							t.Errorf("%s: %v", id, bad)
							continue
						}
						why := s.Validate(d)
						var misfit *schema.ValidationError
						if (why == nil) != tt.Valid || why != nil && !errors.As(why, &misfit) {
							t.Errorf("%s: %v", id, why)
						}
						if misfit != nil && (misfit.Work || len(misfit.Misfits) == 0) {
							t.Errorf("%s is refused without a place: %v", id, why)
						}
					}
				}
			}
			if required < least {
				t.Errorf("only %d required cases were there", required)
			}
			t.Logf("%d required cases", required)
		})
	}
	for id, used := range skip {
		if !used && strings.HasPrefix(id, "draft") {
			t.Errorf("SKIPS.md lists %s, which is no case", id)
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// dialected names the dialect in a schema that names none.
func dialected(raw []byte, dialect string) string {
	if dialect != "draft7" || !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) || bytes.Contains(raw, []byte(`"$schema"`)) {
		return string(raw)
	}
	rest := bytes.TrimSpace(bytes.TrimSpace(raw)[1:])
	comma := ","
	if rest[0] == '}' {
		comma = ""
	}
	return `{"$schema":"http://json-schema.org/draft-07/schema#"` + comma + string(rest)
}

// documents reads what the cases refer to.
func documents(t *testing.T, root, dialect string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(filepath.ToSlash(path), filepath.ToSlash(root)+"/")
		if err != nil || e.IsDir() || !strings.HasSuffix(rel, ".json") {
			return err
		}
		if strings.HasPrefix(rel, "draft") && !strings.HasPrefix(rel, dialect+"/") {
			return nil
		}
		raw, err := os.ReadFile(path)
		all["http://localhost:1234/"+rel] = dialected(raw, dialect)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
