package api

import (
	"context"
	"time"

	"bawn.dev/bawn"
)

// IssuerInput is the issuer in the path.
type IssuerInput struct {
	Name string `path:"name" maxLength:"63" doc:"of the issuer"`
}

// IssuerSettings are what can be set of an issuer. It is exported so that the
// description of the API sees its fields where it is embedded.
type IssuerSettings struct {
	Kind       string                 `json:"kind" enum:"oidc,ca"`
	URL        string                 `json:"url,omitempty" maxLength:"512" doc:"oidc: the issuer, as tokens name it in iss"`
	Audience   string                 `json:"audience,omitempty" maxLength:"512" doc:"oidc: what tokens must name in aud; the client's id if there is none"`
	ClientID   string                 `json:"clientId,omitempty" maxLength:"512" doc:"oidc: the public client that bawn login is"`
	Scopes     []string               `json:"scopes,omitempty" maxItems:"16" doc:"oidc: what bawn login asks for besides openid"`
	Algorithms []string               `json:"algorithms,omitempty" maxItems:"10" doc:"oidc: the only signature algorithms of its tokens; ES256, RS256 and EdDSA if there are none"`
	RoleClaim  string                 `json:"roleClaim,omitempty" maxLength:"512" doc:"oidc: the claim whose values are looked up in roles; groups if there is none"`
	Require    map[string]string      `json:"require,omitempty" doc:"oidc: claims that a token must have with just these values"`
	ClockSkew  string                 `json:"clockSkew,omitempty" maxLength:"32" doc:"oidc: by how much its clock may differ, such as 30s"`
	MaxLife    string                 `json:"maxLife,omitempty" maxLength:"32" doc:"oidc: how long its tokens may live, such as 24h"`
	Private    bool                   `json:"private,omitempty" doc:"oidc, for an operator: its server may be at an address that is not of the public internet"`
	CA         string                 `json:"ca,omitempty" maxLength:"65536" doc:"PEM: the roots of its certificates, or those of its server"`
	Roles      map[string][]bawn.Role `json:"roles,omitempty" doc:"by value of the role claim, or by pattern of a name in the certificate; * is everybody"`
}

func (s IssuerSettings) issuer(name string) (bawn.Issuer, error) {
	i := bawn.Issuer{
		Name: name, Kind: s.Kind, URL: s.URL, Audience: s.Audience, ClientID: s.ClientID, Scopes: s.Scopes,
		Algorithms: s.Algorithms, RoleClaim: s.RoleClaim, Require: s.Require, Private: s.Private, CA: s.CA, Roles: s.Roles,
	}
	for _, d := range []struct {
		name, text string
		into       *time.Duration
	}{{"clockSkew", s.ClockSkew, &i.ClockSkew}, {"maxLife", s.MaxLife, &i.MaxLife}} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.into, err = time.ParseDuration(d.text); err != nil || *d.into <= 0 {
			return i, bawn.Errorf(bawn.CodeInvalid, "api.issuers", "%s %.32q is not a span of time", d.name, d.text).WithFix("write it as 30s or 12h")
		}
	}
	return i, nil
}

type issuersOutput struct {
	Body struct {
		Issuers []bawn.Issuer `json:"issuers" nullable:"false"`
	}
}

type issuerOutput struct{ Body bawn.Issuer }

func (a *api) listIssuers(ctx context.Context, _ *none) (*issuersOutput, error) {
	list, err := a.Control.Issuers(ctx, principal(ctx))
	out := &issuersOutput{}
	out.Body.Issuers = orEmpty(list)
	return out, err
}

func (a *api) getIssuer(ctx context.Context, in *IssuerInput) (*issuerOutput, error) {
	i, err := a.Control.Issuer(ctx, principal(ctx), in.Name)
	return &issuerOutput{i}, err
}

type createIssuerInput struct {
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"63"`
		IssuerSettings
	}
}

func (a *api) createIssuer(ctx context.Context, in *createIssuerInput) (*issuerOutput, error) {
	want, err := in.Body.issuer(in.Body.Name)
	if err != nil {
		return nil, err
	}
	made, err := a.Control.PutIssuer(ctx, principal(ctx), want, false)
	return &issuerOutput{made}, err
}

type replaceIssuerInput struct {
	IssuerInput
	Body IssuerSettings
}

func (a *api) replaceIssuer(ctx context.Context, in *replaceIssuerInput) (*issuerOutput, error) {
	want, err := in.Body.issuer(in.Name)
	if err != nil {
		return nil, err
	}
	made, err := a.Control.PutIssuer(ctx, principal(ctx), want, true)
	return &issuerOutput{made}, err
}

func (a *api) removeIssuer(ctx context.Context, in *IssuerInput) (*none, error) {
	return nil, a.Control.RemoveIssuer(ctx, principal(ctx), in.Name)
}

type revocationsOutput struct {
	Body struct {
		Revocations []bawn.Revocation `json:"revocations" nullable:"false"`
	}
}

func (a *api) listRevocations(ctx context.Context, _ *none) (*revocationsOutput, error) {
	list, err := a.Control.Revocations(ctx, principal(ctx))
	out := &revocationsOutput{}
	out.Body.Revocations = orEmpty(list)
	return out, err
}

type revokeInput struct {
	Body struct {
		Principal string `json:"principal" minLength:"1" maxLength:"512" doc:"user:ISSUER:SUBJECT, cert:ID or issuer:NAME"`
		Barred    bool   `json:"barred,omitempty" doc:"what is issued later is not good either"`
		Reason    string `json:"reason,omitempty" maxLength:"200"`
	}
}

type revocationOutput struct{ Body bawn.Revocation }

func (a *api) revoke(ctx context.Context, in *revokeInput) (*revocationOutput, error) {
	r, err := a.Control.Revoke(ctx, principal(ctx), bawn.Revocation{Principal: in.Body.Principal, Barred: in.Body.Barred, Reason: in.Body.Reason})
	return &revocationOutput{r}, err
}

type liftInput struct {
	ID string `path:"id" maxLength:"64"`
}

func (a *api) lift(ctx context.Context, in *liftInput) (*none, error) {
	return nil, a.Control.Lift(ctx, principal(ctx), in.ID)
}

// Login is how somebody becomes known to an issuer, so that it vouches for them.
type Login struct {
	Name     string   `json:"name"`
	URL      string   `json:"url" doc:"of the issuer"`
	ClientID string   `json:"clientId"`
	Audience string   `json:"audience" doc:"what the token must be for: the client itself, or what to ask an access token for"`
	Scopes   []string `json:"scopes" nullable:"false"`
	CA       string   `json:"ca,omitempty" doc:"PEM: the only roots that its server's certificate may come from"`
}

type loginInput struct {
	Tenant string `query:"tenant" maxLength:"63" doc:"main if there is none"`
}

type loginOutput struct {
	Body struct {
		Issuers []Login `json:"issuers" nullable:"false"`
	}
}

// login tells strangers what they need to log in, and nothing else of an issuer.
// A tenant that is not there has none.
func (a *api) login(_ context.Context, in *loginInput) (*loginOutput, error) {
	out := &loginOutput{}
	out.Body.Issuers = []Login{}
	tenant := in.Tenant
	if tenant == "" {
		tenant = bawn.DefaultTenant
	}
	for _, i := range a.Identity.Issuers(tenant) {
		if i.Kind != bawn.IssuerOIDC || i.ClientID == "" {
			continue
		}
		l := Login{Name: i.Name, URL: i.URL, ClientID: i.ClientID, Audience: i.Audience, Scopes: orEmpty(i.Scopes), CA: i.CA}
		if l.Audience == "" {
			l.Audience = l.ClientID
		}
		out.Body.Issuers = append(out.Body.Issuers, l)
	}
	return out, nil
}

type whoamiOutput struct {
	Body struct {
		Principal bawn.Principal `json:"principal"`
		Functions []string       `json:"functions,omitempty" doc:"the only ones that the credential has to do with"`
		Expires   time.Time      `json:"expires,omitzero" doc:"when the credential ends"`
	}
}

// whoami says who the caller is known as.
func (a *api) whoami(ctx context.Context, _ *none) (*whoamiOutput, error) {
	p := principal(ctx)
	out := &whoamiOutput{}
	out.Body.Principal, out.Body.Functions, out.Body.Expires = p, p.Functions, p.Expires
	return out, nil
}
