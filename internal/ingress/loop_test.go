package ingress

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
)

// nested returns the call of to that the pool would make for v, which serves
// parent.
func nested(v *bawn.Version, to bawn.Ref, origin bawn.Principal) *bawn.Call {
	return &bawn.Call{
		ID: bawn.NewID(), Trigger: "function", Target: to, Event: []byte("{}"), At: time.Now(),
		Principal: bawn.Principal{Kind: bawn.PrincipalFunction, ID: v.Function + "@1", Name: v.Function, Tenant: v.Tenant},
		Origin:    origin, Chain: []bawn.Ref{v.Ref()}, Hops: 1, Parent: bawn.NewID(), Caller: v,
	}
}

// TestA7OtherTenants has a function ask for what another tenant has, for what
// nobody has, and for what it does not name: it cannot tell them apart, and each
// is recorded.
func TestA7OtherTenants(t *testing.T) {
	w := newWorld(t)
	caller := w.deploy(t, "main", "caller")
	w.deploy(t, "main", "unnamed")
	w.deploy(t, "other", "theirs")
	var texts []string
	for _, to := range []bawn.Ref{
		{Tenant: "other", Function: "theirs"}, {Tenant: "other", Function: "nothing"},
		{Tenant: "main", Function: "theirs"}, {Tenant: "main", Function: "unnamed"},
	} {
		c := nested(caller, to, bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"})
		_, err := w.gate.Admit(context.Background(), c)
		wantCode(t, err, bawn.CodeNotFound)
		texts = append(texts, err.(*bawn.Error).Message)
		n := 0
		check1(t, w.log.Read(context.Background(), evidence.Query{Invocation: c.ID}, func(r bawn.Record) error {
			if n++; r.Outcome != "deny" || r.Principal != "function:caller@1" {
				t.Errorf("%+v", r)
			}
			return nil
		}))
		if n != 1 {
			t.Errorf("%s: %d records", to, n)
		}
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("the answers tell what there is: %q", texts)
		}
	}
}

// TestA7RemovedCaller has an instance of a version that is gone ask on.
func TestA7RemovedCaller(t *testing.T) {
	w := newWorld(t)
	caller := w.deploy(t, "main", "caller")
	w.deploy(t, "main", "callee")
	again := *caller
	again.Digest = "sha256:another" // deployed anew under the same number
	c := nested(&again, bawn.Ref{Tenant: "main", Function: "callee"}, bawn.Principal{Kind: bawn.PrincipalNode, ID: "n", Tenant: "main"})
	again.Perimeter.Egress.Functions = []string{"callee"}
	_, err := w.gate.Admit(context.Background(), c)
	wantCode(t, err, bawn.CodeDenied)
	if !strings.Contains(err.Error(), "has been removed") {
		t.Error(err)
	}
}

// TestH5SignedElement goes through what may be done to a trace header.
func TestH5SignedElement(t *testing.T) {
	w := newWorld(t)
	trace := func(header ...string) (*bawn.Call, error) {
		c := byName("f", "")
		c.At = w.now
		err := w.gate.Trace(c, header)
		return c, err
	}
	first, err := trace()
	check1(t, err)
	if first.Hops != 0 || !strings.Contains(first.TraceID, ";Bawn=1.00.") {
		t.Fatalf("%d %s", first.Hops, first.TraceID)
	}
	second, err := trace(first.TraceID)
	check1(t, err)
	if second.Hops != 1 || !strings.Contains(second.TraceID, ";Bawn=1.01.") || second.TraceID[:40] != first.TraceID[:40] {
		t.Errorf("%d %s", second.Hops, second.TraceID)
	}
	if _, err := trace(first.TraceID, "Root=1-2-3"); err == nil {
		t.Error("a second header hides the first")
	}
	// Of a function's call its instance knows the count.
	c := nested(&bawn.Version{Tenant: "main", Function: "f", Number: 1}, bawn.Ref{Tenant: "main", Function: "g"}, bawn.Anonymous())
	c.Hops, c.TraceID = 7, second.TraceID
	check1(t, w.gate.Trace(c, []string{first.TraceID}))
	if c.Hops != 7 || !strings.Contains(c.TraceID, ";Bawn=1.07.") || c.TraceID[:40] != first.TraceID[:40] {
		t.Errorf("%d %s", c.Hops, c.TraceID)
	}
	w.now = w.now.Add(signedFor + 2*time.Second)
	_, err = trace(first.TraceID)
	wantCode(t, err, bawn.CodeInvalid)
}

// TestH5CallWithoutTrace: a trigger that forgets the trace does not lose the count.
func TestH5CallWithoutTrace(t *testing.T) {
	w := newWorld(t)
	w.deploy(t, "main", "f")
	c := byName("f", w.key(t, "main", bawn.RoleInvoker))
	a, err := w.gate.Admit(context.Background(), c)
	check1(t, err)
	a.Settle()
	if !strings.Contains(c.TraceID, ";Bawn=1.00.") {
		t.Errorf("%q", c.TraceID)
	}
	c = byName("f", w.key(t, "main", bawn.RoleInvoker))
	c.Hops = bawn.MaxHops + 1
	if _, err = w.gate.Admit(context.Background(), c); bawn.ErrorCode(err) != bawn.CodeDenied || c.Principal.Kind != "" {
		t.Errorf("%v, asked who calls: %v", err, c.Principal)
	}
}

// H5: of a flood of loops from outside few are recorded, whatever they call; of
// those whose caller is known, all.
func TestH5RecordsAreBounded(t *testing.T) {
	w := newWorld(t)
	v := w.deploy(t, "main", "f")
	loop := func(n int, caller *bawn.Version) {
		for i := range n {
			c := byName([]string{"f", "g"}[i%2], "")
			c.Hops, c.Caller = bawn.MaxHops+1, caller
			if _, err := w.gate.Admit(context.Background(), c); !errors.Is(err, ErrLoop) {
				t.Fatal(err)
			}
		}
	}
	recorded := func() int {
		return len(w.records(t, func(r *bawn.Record) bool { return r.Control == "H5" }))
	}
	loop(loopRecords+7, nil)
	if n := recorded(); n != loopRecords {
		t.Errorf("%d records", n)
	}
	w.now = w.now.Add(time.Second)
	loop(1, nil)
	loop(loopRecords+7, v)
	if n := recorded(); n != 2*loopRecords+8 {
		t.Errorf("%d records in the end", n)
	}
}

func FuzzTrace(f *testing.F) {
	w := newWorld(f)
	c := byName("f", "")
	c.At = w.now
	check1(f, w.gate.Trace(c, nil))
	good := c.TraceID
	// Fuzzing runs in many processes, each of which signs a trace of its own: inputs
	// name it.
	f.Add("GOOD")
	f.Add("good")
	f.Add("GOOD;Sampled=1")
	f.Add("Root=1-00000000-000000000000000000000000;Bawn=")
	f.Add(";;=;Root=;Bawn=1.00.00000000.0000000000000000.00000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, header string) {
		header = strings.NewReplacer("GOOD", good, "good", strings.ToLower(good)).Replace(header)
		c := byName("f", "")
		c.At = w.now
		err := w.gate.Trace(c, []string{header})
		if err != nil {
			wantCode(t, err, bawn.CodeInvalid)
			return
		}
		parsed, err := parseTrace(c.TraceID)
		if err != nil || parsed.signed == "" {
			t.Fatalf("its own trace cannot be read: %q: %v", c.TraceID, err)
		}
		if c.Hops > 0 && !strings.Contains(header, good[strings.Index(good, "Bawn="):]) {
			t.Fatalf("a count from what was not signed here: %q", header)
		}
	})
}

func BenchmarkTrace(b *testing.B) {
	w := newWorld(b)
	c := &bawn.Call{ID: bawn.NewID(), At: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		if err := w.gate.Trace(c, nil); err != nil {
			b.Fatal(err)
		}
	}
}
