package ingress

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// Bounds of a request's path. Routes are shorter than this by far.
const (
	maxPathBytes    = 8 << 10
	maxPathSegments = 256
)

// Match is the route that a request's host, method and path lead to.
type Match struct {
	Version *bawn.Version // the live one
	Route   *bawn.Route
	Params  map[string]string // path parameters, decoded; nil if the route has none
}

// An index finds functions by name and by route. It holds what the tables
// hold, by the same pointers, and follows them. Safe for concurrent use.
type index struct {
	changed func(live map[bawn.Runtime]int) // a runtime came into use or went out of it; must not block
	removed func(tenant, function string)   // a function is gone; must not block
	// Whether any live version has its text inspected now. It must not block, nor ask
	// the index; nil: nobody wants to know.
	inspects func(bool)

	mu        sync.RWMutex
	live      map[bawn.Runtime]int // live versions of each runtime
	inspected int                  // live versions that have text inspected
	functions map[functionKey]*entry
	versions  map[string]*bawn.Version // by the table's key
	roots     map[origin]*node
	mtls      clients
}

// An origin is where a route answers: on a domain of its tenant's, or, the zero
// value, on the node's own names, which all tenants share.
type origin struct{ tenant, host string }

// origins lists where a route of tenant answers.
func origins(tenant string, r *bawn.Route) []origin {
	if len(r.Hosts) == 0 {
		return []origin{{}}
	}
	all := make([]origin, len(r.Hosts))
	for i, h := range r.Hosts {
		all[i] = origin{tenant, h}
	}
	return all
}

type functionKey struct{ tenant, name string }

// An entry is one function and what is routed for it.
type entry struct {
	function *bawn.Function
	live     *bawn.Version // nil while its version has not been seen
}

// A node is one segment of the routes' paths.
type node struct {
	literal map[string]*node
	param   *node    // {name}
	here    []target // routes that end here
	rest    []target // {name+}
}

// A target is what a request finds at a node.
type target struct {
	route *bawn.Route
	entry *entry
	names []string // of the parameters, in the path's order
}

func newIndex(changed func(map[bawn.Runtime]int), removed func(tenant, function string)) *index {
	return &index{
		changed: changed, removed: removed,
		live:      make(map[bawn.Runtime]int),
		functions: make(map[functionKey]*entry),
		versions:  make(map[string]*bawn.Version),
		roots:     make(map[origin]*node),
	}
}

// follow fills the index from the tables and keeps it up to date until stop is
// called.
func (x *index) follow(functions *store.Table[bawn.Function], versions *store.Table[bawn.Version]) (stop func()) {
	// Versions first: a function is written after the version it points to.
	stopVersions := versions.Watch(x.setVersion)
	stopFunctions := functions.Watch(x.setFunction)
	return func() {
		stopFunctions()
		stopVersions()
	}
}

// setVersion takes over a change in the table of versions.
func (x *index) setVersion(key string, v *bawn.Version) {
	x.mu.Lock()
	before := len(x.live)
	if v == nil {
		delete(x.versions, key)
	} else {
		x.versions[key] = v
		if e := x.functions[functionKey{v.Tenant, v.Function}]; e != nil && e.live == nil {
			x.link(e)
		}
	}
	x.unlock(before)
}

// unlock ends a change that began with so many runtimes in use.
func (x *index) unlock(before int) {
	var live map[bawn.Runtime]int
	if len(x.live) != before {
		live = maps.Clone(x.live)
	}
	if x.inspects != nil {
		x.inspects(x.inspected > 0)
	}
	x.mu.Unlock()
	if live != nil {
		x.changed(live)
	}
}

// setFunction takes over a change in the table of functions.
func (x *index) setFunction(key string, f *bawn.Function) {
	x.mu.Lock()
	before := len(x.live)
	tenant, name, _ := strings.Cut(key, ".")
	k := functionKey{tenant, name}
	if e := x.functions[k]; e != nil {
		x.unlink(e)
		delete(x.functions, k)
	}
	if f != nil {
		e := &entry{function: f}
		x.functions[k] = e
		x.link(e)
	}
	x.unlock(before)
	if f == nil {
		x.removed(tenant, name)
	}
}

// versionKey is where the table keeps version n of f.
func versionKey(f *bawn.Function, n int) string {
	return f.Tenant + "." + f.Name + "." + strconv.Itoa(n)
}

// link finds e's live version and adds its routes. Needs mu.
func (x *index) link(e *entry) {
	n, ok := e.function.Resolve("")
	if !ok {
		return
	}
	if e.live = x.versions[versionKey(e.function, n)]; e.live == nil {
		return
	}
	x.live[e.live.Runtime]++
	if inspects(e.live) {
		x.inspected++
	}
	for i := range e.live.Perimeter.Ingress.HTTP {
		r := &e.live.Perimeter.Ingress.HTTP[i]
		for _, o := range origins(e.live.Tenant, r) {
			if x.roots[o] == nil {
				x.roots[o] = &node{}
			}
			x.roots[o].add(target{route: r, entry: e})
			x.mtls.count(o, r, 1)
		}
	}
}

// add adds t below n, where its route's path leads.
func (n *node) add(t target) {
	at, tail := n, false
	for s := range strings.SplitSeq(strings.TrimPrefix(t.route.Path, "/"), "/") {
		switch {
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "+}"):
			t.names = append(t.names, s[1:len(s)-2])
			tail = true
		case strings.HasPrefix(s, "{"):
			t.names = append(t.names, strings.Trim(s, "{}"))
			if at.param == nil {
				at.param = &node{}
			}
			at = at.param
		default:
			next := at.literal[s]
			if next == nil {
				if at.literal == nil {
					at.literal = make(map[string]*node)
				}
				next = &node{}
				at.literal[s] = next
			}
			at = next
		}
	}
	if tail {
		at.rest = insert(at.rest, t)
	} else {
		at.here = insert(at.here, t)
	}
}

// insert adds t. Where two functions claim one route, which a deploy refuses
// inside a tenant, the older function keeps it.
func insert(list []target, t target) []target {
	i, _ := slices.BinarySearchFunc(list, t, func(a, b target) int {
		f, g := a.entry.function, b.entry.function
		return cmp.Or(f.CreatedAt.Compare(g.CreatedAt), cmp.Compare(f.Tenant, g.Tenant), cmp.Compare(f.Name, g.Name))
	})
	return slices.Insert(list, i, t)
}

// unlink removes e's routes. Needs mu.
func (x *index) unlink(e *entry) {
	if e.live == nil {
		return
	}
	if x.live[e.live.Runtime]--; x.live[e.live.Runtime] == 0 {
		delete(x.live, e.live.Runtime)
	}
	if inspects(e.live) {
		x.inspected--
	}
	routes := e.live.Perimeter.Ingress.HTTP
	for i := range routes {
		for _, o := range origins(e.live.Tenant, &routes[i]) {
			x.mtls.count(o, &routes[i], -1)
			if root := x.roots[o]; root != nil && root.prune(e) {
				delete(x.roots, o)
			}
		}
	}
	e.live = nil
}

// prune removes e from the tree below n and reports whether n is empty.
func (n *node) prune(e *entry) bool {
	of := func(t target) bool { return t.entry == e }
	n.here, n.rest = slices.DeleteFunc(n.here, of), slices.DeleteFunc(n.rest, of)
	for s, next := range n.literal {
		if next.prune(e) {
			delete(n.literal, s)
		}
	}
	if n.param != nil && n.param.prune(e) {
		n.param = nil
	}
	return len(n.here)+len(n.rest)+len(n.literal) == 0 && n.param == nil
}

// resolve returns the version that ref means, or nil.
func (x *index) resolve(ref bawn.Ref) *bawn.Version {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e := x.functions[functionKey{ref.Tenant, ref.Function}]
	if e == nil {
		return nil
	}
	if ref.Qualifier == "" || ref.Qualifier == bawn.LiveAlias {
		return e.live
	}
	n, ok := e.function.Resolve(ref.Qualifier)
	if !ok {
		return nil
	}
	return x.versions[versionKey(e.function, n)]
}

// match finds the most specific route of an origin for a request: in each segment a literal
// goes before {name}, and that before {name+}; in the same place a method goes
// before ANY. HEAD is answered by GET where nothing else is said. rawPath is as
// it came, still escaped, and has been through [CheckPath].
func (x *index) match(o origin, method, rawPath string) (Match, bool) {
	m := matcher{method: method}
	x.mu.RLock()
	defer x.mu.RUnlock()
	root := x.roots[o]
	if root == nil {
		return Match{}, false
	}
	t := m.find(root, rawPath[1:])
	if t == nil {
		return Match{}, false
	}
	found := Match{Version: t.entry.live, Route: t.route}
	if len(t.names) > 0 {
		found.Params = make(map[string]string, len(t.names))
		for i, name := range t.names {
			found.Params[name] = m.values[i]
		}
	}
	return found, true
}

// A matcher walks the tree for one request. Each node is visited once at most.
type matcher struct {
	method string
	values []string // of the parameters so far
}

func (m *matcher) find(n *node, path string) *target {
	segment, after, more := strings.Cut(path, "/")
	text := decode(segment)
	if next := n.literal[text]; next != nil {
		if t := m.step(next, after, more); t != nil {
			return t
		}
	}
	if n.param != nil && text != "" {
		m.values = append(m.values, text)
		if t := m.step(n.param, after, more); t != nil {
			return t
		}
		m.values = m.values[:len(m.values)-1]
	}
	if len(n.rest) > 0 && path != "" {
		if t := m.pick(n.rest); t != nil {
			m.values = append(m.values, decode(path))
			return t
		}
	}
	return nil
}

func (m *matcher) step(n *node, after string, more bool) *target {
	if more {
		return m.find(n, after)
	}
	return m.pick(n.here)
}

// pick returns the target for the method.
func (m *matcher) pick(list []target) *target {
	methods := [3]string{m.method, "ANY", ""}
	if m.method == "HEAD" {
		methods = [3]string{"HEAD", "GET", "ANY"}
	}
	for _, method := range methods {
		for i := range list {
			if list[i].route.Method == method {
				return &list[i]
			}
		}
	}
	return nil
}

// decode undoes the escapes of a path that CheckPath has accepted.
func decode(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	d, err := url.PathUnescape(s)
	if err != nil {
		return s // CheckPath has seen to it that there is none
	}
	return d
}

// HostName returns the name in a request's Host, in lower case and without the
// port: "" for one that has none, or that is none.
func HostName(host string) string {
	name := host
	if strings.HasPrefix(name, "[") {
		inside, port, ok := strings.Cut(name[1:], "]")
		if !ok || strings.Trim(strings.ToLower(inside), "0123456789abcdef:.") != "" || !isPort(port) {
			return ""
		}
		return strings.ToLower(inside)
	}
	if i := strings.IndexByte(name, ':'); i >= 0 {
		if !isPort(name[i:]) {
			return ""
		}
		name = name[:i]
	}
	if len(name) > bawn.MaxDomainBytes {
		return ""
	}
	lower := true
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			lower = false
		case c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z'):
			return ""
		}
	}
	if lower {
		return name
	}
	return strings.ToLower(name)
}

// isPort reports whether s is a colon with a port, or nothing.
func isPort(s string) bool {
	return s == "" || s[0] == ':' && len(s) <= 6 && strings.Trim(s[1:], "0123456789") == ""
}

// CheckPath reports whether a request's path, still escaped, has one meaning
// only. A path that a proxy, a router and a function could each read in their
// own way is refused, never corrected: "..", ".", an empty segment, a
// backslash, an escaped slash or backslash or control character, a broken
// escape, bytes that should have been escaped, and text that is not UTF-8.
func CheckPath(raw string) error {
	bad := func(why string) error {
		return bawn.Errorf(bawn.CodeInvalid, "route", "the request's path %s", why).
			WithFix("send the path in its plain form")
	}
	switch {
	case raw == "" || raw[0] != '/':
		return bad("does not begin with /")
	case len(raw) > maxPathBytes:
		return bad("is too long")
	case strings.Count(raw, "/") > maxPathSegments:
		return bad("has too many segments")
	}
	escaped := false
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c <= ' ' || c >= 0x7f || c == '\\' || c == '"' || c == '<' || c == '>' || c == '^' || c == '`' || c == '#' || c == '?':
			return bad("has a character that must be escaped")
		case c == '/' && i+1 < len(raw) && raw[i+1] == '/':
			return bad("has an empty segment (//)")
		case c == '%':
			escaped = true
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return bad("has a broken escape")
			}
			d := unhex(raw[i+1])<<4 | unhex(raw[i+2])
			if d == '/' || d == '\\' || d < ' ' || d == 0x7f {
				return bad("escapes a character that has no place in it")
			}
			i += 2
		}
	}
	for s := range strings.SplitSeq(raw[1:], "/") {
		if escaped {
			if s = decode(s); s != strings.ToValidUTF8(s, "") {
				return bad("is not UTF-8")
			}
		}
		if s == "." || s == ".." {
			return bad("has a segment . or ..")
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
