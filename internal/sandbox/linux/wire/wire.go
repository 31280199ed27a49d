// Package wire is the protocol between the server and the privileged spawner,
// and between the spawner and the init of one sandbox. All speak JSON messages
// over a SOCK_SEQPACKET socketpair, so message borders are the kernel's, and
// pass descriptors beside them with SCM_RIGHTS.
//
// It is linked into the small static helper, so it imports little.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/cgroup"
)

// Bounds of a message. The largest is a program with its arguments and its
// environment.
const (
	MaxMessage = 160 << 10
	MaxFiles   = MaxPorts // descriptors
)

// PrepareCommand is the argument with which the keeper starts the preparer of
// roots: descriptor 3 is the folder of roots, 4 takes the report.
const PrepareCommand = "bawn-prepare-roots"

// How a keeper and a spawner are told which root they are: the host's, or that
// of a user namespace in which there is no user but the node's own.
const (
	Rootful  = "root"
	Rootless = "rootless"
)

// Op names a request.
type Op string

// The requests a spawner understands; it refuses everything else.
const (
	OpProbe   Op = "probe"
	OpImage   Op = "image"
	OpStart   Op = "start"
	OpAttach  Op = "attach"
	OpExec    Op = "exec"
	OpOpen    Op = "open"
	OpFreeze  Op = "freeze"
	OpThaw    Op = "thaw"
	OpInspect Op = "inspect"
	OpKill    Op = "kill"
)

// Hello goes from the keeper to the server, with the socket of a new spawner.
type Hello struct {
	PID int `json:"pid"` // of that spawner, for the log
}

// Order is all that the server can say to the keeper: to prepare the roots of
// this node's runtimes, once. It has no arguments.
type Order struct {
	Roots bool `json:"roots"`
}

// Request goes from the server to the spawner. Each has one [Reply] with the
// same Seq. The spawner takes no other than [Request.Check] lets through.
type Request struct {
	Seq    uint64  `json:"seq"`
	Op     Op      `json:"op"`
	ID     string  `json:"id,omitempty"` // of the sandbox
	Image  *Image  `json:"image,omitempty"`
	Start  *Start  `json:"start,omitempty"`
	Attach *Attach `json:"attach,omitempty"`
	Exec   *Exec   `json:"exec,omitempty"`
	Open   *Open   `json:"open,omitempty"`
}

// Image tells the spawner of a prepared root.
type Image struct {
	Name string `json:"name"`
	Dir  string `json:"dir"`  // its name in the folder of roots
	Kind string `json:"kind"` // of the programs: selects the system call filter, which the spawner has itself
}

// Start asks for a sandbox. Two descriptors come along: the program's socket
// and its output.
type Start struct {
	Image string `json:"image"`
	Exec  *Exec  `json:"exec,omitempty"`
}

// Exec is a program to run.
type Exec struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
}

// Attach makes a sandbox one function's own.
type Attach struct {
	Code   []string `json:"code"` // paths below the folder of code; the first is on top
	Memory int64    `json:"memory"`
	CPU    float64  `json:"cpu"`
	PIDs   int      `json:"pids"`
	Tmp    int64    `json:"tmp"`
	Exec   bool     `json:"exec"`
	Files  []File   `json:"files,omitempty"` // one descriptor comes along, in which they are one after the other
}

// File is one file of an [Attach].
type File struct {
	Path string `json:"path"`
	Size int    `json:"size"` // bytes
}

// Open asks for sockets in a sandbox's network. They come with the answer, in the
// order of the ports.
type Open struct {
	Ports []Port         `json:"ports"`
	Local []netip.Prefix `json:"local,omitempty"`
}

// Port mirrors sandbox.Port.
type Port struct {
	Network string `json:"network"`
	Port    int    `json:"port"`
	Home    bool   `json:"home,omitempty"`
}

// Reply goes from the spawner to the server: an answer if Seq is set, an event
// if not.
type Reply struct {
	Seq   uint64 `json:"seq,omitempty"`
	Error string `json:"error,omitempty"`

	Probe *Probe        `json:"probe,omitempty"`
	Group *cgroup.Group `json:"group,omitempty"` // of a started sandbox; the server may read from it
	Facts []Fact        `json:"facts,omitempty"`

	ID      string   `json:"id,omitempty"` // of the sandbox an event is about
	Attempt *Attempt `json:"attempt,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
}

// Capability mirrors bawn.Capability.
type Capability struct {
	Name, Control string
	OK, Required  bool
	Detail, Fix   string
}

// Probe is what the spawner found it can enforce.
type Probe struct {
	Capabilities []Capability `json:"capabilities"`
}

// Fact mirrors bawn.Fact.
type Fact struct {
	Control, Name, Value, Source string
	OK                           bool
}

// Attempt mirrors sandbox.Attempt.
type Attempt struct {
	Syscall string   `json:"syscall"`
	Args    []string `json:"args,omitempty"`
	Control string   `json:"control"`
	Errno   string   `json:"errno"`
	Dropped int      `json:"dropped,omitempty"`
}

// Exit says how a sandbox ended.
type Exit struct {
	Status uint32 `json:"status"` // of wait4, for the program
	Ran    bool   `json:"ran"`    // whether there was a program
	OOM    bool   `json:"oom,omitempty"`
	Error  string `json:"error,omitempty"` // the program could not be started, or init failed
}

// Setup is the first message from the spawner to an init. The program's socket
// and its output come with it.
type Setup struct {
	Root     string   `json:"root"`   // the image's mount in the inherited namespace
	Share    string   `json:"share"`  // the folder through which code arrives
	Run      string   `json:"run"`    // the folder with its files
	Dev      string   `json:"dev"`    // the prepared /dev
	Empty    string   `json:"empty"`  // an empty folder, to mask with
	Null     string   `json:"null"`   // the null device, to mask with
	Filter   []byte   `json:"filter"` // the seccomp program
	Landlock int      `json:"landlock"`
	Mask     []string `json:"mask"` // paths below /proc that are hidden
	Rootless bool     `json:"rootless,omitempty"`
}

// FromInit is every message from an init to the spawner. The seccomp listener
// comes with Ready.
type FromInit struct {
	Ready   bool   `json:"ready,omitempty"`
	Started int    `json:"started,omitempty"` // pid of the program, in its own namespace
	Exited  bool   `json:"exited,omitempty"`
	Status  uint32 `json:"status,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Conn sends and receives messages. Send is safe for concurrent use; Receive
// is for one goroutine.
type Conn struct {
	f  *os.File
	rc interface {
		Read(func(uintptr) bool) error
		Write(func(uintptr) bool) error
	}
	mu  sync.Mutex
	buf []byte
}

// Pair makes two connected sockets; the second is for a child process.
func Pair() (ours *Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	for _, fd := range fds {
		// The default buffer of some hosts is below one full message.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*MaxMessage)
	}
	ours, err = New(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return ours, os.NewFile(uintptr(fds[1]), "wire"), nil
}

// New takes over a SOCK_SEQPACKET descriptor.
func New(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "wire")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f: f, rc: rc, buf: make([]byte, MaxMessage)}, nil
}

// Close closes the socket; a blocked Receive returns.
func (c *Conn) Close() error { return c.f.Close() }

// CloseWrite tells the other end that no message will follow; what it still
// says can be received.
func (c *Conn) CloseWrite() error {
	var serr error
	err := c.rc.Write(func(fd uintptr) bool {
		serr = unix.Shutdown(int(fd), unix.SHUT_WR)
		return true
	})
	return errors.Join(err, serr)
}

// Send sends one message and copies of the descriptors.
func (c *Conn) Send(msg any, fds ...int) error {
	b, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message of %d bytes is over the limit of %d", len(b), MaxMessage)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var serr error
	err = c.rc.Write(func(fd uintptr) bool {
		serr = ignoringEINTR(func() error { return unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL) })
		return serr != unix.EAGAIN
	})
	return errors.Join(err, serr)
}

// Receive reads one message into msg, refusing fields it does not have, and
// returns the descriptors that came with it, close-on-exec. It returns io.EOF
// when the other end is gone.
func (c *Conn) Receive(msg any) ([]int, error) {
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	var n, oobn, flags int
	var rerr error
	err := c.rc.Read(func(fd uintptr) bool {
		rerr = ignoringEINTR(func() (err error) {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), c.buf, oob, unix.MSG_CMSG_CLOEXEC)
			return err
		})
		return rerr != unix.EAGAIN
	})
	if err := errors.Join(err, rerr); err != nil {
		if errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
			err = io.EOF
		}
		return nil, err
	}
	fds, err := rights(oob[:oobn])
	switch {
	case err != nil:
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("message over the limit")
	default:
		err = Decode(c.buf[:n], msg)
	}
	if err != nil {
		CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

// Decode reads exactly one JSON value with known fields only.
func Decode(b []byte, msg any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(msg); err != nil {
		return fmt.Errorf("malformed message: %w", err)
	}
	if d.InputOffset() != int64(len(b)) {
		return errors.New("malformed message: trailing bytes")
	}
	return nil
}

// CloseAll closes descriptors that nobody wants.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range msgs {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
