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
