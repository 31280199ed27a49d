package control

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/store"
)

const (
	maxDomains    = 100  // of one tenant
	maxAllDomains = 5000 // of all, since each is looked up in memory and may have a certificate
)

// domains are the domains of tenants: a table, and what calls look up of it, which
// takes no lock. Safe for concurrent use.
type domains struct {
	table *store.Table[bawn.Domain] // tenant.name, with _ for each dot of the name
	by    atomic.Pointer[map[string]string]
}

func openDomains(ctx context.Context, s *store.Store) (*domains, error) {
	table, err := store.OpenTable[bawn.Domain](ctx, s, "domains")
	if err != nil {
		return nil, err
	}
	d := &domains{table: table}
	d.by.Store(&map[string]string{})
	table.Watch(func(key string, row *bawn.Domain) {
		tenant, name := key, domainName(key)
		if i := strings.IndexByte(key, '.'); i >= 0 {
			tenant = key[:i]
		}
		m := maps.Clone(*d.by.Load()) // the watcher is called by one at a time
		switch {
		case row != nil:
			m[name] = row.Tenant
		case m[name] == tenant:
			delete(m, name)
		}
		d.by.Store(&m)
	})
	return d, nil
}

func domainKey(tenant, name string) string { return tenant + "." + strings.ReplaceAll(name, ".", "_") }

// domainName undoes domainKey, as far as the name goes.
func domainName(key string) string {
	_, name, _ := strings.Cut(key, ".")
	return strings.ReplaceAll(name, "_", ".")
}

// find returns the domain name, whosever it is.
func (d *domains) find(name string) (row bawn.Domain, rev uint64, ok bool) {
	tenant, ok := (*d.by.Load())[name]
	if !ok {
		return row, 0, false
	}
	return d.table.Get(domainKey(tenant, name))
}

// Owner returns the tenant whose domain a host is, if it is one. It reads memory
// only.
func (c *Control) Owner(host string) (tenant string, ok bool) {
	tenant, ok = (*c.domains.by.Load())[host]
	return tenant, ok
}

// WatchDomains calls fn with each domain that there is, or comes to be, and with there
// false for each that is taken away, until stop is called. fn must not block.
func (c *Control) WatchDomains(fn func(name string, there bool)) (stop func()) {
	return c.domains.table.Watch(func(key string, row *bawn.Domain) { fn(domainName(key), row != nil) })
}

// NoDomains reports whether nobody has a domain: there is nothing that hosts would
// tell apart. It reads memory only.
func (c *Control) NoDomains() bool {
	return len(*c.domains.by.Load()) == 0 && c.domains.table.Trusted() == nil
}

// Domain is a domain with what answers on it.
type Domain struct {
	bawn.Domain
	Functions []string `json:"functions" nullable:"false" doc:"of its tenant, whose live version has a route there; sorted"`
}

// domain is what a row says to p.
func (c *Control) domain(p bawn.Principal, row bawn.Domain) Domain {
	d := Domain{Domain: row, Functions: []string{}}
	for _, v := range c.liveVersions(row.Tenant, nil) {
		there := slices.ContainsFunc(v.Perimeter.Ingress.HTTP, func(r bawn.Route) bool { return slices.Contains(r.Hosts, row.Name) })
		if there && (p.Tenant != row.Tenant || concerns(p, v.Function)) {
			d.Functions = append(d.Functions, v.Function)
		}
	}
	slices.Sort(d.Functions)
	return d
}

// seesAll reports whether p is told of all tenants' domains. Everybody else is told
// of those of their own.
func (c *Control) seesAll(p bawn.Principal) bool {
	return c.cfg.Policy.Allows(policy.Request{
		Principal: p, Action: policy.Tenants, Resource: bawn.Ref{Tenant: p.Tenant}, Object: policy.Object{Kind: policy.Installation},
	})
}

// Domains lists the domains of the principal's tenant by name, and for an operator
// those of all.
func (c *Control) Domains(ctx context.Context, p bawn.Principal) ([]Domain, error) {
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	prefix := p.Tenant + "."
	if c.seesAll(p) {
		prefix = ""
	}
	var all []Domain
	for _, row := range c.domains.table.All(prefix) {
		all = append(all, c.domain(p, row))
	}
	slices.SortFunc(all, func(a, b Domain) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func noDomain() *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control.domain", "there is no such domain").WithFix("bawn domain ls lists the domains there are; an operator adds one with bawn domain add")
}

// Domain returns a domain of the principal's tenant, or for an operator anybody's.
func (c *Control) Domain(ctx context.Context, p bawn.Principal, name string) (Domain, error) {
	if err := bawn.CheckDomain(name); err != nil {
		return Domain{}, err
	}
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return Domain{}, err
	}
	row, _, ok := c.domains.find(name)
	if !ok || row.Tenant != p.Tenant && !c.seesAll(p) {
		return Domain{}, noDomain()
	}
	return c.domain(p, row), nil
}

// AddDomain gives a domain to a tenant: from then on its routes may name it, and
// no other tenant's may. It is for operators: that a name leads here is their say,
// and who else could take it from its owner.
func (c *Control) AddDomain(ctx context.Context, p bawn.Principal, name, tenant string) (Domain, error) {
	const op = "control.domain"
	if err := bawn.CheckDomain(name); err != nil {
		return Domain{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, err := c.tenantFor(ctx, p, tenant); err != nil {
		return Domain{}, err
	}
	if err := c.domains.table.Trusted(); err != nil { // one that cannot be read may be somebody's
		return Domain{}, err
	}
	if c.cfg.OwnHost != nil && c.cfg.OwnHost(name) {
		return Domain{}, bawn.Errorf(bawn.CodeConflict, op, "%s is a name of the node itself, which all tenants share", name).
			WithFix("take another domain, or start the node without --name %s", name)
	}
	if row, _, ok := c.domains.find(name); ok {
		if row.Tenant == tenant {
			return c.domain(p, row), nil
		}
		return Domain{}, bawn.Errorf(bawn.CodeConflict, op, "%s is the domain of the tenant %s", name, row.Tenant).
			WithFix("bawn domain rm %s takes it from there", name)
	}
	mine := 0
	for range c.domains.table.All(tenant + ".") {
		mine++
	}
	switch {
	case mine >= maxDomains:
		return Domain{}, bawn.Errorf(bawn.CodeTooLarge, op, "the tenant has %d domains, no more are allowed", mine).WithFix("bawn domain rm takes one away")
	case c.domains.table.Len() >= maxAllDomains:
		return Domain{}, bawn.Errorf(bawn.CodeTooLarge, op, "the installation has %d domains, no more are allowed", c.domains.table.Len()).WithFix("bawn domain rm takes one away")
	}
	row := bawn.Domain{Name: name, Tenant: tenant, CreatedAt: c.cfg.Now().UTC(), CreatedBy: p.String()}
	err := c.change(ctx, p, bawn.Record{Action: "domain.add", Detail: map[string]string{"domain": name, "tenant": tenant}}, func(ctx context.Context) error {
		_, err := c.domains.table.Create(ctx, domainKey(tenant, name), row)
		return err
	})
	return c.domain(p, row), err
}

// RemoveDomain takes a domain from its tenant. Routes that name it answer there no
// more, at once; it returns the domain as it was.
func (c *Control) RemoveDomain(ctx context.Context, p bawn.Principal, name string) (Domain, error) {
	if err := bawn.CheckDomain(name); err != nil {
		return Domain{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.operator(ctx, p); err != nil {
		return Domain{}, err
	}
	row, _, ok := c.domains.find(name)
	if !ok {
		return Domain{}, noDomain()
	}
	was := c.domain(p, row)
	err := c.change(ctx, p, bawn.Record{Action: "domain.rm", Detail: map[string]string{"domain": name, "tenant": row.Tenant}}, func(ctx context.Context) error {
		return remove(ctx, c.domains.table, domainKey(row.Tenant, name))
	})
	return was, err
}

// checkHosts refuses a version with a route on a host that is no domain of its
// tenant's. The caller holds mu.
func (c *Control) checkHosts(v *bawn.Version) error {
	for i := range v.Perimeter.Ingress.HTTP {
		r := &v.Perimeter.Ingress.HTTP[i]
		for _, h := range r.Hosts {
			if tenant, ok := c.Owner(h); !ok || tenant != v.Tenant { // whose it is otherwise is not said
				return bawn.Errorf(bawn.CodeUnprocessable, "control.routes", "the route %s: %s is no domain of this tenant's", r, h).
					WithFix("an operator gives it: bawn domain add %s --tenant %s", h, v.Tenant)
			}
		}
	}
	return nil
}

// hostsOf lists where a route answers: "" is the node's own names.
func hostsOf(r *bawn.Route) []string {
	if len(r.Hosts) == 0 {
		return []string{""}
	}
	return r.Hosts
}
