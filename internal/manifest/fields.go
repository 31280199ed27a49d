package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"bawn.dev/bawn"
	"go.yaml.in/yaml/v3"
)

// This file is the one place that says which fields there are. Reading, the
// checks and the published schema all follow from these tables.

const (
	maxText        = 1024 // bytes of a description
	maxOwner       = 128
	maxReason      = 256
	maxHandler     = 256
	maxCode        = 1024
	maxRoutes      = 50
	maxCallers     = 100
	maxCalled      = 100 // functions that a function may call
	minTimeout     = Duration(10 * time.Millisecond)
	minMaxAge      = Duration(time.Second)
	maxMaxAge      = Duration(7 * 24 * time.Hour)
	maxInvocations = 1000000
	minTmp         = 1 << 20
)

// object is a mapping that fills a T: its fields, and the rules between them.
type object[T any] struct {
	doc     string
	fields  []field[T]
	rules   func(t *T, has func(field string) bool, say func(field string, err error))
	strayed func(field string) error // what to say of a field that is not known, or nil for the usual
}

// field is one field of an object.
type field[T any] struct {
	name, doc string
	required  bool
	schema    map[string]any
	read      func(d *decoder, n *yaml.Node, at string, t *T)
}

// value is one kind of value: how it is read and how the schema describes it.
type value[V any] struct {
	schema map[string]any
	read   func(d *decoder, n *yaml.Node, at string) (V, bool)
}

// is makes the field name of T from a value and the place it is kept in.
func is[T, V any](name, doc string, v value[V], place func(*T) *V) field[T] {
	return field[T]{name: name, doc: doc, schema: v.schema, read: func(d *decoder, n *yaml.Node, at string, t *T) {
		if got, ok := v.read(d, n, at); ok {
			*place(t) = got
		}
	}}
}

func (f field[T]) must() field[T] { f.required = true; return f }

// read fills t from n and reports whether all of it could be read.
func (o object[T]) read(d *decoder, n *yaml.Node, at string, t *T) bool {
	before := len(d.problems) + d.dropped
	if n.Kind != yaml.MappingNode {
		d.report(n, at, fmt.Sprintf("%s must be a mapping, not %s", o.doc, kindName(n)), "")
		return false
	}
	names := make([]string, len(o.fields))
	for i, f := range o.fields {
		names[i] = f.name
	}
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		here := join(at, quoteless(key.Value))
		k := slices.Index(names, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			d.report(key, at, fmt.Sprintf("a field's name must be text, not %s", kindName(key)), "")
		case k < 0:
			err := error(&wrong{fmt.Sprintf("unknown field %s; %s has %s", quote(key.Value), o.doc, list(names)), nearest(key.Value, names)})
			if o.strayed != nil {
				if better := o.strayed(key.Value); better != nil {
					err = better
				}
			}
			d.reject(key, here, err)
		case seen[key.Value] != nil:
			d.report(key, here, fmt.Sprintf("field %s is given a second time%s", quote(key.Value), first(seen[key.Value])), "")
		default:
			seen[key.Value] = key
			o.fields[k].read(d, val, here, t)
		}
	}
	for _, f := range o.fields {
		if f.required && seen[f.name] == nil {
			d.report(n, at, fmt.Sprintf("%s needs the field %q: %s", o.doc, f.name, f.doc), "")
		}
	}
	ok := before == len(d.problems)+d.dropped
	if o.rules != nil && ok { // rules speak of values that were read
		o.rules(t, func(name string) bool { return seen[name] != nil }, func(name string, err error) {
			place := n
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == name {
					place = n.Content[i+1]
				}
			}
			d.reject(place, join(at, name), err)
			ok = false
		})
	}
	return ok
}

// value makes an object the value of a field.
func (o object[T]) value() value[T] {
	return value[T]{schema: o.schema(), read: func(d *decoder, n *yaml.Node, at string) (T, bool) {
		var t T
		return t, o.read(d, n, at, &t)
	}}
}

// into makes the field name of T from an object that is kept in T. It keeps
// what could be read even where some could not.
func into[T, V any](name, doc string, o object[V], place func(*T) *V) field[T] {
	return field[T]{name: name, doc: doc, schema: o.schema(), read: func(d *decoder, n *yaml.Node, at string, t *T) {
		o.read(d, n, at, place(t))
	}}
}

func first(n *yaml.Node) string {
	if n.Line == 0 {
		return ""
	}
	return fmt.Sprintf("; the first is on line %d", n.Line)
}

func join(at, name string) string {
	switch {
	case at == "":
		return name
	case name == "":
		return at
	}
	return at + "." + name
}

// quoteless bounds a name for a path of names.
func quoteless(s string) string {
	q := quote(s)
	if inner, ok := strings.CutSuffix(strings.TrimPrefix(q, `"`), `"`); ok {
		return inner
	}
	return strings.TrimPrefix(q, `"`)
}

func list(words []string) string {
	return strings.Join(words, ", ")
}

// manifestFields describes a whole file.
func manifestFields() object[File] {
	function := functionFields()
	schema := map[string]any{
		"type": "object", "minProperties": 1, "maxProperties": maxFunctions,
		"propertyNames":        map[string]any{"pattern": namePattern},
		"additionalProperties": map[string]any{"$ref": "#/$defs/function"},
	}
	read := func(d *decoder, n *yaml.Node, at string, f *File) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("functions must be a mapping from names to functions, not %s", kindName(n)), "")
			return
		}
		if len(n.Content) == 0 {
			d.report(n, at, "there is no function here", "")
		}
		if len(n.Content)/2 > maxFunctions {
			d.report(n, at, fmt.Sprintf("%d functions are here, at most %d are allowed", len(n.Content)/2, maxFunctions), "")
			return
		}
		f.Functions = map[string]Function{}
		claimed := map[string]string{} // method and shape to function
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
				d.report(key, at, fmt.Sprintf("a function's name must be text, not %s", kindName(key)), "")
				continue
			}
			if err := bawn.CheckName("function", key.Value); err != nil {
				d.reject(key, here, &wrong{messageOf(err), rename(key.Value)})
				continue
			}
			if _, twice := f.Functions[key.Value]; twice {
				d.report(key, here, fmt.Sprintf("function %q is given a second time", key.Value), "")
				continue
			}
			var fn Function
			function.read(d, val, here, &fn)
			f.Functions[key.Value] = fn
			f.Order = append(f.Order, key.Value)
			for _, r := range fn.Ingress.HTTP {
				for _, place := range r.places() {
					for _, m := range Overlapping(r.Method) {
						if other, taken := claimed[m+" "+place]; taken && other != key.Value {
							d.report(key, here, fmt.Sprintf("functions %q and %q both claim %s %s", other, key.Value, r.Method, r.Path), "")
							break
						}
					}
					claimed[r.Method+" "+place] = key.Value
				}
			}
		}
	}
	return object[File]{doc: "the manifest", fields: []field[File]{
		{name: "functions", doc: "names to functions", required: true, schema: schema, read: read},
	}}
}

// Overlapping lists the methods of other routes that match a request which a
// route with method m matches.
func Overlapping(m string) []string {
	if m == "ANY" {
		return Methods()
	}
	return []string{m, "ANY"}
}

// functionFields describes one function.
func functionFields() object[Function] {
	interior := interiorFields()
	ingress := ingressFields()
	egress := egressFields()
	evidence := evidenceFields()
	return object[Function]{
		doc: "a function",
		fields: []field[Function]{
			is("runtime", "what runs the code", oneOf("runtime", bawn.Runtimes()), func(f *Function) *bawn.Runtime { return &f.Runtime }).must(),
			is("handler", "python and nodejs: file.function, such as app.handler; wasm: the module, main.wasm if left out; provided: passed on as _HANDLER", text("handler", 1, maxHandler), func(f *Function) *string { return &f.Handler }),
			is("code", "the folder or zip that holds the code, relative to this file; . if left out", text("code", 1, maxCode), func(f *Function) *string { return &f.Code }),
			is("description", "what the function is for", text("description", 0, maxText), func(f *Function) *string { return &f.Description }),
			is("owner", "the person or team to ask", text("owner", 1, maxOwner), func(f *Function) *string { return &f.Owner }).must(),
			is("labels", "of the data that the function may hold, such as pii; a guardrail can keep labelled data from going where no such label is", labels(), func(f *Function) *[]string { return &f.Labels }),
			is("environment", "variables of the function; not for secrets", environment(), func(f *Function) *map[string]string { return &f.Environment }),
			into("ingress", "who and what may call the function; nothing else may", ingress, func(f *Function) *Ingress { return &f.Ingress }),
			into("interior", "what the sandbox gives the function", interior, func(f *Function) *Interior { return &f.Interior }),
			into("egress", "what the function may reach, and what may leave it; nothing else may be reached", egress, func(f *Function) *Egress { return &f.Egress }),
			into("evidence", "what is kept about the function", evidence, func(f *Function) *Evidence { return &f.Evidence }),
		},
		rules: func(f *Function, has func(string) bool, say func(string, error)) {
			if err := checkHandler(f.Runtime, f.Handler); err != nil {
				say("handler", err)
			}
			if most, n := or(f.Interior.Concurrency, bawn.DefaultConcurrency), f.Ingress.Limits.Concurrency; n > most {
				say("ingress", &wrong{fmt.Sprintf("limits.concurrency %d is more than interior.concurrency %d, and no more than that run at one time", n, most), ""})
			}
		},
		strayed: func(name string) error {
			if name == "tests" {
				return &wrong{"tests stand in a file of their own beside this one, " + TestFileName, ""}
			}
			for block, names := range map[string][]string{"ingress": fieldNames(ingress), "interior": fieldNames(interior), "egress": fieldNames(egress), "evidence": fieldNames(evidence)} {
				if slices.Contains(names, name) {
					return &wrong{fmt.Sprintf("field %q belongs under %s", name, block), ""}
				}
			}
			return nil
		},
	}
}

func fieldNames[T any](o object[T]) []string {
	var names []string
	for _, f := range o.fields {
		names = append(names, f.name)
	}
	return names
}

func ingressFields() object[Ingress] {
	route := object[Route]{
		doc: "a route",
		fields: slices.Concat([]field[Route]{
			is("method", "an HTTP method, or ANY for all of them", oneOf("method", Methods()), func(r *Route) *string { return &r.Method }).must(),
			is("path", "begins with /; {name} matches one segment, a last {name+} the rest", routePath(), func(r *Route) *string { return &r.Path }).must(),
			is("access", "what a caller shows: key, also when left out, for an API key; or another kind of access", access(), func(r *Route) *Access { return &r.Access }),
			is("input", "what a request may bring: none, a schema's file, {schema: …, query: …, path: …, header: …} or {any: {reason: …, until: YEAR-MONTH-DAY}}", input(false), func(r *Route) *Input { return &r.Input }),
			is("inspect", "how text is searched for attacks: off, detect, block, or {mode, level, exclude}; block where a public route takes text, else off", inspection(), func(r *Route) **Inspection { return &r.Inspect }),
			into("limits", "how often this route may be called, beside the function's own limits", routeLimitsFields(), func(r *Route) *Limits { return &r.Limits }),
		}, webFields()),
	}
	return object[Ingress]{
		doc: "ingress",
		fields: []field[Ingress]{
			is("http", "the routes over HTTP", listOf("http", maxRoutes, route.value()), func(i *Ingress) *[]Route { return &i.HTTP }),
			is("callers", "who may call beside the routes' own access: functions of the same tenant, which must name this one in egress.functions; role:NAME for who has a role; anyone for everybody on whose behalf one of those functions calls",
				listOf("callers", maxCallers, caller()), func(i *Ingress) *[]string { return &i.Callers }),
			into("event", "what an event must look like that comes by name and not by a route, and what is looked at in it", eventFields(), func(i *Ingress) *Event { return &i.Event }),
			into("limits", "how often, and how often at one time, the function may be called", limitsFields(), func(i *Ingress) *Limits { return &i.Limits }),
			into("budget", "what calls may use in an hour, a day or a month of UTC, each amount for itself; a call that would pass one is refused", budgetFields(), func(i *Ingress) *Budget { return &i.Budget }),
		},
		rules: func(i *Ingress, has func(string) bool, say func(string, error)) {
			seen := map[string]bool{}
			for _, r := range i.HTTP {
				for _, place := range r.places() {
					key := r.Method + " " + place
					if seen[key] {
						say("http", &wrong{Message: fmt.Sprintf("two routes are %s %s", r.Method, r.Path)})
					}
					seen[key] = true
				}
			}
			if s := twice(i.Callers); s != "" {
				say("callers", &wrong{Message: fmt.Sprintf("callers names %s a second time", quote(s))})
			}
		},
	}
}

// twice returns the first word that stands in words a second time, or "".
func twice(words []string) string {
	for i, w := range words {
		if slices.Contains(words[:i], w) {
			return w
		}
	}
	return ""
}

func interiorFields() object[Interior] {
	return object[Interior]{
		doc: "interior",
		fields: []field[Interior]{
			is("memory", fmt.Sprintf("%s if left out; /tmp included", Size(bawn.DefaultMemory)), size("memory", bawn.MinMemory, bawn.MaxMemory), func(i *Interior) *Size { return &i.Memory }),
			is("cpu", fmt.Sprintf("cores; %g if left out", bawn.DefaultCPU), number("cpu", bawn.MinCPU, bawn.MaxCPU), func(i *Interior) *float64 { return &i.CPU }),
			is("timeout", fmt.Sprintf("of one invocation; %s if left out", Duration(bawn.DefaultTimeout)), duration("timeout", minTimeout, Duration(bawn.MaxTimeout)), func(i *Interior) *Duration { return &i.Timeout }),
			is("tmp", fmt.Sprintf("size of /tmp; %s if left out, but at most half of memory", Size(bawn.DefaultTmp)), size("tmp", minTmp, bawn.MaxTmp), func(i *Interior) *Size { return &i.Tmp }),
			is("pids", fmt.Sprintf("processes and threads; %d if left out", bawn.DefaultPIDs), whole("pids", bawn.MinPIDs, bawn.MaxPIDs), func(i *Interior) *int { return &i.PIDs }),
			is("concurrency", fmt.Sprintf("calls at one time; %d if left out", bawn.DefaultConcurrency), whole("concurrency", 1, bawn.MaxConcurrency), func(i *Interior) *int { return &i.Concurrency }),
			is("exec", "whether the function may start other executables; false if left out", boolean("exec"), func(i *Interior) *bool { return &i.Exec }),
			is("reuse", "whether an instance serves more than one invocation; never if left out", reuse(), func(i *Interior) *Reuse { return &i.Reuse }),
		},
		rules: func(i *Interior, has func(string) bool, say func(string, error)) {
			memory := i.Memory
			if memory == 0 {
				memory = bawn.DefaultMemory
			}
			if i.Tmp > memory {
				say("tmp", &wrong{Message: fmt.Sprintf("tmp %s is more than memory %s, which /tmp counts towards", i.Tmp, memory)})
			}
		},
	}
}

func evidenceFields() object[Evidence] {
	return object[Evidence]{doc: "evidence", fields: []field[Evidence]{
		is("logRetention", fmt.Sprintf("for how long log lines are kept; %s if left out", Duration(bawn.DefaultLogRetention)), duration("logRetention", Duration(bawn.MinLogRetention), Duration(bawn.MaxLogRetention)), func(e *Evidence) *Duration { return &e.LogRetention }),
	}}
}

// scalar returns n's text if n is one value of one of the given tags.
func scalar(d *decoder, n *yaml.Node, at, want string, tags ...string) (string, bool) {
	if n.Kind == yaml.ScalarNode && slices.Contains(tags, n.ShortTag()) {
		return n.Value, true
	}
	suggestion := ""
	if n.Kind == yaml.ScalarNode && slices.Contains(tags, "!!str") && n.ShortTag() != "!!null" && n.Value != "" && len(n.Value) < 60 {
		suggestion = strconv.Quote(n.Value)
	}
	d.report(n, at, fmt.Sprintf("%s must be %s, not %s", at[strings.LastIndexByte(at, '.')+1:], want, kindName(n)), suggestion)
	return "", false
}

// text is one line or more of printable text with at least least characters
// that are not blank.
func text(name string, least, most int) value[string] {
	schema := map[string]any{"type": "string", "maxLength": most}
	if least > 0 {
		schema["minLength"], schema["pattern"] = least, `\S`
	}
	return value[string]{schema, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "text", "!!str")
		if !ok {
			return "", false
		}
		switch {
		case len(strings.TrimSpace(s)) < least:
			d.report(n, at, name+" is empty", "")
		case len(s) > most:
			d.report(n, at, fmt.Sprintf("%s has %d bytes, at most %d are allowed", name, len(s), most), "")
		case !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return unicode.IsControl(c) && (c != '\n' || least > 0) }):
			d.report(n, at, fmt.Sprintf("%s %s has a character that cannot be printed", name, quote(s)), "")
		default:
			return s, true
		}
		return "", false
	}}
}

func oneOf[S ~string](name string, all []S) value[S] {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = string(s)
	}
	return value[S]{map[string]any{"enum": words}, func(d *decoder, n *yaml.Node, at string) (S, bool) {
		s, ok := scalar(d, n, at, "one of "+list(words), "!!str")
		if ok && !slices.Contains(words, s) {
			d.report(n, at, fmt.Sprintf("unknown %s %s; there are %s", name, quote(s), list(words)), nearest(s, words))
			ok = false
		}
		return S(s), ok
	}}
}

func size(name string, least, most Size) value[Size] {
	return value[Size]{map[string]any{"type": "string", "pattern": sizePattern, "examples": []any{Size(bawn.DefaultMemory).String()}},
		func(d *decoder, n *yaml.Node, at string) (Size, bool) {
			// A number is read too, so that the message can name the unit.
			s, ok := scalar(d, n, at, "a size such as 256MiB", "!!str", "!!int", "!!float")
			if !ok {
				return 0, false
			}
			return bounded(d, n, at, name, s, ParseSize, least, most)
		}}
}

func duration(name string, least, most Duration) value[Duration] {
	return value[Duration]{map[string]any{"type": "string", "pattern": durationPattern, "examples": []any{"10s", "7d"}},
		func(d *decoder, n *yaml.Node, at string) (Duration, bool) {
			s, ok := scalar(d, n, at, "a duration such as 10s", "!!str", "!!int", "!!float")
			if !ok {
				return 0, false
			}
			return bounded(d, n, at, name, s, ParseDuration, least, most)
		}}
}

func bounded[V interface {
	~int64
	String() string
}](d *decoder, n *yaml.Node, at, name, s string, parse func(string) (V, error), least, most V) (V, bool) {
	v, err := parse(s)
	switch {
	case err != nil:
		d.reject(n, at, err)
	case v < least:
		d.report(n, at, fmt.Sprintf("%s %s is too little, at least %s is needed", name, s, least), "")
	case v > most:
		d.report(n, at, fmt.Sprintf("%s %s is too much, at most %s is allowed", name, s, most), "")
	default:
		return v, true
	}
	return 0, false
}

func number(name string, least, most float64) value[float64] {
	return value[float64]{map[string]any{"type": "number", "minimum": least, "maximum": most},
		func(d *decoder, n *yaml.Node, at string) (float64, bool) {
			s, ok := scalar(d, n, at, "a number", "!!int", "!!float")
			if !ok {
				return 0, false
			}
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || math.IsNaN(v) || v < least || v > most {
				d.report(n, at, fmt.Sprintf("%s %s must be a number from %g to %g", name, quoteless(s), least, most), "")
				return 0, false
			}
			return v, true
		}}
}

func whole(name string, least, most int) value[int] {
	return value[int]{map[string]any{"type": "integer", "minimum": least, "maximum": most},
		func(d *decoder, n *yaml.Node, at string) (int, bool) {
			s, ok := scalar(d, n, at, "a whole number", "!!int")
			if !ok {
				return 0, false
			}
			v, err := strconv.Atoi(s)
			if err != nil || v < least || v > most {
				d.report(n, at, fmt.Sprintf("%s %s must be a whole number from %d to %d", name, quoteless(s), least, most), "")
				return 0, false
			}
			return v, true
		}}
}

func boolean(name string) value[bool] {
	return value[bool]{map[string]any{"type": "boolean"}, func(d *decoder, n *yaml.Node, at string) (bool, bool) {
		s, ok := scalar(d, n, at, "true or false", "!!bool")
		if ok && s != "true" && s != "false" {
			d.report(n, at, fmt.Sprintf("%s must be true or false, not %s", name, quote(s)), strings.ToLower(s))
			ok = false
		}
		return s == "true", ok
	}}
}

func date(name string) value[Date] {
	return value[Date]{map[string]any{"type": "string", "format": "date", "pattern": datePattern},
		func(d *decoder, n *yaml.Node, at string) (Date, bool) {
			s, ok := scalar(d, n, at, "a date such as 2027-06-30", "!!timestamp", "!!str")
			if !ok {
				return Date{}, false
			}
			v, err := ParseDate(s)
			if err != nil {
				d.reject(n, at, err)
			}
			return v, err == nil
		}}
}

func routePath() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": "^/", "maxLength": maxRoutePath},
		func(d *decoder, n *yaml.Node, at string) (string, bool) {
			s, ok := scalar(d, n, at, "text", "!!str")
			if !ok {
				return "", false
			}
			if err := CheckPath(s); err != nil {
				d.reject(n, at, err)
				return "", false
			}
			return s, true
		}}
}

// functionName is the name of a function of the same tenant.
func functionName() value[string] {
	return value[string]{map[string]any{"type": "string", "pattern": namePattern}, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		s, ok := scalar(d, n, at, "a function's name", "!!str")
		if !ok {
			return "", false
		}
		if err := bawn.CheckName("function", s); err != nil {
			better := ""
			if !strings.Contains(s, "/") { // TENANT/FUNCTION: there is no way into another tenant
				better = rename(s)
			}
			d.reject(n, at, &wrong{messageOf(err), better})
			return "", false
		}
		return s, true
	}}
}

// caller is an entry of ingress.callers. "anyone" reads like a function's name
// and is none: a function that is called so cannot be let in.
func caller() value[string] {
	function := functionName()
	schema := map[string]any{"type": "string", "pattern": callerPattern}
	return value[string]{schema, func(d *decoder, n *yaml.Node, at string) (string, bool) {
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
			if role, ok := strings.CutPrefix(n.Value, bawn.RoleCaller); ok {
				if err := bawn.CheckName("role", role); err != nil {
					s := ""
					if better := rename(role); better != "" {
						s = bawn.RoleCaller + better
					}
					d.reject(n, at, &wrong{messageOf(err), s})
					return "", false
				}
				return n.Value, true
			}
		}
		return function.read(d, n, at)
	}}
}

func listOf[V any](name string, most int, v value[V]) value[[]V] {
	return value[[]V]{map[string]any{"type": "array", "maxItems": most, "items": v.schema},
		func(d *decoder, n *yaml.Node, at string) ([]V, bool) {
			if n.Kind != yaml.SequenceNode {
				d.report(n, at, fmt.Sprintf("%s must be a list, not %s", name, kindName(n)), "")
				return nil, false
			}
			if len(n.Content) > most {
				d.report(n, at, fmt.Sprintf("%s has %d entries, at most %d are allowed", name, len(n.Content), most), "")
				return nil, false
			}
			var all []V
			good := true
			for i, c := range n.Content {
				got, ok := v.read(d, c, at+"["+strconv.Itoa(i)+"]")
				all, good = append(all, got), good && ok
			}
			return all, good
		}}
}

// orWord is a value that is either one word or an object.
func orWord[V any](word, want string, o object[V]) value[V] {
	return value[V]{map[string]any{"oneOf": []any{map[string]any{"const": word}, o.schema()}},
		func(d *decoder, n *yaml.Node, at string) (V, bool) {
			var v V
			if n.Kind == yaml.MappingNode {
				ok := o.read(d, n, at, &v)
				return v, ok
			}
			if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && n.Value == word {
				return v, true
			}
			suggestion := ""
			if n.Kind == yaml.ScalarNode {
				suggestion = nearest(n.Value, []string{word})
			}
			d.report(n, at, fmt.Sprintf("%s must be %s, not %s", o.doc, want, kindName(n)), suggestion)
			return v, false
		}}
}

func reuse() value[Reuse] {
	return orWord("never", "never, {invocations: N} or {maxAge: 10m}", object[Reuse]{doc: "reuse", fields: []field[Reuse]{
		is("invocations", "how many invocations an instance serves", whole("invocations", 1, maxInvocations), func(r *Reuse) *int { return &r.Invocations }),
		is("maxAge", "for how long an instance takes new invocations", duration("maxAge", minMaxAge, maxMaxAge), func(r *Reuse) *Duration { return &r.MaxAge }),
	}, rules: func(r *Reuse, has func(string) bool, say func(string, error)) {
		if !has("invocations") && !has("maxAge") {
			say("", &wrong{"reuse says neither invocations nor maxAge", "never"})
		}
	}})
}

const (
	namePattern        = `^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`
	callerPattern      = `^(role:)?[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`
	variablePattern    = `^[A-Za-z_][A-Za-z0-9_]{0,127}$`
	reservedPattern    = `^(_HANDLER|_X_AMZN_.*|_BAWN_.*|BAWN_.*|AWS_LAMBDA_.*|AWS_REGION|AWS_DEFAULT_REGION|AWS_EXECUTION_ENV|AWS_ACCESS_KEY|AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|AWS_ENDPOINT_URL_LAMBDA|LAMBDA_TASK_ROOT|LAMBDA_RUNTIME_DIR)$`
	maxEnvironmentVars = 256
)

var (
	variableExpr = regexp.MustCompile(variablePattern)
	reservedExpr = regexp.MustCompile(reservedPattern)
)

// environment reads names to values. Values are text: a number or a boolean
// that YAML would turn into something else has to be quoted.
func environment() value[map[string]string] {
	schema := map[string]any{
		"type": "object", "maxProperties": maxEnvironmentVars,
		"propertyNames":        map[string]any{"pattern": variablePattern, "not": map[string]any{"pattern": reservedPattern}},
		"additionalProperties": map[string]any{"type": "string"},
	}
	return value[map[string]string]{schema, func(d *decoder, n *yaml.Node, at string) (map[string]string, bool) {
		if n.Kind != yaml.MappingNode {
			d.report(n, at, fmt.Sprintf("environment must be a mapping from names to values, not %s", kindName(n)), "")
			return nil, false
		}
		if len(n.Content)/2 > maxEnvironmentVars {
			d.report(n, at, fmt.Sprintf("environment has %d variables, at most %d are allowed", len(n.Content)/2, maxEnvironmentVars), "")
			return nil, false
		}
		env, good := map[string]string{}, true
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			here := join(at, quoteless(key.Value))
			say := func(n *yaml.Node, format string, args ...any) {
				d.report(n, here, fmt.Sprintf(format, args...), "")
				good = false
			}
			_, twice := env[key.Value]
			switch {
			case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || !variableExpr.MatchString(key.Value):
				say(key, "variable %s is not a name: letters, digits and _, not beginning with a digit, at most 128", quote(key.Value))
				continue
			case reservedExpr.MatchString(key.Value):
				say(key, "variable %s is reserved: Bawn sets it, or keeps it unset", quote(key.Value))
				continue
			case twice:
				say(key, "variable %s is given a second time", quote(key.Value))
				continue
			}
			v, ok := scalar(d, val, here, "text", "!!str")
			good = good && ok
			if ok && (strings.ContainsRune(v, 0) || !utf8.ValidString(v)) {
				say(val, "the value of %s is not text", quote(key.Value))
			}
			env[key.Value] = v
		}
		if raw, err := json.Marshal(env); good && err == nil && len(raw) > bawn.MaxEnvironmentBytes {
			d.report(n, at, fmt.Sprintf("environment has %d bytes as JSON, at most %d are allowed", len(raw), bawn.MaxEnvironmentBytes), "")
			good = false
		}
		return env, good
	}}
}

var (
	pythonHandler = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*\.[A-Za-z_][A-Za-z0-9_]*$`)
	nodeHandler   = regexp.MustCompile(`^([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+(\.[A-Za-z_$][A-Za-z0-9_$]*)+$`)
	wasmHandler   = regexp.MustCompile(`^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\.wasm$`)
)

// checkHandler reports whether h is a handler that runtime can have.
func checkHandler(runtime bawn.Runtime, h string) error {
	switch runtime.Family() {
	case "python":
		if h == "" {
			return &wrong{"a python function needs the field \"handler\": module.function", "app.handler"}
		}
		if !pythonHandler.MatchString(h) {
			return &wrong{fmt.Sprintf("handler %s is not module.function", quote(h)), like(h, ".py")}
		}
	case "nodejs":
		if h == "" {
			return &wrong{"a nodejs function needs the field \"handler\": file.function", "index.handler"}
		}
		if !nodeHandler.MatchString(h) {
			return &wrong{fmt.Sprintf("handler %s is not file.function", quote(h)), like(h, ".js")}
		}
	case "wasm":
		if h != "" && !wasmHandler.MatchString(h) {
			return &wrong{fmt.Sprintf("handler %s is not the name of a .wasm file in the package", quote(h)), "main.wasm"}
		}
	}
	return nil
}

// like guesses a handler from what was written in its place.
func like(h, suffix string) string {
	h = strings.TrimSuffix(strings.TrimPrefix(h, "./"), suffix)
	if guess := h + ".handler"; !strings.Contains(h, ".") && pythonHandler.MatchString(guess) {
		return guess
	}
	if at := strings.LastIndexAny(h, ":#"); at > 0 {
		if guess := h[:at] + "." + h[at+1:]; pythonHandler.MatchString(guess) {
			return guess
		}
	}
	return ""
}

// rename makes a name out of s, or "" if there is not enough of one in it.
func rename(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			b.WriteRune(c)
		case c == '_' || c == ' ' || c == '.' || c == '-':
			b.WriteByte('-')
		}
		if b.Len() == 63 {
			break
		}
	}
	guess := strings.Trim(b.String(), "-")
	if guess == s || bawn.CheckName("function", guess) != nil {
		return ""
	}
	return guess
}

func messageOf(err error) string {
	if e, ok := err.(*bawn.Error); ok {
		return e.Message
	}
	return err.Error()
}

// schema describes o as JSON Schema.
func (o object[T]) schema() map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, f := range o.fields {
		p := maps.Clone(f.schema)
		p["description"] = f.doc
		properties[f.name] = p
		if f.required {
			required = append(required, f.name)
		}
	}
	s := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}
