package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reference/openapi.json anew")

const openAPIFile = "../../docs/reference/openapi.json"

// The document in the repository is what the code serves. After a change of the
// API: go test ./internal/api -run OpenAPI -update
func TestOpenAPIIsCurrent(t *testing.T) {
	doc, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(openAPIFile, doc, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(openAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(doc, kept) {
		t.Error("docs/reference/openapi.json differs from the code: go test ./internal/api -run OpenAPI -update")
	}
}

// The document must hold together: every reference leads somewhere, every route
// is there, and all but one of them ask for a key.
func TestOpenAPIHoldsTogether(t *testing.T) {
	raw, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string
			Security    []map[string][]string
			Responses   map[string]json.RawMessage
		}
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllStringSubmatch(string(raw), -1) {
		if doc.Components.Schemas[m[1]] == nil {
			t.Errorf("no schema %s", m[1])
		}
	}
	for name := range doc.Components.Schemas {
		if !strings.Contains(string(raw), `"#/components/schemas/`+name+`"`) {
			t.Errorf("schema %s is used by nothing", name)
		}
	}
	var open []string
	routes := (&api{}).routes()
	for _, r := range routes {
		op, ok := doc.Paths[r.op.Path][strings.ToLower(r.op.Method)]
		if !ok || op.OperationID != r.op.OperationID || op.Responses["default"] == nil {
			t.Errorf("%s %s: %+v", r.op.Method, r.op.Path, op)
		}
		if len(op.Security) == 0 {
			open = append(open, r.op.Method+" "+r.op.Path)
		}
	}
	if !slices.Equal(open, []string{http.MethodGet + " /v1/status", http.MethodGet + " /v1/login"}) {
		t.Errorf("without a key: %v", open)
	}
}

// Each {name} of a path is described as a parameter: a library that skips one
// would leave it empty in the handler too.
func TestPathParametersAreRead(t *testing.T) {
	raw, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string }
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			for _, m := range regexp.MustCompile(`\{([^}]+)\}`).FindAllStringSubmatch(path, -1) {
				if !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == m[1] && p.In == "path" }) {
					t.Errorf("%s %s: %s is not read", method, path, m[1])
				}
			}
		}
	}
}
