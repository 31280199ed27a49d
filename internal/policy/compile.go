package policy

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"bawn.dev/bawn"
)

// own is what a version's manifest says: whom it may call and what it may reach,
// and who may call it.
type own struct {
	entity  *types.Entity              // the function
	calls   *slice                     // egress: which functions it may call
	reaches map[types.EntityUID]*slice // egress: hosts, databases and secrets, by what they are about
	callers *slice                     // ingress, beside the routes
	routes  map[string]*slice          // ingress, by the route

	mu      sync.RWMutex
	objects map[Object]*types.Entity // what was made of hosts and databases that were wanted
}

// line is one thing that a manifest says, as a rule.
type line struct {
	field string // where in the manifest: "ingress.callers[checkout]"
	route string // of what concerns one route
	text  string // Cedar
}

// webhookSecret ends the field of the secret that webhooks of a route are signed
// with.
const webhookSecret = ".webhook.secret"

// id is how decisions name the rule.
func (l line) id(v *bawn.Version) string { return v.Ref().String() + ":" + l.field }

// lines writes down as Cedar what the manifest of v says. A string of Cedar
// never holds what is not a name, a method or a path that was checked; it is
// quoted all the same.
func lines(v *bawn.Version) []line {
	var all []line
	me := functionUID(v.Tenant, v.Function)
	add := func(field, route, effect, principal, action string, resource types.EntityUID, rest string) {
		all = append(all, line{field, route, fmt.Sprintf("@id(%s)\n@manifest(%s)\n%s (%s, action == Bawn::Action::%q, resource == %s)%s;",
			quoted(v.Ref().String()+":"+field), quoted(field), effect, principal, action, resource.MarshalCedar(), rest)})
	}
	for i := range v.Perimeter.Ingress.HTTP {
		r := &v.Perimeter.Ingress.HTTP[i]
		route, at := routeText(r), fmt.Sprintf("ingress.http[%d].access", i)
		here := "context has route && context.route == " + quoted(route)
		if p := r.Access.Public; p != nil {
			add(at+".public", route, "permit", "principal", "invoke", me,
				fmt.Sprintf("\nwhen { %s && context.public && context.now < datetime(%s) }", here, quoted(p.Until.UTC().Format("2006-01-02T15:04:05.000Z"))))
			continue
		}
		kind := r.Access.Kind()
		if kind == bawn.AccessKey {
			add(at, route, "forbid", "principal is Bawn::Anonymous", "invoke", me, fmt.Sprintf("\nwhen { %s }", here))
			continue
		}
		if w := r.Access.Webhook; w != nil {
			add(at+webhookSecret, "", "permit", "principal == "+string(me.MarshalCedar()), "secret", types.NewEntityUID(typeSecret, types.String(v.Tenant+"/"+w.Secret)), "")
		}
		// Who does not show what the route asks for is let in by no role. Beside that,
		// callers may name some, but not instead of a signature.
		beside := ""
		if r.Access.Own() {
			add(at+"."+kind, route, "permit", "principal", "invoke", me, fmt.Sprintf("\nwhen { %s && context.access == %s }", here, quoted(kind)))
			if roles := rolesOf(v.Perimeter.Ingress.Callers); roles != "" {
				beside = "\nunless { principal in " + roles + " }"
			}
		}
		add(at, route, "forbid", "principal", "invoke", me, fmt.Sprintf("\nwhen { %s && context.access != %s }%s", here, quoted(kind), beside))
	}
	for _, c := range v.Perimeter.Ingress.Callers {
		field := "ingress.callers[" + c + "]"
		role, isRole := strings.CutPrefix(c, bawn.RoleCaller)
		switch {
		case isRole:
			add(field, "", "permit", "principal in "+string(roleUID(bawn.Role(role)).MarshalCedar()), "invoke", me, "")
		case c == bawn.AnyCaller:
			add(field, "", "permit", "principal", "invoke", me, "\nwhen { context has caller && !context.direct }")
		default:
			add(field, "", "permit", "principal == "+string(functionUID(v.Tenant, c).MarshalCedar()), "invoke", me, "")
		}
	}
	for _, f := range v.Perimeter.Egress.Functions {
		add("egress.functions["+f+"]", "", "permit", "principal == "+string(me.MarshalCedar()), "call", functionUID(v.Tenant, f), "")
	}
	reaches(v, func(field, action string, resource types.EntityUID, rest string) {
		add(field, "", "permit", "principal == "+string(me.MarshalCedar()), action, resource, rest)
	})
	return all
}

// rolesOf is the roles among callers as a Cedar set, or "".
func rolesOf(callers []string) string {
	var all []string
	for _, c := range callers {
		if role, ok := strings.CutPrefix(c, bawn.RoleCaller); ok {
			all = append(all, string(roleUID(bawn.Role(role)).MarshalCedar()))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// quoted is s as a Cedar string.
func quoted(s string) string { return string(types.String(s).MarshalCedar()) }

// parse makes rules of lines.
func parse(v *bawn.Version, all []line) ([]rule, error) {
	list := make([]rule, len(all))
	for i, l := range all {
		var p cedar.Policy
		if err := p.UnmarshalCedar([]byte(l.text)); err != nil {
			return nil, bawn.Wrap(err, bawn.CodeUnprocessable, "policy.compile", "what %s says of %s cannot be made a rule", l.field, v.Ref())
		}
		list[i] = rule{l.id(v), &p}
	}
	return list, nil
}

// CheckVersion reports whether the manifest of v compiles to rules that fit the
// schema; control A3. An error has CodeUnprocessable.
func (e *Engine) CheckVersion(v *bawn.Version) error {
	all := lines(v)
	list, err := parse(v, all)
	if err != nil {
		return err
	}
	for i, r := range list {
		if err := e.grammar.check(r.policy); err != nil {
			return bawn.Wrap(err, bawn.CodeUnprocessable, "policy.compile", "%s: the rule does not fit the schema: %s", all[i].field, oneLine(err.Error()))
		}
	}
	return nil
}

// compile makes the sets of v.
func compile(v *bawn.Version) (*own, error) {
	all := lines(v)
	list, err := parse(v, all)
	if err != nil {
		return nil, err
	}
	me := functionUID(v.Tenant, v.Function)
	o := &own{entity: newThing(typeFunction, v.Tenant, v.Function), routes: map[string]*slice{}, reaches: map[types.EntityUID]*slice{}}
	out := map[types.EntityUID][]rule{}
	var calls, callers []rule
	routes := map[string][]rule{}
	for i, l := range all {
		switch {
		case l.route != "":
			routes[l.route] = append(routes[l.route], list[i])
		case strings.HasPrefix(l.field, "egress.") && !strings.HasPrefix(l.field, "egress.functions["), strings.HasSuffix(l.field, webhookSecret):
			what := (*expast.Policy)(list[i].policy.AST()).Resource.(expast.ScopeTypeEq).Entity
			out[what] = append(out[what], list[i])
		case strings.HasPrefix(l.field, "egress."):
			calls = append(calls, list[i])
		default:
			callers = append(callers, list[i])
		}
	}
	o.calls = newSlice(calls, actionUID(Call), me, nil)
	o.callers = newSlice(callers, actionUID(Invoke), me, nil)
	for route, list := range routes {
		o.routes[route] = newSlice(list, actionUID(Invoke), me, nil)
	}
	for i := range v.Perimeter.Ingress.HTTP {
		r := &v.Perimeter.Ingress.HTTP[i]
		if sl := o.routes[routeText(r)]; r.Access.Public != nil && len(routes[routeText(r)]) == 1 {
			sl.until = r.Access.Public.Until
		}
	}
	for what, list := range out {
		action := Egress
		if what.Type == typeSecret {
			action = Secret
		}
		o.reaches[what] = newSlice(list, actionUID(action), what, nil)
	}
	return o, nil
}

// maxCompiled bounds the versions whose rules are kept compiled.
const maxCompiled = 10000

// compiled keeps what was compiled. It is safe for concurrent use.
type compiled struct {
	mu   sync.RWMutex
	sets map[versionKey]*own
}

// versionKey names a version, also one that has no number of its own yet.
type versionKey struct {
	tenant, function string
	number           int
	digest           string
}

func keyOf(v *bawn.Version) versionKey {
	return versionKey{v.Tenant, v.Function, v.Number, v.Digest}
}

// of returns the rules of v, which may be nil.
func (c *compiled) of(v *bawn.Version) (*own, error) {
	if v == nil {
		return nil, nil
	}
	key := keyOf(v)
	c.mu.RLock()
	o := c.sets[key]
	c.mu.RUnlock()
	if o != nil {
		return o, nil
	}
	o, err := compile(v)
	if err != nil {
		return nil, err
	}
	// Without a digest it is not known to be the same another time.
	if v.Digest == "" {
		return o, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sets == nil {
		c.sets = map[versionKey]*own{}
	}
	if len(c.sets) >= maxCompiled {
		for other := range c.sets { // any: it is compiled again when it is asked for
			delete(c.sets, other)
			break
		}
	}
	c.sets[key] = o
	return o, nil
}

// Forget drops what was compiled for the versions of a function that is gone.
func (e *Engine) Forget(tenant, function string) {
	c := &e.compiled
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.sets {
		if key.tenant == tenant && key.function == function {
			delete(c.sets, key)
		}
	}
	e.asked.forget() // they would keep what is not there any more
	e.decided.forget()
}

func cutName(s string) (tenant, name string, ok bool) { return strings.Cut(s, "/") }
