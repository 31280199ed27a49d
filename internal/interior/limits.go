package interior

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
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
	growLate = 25 * time.Millisecond
	// While the processors are saturated, a function whose calls take less than
	// growQuick gets no instance that could not run at once; one whose calls take
	// growSlow is held up by more than that. growStuck is when a waiting call gets
	// another instance all the same; see fleet.want.
	growQuick = 20 * time.Millisecond
	growSlow  = 250 * time.Millisecond
	growStuck = 500 * time.Millisecond
	// slotTurn is how long a call waits for a slot that the calls of another
	// version keep, before it gets one of theirs.
	slotTurn  = 250 * time.Millisecond
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

// busyWindow is how long the processors are watched for one reading. The
// kernel counts in hundredths of a second.
const busyWindow = 100 * time.Millisecond

// processors watches how busy the processors are. It looks when it is asked, at
// most once in busyWindow; after a pause the first answer is no. The zero value
// is ready. Safe for concurrent use.
type processors struct {
	last atomic.Int64 // UnixNano of the last look
	full atomic.Bool  // what it showed

	mu         sync.Mutex // held for a look
	busy, idle uint64     // at the last look
}

// saturated is the default of Config.Saturated. Without procfs it never is.
func (p *processors) saturated() bool {
	now := time.Now().UnixNano()
	if now-p.last.Load() < int64(busyWindow) || !p.mu.TryLock() {
		return p.full.Load()
	}
	defer p.mu.Unlock()
	since := time.Duration(now - p.last.Load())
	if since < busyWindow { // somebody has just looked
		return p.full.Load()
	}
	f, err := os.Open("/proc/stat")
	if err != nil {
		p.last.Store(now)
		return false
	}
	defer f.Close()
	line := make([]byte, 512) // the first line is the sum of all; the others are not read
	n, err := io.ReadAtLeast(f, line, len("cpu "))
	if err != nil {
		n = 0
	}
	full := p.look(line[:n]) && since < 4*busyWindow // an average over a pause says nothing
	p.full.Store(full)
	p.last.Store(now)
	return full
}

// look takes a new reading of /proc/stat and reports whether no more than a
// tenth of the time since the last was idle. Needs mu.
func (p *processors) look(stat []byte) bool {
	busy, idle, ok := processorTimes(stat)
	wasBusy, wasIdle := p.busy, p.idle
	p.busy, p.idle = busy, idle
	if !ok || wasBusy == 0 || busy < wasBusy || idle < wasIdle {
		return false
	}
	busy, idle = busy-wasBusy, idle-wasIdle
	return busy+idle > 0 && 10*idle <= busy+idle
}

// processorTimes returns the first line of /proc/stat as the time that the
// processors, all together, had work and had none, in hundredths of a second.
// What a hypervisor kept for itself counts as work.
func processorTimes(stat []byte) (busy, idle uint64, ok bool) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 5 || string(fields[0]) != "cpu" {
		return 0, 0, false
	}
	for i, f := range fields[1:min(len(fields), 9)] { // user nice system idle iowait irq softirq steal; guests are in user
		n, err := strconv.ParseUint(string(f), 10, 48)
		if err != nil {
			return 0, 0, false
		}
		if i == 3 || i == 4 {
			idle += n
		} else {
			busy += n
		}
	}
	return busy, idle, true
}
