package api_test

import (
	"fmt"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
)

// A key that is revoked loses the streams it follows: at the next line, or after
// a moment of silence.
func TestRevokedKeyLosesItsStreams(t *testing.T) {
	n := bawntest.NewNode(t)
	n.MustDeploy("f", map[string]any{"runtime": "python3.11", "handler": "app.handler"}, map[string]string{"app.py": "def handler(e, c): pass\n"})
	for _, quiet := range []bool{true, false} {
		t.Run(fmt.Sprintf("quiet=%v", quiet), func(t *testing.T) {
			k, err := n.CreateKey(t.Context(), client.NewKey{Name: fmt.Sprintf("watcher-%v", quiet), Role: bawn.RoleViewer})
			if err != nil {
				t.Fatal(err)
			}
			lines := make(chan bawn.Record, 1000)
			ended := make(chan error, 1)
			go func() {
				q := client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindChange}, Follow: true}
				if quiet {
					q.Function = "f" // hears nothing of the revocation itself
				}
				ended <- n.As(k.Secret).Events(t.Context(), q, func(r bawn.Record) error { lines <- r; return nil })
			}()
			<-lines
			if err := n.RevokeKey(t.Context(), k.Key.ID); err != nil {
				t.Fatal(err)
			}
			if !quiet {
				if _, err := n.CreateKey(t.Context(), client.NewKey{Name: "secret-plan", Role: bawn.RoleViewer}); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-ended; bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
				t.Errorf("the stream ended with %v", err)
			}
			for len(lines) > 0 {
				if r := <-lines; r.Detail["name"] == "secret-plan" {
					t.Errorf("a revoked key read %+v", r)
				}
			}
		})
	}
}
