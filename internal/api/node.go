package api

import (
	"context"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

// Status says how a node is. A stranger hears whether it is ready, and no more.
type Status struct {
	Ready   bool              `json:"ready"`
	Message string            `json:"message,omitempty" doc:"why it is not ready; only with a key, as all below"`
	Version string            `json:"version,omitempty" doc:"of the program"`
	Node    string            `json:"node,omitempty" doc:"the node's id"`
	Public  string            `json:"public,omitempty" doc:"where calls go"`
	Started time.Time         `json:"started,omitzero"`
	Solo    bool              `json:"solo,omitempty" doc:"the node has one operator: a deploy that widens a perimeter counts as approved"`
	Damaged int               `json:"damaged,omitempty" doc:"how much of the stored state is damaged; what it touches is refused, the rest goes on"`
	Labels  map[string]string `json:"labels,omitempty" doc:"of the node, such as its region; they place nothing"`
}

type statusOutput struct{ Body Status }

func (a *api) status(ctx context.Context, _ *none) (*statusOutput, error) {
	s := a.Status()
	if principal(ctx).Kind == bawn.Anonymous().Kind {
		s = Status{Ready: s.Ready}
	}
	return &statusOutput{s}, nil
}

// Runtime is one runtime and whether the node has it.
type Runtime struct {
	Runtime bawn.Runtime `json:"runtime"`
	Found   string       `json:"found,omitempty" doc:"the program and its version"`
	Missing string       `json:"missing,omitempty" doc:"why the host cannot run it, and how to get it"`
}

// Doctor is what a node's host can enforce and run.
type Doctor struct {
	Capabilities []bawn.Capability `json:"capabilities" nullable:"false"`
	Runtimes     []Runtime         `json:"runtimes" nullable:"false"`
	State        StateCheck        `json:"state"`
}

// StateCheck is what a check of the stored state against its signed manifests
// found.
type StateCheck struct {
	Tables int      `json:"tables"`
	Rows   int      `json:"rows"`
	Root   string   `json:"root" doc:"of the Merkle tree over name, revision and hash of every row; the audit log has it too"`
	Damage []Damage `json:"damage" nullable:"false"`
	Fix    string   `json:"fix,omitempty" doc:"the way out, if there is damage"`
}

// Damage is something stored that is not as its manifest says.
type Damage struct {
	Table   string `json:"table"`
	Key     string `json:"key,omitempty" doc:"empty if it concerns the table as a whole"`
	Problem string `json:"problem"`
	Refused bool   `json:"refused" doc:"whether what it touches is refused; if not, the node goes on with what it had read before, until it is started again"`
}

type doctorOutput struct{ Body Doctor }

func (a *api) doctor(ctx context.Context, _ *none) (*doctorOutput, error) {
	if err := a.Authorize(ctx, principal(ctx), "doctor"); err != nil {
		return nil, err
	}
	d, err := a.Doctor(ctx)
	if err != nil {
		return nil, err
	}
	d.Capabilities, d.Runtimes = append(d.Capabilities, a.Control.Everything(principal(ctx))), orEmpty(d.Runtimes)
	d.State.Damage = orEmpty(d.State.Damage)
	return &doctorOutput{d}, nil
}

// PerimeterView is a compiled perimeter and what the kernel enforces of it.
type PerimeterView struct {
	Version   bawn.Version      `json:"version"`
	Instances []bawn.Instance   `json:"instances" nullable:"false"`
	Retention control.Retention `json:"retention"`
}

type perimeterOutput struct{ Body PerimeterView }

func (a *api) perimeter(ctx context.Context, in *RefInput) (*perimeterOutput, error) {
	r, err := ref(ctx, in.Name, in.Qualifier)
	if err != nil {
		return nil, err
	}
	_, v, err := a.Control.Function(ctx, principal(ctx), r)
	if err != nil {
		return nil, err
	}
	list, err := a.Inspect(ctx, principal(ctx), &v)
	return &perimeterOutput{PerimeterView{v, orEmpty(list), a.Control.Retention(&v)}}, err
}
