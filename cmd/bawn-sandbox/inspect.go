package main

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// inspect reads what the kernel enforces for a sandbox's program, or for its
// init where no program runs yet.
func (s *spawner) inspect(b *box) []wire.Fact {
	pid := int(b.program.Load())
	if pid == 0 {
		pid = b.pid
	}
	proc := "/proc/" + strconv.Itoa(pid)
	status := fields(readAll(proc + "/status"))
	var facts []wire.Fact
	add := func(control, name, value, source string, ok bool) {
		facts = append(facts, wire.Fact{Control: control, Name: name, Value: value, Source: strings.Replace(source, proc, "/proc/PID", 1), OK: ok})
	}

	var own, shared []string
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		theirs, err := os.Readlink(proc + "/ns/" + ns)
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		if err == nil && theirs != ours {
			own = append(own, ns)
		} else {
			shared = append(shared, ns)
		}
	}
	value := "own " + strings.Join(own, ", ")
	if len(shared) > 0 {
		value += "; SHARED with the host: " + strings.Join(shared, ", ")
	}
	add("B1", "namespaces", value, proc+"/ns", len(shared) == 0)

	uids := strings.Fields(status["Uid"])
	unprivileged := len(uids) == 4 && uids[0] != "0" && uids[0] == uids[1] && uids[1] == uids[2]
	if s.rootless {
		add("B3", "host user", ownUser()+", the node's own, as every sandbox's", "uid_map of the helper", false)
	} else {
		add("B3", "host user", strings.Join(uids, " "), proc+"/status Uid", unprivileged)
	}
	caps := status["CapPrm"] + " " + status["CapEff"] + " " + status["CapInh"] + " " + status["CapBnd"] + " " + status["CapAmb"]
	add("B3", "capabilities (permitted, effective, inheritable, bounding, ambient)", caps, proc+"/status Cap*", strings.Trim(caps, "0 ") == "")
	add("B3", "no_new_privs", status["NoNewPrivs"], proc+"/status NoNewPrivs", status["NoNewPrivs"] == "1")
	add("B2", "seccomp", "mode "+status["Seccomp"]+", filters "+status["Seccomp_filters"], proc+"/status Seccomp", status["Seccomp"] == "2")

	root, code, tmp, writableMounts := mounts(readAll(proc + "/mountinfo"))
	add("B4", "root", root, proc+"/mountinfo", hasOption(root, "ro"))
	if b.attached.Load() {
		add("B4", "/var/task", code, proc+"/mountinfo", hasOption(code, "ro"))
	}
	add("B4", "/tmp", tmp, proc+"/mountinfo", hasOption(tmp, "noexec"))
	add("B4", "writable mounts", strings.Join(writableMounts, " "), proc+"/mountinfo", len(writableMounts) <= 2) // /tmp and /proc, whose files have their own owners

	dev := netDevices(readAll(proc + "/net/dev"))
	add("C1", "network devices", strings.Join(dev, " "), proc+"/net/dev", len(dev) == 1 && dev[0] == "lo")

	if s.rootless {
		add("B5", "memory limit (bytes)", strconv.FormatInt(b.memory.Load(), 10)+", looked at every "+memoryInterval.String(), "the helper", false)
		add("B5", "cpu limit", "none without root", "the helper", false)
	} else if b.group.V2 {
		fact := func(control, name, file string) {
			v := b.group.Read("", file)
			add(control, name, v, "cgroup "+file, v != "" && !strings.HasPrefix(v, "max"))
		}
		fact("B5", "memory limit (bytes)", "memory.max")
		fact("B5", "cpu quota and period (µs)", "cpu.max")
		fact("B5", "process limit", "pids.max")
	} else {
		fact := func(name, controller, file string) {
			v := b.group.Read(controller, file)
			add("B5", name, v, "cgroup "+controller+" "+file, v != "" && v != "max" && v != "-1")
		}
		fact("memory limit (bytes)", "memory", "memory.limit_in_bytes")
		fact("cpu quota (µs of 100000)", "cpu", "cpu.cfs_quota_us")
		fact("process limit", "pids", "pids.max")
	}
	limits := readAll(proc + "/limits")
	names := []string{"Max open files", "Max core file size"}
	if s.rootless {
		names = append(names, "Max processes")
	}
	for _, name := range names {
		for line := range strings.Lines(limits) {
			if strings.HasPrefix(line, name) {
				v := strings.Fields(strings.TrimPrefix(line, name))
				add("B5", strings.ToLower(name[4:]), v[0], proc+"/limits", v[0] != "unlimited")
			}
		}
	}
	exec := "refused once the runtime runs"
	if b.execAllowed.Load() {
		exec = "declared in the manifest: read-only files only"
	}
	add("B7", "exec", exec, "seccomp user notification", true)
	add("B4", "landlock", "version "+strconv.Itoa(s.landlock)+", writes in /tmp alone, nothing in /tmp runs", "landlock_restrict_self in init", s.landlock > 0)
	return facts
}

func readAll(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}

func fields(s string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}

// mounts picks the interesting lines of a mount table; for a path that is
// mounted over, the last line counts.
func mounts(table string) (root, code, tmp string, writable []string) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		_, right, ok := strings.Cut(line, " - ")
		if !ok || len(f) < 6 {
			continue
		}
		kind, _, _ := strings.Cut(right, " ")
		value := kind + " " + f[5]
		switch f[4] {
		case "/":
			root = value
		case "/var/task":
			code = value
		case "/tmp":
			tmp = value
		}
		if !hasOption(value, "ro") && !strings.HasPrefix(f[4], "/proc/") && f[4] != "/var/task" {
			writable = append(writable, f[4])
		}
	}
	return root, code, tmp, writable
}

func hasOption(value, option string) bool {
	_, options, _ := strings.Cut(value, " ")
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

func netDevices(table string) []string {
	var dev []string
	for line := range strings.Lines(table) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			dev = append(dev, strings.TrimSpace(name))
		}
	}
	return dev
}

// probe tries each thing that a sandbox is made of. Making one for real is the
// server's to ask for; this says which part is missing and how to get it.
func (s *spawner) probe() *wire.Probe {
	p := &wire.Probe{}
	add := func(name, control string, ok, required bool, detail, fix string) {
		if ok {
			fix = ""
		}
		p.Capabilities = append(p.Capabilities, wire.Capability{Name: name, Control: control, OK: ok, Required: required, Detail: detail, Fix: fix})
	}
	var uts unix.Utsname
	unix.Uname(&uts)
	kernel := unix.ByteSliceToString(uts.Release[:])

	for _, ns := range []struct{ name, file string }{
		{"user", "user"}, {"mount", "mnt"}, {"PID", "pid"}, {"network", "net"}, {"IPC", "ipc"}, {"UTS", "uts"}, {"cgroup", "cgroup"},
	} {
		_, err := os.Stat("/proc/self/ns/" + ns.file)
		add(ns.name+" namespaces", "B1", err == nil, true, "/proc/self/ns/"+ns.file, "use a kernel with CONFIG_NAMESPACES and all its kinds")
	}
	if s.rootless {
		s.probeRootless(add)
	}
	users := strings.TrimSpace(readAll("/proc/sys/user/max_user_namespaces"))
	add("user namespaces allowed", "B1", users != "0", true, "user.max_user_namespaces = "+users, "sysctl -w user.max_user_namespaces=65536")
	d, err := unix.Open("d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		var fd int
		if fd, err = overlay([]int{d}, unix.MOUNT_ATTR_RDONLY); err == nil {
			unix.Close(fd)
		}
		unix.Close(d)
	}
	add("overlay with the new mount calls", "B4", err == nil, true, describeErr(err, "kernel "+kernel), "use Linux 6.6 or newer and load the overlay module")
	add("Landlock", "B4", s.landlock >= 3, true, "version "+strconv.Itoa(s.landlock), "boot with lsm=landlock,… on Linux 6.2 or newer")
	actions := readAll("/proc/sys/kernel/seccomp/actions_avail")
	add("seccomp filters", "B2", slices.Contains(strings.Fields(actions), "errno"), true, strings.TrimSpace(actions), "use a kernel with CONFIG_SECCOMP_FILTER")
	add("seccomp user notification", "B7", slices.Contains(strings.Fields(actions), "user_notif"), true, "needed to refuse and report exec", "use Linux 6.0 or newer")
	version := "v1"
	if s.cgroups.V2 {
		version = "v2"
	}
	missing := map[string]bool{}
	for _, m := range s.missing {
		missing[m] = true
	}
	for _, c := range []struct{ name, control string }{{"memory", "B5"}, {"cpu", "B5"}, {"pids", "B5"}, {"freezer", "B5"}} {
		if s.rootless {
			break // told above
		}
		add("cgroup "+c.name, c.control, !missing[c.name], true, version, "mount the controller, or let the service manager delegate it (systemd: Delegate=yes)")
	}
	swap := strings.Count(readAll("/proc/swaps"), "\n") <= 1
	add("no swap", "E1", swap, false, "memory of functions may reach a disk where swap is on", "swapoff -a, or encrypt it")
	add("files of functions are never swapped", "E1", s.noswap, false, "kernel "+kernel, "use Linux 6.4 or newer, as root, or turn swap off")
	return p
}

// probeRootless says what is weaker without root. Nothing of it is required: what
// is, is as strong as with root, or no function runs.
func (s *spawner) probeRootless(add func(name, control string, ok, required bool, detail, fix string)) {
	const fix = "run bawn as root: only its small helper keeps that, and the server becomes a user of its own"
	add("a user for each sandbox", "B3", false, false, "WEAKER without root: all sandboxes are "+ownUser()+" of the host, the node's own, and keep its groups; if a wall falls there is this user behind it", fix)
	add("memory limit", "B5", false, false, "WEAKER without root: looked at every "+memoryInterval.String()+", and a sandbox that is over is killed; what it allocates in between nobody stops", fix)
	add("cpu limit", "B5", false, false, "WEAKER without root: none; functions share the processors with all else", fix)
	add("freezing of idle sandboxes", "B5", false, false, "WEAKER without root: by SIGSTOP and SIGCONT, which the processes of a sandbox may send to each other as well", fix)
	add("process limit", "B5", true, false, "RLIMIT_NPROC, which the kernel counts in each sandbox's own user namespace", "")
}

// ownUser returns who the root of this process's user namespace is outside of it.
func ownUser() string {
	if f := strings.Fields(readAll("/proc/self/uid_map")); len(f) == 3 {
		return "uid " + f[1]
	}
	return "one user"
}

func describeErr(err error, ok string) string {
	if err != nil {
		return err.Error()
	}
	return ok
}
