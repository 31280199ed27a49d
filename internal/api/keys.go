package api

import (
	"context"
	"time"

	"bawn.dev/bawn"
)

type keysOutput struct {
	Body struct {
		Keys []bawn.Key `json:"keys" nullable:"false"`
	}
}

func (a *api) listKeys(ctx context.Context, _ *none) (*keysOutput, error) {
	list, err := a.Control.Keys(ctx, principal(ctx))
	out := &keysOutput{}
	out.Body.Keys = orEmpty(list)
	return out, err
}

type createKeyInput struct {
	Body struct {
		Name      string    `json:"name" minLength:"1" maxLength:"63"`
		Role      bawn.Role `json:"role" minLength:"1" maxLength:"63" doc:"operator, admin, deployer, policy-admin, secret-admin, auditor, invoker, viewer, or a role that only callers and guardrails speak of"`
		Functions []string  `json:"functions,omitempty" maxItems:"100" doc:"the only functions that it has to do with; empty means all"`
		TTL       string    `json:"ttl,omitempty" maxLength:"32" doc:"how long it lives, such as 720h; empty means until it is revoked"`
		AWS       bool      `json:"aws,omitempty" doc:"also answer with the secret to sign requests with, as AWS SDKs do"`
	}
}

type createKeyOutput struct {
	Body struct {
		Key     bawn.Key `json:"key"`
		Secret  string   `json:"secret" doc:"the key itself; it is not kept and cannot be shown again"`
		Signing string   `json:"signing,omitempty" doc:"if aws was asked for: the secret to sign requests with, as the AWS secret access key that belongs to the key's id"`
	}
}

func (a *api) createKey(ctx context.Context, in *createKeyInput) (*createKeyOutput, error) {
	b := in.Body
	k := bawn.Key{Name: b.Name, Role: b.Role, Functions: b.Functions}
	if err := bawn.CheckName("key", b.Name); err != nil {
		return nil, err
	}
	if err := bawn.CheckName("role", string(b.Role)); err != nil {
		return nil, err
	}
	for _, f := range b.Functions {
		if err := bawn.CheckName("function", f); err != nil {
			return nil, err
		}
	}
	if b.TTL != "" {
		d, err := time.ParseDuration(b.TTL)
		if err != nil || d <= 0 {
			return nil, bawn.Errorf(bawn.CodeInvalid, "api.keys", "ttl %q is not a span of time", b.TTL).WithFix("write it as 12h or 2160h")
		}
		k.ExpiresAt = a.Now().Add(d).UTC()
	}
	secret, made, err := a.Control.CreateKey(ctx, principal(ctx), k)
	out := &createKeyOutput{}
	out.Body.Key, out.Body.Secret = made, secret
	if err == nil && b.AWS {
		out.Body.Signing = a.Identity.SigningSecret(made.ID)
	}
	return out, err
}

type keyInput struct {
	ID string `path:"id" maxLength:"64"`
}

func (a *api) revokeKey(ctx context.Context, in *keyInput) (*none, error) {
	return nil, a.Control.RevokeKey(ctx, principal(ctx), in.ID)
}
