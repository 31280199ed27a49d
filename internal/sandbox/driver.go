// Package sandbox says what Bawn asks of a sandbox, whatever makes it. The
// drivers are in the folders below; sandboxtest is the suite each must pass.
package sandbox

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"bawn.dev/bawn"
)

// Driver makes sandboxes. All methods are safe for concurrent use.
type Driver interface {
	// Probe says what this host can enforce. It is measured, not configured.
	Probe() []bawn.Capability
	// Prepare makes the read-only root that sandboxes of this image start from.
	// It must have returned before Start is called for the image; preparing an
	// image again is cheap.
	Prepare(ctx context.Context, img Image) error
	// Start makes a sandbox with every lock on. It holds no user code. With
	// Spec.Args it runs that program at once (an interpreter and its shim);
	// without, it waits parked for Exec.
	Start(ctx context.Context, spec Spec) (Sandbox, error)
	// Close ends every sandbox and leaves nothing behind.
	Close() error
}

// Sandbox is one isolated process tree. It serves one function version and is
// destroyed, never returned. All methods are safe for concurrent use.
type Sandbox interface {
	ID() string
	// Conn is the stream socket whose other end is descriptor 3 of the program.
	// The caller closes it, and Output, once Done is closed.
	Conn() net.Conn
	// Output is the read end of the pipe that is the program's stdout and stderr.
	Output() *os.File
	// Attach gives the sandbox its code at /var/task and its limits. Once only.
	Attach(ctx context.Context, a Attachment) error
	// Exec starts the program of a parked sandbox. Once only, after Attach.
	Exec(ctx context.Context, args, env []string) error
	// Open makes sockets inside the sandbox's network, one for each port and in
	// their order: TCP listeners, and UDP sockets. The ranges in local become that
	// network's own, so that what is sent to an address there comes to such a
	// socket, and goes nowhere else. It must be called before Attach, so that no
	// code of a function can be there first. The caller closes the files.
	Open(ctx context.Context, ports []Port, local []netip.Prefix) ([]*os.File, error)
	// Freeze stops all processes from running; Thaw lets them go on.
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	// Stats reads what the sandbox has used so far.
	Stats(ctx context.Context) (Stats, error)
	// CPU reads the processor time used so far, quickly. It reports false if that
	// cannot be known: the sandbox has ended, or the host keeps no such count.
	CPU() (time.Duration, bool)
	// Inspect reads from the kernel what it enforces for the program.
	Inspect(ctx context.Context) ([]bawn.Fact, error)
	// Attempts delivers what the kernel stopped, rate limited; it is closed
	// when the sandbox has ended.
	Attempts() <-chan Attempt
	// Kill ends the whole tree at once. It returns before everything is gone;
	// Done is closed when it is.
	Kill()
	// Done is closed when no process, mount or cgroup of the sandbox is left.
	Done() <-chan struct{}
	// Exit says how the program ended. Valid once Done is closed.
	Exit() Exit
}

// Image is a read-only root: the host's files that a runtime needs, and
// Bawn's own for it.
type Image struct {
	Name    string      // of the runtime
	Files   []File      // what the root holds; parents are made as needed
	Syscall SyscallKind // which allow-list its programs get
}

// File is one file, folder or link of an [Image].
type File struct {
	Path string // absolute, in the sandbox
	Host string // absolute, on the host: a file or a whole folder is taken from there
	Data []byte // the content, where Host is empty
	Link string // the target of a symbolic link, where Host and Data are empty
	Mode os.FileMode
	Skip []string // names of files and folders at any depth below Host that are left out
}

// SyscallKind selects an allow-list of system calls.
type SyscallKind string

// The kinds of program that sandboxes run.
const (
	SyscallPython   SyscallKind = "python"
	SyscallNode     SyscallKind = "nodejs"
	SyscallProvided SyscallKind = "provided"
	SyscallWasm     SyscallKind = "wasm"
)

// Spec says what [Driver.Start] makes.
type Spec struct {
	ID    string   // unique on this node: [a-z0-9-], at most 40 bytes
	Image string   // the name of a prepared image
	Args  []string // the program and its arguments; empty for a parked sandbox
	Env   []string
}

// Attachment makes a warm sandbox one function's own.
type Attachment struct {
	Code   []string // folders on the host, merged read-only at /var/task; the first wins
	Memory int64    // bytes
	CPU    float64  // cores
	PIDs   int
	Tmp    int64 // bytes of /tmp
	Exec   bool  // whether execve is allowed once the program runs
	Files  []AttachedFile
}

// AttachedFile is a small file that a sandbox gets with its code. It is in
// memory, of which no disk sees anything where the kernel can see to that, cannot
// be changed, and is gone with the sandbox. Its path is one of [HostsFile],
// [ResolverFile], [CAFile], or a name in [SecretsDir]; what is there its program
// alone may read.
type AttachedFile struct {
	Path string
	Data []byte
}

// Where attached files are. The first two are also /etc/hosts and
// /etc/resolv.conf in every root, and have a content without being attached: a
// name for loopback, and a resolver there.
const (
	HostsFile    = "/run/bawn/hosts"
	ResolverFile = "/run/bawn/resolv.conf"
	CAFile       = "/run/bawn/ca.pem" // authorities that this sandbox trusts
	SecretsDir   = "/run/secrets"
)

// Bounds of the files of one attachment.
const (
	MaxFiles     = 64
	MaxFileBytes = 1 << 20
	MaxFilesSize = 4 << 20 // of all together
)

// Port is a socket to make inside a sandbox.
type Port struct {
	Network string // "tcp" or "udp"
	Port    int
	Home    bool // bound to 127.0.0.1 alone, and not to every address there is
}

// Bounds of one [Sandbox.Open].
const (
	MaxPorts = 72
	MaxLocal = 128 // ranges
)

// Stats is what a sandbox has used.
type Stats struct {
	CPU       time.Duration // user and system
	Memory    int64         // bytes now
	MaxMemory int64         // bytes at the peak
	OOMKills  int           // processes the kernel killed for want of memory
	PIDs      int
}

// Exit says how a program ended.
type Exit struct {
	Code   int    // exit status, or -1
	Signal string // "killed", "segmentation fault", …; "" if it exited by itself
	OOM    bool   // the kernel killed it for want of memory
	Err    error  // the sandbox itself failed
}

// Attempt is something the sandbox stopped.
type Attempt struct {
	Time    time.Time
	Syscall string   // "execve", "ptrace", "openat"
	Args    []string // the arguments that matter, decoded and bounded
	Control string   // the control that stopped it: "B7" for exec, "B2" for a refused call, "B4" for a write
	Errno   string   // what the program saw: "EPERM"
	Dropped int      // attempts left out since the last one, for the rate limit
}
