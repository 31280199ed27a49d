// Package policy decides who may do what, and records each decision in the
// same call: what cannot be recorded is not allowed.
package policy

import (
	"cmp"
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cedar-policy/cedar-go/types"

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
	ID   string // of a host: as the manifest has it, [bawn.AnyHost] for everything

	// Of a host or a database: what a rule's pattern stands for this time, and where.
	// Name is a name in lower case or an address. Of a request that is read, what it
	// asks for.
	Name   string
	Port   int
	Method string
	Path   string // without the query
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
	Detail     map[string]string  // for the record only; not changed
	// Without says what is missing beside what rules can say, such as a grant: then it
	// is denied for that reason. Fix is the way out.
	Without, Fix string

	Trigger string        // of a call
	Route   *bawn.Route   // of a call by route
	Target  *bawn.Version // what is to run: its manifest's rules apply

	// Of a call that a function makes, and of one that carries the signed context
	// of such a call; see [bawn.Call]. Principal then is the calling function.
	Caller *bawn.Version  // the calling version: its manifest's rules apply too
	Origin bawn.Principal // who began the chain, as he is now; the zero value if that is Principal
	Chain  []bawn.Ref     // versions, oldest first; the last one is the caller
	Hops   int            // how many calls of functions by functions led here, on any way
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

	Line   string // of the manifest that would allow what a function wants outside
	failed bool   // a rule could not be evaluated
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

	grammar  *grammar
	base     *set
	guards   atomic.Pointer[guards]
	stored   guardTable
	compiled compiled
	entities entities
	asked    memory[askedKey, outcome] // what the rules said, of which none failed
	decided  memory[plainKey, *decided]

	// What most questions need is made once.
	actions                       []types.EntityUID
	call, policing                types.EntityUID
	anonymous, self, installation *types.Entity
	isPublic, notPublic           types.Record

	// The refusals of strangers, each door with a burst of its own: a flood at
	// the public one must not hide who tries the other.
	calls, rest burst
	known       floods // the denials of everybody else
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

// New returns an engine without guardrails that records in log. now is the
// clock; nil means [time.Now]. It panics if the rules that are part of the
// program cannot be read, which a test rules out.
func New(log *evidence.Log, now func() time.Time) *Engine {
	if now == nil {
		now = time.Now
	}
	g, err := newGrammar()
	if err != nil {
		panic(err)
	}
	base, err := loadBase(g)
	if err != nil {
		panic(err)
	}
	actions := actionUIDs(g)
	return &Engine{
		log: log, now: now, grammar: g, base: newSet(base, actions, nil), actions: actions, policing: actionUID(Policies),
		call:         actionUID(Call),
		anonymous:    &types.Entity{UID: types.NewEntityUID(typeAnonymous, bawn.PrincipalAnonymous)},
		self:         &types.Entity{UID: types.NewEntityUID(typeNode, bawn.PrincipalNode)},
		installation: &types.Entity{UID: types.NewEntityUID(typeInstallation, "this")},
		isPublic:     types.NewRecord(types.RecordMap{"public": types.True}),
		notPublic:    types.NewRecord(types.RecordMap{"public": types.False}),
	}
}

// Authorize decides req and records the decision; allowed reads are not
// recorded, denied ones are. If the record fails, so does the request: the
// Decision is a denial and the error has CodeUnavailable. A denial alone is no
// error.
//
// The denials of anonymous callers are recorded up to a number each second. The
// others are counted, in the detail leftOut of the next that is recorded, and
// do not wait for the disk. The same holds for everybody else, with a burst and a
// rate for each principal and each tenant.
func (e *Engine) Authorize(ctx context.Context, req Request) (Decision, error) {
	now := e.now()
	d := e.recall(&req, now)
	if d.Allow && reads(req.Action) {
		return d, nil
	}
	r := bawn.Record{
		Time: now, Kind: bawn.KindDecision, Tenant: req.Resource.Tenant, Function: req.Resource.Function, Invocation: req.Invocation,
		Principal: req.Principal.String(), Source: req.Source, Action: string(req.Action), Outcome: "allow", Reason: d.Reason,
	}
	if n, ok := req.Resource.Version(); ok {
		r.Version = n
	}
	r.Detail = detail(&req, &d)
	if !d.Allow {
		r.Outcome = "deny"
		switch {
		case d.failed:
			r.Control = "A3"
		case req.Action == Egress:
			r.Control = "C2"
		case req.Action == Secret:
			r.Control = "E2"
		case req.Caller != nil || len(req.Chain) > 0:
			r.Control = "A7"
		case req.Action == Invoke:
			r.Control = "A11"
		default:
			r.Control = "A10"
		}
	}
	record := e.log.Append
	if !d.Allow {
		record = func(ctx context.Context, r bawn.Record) error { return e.deny(ctx, req.Principal, r) }
	}
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

// detail is what a record says of a decision beside its own fields. It is nil
// if there is nothing.
func detail(req *Request, d *Decision) map[string]string {
	m := make(map[string]string, 4)
	if q := req.Resource.Qualifier; q != "" {
		if _, ok := req.Resource.Version(); !ok {
			m["alias"] = q
		}
	}
	maps.Copy(m, req.Detail)
	if o := &req.Object; o.Kind != "" {
		m["object"] = string(o.Kind) + ":" + o.ID
		if o.Kind == Host || o.Name != "" {
			m["host"], m["port"] = cmp.Or(o.Name, o.ID), strconv.Itoa(o.Port)
		}
		if o.Method != "" {
			m["method"], m["path"] = o.Method, cutText(o.Path, maxRecordedPath)
		}
	}
	if d.Line != "" && m["manifest"] == "" {
		m["manifest"] = d.Line
	}
	if len(d.Policies) > 0 {
		m["policies"] = strings.Join(d.Policies, ",")
	}
	if !d.Allow && d.Fix != "" {
		m["fix"] = d.Fix
	}
	if req.Origin.Kind != "" {
		m["origin"] = req.Origin.String()
	}
	if depth := max(req.Hops, len(req.Chain)); depth > 0 {
		m["depth"] = strconv.Itoa(depth)
	}
	if len(req.Chain) > 0 {
		var b strings.Builder
		for i, r := range req.Chain {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(r.Function + "@" + r.Qualifier)
		}
		m["chain"] = b.String()
	}
	if len(m) == 0 {
		return nil
	}
	return m
}

// maxRecordedPath bounds the path of a request in its record.
const maxRecordedPath = 512

func cutText(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Allows reports what Authorize would decide, and records nothing: it is for
// what is offered beside what was asked for, never for what is then done.
func (e *Engine) Allows(req Request) bool { return e.Ask(req).Allow }

// Refused records that a request to the control API from source came without a
// good credential, in the bounds of the denials of [Engine.Authorize]. An error
// means that it could not be recorded; the request is refused in any case.
func (e *Engine) Refused(ctx context.Context, source, reason string) error {
	return e.refuse(ctx, &e.rest, bawn.Record{
		Time: e.now(), Kind: bawn.KindDecision, Tenant: bawn.DefaultTenant,
		Principal: bawn.Anonymous().String(), Source: source, Action: "authenticate", Outcome: "deny", Reason: reason,
	})
}

// deny records the denial r of a known principal, or counts it.
func (e *Engine) deny(ctx context.Context, p bawn.Principal, r bawn.Record) error {
	left, ok := e.known.take(p.String(), p.Tenant, r.Time)
	if !ok {
		return nil
	}
	if left > 0 {
		if r.Detail == nil {
			r.Detail = map[string]string{}
		}
		r.Detail["leftOut"] = strconv.Itoa(left)
	}
	if err := e.log.Append(ctx, r); err != nil {
		e.known.lost(p.String(), p.Tenant, r.Time, left+1)
		return err
	}
	return nil
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
