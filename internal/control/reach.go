package control

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
)

// reachChanges lists what is different in the egress of b beside the functions it
// calls; control A5.
func reachChanges(old, b *bawn.Version, add func(field, before, after string, widens bool)) {
	p, q := &old.Perimeter.Egress, &b.Perimeter.Egress
	hostChanges(p, q, add)
	everything := func(e *bawn.Egress) string {
		if e.Everything == nil {
			return ""
		}
		return "EVERY PUBLIC HOST until " + lastDay(e.Everything) + ": " + e.Everything.Reason
	}
	add("egress.everything", everything(p), everything(q), q.Everything != nil && (p.Everything == nil || q.Everything.Until.After(p.Everything.Until)))
	add("egress.proxy", setText(p.Proxy), setText(q.Proxy), false)

	secrets := func(e *bawn.Egress) map[string]string {
		all := map[string]string{}
		for _, s := range e.Secrets {
			all[s.Name] = "may be read"
			if s.File {
				all[s.Name] = "may be read, and is a file in memory"
			}
		}
		return all
	}
	changed("egress.secrets", secrets(p), secrets(q), add, func(_, before, after string) bool { return len(after) > len(before) })

	databases := func(e *bawn.Egress) (map[string]string, map[string]*bawn.Database) {
		texts, all := map[string]string{}, map[string]*bawn.Database{}
		for i := range e.Databases {
			texts[e.Databases[i].Name], all[e.Databases[i].Name] = manifest.DatabaseText(&e.Databases[i]), &e.Databases[i]
		}
		return texts, all
	}
	before, were := databases(p)
	after, are := databases(q)
	changed("egress.databases", before, after, add, func(name, _, _ string) bool { return !databaseCovered(were[name], are[name]) })

	responseChanges(p.Response, q.Response, add)
}

func setText(b bool) string {
	if b {
		return "set"
	}
	return ""
}

// changed adds what is different between two maps from names to texts.
func changed(field string, before, after map[string]string, add func(field, before, after string, widens bool), widens func(name, before, after string) bool) {
	names := map[string]bool{}
	for _, m := range []map[string]string{before, after} {
		for n := range m {
			names[n] = true
		}
	}
	for _, n := range sorted(names) {
		add(field+"["+n+"]", before[n], after[n], after[n] != "" && (before[n] == "" || widens(n, before[n], after[n])))
	}
}

func sorted(m map[string]bool) []string {
	var all []string
	for n := range m {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

// hostChanges lists the rules for hosts that are new, gone or other. What a rule
// lets through depends on those before it, so it is looked at what is let through
// to each host that any rule names, on each port.
func hostChanges(p, q *bawn.Egress, add func(field, before, after string, widens bool)) {
	wider := widerRules(p, q)
	used := make([]bool, len(p.Hosts))
	same := func(h *bawn.Host) int {
		return slices.IndexFunc(p.Hosts, func(o bawn.Host) bool { return reflect.DeepEqual(o, *h) })
	}
	for i := range q.Hosts {
		if j := same(&q.Hosts[i]); j >= 0 {
			used[j] = true
		}
	}
	for i := range q.Hosts {
		h := &q.Hosts[i]
		before, after := "", manifest.HostText(h)
		if same(h) >= 0 {
			if before = after; wider[i] {
				after += "; now also for what another rule was about before"
			}
		} else {
			for j := range p.Hosts {
				if !used[j] && p.Hosts[j].Host == h.Host {
					used[j], before = true, manifest.HostText(&p.Hosts[j])
					break
				}
			}
		}
		if before == after && wider[i] {
			after += "; otherwise bounded"
		}
		add("egress.hosts["+h.Host+"]", before, after, wider[i])
	}
	for j := range p.Hosts {
		if !used[j] {
			add("egress.hosts["+p.Hosts[j].Host+"]", manifest.HostText(&p.Hosts[j]), "", false)
		}
	}
}

// widerRules says of each rule of q whether it lets something through that p does
// not.
func widerRules(p, q *bawn.Egress) []bool {
	wider := make([]bool, len(q.Hosts))
	at := map[*bawn.Host]int{}
	hosts, ports := map[string]bool{}, map[int]bool{}
	for _, e := range []*bawn.Egress{p, q} {
		for i := range e.Hosts {
			hosts[e.Hosts[i].Host] = true
			for _, n := range e.Hosts[i].Ports {
				ports[n] = true
			}
		}
	}
	for i := range q.Hosts {
		at[&q.Hosts[i]] = i
	}
	for host := range hosts {
		for port := range ports {
			before, after := letting(p, host, port), letting(q, host, port)
			if len(before) > 0 && len(after) > 0 && before[0].Clear() && !after[0].Clear() {
				wider[at[after[0]]] = true // what was read is not read any more
			}
			for _, h := range after {
				if !slices.ContainsFunc(before, func(o *bawn.Host) bool { return ruleCovered(o, h) }) {
					wider[at[h]] = true
				}
			}
		}
	}
	return wider
}

// letting returns the rules that count for a host, as some rule names it, and a
// port: the first that fits, and if that is about requests all after it.
func letting(e *bawn.Egress, host string, port int) []*bawn.Host {
	var all []*bawn.Host
	for i := range e.Hosts {
		h := &e.Hosts[i]
		if !slices.Contains(h.Ports, port) || !takesIn(h, host) {
			continue
		}
		all = append(all, h)
		if !all[0].Clear() {
			return all
		}
	}
	return all
}

// takesIn reports whether h is about all that host, as a rule names it, is about.
func takesIn(h *bawn.Host, host string) bool {
	if h.Host == host {
		return true
	}
	if base, wild := strings.CutPrefix(host, "*."); wild {
		return h.Host == "*."+base
	}
	if r, err := netip.ParsePrefix(host); err == nil {
		o, err := netip.ParsePrefix(h.Host)
		return err == nil && o.Bits() <= r.Bits() && o.Contains(r.Addr())
	}
	return h.Matches(host)
}

// ruleCovered reports whether o lets through whatever h does, of one host and port.
func ruleCovered(o, h *bawn.Host) bool {
	longest := func(d int64) int64 {
		if d == 0 {
			return 1 << 62
		}
		return d
	}
	switch {
	case h.Plaintext && !o.Plaintext,
		o.Clear() && !h.Clear(), // what was read is not read any more
		len(o.Methods) > 0 && (len(h.Methods) == 0 || !subset(h.Methods, o.Methods)),
		len(o.Paths) > 0 && (len(h.Paths) == 0 || !pathsCovered(h.Paths, o.Paths)),
		h.Inject != nil && (o.Inject == nil || *h.Inject != *o.Inject),
		!subset(h.Labels, o.Labels),
		cmp.Or(h.Bytes, bawn.DefaultEgressBytes) > cmp.Or(o.Bytes, bawn.DefaultEgressBytes),
		cmp.Or(h.Connections, bawn.DefaultEgressConns) > cmp.Or(o.Connections, bawn.DefaultEgressConns),
		longest(int64(h.Time)) > longest(int64(o.Time)):
		return false
	}
	return true
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(whole, s) })
}

func pathsCovered(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool {
		return !slices.ContainsFunc(whole, func(w string) bool {
			below, wild := strings.CutSuffix(w, "*")
			return w == s || wild && strings.HasPrefix(s, below)
		})
	})
}

func databaseCovered(o, d *bawn.Database) bool {
	most := func(n int64) int64 {
		if n == 0 {
			return 1 << 62
		}
		return n
	}
	return o.Kind == d.Kind && o.Address == d.Address && o.Database == d.Database && o.User == d.User && o.Secret == d.Secret &&
		(o.Plaintext || !d.Plaintext) && slices.Equal(o.Labels, d.Labels) &&
		cmp.Or(d.Connections, bawn.DefaultDatabaseConn) <= cmp.Or(o.Connections, bawn.DefaultDatabaseConn) &&
		most(int64(d.Statements)) <= most(int64(o.Statements)) && most(int64(d.Timeout)) <= most(int64(o.Timeout))
}

// responseChanges lists what is different in what an answer must look like. Which
// of two schemas lets more through nobody can say, so another one widens.
func responseChanges(p, q *bawn.Response, add func(field, before, after string, widens bool)) {
	was, is := bawn.Response{}, bawn.Response{}
	if p != nil {
		was = *p
	}
	if q != nil {
		is = *q
	}
	schema := func(s string) string {
		if s == "" {
			return ""
		}
		return "set, " + short(policy.Hash(s))
	}
	add("egress.response.schema", schema(was.Schema), schema(is.Schema), was.Schema != "" && was.Schema != is.Schema)
	bytes := func(n int64) string {
		if n == 0 {
			return ""
		}
		return manifest.Size(n).String()
	}
	add("egress.response.bytes", bytes(was.Bytes), bytes(is.Bytes), was.Bytes > 0 && (is.Bytes == 0 || is.Bytes > was.Bytes))
	add("egress.response.headers", strings.Join(was.Headers, ", "), strings.Join(is.Headers, ", "),
		len(was.Headers) > 0 && (len(is.Headers) == 0 || !subset(is.Headers, was.Headers)))
	strength := map[string]int{"": 0, "redact": 1, "refuse": 2}
	add("egress.response.cards", was.Cards, is.Cards, strength[is.Cards] < strength[was.Cards])
}

// Everything says which functions reach every public host now, by any version that an
// alias points at; control C2. An operator of the installation is told of those of all
// tenants, everybody else of their own. It checks no right: whoever may look at the node
// may ask.
func (c *Control) Everything(p bawn.Principal) bawn.Capability {
	all, prefix := []string{}, p.Tenant+"."
	if p.Tenant == bawn.DefaultTenant && slices.Contains(p.Roles, bawn.RoleOperator) {
		prefix = ""
	}
	for _, f := range c.functions.All(prefix) {
		if !concerns(p, f.Name) {
			continue
		}
		numbers := map[int]bool{}
		for _, n := range f.Aliases {
			numbers[n] = true
		}
		for n := range numbers {
			v, _, ok := c.versions.Get(versionKey(f.Tenant, f.Name, n))
			if e := v.Perimeter.Egress.Everything; ok && e.Open(c.cfg.Now()) {
				all = append(all, v.Ref().String()+" until "+lastDay(e)+" ("+e.Reason+")")
			}
		}
	}
	slices.Sort(all)
	x := bawn.Capability{Name: "egress.everything", Control: "C2", OK: len(all) == 0, Detail: "no function reaches every public host"}
	if !x.OK {
		x.Detail = "EVERY PUBLIC HOST is open to " + strings.Join(all[:min(len(all), maxOpenTold)], ", ")
		if n := len(all) - maxOpenTold; n > 0 {
			x.Detail += ", and to " + strconv.Itoa(n) + " more"
		}
		x.Fix = "name the hosts instead: bawn perimeter suggest FUNCTION proposes the rules"
	}
	return x
}

// maxOpenTold bounds the versions that are named in [Control.Everything].
const maxOpenTold = 20
