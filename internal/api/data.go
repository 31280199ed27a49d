package api

import (
	"context"
	"time"

	"bawn.dev/bawn/internal/control"
)

type dataInput struct {
	Name  string    `query:"name" maxLength:"400" doc:"of a database or a secret, or where a database is: HOST:PORT or HOST:PORT/DATABASE; empty: everything"`
	Since time.Time `query:"since" doc:"uses are counted from then on; 30 days if left out"`
}

type dataOutput struct{ Body control.DataList }

func (a *api) data(ctx context.Context, in *dataInput) (*dataOutput, error) {
	list, err := a.Control.Data(ctx, principal(ctx), in.Name, in.Since)
	return &dataOutput{list}, err
}

type suggestInput struct {
	RefInput
	Since time.Time `query:"since" doc:"what was used and tried from then on counts; 30 days if left out"`
}

type suggestOutput struct{ Body control.Suggestion }

func (a *api) suggest(ctx context.Context, in *suggestInput) (*suggestOutput, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	s, err := a.Control.Suggest(ctx, principal(ctx), r, in.Since)
	return &suggestOutput{s}, err
}
