package bawn_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "bawn.dev/bawn"

// rule is the import rule: what each package may import of Bawn itself, exactly.
// Arrows point down, never sideways: stages and spines do not know each other,
// and only node knows all parts. A package that is not here fails the test, and
// so does an entry that is not used any more.
const rule = `
.:
client: .
internal/manifest: . internal/schema
internal/backup: .
internal/sandbox: .
internal/schema: .
internal/openapi: . internal/manifest internal/schema
internal/store: .

internal/host: .

internal/sandbox/linux: . internal/sandbox internal/sandbox/linux/cgroup internal/sandbox/linux/wire
internal/sandbox/linux/cgroup:
internal/sandbox/linux/filter:
internal/sandbox/linux/wire: internal/sandbox/linux/cgroup
internal/sandbox/sandboxtest: . internal/sandbox
internal/sandbox/sandboxtest/actor:

internal/evidence: . internal/evidence/tlog internal/store
internal/evidence/tlog: .
internal/policy: . internal/evidence internal/store
internal/identity: . internal/store
internal/secret: . internal/policy internal/store

internal/ingress: . internal/identity internal/ingress/waf internal/meter internal/policy internal/schema internal/store
internal/ingress/waf: .
internal/meter: . internal/store
internal/interior: . internal/sandbox internal/secret
internal/egress: . internal/policy internal/sandbox internal/schema internal/secret
internal/deploy: . internal/store

internal/invoke: . internal/egress internal/evidence internal/ingress internal/interior
internal/control: . internal/backup internal/deploy internal/evidence internal/evidence/tlog internal/identity internal/manifest internal/meter internal/policy internal/secret internal/store

internal/trigger: . internal/invoke
internal/api: . internal/control internal/identity internal/invoke internal/manifest

internal/node: . client internal/api internal/backup internal/control internal/deploy internal/egress internal/evidence internal/evidence/tlog internal/host internal/identity internal/ingress internal/interior internal/invoke internal/meter internal/policy internal/sandbox internal/sandbox/linux internal/secret internal/store internal/trigger

internal/cli: . client internal/evidence/tlog internal/host internal/manifest internal/node internal/openapi internal/secret
bawntest: . client internal/node
bawntest/pgtest:

cmd/bawn: internal/cli
cmd/bawn-sandbox: internal/sandbox/linux/cgroup internal/sandbox/linux/filter internal/sandbox/linux/wire
cmd/bawn-wasm:

bench: . client internal/ingress/waf internal/node internal/policy internal/schema
examples:
examples/orders:
examples/redact:
examples/text:
scripts/testsum:
`

// doors says which packages may import a third party's. A path below a folder
// that ends in "/" is meant where the folder stands.
const doors = `
github.com/nats-io/: internal/store
github.com/cedar-policy/: internal/policy
golang.org/x/sys/: internal/sandbox/ cmd/bawn-sandbox internal/host internal/node
github.com/landlock-lsm/: cmd/bawn-sandbox
github.com/tetratelabs/wazero: cmd/bawn-wasm
github.com/danielgtaylor/huma/: internal/api
github.com/spf13/: internal/cli
github.com/schollz/progressbar/: internal/cli
golang.org/x/term: internal/cli
filippo.io/age: internal/backup
github.com/tink-crypto/: internal/secret
github.com/jackc/pgx/: internal/egress bawntest/pgtest examples/orders
golang.org/x/mod/: internal/evidence/tlog internal/store
github.com/transparency-dev/formats/: internal/evidence/tlog
golang.org/x/text/: internal/deploy examples/text
go.yaml.in/yaml/: internal/manifest internal/openapi
github.com/getkin/: internal/openapi
golang.org/x/net/: internal/egress internal/manifest
github.com/santhosh-tekuri/jsonschema/: internal/schema
github.com/prometheus/: internal/node
github.com/corazawaf/: internal/ingress/waf
github.com/coreos/go-oidc/: internal/identity
github.com/go-jose/: internal/identity
github.com/spiffe/: internal/identity
github.com/aws/aws-sdk-go-v2/: internal/identity internal/secret
golang.org/x/crypto/: internal/secret
golang.org/x/oauth2: client
go.opentelemetry.io/: internal/node
github.com/caddyserver/certmagic: internal/node
go.uber.org/zap: internal/node
github.com/aws/aws-lambda-go/: examples/text examples/orders
`

// testDoors is the same for what only tests import.
const testDoors = `
github.com/google/go-cmp/: any
github.com/rogpeppe/go-internal/: any
go.uber.org/goleak: any
pgregory.net/rapid: any
github.com/aws/aws-lambda-go/: any
github.com/aws/aws-sdk-go-v2/: bawntest internal/identity
github.com/aws/smithy-go: bawntest
github.com/go-jose/: bawntest internal/identity
golang.org/x/net/: internal/node
golang.org/x/sys/: any
github.com/jackc/pgx/: internal/egress
gvisor.dev/: internal/sandbox/
github.com/moby/: internal/sandbox/ cmd/bawn-sandbox
go.yaml.in/yaml/: internal/manifest bawntest
github.com/corazawaf/: internal/ingress/waf bawntest
github.com/santhosh-tekuri/jsonschema/: internal/manifest
github.com/nats-io/: internal/store
github.com/tetratelabs/wazero: cmd/bawn-wasm
github.com/danielgtaylor/huma/: internal/api
github.com/spf13/: internal/cli
github.com/prometheus/: internal/node
go.opentelemetry.io/: internal/node
`

// A pkg is what go list says of one package.
type pkg struct {
	ImportPath, Dir, Doc                        string
	GoFiles, Imports, TestImports, XTestImports []string
	Standard                                    bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Doc,GoFiles,Imports,TestImports,XTestImports,Standard"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as everything is built
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// table reads lines of "key: value value".
func table(text string) map[string][]string {
	m := map[string][]string{}
	for line := range strings.Lines(text) {
		if key, values, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[key] = strings.Fields(values)
		}
	}
	return m
}

// short returns a package's path below the module: "." for the root.
func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(path, module+"/")
}

func ours(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

func TestImportRule(t *testing.T) {
	allowed := table(rule)
	for _, p := range list(t, "./...") {
		name := short(p.ImportPath)
		want, known := allowed[name]
		delete(allowed, name)
		if !known {
			t.Errorf("package %s is not in the rule", name)
			continue
		}
		var got []string
		for _, i := range p.Imports {
			if ours(i) {
				got = append(got, short(i))
			}
		}
		for _, i := range got {
			if !slices.Contains(want, i) {
				t.Errorf("%s imports %s, which the rule does not allow", name, i)
			}
		}
		for _, i := range want {
			if !slices.Contains(got, i) {
				t.Errorf("the rule allows %s to import %s, which it does not do any more", name, i)
			}
		}
	}
	for name := range allowed {
		t.Errorf("the rule has %s, which is no package", name)
	}
}

func TestThirdPartyDoors(t *testing.T) {
	doors, testDoors := table(doors), table(testDoors)
	used := map[string]bool{} // door and place
	for _, p := range list(t, "./...") {
		name := short(p.ImportPath)
		for _, i := range p.Imports {
			pass(t, doors, used, name, i)
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if !slices.Contains(p.Imports, i) {
				pass(t, testDoors, nil, name, i)
			}
		}
	}
	for door, places := range doors {
		for _, place := range places {
			if !used[door+" "+place] {
				t.Errorf("the door of %s for %s is not used any more", door, place)
			}
		}
	}
}

// pass checks one import against the doors and notes which one it took.
func pass(t *testing.T, doors map[string][]string, used map[string]bool, name, path string) {
	host, _, _ := strings.Cut(path, "/")
	if ours(path) || !strings.Contains(host, ".") {
		return // Bawn's own, or the standard library
	}
	for door, places := range doors {
		if !strings.HasPrefix(path+"/", strings.TrimSuffix(door, "/")+"/") {
			continue
		}
		for _, place := range places {
			if place == "any" || name == place || strings.HasSuffix(place, "/") && strings.HasPrefix(name, place) {
				if used != nil {
					used[door+" "+place] = true
				}
				return
			}
		}
		t.Errorf("%s imports %s, which only %v may", name, path, places)
		return
	}
	t.Errorf("%s imports %s, for which there is no door", name, path)
}

// helperLinks is everything that is linked into the privileged helper besides
// the standard library.
const helperLinks = `
bawn.dev/bawn/cmd/bawn-sandbox
bawn.dev/bawn/internal/sandbox/linux/cgroup
bawn.dev/bawn/internal/sandbox/linux/filter
bawn.dev/bawn/internal/sandbox/linux/wire
github.com/landlock-lsm/go-landlock/landlock
github.com/landlock-lsm/go-landlock/landlock/internal
github.com/landlock-lsm/go-landlock/landlock/syscall
golang.org/x/sys/unix
kernel.org/pub/linux/libs/security/libcap/psx
`

// helperNever lists what has no place in a privileged program that parses
// little and speaks to nobody.
var helperNever = []string{"net/http", "crypto/tls", "crypto/x509", "encoding/gob", "text/template", "html/template", "plugin", "os/exec", "os/user", "net", "regexp"}

func TestHelperLinksLittle(t *testing.T) {
	var got, std []string
	for _, p := range list(t, "-deps", "./cmd/bawn-sandbox") {
		if p.Standard {
			std = append(std, p.ImportPath)
		} else {
			got = append(got, p.ImportPath)
		}
	}
	slices.Sort(got)
	want := strings.Fields(helperLinks)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("cmd/bawn-sandbox links\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	for _, p := range helperNever {
		if slices.Contains(std, p) {
			t.Errorf("cmd/bawn-sandbox links %s", p)
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", short(p.ImportPath))
		}
	}
}

// TestNothingHappensAtImport keeps the wiring in one place: no init functions,
// and no imports for their side effects other than embed's.
func TestNothingHappensAtImport(t *testing.T) {
	fset := token.NewFileSet()
	for _, p := range list(t, "./...") {
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range f.Imports {
				if i.Name != nil && i.Name.Name == "_" && i.Path.Value != `"embed"` {
					t.Errorf("%s/%s imports %s for its side effects", short(p.ImportPath), name, i.Path.Value)
				}
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s/%s has an init function", short(p.ImportPath), name)
				}
			}
		}
	}
}

// dialers lists who may connect to somewhere by means of their own, and why:
// every other connection to the outside is made by internal/egress.
const dialers = `
internal/egress: it is the way out
client: a program of the user's, or a test
internal/secret: the key service that the operator names, before anything else is there
bawntest: only for tests
bench: only for measuring
internal/sandbox/sandboxtest: tries from within a sandbox, and of it
internal/sandbox/sandboxtest/actor: tries from within a sandbox
`

// TestC2OneWayOut: nothing but the egress dials. Others are handed a dial
// function, or have an http.Transport with one; a client without a transport of
// its own would have the default one.
func TestC2OneWayOut(t *testing.T) {
	const dials = "net.Dial net.DialTimeout net.DialTCP net.DialUDP net.DialIP net.Dialer tls.Dial tls.DialWithDialer tls.Dialer " +
		"http.Get http.Head http.Post http.PostForm http.DefaultClient http.DefaultTransport"
	allowed, fset := table(dialers), token.NewFileSet()
	for _, p := range list(t, "./...") {
		name := short(p.ImportPath)
		if allowed[name] != nil || strings.HasPrefix(name, "examples/") {
			continue
		}
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && slices.Contains(strings.Fields(dials), x.Name+"."+n.Sel.Name) {
						t.Errorf("%s uses %s.%s", fset.Position(n.Pos()), x.Name, n.Sel.Name)
					}
				case *ast.CompositeLit:
					want := map[string][]string{"http.Transport": {"DialContext", "DialTLSContext"}, "http.Client": {"Transport"}}[typeName(n.Type)]
					if want != nil && !slices.ContainsFunc(n.Elts, func(e ast.Expr) bool {
						kv, ok := e.(*ast.KeyValueExpr)
						if !ok {
							return false
						}
						id, ok := kv.Key.(*ast.Ident)
						return ok && slices.Contains(want, id.Name)
					}) {
						t.Errorf("%s: an %s without %v", fset.Position(n.Pos()), typeName(n.Type), want)
					}
				}
				return true
			})
		}
	}
}

func typeName(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

func TestTableReadsItsOwnText(t *testing.T) {
	got := slices.Sorted(maps.Keys(table("\na: b c\n.:\n")))
	if !slices.Equal(got, []string{".", "a"}) {
		t.Errorf("keys = %v", got)
	}
}
