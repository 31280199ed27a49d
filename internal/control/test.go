package control

import (
	"context"
	"fmt"
	"strings"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/policy"
)

// maxTesting is how many versions are tested at one time; others wait.
const maxTesting = 2

// Test runs the tests of what a deploy of the same would make a version of, and
// changes nothing: nobody else can call it, and it is gone afterwards. That a
// test fails is in the results and no error; the errors are those of Deploy.
//
// What the function does is real as far as its perimeter lets it out: a call
// that it may make to another function is made, for p. So what reaches more than
// what is live is not run before somebody has approved that: [bawn.CodeDenied].
func (c *Control) Test(ctx context.Context, p bawn.Principal, name string, spec manifest.Function, digest string) (_ []bawn.TestResult, err error) {
	v, err := c.candidate(ctx, p, name, spec, digest)
	if err != nil {
		return nil, err
	}
	if old, ok := c.sameContent(&v); ok {
		v = old
	} else if refusal := c.checkTried(&v); refusal != nil {
		return nil, c.refused(ctx, p, bawn.Record{Function: name, Action: "test", Control: "A5"}, refusal)
	} else if v.Compiled, err = c.compile(ctx, &v); err != nil {
		return nil, err
	}
	defer c.dropCompiled(ctx, &v, &err)
	return c.runTests(ctx, p, &v)
}

// checkTried refuses to run what nobody has approved that reaches more than what is
// live: a test is code of whoever asks, and a host or a secret that it may have, it
// has; control A5.
func (c *Control) checkTried(v *bawn.Version) *bawn.Error {
	if c.cfg.Solo {
		return nil
	}
	old := c.liveOf(v.Tenant, v.Function)
	if old == nil {
		old = &bawn.Version{}
	}
	var more []string
	reachChanges(old, v, func(field, before, after string, widens bool) {
		if widens && before != after && !strings.HasPrefix(field, "egress.response.") {
			more = append(more, field)
		}
	})
	if len(more) == 0 {
		return nil
	}
	return bawn.Errorf(bawn.CodeDenied, "control.test", "what nobody has approved yet is not run with more than what is live reaches: %s", cut(strings.Join(more, ", "))).
		WithFix("bawn deploy %s asks for approval, and the tests run before it becomes live; a node of your own that was started with --solo runs them at once", v.Function)
}

// TestVersion is Test for a version that is there.
func (c *Control) TestVersion(ctx context.Context, p bawn.Principal, ref bawn.Ref) ([]bawn.TestResult, error) {
	if err := ref.Check(); err != nil {
		return nil, err
	}
	if err := c.authorize(ctx, p, policy.Test, ref); err != nil {
		return nil, err
	}
	_, v, err := c.Function(ctx, p, ref)
	if err != nil {
		return nil, err
	}
	return c.runTests(ctx, p, &v)
}

// prove runs the tests of v, which is not live yet. Its error, of code
// [bawn.CodeUnprocessable], says which have failed: then v must not become live.
func (c *Control) prove(ctx context.Context, p bawn.Principal, v *bawn.Version) error {
	results, err := c.runTests(ctx, p, v)
	if err != nil {
		return err
	}
	return failedTests(v, results)
}

func failedTests(v *bawn.Version, results []bawn.TestResult) error {
	var failed []string
	for _, r := range results {
		if !r.OK {
			failed = append(failed, fmt.Sprintf("  %s: %s", r.Name, r.Message))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return bawn.Errorf(bawn.CodeUnprocessable, "control.test", "%d of the %d tests of %s failed, so it does not become live:\n%s", len(failed), len(results), v.Function, strings.Join(failed, "\n")).
		WithFix("bawn test %s runs them without a deploy; mend the function, its perimeter or the test", v.Function)
}

// runTests runs v's tests, one after the other, and records that.
func (c *Control) runTests(ctx context.Context, p bawn.Principal, v *bawn.Version) ([]bawn.TestResult, error) {
	const op = "control.test"
	if len(v.Tests) == 0 {
		return []bawn.TestResult{}, nil
	}
	if c.cfg.Test == nil {
		return nil, bawn.Errorf(bawn.CodeUnavailable, op, "this node cannot run tests, which %s has", v.Function)
	}
	ctx, cancel := context.WithTimeout(ctx, bawn.MaxTestRun)
	defer cancel()
	select {
	case c.testing <- struct{}{}:
		defer func() { <-c.testing }()
	case <-ctx.Done():
		return nil, bawn.Wrap(ctx.Err(), bawn.CodeThrottled, op, "other versions are being tested").WithFix("try again in a moment")
	}
	// A version that is not there yet has the number that it would get.
	candidate := *v
	if candidate.Number == 0 {
		f, _, _ := c.functions.Get(functionKey(p.Tenant, v.Function))
		gone, _, _ := c.removed.Get(functionKey(p.Tenant, v.Function))
		candidate.Number = max(f.Latest, gone.Latest) + 1
	}
	var results []bawn.TestResult
	what := bawn.Record{Function: v.Function, Version: candidate.Number, Action: "test", Detail: map[string]string{
		"content": v.Digest, "tests": fmt.Sprint(len(v.Tests)),
	}}
	err := c.change(ctx, p, what, func(context.Context) (err error) {
		// Not in the time of a change: nothing changes.
		if results, err = c.cfg.Test(ctx, p, &candidate); err != nil {
			return err
		}
		if len(results) != len(v.Tests) {
			return bawn.Errorf(bawn.CodeInternal, op, "not all tests of %s were run", v.Function)
		}
		var failed []string
		for _, r := range results {
			if !r.OK {
				failed = append(failed, r.Name)
			}
		}
		what.Detail["failed"] = fmt.Sprint(len(failed))
		if len(failed) > 0 {
			what.Detail["names"] = cutAt(strings.Join(failed, "; "), 500)
		}
		return nil
	})
	return results, err
}

// dropCompiled lets what was compiled for nothing go again. Where nothing else
// went wrong, *err is why it could not.
func (c *Control) dropCompiled(ctx context.Context, v *bawn.Version, err *error) {
	if v.Compiled == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := artifactKey(v.Tenant, v.Compiled.Digest)
	if c.inUse()[key] {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	if left := c.dropArtifact(ctx, key, v.Compiled.Digest); *err == nil {
		*err = left
	}
}
