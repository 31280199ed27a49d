package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"

	"bawn.dev/bawn/internal/schema"
)

// Bounds of a document.
const (
	MaxBytes = 2 << 20
	maxDepth = 64     // of nested values
	maxNodes = 100000 // values and names, each time an alias stands for them
	maxRefs  = 10000

	maxTime = 20 * time.Second // for which a document is checked
)

// read parses a document into maps, slices, strings, booleans and json.Numbers, and
// has it checked. The error says what is wrong with it, as a sentence.
func read(ctx context.Context, data []byte) (map[string]any, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("it has more than %d bytes", MaxBytes)
	}
	var root any
	if strings.HasPrefix(strings.TrimLeft(string(data), " \t\r\n"), "{") {
		if _, err := schema.Parse(data, maxDepth); err != nil {
			return nil, fmt.Errorf("it %w", err)
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.UseNumber()
		if err := d.Decode(&root); err != nil {
			return nil, fmt.Errorf("it is no JSON: %w", err)
		}
	} else {
		var n yaml.Node
		if err := parseYAML(data, &n); err != nil {
			return nil, err
		}
		if len(n.Content) != 1 {
			return nil, errors.New("it is empty")
		}
		var err error
		if root, err = (&nodes{}).value(n.Content[0], 0); err != nil {
			return nil, err
		}
	}
	doc, ok := root.(map[string]any)
	if !ok {
		return nil, errors.New("it is no mapping")
	}
	if v, _ := doc["swagger"].(string); v != "" {
		return nil, fmt.Errorf("it is of version %s; 3.0 and 3.1 are read", cut(v))
	}
	if v := text(doc["openapi"]); !strings.HasPrefix(v, "3.0.") && !strings.HasPrefix(v, "3.1.") {
		return nil, fmt.Errorf("its field openapi is %s; 3.0 and 3.1 are read", strconv.Quote(cut(v)))
	}
	c := counts{}
	if err := c.count(doc); err != nil {
		return nil, err
	}
	return doc, check(ctx, doc)
}

// parseYAML parses what somebody wrote, on which a library may panic.
func parseYAML(data []byte, n *yaml.Node) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("it is no YAML")
		}
	}()
	if err := yaml.Unmarshal(data, n); err != nil {
		return fmt.Errorf("it is no YAML: %s", cut(strings.TrimPrefix(err.Error(), "yaml: ")))
	}
	return nil
}

// nodes turns YAML into the values of JSON.
type nodes struct{ seen int }

func (c *nodes) value(n *yaml.Node, depth int) (any, error) {
	if c.seen++; c.seen > maxNodes {
		return nil, fmt.Errorf("it has more than %d values", maxNodes)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: it nests deeper than %d levels", n.Line, maxDepth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1)
	case yaml.SequenceNode:
		all := make([]any, 0, len(n.Content))
		for _, one := range n.Content {
			v, err := c.value(one, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	case yaml.MappingNode:
		all := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" {
				return nil, fmt.Errorf("line %d: a name is no text", k.Line)
			}
			if _, twice := all[k.Value]; twice {
				return nil, fmt.Errorf("line %d: the name %s stands there twice", k.Line, strconv.Quote(cut(k.Value)))
			}
			v, err := c.value(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			all[k.Value] = v
		}
		return all, nil
	case yaml.ScalarNode:
		return scalar(n)
	}
	return nil, fmt.Errorf("line %d: that is no value", n.Line)
}

func scalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), nil
	case "!!int":
		if json.Valid([]byte(n.Value)) {
			return json.Number(n.Value), nil
		}
		var i int64
		if err := n.Decode(&i); err != nil {
			return nil, fmt.Errorf("line %d: that is no number", n.Line)
		}
		return json.Number(strconv.FormatInt(i, 10)), nil
	case "!!float":
		if json.Valid([]byte(n.Value)) {
			return json.Number(n.Value), nil
		}
		var f float64
		if err := n.Decode(&f); err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("line %d: that is no number", n.Line)
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
	}
	return n.Value, nil // dates, too, are texts in JSON
}

// counts holds a document to its bounds.
type counts struct{ nodes, refs int }

func (c *counts) count(v any) error {
	if c.nodes++; c.nodes > maxNodes {
		return fmt.Errorf("it has more than %d values", maxNodes)
	}
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			if err := c.count(one); err != nil {
				return err
			}
		}
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			if c.refs++; c.refs > maxRefs {
				return fmt.Errorf("it has more than %d references", maxRefs)
			}
			if !strings.HasPrefix(ref, "#/") {
				return fmt.Errorf("it refers to %s, and may refer only to places in itself, such as #/components/schemas/NAME", strconv.Quote(cut(ref)))
			}
		}
		for _, one := range v {
			if err := c.count(one); err != nil {
				return err
			}
		}
	}
	return nil
}

// check has a library judge whether doc is an OpenAPI document. What it is given is
// bounded and its work is not, so that it may be left behind: the process that reads
// a document does nothing else, and ends.
func check(ctx context.Context, doc map[string]any) error {
	data, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if recover() != nil {
				done <- errors.New("nobody can read it")
			}
		}()
		done <- judge(ctx, data)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("it is no OpenAPI document: %s", cut(strings.Join(strings.Fields(err.Error()), " ")))
		}
		return nil
	case <-ctx.Done():
		return errors.New("to check it takes too much work")
	}
}

func judge(ctx context.Context, data []byte) error {
	l := openapi3.NewLoader() // which reads nothing else by default
	l.Context = ctx
	doc, err := l.LoadFromData(data)
	if err != nil {
		return err
	}
	// Patterns and the like are Bawn's own validator's to judge.
	return doc.Validate(ctx, openapi3.DisableExamplesValidation(), openapi3.DisableSchemaDefaultsValidation(),
		openapi3.DisableSchemaPatternValidation(), openapi3.AllowExtensionsWithRef())
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// cut bounds text of a document's in a message.
func cut(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
