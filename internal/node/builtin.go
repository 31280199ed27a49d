package node

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/interior"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux"
)

// This file is the list of the parts that Bawn is made of and that have more
// than one kind: sandbox drivers and runtimes. A new one is one file in its own
// package and one line here.

// openDriver returns the sandbox driver of this host. If the host cannot have
// one the node still runs, and every function is refused with the reason.
func (p privileged) openDriver(data string, log *slog.Logger) sandbox.Driver {
	name, err := groupName(data)
	cfg := linux.Config{Dir: filepath.Join(data, rootsFolder), Code: filepath.Join(data, codeFolder), Node: name, Log: log}
	if p.roots != nil {
		err = errors.Join(err, p.failed)
		cfg.Helper, cfg.Prepared = p.helper, p.roots.root
	}
	if err == nil {
		var d *linux.Driver
		if d, err = linux.New(cfg); err == nil {
			return d
		}
	}
	log.Error("no sandbox can be made on this host, so no function runs", "error", err)
	return &noDriver{err}
}

// findRuntimes returns every runtime that Bawn knows, with what the host has
// for it.
func findRuntimes(ctx context.Context, log *slog.Logger) []interior.Definition {
	return interior.FindRuntimes(ctx, log)
}

// noDriver stands where the host can have no sandbox. It says why, and makes
// none: what cannot be walled in does not run.
type noDriver struct{ err error }

func (n *noDriver) reason() *bawn.Error {
	e := bawn.Wrap(n.err, bawn.CodeUnavailable, "sandbox", "this host can make no sandbox").
		WithFix("run bawn on Linux 6.6 or newer, as root if nothing else is missing")
	var cause *bawn.Error
	if errors.As(n.err, &cause) {
		e.Message += ": " + cause.Message
		if cause.Fix != "" {
			e.Fix = cause.Fix
		}
	}
	return e
}

// Probe reports the one capability that is missing.
func (n *noDriver) Probe() []bawn.Capability {
	r := n.reason()
	return []bawn.Capability{{Name: "sandboxes", Control: "B1", Required: true, Detail: r.Message, Fix: r.Fix}}
}

// Prepare fails.
func (n *noDriver) Prepare(context.Context, sandbox.Image) error { return n.reason() }

// Start fails.
func (n *noDriver) Start(context.Context, sandbox.Spec) (sandbox.Sandbox, error) {
	return nil, n.reason()
}

// Close has nothing to do.
func (n *noDriver) Close() error { return nil }
