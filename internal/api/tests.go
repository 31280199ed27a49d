package api

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/manifest"
)

type testsInput struct {
	RefInput
	Body struct {
		Spec     spec   `json:"spec,omitempty" doc:"with artifact: what a deploy would make a version of; without both, the version that qualifier means is tested"`
		Artifact string `json:"artifact,omitempty" maxLength:"71" doc:"digest of a package that the node has"`
	}
}

type testsOutput struct {
	Body struct {
		Results []bawn.TestResult `json:"results" nullable:"false"`
	}
}

func (a *api) runTests(ctx context.Context, in *testsInput) (*testsOutput, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	out := &testsOutput{}
	if in.Body.Artifact == "" && len(in.Body.Spec) == 0 {
		out.Body.Results, err = a.Control.TestVersion(ctx, principal(ctx), r)
		return out, err
	}
	if in.Qualifier != "" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "api", "a qualifier and a package are given").WithFix("leave out the one that is not to be tested")
	}
	if err := bawn.CheckDigest(in.Body.Artifact); err != nil {
		return nil, err
	}
	f, err := manifest.ParseFunctionJSON(in.Body.Spec)
	if err != nil {
		return nil, err
	}
	out.Body.Results, err = a.Control.Test(ctx, principal(ctx), in.Name, f, in.Body.Artifact)
	return out, err
}
