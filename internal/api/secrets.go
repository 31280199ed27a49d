package api

import (
	"context"
	"io"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

// SecretInput is the secret in the path.
type SecretInput struct {
	Name string `path:"name" maxLength:"63" doc:"of the secret"`
}

// GrantInput is the function that a secret is granted to.
type GrantInput struct {
	SecretInput
	Function string `path:"function" maxLength:"63" doc:"of the same tenant"`
}

type secretsOutput struct {
	Body struct {
		Secrets []bawn.Secret `json:"secrets" nullable:"false"`
	}
}

type secretOutput struct{ Body bawn.Secret }

// listSecrets answers without the values, as every route does: a value goes in and
// never comes out.
func (a *api) listSecrets(ctx context.Context, _ *none) (*secretsOutput, error) {
	list, err := a.Control.Secrets(ctx, principal(ctx))
	out := &secretsOutput{}
	out.Body.Secrets = orEmpty(list)
	return out, err
}

func (a *api) getSecret(ctx context.Context, in *SecretInput) (*secretOutput, error) {
	s, err := a.Control.Secret(ctx, principal(ctx), in.Name)
	return &secretOutput{s}, err
}

// readValue reads the body: a value is not JSON, so that nothing parses, checks or
// quotes it on its way.
func (b *BodyInput) readValue() ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(b.body, bawn.MaxSecretBytes+1))
	if err != nil || len(value) > bawn.MaxSecretBytes {
		clear(value)
		if err != nil {
			return nil, bawn.Wrap(err, bawn.CodeInvalid, "api.secrets", "the value did not arrive whole")
		}
		return nil, bawn.Errorf(bawn.CodeTooLarge, "api.secrets", "the value has more than %d bytes", bawn.MaxSecretBytes).
			WithFix("keep a key in the secret, and what it encrypts elsewhere")
	}
	return value, nil
}

type createSecretInput struct {
	SecretInput
	BodyInput
	Labels []string `query:"label" maxItems:"16" doc:"of the data that it opens, such as pii; separated by commas"`
}

func (a *api) createSecret(ctx context.Context, in *createSecretInput) (*secretOutput, error) {
	value, err := in.readValue()
	if err != nil {
		return nil, err
	}
	defer clear(value)
	s, err := a.Control.CreateSecret(ctx, principal(ctx), in.Name, value, in.Labels)
	return &secretOutput{s}, err
}

type rotateSecretInput struct {
	SecretInput
	BodyInput
	Window string `query:"window" maxLength:"32" doc:"how long the value before can still be read, such as 1h; 10m if nothing is said, 0s to end it at once"`
}

func (a *api) rotateSecret(ctx context.Context, in *rotateSecretInput) (*secretOutput, error) {
	window := control.DefaultSecretWindow
	if in.Window != "" {
		var err error
		if window, err = time.ParseDuration(in.Window); err != nil || window < 0 {
			return nil, bawn.Errorf(bawn.CodeInvalid, "api.secrets", "window %.32q is not a span of time", in.Window).WithFix("write it as 10m or 24h, or 0s for none")
		}
	}
	value, err := in.readValue()
	if err != nil {
		return nil, err
	}
	defer clear(value)
	s, err := a.Control.RotateSecret(ctx, principal(ctx), in.Name, value, window)
	return &secretOutput{s}, err
}

func (a *api) removeSecret(ctx context.Context, in *SecretInput) (*none, error) {
	return nil, a.Control.RemoveSecret(ctx, principal(ctx), in.Name)
}

type secretUsersOutput struct{ Body control.SecretUsers }

func (a *api) secretUsers(ctx context.Context, in *SecretInput) (*secretUsersOutput, error) {
	u, err := a.Control.SecretUsers(ctx, principal(ctx), in.Name)
	return &secretUsersOutput{u}, err
}

func (a *api) grantSecret(ctx context.Context, in *GrantInput) (*secretOutput, error) {
	s, err := a.Control.GrantSecret(ctx, principal(ctx), in.Name, in.Function)
	return &secretOutput{s}, err
}

func (a *api) revokeSecret(ctx context.Context, in *GrantInput) (*secretOutput, error) {
	s, err := a.Control.RevokeSecret(ctx, principal(ctx), in.Name, in.Function)
	return &secretOutput{s}, err
}
