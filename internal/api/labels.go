package api

import (
	"context"
	"time"

	"bawn.dev/bawn/internal/control"
)

// LabelInput is the label in the path.
type LabelInput struct {
	Name string `path:"name" maxLength:"63" doc:"of the label"`
}

type labelsOutput struct {
	Body struct {
		Labels []control.Label `json:"labels" nullable:"false"`
	}
}

func (a *api) listLabels(ctx context.Context, _ *none) (*labelsOutput, error) {
	list, err := a.Control.Labels(ctx, principal(ctx))
	out := &labelsOutput{}
	out.Body.Labels = orEmpty(list)
	return out, err
}

type setLabelInput struct {
	LabelInput
	Body struct {
		LogRetention time.Duration `json:"logRetention" doc:"nanoseconds for which log lines of functions with the label are kept at most: a minute to 400 days"`
	}
}

type labelOutput struct{ Body control.Label }

func (a *api) setLabel(ctx context.Context, in *setLabelInput) (*labelOutput, error) {
	l, err := a.Control.SetLabel(ctx, principal(ctx), in.Name, in.Body.LogRetention)
	return &labelOutput{l}, err
}

func (a *api) removeLabel(ctx context.Context, in *LabelInput) (*none, error) {
	return nil, a.Control.RemoveLabel(ctx, principal(ctx), in.Name)
}

type setSecretLabelsInput struct {
	SecretInput
	Body struct {
		Labels []string `json:"labels" maxItems:"16" nullable:"false" doc:"of the data that it opens, in the place of all that it has; none takes them away"`
	}
}

func (a *api) setSecretLabels(ctx context.Context, in *setSecretLabelsInput) (*secretOutput, error) {
	s, err := a.Control.SetSecretLabels(ctx, principal(ctx), in.Name, in.Body.Labels)
	return &secretOutput{s}, err
}
