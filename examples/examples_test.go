// Package examples holds no code, only the test that every example's manifest
// deploys as it stands.
package examples

import (
	"os"
	"path/filepath"
	"testing"

	"bawn.dev/bawn/internal/manifest"
)

func TestManifestsCompile(t *testing.T) {
	files, err := filepath.Glob("*/bawn.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("found %d manifests, %v; want at least 6", len(files), err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := manifest.Parse(name, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for fn, spec := range f.Functions {
			if _, err := manifest.Compile(fn, spec); err != nil {
				t.Errorf("%s: %s: %v", name, fn, err)
			}
		}
		for _, beside := range []string{"README.md", "try.sh"} {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), beside)); err != nil {
				t.Errorf("%s has no %s", filepath.Dir(name), beside)
			}
		}
	}
}
