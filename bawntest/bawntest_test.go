package bawntest

import (
	"io"
	"net/http"
	"testing"

	"bawn.dev/bawn"
)

func TestNode(t *testing.T) {
	n := NewNode(t)
	digest := n.MustPut(map[string]string{"app.py": "def handler(e, c): return e\n"})
	if has, err := n.HasArtifact(t.Context(), digest); !has || err != nil {
		t.Errorf("%v, %v", has, err)
	}
	viewer := n.MustKey(bawn.RoleViewer)
	if _, err := n.As(viewer).Keys(t.Context()); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("a viewer lists keys: %v", err)
	}
	before := n.Context.Key
	n.Restart()
	if n.Context.Key != before {
		t.Error("a restart made another key")
	}
	if has, err := n.HasArtifact(t.Context(), digest); !has || err != nil {
		t.Errorf("after a restart: %v, %v", has, err)
	}
	// Two nodes of one test do not meet.
	other := NewNode(t)
	if _, err := other.As(viewer).Functions(t.Context()); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Errorf("another node's key: %v", err)
	}
	n.Stop()
	n.Stop()
	if _, err := other.Functions(t.Context()); err != nil {
		t.Errorf("after the other stopped: %v", err)
	}
}

func TestFunctionOverHTTP(t *testing.T) {
	n := NewNode(t)
	rt := n.NeedRuntime(Pythons()...)
	n.MustDeploy("f", map[string]any{
		"runtime": string(rt), "handler": "app.handler",
		"ingress": map[string]any{"http": []any{map[string]any{"method": "GET", "path": "/f", "access": map[string]any{
			"public": map[string]any{"reason": "a test", "until": "2099-12-31"},
		}}}},
	}, map[string]string{"app.py": "def handler(e, c): return {'statusCode': 201, 'body': e['rawPath']}\n"})
	res, err := n.HTTP.Get(n.Public() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusCreated || string(b) != "/f" {
		t.Errorf("%d %q", res.StatusCode, b)
	}
}
