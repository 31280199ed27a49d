package api

import (
	"context"
	"time"

	"bawn.dev/bawn"
)

// Status says how a node is.
type Status struct {
	Ready   bool      `json:"ready"`
	Version string    `json:"version" doc:"of the program"`
	Node    string    `json:"node" doc:"the node's id"`
	Public  string    `json:"public" doc:"where calls go"`
	Started time.Time `json:"started"`
	Message string    `json:"message,omitempty" doc:"why it is not ready"`
}

type statusOutput struct{ Body Status }

func (a *api) status(context.Context, *none) (*statusOutput, error) {
	return &statusOutput{a.Status()}, nil
}

// Runtime is one runtime and whether the node has it.
type Runtime struct {
	Runtime bawn.Runtime `json:"runtime"`
	Found   string       `json:"found,omitempty" doc:"the program and its version"`
	Missing string       `json:"missing,omitempty" doc:"why the host cannot run it, and how to get it"`
}

// Doctor is what a node's host can enforce and run.
type Doctor struct {
	Capabilities []bawn.Capability `json:"capabilities" nullable:"false"`
	Runtimes     []Runtime         `json:"runtimes" nullable:"false"`
}

type doctorOutput struct{ Body Doctor }

func (a *api) doctor(ctx context.Context, _ *none) (*doctorOutput, error) {
	if err := a.Authorize(ctx, principal(ctx), "doctor"); err != nil {
		return nil, err
	}
	d, err := a.Doctor(ctx)
	if err != nil {
		return nil, err
	}
	d.Capabilities, d.Runtimes = orEmpty(d.Capabilities), orEmpty(d.Runtimes)
	return &doctorOutput{d}, nil
}

// PerimeterView is a compiled perimeter and what the kernel enforces of it.
type PerimeterView struct {
	Version   bawn.Version    `json:"version"`
	Instances []bawn.Instance `json:"instances" nullable:"false"`
}

type perimeterOutput struct{ Body PerimeterView }

func (a *api) perimeter(ctx context.Context, in *RefInput) (*perimeterOutput, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	_, v, err := a.Control.Function(ctx, principal(ctx), r)
	if err != nil {
		return nil, err
	}
	list, err := a.Inspect(ctx, &v)
	return &perimeterOutput{PerimeterView{v, orEmpty(list)}}, err
}
