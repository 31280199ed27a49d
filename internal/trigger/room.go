package trigger

import (
	"sync/atomic"

	"bawn.dev/bawn"
)

const (
	// maxHeld is what requests and answers may take of the server's memory, all
	// together: bodies as they arrive, events until their call is over, answers
	// until they have left.
	maxHeld = 256 << 20
	// maxHeldOpen is how far those without a key may fill it.
	maxHeldOpen = 128 << 20
	// freeBytes of each body and each answer are not counted: what is small comes
	// through when the rest is taken.
	freeBytes = 4 << 10
)

// room counts bytes in memory. Safe for concurrent use.
type room struct{ used atomic.Int64 }

// A share is what one request holds of a room. It is not safe for concurrent
// use, and must be given back.
type share struct {
	room *room
	most int64 // how full the room may get by it
	held int64
}

// take takes n bytes more, or none if there is no room for them.
func (s *share) take(n int) error {
	if n <= 0 {
		return nil
	}
	if s.room.used.Add(int64(n)) > s.most {
		s.room.used.Add(-int64(n))
		return bawn.Errorf(bawn.CodeUnavailable, "http", "too many large requests and answers are on their way at one time").
			WithFix("try again in a moment, or with less")
	}
	s.held += int64(n)
	return nil
}

// give gives n bytes back.
func (s *share) give(n int) {
	if n > 0 {
		s.held -= int64(n)
		s.room.used.Add(-int64(n))
	}
}

// end gives back what is left.
func (s *share) end() { s.give(int(s.held)) }
