// Package waf searches the text of requests and events for attacks with the OWASP
// Core Rule Set, in this process. The rules are loaded when first asked and shared
// by all that ask; see [Inspector.Need] for when they go.
package waf

import (
	"cmp"
	"context"
	"crypto/sha256"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	coreruleset "github.com/corazawaf/coraza-coreruleset/v4"
	"github.com/corazawaf/coraza/v3"
	"github.com/corazawaf/coraza/v3/experimental"
	"github.com/corazawaf/coraza/v3/experimental/plugins/plugintypes"
	"github.com/corazawaf/coraza/v3/types"

	"bawn.dev/bawn"
)

// Bounds of an inspection. What is beyond them is refused, not let through.
const (
	MaxLevel = 4

	maxText    = 32 << 10 // bytes that the engine reads of one request or event, its headers apart
	maxWaiting = 64       // inspections that wait for their turn
	maxWait    = 5 * time.Second
	keepUnused = time.Minute // how long the rules stay after the last use, when nothing live needs them

	maxDepth     = 64      // of JSON in a body that the engine reads
	maxArguments = maxText // more than maxText has room for
)

// Rules that may be left out: those that detect something. The others set up the
// rest, or count.
const (
	FirstRule = 911000
	LastRule  = 948999
)

// A Question is what is to be searched.
type Question struct {
	Request *bawn.Request // nil for an event that came by name
	Body    []byte        // of the request, for the engine to read by its content type; nil if its leaves are given
	Leaves  []Leaf
	Source  string // the caller's address, may be empty
	Level   int
	Exclude []int // sorted
}

// A Leaf is a text in a document. No two leaves of a question are at one place.
type Leaf struct {
	At   int
	Text string
	Name bool // whether it is the name of a member
}

// leafPrefix begins the names of the arguments that the engine gets for leaves.
const leafPrefix = "json."

// argument returns the name of the argument that stands for l. Its value is the
// text, also of a member's name: some rules look at values alone.
func (l *Leaf) argument() string {
	name := leafPrefix + strconv.Itoa(l.At)
	if l.Name {
		name += "." + l.Text
	}
	return name
}

// A Verdict is what came of a search.
type Verdict struct {
	Attack bool  // what was found is enough for the level
	Rules  []int // that found something; sorted, each once
}

// An Inspector searches. Safe for concurrent use.
type Inspector struct {
	turns   chan struct{}
	waiting chan struct{}
	direct  bool // without the shortcut; for tests

	mu      sync.Mutex
	loading *sync.Cond
	busy    bool // somebody loads
	set     *set
	needed  bool
	closed  bool
	timer   *time.Timer
}

// A set is the rules, loaded.
type set struct {
	waf   coraza.WAF
	short shortcuts
	heads heads
	users int
}

// New returns an inspector that has loaded nothing yet. The caller must Close it.
func New() *Inspector {
	i := &Inspector{
		turns:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		waiting: make(chan struct{}, maxWaiting),
	}
	i.loading = sync.NewCond(&i.mu)
	return i
}

// Need says whether anything live needs the rules. When nothing does they are
// dropped. It does not block.
func (i *Inspector) Need(yes bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.needed = yes
	i.drop()
}

// Loaded reports whether the rules are in memory.
func (i *Inspector) Loaded() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.set != nil
}

// Close drops the rules. Nothing may be asked after it.
func (i *Inspector) Close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.needed, i.closed = false, true
	if i.timer != nil {
		i.timer.Stop()
	}
	i.drop()
}

// drop forgets the rules if nobody needs or uses them. Needs mu.
func (i *Inspector) drop() {
	if i.needed || i.set == nil || i.set.users > 0 {
		return
	}
	i.set.close()
	i.set = nil
}

// close gives back what the engine keeps for the process.
func (s *set) close() {
	if c, ok := s.waf.(experimental.WAFCloser); ok {
		c.Close() // it returns nil always
	}
}

// hold returns the rules, which must be released.
func (i *Inspector) hold() (*set, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.busy {
		i.loading.Wait()
	}
	if i.set == nil {
		i.busy = true
		i.mu.Unlock()
		s, err := load()
		i.mu.Lock()
		i.busy = false
		i.loading.Broadcast()
		if err != nil {
			return nil, err
		}
		i.set = s
	}
	i.set.users++
	return i.set, nil
}

func (i *Inspector) release(s *set) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s.users--; s.users > 0 || i.needed {
		return
	}
	if i.closed {
		i.drop()
		return
	}
	if i.timer == nil {
		i.timer = time.AfterFunc(keepUnused, func() { i.mu.Lock(); i.drop(); i.mu.Unlock() })
	}
	i.timer.Reset(keepUnused)
}

// setup is what the engine is told before the rule set, and settings what after
// the rule set's own. It never acts by itself: what it would do is asked for. The
// level comes with each question.
const (
	setup = `
SecRuleEngine DetectionOnly
SecRequestBodyAccess On
SecRequestBodyLimitAction Reject
SecResponseBodyAccess Off
SecAuditEngine Off
SecDefaultAction "phase:1,log,noauditlog,pass"
SecDefaultAction "phase:2,log,noauditlog,pass"
SecRule REQUEST_HEADERS:Content-Type "@rx ^(?:application(?:/soap\+|/)|text/)xml" "id:200000,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML"
SecRule REQUEST_HEADERS:Content-Type "@rx ^application/(?:[a-z0-9.-]+\+)?json" "id:200001,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON"
SecRule REQBODY_ERROR "!@eq 0" "id:200002,phase:2,t:none,log,deny,status:400,msg:'the body cannot be read'"
SecRule MULTIPART_STRICT_ERROR "!@eq 0" "id:200003,phase:2,t:none,log,deny,status:400,msg:'the multipart body is not as it should be'"
SecRule ARGUMENTS_LIMIT_REACHED "@eq 1" "id:200004,phase:2,t:none,log,deny,status:400,msg:'there are too many arguments'"
`
	// The manifest says which methods a route takes. An argument of bytes that are
	// not UTF-8 is looked at as such.
	settings = `
SecAction "id:900990,phase:1,pass,t:none,nolog,setvar:tx.crs_setup_version=4250,\
  setvar:tx.blocking_paranoia_level=%{tx.bawn_level},setvar:tx.detection_paranoia_level=%{tx.bawn_level},\
  setvar:tx.crs_validate_utf8_encoding=1,\
  setvar:'tx.allowed_methods=GET HEAD POST OPTIONS PUT PATCH DELETE'"
`
)

// load compiles the rules.
func load() (*set, error) {
	rules, err := readRules()
	if err != nil {
		return nil, err
	}
	waf, err := coraza.NewWAF(coraza.NewWAFConfig().
		WithRootFS(coreruleset.FS).
		WithRequestBodyLimit(maxText).WithRequestBodyInMemoryLimit(maxText).
		WithDirectives(setup +
			"SecRequestBodyJsonDepthLimit " + strconv.Itoa(maxDepth) + "\n" +
			"SecArgumentsLimit " + strconv.Itoa(maxArguments) + "\n" +
			settings +
			"Include " + rulesFolder + "/REQUEST-*.conf\n"))
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeInternal, "inspect", "the rules for inspections cannot be loaded")
	}
	return &set{waf: waf, short: shortcuts{rules: rules}}, nil
}

// Ask searches. An error says why that could not be done: CodeTooLarge for more
// text than is read, CodeUnavailable when too many others are asking. Whoever must
// know takes each error for a refusal.
func (i *Inspector) Ask(ctx context.Context, q Question) (Verdict, error) {
	if q.Level < 1 || q.Level > MaxLevel {
		return Verdict{}, bawn.Errorf(bawn.CodeInternal, "inspect", "there is no level %d", q.Level)
	}
	s, err := i.hold()
	if err != nil {
		return Verdict{}, err
	}
	defer i.release(s)

	// What takes little is done at once; the rest is for those whose turn it is.
	leaves, quick := q.Leaves, len(q.Body) == 0 && !i.direct
	for left := maxText; quick && len(leaves) > 0; leaves = leaves[1:] {
		left -= len(leaves[0].Text)
		quick = left >= 0
	}
	leaves = q.Leaves
	var key [sha256.Size]byte
	if quick {
		if leaves, err = s.short.suspicious(leaves, q.Level); err != nil {
			return Verdict{}, err
		}
		quick = len(leaves) == 0
		if quick && q.Request == nil {
			return Verdict{}, nil
		}
		if quick {
			if key = headKey(&q); s.heads.has(key) {
				return Verdict{}, nil
			}
		}
	}
	if err := i.turn(ctx); err != nil {
		return Verdict{}, err
	}
	defer func() { <-i.turns }()
	var doubtful []Leaf
	if q.Body, doubtful = withoutFiles(q.Request, q.Body); len(doubtful) > 0 {
		leaves = append(slices.Clip(leaves), doubtful...)
	}
	if isForm(q.Request) {
		leaves = append(slices.Clip(leaves), repeated(string(q.Body))...)
	}
	if !i.direct {
		if leaves, err = s.short.suspicious(leaves, q.Level); err != nil {
			return Verdict{}, err
		}
		if len(leaves) == 0 && q.Request == nil {
			return Verdict{}, nil
		}
	}
	size := len(q.Body)
	if q.Request != nil {
		size += len(q.Request.Query)
	}
	for _, l := range leaves {
		size += len(l.Text)
		if l.Name {
			size += len(l.Text)
		}
	}
	if size > maxText {
		return Verdict{}, bawn.Errorf(bawn.CodeTooLarge, "inspect", "there is more text than can be searched for attacks, which is %d bytes", maxText).
			WithFix("send less at once")
	}
	v, err := s.search(q, leaves)
	if quick && err == nil && !v.Attack && len(v.Rules) == 0 {
		s.heads.add(key)
	}
	return v, err
}

// turn waits until this inspection may begin, which not everybody may.
func (i *Inspector) turn(ctx context.Context) error {
	select {
	case i.turns <- struct{}{}:
		return nil
	default:
	}
	full := func() error {
		return bawn.Errorf(bawn.CodeUnavailable, "inspect", "too many requests are being inspected").WithFix("try again in a moment")
	}
	select {
	case i.waiting <- struct{}{}:
		defer func() { <-i.waiting }()
	default:
		return full()
	}
	t := time.NewTimer(maxWait)
	defer t.Stop()
	select {
	case i.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return bawn.Wrap(ctx.Err(), bawn.CodeUnavailable, "inspect", "the caller has left")
	case <-t.C:
		return full()
	}
}

// suspicious returns the leaves that a rule might match.
func (s *shortcuts) suspicious(leaves []Leaf, level int) ([]Leaf, error) {
	if len(leaves) == 0 {
		return nil, nil
	}
	short, err := s.at(level)
	if err != nil {
		return nil, err
	}
	var left []Leaf
	for _, l := range leaves {
		// The name of a string's argument never matters; a test holds that.
		if !short.clears(l.Text) || l.Name && !short.clears(l.argument()) {
			left = append(left, l)
		}
	}
	return left, nil
}

// The engine's transactions can do more than their interface says.
type transaction interface {
	types.Transaction
	Variables() plugintypes.TransactionVariables
	RemoveRuleByID(id int)
	IsDetectionOnlyInterrupted() bool
}

// An event that came by name is held in a request that no rule of any level finds
// anything in.
var plainRequest = bawn.Request{
	Method: "POST", Host: "event.example", Path: "/", Proto: "HTTP/1.1",
	Header: map[string][]string{
		"Accept": {"application/json"}, "User-Agent": {"event"}, "Content-Type": {"application/json"}, "Content-Length": {"1"},
	},
}

// search has the engine look at a question.
func (s *set) search(q Question, leaves []Leaf) (Verdict, error) {
	tx, ok := s.waf.NewTransaction().(transaction)
	if !ok {
		return Verdict{}, bawn.Errorf(bawn.CodeInternal, "inspect", "the engine is not the one that is known")
	}
	defer tx.Close() // its error is of files that it could not remove
	tx.Variables().TX().Set("bawn_level", []string{strconv.Itoa(q.Level)})
	for _, id := range q.Exclude {
		tx.RemoveRuleByID(id)
	}
	r := cmp.Or(q.Request, &plainRequest)
	tx.ProcessConnection(q.Source, 0, "", 0)
	uri := r.Path
	if r.Query != "" {
		uri += "?" + r.Query
	}
	tx.ProcessURI(uri, r.Method, r.Proto)
	ownNames(tx.Variables().ArgsGet())
	for name, values := range r.Header {
		for _, v := range values {
			tx.AddRequestHeader(strings.Clone(name), v) // see ownNames
		}
	}
	ownNames(tx.Variables().RequestCookies())
	if r.Host != "" {
		tx.AddRequestHeader("Host", r.Host)
		name, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			name = r.Host
		}
		tx.SetServerName(name)
	}
	if isChunked(r) {
		tx.AddRequestHeader("Transfer-Encoding", "chunked")
	}
	tx.ProcessRequestHeaders()
	for i := range leaves {
		tx.AddPostRequestArgument(leaves[i].argument(), leaves[i].Text)
	}
	if len(q.Body) > 0 {
		if _, n, err := tx.WriteRequestBody(q.Body); err != nil || n != len(q.Body) {
			return Verdict{}, bawn.Errorf(bawn.CodeInternal, "inspect", "the engine did not take the whole body: %v", err)
		}
	}
	if _, err := tx.ProcessRequestBody(); err != nil {
		return Verdict{}, bawn.Wrap(err, bawn.CodeInternal, "inspect", "the engine could not read the body")
	}
	v := Verdict{Attack: tx.IsDetectionOnlyInterrupted()}
	for _, m := range tx.MatchedRules() {
		if l, ok := m.(interface{ Log() bool }); ok && !l.Log() {
			continue
		}
		if id := m.Rule().ID(); id <= LastRule {
			v.Rules = append(v.Rules, id)
		}
	}
	slices.Sort(v.Rules)
	v.Rules = slices.Compact(v.Rules)
	return v, nil
}
