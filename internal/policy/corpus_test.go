package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"bawn.dev/bawn"
)

func parsed(t testing.TB, id, text string) rule {
	t.Helper()
	var p cedar.Policy
	if err := p.UnmarshalCedar([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return rule{id, &p}
}

// corpus returns the files of Cedar's differential corpus, which lies in the
// module's folder.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cedar-policy/cedar-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "corpus-tests.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// Cedar's own corpus, decided by the way that Bawn's decisions take: whole, and
// spread over several sets; control A3. All decisions, their reasons and the
// rules that fail are as the corpus has them.
func TestA3Corpus(t *testing.T) {
	type entity struct{ Type, ID string }
	type test struct {
		Policies, Entities string
		Requests           []struct {
			Description                 string
			Principal, Action, Resource entity
			Context                     cedar.Record
			Decision                    cedar.Decision
			Reason, Errors              []string
		}
	}
	files := corpus(t)
	names := slices.DeleteFunc(sortedNames(files), func(name string) bool {
		return !strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".entities.json")
	})
	var before []rule // of the tests before this one
	requests, allowed, spread, mixed := 0, 0, 0, 0
	for i, name := range names {
		var c test
		if err := json.Unmarshal(files[name], &c); err != nil {
			t.Fatal(name, err)
		}
		list, err := cedar.NewPolicyListFromBytes(name, files[c.Policies])
		if err != nil {
			t.Fatal(name, err)
		}
		var entities cedar.EntityMap
		if err := json.Unmarshal(files[c.Entities], &entities); err != nil {
			t.Fatal(name, err)
		}
		var all []rule
		for i, p := range list {
			all = append(all, rule{fmt.Sprintf("policy%d", i), p})
		}
		for j, r := range c.Requests {
			req := cedar.Request{
				Principal: types.NewEntityUID(types.EntityType(r.Principal.Type), types.String(r.Principal.ID)),
				Action:    types.NewEntityUID(types.EntityType(r.Action.Type), types.String(r.Action.ID)),
				Resource:  types.NewEntityUID(types.EntityType(r.Resource.Type), types.String(r.Resource.ID)),
				Context:   r.Context,
			}
			requests++
			if r.Decision == cedar.Allow {
				allowed++
			}
			var o outcome
			o.add(newSet(all, []types.EntityUID{req.Action}, entities).slices[req.Action], entities, &req)
			if o.allow() != bool(r.Decision) || !same(o.reasons(), r.Reason) || !same(o.failed, r.Errors) {
				t.Errorf("%s, %s: %v by %v failing %v, want %v by %v failing %v", name, r.Description, o.allow(), o.reasons(), o.failed, r.Decision, r.Reason, r.Errors)
			}
			if j > 0 {
				continue
			}
			// A test of the corpus has one rule. Together with those of the tests
			// before it there is something to spread: half of them turned round,
			// over four sets, against Cedar's answer for one.
			whole := cedar.NewPolicySet()
			parts := make([][]rule, 4)
			for k, p := range append(slices.Clone(all), before...) {
				p.id = fmt.Sprint(k)
				if (i+k)%2 == 0 {
					turned := *(*expast.Policy)(p.policy.AST())
					turned.Effect = !turned.Effect
					p.policy = cedar.NewPolicyFromAST(astOf(&turned))
				}
				whole.Add(cedar.PolicyID(p.id), p.policy)
				parts[k%len(parts)] = append(parts[k%len(parts)], p)
			}
			d, diag := cedar.Authorize(whole, entities, req)
			var reasons, failed []string
			for _, x := range diag.Reasons {
				reasons = append(reasons, string(x.PolicyID))
			}
			for _, x := range diag.Errors {
				failed = append(failed, string(x.PolicyID))
			}
			o = outcome{}
			for _, part := range parts {
				o.add(newSet(part, []types.EntityUID{req.Action}, entities).slices[req.Action], entities, &req)
			}
			spread++
			if len(o.permits) > 0 && len(o.forbids) > 0 {
				mixed++
			}
			if o.allow() != bool(d) || !same(o.reasons(), reasons) || !same(o.failed, failed) {
				t.Errorf("%s, spread: %v by %v failing %v, want %v by %v failing %v", name, o.allow(), o.reasons(), o.failed, d, reasons, failed)
			}
		}
		if before = append(all, before...); len(before) > 11 {
			before = before[:11]
		}
	}
	t.Logf("%d tests, %d requests (%d allowed); %d decisions over four sets (%d with a permit in one and a forbid in another)", len(names), requests, allowed, spread, mixed)
	if requests < 50000 || allowed == 0 || spread < 5000 || mixed == 0 {
		t.Error("the corpus is not there")
	}
}

func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func sortedNames(files map[string][]byte) []string {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// The rules of a manifest mean what the manifest says, whatever a route is
// called, and fit the schema.
func TestCompile(t *testing.T) {
	e := New(nil, nil)
	v := made("f", []string{"g", "role:ops", "anyone"}, []string{"x"})
	if err := e.CheckVersion(v); err != nil {
		t.Error(err)
	}
	odd := `/a"; permit(principal,action,resource); //` + "\\\n\u2028é{x}"
	v.Perimeter.Ingress.HTTP = routesOf("GET", odd)
	if err := e.CheckVersion(v); err != nil {
		t.Error(err)
	}
	if all := lines(v); len(all) != 5 || strings.Count(all[0].text, "\n") != 3 {
		t.Errorf("%q", all)
	}
	if !bytes.Contains([]byte(Schema()), []byte("namespace Bawn")) || Base() == "" {
		t.Error("no schema")
	}
}

func routesOf(method, path string) []bawn.Route { return []bawn.Route{{Method: method, Path: path}} }
