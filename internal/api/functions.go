package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
	"bawn.dev/bawn/internal/identity"
	"bawn.dev/bawn/internal/manifest"
)

// ref returns the reference of the caller's function, checked.
func ref(ctx context.Context, name, qualifier string) (bawn.Ref, error) {
	r := bawn.Ref{Tenant: principal(ctx).Tenant, Function: name, Qualifier: qualifier}
	return r, r.Check()
}

// The parts of inputs below are exported because the library looks for
// parameters in exported fields alone.

// NameInput is the function in the path.
type NameInput struct {
	Name string `path:"name" maxLength:"63" doc:"of the function"`
}

// RefInput is a function and one of its versions.
type RefInput struct {
	NameInput
	Qualifier string `query:"qualifier" maxLength:"63" doc:"a version's number or an alias; live if there is none"`
}

type none struct{}

// DigestInput is the package in the path.
type DigestInput struct {
	Digest string `path:"digest" maxLength:"71" doc:"sha256: and 64 hex digits"`
}

func (a *api) hasArtifact(ctx context.Context, in *DigestInput) (*none, error) {
	if err := bawn.CheckDigest(in.Digest); err != nil {
		return nil, err
	}
	has, err := a.Control.HasArtifact(ctx, principal(ctx), in.Digest)
	if err == nil && !has {
		err = bawn.Errorf(bawn.CodeNotFound, "api", "there is no package %s", in.Digest)
	}
	return &none{}, err
}

// BodyInput lets a handler read the body as it comes.
type BodyInput struct {
	body io.Reader
	mime string
}

// Resolve takes hold of the body. It is a huma.Resolver.
func (b *BodyInput) Resolve(ctx huma.Context) []error {
	b.body, b.mime = ctx.BodyReader(), ctx.Header("Content-Type")
	return nil
}

type putArtifactInput struct {
	DigestInput
	BodyInput
}

type artifactOutput struct{ Body bawn.Artifact }

func (a *api) putArtifact(ctx context.Context, in *putArtifactInput) (*artifactOutput, error) {
	if err := bawn.CheckDigest(in.Digest); err != nil {
		return nil, err
	}
	art, err := a.Control.PutArtifact(ctx, principal(ctx), in.Digest, in.body)
	return &artifactOutput{art}, err
}

type functionsOutput struct {
	Body struct {
		Functions []control.Summary `json:"functions" nullable:"false"`
	}
}

func (a *api) listFunctions(ctx context.Context, _ *none) (*functionsOutput, error) {
	list, err := a.Control.Functions(ctx, principal(ctx))
	out := &functionsOutput{}
	out.Body.Functions = orEmpty(list)
	return out, err
}

// FunctionDetail is a function and the version that was asked for.
type FunctionDetail struct {
	Function  bawn.Function     `json:"function"`
	Version   bawn.Version      `json:"version"`
	SPIFFE    string            `json:"spiffe" doc:"the SPIFFE id of the version: derived from where it is, never chosen"`
	Retention control.Retention `json:"retention"`
}

type functionOutput struct{ Body FunctionDetail }

func (a *api) getFunction(ctx context.Context, in *RefInput) (*functionOutput, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	f, v, err := a.Control.Function(ctx, principal(ctx), r)
	if err != nil {
		return nil, err
	}
	id, err := identity.Workload(a.TrustDomain, &v)
	return &functionOutput{FunctionDetail{f, v, id, a.Control.Retention(&v)}}, err
}

func (a *api) removeFunction(ctx context.Context, in *NameInput) (*none, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	return nil, a.Control.Remove(ctx, principal(ctx), in.Name)
}

type versionsOutput struct {
	Body struct {
		Versions []bawn.Version `json:"versions" nullable:"false"`
	}
}

func (a *api) listVersions(ctx context.Context, in *NameInput) (*versionsOutput, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	list, err := a.Control.Versions(ctx, principal(ctx), in.Name)
	out := &versionsOutput{}
	out.Body.Versions = orEmpty(list)
	return out, err
}

// spec is what the manifest says of one function. It is kept as it came:
// package manifest reads it, as strictly as it reads a file.
type spec json.RawMessage

// UnmarshalJSON keeps the text.
func (s *spec) UnmarshalJSON(data []byte) error {
	*s = append((*s)[:0], data...)
	return nil
}

// Schema describes it in the OpenAPI document.
func (s spec) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true, Description: "one entry of functions in bawn.yaml, with the same fields and values; internal/manifest/schema.json describes it"}
}

type deployInput struct {
	NameInput
	DryRun bool `query:"dryRun" doc:"say what would change, and change nothing"`
	Body   struct {
		Spec     spec   `json:"spec"`
		Artifact string `json:"artifact" maxLength:"71" doc:"digest of a package that the node has"`
	}
}

type diffInput struct {
	NameInput
	Old string `query:"old" maxLength:"63" doc:"a version's number or an alias; live if there is none"`
	New string `query:"new" maxLength:"63" doc:"the same"`
}

type diffOutput struct{ Body control.Diff }

func (a *api) diff(ctx context.Context, in *diffInput) (*diffOutput, error) {
	d, err := a.Control.Diff(ctx, principal(ctx), in.Name, in.Old, in.New)
	return &diffOutput{d}, err
}

type deployOutput struct {
	Status int
	Body   control.Deployment
}

// deployed answers 202 if the version waits for approval.
func deployed(d control.Deployment) *deployOutput {
	d.Changes = orEmpty(d.Changes)
	out := &deployOutput{http.StatusOK, d}
	if d.Pending != nil {
		out.Status = http.StatusAccepted
	}
	return out
}

func (a *api) deploy(ctx context.Context, in *deployInput) (*deployOutput, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	if err := bawn.CheckDigest(in.Body.Artifact); err != nil {
		return nil, err
	}
	f, err := manifest.ParseFunctionJSON(in.Body.Spec)
	if err != nil {
		return nil, err
	}
	d, err := a.Control.Deploy(ctx, principal(ctx), in.Name, f, in.Body.Artifact, in.DryRun)
	return deployed(d), err
}

type aliasInput struct {
	NameInput
	Alias string `path:"alias" maxLength:"63"`
	Body  struct {
		Version int `json:"version" minimum:"1"`
	}
}

func (a *api) setAlias(ctx context.Context, in *aliasInput) (*none, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	if err := bawn.CheckName("alias", in.Alias); err != nil {
		return nil, err
	}
	return nil, a.Control.SetAlias(ctx, principal(ctx), in.Name, in.Alias, in.Body.Version)
}

type rollbackInput struct {
	NameInput
	Body struct {
		To int `json:"to,omitempty" minimum:"0" doc:"the version to go to; 0 or nothing for the one live before"`
	}
}

type rollbackOutput struct {
	Body struct {
		From int `json:"from"`
		To   int `json:"to"`
	}
}

func (a *api) rollback(ctx context.Context, in *rollbackInput) (*rollbackOutput, error) {
	if _, err := ref(ctx, in.Name, ""); err != nil {
		return nil, err
	}
	from, to, err := a.Control.Rollback(ctx, principal(ctx), in.Name, in.Body.To)
	out := &rollbackOutput{}
	out.Body.From, out.Body.To = from, to
	return out, err
}

// orEmpty makes a nil list an empty one: [] in JSON, not null.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
