// Package policy decides who may do what, and records each decision in the
// same call: what cannot be recorded is not allowed.
package policy

import (
	"context"
	"slices"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
)

// Action is what a principal wants to do.
type Action string

// The actions.
const (
	Invoke Action = "invoke" // run a function
	Deploy Action = "deploy" // publish a version, move an alias, roll back
	Read   Action = "read"   // list and show functions, versions, instances
	Remove Action = "remove" // take a function away
	Logs   Action = "logs"   // read a function's lines
	Events Action = "events" // read the evidence
	Keys   Action = "keys"   // list, make and revoke keys
	Node   Action = "node"   // read the node's own state
)

// Request is one question to the engine.
type Request struct {
	Principal  bawn.Principal
	Action     Action
	Resource   bawn.Ref           // Function is empty for what concerns a whole tenant
	Invocation string             // of a call
	Source     string             // the caller's address
	Public     *bawn.PublicAccess // of the route, if it is public
}

// Decision is the answer. A denial with an anonymous principal asks for a
// credential; any other means that this one is not enough.
type Decision struct {
	Allow  bool
	Reason string // for the caller and the evidence
	Fix    string // the way out of a denial, for the caller
}

// Engine decides and records. It is safe for concurrent use.
type Engine struct {
	log *evidence.Log
	now func() time.Time
}

// New returns an engine that records in log. now is the clock; nil means
// [time.Now].
func New(log *evidence.Log, now func() time.Time) *Engine {
	if now == nil {
		now = time.Now
	}
	return &Engine{log: log, now: now}
}

// Authorize decides req and records the decision; allowed reads are not
// recorded, denied ones are. If the record fails, so does the request: the
// Decision is a denial and the error has CodeUnavailable. A denial alone is no
// error.
func (e *Engine) Authorize(ctx context.Context, req Request) (Decision, error) {
	now := e.now()
	d := e.decide(req, now)
	if d.Allow && reads(req.Action) {
		return d, nil
	}
	r := bawn.Record{
		Time: now, Kind: bawn.KindDecision, Tenant: req.Resource.Tenant, Function: req.Resource.Function, Invocation: req.Invocation,
		Principal: req.Principal.String(), Source: req.Source, Action: string(req.Action), Outcome: "allow", Reason: d.Reason,
	}
	if n, ok := req.Resource.Version(); ok {
		r.Version = n
	} else if q := req.Resource.Qualifier; q != "" {
		r.Detail = map[string]string{"alias": q}
	}
	if !d.Allow {
		r.Outcome = "deny"
		if r.Control = "A10"; req.Action == Invoke {
			r.Control = "A11"
		}
	}
	if err := e.log.Append(ctx, r); err != nil {
		return Decision{Reason: "the decision cannot be recorded", Fix: "try again when the node is healthy"}, err
	}
	return d, nil
}

func reads(a Action) bool { return a == Read || a == Logs || a == Events || a == Node }

// decide answers req without recording. What no rule allows is denied.
func (e *Engine) decide(req Request, now time.Time) Decision {
	p := req.Principal
	if req.Resource.Tenant == "" {
		return Decision{Reason: "the request names no tenant"}
	}
	if req.Action == Invoke && req.Public.Open(now) {
		return Decision{Allow: true, Reason: "the route is public: " + req.Public.Reason}
	}
	switch p.Kind {
	case "key":
		return e.decideKey(req, now)
	case "node":
		if p.ID == "" {
			break
		}
		return Decision{Allow: true, Reason: "the node itself"}
	case "anonymous":
		d := Decision{Reason: "a credential is needed", Fix: "send a key as Authorization: Bearer KEY; an administrator makes one with: bawn key create"}
		if req.Action == Invoke && req.Public != nil {
			d.Reason = "the route was public until " + req.Public.Until.UTC().Format(time.DateOnly) + " and needs a credential now"
		}
		return d
	}
	return Decision{Reason: "the caller is not known", Fix: "send a key as Authorization: Bearer KEY"}
}

func (e *Engine) decideKey(req Request, now time.Time) Decision {
	p := req.Principal
	// The same answer whether the other tenant has such a thing or not.
	if p.ID == "" || p.Tenant == "" || p.Tenant != req.Resource.Tenant {
		return Decision{Reason: "the key is not of this tenant", Fix: "use a key of the tenant that owns the function"}
	}
	if !slices.Contains(actionsOf(p.Role), req.Action) {
		return Decision{
			Reason: "the role " + string(p.Role) + " does not include " + string(req.Action),
			Fix:    "use a key with another role; an administrator makes one with: bawn key create",
		}
	}
	if p.Role == bawn.RoleInvoker && len(p.Functions) > 0 && !slices.Contains(p.Functions, req.Resource.Function) {
		return Decision{Reason: "the key is held to other functions", Fix: "use a key that names this function"}
	}
	return Decision{Allow: true, Reason: "the role " + string(p.Role)}
}

// actionsOf is the table of roles. A role that is not in it may do nothing.
func actionsOf(r bawn.Role) []Action {
	switch r {
	case bawn.RoleAdmin:
		return []Action{Invoke, Deploy, Read, Remove, Logs, Events, Keys, Node}
	case bawn.RoleDeployer:
		return []Action{Deploy, Read, Remove, Logs, Events, Node}
	case bawn.RoleInvoker:
		return []Action{Invoke}
	case bawn.RoleViewer:
		return []Action{Read, Logs, Events, Node}
	}
	return nil
}
