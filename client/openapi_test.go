package client

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

// The client's types have the fields that the API's document says, no more and
// no less: the two are written apart, because a client must not link a server.
func TestTypesMatchTheDocument(t *testing.T) {
	data, err := os.ReadFile("../docs/reference/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for name, typ := range map[string]reflect.Type{
		"Status": reflect.TypeFor[Status](), "Change": reflect.TypeFor[Change](), "Deployment": reflect.TypeFor[Deployment](),
		"Summary": reflect.TypeFor[Summary](), "FunctionDetail": reflect.TypeFor[FunctionDetail](), "PerimeterView": reflect.TypeFor[Perimeter](),
		"Runtime": reflect.TypeFor[Runtime](), "Doctor": reflect.TypeFor[Doctor](), "CreateKeyInputBody": reflect.TypeFor[NewKey](),
		"CreateKeyOutputBody": reflect.TypeFor[CreatedKey](), "Problem": reflect.TypeFor[problem](), "Version": reflect.TypeFor[bawn.Version](),
	} {
		schema, ok := doc.Components.Schemas[name]
		if !ok {
			t.Errorf("the document has no %s", name)
			continue
		}
		var fields []string
		for i := range typ.NumField() {
			tag, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			fields = append(fields, tag)
			if _, ok := schema.Properties[tag]; !ok {
				t.Errorf("%s: the API has no field %q", name, tag)
			}
		}
		for p := range schema.Properties {
			if !slices.Contains(fields, p) {
				t.Errorf("%s: the client lacks the field %q", name, p)
			}
		}
	}
}
