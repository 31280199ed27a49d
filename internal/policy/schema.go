package policy

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"bawn.dev/bawn"
)

//go:embed schema.cedarschema
var schemaText string

// Schema returns the Cedar schema that every rule is checked against.
func Schema() string { return schemaText }

// grammar is what a rule may say: the schema, read. It is the one place that
// knows Cedar's experimental packages.
type grammar struct {
	validator *validate.Validator
	// fits says to which kinds of principal and resource an action applies.
	fits map[Action]signature
}

type signature struct{ principals, resources map[types.EntityType]bool }

func newGrammar() (*grammar, error) {
	var s schema.Schema
	s.SetFilename("schema.cedarschema")
	if err := s.UnmarshalCedar([]byte(schemaText)); err != nil {
		return nil, err
	}
	r, err := s.Resolve()
	if err != nil {
		return nil, err
	}
	g := &grammar{validator: validate.New(r), fits: map[Action]signature{}}
	for uid, a := range r.Actions {
		sig := signature{map[types.EntityType]bool{}, map[types.EntityType]bool{}}
		if a.AppliesTo != nil {
			for _, t := range a.AppliesTo.Principals {
				sig.principals[t] = true
			}
			for _, t := range a.AppliesTo.Resources {
				sig.resources[t] = true
			}
		}
		g.fits[Action(uid.ID)] = sig
	}
	return g, nil
}

// Bounds of one text of rules.
const (
	maxRuleText  = 64 << 10
	maxRules     = 100 // in one text
	maxRuleDepth = 64  // of brackets
)

// read parses text and checks every rule against the schema. Its error has
// CodeUnprocessable, names file, line and column of every problem, and no more
// than ten of them.
func (g *grammar) read(file string, text []byte) (cedar.PolicyList, error) {
	const op = "policy.read"
	if len(text) > maxRuleText {
		return nil, bawn.Errorf(bawn.CodeTooLarge, op, "%s has %d bytes, at most %d are allowed", file, len(text), maxRuleText)
	}
	if line := tooDeep(text); line > 0 {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s:%d: brackets are nested more than %d deep", file, line, maxRuleDepth)
	}
	list, err := cedar.NewPolicyListFromBytes(file, text)
	if err != nil {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s", place(file, err.Error())).
			WithFix("the language is described at https://docs.cedarpolicy.com, what rules can speak of in docs/guide/policy.md")
	}
	if len(list) > maxRules {
		return nil, bawn.Errorf(bawn.CodeTooLarge, op, "%s has %d rules, at most %d are allowed", file, len(list), maxRules)
	}
	var wrong []string
	for i, p := range list {
		if err := g.check(p); err != nil && len(wrong) < 10 {
			at := p.Position()
			// One problem shows once for each kind of principal and action: the first says it.
			first, _, _ := strings.Cut(err.Error(), "\n")
			wrong = append(wrong, fmt.Sprintf("%s:%d:%d: rule %d does not fit the schema: %s", file, at.Line, at.Column, i+1, oneLine(first)))
		}
	}
	if len(wrong) > 0 {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s", strings.Join(wrong, "\n")).
			WithFix("docs/guide/policy.md lists what rules can speak of")
	}
	return list, nil
}

// check reports whether p fits the schema.
func (g *grammar) check(p *cedar.Policy) error {
	return g.validator.Policy("", (*expast.Policy)(p.AST()))
}

// tooDeep returns the line where brackets are nested too deep, or 0. The parser
// goes down once for each.
func tooDeep(text []byte) int {
	depth, line := 0, 1
	for _, c := range text {
		switch c {
		case '\n':
			line++
		case '(', '[', '{':
			if depth++; depth > maxRuleDepth {
				return line
			}
		case ')', ']', '}':
			depth--
		}
	}
	return 0
}

// parserPlace is how the parser says where: <input>:LINE:COL or LINE:COL.
var parserPlace = regexp.MustCompile(`(?:at )?(?:<input>:|[^\s:]*:)?(\d+):(\d+)`)

// place moves the line and column of a parser's error to its front.
func place(file, s string) string {
	s = oneLine(strings.TrimPrefix(s, "parser error: "))
	m := parserPlace.FindStringSubmatchIndex(s)
	if m == nil {
		return file + ": " + s
	}
	line, _ := strconv.Atoi(s[m[2]:m[3]])
	column, _ := strconv.Atoi(s[m[4]:m[5]])
	rest := strings.TrimSpace(s[:m[0]] + s[m[1]:])
	return fmt.Sprintf("%s:%d:%d: %s", file, line, column, strings.Join(strings.Fields(rest), " "))
}

func oneLine(s string) string {
	if s = strings.Join(strings.Fields(s), " "); len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}
