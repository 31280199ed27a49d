package control

import (
	"context"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/policy"
)

// findWithin bounds a search of the audit log by id.
const findWithin = 10 * time.Second

// AuditState says how it is with the node's audit log.
type AuditState struct {
	Origin     string                  `json:"origin" doc:"the log's name"`
	Key        string                  `json:"key" doc:"its public key: NAME+HASH+KEY"`
	Size       int64                   `json:"size" doc:"entries in the newest checkpoint"`
	Next       int64                   `json:"next" doc:"entries, those included that are in no checkpoint yet"`
	First      int64                   `json:"first" doc:"the oldest entry that was not pruned"`
	Checkpoint string                  `json:"checkpoint" doc:"the newest, signed"`
	Truncated  int64                   `json:"truncated" doc:"records that lost text since the start; each holds the length and hash of what it lost"`
	Witnesses  []evidence.WitnessState `json:"witnesses" nullable:"false"`
}

// AuditState says how it is with the audit log.
func (c *Control) AuditState(ctx context.Context, p bawn.Principal) (AuditState, error) {
	if err := c.authorize(ctx, p, policy.Audit, bawn.Ref{Tenant: p.Tenant}); err != nil {
		return AuditState{}, err
	}
	l := c.cfg.Evidence
	cp := l.Checkpoint()
	s := AuditState{Origin: cp.Origin, Key: l.Key(), Size: cp.Size, Next: l.Next(), First: l.First(), Checkpoint: string(cp.Note), Truncated: l.Truncated(), Witnesses: l.Witnesses()}
	if p.Tenant != bawn.DefaultTenant {
		s.Witnesses = nil // how the installation is run is not a tenant's to know
	}
	return s, nil
}

// AuditEntry returns a record of the principal's tenant, named by its index, its
// id or that of its invocation, with its inclusion receipt. Of an invocation it
// is the outcome, or the decision while it runs. Whoever made an invocation
// needs no right for a receipt of it.
func (c *Control) AuditEntry(ctx context.Context, p bawn.Principal, name string) (r bawn.Record, receipt []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, findWithin)
	defer cancel()
	index, number := int64(0), false
	if n, err := strconv.ParseInt(name, 10, 64); err == nil && n >= 0 {
		index, number = n, true
	}
	found, own := number, false
	if !number && p.Kind != bawn.PrincipalAnonymous {
		all, err := c.cfg.Evidence.Find(ctx, p.Tenant, name)
		if err != nil {
			return r, nil, err
		}
		for _, x := range all {
			if x.ID == name || x.Kind == bawn.KindDecision || x.Kind == bawn.KindOutcome {
				index, found = x.Index, true
			}
			own = own || x.Invocation == name && x.Kind == bawn.KindDecision && x.Outcome == "allow" && x.Principal == p.String()
		}
	}
	if !own {
		if err := c.authorize(ctx, p, policy.Audit, bawn.Ref{Tenant: p.Tenant}); err != nil {
			return r, nil, err
		}
	}
	gone := bawn.Errorf(bawn.CodeNotFound, "control.audit", "the audit log has no such record").WithFix("see bawn audit ls")
	if !found {
		return r, nil, gone
	}
	r, receipt, err = c.cfg.Evidence.At(ctx, index)
	if bawn.ErrorCode(err) == bawn.CodeNotFound || err == nil && r.Tenant != p.Tenant {
		return bawn.Record{}, nil, gone
	}
	return r, receipt, err
}

// AuditFile returns a file of the log's tiles, for whoever copies the whole of
// it. It holds the records of every tenant.
func (c *Control) AuditFile(ctx context.Context, p bawn.Principal, path string) ([]byte, error) {
	d, err := c.cfg.Policy.Authorize(ctx, policy.Request{Principal: p, Action: policy.Audit, Resource: bawn.Ref{Tenant: p.Tenant}, Object: policy.Object{Kind: policy.Installation}})
	switch {
	case err != nil:
		return nil, err
	case p.Kind == bawn.PrincipalAnonymous:
		return nil, bawn.Errorf(bawn.CodeUnauthenticated, "control.audit", "%s", d.Reason).WithFix("%s", d.Fix)
	case !d.Allow || p.Tenant != bawn.DefaultTenant:
		return nil, bawn.Errorf(bawn.CodeDenied, "control.audit", "the whole audit log is for auditors of the installation").
			WithFix("ask for the records of your tenant: bawn audit ls, bawn audit show")
	}
	if path == "checkpoint" {
		// What was done before it was asked for is in it.
		if _, err := c.cfg.Evidence.Publish(ctx); err != nil {
			return nil, err
		}
	}
	return c.cfg.Evidence.Resource(path)
}
