package control

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

// Change is one difference between two versions; control A5.
type Change struct {
	Field  string `json:"field" doc:"as the manifest names it, such as interior.memory"`
	Old    string `json:"old,omitempty" doc:"empty if there was none"`
	New    string `json:"new,omitempty" doc:"empty if there is none any more"`
	Widens bool   `json:"widens,omitempty" doc:"whether the perimeter lets more through, or allows more, than before"`
}

// diff lists what is different in b, in the order of the manifest. a is nil for
// a function's first version: then everything that is set is listed, and what
// goes beyond the defaults widens.
func diff(a, b *bawn.Version) []Change {
	changes := []Change{}
	add := func(field, before, after string, widens bool) {
		if a == nil {
			before = ""
		}
		if before != after {
			changes = append(changes, Change{field, before, after, widens})
		}
	}
	old := a
	if old == nil {
		old = &bawn.Version{Perimeter: bawn.Perimeter{
			Interior: bawn.Interior{
				Memory: bawn.DefaultMemory, CPU: bawn.DefaultCPU, Timeout: bawn.DefaultTimeout, Tmp: bawn.DefaultTmp,
				PIDs: bawn.DefaultPIDs, Concurrency: bawn.DefaultConcurrency,
			},
			Evidence: bawn.Evidence{LogRetention: bawn.DefaultLogRetention},
		}}
	}
	add("runtime", string(old.Runtime), string(b.Runtime), false)
	add("handler", old.Handler, b.Handler, false)
	add("code", short(old.Artifact.Digest), short(b.Artifact.Digest), false)
	add("description", cut(old.Description), cut(b.Description), false)
	add("owner", old.Owner, b.Owner, false)
	// Without its label, what the function holds may go anywhere.
	for _, l := range slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(old.Labels), b.Labels...)))) {
		had, has := slices.Contains(old.Labels, l), slices.Contains(b.Labels, l)
		add("labels["+l+"]", setText(had), setText(has), had && !has)
	}

	// Values are not shown: a diff is read by more eyes than a manifest.
	names := map[string]bool{}
	for n := range old.Environment {
		names[n] = true
	}
	for n := range b.Environment {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		was, had := old.Environment[n]
		is, has := b.Environment[n]
		switch {
		case !had:
			add("environment."+n, "", "set", false)
		case !has:
			add("environment."+n, "set", "", false)
		case was != is:
			add("environment."+n, "set", "set to another value", false)
		}
	}

	before, after := routes(old), routes(b)
	for _, r := range b.Perimeter.Ingress.HTTP {
		key := r.String()
		add("ingress.http["+key+"]", accessOf(before, key), accessText(&r), !covered(&r, old.Perimeter.Ingress.HTTP))
		webChanges(before[key], &r, add)
	}
	for _, r := range old.Perimeter.Ingress.HTTP {
		if key := r.String(); after[key] == nil {
			add("ingress.http["+key+"]", accessText(&r), "", false)
		}
	}

	inspectChanges(old, b, add)

	listed := func(field, meaning string, before, after []string) {
		for _, s := range after {
			if !slices.Contains(before, s) {
				add(field+"["+s+"]", "", meaning, true)
			}
		}
		for _, s := range before {
			if !slices.Contains(after, s) {
				add(field+"["+s+"]", meaning, "", false)
			}
		}
	}
	inputChanges(old, b, add)
	listed("ingress.callers", "may call", old.Perimeter.Ingress.Callers, b.Perimeter.Ingress.Callers)
	limitChanges(old, b, add)

	budgetChanges(old, b, add)

	p, q := &old.Perimeter.Interior, &b.Perimeter.Interior
	add("interior.memory", manifest.Size(p.Memory).String(), manifest.Size(q.Memory).String(), q.Memory > p.Memory)
	add("interior.cpu", fmt.Sprintf("%g", p.CPU), fmt.Sprintf("%g", q.CPU), q.CPU > p.CPU)
	add("interior.timeout", manifest.Duration(p.Timeout).String(), manifest.Duration(q.Timeout).String(), q.Timeout > p.Timeout)
	add("interior.tmp", manifest.Size(p.Tmp).String(), manifest.Size(q.Tmp).String(), q.Tmp > p.Tmp)
	add("interior.pids", fmt.Sprint(p.PIDs), fmt.Sprint(q.PIDs), q.PIDs > p.PIDs)
	add("interior.concurrency", fmt.Sprint(p.Concurrency), fmt.Sprint(q.Concurrency), q.Concurrency > p.Concurrency)
	add("interior.exec", fmt.Sprint(p.Exec), fmt.Sprint(q.Exec), q.Exec && !p.Exec)
	add("interior.reuse", reuseText(p.Reuse), reuseText(q.Reuse), longer(q.Reuse, p.Reuse))
	listed("egress.functions", "may be called", old.Perimeter.Egress.Functions, b.Perimeter.Egress.Functions)
	reachChanges(old, b, add)
	// Whatever a test held the old version to, nothing holds the new one to: a
	// must-deny case that goes, or asks for less, needs the eyes that a route does.
	for _, t := range old.Tests {
		if t.Deny != nil && !slices.ContainsFunc(b.Tests, func(o bawn.Test) bool { return reflect.DeepEqual(o, t) }) {
			now := ""
			if slices.ContainsFunc(b.Tests, func(o bawn.Test) bool { return o.Name == t.Name }) {
				now = "changed"
			}
			add("tests["+cut(t.Name)+"]", "must be denied", now, true)
		}
	}
	// Less evidence is less of a perimeter.
	k, l := old.Perimeter.Evidence.LogRetention, b.Perimeter.Evidence.LogRetention
	add("evidence.logRetention", manifest.Duration(k).String(), manifest.Duration(l).String(), l < k)
	return changes
}

func routes(v *bawn.Version) map[string]*bawn.Route {
	all := map[string]*bawn.Route{}
	for i, r := range v.Perimeter.Ingress.HTTP {
		all[r.String()] = &v.Perimeter.Ingress.HTTP[i]
	}
	return all
}

func accessOf(all map[string]*bawn.Route, key string) string {
	if r := all[key]; r != nil {
		return accessText(r)
	}
	return ""
}

// lastDay is the day as the manifest says it: the last one that is open.
func lastDay(p *bawn.PublicAccess) string {
	return p.Until.Add(-time.Nanosecond).UTC().Format(time.DateOnly)
}

func reuseText(r bawn.Reuse) string {
	if r.Never() {
		return "never"
	}
	var parts []string
	if r.Invocations > 0 {
		parts = append(parts, fmt.Sprintf("%d invocations", r.Invocations))
	}
	if r.MaxAge > 0 {
		parts = append(parts, manifest.Duration(r.MaxAge).String())
	}
	return strings.Join(parts, " or ")
}

// longer reports whether an instance may serve longer under a than under b.
func longer(a, b bawn.Reuse) bool {
	bounds := func(r bawn.Reuse) (int, time.Duration) {
		if r.Never() {
			return 1, 0
		}
		n, age := r.Invocations, r.MaxAge
		if n == 0 {
			n = math.MaxInt
		}
		if age == 0 {
			age = math.MaxInt64
		}
		return n, age
	}
	an, aa := bounds(a)
	bn, ba := bounds(b)
	return an > bn || an > 1 && aa > ba
}

// short is enough of a digest to tell two apart.
func short(digest string) string { return cutAt(digest, len("sha256:")+12) }

func cut(s string) string { return cutAt(strings.Join(strings.Fields(s), " "), 80) }

func cutAt(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	if strings.HasPrefix(s, "sha256:") {
		return s[:n]
	}
	return s[:n] + "…"
}

// summary is the part of changes that the evidence keeps.
func summary(changes []Change) string {
	var parts []string
	for _, c := range changes {
		s := c.Field
		if c.Widens {
			s += "+"
		}
		parts = append(parts, s)
	}
	return cutAt(strings.Join(parts, " "), 500)
}
