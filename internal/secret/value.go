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
type Value struct {
	// A function: what prints a struct that holds a Value in a field of its own, where
	// no method is asked, sees an address at most, whatever the verb.
	get func() *plain
}

type plain struct {
	mu     sync.Mutex
	bytes  []byte
	number int
}

func newValue(data []byte, number int) Value {
	p := &plain{bytes: data, number: number}
	return Value{func() *plain { return p }}
}

// Bytes returns the value itself, which ends with Clear; it must not be changed or
// kept.
func (v Value) Bytes() []byte {
	if v.get == nil {
		return nil
	}
	p := v.get()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

// Number returns which version of the secret it is.
func (v Value) Number() int {
	if v.get == nil {
		return 0
	}
	return v.get().number
}

// Clear overwrites the value. What was copied of it stays.
func (v Value) Clear() {
	if v.get == nil {
		return
	}
	p := v.get()
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bytes)
	p.bytes = nil
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
