package policy

import (
	"slices"
	"sync"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"bawn.dev/bawn"
)

// asked is the slices that a question is put to: the base rules, two of the
// manifest, the guardrails of the installation and of the tenant.
type asked [5]*slice

// askedKey is all that the answer to a question depends on, if the rules look at
// no other attributes of the context than those here. Slices and entities do not
// change: whenever a rule, a key, a role or a version does, there is a new one,
// and so a question that was not asked before.
type askedKey struct {
	principal, resource *types.Entity
	action              types.String
	rules               asked

	public, direct, open                  bool // open: before the end that the rules have
	trigger, routeMethod, routeAt, access string
}

// keyed is the attributes that are in an [askedKey].
const keyed = needPublic | needDirect | needTrigger | needRoute | needAccess

// key returns what the answer of rules depends on. It reports false if there is more
// to it, such as the time.
func (q *question) key(rules asked) (k askedKey, ok bool) {
	needs, open := attributes(0), false
	for _, sl := range rules {
		switch {
		case sl == nil:
		case !sl.until.IsZero():
			needs |= sl.needs &^ needNow
			open = before(q.now, sl.until) // of one manifest, so there is one
		default:
			needs |= sl.needs
		}
	}
	for _, v := range [2]*bawn.Version{q.req.Target, q.req.Caller} {
		if v != nil && v.Digest == "" { // compiled anew each time
			return k, false
		}
	}
	if needs&^keyed != 0 {
		return k, false
	}
	k = askedKey{principal: q.principal, resource: q.resource, action: q.action.ID, rules: rules, public: q.public, direct: q.direct, open: open}
	if needs&needTrigger != 0 {
		k.trigger = q.req.Trigger
	}
	if needs&needRoute != 0 && q.req.Route != nil {
		k.routeMethod, k.routeAt = q.req.Route.Method, q.req.Route.At()
	}
	if needs&needAccess != 0 {
		k.access = q.access()
	}
	return k, true
}

// maxAnswers bounds the answers that a memory keeps, and with them the rules and
// entities that are not there any more.
const maxAnswers = 4096

// A memory keeps what was answered: a warm call asks the same each time. What it
// keeps does not change. The zero value is ready; it is safe for concurrent use.
type memory[K comparable, V any] struct {
	mu   sync.RWMutex
	kept map[K]V
}

func (m *memory[K, V]) get(k *K) (v V, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok = m.kept[*k]
	return v, ok
}

func (m *memory[K, V]) put(k *K, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept == nil || len(m.kept) >= maxAnswers {
		m.kept = map[K]V{} // each comes again when it is asked for
	}
	m.kept[*k] = v
}

// forget drops everything.
func (m *memory[K, V]) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept = nil
}

// plainKey is all that the decision on a plain call depends on beside the principal's
// name, roles and functions: one that somebody makes himself and that the rules of a
// version are about. Versions and guards do not change, and a pointer that is a key
// is of nothing else as long as the key is there.
type plainKey struct {
	kind, tenant, id, access string // of the principal
	target                   *bawn.Version
	route                    *bawn.Route
	public                   *bawn.PublicAccess
	trigger                  string
	guards                   *guards
	open, before             bool // whether what is public is so now, as the gate and as Cedar have it
}

// plainKeyOf reports false for a question of another kind.
func plainKeyOf(req *Request, now time.Time, g *guards) (k plainKey, ok bool) {
	p, t := &req.Principal, req.Target
	if req.Action != Invoke || t == nil || t.Digest == "" || t.Tenant != req.Resource.Tenant || t.Function != req.Resource.Function ||
		req.Object.Kind != "" || req.Without != "" || req.Caller != nil || len(req.Chain) > 0 || p.Kind == bawn.PrincipalFunction {
		return k, false
	}
	k = plainKey{
		kind: p.Kind, tenant: p.Tenant, id: p.ID, access: p.Access, target: t, route: req.Route,
		public: req.Public, trigger: req.Trigger, guards: g, open: req.Public.Open(now),
	}
	if req.Public != nil {
		k.before = before(now, req.Public.Until)
	}
	return k, true
}

// decided is a decision that allowed a plain call, and whom it is about.
type decided struct {
	Decision
	name      string
	roles     []bawn.Role
	functions []string
}

func newDecided(d Decision, p *bawn.Principal) *decided {
	d.Policies = slices.Clip(d.Policies)
	return &decided{d, p.Name, slices.Clone(p.Roles), slices.Clone(p.Functions)}
}

// about reports whether it is about p, which the key tells but for this.
func (d *decided) about(p *bawn.Principal) bool {
	return d.name == p.Name && slices.Equal(d.roles, p.Roles) && slices.Equal(d.functions, p.Functions)
}
