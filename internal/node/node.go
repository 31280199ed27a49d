// Package node is the composition root: it opens every part, ties them
// together, and closes them in reverse. Read [Open] from top to bottom to see
// what Bawn is made of; builtin.go lists the parts there are several kinds of.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/api"
	"bawn.dev/bawn/internal/control"
	"bawn.dev/bawn/internal/deploy"
	"bawn.dev/bawn/internal/egress"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/evidence/tlog"
	"bawn.dev/bawn/internal/host"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/meter"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox/linux"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
	"bawn.dev/bawn/internal/trigger"
)

// Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	cfg     Config
	ca      *authority
	root    rootSecret
	started time.Time
	keys    *identity.Keys
	tenants *control.Tenants
	who     *identity.Authenticator
	store   *store.Store
	record  *evidence.Log
	meter   *meter.Ledger
	vault   *secret.Vault
	guard   *egress.Guard
	state   *keeper
	calls   calls
	redact  redaction
	context *contextFile
	privileged

	proxies       trigger.Proxies
	names         map[string]bool // the node's own
	public, admin *listener
	plain         *listener  // nil: there is none
	certs         *ownCerts  // nil: there are none
	acme          *acmeCerts // nil: no authority is asked
	notice        string
	labels        map[string]string // where it is
	stopping      context.Context   // ends when the node begins to stop
	stop          context.CancelFunc
	ready         chan struct{}
	isReady       atomic.Bool

	closers  []closer
	close    sync.Once
	closeErr error
	gone     chan struct{} // closed when everything is closed
}

type closer struct {
	name string
	fn   func(context.Context) error
}

// onClose adds what Close does, in reverse order.
func (n *Node) onClose(name string, fn func(context.Context) error) {
	n.closers = append(n.closers, closer{name, fn})
}

// principal is who the node is in its own records.
func (n *Node) principal() bawn.Principal {
	return bawn.Principal{Kind: "node", ID: n.ca.id(), Tenant: bawn.DefaultTenant}
}

// Open starts a node. When it returns the node is ready: it answers on both
// listeners. The sandbox driver and the runtimes come up in the background, and
// warm sandboxes after them; calls wait for that. If Open fails nothing is left
// running.
func Open(ctx context.Context, cfg Config) (node *Node, err error) {
	cfg.fill()
	// Nothing of the memory, where secrets are, gets into a file; the helper and the
	// sandboxes inherit it.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "node.open", "core dumps cannot be switched off")
	}
	n := &Node{cfg: cfg, started: time.Now(), ready: make(chan struct{}), gone: make(chan struct{})}
	n.stopping, n.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.Close(context.WithoutCancel(ctx))
		}
	}()
	log := cfg.Log
	if n.labels, err = parseLabels(cfg.Labels); err != nil {
		return nil, err
	}

	// The data directory, for this process alone.
	if n.cfg.Data, err = openData(cfg.Data); err != nil {
		return nil, err
	}
	data := n.cfg.Data
	if cfg.User == nil { // else the directory is given to that user, below
		if err := host.Own(data); err != nil {
			return nil, err
		}
	}
	unlock, err := store.LockDir(data)
	if err != nil {
		return nil, err
	}
	n.onClose("lock", func(context.Context) error { return unlock() })

	// Addresses first: a port in use should be told before anything is made.
	public, err := bind(ctx, "public", cfg.Public)
	if err != nil {
		return nil, err
	}
	n.onClose("public address", func(context.Context) error { return ignoreClosed(public.Close()) })
	admin, err := bind(ctx, "admin", cfg.Admin)
	if err != nil {
		return nil, err
	}
	n.onClose("admin address", func(context.Context) error { return ignoreClosed(admin.Close()) })
	var http1 net.Listener
	if cfg.HTTP != "" {
		if http1, err = bind(ctx, "http", cfg.HTTP); err != nil {
			return nil, err
		}
		n.onClose("http address", func(context.Context) error { return ignoreClosed(http1.Close()) })
	}
	minTLS, err := tlsVersion(cfg.MinTLS)
	if err != nil {
		return nil, err
	}
	if len(cfg.Certs)+len(cfg.CertKeys) > 0 {
		if n.certs, err = openCerts(cfg.Certs, cfg.CertKeys, time.Now, log); err != nil {
			return nil, err
		}
	}
	hosts, err := withNames(hostNames(cfg.Public, cfg.Admin), cfg.Names)
	if err != nil {
		return nil, err
	}

	n.names = make(map[string]bool, len(hosts))
	for _, h := range hosts {
		n.names[h] = true
	}
	if n.proxies, err = trigger.ParseProxies(cfg.TrustedProxies); err != nil {
		return nil, err
	}

	// Every connection to the outside is made by it.
	if n.guard, err = egress.NewGuard(egress.GuardConfig{Allow: cfg.EgressAllow, Resolve: cfg.EgressResolve, CA: cfg.EgressCA}); err != nil {
		return nil, err
	}

	// The last that needs root. What was opened until here stays open; nothing
	// after this can open what the user cannot.
	n.context = &contextFile{path: cfg.ContextFile}
	if cfg.User != nil {
		if data, err = n.becomeUser(data); err != nil {
			return nil, err
		}
	}
	if n.ca, err = openAuthority(data, hosts, time.Now()); err != nil {
		return nil, err
	}

	root, err := openRootSecret(ctx, data, cfg.RootKey)
	if err != nil {
		return nil, err
	}
	n.root = root

	// The ground: what is stored, and the evidence of what happens.
	st, tenantKeys, err := openStore(ctx, data, root, log)
	if err != nil {
		return nil, err
	}
	n.store = st
	n.onClose("store", func(context.Context) error { return st.Close() })
	var witnesses []tlog.WitnessURL
	for _, text := range cfg.Witnesses {
		w, err := tlog.ParseWitnessURL(text)
		if err != nil {
			return nil, err
		}
		witnesses = append(witnesses, w)
	}
	if n.record, err = openEvidence(ctx, data, n.ca, root, evidence.Config{Witnesses: witnesses, Dial: n.guard.DialTrusted, Before: st, Log: log, Redact: n.redact.record}); err != nil {
		return nil, err
	}
	n.onClose("evidence", func(context.Context) error { return n.record.Close() })
	if err := expectEvidence(data, st, n.record); err != nil {
		return nil, err
	}
	if err := expectState(ctx, st, n.record); err != nil {
		return nil, err
	}
	// Before all that is tenants': it makes the keys that this is encrypted with.
	tenants, err := control.OpenTenants(ctx, st, tenantKeys, time.Now)
	if err != nil {
		return nil, err
	}
	n.tenants = tenants
	if n.meter, err = meter.Open(ctx, meter.Config{
		Store: st, Open: filepath.Join(data, "running"), Now: time.Now, Gone: func(tenant string) bool { return !tenants.Has(tenant) }, Log: log,
		Journal: meter.Journal{Next: n.record.Next, Append: n.record.Append, Read: func(ctx context.Context, from int64, fn func(bawn.Record) error) error {
			return n.record.After(ctx, from, meter.ChargeDetail, fn)
		}},
	}); err != nil {
		return nil, err
	}
	n.onClose("meter", n.meter.Close)
	logs, err := evidence.OpenLogs(ctx, st, evidence.LogsConfig{Log: log})
	if err != nil {
		return nil, err
	}
	n.onClose("logs", func(context.Context) error { return logs.Close() })

	// Who may do what.
	if n.keys, err = identity.OpenKeys(ctx, st); err != nil {
		return nil, err
	}
	if n.who, err = identity.Open(ctx, identity.Config{
		// Upwards: nobody of a tenant that is suspended gets in.
		Suspended: tenants.Suspended,
		Store:     st, Keys: n.keys, Dir: filepath.Join(data, "identity"), Secret: root.derive("signing keys"),
		Dial: n.dialIssuer, TrustDomain: n.ca.id(), Log: log,
	}); err != nil {
		return nil, err
	}
	n.onClose("identity", func(context.Context) error { return n.who.Close() })
	rules := policy.New(n.record, time.Now)
	if err := rules.OpenGuardrails(ctx, st); err != nil {
		return nil, err
	}

	if n.vault, err = secret.OpenVault(ctx, secret.VaultConfig{
		Store: st, Keys: tenantKeys, Dir: filepath.Join(data, tenantsFolder, secretsFolder), Wrap: root.derive("secrets"),
		Policy: rules, Record: n.record.Append, Now: time.Now, Log: log,
	}); err != nil {
		return nil, err
	}
	n.onClose("secrets", func(context.Context) error { return n.vault.Close() })
	n.redact.of = n.vault.Redactor

	// Spine 2: changes. Packages go through the gate of package deploy.
	blobs, err := store.OpenBlobs(ctx, st, "artifacts")
	if err != nil {
		return nil, err
	}
	packages, err := deploy.New(deploy.Config{Dir: filepath.Join(data, codeFolder), Blobs: blobs, Record: n.record.Append, Log: log})
	if err != nil {
		return nil, err
	}
	changes, err := control.Open(ctx, control.Config{
		Store: st, Gate: packages, Policy: rules, Keys: n.keys, Identity: n.who, Evidence: n.record, Logs: logs, Tenants: tenants, Vault: n.vault, Meter: n.meter, Now: time.Now,
		// Upwards: what runs of a tenant ends when it is suspended.
		Halt: n.halt, Belongings: n.belongings(),
		// Upwards: a deploy has the interior compile what should not be compiled
		// at each start, and what tests it has run as calls are.
		Compile: n.compile, Test: n.test, Consents: n.guard.Consents, OwnHost: n.ownHost, Solo: cfg.Solo, Log: log,
		Archive: control.Archive{Node: n.ca.id(), Version: cfg.Version, Key: root.stateKey(), Blobs: blobs, File: func(name string) ([]byte, error) {
			return os.ReadFile(filepath.Join(data, name))
		}},
	})
	if err != nil {
		return nil, err
	}

	tended := make(chan struct{})
	go func() { defer close(tended); changes.TendLogs(n.stopping) }()
	n.onClose("old log lines", func(context.Context) error { <-tended; return nil })

	// Spine 1: calls. The sandbox and the interpreters have to be looked for,
	// which takes longer than all the rest, so that goes on in the background;
	// a call that comes before it is done waits for it.
	metrics := newMetrics(cfg.Version)
	metrics.ground(st, n.record)
	traces, err := openTracer(ctx, cfg.OTLPEndpoint, n.guard.DialTrusted, cfg.Version, n.ca.id(), log)
	if err != nil {
		return nil, err
	}
	n.onClose("traces", traces.close)
	n.calls.up = make(chan struct{})
	go n.openCalls(spine{rules: rules, packages: packages, changes: changes, logs: logs, metrics: metrics, traces: traces, data: data})
	n.onClose("calls", func(context.Context) error { return n.calls.close() })

	// The edges.
	authorize := func(ctx context.Context, p bawn.Principal, action string) error {
		return n.authorize(ctx, rules, p, action)
	}
	refused := func(ctx context.Context, source, reason string) {
		if err := rules.Refused(ctx, source, reason); err != nil {
			log.Warn("a refusal could not be recorded", "source", source, "error", err)
		}
	}
	handler := api.New(api.Config{
		Control: changes, Identity: n.who, TrustDomain: n.ca.id(), Log: log, Now: time.Now, Stopping: n.stopping,
		Status: n.status, Invoker: n.invoker, Inspect: n.inspect, Doctor: n.doctor,
		Authorize: authorize, Refused: refused, Flush: logs.Flush,
		Extra: map[string]http.Handler{"GET /metrics": metrics.handler()},
	})

	start := map[string]string{"version": cfg.Version, "public": public.Addr().String(), "admin": admin.Addr().String(), "user": n.user()}
	if cfg.Solo {
		start["solo"] = "deploys that widen a perimeter count as approved"
	}
	if len(n.labels) > 0 {
		start["labels"] = labelText(n.labels)
	}
	if allowed := n.guard.Allowed(); len(allowed) > 0 {
		start["egress"] = strings.Join(allowed, " ")
	}
	if w := n.Weaker(); w != "" {
		start["weaker"] = w
		log.Info(w)
	}
	if err := n.record.Append(ctx, n.event("start", "ok", start)); err != nil {
		return nil, err
	}
	n.onClose("stop record", func(ctx context.Context) error { return n.record.Append(ctx, n.event("stop", "ok", nil)) })
	if err := n.keepState(ctx, tenantKeys); err != nil {
		return nil, err
	}

	cert := &serverCert{ca: n.ca, hosts: hosts, now: time.Now}
	if _, err := cert.get(nil); err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "node.ca", "no certificate can be made")
	}
	var publicCert certificates = cert
	if n.certs != nil {
		n.certs.builtin = cert
		publicCert = n.certs
		following := make(chan struct{})
		go func() { defer close(following); n.certs.follow(n.stopping) }()
		n.onClose("certificates", func(context.Context) error { <-following; return nil })
	}
	if cfg.ACMEAgree {
		if err := n.openACME(changes, data, publicCert, public, http1); err != nil {
			return nil, err
		}
		publicCert = n.acme
	}
	domain := func(name string) bool { _, ok := changes.Owner(name); return ok }
	n.public = serve("public", public, publicCert, n.asksAll, directed(domain, traces.wrap(http.HandlerFunc(n.serveCall))), wire{minTLS: minTLS, acme: n.acme != nil, spread: n.proxies.Trusts}, log)
	n.admin = serve("admin", admin, cert, n.asksOurs, handler, wire{}, log)
	if http1 != nil {
		_, port, _ := net.SplitHostPort(n.PublicAddr())
		n.plain = serveRedirects(http1, port, func(host string) bool { _, ok := n.hostOf(changes, host); return ok }, n.proxies.Trusts, n.acme, log)
	}
	n.onClose("drain", n.drain)

	if err := n.writeContext(ctx); err != nil {
		return nil, err
	}
	n.isReady.Store(true)
	close(n.ready)
	log.Info("ready", "public", n.PublicAddr(), "admin", n.AdminAddr(), "node", n.ca.id(), "data", n.cfg.Data, "user", n.user(), "took", time.Since(n.started).Round(time.Millisecond))
	return n, nil
}

// drain stops accepting, lets running calls come to their end, and cuts what
// is left when the time is over.
func (n *Node) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
	defer cancel()
	n.calls.drain()
	var wg sync.WaitGroup
	wg.Go(func() { n.public.shutdown(ctx) })
	wg.Go(func() { n.admin.shutdown(ctx) })
	if n.plain != nil {
		wg.Go(func() { n.plain.shutdown(ctx) })
	}
	wg.Wait()
	return n.calls.wait(ctx)
}

// Close stops the node: calls that run may end within the drain time, then
// everything is closed in the reverse order of its opening. Later calls wait
// for the first and return the same.
func (n *Node) Close(ctx context.Context) error {
	n.close.Do(func() {
		n.isReady.Store(false)
		n.stop()
		var errs []error
		for i := len(n.closers) - 1; i >= 0; i-- {
			c := n.closers[i]
			if err := c.fn(ctx); err != nil {
				n.cfg.Log.Warn("closing", "part", c.name, "error", err)
				errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			}
		}
		n.closeErr = errors.Join(errs...)
		close(n.gone)
	})
	return n.closeErr
}

// Reload takes over certificates whose files have changed, now.
func (n *Node) Reload() {
	if n.certs != nil {
		n.certs.reload(true)
	}
}

// Ready is closed once the node answers.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Wait returns when the node is closed, or with an error as soon as one of its
// listeners has failed.
func (n *Node) Wait() error {
	failed := func(l *listener) error {
		if l.err == nil {
			<-n.gone
			return nil
		}
		return bawn.Wrap(l.err, bawn.CodeUnavailable, "node.listen", "the %s listener failed", l.name)
	}
	select {
	case <-n.gone:
		return nil
	case err := <-n.calls.failed():
		return err
	case <-n.public.done:
		return failed(n.public)
	case <-n.admin.done:
		return failed(n.admin)
	}
}

// PublicAddr returns where calls go, as HOST:PORT.
func (n *Node) PublicAddr() string { return reachable(n.public.tcp.Addr()) }

// AdminAddr returns where the control API is, as HOST:PORT.
func (n *Node) AdminAddr() string { return reachable(n.admin.tcp.Addr()) }

// CA returns the path of the authority's certificate.
func (n *Node) CA() string { return filepath.Join(n.cfg.Data, "ca.pem") }

// Data returns the data directory.
func (n *Node) Data() string { return n.cfg.Data }

// ContextFile returns the path of the context file, or "".
func (n *Node) ContextFile() string { return n.cfg.ContextFile }

// Notice returns what whoever started the node should know, or "".
func (n *Node) Notice() string { return n.notice }

// Weaker says in one line which controls are weaker because the node was started
// without root; "" if it was not.
func (n *Node) Weaker() string {
	if n.cfg.User != nil {
		return "" // the helper is root
	}
	return linux.Weaker()
}

// DrainTimeout returns how long Close waits for running calls.
func (n *Node) DrainTimeout() time.Duration { return n.cfg.DrainTimeout }

// reachable returns an address that a client on this host can use: listening
// on every address is not one.
func reachable(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return a.String()
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(t.Port))
}

// belongings are what goes with a tenant beside what control and the keys are.
// Issuers first: without one nobody is let in whom a revocation kept out.
func (n *Node) belongings() []control.Belonging {
	return []control.Belonging{
		{
			Name:  "issuers",
			Count: func(tenant string) int { return len(n.who.Issuers(tenant)) },
			Remove: func(ctx context.Context, tenant string) error {
				var errs []error
				for _, i := range n.who.Issuers(tenant) {
					errs = append(errs, unlessGone(n.who.RemoveIssuer(ctx, tenant, i.Name)))
				}
				return errors.Join(errs...)
			},
		},
		{Name: "windows of use", Count: n.meter.Has, Remove: n.meter.Forget},
		{
			Name:  "revocations",
			Count: func(tenant string) int { return len(n.who.Revocations(tenant)) },
			Remove: func(ctx context.Context, tenant string) error {
				var errs []error
				for _, r := range n.who.Revocations(tenant) {
					errs = append(errs, unlessGone(n.who.Lift(ctx, tenant, r.ID)))
				}
				return errors.Join(errs...)
			},
		},
		{
			Name:   "secrets",
			Count:  func(tenant string) int { return len(n.vault.List(tenant)) },
			Remove: n.vault.RemoveTenant,
		},
	}
}

func unlessGone(err error) error {
	if bawn.ErrorCode(err) == bawn.CodeNotFound {
		return nil
	}
	return err
}

func (n *Node) status() api.Status {
	s := api.Status{Ready: n.isReady.Load(), Version: n.cfg.Version, Node: n.ca.id(), Public: "https://" + n.PublicAddr(), Started: n.started.UTC(), Solo: n.cfg.Solo, Labels: n.labels}
	if s.Ready {
		s.Damaged = n.state.damage()
	}
	switch {
	case n.stopping.Err() != nil:
		s.Message = "it is stopping"
	case !s.Ready:
		s.Message = "it is starting"
	default:
		// Without the store nothing is recorded, so nothing is done.
		if err := n.store.Healthy(); err != nil {
			s.Ready, s.Message = false, why(err)
		}
	}
	return s
}

// why words an error for an administrator: what is wrong and the way out.
func why(err error) string {
	var e *bawn.Error
	switch {
	case !errors.As(err, &e):
		return "internal error"
	case e.Fix == "":
		return e.Message
	}
	return e.Message + "; " + e.Fix
}

// authorize asks the policy whether p may look at the node itself.
func (n *Node) authorize(ctx context.Context, rules *policy.Engine, p bawn.Principal, action string) error {
	d, err := rules.Authorize(ctx, policy.Request{Principal: p, Action: policy.Node, Resource: bawn.Ref{Tenant: p.Tenant}, Source: ""})
	switch {
	case err != nil:
		return err
	case !d.Allow:
		return &bawn.Error{Code: bawn.CodeDenied, Op: "node." + action, Message: d.Reason, Fix: d.Fix}
	}
	return nil
}

func (n *Node) event(action, outcome string, detail map[string]string) bawn.Record {
	return bawn.Record{Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Principal: n.principal().String(), Action: action, Outcome: outcome, Detail: detail}
}

// writeContext makes sure that somebody can administer the node. The first
// start makes an administrator's key; a later one makes another only if the
// context file has gone. A file of another node is left alone.
func (n *Node) writeContext(ctx context.Context) error {
	path := n.context.path
	first := len(n.keys.List(bawn.DefaultTenant)) == 0
	want := &client.Context{URL: "https://" + n.AdminAddr(), Public: "https://" + n.PublicAddr(), CA: string(n.ca.pem)}
	if path == "" {
		if first {
			n.notice = "there is no administrator's key: start once with a context file"
		}
		return nil
	}
	good := func(key string) bool { _, err := n.keys.Authenticate(key); return err == nil }
	state, have := readContext(n.context, n.ca, good)
	if err := n.keys.Trusted(); err != nil && state != contextOurs {
		// A key that cannot be read is no reason to make another one.
		n.notice = "API keys are damaged, and no key is made: " + why(err)
		n.cfg.Log.Warn(n.notice)
		return nil
	}
	name := "admin"
	switch {
	case state == contextOurs:
		// What the owner put there stays.
		want.Key, want.Login, want.Certificate, want.CertificateKey = have.Key, have.Login, have.Certificate, have.CertificateKey
		if *have == *want {
			return nil
		}
		return n.context.save(want) // the addresses are others now
	case state == contextForeign && !n.cfg.ForceContext:
		const fix = "set " + client.ContextEnv + " to another file, or replace it with --force-context"
		if first {
			return bawn.Errorf(bawn.CodeConflict, "node.context", "the context file %s belongs to another node", path).WithFix(fix)
		}
		n.notice = fmt.Sprintf("the context file %s belongs to another node and was left alone: %s", path, fix)
		n.cfg.Log.Warn(n.notice)
		return nil
	case state == contextStale && !n.cfg.ForceContext:
		n.notice = fmt.Sprintf("the key in %s is no longer good; --force-context puts a new one there", path)
		n.cfg.Log.Warn(n.notice)
		return nil
	case !first:
		name = "admin-" + strings.ToLower(n.started.UTC().Format("20060102-150405"))
		n.notice = fmt.Sprintf("a new administrator's key, %s, was put into %s; `bawn key ls` shows the ones before", name, path)
	}
	secret, key, err := n.keys.Create(ctx, bawn.Key{Name: name, Tenant: bawn.DefaultTenant, Role: bawn.RoleOperator, CreatedBy: n.principal().String()})
	if err != nil {
		return err
	}
	want.Key = secret
	rec := n.event("key.create", "ok", map[string]string{"key": key.ID, "role": string(key.Role), "name": key.Name})
	rec.Kind = bawn.KindChange
	if err := n.record.Append(ctx, rec); err != nil {
		return errors.Join(err, n.keys.Revoke(ctx, key.Tenant, key.ID))
	}
	if err := n.context.save(want); err != nil {
		// Nobody has the key: the next start must be the first again.
		return errors.Join(err, n.keys.Revoke(ctx, key.Tenant, key.ID))
	}
	n.cfg.Log.Info("wrote the context file", "path", path, "key", key.ID)
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
