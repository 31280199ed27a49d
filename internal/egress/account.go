package egress

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/policy"
)

const (
	maxConns    = 1024 // connections of one instance at one time, whatever they are for
	recordBurst = 40   // attempts that are recorded, of one instance in one second; the rest are counted
	maxJudged   = 100  // allowed decisions that are records of their own, of one invocation for one rule
)

// errOver is why nothing goes out after the end of an invocation.
var errOver = errors.New("the invocation is over")

// errDenied is the answer to what the policy refuses; why is in its record.
var errDenied = errors.New("denied")

// serving is one invocation of an instance.
type serving struct {
	a        *attached
	call     *bawn.Call
	deadline time.Time

	mu     sync.Mutex
	over   bool
	ctx    context.Context // from the first connection on
	cancel context.CancelFunc
	conns  map[net.Conn]struct{} // on both sides
	uses   map[account]*use
}

// enter adds a connection, which is closed at the end of the invocation. It
// reports false if that has come.
func (s *serving) enter(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	if s.conns == nil {
		s.conns = map[net.Conn]struct{}{}
		s.ctx, s.cancel = context.WithDeadline(context.Background(), s.deadline)
	}
	s.conns[conn] = struct{}{}
	return true
}

// leave closes a connection that entered.
func (s *serving) leave(conn net.Conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	conn.Close()
}

// end cuts every connection and returns what went through them.
func (s *serving) end() bawn.Traffic {
	s.mu.Lock()
	s.over = true
	conns, uses := s.conns, s.uses
	s.conns = nil
	s.mu.Unlock()
	if s.cancel != nil { // nobody sets it once over
		s.cancel()
	}
	for c := range conns {
		reset(c)
	}
	var t bawn.Traffic
	for _, u := range uses { // nobody adds to it once over
		if n := u.judged.Load() - maxJudged; n > 0 {
			s.a.record(bawn.Record{Kind: bawn.KindDecision, Time: s.a.b.cfg.Now(), Invocation: s.call.ID, Action: "egress", Outcome: "allow",
				Reason: "allowed like those before it in this invocation, by the same rule", Detail: with(u.first, "count", strconv.FormatInt(n, 10))})
		}
		t.Sent += u.sent.Load()
		t.Received += u.received.Load()
		t.Connections += int(u.made.Load())
	}
	return t
}

// use returns the account of what t is for.
func (s *serving) use(t *target) *use {
	key := s.a.account(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.uses[key]; have != nil {
		return have
	}
	u := &use{bytes: bawn.DefaultEgressBytes, conns: bawn.DefaultEgressConns, first: t.detail()}
	switch {
	case t.database != nil:
		u.conns = int64(cmp.Or(t.database.Connections, bawn.DefaultDatabaseConn))
	case t.host != nil:
		u.bytes = cmp.Or(t.host.Bytes, u.bytes)
		u.conns = int64(cmp.Or(t.host.Connections, int(u.conns)))
		u.time = t.host.Time
	}
	if s.uses == nil {
		s.uses = map[account]*use{}
	}
	if !s.over {
		s.uses[key] = u
	}
	return u
}

// account is what is counted together: a rule, a database, or what
// egress.everything opens, with TLS or without.
type account struct {
	rule      int // from 1 on; 0 if it is none
	database  string
	host      string
	plaintext bool
}

func (a *attached) account(t *target) account {
	switch {
	case t.database != nil:
		return account{database: t.database.Name}
	case t.host == nil:
		return account{}
	}
	for i := range a.plan.egress.Hosts {
		if &a.plan.egress.Hosts[i] == t.host {
			return account{rule: i + 1}
		}
	}
	return account{host: t.host.Host, plaintext: t.host.Plaintext}
}

// use is what one invocation has used of one rule or database. It outlives no
// invocation.
type use struct {
	bytes int64         // most, each way
	conns int64         // most at one time
	time  time.Duration // of one connection; zero means the invocation's

	first map[string]string // what the first was for, as a record says it

	judged                     atomic.Int64 // decisions that allowed
	sent, received, made, open atomic.Int64
	told                       atomic.Bool // that the bytes are used up
}

// judge asks the policy whether the function may reach t, and records what it
// says. detail adds to the record. An error means that it may not.
func (a *attached) judge(ctx context.Context, t *target, detail map[string]string) error {
	c, ref, object := t.run.call, a.v.Ref(), t.object()
	object.Method, object.Path = detail["method"], detail["path"] // of a request that is read
	req := policy.Request{
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: ref.Function + "@" + ref.Qualifier, Name: ref.Function, Tenant: ref.Tenant},
		Action:    policy.Egress, Resource: ref, Object: object, Invocation: c.ID,
		Caller: a.v, Origin: c.From(), Chain: append(c.Chain[:len(c.Chain):len(c.Chain)], ref), Hops: c.Hops,
		Detail: detail,
	}
	line := ""
	if t.host == nil && t.database == nil {
		line = t.manifestLine()
		req.Detail = with(detail, "manifest", line)
		if len(t.hosts) > 0 { // the policy knows hosts and ports, not requests
			req.Without, req.Fix = "no rule about the host allows such a request", line
		}
	}
	var u *use // nil if there is no rule that could allow it
	if t.host != nil || t.database != nil {
		u = t.run.use(t)
	}
	if u != nil && u.counted() && a.b.cfg.Allows(req) {
		u.judged.Add(1)
		return nil
	}
	d, err := a.b.cfg.Authorize(ctx, req)
	switch {
	case err != nil:
		return err
	case !d.Allow:
		a.tell("denied: "+t.where()+" at port "+itoa(t.port)+": "+d.Reason, line)
		return errDenied
	case u != nil:
		u.judged.Add(1)
	}
	return nil
}

// counted reports whether the invocation has been allowed so much by one rule that
// what more is allowed is one record with a number, at the end: else a function
// could push everybody's evidence out of the log by what it is allowed to do.
func (u *use) counted() bool { return u.judged.Load() >= maxJudged }

// with returns m with one more entry, and leaves m as it is.
func with(m map[string]string, key, value string) map[string]string {
	all := map[string]string{key: value}
	for k, v := range m {
		all[k] = v
	}
	return all
}

// connect judges, records, looks at the address, connects, and counts: it is the
// only way to the outside in this package but dial, which leaves out the first
// two. The connection is cut at the end of the invocation, and fails when the
// bytes of its rule are used up.
func (a *attached) connect(ctx context.Context, t *target) (*counted, error) {
	if err := a.judge(ctx, t, nil); err != nil {
		return nil, err
	}
	return a.dial(ctx, t)
}

// dial connects to t, for which judge has been asked already.
func (a *attached) dial(ctx context.Context, t *target) (*counted, error) {
	u := t.run.use(t)
	if u.open.Add(1) > u.conns {
		u.open.Add(-1)
		a.block("egress", "C5", "more than "+strconv.FormatInt(u.conns, 10)+" connections at one time by one rule", t.detail())
		return nil, errDenied
	}
	if u.sent.Load() >= u.bytes || u.received.Load() >= u.bytes {
		u.open.Add(-1)
		return nil, a.capped(t, u)
	}
	conn, to, err := a.outside(ctx, t)
	if err != nil {
		u.open.Add(-1)
		return nil, err
	}
	u.made.Add(1)
	c := &counted{Conn: conn, to: to, target: t, use: u}
	deadline := t.run.deadline
	if u.time > 0 {
		if d := time.Now().Add(u.time); d.Before(deadline) {
			deadline = d
			c.timer = time.AfterFunc(u.time, func() {
				a.block("egress", "C5", "a connection lasted longer than its rule allows", with(t.detail(), "time", u.time.String()))
				reset(conn)
			})
		}
	}
	c.SetDeadline(deadline)
	if !t.run.enter(c) {
		c.Close()
		return nil, errOver
	}
	return c, nil
}

// outside connects to t by the guard, whose refusals it records.
func (a *attached) outside(ctx context.Context, t *target) (conn net.Conn, to netip.AddrPort, err error) {
	if t.port == 0 || t.name == "" && !t.addr.IsValid() {
		return nil, to, errors.New("there is no such address")
	}
	conn, to, err = a.b.cfg.Guard.dial(ctx, "tcp", t.where(), t.port, false)
	var b *Blocked
	if errors.As(err, &b) {
		a.block("egress", "C3", b.Error(), with(t.detail(), "address", b.Addr.String()))
	} else if err != nil && ctx.Err() == nil {
		a.note(t.where() + " at port " + itoa(t.port) + " could not be reached: " + err.Error())
	}
	return conn, to, err
}

// capped records, once an invocation and rule, that its bytes are used up.
func (a *attached) capped(t *target, u *use) error {
	if u.told.CompareAndSwap(false, true) {
		a.block("egress", "C5", "the bytes of one invocation for this rule are used up; egress.hosts: bytes sets them", with(t.detail(), "bytes", strconv.FormatInt(u.bytes, 10)))
	}
	return errDenied
}

// counted is a connection to the outside. What is sent is counted before it
// goes, so that no byte beyond the cap does; what is received, before the
// function gets it.
type counted struct {
	net.Conn
	to     netip.AddrPort // which was looked at
	target *target
	use    *use
	timer  *time.Timer
	once   sync.Once
}

// Read fails when the bytes are used up.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	if total := c.use.received.Add(int64(n)); total > c.use.bytes {
		over := min(total-c.use.bytes, int64(n))
		c.use.received.Add(-over)
		reset(c.Conn)
		return n - int(over), c.target.run.a.capped(c.target, c.use)
	}
	return n, err
}

// Write fails when the bytes are used up, after as many as there were left.
func (c *counted) Write(p []byte) (int, error) {
	total, over := c.use.sent.Add(int64(len(p))), int64(0)
	if total > c.use.bytes {
		over = min(total-c.use.bytes, int64(len(p)))
		c.use.sent.Add(-over)
	}
	n := 0
	var err error
	if rest := p[:int64(len(p))-over]; len(rest) > 0 {
		if n, err = c.Conn.Write(rest); n < len(rest) {
			c.use.sent.Add(int64(n - len(rest)))
		}
	}
	if over > 0 && err == nil {
		err = c.target.run.a.capped(c.target, c.use)
		reset(c.Conn)
	}
	return n, err
}

// CloseWrite says that nothing more is sent.
func (c *counted) CloseWrite() error { return closeWrite(c.Conn) }

// Close ends the connection.
func (c *counted) Close() error {
	c.once.Do(func() {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.use.open.Add(-1)
		s := c.target.run
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
	return c.Conn.Close()
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// reset closes a connection so that the other end sees that it was cut, and not
// an end of the data.
func reset(c net.Conn) {
	inner := c
	if k, ok := c.(*counted); ok {
		inner = k.Conn
	}
	if l, ok := inner.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}

// quiet bounds what one instance adds to the evidence and to the function's log.
type quiet struct {
	mu     sync.Mutex
	second int64
	count  [2]int // in that second: records, notes
	left   int    // records left out since the last
}

// take reports whether one more of a kind may be written now.
func (q *quiet) take(kind int, now time.Time) (left int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := now.Unix(); q.second != s {
		q.second, q.count = s, [2]int{}
	}
	if q.count[kind] >= recordBurst {
		if kind == 0 {
			q.left++
		}
		return 0, false
	}
	q.count[kind]++
	if kind == 0 {
		left, q.left = q.left, 0
	}
	return left, true
}

// block records something that was stopped and tells the function's owner, in
// bounds; what is beyond them is counted.
func (a *attached) block(action, control, reason string, detail map[string]string) {
	now := a.b.cfg.Now()
	left, ok := a.quiet.take(0, now)
	if !ok {
		return
	}
	if left > 0 {
		detail = with(detail, "dropped", itoa(left))
	}
	a.tell(reason, detail["manifest"])
	a.record(bawn.Record{Kind: bawn.KindBlocked, Time: now, Action: action, Outcome: "blocked", Control: control, Reason: reason, Detail: detail})
}

func (a *attached) record(r bawn.Record) {
	if err := a.in.Record(context.Background(), r); err != nil {
		a.b.cfg.Errors.Error("what an egress stopped was not recorded", "function", a.v.Ref().String(), "error", err)
	}
}

// flush records how many attempts were left out at the end.
func (a *attached) flush() {
	a.quiet.mu.Lock()
	left := a.quiet.left
	a.quiet.left = 0
	a.quiet.mu.Unlock()
	if left > 0 {
		a.record(bawn.Record{Kind: bawn.KindBlocked, Time: a.b.cfg.Now(), Action: "egress", Outcome: "blocked", Control: "C5",
			Reason: "more attempts than are recorded", Detail: map[string]string{"dropped": itoa(left)}})
	}
}

// tell writes why something was stopped into the function's log, with the line
// of the manifest that would allow it, if one would.
func (a *attached) tell(reason, line string) {
	if line != "" {
		reason += "; this line of the manifest would allow it: " + line
	}
	a.note(reason)
}

func (a *attached) note(text string) {
	if _, ok := a.quiet.take(1, a.b.cfg.Now()); ok && a.in.Note != nil {
		a.in.Note("bawn: egress: " + text)
	}
}
