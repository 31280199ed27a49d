package cgroup

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Without root there are no control groups. What stands in for them goes by the
// processes below a sandbox's init, which has every process of the sandbox below
// it, and is weaker: see each method.

// None returns a tree whose groups are processes and nothing else.
func None() *Tree { return &Tree{none: true} }

// Bounds of a walk: a sandbox over them is looked at in part.
const (
	maxProcesses = 4096
	maxWalks     = 20
)

// processes returns the init of a sandbox and all below it.
func (g *Group) processes() []int {
	list := []int{g.Init}
	for i := 0; i < len(list) && len(list) < maxProcesses; i++ {
		dir := "/proc/" + strconv.Itoa(list[i]) + "/task"
		tasks, _ := os.ReadDir(dir)
		for _, t := range tasks {
			b, _ := os.ReadFile(dir + "/" + t.Name() + "/children")
			for f := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil {
					list = append(list, pid)
				}
			}
		}
	}
	return list
}

// limitProcesses limits processes and threads. The kernel counts those of a user
// in each user namespace by themselves, and a sandbox has its own. Whoever is
// there already gets the limit, and hands it to its children.
func (g *Group) limitProcesses(pids int) error {
	most := &unix.Rlimit{Cur: uint64(pids + overheadPIDs), Max: uint64(pids + overheadPIDs)}
	for _, pid := range g.processes() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, most, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// stop sends a signal to all below init, until a walk meets nobody new.
func (g *Group) stop(signal unix.Signal) error {
	known := map[int]bool{g.Init: true}
	for range maxWalks {
		before := len(known)
		for _, pid := range g.processes() {
			if known[pid] {
				continue
			}
			known[pid] = true
			if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if len(known) == before {
			return nil
		}
	}
	return errors.New("its processes are made faster than they can be stopped")
}

// userHZ is the unit of times in /proc, the same on every architecture.
const userHZ = 100

// processStats adds up what the processes that live have used: memory that is
// theirs, its peaks, and time in units of 10 ms.
func (g *Group) processStats() (s Stats) {
	var ticks int64
	for _, pid := range g.processes() {
		dir := "/proc/" + strconv.Itoa(pid)
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(status) {
			key, value, _ := bytes.Cut(line, []byte(":"))
			value, _, _ = bytes.Cut(bytes.TrimSpace(value), []byte(" "))
			switch string(key) {
			case "RssAnon", "RssShmem", "VmSwap":
				s.Memory += number(string(value)) << 10
			case "VmHWM":
				s.MaxMemory += number(string(value)) << 10
			case "Threads":
				s.PIDs += int(number(string(value)))
			}
		}
		stat, _ := os.ReadFile(dir + "/stat")
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 { // the name before it may hold anything
			f := strings.Fields(string(stat[i+1:]))
			for n := 11; n < 15 && n < len(f); n++ { // utime, stime and those of children that ended
				ticks += number(f[n])
			}
		}
	}
	s.CPU = time.Duration(ticks) * (time.Second / userHZ)
	s.MaxMemory = max(s.MaxMemory, s.Memory)
	return s
}
