package secret

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// hidden is all that any printer says of a [Value].
const hidden = "[secret]"

// Value is what a secret is at one version. Nothing prints, logs or encodes it: who
// needs the bytes says so. Clear it after use. The zero Value has no bytes. It is
// safe for concurrent use.
type Value struct{ p *plain } // a pointer: what prints a struct that holds a Value sees an address at most

type plain struct {
	mu     sync.Mutex
	bytes  []byte
	number int
}

func newValue(data []byte, number int) Value { return Value{&plain{bytes: data, number: number}} }

// Bytes returns the value itself, which ends with Clear; it must not be changed or
// kept.
func (v Value) Bytes() []byte {
	if v.p == nil {
		return nil
	}
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	return v.p.bytes
}

// Number returns which version of the secret it is.
func (v Value) Number() int {
	if v.p == nil {
		return 0
	}
	return v.p.number
}

// Clear overwrites the value. What was copied of it stays.
func (v Value) Clear() {
	if v.p == nil {
		return
	}
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	clear(v.p.bytes)
	v.p.bytes = nil
}

// String returns "[secret]".
func (v Value) String() string { return hidden }

// GoString returns "[secret]".
func (v Value) GoString() string { return hidden }

// Format writes "[secret]", whatever the verb.
func (v Value) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// LogValue returns "[secret]".
func (v Value) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalJSON returns "[secret]" as JSON.
func (v Value) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// MarshalText returns "[secret]".
func (v Value) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// GobEncode fails: a Value goes nowhere.
func (v Value) GobEncode() ([]byte, error) { return nil, errors.New("a secret is not encoded") }
