package policy

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"bawn.dev/bawn"
)

// The kinds of entity, as the schema has them.
const (
	typeAction       types.EntityType = "Bawn::Action"
	typeRole         types.EntityType = "Bawn::Role"
	typeTenant       types.EntityType = "Bawn::Tenant"
	typeInstallation types.EntityType = "Bawn::Installation"
	typeFunction     types.EntityType = "Bawn::Function"
	typeKey          types.EntityType = "Bawn::Key"
	typeUser         types.EntityType = "Bawn::User"
	typeCert         types.EntityType = "Bawn::Cert"
	typeWebhook      types.EntityType = "Bawn::Webhook"
	typeAnonymous    types.EntityType = "Bawn::Anonymous"
	typeNode         types.EntityType = "Bawn::Node"
	typeHost         types.EntityType = "Bawn::Host"
	typeDatabase     types.EntityType = "Bawn::Database"
	typeSecret       types.EntityType = "Bawn::Secret"
)

// astOf brings Cedar's two names of one type together.
func astOf(p *expast.Policy) *ast.Policy { return (*ast.Policy)(p) }

func actionUID(a Action) types.EntityUID { return types.NewEntityUID(typeAction, types.String(a)) }
func roleUID(r bawn.Role) types.EntityUID {
	return types.NewEntityUID(typeRole, types.String(r))
}
func tenantUID(name string) types.EntityUID {
	return types.NewEntityUID(typeTenant, types.String(name))
}
func functionUID(tenant, name string) types.EntityUID {
	return types.NewEntityUID(typeFunction, types.String(tenant+"/"+name))
}

// principalType returns the kind of entity that a kind of principal is, or "".
func principalType(kind string) types.EntityType {
	switch kind {
	case bawn.PrincipalKey:
		return typeKey
	case bawn.PrincipalUser:
		return typeUser
	case bawn.PrincipalCert:
		return typeCert
	case bawn.PrincipalWebhook:
		return typeWebhook
	case bawn.PrincipalFunction:
		return typeFunction
	case bawn.PrincipalAnonymous:
		return typeAnonymous
	case bawn.PrincipalNode:
		return typeNode
	}
	return ""
}

// people reports whether principals of type t have roles.
func people(t types.EntityType) bool {
	return t == typeKey || t == typeUser || t == typeCert || t == typeWebhook
}

// maxEntities bounds the entities that are kept made.
const maxEntities = 8192

// entities keeps what was made of principals and functions, so that a decision
// need not make it again. It is safe for concurrent use.
type entities struct {
	mu     sync.RWMutex
	people map[personKey]person
	things map[thingKey]*types.Entity
}

type personKey struct{ kind, tenant, id string }

// person is an entity and what it was made from.
type person struct {
	from   bawn.Principal
	entity *types.Entity
}

type thingKey struct {
	kind         types.EntityType
	tenant, name string
}

// person returns the entity of p, which is a key, a user or a certificate.
func (x *entities) person(t types.EntityType, p bawn.Principal) *types.Entity {
	key := personKey{p.Kind, p.Tenant, p.ID}
	x.mu.RLock()
	old, ok := x.people[key]
	x.mu.RUnlock()
	if ok && old.from.Name == p.Name && slices.Equal(old.from.Roles, p.Roles) && slices.Equal(old.from.Functions, p.Functions) {
		return old.entity
	}
	attrs := types.RecordMap{"tenant": tenantUID(p.Tenant), "name": types.String(p.Name)}
	if len(p.Functions) > 0 {
		held := make([]types.Value, len(p.Functions))
		for i, f := range p.Functions {
			held[i] = functionUID(p.Tenant, f)
		}
		attrs["functions"] = types.NewSet(held...)
	}
	roles := make([]types.EntityUID, len(p.Roles))
	for i, r := range p.Roles {
		roles[i] = roleUID(r)
	}
	e := &types.Entity{
		UID:     types.NewEntityUID(t, types.String(p.ID)),
		Parents: types.NewEntityUIDSet(roles...), Attributes: types.NewRecord(attrs),
	}
	p.Roles, p.Functions = slices.Clone(p.Roles), slices.Clone(p.Functions)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.people == nil || len(x.people) >= maxEntities {
		x.people = map[personKey]person{}
	}
	x.people[key] = person{p, e}
	return e
}

// thing returns the entity of what a tenant has: a function, or an object of
// another kind. With no name it is the tenant.
func (x *entities) thing(kind types.EntityType, tenant, name string) *types.Entity {
	key := thingKey{kind, tenant, name}
	x.mu.RLock()
	e := x.things[key]
	x.mu.RUnlock()
	if e != nil {
		return e
	}
	e = newThing(kind, tenant, name)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.things == nil || len(x.things) >= maxEntities {
		x.things = map[thingKey]*types.Entity{}
	}
	x.things[key] = e
	return e
}

// newThing makes the entity of what a tenant has.
func newThing(kind types.EntityType, tenant, name string) *types.Entity {
	owner := tenantUID(tenant)
	if kind == typeTenant {
		return &types.Entity{UID: owner, Attributes: types.NewRecord(types.RecordMap{"tenant": owner, "name": types.String(tenant)})}
	}
	return &types.Entity{
		UID:        types.NewEntityUID(kind, types.String(tenant+"/"+name)),
		Parents:    types.NewEntityUIDSet(owner),
		Attributes: types.NewRecord(types.RecordMap{"tenant": owner, "name": types.String(name)}),
	}
}

// question is one question to Cedar, and the entities that it speaks of.
type question struct {
	e         *Engine
	principal *types.Entity
	action    types.EntityUID
	resource  *types.Entity

	req    *Request
	guards *guards
	now    time.Time
	public bool
	direct bool // the principal acts itself
}

// Get is Cedar's way to an entity.
func (q *question) Get(uid types.EntityUID) (types.Entity, bool) {
	switch {
	case uid == q.principal.UID:
		return *q.principal, true
	case uid == q.resource.UID:
		return *q.resource, true
	}
	switch uid.Type {
	case typeTenant:
		return *q.e.entities.thing(typeTenant, string(uid.ID), ""), true
	case typeFunction: // of the context
		if tenant, name, ok := cutName(string(uid.ID)); ok {
			return *q.e.entities.thing(typeFunction, tenant, name), true
		}
	}
	return types.Entity{}, false
}

// context makes those attributes of the context that are needed.
func (q *question) context(needs attributes) types.Record {
	switch {
	case needs == 0:
		return types.Record{}
	case needs == needPublic && q.public:
		return q.e.isPublic
	case needs == needPublic:
		return q.e.notPublic
	}
	m := make(types.RecordMap, 16)
	if needs&needNow != 0 {
		m["now"] = types.NewDatetime(q.now)
	}
	if needs&needSource != 0 {
		if a, err := netip.ParseAddr(q.req.Source); err == nil {
			if a = a.Unmap().WithZone(""); a.IsValid() {
				m["source"] = types.IPAddr(netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if needs&needTrigger != 0 {
		m["trigger"] = types.String(q.req.Trigger)
	}
	if needs&needRoute != 0 && q.req.Route != nil {
		m["route"] = types.String(routeText(q.req.Route))
	}
	if needs&needPublic != 0 {
		m["public"] = types.Boolean(q.public)
	}
	if needs&needDirect != 0 {
		m["direct"] = types.Boolean(q.direct)
	}
	if needs&needCaller != 0 && q.req.Caller != nil {
		m["caller"] = functionUID(q.req.Caller.Tenant, q.req.Caller.Function)
	}
	if needs&needChain != 0 {
		all := make([]types.Value, len(q.req.Chain))
		for i, r := range q.req.Chain {
			all[i] = functionUID(r.Tenant, r.Function)
		}
		m["chain"] = types.NewSet(all...)
	}
	if needs&needDepth != 0 {
		m["depth"] = types.Long(max(q.req.Hops, len(q.req.Chain)))
	}
	if needs&needOrder != 0 {
		m["order"] = types.Long(q.req.Order)
	}
	if needs&needCalled != 0 {
		all := make([]types.Value, len(q.req.Called))
		for i, name := range q.req.Called {
			all[i] = functionUID(q.req.Resource.Tenant, name)
		}
		m["called"] = types.NewSet(all...)
	}
	origin := &q.req.Origin
	if origin.Kind == "" {
		origin = &q.req.Principal
	}
	if needs&needOnBehalf != 0 {
		m["onBehalf"] = types.String(origin.String())
	}
	if needs&needOnBehalfRoles != 0 {
		all := make([]types.Value, len(origin.Roles))
		for i, r := range origin.Roles {
			all[i] = roleUID(r)
		}
		m["onBehalfRoles"] = types.NewSet(all...)
	}
	if needs&needMethod != 0 && q.req.Object.Method != "" {
		m["method"] = types.String(q.req.Object.Method)
	}
	if needs&needPath != 0 && q.req.Object.Path != "" {
		m["path"] = types.String(q.req.Object.Path)
	}
	if needs&needAccess != 0 {
		m["access"] = types.String(q.access())
	}
	return types.NewRecord(m)
}

// access is which kind of access the principal has met itself.
func (q *question) access() string {
	if q.direct {
		return q.req.Principal.Access
	}
	return ""
}

// routeText is a route as rules name it.
func routeText(r *bawn.Route) string { return r.String() }
