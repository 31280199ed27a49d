package ingress

import (
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// damage is what of the functions cannot be read, and so what their routes are is
// not known either. It is found once: what was loaded stays.
type damage struct {
	all     error           // nothing can be trusted
	first   error           // what is wrong, if anything
	tenants map[string]bool // whose routes are not all known
}

func findDamage(functions *store.Table[bawn.Function], versions *store.Table[bawn.Version]) damage {
	d := damage{tenants: map[string]bool{}}
	for x := range functions.Damaged() {
		if !functions.Lost(x.Key) {
			continue // what was deleted stays so
		}
		d.add(x.Key, functions.Trusted())
	}
	for x := range versions.Damaged() {
		if !versions.Lost(x.Key) {
			continue
		}
		// One that is not live has no routes.
		i := strings.LastIndexByte(x.Key, '.')
		if f, _, ok := functions.Get(x.Key[:max(i, 0)]); ok {
			if n, _ := f.Resolve(""); strconv.Itoa(n) != x.Key[i+1:] {
				continue
			}
		}
		d.add(x.Key, versions.Trusted())
	}
	return d
}

func (d *damage) add(key string, err error) {
	if d.first == nil {
		d.first = err
	}
	if key == "" {
		d.all = err
	}
	tenant, _, _ := strings.Cut(key, ".")
	d.tenants[tenant] = true
}

// route refuses a request by route that may be meant for a function whose routes
// are not known: one that finds nothing; one that only a pattern takes, since a
// lost route may be closer; and one that another tenant has, since two tenants can
// claim the same and the older has it.
func (d *damage) route(m Match, ok bool) error {
	switch {
	case d.first == nil:
		return nil
	case d.all != nil:
		return d.all
	case !ok || m.Params != nil:
		return d.first
	}
	for tenant := range d.tenants {
		if tenant != m.Version.Tenant {
			return d.first
		}
	}
	return nil
}

// lost returns nil unless what ref names is damaged: then it is not for being
// missing that it was not found.
func (g *Gate) lost(ref bawn.Ref) error {
	if g.damaged.first == nil && g.cfg.Versions.Trusted() == nil {
		return nil
	}
	f, _, ok, err := g.cfg.Functions.Find(ref.Tenant + "." + ref.Function)
	if err != nil || !ok {
		return err
	}
	n, ok := f.Resolve(ref.Qualifier)
	if !ok {
		return nil
	}
	_, _, _, err = g.cfg.Versions.Find(versionKey(&f, n))
	return err
}
