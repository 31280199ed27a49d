// Package openapi makes a manifest's function out of an OpenAPI document: its routes,
// who may use them, and JSON Schemas of what they take. It is for who writes a
// manifest, and no part of a node: documents are somebody else's, and to read one
// costs what it costs.
package openapi

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

const (
	maxRoutes = 50 // of a function
	maxNotes  = 200
)

// Options say what a document does not.
type Options struct {
	Name     string // of the function; "" takes the document's title
	Runtime  bawn.Runtime
	Handler  string
	Code     string
	Owner    string
	Public   *manifest.Public // of routes that the document leaves open; nil asks for a key there
	Issuer   string           // of the tokens of OAuth 2.0, and of JWTs as bearer tokens
	Audience string           // of tokens
}

// Import is what comes out of a document.
type Import struct {
	Function string
	Routes   []string          // method and path
	Files    map[string]string // the manifest and its schemas, by their paths
	Notes    []string          // what was left out or is otherwise than in the document
}

// importer is one import in the making.
type importer struct {
	*converter
	Options
	out  *Import
	left int // notes there was no room for
}

// Read imports a document. What it leaves out lets less through than the document
// says, unless a note says otherwise. The error says what is wrong with the document.
func Read(ctx context.Context, data []byte, o Options) (*Import, error) {
	doc, err := read(ctx, data)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "import", "the document cannot be imported: %s", err.Error())
	}
	im := &importer{Options: o, out: &Import{Files: map[string]string{}}}
	im.converter = &converter{doc: doc, three: strings.HasPrefix(text(doc["openapi"]), "3.0."), good: map[string]bool{}, note: im.note}
	if err := im.all(); err != nil {
		return nil, err
	}
	if im.left > 0 {
		im.out.Notes = append(im.out.Notes, fmt.Sprintf("and %d more", im.left))
	}
	return im.out, nil
}

func (im *importer) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	switch {
	case slices.Contains(im.out.Notes, s):
	case len(im.out.Notes) >= maxNotes:
		im.left++
	default:
		im.out.Notes = append(im.out.Notes, s)
	}
}

func (im *importer) all() error {
	info, _ := im.doc["info"].(map[string]any)
	im.out.Function = im.Name
	if im.Name == "" {
		im.out.Function = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(plain(text(info["title"]), ""), "_", "-")), "-0123456789")
	}
	if bawn.CheckName("function", im.out.Function) != nil {
		return bawn.Errorf(bawn.CodeInvalid, "import", "%s cannot be the name of a function", strconv.Quote(cut(im.out.Function))).
			WithFix("name the function: --name NAME, of letters a-z, digits and '-'")
	}
	routes := im.routes()
	if len(routes) == 0 {
		return bawn.Errorf(bawn.CodeUnprocessable, "import", "the document has no path that can be a route: %s", cmp.Or(cut(strings.Join(im.out.Notes, "; ")), "it has none"))
	}
	var b strings.Builder
	b.WriteString("# Made from an OpenAPI document; what is written here is what holds.\nfunctions:\n  " + im.out.Function + ":\n")
	line := func(name, value string) {
		if value != "" {
			b.WriteString("    " + name + ": " + manifest.Word(value) + "\n")
		}
	}
	if d := text(info["title"]); d != "" && len(d) <= 1024 && !strings.ContainsFunc(d, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		b.WriteString("    description: " + strconv.Quote(d) + "\n")
	}
	line("runtime", string(im.Runtime))
	line("handler", im.Handler)
	line("code", im.Code)
	line("owner", im.Owner)
	b.WriteString("    ingress:\n      http:\n" + strings.Join(routes, ""))
	im.out.Files[manifest.FileName] = b.String()
	return im.verify(b.String())
}

// verify reads the manifest as a deploy does.
func (im *importer) verify(text string) error {
	f, err := manifest.Parse(manifest.FileName, []byte(text))
	if err != nil {
		return err
	}
	fn := f.Functions[im.out.Function]
	if err := fn.ReadFiles(func(path, _ string) ([]byte, error) { return []byte(im.out.Files[path]), nil }); err != nil {
		return err
	}
	_, err = manifest.Compile(im.out.Function, fn)
	return err
}

// methods lists those of a path, in the order in which they are written.
func methods() []string {
	return []string{"get", "head", "post", "put", "patch", "delete", "options"}
}

// routes returns the entries of ingress.http.
func (im *importer) routes() []string {
	paths, _ := im.doc["paths"].(map[string]any)
	prefix := im.prefix()
	var entries []string
	shapes := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		if strings.HasPrefix(name, "x-") {
			continue
		}
		item, err := im.deref(paths[name])
		if err != nil || item == nil {
			im.note("%s is left out: its reference leads nowhere", cut(name))
			continue
		}
		path, renamed, err := im.path(prefix + name)
		if err != nil {
			im.note("%s is left out: %s", cut(name), err)
			continue
		}
		if item["trace"] != nil {
			im.note("TRACE %s is left out: no route has this method", path)
		}
		for _, m := range methods() {
			op, _ := item[m].(map[string]any)
			if op == nil {
				continue
			}
			method := strings.ToUpper(m)
			at := method + " " + path
			switch shape := method + " " + manifest.PathShape(path); {
			case shapes[shape]:
				im.note("%s is left out: another path matches the same requests", at)
				continue
			case len(entries) == maxRoutes:
				im.note("%s is left out: a function has %d routes at most; make a second function of a second document", at, maxRoutes)
				continue
			default:
				shapes[shape] = true
			}
			entry := "        - method: " + method + "\n          path: " + strconv.Quote(path) + "\n"
			if a := im.access(op, at); a != "" {
				entry += "          access: " + a + "\n"
			}
			entry += "          input: " + im.input(item, op, at, fileName(op, at), renamed) + "\n"
			entries = append(entries, entry)
			im.out.Routes = append(im.out.Routes, at)
		}
	}
	if w, _ := im.doc["webhooks"].(map[string]any); len(w) > 0 {
		im.note("webhooks are left out: they say what others take")
	}
	return entries
}

// prefix is the path of the document's server.
func (im *importer) prefix() string {
	servers, _ := im.doc["servers"].([]any)
	if len(servers) == 0 {
		return ""
	}
	first, _ := servers[0].(map[string]any)
	u, err := url.Parse(text(first["url"]))
	if err != nil || strings.ContainsAny(text(first["url"]), "{}") {
		im.note("the server's URL is left out: routes begin where paths do")
		return ""
	}
	if len(servers) > 1 {
		im.note("of %d servers the first one's path is before those of the routes", len(servers))
	}
	return strings.TrimRight(u.Path, "/")
}

// path makes a route's path of one of the document's. renamed are the parameters
// that have other names there.
func (im *importer) path(name string) (path string, renamed map[string]string, err error) {
	if len(name) > 1 && strings.HasSuffix(name, "/") {
		im.note("%s is without the / at its end", cut(name))
		name = strings.TrimRight(name, "/")
	}
	renamed = map[string]string{}
	parts := strings.Split(name, "/")
	for i, p := range parts {
		inner, ok := strings.CutPrefix(p, "{")
		inner, closed := strings.CutSuffix(inner, "}")
		if !ok || !closed {
			continue
		}
		fine := strings.Trim(strings.ReplaceAll(plain(inner, "p"+strconv.Itoa(i)), ".", "_"), "+")
		if fine[0] >= '0' && fine[0] <= '9' {
			fine = "p" + fine
		}
		if fine != inner {
			renamed[inner] = fine
			im.note("%s: the parameter %s is called %s", cut(name), strconv.Quote(cut(inner)), fine)
		}
		parts[i] = "{" + fine + "}"
	}
	path = cmp.Or(strings.Join(parts, "/"), "/")
	return path, renamed, manifest.CheckPath(path)
}

// fileName begins the names of the files of a route.
func fileName(op map[string]any, at string) string {
	if id := plain(text(op["operationId"]), ""); id != "" {
		return id
	}
	return strings.ToLower(plain(at, "route"))
}

// file keeps a schema, and returns its path.
func (im *importer) file(name, part, text string) string {
	path := "schemas/" + name + "." + part + ".json"
	for i := 2; ; i++ {
		if _, taken := im.out.Files[path]; !taken {
			break
		}
		path = "schemas/" + name + "-" + strconv.Itoa(i) + "." + part + ".json"
	}
	im.out.Files[path] = text
	return path
}

// input writes what a route takes.
func (im *importer) input(item, op map[string]any, at, name string, renamed map[string]string) string {
	var parts []string
	add := func(key, part, text string) {
		if text != "" {
			parts = append(parts, key+": "+strconv.Quote(im.file(name, part, text)))
		}
	}
	if body := im.body(op, at); body != nil {
		add("schema", "body", im.text(body, at+": the body"))
	}
	for _, p := range []struct {
		in   string
		what string
	}{{"query", "the query"}, {"path", "the path"}, {"header", "the headers"}} {
		if s := im.parameters(item, op, p.in, at, renamed); s != nil {
			add(p.in, p.in, im.text(s, at+": "+p.what))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// body returns the schema of a request's body; nil if the route takes none.
func (im *importer) body(op map[string]any, at string) any {
	body, err := im.deref(op["requestBody"])
	if err != nil || body == nil {
		return nil
	}
	content, _ := body["content"].(map[string]any)
	best, rank := "", 0
	for _, media := range slices.Sorted(maps.Keys(content)) {
		if r := rankOf(media); r > rank {
			best, rank = media, r
		}
	}
	for _, media := range slices.Sorted(maps.Keys(content)) {
		switch {
		case best == "":
			im.note("%s takes no body: no schema can be about %s; write input: {any: {reason: …, until: …}} to take it", at, cut(media))
		case media != best:
			im.note("%s: the body as %s is left out beside %s", at, cut(media), cut(best))
		}
	}
	if best == "" {
		return nil
	}
	if body["required"] != true {
		im.note("%s: the body must be there, and may be left out by the document", at)
	}
	of, _ := content[best].(map[string]any)
	s, ok := of["schema"]
	if !ok {
		im.note("%s: the document has no schema of the body; the route takes whatever JSON, text or form it is", at)
		s = map[string]any{}
		if rank == 1 {
			s = map[string]any{"type": "string"}
		}
	}
	return s
}

// rankOf says how well a schema can say what is in a body of a media type: not at
// all (0), as a text, as a form, as JSON.
func rankOf(media string) int {
	media = strings.ToLower(strings.TrimSpace(strings.Split(media, ";")[0]))
	switch {
	case media == "application/json":
		return 4
	case strings.HasSuffix(media, "+json"):
		return 3
	case media == "application/x-www-form-urlencoded":
		return 2
	case strings.HasPrefix(media, "text/") && !strings.Contains(media, "*"):
		return 1
	}
	return 0
}

// parameters returns the schema of an object of what stands in one place of a
// request; nil if there is nothing to say of it.
func (im *importer) parameters(item, op map[string]any, in, at string, renamed map[string]string) any {
	all := map[string]map[string]any{}
	for _, level := range []any{item["parameters"], op["parameters"]} {
		list, _ := level.([]any)
		for _, one := range list {
			p, err := im.deref(one)
			if err != nil || p == nil {
				continue
			}
			switch text(p["in"]) {
			case in:
				all[text(p["name"])] = p
			case "cookie":
				im.note("%s: the cookie %s is left out: nothing is held to it", at, strconv.Quote(cut(text(p["name"]))))
			}
		}
	}
	properties, required, telling := map[string]any{}, []any{}, false
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p := all[name]
		key := name
		switch in {
		case "header":
			if key = strings.ToLower(name); key == "accept" || key == "content-type" || key == "authorization" {
				continue // of which a document says that elsewhere
			}
		case "path":
			key = cmp.Or(renamed[name], name)
		}
		s := im.parameter(p, in, at)
		if s == nil {
			continue
		}
		properties[key] = s
		if p["required"] == true || in == "path" {
			required = append(required, key)
		}
		if m, ok := s.(map[string]any); !ok || len(m) != 1 || m["type"] != "string" {
			telling = true
		}
	}
	if len(properties) == 0 || in == "path" && !telling {
		return nil
	}
	out := map[string]any{"type": "object", "properties": properties}
	if len(required) > 0 {
		out["required"] = required
	}
	if in == "query" { // other headers come by themselves
		out["additionalProperties"] = false
	}
	return out
}

// parameter returns the schema of one parameter; nil if it is left out.
func (im *importer) parameter(p map[string]any, in, at string) any {
	what := fmt.Sprintf("%s: the parameter %s", at, strconv.Quote(cut(text(p["name"]))))
	anything := map[string]any{"type": "string"}
	s, ok := p["schema"]
	if !ok {
		im.note("%s is any text: the document says what is in it otherwise than by a schema", what)
		return anything
	}
	m, _ := im.deref(s)
	list := is(m, "array") || m["items"] != nil
	object := is(m, "object") || m["properties"] != nil
	explode, said := p["explode"].(bool)
	form := in == "query" && (text(p["style"]) == "" || text(p["style"]) == "form") && (explode || !said)
	switch {
	case object && in == "query":
		im.note("%s is left out: it is an object, of which a query has no one form", what)
		return nil
	case object, list && !form:
		im.note("%s is any text: what is in it is not looked at, since it is no list of parameters", what)
		return anything
	}
	return s
}

// is reports whether a schema is of a type, among others.
func is(schema map[string]any, kind string) bool {
	if all, ok := schema["type"].([]any); ok {
		return slices.Contains(all, any(kind))
	}
	return text(schema["type"]) == kind
}
