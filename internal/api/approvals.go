package api

import (
	"context"

	"bawn.dev/bawn/internal/control"
)

type approvalsOutput struct {
	Body struct {
		Approvals []control.Approval `json:"approvals" nullable:"false"`
	}
}

func (a *api) listApprovals(ctx context.Context, _ *none) (*approvalsOutput, error) {
	list, err := a.Control.Approvals(ctx, principal(ctx))
	out := &approvalsOutput{}
	out.Body.Approvals = orEmpty(list)
	return out, err
}

type approvalInput struct {
	ID string `path:"id" maxLength:"64" doc:"of what waits for approval"`
}

func (a *api) approve(ctx context.Context, in *approvalInput) (*deployOutput, error) {
	d, err := a.Control.Approve(ctx, principal(ctx), in.ID)
	return deployed(d), err
}

func (a *api) reject(ctx context.Context, in *approvalInput) (*none, error) {
	return nil, a.Control.Reject(ctx, principal(ctx), in.ID)
}
