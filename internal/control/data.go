package control

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/policy"
)

// Bounds of what is read of the audit log for [Control.Data].
const (
	dataSince   = 30 * 24 * time.Hour
	dataRecords = 100_000 // the newest
	dataWithin  = 20 * time.Second
)

// Data is a database or a secret, and who can touch it; control E9.
type Data struct {
	Kind      string       `json:"kind" enum:"database,secret"`
	Name      string       `json:"name" doc:"of a database: what manifests call it"`
	Labels    []string     `json:"labels" nullable:"false" doc:"of the data, as manifests and the vault say; sorted, each once"`
	Functions []DataAccess `json:"functions" nullable:"false" doc:"sorted by name"`
}

// DataAccess says of one function what it can do with a database or a secret, and
// what it did.
type DataAccess struct {
	Function string   `json:"function"`
	Versions []int    `json:"versions" nullable:"false" doc:"that an alias points at and whose manifests name it; empty if none does any more"`
	Fields   []string `json:"fields" nullable:"false" doc:"where their manifests name it"`
	Allowed  bool     `json:"allowed" doc:"whether the rules let one of them reach it now, on its own behalf"`
	Reason   string   `json:"reason,omitempty" doc:"why not"`
	Address  []string `json:"address,omitempty" doc:"of a database: where it is, HOST:PORT or HOST:PORT/DATABASE, and as whom"`

	Uses   int        `json:"uses" doc:"that the audit log has as allowed"`
	Denied int        `json:"denied"`
	Last   *time.Time `json:"last,omitempty" doc:"allowed use"`
}

// DataList is the answer of [Control.Data].
type DataList struct {
	Data    []Data    `json:"data" nullable:"false" doc:"databases first, sorted by name"`
	Since   time.Time `json:"since" doc:"before it uses are not counted"`
	Partial bool      `json:"partial,omitempty" doc:"whether there were more records than are read: the newest are counted"`
}

// The kinds of [Data].
const (
	dataDatabase = "database"
	dataSecret   = "secret"
)

type dataKey struct{ kind, name string }

// dataView is what is found out for one answer.
type dataView struct {
	c      *Control
	tenant string
	all    map[dataKey]*dataEntry
}

type dataEntry struct {
	labels map[string]bool
	by     map[string]*DataAccess
}

// Data says which functions of the principal's tenant can reach which databases
// and secrets: by the rules of the versions that an alias points at, and by what
// the audit log has seen since, 30 days if it is zero. name is empty, or that of
// a database or a secret, or where a database is: HOST:PORT or HOST:PORT/DATABASE.
func (c *Control) Data(ctx context.Context, p bawn.Principal, name string, since time.Time) (DataList, error) {
	if err := c.authorize(ctx, p, policy.Events, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return DataList{}, err
	}
	if since.IsZero() {
		since = c.cfg.Now().Add(-dataSince)
	}
	view := &dataView{c: c, tenant: p.Tenant, all: map[dataKey]*dataEntry{}}
	for _, f := range c.functions.All(p.Tenant + ".") {
		if !concerns(p, f.Name) {
			continue
		}
		numbers := slices.Sorted(maps.Values(f.Aliases))
		for _, n := range slices.Compact(numbers) {
			if v, _, ok := c.versions.Get(versionKey(p.Tenant, f.Name, n)); ok {
				view.rules(&v)
			}
		}
	}
	if c.cfg.Vault != nil && len(p.Functions) == 0 {
		for _, s := range c.cfg.Vault.List(p.Tenant) {
			e := view.entry(dataSecret, s.Name)
			for _, l := range s.Labels {
				e.labels[l] = true
			}
		}
	}
	list := DataList{Since: since.UTC()}
	var err error
	if list.Partial, err = view.uses(ctx, p, since); err != nil {
		return DataList{}, err
	}
	list.Data = view.list(name)
	if name != "" && len(list.Data) == 0 {
		return DataList{}, bawn.Errorf(bawn.CodeNotFound, "control.data", "no function names a database or a secret %.200q, and none has used one", name).
			WithFix("bawn data ls lists them")
	}
	return list, nil
}

func (w *dataView) entry(kind, name string) *dataEntry {
	key := dataKey{kind, name}
	e := w.all[key]
	if e == nil {
		e = &dataEntry{labels: map[string]bool{}, by: map[string]*DataAccess{}}
		w.all[key] = e
	}
	return e
}

func (e *dataEntry) access(function string) *DataAccess {
	a := e.by[function]
	if a == nil {
		a = &DataAccess{Function: function, Versions: []int{}, Fields: []string{}}
		e.by[function] = a
	}
	return a
}

// rules adds what the manifest of v names.
func (w *dataView) rules(v *bawn.Version) {
	eg := &v.Perimeter.Egress
	for i := range eg.Databases {
		d := &eg.Databases[i]
		e := w.entry(dataDatabase, d.Name)
		for _, l := range d.Labels {
			e.labels[l] = true
		}
		where := d.Address
		if d.Database != "" {
			where += "/" + d.Database
		}
		if d.User != "" {
			where += " as " + d.User
		}
		a := w.named(e, v, "egress.databases."+d.Name, policy.Egress, policy.Object{Kind: policy.Database, ID: d.Name})
		a.Address = with(a.Address, where)
		if d.Secret != "" {
			w.secret(v, d.Secret, "egress.databases."+d.Name)
		}
	}
	for _, s := range eg.Secrets {
		w.secret(v, s.Name, "egress.secrets")
	}
	for i := range eg.Hosts {
		if in := eg.Hosts[i].Inject; in != nil {
			w.secret(v, in.Secret, "egress.hosts["+eg.Hosts[i].Host+"].inject")
		}
	}
}

func (w *dataView) secret(v *bawn.Version, name, field string) {
	e := w.entry(dataSecret, name)
	a := w.named(e, v, field, policy.Secret, policy.Object{Kind: policy.Vault, ID: name})
	if w.c.cfg.Vault == nil || !a.Allowed {
		return
	}
	s, err := w.c.cfg.Vault.Get(w.tenant, name)
	switch {
	case err != nil:
		a.Allowed, a.Reason = false, "there is no such secret"
	case !slices.ContainsFunc(s.Grants, func(g bawn.SecretGrant) bool { return g.Function == v.Function }):
		a.Allowed, a.Reason = false, "it is not granted to the function"
	}
}

// named adds that v names something, and whether the rules let it.
func (w *dataView) named(e *dataEntry, v *bawn.Version, field string, action policy.Action, object policy.Object) *DataAccess {
	a, ref := e.access(v.Function), v.Ref()
	a.Versions = with(a.Versions, v.Number)
	a.Fields = with(a.Fields, field)
	d := w.c.cfg.Policy.Ask(policy.Request{
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: ref.Function + "@" + ref.Qualifier, Name: ref.Function, Tenant: ref.Tenant},
		Action:    action, Resource: ref, Object: object, Caller: v,
	})
	if a.Allowed = a.Allowed || d.Allow; a.Allowed {
		a.Reason = ""
	} else {
		a.Reason = d.Reason
	}
	return a
}

// with adds to a sorted list what is not in it.
func with[T cmp.Ordered](list []T, x T) []T {
	if i, ok := slices.BinarySearch(list, x); !ok {
		return slices.Insert(list, i, x)
	}
	return list
}

// uses adds what the audit log has. It reports whether there is more.
func (w *dataView) uses(ctx context.Context, p bawn.Principal, since time.Time) (partial bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, dataWithin)
	defer cancel()
	for action, kind := range map[policy.Action]string{policy.Egress: dataDatabase, policy.Secret: dataSecret} {
		object := string(map[string]policy.Kind{dataDatabase: policy.Database, dataSecret: policy.Vault}[kind]) + ":"
		n := 0
		q := evidence.Query{Tenant: p.Tenant, Action: string(action), Kinds: []bawn.RecordKind{bawn.KindDecision}, Since: since, Limit: dataRecords}
		err := w.c.cfg.Evidence.Read(ctx, q, func(r bawn.Record) error {
			n++
			name, ok := strings.CutPrefix(r.Detail["object"], object)
			who, _, _ := strings.Cut(strings.TrimPrefix(r.Principal, bawn.PrincipalFunction+":"), "@")
			if !ok || !strings.HasPrefix(r.Principal, bawn.PrincipalFunction+":") || !concerns(p, who) {
				return nil
			}
			a := w.entry(kind, name).access(who)
			if r.Outcome != "allow" {
				a.Denied++
				return nil
			}
			a.Uses++
			if at := r.Time.UTC(); a.Last == nil || at.After(*a.Last) {
				a.Last = &at
			}
			return nil
		})
		if ctx.Err() != nil {
			return false, bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "control.data", "the audit log is too long to be read in the time of a request").
				WithFix("ask for less of it: --since 24h")
		}
		if err != nil {
			return false, err
		}
		partial = partial || n == dataRecords
	}
	return partial, nil
}

// list returns what name means, or everything.
func (w *dataView) list(name string) []Data {
	all := []Data{}
	for key, e := range w.all {
		if name != "" && key.name != name && !e.at(name) {
			continue
		}
		d := Data{Kind: key.kind, Name: key.name, Labels: slices.Sorted(maps.Keys(e.labels)), Functions: []DataAccess{}}
		if d.Labels == nil {
			d.Labels = []string{}
		}
		for _, f := range slices.Sorted(maps.Keys(e.by)) {
			d.Functions = append(d.Functions, *e.by[f])
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Data) int { return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name)) })
	return all
}

// at reports whether a function reaches the database there.
func (e *dataEntry) at(where string) bool {
	for _, a := range e.by {
		for _, address := range a.Address {
			address, _, _ = strings.Cut(address, " as ")
			if host, _, _ := strings.Cut(address, "/"); address == where || host == where {
				return true
			}
		}
	}
	return false
}
