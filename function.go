package bawn

import (
	"slices"
	"strings"
	"time"
)

// Function is a name under which versions are published. It is created by its
// first deploy.
type Function struct {
	Tenant    string         `json:"tenant"`
	Name      string         `json:"name"`
	Latest    int            `json:"latest" doc:"highest version number ever given; numbers are never reused"`
	Aliases   map[string]int `json:"aliases" doc:"alias to version number; always holds live"`
	Before    []int          `json:"before,omitempty" doc:"where live pointed before, newest first; at most 20"`
	CreatedAt time.Time      `json:"createdAt"`
	UpdatedAt time.Time      `json:"updatedAt"`
}

// Resolve returns the version number that qualifier means: a number stands for
// itself, an alias for where it points, and "" for [LiveAlias]. It reports false
// if there is no such alias or number.
func (f *Function) Resolve(qualifier string) (int, bool) {
	if qualifier == "" {
		qualifier = LiveAlias
	}
	if n, ok := (Ref{Qualifier: qualifier}).Version(); ok {
		return n, n >= 1 && n <= f.Latest
	}
	n, ok := f.Aliases[qualifier]
	return n, ok
}

// Version is one immutable version of a function: what it is and its
// perimeter. Digest names its content, Number orders it.
type Version struct {
	Tenant      string            `json:"tenant"`
	Function    string            `json:"function"`
	Number      int               `json:"number"`
	Digest      string            `json:"digest" doc:"sha256: of the canonical JSON of the artifact's digest and of runtime, handler, description, owner, environment, labels, perimeter and tests"`
	Artifact    Artifact          `json:"artifact"`
	Compiled    *Artifact         `json:"compiled,omitempty" doc:"machine code made from the artifact at deploy, for this Bawn and this processor; absent for runtimes that need none"`
	Runtime     Runtime           `json:"runtime"`
	Handler     string            `json:"handler,omitempty"`
	Description string            `json:"description,omitempty"`
	Owner       string            `json:"owner"`
	Environment map[string]string `json:"environment,omitempty"`
	Labels      []string          `json:"labels,omitempty" doc:"of the data that it may hold, such as pii; sorted, each once"`
	Perimeter   Perimeter         `json:"perimeter"`
	Tests       []Test            `json:"tests,omitempty" doc:"what it had to pass before it became live"`
	CreatedAt   time.Time         `json:"createdAt"`
	CreatedBy   string            `json:"createdBy"`
}

// Ref returns the reference of this very version.
func (v *Version) Ref() Ref {
	return Ref{Tenant: v.Tenant, Function: v.Function, Qualifier: itoa(v.Number)}
}

// Runtime names what runs a function's code.
type Runtime string

// The runtimes. Which of them a node can run depends on what its host has.
const (
	Python311 Runtime = "python3.11"
	Python312 Runtime = "python3.12"
	Python313 Runtime = "python3.13"
	NodeJS20  Runtime = "nodejs20"
	NodeJS22  Runtime = "nodejs22"
	Provided  Runtime = "provided" // a static executable named bootstrap that speaks the Lambda Runtime API
	Wasm      Runtime = "wasm"     // a WASI preview 1 command module
)

// Runtimes lists every runtime Bawn knows, in the order it shows them.
func Runtimes() []Runtime {
	return []Runtime{Python311, Python312, Python313, NodeJS20, NodeJS22, Provided, Wasm}
}

// Known reports whether r is one of [Runtimes].
func (r Runtime) Known() bool { return slices.Contains(Runtimes(), r) }

// Family returns "python", "nodejs", "provided" or "wasm".
func (r Runtime) Family() string {
	for _, f := range []string{"python", "nodejs"} {
		if strings.HasPrefix(string(r), f) {
			return f
		}
	}
	return string(r)
}
