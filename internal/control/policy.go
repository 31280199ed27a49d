package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
)

const (
	maxCases        = 500 // of one test of guardrails
	maxExplanations = 20
)

// Guardrail is a text of rules that forbid.
type Guardrail = policy.Guardrail

// scopeOf returns the tenant whose guardrails are meant: the principal's, or ""
// for the installation.
func scopeOf(p bawn.Principal, installation bool) string {
	if installation {
		return ""
	}
	return p.Tenant
}

// onGuardrails authorises what p wants with guardrails. To look at those of its
// tenant asks for no more than to read; those of the installation are for
// operators.
func (c *Control) onGuardrails(ctx context.Context, p bawn.Principal, installation, change bool) error {
	req := policy.Request{Principal: p, Action: policy.Read, Resource: bawn.Ref{Tenant: p.Tenant}}
	if change || installation {
		req.Action = policy.Policies
	}
	if installation {
		req.Object.Kind = policy.Installation
	}
	return c.allowed(ctx, req)
}

// Guardrails lists the guardrails of the principal's tenant, or of the
// installation, by name.
func (c *Control) Guardrails(ctx context.Context, p bawn.Principal, installation bool) ([]Guardrail, error) {
	if err := c.onGuardrails(ctx, p, installation, false); err != nil {
		return nil, err
	}
	return c.cfg.Policy.Guardrails(scopeOf(p, installation)), nil
}

// Guardrail returns one by its name.
func (c *Control) Guardrail(ctx context.Context, p bawn.Principal, name string, installation bool) (Guardrail, error) {
	if err := c.onGuardrails(ctx, p, installation, false); err != nil {
		return Guardrail{}, err
	}
	g, ok := c.cfg.Policy.Guardrail(scopeOf(p, installation), name)
	if !ok {
		return Guardrail{}, noGuardrail(name)
	}
	return g, nil
}

func noGuardrail(name string) error {
	return bawn.Errorf(bawn.CodeNotFound, "control.policy", "there is no guardrail %.80q", name).WithFix("bawn policy ls lists those that there are")
}

// SetGuardrail puts text in the place of the guardrail called name, or makes it.
// It counts for every decision that begins after that. Control G13: the record
// holds what was and what is.
func (c *Control) SetGuardrail(ctx context.Context, p bawn.Principal, name, text string, installation bool) (g Guardrail, err error) {
	if err := c.onGuardrails(ctx, p, installation, true); err != nil {
		return g, err
	}
	if err := c.cfg.Policy.CheckGuardrail(name, text); err != nil {
		return g, err
	}
	c.mu.Lock() // so that what was before is what this takes the place of
	defer c.mu.Unlock()
	if refusal := c.checkFlowGuardrail(scopeOf(p, installation), name, text); refusal != nil {
		return g, refusal
	}
	err = c.change(ctx, p, bawn.Record{Action: "policy.set", Detail: c.rewritten(p, name, text, installation)}, func(ctx context.Context) error {
		g, err = c.cfg.Policy.SetGuardrail(ctx, scopeOf(p, installation), name, text, p.String())
		return err
	})
	return g, err
}

// RemoveGuardrail takes a guardrail away.
func (c *Control) RemoveGuardrail(ctx context.Context, p bawn.Principal, name string, installation bool) error {
	if err := c.onGuardrails(ctx, p, installation, true); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.cfg.Policy.Guardrail(scopeOf(p, installation), name); !ok {
		return noGuardrail(name)
	}
	return c.change(ctx, p, bawn.Record{Action: "policy.rm", Detail: c.rewritten(p, name, "", installation)}, func(ctx context.Context) error {
		return c.cfg.Policy.RemoveGuardrail(ctx, scopeOf(p, installation), name)
	})
}

// rewritten is what the evidence keeps of a change of a guardrail: the hashes of
// both texts, and the lines that are new and gone.
func (c *Control) rewritten(p bawn.Principal, name, text string, installation bool) map[string]string {
	m := map[string]string{"name": name, "scope": "tenant"}
	if installation {
		m["scope"] = "installation"
	}
	old, had := c.cfg.Policy.Guardrail(scopeOf(p, installation), name)
	if had {
		m["before"] = old.Hash
	}
	if text != "" {
		m["after"] = policy.Hash(text)
	}
	before, after := strings.Split(old.Text, "\n"), strings.Split(text, "\n")
	var gone, fresh []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			gone = append(gone, "-"+strings.TrimSpace(l))
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			fresh = append(fresh, "+"+strings.TrimSpace(l))
		}
	}
	m["lines"] = fmt.Sprintf("+%d -%d", len(fresh), len(gone))
	m["diff"] = cutAt(strings.Join(append(gone, fresh...), " "), 800)
	return m
}

// Question asks ahead of time whether somebody may do something.
type Question struct {
	Principal string `json:"principal" maxLength:"256" doc:"key:NAME or key:ID, sigv4:NAME for a request signed with it, role:NAME, function:NAME, anonymous, or jwt, mtls or webhook for who shows what a route of that access asks for"`
	Action    string `json:"action" maxLength:"32" doc:"invoke, call, deploy, ..."`
	Resource  string `json:"resource" maxLength:"1024" doc:"a function, METHOD /path, host:NAME or host:NAME:PORT, secret:, topic: or database: and a name, installation, or - for the tenant itself"`
	OnBehalf  string `json:"onBehalf,omitempty" maxLength:"256" doc:"of a function that calls another: who began it; itself if empty"`
}

// Answer is what would be decided.
type Answer struct {
	Allow    bool          `json:"allow"`
	Reason   string        `json:"reason"`
	Fix      string        `json:"fix,omitempty"`
	Policies []policy.Rule `json:"policies" nullable:"false"`
}

// Can answers q for the principal's tenant. It is recorded that it was asked only
// if that is refused.
func (c *Control) Can(ctx context.Context, p bawn.Principal, q Question) (Answer, error) {
	if err := c.authorize(ctx, p, policy.Read, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return Answer{}, err
	}
	req, err := c.question(p, q)
	if err != nil {
		return Answer{}, err
	}
	d := c.cfg.Policy.Ask(req)
	return Answer{Allow: d.Allow, Reason: d.Reason, Fix: d.Fix, Policies: c.rules(p.Tenant, d.Policies)}, nil
}

// rules returns the rules that ids name.
func (c *Control) rules(tenant string, ids []string) []policy.Rule {
	all := []policy.Rule{}
	for _, id := range ids {
		all = append(all, c.cfg.Policy.Rule(tenant, id, func(ref bawn.Ref) *bawn.Version {
			n, _ := ref.Version()
			if v, _, ok := c.versions.Get(versionKey(ref.Tenant, ref.Function, n)); ok {
				return &v
			}
			return nil
		}))
	}
	return all
}

// Case is one line of a test of guardrails.
type Case struct {
	Question
	Allow bool `json:"allow" doc:"what is expected"`
}

// CaseResult is what came of it.
type CaseResult struct {
	Case
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
}

// TestPolicies answers cases with the guardrails as they are, or if name is not
// empty as they would be with text in the place of that one. It changes nothing.
func (c *Control) TestPolicies(ctx context.Context, p bawn.Principal, cases []Case, name, text string, installation bool) ([]CaseResult, error) {
	if err := c.onGuardrails(ctx, p, installation, false); err != nil {
		return nil, err
	}
	if len(cases) > maxCases {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "control.policy", "%d cases, at most %d are allowed", len(cases), maxCases)
	}
	ask := c.cfg.Policy.Ask
	if name != "" {
		var err error
		if ask, err = c.cfg.Policy.Trial(scopeOf(p, installation), name, text); err != nil {
			return nil, err
		}
	}
	results := []CaseResult{}
	for i, x := range cases {
		req, err := c.question(p, x.Question)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.ErrorCode(err), "control.policy", "case %d: %s", i+1, messageOf(err))
		}
		d := ask(req)
		results = append(results, CaseResult{x, d.Allow == x.Allow, d.Reason})
	}
	return results, nil
}

// question makes a request of what somebody wrote, within the principal's
// tenant.
func (c *Control) question(p bawn.Principal, q Question) (policy.Request, error) {
	req := policy.Request{Action: policy.Action(q.Action), Resource: bawn.Ref{Tenant: p.Tenant}}
	if !c.cfg.Policy.Known(req.Action) {
		return req, invalid("there is no action %.40q", q.Action).WithFix("there are %s", strings.Join(c.cfg.Policy.Actions(), ", "))
	}
	var err error
	if req.Principal, req.Caller, err = c.named(p.Tenant, q.Principal); err != nil {
		return req, err
	}
	if err := c.about(&req, q.Resource); err != nil {
		return req, err
	}
	if req.Caller == nil {
		if q.OnBehalf != "" {
			return req, invalid("only functions act on behalf of somebody")
		}
		return req, nil
	}
	req.Origin, req.Trigger = req.Principal, "function"
	if q.OnBehalf != "" {
		if req.Origin, _, err = c.named(p.Tenant, q.OnBehalf); err != nil {
			return req, err
		}
	}
	if req.Action == policy.Call {
		req.Action = policy.Invoke // which asks for both sides
	}
	req.Chain = []bawn.Ref{req.Caller.Ref()}
	return req, nil
}

func invalid(format string, args ...any) *bawn.Error {
	return bawn.Errorf(bawn.CodeInvalid, "control.policy", format, args...)
}

// named returns the principal that s names, and its version if it is a function.
func (c *Control) named(tenant, s string) (bawn.Principal, *bawn.Version, error) {
	kind, name, _ := strings.Cut(s, ":")
	switch kind {
	case bawn.PrincipalAnonymous:
		return bawn.Anonymous(), nil, nil
	case bawn.PrincipalKey, bawn.AccessSigV4:
		for _, k := range c.cfg.Keys.List(tenant) {
			if k.ID != name && k.Name != name || !k.ExpiresAt.IsZero() && !c.cfg.Now().Before(k.ExpiresAt) {
				continue
			}
			who := bawn.Principal{Kind: bawn.PrincipalKey, ID: k.ID, Name: k.Name, Tenant: tenant, Roles: []bawn.Role{k.Role}, Functions: k.Functions}
			if kind == bawn.AccessSigV4 {
				who.Access = kind
			}
			return who, nil, nil
		}
		return bawn.Principal{}, nil, bawn.Errorf(bawn.CodeNotFound, "control.policy", "there is no key %.80q that is good", name).WithFix("bawn key ls lists the keys")
	case bawn.AccessJWT, bawn.AccessMTLS, bawn.AccessWebhook:
		return bawn.Met(kind, tenant), nil, nil
	case "role":
		if err := bawn.CheckName("role", name); err != nil {
			return bawn.Principal{}, nil, err
		}
		return bawn.Principal{Kind: bawn.PrincipalKey, ID: s, Name: s, Tenant: tenant, Roles: []bawn.Role{bawn.Role(name)}}, nil, nil
	case bawn.PrincipalFunction:
		v, err := c.version(tenant, name)
		if err != nil {
			return bawn.Principal{}, nil, err
		}
		return bawn.Principal{Kind: kind, ID: v.Function + "@" + strconv.Itoa(v.Number), Name: v.Function, Tenant: tenant}, v, nil
	}
	return bawn.Principal{}, nil, invalid("%.80q is no principal", s).
		WithFix("write key:NAME, sigv4:NAME for a request signed with it, role:NAME, function:NAME, anonymous, or jwt, mtls or webhook for who shows what such a route asks for; whoever an issuer vouches for has roles: ask for those")
}

// version returns the version that NAME or NAME@QUALIFIER means.
func (c *Control) version(tenant, s string) (*bawn.Version, error) {
	ref, err := bawn.ParseRef(s, tenant)
	if err != nil {
		return nil, err
	}
	f, _, ok := c.functions.Get(functionKey(tenant, ref.Function))
	if !ok || ref.Tenant != tenant {
		return nil, notFound(ref.Function)
	}
	n, ok := f.Resolve(ref.Qualifier)
	if v, _, there := c.versions.Get(versionKey(tenant, ref.Function, n)); ok && there {
		return &v, nil
	}
	return nil, bawn.Errorf(bawn.CodeNotFound, "control.policy", "there is no version %.80q of %s", ref.Qualifier, ref.Function).WithFix("bawn show %s lists its versions", ref.Function)
}

// about fills in what req is about.
func (c *Control) about(req *policy.Request, s string) error {
	tenant := req.Resource.Tenant
	kind, id, typed := strings.Cut(s, ":")
	for name, k := range map[string]policy.Kind{"host": policy.Host, "secret": policy.Vault, "topic": policy.Topic, "database": policy.Database} {
		if !typed || kind != name {
			continue
		}
		req.Object = policy.Object{Kind: k, ID: id}
		if k != policy.Host {
			return nil
		}
		// A name, with a port or without.
		port := 443
		if host, p, err := net.SplitHostPort(id); err == nil {
			if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
				return invalid("%.80q is no port", p)
			}
			id = host
		}
		host, err := manifest.CheckHost(strings.Trim(id, "[]"))
		if err != nil {
			return invalid("%s", err)
		}
		req.Object = policy.Object{Kind: k, ID: host, Name: host, Port: port}
		if req.Caller != nil {
			req.Object = policy.HostObject(req.Caller, host, port)
		}
		return nil
	}
	switch {
	case s == "" || s == "-":
		return nil
	case s == "installation" && !c.cfg.Policy.OnFunctions(req.Action):
		req.Object.Kind = policy.Installation
		return nil
	case strings.Contains(s, " "):
		method, path, _ := strings.Cut(s, " ")
		for _, f := range c.functions.All(tenant + ".") {
			v := c.liveOf(tenant, f.Name)
			if v == nil {
				continue
			}
			for i := range v.Perimeter.Ingress.HTTP {
				if r := &v.Perimeter.Ingress.HTTP[i]; (r.Method == method || r.Method == "ANY") && leads(r.Path, path) {
					req.Resource, req.Target, req.Route, req.Public, req.Trigger = v.Ref(), v, r, r.Access.Public, "http"
					return nil
				}
			}
		}
		return bawn.Errorf(bawn.CodeNotFound, "control.policy", "no route takes %.200q", s).WithFix("bawn show FN shows a function's routes")
	}
	v, err := c.version(tenant, s)
	if err != nil {
		return err
	}
	req.Resource = v.Ref()
	if req.Action == policy.Invoke || req.Action == policy.Call {
		req.Target = v
	}
	return nil
}

// leads reports whether a path as it was written leads to a route, which may be
// given as it stands in the manifest, too.
func leads(route, path string) bool {
	if route == path {
		return true
	}
	have, want := strings.Split(path, "/"), strings.Split(route, "/")
	for i, w := range want {
		if i >= len(have) {
			return false
		}
		if strings.HasPrefix(w, "{") {
			if strings.HasSuffix(w, "+}") {
				return true
			}
			continue
		}
		if w != have[i] {
			return false
		}
	}
	return len(have) == len(want)
}

// Explanation says why a decision was as it was.
type Explanation struct {
	Record   bawn.Record   `json:"record"`
	Policies []policy.Rule `json:"policies" nullable:"false"`
	Fix      string        `json:"fix,omitempty" doc:"what would allow it"`
}

// Explain returns the decisions of the principal's tenant that id names: the id
// of a record, its index in the audit log, or the id of an invocation. It reads
// the log from its beginning.
func (c *Control) Explain(ctx context.Context, p bawn.Principal, id string) ([]Explanation, error) {
	if err := c.authorize(ctx, p, policy.Events, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return nil, err
	}
	index, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		index = -1
	}
	all := []Explanation{}
	done := errors.New("found")
	collect := func(r bawn.Record) error {
		if r.Kind != bawn.KindDecision || r.ID != id && r.Invocation != id && (index < 0 || r.Index != index) {
			return nil
		}
		x := Explanation{Record: r, Fix: r.Detail["fix"]}
		var ids []string
		if s := r.Detail["policies"]; s != "" {
			ids = strings.Split(s, ",")
		}
		x.Policies = c.rules(p.Tenant, ids)
		if all = append(all, x); len(all) >= maxExplanations || r.Invocation != id {
			return done
		}
		return nil
	}
	for _, q := range []evidence.Query{{Tenant: p.Tenant, Invocation: id}, {Tenant: p.Tenant, Kinds: []bawn.RecordKind{bawn.KindDecision}}} {
		if err := c.cfg.Evidence.Read(ctx, q, collect); err != nil && !errors.Is(err, done) {
			return nil, err
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, bawn.Errorf(bawn.CodeNotFound, "control.explain", "there is no decision %.80q", id).
		WithFix("bawn events --kind decision -o json shows decisions with their ids; allowed reads are not recorded")
}
