package linux

import (
	"go/ast"
	"go/parser"
	"go/token"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// TestAllowListIsTighterThanTheBaseline holds the list against the profile it
// began as: nothing may be allowed that containers are not allowed by default.
func TestAllowListIsTighterThanTheBaseline(t *testing.T) {
	baseline := map[string]bool{}
	for _, rule := range seccomp.DefaultProfile().Syscalls {
		if rule.Action == "SCMP_ACT_ALLOW" && (rule.Includes == nil || len(rule.Includes.Caps) == 0) {
			for _, name := range rule.Names {
				baseline[name] = true
			}
		}
	}
	if len(baseline) < 300 {
		t.Fatalf("the baseline has only %d calls", len(baseline))
	}
	ours := slices.Concat(namesIn(t, "seccomp.go", "allowed"), namesIn(t, "seccomp_"+runtime.GOARCH+".go", "legacyAllowed"))
	if len(ours) != len(allowed)+len(legacyAllowed) {
		t.Fatalf("found %d names for %d calls", len(ours), len(allowed)+len(legacyAllowed))
	}
	for _, name := range ours {
		if !baseline[name] {
			t.Errorf("%s is allowed, and is not in the baseline", name)
		}
	}
	if len(ours) > len(baseline)*3/4 {
		t.Errorf("%d of %d calls are allowed: that is hardly tighter", len(ours), len(baseline))
	}
}

// namesIn reads the names of a list of calls from its source, because the
// numbers do not carry them.
func namesIn(t *testing.T, file, list string) (names []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != list {
			return true
		}
		for _, e := range spec.Values[0].(*ast.CompositeLit).Elts {
			names = append(names, strings.ToLower(strings.TrimPrefix(e.(*ast.SelectorExpr).Sel.Name, "SYS_")))
		}
		return false
	})
	return names
}

// TestNothingDangerousIsAllowed names what must never be on the list.
func TestNothingDangerousIsAllowed(t *testing.T) {
	never := slices.Concat(watched, legacyWatched, absent, []uintptr{
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_BPF, unix.SYS_PTRACE, unix.SYS_MOUNT,
		unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_USERFAULTFD,
		unix.SYS_PERF_EVENT_OPEN, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
		unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_SECCOMP, unix.SYS_CHROOT,
		// A memory file is on no mount: neither noexec nor Landlock keeps it from being mapped and run.
		unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET,
	})
	for _, nr := range never {
		if slices.Contains(allowed, nr) || slices.Contains(legacyAllowed, nr) {
			t.Errorf("%s is allowed", wire.SyscallName(int(nr)))
		}
	}
	for _, nr := range slices.Concat(watched, legacyWatched) {
		if name := wire.SyscallName(int(nr)); len(name) > 8 && name[:8] == "syscall " {
			t.Errorf("%s is watched and has no name", name)
		}
	}
}

func TestFilterFitsTheKernel(t *testing.T) {
	for _, kind := range []sandbox.SyscallKind{sandbox.SyscallPython, sandbox.SyscallNode, sandbox.SyscallProvided, sandbox.SyscallWasm} {
		b, err := filter(kind)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(b) / 8; n < 50 || n > 1024 {
			t.Errorf("%s: %d instructions", kind, n)
		}
	}
}
