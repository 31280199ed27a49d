package filter

import (
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	gvisor "gvisor.dev/gvisor/pkg/seccomp"

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
	ours := slices.Concat(namesIn(t, "filter.go", "allowed"), namesIn(t, "filter_"+runtime.GOARCH+".go", "legacyAllowed"))
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
	for _, kind := range wire.Kinds() {
		b, err := Compile(kind)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(b) / 8; n < 50 || n > 1024 {
			t.Errorf("%s: %d instructions", kind, n)
		}
	}
	if _, err := Compile("everything"); err == nil {
		t.Error("there is a filter for what is no kind of program")
	}
}

// run asks a filter about one call.
func run(t *testing.T, code []byte, arch uint32, nr uint32, args [6]uint64) uint32 {
	t.Helper()
	var list []bpf.Instruction
	for ; len(code) > 0; code = code[8:] {
		list = append(list, bpf.Instruction{OpCode: binary.NativeEndian.Uint16(code), JumpIfTrue: code[2], JumpIfFalse: code[3], K: binary.NativeEndian.Uint32(code[4:])})
	}
	p, err := bpf.Compile(list, false)
	if err != nil {
		t.Fatal(err)
	}
	data := binary.NativeEndian.AppendUint32(nil, nr)
	data = binary.NativeEndian.AppendUint32(data, arch)
	data = binary.NativeEndian.AppendUint64(data, 0)
	for _, a := range args {
		data = binary.NativeEndian.AppendUint64(data, a)
	}
	got, err := bpf.Exec[bpf.NativeEndian](p, data)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestB2FilterSaysWhatTheReferenceSays holds the compiler here against another,
// that of gVisor, for the same lists: every call, with the arguments around
// which the lists decide.
func TestB2FilterSaysWhatTheReferenceSays(t *testing.T) {
	values := []uint64{0, 1, 2, 3, 5, 10, 15, 16, unix.O_CREAT, unix.O_TRUNC, unix.O_RDWR, unix.O_CLOEXEC, unix.CLONE_NEWUSER, unix.CLONE_NEWTIME,
		unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_MPTCP, unix.CLONE_VM, unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSTI | 1<<32, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, 0xffffffff, 1<<32 | 1, ^uint64(0)}
	for _, kind := range wire.Kinds() {
		ours, err := Compile(kind)
		if err != nil {
			t.Fatal(err)
		}
		theirs := reference(t, kind)
		compare := func(arch, nr uint32, args [6]uint64) {
			if got, want := run(t, ours, arch, nr, args), run(t, theirs, arch, nr, args); got != want {
				t.Fatalf("%s: %s%x on %#x: %#x, want %#x", kind, wire.SyscallName(int(nr)), args, arch, got, want)
			}
		}
		for nr := range uint32(600) {
			compare(arch, nr, [6]uint64{})
		}
		for _, nr := range []uint32{0x40000000, 0x40000001, 0x40000101, 0x7fffffff, 0x80000000, 0xffffffff} { // x32 among them
			compare(arch, nr, [6]uint64{})
		}
		compare(arch^1, unix.SYS_READ, [6]uint64{})
		compare(0, unix.SYS_READ, [6]uint64{})
		for nr, a := range answers(kind) {
			if len(a.any) == 0 {
				continue
			}
			for _, x := range values {
				for _, y := range values {
					compare(arch, uint32(nr), [6]uint64{x, y, 0})
					compare(arch, uint32(nr), [6]uint64{x, 0, y})
					compare(arch, uint32(nr), [6]uint64{0, x, y})
				}
			}
		}
	}
}

// reference compiles the same lists with gVisor.
func reference(t *testing.T, kind string) []byte {
	t.Helper()
	never, allow, missing := map[uintptr]gvisor.SyscallRule{}, map[uintptr]gvisor.SyscallRule{}, map[uintptr]gvisor.SyscallRule{}
	for nr, a := range answers(kind) {
		var rule gvisor.Or
		for _, tests := range a.any {
			var args gvisor.PerArg
			for _, x := range tests {
				if x.mask == ^uint64(0) {
					args[x.arg] = gvisor.EqualTo(x.value)
				} else {
					args[x.arg] = gvisor.MaskedEqual(uintptr(x.mask), uintptr(x.value))
				}
			}
			for i := range args {
				if args[i] == nil {
					args[i] = gvisor.AnyValue{}
				}
			}
			rule = append(rule, args)
		}
		switch {
		case a.then == hide:
			missing[nr] = gvisor.MatchAll{}
		case a.then == refuse:
			never[nr], allow[nr] = rule, gvisor.MatchAll{}
		case len(rule) > 0:
			allow[nr] = rule
		default:
			allow[nr] = gvisor.MatchAll{}
		}
	}
	p := gvisor.Program{
		RuleSets: []gvisor.RuleSet{
			{Rules: gvisor.MakeSyscallRules(never), Action: gvisor.ReturnError.Code(uint16(unix.EPERM))},
			{Rules: gvisor.MakeSyscallRules(allow), Action: gvisor.Allow},
			{Rules: gvisor.MakeSyscallRules(missing), Action: gvisor.ReturnError.Code(uint16(unix.ENOSYS))},
		},
		Options: gvisor.ProgramOptions{DefaultAction: gvisor.UserNotify, BadArchAction: gvisor.KillProcess},
	}
	code, _, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, i := range code {
		b = binary.NativeEndian.AppendUint16(b, i.OpCode)
		b = append(b, i.JumpIfTrue, i.JumpIfFalse)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}
