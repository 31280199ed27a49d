package bawn

import (
	"slices"
	"time"
)

// Principal is who makes a call or a change.
type Principal struct {
	Kind   string `json:"kind" doc:"key, user, cert, webhook, function, anonymous or node"`
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Tenant string `json:"tenant"`
	Roles  []Role `json:"roles,omitempty"`

	// Functions are the only ones that the principal has to do with; empty means
	// all of its tenant.
	Functions []string `json:"-"`
	// Issued is when the credential that was shown was made: what was revoked
	// before that does not concern it. The zero time stands for one that does not
	// say.
	Issued time.Time `json:"-"`
	// Expires is when the credential ends; the zero time: it does not by itself.
	Expires time.Time `json:"-"`
	// Revision is of the settings of the issuer by which the principal was known:
	// once they are others, it must be looked at anew. 0 where there is no issuer.
	Revision uint64 `json:"-"`
	// Issuer is the name of that issuer.
	Issuer string `json:"-"`
	// Access is the kind of access that what was shown meets: [AccessSigV4] of a
	// signed request, and [AccessJWT], [AccessMTLS] or [AccessWebhook] of who was let
	// in by what the route itself says. Empty for any other.
	Access string `json:"-"`
}

// The kinds of principal.
const (
	PrincipalKey       = "key"       // an API key, or a request signed with it
	PrincipalUser      = "user"      // somebody whom a configured issuer vouches for
	PrincipalCert      = "cert"      // who holds a client certificate of a configured issuer, or of an authority that a route names
	PrincipalFunction  = "function"  // a version of a function, known by the endpoint of its instance
	PrincipalWebhook   = "webhook"   // who signs a request to a route with the secret of that route
	PrincipalAnonymous = "anonymous" // nobody in particular
	PrincipalNode      = "node"      // the node itself
)

// Anonymous is a caller without a credential.
func Anonymous() Principal { return Principal{Kind: PrincipalAnonymous, ID: PrincipalAnonymous} }

// Met is somebody who shows what a route of a tenant asks for with the kind of
// access, and nobody in particular: for questions and tests.
func Met(access, tenant string) Principal {
	kind := PrincipalUser
	switch access {
	case AccessMTLS:
		kind = PrincipalCert
	case AccessWebhook:
		kind = PrincipalWebhook
	}
	return Principal{Kind: kind, ID: access + "/somebody", Name: access, Tenant: tenant, Access: access}
}

// String returns kind:id.
func (p Principal) String() string { return p.Kind + ":" + p.ID }

// Has reports whether p has the role r by name. What a role includes is for the
// policy to say.
func (p Principal) Has(r Role) bool { return slices.Contains(p.Roles, r) }

// Role says what a principal may do. Besides the roles here, which the policy
// gives rights, any name is a role that a function's callers or a guardrail can
// speak of.
type Role string

// The roles that have rights of their own. None includes another, but for
// operator and admin: a tenant that is large enough gives them to different
// people.
const (
	RoleOperator    Role = "operator"     // the installation: tenants, its guardrails, backups; and admin in its own tenant
	RoleAdmin       Role = "admin"        // everything in its tenant
	RoleDeployer    Role = "deployer"     // read, deploy, roll back, remove, read logs
	RolePolicyAdmin Role = "policy-admin" // guardrails, approvals; read
	RoleSecretAdmin Role = "secret-admin" // secrets and who is granted them
	RoleAuditor     Role = "auditor"      // read everything, the evidence included
	RoleInvoker     Role = "invoker"      // call functions, and nothing else
	RoleViewer      Role = "viewer"       // read functions and their logs
)

// Roles lists every role that has rights of its own.
func Roles() []Role {
	return []Role{RoleOperator, RoleAdmin, RoleDeployer, RolePolicyAdmin, RoleSecretAdmin, RoleAuditor, RoleInvoker, RoleViewer}
}

// Key is an API key as the store knows it. The secret itself is shown once and
// never stored.
type Key struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Tenant    string    `json:"tenant"`
	Role      Role      `json:"role"`
	Functions []string  `json:"functions,omitempty" doc:"the only functions that the key has to do with; empty means all of the tenant"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}
