// Command actor is the program that the sandbox suite puts into sandboxes: it
// does what it is told over descriptor 3, one line a request, and says what
// came of it. Run freely, it would do harm; it is built by the tests alone.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		fmt.Println("child ran")
		return
	}
	in := bufio.NewScanner(os.NewFile(3, "control"))
	in.Buffer(nil, 1<<20)
	out := os.NewFile(3, "control")
	fmt.Fprintln(out, `{"ok":"ready"}`)
	for in.Scan() {
		var words []string
		json.Unmarshal(in.Bytes(), &words)
		text, err := act(words[0], words[1:])
		reply := map[string]string{"ok": text}
		if err != nil {
			reply["error"] = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				reply["errno"] = unix.ErrnoName(errno)
			}
		}
		b, _ := json.Marshal(reply)
		fmt.Fprintf(out, "%s\n", b)
	}
}

func act(verb string, args []string) (string, error) {
	switch verb {
	case "read":
		b, err := os.ReadFile(args[0])
		return string(b[:min(len(b), 64<<10)]), err
	case "list":
		entries, err := os.ReadDir(args[0])
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		sort.Strings(names)
		return strings.Join(names, " "), err
	case "write":
		return "", os.WriteFile(args[0], []byte(args[1]), 0o755)
	case "mkdir":
		return "", os.Mkdir(args[0], 0o755)
	case "rename":
		return "", os.Rename(args[0], args[1])
	case "symlink":
		return "", os.Symlink(args[0], args[1])
	case "fill":
		f, err := os.Create(args[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		for n := 0; ; n++ {
			if _, err := f.Write(block); err != nil || n > 4096 {
				return fmt.Sprint(n), err
			}
		}
	case "print":
		fmt.Println(args[0])
		return "", nil
	case "whoami":
		return fmt.Sprint(os.Getuid(), os.Getgid(), os.Getpid(), os.Getppid()), nil
	case "env":
		return strings.Join(os.Environ(), "\n"), nil
	case "exec":
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		return string(b), err
	case "memfdexec":
		fd, err := unix.MemfdCreate("x", 0)
		if err != nil {
			return "memfd_create", err
		}
		self, err := os.ReadFile("/var/task/bootstrap")
		if err != nil {
			return "read", err
		}
		unix.Write(fd, self)
		b, err := exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd), "child").CombinedOutput()
		return string(b), err
	case "syscall":
		return rawSyscall(args[0])
	case "dial":
		c, err := net.DialTimeout(args[0], args[1], time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		c.Write([]byte("hello"))
		b := make([]byte, 64)
		n, err := c.Read(b)
		return string(b[:n]), err
	case "send":
		return send(args[0], args[1])
	case "socket":
		var n [3]int
		for i := range n {
			n[i], _ = strconv.Atoi(args[i])
		}
		fd, err := unix.Socket(n[0], n[1], n[2])
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	case "abstract":
		c, err := net.DialTimeout(args[0], "@"+args[1], time.Second)
		if err == nil {
			c.Close()
		}
		return "", err
	case "listen":
		ln, err := net.Listen(args[0], args[1])
		if err == nil {
			listeners = append(listeners, ln)
		}
		return "", err
	case "netlink":
		return "", netlink(args[0])
	case "sockets":
		entries, err := os.ReadDir("/proc/self/fd")
		var list []string
		for _, e := range entries {
			if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
				list = append(list, e.Name())
			}
		}
		return strings.Join(list, " "), err
	case "mptcp":
		addr := netip.MustParseAddrPort(args[0])
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	case "stat":
		st, err := os.Stat(args[0])
		if err != nil {
			return "", err
		}
		return fmt.Sprint(st.Mode(), " ", st.Sys().(*syscall.Stat_t).Uid), nil
	case "chmod":
		return "", os.Chmod(args[0], 0o777)
	case "eat":
		var held [][]byte
		for range 1024 {
			b := make([]byte, 4<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			held = append(held, b)
		}
		return fmt.Sprint(len(held)), nil
	case "threads":
		n := 0
		for range 5000 {
			_, _, errno := syscall.RawSyscall(syscall.SYS_FORK, 0, 0, 0)
			if errno != 0 {
				return fmt.Sprint(n), errno
			}
			n++
		}
		return fmt.Sprint(n), nil
	case "spin":
		d, _ := time.ParseDuration(args[0])
		for end := time.Now().Add(d); time.Now().Before(end); {
		}
		return "", nil
	case "fds":
		n := 0
		for {
			if _, err := os.Open("/dev/null"); err != nil {
				return fmt.Sprint(n), err
			}
			n++
		}
	case "fork":
		pid, _, errno := syscall.RawSyscall(syscall.SYS_FORK, 0, 0, 0)
		if errno != 0 {
			return "", errno
		}
		if pid == 0 {
			for {
				syscall.RawSyscall(syscall.SYS_PAUSE, 0, 0, 0)
			}
		}
		return fmt.Sprint(pid), nil
	case "exit":
		os.Exit(7)
	case "crash":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Second)
	}
	return "", errors.New("unknown verb " + verb)
}

// rawSyscall makes one call that no function has business making.
// listeners stay open until the end.
var listeners []net.Listener

// send sends a datagram and waits a moment for an answer.
func send(network, addr string) (string, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second)) // an error comes at once
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// netlink tries to change the network: to give it a route, an address or a
// device, or to take a route away.
func netlink(what string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attribute := func(kind uint16, value ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		return append(binary.NativeEndian.AppendUint16(b, kind), value...)
	}
	kinds := map[string]uint16{"route": unix.RTM_NEWROUTE, "no route": unix.RTM_DELROUTE, "address": unix.RTM_NEWADDR, "device": unix.RTM_NEWLINK}
	var body []byte
	switch what {
	case "route", "no route":
		body = []byte{unix.AF_INET, 8, 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
		body = append(append(body, attribute(unix.RTA_DST, 10, 0, 0, 0)...), attribute(unix.RTA_OIF, 1, 0, 0, 0)...)
	case "address":
		body = append([]byte{unix.AF_INET, 8, 0, 0, 1, 0, 0, 0}, attribute(unix.IFA_LOCAL, 10, 0, 0, 1)...)
	case "device":
		body = append(make([]byte, unix.SizeofIfInfomsg), attribute(unix.IFLA_IFNAME, 'd', 'u', 'm', 0)...)
		body = append(body, attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, 'v', 'e', 't', 'h')...)...)
	}
	m := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	m = binary.NativeEndian.AppendUint16(m, kinds[what])
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m = append(append(m, make([]byte, 8)...), body...)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var buf [1024]byte
	n, _, err := unix.Recvfrom(fd, buf[:], 0)
	if err != nil || n < 20 {
		return fmt.Errorf("%d bytes of an answer: %w", n, err)
	}
	if code := int32(binary.NativeEndian.Uint32(buf[16:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

func rawSyscall(name string) (string, error) {
	runtime.LockOSThread()
	p := func(s string) uintptr { b, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(b)) }
	calls := map[string][]uintptr{
		"unshare":           {unix.SYS_UNSHARE, unix.CLONE_NEWUSER},
		"mount":             {unix.SYS_MOUNT, p("none"), p("/tmp"), p("tmpfs"), 0, 0},
		"umount":            {unix.SYS_UMOUNT2, p("/proc"), unix.MNT_DETACH},
		"ptrace":            {unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1},
		"bpf":               {unix.SYS_BPF, 0, 0, 0},
		"io_uring":          {unix.SYS_IO_URING_SETUP, 8, p("                                                                                                                                ")},
		"userfaultfd":       {unix.SYS_USERFAULTFD, 0},
		"keyctl":            {unix.SYS_KEYCTL, 0, 0},
		"add_key":           {unix.SYS_ADD_KEY, p("user"), p("x"), p("y"), 1, 0},
		"perf_event_open":   {unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0},
		"setns":             {unix.SYS_SETNS, 0, 0},
		"open_by_handle_at": {unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0},
		"pivot_root":        {unix.SYS_PIVOT_ROOT, p("/"), p("/")},
		"chroot":            {unix.SYS_CHROOT, p("/tmp")},
		"init_module":       {unix.SYS_INIT_MODULE, 0, 0, 0},
		"kexec_load":        {unix.SYS_KEXEC_LOAD, 0, 0, 0, 0},
		"reboot":            {unix.SYS_REBOOT, 0xfee1dead, 0x28121969, 0},
		"process_vm_readv":  {unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0},
		"mknod":             {unix.SYS_MKNODAT, uintptr(0xffffffffffffff9c), p("/tmp/dev"), unix.S_IFBLK | 0o666, 0x801},
		"clone_newuser":     {unix.SYS_CLONE, unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD), 0, 0, 0, 0},
		"clone_newnet":      {unix.SYS_CLONE, unix.CLONE_NEWNET | uintptr(unix.SIGCHLD), 0, 0, 0, 0},
		"socket_packet":     {unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0x300},
		"socket_raw":        {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		"socket_vsock":      {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		"socket_alg":        {unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
		"memfd_exec":        {unix.SYS_MEMFD_CREATE, p("x"), unix.MFD_EXEC},
		"seccomp":           {unix.SYS_SECCOMP, 1, 0, 0},
		"sethostname":       {unix.SYS_SETHOSTNAME, p("x"), 1},
		"clock_settime":     {unix.SYS_CLOCK_SETTIME, 0, 0},
		"x32_getpid":        {0x40000000 + 39},
	}
	args, ok := calls[name]
	if !ok {
		return "", errors.New("unknown call " + name)
	}
	var a [7]uintptr
	copy(a[:], args)
	r, _, errno := syscall.RawSyscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
	if errno != 0 {
		return "", errno
	}
	if strings.HasPrefix(name, "clone") && r == 0 {
		syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
	}
	return fmt.Sprint(r), nil
}
