package bawn

import "time"

// Principal is who makes a call or a change.
type Principal struct {
	Kind   string `json:"kind" doc:"key, anonymous or node"`
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Tenant string `json:"tenant"`
	Role   Role   `json:"role,omitempty"`

	// Functions are the only ones that an invoker may call; empty means all of
	// its tenant.
	Functions []string `json:"-"`
}

// Anonymous is a caller without a credential.
func Anonymous() Principal { return Principal{Kind: "anonymous", ID: "anonymous"} }

// String returns kind:id.
func (p Principal) String() string { return p.Kind + ":" + p.ID }

// Role says what a key may be used for.
type Role string

// The roles of a key.
const (
	RoleAdmin    Role = "admin"    // everything
	RoleDeployer Role = "deployer" // read, deploy, roll back, remove, read logs; not keys
	RoleInvoker  Role = "invoker"  // call functions
	RoleViewer   Role = "viewer"   // read everything but credentials
)

// Roles lists every role.
func Roles() []Role { return []Role{RoleAdmin, RoleDeployer, RoleInvoker, RoleViewer} }

// Key is an API key as the store knows it. The secret itself is shown once and
// never stored.
type Key struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Tenant    string    `json:"tenant"`
	Role      Role      `json:"role"`
	Functions []string  `json:"functions,omitempty" doc:"for an invoker: the functions it may call; empty means all of the tenant"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}
