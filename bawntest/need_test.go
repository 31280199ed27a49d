package bawntest

import (
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

// A host that lacks something skips tests; a sandbox with a hole does not.
func TestLack(t *testing.T) {
	holds := bawn.Capability{Name: "a sandbox that holds", Required: true}
	needed := bawn.Capability{Name: "seccomp", Required: true}
	extra := bawn.Capability{Name: "Landlock"}
	has := func(c bawn.Capability) bawn.Capability { c.OK = true; return c }
	for _, c := range []struct {
		name  string
		have  []bawn.Capability
		lacks bool
		hole  bool
	}{
		{"all", []bawn.Capability{has(needed), has(holds), extra}, false, false},
		{"something missing", []bawn.Capability{holds, needed}, true, false},
		{"a hole", []bawn.Capability{has(needed), holds, extra}, false, true},
	} {
		lack, err := Lack(&client.Doctor{Capabilities: c.have})
		if (lack != nil) != c.lacks || (err != nil) != c.hole {
			t.Errorf("%s: %v, %v", c.name, lack, err)
		}
	}
}
