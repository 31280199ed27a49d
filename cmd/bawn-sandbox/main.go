// Command bawn-sandbox is the small static helper that makes sandboxes. Bawn
// embeds it and starts it from memory; it is not meant to be run by hand.
//
// As "keeper" it is the one process that is started with the node's privileges
// and keeps them: it starts the spawner, and another when that one has ended,
// because the server has no right to. As "spawner" it makes sandboxes: what one
// costs does not grow with the server's heap. As "init" it is the first process
// of one sandbox: it sets the
// sandbox up from the inside, locks itself and everything after it, runs the
// program and reports how that ended. As "selftest" it is such a program.
//
// Keeper and spawner are told whether they are root of the host or, rootless, of
// nothing but a user namespace in which the node's own user is the only one.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

func main() {
	// One processor and a late collector are plenty for both roles, and every
	// thread less is one thread less in each sandbox.
	debug.SetGCPercent(400)
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "keeper":
		runtime.GOMAXPROCS(1)
		err = runKeeper(os.Args[2], os.Args[3] == wire.Rootless)
	case len(os.Args) == 4 && os.Args[1] == "spawner":
		runtime.GOMAXPROCS(2)
		err = runSpawner(os.Args[2], os.Args[3] == wire.Rootless)
	case len(os.Args) == 1 && os.Args[0] == "init":
		err = runInit()
	case len(os.Args) == 2 && os.Args[1] == "selftest":
		err = runSelfTest()
	default:
		os.Stderr.WriteString("bawn-sandbox is a part of bawn and is started by it: run bawn up\n")
		os.Exit(2)
	}
	if err != nil {
		os.Stderr.WriteString("bawn-sandbox: " + err.Error() + "\n")
		os.Exit(1)
	}
}
