package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

const maxFlowView = 500 // sources, and destinations

// Leak is one way on which labelled data can get to where that label is not: from
// a source through functions that call each other to a destination.
type Leak struct {
	Label     string   `json:"label"`
	Guardrail string   `json:"guardrail" doc:"the one that forbids it"`
	Path      []string `json:"path" doc:"the source, the functions from one to the next, the destination"`
}

// String writes the way with arrows.
func (l *Leak) String() string { return strings.Join(l.Path, " → ") }

// key names the ends of the way: which functions lie between does not matter.
func (l *Leak) key() string {
	return l.Label + "\x00" + l.Path[0] + "\x00" + l.Path[1] + "\x00" + l.Path[len(l.Path)-2] + "\x00" + l.Path[len(l.Path)-1]
}

const maxLeaks = 1000 // that are looked for at one time

// flow is the declared graph of a tenant: who may call whom, and what each may read
// and reach.
type flow struct {
	versions       map[string]*bawn.Version
	names          []string // sorted; functions are numbered by it
	calls, callers [][]int
	secrets        func(name string) []string // labels
}

func newFlow(versions []*bawn.Version, secrets func(name string) []string) *flow {
	f := &flow{versions: map[string]*bawn.Version{}, secrets: secrets}
	for _, v := range versions {
		f.versions[v.Function] = v
	}
	f.names = slices.Sorted(maps.Keys(f.versions))
	number := make(map[string]int, len(f.names))
	for i, name := range f.names {
		number[name] = i
	}
	f.calls, f.callers = make([][]int, len(f.names)), make([][]int, len(f.names))
	for i, name := range f.names {
		for _, called := range f.versions[name].Perimeter.Egress.Functions {
			if j, ok := number[called]; ok {
				f.calls[i], f.callers[j] = append(f.calls[i], j), append(f.callers[j], i)
			}
		}
	}
	return f
}

// sources returns what of v has the label: the function itself, secrets, databases.
func (f *flow) sources(v *bawn.Version, label string) []string {
	var all []string
	if slices.Contains(v.Labels, label) {
		all = append(all, "label of "+v.Function)
	}
	seen := map[string]bool{}
	secret := func(name string) {
		if name != "" && !seen[name] && slices.Contains(f.secrets(name), label) {
			all = append(all, "secret "+name)
		}
		seen[name] = true
	}
	// One that is injected or logs in to a database never enters the function.
	for _, s := range v.Perimeter.Egress.Secrets {
		secret(s.Name)
	}
	for i := range v.Perimeter.Egress.Databases {
		if d := &v.Perimeter.Egress.Databases[i]; slices.Contains(d.Labels, label) {
			all = append(all, "database "+d.Name)
		}
	}
	return all
}

// destinations returns where of what v reaches the label is not.
func (f *flow) destinations(v *bawn.Version, label string) []string {
	var all []string
	e := &v.Perimeter.Egress
	for i := range e.Hosts {
		if h := &e.Hosts[i]; !slices.Contains(h.Labels, label) {
			all = append(all, "host "+h.Host)
		}
	}
	if e.Everything != nil {
		all = append(all, "every public host")
	}
	for i := range e.Databases {
		if d := &e.Databases[i]; !slices.Contains(d.Labels, label) {
			all = append(all, "database "+d.Name)
		}
	}
	return slices.Compact(all)
}

// leaks returns the ways on which data with the label gets from where it may be to
// where it may not. In one chain of calls what a function knows goes up to who
// called it, in its answer, and from there down into whatever that calls: so a way
// goes up some calls, and then down some.
func (f *flow) leaks(label, guardrail string) []Leak {
	var all []Leak
	n := len(f.names)
	outs := make([][]string, n)
	for i, name := range f.names {
		outs[i] = f.destinations(f.versions[name], label)
	}
	// A place is a function on the way up, or n after it one on the way down.
	before, seen := make([]int, 2*n), make([]int, 2*n)
	reached := make([]int, n)
	queue := make([]int, 0, 2*n)
	for from, name := range f.names {
		sources := f.sources(f.versions[name], label)
		if len(sources) == 0 {
			continue
		}
		round := from + 1 // seen and reached hold the round that was there last
		queue = append(queue[:0], from)
		seen[from], before[from] = round, -1
		for k := 0; k < len(queue); k++ {
			at := queue[k]
			here := at % n
			if reached[here] != round {
				reached[here] = round
				for _, out := range outs[here] {
					var way []string
					for p := at; p >= 0; p = before[p] {
						way = append(way, "function "+f.names[p%n])
					}
					slices.Reverse(way)
					for _, s := range sources {
						if s == out && here == from { // the same database
							continue
						}
						if all = append(all, Leak{label, guardrail, slices.Concat([]string{s}, way, []string{out})}); len(all) >= maxLeaks {
							return all
						}
					}
				}
			}
			step := func(next int) {
				if seen[next] != round {
					seen[next], before[next] = round, at
					queue = append(queue, next)
				}
			}
			if at < n {
				for _, caller := range f.callers[here] {
					step(caller)
				}
			}
			for _, called := range f.calls[here] {
				step(called + n)
			}
		}
	}
	return all
}

// liveVersions returns the live versions of a tenant's functions, by name, with v
// in the place of its function's if it is not nil.
func (c *Control) liveVersions(tenant string, v *bawn.Version) []*bawn.Version {
	var all []*bawn.Version
	for _, f := range c.functions.All(tenant + ".") {
		if v != nil && f.Name == v.Function {
			continue
		}
		if live := c.liveOf(tenant, f.Name); live != nil {
			all = append(all, live)
		}
	}
	if v != nil {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *bawn.Version) int { return strings.Compare(a.Function, b.Function) })
	return all
}

// leaksOf returns the ways that the flow guardrails of a tenant forbid.
func (c *Control) leaksOf(tenant string, versions []*bawn.Version, labels func(secret string) []string, flows []policy.Flow) []Leak {
	if len(flows) == 0 {
		return nil
	}
	f := newFlow(versions, labels)
	var all []Leak
	for _, flow := range flows {
		all = append(all, f.leaks(flow.Label, flow.Scope)...)
	}
	return all
}

// FlowView is what a guardrail on flows looks at in the live versions of a tenant.
type FlowView struct {
	Label        string   `json:"label"`
	Sources      []string `json:"sources" nullable:"false" doc:"what has the label, each with the function that it is in"`
	Destinations []string `json:"destinations" nullable:"false" doc:"where the label is not, each after the function that reaches it"`
	More         int      `json:"more,omitempty" doc:"how many of both are left out"`
}

// FlowOf returns what g looks at in the functions of p's tenant that p has to do with,
// nil if it is not about flows. It authorises nothing: whoever has g may know.
func (c *Control) FlowOf(p bawn.Principal, g Guardrail) *FlowView {
	label, ok := policy.FlowOf(g.Text)
	if !ok {
		return nil
	}
	view := &FlowView{Label: label, Sources: []string{}, Destinations: []string{}}
	add := func(to *[]string, text string) {
		if len(*to) >= maxFlowView {
			view.More++
			return
		}
		*to = append(*to, text)
	}
	versions := c.liveVersions(p.Tenant, nil)
	f := newFlow(versions, c.secretLabels(p.Tenant))
	for _, v := range versions {
		if !concerns(p, v.Function) {
			continue
		}
		for _, s := range f.sources(v, label) {
			add(&view.Sources, s+" → function "+v.Function)
		}
		for _, d := range f.destinations(v, label) {
			add(&view.Destinations, "function "+v.Function+" → "+d)
		}
	}
	return view
}

func (c *Control) secretLabels(tenant string) func(string) []string {
	return func(name string) []string {
		if c.cfg.Vault == nil {
			return nil
		}
		return c.cfg.Vault.Labels(tenant, name)
	}
}

// checkFlow refuses v if it opens a way for labelled data that a guardrail forbids;
// what was open before it does not hold up. Control E9.
func (c *Control) checkFlow(v *bawn.Version) *bawn.Error {
	flows := c.cfg.Policy.Flows(v.Tenant)
	if len(flows) == 0 {
		return nil
	}
	labels := c.secretLabels(v.Tenant)
	before := c.leaksOf(v.Tenant, c.liveVersions(v.Tenant, nil), labels, flows)
	return leaked(before, c.leaksOf(v.Tenant, c.liveVersions(v.Tenant, v), labels, flows))
}

// checkSecretFlow refuses other labels of a secret if with them a way is open that a
// guardrail forbids.
func (c *Control) checkSecretFlow(tenant, name string, labels []string) *bawn.Error {
	flows := c.cfg.Policy.Flows(tenant)
	if len(flows) == 0 {
		return nil
	}
	old, versions := c.secretLabels(tenant), c.liveVersions(tenant, nil)
	before := c.leaksOf(tenant, versions, old, flows)
	return leaked(before, c.leaksOf(tenant, versions, func(n string) []string {
		if n == name {
			return labels
		}
		return old(n)
	}, flows))
}

// checkFlowGuardrail refuses a flow guardrail that what is live breaks.
func (c *Control) checkFlowGuardrail(tenant, name, text string) *bawn.Error {
	label, ok := policy.FlowOf(text)
	if !ok {
		return nil
	}
	tenants := []string{tenant}
	if tenant == "" {
		tenants = nil
		for _, f := range c.functions.All("") {
			if !slices.Contains(tenants, f.Tenant) {
				tenants = append(tenants, f.Tenant)
			}
		}
	}
	for _, t := range tenants {
		all := c.leaksOf(t, c.liveVersions(t, nil), c.secretLabels(t), []policy.Flow{{Label: label, Scope: name}})
		if err := leaked(nil, all); err != nil {
			return err
		}
	}
	return nil
}

// leaked is the error of the ways in after that are not in before.
func leaked(before, after []Leak) *bawn.Error {
	old := map[string]bool{}
	for i := range before {
		old[before[i].key()] = true
	}
	var fresh []string
	label, by, n := "", "", 0
	for i := range after {
		if old[after[i].key()] {
			continue
		}
		label, by = after[i].Label, after[i].Guardrail
		if n++; len(fresh) < 5 {
			fresh = append(fresh, after[i].String())
		}
	}
	if n == 0 {
		return nil
	}
	more := ""
	if n > len(fresh) {
		more = fmt.Sprintf("\nand %d more ways", n-len(fresh))
	}
	return bawn.Errorf(bawn.CodeDenied, "control.flow", "data labelled %s could get to where that label is not, which %s forbids:\n%s%s", label, by, strings.Join(fresh, "\n"), more).
		WithFix("give the destination the label %s if such data may go there, or take one end of the way out of the manifest", label)
}
