package examples

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

// api makes the stand-in of the API of the example payments, on a free port. It
// still has to be served.
func api(t *testing.T) (dir, port string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "api")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	ln.Close()
	if out, err := exec.Command("python3", "payments/api.py", "make", dir, port).CombinedOutput(); err != nil {
		t.Fatalf("api.py: %v\n%s", err, out)
	}
	return dir, port
}

// charging has the manifest of payments name the port of the stand-in.
func charging(t *testing.T, spec *manifest.Function, port string) {
	t.Helper()
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	spec.Environment["PAYMENTS_URL"] = strings.Replace(spec.Environment["PAYMENTS_URL"], "54443", port, 1)
	spec.Egress.Hosts[0].Ports[0] = number
}

// grantKey gives payments the key of the stand-in.
func grantKey(t *testing.T, n *bawntest.Node, dir string) {
	t.Helper()
	if _, err := n.CreateSecret(t.Context(), "payments-key", bawntest.MustRead(t, filepath.Join(dir, "key"))); err != nil {
		t.Fatal(err)
	}
	if _, err := n.GrantSecret(t.Context(), "payments-key", "payments"); err != nil {
		t.Fatal(err)
	}
}

// TestPaymentsAnswers deploys the example payments to a node that may reach the
// stand-in of its API, and runs its try.sh.
func TestPaymentsAnswers(t *testing.T) {
	dir, port := api(t)
	n := bawntest.NewNode(t, func(c *node.Config) {
		c.EgressAllow, c.EgressResolve, c.EgressCA = []string{"127.0.0.1:" + port}, []string{"api.payments.test=127.0.0.1"}, filepath.Join(dir, "ca.pem")
	})
	python := n.NeedRuntime(bawntest.Pythons()...)
	spec := all(t)["payments"].Functions["payments"]
	spec.Runtime = python
	charging(t, &spec, port)
	deploy(t, n, "payments", spec, "payments/src")
	grantKey(t, n, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "payments/try.sh")
	cmd.Env = append(os.Environ(), "BAWN_PUBLIC="+n.Context.Public, "BAWN_CA="+filepath.Join(n.Data, "ca.pem"), "BAWN_KEY="+n.MustKey(bawn.RoleInvoker), "BAWN_PAYMENTS="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("try.sh: %v\n%s", err, out)
	}
}
