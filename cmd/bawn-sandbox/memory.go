package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// memoryInterval is how often sandboxes are looked at. What one allocates in
// between nobody stops but the host.
const memoryInterval = 100 * time.Millisecond

// watchMemory kills sandboxes that have more memory than they may, where there
// are no control groups to see to that. It ends with the process.
func (s *spawner) watchMemory() {
	for range time.Tick(memoryInterval) {
		s.mu.Lock()
		boxes := make([]*box, 0, len(s.boxes))
		for _, b := range s.boxes {
			if b.attached.Load() && !b.frozen.Load() {
				boxes = append(boxes, b)
			}
		}
		s.mu.Unlock()
		for _, b := range boxes {
			if b.group.Stats().Memory+b.tmpUsed() > b.memory.Load() {
				b.over.Store(true)
				b.kill()
			}
		}
	}
}

// tmpUsed returns how many bytes of memory /tmp takes.
func (b *box) tmpUsed() int64 {
	b.life.Lock()
	defer b.life.Unlock()
	var st unix.Statfs_t
	if b.cleared || unix.Fstatfs(b.tmp, &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
