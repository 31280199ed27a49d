// Command bawn-sandbox is the small static helper that makes sandboxes. Bawn
// embeds it and starts it from memory; it is not meant to be run by hand.
//
// As "spawner" it is one long-lived process beside the server, the only one
// that needs privileges: what it costs to make a sandbox does not grow with the
// server's heap. As "init" it is the first process of one sandbox: it sets the
// sandbox up from the inside, locks itself and everything after it, runs the
// program and reports how that ended. As "selftest" it is such a program.
package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

func main() {
	// One processor and a late collector are plenty for both roles, and every
	// thread less is one thread less in each sandbox.
	debug.SetGCPercent(400)
	var err error
	switch {
	case len(os.Args) >= 5 && os.Args[1] == "spawner":
		runtime.GOMAXPROCS(2)
		err = runSpawner(os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
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
