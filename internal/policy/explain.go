package policy

import (
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
)

const credentialFix = "send a key as Authorization: Bearer KEY; an administrator makes one with: bawn key create"

// answer words what the rules said: the reason for the caller and the evidence,
// and for a denial the way out.
func (e *Engine) answer(q *question, o *outcome) Decision {
	d := Decision{Allow: o.allow() && len(o.failed) == 0}
	switch {
	case d.Allow:
		d.Policies, d.Reason = o.reasons(), e.because(q, o.permits)
	case len(o.forbids) > 0:
		d.Policies = o.reasons()
		d.Reason, d.Fix = e.forbidden(q, o.forbids)
	case len(o.failed) > 0:
		// A forbid that cannot be asked might have forbidden.
		d.Policies, d.failed = o.failed, true
		d.Reason = "the rule " + o.failed[0] + " cannot be evaluated, and might forbid it"
		d.Fix = "whoever has the right to change it corrects it: bawn policy show, bawn policy set"
	case q.action.ID == "egress" || q.action.ID == "secret":
		d.Reason, d.Fix, d.Line = unreached(q)
	default:
		d.Reason, d.Fix = e.missing(q)
	}
	return d
}

// because says what allowed it.
func (e *Engine) because(q *question, ids []string) string {
	for _, id := range ids {
		if role, ok := strings.CutPrefix(id, "bawn:"); ok {
			switch role {
			case "node":
				return "the node itself"
			case "operator.installation":
				role = string(bawn.RoleOperator)
			}
			return "the role " + role
		}
		if strings.HasSuffix(id, ".public") && q.req.Public != nil {
			return "the route is public: " + q.req.Public.Reason
		}
	}
	return "the manifest: " + strings.Join(ids, ", ")
}

// forbidden says what forbids it.
func (e *Engine) forbidden(q *question, ids []string) (reason, fix string) {
	id := ids[0]
	if strings.HasPrefix(id, "bawn:") || !strings.Contains(id, "#") {
		for _, other := range ids { // what a guardrail says is what is to be known
			if strings.Contains(other, "#") {
				id = other
			}
		}
	}
	if name, _, ok := strings.Cut(id, "#"); ok {
		show := "bawn policy show " + strings.TrimPrefix(strings.TrimPrefix(name, "guardrail:"), "installation:")
		if strings.HasPrefix(name, "installation:") {
			return "a guardrail of the installation forbids it: " + id, show + " --installation tells an operator what it says; only operators can change it"
		}
		return "a guardrail of the tenant forbids it: " + id, show + " tells what it says; a policy-admin can change it"
	}
	who := "the key"
	if k := q.req.Principal.Kind; k != bawn.PrincipalKey {
		who = "the " + k
	}
	switch strings.TrimPrefix(id, "bawn:") {
	case "tenants-apart":
		return who + " is not of this tenant", "use a key of the tenant that owns the function"
	case "held":
		return who + " is held to other functions", "use a key that names this function"
	case "installation":
		return "this is for operators of the installation", "ask an operator"
	case "operator-is-main":
		return "the role operator means nothing outside the tenant " + bawn.DefaultTenant, "use a key with the role admin"
	case "node-is-shared":
		return "the node's own state is for the tenant " + bawn.DefaultTenant, "ask an operator"
	}
	if strings.Contains(id, ":ingress.http[") {
		return e.unmet(q)
	}
	return "the rule " + id + " forbids it", "bawn explain tells what it says"
}

func (e *Engine) noCredential(q *question) (reason, fix string) {
	if p := q.req.Public; p != nil && !q.public {
		return "the route was public until " + p.Until.UTC().Format(time.DateOnly) + " and needs a credential now", credentialFix
	}
	return "a credential is needed", credentialFix
}

// unmet says what a route asks for that the caller has not shown.
func (e *Engine) unmet(q *question) (reason, fix string) {
	req := q.req
	if req.Route == nil {
		return e.noCredential(q)
	}
	what, how := req.Route.Access.Asks()
	switch {
	case req.Route.Access.Kind() == bawn.AccessKey || req.Public != nil:
		return e.noCredential(q)
	case req.Principal.Kind == bawn.PrincipalAnonymous:
		return what, how
	}
	reason = what + ", which " + req.Principal.String() + " has not shown"
	if req.Route.Access.Own() && len(req.Principal.Roles) > 0 {
		how += ", or in bawn.yaml under functions." + req.Resource.Function + ".ingress.callers add: - " +
			bawn.RoleCaller + string(req.Principal.Roles[0]) + ", and deploy " + req.Resource.Function
	}
	return reason, how
}

// missing says what is not there that would permit it.
func (e *Engine) missing(q *question) (reason, fix string) {
	req := q.req
	target := req.Resource.Function
	caller := ""
	if req.Caller != nil {
		caller = req.Caller.Function
	}
	add := func(function, field, entry string) string {
		return "in bawn.yaml under functions." + function + "." + field + " add: - " + entry + ", and deploy " + function
	}
	switch p := q.principal.UID; {
	case q.action.ID == "call":
		return caller + " does not say that it calls " + target, add(caller, "egress.functions", target)
	case p.Type == typeFunction && q.action.ID == "invoke":
		_, name, _ := cutName(string(p.ID))
		if q.direct {
			return target + " does not let " + name + " call it", add(target, "ingress.callers", name)
		}
		return caller + " calls for " + name + ", which may not call " + target + " itself", add(target, "ingress.callers", name)
	case p.Type == typeFunction:
		return "the function's manifest does not allow it", "bawn perimeter " + string(q.principal.UID.ID) + " shows what it allows"
	case p.Type == typeAnonymous && q.direct:
		return e.noCredential(q)
	case p.Type == typeAnonymous:
		return caller + " calls for somebody without a credential, who may not call " + target + " himself", add(target, "ingress.callers", bawn.AnyCaller)
	}
	who := req.Principal
	if !q.direct && req.Origin.Kind != "" {
		who = req.Origin
	}
	names := rolesText(who.Roles)
	if q.action.ID == "invoke" {
		entry := bawn.RoleCaller + names
		if len(who.Roles) > 1 {
			entry = bawn.RoleCaller + string(who.Roles[0])
		}
		if !q.direct {
			return caller + " calls for " + who.String() + ", who may not call " + target + " himself: the role " + names + " does not include invoke",
				add(target, "ingress.callers", entry)
		}
		return "the role " + names + " does not include invoke",
			"use a key with the role invoker (bawn key create --role invoker), or " + add(target, "ingress.callers", entry)
	}
	return "the role " + names + " does not include " + string(req.Action),
		"use a key with another role; an administrator makes one with: bawn key create"
}

func rolesText(roles []bawn.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
