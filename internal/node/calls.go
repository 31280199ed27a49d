package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/api"
	"bawn.dev/bawn/internal/control"
	"bawn.dev/bawn/internal/deploy"
	"bawn.dev/bawn/internal/egress"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/ingress"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/invoke"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/store"
	"bawn.dev/bawn/internal/trigger"
)

// spine is what the way of a call stands on.
type spine struct {
	rules    *policy.Engine
	packages *deploy.Gate
	changes  *control.Control
	logs     *evidence.Logs
	metrics  *metrics
	traces   *tracer
	data     string // the data directory
}

// code is an interior.Config.Code. What was compiled comes first: nothing of
// the package may stand in its place.
func (s spine) code(ctx context.Context, v *bawn.Version) (dirs []string, err error) {
	for _, a := range []*bawn.Artifact{v.Compiled, &v.Artifact} {
		if a == nil {
			continue
		}
		dir, err := s.packages.Path(ctx, v.Tenant, *a)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// calls is the way of a call, which comes up after the node answers. Its fields
// may be read once up is closed, and if err is nil.
type calls struct {
	up       chan struct{}
	err      error
	rules    *policy.Engine
	driver   sandbox.Driver
	runtimes []interior.Definition
	broker   *egress.Broker
	pool     *interior.Pool
	gate     *ingress.Gate
	invoker  *invoke.Invoker
	trigger  http.Handler
	lambda   *trigger.Lambda
}

// openCalls ties the parts of a call's way together: the interior runs calls,
// ingress lets them in, invoke tells the story, the trigger brings them.
func (n *Node) openCalls(s spine) {
	c, log := &n.calls, n.cfg.Log
	defer close(c.up)
	c.rules = s.rules
	n.redact.settled = s.changes.LabelsSettled
	n.redact.kept = func(v *bawn.Version) time.Duration { return s.changes.Retention(v).Logs }
	n.redact.versions.Store(s.changes.VersionTable())
	// Both wait for other processes.
	var looking sync.WaitGroup
	if n.helper != nil {
		go n.roots.prepare(n.helper)
	}
	looking.Go(func() { c.driver = n.openDriver(s.data, log) })
	looking.Go(func() {
		if n.roots != nil {
			c.runtimes = n.roots.runtimes(n.stopping, log)
		} else {
			c.runtimes = findRuntimes(n.stopping, log)
		}
	})
	looking.Wait()
	c.broker = egress.New(egress.Config{Authorize: s.rules.Authorize, Allows: s.rules.Allows, Guard: n.guard, Secrets: n.vault, Errors: log})
	c.pool = interior.NewPool(interior.Config{
		Driver: c.driver, Definitions: c.runtimes,
		// Upwards: an instance's code comes from the gate of packages, which
		// verifies it at every start, and what a sandbox stopped becomes evidence.
		// So do the bounds of each tenant, from its quota.
		Quota: n.tenants.Quota,
		Code:  s.code, Record: n.record.Append, Log: n.redact.lines(s.logs.Write), Redactor: n.redact.version,
		// Upwards: what a function asks for comes in again at the front door. No code
		// of a function runs before the trigger is there.
		Serve: func(w http.ResponseWriter, r *http.Request, next func(string) *bawn.Call) {
			c.lambda.Inside(w, r, next)
		},
		// Sideways: what a function reaches outside, it reaches through the broker.
		Attach: c.attach,
		Errors: log, Warm: n.cfg.Warm,
	})
	gate, err := ingress.Open(n.stopping, ingress.Config{
		Functions: s.changes.FunctionTable(), Versions: s.changes.VersionTable(), Identity: n.who, Policy: s.rules,
		Suspended: n.tenants.Suspended,
		Secret:    n.vault.Verify, Timed: n.cfg.Timed,
		AddressRate: n.cfg.AddressRate, AddressRateAtHome: n.cfg.AddressRateAtHome,
		TenantRate: func(tenant string) int { q, _ := n.tenants.Quota(tenant); return q.Rate },
		// Upwards: which hosts are whose, the operator says.
		Host: func(name string) (string, bool) { return n.hostOf(s.changes, name) },
		Hops: n.root.derive("hops"), Record: n.record.Append,
		Meter: n.meter,
		// Upwards: the pool keeps warm sandboxes for the runtimes in use, and all
		// let go of what belonged to a function that is gone.
		Runtimes: c.pool.Expect,
		Removed: func(tenant, function string) {
			c.pool.Retire(tenant, function)
			s.rules.Forget(tenant, function)
			s.metrics.forget(tenant, function)
		},
	})
	if err != nil {
		if c.err = err; n.stopping.Err() == nil {
			log.Error("calls cannot be served", "error", err)
		}
		return
	}
	c.gate = gate
	s.metrics.follow(c.pool, gate)
	c.invoker = invoke.New(invoke.Config{
		Gate: gate, Pool: c.pool, Evidence: n.record, Log: n.redact.lines(s.logs.Write), Release: egress.NewReleaser(n.redact.version),
		Observe: func(o invoke.Observation) { s.metrics.observe(o); s.traces.observe(o) },
	})
	c.trigger = trigger.NewHTTP(trigger.HTTPConfig{Invoker: c.invoker, Proxies: n.proxies, Errors: log})
	c.lambda = trigger.NewLambda(trigger.LambdaConfig{Invoker: c.invoker, Proxies: n.proxies, Errors: log})
	log.Debug("calls are served")
}

// ready waits until calls can be served.
func (c *calls) ready(ctx context.Context) error {
	select {
	case <-c.up:
		return c.err
	case <-ctx.Done():
		return bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "node.calls", "the node was still starting").WithFix("try again")
	}
}

// drain refuses new calls.
func (c *calls) drain() {
	<-c.up
	if c.gate != nil {
		c.gate.Drain()
	}
}

// wait waits until no call runs, or ctx ends.
func (c *calls) wait(ctx context.Context) error {
	<-c.up
	return c.pool.Drain(ctx)
}

// close ends every sandbox.
func (c *calls) close() error {
	<-c.up
	if c.gate != nil {
		c.gate.Close()
	}
	c.pool.Close()
	return c.driver.Close()
}

// failed delivers why calls cannot be served, if they cannot.
func (c *calls) failed() <-chan error {
	failed := make(chan error, 1)
	go func() {
		if <-c.up; c.err != nil && !errors.Is(c.err, context.Canceled) {
			failed <- c.err
		}
	}()
	return failed
}

// serveCall serves a request on the public listener.
func (n *Node) serveCall(w http.ResponseWriter, r *http.Request) {
	if err := n.calls.ready(r.Context()); err != nil {
		trigger.Unavailable(w, r)
		return
	}
	// On a tenant's domain there is nothing but its routes.
	if strings.HasPrefix(r.RequestURI, trigger.LambdaPrefix) && n.calls.invoker.Own(r.Host) {
		n.calls.lambda.ServeHTTP(w, r)
		return
	}
	n.calls.trigger.ServeHTTP(w, r)
}

// invoker is an api.Config.Invoker.
func (n *Node) invoker(ctx context.Context) (*invoke.Invoker, error) {
	if err := n.calls.ready(ctx); err != nil {
		return nil, err
	}
	return n.calls.invoker, nil
}

// compile is a control.Config.Compile.
func (n *Node) compile(ctx context.Context, v *bawn.Version, code string) (map[string][]byte, error) {
	if err := n.calls.ready(ctx); err != nil {
		return nil, err
	}
	return n.calls.pool.Compile(ctx, v, code)
}

// test is a control.Config.Test.
func (n *Node) test(ctx context.Context, p bawn.Principal, v *bawn.Version) ([]bawn.TestResult, error) {
	if err := n.calls.ready(ctx); err != nil {
		return nil, err
	}
	defer n.redact.trial(v)()
	return trigger.RunTests(ctx, n.calls.invoker, p, v)
}

// inspect is an api.Config.Inspect. To read is not to run code: an instance is
// started for who may have that done, and that is recorded.
func (n *Node) inspect(ctx context.Context, p bawn.Principal, v *bawn.Version) ([]bawn.Instance, error) {
	if err := n.calls.ready(ctx); err != nil {
		return nil, err
	}
	list, err := n.calls.pool.Inspect(ctx, v, false)
	req := policy.Request{Principal: p, Action: policy.Inspect, Resource: v.Ref()}
	if err != nil || len(list) > 0 || !n.calls.rules.Allows(req) {
		return list, err
	}
	if d, err := n.calls.rules.Authorize(ctx, req); err != nil || !d.Allow {
		return nil, err
	}
	return n.calls.pool.Inspect(ctx, v, true)
}

// halt is a control.Config.Halt. Before calls can be served there is nothing to
// end, and nothing begins after.
func (n *Node) halt(tenant string) {
	select {
	case <-n.calls.up:
		if n.calls.pool != nil {
			n.calls.pool.Halt(tenant)
		}
	default:
	}
}

// fourEyes says whether what widens a perimeter needs a second principal.
func (n *Node) fourEyes() bawn.Capability {
	c := bawn.Capability{Name: "approval by a second principal", Control: "A5", OK: !n.cfg.Solo, Detail: "a deploy that widens a perimeter waits for one"}
	if n.cfg.Solo {
		c.Detail = "the node was started with --solo: the deploys of its one operator count as approved"
		c.Fix = "once somebody else can approve, start it without --solo"
	}
	return c
}

// doctor is an api.Config.Doctor.
func (n *Node) doctor(ctx context.Context) (api.Doctor, error) {
	if err := n.calls.ready(ctx); err != nil {
		return api.Doctor{}, err
	}
	doc := api.Doctor{Capabilities: slices.Concat(n.calls.driver.Probe(), []bawn.Capability{n.fourEyes(), n.privileges(), n.reaches()}, n.proxied(), n.transport(), n.witnessed(), n.labelled())}
	for _, r := range n.calls.runtimes {
		doc.Runtimes = append(doc.Runtimes, api.Runtime{Runtime: r.Runtime, Found: r.Found, Missing: r.Missing})
	}
	r, err := n.state.check(ctx)
	if err != nil {
		return api.Doctor{}, err
	}
	doc.State = api.StateCheck{Tables: r.Tables, Rows: r.Rows, Root: r.Root}
	for _, d := range r.Damage {
		doc.State.Damage = append(doc.State.Damage, api.Damage(d))
		doc.State.Fix = store.RestoreFix
	}
	return doc, nil
}
