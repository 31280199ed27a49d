package interior

import (
	"sync"

	"bawn.dev/bawn"
)

// tenantUse is what the instances of one tenant take of its quota.
type tenantUse struct {
	instances int
	memory    int64
	short     bool // somebody was refused since the last time something was given back
}

// tenants counts the instances of each tenant. A lock of a function may be held
// when its lock is taken, never the other way round.
type tenants struct {
	mu  sync.Mutex
	use map[string]*tenantUse
}

// errHalted says that nothing of the tenant may run.
var errHalted = bawn.Errorf(bawn.CodeUnavailable, "run", "nothing of this tenant may run now").WithFix("the operator of the node knows why")

// halted reports whether nothing of the tenant may run.
func (p *Pool) halted(tenant string) bool {
	_, ok := p.cfg.Quota(tenant)
	return !ok
}

// take takes the tenant's share for an instance of f, if its quota has one. Its
// function's lock is held. When it has none, an idle instance of another of the
// tenant's functions makes room, and whoever waits hears of it.
func (p *Pool) take(f *fleet) bool {
	tenant, memory := f.fn.key.tenant, f.version.Perimeter.Interior.Memory
	quota, ok := p.cfg.Quota(tenant)
	if !ok {
		return false
	}
	p.tenants.mu.Lock()
	defer p.tenants.mu.Unlock()
	u := p.tenants.use[tenant]
	if u == nil {
		u = &tenantUse{}
		p.tenants.use[tenant] = u
	}
	if quota.Instances > 0 && u.instances >= quota.Instances || quota.Memory > 0 && u.memory+memory > quota.Memory {
		u.short = true
		go p.reclaim(tenant)
		return false
	}
	u.instances++
	u.memory += memory
	return true
}

// give gives back what take took. Its function's lock is held.
func (p *Pool) give(f *fleet) {
	tenant := f.fn.key.tenant
	p.tenants.mu.Lock()
	defer p.tenants.mu.Unlock()
	u := p.tenants.use[tenant]
	u.instances--
	u.memory -= f.version.Perimeter.Interior.Memory
	if u.short {
		u.short = false
		go p.wake(tenant)
	}
	if u.instances == 0 {
		delete(p.tenants.use, tenant)
	}
}

// full reports whether a call of the tenant was refused an instance for its
// quota since one was given back.
func (p *Pool) full(tenant string) bool {
	p.tenants.mu.Lock()
	defer p.tenants.mu.Unlock()
	u := p.tenants.use[tenant]
	return u != nil && u.short
}

// reclaim ends the instance of the tenant that has been idle longest.
func (p *Pool) reclaim(tenant string) {
	destroyAll(p.oldest(1, tenant))
}

// wake lets the tenant's waiting calls try again.
func (p *Pool) wake(tenant string) {
	for _, fn := range p.of(tenant) {
		fn.mu.Lock()
		fn.next()
		fn.mu.Unlock()
	}
}

// of returns the tenant's functions that have something going on.
func (p *Pool) of(tenant string) (list []*function) {
	for _, fn := range p.all() {
		if fn.key.tenant == tenant {
			list = append(list, fn)
		}
	}
	return list
}

// Halt ends every instance of a tenant that Quota has said may not run any more,
// busy ones too, and refuses the calls that wait. An instance that is being made
// ends before it gets a call.
func (p *Pool) Halt(tenant string) {
	for _, fn := range p.of(tenant) {
		var ending []*instance
		fn.mu.Lock()
		for len(fn.waiters) > 0 {
			fn.serves(0, grant{err: errHalted})
		}
		for _, f := range fn.fleets {
			f.retired = true
			for in := range f.instances {
				ending = append(ending, in)
			}
		}
		fn.mu.Unlock()
		for _, in := range ending {
			go in.kill()
			if in.withdraw("idle", "frozen") {
				in.destroy()
			}
		}
	}
}
