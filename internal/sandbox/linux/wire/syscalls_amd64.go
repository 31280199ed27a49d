package wire

import "golang.org/x/sys/unix"

// legacyNames are calls that newer architectures do not have.
var legacyNames = map[int]string{
	unix.SYS__SYSCTL:         "_sysctl",
	unix.SYS_CHMOD:           "chmod",
	unix.SYS_CHOWN:           "chown",
	unix.SYS_CREAT:           "creat",
	unix.SYS_CREATE_MODULE:   "create_module",
	unix.SYS_GET_KERNEL_SYMS: "get_kernel_syms",
	unix.SYS_IOPERM:          "ioperm",
	unix.SYS_IOPL:            "iopl",
	unix.SYS_LCHOWN:          "lchown",
	unix.SYS_LINK:            "link",
	unix.SYS_MKDIR:           "mkdir",
	unix.SYS_MKNOD:           "mknod",
	unix.SYS_MODIFY_LDT:      "modify_ldt",
	unix.SYS_OPEN:            "open",
	unix.SYS_QUERY_MODULE:    "query_module",
	unix.SYS_RENAME:          "rename",
	unix.SYS_RMDIR:           "rmdir",
	unix.SYS_SYMLINK:         "symlink",
	unix.SYS_SYSFS:           "sysfs",
	unix.SYS_UNLINK:          "unlink",
	unix.SYS_USELIB:          "uselib",
	unix.SYS_USTAT:           "ustat",
}
