package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"bawn.dev/bawn"
)

//go:embed base.cedar
var baseText string

// Base returns the rules that every installation begins with, as Cedar.
func Base() string { return baseText }

// loadBase reads the base rules; their ids are in their annotations.
func loadBase(g *grammar) ([]rule, error) {
	list, err := g.read("base.cedar", []byte(baseText))
	if err != nil {
		return nil, err
	}
	rules := make([]rule, len(list))
	for i, p := range list {
		rules[i] = rule{"bawn:" + string(p.Annotations()["id"]), p}
	}
	return rules, nil
}

// decide answers req without recording. What no rule permits is denied.
func (e *Engine) decide(req *Request, now time.Time, g *guards) Decision {
	d, _ := e.weigh(req, now, g)
	return d
}

// recall is decide with a memory of whole decisions. It is for what is asked in
// earnest: what might be is asked once, and would take the room of what is.
func (e *Engine) recall(req *Request, now time.Time) Decision {
	g := e.guards.Load()
	plain, ok := plainKeyOf(req, now, g)
	if ok {
		if known, ok := e.decided.get(&plain); ok && known.about(&req.Principal) {
			return known.Decision
		}
	}
	whole := *req // what is weighed is on the heap, and what is known need not be
	d, same := e.weigh(&whole, now, g)
	if ok && same && d.Allow {
		e.decided.put(&plain, newDecided(d, &req.Principal))
	}
	return d
}

// weigh is decide, and reports whether the decision is the same whenever the rules
// and the question are.
func (e *Engine) weigh(req *Request, now time.Time, g *guards) (d Decision, same bool) {
	if req.Resource.Tenant == "" {
		return Decision{Reason: "the request names no tenant"}, false
	}
	if req.Without != "" {
		return Decision{Reason: req.Without, Fix: req.Fix}, false
	}
	fits, ok := e.grammar.fits[req.Action]
	if !ok {
		return Decision{Reason: fmt.Sprintf("there is no action %.40q", req.Action), Fix: "docs/guide/policy.md lists the actions"}, false
	}
	principal, why := e.principal(req.Principal)
	if principal == nil {
		return Decision{Reason: why, Fix: "send a key as Authorization: Bearer KEY"}, false
	}
	if t := req.Target; t != nil && (t.Tenant != req.Resource.Tenant || t.Function != req.Resource.Function || req.Object.Kind != "") {
		return Decision{Reason: "what is to run is not what was asked for"}, false
	}
	if req.Action == Egress || req.Action == Secret {
		if principal.UID.Type != typeFunction {
			return e.misfit(req), false
		}
		resource, why := e.resource(req)
		switch {
		case resource == nil:
			return Decision{Reason: why}, false
		case !fits.resources[resource.UID.Type]:
			return e.misfit(req), false
		}
		return e.decideReach(&question{
			e: e, principal: principal, action: actionUID(req.Action), resource: resource, req: req, guards: g, now: now, direct: true,
		}), false
	}
	rules, err := e.compiled.of(req.Target)
	if err != nil {
		return Decision{Reason: "the rules of " + req.Target.Ref().String() + " cannot be read", Fix: "deploy it again"}, false
	}
	var resource *types.Entity
	if rules != nil {
		resource = rules.entity
	} else if resource, why = e.resource(req); resource == nil {
		return Decision{Reason: why}, false
	}
	if !fits.principals[principal.UID.Type] && principal.UID.Type != typeNode || !fits.resources[resource.UID.Type] {
		return e.misfit(req), false
	}
	q := question{
		e: e, principal: principal, action: actionUID(req.Action), resource: resource,
		req: req, guards: g, now: now, public: req.Public.Open(now), direct: true,
	}
	if req.Action == Invoke && (req.Caller != nil || len(req.Chain) > 0 || principal.UID.Type == typeFunction) {
		return e.decideChain(&q, rules), false
	}
	var o outcome
	same = q.ask(&o, rules)
	return e.answer(&q, &o), same
}

// misfit is the denial of what the schema has no rule for.
func (e *Engine) misfit(req *Request) Decision {
	switch {
	case req.Principal.Kind == bawn.PrincipalAnonymous:
		return Decision{Reason: "a credential is needed", Fix: credentialFix}
	case req.Principal.Kind == bawn.PrincipalFunction:
		return Decision{Reason: "functions may not " + string(req.Action), Fix: "have it done from outside, by somebody who may"}
	}
	return Decision{
		Reason: string(req.Action) + " is not for " + req.Principal.Kind + " principals, or not for what was named",
		Fix:    "docs/guide/policy.md lists which actions there are for what",
	}
}

// principal returns the entity of p, or why it has none.
func (e *Engine) principal(p bawn.Principal) (*types.Entity, string) {
	t := principalType(p.Kind)
	switch {
	case t == "":
		return nil, "the caller is not known"
	case p.ID == "":
		return nil, "the caller has no identity"
	case t == typeAnonymous:
		return e.anonymous, ""
	case t == typeNode:
		return e.self, ""
	case p.Tenant == "":
		return nil, "the caller is of no tenant"
	case t == typeFunction:
		ref, ok := functionOf(p)
		if !ok {
			return nil, "the calling function is not known"
		}
		return e.entities.thing(typeFunction, p.Tenant, ref), ""
	}
	return e.entities.person(t, p), ""
}

// functionOf returns the name of the function that p is: its id is
// NAME@VERSION.
func functionOf(p bawn.Principal) (string, bool) {
	name, _, _ := strings.Cut(p.ID, "@")
	if t, rest, ok := strings.Cut(name, "/"); ok {
		if t != p.Tenant {
			return "", false
		}
		name = rest
	}
	return name, bawn.CheckName("function", name) == nil
}

// resource returns the entity that req is about, or why there is none.
func (e *Engine) resource(req *Request) (*types.Entity, string) {
	r := req.Resource
	switch req.Object.Kind {
	case "":
		if r.Function == "" {
			return e.entities.thing(typeTenant, r.Tenant, ""), ""
		}
		return e.entities.thing(typeFunction, r.Tenant, r.Function), ""
	case Installation:
		return e.installation, ""
	case Host, Vault, Topic, Database:
		if req.Object.ID == "" || len(req.Object.ID) > maxObjectID {
			return nil, "what is wanted has no name, or too long a one"
		}
		return e.entities.thing(types.EntityType("Bawn::"+req.Object.Kind), r.Tenant, req.Object.ID), ""
	}
	return nil, "there is no such kind of resource"
}

// maxObjectID bounds the name of a host, a secret, a topic or a database.
const maxObjectID = 512

// ask puts the question to every set that can have something to say: the base
// rules, the manifest's, and the guardrails of the tenant and the installation. It
// reports whether what they say is the same whenever the question is.
func (q *question) ask(o *outcome, manifest *own) (same bool) {
	// Nobody can lock himself out: who may change guardrails is for the roles.
	var whole, tenant *scope
	if q.action != q.e.policing {
		whole = q.guards.of("")
		if q.guards != nil && q.guards.broken != "" {
			o.failed = append(o.failed, q.guards.broken)
		}
		if q.req.Object.Kind != Installation {
			tenant = q.guards.of(q.req.Resource.Tenant)
		}
	}
	asked := asked{q.e.base.slices[q.action]}
	if manifest != nil {
		switch Action(q.action.ID) {
		case Invoke:
			if q.req.Route != nil && q.req.Caller == nil {
				asked[1] = manifest.routes[routeText(q.req.Route)]
			}
			asked[2] = manifest.callers
		case Call:
			asked[1] = manifest.calls
		case Egress, Secret:
			asked[1] = manifest.reaches[q.resource.UID]
		}
	}
	for i, g := range [2]*scope{whole, tenant} {
		switch {
		case g == nil:
		case g.broken != "":
			o.failed = append(o.failed, g.broken)
		default:
			asked[3+i] = g.set.slices[q.action]
		}
	}
	key, same := q.key(asked)
	if same = same && len(o.failed) == 0; same {
		if known, ok := q.e.asked.get(&key); ok {
			o.permits, o.forbids = known.permits, known.forbids
			return true
		}
	}
	needs := attributes(0)
	for _, sl := range asked {
		if sl != nil {
			needs |= sl.needs
		}
	}
	req := cedar.Request{Principal: q.principal.UID, Action: q.action, Resource: q.resource.UID, Context: q.context(needs)}
	for _, sl := range asked {
		o.add(sl, q, &req)
	}
	// Guardrails that are only tried are not kept in memory by what they would say.
	if same = same && len(o.failed) == 0; same && q.guards == q.e.guards.Load() {
		q.e.asked.put(&key, outcome{permits: slices.Clip(o.permits), forbids: slices.Clip(o.forbids)})
	}
	return same
}

// decideChain decides on a call that functions have led to; control A7. Each
// part of it must be allowed: that the caller calls this, that this is called by
// the caller, and that everybody on whose behalf it happens may call it himself.
// Nobody gains by going through a function what he does not have.
func (e *Engine) decideChain(q *question, callee *own) Decision {
	req := q.req
	all := outcome{}
	one := func(part question, rules *own) (Decision, bool) {
		var o outcome
		part.ask(&o, rules)
		d := e.answer(&part, &o)
		all.permits = append(all.permits, o.permits...)
		return d, d.Allow
	}
	behind := req.Chain
	if c := req.Caller; c != nil || q.principal.UID.Type == typeFunction {
		if d, ok := e.checkCaller(q); !ok {
			return d
		}
		rules, err := e.compiled.of(c)
		if err != nil {
			return Decision{Reason: "the rules of " + c.Ref().String() + " cannot be read", Fix: "deploy it again"}
		}
		call := *q
		call.action = e.call
		if d, ok := one(call, rules); !ok {
			return d
		}
		behind = behind[:len(behind)-1]
	}
	if d, ok := one(*q, callee); !ok {
		return d
	}
	for i, r := range behind {
		if slices.ContainsFunc(behind[:i], func(other bawn.Ref) bool { return other.Tenant == r.Tenant && other.Function == r.Function }) {
			continue
		}
		part := *q
		part.direct = false
		part.principal = e.entities.thing(typeFunction, r.Tenant, r.Function)
		if d, ok := one(part, callee); !ok {
			return d
		}
	}
	if req.Origin.Kind != "" && req.Origin.String() != req.Principal.String() {
		origin, why := e.principal(req.Origin)
		if origin == nil {
			return Decision{Reason: "on whose behalf the function calls is not known: " + why}
		}
		part := *q
		part.direct, part.principal = false, origin
		if d, ok := one(part, callee); !ok {
			return d
		}
	}
	return Decision{Allow: true, Reason: "both manifests and everybody's own rights allow it", Policies: unique(all.permits)}
}

// checkCaller holds what a request says of the calling function together. A
// gap is a denial: it would be somebody whose rights nobody looked at.
func (e *Engine) checkCaller(q *question) (Decision, bool) {
	req := q.req
	deny := func(reason string) (Decision, bool) { return Decision{Reason: reason}, false }
	c := req.Caller
	switch {
	case c == nil:
		return deny("which version of the function calls is not known")
	case q.principal.UID != functionUID(c.Tenant, c.Function):
		return deny("the caller is not the function that calls")
	case len(req.Chain) == 0 || req.Chain[len(req.Chain)-1] != c.Ref():
		return deny("the chain of calls does not end with the function that calls")
	case len(req.Chain) > bawn.MaxHops:
		return deny(fmt.Sprintf("the chain of calls is longer than %d", bawn.MaxHops))
	case req.Origin.Kind == "":
		return deny("who began the chain of calls is not known")
	}
	return Decision{}, true
}

func unique(ids []string) []string {
	slices.Sort(ids)
	return slices.Compact(ids)
}
