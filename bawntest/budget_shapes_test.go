package bawntest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

// worker does what its caller says, after it has said that it runs.
const worker = `
import http.client, json, os, time, urllib.parse, urllib.request

def handler(event, context):
    job = json.loads(event["body"]) if "rawPath" in event else event
    print("ran", job["id"], flush=True)
    end = time.process_time() + job.get("burn", 0)
    while time.process_time() < end:
        pass
    time.sleep(job.get("sleep", 0))
    if job.get("fetch"):
        try:
            with urllib.request.urlopen("http://up.test:PORT/?bytes=%d" % job["fetch"], timeout=1) as r:
                r.read()
        except (OSError, http.client.HTTPException):
            pass
    if job.get("call"):
        inner = dict(job, id=job["id"] + ".inner", call="")
        conn = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["BAWN_ENDPOINT"]).netloc, timeout=10)
        conn.request("POST", "/2015-03-31/functions/%s/invocations" % job["call"], json.dumps(inner))
        return {"inner": conn.getresponse().status}
    if job.get("fail"):
        raise ValueError("as asked for")
    return "x" * job.get("answer", 0)
`

// job is what a worker does in one call.
type job struct {
	ID     string  `json:"id"`
	Burn   float64 `json:"burn,omitempty"`  // seconds of processor time
	Sleep  float64 `json:"sleep,omitempty"` // seconds
	Fetch  int     `json:"fetch,omitempty"` // bytes from outside
	Answer int     `json:"answer,omitempty"`
	Call   string  `json:"call,omitempty"` // a function to hand the job on to
	Fail   bool    `json:"fail,omitempty"`

	who  string        // the key of who calls; empty for a stranger
	way  int           // in which it is called: the route, the Lambda API, the control API
	hang time.Duration // after which the caller hangs up; 0: it stays
}

// A load is one pattern of calls.
type load struct {
	name  string
	long  bool // also for the meters that only time fills: processor and memory
	chain bool // of two functions that share the budget of a tenant
	drive func(s *loadShape)
}

// A loadShape is a pattern of calls against a budget of one meter.
type loadShape struct {
	*Node
	load
	meter    string
	function string
	tenant   string
	budget   string   // as the manifest has it
	known    []string // keys
	deadline time.Time

	mu       sync.Mutex
	calls    int
	answered map[string]int // statuses by the id of the job; 0 for who hung up
	spent    int            // refusals until the window ends
	polls    int
	over     string // what was seen of a budget that was passed
}

// what a call of a shape costs is mostly of its meter.
func (s *loadShape) job() job {
	switch s.meter {
	case bawn.MeterCPU:
		return job{Burn: 0.04}
	case bawn.MeterMemory:
		return job{Sleep: 0.7}
	case bawn.MeterEgress:
		return job{Fetch: 6000}
	}
	return job{}
}

// call has the worker do a job, and reports whether it was told that this is of no
// use until the budget begins anew.
func (s *loadShape) call(j job) (spent bool) {
	s.mu.Lock()
	s.calls++
	j.ID = s.function + "-" + strconv.Itoa(s.calls)
	s.mu.Unlock()
	if s.chain {
		j.Call = s.function + "-inner"
	}
	body, err := json.Marshal(j)
	if err != nil {
		s.t.Error(err)
		return true
	}
	ctx, cancel := context.WithDeadline(s.t.Context(), s.deadline)
	defer cancel()
	if j.hang > 0 {
		ctx, cancel = context.WithTimeout(ctx, j.hang)
		defer cancel()
	}
	url := s.Public() + "/" + s.function
	switch j.way {
	case 1:
		url = s.Public() + fmt.Sprintf(invocations, s.function)
	case 2:
		url = s.URL() + "/v1/functions/" + s.function + "/invocations"
	}
	r, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(string(body)))
	if err != nil {
		s.t.Error(err)
		return true
	}
	r.Header.Set("Content-Type", "application/json")
	if j.who != "" {
		r.Header.Set("Authorization", "Bearer "+j.who)
	}
	status := 0
	var text []byte
	res, err := s.HTTP.Do(r)
	if err == nil {
		text, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil {
		status = res.StatusCode
		if res.Header.Get("X-Amz-Function-Error") != "" { // by name a failure is an answer
			status = http.StatusBadGateway
		}
	} else if j.hang == 0 || time.Now().After(s.deadline) {
		s.t.Errorf("%s: %v", j.ID, err)
		return true
	}
	var inner struct{ Inner int }
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[j.ID] = status
	if s.chain && status != http.StatusTooManyRequests {
		json.Unmarshal(text, &inner) // 0 if the first function could not tell
		s.answered[j.ID+".inner"] = inner.Inner
	}
	switch status {
	case 0, http.StatusOK, http.StatusBadGateway, http.StatusGatewayTimeout:
		return false
	case http.StatusTooManyRequests:
		if after, _ := strconv.Atoi(res.Header.Get("Retry-After")); after > 60 {
			s.spent++
			return true
		}
		return false
	}
	s.t.Errorf("%s: %d %.200s", j.ID, status, text)
	return true
}

// loop has callers call all the time, each one call after another, until each is
// told that it is of no use.
func (s *loadShape) loop(callers int, next func(caller, i int) job) {
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := 0; time.Now().Before(s.deadline); i++ {
				if s.call(next(c, i)) {
					return
				}
				time.Sleep(40 * time.Millisecond) // leaves the processor to those that run
			}
		})
	}
	wg.Wait()
}

// rounds has so many calls come at once, and more when all of them are over, until
// one is told that it is of no use.
func (s *loadShape) rounds(size func(round int) int) {
	for round := 0; time.Now().Before(s.deadline); round++ {
		var wg sync.WaitGroup
		var mu sync.Mutex
		end := false
		for range size(round) {
			wg.Go(func() {
				j := s.job()
				j.who = s.known[0]
				if s.call(j) {
					mu.Lock()
					end = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if end {
			return
		}
	}
}

// by is a shape's usual job, of one caller.
func (s *loadShape) by(who string, change ...func(*job)) job {
	j := s.job()
	j.who = who
	for _, c := range change {
		c(&j)
	}
	return j
}

func loads() []load {
	return []load{
		{name: "steady", drive: func(s *loadShape) { s.loop(1, func(int, int) job { return s.by(s.known[0]) }) }},
		{name: "burst", long: true, drive: func(s *loadShape) { s.rounds(func(int) int { return 24 }) }},
		{name: "ramp", drive: func(s *loadShape) { s.rounds(func(round int) int { return 1 + round }) }},
		{name: "sawtooth", drive: func(s *loadShape) { s.rounds(func(round int) int { return 1 + round%4*3 }) }},
		{name: "many", drive: func(s *loadShape) { s.loop(8, func(c, _ int) job { return s.by(s.known[c]) }) }},
		{name: "hot", drive: func(s *loadShape) {
			s.loop(6, func(c, i int) job {
				if i%8 == c { // each that is quiet calls once in a while
					return s.by(s.known[1+c])
				}
				return s.by(s.known[0])
			})
		}},
		{name: "strangers", long: true, drive: func(s *loadShape) {
			s.loop(4, func(c, _ int) job {
				if c%2 == 0 {
					return s.by("")
				}
				return s.by(s.known[c])
			})
		}},
		{name: "slow", drive: func(s *loadShape) {
			s.loop(8, func(c, _ int) job { return s.by(s.known[c], func(j *job) { j.Sleep += 0.2 }) })
		}},
		{name: "failing", drive: func(s *loadShape) {
			s.loop(3, func(c, i int) job { return s.by(s.known[c], func(j *job) { j.Fail = i%3 > 0 }) })
		}},
		{name: "timeouts", long: true, drive: func(s *loadShape) {
			s.loop(3, func(c, i int) job {
				return s.by(s.known[c], func(j *job) {
					if i%4 == 1 {
						j.Sleep = 30
					}
				})
			})
		}},
		{name: "hangups", long: true, drive: func(s *loadShape) {
			s.loop(3, func(c, i int) job {
				return s.by(s.known[c], func(j *job) {
					if i%3 == 1 {
						j.Sleep, j.hang = 1, time.Duration(5+i%7*50)*time.Millisecond
					}
				})
			})
		}},
		{name: "large", drive: func(s *loadShape) {
			s.loop(2, func(c, _ int) job {
				return s.by(s.known[c], func(j *job) { j.Answer, j.Fetch = 1<<20, j.Fetch*20 }) // more than the rule lets through
			})
		}},
		{name: "ways", drive: func(s *loadShape) {
			s.loop(3, func(c, _ int) job { return s.by(s.known[c], func(j *job) { j.way = c }) })
		}},
		{name: "chain", chain: true, drive: func(s *loadShape) { s.loop(3, func(int, int) job { return s.by(s.known[0]) }) }},
	}
}

// TestH3LoadShapesOverHTTP drives real functions by calls of every shape against a
// budget of each meter, until it is used up. The sum is never seen beyond the
// budget, what is refused does not run, and the meter says what the audit log says,
// to the byte and the nanosecond.
func TestH3LoadShapesOverHTTP(t *testing.T) {
	up := newOutside(t, func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.URL.Query().Get("bytes"))
		w.Write(make([]byte, size))
	})
	port := strconv.Itoa(up.port)
	n := NewNode(t, func(c *node.Config) {
		c.EgressAllow, c.EgressResolve = []string{"127.0.0.1:" + port}, []string{"up.test=127.0.0.1"}
	})
	rt := n.NeedRuntime(Pythons()...)
	if err := n.SetPrices(t.Context(), bawn.Prices{Currency: "EUR", Call: 1_000_000, CPU: 10_001, Memory: 100_003, Egress: 1_000_000_007}); err != nil {
		t.Fatal(err)
	}
	var known []string
	for i := range 8 {
		k, err := n.CreateKey(t.Context(), client.NewKey{Name: "caller-" + strconv.Itoa(i), Role: bawn.RoleInvoker})
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, k.Secret)
	}
	// A reservation of memory or of time is that of the whole timeout and of loading:
	// more than two of them would take long to fill by what is really used.
	budgets := map[string]string{
		bawn.MeterCalls: "20/month", bawn.MeterEgress: "128KiB/month", bawn.MeterMoney: "0.03/month",
		bawn.MeterCPU: "1.4s/month", bawn.MeterMemory: "1.75GBs/month",
	}
	month := time.Now().UTC().Month()
	var shapes []*loadShape
	tenants := map[string]*Node{"main": n}
	for _, meter := range []string{bawn.MeterMemory, bawn.MeterCPU, bawn.MeterEgress, bawn.MeterMoney, bawn.MeterCalls} { // the longest first
		for _, l := range loads() {
			if !l.long && (meter == bawn.MeterMemory || meter == bawn.MeterCPU) {
				continue
			}
			s := &loadShape{Node: n, load: l, meter: meter, function: l.name + "-" + meter, tenant: "main", budget: budgets[meter], known: known, answered: map[string]int{}}
			if l.chain {
				s.tenant = s.function
				made, err := n.CreateTenant(t.Context(), s.tenant, bawn.Quota{})
				if err != nil {
					t.Fatal(err)
				}
				s.Node, s.known = &Node{Client: n.As(made.Secret), Context: n.Context, HTTP: n.HTTP, t: t}, []string{made.Secret}
				tenants[s.tenant] = s.Node
			}
			s.deploy(rt, up.port)
			shapes = append(shapes, s)
		}
	}

	// What the node tells of its budgets meanwhile.
	byBudget := map[string]*loadShape{}
	for _, s := range shapes {
		byBudget[s.tenant+"/"+s.standing()] = s
	}
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			for tenant := range tenants {
				b, err := n.Budget(t.Context(), tenant, "")
				if err != nil {
					t.Error(err)
					return
				}
				for _, st := range b.Standings {
					if s := byBudget[tenant+"/"+st.Function]; s != nil {
						s.polls++
						if st.Used+st.Held > st.Grant.Amount || st.Share > 0 && st.Shared > st.Share {
							s.over = fmt.Sprintf("%+v", st)
						}
					}
				}
			}
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	room := make(chan struct{}, 12)
	var driven sync.WaitGroup
	for _, s := range shapes {
		driven.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			s.deadline = time.Now().Add(2 * time.Minute)
			s.drive(s)
		})
	}
	driven.Wait()
	close(done)
	watch.Wait()
	if time.Now().UTC().Month() != month {
		t.Skip("the month ended meanwhile")
	}
	read := map[string]*books{}
	for tenant, own := range tenants {
		read[tenant] = own.books()
	}
	for _, s := range shapes {
		t.Run(s.name+"/"+s.meter, func(t *testing.T) { s.check(t, read[s.tenant]) })
	}
}

// standing is the function that the shape's budget stands under.
func (s *loadShape) standing() string {
	if s.chain {
		return "" // the tenant's
	}
	return s.function
}

// deploy makes the shape's functions and its budget.
func (s *loadShape) deploy(rt bawn.Runtime, port int) {
	s.t.Helper()
	spec := func(name string, budget bool) map[string]any {
		in := map[string]any{}
		if name == s.function {
			in["http"] = []any{map[string]any{"method": "POST", "path": "/" + name, "inspect": "off",
				"access": map[string]any{"public": map[string]any{"reason": "a test", "until": "2099-12-31"}}}}
		} else {
			in["callers"] = []string{s.function}
		}
		if budget {
			in["budget"] = map[string]any{s.meter: s.budget}
		}
		cpu := 1.0
		if s.meter == bawn.MeterCPU {
			cpu = 0.05
		}
		egress := map[string]any{"hosts": []any{map[string]any{"host": "up.test", "ports": []int{port}, "plaintext": true, "bytes": "8KiB"}}}
		if s.chain && name == s.function {
			egress["functions"] = []string{name + "-inner"}
		}
		return map[string]any{
			"runtime": string(rt), "handler": "app.handler", "ingress": in, "egress": egress,
			"interior": map[string]any{"timeout": "2s", "memory": "64MiB", "cpu": cpu, "concurrency": 3, "reuse": map[string]any{"maxAge": "1h"}},
		}
	}
	files := map[string]string{"app.py": strings.ReplaceAll(worker, "PORT", strconv.Itoa(port))}
	if !s.chain {
		s.MustDeploy(s.function, spec(s.function, true), files)
		return
	}
	s.MustDeploy(s.function, spec(s.function, false), files)
	s.MustDeploy(s.function+"-inner", spec(s.function+"-inner", false), files)
	g, err := manifest.ParseGrant(s.meter, s.budget)
	if err == nil {
		_, err = s.SetBudget(s.t.Context(), "", []bawn.Grant{g})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// books are what a tenant's meter and its audit log say once nothing runs.
type books struct {
	standings []bawn.Standing
	cost      *bawn.Cost
	charges   map[string]bawn.Spending // by function, as the outcomes on record have it
	byCaller  map[string]bawn.Spending
}

func plus(a, b bawn.Spending) bawn.Spending {
	return bawn.Spending{Calls: a.Calls + b.Calls, CPU: a.CPU + b.CPU, Memory: a.Memory + b.Memory, Egress: a.Egress + b.Egress, Money: a.Money + b.Money}
}

// books waits until no call of the node's tenant holds anything, reads what there is
// and holds it against each other: in all, by function and by who is charged.
func (n *Node) books() *books {
	n.t.Helper()
	b := &books{charges: map[string]bawn.Spending{}, byCaller: map[string]bawn.Spending{}}
	n.until("calls to end", func() bool {
		budget, err := n.Budget(n.t.Context(), "", "")
		if err != nil {
			n.t.Fatal(err)
		}
		b.standings = budget.Standings
		return !slices.ContainsFunc(b.standings, func(s bawn.Standing) bool { return s.Held != 0 })
	})
	var total bawn.Spending
	if err := n.Events(n.t.Context(), client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindOutcome}, Limit: 10_000}, func(r bawn.Record) error {
		text := r.Detail["charge"]
		if text == "" {
			return nil
		}
		var at, others int64
		var u bawn.Spending
		var caller string
		if _, err := fmt.Sscan(text, &at, &others, &u.Calls, &u.CPU, &u.Memory, &u.Egress, &u.Money, &caller); err != nil || u.Calls != 1 {
			return fmt.Errorf("the charge %q: %v", text, err)
		}
		b.charges[r.Function], b.byCaller[caller], total = plus(b.charges[r.Function], u), plus(b.byCaller[caller], u), plus(total, u)
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	var err error
	if b.cost, err = n.Cost(n.t.Context(), client.CostQuery{}); err != nil {
		n.t.Fatal(err)
	}
	if total.Calls == 0 || b.cost.Total != total {
		n.t.Errorf("the meter has %+v, the audit log %+v", b.cost.Total, total)
	}
	for _, view := range []struct {
		meter []bawn.Blame
		audit map[string]bawn.Spending
	}{{b.cost.Functions, b.charges}, {b.cost.Callers, b.byCaller}} {
		meter := map[string]bawn.Spending{}
		for _, m := range view.meter {
			meter[m.Name] = m.Use
		}
		if !maps.Equal(meter, view.audit) {
			n.t.Errorf("the meter has %+v, the audit log %+v", meter, view.audit)
		}
	}
	return b
}

// check holds what the node says of a shape against what its callers were told and
// what its functions say.
func (s *loadShape) check(t *testing.T, b *books) {
	i := slices.IndexFunc(b.standings, func(st bawn.Standing) bool { return st.Function == s.standing() })
	if i < 0 {
		t.Fatalf("there is no budget: %+v", b.standings)
	}
	st := b.standings[i]
	switch {
	case s.over != "":
		t.Errorf("a budget was seen to be passed: %s", s.over)
	case s.polls == 0 || s.spent == 0:
		t.Errorf("looked %d times, refused for good %d times", s.polls, s.spent)
	case st.Used > st.Grant.Amount:
		t.Errorf("%d are used of %d", st.Used, st.Grant.Amount)
	case st.Shared > st.Share || s.name == "strangers" && st.Shared == 0:
		t.Errorf("strangers used %d of their part, which is %d", st.Shared, st.Share)
	case st.Used <= st.Grant.Amount/2: // a call reserves less than half
		t.Errorf("only %d are used of %d, and calls were refused", st.Used, st.Grant.Amount)
	case s.meter == bawn.MeterCalls && st.Used != st.Grant.Amount:
		t.Errorf("%d calls were let in, of %d", st.Used, st.Grant.Amount)
	}
	functions := []string{s.function}
	if s.chain {
		functions = append(functions, s.function+"-inner")
	}
	var used int64
	for _, f := range functions {
		sum := b.charges[f]
		used += sum.Of(s.meter)
		ran := map[string]int{}
		if err := s.Logs(t.Context(), f, client.LogQuery{Limit: 10_000}, func(l bawn.LogLine) error {
			if id, ok := strings.CutPrefix(l.Text, "ran "); ok && !l.Platform {
				ran[strings.TrimSpace(id)]++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		let, left := 0, 0
		for id, status := range s.answered {
			if strings.HasSuffix(id, ".inner") != strings.HasSuffix(f, "-inner") {
				continue
			}
			k := ran[id]
			switch status {
			case http.StatusTooManyRequests:
				if k > 0 {
					t.Errorf("%s was refused, and ran", id)
				}
			case 0:
				left++
			case http.StatusGatewayTimeout:
				let++ // on a busy host perhaps before its first line
			default:
				if let++; k != 1 {
					t.Errorf("%s was answered %d, and ran %d times", id, status, k)
				}
			}
		}
		if calls := int(sum.Calls); calls < let || calls > let+left || len(ran) > calls {
			t.Errorf("%s: %d calls were charged, %d answered, %d left by their callers; %d ran", f, calls, let, left, len(ran))
		}
		if sum.Calls < 2 {
			t.Errorf("%s: %d calls were charged", f, sum.Calls)
		}
	}
	if used != st.Used {
		t.Errorf("the budget has %d, the audit log %d", st.Used, used)
	}
	t.Logf("%d calls, of them %d refused for good; %s of %s used; looked %d times", s.calls, s.spent, bawn.MeterText(s.meter, st.Used), s.budget, s.polls)
}
