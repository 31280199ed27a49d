package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

const (
	maxManifestBytes = 1 << 20
	maxDepth         = 24 // of nested values; the deepest that means anything is 9
	maxProblems      = 50
	maxFunctions     = 1000
)

// Problem is one thing wrong with a manifest.
type Problem struct {
	File       string // as it was given to Parse; empty for JSON
	Line       int    // from 1; 0 for JSON
	Column     int    // from 1, in characters; 0 for JSON
	Path       string // functions.hello.interior.memory
	Message    string
	Suggestion string // what may have been meant; may be empty
}

// String writes the place, the message and the suggestion on one line.
func (p Problem) String() string {
	s := (&wrong{p.Message, p.Suggestion}).Error()
	switch {
	case p.Line > 0:
		return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, s)
	case p.Path != "":
		return p.Path + ": " + s
	}
	return s
}

// SyntaxError holds every problem of a manifest. It is the cause of the
// [bawn.Error] that [Parse] returns, whose message lists the same problems one
// a line.
type SyntaxError struct{ Problems []Problem }

// Error says how many problems there are.
func (e *SyntaxError) Error() string { return fmt.Sprintf("%d problems", len(e.Problems)) }

// Parse reads a manifest. name is what problems call the file. The error, if
// any, is a [*bawn.Error] with code [bawn.CodeInvalid] for what is no YAML and
// [bawn.CodeUnprocessable] for what Bawn does not accept.
func Parse(name string, data []byte) (*File, error) {
	var f File
	if err := parse(&decoder{file: name, what: "manifest"}, data, manifestFields(), &f); err != nil {
		return nil, err
	}
	return &f, nil
}

// parse reads a file of one YAML document into t.
func parse[T any](d *decoder, data []byte, o object[T], t *T) error {
	if len(data) > maxManifestBytes {
		return bawn.Errorf(bawn.CodeTooLarge, "manifest", "%s has %d bytes, at most %d are allowed", d.file, len(data), maxManifestBytes).
			WithFix("split it into several %ss", d.what)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return d.syntax(err, data)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		d.report(&yaml.Node{Line: 1, Column: 1}, "", "the "+d.what+" is empty", o.fields[0].name+":")
		return d.err()
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		d.report(&more, "", "a second document begins here; a "+d.what+" is one document", "")
	case !errors.Is(err, io.EOF):
		return d.syntax(err, data)
	}
	if d.tame(doc.Content[0], 0) {
		o.read(d, doc.Content[0], "", t)
	}
	return d.err()
}

// ParseFunctionJSON reads one function from JSON, with the same fields and the
// same checks as a manifest's.
func ParseFunctionJSON(data []byte) (Function, error) {
	d := &decoder{}
	var f Function
	if len(data) > maxManifestBytes {
		return f, bawn.Errorf(bawn.CodeTooLarge, "manifest", "the function has %d bytes, at most %d are allowed", len(data), maxManifestBytes)
	}
	n, err := jsonNode(data)
	if err != nil {
		return f, bawn.Wrap(err, bawn.CodeInvalid, "manifest", "the function is not valid JSON: %s", err)
	}
	o := functionFields()
	o.fields = append(o.fields, testsField())
	o.read(d, n, "", &f)
	if err := d.err(); err != nil {
		return Function{}, err
	}
	return f, nil
}

// jsonNode turns JSON into the tree that the decoder reads. Unlike
// encoding/json it keeps every occurrence of a key, for the decoder to refuse.
func jsonNode(data []byte) (*yaml.Node, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var value func(depth int) (*yaml.Node, error)
	value = func(depth int) (*yaml.Node, error) {
		if depth > maxDepth {
			return nil, fmt.Errorf("values are nested more than %d deep", maxDepth)
		}
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		scalar := func(tag, v string) (*yaml.Node, error) {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v}, nil
		}
		switch t := t.(type) {
		case json.Delim:
			n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
			if t == '[' {
				n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			}
			for dec.More() {
				c, err := value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, c)
			}
			_, err := dec.Token()
			return n, err
		case string:
			return scalar("!!str", t)
		case json.Number:
			if strings.ContainsAny(t.String(), ".eE") {
				return scalar("!!float", t.String())
			}
			return scalar("!!int", t.String())
		case bool:
			return scalar("!!bool", strconv.FormatBool(t))
		}
		return scalar("!!null", "null")
	}
	n, err := value(0)
	if errors.Is(err, io.EOF) {
		err = errors.New("it ends too early")
	}
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	return n, nil
}

// decoder collects the problems of one file.
type decoder struct {
	file     string
	what     string // kind of file it is: manifest
	problems []Problem
	dropped  int
}

func (d *decoder) report(n *yaml.Node, at, message, suggestion string) {
	if len(d.problems) == maxProblems {
		d.dropped++
		return
	}
	d.problems = append(d.problems, Problem{d.file, n.Line, n.Column, at, message, suggestion})
}

func (d *decoder) reject(n *yaml.Node, at string, err error) {
	if w, ok := err.(*wrong); ok {
		d.report(n, at, w.Message, w.Suggestion)
		return
	}
	message := err.Error()
	var e *bawn.Error
	if errors.As(err, &e) {
		message = e.Message
	}
	d.report(n, at, message, "")
}

// err returns all problems as one error, in the order of the file.
func (d *decoder) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	lines := make([]string, 0, len(d.problems)+1)
	for _, p := range d.problems {
		lines = append(lines, p.String())
	}
	if d.dropped > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", d.dropped))
	}
	e := bawn.Wrap(&SyntaxError{d.problems}, bawn.CodeUnprocessable, "manifest", "%s", strings.Join(lines, "\n"))
	if d.what == testFile {
		return e.WithFix("mend the test file; docs/guide/testing.md lists its fields")
	}
	return e.WithFix("mend the manifest; docs/reference/manifest.md lists its fields, `bawn init` writes one that is right")
}

// syntax turns an error of the YAML parser, which begins "yaml: line N: ", into
// a problem with a place.
func (d *decoder) syntax(err error, data []byte) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, message = n, text
			}
		}
	}
	p := Problem{File: d.file, Line: line, Column: 1, Message: "this is not YAML: " + message}
	for i, l := range bytes.Split(data, []byte("\n")) {
		// The parser names the line before or after the one at fault.
		if i+1 < line-1 || i+1 > line+1 {
			continue
		}
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if at := bytes.IndexByte(indent, '\t'); at >= 0 {
			p.Line, p.Column, p.Suggestion = i+1, at+1, "spaces instead of the tab"
			break
		}
	}
	return bawn.Wrap(&SyntaxError{[]Problem{p}}, bawn.CodeInvalid, "manifest", "%s", p.String())
}

// tame refuses what makes a tree mean more than what is written: anchors,
// aliases, merge keys, tags of one's own, and depth.
func (d *decoder) tame(n *yaml.Node, depth int) bool {
	ok := true
	refuse := func(format string, args ...any) {
		d.report(n, "", fmt.Sprintf(format, args...), "")
		ok = false
	}
	switch {
	case depth > maxDepth:
		refuse("values are nested more than %d deep", maxDepth)
		return false
	case n.Kind == yaml.AliasNode:
		refuse("aliases (*%.40s) are not allowed; write the value out", n.Value)
		return false
	case n.Anchor != "":
		refuse("anchors (&%.40s) are not allowed; write the value out where it is needed", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		refuse("tags (%.40s) are not allowed", n.Tag)
	case n.Tag == "!!merge":
		refuse("merge keys (<<) are not allowed; write the fields out")
	}
	for _, c := range n.Content {
		ok = d.tame(c, depth+1) && ok
	}
	return ok
}

// kindName says what n is, in the words of messages.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + quote(n.Value)
	case "!!bool":
		return "the boolean " + quote(n.Value)
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "the date " + quote(n.Value)
	}
	return "the text " + quote(n.Value)
}

// nearest returns the one of words that is closest to s by edit distance, or
// "" if none is close.
func nearest(s string, words []string) string {
	best, most := "", max(1, len(s)/3)+1
	if len(s) > 40 {
		return ""
	}
	for _, w := range words {
		n := distance(strings.ToLower(s), strings.ToLower(w))
		if n < most {
			best, most = w, n
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
