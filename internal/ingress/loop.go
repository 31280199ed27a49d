package ingress

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// The trace header of an invocation, in X-Ray's form, ends with an element that
// this node signs: how many calls of functions by functions led here. A request
// that comes back with it goes on counting, whatever way it comes, so no way
// around ends a loop's count. Control H5.
//
//	Root=1-…;Parent=…;Sampled=0;Bawn=1.HOPS.UNTIL.CHAIN.MAC
//
// HOPS has two hex digits and UNTIL, in seconds since 1970, eight; CHAIN is the
// beginning of the SHA-256 of the chain; MAC is the beginning of the HMAC-SHA256
// of the root and all that.
const (
	signedKey     = "Bawn="
	signedVersion = "1"
	signedFor     = time.Hour // a function that runs for the longest time allowed may still use it
	chainDigits   = 16
	macDigits     = 32
	signedLength  = len(signedKey) + len(signedVersion) + 1 + 2 + 1 + 8 + 1 + chainDigits + 1 + macDigits
	maxTraceBytes = 1024
	rootLength    = len("Root=1-00000000-000000000000000000000000") - len("Root=")
)

// loopRecords bounds how many refusals of loops that come from outside are
// recorded in a second; who calls is not known then.
const loopRecords = 10

// A trace is what is read of a trace header.
type trace struct {
	root   string // of X-Ray: 1-…-…; "" if there is none in that form
	signed string // the signed element without its key; "" if there is none
}

var errTrace = bawn.Errorf(bawn.CodeInvalid, "trace", "the element Bawn of the header X-Amzn-Trace-Id is not as it was made here").
	WithFix("pass the header on as it was given, or leave it out")

// parseTrace reads a trace header. Only one with a signed element has to be well
// formed: what else calls itself a trace is nothing that Bawn goes by.
func parseTrace(header string) (t trace, err error) {
	roots, signed := 0, 0
	for part := range strings.SplitSeq(header, ";") {
		part = strings.Trim(part, " \t")
		if len(part) >= len(signedKey) && strings.EqualFold(part[:len(signedKey)], signedKey) {
			signed++
			t.signed = part[len(signedKey):]
			if !strings.HasPrefix(part, signedKey) || len(part) != signedLength {
				signed++ // not one that was made here
			}
		} else if root, ok := strings.CutPrefix(part, "Root="); ok {
			roots++
			if isRoot(root) {
				t.root = root
			}
		}
	}
	switch {
	case signed == 0 && len(header) <= maxTraceBytes:
		return t, nil
	case signed == 0:
		return trace{}, nil
	case signed > 1 || roots != 1 || t.root == "" || len(header) > maxTraceBytes:
		return trace{}, errTrace
	}
	return t, nil
}

func isRoot(s string) bool {
	if len(s) != rootLength || s[:2] != "1-" || s[10] != '-' {
		return false
	}
	return isLowerHex(s[2:10]) && isLowerHex(s[11:])
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// hops returns the count of a signed element, after it has been verified.
func (g *Gate) hops(t trace) (int, error) {
	body, mac := t.signed[:len(t.signed)-macDigits], t.signed[len(t.signed)-macDigits:]
	if !hmac.Equal([]byte(mac), g.appendMAC(nil, []byte(t.root), []byte(body))) {
		return 0, errTrace
	}
	// From here on it is what this node wrote.
	f := strings.Split(body, ".")
	if len(f) != 5 || f[0] != signedVersion {
		return 0, errTrace
	}
	hops, err := strconv.ParseUint(f[1], 16, 8)
	until, err2 := strconv.ParseInt(f[2], 16, 64)
	if err != nil || err2 != nil {
		return 0, errTrace
	}
	if g.cfg.Now().Unix() > until {
		return 0, bawn.Errorf(bawn.CodeInvalid, "trace", "the header X-Amzn-Trace-Id is older than %s", signedFor).
			WithFix("pass the header of the invocation that calls, or leave it out")
	}
	return int(hops), nil
}

// appendMAC appends to b the digits that make the element body hold for root.
func (g *Gate) appendMAC(b, root, body []byte) []byte {
	h := g.macs.Get().(hash.Hash)
	defer g.macs.Put(h)
	h.Reset()
	h.Write(root)
	h.Write([]byte{0})
	h.Write(body)
	var sum [sha256.Size]byte
	return hex.AppendEncode(b, h.Sum(sum[:0])[:macDigits/2])
}

// Trace gives the call its trace, signed, before an event is made of it. header
// is what the request has of X-Amzn-Trace-Id: a signed one goes on counting, one
// that was tampered with or is too old is a CodeInvalid error, and any other
// means nothing. Of a call by a function header is not looked at: its count and
// its trace are known from its instance.
func (g *Gate) Trace(c *bawn.Call, header []string) error {
	root := ""
	if c.Caller != nil {
		if t, err := parseTrace(c.TraceID); err == nil {
			root = t.root
		}
	} else {
		c.Hops = 0
		for _, text := range header {
			t, err := parseTrace(text)
			if err != nil {
				return err
			}
			if t.signed == "" {
				continue
			}
			if len(header) > 1 {
				return errTrace
			}
			n, err := g.hops(t)
			if err != nil {
				return err
			}
			root, c.Hops = t.root, n+1
		}
	}
	g.sign(c, root)
	return nil
}

// sign sets c.TraceID. A trace that is not continued is made of the invocation's
// id, which is random already. It is written in place because it is made for each
// call.
func (g *Gate) sign(c *bawn.Call, root string) {
	var digits [32]byte
	id := appendDigits(digits[:0], c.ID)
	if len(id) != len(digits) {
		id = appendDigits(digits[:0], bawn.NewID())
	}
	var buf [256]byte
	b := append(buf[:0], "Root="...)
	at := len(b)
	if root == "" {
		b = append(b, "1-"...)
		b = appendHex(b, uint64(c.At.Unix()), 8)
		b = append(b, '-')
		b = append(b, id[:24]...)
	} else {
		b = append(b, root...)
	}
	end := len(b)
	b = append(b, ";Parent="...)
	b = append(b, id[16:]...)
	b = append(b, ";Sampled=0;"+signedKey...)
	body := len(b)
	b = append(b, signedVersion+"."...)
	b = appendHex(b, uint64(min(c.Hops, 0xff)), 2)
	b = append(b, '.')
	b = appendHex(b, uint64(g.cfg.Now().Add(signedFor).Unix()), 8)
	b = append(b, '.')
	if len(c.Chain) > 0 {
		h := sha256.New()
		h.Write([]byte(c.From().String()))
		for _, r := range c.Chain {
			h.Write([]byte("\x00" + r.String()))
		}
		b = hex.AppendEncode(b, h.Sum(nil)[:chainDigits/2])
	} else {
		b = append(b, noChain...)
	}
	b = append(b, '.')
	c.TraceID = string(g.appendMAC(b, b[at:end], b[body:]))
}

// noChain stands for the chain of a call that no function makes.
const noChain = "0000000000000000"

// appendDigits appends the hex digits of an id in a UUID's form.
func appendDigits(b []byte, id string) []byte {
	for i := range len(id) {
		if id[i] != '-' {
			b = append(b, id[i])
		}
	}
	return b
}

// appendHex appends the last n hex digits of v.
func appendHex(b []byte, v uint64, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, "0123456789abcdef"[v>>(4*(n-1))&15])
	}
	return b
}

// ErrLoop is the cause of an error that says that functions have called each
// other too often.
var ErrLoop = errors.New("too many calls of functions by functions")

// checkLoop ends a chain of calls that is too long. It also sees to it that no
// call goes on without the signed count, whatever trigger it came from.
func (g *Gate) checkLoop(ctx context.Context, c *bawn.Call, a *Admission) error {
	if c.Hops <= bawn.MaxHops {
		if !strings.Contains(c.TraceID, ";"+signedKey) {
			g.sign(c, "")
		}
		return nil
	}
	who := c.Principal
	if who.Kind == "" {
		who = bawn.Anonymous() // it is not looked at who calls
	}
	reason := "more than " + strconv.Itoa(bawn.MaxHops) + " calls of functions by functions followed from one call"
	tell := c.Caller != nil
	if !tell {
		_, tell = g.loops.take(g.cfg.Now(), loopRecords)
	}
	if tell {
		if err := g.refused(ctx, c, a, who, "H5", reason); err != nil {
			return err
		}
	}
	return bawn.Wrap(ErrLoop, bawn.CodeDenied, "loop", "%s", reason).
		WithFix("find the functions that call each other without end; a queue or a schedule is the way to go on for ever")
}

// Refuse records a call of a function that was refused before anybody was asked:
// it names nothing that could be there.
func (g *Gate) Refuse(ctx context.Context, c *bawn.Call, reason string) error {
	return g.refused(ctx, c, &Admission{}, c.Principal, "A7", reason)
}

// refused records what a check has refused that asks no policy.
func (g *Gate) refused(ctx context.Context, c *bawn.Call, a *Admission, who bawn.Principal, control, reason string) error {
	// Who hangs up must not be able to leave no trace.
	return g.cfg.Record(context.WithoutCancel(ctx), g.refusal(c, a, who, control, reason))
}

// refusal is the record of it, whose detail may be written to.
func (g *Gate) refusal(c *bawn.Call, a *Admission, who bawn.Principal, control, reason string) bawn.Record {
	r := bawn.Record{
		Kind: bawn.KindDecision, Time: g.cfg.Now(), Tenant: c.Target.Tenant, Function: c.Target.Function,
		Invocation: c.ID, Principal: who.String(), Source: c.Source,
		Action: "invoke", Outcome: "deny", Reason: reason, Control: control, Detail: Lineage(c),
	}
	if r.Detail == nil {
		r.Detail = map[string]string{}
	}
	if a.Version != nil {
		r.Version = a.Version.Number
	}
	return r
}

// leaveOut says in a record how many before it were not recorded.
func leaveOut(r *bawn.Record, left int) {
	if left > 0 {
		r.Detail["leftOut"] = strconv.Itoa(left)
	}
}

// Lineage is the detail that a record has of a call that a function makes; nil
// for any other.
func Lineage(c *bawn.Call) map[string]string {
	if c.Caller == nil && c.Hops == 0 {
		return nil
	}
	d := map[string]string{"depth": strconv.Itoa(c.Hops)}
	if c.Parent != "" {
		d["parent"] = c.Parent
	}
	if c.Origin.Kind != "" {
		d["origin"] = c.Origin.String()
	}
	if len(c.Chain) > 0 {
		d["chain"] = chainText(c.Chain)
	}
	return d
}

// chainText names the versions of a chain, which all are of one tenant.
func chainText(chain []bawn.Ref) string {
	names := make([]string, len(chain))
	for i, r := range chain {
		names[i] = r.Function + "@" + r.Qualifier
	}
	return strings.Join(names, " ")
}
