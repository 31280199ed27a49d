package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"bawn.dev/bawn"
)

// HostObject returns what a function with the manifest of v means by a host and a
// port: the first rule that takes it in, what [bawn.Egress.Everything] opens, or,
// if nothing does, the host itself, which no rule is about.
func HostObject(v *bawn.Version, host string, port int) Object {
	o := Object{Kind: Host, ID: host, Name: host, Port: port}
	e := &v.Perimeter.Egress
	for i := range e.Hosts {
		if h := &e.Hosts[i]; slices.Contains(h.Ports, port) && h.Matches(host) {
			o.ID = h.Host
			return o
		}
	}
	if e.Everything != nil {
		o.ID = bawn.AnyHost
	}
	return o
}

// HostLine is the line of egress.hosts that would let a function reach a host.
func HostLine(host string, port int) string {
	if host == "" || strings.ContainsAny(host, " \t\n\"'*:") {
		host = strconv.Quote(host)
	}
	line := fmt.Sprintf("{host: %s, ports: [%d]", host, port)
	if port == 80 {
		line += ", plaintext: true"
	}
	return line + "}"
}

// maxObjects bounds the entities that are kept made of what one version reaches:
// a wildcard has as many names as its owner likes.
const maxObjects = 1024

// object returns the entity of a host or a database that the version reaches, or
// why there is none. Its attributes come from the manifest, not from who asks.
func (o *own) object(v *bawn.Version, want Object) (*types.Entity, string) {
	want.Method, want.Path = "", ""
	o.mu.RLock()
	e := o.objects[want]
	o.mu.RUnlock()
	if e != nil {
		return e, ""
	}
	e, why := newObject(v, want)
	if e == nil {
		return nil, why
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.objects == nil || len(o.objects) >= maxObjects {
		o.objects = map[Object]*types.Entity{}
	}
	o.objects[want] = e
	return e, ""
}

// newObject makes it.
func newObject(v *bawn.Version, want Object) (*types.Entity, string) {
	if want.ID == "" || len(want.ID) > maxObjectID || len(want.Name) > maxObjectID {
		return nil, "what is wanted has no name, or too long a one"
	}
	owner := tenantUID(v.Tenant)
	attrs := types.RecordMap{"tenant": owner, "name": types.String(want.ID), "port": types.Long(want.Port)}
	plaintext, labels := false, []string(nil)
	kind := typeHost
	if want.Kind == Database {
		kind = typeDatabase
		attrs["kind"], attrs["host"] = types.String(""), types.String("")
		for i := range v.Perimeter.Egress.Databases {
			d := &v.Perimeter.Egress.Databases[i]
			if d.Name != want.ID {
				continue
			}
			host, port, _ := strings.Cut(d.Address, ":")
			if i := strings.LastIndexByte(d.Address, ':'); i >= 0 {
				host, port = strings.Trim(d.Address[:i], "[]"), d.Address[i+1:]
			}
			n, _ := strconv.Atoi(port)
			attrs["kind"], attrs["host"], attrs["port"] = types.String(d.Kind), types.String(host), types.Long(n)
			plaintext, labels = d.Plaintext, d.Labels
			break
		}
	} else {
		name := want.Name
		if name == "" {
			name = want.ID
		}
		rule, fits := (*bawn.Host)(nil), want.ID == bawn.AnyHost
		for i := range v.Perimeter.Egress.Hosts {
			if h := &v.Perimeter.Egress.Hosts[i]; h.Host == want.ID && slices.Contains(h.Ports, want.Port) {
				rule, fits = h, h.Matches(name)
				break
			}
		}
		switch {
		case rule != nil && !fits:
			return nil, name + " is not what the rule for " + want.ID + " is about"
		case rule != nil:
			plaintext, labels = rule.Plaintext, rule.Labels
		case fits:
			plaintext = want.Port == 80
		}
		attrs["name"], attrs["rule"] = types.String(name), types.String(want.ID)
		if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
			attrs["address"] = types.IPAddr(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	all := make([]types.Value, len(labels))
	for i, l := range labels {
		all[i] = types.String(l)
	}
	attrs["plaintext"], attrs["labels"] = types.Boolean(plaintext), types.NewSet(all...)
	return &types.Entity{
		UID:        types.NewEntityUID(kind, types.String(v.Tenant+"/"+want.ID)),
		Parents:    types.NewEntityUIDSet(owner),
		Attributes: types.NewRecord(attrs),
	}, ""
}

// reaches adds to all what the manifest of v lets the function reach and read.
func reaches(v *bawn.Version, add func(field, action string, resource types.EntityUID, rest string)) {
	e := &v.Perimeter.Egress
	uid := func(kind types.EntityType, name string) types.EntityUID {
		return types.NewEntityUID(kind, types.String(v.Tenant+"/"+name))
	}
	for i := range e.Hosts {
		h := &e.Hosts[i]
		field := fmt.Sprintf("egress.hosts[%d]", i)
		add(field, "egress", uid(typeHost, h.Host), "\nwhen { "+portsText(h.Ports)+" }")
		if h.Inject != nil {
			add(field+".inject", "secret", uid(typeSecret, h.Inject.Secret), "")
		}
	}
	if p := e.Everything; p != nil {
		add("egress.everything", "egress", uid(typeHost, bawn.AnyHost),
			fmt.Sprintf("\nwhen { %s && context.now < datetime(%s) }", portsText(bawn.EverythingPorts()), quoted(p.Until.UTC().Format("2006-01-02T15:04:05.000Z"))))
	}
	for _, s := range e.Secrets {
		add("egress.secrets["+s.Name+"]", "secret", uid(typeSecret, s.Name), "")
	}
	for i := range e.Databases {
		d := &e.Databases[i]
		add("egress.databases["+d.Name+"]", "egress", uid(typeDatabase, d.Name), "")
		if d.Secret != "" {
			add("egress.databases["+d.Name+"].secret", "secret", uid(typeSecret, d.Secret), "")
		}
	}
}

func portsText(ports []int) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = strconv.Itoa(p)
	}
	return "[" + strings.Join(words, ", ") + "].contains(resource.port)"
}

// decideReach decides on what a function reaches outside, or which secret it
// reads; controls C2 and E2. Its manifest must allow it, and no guardrail forbid it.
func (e *Engine) decideReach(q *question) Decision {
	req := q.req
	c := req.Caller
	switch {
	case c == nil:
		return Decision{Reason: "which version of the function asks is not known"}
	case q.principal.UID != functionUID(c.Tenant, c.Function):
		return Decision{Reason: "who asks is not the function whose manifest it is"}
	case req.Resource.Tenant != c.Tenant:
		return Decision{Reason: "what is wanted is another tenant's"}
	}
	rules, err := e.compiled.of(c)
	if err != nil {
		return Decision{Reason: "the rules of " + c.Ref().String() + " cannot be read", Fix: "deploy it again"}
	}
	if req.Object.Kind == Host || req.Object.Kind == Database {
		why := ""
		if q.resource, why = rules.object(c, req.Object); q.resource == nil {
			return Decision{Reason: why}
		}
	}
	var o outcome
	q.ask(&o, rules)
	return e.answer(q, &o)
}

// unreached says what is not there that would permit what a function wants outside.
func unreached(q *question) (reason, fix, line string) {
	req := q.req
	c := req.Caller
	under := func(field, entry string) string {
		return "in bawn.yaml under functions." + c.Function + "." + field + " add: " + entry + ", and deploy " + c.Function
	}
	o := req.Object
	switch {
	case c == nil:
		return "which version of the function asks is not known", "", ""
	case o.Kind == Vault:
		return c.Function + " does not say that it reads the secret " + o.ID, under("egress.secrets", "- "+o.ID), "egress.secrets: - " + o.ID
	case o.Kind == Database:
		return c.Function + " does not say that it reaches the database " + o.ID, under("egress.databases", o.ID+`: {postgres: "HOST:PORT/DATABASE", user: USER, secret: SECRET}`), ""
	case o.Kind != Host:
		return "the function's manifest does not allow it", "bawn perimeter " + c.Function + " shows what it allows", ""
	}
	name := o.Name
	if name == "" {
		name = o.ID
	}
	line = HostLine(name, o.Port)
	reason = fmt.Sprintf("%s does not say that it reaches %s port %d", c.Function, name, o.Port)
	if p := c.Perimeter.Egress.Everything; p != nil && !p.Open(q.now) {
		reason += "; everything ended on " + p.Until.Add(-1).UTC().Format("2006-01-02")
	}
	return reason, under("egress.hosts", "- "+line), "egress.hosts: - " + line
}
