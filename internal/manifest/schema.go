package manifest

import (
	"bytes"
	_ "embed"
	"encoding/json"
)

//go:generate go test -run ^TestSchemaIsCurrent$ -update .

//go:embed schema.json
var published []byte

// Schema returns the JSON Schema (2020-12) of bawn.yaml, for editors. It
// describes what can be said in a schema; [Parse] checks more.
func Schema() []byte { return bytes.Clone(published) }

// generateSchema writes the schema that follows from the tables of fields.
func generateSchema() ([]byte, error) {
	s := manifestFields().schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$id"] = "https://bawn.dev/schema/bawn.json"
	s["title"] = FileName
	s["$defs"] = map[string]any{"function": functionFields().schema()}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
