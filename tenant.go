package bawn

import "time"

// Tenant is who owns functions, keys and everything else. Nothing is shared
// between tenants, and none learns what another has.
type Tenant struct {
	Name      string    `json:"name"`
	Suspended bool      `json:"suspended,omitempty" doc:"nothing of it runs and nobody of it gets in, until it is resumed"`
	Reason    string    `json:"reason,omitempty" doc:"why it is suspended"`
	Quota     Quota     `json:"quota"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// Quota bounds what a tenant may have. A zero field takes the node's default.
type Quota struct {
	Functions int   `json:"functions,omitempty"`
	Keys      int   `json:"keys,omitempty"`
	Instances int   `json:"instances,omitempty" doc:"sandboxes of all its functions at one time"`
	Memory    int64 `json:"memory,omitempty" doc:"bytes: the memory limits of its sandboxes together"`
	Packages  int64 `json:"packages,omitempty" doc:"bytes of packages, packed and unpacked"`
	Rate      int   `json:"rate,omitempty" doc:"calls a second of all its functions"`
}
