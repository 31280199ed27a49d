package filter

import "golang.org/x/sys/unix"

const arch = unix.AUDIT_ARCH_X86_64

// legacyAllowed are the calls that only this old an architecture still has
// beside their successors.
var legacyAllowed = []uintptr{
	unix.SYS_ARCH_PRCTL, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_ACCESS, unix.SYS_READLINK, unix.SYS_GETDENTS, unix.SYS_POLL, unix.SYS_SELECT,
	unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_WAIT, unix.SYS_EVENTFD, unix.SYS_SIGNALFD, unix.SYS_INOTIFY_INIT,
	unix.SYS_ALARM, unix.SYS_PAUSE, unix.SYS_TIME, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT, unix.SYS_GETPGRP,
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT,
}

// legacyWatched change a file by its path, see watched.
var legacyWatched = []uintptr{
	unix.SYS_CREAT, unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_UNLINK, unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_LINK, unix.SYS_SYMLINK,
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN,
}

func legacyAnswers(a map[uintptr]answer) {
	a[unix.SYS_OPEN] = answer{[][]test{{{1, writeFlags, 0}}}, allow, ask}
}
