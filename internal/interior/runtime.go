package interior

import (
	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// Definition says how a runtime is started, or why this host cannot.
type Definition struct {
	Runtime bawn.Runtime
	Image   sandbox.Image
	Args    []string // the program of a warm sandbox; empty means parked until Exec, see providedCommand
	Env     []string // of that program
	Found   string   // such as "/usr/bin/python3.11 3.11.2"
	Missing string   // why the host cannot run it and how to get it; empty if it can
}

// Ready reports whether the host can run it.
func (d *Definition) Ready() bool { return d.Missing == "" }
