package policy

import (
	"iter"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// rule is one Cedar policy with the id under which decisions name it.
type rule struct {
	id     string
	policy *cedar.Policy
}

// set is a small set of rules, sliced so that a decision looks only at those
// that can say something about it: by action, and within that by the one
// principal that a rule may be about. A rule that is left out is one whose scope
// cannot match, so nothing is decided otherwise than by the whole. It does not
// change.
type set struct {
	slices map[types.EntityUID]*slice
}

type slice struct {
	all  rules                      // what speaks of any principal
	only map[types.EntityUID]*rules // what speaks of this one alone
	// needs says which attributes of the context the rules look at.
	needs attributes
	// until is what they compare the time with, if that is all they do with it.
	until time.Time
}

// before is Cedar's comparison of times, which it has in milliseconds.
func before(a, b time.Time) bool { return a.UnixMilli() < b.UnixMilli() }

// rules is a list in the form that Cedar takes.
type rules struct {
	list []rule
	each iter.Seq2[types.PolicyID, *cedar.Policy]
}

// All is Cedar's way through the list.
func (r *rules) All() iter.Seq2[types.PolicyID, *cedar.Policy] { return r.each }

func (r *rules) close() {
	list := r.list
	r.each = func(yield func(types.PolicyID, *cedar.Policy) bool) {
		for i := range list {
			if !yield(types.PolicyID(list[i].id), list[i].policy) {
				return
			}
		}
	}
}

// newSet slices list for the actions that will be asked about. entities says
// which actions are groups of others; nil means that none is.
func newSet(list []rule, actions []types.EntityUID, entities types.EntityGetter) *set {
	s := &set{slices: make(map[types.EntityUID]*slice, len(actions))}
	for _, action := range actions {
		if sl := newSlice(list, action, types.EntityUID{}, entities); sl != nil {
			s.slices[action] = sl
		}
	}
	return s
}

// newSlice returns what of list can say something about action, or nil if
// nothing can. What is known to match need not be asked again: the action, the
// one principal that a rule is about, and resource, where all that will be asked
// is about that.
func newSlice(list []rule, action, resource types.EntityUID, entities types.EntityGetter) *slice {
	sl := &slice{}
	for _, r := range list {
		if !actionMatches(r.policy, action, entities) {
			continue
		}
		sl.needs |= needsOf(r.policy)
		part := *(*expast.Policy)(r.policy.AST())
		part.Action = expast.ScopeTypeAll{}
		if part.Resource == (expast.ScopeTypeEq{Entity: resource}) {
			part.Resource = expast.ScopeTypeAll{}
		}
		eq, one := part.Principal.(expast.ScopeTypeEq)
		if !one {
			sl.all.list = append(sl.all.list, rule{r.id, cedar.NewPolicyFromAST(astOf(&part))})
			continue
		}
		part.Principal = expast.ScopeTypeAll{}
		if sl.only == nil {
			sl.only = map[types.EntityUID]*rules{}
		}
		if sl.only[eq.Entity] == nil {
			sl.only[eq.Entity] = &rules{}
		}
		sl.only[eq.Entity].list = append(sl.only[eq.Entity].list, rule{r.id, cedar.NewPolicyFromAST(astOf(&part))})
	}
	if len(sl.all.list) == 0 && sl.only == nil {
		return nil
	}
	sl.all.close()
	for _, r := range sl.only {
		r.close()
	}
	return sl
}

// actionMatches reports whether the scope of p takes in action.
func actionMatches(p *cedar.Policy, action types.EntityUID, entities types.EntityGetter) bool {
	switch scope := (*expast.Policy)(p.AST()).Action.(type) {
	case expast.ScopeTypeAll:
		return true
	case expast.ScopeTypeEq:
		return scope.Entity == action
	case expast.ScopeTypeInSet:
		if entities == nil {
			return slices.Contains(scope.Entities, action)
		}
	}
	// Cedar itself knows what its scopes mean.
	probe := expast.Permit()
	probe.Action = (*expast.Policy)(p.AST()).Action
	list := rules{list: []rule{{"", cedar.NewPolicyFromAST(astOf(probe))}}}
	list.close()
	d, _ := cedar.Authorize(&list, entities, cedar.Request{Action: action})
	return bool(d)
}

// outcome is what several sets say together: as Cedar says it of their union.
type outcome struct {
	permits, forbids []string
	failed           []string // rules that could not be evaluated, and so said nothing
}

// add asks sl, which may be nil.
func (o *outcome) add(sl *slice, entities types.EntityGetter, req *cedar.Request) {
	if sl == nil {
		return
	}
	o.ask(&sl.all, entities, req)
	if sl.only == nil {
		return
	}
	if r := sl.only[req.Principal]; r != nil {
		o.ask(r, entities, req)
	}
}

func (o *outcome) ask(r *rules, entities types.EntityGetter, req *cedar.Request) {
	if len(r.list) == 0 {
		return
	}
	d, diag := cedar.Authorize(r, entities, *req)
	for i := range diag.Reasons {
		if d == cedar.Allow {
			o.permits = append(o.permits, string(diag.Reasons[i].PolicyID))
		} else {
			o.forbids = append(o.forbids, string(diag.Reasons[i].PolicyID))
		}
	}
	for i := range diag.Errors {
		o.failed = append(o.failed, string(diag.Errors[i].PolicyID))
	}
}

// allow is Cedar's rule: any forbid denies, else any permit allows, else it is
// denied.
func (o *outcome) allow() bool { return len(o.forbids) == 0 && len(o.permits) > 0 }

// reasons returns the rules that determine what allow says.
func (o *outcome) reasons() []string {
	if len(o.forbids) > 0 {
		return o.forbids
	}
	return o.permits
}

// attributes is a set of attributes of the context.
type attributes uint16

// The attributes, as the schema has them.
const (
	needNow attributes = 1 << iota
	needSource
	needTrigger
	needRoute
	needPublic
	needDirect
	needCaller
	needChain
	needDepth
	needOrder
	needCalled
	needOnBehalf
	needOnBehalfRoles
	needMethod
	needPath
	needAccess

	needAll = 1<<iota - 1
)

func attributeOf(name string) attributes {
	switch name {
	case "now":
		return needNow
	case "source":
		return needSource
	case "trigger":
		return needTrigger
	case "route":
		return needRoute
	case "public":
		return needPublic
	case "direct":
		return needDirect
	case "caller":
		return needCaller
	case "chain":
		return needChain
	case "depth":
		return needDepth
	case "order":
		return needOrder
	case "called":
		return needCalled
	case "onBehalf":
		return needOnBehalf
	case "onBehalfRoles":
		return needOnBehalfRoles
	case "method":
		return needMethod
	case "path":
		return needPath
	case "access":
		return needAccess
	}
	return needAll
}

// needsOf returns which attributes of the context p looks at: no others have to
// be made.
func needsOf(p *cedar.Policy) attributes {
	needs := attributes(0)
	context := expast.NewContextNode()
	for _, c := range (*expast.Policy)(p.AST()).Conditions {
		expast.Inspect(expast.NewNode(c.Body), func(n expast.IsNode) bool {
			switch n := n.(type) {
			case expast.NodeTypeAccess:
				if n.Arg == expast.IsNode(context) {
					needs |= attributeOf(string(n.Value))
					return false
				}
			case expast.NodeTypeHas:
				if n.Arg == expast.IsNode(context) {
					needs |= attributeOf(string(n.Value))
					return false
				}
			case expast.NodeTypeVariable:
				if n == context {
					needs = needAll // as a whole
				}
			}
			return true
		})
	}
	return needs
}
