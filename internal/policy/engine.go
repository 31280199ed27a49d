// Package policy decides who may do what, and records each decision in the
// same call: what cannot be recorded is not allowed.
package policy

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
)

// Action is what a principal wants to do.
type Action string

// The actions.
const (
	Invoke  Action = "invoke"  // run a function
	Call    Action = "call"    // the caller's side of one function calling another
	Deploy  Action = "deploy"  // publish a version, move an alias, roll back
	Approve Action = "approve" // let a deploy that widens a perimeter take effect
	Read    Action = "read"    // list and show functions, versions, instances, the tenant itself
	Remove  Action = "remove"  // take a function away
	Logs    Action = "logs"    // read a function's lines
	Events  Action = "events"  // read the evidence of the tenant
	Audit   Action = "audit"   // export and verify the audit log
	Keys    Action = "keys"    // list, make and revoke keys
	Grant   Action = "grant"   // say which function gets which secret
	Node    Action = "node"    // read the node's own state
	Test    Action = "test"    // run a function's perimeter tests
	Inspect Action = "inspect" // start an instance only to look at it

	Policies   Action = "policy"     // list, set and remove guardrails; explain decisions
	Identities Action = "identities" // issuers, and revoking whom they vouch for
	Tenants    Action = "tenants"    // make, list, suspend and remove tenants
	Backup     Action = "backup"     // back the installation up and restore it

	Secret  Action = "secret"  // read a secret
	Egress  Action = "egress"  // reach a host or a database
	Publish Action = "publish" // send a message to a topic
)

// Kind is a kind of resource beside functions and tenants.
type Kind string

// The kinds of [Object].
const (
	Host     Kind = "Host"
	Vault    Kind = "Secret"
	Topic    Kind = "Topic"
	Database Kind = "Database"
	// Installation is the node's own: tenants, its guardrails, backups.
	Installation Kind = "Installation"
)

// Object names a resource that is neither a function nor a tenant, within the
// tenant of [Request.Resource].
type Object struct {
	Kind Kind
	ID   string
}

// Request is one question to the engine.
type Request struct {
	Principal  bawn.Principal
	Action     Action
	Resource   bawn.Ref           // Function is empty for what concerns a whole tenant
	Invocation string             // of a call
	Source     string             // the caller's address
	Public     *bawn.PublicAccess // of the route, if it is public
	Object     Object             // what is wanted, if that is no function and no tenant

	Trigger string        // of a call
	Route   *bawn.Route   // of a call by route
	Target  *bawn.Version // what is to run: its manifest's rules apply

	// Of a call that a function makes, and of one that carries the signed context
	// of such a call; see [bawn.Call]. Principal then is the calling function.
	Caller *bawn.Version  // the calling version: its manifest's rules apply too
	Origin bawn.Principal // who began the chain, as he is now; the zero value if that is Principal
	Chain  []bawn.Ref     // versions, oldest first; the last one is the caller
	Order  int            // how many calls the calling invocation has made before
	Called []string       // which functions it has called before
}

// Decision is the answer. A denial with an anonymous principal asks for a
// credential; any other means that this one is not enough.
type Decision struct {
	Allow  bool
	Reason string // for the caller and the evidence
	Fix    string // the way out of a denial, for the caller

	Policies []string // the policies that determined it, by their ids
}

// strangerBurst bounds how many refusals of strangers each door records in a
// second. Asking costs them nothing, each record costs a sync of the disk, and
// the oldest records go when the log is full: without a bound a flood would wash
// away what happened before it.
const strangerBurst = 10

// Engine decides and records. It is safe for concurrent use.
type Engine struct {
	log *evidence.Log
	now func() time.Time

	// The refusals of strangers, each door with a burst of its own: a flood at
	// the public one must not hide who tries the other.
	calls, rest burst
}

// burst counts the refusals of strangers at one door.
type burst struct {
	mu     sync.Mutex
	second int64
	count  int // in that second
	left   int // not recorded since the last one that was
}

// take reports whether a refusal at now is to be recorded, and how many before
// it were not.
func (b *burst) take(now time.Time) (left int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if second := now.Unix(); b.second != second {
		b.second, b.count = second, 0
	}
	if b.count >= strangerBurst {
		b.left++
		return 0, false
	}
	b.count++
	left, b.left = b.left, 0
	return left, true
}

// lost takes back what was to be recorded and could not be.
func (b *burst) lost(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
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
//
// The denials of anonymous callers are recorded up to a number each second. The
// others are counted, in the detail leftOut of the next that is recorded, and
// do not wait for the disk.
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
	record := e.log.Append
	if !d.Allow && req.Principal.Kind == bawn.Anonymous().Kind {
		door := &e.rest
		if req.Action == Invoke {
			door = &e.calls
		}
		record = func(ctx context.Context, r bawn.Record) error { return e.refuse(ctx, door, r) }
	}
	if err := record(ctx, r); err != nil {
		return Decision{Reason: "the decision cannot be recorded", Fix: "try again when the node is healthy"}, err
	}
	return d, nil
}

// Allows reports what Authorize would decide, and records nothing: it is for
// what is offered beside what was asked for, never for what is then done.
func (e *Engine) Allows(req Request) bool { return e.decide(req, e.now()).Allow }

// Refused records that a request to the control API from source came without a
// good credential, in the bounds of the denials of [Engine.Authorize]. An error
// means that it could not be recorded; the request is refused in any case.
func (e *Engine) Refused(ctx context.Context, source, reason string) error {
	return e.refuse(ctx, &e.rest, bawn.Record{
		Time: e.now(), Kind: bawn.KindDecision, Tenant: bawn.DefaultTenant,
		Principal: bawn.Anonymous().String(), Source: source, Action: "authenticate", Outcome: "deny", Reason: reason,
	})
}

// refuse records the refusal r of a stranger, or counts it.
func (e *Engine) refuse(ctx context.Context, door *burst, r bawn.Record) error {
	left, ok := door.take(r.Time)
	if !ok {
		return nil
	}
	if left > 0 {
		if r.Detail == nil {
			r.Detail = map[string]string{}
		}
		r.Detail["leftOut"] = strconv.Itoa(left)
	}
	// Who hangs up must not be able to leave no trace.
	if err := e.log.Append(context.WithoutCancel(ctx), r); err != nil {
		door.lost(left + 1)
		return err
	}
	return nil
}

func reads(a Action) bool { return a == Read || a == Logs || a == Events || a == Node }

// decide answers req without recording. What no rule allows is denied.
func (e *Engine) decide(req Request, now time.Time) Decision {
	p := req.Principal
	if req.Resource.Tenant == "" {
		return Decision{Reason: "the request names no tenant"}
	}
	if len(req.Chain) > 0 || req.Caller != nil {
		return Decision{Reason: "functions cannot call functions on this node"}
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
	var with bawn.Role
	for _, r := range p.Roles {
		if slices.Contains(actionsOf(r), req.Action) {
			with = r
			break
		}
	}
	if with == "" {
		return Decision{
			Reason: "the role " + rolesText(p.Roles) + " does not include " + string(req.Action),
			Fix:    "use a key with another role; an administrator makes one with: bawn key create",
		}
	}
	if with == bawn.RoleInvoker && len(p.Functions) > 0 && !slices.Contains(p.Functions, req.Resource.Function) {
		return Decision{Reason: "the key is held to other functions", Fix: "use a key that names this function"}
	}
	return Decision{Allow: true, Reason: "the role " + string(with)}
}

func rolesText(roles []bawn.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// actionsOf is the table of roles. A role that is not in it may do nothing.
func actionsOf(r bawn.Role) []Action {
	switch r {
	case bawn.RoleAdmin, bawn.RoleOperator:
		return []Action{Invoke, Deploy, Read, Remove, Logs, Events, Keys, Node, Inspect}
	case bawn.RoleDeployer:
		return []Action{Deploy, Read, Remove, Logs, Events, Node}
	case bawn.RoleInvoker:
		return []Action{Invoke}
	case bawn.RoleViewer:
		return []Action{Read, Logs, Events, Node}
	}
	return nil
}
