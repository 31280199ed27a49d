package filter

import "golang.org/x/sys/unix"

const arch = unix.AUDIT_ARCH_AARCH64

// legacyAllowed are the few that this architecture has beside the common ones.
var legacyAllowed = []uintptr{unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT}

// legacyWatched change a file by its path, see watched.
var legacyWatched = []uintptr{unix.SYS_RENAMEAT}

func legacyAnswers(map[uintptr]answer) {}
