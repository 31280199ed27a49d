package openapi

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/schema"
)

func options() Options {
	return Options{Runtime: "python3.11", Handler: "app.handler", Code: ".", Owner: "me"}
}

func imported(t *testing.T, doc string, o Options) *Import {
	t.Helper()
	im, err := Read(context.Background(), []byte(doc), o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func file(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// fits holds JSON against one of an import's schemas.
func fits(t *testing.T, im *Import, path, value string) bool {
	t.Helper()
	s, err := schema.Compile(im.Files[path])
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, im.Files[path])
	}
	d, err := schema.Parse([]byte(value), 64)
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(d) == nil
}

// TestD1Import shows that a schema of an imported document lets in what the document
// does, in the words of 3.0 and of 3.1.
func TestD1Import(t *testing.T) {
	for _, c := range []struct {
		doc, path string
		good, bad []string
	}{
		{"shop30.yaml", "schemas/order.body.json",
			[]string{`{"item":"tea","quantity":1}`, `{"item":"tea","quantity":1,"note":null}`, `{"item":"tea","quantity":1,"parts":[{"item":"x","quantity":2}]}`},
			[]string{`{}`, `{"item":null,"quantity":1}`, `{"item":"tea","quantity":0}`, `{"item":"tea","quantity":"1"}`, `{"item":"tea","quantity":1,"parts":[{"item":"x"}]}`, `{"item":"tea","quantity":100}`}},
		{"shop30.yaml", "schemas/list.query.json",
			[]string{`{}`, `{"limit":5}`, `{"tag":["a","b"]}`},
			[]string{`{"limit":0}`, `{"other":"x"}`, `{"tag":["c"]}`}},
		{"shop30.yaml", "schemas/show.path.json", []string{`{"id":"7e57d004-2b97-4e7a-b45f-5387367791cd"}`}, []string{`{"id":"x"}`, `{}`}},
		{"shop30.yaml", "schemas/show.header.json", []string{`{"x-trace":"abc","accept":"*/*"}`}, []string{`{"x-trace":"a b"}`, `{}`}},
		{"shop31.json", "schemas/post-v1-things.body.json",
			[]string{`{"kind":"a"}`, `{"kind":null}`, `{"kind":"a","none":null}`, `{"kind":"a","next":{"kind":"b"}}`},
			[]string{`{"kind":1}`, `{"kind":"a","none":1}`, `{"kind":"a","big":9007199254740992}`, `{"kind":"a","next":{"kind":2}}`, `{"kind":"a","other":1}`}},
	} {
		im := imported(t, file(t, c.doc), options())
		if im.Files[c.path] == "" {
			t.Fatalf("%s: no %s; notes:\n%s\nmanifest:\n%s", c.doc, c.path, strings.Join(im.Notes, "\n"), im.Files[manifest.FileName])
		}
		for _, v := range c.good {
			if !fits(t, im, c.path, v) {
				t.Errorf("%s %s refuses %s\n%s", c.doc, c.path, v, im.Files[c.path])
			}
		}
		for _, v := range c.bad {
			if fits(t, im, c.path, v) {
				t.Errorf("%s %s lets in %s\n%s", c.doc, c.path, v, im.Files[c.path])
			}
		}
	}
}

func TestImportAccess(t *testing.T) {
	until, err := manifest.ParseDate("2099-01-01")
	if err != nil {
		t.Fatal(err)
	}
	public := &manifest.Public{Reason: "a test", Until: until}
	doc := func(schemes, security string) string {
		return `{"openapi":"3.1.0","info":{"title":"T","version":"1"},"components":{"securitySchemes":{` + schemes + `}},
			"paths":{"/x":{"get":{"security":` + security + `,"responses":{"200":{"description":"ok"}}}}}}`
	}
	for _, c := range []struct {
		name, schemes, security string
		set                     func(*Options)
		kind, note              string
	}{
		{"open, with no word of it", ``, `[]`, nil, bawn.AccessKey, "--public-reason"},
		{"open", ``, `[]`, func(o *Options) { o.Public = public }, bawn.AccessPublic, ""},
		{"optional", `"k":{"type":"apiKey","in":"header","name":"X-Key"}`, `[{"k":[]},{}]`, func(o *Options) { o.Public = public }, bawn.AccessPublic, ""},
		{"an API key", `"k":{"type":"apiKey","in":"header","name":"X-Key"}`, `[{"k":[]}]`, func(o *Options) { o.Public = public }, bawn.AccessKey, "API key in the header"},
		{"basic", `"k":{"type":"http","scheme":"basic"}`, `[{"k":[]}]`, nil, bawn.AccessKey, "http basic"},
		{"OpenID Connect", `"k":{"type":"openIdConnect","openIdConnectUrl":"https://id.example.com/.well-known/openid-configuration"}`, `[{"k":[]}]`, func(o *Options) { o.Audience = "shop" }, bawn.AccessJWT, ""},
		{"OpenID Connect for nobody", `"k":{"type":"openIdConnect","openIdConnectUrl":"https://id.example.com/.well-known/openid-configuration"}`, `[{"k":[]}]`, nil, bawn.AccessKey, "--audience"},
		{"OpenID Connect in the clear", `"k":{"type":"openIdConnect","openIdConnectUrl":"http://id.example.com/.well-known/openid-configuration"}`, `[{"k":[]}]`, func(o *Options) { o.Audience = "shop" }, bawn.AccessKey, "not at https"},
		{"OAuth 2.0", `"k":{"type":"oauth2","flows":{"clientCredentials":{"tokenUrl":"https://id.example.com/t","scopes":{"a":"b"}}}}`, `[{"k":["a"]}]`,
			func(o *Options) { o.Issuer, o.Audience = "https://id.example.com", "shop" }, bawn.AccessJWT, "the scopes of k"},
		{"OAuth 2.0 of nobody", `"k":{"type":"oauth2","flows":{"clientCredentials":{"tokenUrl":"https://id.example.com/t","scopes":{}}}}`, `[{"k":[]}]`, nil, bawn.AccessKey, "--issuer"},
		{"two at once", `"a":{"type":"http","scheme":"bearer","bearerFormat":"JWT"},"b":{"type":"apiKey","in":"query","name":"k"}`, `[{"a":[],"b":[]}]`,
			func(o *Options) { o.Issuer, o.Audience = "https://id.example.com", "shop" }, bawn.AccessKey, "a and b"},
		{"mutual TLS", `"k":{"type":"mutualTLS"}`, `[{"k":[]}]`, nil, bawn.AccessKey, "access.mtls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options()
			if c.set != nil {
				c.set(&o)
			}
			im := imported(t, doc(c.schemes, c.security), o)
			f, err := manifest.Parse("bawn.yaml", []byte(im.Files[manifest.FileName]))
			if err != nil {
				t.Fatal(err)
			}
			v, err := manifest.Compile(im.Function, f.Functions[im.Function])
			if err != nil {
				t.Fatal(err)
			}
			r := v.Perimeter.Ingress.HTTP[0]
			if got := r.Access.Kind(); got != c.kind {
				t.Errorf("access %s, want %s; notes: %q", got, c.kind, im.Notes)
			}
			if r.Input == nil || !r.Input.None {
				t.Errorf("input %+v, want none", r.Input)
			}
			notes := strings.Join(im.Notes, "\n")
			if c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
		})
	}
}

// TestImportTells shows that nothing is left out in silence.
func TestImportTells(t *testing.T) {
	im := imported(t, file(t, "odd.yaml"), options())
	notes := strings.Join(im.Notes, "\n")
	for _, want := range []string{
		"/files/{name}.zip is left out", "TRACE /odd is left out", `the parameter "thing.id" is called thing-id`,
		"takes no body: no schema can be about multipart/form-data", `the pattern "(?=a)b" is left out`, `the cookie "c" is left out`,
		`the parameter "filter" is left out: it is an object`, `the parameter "ids" is any text`, "webhooks are left out",
		"the body must be there", "the body as application/xml is left out beside application/json",
	} {
		if !strings.Contains(notes, want) {
			t.Errorf("not told: %s\n%s", want, notes)
		}
	}
	for _, r := range []string{"POST /odd", "PUT /odd", "GET /things/{thing-id}"} {
		if !slices.Contains(im.Routes, r) {
			t.Errorf("no route %s among %q", r, im.Routes)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	head := `{"openapi":"3.0.3","info":{"title":"T","version":"1"},"paths":`
	for name, doc := range map[string]string{
		"empty":                "",
		"no mapping":           "[]",
		"Swagger":              `{"swagger":"2.0"}`,
		"another version":      `{"openapi":"4.0.0"}`,
		"a name twice":         `{"openapi":"3.0.3","openapi":"3.0.3"}`,
		"a name twice in YAML": "openapi: 3.0.3\nopenapi: 3.0.3\n",
		"no OpenAPI":           `{"openapi":"3.0.3"}`,
		"a file":               head + `{"/x":{"$ref":"/etc/passwd"}}}`,
		"another host":         head + `{"/x":{"get":{"responses":{"200":{"description":"x"}},"parameters":[{"$ref":"http://127.0.0.1:1/x"}]}}}}`,
		"nowhere":              head + `{"/x":{"get":{"responses":{"200":{"description":"x"}},"parameters":[{"$ref":"#/components/parameters/no"}]}}}}`,
		"deep":                 head + strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat(`}`, 100) + `}`,
		"large":                strings.Repeat(" ", MaxBytes+1),
		"aliases": "openapi: 3.0.3\na: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
			"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
		"an alias of itself": "openapi: 3.0.3\na: &a [*a]\n",
		"no paths":           head + `{}}`,
	} {
		if im, err := Read(context.Background(), []byte(doc), options()); err == nil {
			t.Errorf("%s: imported: %+v", name, im)
		}
	}
}

// TestImportTooLarge shows that a schema which is too large is not used, and one that
// only describes much is.
func TestImportTooLarge(t *testing.T) {
	doc := func(properties string) string {
		return `{"openapi":"3.1.0","info":{"title":"T","version":"1"},"paths":{"/x":{"post":{"operationId":"x","requestBody":{"required":true,
			"content":{"application/json":{"schema":{"type":"object","properties":{` + properties + `}}}}},"responses":{"200":{"description":"ok"}}}}}}`
	}
	im := imported(t, doc(`"a":{"type":"integer","description":"`+strings.Repeat("x", bawn.MaxSchemaBytes)+`"}`), options())
	if fits(t, im, "schemas/x.body.json", `{"a":"x"}`) {
		t.Error("the schema without its descriptions does not hold")
	}
	var all []string
	for i := range 5000 {
		all = append(all, fmt.Sprintf(`"property%d":{"type":"integer"}`, i))
	}
	im = imported(t, doc(strings.Join(all, ",")), options())
	if im.Files["schemas/x.body.json"] != "" || !strings.Contains(strings.Join(im.Notes, "\n"), "the schema is left out") || !strings.Contains(im.Files[manifest.FileName], "input: none") {
		t.Errorf("%q\n%s", im.Notes, im.Files[manifest.FileName])
	}
}

// FuzzImport looks for documents that take forever, or make a manifest that no deploy
// reads: Read reads it again itself.
func FuzzImport(f *testing.F) {
	for _, name := range []string{"shop30.yaml", "shop31.json", "odd.yaml"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		im, err := Read(ctx, data, options())
		if err != nil {
			if strings.Contains(err.Error(), "too much work") || strings.Contains(err.Error(), manifest.FileName+":") {
				t.Fatal(err)
			}
			return
		}
		for path, text := range im.Files {
			if path != manifest.FileName && !json.Valid([]byte(text)) {
				t.Fatalf("%s is no JSON: %s", path, text)
			}
		}
	})
}
