package linux

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// legacyAllowed are the few that this architecture has beside the common ones.
var legacyAllowed = []uintptr{unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT}

// legacyWatched change a file by its path, see watched.
var legacyWatched = []uintptr{unix.SYS_RENAMEAT}

func allowLegacy(map[uintptr]seccomp.SyscallRule) {}
