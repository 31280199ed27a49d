package node

import (
	"maps"
	"slices"
	"strings"

	"bawn.dev/bawn"
)

const maxLabelValue = 63 // bytes

// parseLabels reads what a node is labelled with, each KEY=VALUE and each key once:
// where it is, and whatever else data may have to stay within. nil if there is none.
func parseLabels(labels []string) (map[string]string, error) {
	const op = "node.labels"
	if len(labels) > bawn.MaxLabels {
		return nil, bawn.Errorf(bawn.CodeInvalid, op, "there are %d labels, at most %d are allowed", len(labels), bawn.MaxLabels)
	}
	var all map[string]string
	for _, l := range labels {
		key, value, ok := strings.Cut(l, "=")
		if err := bawn.CheckName("label", key); !ok || err != nil || !labelValue(value) {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "the label %.130q is not KEY=VALUE", l).
				WithFix("write it as --label region=eu: the key a name, the value of letters, digits, '.', '_' and '-', at most %d", maxLabelValue)
		}
		if _, twice := all[key]; twice {
			return nil, bawn.Errorf(bawn.CodeInvalid, op, "the label %s is given twice", key).WithFix("give one value")
		}
		if all == nil {
			all = map[string]string{}
		}
		all[key] = value
	}
	return all, nil
}

func labelValue(s string) bool {
	return s != "" && len(s) <= maxLabelValue && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}) < 0
}

// labelText writes labels in the order of their keys.
func labelText(labels map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, k+"="+labels[k])
	}
	return strings.Join(all, " ")
}

// labelled says what the node is labelled with; nothing if it is not.
func (n *Node) labelled() []bawn.Capability {
	if len(n.labels) == 0 {
		return nil
	}
	return []bawn.Capability{{Name: "labels", OK: true, Detail: labelText(n.labels) + "; they are told, and place nothing: there is one node"}}
}
