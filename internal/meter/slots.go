package meter

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bawn.dev/bawn"
)

// slots are a file of the calls that run, each with what it holds. The file is
// mapped: to write it costs what it costs to write memory, and the kernel has it
// whatever becomes of the process. So what ran when a node was killed is known to
// its next start.
//
// A slot begins with a number, which is 0 while it is free, and a sum of it and the
// rest: one that was half written is free, and its call has not begun.
type slots struct {
	mu   sync.Mutex
	file *os.File
	data []byte
	free []int32 // the last one goes first, so that few pages are in use
	next uint64  // the number of the next call
	head [8]byte // room for a number that is summed
}

const (
	slotBytes = 640
	maxSlots  = 16384 // calls that run on a node
	slotHead  = 8 + 4 + 4
	slotFree  = 0 // the number of a free slot
)

// held is what a slot says.
type held struct {
	number     uint64
	slot       int32
	invocation string
	tenant     string
	function   string
	version    int
	principal  string
	source     string
	caller     string
	others     int // a bit for each window in which the caller is one of others
	at         time.Time
	most       amounts
}

// openSlots maps the file, made if missing, and returns what is in it.
func openSlots(path string) (*slots, []held, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err == nil {
		if err = f.Truncate(maxSlots * slotBytes); err != nil {
			f.Close()
		}
	}
	var data []byte
	if err == nil {
		if data, err = syscall.Mmap(int(f.Fd()), 0, maxSlots*slotBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, nil, bawn.Wrap(err, bawn.CodeUnavailable, "meter.open", "the file of the calls that run cannot be kept in the data directory")
	}
	s := &slots{file: f, data: data, next: 1}
	var found []held
	for i := int32(maxSlots - 1); i >= 0; i-- {
		b := s.slot(i)
		n := binary.LittleEndian.Uint64(b)
		if n == slotFree {
			s.free = append(s.free, i)
			continue
		}
		h, ok := parseSlot(b)
		if !ok {
			s.store(i, slotFree)
			s.free = append(s.free, i)
			continue
		}
		h.slot = i
		s.next = max(s.next, n+1)
		found = append(found, h)
	}
	return s, found, nil
}

func (s *slots) slot(i int32) []byte { return s.data[int(i)*slotBytes : (int(i)+1)*slotBytes] }

func (s *slots) store(i int32, n uint64) { binary.LittleEndian.PutUint64(s.slot(i), n) }

// slotSum is over a slot's number, which it writes into b, and its text.
func slotSum(b []byte, n uint64, text []byte) uint32 {
	binary.LittleEndian.PutUint64(b, n)
	return crc32.Update(crc32.ChecksumIEEE(b), crc32.IEEETable, text)
}

// take keeps h in a free slot. It reports false if there is none.
func (s *slots) take(h *held) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil || len(s.free) == 0 {
		return false
	}
	h.slot = s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	h.number = s.next
	s.next++
	b := s.slot(h.slot)
	text := appendHeld(b[slotHead:slotHead], h)
	if len(text) > slotBytes-slotHead { // names are bounded, so this is not known to be
		s.free = append(s.free, h.slot)
		return false
	}
	binary.LittleEndian.PutUint32(b[8:], uint32(len(text)))
	binary.LittleEndian.PutUint32(b[12:], slotSum(s.head[:], h.number, text))
	s.store(h.slot, h.number)
	return true
}

// give frees the slot again.
func (s *slots) give(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data != nil {
		s.store(h.slot, slotFree)
		s.free = append(s.free, h.slot)
	}
}

// taken returns the number of the next call, and those of the calls that run.
func (s *slots) taken() (next uint64, open []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil || len(s.free) == maxSlots {
		return s.next, nil
	}
	for i := range int32(maxSlots) {
		if n := binary.LittleEndian.Uint64(s.slot(i)); n != slotFree {
			open = append(open, n)
		}
	}
	return s.next, open
}

func (s *slots) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil {
		return nil
	}
	err := syscall.Munmap(s.data)
	s.data = nil
	if e := s.file.Close(); err == nil {
		err = e
	}
	return err
}

// appendHeld writes h as lines. Texts from outside lose what would not fit.
func appendHeld(b []byte, h *held) []byte {
	for _, text := range [...]string{clip(h.invocation, 40), clip(h.tenant, 64), clip(h.function, 64), clip(h.principal, 72), clip(h.source, 46), h.caller} {
		b = append(append(b, text...), '\n')
	}
	for _, n := range [...]int64{int64(h.version), int64(h.others), h.at.Unix()} {
		b = append(append36(b, n), '\n')
	}
	for _, n := range h.most {
		b = append(append36(b, n), '\n')
	}
	return b
}

// append36 appends n, which is not negative, to the base 36. strconv divides by a
// base that it is told, which costs a call more than all else here.
func append36(b []byte, n int64) []byte {
	var digits [13]byte
	i := len(digits)
	for u := uint64(n); ; u /= 36 {
		i--
		digits[i] = "0123456789abcdefghijklmnopqrstuvwxyz"[u%36]
		if u < 36 {
			return append(b, digits[i:]...)
		}
	}
}

func clip(s string, most int) string { return strings.ReplaceAll(s[:min(len(s), most)], "\n", " ") }

// parseSlot reads a slot that is in use.
func parseSlot(b []byte) (h held, ok bool) {
	n := binary.LittleEndian.Uint32(b[8:])
	if n > slotBytes-slotHead {
		return h, false
	}
	text := b[slotHead : slotHead+n]
	if slotSum(make([]byte, 8), binary.LittleEndian.Uint64(b), text) != binary.LittleEndian.Uint32(b[12:]) {
		return h, false
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 6+3+meters+1 {
		return h, false
	}
	var numbers [3 + meters]int64
	for i := range numbers {
		var err error
		if numbers[i], err = strconv.ParseInt(lines[6+i], 36, 64); err != nil || numbers[i] < 0 {
			return h, false
		}
	}
	h = held{
		number: binary.LittleEndian.Uint64(b), invocation: lines[0], tenant: lines[1], function: lines[2], principal: lines[3], source: lines[4], caller: lines[5],
		version: int(numbers[0]), others: int(numbers[1]), at: time.Unix(numbers[2], 0),
	}
	copy(h.most[:], numbers[3:])
	return h, true
}
