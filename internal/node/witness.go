package node

import (
	"fmt"

	"bawn.dev/bawn"
)

// witnessed says how it is with the witnesses of the audit log. One that does
// not sign stops nothing.
func (n *Node) witnessed() []bawn.Capability {
	var all []bawn.Capability
	for _, w := range n.record.Witnesses() {
		c := bawn.Capability{Name: "witness " + w.Name, Control: "G3", OK: w.OK, Detail: fmt.Sprintf("has signed %d entries of the audit log", w.Size)}
		if !w.OK {
			c.Detail += "; " + w.Reason
			c.Fix = "see that `bawn witness` runs at " + w.URL + "; if it says that the log was rolled back or forked, keep the data directory and compare it with bawn audit verify --since"
		}
		all = append(all, c)
	}
	return all
}
