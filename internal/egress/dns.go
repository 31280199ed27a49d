package egress

import (
	"errors"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxQuestion = 4096 // bytes that are read of one
	maxUDP      = 512  // bytes of an answer: it has one record
	answerTTL   = 60   // seconds; the address of a name stays its own for as long as the instance lives
	ednsBytes   = 1232 // what Bawn says it takes
)

// resolve answers the DNS questions of the sandbox until the socket is closed.
// It never asks anybody: a name that a rule is about has an address inside, and
// every other does not exist; control C5.
func (a *attached) resolve() {
	buf := make([]byte, maxQuestion)
	out := make([]byte, 0, maxUDP)
	for {
		n, from, err := a.in.Resolver.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := a.answer(buf[:n], out[:0]); answer != nil {
			a.in.Resolver.WriteTo(answer, from)
		}
	}
}

// answer appends the answer to a message, or returns nil if it deserves none.
func (a *attached) answer(msg, out []byte) []byte {
	q, err := parseQuestion(msg)
	if err != nil {
		if !q.answerable {
			return nil
		}
		return q.reply(out, dnsmessage.RCodeFormatError, netip.Addr{})
	}
	if q.rcode != dnsmessage.RCodeSuccess {
		return q.reply(out, q.rcode, netip.Addr{})
	}
	addr, known := a.addressOf(q.name)
	if !known {
		return q.reply(out, dnsmessage.RCodeNameError, netip.Addr{})
	}
	if q.question.Type != dnsmessage.TypeA && q.question.Type != dnsmessage.TypeALL {
		addr = netip.Addr{} // there is the name, and nothing of that type
	}
	return q.reply(out, dnsmessage.RCodeSuccess, addr)
}

// addressOf returns where name is inside; it reports false, and records the
// attempt, if it is nowhere.
func (a *attached) addressOf(name string) (netip.Addr, bool) {
	if name == "localhost" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	if addr, ok := a.plan.addrs[name]; ok {
		return addr, true
	}
	a.mu.Lock()
	idle := a.run == nil
	a.mu.Unlock()
	now := a.b.cfg.Now()
	if !a.plan.named(name, now) {
		t := target{name: name, port: 443}
		a.block("resolve", "C5", "no rule is about the name "+name, map[string]string{"host": name, "manifest": t.manifestLine()})
		return netip.Addr{}, false
	}
	// Names of wildcards are endless: only an invocation is given more.
	if idle && a.names.have(name) == (netip.Addr{}) {
		return netip.Addr{}, false
	}
	addr, ok := a.names.give(name)
	if !ok {
		a.block("resolve", "C5", "more than "+itoa(maxNames)+" names below wildcards", map[string]string{"host": name})
	}
	return addr, ok
}

// have returns the address that name has been given, if any.
func (n *names) have(name string) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs[name]
}

// question is a DNS message that asks one thing.
type question struct {
	answerable bool // whether there is enough of it to answer
	header     dnsmessage.Header
	asked      bool // whether question is set
	question   dnsmessage.Question
	name       string // canonical
	edns       bool
	rcode      dnsmessage.RCode // not success: what to answer
}

var errQuestion = errors.New("not a DNS question")

// parseQuestion reads a message. With an error it may still be answerable.
func parseQuestion(msg []byte) (question, error) {
	var q question
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, errQuestion // an answer to an answer could go on for ever
	}
	q.answerable = true
	if q.header.OpCode != 0 {
		q.rcode = dnsmessage.RCodeNotImplemented
		return q, nil
	}
	if q.header.Truncated {
		return q, errQuestion
	}
	if q.question, err = p.Question(); err != nil {
		return q, errQuestion
	}
	q.asked = true
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, errQuestion
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, errQuestion
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return q, errQuestion
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns {
				return q, errQuestion // there may be one
			}
			q.edns = true
		}
		if p.SkipAdditional() != nil {
			return q, errQuestion
		}
	}
	if q.question.Class != dnsmessage.ClassINET && q.question.Class != dnsmessage.ClassANY {
		q.rcode = dnsmessage.RCodeRefused
		return q, nil
	}
	if q.name, err = parseName(q.question.Name.String()); err != nil {
		q.name, q.rcode = "", dnsmessage.RCodeNameError
	}
	return q, nil
}

// reply appends an answer to q, with addr if that is valid.
func (q *question) reply(out []byte, rcode dnsmessage.RCode, addr netip.Addr) []byte {
	b := dnsmessage.NewBuilder(out, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: true,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: rcode,
	})
	b.EnableCompression()
	if q.asked {
		if b.StartQuestions() != nil || b.Question(q.question) != nil {
			return nil
		}
	}
	if addr.Is4() {
		if b.StartAnswers() != nil || b.AResource(dnsmessage.ResourceHeader{
			Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: answerTTL,
		}, dnsmessage.AResource{A: addr.As4()}) != nil {
			return nil
		}
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		if b.StartAdditionals() != nil || h.SetEDNS0(ednsBytes, dnsmessage.RCodeSuccess, false) != nil || b.OPTResource(h, dnsmessage.OPTResource{}) != nil {
			return nil
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}
