package node

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/ingress"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/invoke"
	"bawn.dev/bawn/internal/store"
)

// maxMetricFunctions bounds the functions that have series of their own; what
// comes after them is counted together, under the name "other".
const maxMetricFunctions = 1000

// metrics is the node's own registry. The only label whose values users choose
// is the function's name, which has one grammar and is bounded in number.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec

	mu    sync.RWMutex
	known map[string]functionSeries
}

// functionSeries holds one function's series, so that a call looks up one map.
type functionSeries struct {
	ok, failed, refused prometheus.Counter
	warm, cold          prometheus.Observer
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		known:    map[string]functionSeries{},
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bawn_invocations_total", Help: "Calls that are over, by function and outcome: ok, error (of the function), refused (by the platform).",
		}, []string{"tenant", "function", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bawn_invocation_seconds", Help: "Time from the trigger to the end of the answer, by function and start.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 900},
		}, []string{"tenant", "function", "start"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "bawn_build_info", Help: "Always 1; the label says which program runs.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.registry.MustRegister(
		m.calls, m.seconds, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// follow adds what the pool and the gate count themselves.
func (m *metrics) follow(pool *interior.Pool, gate *ingress.Gate) {
	m.registry.MustRegister(&platformCollector{pool: pool, gate: gate})
}

// ground adds what the store and the audit log count themselves.
func (m *metrics) ground(st *store.Store, record *evidence.Log) {
	m.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bawn_store_requests_total", Help: "Messages to the embedded store."}, func() float64 { return float64(st.Requests()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bawn_audit_records_total", Help: "Records of the audit log, those of before the start included."}, func() float64 { return float64(record.Next()) }),
	)
}

// observe counts one call. It is an invoke.Config.Observe.
func (m *metrics) observe(o invoke.Observation) {
	tenant, function := "", "unknown" // a name that is not a function's must not become a series
	if o.Version != nil {
		tenant, function = o.Version.Tenant, o.Version.Function
	}
	s := m.series(tenant, function)
	switch {
	case o.Err != nil:
		s.refused.Inc()
		return
	case o.Result.FunctionError != "":
		s.failed.Inc()
	default:
		s.ok.Inc()
	}
	if o.Result.Usage.Cold {
		s.cold.Observe(o.Duration.Seconds())
	} else {
		s.warm.Observe(o.Duration.Seconds())
	}
}

func (m *metrics) series(tenant, function string) functionSeries {
	key := tenant + "/" + function
	m.mu.RLock()
	s, ok := m.known[key]
	m.mu.RUnlock()
	if ok {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.known[key]; ok {
		return s
	}
	if len(m.known) >= maxMetricFunctions {
		tenant, function = "", "other"
		key = "/other"
		if s, ok := m.known[key]; ok {
			return s
		}
	}
	s = functionSeries{
		ok: m.calls.WithLabelValues(tenant, function, "ok"), failed: m.calls.WithLabelValues(tenant, function, "error"),
		refused: m.calls.WithLabelValues(tenant, function, "refused"),
		warm:    m.seconds.WithLabelValues(tenant, function, "warm"), cold: m.seconds.WithLabelValues(tenant, function, "cold"),
	}
	m.known[key] = s
	return s
}

// forget drops the series of a function that was removed.
func (m *metrics) forget(tenant, function string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, tenant+"/"+function)
	m.calls.DeletePartialMatch(prometheus.Labels{"tenant": tenant, "function": function})
	m.seconds.DeletePartialMatch(prometheus.Labels{"tenant": tenant, "function": function})
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// platformCollector reads the pool's and the gate's own counters when asked.
type platformCollector struct {
	pool *interior.Pool
	gate *ingress.Gate
}

// Describe sends nothing: the set of series depends on what the host has.
func (c *platformCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends one snapshot.
func (c *platformCollector) Collect(out chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, v float64, label, value string) {
		var names, values []string
		if label != "" {
			names, values = []string{label}, []string{value}
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	s := c.pool.Stats()
	for _, r := range bawn.Runtimes() {
		send(prometheus.GaugeValue, "bawn_warm_sandboxes", "Sandboxes that wait for code.", float64(s.Warm[r]), "runtime", string(r))
	}
	for _, state := range []string{"loading", "idle", "busy", "freezing", "frozen"} {
		send(prometheus.GaugeValue, "bawn_instances", "Instances that serve a function.", float64(s.Instances[state]), "state", state)
	}
	send(prometheus.GaugeValue, "bawn_sandboxes", "Sandboxes of every kind.", float64(s.Sandboxes), "", "")
	send(prometheus.GaugeValue, "bawn_calls_running", "Calls that were let in and are not over, those that wait included.", float64(c.gate.Running()), "", "")
	send(prometheus.GaugeValue, "bawn_waiting_calls", "Calls that wait for an instance.", float64(s.Waiting), "", "")
	for _, n := range []struct {
		name, help string
		value      uint64
	}{
		{"bawn_cold_starts_total", "Calls served by an instance that was made for them.", s.Cold},
		{"bawn_warm_misses_total", "Cold starts that found no warm sandbox.", s.Misses},
		{"bawn_throttled_total", "Calls refused for want of an instance.", s.Throttled},
		{"bawn_timeouts_total", "Invocations ended at their deadline.", s.Timeouts},
		{"bawn_out_of_memory_total", "Instances that the kernel ended for want of memory.", s.Memory},
		{"bawn_exits_total", "Instances that ended by themselves during a call.", s.Exits},
		{"bawn_load_failures_total", "Handlers that could not be loaded.", s.Loads},
		{"bawn_blocked_attempts_total", "Attempts that sandboxes stopped.", s.Blocked},
		{"bawn_sandboxes_started_total", "Sandboxes made.", s.Started},
		{"bawn_sandbox_failures_total", "Sandboxes that could not be made.", s.Failed},
	} {
		send(prometheus.CounterValue, n.name, n.help, float64(n.value), "", "")
	}
	refusals := c.gate.Refusals()
	names := make([]string, 0, len(refusals))
	for name := range refusals {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		send(prometheus.CounterValue, "bawn_admission_total", "Calls by the check that refused them, or admitted.", float64(refusals[name]), "check", strings.ToLower(name))
	}
}
