package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

// maxGuardrails bounds the guardrails of one tenant, and of the installation.
// Every decision there asks all of them.
const maxGuardrails = 20

// Guardrail is a text of Cedar rules for a whole tenant, or for the whole
// installation. It can only forbid: what is allowed is for roles and manifests to
// say, so that nobody gives here what he does not hold (control A8), and what a
// guardrail forbids no manifest and no role allows.
type Guardrail struct {
	Name      string    `json:"name"`
	Tenant    string    `json:"tenant,omitempty" doc:"empty for the installation's"`
	Text      string    `json:"text" doc:"Cedar"`
	Hash      string    `json:"hash" doc:"sha256: of the text"`
	Rules     int       `json:"rules"`
	UpdatedAt time.Time `json:"updatedAt"`
	UpdatedBy string    `json:"updatedBy"`
}

// Scope returns the beginning of the ids of its rules.
func (g *Guardrail) Scope() string {
	if g.Tenant == "" {
		return "installation:" + g.Name
	}
	return "guardrail:" + g.Name
}

// guards is the guardrails of the whole installation and of each tenant, as
// they are now. It does not change: a change makes another.
type guards struct {
	installation *scope
	tenants      map[string]*scope
	broken       string // why nobody knows which there are; then nothing is allowed
}

// scope is the guardrails of one tenant, or of the installation.
type scope struct {
	byName map[string]*Guardrail
	set    *set
	lost   map[string]bool // by name: what the store should have and has not
	broken string          // the guardrail that cannot be read; then nothing is allowed here
}

// of returns the guardrails of a tenant, or with "" of the installation.
func (g *guards) of(tenant string) *scope {
	switch {
	case g == nil:
		return nil
	case tenant == "":
		return g.installation
	}
	return g.tenants[tenant]
}

// with returns guards in which those of one tenant are others.
func (g *guards) with(tenant string, s *scope) *guards {
	n := &guards{tenants: map[string]*scope{}}
	if g != nil {
		n.installation, n.broken = g.installation, g.broken
		maps.Copy(n.tenants, g.tenants)
	}
	switch {
	case tenant == "":
		n.installation = s
	case len(s.byName) == 0 && len(s.lost) == 0:
		delete(n.tenants, tenant)
	default:
		n.tenants[tenant] = s
	}
	return n
}

// with returns a scope in which the guardrail called name is g, or is not there
// if g is nil.
func (e *Engine) withGuardrail(s *scope, name string, g *Guardrail) *scope {
	n := &scope{byName: map[string]*Guardrail{}, lost: map[string]bool{}}
	if s != nil {
		maps.Copy(n.byName, s.byName)
		maps.Copy(n.lost, s.lost)
	}
	delete(n.byName, name)
	delete(n.lost, name)
	if g != nil {
		n.byName[name] = g
	}
	var all []rule
	for _, name := range slices.Sorted(maps.Keys(n.byName)) {
		g := n.byName[name]
		list, err := e.readGuardrail(g.Name, g.Text)
		if err != nil || g.Hash != Hash(g.Text) {
			// What it forbids is not known, so everything is. Control A3.
			n.broken = g.Scope()
			continue
		}
		for i, p := range list {
			all = append(all, rule{fmt.Sprintf("%s#%d", g.Scope(), i+1), p})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.lost)) {
		n.broken = "guardrail:" + name
	}
	n.set = newSet(all, e.actions, nil)
	return n
}

// readGuardrail parses and checks the text of a guardrail. One about the flow of
// data has no rule of Cedar.
func (e *Engine) readGuardrail(name, text string) (cedar.PolicyList, error) {
	const op = "policy.set"
	if _, flow := FlowOf(text); flow {
		return nil, nil // it is asked at deploy, see [Engine.Flows]
	}
	list, err := e.grammar.read(name, []byte(text))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s: there is no rule here", name).WithFix("bawn policy rm %s takes a guardrail away", name)
	}
	for i, p := range list {
		at := p.Position()
		if p.Effect() == cedar.Permit {
			return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s:%d:%d: rule %d permits; a guardrail can only forbid", name, at.Line, at.Column, i+1).
				WithFix("write what must not be as forbid; what may be is said by roles (bawn key create) and manifests (bawn.yaml)")
		}
		if _, all := (*expast.Policy)(p.AST()).Action.(expast.ScopeTypeAll); !all && actionMatches(p, e.policing, nil) {
			return nil, bawn.Errorf(bawn.CodeUnprocessable, op, "%s:%d:%d: rule %d is about the action policy, for which guardrails are not asked: one that forbids it could never be taken away", name, at.Line, at.Column, i+1).
				WithFix("take the role policy-admin from whom it should not be")
		}
	}
	return list, nil
}

// Hash returns the name of a text by its content: sha256: and hex digits.
func Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// guardTable is where guardrails are kept: TENANT.NAME, or _installation.NAME,
// which no tenant can be called.
type guardTable struct {
	table  *store.Table[Guardrail]
	making sync.Mutex // held while one is set: the bound on their number must hold
}

const installationKey = "_installation"

func guardKey(tenant, name string) string {
	if tenant == "" {
		tenant = installationKey
	}
	return tenant + "." + name
}

// OpenGuardrails opens the guardrails that the store holds and follows them: a
// change counts for every decision that begins after the write. Until it is
// called, and if it fails, there are none to be set. It is called once, before
// the first decision.
func (e *Engine) OpenGuardrails(ctx context.Context, s *store.Store) error {
	t, err := store.OpenTable[Guardrail](ctx, s, "guardrails")
	if err != nil {
		return err
	}
	e.stored.table = t
	// What should be there and is not may have forbidden anything. Control A3.
	start := &guards{tenants: map[string]*scope{}}
	unknown := false
	for d := range t.Damaged() {
		tenant, name, named := strings.Cut(d.Key, ".")
		if !t.Lost(d.Key) {
			continue
		}
		if unknown = unknown || !named; !named {
			continue
		}
		if tenant == installationKey {
			tenant = ""
		}
		s := &scope{lost: map[string]bool{name: true}}
		if old := start.of(tenant); old != nil {
			maps.Copy(s.lost, old.lost)
		}
		start = start.with(tenant, s)
	}
	if t.Trusted() != nil && (unknown || len(start.tenants) == 0 && start.installation == nil) {
		start.broken = "guardrails"
	}
	for tenant, s := range start.tenants {
		start.tenants[tenant] = e.withGuardrail(s, "", nil)
	}
	if start.installation != nil {
		start.installation = e.withGuardrail(start.installation, "", nil)
	}
	e.guards.Store(start)
	t.Watch(func(key string, g *Guardrail) {
		tenant, name, _ := strings.Cut(key, ".")
		if tenant == installationKey {
			tenant = ""
		}
		if g != nil && (g.Name != name || g.Tenant != tenant) {
			other := *g // a row in another's place is not that guardrail
			other.Name, other.Tenant, other.Hash = name, tenant, ""
			g = &other
		}
		old := e.guards.Load()
		e.guards.Store(old.with(tenant, e.withGuardrail(old.of(tenant), name, g)))
	})
	return nil
}

// Guardrails lists those of a tenant, or with "" of the installation, by name.
func (e *Engine) Guardrails(tenant string) []Guardrail {
	s := e.guards.Load().of(tenant)
	if s == nil {
		return nil
	}
	var all []Guardrail
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		all = append(all, *s.byName[name])
	}
	return all
}

// Guardrail returns one by its name, of a tenant, or with "" of the installation.
func (e *Engine) Guardrail(tenant, name string) (Guardrail, bool) {
	if s := e.guards.Load().of(tenant); s != nil && s.byName[name] != nil {
		return *s.byName[name], true
	}
	return Guardrail{}, false
}

// CheckGuardrail reports whether text may be the guardrail name. Its error has
// CodeInvalid for the name, CodeTooLarge or CodeUnprocessable for the text, with
// line and column.
func (e *Engine) CheckGuardrail(name, text string) error {
	if err := bawn.CheckName("guardrail", name); err != nil {
		return err
	}
	_, err := e.readGuardrail(name, text)
	return err
}

// SetGuardrail stores the guardrail name of a tenant, or with "" of the
// installation, in place of what it was. It counts at once. Who may is not asked
// here.
func (e *Engine) SetGuardrail(ctx context.Context, tenant, name, text, by string) (Guardrail, error) {
	const op = "policy.set"
	if err := e.CheckGuardrail(name, text); err != nil {
		return Guardrail{}, err
	}
	list, err := e.readGuardrail(name, text)
	if err != nil {
		return Guardrail{}, err
	}
	g := Guardrail{Name: name, Tenant: tenant, Text: text, Hash: Hash(text), Rules: max(1, len(list)), UpdatedAt: e.now().UTC(), UpdatedBy: by}
	e.stored.making.Lock()
	defer e.stored.making.Unlock()
	t := e.stored.table
	if t == nil {
		return Guardrail{}, bawn.Errorf(bawn.CodeUnavailable, op, "guardrails cannot be kept here")
	}
	if _, rev, ok := t.Get(guardKey(tenant, name)); ok {
		_, err = t.Update(ctx, guardKey(tenant, name), g, rev)
		return g, err
	}
	if n := len(e.Guardrails(tenant)); n >= maxGuardrails {
		return Guardrail{}, bawn.Errorf(bawn.CodeTooLarge, op, "there are %d guardrails, at most %d are allowed", n, maxGuardrails).
			WithFix("put rules together: one guardrail may hold %d", maxRules)
	}
	_, err = t.Create(ctx, guardKey(tenant, name), g)
	return g, err
}

// RemoveGuardrail takes a guardrail away, at once. CodeNotFound means that there
// is none.
func (e *Engine) RemoveGuardrail(ctx context.Context, tenant, name string) error {
	e.stored.making.Lock()
	defer e.stored.making.Unlock()
	t := e.stored.table
	if t == nil {
		return bawn.Errorf(bawn.CodeUnavailable, "policy.rm", "guardrails cannot be kept here")
	}
	_, rev, ok := t.Get(guardKey(tenant, name))
	if !ok {
		return bawn.Errorf(bawn.CodeNotFound, "policy.rm", "there is no guardrail %.80q", name).WithFix("bawn policy ls lists those that there are")
	}
	return t.Delete(ctx, guardKey(tenant, name), rev)
}

// Ask answers req as [Engine.Authorize] would, and records nothing: it is for
// questions about what might be, never for what is then done.
func (e *Engine) Ask(req Request) Decision { return e.decide(&req, e.now(), e.guards.Load()) }

// Trial returns what [Engine.Ask] would answer if the guardrail name of a tenant,
// or with "" of the installation, had that text.
func (e *Engine) Trial(tenant, name, text string) (ask func(Request) Decision, err error) {
	if err := e.CheckGuardrail(name, text); err != nil {
		return nil, err
	}
	g := &Guardrail{Name: name, Tenant: tenant, Text: text, Hash: Hash(text)}
	old := e.guards.Load()
	trial := old.with(tenant, e.withGuardrail(old.of(tenant), name, g))
	return func(req Request) Decision { return e.decide(&req, e.now(), trial) }, nil
}

// Known reports whether there is such an action.
func (e *Engine) Known(a Action) bool { _, ok := e.grammar.fits[a]; return ok }

// OnFunctions reports whether a is something that is done to functions.
func (e *Engine) OnFunctions(a Action) bool { return e.grammar.fits[a].resources[typeFunction] }

// Actions lists the actions by name.
func (e *Engine) Actions() []string {
	var names []string
	for a := range e.grammar.fits {
		names = append(names, string(a))
	}
	slices.Sort(names)
	return names
}

func actionUIDs(g *grammar) []types.EntityUID {
	actions := make([]types.EntityUID, 0, len(g.fits))
	for a := range g.fits {
		actions = append(actions, actionUID(a))
	}
	return actions
}
