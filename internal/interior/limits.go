package interior

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// What the pool does when the node's configuration says nothing; docs/limits.md
// lists these.
const (
	defaultWarm         = 4    // warm sandboxes for each runtime that has functions
	defaultMaxSandboxes = 1024 // of every kind, ending ones included
	defaultQueueLength  = 256  // calls that may wait, for each function
	defaultQueueWait    = 5 * time.Second
	defaultFreezeAfter  = 100 * time.Millisecond
	defaultIdleAfter    = 5 * time.Minute
	maxQueueBytes       = 256 << 20 // events of all waiting calls on the node
)

// Pace of the pool. None of these changes what a call gets, only when.
const (
	// refillDelay keeps the refill away from the call that caused it: booting
	// an interpreter in the same instant takes the core that the call needs and
	// doubles its time.
	refillDelay = 15 * time.Millisecond
	bootTimeout = 10 * time.Second
	// growTick is how often a function whose calls wait is looked at.
	growTick = 3 * time.Millisecond
	// growDelay is the queueing time that a call is expected to bear before
	// another instance is worth its start.
	growDelay = 5 * time.Millisecond
	// growLate is when a waiting call gets another instance whatever the
	// estimate says.
	growLate  = 25 * time.Millisecond
	sweepTick = 50 * time.Millisecond
	// exitWait bounds the wait for the kernel's word on why a program ended.
	exitWait    = time.Second
	sampleEvery = time.Second // how old a reading of the memory peak may be
	missDecay   = time.Minute // after so long without a miss the pool shrinks by one
	retryFirst  = time.Second // after a failed refill, doubling to retryMax
	retryMax    = 30 * time.Second
)

// attachment returns the limits that a version's perimeter sets, and its code.
func attachment(v *bawn.Version, code []string) sandbox.Attachment {
	in := &v.Perimeter.Interior
	return sandbox.Attachment{
		Code:   code,
		Memory: in.Memory,
		CPU:    in.CPU,
		PIDs:   in.PIDs,
		Tmp:    in.Tmp,
		Exec:   in.Exec,
	}
}

// memoryLow reports whether less than a tenth of the host's memory is left.
func memoryLow() bool {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false // no procfs: the cgroup limits still hold
	}
	total, available := meminfo(b, "MemTotal:"), meminfo(b, "MemAvailable:")
	return total > 0 && available > 0 && available < total/10
}

// meminfo returns the figure of one line of /proc/meminfo in kB, or 0.
func meminfo(b []byte, key string) int64 {
	_, rest, ok := bytes.Cut(b, []byte(key))
	if !ok {
		return 0
	}
	fields := bytes.Fields(rest[:min(len(rest), 64)])
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
	return n
}
