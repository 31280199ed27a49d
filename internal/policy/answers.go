package policy

import (
	"slices"
	"sync"

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

	public, direct                        bool
	trigger, routeMethod, routeAt, access string
}

// keyed is the attributes that are in an [askedKey].
const keyed = needPublic | needDirect | needTrigger | needRoute | needAccess

// key returns what the answer of rules that look at needs depends on. It reports
// false if there is more to it, such as the time.
func (q *question) key(rules asked, needs attributes) (k askedKey, ok bool) {
	for _, v := range [2]*bawn.Version{q.req.Target, q.req.Caller} {
		if v != nil && v.Digest == "" { // compiled anew each time
			return k, false
		}
	}
	if needs&^keyed != 0 {
		return k, false
	}
	k = askedKey{principal: q.principal, resource: q.resource, action: q.action.ID, rules: rules, public: q.public, direct: q.direct}
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

// maxAnswers bounds the answers that are kept, and with them the rules and
// entities that are not there any more.
const maxAnswers = 4096

// answers keeps what the rules said: a warm call asks the same each time. It is
// safe for concurrent use.
type answers struct {
	mu   sync.RWMutex
	kept map[askedKey]outcome
}

// get adds what the rules said to o, if it is known.
func (a *answers) get(k *askedKey, o *outcome) bool {
	a.mu.RLock()
	known, ok := a.kept[*k]
	a.mu.RUnlock()
	if ok {
		o.permits, o.forbids = known.permits, known.forbids
	}
	return ok
}

// forget drops everything.
func (a *answers) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept = nil
}

// put keeps what the rules said, of which none has failed.
func (a *answers) put(k *askedKey, o *outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept == nil || len(a.kept) >= maxAnswers {
		a.kept = map[askedKey]outcome{} // each comes again when it is asked for
	}
	a.kept[*k] = outcome{permits: slices.Clip(o.permits), forbids: slices.Clip(o.forbids)}
}
