// Package cgroup makes one control group a sandbox, in cgroup v1, where every
// controller is a hierarchy of its own, and in v2, where there is one. It is
// written here and not taken from a library because the privileged helper must
// stay small and the libraries bring a message bus.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is where the groups of one node's sandboxes are.
type Tree struct {
	V2    bool
	none  bool              // there are no groups, only processes
	roots map[string]string // controller to the folder that holds this node's groups; v2 has one, named ""
}

// controllers are what a sandbox needs; v2 has the freezer built in.
var controllers = []string{"memory", "cpu", "pids", "freezer"}

// Find makes this node's folder below the group that the spawner is in,
// in every hierarchy, and ends and removes what an earlier run left there. It
// also returns the controllers that are missing.
func Find(node string) (*Tree, []string, error) {
	own, err := ownCgroups()
	if err != nil {
		return nil, nil, err
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, nil, err
	}
	c := &Tree{roots: map[string]string{}}
	if dir, ok := mounts[""]; ok && len(mounts) == 1 {
		c.V2 = true
		missing, err := c.enterV2(filepath.Join(dir, home(own[""])), node)
		return c, missing, err
	}
	var missing []string
	for _, name := range append(controllers, "cpuacct") {
		dir, ok := mounts[name]
		if !ok {
			missing = append(missing, name)
			continue
		}
		root := filepath.Join(dir, own[name], "bawn-"+node)
		if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			missing = append(missing, name)
			continue
		}
		c.roots[name] = root
	}
	return c, missing, c.sweep()
}

// leafName is the group that a v2 host's own processes move into.
const leafName = "bawn-server"

// home returns the group that the server was started in: it, and the shell it
// was started from, are in the leaf below since the first start.
func home(group string) string {
	for filepath.Base(group) == leafName {
		group = filepath.Dir(group)
	}
	return group
}

// enterV2 hands the controllers down from the group at base. A v2 group that
// has controllers for its children may hold no process itself, so the
// processes that are there move into a leaf first.
func (c *Tree) enterV2(base, node string) (missing []string, err error) {
	have, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"memory", "cpu", "pids"} {
		if !hasWord(string(have), name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return missing, nil
	}
	if _, err := os.Stat(filepath.Join(base, "cgroup.type")); err == nil { // the root group has no such file, and no such rule
		leaf := filepath.Join(base, leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		procs, err := os.ReadFile(filepath.Join(base, "cgroup.procs"))
		if err != nil {
			return nil, err
		}
		for _, pid := range strings.Fields(string(procs)) {
			if err := write(leaf, "cgroup.procs", pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return nil, err
			}
		}
	}
	root := filepath.Join(base, "bawn-"+node)
	if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	for _, dir := range []string{base, root} {
		if err := write(dir, "cgroup.subtree_control", "+memory +cpu +pids"); err != nil {
			return nil, fmt.Errorf("the controllers of %s are not delegated: %w", dir, err)
		}
	}
	c.roots[""] = root
	return nil, c.sweep()
}

// sweep ends and removes whatever an earlier spawner of this node left.
func (c *Tree) sweep() error {
	for name, root := range c.roots {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			dir := filepath.Join(root, e.Name())
			killAll(dir)
			if c.V2 {
				write(dir, "cgroup.freeze", "0")
			} else if name == "freezer" {
				write(dir, "freezer.state", "THAWED")
			}
			killAll(dir)
		}
	}
	for _, root := range c.roots {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			if e.IsDir() {
				if err := remove(filepath.Join(root, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Close ends what is left of the groups and removes this node's folders.
func (c *Tree) Close() {
	c.sweep()
	for _, root := range c.roots {
		remove(root)
	}
}

func killAll(dir string) {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// remove removes an emptied group. The kernel needs a moment to forget the
// last process; a second is far beyond what was ever seen.
func remove(dir string) error {
	for wait := 100 * time.Microsecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || wait > time.Second {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		time.Sleep(wait)
	}
}

// Group is the groups of one sandbox. Its fields name places, so it can be sent
// to another process, which may read from it.
type Group struct {
	V2   bool              `json:"v2"`
	Dirs map[string]string `json:"dirs"`           // by controller; v2 has one, named ""
	Init int               `json:"init,omitempty"` // the first process of the sandbox, where there are no groups
}

// Limits are a sandbox's hard limits.
type Limits struct {
	Memory int64   // bytes
	CPU    float64 // cores
	PIDs   int     // of the program; init's own come on top
}

// Stats is what a sandbox has used.
type Stats struct {
	CPU       time.Duration // user and system
	Memory    int64         // bytes now
	MaxMemory int64         // bytes at the peak
	OOMKills  int
	PIDs      int
}

// overheadPIDs is what the init of a sandbox uses of the process limit.
const overheadPIDs = 12

// Create makes a sandbox's groups with limits and puts a process into them.
// Where there are no groups the limits begin with [Group.Limit].
func (c *Tree) Create(id string, pid int, limits Limits) (*Group, error) {
	if c.none {
		return &Group{Init: pid}, nil // a limit could not be raised any more
	}
	g := &Group{V2: c.V2, Dirs: map[string]string{}}
	for name, root := range c.roots {
		dir := filepath.Join(root, id)
		if err := unix.Mkdir(dir, 0o755); err != nil {
			g.Remove()
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
		g.Dirs[name] = dir
	}
	err := g.Limit(limits)
	if err == nil && !g.V2 {
		// The v1 limit does not count what is swapped out, so nothing is.
		err = g.set("memory", "memory.swappiness", "0")
	}
	for _, dir := range g.Dirs {
		if err == nil {
			err = write(dir, "cgroup.procs", strconv.Itoa(pid))
		}
	}
	if err != nil {
		g.Remove()
		return nil, err
	}
	return g, nil
}

func (g *Group) dir(controller string) string {
	if g.V2 {
		controller = ""
	}
	return g.Dirs[controller]
}

func (g *Group) set(controller, file, value string) error {
	return write(g.dir(controller), file, value)
}

// Read returns what a control file of a controller holds, or "". In v2 the
// controller makes no difference.
func (g *Group) Read(controller, file string) string {
	return strings.TrimSpace(read(g.dir(controller), file))
}

// cpuPeriod is the scheduler's window in microseconds; 100 ms is the kernel's
// default.
const cpuPeriod = 100_000

// minTCP is the least memory that the TCP buffers of a sandbox may take on a v1
// host, in bytes.
const minTCP = 8 << 20

// Limit sets the hard limits. Without groups that is the one on processes.
func (g *Group) Limit(a Limits) error {
	if g.Init != 0 {
		return g.limitProcesses(a.PIDs)
	}
	memory := strconv.FormatInt(a.Memory, 10)
	quota := strconv.FormatInt(max(int64(a.CPU*cpuPeriod), 1000), 10)
	pids := strconv.Itoa(a.PIDs + overheadPIDs)
	if g.V2 {
		if err := g.set("", "memory.swap.max", "0"); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return errors.Join(
			g.set("", "memory.max", memory),
			g.set("", "memory.oom.group", "1"),
			g.set("", "cpu.max", quota+" "+strconv.Itoa(cpuPeriod)),
			g.set("", "pids.max", pids))
	}
	// The v1 limit does not count the buffers of TCP sockets.
	tcp := strconv.FormatInt(max(a.Memory/8, minTCP), 10)
	if err := g.set("memory", "memory.kmem.tcp.limit_in_bytes", tcp); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return errors.Join(
		g.set("memory", "memory.limit_in_bytes", memory),
		g.set("cpu", "cpu.cfs_quota_us", quota),
		g.set("pids", "pids.max", pids))
}

// Freeze stops every process of the group, or lets them go on. Without groups
// it does so by signals, and lets also those go on that were stopped before.
func (g *Group) Freeze(on bool) error {
	if g.Init != 0 {
		if on {
			return g.stop(unix.SIGSTOP)
		}
		return g.stop(unix.SIGCONT)
	}
	if g.V2 {
		value := "0"
		if on {
			value = "1"
		}
		return g.set("", "cgroup.freeze", value)
	}
	value := "THAWED"
	if on {
		value = "FROZEN"
	}
	return g.set("freezer", "freezer.state", value)
}

// Frozen reports whether the group is frozen or about to be. Processes that were
// stopped by signals are not: they can be killed.
func (g *Group) Frozen() bool {
	if g.Init != 0 {
		return false
	}
	if g.V2 {
		return hasWord(read(g.dir(""), "cgroup.events"), "frozen 1")
	}
	s := strings.TrimSpace(read(g.dir("freezer"), "freezer.state"))
	return s == "FROZEN" || s == "FREEZING"
}

// Stats reads what the group has used. A group that is gone has used nothing.
func (g *Group) Stats() Stats {
	var s Stats
	if g.Init != 0 {
		return g.processStats()
	}
	if g.V2 {
		d := g.dir("")
		s.CPU = time.Duration(keyed(read(d, "cpu.stat"), "usage_usec")) * time.Microsecond
		s.Memory = number(read(d, "memory.current"))
		s.MaxMemory = number(read(d, "memory.peak"))
		s.OOMKills = int(keyed(read(d, "memory.events"), "oom_kill"))
		s.PIDs = int(number(read(d, "pids.current")))
		return s
	}
	s.CPU = time.Duration(number(read(g.dir("cpuacct"), "cpuacct.usage")))
	s.Memory = number(read(g.dir("memory"), "memory.usage_in_bytes"))
	s.MaxMemory = number(read(g.dir("memory"), "memory.max_usage_in_bytes"))
	s.OOMKills = g.OOMKills()
	s.PIDs = int(number(read(g.dir("pids"), "pids.current")))
	return s
}

// CPU reads the processor time that the group has used, and nothing else: it is
// read at each call. It reports false for a group that is gone, and where there are
// no groups, since to look at each process takes too long.
func (g *Group) CPU() (time.Duration, bool) {
	if g.Init != 0 {
		return 0, false
	}
	var n int64
	if g.V2 {
		n = keyed(read(g.dir(""), "cpu.stat"), "usage_usec") * int64(time.Microsecond)
	} else {
		n = number(read(g.dir("cpuacct"), "cpuacct.usage"))
	}
	return time.Duration(n), n > 0
}

// OOMKills reads how many processes the kernel killed for want of memory.
func (g *Group) OOMKills() int {
	if g.Init != 0 {
		return 0
	}
	if g.V2 {
		return int(keyed(read(g.dir(""), "memory.events"), "oom_kill"))
	}
	return int(keyed(read(g.dir("memory"), "memory.oom_control"), "oom_kill"))
}

// Remove removes the emptied groups.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.Dirs {
		errs = append(errs, remove(dir))
	}
	return errors.Join(errs...)
}

// ownCgroups reads which group of each hierarchy this process is in.
func ownCgroups() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, name := range strings.Split(parts[1], ",") {
			own[name] = parts[2]
		}
	}
	return own, nil
}

// cgroupMounts reads where the hierarchies are mounted: one entry a v1
// controller, and "" for v2 unless v1 has the controllers.
func cgroupMounts() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts, unified := map[string]string{}, ""
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		switch r[0] {
		case "cgroup2":
			unified = l[4]
		case "cgroup":
			for _, o := range strings.Split(r[2], ",") {
				mounts[o] = l[4]
			}
		}
	}
	if _, v1 := mounts["memory"]; !v1 && unified != "" {
		return map[string]string{"": unified}, nil
	}
	return mounts, nil
}

func write(dir, file, value string) error {
	fd, err := unix.Open(dir+"/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %s to %s: %w", value, file, err)
	}
	return nil
}

func read(dir, file string) string {
	fd, err := unix.Open(dir+"/"+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, _ := unix.Read(fd, buf[:])
	return string(buf[:max(n, 0)])
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(string(bytes.TrimSpace([]byte(s))), 10, 64)
	return n
}

func keyed(s, key string) int64 {
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			return number(v)
		}
	}
	return 0
}

func hasWord(s, word string) bool {
	return strings.Contains(" "+strings.Join(strings.Fields(s), " ")+" ", " "+word+" ")
}
