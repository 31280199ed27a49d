package bawn

import "time"

// Issuer vouches for principals of one tenant: an OpenID Connect issuer for
// users by its tokens, a certificate authority for who holds its client
// certificates.
type Issuer struct {
	Name   string `json:"name"`
	Tenant string `json:"tenant"`
	Kind   string `json:"kind" doc:"oidc or ca"`

	URL        string            `json:"url,omitempty" doc:"oidc: the issuer, as tokens name it in iss"`
	Audience   string            `json:"audience,omitempty" doc:"oidc: what tokens must name in aud; the client's id if there is none"`
	ClientID   string            `json:"clientId,omitempty" doc:"oidc: the public client that bawn login is; without it nobody can log in by the command line"`
	Scopes     []string          `json:"scopes,omitempty" doc:"oidc: what bawn login asks for besides openid"`
	Algorithms []string          `json:"algorithms,omitempty" doc:"oidc: the only signature algorithms of its tokens; ES256, RS256 and EdDSA if there are none"`
	RoleClaim  string            `json:"roleClaim,omitempty" doc:"oidc: the claim whose values are looked up in roles; groups if there is none"`
	Require    map[string]string `json:"require,omitempty" doc:"oidc: claims that a token must have with just these values"`
	ClockSkew  time.Duration     `json:"clockSkew,omitempty" doc:"oidc: nanoseconds by which its clock may differ; 30 s if there is none"`
	MaxLife    time.Duration     `json:"maxLife,omitempty" doc:"oidc: nanoseconds from iat to exp that a token may have at most; 24 h if there is none"`
	Private    bool              `json:"private,omitempty" doc:"oidc: its server may be at an address that is not of the public internet"`

	CA    string            `json:"ca,omitempty" doc:"PEM: the roots of its certificates; of an oidc issuer the only ones that its server's may come from"`
	Roles map[string][]Role `json:"roles,omitempty" doc:"oidc: by value of the role claim; ca: by pattern of a name in the certificate, such as spiffe://example.org/ci/* or dns:*.example.org or cn:build; * stands for everybody whom it vouches for"`

	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// The kinds of issuer.
const (
	IssuerOIDC = "oidc"
	IssuerCA   = "ca"
)

// Revocation ends what was issued to a user or a certificate's holder, or by an
// issuer, until a moment.
type Revocation struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	// Principal is user:ISSUER:SUBJECT, cert:ID or issuer:NAME.
	Principal string    `json:"principal"`
	Before    time.Time `json:"before" doc:"what was issued until then is not good any more"`
	Barred    bool      `json:"barred,omitempty" doc:"nor is what is issued later"`
	Reason    string    `json:"reason,omitempty"`
	CreatedBy string    `json:"createdBy"`
}
