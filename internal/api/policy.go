package api

import (
	"context"

	"bawn.dev/bawn/internal/control"
)

// ScopeInput says whose guardrails are meant.
type ScopeInput struct {
	Installation bool `query:"installation" doc:"those of the installation, for operators, in place of the tenant's"`
}

// GuardrailInput is the guardrail in the path.
type GuardrailInput struct {
	ScopeInput
	Name string `path:"name" maxLength:"63" doc:"of the guardrail"`
}

type guardrailsOutput struct {
	Body struct {
		Guardrails []control.Guardrail `json:"guardrails" nullable:"false"`
	}
}

func (a *api) listGuardrails(ctx context.Context, in *ScopeInput) (*guardrailsOutput, error) {
	list, err := a.Control.Guardrails(ctx, principal(ctx), in.Installation)
	out := &guardrailsOutput{}
	out.Body.Guardrails = orEmpty(list)
	return out, err
}

type guardrailOutput struct{ Body control.Guardrail }

// GuardrailDetail is a guardrail, and what it looks at if it is about flows.
type GuardrailDetail struct {
	control.Guardrail
	Flow *control.FlowView `json:"flow,omitempty" doc:"of a guardrail on flows: what it looks at in the tenant's live versions"`
}

type guardrailDetailOutput struct{ Body GuardrailDetail }

func (a *api) getGuardrail(ctx context.Context, in *GuardrailInput) (*guardrailDetailOutput, error) {
	g, err := a.Control.Guardrail(ctx, principal(ctx), in.Name, in.Installation)
	if err != nil {
		return nil, err
	}
	return &guardrailDetailOutput{GuardrailDetail{g, a.Control.FlowOf(principal(ctx), g)}}, nil
}

type setGuardrailInput struct {
	GuardrailInput
	Body struct {
		Text string `json:"text" maxLength:"65536" doc:"Cedar rules that forbid"`
	}
}

func (a *api) setGuardrail(ctx context.Context, in *setGuardrailInput) (*guardrailOutput, error) {
	g, err := a.Control.SetGuardrail(ctx, principal(ctx), in.Name, in.Body.Text, in.Installation)
	return &guardrailOutput{g}, err
}

func (a *api) removeGuardrail(ctx context.Context, in *GuardrailInput) (*none, error) {
	return nil, a.Control.RemoveGuardrail(ctx, principal(ctx), in.Name, in.Installation)
}

type testPoliciesInput struct {
	ScopeInput
	Body struct {
		Cases []control.Case `json:"cases" maxItems:"500"`
		Name  string         `json:"name,omitempty" maxLength:"63" doc:"of a guardrail to try; empty: those that there are"`
		Text  string         `json:"text,omitempty" maxLength:"65536" doc:"what it would say"`
	}
}

type testPoliciesOutput struct {
	Body struct {
		Results []control.CaseResult `json:"results" nullable:"false"`
	}
}

func (a *api) testPolicies(ctx context.Context, in *testPoliciesInput) (*testPoliciesOutput, error) {
	b := in.Body
	list, err := a.Control.TestPolicies(ctx, principal(ctx), b.Cases, b.Name, b.Text, in.Installation)
	out := &testPoliciesOutput{}
	out.Body.Results = orEmpty(list)
	return out, err
}

type canInput struct{ Body control.Question }

type canOutput struct{ Body control.Answer }

func (a *api) can(ctx context.Context, in *canInput) (*canOutput, error) {
	answer, err := a.Control.Can(ctx, principal(ctx), in.Body)
	return &canOutput{answer}, err
}

type explainInput struct {
	ID string `path:"id" maxLength:"64" doc:"of a record, its index in the audit log, or of an invocation"`
}

type explainOutput struct {
	Body struct {
		Decisions []control.Explanation `json:"decisions" nullable:"false"`
	}
}

func (a *api) explain(ctx context.Context, in *explainInput) (*explainOutput, error) {
	list, err := a.Control.Explain(ctx, principal(ctx), in.ID)
	out := &explainOutput{}
	out.Body.Decisions = orEmpty(list)
	return out, err
}
