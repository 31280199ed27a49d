package interior

import (
	"bawn.dev/bawn/internal/sandbox"
)

// defineProvided makes the definition of the runtime that a function brings
// itself. Its executable must be static: the image has no libraries.
func defineProvided() Definition {
	return Definition{
		Image: sandbox.Image{Syscall: sandbox.SyscallProvided, Files: commonFiles()},
		Found: "built in",
	}
}

// providedCommand returns what a parked sandbox of the provided runtime is to
// execute once its code is attached and the Runtime API listens.
func providedCommand(id *Identity) (args, env []string) {
	return []string{taskRoot + "/bootstrap"}, environment(id)
}
